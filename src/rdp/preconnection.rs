//! The preconnection PDU: what a client says before anything else, and the carrier of a token (`pcb:s:`).
//!
//! Implements [MS-RDPEPS] 2.2.1 and the receiver's rules of 3.2.5.1. All fields are little-endian:
//!
//! ```text
//! cbSize u32 | Flags u32 = 0 | Version u32 | Id u32 | cchPCB u16 | wszPCB: cchPCB units of UTF-16LE
//! ```
//!
//! - `cbSize` decides: 16 is version 1, 18 and more are version 2, 17 and less than 16 are refused. So is version 1
//!   with a string, as 3.2.5.1 recommends; other values of `Version` and `Flags` are ignored, as it demands.
//! - `cbSize` is checked against [`limits::PRECONNECTION_PDU_BYTES`] before the PDU is buffered.
//! - Bytes between the string and `cbSize` are skipped: `cbSize` may be greater than the string needs.
//! - `cchPCB` counts the terminator. FreeRDP 2 sends two NULs, FreeRDP 3 one, others none: trailing NULs are trimmed.
//!   A NUL inside the text is refused, for readers do not agree on which part of such a text counts.
//! - Text that is not UTF-16 is refused.
//!
//! This file reads the PDU itself: the decoder of `ironrdp-pdu` takes a `cbSize` of 17, does not bound it, cuts the
//! text at an inner NUL and leaves a copy of the token in memory. The tests compare the two where they agree.
//!
//! [MS-RDPEPS]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpeps/

use std::fmt;

use zeroize::Zeroizing;

use jetway_base::limits;

/// [MS-RDPEPS] 2.2.1 Preconnection PDU (RDP_PRECONNECTION_PDU).
#[derive(Clone, PartialEq, Eq)]
pub enum PreconnectionPdu {
    /// [MS-RDPEPS] 2.2.1.1: carries no text, so it can carry no token.
    V1 {
        /// Identifies the RDP source.
        id: u32,
    },
    /// [MS-RDPEPS] 2.2.1.2.
    V2 {
        /// Identifies the RDP source.
        id: u32,
        /// The text without its terminators; it may be a token and is not printed by `Debug`.
        wsz_pcb: Zeroizing<String>,
    },
}

impl fmt::Debug for PreconnectionPdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V1 { id } => f.debug_struct("V1").field("id", id).finish(),
            Self::V2 { id, wsz_pcb } => f
                .debug_struct("V2")
                .field("id", id)
                .field(
                    "wsz_pcb",
                    &format_args!("<{} bytes, not shown>", wsz_pcb.len()),
                )
                .finish(),
        }
    }
}

/// Why bytes are not a preconnection PDU, or a text cannot be put into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreconnectionError {
    /// The client's: less than version 1 needs, or one byte of a length.
    #[error("cbSize {0} is neither 16 (version 1) nor at least 18 (version 2)")]
    CbSize(u32),
    /// The client's: more than is accepted before a token was seen.
    #[error("cbSize {cb_size} is above the limit of {limit}")]
    TooLarge {
        /// What the PDU says.
        cb_size: u32,
        /// What is accepted.
        limit: usize,
    },
    /// The client's: version 1 has no string.
    #[error("version 1 with a cbSize of {0}, expected 16")]
    V1WithString(u32),
    /// The client's: the string does not fit the PDU.
    #[error("cchPCB {cch_pcb} does not fit cbSize {cb_size}")]
    CchPcb {
        /// Units of UTF-16.
        cch_pcb: u16,
        /// Bytes of the PDU.
        cb_size: u32,
    },
    /// The client's: an unpaired surrogate.
    #[error("wszPCB is not UTF-16")]
    NotUtf16,
    /// The client's when decoding, ours when encoding: a NUL that is not at the end.
    #[error("wszPCB has a NUL inside")]
    InnerNul,
    /// Ours: the text is too long to be encoded.
    #[error("text of {0} UTF-16 units does not fit a preconnection PDU")]
    TextTooLong(usize),
}

/// Decodes the preconnection PDU that `bytes` begin with, and says how many bytes it has; `None` asks for more.
///
/// # Errors
/// As soon as the bytes at hand cannot become a PDU any more.
///
/// # Examples
/// ```
/// use jetway_rdp::preconnection::{self, PreconnectionPdu};
///
/// let wire = preconnection::encode_v2(7, "eyJ0")?;
/// let (pdu, consumed) = preconnection::decode(&wire)?.expect("complete");
/// assert_eq!(consumed, wire.len());
/// assert_eq!(pdu, PreconnectionPdu::V2 { id: 7, wsz_pcb: "eyJ0".to_owned().into() });
/// # Ok::<(), preconnection::PreconnectionError>(())
/// ```
pub fn decode(bytes: &[u8]) -> Result<Option<(PreconnectionPdu, usize)>, PreconnectionError> {
    let Some(cb_size) = u32_at(bytes, 0) else {
        return Ok(None);
    };
    if cb_size < CB_SIZE_V1 || cb_size == CB_SIZE_V1 + 1 {
        return Err(PreconnectionError::CbSize(cb_size));
    }
    let limit = limits::PRECONNECTION_PDU_BYTES;
    let length = usize::try_from(cb_size)
        .ok()
        .filter(|&length| length <= limit)
        .ok_or(PreconnectionError::TooLarge { cb_size, limit })?;
    if cb_size > CB_SIZE_V1 && u32_at(bytes, 8) == Some(VERSION_1) {
        return Err(PreconnectionError::V1WithString(cb_size));
    }
    let Some(id) = u32_at(bytes, 12) else {
        return Ok(None);
    };
    if cb_size == CB_SIZE_V1 {
        return Ok(Some((PreconnectionPdu::V1 { id }, length)));
    }
    let Some(cch_pcb) = bytes.get(16..18).and_then(|bytes| bytes.first_chunk()) else {
        return Ok(None);
    };
    let cch_pcb = u16::from_le_bytes(*cch_pcb);
    let end = usize::from(cch_pcb)
        .saturating_mul(2)
        .saturating_add(V2_FIXED_BYTES);
    if end > length {
        return Err(PreconnectionError::CchPcb { cch_pcb, cb_size });
    }
    let Some(wsz_pcb) = bytes
        .get(..length)
        .and_then(|pdu| pdu.get(V2_FIXED_BYTES..end))
    else {
        return Ok(None);
    };
    let wsz_pcb = text(wsz_pcb)?;
    Ok(Some((PreconnectionPdu::V2 { id, wsz_pcb }, length)))
}

/// Encodes version 2 with one terminator, as [MS-RDPEPS] 3.1.5.2 has a client do.
///
/// # Errors
/// Where `wsz_pcb` has a NUL or is too long for [`limits::PRECONNECTION_PDU_BYTES`].
pub fn encode_v2(id: u32, wsz_pcb: &str) -> Result<Vec<u8>, PreconnectionError> {
    if wsz_pcb.contains('\0') {
        return Err(PreconnectionError::InnerNul);
    }
    let units = wsz_pcb.encode_utf16().count();
    let too_long = || PreconnectionError::TextTooLong(units);
    let with_nul = units.saturating_add(1);
    let cch_pcb = u16::try_from(with_nul).map_err(|_| too_long())?;
    let length = with_nul.saturating_mul(2).saturating_add(V2_FIXED_BYTES);
    if length > limits::PRECONNECTION_PDU_BYTES {
        return Err(too_long());
    }
    let cb_size = u32::try_from(length).map_err(|_| too_long())?;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(cb_size.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(VERSION_2.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(cch_pcb.to_le_bytes());
    bytes.extend(wsz_pcb.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.extend([0, 0]);
    Ok(bytes)
}

/// UTF-16LE without trailing NULs. Written into one buffer of sufficient size, so that no copy is left behind.
fn text(bytes: &[u8]) -> Result<Zeroizing<String>, PreconnectionError> {
    let (units, _) = bytes.as_chunks::<2>();
    let end = units
        .iter()
        .rposition(|unit| *unit != [0, 0])
        .map_or(0, |last| last.saturating_add(1));
    let units = units.get(..end).unwrap_or_default();
    // One unit of UTF-16 becomes at most three bytes of UTF-8.
    let mut text = Zeroizing::new(String::with_capacity(units.len().saturating_mul(3)));
    for character in char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit))) {
        match character {
            Ok('\0') => return Err(PreconnectionError::InnerNul),
            Ok(character) => text.push(character),
            Err(_) => return Err(PreconnectionError::NotUtf16),
        }
    }
    Ok(text)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

const CB_SIZE_V1: u32 = 16;
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 2;

/// The header of version 1 and `cchPCB`.
const V2_FIXED_BYTES: usize = 18;

#[cfg(test)]
mod tests {
    use ironrdp_core::{decode as ironrdp_decode, encode_vec};
    use ironrdp_pdu::pcb::{PcbVersion, PreconnectionBlob};
    use proptest::prelude::*;

    use super::*;

    /// [MS-RDPEPS] 4.1: version 1 with the id 0xEB99C6EE.
    const V1: &[u8] = &[
        0x10, 0x00, 0x00, 0x00, // cbSize = 16
        0x00, 0x00, 0x00, 0x00, // Flags
        0x01, 0x00, 0x00, 0x00, // Version = 1
        0xee, 0xc6, 0x99, 0xeb, // Id
    ];

    /// [MS-RDPEPS] 4.2: version 2 with the text "TestVM".
    const V2: &[u8] = &[
        0x20, 0x00, 0x00, 0x00, // cbSize = 32
        0x00, 0x00, 0x00, 0x00, // Flags
        0x02, 0x00, 0x00, 0x00, // Version = 2
        0x00, 0x00, 0x00, 0x00, // Id
        0x07, 0x00, // cchPCB = 7, the terminator included
        0x54, 0x00, 0x65, 0x00, 0x73, 0x00, 0x74, 0x00, 0x56, 0x00, 0x4d, 0x00, // "TestVM"
        0x00, 0x00, // terminator
    ];

    #[test]
    fn version_1_is_decoded_so_that_it_can_be_refused() {
        assert_eq!(complete(V1), PreconnectionPdu::V1 { id: 0xeb99_c6ee });
    }

    #[test]
    fn version_2_is_decoded() {
        assert_eq!(complete(V2), v2(0, "TestVM"));
        assert_eq!(encode_v2(0, "TestVM").unwrap(), V2);
    }

    #[test]
    fn any_number_of_trailing_nuls_is_trimmed() {
        for nuls in 0..4 {
            let mut units: Vec<u16> = "éß漢😀".encode_utf16().collect();
            units.resize(units.len() + nuls, 0);
            assert_eq!(complete(&raw(&units)), v2(0, "éß漢😀"), "{nuls} NULs");
        }
        assert_eq!(complete(&raw(&[])), v2(0, ""));
        assert_eq!(complete(&raw(&[0, 0])), v2(0, ""));
    }

    #[test]
    fn cb_size_17_and_below_16_are_refused_at_the_fourth_byte() {
        for cb_size in (0..16).chain([17]) {
            let bytes = u32::to_le_bytes(cb_size);
            assert_eq!(decode(&bytes[..3]), Ok(None));
            assert_eq!(decode(&bytes), Err(PreconnectionError::CbSize(cb_size)));
        }
    }

    #[test]
    fn cb_size_above_the_limit_is_refused_before_buffering() {
        let limit = limits::PRECONNECTION_PDU_BYTES;
        let most = u32::try_from(limit).unwrap();
        assert_eq!(decode(&most.to_le_bytes()), Ok(None));
        for cb_size in [most + 1, 80_022, u32::MAX] {
            assert_eq!(
                decode(&cb_size.to_le_bytes()),
                Err(PreconnectionError::TooLarge { cb_size, limit })
            );
        }
    }

    #[test]
    fn largest_pdu_is_decoded_and_encoded() {
        let units = (limits::PRECONNECTION_PDU_BYTES - 18) / 2;
        let text = "x".repeat(units - 1);
        let wire = encode_v2(1, &text).unwrap();
        assert_eq!(wire.len(), limits::PRECONNECTION_PDU_BYTES);
        assert_eq!(decode(&wire), Ok(Some((v2(1, &text), wire.len()))));
        assert_eq!(
            encode_v2(1, &"x".repeat(units)),
            Err(PreconnectionError::TextTooLong(units))
        );
        assert_eq!(
            encode_v2(1, &"x".repeat(70_000)),
            Err(PreconnectionError::TextTooLong(70_000))
        );
    }

    #[test]
    fn version_1_with_a_string_is_refused() {
        let mut bytes = V2.to_vec();
        bytes[8] = 1;
        assert_eq!(
            decode(&bytes[..12]),
            Err(PreconnectionError::V1WithString(32))
        );
    }

    #[test]
    fn version_and_flags_are_ignored_otherwise() {
        let mut bytes = V2.to_vec();
        bytes[4] = 0xff;
        bytes[8] = 3;
        assert_eq!(complete(&bytes), v2(0, "TestVM"));
        let mut bytes = V1.to_vec();
        bytes[8] = 2;
        assert_eq!(complete(&bytes), PreconnectionPdu::V1 { id: 0xeb99_c6ee });
    }

    #[test]
    fn cch_pcb_beyond_cb_size_is_refused_at_once() {
        let mut bytes = V2.to_vec();
        bytes[16] = 8;
        let error = PreconnectionError::CchPcb {
            cch_pcb: 8,
            cb_size: 32,
        };
        assert_eq!(decode(&bytes[..17]), Ok(None));
        assert_eq!(decode(&bytes[..18]), Err(error));
    }

    #[test]
    fn bytes_between_string_and_cb_size_are_skipped() {
        for extra in 1..4_u8 {
            let mut bytes = V2.to_vec();
            bytes[0] += extra;
            bytes.resize(bytes.len() + usize::from(extra), 0xaa);
            assert_eq!(complete(&bytes), v2(0, "TestVM"));
        }
    }

    #[test]
    fn unpaired_surrogates_are_refused() {
        for units in [
            &[0xd83d][..],
            &[0xde00],
            &[0xde00, 0xd83d],
            &[0xd83d, 0x41],
            &[0xd83d, 0],
        ] {
            assert_eq!(
                decode(&raw(units)),
                Err(PreconnectionError::NotUtf16),
                "{units:04x?}"
            );
        }
    }

    #[test]
    fn nul_inside_the_text_is_refused() {
        assert_eq!(
            decode(&raw(&[0x41, 0, 0x42, 0])),
            Err(PreconnectionError::InnerNul)
        );
        assert_eq!(encode_v2(0, "A\0B"), Err(PreconnectionError::InnerNul));
        assert_eq!(encode_v2(0, "A\0"), Err(PreconnectionError::InnerNul));
    }

    #[test]
    fn debug_does_not_print_the_text() {
        let printed = format!("{:?}", v2(7, "eyJsecret"));
        assert_eq!(printed, "V2 { id: 7, wsz_pcb: <9 bytes, not shown> }");
    }

    proptest! {
        #[test]
        fn ironrdp_agrees(id: u32, text in "[^\0]{0,40}") {
            let wire = encode_v2(id, &text).unwrap();
            let theirs = PreconnectionBlob {
                version: PcbVersion::V2,
                id,
                v2_payload: Some(text.clone()),
            };
            prop_assert_eq!(&encode_vec(&theirs).unwrap(), &wire);
            prop_assert_eq!(ironrdp_decode::<PreconnectionBlob>(&wire).unwrap(), theirs);
            prop_assert_eq!(decode(&wire), Ok(Some((v2(id, &text), wire.len()))));
        }
    }

    /// Decodes `bytes` at every split, with and without bytes behind them.
    fn complete(bytes: &[u8]) -> PreconnectionPdu {
        for count in 0..bytes.len() {
            assert_eq!(decode(&bytes[..count]), Ok(None), "{count} bytes");
        }
        let (pdu, consumed) = decode(bytes).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        let mut longer = bytes.to_vec();
        longer.extend([0x03, 0x00, 0x00]);
        assert_eq!(decode(&longer), Ok(Some((pdu.clone(), consumed))));
        pdu
    }

    fn v2(id: u32, text: &str) -> PreconnectionPdu {
        PreconnectionPdu::V2 {
            id,
            wsz_pcb: text.to_owned().into(),
        }
    }

    fn raw(units: &[u16]) -> Vec<u8> {
        let count = u16::try_from(units.len()).unwrap();
        let mut bytes = (18 + 2 * u32::from(count)).to_le_bytes().to_vec();
        bytes.extend([0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(count.to_le_bytes());
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes
    }
}
