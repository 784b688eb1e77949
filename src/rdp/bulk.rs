//! Bulk compression ([MS-RDPBCGR] 3.1.8, [MS-RDPEGDI] 3.1.8), undone on the side: what passes stays compressed.
//!
//! One history per direction is shared by slow-path and fast-path output and static channels, so every compressed
//! PDU has to be followed, whether a stage needs it or not. The decoder is made when the first one arrives: its
//! histories take megabytes, and most sessions never need them.

use std::fmt;

use ironrdp_bulk::{BulkCompressor, CompressionType};

/// `PACKET_COMPRESSED`, `PACKET_AT_FRONT` and `PACKET_FLUSHED`: any of them concerns the history.
const STATE_FLAGS: u8 = 0xe0;

/// `CompressionTypeMask`.
const TYPE_MASK: u8 = 0x0f;

/// Whether a PDU with these flags uses or changes the history.
pub(super) fn concerns(flags: u8) -> bool {
    flags & STATE_FLAGS != 0
}

/// `PACKET_COMPRESSED`.
pub(super) const COMPRESSED: u8 = 0x20;

/// Decompressed data are bounded by the history of 64 KiB; XCRUSH may concatenate a few of those.
const OUTPUT_BYTES: usize = 4 * 1024 * 1024;

/// The history of one direction.
#[derive(Default)]
pub(super) struct Bulk {
    decoder: Option<Box<BulkCompressor>>,
    /// Kinds that were used, a bit each.
    kinds: u16,
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk")
            .field("in_use", &self.decoder.is_some())
            .finish()
    }
}

impl Bulk {
    /// The kind of compression that these flags name, if it was not used before.
    pub(super) fn new_kind(&mut self, flags: u8) -> Option<u8> {
        let kind = flags & TYPE_MASK;
        let bit = 1_u16.checked_shl(kind.into())?;
        let is_new = flags & COMPRESSED != 0 && self.kinds & bit == 0;
        self.kinds |= if is_new { bit } else { 0 };
        is_new.then_some(kind)
    }

    /// The data of a PDU, given its compression flags.
    pub(super) fn decompress<'a>(&'a mut self, data: &'a [u8], flags: u8) -> Option<&'a [u8]> {
        if !concerns(flags) {
            return Some(data);
        }
        let decoder = self
            .decoder
            .get_or_insert_with(|| Box::new(BulkCompressor::new(CompressionType::Rdp61)));
        decoder
            .decompress(data, flags.into())
            .ok()
            .filter(|plain| plain.len() <= OUTPUT_BYTES)
    }
}
