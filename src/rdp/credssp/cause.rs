//! Why a client did not prove itself: what the server half and its Kerberos acceptor say.

use super::TsRequestError;

/// Why a client did not prove itself.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Wrong user name or password.
    #[error("wrong user name or password")]
    WrongCredentials,
    /// The client saw another TLS key than ours: somebody is between, or does not know the password.
    #[error("the client's proof does not fit this TLS connection")]
    PublicKey,
    /// Not a `TSRequest` that is accepted.
    #[error(transparent)]
    TsRequest(#[from] TsRequestError),
    /// A first token that is neither NTLM nor SPNEGO.
    #[error("the first token is neither NTLM nor SPNEGO")]
    Mechanism,
    /// The client shows no ticket where nothing else counts.
    #[error("the client shows no Kerberos ticket, and NTLM is not allowed")]
    NoTicket,
    /// The ticket cannot be read, is not good now, or was not shown by the one who got it.
    #[error("the client's Kerberos ticket: {0}")]
    Ticket(String),
    /// A good ticket of a user whom the token does not name.
    #[error("the client's Kerberos ticket is another user's")]
    AnotherUser,
    /// Somebody changed which mechanisms the client offers.
    #[error("the client's list of mechanisms is not protected")]
    List,
    /// A message that does not belong there.
    #[error("unexpected CredSSP message")]
    Sequence,
    /// A version that binds the TLS key without a nonce.
    #[error("the client speaks CredSSP {0}, and 5 is the least that is safe")]
    Version(u32),
    /// Another fault that the security package found.
    #[error("{0}")]
    Package(String),
}

impl Cause {
    /// Whether it may be the answer to a guessed password: all that is found behind the client's first message, where
    /// that was NTLM. Nobody guesses a ticket.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        match self {
            Self::WrongCredentials | Self::PublicKey | Self::Sequence | Self::Package(_) => true,
            Self::TsRequest(_)
            | Self::Mechanism
            | Self::NoTicket
            | Self::Ticket(_)
            | Self::AnotherUser
            | Self::List
            | Self::Version(_) => false,
        }
    }
}
