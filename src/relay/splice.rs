//! Bytes from one TCP socket to another without a copy: [`splice(2)`] into a pipe and out of it again.
//!
//! A pipe is filled only while it is empty and drained only while it is not, so that `EAGAIN` always means the
//! socket: not readable while filling, not writable while draining.
//!
//! Pipes come from a pool with a bound. One is borrowed when bytes are about to move and goes back as soon as it is
//! empty, so only a direction whose receiver does not read keeps one.
//!
//! [`splice(2)`]: https://man7.org/linux/man-pages/man2/splice.2.html

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Capacity asked for, bytes. A pipe holds one buffer of a received segment in each page-sized slot, so more slots
/// let one call move more of the small segments that a real network delivers. CPU seconds for a
/// GB on loopback, median of six runs: 0.35 with the usual 64 KiB, 0.24 with 256 KiB, 0.27 with 1 MiB.
const PIPE_BYTES: usize = 256 * 1024;

/// Most that one call moves, bytes. With large segments, as on loopback, a pipe takes more than its nominal capacity.
const SPLICE_BYTES: usize = 1024 * 1024;

/// Pipes of all sessions together. Each takes two descriptors and 64 pages of the 16,384 that a user without
/// privileges has (`fs.pipe-user-pages-soft`).
const PIPES: usize = 128;

/// Empty pipes that are kept for reuse.
const IDLE_PIPES: usize = 16;

/// The pipes of this process.
pub(super) static POOL: PipePool = PipePool::new(PIPES);

/// A bound on pipes and the empty ones.
#[derive(Debug)]
pub(super) struct PipePool {
    limit: usize,
    /// Pipes that exist, borrowed or not.
    open: AtomicUsize,
    idle: Mutex<Vec<Pipe>>,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// A pipe on loan, and how many bytes are in it.
///
/// INVARIANT: a pipe goes back to the pool only when it is empty; otherwise it is closed. The bytes of one session
/// never reach another.
#[derive(Debug)]
pub(super) struct Lease {
    pool: &'static PipePool,
    pipe: Option<Pipe>,
    filled: usize,
}

impl PipePool {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            open: AtomicUsize::new(0),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// An empty pipe; none if too many are in use or the system gives no more.
    pub(super) fn lease(&'static self) -> Option<Lease> {
        let idle = self.idle().pop();
        let pipe = match idle {
            Some(pipe) => pipe,
            None => self.open()?,
        };
        Some(Lease {
            pool: self,
            pipe: Some(pipe),
            filled: 0,
        })
    }

    fn open(&self) -> Option<Pipe> {
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < self.limit).then_some(open.saturating_add(1))
            })
            .ok()?;
        let Ok((reader, writer)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        // Without privileges and beyond the user's share the capacity stays as it is, which costs only speed.
        let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
        Some(Pipe { reader, writer })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Pipe>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pipes on loan.
    #[cfg(test)]
    pub(super) fn on_loan(&self) -> usize {
        let idle = self.idle().len();
        self.open.load(Ordering::Relaxed) - idle
    }

    /// Whether no pipe was ever made.
    #[cfg(test)]
    pub(super) fn never_used(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }
}

impl Lease {
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Fills the empty pipe; zero means the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "EAGAIN would be ambiguous");
        let Some(pipe) = &self.pipe else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            ready!(source.poll_read_ready(cx))?;
            let moved = source.try_io(Interest::READABLE, || {
                transfer(source, &pipe.writer, SPLICE_BYTES)
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.filled = count;
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Moves bytes of the pipe, which is not empty, to the socket.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(!self.is_empty(), "EAGAIN would be ambiguous");
        let Some(pipe) = &self.pipe else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            ready!(sink.poll_write_ready(cx))?;
            let moved = sink.try_io(Interest::WRITABLE, || {
                transfer(&pipe.reader, sink, self.filled)
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.filled = self.filled.saturating_sub(count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else {
            return;
        };
        if self.filled == 0 {
            let mut idle = self.pool.idle();
            if idle.len() < IDLE_PIPES {
                idle.push(pipe);
                return;
            }
        }
        drop(pipe);
        self.pool.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an error of [`Lease::poll_fill`] says that these sockets cannot be spliced at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INVAL | Errno::NOSYS | Errno::PERM))
}

fn transfer(
    from: impl rustix::fd::AsFd,
    to: impl rustix::fd::AsFd,
    length: usize,
) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let (from, to) = (from.as_fd(), to.as_fd());
    Ok(rustix::io::retry_on_intr(|| {
        splice(from, None, to, None, length, flags)
    })?)
}

#[cfg(test)]
mod tests {
    use jetway_lab::net::tcp_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn no_more_pipes_than_the_limit_and_empty_ones_are_reused() {
        let pool = pool(2);
        let first = pool.lease().unwrap();
        let second = pool.lease().unwrap();
        assert!(pool.lease().is_none());
        drop(first);
        drop(second);
        assert_eq!((pool.on_loan(), pool.idle().len()), (0, 2));
        assert!(pool.lease().is_some());
    }

    #[test]
    fn few_idle_pipes_are_kept() {
        let pool = pool(IDLE_PIPES + 5);
        let leases: Vec<_> = std::iter::from_fn(|| pool.lease()).collect();
        assert_eq!(leases.len(), IDLE_PIPES + 5);
        drop(leases);
        assert_eq!(pool.idle().len(), IDLE_PIPES);
        assert_eq!(pool.open.load(Ordering::Relaxed), IDLE_PIPES);
    }

    #[tokio::test]
    async fn a_pipe_with_bytes_in_it_is_closed_and_not_reused() {
        let pool = pool(2);
        let (mut near, far) = tcp_pair().await;
        near.write_all(b"of one session").await.unwrap();
        let mut lease = pool.lease().unwrap();
        let filled = std::future::poll_fn(|cx| lease.poll_fill(cx, &far)).await;
        assert_eq!(filled.unwrap(), 14);
        drop(lease);
        assert_eq!(pool.open.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn bytes_pass_through_a_pipe_and_the_end_is_seen() {
        let pool = pool(1);
        let (mut near, source) = tcp_pair().await;
        let (sink, mut far) = tcp_pair().await;
        near.write_all(b"abc").await.unwrap();
        near.shutdown().await.unwrap();
        let mut lease = pool.lease().unwrap();
        let filled = std::future::poll_fn(|cx| lease.poll_fill(cx, &source)).await;
        assert_eq!(filled.unwrap(), 3);
        let drained = std::future::poll_fn(|cx| lease.poll_drain(cx, &sink)).await;
        assert_eq!(drained.unwrap(), 3);
        assert!(lease.is_empty());
        let filled = std::future::poll_fn(|cx| lease.poll_fill(cx, &source)).await;
        assert_eq!(filled.unwrap(), 0);
        drop(sink);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"abc");
    }

    fn pool(limit: usize) -> &'static PipePool {
        Box::leak(Box::new(PipePool::new(limit)))
    }
}
