//! Which protocol do these first bytes begin?
//!
//! One port takes every protocol, so the first bytes decide. Two bytes are not enough: an RDP preconnection PDU of
//! 790 bytes begins `16 03 00 00`, as a TLS record of SSL 3.0 might. The answer is given with the fewest bytes that
//! rule out every other protocol:
//!
//! | protocol | bytes that decide |
//! |---|---|
//! | X.224 in TPKT ([T.123] 8) | `03 00`: as `cbSize` this would be 3, 65,539 or 131,075, none of which is accepted |
//! | TLS record ([RFC 8446] 5.1) | `16 03 02` to `16 03 04`; `16 03 00` and `16 03 01` with a length that is not zero in byte 4 or, for what no `cbSize` can be, in byte 3 |
//! | preconnection PDU ([MS-RDPEPS] 2.2.1) | a `cbSize` from 16 to what `cchPCB` can name, and `Flags` of zero: 8 bytes |
//! | `JET\0` | 4 bytes |
//! | HTTP/1.1, HTTP/2 with prior knowledge | a method and its space |
//! | PROXY protocol | `PROXY ` or the 12 bytes of version 2 |
//!
//! Version 1 of the preconnection PDU and sizes above the limit are recognised too, so that the refusal can say what
//! was wrong. Nothing is validated beyond recognition: that is the work of the decoder of each protocol.
//!
//! [T.123]: https://www.itu.int/rec/T-REC-T.123
//! [RFC 8446]: https://www.rfc-editor.org/rfc/rfc8446#section-5.1
//! [MS-RDPEPS]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpeps/

/// A protocol that a connection may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preamble {
    /// PROXY protocol, version 1 or 2.
    ProxyProtocol,
    /// RDP preconnection PDU, version 1 or 2.
    PreconnectionPdu,
    /// X.224 in TPKT: a Connection Request, if it is RDP.
    X224,
    /// A TLS handshake record.
    Tls,
    /// An HTTP request.
    Http,
    /// A JET packet.
    Jet,
}

/// What is known of the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognition {
    /// They begin this protocol; more bytes never change that.
    Known(Preamble),
    /// They may begin several protocols; more bytes decide.
    NeedMore,
    /// They begin none; more bytes never change that.
    Unknown,
}

/// Tells which protocol `bytes` begin.
///
/// # Examples
/// ```
/// use jetway_entry::preamble::{Preamble, Recognition, recognise};
///
/// assert_eq!(recognise(b"\x16\x03"), Recognition::NeedMore);
/// assert_eq!(recognise(b"\x16\x03\x03"), Recognition::Known(Preamble::Tls));
/// assert_eq!(
///     recognise(b"\x16\x03\x00\x00\x00\x00\x00\x00"),
///     Recognition::Known(Preamble::PreconnectionPdu)
/// );
/// ```
#[must_use]
pub fn recognise(bytes: &[u8]) -> Recognition {
    // INVARIANT: no two rules ever match the same bytes, and a rule that matched or failed does so for all longer
    // bytes. That makes the order irrelevant and the answer final.
    let mut undecided = false;
    for (preamble, rule) in RULES {
        match rule(bytes) {
            Fit::Yes => return Recognition::Known(preamble),
            Fit::Maybe => undecided = true,
            Fit::No => {}
        }
    }
    if undecided {
        Recognition::NeedMore
    } else {
        Recognition::Unknown
    }
}

/// Tells how a connection goes on behind a preconnection PDU: by X.224, by TLS at once, or by something else. Nothing else needs to be
/// told apart there, so one byte may be enough to know that it is neither.
///
/// # Examples
/// ```
/// use jetway_entry::preamble::{Preamble, Recognition, recognise_behind};
///
/// assert_eq!(recognise_behind(b"\x16\x03\x01"), Recognition::Known(Preamble::Tls));
/// assert_eq!(recognise_behind(b"\x03"), Recognition::NeedMore);
/// assert_eq!(recognise_behind(b"G"), Recognition::Unknown);
/// ```
#[must_use]
pub fn recognise_behind(bytes: &[u8]) -> Recognition {
    match *bytes {
        [] | [0x03] | [0x16] | [0x16, 0x03] => Recognition::NeedMore,
        // The second byte of TPKT is reserved, and targets take any.
        [0x03, _, ..] => Recognition::Known(Preamble::X224),
        [0x16, 0x03, 0x00..=0x04, ..] => Recognition::Known(Preamble::Tls),
        _ => Recognition::Unknown,
    }
}

/// How bytes fit one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    Maybe,
    No,
}

type Rule = fn(&[u8]) -> Fit;

const RULES: [(Preamble, Rule); 6] = [
    (Preamble::X224, x224),
    (Preamble::Tls, tls),
    (Preamble::PreconnectionPdu, preconnection_pdu),
    (Preamble::Jet, jet),
    (Preamble::Http, http),
    (Preamble::ProxyProtocol, proxy_protocol),
];

fn x224(bytes: &[u8]) -> Fit {
    literal(bytes, &[0x03, 0x00])
}

fn jet(bytes: &[u8]) -> Fit {
    literal(bytes, b"JET\0")
}

fn http(bytes: &[u8]) -> Fit {
    any_literal(bytes, &HTTP_METHODS)
}

fn proxy_protocol(bytes: &[u8]) -> Fit {
    any_literal(bytes, &[b"PROXY ", PROXY_V2_SIGNATURE])
}

/// A handshake record: content type 22, version 3.x, a length that is not zero.
fn tls(bytes: &[u8]) -> Fit {
    match *bytes {
        [] | [0x16] | [0x16, 0x03] => Fit::Maybe,
        // As `cbSize` at least 131,862: more than `cchPCB` can name.
        [0x16, 0x03, 0x02..=0x04, ..] => Fit::Yes,
        // As `cbSize` 790 or 66,326 while byte 3 is zero. A record is not empty, `Flags` are zero: byte 4 decides.
        [0x16, 0x03, 0x00 | 0x01] | [0x16, 0x03, 0x00 | 0x01, 0x00] => Fit::Maybe,
        [0x16, 0x03, 0x00 | 0x01, 0x00, 0x00, ..] => Fit::No,
        [0x16, 0x03, 0x00 | 0x01, ..] => Fit::Yes,
        _ => Fit::No,
    }
}

/// `cbSize` in the range that version 1 or 2 can have, and `Flags` of zero.
///
/// The specification has the receiver ignore `Flags`, but it also has the sender set them to zero, and without them
/// a PDU of 790 bytes and a TLS record could not be told apart.
fn preconnection_pdu(bytes: &[u8]) -> Fit {
    if x224(bytes) == Fit::Yes {
        return Fit::No;
    }
    // Missing bytes are taken as zero for the upper bound and not judged at all for the lower one.
    let byte = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let cb_size = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
    let beyond = byte(3) != 0 || byte(2) > 2 || (bytes.len() >= 3 && cb_size > CB_SIZE_MAX);
    let below = bytes.len() >= 4 && cb_size < CB_SIZE_MIN;
    let flagged = bytes.iter().skip(4).take(4).any(|&flags| flags != 0);
    if beyond || below || flagged {
        Fit::No
    } else if bytes.len() < 8 {
        Fit::Maybe
    } else {
        Fit::Yes
    }
}

fn any_literal(bytes: &[u8], texts: &[&[u8]]) -> Fit {
    let mut fit = Fit::No;
    for text in texts {
        match literal(bytes, text) {
            Fit::Yes => return Fit::Yes,
            Fit::Maybe => fit = Fit::Maybe,
            Fit::No => {}
        }
    }
    fit
}

fn literal(bytes: &[u8], text: &[u8]) -> Fit {
    if bytes.starts_with(text) {
        Fit::Yes
    } else if text.starts_with(bytes) {
        Fit::Maybe
    } else {
        Fit::No
    }
}

/// `cbSize` of version 1 ([MS-RDPEPS] 2.2.1.1).
const CB_SIZE_MIN: u32 = 16;

/// `cbSize` of version 2 with the largest `cchPCB`: 18 + 2 * 65,535 ([MS-RDPEPS] 2.2.1.2).
const CB_SIZE_MAX: u32 = 131_088;

/// The first twelve bytes of PROXY protocol version 2.
const PROXY_V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The methods that are answered, if only by saying that a method is not allowed; `PRI` opens HTTP/2.
const HTTP_METHODS: [&[u8]; 10] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"PATCH ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI * HTTP/2",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PCB_790: &[u8] = b"\x16\x03\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00";

    #[test]
    fn each_protocol_is_recognised_with_as_few_bytes_as_can_be() {
        let cases: [(&[u8], usize, Preamble); 16] = [
            (b"\x03\x00\x00\x2b\x26\xe0\0\0\0\0\0", 2, Preamble::X224),
            (b"\x03\x00\x01\x00\xfb\xe0\0\0\0\0\0", 2, Preamble::X224),
            (
                b"\x16\x03\x01\x01\x36\x01\x00\x01\x32\x03\x03",
                4,
                Preamble::Tls,
            ),
            (
                b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03",
                5,
                Preamble::Tls,
            ),
            (b"\x16\x03\x00\x00\x2d\x01\x00\x00\x29", 5, Preamble::Tls),
            (b"\x16\x03\x03\x00\xf4\x01\x00\x00\xf0", 3, Preamble::Tls),
            (PCB_790, 8, Preamble::PreconnectionPdu),
            (
                b"\x10\0\0\0\0\0\0\0\x01\0\0\0\x2a\0\0\0",
                8,
                Preamble::PreconnectionPdu,
            ),
            (
                b"\x16\x03\x01\x00\0\0\0\0\x02\0\0\0",
                8,
                Preamble::PreconnectionPdu,
            ),
            (
                b"\x10\x00\x02\x00\0\0\0\0\x02\0\0\0",
                8,
                Preamble::PreconnectionPdu,
            ),
            (b"JET\0\0\x13\x77\0", 4, Preamble::Jet),
            (b"GET /jet/health HTTP/1.1\r\n", 4, Preamble::Http),
            (b"PUT / HTTP/1.1\r\n", 4, Preamble::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 12, Preamble::Http),
            (b"PROXY TCP4 192.0.2.1 ", 6, Preamble::ProxyProtocol),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
                12,
                Preamble::ProxyProtocol,
            ),
        ];
        for (bytes, enough, preamble) in cases {
            for count in 0..enough {
                assert_eq!(
                    recognise(&bytes[..count]),
                    Recognition::NeedMore,
                    "{count} of {bytes:02x?}"
                );
            }
            for count in enough..=bytes.len() {
                assert_eq!(
                    recognise(&bytes[..count]),
                    Recognition::Known(preamble),
                    "{count} of {bytes:02x?}"
                );
            }
        }
    }

    #[test]
    fn what_begins_no_protocol_is_unknown() {
        let cases: [&[u8]; 9] = [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"RFB 003.008\n",
            b"BREW /pot HTTP/1.1\r\n",
            b"get / HTTP/1.1\r\n",
            b"JET\x01\0\0\0\0",
            // Flags that are not zero; an empty record; sizes 15 and 131,089; alert instead of handshake.
            b"\x3e\0\0\0\x01\0\0\0\x02\0\0\0",
            b"\x0f\0\0\0\0\0\0\0\x01\0\0\0",
            b"\x11\x00\x02\x00\0\0\0\0\x02\0\0\0",
            b"\x15\x03\x03\0\x02\x02\x28",
        ];
        for bytes in cases {
            assert_eq!(recognise(bytes), Recognition::Unknown, "{bytes:02x?}");
        }
    }

    #[test]
    fn every_preconnection_pdu_size_is_told_from_tls_and_x224() {
        for cb_size in CB_SIZE_MIN..=CB_SIZE_MAX {
            let mut bytes = [0_u8; 16];
            bytes[..4].copy_from_slice(&cb_size.to_le_bytes());
            bytes[8] = 2;
            let expected = if cb_size & 0xffff == 3 {
                Preamble::X224
            } else {
                Preamble::PreconnectionPdu
            };
            assert_eq!(
                recognise(&bytes),
                Recognition::Known(expected),
                "cbSize {cb_size}"
            );
        }
    }

    #[test]
    fn no_two_rules_match_the_same_bytes() {
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                for third in 0..=5_u8 {
                    for rest in [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 0]] {
                        let mut bytes = vec![first, second, third];
                        bytes.extend(rest);
                        let matches = RULES
                            .iter()
                            .filter(|(_, rule)| rule(&bytes) == Fit::Yes)
                            .count();
                        assert!(matches <= 1, "{bytes:02x?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(bytes in first_bytes()) {
            let mut answer = Recognition::NeedMore;
            for count in 0..=bytes.len() {
                let now = recognise(&bytes[..count]);
                if answer != Recognition::NeedMore {
                    prop_assert_eq!(now, answer);
                }
                answer = now;
            }
            prop_assert!(bytes.len() < 12 || answer != Recognition::NeedMore);
        }
    }

    /// Bytes near the borders: the values that the rules compare with, in any order and number.
    fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(0_u8),
            1_u8..=6,
            Just(0x10),
            Just(0x11),
            Just(0x16),
            prop::sample::select(b"PROXY GETJHAD*/2\r\nQUI\0".to_vec()),
            any::<u8>(),
        ];
        let start = prop_oneof![
            Just(Vec::new()),
            Just(vec![0x16, 0x03]),
            Just(vec![0x03]),
            Just(b"PR".to_vec()),
            Just(b"P".to_vec()),
            Just(b"JE".to_vec()),
            Just(b"\r\n\r".to_vec()),
        ];
        (start, prop::collection::vec(byte, 0..14)).prop_map(|(mut start, rest)| {
            start.extend(rest);
            start
        })
    }
}
