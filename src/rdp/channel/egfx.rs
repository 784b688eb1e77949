//! [MS-RDPEGFX]: which codecs the graphics pipeline uses and which frames are acknowledged, for statistics alone.
//!
//! What the target sends is wrapped in segments that it may compress (2.2.5), with a history of megabytes that spans
//! the session. To follow it would cost as much as showing the picture, for a number; so compressed segments are
//! counted and not read, as from Windows nearly all are. FreeRDP's servers do not compress. What the client sends is
//! never wrapped: its offer and its acknowledgements are always read.
//!
//! Nothing is held but the head of one PDU, and nothing here ends a session: what cannot be read is not counted.
//!
//! [MS-RDPEGFX]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpegfx/

use serde::Serialize;

use crate::Direction;
use crate::bytes::{u16_at, u32_at};

/// What the graphics pipeline did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GraphicsEvent {
    /// 2.2.2.19 RDPGFX_CAPS_CONFIRM_PDU.
    Confirmed {
        /// `version` of the capability set.
        version: u32,
        /// `capsData`.
        flags: u32,
    },
    /// 2.2.2.1 RDPGFX_WIRE_TO_SURFACE_PDU_1 or 2.2.2.2 RDPGFX_WIRE_TO_SURFACE_PDU_2.
    Drawn {
        /// `codecId`.
        codec: u16,
    },
    /// 2.2.2.12 RDPGFX_END_FRAME_PDU.
    FrameEnded {
        /// `frameId`.
        frame: u32,
    },
    /// 2.2.2.13 RDPGFX_FRAME_ACKNOWLEDGE_PDU.
    FrameAcknowledged {
        /// `frameId`.
        frame: u32,
    },
    /// A compressed segment, or what is none: the rest of its message is not read.
    Unread,
}

/// The name of a `codecId` (2.2.2.1, 2.2.2.2).
#[must_use]
pub fn codec_name(codec: u16) -> &'static str {
    match codec {
        0x0000 => "uncompressed",
        0x0003 => "RemoteFX",
        0x0008 => "ClearCodec",
        0x0009 => "RemoteFX Progressive",
        0x000a => "Planar",
        0x000b => "AVC420",
        0x000c => "Alpha",
        0x000e => "AVC444",
        0x000f => "AVC444v2",
        _ => "unknown",
    }
}

/// The graphics channel of one session.
#[derive(Debug, Default)]
pub struct Egfx {
    to_client: Message,
    to_target: Message,
}

/// A message on its way, of which only heads are kept.
#[derive(Debug, Default)]
struct Message {
    /// Bytes until the message ends.
    left: usize,
    segments: Segments,
    pdus: Pdus,
}

/// 2.2.5 RDP_SEGMENTED_DATA.
#[derive(Debug, Default)]
struct Segments {
    state: MessageState,
    /// A header that has not arrived whole.
    header: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MessageState {
    /// Before `descriptor`.
    #[default]
    Descriptor,
    /// Before `segmentCount` and `uncompressedSize`.
    Parts,
    /// Before `size` of a segment.
    Size,
    /// Before `header` of RDP8_BULK_ENCODED_DATA, with so many bytes in the segment.
    Encoded(usize),
    /// In a segment that is not compressed.
    Plain(usize),
    /// Not read until the next message.
    Unread,
}

/// PDUs one behind the other.
#[derive(Debug, Default)]
struct Pdus {
    /// Of the PDU at hand, until there is enough.
    head: Vec<u8>,
    /// Of the PDU at hand, to be passed over.
    skip: usize,
    /// The rest of the message is no PDU.
    lost: bool,
}

impl Egfx {
    /// Takes data of the channel: the first of a message of `length` bytes, or what follows; without a first part it is
    /// a whole message.
    pub fn feed(
        &mut self,
        direction: Direction,
        length: Option<usize>,
        data: &[u8],
    ) -> Vec<GraphicsEvent> {
        let message = match direction {
            Direction::ToTarget => &mut self.to_target,
            Direction::ToClient => &mut self.to_client,
        };
        if length.is_some() || message.left == 0 {
            *message = Message {
                left: length.unwrap_or(data.len()),
                ..Message::default()
            };
        }
        message.left = message.left.saturating_sub(data.len());
        let mut events = Vec::new();
        match direction {
            Direction::ToTarget => message.pdus.feed(data, &mut events),
            Direction::ToClient => message.segments.feed(data, &mut message.pdus, &mut events),
        }
        events
    }

    /// Bytes until the message on its way is whole.
    pub fn awaited(&self, direction: Direction) -> usize {
        match direction {
            Direction::ToTarget => self.to_target.left,
            Direction::ToClient => self.to_client.left,
        }
    }

    /// The same for data that the dynamic channel itself compresses: they are passed over.
    pub fn feed_compressed(&mut self, direction: Direction) -> Vec<GraphicsEvent> {
        match direction {
            Direction::ToTarget => self.to_target = Message::default(),
            Direction::ToClient => self.to_client = Message::default(),
        }
        vec![GraphicsEvent::Unread]
    }
}

impl Segments {
    fn feed(&mut self, mut data: &[u8], pdus: &mut Pdus, events: &mut Vec<GraphicsEvent>) {
        while !data.is_empty() {
            self.state = match self.state {
                MessageState::Descriptor => match self.gather(1, &mut data).as_deref() {
                    None => return,
                    Some([SINGLE]) => MessageState::Encoded(usize::MAX),
                    Some([MULTIPART]) => MessageState::Parts,
                    Some(_) => self.give_up(events),
                },
                MessageState::Parts => match self.gather(6, &mut data) {
                    None => return,
                    Some(_) => MessageState::Size,
                },
                MessageState::Size => match self.gather(4, &mut data) {
                    None => return,
                    Some(size) => {
                        let size = u32_at(&size, 0).and_then(|size| size.try_into().ok());
                        MessageState::Encoded(size.unwrap_or(0))
                    }
                },
                MessageState::Encoded(length) => {
                    match (self.gather(1, &mut data).as_deref(), length) {
                        (None, _) => return,
                        (Some([header]), 1..) if header & COMPRESSED == 0 => {
                            MessageState::Plain(length.saturating_sub(1))
                        }
                        (Some(_), _) => self.give_up(events),
                    }
                }
                MessageState::Plain(left) => {
                    let (part, rest) = data.split_at(left.min(data.len()));
                    pdus.feed(part, events);
                    data = rest;
                    match left.saturating_sub(part.len()) {
                        0 => MessageState::Size,
                        left => MessageState::Plain(left),
                    }
                }
                MessageState::Unread => return,
            };
        }
    }

    fn give_up(&self, events: &mut Vec<GraphicsEvent>) -> MessageState {
        events.push(GraphicsEvent::Unread);
        MessageState::Unread
    }

    /// A header of so many bytes, once it is whole.
    fn gather(&mut self, wanted: usize, data: &mut &[u8]) -> Option<Vec<u8>> {
        take(&mut self.header, wanted, data).then(|| std::mem::take(&mut self.header))
    }
}

impl Pdus {
    fn feed(&mut self, mut data: &[u8], events: &mut Vec<GraphicsEvent>) {
        while !self.lost && !data.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(data.len());
                self.skip = self.skip.saturating_sub(skipped);
                data = data.get(skipped..).unwrap_or_default();
                continue;
            }
            if !take(&mut self.head, HEADER_BYTES, &mut data) {
                return;
            }
            let length = u32_at(&self.head, 4).and_then(|length| usize::try_from(length).ok());
            let Some(length) = length.filter(|&length| length >= HEADER_BYTES) else {
                self.lost = true;
                return;
            };
            let wanted = length.min(HEAD_BYTES);
            if !take(&mut self.head, wanted, &mut data) {
                return;
            }
            events.extend(event(&self.head));
            self.head.clear();
            self.skip = length.saturating_sub(wanted);
        }
    }
}

/// What the head of a PDU says; nothing of most of them.
fn event(head: &[u8]) -> Option<GraphicsEvent> {
    Some(match u16_at(head, 0)? {
        0x0001 | 0x0002 => GraphicsEvent::Drawn {
            codec: u16_at(head, 10)?,
        },
        0x000c => GraphicsEvent::FrameEnded {
            frame: u32_at(head, 8)?,
        },
        0x000d => GraphicsEvent::FrameAcknowledged {
            frame: u32_at(head, 12)?,
        },
        0x0013 => GraphicsEvent::Confirmed {
            version: u32_at(head, 8)?,
            flags: u32_at(head, 16).unwrap_or(0),
        },
        _ => return None,
    })
}

/// Moves bytes until `gathered` has so many; whether it has.
fn take(gathered: &mut Vec<u8>, wanted: usize, data: &mut &[u8]) -> bool {
    let missing = wanted.saturating_sub(gathered.len());
    let (part, rest) = data.split_at(missing.min(data.len()));
    gathered.extend_from_slice(part);
    *data = rest;
    gathered.len() >= wanted
}

const SINGLE: u8 = 0xe0;
const MULTIPART: u8 = 0xe1;

/// PACKET_COMPRESSED.
const COMPRESSED: u8 = 0x20;

/// 2.2.1.5 RDPGFX_HEADER.
const HEADER_BYTES: usize = 8;

/// What the graphics channel of one session holds: itself, and four heads.
pub(super) const HELD_BYTES: usize = size_of::<Egfx>() + 4 * 2 * HEAD_BYTES;

/// As much of a PDU as any fact needs: the header and one capability set.
const HEAD_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pdu(cmd: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        let mut pdu = cmd.to_le_bytes().to_vec();
        pdu.extend([0, 0]);
        pdu.extend(length.to_le_bytes());
        pdu.extend(body);
        pdu
    }

    /// A frame: begin, AVC420 with a picture, end.
    fn frame() -> Vec<u8> {
        let mut drawn = vec![1, 0, 0x0b, 0, 0x20];
        drawn.resize(100, 0xc0);
        [pdu(11, &[0; 8]), pdu(1, &drawn), pdu(12, &[7, 0, 0, 0])].concat()
    }

    fn all(message: &[u8], size: usize) -> Vec<GraphicsEvent> {
        let mut egfx = Egfx::default();
        let mut parts = message.chunks(size);
        let first = parts.next().unwrap();
        let length = (size < message.len()).then_some(message.len());
        let mut events = egfx.feed(Direction::ToClient, length, first);
        for part in parts {
            events.extend(egfx.feed(Direction::ToClient, None, part));
        }
        events
    }

    #[test]
    fn codecs_and_frames_are_found_however_a_message_is_cut() {
        let frame = frame();
        let expected = [
            GraphicsEvent::Drawn { codec: 11 },
            GraphicsEvent::FrameEnded { frame: 7 },
        ];
        let single = [&[SINGLE, 0x04][..], &frame].concat();
        let (one, two) = frame.split_at(21);
        let mut multipart = vec![MULTIPART, 2, 0, 0, 0, 0, 0];
        for part in [one, two] {
            multipart.extend(u32::try_from(part.len() + 1).unwrap().to_le_bytes());
            multipart.push(0x04);
            multipart.extend(part);
        }
        for message in [single, multipart] {
            for size in [1, 2, 3, 20, 1000] {
                assert_eq!(all(&message, size), expected, "{size}");
            }
        }
    }

    #[test]
    fn what_is_compressed_is_counted_and_the_next_message_is_read_again() {
        let mut egfx = Egfx::default();
        let to_client = Direction::ToClient;
        assert_eq!(
            egfx.feed(to_client, Some(9), &[SINGLE, 0x24, 1]),
            [GraphicsEvent::Unread]
        );
        assert_eq!(egfx.feed(to_client, None, &[1; 6]), []);
        let message = [&[SINGLE, 0x04][..], &frame()].concat();
        assert_eq!(egfx.feed(to_client, None, &message).len(), 2);
        assert_eq!(
            egfx.feed(to_client, None, &[0x16, 3, 3]),
            [GraphicsEvent::Unread]
        );
        // A PDU shorter than its header.
        assert_eq!(
            egfx.feed(to_client, None, &[SINGLE, 4, 1, 0, 0, 0, 7, 0, 0, 0, 9]),
            []
        );
        assert_eq!(egfx.feed(to_client, None, &message).len(), 2);
    }

    #[test]
    fn what_the_client_says_is_not_wrapped() {
        let mut egfx = Egfx::default();
        let acknowledge = pdu(13, &[0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            egfx.feed(Direction::ToTarget, None, &acknowledge),
            [GraphicsEvent::FrameAcknowledged { frame: 7 }]
        );
    }
}
