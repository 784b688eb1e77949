//! Why a connection was turned away: one string for the log, one code for the client.
//!
//! RDP has six failure codes for negotiation and none means "refused by a gateway", so the closest is sent. The client
//! never learns what it may not know: whether a target exists and whether it may be reached look alike, and every flaw of a
//! token that involves cryptography looks alike.
//!
//! HTTP has more of them ([`Refusal::status`]), for those who ask by REST or a WebSocket and by the binary protocol of JET.
//!
//! | refusal | code | why this one |
//! |---|---|---|
//! | no token, a bad, expired, used or revoked one | `HYBRID_REQUIRED_BY_SERVER` | says that the user must authenticate first; clients have no words for code 6, which would say so as well |
//! | a client that is to prove itself (`prx_usr`) and offers no NLA; a token spent by wrong passwords | `HYBRID_REQUIRED_BY_SERVER` | says just that |
//! | a token that demands what is not to be had | `SSL_NOT_ALLOWED_BY_SERVER` | says that the server does not allow it |
//! | target or peer not reachable, or not allowed; gateway busy | `SSL_CERT_NOT_ON_SERVER` | says that the server cannot do it, and is not the user's fault |
//! | not the protocol that was announced | `INCONSISTENT_FLAGS` | says that the client's messages do not fit |

use crate::config::OperatorName;
use crate::upstream::ConnectError;
use jetway_entry::carrier::CarrierError;
use jetway_entry::proxy_protocol::ProxyProtocolError;
use jetway_jet::agent::Unmet;
use jetway_jet::exchange::Status;
use jetway_jet::rendezvous::RendezvousError;
use jetway_policy::denial::Denial;
use jetway_rdp::connection_request::ConnectionRequestError;
use jetway_rdp::negotiation::FailureCode;
use jetway_rdp::preconnection::PreconnectionError;
use jetway_relay::Side;
use jetway_store::tickets::IssueError;
use jetway_store::usage::UsageError;
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::revocation::RevokingClaim;
use jetway_token::{About, Rejected, Token};

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The first bytes begin nothing known.
    #[error("the first bytes do not begin a protocol that this gateway supports")]
    Unrecognised,
    /// The listener's configuration does not accept this protocol.
    #[error("this listener does not accept {0}")]
    NotAcceptedHere(&'static str),
    /// Nothing, or not enough, arrived in time.
    #[error("the client was silent for too long")]
    Silent,
    /// The client went away before it had said enough.
    #[error("the client closed the connection before its session was open")]
    Gone,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[source] std::io::Error),
    /// A PROXY protocol header from an address that may not send one.
    #[error("PROXY protocol from an address that is not configured for it")]
    ProxyNotTrusted,
    /// A malformed PROXY protocol header.
    #[error("PROXY protocol: {0}")]
    Proxy(#[from] ProxyProtocolError),
    /// TLS arrived and the listener has no certificate.
    #[error("TLS arrived and no certificate is configured for this listener")]
    NoCertificate,
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] std::io::Error),
    /// Version 1 of the preconnection PDU carries a number and no token.
    #[error("preconnection PDU version 1 cannot carry a token, version 2 is needed")]
    PreconnectionV1,
    /// A malformed preconnection PDU.
    #[error("preconnection PDU: {0}")]
    Preconnection(#[from] PreconnectionError),
    /// A malformed Connection Request.
    #[error("X.224 Connection Request: {0}")]
    ConnectionRequest(#[from] ConnectionRequestError),
    /// Neither carrier held a credential.
    #[error("the client brought no token")]
    NoToken,
    /// What the carrier held is no credential.
    #[error("{0}")]
    Carrier(#[from] CarrierError),
    /// Two carriers, two tokens.
    #[error("preconnection PDU and routing token carry different tokens")]
    Contradiction,
    /// No such ticket: never issued, expired, or used by somebody else.
    #[error("the ticket is not valid, or has expired")]
    Ticket,
    /// The token does not hold.
    #[error("{0}")]
    Token(#[from] Rejected),
    /// A revocation rule matches the token.
    #[error("the token was revoked by its {0}")]
    Revoked(RevokingClaim),
    /// The token cannot be used, or not now.
    #[error("{0}")]
    Usage(#[from] UsageError),
    /// The peer cannot be met.
    #[error("rendezvous: {0}")]
    Rendezvous(#[from] RendezvousError),
    /// The agent does not lead to the target.
    #[error("{0}")]
    Agent(#[from] Unmet),
    /// The token asks for what cannot be had, or contradicts another one.
    #[error("{0}")]
    Policy(#[from] Denial),
    /// The token is not for the path at which it was shown.
    #[error("{0}")]
    OtherPath(&'static str),
    /// The operator wants every RDP session inspected, and this one cannot be.
    #[error("sessions are inspected here (session.inspect), and this client does not speak RDP")]
    Uninspectable,
    /// The operator wants every RDP session inspected, and the token of this one calls it something else.
    #[error(
        "RDP is inspected here (session.inspect), and the token announces another protocol: jet_ap must be rdp"
    )]
    Disguised,
    /// One address asks for too much.
    #[error("too many tokens from this address")]
    TooMuchWork,
    /// One address, or one token, has too many sessions.
    #[error("too many sessions from this address, or of this token")]
    TooManySessions,
    /// The store cannot keep a ticket.
    #[error("the store failed: {0}")]
    Store(#[source] IssueError),
    /// The audit is required, and cannot be written.
    #[error("the audit cannot be written, and no session opens without it (audit.required)")]
    Audit,
    /// An operator ended the session.
    #[error("ended by {0}")]
    Ended(OperatorName),
    /// The process is stopping.
    #[error("the gateway is shutting down")]
    ShuttingDown,
    /// No target may be dialled.
    #[error("egress: {0}")]
    Egress(#[source] ConnectError),
    /// No target could be reached, or the one that was does not serve.
    #[error("target: {0}")]
    Target(#[from] TargetError),
    /// The legs of an inspected session could not be secured.
    #[error("{reason}")]
    Unsecured {
        /// Whose matter it is.
        rule: &'static str,
        /// For the log.
        reason: String,
        /// For a client that waits for the answer to its Connection Request.
        code: FailureCode,
    },
    /// Not the protocol that the token announced.
    #[error("the {side} does not speak {protocol}, which the token announces")]
    Protocol {
        /// Who speaks something else.
        side: Side,
        /// `jet_ap`.
        protocol: ApplicationProtocol,
    },
}

/// What is wrong with a target that may be dialled.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// None of those that the token names could be reached.
    #[error("{0}")]
    Unreached(#[source] ConnectError),
    /// The connection to it failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// No answer to what begins its protocol, in time.
    #[error("accepts connections and does not answer")]
    NoAnswer,
    /// Its server speaks first, and said nothing in time.
    #[error("accepts connections and is silent")]
    Silent,
    /// What the client said could not be written in time.
    #[error("accepts connections and takes nothing")]
    TakesNothing,
    /// It ended before it had said anything.
    #[error("closed the connection without an answer")]
    Closed,
    /// An answer longer than any Connection Confirm.
    #[error("its first answer is too long")]
    TooLong,
}

impl Refusal {
    /// The name of the rule, for the log: stable, one word, safe to count by.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Unrecognised => "unrecognised",
            Self::NotAcceptedHere(_) => "not-accepted-here",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Io(_) => "io",
            Self::ProxyNotTrusted => "proxy-not-trusted",
            Self::Proxy(_) => "proxy",
            Self::NoCertificate => "no-certificate",
            Self::Tls(_) => "tls",
            Self::PreconnectionV1 => "preconnection-v1",
            Self::Preconnection(_) => "preconnection",
            Self::ConnectionRequest(_) => "connection-request",
            Self::NoToken => "no-token",
            Self::Carrier(_) => "carrier",
            Self::Contradiction => "contradiction",
            Self::Ticket => "ticket",
            Self::Token(rejected) => rejected.error.rule(),
            Self::Revoked(_) => "revoked",
            Self::Usage(error) => error.rule(),
            Self::Rendezvous(_) => "rendezvous",
            Self::Agent(_) => "agent",
            Self::Policy(denial) => denial.rule(),
            Self::OtherPath(_) => "other-path",
            Self::Uninspectable | Self::Disguised => "inspection",
            Self::TooMuchWork => "too-much-work",
            Self::TooManySessions => "too-many-sessions",
            Self::Store(_) => "store",
            Self::Audit => "audit",
            Self::Ended(_) => "ended",
            Self::ShuttingDown => "shutting-down",
            Self::Egress(_) => "egress",
            Self::Target(_) => "target",
            Self::Unsecured { rule, .. } => rule,
            Self::Protocol { .. } => "protocol",
        }
    }

    /// What an RDP client is told; see the table of this module. `None` where the peer is not known to speak RDP.
    #[must_use]
    pub fn failure_code(&self) -> Option<FailureCode> {
        match self {
            Self::Unrecognised
            | Self::NotAcceptedHere(_)
            | Self::Silent
            | Self::Gone
            | Self::Io(_)
            | Self::ProxyNotTrusted
            | Self::Proxy(_)
            | Self::NoCertificate
            | Self::Tls(_) => None,
            Self::PreconnectionV1
            | Self::NoToken
            | Self::Carrier(_)
            | Self::Ticket
            | Self::Token(_)
            | Self::Revoked(_) => Some(FailureCode::HybridRequired),
            Self::Usage(error) => Some(match error {
                UsageError::Replayed
                | UsageError::InUse
                | UsageError::OtherAddress
                | UsageError::OverTime
                | UsageError::Guessed => FailureCode::HybridRequired,
                UsageError::Store(_) => FailureCode::SslCertNotOnServer,
            }),
            Self::Policy(denial) => Some(match denial {
                Denial::Unproven => FailureCode::HybridRequired,
                Denial::OtherTerms => FailureCode::SslCertNotOnServer,
                Denial::Recording
                | Denial::ClientRecording
                | Denial::Filtering
                | Denial::Injection
                | Denial::Pinning
                | Denial::TargetTls(_)
                | Denial::Unvouched(_) => FailureCode::SslNotAllowed,
            }),
            Self::Uninspectable | Self::Disguised => Some(FailureCode::SslNotAllowed),
            Self::TooMuchWork
            | Self::TooManySessions
            | Self::Store(_)
            | Self::Audit
            | Self::Ended(_)
            | Self::ShuttingDown
            | Self::Egress(_)
            | Self::Rendezvous(_)
            | Self::Agent(_)
            | Self::Target(_) => Some(FailureCode::SslCertNotOnServer),
            Self::Unsecured { code, .. } => Some(*code),
            Self::Preconnection(_)
            | Self::ConnectionRequest(_)
            | Self::Contradiction
            | Self::OtherPath(_)
            | Self::Protocol { .. } => Some(FailureCode::InconsistentFlags),
        }
    }

    /// What is answered by HTTP, and by the binary protocol of JET.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::NoToken
            | Self::Carrier(_)
            | Self::Ticket
            | Self::Token(_)
            | Self::Revoked(_)
            | Self::Ended(_) => Status::Unauthorized,
            Self::Usage(UsageError::Store(_)) => Status::Unavailable,
            Self::Usage(_) => Status::Unauthorized,
            Self::OtherPath(_) | Self::Uninspectable | Self::Disguised | Self::Egress(_) => {
                Status::Forbidden
            }
            Self::Policy(denial) => match denial {
                Denial::Unproven => Status::Unauthorized,
                Denial::OtherTerms => Status::Conflict,
                Denial::Recording
                | Denial::ClientRecording
                | Denial::Filtering
                | Denial::Injection
                | Denial::Pinning
                | Denial::TargetTls(_)
                | Denial::Unvouched(_) => Status::Forbidden,
            },
            Self::Rendezvous(error) => match error {
                RendezvousError::UnknownAssociation | RendezvousError::UnknownCandidate => {
                    Status::NotFound
                }
                RendezvousError::NoToken => Status::Unauthorized,
                RendezvousError::OtherToken | RendezvousError::OtherOwner => Status::Forbidden,
                RendezvousError::OtherTerms
                | RendezvousError::Accepted
                | RendezvousError::Connected
                | RendezvousError::NotAccepted
                | RendezvousError::NotConnected
                | RendezvousError::Selected
                | RendezvousError::Ended => Status::Conflict,
                RendezvousError::Full => Status::Unavailable,
            },
            Self::Agent(unmet) => match unmet {
                Unmet::Unknown(_) => Status::NotFound,
                Unmet::Target(_) => Status::Forbidden,
                Unmet::Elsewhere(_) | Unmet::Other(_) => Status::Conflict,
                Unmet::NotConnected(_)
                | Unmet::Busy(_)
                | Unmet::Declined(..)
                | Unmet::Silent(_) => Status::Unavailable,
            },
            Self::TooMuchWork => Status::TooManyRequests,
            Self::TooManySessions
            | Self::Store(_)
            | Self::Audit
            | Self::ShuttingDown
            | Self::Target(_)
            | Self::Unsecured { .. } => Status::Unavailable,
            Self::Unrecognised
            | Self::NotAcceptedHere(_)
            | Self::Silent
            | Self::Gone
            | Self::Io(_)
            | Self::ProxyNotTrusted
            | Self::Proxy(_)
            | Self::NoCertificate
            | Self::Tls(_)
            | Self::PreconnectionV1
            | Self::Preconnection(_)
            | Self::ConnectionRequest(_)
            | Self::Contradiction
            | Self::Protocol { .. } => Status::BadRequest,
        }
    }

    /// What the refused token says of itself, where that is known by the refusal alone.
    #[must_use]
    pub fn about(&self) -> Option<&About> {
        if let Self::Token(rejected) = self {
            rejected.about.as_deref()
        } else {
            None
        }
    }

    /// Whether an administrator wants to hear of it at the usual log level: scans and clients that gave up do not matter.
    #[must_use]
    pub fn is_noise(&self) -> bool {
        matches!(
            self,
            Self::Unrecognised | Self::Silent | Self::Gone | Self::Io(_)
        )
    }
}

/// A refusal of a request, and whose token it refuses, where that is known: for the log.
#[derive(Debug, thiserror::Error)]
#[error("{refusal}")]
pub struct Denied {
    /// Why.
    #[source]
    pub refusal: Refusal,
    /// What the token says of itself.
    pub about: Option<Box<About>>,
}

impl Denied {
    /// The refusal of a token that was verified.
    #[must_use]
    pub fn of(token: &Token, refusal: impl Into<Refusal>) -> Self {
        Self {
            refusal: refusal.into(),
            about: Some(Box::new(About::of(token))),
        }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let about = refusal.about().cloned().map(Box::new);
        Self { refusal, about }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_tell_a_forbidden_target_from_a_missing_one() {
        let failed = || ConnectError {
            targets: Vec::new(),
        };
        let forbidden = Refusal::Egress(failed());
        let missing = Refusal::Target(TargetError::Unreached(failed()));
        assert_eq!(forbidden.failure_code(), missing.failure_code());
        assert_ne!(forbidden.rule(), missing.rule());
    }
}
