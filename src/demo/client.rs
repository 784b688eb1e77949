//! A headless RDP client: it connects, keeps the picture it receives in memory, and types when told to.
//!
//! It offers TLS (`PROTOCOL_SSL`) and **accepts any certificate**: it is made to meet the demo's own target, whose
//! certificate nobody vouches for, and targets that tests have started. A gateway that does not look inside passes
//! TLS through, so the certificate is the target's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use image::RgbaImage;
use ironrdp_connector::{
    ClientConnector, ClientConnectorState, Config, ConnectionResult, ConnectorError,
    ConnectorErrorKind, Credentials, DesktopSize, Sequence as _,
};
use ironrdp_core::WriteBuf;
use ironrdp_graphics::image_processing::PixelFormat;
use ironrdp_pdu::Action;
use ironrdp_pdu::gcc::{ConnectionType, KeyboardType};
use ironrdp_pdu::geometry::InclusiveRectangle;
use ironrdp_pdu::input::MousePdu;
use ironrdp_pdu::input::fast_path::{FastPathInputEvent, KeyboardFlags};
use ironrdp_pdu::input::mouse::PointerFlags;
use ironrdp_pdu::pcb::{PcbVersion, PreconnectionBlob};
use ironrdp_pdu::rdp::capability_sets::{MajorPlatformType, RailSupportLevel};
use ironrdp_pdu::rdp::client_info::{PerformanceFlags, TimezoneInfo};
use ironrdp_session::image::DecodedImage;
use ironrdp_session::{ActiveStage, ActiveStageBuilder, ActiveStageOutput};
use ironrdp_tokio::{FramedWrite as _, TokioFramed, single_sequence_step};
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

use super::keyboard;

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
/// It is the root of the error [`Session::connect`] returns: `error.downcast_ref::<Refused>()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server refused the connection with RDP_NEG_FAILURE code {code}")]
pub struct Refused {
    /// `failureCode`.
    pub code: u32,
}

/// Connects, waits for the picture, types, waits again, and leaves.
///
/// # Errors
/// Where a step fails or the deadline passes; [`Refused`] is kept at the root.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn capture(visit: &Visit<'_>) -> anyhow::Result<Capture> {
    let work = async {
        let mut session = Session::connect(visit).await?;
        session.settle(visit.settle).await?;
        if !visit.keys.is_empty() {
            session.type_text(visit.keys).await?;
            session.settle(visit.settle).await?;
        }
        let capture = Capture {
            image: session.image()?,
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
pub struct Session {
    framed: TokioFramed<TlsStream<TcpStream>>,
    stage: ActiveStage,
    image: DecodedImage,
    /// Which pixels have been painted since the session began or was resized, row by row.
    painted: Vec<bool>,
    activation: ironrdp_connector::connection_activation::ConnectionActivationFactory,
    selected_protocol: u32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("desktop_size", &self.desktop_size())
            .field("selected_protocol", &self.selected_protocol)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Sends the preconnection PDU, negotiates, does TLS and the rest of the connection sequence.
    ///
    /// # Errors
    /// Where a step fails; [`Refused`] where the server said so. No deadline of its own: wrap it in a timeout.
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
            let pdu = ironrdp_core::encode_vec(&pdu).context("encode the preconnection PDU")?;
            stream
                .write_all(&pdu)
                .await
                .context("send the preconnection PDU")?;
        }

        let mut connector = ClientConnector::new(config(visit), local);
        let mut framed = TokioFramed::new(stream);
        let mut buffer = WriteBuf::new();
        while !connector.should_perform_security_upgrade() {
            single_sequence_step(&mut framed, &mut connector, &mut buffer)
                .await
                .map_err(refused)
                .context("negotiate the security protocol")?;
        }
        let ClientConnectorState::EnhancedSecurityUpgrade { selected_protocol } = connector.state
        else {
            bail!("the connector is not where TLS begins");
        };
        let selected_protocol = selected_protocol.bits();
        let (stream, early) = framed.into_inner();
        ensure!(early.is_empty(), "the server spoke before TLS");
        let name = ServerName::from(visit.address.ip());
        let stream = TlsConnector::from(any_certificate()?)
            .connect(name, stream)
            .await
            .context("TLS handshake")?;
        connector.mark_security_upgrade_as_done();

        let mut framed = TokioFramed::new(stream);
        let connected = loop {
            single_sequence_step(&mut framed, &mut connector, &mut buffer)
                .await
                .map_err(refused)
                .context("connection sequence")?;
            if let Some(outcome) = connector.state.take_outcome() {
                break outcome.into_connected().context("connection sequence")?;
            }
        };
        Ok(Self::new(framed, connected, selected_protocol))
    }

    fn new(
        framed: TokioFramed<TlsStream<TcpStream>>,
        connected: ConnectionResult,
        selected_protocol: u32,
    ) -> Self {
        let size = connected.desktop_size;
        let stage = ActiveStageBuilder {
            static_channels: connected.static_channels,
            user_channel_id: connected.user_channel_id,
            io_channel_id: connected.io_channel_id,
            message_channel_id: connected.message_channel_id,
            share_id: connected.share_id,
            compression_type: connected.compression_type,
            enable_server_pointer: connected.enable_server_pointer,
            pointer_software_rendering: connected.pointer_software_rendering,
        };
        Self {
            framed,
            stage: stage.build(),
            image: DecodedImage::new(PixelFormat::RgbA32, size.width, size.height),
            painted: unpainted(size),
            activation: connected.activation_factory,
            selected_protocol,
        }
    }

    /// `selectedProtocol` of the RDP Negotiation Response.
    #[must_use]
    pub fn selected_protocol(&self) -> u32 {
        self.selected_protocol
    }

    /// Width and height of the desktop.
    #[must_use]
    pub fn desktop_size(&self) -> (u16, u16) {
        (self.image.width(), self.image.height())
    }

    /// The picture as it is now, opaque.
    ///
    /// # Errors
    /// None that a server could cause.
    pub fn image(&self) -> anyhow::Result<RgbaImage> {
        let (width, height) = self.desktop_size();
        let mut pixels = self.image.data().to_vec();
        for alpha in pixels.iter_mut().skip(3).step_by(4) {
            *alpha = u8::MAX;
        }
        RgbaImage::from_raw(u32::from(width), u32::from(height), pixels)
            .context("picture and size do not fit together")
    }

    /// Waits until every pixel has been painted and, for `quiet`, nothing larger than a sixteenth of the desktop has
    /// changed: clocks and carets may go on.
    ///
    /// # Errors
    /// Where the server ends the session or sends what cannot be decoded. No deadline of its own.
    pub async fn settle(&mut self, quiet: Duration) -> anyhow::Result<()> {
        let mut since = Instant::now();
        loop {
            let complete = !self.painted.contains(&false);
            let Ok(read) = timeout_at(since + quiet, self.framed.read_pdu()).await else {
                if complete {
                    return Ok(());
                }
                since = Instant::now();
                continue;
            };
            let (action, frame) = read.context("the server closed the connection")?;
            let changed = self.process(action, &frame).await?;
            if !complete || changed > self.painted.len() / 16 {
                since = Instant::now();
            }
        }
    }

    /// Waits until the session is over and says how it ended.
    ///
    /// # Cancel safety
    /// Cancel safe between frames.
    pub async fn ended(&mut self) -> anyhow::Error {
        loop {
            let read = self.framed.read_pdu().await;
            let step = match read.context("the server closed the connection") {
                Ok((action, frame)) => self.process(action, &frame).await,
                Err(error) => Err(error),
            };
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
            for output in self.stage.graceful_shutdown()? {
                if let ActiveStageOutput::ResponseFrame(frame) = output {
                    self.framed.write_all(&frame).await?;
                }
            }
            let (stream, _) = self.framed.get_inner_mut();
            stream.shutdown().await?;
            anyhow::Ok(())
        };
        // A server that has gone first has nothing left to be told.
        let _ = timeout(Duration::from_secs(1), farewell).await;
    }

    async fn input(&mut self, events: &[FastPathInputEvent]) -> anyhow::Result<()> {
        let outputs = self
            .stage
            .process_fastpath_input(&mut self.image, events)
            .context("encode input")?;
        for output in outputs {
            if let ActiveStageOutput::ResponseFrame(frame) = output {
                self.framed.write_all(&frame).await.context("send input")?;
            }
        }
        Ok(())
    }

    /// Takes in one frame and says how many pixels it has changed.
    async fn process(&mut self, action: Action, frame: &[u8]) -> anyhow::Result<usize> {
        let outputs = self
            .stage
            .process(&mut self.image, action, frame, None)
            .context("decode what the server sent")?;
        let mut changed = 0_usize;
        for output in outputs {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "the rest is for clients with a window, a pointer or channels"
            )]
            match output {
                ActiveStageOutput::ResponseFrame(frame) if !frame.is_empty() => {
                    self.framed
                        .write_all(&frame)
                        .await
                        .context("answer the server")?;
                }
                ActiveStageOutput::GraphicsUpdate(_) => {
                    for area in self.stage.take_damage_regions() {
                        changed = changed.saturating_add(self.mark(&area));
                    }
                }
                ActiveStageOutput::Terminate(reason) => {
                    bail!("the server ended the session: {reason}")
                }
                ActiveStageOutput::DeactivateAll => self.reactivate().await?,
                _ => {}
            }
        }
        Ok(changed)
    }

    fn mark(&mut self, area: &InclusiveRectangle) -> usize {
        let stride = usize::from(self.image.width());
        let mut changed = 0_usize;
        for y in area.top..=area.bottom {
            let start = usize::from(y).saturating_mul(stride);
            let (left, right) = (usize::from(area.left), usize::from(area.right));
            let row = start.saturating_add(left)..=start.saturating_add(right);
            if let Some(row) = self.painted.get_mut(row) {
                row.fill(true);
                changed = changed.saturating_add(row.len());
            }
        }
        changed
    }

    /// [MS-RDPBCGR] 1.3.1.3 Deactivation-Reactivation Sequence: the desktop begins anew, perhaps with another size.
    async fn reactivate(&mut self) -> anyhow::Result<()> {
        use ironrdp_connector::connection_activation::ConnectionActivationState as State;
        let mut sequence = self.activation.create();
        let mut buffer = WriteBuf::new();
        while !sequence.state().is_terminal() {
            single_sequence_step(&mut self.framed, &mut sequence, &mut buffer)
                .await
                .context("reactivate the session")?;
        }
        let State::Finalized {
            desktop_size,
            share_id,
            static_channel_chunk_size,
            enable_server_pointer,
            pointer_software_rendering,
            ..
        } = sequence.connection_activation_state()
        else {
            bail!("the server redirects to another server");
        };
        self.image =
            DecodedImage::new(PixelFormat::RgbA32, desktop_size.width, desktop_size.height);
        self.painted = unpainted(desktop_size);
        let accepted = self.stage.reactivate(
            sequence.io_channel_id(),
            sequence.user_channel_id(),
            share_id,
            enable_server_pointer,
            pointer_software_rendering,
            static_channel_chunk_size,
        );
        ensure!(
            accepted,
            "the server named an impossible channel chunk size"
        );
        Ok(())
    }
}

fn unpainted(size: DesktopSize) -> Vec<bool> {
    vec![false; usize::from(size.width).saturating_mul(usize::from(size.height))]
}

fn refused(error: ConnectorError) -> anyhow::Error {
    if let ConnectorErrorKind::Negotiation(failure) = error.kind() {
        let code = u32::from(failure.code());
        return anyhow::Error::new(Refused { code });
    }
    anyhow::Error::new(error)
}

fn config(visit: &Visit<'_>) -> Config {
    Config {
        desktop_size: DesktopSize {
            width: visit.size.0,
            height: visit.size.1,
        },
        monitor_layout: None,
        desktop_scale_factor: 0,
        desktop_physical_size: None,
        desktop_orientation: None,
        device_scale_factor: None,
        monitor_extended_layout: None,
        relative_mouse_input: false,
        enable_tls: true,
        enable_credssp: false,
        enable_standard_rdp_security: false,
        credentials: Credentials::UsernamePassword {
            username: String::from(visit.user),
            password: String::from(visit.password),
        },
        domain: None,
        client_build: 0,
        client_name: String::from("jetway"),
        keyboard_type: KeyboardType::IBM_ENHANCED,
        keyboard_subtype: 0,
        keyboard_functional_keys_count: 12,
        keyboard_layout: US_KEYBOARD,
        connection_type: ConnectionType::Lan,
        ime_file_name: String::new(),
        bitmap: None,
        dig_product_id: String::new(),
        client_dir: String::from("jetway"),
        alternate_shell: String::new(),
        work_dir: String::new(),
        remote_application_mode: false,
        rail_support_level: RailSupportLevel::empty(),
        platform: MajorPlatformType::UNIX,
        hardware_id: None,
        request_data: None,
        autologon: true,
        enable_audio_playback: false,
        enable_audio_capture: false,
        performance_flags: PerformanceFlags::default(),
        license_cache: None,
        timezone_info: TimezoneInfo::default(),
        compression_type: None,
        enable_server_pointer: false,
        pointer_software_rendering: false,
        multitransport_flags: None,
        support_dyn_vc_gfx_protocol: false,
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

/// Language identifier of the keyboard whose keys [`Session::type_text`] presses.
const US_KEYBOARD: u32 = 0x0409;
