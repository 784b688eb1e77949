//! The headless client's half, from MCS Connect Initial until the server's Font Map.
//!
//! ```text
//! client                                        server
//! MCS Connect Initial                       ->
//!                                           <-  MCS Connect Response
//! Erect Domain, Attach User                 ->
//!                                           <-  Attach User Confirm
//! Channel Join (each, unless skipped)       ->
//!                                           <-  Channel Join Confirm
//! Client Info                               ->
//!                                           <-  licence: valid client
//!                                           <-  Demand Active
//! Confirm Active, Synchronize, Cooperate,
//! Request Control, Font List                ->
//!                                           <-  Synchronize, Cooperate, Granted Control, Font Map
//! ```
//!
//! It asks for 32 bits per pixel, fast-path bitmap updates in one piece, and nothing that it could not draw.

use std::borrow::Cow;
use std::net::IpAddr;

use ironrdp_core::{Encode, decode, encode_vec};
use ironrdp_pdu::gcc::{
    ClientCoreData, ClientCoreOptionalData, ClientEarlyCapabilityFlags, ClientGccBlocks,
    ClientMessageChannelData, ClientSecurityData, ColorDepth, ConnectionType, EncryptionMethod,
    HighColorDepth, KeyboardType, RdpVersion, SecureAccessSequence, ServerEarlyCapabilityFlags,
    SupportedColorDepths,
};
use ironrdp_pdu::mcs::{
    AttachUserRequest, ChannelJoinRequest, ConnectInitial, ConnectResponse, ErectDomainPdu,
    McsMessage, SendDataRequest,
};
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::rdp::ClientInfoPdu;
use ironrdp_pdu::rdp::capability_sets::{
    BITMAP_CACHE_ENTRIES_NUM, Bitmap, BitmapCache, BitmapDrawingFlags, Brush, CacheDefinition,
    CacheEntry, CapabilitySet, ClientConfirmActive, DemandActive, GLYPH_CACHE_NUM, General,
    GeneralExtraFlags, GlyphCache, GlyphSupportLevel, Input, InputFlags, MajorPlatformType,
    OffscreenBitmapCache, Order, OrderFlags, OrderSupportExFlags, Pointer, SERVER_CHANNEL_ID,
    Sound, SoundFlags, SupportLevel, VirtualChannel, VirtualChannelFlags,
};
use ironrdp_pdu::rdp::client_info::{
    AddressFamily, ClientInfo, ClientInfoFlags, CompressionType, Credentials, ExtendedClientInfo,
    ExtendedClientOptionalInfo, PerformanceFlags, TimezoneInfo,
};
use ironrdp_pdu::rdp::finalization_messages::{ControlAction, ControlPdu, FontPdu, SynchronizePdu};
use ironrdp_pdu::rdp::headers::{
    BasicSecurityHeader, BasicSecurityHeaderFlags, ShareControlHeader, ShareControlPdu,
    ShareDataPdu,
};
use ironrdp_pdu::rdp::server_error_info::{
    ErrorInfo, ProtocolIndependentCode, ServerSetErrorInfoPdu,
};
use ironrdp_pdu::rdp::server_license::{LicenseErrorCode, LicensePdu};
use ironrdp_pdu::x224::{X224, X224Data};
use zeroize::Zeroizing;

use super::{SequenceError, share_data};

/// Who connects, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Wishes<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
    /// Width and height of the desktop to ask for.
    pub(crate) size: (u16, u16),
    /// The client's own address.
    pub(crate) address: IpAddr,
}

/// What the sequence has settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionSettings {
    /// Width and height of the desktop.
    pub(crate) size: (u16, u16),
    channels: Channels,
    share_id: u32,
}

/// Who the client is and where the share speaks.
#[derive(Clone, Copy, Debug)]
struct Channels {
    /// The client's own channel: its MCS user id.
    user: u16,
    /// The I/O channel.
    io: u16,
}

impl ConnectionSettings {
    /// What a frame says that is not fast-path: a PDU of the share, or `None` where another channel speaks.
    ///
    /// # Errors
    /// [`SequenceError::Ended`] where the server ends the session, and where the frame cannot be read.
    pub(crate) fn read(&self, frame: &[u8]) -> Result<Option<ShareControlPdu>, SequenceError> {
        let Some(data) = indication(frame, self.channels.io)? else {
            return Ok(None);
        };
        share_control(&data).map(|header| Some(header.share_control_pdu))
    }

    /// The frame of a share data PDU for the server.
    pub(crate) fn say(
        &self,
        pdu: ShareDataPdu,
        name: &'static str,
    ) -> Result<Vec<u8>, SequenceError> {
        let header = share_data(self.share_id, self.channels.user, pdu);
        let mut frame = Vec::new();
        put_data(&mut frame, self.channels, &header, name)?;
        Ok(frame)
    }
}

/// Where the sequence stands behind a frame.
#[derive(Debug)]
pub(crate) enum ClientStep {
    /// The server has more to say.
    On(ClientSequence),
    /// The session begins.
    Connected(ConnectionSettings),
}

/// The client half of one sequence.
pub(crate) struct ClientSequence {
    /// The Client Info PDU: it holds the password.
    info: Zeroizing<Vec<u8>>,
    state: ClientState,
}

impl std::fmt::Debug for ClientSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSequence")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
enum ClientState {
    /// Until MCS Connect Response.
    Connecting,
    /// Until Attach User Confirm.
    Attaching {
        io_channel: u16,
        /// Channels to join beside the user's own; `None` where the server wants no joins.
        joins: Option<Vec<u16>>,
    },
    /// Until each Channel Join Confirm.
    Joining {
        channels: Channels,
        waiting_for: u16,
        /// In reverse order.
        left: Vec<u16>,
    },
    /// Until the licence.
    Licensing { channels: Channels },
    /// Until Demand Active.
    Activating { channels: Channels },
    /// Until the Font Map.
    Finalizing(ConnectionSettings),
}

impl ClientSequence {
    /// The half itself and what it sends first.
    ///
    /// # Errors
    /// Where the wishes cannot be encoded.
    pub(crate) fn begin(wishes: &Wishes<'_>) -> Result<(Self, Vec<u8>), SequenceError> {
        let name = "MCS Connect Initial";
        let initial = ConnectInitial::with_gcc_blocks(gcc_blocks(wishes.size))
            .map_err(|_| SequenceError::Encode(name))?;
        let data = X224Data {
            data: Cow::Owned(encode_vec(&initial).map_err(|_| SequenceError::Encode(name))?),
        };
        let mut first = Vec::new();
        put(&mut first, &X224(data), name)?;
        let info =
            encode_vec(&client_info(wishes)).map_err(|_| SequenceError::Encode("Client Info"))?;
        let client = Self {
            info: Zeroizing::new(info),
            state: ClientState::Connecting,
        };
        Ok((client, first))
    }

    /// Takes a frame from the server and appends what is to be sent to it to `answer`.
    ///
    /// # Errors
    /// The server does not follow the sequence, or ends it.
    pub(crate) fn frame(
        mut self,
        frame: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<ClientStep, SequenceError> {
        self.state = match self.state {
            ClientState::Connecting => connected(frame, answer)?,
            ClientState::Attaching { io_channel, joins } => {
                let McsMessage::AttachUserConfirm(confirm) = mcs(frame)? else {
                    return Err(SequenceError::Message("Attach User Confirm"));
                };
                if confirm.result != 0 {
                    return Err(SequenceError::Message("Attach User Confirm"));
                }
                let channels = Channels {
                    user: confirm.initiator_id,
                    io: io_channel,
                };
                match joins {
                    None => log_on(channels, &self.info, answer)?,
                    Some(left) => join(channels, channels.user, left, answer)?,
                }
            }
            ClientState::Joining {
                channels,
                waiting_for,
                mut left,
            } => {
                let McsMessage::ChannelJoinConfirm(confirm) = mcs(frame)? else {
                    return Err(SequenceError::Message("Channel Join Confirm"));
                };
                if confirm.result != 0 || confirm.channel_id != waiting_for {
                    return Err(SequenceError::Message("Channel Join Confirm"));
                }
                match left.pop() {
                    None => log_on(channels, &self.info, answer)?,
                    Some(next) => join(channels, next, left, answer)?,
                }
            }
            ClientState::Licensing { channels } => match indication(frame, channels.io)? {
                None => ClientState::Licensing { channels },
                Some(data) => {
                    licence(&data)?;
                    ClientState::Activating { channels }
                }
            },
            ClientState::Activating { channels } => match indication(frame, channels.io)? {
                None => ClientState::Activating { channels },
                Some(data) => activate(channels, &data, answer)?,
            },
            ClientState::Finalizing(connected) => match connected.read(frame)? {
                Some(ShareControlPdu::Data(data))
                    if matches!(data.share_data_pdu, ShareDataPdu::FontMap(_)) =>
                {
                    return Ok(ClientStep::Connected(connected));
                }
                // The server's share of the other three, and whatever else it has to tell.
                _ => ClientState::Finalizing(connected),
            },
        };
        Ok(ClientStep::On(self))
    }
}

/// MCS Connect Response: which channels there are.
fn connected(frame: &[u8], answer: &mut Vec<u8>) -> Result<ClientState, SequenceError> {
    let malformed = |_| SequenceError::Message("MCS Connect Response");
    let data = decode::<X224<X224Data<'_>>>(frame).map_err(malformed)?.0;
    let response = decode::<ConnectResponse>(&data.data).map_err(malformed)?;
    let blocks = response.conference_create_response.into_gcc_blocks();
    if !blocks.network.channel_ids.is_empty() {
        return Err(SequenceError::Message("static virtual channel"));
    }
    let io_channel = blocks.network.io_channel;
    let message_channel = blocks
        .message_channel
        .map(|data| data.mcs_message_channel_id);
    let skip = blocks
        .core
        .optional_data
        .early_capability_flags
        .is_some_and(|flags| {
            flags.contains(ServerEarlyCapabilityFlags::SKIP_CHANNELJOIN_SUPPORTED)
        });
    let joins = (!skip).then(|| message_channel.into_iter().chain([io_channel]).collect());
    let erect_domain = ErectDomainPdu {
        sub_height: 0,
        sub_interval: 0,
    };
    put(answer, &X224(erect_domain), "Erect Domain")?;
    put(answer, &X224(AttachUserRequest), "Attach User")?;
    Ok(ClientState::Attaching { io_channel, joins })
}

fn join(
    channels: Channels,
    next: u16,
    left: Vec<u16>,
    answer: &mut Vec<u8>,
) -> Result<ClientState, SequenceError> {
    let request = ChannelJoinRequest {
        initiator_id: channels.user,
        channel_id: next,
    };
    put(answer, &X224(request), "Channel Join")?;
    Ok(ClientState::Joining {
        channels,
        waiting_for: next,
        left,
    })
}

fn log_on(
    channels: Channels,
    info: &[u8],
    answer: &mut Vec<u8>,
) -> Result<ClientState, SequenceError> {
    let request = SendDataRequest {
        initiator_id: channels.user,
        channel_id: channels.io,
        user_data: Cow::Borrowed(info),
    };
    put(answer, &X224(request), "Client Info")?;
    Ok(ClientState::Licensing { channels })
}

fn licence(data: &[u8]) -> Result<(), SequenceError> {
    let licence: LicensePdu = decode(data).map_err(|_| SequenceError::Message("licence"))?;
    if let LicensePdu::LicensingErrorMessage(message) = licence
        && message.error_code == LicenseErrorCode::StatusValidClient
    {
        return Ok(());
    }
    Err(SequenceError::Licence)
}

/// Demand Active: the desktop's size; everything that is left to say follows it.
fn activate(
    channels: Channels,
    data: &[u8],
    answer: &mut Vec<u8>,
) -> Result<ClientState, SequenceError> {
    let header = share_control(data)?;
    let ShareControlPdu::ServerDemandActive(demand) = header.share_control_pdu else {
        return Ok(ClientState::Activating { channels });
    };
    let size = demand
        .pdu
        .capability_sets
        .iter()
        .find_map(|set| {
            let CapabilitySet::Bitmap(bitmap) = set else {
                return None;
            };
            Some((bitmap.desktop_width, bitmap.desktop_height))
        })
        .ok_or(SequenceError::Message("Demand Active"))?;
    if !(1..=LARGEST_EDGE).contains(&size.0) || !(1..=LARGEST_EDGE).contains(&size.1) {
        return Err(SequenceError::Desktop(size.0, size.1));
    }
    let confirm = ShareControlHeader {
        share_id: header.share_id,
        pdu_source: channels.user,
        share_control_pdu: ShareControlPdu::ClientConfirmActive(ClientConfirmActive {
            originator_id: SERVER_CHANNEL_ID,
            pdu: DemandActive {
                source_descriptor: String::from("jetway"),
                capability_sets: capabilities(size),
            },
        }),
    };
    put_data(answer, channels, &confirm, "Confirm Active")?;
    let control = |action| {
        ShareDataPdu::Control(ControlPdu {
            action,
            grant_id: 0,
            control_id: 0,
        })
    };
    for pdu in [
        ShareDataPdu::Synchronize(SynchronizePdu {
            target_user_id: channels.user,
        }),
        control(ControlAction::Cooperate),
        control(ControlAction::RequestControl),
        ShareDataPdu::FontList(FontPdu::default()),
    ] {
        let pdu = share_data(header.share_id, channels.user, pdu);
        put_data(answer, channels, &pdu, "connection finalization")?;
    }
    Ok(ClientState::Finalizing(ConnectionSettings {
        size,
        channels,
        share_id: header.share_id,
    }))
}

fn mcs(frame: &[u8]) -> Result<McsMessage<'_>, SequenceError> {
    let message = decode::<X224<McsMessage<'_>>>(frame)
        .map_err(|_| SequenceError::Message("MCS PDU"))?
        .0;
    if let McsMessage::DisconnectProviderUltimatum(ultimatum) = message {
        let reason = ultimatum.reason.description();
        return Err(SequenceError::Ended(String::from(reason)));
    }
    Ok(message)
}

/// What the server says on the I/O channel; `None` for another.
fn indication(frame: &[u8], io_channel: u16) -> Result<Option<Cow<'_, [u8]>>, SequenceError> {
    let McsMessage::SendDataIndication(data) = mcs(frame)? else {
        return Err(SequenceError::Message("MCS PDU behind the channels"));
    };
    Ok((data.channel_id == io_channel).then_some(data.user_data))
}

/// A share control PDU, unless it says why the session ends.
fn share_control(data: &[u8]) -> Result<ShareControlHeader, SequenceError> {
    let header: ShareControlHeader =
        decode(data).map_err(|_| SequenceError::Message("share control PDU"))?;
    if let ShareControlPdu::Data(data) = &header.share_control_pdu
        && let ShareDataPdu::ServerSetErrorInfo(ServerSetErrorInfoPdu(info)) = &data.share_data_pdu
        && *info != ErrorInfo::ProtocolIndependentCode(ProtocolIndependentCode::None)
    {
        return Err(SequenceError::Ended(info.description()));
    }
    Ok(header)
}

fn gcc_blocks((desktop_width, desktop_height): (u16, u16)) -> ClientGccBlocks {
    ClientGccBlocks {
        core: ClientCoreData {
            version: RdpVersion::V5_PLUS,
            desktop_width,
            desktop_height,
            color_depth: ColorDepth::Bpp8, // overridden below
            sec_access_sequence: SecureAccessSequence::Del,
            keyboard_layout: US_KEYBOARD,
            client_build: 0,
            client_name: String::from("jetway"),
            keyboard_type: KeyboardType::IBM_ENHANCED,
            keyboard_subtype: 0,
            keyboard_functional_keys_count: 12,
            ime_file_name: String::new(),
            optional_data: ClientCoreOptionalData {
                post_beta2_color_depth: Some(ColorDepth::Bpp8), // overridden by the next
                client_product_id: Some(1),
                serial_number: Some(0),
                high_color_depth: Some(HighColorDepth::Bpp24),
                supported_color_depths: Some(
                    SupportedColorDepths::BPP32
                        | SupportedColorDepths::BPP24
                        | SupportedColorDepths::BPP16
                        | SupportedColorDepths::BPP15,
                ),
                early_capability_flags: Some(
                    ClientEarlyCapabilityFlags::VALID_CONNECTION_TYPE
                        | ClientEarlyCapabilityFlags::SUPPORT_ERR_INFO_PDU
                        | ClientEarlyCapabilityFlags::STRONG_ASYMMETRIC_KEYS
                        | ClientEarlyCapabilityFlags::SUPPORT_SKIP_CHANNELJOIN
                        | ClientEarlyCapabilityFlags::WANT_32_BPP_SESSION
                        | ClientEarlyCapabilityFlags::SUPPORT_MONITOR_LAYOUT_PDU,
                ),
                dig_product_id: Some(String::new()),
                connection_type: Some(ConnectionType::Lan),
                server_selected_protocol: Some(SecurityProtocol::SSL),
                desktop_physical_width: None,
                desktop_physical_height: None,
                desktop_orientation: None,
                desktop_scale_factor: None,
                device_scale_factor: None,
            },
        },
        security: ClientSecurityData {
            encryption_methods: EncryptionMethod::empty(),
            ext_encryption_methods: 0,
        },
        network: None,
        cluster: None,
        monitor: None,
        message_channel: Some(ClientMessageChannelData),
        multi_transport_channel: None,
        monitor_extended: None,
    }
}

fn client_info(wishes: &Wishes<'_>) -> ClientInfoPdu {
    let address_family = match wishes.address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET_6,
    };
    ClientInfoPdu {
        security_header: BasicSecurityHeader {
            flags: BasicSecurityHeaderFlags::INFO_PKT,
        },
        client_info: ClientInfo {
            credentials: Credentials {
                username: String::from(wishes.user),
                password: String::from(wishes.password),
                domain: None,
            },
            password_cookie: None,
            code_page: US_KEYBOARD,
            flags: ClientInfoFlags::MOUSE
                | ClientInfoFlags::MOUSE_HAS_WHEEL
                | ClientInfoFlags::UNICODE
                | ClientInfoFlags::DISABLE_CTRL_ALT_DEL
                | ClientInfoFlags::LOGON_NOTIFY
                | ClientInfoFlags::LOGON_ERRORS
                | ClientInfoFlags::VIDEO_DISABLE
                | ClientInfoFlags::ENABLE_WINDOWS_KEY
                | ClientInfoFlags::MAXIMIZE_SHELL
                | ClientInfoFlags::AUTOLOGON
                | ClientInfoFlags::NO_AUDIO_PLAYBACK,
            // Means nothing without INFO_COMPRESSION.
            compression_type: CompressionType::K8,
            alternate_shell: String::new(),
            work_dir: String::new(),
            extra_info: ExtendedClientInfo {
                address_family,
                address: wishes.address.to_string(),
                dir: String::from("jetway"),
                optional_data: ExtendedClientOptionalInfo::builder()
                    .timezone(TimezoneInfo::default())
                    .session_id(0)
                    .performance_flags(PerformanceFlags::default())
                    .build(),
            },
        },
    }
}

/// What Confirm Active announces: bitmap updates, and none of the caches and codecs.
fn capabilities((desktop_width, desktop_height): (u16, u16)) -> Vec<CapabilitySet> {
    let no_cache = CacheDefinition {
        entries: 0,
        max_cell_size: 0,
    };
    vec![
        CapabilitySet::General(General {
            major_platform_type: MajorPlatformType::UNIX,
            extra_flags: GeneralExtraFlags::FASTPATH_OUTPUT_SUPPORTED
                | GeneralExtraFlags::NO_BITMAP_COMPRESSION_HDR,
            ..General::default()
        }),
        CapabilitySet::Bitmap(Bitmap {
            pref_bits_per_pix: 32,
            desktop_width,
            desktop_height,
            desktop_resize_flag: true,
            drawing_flags: BitmapDrawingFlags::ALLOW_SKIP_ALPHA,
        }),
        CapabilitySet::Order(Order::new(
            OrderFlags::NEGOTIATE_ORDER_SUPPORT | OrderFlags::ZERO_BOUNDS_DELTAS_SUPPORT,
            OrderSupportExFlags::empty(),
            0,
            0,
        )),
        CapabilitySet::BitmapCache(BitmapCache {
            caches: [CacheEntry {
                entries: 0,
                max_cell_size: 0,
            }; BITMAP_CACHE_ENTRIES_NUM],
        }),
        CapabilitySet::Input(Input {
            input_flags: InputFlags::all(),
            keyboard_layout: US_KEYBOARD,
            keyboard_type: Some(KeyboardType::IBM_ENHANCED),
            keyboard_subtype: 0,
            keyboard_function_key: 12,
            keyboard_ime_filename: String::new(),
        }),
        CapabilitySet::Pointer(Pointer {
            color_pointer_cache_size: 32,
            pointer_cache_size: 32,
        }),
        CapabilitySet::Brush(Brush {
            support_level: SupportLevel::Default,
        }),
        CapabilitySet::GlyphCache(GlyphCache {
            glyph_cache: [no_cache; GLYPH_CACHE_NUM],
            frag_cache: no_cache,
            glyph_support_level: GlyphSupportLevel::None,
        }),
        CapabilitySet::OffscreenBitmapCache(OffscreenBitmapCache {
            is_supported: false,
            cache_size: 0,
            cache_entries: 0,
        }),
        CapabilitySet::VirtualChannel(VirtualChannel {
            flags: VirtualChannelFlags::NO_COMPRESSION,
            chunk_size: None,
        }),
        CapabilitySet::Sound(Sound {
            flags: SoundFlags::empty(),
        }),
    ]
}

/// Appends an MCS Send Data Request on the I/O channel.
fn put_data(
    answer: &mut Vec<u8>,
    channels: Channels,
    pdu: &impl Encode,
    name: &'static str,
) -> Result<(), SequenceError> {
    let data = encode_vec(pdu).map_err(|_| SequenceError::Encode(name))?;
    let request = SendDataRequest {
        initiator_id: channels.user,
        channel_id: channels.io,
        user_data: Cow::Owned(data),
    };
    put(answer, &X224(request), name)
}

fn put(answer: &mut Vec<u8>, pdu: &impl Encode, name: &'static str) -> Result<(), SequenceError> {
    let frame = encode_vec(pdu).map_err(|_| SequenceError::Encode(name))?;
    answer.extend(frame);
    Ok(())
}

/// Language identifier of the keyboard whose keys the client presses.
const US_KEYBOARD: u32 = 0x0409;

/// The protocol's upper bound for both edges of a desktop ([MS-RDPBCGR] 2.2.1.3.2).
const LARGEST_EDGE: u16 = 8192;
