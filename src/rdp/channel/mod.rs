//! Virtual channels as facts: what the peers do on the clipboard, with devices, with sound and on dynamic channels.
//!
//! Every parser takes whole channel PDUs, reassembled from their chunks ([MS-RDPBCGR] 3.1.5.2.2) and decompressed, of
//! both directions in the order in which they arrived, and answers with typed facts. Names and sizes are facts;
//! contents are not: no event holds what was copied, read, written, printed or played.
//!
//! Four answers are told apart. An event says what a message means. `Unknown` events say that a message has a type
//! that the specification does not name, or one that only the other side sends, which no receiver takes: whoever decides
//! may let it pass. [`Unreadable`](ChannelEvent::Unreadable) says that a message is not what its type claims where nobody
//! has to know what it means. An error says the same where somebody has to, or that a bound was reached: what the peers
//! understand is then no longer known, and the session has to end.
//!
//! # How strict a reader is
//!
//! A gateway that ends what client and target would go on with is a fault of the gateway. So each length, count and state
//! that is checked here protects something, or is not checked:
//!
//! - *Sound, microphone, display control, statistics*: nothing is decided by them. What does not fit is reported once
//!   and passes. The memory of the session is bounded all the same.
//! - *Clipboard, drives, dynamic channels, programs that are started*: they are read as receivers read them (FreeRDP's
//!   clients and servers, xrdp; Windows as far as it is known), so that a stage judges what the other side will do. Where
//!   receivers differ, what any of them could read is remembered, and where that cannot be, the session ends.
//! - Bytes behind the end of a message are ignored, as the peers do (xrdp sends four of them).
//!
//! What real clients take from a target and the gateway does not is known, and kept so by the test
//! `peers::differs`, whose table has the exceptions with their reasons.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/

use serde::Serialize;

use super::Direction;
use super::budget::{Budget, Exhausted};

pub mod audin;
pub mod cliprdr;
pub mod display;
pub mod drdynvc;
pub mod egfx;
pub mod rail;
pub mod rdp8_lite;
pub mod rdpdr;
pub mod rdpsnd;

#[cfg(test)]
pub(crate) mod hostile;

/// What happened on a virtual channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "channel", content = "event", rename_all = "snake_case")]
pub enum ChannelEvent {
    /// `cliprdr`.
    Clipboard(cliprdr::ClipboardEvent),
    /// `rdpdr`: drives, printers, ports, smart cards.
    Device(rdpdr::DeviceEvent),
    /// `rdpsnd`: sound from the target.
    Sound(rdpsnd::SoundEvent),
    /// Sound to the target.
    Microphone(audin::MicrophoneEvent),
    /// `drdynvc`.
    Dynamic(drdynvc::DynamicEvent),
    /// Display control: the client asks for another desktop size.
    Display(display::DisplayEvent),
    /// `rail`: remote programs.
    RemoteProgram(rail::RemoteProgramEvent),
    /// The graphics pipeline, for statistics.
    Graphics(egfx::GraphicsEvent),
    /// A message that is not what it claims to be, where nothing depends on it.
    Unreadable(Unreadable),
}

/// A message that cannot be read and passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The channel, as the specification calls it.
    pub name: &'static str,
    /// Where it went.
    pub direction: Direction,
    /// What is wrong with it.
    pub reason: ChannelError,
}

impl Serialize for ChannelError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The events of a message on which nothing depends: where it cannot be read, that is one.
///
/// # Errors
///
/// The session's memory is used up, which ends it whatever the message was; or only the head of the message is at hand.
fn noted(
    name: &'static str,
    direction: Direction,
    events: Result<Vec<ChannelEvent>, ChannelError>,
) -> Result<Vec<ChannelEvent>, ChannelError> {
    match events {
        Err(error @ (ChannelError::Memory(_) | ChannelError::NeededWhole(_))) => Err(error),
        Err(reason) => Ok(vec![unreadable(name, direction, reason)]),
        Ok(events) => Ok(events),
    }
}

fn unreadable(name: &'static str, direction: Direction, reason: ChannelError) -> ChannelEvent {
    ChannelEvent::Unreadable(Unreadable {
        name,
        direction,
        reason,
    })
}

/// The parsers of one session, one for each static channel that has one.
#[derive(Debug)]
pub struct Channels {
    cliprdr: cliprdr::Cliprdr,
    rdpdr: rdpdr::Rdpdr,
    rdpsnd: rdpsnd::Rdpsnd,
    rail: rail::Rail,
    drdynvc: drdynvc::Drdynvc,
}

impl Channels {
    /// The parsers before the first PDU, for a session that may make the gateway remember so much.
    pub fn new(budget: &Budget) -> Self {
        Self {
            cliprdr: cliprdr::Cliprdr::new(budget),
            rdpdr: rdpdr::Rdpdr::new(budget),
            rdpsnd: rdpsnd::Rdpsnd::new(budget),
            rail: rail::Rail,
            drdynvc: drdynvc::Drdynvc::new(budget),
        }
    }

    /// Whether what passes on the static channel `name` is parsed; what passes on others is not looked into.
    pub fn knows(name: &str) -> bool {
        Kind::of_static(name).is_some()
    }

    /// Whether something may depend on what passes on the static channel `name`; sound is only counted.
    pub fn matters(name: &str) -> bool {
        Kind::of_static(name).is_some_and(|kind| kind != Kind::Rdpsnd)
    }

    /// Takes the next PDU of the static channel `name` and says what it means; nothing for channels without a parser.
    ///
    /// # Errors
    ///
    /// What the peers understand is no longer known; the session has to end.
    pub fn feed(
        &mut self,
        name: &str,
        direction: Direction,
        pdu: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        self.feed_head(name, direction, pdu, pdu.len())
    }

    /// The same for a PDU of `total` bytes of which only the first are at hand.
    ///
    /// The contents of a clipboard or of a file need not be held to know what they are: a PDU larger than what the
    /// caller is ready to reassemble may be given by its head. If the parser needs more than the head, that is an
    /// error. Never for `drdynvc`, whose PDUs are never larger than one chunk.
    ///
    /// # Errors
    ///
    /// As [`feed`](Self::feed).
    pub fn feed_head(
        &mut self,
        name: &str,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        match Kind::of_static(name) {
            Some(Kind::Cliprdr) => self.cliprdr.feed_head(direction, head, total),
            Some(Kind::Rdpdr) => self.rdpdr.feed_head(direction, head, total),
            Some(Kind::Rdpsnd) => noted(
                "rdpsnd",
                direction,
                self.rdpsnd.feed_head(direction, head, total),
            ),
            Some(Kind::Rail) => self.rail.feed_head(direction, head, total),
            Some(Kind::Drdynvc) => {
                if head.len() != total {
                    return Err(ChannelError::TooLong {
                        what: "drdynvc PDU",
                        length: wide(total),
                        limit: wide(head.len()),
                    });
                }
                self.drdynvc.feed(direction, head)
            }
            None => Ok(Vec::new()),
        }
    }

    /// The devices, for what is still open when the session ends.
    pub fn devices(&self) -> &rdpdr::Rdpdr {
        &self.rdpdr
    }

    /// The dynamic channels, for statistics.
    pub fn dynamic(&self) -> &drdynvc::Drdynvc {
        &self.drdynvc
    }
}

/// Static channels that have a parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cliprdr,
    Rdpdr,
    Rdpsnd,
    Rail,
    Drdynvc,
}

impl Kind {
    /// Channel names are compared without case, as Windows does.
    fn of_static(name: &str) -> Option<Self> {
        [
            ("cliprdr", Self::Cliprdr),
            ("rdpdr", Self::Rdpdr),
            ("rdpsnd", Self::Rdpsnd),
            ("rail", Self::Rail),
            ("drdynvc", Self::Drdynvc),
        ]
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
        .map(|(_, kind)| kind)
    }
}

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
    Compression(#[from] rdp8_lite::Rdp8LiteError),
}

impl Serialize for Direction {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::ToTarget => "to_target",
            Self::ToClient => "to_client",
        })
    }
}

/// Reads the fields of one PDU, little endian, from the front; of the PDU at least the head is at hand.
#[derive(Clone, Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes of the PDU that follow `bytes` and are not at hand.
    beyond: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, beyond: 0 }
    }

    /// The first bytes of a PDU of `total` bytes.
    fn head(head: &'a [u8], total: usize) -> Self {
        Self {
            bytes: head,
            beyond: total.saturating_sub(head.len()),
        }
    }

    /// Bytes not read yet, whether at hand or not.
    fn remaining(&self) -> usize {
        self.bytes.len().saturating_add(self.beyond)
    }

    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], ChannelError> {
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
    fn skip(&mut self, count: usize, field: &'static str) -> Result<(), ChannelError> {
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
    fn limit(&mut self, count: usize, field: &'static str) -> Result<(), ChannelError> {
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

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ChannelError> {
        let taken = self.take(N, field)?;
        taken
            .first_chunk::<N>()
            .copied()
            .ok_or(ChannelError::Truncated(field))
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, ChannelError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, ChannelError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, ChannelError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, ChannelError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// UTF-16LE in exactly `length` bytes, up to the first NUL. Half a unit at the end is none, as to every receiver.
    fn utf16(
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
    fn utf16_z(&mut self, limit: usize, field: &'static str) -> Result<String, ChannelError> {
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
fn utf16_text(bytes: &[u8]) -> String {
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
fn narrow_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
    match std::str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        Err(_) => text.iter().copied().map(char::from).collect(),
    }
}

/// Checks the length of a field.
fn within(length: usize, limit: usize, what: &'static str) -> Result<(), ChannelError> {
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
fn room(count: usize, limit: usize, what: &'static str) -> Result<(), ChannelError> {
    if count < limit {
        return Ok(());
    }
    Err(ChannelError::TooMany { what, limit })
}

/// A length or count that a peer gave, as a size; too large where the platform has no such size.
fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A size as 64 bits.
pub(crate) fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Only `expected` sends the message `what`.
fn only(actual: Direction, expected: Direction, what: &'static str) -> Result<(), ChannelError> {
    if actual == expected {
        return Ok(());
    }
    Err(ChannelError::WrongDirection(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_without_a_parser_are_not_looked_into() {
        let mut channels = Channels::new(&Budget::default());
        assert!(!Channels::knows("snddbg"));
        assert_eq!(
            channels.feed("snddbg", Direction::ToTarget, &[0xff]),
            Ok(Vec::new())
        );
        assert!(Channels::knows("CLIPRDR"));
        assert_eq!(
            channels.feed("CLIPRDR", Direction::ToTarget, &[0xff]),
            Err(ChannelError::Truncated("msgType"))
        );
    }

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
