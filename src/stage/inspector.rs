//! The inspector: what happened in a session, as records for the audit log and as live statistics.
//!
//! It judges nothing. Records tell what people did (who logged on, what was copied, which file was read, what was
//! printed), not every message that it took: reads and writes are added up until the file is closed. Names and sizes
//! are recorded, contents, passwords and keys are not.
//!
//! A message that a parser cannot read ends the session where something depends on it: nothing passes unseen. Elsewhere,
//! as with sound, it is recorded once and passes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::graphics::{Graphics, GraphicsStatistics};
use super::{
    Direction, Event, Grounds, Input, Interest, Phase, SaveSessionInfo, Stage, Termination,
    Unknown, Verdict,
};
use jetway_rdp::budget::{Budget, Exhausted, Held, places};
use jetway_rdp::channel::audin::MicrophoneEvent;
use jetway_rdp::channel::cliprdr::{ClipboardEvent, ClipboardFile, FilePart, FileRange, Format};
use jetway_rdp::channel::display::{DisplayEvent, Monitor};
use jetway_rdp::channel::drdynvc::{DynamicEvent, DynamicTraffic};
use jetway_rdp::channel::rail::RemoteProgramEvent;
use jetway_rdp::channel::rdpdr::{
    Device, DeviceEvent, DeviceKind, FileUse, Request, RequestTarget,
};
use jetway_rdp::channel::rdpsnd::{AudioFormat, SoundEvent};
use jetway_rdp::channel::{ChannelError, ChannelEvent, Channels, wide};
use jetway_rdp::client_info::ClientInfo;
use jetway_rdp::event::StaticChannel;
use jetway_rdp::gcc::ClientData;
use jetway_rdp::redirection::Redirection;
use jetway_rdp::share::pdu_type2;

/// One thing that happened in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// The session entered a phase.
    Phase {
        /// Its name.
        phase: String,
    },
    /// What the client says of itself.
    Client {
        /// `clientName`.
        name: String,
        /// `clientBuild`.
        build: u32,
        /// Desktop that it asks for, pixels.
        width: u16,
        /// Desktop that it asks for, pixels.
        height: u16,
    },
    /// What the client typed, or the gateway for it, to log on.
    LogonRequested {
        /// User.
        user: String,
        /// Domain.
        domain: String,
        /// Whether there was a password.
        has_password: bool,
        /// Program in place of a desktop.
        #[serde(skip_serializing_if = "String::is_empty")]
        alternate_shell: String,
    },
    /// The client brought a cookie to come back to a session of the target without a logon.
    Reconnect {
        /// `LogonId`: the session of the target.
        logon_id: Option<u32>,
        /// False: the target had not given it to this association, and it was taken out.
        passed: bool,
    },
    /// The target says that somebody logged on.
    LoggedOn {
        /// User, where the target says who.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Domain.
        #[serde(skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
    },
    /// The target reports an error, or a notice, of the logon.
    LogonNotice {
        /// `ErrorNotificationType`.
        kind: u32,
        /// `ErrorNotificationData`.
        data: u32,
    },
    /// The size of the desktop from now on.
    DesktopSize {
        /// Pixels.
        width: u16,
        /// Pixels.
        height: u16,
    },
    /// The client asks for another size or other monitors.
    MonitorsRequested {
        /// The monitors.
        monitors: Vec<Monitor>,
    },
    /// A channel is open.
    ChannelOpened {
        /// Its name.
        channel: String,
        /// Whether it is a dynamic one.
        dynamic: bool,
    },
    /// The client does not have the dynamic channel that the target asked for.
    ChannelRefused {
        /// Its name.
        channel: String,
        /// `CreationStatus`.
        status: i32,
    },
    /// A dynamic channel was closed.
    ChannelClosed {
        /// Its name.
        channel: String,
        /// What passed on it.
        traffic: DynamicTraffic,
    },
    /// The target wants to move dynamic channels to UDP, which does not pass the gateway.
    TunnelRequested {
        /// Dynamic channels that would move.
        channels: Vec<String>,
    },
    /// Something was copied.
    ClipboardOffered {
        /// Where it can be pasted.
        direction: Direction,
        /// What the clipboard holds: the first of them.
        formats: Vec<Format>,
        /// How many formats there are.
        count: usize,
    },
    /// What was copied went over.
    ClipboardSent {
        /// Where it went.
        direction: Direction,
        /// As what; `None` where nobody had asked.
        format: Option<Format>,
        /// Bytes.
        bytes: u64,
        /// False where the answer was that it cannot be had.
        ok: bool,
    },
    /// Files were copied: their names went over, their contents not yet.
    ClipboardFilesListed {
        /// Where they can be pasted.
        direction: Direction,
        /// The first of them.
        files: Vec<ClipboardFile>,
        /// How many there are.
        count: usize,
        /// Bytes of those that have a size.
        bytes: u64,
    },
    /// Contents of a copied file went over.
    ClipboardFileSent {
        /// Where they went.
        direction: Direction,
        /// The file's name, if its list was seen.
        name: Option<String>,
        /// Bytes.
        bytes: u64,
    },
    /// The client offers a device.
    DeviceAnnounced {
        /// The device.
        device: Device,
    },
    /// The target answered the offer.
    DeviceAnswered {
        /// `DeviceId`.
        device: u32,
        /// `ResultCode`: 0 where it took it.
        status: u32,
    },
    /// The client took a device away.
    DeviceRemoved {
        /// `DeviceId`.
        device: u32,
    },
    /// The target is done with a file of the client: read, written, created or deleted.
    FileClosed {
        /// `DeviceId`.
        device: u32,
        /// Its path on the device.
        path: String,
        /// What was done.
        #[serde(flatten)]
        used: FileUse,
        /// False where the session ended first.
        closed: bool,
    },
    /// The client did not let the target open a file for changing it.
    FileRefused {
        /// `DeviceId`.
        device: u32,
        /// Its path on the device.
        path: String,
        /// `IoStatus`.
        status: u32,
    },
    /// The target renamed or moved a file of the client.
    FileRenamed {
        /// `DeviceId`.
        device: u32,
        /// From.
        path: Option<String>,
        /// To.
        to: String,
        /// `IoStatus`.
        status: u32,
    },
    /// The target marked a file of the client to be deleted, or took that back.
    FileDeleted {
        /// `DeviceId`.
        device: u32,
        /// Its path on the device.
        path: Option<String>,
        /// False: taken back.
        pending: bool,
        /// `IoStatus`.
        status: u32,
    },
    /// The target changed the length of a file of the client.
    FileResized {
        /// `DeviceId`.
        device: u32,
        /// Its path on the device.
        path: Option<String>,
        /// Bytes.
        size: u64,
        /// `IoStatus`.
        status: u32,
    },
    /// The target listed a folder of the client.
    DirectoryListed {
        /// `DeviceId`.
        device: u32,
        /// With wildcards.
        pattern: String,
    },
    /// A print job is complete.
    Printed {
        /// `DeviceId`.
        device: u32,
        /// Bytes.
        bytes: u64,
        /// False where the session ended first.
        closed: bool,
    },
    /// A serial or parallel port, or a device of an unknown kind, was used.
    PortUsed {
        /// `DeviceId`.
        device: u32,
        /// What was done.
        #[serde(flatten)]
        used: FileUse,
        /// False where the session ended first.
        closed: bool,
    },
    /// The target spoke to smart cards: the first time for each device.
    SmartCardUsed {
        /// `DeviceId`.
        device: u32,
    },
    /// Sound is played: the first time for each format.
    SoundPlayed {
        /// The format, if the client has it.
        format: Option<AudioFormat>,
    },
    /// The target wants to listen.
    MicrophoneRequested {
        /// The format, if the client has it.
        format: Option<AudioFormat>,
    },
    /// The client answered.
    MicrophoneOpened {
        /// Negative where it did not let the target listen.
        result: i32,
    },
    /// The client asks for a program to be started.
    RemoteProgramRequested {
        /// `ExeOrFile`.
        program: String,
        /// `WorkingDir`.
        working_directory: String,
        /// Length of the arguments, which are not kept.
        argument_bytes: u16,
    },
    /// The target answered.
    RemoteProgramAnswered {
        /// `ExeOrFile`.
        program: String,
        /// 0 where it was started.
        result: u16,
    },
    /// The target sends the client elsewhere.
    Redirected {
        /// Name or address.
        to: String,
    },
    /// The target says why it is about to end the session.
    ErrorInfo {
        /// `errorInfo`.
        code: u32,
    },
    /// Something that the specification does not know passed, or came on no channel and was dropped: the first of its kind.
    Unknown {
        /// The channel; or `input`, `share`, `mcs`, `channels`, `nowhere` for what is not on a virtual channel, and `chunks` for parts
        /// of a message that do not fit together.
        channel: &'static str,
        /// Where it went.
        direction: Direction,
        /// Its type.
        message: u32,
        /// Its length.
        bytes: u64,
    },
    /// A message that cannot be read passed, since nothing depends on it: the first of its channel and direction.
    Unreadable {
        /// The channel.
        channel: &'static str,
        /// Where it went.
        direction: Direction,
        /// What is wrong with it.
        reason: String,
    },
    /// A message that cannot be read; the session ends.
    Malformed {
        /// The channel.
        channel: String,
        /// Who sent it is where it did not go.
        direction: Direction,
        /// What is wrong with it.
        reason: String,
    },
    /// A stage before this one did not let something pass as it was.
    Ruled {
        /// Name of the stage.
        stage: &'static str,
        /// The rule.
        rule: String,
        /// What was done.
        action: Action,
        /// Static channel of the message; none where it was something else.
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<String>,
        /// Where the message would have gone.
        #[serde(skip_serializing_if = "Option::is_none")]
        direction: Option<Direction>,
        /// Its length.
        bytes: u64,
        /// Why.
        reason: String,
    },
    /// One side ended the session.
    Disconnected {
        /// Where the message went.
        direction: Direction,
        /// T.125 `Reason`.
        reason: u8,
    },
}

/// What a stage has done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Another message went on in its place.
    Replaced,
    /// It did not go on.
    Denied,
    /// The session ended.
    Terminated,
}

/// What a session has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionStatistics {
    /// The phase it is in.
    pub phase: Option<String>,
    /// User, as the target says, or else as the client asked.
    pub user: Option<String>,
    /// `clientName`.
    pub client_name: Option<String>,
    /// Pixels.
    pub desktop: Option<(u16, u16)>,
    /// Static channels.
    pub static_channels: Vec<String>,
    /// Dynamic channels that were opened.
    pub dynamic_channels: BTreeSet<String>,
    /// How the picture came: updates or messages of each kind.
    pub graphics: BTreeMap<&'static str, u64>,
    /// Codecs, and how long the client takes to answer.
    #[serde(flatten)]
    pub pictures: GraphicsStatistics,
    /// Keys pressed.
    pub keys: u64,
    /// Movements and clicks of the pointer.
    pub pointer: u64,
    /// Bytes of clipboard data, files included, that went to the target.
    pub clipboard_to_target: u64,
    /// Bytes of clipboard data, files included, that went to the client.
    pub clipboard_to_client: u64,
    /// Bytes that the target read from the client's drives.
    pub device_read: u64,
    /// Bytes that the target wrote to the client's drives, printers and ports.
    pub device_written: u64,
    /// Bytes of sound that were played.
    pub sound_played: u64,
    /// Bytes of sound that the microphone sent.
    pub sound_heard: u64,
    /// What the specification does not know, or cannot be read, and what passed: how often, by channel or layer.
    pub unknown: BTreeMap<&'static str, u64>,
    /// Records that were made of it.
    pub records: u64,
    /// Of these, how many were not written, because there were too many of their kind.
    pub records_suppressed: u64,
}

/// Takes the records of one session. It must not block for long: the session waits.
pub trait AuditSink: Send {
    /// Takes one record.
    fn record(&mut self, event: AuditEvent) -> Recorded;
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was kept.
    Kept,
    /// There were too many of its kind; it is counted.
    Suppressed,
}

impl<F: FnMut(AuditEvent) + Send> AuditSink for F {
    fn record(&mut self, event: AuditEvent) -> Recorded {
        self(event);
        Recorded::Kept
    }
}

/// The statistics of a session that others may look at while it lives.
pub type SharedStatistics = Arc<Mutex<SessionStatistics>>;

/// The stage.
pub struct Inspector {
    channels: Channels,
    statistics: SharedStatistics,
    sink: Box<dyn AuditSink>,
    /// Contents of copied files that have gone over, by direction and index in the list.
    copied: HashMap<(Direction, u32), Copied>,
    /// Sizes of the files listed last, in either direction.
    listed: HashMap<Direction, Listed>,
    /// Smart card devices that were used.
    smart_cards: BTreeSet<u32>,
    /// Formats of sound that was played.
    sounds: Vec<Option<AudioFormat>>,
    /// Codecs, and what waits for an answer.
    pictures: Graphics,
    /// What was unknown and is recorded.
    unknown: Vec<(&'static str, Direction, u32)>,
    /// Where something that could not be read is recorded.
    unreadable: BTreeSet<(&'static str, bool)>,
    budget: Budget,
    /// What covers the names of dynamic channels in the statistics.
    name_memory: Held,
    /// What could not be remembered any more.
    exhausted: Option<Exhausted>,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}

/// A copied file on its way.
#[derive(Debug)]
struct Copied {
    name: Option<String>,
    bytes: u64,
    /// What covers it.
    _memory: Held,
}

/// Sizes of files, by position.
#[derive(Debug)]
struct Listed {
    sizes: Vec<Option<u64>>,
    _memory: Held,
}

impl Inspector {
    /// Gives the records of one session, which may make the gateway remember so much, to `sink`.
    pub fn new(budget: &Budget, sink: impl AuditSink + 'static) -> Self {
        Self {
            channels: Channels::new(budget),
            statistics: SharedStatistics::default(),
            sink: Box::new(sink),
            copied: HashMap::new(),
            listed: HashMap::new(),
            smart_cards: BTreeSet::new(),
            sounds: Vec::new(),
            pictures: Graphics::default(),
            unknown: Vec::new(),
            unreadable: BTreeSet::new(),
            budget: budget.clone(),
            name_memory: budget.nothing(Direction::ToClient),
            exhausted: None,
        }
    }

    fn record(&mut self, event: AuditEvent) {
        let recorded = self.sink.record(event);
        let mut statistics = lock(&self.statistics);
        statistics.records = statistics.records.saturating_add(1);
        if recorded == Recorded::Suppressed {
            statistics.records_suppressed = statistics.records_suppressed.saturating_add(1);
        }
    }

    /// What the session has done so far; stays readable after its end.
    pub fn statistics(&self) -> SharedStatistics {
        Arc::clone(&self.statistics)
    }

    /// Takes one message of a static channel, whole and decompressed.
    ///
    /// # Errors
    ///
    /// It cannot be read; the session has to end. The record of it has been made.
    pub fn channel_message(
        &mut self,
        channel: &str,
        direction: Direction,
        message: &[u8],
    ) -> Result<(), ChannelError> {
        let fed = self.channels.feed(channel, direction, message);
        let fed = fed.and_then(|events| {
            for event in events {
                self.channel_event(event);
            }
            match self.exhausted.take() {
                Some(exhausted) => Err(exhausted.into()),
                None => Ok(()),
            }
        });
        match fed {
            Ok(()) => Ok(()),
            Err(error) => {
                self.record(AuditEvent::Malformed {
                    channel: channel.to_owned(),
                    direction,
                    reason: error.to_string(),
                });
                Err(error)
            }
        }
    }

    /// Records what is still open. Dropping the inspector does so, too.
    pub fn finish(&mut self) {
        self.flush_copied(None);
        let channels = std::mem::replace(&mut self.channels, Channels::new(&self.budget));
        for (kind, device, path, used) in channels.devices().open_files() {
            self.closed(kind, device, path.to_owned(), used, false);
        }
    }

    /// Covers what is remembered of an event; without room for it the session ends behind the event.
    fn hold(&mut self, from: Direction, bytes: usize, what: &'static str) -> Option<Held> {
        match self.budget.hold(from, bytes, what) {
            Ok(held) => Some(held),
            Err(exhausted) => {
                self.exhausted = Some(exhausted);
                None
            }
        }
    }

    fn statistics_mut(&self) -> MutexGuard<'_, SessionStatistics> {
        lock(&self.statistics)
    }

    /// Counts a picture, or times an answer.
    fn pictures(&mut self, work: impl FnOnce(&mut Graphics, &mut GraphicsStatistics)) {
        let mut statistics = lock(&self.statistics);
        work(&mut self.pictures, &mut statistics.pictures);
    }

    fn channel_event(&mut self, event: ChannelEvent) {
        match event {
            ChannelEvent::Clipboard(event) => self.clipboard(event),
            ChannelEvent::Device(event) => self.device(event),
            ChannelEvent::Sound(event) => self.sound(event),
            ChannelEvent::Microphone(event) => self.microphone(event),
            ChannelEvent::Dynamic(event) => self.dynamic(event),
            ChannelEvent::Display(event) => self.display(event),
            ChannelEvent::RemoteProgram(event) => self.remote_program(event),
            ChannelEvent::Graphics(event) => {
                self.pictures(|graphics, statistics| graphics.pipeline(event, statistics));
            }
            ChannelEvent::Unreadable(what) => {
                self.unreadable(what.name, what.direction, what.reason.to_string());
            }
        }
    }

    fn clipboard(&mut self, event: ClipboardEvent) {
        match event {
            ClipboardEvent::Offered {
                direction,
                mut formats,
            } => {
                self.flush_copied(Some(direction));
                self.listed.remove(&direction);
                let count = formats.len();
                formats.truncate(LISTED);
                self.record(AuditEvent::ClipboardOffered {
                    direction,
                    formats,
                    count,
                });
            }
            ClipboardEvent::Sent {
                direction,
                format,
                ok,
                bytes,
            } => {
                self.copied_bytes(direction, bytes);
                self.record(AuditEvent::ClipboardSent {
                    direction,
                    format,
                    bytes,
                    ok,
                });
            }
            ClipboardEvent::FilesListed {
                direction,
                mut files,
            } => {
                let sizes: Vec<_> = files.iter().map(|file| file.size).collect();
                let bytes = sizes.iter().flatten().copied().fold(0, u64::saturating_add);
                let count = files.len();
                files.truncate(LISTED);
                self.listed.remove(&direction);
                let held = places::<Option<u64>>(sizes.capacity());
                if let Some(memory) = self.hold(direction, held, "sizes of copied files") {
                    let listed = Listed {
                        sizes,
                        _memory: memory,
                    };
                    self.listed.insert(direction, listed);
                }
                self.record(AuditEvent::ClipboardFilesListed {
                    direction,
                    files,
                    count,
                    bytes,
                });
            }
            ClipboardEvent::FileSent {
                direction,
                part,
                ok: true,
                bytes,
            } => {
                self.copied_bytes(direction, bytes);
                self.file_part(direction, part, bytes);
            }
            ClipboardEvent::Unknown {
                direction,
                msg_type,
                bytes,
            } => self.unknown("cliprdr", direction, msg_type.into(), bytes),
            ClipboardEvent::Capabilities { .. }
            | ClipboardEvent::MonitorReady
            | ClipboardEvent::TemporaryDirectory { .. }
            | ClipboardEvent::OfferAnswered { .. }
            | ClipboardEvent::Requested { .. }
            | ClipboardEvent::FileRequested { .. }
            | ClipboardEvent::FileSent { ok: false, .. }
            | ClipboardEvent::Locked { .. }
            | ClipboardEvent::Unlocked { .. } => {}
        }
    }

    fn copied_bytes(&self, direction: Direction, bytes: u64) {
        let mut statistics = self.statistics_mut();
        let count = match direction {
            Direction::ToTarget => &mut statistics.clipboard_to_target,
            Direction::ToClient => &mut statistics.clipboard_to_client,
        };
        *count = count.saturating_add(bytes);
    }

    /// Adds up the parts of a file, and records it once they are as many as its size.
    fn file_part(&mut self, direction: Direction, part: Option<FilePart>, bytes: u64) {
        let Some(part) = part else {
            self.record(AuditEvent::ClipboardFileSent {
                direction,
                name: None,
                bytes,
            });
            return;
        };
        if part.range == FileRange::Size {
            return;
        }
        if self.copied.len() >= COPIED_FILES {
            self.flush_copied(None);
        }
        let key = (direction, part.index);
        if !self.copied.contains_key(&key) {
            let bytes = part.name.as_ref().map_or(0, String::capacity);
            let bytes = bytes.saturating_add(places::<((Direction, u32), Copied)>(1));
            let Some(memory) = self.hold(direction, bytes, "copied files") else {
                return;
            };
            let copied = Copied {
                name: part.name,
                bytes: 0,
                _memory: memory,
            };
            self.copied.insert(key, copied);
        }
        let Some(copied) = self.copied.get_mut(&key) else {
            return;
        };
        copied.bytes = copied.bytes.saturating_add(bytes);
        let size = usize::try_from(part.index).ok().and_then(|index| {
            let listed = self.listed.get(&direction)?;
            listed.sizes.get(index).copied().flatten()
        });
        if size.is_some_and(|size| copied.bytes >= size)
            && let Some(copied) = self.copied.remove(&key)
        {
            self.record(AuditEvent::ClipboardFileSent {
                direction,
                name: copied.name,
                bytes: copied.bytes,
            });
        }
    }

    /// Records the files of which contents went over and nobody said that it was all; of one direction or of both.
    fn flush_copied(&mut self, only: Option<Direction>) {
        let is_meant = |direction| only.is_none_or(|only| only == direction);
        let mut keys: Vec<_> = self.copied.keys().copied().collect();
        keys.retain(|(direction, _)| is_meant(*direction));
        keys.sort_unstable_by_key(|(_, index)| *index);
        for key in keys {
            if let Some(copied) = self.copied.remove(&key) {
                self.record(AuditEvent::ClipboardFileSent {
                    direction: key.0,
                    name: copied.name,
                    bytes: copied.bytes,
                });
            }
        }
    }

    fn device(&mut self, event: DeviceEvent) {
        match event {
            DeviceEvent::DeviceAnnounced { device } => {
                self.record(AuditEvent::DeviceAnnounced { device });
            }
            DeviceEvent::DeviceAnswered { device, status } => {
                self.record(AuditEvent::DeviceAnswered { device, status });
            }
            DeviceEvent::DeviceRemoved { device } => {
                self.record(AuditEvent::DeviceRemoved { device });
            }
            DeviceEvent::Requested { target, request } => {
                if target.device_kind == Some(DeviceKind::SmartCard)
                    && matches!(request, Request::Control { .. })
                    && self.smart_cards.len() < jetway_base::limits::DEVICES
                    && self.smart_cards.insert(target.device)
                {
                    let device = target.device;
                    self.record(AuditEvent::SmartCardUsed { device });
                }
            }
            DeviceEvent::Completed {
                target,
                request,
                status,
                bytes,
                closed,
            } => self.completed(target, request, status, bytes, closed),
            DeviceEvent::Unknown {
                direction,
                packet_id,
                bytes,
                ..
            } => self.unknown("rdpdr", direction, packet_id.into(), bytes),
            DeviceEvent::Announced { .. }
            | DeviceEvent::ClientNamed { .. }
            | DeviceEvent::Capabilities { .. }
            | DeviceEvent::UserLoggedOn
            | DeviceEvent::Unmatched { .. }
            | DeviceEvent::PrinterCache { .. }
            | DeviceEvent::PrinterUsesXps { .. } => {}
        }
    }

    fn completed(
        &mut self,
        target: RequestTarget,
        request: Request,
        status: u32,
        bytes: u64,
        closed: Option<FileUse>,
    ) {
        let RequestTarget {
            device,
            device_kind,
            path,
            ..
        } = target;
        // The severity "error" is 3.
        let refused = status >> 30 == 3;
        let record = match request {
            Request::Close => {
                if let Some(used) = closed {
                    self.closed(device_kind, device, path.unwrap_or_default(), used, true);
                }
                return;
            }
            Request::Read { .. } => {
                let mut statistics = self.statistics_mut();
                statistics.device_read = statistics.device_read.saturating_add(bytes);
                return;
            }
            Request::Write { .. } => {
                let mut statistics = self.statistics_mut();
                statistics.device_written = statistics.device_written.saturating_add(bytes);
                return;
            }
            Request::Open { .. } if refused && request.changes() => AuditEvent::FileRefused {
                device,
                path: path.unwrap_or_default(),
                status,
            },
            Request::Rename { to, .. } => AuditEvent::FileRenamed {
                device,
                path,
                to,
                status,
            },
            Request::Delete { pending } => AuditEvent::FileDeleted {
                device,
                path,
                pending,
                status,
            },
            Request::Resize { end_of_file } => AuditEvent::FileResized {
                device,
                path,
                size: end_of_file,
                status,
            },
            Request::List { pattern } if !pattern.is_empty() && !refused => {
                AuditEvent::DirectoryListed { device, pattern }
            }
            Request::Open { .. }
            | Request::Control { .. }
            | Request::QueryInformation { .. }
            | Request::SetInformation { .. }
            | Request::List { .. }
            | Request::Watch
            | Request::QueryVolume { .. }
            | Request::SetVolume { .. }
            | Request::Lock { .. }
            | Request::Other { .. } => return,
        };
        self.record(record);
    }

    fn closed(
        &mut self,
        kind: Option<DeviceKind>,
        device: u32,
        path: String,
        used: FileUse,
        closed: bool,
    ) {
        let record = match kind {
            Some(DeviceKind::Printer) => AuditEvent::Printed {
                device,
                bytes: used.written,
                closed,
            },
            Some(DeviceKind::SmartCard) => return,
            Some(DeviceKind::Serial | DeviceKind::Parallel | DeviceKind::Other(_)) => {
                AuditEvent::PortUsed {
                    device,
                    used,
                    closed,
                }
            }
            // Looking at a file, as file managers do all the time, is not worth a record.
            Some(DeviceKind::Drive) | None => {
                if used.read == 0 && used.written == 0 && !used.writable && !used.deleted {
                    return;
                }
                AuditEvent::FileClosed {
                    device,
                    path,
                    used,
                    closed,
                }
            }
        };
        self.record(record);
    }

    fn sound(&mut self, event: SoundEvent) {
        match event {
            SoundEvent::Wave { format, bytes } => {
                {
                    let mut statistics = self.statistics_mut();
                    statistics.sound_played = statistics.sound_played.saturating_add(bytes);
                }
                if self.sounds.len() < SOUND_FORMATS && !self.sounds.contains(&format) {
                    self.sounds.push(format);
                    self.record(AuditEvent::SoundPlayed { format });
                }
            }
            SoundEvent::Unknown {
                direction,
                msg_type,
                bytes,
            } => self.unknown("rdpsnd", direction, msg_type.into(), bytes),
            SoundEvent::Formats { .. }
            | SoundEvent::QualityMode { .. }
            | SoundEvent::Training { .. }
            | SoundEvent::WaveConfirmed { .. }
            | SoundEvent::Closed
            | SoundEvent::Volume { .. }
            | SoundEvent::Pitch
            | SoundEvent::EncryptionKey => {}
        }
    }

    fn microphone(&mut self, event: MicrophoneEvent) {
        match event {
            MicrophoneEvent::OpenRequested { format } => {
                self.record(AuditEvent::MicrophoneRequested { format });
            }
            MicrophoneEvent::OpenAnswered { result } => {
                self.record(AuditEvent::MicrophoneOpened { result });
            }
            MicrophoneEvent::Heard { bytes } => {
                let mut statistics = self.statistics_mut();
                statistics.sound_heard = statistics.sound_heard.saturating_add(bytes);
            }
            MicrophoneEvent::Unknown {
                direction,
                message_id,
                bytes,
            } => self.unknown("AUDIO_INPUT", direction, message_id.into(), bytes),
            MicrophoneEvent::Version { .. }
            | MicrophoneEvent::Formats { .. }
            | MicrophoneEvent::Incoming
            | MicrophoneEvent::FormatChanged { .. } => {}
        }
    }

    fn dynamic(&mut self, event: DynamicEvent) {
        match event {
            DynamicEvent::Answered {
                name: Some(channel),
                status,
                ..
            } => {
                if status < 0 {
                    self.record(AuditEvent::ChannelRefused { channel, status });
                    return;
                }
                let room = {
                    let known = &self.statistics_mut().dynamic_channels;
                    known.len() < jetway_base::limits::DYNAMIC_CHANNELS && !known.contains(&channel)
                };
                if room {
                    let bytes = places::<String>(1).saturating_add(channel.len());
                    match self.name_memory.add(bytes, "names of dynamic channels") {
                        Ok(()) => {
                            let mut statistics = self.statistics_mut();
                            statistics.dynamic_channels.insert(channel.clone());
                        }
                        Err(exhausted) => self.exhausted = Some(exhausted),
                    }
                }
                self.record(AuditEvent::ChannelOpened {
                    channel,
                    dynamic: true,
                });
            }
            DynamicEvent::Closed { name, traffic, .. } => {
                self.record(AuditEvent::ChannelClosed {
                    channel: name,
                    traffic,
                });
            }
            DynamicEvent::SoftSyncRequested { tunnels, .. } => {
                let dynamic = self.channels.dynamic();
                let mut channels: Vec<String> = tunnels
                    .iter()
                    .flat_map(|tunnel| &tunnel.channels)
                    .filter_map(|id| dynamic.name(*id))
                    .map(str::to_owned)
                    .take(LISTED)
                    .collect();
                channels.dedup();
                self.record(AuditEvent::TunnelRequested { channels });
            }
            DynamicEvent::Unknown {
                direction,
                cmd,
                bytes,
            } => self.unknown("drdynvc", direction, cmd.into(), bytes),
            // Nobody reads it, and nobody should have sent it.
            DynamicEvent::Stray {
                direction, bytes, ..
            } => self.unknown("drdynvc", direction, DATA, bytes),
            DynamicEvent::Capabilities { .. }
            | DynamicEvent::Requested { .. }
            | DynamicEvent::Answered { name: None, .. }
            | DynamicEvent::SoftSyncAnswered { .. } => {}
        }
    }

    fn display(&mut self, event: DisplayEvent) {
        match event {
            DisplayEvent::Layout { monitors } => {
                self.record(AuditEvent::MonitorsRequested { monitors });
            }
            DisplayEvent::Unknown {
                direction,
                pdu_type,
                bytes,
            } => self.unknown("DisplayControl", direction, pdu_type, bytes),
            DisplayEvent::Capabilities { .. } => {}
        }
    }

    fn remote_program(&mut self, event: RemoteProgramEvent) {
        match event {
            RemoteProgramEvent::Requested {
                program,
                working_directory,
                argument_bytes,
            } => self.record(AuditEvent::RemoteProgramRequested {
                program,
                working_directory,
                argument_bytes,
            }),
            RemoteProgramEvent::Answered { program, result } => {
                self.record(AuditEvent::RemoteProgramAnswered { program, result })
            }
            RemoteProgramEvent::Unknown {
                direction,
                order_type,
                bytes,
            } => self.unknown("rail", direction, order_type.into(), bytes),
        }
    }

    /// Counts what nobody here knows, and records the first of each kind.
    fn unknown(&mut self, channel: &'static str, direction: Direction, message: u32, bytes: u64) {
        {
            let mut statistics = self.statistics_mut();
            let count = statistics.unknown.entry(channel).or_default();
            *count = count.saturating_add(1);
        }
        let kind = (channel, direction, message);
        if self.unknown.len() >= UNKNOWN_KINDS || self.unknown.contains(&kind) {
            return;
        }
        self.unknown.push(kind);
        self.record(AuditEvent::Unknown {
            channel,
            direction,
            message,
            bytes,
        });
    }

    /// Counts what could not be read and passed, and records the first of each channel and direction.
    fn unreadable(&mut self, channel: &'static str, direction: Direction, reason: String) {
        {
            let mut statistics = self.statistics_mut();
            let count = statistics.unknown.entry(channel).or_default();
            *count = count.saturating_add(1);
        }
        let kind = (channel, direction == Direction::ToTarget);
        if self.unreadable.insert(kind) {
            self.record(AuditEvent::Unreadable {
                channel,
                direction,
                reason,
            });
        }
    }

    fn graphics(&self, kind: &'static str) {
        let mut statistics = self.statistics_mut();
        let count = statistics.graphics.entry(kind).or_default();
        *count = count.saturating_add(1);
    }

    fn input(&mut self, input: Input) {
        let mut statistics = self.statistics_mut();
        let count = match input {
            Input::ScanCode { release: false, .. } | Input::Unicode { release: false, .. } => {
                &mut statistics.keys
            }
            Input::Mouse { .. } | Input::ExtendedMouse { .. } | Input::RelativeMouse { .. } => {
                &mut statistics.pointer
            }
            Input::ScanCode { release: true, .. }
            | Input::Unicode { release: true, .. }
            | Input::Synchronize { .. }
            | Input::QoeTimestamp(_) => return,
            Input::Unknown { code, bytes } => {
                drop(statistics);
                let code = code.map_or(BEHIND_LAST, u32::from);
                self.unknown("input", Direction::ToTarget, code, wide(bytes));
                return;
            }
        };
        *count = count.saturating_add(1);
    }

    fn logon(&mut self, logon: &SaveSessionInfo) {
        let record = match logon {
            SaveSessionInfo::User { domain, user, .. } => {
                self.statistics_mut().user = Some(user.clone());
                AuditEvent::LoggedOn {
                    user: Some(user.clone()),
                    domain: Some(domain.clone()),
                }
            }
            SaveSessionInfo::Plain => AuditEvent::LoggedOn {
                user: None,
                domain: None,
            },
            SaveSessionInfo::Notice { kind, data } => AuditEvent::LogonNotice {
                kind: *kind,
                data: *data,
            },
        };
        self.record(record);
    }

    fn phase(&mut self, phase: Phase) {
        let phase = phase.to_string();
        self.statistics_mut().phase = Some(phase.clone());
        self.record(AuditEvent::Phase { phase });
    }

    /// A message that cannot be read ends the session: nothing passes unseen.
    fn judged_message(&mut self, channel: &str, direction: Direction, data: &[u8]) -> Verdict {
        match self.channel_message(channel, direction, data) {
            Ok(()) => Verdict::Forward,
            Err(error) => Verdict::Terminate(Termination {
                grounds: Grounds::new("malformed", format!("{error} on channel {channel}")),
                error_info: ERRINFO_VC_DECODING_ERROR,
            }),
        }
    }

    fn client_data(&mut self, data: &ClientData) {
        self.statistics_mut().client_name = Some(data.client_name.clone());
        self.record(AuditEvent::Client {
            name: data.client_name.clone(),
            build: data.client_build,
            width: data.desktop_width,
            height: data.desktop_height,
        });
    }

    fn server_data(&mut self, channels: &[StaticChannel]) {
        let names: Vec<_> = channels
            .iter()
            .map(|channel| channel.name.clone())
            .collect();
        self.statistics_mut().static_channels.clone_from(&names);
        for channel in names {
            self.record(AuditEvent::ChannelOpened {
                channel,
                dynamic: false,
            });
        }
    }

    fn client_info(&mut self, info: &ClientInfo) {
        self.statistics_mut().user = Some(info.user.clone());
        self.record(AuditEvent::LogonRequested {
            user: info.user.clone(),
            domain: info.domain.clone(),
            has_password: info.has_password,
            alternate_shell: info.alternate_shell.clone(),
        });
    }

    fn desktop_size(&mut self, width: u16, height: u16) {
        self.statistics_mut().desktop = Some((width, height));
        self.record(AuditEvent::DesktopSize { width, height });
    }

    fn share_data(&mut self, direction: Direction, kind: u8, data: &[u8]) {
        match (direction, kind) {
            (Direction::ToClient, pdu_type2::UPDATE) => {
                if let Some(kind) = slow_path(data) {
                    self.graphics(kind);
                    if kind == BITMAP {
                        self.pictures(|_, statistics| Graphics::bitmap(data, statistics));
                    }
                }
            }
            (Direction::ToTarget, pdu_type2::FRAME_ACKNOWLEDGE) => {
                if let Some(frame) = data.first_chunk().copied().map(u32::from_le_bytes) {
                    self.pictures(|graphics, statistics| graphics.acknowledged(frame, statistics));
                }
            }
            (_, known) if pdu_type2::is_known(known) => {}
            (_, unknown) => {
                self.unknown("share data", direction, unknown.into(), wide(data.len()));
            }
        }
    }

    fn fast_path_update(&mut self, code: u8, fragmentation: u8, data: &[u8]) {
        let Some(kind) = fast_path(code) else { return };
        self.graphics(kind);
        // Whole, or the first of its fragments.
        let begins = matches!(fragmentation, 0 | 2);
        if begins && kind == BITMAP {
            self.pictures(|_, statistics| Graphics::bitmap(data, statistics));
        } else if begins && kind == SURFACE_COMMANDS {
            self.pictures(|graphics, statistics| graphics.surface(data, statistics));
        }
    }

    fn not_understood(&mut self, direction: Direction, what: Unknown) {
        let (layer, message, bytes) = match what {
            Unknown::BehindMcs { bytes } => ("mcs", BEHIND_LAST, bytes),
            Unknown::SharePdu { pdu_type, bytes } | Unknown::OtherSide { pdu_type, bytes } => {
                ("share", pdu_type.into(), bytes)
            }
            Unknown::Chunk { channel, bytes } => ("chunks", channel.into(), bytes),
            Unknown::ChannelCount { granted, .. } => {
                ("channels", u32::try_from(granted).unwrap_or(u32::MAX), 0)
            }
            Unknown::Nowhere { channel, bytes } => ("nowhere", channel.into(), bytes),
        };
        self.unknown(layer, direction, message, wide(bytes));
    }

    fn redirection(&mut self, redirection: &Redirection) {
        let names = [
            &redirection.target_fqdn,
            &redirection.target_net_address,
            &redirection.target_net_bios_name,
        ];
        let to = names.into_iter().flatten().next().cloned();
        self.record(AuditEvent::Redirected {
            to: to.unwrap_or_default(),
        });
    }
}

impl Stage for Inspector {
    fn name(&self) -> &'static str {
        "inspector"
    }

    fn interest(&self, channel: &str) -> Interest {
        if Channels::matters(channel) {
            Interest::Observe
        } else if Channels::knows(channel) {
            Interest::Sample
        } else {
            Interest::Ignore
        }
    }

    fn set_now(&mut self, now: Duration) {
        self.pictures.set_now(now);
    }

    fn awaited(&self, direction: Direction) -> usize {
        self.channels.dynamic().awaited(direction)
    }

    fn on_ruling(&mut self, event: &Event<'_>, by: &'static str, verdict: &Verdict) {
        let (action, grounds) = match verdict {
            Verdict::Forward | Verdict::Hold => return,
            Verdict::Replace { grounds, .. } => (Action::Replaced, grounds),
            Verdict::Deny { grounds, .. } => (Action::Denied, grounds),
            Verdict::Terminate(termination) => (Action::Terminated, &termination.grounds),
        };
        let message = if let Event::ChannelMessage {
            direction, channel, ..
        } = event
        {
            Some((channel.name.clone(), *direction))
        } else {
            None
        };
        self.record(AuditEvent::Ruled {
            stage: by,
            rule: grounds.rule.clone(),
            action,
            channel: message.as_ref().map(|(channel, _)| channel.clone()),
            direction: message.map(|(_, direction)| direction),
            bytes: u64::try_from(event.data().len()).unwrap_or(u64::MAX),
            reason: grounds.reason.clone(),
        });
    }

    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        match event {
            Event::ChannelMessage {
                direction,
                channel,
                data,
            } => return self.judged_message(&channel.name, *direction, data),
            Event::Phase(phase) => self.phase(*phase),
            Event::ClientData(data) => self.client_data(data),
            Event::ServerData { channels, .. } => self.server_data(channels),
            Event::ClientInfo(info) => self.client_info(info),
            Event::DesktopSize { width, height } => self.desktop_size(*width, *height),
            Event::ShareData {
                direction,
                pdu_type2,
                data,
            } => self.share_data(*direction, *pdu_type2, data),
            Event::FastPathUpdate {
                code,
                fragmentation,
                data,
            } => self.fast_path_update(*code, *fragmentation, data),
            Event::Capabilities {
                direction: Direction::ToTarget,
                sets,
                ..
            } => self.pictures.capabilities(sets),
            Event::BulkCompression { kind, .. } => {
                self.pictures(|_, statistics| statistics.compressed(*kind));
            }
            Event::MessageChannel {
                direction,
                flags,
                data,
            } => self.pictures(|graphics, statistics| {
                graphics.message(*direction, *flags, data, statistics);
            }),
            Event::Unknown { direction, what } => self.not_understood(*direction, *what),
            Event::Input(input) => self.input(*input),
            Event::Logon(logon) => self.logon(logon),
            Event::ErrorInfo(code) => self.record(AuditEvent::ErrorInfo { code: *code }),
            Event::Redirection(redirection) => self.redirection(redirection),
            Event::Disconnect { direction, reason } => {
                self.record(AuditEvent::Disconnected {
                    direction: *direction,
                    reason: *reason,
                });
            }
            Event::Reconnect { logon_id, passed } => self.record(AuditEvent::Reconnect {
                logon_id: *logon_id,
                passed: *passed,
            }),
            // The cookie is a secret; the others say nothing that people did.
            Event::AutoReconnectCookie(_)
            | Event::Licence { .. }
            | Event::Capabilities { .. }
            | Event::Deactivated
            | Event::Pdu { .. } => {}
        }
        Verdict::Forward
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `updateType` of a slow-path graphics update ([MS-RDPBCGR] 2.2.9.1.1.3.1).
fn slow_path(data: &[u8]) -> Option<&'static str> {
    match data.first_chunk::<2>().copied().map(u16::from_le_bytes)? {
        0 => Some(ORDERS),
        1 => Some(BITMAP),
        _ => None,
    }
}

/// `updateCode` of a fast-path update ([MS-RDPBCGR] 2.2.9.1.2.1).
fn fast_path(code: u8) -> Option<&'static str> {
    match code {
        0 => Some(ORDERS),
        1 => Some(BITMAP),
        4 => Some(SURFACE_COMMANDS),
        _ => None,
    }
}

fn lock(statistics: &SharedStatistics) -> MutexGuard<'_, SessionStatistics> {
    // Counters are valid whoever panicked while adding to them.
    statistics.lock().unwrap_or_else(PoisonError::into_inner)
}

const ORDERS: &str = "orders";
const BITMAP: &str = "bitmap";
const SURFACE_COMMANDS: &str = "surface commands";

/// In place of a type, where there is none: bytes behind the last thing that has one.
const BEHIND_LAST: u32 = u32::MAX;

/// Kinds of unknown messages that are recorded.
const UNKNOWN_KINDS: usize = 64;

/// [MS-RDPBCGR] 2.2.5.1.1: data received over a virtual channel could not be decoded.
const ERRINFO_VC_DECODING_ERROR: u32 = 0x1133;

/// `Cmd` of DYNVC_DATA.
const DATA: u32 = 3;

/// Formats, files and channels that one record lists; it counts them all.
const LISTED: usize = 256;

/// Copied files of which parts are added up at one time.
const COPIED_FILES: usize = 1024;

/// Formats of sound that are told apart.
const SOUND_FORMATS: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::clipboard_messages::{clip, file_list};
    use jetway_base::limits;
    use jetway_rdp::event::StaticChannel;

    #[test]
    fn what_another_stage_did_not_let_pass_is_recorded_with_its_rule() {
        let (mut inspector, records) = inspector();
        let channel = StaticChannel {
            name: "cliprdr".to_owned(),
            id: 1004,
            options: 0,
        };
        let verdict = Verdict::Deny {
            answers: Vec::new(),
            grounds: Grounds::new("no-files", "files stay where they are"),
        };
        let event = Event::ChannelMessage {
            direction: Direction::ToClient,
            channel: &channel,
            data: b"secret",
        };
        inspector.on_ruling(&event, "filter", &verdict);
        let record = records.try_iter().next().unwrap();
        assert_eq!(
            serde_json::to_value(&record).unwrap(),
            serde_json::json!({
                "event": "ruled",
                "stage": "filter",
                "rule": "no-files",
                "action": "denied",
                "channel": "cliprdr",
                "direction": "to_client",
                "bytes": 6,
                "reason": "files stay where they are",
            })
        );
    }

    #[test]
    fn a_message_that_cannot_be_read_ends_the_session_and_is_recorded() {
        let (mut inspector, records) = inspector();
        let verdict = message(&mut inspector, "cliprdr", Direction::ToTarget, &[2, 0]);
        let Verdict::Terminate(termination) = verdict else {
            panic!("{verdict:?}")
        };
        let reason = termination.grounds.reason;
        assert_eq!(reason, "msgFlags is cut off on channel cliprdr");
        assert_eq!(termination.error_info, ERRINFO_VC_DECODING_ERROR);
        assert!(matches!(
            records.try_iter().next(),
            Some(AuditEvent::Malformed { .. })
        ));
    }

    #[test]
    fn what_cannot_be_read_passes_where_nothing_depends_on_it_and_is_recorded_once() {
        let (mut inspector, records) = inspector();
        let cut = [13, 0, 12, 0, 0, 0];
        for _ in 0..3 {
            for direction in [Direction::ToClient, Direction::ToTarget] {
                let verdict = message(&mut inspector, "rdpsnd", direction, &cut);
                assert_eq!(verdict, Verdict::Forward);
            }
        }
        let counted = lock(&inspector.statistics()).unknown["rdpsnd"];
        assert!(counted >= 6, "{counted}");
        drop(inspector);
        let records: Vec<_> = records.iter().collect();
        assert_eq!(records.len(), 2, "{records:?}");
        for record in &records {
            let AuditEvent::Unreadable { channel, .. } = record else {
                panic!("{record:?}")
            };
            assert_eq!(*channel, "rdpsnd");
        }
    }

    #[test]
    fn only_channels_that_are_read_are_asked_for_and_nothing_is_decided() {
        let (inspector, _records) = inspector();
        for channel in ["cliprdr", "rdpdr", "drdynvc", "rail", "RAIL"] {
            assert_eq!(inspector.interest(channel), Interest::Observe, "{channel}");
        }
        assert_eq!(inspector.interest("rdpsnd"), Interest::Sample);
        assert_eq!(inspector.interest("snddbg"), Interest::Ignore);
        assert!(!inspector.decides());
    }

    #[test]
    fn what_is_open_when_the_session_ends_is_recorded_once() {
        let (mut inspector, records) = inspector();
        let (to_client, to_target) = (Direction::ToClient, Direction::ToTarget);
        // A smart card reader and a file that is opened to be written, and not closed.
        let list = b"rDAD\x01\0\0\0\x20\0\0\0\x09\0\0\0SCARD\0\0\0\0\0\0\0";
        let open = b"rDRI\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
            \x05\0\0\0\0\0\0\0\x04\0\0\0a\0\0\0";
        let opened = b"rDCI\x01\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\0";
        let control = [
            &b"rDRI\x09\0\0\0\0\0\0\0\x06\0\0\0\x0e\0\0\0\0\0\0\0"[..],
            &[0; 32],
        ]
        .concat();
        for (direction, pdu) in [
            (to_target, &list[..]),
            (to_client, open),
            (to_target, opened),
            (to_client, &control),
            (to_client, &control),
        ] {
            assert_eq!(
                message(&mut inspector, "rdpdr", direction, pdu),
                Verdict::Forward
            );
        }
        inspector.finish();
        drop(inspector);
        let records: Vec<_> = records.iter().skip(1).collect();
        assert_eq!(
            records,
            [
                AuditEvent::SmartCardUsed { device: 9 },
                AuditEvent::FileClosed {
                    device: 1,
                    path: "a".to_owned(),
                    used: FileUse {
                        writable: true,
                        ..FileUse::default()
                    },
                    closed: false
                }
            ]
        );
    }

    #[test]
    fn what_is_kept_for_records_is_counted_beside_what_channels_remember() {
        let (to_client, to_target) = (Direction::ToClient, Direction::ToTarget);
        let files = |count, characters| {
            let list = file_list(count, characters).into_iter();
            list.map(|(direction, pdu)| ("cliprdr", direction, pdu))
        };
        // The first bytes of a file whose name has 260 characters of three bytes.
        let mut asked = vec![0; 24];
        asked[8] = 2;
        let part = [
            ("cliprdr", to_target, clip(8, 0, &asked)),
            ("cliprdr", to_client, clip(9, 1, &[0; 100])),
        ];
        let name = [&[0x10, 7][..], &[b'x'; 250], &[0]].concat();
        let gone = [
            ("drdynvc", to_client, name),
            ("drdynvc", to_target, vec![0x10, 7, 0, 0, 0, 0]),
            ("drdynvc", to_client, vec![0x40, 7]),
        ];
        let sizes: Vec<_> = files(1000, 0).collect();
        let copied: Vec<_> = files(1, 260).chain(part).collect();
        for (what, least, pdus) in [
            ("sizes of files", 1000 * 16, sizes),
            ("a file on its way", 780, copied),
            ("the name of a channel", 250, gone.to_vec()),
        ] {
            let (with, without) = (Budget::default(), Budget::default());
            let mut inspector = Inspector::new(&with, |_record| {});
            let mut channels = Channels::new(&without);
            for (name, direction, pdu) in pdus {
                inspector.channel_message(name, direction, &pdu).unwrap();
                channels.feed(name, direction, &pdu).unwrap();
            }
            let more = with.held(to_client) - without.held(to_client);
            assert!(more >= least, "{what}: {more} of {least}");
            drop(inspector);
            assert_eq!(with.held(to_client), 0);
        }
    }

    #[test]
    fn what_cannot_be_kept_for_records_ends_the_session() {
        let (to_client, to_target) = (Direction::ToClient, Direction::ToTarget);
        let create = [&[0x10, 7][..], &[b'x'; 250], &[0]].concat();
        let answer = [0x10, 7, 0, 0, 0, 0];
        let budget = Budget::default();
        let mut channels = Channels::new(&budget);
        channels.feed("drdynvc", to_client, &create).unwrap();
        let channel = budget.held(to_client);
        drop(channels);
        // Room for the channel, and none for what is kept of it.
        let others = limits::REMEMBERED_PER_DIRECTION_BYTES - channel;
        let _others = budget.hold(to_client, others, "others").unwrap();
        let mut inspector = Inspector::new(&budget, |_record| {});
        let mut message =
            |direction, pdu: &[u8]| inspector.channel_message("drdynvc", direction, pdu);
        message(to_client, &create).unwrap();
        let refused = message(to_target, &answer).unwrap_err();
        assert!(matches!(refused, ChannelError::Memory(_)), "{refused}");
    }

    #[test]
    fn what_is_unknown_is_counted_and_recorded_once() {
        let (mut inspector, records) = inspector();
        let unknown = Input::Unknown {
            code: Some(7),
            bytes: 3,
        };
        for _ in 0..3 {
            inspector.on_event(&Event::Input(unknown));
            inspector.on_event(&Event::Unknown {
                direction: Direction::ToClient,
                what: Unknown::SharePdu {
                    pdu_type: 9,
                    bytes: 6,
                },
            });
            inspector.on_event(&Event::ShareData {
                direction: Direction::ToClient,
                pdu_type2: 99,
                data: &[],
            });
            inspector.on_event(&Event::ShareData {
                direction: Direction::ToClient,
                pdu_type2: pdu_type2::SET_ERROR_INFO,
                data: &[],
            });
        }
        let statistics = inspector.statistics();
        drop(inspector);
        let records: Vec<_> = records
            .iter()
            .filter_map(|record| {
                let AuditEvent::Unknown {
                    channel, message, ..
                } = record
                else {
                    return None;
                };
                Some((channel, message))
            })
            .collect();
        assert_eq!(records, [("input", 7), ("share", 9), ("share data", 99)]);
        let counted = statistics.lock().unwrap().unknown.clone();
        assert_eq!(counted.values().copied().collect::<Vec<_>>(), [3, 3, 3]);
    }

    #[test]
    fn keys_are_counted_and_not_told() {
        let (mut inspector, records) = inspector();
        for release in [false, true] {
            let input = Input::Unicode {
                release,
                unit: 0x41,
            };
            inspector.on_event(&Event::Input(input));
        }
        inspector.on_event(&Event::Input(Input::Mouse {
            flags: 0,
            x: 1,
            y: 2,
        }));
        let statistics = inspector.statistics();
        drop(inspector);
        assert_eq!(records.iter().count(), 0);
        let statistics = statistics.lock().unwrap();
        assert_eq!((statistics.keys, statistics.pointer), (1, 1));
    }

    fn inspector() -> (Inspector, Receiver<AuditEvent>) {
        let (sender, records) = mpsc::channel();
        let inspector = Inspector::new(&Budget::default(), move |record| {
            sender.send(record).unwrap()
        });
        (inspector, records)
    }

    fn message(
        inspector: &mut Inspector,
        name: &str,
        direction: Direction,
        data: &[u8],
    ) -> Verdict {
        let channel = StaticChannel {
            name: name.to_owned(),
            id: 1004,
            options: 0,
        };
        inspector.on_event(&Event::ChannelMessage {
            direction,
            channel: &channel,
            data,
        })
    }
}
