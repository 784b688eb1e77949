//! A reason the user can read, where a client is in TLS already and its target cannot be had.
//!
//! After RDP_NEG_RSP there is no failure message any more. What clients show then is the code of a Set Error Info PDU
//! ([MS-RDPBCGR] 2.2.5.1), and they take it only once licensing is over. So the client is welcomed
//! ([`welcome`](super::welcome)), and what it hears behind the licence is Set Error Info and the Disconnect Provider
//! Ultimatum.
//!
//! Nothing of what the client says is kept: its password in the Client Info PDU is wiped with the buffer.
//!
//! [MS-RDPBCGR]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-rdpbcgr/a98e1c23-37e0-4c6f-8d1e-5ac4a8f31f3e

use std::fmt;

use zeroize::Zeroizing;

use super::mcs;
use super::share;
use super::welcome::{IO_CHANNEL, SERVER_CHANNEL, Welcome, WelcomeError, WelcomeStep};

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
    /// Not what belongs into the connection sequence.
    #[error(transparent)]
    Welcome(#[from] WelcomeError),
    /// What should be sent has no encoding.
    #[error("{0} cannot be encoded")]
    Encode(&'static str),
}

/// The server half of one farewell.
pub struct Farewell {
    error_info: u32,
    input: Zeroizing<Vec<u8>>,
    /// `None` once everything was said.
    welcome: Option<Welcome>,
}

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Farewell")
            .field("error_info", &self.error_info)
            .field("done", &self.is_done())
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
            input: Zeroizing::new(Vec::with_capacity(INPUT_BYTES)),
            welcome: Some(Welcome::new(client_requested)),
        }
    }

    /// Whether everything was said: the connection is to be closed, after the client or some seconds later.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.welcome.is_none()
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
        let Some(welcome) = &mut self.welcome else {
            return Ok(());
        };
        match welcome.frame(frame, answer)? {
            WelcomeStep::On => return Ok(()),
            WelcomeStep::Welcomed(_) => {
                // Also to clients without RNS_UD_CS_SUPPORT_ERRINFO_PDU: FreeRDP 3 does not set that flag and shows the
                // reason, and who does not know the PDU has nothing to lose when the ultimatum follows. There is no
                // share yet.
                let info = share::encode_error_info(0, SERVER_CHANNEL, self.error_info);
                let info = mcs::encode_send_data(false, SERVER_CHANNEL, IO_CHANNEL, &[&info])
                    .ok_or(FarewellError::Encode("Set Error Info"))?;
                answer.extend(info);
                answer.extend(mcs::encode_disconnect(mcs::REASON_PROVIDER_INITIATED));
            }
            WelcomeStep::Left => {}
        }
        self.welcome = None;
        Ok(())
    }
}

const TPKT_HEADER_BYTES: usize = 4;
/// What TPKT can name: the buffer never has to grow, and growing would leave copies behind.
const INPUT_BYTES: usize = 65_535;

#[cfg(test)]
mod tests {
    use ironrdp_core::{decode, encode_vec};
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
            let pdu = share::encode_error_info(0, SERVER_CHANNEL, reason.error_info());
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
        let error = WelcomeError::Message("MCS Connect Initial");
        assert_eq!(fed, Err(FarewellError::Welcome(error)));
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
            farewell.welcome = Some(Welcome::joining());
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
