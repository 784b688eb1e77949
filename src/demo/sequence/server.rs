//! The target's half, from MCS Connect Initial until the client has its Font Map.
//!
//! ```text
//! client                                        server
//!                                               (welcome, up to the licence)
//!                                           <-  Demand Active, Monitor Layout for who knows it
//! Confirm Active                            ->
//! Synchronize, Cooperate, Request Control   ->
//! Font List                                 ->
//!                                           <-  Synchronize, Cooperate, Granted Control, Font Map
//! ```
//!
//! Every user is welcome. The desktop is as large as the client asks for in MCS Connect Initial, within
//! [`LARGEST_DESKTOP`], and [`DEFAULT_DESKTOP`] where it asks for none that the protocol allows.

use ironrdp_core::decode;
use ironrdp_pdu::gcc::{ClientEarlyCapabilityFlags, Monitor, MonitorFlags};
use ironrdp_pdu::mcs::McsMessage;
use ironrdp_pdu::rdp::capability_sets::{
    Bitmap, BitmapDrawingFlags, CapabilitySet, DemandActive, General, GeneralExtraFlags, Input,
    InputFlags, MultifragmentUpdate, Order, OrderFlags, OrderSupportExFlags, Pointer,
    ServerDemandActive, VirtualChannel, VirtualChannelFlags,
};
use ironrdp_pdu::rdp::finalization_messages::{
    ControlAction, ControlPdu, FontPdu, MonitorLayoutPdu, SynchronizePdu,
};
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::x224::X224;

use super::{EARLY_FRAMES, SequenceError, share_data};
use crate::desktop::{BITS_PER_PIXEL, DEFAULT_DESKTOP, LARGEST_DESKTOP};
use jetway_rdp::client_info;
use jetway_rdp::gcc::ClientData;
use jetway_rdp::welcome::{self, IO_CHANNEL, SERVER_CHANNEL, USER_CHANNEL, Welcome};

/// What the sequence has settled.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Width and height of the desktop.
    pub(crate) size: (u16, u16),
    /// The user name in Client Info.
    pub(crate) user: String,
    /// Frames that arrived before the Font List, and were not for the sequence.
    pub(crate) early_input: Vec<Vec<u8>>,
}

/// Where the sequence stands behind a frame.
#[derive(Debug)]
pub(crate) enum ServerStep {
    /// The client has more to say.
    On(ServerSequence),
    /// The session begins.
    Accepted(Accepted),
    /// The client has left.
    Left,
}

/// The server half of one sequence.
#[derive(Debug)]
pub(crate) struct ServerSequence(ServerState);

#[derive(Debug)]
enum ServerState {
    /// Up to the licence.
    Welcoming(Welcome),
    /// Until Confirm Active.
    Activating(Accepted),
    /// Until the Font List.
    Finalizing(Accepted),
}

impl ServerSequence {
    /// For a client that offered the protocols `client_requested` in its Connection Request.
    pub(crate) fn new(client_requested: u32) -> Self {
        Self(ServerState::Welcoming(Welcome::new(client_requested)))
    }

    /// Takes a frame from the client and appends what is to be sent to it to `answer`.
    ///
    /// # Errors
    /// The client does not follow the sequence.
    pub(crate) fn frame(
        self,
        frame: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<ServerStep, SequenceError> {
        match self.0 {
            ServerState::Welcoming(welcome) => begin(welcome, frame, answer),
            ServerState::Activating(accepted) => match Said::read(frame)? {
                Said::Pdu(pdu) if matches!(*pdu, ShareControlPdu::ClientConfirmActive(_)) => {
                    Ok(ServerStep::On(Self(ServerState::Finalizing(accepted))))
                }
                Said::Pdu(_) => Err(SequenceError::Message("PDU before Confirm Active")),
                Said::Elsewhere => Ok(ServerStep::On(Self(ServerState::Activating(accepted)))),
                Said::GoodBye => Ok(ServerStep::Left),
            },
            ServerState::Finalizing(accepted) => finalize(accepted, frame, answer),
        }
    }
}

fn begin(
    mut welcome: Welcome,
    frame: &[u8],
    answer: &mut Vec<u8>,
) -> Result<ServerStep, SequenceError> {
    let info = match welcome.frame(frame, answer)? {
        welcome::WelcomeStep::On => {
            return Ok(ServerStep::On(ServerSequence(ServerState::Welcoming(
                welcome,
            ))));
        }
        welcome::WelcomeStep::Left => return Ok(ServerStep::Left),
        welcome::WelcomeStep::Welcomed(info) => info,
    };
    let (info, _) =
        client_info::decode(&info).map_err(|_| SequenceError::Message("Client Info"))?;
    let client = welcome.client();
    let size = client.map_or(DEFAULT_DESKTOP, desktop_size);
    put(answer, &demand_active(size), "Demand Active")?;
    let flags = client.map_or(0, |client| client.early_capability_flags);
    if ClientEarlyCapabilityFlags::from_bits_retain(flags)
        .contains(ClientEarlyCapabilityFlags::SUPPORT_MONITOR_LAYOUT_PDU)
    {
        let monitor = Monitor {
            left: 0,
            top: 0,
            right: i32::from(size.0).saturating_sub(1),
            bottom: i32::from(size.1).saturating_sub(1),
            flags: MonitorFlags::PRIMARY,
        };
        let layout = ShareDataPdu::MonitorLayout(MonitorLayoutPdu {
            monitors: vec![monitor],
        });
        // [MS-RDPBCGR] 2.2.12.1: its source is zero.
        put(answer, &share_data(SHARE_ID, 0, layout), "Monitor Layout")?;
    }
    Ok(ServerStep::On(ServerSequence(ServerState::Activating(
        Accepted {
            size,
            user: info.user,
            early_input: Vec::new(),
        },
    ))))
}

fn finalize(
    mut accepted: Accepted,
    frame: &[u8],
    answer: &mut Vec<u8>,
) -> Result<ServerStep, SequenceError> {
    let said = match Said::read(frame) {
        Ok(Said::GoodBye) => return Ok(ServerStep::Left),
        Ok(Said::Pdu(pdu)) => Some(*pdu),
        // Fast-path input, and what else is not for here.
        Ok(Said::Elsewhere) | Err(_) => None,
    };
    let data = match said {
        Some(ShareControlPdu::Data(data)) => Some(data.share_data_pdu),
        _ => None,
    };
    match data {
        Some(ShareDataPdu::Synchronize(_) | ShareDataPdu::Control(_)) => {}
        Some(ShareDataPdu::FontList(_)) => {
            let control = |action, grant_id, control_id| {
                ShareDataPdu::Control(ControlPdu {
                    action,
                    grant_id,
                    control_id,
                })
            };
            for pdu in [
                ShareDataPdu::Synchronize(SynchronizePdu {
                    target_user_id: USER_CHANNEL,
                }),
                control(ControlAction::Cooperate, 0, 0),
                control(
                    ControlAction::GrantedControl,
                    USER_CHANNEL,
                    u32::from(SERVER_CHANNEL),
                ),
                ShareDataPdu::FontMap(FontPdu::default()),
            ] {
                let pdu = share_data(SHARE_ID, SERVER_CHANNEL, pdu);
                put(answer, &pdu, "connection finalization")?;
            }
            return Ok(ServerStep::Accepted(accepted));
        }
        _ => {
            if accepted.early_input.len() >= EARLY_FRAMES {
                return Err(SequenceError::TooEarly);
            }
            accepted.early_input.push(frame.to_vec());
        }
    }
    Ok(ServerStep::On(ServerSequence(ServerState::Finalizing(
        accepted,
    ))))
}

/// What a client says behind its Client Info.
enum Said {
    /// On the I/O channel.
    Pdu(Box<ShareControlPdu>),
    /// On another channel, where nobody is at this end.
    Elsewhere,
    /// Disconnect Provider Ultimatum.
    GoodBye,
}

impl Said {
    fn read(frame: &[u8]) -> Result<Self, SequenceError> {
        let message = decode::<X224<McsMessage<'_>>>(frame)
            .map_err(|_| SequenceError::Message("MCS PDU"))?
            .0;
        match message {
            McsMessage::SendDataRequest(data) if data.channel_id == IO_CHANNEL => {
                let header = decode::<ShareControlHeader>(&data.user_data)
                    .map_err(|_| SequenceError::Message("share control PDU"))?;
                Ok(Self::Pdu(Box::new(header.share_control_pdu)))
            }
            McsMessage::SendDataRequest(_) => Ok(Self::Elsewhere),
            McsMessage::DisconnectProviderUltimatum(_) => Ok(Self::GoodBye),
            McsMessage::ErectDomainRequest(_)
            | McsMessage::AttachUserRequest(_)
            | McsMessage::AttachUserConfirm(_)
            | McsMessage::ChannelJoinRequest(_)
            | McsMessage::ChannelJoinConfirm(_)
            | McsMessage::SendDataIndication(_) => {
                Err(SequenceError::Message("MCS PDU behind the licence"))
            }
        }
    }
}

fn desktop_size(client: &ClientData) -> (u16, u16) {
    let width = client.desktop_width.min(LARGEST_DESKTOP.0);
    let height = client.desktop_height.min(LARGEST_DESKTOP.1);
    if width < SMALLEST_EDGE || height < SMALLEST_EDGE {
        return DEFAULT_DESKTOP;
    }
    (width, height)
}

fn demand_active((desktop_width, desktop_height): (u16, u16)) -> ShareControlHeader {
    let capability_sets = vec![
        CapabilitySet::General(General {
            extra_flags: GeneralExtraFlags::FASTPATH_OUTPUT_SUPPORTED,
            refresh_rect_support: true,
            suppress_output_support: true,
            ..General::default()
        }),
        CapabilitySet::Bitmap(Bitmap {
            pref_bits_per_pix: BITS_PER_PIXEL,
            desktop_width,
            desktop_height,
            desktop_resize_flag: true,
            drawing_flags: BitmapDrawingFlags::empty(),
        }),
        CapabilitySet::Order(Order::new(
            OrderFlags::empty(),
            OrderSupportExFlags::empty(),
            0,
            0,
        )),
        CapabilitySet::Pointer(Pointer {
            color_pointer_cache_size: 32,
            pointer_cache_size: 32,
        }),
        CapabilitySet::Input(Input {
            input_flags: InputFlags::SCANCODES
                | InputFlags::MOUSEX
                | InputFlags::FASTPATH_INPUT
                | InputFlags::FASTPATH_INPUT_2
                | InputFlags::UNICODE,
            keyboard_layout: 0,
            keyboard_type: None,
            keyboard_subtype: 0,
            keyboard_function_key: 12,
            keyboard_ime_filename: String::new(),
        }),
        CapabilitySet::VirtualChannel(VirtualChannel {
            flags: VirtualChannelFlags::NO_COMPRESSION,
            chunk_size: None,
        }),
        CapabilitySet::MultiFragmentUpdate(MultifragmentUpdate {
            max_request_size: 65_535,
        }),
    ];
    ShareControlHeader {
        share_id: SHARE_ID,
        pdu_source: SERVER_CHANNEL,
        share_control_pdu: ShareControlPdu::ServerDemandActive(ServerDemandActive {
            pdu: DemandActive {
                source_descriptor: String::from("RDP"),
                capability_sets,
            },
        }),
    }
}

fn put(
    answer: &mut Vec<u8>,
    pdu: &ShareControlHeader,
    name: &'static str,
) -> Result<(), SequenceError> {
    Ok(welcome::put_data(answer, pdu, name)?)
}

/// The one share there is, as Windows numbers it.
const SHARE_ID: u32 = 0x0001_03ea;

/// The protocol's lower bound for both edges of a desktop ([MS-RDPBCGR] 2.2.1.3.2).
const SMALLEST_EDGE: u16 = 200;
