//! A WebSocket as a stream of bytes ([RFC 6455]): what JET peers send in binary messages, without their boundaries.
//!
//! - A ping goes out every [`PING_EVERY`]; a peer that has sent nothing since the last [`SILENT_PINGS`] of them is gone.
//!   Proxies between keep connections open only while something moves.
//! - A peer that does not read for now answers no ping. So a peer that was sent bytes since it was last heard has the time that
//!   protocols with pauses have ([`limits::HALF_CLOSE_S`]), and who does not read sends its own pings all the same
//!   ([`WebSocket::ping_unread`]).
//! - Close codes ([RFC 6455] 7.4.1): 1000 at an end, 1002 for what is no WebSocket, 1003 for text, 1009 for a message
//!   above [`WEBSOCKET_MESSAGE_BYTES`](limits::WEBSOCKET_MESSAGE_BYTES); the others are in [`Farewell`].
//! - Whoever sends what is not taken is probably still sending, and a connection that is closed with bytes unread is reset:
//!   the code could be lost with it. So it is told, and what it sends is thrown away until it has ended, or has had
//!   [`REFUSAL_LINGER`](limits::REFUSAL_LINGER).
//!
//! # The end of one direction
//!
//! TCP and TLS can end one direction and go on with the other. A WebSocket cannot: whoever gets a Close frame answers it at once,
//! and sends nothing after that ([RFC 6455] 5.5.1). So a Close that passed on the half-close of the other peer would cut off the
//! answer that this half-close asks for.
//!
//! *Peers that know of it* offer the sub-protocol [`HALF_CLOSE_PROTOCOL`] in their handshake, and have it if it is selected:
//!
//! - An empty binary message is the end of what its sender says. No other message is empty. Text, or anything behind the end, is an
//!   error.
//! - Whoever has said its end and has heard the peer's sends a Close. It says that all has arrived: until it comes, nobody lets go
//!   of the connection, which could take bytes with it that are on their way.
//! - A Close that comes earlier ends both directions; with another code than 1000, it breaks them off.
//!
//! `jetway agent` and `jetway connect` are such peers. Between any two of TCP, TLS and these, each direction ends by itself.
//!
//! *All others* (a browser, a library) get a Close, and never an empty message. Theirs ends both directions: what they had sent
//! arrives, and what comes for them after it goes nowhere. Ours follows the end of the other peer as late as nobody is kept waiting:
//!
//! - at once where the peer has ended, too;
//! - at once where the token's `jet_ap` names a protocol whose sessions are over when either side ends: rdp, ssh, vnc, wayk;
//! - else once the peer has sent nothing for some time since: a connector for one second, as the end of its server says that no
//!   answer is left, and an acceptor for ten, as the end of its client may be that of a request. An answer that begins later than
//!   that is lost.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

pub mod frames;
pub mod settings;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};

use crate::websocket::frames::{Frames, Role};
use jetway_base::limits;
use jetway_jet::frame::Arrival;

/// How often a ping goes out. Balancers commonly close what was silent for a minute.
pub const PING_EVERY: Duration = Duration::from_secs(25);

/// After so many pings without a frame in return the peer is gone.
pub const SILENT_PINGS: u32 = 2;

/// Likewise where bytes before the pings may be what the peer does not read.
const PAUSED_PINGS: u64 = limits::HALF_CLOSE_S / PING_EVERY.as_secs();

/// Bytes of one message that goes out.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a connection is closed ([RFC 6455] 7.4.1).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
mod code {
    pub(super) const NORMAL: u16 = 1000;
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const UNSUPPORTED: u16 = 1003;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const TOO_LONG: u16 = 1009;
    pub(super) const UNEXPECTED: u16 = 1011;
}

/// Bytes of a refused peer that are thrown away at a time.
const SINK_BYTES: usize = 4 * 1024;

/// What a peer is told with the end of what goes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Farewell {
    /// The other side has ended: 1000.
    #[default]
    Done,
    /// The gateway ends the session, or itself: 1001.
    GoingAway,
    /// What the peer wants is not granted: 1008.
    NotGranted,
    /// The other side is gone without an end: 1011.
    OtherSideBroke,
}

impl Farewell {
    fn code_and_reason(self) -> (u16, &'static str) {
        match self {
            Self::Done => (code::NORMAL, ""),
            Self::GoingAway => (code::GOING_AWAY, "ended by the gateway"),
            Self::NotGranted => (code::POLICY, "not granted"),
            Self::OtherSideBroke => (code::UNEXPECTED, "the other side broke off"),
        }
    }
}

/// The sub-protocol of peers whose WebSockets end each direction by itself.
pub const HALF_CLOSE_PROTOCOL: &str = "jet.half-close";

/// How a WebSocket says that one direction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// By a Close frame, which ends both.
    Together,
    /// By an empty binary message: [`HALF_CLOSE_PROTOCOL`] was agreed on.
    Apart,
}

/// A peer on a WebSocket, past its handshake. A plain one that is dropped with its connection open is told that the gateway
/// goes away, if it can be told at once; others know what a connection means that breaks off.
#[derive(Debug)]
pub struct WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    frames: Frames<S>,
    ends: Ends,
    /// The peer says nothing more.
    ended: bool,
    /// The peer has closed, or its connection is gone.
    left: bool,
    /// We have said our end.
    finished: bool,
    /// Our Close frame was sent.
    closed: bool,
    ping: Interval,
    silent_pings: u32,
    /// Bytes were sent, or could not be, since the peer was last heard.
    may_pause: bool,
    /// The last bytes for the peer could not be sent.
    blocked: bool,
    /// Until when a peer that cannot be told our end without cutting it off is listened to.
    parting: Option<Parting>,
    /// Who waits for the peer's end.
    waiting: Option<Waker>,
    farewell: Farewell,
    /// The peer has sent what is not taken.
    refused: Option<Box<FailedConnection>>,
}

/// The last moments of a connection whose peer has sent what is not taken.
#[derive(Debug)]
struct FailedConnection {
    /// Nothing more is sent, not even below the WebSocket.
    silent: bool,
    until: Pin<Box<Sleep>>,
    error: io::Error,
}

#[derive(Debug)]
struct Parting {
    patience: Duration,
    over: Pin<Box<Sleep>>,
}

impl<S> WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// The server's or client's side of a connection whose handshake is done; `early` came with it.
    #[must_use]
    pub fn new(stream: S, role: Role, early: Vec<u8>, ends: Ends) -> Self {
        let frames = Frames::new(stream, role, early);
        let frames = match ends {
            Ends::Apart => frames.with_ends(),
            Ends::Together => frames,
        };
        let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            frames,
            ends,
            ended: false,
            left: false,
            finished: false,
            closed: false,
            ping,
            silent_pings: 0,
            may_pause: false,
            blocked: false,
            parting: None,
            waiting: None,
            farewell: Farewell::default(),
            refused: None,
        }
    }

    /// What the peer is told when the end of what goes to it is passed on.
    pub fn end_with(&mut self, farewell: Farewell) {
        self.farewell = farewell;
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        self.frames.get_ref()
    }

    /// Sends pings that are due; an error where the peer has answered none.
    fn poll_pings(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let most = if self.may_pause || self.blocked {
            PAUSED_PINGS
        } else {
            SILENT_PINGS.into()
        };
        while self.ping.poll_tick(cx).is_ready() {
            if u64::from(self.silent_pings) >= most {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.silent_pings = self.silent_pings.saturating_add(1);
            if self.closed {
                continue;
            }
            self.frames.ping(cx)?;
        }
        Ok(())
    }

    /// Sends the pings that are due to a peer that is not read for now. They count for nothing here; the peer, whose own pings nobody
    /// answers, sees that this side is alive.
    pub fn ping_unread(&mut self, cx: &mut Context<'_>) {
        while !self.closed && self.ping.poll_tick(cx).is_ready() {
            // Whoever reads or writes next finds a connection that has failed.
            let _ = self.frames.ping(cx);
        }
    }

    /// Takes nothing more from the peer: what is read next is that `error` happened.
    fn refuse(&mut self, code: u16, reason: &str, error: &str) {
        if !self.closed {
            self.frames.close(Some(code), reason);
        }
        self.closed = true;
        self.refused = Some(Box::new(FailedConnection {
            silent: false,
            until: Box::pin(sleep(limits::REFUSAL_LINGER)),
            error: invalid(error),
        }));
    }

    /// Tells the peer why nothing more is taken from it, and waits for its end.
    fn poll_refused(&mut self, cx: &mut Context<'_>, refused: &mut FailedConnection) -> Poll<()> {
        if refused.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !refused.silent {
            if ready!(self.frames.poll_flush(cx)).is_err()
                || ready!(Pin::new(self.frames.get_mut()).poll_shutdown(cx)).is_err()
            {
                return Poll::Ready(());
            }
            refused.silent = true;
        }
        // From here on below the WebSocket: what is sent need not be one.
        let mut sink = [0; SINK_BYTES];
        loop {
            let mut buf = ReadBuf::new(&mut sink);
            match ready!(Pin::new(self.frames.get_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    fn note_ended(&mut self) {
        self.ended = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    fn note_left(&mut self) {
        self.left = true;
        self.note_ended();
    }

    /// Reads the next bytes; false at the peer's end. Pings and pongs are seen to on the way.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            if let Some(mut refused) = self.refused.take() {
                if self.poll_refused(cx, &mut refused).is_pending() {
                    self.refused = Some(refused);
                    return Poll::Pending;
                }
                self.note_left();
                return Poll::Ready(Err(refused.error));
            }
            self.poll_pings(cx)?;
            let arrival = ready!(self.frames.poll_read(cx, buf));
            self.silent_pings = 0;
            self.may_pause = false;
            match arrival {
                Ok(Arrival::Bytes) => {
                    if let Some(parting) = &mut self.parting {
                        let over = Instant::now() + parting.patience;
                        parting.over.as_mut().reset(over);
                    }
                    return Poll::Ready(Ok(true));
                }
                Ok(Arrival::Empty) => {
                    self.note_ended();
                    return Poll::Ready(Ok(false));
                }
                Ok(Arrival::Sign) => {}
                Ok(Arrival::Close(Some(code)))
                    if self.ends == Ends::Apart && code != code::NORMAL =>
                {
                    self.note_left();
                    self.closed = true;
                    // Peers that know how to end say so when they do not.
                    let why = match code {
                        code::POLICY => ", not granted: the gateway's log has the reason",
                        _ => "",
                    };
                    return Poll::Ready(Err(invalid(&format!("closed with code {code}{why}"))));
                }
                Ok(Arrival::Close(_)) => {
                    self.note_left();
                    // Our own Close is on its way as the answer. If it cannot leave, the end of the stream says the same.
                    self.closed = true;
                    return Poll::Ready(Ok(false));
                }
                Ok(Arrival::Text) => {
                    self.refuse(code::UNSUPPORTED, "binary messages only", "a text message");
                }
                Ok(Arrival::TooLong) => {
                    let error = "a message above the limit";
                    self.refuse(code::TOO_LONG, "message too long", error);
                }
                Ok(Arrival::Broken(what)) => self.refuse(code::PROTOCOL, what, what),
                Ok(Arrival::CutOff) => {
                    // A connection that was cut off without a Close is none that has ended.
                    let error = "cut off without a Close";
                    self.refuse(code::PROTOCOL, "protocol error", error);
                }
                Err(error) => {
                    self.note_left();
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// What is left to hear from a peer that has said its end: its Close.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.left {
            return Poll::Ready(Ok(()));
        }
        // Frames let no bytes through behind the end.
        let mut nothing = [0; 16];
        let more = ready!(self.poll_bytes(cx, &mut ReadBuf::new(&mut nothing)))?;
        if more || !self.left {
            let error = "a message behind the end";
            self.refuse(code::PROTOCOL, error, error);
            let refused = self.poll_bytes(cx, &mut ReadBuf::new(&mut nothing));
            return refused.map_ok(|_more| ());
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps the connection alive after the peer's end, as long as something is said to it; ready when the peer has left.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_keep(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            self.poll_left(cx)
        } else {
            Poll::Pending
        }
    }

    /// Ends what is said to the peer, so that the peer can go on speaking; ready when nothing of it can be lost any more. A peer whose
    /// directions end together hears of it when it has ended itself, or has sent nothing for `patience`.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_end(&mut self, cx: &mut Context<'_>, patience: Duration) -> Poll<io::Result<()>> {
        match self.ends {
            Ends::Apart => {
                ready!(Pin::new(&mut *self).poll_shutdown(cx))?;
                if !self.ended {
                    self.waiting = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                // Both ends are known: a connection that breaks instead of closing takes nothing away.
                let _ = ready!(self.poll_left(cx));
                Poll::Ready(Ok(()))
            }
            Ends::Together => {
                if !self.ended && !self.closed {
                    // What was said before must not wait with the end.
                    let _ = self.frames.poll_flush(cx)?;
                    let parting = self.parting.get_or_insert_with(|| Parting {
                        patience,
                        over: Box::pin(sleep(patience)),
                    });
                    if parting.over.as_mut().poll(cx).is_pending() {
                        self.waiting = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
                Pin::new(self).poll_shutdown(cx)
            }
        }
    }
}

impl<S> Drop for WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn drop(&mut self) {
        if self.closed || self.left || self.ends == Ends::Apart {
            return;
        }
        let (code, reason) = Farewell::GoingAway.code_and_reason();
        self.frames.close(Some(code), reason);
        let mut now_or_never = Context::from_waker(Waker::noop());
        let _told = self.frames.push(&mut now_or_never);
    }
}

impl<S> AsyncRead for WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        this.poll_bytes(cx, buf).map_ok(|_more| ())
    }
}

impl<S> AsyncWrite for WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refused.is_some() {
            // The reader says first what is wrong with the peer.
            this.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if this.finished || this.closed || this.left {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            // An empty message would be the end.
            return Poll::Ready(Ok(0));
        }
        let count = buf.len().min(CHUNK_BYTES);
        let chunk = buf.get(..count).unwrap_or_default();
        let written = this.frames.poll_write(cx, chunk);
        this.may_pause = true;
        this.blocked = written.is_pending();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().frames.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = this.farewell == Farewell::Done;
        if this.ends == Ends::Apart && done && !this.finished && !this.closed {
            this.frames.say_empty();
        }
        this.finished = true;
        if !this.closed && (this.ends == Ends::Together || this.ended || !done) {
            let (code, reason) = this.farewell.code_and_reason();
            this.frames.close(Some(code), reason);
            this.closed = true;
        }
        this.frames.poll_flush(cx)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role as PlainRole;

    use super::*;

    /// Long enough for whoever is asked, in these tests.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn one_direction_ends_and_the_other_goes_on() {
        let (mut near, mut far) = pair(Ends::Apart);
        near.write_all(b"request").await.unwrap();
        near.shutdown().await.unwrap();
        let mut request = Vec::new();
        far.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let written = near.write(b"more").await.unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_lets_go_before_all_has_arrived() {
        let (mut near, mut far) = pair(Ends::Apart);
        // Both say their end before they hear of the other's.
        far.write_all(b"on its way").await.unwrap();
        far.shutdown().await.unwrap();
        let mut ending = tokio::spawn(async move {
            near.write_all(b"on its way, too").await.unwrap();
            near.shutdown().await.unwrap();
            let mut read = Vec::new();
            near.read_to_end(&mut read).await.unwrap();
            poll_fn(|cx| near.poll_end(cx, PATIENCE)).await.unwrap();
            read
        });
        let waited = tokio::time::timeout(PING_EVERY, &mut ending).await;
        assert!(waited.is_err(), "what it has said was not read yet");
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"on its way, too");
        poll_fn(|cx| far.poll_end(cx, PATIENCE)).await.unwrap();
        assert_eq!(ending.await.unwrap(), b"on its way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_connection_lives_as_long_as_its_peer() {
        let (mut near, mut far) = pair(Ends::Apart);
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        let reading = tokio::spawn(async move {
            let read = near.read(&mut [0]).await;
            (near, read)
        });
        // Silent for ten minutes, but for pings and pongs.
        let keep = poll_fn(|cx| far.poll_keep(cx));
        let kept = tokio::time::timeout(PING_EVERY * 24, keep).await;
        assert!(kept.is_err(), "it is still there");
        far.write_all(b"!").await.unwrap();
        far.flush().await.unwrap();
        let (near, read) = reading.await.unwrap();
        assert_eq!(read.unwrap(), 1);
        // Nothing comes from it any more, not even a pong.
        let gone = poll_fn(|cx| far.poll_keep(cx)).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::TimedOut);
        drop(near);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_ended_and_leaves_is_noticed() {
        let (mut near, mut far) = plain(Ends::Apart).await;
        near.send(Message::binary("")).await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        near.close(None).await.unwrap();
        poll_fn(|cx| far.poll_keep(cx)).await.unwrap();
        let written = far.write(b"answer").await.unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::BrokenPipe);

        let (mut near, mut far) = pair(Ends::Apart);
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        drop(near);
        assert!(poll_fn(|cx| far.poll_keep(cx)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_without_an_end_is_the_end_of_both_directions() {
        let (mut near, mut far) = plain(Ends::Apart).await;
        near.close(None).await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        poll_fn(|cx| far.poll_end(cx, PATIENCE)).await.unwrap();
        assert!(far.write(b"more").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_that_says_why_breaks_off() {
        for farewell in [Farewell::GoingAway, Farewell::OtherSideBroke] {
            let (mut near, mut far) = pair(Ends::Apart);
            near.write_all(b"cut o").await.unwrap();
            near.end_with(farewell);
            near.shutdown().await.unwrap();
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap_err();
            assert_eq!(read, b"cut o");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_peer_that_is_dropped_is_told_so() {
        let (mut near, far) = plain(Ends::Together).await;
        drop(far);
        assert_eq!(close_code(&mut near).await, code::GOING_AWAY);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_speaks_after_its_end_is_told_so() {
        let (mut near, mut far) = plain(Ends::Apart).await;
        near.send(Message::binary("")).await.unwrap();
        near.send(Message::binary("more")).await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        assert!(poll_fn(|cx| far.poll_keep(cx)).await.is_err());
        assert_eq!(close_code(&mut near).await, code::PROTOCOL);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_message_of_a_plain_peer_is_no_end() {
        let (mut near, mut far) = plain(Ends::Together).await;
        near.send(Message::binary("")).await.unwrap();
        near.send(Message::binary("x")).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        assert_eq!(far.write(b"").await.unwrap(), 0);
        far.shutdown().await.unwrap();
        // And no plain peer gets one.
        let message = near.next().await.unwrap().unwrap();
        assert!(message.is_close(), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_peer_is_told_of_the_end_when_it_has_answered() {
        let (mut far, mut near) = plain(Ends::Together).await;
        let ending = tokio::spawn(async move {
            let started = Instant::now();
            let (mut answer, mut buffer) = (Vec::new(), [0; 64]);
            // As the relay does: both directions in one task.
            let mut ended = None;
            while ended.is_none() || answer.last() != Some(&b'.') {
                poll_fn(|cx| {
                    let mut buf = ReadBuf::new(&mut buffer);
                    let read = Pin::new(&mut near)
                        .poll_read(cx, &mut buf)
                        .map(Result::unwrap);
                    answer.extend_from_slice(buf.filled());
                    if ended.is_none() && near.poll_end(cx, PATIENCE).map(Result::unwrap).is_ready()
                    {
                        ended = Some(started.elapsed());
                        return Poll::Ready(());
                    }
                    read
                })
                .await;
            }
            (near, answer, ended.unwrap())
        });
        // It takes its time between the parts, and is not cut off.
        for part in ["first, ", "second, ", "third."] {
            sleep(PATIENCE - Duration::from_secs(1)).await;
            far.send(Message::binary(part)).await.unwrap();
        }
        assert_eq!(close_code(&mut far).await, code::NORMAL);
        let (_near, answer, ended) = ending.await.unwrap();
        assert_eq!(answer, b"first, second, third.");
        assert_eq!(ended.as_secs(), 3 * 9 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_peer_that_has_ended_is_told_at_once() {
        let (mut near, mut far) = pair(Ends::Together);
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        let started = Instant::now();
        poll_fn(|cx| near.poll_end(cx, PATIENCE)).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        poll_fn(|cx| near.poll_keep(cx)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_for_some_time_is_not_gone() {
        let (mut near, mut far) = pair(Ends::Apart);
        near.write_all(b"more than it reads now").await.unwrap();
        far.read_u8().await.unwrap();
        // The other direction goes on a little later: `far` is heard, and is silent from then on.
        sleep(PING_EVERY / 5).await;
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
        let reading = tokio::spawn(async move { near.read_u8().await });
        let paused = async {
            loop {
                sleep(Duration::from_secs(4)).await;
                poll_fn(|cx| {
                    far.ping_unread(cx);
                    Poll::Ready(())
                })
                .await;
            }
        };
        let over = tokio::time::timeout(PING_EVERY * 20, paused).await;
        over.unwrap_err();
        assert!(!reading.is_finished());
        far.write_all(b"y").await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), b'y');
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_was_sent_bytes_and_answers_no_ping_has_the_time_of_a_pause() {
        for (said, most) in [(false, PING_EVERY * 4), (true, PING_EVERY * 26)] {
            let (mut near, _far) = pair(Ends::Together);
            if said {
                near.write_all(b"unread").await.unwrap();
            }
            let started = Instant::now();
            let error = near.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(started.elapsed() < most, "{said}");
            assert!(started.elapsed() > most / 2, "{said}");
        }
    }

    async fn close_code(peer: &mut WebSocketStream<DuplexStream>) -> u16 {
        loop {
            if let Message::Close(frame) = peer.next().await.unwrap().unwrap() {
                return frame.unwrap().code.into();
            }
        }
    }

    fn pair(ends: Ends) -> (WebSocket<DuplexStream>, WebSocket<DuplexStream>) {
        let (near, far) = duplex(64 * 1024);
        let near = WebSocket::new(near, Role::Client, Vec::new(), ends);
        (near, WebSocket::new(far, Role::Server, Vec::new(), ends))
    }

    /// A client that is a library.
    async fn plain(ends: Ends) -> (WebSocketStream<DuplexStream>, WebSocket<DuplexStream>) {
        let (near, far) = duplex(64 * 1024);
        let near = WebSocketStream::from_raw_socket(near, PlainRole::Client, None).await;
        (near, WebSocket::new(far, Role::Server, Vec::new(), ends))
    }
}
