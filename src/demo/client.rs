//! A headless RDP client: it connects, keeps the picture it receives in memory, and types when told to.
//!
//! It offers TLS (`PROTOCOL_SSL`) and **accepts any certificate**: it is made to meet the demo's own target, whose
//! certificate nobody vouches for, and targets that tests have started. A gateway that does not look inside passes
//! TLS through, so the certificate is the target's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use image::RgbaImage;
use ironrdp_core::{decode, encode_vec};
use ironrdp_pdu::input::MousePdu;
use ironrdp_pdu::input::fast_path::{FastPathInput, FastPathInputEvent, KeyboardFlags};
use ironrdp_pdu::input::mouse::PointerFlags;
use ironrdp_pdu::nego::{
    ConnectionConfirm, ConnectionRequest, NegoRequestData, RequestFlags, SecurityProtocol,
};
use ironrdp_pdu::pcb::{PcbVersion, PreconnectionBlob};
use ironrdp_pdu::rdp::headers::{ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::x224::X224;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::frames::{Frames, is_fast_path};
use super::keyboard;
use super::picture::Picture;
use super::sequence::client::{ClientSequence, ClientStep, ConnectionSettings, Wishes};

/// What to connect to, and as whom.
#[derive(Clone, Copy)]
pub struct Visit<'a> {
    /// Where to connect: a gateway, or a target itself.
    pub address: SocketAddr,
    /// `wsz_pcb` of the RDP_PRECONNECTION_PDU_V2 that is sent first, if any: the token.
    pub wsz_pcb: Option<&'a str>,
    pub user: &'a str,
    pub password: &'a str,
    /// Width and height of the desktop to ask for.
    pub size: (u16, u16),
    /// Typed once the picture has arrived.
    pub keys: &'a str,
    /// How long the picture must have been quiet.
    pub settle: Duration,
    /// For everything together.
    pub deadline: Duration,
}

impl<'a> Visit<'a> {
    /// A visit without a token, with a desktop of 1024 by 768 pixels.
    #[must_use]
    pub fn new(address: SocketAddr, user: &'a str, password: &'a str) -> Self {
        Self {
            address,
            wsz_pcb: None,
            user,
            password,
            size: (1024, 768),
            keys: "",
            settle: Duration::from_millis(400),
            deadline: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for Visit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visit")
            .field("address", &self.address)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What a visit has brought home.
#[derive(Clone, Debug)]
pub struct Capture {
    pub image: RgbaImage,
    /// `selectedProtocol` of the RDP Negotiation Response.
    pub selected_protocol: u32,
    pub desktop_size: (u16, u16),
}

/// The server answered the Connection Request with an RDP Negotiation Failure (RDP_NEG_FAILURE).
///
/// It is the root of the error [`ClientSession::connect`] returns: `error.downcast_ref::<NegotiationFailure>()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server refused the connection with RDP_NEG_FAILURE code {code}")]
pub struct NegotiationFailure {
    /// `failureCode`.
    pub code: u32,
}

/// Connects, waits for the picture, types, waits again, and leaves.
///
/// # Errors
/// Where a step fails or the deadline passes; [`NegotiationFailure`] is kept at the root.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn capture(visit: &Visit<'_>) -> anyhow::Result<Capture> {
    let work = async {
        let mut session = ClientSession::connect(visit).await?;
        session.settle(visit.settle).await?;
        if !visit.keys.is_empty() {
            session.type_text(visit.keys).await?;
            session.settle(visit.settle).await?;
        }
        let capture = Capture {
            image: session.image().clone(),
            selected_protocol: session.selected_protocol(),
            desktop_size: session.desktop_size(),
        };
        session.leave().await;
        Ok(capture)
    };
    timeout(visit.deadline, work)
        .await
        .with_context(|| format!("no complete picture within {:?}", visit.deadline))?
}

/// A connected client.
pub struct ClientSession {
    frames: Frames<TlsStream<TcpStream>>,
    connected: ConnectionSettings,
    picture: Picture,
    selected_protocol: u32,
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession")
            .field("desktop_size", &self.desktop_size())
            .field("selected_protocol", &self.selected_protocol)
            .finish_non_exhaustive()
    }
}

impl ClientSession {
    /// Sends the preconnection PDU, negotiates, does TLS and the rest of the connection sequence.
    ///
    /// # Errors
    /// Where a step fails; [`NegotiationFailure`] where the server said so. No deadline of its own: wrap it in a timeout.
    pub async fn connect(visit: &Visit<'_>) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(visit.address)
            .await
            .with_context(|| format!("connect to {}", visit.address))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let local = stream.local_addr().context("local address")?;
        if let Some(wsz_pcb) = visit.wsz_pcb {
            // Not our own encoder: a mistake it shared with the gateway's decoder would go unseen.
            let pdu = PreconnectionBlob {
                version: PcbVersion::V2,
                id: 0,
                v2_payload: Some(String::from(wsz_pcb)),
            };
            let pdu = encode_vec(&pdu).context("encode the preconnection PDU")?;
            stream
                .write_all(&pdu)
                .await
                .context("send the preconnection PDU")?;
        }

        let mut frames = Frames::new(stream);
        let selected_protocol = negotiate(&mut frames, visit.user)
            .await
            .context("negotiate the security protocol")?;
        let stream = frames
            .into_stream()
            .context("the server spoke before TLS")?;
        let name = ServerName::from(visit.address.ip());
        let stream = TlsConnector::from(any_certificate()?)
            .connect(name, stream)
            .await
            .context("TLS handshake")?;

        let mut frames = Frames::new(stream);
        let wishes = Wishes {
            user: visit.user,
            password: visit.password,
            size: visit.size,
            address: local.ip(),
        };
        let connected = connect(&mut frames, &wishes)
            .await
            .context("connection sequence")?;
        Ok(Self {
            frames,
            picture: Picture::new(connected.size),
            connected,
            selected_protocol,
        })
    }

    /// `selectedProtocol` of the RDP Negotiation Response.
    #[must_use]
    pub fn selected_protocol(&self) -> u32 {
        self.selected_protocol
    }

    /// Width and height of the desktop.
    #[must_use]
    pub fn desktop_size(&self) -> (u16, u16) {
        self.picture.size()
    }

    /// The picture as it is now, opaque.
    #[must_use]
    pub fn image(&self) -> &RgbaImage {
        self.picture.image()
    }

    /// Waits until every pixel has been painted and, for `quiet`, nothing larger than a sixteenth of the desktop has
    /// changed: clocks and carets may go on.
    ///
    /// # Errors
    /// Where the server ends the session or sends what cannot be decoded. No deadline of its own.
    pub async fn settle(&mut self, quiet: Duration) -> anyhow::Result<()> {
        let mut since = Instant::now();
        loop {
            let complete = self.picture.is_complete();
            let Ok(read) = timeout_at(since + quiet, self.frames.next()).await else {
                if complete {
                    return Ok(());
                }
                since = Instant::now();
                continue;
            };
            let frame = read.context("the server closed the connection")?;
            let changed = self.process(&frame)?;
            if !complete || changed > self.picture.pixels() / 16 {
                since = Instant::now();
            }
        }
    }

    /// Waits until the session is over and says how it ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&mut self) -> anyhow::Error {
        loop {
            let read = self.frames.next().await;
            let step = read
                .context("the server closed the connection")
                .and_then(|frame| self.process(&frame));
            if let Err(error) = step {
                return error;
            }
        }
    }

    /// Presses and releases the keys that make `text` on a US keyboard.
    ///
    /// # Errors
    /// For a character that is not on that keyboard, and where the connection fails.
    pub async fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        for character in text.chars() {
            let (code, shift) = keyboard::scan_code(character)
                .with_context(|| format!("{character:?} is not on the keyboard"))?;
            let key = |flags, code| FastPathInputEvent::KeyboardEvent(flags, code);
            let mut events = vec![
                key(KeyboardFlags::empty(), code),
                key(KeyboardFlags::RELEASE, code),
            ];
            if shift {
                events.insert(0, key(KeyboardFlags::empty(), SHIFT));
                events.push(key(KeyboardFlags::RELEASE, SHIFT));
            }
            self.input(&events).await?;
        }
        Ok(())
    }

    /// Moves the pointer.
    ///
    /// # Errors
    /// Where the connection fails.
    pub async fn move_pointer(&mut self, x: u16, y: u16) -> anyhow::Result<()> {
        self.input(&[FastPathInputEvent::MouseEvent(MousePdu {
            flags: PointerFlags::MOVE,
            number_of_wheel_rotation_units: 0,
            x_position: x,
            y_position: y,
        })])
        .await
    }

    /// Says good-bye and closes the connection.
    pub async fn leave(mut self) {
        let farewell = async {
            let frame = self
                .connected
                .say(ShareDataPdu::ShutdownRequest, "Shutdown Request")?;
            self.frames.stream().write_all(&frame).await?;
            self.frames.stream().shutdown().await?;
            anyhow::Ok(())
        };
        // A server that has gone first has nothing left to be told.
        let _ = timeout(Duration::from_secs(1), farewell).await;
    }

    async fn input(&mut self, events: &[FastPathInputEvent]) -> anyhow::Result<()> {
        let input = FastPathInput::new(events.to_vec()).context("encode input")?;
        let frame = encode_vec(&input).context("encode input")?;
        let sent = self.frames.stream().write_all(&frame).await;
        sent.context("send input")
    }

    /// Takes in one frame and says how many pixels it has changed.
    fn process(&mut self, frame: &[u8]) -> anyhow::Result<usize> {
        if is_fast_path(frame) {
            return self.picture.draw(frame).context("draw an update");
        }
        if let Some(ShareControlPdu::ServerDeactivateAll(_)) = self.connected.read(frame)? {
            bail!("the server deactivates the session, which this client does not follow");
        }
        // The rest is for clients with a window, a pointer or channels.
        Ok(0)
    }
}

/// Offers TLS, and gives back the protocol that the server has selected.
async fn negotiate(frames: &mut Frames<TcpStream>, user: &str) -> anyhow::Result<u32> {
    let request = X224(ConnectionRequest {
        nego_data: Some(NegoRequestData::cookie(String::from(user))),
        flags: RequestFlags::empty(),
        protocol: SecurityProtocol::SSL,
        correlation_info: None,
    });
    let request = encode_vec(&request).context("encode the Connection Request")?;
    frames.stream().write_all(&request).await?;
    let confirm = frames
        .next()
        .await
        .context("wait for the Connection Confirm")?;
    let confirm: X224<ConnectionConfirm> =
        decode(&confirm).context("decode the Connection Confirm")?;
    match confirm.0 {
        ConnectionConfirm::Response { protocol, .. } if protocol == SecurityProtocol::SSL => {
            Ok(protocol.bits())
        }
        ConnectionConfirm::Response { protocol, .. } => {
            bail!("the server selects a protocol that was not offered: {protocol:?}")
        }
        ConnectionConfirm::Failure { code } => {
            let code = u32::from(code);
            Err(anyhow::Error::new(NegotiationFailure { code }))
        }
    }
}

/// The connection sequence behind TLS.
async fn connect(
    frames: &mut Frames<TlsStream<TcpStream>>,
    wishes: &Wishes<'_>,
) -> anyhow::Result<ConnectionSettings> {
    let (mut client, mut answer) = ClientSequence::begin(wishes)?;
    loop {
        frames.stream().write_all(&answer).await?;
        answer.clear();
        let frame = frames
            .next()
            .await
            .context("the server closed the connection")?;
        match client.frame(&frame, &mut answer)? {
            ClientStep::On(next) => client = next,
            ClientStep::Connected(connected) => return Ok(connected),
        }
    }
}

fn any_certificate() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyCertificate(Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Asks no certificate whose it is; signatures of the handshake are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Left Shift, scan code set 1.
const SHIFT: u8 = 0x2a;
