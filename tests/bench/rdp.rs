//! RDP sessions as small as they can be, over TLS and over nothing else: both peers play the connection sequence of a
//! recorded session (`tests/golden/sessions`), and then the client types what it wants of the target.
//!
//! Blocking sockets, OpenSSL, and one write for a PDU, as RDP servers do it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::thread;

use anyhow::{Context, bail, ensure};
use jetway::rdp::connection_request;
use jetway::rdp::frame;
use jetway_lab::certificate::Identity;
use jetway_lab::recording;
use jetway_lab::tls::set_identity;
use openssl::ssl::{
    SslAcceptor, SslConnector, SslContextBuilder, SslMethod, SslStream, SslVerifyMode, SslVersion,
};

use crate::target::CONNECTION_CONFIRM;

/// What a client types, a scan code each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Fast-path updates until the client goes.
    Graphics,
    /// The same through a dynamic channel, as EGFX comes: messages of 64 KiB, with a PDU of the static channel for every 1.6 kB.
    Egfx,
    /// The target reads a file of the client's drive.
    File,
    /// The target moves the pointer whenever the client does.
    Pointer,
    /// The end of a file: the target says how many bytes have arrived.
    Count,
}

impl Wish {
    const ALL: [Self; 5] = [
        Self::Graphics,
        Self::Egfx,
        Self::File,
        Self::Pointer,
        Self::Count,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Graphics => 0x10,
            Self::Egfx => 0x11,
            Self::File => 0x12,
            Self::Pointer => 0x13,
            Self::Count => 0x14,
        }
    }

    /// A fast-path input PDU with one key.
    const fn pdu(self) -> [u8; 4] {
        [0x04, 0x04, 0x00, self.code()]
    }

    fn of(pdu: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|wish| wish.pdu() == *pdu)
    }
}

/// Bytes of a fast-path update PDU of bulk graphics: one TLS record.
const GRAPHICS_BYTES: usize = 16_000;

/// Bytes of a read from a drive, and how many are asked for ahead.
const READ_BYTES: usize = 64 * 1024;
const READS_AHEAD: u32 = 8;

/// `CHANNEL_CHUNK_LENGTH`.
const CHUNK_BYTES: usize = 1600;
/// A picture of moderate size.
const EGFX_BYTES: usize = 64 * 1024;

/// Static channels of the recording.
const RDPDR: u16 = 1004;
const DRDYNVC: u16 = 1007;

/// User channel of the recording's client, and its target's.
const CLIENT: u16 = 1009;
const TARGET: u16 = 1002;

/// The only cipher that either peer offers, so that every path uses the same one.
const CIPHER: &str = "TLS_AES_256_GCM_SHA384";

/// One end of a session, past the connection sequence.
pub(crate) struct Session {
    tls: SslStream<TcpStream>,
    /// Read and not looked at.
    ahead: Vec<u8>,
    block: Vec<u8>,
}

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// X.224, then TLS.
    X224,
    /// TLS, then X.224 inside, as a TLS bridge needs it ([MS-RDPBCGR] 5.4.2.2).
    Tls,
}

// ---- the client ----

/// Opens a session until its picture could come.
pub(crate) fn connect(
    mut stream: TcpStream,
    opening: Opening,
    preamble: &[u8],
) -> anyhow::Result<Session> {
    stream.write_all(preamble)?;
    let request = crate::target::rdp_request()?;
    if opening == Opening::X224 {
        negotiate(&mut stream, &request)?;
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    restrict(&mut builder)?;
    let connector = builder.build();
    let tls = connector.connect("localhost", stream).context("TLS")?;
    let mut session = Session::new(tls);
    if opening == Opening::Tls {
        negotiate(&mut session.tls, &request)?;
    }
    session.play(CLIENT_SENDS)?;
    Ok(session)
}

fn negotiate(stream: &mut (impl Read + Write), request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request)?;
    let mut confirm = [0; CONNECTION_CONFIRM.len()];
    stream
        .read_exact(&mut confirm)
        .context("no Connection Confirm")?;
    // The rest of it are references and flags, which a gateway sets itself.
    ensure!(
        confirm[5] == 0xd0 && confirm[11] == 2 && confirm[15] == 1,
        "refused: {confirm:02x?}"
    );
    Ok(())
}

impl Session {
    fn new(tls: SslStream<TcpStream>) -> Self {
        Self {
            tls,
            ahead: Vec::new(),
            block: vec![0; 64 * 1024],
        }
    }

    pub(crate) fn wish(&mut self, wish: Wish) -> anyhow::Result<()> {
        self.tls.write_all(&wish.pdu())?;
        if wish == Wish::Egfx {
            let opened: [&[u8]; 2] = [&DVC_CAPABILITIES, &DVC_CREATED];
            for answer in opened {
                self.read_pdu()?;
                let pdu = channel_pdus(true, DRDYNVC, answer);
                self.tls.write_all(&pdu)?;
            }
        }
        Ok(())
    }

    /// Reads what there is, at most a block; zero at the end.
    pub(crate) fn read_some(&mut self) -> io::Result<usize> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len();
            self.ahead.clear();
            return Ok(count);
        }
        match self.tls.read(&mut self.block) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    }

    /// Moves the pointer and waits until the target has done so, too.
    pub(crate) fn move_pointer(&mut self) -> anyhow::Result<()> {
        self.tls.write_all(&POINTER_INPUT)?;
        let answer = self.read_pdu()?;
        ensure!(answer == POINTER_UPDATE, "not the pointer: {answer:02x?}");
        Ok(())
    }

    /// Answers reads of the target while `more` says so, and gives the bytes that the target has counted.
    pub(crate) fn send_file(&mut self, mut more: impl FnMut() -> bool) -> anyhow::Result<u64> {
        self.wish(Wish::File)?;
        let mut completion = channel_message(CLIENT, true, RDPDR, &read_completion());
        while more() {
            let request = self.read_pdu()?;
            // CompletionId: behind the channel PDU header, the component and packet ids, DeviceId and FileId.
            let id = request
                .get(CHANNEL_DATA_AT + 12..CHANNEL_DATA_AT + 16)
                .context("no CompletionId")?;
            let place = completion.first_mut().context("empty")?;
            place[CHANNEL_DATA_AT + 8..CHANNEL_DATA_AT + 12].copy_from_slice(id);
            for pdu in &completion {
                self.tls.write_all(pdu)?;
            }
        }
        self.tls.write_all(&Wish::Count.pdu())?;
        loop {
            let pdu = self.read_pdu()?;
            // Not another request.
            if pdu.first() == Some(&0) {
                let count = pdu.last_chunk().context("no count")?;
                return Ok(u64::from_be_bytes(*count));
            }
        }
    }

    /// The next PDU, whole.
    fn read_pdu(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(found) = frame::find(&self.ahead)?
                && self.ahead.len() >= found.length
            {
                let rest = self.ahead.split_off(found.length);
                return Ok(std::mem::replace(&mut self.ahead, rest));
            }
            match self.tls.read(&mut self.block)? {
                0 => bail!("closed"),
                count => self.ahead.extend_from_slice(&self.block[..count]),
            }
        }
    }

    /// The connection sequence as the recording has it: what `mine` sent is sent, what the other sent is waited for.
    fn play(&mut self, mine: u8) -> anyhow::Result<()> {
        for (position, (from, pdu)) in RECORDING.iter().enumerate() {
            if *from == mine {
                self.tls.write_all(pdu)?;
            } else {
                self.read_pdu()
                    .with_context(|| format!("instead of PDU {position}"))?;
            }
        }
        Ok(())
    }
}

// ---- the target ----

/// Serves every connection in a thread of its own until the process ends.
pub(crate) fn serve(listener: &TcpListener) -> anyhow::Result<()> {
    let mut builder = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server())?;
    set_identity(&mut builder, &Identity::self_signed(&["localhost"]));
    restrict(&mut builder)?;
    let acceptor = Arc::new(builder.build());
    loop {
        let (stream, _) = listener.accept()?;
        let acceptor = Arc::clone(&acceptor);
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || {
                // A peer that is gone is the client's business to notice.
                let _ = serve_one(stream, &acceptor);
            })?;
    }
}

fn serve_one(mut stream: TcpStream, acceptor: &SslAcceptor) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.peek(&mut first)?;
    let direct = first == [0x16];
    if !direct {
        confirm(&mut stream)?;
    }
    let mut session = Session::new(acceptor.accept(stream)?);
    if direct {
        confirm(&mut session.tls)?;
    }
    session.play(TARGET_SENDS)?;
    loop {
        let pdu = session.read_pdu()?;
        match Wish::of(&pdu) {
            Some(Wish::Graphics) => {
                let update = graphics_update();
                loop {
                    session.tls.write_all(&update)?;
                }
            }
            Some(Wish::Egfx) => {
                let questions: [&[u8]; 2] = [&DVC_CAPABILITIES, DVC_CREATE];
                for question in questions {
                    session
                        .tls
                        .write_all(&channel_pdus(false, DRDYNVC, question))?;
                    session.read_pdu()?;
                }
                let message = egfx_message();
                loop {
                    for pdu in &message {
                        session.tls.write_all(pdu)?;
                    }
                }
            }
            Some(Wish::File) => read_file(&mut session)?,
            Some(Wish::Pointer) => loop {
                session.read_pdu()?;
                session.tls.write_all(&POINTER_UPDATE)?;
            },
            Some(Wish::Count) | None => bail!("not a wish: {pdu:02x?}"),
        }
    }
}

fn confirm(stream: &mut (impl Read + Write)) -> anyhow::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    // Byte by byte: what comes behind belongs to TLS.
    while connection_request::decode(&request)?.is_none() {
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    stream.write_all(&CONNECTION_CONFIRM)?;
    Ok(())
}

/// Reads a file of the client with some requests on their way, until the client has had enough.
fn read_file(session: &mut Session) -> anyhow::Result<()> {
    let answer: usize = channel_message(CLIENT, true, RDPDR, &read_completion())
        .iter()
        .map(Vec::len)
        .sum();
    let (answer, mut requested, mut total) = (answer as u64, 0_u32, 0_u64);
    loop {
        while u64::from(requested) < total / answer + u64::from(READS_AHEAD) {
            let request = channel_pdus(false, RDPDR, &read_request(requested));
            session.tls.write_all(&request)?;
            requested += 1;
        }
        let (count, tail) = match session.ahead.is_empty() {
            true => {
                let count = session.tls.read(&mut session.block)?;
                (count, session.block[..count].last_chunk::<4>())
            }
            false => (session.ahead.len(), session.ahead.last_chunk::<4>()),
        };
        if count == 0 {
            bail!("closed");
        }
        total += count as u64;
        let done = tail == Some(&Wish::Count.pdu());
        session.ahead.clear();
        if done {
            let mut pdu = vec![0, 14, 0x03, 8, 0, 0];
            pdu.extend(total.to_be_bytes());
            session.tls.write_all(&pdu)?;
            return Ok(());
        }
    }
}

// ---- bytes ----

const CLIENT_SENDS: u8 = 0;
const TARGET_SENDS: u8 = 1;

/// From MCS Connect Initial to Font Map; read once, so that no session waits for the file.
static RECORDING: LazyLock<Vec<(u8, Vec<u8>)>> = LazyLock::new(|| {
    let mut pdus = recording::session("gdi-tls-shadow2", [CLIENT_SENDS, TARGET_SENDS]);
    pdus.truncate(CONNECTION_SEQUENCE_PDUS);
    pdus
});

/// PDUs of the recording until the target has sent its Font Map.
const CONNECTION_SEQUENCE_PDUS: usize = 30;

/// A movement of the pointer: header with one event, TS_FP_POINTER_EVENT.
const POINTER_INPUT: [u8; 9] = [0x04, 9, 0x20, 0x00, 0x08, 0x40, 0x01, 0xf0, 0x00];

/// Pointer position update ([MS-RDPBCGR] 2.2.9.1.2.1.4).
const POINTER_UPDATE: [u8; 9] = [0x00, 9, 0x08, 4, 0, 0x40, 0x01, 0xf0, 0x00];

/// DYNVC_CAPS_VERSION1, and the answer to it.
const DVC_CAPABILITIES: [u8; 4] = [0x50, 0, 1, 0];

/// DYNVC_CREATE_REQ for channel 1.
const DVC_CREATE: &[u8] = b"\x10\x01Microsoft::Windows::RDS::Graphics\0";

/// DYNVC_CREATE_RSP: it is open.
const DVC_CREATED: [u8; 6] = [0x10, 1, 0, 0, 0, 0];

/// A surface command in one fast-path update.
fn graphics_update() -> Vec<u8> {
    let length = (GRAPHICS_BYTES as u16) | 0x8000;
    let mut pdu = vec![0];
    pdu.extend(length.to_be_bytes());
    pdu.push(0x04);
    pdu.extend((GRAPHICS_BYTES as u16 - 6).to_le_bytes());
    pdu.resize(GRAPHICS_BYTES, 0x5a);
    pdu
}

/// A message on dynamic channel 1 ([MS-RDPEDYC] 2.2.3.1, 2.2.3.2): DYNVC_DATA_FIRST, and DYNVC_DATA until it is whole.
fn egfx_message() -> Vec<Vec<u8>> {
    let mut pdus = Vec::new();
    let mut left = EGFX_BYTES;
    while left > 0 {
        let mut data = if pdus.is_empty() {
            let mut first = vec![0x28, 1];
            first.extend((EGFX_BYTES as u32).to_le_bytes());
            first
        } else {
            vec![0x30, 1]
        };
        let part = left.min(CHUNK_BYTES - data.len());
        data.resize(data.len() + part, 0x5a);
        pdus.push(channel_pdus(false, DRDYNVC, &data));
        left -= part;
    }
    pdus
}

/// DR_READ_REQ ([MS-RDPEFS] 2.2.1.4.3).
fn read_request(completion: u32) -> Vec<u8> {
    let mut message = vec![0x72, 0x44, 0x52, 0x49];
    for field in [1, 1, completion, 3, 0, READ_BYTES as u32] {
        message.extend(field.to_le_bytes());
    }
    message.resize(message.len() + 8 + 20, 0);
    message
}

/// DR_READ_RSP ([MS-RDPEFS] 2.2.1.5.3) to request 0.
fn read_completion() -> Vec<u8> {
    let mut message = vec![0x72, 0x44, 0x43, 0x49];
    for field in [1, 0, 0, READ_BYTES as u32] {
        message.extend(field.to_le_bytes());
    }
    message.resize(message.len() + READ_BYTES, 0x5a);
    message
}

/// Where the data of a channel PDU begin: TPKT, X.224, MCS with two bytes of length, channel PDU header.
const CHANNEL_DATA_AT: usize = 15 + 8;

/// A short message of a static channel, in one PDU.
fn channel_pdus(to_target: bool, channel: u16, message: &[u8]) -> Vec<u8> {
    let initiator = if to_target { CLIENT } else { TARGET };
    channel_message(initiator, to_target, channel, message).concat()
}

/// The PDUs of a message of a static channel ([MS-RDPBCGR] 2.2.6.1).
fn channel_message(initiator: u16, to_target: bool, channel: u16, message: &[u8]) -> Vec<Vec<u8>> {
    let chunks = message.chunks(CHUNK_BYTES);
    let last = chunks.len() - 1;
    chunks
        .enumerate()
        .map(|(position, chunk)| {
            let flags = u32::from(position == 0) | u32::from(position == last) << 1;
            let length = chunk.len() + CHANNEL_DATA_AT;
            let mut pdu = vec![3, 0];
            pdu.extend((length as u16).to_be_bytes());
            pdu.extend([2, 0xf0, 0x80, if to_target { 0x64 } else { 0x68 }]);
            pdu.extend((initiator - 1001).to_be_bytes());
            pdu.extend(channel.to_be_bytes());
            pdu.push(0x70);
            pdu.extend(((chunk.len() + 8) as u16 | 0x8000).to_be_bytes());
            pdu.extend((message.len() as u32).to_le_bytes());
            pdu.extend(flags.to_le_bytes());
            pdu.extend_from_slice(chunk);
            pdu
        })
        .collect()
}

/// TLS 1.3 with one cipher, no resumption, and reads of more than a record header.
fn restrict(builder: &mut SslContextBuilder) -> anyhow::Result<()> {
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    builder.set_ciphersuites(CIPHER)?;
    builder.set_num_tickets(0)?;
    builder.set_read_ahead(true);
    Ok(())
}
