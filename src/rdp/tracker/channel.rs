//! Static virtual channels ([MS-RDPBCGR] 2.2.6.1, 3.1.5.2.2): messages put together from their chunks, judged, and
//! passed on, held back, replaced or answered.
//!
//! A message that waits for its verdict holds up its own channel in its own direction, and nothing else: what comes behind it there is
//! kept in order, as frames, until the verdict is there.

use std::borrow::Cow;

use crate::Direction;
use crate::budget::{Budget, Held};
use crate::bulk::{self, Bulk};
use crate::bytes::u32_at;
use crate::event::{Event, Interest, Origin, Sink, StaticChannel, Unknown, Verdict};
use crate::frame;
use crate::mcs::{self, Mcs};
use jetway_base::limits;

use super::error::SessionError;
use super::passage::{Passage, PerDirection, malformed, note_compression, plain, report, watch};

/// A static channel and what of its messages has arrived.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) info: StaticChannel,
    pub(super) interest: Interest,
    pub(super) partial: PerDirection<Option<Partial>>,
    pub(super) waiting: PerDirection<Option<Waiting>>,
}

/// A message that waits for its verdict, and what has come behind it.
#[derive(Debug)]
pub(super) struct Waiting {
    message: Vec<u8>,
    /// Its frames, as they came.
    frames: Vec<u8>,
    /// What covers both.
    memory: Held,
    /// Frames of the same channel and direction, as they came.
    behind: Vec<u8>,
    /// What covers them.
    behind_memory: Held,
}

impl Waiting {
    /// Bytes behind the message.
    pub(super) fn behind(&self) -> usize {
        self.behind.len()
    }

    /// Keeps a frame behind the message.
    fn push(&mut self, frame: &[u8]) -> Result<Passage, SessionError> {
        let what = "what is behind a message that waits for a verdict";
        let memory = &mut self.behind_memory;
        memory.grow(&mut self.behind, frame.len(), usize::MAX, 0, what)?;
        self.behind.extend_from_slice(frame);
        Ok(Passage::Withheld)
    }
}

/// A message that is not complete.
#[derive(Debug)]
pub(super) struct Partial {
    total: usize,
    data: Vec<u8>,
    /// What covers it.
    data_memory: Held,
    /// Frames that wait for the verdict, as they came.
    held: Vec<u8>,
    /// What covers them.
    held_memory: Held,
}

impl Partial {
    /// Nothing yet of a message of `total` bytes.
    fn new(total: usize, budget: &Budget, direction: Direction) -> Self {
        Self {
            total,
            data: Vec::new(),
            data_memory: budget.nothing(direction),
            held: Vec::new(),
            held_memory: budget.nothing(direction),
        }
    }

    /// Adds what a chunk has of the message, and its frame where that waits for the verdict.
    fn add(&mut self, chunk: &Plain<'_>, total: usize, waits: bool) -> Result<(), SessionError> {
        let Plain { frame, data, .. } = *chunk;
        let memory = &mut self.data_memory;
        let what = "a message of a channel";
        memory.grow(&mut self.data, data.len(), total, 0, what)?;
        self.data.extend_from_slice(data);
        if waits {
            let memory = &mut self.held_memory;
            let what = "a message that waits for a verdict";
            memory.grow(&mut self.held, frame.len(), usize::MAX, 0, what)?;
            self.held.extend_from_slice(frame);
        }
        Ok(())
    }
}

/// What a chunk makes of its message.
enum Assembled<'a> {
    /// More of it is to come.
    Part,
    /// It is whole.
    Whole(Whole<'a>),
    /// It is not read, and nothing depends on it.
    Unread,
}

/// A message that is whole.
struct Whole<'a> {
    message: Cow<'a, [u8]>,
    /// Its frames, where they were kept.
    held: Vec<u8>,
    /// What covers both, unless it came in one chunk.
    memory: Option<(Held, Held)>,
}

/// A chunk of a channel as it came.
pub(super) struct Chunk<'a> {
    pub(super) direction: Direction,
    pub(super) frame: &'a [u8],
    pub(super) data: &'a [u8],
}

/// A chunk whose compression was taken off.
#[derive(Clone, Copy)]
struct Plain<'a> {
    direction: Direction,
    frame: &'a [u8],
    /// Length of the message, bytes.
    total: u32,
    /// Of the channel PDU header.
    flags: u32,
    data: &'a [u8],
}

/// What a channel shares with the others.
pub(super) struct ChannelContext<'a> {
    pub(super) budget: &'a Budget,
    /// What covers messages on their way out.
    pub(super) leaving: &'a mut Option<Held>,
    pub(super) awaited: &'a mut usize,
    pub(super) initiators: &'a mut PerDirection<u16>,
    pub(super) answers: &'a mut Vec<u8>,
}

impl Channel {
    pub(super) fn chunk(
        &mut self,
        chunk: &Chunk<'_>,
        bulk: &mut PerDirection<Bulk>,
        context: &mut ChannelContext<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let direction = chunk.direction;
        let bad = || malformed(direction, "channel PDU");
        let total = u32_at(chunk.data, 0).ok_or_else(bad)?;
        let flags = u32_at(chunk.data, 4).ok_or_else(bad)?;
        let data = chunk.data.get(CHANNEL_HEADER_BYTES..).unwrap_or_default();
        let [_, _, compression, _] = flags.to_le_bytes();
        if self.interest == Interest::Decide && compression & bulk::COMPRESSED != 0 {
            return Err(SessionError::Compression {
                from: direction,
                why: "was declined",
            });
        }
        // Followed even where nobody looks: the history is shared.
        note_compression(bulk, direction, compression, context.budget, sink)?;
        let data = plain(bulk, direction, data, compression)?;
        if self.interest == Interest::Ignore {
            return Ok(Passage::AsIs);
        }
        if let Some(waiting) = self.waiting.of(direction) {
            return waiting.push(chunk.frame);
        }
        let chunk = Plain {
            direction,
            frame: chunk.frame,
            total,
            flags,
            data,
        };
        self.plain_chunk(&chunk, context, sink)
    }

    /// A chunk without its compression.
    fn plain_chunk(
        &mut self,
        chunk: &Plain<'_>,
        context: &mut ChannelContext<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let Plain {
            direction,
            flags,
            data,
            ..
        } = *chunk;
        if flags & (channel_flag::SUSPEND | channel_flag::RESUME) != 0 && data.is_empty() {
            return Ok(Passage::AsIs);
        }
        match self.assemble(chunk, context)? {
            Assembled::Part if self.interest == Interest::Decide => Ok(Passage::Withheld),
            Assembled::Part => Ok(Passage::AsIs),
            Assembled::Unread => self.not_read(direction, data.len(), sink),
            Assembled::Whole(whole) => self.judge(chunk, whole, context, sink),
        }
    }

    /// Adds a chunk to its message.
    fn assemble<'a>(
        &mut self,
        chunk: &Plain<'a>,
        context: &mut ChannelContext<'_>,
    ) -> Result<Assembled<'a>, SessionError> {
        let Plain {
            direction,
            flags,
            data,
            ..
        } = *chunk;
        let bad = || malformed(direction, "channel PDU");
        let total = usize::try_from(chunk.total).unwrap_or(usize::MAX);
        let samples = self.interest == Interest::Sample;
        let partial = self.partial.of(direction);
        let first = flags & channel_flag::FIRST != 0;
        let last = flags & channel_flag::LAST != 0;
        // Who receives a first chunk begins again. What was there before is a message to nobody, unless it was whole.
        let again = partial
            .as_ref()
            .is_some_and(|partial| partial.data.len() < partial.total);
        if first && again {
            *partial = None;
        }
        let fits = first == partial.is_none()
            && partial.as_ref().map_or(0, |partial| partial.data.len()) <= total
            && total <= limits::CHANNEL_MESSAGE_BYTES;
        if samples && !fits {
            *partial = None;
            *context.awaited = 0;
            return Ok(Assembled::Unread);
        }
        if first != partial.is_none() {
            return Err(bad());
        }
        if total > limits::CHANNEL_MESSAGE_BYTES {
            return Err(SessionError::TooLong {
                from: direction,
                channel: self.info.name.clone(),
                length: total,
                limit: limits::CHANNEL_MESSAGE_BYTES,
            });
        }
        let whole = if first && last {
            Whole {
                message: Cow::Borrowed(data),
                held: Vec::new(),
                memory: None,
            }
        } else {
            let partial =
                partial.get_or_insert_with(|| Partial::new(total, context.budget, direction));
            let length = partial.data.len().saturating_add(data.len());
            if length > partial.total {
                if samples {
                    *self.partial.of(direction) = None;
                    *context.awaited = 0;
                    return Ok(Assembled::Unread);
                }
                return Err(bad());
            }
            partial.add(chunk, total, self.interest == Interest::Decide)?;
            if !last {
                let [_, _, compression, _] = flags.to_le_bytes();
                // Compressed, it may come in fewer.
                *context.awaited = if bulk::concerns(compression) {
                    0
                } else {
                    total.saturating_sub(length)
                };
                return Ok(Assembled::Part);
            }
            *context.awaited = 0;
            let partial = self.partial.of(direction).take().ok_or_else(bad)?;
            Whole {
                message: Cow::Owned(partial.data),
                held: partial.held,
                memory: Some((partial.data_memory, partial.held_memory)),
            }
        };
        if whole.message.len() == total {
            Ok(Assembled::Whole(whole))
        } else if samples {
            Ok(Assembled::Unread)
        } else {
            Err(bad())
        }
    }

    /// Asks for the verdict on a message that is whole, and carries it out, or keeps the message until there is one.
    fn judge(
        &mut self,
        chunk: &Plain<'_>,
        whole: Whole<'_>,
        context: &mut ChannelContext<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let Plain {
            direction, frame, ..
        } = *chunk;
        let Whole {
            message,
            held,
            memory,
        } = whole;
        let decides = self.interest == Interest::Decide;
        let verdict = sink.on_event(&Event::ChannelMessage {
            direction,
            channel: &self.info,
            data: &message,
        });
        let (frames, memory) = match memory {
            Some((data_memory, mut held_memory)) if verdict == Verdict::Hold => {
                drop(data_memory);
                let bytes = message.len().saturating_add(held.len());
                held_memory.cover(bytes, "a message that waits for a verdict")?;
                (held, Some(held_memory))
            }
            Some((_, held_memory)) => (held, Some(held_memory)),
            None => (held, None),
        };
        if verdict == Verdict::Hold && decides {
            let what = "a message that waits for a verdict";
            let (frames, memory) = match memory {
                Some(memory) => (frames, memory),
                // It came in one chunk.
                None => {
                    let bytes = message.len().saturating_add(frame.len());
                    let memory = context.budget.hold(direction, bytes, what)?;
                    (frame.to_vec(), memory)
                }
            };
            *self.waiting.of(direction) = Some(Waiting {
                message: message.into_owned(),
                frames,
                memory,
                behind: Vec::new(),
                behind_memory: context.budget.nothing(direction),
            });
            return Ok(Passage::Withheld);
        }
        drop(message);
        self.carry_out(direction, verdict, frames, memory, context)
    }

    /// Carries out a verdict on a message whose frames were kept, unless it came in one, which passes as it is.
    fn carry_out(
        &mut self,
        direction: Direction,
        verdict: Verdict,
        frames: Vec<u8>,
        memory: Option<Held>,
        context: &mut ChannelContext<'_>,
    ) -> Result<Passage, SessionError> {
        let decides = self.interest == Interest::Decide;
        match verdict {
            Verdict::Forward if frames.is_empty() => Ok(Passage::AsIs),
            Verdict::Forward => {
                leave(context.leaving, memory, frames.len())?;
                Ok(Passage::Instead {
                    bytes: frames,
                    secrets: Vec::new(),
                    origin: Origin::Peer,
                })
            }
            Verdict::Replace { data, grounds: _ } if decides => {
                drop(frames);
                let bytes = self.encode(direction, context, &data)?;
                leave(context.leaving, memory, bytes.len())?;
                Ok(Passage::Instead {
                    bytes,
                    secrets: Vec::new(),
                    origin: Origin::Gateway,
                })
            }
            Verdict::Deny { answers, .. } if decides => {
                for answer in &answers {
                    let bytes = self.encode(direction.opposite(), context, answer)?;
                    context.answers.extend(bytes);
                }
                Ok(Passage::Withheld)
            }
            Verdict::Replace { .. } | Verdict::Hold | Verdict::Deny { .. } => {
                Err(SessionError::Verdict("a message that has passed"))
            }
            Verdict::Terminate(termination) => Err(SessionError::Terminated(termination)),
        }
    }

    /// Asks for the verdict on the message that waits in this direction, and adds what then goes on to `onward`: itself, and what
    /// came behind it, until a message has to wait once more.
    pub(super) fn resume(
        &mut self,
        direction: Direction,
        context: &mut ChannelContext<'_>,
        sink: &mut dyn Sink,
        onward: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        let Some(waiting) = self.waiting.of(direction).take() else {
            // Nothing waits there: the sink is mistaken.
            return Ok(());
        };
        let verdict = sink.on_answer(&Event::ChannelMessage {
            direction,
            channel: &self.info,
            data: &waiting.message,
        });
        if verdict == Verdict::Hold {
            *self.waiting.of(direction) = Some(waiting);
            return Ok(());
        }
        let Waiting {
            message,
            frames,
            memory,
            behind,
            behind_memory,
        } = waiting;
        drop(message);
        let passage = self.carry_out(direction, verdict, frames, Some(memory), context)?;
        pass_on(passage, direction, &[], sink, onward)?;
        let before = onward.len();
        let mut rest = behind.as_slice();
        while let Ok(Some(frame)) = frame::find(rest)
            && let Some((bytes, more)) = rest.split_at_checked(frame.length)
        {
            rest = more;
            let passage = self.again(direction, bytes, context, sink)?;
            pass_on(passage, direction, bytes, sink, onward)?;
        }
        let passed = onward.len().saturating_sub(before);
        leave(context.leaving, Some(behind_memory), passed)
    }

    /// A frame that has come before, and was kept.
    fn again(
        &mut self,
        direction: Direction,
        frame: &[u8],
        context: &mut ChannelContext<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let bad = || malformed(direction, "channel PDU");
        let Ok((Mcs::SendData { user_data, .. }, _)) = mcs::decode(frame) else {
            return Err(bad());
        };
        let data = frame.get(user_data).ok_or_else(bad)?;
        if let Some(waiting) = self.waiting.of(direction) {
            return waiting.push(frame);
        }
        let chunk = Plain {
            direction,
            frame,
            total: u32_at(data, 0).ok_or_else(bad)?,
            flags: u32_at(data, 4).ok_or_else(bad)?,
            // Compression is declined where a message may have to wait.
            data: data.get(CHANNEL_HEADER_BYTES..).unwrap_or_default(),
        };
        self.plain_chunk(&chunk, context, sink)
    }

    /// A chunk passes whose message is not read, where nothing depends on it.
    fn not_read(
        &self,
        direction: Direction,
        bytes: usize,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let channel = self.info.id;
        let what = Unknown::Chunk { channel, bytes };
        watch(sink, &Event::Unknown { direction, what })?;
        Ok(Passage::AsIs)
    }

    /// The frames of a message, in chunks that every peer accepts.
    fn encode(
        &self,
        direction: Direction,
        context: &mut ChannelContext<'_>,
        message: &[u8],
    ) -> Result<Vec<u8>, SessionError> {
        // Between the chunks of another message it would destroy that one.
        let busy = match direction {
            Direction::ToTarget => self.partial.to_target.as_ref(),
            Direction::ToClient => self.partial.to_client.as_ref(),
        };
        let passed = busy.is_some_and(|partial| partial.held.is_empty());
        let total = u32::try_from(message.len()).ok();
        let initiator = *context.initiators.of(direction);
        let Some(total) = total.filter(|_| !passed && initiator != 0) else {
            return Err(SessionError::Verdict("a channel message"));
        };
        let mut bytes = Vec::new();
        let count = message.len().div_ceil(CHUNK_BYTES).max(1);
        for position in 0..count {
            let start = position.saturating_mul(CHUNK_BYTES);
            let end = start.saturating_add(CHUNK_BYTES).min(message.len());
            let mut flags = 0;
            if position == 0 {
                flags |= channel_flag::FIRST;
            }
            if end == message.len() {
                flags |= channel_flag::LAST;
            }
            if self.info.options & CHANNEL_OPTION_SHOW_PROTOCOL != 0 {
                flags |= channel_flag::SHOW_PROTOCOL;
            }
            let parts = [
                &total.to_le_bytes()[..],
                &flags.to_le_bytes(),
                message.get(start..end).unwrap_or_default(),
            ];
            let request = direction == Direction::ToTarget;
            let frame = mcs::encode_send_data(request, initiator, self.info.id, &parts)
                .ok_or(SessionError::Verdict("a channel message"))?;
            bytes.extend(frame);
        }
        Ok(bytes)
    }
}

/// Adds what passes of a frame to `onward`, and reports it.
fn pass_on(
    passage: Passage,
    direction: Direction,
    frame: &[u8],
    sink: &mut dyn Sink,
    onward: &mut Vec<u8>,
) -> Result<(), SessionError> {
    let (bytes, origin) = match &passage {
        Passage::AsIs => (frame, Origin::Peer),
        Passage::Withheld => return Ok(()),
        Passage::Instead { bytes, origin, .. } => (bytes.as_slice(), *origin),
    };
    report(sink, direction, origin, bytes, &[])?;
    onward.extend_from_slice(bytes);
    Ok(())
}

/// Covers a message of so many bytes until it has left, besides others that leave with it.
fn leave(
    leaving: &mut Option<Held>,
    memory: Option<Held>,
    bytes: usize,
) -> Result<(), SessionError> {
    let Some(mut memory) = memory else {
        return Ok(());
    };
    let what = "a message on its way";
    memory.cover(bytes, what)?;
    if let Some(leaving) = leaving {
        drop(memory);
        leaving.add(bytes, what)?;
    } else {
        *leaving = Some(memory);
    }
    Ok(())
}

/// Flags of the channel PDU header ([MS-RDPBCGR] 2.2.6.1.1).
mod channel_flag {
    pub(super) const FIRST: u32 = 0x01;
    pub(super) const LAST: u32 = 0x02;
    pub(super) const SHOW_PROTOCOL: u32 = 0x10;
    pub(super) const SUSPEND: u32 = 0x20;
    pub(super) const RESUME: u32 = 0x40;
}

/// `CHANNEL_OPTION_SHOW_PROTOCOL`: chunks carry [`channel_flag::SHOW_PROTOCOL`].
const CHANNEL_OPTION_SHOW_PROTOCOL: u32 = 0x0020_0000;

/// `CHANNEL_CHUNK_LENGTH`: what every peer accepts.
const CHUNK_BYTES: usize = 1600;

/// Bytes of the channel PDU header.
const CHANNEL_HEADER_BYTES: usize = 8;
