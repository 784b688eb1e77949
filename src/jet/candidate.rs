//! [JET-PROTO] 2.2.2.3 Candidate format: a URL that is one possible way between two peers.
//!
//! - No scheme means `tcp`.
//! - The port may be left out for `ws` (80) and `wss` (443) only.
//! - `?ctype=host|relay` tells a peer's own address from one of a relay; other parameters are ignored, as is a path.
//!
//! A URL is data of a peer: what is dialled because of one is the decision of whoever dials.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use jetway_token::target::{TargetAddr, TargetAddrError};

/// Longest URL, bytes: a name of 253 characters and room for a path.
const URL_BYTES: usize = 1024;

/// What carries the bytes between a peer and a relay, or between two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The binary protocol over TCP; TLS between the peers may follow.
    Tcp,
    /// The binary protocol over TLS with the relay.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

/// Every transport, in the order in which a peer prefers them: the fewest layers first.
pub const TRANSPORTS: [Transport; 4] = [
    Transport::Tcp,
    Transport::Tls,
    Transport::Ws,
    Transport::Wss,
];

/// Whose address a candidate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CandidateType {
    /// The peer's own: a direct way.
    Host,
    /// A relay's.
    Relay,
}

/// A candidate's URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CandidateUrl {
    /// What carries the bytes.
    pub transport: Transport,
    /// Where to connect.
    pub address: TargetAddr,
    /// Whose address it is, where the URL says so.
    pub ctype: Option<CandidateType>,
}

/// Why a text is not a candidate's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CandidateUrlError {
    /// Not one of the four.
    #[error("scheme is not tcp, tls, ws or wss")]
    Scheme,
    /// Host or port.
    #[error("{0}")]
    Address(#[from] TargetAddrError),
    /// `ctype` is something else.
    #[error("ctype is neither host nor relay")]
    CandidateType,
    /// A URL as long as none is.
    #[error("URL is longer than {URL_BYTES} bytes")]
    TooLong,
}

impl Transport {
    /// Whether the gateway ends TLS on it.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    /// Whether it is a WebSocket.
    #[must_use]
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// The name that is also its scheme.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Self::Tcp | Self::Tls => None,
            Self::Ws => Some(80),
            Self::Wss => Some(443),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Transport {
    type Err = CandidateUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TRANSPORTS
            .into_iter()
            .find(|transport| transport.name().eq_ignore_ascii_case(text))
            .ok_or(CandidateUrlError::Scheme)
    }
}

impl FromStr for CandidateUrl {
    type Err = CandidateUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > URL_BYTES {
            return Err(CandidateUrlError::TooLong);
        }
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.parse()?, rest),
            None => (Transport::Tcp, text),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A fragment ends a query as well, and means nothing here.
        let query = query.split('#').next().unwrap_or_default();
        let authority = rest.split(['/', '#']).next().unwrap_or_default();
        let address = match authority.parse() {
            Err(TargetAddrError::NoPort) => match transport.default_port() {
                Some(port) => format!("{authority}:{port}").parse()?,
                None => return Err(TargetAddrError::NoPort.into()),
            },
            parsed => parsed?,
        };
        let mut ctype = None;
        for parameter in query.split('&') {
            if let Some(value) = parameter.strip_prefix("ctype=") {
                ctype = Some(match value {
                    "host" => CandidateType::Host,
                    "relay" => CandidateType::Relay,
                    _ => return Err(CandidateUrlError::CandidateType),
                });
            }
        }
        Ok(Self {
            transport,
            address,
            ctype,
        })
    }
}

impl fmt::Display for CandidateUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The port is always written: the specification allows to leave it out, and nobody misreads one that is there.
        write!(f, "{}://{}", self.transport, self.address)?;
        match self.ctype {
            Some(CandidateType::Host) => f.write_str("?ctype=host"),
            Some(CandidateType::Relay) => f.write_str("?ctype=relay"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for CandidateUrl {
    type Error = CandidateUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CandidateUrl> for String {
    fn from(url: CandidateUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        text.parse::<CandidateUrl>().unwrap().to_string()
    }

    #[test]
    fn urls_of_the_specification_are_read() {
        // J-URL-1
        for text in [
            "tcp://jet101.wayk.net:8080",
            "tls://jet101.wayk.net:4343",
            "ws://jet101.wayk.net:8080",
            "wss://jet101.wayk.net:4343",
            "tcp://10.1.21.34:4489?ctype=host",
            "wss://jet.wayk.net:7171?ctype=relay",
            "tcp://[2001:db8::1]:4489?ctype=host",
        ] {
            assert_eq!(parsed(text), text);
        }
    }

    #[test]
    fn no_scheme_means_tcp() {
        // J-URL-1
        assert_eq!(parsed("jet101.wayk.net:8080"), "tcp://jet101.wayk.net:8080");
        assert_eq!(
            parsed("[::1]:8080?ctype=relay"),
            "tcp://[::1]:8080?ctype=relay"
        );
    }

    #[test]
    fn a_port_may_be_left_out_for_websockets_only() {
        // J-URL-1
        assert_eq!(parsed("ws://jet101.wayk.net"), "ws://jet101.wayk.net:80");
        assert_eq!(parsed("wss://jet101.wayk.net"), "wss://jet101.wayk.net:443");
        assert_eq!(parsed("wss://[2001:db8::1]"), "wss://[2001:db8::1]:443");
        for text in [
            "tcp://jet101.wayk.net",
            "tls://jet101.wayk.net",
            "jet101.wayk.net",
        ] {
            assert_eq!(
                text.parse::<CandidateUrl>(),
                Err(TargetAddrError::NoPort.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn paths_and_unknown_parameters_are_ignored() {
        assert_eq!(parsed("wss://h:7171/"), "wss://h:7171");
        assert_eq!(
            parsed("wss://h/jet?a=b&ctype=relay#x"),
            "wss://h:443?ctype=relay"
        );
        assert_eq!(parsed("WSS://h"), "wss://h:443");
    }

    #[test]
    fn what_is_not_a_candidate_says_why() {
        let cases = [
            ("http://h:80", CandidateUrlError::Scheme),
            ("://h:80", CandidateUrlError::Scheme),
            ("tcp://h:80?ctype=srflx", CandidateUrlError::CandidateType),
            ("tcp://user@h:80", TargetAddrError::BadHost.into()),
            ("tcp://:80", TargetAddrError::BadHost.into()),
            ("tcp://h:0", TargetAddrError::BadPort.into()),
            ("ws://h:", TargetAddrError::BadPort.into()),
            ("", TargetAddrError::BadHost.into()),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<CandidateUrl>(), Err(error), "{text}");
        }
        let long = format!("wss://h/{}", "a".repeat(URL_BYTES));
        assert_eq!(
            long.parse::<CandidateUrl>(),
            Err(CandidateUrlError::TooLong)
        );
    }
}
