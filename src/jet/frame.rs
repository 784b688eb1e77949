//! WebSocket frames ([RFC 6455] 5): what comes in them, and their headers.
//!
//! There are no extensions, since none are offered.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use jetway_base::limits;

/// What has come from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Bytes of binary messages.
    Bytes,
    /// A binary message without a byte, from a peer that says its end so: no message comes behind it.
    Empty,
    /// A ping or a pong: the peer is there.
    Sign,
    /// A Close frame, with its code. Nothing comes behind it.
    Close(Option<u16>),
    /// A text message. Nothing is taken behind it.
    Text,
    /// A message above the limit. Nothing is taken behind it.
    TooLong,
    /// What is no WebSocket. Nothing is taken behind it.
    Broken(&'static str),
    /// The end of the connection, without a Close frame.
    CutOff,
}

/// Longest header: two bytes, eight of a length, four of a mask ([RFC 6455] 5.2).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
pub const HEAD_BYTES: usize = 14;

/// Longest payload of a control frame ([RFC 6455] 5.5).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
pub const CONTROL_BYTES: usize = 125;

/// Takes a peer's frames apart, whatever the pieces in which they come.
#[derive(Debug)]
pub struct Deframer {
    from_client: bool,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    frame: Option<Frame>,
    /// Bytes of the message so far whose last fragment has not come.
    message: Option<u64>,
    /// The message that has just ended has no bytes.
    empty: bool,
    /// What such a message says.
    empty_is_end: bool,
    /// It was said.
    ended: bool,
    /// Payload of a control frame.
    control: Vec<u8>,
    /// Nothing more is taken.
    over: bool,
}

/// A frame whose header has come.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    left: u64,
    /// Turned so that its first byte is for the next one of the payload.
    mask: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Data,
    Close,
    Ping,
    Pong,
}

/// What was found in frames besides bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Something that has come.
    Arrival(Arrival),
    /// A ping, with what the answer repeats.
    Ping(Vec<u8>),
}

impl Deframer {
    /// For the frames of a client, or those of a server: only clients mask theirs.
    #[must_use]
    pub fn new(from_client: bool) -> Self {
        Self {
            from_client,
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            frame: None,
            message: None,
            empty: false,
            empty_is_end: false,
            ended: false,
            control: Vec::new(),
            over: false,
        }
    }

    /// The peer says its end by a message without a byte. From others such messages say nothing.
    #[must_use]
    pub fn with_ends(mut self) -> Self {
        self.empty_is_end = true;
        self
    }

    /// Nothing more is taken.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The connection has ended.
    pub fn end(&mut self) {
        self.over = true;
    }

    /// Takes what has come, puts the bytes of messages to its front, and says how many they are.
    pub fn take(&mut self, read: &mut [u8], mut tell: impl FnMut(Found)) -> usize {
        let (mut at, mut kept) = (0_usize, 0_usize);
        while !self.over && at < read.len() {
            match self.frame {
                None => {
                    let byte = read.get(at).copied().unwrap_or_default();
                    at = at.saturating_add(1);
                    if let Some(place) = self.head.get_mut(self.head_bytes) {
                        *place = byte;
                    }
                    self.head_bytes = self.head_bytes.saturating_add(1);
                    match self.parse_head() {
                        Ok(frame) => self.frame = frame,
                        Err(arrival) => {
                            self.over = true;
                            tell(Found::Arrival(arrival));
                            break;
                        }
                    }
                }
                Some(mut frame) => {
                    let rest = read.len().saturating_sub(at);
                    let now = usize::try_from(frame.left).unwrap_or(rest).min(rest);
                    let end = at.saturating_add(now);
                    let payload = read.get_mut(at..end).unwrap_or_default();
                    if self.from_client {
                        apply(frame.mask, payload);
                        frame.mask.rotate_left(now % 4);
                    }
                    if frame.opcode == Opcode::Data {
                        if at != kept {
                            read.copy_within(at..end, kept);
                        }
                        kept = kept.saturating_add(now);
                    } else {
                        self.control.extend_from_slice(payload);
                    }
                    frame.left = frame
                        .left
                        .saturating_sub(u64::try_from(now).unwrap_or(u64::MAX));
                    at = end;
                    self.frame = Some(frame);
                }
            }
            if let Some(Frame {
                opcode, left: 0, ..
            }) = self.frame
            {
                self.frame = None;
                if let Some(found) = self.finish(opcode) {
                    tell(found);
                }
            }
        }
        kept
    }

    /// Reads the header, as soon as all of it is there.
    fn parse_head(&mut self) -> Result<Option<Frame>, Arrival> {
        let Some((&[first, second], rest)) = self
            .head
            .get(..self.head_bytes)
            .and_then(|head| head.split_first_chunk())
        else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Arrival::Broken("reserved bits are set"));
        }
        let (last, masked) = (first & 0x80 != 0, second & 0x80 != 0);
        if masked != self.from_client {
            return Err(Arrival::Broken("only clients mask their frames"));
        }
        let length_bytes = match second & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if masked { 4 } else { 0 };
        let Some((length, mask)) = rest.split_at_checked(length_bytes) else {
            return Ok(None);
        };
        if mask.len() < mask_bytes {
            return Ok(None);
        }
        let left = match length {
            [] => u64::from(second & 0x7F),
            length => length
                .iter()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
        };
        let mask = mask.first_chunk().copied().unwrap_or_default();
        self.head_bytes = 0;
        let opcode = match first & 0x0F {
            0x0 | 0x2 => {
                self.go_on(first & 0x0F == 0, last, left)?;
                Opcode::Data
            }
            0x1 => return Err(Arrival::Text),
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return Err(Arrival::Broken("an unknown opcode")),
        };
        let longest = u64::try_from(CONTROL_BYTES).unwrap_or(u64::MAX);
        if opcode != Opcode::Data && (!last || left > longest) {
            return Err(Arrival::Broken("a control frame is long or in parts"));
        }
        Ok(Some(Frame { opcode, left, mask }))
    }

    /// Counts a frame of a message.
    fn go_on(&mut self, continues: bool, last: bool, bytes: u64) -> Result<(), Arrival> {
        let before = match (self.message, continues) {
            (None, false) => 0,
            (Some(before), true) => before,
            (None, true) => return Err(Arrival::Broken("a continuation of nothing")),
            (Some(_), false) => return Err(Arrival::Broken("a message within a message")),
        };
        if self.ended {
            return Err(Arrival::Broken("a message behind the end"));
        }
        let total = before.saturating_add(bytes);
        if total > u64::try_from(limits::WEBSOCKET_MESSAGE_BYTES).unwrap_or(u64::MAX) {
            return Err(Arrival::TooLong);
        }
        self.message = (!last).then_some(total);
        self.empty = last && total == 0;
        Ok(())
    }

    /// What the end of a frame says.
    fn finish(&mut self, opcode: Opcode) -> Option<Found> {
        let control = std::mem::take(&mut self.control);
        let arrival = match opcode {
            Opcode::Data if self.empty && self.empty_is_end => {
                self.ended = true;
                Arrival::Empty
            }
            Opcode::Data => return None,
            Opcode::Ping => return Some(Found::Ping(control)),
            Opcode::Pong => Arrival::Sign,
            Opcode::Close => {
                self.over = true;
                match control.as_slice() {
                    [] => Arrival::Close(None),
                    [high, low, ..] => Arrival::Close(Some(u16::from_be_bytes([*high, *low]))),
                    [_] => Arrival::Broken("half a close code"),
                }
            }
        };
        Some(Found::Arrival(arrival))
    }
}

/// The header of a whole message, and how long it is.
#[must_use]
pub fn head(opcode: u8, payload: usize, mask: Option<[u8; 4]>) -> ([u8; HEAD_BYTES], usize) {
    let mut head = [0; HEAD_BYTES];
    let mut bytes = 0_usize;
    let mut put = |part: &[u8]| {
        let end = bytes.saturating_add(part.len());
        if let Some(place) = head.get_mut(bytes..end) {
            place.copy_from_slice(part);
        }
        bytes = end;
    };
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match (u8::try_from(payload), u16::try_from(payload)) {
        (Ok(length @ ..126), _) => put(&[0x80 | opcode, masked | length]),
        (_, Ok(length)) => {
            put(&[0x80 | opcode, masked | 126]);
            put(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            put(&[0x80 | opcode, masked | 127]);
            put(&u64::try_from(payload).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        put(&mask);
    }
    (head, bytes)
}

/// Masks or unmasks ([RFC 6455] 5.3).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
pub fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        if let Some(word) = word.first_chunk_mut::<8>() {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
