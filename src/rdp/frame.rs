//! Where a PDU of a session ends: TPKT ([T.123] 8) or fast-path ([MS-RDPBCGR] 2.2.9.1.2, 2.2.8.1.2), told apart by
//! the two lowest bits of the first byte.
//!
//! Both forms name their length in two bytes at most, so that a frame never exceeds [`FRAME_BYTES`].
//!
//! [T.123]: https://www.itu.int/rec/T-REC-T.123

use std::ops::Range;

/// The longest frame, bytes: what two length bytes of TPKT can name.
pub const FRAME_BYTES: usize = 65_535;

/// How much of a fast-path header is its own: header byte and one or two of length.
const FAST_PATH_MIN_BYTES: usize = 2;

/// TPKT and the three bytes of an X.224 Data TPDU.
const SLOW_PATH_MIN_BYTES: usize = 7;

/// One frame at the front of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its form.
    pub kind: FrameKind,
    /// Bytes in all.
    pub length: usize,
    /// What follows the TPKT or fast-path header.
    pub body: Range<usize>,
}

/// The form of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// TPKT, with an X.224 TPDU inside.
    Tpkt,
    /// Fast-path; the byte is its header.
    ///
    /// Bits 6 and 7 say that standard security encrypts or signs. Inside TLS they mean nothing, and some clients
    /// leave them set; they pass as they are.
    FastPath(u8),
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither form begins so.
    #[error("first byte {0:#04x} begins neither TPKT nor fast-path")]
    Unknown(u8),
    /// The length does not cover the header.
    #[error("length {0} does not cover the header of the frame")]
    TooShort(usize),
}

/// Finds the frame at the front of `bytes`; `None` while too little is there to say how long it is.
///
/// The frame itself may still be incomplete: compare [`Frame::length`] with what is there.
///
/// # Errors
/// More bytes would not help.
pub fn find(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    match first & 0b11 {
        0b11 if first == 0x03 => {
            let Some(&[_, _, high, low]) = bytes.first_chunk::<4>() else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length < SLOW_PATH_MIN_BYTES {
                return Err(FrameError::TooShort(length));
            }
            Ok(Some(Frame {
                kind: FrameKind::Tpkt,
                length,
                body: 4..length,
            }))
        }
        0b00 => {
            let Some(&one) = bytes.get(1) else {
                return Ok(None);
            };
            let (length, header) = if one & 0x80 == 0 {
                (usize::from(one), FAST_PATH_MIN_BYTES)
            } else {
                let Some(&two) = bytes.get(2) else {
                    return Ok(None);
                };
                (
                    usize::from(u16::from_be_bytes([one & 0x7f, two])),
                    FAST_PATH_MIN_BYTES + 1,
                )
            };
            if length <= header {
                return Err(FrameError::TooShort(length));
            }
            Ok(Some(Frame {
                kind: FrameKind::FastPath(first),
                length,
                body: header..length,
            }))
        }
        _ => Err(FrameError::Unknown(first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_and_both_lengths_are_found() {
        let found = |bytes: &[u8]| find(bytes).unwrap().unwrap();
        assert_eq!(found(&[3, 0, 1, 2, 9]).length, 0x102);
        assert_eq!(found(&[3, 0, 1, 2]).body, 4..0x102);
        assert_eq!(found(&[0x04, 6]).body, 2..6);
        assert_eq!(found(&[0xc4, 0x81, 0x02]).body, 3..0x102);
        assert_eq!(found(&[0xc4, 0x80, 0x04]).kind, FrameKind::FastPath(0xc4));
    }

    #[test]
    fn a_length_that_is_not_there_yet_is_waited_for() {
        for bytes in [&[][..], &[3], &[3, 0, 0], &[0], &[0, 0x80]] {
            assert_eq!(find(bytes), Ok(None));
        }
    }

    #[test]
    fn a_length_within_its_own_header_is_refused() {
        assert_eq!(find(&[3, 0, 0, 6]), Err(FrameError::TooShort(6)));
        assert_eq!(find(&[0, 0]), Err(FrameError::TooShort(0)));
        assert_eq!(find(&[0, 2]), Err(FrameError::TooShort(2)));
        assert_eq!(find(&[0, 0x80, 3]), Err(FrameError::TooShort(3)));
    }

    #[test]
    fn what_begins_as_neither_form_is_refused() {
        for first in [0x01, 0x02, 0x16 & !0b01, 0x07, 0x83] {
            if first & 0b11 != 0 {
                assert_eq!(find(&[first, 3, 3]), Err(FrameError::Unknown(first)));
            }
        }
    }
}
