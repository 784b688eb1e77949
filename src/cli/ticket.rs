//! `jetway ticket`: exchanges a token for a ticket at a running gateway.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::api::tickets::Created;
use crate::cli::{print_line, secret_file};
use crate::limits;
use crate::tls;

/// Arguments of `jetway ticket`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the gateway is: https://HOST:PORT, or http://127.0.0.1:PORT on its own machine
    #[arg(long)]
    pub gateway: Uri,
    /// File with the token; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Trust these CA certificates (PEM) instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Ask for a shorter life than the gateway gives, seconds
    #[arg(long, value_name = "SECONDS")]
    pub lifetime: Option<u64>,
}

/// Prints the ticket alone to standard output.
///
/// # Errors
/// The gateway cannot be reached, or refuses the token: its reason is in the message.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let token = secret_file::read(&args.token_file, &mut std::io::stdin().lock())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let created = runtime.block_on(request(args, token.trim()))?;
    print_line(&created.ticket)?;
    Ok(())
}

async fn request(args: &Args, token: &str) -> anyhow::Result<Created> {
    let host = args.gateway.host().context("--gateway has no host")?;
    let plain = match args.gateway.scheme_str() {
        Some("http") => true,
        Some("https") => false,
        _ => bail!("--gateway starts with https:// or http://"),
    };
    let port = args
        .gateway
        .port_u16()
        .unwrap_or(if plain { 80 } else { 443 });
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare_host, port))
        .await
        .with_context(|| format!("cannot connect to {host}:{port}"))?;
    if plain {
        let local = tcp.peer_addr()?.ip().is_loopback();
        ensure!(local, "the token would travel in clear: use https://");
        return exchange(tcp, args, token).await;
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots(args.ca.as_ref())?)
        .with_no_client_auth();
    let name = ServerName::try_from(bare_host.to_owned()).context("--gateway")?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .with_context(|| format!("TLS with {host}:{port}"))?;
    exchange(tls, args, token).await
}

fn roots(ca: Option<&PathBuf>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in tls::read_certificates(path)? {
                roots
                    .add(certificate)
                    .with_context(|| path.display().to_string())?;
            }
        }
        None => {
            let (_added, _ignored) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            ensure!(
                !roots.is_empty(),
                "the system has no CA certificates: use --ca"
            );
        }
    }
    Ok(roots)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    args: &Args,
    token: &str,
) -> anyhow::Result<Created> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let authority = args
        .gateway
        .authority()
        .context("--gateway has no host")?
        .as_str();
    let mut bearer = header::HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| anyhow::anyhow!("the token file does not hold a token"))?;
    bearer.set_sensitive(true);
    let body = match args.lifetime {
        Some(lifetime_s) => serde_json::json!({ "lifetime_s": lifetime_s }).to_string(),
        None => String::new(),
    };
    let request = Request::post("/jet/tickets")
        .header(header::HOST, authority)
        .header(header::AUTHORIZATION, bearer)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits::HTTP_BODY_BYTES)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("cannot read the answer: {error}"))?
            .to_bytes();
        anyhow::Ok((status, body))
    };
    let (status, body) = tokio::select! {
        answer = answer => answer?,
        end = connection => {
            end?;
            bail!("the gateway closed the connection without an answer");
        }
    };
    if status != StatusCode::CREATED {
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem
            .get("detail")
            .and_then(|detail| detail.as_str())
            .unwrap_or("no reason given");
        let session = problem
            .get("session")
            .and_then(|id| id.as_str())
            .unwrap_or("unknown");
        bail!(
            "the gateway refused the token: {detail} (status {}, session {session})",
            status.as_u16()
        );
    }
    serde_json::from_slice(&body).context("the gateway's answer is not a ticket")
}
