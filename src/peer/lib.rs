//! The other ends: what a peer of the gateway does, for `jetway agent`, `jetway connect` and whoever asks it something.
//!
//! | file | what |
//! |---|---|
//! | here | how the gateway is reached: HTTP, WebSockets, candidates over every transport |
//! | [`agent`] | the acceptor that stays |
//! | [`bridge`] | bytes both ways, until both have ended |
//! | [`connect`] | the client's side |
//! | [`host`] | candidates that are the agent's own ports |
//! | [`trust`] | whom `--ca` trusts |
//!
//! No part of the gateway: nothing here runs in `jetway serve`. Whatever carries a secret goes over TLS, or stays on this machine;
//! and it goes to the gateway that was named, since a candidate is the word of somebody else ([`Site::relay`]).

pub mod agent;
pub mod bridge;
pub mod connect;
pub mod host;
pub mod trust;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error as TlsError, RootCertStore};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tracing::{debug, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::trust::TrustedFile;
use jetway_base::limits;
use jetway_io::over_tcp::OverTcp;
use jetway_io::websocket::frames::Role;
use jetway_io::websocket::settings;
use jetway_io::websocket::{Ends, HALF_CLOSE_PROTOCOL, WebSocket};
use jetway_io::{keep_alive, pem};
use jetway_jet::candidate::{CandidateUrl, Transport};
use jetway_jet::exchange::{self, JetPath, SUB_PROTOCOL, Status};
use jetway_jet::message::Version;
use jetway_jet::packet::{self, mask};
use jetway_token::target::TargetAddr;

/// From the first packet to an answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// A byte stream whose directions end each by itself, whatever carries it.
pub trait Duplex: AsyncRead + AsyncWrite + OverTcp + Send + Unpin {
    /// Ends what is said to the peer; ready when nothing of it can be lost any more ([`WebSocket::poll_end`]).
    ///
    /// # Errors
    /// The connection is gone.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Keeps the connection of a peer that has ended; ready when it has left ([`WebSocket::poll_keep`]).
    ///
    /// # Errors
    /// The connection is gone.
    fn poll_keep(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl Duplex for TcpStream {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

impl Duplex for TlsStream<TcpStream> {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

impl Duplex for WebSocket<Box<dyn Duplex>> {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A gateway that does not know half-closes hears of the end at once.
        Self::poll_end(self, cx, Duration::ZERO)
    }

    fn poll_keep(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_keep(self, cx)
    }
}

impl<R, W> Duplex for tokio::io::Join<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

/// Notices that whoever is at the other end of `stream` has vanished. A peer does not know what is spoken through it, so that a pause is
/// as long as it may be in any protocol.
fn tune(stream: &TcpStream) -> io::Result<()> {
    keep_alive::tune(stream)?;
    keep_alive::give_time(stream, Duration::from_secs(limits::HALF_CLOSE_S))
}

/// A gateway, from outside.
pub struct Site {
    address: TargetAddr,
    authority: String,
    tls: bool,
    connector: TlsConnector,
    answer_bytes: usize,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Site").field(&self.authority).finish()
    }
}

/// A candidate that was granted.
pub struct Granted {
    /// Its bytes.
    pub stream: Box<dyn Duplex>,
    /// `Jet-Instance`, where the transport has a place for it.
    pub instance: Option<String>,
}

impl std::fmt::Debug for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Granted")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Site {
    /// The gateway at `uri`: `https://HOST[:PORT]`, or `http://` on this machine. `ca` is trusted instead of the system's
    /// certificates.
    ///
    /// # Errors
    /// Another scheme, no host, or no certificates.
    pub fn new(uri: &Uri, ca: Option<&Path>) -> anyhow::Result<Self> {
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => bail!("the gateway's URL starts with https:// or http://"),
        };
        let host = uri.host().context("the gateway's URL has no host")?;
        let authority = uri.authority().context("the gateway's URL has no host")?;
        // What is not used needs no certificates.
        let config = if tls {
            client_config(ca)?
        } else {
            ClientConfig::builder()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        };
        Ok(Self {
            address: TargetAddr {
                host: host.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16().unwrap_or(port),
            },
            authority: authority.to_string(),
            tls,
            connector: TlsConnector::from(Arc::new(config)),
            answer_bytes: limits::JET_MESSAGE_BYTES,
        })
    }

    /// Whether it is reached over TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls
    }

    /// A candidate's URL as this side can use it, where it is one of this gateway: nobody else is shown a credential.
    ///
    /// Over TLS that is the host by which the gateway was named, on any port of it, since the certificate proves the name on each.
    /// Without TLS this is the gateway's own machine, where another port is another program: every relay is at the address that
    /// was named.
    ///
    /// # Errors
    /// Another host, or a transport without TLS where the gateway was named with it.
    pub fn relay(&self, mut url: CandidateUrl) -> Result<CandidateUrl, NotTheGateway> {
        if self.tls {
            if !url.transport.is_tls() {
                return Err(NotTheGateway::Clear(url));
            }
            if !same_host(&url.address.host, &self.address.host) {
                return Err(NotTheGateway::Host(url));
            }
        } else {
            url.transport = if url.transport.is_websocket() {
                Transport::Ws
            } else {
                Transport::Tcp
            };
            url.address = self.address.clone();
        }
        Ok(url)
    }

    /// Whether a candidate that others have named is one of this gateway; what is somebody else's is logged.
    #[must_use]
    pub fn has_relay(&self, url: &CandidateUrl) -> bool {
        match self.relay(url.clone()) {
            Ok(_) => true,
            Err(why @ NotTheGateway::Host(_)) => {
                warn!(reason = %why, "Ignoring a candidate");
                false
            }
            // A gateway may have ways in for others.
            Err(why @ NotTheGateway::Clear(_)) => {
                debug!(reason = %why, "Ignoring a candidate");
                false
            }
        }
    }

    /// The same, whose answers may have so many bytes.
    #[must_use]
    pub fn with_answers_of(self, bytes: usize) -> Self {
        Self {
            answer_bytes: bytes,
            ..self
        }
    }

    /// Sends a request and reads its answer, which is `T` where it went well.
    ///
    /// # Errors
    /// The gateway cannot be reached, or says no: its reason is in the message.
    pub async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        bearer: &str,
        body: String,
    ) -> anyhow::Result<T> {
        let exchange = async {
            let stream = self.dial(&self.address, self.tls).await?;
            let (status, body) = self.exchange(stream, method, path, bearer, body).await?;
            if !status.is_success() {
                return Err(said_no(status, &body));
            }
            // An answer without a body is null.
            let body = if body.is_empty() { &b"null"[..] } else { &body };
            serde_json::from_slice(body).context("the gateway's answer is not what was expected")
        };
        timeout(limits::AGENT_ANSWER_TIMEOUT + DIAL_TIMEOUT, exchange)
            .await
            .context("the gateway did not answer in time")?
    }

    async fn exchange(
        &self,
        stream: Box<dyn Duplex>,
        method: Method,
        path: &str,
        bearer: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut bearer = header::HeaderValue::try_from(format!("Bearer {bearer}"))
            .map_err(|_| anyhow::anyhow!("the bearer is no token"))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, bearer)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), self.answer_bytes)
                .collect()
                .await
                .map_err(|error| anyhow::anyhow!("cannot read the answer: {error}"))?
                .to_bytes();
            anyhow::Ok((status, body))
        };
        let mut answer = pin!(answer);
        let end = tokio::select! {
            biased;
            answer = &mut answer => return answer,
            end = connection => end,
        };
        // A gateway that closes behind its answer has answered all the same, however it closes.
        match (answer.await, end) {
            (Ok(answer), _) => Ok(answer),
            (Err(_), Err(error)) => Err(error.into()),
            (Err(_), Ok(())) => bail!("the gateway closed the connection without an answer"),
        }
    }

    /// Opens the signaling channel of an agent, to be logged on.
    ///
    /// # Errors
    /// The gateway cannot be reached, or has no such channel.
    pub async fn signaling(&self) -> anyhow::Result<WebSocketStream<Box<dyn Duplex>>> {
        let open = async {
            let stream = self.dial(&self.address, self.tls).await?;
            let request = format!("ws://{}/jet/agent", self.authority).into_client_request()?;
            let settings = Some(settings::settings());
            let (socket, _) = client_async_with_config(request, stream, settings).await?;
            anyhow::Ok(socket)
        };
        let opened = timeout(DIAL_TIMEOUT, open).await;
        opened.context("the gateway did not answer in time")?
    }

    /// Asks for `path` at a candidate of this gateway, with `bearer`.
    ///
    /// # Errors
    /// It is not this gateway's, cannot be reached, or is not granted.
    pub async fn candidate(
        &self,
        url: &CandidateUrl,
        path: JetPath,
        bearer: &str,
    ) -> anyhow::Result<Granted> {
        let url = &self.relay(url.clone())?;
        let ask = async {
            let stream = self.dial(&url.address, url.transport.is_tls()).await?;
            if url.transport.is_websocket() {
                websocket(stream, &url.address.to_string(), &path.to_string(), bearer).await
            } else {
                binary(stream, url, path, Some(bearer)).await
            }
        };
        let granted = timeout(DIAL_TIMEOUT, ask).await;
        granted
            .context("no answer in time")
            .flatten()
            .with_context(|| url.to_string())
    }

    /// Asks for the target of a forward token, by the association that it names or any. With `target_tls` the gateway speaks TLS to it.
    ///
    /// # Errors
    /// The gateway cannot be reached, or says no: its reason is in the message.
    pub async fn forward(
        &self,
        association: Uuid,
        target_tls: bool,
        bearer: &str,
    ) -> anyhow::Result<Box<dyn Duplex>> {
        let leg = if target_tls { "tls" } else { "tcp" };
        let path = format!("/jet/fwd/{leg}/{association}");
        let ask = async {
            let stream = self.dial(&self.address, self.tls).await?;
            websocket(stream, &self.authority, &path, bearer).await
        };
        let granted = timeout(DIAL_TIMEOUT, ask).await;
        let granted = granted.context("the gateway did not answer in time")??;
        Ok(granted.stream)
    }

    /// Connects to a host candidate: its ids are what it is shown, and no token.
    ///
    /// # Errors
    /// It cannot be reached, or does not know the ids.
    pub async fn direct(&self, url: &CandidateUrl, path: JetPath) -> anyhow::Result<Granted> {
        let ask = async {
            ensure!(url.transport == Transport::Tcp, "not a host candidate");
            let TargetAddr { host, port } = &url.address;
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            tune(&stream)?;
            binary(Box::new(stream), url, path, None).await
        };
        let granted = timeout(DIAL_TIMEOUT, ask).await;
        granted
            .context("no answer in time")
            .flatten()
            .with_context(|| url.to_string())
    }

    async fn dial(&self, address: &TargetAddr, tls: bool) -> anyhow::Result<Box<dyn Duplex>> {
        let TargetAddr { host, port } = address;
        let tcp = TcpStream::connect((host.as_str(), *port))
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        tune(&tcp)?;
        if !tls {
            let local = tcp.peer_addr()?.ip().is_loopback();
            ensure!(local, "secrets would travel in clear: use https://");
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(host.clone())?;
        let tls = self.connector.connect(name, tcp).await;
        Ok(Box::new(
            tls.with_context(|| format!("TLS with {address}"))?,
        ))
    }
}

/// What is wrong with the certificate of whoever was connected to, where that is what went wrong.
#[must_use]
pub fn untrusted(error: &anyhow::Error) -> Option<&CertificateError> {
    error.chain().find_map(|cause| {
        let inner = cause.downcast_ref::<io::Error>()?.get_ref()?;
        let Some(TlsError::InvalidCertificate(problem)) = inner.downcast_ref() else {
            return None;
        };
        Some(problem)
    })
}

/// Why a candidate is shown no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheGateway {
    /// Somebody else's.
    #[error("{0} is not on the gateway's own host")]
    Host(CandidateUrl),
    /// The gateway was named with TLS.
    #[error("{0} has no TLS, and the gateway was named with it")]
    Clear(CandidateUrl),
}

/// Whether two texts name one host: addresses by value, names without case and final dot.
fn same_host(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one.to_canonical() == other.to_canonical(),
        (Err(_), Err(_)) => {
            let name = |text| str::strip_suffix(text, ".").unwrap_or(text);
            name(one).eq_ignore_ascii_case(name(other))
        }
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

/// The gateway's reason, from a problem document.
fn said_no(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name| problem.get(name).and_then(|value| value.as_str());
    let detail = text("detail").unwrap_or("no reason given");
    let session = text("session").unwrap_or("unknown");
    let status = status.as_u16();
    anyhow::anyhow!("the gateway says no: {detail} (status {status}, session {session})")
}

async fn websocket(
    stream: Box<dyn Duplex>,
    host: &str,
    path: &str,
    bearer: &str,
) -> anyhow::Result<Granted> {
    let key = generate_key();
    let mut bearer = header::HeaderValue::try_from(format!("Bearer {bearer}"))?;
    bearer.set_sensitive(true);
    let request = Request::builder()
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(
            header::SEC_WEBSOCKET_PROTOCOL,
            format!("{HALF_CLOSE_PROTOCOL}, {SUB_PROTOCOL}"),
        )
        .header(header::AUTHORIZATION, bearer)
        .body(Full::<Bytes>::default())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, whatever that is.
    let connection = tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), limits::JET_MESSAGE_BYTES).collect();
        let body = body.await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(said_no(status, &body));
    }
    let ends = agreed(&response, &key)?;
    let upgraded = hyper::upgrade::on(response).await?;
    connection.await??;
    let parts: hyper::upgrade::Parts<TokioIo<Box<dyn Duplex>>> = upgraded
        .downcast()
        .map_err(|_| anyhow::anyhow!("another connection came back"))?;
    let stream = parts.io.into_inner();
    let early = parts.read_buf.to_vec();
    Ok(Granted {
        stream: Box::new(WebSocket::new(stream, Role::Client, early, ends)),
        instance: None,
    })
}

/// Whether the handshake was granted, and what was agreed on in it.
fn agreed<B>(response: &Response<B>, key: &str) -> anyhow::Result<Ends> {
    let headers = response.headers();
    let accepted = headers.get(header::SEC_WEBSOCKET_ACCEPT);
    ensure!(
        accepted.is_some_and(|accepted| *accepted == derive_accept_key(key.as_bytes())),
        "the answer is not to this handshake"
    );
    Ok(match headers.get(header::SEC_WEBSOCKET_PROTOCOL) {
        Some(selected) if selected == HALF_CLOSE_PROTOCOL => Ends::Apart,
        Some(_) | None => Ends::Together,
    })
}

async fn binary(
    mut stream: Box<dyn Duplex>,
    url: &CandidateUrl,
    path: JetPath,
    bearer: Option<&str>,
) -> anyhow::Result<Granted> {
    let request = exchange::Request {
        path,
        version: Version::V3,
        host: Some(url.address.host.clone()),
        token: bearer.map(|bearer| Zeroizing::new(bearer.to_owned())),
    };
    let packet = packet::encode(&request.to_payload(), mask())?;
    stream.write_all(&packet).await?;
    stream.flush().await?;
    // Header and payload by their own lengths: what follows is the other peer's.
    let mut bytes = vec![0; packet::HEADER_BYTES];
    stream.read_exact(&mut bytes).await?;
    if packet::decode(&bytes)?.is_none() {
        let size = bytes.get(4..6).and_then(|size| size.first_chunk());
        let size = usize::from(u16::from_be_bytes(*size.context("a header has its size")?));
        bytes.resize(size, 0);
        let payload = bytes.get_mut(packet::HEADER_BYTES..);
        stream.read_exact(payload.unwrap_or_default()).await?;
    }
    let response = packet::decode(&bytes)?.context("an unfinished packet")?;
    let response = exchange::Response::parse(&response.payload)?;
    ensure!(
        response.status == Status::Ok,
        "status {}",
        u16::from(response.status)
    );
    Ok(Granted {
        stream,
        instance: response.instance,
    })
}

fn client_config(ca: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let (_added, _ignored) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        ensure!(
            !roots.is_empty(),
            "the system has no CA certificates: use --ca"
        );
        return Ok(ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth());
    };
    let certificates = pem::read_certificates(path)?;
    for certificate in &certificates {
        let added = roots.add(certificate.clone());
        added.with_context(|| path.display().to_string())?;
    }
    let trusted = TrustedFile::new(roots, certificates)?;
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trusted))
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_the_host_that_was_named_and_go_over_tls() {
        let site = site("https://gw.example:7171", true);
        for text in [
            "wss://gw.example:7171?ctype=relay",
            "tls://GW.example.:443?ctype=relay",
            "wss://gw.example",
        ] {
            let url: CandidateUrl = text.parse().unwrap();
            assert_eq!(site.relay(url.clone()), Ok(url), "{text}");
        }
        for text in [
            "wss://attacker:443?ctype=relay",
            "wss://gw.example.attacker.example:7171",
            "tls://evil-gw.example:7171",
            "tls://192.0.2.1:7171",
        ] {
            let url: CandidateUrl = text.parse().unwrap();
            let refused = Err(NotTheGateway::Host(url.clone()));
            assert_eq!(site.relay(url), refused, "{text}");
        }
        for text in ["ws://gw.example:7171", "tcp://gw.example:7171"] {
            let url: CandidateUrl = text.parse().unwrap();
            let refused = Err(NotTheGateway::Clear(url.clone()));
            assert_eq!(site.relay(url), refused, "{text}");
        }
    }

    #[test]
    fn addresses_are_compared_by_value() {
        assert!(same_host("2001:db8::1", "2001:DB8:0::1"));
        assert!(same_host("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same_host("192.0.2.1", "192.0.2.10"));
        assert!(!same_host("192.0.2.1", "gw.example"));
    }

    #[test]
    fn without_tls_the_address_that_was_named_is_the_only_one() {
        let site = site("http://127.0.0.1:7171", false);
        for (text, used) in [
            (
                "ws://127.0.0.1:9?ctype=relay",
                "ws://127.0.0.1:7171?ctype=relay",
            ),
            ("tls://attacker:443", "tcp://127.0.0.1:7171"),
        ] {
            let url = site.relay(text.parse().unwrap()).unwrap();
            assert_eq!(url.to_string(), used);
        }
    }

    fn site(uri: &str, tls: bool) -> Site {
        let uri: Uri = uri.parse().unwrap();
        let authority = uri.authority().unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Site {
            address: authority.as_str().parse().unwrap(),
            authority: authority.to_string(),
            tls,
            connector: TlsConnector::from(Arc::new(config)),
            answer_bytes: limits::JET_MESSAGE_BYTES,
        }
    }
}
