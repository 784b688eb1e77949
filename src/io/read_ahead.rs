//! A transport below TLS, read in large pieces while bulk comes.
//!
//! rustls asks its transport for 4 KiB at a time: four calls of the system for every full record. As soon as such a
//! read comes back full, more is read than was asked for, until there is nothing left to read; then the buffer goes.
//! What was read before TLS began comes first.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::buffers;

/// A read that fills so much says that more is there: what rustls asks for.
const FULL_READ_BYTES: usize = 4096;

/// A transport, and bytes that were read from it and not asked for yet.
#[derive(Debug)]
pub struct ReadAhead<S> {
    ahead: Vec<u8>,
    /// Bytes of `ahead` that were asked for.
    at: usize,
    /// The last read came back full.
    bulk: bool,
    inner: S,
}

impl<S> ReadAhead<S> {
    /// `inner`, with `before` to be read first.
    #[must_use]
    pub fn new(before: Vec<u8>, inner: S) -> Self {
        Self {
            ahead: before,
            at: 0,
            bulk: false,
            inner,
        }
    }

    /// The transport.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Likewise, for what is not reading.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Hands out what was read ahead; false where there is nothing.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let rest = self.ahead.get(self.at..).unwrap_or_default();
        let now = rest.get(..buf.remaining()).unwrap_or(rest);
        if rest.is_empty() {
            return false;
        }
        buf.put_slice(now);
        self.at = self.at.saturating_add(now.len());
        if self.at == self.ahead.len() {
            self.at = 0;
            self.ahead.clear();
            if !self.bulk {
                self.ahead = Vec::new();
            }
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.hand_out(buf) {
            return Poll::Ready(Ok(()));
        }
        if !this.bulk {
            let before = buf.filled().len();
            let read = Pin::new(&mut this.inner).poll_read(cx, buf);
            this.bulk = buf.filled().len().saturating_sub(before) >= FULL_READ_BYTES;
            return read;
        }
        if this.ahead.capacity() == 0 {
            this.ahead = buffers::take();
        }
        match pin!(this.inner.read_buf(&mut this.ahead)).poll(cx) {
            Poll::Ready(Ok(_)) => {
                this.hand_out(buf);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                this.bulk = false;
                buffers::give_back(&mut this.ahead);
                Poll::Pending
            }
        }
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        buffers::give_back(&mut self.ahead);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_whatever_was_read_ahead() {
        let (mut far, near) = duplex(1024 * 1024);
        let sent: Vec<u8> = (0..=250).cycle().take(300_000).collect();
        let (before, behind) = sent.split_at(10_000);
        far.write_all(behind).await.unwrap();
        far.shutdown().await.unwrap();
        let mut stream = ReadAhead::new(before.to_vec(), near);
        let mut got = Vec::new();
        for size in [1, 4096, 5, 4096, 18_000, 4096, 3].into_iter().cycle() {
            let mut piece = vec![0; size];
            let count = stream.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
        }
        assert!(got == sent);
    }

    #[tokio::test]
    async fn nothing_is_held_while_nothing_comes() {
        let (mut far, near) = duplex(1024 * 1024);
        far.write_all(&[7; 100_000]).await.unwrap();
        let mut stream = ReadAhead::new(Vec::new(), near);
        let mut piece = [0; FULL_READ_BYTES];
        let mut count = 0;
        while count < 100_000 {
            count += stream.read(&mut piece).await.unwrap();
        }
        assert!(stream.ahead.capacity() >= buffers::BUFFER_BYTES);
        let mut buf = ReadBuf::new(&mut piece);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(
            Pin::new(&mut stream)
                .poll_read(&mut cx, &mut buf)
                .is_pending()
        );
        assert_eq!(stream.ahead.capacity(), 0);
        // Small traffic goes straight to whoever asks.
        far.write_all(&[8; 10]).await.unwrap();
        assert_eq!(stream.read(&mut piece).await.unwrap(), 10);
        assert_eq!(stream.ahead.capacity(), 0);
    }
}
