//! The demo's RDP server: TLS, the connection sequence of [MS-RDPBCGR] 1.3.1.1, and a [`Desktop`] sent as bitmap updates.
//!
//! Every session has a desktop of its own, of the size the client asks for (up to
//! [`LARGEST_DESKTOP`](super::desktop::LARGEST_DESKTOP)). Every user
//! name and password is welcome. Security protocol is TLS (`PROTOCOL_SSL`), also for clients that offer NLA with it;
//! no virtual channel is opened, and the desktop is not resized while a session runs.
//!
//! Reading and drawing go on at the same time, and drawing always shows the newest state: a client that reads
//! slowly sees fewer frames, and nothing queues up for it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ironrdp_core::{Encode as _, WriteCursor, decode};
use ironrdp_graphics::rdp6::{BitmapStreamEncoder, RgbAChannels};
use ironrdp_pdu::bitmap::{BitmapData, BitmapUpdateData, CompressedDataHeader, Compression};
use ironrdp_pdu::fast_path::{
    EncryptionFlags, FastPathHeader, FastPathUpdatePdu, Fragmentation, UpdateCode,
};
use ironrdp_pdu::geometry::InclusiveRectangle;
use ironrdp_pdu::input::fast_path::{
    FastPathInput, FastPathInputEvent, KeyboardFlags, SynchronizeFlags,
};
use ironrdp_pdu::input::mouse::PointerFlags;
use ironrdp_pdu::input::{InputEvent, MousePdu, scan_code, sync, unicode};
use ironrdp_pdu::mcs::{DisconnectProviderUltimatum, DisconnectReason, McsMessage};
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::x224::X224;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, warn};

use super::canvas::{Area, Canvas};
use super::desktop::{BITS_PER_PIXEL, Desktop, KEYS_CHARS, Live};
use super::frames::{Frames, is_fast_path};
use super::keyboard::{self, Key};
use super::sequence::server::{Accepted, ServerSequence, ServerStep};
use jetway_io::clock;
use jetway_rdp::connection_request::{self, PROTOCOL_SSL};
use jetway_rdp::negotiation::{ConnectionConfirm, FailureCode, encode_failure};
use jetway_rdp::welcome::IO_CHANNEL;

/// A TLS configuration with a fresh self-signed certificate for `localhost`, and nothing to trust it by.
///
/// # Errors
/// Where the cryptographic provider fails.
pub fn self_signed() -> anyhow::Result<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed([String::from("localhost")])
        .context("make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .context("use the certificate")?;
    Ok(Arc::new(config))
}

/// Serves RDP sessions on `listener` until `cancel` is cancelled; then ends the sessions that are left.
///
/// A session that fails, and a peer that does not speak RDP, end that connection only.
///
/// # Errors
/// None today: failures to accept are logged and tried again.
///
/// # Cancel safety
/// Dropping the future drops all sessions at once; `cancel` lets them say good-bye.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let tls = TlsAcceptor::from(tls);
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept(), if sessions.len() < SESSIONS => match accepted {
                Ok((stream, peer)) => {
                    let session = session(stream, tls.clone(), cancel.clone());
                    sessions.spawn(report(session, peer).instrument(debug_span!("demo_target", %peer)));
                }
                Err(error) => {
                    warn!(%error, "Demo target cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = sessions.join_next() => if let Err(error) = ended {
                warn!(%error, "Demo target session broke");
            },
        }
    }
    drop(listener);
    while sessions.join_next().await.is_some() {}
    Ok(())
}

async fn report(session: impl Future<Output = anyhow::Result<()>>, _peer: SocketAddr) {
    match session.await {
        Ok(()) => debug!("Demo target session closed"),
        Err(error) => debug!(error = format!("{error:#}"), "Demo target session failed"),
    }
}

async fn session(
    stream: TcpStream,
    tls: TlsAcceptor,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let handshake = timeout(HANDSHAKE_TIMEOUT, Box::pin(handshake(stream, tls)));
    let (frames, accepted) = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        done = handshake => done.context("connection sequence took too long")??,
    };
    let Accepted {
        size,
        user,
        early_input,
    } = accepted;
    debug!(?size, user, "Demo target session opened");
    // Drawing the still part takes the processor for a while in a debug build.
    let desktop = tokio::task::spawn_blocking(move || Desktop::new(size.0, size.1, &user))
        .await
        .context("draw the desktop")?;

    let (reader, mut writer) = frames.split();
    let shared = Shared::default();
    let outcome = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        read = receive(reader, early_input, &shared) => read,
        written = send_frames(&mut writer, desktop, &shared) => written,
    };
    // The client may be gone already; either way this is the last thing it hears.
    let farewell = async {
        if outcome.is_ok() {
            writer.write_all(&ultimatum()?).await?;
        }
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    if let Ok(Err(error)) = timeout(FAREWELL_TIMEOUT, farewell).await {
        debug!(
            error = format!("{error:#}"),
            "Demo target could not say good-bye"
        );
    }
    outcome
}

/// Negotiation, TLS, and the rest of the connection sequence.
async fn handshake(
    stream: TcpStream,
    tls: TlsAcceptor,
) -> anyhow::Result<(Frames<TlsStream<TcpStream>>, Accepted)> {
    let mut frames = Frames::new(stream);
    let requested = negotiate(&mut frames)
        .await
        .context("negotiate the security protocol")?;
    let stream = frames
        .into_stream()
        .context("client spoke before the answer it must wait for")?;
    let stream = tls.accept(stream).await.context("TLS handshake")?;

    let mut frames = Frames::new(stream);
    let accepted = accept(&mut frames, requested)
        .await
        .context("connection sequence")?;
    Ok((frames, accepted))
}

/// Selects TLS, and gives back the protocols that the client has offered.
async fn negotiate(frames: &mut Frames<TcpStream>) -> anyhow::Result<u32> {
    let request = frames.next().await?;
    let (request, _) = connection_request::decode(&request)?
        .context("the Connection Request is longer than its frame")?;
    let requested = request
        .negotiation
        .map_or(0, |offer| offer.requested_protocols);
    if requested & PROTOCOL_SSL == 0 {
        let failure = encode_failure(FailureCode::SslRequired);
        frames.stream().write_all(&failure).await?;
        bail!("client does not offer TLS");
    }
    let confirm = ConnectionConfirm::Selected {
        flags: EXTENDED_CLIENT_DATA_SUPPORTED,
        protocol: PROTOCOL_SSL,
    };
    frames.stream().write_all(&confirm.encode()).await?;
    Ok(requested)
}

/// The connection sequence behind TLS.
async fn accept(
    frames: &mut Frames<TlsStream<TcpStream>>,
    client_requested: u32,
) -> anyhow::Result<Accepted> {
    let mut server = ServerSequence::new(client_requested);
    let mut answer = Vec::new();
    loop {
        let frame = frames.next().await?;
        let step = server.frame(&frame, &mut answer)?;
        frames.stream().write_all(&answer).await?;
        answer.clear();
        match step {
            ServerStep::On(next) => server = next,
            ServerStep::Accepted(accepted) => return Ok(accepted),
            ServerStep::Left => bail!("client left"),
        }
    }
}

/// What the reader tells the painter.
#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// Something in `seen` has changed.
    news: Notify,
}

#[derive(Default)]
struct Seen {
    keys: String,
    pointer: Option<(u16, u16)>,
    pressed: bool,
    shift: bool,
    caps: bool,
    /// The client does not want updates (Suppress Output).
    suppressed: bool,
    /// The client wants all of the picture again.
    repaint: bool,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_one();
    }
}

/// Reads what the client says until it leaves.
async fn receive(
    mut reader: Frames<ReadHalf<TlsStream<TcpStream>>>,
    early_input: Vec<Vec<u8>>,
    shared: &Shared,
) -> anyhow::Result<()> {
    for frame in &early_input {
        if on_frame(frame, shared)? == Next::Leave {
            return Ok(());
        }
    }
    loop {
        let frame = match reader.next().await {
            Ok(read) => read,
            // Closing without a word, and without TLS's own, is how most clients leave.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("read from the client"),
        };
        if on_frame(&frame, shared)? == Next::Leave {
            return Ok(());
        }
    }
}

fn on_frame(frame: &[u8], shared: &Shared) -> anyhow::Result<Next> {
    if !is_fast_path(frame) {
        return x224(frame, shared);
    }
    fast_path(frame, shared)?;
    Ok(Next::Stay)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Stay,
    Leave,
}

/// [MS-RDPBCGR] 2.2.8.1.2 Client Fast-Path Input Event PDU (TS_FP_INPUT_PDU)
fn fast_path(frame: &[u8], shared: &Shared) -> anyhow::Result<()> {
    // The decoder subtracts the header from the length the frame names without looking.
    ensure!(frame.len() > 2, "fast-path frame shorter than its header");
    let input: FastPathInput = decode(frame).context("decode fast-path input")?;
    shared.change(|seen| {
        for event in input.input_events() {
            match *event {
                FastPathInputEvent::KeyboardEvent(flags, code) => seen.key(
                    code,
                    flags.contains(KeyboardFlags::EXTENDED),
                    flags.contains(KeyboardFlags::RELEASE),
                ),
                FastPathInputEvent::UnicodeKeyboardEvent(flags, unit) => {
                    seen.unicode(unit, flags.contains(KeyboardFlags::RELEASE));
                }
                FastPathInputEvent::MouseEvent(mouse) => seen.mouse(&mouse),
                FastPathInputEvent::SyncEvent(flags) => {
                    seen.synchronize(flags.contains(SynchronizeFlags::CAPS_LOCK));
                }
                FastPathInputEvent::MouseEventEx(mouse) => {
                    seen.pointer = Some((mouse.x_position, mouse.y_position));
                }
                FastPathInputEvent::MouseEventRel(_) | FastPathInputEvent::QoeEvent(_) => {}
            }
        }
    });
    Ok(())
}

/// Everything that is not fast-path input.
fn x224(frame: &[u8], shared: &Shared) -> anyhow::Result<Next> {
    let message: X224<McsMessage<'_>> = decode(frame).context("decode an MCS message")?;
    let data = match message.0 {
        McsMessage::SendDataRequest(data) => data,
        McsMessage::DisconnectProviderUltimatum(_) => return Ok(Next::Leave),
        McsMessage::ErectDomainRequest(_)
        | McsMessage::AttachUserRequest(_)
        | McsMessage::AttachUserConfirm(_)
        | McsMessage::ChannelJoinRequest(_)
        | McsMessage::ChannelJoinConfirm(_)
        | McsMessage::SendDataIndication(_) => {
            bail!("an MCS message that only belongs into the connection sequence")
        }
    };
    if data.channel_id != IO_CHANNEL {
        // No other channel has anybody at this end.
        return Ok(Next::Stay);
    }
    // Clients say much that the target has no use for, some of it unknown to the decoder.
    let header: ShareControlHeader = match decode(data.user_data.as_ref()) {
        Ok(header) => header,
        Err(error) => {
            debug!(%error, "Demo target ignores a PDU it cannot read");
            return Ok(Next::Stay);
        }
    };
    let ShareControlPdu::Data(data) = header.share_control_pdu else {
        return Ok(Next::Stay);
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else a client says has no effect here"
    )]
    match data.share_data_pdu {
        ShareDataPdu::Input(input) => shared.change(|seen| {
            for event in input.0 {
                seen.slow_path(&event);
            }
        }),
        ShareDataPdu::SuppressOutput(suppress) => shared.change(|seen| {
            seen.suppressed = suppress.desktop_rect.is_none();
            seen.repaint |= !seen.suppressed;
        }),
        ShareDataPdu::RefreshRectangle(_) => shared.change(|seen| seen.repaint = true),
        ShareDataPdu::ShutdownRequest => return Ok(Next::Leave),
        other => debug!(pdu = other.as_short_name(), "Demo target ignores a PDU"),
    }
    Ok(Next::Stay)
}

impl Seen {
    fn slow_path(&mut self, event: &InputEvent) {
        match event {
            InputEvent::ScanCode(key) => {
                let code = u8::try_from(key.key_code & 0xff).unwrap_or_default();
                self.key(
                    code,
                    key.flags.contains(scan_code::KeyboardFlags::EXTENDED),
                    key.flags.contains(scan_code::KeyboardFlags::RELEASE),
                );
            }
            InputEvent::Unicode(key) => {
                let released = key.flags.contains(unicode::KeyboardFlags::RELEASE);
                self.unicode(key.unicode_code, released);
            }
            InputEvent::Mouse(mouse) => self.mouse(mouse),
            InputEvent::MouseX(mouse) => self.pointer = Some((mouse.x_position, mouse.y_position)),
            InputEvent::Sync(sync) => {
                self.synchronize(sync.flags.contains(sync::SyncToggleFlags::CAPS_LOCK));
            }
            InputEvent::MouseRel(_) | InputEvent::Unused(_) => {}
        }
    }

    fn key(&mut self, code: u8, extended: bool, released: bool) {
        match keyboard::key(code, extended, self.shift, self.caps) {
            Key::Shift => self.shift = !released,
            _ if released => {}
            Key::CapsLock => self.caps = !self.caps,
            Key::Backspace => {
                self.keys.pop();
            }
            Key::Enter => self.keys.clear(),
            Key::Character(character) => self.echo(character),
            Key::Other => {}
        }
    }

    fn unicode(&mut self, unit: u16, released: bool) {
        let character = char::from_u32(u32::from(unit)).filter(|glyph| !glyph.is_control());
        if let (Some(character), false) = (character, released) {
            self.echo(character);
        }
    }

    fn echo(&mut self, character: char) {
        if self.keys.chars().count() >= KEYS_CHARS {
            self.keys.remove(0);
        }
        self.keys.push(character);
    }

    fn mouse(&mut self, mouse: &MousePdu) {
        self.pointer = Some((mouse.x_position, mouse.y_position));
        let buttons = PointerFlags::LEFT_BUTTON
            | PointerFlags::RIGHT_BUTTON
            | PointerFlags::MIDDLE_BUTTON_OR_WHEEL;
        if mouse.flags.intersects(buttons) {
            self.pressed = mouse.flags.contains(PointerFlags::DOWN);
        }
    }

    /// The client tells which locks are on; a key that was held when it lost the focus is held no more.
    fn synchronize(&mut self, caps: bool) {
        self.caps = caps;
        self.shift = false;
    }
}

/// Draws and sends frames until the connection fails.
async fn send_frames(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    mut desktop: Desktop,
    shared: &Shared,
) -> anyhow::Result<()> {
    let start = clock::now();
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut painter = Painter::new();
    let mut repaint = true;
    loop {
        tokio::select! {
            _ = frames.tick() => {}
            () = shared.news.notified() => sleep(INPUT_PAUSE).await,
        }
        let (live, suppressed) = {
            let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
            repaint |= std::mem::take(&mut seen.repaint);
            let live = Live {
                now: clock::since_epoch(),
                elapsed: clock::now().duration_since(start),
                keys: seen.keys.clone(),
                pointer: seen.pointer,
                pressed: seen.pressed,
            };
            (live, seen.suppressed)
        };
        if suppressed {
            continue;
        }
        let mut changed = desktop.draw(&live);
        if std::mem::take(&mut repaint) {
            changed = vec![desktop.picture().area()];
        }
        for area in changed {
            painter.send(writer, desktop.picture(), area).await?;
        }
    }
}

/// Turns areas of a picture into fast-path bitmap updates.
struct Painter {
    /// Bitmaps of the update being put together.
    bitmaps: Vec<u8>,
    count: u16,
    /// One compressed tile.
    tile: Vec<u8>,
    frame: Vec<u8>,
}

impl Painter {
    fn new() -> Self {
        Self {
            bitmaps: Vec::new(),
            count: 0,
            tile: vec![0; TILE_BYTES],
            frame: Vec::new(),
        }
    }

    async fn send(
        &mut self,
        writer: &mut WriteHalf<TlsStream<TcpStream>>,
        picture: &Canvas,
        area: Area,
    ) -> anyhow::Result<()> {
        for tile in tiles(area.intersection(&picture.area()), picture.width()) {
            let bytes = self.encode_tile(picture, tile)?;
            if self.bitmaps.len().saturating_add(bytes.len()) > UPDATE_BYTES {
                self.flush(writer).await?;
            }
            self.bitmaps.extend_from_slice(&bytes);
            self.count = self.count.saturating_add(1);
        }
        self.flush(writer).await
    }

    /// [MS-RDPBCGR] 2.2.9.1.1.3.1.2.2 Bitmap Data (TS_BITMAP_DATA), 32 bits per pixel in RDP 6.0 planar compression.
    fn encode_tile(&mut self, picture: &Canvas, tile: Area) -> anyhow::Result<Vec<u8>> {
        // Bitmaps are sent bottom-up.
        let pixels = (tile.top..tile.bottom)
            .rev()
            .flat_map(|y| picture.row(y, tile.left, tile.right))
            .map(<[u8; 4]>::as_slice);
        let (width, height) = (tile.width(), tile.height());
        let mut encoder = BitmapStreamEncoder::new(usize::from(width), usize::from(height));
        let length = encoder
            .encode_pixels_stream::<_, RgbAChannels>(pixels.clone(), &mut self.tile, true)
            .or_else(|_larger_than_plain| {
                encoder.encode_pixels_stream::<_, RgbAChannels>(pixels, &mut self.tile, false)
            })
            .context("compress a tile")?;
        let data = self.tile.get(..length).unwrap_or_default();
        let bitmap = BitmapData {
            rectangle: InclusiveRectangle {
                left: tile.left,
                top: tile.top,
                right: tile.right.saturating_sub(1),
                bottom: tile.bottom.saturating_sub(1),
            },
            width,
            height,
            bits_per_pixel: BITS_PER_PIXEL,
            compression_flags: Compression::BITMAP_COMPRESSION,
            compressed_data_header: Some(CompressedDataHeader {
                main_body_size: u16::try_from(length).context("tile length")?,
                scan_width: width,
                uncompressed_size: width.saturating_mul(height).saturating_mul(4),
            }),
            bitmap_data: data,
        };
        ironrdp_core::encode_vec(&bitmap).context("encode a tile")
    }

    /// Sends what has been put together as one TS_FP_UPDATE_BITMAP in a PDU of its own.
    async fn flush(&mut self, writer: &mut WriteHalf<TlsStream<TcpStream>>) -> anyhow::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let mut header = [0; 4];
        BitmapUpdateData::encode_header(self.count, &mut WriteCursor::new(&mut header))
            .context("encode an update")?;
        self.bitmaps.splice(0..0, header);
        let update = FastPathUpdatePdu {
            fragmentation: Fragmentation::Single,
            update_code: UpdateCode::Bitmap,
            compression_flags: None,
            compression_type: None,
            data: &self.bitmaps,
        };
        let header = FastPathHeader::new(EncryptionFlags::empty(), update.size());
        self.frame.clear();
        self.frame
            .resize(header.size().saturating_add(update.size()), 0);
        let mut cursor = WriteCursor::new(&mut self.frame);
        header.encode(&mut cursor).context("encode a frame")?;
        update.encode(&mut cursor).context("encode a frame")?;
        self.bitmaps.clear();
        self.count = 0;
        timeout(WRITE_TIMEOUT, writer.write_all(&self.frame))
            .await
            .context("client has stopped reading")?
            .context("write to the client")
    }
}

/// Covers an area with tiles whose width is a multiple of four, as TS_CD_HEADER demands.
///
/// Where that does not come out even, tiles reach past the area: to the left at the right edge of the picture.
fn tiles(area: Area, picture_width: u16) -> impl Iterator<Item = Area> {
    let columns = (area.left..area.right).step_by(usize::from(TILE));
    columns.flat_map(move |left| {
        let wanted = area
            .right
            .min(left.saturating_add(TILE))
            .saturating_sub(left);
        let width = wanted
            .next_multiple_of(4)
            .min(picture_width - picture_width % 4);
        let left = left.min(picture_width.saturating_sub(width));
        (area.top..area.bottom)
            .step_by(usize::from(TILE))
            .map(move |top| {
                let bottom = area.bottom.min(top.saturating_add(TILE));
                Area::new(left, top, width, bottom.saturating_sub(top))
            })
    })
}

/// MCS Disconnect Provider Ultimatum: the session is over.
fn ultimatum() -> anyhow::Result<Vec<u8>> {
    let reason = DisconnectReason::ProviderInitiated;
    let message = McsMessage::DisconnectProviderUltimatum(DisconnectProviderUltimatum { reason });
    ironrdp_core::encode_vec(&X224(message)).context("encode the ultimatum")
}

/// Of RDP_NEG_RSP: GCC blocks beyond those of RDP 5 are understood.
const EXTENDED_CLIENT_DATA_SUPPORTED: u8 = 0x01;

/// Sessions at one time; more wait to be accepted.
const SESSIONS: usize = 32;

/// From accept until the client has sent its Font List.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// A client that takes nothing for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// For the last words and TLS's own.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Between attempts where the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Between frames.
const FRAME: Duration = Duration::from_millis(100);

/// Input that arrives within this time is shown together.
const INPUT_PAUSE: Duration = Duration::from_millis(15);

/// Edge of a tile, pixels. A tile that does not compress at all still fits an update.
const TILE: u16 = 64;

/// A tile in three plain planes of 4096 bytes, and its two bytes of framing.
const TILE_BYTES: usize = 3 * 4096 + 2;

/// Bitmaps in one update: below 16 KiB, which every client takes in one piece.
const UPDATE_BYTES: usize = 15 * 1024;

#[cfg(test)]
mod tests {
    use ironrdp_core::WriteBuf;
    use ironrdp_pdu::input::{InputEventPdu, ScanCodePdu};
    use ironrdp_pdu::rdp::refresh_rectangle::RefreshRectanglePdu;
    use ironrdp_pdu::rdp::suppress_output::SuppressOutputPdu;

    use super::*;
    use jetway_rdp::frame;

    /// Starts of frames that real clients send after the connection sequence.
    const FRAMES: [&[u8]; 4] = [
        // Fast path: press and release `a`, then move the pointer.
        b"\x0c\x0d\x00\x1e\x01\x1e\x20\x00\x08\x40\x01\xf0\x00",
        // MCS Disconnect Provider Ultimatum.
        b"\x03\x00\x00\x09\x02\xf0\x80\x21\x80",
        b"\x30\x00",
        b"\x04\x80\x03\x1e",
    ];

    /// An Input PDU and its like, as clients without fast path send them on the I/O channel.
    fn slow_path(channel: u16, pdu: ShareDataPdu) -> Vec<u8> {
        let mut frame = WriteBuf::new();
        ironrdp_pdu::rdp::headers::encode_share_data(1002, channel, 0, pdu, &mut frame).unwrap();
        frame.filled().to_vec()
    }

    fn typed(character: char) -> ShareDataPdu {
        let (code, _) = keyboard::scan_code(character).unwrap();
        ShareDataPdu::Input(InputEventPdu(vec![InputEvent::ScanCode(ScanCodePdu {
            flags: scan_code::KeyboardFlags::empty(),
            key_code: u16::from(code),
        })]))
    }

    #[test]
    fn slow_path_input_refresh_suppress_and_shutdown_are_understood() {
        let shared = Shared::default();
        let say = |pdu| x224(&slow_path(IO_CHANNEL, pdu), &shared).unwrap();
        let suppress =
            |desktop_rect| ShareDataPdu::SuppressOutput(SuppressOutputPdu { desktop_rect });
        let all = InclusiveRectangle {
            left: 0,
            top: 0,
            right: 99,
            bottom: 99,
        };
        let flags = || {
            let mut seen = shared.seen.lock().unwrap();
            (seen.suppressed, std::mem::take(&mut seen.repaint))
        };

        assert!(say(typed('j')) == Next::Stay);
        assert_eq!(shared.seen.lock().unwrap().keys, "j");
        say(suppress(None));
        assert_eq!(flags(), (true, false));
        say(suppress(Some(all.clone())));
        assert_eq!(flags(), (false, true));
        let areas_to_refresh = vec![all];
        say(ShareDataPdu::RefreshRectangle(RefreshRectanglePdu {
            areas_to_refresh,
        }));
        assert_eq!(flags(), (false, true));
        assert!(say(ShareDataPdu::ShutdownRequest) == Next::Leave);
        let other_channel = x224(&slow_path(IO_CHANNEL + 1, typed('x')), &shared).unwrap();
        assert!(other_channel == Next::Stay);
        assert_eq!(shared.seen.lock().unwrap().keys, "j");
    }

    #[test]
    fn no_frame_makes_the_reader_panic() {
        let mut seed = 1_u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()
        };
        let shared = Shared::default();
        let mut frames: Vec<Vec<u8>> = FRAMES.iter().map(|frame| frame.to_vec()).collect();
        frames.push(slow_path(IO_CHANNEL, typed('j')));
        frames.push(slow_path(IO_CHANNEL, ShareDataPdu::ShutdownRequest));
        for round in 0..20_000_usize {
            let mut frame = frames[round % frames.len()].clone();
            let [count, ..] = random();
            for _ in 0..count % 4 {
                let [at, value, _, _] = random();
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            let [cut, ..] = random();
            frame.truncate(usize::from(cut) + 1);
            if let Ok(Some(found)) = frame::find(&frame)
                && found.length <= frame.len()
            {
                frame.truncate(found.length);
                drop(on_frame(&frame, &shared));
            }
        }
    }

    #[test]
    fn a_frame_that_is_all_header_is_refused() {
        let shared = Shared::default();
        for frame in [b"".as_slice(), b"\x30", b"\x30\x00"] {
            assert!(fast_path(frame, &shared).is_err());
        }
    }

    #[test]
    fn typing_is_echoed_up_to_a_limit() {
        let shared = Shared::default();
        for _ in 0..100 {
            fast_path(FRAMES[0], &shared).unwrap();
        }
        let seen = shared.seen.lock().unwrap();
        assert_eq!(seen.keys, "a".repeat(KEYS_CHARS));
        assert_eq!(seen.pointer, Some((0x0140, 0x00f0)));
    }

    #[test]
    fn tiles_cover_an_area_and_stay_in_the_picture() {
        for width in [64_u16, 65, 66, 67, 130, 202, 1366] {
            let picture = Area::new(0, 0, width, 100);
            for area in [
                picture,
                Area::new(width - 3, 5, 3, 70),
                Area::new(1, 1, 62, 9),
            ] {
                let tiles: Vec<Area> = tiles(area.intersection(&picture), width).collect();
                for y in area.top..area.bottom {
                    for x in area.left..area.right {
                        assert!(
                            tiles.iter().any(|tile| tile.contains(x, y)),
                            "{width} {x},{y}"
                        );
                    }
                }
                for tile in tiles {
                    assert!(tile.width().is_multiple_of(4) && !tile.is_empty());
                    assert_eq!(tile.intersection(&picture), tile, "{width} {tile:?}");
                }
            }
        }
    }
}
