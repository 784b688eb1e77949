//! The legs of an inspected session, each against a real counterpart: logon to freerdp-shadow-cli, logon of FreeRDP, and
//! the farewell that FreeRDP shows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jetway::gateway::trust::target_logon::SecureConfig;
use jetway::rdp::connection_request::{
    self, ConnectionRequest, NegotiationRequest, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL,
};
use jetway::rdp::farewell::Reason;
use jetway::rdp::negotiation::decode_confirm;
use jetway::session::secure::error::{Class, SecureError};
use jetway::session::secure::request::{RdpOpening, SecureRequest};
use jetway::session::secure::{Failed, Remaining, Secured, say_farewell, secure};
use jetway::target_certificate::{FilePins, Remembered, Stakes, TargetCertificate, TlsOnly};
use jetway::target_name::TargetName;
use jetway::token::claims::{Credentials, Thumbprint};
use jetway_lab::certificate::Identity;
use jetway_lab::tls::{certificate_der, server_config};
use jetway_lab::wait::PATIENCE;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::target::{self, Place, TargetKind};
use crate::lab::workspace;
use crate::told;

fn credentials(username: &str, password: &str) -> Credentials {
    Credentials {
        username: username.to_owned(),
        password: SecretString::from(password.to_owned()),
    }
}

fn server_tls() -> (Arc<ServerConfig>, CertificateDer<'static>) {
    let identity = Identity::self_signed(&["gateway.test"]);
    (server_config(&identity), certificate_der(&identity))
}

fn any() -> SecureConfig {
    SecureConfig {
        target_certificate: TargetCertificate::AcceptAny,
        kerberos: None,
        client_kerberos: None,
    }
}

fn target_addr(place: &Place) -> Result<TargetName> {
    Ok(place.address().parse()?)
}

/// One session with a client that offers TLS alone, in memory, and completes its leg.
struct ToTarget<'a> {
    place: &'a Place,
    config: SecureConfig,
    credentials: Option<Credentials>,
    pin: Option<Thumbprint>,
}

impl<'a> ToTarget<'a> {
    fn new(place: &'a Place) -> Self {
        Self {
            place,
            config: any(),
            credentials: Some(credentials(&place.user, &place.password)),
            pin: None,
        }
    }

    async fn run(&self) -> Result<Result<Secured<DuplexStream>, Box<Failed<DuplexStream>>>> {
        let (tls, _) = server_tls();
        let (near, far) = duplex(64 * 1024);
        let user = tokio::spawn(client_leg(far));
        let target = TcpStream::connect(self.place.address()).await?;
        let address = target_addr(self.place)?;
        let negotiation = Some(NegotiationRequest {
            flags: 0,
            requested_protocols: PROTOCOL_SSL,
        });
        let opening = RdpOpening::X224(ConnectionRequest {
            negotiation,
            ..ConnectionRequest::default()
        });
        let request = SecureRequest {
            config: &self.config,
            server_tls: &tls,
            target: &address,
            target_credentials: self.credentials.as_ref(),
            proxy_credentials: None,
            guesses: None,
            certificate_pin: self.pin,
            routing_token: None,
            deadline: Instant::now() + PATIENCE,
        };
        let result = secure(near, Vec::new(), opening, target, &request).await;
        drop(user);
        Ok(result)
    }

    async fn error(&self) -> Result<SecureError> {
        match self.run().await? {
            Ok(_) => bail!("it was secured"),
            Err(failed) => Ok(failed.error),
        }
    }
}

/// What a client does after its Connection Request that offers TLS.
async fn client_leg(mut stream: DuplexStream) -> Result<()> {
    let mut confirm = Vec::new();
    while decode_confirm(&confirm)?.is_none() {
        ensure!(stream.read_buf(&mut confirm).await? > 0, "closed");
    }
    let verifier =
        TargetCertificate::AcceptAny.verifier(&"gateway.test:3389".parse()?, Stakes::Nothing)?;
    let verifier: Arc<dyn ServerCertVerifier> = verifier;
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from("gateway.test")?;
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    Ok(())
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

#[test]
fn the_right_password_logs_on_to_an_nla_target() -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let secured = block_on(ToTarget::new(target.place()).run())?;
        let legs = secured.map_err(|failed| failed.error)?.legs;
        ensure!(legs.client_requested == PROTOCOL_SSL, "{legs:?}");
        ensure!(legs.client_selected == PROTOCOL_SSL, "{legs:?}");
        ensure!(
            [PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX].contains(&legs.target_selected),
            "{legs:?}"
        );
        ensure!(legs.target_tls.version.starts_with("TLSv1"), "{legs:?}");
        Ok(())
    })
}

#[test]
fn a_wrong_password_is_told_from_other_failures() -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let mut session = ToTarget::new(target.place());
        session.credentials = Some(credentials(&target.place().user, "Wrong-1"));
        let error = block_on(session.error())?;
        ensure!(error.class() == Class::WrongCredentials, "{error}");
        ensure!(error.farewell() == Reason::WrongCredentials, "{error}");
        session.credentials = Some(credentials("nobody", "Wrong-1"));
        let error = block_on(session.error())?;
        ensure!(error.class() == Class::WrongCredentials, "{error}");
        session.credentials = None;
        let error = block_on(session.error())?;
        ensure!(
            matches!(error, SecureError::NlaWithoutCredentials),
            "{error}"
        );
        Ok(())
    })
}

#[test]
fn a_tls_target_and_xrdp_are_secured_without_nla() -> Result<()> {
    workspace::run(|workspace| {
        for kind in [TargetKind::ShadowTls, TargetKind::Xrdp] {
            let target = target::start(workspace, kind)?;
            let secured = block_on(ToTarget::new(target.place()).run())?;
            let legs = secured.map_err(|failed| failed.error)?.legs;
            ensure!(legs.target_selected == PROTOCOL_SSL, "{kind:?}: {legs:?}");
        }
        Ok(())
    })
}

fn first_use(pins: Arc<FilePins>) -> TargetCertificate {
    TargetCertificate::TrustOnFirstUse {
        pins,
        tls_only: TlsOnly::default(),
    }
}

#[test]
fn a_certificate_is_pinned_by_token_and_by_first_use() -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let pins = workspace.path("pins");
        let store = Arc::new(FilePins::open(&pins)?);
        let mut session = ToTarget::new(target.place());
        session.config.target_certificate = first_use(store);

        // Who does not log on pins nothing.
        session.credentials = Some(credentials(&target.place().user, "Wrong-1"));
        block_on(session.error())?;
        ensure!(!pins.exists());

        session.credentials = Some(credentials(&target.place().user, &target.place().password));
        let first = block_on(session.run())?.map_err(|failed| failed.error)?;
        ensure!(first.remembered == Remembered::First);
        let again = block_on(session.run())?.map_err(|failed| failed.error)?;
        ensure!(again.remembered == Remembered::Same);
        let line = format!(
            "{} {}\n",
            target.place().address(),
            first.target_certificate
        );
        ensure!(std::fs::read_to_string(&pins)? == line);

        session.pin = Some(first.target_certificate);
        block_on(session.run())?.map_err(|failed| failed.error)?;
        session.pin = Some(Thumbprint([7; 32]));
        let error = block_on(session.error())?;
        ensure!(error.class() == Class::CertificateMismatch, "{error}");
        session.pin = None;

        // Another server at the same address.
        workspace.write(
            "pins",
            line.replace(&first.target_certificate.to_string(), &"7".repeat(64)),
        )?;
        let store = Arc::new(FilePins::open(&pins)?);
        session.config.target_certificate = first_use(store);
        let error = block_on(session.error())?;
        ensure!(error.class() == Class::CertificateMismatch, "{error}");
        Ok(())
    })
}

/// A door for one client after the other: its Connection Request is read, then `secure` runs with `place` behind it.
async fn accept(
    listener: &TcpListener,
    place: &Place,
    target_password: &str,
    proxy: Option<&Credentials>,
) -> Result<Result<Secured<TcpStream>, Box<Failed<TcpStream>>>> {
    let (tls, _) = server_tls();
    let (mut client, _) = listener.accept().await?;
    let mut bytes = Vec::new();
    let (mut connection_request, consumed) = loop {
        if let Some(decoded) = connection_request::decode(&bytes)? {
            break decoded;
        }
        ensure!(client.read_buf(&mut bytes).await? > 0, "closed");
    };
    bytes.drain(..consumed);
    connection_request.take_routing_token();
    let target = TcpStream::connect(place.address()).await?;
    let address = target_addr(place)?;
    let dst = credentials(&place.user, target_password);
    let config = any();
    let request = SecureRequest {
        config: &config,
        server_tls: &tls,
        target: &address,
        target_credentials: Some(&dst),
        proxy_credentials: proxy,
        guesses: None,
        certificate_pin: None,
        routing_token: None,
        deadline: Instant::now() + PATIENCE,
    };
    Ok(secure(
        client,
        bytes,
        RdpOpening::X224(connection_request),
        target,
        &request,
    )
    .await)
}

/// The user of FreeRDP, who is sent to `port`.
fn user(port: u16, password: &str) -> Place {
    Place {
        port,
        user: "proxy-user".to_owned(),
        password: password.to_owned(),
        background: [0, 0, 0],
        writable: std::path::PathBuf::new(),
    }
}

fn freerdp_proves_the_proxy_credential(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        let proxy = credentials("proxy-user", "Proxy-Secret-1");
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let port = listener.local_addr()?.port();
            let address = [format!("/v:127.0.0.1:{port}")];

            let place = user(port, "Proxy-Secret-1");
            let client = FreeRdp::start(workspace, "right", version, &address, &place)?;
            let password = &target.place().password;
            let secured = accept(&listener, target.place(), password, Some(&proxy)).await?;
            let mut secured = secured.map_err(|failed| failed.error)?;
            let selected = secured.legs.client_selected;
            ensure!(selected & (PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX) != 0);
            ensure!(secured.legs.client_requested & PROTOCOL_HYBRID != 0);
            // MCS Connect Initial, which FreeRDP sends behind its last message.
            let mut next = std::mem::take(&mut secured.client_read_ahead);
            while next.len() < 8 {
                ensure!(secured.client.read_buf(&mut next).await? > 0, "closed");
            }
            ensure!(next.starts_with(&[3, 0]) && next[5..8] == [0xf0, 0x80, 0x7f]);
            drop((client, secured));

            let place = user(port, "Wrong-1");
            let mut client = FreeRdp::start(workspace, "wrong", version, &address, &place)?;
            let failed = accept(&listener, target.place(), password, Some(&proxy)).await?;
            let failed = failed.err().context("the wrong password was accepted")?;
            ensure!(
                matches!(failed.error, SecureError::ClientDenied(_)),
                "{}",
                failed.error
            );
            ensure!(matches!(failed.client, Remaining::Gone));
            drop(listener);
            let code = client.exit_code()?;
            let output = client.output()?;
            ensure!(
                code != 0 && output.contains("LOGON_FAILURE"),
                "{code}: {output}"
            );
            Ok(())
        })
    })
}

#[test]
fn freerdp2_proves_the_proxy_credential() -> Result<()> {
    freerdp_proves_the_proxy_credential(Version::Two)
}

#[test]
fn freerdp3_proves_the_proxy_credential() -> Result<()> {
    freerdp_proves_the_proxy_credential(Version::Three)
}

/// A user whose leg is complete, and a target that does not accept the credentials of the token.
fn freerdp_shows_why(version: Version, proxy: Option<&Credentials>) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, TargetKind::ShadowNla)?;
        block_on(async {
            for (reason, name) in [
                (None, "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED"),
                (
                    Some(Reason::AccountRefused),
                    "ERRINFO_SERVER_INSUFFICIENT_PRIVILEGES",
                ),
                (
                    Some(Reason::TargetUnavailable),
                    "ERRINFO_CB_DESTINATION_NOT_FOUND",
                ),
                (
                    Some(Reason::TargetNotTrusted),
                    "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS",
                ),
                (
                    Some(Reason::LogonServerUnavailable),
                    "ERRINFO_CB_SESSION_ONLINE_VM_NO_DNS",
                ),
                (Some(Reason::Denied), "ERRINFO_SERVER_DENIED_CONNECTION"),
            ] {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let port = listener.local_addr()?.port();
                let place = user(port, "Proxy-Secret-1");
                let address = [format!("/v:127.0.0.1:{port}")];
                let mut client = FreeRdp::start(workspace, name, version, &address, &place)?;
                let failed = accept(&listener, target.place(), "Wrong-1", proxy).await?;
                let failed = failed.err().context("the wrong password was accepted")?;
                let reason = reason.unwrap_or_else(|| failed.error.farewell());
                let Remaining::Secured {
                    client: mut stream,
                    read_ahead,
                    requested,
                } = failed.client
                else {
                    bail!("{:?}", failed.error);
                };
                let deadline = Instant::now() + Duration::from_secs(10);
                say_farewell(&mut *stream, &read_ahead, requested, reason, deadline).await?;
                drop((stream, listener));
                let code = client.exit_code()?;
                let output = client.output()?;
                let row = told::row(name)?;
                ensure!(row.code == Some(reason.error_info()), "{name}: {row:?}");
                ensure!(
                    code == row.exit(version) && output.contains(name),
                    "{code}: {output}"
                );
            }
            Ok(())
        })
    })
}

#[test]
fn freerdp2_shows_why_the_target_cannot_be_had() -> Result<()> {
    freerdp_shows_why(Version::Two, None)
}

#[test]
fn freerdp3_shows_why_the_target_cannot_be_had() -> Result<()> {
    freerdp_shows_why(Version::Three, None)
}

#[test]
fn freerdp3_with_nla_shows_why_the_target_cannot_be_had() -> Result<()> {
    let proxy = credentials("proxy-user", "Proxy-Secret-1");
    freerdp_shows_why(Version::Three, Some(&proxy))
}

#[test]
fn freerdp2_with_nla_shows_why_the_target_cannot_be_had() -> Result<()> {
    let proxy = credentials("proxy-user", "Proxy-Secret-1");
    freerdp_shows_why(Version::Two, Some(&proxy))
}
