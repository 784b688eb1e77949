//! [MS-RDPEAI]: sound of the client's microphone, sent to the target.
//!
//! [MS-RDPEAI]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpeai/

use super::event::AudioFormat;
use super::event::ChannelEvent;
pub use super::event::MicrophoneEvent;
use super::rdpsnd::audio_format;
use super::read::{ChannelError, Reader, only, room, size, wide};
use crate::Direction;
use crate::budget::{Budget, Held, places};

/// The microphone channel of one session.
#[derive(Debug)]
pub struct Audin {
    /// What the client can record.
    formats: Vec<AudioFormat>,
    /// What covers them.
    memory: Held,
}

impl Audin {
    /// Before the first PDU.
    pub fn new(budget: &Budget) -> Self {
        Self {
            formats: Vec::new(),
            memory: budget.nothing(Direction::ToTarget),
        }
    }

    /// Takes the next message.
    ///
    /// # Errors
    ///
    /// It is not a microphone message, or a bound was reached.
    pub fn feed(
        &mut self,
        direction: Direction,
        message: &[u8],
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::new(message);
        let message_id = reader.u8("MessageId")?;
        let event = match message_id {
            MSG_SNDIN_VERSION => {
                let version = reader.u32("Version")?;
                MicrophoneEvent::Version { direction, version }
            }
            MSG_SNDIN_FORMATS => {
                let count = size(reader.u32("NumFormats")?);
                reader.skip(4, "cbSizeFormatsPacket")?;
                let mut formats = Vec::new();
                for _ in 0..count {
                    room(formats.len(), FORMATS, "audio formats")?;
                    formats.push(audio_format(&mut reader)?);
                }
                if direction == Direction::ToTarget {
                    let bytes = places::<AudioFormat>(formats.len());
                    self.memory.cover(bytes, "audio formats")?;
                    self.formats = formats.clone();
                }
                MicrophoneEvent::Formats { direction, formats }
            }
            MSG_SNDIN_OPEN => {
                only(direction, Direction::ToClient, "microphone Open")?;
                reader.skip(4, "FramesPerPacket")?;
                let number = size(reader.u32("initialFormat")?);
                let format = self.formats.get(number).copied();
                MicrophoneEvent::OpenRequested { format }
            }
            MSG_SNDIN_OPEN_REPLY => {
                only(direction, Direction::ToTarget, "microphone Open Reply")?;
                let result = reader.u32("Result")?.cast_signed();
                MicrophoneEvent::OpenAnswered { result }
            }
            MSG_SNDIN_DATA_INCOMING => {
                only(direction, Direction::ToTarget, "microphone Incoming Data")?;
                MicrophoneEvent::Incoming
            }
            MSG_SNDIN_DATA => {
                only(direction, Direction::ToTarget, "microphone Data")?;
                let bytes = wide(reader.remaining());
                MicrophoneEvent::Heard { bytes }
            }
            MSG_SNDIN_FORMATCHANGE => MicrophoneEvent::FormatChanged { direction },
            _ => MicrophoneEvent::Unknown {
                direction,
                message_id,
                bytes: wide(reader.remaining()),
            },
        };
        Ok(vec![ChannelEvent::Microphone(event)])
    }
}

const MSG_SNDIN_VERSION: u8 = 0x01;
const MSG_SNDIN_FORMATS: u8 = 0x02;
const MSG_SNDIN_OPEN: u8 = 0x03;
const MSG_SNDIN_OPEN_REPLY: u8 = 0x04;
const MSG_SNDIN_DATA_INCOMING: u8 = 0x05;
const MSG_SNDIN_DATA: u8 = 0x06;
const MSG_SNDIN_FORMATCHANGE: u8 = 0x07;

/// Audio formats of one side; Windows offers about 20.
const FORMATS: usize = 1024;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;

    const PCM: [u8; 18] = [1, 0, 1, 0, 0x22, 0x56, 0, 0, 0, 0, 0, 0, 2, 0, 16, 0, 0, 0];

    #[test]
    fn a_microphone_is_followed_from_its_formats_to_its_sound() {
        let mut channel = Audin::new(&Budget::default());
        let formats = [&[2, 1, 0, 0, 0, 27, 0, 0, 0][..], &PCM].concat();
        channel.feed(ToTarget, &formats).unwrap();
        let open = [&[3, 0, 1, 0, 0, 0, 0, 0, 0][..], &PCM].concat();
        let events = channel.feed(ToClient, &open).unwrap();
        let format = AudioFormat {
            tag: 1,
            channels: 1,
            samples_per_s: 22_050,
            bits_per_sample: 16,
        };
        let requested = MicrophoneEvent::OpenRequested {
            format: Some(format),
        };
        assert_eq!(events, [ChannelEvent::Microphone(requested)]);
        let events = channel.feed(ToTarget, &[4, 5, 0x40, 0, 0x80]).unwrap();
        let refused = MicrophoneEvent::OpenAnswered {
            result: -0x7fff_bffb,
        };
        assert_eq!(events, [ChannelEvent::Microphone(refused)]);
        let events = channel.feed(ToTarget, &[6, 1, 2, 3]).unwrap();
        let heard = MicrophoneEvent::Heard { bytes: 3 };
        assert_eq!(events, [ChannelEvent::Microphone(heard)]);
    }

    #[test]
    fn formats_are_bounded_and_sound_comes_from_the_client_only() {
        let formats = [&[2, 0xff, 0xff, 0, 0, 0, 0, 0, 0][..], &[0; 18 * 1025]].concat();
        assert_eq!(
            Audin::new(&Budget::default()).feed(ToTarget, &formats),
            Err(ChannelError::TooMany {
                what: "audio formats",
                limit: FORMATS
            })
        );
        Audin::new(&Budget::default())
            .feed(ToClient, &[6, 1])
            .unwrap_err();
    }
}
