//! The inspected relay: whole PDUs between two legs that the gateway has both opened, each past the
//! [`Tracker`] and the stages before it goes on.
//!
//! The rules are those of the opaque relay: the directions are independent, each reads only when what it read
//! before has been written, ends are passed on as half-closes, and a direction that has nothing to move holds no
//! buffer. RDP goes on with one side for no longer than [`RDP_AFTER_END`](super::RDP_AFTER_END). A session that may not go on ends with a word to both sides: a code that the client shows to its user,
//! and an orderly end for the target.
//!
//! Nothing is read that the stages have no room for ([`Sink::poll_ready`]): then both sides wait, and limits, ends and the caller's word
//! still end the session. A message that waits for its verdict holds up its own channel, until so much waits behind it that its sender
//! has to.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize, Zeroizing};

use super::ahead::{AHEAD_BYTES, Extent, Reserved};
use super::copy::to_u64;
use super::gather::Gather;
use super::gone::{Look, Looks, Stuck};
use super::parting::{Parting, linger, part_from_target};
use super::{Alarm, Clock, Fault, RelayEnd, RelayLimits, STEPS_PER_POLL, Side, Traffic};
use jetway_io::buffers;
use jetway_io::low_water::LowWater;
use jetway_io::over_tcp::OverTcp;
use jetway_rdp::Direction;
use jetway_rdp::event::Sink;
use jetway_rdp::tracker::{
    ERRINFO_IDLE_TIMEOUT, ERRINFO_LOGON_TIMEOUT, ERRINFO_RPC_INITIATED_DISCONNECT, SessionError,
    Tracker,
};

/// Bytes read before they are passed on: several TLS records, so that several are written at once.
const READ_BYTES: usize = buffers::BUFFER_BYTES;

/// What may wait for a side, in answers of stages to it, before nothing more is read from it.
const ANSWERS_BYTES: usize = 1024 * 1024;

/// One side of an inspected session, past its security layer.
#[derive(Debug)]
pub struct Leg<S> {
    /// The stream of RDP PDUs.
    pub stream: S,
    /// What was read from it already.
    pub read_ahead: Vec<u8>,
}

/// Why an inspected relay ended.
#[derive(Debug)]
pub enum InspectedEnd {
    /// Both directions ended.
    Closed {
        /// Who ended first.
        by: Side,
        /// Whether that side had said that it leaves; one that is killed has not.
        orderly: bool,
    },
    /// As an opaque relay ends.
    Relay(RelayEnd),
    /// What a side sent may not or cannot pass.
    Session(SessionError),
}

/// Ends a relay from outside.
pub struct Cancel<'a> {
    /// Fires when it is to end.
    pub token: CancellationToken,
    /// Asked then: how.
    pub way: &'a (dyn Fn() -> CancelWay + Sync),
}

impl fmt::Debug for Cancel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// How a session that is cancelled ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelWay {
    /// Both sides are told that an administrator has ended it: clients show that, and do not come back by themselves.
    Told,
    /// The connections break: clients come back by themselves, and targets keep the desktop for them.
    Cut,
}

/// Relays between `client` and `target` until both are done, a limit is reached, `cancel` fires, or the session
/// may not go on. What bytes are counted are those written to each side. Neither side has heard of an end that comes from here before
/// its [`Parting`] begins.
///
/// # Cancel safety
/// Dropping the future closes both connections at once, without a word.
pub async fn run<'a, C, T>(
    client: Leg<C>,
    target: Leg<T>,
    tracker: &mut Tracker,
    sink: &mut (dyn Sink + Send),
    traffic: &'a Traffic,
    limits: RelayLimits,
    cancel: Cancel<'_>,
) -> (InspectedEnd, Parting<'a>)
where
    C: AsyncRead + AsyncWrite + LowWater + OverTcp + Send + Unpin + 'a,
    T: AsyncRead + AsyncWrite + LowWater + OverTcp + Send + Unpin + 'a,
{
    let mut relay = Relay {
        client: client.stream,
        target: target.stream,
        up: Lane::new(client.read_ahead, limits.client),
        down: Lane::new(target.read_ahead, None),
        to_client: Outbox::default(),
        to_target: Outbox::default(),
        dying: None,
        first: None,
        staged: false,
        started: Instant::now(),
    };
    let (mut clock, mut looks) = (Clock::new(limits), Looks::new(limits.after_end));
    let mut cancelled = pin!(cancel.token.cancelled());
    let end = poll_fn(|cx| {
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::cancelled((cancel.way)()));
        }
        let mut moved = false;
        let ended = relay.poll(cx, tracker, sink, traffic, &mut moved);
        if ended.is_ready() {
            return ended;
        }
        if moved {
            clock.note_activity();
        }
        relay.poll_limits(cx, &mut clock, &mut looks, traffic)
    })
    .await;
    // What is thrown away at the end has to be read, too.
    relay.up.gather.wake(&relay.client);
    relay.down.gather.wake(&relay.target);
    match end {
        End::Over(end, left) => {
            let end = InspectedEnd::over(end, relay.first, tracker);
            (end, part_from_one(relay, left, traffic))
        }
        End::Told(end, code) => {
            let words = farewells(tracker, code, sink);
            let parting = part_from_both(relay, words, traffic);
            (InspectedEnd::Relay(end), parting)
        }
        End::Refused(error) => {
            let words = farewells(tracker, error.error_info(), sink);
            let parting = part_from_both(relay, words, traffic);
            (InspectedEnd::Session(error), parting)
        }
    }
}

impl InspectedEnd {
    /// The end of a relay from which no word goes to both sides.
    fn over(end: RelayEnd, first: Option<Side>, tracker: &Tracker) -> Self {
        match (end, first) {
            (RelayEnd::Closed, Some(by)) => Self::Closed {
                by,
                orderly: tracker.has_parted(match by {
                    Side::Client => Direction::ToTarget,
                    Side::Target => Direction::ToClient,
                }),
            },
            (end, _) => Self::Relay(end),
        }
    }
}

/// The last PDUs to the client and to the target, with a reason.
fn farewells(tracker: &Tracker, code: u32, sink: &mut dyn Sink) -> (Vec<u8>, Vec<u8>) {
    let to_user = tracker.farewell(Direction::ToClient, code, sink);
    let to_server = tracker.farewell(Direction::ToTarget, code, sink);
    (to_user, to_server)
}

/// Parts from the side that is left, if one is.
fn part_from_one<'a, C, T>(
    relay: Relay<C, T>,
    left: Option<Side>,
    traffic: &'a Traffic,
) -> Parting<'a>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'a,
    T: AsyncRead + AsyncWrite + OverTcp + Send + Unpin + 'a,
{
    let Relay {
        client,
        target,
        to_client,
        to_target,
        ..
    } = relay;
    if to_target.waiting() > 0 {
        // What it has not taken by now is for nobody.
        target.break_on_drop();
    }
    match left {
        Some(Side::Client) => Parting::new(close_gracefully(
            client,
            to_client,
            Vec::new(),
            &traffic.to_client,
        )),
        Some(Side::Target) => {
            let closing = async move |target: &mut T| {
                say_and_linger(target, to_target, Vec::new(), &traffic.to_target).await;
            };
            Parting::new(part_from_target(target, closing))
        }
        None => Parting::done(),
    }
}

/// Parts from both sides, with a last word to each.
fn part_from_both<'a, C, T>(
    relay: Relay<C, T>,
    (to_user, to_server): (Vec<u8>, Vec<u8>),
    traffic: &'a Traffic,
) -> Parting<'a>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'a,
    T: AsyncRead + AsyncWrite + OverTcp + Send + Unpin + 'a,
{
    let Relay {
        client,
        target,
        to_client,
        to_target,
        ..
    } = relay;
    let closing = async move |target: &mut T| {
        say_and_linger(target, to_target, to_server, &traffic.to_target).await;
    };
    Parting::new(async move {
        tokio::join!(
            close_gracefully(client, to_client, to_user, &traffic.to_client),
            part_from_target(target, closing),
        );
    })
}

/// Says what is left to say to a side and ends its connection in order.
async fn close_gracefully<S>(mut stream: S, outbox: Outbox, farewell: Vec<u8>, count: &AtomicU64)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    say_and_linger(&mut stream, outbox, farewell, count).await;
}

async fn say_and_linger<S>(stream: &mut S, outbox: Outbox, farewell: Vec<u8>, count: &AtomicU64)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if outbox.closed {
        return;
    }
    let saying = async {
        stream.write_all(outbox.rest()).await?;
        stream.write_all(&farewell).await?;
        stream.flush().await
    };
    // It has been as polite as it can be.
    if saying.await.is_ok() {
        let said = to_u64(outbox.rest().len().saturating_add(farewell.len()));
        count.fetch_add(said, Ordering::Relaxed);
        linger(stream).await;
    }
}

/// How the moving of PDUs ended.
enum End {
    /// On its own, or cut; with a side to part from, if there is one left.
    Over(RelayEnd, Option<Side>),
    /// By a limit or the caller; both sides are told.
    Told(RelayEnd, u32),
    /// By what a side sent.
    Refused(SessionError),
}

impl End {
    fn cancelled(way: CancelWay) -> Self {
        match way {
            CancelWay::Told => Self::Told(RelayEnd::Cancelled, ERRINFO_RPC_INITIATED_DISCONNECT),
            // Dropped, TLS says no word of an end.
            CancelWay::Cut => Self::Over(RelayEnd::Cancelled, None),
        }
    }
}

struct Relay<C, T> {
    client: C,
    target: T,
    /// Client to target.
    up: Lane,
    /// Target to client.
    down: Lane,
    to_client: Outbox,
    to_target: Outbox,
    /// The side that could not be written to any more, while what it said before is still passed on.
    dying: Option<(Side, io::Error)>,
    /// The side that ended first, in whatever way.
    first: Option<Side>,
    /// A stage is what the sides wait for.
    staged: bool,
    started: Instant,
}

/// What one direction has read and not passed on.
struct Lane {
    state: LaneState,
    /// The beginning of a frame; at the start also what was read ahead.
    arrived: Vec<u8>,
    /// Whether `arrived` may hold whole frames.
    fresh: bool,
    /// How the source ended, behind what was read.
    end: Option<io::Result<usize>>,
    /// What may be in `arrived` that was read although the sink had not taken what came before.
    ahead: Reserved,
    /// More is read so as it comes.
    ahead_wanted: bool,
    gather: Gather,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneState {
    Open,
    /// The source has ended, and the sink is being told.
    Ending,
    /// The end was passed on.
    Ended,
    /// An end of it broke.
    Abandoned,
}

/// What a side has not taken yet.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// It holds credentials.
    sensitive: bool,
    /// The stream may have taken bytes without sending them, as TLS does.
    unflushed: bool,
    /// Nothing can be written any more: the stream broke or was shut down.
    closed: bool,
}

impl<C, T> Relay<C, T>
where
    C: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin,
    T: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin,
{
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tracker: &mut Tracker,
        sink: &mut dyn Sink,
        traffic: &Traffic,
        moved: &mut bool,
    ) -> Poll<End> {
        for _ in 0..STEPS_PER_POLL {
            let mut progress = false;
            if let Err(error) = self.take_answers(cx, tracker, sink, &mut progress) {
                return Poll::Ready(End::Refused(error));
            }
            self.staged = false;
            let mut inspect = PduJudge {
                tracker: &mut *tracker,
                sink: &mut *sink,
                direction: Direction::ToTarget,
                staged: &mut self.staged,
                started: self.started,
            };
            let up = advance(
                cx,
                &mut self.up,
                (&mut self.client, &mut self.to_client),
                (&mut self.target, &mut self.to_target, &traffic.to_target),
                &mut inspect,
                &mut progress,
            );
            self.note_end(Side::Client);
            if let Err(stop) = up
                && let ended @ Poll::Ready(_) = self.stopped(stop, Side::Client)
            {
                return ended;
            }
            if (self.staged || self.to_target.waiting() > 0)
                && self.up.read_ahead(cx, &mut self.client) == Extent::Ended
            {
                return Poll::Ready(self.gone(Side::Client));
            }
            let mut inspect = PduJudge {
                tracker: &mut *tracker,
                sink: &mut *sink,
                direction: Direction::ToClient,
                staged: &mut self.staged,
                started: self.started,
            };
            let down = advance(
                cx,
                &mut self.down,
                (&mut self.target, &mut self.to_target),
                (&mut self.client, &mut self.to_client, &traffic.to_client),
                &mut inspect,
                &mut progress,
            );
            self.note_end(Side::Target);
            if let Err(stop) = down
                && let ended @ Poll::Ready(_) = self.stopped(stop, Side::Target)
            {
                return ended;
            }
            if self.up.is_over() && self.down.is_over() {
                return Poll::Ready(self.give_up());
            }
            if !progress {
                return Poll::Pending;
            }
            *moved = true;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits for the limit that ends the relay where nothing moves.
    fn poll_limits(
        &mut self,
        cx: &mut Context<'_>,
        clock: &mut Clock,
        looks: &mut Looks,
        traffic: &Traffic,
    ) -> Poll<End> {
        if self.dying.is_some() {
            clock.start_last_words();
        }
        if self.first.is_some() {
            clock.start_after_end();
        }
        Poll::Ready(loop {
            if self.is_stuck() {
                clock.start_looking();
            }
            break match ready!(clock.poll(cx)) {
                Alarm::Idle => End::Told(RelayEnd::IdleTimeout, ERRINFO_IDLE_TIMEOUT),
                Alarm::Total => End::Told(RelayEnd::TimeLimit, ERRINFO_LOGON_TIMEOUT),
                Alarm::LastWords => self.give_up(),
                Alarm::AfterEnd => self.stop_waiting(),
                Alarm::Look => match self.look(cx, looks, traffic) {
                    Some(end) => end,
                    None => continue,
                },
            };
        })
    }

    /// Carries out the verdicts on messages that have waited for them.
    fn take_answers(
        &mut self,
        cx: &mut Context<'_>,
        tracker: &mut Tracker,
        sink: &mut dyn Sink,
        progress: &mut bool,
    ) -> Result<(), SessionError> {
        while let Poll::Ready(message) = sink.poll_answer(cx) {
            sink.set_now(self.started.elapsed());
            let (onward, back) = match message.direction {
                Direction::ToTarget => (&mut self.to_target, &mut self.to_client),
                Direction::ToClient => (&mut self.to_client, &mut self.to_target),
            };
            let mut answers = Vec::new();
            tracker.resume(message, sink, &mut onward.bytes, &mut answers)?;
            if !back.closed {
                back.bytes.extend(answers);
            }
            *progress = true;
        }
        Ok(())
    }

    /// The direction that reads from `reader` stopped. Ready with the end, unless the other direction may have
    /// something left to pass on.
    fn stopped(&mut self, stop: Stop, reader: Side) -> Poll<End> {
        let fault = match stop {
            Stop::Session(error) => return Poll::Ready(End::Refused(error)),
            Stop::Fault(fault) => fault,
        };
        self.from(reader).state = LaneState::Abandoned;
        let writer = reader.other();
        match fault {
            Fault::Reader(_) if self.dying.is_some() => Poll::Ready(self.give_up()),
            Fault::Reader(_) if self.from(writer).state == LaneState::Ended => {
                Poll::Ready(End::Over(RelayEnd::Closed, Some(writer)))
            }
            Fault::Reader(error) => {
                Poll::Ready(End::Over(RelayEnd::of(reader, error), Some(writer)))
            }
            Fault::Writer(error) => {
                match writer {
                    Side::Client => self.to_client.closed = true,
                    Side::Target => self.to_target.closed = true,
                }
                match self.dying.take() {
                    Some((first, error)) => {
                        Poll::Ready(End::Over(RelayEnd::of(first, error), None))
                    }
                    None if self.from(writer).state == LaneState::Ended => {
                        Poll::Ready(End::Over(RelayEnd::Closed, Some(reader)))
                    }
                    None => {
                        self.dying = Some((writer, error));
                        Poll::Pending
                    }
                }
            }
        }
    }

    /// Whether a side does not take what was read of the other, whose end may be behind more.
    fn is_stuck(&self) -> bool {
        self.staged || self.to_target.waiting() > 0 || self.to_client.waiting() > 0
    }

    /// The end that follows from a direction that is stuck, if one does.
    fn look(&mut self, cx: &mut Context<'_>, looks: &mut Looks, traffic: &Traffic) -> Option<End> {
        let staged = self.staged;
        let client_is_stuck = staged || self.to_target.waiting() > 0;
        let target_is_stuck = staged || self.to_client.waiting() > 0;
        if client_is_stuck {
            self.client.keep_alive_unread(cx);
        }
        if target_is_stuck {
            self.target.keep_alive_unread(cx);
        }
        let client = client_is_stuck.then_some(&self.client);
        let target = target_is_stuck.then_some(&self.target);
        match looks.look(traffic, client, target, staged) {
            Look::GoOn => None,
            Look::ReadAhead => {
                self.up.ahead_wanted = true;
                let read = self.up.read_ahead(cx, &mut self.client);
                looks.client_is_there = read == Extent::All;
                (read == Extent::Ended).then(|| self.gone(Side::Client))
            }
            Look::Over(Stuck::Gone(side)) => Some(self.gone(side)),
            // Cut off and not told: a client that is still there comes back by itself.
            Look::Over(Stuck::TargetStalled) => Some(End::Over(RelayEnd::TargetStalled, None)),
        }
    }

    fn gone(&mut self, side: Side) -> End {
        self.first.get_or_insert(side);
        self.stop_waiting()
    }

    fn note_end(&mut self, side: Side) {
        if self.first.is_none() && self.from(side).state != LaneState::Open {
            self.first = Some(side);
        }
    }

    fn give_up(&mut self) -> End {
        match self.dying.take() {
            Some((side, error)) => End::Over(RelayEnd::of(side, error), Some(side.other())),
            None => End::Over(RelayEnd::Closed, None),
        }
    }

    /// One side has ended, and the other had its time.
    fn stop_waiting(&mut self) -> End {
        match self.first {
            Some(side) if self.dying.is_none() => End::Over(RelayEnd::Closed, Some(side.other())),
            Some(_) | None => self.give_up(),
        }
    }

    fn from(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Client => &mut self.up,
            Side::Target => &mut self.down,
        }
    }
}

/// Why a direction cannot go on.
enum Stop {
    Fault(Fault),
    Session(SessionError),
}

/// What looks at the PDUs of one direction.
struct PduJudge<'a> {
    tracker: &'a mut Tracker,
    sink: &'a mut dyn Sink,
    direction: Direction,
    /// Set where the stages have no room.
    staged: &'a mut bool,
    started: Instant,
}

/// Moves what one direction can move now.
fn advance<S, K>(
    cx: &mut Context<'_>,
    lane: &mut Lane,
    (source, back): (&mut S, &mut Outbox),
    (sink, outbox, count): (&mut K, &mut Outbox, &AtomicU64),
    inspect: &mut PduJudge<'_>,
    progress: &mut bool,
) -> Result<(), Stop>
where
    S: AsyncRead + LowWater + Unpin,
    K: AsyncWrite + Unpin,
{
    lane.gather.poll(cx, source);
    if lane.state == LaneState::Abandoned || outbox.closed {
        return Ok(());
    }
    // Answers of a stage may wait here even after this direction has ended.
    let empty = outbox
        .write(cx, sink, count, progress)
        .map_err(|error| Stop::Fault(Fault::Writer(error)))?;
    if !empty {
        return Ok(());
    }
    match lane.state {
        LaneState::Open => {}
        LaneState::Ending => {
            if let Poll::Ready(shut) = Pin::new(sink).poll_shutdown(cx) {
                shut.map_err(|error| Stop::Fault(Fault::Writer(error)))?;
                lane.state = LaneState::Ended;
                // Nor can an answer of a stage.
                outbox.closed = true;
                *progress = true;
            }
            return Ok(());
        }
        LaneState::Ended | LaneState::Abandoned => return Ok(()),
    }
    if back.waiting() > ANSWERS_BYTES {
        return Ok(());
    }
    let ready = inspect.sink.poll_ready(cx);
    if ready.is_pending() || inspect.tracker.is_full(inspect.direction) {
        *inspect.staged = true;
        return Ok(());
    }
    if let Poll::Ready(Err(termination)) = ready {
        let error = SessionError::Terminated(termination);
        return Err(Stop::Session(error));
    }
    if !lane.fresh {
        match lane.fill(cx, source) {
            Poll::Pending => {
                lane.rest();
                outbox.rest_if_empty();
                return Ok(());
            }
            Poll::Ready(Ok(0)) => {
                // What is left of a frame that was cut off goes nowhere: nobody has seen what it says.
                lane.arrived.zeroize();
                lane.state = LaneState::Ending;
                *progress = true;
                return Ok(());
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Err(Stop::Fault(Fault::Reader(error))),
        }
    }
    lane.fresh = false;
    *progress = true;
    inspect.sink.set_now(inspect.started.elapsed());
    // The outbox is empty here, so that a run of untouched frames is handed over without a copy.
    let mut answers = Vec::new();
    let fed = inspect.tracker.feed(
        inspect.direction,
        &mut lane.arrived,
        inspect.sink,
        &mut outbox.bytes,
        &mut answers,
    );
    if !back.closed {
        back.bytes.extend(answers);
    }
    let fed = fed.map_err(Stop::Session)?;
    lane.fresh = fed.more;
    if !fed.more {
        // What was read ahead has been passed on.
        lane.ahead.give_back();
        lane.ahead_wanted = false;
    }
    outbox.sensitive |= fed.sensitive;
    lane.gather.expect(cx, fed.awaited, source);
    outbox
        .write(cx, sink, count, progress)
        .map_err(|error| Stop::Fault(Fault::Writer(error)))?;
    Ok(())
}

impl Lane {
    fn new(read_ahead: Vec<u8>, client: Option<IpAddr>) -> Self {
        Self {
            state: LaneState::Open,
            fresh: !read_ahead.is_empty(),
            arrived: read_ahead,
            end: None,
            ahead: Reserved::of(client),
            ahead_wanted: false,
            gather: Gather::default(),
        }
    }

    /// Nothing will move any more.
    fn is_over(&self) -> bool {
        matches!(self.state, LaneState::Ended | LaneState::Abandoned)
    }

    /// Reads what there is, within reason. Zero is the end.
    fn fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
    ) -> Poll<io::Result<usize>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        if self.arrived.capacity() < READ_BYTES {
            let beginning = std::mem::replace(&mut self.arrived, buffers::take());
            self.arrived.extend_from_slice(&Zeroizing::new(beginning));
        }
        // TLS hands out one record at a time.
        let mut count = 0_usize;
        while count < READ_BYTES {
            self.arrived.reserve(READ_BYTES.saturating_sub(count));
            match pin!(source.read_buf(&mut self.arrived)).poll(cx) {
                Poll::Ready(Ok(more @ 1..)) => count = count.saturating_add(more),
                Poll::Ready(end) => {
                    let end = match end {
                        // TLS that ends without a close_notify alert, as RDP clients do. A frame that is cut off is
                        // not passed.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                        end => end,
                    };
                    if count == 0 {
                        return Poll::Ready(end);
                    }
                    // It may not be told twice.
                    self.end = Some(end);
                    break;
                }
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(count))
    }

    /// If that is wanted, reads what is there although the sink has not taken what was read before.
    fn read_ahead<S>(&mut self, cx: &mut Context<'_>, source: &mut S) -> Extent
    where
        S: AsyncRead + Unpin,
    {
        while self.ahead_wanted {
            if self.end.is_some() {
                return Extent::Ended;
            }
            let bytes = self.arrived.len().saturating_add(2 * READ_BYTES);
            if bytes > AHEAD_BYTES || !self.ahead.grow_to(bytes) {
                return Extent::Full;
            }
            match self.fill(cx, source) {
                Poll::Ready(Ok(1..)) => self.fresh = true,
                Poll::Ready(Ok(0) | Err(_)) => return Extent::Ended,
                Poll::Pending => return Extent::All,
            }
        }
        Extent::Full
    }

    /// Nothing to read: nothing is held but the beginning of a frame.
    fn rest(&mut self) {
        let beginning = self.arrived.as_slice().to_vec();
        // It may be that of a logon.
        self.arrived.fill(0);
        buffers::give_back(&mut self.arrived);
        self.arrived = beginning;
    }
}

impl Outbox {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn waiting(&self) -> usize {
        self.rest().len()
    }

    fn rest_if_empty(&mut self) {
        if self.bytes.is_empty() {
            buffers::give_back(&mut self.bytes);
        }
    }

    /// Writes what the stream takes; whether all is gone, though perhaps not flushed.
    fn write<K: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut K,
        count: &AtomicU64,
        progress: &mut bool,
    ) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, self.rest()) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(taken)) => {
                    self.sent = self.sent.saturating_add(taken);
                    self.unflushed = true;
                    *progress = true;
                    count.fetch_add(to_u64(taken), Ordering::Relaxed);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        if self.sensitive {
            self.bytes.zeroize();
            self.sensitive = false;
        }
        self.bytes.clear();
        self.sent = 0;
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(true)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.arrived.zeroize();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if self.sensitive {
            self.bytes.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::task::Waker;
    use std::time::Duration;

    use jetway_lab::net::tcp_pair;
    use jetway_lab::tls::tls_pair;
    use tokio::io::{DuplexStream, ReadBuf, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::tests::{part_from_all, reset};
    use jetway_rdp::budget::Budget;
    use jetway_rdp::event::{Event, Grounds, HeldMessage, Interest, Phase, Termination, Verdict};
    use jetway_rdp::tracker::Settings;
    use jetway_rdp::{frame, mcs};

    #[tokio::test(start_paused = true)]
    async fn a_session_passes_and_each_side_may_finish_first() {
        let mut lab = Lab::start(RelayLimits::default(), Judge::default());
        lab.play(Phase::Active).await;
        // The client has said all; the target finishes what it says.
        lab.client.shutdown().await.unwrap();
        assert_eq!(lab.target.read(&mut [0]).await.unwrap(), 0);
        let update = fast_path(&[0x03, 0, 0]);
        lab.target.write_all(&update).await.unwrap();
        lab.target.shutdown().await.unwrap();
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, update);
        assert!(matches!(
            lab.task.await.unwrap(),
            InspectedEnd::Closed {
                by: Side::Client,
                orderly: false
            }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_ends_the_session_although_the_other_stays() {
        for goes in [Side::Client, Side::Target] {
            let limits = RelayLimits {
                after_end: Some(crate::RDP_AFTER_END),
                ..RelayLimits::default()
            };
            let mut lab = Lab::start(limits, Judge::default());
            lab.play(Phase::Active).await;
            let (gone, stays) = match goes {
                Side::Client => (&mut lab.client, &mut lab.target),
                Side::Target => (&mut lab.target, &mut lab.client),
            };
            gone.shutdown().await.unwrap();
            assert_eq!(stays.read(&mut [0]).await.unwrap(), 0);
            // It keeps its side open, and the session ends all the same.
            let end = lab.task.await.unwrap();
            assert!(
                matches!(end, InspectedEnd::Closed { by, orderly: false } if by == goes),
                "{end:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_takes_nothing_keeps_the_session_of_a_client_that_is_there_and_of_no_other()
     {
        let limits = RelayLimits {
            after_end: Some(crate::RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let mut lab = Lab::start(limits, Judge::default());
        lab.play(Phase::Active).await;
        let inputs = [0x04, 0x04, 0x00, 0x1e].repeat(16);
        while let Ok(written) = timeout(Duration::from_secs(1), lab.client.write(&inputs)).await {
            written.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!lab.task.is_finished());
        drop(lab.client);
        let end = lab.task.await.unwrap();
        assert!(
            matches!(
                end,
                InspectedEnd::Closed {
                    by: Side::Client,
                    ..
                }
            ),
            "{end:?}"
        );
    }

    /// A target takes a part of what was read ahead at a time; none of it is lost, and no more is held than was reserved.
    #[tokio::test(start_paused = true)]
    async fn what_is_read_ahead_is_reserved_until_it_has_left() {
        let limits = RelayLimits {
            after_end: Some(crate::RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let mut lab = Lab::start(limits, Judge::default());
        lab.play(Phase::Active).await;
        let inputs = [0x04, 0x04, 0x00, 0x1e].repeat(250_000);
        lab.client.write_all(&inputs).await.unwrap();
        let ahead = crate::ahead::all_ahead();
        assert!(ahead >= 900_000, "{ahead}");
        let mut part = vec![0; 300_000];
        lab.target.read_exact(&mut part).await.unwrap();
        let ahead = crate::ahead::all_ahead();
        assert!(ahead >= 500_000, "{ahead}");
        let mut rest = vec![0; inputs.len() - part.len()];
        lab.target.read_exact(&mut rest).await.unwrap();
        assert!([part, rest].concat() == inputs);
        lab.client.write_all(&inputs[..4]).await.unwrap();
        lab.target.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(crate::ahead::all_ahead(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_takes_a_little_now_and_then_does_not_keep_the_session_of_who_has_gone() {
        let limits = RelayLimits {
            after_end: Some(crate::RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let mut lab = Lab::start(limits, Judge::default());
        lab.play(Phase::Active).await;
        let inputs = [0x04, 0x04, 0x00, 0x1e].repeat(1024);
        let mut client = lab.client;
        let sending = tokio::spawn(async move {
            // Far more than is taken of it, and then the end, which is behind all of it.
            for _ in 0..256 {
                if client.write_all(&inputs).await.is_err() {
                    break;
                }
            }
        });
        let mut target = lab.target;
        let slow = tokio::spawn(async move {
            while let Ok(1..) = target.read(&mut [0; 4096]).await {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        let started = Instant::now();
        let end = lab.task.await.unwrap();
        assert!(
            matches!(
                end,
                InspectedEnd::Closed {
                    by: Side::Client,
                    ..
                }
            ),
            "{end:?}"
        );
        let lasted = started.elapsed();
        assert!(lasted < Duration::from_secs(30), "{lasted:?}");
        sending.await.unwrap();
        slow.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_of_a_client_reaches_its_target_unchanged() {
        let limits = RelayLimits {
            after_end: Some(crate::RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let mut lab = Lab::start(limits, Judge::default());
        lab.play(Phase::Active).await;
        let inputs: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| [0x04, 0x04, 0x00, n.to_le_bytes()[0]])
            .collect();
        // As much as nothing of this session holds back.
        lab.client.write_all(&inputs).await.unwrap();
        let mut got = vec![0; inputs.len()];
        lab.target.read_exact(&mut got).await.unwrap();
        assert!(got == inputs);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cut_breaks_without_a_word() {
        let mut lab = Lab::to_be_cut();
        lab.play(Phase::Active).await;
        lab.cancel.cancel();
        for side in [&mut lab.client, &mut lab.target] {
            let mut got = Vec::new();
            side.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"");
        }
        let end = lab.task.await.unwrap();
        assert!(matches!(end, InspectedEnd::Relay(RelayEnd::Cancelled)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_side_that_ends_first_is_named_and_whether_it_said_so() {
        // Disconnect Provider Ultimatum; Set Error Info: logged off; Set Error Info: nothing.
        let ultimatum = b"\x03\0\0\x09\x02\xf0\x80\x21\x80";
        let error_info = |code: u8| {
            let mut pdu = b"\x03\0\0\x25\x02\xf0\x80\x68\0\x01\x03\xeb\x70\x80\x16".to_vec();
            pdu.extend(b"\x16\0\x17\0\xea\x03\0\0\0\0\0\x01\x04\0\x2f\0\0\0");
            pdu.extend([code, 0, 0, 0]);
            pdu
        };
        for (words, said) in [
            (vec![], false),
            (ultimatum.to_vec(), true),
            (error_info(0x0c), true),
            (error_info(0), false),
        ] {
            let mut lab = Lab::start(RelayLimits::default(), Judge::default());
            lab.play(Phase::Active).await;
            lab.target.write_all(&words).await.unwrap();
            // Killed, or not.
            drop(lab.target);
            let mut got = Vec::new();
            lab.client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, words);
            drop(lab.client);
            let end = lab.task.await.unwrap();
            assert!(
                matches!(&end, InspectedEnd::Closed { by: Side::Target, orderly } if *orderly == said),
                "{end:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_goes_first() {
        let (initial, rest) = recording().remove(0).1.split_at_checked(100).map_or_else(
            || panic!("a short recording"),
            |(a, b)| (a.to_vec(), b.to_vec()),
        );
        let mut lab = Lab::with_read_ahead(initial.clone());
        lab.client.write_all(&rest).await.unwrap();
        let mut got = vec![0; initial.len() + rest.len()];
        lab.target.read_exact(&mut got).await.unwrap();
        assert_eq!(got[..100], initial);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_read_holds_up_its_own_sender_and_nothing_else() {
        let mut lab = Lab::start(RelayLimits::default(), Judge::default());
        lab.play(Phase::Active).await;
        let update = fast_path(&[&[0x03, 0xf0, 0x0f][..], &[7; 0x0ff0]].concat());
        let mut sent = 0_usize;
        while timeout(Duration::from_secs(1), lab.target.write_all(&update))
            .await
            .is_ok()
        {
            sent += update.len();
            assert!(sent < 1024 * 1024, "nothing holds up the target");
        }
        let input = [0x04, 0x04, 0x00, 0x1e];
        lab.client.write_all(&input).await.unwrap();
        let mut got = [0; 4];
        lab.target.read_exact(&mut got).await.unwrap();
        assert_eq!(got, input);
        let mut all = vec![0; sent];
        lab.client.read_exact(&mut all).await.unwrap();
        assert!(all.chunks(update.len()).all(|chunk| chunk == update));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_stage_slows_down_both_sides_and_nothing_is_lost() {
        let (judge, store) = Judge::with_store();
        let mut lab = Lab::start(RelayLimits::default(), judge);
        lab.play(Phase::Active).await;
        Store::change(&store, |store| {
            store.shown.clear();
            store.behind = Some(0);
        });
        let update = fast_path(&[&[0x03, 0xf0, 0x0f][..], &[7; 0x0ff0]].concat());
        let all = update.repeat(500);
        let mut target = lab.target;
        let (sent, length) = (all.clone(), all.len());
        let sending = tokio::spawn(async move {
            target.write_all(&sent).await.unwrap();
            target
        });
        let writing = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                let mut most = 0;
                for _ in 0.. {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let mut done = false;
                    Store::change(&store, |store| {
                        let behind = store.behind.as_mut().unwrap();
                        most = most.max(*behind);
                        *behind = behind.saturating_sub(40_000);
                        done = *behind == 0 && store.shown.len() == length;
                    });
                    if done {
                        break;
                    }
                }
                most
            }
        });
        let mut got = vec![0; all.len()];
        lab.client.read_exact(&mut got).await.unwrap();
        assert!(got == all && store.lock().unwrap().shown == all);
        let most = writing.await.unwrap();
        assert!(most < STORE_BYTES + 2 * READ_BYTES, "{most} bytes at once");
        drop((sending.await.unwrap(), lab.client));
    }

    #[tokio::test(start_paused = true)]
    async fn limits_and_ends_and_the_caller_end_a_session_whose_stage_takes_nothing() {
        let after_end = Some(crate::RDP_AFTER_END);
        let [idle, total] = [(Some(60), None), (None, Some(60))].map(|(idle, total)| {
            let seconds = |limit: Option<u64>| limit.map(Duration::from_secs);
            RelayLimits {
                idle: seconds(idle),
                total: seconds(total),
                after_end,
                ..RelayLimits::default()
            }
        });
        let none = RelayLimits {
            after_end,
            ..RelayLimits::default()
        };
        for (limits, cancels, expected) in [
            (idle, false, "IdleTimeout"),
            (total, false, "TimeLimit"),
            (none, true, "Cancelled"),
        ] {
            let (judge, store) = Judge::with_store();
            let mut lab = Lab::start(limits, judge);
            lab.play(Phase::Active).await;
            Store::change(&store, |store| store.behind = Some(STORE_BYTES));
            // Both have more to say than is taken of them.
            let update = fast_path(&[0x03, 0, 0]);
            lab.target.write_all(&update).await.unwrap();
            lab.client
                .write_all(&[0x04, 0x04, 0x00, 0x1e])
                .await
                .unwrap();
            if cancels {
                lab.cancel.cancel();
            }
            let end = lab.task.await.unwrap();
            assert!(format!("{end:?}").contains(expected), "{end:?}");
            let mut got = Vec::new();
            lab.client.read_to_end(&mut got).await.unwrap();
            // Told why, and shown nothing that was not written down.
            assert_eq!(frames(&got), 2);
            assert!(!got.starts_with(&update));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_ends_a_session_whose_stage_takes_nothing() {
        let limits = RelayLimits {
            after_end: Some(crate::RDP_AFTER_END),
            ..RelayLimits::default()
        };
        let (client, near) = tcp_pair().await;
        let (far, target) = tcp_pair().await;
        let (judge, store) = Judge::with_store();
        let cancel = (CancellationToken::new(), CancelWay::Told);
        let task = start(leg(near), leg(far), limits, judge, cancel, Arc::default());
        let (mut client, mut target) = (client, target);
        play(&mut client, &mut target, Phase::Active).await;
        Store::change(&store, |store| store.behind = Some(STORE_BYTES));
        target.write_all(&fast_path(&[0x03, 0, 0])).await.unwrap();
        drop(client);
        let end = task.await.unwrap();
        assert!(
            matches!(
                end,
                InspectedEnd::Closed {
                    by: Side::Client,
                    ..
                }
            ),
            "{end:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_fails_ends_the_session_with_its_reason_and_its_code() {
        let (judge, store) = Judge::with_store();
        let mut lab = Lab::start(RelayLimits::default(), judge);
        lab.play(Phase::Active).await;
        Store::change(&store, |store| store.fails = true);
        let update = fast_path(&[0x03, 0, 0]);
        // It may be dropped by then.
        let _ = lab.target.write_all(&update).await;
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        // Nothing that was not recorded: the code, and the ultimatum.
        assert_eq!(frames(&got), 2);
        assert!(!got.starts_with(&update));
        let end = lab.task.await.unwrap();
        let InspectedEnd::Session(error) = end else {
            panic!("{end:?}")
        };
        assert_eq!(error.error_info(), 7);
        assert_eq!(error.to_string(), "session ended by policy: disk full");
        assert!(
            store.lock().unwrap().shown.ends_with(&got),
            "told, and known"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_waits_holds_up_its_channel_alone_and_its_end_ends_the_wait() {
        for cancels in [false, true] {
            let (judge, store) = Judge::with_store();
            let judge = Judge {
                interest: Some(Interest::Decide),
                ..judge
            };
            let mut lab = Lab::start(RelayLimits::default(), judge);
            lab.play(Phase::Active).await;
            let message = |data: &[u8]| {
                let flags = 3_u32.to_le_bytes();
                let total = u32::try_from(data.len()).unwrap().to_le_bytes();
                let parts = [&total[..], &flags, data];
                mcs::encode_send_data(false, 1002, 1006, &parts).unwrap()
            };
            let update = fast_path(&[0x03, 0, 0]);
            let (waits, behind) = (message(b"wait"), message(b"behind"));
            let all = [waits.clone(), behind.clone(), update.clone()].concat();
            lab.target.write_all(&all).await.unwrap();
            let mut got = vec![0; update.len()];
            lab.client.read_exact(&mut got).await.unwrap();
            assert_eq!(got, update);
            if cancels {
                lab.cancel.cancel();
                let mut got = Vec::new();
                lab.client.read_to_end(&mut got).await.unwrap();
                assert_eq!(frames(&got), 2);
                let end = lab.task.await.unwrap();
                assert!(matches!(end, InspectedEnd::Relay(RelayEnd::Cancelled)));
                continue;
            }
            Store::change(&store, |store| store.answer = Some(Verdict::Forward));
            let mut got = vec![0; waits.len() + behind.len()];
            lab.client.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [waits, behind].concat());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_pass_ends_the_session_with_a_word_to_both_sides() {
        let mut lab = Lab::start(RelayLimits::default(), Judge::default());
        lab.play(Phase::Active).await;
        lab.target.write_all(&[0x16, 3, 3, 0]).await.unwrap();
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        // Set Error Info and the ultimatum.
        assert_eq!(frames(&got), 2);
        let mut got = Vec::new();
        lab.target.read_to_end(&mut got).await.unwrap();
        assert_eq!(frames(&got), 1);
        let end = lab.task.await.unwrap();
        assert!(
            matches!(&end, InspectedEnd::Session(SessionError::Frame { .. })),
            "{end:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_denied_message_is_answered_and_does_not_arrive() {
        let mut lab = Lab::start(
            RelayLimits::default(),
            Judge {
                interest: Some(Interest::Decide),
                ..Judge::default()
            },
        );
        lab.play(Phase::Active).await;
        let data = [4, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c', b'd'];
        let mut message = vec![
            3, 0, 0, 27, 2, 0xf0, 0x80, 0x64, 0, 1, 0x03, 0xee, 0x70, 0x80, 12,
        ];
        message.extend(data);
        lab.client.write_all(&message).await.unwrap();
        let mut answer = vec![0; 15 + 8 + 2];
        lab.client.read_exact(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"no"));
        // The next thing that the target hears is another.
        let input = [0x04, 0x04, 0x00, 0x1e];
        lab.client.write_all(&input).await.unwrap();
        let mut got = [0; 4];
        lab.target.read_exact(&mut got).await.unwrap();
        assert_eq!(got, input);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_and_the_caller_end_a_session_and_the_client_is_told() {
        let limits = RelayLimits {
            idle: Some(Duration::from_secs(60)),
            ..RelayLimits::default()
        };
        let mut lab = Lab::start(limits, Judge::default());
        lab.play(Phase::Active).await;
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        assert_eq!(frames(&got), 2);
        assert!(matches!(
            lab.task.await.unwrap(),
            InspectedEnd::Relay(RelayEnd::IdleTimeout)
        ));

        let limits = RelayLimits {
            total: Some(Duration::from_secs(60)),
            ..RelayLimits::default()
        };
        let lab = Lab::start(limits, Judge::default());
        assert!(matches!(
            lab.task.await.unwrap(),
            InspectedEnd::Relay(RelayEnd::TimeLimit)
        ));

        let mut lab = Lab::start(RelayLimits::default(), Judge::default());
        lab.play(Phase::Active).await;
        lab.cancel.cancel();
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        assert_eq!(frames(&got), 2);
        assert!(matches!(
            lab.task.await.unwrap(),
            InspectedEnd::Relay(RelayEnd::Cancelled)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_cut_off_goes_nowhere() {
        let mut lab = Lab::start(RelayLimits::default(), Judge::default());
        lab.play(Phase::Active).await;
        lab.target.write_all(&[0x00, 0x20, 0x03, 1]).await.unwrap();
        lab.target.shutdown().await.unwrap();
        let mut got = Vec::new();
        lab.client.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }

    #[test]
    fn how_a_side_ended_is_not_lost_behind_what_it_said_before() {
        struct Breaks(VecDeque<io::Result<Vec<u8>>>);
        impl AsyncRead for Breaks {
            fn poll_read(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                // As of a socket: the error is told once, and then nothing more comes.
                match self.0.pop_front() {
                    Some(Ok(bytes)) => buf.put_slice(&bytes),
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => {}
                }
                Poll::Ready(Ok(()))
            }
        }
        let mut source = Breaks(VecDeque::from([
            Ok(b"one".to_vec()),
            Ok(b"two".to_vec()),
            Err(io::ErrorKind::ConnectionReset.into()),
        ]));
        let mut lane = Lane::new(Vec::new(), None);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(
            lane.fill(&mut cx, &mut source),
            Poll::Ready(Ok(6))
        ));
        assert_eq!(lane.arrived, b"onetwo");
        let Poll::Ready(Err(error)) = lane.fill(&mut cx, &mut source) else {
            panic!("the end was lost");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_lane_at_rest_holds_no_more_than_the_beginning_of_a_frame() {
        let mut lane = Lane::new(Vec::new(), None);
        let mut cx = Context::from_waker(Waker::noop());
        let (mut far, mut near) = duplex(1024 * 1024);
        let sent = pin!(far.write_all(&[7; 1000])).poll(&mut cx);
        assert!(matches!(sent, Poll::Ready(Ok(()))));
        assert!(matches!(
            lane.fill(&mut cx, &mut near),
            Poll::Ready(Ok(1000))
        ));
        assert!(lane.arrived.capacity() >= READ_BYTES);
        lane.rest();
        assert_eq!(lane.arrived, [7; 1000]);
        assert_eq!(lane.arrived.capacity(), 1000);
        lane.arrived.clear();
        lane.rest();
        assert_eq!(lane.arrived.capacity(), 0);
    }

    #[tokio::test]
    async fn a_side_that_breaks_is_named_and_the_other_gets_an_orderly_end() {
        let (client, near) = tcp_pair().await;
        let (mut target, far) = tcp_pair().await;
        let traffic = Arc::new(Traffic::default());
        let task = start_plain(near, far, traffic);
        reset(client);
        assert_eq!(target.read(&mut [0]).await.unwrap(), 0);
        drop(target);
        assert!(matches!(
            task.await.unwrap(),
            InspectedEnd::Relay(RelayEnd::ClientFailed(_))
        ));
    }

    #[tokio::test]
    async fn what_a_target_says_before_it_pauses_in_a_message_arrives() {
        let (mut client, near) = tcp_pair().await;
        let (mut target, far) = tcp_pair().await;
        let task = start_plain(near, far, Arc::default());
        play(&mut client, &mut target, Phase::Active).await;
        /// As the recording's target counts.
        const CLIPRDR: u16 = 1006;
        const CHUNKS: u32 = 200;
        let flags = |number| match number {
            0 => 0x11,
            number if number == CHUNKS - 1 => 0x12,
            _ => 0x10_u32,
        };
        for number in 0..CHUNKS {
            let total = CHUNKS * 1600;
            let parts = [
                &total.to_le_bytes()[..],
                &flags(number).to_le_bytes(),
                &[7; 1600],
            ];
            let chunk = mcs::encode_send_data(false, 1002, CLIPRDR, &parts).unwrap();
            target.write_all(&chunk).await.unwrap();
            // The target says no more before the client has this.
            let mut got = vec![0; chunk.len()];
            client.read_exact(&mut got).await.unwrap();
            assert!(got == chunk, "{number}");
        }
        drop((client, target));
        task.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn megabytes_pass_both_ways_through_tls() {
        let (client, near) = tls_pair().await;
        let (far, target) = tls_pair().await;
        let traffic = Arc::new(Traffic::default());
        let task = start_plain(near, far, Arc::clone(&traffic));
        let (mut client, mut target) = (client, target);
        play(&mut client, &mut target, Phase::Active).await;
        let already = traffic.to_client.load(Ordering::Relaxed);
        let (mut client_reader, mut client_writer) = tokio::io::split(client);
        let (mut target_reader, mut target_writer) = tokio::io::split(target);
        const COUNT: usize = 2000;
        let update = fast_path(&[&[0x03, 0xf0, 0x0f][..], &[7; 0x0ff0]].concat());
        let input: Vec<u8> = [0x04, 0x04, 0x00, 0x1e].repeat(500);
        let (down, up) = (update.clone(), input.clone());
        let sending = tokio::spawn(async move {
            for _ in 0..COUNT {
                target_writer.write_all(&down).await.unwrap();
            }
            target_writer.shutdown().await.unwrap();
        });
        let typing = tokio::spawn(async move {
            for _ in 0..COUNT {
                client_writer.write_all(&up).await.unwrap();
            }
            client_writer.shutdown().await.unwrap();
        });
        let hearing = tokio::spawn(async move {
            let mut all = Vec::new();
            target_reader.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut all = Vec::new();
        client_reader.read_to_end(&mut all).await.unwrap();
        assert!(all == update.repeat(COUNT));
        assert!(hearing.await.unwrap() == input.repeat(COUNT));
        sending.await.unwrap();
        typing.await.unwrap();
        let counted = traffic.to_client.load(Ordering::Relaxed);
        assert_eq!(counted, already + to_u64(all.len()));
        drop((client_reader, task));
    }

    /// A relay between two ends in memory.
    struct Lab {
        client: DuplexStream,
        target: DuplexStream,
        cancel: CancellationToken,
        task: JoinHandle<InspectedEnd>,
    }

    impl Lab {
        fn start(limits: RelayLimits, judge: Judge) -> Self {
            Self::start_with(limits, judge, Vec::new(), CancelWay::Told)
        }

        fn to_be_cut() -> Self {
            let (limits, judge) = (RelayLimits::default(), Judge::default());
            Self::start_with(limits, judge, Vec::new(), CancelWay::Cut)
        }

        fn with_read_ahead(read_ahead: Vec<u8>) -> Self {
            let (limits, judge) = (RelayLimits::default(), Judge::default());
            Self::start_with(limits, judge, read_ahead, CancelWay::Told)
        }

        fn start_with(
            limits: RelayLimits,
            judge: Judge,
            read_ahead: Vec<u8>,
            way: CancelWay,
        ) -> Self {
            let (client, near) = duplex(8 * 1024);
            let (target, far) = duplex(8 * 1024);
            let cancel = CancellationToken::new();
            let task = start(
                Leg {
                    stream: near,
                    read_ahead,
                },
                leg(far),
                limits,
                judge,
                (cancel.clone(), way),
                Arc::default(),
            );
            Self {
                client,
                target,
                cancel,
                task,
            }
        }

        async fn play(&mut self, phase: Phase) {
            play(&mut self.client, &mut self.target, phase).await;
        }
    }

    /// A side of which nothing was read.
    fn leg<S>(stream: S) -> Leg<S> {
        Leg {
            stream,
            read_ahead: Vec::new(),
        }
    }

    /// A relay without limits or anything to object to.
    fn start_plain<C, T>(client: C, target: T, traffic: Arc<Traffic>) -> JoinHandle<InspectedEnd>
    where
        C: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin + Send + 'static,
    {
        start(
            leg(client),
            leg(target),
            RelayLimits::default(),
            Judge::default(),
            (CancellationToken::new(), CancelWay::Told),
            traffic,
        )
    }

    fn start<C, T>(
        client: Leg<C>,
        target: Leg<T>,
        limits: RelayLimits,
        mut judge: Judge,
        (token, way): (CancellationToken, CancelWay),
        traffic: Arc<Traffic>,
    ) -> JoinHandle<InspectedEnd>
    where
        C: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + LowWater + OverTcp + Unpin + Send + 'static,
    {
        tokio::spawn(async move {
            let mut tracker = tracker();
            let way = || way;
            let relayed = run(
                client,
                target,
                &mut tracker,
                &mut judge,
                &traffic,
                limits,
                Cancel { token, way: &way },
            );
            let (end, parting) = relayed.await;
            part_from_all(parting).await;
            end
        })
    }

    /// Plays the recording until the session is in this phase; each side hears what the other said.
    async fn play<C, T>(client: &mut C, target: &mut T, phase: Phase)
    where
        C: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut model, mut judge) = (tracker(), Judge::default());
        for (direction, pdu) in recording() {
            if model.phase() == phase {
                break;
            }
            let (mut onward, mut back) = (Vec::new(), Vec::new());
            model
                .feed(
                    direction,
                    &mut pdu.clone(),
                    &mut judge,
                    &mut onward,
                    &mut back,
                )
                .unwrap();
            let mut got = vec![0; onward.len()];
            match direction {
                Direction::ToTarget => {
                    client.write_all(&pdu).await.unwrap();
                    client.flush().await.unwrap();
                    target.read_exact(&mut got).await.unwrap();
                }
                Direction::ToClient => {
                    target.write_all(&pdu).await.unwrap();
                    target.flush().await.unwrap();
                    client.read_exact(&mut got).await.unwrap();
                }
            }
        }
        assert_eq!(model.phase(), phase);
    }

    fn tracker() -> Tracker {
        Tracker::new(Settings {
            client_requested: 3,
            target_selected: 1,
            logon: None,
            redirections: None,
            routing_token: None,
            cookies: None,
            budget: Budget::default(),
        })
    }

    fn fast_path(updates: &[u8]) -> Vec<u8> {
        let length = u16::try_from(updates.len() + 3).unwrap() | 0x8000;
        let mut frame = vec![0];
        frame.extend(length.to_be_bytes());
        frame.extend(updates);
        frame
    }

    fn frames(mut bytes: &[u8]) -> usize {
        let mut count = 0;
        while let Some(frame) = frame::find(bytes).unwrap() {
            bytes = &bytes[frame.length..];
            count += 1;
        }
        assert!(bytes.is_empty());
        count
    }

    #[derive(Debug, Default)]
    struct Judge {
        interest: Option<Interest>,
        store: Arc<Mutex<Store>>,
    }

    impl Judge {
        fn with_store() -> (Self, Arc<Mutex<Store>>) {
            let judge = Self::default();
            let store = Arc::clone(&judge.store);
            (judge, store)
        }
    }

    /// What a stage keeps, and what it can take.
    #[derive(Debug, Default)]
    struct Store {
        /// Every byte that went to the client, as reported.
        shown: Vec<u8>,
        /// What of it was not written down yet, bytes; `None` where nothing has to be.
        behind: Option<usize>,
        /// It cannot be written down any more.
        fails: bool,
        /// Messages of `wait` are held until this says how.
        answer: Option<Verdict>,
        held: Option<HeldMessage>,
        waker: Option<Waker>,
    }

    /// What may not be written down yet before the stage says that it cannot take more, bytes.
    const STORE_BYTES: usize = 16 * 1024;

    impl Store {
        fn change(store: &Mutex<Self>, change: impl FnOnce(&mut Self)) {
            let mut store = store.lock().unwrap();
            change(&mut store);
            if let Some(waker) = store.waker.take() {
                waker.wake();
            }
        }
    }

    impl Sink for Judge {
        fn interest(&self, _: &str) -> Interest {
            self.interest.unwrap_or(Interest::Observe)
        }

        fn decides(&self) -> bool {
            self.interest == Some(Interest::Decide)
        }

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Termination>> {
            let mut store = self.store.lock().unwrap();
            if store.fails {
                return Poll::Ready(Err(Termination {
                    grounds: Grounds::new("record", "disk full"),
                    error_info: 7,
                }));
            }
            store.waker = Some(cx.waker().clone());
            match store.behind {
                Some(STORE_BYTES..) => Poll::Pending,
                Some(_) | None => Poll::Ready(Ok(())),
            }
        }

        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the other events are of no interest here"
        )]
        fn on_event(&mut self, event: &Event<'_>) -> Verdict {
            let mut store = self.store.lock().unwrap();
            match event {
                Event::ChannelMessage { data: b"abcd", .. } => {
                    return Verdict::Deny {
                        answers: vec![b"no".to_vec()],
                        grounds: Grounds::new("test", "no"),
                    };
                }
                Event::ChannelMessage {
                    data: b"wait",
                    channel,
                    direction,
                } => {
                    store.held = Some(HeldMessage {
                        channel: channel.id,
                        direction: *direction,
                    });
                    return Verdict::Hold;
                }
                Event::Pdu {
                    direction: Direction::ToClient,
                    bytes,
                    ..
                } => {
                    store.shown.extend_from_slice(bytes);
                    if let Some(behind) = &mut store.behind {
                        *behind += bytes.len();
                    }
                }
                _ => {}
            }
            Verdict::Forward
        }

        fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<HeldMessage> {
            let mut store = self.store.lock().unwrap();
            store.waker = Some(cx.waker().clone());
            match (&store.answer, store.held) {
                (Some(_), Some(held)) => {
                    store.held = None;
                    Poll::Ready(held)
                }
                _ => Poll::Pending,
            }
        }

        fn on_answer(&mut self, _: &Event<'_>) -> Verdict {
            self.store.lock().unwrap().answer.take().unwrap()
        }
    }

    fn recording() -> Vec<(Direction, Vec<u8>)> {
        let directions = [Direction::ToTarget, Direction::ToClient];
        jetway_lab::recording::session("gdi-tls-shadow2", directions)
    }
}
