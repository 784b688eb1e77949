//! The TCP socket below a stream, and what the system knows of its peer that reading the stream does not tell.

use std::os::fd::AsFd;
use std::task::Context;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::read_ahead::ReadAhead;
use crate::stream::{Io, Stream};
use crate::websocket::WebSocket;

/// The peer has broken the connection (poll(2)).
const BROKEN: PollFlags = PollFlags::ERR;

/// The peer has ended or broken the connection, however much of what it sent was not read yet.
#[cfg(target_os = "linux")]
const GONE: PollFlags = BROKEN.union(PollFlags::RDHUP).union(PollFlags::HUP);
#[cfg(not(target_os = "linux"))]
const GONE: PollFlags = BROKEN.union(PollFlags::HUP);

/// A stream above a TCP socket.
pub trait OverTcp {
    /// The socket; `None` where the bytes come from elsewhere (standard input).
    fn tcp(&self) -> Option<&TcpStream>;

    /// Whether the peer has ended or broken its connection, however much of what it sent was not read yet.
    fn has_gone(&self) -> bool {
        self.tcp().is_some_and(|tcp| has(tcp, GONE))
    }

    /// Whether the connection can carry nothing any more in either direction.
    fn has_broken(&self) -> bool {
        self.tcp().is_some_and(|tcp| has(tcp, BROKEN))
    }

    /// Has the connection break when it is dropped (RST): its peer learns at once that nobody is here any more, and what it has not
    /// taken yet is thrown away.
    fn break_on_drop(&self) {
        if let Some(tcp) = self.tcp() {
            // Where it fails, the connection is gone already.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }

    /// Whether the connection breaks when it is dropped.
    fn breaks_on_drop(&self) -> bool {
        let set = self.tcp().map(|tcp| SockRef::from(tcp).linger());
        matches!(set, Some(Ok(Some(Duration::ZERO))))
    }

    /// Takes [`break_on_drop`](Self::break_on_drop) back.
    fn close_on_drop(&self) {
        if let Some(tcp) = self.tcp() {
            // Likewise.
            let _ = SockRef::from(tcp).set_linger(None);
        }
    }

    /// Shows the peer that this side is alive although it does not read for now. TCP does so by itself; for a WebSocket above it, this
    /// has to be called now and then.
    fn keep_alive_unread(&mut self, _cx: &mut Context<'_>) {}
}

fn has(tcp: &TcpStream, flags: PollFlags) -> bool {
    let mut socket = [PollFd::from_borrowed_fd(tcp.as_fd(), flags)];
    // A socket that cannot be asked counts as alive: its own errors end it.
    let asked = poll(&mut socket, Some(&Timespec::default())).is_ok();
    // HUP and ERR are told unasked.
    asked
        && socket
            .iter()
            .any(|socket| socket.revents().intersects(flags))
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl OverTcp for Io {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(Self::tcp(self))
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Tcp(_) | Self::Tls(_) | Self::TargetTls(_) => {}
            Self::WebSocket(socket) => socket.ping_unread(cx),
        }
    }
}

impl OverTcp for Stream {
    fn tcp(&self) -> Option<&TcpStream> {
        OverTcp::tcp(self.io())
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        self.io_mut().keep_alive_unread(cx);
    }
}

impl<S: OverTcp + ?Sized> OverTcp for Box<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        S::tcp(self)
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        S::keep_alive_unread(self, cx);
    }
}

impl<S: OverTcp> OverTcp for ReadAhead<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().tcp()
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        self.get_mut().keep_alive_unread(cx);
    }
}

impl<S: OverTcp + AsyncRead + AsyncWrite + Unpin> OverTcp for WebSocket<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().tcp()
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        self.ping_unread(cx);
    }
}

impl<S: OverTcp> OverTcp for client::TlsStream<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().0.tcp()
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        self.get_mut().0.keep_alive_unread(cx);
    }
}

impl<S: OverTcp> OverTcp for server::TlsStream<S> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().0.tcp()
    }

    fn keep_alive_unread(&mut self, cx: &mut Context<'_>) {
        self.get_mut().0.keep_alive_unread(cx);
    }
}

impl<R, W> OverTcp for tokio::io::Join<R, W> {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

/// A pipe in memory is over nothing; relays are tested with it.
impl OverTcp for tokio::io::DuplexStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

#[cfg(test)]
mod tests {
    use jetway_lab::net::tcp_pair;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_has_ended_or_broken_off_is_seen_behind_what_was_not_read() {
        for breaks in [false, true] {
            let (far, near) = tcp_pair().await;
            far.writable().await.unwrap();
            far.try_write(b"unread").unwrap();
            assert!(!near.has_gone());
            if breaks {
                far.break_on_drop();
            }
            drop(far);
            // Loopback delivers before the call returns.
            assert!(near.has_gone());
            assert_eq!(near.has_broken(), breaks);
        }
    }
}
