//! [MS-RDPEFS]: drives, printers, ports and smart cards of the client, used by the target.
//!
//! The client announces its devices; the target then sends requests (open, read, write, rename, ...) and the client
//! completes them, in any order. Printers ([MS-RDPEPC]), ports ([MS-RDPESP]) and smart cards ([MS-RDPESC]) use the
//! same requests: a print job is written to a printer, a smart card is spoken to by device control.
//!
//! Requests name a file by what the client called it when it was opened: the path is remembered until it is closed.
//!
//! [MS-RDPEFS]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpefs/
//! [MS-RDPEPC]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpepc/
//! [MS-RDPESP]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpesp/
//! [MS-RDPESC]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpesc/

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Parser;
use super::event::{ChannelEvent, noted};
pub use super::event::{Device, DeviceEvent, DeviceKind, FileUse, Request, RequestTarget};
use super::read::{ChannelError, Reader, narrow_text, only, room, size, utf16_text, wide, within};
use crate::Direction;
use crate::budget::{Budget, Held, places};
use jetway_base::limits;

impl Request {
    /// Whether it can change what is on the device.
    pub fn changes(&self) -> bool {
        match self {
            Self::Open {
                access,
                disposition,
                options,
            } => {
                access & WRITE_ACCESS != 0
                    || *disposition != FILE_OPEN
                    || options & FILE_DELETE_ON_CLOSE != 0
            }
            Self::Write { .. }
            | Self::Control { .. }
            | Self::Rename { .. }
            | Self::Delete { .. }
            | Self::Resize { .. }
            | Self::SetInformation { .. }
            | Self::SetVolume { .. }
            | Self::Other { .. } => true,
            Self::Close
            | Self::Read { .. }
            | Self::QueryInformation { .. }
            | Self::List { .. }
            | Self::Watch
            | Self::QueryVolume { .. }
            | Self::Lock { .. } => false,
        }
    }
}

/// The device channel of one session.
#[derive(Debug)]
pub struct Rdpdr {
    budget: Budget,
    devices: BTreeMap<u32, DeviceKind>,
    /// What covers the places of `devices`.
    device_memory: Held,
    /// Open files, by device and file.
    files: HashMap<(u32, u32), OpenFile>,
    /// Requests without an answer, by device and completion.
    pending: HashMap<(u32, u32), Pending>,
    /// The same for those that are answered when something changes, or never; the oldest is forgotten first.
    watches: VecDeque<Pending>,
    /// What covers the places of the tables of files and requests.
    table_memory: Held,
}

/// A request without an answer.
#[derive(Debug)]
struct Pending {
    target: RequestTarget,
    request: Request,
    /// What covers its texts.
    memory: Held,
}

#[derive(Debug)]
struct OpenFile {
    path: String,
    used: FileUse,
    /// What covers the path.
    memory: Held,
}

impl Rdpdr {
    /// Before the first PDU.
    pub fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            devices: BTreeMap::new(),
            device_memory: budget.nothing(Direction::ToTarget),
            files: HashMap::new(),
            pending: HashMap::new(),
            watches: VecDeque::new(),
            table_memory: budget.nothing(Direction::ToClient),
        }
    }
}

impl Parser for Rdpdr {
    fn feed_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::head(head, total);
        let component = reader.u16("Component")?;
        let packet_id = reader.u16("PacketId")?;
        let bytes = wide(reader.remaining());
        match self.packet(direction, (component, packet_id), &mut reader) {
            // No receiver takes what only its own side sends.
            Err(ChannelError::WrongDirection(_)) => {
                Ok(vec![ChannelEvent::Device(DeviceEvent::Unknown {
                    direction,
                    component,
                    packet_id,
                    bytes,
                })])
            }
            events if is_decided_by(component, packet_id) => events,
            events => noted("rdpdr", direction, events),
        }
    }
}

impl Rdpdr {
    fn packet(
        &mut self,
        direction: Direction,
        (component, packet_id): (u16, u16),
        reader: &mut Reader<'_>,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let event = match (component, packet_id) {
            (RDPDR_CTYP_CORE, PAKID_CORE_SERVER_ANNOUNCE) => {
                only(direction, Direction::ToClient, "Server Announce Request")?;
                announced(direction, reader)?
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_CLIENTID_CONFIRM) => announced(direction, reader)?,
            (RDPDR_CTYP_CORE, PAKID_CORE_CLIENT_NAME) => {
                only(direction, Direction::ToTarget, "Client Name Request")?;
                client_name(reader)?
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_SERVER_CAPABILITY) => {
                only(direction, Direction::ToClient, "Server Core Capability")?;
                capabilities(direction, reader)?
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_CLIENT_CAPABILITY) => {
                only(direction, Direction::ToTarget, "Client Core Capability")?;
                capabilities(direction, reader)?
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_USER_LOGGEDON) => {
                only(direction, Direction::ToClient, "Server User Logged On")?;
                DeviceEvent::UserLoggedOn
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_DEVICELIST_ANNOUNCE) => {
                only(direction, Direction::ToTarget, "Device List Announce")?;
                return self.device_list(reader);
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_DEVICELIST_REMOVE) => {
                only(direction, Direction::ToTarget, "Device List Remove")?;
                return self.devices_removed(reader);
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_DEVICE_REPLY) => {
                only(direction, Direction::ToClient, "Device Announce Response")?;
                DeviceEvent::DeviceAnswered {
                    device: reader.u32("DeviceId")?,
                    status: reader.u32("ResultCode")?,
                }
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_DEVICE_IOREQUEST) => {
                only(direction, Direction::ToClient, "Device I/O Request")?;
                self.request(reader)?
            }
            (RDPDR_CTYP_CORE, PAKID_CORE_DEVICE_IOCOMPLETION) => {
                only(direction, Direction::ToTarget, "Device I/O Response")?;
                self.completion(reader)?
            }
            (RDPDR_CTYP_PRN, PAKID_PRN_CACHE_DATA) => {
                only(direction, Direction::ToClient, "printer cache data")?;
                DeviceEvent::PrinterCache {
                    event_id: reader.u32("EventId")?,
                    bytes: wide(reader.remaining()),
                }
            }
            (RDPDR_CTYP_PRN, PAKID_PRN_USING_XPS) => {
                only(direction, Direction::ToClient, "Set XPS Mode")?;
                let device = reader.u32("PrinterId")?;
                DeviceEvent::PrinterUsesXps { device }
            }
            _ => DeviceEvent::Unknown {
                direction,
                component,
                packet_id,
                bytes: wide(reader.remaining()),
            },
        };
        Ok(vec![ChannelEvent::Device(event)])
    }

    /// Files that are open, with what was done with them so far: kind of the device, device, path.
    pub fn open_files(&self) -> impl Iterator<Item = (Option<DeviceKind>, u32, &str, FileUse)> {
        self.files.iter().map(|((device, _), open)| {
            let kind = self.devices.get(device).copied();
            (kind, *device, open.path.as_str(), open.used)
        })
    }

    fn device_list(&mut self, reader: &mut Reader<'_>) -> Result<Vec<ChannelEvent>, ChannelError> {
        let count = reader.u32("DeviceCount")?;
        let mut events = Vec::new();
        for _ in 0..count {
            let device = device(reader)?;
            if !self.devices.contains_key(&device.id) {
                room(self.devices.len(), limits::DEVICES, "devices")?;
                let bytes = places::<(u32, DeviceKind)>(self.devices.len().saturating_add(1));
                self.device_memory.cover(bytes, "devices")?;
            }
            room(events.len(), limits::DEVICES, "devices")?;
            self.devices.insert(device.id, device.kind);
            events.push(ChannelEvent::Device(DeviceEvent::DeviceAnnounced {
                device,
            }));
        }
        Ok(events)
    }

    fn devices_removed(
        &mut self,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let count = reader.u32("DeviceCount")?;
        let mut events = Vec::new();
        for _ in 0..count {
            room(events.len(), limits::DEVICES, "devices")?;
            let device = reader.u32("DeviceIds")?;
            self.devices.remove(&device);
            self.files.retain(|(of, _), _| *of != device);
            self.pending.retain(|(of, _), _| *of != device);
            self.watches.retain(|watch| watch.target.device != device);
            events.push(ChannelEvent::Device(DeviceEvent::DeviceRemoved { device }));
        }
        Ok(events)
    }

    fn request(&mut self, reader: &mut Reader<'_>) -> Result<DeviceEvent, ChannelError> {
        let device = reader.u32("DeviceId")?;
        let file = reader.u32("FileId")?;
        let completion = reader.u32("CompletionId")?;
        let major = reader.u32("MajorFunction")?;
        let minor = reader.u32("MinorFunction")?;
        let mut path = self
            .files
            .get(&(device, file))
            .map(|open| open.path.clone());
        let request = match major {
            IRP_MJ_CREATE => {
                let (request, opened) = create(reader)?;
                path = Some(opened);
                request
            }
            IRP_MJ_CLOSE => Request::Close,
            IRP_MJ_READ => {
                let (length, offset) = (reader.u32("Length")?, reader.u64("Offset")?);
                Request::Read { offset, length }
            }
            IRP_MJ_WRITE => {
                let (length, offset) = (reader.u32("Length")?, reader.u64("Offset")?);
                // Clients do not do it where there is less; what is written is counted when they have.
                reader.skip(20, "Padding")?;
                Request::Write { offset, length }
            }
            IRP_MJ_DEVICE_CONTROL => {
                reader.skip(4 + 4, "OutputBufferLength")?;
                let code = reader.u32("IoControlCode")?;
                Request::Control { code }
            }
            IRP_MJ_QUERY_INFORMATION => {
                let class = reader.u32("FsInformationClass")?;
                Request::QueryInformation { class }
            }
            IRP_MJ_SET_INFORMATION => set_information(reader)?,
            IRP_MJ_QUERY_VOLUME_INFORMATION => {
                let class = reader.u32("FsInformationClass")?;
                Request::QueryVolume { class }
            }
            IRP_MJ_SET_VOLUME_INFORMATION => {
                let class = reader.u32("FsInformationClass")?;
                Request::SetVolume { class }
            }
            IRP_MJ_DIRECTORY_CONTROL => match minor {
                IRP_MN_QUERY_DIRECTORY => query_directory(reader)?,
                IRP_MN_NOTIFY_CHANGE_DIRECTORY => Request::Watch,
                _ => Request::Other { major, minor },
            },
            IRP_MJ_LOCK_CONTROL => {
                let operation = reader.u32("Operation")?;
                Request::Lock { operation }
            }
            _ => Request::Other { major, minor },
        };
        let target = RequestTarget {
            device,
            device_kind: self.devices.get(&device).copied(),
            completion,
            file,
            path,
        };
        let key = (device, completion);
        let pending = self.remembered(&target, &request)?;
        if request == Request::Watch {
            if self.watches.len() >= WATCHES {
                self.watches.pop_front();
            }
            self.watches.push_back(pending);
        } else {
            // An identifier that is used again: the target has given the first request up.
            if !self.pending.contains_key(&key) {
                room(
                    self.pending.len(),
                    limits::DEVICE_REQUESTS,
                    "device requests without an answer",
                )?;
            }
            self.pending.insert(key, pending);
        }
        self.cover_tables()?;
        Ok(DeviceEvent::Requested { target, request })
    }

    fn completion(&mut self, reader: &mut Reader<'_>) -> Result<DeviceEvent, ChannelError> {
        let device = reader.u32("DeviceId")?;
        let completion = reader.u32("CompletionId")?;
        let status = reader.u32("IoStatus")?;
        let Some(pending) = self.answered(device, completion) else {
            return Ok(DeviceEvent::Unmatched {
                device,
                completion,
                status,
                bytes: wide(reader.remaining()),
            });
        };
        let Pending {
            mut target,
            request,
            memory,
        } = pending;
        // A failed close leaves nothing open either.
        let closed = if request == Request::Close {
            self.closed(&target)
        } else {
            None
        };
        let bytes = if is_error(status) {
            0
        } else {
            self.succeeded(reader, &mut target, &request, memory)?
        };
        Ok(DeviceEvent::Completed {
            target,
            request,
            status,
            bytes,
            closed,
        })
    }

    /// The request that a completion answers.
    fn answered(&mut self, device: u32, completion: u32) -> Option<Pending> {
        self.pending.remove(&(device, completion)).or_else(|| {
            let is_it = |watch: &Pending| {
                (watch.target.device, watch.target.completion) == (device, completion)
            };
            let at = self.watches.iter().position(is_it)?;
            self.watches.remove(at)
        })
    }

    /// Reads what was done, and keeps what it says of the file; returns how many bytes it has read or written.
    fn succeeded(
        &mut self,
        reader: &mut Reader<'_>,
        target: &mut RequestTarget,
        request: &Request,
        memory: Held,
    ) -> Result<u64, ChannelError> {
        let mut bytes = 0;
        match request {
            Request::Open {
                disposition,
                options,
                ..
            } => {
                target.file = reader.u32("FileId")?;
                let used = FileUse {
                    directory: options & FILE_DIRECTORY_FILE != 0,
                    // The other dispositions take a file that is there, too, and `Information` repeats them.
                    created: *disposition == FILE_CREATE,
                    writable: request.changes(),
                    deleted: options & FILE_DELETE_ON_CLOSE != 0,
                    ..FileUse::default()
                };
                self.opened(target, used, memory)?;
            }
            Request::Read { .. } => {
                let length = reader.u32("Length")?;
                reader.skip(size(length), "ReadData")?;
                bytes = length.into();
                if let Some(used) = self.used(target) {
                    used.read = used.read.saturating_add(bytes);
                }
            }
            Request::Write { .. } => {
                bytes = reader.u32("Length")?.into();
                if let Some(used) = self.used(target) {
                    used.written = used.written.saturating_add(bytes);
                }
            }
            Request::QueryInformation { class } => {
                let length = reader.u32("Length")?;
                reader.limit(size(length), "Buffer")?;
                bytes = length.into();
                if *class == FILE_STANDARD_INFORMATION && length >= 22 {
                    reader.skip(8, "AllocationSize")?;
                    let end = reader.u64("EndOfFile")?;
                    reader.skip(4 + 1, "NumberOfLinks")?;
                    let directory = reader.u8("Directory")? != 0;
                    if let Some(used) = self.used(target) {
                        used.size = Some(end);
                        used.directory |= directory;
                    }
                }
            }
            Request::Delete { pending } => {
                if let Some(used) = self.used(target) {
                    used.deleted = *pending;
                }
            }
            Request::Rename { to, .. } => {
                if let Some(open) = self.files.get_mut(&(target.device, target.file)) {
                    open.path.clone_from(to);
                    open.memory
                        .cover(open.path.capacity(), "the path of a file")?;
                }
            }
            Request::Close
            | Request::Resize { .. }
            | Request::SetInformation { .. }
            | Request::Lock { .. }
            | Request::SetVolume { .. } => {}
            Request::Control { .. }
            | Request::List { .. }
            | Request::Watch
            | Request::QueryVolume { .. }
            | Request::Other { .. } => bytes = wide(reader.remaining()),
        }
        Ok(bytes)
    }

    fn used(&mut self, target: &RequestTarget) -> Option<&mut FileUse> {
        let open = self.files.get_mut(&(target.device, target.file));
        open.map(|open| &mut open.used)
    }

    /// A request to remember, with what covers its texts.
    fn remembered(
        &self,
        target: &RequestTarget,
        request: &Request,
    ) -> Result<Pending, ChannelError> {
        let text = match request {
            Request::Rename { to: text, .. } | Request::List { pattern: text } => text.len(),
            Request::Open { .. }
            | Request::Close
            | Request::Read { .. }
            | Request::Write { .. }
            | Request::Control { .. }
            | Request::QueryInformation { .. }
            | Request::Delete { .. }
            | Request::Resize { .. }
            | Request::SetInformation { .. }
            | Request::Watch
            | Request::QueryVolume { .. }
            | Request::SetVolume { .. }
            | Request::Lock { .. }
            | Request::Other { .. } => 0,
        };
        let path = target.path.as_ref().map_or(0, String::len);
        let what = "a device request without an answer";
        let memory = self
            .budget
            .hold(Direction::ToClient, path.saturating_add(text), what)?;
        Ok(Pending {
            target: target.clone(),
            request: request.clone(),
            memory,
        })
    }

    /// Covers the places of the tables, whether something is in them or not.
    fn cover_tables(&mut self) -> Result<(), ChannelError> {
        let bytes = places::<((u32, u32), OpenFile)>(self.files.capacity())
            .saturating_add(places::<((u32, u32), Pending)>(self.pending.capacity()))
            .saturating_add(places::<Pending>(self.watches.capacity()));
        self.table_memory
            .cover(bytes, "tables of device requests and files")?;
        Ok(())
    }

    fn opened(
        &mut self,
        target: &RequestTarget,
        used: FileUse,
        mut memory: Held,
    ) -> Result<(), ChannelError> {
        let key = (target.device, target.file);
        if !self.files.contains_key(&key) {
            room(self.files.len(), limits::DEVICE_OPEN_FILES, "open files")?;
        }
        let path = target.path.clone().unwrap_or_default();
        memory.cover(path.capacity(), "the path of a file")?;
        self.files.insert(key, OpenFile { path, used, memory });
        self.cover_tables()
    }

    fn closed(&mut self, target: &RequestTarget) -> Option<FileUse> {
        let key = (target.device, target.file);
        self.watches
            .retain(|watch| (watch.target.device, watch.target.file) != key);
        self.files.remove(&key).map(|open| open.used)
    }
}

/// Whether something depends on what such a packet says: which devices there are, and what is done with them.
fn is_decided_by(component: u16, packet_id: u16) -> bool {
    component == RDPDR_CTYP_CORE
        && matches!(
            packet_id,
            PAKID_CORE_DEVICELIST_ANNOUNCE
                | PAKID_CORE_DEVICELIST_REMOVE
                | PAKID_CORE_DEVICE_IOREQUEST
                | PAKID_CORE_DEVICE_IOCOMPLETION
        )
}

fn announced(direction: Direction, reader: &mut Reader<'_>) -> Result<DeviceEvent, ChannelError> {
    reader.skip(2, "VersionMajor")?;
    let version_minor = reader.u16("VersionMinor")?;
    reader.skip(4, "ClientId")?;
    Ok(DeviceEvent::Announced {
        direction,
        version_minor,
    })
}

fn client_name(reader: &mut Reader<'_>) -> Result<DeviceEvent, ChannelError> {
    let unicode = reader.u32("UnicodeFlag")? & 1 != 0;
    reader.skip(4, "CodePage")?;
    let length = size(reader.u32("ComputerNameLen")?);
    within(length, NAME_BYTES, "ComputerName")?;
    let bytes = reader.take(length, "ComputerName")?;
    // FreeRDP and rdesktop send UTF-16 and may leave the flag out.
    let name = if unicode || is_wide(bytes) {
        utf16_text(bytes)
    } else {
        narrow_text(bytes)
    };
    Ok(DeviceEvent::ClientNamed { name })
}

fn capabilities(
    direction: Direction,
    reader: &mut Reader<'_>,
) -> Result<DeviceEvent, ChannelError> {
    let count = reader.u16("numCapabilities")?;
    reader.skip(2, "Padding")?;
    let mut sets = Vec::new();
    for _ in 0..count {
        room(sets.len(), CAPABILITY_SETS, "capability sets")?;
        sets.push(reader.u16("CapabilityType")?);
        let length = usize::from(reader.u16("CapabilityLength")?);
        let length = length.checked_sub(4).ok_or(ChannelError::Invalid {
            what: "CapabilityLength",
            value: wide(length),
        })?;
        reader.skip(length, "capability set")?;
    }
    Ok(DeviceEvent::Capabilities { direction, sets })
}

fn device(reader: &mut Reader<'_>) -> Result<Device, ChannelError> {
    let device_type = reader.u32("DeviceType")?;
    let id = reader.u32("DeviceId")?;
    let dos_name = narrow_text(reader.take(8, "PreferredDosName")?);
    let length = size(reader.u32("DeviceDataLength")?);
    let known = length.min(DEVICE_DATA_BYTES);
    let data = reader.take(known, "DeviceData")?;
    reader.skip(length.saturating_sub(known), "DeviceData")?;
    let kind = match device_type {
        0x01 => DeviceKind::Serial,
        0x02 => DeviceKind::Parallel,
        0x04 => DeviceKind::Printer,
        0x08 => DeviceKind::Drive,
        0x20 => DeviceKind::SmartCard,
        other => DeviceKind::Other(other),
    };
    let (name, driver) = match kind {
        // A printer without a name that can be read is one all the same.
        DeviceKind::Printer => printer(data).unwrap_or_default(),
        DeviceKind::Drive if is_wide(data) => (Some(utf16_text(data)), None),
        DeviceKind::Drive if !data.is_empty() => (Some(narrow_text(data)), None),
        DeviceKind::Serial
        | DeviceKind::Parallel
        | DeviceKind::Drive
        | DeviceKind::SmartCard
        | DeviceKind::Other(_) => (None, None),
    };
    Ok(Device {
        id,
        kind,
        dos_name,
        name: name.map(shortened),
        driver: driver.map(shortened),
    })
}

/// The beginning of a name that is longer than names are.
fn shortened(mut name: String) -> String {
    let end = (0..=NAME_BYTES.min(name.len())).rev();
    let end = end.into_iter().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    name
}

/// [MS-RDPEPC] 2.2.2.1 Client Printer Announce (DR_PRN_DEVICE_ANNOUNCE): the printer's name and its driver's.
fn printer(data: &[u8]) -> Result<(Option<String>, Option<String>), ChannelError> {
    let mut reader = Reader::new(data);
    let ascii = reader.u32("Flags")? & RDPDR_PRINTER_ANNOUNCE_FLAG_ASCII != 0;
    reader.skip(4, "CodePage")?;
    let pnp = size(reader.u32("PnPNameLen")?);
    let driver = size(reader.u32("DriverNameLen")?);
    let name = size(reader.u32("PrinterNameLen")?);
    reader.skip(4, "CachedFieldsLen")?;
    reader.skip(pnp, "PnPName")?;
    let text = |bytes| {
        Some(if ascii {
            narrow_text(bytes)
        } else {
            utf16_text(bytes)
        })
    };
    let driver = text(reader.take(driver, "DriverName")?);
    let name = text(reader.take(name, "PrinterName")?);
    Ok((name, driver))
}

/// Whether text of either width, ended by its NUL, is UTF-16: the full name of a drive should be and often is not.
/// Wide text whose first unit happens to be two printable bytes cannot be told from padded narrow text.
fn is_wide(bytes: &[u8]) -> bool {
    let narrow = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_graphic() || **byte == b' ')
        .count();
    let ends_wide = bytes.len().is_multiple_of(2) && bytes.ends_with(&[0, 0]);
    ends_wide && (narrow < 2 || bytes.get(narrow) != Some(&0))
}

fn create(reader: &mut Reader<'_>) -> Result<(Request, String), ChannelError> {
    let access = reader.u32("DesiredAccess")?;
    reader.skip(8 + 4 + 4, "AllocationSize")?;
    let disposition = reader.u32("CreateDisposition")?;
    let options = reader.u32("CreateOptions")?;
    let length = size(reader.u32("PathLength")?);
    let path = path(length, reader)?;
    let request = Request::Open {
        access,
        disposition,
        options,
    };
    Ok((request, path))
}

fn set_information(reader: &mut Reader<'_>) -> Result<Request, ChannelError> {
    let class = reader.u32("FsInformationClass")?;
    let length = size(reader.u32("Length")?);
    reader.skip(24, "Padding")?;
    match known_information(class, length, reader) {
        // Clients answer that it cannot be done.
        Err(ChannelError::Truncated(_)) => Ok(Request::SetInformation { class }),
        request => request,
    }
}

fn known_information(
    class: u32,
    length: usize,
    reader: &mut Reader<'_>,
) -> Result<Request, ChannelError> {
    Ok(match class {
        FILE_RENAME_INFORMATION => {
            let replace = reader.u8("ReplaceIfExists")? != 0;
            reader.skip(1, "RootDirectory")?;
            let length = size(reader.u32("FileNameLength")?);
            let to = path(length, reader)?;
            Request::Rename { to, replace }
        }
        // 2.2.3.3.9: without a buffer DeletePending is to be taken as set.
        FILE_DISPOSITION_INFORMATION => Request::Delete {
            pending: length == 0 || reader.u8("DeletePending")? != 0,
        },
        FILE_END_OF_FILE_INFORMATION => Request::Resize {
            end_of_file: reader.u64("EndOfFile")?,
        },
        _ => Request::SetInformation { class },
    })
}

fn query_directory(reader: &mut Reader<'_>) -> Result<Request, ChannelError> {
    reader.skip(4, "FsInformationClass")?;
    let initial = reader.u8("InitialQuery")? != 0;
    let length = size(reader.u32("PathLength")?);
    reader.skip(23, "Padding")?;
    // 2.2.3.3.10: of the later queries the path is to be ignored.
    let pattern = if initial {
        path(length, reader)?
    } else {
        String::new()
    };
    Ok(Request::List { pattern })
}

fn path(length: usize, reader: &mut Reader<'_>) -> Result<String, ChannelError> {
    // [MS-RDPEFS] 4.12 has a path of one byte, of a smart card.
    let length = if length == 1 { 0 } else { length };
    reader.utf16(length, limits::DEVICE_PATH_BYTES, "path")
}

/// The severity of an NTSTATUS is "error"; warnings such as STATUS_BUFFER_OVERFLOW come with data.
fn is_error(status: u32) -> bool {
    status >> 30 == 3
}

const RDPDR_CTYP_CORE: u16 = 0x4472;
const RDPDR_CTYP_PRN: u16 = 0x5052;

const PAKID_CORE_SERVER_ANNOUNCE: u16 = 0x496e;
const PAKID_CORE_CLIENTID_CONFIRM: u16 = 0x4343;
const PAKID_CORE_CLIENT_NAME: u16 = 0x434e;
const PAKID_CORE_DEVICELIST_ANNOUNCE: u16 = 0x4441;
const PAKID_CORE_DEVICE_REPLY: u16 = 0x6472;
const PAKID_CORE_DEVICE_IOREQUEST: u16 = 0x4952;
const PAKID_CORE_DEVICE_IOCOMPLETION: u16 = 0x4943;
const PAKID_CORE_SERVER_CAPABILITY: u16 = 0x5350;
const PAKID_CORE_CLIENT_CAPABILITY: u16 = 0x4350;
const PAKID_CORE_DEVICELIST_REMOVE: u16 = 0x444d;
const PAKID_CORE_USER_LOGGEDON: u16 = 0x554c;
const PAKID_PRN_CACHE_DATA: u16 = 0x5043;
const PAKID_PRN_USING_XPS: u16 = 0x5543;

const IRP_MJ_CREATE: u32 = 0x00;
const IRP_MJ_CLOSE: u32 = 0x02;
const IRP_MJ_READ: u32 = 0x03;
const IRP_MJ_WRITE: u32 = 0x04;
const IRP_MJ_QUERY_INFORMATION: u32 = 0x05;
const IRP_MJ_SET_INFORMATION: u32 = 0x06;
const IRP_MJ_QUERY_VOLUME_INFORMATION: u32 = 0x0a;
const IRP_MJ_SET_VOLUME_INFORMATION: u32 = 0x0b;
const IRP_MJ_DIRECTORY_CONTROL: u32 = 0x0c;
const IRP_MJ_DEVICE_CONTROL: u32 = 0x0e;
const IRP_MJ_LOCK_CONTROL: u32 = 0x11;
const IRP_MN_QUERY_DIRECTORY: u32 = 0x01;
const IRP_MN_NOTIFY_CHANGE_DIRECTORY: u32 = 0x02;

const FILE_STANDARD_INFORMATION: u32 = 0x05;
const FILE_RENAME_INFORMATION: u32 = 0x0a;
const FILE_DISPOSITION_INFORMATION: u32 = 0x0d;
const FILE_END_OF_FILE_INFORMATION: u32 = 0x14;

/// `CreateDisposition`: open what exists.
const FILE_OPEN: u32 = 1;
/// Make what does not exist.
const FILE_CREATE: u32 = 2;
const FILE_DIRECTORY_FILE: u32 = 0x0000_0001;
const FILE_DELETE_ON_CLOSE: u32 = 0x0000_1000;

/// GENERIC_ALL, GENERIC_WRITE, MAXIMUM_ALLOWED, WRITE_OWNER, WRITE_DAC, DELETE, FILE_WRITE_ATTRIBUTES,
/// FILE_DELETE_CHILD, FILE_WRITE_EA, FILE_APPEND_DATA, FILE_WRITE_DATA.
const WRITE_ACCESS: u32 = 0x520d_0156;

const RDPDR_PRINTER_ANNOUNCE_FLAG_ASCII: u32 = 0x0000_0001;

/// Watches that are remembered; FreeRDP never answers one.
const WATCHES: usize = 256;

/// Computer, printer and driver names have at most 255 characters.
const NAME_BYTES: usize = 1024;

/// A printer's data holds its cached configuration.
const DEVICE_DATA_BYTES: usize = 1024 * 1024;

/// Five are specified.
const CAPABILITY_SETS: usize = 32;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;

    /// [MS-RDPEPC] 4.1.1: two printers and a port of a Windows client.
    const PRINTERS: &str = "7244414403000000\
        040000000400000050524e34000000005000000010000000000000000000000 01c0000001c00000000000000\
        410070006f006c006c006f00200050002d0031003200300030000000\
        410070006f006c006c006f00200050002d0031003200300030000000\
        040000000300000050524e33000000007400000012000000000000000000000 02e0000002e00000000000000\
        430061006e006f006e00200042007500620062006c0065002d004a0065007400200042004a002d00330030000000\
        430061006e006f006e00200042007500620062006c0065002d004a0065007400200042004a002d00330030000000\
        02000000020000004c5054310000000000000000";

    /// [MS-RDPEFS] 4.12 Server Create Drive Request.
    const CREATE: &str = "724452490300000000000000010000000000000000000000\
        800000000000000000000000000000000000000007000000010000000100000000000000";

    #[test]
    fn the_announcement_of_the_specification_is_read() {
        let mut channel = Rdpdr::new(&Budget::default());
        let devices: Vec<_> = channel
            .feed(ToTarget, &unhex(PRINTERS))
            .unwrap()
            .into_iter()
            .map(|event| {
                let ChannelEvent::Device(DeviceEvent::DeviceAnnounced { device }) = event else {
                    panic!("{event:?}")
                };
                device
            })
            .collect();
        let printer = |id, dos_name: &str, name: &str| Device {
            id,
            kind: DeviceKind::Printer,
            dos_name: dos_name.to_owned(),
            name: Some(name.to_owned()),
            driver: Some(name.to_owned()),
        };
        let port = Device {
            id: 2,
            kind: DeviceKind::Parallel,
            dos_name: "LPT1".to_owned(),
            name: None,
            driver: None,
        };
        let expected = [
            printer(4, "PRN4", "Apollo P-1200"),
            printer(3, "PRN3", "Canon Bubble-Jet BJ-30"),
            port,
        ];
        assert_eq!(devices, expected);
    }

    #[test]
    fn the_create_request_of_the_specification_is_read() {
        let event = Rdpdr::new(&Budget::default()).one(ToClient, &unhex(CREATE));
        let DeviceEvent::Requested { target, request } = event else {
            panic!("{event:?}")
        };
        assert_eq!((target.device, target.completion), (3, 1));
        assert_eq!(target.path.as_deref(), Some(""));
        let expected = Request::Open {
            access: 0x80,
            disposition: 7,
            options: 1,
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn a_print_job_is_what_was_written_until_the_close() {
        let mut channel = Rdpdr::new(&Budget::default());
        channel.feed(ToTarget, &unhex(PRINTERS)).unwrap();
        open(&mut channel, 4, 9, FILE_OPEN, "");
        for length in [100_u32, 23] {
            let data = [0x55; 100];
            let body = [
                &length.to_le_bytes()[..],
                &[0; 28],
                &data[..usize::try_from(length).unwrap()],
            ]
            .concat();
            channel.one(ToClient, &request(4, 9, 5, IRP_MJ_WRITE, 0, &body));
            channel.one(ToTarget, &completion(4, 5, 0, &length.to_le_bytes()));
        }
        let used = close(&mut channel, 4, 9).unwrap();
        assert_eq!(used.written, 123);
    }

    #[test]
    fn a_delete_without_a_buffer_is_a_delete() {
        let mut channel = Rdpdr::new(&Budget::default());
        open(&mut channel, 1, 1, FILE_OPEN, "\\gone");
        let body = [&13_u32.to_le_bytes()[..], &[0; 28]].concat();
        let event = channel.one(
            ToClient,
            &request(1, 1, 2, IRP_MJ_SET_INFORMATION, 0, &body),
        );
        let DeviceEvent::Requested { target, request } = event else {
            panic!("{event:?}")
        };
        assert_eq!(request, Request::Delete { pending: true });
        assert_eq!(target.path.as_deref(), Some("\\gone"));
        channel.one(ToTarget, &completion(1, 2, 0, &[0; 4]));
        assert!(close(&mut channel, 1, 1).unwrap().deleted);
    }

    #[test]
    fn a_refused_open_opens_nothing_and_a_failed_close_leaves_nothing_open() {
        let mut channel = Rdpdr::new(&Budget::default());
        channel.one(ToClient, &create(1, 1, FILE_OPEN, "\\no"));
        channel.one(ToTarget, &completion(1, 1, 0xc000_0022, &[0; 5]));
        assert_eq!(channel.files.len(), 0);
        open(&mut channel, 1, 1, FILE_OPEN, "\\yes");
        channel.one(ToClient, &request(1, 1, 1, IRP_MJ_CLOSE, 0, &[0; 32]));
        channel.one(ToTarget, &completion(1, 1, 0xc000_0001, &[]));
        assert_eq!(channel.files.len(), 0);
    }

    #[test]
    fn watches_that_are_never_answered_do_not_end_a_session() {
        let mut channel = Rdpdr::new(&Budget::default());
        for id in 0..10_000 {
            let watch = request(1, 1, id, IRP_MJ_DIRECTORY_CONTROL, 2, &[0; 32]);
            channel.one(ToClient, &watch);
        }
        assert_eq!(channel.watches.len(), WATCHES);
        assert_eq!(channel.pending.len(), 0);
        assert!(matches!(
            channel.one(ToTarget, &completion(1, 9_999, 0x0000_010c, &[0; 4])),
            DeviceEvent::Completed {
                request: Request::Watch,
                ..
            }
        ));
        assert!(matches!(
            channel.one(ToTarget, &completion(1, 3, 0, &[])),
            DeviceEvent::Unmatched { completion: 3, .. }
        ));
    }

    #[test]
    fn what_a_peer_can_make_us_hold_is_bounded() {
        let mut channel = Rdpdr::new(&Budget::default());
        for id in 0..u32::try_from(limits::DEVICE_REQUESTS).unwrap() {
            channel.one(ToClient, &create(1, id, FILE_OPEN, "x"));
        }
        // Used again, given up: no more than before.
        channel.one(ToClient, &create(1, 0, FILE_OPEN, "x"));
        channel
            .feed(ToClient, &create(1, u32::MAX, FILE_OPEN, "x"))
            .unwrap_err();

        let mut channel = Rdpdr::new(&Budget::default());
        for id in 0..u32::try_from(limits::DEVICE_OPEN_FILES).unwrap() {
            open(&mut channel, 1, id, FILE_OPEN, "x");
        }
        channel.one(ToClient, &create(1, 1, FILE_OPEN, "x"));
        channel
            .feed(ToTarget, &completion(1, 1, 0, &[0xff, 0xff, 0xff, 0xff, 1]))
            .unwrap_err();

        let path = "x".repeat(limits::DEVICE_PATH_BYTES / 2 + 1);
        Rdpdr::new(&Budget::default())
            .feed(ToClient, &create(1, 1, FILE_OPEN, &path))
            .unwrap_err();
        let mut list = unhex("7244414401010000");
        for id in 0..257_u32 {
            list.extend([0x20, 0, 0, 0]);
            list.extend(id.to_le_bytes());
            list.extend(b"SCARD\0\0\0\0\0\0\0");
        }
        Rdpdr::new(&Budget::default())
            .feed(ToTarget, &list)
            .unwrap_err();
    }

    #[test]
    fn the_wrong_side_and_the_unknown_are_told_apart() {
        // No target takes it, and it opens nothing.
        let mut channel = Rdpdr::new(&Budget::default());
        let event = channel.one(ToTarget, &unhex(CREATE));
        assert!(matches!(event, DeviceEvent::Unknown { .. }), "{event:?}");
        assert_eq!(channel.pending.len(), 0);
        assert_eq!(
            Rdpdr::new(&Budget::default()).one(ToTarget, b"rDxx123"),
            DeviceEvent::Unknown {
                direction: ToTarget,
                component: RDPDR_CTYP_CORE,
                packet_id: 0x7878,
                bytes: 3
            }
        );
    }

    #[test]
    fn what_nothing_depends_on_is_noted_and_passes() {
        let mut channel = Rdpdr::new(&Budget::default());
        // Server Announce Request, capabilities and a reply to a device, all cut off.
        for pdu in [&b"rDnI\x01\0"[..], b"rDPS\x05\0\0\0", b"rDrd\x01\0"] {
            let events = channel.feed(ToClient, pdu).unwrap();
            assert!(
                matches!(events[..], [ChannelEvent::Unreadable(_)]),
                "{events:?}"
            );
        }
        // Of a device that is cut off nobody knows what it is.
        channel.feed(ToTarget, b"rDAD\x01\0\0\0\x08\0").unwrap_err();
        // A printer whose data are none, and a rename that says not to what.
        let printer = unhex("7244414401000000 04000000 09000000 50524e3900000000 02000000 0000");
        let event = channel.one(ToTarget, &printer);
        assert!(matches!(
            event,
            DeviceEvent::DeviceAnnounced { device } if device.kind == DeviceKind::Printer
        ));
        let body = [&FILE_RENAME_INFORMATION.to_le_bytes()[..], &[0; 28]].concat();
        let event = channel.one(
            ToClient,
            &request(1, 1, 2, IRP_MJ_SET_INFORMATION, 0, &body),
        );
        let DeviceEvent::Requested { request, .. } = event else {
            panic!("{event:?}")
        };
        let class = FILE_RENAME_INFORMATION;
        assert_eq!(request, Request::SetInformation { class });
        assert!(request.changes());
    }

    #[test]
    fn the_name_of_a_drive_is_read_in_either_width() {
        for (data, wide) in [
            (&b"lab\0"[..], false),
            (b"l\0a\0b\0\0\0", true),
            (b"C\0\0\0", true),
            (b"\xac\x4e\0\0", true),
            (b"C\0", false),
            (b"ab\0\0", false),
        ] {
            assert_eq!(is_wide(data), wide, "{data:02x?}");
        }
    }

    #[test]
    fn what_can_change_a_device_is_known() {
        let open = |access, disposition, options| Request::Open {
            access,
            disposition,
            options,
        };
        assert!(!open(0x0012_0089, FILE_OPEN, 0x60).changes());
        assert!(open(0x0012_019f, FILE_OPEN, 0x60).changes());
        assert!(open(0x0012_0089, 2, 0x60).changes());
        assert!(open(0x0001_0000, FILE_OPEN, 0).changes());
        assert!(open(0x80, FILE_OPEN, FILE_DELETE_ON_CLOSE).changes());
    }

    #[test]
    fn what_is_made_is_told_from_what_is_opened() {
        let mut channel = Rdpdr::new(&Budget::default());
        for (disposition, made) in [(FILE_OPEN, false), (FILE_CREATE, true), (5, false)] {
            open(&mut channel, 1, 9, disposition, "folder");
            assert_eq!(close(&mut channel, 1, 9).unwrap().created, made);
        }
    }

    impl Rdpdr {
        fn one(&mut self, direction: Direction, pdu: &[u8]) -> DeviceEvent {
            let event = self.feed(direction, pdu).unwrap().remove(0);
            let ChannelEvent::Device(event) = event else {
                panic!("{event:?}")
            };
            event
        }
    }

    fn open(channel: &mut Rdpdr, device: u32, file: u32, disposition: u32, path: &str) {
        channel.one(ToClient, &create(device, 77, disposition, path));
        let body = [&file.to_le_bytes()[..], &[1]].concat();
        channel.one(ToTarget, &completion(device, 77, 0, &body));
    }

    fn close(channel: &mut Rdpdr, device: u32, file: u32) -> Option<FileUse> {
        channel.one(
            ToClient,
            &request(device, file, 78, IRP_MJ_CLOSE, 0, &[0; 32]),
        );
        let event = channel.one(ToTarget, &completion(device, 78, 0, &[0; 4]));
        let DeviceEvent::Completed { closed, .. } = event else {
            panic!("{event:?}")
        };
        closed
    }

    fn create(device: u32, completion: u32, disposition: u32, path: &str) -> Vec<u8> {
        let path: Vec<u8> = path
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let length = u32::try_from(path.len()).unwrap();
        let body = [
            &0x80_u32.to_le_bytes()[..],
            &[0; 16],
            &disposition.to_le_bytes(),
            &[0; 4],
            &length.to_le_bytes(),
            &path,
        ]
        .concat();
        request(device, 0, completion, IRP_MJ_CREATE, 0, &body)
    }

    fn request(
        device: u32,
        file: u32,
        completion: u32,
        major: u32,
        minor: u32,
        body: &[u8],
    ) -> Vec<u8> {
        let mut bytes = b"rDRI".to_vec();
        for field in [device, file, completion, major, minor] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(body);
        bytes
    }

    fn completion(device: u32, completion: u32, status: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"rDCI".to_vec();
        for field in [device, completion, status] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(body);
        bytes
    }

    fn unhex(text: &str) -> Vec<u8> {
        hex::decode(text.replace(' ', "")).unwrap()
    }
}
