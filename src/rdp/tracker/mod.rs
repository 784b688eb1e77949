//! One inspected session: every PDU of both directions, in order of arrival, on its way from one leg to the other.
//!
//! The [`Tracker`] reads what a gateway must know, changes in place what must differ between the legs, and reports
//! [`Event`]s to a [`Sink`], whose verdicts it carries out. Everything else passes byte for byte. What is changed:
//!
//! - `serverSelectedProtocol` and `clientRequestedProtocols` ([MS-RDPBCGR] 2.2.1.3.2, 2.2.1.4.2), since each leg
//!   negotiated on its own;
//! - the flags of both multitransport blocks, to none: UDP would pass the gateway by;
//! - the flags of the client's core data that promise what needs a message channel, where it asks for none, as FreeRDP does
//!   without negotiation: targets built on FreeRDP would ask on channel 0, and wait for an answer for ever;
//! - the credentials of the Client Info PDU and `INFO_AUTOLOGON`, where the gateway logs on;
//! - the auto-reconnect cookie of the Client Info PDU, which is taken out unless the target gave it to the same
//!   association ([`reconnect`](super::reconnect));
//! - a Server Redirection PDU, to one that brings the client back here ([`redirection`]);
//! - `INFO_COMPRESSION`, where the sink wants to replace or withhold messages: both sides share a history that a
//!   message which does not arrive would break.
//!
//! What has to be understood and is not ends the session: nothing passes unseen.
//!
//! # What passes although it is unknown
//!
//! A peer that is newer than this file, or less exact, should not lose its session over bytes that no stage needs. But
//! somebody who wants to move a clipboard past a stage would hide it in just such bytes, so what counts is how the
//! receiver reads them, and receivers differ. Bytes pass unread only where no receiver that is known, and no reading
//! of the specification, finds in them what a stage reads; then they are reported as [`Unknown`], which a stage may
//! answer by ending the session.
//!
//! - *Bytes behind an MCS PDU.* [MS-RDPBCGR] 3.2.5.3 and 3.3.5.3 let receivers drop the connection, and FreeRDP does;
//!   xrdp ignores the length of the data and takes all of the frame; others may look for another PDU. So they pass if
//!   they are too few for one with data, and if they do not stand behind data that are read: of data only behind those
//!   of a static channel that no stage reads, and that are not compressed, since the history belongs to all channels.
//! - *Share PDUs of an unknown type.* Receivers find the next PDU by `totalLength`, whatever the type is. None takes
//!   one for a PDU of a type that is known; virtual channels do not travel in share PDUs at all.
//! - *Confirm Active of a target* in an active session: clients have no reading for it and go on. Servers differ in what
//!   they do with share PDUs that only servers send, so that of a client those end the session.
//! - *Chunks of a channel on which nothing depends* ([`Interest::Sample`]) that do not fit together: the message is not read.
//!   Of other channels a first chunk takes the place of a message that was not whole, as it does for receivers; where
//!   the length that was announced is not the one that came, some take the message and others wait, and the session ends.
//! - *Unknown input.* What is behind it in its PDU cannot be told apart from it, and is reported as one with it
//!   ([`Input::Unknown`]). It can be keys, and it can be nothing else.
//! - *Another number of channels than asked for.* Clients give the ids to their names in order. A target that counts
//!   otherwise, as xrdp does where a name is malformed, means other channels by the same ids; so fewer ids, unless
//!   there are none, end the session if any name among those asked for is read by a stage. Ids beyond the names belong
//!   to nothing. A name that is there twice would do the same.
//!
//! What a target sends on a channel that does not exist reaches nobody: clients drop it, and so does the gateway. Targets built on
//! FreeRDP measure the network on channel 0 where the client has no message channel. The other way round nobody is known to
//! do so, and it ends the session.

mod channel;
mod error;
mod passage;

use std::mem;
use std::ops::Range;

use zeroize::{Zeroize, Zeroizing};

use crate::Direction;
use crate::budget::{Budget, Held};
use crate::bulk::{self, Bulk};
use crate::bytes::{Reader, shifted, u16_at, u32_at};
use crate::client_info::{self, ClientInfoCredentials, ClientInfoError};
use crate::event::{
    Event, HeldMessage, Interest, Origin, Phase, Sink, StaticChannel, Unknown, Verdict,
};
use crate::fast_path;
use crate::frame::{self, Frame, FrameKind};
use crate::gcc::{self, GccError};
use crate::input::Input;
use crate::mcs::{self, Mcs, McsError};
use crate::reconnect::{ClientCookie, Cookies};
use crate::redirection::{self, Redirections};
use crate::share::{self, pdu_type, pdu_type2};
use jetway_base::limits;

use self::channel::{Channel, ChannelContext, Chunk};
pub use self::error::{
    ERRINFO_IDLE_TIMEOUT, ERRINFO_LOGON_TIMEOUT, ERRINFO_RPC_INITIATED_DISCONNECT, SessionError,
};
use self::passage::{Passage, PerDirection, malformed, note_compression, plain, report, watch};

/// What differs between the legs, and what a session may do.
#[derive(Debug)]
pub struct Settings {
    /// Protocols that the client offered in its Connection Request; the target's core data repeat them to it.
    pub client_requested: u32,
    /// Protocol that the target selected; the client's core data repeat it to the target.
    pub target_selected: u32,
    /// Credentials for the target; without them the client's pass.
    pub logon: Option<ClientInfoCredentials>,
    /// Where the target may send the client; without it nowhere.
    pub redirections: Option<Box<dyn Redirections>>,
    /// What the client showed as routing token, for when it is to come back.
    pub routing_token: Option<Zeroizing<Vec<u8>>>,
    /// Auto-reconnect cookies that may be used; without them none may, and none is remembered.
    pub cookies: Option<Box<dyn Cookies>>,
    /// What the session may make the gateway remember, here and in its stages.
    pub budget: Budget,
}

/// Flags of the basic security header ([MS-RDPBCGR] 2.2.8.1.1.2.1).
mod security {
    pub(super) const TRANSPORT_REQ: u16 = 0x0002;
    pub(super) const TRANSPORT_RSP: u16 = 0x0004;
    pub(super) const ENCRYPT: u16 = 0x0008;
    pub(super) const INFO_PKT: u16 = 0x0040;
    pub(super) const LICENSE_PKT: u16 = 0x0080;
    pub(super) const REDIRECTION_PKT: u16 = 0x0400;
}

/// A session between its two legs.
#[derive(Debug)]
pub struct Tracker {
    settings: Settings,
    phase: Phase,
    client: Option<gcc::ClientData>,
    /// From Connect Response on.
    ids: Option<Ids>,
    channels: Vec<Channel>,
    client_info: bool,
    /// The last Demand Active.
    share_id: u32,
    /// User channels as each side names itself.
    initiators: PerDirection<u16>,
    bulk: PerDirection<Bulk>,
    /// What covers messages that were held back, until whoever feeds this has passed them on.
    leaving: PerDirection<Option<Held>>,
    /// What the message of a static channel lacks that was the last to be added to.
    awaited: PerDirection<usize>,
    /// Whether a side has said that it leaves.
    parted: PerDirection<bool>,
    /// What goes back to the sender of what is being fed.
    answers: Vec<u8>,
    /// Where secrets are in the frame that is being fed.
    secrets: Vec<Range<usize>>,
}

#[derive(Clone, Debug)]
struct Ids {
    io: u16,
    message: Option<u16>,
}

/// What [`Tracker::feed`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Frames that were read.
    pub frames: usize,
    /// Whether `onward` holds credentials, so that whoever writes it wipes it.
    pub sensitive: bool,
    /// Of a message that its receiver cannot use before it is whole: so many bytes at least are still to arrive.
    pub awaited: usize,
    /// There may be whole frames left: as many were taken as the sink may be given at once.
    pub more: bool,
}

impl Tracker {
    /// A session of which nothing has passed after its security layer was set up.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::BasicSettings,
            client: None,
            ids: None,
            channels: Vec::new(),
            client_info: false,
            share_id: 0,
            initiators: PerDirection {
                to_target: 0,
                to_client: SERVER_CHANNEL,
            },
            bulk: PerDirection::default(),
            leaving: PerDirection::default(),
            awaited: PerDirection::default(),
            parted: PerDirection::default(),
            answers: Vec::new(),
            secrets: Vec::new(),
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the side that speaks in this direction has said that it ends the session.
    #[must_use]
    pub fn has_parted(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToTarget => self.parted.to_target,
            Direction::ToClient => self.parted.to_client,
        }
    }

    /// Takes whole frames at the front of `arrived`, as many as a sink is given at once, leaves the rest there, and adds what is to be sent: to the
    /// other side to `onward`, to the side they came from to `back`. Both get whole frames only.
    ///
    /// # Errors
    /// The session must end. `onward` has what came before the fault; [`Tracker::farewell`] says the rest.
    pub fn feed(
        &mut self,
        direction: Direction,
        arrived: &mut Vec<u8>,
        sink: &mut dyn Sink,
        onward: &mut Vec<u8>,
        back: &mut Vec<u8>,
    ) -> Result<Fed, SessionError> {
        let mut fed = Fed::default();
        // All of `onward` was passed on before more was read.
        if onward.is_empty() {
            *self.leaving.of(direction) = None;
        }
        let mut at = 0_usize;
        // Bytes from here to `at` pass as they are.
        let mut passing = 0_usize;
        let result = loop {
            if at >= FEED_BYTES {
                fed.more = true;
                break Ok(());
            }
            let rest = arrived.get_mut(at..).unwrap_or_default();
            let frame = match frame::find(rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(error) => {
                    break Err(SessionError::Frame {
                        from: direction,
                        error,
                    });
                }
            };
            let Some(bytes) = rest.get_mut(..frame.length) else {
                break Ok(());
            };
            let passage = match self.frame(direction, bytes, &frame, sink) {
                Ok(passage) => passage,
                Err(error) => break Err(error),
            };
            fed.frames = fed.frames.saturating_add(1);
            let end = at.saturating_add(frame.length);
            match passage {
                Passage::AsIs => {
                    // What the client typed passes with its password.
                    fed.sensitive |= !self.secrets.is_empty();
                }
                Passage::Withheld => {
                    onward.extend_from_slice(arrived.get(passing..at).unwrap_or_default());
                    passing = end;
                }
                Passage::Instead {
                    mut bytes, secrets, ..
                } => {
                    onward.extend_from_slice(arrived.get(passing..at).unwrap_or_default());
                    onward.extend_from_slice(&bytes);
                    if !secrets.is_empty() {
                        fed.sensitive = true;
                        bytes.zeroize();
                    }
                    passing = end;
                }
            }
            if !self.secrets.is_empty() && passing == end {
                arrived.get_mut(at..end).unwrap_or_default().fill(0);
            }
            at = end;
        };
        if passing == 0 && onward.is_empty() && at > 0 && !fed.more {
            // The common case: nothing to move but the incomplete end.
            mem::swap(arrived, onward);
            arrived.clear();
            let rest = onward.get_mut(at..).unwrap_or_default();
            arrived.extend_from_slice(rest);
            // It may be the beginning of a logon, of which nobody knows yet.
            rest.fill(0);
            onward.truncate(at);
        } else {
            onward.extend_from_slice(arrived.get(passing..at).unwrap_or_default());
            if fed.sensitive {
                arrived.get_mut(..at).unwrap_or_default().fill(0);
            }
            arrived.drain(..at);
        }
        back.append(&mut self.answers);
        let awaited = *self.awaited.of(direction);
        fed.awaited = awaited
            .max(sink.awaited(direction))
            .saturating_sub(arrived.len());
        result.map(|()| fed)
    }

    /// Whether so much waits for verdicts in this direction that no more of it is to be read.
    #[must_use]
    pub fn is_full(&self, direction: Direction) -> bool {
        let behind = self.channels.iter().filter_map(|channel| {
            let waiting = match direction {
                Direction::ToTarget => channel.waiting.to_target.as_ref(),
                Direction::ToClient => channel.waiting.to_client.as_ref(),
            };
            waiting.map(channel::Waiting::behind)
        });
        behind.sum::<usize>() > limits::BEHIND_HELD_MESSAGES_BYTES
    }

    /// Asks `sink` for the verdict on a message that was held, and adds what then goes on to `onward`, and what goes back to its sender
    /// to `back`: whole frames.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn resume(
        &mut self,
        message: HeldMessage,
        sink: &mut dyn Sink,
        onward: &mut Vec<u8>,
        back: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        let HeldMessage { channel, direction } = message;
        let mut channels = self.channels.iter_mut();
        let Some(channel) = channels.find(|candidate| candidate.info.id == channel) else {
            return Ok(());
        };
        let mut context = ChannelContext {
            budget: &self.settings.budget,
            leaving: self.leaving.of(direction),
            awaited: self.awaited.of(direction),
            initiators: &mut self.initiators,
            answers: &mut self.answers,
        };
        let resumed = channel.resume(direction, &mut context, sink, onward);
        let opposite = direction.opposite();
        let reported = report(sink, opposite, Origin::Gateway, &self.answers, &[]);
        back.append(&mut self.answers);
        resumed.and(reported)
    }

    /// What to say to a side before its connection is ended: to the client a Set Error Info PDU, if it can show
    /// one by now, and to both an MCS Disconnect Provider Ultimatum. `sink` hears of them, and has no say.
    pub fn farewell(&self, to: Direction, error_info: u32, sink: &mut dyn Sink) -> Vec<u8> {
        let bytes = self.farewell_pdus(to, error_info);
        let _ = report(sink, to, Origin::Gateway, &bytes, &[]);
        bytes
    }

    fn farewell_pdus(&self, to: Direction, error_info: u32) -> Vec<u8> {
        let Some(ids) = &self.ids else {
            return Vec::new();
        };
        let reason = match to {
            Direction::ToTarget => return mcs::encode_disconnect(mcs::REASON_USER_REQUESTED),
            Direction::ToClient => mcs::REASON_PROVIDER_INITIATED,
        };
        let mut bytes = Vec::new();
        // Whether the client announced it or not: FreeRDP does not, and shows it all the same.
        if self.phase >= Phase::Licensing {
            let initiator = self.initiators.to_client;
            let mut say = |data: &[u8]| {
                let frame = mcs::encode_send_data(false, initiator, ids.io, &[data]);
                bytes.extend(frame.unwrap_or_default());
            };
            if self.phase == Phase::Licensing {
                say(&LICENSE_VALID_CLIENT);
            }
            say(&share::encode_error_info(
                self.share_id,
                initiator,
                error_info,
            ));
        }
        bytes.extend(mcs::encode_disconnect(reason));
        bytes
    }

    fn frame(
        &mut self,
        direction: Direction,
        bytes: &mut [u8],
        frame: &Frame,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        self.secrets.clear();
        let answered = self.answers.len();
        let passage = match frame.kind {
            FrameKind::FastPath(header) => {
                self.fast_path(direction, header, bytes, frame.body.clone(), sink)?
            }
            FrameKind::Tpkt => self.slow_path(direction, bytes, sink)?,
        };
        match &passage {
            Passage::AsIs => {
                let event = Event::Pdu {
                    direction,
                    origin: Origin::Peer,
                    bytes,
                    secrets: &self.secrets,
                };
                watch(sink, &event)?;
            }
            Passage::Withheld => {}
            Passage::Instead {
                bytes,
                secrets,
                origin,
            } => report(sink, direction, *origin, bytes, secrets)?,
        }
        let answers = self.answers.get(answered..).unwrap_or_default();
        report(sink, direction.opposite(), Origin::Gateway, answers, &[])?;
        Ok(passage)
    }

    fn fast_path(
        &mut self,
        direction: Direction,
        header: u8,
        bytes: &[u8],
        body: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        if self.phase < Phase::Licensing {
            return Err(self.out_of_place(direction, "fast-path data"));
        }
        let body = bytes.get(body).unwrap_or_default();
        match direction {
            Direction::ToTarget => {
                let inputs = fast_path::inputs(header, body)
                    .ok_or_else(|| malformed(direction, "fast-path input"))?;
                report_inputs(sink, inputs)
            }
            Direction::ToClient => {
                let mut reader = Reader::new(body);
                // Two bytes cannot be an update; clients ignore them.
                while reader.rest().len() > 2 {
                    let update = fast_path::next_update(&mut reader)
                        .ok_or_else(|| malformed(direction, "fast-path update"))?;
                    let budget = &self.settings.budget;
                    note_compression(&mut self.bulk, direction, update.compression, budget, sink)?;
                    let data = plain(&mut self.bulk, direction, update.data, update.compression)?;
                    watch(
                        sink,
                        &Event::FastPathUpdate {
                            code: update.code,
                            fragmentation: update.fragmentation,
                            data,
                        },
                    )?;
                }
                Ok(Passage::AsIs)
            }
        }
    }

    fn slow_path(
        &mut self,
        direction: Direction,
        bytes: &mut [u8],
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let (pdu, behind) = mcs::decode(bytes).map_err(|error| SessionError::Mcs {
            from: direction,
            error,
        })?;
        if behind > 0 {
            self.bytes_behind(direction, bytes, &pdu, behind, sink)?;
        }
        match (pdu, direction) {
            (Mcs::ConnectInitial { user_data }, Direction::ToTarget) => {
                self.connect_initial(bytes, user_data, sink)?;
            }
            (Mcs::ConnectResponse { result, user_data }, Direction::ToClient) => {
                self.connect_response(bytes, result, user_data, sink)?;
            }
            (Mcs::ConnectInitial { .. }, Direction::ToClient) => {
                return Err(self.out_of_place(direction, "MCS connect initial"));
            }
            (Mcs::ConnectResponse { .. }, Direction::ToTarget) => {
                return Err(self.out_of_place(direction, "MCS connect response"));
            }
            (Mcs::AttachUserConfirm { initiator }, Direction::ToClient) => {
                self.initiators.to_target = initiator.unwrap_or_default();
            }
            (Mcs::AttachUserConfirm { .. }, Direction::ToTarget) => {
                return Err(self.out_of_place(direction, "MCS attach user confirm"));
            }
            (
                Mcs::SendData {
                    request,
                    initiator,
                    channel,
                    user_data,
                    ..
                },
                _,
            ) => {
                if request != (direction == Direction::ToTarget) {
                    return Err(self.out_of_place(direction, "MCS data of the other side"));
                }
                *self.initiators.of(direction) = initiator;
                return self.send_data(direction, bytes, channel, user_data, sink);
            }
            (Mcs::Disconnect { reason }, _) => {
                *self.parted.of(direction) = true;
                watch(sink, &Event::Disconnect { direction, reason })?;
            }
            (Mcs::X224Disconnect, _) => {
                *self.parted.of(direction) = true;
                let reason = 0;
                watch(sink, &Event::Disconnect { direction, reason })?;
            }
            (Mcs::Domain { .. }, _) => {
                if self.ids.is_none() {
                    return Err(self.out_of_place(direction, "MCS domain PDU"));
                }
            }
        }
        Ok(Passage::AsIs)
    }

    /// Bytes behind a PDU pass where nobody reads them as more of its data.
    fn bytes_behind(
        &self,
        direction: Direction,
        frame: &[u8],
        pdu: &Mcs,
        bytes: usize,
        sink: &mut dyn Sink,
    ) -> Result<(), SessionError> {
        let harmless = match pdu {
            Mcs::SendData {
                channel, user_data, ..
            } => {
                let chunk = frame.get(user_data.clone()).unwrap_or_default();
                // The history of compression is shared with channels that are read.
                let plain = chunk.get(6).is_some_and(|flags| !bulk::concerns(*flags));
                let mut channels = self.channels.iter();
                let channel = channels.find(|candidate| candidate.info.id == *channel);
                plain && channel.is_some_and(|channel| channel.interest < Interest::Observe)
            }
            Mcs::ConnectInitial { .. } | Mcs::ConnectResponse { .. } => false,
            Mcs::AttachUserConfirm { .. }
            | Mcs::Disconnect { .. }
            | Mcs::Domain { .. }
            | Mcs::X224Disconnect => true,
        };
        if !harmless {
            return Err(SessionError::Mcs {
                from: direction,
                error: McsError::Length("send data"),
            });
        }
        let what = Unknown::BehindMcs { bytes };
        watch(sink, &Event::Unknown { direction, what })
    }

    fn connect_initial(
        &mut self,
        bytes: &mut [u8],
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<(), SessionError> {
        let direction = Direction::ToTarget;
        if self.client.is_some() {
            return Err(self.out_of_place(direction, "MCS connect initial"));
        }
        let (data, fields) =
            gcc::decode_client(bytes, user_data).map_err(|error| SessionError::Gcc {
                from: direction,
                error,
            })?;
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &data.channels {
            let again = names.iter().any(|other| other.eq_ignore_ascii_case(name));
            if again && sink.interest(name) != Interest::Ignore {
                return Err(SessionError::Gcc {
                    from: direction,
                    error: GccError::ChannelTwice,
                });
            }
            names.push(name);
        }
        write_u32(bytes, fields.protocol, self.settings.target_selected);
        write_u32(bytes, fields.multitransport, 0);
        write_u16(
            bytes,
            fields.early_capability_flags,
            data.honest_capabilities(),
        );
        watch(sink, &Event::ClientData(&data))?;
        self.client = Some(data);
        Ok(())
    }

    fn connect_response(
        &mut self,
        bytes: &mut [u8],
        result: u8,
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<(), SessionError> {
        let direction = Direction::ToClient;
        let Some(client) = self.client.as_ref().filter(|_| self.ids.is_none()) else {
            return Err(self.out_of_place(direction, "MCS connect response"));
        };
        if result != 0 {
            // The target does not want this session; there is nothing to know about it.
            return Ok(());
        }
        let gcc = |error| SessionError::Gcc {
            from: direction,
            error,
        };
        let (data, fields) = gcc::decode_server(bytes, user_data).map_err(gcc)?;
        let (asked, granted) = (client.channels.len(), data.channel_ids.len());
        if asked != granted {
            let read = |(name, _): &(String, u32)| sink.interest(name) != Interest::Ignore;
            if 0 < granted && granted < asked && client.channels.iter().any(read) {
                return Err(gcc(GccError::Channels(granted)));
            }
            let what = Unknown::ChannelCount { asked, granted };
            watch(sink, &Event::Unknown { direction, what })?;
        }
        let mut taken = vec![data.io_channel];
        taken.extend(data.message_channel);
        for ((name, options), &id) in client.channels.iter().zip(&data.channel_ids) {
            // A channel that was not granted.
            if id == 0 {
                continue;
            }
            if taken.contains(&id) {
                return Err(gcc(GccError::Channels(granted)));
            }
            taken.push(id);
            self.channels.push(Channel {
                interest: sink.interest(name),
                info: StaticChannel {
                    name: name.clone(),
                    id,
                    options: *options,
                },
                partial: PerDirection::default(),
                waiting: PerDirection::default(),
            });
        }
        write_u32(bytes, fields.protocol, self.settings.client_requested);
        write_u32(bytes, fields.multitransport, 0);
        self.ids = Some(Ids {
            io: data.io_channel,
            message: data.message_channel,
        });
        let channels: Vec<_> = self
            .channels
            .iter()
            .map(|channel| channel.info.clone())
            .collect();
        watch(
            sink,
            &Event::ServerData {
                data: &data,
                channels: &channels,
            },
        )?;
        self.enter(Phase::ChannelConnection, sink)
    }

    fn send_data(
        &mut self,
        direction: Direction,
        bytes: &mut [u8],
        channel: u16,
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let Some(ids) = self.ids.clone() else {
            return Err(self.out_of_place(direction, "channel data"));
        };
        if channel == ids.io {
            return self.io_channel(direction, bytes, user_data, sink);
        }
        if !self.client_info {
            return Err(self.out_of_place(direction, "channel data"));
        }
        let data = bytes.get(user_data.clone()).unwrap_or_default();
        if Some(channel) == ids.message {
            let flags = u16_at(data, 0).ok_or_else(|| malformed(direction, "security header"))?;
            let data = data
                .get(4..)
                .ok_or_else(|| malformed(direction, "security header"))?;
            watch(
                sink,
                &Event::MessageChannel {
                    direction,
                    flags,
                    data,
                },
            )?;
            if flags & (security::TRANSPORT_REQ | security::TRANSPORT_RSP) != 0 {
                self.decline_transport(direction, flags, data, channel)?;
                return Ok(Passage::Withheld);
            }
            refuse_security(direction, flags)?;
            return Ok(Passage::AsIs);
        }
        let position = self
            .channels
            .iter()
            .position(|candidate| candidate.info.id == channel);
        let Some(channel) = position.and_then(|position| self.channels.get_mut(position)) else {
            return nowhere(direction, channel, data.len(), sink);
        };
        let chunk = Chunk {
            direction,
            frame: bytes,
            data,
        };
        let mut context = ChannelContext {
            budget: &self.settings.budget,
            leaving: self.leaving.of(direction),
            awaited: self.awaited.of(direction),
            initiators: &mut self.initiators,
            answers: &mut self.answers,
        };
        channel.chunk(&chunk, &mut self.bulk, &mut context, sink)
    }

    /// A target that asks for UDP, although it was told that the client has none, gets the answer of a client that
    /// could not: the client itself never hears of it. What a client says of a request it cannot have had is dropped.
    fn decline_transport(
        &mut self,
        direction: Direction,
        flags: u16,
        data: &[u8],
        channel: u16,
    ) -> Result<(), SessionError> {
        if direction == Direction::ToTarget {
            return Ok(());
        }
        let request_id = Reader::new(data)
            .array::<4>()
            .filter(|_| flags & security::TRANSPORT_REQ != 0)
            .ok_or_else(|| malformed(direction, "multitransport request"))?;
        let [low, high] = security::TRANSPORT_RSP.to_le_bytes();
        let parts = [&[low, high, 0, 0][..], &request_id, &E_ABORT.to_le_bytes()];
        let initiator = self.initiators.to_target;
        let answer = mcs::encode_send_data(true, initiator, channel, &parts)
            .ok_or(SessionError::Multitransport)?;
        self.answers.extend(answer);
        Ok(())
    }

    fn io_channel(
        &mut self,
        direction: Direction,
        bytes: &mut [u8],
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let data = bytes.get(user_data.clone()).unwrap_or_default();
        if !self.client_info {
            let flags = u16_at(data, 0).unwrap_or(0);
            if direction == Direction::ToTarget && flags & security::INFO_PKT != 0 {
                return self.client_info(bytes, user_data, sink);
            }
            return Err(self.out_of_place(direction, "session data"));
        }
        // Behind the licence nothing has a security header any more, and nothing may look like one.
        if share::is_control(data) || self.phase > Phase::Licensing && u16_at(data, 2) != Some(0) {
            return self.share_control(direction, bytes, user_data, sink);
        }
        let flags = u16_at(data, 0).ok_or_else(|| malformed(direction, "security header"))?;
        refuse_security(direction, flags)?;
        if flags & security::LICENSE_PKT == 0 || self.phase != Phase::Licensing {
            return Err(self.out_of_place(direction, "data that are no share PDU"));
        }
        let licence = || malformed(direction, "licence PDU");
        let message_type = *data.get(4).ok_or_else(licence)?;
        watch(
            sink,
            &Event::Licence {
                direction,
                message_type,
            },
        )?;
        let settled = match message_type {
            // NEW_LICENSE, UPGRADE_LICENSE.
            0x03 | 0x04 => true,
            // ERROR_ALERT with STATUS_VALID_CLIENT.
            0xff => u32_at(data, 8) == Some(7),
            _ => false,
        };
        if settled && direction == Direction::ToClient {
            self.enter(Phase::CapabilitiesExchange, sink)?;
        }
        Ok(Passage::AsIs)
    }

    fn client_info(
        &mut self,
        bytes: &mut [u8],
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let at = user_data.start;
        let pdu = bytes.get_mut(user_data).unwrap_or_default();
        let (info, layout) = client_info::decode(pdu)?;
        self.client_info = true;
        self.secrets = client_info::secrets_in_frame(&layout, at);
        if sink.decides() {
            client_info::decline_compression(pdu, &layout);
        }
        let mut without = None;
        if let Some(cookie) = client_info::cookie(pdu, &layout) {
            let known = |cookie: &ClientCookie| {
                let mut cookies = self.settings.cookies.iter();
                cookies.any(|cookies| cookies.know(cookie))
            };
            let passed = cookie.as_ref().is_some_and(known);
            let logon_id = info.reconnect_logon_id;
            watch(sink, &Event::Reconnect { logon_id, passed })?;
            if !passed {
                without = Some(client_info::without_cookie(pdu, &layout));
            }
        }
        let new = match (&self.settings.logon, without) {
            (None, new) => new,
            (Some(logon), None) => Some(client_info::with_logon(pdu, &info, &layout, logon)?),
            (Some(logon), Some(pdu)) => {
                let (info, layout) = client_info::decode(&pdu)?;
                Some(client_info::with_logon(&pdu, &info, &layout, logon)?)
            }
        };
        let passage = match new {
            None => {
                watch(sink, &Event::ClientInfo(&info))?;
                Passage::AsIs
            }
            Some(new) => {
                // Who logs on is whom the gateway names; what the client typed goes nowhere.
                let (info, layout) = client_info::decode(&new)?;
                watch(sink, &Event::ClientInfo(&info))?;
                let bytes = replace_user_data(bytes, &new).ok_or(ClientInfoError::TooLong)?;
                let Ok((Mcs::SendData { user_data, .. }, _)) = mcs::decode(&bytes) else {
                    return Err(ClientInfoError::TooLong.into());
                };
                Passage::Instead {
                    secrets: client_info::secrets_in_frame(&layout, user_data.start),
                    bytes,
                    origin: Origin::Peer,
                }
            }
        };
        self.enter(Phase::Licensing, sink)?;
        Ok(passage)
    }

    fn share_control(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        user_data: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result<Passage, SessionError> {
        let data = bytes.get(user_data.clone()).unwrap_or_default();
        let mut at = 0;
        let mut passage = Passage::AsIs;
        let mut count = 0_usize;
        while data.len().saturating_sub(at) > SHARE_PADDING_BYTES {
            let (control, end) =
                share::control(data, at).ok_or_else(|| malformed(direction, "share PDU"))?;
            let body = data.get(control.body.clone()).unwrap_or_default();
            match (control.kind, direction) {
                (None, _) => {}
                (Some(pdu_type::DATA), _) => {
                    let withheld =
                        self.share_data(direction, data, control.body, user_data.start, sink)?;
                    if withheld {
                        passage = Passage::Withheld;
                    }
                }
                (Some(pdu_type::DEMAND_ACTIVE), Direction::ToClient) => {
                    let (share_id, sets) = share::capabilities(body, false)
                        .ok_or_else(|| malformed(direction, "demand active"))?;
                    self.share_id = share_id;
                    let size = share::desktop_size(&sets);
                    watch(
                        sink,
                        &Event::Capabilities {
                            direction,
                            share_id,
                            sets,
                        },
                    )?;
                    if let Some((width, height)) = size {
                        watch(sink, &Event::DesktopSize { width, height })?;
                    }
                    self.enter(Phase::CapabilitiesExchange, sink)?;
                }
                (Some(pdu_type::CONFIRM_ACTIVE), Direction::ToTarget) => {
                    let (share_id, sets) = share::capabilities(body, true)
                        .ok_or_else(|| malformed(direction, "confirm active"))?;
                    watch(
                        sink,
                        &Event::Capabilities {
                            direction,
                            share_id,
                            sets,
                        },
                    )?;
                    self.enter(Phase::Active, sink)?;
                }
                (Some(pdu_type::DEACTIVATE_ALL), Direction::ToClient) => {
                    watch(sink, &Event::Deactivated)?;
                    self.enter(Phase::CapabilitiesExchange, sink)?;
                }
                (Some(pdu_type::SERVER_REDIRECTION), Direction::ToClient) => {
                    let data = self.redirection(body, sink)?;
                    let bytes = replace_user_data(bytes, &data);
                    passage = Passage::Instead {
                        bytes: bytes.ok_or(SessionError::Verdict("redirection"))?,
                        secrets: Vec::new(),
                        origin: Origin::Peer,
                    };
                }
                (Some(pdu_type::CONFIRM_ACTIVE), Direction::ToClient)
                    if self.phase == Phase::Active =>
                {
                    let bytes = end.saturating_sub(at);
                    let pdu_type = pdu_type::CONFIRM_ACTIVE;
                    let what = Unknown::OtherSide { pdu_type, bytes };
                    watch(sink, &Event::Unknown { direction, what })?;
                }
                (Some(kind), _) if pdu_type::is_known(kind) => {
                    return Err(self.out_of_place(direction, "a share PDU of the other side"));
                }
                (Some(pdu_type), _) => {
                    let bytes = end.saturating_sub(at);
                    let what = Unknown::SharePdu { pdu_type, bytes };
                    watch(sink, &Event::Unknown { direction, what })?;
                }
            }
            at = end;
            count = count.saturating_add(1);
        }
        // A PDU that shares its frame with others cannot be taken out of it.
        match passage {
            Passage::Withheld if count > 1 => return Err(SessionError::Verdict("input")),
            Passage::Instead { .. } if count > 1 => {
                return Err(SessionError::Verdict("redirection"));
            }
            Passage::AsIs | Passage::Withheld | Passage::Instead { .. } => {}
        }
        Ok(passage)
    }

    /// Returns whether the PDU is to be withheld.
    fn share_data(
        &mut self,
        direction: Direction,
        data: &[u8],
        body: Range<usize>,
        at: usize,
        sink: &mut dyn Sink,
    ) -> Result<bool, SessionError> {
        let pdu =
            share::data(data, body).ok_or_else(|| malformed(direction, "share data header"))?;
        let raw = data.get(pdu.body.clone()).unwrap_or_default();
        let compressed = pdu.compression & bulk::COMPRESSED != 0;
        let budget = &self.settings.budget;
        note_compression(&mut self.bulk, direction, pdu.compression, budget, sink)?;
        let plain = plain(&mut self.bulk, direction, raw, pdu.compression)?;
        watch(
            sink,
            &Event::ShareData {
                direction,
                pdu_type2: pdu.pdu_type2,
                data: plain,
            },
        )?;
        match (pdu.pdu_type2, direction) {
            (pdu_type2::INPUT, Direction::ToTarget) => {
                let inputs =
                    share::inputs(plain).ok_or_else(|| malformed(direction, "slow-path input"))?;
                return Ok(matches!(report_inputs(sink, inputs)?, Passage::Withheld));
            }
            (pdu_type2::SAVE_SESSION_INFO, Direction::ToClient) => {
                let info = share::session_info(plain)
                    .ok_or_else(|| malformed(direction, "session info"))?;
                if let Some(secret) = &info.secret {
                    let secret = if compressed {
                        pdu.body.clone()
                    } else {
                        shifted(secret, pdu.body.start)
                    };
                    self.secrets.push(shifted(&secret, at));
                }
                if let Some(logon) = info.logon {
                    watch(sink, &Event::Logon(logon))?;
                }
                if let Some(cookie) = &info.cookie {
                    if let Some(cookies) = &mut self.settings.cookies
                        && let Some(answer) = ClientCookie::answer_to(cookie)
                    {
                        cookies.issued(&answer);
                    }
                    watch(sink, &Event::AutoReconnectCookie(cookie))?;
                }
            }
            (pdu_type2::SET_ERROR_INFO, Direction::ToClient) => {
                let code =
                    share::error_info(plain).ok_or_else(|| malformed(direction, "error info"))?;
                // Zero is said when there is nothing to say.
                self.parted.to_client |= code != 0;
                watch(sink, &Event::ErrorInfo(code))?;
            }
            // Clients ask so before they leave; a target that does not let them says so, and they stay.
            (pdu_type2::SHUTDOWN_REQUEST, Direction::ToTarget) => self.parted.to_target = true,
            (pdu_type2::SHUTDOWN_DENIED, Direction::ToClient) => self.parted.to_target = false,
            _ => {}
        }
        Ok(false)
    }

    /// The share PDU that brings the client back here, to be connected to what the target names.
    fn redirection(&mut self, body: &[u8], sink: &mut dyn Sink) -> Result<Vec<u8>, SessionError> {
        let redirection = redirection::decode(body)
            .ok_or_else(|| malformed(Direction::ToClient, "server redirection"))?;
        watch(sink, &Event::Redirection(&redirection))?;
        let follows = redirection.only_informs()
            || match &mut self.settings.redirections {
                Some(redirections) => redirections.follow(&redirection),
                None => false,
            };
        if !follows {
            let to: Vec<&str> = redirection.hosts().collect();
            return Err(SessionError::Redirection { to: to.join(", ") });
        }
        let token = self.settings.routing_token.as_ref();
        let token = token.map(|token| token.as_slice());
        redirection::encode_return(&redirection, token, self.initiators.to_client)
            .ok_or(SessionError::Verdict("redirection"))
    }

    fn enter(&mut self, phase: Phase, sink: &mut dyn Sink) -> Result<(), SessionError> {
        if self.phase == phase {
            return Ok(());
        }
        self.phase = phase;
        watch(sink, &Event::Phase(phase))
    }

    fn out_of_place(&self, from: Direction, pdu: &'static str) -> SessionError {
        SessionError::OutOfPlace {
            from,
            pdu,
            phase: self.phase,
        }
    }
}

/// What a sink is given between two questions whether it is ready, bytes of whole frames: what is read at once fits.
const FEED_BYTES: usize = 256 * 1024;

/// Bytes behind a share PDU in its data that are no other to anybody: FreeRDP stops here, and xrdp wants a whole header.
const SHARE_PADDING_BYTES: usize = 3;

/// The MCS channel id of a server ([MS-RDPBCGR] 2.2.8.1.1.1.1, `pduSource`), until the target names its own.
const SERVER_CHANNEL: u16 = 1002;

/// `hrResponse` of a client that could not set up a transport ([MS-RDPBCGR] 2.2.15.2).
const E_ABORT: u32 = 0x8000_4004;

/// License Error PDU, valid client ([MS-RDPBCGR] 2.2.1.12): security header, preamble, code, transition, empty blob.
const LICENSE_VALID_CLIENT: [u8; 20] = [
    0x80, 0, 0, 0, 0xff, 0x03, 16, 0, 7, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0,
];

/// Reports the events of one input PDU, which passes whole or not at all.
fn report_inputs(sink: &mut dyn Sink, inputs: Vec<Input>) -> Result<Passage, SessionError> {
    let mut passage = Passage::AsIs;
    for input in inputs {
        match sink.on_event(&Event::Input(input)) {
            Verdict::Forward => {}
            Verdict::Deny { answers, .. } if answers.is_empty() => passage = Passage::Withheld,
            Verdict::Terminate(termination) => {
                return Err(SessionError::Terminated(termination));
            }
            Verdict::Replace { .. } | Verdict::Hold | Verdict::Deny { .. } => {
                return Err(SessionError::Verdict("input"));
            }
        }
    }
    Ok(passage)
}

/// Data on a channel that does not exist: those of a target reach nobody.
fn nowhere(
    direction: Direction,
    channel: u16,
    bytes: usize,
    sink: &mut dyn Sink,
) -> Result<Passage, SessionError> {
    if direction == Direction::ToTarget {
        return Err(SessionError::UnknownChannel {
            from: direction,
            channel,
        });
    }
    let what = Unknown::Nowhere { channel, bytes };
    watch(sink, &Event::Unknown { direction, what })?;
    Ok(Passage::Withheld)
}

/// Refuses what a security header may not say inside TLS.
fn refuse_security(direction: Direction, flags: u16) -> Result<(), SessionError> {
    if flags & security::ENCRYPT != 0 {
        return Err(malformed(direction, "PDU that is encrypted once more"));
    }
    if flags & security::REDIRECTION_PKT != 0 {
        return Err(malformed(direction, "server redirection"));
    }
    if flags & (security::TRANSPORT_REQ | security::TRANSPORT_RSP) != 0 {
        return Err(SessionError::Multitransport);
    }
    Ok(())
}

fn write_u16(bytes: &mut [u8], field: Option<Range<usize>>, value: u16) {
    let field = field
        .and_then(|range| bytes.get_mut(range))
        .and_then(|field| field.first_chunk_mut());
    if let Some(field) = field {
        *field = value.to_le_bytes();
    }
}

fn write_u32(bytes: &mut [u8], field: Option<Range<usize>>, value: u32) {
    let field = field
        .and_then(|range| bytes.get_mut(range))
        .and_then(|field| field.first_chunk_mut());
    if let Some(field) = field {
        *field = value.to_le_bytes();
    }
}

/// The frame of a Send Data Request with other data; its headers stay, apart from the lengths.
fn replace_user_data(frame: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let Ok((Mcs::SendData { length, .. }, _)) = mcs::decode(frame) else {
        return None;
    };
    let size = u16::try_from(data.len())
        .ok()
        .filter(|&size| size < 0x8000)?;
    let head = frame.get(..length.start)?;
    let total = head.len().checked_add(2)?.checked_add(data.len())?;
    let mut new = Vec::with_capacity(total);
    new.extend_from_slice(head);
    new.extend((size | 0x8000).to_be_bytes());
    new.extend_from_slice(data);
    let [high, low] = u16::try_from(total).ok()?.to_be_bytes();
    *new.get_mut(2)? = high;
    *new.get_mut(3)? = low;
    Some(new)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::event::{Grounds, Termination};
    use crate::redirection::Redirection;

    #[test]
    fn nothing_but_the_client_info_may_come_before_it() {
        let mut session = Session::until(Phase::ChannelConnection);
        let share = io(Direction::ToTarget, &[18, 0, 0x17, 0, 0, 0, 0, 0]);
        assert!(matches!(
            session.feed(Direction::ToTarget, &share),
            Err(SessionError::OutOfPlace { .. })
        ));
        let mut session = Session::until(Phase::ChannelConnection);
        let input = [0x04, 0x04, 0x00, 0x1e];
        assert!(matches!(
            session.feed(Direction::ToTarget, &input),
            Err(SessionError::OutOfPlace { .. })
        ));
        let mut session = Session::until(Phase::ChannelConnection);
        let chunk = channel(Direction::ToTarget, CLIPRDR, 3, 3, b"abc");
        assert!(matches!(
            session.feed(Direction::ToTarget, &chunk),
            Err(SessionError::OutOfPlace { .. })
        ));
    }

    #[test]
    fn the_basic_settings_come_once_and_from_their_side() {
        let recording = recording();
        let (_, initial) = &recording[0];
        let (_, response) = &recording[1];
        let mut session = Session::new();
        assert!(session.feed(Direction::ToClient, initial).is_err());
        let mut session = Session::new();
        assert!(session.feed(Direction::ToClient, response).is_err());
        let mut session = Session::new();
        session.feed(Direction::ToTarget, initial).unwrap();
        assert!(session.feed(Direction::ToTarget, initial).is_err());
        let mut session = Session::new();
        session.feed(Direction::ToTarget, initial).unwrap();
        session.feed(Direction::ToClient, response).unwrap();
        assert!(session.feed(Direction::ToClient, response).is_err());
    }

    #[test]
    fn a_target_that_encrypts_by_itself_is_refused() {
        let recording = recording();
        let mut session = Session::new();
        session.feed(Direction::ToTarget, &recording[0].1).unwrap();
        let mut response = recording[1].1.clone();
        let at = response
            .windows(4)
            .position(|window| window == [0x02, 0x0c, 0x0c, 0x00])
            .unwrap();
        response[at + 4] = 2;
        assert_eq!(
            session.feed(Direction::ToClient, &response),
            Err(SessionError::Gcc {
                from: Direction::ToClient,
                error: GccError::Encryption
            })
        );
    }

    #[test]
    fn what_needs_a_message_channel_is_not_promised_where_the_client_asks_for_none() {
        let mut initial = recording()[0].1.clone();
        let find = |pattern: [u8; 2]| {
            // A block: its kind, and a length below 256.
            let at = |block: &[u8]| block[..2] == pattern && block[3] == 0;
            initial.windows(4).position(at).unwrap()
        };
        let (at, asked) = (find([0x01, 0xc0]) + 144, find([0x06, 0xc0]));
        let promises = 0x0080 | 0x0400;
        let flags = u16_at(&initial, at).unwrap() | promises;
        initial[at..at + 2].copy_from_slice(&flags.to_le_bytes());
        for (kind, expected) in [(0x06, flags), (0xfe, flags & !promises)] {
            initial[asked] = kind;
            let mut session = Session::new();
            let passed = session.feed(Direction::ToTarget, &initial).unwrap();
            assert_eq!(u16_at(&passed, at), Some(expected), "{kind:#x}");
        }
    }

    #[test]
    fn what_a_target_sends_on_no_channel_is_dropped_and_what_a_client_sends_ends_the_session() {
        for phase in [Phase::Licensing, Phase::Active] {
            let mut session = Session::until(phase);
            for id in [0, 1099] {
                let chunk = channel(Direction::ToClient, id, 3, 3, b"abc");
                assert_eq!(session.feed(Direction::ToClient, &chunk).unwrap(), b"");
                let told = Unknown::Nowhere {
                    channel: id,
                    bytes: 11,
                };
                assert_eq!(session.judge.unknown.pop(), Some(told));
            }
            let chunk = channel(Direction::ToTarget, 0, 3, 3, b"abc");
            assert_eq!(
                session.feed(Direction::ToTarget, &chunk),
                Err(SessionError::UnknownChannel {
                    from: Direction::ToTarget,
                    channel: 0
                })
            );
        }
    }

    #[test]
    fn chunks_are_put_together_and_pass_as_they_come() {
        let mut session = Session::until(Phase::Active);
        let chunks = [
            channel(Direction::ToClient, CLIPRDR, 6, 0x11, b"ab"),
            channel(Direction::ToClient, CLIPRDR, 6, 0x10, b"cd"),
            channel(Direction::ToClient, CLIPRDR, 6, 0x12, b"ef"),
        ];
        for chunk in &chunks {
            assert_eq!(session.feed(Direction::ToClient, chunk).unwrap(), *chunk);
        }
        assert_eq!(session.judge.messages, [b"abcdef".to_vec()]);
    }

    #[test]
    fn what_a_message_lacks_is_told() {
        let mut session = Session::until(Phase::Active);
        let chunk = |flags, data: &[u8]| channel(Direction::ToClient, CLIPRDR, 100, flags, data);
        let mut awaited = |bytes: &[u8]| {
            let fed = session.tracker.feed(
                Direction::ToClient,
                &mut bytes.to_vec(),
                &mut session.judge,
                &mut Vec::new(),
                &mut Vec::new(),
            );
            fed.unwrap().awaited
        };
        assert_eq!(awaited(&chunk(0x11, &[1; 10])), 90);
        // The beginning of the next frame has arrived already.
        let more = [chunk(0x10, &[1; 50]), chunk(0x12, &[1; 40])[..30].to_vec()].concat();
        assert_eq!(awaited(&more), 10);
        assert_eq!(awaited(&chunk(0x12, &[1; 40])), 0);
    }

    #[test]
    fn chunks_that_do_not_fit_together_end_the_session() {
        let first = |total| channel(Direction::ToClient, CLIPRDR, total, 1, b"ab");
        let last = |total| channel(Direction::ToClient, CLIPRDR, total, 2, b"cd");
        for chunks in [
            // No beginning; too much; too little.
            vec![last(4)],
            vec![first(3), last(3)],
            vec![first(5), last(5)],
            vec![channel(Direction::ToClient, CLIPRDR, 5, 3, b"abcd")],
            vec![channel(Direction::ToClient, CLIPRDR, 3, 3, b"abcd")],
        ] {
            let mut session = Session::until(Phase::Active);
            let result: Result<Vec<_>, _> = chunks
                .iter()
                .map(|chunk| session.feed(Direction::ToClient, chunk))
                .collect();
            assert_eq!(
                result,
                Err(malformed(Direction::ToClient, "channel PDU")),
                "{chunks:?}"
            );
        }
    }

    #[test]
    fn a_first_chunk_takes_the_place_of_a_message_that_was_not_whole() {
        let chunk =
            |total, flags, data: &[u8]| channel(Direction::ToClient, CLIPRDR, total, flags, data);
        let chunks = [chunk(6, 1, b"ab"), chunk(4, 1, b"cd"), chunk(4, 2, b"ef")];
        let mut session = Session::until(Phase::Active);
        for chunk in &chunks {
            assert_eq!(session.feed(Direction::ToClient, chunk).unwrap(), *chunk);
        }
        assert_eq!(session.judge.messages, [b"cdef".to_vec()]);
        // What nobody will read goes no further where stages decide.
        let mut session = Session::deciding(Verdict::Forward);
        let passed: Vec<u8> = chunks
            .iter()
            .flat_map(|chunk| session.feed(Direction::ToClient, chunk).unwrap())
            .collect();
        assert_eq!(passed, chunks[1..].concat());
        // A message that was whole but for its last flag is one to some receivers.
        let mut session = Session::until(Phase::Active);
        session
            .feed(Direction::ToClient, &chunk(2, 1, b"ab"))
            .unwrap();
        session
            .feed(Direction::ToClient, &chunk(4, 1, b"cd"))
            .unwrap_err();
    }

    #[test]
    fn chunks_that_do_not_fit_pass_where_nothing_depends_on_them() {
        let chunk =
            |total, flags, data: &[u8]| channel(Direction::ToClient, CLIPRDR, total, flags, data);
        let mut session = Session::new();
        session.judge.interest = Some(Interest::Sample);
        let mut session = session.run(Phase::Active);
        let huge = u32::try_from(limits::CHANNEL_MESSAGE_BYTES).unwrap() + 1;
        for chunks in [
            vec![chunk(4, 2, b"cd")],
            vec![chunk(2, 1, b"ab"), chunk(4, 1, b"cd")],
            vec![chunk(3, 1, b"ab"), chunk(3, 2, b"cd")],
            vec![chunk(9, 1, b"ab"), chunk(9, 2, b"cd")],
            vec![chunk(9, 3, b"ab")],
            vec![chunk(huge, 1, b"ab"), chunk(huge, 2, b"ab")],
        ] {
            session.judge.unknown.clear();
            for chunk in &chunks {
                let passed = session.feed(Direction::ToClient, chunk).unwrap();
                assert_eq!(passed, *chunk);
            }
            assert!(!session.judge.unknown.is_empty(), "{chunks:?}");
            assert_eq!(session.judge.messages, Vec::<Vec<u8>>::new());
            // The next message is read again.
            let whole = chunk(2, 3, b"ab");
            session.feed(Direction::ToClient, &whole).unwrap();
            assert_eq!(session.judge.messages, [b"ab".to_vec()]);
            session.judge.messages.clear();
        }
        let held = session.tracker.settings.budget.held(Direction::ToClient);
        assert_eq!(held, 0);
    }

    #[test]
    fn a_confirm_active_of_the_target_is_nothing_to_anybody() {
        let pdu = [8, 0, 0x13, 0, 0xea, 3, 9, 9];
        let mut session = Session::until(Phase::Active);
        let frame = io(Direction::ToClient, &pdu);
        assert_eq!(session.feed(Direction::ToClient, &frame).unwrap(), frame);
        let what = Unknown::OtherSide {
            pdu_type: 3,
            bytes: 8,
        };
        assert_eq!(session.judge.unknown, [what]);
        // A client that demands is no client.
        let pdu = [8, 0, 0x11, 0, 0xea, 3, 9, 9];
        let frame = io(Direction::ToTarget, &pdu);
        session.feed(Direction::ToTarget, &frame).unwrap_err();
    }

    #[test]
    fn a_message_above_the_limit_ends_the_session_before_it_is_held() {
        let mut session = Session::until(Phase::Active);
        let total = u32::try_from(limits::CHANNEL_MESSAGE_BYTES).unwrap() + 1;
        let chunk = channel(Direction::ToClient, CLIPRDR, total, 1, b"ab");
        assert!(matches!(
            session.feed(Direction::ToClient, &chunk),
            Err(SessionError::TooLong { .. })
        ));
    }

    #[test]
    fn messages_that_are_not_whole_are_bounded_over_all_channels_and_given_back() {
        for (interest, decides) in [(Interest::Observe, false), (Interest::Decide, true)] {
            let mut session = Session::new();
            session.judge.interest = Some(interest);
            let mut session = session.run(Phase::Active);
            let budget = session.tracker.settings.budget.clone();
            let whole = u32::try_from(limits::CHANNEL_MESSAGE_BYTES).unwrap();
            let part = vec![7; 16_000];
            let mut error = None;
            'hostile: for number in 0..whole / 16_000 {
                for id in [CLIPRDR, CLIPRDR - 1, CLIPRDR - 2] {
                    let flags = u32::from(number == 0);
                    let chunk = channel(Direction::ToClient, id, whole, flags, &part);
                    if let Err(stop) = session.feed(Direction::ToClient, &chunk) {
                        error = Some(stop);
                        break 'hostile;
                    }
                    let held = budget.held(Direction::ToClient);
                    assert!(held <= limits::REMEMBERED_PER_DIRECTION_BYTES);
                }
            }
            assert!(matches!(error, Some(SessionError::Memory(_))), "{error:?}");
            assert!(budget.held(Direction::ToClient) > 48 * 1024 * 1024);
            assert_eq!(decides, session.judge.decides());
            drop(session);
            assert_eq!(budget.held(Direction::ToClient), 0);
        }
    }

    #[test]
    fn the_largest_message_passes_and_histories_are_counted_when_they_are_used() {
        let mut session = Session::until(Phase::Active);
        let budget = session.tracker.settings.budget.clone();
        let whole = u32::try_from(limits::CHANNEL_MESSAGE_BYTES).unwrap();
        let count = whole.div_ceil(16_000);
        for number in 0..count {
            let flags = u32::from(number == 0) | u32::from(number + 1 == count) << 1;
            let length = (whole - number * 16_000).min(16_000);
            let part = vec![7; usize::try_from(length).unwrap()];
            let chunk = channel(Direction::ToTarget, CLIPRDR, whole, flags, &part);
            session.feed(Direction::ToTarget, &chunk).unwrap();
        }
        assert_eq!(session.judge.messages.len(), 1);
        assert_eq!(budget.held(Direction::ToTarget), 0);
        // PACKET_FLUSHED.
        let flushed = channel(Direction::ToTarget, CLIPRDR, 3, 0x0080_0003, b"abc");
        for _ in 0..3 {
            session.feed(Direction::ToTarget, &flushed).unwrap();
            assert!((6 << 20..8 << 20).contains(&budget.held(Direction::ToTarget)));
        }
    }

    #[test]
    fn nothing_of_a_message_passes_before_its_verdict() {
        let chunks = [
            channel(Direction::ToClient, CLIPRDR, 4, 1, b"ab"),
            channel(Direction::ToClient, CLIPRDR, 4, 2, b"cd"),
        ];
        for (verdict, expected) in [
            (Verdict::Forward, chunks.concat()),
            (
                Verdict::Replace {
                    data: b"other".to_vec(),
                    grounds: Grounds::new("test", "other"),
                },
                // With CHANNEL_FLAG_SHOW_PROTOCOL, as this channel wants it.
                channel(Direction::ToClient, CLIPRDR, 5, 0x13, b"other"),
            ),
        ] {
            let mut session = Session::deciding(verdict);
            assert!(
                session
                    .feed(Direction::ToClient, &chunks[0])
                    .unwrap()
                    .is_empty()
            );
            assert_eq!(
                session.feed(Direction::ToClient, &chunks[1]).unwrap(),
                expected
            );
            assert!(session.back.is_empty());
        }
    }

    #[test]
    fn what_waits_for_a_verdict_is_counted_until_it_has_left() {
        let to_client = Direction::ToClient;
        let mut session = Session::deciding(Verdict::Forward);
        let budget = session.tracker.settings.budget.clone();
        let before = budget.held(to_client);
        let part = vec![7; 16_000];
        let mut feed = |total, flags, data: &[u8]| {
            let chunk = channel(to_client, CLIPRDR, total, flags, data);
            session.feed(to_client, &chunk).unwrap()
        };
        assert!(feed(32_000, 1, &part).is_empty());
        // The message, and the frames that bring it.
        assert!(budget.held(to_client) - before >= 32_000);
        let onward = feed(32_000, 2, &part);
        assert!(onward.len() > 32_000);
        assert!(budget.held(to_client) - before >= onward.len());
        feed(1, 3, b"x");
        assert_eq!(budget.held(to_client), before);
    }

    #[test]
    fn a_denied_message_is_answered_to_its_sender() {
        let mut session = Session::deciding(Verdict::Deny {
            answers: vec![vec![7; 2000]],
            grounds: Grounds::new("test", "no"),
        });
        let chunk = channel(Direction::ToTarget, CLIPRDR, 4, 3, b"abcd");
        assert!(
            session
                .feed(Direction::ToTarget, &chunk)
                .unwrap()
                .is_empty()
        );
        let answer = |flags: u32, data: &[u8]| {
            let parts = [&2000_u32.to_le_bytes()[..], &flags.to_le_bytes(), data];
            let initiator = session.tracker.initiators.to_client;
            mcs::encode_send_data(false, initiator, CLIPRDR, &parts).unwrap()
        };
        let expected = [answer(0x11, &[7; 1600]), answer(0x12, &[7; 400])];
        assert_eq!(session.back, expected.concat());
    }

    #[test]
    fn a_message_that_waits_holds_up_its_channel_and_direction_and_nothing_else() {
        let (to_client, to_target) = (Direction::ToClient, Direction::ToTarget);
        let mut session = Session::deciding(Verdict::Hold);
        let budget = session.tracker.settings.budget.clone();
        let before = budget.held(to_client);
        let first = [
            channel(to_client, CLIPRDR, 4, 1, b"ab"),
            channel(to_client, CLIPRDR, 4, 2, b"cd"),
        ];
        let behind = [
            channel(to_client, CLIPRDR, 2, 3, b"ef"),
            channel(to_client, CLIPRDR, 3, 1, b"g"),
            channel(to_client, CLIPRDR, 3, 2, b"hi"),
        ];
        for frame in first.iter().chain(&behind) {
            assert_eq!(session.feed(to_client, frame).unwrap(), b"");
        }
        assert_eq!(
            session.judge.messages,
            [b"abcd"],
            "asked once, of the first"
        );
        session.judge.verdict = Verdict::Forward;
        // The other direction, and another channel.
        for (direction, id) in [(to_target, CLIPRDR), (to_client, CLIPRDR - 1)] {
            let other = channel(direction, id, 3, 3, b"xyz");
            assert_eq!(session.feed(direction, &other).unwrap(), other);
            assert_eq!(session.judge.passed(direction), (other, false));
        }
        assert!(budget.held(to_client) > before);
        let (onward, back) = session.resume(to_client);
        assert_eq!(onward, [first.concat(), behind.concat()].concat());
        assert_eq!(back, b"");
        assert_eq!(session.judge.passed(to_client), (onward, false));
        assert_eq!(
            session.judge.messages[3..],
            [&b"abcd"[..], &b"ef"[..], &b"ghi"[..]]
        );
        // As if nothing had happened.
        let next = channel(to_client, CLIPRDR, 3, 3, b"xyz");
        assert_eq!(session.feed(to_client, &next).unwrap(), next);
        assert_eq!(budget.held(to_client), before);
    }

    #[test]
    fn a_message_that_has_waited_is_replaced_or_denied_or_waits_again_and_the_next_may_wait_too() {
        let to_target = Direction::ToTarget;
        let mut session = Session::deciding(Verdict::Hold);
        let [one, two] = [b"one", b"two"].map(|data| channel(to_target, CLIPRDR, 3, 3, data));
        session.feed(to_target, &one).unwrap();
        session.feed(to_target, &two).unwrap();
        // Nobody has an answer yet.
        assert_eq!(session.resume(to_target), (Vec::new(), Vec::new()));
        session.judge.verdict = Verdict::Deny {
            answers: vec![b"no".to_vec()],
            grounds: Grounds::new("test", "no"),
        };
        session.judge.then = Some(Verdict::Hold);
        let (onward, back) = session.resume(to_target);
        assert_eq!(onward, b"");
        // In this direction the server is whom the gateway speaks for.
        let no = {
            let parts = [&2_u32.to_le_bytes()[..], &0x13_u32.to_le_bytes(), b"no"];
            let initiator = session.tracker.initiators.to_client;
            mcs::encode_send_data(false, initiator, CLIPRDR, &parts).unwrap()
        };
        assert_eq!(back, no);
        assert_eq!(session.judge.passed(Direction::ToClient), (no, true));
        session.judge.verdict = Verdict::Replace {
            data: b"new".to_vec(),
            grounds: Grounds::new("test", "new"),
        };
        let (onward, back) = session.resume(to_target);
        assert!(onward.ends_with(b"new") && back.is_empty());
        assert_eq!(session.judge.passed(to_target), (onward, true));
        // What waits nowhere is no harm.
        assert_eq!(session.resume(to_target), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_comes_behind_a_message_that_waits_is_bounded() {
        let to_client = Direction::ToClient;
        let mut session = Session::deciding(Verdict::Hold);
        let frame = channel(to_client, CLIPRDR, 16_000, 3, &[7; 16_000]);
        let mut fed = 0;
        while !session.tracker.is_full(to_client) {
            session.feed(to_client, &frame).unwrap();
            fed += frame.len();
        }
        assert!(fed <= limits::BEHIND_HELD_MESSAGES_BYTES + 3 * frame.len());
        assert!(!session.tracker.is_full(Direction::ToTarget));
        session.judge.verdict = Verdict::Forward;
        assert_eq!(session.resume(to_client).0.len(), fed);
        assert!(!session.tracker.is_full(to_client));
    }

    #[test]
    fn a_sink_is_given_no_more_at_once_than_it_was_asked_for() {
        let mut session = Session::until(Phase::Active);
        let frame = channel(Direction::ToClient, CLIPRDR, 16_000, 3, &[7; 16_000]);
        let mut arrived = frame.repeat(100);
        let all = arrived.clone();
        let mut passed = Vec::new();
        loop {
            let (mut onward, mut back) = (Vec::new(), Vec::new());
            let (to, judge) = (Direction::ToClient, &mut session.judge);
            let fed = session
                .tracker
                .feed(to, &mut arrived, judge, &mut onward, &mut back)
                .unwrap();
            assert!(onward.len() < FEED_BYTES + frame.len());
            passed.extend(onward);
            if !fed.more {
                break;
            }
        }
        assert!(passed == all && arrived.is_empty());
    }

    #[test]
    fn a_verdict_that_comes_too_late_ends_the_session() {
        let mut session = Session::until(Phase::Active);
        session.judge.verdict = Verdict::Replace {
            data: Vec::new(),
            grounds: Grounds::default().into(),
        };
        let chunk = channel(Direction::ToClient, CLIPRDR, 4, 3, b"abcd");
        assert!(matches!(
            session.feed(Direction::ToClient, &chunk),
            Err(SessionError::Verdict(_))
        ));
    }

    #[test]
    fn a_stage_ends_the_session_with_its_reason() {
        let mut session = Session::until(Phase::Active);
        session.judge.verdict = Verdict::Terminate(Termination {
            grounds: Grounds::new("test", "enough"),
            error_info: 9,
        });
        let chunk = channel(Direction::ToClient, CLIPRDR, 4, 3, b"abcd");
        let error = session.feed(Direction::ToClient, &chunk).unwrap_err();
        assert_eq!(error.error_info(), 9);
        assert_eq!(error.to_string(), "session ended by policy: enough");
    }

    #[test]
    fn declined_compression_is_not_offered_and_not_accepted() {
        let mut session = Session::deciding(Verdict::Forward);
        assert_eq!(
            session.judge.flags_sent & client_info::flags::COMPRESSION,
            0
        );
        let chunk = channel(Direction::ToClient, CLIPRDR, 4, 0x0021_0003, b"abcd");
        assert!(matches!(
            session.feed(Direction::ToClient, &chunk),
            Err(SessionError::Compression { .. })
        ));
    }

    /// Follows to one host.
    #[derive(Debug)]
    struct To(&'static str);

    impl Redirections for To {
        fn follow(&mut self, redirection: &Redirection) -> bool {
            redirection.hosts().any(|host| host == self.0)
        }
    }

    #[test]
    fn a_redirection_brings_the_client_back_or_ends_the_session() {
        let pdu = redirection(&["10.0.0.7", "Other.example"]);
        for (to, follows) in [
            (None, false),
            (Some("other"), false),
            (Some("10.0.0.7"), true),
        ] {
            let mut session = Session::until(Phase::Active);
            let settings = &mut session.tracker.settings;
            settings.redirections = to.map(|to| -> Box<dyn Redirections> { Box::new(To(to)) });
            settings.routing_token = Some(b"jt-ticket".to_vec().into());
            let result = session.feed(Direction::ToClient, &pdu);
            let seen = session.judge.redirection.unwrap();
            assert_eq!(seen.target_net_address.as_deref(), Some("10.0.0.7"));
            assert_eq!(seen.target_fqdn.as_deref(), Some("Other.example"));
            match result {
                Ok(passed) => {
                    assert!(follows);
                    assert_eq!(
                        passed.len(),
                        usize::from(u16::from_be_bytes([passed[2], passed[3]]))
                    );
                    let at = |what: &[u8]| passed.windows(what.len()).any(|bytes| bytes == what);
                    assert!(at(b"jt-ticket\r\n") && !at(b"1\x000\0.") && !at(b"O\0t\0"));
                }
                Err(error) => {
                    assert!(!follows);
                    let to = "Other.example, 10.0.0.7".to_owned();
                    assert_eq!(error, SessionError::Redirection { to });
                }
            }
        }
    }

    #[test]
    fn the_reconnect_cookie_is_reported_and_its_place_is_named() {
        let mut session = Session::until(Phase::Active);
        let mut data = vec![3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0];
        data.extend([28, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        data.extend([0xaa; 16]);
        let pdu = share_data(pdu_type2::SAVE_SESSION_INFO, &data);
        assert_eq!(session.feed(Direction::ToClient, &pdu).unwrap(), pdu);
        assert_eq!(session.judge.cookie, Some(5));
        let [secret] = &session.judge.secrets[..] else {
            panic!("{:?}", session.judge.secrets);
        };
        assert_eq!(pdu[secret.clone()], [0xaa; 16]);
    }

    /// [MS-RDPBCGR] 4.3: what Windows gives, with a logon error behind it; then the packet of FreeRDP for it.
    const LOGON_EXTENDED: &[u8] =
        b"\x03\0\0\0\x32\0\x03\0\0\0\x1c\0\0\0\x1c\0\0\0\x01\0\0\0\x02\0\0\0\
        \xa8\x02\xe7\x25\xe2\x4c\x82\xb7\x52\xa5\x53\x50\x34\x98\xa1\xa8\
        \x08\0\0\0\xfa\xff\xff\xff\x02\0\0\0";

    #[test]
    fn a_cookie_passes_where_its_target_gave_it_and_nowhere_else() {
        let jar = Jar::default();
        let mut session = Session::until(Phase::Active);
        session.tracker.settings.cookies = Some(Box::new(jar.clone()));
        let mut data = LOGON_EXTENDED.to_vec();
        data.resize(data.len() + 570, 0);
        let pdu = share_data(pdu_type2::SAVE_SESSION_INFO, &data);
        assert_eq!(session.feed(Direction::ToClient, &pdu).unwrap(), pdu);
        let issued = jar.0.lock().unwrap().pop().unwrap();
        let mut packet = b"\x1c\0\0\0\x01\0\0\0\x02\0\0\0".to_vec();
        packet.extend(&*issued.security_verifier);

        let with = io(Direction::ToTarget, &client_info(&packet));
        let without = io(Direction::ToTarget, &client_info(&[]));
        let logon = ClientInfoCredentials {
            domain: String::new(),
            user: "u".to_owned(),
            password: "p".to_owned().into(),
        };
        for (known, logon) in [
            (true, None),
            (false, None),
            (true, Some(&logon)),
            (false, Some(&logon)),
        ] {
            let mut session = Session::until(Phase::ChannelConnection);
            session.tracker.settings.logon = logon.cloned();
            let jar = Jar::default();
            if known {
                jar.0.lock().unwrap().push(issued.clone());
            }
            session.tracker.settings.cookies = Some(Box::new(jar));
            let passed = session.feed(Direction::ToTarget, &with).unwrap();
            assert_eq!(session.judge.reconnect, Some((Some(2), known)));
            let expected = if known { &with } else { &without };
            match logon {
                None => assert_eq!(&passed, expected),
                Some(_) => {
                    let mut session = Session::until(Phase::ChannelConnection);
                    session.tracker.settings.logon = logon.cloned();
                    session.tracker.settings.cookies =
                        Some(Box::new(Jar(Arc::new(Mutex::new(vec![issued.clone()])))));
                    assert_eq!(passed, session.feed(Direction::ToTarget, expected).unwrap());
                }
            }
        }
    }

    #[test]
    fn what_is_no_cookie_is_taken_out_and_one_that_is_cut_ends_the_session() {
        let without = io(Direction::ToTarget, &client_info(&[]));
        for packet in [&[1; 27][..], &[1; 28], &[1; 29], &[1; 3]] {
            let mut session = Session::until(Phase::ChannelConnection);
            let with = io(Direction::ToTarget, &client_info(packet));
            assert_eq!(session.feed(Direction::ToTarget, &with).unwrap(), without);
        }
        let mut cut = client_info(&[1; 28]);
        cut.truncate(cut.len() - 6);
        let mut session = Session::until(Phase::ChannelConnection);
        let error = session
            .feed(Direction::ToTarget, &io(Direction::ToTarget, &cut))
            .unwrap_err();
        assert!(matches!(error, SessionError::ClientInfo(_)), "{error}");
    }

    #[derive(Clone, Debug, Default)]
    struct Jar(Arc<Mutex<Vec<ClientCookie>>>);

    impl Cookies for Jar {
        fn issued(&mut self, cookie: &ClientCookie) {
            self.0.lock().unwrap().push(cookie.clone());
        }

        fn know(&self, cookie: &ClientCookie) -> bool {
            self.0.lock().unwrap().contains(cookie)
        }
    }

    /// Nobody's Client Info, with this as its cookie.
    fn client_info(cookie: &[u8]) -> Vec<u8> {
        let mut pdu = vec![0x40, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0];
        // Lengths and terminators of five strings.
        pdu.extend([0; 20]);
        // Family, address, folder, time zone, session, flags.
        pdu.extend([2, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
        pdu.extend([0; 172 + 8]);
        pdu.extend(u16::try_from(cookie.len()).unwrap().to_le_bytes());
        pdu.extend(cookie);
        pdu.extend([0; 4]);
        pdu
    }

    #[test]
    fn a_request_for_udp_is_declined_in_the_name_of_the_client() {
        let mut session = Session::until(Phase::Active);
        session.tracker.ids.as_mut().unwrap().message = Some(1050);
        let mut request = vec![2, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0];
        request.extend([0xbb; 16]);
        let pdu = mcs::encode_send_data(false, 1002, 1050, &[&request]).unwrap();
        assert!(session.feed(Direction::ToClient, &pdu).unwrap().is_empty());
        let Ok((Mcs::SendData { user_data, .. }, 0)) = mcs::decode(&session.back) else {
            panic!("{:?}", session.back);
        };
        let answer = [4, 0, 0, 0, 9, 0, 0, 0, 0x04, 0x40, 0x00, 0x80];
        assert_eq!(session.back[user_data], answer);
    }

    #[test]
    fn a_farewell_shows_a_code_as_soon_as_the_client_can_show_one() {
        for (phase, pdus) in [
            (Phase::BasicSettings, 0),
            (Phase::ChannelConnection, 1),
            (Phase::Licensing, 3),
            (Phase::CapabilitiesExchange, 2),
            (Phase::Active, 2),
        ] {
            let mut session = Session::until(phase);
            let mut rest = session
                .tracker
                .farewell(Direction::ToClient, 7, &mut session.judge);
            let mut count = 0;
            while let Some(frame) = frame::find(&rest).unwrap() {
                rest.drain(..frame.length);
                count += 1;
            }
            assert_eq!(count, pdus, "{phase}");
        }
        // Another session reads it.
        let mut session = Session::until(Phase::Active);
        let farewell = session
            .tracker
            .farewell(Direction::ToClient, 7, &mut session.judge);
        let mut reader = Session::until(Phase::Active);
        reader.feed(Direction::ToClient, &farewell).unwrap();
        assert_eq!(reader.judge.error_info, Some(7));
        assert!(reader.judge.disconnected);
    }

    #[test]
    fn every_way_to_say_what_is_not_understood_ends_an_active_session() {
        let both = [Direction::ToTarget, Direction::ToClient];
        for (directions, what, bytes) in [
            (&both[..], "no frame", vec![0x16, 3, 3, 0, 9]),
            (&both[..], "no MCS", vec![3, 0, 0, 8, 2, 0xf0, 0x80, 0xff]),
            (&both[..1], "cut input", vec![0x08, 0x04, 0x00, 0x1e]),
            (&both[..1], "cut slow-path input", {
                let data = share_data(pdu_type2::INPUT, &[2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 30]);
                io(Direction::ToTarget, &data[15..])
            }),
            (&both[..], "data and more", {
                let mut frame = channel(Direction::ToTarget, CLIPRDR, 3, 3, b"abc");
                frame.push(0);
                frame[3] += 1;
                frame
            }),
            (&both[1..], "cut update", vec![0x00, 0x06, 0x01, 9, 0, 0]),
            (
                &both[1..],
                "broken compression",
                vec![0x00, 0x08, 0x84, 0x23, 2, 0, 0xff, 0xff],
            ),
        ] {
            for &direction in directions {
                let mut session = Session::until(Phase::Active);
                assert!(session.feed(direction, &bytes).is_err(), "{what}");
            }
        }
        for data in [
            // Not a share PDU; encrypted; cut capabilities, cut session info; flow control that is
            // data to those who do not know it.
            vec![0; 12],
            vec![0x08, 0, 0, 0, 1, 2, 3, 4],
            vec![8, 0, 0x11, 0, 0, 0, 0, 0],
            vec![0, 0x80, 0x17, 0x41, 0, 0, 0, 0],
            share_data(pdu_type2::SAVE_SESSION_INFO, &[3, 0, 0, 0, 9])[15..].to_vec(),
        ] {
            let mut session = Session::until(Phase::Active);
            let pdu = io(Direction::ToClient, &data);
            assert!(session.feed(Direction::ToClient, &pdu).is_err(), "{data:?}");
        }
    }

    #[test]
    fn what_no_stage_needs_passes_and_is_told() {
        let both = [Direction::ToTarget, Direction::ToClient];
        for (directions, bytes, what) in [
            (
                &both[..],
                io(Direction::ToClient, &[8, 0, 0x1f, 0, 0, 0, 9, 9]),
                Unknown::SharePdu {
                    pdu_type: 15,
                    bytes: 8,
                },
            ),
            // Without a version.
            (
                &both[..],
                io(Direction::ToClient, &[6, 0, 0x02, 0, 0, 0]),
                Unknown::SharePdu {
                    pdu_type: 2,
                    bytes: 6,
                },
            ),
            // Erect Domain as rdesktop writes it.
            (
                &both[..1],
                vec![3, 0, 0, 13, 2, 0xf0, 0x80, 4, 0, 1, 0, 1, 0],
                Unknown::BehindMcs { bytes: 1 },
            ),
        ] {
            for &direction in directions {
                let mut bytes = bytes.clone();
                if direction == Direction::ToTarget && bytes[7] == 26 << 2 {
                    bytes[7] = 25 << 2;
                }
                let mut session = Session::until(Phase::Active);
                assert_eq!(session.feed(direction, &bytes).unwrap(), bytes);
                assert_eq!(session.judge.unknown, [what]);
                // A stage may refuse it.
                session.judge.refuses_unknown = true;
                let error = session.feed(direction, &bytes).unwrap_err();
                assert!(matches!(error, SessionError::Terminated { .. }), "{error}");
            }
        }
    }

    #[test]
    fn bytes_behind_data_pass_only_where_nobody_reads_the_data() {
        for (interest, flags, passes) in [
            (Interest::Ignore, 3, true),
            (Interest::Observe, 3, false),
            // Compressed: what another reader makes of it would be in the history of all channels.
            (Interest::Ignore, 0x0020_0003, false),
        ] {
            let mut session = Session::new();
            session.judge.interest = Some(interest);
            let mut session = session.run(Phase::Active);
            let mut frame = channel(Direction::ToTarget, CLIPRDR, 3, flags, b"abc");
            frame.extend([0; 7]);
            frame[3] += 7;
            let result = session.feed(Direction::ToTarget, &frame);
            assert_eq!(result.is_ok(), passes, "{result:?}");
        }
    }

    #[test]
    fn unknown_input_is_judged_as_input() {
        let unknown = [0x04, 0x05, 0xe0, 0x00, 0x1e];
        let mut session = Session::until(Phase::Active);
        let passed = session.feed(Direction::ToTarget, &unknown).unwrap();
        assert_eq!(passed, unknown);
        session.judge.denies_unknown_input = true;
        let passed = session.feed(Direction::ToTarget, &unknown).unwrap();
        assert!(passed.is_empty());
        let mut pdu = vec![30, 0, 0x17, 0, 0xea, 3, 0, 0, 0, 0, 0, 1, 0, 0];
        pdu.extend([pdu_type2::INPUT, 0, 0, 0, 1, 0, 0, 0]);
        pdu.extend([0, 0, 0, 0, 0x07, 0x80, 1, 2]);
        // Its six bytes are cut short here.
        let cut = io(Direction::ToTarget, &pdu);
        assert!(session.feed(Direction::ToTarget, &cut).is_err());
        pdu[0] = 34;
        pdu.extend([3, 4, 5, 6]);
        let slow = io(Direction::ToTarget, &pdu);
        assert!(session.feed(Direction::ToTarget, &slow).unwrap().is_empty());
    }

    #[test]
    fn channel_ids_that_may_belong_to_other_names_end_the_session() {
        // What is asked for, what is granted, whether stages read any of it.
        for (asked, granted, interest, passes) in [
            (3, 3, Interest::Observe, true),
            (3, 2, Interest::Observe, false),
            (3, 2, Interest::Ignore, true),
            // xrdp with channels switched off.
            (3, 0, Interest::Observe, true),
            (3, 4, Interest::Observe, true),
            (0, 1, Interest::Observe, true),
        ] {
            let mut session = Session::new();
            session.judge.interest = Some(interest);
            session.tracker.client = Some(gcc::ClientData {
                channels: [("a", 0), ("cliprdr", 0), ("b", 0)]
                    .into_iter()
                    .take(asked)
                    .map(|(name, options)| (name.to_owned(), options))
                    .collect(),
                ..gcc::ClientData::default()
            });
            let response = connect_response(u16::try_from(granted).unwrap());
            let result = session.feed(Direction::ToClient, &response);
            assert_eq!(result.is_ok(), passes, "{asked} {granted} {result:?}");
            if passes {
                assert_eq!(session.tracker.channels.len(), asked.min(granted));
                let told = Unknown::ChannelCount { asked, granted };
                let expected = if asked == granted { vec![] } else { vec![told] };
                assert_eq!(session.judge.unknown, expected);
            }
        }
    }

    #[test]
    fn a_channel_that_is_read_may_be_asked_for_once() {
        let (_, initial) = recording().swap_remove(0);
        let name = b"rdpdr\0\0\0";
        let first = initial.windows(8).position(|bytes| bytes == name).unwrap();
        for (name, passes) in [
            (b"CLIPRDR\0", false),
            // One that is cut to seven characters, or is not.
            (b"cliprdrX", false),
            (b"clipbrd\0", true),
        ] {
            let mut initial = initial.clone();
            initial[first..first + 8].copy_from_slice(name);
            let result = Session::new().feed(Direction::ToTarget, &initial);
            assert_eq!(result.is_ok(), passes, "{result:?}");
        }
    }

    #[test]
    fn what_came_before_a_fault_still_passes() {
        let mut session = Session::until(Phase::Active);
        let good = channel(Direction::ToClient, CLIPRDR, 3, 3, b"abc");
        let bad = channel(Direction::ToClient, CLIPRDR, 3, 2, b"abc");
        let mut arrived = [good.clone(), bad].concat();
        let (mut onward, mut back) = (Vec::new(), Vec::new());
        let result = session.tracker.feed(
            Direction::ToClient,
            &mut arrived,
            &mut session.judge,
            &mut onward,
            &mut back,
        );
        assert!(result.is_err());
        assert_eq!(onward, good);
    }

    /// `cliprdr` of the recording.
    const CLIPRDR: u16 = 1006;

    struct Session {
        tracker: Tracker,
        judge: Judge,
        back: Vec<u8>,
    }

    impl Session {
        fn new() -> Self {
            Self {
                tracker: Tracker::new(Settings {
                    client_requested: 3,
                    target_selected: 1,
                    logon: None,
                    redirections: None,
                    routing_token: None,
                    cookies: None,
                    budget: Budget::default(),
                }),
                judge: Judge::default(),
                back: Vec::new(),
            }
        }

        /// A recorded session up to the first PDU behind the one that began this phase.
        fn until(phase: Phase) -> Self {
            Self::new().run(phase)
        }

        /// An active session whose stages decide, and say this of every message from then on.
        fn deciding(verdict: Verdict) -> Self {
            let mut session = Self::new();
            session.judge.interest = Some(Interest::Decide);
            let mut session = session.run(Phase::Active);
            session.judge.verdict = verdict;
            session
        }

        /// Has the message that waits in this direction answered: what goes on, and back.
        fn resume(&mut self, direction: Direction) -> (Vec<u8>, Vec<u8>) {
            let (mut onward, mut back) = (Vec::new(), Vec::new());
            let message = HeldMessage {
                channel: CLIPRDR,
                direction,
            };
            let judge = &mut self.judge;
            let resumed = self.tracker.resume(message, judge, &mut onward, &mut back);
            resumed.unwrap();
            (onward, back)
        }

        fn run(mut self, phase: Phase) -> Self {
            for (direction, pdu) in recording() {
                if self.tracker.phase >= phase {
                    break;
                }
                self.feed(direction, &pdu).unwrap();
            }
            assert_eq!(self.tracker.phase, phase);
            self.judge.messages.clear();
            self.judge.secrets.clear();
            self.judge.passed.clear();
            self
        }

        fn feed(&mut self, direction: Direction, bytes: &[u8]) -> Result<Vec<u8>, SessionError> {
            let (mut arrived, mut onward) = (bytes.to_vec(), Vec::new());
            self.tracker.feed(
                direction,
                &mut arrived,
                &mut self.judge,
                &mut onward,
                &mut self.back,
            )?;
            Ok(onward)
        }
    }

    #[derive(Debug)]
    struct Judge {
        interest: Option<Interest>,
        verdict: Verdict,
        /// The verdict on every message behind the next.
        then: Option<Verdict>,
        messages: Vec<Vec<u8>>,
        secrets: Vec<Range<usize>>,
        redirection: Option<Redirection>,
        cookie: Option<u32>,
        error_info: Option<u32>,
        disconnected: bool,
        flags_sent: u32,
        unknown: Vec<Unknown>,
        refuses_unknown: bool,
        denies_unknown_input: bool,
        reconnect: Option<(Option<u32>, bool)>,
        /// Every PDU as it went on.
        passed: Vec<(Direction, Origin, Vec<u8>)>,
    }

    impl Default for Judge {
        fn default() -> Self {
            Self {
                interest: None,
                verdict: Verdict::Forward,
                then: None,
                messages: Vec::new(),
                secrets: Vec::new(),
                redirection: None,
                cookie: None,
                error_info: None,
                disconnected: false,
                flags_sent: 0,
                unknown: Vec::new(),
                refuses_unknown: false,
                denies_unknown_input: false,
                reconnect: None,
                passed: Vec::new(),
            }
        }
    }

    impl Judge {
        /// All bytes that went in this direction since the last call, and whether the gateway has made any of them.
        fn passed(&mut self, direction: Direction) -> (Vec<u8>, bool) {
            let (mut bytes, mut made) = (Vec::new(), false);
            self.passed.retain(|(to, origin, pdu)| {
                if *to != direction {
                    return true;
                }
                bytes.extend(pdu);
                made |= *origin == Origin::Gateway;
                false
            });
            (bytes, made)
        }
    }

    impl Sink for Judge {
        fn interest(&self, _: &str) -> Interest {
            self.interest.unwrap_or(Interest::Observe)
        }

        fn decides(&self) -> bool {
            self.interest == Some(Interest::Decide)
        }

        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the other events are of no interest here"
        )]
        fn on_event(&mut self, event: &Event<'_>) -> Verdict {
            match event {
                Event::ChannelMessage { data, .. } => {
                    self.messages.push(data.to_vec());
                    let verdict = self.verdict.clone();
                    if let Some(then) = self.then.take() {
                        self.verdict = then;
                    }
                    return verdict;
                }
                Event::Redirection(redirection) => {
                    self.redirection = Some((*redirection).clone());
                }
                Event::AutoReconnectCookie(cookie) => self.cookie = Some(cookie.logon_id),
                Event::ErrorInfo(code) => self.error_info = Some(*code),
                Event::Disconnect { .. } => self.disconnected = true,
                Event::Unknown { .. } if self.refuses_unknown => {
                    return Verdict::Terminate(Termination {
                        grounds: Grounds::new("test", "unknown"),
                        error_info: 1,
                    });
                }
                Event::Unknown { what, .. } => self.unknown.push(*what),
                Event::Reconnect { logon_id, passed } => {
                    self.reconnect = Some((*logon_id, *passed));
                }
                Event::Input(Input::Unknown { .. }) if self.denies_unknown_input => {
                    return Verdict::Deny {
                        answers: Vec::new(),
                        grounds: Grounds::new("test", "unknown"),
                    };
                }
                Event::Pdu {
                    direction,
                    origin,
                    bytes,
                    secrets,
                } => {
                    self.passed.push((*direction, *origin, bytes.to_vec()));
                    self.secrets.extend(secrets.iter().cloned());
                    if let Ok((Mcs::SendData { user_data, .. }, 0)) = mcs::decode(bytes)
                        && u16_at(&bytes[user_data.clone()], 0) == Some(security::INFO_PKT)
                    {
                        self.flags_sent = u32_at(&bytes[user_data], 8).unwrap();
                    }
                }
                _ => {}
            }
            Verdict::Forward
        }
    }

    fn io(direction: Direction, data: &[u8]) -> Vec<u8> {
        let request = direction == Direction::ToTarget;
        mcs::encode_send_data(request, 1002, 1003, &[data]).unwrap()
    }

    fn channel(direction: Direction, id: u16, total: u32, flags: u32, data: &[u8]) -> Vec<u8> {
        let request = direction == Direction::ToTarget;
        let parts = [&total.to_le_bytes()[..], &flags.to_le_bytes(), data];
        mcs::encode_send_data(request, 1002, id, &parts).unwrap()
    }

    fn share_data(pdu_type2: u8, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len() + 18).unwrap();
        let mut pdu = length.to_le_bytes().to_vec();
        pdu.extend([0x17, 0, 0xea, 3, 0, 0, 0, 0, 0, 1, 0, 0, pdu_type2, 0, 0, 0]);
        pdu.extend(data);
        io(Direction::ToClient, &pdu)
    }

    /// The recorded one, with other network data.
    fn connect_response(channels: u16) -> Vec<u8> {
        let (_, response) = recording().swap_remove(1);
        let Ok((Mcs::ConnectResponse { user_data, .. }, 0)) = mcs::decode(&response) else {
            panic!("{response:02x?}");
        };
        let old = &response[user_data.clone()];
        let key = old.windows(4).position(|bytes| bytes == b"McDn").unwrap();
        let mut blocks = vec![1, 0x0c, 8, 0, 4, 0, 8, 0];
        let length = 8 + channels * 2;
        blocks.extend([3, 0x0c]);
        blocks.extend(length.to_le_bytes());
        blocks.extend(1003_u16.to_le_bytes());
        blocks.extend(channels.to_le_bytes());
        blocks.extend((1004..1004 + channels).flat_map(u16::to_le_bytes));
        let data = [
            &old[..key + 4],
            &[u8::try_from(blocks.len()).unwrap()],
            &blocks,
        ]
        .concat();
        let mut frame = [&response[..user_data.start], &data].concat();
        let length = u8::try_from(frame.len()).unwrap();
        // TPKT, Connect Response, user data.
        frame[3] = length;
        frame[9] = length - 10;
        frame[user_data.start - 1] = u8::try_from(data.len()).unwrap();
        frame
    }

    fn redirection(hosts: &[&str]) -> Vec<u8> {
        let flags = [0x0001_u32, 0x0100];
        let present: u32 = hosts.iter().zip(flags).map(|(_, flag)| flag).sum();
        let mut body = vec![0, 0, 0x00, 0x04, 0, 0, 1, 0, 0, 0];
        body.extend((present | if hosts.is_empty() { 2 } else { 0 }).to_le_bytes());
        for host in hosts {
            let wide: Vec<u8> = host
                .encode_utf16()
                .chain([0])
                .flat_map(u16::to_le_bytes)
                .collect();
            body.extend(u32::try_from(wide.len()).unwrap().to_le_bytes());
            body.extend(wide);
        }
        if hosts.is_empty() {
            body.extend([2, 0, 0, 0, b'x', b'y']);
        }
        let mut pdu = u16::try_from(body.len() + 6)
            .unwrap()
            .to_le_bytes()
            .to_vec();
        pdu.extend([0x1a, 0, 0xea, 3]);
        pdu.extend(body);
        io(Direction::ToClient, &pdu)
    }

    fn recording() -> Vec<(Direction, Vec<u8>)> {
        let directions = [Direction::ToTarget, Direction::ToClient];
        jetway_lab::recording::session("gdi-tls-shadow2", directions)
    }
}
