//! The target of every path, a process of its own: it answers the Connection Request as an RDP server does and then
//! does what the client's `mstshash` says.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use jetway::rdp::connection_request::{self, ConnectionRequest, NegotiationRequest};
use jetway_lab::process::KillOnDrop;
use socket2::{Domain, Socket, Type};

use crate::rdp;

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
    /// Nothing is said, and the client is about to go.
    Brief,
    /// The target ends all sessions at rest and says how many there were.
    Release,
}

impl Deed {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Source => "source",
            Self::Echo => "echo",
            Self::Rest => "rest",
            Self::Brief => "brief",
            Self::Release => "release",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::Sink,
            Self::Source,
            Self::Echo,
            Self::Rest,
            Self::Brief,
            Self::Release,
        ];
        all.into_iter().find(|deed| deed.name() == name)
    }
}

/// First argument of the target's process.
pub(crate) const TARGET_ARGUMENT: &str = "--target-process";

/// Bytes in one write of a bulk sender and one read of its receiver.
pub(crate) const BLOCK_BYTES: usize = 128 * 1024;

/// Brief sessions kept until their clients have gone.
const BRIEF_SESSIONS: usize = 256;

/// Threads that accept; long sessions get a thread of their own.
const WORKERS: usize = 8;

/// The process, seen from the one that measures.
pub(crate) struct Target {
    /// Where bytes go.
    pub(crate) port: u16,
    /// Where RDP sessions go.
    pub(crate) rdp_port: u16,
    child: KillOnDrop,
}

impl Target {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(TARGET_ARGUMENT)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let (port, rdp_port) = line.trim().split_once(' ').context("no ports")?;
        Ok(Self {
            port: port.parse()?,
            rdp_port: rdp_port.parse()?,
            child: KillOnDrop(child),
        })
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Ends the sessions that rest and says how many there were.
    pub(crate) fn release(port: u16) -> anyhow::Result<u64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.write_all(&greeting(Deed::Release)?)?;
        let mut answer = [0; CONNECTION_CONFIRM.len() + 8];
        stream.read_exact(&mut answer)?;
        let count = answer.last_chunk().context("no count")?;
        Ok(u64::from_be_bytes(*count))
    }
}

/// A Connection Request that asks for `deed`.
pub(crate) fn greeting(deed: Deed) -> anyhow::Result<Vec<u8>> {
    connection_request(deed.name())
}

/// The Connection Request of an RDP session.
pub(crate) fn rdp_request() -> anyhow::Result<Vec<u8>> {
    connection_request("bench")
}

fn connection_request(mstshash: &str) -> anyhow::Result<Vec<u8>> {
    let request = ConnectionRequest {
        routing_token: None,
        mstshash: Some(mstshash.to_owned()),
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols: 1,
        }),
        correlation_info: None,
        src_ref: 0,
        class: 0,
    };
    Ok(request.encode()?)
}

/// Listens on every loopback address, prints the ports, and serves until it is killed.
pub(crate) fn target_process() -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let sessions = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!(
        "{} {}",
        listener.local_addr()?.port(),
        sessions.local_addr()?.port()
    );
    let (resting, brief) = (Mutex::new(Vec::new()), Mutex::new(VecDeque::new()));
    thread::scope(|scope| {
        scope.spawn(|| rdp::serve(&sessions));
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Ok((stream, _)) = listener.accept() {
                    // A peer that is gone is the client's business to notice.
                    let _ = serve(stream, &resting, &brief);
                }
            });
        }
    });
    Ok(())
}

fn serve(
    mut stream: TcpStream,
    resting: &Mutex<Vec<TcpStream>>,
    brief: &Mutex<VecDeque<TcpStream>>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let deed = handshake(&mut stream)?;
    let rest = || resting.lock().unwrap_or_else(PoisonError::into_inner);
    match deed {
        Deed::Rest => rest().push(stream),
        Deed::Brief => {
            // The client of the oldest has gone long ago.
            let mut brief = brief.lock().unwrap_or_else(PoisonError::into_inner);
            brief.push_back(stream);
            if brief.len() > BRIEF_SESSIONS {
                drop(brief.pop_front());
            }
        }
        Deed::Release => {
            let released = std::mem::take(&mut *rest());
            stream.write_all(&(released.len() as u64).to_be_bytes())?;
        }
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
