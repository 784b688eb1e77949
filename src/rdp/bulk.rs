//! Bulk compression ([MS-RDPBCGR] 3.1.8, [MS-RDPEGDI] 3.1.8), undone on the side: what passes stays compressed.
//!
//! One history per direction is shared by slow-path and fast-path output and static channels, so every compressed
//! PDU has to be followed, whether a stage needs it or not. The decoder is made when the first one arrives: its
//! histories take megabytes, and most sessions never need them.
//!
//! The decoder is another project's and reads what a peer sends. Should it panic, its session ends, as it does where
//! data do not decompress: the panic goes no further, and the decoder is not asked again.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ironrdp_bulk::{BulkCompressor, CompressionType};

use super::Direction;
use super::budget::{Budget, Exhausted, Held};

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

/// What a decoder takes, bytes: histories and tables of both ways of every kind, 6.6 million.
const DECODER_BYTES: usize = 7 * 1024 * 1024;

/// The history of one direction.
#[derive(Default)]
pub struct Bulk {
    decoder: Option<Box<BulkCompressor>>,
    /// What it did not understand, or where it panicked, has left it in a state that nobody knows.
    broken: bool,
    /// Kinds that were used, a bit each.
    kinds: u16,
    /// What covers the decoder.
    memory: Option<Held>,
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk")
            .field("in_use", &self.decoder.is_some())
            .field("broken", &self.broken)
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

    /// Makes room for the decoder, if a PDU with these flags is the first that needs it.
    pub(super) fn prepare(
        &mut self,
        flags: u8,
        direction: Direction,
        budget: &Budget,
    ) -> Result<(), Exhausted> {
        if concerns(flags) && self.memory.is_none() {
            let what = "a history of compression";
            self.memory = Some(budget.hold(direction, DECODER_BYTES, what)?);
        }
        Ok(())
    }

    /// The data of a PDU, given its compression flags; `None`, from then on for all, where they do not decompress.
    pub fn decompress<'a>(&'a mut self, data: &'a [u8], flags: u8) -> Option<&'a [u8]> {
        let Self {
            decoder, broken, ..
        } = self;
        guard(broken, || {
            if !concerns(flags) {
                return Some(data);
            }
            let decoder = decoder
                .get_or_insert_with(|| Box::new(BulkCompressor::new(CompressionType::Rdp61)));
            let plain = decoder.decompress(data, flags.into()).ok()?;
            (plain.len() <= OUTPUT_BYTES).then_some(plain)
        })
    }
}

/// Runs `work` unless an earlier one failed, and keeps a panic inside.
fn guard<T>(broken: &mut bool, work: impl FnOnce() -> Option<T>) -> Option<T> {
    if *broken {
        return None;
    }
    // What `work` leaves behind is not looked at again.
    let done = catch_unwind(AssertUnwindSafe(work)).ok().flatten();
    *broken = done.is_none();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stays_inside_and_nothing_is_decompressed_after_it() {
        let mut bulk = Bulk::default();
        assert_eq!(bulk.decompress(b"plain", 0), Some(&b"plain"[..]));
        let nothing: Option<()> = guard(&mut bulk.broken, || {
            let empty: &[u8] = &[];
            let _ = empty[std::hint::black_box(0)];
            None
        });
        assert_eq!(nothing, None);
        assert_eq!(bulk.decompress(b"plain", 0), None);
    }

    #[test]
    fn what_does_not_decompress_is_the_last_that_is_tried() {
        let mut bulk = Bulk::default();
        // No kind of compression.
        assert_eq!(bulk.decompress(b"abc", COMPRESSED | 0x0f), None);
        assert_eq!(bulk.decompress(b"abc", 0), None);
    }
}
