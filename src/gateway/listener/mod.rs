//! Ports: accept, limits. Nothing here waits for a client.

pub mod admission;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{Arrival, InspectWhen, ListenerConfig};
use crate::listener::admission::{Admission, Door};
use crate::trust::tls::ServerTls;
use jetway_io::clock;
use jetway_policy::InspectionMode;
use jetway_token::target::TargetAddr;

/// Connections the kernel holds for us while we are busy. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// After an accept failed for want of descriptors or memory: long enough for some to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often a failing accept is reported.
const ACCEPT_REPORT: Duration = Duration::from_secs(10);

/// One port and what may arrive there.
#[derive(Debug)]
pub struct Listener {
    config: ListenerConfig,
    tls: Option<Arc<ServerTls>>,
    /// Where it listens in fact.
    bound: OnceLock<SocketAddr>,
}

impl Listener {
    /// A listener with the TLS settings that hold for it, if any.
    #[must_use]
    pub fn new(config: ListenerConfig, tls: Option<Arc<ServerTls>>) -> Self {
        Self {
            config,
            tls,
            bound: OnceLock::new(),
        }
    }

    /// Where it listens, as configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.config.address
    }

    /// Whether this protocol may arrive here.
    #[must_use]
    pub fn accepts(&self, arrival: Arrival) -> bool {
        self.config.accept.contains(&arrival)
    }

    /// Whether `address` may name another one as the client.
    #[must_use]
    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.config
            .proxy_protocol_from
            .iter()
            .any(|net| net.contains(&address))
    }

    /// Settings for a TLS handshake, where there is a certificate.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(|tls| tls.current())
    }

    /// Whether sessions that came in here can be inspected, and whether they all are.
    #[must_use]
    pub fn inspecting(&self, inspect: InspectWhen) -> InspectionMode {
        match (&self.tls, inspect) {
            (None, _) => InspectionMode::Unavailable,
            (Some(_), InspectWhen::WhenNeeded) => InspectionMode::WhenNeeded,
            (Some(_), InspectWhen::Always) => InspectionMode::Always,
        }
    }

    /// Opens the port.
    ///
    /// # Errors
    /// The system's: in use, not ours, not allowed.
    pub fn bind(&self) -> io::Result<TcpListener> {
        let listener = listen(self.config.address)?;
        let _only = self.bound.set(listener.local_addr()?);
        Ok(listener)
    }

    /// How others reach it: as configured, or by the `host` that they know and the port.
    #[must_use]
    pub fn external(&self, host: Option<&str>) -> Option<TargetAddr> {
        if let Some(external) = &self.config.external {
            return Some(external.clone());
        }
        Some(TargetAddr {
            host: host?.to_owned(),
            port: self.bound.get()?.port(),
        })
    }
}

/// Opens a port of an `address`.
///
/// # Errors
/// The system's: in use, not ours, not allowed.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether this process may listen on `address`, and nobody does: nothing can connect to it meanwhile.
///
/// # Errors
/// The system's: in use, not ours, not allowed.
pub fn is_ours(address: SocketAddr) -> io::Result<()> {
    bound(address).map(drop)
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Without it an IPv6 listener would take the IPv4 port as well, and their settings could not differ.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts as many connections as `door` has places for, until `stopping` fires, and hands each with its place to `serve`.
///
/// # Cancel safety
/// Ends by itself when `stopping` fires; a connection that was accepted is always handed over or closed.
pub async fn accept_all(
    listener: &Listener,
    socket: TcpListener,
    door: &Door,
    stopping: &CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr, Admission),
) {
    let mut reported: Option<Instant> = None;
    loop {
        // At the limit nothing is accepted: the kernel's queue is the waiting room.
        let connection = tokio::select! {
            connection = door.connection() => connection,
            () = stopping.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // A trusted balancer's connections are counted for the clients that it names.
                let counted = (!listener.trusts_proxy(peer.ip())).then_some(peer.ip());
                match door.admit(connection, counted) {
                    Some(admission) => serve(stream, peer, admission),
                    None => {
                        debug!(%peer, "Too many unproven connections of its address; closed one")
                    }
                }
            }
            // The client was gone before we came to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let now = clock::now();
                if reported.is_none_or(|at| now.duration_since(at) >= ACCEPT_REPORT) {
                    warn!(%error, address = %listener.config.address, "Cannot accept connections");
                    reported = Some(now);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
