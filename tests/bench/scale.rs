//! How many rendezvous one gateway holds: acceptors that wait, pairs that are relayed at the same time, and thousands that
//! expire beside a live session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jetway::clock;
use jetway::jet::exchange::{JetPath, Operation};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Plan;
use crate::load::RoundTripFigures;
use crate::path::{Goal, Kind, Path};
use crate::peer::{End, Wire, packet_request};
use crate::rendezvous::{Rest, Transport, join, round_trips_of};
use crate::report::micros;
use crate::system;

/// How long a candidate of the expiry may stay unused: long enough to make them all.
const UNUSED_S: u64 = 30;

/// Connects that are timed.
const CONNECTS: usize = 200;

/// What each pair sends in both directions while all are there.
const EACH_BYTES: usize = 64 * 1024;

/// Threads that let pairs speak.
const SPEAKERS: usize = 8;

/// Memory is looked at when everything has come to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// An acceptor, and what its connector has to know.
struct Waiting {
    end: End,
    association: Uuid,
    candidate: Uuid,
    token: String,
}

/// Figures of one transport.
struct Figures {
    transport: Transport,
    waiting: usize,
    pairs: usize,
    association_bytes: u64,
    waiting_bytes: u64,
    pair_bytes: u64,
    /// Beyond that once all of them have moved bytes.
    moved_bytes: u64,
    idle_cpu: Duration,
    connect_alone: Duration,
    connect_among: Duration,
}

/// A live session beside what expires.
struct Expiry {
    expired: usize,
    before: RoundTripFigures,
    before_max: Duration,
    during: RoundTripFigures,
    during_max: Duration,
    took: Duration,
}

/// Measures all of it, prints it, and gives the figures for the JSON.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Value> {
    if plan.waiting == 0 {
        return Ok(Value::Null);
    }
    let mut all = Vec::new();
    for transport in [Transport::Tcp, Transport::Ws] {
        eprintln!(
            "{} waiting and {} pairs by {transport:?}",
            plan.waiting, plan.pairs
        );
        let figures = hold(plan, transport).with_context(|| format!("{transport:?}"))?;
        figures.print();
        all.push(figures.to_json());
    }
    eprintln!("{} expire", plan.waiting);
    let expiry = expire(plan)?;
    expiry.print();
    Ok(json!({ "held": all, "expiry": expiry.to_json() }))
}

fn start(plan: &Plan, settings: &str) -> anyhow::Result<Path> {
    let goal = Goal {
        port: 1,
        process: std::process::id(),
        logon: None,
    };
    let path = Path::start_with(Kind::Jetway, goal, plan, settings)?;
    path.wait()?;
    Ok(path)
}

fn hold(plan: &Plan, transport: Transport) -> anyhow::Result<Figures> {
    let path = start(plan, "")?;
    let pid = path.process().context("no gateway")?;
    let connect_alone = connects(&path, transport)?;
    let resident = || {
        thread::sleep(SETTLE);
        system::resident_bytes(pid)
    };

    let empty = resident()?;
    let mut made = Vec::with_capacity(plan.waiting);
    let mut rest = Rest::open(&path)?;
    for _ in 0..plan.waiting {
        let (association, token) = rest.association(&path)?;
        let candidate = rest.candidate(association, &token, transport)?;
        made.push((association, candidate, token));
    }
    let created = resident()?;
    let mut waiting = Vec::with_capacity(plan.waiting);
    for (association, candidate, token) in made {
        let place = jet_path(Operation::Accept, association, candidate);
        waiting.push(Waiting {
            end: join(&path, transport, place, &token)?,
            association,
            candidate,
            token,
        });
    }
    let waited = resident()?;
    let connect_among = connects(&path, transport)?;

    let before_pairs = resident()?;
    // All of them accept before any is met: what is said to an acceptor is held back for a moment after its response.
    let mut accepted = Vec::with_capacity(plan.pairs);
    let mut rest = Rest::open(&path)?;
    for _ in 0..plan.pairs {
        accepted.push(wait(&path, &mut rest, transport)?);
    }
    let mut pairs = Vec::with_capacity(plan.pairs);
    for (number, acceptor) in accepted.into_iter().enumerate() {
        pairs.push(meet(&path, transport, acceptor, number)?);
    }
    let paired = resident()?;
    exchange_all(&mut pairs)?;
    let moved = resident()?;
    let cpu = system::cpu(pid)?;
    thread::sleep(Duration::from_secs(1));
    let idle_cpu = system::cpu(pid)?.saturating_sub(cpu);

    // Whoever has waited is still there.
    for (number, acceptor) in waiting.into_iter().enumerate() {
        let (connector, acceptor) = meet(&path, transport, acceptor, number)?;
        connector.reset();
        acceptor.reset();
    }
    // And whoever was paired is, too.
    exchange_all(&mut pairs)?;
    for (connector, acceptor) in pairs {
        connector.reset();
        acceptor.reset();
    }
    drop(rest);
    path.check_descriptors()?;
    let each = |after: u64, before: u64, count: usize| {
        after.saturating_sub(before) / (count.max(1) as u64)
    };
    Ok(Figures {
        transport,
        waiting: plan.waiting,
        pairs: plan.pairs,
        association_bytes: each(created, empty, plan.waiting),
        waiting_bytes: each(waited, created, plan.waiting),
        pair_bytes: each(paired, before_pairs, plan.pairs),
        moved_bytes: each(moved, paired, plan.pairs),
        idle_cpu,
        connect_alone,
        connect_among,
    })
}

fn jet_path(operation: Operation, association: Uuid, candidate: Uuid) -> JetPath {
    JetPath {
        operation,
        association,
        candidate,
    }
}

/// A new association, and an acceptor in it.
fn wait(path: &Path, rest: &mut Rest, transport: Transport) -> anyhow::Result<Waiting> {
    let (association, token) = rest.association(path)?;
    let candidate = rest.candidate(association, &token, transport)?;
    let place = jet_path(Operation::Accept, association, candidate);
    Ok(Waiting {
        end: join(path, transport, place, &token)?,
        association,
        candidate,
        token,
    })
}

/// Connects to a waiting acceptor, and lets both say who they are: they are the ones that belong together.
fn meet(
    path: &Path,
    transport: Transport,
    waiting: Waiting,
    number: usize,
) -> anyhow::Result<(End, End)> {
    let Waiting {
        end: mut acceptor,
        association,
        candidate,
        token,
    } = waiting;
    let place = jet_path(Operation::Connect, association, candidate);
    let mut connector = join(path, transport, place, &token)?;
    let (forth, back) = (pattern(number, 16), pattern(!number, 16));
    connector.send(&connector.block(&forth, usize::MAX))?;
    ensure!(
        acceptor.receive_exactly(16)? == forth,
        "another one's bytes"
    );
    acceptor.send(&acceptor.block(&back, usize::MAX))?;
    ensure!(
        connector.receive_exactly(16)? == back,
        "another one's bytes"
    );
    connector.rest();
    acceptor.rest();
    Ok((connector, acceptor))
}

/// Median time from a connection's start to the response that the peer is there.
fn connects(path: &Path, transport: Transport) -> anyhow::Result<Duration> {
    let mut rest = Rest::open(path)?;
    let mut times = Vec::with_capacity(CONNECTS);
    for _ in 0..CONNECTS {
        let waiting = wait(path, &mut rest, transport)?;
        let place = jet_path(Operation::Connect, waiting.association, waiting.candidate);
        let start = clock::now();
        let connector = join(path, transport, place, &waiting.token)?;
        times.push(start.elapsed());
        connector.reset();
        waiting.end.reset();
    }
    times.sort_unstable();
    times
        .get(CONNECTS / 2)
        .copied()
        .context("connects were timed")
}

/// Every pair moves [`EACH_BYTES`] in both directions, all at the same time as far as the threads go.
fn exchange_all(pairs: &mut [(End, End)]) -> anyhow::Result<()> {
    let share = pairs.len().div_ceil(SPEAKERS).max(1);
    thread::scope(|scope| {
        let speaking: Vec<_> = pairs
            .chunks_mut(share)
            .enumerate()
            .map(|(speaker, pairs)| {
                scope.spawn(move || {
                    for (number, (connector, acceptor)) in pairs.iter_mut().enumerate() {
                        let bytes = pattern(speaker * share + number, EACH_BYTES);
                        carry(connector, acceptor, &bytes)?;
                        carry(acceptor, connector, &bytes)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for speaking in speaking {
            speaking.join().ok().context("a panic")??;
        }
        Ok(())
    })
}

/// Bytes from one end to the other. Both sockets together hold less than is sent.
fn carry(from: &mut End, to: &mut End, bytes: &[u8]) -> anyhow::Result<()> {
    let block = from.block(bytes, 16 * 1024);
    thread::scope(|scope| {
        let sending = scope.spawn(|| from.send(&block));
        let received = to.receive_exactly(bytes.len())?;
        sending.join().ok().context("a panic")??;
        ensure!(received == bytes, "other bytes have arrived");
        anyhow::Ok(())
    })?;
    from.rest();
    to.rest();
    Ok(())
}

/// Bytes that no other number has.
fn pattern(number: usize, count: usize) -> Vec<u8> {
    let mut state = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let words = std::iter::repeat_with(&mut next).take(count.div_ceil(8));
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(count);
    // Whatever else it is, it begins no RDP, which would be judged.
    if let Some(first) = bytes.first_mut() {
        *first = b'#';
    }
    bytes
}

/// All acceptors of a gateway expire at once, while one session lives.
fn expire(plan: &Plan) -> anyhow::Result<Expiry> {
    let path = start(plan, &format!("[jet]\nunused_timeout_s = {UNUSED_S}\n"))?;
    let mut rest = Rest::open(&path)?;
    let acceptor = wait(&path, &mut rest, Transport::Tcp)?;
    let (mut connector, mut acceptor) = meet(&path, Transport::Tcp, acceptor, 0)?;
    let echoing = thread::spawn(move || acceptor.echo(64));

    let mut made = Vec::with_capacity(plan.waiting);
    for _ in 0..plan.waiting {
        let (association, token) = rest.association(&path)?;
        let candidate = rest.candidate(association, &token, Transport::Tcp)?;
        let request = packet_request(jet_path(Operation::Accept, association, candidate), &token)?;
        made.push(request);
    }
    // All of them accept within a moment, so that they expire within one.
    let mut acceptors = Vec::with_capacity(plan.waiting);
    for request in made {
        let mut end = End::bare(Wire::tcp(path.connect()?)?);
        end.socket()
            .set_read_timeout(Some(Duration::from_secs(2 * UNUSED_S)))?;
        let block = end.block(&request, usize::MAX);
        end.send(&block)?;
        acceptors.push(end);
    }
    for end in &mut acceptors {
        end.granted()?;
        end.rest();
    }
    let mut before_times = Vec::new();
    let before = round_trips_of(&mut connector, plan.round_trips, |time| {
        before_times.push(time);
        true
    })?;

    let done = AtomicBool::new(false);
    let mut times: Vec<(Instant, Duration)> = Vec::new();
    let (during, first, last) = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let watched = watch(acceptors);
            done.store(true, Ordering::Release);
            watched
        });
        let during = round_trips_of(&mut connector, 0, |time| {
            times.push((clock::now(), time));
            !done.load(Ordering::Acquire)
        })?;
        let (first, last) = watching.join().ok().context("a panic")??;
        anyhow::Ok((during, first, last))
    })?;
    connector.reset();
    echoing.join().ok().context("a panic")?;
    path.check_descriptors()?;
    let _ = during;
    // What led to the first end belongs to it.
    let since = first
        .checked_sub(Duration::from_millis(300))
        .unwrap_or(first);
    let mut concerned: Vec<Duration> = times
        .into_iter()
        .filter(|(at, _)| *at >= since)
        .map(|(_, time)| time)
        .collect();
    concerned.sort_unstable();
    let share = |share: usize| concerned.get(concerned.len() * share / 100).copied();
    Ok(Expiry {
        expired: plan.waiting,
        before,
        before_max: before_times.into_iter().max().unwrap_or_default(),
        during: RoundTripFigures {
            p50: share(50).context("no round trips")?,
            p99: share(99).context("no round trips")?,
            stalls: 0,
        },
        during_max: concerned.last().copied().unwrap_or_default(),
        took: last.saturating_duration_since(first),
    })
}

/// Waits for the end of all; says when the first and the last was seen.
fn watch(acceptors: Vec<End>) -> anyhow::Result<(Instant, Instant)> {
    let mut first = None;
    for mut end in acceptors {
        if end.receive(None).is_ok() {
            bail!("an acceptor was sent something");
        }
        first.get_or_insert_with(clock::now);
    }
    Ok((first.context("nobody waits")?, clock::now()))
}

impl Figures {
    fn print(&self) {
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        println!(
            "{} acceptors wait and {} pairs are relayed at the same time, by {:?}:",
            self.waiting, self.pairs, self.transport
        );
        println!(
            "  an association {:.1} KiB, its waiting acceptor {:.1} KiB, a pair {:.1} KiB ({:+.1} once it has moved {} KiB each way)",
            kib(self.association_bytes),
            kib(self.waiting_bytes),
            kib(self.pair_bytes),
            kib(self.moved_bytes),
            EACH_BYTES / 1024,
        );
        println!(
            "  connect p50 {:.0} us while one waits, {:.0} us among all ({:.2}); CPU at rest {} ms/s",
            micros(self.connect_alone),
            micros(self.connect_among),
            self.connect_among.as_secs_f64() / self.connect_alone.as_secs_f64(),
            self.idle_cpu.as_millis(),
        );
    }

    fn to_json(&self) -> Value {
        json!({
            "transport": format!("{:?}", self.transport),
            "waiting": self.waiting,
            "pairs": self.pairs,
            "association bytes": self.association_bytes,
            "waiting bytes": self.waiting_bytes,
            "pair bytes": self.pair_bytes,
            "pair bytes, more once used": self.moved_bytes,
            "CPU at rest, ms/s": self.idle_cpu.as_millis() as u64,
            "connect p50 alone, us": micros(self.connect_alone),
            "connect p50 among all, us": micros(self.connect_among),
        })
    }
}

impl Expiry {
    fn print(&self) {
        let ratio =
            |during: Duration, before: Duration| during.as_secs_f64() / before.as_secs_f64();
        println!(
            "{} waiting acceptors expire within {} ms beside a session; its round trips, us:",
            self.expired,
            self.took.as_millis()
        );
        for (name, before, during) in [
            ("p50", self.before.p50, self.during.p50),
            ("p99", self.before.p99, self.during.p99),
            ("longest", self.before_max, self.during_max),
        ] {
            println!(
                "  {name:8}{:>10.0} before {:>10.0} meanwhile ({:.2})",
                micros(before),
                micros(during),
                ratio(during, before)
            );
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "expired": self.expired,
            "took ms": self.took.as_millis() as u64,
            "before us": [micros(self.before.p50), micros(self.before.p99), micros(self.before_max)],
            "during us": [micros(self.during.p50), micros(self.during.p99), micros(self.during_max)],
        })
    }
}
