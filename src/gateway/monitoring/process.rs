//! The process as its system sees it, under the names that Prometheus has for that.

use std::fs;

use jetway_metrics::Readings;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Adds what the system tells of this process; nothing where `/proc` is not there.
pub(super) fn read(readings: &mut Readings) {
    if let Some(cpu_s) = times().map(|times| times.cpu_s) {
        let help = "CPU, user and system";
        readings.counter("process_cpu_seconds", help, &[], cpu_s);
    }
    if let Some(started) = started_at() {
        let help = "Start of the process";
        readings.gauge("process_start_time_seconds", help, &[], started);
    }
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory";
        readings.gauge("process_resident_memory_bytes", help, &[], bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let help = "Open files and sockets";
        readings.gauge("process_open_fds", help, &[], count(open.count()));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        let help = "How many files and sockets may be open";
        readings.gauge("process_max_fds", help, &[], whole(most));
    }
}

/// Of `proc_pid_stat(5)`, in seconds.
struct Times {
    cpu_s: f64,
    /// Since the system was started.
    started_s: f64,
}

fn times() -> Option<Times> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, which stands second and in parentheses, may have anything in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let field = |number: usize| {
        let ticks: u64 = fields
            .split(' ')
            .nth(number.checked_sub(3)?)?
            .parse()
            .ok()?;
        Some(whole(ticks) / whole(clock_ticks_per_second()))
    };
    Some(Times {
        cpu_s: field(14)? + field(15)?,
        started_s: field(22)?,
    })
}

/// In seconds since the epoch.
fn started_at() -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let booted: u64 = booted.trim().parse().ok()?;
    Some(whole(booted) + times()?.started_s)
}

fn resident_bytes() -> Option<f64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let resident: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(whole(resident) * count(page_size()))
}

/// As metrics have all numbers: exact up to 2^53.
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "there is no other conversion, and nothing here comes near to where it loses anything"
)]
pub(super) fn whole(value: u64) -> f64 {
    value as f64
}

/// The same of what is counted here.
pub(super) fn count(value: usize) -> f64 {
    whole(u64::try_from(value).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_young_has_memory_and_has_open_files() {
        let times = times().unwrap();
        assert!(times.cpu_s >= 0.0 && times.started_s > 0.0);
        assert!(started_at().unwrap() > 1_700_000_000.0);
        assert!(resident_bytes().unwrap() > 100_000.0);
        let mut readings = Readings::default();
        read(&mut readings);
        let text = jetway_metrics::METRICS.text(readings).unwrap();
        for name in [
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
        ] {
            assert!(text.contains(&format!("\n{name} ")), "{name} in\n{text}");
        }
    }
}
