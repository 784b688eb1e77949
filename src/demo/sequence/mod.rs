//! The connection sequence of [MS-RDPBCGR] 1.3.1.1 behind TLS, from both ends: one frame in, some bytes out, no I/O.
//!
//! [`server`] is the target's half and [`client`] the headless client's. Both consume themselves with each frame and say
//! where they stand behind it. They offer no static virtual channel and know no way back: a session is activated once.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/023f1e69-cfe8-4ee6-9ee0-7e759fb4e4ee

pub(super) mod client;
pub(super) mod server;

use ironrdp_pdu::rdp::client_info::CompressionType;
use ironrdp_pdu::rdp::headers::{
    CompressionFlags, ShareControlHeader, ShareControlPdu, ShareDataHeader, ShareDataPdu,
    StreamPriority,
};

use jetway_rdp::welcome::WelcomeError;

/// Frames kept for the session that arrive before the Font List.
const EARLY_FRAMES: usize = 64;

/// Why a connection sequence cannot go on; the other side's fault, but for [`Encode`](Self::Encode).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SequenceError {
    /// Not the message that belongs here, or malformed.
    #[error("unexpected or malformed {0}")]
    Message(&'static str),
    /// Before the licence.
    #[error(transparent)]
    Welcome(#[from] WelcomeError),
    /// More input than is kept before the Font List.
    #[error("more than {} frames before the Font List", EARLY_FRAMES)]
    TooEarly,
    /// The server is over with it.
    #[error("the server ended the session: {0}")]
    Ended(String),
    /// The server does not take a client without a licence.
    #[error("the server asks for a licence")]
    Licence,
    /// A size that no desktop has.
    #[error("the server has a desktop of {0} x {1} pixels")]
    Desktop(u16, u16),
    /// What should be sent has no encoding.
    #[error("{0} cannot be encoded")]
    Encode(&'static str),
}

/// A share data PDU in its headers.
fn share_data(share_id: u32, pdu_source: u16, pdu: ShareDataPdu) -> ShareControlHeader {
    ShareControlHeader {
        share_id,
        pdu_source,
        share_control_pdu: ShareControlPdu::Data(ShareDataHeader {
            share_data_pdu: pdu,
            stream_priority: StreamPriority::Low,
            compression_flags: CompressionFlags::empty(),
            // Means nothing without the flags.
            compression_type: CompressionType::K8,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::client::{ClientSequence, ConnectionSettings, Wishes};
    use super::server::{Accepted, ServerSequence};
    use super::*;
    use jetway_rdp::frame;

    fn wishes() -> Wishes<'static> {
        Wishes {
            user: "alice",
            password: "any",
            size: (800, 601),
            address: [127, 0, 0, 1].into(),
        }
    }

    /// Cuts bytes into frames.
    pub(super) fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let length = frame::find(bytes).unwrap().unwrap().length;
            let (frame, rest) = bytes.split_at(length);
            frames.push(frame.to_vec());
            bytes = rest;
        }
        frames
    }

    /// Both halves against each other; `forge` sees every frame and may change it, with who sent it.
    fn meet(
        wishes: &Wishes<'_>,
        mut forge: impl FnMut(&'static str, &mut Vec<u8>),
    ) -> Result<(Accepted, ConnectionSettings), SequenceError> {
        let (client, mut to_server) = ClientSequence::begin(wishes)?;
        let (mut client, mut server) = (Some(client), Some(ServerSequence::new(1)));
        let (mut connected, mut accepted) = (None, None);
        for _ in 0..64 {
            let mut to_client = Vec::new();
            for mut frame in frames(&std::mem::take(&mut to_server)) {
                forge("client", &mut frame);
                let half = server.take().expect("the server still listens");
                match half.frame(&frame, &mut to_client)? {
                    server::ServerStep::On(next) => server = Some(next),
                    server::ServerStep::Accepted(done) => accepted = Some(done),
                    server::ServerStep::Left => return Err(SequenceError::Message("good-bye")),
                }
            }
            for mut frame in frames(&to_client) {
                forge("server", &mut frame);
                let half = client.take().expect("the client still listens");
                match half.frame(&frame, &mut to_server)? {
                    client::ClientStep::On(next) => client = Some(next),
                    client::ClientStep::Connected(done) => connected = Some(done),
                }
            }
            if let (Some(accepted), Some(connected)) = (accepted.take(), connected.take()) {
                assert!(to_server.is_empty());
                return Ok((accepted, connected));
            }
        }
        Err(SequenceError::Message("silence"))
    }

    #[test]
    fn both_halves_agree() {
        let (accepted, connected) = meet(&wishes(), |_, _| {}).unwrap();
        assert_eq!(accepted.user, "alice");
        assert_eq!(accepted.size, (800, 601));
        assert_eq!(connected.size, accepted.size);
        assert!(accepted.early_input.is_empty());
    }

    #[test]
    fn a_desktop_is_as_large_as_asked_for_within_limits() {
        for (asked, given) in [
            ((200, 200), (200, 200)),
            ((199, 500), super::super::desktop::DEFAULT_DESKTOP),
            ((0, 0), super::super::desktop::DEFAULT_DESKTOP),
            ((8000, 700), (2560, 700)),
            ((u16::MAX, u16::MAX), super::super::desktop::LARGEST_DESKTOP),
        ] {
            let wishes = Wishes {
                size: asked,
                ..wishes()
            };
            let (accepted, connected) = meet(&wishes, |_, _| {}).unwrap();
            assert_eq!((accepted.size, connected.size), (given, given), "{asked:?}");
        }
    }

    /// Neither half panics, hangs or takes more than one session's worth of messages, whatever the other one says.
    #[test]
    fn no_frame_makes_a_half_panic() {
        let mut seed = 7_u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()
        };
        let (mut agreed, mut refused) = (0, 0);
        for round in 0..2_000_u32 {
            let mut number = 0;
            let met = meet(&wishes(), |_, frame| {
                number += 1;
                // One frame in each session, in its header or anywhere.
                if number == round % 20 {
                    let [count, at, ..] = random();
                    for _ in 0..=count % 4 {
                        let [at_high, at_low, value, near] = random();
                        let at = usize::from(u16::from_be_bytes([at_high, at_low]));
                        let at = if near < 128 { at % 24 } else { at };
                        let at = at % frame.len();
                        frame[at] = value;
                    }
                    if at < 32 {
                        frame.truncate(usize::from(count) % frame.len());
                    }
                }
            });
            match met {
                Ok(_) => agreed += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(agreed > 100 && refused > 100, "{agreed} {refused}");
    }

    #[test]
    fn a_server_that_has_enough_is_heard_at_any_time() {
        use jetway_rdp::mcs::{encode_disconnect, encode_send_data};
        for at in 3..8 {
            let mut number = 0;
            let end = meet(&wishes(), |from, frame| {
                if from == "server" {
                    number += 1;
                    if number == at {
                        *frame = encode_disconnect(1);
                    }
                }
            });
            let Err(SequenceError::Ended(reason)) = end else {
                panic!("{at}: {end:?}");
            };
            assert!(reason.contains("server-initiated"), "{reason}");
        }
        let info = jetway_rdp::share::encode_error_info(0, 1002, 7);
        let info = encode_send_data(false, 1002, 1003, &[&info]).unwrap();
        let mut number = 0;
        let end = meet(&wishes(), |from, frame| {
            if from == "server" {
                number += 1;
                if number == 4 {
                    frame.clone_from(&info);
                }
            }
        });
        let Err(SequenceError::Ended(reason)) = end else {
            panic!("{end:?}");
        };
        assert!(reason.contains("denied"), "{reason}");
    }
}
