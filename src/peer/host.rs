//! Host candidates: an agent that the client reaches directly ([JET-PROTO] 2.3.2.2.2).
//!
//! Off unless asked for: the addresses of a machine are told to whoever gets an answer, and a port opens for each offer, until its
//! candidate is chosen. It speaks the binary protocol. Who connects shows the ids of association and candidate, which only the
//! answer holds; what passes is as secret as the protocol inside makes it.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use jetway_base::limits;
use jetway_jet::candidate::{CandidateType, CandidateUrl, Transport};
use jetway_jet::exchange::{JetPath, Operation, Request, Response, Status};
use jetway_jet::message::Candidate;
use jetway_jet::packet::{self, mask};
use jetway_token::target::TargetAddr;

/// How long who connects may take for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses that are told, at most.
const ADDRESSES: usize = limits::JET_CANDIDATES / 2;

/// A port of this machine that is one candidate.
#[derive(Debug)]
pub struct HostCandidate {
    /// What the answer says of it.
    pub candidate: Candidate,
    listener: TcpListener,
}

/// One candidate for each of `addresses`; those that cannot be bound are left out.
pub async fn gather(addresses: &[IpAddr]) -> Vec<HostCandidate> {
    let mut candidates = Vec::new();
    for address in addresses.iter().take(ADDRESSES) {
        match bind(*address).await {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => debug!(%address, %error, "No host candidate"),
        }
    }
    candidates
}

async fn bind(address: IpAddr) -> io::Result<HostCandidate> {
    let listener = TcpListener::bind((address, 0)).await?;
    let port = listener.local_addr()?.port();
    let url = CandidateUrl {
        transport: Transport::Tcp,
        address: TargetAddr {
            host: address.to_string(),
            port,
        },
        ctype: Some(CandidateType::Host),
    };
    let id = Uuid::new_v4();
    Ok(HostCandidate {
        candidate: Candidate { id, url },
        listener,
    })
}

impl HostCandidate {
    /// Waits for the one that connects with the right ids; tests are answered, and whatever else is sent away.
    pub async fn met(&self, association: Uuid) -> io::Result<TcpStream> {
        loop {
            let (mut stream, peer) = self.listener.accept().await?;
            match timeout(REQUEST_TIMEOUT, self.serve(&mut stream, association)).await {
                Ok(Ok(true)) => return Ok(stream),
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => {
                    debug!(%peer, %error, "A host candidate was not asked for rightly")
                }
            }
        }
    }

    async fn serve(&self, stream: &mut TcpStream, association: Uuid) -> io::Result<bool> {
        crate::tune(stream)?;
        let request = read_request(stream).await?;
        let JetPath {
            operation,
            association: named,
            candidate,
        } = request.path;
        let ours = (named, candidate) == (association, self.candidate.id);
        let (status, met) = match operation {
            Operation::Connect if ours => (Status::Ok, true),
            Operation::Test if ours => (Status::Ok, false),
            Operation::Accept | Operation::Connect | Operation::Test => (Status::NotFound, false),
        };
        let response = Response::new(status, request.version).to_payload();
        let packet = packet::encode(&response, mask()).map_err(io::Error::other)?;
        stream.write_all(&packet).await?;
        Ok(met)
    }
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Request> {
    let mut bytes = vec![0; packet::HEADER_BYTES];
    stream.read_exact(&mut bytes).await?;
    if packet::decode(&bytes).map_err(invalid)?.is_none() {
        let size = bytes.get(4..6).and_then(|size| size.first_chunk());
        let size = size.map_or(0, |size| usize::from(u16::from_be_bytes(*size)));
        bytes.resize(size, 0);
        let payload = bytes.get_mut(packet::HEADER_BYTES..);
        stream.read_exact(payload.unwrap_or_default()).await?;
    }
    let packet = packet::decode(&bytes).map_err(invalid)?;
    let packet = packet.ok_or(io::ErrorKind::InvalidData)?;
    Request::parse(&packet.payload).map_err(invalid)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The addresses of this machine's interfaces, without loopback and link-local ones. None where the system tells otherwise than
/// Linux does.
#[must_use]
pub fn local_addresses() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut addresses = parse_fib_trie(&read("/proc/net/fib_trie"));
    addresses.extend(parse_if_inet6(&read("/proc/net/if_inet6")));
    addresses
}

/// An address is a line, and the next one says that it is the machine's own.
fn parse_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.ends_with("host LOCAL")
            && let Some(address) = last
            && !address.is_loopback()
            && !address.is_link_local()
            && !addresses.contains(&address.into())
        {
            addresses.push(address.into());
        }
    }
    addresses
}

/// Address, interface, prefix, scope (0: global), flags, name.
fn parse_if_inet6(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let scope = fields.nth(2)?;
        (scope == "00").then(|| Ipv6Addr::from_bits(address).into())
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_interfaces_that_others_reach() {
        // J-SEQ-2
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        \
            /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 169.254.1.1\n        /32 host LOCAL\n\
            Local:\n     |-- 10.1.2.3\n        /32 host LOCAL\n";
        assert_eq!(parse_fib_trie(trie), [IpAddr::from([10, 1, 2, 3])]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
            20010db8000000000000000000000001 02 40 00 80     eth0\n\
            fe8000000000000000fcfffffe000001 02 40 20 80     eth0\nnonsense\n";
        let global: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(parse_if_inet6(inet6), [global]);
    }
}
