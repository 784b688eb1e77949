//! `jetway connect`: the end on the user's side, for clients that know nothing of tokens.
//!
//! A local port, or standard input and output (as a `ProxyCommand` of ssh), leads to the target that a token names: its `dst_hst`, which
//! the gateway dials (`jet_cm: fwd`), or one behind its agent.
//! Each connection uses the token: it is good for as many, one after the other, as its reconnect window says.
//!
//! On standard input and output the session is over when the far side has ended: standard output is closed, and the program ends at
//! once, whatever standard input may still say. Its exit status is 0 where that side has ended in order, and 1 with a line on standard
//! error where the connection broke, or the gateway ended it.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf, Stdin, Stdout};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::cli::agent::GatewayArgs;
use crate::cli::output::print_line;
use crate::cli::secret_file;
use crate::io::over_tcp::OverTcp;
use crate::log;
use crate::log::settings::LogConfig;
use crate::peer::bridge::bridge;
use crate::peer::connect::{Connection, connect};
use crate::peer::{Duplex, Site};
use crate::token::agent_name::AgentName;

/// Arguments of `jetway connect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// File with the token
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The agent that the token names; needed where the token leads behind one and is encrypted, so that it cannot be read here
    #[arg(long, value_name = "NAME")]
    pub agent: Option<AgentName>,
    /// Have the gateway speak TLS to the target, whose certificate the token pins (cert_thumb256); what is sent goes inside
    #[arg(long, conflicts_with_all = ["agent", "direct"])]
    pub target_tls: bool,
    /// Listen on this port of this machine; without it, use standard input and output
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Go to the agent directly where it tells its address and that can be reached; nothing encrypts such a session but the
    /// protocol inside
    #[arg(long)]
    pub direct: bool,
    /// Log filter, as in info,jetway_peer=debug
    #[arg(long, default_value = "warn")]
    pub log_filter: String,
}

/// Runs `jetway connect`.
///
/// # Errors
/// A file cannot be read, the port cannot be had; with standard input and output, whatever ends the session.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Standard output is the session's; the log goes to standard error.
    let _log = log::start(&LogConfig {
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

/// How long a session that is over may take to be put away.
const PARTING: Duration = Duration::from_secs(1);

/// What a session is opened with.
struct Way {
    site: Arc<Site>,
    token: Zeroizing<String>,
    association: Option<Uuid>,
    to: To,
}

/// Where a token leads.
enum To {
    /// To its `dst_hst`.
    Target { tls: bool },
    /// Behind an agent.
    Agent { name: AgentName, direct: bool },
}

impl To {
    fn by(args: &Args, said: &Said) -> anyhow::Result<Self> {
        let agent = args.agent.as_ref().or(said.agent.as_ref());
        match (agent, said.mode.as_deref()) {
            (Some(name), _) if !args.target_tls => Ok(Self::Agent {
                name: name.clone(),
                direct: args.direct,
            }),
            // Of what cannot be read here the gateway says whether it is for this.
            (_, Some("fwd")) | (None, None) => {
                ensure!(!args.direct, "--direct is for targets behind an agent");
                Ok(Self::Target {
                    tls: args.target_tls,
                })
            }
            _ if args.target_tls => bail!("--target-tls is for forward tokens (jet_cm: fwd)"),
            _ => {
                bail!("the token leads to no target (jet_cm: fwd), and names no agent: use --agent")
            }
        }
    }
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.token_file.as_os_str() != "-",
        "standard input is for the session: give the token in a file"
    );
    let text = secret_file::read(&args.token_file, &mut io::empty())?;
    let token = Zeroizing::new(text.trim().to_owned());
    let said = Said::of(&token);
    let way = Way {
        site: Arc::new(Site::new(
            &args.gateway.gateway,
            args.gateway.ca.as_deref(),
        )?),
        to: To::by(args, &said)?,
        association: said.association,
        token,
    };
    let Some(address) = args.listen else {
        let mut standard = Standard::new();
        let over = standard.over.clone();
        let session = way.session(&mut standard);
        return tokio::select! {
            ended = session => ended,
            // Whoever has ended need not take what is still on its way to it.
            () = async {
                over.cancelled().await;
                sleep(PARTING).await;
            } => Ok(()),
        };
    };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;
    let way = Arc::new(way);
    loop {
        let (mut client, peer) = listener.accept().await?;
        client.set_nodelay(true)?;
        // Its end is not to be behind more than a gateway reads ahead for.
        socket2::SockRef::from(&client).set_recv_buffer_size(LOCAL_BUFFER_BYTES)?;
        let way = Arc::clone(&way);
        tokio::spawn(async move {
            match way.session(&mut client).await {
                Ok(()) => tracing::info!(%peer, "Session closed"),
                Err(error) => tracing::warn!(%peer, error = format!("{error:#}"), "Session failed"),
            }
        });
    }
}

/// What is received of a local program and not read yet, bytes; on one machine it need not be more.
const LOCAL_BUFFER_BYTES: usize = 256 * 1024;

/// Standard input and output, which are over when the far side is: nobody can be made to end standard input.
struct Standard {
    io: Join<Stdin, Stdout>,
    over: CancellationToken,
}

impl Standard {
    fn new() -> Self {
        Self {
            io: tokio::io::join(tokio::io::stdin(), tokio::io::stdout()),
            over: CancellationToken::new(),
        }
    }
}

impl AsyncRead for Standard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.over.is_cancelled() {
            // Its end.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Standard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl OverTcp for Standard {
    fn tcp(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

impl Duplex for Standard {
    fn poll_end(&mut self, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if !self.over.is_cancelled() {
            self.over.cancel();
            close_output()?;
            // So that the end of standard input is read.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }
}

/// Lets whoever reads standard output see its end while the session is still being put away.
fn close_output() -> io::Result<()> {
    let nowhere = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(nowhere)?)
}

impl Way {
    async fn session(&self, client: &mut (impl Duplex + ?Sized)) -> anyhow::Result<()> {
        let (name, direct) = match &self.to {
            To::Agent { name, direct } => (name, *direct),
            To::Target { tls } => {
                let association = self.association.unwrap_or_else(Uuid::new_v4);
                let stream = self.site.forward(association, *tls, &self.token).await;
                let mut stream = stream?;
                let ended = bridge(client, &mut *stream, &[]).await;
                return ended.map(drop).map_err(describe_end);
            }
        };
        let connection = connect(&self.site, &self.token, name, self.association, direct).await?;
        let mut connection: Connection = connection;
        let ended = bridge(client, &mut *connection.stream, &[]).await;
        // The gateway would forget it by itself, and may be what is gone.
        let _ = timeout(PARTING, connection.forget(&self.site, &self.token)).await;
        ended.map(drop).map_err(describe_end)
    }
}

/// Why a session has ended, for its user.
fn describe_end(error: io::Error) -> anyhow::Error {
    // TLS that ends without its word.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        anyhow::anyhow!("the session was cut off by the gateway, or the far side broke off")
    } else {
        anyhow::Error::new(error).context("the session broke")
    }
}

/// What a token that is not encrypted says of its way. It is not verified here: the gateway does that.
#[derive(Debug, Default)]
struct Said {
    agent: Option<AgentName>,
    association: Option<Uuid>,
    /// `jet_cm`, which is rdv where a token that can be read has none.
    mode: Option<String>,
}

impl Said {
    fn of(token: &str) -> Self {
        // Three parts: the others are encrypted.
        let parts: Vec<_> = token.split('.').collect();
        let [_, payload, _] = parts[..] else {
            return Self::default();
        };
        let payload = URL_SAFE_NO_PAD.decode(payload).ok();
        let claims: Option<serde_json::Value> =
            payload.and_then(|payload| serde_json::from_slice(&payload).ok());
        let Some(claims) = claims else {
            return Self::default();
        };
        let text = |name| claims.get(name).and_then(serde_json::Value::as_str);
        Self {
            agent: text("jet_agent_id").and_then(|name| name.parse().ok()),
            association: text("jet_aid").and_then(|id| Uuid::parse_str(id).ok()),
            mode: Some(text("jet_cm").unwrap_or("rdv").to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(claims: &serde_json::Value) -> String {
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({ "alg": "ES256" })), part(claims))
    }

    fn args(further: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let fixed = [
            "connect",
            "--gateway",
            "https://gw.test",
            "--token-file",
            "t",
        ];
        let all = fixed.iter().chain(further);
        <Command as clap::Parser>::try_parse_from(all).unwrap().args
    }

    #[test]
    fn a_token_says_where_it_leads_unless_it_is_encrypted() {
        let to = |claims: Option<serde_json::Value>, further: &[&str]| {
            // Of an encrypted one nothing can be read.
            let token = claims.map_or("a.b.c.d.e".to_owned(), |claims| token(&claims));
            To::by(&args(further), &Said::of(&token))
        };
        let forward = json!({ "jet_cm": "fwd", "dst_hst": "pc:22" });
        assert!(matches!(
            to(Some(forward.clone()), &[]),
            Ok(To::Target { tls: false })
        ));
        assert!(matches!(
            to(Some(forward.clone()), &["--target-tls"]),
            Ok(To::Target { tls: true })
        ));
        assert!(to(Some(forward), &["--direct"]).is_err());
        assert!(matches!(to(None, &[]), Ok(To::Target { tls: false })));
        assert!(matches!(
            to(None, &["--agent", "branch-7"]),
            Ok(To::Agent { direct: false, .. })
        ));
        let behind = json!({ "jet_agent_id": "branch-7", "jet_agent_dst": "pc:22" });
        assert!(matches!(
            to(Some(behind.clone()), &["--direct"]),
            Ok(To::Agent { direct: true, .. })
        ));
        assert!(to(Some(behind), &["--target-tls"]).is_err());
        assert!(to(Some(json!({})), &[]).is_err());
    }
}
