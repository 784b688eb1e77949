//! [MS-RDPECLIP]: the clipboard that both sides share.
//!
//! Each side announces the formats that its clipboard has (Format List), the other asks for one of them (Format Data
//! Request) and gets it. Files are a format of their own: their data is a list of names and sizes, and the contents
//! are asked for piece by piece with indices into that list. A list that is locked stays valid after the next one.
//!
//! Answers with data carry no identifier of what they answer. There is one request at a time (3.1.5.4): who asks again
//! has given up what they asked for before, so that an answer belongs to the last request, and whoever asked reads it so.
//! A new Format List of the side that was asked ends what was open. Its answer may still be on the way, and is read if it
//! is a list of files; otherwise it is reported without a format, as is an answer that nobody asked for.
//!
//! [MS-RDPECLIP]: https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpeclip/

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::Parser;
use super::event::ChannelEvent;
pub use super::event::{ClipboardEvent, ClipboardFile, FilePart, FileRange, Format};
use super::read::{ChannelError, Reader, narrow_text, room, size, utf16_text, within};
use crate::Direction;
use crate::budget::{Budget, Held, places};
use jetway_base::limits;

/// The clipboard channel of one session.
#[derive(Debug)]
pub struct Cliprdr {
    budget: Budget,
    /// What the client announced, and what it has copied.
    client: Side,
    /// What the target announced, and what it has copied.
    target: Side,
}

/// What is known of one side.
#[derive(Debug)]
struct Side {
    /// CB_USE_LONG_FORMAT_NAMES.
    long_names: bool,
    /// The formats it offered last, and behind them those with a name that it offered before: the other side may ask for
    /// one of them yet, and a list of files must not pass unread because an offer crossed the request.
    formats: Vec<Format>,
    /// What covers them.
    format_memory: Held,
    /// The files it listed last: indices mean these until another list has been asked for.
    files: Option<Arc<FileList>>,
    /// Lists that the other side locked, by `clipDataId`.
    locked: HashMap<u32, Option<Arc<FileList>>>,
    /// What the other side asked it for last.
    data: Option<Asked>,
    /// What the other side asked it for, of files; the oldest is forgotten first.
    parts: VecDeque<(FilePart, Held)>,
    /// What covers the places of `locked` and of `parts`.
    table_memory: Held,
}

/// A request for data.
#[derive(Debug)]
struct Asked {
    format: Format,
    /// It was asked for before the last Format List, or receivers do not agree on what it is.
    doubtful: bool,
    _memory: Held,
}

/// A list of files, for as long as it is the last one or is locked.
#[derive(Debug)]
struct FileList {
    /// Their names; contents are asked for by position.
    names: Vec<String>,
    _memory: Held,
}

impl Side {
    /// One that speaks in this direction.
    fn new(budget: &Budget, direction: Direction) -> Self {
        Self {
            long_names: false,
            formats: Vec::new(),
            format_memory: budget.nothing(direction),
            files: None,
            locked: HashMap::new(),
            data: None,
            parts: VecDeque::new(),
            // The other side asks, and locks.
            table_memory: budget.nothing(direction.opposite()),
        }
    }

    /// Covers the places of the tables, whether something is in them or not.
    fn cover_tables(&mut self) -> Result<(), ChannelError> {
        let bytes = places::<(u32, Option<Arc<FileList>>)>(self.locked.capacity())
            .saturating_add(places::<(FilePart, Held)>(self.parts.capacity()));
        self.table_memory
            .cover(bytes, "tables of clipboard requests")?;
        Ok(())
    }
}

impl Cliprdr {
    /// Before the first PDU.
    pub fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            client: Side::new(budget, Direction::ToTarget),
            target: Side::new(budget, Direction::ToClient),
        }
    }
}

impl Parser for Cliprdr {
    fn feed_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        total: usize,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let mut reader = Reader::head(head, total);
        let msg_type = reader.u16("msgType")?;
        let msg_flags = reader.u16("msgFlags")?;
        let data_len = reader.u32("dataLen")?;
        reader.limit(size(data_len), "clipboard data")?;
        let event = match msg_type {
            CB_MONITOR_READY if direction == Direction::ToClient => ClipboardEvent::MonitorReady,
            CB_CLIP_CAPS => self.capabilities(direction, &mut reader)?,
            CB_TEMP_DIRECTORY if direction == Direction::ToTarget => {
                let path = reader.utf16_z(TEMP_DIRECTORY_BYTES, "wszTempDir")?;
                ClipboardEvent::TemporaryDirectory { path }
            }
            CB_FORMAT_LIST => self.format_list(direction, msg_flags, &mut reader)?,
            CB_FORMAT_LIST_RESPONSE => ClipboardEvent::OfferAnswered {
                direction,
                ok: Answer::of(msg_flags) != Answer::Failed,
            },
            CB_FORMAT_DATA_REQUEST => self.data_request(direction, &mut reader)?,
            CB_FORMAT_DATA_RESPONSE => {
                return self.data_response(direction, msg_flags, &mut reader);
            }
            CB_FILECONTENTS_REQUEST => self.file_request(direction, &mut reader)?,
            CB_FILECONTENTS_RESPONSE => self.file_response(direction, msg_flags, &mut reader)?,
            CB_LOCK_CLIPDATA => {
                let id = reader.u32("clipDataId")?;
                let owner = self.side(direction.opposite());
                if !owner.locked.contains_key(&id) {
                    room(
                        owner.locked.len(),
                        limits::CLIPBOARD_LOCKS,
                        "clipboard locks",
                    )?;
                }
                let files = owner.files.clone();
                owner.locked.insert(id, files);
                owner.cover_tables()?;
                ClipboardEvent::Locked { direction, id }
            }
            CB_UNLOCK_CLIPDATA => {
                let id = reader.u32("clipDataId")?;
                self.side(direction.opposite()).locked.remove(&id);
                ClipboardEvent::Unlocked { direction, id }
            }
            _ => ClipboardEvent::Unknown {
                direction,
                msg_type,
                bytes: data_len.into(),
            },
        };
        Ok(vec![ChannelEvent::Clipboard(event)])
    }
}

impl Cliprdr {
    /// The side that sends in `direction`.
    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::ToTarget => &mut self.client,
            Direction::ToClient => &mut self.target,
        }
    }

    fn capabilities(
        &mut self,
        direction: Direction,
        reader: &mut Reader<'_>,
    ) -> Result<ClipboardEvent, ChannelError> {
        let count = reader.u16("cCapabilitiesSets")?;
        reader.skip(2, "pad1")?;
        let mut general_flags = 0;
        for _ in 0..count {
            let set_type = reader.u16("capabilitySetType")?;
            let length = usize::from(reader.u16("lengthCapability")?);
            let length = length.checked_sub(4).ok_or(ChannelError::Invalid {
                what: "lengthCapability",
                value: super::wide(length),
            })?;
            if set_type == CB_CAPSTYPE_GENERAL {
                // Receivers read both fields, whatever the length of the set.
                let mut set = reader.clone();
                set.skip(4, "version")?;
                general_flags = set.u32("generalFlags")?;
            }
            reader.skip(length, "capability set")?;
        }
        self.side(direction).long_names = general_flags & CB_USE_LONG_FORMAT_NAMES != 0;
        Ok(ClipboardEvent::Capabilities {
            direction,
            general_flags,
        })
    }

    fn format_list(
        &mut self,
        direction: Direction,
        msg_flags: u16,
        reader: &mut Reader<'_>,
    ) -> Result<ClipboardEvent, ChannelError> {
        // 3.1.5.2.2: long names need both; without both they are short.
        let agreed_long = self.client.long_names && self.target.long_names;
        let (formats, otherwise) = offered(agreed_long, msg_flags & CB_ASCII_NAMES != 0, reader)?;
        let owner = self.side(direction);
        let mut ids: HashSet<(u32, Option<&str>)> = HashSet::new();
        let earlier = std::mem::take(&mut owner.formats);
        let offered: HashSet<u32> = formats.iter().map(|format| format.id).collect();
        let earlier = earlier
            .iter()
            .filter(|format| format.name.is_some() && !offered.contains(&format.id));
        let known = formats.iter().chain(&otherwise).chain(earlier);
        let known = known
            .filter(|format| ids.insert((format.id, format.name.as_deref())))
            .cloned();
        owner.formats = known.take(limits::CLIPBOARD_FORMATS).collect();
        let texts = owner
            .formats
            .iter()
            .filter_map(|format| format.name.as_ref());
        let bytes = texts.map(String::capacity).fold(
            places::<Format>(owner.formats.capacity()),
            usize::saturating_add,
        );
        owner.format_memory.cover(bytes, "clipboard formats")?;
        if let Some(asked) = &mut owner.data {
            asked.doubtful = true;
        }
        Ok(ClipboardEvent::Offered { direction, formats })
    }

    fn data_request(
        &mut self,
        direction: Direction,
        reader: &mut Reader<'_>,
    ) -> Result<ClipboardEvent, ChannelError> {
        let id = reader.u32("requestedFormatId")?;
        let budget = self.budget.clone();
        let owner = self.side(direction.opposite());
        let mut offered: Vec<_> = owner
            .formats
            .iter()
            .filter(|format| format.id == id)
            .collect();
        let doubtful = offered.len() > 1;
        // What would be files to some is read as files.
        offered.sort_by_key(|format| !format.is_file_list());
        let format = match offered.first() {
            Some(format) => Format::clone(format),
            None => Format { id, name: None },
        };
        let bytes = format.name.as_ref().map_or(0, String::len);
        owner.data = Some(Asked {
            format: format.clone(),
            doubtful,
            _memory: budget.hold(direction, bytes, "a clipboard request")?,
        });
        Ok(ClipboardEvent::Requested { direction, format })
    }

    fn data_response(
        &mut self,
        direction: Direction,
        msg_flags: u16,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<ChannelEvent>, ChannelError> {
        let answer = Answer::of(msg_flags);
        let budget = self.budget.clone();
        let owner = self.side(direction);
        let (format, doubtful) = match owner.data.take() {
            Some(asked) => (Some(asked.format), asked.doubtful),
            None => (None, false),
        };
        let is_files = format.as_ref().is_some_and(Format::is_file_list);
        let bytes = super::wide(reader.remaining());
        let ok = answer != Answer::Failed;
        let files = match (ok && is_files).then(|| file_list(reader)) {
            // It may be the answer to what was asked for since, of which nothing is known; or none at all.
            Some(Err(_)) if doubtful || answer == Answer::Unclear => None,
            Some(Err(ChannelError::Truncated(_) | ChannelError::TooLong { .. })) => {
                Some(file_list_as_far_as_it_goes(reader)?)
            }
            files => files.transpose()?,
        };
        let format = format.filter(|_| !doubtful || files.is_some());
        let mut events = vec![ChannelEvent::Clipboard(ClipboardEvent::Sent {
            direction,
            format,
            ok,
            bytes,
        })];
        if let Some(files) = files {
            let names = files.iter().map(|file| file.name.len());
            let bytes = names.fold(places::<String>(files.len()), usize::saturating_add);
            let what = "names of files on the clipboard";
            // The last one is not needed any more, unless it is locked.
            owner.files = None;
            let memory = budget.hold(direction, bytes, what)?;
            owner.files = Some(Arc::new(FileList {
                names: files.iter().map(|file| file.name.clone()).collect(),
                _memory: memory,
            }));
            events.push(ChannelEvent::Clipboard(ClipboardEvent::FilesListed {
                direction,
                files,
            }));
        }
        Ok(events)
    }

    fn file_request(
        &mut self,
        direction: Direction,
        reader: &mut Reader<'_>,
    ) -> Result<ClipboardEvent, ChannelError> {
        let stream = reader.u32("streamId")?;
        let index = reader.u32("lindex")?;
        let flags = reader.u32("dwFlags")?;
        let low = reader.u32("nPositionLow")?;
        let high = reader.u32("nPositionHigh")?;
        let length = reader.u32("cbRequested")?;
        let lock = match reader.remaining() {
            0..4 => None,
            _ => Some(reader.u32("clipDataId")?),
        };
        // 2.2.5.3: the two flags MUST NOT be set at the same time. Receivers answer that nothing can be had; what they
        // send all the same counts as contents.
        let range = match flags & (FILECONTENTS_SIZE | FILECONTENTS_RANGE) {
            FILECONTENTS_SIZE => FileRange::Size,
            _ => FileRange::Contents {
                offset: u64::from(high) << 32 | u64::from(low),
                length,
            },
        };
        let budget = self.budget.clone();
        let owner = self.side(direction.opposite());
        if owner.parts.len() >= limits::CLIPBOARD_REQUESTS {
            owner.parts.pop_front();
        }
        let locked = lock.and_then(|id| owner.locked.get(&id)).cloned();
        let files = locked.unwrap_or_else(|| owner.files.clone());
        let name = files
            .as_deref()
            .and_then(|files| files.names.get(size(index)))
            .cloned();
        let part = FilePart {
            stream,
            index,
            name,
            range,
        };
        let bytes = part.name.as_ref().map_or(0, String::len);
        let memory = budget.hold(direction, bytes, "a request for a copied file")?;
        owner.parts.push_back((part.clone(), memory));
        owner.cover_tables()?;
        Ok(ClipboardEvent::FileRequested { direction, part })
    }

    fn file_response(
        &mut self,
        direction: Direction,
        msg_flags: u16,
        reader: &mut Reader<'_>,
    ) -> Result<ClipboardEvent, ChannelError> {
        let ok = Answer::of(msg_flags) != Answer::Failed;
        // A failure may come without its stream.
        let stream = match reader.remaining() {
            0..4 if !ok => None,
            _ => Some(reader.u32("streamId")?),
        };
        let owner = self.side(direction);
        let at = match stream {
            Some(stream) => owner
                .parts
                .iter()
                .position(|(part, _)| part.stream == stream),
            None => Some(0),
        };
        Ok(ClipboardEvent::FileSent {
            direction,
            part: at
                .and_then(|at| owner.parts.remove(at))
                .map(|(part, _)| part),
            ok,
            bytes: super::wide(reader.remaining()),
        })
    }
}

/// The formats of a list as they were agreed to be written, and those with a name in it by the other reading.
///
/// Targets send long names although short ones were agreed, which mstsc and Microsoft's client for the Mac take and
/// FreeRDP does not. Whoever takes them finds other formats in the list than others do: the names by both readings are
/// remembered, so that a list of files is known by the one that its receiver has.
fn offered(
    long: bool,
    ascii: bool,
    reader: &Reader<'_>,
) -> Result<(Vec<Format>, Vec<Format>), ChannelError> {
    let form = |long| match (long, ascii) {
        (true, _) => NameForm::Long,
        (false, true) => NameForm::ShortAscii,
        (false, false) => NameForm::Short,
    };
    match formats(form(long), &mut reader.clone()) {
        Ok(agreed) => {
            let mut otherwise = Vec::new();
            let mut reader = reader.clone();
            while otherwise.len() < limits::CLIPBOARD_FORMATS
                && let Ok(Some(format)) = next_format(form(!long), &mut reader)
            {
                if format.is_file_list() {
                    otherwise.push(format);
                }
            }
            Ok((agreed, otherwise))
        }
        // Short names are not taken for long ones by anybody.
        Err(ChannelError::Truncated(_)) if !long => {
            Ok((formats(NameForm::Long, &mut reader.clone())?, Vec::new()))
        }
        Err(error) => Err(error),
    }
}

/// How names of formats are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameForm {
    /// 2.2.3.1.1.1 Short Format Name (CLIPRDR_SHORT_FORMAT_NAME): 32 bytes each.
    Short,
    /// The same with CB_ASCII_NAMES.
    ShortAscii,
    /// 2.2.3.1.2.1 Long Format Name (CLIPRDR_LONG_FORMAT_NAME): each as long as it is.
    Long,
}

fn formats(form: NameForm, reader: &mut Reader<'_>) -> Result<Vec<Format>, ChannelError> {
    let mut formats = Vec::new();
    while let Some(format) = next_format(form, reader)? {
        room(
            formats.len(),
            limits::CLIPBOARD_FORMATS,
            "clipboard formats",
        )?;
        formats.push(format);
    }
    Ok(formats)
}

fn next_format(form: NameForm, reader: &mut Reader<'_>) -> Result<Option<Format>, ChannelError> {
    // Fewer bytes are no format: clients leave them.
    if reader.remaining() < FORMAT_ID_BYTES {
        return Ok(None);
    }
    let id = reader.u32("formatId")?;
    let name = match form {
        NameForm::Short => utf16_text(reader.take(SHORT_NAME_BYTES, "formatName")?),
        NameForm::ShortAscii => narrow_text(reader.take(SHORT_NAME_BYTES, "formatName")?),
        NameForm::Long => reader.utf16_z(LONG_NAME_BYTES, "wszFormatName")?,
    };
    Ok(Some(Format::new(id, name)))
}

impl Format {
    fn new(id: u32, name: String) -> Self {
        let name = (!name.is_empty()).then_some(name);
        Self { id, name }
    }

    fn is_file_list(&self) -> bool {
        self.name.as_deref() == Some(FILE_LIST_FORMAT)
    }
}

/// The files of a list; of one that is cut off those that are there, which is what a receiver has of it.
fn file_list_as_far_as_it_goes(reader: &Reader<'_>) -> Result<Vec<ClipboardFile>, ChannelError> {
    let mut reader = reader.clone();
    let Ok(count) = reader.u32("cItems") else {
        return Ok(Vec::new());
    };
    let there = reader.remaining().checked_div(FILE_DESCRIPTOR_BYTES);
    descriptors(size(count).min(there.unwrap_or(0)), &mut reader)
}

fn file_list(reader: &Reader<'_>) -> Result<Vec<ClipboardFile>, ChannelError> {
    let mut reader = reader.clone();
    let count = size(reader.u32("cItems")?);
    within(
        count.saturating_mul(FILE_DESCRIPTOR_BYTES),
        reader.remaining(),
        "fileDescriptorArray",
    )?;
    descriptors(count, &mut reader)
}

fn descriptors(count: usize, reader: &mut Reader<'_>) -> Result<Vec<ClipboardFile>, ChannelError> {
    if count > limits::CLIPBOARD_FILES {
        return Err(ChannelError::TooMany {
            what: "files on the clipboard",
            limit: limits::CLIPBOARD_FILES,
        });
    }
    let mut files = Vec::with_capacity(count);
    for _ in 0..count {
        let flags = reader.u32("flags")?;
        reader.skip(32, "reserved1")?;
        let attributes = reader.u32("fileAttributes")?;
        reader.skip(16 + 8, "reserved2")?;
        let high = reader.u32("fileSizeHigh")?;
        let low = reader.u32("fileSizeLow")?;
        let name = utf16_text(reader.take(FILE_NAME_BYTES, "fileName")?);
        let has_size = flags & FD_FILESIZE != 0;
        files.push(ClipboardFile {
            name,
            size: has_size.then(|| u64::from(high) << 32 | u64::from(low)),
            directory: flags & FD_ATTRIBUTES != 0 && attributes & FILE_ATTRIBUTE_DIRECTORY != 0,
        });
    }
    Ok(files)
}

/// What an answer says: one of CB_RESPONSE_OK and CB_RESPONSE_FAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Succeeded,
    /// CB_RESPONSE_FAIL and nothing else, as FreeRDP's clients look at it.
    Failed,
    /// Both, or none, or a failure with another flag: some receivers take it for data.
    Unclear,
}

impl Answer {
    fn of(msg_flags: u16) -> Self {
        match (
            msg_flags & (CB_RESPONSE_OK | CB_RESPONSE_FAIL),
            msg_flags == CB_RESPONSE_FAIL,
        ) {
            (CB_RESPONSE_OK, _) => Self::Succeeded,
            (_, true) => Self::Failed,
            (_, false) => Self::Unclear,
        }
    }
}

const CB_MONITOR_READY: u16 = 0x0001;
const CB_FORMAT_LIST: u16 = 0x0002;
const CB_FORMAT_LIST_RESPONSE: u16 = 0x0003;
const CB_FORMAT_DATA_REQUEST: u16 = 0x0004;
const CB_FORMAT_DATA_RESPONSE: u16 = 0x0005;
const CB_TEMP_DIRECTORY: u16 = 0x0006;
const CB_CLIP_CAPS: u16 = 0x0007;
const CB_FILECONTENTS_REQUEST: u16 = 0x0008;
const CB_FILECONTENTS_RESPONSE: u16 = 0x0009;
const CB_LOCK_CLIPDATA: u16 = 0x000a;
const CB_UNLOCK_CLIPDATA: u16 = 0x000b;

const CB_RESPONSE_OK: u16 = 0x0001;
const CB_RESPONSE_FAIL: u16 = 0x0002;
const CB_ASCII_NAMES: u16 = 0x0004;

const CB_CAPSTYPE_GENERAL: u16 = 0x0001;
const CB_USE_LONG_FORMAT_NAMES: u32 = 0x0000_0002;

const FILECONTENTS_SIZE: u32 = 0x0000_0001;
const FILECONTENTS_RANGE: u32 = 0x0000_0002;

const FD_ATTRIBUTES: u32 = 0x0000_0004;
const FD_FILESIZE: u32 = 0x0000_0040;
const FILE_ATTRIBUTE_DIRECTORY: u32 = 0x0000_0010;

/// The registered name of the file list.
const FILE_LIST_FORMAT: &str = "FileGroupDescriptorW";

/// `formatId`.
const FORMAT_ID_BYTES: usize = 4;

const SHORT_NAME_BYTES: usize = 32;

/// Windows lets registered names have 255 characters; no name known has more than a few dozen.
const LONG_NAME_BYTES: usize = 512;

/// `wszTempDir` has 260 characters.
const TEMP_DIRECTORY_BYTES: usize = 520;

const FILE_NAME_BYTES: usize = 520;

const FILE_DESCRIPTOR_BYTES: usize = 592;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;

    /// [MS-RDPECLIP] 4.1.3 Client Clipboard Capabilities PDU.
    const CAPABILITIES: &[u8] = b"\x07\0\0\0\x10\0\0\0\x01\0\0\0\x01\0\x0c\0\x02\0\0\0\x0e\0\0\0";

    /// [MS-RDPECLIP] 4.4.3.1 Requesting the Size of a File.
    const SIZE_REQUEST: &[u8] =
        b"\x08\0\0\0\x18\0\0\0\x02\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0";

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let mut channel = Cliprdr::new(&Budget::default());
        assert_eq!(
            channel.one(ToTarget, CAPABILITIES),
            ClipboardEvent::Capabilities {
                direction: ToTarget,
                general_flags: 0x0e
            }
        );
        let part = FilePart {
            stream: 2,
            index: 1,
            name: None,
            range: FileRange::Size,
        };
        assert_eq!(
            channel.one(ToTarget, SIZE_REQUEST),
            ClipboardEvent::FileRequested {
                direction: ToTarget,
                part
            }
        );
    }

    #[test]
    fn short_names_are_read_in_both_forms() {
        let mut channel = Cliprdr::new(&Budget::default());
        let narrow = [&[9, 0xc0, 0, 0][..], b"Rich Text", &[0; 23]].concat();
        let wide = [&[9, 0xc0, 0, 0][..], b"R\0T\0F\0", &[0; 26]].concat();
        for (flags, body, name) in [(CB_ASCII_NAMES, &narrow, "Rich Text"), (0, &wide, "RTF")] {
            assert_eq!(
                channel.one(ToTarget, &pdu(CB_FORMAT_LIST, flags, body)),
                ClipboardEvent::Offered {
                    direction: ToTarget,
                    formats: vec![Format {
                        id: 0xc009,
                        name: Some(name.to_owned())
                    }]
                }
            );
        }
        // What is too short for a format is none.
        let padded = [&wide[..], &[0; 3]].concat();
        let event = channel.one(ToTarget, &pdu(CB_FORMAT_LIST, 0, &padded));
        assert!(matches!(event, ClipboardEvent::Offered { formats, .. } if formats.len() == 1));
    }

    #[test]
    fn long_names_are_read_where_short_ones_were_agreed() {
        let mut channel = Cliprdr::new(&Budget::default());
        let ClipboardEvent::Offered { formats, .. } = channel.one(ToClient, &files_offer()) else {
            panic!("no offer")
        };
        assert_eq!(formats[0].name.as_deref(), Some(FILE_LIST_FORMAT));
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let events = channel.feed(ToClient, &files_pdu(&["a.txt"])).unwrap();
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(requested(&mut channel, None).as_deref(), Some("a.txt"));
    }

    #[test]
    fn a_list_of_files_is_known_by_either_reading_of_the_offer() {
        // As short names: one format without a name that anybody knows, and 26 further bytes of it. As long ones: files.
        let mut list = files_offer().split_off(8);
        list.resize(list.len().next_multiple_of(36), 0);
        let mut channel = Cliprdr::new(&Budget::default());
        channel.one(ToClient, &pdu(CB_FORMAT_LIST, 0, &list));
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let events = channel.feed(ToClient, &files_pdu(&["a.txt"])).unwrap();
        assert_eq!(events.len(), 2, "{events:?}");
        // Who reads it otherwise may get something else under this number.
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let text = pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, b"text");
        assert_eq!(sent_as(&channel.one(ToClient, &text)), None);
    }

    #[test]
    fn what_some_receivers_take_for_data_is_read() {
        // Neither flag, both, and a failure with another flag.
        for flags in [0, 3, CB_RESPONSE_FAIL | CB_ASCII_NAMES] {
            let mut channel = with_files(&["old.txt"]);
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
            let mut answer = files_pdu(&["new.txt"]);
            answer[2..4].copy_from_slice(&flags.to_le_bytes());
            let events = channel.feed(ToClient, &answer).unwrap();
            assert_eq!(events.len(), 2, "{flags}: {events:?}");
            // It may be none.
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
            channel.one(ToClient, &pdu(CB_FORMAT_DATA_RESPONSE, flags, b"no"));
        }
        // A list that is cut off has the files that are there.
        let mut channel = with_files(&["old.txt"]);
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let mut body = files_pdu(&["a.txt", "b.txt"]).split_off(8);
        body.truncate(4 + FILE_DESCRIPTOR_BYTES + 100);
        let cut = pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, &body);
        let events = channel.feed(ToClient, &cut).unwrap();
        assert!(
            matches!(
                &events[1],
                ChannelEvent::Clipboard(ClipboardEvent::FilesListed { files, .. })
                    if files.len() == 1 && files[0].name == "a.txt"
            ),
            "{events:?}"
        );
    }

    #[test]
    fn a_locked_list_still_names_its_files_after_the_next_copy() {
        let mut channel = with_files(&["old.txt"]);
        channel.one(ToTarget, &pdu(CB_LOCK_CLIPDATA, 0, &7_u32.to_le_bytes()));
        offer_files(&mut channel, &["new.txt"]);
        assert_eq!(requested(&mut channel, Some(7)).as_deref(), Some("old.txt"));
        assert_eq!(requested(&mut channel, None).as_deref(), Some("new.txt"));
        channel.one(ToTarget, &pdu(CB_UNLOCK_CLIPDATA, 0, &7_u32.to_le_bytes()));
        assert_eq!(requested(&mut channel, Some(7)).as_deref(), Some("new.txt"));
    }

    #[test]
    fn files_are_named_where_an_offer_crosses_the_request_for_them() {
        let mut channel = with_files(&["old.txt"]);
        channel.one(ToClient, &pdu(CB_FORMAT_LIST, 0, &[]));
        assert_eq!(requested(&mut channel, None).as_deref(), Some("old.txt"));
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let events = channel.feed(ToClient, &files_pdu(&["new.txt"])).unwrap();
        assert!(
            matches!(
                &events[1],
                ChannelEvent::Clipboard(ClipboardEvent::FilesListed { files, .. })
                    if files[0].name == "new.txt"
            ),
            "{events:?}"
        );
        assert_eq!(requested(&mut channel, None).as_deref(), Some("new.txt"));
    }

    #[test]
    fn an_answer_belongs_to_the_last_request_whatever_was_never_answered() {
        // Text is asked for and not answered; then files are copied, asked for and sent.
        let mut channel = with_files(&["old.txt"]);
        for _ in 0..1000 {
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &TEXT_ID));
        }
        channel.one(ToClient, &files_offer());
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let events = channel.feed(ToClient, &files_pdu(&["new.txt"])).unwrap();
        assert!(
            matches!(
                &events[..],
                [
                    ChannelEvent::Clipboard(ClipboardEvent::Sent { format: Some(format), .. }),
                    ChannelEvent::Clipboard(ClipboardEvent::FilesListed { files, .. }),
                ] if format.name.as_deref() == Some(FILE_LIST_FORMAT) && files[0].name == "new.txt"
            ),
            "{events:?}"
        );
        // The other way round, with and without an offer between.
        for offered in [true, false] {
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
            if offered {
                let text = [&TEXT_ID[..], &[0, 0]].concat();
                channel.one(ToClient, &pdu(CB_FORMAT_LIST, 0, &text));
            }
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &TEXT_ID));
            let sent = channel.one(
                ToClient,
                &pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, b"a"),
            );
            assert_eq!(sent_as(&sent).map(|format| format.id), Some(13));
        }
    }

    #[test]
    fn an_offer_ends_what_was_asked_for_but_files_on_their_way_are_still_seen() {
        let mut channel = with_files(&["old.txt"]);
        let answer = pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, b"text");
        for id in [TEXT_ID, FILES_ID] {
            channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &id));
            channel.one(ToClient, &files_offer());
            assert_eq!(sent_as(&channel.one(ToClient, &answer)), None);
        }
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        channel.one(ToClient, &files_offer());
        let events = channel.feed(ToClient, &files_pdu(&["new.txt"])).unwrap();
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(requested(&mut channel, None).as_deref(), Some("new.txt"));
        // An offer of the side that asks ends nothing.
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &TEXT_ID));
        channel.one(ToTarget, &pdu(CB_FORMAT_LIST, 0, &[]));
        let sent = channel.one(ToClient, &answer);
        assert_eq!(sent_as(&sent).map(|format| format.id), Some(13));
    }

    #[test]
    fn names_of_formats_are_not_kept_without_end() {
        let mut channel = with_files(&[]);
        for id in 0..4 * u32::try_from(limits::CLIPBOARD_FORMATS).unwrap() {
            let list = [&id.to_le_bytes()[..], &[b'a', 0, 0, 0]].concat();
            channel.one(ToClient, &pdu(CB_FORMAT_LIST, 0, &list));
        }
        assert_eq!(channel.target.formats.len(), limits::CLIPBOARD_FORMATS);
    }

    #[test]
    fn an_answer_nobody_asked_for_is_reported_without_a_format() {
        let event = Cliprdr::new(&Budget::default()).one(
            ToClient,
            &pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, b"data"),
        );
        assert_eq!(
            event,
            ClipboardEvent::Sent {
                direction: ToClient,
                format: None,
                ok: true,
                bytes: 4
            }
        );
    }

    #[test]
    fn contents_need_not_be_at_hand_but_a_file_list_must() {
        let mut channel = Cliprdr::new(&Budget::default());
        let head = &pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, &[0; 1000])[..8];
        channel.feed_head(ToClient, head, 1008).unwrap();
        channel = with_files(&["a"]);
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let whole = files_pdu(&["a", "b"]);
        assert_eq!(
            channel.feed_head(ToClient, &whole[..600], whole.len()),
            Err(ChannelError::NeededWhole("fileName"))
        );
    }

    #[test]
    fn what_contradicts_itself_passes_where_receivers_make_something_of_it() {
        let feed = |direction, pdu: &[u8]| Cliprdr::new(&Budget::default()).feed(direction, pdu);
        // Neither a size nor contents, or both: what is sent counts as contents.
        let mut request = SIZE_REQUEST.to_vec();
        for flags in [0, 3] {
            request[16] = flags;
            let event = Cliprdr::new(&Budget::default()).one(ToTarget, &request);
            assert!(
                matches!(
                    &event,
                    ClipboardEvent::FileRequested { part, .. } if part.range != FileRange::Size
                ),
                "{event:?}"
            );
        }
        // Only the other side sends it: no receiver takes it.
        assert_eq!(
            Cliprdr::new(&Budget::default()).one(ToTarget, &pdu(CB_MONITOR_READY, 0, b"")),
            ClipboardEvent::Unknown {
                direction: ToTarget,
                msg_type: CB_MONITOR_READY,
                bytes: 0
            }
        );
        let mut longer = pdu(CB_MONITOR_READY, 0, b"");
        longer[4] = 1;
        assert_eq!(
            feed(ToClient, &longer),
            Err(ChannelError::Truncated("clipboard data"))
        );
    }

    #[test]
    fn what_a_peer_can_make_us_hold_is_bounded() {
        let mut channel = Cliprdr::new(&Budget::default());
        let request = pdu(CB_FORMAT_DATA_REQUEST, 0, &[1, 0, 0, 0]);
        for _ in 0..4 * limits::CLIPBOARD_REQUESTS {
            channel.one(ToTarget, &request);
            channel.one(ToTarget, SIZE_REQUEST);
        }
        assert_eq!(channel.target.parts.len(), limits::CLIPBOARD_REQUESTS);
        for id in 0..u32::try_from(limits::CLIPBOARD_LOCKS).unwrap() {
            channel.one(ToTarget, &pdu(CB_LOCK_CLIPDATA, 0, &id.to_le_bytes()));
        }
        channel.one(ToTarget, &pdu(CB_LOCK_CLIPDATA, 0, &[0; 4]));
        channel
            .feed(ToTarget, &pdu(CB_LOCK_CLIPDATA, 0, &[0xff; 4]))
            .unwrap_err();
        let formats = vec![0; 36 * (limits::CLIPBOARD_FORMATS + 1)];
        channel
            .feed(ToTarget, &pdu(CB_FORMAT_LIST, 0, &formats))
            .unwrap_err();
        let mut channel = with_files(&[]);
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let many = vec![""; limits::CLIPBOARD_FILES + 1];
        channel.feed(ToClient, &files_pdu(&many)).unwrap_err();
    }

    #[test]
    fn an_unknown_message_is_told_from_a_broken_one() {
        assert_eq!(
            Cliprdr::new(&Budget::default()).one(ToTarget, &pdu(0x77, 0, b"xyz")),
            ClipboardEvent::Unknown {
                direction: ToTarget,
                msg_type: 0x77,
                bytes: 3
            }
        );
    }

    const FILES_ID: [u8; 4] = [0x34, 0xc0, 0, 0];

    /// CF_UNICODETEXT.
    const TEXT_ID: [u8; 4] = [13, 0, 0, 0];

    /// What an answer is reported as.
    fn sent_as(event: &ClipboardEvent) -> Option<&Format> {
        let ClipboardEvent::Sent { format, .. } = event else {
            panic!("{event:?}")
        };
        format.as_ref()
    }

    impl Cliprdr {
        fn one(&mut self, direction: Direction, pdu: &[u8]) -> ClipboardEvent {
            let event = self.feed(direction, pdu).unwrap().remove(0);
            let ChannelEvent::Clipboard(event) = event else {
                panic!("{event:?}")
            };
            event
        }
    }

    /// The target has copied these files.
    fn with_files(names: &[&str]) -> Cliprdr {
        let mut channel = Cliprdr::new(&Budget::default());
        channel.one(ToTarget, CAPABILITIES);
        channel.one(ToClient, CAPABILITIES);
        offer_files(&mut channel, names);
        channel
    }

    fn offer_files(channel: &mut Cliprdr, names: &[&str]) {
        channel.one(ToClient, &files_offer());
        channel.one(ToTarget, &pdu(CB_FORMAT_DATA_REQUEST, 0, &FILES_ID));
        let events = channel.feed(ToClient, &files_pdu(names)).unwrap();
        assert_eq!(events.len(), 2);
    }

    fn files_offer() -> Vec<u8> {
        let name: Vec<u8> = FILE_LIST_FORMAT
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        pdu(CB_FORMAT_LIST, 0, &[&FILES_ID[..], &name].concat())
    }

    fn files_pdu(names: &[&str]) -> Vec<u8> {
        let mut body = u32::try_from(names.len()).unwrap().to_le_bytes().to_vec();
        for name in names {
            body.extend([0; 72]);
            let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            body.extend(&name);
            body.resize(body.len() + FILE_NAME_BYTES - name.len(), 0);
        }
        pdu(CB_FORMAT_DATA_RESPONSE, CB_RESPONSE_OK, &body)
    }

    /// Which file the client gets when it asks for the first one.
    fn requested(channel: &mut Cliprdr, lock: Option<u32>) -> Option<String> {
        let mut request = SIZE_REQUEST.to_vec();
        request[12] = 0;
        if let Some(lock) = lock {
            request.extend(lock.to_le_bytes());
            request[4] = 28;
        }
        let event = channel.one(ToTarget, &request);
        let ClipboardEvent::FileRequested { part, .. } = event else {
            panic!("{event:?}")
        };
        part.name
    }

    fn pdu(msg_type: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [
            &msg_type.to_le_bytes()[..],
            &flags.to_le_bytes(),
            &length.to_le_bytes(),
            body,
        ]
        .concat()
    }
}
