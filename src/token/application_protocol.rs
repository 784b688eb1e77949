//! `jet_ap`: the protocol a token advertises ([JET-PROTO] 2.2.3), and its enforcement on the first bytes of each side.
//!
//! | `jet_ap` | client says first | target says first |
//! |---|---|---|
//! | `rdp` | X.224 Connection Request, or TLS ClientHello (direct TLS) | X.224 Connection Confirm, or TLS ServerHello or alert |
//! | `ssh` | `SSH-` ([RFC 4253] 4.2) | `SSH-` |
//! | `vnc` | `RFB ` ([RFC 6143] 7.1.1), after the target | `RFB ` |
//! | others | not identifiable: conforms | not identifiable: conforms |
//!
//! An SSH server may send other lines before its version (RFC 4253 4.2); none does in practice, and such a target
//! does not conform here. A preconnection PDU, being addressed to the gateway, is not part of what is judged. Each side is judged once,
//! by its first bytes, and nothing of it passes before: in SSH a version line is followed by binary packets.
//!
//! [RFC 4253]: https://www.rfc-editor.org/rfc/rfc4253#section-4.2
//! [RFC 6143]: https://www.rfc-editor.org/rfc/rfc6143#section-7.1.1

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::first_bytes::Expected::{Any, Is, Within};
pub use super::first_bytes::FirstBytes;
use super::first_bytes::{Expected, fit};

/// `jet_ap`: what will be spoken between client and target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ApplicationProtocol {
    /// `none`: nothing is said about it.
    None,
    /// `wayk`.
    Wayk,
    /// `rdp`.
    Rdp,
    /// `ssh`.
    Ssh,
    /// `vnc`.
    Vnc,
    /// A name that other gateways use; never one of the above.
    Other(String),
}

impl ApplicationProtocol {
    /// The name in a token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Wayk => "wayk",
            Self::Rdp => "rdp",
            Self::Ssh => "ssh",
            Self::Vnc => "vnc",
            Self::Other(name) => name,
        }
    }
}

impl ApplicationProtocol {
    /// The port where a destination of this protocol names none, as other gateways have it; their names for protocols
    /// are read here, too.
    #[must_use]
    pub fn default_port(&self) -> Option<u16> {
        match self.as_str().to_ascii_lowercase().as_str() {
            "rdp" => Some(3389),
            "vnc" | "ard" => Some(5900),
            "ssh" | "sftp" | "scp" => Some(22),
            "telnet" => Some(23),
            "winrm" | "winrm-http-pwsh" => Some(5985),
            "winrm-https" | "winrm-https-pwsh" => Some(5986),
            "http" => Some(80),
            "https" => Some(443),
            "ldap" => Some(389),
            "ldaps" => Some(636),
            "wayk" => Some(12876),
            _ => None,
        }
    }
}

impl From<String> for ApplicationProtocol {
    fn from(name: String) -> Self {
        // In any case: what an issuer writes as "RDP" is not to pass as another protocol.
        match name.to_ascii_lowercase().as_str() {
            "none" => Self::None,
            "wayk" => Self::Wayk,
            "rdp" => Self::Rdp,
            "ssh" => Self::Ssh,
            "vnc" => Self::Vnc,
            _ => Self::Other(name),
        }
    }
}

impl FromStr for ApplicationProtocol {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(name.to_owned().into())
    }
}

impl From<ApplicationProtocol> for String {
    fn from(protocol: ApplicationProtocol) -> Self {
        protocol.as_str().to_owned()
    }
}

impl fmt::Display for ApplicationProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Judges what the client says first.
#[must_use]
pub fn check_client(ap: &ApplicationProtocol, bytes: &[u8]) -> FirstBytes {
    match ap {
        ApplicationProtocol::Rdp => any(bytes, &[X224_CONNECTION_REQUEST, TLS_CLIENT_HELLO]),
        ApplicationProtocol::Ssh => any(bytes, &[SSH]),
        ApplicationProtocol::Vnc => any(bytes, &[RFB]),
        ApplicationProtocol::None | ApplicationProtocol::Wayk | ApplicationProtocol::Other(_) => {
            FirstBytes::Conforms
        }
    }
}

/// Judges what the target says first.
#[must_use]
pub fn check_target(ap: &ApplicationProtocol, bytes: &[u8]) -> FirstBytes {
    match ap {
        ApplicationProtocol::Rdp => any(
            bytes,
            &[X224_CONNECTION_CONFIRM, TLS_SERVER_HELLO, TLS_ALERT],
        ),
        ApplicationProtocol::Ssh => any(bytes, &[SSH]),
        ApplicationProtocol::Vnc => any(bytes, &[RFB]),
        ApplicationProtocol::None | ApplicationProtocol::Wayk | ApplicationProtocol::Other(_) => {
            FirstBytes::Conforms
        }
    }
}

fn any(bytes: &[u8], patterns: &[&[Expected]]) -> FirstBytes {
    FirstBytes::any(patterns.iter().map(|pattern| fit(bytes, pattern)))
}

/// TPKT, length, length indicator, CR.
const X224_CONNECTION_REQUEST: &[Expected] = &[Is(3), Is(0), Any, Any, Any, Is(0xe0)];

/// TPKT, length, length indicator, CC.
const X224_CONNECTION_CONFIRM: &[Expected] = &[Is(3), Is(0), Any, Any, Any, Is(0xd0)];

/// Handshake record of version 3.0 to 3.4, length, client_hello.
const TLS_CLIENT_HELLO: &[Expected] = &[Is(22), Is(3), Within(0, 4), Any, Any, Is(1)];

/// Handshake record, length, server_hello.
const TLS_SERVER_HELLO: &[Expected] = &[Is(22), Is(3), Within(0, 4), Any, Any, Is(2)];

/// Alert record of two bytes.
const TLS_ALERT: &[Expected] = &[Is(21), Is(3), Within(0, 4), Is(0), Is(2)];

const SSH: &[Expected] = &[Is(b'S'), Is(b'S'), Is(b'H'), Is(b'-')];
const RFB: &[Expected] = &[Is(b'R'), Is(b'F'), Is(b'B'), Is(b' ')];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_kept() {
        for name in [
            "none",
            "wayk",
            "rdp",
            "ssh",
            "vnc",
            "winrm-http-pwsh",
            "Telnet",
            "",
        ] {
            let protocol: ApplicationProtocol = name.parse().unwrap();
            assert_eq!(protocol.to_string(), name);
            let json = serde_json::to_string(&protocol).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(
                serde_json::from_str::<ApplicationProtocol>(&json).unwrap(),
                protocol
            );
        }
        assert_eq!("rdp".parse(), Ok(ApplicationProtocol::Rdp));
        assert_eq!(
            "ard".parse(),
            Ok(ApplicationProtocol::Other("ard".to_owned()))
        );
    }

    #[test]
    fn known_names_are_read_in_any_case() {
        for name in ["RDP", "Rdp", "SSH", "Vnc", "NONE", "Wayk"] {
            let protocol: ApplicationProtocol = name.parse().unwrap();
            assert_eq!(protocol.to_string(), name.to_ascii_lowercase());
        }
    }

    #[test]
    fn conforming_first_bytes_are_known_with_the_last_byte_of_the_pattern() {
        let rdp = ApplicationProtocol::Rdp;
        settles(
            |bytes| check_client(&rdp, bytes),
            b"\x03\0\0\x2b\x26\xe0",
            6,
        );
        settles(
            |bytes| check_client(&rdp, bytes),
            b"\x16\x03\x01\x01\x36\x01\0",
            6,
        );
        settles(
            |bytes| check_target(&rdp, bytes),
            b"\x03\0\0\x13\x0e\xd0\0",
            6,
        );
        settles(
            |bytes| check_target(&rdp, bytes),
            b"\x16\x03\x03\0\x7a\x02\0",
            6,
        );
        settles(
            |bytes| check_target(&rdp, bytes),
            b"\x15\x03\x03\0\x02\x02\x28",
            5,
        );
        for (name, banner) in [("ssh", b"SSH-2.0-x"), ("vnc", b"RFB 003.0")] {
            let protocol = name.parse().unwrap();
            settles(|bytes| check_client(&protocol, bytes), banner, 4);
            settles(|bytes| check_target(&protocol, bytes), banner, 4);
        }
    }

    #[test]
    fn other_first_bytes_violate_at_the_first_that_differs() {
        let cases: [(&str, &[u8]); 6] = [
            ("rdp", b"S"),
            ("rdp", b"\x03\x01"),
            // X.224 Data instead of a Connection Request or Confirm.
            ("rdp", b"\x03\0\0\x08\x02\xf0"),
            ("rdp", b"\x16\x03\x05"),
            ("ssh", b"SSH "),
            ("vnc", b"RFC"),
        ];
        for (name, bytes) in cases {
            let protocol = name.parse().unwrap();
            for check in [check_client, check_target] {
                assert_eq!(check(&protocol, bytes), FirstBytes::Violates);
                let before = &bytes[..bytes.len() - 1];
                assert_eq!(check(&protocol, before), FirstBytes::NeedMore);
            }
        }
    }

    #[test]
    fn each_side_has_to_speak_its_own_part() {
        let rdp = ApplicationProtocol::Rdp;
        for bytes in [b"\x03\0\0\x13\x0e\xd0", b"\x16\x03\x03\0\x7a\x02"] {
            assert_eq!(check_client(&rdp, bytes), FirstBytes::Violates);
        }
        for bytes in [b"\x03\0\0\x2b\x26\xe0", b"\x16\x03\x01\x01\x36\x01"] {
            assert_eq!(check_target(&rdp, bytes), FirstBytes::Violates);
        }
    }

    #[test]
    fn protocols_without_a_mark_always_conform() {
        for name in ["none", "wayk", "ard"] {
            let protocol = name.parse().unwrap();
            for bytes in [&b""[..], b"\0", b"GET / HTTP/1.1"] {
                assert_eq!(check_client(&protocol, bytes), FirstBytes::Conforms);
                assert_eq!(check_target(&protocol, bytes), FirstBytes::Conforms);
            }
        }
    }

    fn settles(check: impl Fn(&[u8]) -> FirstBytes, bytes: &[u8], enough: usize) {
        for count in 0..=bytes.len() {
            let expected = if count < enough {
                FirstBytes::NeedMore
            } else {
                FirstBytes::Conforms
            };
            assert_eq!(check(&bytes[..count]), expected, "{count} bytes");
        }
    }
}
