//! The server half, for the client leg: the client proves that it knows the proxy credential (`prx_usr`, `prx_pwd`), or
//! that it is that user by a Kerberos ticket for this gateway.
//!
//! Which of them is chosen by the client's first token: NTLM with and without SPNEGO around it, or Kerberos where the
//! gateway has a keytab. What the client delegates at the end is dropped unread: the target gets credentials of the
//! token, never those of the client.
//!
//! With NTLM the password is proven twice: by the NTLM response where the client protects it with a MIC, and always by the sealed
//! public key, whose keys follow from the password.

use std::fmt;
use std::io;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sspi::credssp::{
    CredSspServer, CredentialsProxy, NStatusCode, ServerMode, ServerState, TsRequest,
};
use sspi::ntlm::NtlmConfig;
use sspi::{AuthIdentity, ErrorKind, NegotiateConfig, Username, UsernameParts};

use super::acceptor::{self, Acceptor, AcceptorStep};
use super::cause::Cause;
use super::keytab::Keytab;
use super::ts_request::{decode, encode};
use super::{
    COMPUTER_NAME, Mechanism, Panicked, TS_REQUESTS, TsRequestError, contained, user_name,
};

/// What a client's `TSRequest` leads to.
#[derive(Debug)]
pub enum Progress {
    /// To be sent to the client, which will say more.
    Reply(Vec<u8>),
    /// The client has proven itself. With HYBRID_EX an [`EarlyUserAuth`](super::EarlyUserAuth) is to be sent.
    Finished,
}

/// The client did not prove itself.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Denied {
    /// A last `TSRequest` that tells the client so, where there is something to tell.
    pub reply: Option<Vec<u8>>,
    /// Why.
    pub cause: Cause,
}

/// The CredSSP server of one connection.
pub struct LogonServer {
    public_key: Vec<u8>,
    expected: Expected,
    kerberos: Option<ClientKerberos>,
    inner: Option<Inner>,
    seen: usize,
}

/// What proves a client by Kerberos.
#[derive(Clone, Debug)]
pub struct ClientKerberos {
    /// The keys of this gateway.
    pub keytab: Arc<Keytab>,
    /// Whether the password counts, too, where a client shows no ticket.
    pub ntlm_fallback: bool,
}

enum Inner {
    Ntlm(Box<CredSspServer<Expected>>),
    Kerberos(Box<Acceptor>),
}

impl fmt::Debug for LogonServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogonServer").finish_non_exhaustive()
    }
}

impl LogonServer {
    /// A server whose TLS certificate has `public_key` (see
    /// [`SubjectPublicKeyInfo::key`](super::SubjectPublicKeyInfo::key)) and who expects this user.
    #[must_use]
    pub fn new(public_key: &[u8], username: &str, password: &SecretString) -> Self {
        Self {
            public_key: public_key.to_vec(),
            expected: Expected {
                username: username.to_owned(),
                password: password.clone(),
            },
            kerberos: None,
            inner: None,
            seen: 0,
        }
    }

    /// The same where a Kerberos ticket counts.
    #[must_use]
    pub fn with_kerberos(mut self, kerberos: Option<&ClientKerberos>) -> Self {
        self.kerberos = kerberos.cloned();
        self
    }

    /// Whether the client shows a Kerberos ticket.
    #[must_use]
    pub fn uses_kerberos(&self) -> bool {
        matches!(self.inner, Some(Inner::Kerberos(_)))
    }

    /// Takes one whole `TSRequest` (see [`frame_length`](super::frame_length)).
    ///
    /// # Errors
    /// The client is denied; the connection is to be closed after the reply.
    pub fn process(&mut self, frame: &[u8]) -> Result<Progress, Denied> {
        self.seen = self.seen.saturating_add(1);
        if self.seen > TS_REQUESTS {
            return Err(silently(TsRequestError::TooMany.into()));
        }
        let request = decode(frame).map_err(|error| silently(error.into()))?;
        let inner = match self.inner.take() {
            Some(inner) => inner,
            None => self
                .choose(request.nego_tokens.as_deref().unwrap_or_default())
                .map_err(|cause| {
                    if matches!(cause, Cause::NoTicket) {
                        denied(TsRequest::default(), cause)
                    } else {
                        silently(cause)
                    }
                })?,
        };
        let server = match self.inner.insert(inner) {
            Inner::Ntlm(server) => server,
            Inner::Kerberos(acceptor) => {
                return match contained(|| acceptor.process(&request)) {
                    Ok(Ok(AcceptorStep::Reply(reply))) => encode(&reply)
                        .map(|frame| Progress::Reply(frame.to_vec()))
                        .map_err(silently),
                    Ok(Ok(AcceptorStep::Finished)) => Ok(Progress::Finished),
                    Ok(Err(cause)) => Err(denied(TsRequest::default(), cause)),
                    Err(panicked) => Err(self.give_up(panicked)),
                };
            }
        };
        let processed = match contained(|| server.process(request).resolve_to_result()) {
            Ok(processed) => processed,
            Err(panicked) => return Err(self.give_up(panicked)),
        };
        match processed {
            Ok(ServerState::ReplyNeeded(reply)) => encode(&reply)
                .map(|frame| Progress::Reply(frame.to_vec()))
                .map_err(silently),
            Ok(ServerState::Finished(_delegated)) => Ok(Progress::Finished),
            Err(failure) => {
                let cause = cause(&failure.error);
                Err(match failure.ts_request {
                    Some(reply) => denied(*reply, cause),
                    None => silently(cause),
                })
            }
        }
    }

    /// The mechanism of the client's first token.
    fn choose(&self, token: &[u8]) -> Result<Inner, Cause> {
        let mechanism = Mechanism::of(token).ok_or(Cause::Mechanism)?;
        if let Some(kerberos) = &self.kerberos {
            if acceptor::is_offered(token) {
                let keytab = Arc::clone(&kerberos.keytab);
                let acceptor = Acceptor::new(keytab, &self.expected.username, &self.public_key);
                return Ok(Inner::Kerberos(Box::new(acceptor)));
            }
            if !kerberos.ntlm_fallback {
                return Err(Cause::NoTicket);
            }
        }
        let server = CredSspServer::new(
            self.public_key.clone(),
            self.expected.clone(),
            ntlm_mode(mechanism),
        );
        let server = server.map_err(|error| Cause::Package(error.to_string()))?;
        Ok(Inner::Ntlm(Box::new(server)))
    }
}

/// A client that is told.
fn denied(mut reply: TsRequest, cause: Cause) -> Denied {
    // What sspi puts there is no NTSTATUS.
    reply.error_code = Some(status(&cause));
    reply.nego_tokens = None;
    reply.pub_key_auth = None;
    reply.auth_info = None;
    reply.client_nonce = None;
    Denied {
        reply: encode(&reply).ok().map(|frame| frame.to_vec()),
        cause,
    }
}

/// Answers a first `TSRequest`, whatever it holds, with STATUS_ACCOUNT_RESTRICTION: what Windows says to Restricted Admin
/// and Remote Credential Guard where they are switched off.
///
/// # Errors
/// It is not a `TSRequest`.
pub fn account_restriction(frame: &[u8]) -> Result<Vec<u8>, Cause> {
    let mut reply = decode(frame)?;
    reply.error_code = Some(ACCOUNT_RESTRICTION);
    reply.nego_tokens = None;
    reply.pub_key_auth = None;
    reply.auth_info = None;
    reply.client_nonce = None;
    encode(&reply).map(|frame| frame.to_vec())
}

impl LogonServer {
    /// Nothing more is asked of a package that panicked.
    fn give_up(&mut self, panicked: Panicked) -> Denied {
        self.inner = None;
        self.seen = TS_REQUESTS;
        silently(Cause::Package(panicked.to_string()))
    }
}

fn silently(cause: Cause) -> Denied {
    Denied { reply: None, cause }
}

fn ntlm_mode(mechanism: Mechanism) -> ServerMode {
    let ntlm = NtlmConfig::new(COMPUTER_NAME.to_owned());
    match mechanism {
        Mechanism::Ntlm => ServerMode::Ntlm(ntlm),
        Mechanism::Spnego => ServerMode::Negotiate(NegotiateConfig::new(
            Box::new(ntlm),
            Some("ntlm".to_owned()),
            COMPUTER_NAME.to_owned(),
        )),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "sspi has a hundred kinds, of which three concern the password"
)]
fn cause(error: &sspi::Error) -> Cause {
    match error.error_type {
        ErrorKind::LogonDenied | ErrorKind::NoCredentials | ErrorKind::UnknownCredentials => {
            Cause::WrongCredentials
        }
        ErrorKind::MessageAltered => Cause::PublicKey,
        _ => Cause::Package(error.to_string()),
    }
}

fn status(cause: &Cause) -> NStatusCode {
    match cause {
        Cause::WrongCredentials
        | Cause::PublicKey
        | Cause::NoTicket
        | Cause::Ticket(_)
        | Cause::AnotherUser => NStatusCode::LOGON_FAILURE,
        Cause::TsRequest(_)
        | Cause::Mechanism
        | Cause::List
        | Cause::Sequence
        | Cause::Version(_)
        | Cause::Package(_) => ACCESS_DENIED,
    }
}

/// STATUS_ACCESS_DENIED.
const ACCESS_DENIED: NStatusCode = NStatusCode(0xc000_0022);

/// STATUS_ACCOUNT_RESTRICTION.
const ACCOUNT_RESTRICTION: NStatusCode = NStatusCode(0xc000_006e);

/// The one user who may come in.
#[derive(Clone)]
struct Expected {
    username: String,
    password: SecretString,
}

impl Expected {
    fn identity(&self, username: Username) -> AuthIdentity {
        AuthIdentity {
            username,
            password: self.password.expose_secret().to_owned().into(),
        }
    }
}

impl CredentialsProxy for Expected {
    type AuthenticationData = AuthIdentity;

    fn auth_data_by_user(&mut self, username: &Username) -> io::Result<AuthIdentity> {
        if is_same_user(&self.username, username) {
            // NTLM computes with the name as the client spells it.
            Ok(self.identity(username.clone()))
        } else {
            Err(io::Error::other("another user"))
        }
    }

    /// For SPNEGO, which looks the user up by the spelling, but for the case of ASCII: every one that can be foreseen.
    fn auth_data(&mut self) -> io::Result<Vec<AuthIdentity>> {
        let parsed = Username::parse(&self.username).map_err(io::Error::other)?;
        let mut names = Vec::new();
        for spelling in user_name::spellings(&self.username) {
            names.extend(Username::parse(&spelling));
        }
        for account in user_name::spellings(parsed.account_name()) {
            for domain in ["", COMPUTER_NAME, "."] {
                names.extend(Username::new_down_level_logon_name(&account, domain));
            }
        }
        Ok(names.into_iter().map(|name| self.identity(name)).collect())
    }
}

/// Whether a client that calls itself `given` means the user `expected`.
///
/// Names are compared without regard to case, as Windows does ([`user_name`]). Clients put a domain of their own choice before a bare
/// name (the server's name, their own), so a domain counts only where the token names one and the client, too.
fn is_same_user(expected: &str, given: &Username) -> bool {
    if user_name::is_same(expected, given.inner()) {
        return true;
    }
    let Ok(expected) = Username::parse(expected) else {
        return false;
    };
    let same_account = user_name::is_same(expected.account_name(), given.account_name());
    match (domain(&expected), domain(given)) {
        (None, _) | (_, None) => same_account,
        (Some(expected), Some(given)) => same_account && user_name::is_same(expected, given),
    }
}

fn domain(name: &Username) -> Option<&str> {
    match name.parts() {
        UsernameParts::UserPrincipalName(parts) => Some(parts.suffix()),
        UsernameParts::DownLevelLogonName(parts) => {
            parts.netbios_domain().filter(|domain| !domain.is_empty())
        }
    }
}
