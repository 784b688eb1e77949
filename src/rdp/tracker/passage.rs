//! What the tracker and its channels do with every frame: report it, decompress it, let it pass.

use std::ops::Range;

use super::error::SessionError;
use crate::Direction;
use crate::budget::Budget;
use crate::bulk::Bulk;
use crate::event::{Event, Origin, Sink, Verdict};
use crate::frame;

/// One of a kind for each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PerDirection<T> {
    pub(super) to_target: T,
    pub(super) to_client: T,
}

impl<T> PerDirection<T> {
    pub(super) fn of(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::ToTarget => &mut self.to_target,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// What becomes of a frame.
#[derive(Debug)]
pub(super) enum Passage {
    /// It passes, perhaps with fields changed in place.
    AsIs,
    /// It does not pass, or not now.
    Withheld,
    /// These bytes pass in its place: frames held back before and itself, or others.
    Instead {
        bytes: Vec<u8>,
        secrets: Vec<Range<usize>>,
        origin: Origin,
    },
}

/// Reports what can be seen but not held up.
pub(super) fn watch(sink: &mut dyn Sink, event: &Event<'_>) -> Result<(), SessionError> {
    match sink.on_event(event) {
        Verdict::Forward => Ok(()),
        Verdict::Terminate(termination) => Err(SessionError::Terminated(termination)),
        Verdict::Replace { .. } | Verdict::Hold | Verdict::Deny { .. } => {
            Err(SessionError::Verdict("what is not a channel message"))
        }
    }
}

/// Reports whole PDUs as they go on.
pub(super) fn report(
    sink: &mut dyn Sink,
    direction: Direction,
    origin: Origin,
    bytes: &[u8],
    secrets: &[Range<usize>],
) -> Result<(), SessionError> {
    let mut rest = bytes;
    while let Ok(Some(frame)) = frame::find(rest)
        && let Some((bytes, behind)) = rest.split_at_checked(frame.length)
    {
        let event = Event::Pdu {
            direction,
            origin,
            bytes,
            secrets,
        };
        watch(sink, &event)?;
        rest = behind;
    }
    Ok(())
}

/// Tells of a kind of compression when it is used for the first time, and makes room for what it needs.
pub(super) fn note_compression(
    bulk: &mut PerDirection<Bulk>,
    direction: Direction,
    flags: u8,
    budget: &Budget,
    sink: &mut dyn Sink,
) -> Result<(), SessionError> {
    bulk.of(direction).prepare(flags, direction, budget)?;
    match bulk.of(direction).new_kind(flags) {
        Some(kind) => watch(sink, &Event::BulkCompression { direction, kind }),
        None => Ok(()),
    }
}

/// Data without their compression.
pub(super) fn plain<'a>(
    bulk: &'a mut PerDirection<Bulk>,
    direction: Direction,
    data: &'a [u8],
    flags: u8,
) -> Result<&'a [u8], SessionError> {
    bulk.of(direction)
        .decompress(data, flags)
        .ok_or(SessionError::Compression {
            from: direction,
            why: "do not decompress",
        })
}

/// A PDU of this sender that is not what it claims to be.
pub(super) fn malformed(from: Direction, pdu: &'static str) -> SessionError {
    SessionError::Malformed { from, pdu }
}
