//! GCC user data of MCS Connect Initial and Connect Response ([MS-RDPBCGR] 2.2.1.3 and 2.2.1.4, [T.124]): the blocks
//! that tell what a gateway must know, and where in the frame the fields are that it must change.
//!
//! Blocks this does not know stay as they are: clients send some that no document names.
//!
//! [T.124]: https://www.itu.int/rec/T-REC-T.124

use std::ops::Range;

use super::bytes::{Reader, latin1, shifted, u16_at, u32_at, utf16};
use super::mcs::per_length;
use jetway_base::limits;

/// Client Core, Network, Message Channel and Monitor Data: who the client is and what it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientData {
    /// RDP version, as `0x00080004` and up.
    pub version: u32,
    /// `clientName`.
    pub client_name: String,
    /// `clientBuild`.
    pub client_build: u32,
    /// Pixels.
    pub desktop_width: u16,
    /// Pixels.
    pub desktop_height: u16,
    /// `keyboardLayout`.
    pub keyboard_layout: u32,
    /// `earlyCapabilityFlags`.
    pub early_capability_flags: u16,
    /// `RNS_UD_CS_*` connection type.
    pub connection_type: u8,
    /// Static channels asked for: name and options.
    pub channels: Vec<(String, u32)>,
    /// Whether a message channel is asked for.
    pub message_channel: bool,
    /// Monitors, if the client has several.
    pub monitor_count: u32,
    /// `TS_UD_CS_CLUSTER` flags.
    pub cluster_flags: Option<u32>,
    /// `TS_UD_CS_MULTITRANSPORT` flags, as the client sent them.
    pub multitransport_flags: Option<u32>,
}

impl ClientData {
    /// `earlyCapabilityFlags` without those that promise what needs a message channel, where the client asks for none.
    #[must_use]
    pub fn honest_capabilities(&self) -> u16 {
        if self.message_channel {
            self.early_capability_flags
        } else {
            self.early_capability_flags & !(SUPPORT_NETCHAR_AUTODETECT | SUPPORT_HEARTBEAT_PDU)
        }
    }
}

/// Server Core, Network and Message Channel Data: what the target grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerData {
    /// RDP version.
    pub version: u32,
    /// `earlyCapabilityFlags`.
    pub early_capability_flags: u32,
    /// The I/O channel.
    pub io_channel: u16,
    /// Ids of the static channels, in the order of the client's list.
    pub channel_ids: Vec<u16>,
    /// The message channel.
    pub message_channel: Option<u16>,
    /// `TS_UD_SC_MULTITRANSPORT` flags, as the target sent them.
    pub multitransport_flags: Option<u32>,
}

/// Where fields that differ between the legs are; offsets into the frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// `serverSelectedProtocol` of the client, `clientRequestedProtocols` of the target.
    pub protocol: Option<Range<usize>>,
    /// Flags of the multitransport block.
    pub multitransport: Option<Range<usize>>,
    /// `earlyCapabilityFlags` of the client.
    pub early_capability_flags: Option<Range<usize>>,
}

/// Why user data cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GccError {
    /// Not a Conference Create of RDP.
    #[error("GCC conference create is not that of RDP")]
    Conference,
    /// A block does not fit.
    #[error("GCC block {0:#06x} does not fit its length")]
    Block(u16),
    /// The same block twice.
    #[error("GCC block {0:#06x} is there twice")]
    Twice(u16),
    /// A block that has to be there.
    #[error("GCC block {0:#06x} is missing")]
    Missing(u16),
    /// More channels than there may be, or not those that were asked for.
    #[error("GCC network data with {0} channels")]
    Channels(usize),
    /// A channel whose messages a stage reads is asked for more than once: nobody knows which of them the target means.
    #[error("GCC network data with a channel that is there twice")]
    ChannelTwice,
    /// Standard RDP security inside TLS: what follows could not be read.
    #[error("target demands standard RDP encryption")]
    Encryption,
}

/// `RNS_UD_CS_SUPPORT_NETCHAR_AUTODETECT` and `RNS_UD_CS_SUPPORT_HEARTBEAT_PDU`: what they promise comes on the message channel.
const SUPPORT_NETCHAR_AUTODETECT: u16 = 0x0080;
const SUPPORT_HEARTBEAT_PDU: u16 = 0x0400;

const CS_CORE: u16 = 0xc001;
const CS_NET: u16 = 0xc003;
const CS_CLUSTER: u16 = 0xc004;
const CS_MONITOR: u16 = 0xc005;
const CS_MCS_MSGCHANNEL: u16 = 0xc006;
const CS_MULTITRANSPORT: u16 = 0xc00a;
const SC_CORE: u16 = 0x0c01;
const SC_SECURITY: u16 = 0x0c02;
const SC_NET: u16 = 0x0c03;
const SC_MCS_MSGCHANNEL: u16 = 0x0c04;
const SC_MULTITRANSPORT: u16 = 0x0c08;

/// Offset of `earlyCapabilityFlags` in `TS_UD_CS_CORE`.
const CS_CORE_EARLY_CAPABILITIES: usize = 144;

/// Offset of `serverSelectedProtocol` in `TS_UD_CS_CORE`.
const CS_CORE_SELECTED_PROTOCOL: usize = 212;

/// Offset of `clientRequestedProtocols` in `TS_UD_SC_CORE`.
const SC_CORE_REQUESTED_PROTOCOLS: usize = 8;

/// Offset of `flags` in both multitransport blocks.
const MULTITRANSPORT_FLAGS: usize = 4;

/// Reads the Conference Create Request at `user_data` of `frame`.
///
/// # Errors
/// A block that must be understood is not.
pub fn decode_client(
    frame: &[u8],
    user_data: Range<usize>,
) -> Result<(ClientData, Fields), GccError> {
    let (blocks, at) = conference(frame, user_data, *b"Duca")?;
    let (mut data, mut fields) = (ClientData::default(), Fields::default());
    let mut core = false;
    for block in Blocks::new(blocks, at) {
        let Block { kind, bytes, at } = block?;
        let bad = GccError::Block(kind);
        match kind {
            CS_CORE => {
                core = true;
                data.version = u32_at(bytes, 4).ok_or(bad)?;
                data.desktop_width = u16_at(bytes, 8).ok_or(bad)?;
                data.desktop_height = u16_at(bytes, 10).ok_or(bad)?;
                data.keyboard_layout = u32_at(bytes, 16).ok_or(bad)?;
                data.client_build = u32_at(bytes, 20).ok_or(bad)?;
                data.client_name = utf16(bytes.get(24..56).ok_or(bad)?);
                // Optional from here on, each with all before it.
                data.early_capability_flags =
                    u16_at(bytes, CS_CORE_EARLY_CAPABILITIES).unwrap_or(0);
                data.connection_type = bytes.get(210).copied().unwrap_or(0);
                fields.protocol = field(bytes, at, CS_CORE_SELECTED_PROTOCOL..216);
                fields.early_capability_flags = field(bytes, at, CS_CORE_EARLY_CAPABILITIES..146);
            }
            CS_NET => {
                let count = usize::try_from(u32_at(bytes, 4).ok_or(bad)?).map_err(|_| bad)?;
                if count > limits::STATIC_CHANNELS {
                    return Err(GccError::Channels(count));
                }
                let definitions = bytes.get(8..).ok_or(bad)?.chunks_exact(12);
                if definitions.len() < count {
                    return Err(bad);
                }
                for definition in definitions.take(count) {
                    // Seven characters and a NUL, which some receivers write themselves: "cliprdrX" is one to them.
                    let name = latin1(definition.get(..7).ok_or(bad)?);
                    data.channels
                        .push((name, u32_at(definition, 8).ok_or(bad)?));
                }
            }
            CS_CLUSTER => data.cluster_flags = Some(u32_at(bytes, 4).ok_or(bad)?),
            CS_MONITOR => data.monitor_count = u32_at(bytes, 8).ok_or(bad)?,
            CS_MCS_MSGCHANNEL => data.message_channel = true,
            CS_MULTITRANSPORT => {
                data.multitransport_flags = Some(u32_at(bytes, MULTITRANSPORT_FLAGS).ok_or(bad)?);
                fields.multitransport = field(bytes, at, MULTITRANSPORT_FLAGS..8);
            }
            _ => {}
        }
    }
    if !core {
        return Err(GccError::Missing(CS_CORE));
    }
    Ok((data, fields))
}

/// Reads the Conference Create Response at `user_data` of `frame`.
///
/// # Errors
/// A block that must be understood is not, or the target wants to encrypt by itself.
pub fn decode_server(
    frame: &[u8],
    user_data: Range<usize>,
) -> Result<(ServerData, Fields), GccError> {
    let (blocks, at) = conference(frame, user_data, *b"McDn")?;
    let (mut data, mut fields) = (ServerData::default(), Fields::default());
    let (mut core, mut net) = (false, false);
    for block in Blocks::new(blocks, at) {
        let Block { kind, bytes, at } = block?;
        let bad = GccError::Block(kind);
        match kind {
            SC_CORE => {
                core = true;
                data.version = u32_at(bytes, 4).ok_or(bad)?;
                data.early_capability_flags = u32_at(bytes, 12).unwrap_or(0);
                fields.protocol = field(bytes, at, SC_CORE_REQUESTED_PROTOCOLS..12);
            }
            SC_SECURITY => {
                let method = u32_at(bytes, 4).ok_or(bad)?;
                let level = u32_at(bytes, 8).ok_or(bad)?;
                if (method, level) != (0, 0) {
                    return Err(GccError::Encryption);
                }
            }
            SC_NET => {
                net = true;
                data.io_channel = u16_at(bytes, 4).ok_or(bad)?;
                let count = usize::from(u16_at(bytes, 6).ok_or(bad)?);
                if count > limits::STATIC_CHANNELS {
                    return Err(GccError::Channels(count));
                }
                for position in 0..count {
                    let at = position.saturating_mul(2).saturating_add(8);
                    data.channel_ids.push(u16_at(bytes, at).ok_or(bad)?);
                }
            }
            SC_MCS_MSGCHANNEL => data.message_channel = Some(u16_at(bytes, 4).ok_or(bad)?),
            SC_MULTITRANSPORT => {
                data.multitransport_flags = Some(u32_at(bytes, MULTITRANSPORT_FLAGS).ok_or(bad)?);
                fields.multitransport = field(bytes, at, MULTITRANSPORT_FLAGS..8);
            }
            _ => {}
        }
    }
    if !core {
        return Err(GccError::Missing(SC_CORE));
    }
    if !net {
        return Err(GccError::Missing(SC_NET));
    }
    Ok((data, fields))
}

fn field(block: &[u8], at: usize, range: Range<usize>) -> Option<Range<usize>> {
    block.get(range.clone())?;
    Some(shifted(&range, at))
}

/// The blocks of a Conference Create Request (key `Duca`) or Response (key `McDn`), and where they are in the frame.
///
/// The length of `connectPDU` is not looked at: servers of all makers write one that means nothing. Bytes behind
/// the length of the user data are taken for blocks as well, since there are readers that do so.
fn conference(
    frame: &[u8],
    user_data: Range<usize>,
    key: [u8; 4],
) -> Result<(&[u8], usize), GccError> {
    let bytes = frame.get(user_data.clone()).ok_or(GccError::Conference)?;
    let mut reader = Reader::new(bytes);
    let found = (|| {
        if reader.array()? != OBJECT_KEY {
            return None;
        }
        per_length(&mut reader)?;
        if &key == b"Duca" {
            // conferenceCreateRequest with userData, conference name, padding.
            if reader.array()? != [0x00, 0x08] {
                return None;
            }
            let digits = per_length(&mut reader)?.checked_add(1)?;
            reader.take(digits.div_ceil(2))?;
            reader.take(1)?;
        } else {
            // conferenceCreateResponse with userData, nodeID, tag, result.
            if reader.u8()? & 0xfc != 0x14 {
                return None;
            }
            reader.take(2)?;
            let tag = per_length(&mut reader)?;
            reader.take(tag)?;
            reader.take(1)?;
        }
        // One set, with an H.221 key of four bytes.
        if reader.array()? != [0x01, 0xc0, 0x00] || reader.array()? != key {
            return None;
        }
        let length = per_length(&mut reader)?;
        (reader.rest().len() >= length).then_some(())
    })();
    found.ok_or(GccError::Conference)?;
    let at = user_data.start.saturating_add(reader.position());
    Ok((reader.rest(), at))
}

/// Object identifier 0.0.20.124.0.1 as the key of ConnectData.
const OBJECT_KEY: [u8; 7] = [0x00, 0x05, 0x00, 0x14, 0x7c, 0x00, 0x01];

struct Block<'a> {
    kind: u16,
    /// With its header.
    bytes: &'a [u8],
    /// Where it is in the frame.
    at: usize,
}

/// Blocks one after the other; each kind once.
struct Blocks<'a> {
    reader: Reader<'a>,
    base: usize,
    seen: Vec<u16>,
}

impl<'a> Blocks<'a> {
    fn new(bytes: &'a [u8], base: usize) -> Self {
        Self {
            reader: Reader::new(bytes),
            base,
            seen: Vec::new(),
        }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, GccError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let at = self.base.saturating_add(self.reader.position());
        let rest = self.reader.rest();
        let kind = u16_at(rest, 0).unwrap_or(0);
        let length = u16_at(rest, 2)
            .map(usize::from)
            .filter(|&length| length >= 4);
        let block = length.and_then(|length| self.reader.take(length));
        let Some(bytes) = block else {
            self.reader.take(rest.len());
            return Some(Err(GccError::Block(kind)));
        };
        if self.seen.contains(&kind) || self.seen.len() >= BLOCKS {
            self.reader.take(self.reader.rest().len());
            return Some(Err(GccError::Twice(kind)));
        }
        self.seen.push(kind);
        Some(Ok(Block { kind, bytes, at }))
    }
}

/// Blocks of one message; real ones have at most a dozen.
const BLOCKS: usize = 64;
