//! The client half, for the target leg: logs on to the target with the credentials of the token.
//!
//! NTLM as it is, or Kerberos in SPNEGO: which of them is the caller's choice. What Kerberos has to ask its KDC is handed
//! to the caller ([`Progress::AskKdc`]), who owns the network.
//!
//! Kerberos gets its ticket before the target hears the first word. Accounts have to require preauthentication, as they
//! do by default in Active Directory: sspi takes no ticket without.
//!
//! A user name stands for this principal, where `REALM` is the configured one:
//!
//! | user name | principal |
//! |---|---|
//! | `alice` | `alice@REALM` |
//! | `alice@REALM`, `REALM\alice` | `alice@REALM` |
//! | `DOMAIN\alice`, where `DOMAIN` is the first label of `REALM` | `alice@REALM` |
//! | `alice@other.example` | the enterprise name (user principal name) `alice@other.example`, for `REALM` to look up |
//! | `OTHER\alice` | `alice@OTHER` |
//! | `.\alice` | none: an account of the target itself |

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sspi::credssp::{ClientMode, ClientState, CredSspClient, CredSspMode, TsRequest};
use sspi::generator::{GeneratorState, NetworkRequest};
use sspi::ntlm::NtlmConfig;
use sspi::{AuthIdentity, ErrorKind, KerberosConfig, Username, UsernameParts};
use zeroize::Zeroizing;

use super::cause::Cause;
use super::kerberos::{Initiator, TICKET_NOT_TAKEN, Work};
use super::krb_error::KrbError;
use super::ts_request::{decode, encode};
use super::{COMPUTER_NAME, Panicked, TS_REQUESTS, TsRequestError, contained};
use crate::nt_status::NtStatus;

impl From<Panicked> for LogonError {
    fn from(panicked: Panicked) -> Self {
        Self::Package(panicked.to_string())
    }
}

/// How to log on.
#[derive(Clone, Copy, Debug)]
pub enum Package<'a> {
    /// NTLM.
    Ntlm,
    /// Kerberos.
    Kerberos {
        /// The realm of user names that name none.
        realm: Option<&'a str>,
    },
}

/// What is to be done next.
#[derive(Debug)]
pub enum Progress {
    /// Send this to a KDC and [`resume`](Exchange::resume) with the answer.
    AskKdc(Question),
    /// Send this `TSRequest` to the target.
    Send {
        /// The frame.
        frame: Zeroizing<Vec<u8>>,
        /// The last one: the target answers only with HYBRID_EX, by an [`EarlyUserAuth`](super::EarlyUserAuth).
        last: bool,
    },
}

/// What a KDC is asked.
pub struct Question {
    /// The message as it goes over TCP, its length in front.
    pub message: Zeroizing<Vec<u8>>,
    /// `host:port` of the one to ask, where it is that of another realm, which a KDC referred to: the machine's
    /// `krb5.conf` names it.
    pub referred_to: Option<String>,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question")
            .field("referred_to", &self.referred_to)
            .finish_non_exhaustive()
    }
}

/// The logon failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogonError {
    /// The user name has no form that exists.
    #[error("the user name is malformed")]
    UserName,
    /// The user name stands for no principal.
    #[error("the user name belongs to no realm")]
    NoRealm,
    /// Not a `TSRequest` that is accepted.
    #[error("{0}")]
    TsRequest(#[from] TsRequestError),
    /// The target says why: an NTSTATUS.
    #[error("the target answers {}", NtStatus(*.0))]
    Status(u32),
    /// The target's proof does not fit its TLS certificate: somebody is between, or knows no password.
    #[error("the target's proof does not fit its TLS certificate")]
    PublicKey,
    /// The KDC says why.
    #[error("the KDC answers {0}")]
    Kdc(KrbError),
    /// The target does not take the ticket.
    #[error("the target does not take the Kerberos ticket: {0}")]
    Ticket(String),
    /// Another fault that the security package found.
    #[error("{0}")]
    Package(String),
}

/// The CredSSP client of one connection.
pub struct LogonClient {
    inner: Inner,
    seen: usize,
    binding_sent: bool,
    kdc_error: Option<KrbError>,
}

enum Inner {
    Ntlm(Box<CredSspClient>),
    Kerberos(Box<Initiator>),
}

impl fmt::Debug for LogonClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogonClient").finish_non_exhaustive()
    }
}

impl LogonClient {
    /// A client to a target whose TLS certificate has `public_key` (see
    /// [`SubjectPublicKeyInfo::key`](super::SubjectPublicKeyInfo::key)) and that is called `host`.
    ///
    /// `username` is `user`, `DOMAIN\user` or `user@realm`.
    ///
    /// # Errors
    /// The name is none.
    pub fn new(
        public_key: &[u8],
        username: &str,
        password: &SecretString,
        host: &str,
        package: Package<'_>,
    ) -> Result<Self, LogonError> {
        let name = Username::parse(username).map_err(|_| LogonError::UserName)?;
        let identity = |username| AuthIdentity {
            username,
            password: password.expose_secret().to_owned().into(),
        };
        let service = format!("TERMSRV/{host}");
        let failed = |error: sspi::Error| LogonError::Package(error.to_string());
        let inner = match package {
            Package::Ntlm => {
                let client = CredSspClient::new(
                    public_key.to_vec(),
                    identity(name).into(),
                    CredSspMode::WithCredentials,
                    ClientMode::Ntlm(NtlmConfig::new(COMPUTER_NAME.to_owned())),
                    service,
                );
                Inner::Ntlm(Box::new(client.map_err(failed)?))
            }
            Package::Kerberos { realm } => {
                let principal = principal(&name, realm)?;
                let config = KerberosConfig::new_with_kdc_url(KDC, COMPUTER_NAME.to_owned());
                let client = Initiator::new(
                    config,
                    identity(principal).into(),
                    identity(name),
                    service,
                    public_key,
                );
                Inner::Kerberos(Box::new(client.map_err(failed)?))
            }
        };
        Ok(Self {
            inner,
            seen: 0,
            binding_sent: false,
            kdc_error: None,
        })
    }

    /// Begins the work on one whole `TSRequest` of the target (see [`frame_length`](super::frame_length)); on nothing,
    /// for the first message.
    ///
    /// # Errors
    /// It is none, or the target says that the logon failed.
    pub fn exchange(&mut self, frame: Option<&[u8]>) -> Result<Exchange<'_>, LogonError> {
        let request = match frame {
            Some(frame) => {
                self.seen = self.seen.saturating_add(1);
                if self.seen > TS_REQUESTS {
                    return Err(TsRequestError::TooMany.into());
                }
                decode(frame)?
            }
            None => TsRequest::default(),
        };
        let generator = contained(|| match &mut self.inner {
            Inner::Ntlm(client) => client.process(request),
            Inner::Kerberos(client) => client.process(request),
        })?;
        Ok(Exchange {
            generator,
            binding_sent: &mut self.binding_sent,
            kdc_error: &mut self.kdc_error,
        })
    }
}

impl LogonClient {
    /// Whether the target has all it needs to judge the password. Targets that then close the connection without a
    /// word (old Windows, FreeRDP 2) mean that it is wrong.
    #[must_use]
    pub fn has_proven(&self) -> bool {
        self.binding_sent
    }
}

/// The work on one `TSRequest`.
pub struct Exchange<'a> {
    generator: Work<'a>,
    binding_sent: &'a mut bool,
    kdc_error: &'a mut Option<KrbError>,
}

impl fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Exchange<'_> {
    /// What is to be done first.
    ///
    /// # Errors
    /// The logon failed.
    pub fn start(&mut self) -> Result<Progress, LogonError> {
        let state = contained(|| self.generator.start())?;
        self.advance(state)
    }

    /// What is to be done after the KDC's answer: one whole TCP message with its length in front, or `None` where it
    /// cannot be had.
    ///
    /// # Errors
    /// The logon failed.
    pub fn resume(&mut self, answer: Option<Vec<u8>>) -> Result<Progress, LogonError> {
        let answer = answer.ok_or_else(|| {
            sspi::Error::new(
                ErrorKind::NoAuthenticatingAuthority,
                "the KDC cannot be reached",
            )
        });
        *self.kdc_error = answer
            .as_deref()
            .ok()
            .and_then(|answer| KrbError::decode(answer.get(LENGTH_BYTES..)?));
        let state = contained(|| self.generator.resume(answer))?;
        self.advance(state)
    }

    fn advance(
        &mut self,
        state: GeneratorState<NetworkRequest, sspi::Result<ClientState>>,
    ) -> Result<Progress, LogonError> {
        let (request, last) = match state {
            GeneratorState::Suspended(request) => {
                let referred_to = (request.url.as_str() != KDC).then(|| {
                    let host = request.url.host_str().unwrap_or_default();
                    format!("{host}:{}", request.url.port().unwrap_or(KERBEROS_PORT))
                });
                let message = Zeroizing::new(request.data);
                return Ok(Progress::AskKdc(Question {
                    message,
                    referred_to,
                }));
            }
            GeneratorState::Completed(Ok(ClientState::ReplyNeeded(request))) => (request, false),
            GeneratorState::Completed(Ok(ClientState::FinalMessage(request))) => (request, true),
            GeneratorState::Completed(Err(error)) => return Err(self.failure(&error)),
        };
        let frame =
            encode(&request).map_err(|error: Cause| LogonError::Package(error.to_string()))?;
        *self.binding_sent |= request.pub_key_auth.is_some();
        Ok(Progress::Send { frame, last })
    }

    fn failure(&mut self, error: &sspi::Error) -> LogonError {
        if let Some(status) = error.nstatus {
            return LogonError::Status(status.0);
        }
        if let Some(error) = self.kdc_error.take_if(|error| !error.is_preauth_required()) {
            return LogonError::Kdc(error);
        }
        if *self.binding_sent && error.error_type == ErrorKind::MessageAltered {
            return LogonError::PublicKey;
        }
        if error.error_type == TICKET_NOT_TAKEN {
            return LogonError::Ticket(error.description.clone());
        }
        LogonError::Package(error.to_string())
    }
}

/// The principal that a user name stands for; see the table of this module.
pub(super) fn principal(name: &Username, realm: Option<&str>) -> Result<Username, LogonError> {
    let is = |domain: &str, realm: &str| domain.eq_ignore_ascii_case(realm);
    let is_short_for = |domain: &str, realm: &str| {
        let label = realm.split_once('.').map(|(label, _)| label);
        label.is_some_and(|label| is(domain, label))
    };
    let (account, realm) = match (name.parts(), realm) {
        (UsernameParts::UserPrincipalName(name), Some(realm)) if is(name.suffix(), realm) => {
            (name.account_name(), realm)
        }
        (UsernameParts::UserPrincipalName(name), Some(realm)) => (name.upn(), realm),
        (UsernameParts::UserPrincipalName(name), None) => (name.account_name(), name.suffix()),
        (UsernameParts::DownLevelLogonName(name), realm) => {
            let domain = match (name.netbios_domain(), realm) {
                (Some("."), _) | (None, None) => return Err(LogonError::NoRealm),
                (None, Some(realm)) => realm,
                (Some(domain), Some(realm)) if is_short_for(domain, realm) => realm,
                (Some(domain), _) => domain,
            };
            (name.account_name(), domain)
        }
    };
    if account.is_empty() || realm.is_empty() {
        return Err(LogonError::UserName);
    }
    Username::new_down_level_logon_name(account, realm).map_err(|_| LogonError::UserName)
}

/// Stands for whichever KDC the caller asks.
pub(super) const KDC: &str = "tcp://kdc.invalid:88";
const KERBEROS_PORT: u16 = 88;
/// Of a message over TCP ([RFC 4120] 7.2.2).
///
/// [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
const LENGTH_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_stands_for_one_principal() {
        let realm = Some("CORP.EXAMPLE");
        for (name, realm, expected) in [
            ("alice", realm, Some("CORP.EXAMPLE\\alice")),
            ("alice@corp.example", realm, Some("CORP.EXAMPLE\\alice")),
            ("CORP\\alice", realm, Some("CORP.EXAMPLE\\alice")),
            ("corp.example\\alice", realm, Some("corp.example\\alice")),
            (
                "alice@mail.example",
                realm,
                Some("CORP.EXAMPLE\\alice@mail.example"),
            ),
            ("OTHER\\alice", realm, Some("OTHER\\alice")),
            ("alice@corp.example", None, Some("corp.example\\alice")),
            ("CORP\\alice", None, Some("CORP\\alice")),
            ("alice", None, None),
            (".\\alice", realm, None),
        ] {
            let parsed = Username::parse(name).unwrap();
            let principal = principal(&parsed, realm).ok();
            let principal = principal.as_ref().map(Username::inner);
            assert_eq!(principal, expected, "{name}");
        }
        for name in ["\\alice", "CORP\\", "@corp.example"] {
            let parsed = Username::parse(name).unwrap();
            assert!(principal(&parsed, None).is_err(), "{name}");
        }
    }
}
