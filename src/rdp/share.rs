//! Share control and share data PDUs of the I/O channel ([MS-RDPBCGR] 2.2.8.1.1.1), and what a gateway reads in
//! them: capability sets, input, logon information, error information.

use std::ops::Range;

use zeroize::Zeroizing;

use super::bytes::{Reader, shifted, u16_at, u32_at, utf16};
use super::fast_path::signed;
use super::input::Input;
use super::logon::{AutoReconnectCookie, SaveSessionInfo};

/// `pduType` of the share control header.
pub mod pdu_type {
    /// Demand Active.
    pub const DEMAND_ACTIVE: u8 = 1;
    /// Confirm Active.
    pub const CONFIRM_ACTIVE: u8 = 3;
    /// Deactivate All.
    pub const DEACTIVATE_ALL: u8 = 6;
    /// Data.
    pub const DATA: u8 = 7;
    /// Server Redirection.
    pub const SERVER_REDIRECTION: u8 = 10;

    /// Whether any receiver of RDP reads a PDU of this type.
    #[must_use]
    pub fn is_known(pdu_type: u8) -> bool {
        matches!(
            pdu_type,
            DEMAND_ACTIVE | CONFIRM_ACTIVE | DEACTIVATE_ALL | DATA | SERVER_REDIRECTION
        )
    }
}

/// `pduType2` of the share data header.
pub mod pdu_type2 {
    /// Graphics.
    pub const UPDATE: u8 = 2;
    /// Slow-path input.
    pub const INPUT: u8 = 28;
    /// Shutdown Request.
    pub const SHUTDOWN_REQUEST: u8 = 36;
    /// Shutdown Request Denied.
    pub const SHUTDOWN_DENIED: u8 = 37;
    /// Save Session Info.
    pub const SAVE_SESSION_INFO: u8 = 38;
    /// Set Error Info.
    pub const SET_ERROR_INFO: u8 = 47;
    /// Frame Acknowledge ([MS-RDPRFX] 2.2.3.1).
    pub const FRAME_ACKNOWLEDGE: u8 = 56;

    /// Whether the specification has it.
    #[must_use]
    pub fn is_known(pdu_type2: u8) -> bool {
        matches!(
            pdu_type2,
            2 | 20 | 27 | 28 | 31 | 33..=41 | 43..=50 | 54..=56
        )
    }
}

/// Bytes of the share control header.
const CONTROL_HEADER_BYTES: usize = 6;

/// One share control PDU; a frame may hold several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// `pduType`; `None` for flow control.
    pub(super) kind: Option<u8>,
    /// Behind the header; offsets as those of the bytes it was read from.
    pub(super) body: Range<usize>,
}

/// The share control PDU at offset `at` of `data`, and the offset behind it.
///
/// `PDUVersion` is not judged, since receivers do not look at it: what they take for a PDU is one here, too. For the
/// same reason flow control, which has its type elsewhere, must have none where other PDUs have theirs: xrdp does not
/// know flow control and would read a PDU in it.
pub(super) fn control(data: &[u8], at: usize) -> Option<(Control, usize)> {
    let rest = data.get(at..)?;
    let total = u16_at(rest, 0)?;
    if total == 0x8000 {
        // Flow control: marker, pad, type, number, source.
        let pad = *rest.get(..8)?.get(2)?;
        if pdu_type::is_known(pad & 0x0f) {
            return None;
        }
        let end = at.checked_add(8)?;
        return Some((
            Control {
                kind: None,
                body: at..end,
            },
            end,
        ));
    }
    let total = usize::from(total);
    let kind = u16_at(rest, 2)?;
    if total < 4 {
        return None;
    }
    rest.get(..total)?;
    let end = at.checked_add(total)?;
    // Windows XP sends Deactivate All without its source.
    let body = at.checked_add(CONTROL_HEADER_BYTES)?.min(end)..end;
    let kind = kind.to_le_bytes().first().map(|low| low & 0x0f);
    Some((Control { kind, body }, end))
}

/// Whether data of the I/O channel begin as a share control PDU and not with a security header: those have zeroes
/// where the version is.
pub(super) fn is_control(data: &[u8]) -> bool {
    let version = u16_at(data, 2).map(|kind| kind & 0xfff0);
    match control(data, 0) {
        Some((control, _)) => control.kind.is_none() || version == Some(0x0010),
        None => false,
    }
}

/// A share data PDU, compressed as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) share_id: u32,
    pub(super) pdu_type2: u8,
    pub(super) compression: u8,
    pub(super) body: Range<usize>,
}

/// Reads the share data header at `body` of `data`.
pub(super) fn data(bytes: &[u8], body: Range<usize>) -> Option<Data> {
    let mut reader = Reader::new(bytes.get(body.clone())?);
    let share_id = reader.u32_le()?;
    // pad1, streamId, uncompressedLength.
    reader.take(4)?;
    let pdu_type2 = reader.u8()?;
    let compression = reader.u8()?;
    reader.take(2)?;
    Some(Data {
        share_id,
        pdu_type2,
        compression,
        body: body.start.checked_add(reader.position())?..body.end,
    })
}

/// The capability sets of Demand Active or Confirm Active.
#[derive(Clone, Debug)]
pub struct CapabilitySets<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for CapabilitySets<'a> {
    /// `capabilitySetType` and the set with its header.
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.bytes, 2)?);
        let (set, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some((u16_at(set, 0)?, set))
    }
}

/// `CAPSTYPE_BITMAP`.
pub const CAPSTYPE_BITMAP: u16 = 2;

/// Reads Demand Active, or Confirm Active, behind its share control header.
pub(super) fn capabilities(body: &[u8], confirm: bool) -> Option<(u32, CapabilitySets<'_>)> {
    let mut reader = Reader::new(body);
    let share_id = reader.u32_le()?;
    if confirm {
        // originatorID.
        reader.take(2)?;
    }
    let source = usize::from(reader.u16_le()?);
    let combined = usize::from(reader.u16_le()?);
    reader.take(source)?;
    let mut sets = Reader::new(reader.take(combined)?);
    let count = sets.u16_le()?;
    sets.take(2)?;
    let bytes = sets.rest();
    let mut walk = Reader::new(bytes);
    for _ in 0..count {
        let length = usize::from(u16_at(walk.rest(), 2)?);
        if length < 4 {
            return None;
        }
        walk.take(length)?;
    }
    let bytes = bytes.get(..walk.position())?;
    Some((share_id, CapabilitySets { bytes }))
}

/// The desktop size that the bitmap capability set of a target demands.
pub(super) fn desktop_size(sets: &CapabilitySets<'_>) -> Option<(u16, u16)> {
    let (_, set) = sets.clone().find(|(kind, _)| *kind == CAPSTYPE_BITMAP)?;
    Some((u16_at(set, 12)?, u16_at(set, 14)?))
}

/// The events of a slow-path input PDU.
pub(super) fn inputs(data: &[u8]) -> Option<Vec<Input>> {
    let mut reader = Reader::new(data);
    let count = reader.u16_le()?;
    reader.take(2)?;
    let mut events = Vec::new();
    for _ in 0..count {
        // eventTime.
        reader.take(4)?;
        let kind = reader.u16_le()?;
        let [one, two, three] = [reader.u16_le()?, reader.u16_le()?, reader.u16_le()?];
        let event = match kind {
            // Behind two bytes of padding.
            0x0000 => Input::Synchronize {
                toggles: two.to_le_bytes().first().copied()?,
            },
            0x0004 => Input::ScanCode {
                release: one & 0x8000 != 0,
                extended: one & 0x0100 != 0,
                extended1: one & 0x0200 != 0,
                code: two.to_le_bytes().first().copied()?,
            },
            0x0005 => Input::Unicode {
                release: one & 0x8000 != 0,
                unit: two,
            },
            0x8001 => Input::Mouse {
                flags: one,
                x: two,
                y: three,
            },
            0x8002 => Input::ExtendedMouse {
                flags: one,
                x: two,
                y: three,
            },
            0x8004 => Input::RelativeMouse {
                flags: one,
                dx: signed(two),
                dy: signed(three),
            },
            // INPUT_EVENT_UNUSED.
            0x0002 => continue,
            // As long as the others to those that go on.
            code => Input::Unknown {
                code: Some(code),
                bytes: 6,
            },
        };
        events.push(event);
    }
    if !reader.is_empty() {
        events.push(Input::Unknown {
            code: None,
            bytes: reader.rest().len(),
        });
    }
    Some(events)
}

/// What Save Session Info says.
#[derive(Debug, Default)]
pub(super) struct SessionInfo {
    pub(super) logon: Option<SaveSessionInfo>,
    pub(super) cookie: Option<AutoReconnectCookie>,
    /// Where the cookie is in the data.
    pub(super) secret: Option<Range<usize>>,
}

/// Reads Save Session Info ([MS-RDPBCGR] 2.2.10.1.1).
pub(super) fn session_info(data: &[u8]) -> Option<SessionInfo> {
    let mut reader = Reader::new(data);
    let mut info = SessionInfo::default();
    match reader.u32_le()? {
        // INFOTYPE_LOGON: fixed fields of 52 and 512 bytes.
        0 => {
            reader.take(4)?;
            let domain = utf16(reader.take(52)?);
            reader.take(4)?;
            let user = utf16(reader.take(512)?);
            info.logon = Some(SaveSessionInfo::User {
                domain,
                user,
                session_id: reader.u32_le()?,
            });
        }
        // INFOTYPE_LOGON_LONG.
        1 => {
            // Version, Size.
            reader.take(6)?;
            let session_id = reader.u32_le()?;
            let domain = usize::try_from(reader.u32_le()?).ok()?;
            let user = usize::try_from(reader.u32_le()?).ok()?;
            reader.take(558)?;
            info.logon = Some(SaveSessionInfo::User {
                domain: utf16(reader.take(domain)?),
                user: utf16(reader.take(user)?),
                session_id,
            });
        }
        // INFOTYPE_LOGON_PLAINNOTIFY.
        2 => info.logon = Some(SaveSessionInfo::Plain),
        // INFOTYPE_LOGON_EXTENDED_INFO.
        3 => {
            // Length.
            reader.take(2)?;
            let present = reader.u32_le()?;
            if present & 1 != 0 {
                let length = usize::try_from(reader.u32_le()?).ok()?;
                let at = reader.position();
                let mut packet = Reader::new(reader.take(length)?);
                // cbLen, Version.
                packet.take(8)?;
                let logon_id = packet.u32_le()?;
                let secret = packet.range(16)?;
                let bits = data.get(shifted(&secret, at))?;
                info.cookie = Some(AutoReconnectCookie {
                    logon_id,
                    random_bits: Zeroizing::new(bits.try_into().ok()?),
                });
                info.secret = Some(shifted(&secret, at));
            }
            if present & 2 != 0 {
                let length = usize::try_from(reader.u32_le()?).ok()?;
                let mut notice = Reader::new(reader.take(length)?);
                info.logon = Some(SaveSessionInfo::Notice {
                    kind: notice.u32_le()?,
                    data: notice.u32_le()?,
                });
            }
        }
        _ => {}
    }
    Some(info)
}

/// Set Error Info.
pub(super) fn error_info(data: &[u8]) -> Option<u32> {
    u32_at(data, 0)
}

/// A Set Error Info PDU for the I/O channel.
#[must_use]
pub fn encode_error_info(share_id: u32, source: u16, code: u32) -> Vec<u8> {
    let mut pdu = vec![22, 0, 0x17, 0];
    pdu.extend(source.to_le_bytes());
    pdu.extend(share_id.to_le_bytes());
    // pad1, STREAM_LOW, uncompressedLength, pduType2, no compression.
    pdu.extend([0, 1, 4, 0, pdu_type2::SET_ERROR_INFO, 0, 0, 0]);
    pdu.extend(code.to_le_bytes());
    pdu
}
