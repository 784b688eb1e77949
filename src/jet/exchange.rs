//! [JET-PROTO] 2.2.5 Binary protocol: one request, one response, both HTTP/1.1 text inside a
//! [`packet`](crate::packet). The paths are those of 2.2.6 as well, where a WebSocket handshake carries them.
//!
//! ```text
//! GET /jet/accept/<association>/<candidate> HTTP/1.1      HTTP/1.1 200 OK
//! Host: jet101.example                                    Jet-Version: 2
//! Connection: Keep-Alive                                  Jet-Instance: jet101.example
//! Jet-Version: 2                                          Jet-Timeout: 300
//! Authorization: Bearer eyJ...
//! ```
//!
//! - The response has the version of the request: existing clients take no other.
//! - `Authorization` is optional here and in the specification; an association may demand it.
//! - A path with more segments than it needs is no path: what is ignored by one reader may mean something to another.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::fmt::{self, Write};
use std::time::Duration;

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::message::Version;
use jetway_token as token;

/// The sub-protocol of peers that offer one.
pub const SUB_PROTOCOL: &str = "jet";

/// Headers of one message; existing peers send three.
const HEADERS: usize = 32;

/// What a peer wants of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// To be the server's side of it.
    Accept,
    /// To be the client's side of it.
    Connect,
    /// To know whether it could be reached.
    Test,
}

/// A candidate of an association, and what to do with it: `/jet/<operation>/<association>/<candidate>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JetPath {
    /// What is wanted.
    pub operation: Operation,
    /// The association.
    pub association: Uuid,
    /// The candidate.
    pub candidate: Uuid,
}

/// A request of the binary protocol.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// What is wanted of which candidate.
    pub path: JetPath,
    /// `Jet-Version`.
    pub version: Version,
    /// `Host`, as the peer knows the gateway.
    pub host: Option<String>,
    /// The bearer token, which `Debug` does not print.
    pub token: Option<Zeroizing<String>>,
}

/// A response of the binary protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200, or what went wrong.
    pub status: Status,
    /// `Jet-Version`.
    pub version: u8,
    /// `Jet-Instance`: the relay behind a balancer that holds the association.
    pub instance: Option<String>,
    /// `Jet-Timeout`: after so long without a peer the candidate is forgotten. In whole seconds on the wire.
    pub timeout: Option<Duration>,
}

/// Statuses of the binary protocol and of the WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Ok,
    /// The request makes no sense.
    BadRequest,
    /// The association demands a token, and there was none or a wrong one.
    Unauthorized,
    /// The token is good and does not allow this.
    Forbidden,
    /// No such association, or no such candidate in it.
    NotFound,
    /// Somebody else holds it already, or nobody is there to meet.
    Conflict,
    /// One address asks for too much at a time.
    TooManyRequests,
    /// A limit is reached; later it may work.
    Unavailable,
    /// A status that this gateway never sends.
    Other(u16),
}

/// Why a payload is not a request, or not a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Not HTTP, or cut off.
    #[error("payload is not a whole HTTP message")]
    NotHttp,
    /// Something follows the empty line.
    #[error("payload goes on behind the HTTP head")]
    Body,
    /// Not `GET`.
    #[error("method is not GET")]
    Method,
    /// Not one of the three paths.
    #[error("path is not /jet/accept|connect|test/<association>/<candidate>")]
    Path,
    /// `Jet-Version` is missing, or not 2 or 3: it can be answered with what it said.
    #[error("Jet-Version is neither 2 nor 3")]
    Version(Option<u8>),
    /// `Authorization` is no bearer token.
    #[error("Authorization is not a bearer token")]
    Authorization,
    /// A token where it is not read, and none where it is. With the version, to be answered.
    #[error("{TOKEN_IN_URL}")]
    TokenInUrl(u8),
}

/// What is said of a token in the query of a URL.
pub const TOKEN_IN_URL: &str = "a token in the URL is not read, as URLs stand in the logs of whatever is on the way: send it as Authorization: \
                                Bearer TOKEN; a page in a browser sends it as the sub-protocol bearer.TOKEN, or exchanges it for a ticket \
                                (POST /jet/tickets) and adds ?ticket=TICKET";

/// Whether a token stands in the query of a URL, under whatever name.
#[must_use]
pub fn has_token(query: &str) -> bool {
    let values = query
        .split('&')
        .filter_map(|parameter| parameter.split_once('='));
    values
        .into_iter()
        .any(|(_, value)| token::is_compact(value))
}

impl Operation {
    /// The name that is also its path segment.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl JetPath {
    /// Reads a path; a query behind it is not looked at.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.split('?').next()?;
        let mut segments = path.strip_prefix("/jet/")?.split('/');
        let operation = match segments.next()? {
            "accept" => Operation::Accept,
            "connect" => Operation::Connect,
            "test" => Operation::Test,
            _ => return None,
        };
        let association = uuid(segments.next()?)?;
        let candidate = uuid(segments.next()?)?;
        segments.next().is_none().then_some(Self {
            operation,
            association,
            candidate,
        })
    }
}

impl fmt::Display for JetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            association,
            candidate,
        } = self;
        write!(f, "/jet/{operation}/{association}/{candidate}")
    }
}

/// A UUID in the form that everybody writes, with hyphens; braces and URNs are not among the forms of the protocol.
#[must_use]
pub fn uuid(text: &str) -> Option<Uuid> {
    if text.len() != uuid::fmt::Hyphenated::LENGTH {
        return None;
    }
    Uuid::try_parse(text).ok()
}

impl Request {
    /// Reads the payload of a packet.
    ///
    /// # Errors
    /// What makes it no request.
    pub fn parse(payload: &[u8]) -> Result<Self, ExchangeError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        whole(request.parse(payload), payload)?;
        if request.method != Some("GET") {
            return Err(ExchangeError::Method);
        }
        let path = request.path.and_then(JetPath::parse);
        let path = path.ok_or(ExchangeError::Path)?;
        let version = version(request.headers);
        let version = version
            .and_then(|version| Version::try_from(version).ok())
            .ok_or(ExchangeError::Version(version))?;
        let token = match header(request.headers, "authorization") {
            Some(value) => {
                let token = bearer(value).ok_or(ExchangeError::Authorization)?;
                Some(Zeroizing::new(token.to_owned()))
            }
            None => {
                let query = request.path.and_then(|path| path.split_once('?'));
                if query.is_some_and(|(_, query)| has_token(query)) {
                    return Err(ExchangeError::TokenInUrl(version.into()));
                }
                None
            }
        };
        let host = header(request.headers, "host");
        Ok(Self {
            path,
            version,
            host: host.map(|host| String::from_utf8_lossy(host).into_owned()),
            token,
        })
    }

    /// The payload of a packet.
    #[must_use]
    pub fn to_payload(&self) -> Zeroizing<Vec<u8>> {
        let connection = match self.path.operation {
            Operation::Accept | Operation::Connect => "Keep-Alive",
            Operation::Test => "Close",
        };
        let host = match &self.host {
            Some(host) => format!("Host: {host}\r\n"),
            None => String::new(),
        };
        let version = u8::from(self.version);
        let head = format!(
            "GET {} HTTP/1.1\r\n{host}Connection: {connection}\r\nJet-Version: {version}\r\n",
            self.path
        );
        let token = self.token.as_ref().map_or("", |token| token.as_str());
        // Of sufficient size from the start, so that no copy of the token is left behind.
        let capacity = head.len().saturating_add(token.len()).saturating_add(64);
        let mut payload = Zeroizing::new(Vec::with_capacity(capacity));
        payload.extend_from_slice(head.as_bytes());
        if self.token.is_some() {
            payload.extend_from_slice(b"Authorization: Bearer ");
            payload.extend_from_slice(token.as_bytes());
            payload.extend_from_slice(b"\r\n");
        }
        payload.extend_from_slice(b"\r\n");
        payload
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("host", &self.host)
            .field("token", &self.token.as_ref().map(|_| "<not shown>"))
            .finish()
    }
}

impl Response {
    /// A response that says no more than its status.
    #[must_use]
    pub fn new(status: Status, version: Version) -> Self {
        Self {
            status,
            version: version.into(),
            instance: None,
            timeout: None,
        }
    }

    /// The answer to a request that makes no sense, in the version that it named; none to what is no request at all.
    #[must_use]
    pub fn to_error(error: &ExchangeError) -> Option<Self> {
        let (status, version) = match error {
            ExchangeError::NotHttp | ExchangeError::Body => return None,
            ExchangeError::Version(Some(version)) => (Status::BadRequest, *version),
            ExchangeError::Authorization => (Status::Unauthorized, Version::V2.into()),
            ExchangeError::TokenInUrl(version) => (Status::Unauthorized, *version),
            ExchangeError::Version(None) | ExchangeError::Method | ExchangeError::Path => {
                (Status::BadRequest, Version::V2.into())
            }
        };
        Some(Self {
            status,
            version,
            instance: None,
            timeout: None,
        })
    }

    /// Reads the payload of a packet.
    ///
    /// # Errors
    /// What makes it no response.
    pub fn parse(payload: &[u8]) -> Result<Self, ExchangeError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        whole(response.parse(payload), payload)?;
        let status = response.code.ok_or(ExchangeError::NotHttp)?;
        let version = version(response.headers).ok_or(ExchangeError::Version(None))?;
        let text = |name| {
            let value = header(response.headers, name)?;
            std::str::from_utf8(value).ok()
        };
        Ok(Self {
            status: status.into(),
            version,
            instance: text("jet-instance").map(str::to_owned),
            timeout: text("jet-timeout")
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
        })
    }

    /// The payload of a packet.
    #[must_use]
    pub fn to_payload(&self) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {:03} {}\r\nJet-Version: {}\r\n",
            u16::from(self.status),
            self.status.reason(),
            self.version
        );
        // Writing to a string does not fail.
        if let Some(instance) = &self.instance {
            let _ = write!(text, "Jet-Instance: {instance}\r\n");
        }
        if let Some(timeout) = self.timeout {
            let _ = write!(text, "Jet-Timeout: {}\r\n", timeout.as_secs());
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

impl Status {
    fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::Conflict => "Conflict",
            Self::TooManyRequests => "Too Many Requests",
            Self::Unavailable => "Service Unavailable",
            Self::Other(_) => "Other",
        }
    }
}

impl From<u16> for Status {
    fn from(code: u16) -> Self {
        match code {
            200 => Self::Ok,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            429 => Self::TooManyRequests,
            503 => Self::Unavailable,
            other => Self::Other(other),
        }
    }
}

impl From<Status> for u16 {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => 200,
            Status::BadRequest => 400,
            Status::Unauthorized => 401,
            Status::Forbidden => 403,
            Status::NotFound => 404,
            Status::Conflict => 409,
            Status::TooManyRequests => 429,
            Status::Unavailable => 503,
            Status::Other(code) => code,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", u16::from(*self), self.reason())
    }
}

/// The bearer token of an `Authorization` header ([RFC 6750] 2.1): the scheme in any case, and one space or more behind it
/// ([RFC 9110] 11.1 and 11.4).
///
/// [RFC 6750]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110#section-11.1
#[must_use]
pub fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim();
    let is_bearer = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty();
    is_bearer.then_some(token)
}

/// Whether a head was parsed to its end, and ends the payload.
fn whole(
    parsed: Result<httparse::Status<usize>, httparse::Error>,
    payload: &[u8],
) -> Result<(), ExchangeError> {
    match parsed {
        Ok(httparse::Status::Complete(end)) if end == payload.len() => Ok(()),
        Ok(httparse::Status::Complete(_)) => Err(ExchangeError::Body),
        Ok(httparse::Status::Partial) | Err(_) => Err(ExchangeError::NotHttp),
    }
}

fn header<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h [u8]> {
    let mut found = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case(name));
    found.next().map(|header| header.value)
}

fn version(headers: &[httparse::Header<'_>]) -> Option<u8> {
    let value = std::str::from_utf8(header(headers, "jet-version")?).ok()?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSOCIATION: &str = "300f1c82-d33b-11e9-bb65-2a2ae2dbcce5";
    const CANDIDATE: &str = "4c8f409f-c1a2-4cae-bda2-84c590fed618";

    fn path(operation: Operation) -> JetPath {
        JetPath {
            operation,
            association: ASSOCIATION.parse().unwrap(),
            candidate: CANDIDATE.parse().unwrap(),
        }
    }

    #[test]
    fn a_request_of_an_existing_client_is_read() {
        // J-BIN-1, J-BIN-2, J-BIN-3
        for operation in [Operation::Accept, Operation::Connect, Operation::Test] {
            let text = format!(
                "GET /jet/{operation}/{ASSOCIATION}/{CANDIDATE} HTTP/1.1\r\nHost: jetsocat\r\nConnection: Keep-Alive\r\nJet-Version: 2\r\n\r\n"
            );
            let request = Request::parse(text.as_bytes()).unwrap();
            assert_eq!(request.path, path(operation));
            assert_eq!(request.version, Version::V2);
            assert_eq!(request.host.as_deref(), Some("jetsocat"));
            assert_eq!(request.token, None);
        }
    }

    #[test]
    fn a_request_round_trips_with_its_token_which_debug_does_not_show() {
        let request = Request {
            path: path(Operation::Connect),
            version: Version::V3,
            host: Some("jet101.example".to_owned()),
            token: Some(Zeroizing::new("eyJhbGciOi".to_owned())),
        };
        assert_eq!(Request::parse(&request.to_payload()).unwrap(), request);
        assert!(!format!("{request:?}").contains("eyJ"));
    }

    #[test]
    fn the_scheme_of_a_token_is_read_in_any_case_with_one_space_or_more() {
        for value in ["Bearer a.b.c", "bearer a.b.c", "BEARER    a.b.c"] {
            assert_eq!(bearer(value.as_bytes()), Some("a.b.c"), "{value}");
            let ids = format!("{ASSOCIATION}/{CANDIDATE}");
            let text = format!(
                "GET /jet/test/{ids} HTTP/1.1\r\nJet-Version: 2\r\nauthorization: {value}\r\n\r\n"
            );
            let request = Request::parse(text.as_bytes()).unwrap();
            assert_eq!(request.token.unwrap().as_str(), "a.b.c", "{value}");
        }
        for value in ["Bearer", "Bearer   ", "Bearera.b.c", "Basic a.b.c", ""] {
            assert_eq!(bearer(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        let ids = format!("{ASSOCIATION}/{CANDIDATE}");
        let head = "HTTP/1.1\r\nJet-Version: 2\r\n";
        let cases = [
            ("nonsense\r\n\r\n".to_owned(), ExchangeError::NotHttp),
            (
                format!("GET /jet/test/{ids} {head}"),
                ExchangeError::NotHttp,
            ),
            (
                format!("GET /jet/test/{ids} {head}\r\nX"),
                ExchangeError::Body,
            ),
            (
                format!("POST /jet/test/{ids} {head}\r\n"),
                ExchangeError::Method,
            ),
            (
                format!("GET /jet/stop/{ids} {head}\r\n"),
                ExchangeError::Path,
            ),
            (
                format!("GET /JET/test/{ids} {head}\r\n"),
                ExchangeError::Path,
            ),
            (
                format!("GET /jet/test/{ids}/more {head}\r\n"),
                ExchangeError::Path,
            ),
            (
                format!("GET /jet/test/{ASSOCIATION} {head}\r\n"),
                ExchangeError::Path,
            ),
            (
                format!("GET /jet/test/{{{ASSOCIATION}}}/{CANDIDATE} {head}\r\n"),
                ExchangeError::Path,
            ),
            (
                format!("GET /jet/test/{ids} HTTP/1.1\r\n\r\n"),
                ExchangeError::Version(None),
            ),
            (
                format!("GET /jet/test/{ids} HTTP/1.1\r\nJet-Version: 1\r\n\r\n"),
                ExchangeError::Version(Some(1)),
            ),
            (
                format!("GET /jet/test/{ids} {head}Authorization: Basic eA==\r\n\r\n"),
                ExchangeError::Authorization,
            ),
        ];
        for (text, error) in cases {
            assert_eq!(Request::parse(text.as_bytes()), Err(error), "{text}");
        }
        let many = "A: b\r\n".repeat(HEADERS);
        let text = format!("GET /jet/test/{ids} {head}{many}\r\n");
        assert_eq!(Request::parse(text.as_bytes()), Err(ExchangeError::NotHttp));
    }

    #[test]
    fn a_path_may_have_a_query_and_uuids_of_any_case() {
        let upper = CANDIDATE.to_uppercase();
        assert_eq!(
            JetPath::parse(&format!("/jet/accept/{ASSOCIATION}/{upper}?a=b")),
            Some(path(Operation::Accept))
        );
    }

    #[test]
    fn a_response_carries_version_instance_and_timeout() {
        // J-BIN-1, J-SEQ-1
        let response = Response {
            instance: Some("jet101.example".to_owned()),
            timeout: Some(Duration::from_secs(300)),
            ..Response::new(Status::Ok, Version::V3)
        };
        assert_eq!(
            String::from_utf8(response.to_payload()).unwrap(),
            "HTTP/1.1 200 OK\r\nJet-Version: 3\r\nJet-Instance: jet101.example\r\nJet-Timeout: 300\r\n\r\n"
        );
        assert_eq!(Response::parse(&response.to_payload()).unwrap(), response);
    }

    #[test]
    fn a_response_of_an_existing_relay_is_read() {
        let response = Response::parse(b"HTTP/1.1 200 OK 200\r\nJet-Version: 2\r\n\r\n").unwrap();
        assert_eq!(response, Response::new(Status::Ok, Version::V2));
        let refused = Response::parse(b"HTTP/1.1 418 Teapot\r\nJet-Version: 2\r\n\r\n").unwrap();
        assert_eq!(refused.status, Status::Other(418));
    }

    #[test]
    fn a_request_with_a_strange_version_is_answered_in_it() {
        let answer = Response::to_error(&ExchangeError::Version(Some(9))).unwrap();
        assert_eq!((answer.status, answer.version), (Status::BadRequest, 9));
        assert_eq!(Response::to_error(&ExchangeError::Path).unwrap().version, 2);
        assert_eq!(Response::to_error(&ExchangeError::NotHttp), None);
    }
}
