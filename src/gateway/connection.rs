//! An accepted connection, until it is a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::listener::Listener;
use crate::listener::admission::Admission;
use crate::refusal::Refusal;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_io::over_tcp::OverTcp;
use jetway_io::stream::Stream;
use jetway_rdp::connection_request::{self, ConnectionRequest};

/// A connection on its way to being a session.
#[derive(Debug)]
pub struct Client {
    /// Correlation id.
    pub id: SessionId,
    /// The other end of the socket, or the client that a trusted balancer names.
    pub peer: SocketAddr,
    /// When the connection was accepted.
    pub started: Instant,
    /// Identified by then, or dropped.
    pub identify_by: Instant,
    /// Relayed by then, or refused.
    pub establish_by: Instant,
    /// The port it came in by.
    pub listener: Arc<Listener>,
    /// What it showed as routing token, taken from its Connection Request.
    pub routing_token: Option<Zeroizing<Vec<u8>>>,
    /// Its bytes.
    pub stream: Stream,
    /// Its place among the connections.
    pub admission: Admission,
}

/// How the RDP part of the connection begins, as far as it was read.
#[derive(Debug)]
pub enum Opening {
    /// Nothing was read behind the preconnection PDU yet.
    Unread,
    /// X.224 Connection Request, taken from the stream.
    X224(ConnectionRequest),
    /// TLS at once, without X.224 before it; still in the stream.
    DirectTls,
    /// Some other protocol; still in the stream.
    Other,
}

impl Opening {
    /// Whether it is known that the client speaks RDP.
    #[must_use]
    pub fn is_rdp(&self) -> bool {
        match self {
            Self::X224(_) | Self::DirectTls => true,
            Self::Unread | Self::Other => false,
        }
    }
}

/// Waits for more of what the client sends, at most up to `limit` bytes that wait to be read.
///
/// # Errors
/// It has left, or its connection has broken.
///
/// # Cancel safety
/// Cancel safe.
pub async fn fill(stream: &mut Stream, limit: usize) -> Result<(), Refusal> {
    match stream.fill(limit).await {
        Ok(0) => Err(Refusal::Gone),
        Ok(_) => Ok(()),
        Err(error) => Err(Refusal::Io(error)),
    }
}

/// How often a client that waits is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the client behind `stream` has left, however much of what it has sent was not read. RDP has no half-close: its clients
/// have left when they have ended what they say. Others may wait for an answer, and have left when their connection breaks.
///
/// # Cancel safety
/// Cancel safe.
pub async fn departed(stream: &impl OverTcp, is_rdp: bool) -> Refusal {
    loop {
        sleep(LOOK_INTERVAL).await;
        if stream.has_broken() || is_rdp && stream.has_gone() {
            return Refusal::Gone;
        }
    }
}

/// Waits for a whole Connection Request and takes it from the stream.
///
/// # Errors
/// It is malformed, or as [`fill`].
///
/// # Cancel safety
/// Cancel safe: what has come of it stays in the stream.
pub async fn read_request(stream: &mut Stream) -> Result<ConnectionRequest, Refusal> {
    let (request, length) = loop {
        match connection_request::decode(stream.buffered())? {
            Some(found) => break found,
            None => fill(stream, limits::CONNECTION_REQUEST_BYTES).await?,
        }
    };
    stream.consume(length);
    Ok(request)
}

/// What an accepted connection is besides its bytes, where another part has those.
#[derive(Debug)]
pub struct Connection {
    /// When it was accepted.
    pub started: Instant,
    /// The port it came in by.
    pub listener: Arc<Listener>,
    /// Its place among the connections.
    pub admission: Admission,
}
