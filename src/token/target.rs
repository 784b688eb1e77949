//! `dst_hst`: `<host>:<port>` ([JET-PROTO] 2.2.3.9), an IPv6 address in brackets.
//!
//! Issuers write more than that in claims, and [`TargetAddr::of_claim`] reads it: `tcp://` before it, and no port where
//! the protocol has one.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest host name, characters ([RFC 1035] 2.3.4).
///
/// [RFC 1035]: https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4
const HOST_CHARS: usize = 253;

/// Longest scheme that is repeated in a message, characters: longer than any that is in use for destinations.
const SCHEME_CHARS: usize = 16;

/// A destination by name or address, with its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetAddr {
    /// Host name or IP address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

/// Why a text is not a destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetAddrError {
    /// No port after the host.
    #[error("destination has no port, expected <host>:<port>")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("destination port is not a number from 1 to 65535")]
    BadPort,
    /// The host is empty, too long or has characters no host has.
    #[error("destination host is not a host name or an IP address")]
    BadHost,
    /// More than one colon outside brackets.
    #[error("an IPv6 destination is written in brackets, as [2001:db8::1]:3389")]
    BareIpv6,
    /// A scheme other than `tcp`.
    #[error("destination has scheme {0}, and only tcp is dialled")]
    Scheme(String),
}

impl TargetAddr {
    /// Reads a destination as issuers write it in a claim: with `tcp://` or without, and at `default_port` where it names
    /// no port.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn of_claim(text: &str, default_port: Option<u16>) -> Result<Self, TargetAddrError> {
        match text.split_once("://") {
            None => Self::read(text, default_port),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("tcp") => {
                // Libraries that normalise URLs put a slash at the end.
                Self::read(rest.strip_suffix('/').unwrap_or(rest), default_port)
            }
            Some((scheme, _)) if is_scheme(scheme) => {
                Err(TargetAddrError::Scheme(scheme.to_ascii_lowercase()))
            }
            Some(_) => Err(TargetAddrError::BadHost),
        }
    }

    fn read(text: &str, default_port: Option<u16>) -> Result<Self, TargetAddrError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or(TargetAddrError::BadHost)?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| TargetAddrError::BadHost)?;
            match after.strip_prefix(':') {
                None if after.is_empty() => (host, None),
                None => return Err(TargetAddrError::NoPort),
                port @ Some(_) => (host, port),
            }
        } else {
            let (host, port) = match text.split_once(':') {
                None => (text, None),
                Some((_, port)) if port.contains(':') => return Err(TargetAddrError::BareIpv6),
                Some((host, port)) => (host, Some(port)),
            };
            if !is_host(host) {
                return Err(TargetAddrError::BadHost);
            }
            (host, port)
        };
        let port = match port {
            None => default_port.ok_or(TargetAddrError::NoPort)?,
            // `parse` alone would take "+3389".
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().map_err(|_| TargetAddrError::BadPort)?
            }
            Some(_) => return Err(TargetAddrError::BadPort),
        };
        if port == 0 {
            return Err(TargetAddrError::BadPort);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl FromStr for TargetAddr {
    type Err = TargetAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text, None)
    }
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for TargetAddr {
    type Error = TargetAddrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TargetAddr> for String {
    fn from(target: TargetAddr) -> Self {
        target.to_string()
    }
}

/// Letters, digits, hyphen, dot and underscore: what resolvers and Windows host names use.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= HOST_CHARS
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// The scheme of a URL ([RFC 3986] 3.1), of a length that can be repeated in a message.
///
/// [RFC 3986]: https://www.rfc-editor.org/rfc/rfc3986#section-3.1
fn is_scheme(text: &str) -> bool {
    text.len() <= SCHEME_CHARS
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_round_trip() {
        for text in [
            "rdp.example:3389",
            "192.0.2.7:1",
            "[2001:db8::1]:65535",
            "win_10:3389",
        ] {
            assert_eq!(text.parse::<TargetAddr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_claim_may_have_the_scheme_tcp_and_leave_out_a_known_port() {
        let cases = [
            ("tcp://rdp.example:3390", "rdp.example:3390"),
            ("TCP://rdp.example:3390/", "rdp.example:3390"),
            ("rdp.example:3390", "rdp.example:3390"),
            ("rdp.example", "rdp.example:3389"),
            ("tcp://rdp.example", "rdp.example:3389"),
            ("tcp://192.0.2.7/", "192.0.2.7:3389"),
            ("[2001:db8::1]", "[2001:db8::1]:3389"),
            ("tcp://[2001:db8::1]", "[2001:db8::1]:3389"),
            ("tcp://[2001:db8::1]:1", "[2001:db8::1]:1"),
        ];
        for (text, meant) in cases {
            let target = TargetAddr::of_claim(text, Some(3389)).unwrap();
            assert_eq!(target.to_string(), meant, "{text}");
        }
        for text in ["rdp.example", "tcp://rdp.example", "[2001:db8::1]"] {
            let error = TargetAddr::of_claim(text, None);
            assert_eq!(error, Err(TargetAddrError::NoPort), "{text}");
        }
    }

    #[test]
    fn another_scheme_is_refused_by_name() {
        let scheme = |name: &str| TargetAddrError::Scheme(name.to_owned());
        let cases = [
            ("udp://rdp.example:3389", scheme("udp")),
            ("HTTPS://rdp.example", scheme("https")),
            ("tcp://tcp://rdp.example:1", TargetAddrError::BareIpv6),
            ("tcp://", TargetAddrError::BadHost),
            ("tcp://rdp.example:3389/path", TargetAddrError::BadPort),
            ("tcp://rdp.example/path", TargetAddrError::BadHost),
            ("tcp://2001:db8::1", TargetAddrError::BareIpv6),
            ("tcp://[2001:db8::1]x", TargetAddrError::NoPort),
            ("://rdp.example", TargetAddrError::BadHost),
            ("a\nb://rdp.example", TargetAddrError::BadHost),
        ];
        for (text, error) in cases {
            assert_eq!(TargetAddr::of_claim(text, Some(3389)), Err(error), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_destination_says_why() {
        let cases = [
            ("rdp.example", TargetAddrError::NoPort),
            ("tcp://rdp.example:3389", TargetAddrError::BareIpv6),
            ("rdp.example:", TargetAddrError::BadPort),
            ("rdp.example:0", TargetAddrError::BadPort),
            ("rdp.example:+3389", TargetAddrError::BadPort),
            ("rdp.example:65536", TargetAddrError::BadPort),
            ("2001:db8::1:3389", TargetAddrError::BareIpv6),
            ("[2001:db8::1]", TargetAddrError::NoPort),
            ("[rdp.example]:3389", TargetAddrError::BadHost),
            (":3389", TargetAddrError::BadHost),
            ("a b:3389", TargetAddrError::BadHost),
            ("user@host:3389", TargetAddrError::BadHost),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<TargetAddr>(), Err(error), "{text}");
        }
    }
}
