//! The ways from client to target: none, HAProxy, the relay alone in a process of its own, and the whole gateway; and
//! for inspected sessions none, HAProxy between two TLS connections, FreeRDP's proxy, PyRDP, and the whole gateway.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use jetway::rdp::preconnection;
use jetway::relay::{self, RelayLimits, Traffic};
use jetway::stream::Io;
use jetway::token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use jetway::token::mint::{self, EncryptionKey, SigningKey};
use jetway_lab::certificate;
use jetway_lab::net::free_address;
use jetway_lab::process::KillOnDrop;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Plan;
use crate::rdp::{self, Session};
use crate::system;
use crate::target::{self, CONNECTION_CONFIRM, Deed, Target};

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
    /// Two blocking threads a session: the least that a relay can do, and nothing that scales.
    Threads,
    /// `jetway::relay` alone: no token, no policy.
    Relay,
    Jetway,
    /// RDP over TLS with nothing in between: what the inspected paths are compared with.
    TlsDirect,
    /// A TLS connection on each side.
    HaproxyTls,
    /// A whole RDP server and a whole client, back to back; for sessions of real programs only.
    FreerdpProxy,
    /// A man in the middle that parses and records, in Python; for sessions of real programs that it knows only.
    Pyrdp,
    /// The gateway stands inside the session.
    JetwayInspected,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Direct,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::Threads,
        Self::Relay,
        Self::Jetway,
        Self::TlsDirect,
        Self::HaproxyTls,
        Self::FreerdpProxy,
        Self::Pyrdp,
        Self::JetwayInspected,
    ];

    /// Whether its loads are RDP sessions rather than bytes.
    pub(crate) fn is_inspected(self) -> bool {
        match self {
            Self::TlsDirect
            | Self::HaproxyTls
            | Self::FreerdpProxy
            | Self::Pyrdp
            | Self::JetwayInspected => true,
            Self::Direct
            | Self::Haproxy
            | Self::HaproxySplice
            | Self::Threads
            | Self::Relay
            | Self::Jetway => false,
        }
    }

    /// Whether the sessions of this program's own peers go through: a proxy that is a client and a server wants more.
    pub(crate) fn takes_small_sessions(self) -> bool {
        self.is_inspected() && !matches!(self, Self::FreerdpProxy | Self::Pyrdp)
    }

    /// Whether sessions of real clients and targets go through: a TLS bridge cannot negotiate for them.
    pub(crate) fn takes_real_sessions(self) -> bool {
        self.is_inspected() && self != Self::HaproxyTls
    }

    /// Whether something in between holds sessions, and could hold many.
    pub(crate) fn has_idle_cost(self) -> bool {
        match self {
            Self::Direct | Self::Threads | Self::TlsDirect | Self::FreerdpProxy | Self::Pyrdp => {
                false
            }
            Self::Haproxy
            | Self::HaproxySplice
            | Self::Relay
            | Self::Jetway
            | Self::HaproxyTls
            | Self::JetwayInspected => true,
        }
    }

    /// Descriptors of idle pipes that the process may keep for reuse.
    fn kept_descriptors(self) -> usize {
        match self {
            Self::Direct | Self::Threads | Self::TlsDirect | Self::FreerdpProxy | Self::Pyrdp => 0,
            Self::Haproxy | Self::HaproxySplice | Self::HaproxyTls => 2 * 200,
            Self::Relay | Self::Jetway | Self::JetwayInspected => 2 * 16,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Threads => "threads",
            Self::Relay => "relay",
            Self::Jetway => "jetway",
            Self::TlsDirect => "tls-direct",
            Self::HaproxyTls => "haproxy-tls",
            Self::FreerdpProxy => "freerdp-proxy",
            Self::Pyrdp => "pyrdp",
            Self::JetwayInspected => "jetway-inspected",
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
    child: Option<KillOnDrop>,
    /// Descriptors it had before anything went through it.
    descriptors: Mutex<usize>,
    issuer: Option<Issuer>,
    next: AtomicU32,
    target_process: u32,
    /// User and password that the gateway logs on with.
    logon: Option<(String, String)>,
    folder: TempDir,
}

/// What makes tokens.
struct Issuer {
    sign: SigningKey,
    /// For tokens that hold a password.
    encrypt: EncryptionKey,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    pub(crate) port: u16,
    pub(crate) process: u32,
    /// User and password there, for inspected paths.
    pub(crate) logon: Option<(String, String)>,
}

impl Path {
    pub(crate) fn start(kind: Kind, target: &Target, plan: &Plan) -> anyhow::Result<Self> {
        let goal = match kind.is_inspected() {
            true => Goal {
                port: target.rdp_port,
                process: target.process(),
                logon: Some(("bench".to_owned(), "not secret".to_owned())),
            },
            false => Goal {
                port: target.port,
                process: target.process(),
                logon: None,
            },
        };
        Self::start_to(kind, goal, plan)
    }

    /// A way to a target that may be a program of others.
    pub(crate) fn start_to(kind: Kind, goal: Goal, plan: &Plan) -> anyhow::Result<Self> {
        Self::start_with(kind, goal, plan, "")
    }

    /// The same with `settings` at the end of the gateway's configuration.
    pub(crate) fn start_with(
        kind: Kind,
        goal: Goal,
        plan: &Plan,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = match kind {
            Kind::Direct | Kind::TlsDirect => SocketAddr::from((Ipv4Addr::LOCALHOST, goal.port)),
            Kind::Haproxy
            | Kind::HaproxySplice
            | Kind::Threads
            | Kind::Relay
            | Kind::Jetway
            | Kind::HaproxyTls
            | Kind::FreerdpProxy
            | Kind::Pyrdp
            | Kind::JetwayInspected => free_address(),
        };
        let mut issuer = None;
        let child = match kind {
            Kind::Direct | Kind::TlsDirect => None,
            Kind::Haproxy | Kind::HaproxySplice => {
                let splice = kind == Kind::HaproxySplice;
                Some(haproxy(&folder, address, goal.port, splice)?)
            }
            Kind::HaproxyTls => Some(haproxy_tls(&folder, address, goal.port)?),
            Kind::FreerdpProxy => Some(freerdp_proxy(&folder, address, goal.port)?),
            Kind::Pyrdp => Some(pyrdp(&folder, address, goal.port)?),
            Kind::Threads | Kind::Relay => Some(
                Command::new(std::env::current_exe()?)
                    .args([RELAY_ARGUMENT, &kind.to_string(), &address.to_string()])
                    .arg(goal.port.to_string())
                    .spawn()?,
            ),
            Kind::Jetway | Kind::JetwayInspected => {
                let program = plan.jetway.as_ref().context("no --jetway PROGRAM")?;
                let inside = kind == Kind::JetwayInspected;
                let (made, config) = configure(&folder, address, inside, settings)?;
                issuer = Some(made);
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
            target_port: goal.port,
            child: child.map(KillOnDrop),
            descriptors: Mutex::new(0),
            issuer,
            next: AtomicU32::new(0),
            target_process: goal.process,
            logon: goal.logon,
            folder,
        })
    }

    /// Waits until it is up.
    pub(crate) fn wait(&self) -> anyhow::Result<()> {
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
        Ok(())
    }

    /// Waits until it is up, and lets one session through.
    pub(crate) fn warm_up(&self) -> anyhow::Result<()> {
        self.wait()?;
        let mut stream = self.open(Deed::Echo).with_context(|| self.log())?;
        stream.write_all(&[0; 64])?;
        stream
            .read_exact(&mut [0; 64])
            .with_context(|| self.log())?;
        Ok(())
    }

    /// Whether each session needs a token of its own.
    pub(crate) fn needs_tokens(&self) -> bool {
        self.issuer.is_some()
    }

    /// The process in between.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.as_ref().map(|child| child.id())
    }

    pub(crate) fn target_process(&self) -> u32 {
        self.target_process
    }

    /// A session whose target does `deed`.
    pub(crate) fn open(&self, deed: Deed) -> anyhow::Result<TcpStream> {
        self.open_with(&self.greeting(deed)?)
    }

    /// What a client says first: a token for the gateway, and a Connection Request.
    pub(crate) fn greeting(&self, deed: Deed) -> anyhow::Result<Vec<u8>> {
        let mut bytes = self.preamble()?;
        bytes.extend_from_slice(&target::greeting(deed)?);
        Ok(bytes)
    }

    /// A connection from one of many addresses.
    pub(crate) fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::new(self.pick_address(2), 0).into())?;
        socket.connect(&self.address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(stream)
    }

    /// An RDP session with a target of this program, past its connection sequence.
    pub(crate) fn open_session(&self, greeting: &[u8]) -> anyhow::Result<Session> {
        let opening = match self.kind {
            Kind::HaproxyTls => rdp::Opening::Tls,
            Kind::TlsDirect
            | Kind::FreerdpProxy
            | Kind::Pyrdp
            | Kind::JetwayInspected
            | Kind::Direct
            | Kind::Haproxy
            | Kind::HaproxySplice
            | Kind::Threads
            | Kind::Relay
            | Kind::Jetway => rdp::Opening::X224,
        };
        rdp::connect(self.connect()?, opening, greeting).with_context(|| self.log())
    }

    /// What a client of an inspected session says before X.224: a token for the gateway.
    pub(crate) fn preamble(&self) -> anyhow::Result<Vec<u8>> {
        Ok(match self.pcb()? {
            Some(token) => preconnection::encode_v2(0, &token)?,
            None => Vec::new(),
        })
    }

    /// A fresh token, where the path wants one.
    pub(crate) fn pcb(&self) -> anyhow::Result<Option<String>> {
        let issuer = self.issuer.as_ref();
        issuer.map(|issuer| self.token(issuer)).transpose()
    }

    /// A fresh token for a rendezvous in `association`.
    pub(crate) fn rendezvous_token(&self, association: Uuid) -> anyhow::Result<String> {
        let issuer = self.issuer.as_ref().context("not a gateway")?;
        let now = jetway::clock::unix_now().0;
        let claims = json!({
            "jet_cm": "rdv",
            "jet_aid": association,
            "jti": Uuid::new_v4(),
            "nbf": now,
            "exp": now + 3600,
        });
        Ok(mint::mint(&claims, Some(&issuer.sign), None)?)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn open_with(&self, greeting: &[u8]) -> anyhow::Result<TcpStream> {
        let mut stream = self.connect()?;
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

    /// Ends the sessions at rest and says how many the target had.
    pub(crate) fn release_resting(&self) -> anyhow::Result<u64> {
        Target::release(self.target_port)
    }

    fn token(&self, issuer: &Issuer) -> anyhow::Result<String> {
        let now = jetway::clock::unix_now().0;
        let host = match self.kind.is_inspected() {
            true => Ipv4Addr::LOCALHOST.into(),
            false => self.pick_address(3),
        };
        let mut claims = json!({
            "dst_hst": SocketAddr::new(host, self.target_port).to_string(),
            "jet_cm": "fwd",
            "jti": Uuid::new_v4(),
            "nbf": now,
            "exp": now + 3600,
        });
        if let Some((user, password)) = &self.logon {
            claims["jet_ap"] = "rdp".into();
            claims["dst_usr"] = user.as_str().into();
            claims["dst_pwd"] = password.as_str().into();
        }
        let encrypt = self.logon.as_ref().map(|_| &issuer.encrypt);
        Ok(mint::mint(&claims, Some(&issuer.sign), encrypt)?)
    }

    /// The next of many addresses of this machine.
    fn pick_address(&self, net: u8) -> IpAddr {
        let host = self.next.fetch_add(1, Ordering::Relaxed) % ADDRESSES + 1;
        let [.., host] = host.to_be_bytes();
        Ipv4Addr::new(127, 0, net, host).into()
    }

    /// Waits until the process has as few descriptors as before its first session.
    ///
    /// # Errors
    /// It keeps more.
    pub(crate) fn check_descriptors(&self) -> anyhow::Result<()> {
        let before = *self
            .descriptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for _ in 0..100 {
            if self.open_descriptors() <= before + self.kind.kept_descriptors() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!(
            "{} has {} descriptors open after all sessions, {before} before the first",
            self.kind,
            self.open_descriptors()
        )
    }

    fn open_descriptors(&self) -> usize {
        self.process()
            .and_then(|pid| system::descriptors(pid).ok())
            .unwrap_or_default()
    }

    /// The last lines that the process in between has printed.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(5).collect();
        tail.join(" | ")
    }
}

fn haproxy(
    folder: &TempDir,
    address: SocketAddr,
    target_port: u16,
    splice: bool,
) -> anyhow::Result<Child> {
    // It counts two descriptors for each connection and for each pipe, and does not start with fewer.
    let connections = (system::descriptor_limit().min(100_000) - 600) / 2;
    let mut config = format!("global\n  nbthread 2\n  maxconn {connections}\n  maxpipes 200\n");
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
    start_haproxy(folder, &config)
}

fn start_haproxy(folder: &TempDir, config: &str) -> anyhow::Result<Child> {
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

/// Two TLS connections a session; neither is resumed, as the gateway's are not.
fn haproxy_tls(folder: &TempDir, address: SocketAddr, target_port: u16) -> anyhow::Result<Child> {
    let identity = identity(folder)?;
    let config = format!(
        "global
  nbthread 2
  maxconn 4000
  ssl-default-bind-options no-tls-tickets
  ssl-server-verify none
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen bench
  bind {address} ssl crt {} ssl-min-ver TLSv1.3
  server s1 127.0.0.1:{target_port} ssl verify none no-ssl-reuse ssl-min-ver TLSv1.3
",
        identity.both.display()
    );
    start_haproxy(folder, &config)
}

/// As its own template, with TLS on both sides and every session to one target.
fn freerdp_proxy(folder: &TempDir, address: SocketAddr, target_port: u16) -> anyhow::Result<Child> {
    let identity = identity(folder)?;
    let config = format!(
        "[Server]
Host={host}
Port={port}
[Target]
Host=127.0.0.1
Port={target_port}
FixedTarget=true
TlsSecLevel=1
[Channels]
GFX=true
DisplayControl=true
Clipboard=true
AudioInput=true
AudioOutput=true
DeviceRedirection=true
VideoRedirection=true
CameraRedirection=true
RemoteApp=false
PassthroughIsBlacklist=true
Passthrough=
Intercept=
[Input]
Keyboard=true
Mouse=true
Multitouch=true
[Security]
ServerTlsSecurity=true
ServerNlaSecurity=false
ServerRdpSecurity=false
ClientTlsSecurity=true
ClientNlaSecurity=true
ClientRdpSecurity=false
ClientAllowFallbackToTls=true
[Plugins]
Modules=
Required=
[Certificates]
CertificateFile={certificate}
PrivateKeyFile={key}
",
        host = address.ip(),
        port = address.port(),
        certificate = identity.certificate.display(),
        key = identity.key.display(),
    );
    let file = folder.path().join("proxy.ini");
    fs::write(&file, config)?;
    Command::new("freerdp-proxy3")
        .arg(file)
        // It keeps the certificates of targets there.
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(log_file(folder)?)
        .stderr(log_file(folder)?)
        .spawn()
        .context("freerdp-proxy3")
}

/// Where tests/install.sh has put PyRDP.
pub(crate) fn pyrdp_program() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let program = cache.join("jetway-peers/pyrdp/bin/pyrdp-mitm");
    program.is_file().then_some(program)
}

/// With all that it does by itself: it logs, and records.
fn pyrdp(folder: &TempDir, address: SocketAddr, target_port: u16) -> anyhow::Result<Child> {
    let identity = identity(folder)?;
    Command::new(pyrdp_program().context("tests/install.sh bench installs pyrdp")?)
        .args(["-a", &address.ip().to_string()])
        .args(["-l", &address.port().to_string()])
        .arg("-o")
        .arg(folder.path().join("recordings"))
        .arg("-c")
        .arg(&identity.certificate)
        .arg("-k")
        .arg(&identity.key)
        .arg(format!("127.0.0.1:{target_port}"))
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(log_file(folder)?)
        .stderr(log_file(folder)?)
        .spawn()
        .context("pyrdp-mitm")
}

/// A certificate for the client's side.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file.
    pub(crate) both: PathBuf,
}

pub(crate) fn identity(folder: &TempDir) -> anyhow::Result<Identity> {
    let identity = certificate::Identity::self_signed(&["localhost"]);
    let [certificate, key] = identity.write(folder.path(), ["tls.pem", "tls.key"]);
    let both = folder.path().join("tls.both");
    fs::write(&both, identity.pem() + &identity.key_pem())?;
    Ok(Identity {
        certificate,
        key,
        both,
    })
}

fn configure(
    folder: &TempDir,
    address: SocketAddr,
    inside: bool,
    settings: &str,
) -> anyhow::Result<(Issuer, PathBuf)> {
    let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256))?;
    let public = key.public_pem().context("no public key")?;
    fs::write(folder.path().join("sign.pem"), public)?;
    let encryption = mint::generate(Algorithm::KeyManagement(KeyManagement::EcdhEs))?;
    let private = encryption.private_pem().context("no private key")?;
    fs::write(folder.path().join("encrypt.pem"), private.as_bytes())?;
    let issuer = Issuer {
        sign: SigningKey::from_key(&key, None)?,
        encrypt: EncryptionKey::from_key(&encryption, None)?,
    };
    // One machine plays all clients here, so no bound on one address may bite.
    let mut config = format!(
        r#"
[[listener]]
address = "{address}"

[token]
keys = [{{ path = "sign.pem", usage = "sign" }}, {{ path = "encrypt.pem", usage = "encrypt" }}]

[egress]
allow = [{{ cidr = "127.0.0.0/8" }}]

[store]
path = "store.redb"

[limits]
connections = 40000
pending_connections = 8192
pending_per_address = 8192
sessions_per_address = 40000
token_work_us_per_s = 100000000
token_work_burst_us = 100000000
"#
    );
    let identity = identity(folder)?;
    config.push_str(&format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\n\n",
        identity.certificate, identity.key
    ));
    if inside {
        config.push_str("[target]\nverify = \"accept-any\"\n\n");
    }
    config.push_str(settings);
    let file = folder.path().join("jetway.toml");
    fs::write(&file, config)?;
    Ok((issuer, file))
}

pub(crate) fn log_file(folder: &TempDir) -> anyhow::Result<Stdio> {
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))?;
    Ok(file.into())
}

/// Accepts, connects to the target, and relays by `kind`.
pub(crate) fn relay_process(arguments: &[String]) -> anyhow::Result<()> {
    let [kind, address, port] = arguments else {
        bail!("no kind, address and port");
    };
    let (address, port): (SocketAddr, u16) = (address.parse()?, port.parse()?);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let targets = (1..=ADDRESSES)
        .cycle()
        .map(|host| SocketAddr::from(([127, 0, 3, host.to_be_bytes()[3]], port)));
    match kind.parse()? {
        Kind::Threads => relay_with_threads(&listener, targets),
        Kind::Relay => relay_alone(listener, targets),
        Kind::Direct
        | Kind::Haproxy
        | Kind::HaproxySplice
        | Kind::Jetway
        | Kind::TlsDirect
        | Kind::HaproxyTls
        | Kind::FreerdpProxy
        | Kind::Pyrdp
        | Kind::JetwayInspected => bail!("not ours"),
    }
}

fn relay_alone(
    listener: TcpListener,
    mut targets: impl Iterator<Item = SocketAddr>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            let target = targets.next().context("endless")?;
            tokio::spawn(async move {
                if let Ok(target) = tokio::net::TcpStream::connect(target).await {
                    let traffic = Traffic::default();
                    let limits = RelayLimits::default();
                    let cancel = CancellationToken::new();
                    let (client, target) = (Io::Tcp(client), Io::Tcp(target));
                    let relayed = relay::run(client, target, &traffic, limits, cancel);
                    let (_end, mut parting) = relayed.await;
                    parting.begin().await;
                }
            });
        }
    })
}

fn relay_with_threads(
    listener: &TcpListener,
    targets: impl Iterator<Item = SocketAddr>,
) -> anyhow::Result<()> {
    for target in targets {
        let (client, _) = listener.accept()?;
        let target = TcpStream::connect(target)?;
        client.set_nodelay(true)?;
        target.set_nodelay(true)?;
        let ways = [(client.try_clone()?, target.try_clone()?), (target, client)];
        for (mut from, mut to) in ways {
            thread::spawn(move || {
                let mut block = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = from.read(&mut block) {
                    if to
                        .write_all(block.get(..count).unwrap_or_default())
                        .is_err()
                    {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
    Ok(())
}
