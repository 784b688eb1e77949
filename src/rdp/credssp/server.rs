//! The server half, for the client leg: the client proves that it knows the proxy credential (`prx_usr`, `prx_pwd`).
//!
//! NTLM only: with and without SPNEGO around it, chosen by the client's first token. What the client delegates at the
//! end is dropped unread: the target gets credentials of the token, never those of the client.
//!
//! The password is proven twice: by the NTLM response where the client protects it with a MIC, and always by the sealed
//! public key, whose keys follow from the password.

use std::fmt;
use std::io;

use secrecy::{ExposeSecret, SecretString};
use sspi::credssp::{
    CredSspServer, CredentialsProxy, NStatusCode, ServerMode, ServerState, TsRequest,
};
use sspi::ntlm::NtlmConfig;
use sspi::{AuthIdentity, ErrorKind, NegotiateConfig, Username, UsernameParts};
use zeroize::Zeroizing;

use super::{COMPUTER_NAME, Mechanism, TS_REQUESTS, TsRequestError, frame_length, unlogged};

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
    /// Another fault that the security package found.
    #[error("{0}")]
    Package(String),
}

/// The CredSSP server of one connection.
pub struct Server {
    public_key: Vec<u8>,
    expected: Expected,
    inner: Option<CredSspServer<Expected>>,
    seen: usize,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
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
            inner: None,
            seen: 0,
        }
    }

    /// Takes one whole `TSRequest` (see [`frame_length`]).
    ///
    /// # Errors
    /// The client is denied; the connection is to be closed after the reply.
    pub fn process(&mut self, frame: &[u8]) -> Result<Progress, Denied> {
        self.seen = self.seen.saturating_add(1);
        if self.seen > TS_REQUESTS {
            return Err(silently(TsRequestError::TooMany.into()));
        }
        let request = decode(frame).map_err(|error| silently(error.into()))?;
        let server = match &mut self.inner {
            Some(server) => server,
            none => {
                let token = request.nego_tokens.as_deref().unwrap_or_default();
                let mode = mode(token).ok_or_else(|| silently(Cause::Mechanism))?;
                let server =
                    CredSspServer::new(self.public_key.clone(), self.expected.clone(), mode)
                        .map_err(|error| silently(Cause::Package(error.to_string())))?;
                none.insert(server)
            }
        };
        match unlogged(|| server.process(request).resolve_to_result()) {
            Ok(ServerState::ReplyNeeded(reply)) => encode(&reply)
                .map(|frame| Progress::Reply(frame.to_vec()))
                .map_err(silently),
            Ok(ServerState::Finished(_delegated)) => Ok(Progress::Finished),
            Err(failure) => {
                let cause = cause(&failure.error);
                let reply = failure.ts_request.and_then(|mut reply| {
                    // What sspi puts there is no NTSTATUS.
                    reply.error_code = Some(status(&cause));
                    reply.nego_tokens = None;
                    reply.pub_key_auth = None;
                    reply.auth_info = None;
                    reply.client_nonce = None;
                    encode(&reply).ok().map(|frame| frame.to_vec())
                });
                Err(Denied { reply, cause })
            }
        }
    }
}

fn silently(cause: Cause) -> Denied {
    Denied { reply: None, cause }
}

/// A whole frame, decoded.
pub(super) fn decode(frame: &[u8]) -> Result<TsRequest, TsRequestError> {
    match frame_length(frame)? {
        Some(length) if length == frame.len() => {}
        _ => return Err(TsRequestError::Malformed),
    }
    TsRequest::from_buffer(frame).map_err(|_| TsRequestError::Malformed)
}

pub(super) fn encode(request: &TsRequest) -> Result<Zeroizing<Vec<u8>>, Cause> {
    let failed = |error: &dyn fmt::Display| Cause::Package(error.to_string());
    let length = request.buffer_len().map_err(|error| failed(&error))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(length.into()));
    request
        .encode_ts_request(&mut *frame)
        .map_err(|error| failed(&error))?;
    Ok(frame)
}

fn mode(first_token: &[u8]) -> Option<ServerMode> {
    let ntlm = NtlmConfig::new(COMPUTER_NAME.to_owned());
    Some(match Mechanism::of(first_token)? {
        Mechanism::Ntlm => ServerMode::Ntlm(ntlm),
        Mechanism::Spnego => ServerMode::Negotiate(NegotiateConfig::new(
            Box::new(ntlm),
            Some("ntlm".to_owned()),
            COMPUTER_NAME.to_owned(),
        )),
    })
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
        Cause::WrongCredentials | Cause::PublicKey => NStatusCode::LOGON_FAILURE,
        Cause::TsRequest(_) | Cause::Mechanism | Cause::Package(_) => ACCESS_DENIED,
    }
}

/// STATUS_ACCESS_DENIED.
const ACCESS_DENIED: NStatusCode = NStatusCode(0xc000_0022);

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

    /// For SPNEGO, which looks the user up by the exact spelling: every one that can be foreseen.
    fn auth_data(&mut self) -> io::Result<Vec<AuthIdentity>> {
        let parsed = Username::parse(&self.username).map_err(io::Error::other)?;
        let account = parsed.account_name().to_owned();
        let mut names = vec![parsed];
        for domain in ["", COMPUTER_NAME, "."] {
            names.extend(Username::new_down_level_logon_name(&account, domain));
        }
        Ok(names.into_iter().map(|name| self.identity(name)).collect())
    }
}

/// Whether a client that calls itself `given` means the user `expected`.
///
/// Names are compared without regard to case, as Windows does. Clients put a domain of their own choice before a bare
/// name (the server's name, their own), so a domain counts only where the token names one and the client, too.
fn is_same_user(expected: &str, given: &Username) -> bool {
    if expected.eq_ignore_ascii_case(given.inner()) {
        return true;
    }
    let Ok(expected) = Username::parse(expected) else {
        return false;
    };
    let same_account = expected
        .account_name()
        .eq_ignore_ascii_case(given.account_name());
    match (domain(&expected), domain(given)) {
        (None, _) | (_, None) => same_account,
        (Some(expected), Some(given)) => same_account && expected.eq_ignore_ascii_case(given),
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
