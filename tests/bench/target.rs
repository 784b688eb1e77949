//! The target of every path: it answers the Connection Request as an RDP server does and then does what the client's
//! `mstshash` says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use jetway::rdp::connection_request;
use socket2::{Domain, Socket, Type};

/// X.224 Connection Confirm with RDP_NEG_RSP: TLS selected ([MS-RDPBCGR] 2.2.1.2).
pub(crate) const CONNECTION_CONFIRM: [u8; 19] = [
    3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0,
];

/// What a session does after its first two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The target reads and throws away.
    Sink,
    /// The target writes until the client goes.
    Source,
    /// The target answers 64 bytes with 64 bytes.
    Echo,
    /// Nothing is said.
    Rest,
}

impl Deed {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Source => "source",
            Self::Echo => "echo",
            Self::Rest => "rest",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Sink, Self::Source, Self::Echo, Self::Rest]
            .into_iter()
            .find(|deed| deed.name() == name)
    }
}

/// A listener on every loopback address, and its threads.
pub(crate) struct Target {
    pub(crate) port: u16,
    resting: Arc<Mutex<Vec<TcpStream>>>,
}

/// Bytes in one write of a bulk sender and one read of its receiver.
pub(crate) const BLOCK_BYTES: usize = 128 * 1024;

/// Threads that accept and handle short sessions; long ones get a thread of their own.
const WORKERS: usize = 8;

impl Target {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
        socket.listen(4096)?;
        let listener = Arc::new(TcpListener::from(socket));
        let port = listener.local_addr()?.port();
        let (hand_over, rest): (Sender<TcpStream>, Receiver<TcpStream>) = channel();
        let resting = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..WORKERS {
            let (listener, hand_over) = (Arc::clone(&listener), hand_over.clone());
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    // A peer that is gone is the client's business to notice.
                    let _ = serve(stream, &hand_over);
                }
            });
        }
        let held = Arc::clone(&resting);
        thread::spawn(move || {
            for stream in rest {
                held.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(stream);
            }
        });
        Ok(Self { port, resting })
    }

    /// The sessions that rest.
    pub(crate) fn resting(&self) -> Arc<Mutex<Vec<TcpStream>>> {
        Arc::clone(&self.resting)
    }
}

fn serve(mut stream: TcpStream, hand_over: &Sender<TcpStream>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let deed = handshake(&mut stream)?;
    match deed {
        Deed::Rest => hand_over.send(stream).context("no keeper")?,
        Deed::Echo => {
            thread::spawn(move || echo(stream));
        }
        Deed::Sink => {
            thread::spawn(move || sink(stream));
        }
        Deed::Source => {
            thread::spawn(move || source(stream));
        }
    }
    Ok(())
}

fn handshake(stream: &mut TcpStream) -> anyhow::Result<Deed> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 512];
    let request = loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            anyhow::bail!("closed before the Connection Request");
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if let Some((request, _)) = connection_request::decode(&bytes)? {
            break request;
        }
    };
    let name = request.mstshash.context("no mstshash")?;
    stream.write_all(&CONNECTION_CONFIRM)?;
    Deed::from_name(&name).context("unknown mstshash")
}

fn echo(mut stream: TcpStream) {
    let mut message = [0; 64];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// Reads all, then says how many bytes that were.
fn sink(mut stream: TcpStream) {
    let mut block = vec![0; BLOCK_BYTES];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(count) => total += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
    let _ = stream.write_all(&total.to_be_bytes());
}

fn source(mut stream: TcpStream) {
    let block = vec![0x5a; BLOCK_BYTES];
    while stream.write_all(&block).is_ok() {}
}
