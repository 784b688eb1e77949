//! [MS-RDPBCGR] 2.2.10.1.1 Save Session Info: who logged on to the target, and the cookie to come back with.

use std::fmt;

use zeroize::Zeroizing;

/// Save Session Info ([MS-RDPBCGR] 2.2.10.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveSessionInfo {
    /// Somebody logged on, by name.
    User {
        /// Domain.
        domain: String,
        /// User.
        user: String,
        /// Session of the target.
        session_id: u32,
    },
    /// Somebody logged on; the target does not say who.
    Plain,
    /// Logon errors and notices: `ErrorNotificationType` and `ErrorNotificationData`.
    Notice {
        /// Kind.
        kind: u32,
        /// Detail.
        data: u32,
    },
}

/// `ARC_SC_PRIVATE_PACKET`: what lets a client come back to its session without a password.
#[derive(Clone, PartialEq, Eq)]
pub struct AutoReconnectCookie {
    /// The session that it reconnects to.
    pub logon_id: u32,
    /// The secret.
    pub random_bits: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for AutoReconnectCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AutoReconnectCookie")
            .field("logon_id", &self.logon_id)
            .finish_non_exhaustive()
    }
}
