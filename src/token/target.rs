//! `dst_hst`: `<host>:<port>` ([JET-PROTO] 2.2.3.9), an IPv6 address in brackets.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest host name, characters ([RFC 1035] 2.3.4).
///
/// [RFC 1035]: https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4
const HOST_CHARS: usize = 253;

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
}

impl FromStr for TargetAddr {
    type Err = TargetAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or(TargetAddrError::BadHost)?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| TargetAddrError::BadHost)?;
            (
                host,
                after.strip_prefix(':').ok_or(TargetAddrError::NoPort)?,
            )
        } else {
            let (host, port) = text.split_once(':').ok_or(TargetAddrError::NoPort)?;
            if port.contains(':') {
                return Err(TargetAddrError::BareIpv6);
            }
            if !is_host(host) {
                return Err(TargetAddrError::BadHost);
            }
            (host, port)
        };
        // `parse` alone would take "+3389".
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TargetAddrError::BadPort);
        }
        match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            Ok(_) | Err(_) => Err(TargetAddrError::BadPort),
        }
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
    fn what_is_not_a_destination_says_why() {
        let cases = [
            ("rdp.example", TargetAddrError::NoPort),
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
