//! A reason the user can read, where a client is in TLS already and its target cannot be had.
//!
//! After RDP_NEG_RSP there is no failure message any more. What clients show then is the code of a Set Error Info PDU
//! ([MS-RDPBCGR] 2.2.5.1), and they take it only once licensing is over. So this is the smallest server that leads a
//! client there and says goodbye, bytes in and bytes out:
//!
//! ```text
//! client                                        here
//! MCS Connect Initial                       ->
//!                                           <-  MCS Connect Response, with the channels that were asked for
//! Erect Domain, Attach User                 ->
//!                                           <-  Attach User Confirm
//! Channel Join (each)                       ->
//!                                           <-  Channel Join Confirm
//! Client Info                               ->
//!                                           <-  licence: valid client, Set Error Info, Disconnect Provider Ultimatum
//! ```
//!
//! Nothing of what the client says is kept: its password in the Client Info PDU is wiped with the buffer.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/a98e1c23-37e0-4c6f-8d1e-5ac4a8f31f3e

use std::borrow::Cow;
use std::fmt;

use ironrdp_core::{Encode, decode, encode_vec};
use ironrdp_pdu::gcc::{
    ConferenceCreateResponse, RdpVersion, ServerCoreData, ServerCoreOptionalData, ServerGccBlocks,
    ServerNetworkData, ServerSecurityData,
};
use ironrdp_pdu::mcs::{
    AttachUserConfirm, ChannelJoinConfirm, ConnectInitial, ConnectResponse, DisconnectReason,
    DomainParameters, McsMessage, SendDataIndication,
};
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::rdp::server_license::{LicensePdu, LicensingErrorMessage};
use ironrdp_pdu::x224::{X224, X224Data};
use zeroize::Zeroizing;

/// Why there will be no session.
///
/// The protocol has no code that means "a gateway could not log on for you", so the closest in meaning is sent; the log
/// has the exact words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The target does not accept the stored credentials: ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED.
    WrongCredentials,
    /// The account is locked, disabled, expired or may not log on: ERRINFO_SERVER_INSUFFICIENT_PRIVILEGES.
    AccountRefused,
    /// The target could not be asked, or has gone: ERRINFO_CB_DESTINATION_NOT_FOUND.
    TargetUnavailable,
    /// The target is not who it should be, or cannot be connected to in the way demanded:
    /// ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS.
    TargetNotTrusted,
    /// The Kerberos server cannot be reached: ERRINFO_CB_SESSION_ONLINE_VM_NO_DNS, which clients render as a failed
    /// look-up of the destination.
    LogonServerUnavailable,
    /// An administrator or a rule says no: ERRINFO_SERVER_DENIED_CONNECTION.
    Denied,
}

impl Reason {
    /// `errorInfo` ([MS-RDPBCGR] 2.2.5.1.1).
    #[must_use]
    pub const fn error_info(self) -> u32 {
        match self {
            Self::WrongCredentials => 0x0000_000a,
            Self::AccountRefused => 0x0000_0009,
            Self::TargetUnavailable => 0x0000_0400,
            Self::TargetNotTrusted => 0x0000_0410,
            Self::LogonServerUnavailable => 0x0000_0407,
            Self::Denied => 0x0000_0007,
        }
    }
}

/// Why a client could not be led to its farewell; its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FarewellError {
    /// Not a TPKT frame.
    #[error("not a TPKT frame")]
    Frame,
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

/// The server half of one farewell.
pub struct Farewell {
    error_info: u32,
    client_requested: u32,
    input: Zeroizing<Vec<u8>>,
    frames: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before MCS Connect Initial.
    Initial,
    /// Until the Client Info PDU.
    Joining,
    /// Everything was said.
    Done,
}

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Farewell")
            .field("error_info", &self.error_info)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Farewell {
    /// A farewell with `error_info`, for a client that offered the protocols `client_requested` in its Connection
    /// Request: it compares.
    #[must_use]
    pub fn new(error_info: u32, client_requested: u32) -> Self {
        Self {
            error_info,
            client_requested,
            input: Zeroizing::new(Vec::with_capacity(INPUT_BYTES)),
            frames: 0,
            state: State::Initial,
        }
    }

    /// Whether everything was said: the connection is to be closed, after the client or some seconds later.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what arrived from the client and returns what is to be sent to it.
    ///
    /// # Errors
    /// The client does not follow the connection sequence; there is nothing more to say to it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<u8>, FarewellError> {
        let mut answer = Vec::new();
        let mut rest = bytes;
        while !self.is_done() {
            // Never more than one frame is kept, in a buffer that does not move.
            let wanted = self.wanted()?;
            let missing = wanted.saturating_sub(self.input.len());
            let (taken, left) = rest.split_at(missing.min(rest.len()));
            self.input.extend_from_slice(taken);
            rest = left;
            // Asked again: the first byte may be wrong already.
            if self.input.len() < self.wanted()? {
                if rest.is_empty() {
                    break;
                }
                continue;
            }
            self.frames = self.frames.saturating_add(1);
            if self.frames > FRAMES {
                return Err(FarewellError::TooMany);
            }
            let frame = std::mem::replace(
                &mut self.input,
                Zeroizing::new(Vec::with_capacity(INPUT_BYTES)),
            );
            self.answer(&frame, &mut answer)?;
        }
        Ok(answer)
    }

    /// Bytes until the next decision: the header first, then the frame.
    fn wanted(&self) -> Result<usize, FarewellError> {
        if self.input.first().is_some_and(|&version| version != 0x03) {
            return Err(FarewellError::Frame);
        }
        match **self.input {
            [_, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length <= TPKT_HEADER_BYTES {
                    return Err(FarewellError::Frame);
                }
                Ok(length)
            }
            _ => Ok(TPKT_HEADER_BYTES),
        }
    }

    fn answer(&mut self, frame: &[u8], answer: &mut Vec<u8>) -> Result<(), FarewellError> {
        match self.state {
            State::Initial => {
                self.connect(frame, answer)?;
                self.state = State::Joining;
            }
            State::Joining => match decode::<X224<McsMessage<'_>>>(frame)
                .map_err(|_| FarewellError::Message("MCS PDU"))?
                .0
            {
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
                    self.say(answer)?;
                    self.state = State::Done;
                }
                // Some other channel: not what is waited for.
                McsMessage::SendDataRequest(_) => {}
                McsMessage::DisconnectProviderUltimatum(_) => self.state = State::Done,
                McsMessage::AttachUserConfirm(_)
                | McsMessage::ChannelJoinConfirm(_)
                | McsMessage::SendDataIndication(_) => {
                    return Err(FarewellError::Message("MCS PDU of a server"));
                }
            },
            State::Done => {}
        }
        Ok(())
    }

    /// MCS Connect Response with GCC Conference Create Response ([MS-RDPBCGR] 2.2.1.4).
    fn connect(&self, frame: &[u8], answer: &mut Vec<u8>) -> Result<(), FarewellError> {
        let malformed = |_| FarewellError::Message("MCS Connect Initial");
        let data = decode::<X224<X224Data<'_>>>(frame).map_err(malformed)?.0;
        let initial = decode::<ConnectInitial>(&data.data).map_err(malformed)?;
        let blocks = initial.conference_create_request.into_gcc_blocks();
        let channels = blocks.network.map_or(0, |network| network.channels.len());
        let channel_ids = (IO_CHANNEL.saturating_add(1)..)
            .take(channels.min(STATIC_CHANNELS))
            .collect();
        let blocks = ServerGccBlocks {
            core: ServerCoreData {
                version: RdpVersion::V5_PLUS,
                optional_data: ServerCoreOptionalData {
                    client_requested_protocols: Some(SecurityProtocol::from_bits_retain(
                        self.client_requested,
                    )),
                    early_capability_flags: None,
                },
            },
            network: ServerNetworkData {
                channel_ids,
                io_channel: IO_CHANNEL,
            },
            security: ServerSecurityData::no_security(),
            message_channel: None,
            multi_transport_channel: None,
        };
        let response = ConnectResponse {
            conference_create_response: ConferenceCreateResponse::new(USER_CHANNEL, blocks)
                .map_err(|_| FarewellError::Encode("GCC Conference Create Response"))?,
            called_connect_id: 0,
            domain_parameters: DomainParameters::target(),
        };
        let response =
            encode_vec(&response).map_err(|_| FarewellError::Encode("MCS Connect Response"))?;
        let data = X224Data {
            data: Cow::Owned(response),
        };
        put(answer, &X224(data), "X.224 Data")?;
        Ok(())
    }

    /// Set Error Info goes to clients without RNS_UD_CS_SUPPORT_ERRINFO_PDU, too: FreeRDP 3 does not set that flag and
    /// shows the reason, and who does not know the PDU has nothing to lose when the ultimatum follows.
    fn say(&self, answer: &mut Vec<u8>) -> Result<(), FarewellError> {
        let valid_client = LicensingErrorMessage::new_valid_client()
            .map_err(|_| FarewellError::Encode("licence"))?;
        let valid_client = encode_vec(&LicensePdu::from(valid_client))
            .map_err(|_| FarewellError::Encode("licence"))?;
        put_data(answer, valid_client)?;
        put_data(answer, set_error_info(self.error_info))?;
        let ultimatum = McsMessage::DisconnectProviderUltimatum(
            ironrdp_pdu::mcs::DisconnectProviderUltimatum {
                reason: DisconnectReason::ProviderInitiated,
            },
        );
        put(answer, &X224(ultimatum), "Disconnect Provider Ultimatum")
    }
}

/// [MS-RDPBCGR] 2.2.5.1.1 Set Error Info PDU Data, from the Share Control Header on.
#[must_use]
pub fn set_error_info(error_info: u32) -> Vec<u8> {
    let mut pdu = Vec::with_capacity(22);
    pdu.extend([0x16, 0x00]); // totalLength: 22
    pdu.extend([0x17, 0x00]); // pduType: PDUTYPE_DATAPDU, version 1
    pdu.extend(SERVER_CHANNEL.to_le_bytes()); // pduSource
    pdu.extend([0; 4]); // shareId: there is no share yet
    pdu.extend([0x00, 0x01]); // pad1, streamId: STREAM_LOW
    pdu.extend([0x04, 0x00]); // uncompressedLength: the data
    pdu.extend([0x2f, 0x00]); // pduType2: PDUTYPE2_SET_ERROR_INFO_PDU, not compressed
    pdu.extend([0x00, 0x00]); // compressedLength
    pdu.extend(error_info.to_le_bytes());
    pdu
}

/// An MCS Send Data Indication on the I/O channel.
fn put_data(answer: &mut Vec<u8>, data: Vec<u8>) -> Result<(), FarewellError> {
    let indication = SendDataIndication {
        initiator_id: SERVER_CHANNEL,
        channel_id: IO_CHANNEL,
        user_data: Cow::Owned(data),
    };
    put(answer, &X224(indication), "Send Data Indication")
}

fn put(answer: &mut Vec<u8>, pdu: &impl Encode, name: &'static str) -> Result<(), FarewellError> {
    let frame = encode_vec(pdu).map_err(|_| FarewellError::Encode(name))?;
    answer.extend(frame);
    Ok(())
}

const TPKT_HEADER_BYTES: usize = 4;
/// What TPKT can name: the buffer never has to grow, and growing would leave copies behind.
const INPUT_BYTES: usize = 65_535;
/// Messages of one connection sequence: one join for each of 31 channels, and ten others.
const FRAMES: usize = 48;
/// [MS-RDPBCGR] 2.2.1.3.4: at most 31 static channels.
const STATIC_CHANNELS: usize = 31;
/// The MCS user id of servers.
const SERVER_CHANNEL: u16 = 1002;
/// The I/O channel; static channels follow it.
const IO_CHANNEL: u16 = 1003;
/// The MCS user id given to the client: behind every static channel.
const USER_CHANNEL: u16 = 1003 + 40;

#[cfg(test)]
mod tests {
    use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};

    use super::*;

    #[test]
    fn set_error_info_is_what_the_specification_says() {
        for reason in [
            Reason::WrongCredentials,
            Reason::AccountRefused,
            Reason::TargetUnavailable,
            Reason::TargetNotTrusted,
            Reason::LogonServerUnavailable,
            Reason::Denied,
        ] {
            let pdu = set_error_info(reason.error_info());
            let header: ShareControlHeader = decode(&pdu).unwrap();
            let ShareControlPdu::Data(data) = header.share_control_pdu else {
                panic!("not a data PDU");
            };
            let ShareDataPdu::ServerSetErrorInfo(info) = data.share_data_pdu else {
                panic!("not Set Error Info");
            };
            let code = encode_vec(&info).unwrap();
            assert_eq!(code, reason.error_info().to_le_bytes());
        }
    }

    #[test]
    fn what_is_no_frame_ends_the_farewell() {
        for bytes in [
            b"\x16\x03\x01\x00".as_slice(),
            b"\x30\x00",
            b"\x03\x00\x00\x04",
            b"\x03\x00\x00\x00",
        ] {
            let fed = Farewell::new(7, 0).feed(bytes);
            assert_eq!(fed, Err(FarewellError::Frame), "{bytes:02x?}");
        }
        let fed = Farewell::new(7, 0).feed(b"\x03\x00\x00\x08\x02\xf0\x80\x00");
        assert_eq!(fed, Err(FarewellError::Message("MCS Connect Initial")));
    }

    #[test]
    fn a_client_that_joins_for_ever_is_given_up() {
        let mut farewell = Farewell::new(7, 0);
        farewell.state = State::Joining;
        let erect_domain = b"\x03\x00\x00\x0c\x02\xf0\x80\x04\x01\x00\x01\x00";
        let fed = farewell.feed(&erect_domain.repeat(FRAMES + 1));
        assert_eq!(fed, Err(FarewellError::TooMany));
    }

    #[test]
    fn the_same_is_said_however_the_bytes_arrive() {
        let frames = [
            b"\x03\x00\x00\x0c\x02\xf0\x80\x04\x01\x00\x01\x00".as_slice(), // Erect Domain
            b"\x03\x00\x00\x08\x02\xf0\x80\x28",                            // Attach User
            b"\x03\x00\x00\x0c\x02\xf0\x80\x38\x00\x2a\x03\xeb",            // Join 1003
            b"\x03\x00\x00\x10\x02\xf0\x80\x64\x00\x2a\x03\xeb\x70\x02\x40\x00", // Client Info
        ]
        .concat();
        let joining = || {
            let mut farewell = Farewell::new(Reason::Denied.error_info(), 3);
            farewell.state = State::Joining;
            farewell
        };
        let mut at_once = joining();
        let expected = at_once.feed(&frames).unwrap();
        assert!(at_once.is_done());
        assert!(expected.ends_with(b"\x03\x00\x00\x09\x02\xf0\x80\x20\x80"));
        let code = Reason::Denied.error_info().to_le_bytes();
        assert!(expected.windows(4).any(|bytes| bytes == code));

        let mut byte_by_byte = joining();
        let said: Vec<u8> = frames
            .iter()
            .flat_map(|byte| byte_by_byte.feed(&[*byte]).unwrap())
            .collect();
        assert_eq!(said, expected);
        assert!(byte_by_byte.feed(b"more").unwrap().is_empty());
    }
}
