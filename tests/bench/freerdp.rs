//! The same for sessions of real programs: a client of FreeRDP before each path, its shadow server behind it, and a terminal
//! that scrolls random text between them, which no codec makes small.
//!
//! This is how FreeRDP's own proxy and PyRDP are compared: they take no sessions that are less.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jetway::clock;
use jetway_lab::process::TerminateOnDrop;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::Plan;
use crate::path::{self, Goal, Kind, Path};
use crate::report::{median, micros, number};
use crate::system;

/// What the bench needs besides itself.
const PROGRAMS: [&str; 8] = [
    "Xvfb",
    "xterm",
    "xfreerdp3",
    "freerdp-shadow-cli3",
    "xfreerdp",
    "freerdp-shadow-cli",
    "winpr-hash",
    "freerdp-proxy3",
];

const USER: &str = "alice";
const PASSWORD: &str = "not secret";

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A session before it is measured: the first picture, caches, the pace of the encoder.
const SETTLE: Duration = Duration::from_secs(2);

/// A client and a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    /// FreeRDP 3, NLA, RemoteFX in a dynamic channel: the picture comes in PDUs of 1,600 bytes.
    Egfx,
    /// FreeRDP 2, TLS, RemoteFX in surface commands: in fast-path PDUs of up to 16 KiB. The one pair here that goes
    /// through PyRDP.
    SurfaceCommands,
}

impl Pair {
    fn client(self) -> &'static str {
        match self {
            Self::Egfx => "xfreerdp3",
            Self::SurfaceCommands => "xfreerdp",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Egfx => "freerdp-shadow-cli3",
            Self::SurfaceCommands => "freerdp-shadow-cli",
        }
    }

    fn codec(self) -> &'static str {
        match self {
            Self::Egfx => "/gfx:RFX",
            Self::SurfaceCommands => "/rfx",
        }
    }

    fn takes(self, kind: Kind) -> bool {
        kind.takes_real_sessions() && (kind != Kind::Pyrdp || self == Self::SurfaceCommands)
    }
}

/// All turns of one path.
struct Figures {
    kind: Kind,
    /// From the start of the client's process until its session is active.
    set_ups: Vec<Duration>,
    loads: Vec<Load>,
}

/// One session with a moving picture.
struct Load {
    bytes_per_s: f64,
    /// CPU seconds of the process in between, for one second.
    cpu: f64,
    cpu_s_per_gb: f64,
}

/// Measures the paths of the plan that real programs can use; `Null` where there are none.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Value> {
    if !plan.kinds.iter().any(|kind| kind.takes_real_sessions())
        || plan.real_set_ups + plan.real_rounds == 0
    {
        return Ok(Value::Null);
    }
    for program in PROGRAMS {
        if !system::is_installed(program) {
            eprintln!(
                "{program} is not installed (tests/install.sh bench peers): no real sessions"
            );
            return Ok(Value::Null);
        }
    }
    Ok(json!({
        "EGFX": measure(Pair::Egfx, plan)?,
        "surface commands": measure(Pair::SurfaceCommands, plan)?,
    }))
}

fn measure(pair: Pair, plan: &Plan) -> anyhow::Result<Value> {
    let lab = Lab::start(pair)?;
    let mut paths = Vec::new();
    for kind in plan.kinds.iter().copied().filter(|kind| pair.takes(*kind)) {
        if kind == Kind::Pyrdp && path::pyrdp_program().is_none() {
            eprintln!("pyrdp is not installed (tests/install.sh bench): not compared");
            continue;
        }
        let path = Path::start_to(kind, lab.goal(), plan)?;
        if path.process().is_some() {
            path.wait().with_context(|| format!("{kind}"))?;
        }
        paths.push(path);
    }
    let mut all: Vec<_> = paths
        .iter()
        .map(|path| Figures {
            kind: path.kind,
            set_ups: Vec::new(),
            loads: Vec::new(),
        })
        .collect();
    // The first one warms up.
    let set_ups = match pair {
        Pair::Egfx => plan.real_set_ups + 1,
        // This client does not say when its session is active.
        Pair::SurfaceCommands => 0,
    };
    for round in 0..set_ups {
        for (path, figures) in paths.iter().zip(&mut all) {
            eprintln!("set-up {round} of {}: {}", plan.real_set_ups, path.kind);
            let start = clock::now();
            let client = Client::start(&lab, path, path.address())?;
            let active = client.wait().with_context(|| format!("{}", path.kind))?;
            if round > 0 {
                figures.set_ups.push(active - start);
            }
        }
    }
    lab.animate()?;
    for round in 1..=plan.real_rounds {
        for (path, figures) in paths.iter().zip(&mut all) {
            eprintln!("picture {round} of {}: {}", plan.real_rounds, path.kind);
            let load = load(&lab, path, plan.real_time)
                .with_context(|| format!("{}: {}", path.kind, path.log()))?;
            figures.loads.push(load);
        }
    }
    print(pair, plan, &all);
    Ok(to_json(&all))
}

fn load(lab: &Lab, path: &Path, time: Duration) -> anyhow::Result<Load> {
    let counter = Counter::start(path.address())?;
    let client = Client::start(lab, path, counter.address)?;
    wait_for("a picture", || {
        client.check()?;
        Ok((counter.bytes() > 1_000_000).then_some(()))
    })?;
    thread::sleep(SETTLE);
    let cpu = || path.process().map_or(Ok(Duration::ZERO), system::cpu);
    let (bytes, used, start) = (counter.bytes(), cpu()?, clock::now());
    thread::sleep(time);
    let bytes = (counter.bytes() - bytes) as f64;
    let used = cpu()?.saturating_sub(used).as_secs_f64();
    let seconds = start.elapsed().as_secs_f64();
    drop(client);
    if bytes < 1e5 {
        bail!("no picture: {bytes} bytes in {seconds:.1} s");
    }
    Ok(Load {
        bytes_per_s: bytes / seconds,
        cpu: used / seconds,
        cpu_s_per_gb: used / (bytes / 1e9),
    })
}

impl Figures {
    fn set_up(&self) -> Duration {
        let mut times = self.set_ups.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    fn median(&self, figure: impl Fn(&Load) -> f64) -> f64 {
        median(self.loads.iter().map(figure).collect())
    }

    /// Median of the ratios to another path's set-up in the same round.
    fn set_up_ratio(&self, base: &Self) -> f64 {
        let pairs = self.set_ups.iter().zip(&base.set_ups);
        let ratio = |(own, base): (&Duration, &Duration)| own.as_secs_f64() / base.as_secs_f64();
        median(pairs.map(ratio).collect())
    }
}

fn print(pair: Pair, plan: &Plan, all: &[Figures]) {
    println!(
        "Sessions of {} {} with {}: medians of {} set-ups and of {} pictures of {} s.",
        pair.client(),
        pair.codec(),
        pair.target(),
        plan.real_set_ups,
        plan.real_rounds,
        plan.real_time.as_secs()
    );
    let direct = all.iter().find(|figures| figures.kind == Kind::TlsDirect);
    let row = |name: &str, cell: &dyn Fn(&Figures) -> String| {
        print!("{name:32}");
        for figures in all {
            print!("{:>24}", cell(figures));
        }
        println!();
    };
    row("", &|figures| figures.kind.to_string());
    let set_up = |figures: &Figures| {
        let own = number(micros(figures.set_up()) / 1e3);
        match direct {
            Some(direct) if direct.kind != figures.kind => {
                format!("{own} ({:.2})", figures.set_up_ratio(direct))
            }
            Some(_) | None => own,
        }
    };
    if all.iter().any(|figures| !figures.set_ups.is_empty()) {
        row("process start to active, ms", &set_up);
    }
    row("picture, MB/s", &|figures| {
        number(figures.median(|load| load.bytes_per_s) / 1e6)
    });
    let in_between = |figures: &Figures, text: String| {
        if figures.kind == Kind::TlsDirect {
            "-".to_owned()
        } else {
            text
        }
    };
    row("CPU of the picture, % of a core", &|figures| {
        let share = figures.median(|load| load.cpu) * 100.0;
        in_between(figures, format!("{share:.1}"))
    });
    row("CPU s/GB", &|figures| {
        let cost = figures.median(|load| load.cpu_s_per_gb);
        in_between(figures, format!("{cost:.2}"))
    });
    let cost = |kind| {
        let figures = all.iter().find(|figures| figures.kind == kind)?;
        Some(figures.median(|load| load.cpu_s_per_gb))
    };
    for other in [Kind::FreerdpProxy, Kind::Pyrdp] {
        if let (Some(own), Some(cost)) = (cost(Kind::JetwayInspected), cost(other)) {
            let share = own / cost;
            println!("CPU s/GB of jetway-inspected as a share of {other}'s: {share:.3}");
        }
    }
}

fn to_json(all: &[Figures]) -> Value {
    let list = |figures: &Figures, figure: fn(&Load) -> f64| -> Vec<f64> {
        figures.loads.iter().map(figure).collect()
    };
    all.iter()
        .map(|figures| {
            let set_ups: Vec<_> = figures
                .set_ups
                .iter()
                .map(|time| micros(*time) / 1e3)
                .collect();
            let value = json!({
                "process start to active, ms": set_ups,
                "bytes/s": list(figures, |load| load.bytes_per_s),
                "CPU share of a core": list(figures, |load| load.cpu),
                "CPU s/GB": list(figures, |load| load.cpu_s_per_gb),
            });
            (figures.kind.to_string(), value)
        })
        .collect::<Map<_, _>>()
        .into()
}

// ---- the programs ----

/// The displays and the target; fields are dropped in order.
struct Lab {
    pair: Pair,
    animated: std::cell::OnceCell<TerminateOnDrop>,
    shadow: TerminateOnDrop,
    target: Display,
    client: Display,
    port: u16,
    folder: TempDir,
}

struct Display {
    name: String,
    _server: TerminateOnDrop,
}

impl Display {
    fn start(folder: &TempDir, name: &str) -> anyhow::Result<Self> {
        let numbered = folder.path().join(format!("display-{name}"));
        let server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1024x768x24"])
            .args(["-nolisten", "tcp", "-ac", "-noreset"])
            .stdin(Stdio::null())
            .stdout(File::create(&numbered)?)
            .stderr(Stdio::null())
            .spawn()
            .context("Xvfb")?;
        let server = TerminateOnDrop(server);
        let number = wait_for("a display", || {
            let text = fs::read_to_string(&numbered)?;
            Ok(text.strip_suffix('\n').map(str::to_owned))
        })?;
        Ok(Self {
            name: format!(":{number}"),
            _server: server,
        })
    }
}

impl Lab {
    fn start(pair: Pair) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (target, client) = (
            Display::start(&folder, "target")?,
            Display::start(&folder, "client")?,
        );
        let home = folder.path().join("home");
        fs::create_dir(&home)?;
        let hash = Command::new("winpr-hash")
            .args(["-u", USER, "-p", PASSWORD, "-f", "sam"])
            .output()?;
        let sam = folder.path().join("SAM");
        fs::write(&sam, hash.stdout)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let log = File::create(folder.path().join("shadow.log"))?;
        let mut shadow = Command::new(pair.target());
        shadow
            .arg(format!("/port:{port}"))
            .arg("/bind-address:127.0.0.1");
        match pair {
            Pair::Egfx => shadow.args([&format!("/sam-file:{}", sam.display()), "/sec:nla"]),
            // Its users log on by NLA or not at all.
            Pair::SurfaceCommands => shadow.args(["/sec:tls", "-auth"]),
        };
        let shadow = shadow
            .env("DISPLAY", &target.name)
            .env("HOME", &home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(pair.target())?;
        let shadow = TerminateOnDrop(shadow);
        wait_for("the target", || Ok(is_listening(port)?.then_some(())))?;
        Ok(Self {
            pair,
            animated: std::cell::OnceCell::new(),
            shadow,
            target,
            client,
            port,
            folder,
        })
    }

    fn goal(&self) -> Goal {
        Goal {
            port: self.port,
            process: self.shadow.0.id(),
            logon: Some((USER.to_owned(), PASSWORD.to_owned())),
        }
    }

    /// Lets the target's picture move until the end.
    fn animate(&self) -> anyhow::Result<()> {
        let script = self.folder.path().join("scroll.sh");
        // About 30 times a second as much text as half a screen.
        let text =
            "#!/bin/sh\nwhile :; do head -c 6000 /dev/urandom | base64 -w 0; sleep 0.03; done\n";
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let terminal = Command::new("xterm")
            .args(["-geometry", "160x55+0+0", "-e"])
            .arg(script)
            .env("DISPLAY", &self.target.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("xterm")?;
        let _ = self.animated.set(TerminateOnDrop(terminal));
        Ok(())
    }
}

struct Client {
    _process: TerminateOnDrop,
    /// That its session is active, or the last it said.
    news: mpsc::Receiver<Result<Instant, String>>,
}

impl Client {
    fn start(lab: &Lab, path: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", lab.pair.client(), &format!("/v:{address}")])
            .args([format!("/u:{USER}"), format!("/p:{PASSWORD}")])
            .args(["/cert:ignore", "/size:1024x768", lab.pair.codec()])
            .args(["-clipboard", "/log-filters:com.freerdp.core.rdp:DEBUG"]);
        if let Some(token) = path.pcb()? {
            command.arg(format!("/pcb:{token}"));
        }
        let mut process = command
            .env("DISPLAY", &lab.client.name)
            .env("HOME", lab.folder.path().join("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(lab.pair.client())?;
        let output = process.stdout.take().context("no output")?;
        let process = TerminateOnDrop(process);
        let (sender, news) = mpsc::channel();
        thread::spawn(move || {
            let mut last = String::new();
            // Read to the end, or the client would have nowhere to print to.
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                if line.contains("--> CONNECTION_STATE_ACTIVE") {
                    let _ = sender.send(Ok(clock::now()));
                }
                last = line;
            }
            let _ = sender.send(Err(last));
        });
        Ok(Self {
            _process: process,
            news,
        })
    }

    /// When its session was active.
    fn wait(&self) -> anyhow::Result<Instant> {
        match self.news.recv_timeout(PATIENCE) {
            Ok(Ok(active)) => Ok(active),
            Ok(Err(last)) => bail!("the client ended: {last}"),
            Err(_) => bail!("no session within {PATIENCE:?}"),
        }
    }

    /// An error where it has ended.
    fn check(&self) -> anyhow::Result<()> {
        match self.news.try_recv() {
            Ok(Err(last)) => bail!("the client ended: {last}"),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

/// Counts what clients are sent: the same hop before every path.
struct Counter {
    address: SocketAddr,
    to_client: Arc<AtomicU64>,
}

impl Counter {
    fn start(onward: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let to_client = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&to_client);
        thread::spawn(move || {
            // One session; FreeRDP connects again when the target wants another security.
            while let Ok((client, _)) = listener.accept() {
                let Ok(target) = TcpStream::connect(onward) else {
                    break;
                };
                let _ = client.set_nodelay(true);
                let _ = target.set_nodelay(true);
                let (Ok(from), Ok(to)) = (target.try_clone(), client.try_clone()) else {
                    break;
                };
                let count = Arc::clone(&count);
                thread::spawn(move || pass(from, to, &count));
                thread::spawn(move || pass(client, target, &AtomicU64::new(0)));
            }
        });
        Ok(Self { address, to_client })
    }

    fn bytes(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut block = vec![0; 256 * 1024];
    while let Ok(read @ 1..) = from.read(&mut block) {
        if to.write_all(&block[..read]).is_err() {
            break;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn wait_for<T>(
    what: &str,
    mut ready: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = clock::now();
    while start.elapsed() < PATIENCE {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("{what} did not come up within {PATIENCE:?}")
}

/// Without connecting: a target would log a client that went away.
fn is_listening(port: u16) -> anyhow::Result<bool> {
    let table = fs::read_to_string("/proc/net/tcp")?;
    let local = format!(":{port:04X}");
    Ok(table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_local = fields
            .next()
            .is_some_and(|address| address.ends_with(&local));
        is_local && fields.nth(1) == Some("0A")
    }))
}
