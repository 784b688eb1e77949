//! The ways from client to target: none, HAProxy, the relay alone in a process of its own, and the whole gateway.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use jetway::rdp::connection_request::{ConnectionRequest, NegotiationRequest};
use jetway::rdp::preconnection;
use jetway::relay::{self, RelayLimits, Traffic};
use jetway::stream::Io;
use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
use jetway::token::mint::{self, SigningKey};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::Plan;
use crate::system;
use crate::target::{CONNECTION_CONFIRM, Deed, Target};

/// First argument of the process that is nothing but the relay.
pub(crate) const RELAY_ARGUMENT: &str = "--relay-process";

/// Addresses the target is reached at, and clients come from, so that no pair of addresses runs out of ports.
const ADDRESSES: u32 = 32;

/// A way from client to target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Haproxy,
    HaproxySplice,
    /// `jetway::relay` alone: no token, no policy.
    Relay,
    Jetway,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Direct,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::Relay,
        Self::Jetway,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Relay => "relay",
            Self::Jetway => "jetway",
        })
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .with_context(|| format!("no path {text}"))
    }
}

/// A way that is up.
pub(crate) struct Path {
    pub(crate) kind: Kind,
    address: SocketAddr,
    target_port: u16,
    child: Option<Child>,
    /// Descriptors it had before anything went through it.
    descriptors: Mutex<usize>,
    signing_key: Option<SigningKey>,
    next: AtomicU32,
    resting: Arc<Mutex<Vec<TcpStream>>>,
    folder: TempDir,
}

impl Path {
    pub(crate) fn start(kind: Kind, target: &Target, plan: &Plan) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = match kind {
            Kind::Direct => target.port,
            Kind::Haproxy | Kind::HaproxySplice | Kind::Relay | Kind::Jetway => free_port()?,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut signing_key = None;
        let child = match kind {
            Kind::Direct => None,
            Kind::Haproxy => Some(haproxy(&folder, address, target.port, false)?),
            Kind::HaproxySplice => Some(haproxy(&folder, address, target.port, true)?),
            Kind::Relay => Some(
                Command::new(std::env::current_exe()?)
                    .args([RELAY_ARGUMENT, &address.to_string()])
                    .arg(target.port.to_string())
                    .spawn()?,
            ),
            Kind::Jetway => {
                let program = plan.jetway.as_ref().context("no --jetway PROGRAM")?;
                let (key, config) = configure(&folder, address)?;
                signing_key = Some(key);
                Some(
                    Command::new(program)
                        .arg("serve")
                        .arg("--config")
                        .arg(config)
                        .stdout(log_file(&folder)?)
                        .stderr(log_file(&folder)?)
                        .spawn()
                        .with_context(|| program.display().to_string())?,
                )
            }
        };
        Ok(Self {
            kind,
            address,
            target_port: target.port,
            child,
            descriptors: Mutex::new(0),
            signing_key,
            next: AtomicU32::new(0),
            resting: target.resting(),
            folder,
        })
    }

    /// Waits until it is up, and lets one session of each kind through.
    pub(crate) fn warm_up(&self) -> anyhow::Result<()> {
        for attempt in 0.. {
            if TcpStream::connect(self.address).is_ok() {
                break;
            }
            if attempt == 100 {
                bail!("nothing listens on {}: {}", self.address, self.log());
            }
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(200));
        *self
            .descriptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.open_descriptors();
        let mut stream = self.open(Deed::Echo).with_context(|| self.log())?;
        stream.write_all(&[0; 64])?;
        stream.read_exact(&mut [0; 64])?;
        Ok(())
    }

    /// Whether each session needs a token of its own.
    pub(crate) fn needs_tokens(&self) -> bool {
        self.signing_key.is_some()
    }

    /// The process in between.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A session whose target does `deed`.
    pub(crate) fn open(&self, deed: Deed) -> anyhow::Result<TcpStream> {
        self.open_with(&self.greeting(deed)?)
    }

    /// What a client says first: a token for the gateway, and a Connection Request.
    pub(crate) fn greeting(&self, deed: Deed) -> anyhow::Result<Vec<u8>> {
        let mut bytes = match &self.signing_key {
            Some(key) => preconnection::encode_v2(0, &self.token(key)?)?,
            None => Vec::new(),
        };
        let request = ConnectionRequest {
            routing_token: None,
            mstshash: Some(deed.name().to_owned()),
            negotiation: Some(NegotiationRequest {
                flags: 0,
                requested_protocols: 1,
            }),
            correlation_info: None,
            src_ref: 0,
            class: 0,
        };
        bytes.extend_from_slice(&request.encode()?);
        Ok(bytes)
    }

    pub(crate) fn open_with(&self, greeting: &[u8]) -> anyhow::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::new(self.pick_address(2), 0).into())?;
        socket.connect(&self.address.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(greeting)?;
        let mut confirm = [0; CONNECTION_CONFIRM.len()];
        stream
            .read_exact(&mut confirm)
            .context("no Connection Confirm")?;
        if confirm != CONNECTION_CONFIRM {
            bail!("refused: {confirm:02x?}");
        }
        Ok(stream)
    }

    /// Sessions the target keeps without a word.
    pub(crate) fn resting_sessions(&self) -> usize {
        self.resting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    pub(crate) fn release_resting(&self) {
        self.resting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn token(&self, key: &SigningKey) -> anyhow::Result<String> {
        let now = jetway::clock::unix_now().0;
        let claims = json!({
            "dst_hst": SocketAddr::new(self.pick_address(3), self.target_port).to_string(),
            "jet_cm": "fwd",
            "jet_ap": "rdp",
            "jti": uuid::Uuid::new_v4(),
            "nbf": now,
            "exp": now + 3600,
        });
        Ok(mint::mint(&claims, Some(key), None)?)
    }

    /// The next of many addresses of this machine.
    fn pick_address(&self, net: u8) -> IpAddr {
        let host = self.next.fetch_add(1, Ordering::Relaxed) % ADDRESSES + 1;
        let [.., host] = host.to_be_bytes();
        Ipv4Addr::new(127, 0, net, host).into()
    }

    /// A complaint if it holds more descriptors than before the first session.
    pub(crate) fn descriptors_left_open(&self) -> Option<String> {
        let before = *self
            .descriptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Idle pipes are kept: two descriptors each.
        let allowed = before + 2 * 16;
        for _ in 0..100 {
            if self.open_descriptors() <= allowed {
                return None;
            }
            thread::sleep(Duration::from_millis(100));
        }
        Some(format!(
            "{} has {} descriptors open after all sessions, {before} before the first",
            self.kind,
            self.open_descriptors()
        ))
    }

    fn open_descriptors(&self) -> usize {
        self.process()
            .and_then(|pid| system::descriptors(pid).ok())
            .unwrap_or_default()
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(5).collect();
        tail.join(" | ")
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn haproxy(
    folder: &TempDir,
    address: SocketAddr,
    target_port: u16,
    splice: bool,
) -> anyhow::Result<Child> {
    let mut config = String::from("global\n  nbthread 2\n  maxconn 30000\n  maxpipes 200\n");
    config.push_str("defaults\n  mode tcp\n  timeout connect 5s\n");
    config.push_str("  timeout client 1h\n  timeout server 1h\n");
    if splice {
        config.push_str("  option splice-request\n  option splice-response\n");
    }
    config.push_str(&format!(
        "listen bench\n  bind {address}\n  balance roundrobin\n"
    ));
    for host in 1..=ADDRESSES {
        config.push_str(&format!("  server s{host} 127.0.3.{host}:{target_port}\n"));
    }
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, config)?;
    // In the foreground, so that the process is ours to watch and to end.
    Command::new("haproxy")
        .arg("-db")
        .arg("-f")
        .arg(file)
        .stdout(log_file(folder)?)
        .stderr(log_file(folder)?)
        .spawn()
        .context("haproxy")
}

fn configure(
    folder: &TempDir,
    address: SocketAddr,
) -> anyhow::Result<(SigningKey, std::path::PathBuf)> {
    let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256))?;
    let public = key.public_pem().context("no public key")?;
    fs::write(folder.path().join("sign.pem"), public)?;
    let signing_key = SigningKey::from_key(&key, None)?;
    // One machine plays all clients here, so no bound on one address may bite.
    let config = format!(
        r#"
[[listener]]
address = "{address}"

[token]
keys = [{{ path = "sign.pem", usage = "sign" }}]

[egress]
allow = [{{ cidr = "127.0.0.0/8" }}]

[store]
path = "store.redb"

[limits]
connections = 40000
pending_connections = 4096
pending_per_address = 4096
sessions_per_address = 40000
token_work_us_per_s = 100000000
token_work_burst_us = 100000000
"#
    );
    let file = folder.path().join("jetway.toml");
    fs::write(&file, config)?;
    Ok((signing_key, file))
}

fn log_file(folder: &TempDir) -> anyhow::Result<Stdio> {
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))?;
    Ok(file.into())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// The relay alone: accepts, connects to the target, relays.
pub(crate) fn relay_process(address: Option<String>, port: Option<String>) -> anyhow::Result<()> {
    let address: SocketAddr = address.context("no address")?.parse()?;
    let port: u16 = port.context("no port")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(4096)?;
        let mut host = 0_u8;
        loop {
            let (client, _) = listener.accept().await?;
            host = host % 32 + 1;
            let target = SocketAddr::from(([127, 0, 3, host], port));
            tokio::spawn(async move {
                if let Ok(target) = tokio::net::TcpStream::connect(target).await {
                    let traffic = Traffic::default();
                    let limits = RelayLimits::default();
                    let cancel = CancellationToken::new();
                    relay::run(Io::Tcp(client), target, &traffic, limits, cancel).await;
                }
            });
        }
    })
}
