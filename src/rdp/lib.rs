//! RDP: the preconnection PDU and the negotiation before the security layer, and the session inside it.
//!
//! No I/O here: bytes in, values out. Each decoder of the negotiation takes what has arrived so far and answers `Ok(None)` for "more",
//! `Ok(Some((value, consumed)))`, or an error as soon as the bytes at hand cannot become a PDU any more. More bytes
//! never change an answer other than `Ok(None)`.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod budget;
pub mod bulk;
mod bytes;
pub mod channel;
pub mod client_info;
pub mod connection_request;
pub mod credssp;
pub mod event;
pub mod farewell;
pub mod fast_path;
pub mod frame;
pub mod gcc;
pub mod input;
pub mod logon;
pub mod mcs;
pub mod negotiation;
pub mod nt_status;
pub mod preconnection;
pub mod reconnect;
pub mod redirection;
pub mod share;
pub mod surface;
pub mod tracker;
pub mod welcome;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    ToClient,
}

impl Direction {
    /// The other way.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::ToTarget => Self::ToClient,
            Self::ToClient => Self::ToTarget,
        }
    }

    /// Who speaks in this direction.
    #[must_use]
    pub fn sender(self) -> &'static str {
        match self {
            Self::ToTarget => "client",
            Self::ToClient => "target",
        }
    }
}

/// An X.224 connection TPDU in TPKT: the frame that Connection Request and Connection Confirm share.
#[derive(Clone, Copy, Debug)]
struct Frame<'a> {
    /// SRC-REF.
    src_ref: u16,
    /// CLASS OPTION.
    class: u8,
    /// The variable part.
    variable: &'a [u8],
    /// Bytes of the frame, TPKT header included.
    length: usize,
}

/// Why bytes are not the X.224 connection TPDU that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// TPKT begins `03 00` ([T.123] 8); this is the first byte that differs.
    ///
    /// [T.123]: https://www.itu.int/rec/T-REC-T.123
    #[error("TPKT header has {0:#04x} where version 3 and a zero are expected")]
    Tpkt(u8),
    /// The length does not hold the fixed part of the TPDU.
    #[error("TPKT length {0} is below the 11 bytes of an X.224 connection TPDU")]
    TooShort(usize),
    /// The length is above the limit.
    #[error("TPKT length {length} is above the limit of {limit}")]
    TooLong {
        /// What TPKT says.
        length: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The length indicator agrees with TPKT not even modulo 256.
    #[error("X.224 length indicator {li} does not agree with TPKT length {length}")]
    LengthIndicator {
        /// The length indicator (LI).
        li: u8,
        /// What TPKT says.
        length: usize,
    },
    /// Another TPDU.
    #[error("X.224 TPDU code {actual:#04x}, expected {expected:#04x}")]
    Code {
        /// The code that arrived.
        actual: u8,
        /// The code of the expected TPDU.
        expected: u8,
    },
}

/// Decodes the frame of a TPDU with code `expected`, of at most `limit` bytes.
///
/// The length indicator has one byte, and clients let it wrap where a routing token is longer than 238 bytes. TPKT
/// has two and is right in every client recorded, so it decides, and the indicator has to agree modulo 256.
fn decode_frame(bytes: &[u8], expected: u8, limit: usize) -> Result<Option<Frame<'_>>, FrameError> {
    let differs = bytes.iter().zip(&TPKT_VERSION).find(|(a, b)| a != b);
    if let Some((&byte, _)) = differs {
        return Err(FrameError::Tpkt(byte));
    }
    let Some(&[_, _, high, low]) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < FIXED_BYTES {
        return Err(FrameError::TooShort(length));
    }
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    let Some(&li) = bytes.get(4) else {
        return Ok(None);
    };
    if usize::from(li) != length.saturating_sub(5) % 256 {
        return Err(FrameError::LengthIndicator { li, length });
    }
    if let Some(&actual) = bytes.get(5)
        && actual != expected
    {
        return Err(FrameError::Code { actual, expected });
    }
    let Some((fixed, variable)) = bytes
        .get(..length)
        .and_then(|frame| frame.split_first_chunk::<FIXED_BYTES>())
    else {
        return Ok(None);
    };
    let [_, _, _, _, _, _, _, _, src_high, src_low, class] = *fixed;
    Ok(Some(Frame {
        src_ref: u16::from_be_bytes([src_high, src_low]),
        class,
        variable,
        length,
    }))
}

/// Encodes the frame around `variable`; `None` where one byte of LI cannot name the length.
fn encode_frame(code: u8, src_ref: u16, class: u8, variable: &[u8]) -> Option<Vec<u8>> {
    // 255 is reserved ([X.224] 13.2.1).
    let li = variable
        .len()
        .checked_add(6)
        .and_then(|li| u8::try_from(li).ok())
        .filter(|&li| li < 255)?;
    let length = u16::from(li).saturating_add(5);
    let mut bytes = Vec::with_capacity(length.into());
    bytes.extend(TPKT_VERSION);
    bytes.extend(length.to_be_bytes());
    bytes.extend([li, code, 0, 0]);
    bytes.extend(src_ref.to_be_bytes());
    bytes.push(class);
    bytes.extend(variable);
    Some(bytes)
}

/// Version 3 and a reserved byte.
const TPKT_VERSION: [u8; 2] = [0x03, 0x00];

/// TPKT header (4), LI, code, DST-REF (2), SRC-REF (2), CLASS OPTION.
const FIXED_BYTES: usize = 11;
