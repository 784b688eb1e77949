//! Every pair of transports of two peers, and every way in which their bytes may come ([JET-PROTO] 2.2.5, 2.2.6).
//!
//! The long transfers move 16 MiB each way; `MATRIX_MIB` says otherwise. A gibibyte each way takes an optimised build:
//!
//! ```sh
//! MATRIX_MIB=1024 cargo test --release --test it matrix::long -- --test-threads 1
//! ```

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use jetway::jet::exchange::{JetPath, Operation, Request};
use jetway::jet::message::Version;
use jetway::jet::packet;
use jetway::peer::Site;
use jetway_lab::certificate::Identity;
use jetway_lab::tls::{certificate_der, client_config, server_config};
use openssl::sha::Sha256;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::lab::within;
use crate::rendezvous::{Duplex, OPERATOR, Peer, Place, TRANSPORTS, of, path, response};

/// One end of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End {
    transport: &'static str,
    /// What `jetway agent` and `jetway connect` are made of; else libraries that know nothing of the gateway.
    own: bool,
}

const OTHERS: [End; 4] = {
    let [tcp, tls, ws, wss] = TRANSPORTS;
    [other(tcp), other(tls), other(ws), other(wss)]
};

const ALL: [End; 8] = {
    let [tcp, tls, ws, wss] = TRANSPORTS;
    let [a, b, c, d] = OTHERS;
    [a, b, c, d, own(tcp), own(tls), own(ws), own(wss)]
};

const fn other(transport: &'static str) -> End {
    End {
        transport,
        own: false,
    }
}

const fn own(transport: &'static str) -> End {
    End {
        transport,
        own: true,
    }
}

impl End {
    /// Its connection ends each direction by itself.
    fn half_closes(self) -> bool {
        self.own || self.transport.starts_with('t')
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.own { "own " } else { "" };
        write!(f, "{own}{}", self.transport)
    }
}

/// Runs `test` for every pair of `ends`, the acceptor first, all at one gateway and at the same time.
async fn every_pair<T, F>(ends: &[End], test: T)
where
    T: Fn(Meeting) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let place = Arc::new(Place::start(""));
    let mut pairs = JoinSet::new();
    let mut names = HashMap::new();
    for acceptor in ends {
        for connector in ends {
            let meeting = Meeting::arrange(Arc::clone(&place), *acceptor, *connector).await;
            let pair = pairs.spawn(test(meeting));
            names.insert(
                pair.id(),
                format!("{acceptor} accepts, {connector} connects"),
            );
        }
    }
    let mut failed = Vec::new();
    while let Some(pair) = pairs.join_next_with_id().await {
        if let Err(error) = pair {
            failed.push(names[&error.id()].clone());
        }
    }
    assert_eq!(failed, Vec::<String>::new(), "what has failed is above");
}

/// Two ends on the candidate of the acceptor's transport, before either has come.
struct Meeting {
    place: Arc<Place>,
    acceptor: End,
    connector: End,
    association: Uuid,
    candidate: Uuid,
    token: String,
}

impl Meeting {
    async fn arrange(place: Arc<Place>, acceptor: End, connector: End) -> Self {
        let association = Uuid::new_v4();
        let token = place.token(association, json!({}));
        // Whose creator is an operator demands no token of others.
        let candidates = place.association(association, OPERATOR).await;
        Self {
            candidate: of(&candidates, acceptor.transport),
            place,
            acceptor,
            connector,
            association,
            token,
        }
    }

    fn path(&self, operation: Operation) -> JetPath {
        path(operation, self.association, self.candidate)
    }

    async fn accept(&self) -> Peer {
        self.come(self.acceptor, Operation::Accept).await
    }

    async fn connect(&self) -> Peer {
        self.come(self.connector, Operation::Connect).await
    }

    async fn both(&self) -> (Peer, Peer) {
        let accepted = self.accept().await;
        (accepted, self.connect().await)
    }

    async fn come(&self, end: End, operation: Operation) -> Peer {
        let path = self.path(operation);
        if !end.own {
            let came = self.place.peer(end.transport, path, None).await;
            return came.ok().unwrap();
        }
        let address = self.place.lab.address();
        // A gateway that is named with TLS is shown nothing in clear.
        let scheme = match end.transport {
            "tcp" | "ws" => "http",
            _ => "https",
        };
        let gateway = format!("{scheme}://{address}").parse().unwrap();
        let site = Site::new(&gateway, Some(&self.place.certificate())).unwrap();
        let url = format!("{}://{address}", end.transport).parse().unwrap();
        let granted = within(site.candidate(&url, path, &self.token)).await;
        Peer::Stream(Box::new(granted.unwrap().stream))
    }

    async fn relayed(&self, to_acceptor: u64, to_connector: u64) {
        let place = &self.place;
        place
            .relayed(self.association, to_acceptor, to_connector)
            .await;
    }
}

// J-BIN-1 J-BIN-2 J-WS-1 J-WS-2
#[tokio::test(flavor = "multi_thread")]
async fn a_client_speaks_first_over_every_pair() {
    every_pair(&ALL, |meeting| async move {
        let (mut accepted, mut connected) = meeting.both().await;
        connected.send(b"client first").await;
        assert_eq!(accepted.receive(12).await, b"client first");
        accepted.send(b"and the answer").await;
        assert_eq!(connected.receive(14).await, b"and the answer");
        meeting.relayed(12, 14).await;
    })
    .await;
}

// J-BIN-2 J-WS-2: existing clients lose what comes with the response; a peer of the tests reads it by one call, and demands that
// it comes alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_speaks_first_over_every_pair_and_nothing_is_lost() {
    every_pair(&OTHERS, |meeting| async move {
        let mut accepted = meeting.accept().await;
        // Some of it before anybody has come, some at the moment of coming, some later.
        accepted.send(b"SSH-2.0-").await;
        let coming = meeting.connect();
        let (mut connected, mut accepted) = tokio::join!(coming, async {
            accepted.send(b"banner").await;
            accepted
        });
        accepted.send(b"\r\n").await;
        assert_eq!(connected.receive(16).await, b"SSH-2.0-banner\r\n");
        connected.send(b"SSH-2.0-client\r\n").await;
        assert_eq!(accepted.receive(16).await, b"SSH-2.0-client\r\n");
        meeting.relayed(16, 16).await;
    })
    .await;
}

// J-PKT-3 J-BIN-2
#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_one_segment_with_the_request_arrive_over_every_pair() {
    every_pair(&OTHERS, |meeting| async move {
        if !meeting.connector.transport.starts_with('t') {
            return;
        }
        let mut accepted = meeting.accept().await;
        let tcp = meeting.place.lab.connect().await;
        let mut stream: Box<dyn Duplex> = if meeting.connector.transport == "tls" {
            Box::new(meeting.place.tls(tcp).await)
        } else {
            Box::new(tcp)
        };
        let request = Request {
            path: meeting.path(Operation::Connect),
            version: Version::V3,
            host: None,
            token: None,
        };
        let mut bytes = packet::encode(&request.to_payload(), 0x77).unwrap();
        bytes.extend_from_slice(b"early");
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        response(&mut stream).await;
        assert_eq!(accepted.receive(5).await, b"early");
    })
    .await;
}

// J-BIN-2 J-WS-1 J-WS-2: TCP, TLS and the gateway's own WebSockets end each direction by itself. Another WebSocket cannot; it is
// not cut off by the end of its peer, and answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_ends_is_answered_over_every_pair() {
    every_pair(&ALL, |meeting| async move {
        let (mut accepted, mut connected) = meeting.both().await;
        connected.send(b"request").await;
        if meeting.connector.half_closes() {
            connected.finish().await;
        }
        assert_eq!(accepted.receive(7).await, b"request");
        if meeting.connector.half_closes() && meeting.acceptor.half_closes() {
            accepted.expect_end().await;
        }
        accepted.hesitate().await;
        accepted.send(b"the ").await;
        assert_eq!(connected.receive(4).await, b"the ");
        accepted.send(b"answer").await;
        accepted.finish().await;
        assert_eq!(connected.rest().await, b"answer");
        meeting.relayed(7, 10).await;
    })
    .await;
}

// J-BIN-2 J-WS-1 J-WS-2
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_first_is_still_spoken_to_over_every_pair_that_can() {
    every_pair(&ALL, |meeting| async move {
        if !meeting.acceptor.half_closes() || !meeting.connector.half_closes() {
            return;
        }
        let (mut accepted, mut connected) = meeting.both().await;
        accepted.send(b"welcome").await;
        accepted.finish().await;
        assert_eq!(connected.receive(7).await, b"welcome");
        connected.expect_end().await;
        connected.send(b"late").await;
        connected.finish().await;
        assert_eq!(accepted.rest().await, b"late");
        meeting.relayed(4, 7).await;
    })
    .await;
}

// J-WS-1: what it had sent before arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_closes_ends_both_directions_of_every_pair() {
    every_pair(&ALL, |meeting| async move {
        let (mut accepted, mut connected) = meeting.both().await;
        accepted.send(b"welcome").await;
        assert_eq!(connected.receive(7).await, b"welcome");
        let (closing, other) = match (meeting.acceptor, meeting.connector) {
            (_, connector) if !connector.half_closes() => (&mut connected, accepted),
            (acceptor, _) if !acceptor.half_closes() => (&mut accepted, connected),
            _ => return,
        };
        closing.send(b"bye").await;
        closing.finish().await;
        assert_eq!(other.rest().await, b"bye");
    })
    .await;
}

// J-BIN-4: TLS from one end to the other, through every pair that is a stream of bytes; a tls candidate has its own around it.
#[tokio::test(flavor = "multi_thread")]
async fn tls_between_the_ends_passes_every_pair() {
    let identity = Identity::self_signed(&["peer.test"]);
    let acceptor = TlsAcceptor::from(server_config(&identity));
    // The gateway's own certificate would not do.
    let connector = TlsConnector::from(client_config(certificate_der(&identity)));
    every_pair(&ALL, move |meeting| {
        let (acceptor, connector) = (acceptor.clone(), connector.clone());
        async move {
            let streams = match meeting.both().await {
                (Peer::Stream(accepted), Peer::Stream(connected)) => (accepted, connected),
                _ => return,
            };
            let accept = acceptor.accept(streams.0);
            let connect = connector.connect("peer.test".try_into().unwrap(), streams.1);
            let (accepted, connected) = within(async { tokio::join!(accept, connect) }).await;
            let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
            connected.write_all(b"only for the peer").await.unwrap();
            connected.shutdown().await.unwrap();
            let mut read = Vec::new();
            within(accepted.read_to_end(&mut read)).await.unwrap();
            assert_eq!(read, b"only for the peer");
            accepted.write_all(b"and back").await.unwrap();
            accepted.shutdown().await.unwrap();
            let mut read = Vec::new();
            within(connected.read_to_end(&mut read)).await.unwrap();
            assert_eq!(read, b"and back");
        }
    })
    .await;
}

// J-PKT-3 J-WS-1: TLS handshakes, packets, WebSocket handshakes and frames all come byte by byte, and so does what is said in them.
#[tokio::test(flavor = "multi_thread")]
async fn single_bytes_pass_over_every_pair() {
    every_pair(&OTHERS, |meeting| async move {
        let coming = async |end: End, operation| {
            let tcp = meeting.place.lab.connect().await;
            tcp.set_nodelay(true).unwrap();
            let path = meeting.path(operation);
            let tcp = Trickle { tcp, wrote: false };
            let came = meeting.place.peer_on(tcp, end.transport, path, None).await;
            came.ok().unwrap()
        };
        let mut accepted = coming(meeting.acceptor, Operation::Accept).await;
        let mut connected = coming(meeting.connector, Operation::Connect).await;
        for byte in b"to the acceptor" {
            connected.send(&[*byte]).await;
        }
        assert_eq!(accepted.receive(15).await, b"to the acceptor");
        for byte in b"to the connector" {
            accepted.send(&[*byte]).await;
            assert_eq!(connected.receive(1).await, [*byte]);
        }
        meeting.relayed(15, 16).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_both_ways_arrive_unchanged_with_a_tcp_acceptor() {
    long_transfers("tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_both_ways_arrive_unchanged_with_a_tls_acceptor() {
    long_transfers("tls").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_both_ways_arrive_unchanged_with_a_ws_acceptor() {
    long_transfers("ws").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_both_ways_arrive_unchanged_with_a_wss_acceptor() {
    long_transfers("wss").await;
}

// J-BIN-2 J-WS-1 J-WS-2
async fn long_transfers(acceptor: &'static str) {
    crate::lab::quiet();
    let mib = std::env::var("MATRIX_MIB").map_or(16, |text| text.parse().unwrap());
    let total: u64 = mib * 1024 * 1024;
    let place = Arc::new(Place::start(""));
    for connector in TRANSPORTS {
        let (acceptor, connector) = (other(acceptor), other(connector));
        let meeting = Meeting::arrange(Arc::clone(&place), acceptor, connector).await;
        let (accepted, connected) = meeting.both().await;
        let (mut at_acceptor, by_acceptor) = split(accepted);
        let (mut at_connector, by_connector) = split(connected);
        let down = tokio::spawn(by_acceptor.send(total, 1));
        let up = tokio::spawn(by_connector.send(total, 2));
        let (arrived_up, arrived_down) =
            tokio::join!(at_acceptor.digest(total), at_connector.digest(total));
        assert_eq!(arrived_up, up.await.unwrap(), "{acceptor} {connector}");
        assert_eq!(arrived_down, down.await.unwrap(), "{acceptor} {connector}");
        meeting.relayed(total, total).await;
    }
}

/// What may be sent at once, one after the other: segments, records and messages of every size up to a quarter of a message's limit.
const PIECES: [usize; 5] = [64 * 1024, 1, 1000, 256 * 1024, 16 * 1024];

/// The sending half of a peer.
enum Sending {
    Stream(WriteHalf<Box<dyn Duplex>>),
    WebSocket(SplitSink<WebSocketStream<Box<dyn Duplex>>, Message>),
}

/// The receiving half of a peer.
enum Receiving {
    Stream(ReadHalf<Box<dyn Duplex>>),
    WebSocket(SplitStream<WebSocketStream<Box<dyn Duplex>>>),
}

fn split(peer: Peer) -> (Receiving, Sending) {
    match peer {
        Peer::Stream(stream) => {
            let (read, write) = tokio::io::split(stream);
            (Receiving::Stream(read), Sending::Stream(write))
        }
        Peer::WebSocket { socket, .. } => {
            let (write, read) = (*socket).split();
            (Receiving::WebSocket(read), Sending::WebSocket(write))
        }
    }
}

impl Sending {
    /// Sends `total` bytes that no two pieces and no two senders have in common; their digest.
    async fn send(mut self, total: u64, seed: u64) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut block = vec![0; 256 * 1024];
        openssl::rand::rand_bytes(&mut block).unwrap();
        let mut sent = 0;
        for piece in PIECES.into_iter().cycle() {
            let left = usize::try_from(total - sent).unwrap();
            if left == 0 {
                break;
            }
            let stamp = (seed << 56 | sent).to_le_bytes();
            block[..8].copy_from_slice(&stamp);
            let bytes = &block[..piece.min(left)];
            digest.update(bytes);
            match &mut self {
                Self::Stream(stream) => {
                    within(stream.write_all(bytes)).await.unwrap();
                    within(stream.flush()).await.unwrap();
                }
                Self::WebSocket(socket) => {
                    let message = Message::Binary(bytes.to_vec().into());
                    within(socket.send(message)).await.unwrap();
                }
            }
            sent += u64::try_from(bytes.len()).unwrap();
        }
        digest.finish()
    }
}

impl Receiving {
    /// The digest of the next `total` bytes.
    async fn digest(&mut self, total: u64) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut arrived = 0;
        while arrived < total {
            let count = match self {
                Self::Stream(stream) => {
                    let count = within(stream.read(&mut buffer)).await.unwrap();
                    assert_ne!(count, 0, "cut off after {arrived}");
                    digest.update(&buffer[..count]);
                    count
                }
                Self::WebSocket(socket) => match within(socket.next()).await.unwrap().unwrap() {
                    Message::Binary(bytes) => {
                        digest.update(&bytes);
                        bytes.len()
                    }
                    Message::Ping(_) | Message::Pong(_) => 0,
                    message @ (Message::Text(_) | Message::Close(_) | Message::Frame(_)) => {
                        panic!("{message} after {arrived}")
                    }
                },
            };
            arrived += u64::try_from(count).unwrap();
        }
        assert_eq!(arrived, total);
        digest.finish()
    }
}

/// A connection on which every byte is a write of its own, and others have their turn in between.
struct Trickle {
    tcp: tokio::net::TcpStream,
    wrote: bool,
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.wrote {
            self.wrote = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.tcp).poll_write(cx, &buf[..buf.len().min(1)]);
        self.wrote = written.is_ready();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
