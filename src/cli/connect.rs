//! `jetway connect`: the end on the user's side, for clients that know nothing of tokens.
//!
//! A local port, or standard input and output (as a `ProxyCommand` of ssh), leads to the target behind an agent that a token names.
//! Each connection uses the token: it is good for as many, one after the other, as its reconnect window says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::net::TcpListener;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::cli::agent::GatewayArgs;
use crate::cli::serve::start_log;
use crate::cli::{print_line, secret_file};
use crate::config::LogConfig;
use crate::jet::agent::AgentName;
use crate::peer::connect::{Connection, connect};
use crate::peer::{Duplex, Site, bridge};

/// Arguments of `jetway connect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// File with the token
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The agent that the token names; needed where the token is encrypted and cannot be read here
    #[arg(long, value_name = "NAME")]
    pub agent: Option<AgentName>,
    /// Port of this machine that leads there; without it standard input and output do
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Go to the agent directly where it tells its address and that can be reached; nothing encrypts such a session but the
    /// protocol inside
    #[arg(long)]
    pub direct: bool,
    /// Log filter, as in info,jetway::peer=debug
    #[arg(long, default_value = "warn")]
    pub log_filter: String,
}

/// Runs `jetway connect`.
///
/// # Errors
/// A file cannot be read, the port cannot be had; with standard input and output, whatever ends the session.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Standard output is the session's; the log goes to standard error.
    start_log(&LogConfig {
        filter: args.log_filter.clone(),
        ..LogConfig::default()
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(args));
    // Nobody can be woken who reads standard input.
    runtime.shutdown_background();
    served
}

/// What a session is opened with.
struct Way {
    site: Arc<Site>,
    token: Zeroizing<String>,
    agent: AgentName,
    association: Option<Uuid>,
    direct: bool,
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.token_file.as_os_str() != "-",
        "standard input is for the session: give the token in a file"
    );
    let text = secret_file::read(&args.token_file, &mut std::io::empty())?;
    let token = Zeroizing::new(text.trim().to_owned());
    let (named, association) = said(&token);
    let agent = args.agent.clone().or(named);
    let way = Way {
        site: Arc::new(Site::new(
            &args.gateway.gateway,
            args.gateway.ca.as_deref(),
        )?),
        token,
        agent: agent.context("the token names no agent that can be read here: use --agent")?,
        association,
        direct: args.direct,
    };
    let Some(address) = args.listen else {
        let mut io = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
        return way.session(&mut io).await;
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;
    let way = Arc::new(way);
    loop {
        let (mut client, peer) = listener.accept().await?;
        client.set_nodelay(true)?;
        let way = Arc::clone(&way);
        tokio::spawn(async move {
            match way.session(&mut client).await {
                Ok(()) => tracing::info!(%peer, "Session closed"),
                Err(error) => tracing::warn!(%peer, error = format!("{error:#}"), "Session failed"),
            }
        });
    }
}

impl Way {
    async fn session(&self, client: &mut (impl Duplex + ?Sized)) -> anyhow::Result<()> {
        let connection = connect(
            &self.site,
            &self.token,
            &self.agent,
            self.association,
            self.direct,
        )
        .await?;
        let mut connection: Connection = connection;
        let ended = bridge(client, &mut *connection.stream, &[]).await;
        connection.forget(&self.site, &self.token).await;
        ended?;
        Ok(())
    }
}

/// What a token that is not encrypted says of its way. It is not verified here: the gateway does that.
fn said(token: &str) -> (Option<AgentName>, Option<Uuid>) {
    let payload = token.split('.').nth(1);
    let payload = payload.and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims: serde_json::Value = payload
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default();
    let text = |name| claims.get(name).and_then(serde_json::Value::as_str);
    let agent = text("jet_agent_id").and_then(|name| name.parse().ok());
    let association = text("jet_aid").and_then(|id| Uuid::parse_str(id).ok());
    (agent, association)
}
