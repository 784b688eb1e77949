//! The loads, as clients make them: blocking sockets and threads, with as little of their own cost as possible.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jetway::clock;
use socket2::SockRef;

use crate::path::Path;
use crate::system;
use crate::target::{BLOCK_BYTES, Deed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bulk {
    /// Client to target.
    Up,
    /// Target to client.
    Down,
}

/// One stream as fast as it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkFigures {
    pub(crate) bytes_per_s: f64,
    /// CPU of the process in between, for 10^9 bytes; zero for the direct path.
    pub(crate) cpu_s_per_gb: f64,
    /// Share of the machine's CPU time that neither this program nor the process in between used.
    pub(crate) foreign: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundTrips {
    /// One write of 64 bytes, one answer.
    Echo,
    /// Two writes of 32 bytes, then one answer: stalls where a socket waits for acknowledgements.
    WriteWriteRead,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTripFigures {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Round trips of 35 ms and more: Nagle's algorithm against delayed acknowledgements costs 40.
    pub(crate) stalls: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RateFigures {
    pub(crate) per_s: f64,
    pub(crate) failed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleFigures {
    pub(crate) sessions: usize,
    pub(crate) bytes_each: u64,
    /// CPU of the process in between over a second in which nothing was said.
    pub(crate) cpu: Duration,
}

/// Threads that open connections.
const OPENERS: usize = 8;

const STALL: Duration = Duration::from_millis(35);

pub(crate) fn bulk(path: &Path, direction: Bulk, time: Duration) -> anyhow::Result<BulkFigures> {
    let deed = match direction {
        Bulk::Up => Deed::Sink,
        Bulk::Down => Deed::Source,
    };
    let mut stream = path.open(deed)?;
    let mut block = vec![0x5a; BLOCK_BYTES];
    let before = Usage::now(path)?;
    let start = clock::now();
    let mut bytes = 0_u64;
    match direction {
        Bulk::Up => {
            while start.elapsed() < time {
                stream.write_all(&block)?;
            }
            // The clock stops when the target has everything and its count is back.
            stream.shutdown(Shutdown::Write)?;
            let mut count = [0; 8];
            stream.read_exact(&mut count)?;
            bytes += u64::from_be_bytes(count);
        }
        Bulk::Down => {
            while start.elapsed() < time {
                match stream.read(&mut block)? {
                    0 => bail!("the target stopped"),
                    count => bytes += count as u64,
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let used = Usage::now(path)?.since(&before);
    drop(stream);
    Ok(BulkFigures {
        bytes_per_s: bytes as f64 / seconds,
        cpu_s_per_gb: used.process.as_secs_f64() / (bytes as f64 / 1e9),
        foreign: used.foreign(),
    })
}

pub(crate) fn round_trips(
    path: &Path,
    kind: RoundTrips,
    count: usize,
) -> anyhow::Result<RoundTripFigures> {
    let mut stream = path.open(Deed::Echo)?;
    let message = [0x5a; 64];
    let (head, tail) = message.split_at(32);
    let mut answer = [0; 64];
    let mut times = Vec::with_capacity(count);
    // The first tenth warms up caches and congestion windows.
    for round in 0..count + count / 10 {
        let start = clock::now();
        match kind {
            RoundTrips::Echo => stream.write_all(&message)?,
            RoundTrips::WriteWriteRead => {
                stream.write_all(head)?;
                stream.write_all(tail)?;
            }
        }
        stream.read_exact(&mut answer)?;
        if round >= count / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    Ok(RoundTripFigures {
        p50: at(50).context("no round trips")?,
        p99: at(99).context("no round trips")?,
        stalls: times.iter().filter(|time| **time >= STALL).count(),
    })
}

/// Opens sessions and resets them as soon as the target has answered.
pub(crate) fn connection_rate(
    path: &Path,
    time: Duration,
    tokens: usize,
) -> anyhow::Result<RateFigures> {
    // Tokens are made before the clock starts.
    let greetings: Vec<_> = match path.needs_tokens() {
        true => (0..tokens)
            .map(|_| path.greeting(Deed::Brief))
            .collect::<Result<_, _>>()?,
        false => vec![path.greeting(Deed::Brief)?],
    };
    let fresh = path.needs_tokens();
    let next = Mutex::new(greetings.iter());
    let (opened, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = clock::now();
    thread::scope(|scope| {
        for _ in 0..OPENERS {
            scope.spawn(|| {
                while start.elapsed() < time {
                    let greeting = match fresh {
                        true => next.lock().unwrap_or_else(PoisonError::into_inner).next(),
                        false => greetings.first(),
                    };
                    let Some(greeting) = greeting else { break };
                    match path.open_with(greeting) {
                        Ok(stream) => {
                            opened.fetch_add(1, Ordering::Relaxed);
                            reset(stream);
                        }
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    Ok(RateFigures {
        per_s: opened.into_inner() as f64 / seconds,
        failed: failed.into_inner(),
    })
}

/// Opens many sessions, lets them rest and looks at what the process in between holds.
pub(crate) fn idle(path: &Path, sessions: usize) -> anyhow::Result<IdleFigures> {
    let pid = path.process().context("nothing in between")?;
    path.release_resting()?;
    thread::sleep(Duration::from_secs(2));
    let before = system::resident_bytes(pid)?;
    let held = Mutex::new(Vec::with_capacity(sessions));
    let problem = Mutex::new(None);
    thread::scope(|scope| {
        for opener in 0..OPENERS {
            let (held, problem) = (&held, &problem);
            scope.spawn(move || {
                for _ in (opener..sessions).step_by(OPENERS) {
                    match path.open(Deed::Rest) {
                        Ok(stream) => held
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(stream),
                        Err(error) => {
                            *problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = problem.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.context("while opening idle sessions"));
    }
    let held = held.into_inner().unwrap_or_else(PoisonError::into_inner);
    thread::sleep(Duration::from_secs(2));
    let after = system::resident_bytes(pid)?;
    let cpu = system::cpu(pid)?;
    thread::sleep(Duration::from_secs(1));
    let cpu = system::cpu(pid)?.saturating_sub(cpu);
    let resting = path.release_resting()?;
    if resting != held.len() as u64 {
        bail!("{resting} of {} sessions were still there", held.len());
    }
    let figures = IdleFigures {
        sessions: held.len(),
        bytes_each: after.saturating_sub(before) / held.len().max(1) as u64,
        cpu,
    };
    drop(held);
    thread::sleep(Duration::from_secs(2));
    Ok(figures)
}

/// Closes with RST, so that no port waits.
fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

pub(crate) struct Usage {
    at: Instant,
    process: Duration,
    own: Duration,
    busy: Duration,
    all: Duration,
}

pub(crate) struct Used {
    pub(crate) process: Duration,
    own: Duration,
    busy: Duration,
    all: Duration,
}

impl Usage {
    pub(crate) fn now(path: &Path) -> anyhow::Result<Self> {
        let mut usage = Self::of(path.process())?;
        usage.own += system::cpu(path.target_process())?;
        Ok(usage)
    }

    /// What the process in between has used, and this one.
    pub(crate) fn of(process: Option<u32>) -> anyhow::Result<Self> {
        let (busy, all) = system::machine()?;
        Ok(Self {
            at: clock::now(),
            process: process.map_or(Ok(Duration::ZERO), system::cpu)?,
            own: system::cpu(std::process::id())?,
            busy,
            all,
        })
    }

    pub(crate) fn since(&self, before: &Self) -> Used {
        debug_assert!(self.at >= before.at, "in order");
        Used {
            process: self.process.saturating_sub(before.process),
            own: self.own.saturating_sub(before.own),
            busy: self.busy.saturating_sub(before.busy),
            all: self.all.saturating_sub(before.all),
        }
    }
}

impl Used {
    pub(crate) fn foreign(&self) -> f64 {
        let ours = self.process + self.own;
        self.busy.saturating_sub(ours).as_secs_f64() / self.all.as_secs_f64().max(0.01)
    }
}
