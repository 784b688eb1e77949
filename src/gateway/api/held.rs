//! An HTTP connection and its place among the connections, in one value.
//!
//! The HTTP side owns it for as long as it has the socket, and gives it away only with an upgrade that is complete. So no
//! handler, no refusal and no panic can give the place back while the socket is open.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use jetway_io::stream::Stream;

/// A stream that holds its place.
#[derive(Debug)]
pub struct Held {
    // In this order: the socket is closed before its place is given back.
    stream: Stream,
    connection: Connection,
}

impl Held {
    /// Ties the place to the stream.
    #[must_use]
    pub fn new(stream: Stream, connection: Connection) -> Self {
        Self { stream, connection }
    }

    /// Both, for whoever goes on with the connection.
    #[must_use]
    pub fn into_parts(self) -> (Stream, Connection) {
        (self.stream, self.connection)
    }
}

impl AsyncRead for Held {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
