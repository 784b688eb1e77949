//! Step 5 of an inspected session: TLS, and CredSSP where it was negotiated, on both legs.
//!
//! 1. The target is asked which security it wants.
//! 2. The client is answered: NLA where the token has a proxy credential, else TLS. A client that is to prove itself and
//!    does not offer NLA was refused before there was a target ([`policy::can_prove`](crate::policy::can_prove)), and is
//!    refused here once more.
//! 3. The client leg is completed: TLS with the listener's certificate, and the client's proof.
//! 4. Only then the target leg: TLS, the certificate judged, the logon with the credentials of the token.
//!
//! A target that selects TLS alone where credentials wait and nothing vouches for it is left at step 1
//! ([`TargetCertificate::demands_proof`]).
//!
//! So nobody reaches the target's logon who has not completed their own. Every wait ends at the deadline. What a peer
//! sent behind its last message of a step (clients pipeline MCS Connect Initial) is handed on.
//!
//! A failure says what the log needs ([`SecureError`]) and in which state it leaves the client ([`Remaining`]): still
//! without an answer, so that an RDP Negotiation Failure can be sent, or in TLS, where [`say_farewell`] tells the
//! reason.

mod client_leg;
mod target_leg;
mod transfer;

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{client, server};
use zeroize::Zeroizing;

use self::client_leg::{ClientSelection, client_leg};
use self::target_leg::{negotiate, target_leg};
use self::transfer::{READ_BYTES, drain};
use crate::gateway::live::legs::{Legs, Logon, TlsFacts};
use crate::gateway::trust::target_logon::SecureConfig;
use crate::rdp::connection_request::ConnectionRequest;
use crate::rdp::credssp::cause::Cause;
use crate::rdp::credssp::client::LogonError;
use crate::rdp::credssp::krb_error::{
    KDC_ERR_ETYPE_NOSUPP, KDC_ERR_S_PRINCIPAL_UNKNOWN, KDC_ERR_WRONG_REALM,
};
use crate::rdp::farewell::{Farewell, FarewellError, Reason};
use crate::rdp::negotiation::{FailureCode, failure_name};
use crate::read_ahead::ReadAhead;
use crate::refusal::Refusal;
use crate::store::usage::Reservation;
use crate::stream::Stream;
use crate::target_certificate::{CertificateRefusal, Remembered, Stakes, TargetCertificate};
use crate::target_name::TargetName;
use crate::token::claims::{Credentials, Thumbprint};

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
    /// `prx_usr` and `prx_pwd`, without which nobody gets past the client leg; where there are none, it is TLS alone.
    pub proxy_credentials: Option<&'a Credentials>,
    /// Where wrong passwords are counted.
    pub guesses: Option<&'a Reservation>,
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

/// TLS to a target that is to show one certificate, and nothing of RDP before it.
///
/// # Errors
/// It does not speak TLS, or shows another certificate.
pub async fn target_tls_pinned(
    target: Stream,
    name: &TargetName,
    pin: Thumbprint,
    deadline: Instant,
) -> Result<TargetTls, SecureError> {
    let policy = TargetCertificate::Pin(pin);
    target_leg::target_tls(target, &policy, Stakes::Nothing, name, deadline).await
}

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
    /// The client is to prove itself and does not offer NLA.
    #[error(
        "the client is to prove itself (prx_usr, prx_pwd), and offers no NLA by which it could"
    )]
    ClientWithoutNla,
    /// The client wants Restricted Admin or Remote Credential Guard, which bring no credentials for a second leg.
    #[error("the client demands Restricted Admin or Remote Credential Guard")]
    CredentialLess,
    /// The client uses NLA where the token has no proxy credential.
    #[error("the client uses NLA and the token has no credential for it")]
    UnexpectedNla,
    /// The client did not prove that it knows the proxy credential.
    #[error("the client's logon: {0}")]
    ClientDenied(Cause),
    /// The same, and it was one time too many.
    #[error("the client's logon: {0}; the token is spent, as that was one wrong password too many")]
    Guessed(Cause),
    /// The target has RDP's own security only.
    #[error("the target offers nothing but standard RDP security")]
    StandardSecurityOnly,
    /// The target demands NLA and the token has no credentials for it.
    #[error("the target demands NLA and the token has no credentials for it")]
    NlaWithoutCredentials,
    /// The target refuses to negotiate.
    #[error("the target answers RDP_NEG_FAILURE {}", failure_name(*.0))]
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
            | Self::ClientWithoutNla
            | Self::CredentialLess
            | Self::UnexpectedNla
            | Self::ClientDenied(_)
            | Self::Guessed(_) => Class::ClientLeg,
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
        } else if matches!(self, Self::ClientWithoutNla) {
            FailureCode::HybridRequired
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
    // INVARIANT: a client that is to prove itself has done so when the target hears more than X.224.
    if request.proxy_credentials.is_some() && leg.logon == Logon::None {
        return Err(gone(SecureError::ClientWithoutNla));
    }
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

/// Why a client is turned away whose session was not secured.
#[must_use]
pub fn unsecured(error: &SecureError) -> Refusal {
    Refusal::Unsecured {
        rule: error.rule(),
        reason: error.to_string(),
        code: error.failure_code(),
    }
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

#[cfg(test)]
mod tests;
