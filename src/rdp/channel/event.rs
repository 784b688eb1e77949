//! What happens on virtual channels, as facts. Each parser makes those of its channel.

use serde::Serialize;

use super::egfx::GraphicsEvent;
use super::read::ChannelError;
use crate::Direction;

/// What happened on a virtual channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "channel", content = "event", rename_all = "snake_case")]
pub enum ChannelEvent {
    /// `cliprdr`.
    Clipboard(ClipboardEvent),
    /// `rdpdr`: drives, printers, ports, smart cards.
    Device(DeviceEvent),
    /// `rdpsnd`: sound from the target.
    Sound(SoundEvent),
    /// Sound to the target.
    Microphone(MicrophoneEvent),
    /// `drdynvc`.
    Dynamic(DynamicEvent),
    /// Display control: the client asks for another desktop size.
    Display(DisplayEvent),
    /// `rail`: remote programs.
    RemoteProgram(RemoteProgramEvent),
    /// The graphics pipeline, for statistics.
    Graphics(GraphicsEvent),
    /// A message that is not what it claims to be, where nothing depends on it.
    Unreadable(Unreadable),
}

/// A message that cannot be read and passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The channel, as the specification calls it.
    pub name: &'static str,
    /// Where it went.
    pub direction: Direction,
    /// What is wrong with it.
    pub reason: ChannelError,
}

impl Serialize for Direction {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::ToTarget => "to_target",
            Self::ToClient => "to_client",
        })
    }
}

/// The events of a message on which nothing depends: where it cannot be read, that is one.
///
/// # Errors
///
/// The session's memory is used up, which ends it whatever the message was; or only the head of the message is at hand.
pub(super) fn noted(
    name: &'static str,
    direction: Direction,
    events: Result<Vec<ChannelEvent>, ChannelError>,
) -> Result<Vec<ChannelEvent>, ChannelError> {
    match events {
        Err(error @ (ChannelError::Memory(_) | ChannelError::NeededWhole(_))) => Err(error),
        Err(reason) => Ok(vec![unreadable(name, direction, reason)]),
        Ok(events) => Ok(events),
    }
}

pub(super) fn unreadable(
    name: &'static str,
    direction: Direction,
    reason: ChannelError,
) -> ChannelEvent {
    ChannelEvent::Unreadable(Unreadable {
        name,
        direction,
        reason,
    })
}

/// What happened on the clipboard channel; `direction` is where the message went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ClipboardEvent {
    /// 2.2.2.1 Clipboard Capabilities PDU (CLIPRDR_CAPS): `generalFlags`, 0 without a general capability set.
    Capabilities {
        /// Where it went.
        direction: Direction,
        /// `generalFlags`.
        general_flags: u32,
    },
    /// 2.2.2.2 Server Monitor Ready PDU (CLIPRDR_MONITOR_READY).
    MonitorReady,
    /// 2.2.2.3 Client Temporary Directory PDU (CLIPRDR_TEMP_DIRECTORY).
    TemporaryDirectory {
        /// `wszTempDir`.
        path: String,
    },
    /// 2.2.3.1 Format List PDU (CLIPRDR_FORMAT_LIST): something was copied on the sender's side.
    Offered {
        /// Where it went.
        direction: Direction,
        /// What the clipboard holds.
        formats: Vec<Format>,
    },
    /// 2.2.3.2 Format List Response PDU (FORMAT_LIST_RESPONSE).
    OfferAnswered {
        /// Where it went.
        direction: Direction,
        /// Whether the list was taken.
        ok: bool,
    },
    /// 2.2.5.1 Format Data Request PDU (CLIPRDR_FORMAT_DATA_REQUEST): the sender wants to paste.
    Requested {
        /// Where it went.
        direction: Direction,
        /// What is wanted.
        format: Format,
    },
    /// 2.2.5.2 Format Data Response PDU (CLIPRDR_FORMAT_DATA_RESPONSE).
    Sent {
        /// Where it went.
        direction: Direction,
        /// What was asked for; `None` where nobody did.
        format: Option<Format>,
        /// Whether it holds what was asked for.
        ok: bool,
        /// Bytes of it.
        bytes: u64,
    },
    /// 2.2.5.2.3 Packed File List (CLIPRDR_FILELIST), the data of a Format Data Response.
    FilesListed {
        /// Where it went.
        direction: Direction,
        /// The files that the contents requests refer to by index.
        files: Vec<ClipboardFile>,
    },
    /// 2.2.5.3 File Contents Request PDU (CLIPRDR_FILECONTENTS_REQUEST).
    FileRequested {
        /// Where it went.
        direction: Direction,
        /// Which part of which file.
        part: FilePart,
    },
    /// 2.2.5.4 File Contents Response PDU (CLIPRDR_FILECONTENTS_RESPONSE).
    FileSent {
        /// Where it went.
        direction: Direction,
        /// What was asked for; `None` where nobody did.
        part: Option<FilePart>,
        /// Whether it holds what was asked for.
        ok: bool,
        /// Bytes of it.
        bytes: u64,
    },
    /// 2.2.4.1 Lock Clipboard Data PDU (CLIPRDR_LOCK_CLIPDATA).
    Locked {
        /// Where it went.
        direction: Direction,
        /// `clipDataId`.
        id: u32,
    },
    /// 2.2.4.2 Unlock Clipboard Data PDU (CLIPRDR_UNLOCK_CLIPDATA).
    Unlocked {
        /// Where it went.
        direction: Direction,
        /// `clipDataId`.
        id: u32,
    },
    /// A `msgType` that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `msgType`.
        msg_type: u16,
        /// Bytes behind the header.
        bytes: u64,
    },
}

/// A clipboard format: an identifier, and for those that are not predefined a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Format {
    /// `formatId`.
    pub id: u32,
    /// `formatName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// 2.2.5.2.3.1 File Descriptor (CLIPRDR_FILEDESCRIPTOR).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClipboardFile {
    /// `fileName`, relative, with `\` between folders.
    pub name: String,
    /// Bytes, where the descriptor has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether it is a folder.
    pub directory: bool,
}

/// Which part of which file is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilePart {
    /// `streamId`, which the answer repeats.
    pub stream: u32,
    /// `lindex`.
    pub index: u32,
    /// The file's name, if its list passed here.
    pub name: Option<String>,
    /// Its size or its contents.
    pub range: FileRange,
}

/// `dwFlags` of a File Contents Request and what they say of the other fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum FileRange {
    /// FILECONTENTS_SIZE.
    Size,
    /// FILECONTENTS_RANGE.
    Contents {
        /// `nPositionHigh` and `nPositionLow`.
        offset: u64,
        /// `cbRequested`.
        length: u32,
    },
}

/// What happened on the device channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeviceEvent {
    /// 2.2.2.2 Server Announce Request, 2.2.2.3 Client Announce Reply, 2.2.2.6 Server Client ID Confirm.
    Announced {
        /// Where it went.
        direction: Direction,
        /// `VersionMinor`.
        version_minor: u16,
    },
    /// 2.2.2.4 Client Name Request (DR_CORE_CLIENT_NAME_REQ).
    ClientNamed {
        /// `ComputerName`.
        name: String,
    },
    /// 2.2.2.7 Server Core Capability Request, 2.2.2.8 Client Core Capability Response: which sets are there.
    Capabilities {
        /// Where it went.
        direction: Direction,
        /// `CapabilityType` of each.
        sets: Vec<u16>,
    },
    /// 2.2.2.5 Server User Logged On (DR_CORE_USER_LOGGEDON).
    UserLoggedOn,
    /// 2.2.2.9 Client Device List Announce Request, one event for each device.
    DeviceAnnounced {
        /// The device.
        device: Device,
    },
    /// 2.2.2.1 Server Device Announce Response (DR_CORE_DEVICE_ANNOUNCE_RSP).
    DeviceAnswered {
        /// `DeviceId`.
        device: u32,
        /// `ResultCode`: an NTSTATUS.
        status: u32,
    },
    /// 2.2.3.2 Client Drive Device List Remove, one event for each device.
    DeviceRemoved {
        /// `DeviceId`.
        device: u32,
    },
    /// 2.2.1.4 Device I/O Request: the target asks.
    Requested {
        /// Which request of which device.
        target: RequestTarget,
        /// What it asks for.
        request: Request,
    },
    /// 2.2.1.5 Device I/O Response: the client has done it, or not.
    Completed {
        /// Which request of which device.
        target: RequestTarget,
        /// What was asked for.
        request: Request,
        /// `IoStatus`: an NTSTATUS.
        status: u32,
        /// Bytes read or written, or of the answer.
        bytes: u64,
        /// After a close: all that was done with the file.
        #[serde(skip_serializing_if = "Option::is_none")]
        closed: Option<FileUse>,
    },
    /// A response to a request that did not pass here, or that was given up.
    Unmatched {
        /// `DeviceId`.
        device: u32,
        /// `CompletionId`.
        completion: u32,
        /// `IoStatus`: an NTSTATUS.
        status: u32,
        /// Bytes behind the header.
        bytes: u64,
    },
    /// [MS-RDPEPC] 2.2.2.3 to 2.2.2.6: the printer configuration that the client is to keep.
    PrinterCache {
        /// `EventId`: 1 add, 2 update, 3 delete, 4 rename.
        event_id: u32,
        /// Bytes behind it.
        bytes: u64,
    },
    /// [MS-RDPEPC] 2.2.2.2 Server Printer Set XPS Mode (DR_PRN_USING_XPS).
    PrinterUsesXps {
        /// `PrinterId`.
        device: u32,
    },
    /// A component or packet that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `Component`.
        component: u16,
        /// `PacketId`.
        packet_id: u16,
        /// Bytes behind the header.
        bytes: u64,
    },
}

/// 2.2.1.3 Device Announce Header (DEVICE_ANNOUNCE) and what the data of the device says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `DeviceId`.
    pub id: u32,
    /// `DeviceType`.
    pub kind: DeviceKind,
    /// `PreferredDosName`.
    pub dos_name: String,
    /// The full name of a drive or printer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The driver of a printer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

/// `DeviceType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// RDPDR_DTYP_SERIAL.
    Serial,
    /// RDPDR_DTYP_PARALLEL.
    Parallel,
    /// RDPDR_DTYP_PRINT.
    Printer,
    /// RDPDR_DTYP_FILESYSTEM.
    Drive,
    /// RDPDR_DTYP_SMARTCARD.
    SmartCard,
    /// Not specified.
    Other(u32),
}

/// Which request of which device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestTarget {
    /// `DeviceId`.
    pub device: u32,
    /// What kind of device it was announced as; `None` where it was not.
    pub device_kind: Option<DeviceKind>,
    /// `CompletionId`.
    pub completion: u32,
    /// `FileId`.
    pub file: u32,
    /// The path that was opened; `None` where that did not pass here.
    pub path: Option<String>,
}

/// `MajorFunction` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "function", rename_all = "snake_case")]
pub enum Request {
    /// 2.2.1.4.1 Device Create Request (DR_CREATE_REQ).
    Open {
        /// `DesiredAccess`.
        access: u32,
        /// `CreateDisposition`.
        disposition: u32,
        /// `CreateOptions`.
        options: u32,
    },
    /// 2.2.1.4.2 Device Close Request (DR_CLOSE_REQ).
    Close,
    /// 2.2.1.4.3 Device Read Request (DR_READ_REQ).
    Read {
        /// `Offset`.
        offset: u64,
        /// `Length`.
        length: u32,
    },
    /// 2.2.1.4.4 Device Write Request (DR_WRITE_REQ).
    Write {
        /// `Offset`.
        offset: u64,
        /// `Length`.
        length: u32,
    },
    /// 2.2.1.4.5 Device Control Request (DR_CONTROL_REQ).
    Control {
        /// `IoControlCode`.
        code: u32,
    },
    /// 2.2.3.3.8 Server Drive Query Information Request.
    QueryInformation {
        /// `FsInformationClass`.
        class: u32,
    },
    /// 2.2.3.3.9 Server Drive Set Information Request with FileRenameInformation.
    Rename {
        /// `FileName`.
        to: String,
        /// `ReplaceIfExists`.
        replace: bool,
    },
    /// 2.2.3.3.9 Server Drive Set Information Request with FileDispositionInformation.
    Delete {
        /// `DeletePending`: false takes it back.
        pending: bool,
    },
    /// 2.2.3.3.9 Server Drive Set Information Request with FileEndOfFileInformation.
    Resize {
        /// `EndOfFile`.
        end_of_file: u64,
    },
    /// 2.2.3.3.9 Server Drive Set Information Request with another class.
    SetInformation {
        /// `FsInformationClass`.
        class: u32,
    },
    /// 2.2.3.3.10 Server Drive Query Directory Request.
    List {
        /// `Path`, with wildcards; empty when the listing goes on.
        pattern: String,
    },
    /// 2.2.3.3.11 Server Drive NotifyChange Directory Request.
    Watch,
    /// 2.2.3.3.6 Server Drive Query Volume Information Request.
    QueryVolume {
        /// `FsInformationClass`.
        class: u32,
    },
    /// 2.2.3.3.7 Server Drive Set Volume Information Request.
    SetVolume {
        /// `FsInformationClass`.
        class: u32,
    },
    /// 2.2.3.3.12 Server Drive Lock Control Request.
    Lock {
        /// `Operation`.
        operation: u32,
    },
    /// A function that is not specified.
    Other {
        /// `MajorFunction`.
        major: u32,
        /// `MinorFunction`.
        minor: u32,
    },
}

/// What was done with a file between open and close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileUse {
    /// Bytes the target read.
    pub read: u64,
    /// Bytes the target wrote.
    pub written: u64,
    /// Its size, where the target asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// It was a folder.
    pub directory: bool,
    /// It was made: the target demanded one that was not there.
    pub created: bool,
    /// It was opened in a way that lets it be changed, or creates it.
    pub writable: bool,
    /// It was opened to be deleted, or marked so.
    pub deleted: bool,
}

/// What happened on the sound channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SoundEvent {
    /// 2.2.2.1 Server Audio Formats and Version PDU, 2.2.2.2 Client Audio Formats and Version PDU.
    Formats {
        /// Where it went.
        direction: Direction,
        /// `wVersion`.
        version: u16,
        /// `sndFormats`.
        formats: Vec<AudioFormat>,
    },
    /// 2.2.2.3 Quality Mode PDU (AUDIO_QUALITY_MODE).
    QualityMode {
        /// `wQualityMode`.
        mode: u16,
    },
    /// 2.2.3.1 Training PDU (SNDTRAINING), 2.2.3.2 Training Confirm PDU (SNDTRAININGCONFIRM).
    Training {
        /// Where it went.
        direction: Direction,
    },
    /// 2.2.3.3 WaveInfo PDU (SNDWAVINFO), 2.2.3.6 Wave Encrypt PDU, 2.2.3.10 Wave2 PDU (SNDWAVE2).
    Wave {
        /// The format; `None` where the client's list has no such number.
        format: Option<AudioFormat>,
        /// Bytes of sound.
        bytes: u64,
    },
    /// 2.2.3.8 Wave Confirm PDU (SNDWAV_CONFIRM).
    WaveConfirmed {
        /// `cConfirmedBlockNo`.
        block: u8,
    },
    /// 2.2.3.9 Close PDU (SNDCLOSE).
    Closed,
    /// 2.2.4.1 Volume PDU (SNDVOL).
    Volume {
        /// `Volume`: left in the low half, right in the high half.
        volume: u32,
    },
    /// 2.2.4.2 Pitch PDU (SNDPITCH).
    Pitch,
    /// 2.2.2.4 Crypt Key PDU (SNDCRYPT); the key is not kept.
    EncryptionKey,
    /// A `msgType` that is not specified for this channel.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `msgType`.
        msg_type: u8,
        /// Bytes behind the header.
        bytes: u64,
    },
}

/// 2.2.2.1.1 Audio Format (AUDIO_FORMAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AudioFormat {
    /// `wFormatTag`: 1 is PCM.
    pub tag: u16,
    /// `nChannels`.
    pub channels: u16,
    /// `nSamplesPerSec`.
    pub samples_per_s: u32,
    /// `wBitsPerSample`.
    pub bits_per_sample: u16,
}

/// What happened on the microphone channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MicrophoneEvent {
    /// 2.2.2.1 Version PDU (MSG_SNDIN_VERSION).
    Version {
        /// Where it went.
        direction: Direction,
        /// `Version`.
        version: u32,
    },
    /// 2.2.2.2 Sound Formats PDU (MSG_SNDIN_FORMATS).
    Formats {
        /// Where it went.
        direction: Direction,
        /// `SoundFormats`.
        formats: Vec<AudioFormat>,
    },
    /// 2.2.2.3 Open PDU (MSG_SNDIN_OPEN): the target wants to listen.
    OpenRequested {
        /// `initialFormat` in the client's list.
        format: Option<AudioFormat>,
    },
    /// 2.2.2.4 Open Reply PDU (MSG_SNDIN_OPEN_REPLY).
    OpenAnswered {
        /// `Result`: an HRESULT, negative where the microphone was not opened.
        result: i32,
    },
    /// 2.2.3.1 Incoming Data PDU (MSG_SNDIN_DATA_INCOMING).
    Incoming,
    /// 2.2.3.2 Data PDU (MSG_SNDIN_DATA).
    Heard {
        /// Bytes of sound.
        bytes: u64,
    },
    /// 2.2.4.1 Format Change PDU (MSG_SNDIN_FORMATCHANGE).
    FormatChanged {
        /// Where it went.
        direction: Direction,
    },
    /// A `MessageId` that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `MessageId`.
        message_id: u8,
        /// Bytes behind it.
        bytes: u64,
    },
}

/// What happened to dynamic channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DynamicEvent {
    /// 2.2.1 Initializing Dynamic Virtual Channels: capabilities of one side.
    Capabilities {
        /// Where it went.
        direction: Direction,
        /// `Version`.
        version: u16,
    },
    /// 2.2.2.1 DVC Create Request PDU (DYNVC_CREATE_REQ).
    Requested {
        /// `ChannelId`.
        id: u32,
        /// `ChannelName`.
        name: String,
    },
    /// 2.2.2.2 DVC Create Response PDU (DYNVC_CREATE_RSP).
    Answered {
        /// `ChannelId`.
        id: u32,
        /// `ChannelName` of the request; `None` where nobody asked.
        name: Option<String>,
        /// `CreationStatus`: an HRESULT, negative where the client has no such channel.
        status: i32,
    },
    /// 2.2.4 Closing a DVC (DYNVC_CLOSE): the first of the two.
    Closed {
        /// Where it went.
        direction: Direction,
        /// `ChannelId`.
        id: u32,
        /// Its name.
        name: String,
        /// Bytes that went to the target and to the client.
        traffic: DynamicTraffic,
    },
    /// Data for a channel that is not open: it crossed a close, or nobody opened it. The receiver drops it.
    Stray {
        /// Where it went.
        direction: Direction,
        /// `ChannelId`.
        id: u32,
        /// Bytes.
        bytes: u64,
    },
    /// 2.2.5.1 Soft-Sync Request PDU (DYNVC_SOFT_SYNC_REQUEST): the target wants channels on a UDP tunnel.
    SoftSyncRequested {
        /// `Flags`.
        flags: u16,
        /// Tunnel types with the channels that move there.
        tunnels: Vec<SoftSyncTunnel>,
    },
    /// 2.2.5.2 Soft-Sync Response PDU (DYNVC_SOFT_SYNC_RESPONSE).
    SoftSyncAnswered {
        /// `TunnelsToSwitch`.
        tunnels: Vec<u32>,
    },
    /// A `Cmd` that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `Cmd`.
        cmd: u8,
        /// Bytes of the PDU.
        bytes: u64,
    },
}

/// 2.2.5.1.1 Soft-Sync Channel List (DYNVC_SOFT_SYNC_CHANNEL_LIST).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SoftSyncTunnel {
    /// `TunnelType`: 1 is reliable UDP, 3 is lossy.
    pub tunnel_type: u32,
    /// `ListOfDVCIds`.
    pub channels: Vec<u32>,
}

/// What passed on a dynamic channel, bytes of data as sent (compressed where it was).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DynamicTraffic {
    /// From the client.
    pub to_target: u64,
    /// From the target.
    pub to_client: u64,
    /// Whether some of it was compressed.
    pub compressed: bool,
}

/// What happened on the display control channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DisplayEvent {
    /// 2.2.2.1 DISPLAYCONTROL_CAPS_PDU.
    Capabilities {
        /// `MaxNumMonitors`.
        max_monitors: u32,
    },
    /// 2.2.2.2 DISPLAYCONTROL_MONITOR_LAYOUT_PDU.
    Layout {
        /// The monitors.
        monitors: Vec<Monitor>,
    },
    /// A `Type` that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `Type`.
        pdu_type: u32,
        /// Bytes behind the header.
        bytes: u64,
    },
}

/// 2.2.2.2.1 DISPLAYCONTROL_MONITOR_LAYOUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Monitor {
    /// `Left`, pixels.
    pub left: i32,
    /// `Top`, pixels.
    pub top: i32,
    /// `Width`, pixels.
    pub width: u32,
    /// `Height`, pixels.
    pub height: u32,
    /// DISPLAYCONTROL_MONITOR_PRIMARY.
    pub primary: bool,
}

/// What happened on the channel of remote programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RemoteProgramEvent {
    /// 2.2.2.3.1 Client Execute PDU (TS_RAIL_ORDER_EXEC). Arguments may hold secrets: only their length is kept.
    Requested {
        /// `ExeOrFile`.
        program: String,
        /// `WorkingDir`.
        working_directory: String,
        /// `ArgumentsLen`.
        argument_bytes: u16,
    },
    /// 2.2.2.3.2 Server Execute Result PDU (TS_RAIL_ORDER_EXEC_RESULT).
    Answered {
        /// `ExeOrFile`.
        program: String,
        /// `ExecResult`: 0 where it was started.
        result: u16,
    },
    /// An `orderType` that is not specified.
    Unknown {
        /// Where it went.
        direction: Direction,
        /// `orderType`.
        order_type: u16,
        /// Bytes behind the header.
        bytes: u64,
    },
}
