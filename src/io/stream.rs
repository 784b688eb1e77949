//! A peer's byte stream, with or without TLS and WebSocket ended here, and the bytes read from it ahead of time.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::read_ahead::ReadAhead;
use crate::websocket::{Farewell, WebSocket};

/// Bytes asked of the transport in one read-ahead.
const FILL_BYTES: usize = 4096;

/// The transport below a client's bytes.
#[derive(Debug)]
pub enum Io {
    /// Plain TCP: the bytes can be spliced.
    Tcp(TcpStream),
    /// TLS that ends at the gateway.
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS that begins at the gateway, to a target.
    TargetTls(Box<TargetTls>),
    /// The binary messages of a WebSocket.
    WebSocket(Box<WebSocket<Stream>>),
}

/// TLS to a target.
type TargetTls = tokio_rustls::client::TlsStream<ReadAhead<Stream>>;

impl Io {
    /// The TCP socket below.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            Self::TargetTls(stream) => stream.get_ref().0.get_ref().io().tcp(),
            Self::WebSocket(socket) => socket.get_ref().io().tcp(),
        }
    }

    /// The socket itself, where its bytes are those of the stream: they can be spliced.
    #[must_use]
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(_) | Self::TargetTls(_) | Self::WebSocket(_) => None,
        }
    }

    /// Ends what is said to the peer, so that the peer can go on speaking ([`WebSocket::poll_end`]).
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_end(&mut self, cx: &mut Context<'_>, patience: Duration) -> Poll<io::Result<()>> {
        match self {
            Self::WebSocket(socket) => socket.poll_end(cx, patience),
            Self::Tcp(_) | Self::Tls(_) | Self::TargetTls(_) => Pin::new(self).poll_shutdown(cx),
        }
    }

    /// As [`poll_end`](Self::poll_end), of what was cut off: the end comes without the alert by which TLS says that all was said. TCP has
    /// no word of its own for it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                let tcp = socket2::SockRef::from(stream.get_ref().0);
                Poll::Ready(tcp.shutdown(Shutdown::Write))
            }
            Self::TargetTls(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                let below = stream.get_ref().0.get_ref().io().tcp();
                Poll::Ready(socket2::SockRef::from(below).shutdown(Shutdown::Write))
            }
            Self::WebSocket(socket) => {
                socket.end_with(Farewell::OtherSideBroke);
                Pin::new(socket).poll_shutdown(cx)
            }
        }
    }

    /// What the peer is told with the end of what goes to it, where its transport has a word for it.
    pub fn end_with(&mut self, farewell: Farewell) {
        match self {
            Self::Tcp(_) | Self::Tls(_) | Self::TargetTls(_) => {}
            Self::WebSocket(socket) => socket.end_with(farewell),
        }
    }

    /// Keeps the connection of a peer that has ended; ready when it has left ([`WebSocket::poll_keep`]). The system does it for TCP,
    /// and says so to whoever writes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_keep(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::WebSocket(socket) => socket.poll_keep(cx),
            Self::Tcp(_) | Self::Tls(_) | Self::TargetTls(_) => Poll::Pending,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::TargetTls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::WebSocket(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::TargetTls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::WebSocket(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::TargetTls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::WebSocket(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::TargetTls(stream) => stream.is_write_vectored(),
            Self::WebSocket(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::TargetTls(stream) => Pin::new(stream).poll_flush(cx),
            Self::WebSocket(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::TargetTls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::WebSocket(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// An [`Io`] and what was read from it but not yet consumed.
///
/// INVARIANT: bytes leave in the order in which they arrived; `read_ahead` comes before anything still in `io`.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    read_ahead: Vec<u8>,
}

impl Stream {
    /// A stream of which nothing has been read.
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self {
            io,
            read_ahead: Vec::new(),
        }
    }

    /// A stream of which `read_ahead` was read before.
    #[must_use]
    pub fn rewound(io: Io, read_ahead: Vec<u8>) -> Self {
        Self { io, read_ahead }
    }

    /// What has arrived and was not consumed.
    #[must_use]
    pub fn buffered(&self) -> &[u8] {
        &self.read_ahead
    }

    /// Drops the first `count` buffered bytes (all of them, if there are fewer).
    pub fn consume(&mut self, count: usize) {
        self.read_ahead.drain(..count.min(self.read_ahead.len()));
    }

    /// Waits for more bytes and appends them, at most up to `limit` buffered bytes. Zero means the end of the stream.
    ///
    /// # Errors
    /// The transport's, and `InvalidData` where `limit` bytes are buffered already.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes are appended in the same poll that read them.
    pub async fn fill(&mut self, limit: usize) -> io::Result<usize> {
        let room = limit.saturating_sub(self.read_ahead.len());
        if room == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "read-ahead limit reached",
            ));
        }
        let mut window = (&mut self.read_ahead).limit(room.min(FILL_BYTES));
        self.io.read_buf(&mut window).await
    }

    /// The transport, for writing or for its addresses.
    pub fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// The transport, for its addresses.
    #[must_use]
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Ends the connection in order: ends what is said to the peer, and takes up to `most` bytes that it still says. A connection that is
    /// closed with bytes unread is reset, and what was said last could be lost with it.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn close(mut self, most: u64) -> io::Result<()> {
        self.io.shutdown().await?;
        tokio::io::copy(&mut self.io.take(most), &mut tokio::io::sink()).await?;
        Ok(())
    }

    /// Both parts. The caller sends the read-ahead before anything it reads from the transport.
    #[must_use]
    pub fn into_parts(self) -> (Io, Vec<u8>) {
        (self.io, self.read_ahead)
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::new(Io::Tcp(stream))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read_ahead.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let count = this.read_ahead.len().min(buf.remaining());
        buf.put_slice(this.read_ahead.get(..count).unwrap_or_default());
        this.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use jetway_lab::net::tcp_pair;

    use super::*;

    #[tokio::test]
    async fn all_slices_of_a_vectored_write_reach_the_socket_at_once() {
        let (stream, mut accepted) = tcp_pair().await;
        let mut io = Io::Tcp(stream);
        assert!(io.is_write_vectored());
        let slices = [io::IoSlice::new(b"one"), io::IoSlice::new(b"two")];
        let written = std::future::poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, &slices));
        assert_eq!(written.await.unwrap(), 6);
        let mut got = [0; 6];
        accepted.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"onetwo");
    }
}
