//! The client half, for the target leg: logs on to the target with the credentials of the token.
//!
//! NTLM as it is, or Kerberos in SPNEGO. What Kerberos has to ask its KDC is handed to the caller
//! ([`Progress::AskKdc`]), who owns the network.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sspi::credssp::{ClientMode, ClientState, CredSspClient, CredSspMode, TsRequest};
use sspi::generator::{Generator, GeneratorState, NetworkRequest};
use sspi::ntlm::NtlmConfig;
use sspi::{AuthIdentity, ErrorKind, KdcResolution, KerberosConfig, NegotiateConfig, Username};
use zeroize::Zeroizing;

use super::server::{Cause, decode, encode};
use super::{COMPUTER_NAME, TS_REQUESTS, TsRequestError, element, unlogged};

/// How to log on.
#[derive(Clone, Copy, Debug)]
pub enum Package<'a> {
    /// NTLM.
    Ntlm,
    /// Kerberos.
    Kerberos {
        /// `host:port` of the KDC, TCP.
        kdc: &'a str,
        /// The realm of user names that name none.
        realm: Option<&'a str>,
        /// Whether NTLM may be used where Kerberos fails for another reason than the credentials.
        ntlm_fallback: bool,
    },
}

/// What is to be done next.
#[derive(Debug)]
pub enum Progress {
    /// Send this to the KDC over TCP (its length is in front) and [`resume`](Exchange::resume) with the answer.
    AskKdc(Zeroizing<Vec<u8>>),
    /// Send this `TSRequest` to the target.
    Send {
        /// The frame.
        frame: Zeroizing<Vec<u8>>,
        /// The last one: the target answers only with HYBRID_EX, by an [`EarlyUserAuth`](super::EarlyUserAuth).
        last: bool,
    },
}

/// The logon failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogonError {
    /// The user name has no form that exists.
    #[error("the user name is malformed")]
    UserName,
    /// Not a `TSRequest` that is accepted.
    #[error("{0}")]
    TsRequest(#[from] TsRequestError),
    /// The target says why: an NTSTATUS.
    #[error("the target answers {}", status_name(*.0))]
    Status(u32),
    /// The target's proof does not fit its TLS certificate: somebody is between, or knows no password.
    #[error("the target's proof does not fit its TLS certificate")]
    PublicKey,
    /// The KDC says why ([RFC 4120] 7.5.9).
    ///
    /// [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
    #[error("the KDC answers error {code}: {text}")]
    Kdc {
        /// `error-code`.
        code: i32,
        /// What the security package makes of it.
        text: String,
    },
    /// Another fault that the security package found.
    #[error("{0}")]
    Package(String),
}

/// The name of an NTSTATUS that logons end with, or its number.
#[must_use]
pub fn status_name(status: u32) -> String {
    sspi::credssp::NStatusCode(status).to_string()
}

/// The CredSSP client of one connection.
pub struct Client {
    inner: CredSspClient,
    seen: usize,
    binding_sent: bool,
    kdc_error: Option<i32>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
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
        let mut name = Username::parse(username).map_err(|_| LogonError::UserName)?;
        let mode = match package {
            Package::Ntlm => ClientMode::Ntlm(NtlmConfig::new(COMPUTER_NAME.to_owned())),
            Package::Kerberos {
                kdc,
                realm,
                ntlm_fallback,
            } => {
                if let Some(realm) = realm
                    && !username.contains(['\\', '@'])
                {
                    name = Username::new_down_level_logon_name(username, realm)
                        .map_err(|_| LogonError::UserName)?;
                }
                let packages = if ntlm_fallback {
                    "kerberos,ntlm"
                } else {
                    "kerberos,!ntlm"
                };
                let kerberos = KerberosConfig::new_with_kdc_url(
                    &format!("tcp://{kdc}"),
                    COMPUTER_NAME.to_owned(),
                );
                // Without one, sspi would look for a KDC by itself.
                if matches!(kerberos.kdc_resolution, KdcResolution::KdcUrl(None)) {
                    return Err(LogonError::Package(
                        "the address of the KDC is none".to_owned(),
                    ));
                }
                ClientMode::Negotiate(NegotiateConfig::new(
                    Box::new(kerberos),
                    Some(packages.to_owned()),
                    COMPUTER_NAME.to_owned(),
                ))
            }
        };
        let identity = AuthIdentity {
            username: name,
            password: password.expose_secret().to_owned().into(),
        };
        let inner = CredSspClient::new(
            public_key.to_vec(),
            identity.into(),
            CredSspMode::WithCredentials,
            mode,
            format!("TERMSRV/{host}"),
        )
        .map_err(|error| LogonError::Package(error.to_string()))?;
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
        Ok(Exchange {
            generator: unlogged(|| self.inner.process(request)),
            binding_sent: &mut self.binding_sent,
            kdc_error: &mut self.kdc_error,
        })
    }
}

impl Client {
    /// Whether the target has all it needs to judge the password. Targets that then close the connection without a
    /// word (old Windows, FreeRDP 2) mean that it is wrong.
    #[must_use]
    pub fn has_proven(&self) -> bool {
        self.binding_sent
    }
}

type Work<'a> = Generator<'a, NetworkRequest, sspi::Result<Vec<u8>>, sspi::Result<ClientState>>;

/// The work on one `TSRequest`.
pub struct Exchange<'a> {
    generator: Work<'a>,
    binding_sent: &'a mut bool,
    kdc_error: &'a mut Option<i32>,
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
        let state = unlogged(|| self.generator.start());
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
        *self.kdc_error = answer.as_deref().ok().and_then(krb_error_code);
        let state = unlogged(|| self.generator.resume(answer));
        self.advance(state)
    }

    fn advance(
        &mut self,
        state: GeneratorState<NetworkRequest, sspi::Result<ClientState>>,
    ) -> Result<Progress, LogonError> {
        let (request, last) = match state {
            GeneratorState::Suspended(request) => {
                return Ok(Progress::AskKdc(Zeroizing::new(request.data)));
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

    fn failure(&self, error: &sspi::Error) -> LogonError {
        if let Some(status) = error.nstatus {
            return LogonError::Status(status.0);
        }
        if let Some(code) = *self.kdc_error {
            let text = error.description.clone();
            return LogonError::Kdc { code, text };
        }
        if *self.binding_sent && error.error_type == ErrorKind::MessageAltered {
            return LogonError::PublicKey;
        }
        LogonError::Package(error.to_string())
    }
}

/// `error-code` of a KRB-ERROR ([RFC 4120] 5.9.1) in a TCP message of the KDC.
///
/// [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
fn krb_error_code(message: &[u8]) -> Option<i32> {
    let (content, _) = element(message.get(4..)?, KRB_ERROR)?;
    let (mut fields, _) = element(content, 0x30)?;
    loop {
        let tag = *fields.first()?;
        let (field, rest) = element(fields, tag)?;
        if tag == ERROR_CODE {
            let (digits, _) = element(field, 0x02)?;
            let negative = digits.first()? & 0x80 != 0;
            let start = if negative { -1_i32 } else { 0 };
            return (digits.len() <= 4).then(|| {
                digits
                    .iter()
                    .fold(start, |code, &digit| (code << 8) | i32::from(digit))
            });
        }
        fields = rest;
    }
}

/// [APPLICATION 30].
const KRB_ERROR: u8 = 0x7e;
/// error-code [6].
const ERROR_CODE: u8 = 0xa6;
