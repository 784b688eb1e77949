//! Fields of channel PDUs, and why one is not what it claims to be.

use serde::Serialize;

use super::rdp8_lite::Rdp8LiteError;
use crate::Direction;
use crate::budget::Exhausted;

/// Why a channel PDU is not what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The PDU ends before the field.
    #[error("{0} is cut off")]
    Truncated(&'static str),
    /// The field is longer than what is accepted.
    #[error("{what} has {length} bytes, above the limit of {limit}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its length, bytes.
        length: u64,
        /// What is accepted.
        limit: u64,
    },
    /// There are more of them than what is accepted.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// What is accepted.
        limit: usize,
    },
    /// The field has a value that it cannot have.
    #[error("{what} cannot be {value:#x}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The message is one that only the other side sends.
    #[error("{0} comes from the wrong side")]
    WrongDirection(&'static str),
    /// Only the head of the PDU was given, and its end is needed.
    #[error("{0} is needed whole")]
    NeededWhole(&'static str),
    /// More is to be remembered than a session may make the gateway remember.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// Compressed data that does not decompress.
    #[error("compressed data: {0}")]
    Compression(#[from] Rdp8LiteError),
}

impl Serialize for ChannelError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the fields of one PDU, little endian, from the front; of the PDU at least the head is at hand.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes of the PDU that follow `bytes` and are not at hand.
    beyond: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, beyond: 0 }
    }

    /// The first bytes of a PDU of `total` bytes.
    pub(super) fn head(head: &'a [u8], total: usize) -> Self {
        Self {
            bytes: head,
            beyond: total.saturating_sub(head.len()),
        }
    }

    /// Bytes not read yet, whether at hand or not.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().saturating_add(self.beyond)
    }

    pub(super) fn take(
        &mut self,
        count: usize,
        field: &'static str,
    ) -> Result<&'a [u8], ChannelError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return Err(if count <= self.remaining() {
                ChannelError::NeededWhole(field)
            } else {
                ChannelError::Truncated(field)
            });
        };
        self.bytes = rest;
        Ok(taken)
    }

    /// Passes over bytes that need not be at hand.
    pub(super) fn skip(&mut self, count: usize, field: &'static str) -> Result<(), ChannelError> {
        if let Some(rest) = self.bytes.get(count..) {
            self.bytes = rest;
            return Ok(());
        }
        let over = count.saturating_sub(self.bytes.len());
        self.beyond = self
            .beyond
            .checked_sub(over)
            .ok_or(ChannelError::Truncated(field))?;
        self.bytes = &[];
        Ok(())
    }

    /// Leaves only the next `count` bytes to be read.
    pub(super) fn limit(&mut self, count: usize, field: &'static str) -> Result<(), ChannelError> {
        if let Some(kept) = self.bytes.get(..count) {
            (self.bytes, self.beyond) = (kept, 0);
            return Ok(());
        }
        let beyond = count.saturating_sub(self.bytes.len());
        if beyond > self.beyond {
            return Err(ChannelError::Truncated(field));
        }
        self.beyond = beyond;
        Ok(())
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], ChannelError> {
        let taken = self.take(N, field)?;
        taken
            .first_chunk::<N>()
            .copied()
            .ok_or(ChannelError::Truncated(field))
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, ChannelError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, ChannelError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, ChannelError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, ChannelError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// UTF-16LE in exactly `length` bytes, up to the first NUL. Half a unit at the end is none, as to every receiver.
    pub(super) fn utf16(
        &mut self,
        length: usize,
        limit: usize,
        field: &'static str,
    ) -> Result<String, ChannelError> {
        within(length, limit, field)?;
        Ok(utf16_text(self.take(length, field)?))
    }

    /// UTF-16LE up to and with its NUL, or to the end of the PDU where the NUL is missing; what is behind `limit` bytes of
    /// it is passed over.
    pub(super) fn utf16_z(
        &mut self,
        limit: usize,
        field: &'static str,
    ) -> Result<String, ChannelError> {
        let units = self.bytes.as_chunks::<2>().0;
        let end = units.iter().position(|unit| *unit == [0, 0]);
        let (length, terminator) = match end {
            Some(end) => (end.saturating_mul(2), 2),
            None => (self.remaining(), 0),
        };
        let kept = length.min(limit);
        let text = self.utf16(kept, limit, field)?;
        self.skip(
            length.saturating_sub(kept).saturating_add(terminator),
            field,
        )?;
        Ok(text)
    }
}

/// UTF-16LE up to the first NUL. What is not UTF-16 shows as U+FFFD.
pub(super) fn utf16_text(bytes: &[u8]) -> String {
    let units = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|unit| u16::from_le_bytes(*unit))
        .take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Text of an unnamed 8-bit code page up to the first NUL: UTF-8 where it is, else byte by byte as Latin-1.
pub(super) fn narrow_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
    match std::str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        Err(_) => text.iter().copied().map(char::from).collect(),
    }
}

/// Checks the length of a field.
pub(super) fn within(length: usize, limit: usize, what: &'static str) -> Result<(), ChannelError> {
    if length <= limit {
        return Ok(());
    }
    Err(ChannelError::TooLong {
        what,
        length: wide(length),
        limit: wide(limit),
    })
}

/// Checks, before one more is added, that there is room for it.
pub(super) fn room(count: usize, limit: usize, what: &'static str) -> Result<(), ChannelError> {
    if count < limit {
        return Ok(());
    }
    Err(ChannelError::TooMany { what, limit })
}

/// A length or count that a peer gave, as a size; too large where the platform has no such size.
pub(super) fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A size as 64 bits.
#[must_use]
pub fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Only `expected` sends the message `what`.
pub(super) fn only(
    actual: Direction,
    expected: Direction,
    what: &'static str,
) -> Result<(), ChannelError> {
    if actual == expected {
        return Ok(());
    }
    Err(ChannelError::WrongDirection(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_a_head_knows_what_is_there_and_what_is_at_hand() {
        let mut reader = Reader::head(&[1, 2, 3], 10);
        assert_eq!(reader.remaining(), 10);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u32("b"), Err(ChannelError::NeededWhole("b")));
        assert_eq!(reader.take(10, "c"), Err(ChannelError::Truncated("c")));
        let mut limited = reader.clone();
        limited.limit(1, "d").unwrap();
        assert_eq!(limited.remaining(), 1);
        limited = reader.clone();
        limited.limit(5, "d").unwrap();
        assert_eq!(limited.remaining(), 5);
        assert_eq!(limited.skip(6, "e"), Err(ChannelError::Truncated("e")));
        assert_eq!(reader.limit(10, "f"), Err(ChannelError::Truncated("f")));
        reader.skip(8, "g").unwrap();
        assert_eq!(reader.remaining(), 1);
        assert_eq!(reader.u8("h"), Err(ChannelError::NeededWhole("h")));
    }

    #[test]
    fn text_ends_at_its_nul_and_never_fails_on_bad_units() {
        assert_eq!(utf16_text(b"a\0\x3d\xd8b\0\0\0c\0"), "a\u{fffd}b");
        assert_eq!(narrow_text(b"\xe9\0x"), "é");
        assert_eq!(narrow_text("é".as_bytes()), "é");
        let mut reader = Reader::new(b"a\0b\0");
        assert_eq!(reader.utf16_z(4, "name").unwrap(), "ab");
        // Half a unit is none, and a long name is known by its beginning.
        assert_eq!(Reader::new(b"a\0b").utf16_z(4, "name").unwrap(), "a");
        let mut reader = Reader::new(b"a\0b\0c\0\0\0d");
        assert_eq!(reader.utf16_z(4, "name").unwrap(), "ab");
        assert_eq!(reader.u8("d"), Ok(b'd'));
    }
}
