//! Peers of a rendezvous, and of what it is compared with: blocking sockets, with or without TLS and WebSocket frames,
//! and as little of their own cost as possible.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jetway::jet::exchange::{JetPath, Request, Response, Status};
use jetway::jet::message::Version;
use jetway::jet::packet;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode, SslVersion};
use socket2::SockRef;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use zeroize::Zeroizing;

use crate::target::BLOCK_BYTES;

/// What clients mask with. It costs whoever takes the mask off as much as any other.
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// A peer that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is below a peer's bytes.
#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Wire {
    pub(crate) fn tcp(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::Tcp(stream))
    }

    /// TLS 1.3, whatever the certificate.
    pub(crate) fn tls(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut builder = SslConnector::builder(SslMethod::tls())?;
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        let stream = builder.build().connect("localhost", stream)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// The server's side of TLS.
    pub(crate) fn accept_tls(
        stream: TcpStream,
        acceptor: &openssl::ssl::SslAcceptor,
    ) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let stream = acceptor.accept(stream).ok().context("TLS")?;
        Ok(Self::Tls(Box::new(stream)))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// One end of a session: bytes, or the payload of WebSocket frames.
#[derive(Debug)]
pub(crate) struct End {
    wire: Wire,
    web: Option<Web>,
    buffer: Vec<u8>,
}

/// Where a WebSocket is in the frame that arrives.
#[derive(Debug, Default)]
struct Web {
    /// Clients mask what they send.
    masks: bool,
    head: Vec<u8>,
    left: u64,
    mask: Option<[u8; 4]>,
    at: usize,
    control: bool,
}

impl Web {
    fn new(masks: bool) -> Self {
        Self {
            masks,
            ..Self::default()
        }
    }

    /// Takes bytes of the wire; says how many were payload, and puts the payload into `out`, if that is wanted.
    fn take(&mut self, mut bytes: &[u8], mut out: Option<&mut Vec<u8>>) -> usize {
        let mut count = 0;
        while let Some((first, rest)) = bytes.split_first() {
            if self.left == 0 {
                self.head.push(*first);
                bytes = rest;
                self.parse_head();
                continue;
            }
            let now = bytes
                .len()
                .min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let (payload, rest) = bytes.split_at(now);
            bytes = rest;
            self.left -= now as u64;
            if self.control {
                continue;
            }
            count += now;
            if let Some(out) = &mut out {
                let mask = self.mask.unwrap_or_default();
                let masks = mask.iter().cycle().skip(self.at % 4);
                out.extend(payload.iter().zip(masks).map(|(byte, mask)| byte ^ mask));
            }
            self.at = self.at.wrapping_add(now);
        }
        count
    }

    /// A header is read byte by byte: there is one for many thousands of others.
    fn parse_head(&mut self) {
        let [first, second, rest @ ..] = self.head.as_slice() else {
            return;
        };
        let masked = second & 0x80 != 0;
        let (length_bytes, mask_bytes) = match second & 0x7f {
            126 => (2, if masked { 4 } else { 0 }),
            127 => (8, if masked { 4 } else { 0 }),
            _ => (0, if masked { 4 } else { 0 }),
        };
        if rest.len() < length_bytes + mask_bytes {
            return;
        }
        let (length, mask) = rest.split_at(length_bytes);
        self.left = match length {
            [] => u64::from(second & 0x7f),
            _ => length
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        self.mask = mask.first_chunk().copied();
        self.at = 0;
        self.control = first & 0x08 != 0;
        self.head.clear();
    }
}

/// A message that can be sent again and again.
#[derive(Debug)]
pub(crate) struct Block {
    wire: Vec<u8>,
    pub(crate) payload: usize,
}

impl End {
    /// A peer whose bytes are those of the wire.
    pub(crate) fn bare(wire: Wire) -> Self {
        Self {
            wire,
            web: None,
            buffer: Vec::new(),
        }
    }

    fn framed(wire: Wire, masks: bool) -> Self {
        Self {
            wire,
            web: Some(Web::new(masks)),
            buffer: Vec::new(),
        }
    }

    /// A peer of a candidate by a binary request.
    pub(crate) fn by_packet(mut wire: Wire, path: JetPath, token: &str) -> anyhow::Result<Self> {
        wire.write_all(&packet_request(path, token)?)?;
        let mut end = Self::bare(wire);
        end.granted()?;
        Ok(end)
    }

    /// Reads the response to a binary request.
    pub(crate) fn granted(&mut self) -> anyhow::Result<()> {
        let mut bytes = vec![0; packet::HEADER_BYTES];
        self.wire.read_exact(&mut bytes).context("no response")?;
        let size = bytes.get(4..6).and_then(|size| size.first_chunk());
        let size = u16::from_be_bytes(*size.context("a header")?);
        bytes.resize(usize::from(size), 0);
        let rest = bytes.get_mut(packet::HEADER_BYTES..).context("a packet")?;
        self.wire.read_exact(rest)?;
        let packet = packet::decode(&bytes)?.context("half a packet")?;
        let response = Response::parse(&packet.payload)?;
        ensure!(
            response.status == Status::Ok,
            "refused: {:?}",
            response.status
        );
        Ok(())
    }

    /// The client's side of a WebSocket.
    pub(crate) fn by_handshake(
        mut wire: Wire,
        path: &str,
        token: Option<&str>,
    ) -> anyhow::Result<Self> {
        let authorization = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{authorization}\r\n"
        );
        wire.write_all(request.as_bytes())?;
        let head = read_head(&mut wire).context("no answer to the handshake")?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "refused: {head}");
        Ok(Self::framed(wire, true))
    }

    /// The server's side of a WebSocket.
    pub(crate) fn answer_handshake(mut wire: Wire) -> anyhow::Result<Self> {
        let head = read_head(&mut wire).context("no handshake")?;
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut keys = lines.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
        let (_, key) = keys.next().context("no key")?;
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        wire.write_all(answer.as_bytes())?;
        Ok(Self::framed(wire, false))
    }

    /// `payload` as this end sends it, in frames of at most `frame_bytes`.
    pub(crate) fn block(&self, payload: &[u8], frame_bytes: usize) -> Block {
        let wire = match &self.web {
            None => payload.to_vec(),
            Some(web) => payload
                .chunks(frame_bytes)
                .flat_map(|chunk| frame(chunk, web.masks))
                .collect(),
        };
        Block {
            wire,
            payload: payload.len(),
        }
    }

    pub(crate) fn send(&mut self, block: &Block) -> io::Result<()> {
        self.wire.write_all(&block.wire)
    }

    /// Reads once; says how many bytes of payload came, and appends them to `out`, if that is wanted.
    pub(crate) fn receive(&mut self, out: Option<&mut Vec<u8>>) -> anyhow::Result<usize> {
        self.buffer.resize(BLOCK_BYTES, 0);
        let count = self.wire.read(&mut self.buffer)?;
        ensure!(count > 0, "the other side has gone");
        let bytes = self.buffer.get(..count).unwrap_or_default();
        Ok(match (&mut self.web, out) {
            (Some(web), out) => web.take(bytes, out),
            (None, Some(out)) => {
                out.extend_from_slice(bytes);
                count
            }
            (None, None) => count,
        })
    }

    /// So many bytes of payload.
    pub(crate) fn receive_exactly(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            self.receive(Some(&mut bytes))?;
        }
        ensure!(
            bytes.len() == count,
            "{} bytes instead of {count}",
            bytes.len()
        );
        Ok(bytes)
    }

    /// Receives and throws away, until it was as much as is expected.
    pub(crate) fn sink(&mut self, expected: &AtomicU64) -> anyhow::Result<u64> {
        let mut total = 0;
        while total < expected.load(Ordering::Acquire) {
            total += self.receive(None)? as u64;
        }
        Ok(total)
    }

    /// Answers messages of so many bytes until the other side goes.
    pub(crate) fn echo(&mut self, bytes: usize) {
        while let Ok(message) = self.receive_exactly(bytes) {
            let block = self.block(&message, bytes);
            if self.send(&block).is_err() {
                break;
            }
        }
    }

    /// Gives up the memory that reading takes.
    pub(crate) fn rest(&mut self) {
        self.buffer = Vec::new();
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.wire.socket()
    }

    /// Ends it at once, so that no port waits.
    pub(crate) fn reset(self) {
        let socket = self.wire.socket();
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// A binary request.
pub(crate) fn packet_request(path: JetPath, token: &str) -> anyhow::Result<Vec<u8>> {
    let request = Request {
        path,
        version: Version::V2,
        host: None,
        token: Some(Zeroizing::new(token.to_owned())),
    };
    Ok(packet::encode(&request.to_payload(), 0x5a)?)
}

fn frame(payload: &[u8], masks: bool) -> Vec<u8> {
    let mut bytes = vec![0x82];
    let mask_bit = if masks { 0x80 } else { 0 };
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => bytes.push(mask_bit | length),
        (_, Ok(length)) => {
            bytes.push(mask_bit | 126);
            bytes.extend(length.to_be_bytes());
        }
        (_, Err(_)) => {
            bytes.push(mask_bit | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    if masks {
        bytes.extend(MASK);
        bytes.extend(
            payload
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// An HTTP head, to its empty line.
pub(crate) fn read_head(wire: &mut Wire) -> anyhow::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        wire.read_exact(&mut byte)?;
        head.extend(byte);
        if head.len() > 16 * 1024 {
            bail!("an endless head");
        }
    }
    Ok(String::from_utf8(head)?)
}
