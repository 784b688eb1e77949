//! A target that follows a script: it opens a session as any target does and then says what no real one says, or only some.
//!
//! Every user is welcome, over TLS. Whether the client is still there is asked by a reactivation, which every client
//! answers ([MS-RDPBCGR] 1.3.1.3).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ironrdp_core::encode_vec;
use ironrdp_pdu::rdp::capability_sets::{
    Bitmap, BitmapDrawingFlags, CapabilitySet, DemandActive, General, GeneralExtraFlags, Input,
    InputFlags, MultifragmentUpdate, Order, OrderFlags, OrderSupportExFlags, Pointer,
    ServerDemandActive, VirtualChannel, VirtualChannelFlags,
};
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu};
use jetway::rdp::connection_request;
use jetway::rdp::frame;
use jetway::rdp::mcs::{self, Mcs};
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway::rdp::welcome::{IO_CHANNEL, SERVER_CHANNEL, USER_CHANNEL, Welcome, WelcomeStep};
use jetway_lab::certificate::Identity;
use jetway_lab::tls::acceptor;
use jetway_lab::wait::{PATIENCE, until};
use openssl::ssl::{SslAcceptor, SslStream};

use super::display::SIZE;

/// Where scripts are played; one certificate for all of them, since a gateway remembers it.
pub(crate) struct Stage {
    acceptor: SslAcceptor,
}

impl Stage {
    pub(crate) fn build() -> Result<Self> {
        let acceptor = acceptor(&Identity::self_signed(&["localhost"]));
        Ok(Self { acceptor })
    }

    /// A target for one client.
    pub(crate) fn target(&self) -> Result<Target<'_>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let acceptor = &self.acceptor;
        Ok(Target { listener, acceptor })
    }
}

/// A target that waits for its client.
pub(crate) struct Target<'a> {
    listener: TcpListener,
    acceptor: &'a SslAcceptor,
}

impl Target<'_> {
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// The session of the client that comes, up to its first picture.
    pub(crate) fn session(self, mut alive: impl FnMut() -> Result<()>) -> Result<Session> {
        let stream = until("a client", PATIENCE, || {
            alive()?;
            match self.listener.accept() {
                Ok((stream, _)) => Ok(Some(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (stream, offered) = negotiate(stream)?;
        let tls = self.acceptor.accept(stream);
        let mut session = Session {
            tls: tls.map_err(|error| anyhow::anyhow!("TLS: {error}"))?,
            ahead: Vec::new(),
            channels: Vec::new(),
        };
        session.begin(offered)?;
        Ok(session)
    }
}

fn negotiate(mut stream: TcpStream) -> Result<(TcpStream, u32)> {
    let mut bytes = Vec::new();
    let mut part = [0; 512];
    let request = loop {
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "closed before the Connection Request");
        bytes.extend_from_slice(&part[..count]);
        if let Some((request, _)) = connection_request::decode(&bytes)? {
            break request;
        }
    };
    let offered = request
        .negotiation
        .map_or(0, |offer| offer.requested_protocols);
    // EXTENDED_CLIENT_DATA_SUPPORTED, PROTOCOL_SSL.
    let confirm = ConnectionConfirm::Selected {
        flags: 1,
        protocol: 1,
    };
    stream.write_all(&confirm.encode())?;
    Ok((stream, offered))
}

/// A session, seen from the target.
pub(crate) struct Session {
    tls: SslStream<TcpStream>,
    ahead: Vec<u8>,
    channels: Vec<(String, u16)>,
}

/// What came from the client.
#[derive(Debug)]
enum Heard {
    /// On this MCS channel.
    Data(u16, Vec<u8>),
    /// Something else, such as input.
    Other,
    /// Nothing, for [`PAUSE`].
    Silence,
    /// The end.
    Gone,
}

impl Session {
    fn begin(&mut self, offered: u32) -> Result<()> {
        let mut welcome = Welcome::new(offered);
        loop {
            let frame = self.frame()?.context("the client left early")?;
            let mut answer = Vec::new();
            let step = welcome.frame(&frame, &mut answer)?;
            let done = match step {
                WelcomeStep::On => false,
                WelcomeStep::Welcomed(_) => true,
                WelcomeStep::Left => bail!("the client left early"),
            };
            self.tls.write_all(&answer)?;
            if done {
                break;
            }
        }
        let client = welcome.client().context("no client data")?;
        let names = client.channels.iter().map(|(name, _)| name.to_lowercase());
        self.channels = names.zip(IO_CHANNEL + 1..).collect();
        self.tls.get_ref().set_read_timeout(Some(PAUSE))?;
        ensure!(self.activate()?, "the client does not become active");
        Ok(())
    }

    /// Demand Active, and the rest of the capabilities exchange and finalization; whether the client has its part of it.
    fn activate(&mut self) -> Result<bool> {
        self.say_io(&demand_active()?)?;
        let mut left = PATIENCE_PAUSES;
        loop {
            match self.read_pdu()? {
                Heard::Data(IO_CHANNEL, data) => match data.get(2).map(|kind| kind & 0xf) {
                    // Font List.
                    Some(7) if data.get(14) == Some(&39) => break,
                    _ => {}
                },
                Heard::Data(..) | Heard::Other => {}
                Heard::Silence if left > 0 => left -= 1,
                Heard::Silence => bail!("a client that neither activates nor leaves"),
                Heard::Gone => return Ok(false),
            }
        }
        let control = |action: u16, grant: u16, id: u32| {
            let fields = [
                &action.to_le_bytes()[..],
                &grant.to_le_bytes(),
                &id.to_le_bytes(),
            ];
            share_data(20, &fields.concat())
        };
        let synchronize = [&[1, 0][..], &USER_CHANNEL.to_le_bytes()].concat();
        for pdu in [
            share_data(31, &synchronize),
            control(4, 0, 0),
            control(2, USER_CHANNEL, SERVER_CHANNEL.into()),
            share_data(40, &[0, 0, 0, 0, 3, 0, 4, 0]),
        ] {
            self.say_io(&pdu)?;
        }
        Ok(true)
    }

    /// Whether the client is still there when it has seen everything that was said.
    pub(crate) fn lives(&mut self) -> Result<bool> {
        // What a channel has made of it may take the client another round to notice.
        for _ in 0..2 {
            // Deactivate All.
            let pdu = [13, 0, 0x16, 0, 0xea, 3, 0xea, 3, 1, 0, 1, 0, 0];
            self.say_io(&pdu)?;
            if !self.activate()? {
                return Ok(false);
            }
        }
        for _ in 0..LAST_PAUSES {
            if matches!(self.read_pdu()?, Heard::Gone) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says a message on a static channel.
    pub(crate) fn say(&mut self, channel: &str, message: &[u8]) -> Result<()> {
        self.say_chunk(channel, message.len(), FIRST | LAST, message)
    }

    /// Says a chunk of a message of `total` bytes.
    pub(crate) fn say_chunk(
        &mut self,
        channel: &str,
        total: usize,
        flags: u32,
        data: &[u8],
    ) -> Result<()> {
        let found = self.channels.iter().find(|(name, _)| name == channel);
        let (_, id) = found.with_context(|| format!("the client has no {channel}"))?;
        let id = *id;
        let total = u32::try_from(total)?;
        self.say_mcs(
            id,
            &[&total.to_le_bytes()[..], &flags.to_le_bytes(), data].concat(),
        )
    }

    /// Says a PDU of the I/O channel.
    pub(crate) fn say_io(&mut self, pdu: &[u8]) -> Result<()> {
        self.say_mcs(IO_CHANNEL, pdu)
    }

    /// Says data on any MCS channel.
    pub(crate) fn say_mcs(&mut self, channel: u16, data: &[u8]) -> Result<()> {
        let frame = send_data(channel, data)?;
        self.say_bytes(&frame)
    }

    /// Says bytes. A client that has gone does not hear them, which shows later.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.tls.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) if is_end(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a message on this channel that fits; `None` where the client leaves or says nothing of the kind.
    pub(crate) fn wait_for(
        &mut self,
        channel: &str,
        fits: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let found = self.channels.iter().find(|(name, _)| name == channel);
        let (_, id) = found.with_context(|| format!("the client has no {channel}"))?;
        let id = *id;
        let mut left = ANSWER_PAUSES;
        loop {
            match self.read_pdu()? {
                // Behind the channel PDU header: what these clients say here fits into one chunk.
                Heard::Data(channel, data) if channel == id => {
                    let message = data.get(8..).unwrap_or_default();
                    if fits(message) {
                        return Ok(Some(message.to_vec()));
                    }
                }
                Heard::Data(..) | Heard::Other => {}
                Heard::Silence if left > 0 => left -= 1,
                Heard::Silence | Heard::Gone => return Ok(None),
            }
        }
    }

    fn read_pdu(&mut self) -> Result<Heard> {
        let frame = match self.frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(Heard::Gone),
            Err(error) => {
                let io = error.downcast_ref::<std::io::Error>();
                return match io.map(std::io::Error::kind) {
                    Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(Heard::Silence),
                    _ => Err(error),
                };
            }
        };
        if frame.first() != Some(&3) {
            return Ok(Heard::Other);
        }
        Ok(match mcs::decode(&frame) {
            Ok((
                Mcs::SendData {
                    channel, user_data, ..
                },
                _,
            )) => Heard::Data(channel, frame.get(user_data).unwrap_or_default().to_vec()),
            Ok((Mcs::Disconnect { .. } | Mcs::X224Disconnect, _)) => Heard::Gone,
            _ => Heard::Other,
        })
    }

    /// The next frame; `None` at the end.
    fn frame(&mut self) -> Result<Option<Vec<u8>>> {
        let mut part = [0; 16 * 1024];
        loop {
            if let Some(found) = frame::find(&self.ahead)?
                && found.length <= self.ahead.len()
            {
                return Ok(Some(self.ahead.drain(..found.length).collect()));
            }
            match self.tls.read(&mut part) {
                Ok(0) => return Ok(None),
                Ok(count) => self.ahead.extend_from_slice(&part[..count]),
                Err(error) if is_end(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A connection that was cut, with or without TLS's own end.
fn is_end(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionAborted
    ) || error
        .get_ref()
        .is_some_and(|inner| inner.is::<openssl::ssl::Error>())
}

/// The frame of an MCS Send Data Indication.
pub(crate) fn send_data(channel: u16, data: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(data.len())?;
    let total = length + 15;
    let mut frame = vec![3, 0];
    frame.extend(total.to_be_bytes());
    frame.extend([2, 0xf0, 0x80, 0x68]);
    frame.extend((SERVER_CHANNEL - 1001).to_be_bytes());
    frame.extend(channel.to_be_bytes());
    frame.push(0x70);
    frame.extend((length | 0x8000).to_be_bytes());
    frame.extend_from_slice(data);
    Ok(frame)
}

/// A share data PDU that is not compressed.
pub(crate) fn share_data(pdu_type2: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 18).unwrap_or(u16::MAX);
    let mut pdu = length.to_le_bytes().to_vec();
    pdu.extend([0x17, 0]);
    pdu.extend(SERVER_CHANNEL.to_le_bytes());
    pdu.extend(SHARE_ID.to_le_bytes());
    pdu.extend([0, 1]);
    pdu.extend((length - 14).to_le_bytes());
    pdu.extend([pdu_type2, 0, 0, 0]);
    pdu.extend_from_slice(body);
    pdu
}

fn demand_active() -> Result<Vec<u8>> {
    let (width, height) = SIZE;
    let capability_sets = vec![
        CapabilitySet::General(General {
            extra_flags: GeneralExtraFlags::FASTPATH_OUTPUT_SUPPORTED,
            refresh_rect_support: true,
            suppress_output_support: true,
            ..General::default()
        }),
        CapabilitySet::Bitmap(Bitmap {
            pref_bits_per_pix: 32,
            desktop_width: u16::try_from(width)?,
            desktop_height: u16::try_from(height)?,
            desktop_resize_flag: true,
            drawing_flags: BitmapDrawingFlags::empty(),
        }),
        CapabilitySet::Order(Order::new(
            OrderFlags::empty(),
            OrderSupportExFlags::empty(),
            0,
            0,
        )),
        CapabilitySet::Pointer(Pointer {
            color_pointer_cache_size: 32,
            pointer_cache_size: 32,
        }),
        CapabilitySet::Input(Input {
            input_flags: InputFlags::SCANCODES | InputFlags::FASTPATH_INPUT_2,
            keyboard_layout: 0,
            keyboard_type: None,
            keyboard_subtype: 0,
            keyboard_function_key: 12,
            keyboard_ime_filename: String::new(),
        }),
        CapabilitySet::VirtualChannel(VirtualChannel {
            flags: VirtualChannelFlags::NO_COMPRESSION,
            chunk_size: None,
        }),
        CapabilitySet::MultiFragmentUpdate(MultifragmentUpdate {
            max_request_size: 65_535,
        }),
    ];
    let header = ShareControlHeader {
        share_id: SHARE_ID,
        pdu_source: SERVER_CHANNEL,
        share_control_pdu: ShareControlPdu::ServerDemandActive(ServerDemandActive {
            pdu: DemandActive {
                source_descriptor: String::from("RDP"),
                capability_sets,
            },
        }),
    };
    Ok(encode_vec(&header)?)
}

/// Flags of the channel PDU header ([MS-RDPBCGR] 2.2.6.1.1).
pub(crate) const FIRST: u32 = 1;
pub(crate) const LAST: u32 = 2;

const SHARE_ID: u32 = 0x0001_03ea;

/// How long silence is.
const PAUSE: Duration = Duration::from_millis(100);

/// Of silence, while a client does what it has to.
const PATIENCE_PAUSES: u32 = 200;

/// Of silence, where a client may have nothing to say.
const ANSWER_PAUSES: u32 = 15;

/// Of silence or input, before a client that has answered is taken to stay.
const LAST_PAUSES: u32 = 3;
