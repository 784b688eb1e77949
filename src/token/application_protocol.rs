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

/// What the first bytes of one side show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// They begin the advertised protocol, or no bytes could contradict it; more bytes never change that.
    Conforms,
    /// More bytes decide.
    NeedMore,
    /// They do not begin the advertised protocol; more bytes never change that.
    Violates,
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

/// Judges what the client of a protocol says first that [`check_client`] cannot tell, where no RDP may pass as another protocol: it is
/// nothing that some target takes for the beginning of RDP. TLS at once stays what the token calls it; what the gateway reads inside of
/// TLS is judged likewise.
#[must_use]
pub fn check_no_rdp(bytes: &[u8]) -> FirstBytes {
    match any(bytes, RDP_IN_ANY_FORM) {
        FirstBytes::Conforms => FirstBytes::Violates,
        FirstBytes::NeedMore => FirstBytes::NeedMore,
        FirstBytes::Violates => FirstBytes::Conforms,
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
    let mut answer = FirstBytes::Violates;
    for pattern in patterns {
        let fits = bytes
            .iter()
            .zip(*pattern)
            .all(|(byte, expected)| expected.fits(*byte));
        if fits && bytes.len() >= pattern.len() {
            return FirstBytes::Conforms;
        } else if fits {
            answer = FirstBytes::NeedMore;
        }
    }
    answer
}

/// What targets take for the beginning of RDP, whatever the specifications have them refuse: TPKT with any second byte (it is reserved)
/// around a Connection Request or data, a preconnection PDU with any flags, a PROXY header, and a TSRequest of CredSSP, which comes
/// first inside of direct TLS ([MS-RDPBCGR] 5.4.2.2).
///
/// [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/
const RDP_IN_ANY_FORM: &[&[Expected]] = &[
    &[Is(3), Any, Any, Any, Any, Within(0xe0, 0xff)],
    &[
        Any,
        Any,
        Within(0, 2),
        Is(0),
        Any,
        Any,
        Any,
        Any,
        Within(1, 2),
        Is(0),
        Is(0),
        Is(0),
    ],
    &[Is(b'P'), Is(b'R'), Is(b'O'), Is(b'X'), Is(b'Y'), Is(b' ')],
    &[
        Is(0x0d),
        Is(0x0a),
        Is(0x0d),
        Is(0x0a),
        Is(0),
        Is(0x0d),
        Is(0x0a),
        Is(b'Q'),
    ],
    &[Is(0x30), Within(0, 0x7f), Is(0xa0), Is(3), Is(2), Is(1)],
    &[Is(0x30), Is(0x81), Any, Is(0xa0), Is(3), Is(2), Is(1)],
    &[Is(0x30), Is(0x82), Any, Any, Is(0xa0), Is(3), Is(2), Is(1)],
    &[
        Is(0x30),
        Is(0x83),
        Any,
        Any,
        Any,
        Is(0xa0),
        Is(3),
        Is(2),
        Is(1),
    ],
    &[
        Is(0x30),
        Is(0x84),
        Any,
        Any,
        Any,
        Any,
        Is(0xa0),
        Is(3),
        Is(2),
        Is(1),
    ],
];

/// One byte of a pattern.
#[derive(Clone, Copy)]
enum Expected {
    Is(u8),
    Within(u8, u8),
    Any,
}

impl Expected {
    fn fits(self, byte: u8) -> bool {
        match self {
            Self::Is(value) => byte == value,
            Self::Within(least, most) => (least..=most).contains(&byte),
            Self::Any => true,
        }
    }
}

use Expected::{Any, Is, Within};

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
    fn rdp_is_known_in_whatever_form_a_target_takes_it() {
        let forms: [&[u8]; 9] = [
            &[3, 0, 0, 11, 6, 0xe0],
            &[3, 1, 0, 11, 6, 0xe1],
            &[3, 0xff, 0, 11, 2, 0xf0],
            &[16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            &[80, 1, 1, 0, 9, 9, 9, 9, 2, 0, 0, 0],
            b"PROXY ",
            b"\r\n\r\n\0\r\nQ",
            &[0x30, 0x37, 0xa0, 3, 2, 1],
            &[0x30, 0x82, 1, 9, 0xa0, 3, 2, 1],
        ];
        for form in forms {
            for end in 0..form.len() {
                assert_eq!(check_no_rdp(&form[..end]), FirstBytes::NeedMore, "{form:?}");
            }
            assert_eq!(check_no_rdp(form), FirstBytes::Violates, "{form:?}");
        }
        // FTP, TLS, a BindRequest of LDAP, HTTP, SSH.
        let others: [&[u8]; 6] = [
            b"USER you",
            &[22, 3, 1, 0, 5, 1, 0, 0, 1, 3, 3],
            &[0x30, 0x0c, 2, 1, 1],
            b"GET / HTTP/1.1",
            b"SSH-2.0-",
            b"PUT / HTTP/1.1",
        ];
        for other in others {
            assert_eq!(check_no_rdp(other), FirstBytes::Conforms, "{other:?}");
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
