//! Figures as a table and as JSON: medians over the rounds, ratios to the direct path of the same round.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Plan;
use crate::load::{BulkFigures, IdleFigures, RateFigures, RoundTripFigures};
use crate::path::Kind;

/// One turn of one path.
pub(crate) struct Round {
    pub(crate) up: BulkFigures,
    pub(crate) down: BulkFigures,
    pub(crate) round_trip: RoundTripFigures,
    pub(crate) write_write_read: RoundTripFigures,
    pub(crate) rate: RateFigures,
}

/// All turns of one path.
pub(crate) struct Figures {
    pub(crate) kind: Kind,
    pub(crate) rounds: Vec<Round>,
    pub(crate) idle: Option<IdleFigures>,
}

impl Figures {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            rounds: Vec::new(),
            idle: None,
        }
    }

    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect())
    }

    /// Median of the ratios to the direct path in the same round; none where that was not measured.
    fn ratio(&self, direct: Option<&Self>, figure: impl Fn(&Round) -> f64) -> Option<f64> {
        let direct = direct?;
        let pairs = self.rounds.iter().zip(&direct.rounds);
        Some(median(
            pairs
                .map(|(own, direct)| figure(own) / figure(direct))
                .collect(),
        ))
    }

    fn total(&self, figure: impl Fn(&Round) -> u64) -> u64 {
        self.rounds.iter().map(figure).sum()
    }
}

type Figure = (&'static str, fn(&Round) -> f64);

/// Name with unit, and where it is found.
const FIGURES: [Figure; 9] = [
    ("client to target, Gbit/s", |r| gbit(&r.up)),
    ("target to client, Gbit/s", |r| gbit(&r.down)),
    ("CPU s/GB, client to target", |r| r.up.cpu_s_per_gb),
    ("CPU s/GB, target to client", |r| r.down.cpu_s_per_gb),
    ("64 B round trip p50, us", |r| micros(r.round_trip.p50)),
    ("64 B round trip p99, us", |r| micros(r.round_trip.p99)),
    ("write-write-read p50, us", |r| {
        micros(r.write_write_read.p50)
    }),
    ("write-write-read p99, us", |r| {
        micros(r.write_write_read.p99)
    }),
    ("connections/s", |r| r.rate.per_s),
];

pub(crate) fn print(plan: &Plan, all: &[Figures]) {
    let direct = all.iter().find(|figures| figures.kind == Kind::Direct);
    println!(
        "Medians of {} interleaved rounds; in parentheses the ratio to direct in the same round.",
        plan.rounds
    );
    print!("{:28}", "");
    for figures in all {
        print!("{:>18}", figures.kind.to_string());
    }
    println!();
    for (name, figure) in FIGURES {
        print!("{name:28}");
        for figures in all {
            let value = figures.median(figure);
            let shown = match figures.ratio(direct, figure) {
                _ if name.starts_with("CPU") && figures.kind == Kind::Direct => "-".to_owned(),
                _ if name.starts_with("CPU") => format!("{value:.3}"),
                Some(ratio) if figures.kind != Kind::Direct => {
                    format!("{} ({ratio:.2})", number(value))
                }
                Some(_) | None => number(value),
            };
            print!("{shown:>18}");
        }
        println!();
    }
    print!("{:28}", "stalls of 35 ms and more");
    for figures in all {
        print!("{:>18}", figures.total(stalls));
    }
    println!();
    print!("{:28}", "failed connections");
    for figures in all {
        print!("{:>18}", figures.total(|round| round.rate.failed));
    }
    println!();
    print!("{:28}", "idle session, KiB");
    for figures in all {
        let idle = figures.idle.map(|idle| idle.bytes_each as f64 / 1024.0);
        print!(
            "{:>18}",
            idle.map_or("-".to_owned(), |kib| format!("{kib:.1}"))
        );
    }
    println!();
    print!("{:28}", "CPU of idle sessions, ms/s");
    for figures in all {
        let idle = figures.idle.map(|idle| idle.cpu.as_millis());
        print!("{:>18}", idle.map_or("-".to_owned(), |ms| ms.to_string()));
    }
    println!();
    let foreign = median(
        all.iter()
            .flat_map(|figures| &figures.rounds)
            .flat_map(|round| [round.up.foreign, round.down.foreign])
            .collect(),
    );
    println!(
        "Other processes took {:.0} % of the machine during bulk (median).",
        foreign * 100.0
    );
}

pub(crate) fn json(plan: &Plan, all: &[Figures], inspected: &Value) -> String {
    let direct = all.iter().find(|figures| figures.kind == Kind::Direct);
    let path = |figures: &Figures| {
        let mut values = serde_json::Map::new();
        for (name, figure) in FIGURES {
            let rounds: Vec<f64> = figures.rounds.iter().map(figure).collect();
            let value = json!({
                "median": figures.median(figure),
                "ratio": figures.ratio(direct, figure),
                "rounds": rounds,
            });
            values.insert(name.to_owned(), value);
        }
        values.insert("stalls".to_owned(), figures.total(stalls).into());
        let failed = figures.total(|round| round.rate.failed);
        values.insert("failed connections".to_owned(), failed.into());
        let foreign: Vec<f64> = figures
            .rounds
            .iter()
            .flat_map(|round| [round.up.foreign, round.down.foreign])
            .collect();
        values.insert("foreign share of CPU".to_owned(), json!(foreign));
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
    let paths: serde_json::Map<_, _> = all
        .iter()
        .map(|figures| (figures.kind.to_string(), path(figures)))
        .collect();
    let all = json!({ "rounds": plan.rounds, "paths": paths, "inspected": inspected });
    format!("{all:#}\n")
}

fn stalls(round: &Round) -> u64 {
    (round.round_trip.stalls + round.write_write_read.stalls) as u64
}

pub(crate) fn gbit(figures: &BulkFigures) -> f64 {
    figures.bytes_per_s * 8.0 / 1e9
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn number(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
