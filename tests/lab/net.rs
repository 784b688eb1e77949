//! Sockets on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// Both ends of a connection.
pub async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, (far, _)) = (near.unwrap(), far.unwrap());
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// An address at which nothing listens now. Another process may take it, so bind port 0 wherever the listener is the test's own.
pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Whether a process of this machine listens on `port`: by the kernel's tables, because a connection would be a session in its log.
///
/// # Errors
/// The kernel's table of IPv4 cannot be read.
pub fn is_listening(port: u16) -> std::io::Result<bool> {
    let address = format!(":{port:04X}");
    let listens = |table: &str| {
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            local.ends_with(&address) && fields.nth(1) == Some(LISTEN)
        })
    };
    let ipv4 = std::fs::read_to_string("/proc/net/tcp")?;
    // A kernel without IPv6 has no second table.
    let ipv6 = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Ok(listens(&ipv4) || listens(&ipv6))
}

/// TCP_LISTEN in the kernel's tables.
const LISTEN: &str = "0A";
