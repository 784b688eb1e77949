//! WebSocket frames around a stream of bytes ([RFC 6455] 5), without a copy where none is needed.
//!
//! A library hands out messages: it gathers each one, and every byte is copied three times on its way through a relay. Here the
//! stream is read into the buffer of whoever asks, unmasked in place, and what belongs to frames is taken out of it; what is sent
//! leaves with its header in one call. Nothing is held for a peer that rests, and nothing waits for the end of a message.
//!
//! - Fragments, pings and closes are seen to: an answer to a ping or to a Close leaves by itself.
//! - Only what the system did not take at once is kept, and while anything is kept nothing more is taken.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use jetway_jet::frame::{Arrival, Deframer, Found, apply, head};

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Our frames are masked, the peer's are not.
    Client,
    /// The other way round.
    Server,
}

/// A peer on a WebSocket, past its handshake.
#[derive(Debug)]
pub struct Frames<S> {
    io: S,
    role: Role,
    /// What is to be read before anything else.
    early: Vec<u8>,
    deframer: Deframer,
    /// What has arrived behind bytes and was not told yet.
    arrived: VecDeque<Arrival>,
    /// What the system has not taken yet: whole frames, or the rest of one.
    outgoing: Vec<u8>,
    sent: usize,
    /// The answer to the last ping, while it cannot leave.
    pong: Option<Vec<u8>>,
    /// Our Close frame was said.
    closed: bool,
    /// Who waits for what is being sent. An answer that leaves while something is read may take over its wake-up.
    writer: Option<Waker>,
}

impl<S> Frames<S> {
    /// Frames over a connection whose handshake is done; `early` came with it.
    pub fn new(io: S, role: Role, early: Vec<u8>) -> Self {
        Self {
            io,
            role,
            early,
            deframer: Deframer::new(role == Role::Server),
            arrived: VecDeque::new(),
            outgoing: Vec::new(),
            sent: 0,
            pong: None,
            closed: false,
            writer: None,
        }
    }

    /// The peer says its end by a message without a byte. From others such messages say nothing.
    #[must_use]
    pub fn with_ends(mut self) -> Self {
        self.deframer = self.deframer.with_ends();
        self
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The stream below, for what is no WebSocket any more.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Puts a frame behind what is to be sent.
    fn queue(&mut self, opcode: u8, payload: &[u8]) {
        let mask = (self.role == Role::Client).then(random_mask);
        let (head, head_bytes) = head(opcode, payload.len(), mask);
        let head = head.get(..head_bytes).unwrap_or_default();
        self.outgoing.extend_from_slice(head);
        let start = self.outgoing.len();
        self.outgoing.extend_from_slice(payload);
        if let (Some(mask), Some(payload)) = (mask, self.outgoing.get_mut(start..)) {
            apply(mask, payload);
        }
    }

    /// Says a Close frame, unless one was said.
    pub fn close(&mut self, code: Option<u16>, reason: &str) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.pong = None;
        let mut payload = Vec::with_capacity(2 + reason.len());
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(reason.as_bytes());
        }
        self.queue(0x8, &payload);
    }

    /// Says an empty binary message.
    pub fn say_empty(&mut self) {
        self.queue(0x2, &[]);
    }
}

impl<S> Frames<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Reads bytes of the peer's messages into `buf`, or says what else has come. Nothing comes behind the end.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Arrival>> {
        if let Some(arrival) = self.arrived.pop_front() {
            return Poll::Ready(Ok(arrival));
        }
        if self.deframer.is_over() {
            return Poll::Ready(Ok(Arrival::CutOff));
        }
        loop {
            let before = buf.filled().len();
            if self.early.is_empty() {
                ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            } else {
                let count = self.early.len().min(buf.remaining());
                buf.put_slice(self.early.get(..count).unwrap_or_default());
                self.early.drain(..count);
            }
            let Some(read) = buf.filled_mut().get_mut(before..) else {
                return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
            };
            if read.is_empty() {
                self.deframer.end();
                return Poll::Ready(Ok(Arrival::CutOff));
            }
            let kept = self.deframer.take(read, |found| match found {
                Found::Arrival(arrival) => self.arrived.push_back(arrival),
                Found::Ping(payload) => {
                    self.pong = Some(payload);
                    self.arrived.push_back(Arrival::Sign);
                }
            });
            buf.set_filled(before.saturating_add(kept));
            self.answer(cx);
            if kept > 0 {
                // Signs of life come with bytes anyway.
                self.arrived.retain(|arrival| *arrival != Arrival::Sign);
                return Poll::Ready(Ok(Arrival::Bytes));
            }
            if let Some(arrival) = self.arrived.pop_front() {
                return Poll::Ready(Ok(arrival));
            }
        }
    }

    /// Sends what the peer's pings and its Close ask for, as far as it can leave now.
    fn answer(&mut self, cx: &mut Context<'_>) {
        let close = self.arrived.iter().find_map(|arrival| match arrival {
            Arrival::Close(code) => Some(*code),
            Arrival::Bytes
            | Arrival::Empty
            | Arrival::Sign
            | Arrival::Text
            | Arrival::TooLong
            | Arrival::Broken(_)
            | Arrival::CutOff => None,
        });
        if let Some(code) = close {
            self.close(code, "");
        }
        if self.pong.is_some() || close.is_some() {
            // That it cannot leave is told by reading, too.
            let _ = self.push(cx);
        }
    }

    /// Says a ping, unless something still waits to be sent: a peer that does not read needs none.
    ///
    /// # Errors
    /// The connection's.
    pub fn ping(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closed || !self.outgoing.is_empty() {
            return Ok(());
        }
        self.queue(0x9, &[]);
        self.push(cx)
    }

    /// Sends what waits, as far as it can leave now, for whoever reads.
    ///
    /// # Errors
    /// The connection's.
    pub fn push(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let sent = self.poll_send(cx);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        if sent?.is_ready() {
            let _ = Pin::new(&mut self.io).poll_flush(cx)?;
        }
        Ok(())
    }

    /// Sends bytes in a frame; says how many it took, which is all of them unless something else is still waiting to leave.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        if self.role == Role::Client {
            self.queue(0x2, bytes);
            // What does not leave now is on its way.
            let _ = self.poll_send(cx)?;
            return Poll::Ready(Ok(bytes.len()));
        }
        let (head, head_bytes) = head(0x2, bytes.len(), None);
        let head = head.get(..head_bytes).unwrap_or_default();
        let mut sent = 0_usize;
        loop {
            let rest_of_head = head.get(sent..).unwrap_or_default();
            let rest = bytes
                .get(sent.saturating_sub(head.len())..)
                .unwrap_or_default();
            if rest_of_head.is_empty() && rest.is_empty() {
                break;
            }
            let slices = [IoSlice::new(rest_of_head), IoSlice::new(rest)];
            let (_, slices) = slices.split_at(usize::from(rest_of_head.is_empty()));
            match Pin::new(&mut self.io).poll_write_vectored(cx, slices) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Ok(count)) => sent = sent.saturating_add(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // Nothing of the frame has left: the caller keeps its bytes.
                Poll::Pending if sent == 0 => {
                    self.writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Pending => {
                    self.outgoing.extend_from_slice(rest_of_head);
                    self.outgoing.extend_from_slice(rest);
                    break;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Sends what waits, and what the stream below keeps.
    ///
    /// # Errors
    /// The connection's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if flushed.is_pending() {
            self.writer = Some(cx.waker().clone());
        }
        flushed
    }

    /// As [`poll_send`](Self::poll_send), for whoever writes.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(cx);
        if sent.is_pending() {
            self.writer = Some(cx.waker().clone());
        }
        sent
    }

    /// Sends what waits; ready when nothing does.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while let Some(rest @ [_, ..]) = self.outgoing.get(self.sent..) {
                match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.sent = self.sent.saturating_add(count),
                }
            }
            self.sent = 0;
            // It goes with its memory.
            self.outgoing = Vec::new();
            match self.pong.take() {
                Some(payload) => self.queue(0xA, &payload),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A mask that nobody can foresee, so that nobody can make us send what looks like something else ([RFC 6455] 10.3).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
fn random_mask() -> [u8; 4] {
    let mut mask = [0; 4];
    // Without randomness a mask is still a mask.
    let _ = openssl::rand::rand_bytes(&mut mask);
    mask
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Cursor;

    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::Role as PlainRole;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame as PlainFrame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tokio_tungstenite::tungstenite::{Message, WebSocket};

    use super::*;
    use jetway_base::limits;
    use jetway_jet::frame::{CONTROL_BYTES, HEAD_BYTES};

    /// A connection on which `input` arrives in pieces, and which takes what is sent in pieces.
    struct Pieces {
        input: VecDeque<u8>,
        output: Vec<u8>,
        sizes: Vec<usize>,
        turn: usize,
    }

    impl Pieces {
        fn new(input: Vec<u8>, sizes: Vec<usize>) -> Self {
            Self {
                input: input.into(),
                output: Vec::new(),
                sizes,
                turn: 0,
            }
        }

        /// How many bytes move now; zero for none.
        fn next(&mut self, cx: &Context<'_>) -> usize {
            self.turn += 1;
            let size = self.sizes[self.turn % self.sizes.len()];
            if size == 0 {
                cx.waker().wake_by_ref();
            }
            size
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            let size = this.next(cx).min(buf.remaining());
            if size == 0 {
                return Poll::Pending;
            }
            let count = size.min(this.input.len());
            let bytes: Vec<u8> = this.input.drain(..count).collect();
            buf.put_slice(&bytes);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let size = this.next(cx).min(buf.len());
            if size == 0 {
                return Poll::Pending;
            }
            this.output.extend_from_slice(&buf[..size]);
            Poll::Ready(Ok(size))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What `wire` says to the server, read in pieces: the bytes, and what came last.
    async fn read(wire: Vec<u8>, sizes: Vec<usize>, buffer: usize) -> (Vec<u8>, Arrival, Vec<u8>) {
        let mut frames =
            Frames::new(Pieces::new(wire, sizes), Role::Server, Vec::new()).with_ends();
        let mut bytes = Vec::new();
        let mut space = vec![0; buffer];
        loop {
            let (arrival, count) = poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut space);
                let read = frames.poll_read(cx, &mut buf);
                read.map(|arrival| (arrival.unwrap(), buf.filled().len()))
            })
            .await;
            bytes.extend_from_slice(&space[..count]);
            match arrival {
                Arrival::Bytes | Arrival::Sign | Arrival::Empty => {}
                last @ (Arrival::Close(_)
                | Arrival::Text
                | Arrival::TooLong
                | Arrival::Broken(_)
                | Arrival::CutOff) => {
                    poll_fn(|cx| frames.poll_flush(cx)).await.unwrap();
                    return (bytes, last, frames.io.output);
                }
            }
        }
    }

    /// A frame of a client, as a library writes it.
    fn frame(payload: &[u8], opcode: OpCode, last: bool) -> Vec<u8> {
        let mut frame = PlainFrame::message(payload.to_vec(), OpCode::Data(Data::Binary), last);
        frame.header_mut().opcode = opcode;
        frame.header_mut().mask = Some([1, 2, 3, 4]);
        let mut wire = Vec::new();
        frame.format(&mut wire).unwrap();
        wire
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        frame(payload, OpCode::Data(Data::Binary), true)
    }

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    /// Messages: the bytes of each fragment, and whether a ping comes behind it.
    fn messages() -> impl Strategy<Value = Vec<Vec<(Vec<u8>, bool)>>> {
        let length = prop_oneof![1..20_usize, 120..130_usize, 60_000..70_000_usize];
        let fragment = (length, any::<u8>(), any::<bool>()).prop_map(|(length, first, ping)| {
            (
                (0..=250).cycle().skip(first.into()).take(length).collect(),
                ping,
            )
        });
        proptest::collection::vec(proptest::collection::vec(fragment, 1..4), 0..5)
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        // At least one that moves something.
        let size = prop_oneof![Just(0), 1..30_usize, 1000..100_000_usize];
        (proptest::collection::vec(size, 0..5), 1..100_000_usize).prop_map(|(mut sizes, last)| {
            sizes.push(last);
            sizes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_a_library_sends_arrives_whole(messages in messages(), sizes in sizes(), buffer in 1..100_000_usize) {
            let (mut wire, mut expected, mut pings) = (Vec::new(), Vec::new(), 0);
            for message in &messages {
                for (number, (payload, ping)) in message.iter().enumerate() {
                    let opcode = if number == 0 { Data::Binary } else { Data::Continue };
                    wire.extend(frame(payload, OpCode::Data(opcode), number + 1 == message.len()));
                    expected.extend_from_slice(payload);
                    if *ping {
                        wire.extend(frame(b"there?", OpCode::Control(Control::Ping), true));
                        pings += 1;
                    }
                }
            }
            wire.extend(frame(&[3, 0xE8], OpCode::Control(Control::Close), true));
            let (bytes, last, answers) = run(read(wire, sizes, buffer));
            prop_assert!(bytes == expected);
            prop_assert_eq!(last, Arrival::Close(Some(1000)));
            // The last ping is answered, unless the Close came at once; and the Close is.
            let mut plain = WebSocket::from_raw_socket(Cursor::new(answers), PlainRole::Client, None);
            let mut pongs = 0;
            let mut answer = plain.read().unwrap();
            while let Message::Pong(payload) = answer {
                prop_assert_eq!(payload.as_ref(), b"there?");
                pongs += 1;
                answer = plain.read().unwrap();
            }
            let Message::Close(Some(close)) = answer else {
                return Err(TestCaseError::fail(answer.to_string()));
            };
            prop_assert_eq!(u16::from(close.code), 1000);
            prop_assert!(pongs <= pings);
        }

        #[test]
        fn what_is_sent_is_read_by_a_library(lengths in proptest::collection::vec(1..70_000_usize, 0..5), sizes in sizes(), client in any::<bool>()) {
            let sent: Vec<Vec<u8>> = lengths.iter().map(|length| (0..=250).cycle().take(*length).collect()).collect();
            let (ours, theirs) = if client {
                (Role::Client, PlainRole::Server)
            } else {
                (Role::Server, PlainRole::Client)
            };
            let wire = run(async {
                let mut frames = Frames::new(Pieces::new(Vec::new(), sizes), ours, Vec::new());
                for bytes in &sent {
                    let count = poll_fn(|cx| frames.poll_write(cx, bytes)).await.unwrap();
                    assert_eq!(count, bytes.len());
                }
                frames.say_empty();
                frames.close(Some(1000), "bye");
                poll_fn(|cx| frames.poll_flush(cx)).await.unwrap();
                frames.io.output
            });
            let mut plain = WebSocket::from_raw_socket(Cursor::new(wire), theirs, None);
            for bytes in sent.iter().map(Vec::as_slice).chain([&b""[..]]) {
                prop_assert_eq!(plain.read().unwrap(), Message::binary(bytes.to_vec()));
            }
            prop_assert!(plain.read().unwrap().is_close());
        }
    }

    #[tokio::test]
    async fn what_is_no_websocket_is_found_behind_the_bytes_before_it() {
        let long = u32::try_from(limits::WEBSOCKET_MESSAGE_BYTES + 1).unwrap();
        let mut too_long = vec![0x82, 0xFF, 0, 0, 0, 0];
        too_long.extend(long.to_be_bytes());
        too_long.extend([0; 4]);
        let part = |opcode, last| frame(b"part", OpCode::Data(opcode), last);
        for (behind, expected) in [
            (
                vec![0x82, 0x01, 0],
                Arrival::Broken("only clients mask their frames"),
            ),
            (vec![0xC2, 0x81], Arrival::Broken("reserved bits are set")),
            (
                vec![0x83, 0x80, 0, 0, 0, 0],
                Arrival::Broken("an unknown opcode"),
            ),
            (
                vec![0x89, 0xFE, 0, 126, 0, 0, 0, 0],
                Arrival::Broken("a control frame is long or in parts"),
            ),
            (
                vec![0x09, 0x80, 0, 0, 0, 0],
                Arrival::Broken("a control frame is long or in parts"),
            ),
            (
                frame(&[3], OpCode::Control(Control::Close), true),
                Arrival::Broken("half a close code"),
            ),
            (
                part(Data::Continue, true),
                Arrival::Broken("a continuation of nothing"),
            ),
            (
                [data(b""), data(b"more")].concat(),
                Arrival::Broken("a message behind the end"),
            ),
            (
                frame(b"hello", OpCode::Data(Data::Text), true),
                Arrival::Text,
            ),
            (too_long, Arrival::TooLong),
            (Vec::new(), Arrival::CutOff),
            (vec![0x82], Arrival::CutOff),
        ] {
            for size in [1, 3, 1000] {
                let wire = [data(b"before"), behind.clone()].concat();
                let (bytes, last, _) = read(wire, vec![size], 100).await;
                assert_eq!((bytes.as_slice(), last), (&b"before"[..], expected));
            }
        }
        let within = [part(Data::Binary, false), data(b"another")].concat();
        let (bytes, last, _) = read(within, vec![1000], 100).await;
        assert_eq!(bytes, b"part");
        assert_eq!(last, Arrival::Broken("a message within a message"));
        // Fragments count together.
        let half = vec![0; limits::WEBSOCKET_MESSAGE_BYTES];
        let mut parts = frame(&half, OpCode::Data(Data::Binary), false);
        parts.extend(part(Data::Continue, true));
        let (bytes, last, _) = read(parts, vec![100_000], 100_000).await;
        assert_eq!((bytes.len(), last), (half.len(), Arrival::TooLong));
    }

    #[tokio::test]
    async fn what_came_with_the_handshake_comes_first() {
        let wire = data(b"hello");
        let (early, rest) = wire.split_at(4);
        let io = Pieces::new(rest.to_vec(), vec![1000]);
        let mut frames = Frames::new(io, Role::Server, early.to_vec());
        let mut space = [0; 100];
        let mut buf = ReadBuf::new(&mut space);
        let arrival = poll_fn(|cx| frames.poll_read(cx, &mut buf)).await.unwrap();
        assert_eq!((arrival, buf.filled()), (Arrival::Bytes, &b"hello"[..]));
    }

    #[tokio::test]
    async fn a_peer_that_only_pings_is_held_to_one_answer() {
        // Nothing can be sent, and pings come.
        let ping = frame(&[7; CONTROL_BYTES], OpCode::Control(Control::Ping), true);
        let (mut far, near) = tokio::io::duplex(64);
        let mut frames = Frames::new(near, Role::Server, Vec::new());
        let sending = tokio::spawn(async move {
            for _ in 0..1000 {
                tokio::io::AsyncWriteExt::write_all(&mut far, &ping)
                    .await
                    .unwrap();
            }
            far
        });
        let mut space = [0; 100];
        for _ in 0..1000 {
            let mut buf = ReadBuf::new(&mut space);
            let arrival = poll_fn(|cx| frames.poll_read(cx, &mut buf)).await.unwrap();
            assert_eq!(arrival, Arrival::Sign);
            assert!(frames.outgoing.len() <= CONTROL_BYTES + HEAD_BYTES);
            assert!(frames.arrived.len() <= 1);
        }
        drop(sending.await.unwrap());
    }
}
