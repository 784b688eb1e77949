//! What the inspector knows of pictures and of time: the codecs in use, and how long each side takes to answer.
//!
//! A round trip is measured between a message of the target that passes the gateway and the client's answer to it: that
//! of the leg to the client. Two kinds of message have answers: RTT measurement ([MS-RDPBCGR] 2.2.14), which the client
//! answers at once, and frames, which it acknowledges when it has drawn them. The leg to the target is measured
//! elsewhere, by the TCP handshake.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

use jetway_rdp::Direction;
use jetway_rdp::channel::egfx::{self, GraphicsEvent};
use jetway_rdp::share::CapabilitySets;
use jetway_rdp::surface::{self, SurfaceCommand};

/// Codecs and round trips of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GraphicsStatistics {
    /// Pictures by codec, as far as they are read: `graphics pipeline, compressed` counts messages that are not.
    pub codecs: BTreeMap<&'static str, u64>,
    /// Version and flags of the graphics pipeline that the target confirmed, in hexadecimal.
    pub pipeline: Option<(String, String)>,
    /// Kinds of bulk compression that were used, either way.
    pub bulk_compression: BTreeSet<&'static str>,
    /// From a request to measure the round trip to the client's answer.
    pub round_trip: Option<RoundTrip>,
    /// From the end of a frame to the client's word that it was drawn.
    pub frame_round_trip: Option<RoundTrip>,
}

/// How long answers took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RoundTrip {
    /// How many were measured.
    pub count: u64,
    /// The last one, microseconds.
    pub last_us: u64,
    /// The shortest, microseconds: the nearest to what the network alone takes.
    pub least_us: u64,
}

/// What waits for its answer.
#[derive(Debug, Default)]
pub(super) struct Graphics {
    now: Duration,
    /// Ids that the client gave to bitmap codecs.
    codecs: Vec<(u8, &'static str)>,
    frames: Waiting,
    measurements: Waiting,
}

/// Numbered messages, oldest first.
#[derive(Debug, Default)]
struct Waiting(VecDeque<(u32, Duration)>);

impl Graphics {
    /// From now on it is this time, counted from the start of the session.
    pub(super) fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    /// Confirm Active.
    pub(super) fn capabilities(&mut self, sets: &CapabilitySets<'_>) {
        let set = sets
            .clone()
            .find(|(kind, _)| *kind == surface::CAPSTYPE_BITMAP_CODECS);
        if let Some((_, set)) = set {
            self.codecs = surface::codecs(set).collect();
        }
    }

    /// Surface commands: an update, or its first fragment.
    pub(super) fn surface(&mut self, data: &[u8], statistics: &mut GraphicsStatistics) {
        for command in surface::commands(data) {
            match command {
                SurfaceCommand::Bits { codec: 0 } => statistics.count("uncompressed"),
                SurfaceCommand::Bits { codec } => {
                    let known = self.codecs.iter().find(|(id, _)| *id == codec);
                    statistics.count(known.map_or("unknown", |(_, name)| *name));
                }
                SurfaceCommand::FrameEnded { frame } => self.frames.sent(frame, self.now),
            }
        }
    }

    /// A bitmap update, or its first fragment.
    pub(super) fn bitmap(data: &[u8], statistics: &mut GraphicsStatistics) {
        let compressed = surface::has_compressed_bitmap(data);
        statistics.count(if compressed {
            "compressed bitmap"
        } else {
            "bitmap"
        });
    }

    /// The graphics pipeline.
    pub(super) fn pipeline(&mut self, event: GraphicsEvent, statistics: &mut GraphicsStatistics) {
        match event {
            GraphicsEvent::Confirmed { version, flags } => {
                statistics.pipeline = Some((format!("{version:#010x}"), format!("{flags:#x}")));
            }
            GraphicsEvent::Drawn { codec } => statistics.count(egfx::codec_name(codec)),
            GraphicsEvent::Unread => statistics.count("graphics pipeline, compressed"),
            GraphicsEvent::FrameEnded { frame } => self.frames.sent(frame, self.now),
            GraphicsEvent::FrameAcknowledged { frame } => self.acknowledged(frame, statistics),
        }
    }

    /// The client has drawn a frame.
    pub(super) fn acknowledged(&mut self, frame: u32, statistics: &mut GraphicsStatistics) {
        if let Some(took) = self.frames.answered(frame, self.now) {
            RoundTrip::add(&mut statistics.frame_round_trip, took);
        }
    }

    /// A PDU of the message channel.
    pub(super) fn message(
        &mut self,
        direction: Direction,
        flags: u16,
        data: &[u8],
        statistics: &mut GraphicsStatistics,
    ) {
        // headerLength, headerTypeId, sequenceNumber, requestType or responseType.
        let Some(&[_, _, low, high, kind_low, kind_high]) = data.first_chunk::<6>() else {
            return;
        };
        let number = u16::from_le_bytes([low, high]).into();
        let kind = u16::from_le_bytes([kind_low, kind_high]);
        match (direction, flags, kind) {
            (Direction::ToClient, SEC_AUTODETECT_REQ, RTT_REQUEST | RTT_REQUEST_AT_CONNECT) => {
                self.measurements.sent(number, self.now);
            }
            (Direction::ToTarget, SEC_AUTODETECT_RSP, RTT_RESPONSE) => {
                if let Some(took) = self.measurements.answered(number, self.now) {
                    RoundTrip::add(&mut statistics.round_trip, took);
                }
            }
            _ => {}
        }
    }
}

impl GraphicsStatistics {
    /// One more picture of this codec.
    fn count(&mut self, codec: &'static str) {
        let count = self.codecs.entry(codec).or_default();
        *count = count.saturating_add(1);
    }

    /// Bulk compression of this kind ([MS-RDPBCGR] 2.2.8.1.1.1.2, `CompressionTypeMask`) was used.
    pub(super) fn compressed(&mut self, kind: u8) {
        self.bulk_compression.insert(match kind {
            0 => "MPPC 8K",
            1 => "MPPC 64K",
            2 => "NCRUSH",
            3 => "XCRUSH",
            _ => "unknown",
        });
    }
}

impl RoundTrip {
    fn add(sum: &mut Option<Self>, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = sum.unwrap_or(Self {
            count: 0,
            last_us: 0,
            least_us: u64::MAX,
        });
        *sum = Some(Self {
            count: before.count.saturating_add(1),
            last_us: took_us,
            least_us: before.least_us.min(took_us),
        });
    }
}

impl Waiting {
    fn sent(&mut self, number: u32, now: Duration) {
        if self.0.len() >= WAITING {
            self.0.pop_front();
        }
        self.0.push_back((number, now));
    }

    /// An answer to one is also one to those before it, which nobody answers any more.
    fn answered(&mut self, number: u32, now: Duration) -> Option<Duration> {
        let position = self.0.iter().position(|(sent, _)| *sent == number)?;
        let (_, at) = self.0.drain(..=position).next_back()?;
        Some(now.saturating_sub(at))
    }
}

/// Messages that wait for an answer; Windows lets two or three frames wait.
const WAITING: usize = 64;

const SEC_AUTODETECT_REQ: u16 = 0x1000;
const SEC_AUTODETECT_RSP: u16 = 0x2000;
/// [MS-RDPBCGR] 2.2.14.1.1 RTT Measure Request, later and while connecting.
const RTT_REQUEST: u16 = 0x0001;
const RTT_REQUEST_AT_CONNECT: u16 = 0x1001;
/// 2.2.14.2.1 RTT Measure Response.
const RTT_RESPONSE: u16 = 0x0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_timed_by_number() {
        let (mut graphics, mut statistics) = (Graphics::default(), GraphicsStatistics::default());
        let ms = Duration::from_millis;
        graphics.set_now(ms(10));
        graphics.pipeline(GraphicsEvent::FrameEnded { frame: 1 }, &mut statistics);
        graphics.set_now(ms(20));
        // A frame marker.
        graphics.surface(&[4, 0, 1, 0, 2, 0, 0, 0], &mut statistics);
        graphics.set_now(ms(50));
        graphics.acknowledged(2, &mut statistics);
        graphics.acknowledged(1, &mut statistics);
        graphics.acknowledged(9, &mut statistics);
        let expected = RoundTrip {
            count: 1,
            last_us: 30_000,
            least_us: 30_000,
        };
        assert_eq!(statistics.frame_round_trip, Some(expected));

        for (sent, answered) in [(100, 105), (200, 202), (300, 304)] {
            let request = [6, 0, 7, 0, 1, 0];
            graphics.set_now(ms(sent));
            graphics.message(Direction::ToClient, 0x1000, &request, &mut statistics);
            graphics.set_now(ms(answered));
            let response = [6, 1, 7, 0, 0, 0];
            graphics.message(Direction::ToTarget, 0x2000, &response, &mut statistics);
            // Nobody asked again.
            graphics.message(Direction::ToTarget, 0x2000, &response, &mut statistics);
        }
        let expected = RoundTrip {
            count: 3,
            last_us: 4_000,
            least_us: 2_000,
        };
        assert_eq!(statistics.round_trip, Some(expected));
    }

    #[test]
    fn what_is_never_answered_is_bounded() {
        let (mut graphics, mut statistics) = (Graphics::default(), GraphicsStatistics::default());
        for frame in 0..1000 {
            graphics.pipeline(GraphicsEvent::FrameEnded { frame }, &mut statistics);
        }
        assert_eq!(graphics.frames.0.len(), WAITING);
    }
}
