//! The X.224 Connection Request: who the client says it is, which security it offers, and the second carrier of a
//! token or ticket (`loadbalanceinfo:s:`).
//!
//! Implements [MS-RDPBCGR] 2.2.1.1:
//!
//! ```text
//! TPKT 03 00 length u16 BE | LI | E0 | DST-REF 00 00 | SRC-REF u16 | CLASS
//! routingToken CR LF, or "Cookie: mstshash=" IDENTIFIER CR LF      (both optional)
//! RDP_NEG_REQ              01 flags 08 00 requestedProtocols u32 LE (optional)
//! RDP_NEG_CORRELATION_INFO 06 00 24 00 correlationId[16] reserved[16] (with flag 08)
//! ```
//!
//! What real clients send is wider than that, and read here:
//!
//! - A routing token has any shape: a JWT, a ticket, `tsv://...`, `Cookie: msts=...`. Nothing but a control character
//!   is refused in it. It may lack CR LF: the negotiation request is found from the end of the frame, where its type
//!   and length are characters that no text has.
//! - LI wraps where the token is longer than 238 bytes; TPKT decides.
//! - Token and `mstshash` may both be there, in either order; the specification allows one of them.
//! - ActiveX wants its string of even length: spaces or NULs at the end of a routing token are padding. Callers that
//!   end the token with CR LF themselves leave an empty line; empty lines are skipped.
//!
//! What is written is what real servers take: one of token and `mstshash`, and an LI that does not wrap.
//!
//! A frame has at most [`limits::CONNECTION_REQUEST_BYTES`]. This file reads the PDU itself because the decoder of
//! `ironrdp-pdu` refuses routing tokens that do not begin with `Cookie: `.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/18a27ef9-6f9a-4501-b000-94b1fe3c2c10

use std::fmt;

use zeroize::Zeroizing;

use super::{FrameError, decode_frame, encode_frame};
use jetway_base::limits;

/// [MS-RDPBCGR] 2.2.1.1 Client X.224 Connection Request PDU.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectionRequest {
    /// `routingToken` without CR LF and padding; it may be a token or ticket and is not printed by `Debug`.
    pub routing_token: Option<Zeroizing<Vec<u8>>>,
    /// `IDENTIFIER` of `Cookie: mstshash=`: a user name, cut to 9 characters by some clients.
    ///
    /// The specification names no encoding, so each character stands for one byte (U+0000 to U+00FF) and the target
    /// gets the bytes that the client sent.
    pub mstshash: Option<String>,
    /// `rdpNegReq`.
    pub negotiation: Option<NegotiationRequest>,
    /// `rdpCorrelationInfo` with its header; only together with a negotiation request that has the flag for it.
    pub correlation_info: Option<[u8; 36]>,
    /// SRC-REF of X.224; zero in RDP, kept as it came.
    pub src_ref: u16,
    /// CLASS OPTION of X.224; zero in RDP, kept as it came.
    pub class: u8,
}

impl ConnectionRequest {
    /// Removes the routing token, so that the target does not see it.
    pub fn take_routing_token(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        self.routing_token.take()
    }

    /// The frame to send.
    ///
    /// # Errors
    /// Where a field has no place in a valid frame, or one byte of LI cannot name the length.
    pub fn encode(&self) -> Result<Vec<u8>, ConnectionRequestError> {
        let mut variable = Zeroizing::new(Vec::with_capacity(LI_MAX));
        match (&self.routing_token, &self.mstshash) {
            (Some(_), Some(_)) => return Err(ConnectionRequestError::TokenAndCookie),
            (Some(token), None) => {
                check_token(token)?;
                // Before the buffer grows and leaves a copy behind.
                if token.len() > LI_MAX {
                    return Err(ConnectionRequestError::TooLong(token.len()));
                }
                variable.extend_from_slice(token);
                variable.extend(CR_LF);
            }
            (None, Some(identifier)) => {
                let identifier =
                    latin1_bytes(identifier).ok_or(ConnectionRequestError::Mstshash)?;
                check_mstshash(&identifier)?;
                variable.extend(MSTSHASH_PREFIX);
                variable.extend(identifier);
                variable.extend(CR_LF);
            }
            (None, None) => {}
        }
        let announced = self
            .negotiation
            .is_some_and(|negotiation| negotiation.has(CORRELATION_INFO_PRESENT));
        if announced != self.correlation_info.is_some() {
            return Err(ConnectionRequestError::CorrelationInfo);
        }
        if let Some(negotiation) = self.negotiation {
            variable.extend(negotiation.to_bytes());
        }
        if let Some(info) = self.correlation_info {
            if !info.starts_with(&CORRELATION_INFO_HEADER) {
                return Err(ConnectionRequestError::CorrelationInfo);
            }
            variable.extend(info);
        }
        encode_frame(CODE, self.src_ref, self.class, &variable)
            .ok_or(ConnectionRequestError::TooLong(variable.len()))
    }
}

impl fmt::Debug for ConnectionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.routing_token.as_ref().map(|token| Hidden(token.len()));
        f.debug_struct("ConnectionRequest")
            .field("routing_token", &hidden)
            .field("mstshash", &self.mstshash)
            .field("negotiation", &self.negotiation)
            .field("correlation_info", &self.correlation_info.map(hex::encode))
            .field("src_ref", &self.src_ref)
            .field("class", &self.class)
            .finish()
    }
}

/// [MS-RDPBCGR] 2.2.1.1.1 RDP Negotiation Request (RDP_NEG_REQ).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NegotiationRequest {
    /// `flags` as they came: [`RESTRICTED_ADMIN_MODE_REQUIRED`] and the like.
    pub flags: u8,
    /// `requestedProtocols` as they came: [`PROTOCOL_SSL`] and the like; zero is RDP's own security.
    pub requested_protocols: u32,
}

impl NegotiationRequest {
    /// Are all bits of `flag` set?
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag == flag
    }

    /// Does the client offer all protocols of `protocol`?
    #[must_use]
    pub fn offers(&self, protocol: u32) -> bool {
        self.requested_protocols & protocol == protocol
    }

    fn from_bytes(bytes: [u8; NEGOTIATION_BYTES]) -> Option<Self> {
        match bytes {
            [TYPE_RDP_NEG_REQ, flags, 0x08, 0x00, a, b, c, d] => Some(Self {
                flags,
                requested_protocols: u32::from_le_bytes([a, b, c, d]),
            }),
            _ => None,
        }
    }

    fn to_bytes(self) -> [u8; NEGOTIATION_BYTES] {
        let [a, b, c, d] = self.requested_protocols.to_le_bytes();
        [TYPE_RDP_NEG_REQ, self.flags, 0x08, 0x00, a, b, c, d]
    }
}

/// `flags`: the client sends no credentials; Restricted Admin.
pub const RESTRICTED_ADMIN_MODE_REQUIRED: u8 = 0x01;
/// `flags`: the client sends no credentials; Remote Credential Guard.
pub const REDIRECTED_AUTHENTICATION_MODE_REQUIRED: u8 = 0x02;
/// `flags`: correlation information follows.
pub const CORRELATION_INFO_PRESENT: u8 = 0x08;

/// `requestedProtocols`: TLS.
pub const PROTOCOL_SSL: u32 = 0x01;
/// `requestedProtocols`: CredSSP.
pub const PROTOCOL_HYBRID: u32 = 0x02;
/// `requestedProtocols`: RDSTLS.
pub const PROTOCOL_RDSTLS: u32 = 0x04;
/// `requestedProtocols`: CredSSP and the Early User Authorization Result PDU.
pub const PROTOCOL_HYBRID_EX: u32 = 0x08;
/// `requestedProtocols`: Entra authentication.
pub const PROTOCOL_RDSAAD: u32 = 0x10;

/// Why bytes are not a Connection Request, or a value cannot be made one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionRequestError {
    /// The client's: the frame around it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The client's: a control character where the routing token should be, which also stands for X.224 parameters
    /// and for a malformed negotiation request.
    #[error("routing token has a control character")]
    RoutingToken,
    /// The client's: a control character, or one that is not one byte.
    #[error("mstshash has a character that no cookie has")]
    Mstshash,
    /// The client's: more than one routing token or `mstshash`.
    #[error("more than one {0}")]
    Repeated(&'static str),
    /// The client's: its flag without the structure, or the structure without its flag.
    #[error("correlation info and its flag do not agree")]
    CorrelationInfo,
    /// Ours: a request to be sent has one of them at most.
    #[error("routing token and mstshash exclude each other")]
    TokenAndCookie,
    /// Ours: the LI of what is to be sent would wrap.
    #[error("variable part of {0} bytes does not fit the X.224 length indicator")]
    TooLong(usize),
}

/// Decodes the Connection Request that `bytes` begin with, and says how many bytes it has; `None` asks for more.
///
/// # Errors
/// As soon as the bytes at hand cannot become a Connection Request any more.
///
/// # Examples
/// ```
/// use jetway_rdp::connection_request;
///
/// let wire = b"\x03\x00\x00\x1b\x16\xe0\x00\x00\x00\x00\x00ticket\r\n\x01\x00\x08\x00\x03\x00\x00\x00";
/// let (mut request, consumed) = connection_request::decode(wire)?.expect("complete");
/// assert_eq!(consumed, wire.len());
/// assert_eq!(request.take_routing_token().unwrap().as_slice(), b"ticket");
/// assert_eq!(
///     request.encode()?,
///     b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"
/// );
/// # Ok::<(), connection_request::ConnectionRequestError>(())
/// ```
pub fn decode(bytes: &[u8]) -> Result<Option<(ConnectionRequest, usize)>, ConnectionRequestError> {
    let Some(frame) = decode_frame(bytes, CODE, limits::CONNECTION_REQUEST_BYTES)? else {
        return Ok(None);
    };
    let Split {
        text,
        negotiation,
        correlation_info,
    } = split_negotiation(frame.variable)?;
    let mut request = ConnectionRequest {
        routing_token: None,
        mstshash: None,
        negotiation,
        correlation_info,
        src_ref: frame.src_ref,
        class: frame.class,
    };
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = split_line(rest);
        rest = after;
        read_line(line, &mut request)?;
    }
    Ok(Some((request, frame.length)))
}

/// The variable part: text, then the two structures.
struct Split<'a> {
    text: &'a [u8],
    negotiation: Option<NegotiationRequest>,
    correlation_info: Option<[u8; CORRELATION_INFO_BYTES]>,
}

/// Splits what follows the text from the text. It has to be found from the end, since the text may lack CR LF; it is
/// found surely, since no text holds the types `01` and `06`.
fn split_negotiation(variable: &[u8]) -> Result<Split<'_>, ConnectionRequestError> {
    if let Some((head, info)) = variable.split_last_chunk::<CORRELATION_INFO_BYTES>()
        && info.starts_with(&CORRELATION_INFO_HEADER)
        && let Some((text, negotiation)) = head.split_last_chunk()
        && let Some(negotiation) = NegotiationRequest::from_bytes(*negotiation)
    {
        return if negotiation.has(CORRELATION_INFO_PRESENT) {
            Ok(Split {
                text,
                negotiation: Some(negotiation),
                correlation_info: Some(*info),
            })
        } else {
            Err(ConnectionRequestError::CorrelationInfo)
        };
    }
    if let Some((text, negotiation)) = variable.split_last_chunk()
        && let Some(negotiation) = NegotiationRequest::from_bytes(*negotiation)
    {
        return if negotiation.has(CORRELATION_INFO_PRESENT) {
            Err(ConnectionRequestError::CorrelationInfo)
        } else {
            Ok(Split {
                text,
                negotiation: Some(negotiation),
                correlation_info: None,
            })
        };
    }
    Ok(Split {
        text: variable,
        negotiation: None,
        correlation_info: None,
    })
}

/// The first line without CR LF, and what follows it.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes
        .windows(CR_LF.len())
        .position(|pair| pair == CR_LF)
        .and_then(|end| Some((bytes.get(..end)?, bytes.get(end.checked_add(2)?..)?)))
        .unwrap_or((bytes, &[]))
}

fn read_line(line: &[u8], request: &mut ConnectionRequest) -> Result<(), ConnectionRequestError> {
    if let Some(identifier) = line.strip_prefix(MSTSHASH_PREFIX) {
        check_mstshash(identifier)?;
        let identifier = identifier.iter().copied().map(char::from).collect();
        if request.mstshash.replace(identifier).is_some() {
            return Err(ConnectionRequestError::Repeated("mstshash"));
        }
        return Ok(());
    }
    let token = trim_padding(line);
    if token.is_empty() {
        return Ok(());
    }
    check_token(token)?;
    let token = Zeroizing::new(token.to_vec());
    if request.routing_token.replace(token).is_some() {
        return Err(ConnectionRequestError::Repeated("routing token"));
    }
    Ok(())
}

fn trim_padding(line: &[u8]) -> &[u8] {
    let end = line
        .iter()
        .rposition(|byte| !matches!(byte, 0 | b' '))
        .map_or(0, |last| last.saturating_add(1));
    line.get(..end).unwrap_or_default()
}

/// A text that reads back as the same routing token.
fn check_token(token: &[u8]) -> Result<(), ConnectionRequestError> {
    let reads_back = !token.is_empty()
        && trim_padding(token).len() == token.len()
        && !token.starts_with(MSTSHASH_PREFIX);
    if reads_back && !token.iter().any(u8::is_ascii_control) {
        Ok(())
    } else {
        Err(ConnectionRequestError::RoutingToken)
    }
}

fn check_mstshash(identifier: &[u8]) -> Result<(), ConnectionRequestError> {
    if identifier.iter().any(u8::is_ascii_control) {
        Err(ConnectionRequestError::Mstshash)
    } else {
        Ok(())
    }
}

fn latin1_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars()
        .map(|character| u8::try_from(character).ok())
        .collect()
}

/// A secret in `Debug` output: its length only.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes, not shown>", self.0)
    }
}

/// X.224 Connection Request TPDU, no credit.
const CODE: u8 = 0xe0;

const CR_LF: &[u8] = b"\r\n";
const MSTSHASH_PREFIX: &[u8] = b"Cookie: mstshash=";

const TYPE_RDP_NEG_REQ: u8 = 0x01;
const NEGOTIATION_BYTES: usize = 8;

/// [MS-RDPBCGR] 2.2.1.1.2 RDP Correlation Info (RDP_NEG_CORRELATION_INFO): type, flags, length.
const CORRELATION_INFO_HEADER: [u8; 4] = [0x06, 0x00, 0x24, 0x00];
const CORRELATION_INFO_BYTES: usize = 36;

/// The largest length indicator; 255 is reserved.
const LI_MAX: usize = 254;

#[cfg(test)]
mod tests {
    use ironrdp_core::decode as ironrdp_decode;
    use ironrdp_pdu::nego::{self, NegoRequestData};
    use ironrdp_pdu::x224::X224;

    use super::*;

    /// xfreerdp 2.11 as user `u`.
    const FREERDP: &[u8] = &[
        0x03, 0x00, 0x00, 0x27, // TPKT, 39 bytes
        0x22, 0xe0, // LI = 34, Connection Request
        0x00, 0x00, 0x00, 0x00, // DST-REF, SRC-REF
        0x00, // CLASS
        0x43, 0x6f, 0x6f, 0x6b, 0x69, 0x65, 0x3a, 0x20, // "Cookie: "
        0x6d, 0x73, 0x74, 0x73, 0x68, 0x61, 0x73, 0x68, 0x3d, // "mstshash="
        0x75, 0x0d, 0x0a, // "u" CR LF
        0x01, 0x00, 0x08, 0x00, // RDP_NEG_REQ
        0x03, 0x00, 0x00, 0x00, // SSL and HYBRID
    ];

    /// mstsc with `loadbalanceinfo:s:tsv://MS Terminal Services Plugin.1.99999`.
    const MSTSC: &[u8] = b"\x03\x00\x00\x3e\x39\xe0\x00\x00\x00\x00\x00\
        tsv://MS Terminal Services Plugin.1.99999\r\n\x01\x00\x08\x00\x0b\x00\x00\x00";

    const NEGOTIATION: &[u8] = b"\x01\x00\x08\x00\x03\x00\x00\x00";

    #[test]
    fn freerdp_frame_is_decoded_and_encoded_to_the_same_bytes() {
        let request = complete(FREERDP);
        assert_eq!(request.mstshash.as_deref(), Some("u"));
        assert_eq!(request.routing_token, None);
        assert_eq!(request.negotiation, Some(negotiation(0, 3)));
        assert_eq!(request.encode().unwrap(), FREERDP);
    }

    #[test]
    fn mstsc_frame_is_decoded_and_encoded_to_the_same_bytes() {
        let request = complete(MSTSC);
        assert_eq!(
            routing_token(&request),
            Some("tsv://MS Terminal Services Plugin.1.99999")
        );
        assert_eq!(request.negotiation, Some(negotiation(0, 0x0b)));
        assert!(request.negotiation.unwrap().offers(PROTOCOL_HYBRID_EX));
        assert_eq!(request.encode().unwrap(), MSTSC);
    }

    #[test]
    fn routing_token_has_any_shape() {
        for token in [
            "eyJhbGciOiJFZERTQSJ9.e30.c2ln",
            "b7Yw0aJrV2kqf5hTz8Xn1A",
            "tsv://MS Terminal Services Plugin.1.Sammlung ä",
            "mth://x",
            "Cookie: msts=3640205228.15629.0000",
            "Cookie: somethingelse=1",
            "x",
        ] {
            let request = complete(&frame(&[token.as_bytes(), b"\r\n", NEGOTIATION].concat()));
            assert_eq!(
                request.routing_token.as_ref().unwrap().as_slice(),
                token.as_bytes()
            );
            assert_eq!(request.mstshash, None);
            assert_eq!(request.negotiation, Some(negotiation(0, 3)));
        }
    }

    #[test]
    fn a_routing_token_is_kept_with_its_prefix() {
        let request = complete(&frame(b"Cookie: msts=ticket\r\n"));
        assert_eq!(routing_token(&request), Some("Cookie: msts=ticket"));
    }

    #[test]
    fn token_without_cr_lf_is_split_from_what_follows() {
        let info = correlation_info();
        let flagged = b"\x01\x08\x08\x00\x03\x00\x00\x00";
        // A token that ends like the protocols of a negotiation request, as far as text can.
        for token in [
            &b"eyJ0"[..],
            b"t",
            b"        t",
            b"0123456789abcdef0123456789abcdef01234567",
        ] {
            let request = complete(&frame(&[token, NEGOTIATION].concat()));
            assert_eq!(request.routing_token.as_ref().unwrap().as_slice(), token);
            assert_eq!(request.negotiation, Some(negotiation(0, 3)));

            let request = complete(&frame(&[token, flagged, &info].concat()));
            assert_eq!(request.routing_token.as_ref().unwrap().as_slice(), token);
            assert_eq!(request.negotiation, Some(negotiation(8, 3)));
            assert_eq!(request.correlation_info, Some(info));

            let request = complete(&frame(token));
            assert_eq!(request.routing_token.as_ref().unwrap().as_slice(), token);
            assert_eq!(request.negotiation, None);
        }
    }

    #[test]
    fn protocols_that_look_like_cr_lf_belong_to_the_negotiation() {
        let request = complete(&frame(b"t\x01\x00\x08\x00\x0d\x0a\x0d\x0a"));
        assert_eq!(routing_token(&request), Some("t"));
        assert_eq!(request.negotiation, Some(negotiation(0, 0x0a0d_0a0d)));
    }

    #[test]
    fn token_and_mstshash_are_found_in_either_order() {
        for text in [
            &b"ticket\r\nCookie: mstshash=bob\r\n"[..],
            b"Cookie: mstshash=bob\r\nticket\r\n",
            b"Cookie: mstshash=bob\r\nticket",
            b"ticket\r\nCookie: mstshash=bob",
        ] {
            let mut request = complete(&frame(&[text, NEGOTIATION].concat()));
            assert_eq!(routing_token(&request), Some("ticket"));
            assert_eq!(request.mstshash.as_deref(), Some("bob"));
            assert_eq!(
                request.encode(),
                Err(ConnectionRequestError::TokenAndCookie)
            );

            let token = request.take_routing_token().unwrap();
            assert_eq!(token.as_slice(), b"ticket");
            let onward = complete(&request.encode().unwrap());
            assert_eq!(onward.routing_token, None);
            assert_eq!(onward.mstshash.as_deref(), Some("bob"));
        }
    }

    #[test]
    fn padding_and_empty_lines_of_activex_are_skipped() {
        for text in [
            &b"ticket \r\n"[..],
            b"ticket\r\n\0",
            b"ticket\r\n ",
            b"ticket\0\r\n",
            b"ticket\r\n\r\n",
            b"ticket \r\n\r\n\0",
            b"\r\nticket",
        ] {
            let request = complete(&frame(&[text, NEGOTIATION].concat()));
            assert_eq!(
                routing_token(&request),
                Some("ticket"),
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn wrapped_length_indicator_is_accepted_and_any_other_refused() {
        for chars in [238, 239, 240, 300, 1000, 60_000] {
            let token = vec![b'x'; chars];
            let mut bytes = frame(&[&token, &b"\r\n"[..], NEGOTIATION].concat());
            let (request, _) = decode(&bytes).unwrap().unwrap();
            assert_eq!(request.routing_token.as_ref().unwrap().as_slice(), token);
            match request.encode() {
                Ok(encoded) => assert!(chars == 238 && encoded == bytes),
                Err(error) => assert!(
                    chars > 238 && matches!(error, ConnectionRequestError::TooLong(_)),
                    "{chars}: {error}"
                ),
            }

            bytes[4] = bytes[4].wrapping_add(1);
            let (li, length) = (bytes[4], bytes.len());
            assert_eq!(
                decode(&bytes[..5]),
                Err(FrameError::LengthIndicator { li, length }.into())
            );
        }
    }

    #[test]
    fn negotiation_flags_and_correlation_info_have_to_agree() {
        let error = Err(ConnectionRequestError::CorrelationInfo);
        let info = correlation_info();
        let flagged = b"\x01\x08\x08\x00\x03\x00\x00\x00";
        assert_eq!(decode(&frame(flagged)), error);
        assert_eq!(decode(&frame(&[NEGOTIATION, &info].concat())), error);

        // 36 bytes of something else do not pass for correlation info, and a text does not end in them.
        let mut other = info;
        other[0] = 7;
        assert_eq!(
            decode(&frame(&[flagged, &other[..]].concat())),
            Err(ConnectionRequestError::RoutingToken)
        );

        let mut request = complete(&frame(&[flagged, &info[..]].concat()));
        assert_eq!(complete(&request.encode().unwrap()), request);
        request.correlation_info = None;
        assert_eq!(
            request.encode(),
            Err(ConnectionRequestError::CorrelationInfo)
        );
        request.negotiation = None;
        request.correlation_info = Some(info);
        assert_eq!(
            request.encode(),
            Err(ConnectionRequestError::CorrelationInfo)
        );
    }

    #[test]
    fn frames_that_are_no_connection_request_are_refused_at_once() {
        let cases: [(&[u8], FrameError); 6] = [
            (b"\x16", FrameError::Tpkt(0x16)),
            (b"\x03\x01", FrameError::Tpkt(1)),
            (b"\x03\x00\x00\x0a", FrameError::TooShort(10)),
            (
                b"\x03\x00\x00\x27\x21",
                FrameError::LengthIndicator { li: 33, length: 39 },
            ),
            (
                b"\x03\x00\x00\x27\x22\xd0",
                FrameError::Code {
                    actual: 0xd0,
                    expected: 0xe0,
                },
            ),
            (
                b"\x03\x00\x01\xc3\xbe\xf0",
                FrameError::Code {
                    actual: 0xf0,
                    expected: 0xe0,
                },
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode(&bytes[..bytes.len() - 1]), Ok(None));
            assert_eq!(decode(bytes), Err(error.into()), "{bytes:02x?}");
        }
    }

    #[test]
    fn control_characters_and_repetitions_are_refused() {
        let cases: [(&[u8], ConnectionRequestError); 8] = [
            // A TSAP parameter of X.224, and a negotiation request of wrong length.
            (b"\xc0\x01\x0a", ConnectionRequestError::RoutingToken),
            (
                b"\x01\x00\x09\x00\x03\x00\x00\x00\x01",
                ConnectionRequestError::RoutingToken,
            ),
            // UTF-16, as ActiveX sends it if the string was not packed.
            (b"t\0i\0c\0\r\0\n\0", ConnectionRequestError::RoutingToken),
            (b"tic\nket\r\n", ConnectionRequestError::RoutingToken),
            (
                b"Cookie: mstshash=a\tb\r\n",
                ConnectionRequestError::Mstshash,
            ),
            (
                b"Cookie: mstshash=a\nb\r\n",
                ConnectionRequestError::Mstshash,
            ),
            (
                b"one\r\ntwo\r\n",
                ConnectionRequestError::Repeated("routing token"),
            ),
            (
                b"Cookie: mstshash=a\r\nCookie: mstshash=b\r\n",
                ConnectionRequestError::Repeated("mstshash"),
            ),
        ];
        for (text, error) in cases {
            assert_eq!(decode(&frame(text)), Err(error), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn bytes_of_mstshash_reach_the_target_as_they_came() {
        for name in [
            &b"b\xc3\xb6b"[..],
            b"b\xf6b",
            b"\xe6\xbc\xa2\xe5",
            b"",
            b" ",
            b"DOM\\bob",
        ] {
            let bytes = frame(&[b"Cookie: mstshash=", name, b"\r\n", NEGOTIATION].concat());
            assert_eq!(complete(&bytes).encode().unwrap(), bytes);
        }
    }

    #[test]
    fn what_could_not_be_read_back_is_not_encoded() {
        for token in [
            &b""[..],
            b"a\r\nb",
            b"a ",
            b"a\0",
            b"\x01",
            b"Cookie: mstshash=a",
        ] {
            let request = ConnectionRequest {
                routing_token: Some(token.to_vec().into()),
                ..ConnectionRequest::default()
            };
            assert_eq!(request.encode(), Err(ConnectionRequestError::RoutingToken));
        }
        for name in ["a\r\nb", "漢"] {
            let request = ConnectionRequest {
                mstshash: Some(name.to_owned()),
                ..ConnectionRequest::default()
            };
            assert_eq!(request.encode(), Err(ConnectionRequestError::Mstshash));
        }
    }

    #[test]
    fn ironrdp_reads_what_is_encoded() {
        for (name, negotiation, protocols) in [
            (Some("bob"), Some(negotiation(1, 3)), 3),
            (None, Some(negotiation(0, 0x0b)), 0x0b),
            (Some("bob"), None, 0),
            (None, None, 0),
        ] {
            let request = ConnectionRequest {
                mstshash: name.map(str::to_owned),
                negotiation,
                ..ConnectionRequest::default()
            };
            let bytes = request.encode().unwrap();
            let X224(theirs) = ironrdp_decode::<X224<nego::ConnectionRequest>>(&bytes).unwrap();
            assert_eq!(
                theirs.nego_data,
                name.map(|name| NegoRequestData::cookie(name.to_owned()))
            );
            assert_eq!(theirs.protocol.bits(), protocols);
        }
    }

    #[test]
    fn debug_does_not_print_the_token() {
        let printed = format!("{:?}", complete(&frame(b"eyJsecret\r\n")));
        assert!(!printed.contains("secret") && printed.contains("<9 bytes, not shown>"));
        assert!(!printed.contains("101, 121"), "{printed}");
    }

    fn routing_token(request: &ConnectionRequest) -> Option<&str> {
        std::str::from_utf8(request.routing_token.as_ref()?).ok()
    }

    /// Decodes `bytes` at every split, with and without bytes behind them.
    fn complete(bytes: &[u8]) -> ConnectionRequest {
        for count in 0..bytes.len() {
            assert_eq!(decode(&bytes[..count]), Ok(None), "{count} bytes");
        }
        let (request, consumed) = decode(bytes).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        let mut longer = bytes.to_vec();
        longer.extend(b"\x16\x03\x01\r\n");
        assert_eq!(decode(&longer), Ok(Some((request.clone(), consumed))));
        request
    }

    /// A frame around `variable`; LI wraps.
    fn frame(variable: &[u8]) -> Vec<u8> {
        let length = u16::try_from(variable.len() + 11).unwrap();
        let li = u8::try_from((length - 5) % 256).unwrap();
        let mut bytes = vec![3, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([li, 0xe0, 0, 0, 0, 0, 0]);
        bytes.extend(variable);
        bytes
    }

    fn negotiation(flags: u8, requested_protocols: u32) -> NegotiationRequest {
        NegotiationRequest {
            flags,
            requested_protocols,
        }
    }

    fn correlation_info() -> [u8; 36] {
        let mut info = [0; 36];
        info[..4].copy_from_slice(&[6, 0, 0x24, 0]);
        info[4..20].copy_from_slice(b"\x2b\x01\x00\x08\x00\x0d\x0a345678abc");
        info
    }
}
