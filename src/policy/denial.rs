//! Why a session is not permitted, whatever target it wants: the claim that cannot be honoured.

/// The claim that cannot be honoured, or the token that contradicts another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// `prx_usr` and `prx_pwd` are to be proven, and the client does not offer what they are proven by.
    #[error(
        "the client is to prove itself (prx_usr, prx_pwd), and offers no NLA by which it could"
    )]
    Unproven,
    /// `jet_rec` asks for what cannot be delivered.
    #[error("the token demands a recording, which this gateway cannot make")]
    Recording,
    /// `jet_rec: stream`: the client would record itself.
    #[error("the token asks for a recording made by the client, which a gateway cannot vouch for")]
    ClientRecording,
    /// `jetflt` asks for what cannot be delivered.
    #[error("the token demands filtering, which this gateway cannot do")]
    Filtering,
    /// `dst_usr`, `dst_pwd`, `prx_usr` or `prx_pwd` ask for what cannot be delivered.
    #[error(
        "the token carries credentials, which cannot be injected: the listener has no certificate ([tls]), or the protocol is not RDP"
    )]
    Injection,
    /// `cert_thumb256` asks for what cannot be delivered.
    #[error(
        "the token pins the target's certificate, which cannot be judged: the listener has no certificate ([tls]), or the protocol is not RDP"
    )]
    Pinning,
    /// The gateway is to speak TLS to the target, and cannot as the token says.
    #[error("the gateway's own TLS to the target: {0}")]
    TargetTls(&'static str),
    /// Nobody vouches for the target of a session by rendezvous as far as the session needs it.
    #[error("rendezvous: {0}")]
    Unvouched(&'static str),
    /// Two tokens of one rendezvous contradict each other.
    #[error("rendezvous: the association exists with other claims")]
    OtherTerms,
}

impl Denial {
    /// The name of the rule, for the log: stable, one word, safe to count by.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Unproven => "client-proof",
            Self::Recording => "recording",
            Self::ClientRecording => "client-recording",
            Self::Filtering => "filtering",
            Self::Injection => "injection",
            Self::Pinning => "pinning",
            Self::TargetTls(_) => "target-tls",
            Self::Unvouched(_) => "unvouched",
            Self::OtherTerms => "rendezvous",
        }
    }
}
