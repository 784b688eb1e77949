//! The answer to a Connection Request: the target's, and ours when a client is refused.
//!
//! Implements the X.224 Connection Confirm of [MS-RDPBCGR] 2.2.1.2:
//!
//! ```text
//! TPKT 03 00 length u16 BE | LI | D0 | DST-REF 00 00 | SRC-REF u16 | CLASS
//! RDP_NEG_RSP     02 flags 08 00 selectedProtocol u32 LE, or
//! RDP_NEG_FAILURE 03 00    08 00 failureCode u32 LE, or nothing
//! ```
//!
//! A frame has 11 or 19 bytes; anything else is refused, at the latest above
//! [`limits::CONNECTION_CONFIRM_BYTES`].
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/13757f8f-66db-4273-9d2c-385c33b1e483

use super::{FrameError, decode_frame, encode_frame};
use jetway_base::limits;

/// [MS-RDPBCGR] 2.2.1.2 Server X.224 Connection Confirm PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionConfirm {
    /// [MS-RDPBCGR] 2.2.1.2.1 RDP Negotiation Response (RDP_NEG_RSP).
    Selected {
        /// `flags` as they came.
        flags: u8,
        /// `selectedProtocol`: one of the `PROTOCOL_*` values of [`connection_request`](super::connection_request).
        protocol: u32,
    },
    /// [MS-RDPBCGR] 2.2.1.2.2 RDP Negotiation Failure (RDP_NEG_FAILURE).
    Failure {
        /// `failureCode` as it came; see [`FailureCode`].
        code: u32,
    },
    /// No negotiation data: RDP's own security.
    Plain,
}

impl ConnectionConfirm {
    /// The frame to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = |kind: u8, flags: u8, value: u32| {
            let [a, b, c, d] = value.to_le_bytes();
            [kind, flags, 0x08, 0x00, a, b, c, d]
        };
        let frame = match *self {
            Self::Selected { flags, protocol } => {
                encode_frame(CODE, SRC_REF, 0, &body(TYPE_RDP_NEG_RSP, flags, protocol))
            }
            Self::Failure { code } => {
                encode_frame(CODE, SRC_REF, 0, &body(TYPE_RDP_NEG_FAILURE, 0, code))
            }
            Self::Plain => encode_frame(CODE, SRC_REF, 0, &[]),
        };
        frame.expect("6 or 14 bytes fit the length indicator")
    }
}

/// [MS-RDPBCGR] 2.2.1.2.2 `failureCode`: why the server ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FailureCode {
    /// SSL_REQUIRED_BY_SERVER.
    SslRequired = 1,
    /// SSL_NOT_ALLOWED_BY_SERVER.
    SslNotAllowed = 2,
    /// SSL_CERT_NOT_ON_SERVER.
    SslCertNotOnServer = 3,
    /// INCONSISTENT_FLAGS.
    InconsistentFlags = 4,
    /// HYBRID_REQUIRED_BY_SERVER.
    HybridRequired = 5,
    /// SSL_WITH_USER_AUTH_REQUIRED_BY_SERVER.
    SslWithUserAuthRequired = 6,
}

impl FailureCode {
    /// The value on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::SslRequired => 1,
            Self::SslNotAllowed => 2,
            Self::SslCertNotOnServer => 3,
            Self::InconsistentFlags => 4,
            Self::HybridRequired => 5,
            Self::SslWithUserAuthRequired => 6,
        }
    }
}

/// The name of a failure code, with its number, for people.
#[must_use]
pub fn failure_name(code: u32) -> String {
    let name = match code {
        1 => "SSL_REQUIRED_BY_SERVER",
        2 => "SSL_NOT_ALLOWED_BY_SERVER",
        3 => "SSL_CERT_NOT_ON_SERVER",
        4 => "INCONSISTENT_FLAGS",
        5 => "HYBRID_REQUIRED_BY_SERVER",
        6 => "SSL_WITH_USER_AUTH_REQUIRED_BY_SERVER",
        _ => return code.to_string(),
    };
    format!("{name} ({code})")
}

/// Why bytes are not a Connection Confirm; the target's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionConfirmError {
    /// The frame around it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A variable part that is neither empty nor eight bytes.
    #[error("variable part of {0} bytes, expected none or 8")]
    Length(usize),
    /// Eight bytes that are neither response nor failure.
    #[error("negotiation data of type {kind:#04x} and length {length}")]
    Negotiation {
        /// The type field.
        kind: u8,
        /// The length field.
        length: u16,
    },
}

/// Decodes the Connection Confirm that `bytes` begin with, and says how many bytes it has; `None` asks for more.
///
/// # Errors
/// As soon as the bytes at hand cannot become a Connection Confirm any more.
///
/// # Examples
/// ```
/// use jetway_rdp::negotiation::{ConnectionConfirm, decode_confirm};
///
/// let wire = b"\x03\x00\x00\x13\x0e\xd0\x00\x00\x12\x34\x00\x02\x1f\x08\x00\x02\x00\x00\x00";
/// let selected = ConnectionConfirm::Selected { flags: 0x1f, protocol: 2 };
/// assert_eq!(decode_confirm(wire), Ok(Some((selected, 19))));
/// ```
pub fn decode_confirm(
    bytes: &[u8],
) -> Result<Option<(ConnectionConfirm, usize)>, ConnectionConfirmError> {
    let Some(frame) = decode_frame(bytes, CODE, limits::CONNECTION_CONFIRM_BYTES)? else {
        return Ok(None);
    };
    let confirm = match *frame.variable {
        [] => ConnectionConfirm::Plain,
        [kind, flags, low, high, a, b, c, d] => {
            let value = u32::from_le_bytes([a, b, c, d]);
            match (kind, u16::from_le_bytes([low, high])) {
                (TYPE_RDP_NEG_RSP, 8) => ConnectionConfirm::Selected {
                    flags,
                    protocol: value,
                },
                (TYPE_RDP_NEG_FAILURE, 8) => ConnectionConfirm::Failure { code: value },
                (kind, length) => {
                    return Err(ConnectionConfirmError::Negotiation { kind, length });
                }
            }
        }
        _ => return Err(ConnectionConfirmError::Length(frame.variable.len())),
    };
    Ok(Some((confirm, frame.length)))
}

/// The refusal a client shows to its user: TPKT, X.224 Connection Confirm, RDP_NEG_FAILURE.
#[must_use]
pub fn encode_failure(code: FailureCode) -> Vec<u8> {
    ConnectionConfirm::Failure { code: code.code() }.encode()
}

/// X.224 Connection Confirm TPDU, no credit.
const CODE: u8 = 0xd0;

/// The value that Windows and xrdp send; clients ignore it.
const SRC_REF: u16 = 0x1234;

const TYPE_RDP_NEG_RSP: u8 = 0x02;
const TYPE_RDP_NEG_FAILURE: u8 = 0x03;

#[cfg(test)]
mod tests {
    use ironrdp_core::decode as ironrdp_decode;
    use ironrdp_pdu::nego;
    use ironrdp_pdu::x224::X224;

    use super::*;

    /// [MS-RDPBCGR] 4.1.2: a server that selected TLS.
    const SELECTED: &[u8] = &[
        0x03, 0x00, 0x00, 0x13, // TPKT, 19 bytes
        0x0e, 0xd0, // LI = 14, Connection Confirm
        0x00, 0x00, 0x12, 0x34, // DST-REF, SRC-REF
        0x00, // CLASS
        0x02, 0x00, 0x08, 0x00, // RDP_NEG_RSP
        0x01, 0x00, 0x00, 0x00, // PROTOCOL_SSL
    ];

    const FAILED: &[u8] = &[
        0x03, 0x00, 0x00, 0x13, // TPKT, 19 bytes
        0x0e, 0xd0, // LI = 14, Connection Confirm
        0x00, 0x00, 0x12, 0x34, // DST-REF, SRC-REF
        0x00, // CLASS
        0x03, 0x00, 0x08, 0x00, // RDP_NEG_FAILURE
        0x05, 0x00, 0x00, 0x00, // HYBRID_REQUIRED_BY_SERVER
    ];

    const PLAIN: &[u8] = b"\x03\x00\x00\x0b\x06\xd0\x00\x00\x12\x34\x00";

    #[test]
    fn golden_frames_are_decoded_and_encoded() {
        let cases = [
            (
                SELECTED,
                ConnectionConfirm::Selected {
                    flags: 0,
                    protocol: 1,
                },
            ),
            (FAILED, ConnectionConfirm::Failure { code: 5 }),
            (PLAIN, ConnectionConfirm::Plain),
        ];
        for (bytes, expected) in cases {
            for count in 0..bytes.len() {
                assert_eq!(decode_confirm(&bytes[..count]), Ok(None), "{count} bytes");
            }
            assert_eq!(decode_confirm(bytes), Ok(Some((expected, bytes.len()))));
            let longer = [bytes, b"\x16\x03"].concat();
            assert_eq!(decode_confirm(&longer), Ok(Some((expected, bytes.len()))));
            assert_eq!(expected.encode(), bytes);
        }
    }

    #[test]
    fn every_failure_code_is_what_ironrdp_reads() {
        for (code, value) in [
            (FailureCode::SslRequired, 1),
            (FailureCode::SslNotAllowed, 2),
            (FailureCode::SslCertNotOnServer, 3),
            (FailureCode::InconsistentFlags, 4),
            (FailureCode::HybridRequired, 5),
            (FailureCode::SslWithUserAuthRequired, 6),
        ] {
            let bytes = encode_failure(code);
            let X224(theirs) = ironrdp_decode::<X224<nego::ConnectionConfirm>>(&bytes).unwrap();
            assert_eq!(
                theirs,
                nego::ConnectionConfirm::Failure {
                    code: nego::FailureCode::from(value)
                }
            );
            assert_eq!(
                decode_confirm(&bytes),
                Ok(Some((ConnectionConfirm::Failure { code: value }, 19)))
            );
        }
    }

    #[test]
    fn what_is_no_confirm_is_refused() {
        let cases: [(&[u8], ConnectionConfirmError); 7] = [
            (b"HTTP", FrameError::Tpkt(b'H').into()),
            (
                b"\x03\x00\x00\x13\x0e\xe0",
                FrameError::Code {
                    actual: 0xe0,
                    expected: 0xd0,
                }
                .into(),
            ),
            (
                b"\x03\x00\x04\x01",
                FrameError::TooLong {
                    length: 1025,
                    limit: 1024,
                }
                .into(),
            ),
            (
                b"\x03\x00\x00\x13\x0d\xd0",
                FrameError::LengthIndicator { li: 13, length: 19 }.into(),
            ),
            (
                b"\x03\x00\x00\x0c\x07\xd0\0\0\0\0\0\x02",
                ConnectionConfirmError::Length(1),
            ),
            (
                b"\x03\x00\x00\x13\x0e\xd0\0\0\0\0\0\x01\0\x08\0\x01\0\0\0",
                ConnectionConfirmError::Negotiation { kind: 1, length: 8 },
            ),
            (
                b"\x03\x00\x00\x13\x0e\xd0\0\0\0\0\0\x02\0\x09\0\x01\0\0\0",
                ConnectionConfirmError::Negotiation { kind: 2, length: 9 },
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode_confirm(bytes), Err(error), "{bytes:02x?}");
        }
    }
}
