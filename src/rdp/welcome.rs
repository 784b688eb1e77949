//! The server half of the connection sequence in the middle of it ([MS-RDPBCGR] 1.3.1.1): from MCS Connect Initial to
//! the licence, one frame in and some bytes out.
//!
//! ```text
//! client                                        here
//! MCS Connect Initial                       ->
//!                                           <-  MCS Connect Response, with the channels that were asked for
//! Erect Domain, Attach User                 ->
//!                                           <-  Attach User Confirm
//! Channel Join (each, or none at all)       ->
//!                                           <-  Channel Join Confirm
//! Client Info                               ->
//!                                           <-  licence: valid client
//! ```
//!
//! Every client is welcome. What becomes of it is up to the caller: [`farewell`](super::farewell) says goodbye, the
//! demo's target goes on to a desktop.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/023f1e69-cfe8-4ee6-9ee0-7e759fb4e4ee

use std::borrow::Cow;

use ironrdp_core::{Encode, decode, encode_vec};
use ironrdp_pdu::gcc::{
    ClientEarlyCapabilityFlags, ConferenceCreateResponse, RdpVersion, ServerCoreData,
    ServerCoreOptionalData, ServerEarlyCapabilityFlags, ServerGccBlocks, ServerMessageChannelData,
    ServerNetworkData, ServerSecurityData,
};
use ironrdp_pdu::mcs::{
    AttachUserConfirm, ChannelJoinConfirm, ConnectResponse, DomainParameters, McsMessage,
    SendDataIndication,
};
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::rdp::server_license::{LicensePdu, LicensingErrorMessage};
use ironrdp_pdu::x224::{X224, X224Data};

use super::gcc::{self, ClientData};
use super::mcs::{self, Mcs};
use jetway_base::limits;

/// Why a client cannot be welcomed; its fault, but for [`Encode`](Self::Encode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WelcomeError {
    /// Not the message that belongs here, or malformed.
    #[error("unexpected or malformed {0}")]
    Message(&'static str),
    /// More messages than a connection sequence has.
    #[error("more than {FRAMES} messages")]
    TooMany,
    /// What should be sent has no encoding.
    #[error("{0} cannot be encoded")]
    Encode(&'static str),
}

/// Where the sequence stands behind a frame.
#[derive(Debug)]
pub enum WelcomeStep<'a> {
    /// The client has more to say.
    On,
    /// Everything up to the licence was said, also by this side. What the client said last is its Client Info PDU,
    /// from the security header on, which is not looked at here.
    Welcomed(Cow<'a, [u8]>),
    /// The client has left.
    Left,
}

/// The welcome of one client.
#[derive(Debug)]
pub struct Welcome {
    client_requested: u32,
    frames: usize,
    /// What MCS Connect Initial said.
    client: Option<ClientData>,
}

impl Welcome {
    /// The welcome of a client that offered the protocols `client_requested` in its Connection Request: it compares.
    #[must_use]
    pub fn new(client_requested: u32) -> Self {
        Self {
            client_requested,
            frames: 0,
            client: None,
        }
    }

    /// Who the client is and what it asks for; `None` before MCS Connect Initial.
    #[must_use]
    pub fn client(&self) -> Option<&ClientData> {
        self.client.as_ref()
    }

    /// Takes a frame from the client, from its TPKT header on, and appends what is to be sent to it to `answer`.
    ///
    /// # Errors
    /// The client does not follow the connection sequence; there is nothing more to say to it.
    pub fn frame<'a>(
        &mut self,
        frame: &'a [u8],
        answer: &mut Vec<u8>,
    ) -> Result<WelcomeStep<'a>, WelcomeError> {
        self.frames = self.frames.saturating_add(1);
        if self.frames > FRAMES {
            return Err(WelcomeError::TooMany);
        }
        if self.client.is_none() {
            self.connect(frame, answer)?;
            return Ok(WelcomeStep::On);
        }
        let message = decode::<X224<McsMessage<'_>>>(frame)
            .map_err(|_| WelcomeError::Message("MCS PDU"))?
            .0;
        match message {
            McsMessage::ErectDomainRequest(_) => {}
            McsMessage::AttachUserRequest(_) => {
                let confirm = AttachUserConfirm {
                    result: 0,
                    initiator_id: USER_CHANNEL,
                };
                put(answer, &X224(confirm), "Attach User Confirm")?;
            }
            McsMessage::ChannelJoinRequest(request) => {
                let confirm = ChannelJoinConfirm {
                    result: 0,
                    initiator_id: USER_CHANNEL,
                    requested_channel_id: request.channel_id,
                    channel_id: request.channel_id,
                };
                put(answer, &X224(confirm), "Channel Join Confirm")?;
            }
            McsMessage::SendDataRequest(data) if data.channel_id == IO_CHANNEL => {
                let valid_client = LicensingErrorMessage::new_valid_client()
                    .map_err(|_| WelcomeError::Encode("licence"))?;
                put_data(answer, &LicensePdu::from(valid_client), "licence")?;
                return Ok(WelcomeStep::Welcomed(data.user_data));
            }
            // Some other channel: not what is waited for.
            McsMessage::SendDataRequest(_) => {}
            McsMessage::DisconnectProviderUltimatum(_) => return Ok(WelcomeStep::Left),
            McsMessage::AttachUserConfirm(_)
            | McsMessage::ChannelJoinConfirm(_)
            | McsMessage::SendDataIndication(_) => {
                return Err(WelcomeError::Message("MCS PDU of a server"));
            }
        }
        Ok(WelcomeStep::On)
    }

    /// MCS Connect Response with GCC Conference Create Response ([MS-RDPBCGR] 2.2.1.4).
    fn connect(&mut self, frame: &[u8], answer: &mut Vec<u8>) -> Result<(), WelcomeError> {
        let malformed = WelcomeError::Message("MCS Connect Initial");
        let Ok((Mcs::ConnectInitial { user_data }, _)) = mcs::decode(frame) else {
            return Err(malformed);
        };
        let (client, _) = gcc::decode_client(frame, user_data).map_err(|_| malformed)?;
        let mut ids = IO_CHANNEL.saturating_add(1)..;
        let channel_ids = ids
            .by_ref()
            .take(client.channels.len().min(limits::STATIC_CHANNELS))
            .collect();
        let message_channel = ids.next().filter(|_| client.message_channel);
        let client_flags =
            ClientEarlyCapabilityFlags::from_bits_retain(client.early_capability_flags);
        let blocks = ServerGccBlocks {
            core: ServerCoreData {
                version: RdpVersion::V5_PLUS,
                optional_data: ServerCoreOptionalData {
                    client_requested_protocols: Some(SecurityProtocol::from_bits_retain(
                        self.client_requested,
                    )),
                    early_capability_flags: client_flags
                        .contains(ClientEarlyCapabilityFlags::SUPPORT_SKIP_CHANNELJOIN)
                        .then_some(ServerEarlyCapabilityFlags::SKIP_CHANNELJOIN_SUPPORTED),
                },
            },
            network: ServerNetworkData {
                channel_ids,
                io_channel: IO_CHANNEL,
            },
            security: ServerSecurityData::no_security(),
            message_channel: message_channel.map(|mcs_message_channel_id| {
                ServerMessageChannelData {
                    mcs_message_channel_id,
                }
            }),
            multi_transport_channel: None,
        };
        let response = ConnectResponse {
            conference_create_response: ConferenceCreateResponse::new(USER_CHANNEL, blocks)
                .map_err(|_| WelcomeError::Encode("GCC Conference Create Response"))?,
            called_connect_id: 0,
            domain_parameters: DomainParameters::target(),
        };
        let response =
            encode_vec(&response).map_err(|_| WelcomeError::Encode("MCS Connect Response"))?;
        let data = X224Data {
            data: Cow::Owned(response),
        };
        put(answer, &X224(data), "X.224 Data")?;
        self.client = Some(client);
        Ok(())
    }

    /// Behind MCS Connect Initial, of which nothing is known.
    #[cfg(test)]
    pub(super) fn joining() -> Self {
        Self {
            client: Some(ClientData::default()),
            ..Self::new(0)
        }
    }
}

/// Appends an MCS Send Data Indication on the I/O channel.
///
/// # Errors
/// The PDU called `name` cannot be encoded.
pub fn put_data(
    answer: &mut Vec<u8>,
    pdu: &impl Encode,
    name: &'static str,
) -> Result<(), WelcomeError> {
    let data = encode_vec(pdu).map_err(|_| WelcomeError::Encode(name))?;
    let indication = SendDataIndication {
        initiator_id: SERVER_CHANNEL,
        channel_id: IO_CHANNEL,
        user_data: Cow::Owned(data),
    };
    put(answer, &X224(indication), name)
}

fn put(answer: &mut Vec<u8>, pdu: &impl Encode, name: &'static str) -> Result<(), WelcomeError> {
    let frame = encode_vec(pdu).map_err(|_| WelcomeError::Encode(name))?;
    answer.extend(frame);
    Ok(())
}

/// The MCS user id of servers.
pub const SERVER_CHANNEL: u16 = 1002;

/// The I/O channel; static channels follow it, and then the message channel.
pub const IO_CHANNEL: u16 = 1003;

/// The MCS user id given to the client: behind every other channel.
pub const USER_CHANNEL: u16 = 1003 + 40;

/// Messages of one connection sequence: one join for each of 31 channels, and ten others.
pub(super) const FRAMES: usize = 48;

#[cfg(test)]
mod tests {
    use ironrdp_pdu::gcc::ServerGccBlocks;
    use jetway_lab::recording;

    use super::*;

    /// What a recorded client says up to its Client Info PDU, the last frame.
    fn frames(recorded: &str) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (is_client, frame) in recording::session(recorded, [true, false]) {
            if is_client {
                let is_data = matches!(mcs::decode(&frame), Ok((Mcs::SendData { .. }, _)));
                frames.push(frame);
                if is_data {
                    return frames;
                }
            }
        }
        panic!("no Client Info");
    }

    fn response(answer: &[u8]) -> ServerGccBlocks {
        let data = decode::<X224<X224Data<'_>>>(answer).unwrap().0;
        let response = decode::<ConnectResponse>(&data.data).unwrap();
        response.conference_create_response.into_gcc_blocks()
    }

    /// Welcomes a recorded client; the Server GCC blocks it got and its Client Info.
    fn welcome(recorded: &str) -> (Welcome, ServerGccBlocks, Vec<u8>) {
        let frames = frames(recorded);
        let (info, joining) = frames.split_last().unwrap();
        let (initial, joining) = joining.split_first().unwrap();
        let mut welcome = Welcome::new(3);
        let mut answer = Vec::new();
        assert!(matches!(
            welcome.frame(initial, &mut answer),
            Ok(WelcomeStep::On)
        ));
        let blocks = response(&answer);
        for frame in joining {
            assert!(matches!(
                welcome.frame(frame, &mut answer),
                Ok(WelcomeStep::On)
            ));
        }
        answer.clear();
        let Ok(WelcomeStep::Welcomed(info)) = welcome.frame(info, &mut answer) else {
            panic!("not welcome");
        };
        let Ok((Mcs::SendData { user_data, .. }, _)) = mcs::decode(&answer) else {
            panic!("{answer:02x?}");
        };
        let LicensePdu::LicensingErrorMessage(licence) = decode(&answer[user_data]).unwrap() else {
            panic!("another licence message");
        };
        assert_eq!(licence, LicensingErrorMessage::new_valid_client().unwrap());
        (welcome, blocks, info.into_owned())
    }

    #[test]
    fn a_client_that_joins_every_channel_is_welcome() {
        let (welcome, blocks, info) = welcome("gdi-tls-shadow2");
        let client = welcome.client().unwrap();
        let asked = u16::try_from(client.channels.len()).unwrap();
        let expected: Vec<u16> = (1004..1004 + asked).collect();
        assert!(asked > 0);
        assert_eq!(blocks.network.io_channel, 1003);
        assert_eq!(blocks.network.channel_ids, expected);
        let requested = blocks.core.optional_data.client_requested_protocols;
        assert_eq!(requested, Some(SecurityProtocol::from_bits_retain(3)));
        let (info, _) = crate::client_info::decode(&info).unwrap();
        assert_eq!(info.user, "alice");
    }

    #[test]
    fn joins_are_skipped_and_a_message_channel_is_given_where_the_client_asks() {
        let (welcome, blocks, _) = welcome("egfx-nla-shadow3");
        let asked = u16::try_from(welcome.client().unwrap().channels.len()).unwrap();
        assert_eq!(
            blocks.core.optional_data.early_capability_flags,
            Some(ServerEarlyCapabilityFlags::SKIP_CHANNELJOIN_SUPPORTED)
        );
        let message_channel = blocks.message_channel.unwrap().mcs_message_channel_id;
        assert_eq!(message_channel, 1004 + asked);
        assert!(message_channel < USER_CHANNEL);
    }

    #[test]
    fn messages_out_of_place_are_refused() {
        let refused =
            |mut welcome: Welcome, frame: &[u8]| welcome.frame(frame, &mut Vec::new()).unwrap_err();
        let attach_user = b"\x03\x00\x00\x08\x02\xf0\x80\x28";
        let initial = WelcomeError::Message("MCS Connect Initial");
        assert_eq!(refused(Welcome::new(0), attach_user), initial);
        for (frame, error) in [
            (b"".as_slice(), "MCS PDU"),
            (b"\x30\x03\x00", "MCS PDU"),
            (b"\x03\x00\x00\x08\x02\xf0\x80\xff", "MCS PDU"),
            (
                b"\x03\x00\x00\x0b\x02\xf0\x80\x2e\x00\x00\x06",
                "MCS PDU of a server",
            ),
        ] {
            let refused = refused(Welcome::joining(), frame);
            assert_eq!(refused, WelcomeError::Message(error), "{frame:02x?}");
        }
    }

    #[test]
    fn a_client_that_joins_for_ever_is_given_up() {
        let mut welcome = Welcome::joining();
        let erect_domain = b"\x03\x00\x00\x0c\x02\xf0\x80\x04\x01\x00\x01\x00";
        for _ in 0..FRAMES {
            let step = welcome.frame(erect_domain, &mut Vec::new());
            assert!(matches!(step, Ok(WelcomeStep::On)));
        }
        let step = welcome.frame(erect_domain, &mut Vec::new());
        assert_eq!(step.unwrap_err(), WelcomeError::TooMany);
    }

    #[test]
    fn a_client_that_leaves_is_let_go() {
        let step = Welcome::joining()
            .frame(&mcs::encode_disconnect(3), &mut Vec::new())
            .map(|step| matches!(step, WelcomeStep::Left));
        assert_eq!(step, Ok(true));
    }
}
