//! What an inspected session costs: RDP over TLS through every path, in turns, as ratios to direct TLS and to HAProxy
//! between two TLS connections.

use std::time::Duration;

use anyhow::Context;
use jetway::clock;
use serde_json::{Map, Value, json};

use crate::Plan;
use crate::load::{BulkFigures, IdleFigures, RoundTripFigures, Usage};
use crate::path::{Kind, Path};
use crate::rdp::Wish;
use crate::report::{gbit, median, micros, number};
use crate::system;
use crate::target::Target;

/// One turn of one path.
struct Round {
    graphics: BulkFigures,
    egfx: BulkFigures,
    file: BulkFigures,
    pointer: RoundTripFigures,
    set_up: SetUpFigures,
}

/// Sessions opened one after the other.
struct SetUpFigures {
    p50: Duration,
    p99: Duration,
    /// CPU of the process in between for one.
    cpu: Duration,
}

/// All turns of one path.
struct Figures {
    kind: Kind,
    rounds: Vec<Round>,
    idle: Option<IdleFigures>,
}

/// Measures the inspected paths of the plan, prints a table, and gives the figures for the JSON.
pub(crate) fn run(plan: &Plan, target: &Target) -> anyhow::Result<Value> {
    let mut all = Vec::new();
    let mut paths = Vec::new();
    for kind in &plan.kinds {
        if kind.takes_small_sessions() {
            let path = Path::start(*kind, target, plan).with_context(|| format!("{kind}"))?;
            warm_up(&path).with_context(|| format!("{kind}"))?;
            paths.push(path);
            all.push(Figures {
                kind: *kind,
                rounds: Vec::new(),
                idle: None,
            });
        }
    }
    for round in 1..=plan.rounds {
        for (path, figures) in paths.iter().zip(&mut all) {
            eprintln!("round {round} of {}: {}", plan.rounds, path.kind);
            let one = measure(path, plan).with_context(|| format!("{}", path.kind))?;
            figures.rounds.push(one);
        }
    }
    for path in &paths {
        path.check_descriptors()?;
    }
    drop(paths);
    for figures in &mut all {
        if plan.inspected_idle > 0 && figures.kind.has_idle_cost() {
            eprintln!("{} idle sessions: {}", plan.inspected_idle, figures.kind);
            let path = Path::start(figures.kind, target, plan)?;
            warm_up(&path)?;
            figures.idle = Some(idle(&path, plan.inspected_idle)?);
            path.check_descriptors()?;
        }
    }
    if !all.is_empty() {
        print(plan, &all);
    }
    Ok(to_json(&all))
}

fn warm_up(path: &Path) -> anyhow::Result<()> {
    path.wait()?;
    let mut session = path.open_session(&path.preamble()?)?;
    session.wish(Wish::Pointer)?;
    session.move_pointer()
}

fn measure(path: &Path, plan: &Plan) -> anyhow::Result<Round> {
    Ok(Round {
        graphics: to_client(path, Wish::Graphics, plan.bulk).context("graphics")?,
        egfx: to_client(path, Wish::Egfx, plan.bulk).context("EGFX")?,
        file: file(path, plan.bulk).context("file")?,
        pointer: pointer(path, plan.round_trips / 4).context("pointer")?,
        set_up: set_up(path, plan.set_ups).context("set-up")?,
    })
}

/// Graphics as fast as they come.
fn to_client(path: &Path, wish: Wish, time: Duration) -> anyhow::Result<BulkFigures> {
    let mut session = path.open_session(&path.preamble()?)?;
    session.wish(wish)?;
    // Buffers are full by then.
    let settled = clock::now();
    while settled.elapsed() < time / 10 {
        session.read_some()?;
    }
    let before = Usage::now(path)?;
    let start = clock::now();
    let mut bytes = 0_u64;
    while start.elapsed() < time {
        match session.read_some()? {
            0 => anyhow::bail!("the target stopped"),
            count => bytes += count as u64,
        }
    }
    bulk_figures(bytes, start.elapsed(), path, &before)
}

/// The contents of a file of the client.
fn file(path: &Path, time: Duration) -> anyhow::Result<BulkFigures> {
    let mut session = path.open_session(&path.preamble()?)?;
    let before = Usage::now(path)?;
    let start = clock::now();
    let bytes = session.send_file(|| start.elapsed() < time)?;
    bulk_figures(bytes, start.elapsed(), path, &before)
}

fn bulk_figures(
    bytes: u64,
    time: Duration,
    path: &Path,
    before: &Usage,
) -> anyhow::Result<BulkFigures> {
    let used = Usage::now(path)?.since(before);
    Ok(BulkFigures {
        bytes_per_s: bytes as f64 / time.as_secs_f64(),
        cpu_s_per_gb: used.process.as_secs_f64() / (bytes as f64 / 1e9),
        foreign: used.foreign(),
    })
}

/// The pointer there and back.
fn pointer(path: &Path, count: usize) -> anyhow::Result<RoundTripFigures> {
    let mut session = path.open_session(&path.preamble()?)?;
    session.wish(Wish::Pointer)?;
    let mut times = Vec::with_capacity(count);
    for round in 0..count + count / 10 {
        let start = clock::now();
        session.move_pointer()?;
        if round >= count / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    Ok(RoundTripFigures {
        p50: percentile(&times, 50)?,
        p99: percentile(&times, 99)?,
        stalls: 0,
    })
}

fn set_up(path: &Path, count: usize) -> anyhow::Result<SetUpFigures> {
    // Tokens are made before the clock starts.
    let preambles = (0..count)
        .map(|_| path.preamble())
        .collect::<Result<Vec<_>, _>>()?;
    let mut times = Vec::with_capacity(count);
    let before = Usage::now(path)?;
    for preamble in &preambles {
        let start = clock::now();
        let session = path.open_session(preamble)?;
        times.push(start.elapsed());
        drop(session);
    }
    let used = Usage::now(path)?.since(&before);
    times.sort_unstable();
    Ok(SetUpFigures {
        p50: percentile(&times, 50)?,
        p99: percentile(&times, 99)?,
        cpu: used.process / u32::try_from(count)?,
    })
}

/// Opens many sessions, lets them rest, and looks at what the process in between holds.
fn idle(path: &Path, sessions: usize) -> anyhow::Result<IdleFigures> {
    let pid = path.process().context("nothing in between")?;
    let before = system::resident_bytes(pid)?;
    let mut held = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut session = path.open_session(&path.preamble()?)?;
        session.wish(Wish::Pointer)?;
        // So that each has moved something both ways.
        session.move_pointer()?;
        held.push(session);
    }
    std::thread::sleep(Duration::from_secs(2));
    let after = system::resident_bytes(pid)?;
    let cpu = system::cpu(pid)?;
    std::thread::sleep(Duration::from_secs(1));
    let cpu = system::cpu(pid)?.saturating_sub(cpu);
    for session in &mut held {
        session.move_pointer().context("an idle session is gone")?;
    }
    Ok(IdleFigures {
        sessions,
        bytes_each: after.saturating_sub(before) / sessions.max(1) as u64,
        cpu,
    })
}

fn percentile(sorted: &[Duration], share: usize) -> anyhow::Result<Duration> {
    let time = sorted.get(sorted.len() * share / 100).copied();
    time.context("nothing was measured")
}

type Figure = (&'static str, fn(&Round) -> f64);

/// Name with unit, and where it is found.
const FIGURES: [Figure; 11] = [
    ("graphics, Gbit/s", |r| gbit(&r.graphics)),
    ("EGFX, Gbit/s", |r| gbit(&r.egfx)),
    ("file to target, Gbit/s", |r| gbit(&r.file)),
    ("CPU s/GB, graphics", |r| r.graphics.cpu_s_per_gb),
    ("CPU s/GB, EGFX", |r| r.egfx.cpu_s_per_gb),
    ("CPU s/GB, file to target", |r| r.file.cpu_s_per_gb),
    ("pointer there and back p50, us", |r| micros(r.pointer.p50)),
    ("pointer there and back p99, us", |r| micros(r.pointer.p99)),
    ("session set-up p50, us", |r| micros(r.set_up.p50)),
    ("session set-up p99, us", |r| micros(r.set_up.p99)),
    ("CPU of a set-up, us", |r| micros(r.set_up.cpu)),
];

/// What a path's figures are divided by.
const BASES: [Kind; 2] = [Kind::TlsDirect, Kind::HaproxyTls];

impl Figures {
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect())
    }

    /// Median of the ratios to another path in the same round.
    fn ratio(&self, base: &Self, figure: impl Fn(&Round) -> f64) -> f64 {
        let pairs = self.rounds.iter().zip(&base.rounds);
        median(
            pairs
                .map(|(own, base)| figure(own) / figure(base))
                .collect(),
        )
    }

    /// The ratios to those bases that were measured, up to this path itself.
    fn ratios(&self, all: &[Self], figure: fn(&Round) -> f64) -> Vec<(Kind, f64)> {
        BASES
            .into_iter()
            .take_while(|base| *base != self.kind)
            .filter_map(|base| all.iter().find(|figures| figures.kind == base))
            .map(|base| (base.kind, self.ratio(base, figure)))
            .filter(|(_, ratio)| ratio.is_finite())
            .collect()
    }
}

fn print(plan: &Plan, all: &[Figures]) {
    println!(
        "Inspected sessions: medians of {} interleaved rounds; in parentheses the ratios to tls-direct and to \
         haproxy-tls in the same round.",
        plan.rounds
    );
    print!("{:32}", "");
    for figures in all {
        print!("{:>24}", figures.kind.to_string());
    }
    println!();
    for (name, figure) in FIGURES {
        print!("{name:32}");
        for figures in all {
            let value = figures.median(figure);
            let ratios: Vec<_> = figures
                .ratios(all, figure)
                .iter()
                .map(|(_, ratio)| format!("{ratio:.2}"))
                .collect();
            let value = match name.starts_with("CPU s") {
                true => format!("{value:.3}"),
                false => number(value),
            };
            let shown = match ratios.is_empty() {
                true => value,
                false => format!("{value} ({})", ratios.join(", ")),
            };
            print!("{shown:>24}");
        }
        println!();
    }
    print!("{:32}", "idle session, KiB");
    for figures in all {
        let idle = figures.idle.map(|idle| idle.bytes_each as f64 / 1024.0);
        let shown = idle.map_or("-".to_owned(), |kib| format!("{kib:.1}"));
        print!("{shown:>24}");
    }
    println!();
    print!("{:32}", "CPU of idle sessions, ms/s");
    for figures in all {
        let idle = figures.idle.map(|idle| idle.cpu.as_millis());
        let shown = idle.map_or("-".to_owned(), |ms| ms.to_string());
        print!("{shown:>24}");
    }
    println!();
    let foreign = all
        .iter()
        .flat_map(|figures| &figures.rounds)
        .flat_map(|round| {
            [
                round.graphics.foreign,
                round.egfx.foreign,
                round.file.foreign,
            ]
        })
        .collect();
    println!(
        "Other processes took {:.0} % of the machine during bulk (median).",
        median(foreign) * 100.0
    );
}

fn to_json(all: &[Figures]) -> Value {
    let path = |figures: &Figures| {
        let mut values = Map::new();
        for (name, figure) in FIGURES {
            let rounds: Vec<f64> = figures.rounds.iter().map(figure).collect();
            let mut value = json!({ "median": figures.median(figure), "rounds": rounds });
            for (base, ratio) in figures.ratios(all, figure) {
                value[format!("ratio to {base}")] = ratio.into();
            }
            values.insert(name.to_owned(), value);
        }
        let idle = figures.idle.map(|idle| {
            json!({
                "sessions": idle.sessions,
                "bytes each": idle.bytes_each,
                "CPU ms/s": idle.cpu.as_millis() as u64,
            })
        });
        values.insert("idle".to_owned(), idle.unwrap_or(Value::Null));
        Value::Object(values)
    };
    all.iter()
        .map(|figures| (figures.kind.to_string(), path(figures)))
        .collect::<Map<_, _>>()
        .into()
}
