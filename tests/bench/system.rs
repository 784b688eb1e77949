//! What Linux says about processes.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// CPU time of a process and all its threads.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; `utime` and `stime` are the 12th and 13th field after it.
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(ticks_to_time(ticks))
}

/// CPU time of all processes together, and the time all CPUs had.
pub(crate) fn machine() -> anyhow::Result<(Duration, Duration)> {
    let text = fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().context("empty /proc/stat")?;
    let fields = first
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(str::parse::<u64>)
        .collect::<Result<Vec<_>, _>>()?;
    let all: u64 = fields.iter().sum();
    // `idle` and `iowait`.
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    Ok((ticks_to_time(all - idle), ticks_to_time(all)))
}

/// Resident memory of a process, bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Raises the limit for this process and its children as far as it may.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> anyhow::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: Some(wanted),
        maximum: now.maximum.map(|maximum| maximum.max(wanted)),
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        // Without privileges: up to the hard limit.
        let raised = Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(())
}

/// Descriptors that this process and its children may have open each.
pub(crate) fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

pub(crate) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Linux reports in hundredths of a second (`USER_HZ`) on every architecture that this runs on.
fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 10)
}
