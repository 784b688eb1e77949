//! [MS-RDPEDYC]: dynamic channels, many in one static channel.
//!
//! The target opens a dynamic channel by name, and both sides then send messages on it, each in one PDU or cut into
//! several. What passes on most of them (graphics above all) is only counted, never held. Messages of channels with
//! a parser of their own are put together here, decompressed if need be, and handed to it: sound and microphone,
//! display control, and static channels that the peers agreed to tunnel.
//!
//! [MS-RDPEDYC]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpedyc/

use std::collections::{BTreeMap, VecDeque};

use super::egfx::{self, Egfx};
use super::event::{ChannelEvent, noted};
pub use super::event::{DynamicEvent, DynamicTraffic, SoftSyncTunnel};
use super::rdp8_lite::{self, Rdp8Lite};
use super::read::{ChannelError, Reader, narrow_text, room, size, wide, within};
use super::{Parser as _, audin, cliprdr, display, rail, rdpdr, rdpsnd};
use crate::Direction;
use crate::budget::{Budget, Held, places};
use jetway_base::limits;

/// The dynamic channels of one session.
#[derive(Debug)]
pub struct Drdynvc {
    channels: BTreeMap<u32, Channel>,
    budget: Budget,
}

#[derive(Debug)]
struct Channel {
    name: String,
    /// The client took it.
    is_open: bool,
    /// Names under which it was asked for again, and no answer to that has passed.
    again: VecDeque<String>,
    traffic: DynamicTraffic,
    /// Where its messages are read, if anywhere.
    parser: Option<Box<Inner>>,
    /// Where they are only looked at.
    graphics: Option<Box<Egfx>>,
    /// What covers the channel, but for what its parser remembers and for messages on their way.
    memory: Held,
}

/// A channel whose messages are read.
#[derive(Debug)]
struct Inner {
    parser: Parser,
    to_target: Assembly,
    to_client: Assembly,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lies in the box of its channel, beside two assemblies"
)]
enum Parser {
    Cliprdr(cliprdr::Cliprdr),
    Rdpdr(rdpdr::Rdpdr),
    Rdpsnd(rdpsnd::Rdpsnd),
    Rail(rail::Rail),
    Audin(audin::Audin),
    Display(display::Display),
}

/// A message on its way.
struct Assembly {
    /// What has arrived of it; empty between messages.
    bytes: Vec<u8>,
    /// Its length; 0 between messages.
    expected: usize,
    compression: Rdp8Lite,
    /// What covers the message and the history.
    memory: Held,
    /// Of that, what the history takes: nothing before it is used.
    history: usize,
    /// What is not read, where nothing depends on it.
    lost: Lost,
}

/// What of a channel is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// So many bytes of a message that is too long.
    Message(usize),
    /// All that follows: it depends on what could not be decompressed.
    Everything,
}

// What has arrived is content.
impl std::fmt::Debug for Assembly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembly")
            .field("bytes", &self.bytes.len())
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl Drdynvc {
    /// Before the first PDU.
    pub fn new(budget: &Budget) -> Self {
        Self {
            channels: BTreeMap::new(),
            budget: budget.clone(),
        }
    }

    /// Takes the next PDU.
    ///
    /// # Errors
    ///
    /// It is not a dynamic channel PDU, a bound was reached, or a message of an inner channel is malformed.
    pub fn feed(
        &mut self,
        direction: Direction,
        pdu: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::new(pdu);
        let header = reader.u8("drdynvc header")?;
        let (cb_id, second, cmd) = (header & 3, header >> 2 & 3, header >> 4);
        let event = match cmd {
            CREATE => {
                let id = variable(cb_id, &mut reader, "ChannelId")?;
                match direction {
                    Direction::ToClient => self.create(id, &mut reader)?,
                    Direction::ToTarget => self.created(id, &mut reader)?,
                }
            }
            CLOSE => {
                let id = variable(cb_id, &mut reader, "ChannelId")?;
                // The answer to a close is a close: it closes nothing that is open, and says nothing new.
                let Some(channel) = self.channels.remove(&id) else {
                    return Ok(Vec::new());
                };
                DynamicEvent::Closed {
                    direction,
                    id,
                    name: channel.name,
                    traffic: channel.traffic,
                }
            }
            DATA_FIRST | DATA_FIRST_COMPRESSED => {
                let id = variable(cb_id, &mut reader, "ChannelId")?;
                let length = variable(second, &mut reader, "Length")?;
                let length = Some(size(length));
                return self.data(direction, id, length, cmd == DATA_FIRST_COMPRESSED, &reader);
            }
            DATA | DATA_COMPRESSED => {
                let id = variable(cb_id, &mut reader, "ChannelId")?;
                return self.data(direction, id, None, cmd == DATA_COMPRESSED, &reader);
            }
            CAPABILITIES => {
                reader.skip(1, "Pad")?;
                DynamicEvent::Capabilities {
                    direction,
                    version: reader.u16("Version")?,
                }
            }
            // There is no tunnel to move to: whatever they say, nothing moves.
            SOFT_SYNC_REQUEST if direction == Direction::ToClient => {
                let event = soft_sync_request(&mut reader);
                let event = event.map(|event| vec![ChannelEvent::Dynamic(event)]);
                return noted("drdynvc", direction, event);
            }
            SOFT_SYNC_RESPONSE if direction == Direction::ToTarget => {
                let event = soft_sync_response(&mut reader);
                let event = event.map(|event| vec![ChannelEvent::Dynamic(event)]);
                return noted("drdynvc", direction, event);
            }
            _ => DynamicEvent::Unknown {
                direction,
                cmd,
                bytes: wide(pdu.len()),
            },
        };
        Ok(vec![ChannelEvent::Dynamic(event)])
    }

    /// The channels that the client took, with what has passed on them.
    pub fn open(&self) -> impl Iterator<Item = (&str, DynamicTraffic)> {
        self.channels
            .values()
            .filter(|channel| channel.is_open)
            .map(|channel| (channel.name.as_str(), channel.traffic))
    }

    /// Bytes until a message of the graphics on its way is whole.
    pub fn awaited(&self, direction: Direction) -> usize {
        let graphics = self
            .channels
            .values()
            .filter_map(|channel| channel.graphics.as_ref());
        let awaited = graphics.map(|graphics| graphics.awaited(direction));
        awaited.max().unwrap_or(0)
    }

    /// The name of the channel `id`, open or asked for.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.channels.get(&id).map(|channel| channel.name.as_str())
    }

    fn create(&mut self, id: u32, reader: &mut Reader<'_>) -> Result<DynamicEvent, ChannelError> {
        // Clients ignore a name without an end. Whoever does not has it up to the end of the PDU.
        let end = reader.bytes.iter().position(|byte| *byte == 0);
        let length = end.unwrap_or(reader.bytes.len());
        // The beginning of a longer one is no name that anybody has.
        let name = narrow_text(reader.take(length.min(NAME_BYTES), "ChannelName")?);
        // Clients refuse it and keep the one they have, or take it where it is the same.
        if let Some(channel) = self.channels.get_mut(&id) {
            room(
                channel.again.len(),
                AGAIN,
                "requests for one dynamic channel",
            )?;
            let bytes = places::<String>(1).saturating_add(name.len());
            channel.memory.add(bytes, "a dynamic channel")?;
            channel.again.push_back(name.clone());
            return Ok(DynamicEvent::Requested { id, name });
        }
        self.add(id, name)
    }

    fn add(&mut self, id: u32, name: String) -> Result<DynamicEvent, ChannelError> {
        room(
            self.channels.len(),
            limits::DYNAMIC_CHANNELS,
            "dynamic channels",
        )?;
        let is_graphics = name.eq_ignore_ascii_case(GRAPHICS);
        let parser = Parser::of(&name, &self.budget);
        let mut bytes = places::<(u32, Channel)>(1).saturating_add(name.capacity());
        if parser.is_some() {
            bytes = bytes.saturating_add(size_of::<Inner>());
        }
        if is_graphics {
            bytes = bytes.saturating_add(egfx::HELD_BYTES);
        }
        let memory = self
            .budget
            .hold(Direction::ToClient, bytes, "a dynamic channel")?;
        let assembly = |direction| Assembly::new(&self.budget, direction);
        let channel = Channel {
            name: name.clone(),
            is_open: false,
            again: VecDeque::new(),
            traffic: DynamicTraffic::default(),
            parser: parser.map(|parser| {
                Box::new(Inner {
                    parser,
                    to_target: assembly(Direction::ToTarget),
                    to_client: assembly(Direction::ToClient),
                })
            }),
            graphics: is_graphics.then(Box::<Egfx>::default),
            memory,
        };
        self.channels.insert(id, channel);
        Ok(DynamicEvent::Requested { id, name })
    }

    fn created(&mut self, id: u32, reader: &mut Reader<'_>) -> Result<DynamicEvent, ChannelError> {
        let status = reader.u32("CreationStatus")?.cast_signed();
        let taken = status >= 0;
        let Some(channel) = self.channels.get_mut(&id) else {
            let name = None;
            return Ok(DynamicEvent::Answered { id, name, status });
        };
        if channel.is_open {
            // The answer to a request for what was open already, or to none: it closes nothing, so that nothing that the
            // target has open is passed over.
            let name = channel.again.pop_front();
            return match name {
                Some(name) if taken && !name.eq_ignore_ascii_case(&channel.name) => {
                    Err(ChannelError::Invalid {
                        what: "ChannelId of a channel that is open under another name",
                        value: id.into(),
                    })
                }
                name => Ok(DynamicEvent::Answered { id, name, status }),
            };
        }
        if taken {
            channel.is_open = true;
            let name = Some(channel.name.clone());
            return Ok(DynamicEvent::Answered { id, name, status });
        }
        // Refused; the next request for it is what the next answer is about.
        let Some(mut refused) = self.channels.remove(&id) else {
            let name = None;
            return Ok(DynamicEvent::Answered { id, name, status });
        };
        if let Some(next) = refused.again.pop_front() {
            self.add(id, next)?;
            if let Some(channel) = self.channels.get_mut(&id) {
                let bytes = refused.again.iter().map(String::len).sum::<usize>();
                let bytes = bytes.saturating_add(places::<String>(refused.again.len()));
                channel.memory.add(bytes, "a dynamic channel")?;
                channel.again = refused.again;
            }
        }
        let name = Some(refused.name);
        Ok(DynamicEvent::Answered { id, name, status })
    }

    /// Data, the first of a message of `length` bytes or what follows.
    fn data(
        &mut self,
        direction: Direction,
        id: u32,
        length: Option<usize>,
        compressed: bool,
        reader: &Reader<'_>,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let data = reader.bytes;
        let Some(channel) = self.channels.get_mut(&id) else {
            return Ok(vec![ChannelEvent::Dynamic(DynamicEvent::Stray {
                direction,
                id,
                bytes: wide(data.len()),
            })]);
        };
        let traffic = &mut channel.traffic;
        let count = match direction {
            Direction::ToTarget => &mut traffic.to_target,
            Direction::ToClient => &mut traffic.to_client,
        };
        *count = count.saturating_add(wide(data.len()));
        traffic.compressed |= compressed;
        if let Some(graphics) = &mut channel.graphics {
            let events = if compressed {
                graphics.feed_compressed(direction)
            } else {
                graphics.feed(direction, length, data)
            };
            return Ok(events.into_iter().map(ChannelEvent::Graphics).collect());
        }
        let Some(inner) = &mut channel.parser else {
            return Ok(Vec::new());
        };
        let assembly = match direction {
            Direction::ToTarget => &mut inner.to_target,
            Direction::ToClient => &mut inner.to_client,
        };
        let Some(name) = inner.parser.matters_not() else {
            return match assembly.add(length, compressed, data)? {
                Some(message) => inner.parser.feed(direction, &message),
                None => Ok(Vec::new()),
            };
        };
        if assembly.is_lost(length, data.len()) {
            return Ok(Vec::new());
        }
        let message = match assembly.add(length, compressed, data) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Vec::new()),
            Err(error) => {
                assembly.lose(&error, length, data.len());
                return noted(name, direction, Err(error));
            }
        };
        noted(name, direction, inner.parser.feed(direction, &message))
    }
}

impl Assembly {
    fn new(budget: &Budget, direction: Direction) -> Self {
        Self {
            bytes: Vec::new(),
            expected: 0,
            compression: Rdp8Lite::default(),
            memory: budget.nothing(direction),
            history: 0,
            lost: Lost::Nothing,
        }
    }

    /// Whether data belong to what is not read any more.
    fn is_lost(&mut self, length: Option<usize>, bytes: usize) -> bool {
        match self.lost {
            Lost::Nothing => false,
            Lost::Everything => true,
            Lost::Message(_) if length.is_some() => {
                self.lost = Lost::Nothing;
                false
            }
            Lost::Message(left) => {
                let left = left.saturating_sub(bytes);
                self.lost = match left {
                    0 => Lost::Nothing,
                    left => Lost::Message(left),
                };
                true
            }
        }
    }

    /// Gives up what cannot be read: the message, or all of them where the history of the compression is lost.
    fn lose(&mut self, error: &ChannelError, length: Option<usize>, bytes: usize) {
        let left = length.map_or(0, |length| length.saturating_sub(bytes));
        self.lost = match (error, left) {
            (ChannelError::Compression(_), _) => Lost::Everything,
            (ChannelError::TooLong { .. }, 1..) => Lost::Message(left),
            _ => Lost::Nothing,
        };
        self.bytes = Vec::new();
        self.expected = 0;
        // To give back never fails.
        let _ = self.memory.cover(self.history, "nothing more");
    }

    /// Takes the next part; the message once it is whole.
    fn add(
        &mut self,
        length: Option<usize>,
        compressed: bool,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, ChannelError> {
        let plain = if compressed {
            if self.history == 0 {
                let what = "the history of a dynamic channel";
                self.memory.add(rdp8_lite::HELD_BYTES, what)?;
                self.history = rdp8_lite::HELD_BYTES;
            }
            self.compression.decompress(data)?
        } else {
            data.to_vec()
        };
        match length {
            Some(length) => {
                within(
                    length,
                    limits::DYNAMIC_MESSAGE_BYTES,
                    "dynamic channel message",
                )?;
                // Whoever receives it begins again; what there was of another message is no message.
                self.bytes = Vec::new();
                self.memory.cover(self.history, "nothing more")?;
                self.expected = length;
            }
            // 2.2.3.2: without a first part it is the whole message.
            None if self.expected == 0 => return Ok(Some(plain)),
            None => {}
        }
        let arrived = self.bytes.len().saturating_add(plain.len());
        within(arrived, self.expected, "dynamic channel data")?;
        self.memory.grow(
            &mut self.bytes,
            plain.len(),
            self.expected,
            self.history,
            "a message of a dynamic channel",
        )?;
        self.bytes.extend_from_slice(&plain);
        if arrived < self.expected {
            return Ok(None);
        }
        self.expected = 0;
        let message = std::mem::take(&mut self.bytes);
        self.memory.cover(self.history, "nothing more")?;
        Ok(Some(message))
    }
}

impl Parser {
    fn of(name: &str, budget: &Budget) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("cliprdr") {
            Some(Self::Cliprdr(cliprdr::Cliprdr::new(budget)))
        } else if is("rdpdr") {
            Some(Self::Rdpdr(rdpdr::Rdpdr::new(budget)))
        } else if is("rdpsnd") || is("AUDIO_PLAYBACK_DVC") || is("AUDIO_PLAYBACK_LOSSY_DVC") {
            Some(Self::Rdpsnd(rdpsnd::Rdpsnd::new(budget)))
        } else if is("rail") {
            Some(Self::Rail(rail::Rail))
        } else if is("AUDIO_INPUT") {
            Some(Self::Audin(audin::Audin::new(budget)))
        } else if is("Microsoft::Windows::RDS::DisplayControl") {
            Some(Self::Display(display::Display))
        } else {
            None
        }
    }

    /// The name of a channel on which nothing depends.
    fn matters_not(&self) -> Option<&'static str> {
        match self {
            Self::Cliprdr(_) | Self::Rdpdr(_) | Self::Rail(_) => None,
            Self::Rdpsnd(_) => Some("rdpsnd"),
            Self::Audin(_) => Some("AUDIO_INPUT"),
            Self::Display(_) => Some("DisplayControl"),
        }
    }

    fn feed(
        &mut self,
        direction: Direction,
        message: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        match self {
            Self::Cliprdr(parser) => parser.feed(direction, message),
            Self::Rdpdr(parser) => parser.feed(direction, message),
            Self::Rdpsnd(parser) => parser.feed(direction, message),
            Self::Rail(parser) => parser.feed(direction, message),
            Self::Audin(parser) => parser.feed(direction, message),
            Self::Display(parser) => parser.feed(direction, message),
        }
    }
}

/// [MS-RDPEGFX] 2.1.
const GRAPHICS: &str = "Microsoft::Windows::RDS::Graphics";

/// A field of 1, 2 or 4 bytes.
fn variable(
    selector: u8,
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<u32, ChannelError> {
    match selector {
        0 => reader.u8(field).map(u32::from),
        1 => reader.u16(field).map(u32::from),
        // 3 is not specified, and four bytes to receivers, too.
        _ => reader.u32(field),
    }
}

fn soft_sync_request(reader: &mut Reader<'_>) -> Result<DynamicEvent, ChannelError> {
    reader.skip(1, "Pad")?;
    let length = size(reader.u32("Length")?);
    let rest = length.checked_sub(4).ok_or(ChannelError::Invalid {
        what: "Length",
        value: wide(length),
    })?;
    reader.limit(rest, "SoftSyncChannelLists")?;
    let flags = reader.u16("Flags")?;
    let count = reader.u16("NumberOfTunnels")?;
    let mut tunnels = Vec::new();
    if flags & SOFT_SYNC_CHANNEL_LIST_PRESENT != 0 {
        for _ in 0..count {
            room(tunnels.len(), TUNNELS, "multitransport tunnels")?;
            let tunnel_type = reader.u32("TunnelType")?;
            let count = usize::from(reader.u16("NumberOfDVCs")?);
            if count > limits::DYNAMIC_CHANNELS {
                return Err(ChannelError::TooMany {
                    what: "dynamic channels",
                    limit: limits::DYNAMIC_CHANNELS,
                });
            }
            let channels = (0..count)
                .map(|_| reader.u32("ListOfDVCIds"))
                .collect::<Result<_, _>>()?;
            tunnels.push(SoftSyncTunnel {
                tunnel_type,
                channels,
            });
        }
    }
    Ok(DynamicEvent::SoftSyncRequested { flags, tunnels })
}

fn soft_sync_response(reader: &mut Reader<'_>) -> Result<DynamicEvent, ChannelError> {
    reader.skip(1, "Pad")?;
    let count = size(reader.u32("NumberOfTunnels")?);
    if count > TUNNELS {
        return Err(ChannelError::TooMany {
            what: "multitransport tunnels",
            limit: TUNNELS,
        });
    }
    let tunnels = (0..count)
        .map(|_| reader.u32("TunnelsToSwitch"))
        .collect::<Result<_, _>>()?;
    Ok(DynamicEvent::SoftSyncAnswered { tunnels })
}

const CREATE: u8 = 0x1;
const DATA_FIRST: u8 = 0x2;
const DATA: u8 = 0x3;
const CLOSE: u8 = 0x4;
const CAPABILITIES: u8 = 0x5;
const DATA_FIRST_COMPRESSED: u8 = 0x6;
const DATA_COMPRESSED: u8 = 0x7;
const SOFT_SYNC_REQUEST: u8 = 0x8;
const SOFT_SYNC_RESPONSE: u8 = 0x9;

const SOFT_SYNC_CHANNEL_LIST_PRESENT: u16 = 0x02;

/// Tunnel types that exist: 2. Some room.
const TUNNELS: usize = 8;

/// The longest known name has 47 characters.
const NAME_BYTES: usize = 256;

/// Requests for one channel id without an answer, besides the first.
const AGAIN: usize = 8;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;
    use crate::channel::egfx::GraphicsEvent;

    #[test]
    fn graphics_are_counted_and_never_held() {
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 7, "Microsoft::Windows::RDS::Graphics");
        // Announced as 4 GiB.
        let first = [&[0x28, 7, 0xff, 0xff, 0xff, 0xff][..], &[1; 100]].concat();
        let unread = Ok(vec![ChannelEvent::Graphics(GraphicsEvent::Unread)]);
        assert_eq!(manager.feed(ToClient, &first), unread);
        let next = [&[0x30, 7][..], &[1; 50]].concat();
        assert_eq!(manager.feed(ToClient, &next), Ok(vec![]));
        assert_eq!(manager.awaited(ToClient), 0xffff_ffff - 150);
        assert_eq!(manager.awaited(ToTarget), 0);
        // Compressed, and not even well.
        assert_eq!(manager.feed(ToTarget, &[0x70, 7, 1, 2, 3]), unread);
        let traffic = DynamicTraffic {
            to_target: 3,
            to_client: 150,
            compressed: true,
        };
        assert_eq!(
            manager.open().collect::<Vec<_>>(),
            [("Microsoft::Windows::RDS::Graphics", traffic)]
        );
        let closed = DynamicEvent::Closed {
            direction: ToClient,
            id: 7,
            name: "Microsoft::Windows::RDS::Graphics".to_owned(),
            traffic,
        };
        assert_eq!(one(&mut manager, ToClient, &[0x40, 7]), closed);
        assert_eq!(manager.awaited(ToClient), 0);
        // The answer to the close, and what crossed it.
        assert_eq!(manager.feed(ToTarget, &[0x40, 7]), Ok(vec![]));
        let stray = DynamicEvent::Stray {
            direction: ToTarget,
            id: 7,
            bytes: 1,
        };
        assert_eq!(one(&mut manager, ToTarget, &[0x30, 7, 1]), stray);
    }

    #[test]
    fn a_message_in_parts_is_read_when_it_is_whole() {
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 0x1234, "AUDIO_INPUT");
        let heard = |bytes| {
            let event = audin::MicrophoneEvent::Heard { bytes };
            vec![ChannelEvent::Microphone(event)]
        };
        assert_eq!(
            manager.feed(ToTarget, &[0x21, 0x34, 0x12, 5, 6, 1]),
            Ok(vec![])
        );
        // The other direction has messages of its own.
        manager
            .feed(ToClient, &[0x31, 0x34, 0x12, 1, 1, 0, 0, 0])
            .unwrap();
        assert_eq!(
            manager.feed(ToTarget, &[0x31, 0x34, 0x12, 2, 3]),
            Ok(vec![])
        );
        assert_eq!(manager.feed(ToTarget, &[0x31, 0x34, 0x12, 4]), Ok(heard(4)));
        assert_eq!(
            manager.feed(ToTarget, &[0x31, 0x34, 0x12, 6, 1, 2]),
            Ok(heard(2))
        );
        // Compressed parts: each direction has its history.
        let part = [0x61, 0x34, 0x12, 4, 0xe0, 0x06, 6, 1];
        assert_eq!(manager.feed(ToTarget, &part), Ok(vec![]));
        let part = [0x71, 0x34, 0x12, 0xe0, 0x06, 2, 3];
        assert_eq!(manager.feed(ToTarget, &part), Ok(heard(3)));
    }

    #[test]
    fn more_than_announced_is_an_error_where_a_message_matters_and_is_noted_elsewhere() {
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 1, "rdpdr");
        manager.feed(ToTarget, &[0x20, 1, 4, b'r']).unwrap();
        manager.feed(ToTarget, &[0x30, 1, 1, 2, 3, 4]).unwrap_err();
        let too_long = [0x28, 1, 0xff, 0xff, 0xff, 0xff, 6];
        let error = manager.feed(ToTarget, &too_long);
        assert!(matches!(error, Err(ChannelError::TooLong { .. })));

        let heard = |bytes| {
            let event = audin::MicrophoneEvent::Heard { bytes };
            vec![ChannelEvent::Microphone(event)]
        };
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 1, "AUDIO_INPUT");
        manager.feed(ToTarget, &[0x20, 1, 4, 6]).unwrap();
        let events = manager.feed(ToTarget, &[0x30, 1, 1, 2, 3, 4]).unwrap();
        assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
        assert_eq!(manager.feed(ToTarget, &[0x30, 1, 6, 1]), Ok(heard(1)));
        // Too long to be held: passed over, until the next one.
        let events = manager.feed(ToTarget, &too_long).unwrap();
        assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
        assert_eq!(manager.feed(ToTarget, &[0x30, 1, 6, 1]), Ok(vec![]));
        manager.feed(ToTarget, &[0x20, 1, 2, 6]).unwrap();
        assert_eq!(manager.feed(ToTarget, &[0x30, 1, 7]), Ok(heard(1)));
        // What does not decompress takes all that follows with it, and nothing else.
        let events = manager.feed(ToTarget, &[0x70, 1, 1, 2, 3]).unwrap();
        assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
        assert_eq!(manager.feed(ToTarget, &[0x30, 1, 6, 1]), Ok(vec![]));
        let version = manager.feed(ToClient, &[0x30, 1, 1, 1, 0, 0, 0]);
        assert!(matches!(
            version.as_deref(),
            Ok([ChannelEvent::Microphone(_)])
        ));
    }

    #[test]
    fn a_message_inside_a_message_takes_its_place() {
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 1, "AUDIO_INPUT");
        manager.feed(ToTarget, &[0x20, 1, 4, 6]).unwrap();
        manager.feed(ToTarget, &[0x20, 1, 3, 6, 1]).unwrap();
        let heard = audin::MicrophoneEvent::Heard { bytes: 2 };
        assert_eq!(
            manager.feed(ToTarget, &[0x30, 1, 2]),
            Ok(vec![ChannelEvent::Microphone(heard)])
        );
    }

    #[test]
    fn a_channel_that_the_client_does_not_have_is_not_open() {
        let mut manager = Drdynvc::new(&Budget::default());
        manager.feed(ToClient, b"\x10\x03echo\0").unwrap();
        assert_eq!(manager.open().count(), 0);
        let refused = DynamicEvent::Answered {
            id: 3,
            name: Some("echo".to_owned()),
            status: -1,
        };
        let answer = [0x10, 3, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(one(&mut manager, ToTarget, &answer), refused);
        assert_eq!(manager.name(3), None);
    }

    #[test]
    fn a_channel_that_is_open_cannot_be_made_to_look_closed() {
        let mut manager = Drdynvc::new(&Budget::default());
        open(&mut manager, 1, "AUDIO_INPUT");
        let refusal = [0x10, 1, 0xff, 0xff, 0xff, 0xff];
        let consent = [0x10, 1, 0, 0, 0, 0];
        // An answer to nothing; the answer of a client that refuses another channel by the same id; one that takes it.
        manager.feed(ToTarget, &refusal).unwrap();
        manager.feed(ToClient, b"\x10\x01other\0").unwrap();
        manager.feed(ToTarget, &refusal).unwrap();
        assert_eq!(manager.name(1), Some("AUDIO_INPUT"));
        assert_eq!(manager.open().count(), 1);
        manager.feed(ToClient, b"\x10\x01AUDIO_INPUT\0").unwrap();
        manager.feed(ToTarget, &consent).unwrap();
        manager.feed(ToClient, b"\x10\x01other\0").unwrap();
        manager.feed(ToTarget, &consent).unwrap_err();
        // Closed, its id is free again.
        manager.feed(ToTarget, &[0x40, 1]).unwrap();
        open(&mut manager, 1, "other");
    }

    #[test]
    fn requests_for_one_id_are_answered_in_their_order() {
        let mut manager = Drdynvc::new(&Budget::default());
        for name in [&b"\x10\x01echo\0"[..], b"\x10\x01AUDIO_INPUT\0"] {
            manager.feed(ToClient, name).unwrap();
        }
        let refusal = [0x10, 1, 0xff, 0xff, 0xff, 0xff];
        manager.feed(ToTarget, &refusal).unwrap();
        manager.feed(ToTarget, &[0x10, 1, 0, 0, 0, 0]).unwrap();
        assert_eq!(manager.name(1), Some("AUDIO_INPUT"));
        assert_eq!(manager.open().count(), 1);
        for _ in 0..AGAIN {
            manager.feed(ToClient, b"\x10\x01x\0").unwrap();
        }
        manager.feed(ToClient, b"\x10\x01x\0").unwrap_err();
    }

    #[test]
    fn soft_sync_says_which_channels_would_leave() {
        let mut request = vec![0x80, 0, 22, 0, 0, 0, 3, 0, 1, 0];
        request.extend([1, 0, 0, 0, 2, 0, 7, 0, 0, 0, 9, 0, 0, 0]);
        let event = DynamicEvent::SoftSyncRequested {
            flags: 3,
            tunnels: vec![SoftSyncTunnel {
                tunnel_type: 1,
                channels: vec![7, 9],
            }],
        };
        let mut manager = Drdynvc::new(&Budget::default());
        assert_eq!(one(&mut manager, ToClient, &request), event);
        let unknown = one(&mut manager, ToTarget, &request);
        assert!(matches!(unknown, DynamicEvent::Unknown { cmd: 8, .. }));
        // Nothing leaves: it need not be readable.
        for length in 1..request.len() {
            let events = manager.feed(ToClient, &request[..length]).unwrap();
            assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
        }
        let answer = [0x90, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        let event = DynamicEvent::SoftSyncAnswered { tunnels: vec![1] };
        assert_eq!(one(&mut manager, ToTarget, &answer), event);
        let many = [0x90, 0, 0xff, 0xff, 0xff, 0xff];
        let events = manager.feed(ToTarget, &many).unwrap();
        assert!(matches!(events[..], [ChannelEvent::Unreadable(_)]));
    }

    #[test]
    fn channels_and_names_are_bounded() {
        let mut manager = Drdynvc::new(&Budget::default());
        for id in 0..u32::try_from(limits::DYNAMIC_CHANNELS).unwrap() {
            open(&mut manager, id, "x");
        }
        manager
            .feed(ToClient, b"\x12\xff\xff\xff\xffx\0")
            .unwrap_err();
        let mut manager = Drdynvc::new(&Budget::default());
        manager.feed(ToClient, b"\x10\x01no end").unwrap();
        assert_eq!(manager.name(1), Some("no end"));
        assert_eq!(manager.open().count(), 0);
        let mut manager = Drdynvc::new(&Budget::default());
        let long = [b"\x10\x01".as_slice(), &[b'x'; NAME_BYTES + 1], b"\0"].concat();
        manager.feed(ToClient, &long).unwrap();
        assert_eq!(manager.name(1).map(str::len), Some(NAME_BYTES));
        manager.feed(ToClient, &[0x13, 1]).unwrap_err();
        // Four bytes by either selector.
        manager.feed(ToClient, b"\x13\x05\0\0\0x\0").unwrap();
        assert_eq!(manager.name(5), Some("x"));
    }

    #[test]
    fn an_unknown_command_is_reported() {
        let event = DynamicEvent::Unknown {
            direction: ToTarget,
            cmd: 0xa,
            bytes: 2,
        };
        assert_eq!(
            one(&mut Drdynvc::new(&Budget::default()), ToTarget, &[0xa0, 1]),
            event
        );
    }

    fn open(manager: &mut Drdynvc, id: u32, name: &str) {
        let id = id.to_le_bytes();
        let request = [&[0x12][..], &id, name.as_bytes(), &[0]].concat();
        manager.feed(ToClient, &request).unwrap();
        let answer = [&[0x12][..], &id, &[0; 4]].concat();
        manager.feed(ToTarget, &answer).unwrap();
    }

    fn one(manager: &mut Drdynvc, direction: Direction, pdu: &[u8]) -> DynamicEvent {
        let event = manager.feed(direction, pdu).unwrap().remove(0);
        let ChannelEvent::Dynamic(event) = event else {
            panic!("{event:?}")
        };
        event
    }
}
