//! The opaque relay: bytes between a client and a target, untouched, until both are done or something says stop.
//!
//! - The two directions are independent. Each reads only when what it read before has been written, so a receiver
//!   that does not read holds up its own sender and nothing else.
//! - The end of one direction is passed on as a half-close; the other goes on, for as long as [`AfterEnd`] says. How a WebSocket is
//!   told: [`jetway_io::websocket`].
//! - A direction that has nothing to move holds no buffer and no pipe.
//! - Small traffic is copied through the stack. A direction whose reads come back full is spliced through a pooled
//!   pipe on Linux, until it quiets down.
//!
//! When one side breaks, the other gets what is already on its way to it and an orderly end, since the last message
//! of a session is often the one that says why it ended.

mod ahead;
mod copy;
mod gather;
pub mod gone;
pub mod inspected;
mod parting;
mod side;
#[cfg(target_os = "linux")]
mod splice;

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::ahead::{Ahead, Extent};
use self::gone::{LOOK_INTERVAL, Look, Looks, Stuck};
pub use self::parting::Parting;
use self::parting::{LINGER_TIMEOUT, drain, linger, part_from_target};
use self::side::Fault;
pub use self::side::{Side, Traffic};
use jetway_io::over_tcp::OverTcp;
use jetway_io::stream::Io;
use jetway_io::websocket::Farewell;

/// Steps of one direction before the other directions and tasks get their turn.
const STEPS_PER_POLL: u32 = 16;

/// A read of so many bytes says that bulk is being sent.
const LARGE_READ_BYTES: usize = 16 * 1024;

/// Large reads in a row after which a direction is spliced.
#[cfg(target_os = "linux")]
const LARGE_READS_TO_SPLICE: u8 = 2;

/// Small reads in a row after which a direction is copied again.
#[cfg(target_os = "linux")]
const SMALL_READS_TO_COPY: u8 = 4;

/// After one side broke while it was written to: how long the rest of what it said may take to reach the other.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a session may last.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelayLimits {
    /// Without a byte moving in either direction.
    pub idle: Option<Duration>,
    /// In total, from the start of the relay.
    pub total: Option<Duration>,
    /// Where the end of one direction need not be that of the session, a side whose WebSocket cannot be half-closed hears later of
    /// the end of the other ([`WebSocket::poll_end`](jetway_io::websocket::WebSocket::poll_end)).
    pub half_close: bool,
    /// When one side has ended and the other has not.
    pub after_end: Option<AfterEnd>,
    /// What the client says first is for the caller ([`RelayEnd::ClientSpoke`]).
    pub listen: bool,
    /// The client's address, by which memory for reading ahead of it is shared out.
    pub client: Option<IpAddr>,
}

/// How long a session may go on of which one side has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterEnd {
    /// So long, whatever moves: where an end is never only that of one direction.
    Within {
        /// Seconds.
        time_s: u32,
    },
    /// Without a byte for so long.
    Silent {
        /// Seconds.
        time_s: u32,
    },
}

/// RDP has no half-close: who ends has gone, and what the other side says is for nobody. What was on its way gets there in less. Nor
/// can the other side keep who has gone by taking nothing ([`gone`]).
pub const RDP_AFTER_END: AfterEnd = AfterEnd::Within { time_s: 2 };

/// Seconds that a target may be silent after the end of its client, until it is told of it: time to begin an answer.
const TARGET_PATIENCE_S: u8 = 10;

/// Likewise a client after the end of its target, which has said all it had to say.
const CLIENT_PATIENCE_S: u8 = 1;

/// Why a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both directions ended. A side that answers the orderly end of the other with a reset counts, too.
    Closed,
    /// One side ended, and the other did not in the time that it had.
    Ended(Side),
    /// The client's connection broke.
    ClientFailed(io::Error),
    /// The target's connection broke.
    TargetFailed(io::Error),
    /// The target took nothing of what the client sends, and said nothing, for too long ([`gone`]).
    TargetStalled,
    /// No byte moved for the idle limit.
    IdleTimeout,
    /// The total limit passed.
    TimeLimit,
    /// The caller said stop.
    Cancelled,
    /// The client has said something for the first time, and the caller has listened.
    ClientSpoke(Box<Interrupted>),
}

/// The connections of a session whose client has said something for the first time.
#[derive(Debug)]
pub struct Interrupted {
    /// The client.
    pub client: Io,
    /// What it has said, and the target has not heard.
    pub said: Vec<u8>,
    /// The target.
    pub target: Io,
    /// What it has said, and the client has not got.
    pub unsent: Vec<u8>,
}

/// Relays between `client` and `target` until both are done, a limit is reached or `cancel` fires. Neither side has heard of an end that
/// comes from here before its [`Parting`] begins.
///
/// # Cancel safety
/// Dropping the future closes both connections at once.
pub fn run(
    client: Io,
    target: Io,
    traffic: &Traffic,
    limits: RelayLimits,
    cancel: CancellationToken,
) -> impl Future<Output = (RelayEnd, Parting<'static>)> {
    let (client, target) = ((client, Vec::new()), (target, Vec::new()));
    run_on(client, target, traffic, limits, cancel)
}

/// As [`run`], with what was read of each side already and the other has not got.
///
/// # Cancel safety
/// Dropping the future closes both connections at once.
pub fn run_on(
    client: (Io, Vec<u8>),
    target: (Io, Vec<u8>),
    traffic: &Traffic,
    limits: RelayLimits,
    cancel: CancellationToken,
) -> impl Future<Output = (RelayEnd, Parting<'static>)> {
    // Not async: a session would hold all of these twice.
    let means = Means::default();
    run_with(client, target, traffic, limits, cancel, means)
}

/// What a relay may use; a seam for tests.
#[derive(Clone, Copy, Debug)]
struct Means {
    #[cfg(target_os = "linux")]
    pipes: Option<&'static splice::PipePool>,
}

impl Means {
    /// No pipes.
    const COPIES: Self = Self {
        #[cfg(target_os = "linux")]
        pipes: None,
    };
}

impl Default for Means {
    fn default() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            pipes: Some(&splice::POOL),
        }
    }
}

async fn run_with(
    (client, said): (Io, Vec<u8>),
    (target, unsent): (Io, Vec<u8>),
    traffic: &Traffic,
    limits: RelayLimits,
    cancel: CancellationToken,
    means: Means,
) -> (RelayEnd, Parting<'static>) {
    // An interactive session must not wait for more to send, whoever made the sockets. Where it fails the peer is
    // gone, and the first read says so better.
    let _ = client.tcp().set_nodelay(true);
    let _ = target.tcp().set_nodelay(true);
    let patience_s = |seconds| if limits.half_close { seconds } else { 0 };
    let mut relay = Relay {
        client,
        target,
        up: Flow {
            held: said.into(),
            ahead: Ahead::of(limits.client),
            listening: limits.listen,
            ..Flow::new(means, patience_s(TARGET_PATIENCE_S))
        },
        down: Flow {
            held: unsent.into(),
            to_client: true,
            ..Flow::new(
                // What is held may have to be given back.
                if limits.listen { Means::COPIES } else { means },
                patience_s(CLIENT_PATIENCE_S),
            )
        },
        dying: None,
    };
    let (mut clock, mut looks) = (Clock::new(limits), Looks::new(limits.after_end));
    let mut cancelled = pin!(cancel.cancelled());
    let (end, left) = poll_fn(|cx| {
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready((RelayEnd::Cancelled, None));
        }
        let mut moved = false;
        if let Poll::Ready(ended) = relay.poll(cx, traffic, &mut moved) {
            return Poll::Ready(ended);
        }
        if moved {
            clock.note_activity();
        }
        if relay.dying.is_some() {
            clock.start_last_words();
        }
        if relay.ended_first().is_some() {
            clock.start_after_end();
        }
        Poll::Ready(loop {
            if relay.up.is_stuck() || relay.down.is_stuck() {
                clock.start_looking();
            }
            break match ready!(clock.poll(cx)) {
                Alarm::Idle => (RelayEnd::IdleTimeout, None),
                Alarm::Total => (RelayEnd::TimeLimit, None),
                Alarm::LastWords => relay.give_up(),
                Alarm::AfterEnd => relay.stop_waiting(),
                Alarm::Look => match relay.look(cx, &mut looks, traffic) {
                    Some(Stuck::Gone(side)) => (RelayEnd::Ended(side), Some(side.other())),
                    Some(Stuck::TargetStalled) => (RelayEnd::TargetStalled, Some(Side::Client)),
                    None => continue,
                },
            };
        })
    })
    .await;
    let Relay {
        client,
        target,
        up,
        down,
        ..
    } = relay;
    if up.heard {
        let heard = Interrupted {
            client,
            said: up.held.into_copied(),
            target,
            unsent: down.held.into_copied(),
        };
        return (RelayEnd::ClientSpoke(Box::new(heard)), Parting::done());
    }
    if up.is_stuck() {
        // What it has not taken by now is for nobody.
        target.break_on_drop();
    }
    let parting = parting_after(&end, left, client, target);
    (end, parting)
}

/// The end of a session whose connections are not relayed at that moment.
pub fn part_from_both(end: RelayEnd, client: Io, target: Io) -> (RelayEnd, Parting<'static>) {
    let parting = parting_after(&end, None, client, target);
    (end, parting)
}

/// How the connections are closed behind `end`, of which `left` alone is to be parted from in order, if it is not one that a limit or
/// the caller has made.
fn parting_after(end: &RelayEnd, left: Option<Side>, client: Io, target: Io) -> Parting<'static> {
    let farewell = match end {
        RelayEnd::Closed | RelayEnd::Ended(_) | RelayEnd::ClientSpoke(_) => None,
        RelayEnd::ClientFailed(_) | RelayEnd::TargetFailed(_) | RelayEnd::TargetStalled => {
            Some(Farewell::OtherSideBroke)
        }
        RelayEnd::IdleTimeout | RelayEnd::TimeLimit | RelayEnd::Cancelled => {
            return Parting::new(async {
                tokio::join!(go_away(client), go_away(target));
            });
        }
    };
    let (side, mut left) = match left {
        Some(Side::Client) => (Side::Client, client),
        Some(Side::Target) => (Side::Target, target),
        None => return Parting::done(),
    };
    if let Some(farewell) = farewell {
        left.end_with(farewell);
    }
    let is_tls = matches!(left, Io::Tls(_) | Io::TargetTls(_));
    let cut = is_tls && farewell.is_some();
    Parting::new(async move {
        let closing = async |stream: &mut Io| {
            if cut {
                break_off(stream).await;
            } else {
                linger(stream).await;
            }
        };
        match side {
            Side::Client => closing(&mut left).await,
            Side::Target => part_from_target(left, closing).await,
        }
    })
}

/// Ends a connection so that its peer gets what is on its way and learns that the other side broke off, where its transport can tell.
async fn break_off(stream: &mut Io) {
    // It has been as polite as it can be.
    let _ = async {
        poll_fn(|cx| stream.poll_cut(cx)).await?;
        drain(stream).await
    }
    .await;
}

/// Ends the connection of a side whose session the gateway ends: at once, unless it can be told.
async fn go_away(mut stream: Io) {
    match &mut stream {
        Io::Tcp(_) | Io::Tls(_) | Io::TargetTls(_) => {}
        Io::WebSocket(socket) => {
            socket.end_with(Farewell::GoingAway);
            let _ = timeout(LINGER_TIMEOUT, linger(&mut stream)).await;
        }
    }
}

struct Relay {
    client: Io,
    target: Io,
    /// Client to target.
    up: Flow,
    /// Target to client.
    down: Flow,
    /// The side that could not be written to any more, while what it said before is still passed on.
    dying: Option<(Side, io::Error)>,
}

impl Relay {
    /// Moves what can be moved. Ready with the end, and with the side to part from in order, if there is one left.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        traffic: &Traffic,
        moved: &mut bool,
    ) -> Poll<(RelayEnd, Option<Side>)> {
        let (client, target) = (&mut self.client, &mut self.target);
        let up = self
            .up
            .advance(cx, client, target, &traffic.to_target, moved);
        if let Err(fault) = up
            && let ended @ Poll::Ready(_) = self.broken(fault, Side::Client)
        {
            return ended;
        }
        if self.up.is_stuck() && self.up.read_ahead(cx, &mut self.client) == Extent::Ended {
            let end = RelayEnd::Ended(Side::Client);
            return Poll::Ready((end, Some(Side::Target)));
        }
        let (client, target) = (&mut self.client, &mut self.target);
        let down = self
            .down
            .advance(cx, target, client, &traffic.to_client, moved);
        if let Err(fault) = down
            && let ended @ Poll::Ready(_) = self.broken(fault, Side::Target)
        {
            return ended;
        }
        if self.up.heard {
            if self.dying.is_none()
                && !matches!(self.down.state, FlowState::Left | FlowState::Abandoned)
            {
                return Poll::Ready((RelayEnd::Closed, None));
            }
            // Nobody would judge it.
            self.up.heard = false;
            self.up.abandon();
        }
        if self.up.is_over() && self.down.is_over() {
            return Poll::Ready(self.give_up());
        }
        // Nobody is left to hear the rest.
        match (self.up.state, self.down.state) {
            _ if self.dying.is_some() => Poll::Pending,
            (FlowState::Left, _) => Poll::Ready((RelayEnd::Closed, Some(Side::Target))),
            (_, FlowState::Left) => Poll::Ready((RelayEnd::Closed, Some(Side::Client))),
            _ => Poll::Pending,
        }
    }

    /// The direction that reads from `reader` broke. Ready with the end, unless the other direction may have
    /// something left to pass on.
    fn broken(&mut self, fault: Fault, reader: Side) -> Poll<(RelayEnd, Option<Side>)> {
        self.from(reader).abandon();
        let writer = reader.other();
        match fault {
            // Nothing more can come from `reader`, and nothing can reach it.
            Fault::Reader(_) if self.dying.is_some() => Poll::Ready(self.give_up()),
            Fault::Reader(_) if self.from(writer).has_ended() => {
                Poll::Ready((RelayEnd::Closed, Some(writer)))
            }
            Fault::Reader(error) => Poll::Ready((RelayEnd::of(reader, error), Some(writer))),
            // Nothing can reach `writer`, but what it said before it broke may still be in the system's buffers.
            Fault::Writer(error) => match self.dying.take() {
                Some((first, error)) => Poll::Ready((RelayEnd::of(first, error), None)),
                None if self.from(writer).has_ended() => {
                    Poll::Ready((RelayEnd::Closed, Some(reader)))
                }
                None => {
                    self.dying = Some((writer, error));
                    Poll::Pending
                }
            },
        }
    }

    /// The end of a session in which nothing is left to be passed on.
    fn give_up(&mut self) -> (RelayEnd, Option<Side>) {
        match self.dying.take() {
            Some((side, error)) => (RelayEnd::of(side, error), Some(side.other())),
            None => (RelayEnd::Closed, None),
        }
    }

    /// The side that has ended while the other goes on.
    fn ended_first(&self) -> Option<Side> {
        match (self.up.source_ended(), self.down.source_ended()) {
            (true, _) => Some(Side::Client),
            (false, true) => Some(Side::Target),
            (false, false) => None,
        }
    }

    /// The end of a session of which one side has ended, and the other had its time.
    fn stop_waiting(&mut self) -> (RelayEnd, Option<Side>) {
        match self.ended_first() {
            Some(side) if self.dying.is_none() => (RelayEnd::Ended(side), Some(side.other())),
            Some(_) | None => self.give_up(),
        }
    }

    /// Why a direction that is stuck ends the session, if it does.
    fn look(
        &mut self,
        cx: &mut Context<'_>,
        looks: &mut Looks,
        traffic: &Traffic,
    ) -> Option<Stuck> {
        if self.up.is_stuck() {
            self.client.keep_alive_unread(cx);
        }
        if self.down.is_stuck() {
            self.target.keep_alive_unread(cx);
        }
        let client = self.up.is_stuck().then_some(&self.client);
        let target = self.down.is_stuck().then_some(&self.target);
        match looks.look(traffic, client, target, false) {
            Look::GoOn => None,
            Look::Over(stuck) => Some(stuck),
            Look::ReadAhead => {
                self.up.ahead.wanted = true;
                let read = self.up.read_ahead(cx, &mut self.client);
                looks.client_is_there = read == Extent::All;
                (read == Extent::Ended).then_some(Stuck::Gone(Side::Client))
            }
        }
    }

    fn from(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.up,
            Side::Target => &mut self.down,
        }
    }
}

impl RelayEnd {
    fn of(side: Side, error: io::Error) -> Self {
        match side {
            Side::Client => Self::ClientFailed(error),
            Side::Target => Self::TargetFailed(error),
        }
    }
}

/// The way from one side to the other.
struct Flow {
    state: FlowState,
    /// What was read and has not been written; nothing more is read until it is.
    held: Held,
    /// What was read behind it all the same, to find the end of the source.
    ahead: Ahead,
    pace: Pace,
    /// The sink may have taken bytes without sending them, as TLS does.
    unflushed: bool,
    /// The source was cut off, and did not end with a word.
    cut: bool,
    to_client: bool,
    means: Means,
    /// How long the sink may be silent that cannot be told of the end without cutting it off, seconds.
    patience_s: u8,
    /// What is read first is held, and not written.
    listening: bool,
    /// It is held.
    heard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Open,
    /// The source has ended, and the sink is being told.
    Ending,
    /// The end was passed on.
    Ended,
    /// The source has ended and left: it takes nothing any more.
    Left,
    /// An end of it broke.
    Abandoned,
}

enum Held {
    Nothing,
    Bytes(copy::Leftover),
    #[cfg(target_os = "linux")]
    Pipe(splice::Lease),
}

/// How the next bytes are moved.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// By copies; counts the large reads in a row.
    Copy { large: u8 },
    /// By splices; counts the small reads in a row.
    #[cfg(target_os = "linux")]
    Splice { small: u8 },
}

enum FlowStep {
    Done,
    /// Nothing to do until the task is woken.
    Parked,
}

impl Flow {
    fn new(means: Means, patience_s: u8) -> Self {
        Self {
            state: FlowState::Open,
            held: Held::Nothing,
            ahead: Ahead::of(None),
            pace: Pace::Copy { large: 0 },
            // Whoever wrote to the sink before may have left that to the relay.
            unflushed: true,
            cut: false,
            to_client: false,
            means,
            patience_s,
            listening: false,
            heard: false,
        }
    }

    /// The end of its source reached its sink.
    fn has_ended(&self) -> bool {
        matches!(self.state, FlowState::Ended | FlowState::Left)
    }

    /// Its source has said all, whether or not its sink knows.
    fn source_ended(&self) -> bool {
        matches!(
            self.state,
            FlowState::Ending | FlowState::Ended | FlowState::Left
        )
    }

    /// Nothing will move any more.
    fn is_over(&self) -> bool {
        matches!(
            self.state,
            FlowState::Ended | FlowState::Left | FlowState::Abandoned
        )
    }

    /// Its sink has not taken what was read: the end of its source may be behind more.
    fn is_stuck(&self) -> bool {
        self.state == FlowState::Open && !matches!(self.held, Held::Nothing)
    }

    fn abandon(&mut self) {
        self.state = FlowState::Abandoned;
        self.held = Held::Nothing;
        self.ahead.clear();
    }

    /// If that is wanted, reads what is there although the sink has not taken what was read before.
    fn read_ahead(&mut self, cx: &mut Context<'_>, source: &mut Io) -> Extent {
        while self.ahead.wanted && self.ahead.admits(copy::CHUNK_BYTES) {
            match copy::poll_read(cx, source) {
                Poll::Ready(Ok(Some(bytes))) => self.ahead.push(bytes),
                Poll::Ready(Ok(None) | Err(_)) => return Extent::Ended,
                Poll::Pending => return Extent::All,
            }
        }
        Extent::Full
    }

    /// Moves what can be moved now, within reason.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        count: &AtomicU64,
        moved: &mut bool,
    ) -> Result<(), Fault> {
        let mut written = 0;
        let mut result = Ok(());
        let mut steps = 0;
        loop {
            if steps == STEPS_PER_POLL {
                cx.waker().wake_by_ref();
                break;
            }
            steps += 1;
            match self.step(cx, source, sink, &mut written) {
                Ok(FlowStep::Done) => {}
                Ok(FlowStep::Parked) => break,
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        if written > 0 {
            *moved = true;
            count.fetch_add(written, Ordering::Relaxed);
        }
        result
    }

    fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        written: &mut u64,
    ) -> Result<FlowStep, Fault> {
        match self.state {
            FlowState::Open => match self.held {
                Held::Nothing => match self.ahead.pop() {
                    Some(bytes) => {
                        self.held = Held::Bytes(bytes.into());
                        Ok(FlowStep::Done)
                    }
                    None => self.pull(cx, source, sink, written),
                },
                #[cfg(target_os = "linux")]
                Held::Pipe(_) => self.push(cx, sink, written),
                Held::Bytes(_) => self.push(cx, sink, written),
            },
            FlowState::Ending => match self.poll_end(cx, sink) {
                Poll::Ready(Ok(())) => {
                    self.state = FlowState::Ended;
                    Ok(FlowStep::Done)
                }
                Poll::Ready(Err(error)) => Err(Fault::Writer(error)),
                Poll::Pending => self.keep(cx, source),
            },
            FlowState::Ended => self.keep(cx, source),
            FlowState::Left | FlowState::Abandoned => Ok(FlowStep::Parked),
        }
    }

    /// Passes the end of the source on: as what it was, where the client's transport can tell. Clients of RDP leave without a word, and
    /// no target is to think less of it.
    fn poll_end(&mut self, cx: &mut Context<'_>, sink: &mut Io) -> Poll<io::Result<()>> {
        if self.cut && self.to_client {
            sink.poll_cut(cx)
        } else {
            sink.poll_end(cx, Duration::from_secs(self.patience_s.into()))
        }
    }

    /// Keeps a source that has ended, while the other direction goes on.
    fn keep(&mut self, cx: &mut Context<'_>, source: &mut Io) -> Result<FlowStep, Fault> {
        match source.poll_keep(cx) {
            Poll::Ready(Ok(())) => {
                self.state = FlowState::Left;
                Ok(FlowStep::Parked)
            }
            Poll::Ready(Err(error)) => Err(Fault::Reader(error)),
            Poll::Pending => Ok(FlowStep::Parked),
        }
    }

    /// Reads, and writes what the sink takes of it.
    fn pull(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        written: &mut u64,
    ) -> Result<FlowStep, Fault> {
        if self.listening {
            return self.listen(cx, source, sink);
        }
        #[cfg(target_os = "linux")]
        if let (Pace::Splice { .. }, Some(from), Some(to)) =
            (self.pace, source.plain(), sink.plain())
        {
            match from.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Fault::Reader(error)),
                Poll::Pending => return Ok(FlowStep::Parked),
            }
            if let Some(lease) = self.means.pipes.and_then(splice::PipePool::lease) {
                return self.pull_through(lease, cx, from, to, written);
            }
        }
        let Poll::Ready(copied) = copy::poll_copy(cx, source, sink) else {
            return self.flush(cx, sink);
        };
        let copied = copied?;
        if copied.read == 0 {
            self.cut = copied.cut;
            self.state = FlowState::Ending;
            return Ok(FlowStep::Done);
        }
        *written = written.saturating_add(copied.written);
        self.unflushed = sink.plain().is_none();
        self.pace = self.pace.after_copy(copied.read);
        if let Some(leftover) = copied.leftover {
            self.held = Held::Bytes(leftover);
            return Ok(FlowStep::Parked);
        }
        Ok(FlowStep::Done)
    }

    /// Reads, and holds what came.
    fn listen(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
    ) -> Result<FlowStep, Fault> {
        match copy::poll_read(cx, source) {
            Poll::Ready(Ok(Some(bytes))) => {
                self.held = Held::Bytes(bytes.into());
                self.listening = false;
                self.heard = true;
                Ok(FlowStep::Parked)
            }
            Poll::Ready(Ok(None)) => {
                self.state = FlowState::Ending;
                Ok(FlowStep::Done)
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.cut = true;
                self.state = FlowState::Ending;
                Ok(FlowStep::Done)
            }
            Poll::Ready(Err(error)) => Err(Fault::Reader(error)),
            Poll::Pending => self.flush(cx, sink),
        }
    }

    #[cfg(target_os = "linux")]
    fn pull_through(
        &mut self,
        mut lease: splice::Lease,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        written: &mut u64,
    ) -> Result<FlowStep, Fault> {
        match lease.poll_fill(cx, source) {
            Poll::Ready(Ok(0)) => {
                self.state = FlowState::Ending;
                Ok(FlowStep::Done)
            }
            Poll::Ready(Ok(read)) => {
                self.pace = self.pace.after_splice(read);
                self.drain(lease, cx, sink, written)
            }
            Poll::Ready(Err(error)) if splice::is_unsupported(&error) => {
                self.means.pipes = None;
                Ok(FlowStep::Done)
            }
            Poll::Ready(Err(error)) => Err(Fault::Reader(error)),
            Poll::Pending => Ok(FlowStep::Parked),
        }
    }

    /// Writes what is held; it is let go when it is gone.
    fn push(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Io,
        written: &mut u64,
    ) -> Result<FlowStep, Fault> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => Ok(FlowStep::Done),
            Held::Bytes(mut leftover) => {
                let (count, gone) = leftover.write_some(cx, sink)?;
                *written = written.saturating_add(count);
                if gone {
                    return Ok(FlowStep::Done);
                }
                self.held = Held::Bytes(leftover);
                Ok(FlowStep::Parked)
            }
            #[cfg(target_os = "linux")]
            Held::Pipe(lease) => match sink.plain() {
                Some(sink) => self.drain(lease, cx, sink, written),
                None => Err(Fault::Writer(io::ErrorKind::Unsupported.into())),
            },
        }
    }

    #[cfg(target_os = "linux")]
    fn drain(
        &mut self,
        mut lease: splice::Lease,
        cx: &mut Context<'_>,
        sink: &TcpStream,
        written: &mut u64,
    ) -> Result<FlowStep, Fault> {
        while !lease.is_empty() {
            match lease.poll_drain(cx, sink) {
                Poll::Ready(Ok(count)) => *written = written.saturating_add(copy::to_u64(count)),
                Poll::Ready(Err(error)) => return Err(Fault::Writer(error)),
                Poll::Pending => {
                    self.held = Held::Pipe(lease);
                    return Ok(FlowStep::Parked);
                }
            }
        }
        Ok(FlowStep::Done)
    }

    /// Nothing to read: what the sink keeps back has to leave now.
    fn flush(&mut self, cx: &mut Context<'_>, sink: &mut Io) -> Result<FlowStep, Fault> {
        if self.unflushed {
            match Pin::new(sink).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(Fault::Writer(error)),
                Poll::Pending => {}
            }
        }
        Ok(FlowStep::Parked)
    }
}

impl From<Vec<u8>> for Held {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            Self::Nothing
        } else {
            Self::Bytes(bytes.into_boxed_slice().into())
        }
    }
}

impl Held {
    fn into_copied(self) -> Vec<u8> {
        match self {
            Self::Bytes(leftover) => leftover.into_bytes(),
            Self::Nothing => Vec::new(),
            #[cfg(target_os = "linux")]
            Self::Pipe(_) => Vec::new(),
        }
    }
}

impl Pace {
    fn after_copy(self, read: usize) -> Self {
        let large = match self {
            _ if read < LARGE_READ_BYTES => 0,
            Self::Copy { large } => large.saturating_add(1),
            #[cfg(target_os = "linux")]
            Self::Splice { .. } => return self,
        };
        #[cfg(target_os = "linux")]
        if large >= LARGE_READS_TO_SPLICE {
            return Self::Splice { small: 0 };
        }
        Self::Copy { large }
    }

    #[cfg(target_os = "linux")]
    fn after_splice(self, read: usize) -> Self {
        let small = match self {
            _ if read >= LARGE_READ_BYTES => 0,
            Self::Splice { small } => small.saturating_add(1),
            Self::Copy { .. } => return self,
        };
        if small >= SMALL_READS_TO_COPY {
            return Self::Copy { large: 0 };
        }
        Self::Splice { small }
    }
}

/// The limits of a relay as one timer.
struct Clock {
    idle: Option<Duration>,
    ends_at: Option<Instant>,
    /// When a byte moved last; read only where there is an idle limit, or one side has ended.
    active_at: Instant,
    last_words_at: Option<Instant>,
    after_end: Option<AfterEnd>,
    /// When one side had ended.
    ended_at: Option<Instant>,
    /// When directions that are stuck are to be looked at.
    look_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

enum Alarm {
    Idle,
    Total,
    LastWords,
    AfterEnd,
    Look,
}

impl Clock {
    fn new(limits: RelayLimits) -> Self {
        let now = Instant::now();
        let mut clock = Self {
            idle: limits.idle,
            ends_at: limits.total.and_then(|total| now.checked_add(total)),
            active_at: now,
            last_words_at: None,
            after_end: limits.after_end,
            ended_at: None,
            look_at: None,
            timer: None,
        };
        clock.set();
        clock
    }

    fn note_activity(&mut self) {
        if self.idle.is_some() || self.ended_at.is_some() {
            self.active_at = Instant::now();
        }
    }

    fn start_last_words(&mut self) {
        if self.last_words_at.is_none() {
            self.last_words_at = Instant::now().checked_add(LAST_WORDS_TIMEOUT);
            self.set();
        }
    }

    fn start_after_end(&mut self) {
        if self.ended_at.is_none() && self.after_end.is_some() {
            self.ended_at = Some(Instant::now());
            self.set();
        }
    }

    /// A direction is stuck.
    fn start_looking(&mut self) {
        if self.look_at.is_none() && self.after_end.is_some() {
            self.look_at = Instant::now().checked_add(LOOK_INTERVAL);
            self.set();
        }
    }

    fn after_end_at(&self) -> Option<Instant> {
        let ended_at = self.ended_at?;
        match self.after_end? {
            AfterEnd::Within { time_s } => ended_at.checked_add(Duration::from_secs(time_s.into())),
            AfterEnd::Silent { time_s } => ended_at
                .max(self.active_at)
                .checked_add(Duration::from_secs(time_s.into())),
        }
    }

    fn idle_at(&self) -> Option<Instant> {
        self.active_at.checked_add(self.idle?)
    }

    fn set(&mut self) {
        let dues = [
            self.ends_at,
            self.idle_at(),
            self.last_words_at,
            self.after_end_at(),
            self.look_at,
        ];
        let Some(due) = dues.into_iter().flatten().min() else {
            return;
        };
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(due),
            None => self.timer = Some(Box::pin(sleep_until(due))),
        }
    }

    /// Activity only moves the idle limit away, so the timer is set again when it fires and not on every byte.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Alarm> {
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let passed = |due: Option<Instant>| due.is_some_and(|due| due <= now);
            if passed(self.ends_at) {
                return Poll::Ready(Alarm::Total);
            }
            if passed(self.last_words_at) {
                return Poll::Ready(Alarm::LastWords);
            }
            if passed(self.after_end_at()) {
                return Poll::Ready(Alarm::AfterEnd);
            }
            if passed(self.idle_at()) {
                return Poll::Ready(Alarm::Idle);
            }
            if passed(self.look_at) {
                self.look_at = None;
                self.set();
                return Poll::Ready(Alarm::Look);
            }
            self.set();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BufMut;
    use jetway_lab::net::tcp_pair;
    use jetway_lab::tls::tls_pair;
    use socket2::SockRef;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use jetway_io::websocket::frames::Role;
    use jetway_io::websocket::{Ends, WebSocket};

    const MIB: u64 = 1024 * 1024;

    #[tokio::test(start_paused = true)]
    async fn a_websocket_does_not_end_because_its_target_makes_a_pause() {
        let (near, client) = tcp_pair().await;
        let (target, mut far) = tcp_pair().await;
        let socket = WebSocket::new(client.into(), Role::Server, Vec::new(), Ends::Apart);
        let mut near = WebSocket::new(near, Role::Client, Vec::new(), Ends::Apart);
        let limits = RelayLimits {
            after_end: Some(AfterEnd::Silent { time_s: 600 }),
            ..RelayLimits::default()
        };
        let (traffic, cancel) = (Arc::new(Traffic::default()), CancellationToken::new());
        let (counted, cancelled) = (Arc::clone(&traffic), cancel.clone());
        let relaying = tokio::spawn(async move {
            let client = Io::WebSocket(Box::new(socket));
            let target = Io::Tcp(target);
            let (end, _parting) = run(client, target, &counted, limits, cancelled).await;
            end
        });
        // More than the target takes, which has a word of its own meanwhile.
        let block = vec![7; 65_536];
        let all = Duration::from_secs(1);
        while let Ok(written) = timeout(all, near.write(&block)).await {
            written.unwrap();
        }
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        let paused = timeout(Duration::from_secs(1200), near.read_u8()).await;
        assert!(paused.is_err(), "{paused:?}");
        assert!(!relaying.is_finished());
        cancel.cancel();
        assert!(matches!(relaying.await.unwrap(), RelayEnd::Cancelled));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bulk_both_ways_at_once_arrives_unchanged() {
        let relay = Fixture::start(RelayLimits::default()).await;
        let (up, down) = (64 * MIB + 1, 48 * MIB + 3);
        exchange(relay.client, relay.target, up, down).await;
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
        assert_eq!(counts(&relay.traffic), (up, down));
        #[cfg(target_os = "linux")]
        assert_eq!(relay.pipes.on_loan(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bulk_is_the_same_without_splice() {
        let relay = Fixture::start_copying(RelayLimits::default()).await;
        let (up, down) = (16 * MIB + 1, 8 * MIB + 3);
        exchange(relay.client, relay.target, up, down).await;
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
        assert_eq!(counts(&relay.traffic), (up, down));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bulk_is_the_same_where_tls_ends_at_the_gateway() {
        let (client, gateway_client) = tls_pair().await;
        let (gateway_target, target) = tcp_pair().await;
        let traffic = Arc::new(Traffic::default());
        let task = spawn(
            Io::Tls(Box::new(gateway_client)),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        let (up, down) = (16 * MIB + 1, 8 * MIB + 3);
        exchange(client, target, up, down).await;
        assert!(matches!(task.await.unwrap(), RelayEnd::Closed));
        assert_eq!(counts(&traffic), (up, down));
    }

    #[tokio::test]
    async fn single_bytes_arrive_one_by_one() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        for byte in 0..=255 {
            relay.client.write_u8(byte).await.unwrap();
            assert_eq!(relay.target.read_u8().await.unwrap(), byte);
            relay.target.write_u8(!byte).await.unwrap();
            assert_eq!(relay.client.read_u8().await.unwrap(), !byte);
        }
        relay.wait_for(256, 256).await;
    }

    #[tokio::test]
    async fn write_write_read_over_tls_is_answered() {
        let (mut client, gateway_client) = tls_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        let traffic = Arc::new(Traffic::default());
        let _task = spawn(
            Io::Tls(Box::new(gateway_client)),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        for _ in 0..100 {
            client.write_all(b"he").await.unwrap();
            client.write_all(b"ad").await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(read(&mut target, 4).await, b"head");
            target.write_all(b"answer").await.unwrap();
            assert_eq!(read(&mut client, 6).await, b"answer");
        }
    }

    #[tokio::test]
    async fn client_half_close_still_lets_the_target_finish() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.client.write_all(b"question").await.unwrap();
        relay.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relay.target).await, b"question");
        relay.target.write_all(&vec![7; 3_000_000]).await.unwrap();
        drop(relay.target);
        assert_eq!(read_all(&mut relay.client).await, vec![7; 3_000_000]);
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
        assert_eq!(counts(&relay.traffic), (8, 3_000_000));
    }

    #[tokio::test]
    async fn a_bulk_reply_after_a_half_close_arrives_within_the_bound_on_silence() {
        let mut relay = Fixture::start(silent(60)).await;
        relay.client.write_all(b"question").await.unwrap();
        relay.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relay.target).await, b"question");
        relay.target.write_all(&vec![7; 3_000_000]).await.unwrap();
        drop(relay.target);
        assert_eq!(read_all(&mut relay.client).await, vec![7; 3_000_000]);
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_ends_a_session_without_half_close_however_the_other_talks() {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        for goes in [Side::Client, Side::Target] {
            let started = Instant::now();
            let mut relay = Fixture::start(limits).await;
            let (gone, stays) = match goes {
                Side::Client => (&mut relay.client, &mut relay.target),
                Side::Target => (&mut relay.target, &mut relay.client),
            };
            gone.write_all(b"last words").await.unwrap();
            gone.shutdown().await.unwrap();
            // The last words and the end are passed on, and neither keeps the session.
            assert_eq!(read_all(stays).await, b"last words");
            while started.elapsed() < Duration::from_secs(60) && !relay.task.is_finished() {
                // Once the session is over, nobody takes it.
                let _gone = stays.write_all(b"x").await;
                sleep_until(Instant::now() + Duration::from_millis(100)).await;
            }
            let end = relay.task.await.unwrap();
            assert!(
                matches!(end, RelayEnd::Ended(side) if side == goes),
                "{end:?}"
            );
            let lasted = started.elapsed();
            let bound = Duration::from_secs(2) + LINGER_TIMEOUT + Duration::from_secs(1);
            assert!(lasted < bound, "{lasted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_ends_a_session_although_the_other_reads_nothing() {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        for goes in [Side::Client, Side::Target] {
            let relay = Fixture::start_narrow(limits).await;
            let (mut gone, stays) = match goes {
                Side::Client => (relay.client, relay.target),
                Side::Target => (relay.target, relay.client),
            };
            // The end arrives behind what is not taken.
            gone.write_all(&[7; 128 * 1024]).await.unwrap();
            gone.shutdown().await.unwrap();
            let end = relay.task.await.unwrap();
            assert!(
                matches!(end, RelayEnd::Ended(side) if side == goes),
                "{end:?}"
            );
            drop(stays);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_takes_nothing_keeps_the_session_of_a_client_that_is_there_and_of_no_other()
     {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let mut relay = Fixture::start_narrow(limits).await;
        // Every buffer on the way is full, so that the client's own system could not send its end.
        let block = vec![7; 65_536];
        while let Ok(written) = timeout(Duration::from_secs(1), relay.client.write(&block)).await {
            written.unwrap();
        }
        sleep_until(Instant::now() + Duration::from_secs(600)).await;
        assert!(!relay.task.is_finished());
        drop(relay.client);
        let end = relay.task.await.unwrap();
        assert!(matches!(end, RelayEnd::Ended(Side::Client)), "{end:?}");
        drop(relay.target);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_does_not_keep_the_session_of_a_client_that_has_gone() {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        // It has gone for good, or has ended what it says and stays.
        for stays in [false, true] {
            let mut relay = Fixture::start_narrow(limits).await;
            let block = vec![7; 65_536];
            while let Ok(written) =
                timeout(Duration::from_secs(1), relay.client.write(&block)).await
            {
                written.unwrap();
            }
            // The end is behind full buffers, in the client's own system.
            relay.client.shutdown().await.unwrap();
            let client = stays.then_some(relay.client);
            let mut target = relay.target;
            let slow = tokio::spawn(async move {
                while let Ok(1..) = target.read(&mut [0; 1000]).await {
                    let _ = target.write_all(if stays { b"x" } else { b"" }).await;
                    sleep_until(Instant::now() + Duration::from_secs(3)).await;
                }
            });
            let gone = Instant::now();
            let end = relay.task.await.unwrap();
            assert!(matches!(end, RelayEnd::Ended(Side::Client)), "{end:?}");
            let lasted = gone.elapsed();
            assert!(lasted < 5 * LOOK_INTERVAL, "{lasted:?}");
            drop(client);
            slow.abort();
        }
    }

    #[tokio::test]
    async fn what_was_read_ahead_of_a_client_that_is_there_reaches_its_target_unchanged() {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let sockets = (tcp_pair().await, tcp_pair().await);
        let ((client, gateway_client), (gateway_target, target)) = &sockets;
        for socket in [client, gateway_client, gateway_target, target] {
            let socket = SockRef::from(socket);
            socket.set_recv_buffer_size(100_000).unwrap();
            socket.set_send_buffer_size(100_000).unwrap();
        }
        let relay = Fixture::start_between(sockets, limits, true);
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let (mut client, mut target) = (relay.client, relay.target);
        let expected = sent.clone();
        // As much as no socket of this session holds back.
        client.write_all(&sent).await.unwrap();
        let mut got = vec![0; expected.len()];
        target.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
        drop((client, target));
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_and_speaks_gets_the_last_words_of_its_target() {
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let sockets = (tcp_pair().await, tcp_pair().await);
        let (client, gateway_client) = &sockets.0;
        SockRef::from(client).set_recv_buffer_size(4096).unwrap();
        // All of it is on its way when the target has gone.
        SockRef::from(gateway_client)
            .set_send_buffer_size(400_000)
            .unwrap();
        let mut relay = Fixture::start_between(sockets, limits, true);
        let words = vec![7; 120_000];
        relay.target.write_all(&words).await.unwrap();
        relay.target.shutdown().await.unwrap();
        let mut got = Vec::new();
        // Takes longer than the session and its usual parting.
        while relay
            .client
            .read_buf(&mut (&mut got).limit(5000))
            .await
            .unwrap()
            > 0
        {
            let _ = relay.client.write_all(b"input").await;
            sleep_until(Instant::now() + Duration::from_millis(200)).await;
        }
        assert_eq!(got.len(), words.len());
        let end = relay.task.await.unwrap();
        assert!(matches!(end, RelayEnd::Ended(Side::Target)), "{end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_with_half_close_goes_on_while_bytes_move_and_ends_when_none_do() {
        for goes in [Side::Client, Side::Target] {
            let mut relay = Fixture::start(silent(10)).await;
            let (gone, stays) = match goes {
                Side::Client => (&mut relay.client, &mut relay.target),
                Side::Target => (&mut relay.target, &mut relay.client),
            };
            gone.shutdown().await.unwrap();
            assert_eq!(read_all(stays).await, b"");
            for _ in 0..10 {
                sleep_until(Instant::now() + Duration::from_secs(7)).await;
                stays.write_all(b"x").await.unwrap();
                assert_eq!(read(gone, 1).await, b"x");
            }
            let end = relay.task.await.unwrap();
            assert!(
                matches!(end, RelayEnd::Ended(side) if side == goes),
                "{end:?}"
            );
            assert_eq!(read_all(gone).await, b"");
        }
    }

    #[tokio::test]
    async fn target_half_close_still_lets_the_client_finish() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.target.write_all(b"banner").await.unwrap();
        relay.target.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relay.client).await, b"banner");
        relay.client.write_all(b"still here").await.unwrap();
        drop(relay.client);
        assert_eq!(read_all(&mut relay.target).await, b"still here");
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test]
    async fn half_close_passes_tls_both_ways() {
        let (mut client, gateway_client) = tls_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        let traffic = Arc::new(Traffic::default());
        let task = spawn(
            Io::Tls(Box::new(gateway_client)),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        target.write_all(b"banner").await.unwrap();
        target.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"banner");
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut target).await, b"still here");
        assert!(matches!(task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test]
    async fn tls_that_ends_without_close_notify_is_an_end() {
        let (mut client, gateway_client) = tls_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        let traffic = Arc::new(Traffic::default());
        let task = spawn(
            Io::Tls(Box::new(gateway_client)),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        client.write_all(b"last").await.unwrap();
        client.flush().await.unwrap();
        client.get_mut().0.shutdown().await.unwrap();
        assert_eq!(read_all(&mut target).await, b"last");
        drop(target);
        assert!(matches!(task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test]
    async fn a_reset_by_the_client_ends_the_target() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut relay.target, 1).await, b"x");
        reset(relay.client);
        assert_eq!(read_all(&mut relay.target).await, b"");
        drop(relay.target);
        assert!(matches!(
            relay.task.await.unwrap(),
            RelayEnd::ClientFailed(_)
        ));
    }

    #[tokio::test]
    async fn a_reset_by_the_target_ends_the_client() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut relay.target, 1).await, b"x");
        reset(relay.target);
        assert_eq!(read_all(&mut relay.client).await, b"");
        drop(relay.client);
        assert!(matches!(
            relay.task.await.unwrap(),
            RelayEnd::TargetFailed(_)
        ));
    }

    #[tokio::test]
    async fn what_a_target_said_before_its_reset_still_arrives() {
        // Not started yet: both events are there when the relay looks for the first time.
        let (mut client, gateway_client) = tcp_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        client.write_all(b"more input").await.unwrap();
        target.write_all(b"why it ended").await.unwrap();
        reset(target);
        let traffic = Arc::new(Traffic::default());
        let task = spawn(
            Io::Tcp(gateway_client),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        assert_eq!(read_all(&mut client).await, b"why it ended");
        drop(client);
        assert!(matches!(task.await.unwrap(), RelayEnd::TargetFailed(_)));
    }

    #[tokio::test]
    async fn a_client_that_still_sends_reads_all_before_its_connection_ends() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.target.write_all(b"why it ended").await.unwrap();
        reset(relay.target);
        // Unread input at the gateway would turn its close into a reset.
        relay.client.write_all(&[1; 4096]).await.unwrap();
        assert_eq!(read(&mut relay.client, 12).await, b"why it ended");
        for _ in 0..8 {
            relay.client.write_all(&[1; 4096]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(read_all(&mut relay.client).await, b"");
        drop(relay.client);
        assert!(matches!(
            relay.task.await.unwrap(),
            RelayEnd::TargetFailed(_)
        ));
    }

    #[tokio::test]
    async fn a_reset_in_answer_to_the_end_is_a_close() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.target.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relay.client).await, b"");
        reset(relay.client);
        assert_eq!(read_all(&mut relay.target).await, b"");
        drop(relay.target);
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Closed));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_receiver_that_does_not_read_holds_up_only_its_own_sender() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        let (mut client_reader, mut client_writer) = relay.client.into_split();
        let flood = tokio::spawn(async move {
            let block = vec![0; 65_536];
            while client_writer.write_all(&block).await.is_ok() {}
        });
        // The target reads nothing, and the flood comes to rest.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = relay.traffic.to_target.load(Ordering::Relaxed);
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
        let sender = tokio::spawn(async move {
            send(&mut relay.target, 32 * MIB).await;
            relay.target
        });
        receive(&mut client_reader, 32 * MIB).await;
        let target = sender.await.unwrap();
        relay.cancel.cancel();
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Cancelled));
        flood.await.unwrap();
        drop(target);
        #[cfg(target_os = "linux")]
        assert_eq!(relay.pipes.on_loan(), 0);
    }

    #[tokio::test]
    async fn a_session_at_rest_holds_no_pipe_and_little_memory() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        let block = vec![3; 1_000_000];
        for _ in 0..8 {
            let (sent, got) = tokio::join!(
                relay.client.write_all(&block),
                read(&mut relay.target, block.len())
            );
            sent.unwrap();
            assert_eq!(got, block);
        }
        #[cfg(target_os = "linux")]
        {
            assert_eq!(relay.pipes.on_loan(), 0);
            assert!(!relay.pipes.never_used(), "bulk was not spliced");
        }
        let (_client, gateway_client) = tcp_pair().await;
        let (gateway_target, _target) = tcp_pair().await;
        let traffic = Traffic::default();
        let future = run(
            Io::Tcp(gateway_client),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
        );
        assert!(size_of_val(&future) <= 2048, "{}", size_of_val(&future));
    }

    #[tokio::test]
    async fn both_sockets_are_set_to_send_small_writes_at_once() {
        let (_client, gateway_client) = tcp_pair().await;
        let (gateway_target, _target) = tcp_pair().await;
        let mut watched = Vec::new();
        let mut watch = |stream: TcpStream| {
            stream.set_nodelay(false).unwrap();
            let stream = stream.into_std().unwrap();
            watched.push(stream.try_clone().unwrap());
            TcpStream::from_std(stream).unwrap()
        };
        let (gateway_client, gateway_target) = (watch(gateway_client), watch(gateway_target));
        let cancel = CancellationToken::new();
        cancel.cancel();
        let (_end, _parting) = run(
            Io::Tcp(gateway_client),
            Io::Tcp(gateway_target),
            &Traffic::default(),
            RelayLimits::default(),
            cancel,
        )
        .await;
        assert!(watched.iter().all(|stream| stream.nodelay().unwrap()));
    }

    #[tokio::test]
    async fn cancel_ends_both_sides() {
        let mut relay = Fixture::start(RelayLimits::default()).await;
        relay.cancel.cancel();
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::Cancelled));
        assert_eq!(read_all(&mut relay.client).await, b"");
        assert_eq!(read_all(&mut relay.target).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_session_after_the_idle_limit() {
        let relay = Fixture::start(limits(Some(60), None)).await;
        let start = Instant::now();
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::IdleTimeout));
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    /// So that whoever comes back at once finds its token as the end has left it.
    #[tokio::test(start_paused = true)]
    async fn neither_side_sees_an_end_that_comes_from_here_before_the_parting_begins() {
        for cancels in [false, true] {
            let (mut client, gateway_client) = tcp_pair().await;
            let (gateway_target, mut target) = tcp_pair().await;
            let (client_io, target_io) = (Io::Tcp(gateway_client), Io::Tcp(gateway_target));
            let (traffic, cancel) = (Traffic::default(), CancellationToken::new());
            if cancels {
                cancel.cancel();
            }
            let limits = limits(None, Some(5));
            let (end, parting) = run(client_io, target_io, &traffic, limits, cancel).await;
            assert_eq!(matches!(end, RelayEnd::Cancelled), cancels, "{end:?}");
            for side in [&mut client, &mut target] {
                let read = timeout(Duration::from_secs(60), side.read(&mut [0])).await;
                assert!(read.is_err(), "{read:?}");
            }
            parting.finish().await;
            for side in [&mut client, &mut target] {
                assert_eq!(side.read(&mut [0]).await.unwrap(), 0);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_ends_in_order_before_it_has_taken_all_sees_no_orderly_end() {
        let (mut client, gateway_client) = tcp_pair().await;
        let (gateway_target, target) = tcp_pair().await;
        let (client_io, target_io) = (Io::Tcp(gateway_client), Io::Tcp(gateway_target));
        let (traffic, cancel) = (Traffic::default(), CancellationToken::new());
        let limits = RelayLimits {
            after_end: Some(RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let relay = run(client_io, target_io, &traffic, limits, cancel);
        let leaving = async {
            let block = vec![7; 65_536];
            while let Ok(written) = timeout(Duration::from_secs(1), client.write(&block)).await {
                written.unwrap();
            }
            drop(client);
            target
        };
        let ((_end, parting), mut target) = tokio::join!(relay, leaving);
        target.shutdown().await.unwrap();
        part_from_all(parting).await;
        let read = target.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// Whoever carries it, as an agent does, learns at once that nobody is here any more.
    #[tokio::test(start_paused = true)]
    async fn the_connection_of_a_target_that_does_not_end_breaks_when_it_had_its_time() {
        for waits in [false, true] {
            let (client, gateway_client) = tcp_pair().await;
            let (gateway_target, mut target) = tcp_pair().await;
            let (client_io, target_io) = (Io::Tcp(gateway_client), Io::Tcp(gateway_target));
            let (traffic, cancel) = (Traffic::default(), CancellationToken::new());
            let limits = RelayLimits {
                after_end: Some(RDP_AFTER_END),
                ..RelayLimits::default()
            };
            drop(client);
            let (_end, mut parting) = run(client_io, target_io, &traffic, limits, cancel).await;
            if waits {
                parting.begin().await;
            } else {
                // As when there is no place for who needs longer.
                let _ = timeout(Duration::ZERO, parting.begin()).await;
            }
            drop(parting);
            // The end has been said before.
            let _end = target.read_to_end(&mut Vec::new()).await;
            target.write_all(b"x").await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn what_a_client_says_first_is_for_who_listens() {
        let listen = RelayLimits {
            listen: true,
            ..RelayLimits::default()
        };
        let (mut client, gateway_client) = tcp_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        let (client_io, target_io) = (Io::Tcp(gateway_client), Io::Tcp(gateway_target));
        let traffic = Traffic::default();
        let cancel = CancellationToken::new();
        let relay = run(client_io, target_io, &traffic, listen, cancel.clone());
        let sides = async {
            // Meanwhile the target is heard.
            target.write_all(b"220 ready").await.unwrap();
            assert_eq!(read(&mut client, 9).await, b"220 ready");
            client.write_all(b"USER").await.unwrap();
        };
        let ((end, _parting), ()) = tokio::join!(relay, sides);
        let RelayEnd::ClientSpoke(heard) = end else {
            panic!("{end:?}");
        };
        let Interrupted {
            client: client_io,
            said,
            target: target_io,
            unsent,
        } = *heard;
        assert_eq!((&said[..], counts(&traffic)), (&b"USER"[..], (0, 9)));
        assert_eq!(unsent, b"");
        // And goes on from there.
        let limits = RelayLimits::default();
        let (client_side, target_side) = ((client_io, said), (target_io, unsent));
        let relay = run_on(client_side, target_side, &traffic, limits, cancel);
        let sides = async {
            assert_eq!(read(&mut target, 4).await, b"USER");
            drop((client, target));
        };
        let ((_end, _parting), ()) = tokio::join!(relay, sides);
        assert_eq!(counts(&traffic), (4, 9));
    }

    /// The target cannot have it pass unjudged by saying more than is taken, or all it has to say.
    #[tokio::test]
    async fn what_a_client_says_that_reads_nothing_is_for_who_listens() {
        for ends in [false, true] {
            let (mut client, gateway_client) = tcp_pair().await;
            let (gateway_target, mut target) = tcp_pair().await;
            let (client_io, target_io) = (Io::Tcp(gateway_client), Io::Tcp(gateway_target));
            let traffic = Traffic::default();
            let cancel = CancellationToken::new();
            let listen = RelayLimits {
                listen: true,
                ..RelayLimits::default()
            };
            let relay = run(client_io, target_io, &traffic, listen, cancel.clone());
            let block: Vec<u8> = (0..=250).collect();
            let mut written = 0;
            let sides = async {
                let mut flood = block.iter().copied().cycle();
                loop {
                    let next: Vec<u8> = flood.by_ref().take(65_536).collect();
                    let mut rest = &next[..];
                    while let Ok(count) =
                        timeout(Duration::from_millis(200), target.write(rest)).await
                    {
                        rest = &rest[count.unwrap()..];
                        if rest.is_empty() {
                            break;
                        }
                    }
                    written += next.len() - rest.len();
                    if !rest.is_empty() {
                        break;
                    }
                }
                if ends {
                    target.shutdown().await.unwrap();
                }
                client.write_all(b"stop").await.unwrap();
            };
            let ((end, _parting), ()) = tokio::join!(relay, sides);
            let RelayEnd::ClientSpoke(heard) = end else {
                panic!("{end:?}");
            };
            assert_eq!(heard.said, b"stop");
            let limits = RelayLimits::default();
            let sides = ((heard.client, heard.said), (heard.target, heard.unsent));
            let relay = run_on(sides.0, sides.1, &traffic, limits, cancel);
            let sides = async {
                assert_eq!(read(&mut target, 4).await, b"stop");
                let got = read(&mut client, written).await;
                assert!(
                    got.chunks(block.len())
                        .all(|chunk| block.starts_with(chunk))
                );
                if ends {
                    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
                }
                drop((client, target));
            };
            let ((_end, _parting), ()) = tokio::join!(relay, sides);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_in_either_direction_starts_the_idle_limit_again() {
        let mut relay = Fixture::start(limits(Some(60), None)).await;
        let start = Instant::now();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            relay.client.write_u8(1).await.unwrap();
            assert_eq!(relay.target.read_u8().await.unwrap(), 1);
            tokio::time::sleep(Duration::from_secs(50)).await;
            relay.target.write_u8(2).await.unwrap();
            assert_eq!(relay.client.read_u8().await.unwrap(), 2);
        }
        assert!(matches!(relay.task.await.unwrap(), RelayEnd::IdleTimeout));
        assert_eq!(start.elapsed().as_secs(), 360);
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_limit_ends_a_busy_session() {
        let mut relay = Fixture::start(limits(Some(60), Some(125))).await;
        let start = Instant::now();
        let chat = async {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                if relay.client.write_u8(1).await.is_err() || relay.target.read_u8().await.is_err()
                {
                    break;
                }
            }
        };
        let (end, ()) = tokio::join!(relay.task, chat);
        assert!(matches!(end.unwrap(), RelayEnd::TimeLimit));
        assert_eq!(start.elapsed().as_secs() / 10, 13);
    }

    #[tokio::test(start_paused = true)]
    async fn last_words_that_nobody_reads_do_not_keep_a_broken_session() {
        let (mut client, mut gateway_client) = tcp_pair().await;
        let (gateway_target, mut target) = tcp_pair().await;
        // The client reads nothing, and every buffer on the way to it is full.
        let block = vec![9; 65_536];
        while let Ok(written) = timeout(Duration::from_secs(1), gateway_client.write(&block)).await
        {
            written.unwrap();
        }
        client.write_all(b"input").await.unwrap();
        target.write_all(&block).await.unwrap();
        reset(target);
        let traffic = Arc::new(Traffic::default());
        let task = spawn(
            Io::Tcp(gateway_client),
            Io::Tcp(gateway_target),
            &traffic,
            RelayLimits::default(),
            CancellationToken::new(),
            Means::default(),
        );
        assert!(matches!(task.await.unwrap(), RelayEnd::TargetFailed(_)));
    }

    fn silent(time_s: u32) -> RelayLimits {
        RelayLimits {
            after_end: Some(AfterEnd::Silent { time_s }),
            ..RelayLimits::default()
        }
    }

    struct Fixture {
        client: TcpStream,
        target: TcpStream,
        task: JoinHandle<RelayEnd>,
        traffic: Arc<Traffic>,
        cancel: CancellationToken,
        #[cfg(target_os = "linux")]
        pipes: &'static splice::PipePool,
    }

    impl Fixture {
        async fn start(limits: RelayLimits) -> Self {
            Self::start_with(limits, true).await
        }

        async fn start_copying(limits: RelayLimits) -> Self {
            Self::start_with(limits, false).await
        }

        /// One whose sockets on both ends take little of what nobody reads.
        async fn start_narrow(limits: RelayLimits) -> Self {
            let sockets = (tcp_pair().await, tcp_pair().await);
            let ((client, gateway_client), (gateway_target, target)) = &sockets;
            for (gateway, far) in [(gateway_client, client), (gateway_target, target)] {
                SockRef::from(gateway).set_send_buffer_size(4096).unwrap();
                SockRef::from(far).set_recv_buffer_size(4096).unwrap();
            }
            Self::start_between(sockets, limits, true)
        }

        async fn start_with(limits: RelayLimits, splices: bool) -> Self {
            let sockets = (tcp_pair().await, tcp_pair().await);
            Self::start_between(sockets, limits, splices)
        }

        fn start_between(
            ((client, gateway_client), (gateway_target, target)): (
                (TcpStream, TcpStream),
                (TcpStream, TcpStream),
            ),
            limits: RelayLimits,
            splices: bool,
        ) -> Self {
            #[cfg(target_os = "linux")]
            let pipes: &'static _ = Box::leak(Box::new(splice::PipePool::new(2)));
            #[cfg(not(target_os = "linux"))]
            let _ = splices;
            let means = Means {
                #[cfg(target_os = "linux")]
                pipes: splices.then_some(pipes),
            };
            let traffic = Arc::new(Traffic::default());
            let cancel = CancellationToken::new();
            let task = spawn(
                Io::Tcp(gateway_client),
                Io::Tcp(gateway_target),
                &traffic,
                limits,
                cancel.clone(),
                means,
            );
            Self {
                client,
                target,
                task,
                traffic,
                cancel,
                #[cfg(target_os = "linux")]
                pipes,
            }
        }

        /// Bytes may arrive before they are counted.
        async fn wait_for(&self, to_target: u64, to_client: u64) {
            while counts(&self.traffic) != (to_target, to_client) {
                tokio::task::yield_now().await;
            }
        }
    }

    fn spawn(
        client: Io,
        target: Io,
        traffic: &Arc<Traffic>,
        limits: RelayLimits,
        cancel: CancellationToken,
        means: Means,
    ) -> JoinHandle<RelayEnd> {
        let traffic = Arc::clone(traffic);
        tokio::spawn(async move {
            let relayed = run_with(
                (client, Vec::new()),
                (target, Vec::new()),
                &traffic,
                limits,
                cancel,
                means,
            );
            let (end, mut parting) = relayed.await;
            if !parting.begin().await {
                tokio::spawn(parting.finish());
            }
            end
        })
    }

    /// Closes the connections of a session as it is done after a real one.
    pub(crate) async fn part_from_all(mut parting: Parting<'_>) {
        if !parting.begin().await {
            parting.finish().await;
        }
    }

    fn counts(traffic: &Traffic) -> (u64, u64) {
        (
            traffic.to_target.load(Ordering::Relaxed),
            traffic.to_client.load(Ordering::Relaxed),
        )
    }

    fn limits(idle: Option<u64>, total: Option<u64>) -> RelayLimits {
        RelayLimits {
            idle: idle.map(Duration::from_secs),
            total: total.map(Duration::from_secs),
            ..RelayLimits::default()
        }
    }

    /// Sends both ways at the same time, ends both ways, and checks what arrives.
    async fn exchange<C, T>(client: C, target: T, up: u64, down: u64)
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut client_reader, mut client_writer) = tokio::io::split(client);
        let (mut target_reader, mut target_writer) = tokio::io::split(target);
        let tasks = [
            tokio::spawn(async move { send(&mut client_writer, up).await }),
            tokio::spawn(async move { receive(&mut target_reader, up).await }),
            tokio::spawn(async move { send(&mut target_writer, down).await }),
            tokio::spawn(async move { receive(&mut client_reader, down).await }),
        ];
        for task in tasks {
            task.await.unwrap();
        }
    }

    /// A sequence that shows what was lost, doubled or swapped.
    fn pattern(offset: u64, bytes: &mut [u8]) {
        for (byte, position) in bytes.iter_mut().zip(offset..) {
            let [a, b, c, ..] = position.wrapping_mul(0x9e37_79b9).to_le_bytes();
            *byte = a ^ b ^ c;
        }
    }

    async fn send(writer: &mut (impl AsyncWrite + Unpin), total: u64) {
        let mut block = vec![0; 100_000];
        let mut offset = 0;
        while offset < total {
            let length = usize::try_from(total - offset).unwrap().min(block.len());
            let block = &mut block[..length];
            pattern(offset, block);
            writer.write_all(block).await.unwrap();
            offset += copy::to_u64(length);
        }
        writer.shutdown().await.unwrap();
    }

    async fn receive(reader: &mut (impl AsyncRead + Unpin), total: u64) {
        let (mut block, mut expected) = (vec![0; 100_000], vec![0; 100_000]);
        let mut offset = 0;
        loop {
            let count = reader.read(&mut block).await.unwrap();
            if count == 0 {
                break;
            }
            pattern(offset, &mut expected[..count]);
            assert!(block[..count] == expected[..count], "after {offset} bytes");
            offset += copy::to_u64(count);
        }
        assert_eq!(offset, total);
    }

    async fn read(stream: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    pub(super) fn reset(stream: TcpStream) {
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
    }
}
