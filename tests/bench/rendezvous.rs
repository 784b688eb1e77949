//! What a rendezvous costs: pairs of peers that meet at the gateway, beside its opaque forward relay and beside plain
//! WebSocket relays.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use jetway::clock;
use jetway::jet::exchange::{JetPath, Operation};
use jetway_lab::net::{free_address, is_listening};
use jetway_lab::process::KillOnDrop;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use uuid::Uuid;

use crate::Plan;
use crate::load::{BulkFigures, RoundTripFigures, Usage};
use crate::path::{self, Goal, Kind, Path};
use crate::peer::{self, End, Wire};
use crate::report::{gbit, median, micros, number};
use crate::system;
use crate::target::{self, BLOCK_BYTES, CONNECTION_CONFIRM, Deed};

/// First argument of the process that is a plain relay.
pub(crate) const RELAY_ARGUMENT: &str = "--plain-relay-process";

/// Frames of bulk: what a peer makes of a full read.
const LARGE_FRAME_BYTES: usize = 64 * 1024;

/// Frames of a peer that sends what it has: a few kilobytes of an interactive session.
const SMALL_FRAME_BYTES: usize = 2 * 1024;

/// How a peer reaches what is in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Ws,
    Wss,
}

/// A way between two peers.
struct Way {
    name: String,
    /// The name of the way that its ratios are to.
    base: &'static str,
    frames: bool,
    process: Option<u32>,
    pair: Box<dyn Fn() -> anyhow::Result<(End, End)>>,
    rounds: Vec<Round>,
}

/// One turn of one way.
struct Round {
    up: BulkFigures,
    down: BulkFigures,
    /// In small frames, where there are any.
    small: Option<BulkFigures>,
    round_trip: RoundTripFigures,
}

/// A process that is ours to end.
struct Ours {
    child: KillOnDrop,
    address: SocketAddr,
    _folder: TempDir,
}

impl Ours {
    fn connect(&self) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect(self.address)?)
    }
}

/// Measures all ways in turns, prints a table, and gives the figures for the JSON.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Value> {
    let mut ways = ways(plan)?;
    if let Some(wanted) = &plan.ways {
        ways.retain(|way| wanted.split(',').any(|name| name == way.name));
    }
    for way in &ways {
        pair(way).with_context(|| way.name.clone())?;
    }
    for round in 1..=plan.rounds {
        for way in &mut ways {
            eprintln!("round {round} of {}: {}", plan.rounds, way.name);
            let one = measure(way, plan).with_context(|| way.name.clone())?;
            way.rounds.push(one);
        }
    }
    if !ways.is_empty() {
        print(plan, &ways);
    }
    Ok(to_json(&ways))
}

fn measure(way: &Way, plan: &Plan) -> anyhow::Result<Round> {
    Ok(Round {
        up: bulk(way, true, LARGE_FRAME_BYTES, plan.bulk)?,
        down: bulk(way, false, LARGE_FRAME_BYTES, plan.bulk)?,
        small: match way.frames {
            true => Some(bulk(way, true, SMALL_FRAME_BYTES, plan.bulk)?),
            false => None,
        },
        round_trip: round_trips(way, plan.round_trips)?,
    })
}

/// Two peers that have spoken: connector and acceptor.
fn pair(way: &Way) -> anyhow::Result<(End, End)> {
    let (mut connector, mut acceptor) = (way.pair)()?;
    for _ in 0..3 {
        connector.send(&connector.block(b"hello", 5))?;
        ensure!(acceptor.receive_exactly(5)? == b"hello");
        acceptor.send(&acceptor.block(b"there", 5))?;
        ensure!(connector.receive_exactly(5)? == b"there");
    }
    Ok((connector, acceptor))
}

/// One stream as fast as it goes; the clock stops when all has arrived.
fn bulk(way: &Way, up: bool, frame_bytes: usize, time: Duration) -> anyhow::Result<BulkFigures> {
    let (connector, acceptor) = pair(way)?;
    let (mut from, mut to) = match up {
        true => (connector, acceptor),
        false => (acceptor, connector),
    };
    let block = from.block(&vec![0x5a; BLOCK_BYTES], frame_bytes);
    let expected = AtomicU64::new(u64::MAX);
    let before = Usage::of(way.process)?;
    let start = clock::now();
    let bytes = thread::scope(|scope| {
        let receiving = scope.spawn(|| to.sink(&expected));
        let mut sent = 0;
        let mut more = || {
            let now = block.payload as u64;
            if start.elapsed() >= time {
                expected.store(sent + now, Ordering::Release);
            }
            sent += now;
            from.send(&block)
        };
        while expected.load(Ordering::Relaxed) == u64::MAX {
            more().context("sending")?;
        }
        receiving.join().ok().context("a panic")?
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let used = Usage::of(way.process)?.since(&before);
    ensure!(bytes == expected.into_inner(), "bytes were lost or made");
    Ok(BulkFigures {
        bytes_per_s: bytes as f64 / seconds,
        cpu_s_per_gb: used.process.as_secs_f64() / (bytes as f64 / 1e9),
        foreign: used.foreign(),
    })
}

fn round_trips(way: &Way, count: usize) -> anyhow::Result<RoundTripFigures> {
    let (mut connector, mut acceptor) = pair(way)?;
    let echoing = thread::spawn(move || acceptor.echo(64));
    let figures = round_trips_of(&mut connector, count, |_| true)?;
    connector.reset();
    echoing.join().ok().context("a panic")?;
    Ok(figures)
}

/// Round trips with a peer that echoes: so many, or where that is zero as long as `more` says so of each.
pub(crate) fn round_trips_of(
    connector: &mut End,
    count: usize,
    mut more: impl FnMut(Duration) -> bool,
) -> anyhow::Result<RoundTripFigures> {
    let block = connector.block(&[0x5a; 64], 64);
    let mut times = Vec::with_capacity(count);
    // The first tenth warms up caches and congestion windows.
    for round in 0.. {
        let start = clock::now();
        connector.send(&block)?;
        let answer = connector.receive_exactly(64)?;
        let time = start.elapsed();
        ensure!(answer == [0x5a; 64], "another message came back");
        if round >= count / 10 {
            times.push(time);
            if !more(time) || times.len() == count {
                break;
            }
        }
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    Ok(RoundTripFigures {
        p50: at(50).context("no round trips")?,
        p99: at(99).context("no round trips")?,
        stalls: times.iter().filter(|time| time.as_millis() >= 35).count(),
    })
}

fn ways(plan: &Plan) -> anyhow::Result<Vec<Way>> {
    let mut ways = Vec::new();
    let mut add = |name: &str, base, frames, process, pair| {
        ways.push(Way {
            name: name.to_owned(),
            base,
            frames,
            process,
            pair,
            rounds: Vec::new(),
        });
    };

    // Bytes. The acceptor of what leads to a target listens.
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?);
    let port = listener.local_addr()?.port();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let own = Arc::clone(&listener);
    add(
        "direct",
        "forward",
        false,
        None,
        Box::new(move || {
            let connector = TcpStream::connect(here)?;
            let (acceptor, _) = own.accept()?;
            let ends = (Wire::tcp(connector)?, Wire::tcp(acceptor)?);
            Ok((End::bare(ends.0), End::bare(ends.1)))
        }),
    );
    let goal = Goal {
        port,
        process: std::process::id(),
        logon: None,
    };
    let gateway = Arc::new(Path::start_to(Kind::Jetway, goal, plan)?);
    gateway.wait()?;
    let (path, own) = (Arc::clone(&gateway), Arc::clone(&listener));
    add(
        "forward",
        "forward",
        false,
        gateway.process(),
        Box::new(move || forward(&path, &own)),
    );
    for (name, base, acceptor, connector) in [
        ("tcp/tcp", "forward", Transport::Tcp, Transport::Tcp),
        ("ws/ws", "tungstenite", Transport::Ws, Transport::Ws),
        ("ws/tcp", "websocat ws/tcp", Transport::Tcp, Transport::Ws),
        ("wss/wss", "haproxy wss/wss", Transport::Wss, Transport::Wss),
    ] {
        let path = Arc::clone(&gateway);
        add(
            name,
            base,
            name != "tcp/tcp",
            gateway.process(),
            Box::new(move || meet(&path, acceptor, connector)),
        );
    }

    let relay = Arc::new(plain_relay()?);
    let process = relay.child.id();
    add(
        "tungstenite",
        "tungstenite",
        true,
        Some(process),
        Box::new(move || at_relay(&relay)),
    );
    if let Some(relay) = node_relay()? {
        let process = relay.child.id();
        add(
            "node ws/ws",
            "tungstenite",
            true,
            Some(process),
            Box::new(move || at_relay(&relay)),
        );
    }
    if let Some(program) = websocat() {
        for (name, base, framed) in [
            ("websocat ws/ws", "tungstenite", true),
            ("websocat ws/tcp", "websocat ws/tcp", false),
        ] {
            let goal = match framed {
                true => format!("ws://{here}/"),
                false => format!("tcp:{here}"),
            };
            let relay = start_websocat(&program, &goal)?;
            let (process, own) = (relay.child.id(), Arc::clone(&listener));
            add(
                name,
                base,
                true,
                Some(process),
                Box::new(move || {
                    let connector = relay.connect()?;
                    behind(connector, &own, framed, None)
                }),
            );
        }
    }
    if system::is_installed("haproxy") {
        for (name, base, tls) in [
            ("haproxy ws/ws", "tungstenite", false),
            ("haproxy wss/wss", "haproxy wss/wss", true),
        ] {
            let (relay, acceptor) = haproxy(port, tls)?;
            let (process, own) = (relay.child.id(), Arc::clone(&listener));
            let acceptor = tls.then_some(acceptor);
            add(
                name,
                base,
                true,
                Some(process),
                Box::new(move || {
                    let connector = relay.connect()?;
                    behind(connector, &own, true, acceptor.as_ref())
                }),
            );
        }
    }
    Ok(ways)
}

/// A forward session to a target of this program.
fn forward(path: &Path, listener: &TcpListener) -> anyhow::Result<(End, End)> {
    let greeting = target::greeting(Deed::Rest)?;
    thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let (stream, _) = listener.accept()?;
            let mut end = End::bare(Wire::tcp(stream)?);
            end.receive_exactly(greeting.len())?;
            end.send(&end.block(&CONNECTION_CONFIRM, usize::MAX))?;
            anyhow::Ok(end)
        });
        let connector = path.open(Deed::Rest).with_context(|| path.log())?;
        let acceptor = accepting.join().ok().context("a panic")??;
        Ok((End::bare(Wire::tcp(connector)?), acceptor))
    })
}

/// A rendezvous in an association of its own, with a token of its own.
fn meet(path: &Path, acceptor: Transport, connector: Transport) -> anyhow::Result<(End, End)> {
    let mut rest = Rest::open(path)?;
    let (association, token) = rest.association(path)?;
    let candidate = rest.candidate(association, &token, acceptor)?;
    let place = |operation| JetPath {
        operation,
        association,
        candidate,
    };
    let acceptor = join(path, acceptor, place(Operation::Accept), &token)?;
    let connector = join(path, connector, place(Operation::Connect), &token)?;
    Ok((connector, acceptor))
}

/// A peer of a candidate.
pub(crate) fn join(
    path: &Path,
    transport: Transport,
    place: JetPath,
    token: &str,
) -> anyhow::Result<End> {
    let stream = path.connect()?;
    let joined = match transport {
        Transport::Tcp => End::by_packet(Wire::tcp(stream)?, place, token),
        Transport::Ws => End::by_handshake(Wire::tcp(stream)?, &place.to_string(), Some(token)),
        Transport::Wss => End::by_handshake(Wire::tls(stream)?, &place.to_string(), Some(token)),
    };
    joined.with_context(|| path.log())
}

/// A client of the REST API, on one connection.
pub(crate) struct Rest {
    wire: Wire,
}

impl Rest {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            wire: Wire::tcp(path.connect()?)?,
        })
    }

    pub(crate) fn post(&mut self, path: &str, token: &str) -> anyhow::Result<Value> {
        use std::io::{Read, Write};

        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
        );
        self.wire.write_all(request.as_bytes())?;
        let head = peer::read_head(&mut self.wire)?;
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = lengths.next().map_or(Ok(0), |(_, length)| length.parse())?;
        let mut body = vec![0; length];
        self.wire.read_exact(&mut body)?;
        ensure!(
            head.starts_with("HTTP/1.1 200 "),
            "{path}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// A new association, and the token that has created it.
    pub(crate) fn association(&mut self, path: &Path) -> anyhow::Result<(Uuid, String)> {
        let association = Uuid::new_v4();
        let token = path.rendezvous_token(association)?;
        self.post(&format!("/jet/association/{association}"), &token)?;
        Ok((association, token))
    }

    /// The candidate of an association that has this transport.
    pub(crate) fn candidate(
        &mut self,
        association: Uuid,
        token: &str,
        transport: Transport,
    ) -> anyhow::Result<Uuid> {
        let gathered = self.post(&format!("/jet/gather/{association}"), token)?;
        let wanted = match transport {
            Transport::Tcp => "tcp://",
            Transport::Ws => "ws://",
            Transport::Wss => "wss://",
        };
        let candidates = gathered["candidates"].as_array().context("no candidates")?;
        let mut found = candidates.iter().filter(|candidate| {
            let url = candidate["url"].as_str();
            url.is_some_and(|url| url.starts_with(wanted))
        });
        let id = found.next().context("no such candidate")?["id"].as_str();
        Ok(id.context("no id")?.parse()?)
    }
}

/// Two peers of a relay that pairs clients by their paths.
fn at_relay(relay: &Ours) -> anyhow::Result<(End, End)> {
    let id = Uuid::new_v4();
    let join = |side| {
        let wire = Wire::tcp(relay.connect()?)?;
        End::by_handshake(wire, &format!("/{side}/{id}"), None)
    };
    let acceptor = join("accept")?;
    Ok((join("connect")?, acceptor))
}

/// A client, and the server that a relay has connected to for it.
fn behind(
    connector: TcpStream,
    listener: &TcpListener,
    framed: bool,
    acceptor: Option<&SslAcceptor>,
) -> anyhow::Result<(End, End)> {
    thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let (stream, _) = listener.accept()?;
            let wire = match acceptor {
                Some(acceptor) => Wire::accept_tls(stream, acceptor)?,
                None => Wire::tcp(stream)?,
            };
            match framed {
                true => End::answer_handshake(wire),
                false => Ok(End::bare(wire)),
            }
        });
        let wire = match acceptor {
            Some(_) => Wire::tls(connector)?,
            None => Wire::tcp(connector)?,
        };
        let connector = End::by_handshake(wire, "/", None)?;
        let acceptor = accepting.join().ok().context("a panic")??;
        Ok((connector, acceptor))
    })
}

/// A process that listens before it is used.
fn listening(mut command: Command, address: SocketAddr, folder: TempDir) -> anyhow::Result<Ours> {
    let child = command
        .stdout(path::log_file(&folder)?)
        .stderr(path::log_file(&folder)?)
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let ours = Ours {
        child: KillOnDrop(child),
        address,
        _folder: folder,
    };
    for _ in 0..100 {
        if is_listening(address.port())? {
            return Ok(ours);
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("nothing listens on {address}")
}

fn plain_relay() -> anyhow::Result<Ours> {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe()?);
    command.args([RELAY_ARGUMENT, &address.to_string()]);
    listening(command, address, tempfile::tempdir()?)
}

/// The relay of `relay.js`, where Node.js and the library are there.
fn node_relay() -> anyhow::Result<Option<Ours>> {
    let modules = PathBuf::from(cache_folder()).join("jetway-peers/ws/node_modules");
    if !system::is_installed("node") || !modules.is_dir() {
        eprintln!("node or ws is not installed: measuring without them");
        return Ok(None);
    }
    let address = free_address();
    let mut command = Command::new("node");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/relay.js"))
        .arg(address.port().to_string())
        .env("NODE_PATH", modules);
    Ok(Some(listening(command, address, tempfile::tempdir()?)?))
}

fn cache_folder() -> String {
    std::env::var("XDG_CACHE_HOME").unwrap_or_else(|_| {
        let home = std::env::var("HOME").unwrap_or_default();
        format!("{home}/.cache")
    })
}

fn websocat() -> Option<PathBuf> {
    if system::is_installed("websocat") {
        return Some("websocat".into());
    }
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| {
        let home = std::env::var("HOME").unwrap_or_default();
        format!("{home}/.cargo")
    });
    let program = PathBuf::from(cargo).join("bin/websocat");
    if program.is_file() {
        return Some(program);
    }
    eprintln!("websocat is not installed: measuring without it");
    None
}

/// From a WebSocket that it accepts to one that it opens, or to TCP; binary messages of up to 64 KiB.
fn start_websocat(program: &std::path::Path, goal: &str) -> anyhow::Result<Ours> {
    let address = free_address();
    let mut command = Command::new(program);
    command.args(["--binary", &format!("ws-l:{address}"), goal]);
    listening(command, address, tempfile::tempdir()?)
}

/// HAProxy in front of a WebSocket server: past the handshake it moves bytes and does not look at frames.
fn haproxy(port: u16, tls: bool) -> anyhow::Result<(Ours, SslAcceptor)> {
    let folder = tempfile::tempdir()?;
    let address = free_address();
    let identity = path::identity(&folder)?;
    let (bind, server) = match tls {
        true => (
            format!("ssl crt {} ssl-min-ver TLSv1.3", identity.both.display()),
            "ssl verify none ssl-min-ver TLSv1.3",
        ),
        false => (String::new(), ""),
    };
    let config = format!(
        "global
  nbthread 2
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen bench
  bind {address} {bind}
  server s1 127.0.0.1:{port} {server}
"
    );
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
    acceptor.set_certificate_chain_file(&identity.certificate)?;
    acceptor.set_private_key_file(&identity.key, SslFiletype::PEM)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok((listening(command, address, folder)?, acceptor.build()))
}

/// A plain WebSocket relay: what a few lines of the library that the gateway uses, too, cost.
pub(crate) fn relay_process(arguments: &[String]) -> anyhow::Result<()> {
    let [address] = arguments else {
        anyhow::bail!("no address");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move {
                let mut path = String::new();
                #[expect(clippy::result_large_err, reason = "the library's own type")]
                let note = |request: &Request, response: Response| {
                    path = request.uri().path().to_owned();
                    Ok(response)
                };
                let accepted = tokio_tungstenite::accept_hdr_async(stream, note).await;
                let Ok(socket) = accepted else { return };
                let (to, from) = socket.split();
                let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(id) = path.strip_prefix("/accept/") {
                    lock().insert(id.to_owned(), (to, from));
                    return;
                }
                let id = path.strip_prefix("/connect/").unwrap_or_default();
                let other = lock().remove(id);
                if let Some((back, forth)) = other {
                    tokio::spawn(forth.forward(to));
                    let _ = from.forward(back).await;
                }
            });
        }
    })
}

type Figure = (&'static str, fn(&Round) -> f64);

const FIGURES: [Figure; 8] = [
    ("to the acceptor, Gbit/s", |r| gbit(&r.up)),
    ("to the connector, Gbit/s", |r| gbit(&r.down)),
    ("CPU s/GB, to the acceptor", |r| r.up.cpu_s_per_gb),
    ("CPU s/GB, to the connector", |r| r.down.cpu_s_per_gb),
    ("small frames, Gbit/s", |r| {
        r.small.as_ref().map_or(f64::NAN, gbit)
    }),
    ("CPU s/GB, small frames", |r| {
        r.small.map_or(f64::NAN, |small| small.cpu_s_per_gb)
    }),
    ("64 B round trip p50, us", |r| micros(r.round_trip.p50)),
    ("64 B round trip p99, us", |r| micros(r.round_trip.p99)),
];

fn median_of(way: &Way, figure: impl Fn(&Round) -> f64) -> f64 {
    median(way.rounds.iter().map(figure).collect())
}

/// Median of the ratios to the base in the same round.
fn ratio(way: &Way, ways: &[Way], figure: impl Fn(&Round) -> f64) -> Option<f64> {
    let base = ways.iter().find(|base| base.name == way.base)?;
    let pairs = way.rounds.iter().zip(&base.rounds);
    let ratios = pairs.map(|(own, base)| figure(own) / figure(base));
    Some(median(ratios.collect()))
}

fn print(plan: &Plan, ways: &[Way]) {
    println!(
        "Medians of {} interleaved rounds; in parentheses the ratio to the base of the way in the same round.",
        plan.rounds
    );
    for way in ways {
        println!("{} (to {})", way.name, way.base);
        for (name, figure) in FIGURES {
            let value = median_of(way, figure);
            if value.is_nan() {
                continue;
            }
            let shown = match name.starts_with("CPU") {
                true => format!("{value:.3}"),
                false => number(value),
            };
            let ratio = ratio(way, ways, figure).map(|ratio| format!("({ratio:.2})"));
            println!("  {name:28}{shown:>10} {:>8}", ratio.unwrap_or_default());
        }
    }
    let rounds = ways.iter().flat_map(|way| &way.rounds);
    let foreign = rounds.flat_map(|round| [round.up.foreign, round.down.foreign]);
    println!(
        "Other processes took {:.0} % of the machine during bulk (median).",
        median(foreign.collect()) * 100.0
    );
}

fn to_json(ways: &[Way]) -> Value {
    let mut all = Map::new();
    for way in ways {
        let mut values = Map::new();
        for (name, figure) in FIGURES {
            let rounds: Vec<f64> = way.rounds.iter().map(figure).collect();
            let value = json!({
                "median": median_of(way, figure),
                "ratio": ratio(way, ways, figure),
                "rounds": rounds,
            });
            values.insert(name.to_owned(), value);
        }
        values.insert("base".to_owned(), way.base.into());
        all.insert(way.name.clone(), values.into());
    }
    all.into()
}
