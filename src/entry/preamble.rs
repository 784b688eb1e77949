//! Which protocol do these first bytes begin?
//!
//! One port takes every protocol, so the first bytes decide. Two bytes are not enough: an RDP preconnection PDU of
//! 790 bytes begins `16 03 00 00`, as a TLS record of SSL 3.0 might. The answer is given with the fewest bytes that
//! rule out every other protocol:
//!
//! | protocol | bytes that decide |
//! |---|---|
//! | X.224 in TPKT ([T.123] 8) | `03 00`: as `cbSize` this would be 3, 65,539 or 131,075, none of which is accepted; behind a preconnection PDU `03` and any byte, as the second one is reserved and targets take any |
//! | TLS record ([RFC 8446] 5.1) | `16 03 02` to `16 03 04`; `16 03 00` and `16 03 01` with a length that is not zero in byte 4 or, for what no `cbSize` can be, in byte 3 |
//! | preconnection PDU ([MS-RDPEPS] 2.2.1) | a `cbSize` from 16 to what `cchPCB` can name, and `Flags` of zero: 8 bytes |
//! | `JET\0` | 4 bytes |
//! | HTTP/1.1, HTTP/2 with prior knowledge | a method and its space |
//! | PROXY protocol | `PROXY ` or the 12 bytes of version 2 |
//!
//! Version 1 of the preconnection PDU and sizes above the limit are recognised too, so that the refusal can say what
//! was wrong. Nothing is validated beyond recognition: that is the work of the decoder of each protocol.
//!
//! Receivers of RDP are less strict, and what they take for its beginning is known here as well: [`check_no_rdp`], [`recognise_late`].
//!
//! [T.123]: https://www.itu.int/rec/T-REC-T.123
//! [RFC 8446]: https://www.rfc-editor.org/rfc/rfc8446#section-5.1
//! [MS-RDPEPS]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpeps/

use jetway_token::first_bytes::Expected::{Any, Is, Within};
use jetway_token::first_bytes::{Expected, FirstBytes, fit, fit_text};

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
    by_rules(bytes, &RULES)
}

/// How a connection goes on behind a preconnection PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// By X.224 in TPKT.
    X224,
    /// By a TLS handshake record.
    Tls,
    /// By something else; more bytes never change that.
    Other,
    /// More bytes decide.
    NeedMore,
}

/// Tells how a connection goes on behind a preconnection PDU: by X.224, by TLS at once, or by something else. Nothing else needs to be
/// told apart there, so one byte may be enough to know that it is neither.
///
/// # Examples
/// ```
/// use jetway_entry::preamble::{Behind, recognise_behind};
///
/// assert_eq!(recognise_behind(b"\x16\x03\x01\x01"), Behind::Tls);
/// assert_eq!(recognise_behind(b"\x03"), Behind::NeedMore);
/// assert_eq!(recognise_behind(b"G"), Behind::Other);
/// ```
#[must_use]
pub fn recognise_behind(bytes: &[u8]) -> Behind {
    match *bytes {
        [] | [0x03] => Behind::NeedMore,
        // The second byte of TPKT is reserved, and targets take any.
        [0x03, _, ..] => Behind::X224,
        // It may be another preconnection PDU, of 790 bytes.
        _ => match tls(bytes) {
            FirstBytes::Conforms => Behind::Tls,
            FirstBytes::NeedMore => Behind::NeedMore,
            FirstBytes::Violates => Behind::Other,
        },
    }
}

/// Tells whether a client that was connected before it said anything begins with RDP after all: by X.224 in any form that a target
/// takes, by TLS at once, or by a preconnection PDU or a PROXY header, behind which it may come.
///
/// # Examples
/// ```
/// use jetway_entry::preamble::{Preamble, Recognition, recognise_late};
///
/// assert_eq!(recognise_late(b"\x03\r\n"), Recognition::NeedMore);
/// assert_eq!(recognise_late(b"\x03\r\nls\r\n"), Recognition::Unknown);
/// assert_eq!(recognise_late(b"\x03\x00\x00\x0b\x06\xe0"), Recognition::Known(Preamble::X224));
/// ```
#[must_use]
pub fn recognise_late(bytes: &[u8]) -> Recognition {
    by_rules(bytes, &LATE_RULES)
}

/// Judges what a client says first where no RDP may pass as another protocol: it is nothing that some target takes for the beginning of
/// RDP. TLS at once stays what the token calls it; what the gateway reads inside of TLS is judged likewise.
#[must_use]
pub fn check_no_rdp(bytes: &[u8]) -> FirstBytes {
    match FirstBytes::any(RDP_IN_ANY_FORM.iter().map(|rule| rule(bytes))) {
        FirstBytes::Conforms => FirstBytes::Violates,
        FirstBytes::NeedMore => FirstBytes::NeedMore,
        FirstBytes::Violates => FirstBytes::Conforms,
    }
}

fn by_rules(bytes: &[u8], rules: &[(Preamble, Rule)]) -> Recognition {
    // INVARIANT: no two rules of a table ever match the same bytes, and a rule that matched or failed does so for all longer
    // bytes. That makes the order irrelevant and the answer final.
    let mut undecided = false;
    for (preamble, rule) in rules {
        match rule(bytes) {
            FirstBytes::Conforms => return Recognition::Known(*preamble),
            FirstBytes::NeedMore => undecided = true,
            FirstBytes::Violates => {}
        }
    }
    if undecided {
        Recognition::NeedMore
    } else {
        Recognition::Unknown
    }
}

type Rule = fn(&[u8]) -> FirstBytes;

const RULES: [(Preamble, Rule); 6] = [
    (Preamble::X224, x224),
    (Preamble::Tls, tls),
    (Preamble::PreconnectionPdu, preconnection_pdu),
    (Preamble::Jet, jet),
    (Preamble::Http, http),
    (Preamble::ProxyProtocol, proxy_protocol),
];

const LATE_RULES: [(Preamble, Rule); 4] = [
    (Preamble::X224, x224_in_any_form),
    (Preamble::Tls, tls),
    (Preamble::PreconnectionPdu, preconnection_pdu),
    (Preamble::ProxyProtocol, proxy_protocol),
];

/// What targets take for the beginning of RDP, whatever the specifications have them refuse.
const RDP_IN_ANY_FORM: [Rule; 4] = [
    x224_in_any_form,
    preconnection_pdu_in_any_form,
    proxy_protocol,
    ts_request,
];

fn x224(bytes: &[u8]) -> FirstBytes {
    fit_text(bytes, &[0x03, 0x00])
}

/// TPKT with any second byte (it is reserved) around a Connection Request or data.
fn x224_in_any_form(bytes: &[u8]) -> FirstBytes {
    fit(bytes, &[Is(3), Any, Any, Any, Any, Within(0xe0, 0xff)])
}

fn jet(bytes: &[u8]) -> FirstBytes {
    fit_text(bytes, b"JET\0")
}

fn http(bytes: &[u8]) -> FirstBytes {
    any_text(bytes, &HTTP_METHODS)
}

fn proxy_protocol(bytes: &[u8]) -> FirstBytes {
    any_text(bytes, &[PROXY_V1_WORD, PROXY_V2_SIGNATURE])
}

/// A handshake record: content type 22, version 3.x, a length that is not zero.
fn tls(bytes: &[u8]) -> FirstBytes {
    match *bytes {
        [] | [0x16] | [0x16, 0x03] => FirstBytes::NeedMore,
        // As `cbSize` at least 131,862: more than `cchPCB` can name.
        [0x16, 0x03, 0x02..=0x04, ..] => FirstBytes::Conforms,
        // As `cbSize` 790 or 66,326 while byte 3 is zero. A record is not empty, `Flags` are zero: byte 4 decides.
        [0x16, 0x03, 0x00 | 0x01] | [0x16, 0x03, 0x00 | 0x01, 0x00] => FirstBytes::NeedMore,
        [0x16, 0x03, 0x00 | 0x01, 0x00, 0x00, ..] => FirstBytes::Violates,
        [0x16, 0x03, 0x00 | 0x01, ..] => FirstBytes::Conforms,
        _ => FirstBytes::Violates,
    }
}

/// `cbSize` in the range that version 1 or 2 can have, and `Flags` of zero.
///
/// The specification has the receiver ignore `Flags`, but it also has the sender set them to zero, and without them
/// a PDU of 790 bytes and a TLS record could not be told apart.
fn preconnection_pdu(bytes: &[u8]) -> FirstBytes {
    if x224(bytes) == FirstBytes::Conforms {
        return FirstBytes::Violates;
    }
    // Missing bytes are taken as zero for the upper bound and not judged at all for the lower one.
    let byte = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let cb_size = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
    let beyond = byte(3) != 0 || byte(2) > 2 || (bytes.len() >= 3 && cb_size > CB_SIZE_MAX);
    let below = bytes.len() >= 4 && cb_size < CB_SIZE_MIN;
    let flagged = bytes.iter().skip(4).take(4).any(|&flags| flags != 0);
    if beyond || below || flagged {
        FirstBytes::Violates
    } else if bytes.len() < 8 {
        FirstBytes::NeedMore
    } else {
        FirstBytes::Conforms
    }
}

/// With any flags, and by its version.
fn preconnection_pdu_in_any_form(bytes: &[u8]) -> FirstBytes {
    const MARKS: [Expected; 12] = [
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
    ];
    fit(bytes, &MARKS)
}

/// A TSRequest of CredSSP, with the length of its SEQUENCE in any form: it comes first inside of direct TLS ([MS-RDPBCGR] 5.4.2.2).
///
/// [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/
fn ts_request(bytes: &[u8]) -> FirstBytes {
    const VERSION: [Expected; 4] = [Is(0xa0), Is(3), Is(2), Is(1)];
    const LENGTHS: [&[Expected]; 5] = [
        &[Within(0, 0x7f)],
        &[Is(0x81), Any],
        &[Is(0x82), Any, Any],
        &[Is(0x83), Any, Any, Any],
        &[Is(0x84), Any, Any, Any, Any],
    ];
    FirstBytes::any(LENGTHS.iter().map(|length| {
        let pattern = [&[Is(0x30)], *length, &VERSION].concat();
        fit(bytes, &pattern)
    }))
}

fn any_text(bytes: &[u8], texts: &[&[u8]]) -> FirstBytes {
    FirstBytes::any(texts.iter().map(|text| fit_text(bytes, text)))
}

/// `cbSize` of version 1 ([MS-RDPEPS] 2.2.1.1).
const CB_SIZE_MIN: u32 = 16;

/// `cbSize` of version 2 with the largest `cchPCB`: 18 + 2 * 65,535 ([MS-RDPEPS] 2.2.1.2).
const CB_SIZE_MAX: u32 = 131_088;

/// The first bytes of PROXY protocol version 1.
const PROXY_V1_WORD: &[u8] = b"PROXY ";

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
                        for rules in [&RULES[..], &LATE_RULES] {
                            let matches = rules
                                .iter()
                                .filter(|(_, rule)| rule(&bytes) == FirstBytes::Conforms)
                                .count();
                            assert!(matches <= 1, "{bytes:02x?}");
                        }
                    }
                }
            }
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
            b"\r\n\r\n\0\r\nQUIT\n",
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
    fn a_client_that_speaks_late_is_known_by_what_a_target_takes_for_rdp() {
        let known: [(&[u8], usize, Preamble); 6] = [
            (b"\x03\x00\x00\x2b\x26\xe0\0\0", 6, Preamble::X224),
            (b"\x03\xff\x00\x2b\x26\xe0\0\0", 6, Preamble::X224),
            (b"\x16\x03\x01\x00\xf4\x01", 5, Preamble::Tls),
            (PCB_790, 8, Preamble::PreconnectionPdu),
            (
                b"\x03\x01\0\0\0\0\0\0\x02\0\0\0",
                8,
                Preamble::PreconnectionPdu,
            ),
            (b"PROXY TCP4", 6, Preamble::ProxyProtocol),
        ];
        for (bytes, enough, preamble) in known {
            for count in 0..=bytes.len() {
                let expected = if count < enough {
                    Recognition::NeedMore
                } else {
                    Recognition::Known(preamble)
                };
                assert_eq!(recognise_late(&bytes[..count]), expected, "{bytes:02x?}");
            }
        }
        // Who types before their server has said anything begins with any key.
        for other in [
            &b"\x03\x03\x03\x03\x03\x03"[..],
            b"GET / ",
            b"JET\0",
            b"SSH-2.0-",
        ] {
            assert_eq!(recognise_late(other), Recognition::Unknown, "{other:02x?}");
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(bytes in first_bytes()) {
            for recognise in [recognise, recognise_late] {
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
