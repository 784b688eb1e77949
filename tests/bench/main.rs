//! What the gateway costs: the same loads through every path, in turns, in one run, as ratios to direct loopback; and
//! the same for the sessions that it stands inside of.
//!
//! See `README.md` beside this file for the method and for what the figures do not say.

#![expect(
    clippy::as_conversions,
    reason = "figures for people, not sizes of buffers"
)]
#![expect(clippy::print_stdout, reason = "a program that prints a table")]
#![expect(clippy::print_stderr, reason = "and its progress")]

mod freerdp;
mod inspected;
mod load;
mod path;
mod peer;
mod rdp;
mod rendezvous;
mod report;
mod scale;
mod system;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use crate::load::{Bulk, RoundTrips};
use crate::path::{Kind, Path};
use crate::report::{Figures, Round};
use crate::target::Target;

/// What to measure and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) rounds: usize,
    pub(crate) bulk: Duration,
    pub(crate) round_trips: usize,
    pub(crate) rate: Duration,
    /// Fresh tokens for each round of the connection rate; it ends early when they are used up.
    pub(crate) tokens: usize,
    pub(crate) idle_sessions: usize,
    /// Inspected sessions set up in one round.
    pub(crate) set_ups: usize,
    pub(crate) inspected_idle: usize,
    /// Sessions of real programs.
    pub(crate) real_set_ups: usize,
    pub(crate) real_rounds: usize,
    pub(crate) real_time: Duration,
    /// Pairs that meet at the gateway, instead of anything else.
    pub(crate) rendezvous: bool,
    /// Acceptors that wait, and pairs at the same time; none: not measured.
    pub(crate) waiting: usize,
    pub(crate) pairs: usize,
    /// Of the ways between pairs only these.
    pub(crate) ways: Option<String>,
    pub(crate) jetway: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == path::RELAY_ARGUMENT => return path::relay_process(rest),
        Some((first, rest)) if first == rendezvous::RELAY_ARGUMENT => {
            return rendezvous::relay_process(rest);
        }
        Some((first, _)) if first == target::TARGET_ARGUMENT => return target::target_process(),
        Some(_) | None => {}
    }
    let mut plan = Plan::from_arguments()?;
    system::raise_descriptor_limit(100_000)?;
    // A session takes two descriptors of whatever stands in between; the rest is for everything else.
    let allowed = usize::try_from(system::descriptor_limit().saturating_sub(800) / 2)?;
    if plan.idle_sessions > allowed {
        let wanted = plan.idle_sessions;
        eprintln!("the limit on descriptors allows {allowed} idle sessions of {wanted}");
        plan.idle_sessions = allowed;
    }
    if plan.rendezvous {
        let figures = json!({
            "pairs": rendezvous::run(&plan)?,
            "scale": scale::run(&plan)?,
        });
        if let Some(json) = &plan.json {
            std::fs::write(json, format!("{figures:#}\n"))
                .with_context(|| json.display().to_string())?;
        }
        return Ok(());
    }
    let target = Target::start()?;
    let opaque = measure_opaque(&plan, &target)?;
    let inspected = json!({
        "small": inspected::run(&plan, &target)?,
        "real": freerdp::run(&plan)?,
    });
    if let Some(json) = &plan.json {
        std::fs::write(json, report::json(&plan, &opaque, &inspected))
            .with_context(|| json.display().to_string())?;
    }
    Ok(())
}

/// The paths that move bytes.
fn measure_opaque(plan: &Plan, target: &Target) -> anyhow::Result<Vec<Figures>> {
    let mut paths = Vec::new();
    for kind in plan.kinds.iter().filter(|kind| !kind.is_inspected()) {
        let path = Path::start(*kind, target, plan).with_context(|| format!("{kind}"))?;
        path.warm_up().with_context(|| format!("{kind}"))?;
        paths.push(path);
    }
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let mut figures: Vec<_> = paths.iter().map(|path| Figures::new(path.kind)).collect();
    for round in 1..=plan.rounds {
        for (path, figures) in paths.iter().zip(&mut figures) {
            eprintln!("round {round} of {}: {}", plan.rounds, path.kind);
            let one = measure(path, plan).with_context(|| format!("{}", path.kind))?;
            figures.rounds.push(one);
        }
    }
    for path in &paths {
        path.check_descriptors()?;
    }
    drop(paths);
    for figures in &mut figures {
        if plan.idle_sessions > 0 && figures.kind.has_idle_cost() {
            eprintln!("{} idle sessions: {}", plan.idle_sessions, figures.kind);
            // A process of its own: memory that earlier sessions left behind would hide what these take.
            let path = Path::start(figures.kind, target, plan)?;
            path.warm_up()?;
            figures.idle = Some(load::idle(&path, plan.idle_sessions)?);
            path.check_descriptors()?;
        }
    }
    report::print(plan, &figures);
    Ok(figures)
}

fn measure(path: &Path, plan: &Plan) -> anyhow::Result<Round> {
    Ok(Round {
        up: load::bulk(path, Bulk::Up, plan.bulk)?,
        down: load::bulk(path, Bulk::Down, plan.bulk)?,
        round_trip: load::round_trips(path, RoundTrips::Echo, plan.round_trips)?,
        write_write_read: load::round_trips(path, RoundTrips::WriteWriteRead, plan.round_trips)?,
        rate: load::connection_rate(path, plan.rate, plan.tokens)?,
    })
}

impl Plan {
    fn from_arguments() -> anyhow::Result<Self> {
        let mut plan = Self {
            kinds: vec![
                Kind::Direct,
                Kind::Haproxy,
                Kind::HaproxySplice,
                Kind::Jetway,
            ],
            rounds: 5,
            bulk: Duration::from_secs(2),
            round_trips: 20_000,
            rate: Duration::from_secs(2),
            tokens: 20_000,
            idle_sessions: 10_000,
            set_ups: 100,
            inspected_idle: 500,
            real_set_ups: 7,
            real_rounds: 3,
            real_time: Duration::from_secs(8),
            rendezvous: false,
            waiting: 5000,
            pairs: 2000,
            ways: None,
            jetway: Some(env!("CARGO_BIN_EXE_jetway").into()),
            json: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--quick" => {
                    plan.rounds = 1;
                    plan.bulk = Duration::from_millis(200);
                    plan.round_trips = 200;
                    plan.rate = Duration::from_millis(200);
                    plan.tokens = 1000;
                    plan.idle_sessions = 200;
                    plan.waiting = 100;
                    plan.pairs = 50;
                    plan.set_ups = 10;
                    plan.inspected_idle = 20;
                    plan.real_set_ups = 1;
                    plan.real_rounds = 1;
                    plan.real_time = Duration::from_secs(1);
                }
                "--paths" => {
                    plan.kinds = value()?
                        .split(',')
                        .map(str::parse)
                        .collect::<Result<_, _>>()?;
                }
                "--inspected" => {
                    plan.kinds = vec![
                        Kind::TlsDirect,
                        Kind::HaproxyTls,
                        Kind::FreerdpProxy,
                        Kind::Pyrdp,
                        Kind::JetwayInspected,
                    ];
                }
                "--rendezvous" => plan.rendezvous = true,
                "--waiting" => plan.waiting = value()?.parse()?,
                "--pairs" => plan.pairs = value()?.parse()?,
                "--ways" => plan.ways = Some(value()?),
                "--rounds" => plan.rounds = value()?.parse()?,
                "--bulk-ms" => plan.bulk = Duration::from_millis(value()?.parse()?),
                "--rate-ms" => plan.rate = Duration::from_millis(value()?.parse()?),
                "--round-trips" => plan.round_trips = value()?.parse()?,
                "--idle" => plan.idle_sessions = value()?.parse()?,
                "--set-ups" => plan.set_ups = value()?.parse()?,
                "--real-set-ups" => plan.real_set_ups = value()?.parse()?,
                "--real-rounds" => plan.real_rounds = value()?.parse()?,
                "--inspected-idle" => plan.inspected_idle = value()?.parse()?,
                "--jetway" => plan.jetway = Some(value()?.into()),
                "--json" => plan.json = Some(value()?.into()),
                // `cargo bench` adds it.
                "--bench" => {}
                other => bail!("unknown argument {other}; see tests/bench/README.md"),
            }
        }
        if plan.rounds == 0 || plan.set_ups == 0 {
            bail!("--rounds and --set-ups need at least 1");
        }
        // A path that is not installed is left out by name, not by surprise.
        if !system::is_installed("haproxy") {
            eprintln!("haproxy is not installed: measuring without it");
            plan.kinds.retain(|kind| {
                !matches!(kind, Kind::Haproxy | Kind::HaproxySplice | Kind::HaproxyTls)
            });
        }
        Ok(plan)
    }
}
