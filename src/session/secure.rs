//! Step 5 of an inspected session: TLS, and CredSSP where it was negotiated, on both legs.
//!
//! 1. The target is asked which security it wants.
//! 2. The client is answered: NLA where the token has a proxy credential and the client offers it, else TLS.
//! 3. The client leg is completed: TLS with the listener's certificate, and the client's proof.
//! 4. Only then the target leg: TLS, the certificate judged, the logon with the credentials of the token.
//!
//! So nobody reaches the target's logon who has not completed their own. Every wait ends at the deadline. What a peer
//! sent behind its last message of a step (clients pipeline MCS Connect Initial) is handed on.
//!
//! A failure says what the log needs ([`SecureError`]) and in which state it leaves the client ([`Remaining`]): still
//! without an answer, so that an RDP Negotiation Failure can be sent, or in TLS, where [`say_farewell`] tells the
//! reason.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tracing::warn;
use zeroize::Zeroizing;

use crate::rdp::connection_request::{
    self, ConnectionRequest, NegotiationRequest, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL,
    REDIRECTED_AUTHENTICATION_MODE_REQUIRED, RESTRICTED_ADMIN_MODE_REQUIRED,
};
use crate::rdp::credssp::client::{
    Client as LogonClient, Exchange, LogonError, Package, Progress, status_name,
};
use crate::rdp::credssp::krb_error::{
    KDC_ERR_C_PRINCIPAL_UNKNOWN, KDC_ERR_CLIENT_REVOKED, KDC_ERR_ETYPE_NOSUPP, KDC_ERR_KEY_EXPIRED,
    KDC_ERR_NAME_EXP, KDC_ERR_POLICY, KDC_ERR_PREAUTH_FAILED, KDC_ERR_S_PRINCIPAL_UNKNOWN,
    KDC_ERR_WRONG_REALM, KRB_AP_ERR_BAD_INTEGRITY, KRB_AP_ERR_SKEW, KrbError,
};
use crate::rdp::credssp::server::{
    Cause, Kerberos as ClientKerberos, Progress as ServerProgress, Server as LogonServer,
    account_restriction,
};
use crate::rdp::credssp::{EarlyUserAuth, SubjectPublicKeyInfo, frame_length};
use crate::rdp::farewell::{Farewell, FarewellError, Reason};
use crate::rdp::negotiation::{ConnectionConfirm, FailureCode, decode_confirm};
use crate::read_ahead::ReadAhead;
use crate::stream::Stream;
use crate::target_certificate::{
    CertificateRefusal, Remembered, TargetCertificate, Verifier, thumbprint,
};
use crate::target_name::TargetName;
use crate::token::claims::{Credentials, Thumbprint};

use super::kdc::{KdcSource, Kdcs};

/// What an operator configures for the target leg.
#[derive(Clone, Debug)]
pub struct SecureConfig {
    /// How certificates of targets are judged, unless a token pins one.
    pub target_certificate: TargetCertificate,
    /// Kerberos to the target; NTLM without it.
    pub kerberos: Option<Kerberos>,
    /// Kerberos from clients, in the place of `prx_pwd`.
    pub client_kerberos: Option<ClientKerberos>,
}

/// Kerberos to targets that were named, not addressed: there is no ticket for an IP address.
#[derive(Clone, Debug)]
pub struct Kerberos {
    /// Where the KDCs are.
    pub kdcs: KdcSource,
    /// The realm of user names that name none.
    pub realm: Option<String>,
    /// Whether NTLM may be used where there is no ticket: no KDC answers or has the right time, the KDC does not know
    /// the target, the target has no name, the user belongs to no realm. Wrong credentials never lead to a second
    /// attempt, and neither does a target that does not take a ticket.
    pub ntlm_fallback: bool,
}

/// What one session needs.
#[derive(Clone, Debug)]
pub struct SecureRequest<'a> {
    /// The operator's part.
    pub config: &'a SecureConfig,
    /// The certificate of the listener that the client came in by.
    pub server_tls: &'a Arc<ServerConfig>,
    /// The target as the token names it.
    pub target: &'a TargetName,
    /// `dst_usr` and `dst_pwd`; without them only a target that takes TLS alone can be had.
    pub target_credentials: Option<&'a Credentials>,
    /// `prx_usr` and `prx_pwd`; without them the client leg is TLS alone.
    pub proxy_credentials: Option<&'a Credentials>,
    /// `cert_thumb256`.
    pub certificate_pin: Option<Thumbprint>,
    /// What the target is to be shown as routing token: another one has sent the client with it.
    pub routing_token: Option<&'a [u8]>,
    /// When all of it must be done.
    pub deadline: Instant,
}

/// How the client's part begins.
#[derive(Debug)]
pub enum Opening {
    /// This Connection Request was taken from the stream.
    X224(ConnectionRequest),
    /// TLS at once; X.224 will follow inside ([MS-RDPBCGR] 5.4.2.2).
    DirectTls,
}

/// TLS to the client.
pub type ClientTls<C> = server::TlsStream<ReadAhead<C>>;
/// TLS to the target.
pub type TargetTls = client::TlsStream<ReadAhead<Stream>>;

/// Both legs, complete.
#[derive(Debug)]
pub struct Secured<C> {
    /// The client.
    pub client: Box<ClientTls<C>>,
    /// What it sent behind its last message: the beginning of MCS Connect Initial.
    pub client_read_ahead: Vec<u8>,
    /// The target.
    pub target: Box<TargetTls>,
    /// What it sent behind its last message; empty with targets that keep to the protocol.
    pub target_read_ahead: Vec<u8>,
    /// What was agreed.
    pub legs: Legs,
    /// The certificate of the target, judged.
    pub target_certificate: Thumbprint,
    /// What became of it where trust on first use is the policy.
    pub remembered: Remembered,
}

/// What was agreed on both legs: the GCC data of each has to say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legs {
    /// `requestedProtocols` of the client: goes back to it in the server core data.
    pub client_requested: u32,
    /// `selectedProtocol` that the client was told.
    pub client_selected: u32,
    /// `requestedProtocols` that the target was told.
    pub target_requested: u32,
    /// `selectedProtocol` of the target: goes back to it in the client core data.
    pub target_selected: u32,
    /// How the client proved itself.
    pub client_logon: Logon,
    /// How the gateway logged on to the target.
    pub target_logon: Logon,
    /// TLS to the client.
    pub client_tls: TlsFacts,
    /// TLS to the target.
    pub target_tls: TlsFacts,
}

/// How somebody proved who they are, in CredSSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Logon {
    /// Not at all: TLS alone.
    None,
    /// By a password.
    Ntlm,
    /// By a ticket.
    Kerberos,
}

impl Logon {
    /// Its name, for logs and API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ntlm => "ntlm",
            Self::Kerberos => "kerberos",
        }
    }
}

/// Version and cipher of a TLS connection, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// For example `TLSv1_3`.
    pub version: String,
    /// For example `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
}

impl TlsFacts {
    fn of(connection: &rustls::CommonState) -> Self {
        let unknown = || "unknown".to_owned();
        let version = connection.protocol_version();
        let suite = connection.negotiated_cipher_suite();
        Self {
            version: version.map_or_else(unknown, |version| format!("{version:?}")),
            cipher: suite.map_or_else(unknown, |suite| format!("{:?}", suite.suite())),
        }
    }
}

/// A failure, and what can still be done for the client.
#[derive(Debug)]
pub struct Failed<C> {
    /// Why.
    pub error: SecureError,
    /// In which state the client is.
    pub client: Remaining<C>,
}

/// The client of a session that was not secured.
#[derive(Debug)]
pub enum Remaining<C> {
    /// It waits for the answer to its Connection Request, or has sent none: see [`SecureError::failure_code`].
    Unanswered {
        /// The transport.
        client: C,
        /// What was read from it and not consumed.
        read_ahead: Vec<u8>,
    },
    /// Its leg is complete: see [`say_farewell`] and [`SecureError::farewell`].
    Secured {
        /// The client.
        client: Box<ClientTls<C>>,
        /// What it sent behind its last message.
        read_ahead: Vec<u8>,
        /// `requestedProtocols` of its Connection Request.
        requested: u32,
    },
    /// It was told, or cannot be told.
    Gone,
}

/// Where a session was when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// X.224 with the target.
    TargetNegotiation,
    /// TLS with the client.
    ClientTls,
    /// CredSSP with the client.
    ClientLogon,
    /// X.224 inside TLS with the client.
    ClientNegotiation,
    /// TLS with the target.
    TargetTls,
    /// CredSSP with the target.
    TargetLogon,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TargetNegotiation => "negotiation with the target",
            Self::ClientTls => "TLS with the client",
            Self::ClientLogon => "CredSSP with the client",
            Self::ClientNegotiation => "negotiation with the client",
            Self::TargetTls => "TLS with the target",
            Self::TargetLogon => "CredSSP with the target",
        })
    }
}

/// Why a session was not secured.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// The deadline passed.
    #[error("{0}: not done in time")]
    TimedOut(Step),
    /// The socket failed, or was closed.
    #[error("{step}: {error}")]
    Io {
        /// Where.
        step: Step,
        /// How.
        #[source]
        error: io::Error,
    },
    /// A message that does not belong there, or is malformed.
    #[error("{step}: {problem}")]
    Protocol {
        /// Where.
        step: Step,
        /// What.
        problem: String,
    },
    /// The client offers no TLS.
    #[error("the client does not offer TLS")]
    ClientWithoutTls,
    /// The client wants Restricted Admin or Remote Credential Guard, which bring no credentials for a second leg.
    #[error("the client demands Restricted Admin or Remote Credential Guard")]
    CredentialLess,
    /// The client uses NLA where the token has no proxy credential.
    #[error("the client uses NLA and the token has no credential for it")]
    UnexpectedNla,
    /// The client did not prove that it knows the proxy credential.
    #[error("the client's logon: {0}")]
    ClientDenied(Cause),
    /// The target has RDP's own security only.
    #[error("the target offers nothing but standard RDP security")]
    StandardSecurityOnly,
    /// The target demands NLA and the token has no credentials for it.
    #[error("the target demands NLA and the token has no credentials for it")]
    NlaWithoutCredentials,
    /// The target refuses to negotiate.
    #[error("the target answers RDP_NEG_FAILURE {0}")]
    NegotiationFailure(u32),
    /// The certificate of the target is refused.
    #[error("{0}")]
    Certificate(#[from] CertificateRefusal),
    /// The target does not accept the credentials.
    #[error("the target does not accept the credentials: {0}")]
    WrongCredentials(String),
    /// The account is locked.
    #[error("the account is locked: {0}")]
    AccountLocked(String),
    /// The account is disabled or expired, its password is, or it may not log on here or now.
    #[error("the account may not log on: {0}")]
    AccountRestricted(String),
    /// No KDC answers.
    #[error("no KDC can be reached: {0}")]
    KdcUnreachable(String),
    /// The clocks differ: tickets are good for minutes.
    #[error("the clocks of this machine and of the KDC differ: {0}")]
    ClockSkew(String),
    /// Kerberos is demanded where it cannot be.
    #[error("no Kerberos: {0}")]
    NoKerberos(&'static str),
    /// Another failure of the logon.
    #[error("the target's logon: {0}")]
    TargetLogon(LogonError),
    /// The gateway's own settings do not allow it.
    #[error("{0}")]
    Settings(String),
}

/// Whose matter a failure is: what users, operators and counters tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wrong credentials for the target.
    WrongCredentials,
    /// The account is locked.
    AccountLocked,
    /// The account may not log on.
    AccountRestricted,
    /// The KDC cannot be reached.
    KdcUnreachable,
    /// The target is not who it should be.
    CertificateMismatch,
    /// The target has no security that can be had.
    StandardSecurityOnly,
    /// The target is gone, silent or breaks the protocol.
    Target,
    /// The client's own leg.
    ClientLeg,
    /// The gateway itself.
    Gateway,
}

impl SecureError {
    /// Whose matter it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::TimedOut(step) | Self::Io { step, .. } | Self::Protocol { step, .. } => {
                match step {
                    Step::TargetNegotiation | Step::TargetTls | Step::TargetLogon => Class::Target,
                    Step::ClientTls | Step::ClientLogon | Step::ClientNegotiation => {
                        Class::ClientLeg
                    }
                }
            }
            Self::ClientWithoutTls
            | Self::CredentialLess
            | Self::UnexpectedNla
            | Self::ClientDenied(_) => Class::ClientLeg,
            Self::StandardSecurityOnly
            | Self::NlaWithoutCredentials
            | Self::NegotiationFailure(_) => Class::StandardSecurityOnly,
            Self::Certificate(CertificateRefusal::Store(_))
            | Self::Settings(_)
            | Self::ClockSkew(_)
            | Self::NoKerberos(_) => Class::Gateway,
            Self::Certificate(_) | Self::TargetLogon(LogonError::PublicKey) => {
                Class::CertificateMismatch
            }
            Self::WrongCredentials(_) => Class::WrongCredentials,
            Self::AccountLocked(_) => Class::AccountLocked,
            Self::AccountRestricted(_) => Class::AccountRestricted,
            Self::KdcUnreachable(_) => Class::KdcUnreachable,
            Self::TargetLogon(_) => Class::Target,
        }
    }

    /// Whether it says nothing against the credentials but that Kerberos is not to be had for them.
    fn leaves_ntlm(&self) -> bool {
        if let Self::TargetLogon(LogonError::Kdc(answer)) = self {
            let codes = [
                KDC_ERR_S_PRINCIPAL_UNKNOWN,
                KDC_ERR_ETYPE_NOSUPP,
                KDC_ERR_WRONG_REALM,
            ];
            return codes.contains(&answer.code);
        }
        matches!(
            self,
            Self::KdcUnreachable(_) | Self::ClockSkew(_) | Self::NoKerberos(_)
        )
    }

    /// The name of the rule, for the log: stable, one word, safe to count by.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self.class() {
            Class::WrongCredentials => "target-credentials",
            Class::AccountLocked => "target-account-locked",
            Class::AccountRestricted => "target-account-restricted",
            Class::KdcUnreachable => "kdc",
            Class::CertificateMismatch => "target-certificate",
            Class::StandardSecurityOnly => "target-security",
            Class::Target => "target",
            Class::ClientLeg => "client-leg",
            Class::Gateway => "settings",
        }
    }

    /// What a client is told whose Connection Request waits for its answer ([`Remaining::Unanswered`]).
    #[must_use]
    pub fn failure_code(&self) -> FailureCode {
        if matches!(self, Self::ClientWithoutTls) {
            FailureCode::SslRequired
        } else {
            FailureCode::SslCertNotOnServer
        }
    }

    /// What a client is told that is in TLS ([`Remaining::Secured`]).
    #[must_use]
    pub fn farewell(&self) -> Reason {
        match self.class() {
            Class::WrongCredentials => Reason::WrongCredentials,
            Class::AccountLocked | Class::AccountRestricted => Reason::AccountRefused,
            Class::KdcUnreachable => Reason::LogonServerUnavailable,
            Class::CertificateMismatch | Class::StandardSecurityOnly => Reason::TargetNotTrusted,
            Class::Target => Reason::TargetUnavailable,
            Class::ClientLeg | Class::Gateway => Reason::Denied,
        }
    }
}

/// Secures both legs.
///
/// `read_ahead` is what was read from the client behind the Connection Request, or the beginning of its TLS.
///
/// # Cancel safety
/// Dropping the future closes both connections.
///
/// # Errors
/// See [`Failed`].
pub async fn secure<C>(
    client: C,
    read_ahead: Vec<u8>,
    opening: Opening,
    target: impl Into<Stream>,
    request: &SecureRequest<'_>,
) -> Result<Secured<C>, Box<Failed<C>>>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut target = target.into();
    let unanswered = |error, client, read_ahead| {
        let client = Remaining::Unanswered { client, read_ahead };
        Box::new(Failed { error, client })
    };
    let selection = match ClientSelection::of(&opening, request) {
        Ok(selection) => selection,
        Err(error) => return Err(unanswered(error, client, read_ahead)),
    };
    let negotiated = match negotiate(&mut target, request).await {
        Ok(negotiated) => negotiated,
        Err(error) => return Err(unanswered(error, client, read_ahead)),
    };
    let gone = |error| {
        let client = Remaining::Gone;
        Box::new(Failed { error, client })
    };
    let leg = client_leg(client, read_ahead, opening, selection, &negotiated, request)
        .await
        .map_err(gone)?;
    match target_leg(target, &negotiated, request).await {
        Ok(leg_to_target) => {
            let legs = Legs {
                client_requested: leg.requested,
                client_selected: leg.selected,
                target_requested: negotiated.requested,
                target_selected: negotiated.selected,
                client_logon: leg.logon,
                target_logon: leg_to_target.logon,
                client_tls: TlsFacts::of(leg.stream.get_ref().1),
                target_tls: TlsFacts::of(leg_to_target.stream.get_ref().1),
            };
            Ok(Secured {
                client: leg.stream,
                client_read_ahead: leg.read_ahead,
                target: leg_to_target.stream,
                target_read_ahead: leg_to_target.read_ahead,
                legs,
                target_certificate: leg_to_target.certificate,
                remembered: leg_to_target.remembered,
            })
        }
        Err(error) => Err(Box::new(Failed {
            error,
            client: Remaining::Secured {
                client: leg.stream,
                read_ahead: leg.read_ahead,
                requested: leg.requested,
            },
        })),
    }
}

// ---- step 1: the target's security ----

/// What was agreed with the target in X.224.
#[derive(Clone, Copy, Debug)]
struct Negotiated {
    requested: u32,
    selected: u32,
    /// The flags that a client may see: what the target says of graphics and of client data.
    flags: u8,
}

async fn negotiate(
    target: &mut Stream,
    request: &SecureRequest<'_>,
) -> Result<Negotiated, SecureError> {
    let step = Step::TargetNegotiation;
    let requested = if request.target_credentials.is_some() {
        PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX
    } else {
        PROTOCOL_SSL
    };
    let frame = target_request(request.target_credentials, request.routing_token, requested)?;
    let exchange = async {
        target.write_all(&frame).await?;
        target.flush().await?;
        let mut bytes = Vec::with_capacity(CONFIRM_BYTES);
        loop {
            match decode_confirm(&bytes) {
                Ok(Some((confirm, consumed))) if consumed == bytes.len() => return Ok(Ok(confirm)),
                Ok(Some(_)) => return Ok(Err("more than a Connection Confirm".to_owned())),
                Ok(None) => fill(target, &mut bytes).await?,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    };
    let confirm = within(request.deadline, step, exchange)
        .await?
        .map_err(|problem| SecureError::Protocol { step, problem })?;
    match confirm {
        ConnectionConfirm::Selected { protocol: 0, .. } | ConnectionConfirm::Plain => {
            Err(SecureError::StandardSecurityOnly)
        }
        ConnectionConfirm::Selected { flags, protocol } => {
            let is_one = [PROTOCOL_SSL, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX].contains(&protocol);
            if !is_one || protocol & requested == 0 {
                let problem = format!("selected protocol {protocol:#x} of {requested:#x}");
                return Err(SecureError::Protocol { step, problem });
            }
            Ok(Negotiated {
                requested,
                selected: protocol,
                flags: flags & (EXTENDED_CLIENT_DATA_SUPPORTED | DYNVC_GFX_PROTOCOL_SUPPORTED),
            })
        }
        ConnectionConfirm::Failure { code } => Err(match code {
            code if code == FailureCode::SslNotAllowed.code() => SecureError::StandardSecurityOnly,
            code if code == FailureCode::HybridRequired.code() => {
                SecureError::NlaWithoutCredentials
            }
            code => SecureError::NegotiationFailure(code),
        }),
    }
}

/// The Connection Request of the gateway, with the name of the target's user where it fits a cookie.
fn target_request(
    credentials: Option<&Credentials>,
    routing_token: Option<&[u8]>,
    requested_protocols: u32,
) -> Result<Vec<u8>, SecureError> {
    // One or the other.
    let credentials = credentials.filter(|_| routing_token.is_none());
    let name = credentials.map(|credentials| credentials.username.as_str());
    let cookie = name.filter(|name| {
        name.len() <= COOKIE_BYTES && name.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let mut request = ConnectionRequest {
        routing_token: routing_token.map(|token| token.to_vec().into()),
        mstshash: cookie.map(str::to_owned),
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols,
        }),
        ..ConnectionRequest::default()
    };
    let frame = request.encode().or_else(|_| {
        request.mstshash = None;
        request.encode()
    });
    frame.map_err(|error| SecureError::Settings(error.to_string()))
}

// ---- steps 2 and 3: the client's leg ----

/// What the client will be told.
#[derive(Clone, Copy, Debug)]
struct ClientSelection {
    requested: u32,
    selected: u32,
    /// Told no: it is answered and the connection ends.
    credential_less: bool,
}

impl ClientSelection {
    fn of(opening: &Opening, request: &SecureRequest<'_>) -> Result<Self, SecureError> {
        let Opening::X224(connection_request) = opening else {
            return Ok(Self {
                requested: 0,
                selected: PROTOCOL_SSL,
                credential_less: false,
            });
        };
        let negotiation = connection_request.negotiation.unwrap_or_default();
        let credential_less = is_credential_less(negotiation);
        let nla = request.proxy_credentials.is_some() || credential_less;
        let selected = if nla && negotiation.offers(PROTOCOL_HYBRID_EX) {
            PROTOCOL_HYBRID_EX
        } else if nla && negotiation.offers(PROTOCOL_HYBRID) {
            PROTOCOL_HYBRID
        } else if negotiation.offers(PROTOCOL_SSL) {
            PROTOCOL_SSL
        } else {
            return Err(SecureError::ClientWithoutTls);
        };
        Ok(Self {
            requested: negotiation.requested_protocols,
            selected,
            credential_less,
        })
    }
}

fn is_credential_less(negotiation: NegotiationRequest) -> bool {
    negotiation.has(RESTRICTED_ADMIN_MODE_REQUIRED)
        || negotiation.has(REDIRECTED_AUTHENTICATION_MODE_REQUIRED)
}

struct ClientLeg<C> {
    stream: Box<ClientTls<C>>,
    read_ahead: Vec<u8>,
    logon: Logon,
    requested: u32,
    selected: u32,
}

async fn client_leg<C>(
    mut client: C,
    read_ahead: Vec<u8>,
    opening: Opening,
    selection: ClientSelection,
    negotiated: &Negotiated,
    request: &SecureRequest<'_>,
) -> Result<ClientLeg<C>, SecureError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = request.deadline;
    let direct = matches!(opening, Opening::DirectTls);
    if !direct {
        let confirm = ConnectionConfirm::Selected {
            flags: negotiated.flags,
            protocol: selection.selected,
        };
        let answer = confirm.encode();
        let answer = async {
            client.write_all(&answer).await?;
            client.flush().await
        };
        within(deadline, Step::ClientNegotiation, answer).await?;
    }
    if selection.credential_less {
        // The answer lacks the flag that such a client asks for. Some say so and close; FreeRDP goes on, and says what
        // CredSSP answers.
        let stream = ReadAhead::new(read_ahead, client);
        let told = tell_credential_less(stream, request.server_tls, deadline);
        // Whether it listens or not, it ends here.
        let _ = timeout_at(deadline, told).await;
        return Err(SecureError::CredentialLess);
    }
    let (tls, chosen) = recording(request.server_tls);
    let accept = TlsAcceptor::from(tls).accept(ReadAhead::new(read_ahead, client));
    let mut stream = Box::new(within(deadline, Step::ClientTls, accept).await?);
    let mut read_ahead = Vec::new();
    let mut leg = selection;
    let mut logon = Logon::None;
    if direct {
        let begins = within(deadline, Step::ClientNegotiation, async {
            fill(&mut *stream, &mut read_ahead).await?;
            Ok(read_ahead.first().copied())
        });
        if begins.await? == Some(DER_SEQUENCE) {
            leg.selected = PROTOCOL_HYBRID;
        }
    }
    if leg.selected != PROTOCOL_SSL {
        let proof = client_logon(
            &mut *stream,
            &mut read_ahead,
            leg.selected,
            &chosen,
            request,
        );
        let proof = timeout_at(deadline, proof).await;
        logon = proof.unwrap_or(Err(SecureError::TimedOut(Step::ClientLogon)))?;
    }
    if direct {
        let negotiation = direct_negotiation(&mut *stream, &mut read_ahead, leg, negotiated);
        let negotiation = timeout_at(deadline, negotiation).await;
        leg.requested =
            negotiation.unwrap_or(Err(SecureError::TimedOut(Step::ClientNegotiation)))?;
    }
    Ok(ClientLeg {
        stream,
        read_ahead,
        logon,
        requested: leg.requested,
        selected: leg.selected,
    })
}

/// X.224 inside TLS. Clients that leave it out begin with MCS at once, and are let.
async fn direct_negotiation<S>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    leg: ClientSelection,
    negotiated: &Negotiated,
) -> Result<u32, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::ClientNegotiation;
    let failed = |error| SecureError::Io { step, error };
    while read_ahead.len() < X224_CODE_AT.saturating_add(1) {
        fill(stream, read_ahead).await.map_err(failed)?;
    }
    if read_ahead.get(X224_CODE_AT) != Some(&X224_CONNECTION_REQUEST) {
        return Ok(leg.selected);
    }
    let (asked, consumed) = loop {
        match connection_request::decode(read_ahead) {
            Ok(Some(decoded)) => break decoded,
            Ok(None) => fill(stream, read_ahead).await.map_err(failed)?,
            Err(error) => {
                let problem = error.to_string();
                return Err(SecureError::Protocol { step, problem });
            }
        }
    };
    read_ahead.drain(..consumed);
    let confirm = match asked.negotiation {
        Some(_) => ConnectionConfirm::Selected {
            flags: negotiated.flags,
            protocol: leg.selected,
        },
        None => ConnectionConfirm::Plain,
    };
    stream.write_all(&confirm.encode()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let negotiation = asked.negotiation.unwrap_or_default();
    if is_credential_less(negotiation) {
        return Err(SecureError::CredentialLess);
    }
    Ok(negotiation.requested_protocols)
}

/// Goes on with a client that wants Restricted Admin or Remote Credential Guard until it can be told no in CredSSP.
async fn tell_credential_less<S>(
    stream: S,
    tls: &Arc<ServerConfig>,
    deadline: Instant,
) -> Result<(), SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::ClientLogon;
    let failed = |error| SecureError::Io { step, error };
    let mut stream = TlsAcceptor::from(Arc::clone(tls))
        .accept(stream)
        .await
        .map_err(failed)?;
    let frame = read_ts_request(&mut stream, &mut Vec::new(), step).await?;
    let answer = account_restriction(&frame).map_err(SecureError::ClientDenied)?;
    stream.write_all(&answer).await.map_err(failed)?;
    stream.shutdown().await.map_err(failed)?;
    drain(&mut stream, deadline).await;
    Ok(())
}

async fn client_logon<S>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    selected: u32,
    chosen: &Recorded,
    request: &SecureRequest<'_>,
) -> Result<Logon, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = Step::ClientLogon;
    let failed = |error| SecureError::Io { step, error };
    let credentials = request
        .proxy_credentials
        .ok_or(SecureError::UnexpectedNla)?;
    let certificate = chosen
        .end_entity()
        .ok_or_else(|| SecureError::Settings("the listener has no certificate".to_owned()))?;
    let info = SubjectPublicKeyInfo::of_certificate(&certificate)
        .map_err(|error| SecureError::Settings(error.to_string()))?;
    let mut logon = LogonServer::new(info.key, &credentials.username, &credentials.password)
        .with_kerberos(request.config.client_kerberos.as_ref());
    loop {
        let frame = read_ts_request(stream, read_ahead, step).await?;
        match logon.process(&frame) {
            Ok(ServerProgress::Reply(reply)) => {
                stream.write_all(&reply).await.map_err(failed)?;
                stream.flush().await.map_err(failed)?;
            }
            Ok(ServerProgress::Finished) => break,
            Err(denied) => {
                if let Some(reply) = denied.reply {
                    // It may be gone already; the cause matters, not this.
                    let _ = stream.write_all(&reply).await;
                    let _ = stream.shutdown().await;
                    drain(stream, request.deadline).await;
                }
                return Err(SecureError::ClientDenied(denied.cause));
            }
        }
    }
    if selected == PROTOCOL_HYBRID_EX {
        let result = EarlyUserAuth::Success.encode();
        stream.write_all(&result).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
    }
    Ok(if logon.uses_kerberos() {
        Logon::Kerberos
    } else {
        Logon::Ntlm
    })
}

/// The listener's TLS settings, with a note of the certificate they choose: CredSSP binds its key. Without resumption,
/// where the client would bind the key of an earlier certificate.
fn recording(tls: &Arc<ServerConfig>) -> (Arc<ServerConfig>, Arc<Recorded>) {
    let recorded = Arc::new(Recorded {
        inner: Arc::clone(&tls.cert_resolver),
        chosen: OnceLock::new(),
    });
    let mut config = ServerConfig::clone(tls);
    config.cert_resolver = Arc::<Recorded>::clone(&recorded);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    (Arc::new(config), recorded)
}

#[derive(Debug)]
struct Recorded {
    inner: Arc<dyn ResolvesServerCert>,
    chosen: OnceLock<Arc<CertifiedKey>>,
}

impl Recorded {
    fn end_entity(&self) -> Option<CertificateDer<'_>> {
        self.chosen.get()?.end_entity_cert().ok().cloned()
    }
}

impl ResolvesServerCert for Recorded {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.inner.resolve(client_hello)?;
        Some(Arc::clone(self.chosen.get_or_init(|| key)))
    }
}

// ---- step 4: the target's leg ----

struct TargetLeg {
    stream: Box<TargetTls>,
    read_ahead: Vec<u8>,
    logon: Logon,
    certificate: Thumbprint,
    remembered: Remembered,
}

async fn target_leg(
    target: Stream,
    negotiated: &Negotiated,
    request: &SecureRequest<'_>,
) -> Result<TargetLeg, SecureError> {
    let pinned = request.certificate_pin.map(TargetCertificate::Pin);
    let policy = pinned
        .as_ref()
        .unwrap_or(&request.config.target_certificate);
    let mut stream = Box::new(target_tls(target, policy, request).await?);
    let certificate = {
        let certificates = stream.get_ref().1.peer_certificates();
        certificates
            .and_then(<[_]>::first)
            .map(|certificate| certificate.clone().into_owned())
            .ok_or(CertificateRefusal::NoPublicKey)?
    };
    let mut read_ahead = Vec::new();
    let mut name = Logon::None;
    if negotiated.selected != PROTOCOL_SSL {
        let credentials = request
            .target_credentials
            .ok_or(SecureError::NlaWithoutCredentials)?;
        let info = SubjectPublicKeyInfo::of_certificate(&certificate)
            .map_err(|_| CertificateRefusal::NoPublicKey)?;
        let logon = Box::pin(target_logon(
            &mut stream,
            &mut read_ahead,
            negotiated.selected,
            info.key,
            credentials,
            request,
        ));
        let logon = timeout_at(request.deadline, logon).await;
        name = logon.unwrap_or(Err(SecureError::TimedOut(Step::TargetLogon)))?;
    }
    let remembered = policy.remember(request.target, &certificate)?;
    Ok(TargetLeg {
        stream,
        read_ahead,
        logon: name,
        certificate: thumbprint(&certificate),
        remembered,
    })
}

async fn target_tls(
    target: Stream,
    policy: &TargetCertificate,
    request: &SecureRequest<'_>,
) -> Result<TargetTls, SecureError> {
    let verifier = policy.verifier(request.target)?;
    let mut config = ClientConfig::builder_with_provider(verifier.provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| SecureError::Settings(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    let (name, sni) = server_name(&request.target.address().host);
    config.enable_sni = sni;
    let connect =
        TlsConnector::from(Arc::new(config)).connect(name, ReadAhead::new(Vec::new(), target));
    let connected = within(request.deadline, Step::TargetTls, connect).await;
    connected.map_err(|error| match verifier.refusal() {
        Some(refusal) => SecureError::Certificate(refusal.clone()),
        None => error,
    })
}

/// The name for SNI and for the certificate; a host that is no DNS name gets none, and fits no certificate.
fn server_name(host: &str) -> (ServerName<'static>, bool) {
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => (name, true),
        Err(_) => (ServerName::from(IpAddr::from([0, 0, 0, 0])), false),
    }
}

async fn target_logon(
    stream: &mut TargetTls,
    read_ahead: &mut Vec<u8>,
    selected: u32,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<Logon, SecureError> {
    let step = Step::TargetLogon;
    let failed = |error| SecureError::Io { step, error };
    let First {
        mut logon,
        mut kdcs,
        mut frame,
        package,
    } = first_message(public_key, credentials, request).await?;
    loop {
        stream.write_all(&frame).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let answer = read_ts_request(stream, read_ahead, step).await;
        let answer = answer.map_err(|error| closed_as_answer(error, &logon))?;
        let exchange = logon.exchange(Some(&answer));
        let next = answer_of(exchange, &mut kdcs, request.deadline).await?;
        if next.last {
            stream.write_all(&next.frame).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            break;
        }
        frame = next.frame;
    }
    if selected == PROTOCOL_HYBRID_EX {
        while read_ahead.len() < EarlyUserAuth::BYTES {
            fill(stream, read_ahead).await.map_err(failed)?;
        }
        let result = read_ahead
            .first_chunk()
            .and_then(|bytes| EarlyUserAuth::decode(*bytes));
        match result {
            Some(EarlyUserAuth::Success) => {}
            Some(EarlyUserAuth::AccessDenied) => {
                let text = "the Early User Authorization Result is access denied";
                return Err(SecureError::AccountRestricted(text.to_owned()));
            }
            None => {
                let problem = "not an Early User Authorization Result".to_owned();
                return Err(SecureError::Protocol { step, problem });
            }
        }
        read_ahead.drain(..EarlyUserAuth::BYTES);
    }
    Ok(package)
}

/// A logon whose first message is ready.
struct First {
    logon: LogonClient,
    kdcs: Kdcs,
    frame: Zeroizing<Vec<u8>>,
    package: Logon,
}

/// Begins the logon: by Kerberos where that is configured and there is a ticket, by NTLM else where that is allowed.
async fn first_message(
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    if let Some(kerberos) = &request.config.kerberos {
        match first_by_kerberos(kerberos, public_key, credentials, request).await {
            Err(error) if kerberos.ntlm_fallback && error.leaves_ntlm() => {
                warn!(%error, "NTLM is used in the place of Kerberos");
            }
            other => return other,
        }
    }
    let package = (Package::Ntlm, Logon::Ntlm);
    first_by(package, Vec::new(), public_key, credentials, request).await
}

async fn first_by_kerberos(
    kerberos: &Kerberos,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    if request.target.address().host.parse::<IpAddr>().is_ok() {
        return Err(SecureError::NoKerberos(
            "there is no ticket for an address: the target needs a name",
        ));
    }
    let realm = kerberos.realm.as_deref();
    let package = (Package::Kerberos { realm }, Logon::Kerberos);
    let kdcs = kerberos.kdcs.addresses(request.deadline).await;
    let kdcs = kdcs.map_err(SecureError::KdcUnreachable)?;
    first_by(package, kdcs, public_key, credentials, request).await
}

async fn first_by(
    (package, name): (Package<'_>, Logon),
    kdcs: Vec<String>,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    let mut kdcs = Kdcs::new(kdcs);
    let mut logon = LogonClient::new(
        public_key,
        &credentials.username,
        &credentials.password,
        &request.target.address().host,
        package,
    )
    .map_err(|error| judge(error, &kdcs))?;
    let exchange = logon.exchange(None);
    let first = answer_of(exchange, &mut kdcs, request.deadline).await?;
    Ok(First {
        logon,
        kdcs,
        frame: first.frame,
        package: name,
    })
}

/// What the target is to be sent.
struct Answer {
    frame: Zeroizing<Vec<u8>>,
    last: bool,
}

/// Works on one message of the target, asking KDCs on the way.
async fn answer_of(
    exchange: Result<Exchange<'_>, LogonError>,
    kdcs: &mut Kdcs,
    deadline: Instant,
) -> Result<Answer, SecureError> {
    let mut exchange = exchange.map_err(|error| judge(error, kdcs))?;
    let mut progress = exchange.start();
    loop {
        match progress.map_err(|error| judge(error, kdcs))? {
            Progress::AskKdc(question) => {
                let answer = kdcs.ask(&question, deadline).await;
                progress = exchange.resume(answer);
            }
            Progress::Send { frame, last } => return Ok(Answer { frame, last }),
        }
    }
}

/// The end of the connection, where an answer to the credentials was due.
fn closed_as_answer(error: SecureError, logon: &LogonClient) -> SecureError {
    let is_end = matches!(&error, SecureError::Io { error, .. } if matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    ));
    if is_end && logon.has_proven() {
        let text = "it closed the connection instead of an answer";
        SecureError::WrongCredentials(text.to_owned())
    } else {
        error
    }
}

/// What a failed logon means.
fn judge(error: LogonError, kdcs: &Kdcs) -> SecureError {
    let text = error.to_string();
    match &error {
        LogonError::Status(status) => by_status(*status, status_name(*status)),
        // What Windows adds is more exact than the code of the KDC.
        LogonError::Kdc(answer) => answer
            .status
            .and_then(|status| by_status(status, text.clone()))
            .or_else(|| by_answer(answer, text)),
        LogonError::NoRealm => Some(SecureError::NoKerberos("the user name belongs to no realm")),
        LogonError::UserName
        | LogonError::TsRequest(_)
        | LogonError::PublicKey
        | LogonError::Ticket(_)
        | LogonError::Package(_) => kdcs
            .failure()
            .map(|failure| SecureError::KdcUnreachable(failure.to_owned())),
    }
    .unwrap_or(SecureError::TargetLogon(error))
}

/// What an NTSTATUS means, where it is about the account.
fn by_status(status: u32, text: String) -> Option<SecureError> {
    Some(match status {
        0xc000_006d | 0xc000_006a | 0xc000_0064 => SecureError::WrongCredentials(text),
        0xc000_0234 => SecureError::AccountLocked(text),
        0xc000_006e..=0xc000_0072 | 0xc000_0193 | 0xc000_0224 | 0xc000_015b | 0xc000_0413 => {
            SecureError::AccountRestricted(text)
        }
        0xc000_005e => SecureError::KdcUnreachable(text),
        // FACILITY_NTWIN32: a Win32 error in the clothes of an NTSTATUS ([MS-ERREF] 2.3).
        0xc007_0000..=0xc007_ffff => match status & 0xffff {
            // ERROR_ACCOUNT_LOCKED_OUT.
            1909 => SecureError::AccountLocked(text),
            // From ERROR_ACCOUNT_RESTRICTION to ERROR_ACCOUNT_DISABLED, LOGON_TYPE_NOT_GRANTED, ACCOUNT_EXPIRED,
            // PASSWORD_MUST_CHANGE.
            1327..=1331 | 1385 | 1793 | 1907 => SecureError::AccountRestricted(text),
            // ERROR_NO_LOGON_SERVERS.
            1311 => SecureError::KdcUnreachable(text),
            // FreeRDP's servers put the thread's last error there when they refuse credentials, whatever it was last
            // set to: ERROR_MORE_DATA, say. Before the credentials they have nothing to refuse.
            _ => SecureError::WrongCredentials(text),
        },
        _ => return None,
    })
}

/// What a KRB-ERROR means, where it is about the account or the time.
fn by_answer(answer: &KrbError, text: String) -> Option<SecureError> {
    Some(match answer.code {
        KDC_ERR_C_PRINCIPAL_UNKNOWN | KDC_ERR_PREAUTH_FAILED | KRB_AP_ERR_BAD_INTEGRITY => {
            SecureError::WrongCredentials(text)
        }
        // MIT krb5 tells locked accounts from disabled ones by this word.
        KDC_ERR_CLIENT_REVOKED if answer.text.as_deref() == Some("LOCKED_OUT") => {
            SecureError::AccountLocked(text)
        }
        KDC_ERR_CLIENT_REVOKED | KDC_ERR_NAME_EXP | KDC_ERR_POLICY | KDC_ERR_KEY_EXPIRED => {
            SecureError::AccountRestricted(text)
        }
        KRB_AP_ERR_SKEW => SecureError::ClockSkew(text),
        _ => return None,
    })
}

// ---- the last word ----

/// Leads a client whose leg is complete to a message that it shows to its user, and waits until it goes.
///
/// # Errors
/// The client was not to be led there, or not in time: it was not told.
pub async fn say_farewell<S>(
    client: &mut S,
    read_ahead: &[u8],
    client_requested: u32,
    reason: Reason,
    deadline: Instant,
) -> Result<(), SayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        let mut farewell = Farewell::new(reason.error_info(), client_requested);
        let mut answer = farewell.feed(read_ahead)?;
        // Holds the client's password for a moment.
        let mut bytes = Zeroizing::new(vec![0; READ_BYTES]);
        loop {
            client.write_all(&answer).await?;
            client.flush().await?;
            if farewell.is_done() {
                break;
            }
            let count = client.read(&mut bytes).await?;
            if count == 0 {
                return Err(SayError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            answer = farewell.feed(bytes.get(..count).unwrap_or_default())?;
        }
        client.shutdown().await?;
        Ok(())
    };
    timeout_at(deadline, said)
        .await
        .unwrap_or_else(|_| Err(SayError::Io(io::ErrorKind::TimedOut.into())))?;
    // Closing with unread bytes would make the client's system throw away what it was told.
    drain(client, deadline).await;
    Ok(())
}

/// The client was not told.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    /// The connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What the client says.
    #[error("{0}")]
    Farewell(#[from] FarewellError),
}

// ---- reading and writing ----

async fn within<T>(
    deadline: Instant,
    step: Step,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, SecureError> {
    match timeout_at(deadline, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(SecureError::Io { step, error }),
        Err(_elapsed) => Err(SecureError::TimedOut(step)),
    }
}

/// One whole `TSRequest`; what comes behind it stays in `read_ahead`.
async fn read_ts_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    step: Step,
) -> Result<Vec<u8>, SecureError> {
    loop {
        let length = frame_length(read_ahead).map_err(|error| {
            let problem = error.to_string();
            SecureError::Protocol { step, problem }
        })?;
        if let Some(length) = length
            && length <= read_ahead.len()
        {
            let rest = read_ahead.split_off(length);
            return Ok(std::mem::replace(read_ahead, rest));
        }
        fill(stream, read_ahead)
            .await
            .map_err(|error| SecureError::Io { step, error })?;
    }
}

/// Reads once; the end of the stream is an error.
async fn fill<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.reserve(READ_BYTES);
    if stream.read_buf(bytes).await? == 0 {
        let text = "the peer closed the connection";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    Ok(())
}

/// Throws away what the peer still says, until it closes.
async fn drain<S: AsyncRead + Unpin>(stream: &mut S, deadline: Instant) {
    let until = deadline.min(Instant::now() + crate::limits::REFUSAL_LINGER);
    let read = async {
        let mut bytes = Zeroizing::new(vec![0; READ_BYTES]);
        let mut total = 0_usize;
        while let Ok(count) = stream.read(&mut bytes).await {
            total = total.saturating_add(count);
            if count == 0 || total > DRAIN_BYTES {
                break;
            }
        }
    };
    // Either way it was told.
    let _ = timeout_at(until, read).await;
}

/// Bytes of one read.
const READ_BYTES: usize = 4096;
/// A peer that was told and goes on talking is not listened to for longer.
const DRAIN_BYTES: usize = 256 * 1024;
/// Real Connection Confirms have 11 or 19 bytes.
const CONFIRM_BYTES: usize = 64;
/// Longest user name in a cookie, bytes: what mstsc would put there is cut to fewer.
const COOKIE_BYTES: usize = 64;
/// Where X.224 says which TPDU it is, behind TPKT and LI.
const X224_CODE_AT: usize = 5;
const X224_CONNECTION_REQUEST: u8 = 0xe0;
/// How a `TSRequest` begins.
const DER_SEQUENCE: u8 = 0x30;

/// RDP_NEG_RSP `flags`: the client may send extended client data.
const EXTENDED_CLIENT_DATA_SUPPORTED: u8 = 0x01;
/// RDP_NEG_RSP `flags`: the target supports the graphics pipeline.
const DYNVC_GFX_PROTOCOL_SUPPORTED: u8 = 0x02;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use secrecy::SecretString;
    use tokio::io::{DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    use crate::token::target::TargetAddr;

    use super::*;

    const USER: &str = "alice";
    const PASSWORD: &str = "Target-Secret-1";
    const PROXY_PASSWORD: &str = "Proxy-Secret-1";
    const PATIENCE: Duration = Duration::from_secs(20);

    fn credentials(username: &str, password: &str) -> Credentials {
        Credentials {
            username: username.to_owned(),
            password: SecretString::from(password.to_owned()),
        }
    }

    /// Server settings, and the key that CredSSP binds.
    fn identity(name: &str) -> (Arc<ServerConfig>, Vec<u8>) {
        let certified = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let info = SubjectPublicKeyInfo::of_certificate(&certificate).unwrap();
        let public_key = info.key.to_vec();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .unwrap();
        (Arc::new(config), public_key)
    }

    /// A target of one connection, in this process.
    #[derive(Clone)]
    struct FakeTarget {
        confirm: ConnectionConfirm,
        behind_confirm: &'static [u8],
        password: &'static str,
        /// Binds another key than its TLS has: somebody is between.
        intercepted: bool,
        /// Sent instead of every `TSRequest`.
        answer: Option<Vec<u8>>,
        early: Option<[u8; 4]>,
        /// Sent behind the last message.
        behind: &'static [u8],
    }

    impl FakeTarget {
        fn selecting(protocol: u32) -> Self {
            let flags = 0x1f;
            Self {
                confirm: ConnectionConfirm::Selected { flags, protocol },
                behind_confirm: b"",
                password: PASSWORD,
                intercepted: false,
                answer: None,
                early: Some(EarlyUserAuth::Success.encode()),
                behind: b"",
            }
        }

        /// What it heard first: the Connection Request; and whether it heard more.
        async fn serve(self, listener: TcpListener) -> (ConnectionRequest, bool) {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            let asked = loop {
                match connection_request::decode(&bytes).unwrap() {
                    Some((asked, _)) => break asked,
                    None => fill(&mut stream, &mut bytes).await.unwrap(),
                }
            };
            let mut answer = self.confirm.encode();
            answer.extend(self.behind_confirm);
            stream.write_all(&answer).await.unwrap();
            let mut first = [0];
            let heard_more = stream.peek(&mut first).await.unwrap_or(0) > 0;
            if heard_more {
                // The other side may rightly give up at any point.
                let _ = self.go_on(stream).await;
            }
            (asked, heard_more)
        }

        async fn go_on(self, stream: TcpStream) -> Result<(), SecureError> {
            let step = Step::TargetLogon;
            let failed = |error| SecureError::Io { step, error };
            let (tls, mut public_key) = identity("target.test");
            let mut stream = TlsAcceptor::from(tls)
                .accept(stream)
                .await
                .map_err(failed)?;
            let ConnectionConfirm::Selected { protocol, .. } = self.confirm else {
                return Ok(());
            };
            if protocol != PROTOCOL_SSL {
                if self.intercepted {
                    public_key[10] ^= 1;
                }
                let password = SecretString::from(self.password);
                let mut logon = LogonServer::new(&public_key, USER, &password);
                let mut read_ahead = Vec::new();
                loop {
                    let frame = read_ts_request(&mut stream, &mut read_ahead, step).await?;
                    let reply = match (&self.answer, logon.process(&frame)) {
                        (Some(answer), _) => answer.clone(),
                        (None, Ok(ServerProgress::Reply(reply))) => reply,
                        (None, Ok(ServerProgress::Finished)) => break,
                        (None, Err(denied)) => denied.reply.unwrap_or_default(),
                    };
                    stream.write_all(&reply).await.map_err(failed)?;
                }
            }
            let mut last = Vec::new();
            if protocol == PROTOCOL_HYBRID_EX {
                last.extend(self.early.unwrap_or_default());
            }
            last.extend(self.behind);
            stream.write_all(&last).await.map_err(failed)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map_err(failed)?;
            Ok(())
        }
    }

    /// A client of one connection, in this process.
    #[derive(Clone)]
    struct FakeClient {
        offers: Option<u32>,
        flags: u8,
        direct: bool,
        nla: bool,
        password: &'static str,
        /// Overlooks that the answer lacks the flag it asked for.
        goes_on: bool,
        /// Sent behind its last message, in the same write.
        behind: &'static [u8],
    }

    impl FakeClient {
        fn offering(offers: u32) -> Self {
            Self {
                offers: Some(offers),
                flags: 0,
                direct: false,
                nla: offers & (PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX) != 0,
                password: PROXY_PASSWORD,
                goes_on: false,
                behind: b"\x03\x00connect initial",
            }
        }

        fn request(&self) -> ConnectionRequest {
            let (flags, offers) = (self.flags, self.offers);
            ConnectionRequest {
                negotiation: offers.map(|requested_protocols| NegotiationRequest {
                    flags,
                    requested_protocols,
                }),
                ..ConnectionRequest::default()
            }
        }

        async fn go(
            self,
            mut stream: DuplexStream,
        ) -> Result<Option<ConnectionConfirm>, SecureError> {
            let step = Step::ClientLogon;
            let failed = |error| SecureError::Io { step, error };
            let mut confirm = None;
            if !self.direct {
                let mut bytes = Vec::new();
                confirm = loop {
                    match decode_confirm(&bytes).unwrap() {
                        Some((confirm, _)) => break Some(confirm),
                        None => fill(&mut stream, &mut bytes).await.map_err(failed)?,
                    }
                };
                if self.flags != 0 && !self.goes_on {
                    return Ok(confirm);
                }
            }
            let verifier = TargetCertificate::AcceptAny
                .verifier(&"gateway.test:1".parse().unwrap())
                .unwrap();
            let config = ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth();
            let mut stream = TlsConnector::from(Arc::new(config))
                .connect(ServerName::try_from("gateway.test").unwrap(), stream)
                .await
                .map_err(failed)?;
            let mut read_ahead = Vec::new();
            let selected = match confirm {
                Some(ConnectionConfirm::Selected { protocol, .. }) => protocol,
                _ if self.nla => PROTOCOL_HYBRID,
                _ => PROTOCOL_SSL,
            };
            let mut last_words = Vec::new();
            if selected != PROTOCOL_SSL {
                let certificates = stream.get_ref().1.peer_certificates().unwrap().to_vec();
                let info = SubjectPublicKeyInfo::of_certificate(&certificates[0]).unwrap();
                let password = SecretString::from(self.password);
                let mut logon =
                    LogonClient::new(info.key, "proxy", &password, "gateway.test", Package::Ntlm)
                        .unwrap();
                let mut frame: Option<Vec<u8>> = None;
                loop {
                    let progress = logon
                        .exchange(frame.as_deref())
                        .and_then(|mut exchange| exchange.start());
                    if let (true, Err(LogonError::Status(0xc000_006e))) = (self.goes_on, &progress)
                    {
                        return Ok(confirm);
                    }
                    let progress = progress.map_err(SecureError::TargetLogon)?;
                    let Progress::Send {
                        frame: answer,
                        last,
                    } = progress
                    else {
                        panic!("NTLM asks nobody");
                    };
                    if last {
                        last_words = answer.to_vec();
                        break;
                    }
                    stream.write_all(&answer).await.map_err(failed)?;
                    frame = Some(read_ts_request(&mut stream, &mut read_ahead, step).await?);
                }
            }
            if self.direct && self.offers.is_some() {
                last_words.extend(self.request().encode().unwrap());
            }
            last_words.extend(self.behind);
            stream.write_all(&last_words).await.map_err(failed)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map_err(failed)?;
            if selected == PROTOCOL_HYBRID_EX {
                assert!(rest.starts_with(&EarlyUserAuth::Success.encode()));
            }
            Ok(confirm)
        }
    }

    type Ended = Result<Secured<DuplexStream>, Box<Failed<DuplexStream>>>;

    struct Lab {
        client: FakeClient,
        target: FakeTarget,
        config: SecureConfig,
        proxy: Option<Credentials>,
        patience: Duration,
        host: &'static str,
    }

    impl Lab {
        fn new(client: FakeClient, target: FakeTarget) -> Self {
            Self {
                client,
                target,
                config: SecureConfig {
                    target_certificate: TargetCertificate::AcceptAny,
                    kerberos: None,
                    client_kerberos: None,
                },
                proxy: Some(credentials("proxy", PROXY_PASSWORD)),
                patience: PATIENCE,
                host: "target.test",
            }
        }

        /// What became of it, what the client was answered, and what the target heard.
        async fn run(&self) -> (Ended, Option<ConnectionConfirm>, ConnectionRequest, bool) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let target = tokio::spawn(self.target.clone().serve(listener));
            let (near, far) = duplex(64 * 1024);
            let client = tokio::spawn(self.client.clone().go(far));
            let opening = if self.client.direct {
                Opening::DirectTls
            } else {
                Opening::X224(self.client.request())
            };
            let (tls, _) = identity("gateway.test");
            let (config, proxy) = (self.config.clone(), self.proxy.clone());
            let (host, deadline) = (self.host, Instant::now() + self.patience);
            // A task, so that it must be able to move between threads.
            let ended = tokio::spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let dst = credentials(USER, PASSWORD);
                let request = SecureRequest {
                    config: &config,
                    server_tls: &tls,
                    target: &TargetName::Dialled(TargetAddr {
                        host: host.to_owned(),
                        port: 3389,
                    }),
                    target_credentials: Some(&dst),
                    proxy_credentials: proxy.as_ref(),
                    certificate_pin: None,
                    routing_token: None,
                    deadline,
                };
                secure(near, Vec::new(), opening, stream, &request).await
            });
            let mut ended = ended.await.unwrap();
            let answered = match &mut ended {
                Ok(secured) => {
                    secured.client.shutdown().await.unwrap();
                    secured.target.shutdown().await.unwrap();
                    client.await.unwrap().unwrap()
                }
                Err(failed) => {
                    failed.client = Remaining::Gone;
                    client.await.unwrap().ok().flatten()
                }
            };
            let (asked, heard_more) = target.await.unwrap();
            (ended, answered, asked, heard_more)
        }

        async fn secured(&self) -> Secured<DuplexStream> {
            self.run().await.0.map_err(|failed| failed.error).unwrap()
        }

        async fn error(&self) -> SecureError {
            self.run().await.0.expect_err("it fails").error
        }
    }

    #[tokio::test]
    async fn all_combinations_of_legs_are_secured() {
        for offers in [
            PROTOCOL_SSL,
            PROTOCOL_SSL | PROTOCOL_HYBRID,
            PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX,
        ] {
            for selected in [PROTOCOL_SSL, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX] {
                let lab = Lab::new(
                    FakeClient::offering(offers),
                    FakeTarget {
                        behind: b"pipelined",
                        ..FakeTarget::selecting(selected)
                    },
                );
                let (secured, answered, asked, _) = lab.run().await;
                let secured = secured.map_err(|failed| failed.error).unwrap();
                let legs = &secured.legs;
                assert_eq!(legs.client_requested, offers);
                // The best that the client offers.
                assert_eq!(legs.client_selected, 1 << offers.ilog2());
                assert_eq!(legs.target_selected, selected);
                assert_eq!(
                    legs.target_requested,
                    asked.negotiation.unwrap().requested_protocols
                );
                assert_eq!(legs.client_tls.version, "TLSv1_3");
                assert_eq!(asked.mstshash.as_deref(), Some(USER));
                assert_eq!(asked.negotiation.unwrap().flags, 0);
                // Neither Restricted Admin nor Remote Credential Guard, whatever the target says.
                let expected = ConnectionConfirm::Selected {
                    flags: 0x03,
                    protocol: legs.client_selected,
                };
                assert_eq!(answered, Some(expected));
            }
        }
    }

    #[tokio::test]
    async fn what_was_sent_behind_the_last_message_is_handed_on() {
        let lab = Lab::new(
            FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID),
            FakeTarget {
                behind: b"pipelined",
                ..FakeTarget::selecting(PROTOCOL_HYBRID_EX)
            },
        );
        let secured = lab.secured().await;
        assert_eq!(secured.client_read_ahead, lab.client.behind);
        assert_eq!(secured.target_read_ahead, lab.target.behind);
    }

    #[tokio::test]
    async fn without_a_proxy_credential_the_client_leg_is_tls() {
        let client = FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX);
        let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
        lab.proxy = None;
        assert_eq!(lab.secured().await.legs.client_selected, PROTOCOL_SSL);

        lab.client = FakeClient::offering(PROTOCOL_HYBRID);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, _far) = duplex(1024);
        let (tls, _) = identity("gateway.test");
        let request = SecureRequest {
            config: &lab.config,
            server_tls: &tls,
            target: &"target.test:3389".parse().unwrap(),
            target_credentials: None,
            proxy_credentials: None,
            certificate_pin: None,
            routing_token: None,
            deadline: Instant::now() + PATIENCE,
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let opening = Opening::X224(lab.client.request());
        let failed = secure(near, Vec::new(), opening, stream, &request).await;
        let failed = failed.expect_err("the client offers no TLS");
        assert!(matches!(failed.error, SecureError::ClientWithoutTls));
        assert_eq!(failed.error.failure_code(), FailureCode::SslRequired);
        assert!(matches!(failed.client, Remaining::Unanswered { .. }));
    }

    #[tokio::test]
    async fn the_target_hears_nothing_of_a_client_that_does_not_prove_itself() {
        let client = FakeClient {
            password: "Wrong-1",
            ..FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID)
        };
        let lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
        let (ended, _, _, heard_more) = lab.run().await;
        let error = ended.expect_err("denied").error;
        assert!(
            matches!(error, SecureError::ClientDenied(Cause::WrongCredentials)),
            "{error}"
        );
        assert_eq!(error.class(), Class::ClientLeg);
        assert!(!heard_more);
    }

    #[tokio::test]
    async fn a_client_that_brings_no_credentials_is_told_and_ends() {
        for (flags, goes_on) in [
            (RESTRICTED_ADMIN_MODE_REQUIRED, false),
            (RESTRICTED_ADMIN_MODE_REQUIRED, true),
            (REDIRECTED_AUTHENTICATION_MODE_REQUIRED, false),
            (REDIRECTED_AUTHENTICATION_MODE_REQUIRED, true),
        ] {
            let client = FakeClient {
                flags,
                goes_on,
                ..FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID)
            };
            let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
            lab.proxy = None;
            let (ended, answered, _, heard_more) = lab.run().await;
            let error = ended.expect_err("refused").error;
            assert!(matches!(error, SecureError::CredentialLess), "{error}");
            let expected = ConnectionConfirm::Selected {
                flags: 0x03,
                protocol: PROTOCOL_HYBRID,
            };
            assert_eq!(answered, Some(expected));
            assert!(!heard_more);
        }
    }

    #[tokio::test]
    async fn failures_of_the_target_are_told_apart() {
        let hybrid = || FakeTarget::selecting(PROTOCOL_HYBRID);
        let extended = || FakeTarget::selecting(PROTOCOL_HYBRID_EX);
        let failure = |code: FailureCode| FakeTarget {
            confirm: ConnectionConfirm::Failure { code: code.code() },
            ..hybrid()
        };
        let oversized = b"\x30\x82\xff\xff".to_vec();
        let cases = [
            (
                FakeTarget {
                    password: "Other-1",
                    ..hybrid()
                },
                Class::WrongCredentials,
            ),
            (
                FakeTarget {
                    intercepted: true,
                    ..hybrid()
                },
                Class::WrongCredentials, // the interceptor, too, says LOGON_FAILURE
            ),
            (
                FakeTarget {
                    early: Some([5, 0, 0, 0]),
                    ..extended()
                },
                Class::AccountRestricted,
            ),
            (
                FakeTarget {
                    early: Some([9, 9, 9, 9]),
                    ..extended()
                },
                Class::Target,
            ),
            (
                FakeTarget {
                    answer: Some(oversized),
                    ..hybrid()
                },
                Class::Target,
            ),
            (
                FakeTarget {
                    answer: Some(b"\x16\x03".to_vec()),
                    ..hybrid()
                },
                Class::Target,
            ),
            (
                FakeTarget {
                    answer: Some(b"\x30\x00".to_vec()),
                    ..hybrid()
                },
                Class::Target,
            ),
            (
                FakeTarget {
                    confirm: ConnectionConfirm::Plain,
                    ..hybrid()
                },
                Class::StandardSecurityOnly,
            ),
            (FakeTarget::selecting(0), Class::StandardSecurityOnly),
            (
                failure(FailureCode::SslNotAllowed),
                Class::StandardSecurityOnly,
            ),
            (
                failure(FailureCode::SslCertNotOnServer),
                Class::StandardSecurityOnly,
            ),
            (
                failure(FailureCode::HybridRequired),
                Class::StandardSecurityOnly,
            ),
            (FakeTarget::selecting(4), Class::Target),
            (FakeTarget::selecting(3), Class::Target),
            (
                FakeTarget {
                    behind_confirm: b"\x03",
                    ..hybrid()
                },
                Class::Target,
            ),
        ];
        for (number, (target, class)) in cases.into_iter().enumerate() {
            let lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
            let error = lab.error().await;
            assert_eq!(error.class(), class, "{number}: {error}");
            assert!(!error.to_string().contains(PASSWORD));
        }
    }

    /// [MS-ERREF] 2.3.1: what a target says in `errorCode` of its `TSRequest`.
    #[tokio::test]
    async fn the_status_of_the_target_is_understood() {
        for (status, class) in [
            (0xc000_006d_u32, Class::WrongCredentials),
            (0xc000_006a, Class::WrongCredentials),
            (0xc000_0234, Class::AccountLocked),
            (0xc000_0072, Class::AccountRestricted),
            (0xc000_0193, Class::AccountRestricted),
            (0xc000_0071, Class::AccountRestricted),
            (0xc000_0224, Class::AccountRestricted),
            (0xc000_005e, Class::KdcUnreachable),
            (0xc000_0001, Class::Target),
            // Of FreeRDP 3 where the password is wrong.
            (0xc007_00ea, Class::WrongCredentials),
            (0xc007_0775, Class::AccountLocked),
            (0xc007_0533, Class::AccountRestricted),
            (0xc007_051f, Class::KdcUnreachable),
        ] {
            let mut answer = b"\x30\x0d\xa0\x03\x02\x01\x06\xa4\x06\x02\x04".to_vec();
            answer.extend(status.to_be_bytes());
            let target = FakeTarget {
                answer: Some(answer),
                ..FakeTarget::selecting(PROTOCOL_HYBRID)
            };
            let lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
            let error = lab.error().await;
            assert_eq!(error.class(), class, "{status:#x}: {error}");
        }
    }

    #[tokio::test]
    async fn a_client_may_begin_with_tls() {
        for (offers, nla) in [
            (Some(PROTOCOL_SSL), false),
            (Some(PROTOCOL_HYBRID), true),
            (None, false),
            (None, true),
        ] {
            let client = FakeClient {
                direct: true,
                offers,
                nla,
                behind: b"\x03\x00\x00\x0a\x02\xf0\x80connect initial",
                ..FakeClient::offering(PROTOCOL_SSL)
            };
            let lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
            let secured = lab.secured().await;
            let selected = if nla { PROTOCOL_HYBRID } else { PROTOCOL_SSL };
            assert_eq!(secured.legs.client_selected, selected);
            assert_eq!(secured.legs.client_requested, offers.unwrap_or(selected));
            assert_eq!(secured.client_read_ahead, lab.client.behind);
        }
        let client = FakeClient {
            direct: true,
            nla: true,
            ..FakeClient::offering(PROTOCOL_SSL)
        };
        let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
        lab.proxy = None;
        let error = lab.error().await;
        assert!(matches!(error, SecureError::UnexpectedNla), "{error}");
    }

    #[tokio::test]
    async fn every_wait_ends_at_the_deadline() {
        let patience = Duration::from_millis(300);
        let config = SecureConfig {
            target_certificate: TargetCertificate::AcceptAny,
            kerberos: None,
            client_kerberos: None,
        };
        let (tls, _) = identity("gateway.test");
        let dst = credentials(USER, PASSWORD);
        // A target that says nothing; a client that says nothing.
        for (silent_target, step) in [(true, Step::TargetNegotiation), (false, Step::ClientTls)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let silent = if silent_target {
                Some(listener)
            } else {
                tokio::spawn(FakeTarget::selecting(PROTOCOL_SSL).serve(listener));
                None
            };
            let request = SecureRequest {
                config: &config,
                server_tls: &tls,
                target: &"target.test:3389".parse().unwrap(),
                target_credentials: Some(&dst),
                proxy_credentials: None,
                certificate_pin: None,
                routing_token: None,
                deadline: Instant::now() + patience,
            };
            let (near, _far) = duplex(1024);
            let opening = Opening::X224(FakeClient::offering(PROTOCOL_SSL).request());
            let failed = secure(near, Vec::new(), opening, stream, &request).await;
            let error = failed.expect_err("somebody is silent").error;
            assert!(
                matches!(&error, SecureError::TimedOut(at) if *at == step),
                "{error}"
            );
            drop(silent);
        }
    }

    /// A KDC that knows one answer.
    async fn kdc(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut header = [0; 4];
                stream.read_exact(&mut header).await.unwrap();
                let length = u32::from_be_bytes(header).try_into().unwrap();
                let mut question = vec![0; length];
                stream.read_exact(&mut question).await.unwrap();
                assert_eq!(question[0], 0x6a, "AS-REQ");
                stream.write_all(answer).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn what_the_kdc_says_is_understood() {
        // KRB-ERROR: pvno, msg-type, stime, susec, error-code, realm, sname.
        const UNKNOWN: &[u8] =
            b"\x00\x00\x00\x44\x7e\x42\x30\x40\xa0\x03\x02\x01\x05\xa1\x03\x02\x01\x1e\
\xa4\x11\x18\x0f20261121120000Z\xa5\x03\x02\x01\x00\xa6\x03\x02\x01\x06\
\xa9\x06\x1b\x04CORP\xaa\x0f\x30\x0d\xa0\x03\x02\x01\x01\xa1\x06\x30\x04\x1b\x02kd";
        const HUGE: &[u8] = b"\xff\xff\xff\xff";
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let cases = [
            (vec![closed.clone()], Class::KdcUnreachable),
            (vec![kdc(HUGE).await], Class::KdcUnreachable),
            (vec![kdc(b"").await], Class::KdcUnreachable),
            (vec![closed, kdc(UNKNOWN).await], Class::WrongCredentials),
        ];
        for (kdcs, class) in cases {
            let target = FakeTarget::selecting(PROTOCOL_HYBRID);
            let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
            lab.config.kerberos = Some(Kerberos {
                kdcs: KdcSource::Listed(kdcs),
                realm: Some("CORP".to_owned()),
                ntlm_fallback: false,
            });
            let error = lab.error().await;
            assert_eq!(error.class(), class, "{error}");
        }
    }

    #[tokio::test]
    async fn ntlm_is_used_where_there_is_no_ticket_and_that_is_allowed() {
        let target = FakeTarget::selecting(PROTOCOL_HYBRID);
        let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
        for (realm, class) in [
            (Some("CORP"), Class::KdcUnreachable),
            // A user name without a realm.
            (None, Class::Gateway),
        ] {
            let kerberos = |ntlm_fallback| {
                Some(Kerberos {
                    kdcs: KdcSource::Listed(vec!["127.0.0.1:1".to_owned()]),
                    realm: realm.map(str::to_owned),
                    ntlm_fallback,
                })
            };
            lab.config.kerberos = kerberos(false);
            assert_eq!(lab.error().await.class(), class);
            lab.config.kerberos = kerberos(true);
            let legs = lab.secured().await.legs;
            assert_eq!(legs.target_logon, Logon::Ntlm);
        }
    }

    #[tokio::test]
    async fn an_address_has_no_ticket() {
        let target = FakeTarget::selecting(PROTOCOL_HYBRID);
        let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
        lab.host = "192.0.2.1";
        let kerberos = |ntlm_fallback| {
            Some(Kerberos {
                kdcs: KdcSource::Listed(vec!["127.0.0.1:1".to_owned()]),
                realm: None,
                ntlm_fallback,
            })
        };
        lab.config.kerberos = kerberos(false);
        assert_eq!(lab.error().await.class(), Class::Gateway);
        lab.config.kerberos = kerberos(true);
        lab.secured().await;
    }
}
