//! [MS-RDPEA]: sound of the target, played by the client.
//!
//! Both sides say which audio formats they have; the target then sends waves, each with the number of a format in the
//! client's list. A wave of the older kind comes in two PDUs: one says how long the other is.
//!
//! [MS-RDPEA]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpea/

use super::Parser;
pub use super::event::{AudioFormat, SoundEvent};
use super::event::{ChannelEvent, unreadable};
use super::read::{ChannelError, Reader, only, wide};
use crate::Direction;
use crate::budget::{Budget, Held, places};

/// The sound channel of one session.
#[derive(Debug)]
pub struct Rdpsnd {
    /// What the client can play.
    formats: Vec<AudioFormat>,
    /// What covers them.
    memory: Held,
    /// Bytes of the PDU that a WaveInfo PDU announced.
    wave: Option<usize>,
}

impl Rdpsnd {
    /// Before the first PDU.
    pub fn new(budget: &Budget) -> Self {
        Self {
            formats: Vec::new(),
            memory: budget.nothing(Direction::ToTarget),
            wave: None,
        }
    }
}

impl Parser for Rdpsnd {
    fn feed_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        if direction == Direction::ToClient
            && let Some(expected) = self.wave.take()
        {
            // 2.2.3.4 Wave PDU (SNDWAV): no header, four bytes of padding and the rest of the sound.
            return if total < expected {
                Err(ChannelError::Truncated("Wave PDU"))
            } else {
                Ok(Vec::new())
            };
        }
        let mut reader = Reader::head(head, total);
        let msg_type = reader.u8("msgType")?;
        reader.skip(1, "bPad")?;
        let body_size = usize::from(reader.u16("BodySize")?);
        let mut events = Vec::new();
        // Some targets count the header, too; clients do not look, and take what is there.
        if msg_type != SNDC_WAVE
            && let Err(reason) = reader.limit(body_size, "the body of a sound PDU")
        {
            events.push(unreadable("rdpsnd", direction, reason));
        }
        let from_target = |what| only(direction, Direction::ToClient, what);
        let event = match msg_type {
            SNDC_FORMATS => self.formats(direction, &mut reader)?,
            SNDC_QUALITYMODE => {
                only(direction, Direction::ToTarget, "Quality Mode")?;
                let mode = reader.u16("wQualityMode")?;
                SoundEvent::QualityMode { mode }
            }
            SNDC_TRAINING => SoundEvent::Training { direction },
            SNDC_WAVE => {
                from_target("WaveInfo")?;
                reader.skip(2, "wTimeStamp")?;
                let format = self.format(reader.u16("wFormatNo")?);
                reader.skip(1 + 3 + 4, "Data")?;
                // 2.2.3.3: the body is 8 bytes of fields and the sound, of which the first 4 are here.
                let bytes = body_size.checked_sub(8).ok_or(ChannelError::Invalid {
                    what: "BodySize",
                    value: wide(body_size),
                })?;
                self.wave = Some(bytes);
                SoundEvent::Wave {
                    format,
                    bytes: wide(bytes),
                }
            }
            SNDC_WAVE2 => {
                from_target("Wave2")?;
                reader.skip(2, "wTimeStamp")?;
                let format = self.format(reader.u16("wFormatNo")?);
                reader.skip(1 + 3 + 4, "dwAudioTimeStamp")?;
                let bytes = wide(reader.remaining());
                SoundEvent::Wave { format, bytes }
            }
            SNDC_WAVEENCRYPT => {
                from_target("Wave Encrypt")?;
                reader.skip(2, "wTimeStamp")?;
                let format = self.format(reader.u16("wFormatNo")?);
                reader.skip(1 + 3, "bPad")?;
                let bytes = wide(reader.remaining());
                SoundEvent::Wave { format, bytes }
            }
            SNDC_WAVECONFIRM => {
                only(direction, Direction::ToTarget, "Wave Confirm")?;
                reader.skip(2, "wTimeStamp")?;
                let block = reader.u8("cConfirmedBlockNo")?;
                SoundEvent::WaveConfirmed { block }
            }
            SNDC_CLOSE => {
                from_target("Close")?;
                SoundEvent::Closed
            }
            SNDC_SETVOLUME => {
                from_target("Volume")?;
                let volume = reader.u32("Volume")?;
                SoundEvent::Volume { volume }
            }
            SNDC_SETPITCH => {
                from_target("Pitch")?;
                SoundEvent::Pitch
            }
            SNDC_CRYPTKEY => {
                from_target("Crypt Key")?;
                SoundEvent::EncryptionKey
            }
            _ => SoundEvent::Unknown {
                direction,
                msg_type,
                bytes: wide(reader.remaining()),
            },
        };
        events.insert(0, ChannelEvent::Sound(event));
        Ok(events)
    }
}

impl Rdpsnd {
    fn format(&self, number: u16) -> Option<AudioFormat> {
        self.formats.get(usize::from(number)).copied()
    }

    fn formats(
        &mut self,
        direction: Direction,
        reader: &mut Reader<'_>,
    ) -> Result<SoundEvent, ChannelError> {
        reader.skip(4 + 4 + 4 + 2, "dwFlags")?;
        let count = reader.u16("wNumberOfFormats")?;
        reader.skip(1, "cLastBlockConfirmed")?;
        let version = reader.u16("wVersion")?;
        reader.skip(1, "bPad")?;
        // At most 64 KiB of body, so at most 3,640 formats.
        let formats = (0..count)
            .map(|_| audio_format(reader))
            .collect::<Result<Vec<_>, _>>()?;
        if direction == Direction::ToTarget {
            let bytes = places::<AudioFormat>(formats.len());
            self.memory.cover(bytes, "audio formats")?;
            self.formats = formats.clone();
        }
        Ok(SoundEvent::Formats {
            direction,
            version,
            formats,
        })
    }
}

/// An AUDIO_FORMAT, which microphones share.
pub(super) fn audio_format(reader: &mut Reader<'_>) -> Result<AudioFormat, ChannelError> {
    let tag = reader.u16("wFormatTag")?;
    let channels = reader.u16("nChannels")?;
    let samples_per_s = reader.u32("nSamplesPerSec")?;
    reader.skip(4 + 2, "nAvgBytesPerSec")?;
    let bits_per_sample = reader.u16("wBitsPerSample")?;
    let extra = usize::from(reader.u16("cbSize")?);
    reader.skip(extra, "data")?;
    Ok(AudioFormat {
        tag,
        channels,
        samples_per_s,
        bits_per_sample,
    })
}

const SNDC_CLOSE: u8 = 0x01;
const SNDC_WAVE: u8 = 0x02;
const SNDC_SETVOLUME: u8 = 0x03;
const SNDC_SETPITCH: u8 = 0x04;
const SNDC_WAVECONFIRM: u8 = 0x05;
const SNDC_TRAINING: u8 = 0x06;
const SNDC_FORMATS: u8 = 0x07;
const SNDC_CRYPTKEY: u8 = 0x08;
const SNDC_WAVEENCRYPT: u8 = 0x09;
const SNDC_QUALITYMODE: u8 = 0x0c;
const SNDC_WAVE2: u8 = 0x0d;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;

    #[test]
    fn a_wave_in_two_pdus_is_one_event_and_its_sound_is_never_taken_for_a_message() {
        let mut channel = Rdpsnd::new(&Budget::default());
        let info = [2, 0, 20, 0, 0, 0, 5, 0, 1, 0, 0, 0, 1, 2, 3, 4];
        let events = channel.feed(ToClient, &info).unwrap();
        let wave = SoundEvent::Wave {
            format: None,
            bytes: 12,
        };
        assert_eq!(events, [ChannelEvent::Sound(wave)]);
        // Another direction is not the sound.
        channel.feed(ToTarget, &[5, 0, 4, 0, 0, 0, 1, 0]).unwrap();
        assert_eq!(channel.feed(ToClient, &[0xff; 12]), Ok(vec![]));
        channel.feed(ToClient, &info).unwrap();
        assert_eq!(
            channel.feed(ToClient, &[0xff; 11]),
            Err(ChannelError::Truncated("Wave PDU"))
        );
    }

    #[test]
    fn the_format_of_a_wave_is_the_one_of_the_clients_list() {
        let mut channel = Rdpsnd::new(&Budget::default());
        let mut list = vec![7, 0, 38, 0];
        list.extend([0; 14]);
        list.extend([1, 0, 0, 8, 0, 0]);
        list.extend([1, 0, 2, 0, 0x44, 0xac, 0, 0, 0, 0, 0, 0, 4, 0, 16, 0, 0, 0]);
        channel.feed(ToTarget, &list).unwrap();
        let wave2 = [13, 0, 14, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 1, 2];
        let wave = SoundEvent::Wave {
            format: Some(AudioFormat {
                tag: 1,
                channels: 2,
                samples_per_s: 44_100,
                bits_per_sample: 16,
            }),
            bytes: 2,
        };
        assert_eq!(
            channel.feed(ToClient, &wave2),
            Ok(vec![ChannelEvent::Sound(wave)])
        );
        assert_eq!(
            channel.feed(ToTarget, &wave2),
            Err(ChannelError::WrongDirection("Wave2"))
        );
    }

    #[test]
    fn a_body_that_counts_its_header_is_played_and_noted() {
        let mut channel = Rdpsnd::new(&Budget::default());
        let wave2 = [13, 0, 18, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 1, 2];
        let events = channel.feed(ToClient, &wave2).unwrap();
        let wave = SoundEvent::Wave {
            format: None,
            bytes: 2,
        };
        assert_eq!(events[0], ChannelEvent::Sound(wave));
        assert!(matches!(events[1], ChannelEvent::Unreadable(_)));
    }

    #[test]
    fn a_key_is_not_kept() {
        let pdu = [&[8, 0, 36, 0][..], &[0x41; 36]].concat();
        let events = Rdpsnd::new(&Budget::default())
            .feed(ToClient, &pdu)
            .unwrap();
        assert_eq!(events, [ChannelEvent::Sound(SoundEvent::EncryptionKey)]);
    }

    #[test]
    fn what_a_formats_pdu_announces_has_to_be_there() {
        let mut list = vec![7, 0, 20, 0];
        list.extend([0; 14]);
        list.extend([0xff, 0xff, 0, 8, 0, 0]);
        assert_eq!(
            Rdpsnd::new(&Budget::default()).feed(ToClient, &list),
            Err(ChannelError::Truncated("wFormatTag"))
        );
    }
}
