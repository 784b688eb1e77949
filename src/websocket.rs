//! A WebSocket as a stream of bytes ([RFC 6455]): what JET peers send in binary messages, without their boundaries.
//!
//! - A ping goes out every [`PING_EVERY`]; a peer that has sent nothing since the last [`SILENT_PINGS`] of them is gone.
//!   Proxies between keep connections open only while something moves.
//! - A WebSocket has no half-close. The end of what goes to a peer is a Close frame; what the peer had already sent
//!   still arrives. After the peer's own Close nothing can be sent to it.
//! - Close codes ([RFC 6455] 7.4.1): 1000 at an end, 1002 for what is no WebSocket, 1003 for text, 1009 for a message
//!   above [`limits::WEBSOCKET_MESSAGE_BYTES`].
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::limits;

/// How often a ping goes out. Balancers commonly close what was silent for a minute.
pub const PING_EVERY: Duration = Duration::from_secs(25);

/// After so many pings without a frame in return the peer is gone.
pub const SILENT_PINGS: u32 = 2;

/// Bytes of one message that goes out.
const CHUNK_BYTES: usize = 64 * 1024;

/// Allocated for what is read, as long as the connection lives.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// A peer on a WebSocket, past its handshake.
#[derive(Debug)]
pub struct WebSocket<S> {
    socket: WebSocketStream<S>,
    /// What is left of the last message.
    arrived: Bytes,
    /// The peer sends nothing more.
    ended: bool,
    /// We send nothing more.
    closed: bool,
    ping: Interval,
    silent_pings: u32,
}

/// Settings of a WebSocket that carries bytes.
#[must_use]
pub fn settings() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(CHUNK_BYTES)
        .max_write_buffer_size(CHUNK_BYTES * 4)
        .max_message_size(Some(limits::WEBSOCKET_MESSAGE_BYTES))
        .max_frame_size(Some(limits::WEBSOCKET_MESSAGE_BYTES))
}

impl<S> WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// The server's or client's side of a connection whose handshake is done.
    pub async fn new(stream: S, role: Role) -> Self {
        Self::over(WebSocketStream::from_raw_socket(stream, role, Some(settings())).await)
    }

    /// A WebSocket whose handshake a library has done, with [`settings`].
    #[must_use]
    pub fn over(socket: WebSocketStream<S>) -> Self {
        let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            socket,
            arrived: Bytes::new(),
            ended: false,
            closed: false,
            ping,
            silent_pings: 0,
        }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        self.socket.get_ref()
    }

    /// Sends pings that are due; an error where the peer has answered none.
    fn poll_pings(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.ping.poll_tick(cx).is_ready() {
            if self.silent_pings >= SILENT_PINGS {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.silent_pings = self.silent_pings.saturating_add(1);
            if self.closed {
                continue;
            }
            // A peer that does not read what is on its way to it does not need another ping.
            if let Poll::Ready(ready) = Pin::new(&mut self.socket).poll_ready(cx) {
                ready.map_err(broken)?;
                let ping = Message::Ping(Bytes::new());
                Pin::new(&mut self.socket)
                    .start_send(ping)
                    .map_err(broken)?;
                if let Poll::Ready(flushed) = Pin::new(&mut self.socket).poll_flush(cx) {
                    flushed.map_err(broken)?;
                }
            }
        }
        Ok(())
    }

    /// Says why nothing more is taken from the peer, if it can be said at once.
    fn refuse(&mut self, cx: &mut Context<'_>, code: CloseCode, reason: &'static str) {
        self.ended = true;
        if self.closed {
            return;
        }
        self.closed = true;
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.socket).poll_ready(cx) {
            let frame = CloseFrame {
                code,
                reason: Utf8Bytes::from_static(reason),
            };
            let close = Message::Close(Some(frame));
            if Pin::new(&mut self.socket).start_send(close).is_ok() {
                // The connection is given up either way.
                let _ = Pin::new(&mut self.socket).poll_flush(cx);
            }
        }
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
        while this.arrived.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            this.poll_pings(cx)?;
            let message = ready!(Pin::new(&mut this.socket).poll_next(cx));
            this.silent_pings = 0;
            match message {
                Some(Ok(Message::Binary(bytes))) => this.arrived = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                None | Some(Ok(Message::Close(_))) => {
                    this.ended = true;
                    // Our own Close is in the queue as the answer. If it cannot leave now, the end of the stream says
                    // the same.
                    let _ = Pin::new(&mut this.socket).poll_flush(cx);
                }
                Some(Ok(Message::Text(_))) => {
                    this.refuse(cx, CloseCode::Unsupported, "binary messages only");
                    return Poll::Ready(Err(invalid("a text message")));
                }
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                    this.refuse(cx, CloseCode::Size, "message too long");
                    return Poll::Ready(Err(invalid("a message above the limit")));
                }
                Some(Err(Error::Io(error))) => return Poll::Ready(Err(error)),
                Some(Err(error)) => {
                    this.refuse(cx, CloseCode::Protocol, "protocol error");
                    // A connection that was cut off without a Close is an end like any other on TCP.
                    return Poll::Ready(Err(broken(error)));
                }
            }
        }
        let count = this.arrived.len().min(buf.remaining());
        buf.put_slice(&this.arrived.split_to(count));
        if !this.arrived.has_remaining() {
            // The message's memory goes with its last byte.
            this.arrived = Bytes::new();
        }
        Poll::Ready(Ok(()))
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
        if this.closed || this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(broken)?;
        let count = buf.len().min(CHUNK_BYTES);
        let chunk = Bytes::copy_from_slice(buf.get(..count).unwrap_or_default());
        Pin::new(&mut this.socket)
            .start_send(Message::Binary(chunk))
            .map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        Pin::new(&mut this.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(broken)?;
            this.closed = true;
            let close = Message::Close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            }));
            match Pin::new(&mut this.socket).start_send(close) {
                Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {}
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
        }
        match ready!(Pin::new(&mut this.socket).poll_flush(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error @ (Error::Tls(_)
        | Error::Capacity(_)
        | Error::Protocol(_)
        | Error::WriteBufferFull(_)
        | Error::Utf8(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_)) => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"))
}
