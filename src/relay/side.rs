//! The two sides of a session, what has passed between them, and which of them broke.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to the gateway.
    Client,
    /// Whom the gateway connected to.
    Target,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Target => "target",
        })
    }
}

/// Bytes that reached the other side so far; they may be read at any time.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the client, written to the target.
    pub to_target: AtomicU64,
    /// From the target, written to the client.
    pub to_client: AtomicU64,
}

/// Which end of one direction broke.
#[derive(Debug)]
pub(super) enum Fault {
    Reader(io::Error),
    Writer(io::Error),
}
