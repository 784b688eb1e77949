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

use super::Direction;
use super::budget::Budget;

pub mod audin;
pub mod cliprdr;
pub mod display;
pub mod drdynvc;
pub mod egfx;
pub mod event;
pub mod rail;
pub mod rdp8_lite;
pub mod rdpdr;
pub mod rdpsnd;
mod read;

#[cfg(test)]
mod clipboard_messages;
#[cfg(test)]
mod hostile;

use self::event::noted;
pub use self::event::{ChannelEvent, Unreadable};
pub use self::read::ChannelError;
pub use self::read::wide;

/// The parser of a channel whose PDUs may be judged by their beginning.
pub trait Parser {
    /// Takes the next PDU of `total` bytes, of which only `head` is at hand.
    ///
    /// # Errors
    ///
    /// It is not a PDU of this channel, a bound was reached, or more than `head` is needed.
    fn feed_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError>;

    /// Takes the next PDU, whole.
    ///
    /// # Errors
    ///
    /// It is not a PDU of this channel, or a bound was reached.
    fn feed(
        &mut self,
        direction: Direction,
        pdu: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        self.feed_head(direction, pdu, pdu.len())
    }
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
}
