//! Bytes between two streams of a peer, until both have ended.
//!
//! A peer does not know what is spoken through it, so that the end of one direction leaves the other open, within a bound on silence. But
//! a connection that has broken carries nothing any more, and that is not read where the other side takes nothing: while a direction is
//! stuck, or only one is left, both connections are looked at now and then ([`OverTcp::has_broken`](jetway_io::over_tcp::OverTcp::has_broken)). What nobody has taken by the end
//! is thrown away together with the connection, so that its far side hears of the end at once, and not behind that.

use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::Duplex;
use jetway_base::limits;

/// Silence of the side that is left, after which a bridge ends.
const PATIENCE: Duration = Duration::from_secs(limits::HALF_CLOSE_S);

/// Likewise when the other side has broken: what it said before may be on its way, and often says why.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How often connections are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(4);

/// Brings what comes from one to the other until both have ended, `early` first; the end of one direction leaves the other open until
/// that has been silent for [`limits::HALF_CLOSE_S`]. Returns the bytes to `other` and to `peer`.
///
/// # Errors
/// Either side's.
pub async fn bridge(
    peer: &mut (impl Duplex + ?Sized),
    other: &mut (impl Duplex + ?Sized),
    early: &[u8],
) -> io::Result<(u64, u64)> {
    other.write_all(early).await?;
    other.flush().await?;
    let (mut to_other, mut to_peer) = (Way::new(), Way::new());
    let mut silence = pin!(sleep(PATIENCE));
    let mut look: Option<Pin<Box<Sleep>>> = None;
    let mut brought = None;
    let mut broke = None;
    let both: io::Result<()> = poll_fn(|cx| {
        for way in [Which::ToOther, Which::ToPeer] {
            let moved = match way {
                Which::ToOther => to_other.poll(cx, peer, other),
                Which::ToPeer => to_peer.poll(cx, other, peer),
            };
            match moved {
                Poll::Ready(Err(Fault::Source(error))) => {
                    return Poll::Ready(Err(broke.take().unwrap_or(error)));
                }
                // Its last words may be on their way: often they say why.
                Poll::Ready(Err(Fault::Sink(error))) => {
                    broke.get_or_insert(error);
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if let Some(error) = &broke {
            let over = |way: &Way| way.deaf || way.ended;
            if over(&to_other) && over(&to_peer) {
                return Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())));
            }
        } else {
            // Whoever has left takes nothing any more.
            let left = to_other.left && !to_peer.ending || to_peer.left && !to_other.ending;
            if left || to_other.ended && to_peer.ended {
                return Poll::Ready(Ok(()));
            }
        }
        let one_is_left = broke.is_some() || to_other.ending || to_peer.ending;
        if !one_is_left && !to_other.is_stuck() && !to_peer.is_stuck() {
            look = None;
            return Poll::Pending;
        }
        let now_brought = Some((to_other.brought, to_peer.brought, broke.is_some()));
        if brought != now_brought {
            brought = now_brought;
            let patience = if broke.is_some() {
                LAST_WORDS
            } else {
                PATIENCE
            };
            silence.as_mut().reset(Instant::now() + patience);
            look = None;
        }
        let looks = look.get_or_insert_with(|| Box::pin(sleep(LOOK_INTERVAL)));
        while looks.as_mut().poll(cx).is_ready() {
            // Nothing has moved since the last look.
            if peer.has_broken() || other.has_broken() {
                // As it was, so it is passed on.
                peer.break_on_drop();
                other.break_on_drop();
                let error = broke
                    .take()
                    .unwrap_or(io::ErrorKind::ConnectionReset.into());
                return Poll::Ready(Err(error));
            }
            if to_other.is_stuck() {
                peer.keep_alive_unread(cx);
            }
            if to_peer.is_stuck() {
                other.keep_alive_unread(cx);
            }
            looks.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
        if one_is_left {
            ready!(silence.as_mut().poll(cx));
            return Poll::Ready(broke.take().map_or(Ok(()), Err));
        }
        Poll::Pending
    })
    .await;
    if to_other.is_stuck() {
        other.break_on_drop();
    }
    if to_peer.is_stuck() {
        peer.break_on_drop();
    }
    both?;
    Ok((to_other.brought, to_peer.brought))
}

/// The directions of a bridge.
#[derive(Clone, Copy)]
enum Which {
    ToOther,
    ToPeer,
}

/// Which end of a direction broke.
enum Fault {
    Source(io::Error),
    Sink(io::Error),
}

/// One direction of a bridge.
struct Way {
    buffer: Box<[u8]>,
    /// What of the buffer was read and not written yet.
    held: Range<usize>,
    /// The sink may keep back what it has taken.
    unflushed: bool,
    /// The source has ended.
    ending: bool,
    /// The sink knows.
    ended: bool,
    /// The source has ended and left.
    left: bool,
    /// The sink has broken.
    deaf: bool,
    brought: u64,
}

impl Way {
    fn new() -> Self {
        Self {
            buffer: vec![0; BRIDGE_BYTES].into_boxed_slice(),
            held: 0..0,
            unflushed: false,
            ending: false,
            ended: false,
            left: false,
            deaf: false,
            brought: 0,
        }
    }

    /// Its sink has not taken what was read.
    fn is_stuck(&self) -> bool {
        !self.held.is_empty()
    }

    /// Moves what can be moved.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl Duplex + ?Sized),
        sink: &mut (impl Duplex + ?Sized),
    ) -> Poll<Result<(), Fault>> {
        if self.deaf {
            return Poll::Pending;
        }
        let moved = self.advance(cx, source, sink);
        self.deaf = matches!(moved, Poll::Ready(Err(Fault::Sink(_))));
        moved
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl Duplex + ?Sized),
        sink: &mut (impl Duplex + ?Sized),
    ) -> Poll<Result<(), Fault>> {
        for _step in 0..BRIDGE_STEPS {
            if !self.held.is_empty() {
                let bytes = self.buffer.get(self.held.clone()).unwrap_or_default();
                let written = Pin::new(&mut *sink).poll_write(cx, bytes);
                let count = ready!(written).map_err(Fault::Sink)?;
                if count == 0 {
                    return Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.held.start = self.held.start.saturating_add(count);
                self.brought = self.brought.saturating_add(count.try_into().unwrap_or(0));
                self.unflushed = true;
            } else if self.ending {
                if !self.ended {
                    self.ended = sink.poll_end(cx).map_err(Fault::Sink)?.is_ready();
                }
                self.left = self.left || source.poll_keep(cx).map_err(Fault::Source)?.is_ready();
                return Poll::Pending;
            } else {
                let mut buf = ReadBuf::new(&mut self.buffer);
                let read = Pin::new(&mut *source).poll_read(cx, &mut buf);
                match read.map_err(Fault::Source)? {
                    Poll::Ready(()) => {
                        let count = buf.filled().len();
                        self.held = 0..count;
                        self.ending = count == 0;
                    }
                    Poll::Pending => {
                        if self.unflushed {
                            let flushed = Pin::new(&mut *sink).poll_flush(cx);
                            self.unflushed = flushed.map_err(Fault::Sink)?.is_pending();
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        // The other direction gets its turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// As much as one TLS record and one WebSocket message of ours hold a few times.
const BRIDGE_BYTES: usize = 64 * 1024;

/// Reads and writes of one direction before the other one gets its turn.
const BRIDGE_STEPS: u32 = 16;

#[cfg(test)]
mod tests {
    use jetway_lab::net::tcp_pair;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use jetway_io::over_tcp::OverTcp;
    use jetway_io::websocket::frames::Role;
    use jetway_io::websocket::{Ends, WebSocket};

    #[tokio::test(start_paused = true)]
    async fn a_side_that_says_nothing_after_the_others_end_does_not_hold_a_session() {
        let (mut near, mut peer) = tcp_pair().await;
        let (mut other, mut far) = tcp_pair().await;
        let bridging = tokio::spawn(async move { bridge(&mut peer, &mut other, b"").await });
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = Vec::new();
        far.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        // As long as it says something, it is heard.
        for _ in 0..3 {
            sleep(Duration::from_secs(limits::HALF_CLOSE_S * 2 / 3)).await;
            far.write_all(b"answer").await.unwrap();
            near.read_exact(&mut [0; 6]).await.unwrap();
        }
        let silent = Instant::now();
        assert_eq!(bridging.await.unwrap().unwrap(), (8, 18));
        assert!(silent.elapsed() < Duration::from_secs(limits::HALF_CLOSE_S * 2));
    }

    /// A bridge between two sockets, one of which takes nothing of what the other has sent; its end, and what the far sides are.
    async fn stuck() -> (
        tokio::task::JoinHandle<io::Result<(u64, u64)>>,
        TcpStream,
        TcpStream,
    ) {
        let (mut near, mut peer) = tcp_pair().await;
        let (mut other, far) = tcp_pair().await;
        let bridging = tokio::spawn(async move { bridge(&mut peer, &mut other, b"").await });
        let block = vec![7; 65_536];
        let all = Duration::from_secs(1);
        while let Ok(written) = tokio::time::timeout(all, near.write(&block)).await {
            written.unwrap();
        }
        (bridging, near, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_breaks_behind_what_is_not_taken_ends_the_session() {
        let (bridging, near, mut far) = stuck().await;
        let broke = Instant::now();
        near.break_on_drop();
        drop(near);
        let error = bridging.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(broke.elapsed() <= 2 * LOOK_INTERVAL);
        // The far side does not have to take all of it to hear that.
        let read = far.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_websocket_does_not_end_because_a_program_makes_a_pause() {
        let (near, peer) = tcp_pair().await;
        let (mut other, mut far) = tcp_pair().await;
        let mut near = WebSocket::new(near, Role::Server, Vec::new(), Ends::Apart);
        let peer: Box<dyn Duplex> = Box::new(peer);
        let mut peer = WebSocket::new(peer, Role::Client, Vec::new(), Ends::Apart);
        let bridging = tokio::spawn(async move { bridge(&mut peer, &mut other, b"").await });
        // More than the program takes, which has a word of its own meanwhile.
        let block = vec![7; 65_536];
        let all = Duration::from_secs(1);
        let mut written = 0;
        while let Ok(count) = tokio::time::timeout(all, near.write(&block)).await {
            written += count.unwrap();
        }
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        let paused = tokio::time::timeout(2 * PATIENCE, near.read_u8()).await;
        assert!(paused.is_err(), "{paused:?}");
        let mut rest = vec![0; written];
        let (read, flushed) = tokio::join!(far.read_exact(&mut rest), near.flush());
        read.unwrap();
        flushed.unwrap();
        far.write_all(b"y").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'y');
        drop((near, far));
        let _ended = bridging.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_breaks_has_few_last_words() {
        let (bridging, near, mut far) = stuck().await;
        drop(near);
        // That it has gone is seen with the first byte for it.
        far.write_all(b"x").await.unwrap();
        let broke = Instant::now();
        bridging.await.unwrap().unwrap_err();
        assert!(broke.elapsed() <= LOOK_INTERVAL + LAST_WORDS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_in_the_midst_of_a_stream_is_nobodys_end() {
        let (bridging, near, far) = stuck().await;
        sleep(2 * PATIENCE).await;
        assert!(!bridging.is_finished());
        drop((near, far));
        let _ended = bridging.await.unwrap();
    }
}
