//! Why a session ends, whose fault it is, and what its user is told.

use crate::Direction;
use crate::budget::Exhausted;
use crate::client_info::ClientInfoError;
use crate::event::{Phase, Termination};
use crate::frame::FrameError;
use crate::gcc::GccError;
use crate::mcs::McsError;

/// Why a session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are no frame.
    #[error("{} sent no RDP frame: {error}", .from.sender())]
    Frame {
        /// Whose fault it is.
        from: Direction,
        /// Why.
        error: FrameError,
    },
    /// A frame that is no MCS PDU.
    #[error("{} sent a broken frame: {error}", .from.sender())]
    Mcs {
        /// Whose fault it is.
        from: Direction,
        /// Why.
        error: McsError,
    },
    /// Basic settings that cannot be trusted.
    #[error("{} sent broken settings: {error}", .from.sender())]
    Gcc {
        /// Whose fault it is.
        from: Direction,
        /// Why.
        error: GccError,
    },
    /// A Client Info PDU that cannot be read or changed.
    #[error("client's logon cannot be passed on: {0}")]
    ClientInfo(#[from] ClientInfoError),
    /// A PDU that does not say what its kind says.
    #[error("{} sent a malformed {pdu}", .from.sender())]
    Malformed {
        /// Whose fault it is.
        from: Direction,
        /// Which PDU.
        pdu: &'static str,
    },
    /// A PDU that has no place in this phase or direction.
    #[error("{} sent {pdu} during {phase}", .from.sender())]
    OutOfPlace {
        /// Whose fault it is.
        from: Direction,
        /// Which PDU.
        pdu: &'static str,
        /// When.
        phase: Phase,
    },
    /// Data for a channel that does not exist.
    #[error("{} sent data on channel {channel}, which does not exist", .from.sender())]
    UnknownChannel {
        /// Whose fault it is.
        from: Direction,
        /// MCS channel.
        channel: u16,
    },
    /// More than a limit allows.
    #[error("{} sent a message of {length} bytes on {channel}, above the limit of {limit}", .from.sender())]
    TooLong {
        /// Whose fault it is.
        from: Direction,
        /// Name of the channel.
        channel: String,
        /// What it says or holds.
        length: usize,
        /// What is accepted.
        limit: usize,
    },
    /// More is to be remembered than a session may make the gateway remember.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// Compressed data that do not decompress, or that were declined.
    #[error("{} sent compressed data that {why}", .from.sender())]
    Compression {
        /// Whose fault it is.
        from: Direction,
        /// What is wrong.
        why: &'static str,
    },
    /// UDP is offered where it cannot be declined.
    #[error("a second transport was requested, which would bypass the gateway")]
    Multitransport,
    /// The target sends the client where its token does not.
    #[error("target redirects to {to}, which is not allowed")]
    Redirection {
        /// Where to.
        to: String,
    },
    /// A stage ended the session.
    #[error("session ended by policy: {}", .0.grounds.reason)]
    Terminated(Termination),
    /// A stage wanted what cannot be done any more.
    #[error("a verdict on {0} cannot be carried out")]
    Verdict(&'static str),
}

impl SessionError {
    /// The Set Error Info code ([MS-RDPBCGR] 2.2.5.1.1) closest in meaning.
    #[must_use]
    pub fn error_info(&self) -> u32 {
        match self {
            Self::Terminated(termination) => termination.error_info,
            // ERRINFO_SERVER_DENIED_CONNECTION.
            Self::Redirection { .. } | Self::Multitransport => 0x0000_0007,
            // ERRINFO_DATAPDUSEQUENCE.
            Self::OutOfPlace { .. } => 0x0000_10cb,
            // The codes for broken PDUs name one kind each; this one is for any.
            Self::Frame { .. }
            | Self::Mcs { .. }
            | Self::Gcc { .. }
            | Self::ClientInfo(_)
            | Self::Malformed { .. }
            | Self::UnknownChannel { .. }
            | Self::TooLong { .. }
            | Self::Memory(_)
            | Self::Compression { .. }
            | Self::Verdict(_) => ERRINFO_RPC_INITIATED_DISCONNECT,
        }
    }
}

/// `ERRINFO_RPC_INITIATED_DISCONNECT`: ended by an administrative tool.
pub const ERRINFO_RPC_INITIATED_DISCONNECT: u32 = 0x0000_0001;

/// `ERRINFO_IDLE_TIMEOUT`.
pub const ERRINFO_IDLE_TIMEOUT: u32 = 0x0000_0003;

/// `ERRINFO_LOGON_TIMEOUT`: the time allowed for the session is over.
pub const ERRINFO_LOGON_TIMEOUT: u32 = 0x0000_0004;
