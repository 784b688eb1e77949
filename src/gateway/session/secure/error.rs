//! Why a session was not secured, and whose matter it is.

use std::io;

use crate::refusal::Refusal;
use crate::trust::target_certificate::CertificateRefusal;
use crate::upstream::kdc::NoKdc;
use jetway_rdp::credssp::cause::Cause;
use jetway_rdp::credssp::client::LogonError;
use jetway_rdp::credssp::krb_error::{
    KDC_ERR_ETYPE_NOSUPP, KDC_ERR_S_PRINCIPAL_UNKNOWN, KDC_ERR_WRONG_REALM,
};
use jetway_rdp::farewell::Reason;
use jetway_rdp::negotiation::{FailureCode, failure_name};

/// Where a session was when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecureStep {
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

impl std::fmt::Display for SecureStep {
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
    TimedOut(SecureStep),
    /// The socket failed, or was closed.
    #[error("{step}: {error}")]
    Io {
        /// Where.
        step: SecureStep,
        /// How.
        #[source]
        error: io::Error,
    },
    /// A message that does not belong there, or is malformed.
    #[error("{step}: {problem}")]
    Protocol {
        /// Where.
        step: SecureStep,
        /// What.
        problem: String,
    },
    /// The client has left while it waited for the target.
    #[error("the client has left")]
    ClientLeft,
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
    /// DNS names no KDC.
    #[error("no KDC can be reached: {0}")]
    NoKdc(#[from] NoKdc),
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

impl SecureError {
    /// Whose matter it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::TimedOut(step) | Self::Io { step, .. } | Self::Protocol { step, .. } => {
                match step {
                    SecureStep::TargetNegotiation
                    | SecureStep::TargetTls
                    | SecureStep::TargetLogon => Class::Target,
                    SecureStep::ClientTls
                    | SecureStep::ClientLogon
                    | SecureStep::ClientNegotiation => Class::ClientLeg,
                }
            }
            Self::ClientLeft
            | Self::ClientWithoutTls
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
            Self::KdcUnreachable(_) | Self::NoKdc(_) => Class::KdcUnreachable,
            Self::TargetLogon(_) => Class::Target,
        }
    }

    /// Whether it says nothing against the credentials but that Kerberos is not to be had for them.
    pub(super) fn leaves_ntlm(&self) -> bool {
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
            Self::KdcUnreachable(_) | Self::NoKdc(_) | Self::ClockSkew(_) | Self::NoKerberos(_)
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

    /// What a client is told whose Connection Request waits for its answer ([`Remaining::Unanswered`](super::Remaining::Unanswered)).
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

    /// What a client is told that is in TLS ([`Remaining::Secured`](super::Remaining::Secured)).
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

/// Why a client is turned away whose session was not secured.
#[must_use]
pub fn unsecured(error: &SecureError) -> Refusal {
    if matches!(error, SecureError::ClientLeft) {
        return Refusal::Gone;
    }
    Refusal::Unsecured {
        rule: error.rule(),
        reason: error.to_string(),
        code: error.failure_code(),
    }
}
