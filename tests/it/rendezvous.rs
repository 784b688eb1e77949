//! Two peers that can only connect outwards meet at the gateway, over any transport ([JET-PROTO] 2.2.2, 2.2.5 to 2.2.7).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use jetway::jet::exchange::{JetPath, Operation, Request, Response, Status};
use jetway::jet::message::Version;
use jetway::jet::packet;
use jetway::token::mint::{self, SigningKey};
use jetway_lab::certificate::Identity;
use jetway_lab::tls::{certificate_der, client_config};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::api::http_json;
use crate::lab::{Lab, Target, closed, failure, log, logged, logged_times, within};

/// A gateway with a certificate, and an operator.
pub(crate) struct Place {
    pub(crate) lab: Lab,
    roots: Arc<ClientConfig>,
    folder: tempfile::TempDir,
}

pub(crate) const OPERATOR: &str = "operator-secret";

/// The API key of another operator.
pub(crate) const PORTAL: &str = "portal-secret";

pub(crate) const TRANSPORTS: [&str; 4] = ["tcp", "tls", "ws", "wss"];

impl Place {
    pub(crate) fn start(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::self_signed(&["gw.test", "127.0.0.1"]);
        let [certificate, key] = identity.write(folder.path(), ["c.pem", "k.pem"]);
        let [desk, portal] =
            [OPERATOR, PORTAL].map(|key| hex::encode(openssl::sha::sha256(key.as_bytes())));
        let lab = Lab::start(&format!(
            "[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n\
             [api]\nkeys = [{{ name = \"desk\", sha256 = \"{desk}\" }}, {{ name = \"portal\", sha256 = \"{portal}\" }}]\n{extra}"
        ));
        Self {
            lab,
            roots: client_config(certificate_der(&identity)),
            folder,
        }
    }

    /// A rendezvous token, with `changes` over its claims.
    pub(crate) fn token(&self, association: Uuid, changes: Value) -> String {
        let mut claims = json!({ "jet_cm": "rdv", "dst_hst": null, "jet_ap": null, "jet_aid": association.to_string() });
        let object = claims.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let key = SigningKey::from_key(&self.lab.signing, None).unwrap();
        mint::mint(&Lab::claims(nowhere, claims), Some(&key), None).unwrap()
    }

    pub(crate) async fn http(&self, head: &str, bearer: &str, body: &str) -> (u16, Value) {
        http_json(&self.lab, "gw.test:1", head, bearer, body).await
    }

    /// An association that `bearer` has created, and its candidates by transport.
    pub(crate) async fn association(&self, association: Uuid, bearer: &str) -> Vec<(String, Uuid)> {
        let create = format!("POST /jet/association/{association}");
        assert_eq!(self.http(&create, bearer, "").await.0, 200);
        let gather = format!("POST /jet/gather/{association}");
        let (status, gathered) = self.http(&gather, bearer, "").await;
        assert_eq!(status, 200, "{gathered}");
        assert_eq!(gathered["id"], association.to_string());
        let candidates = gathered["candidates"].as_array().unwrap().iter();
        candidates
            .map(|candidate| {
                let url = candidate["url"].as_str().unwrap();
                let transport = url.split("://").next().unwrap().to_owned();
                assert!(url.ends_with("?ctype=relay"), "{url}");
                (
                    transport,
                    candidate["id"].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect()
    }

    pub(crate) async fn read(&self, association: Uuid) -> Value {
        let path = format!("GET /jet/association/{association}");
        let (status, shown) = self.http(&path, OPERATOR, "").await;
        assert_eq!(status, 200, "{shown}");
        shown
    }

    /// Waits until so many bytes were counted: they may arrive before.
    pub(crate) async fn relayed(&self, association: Uuid, to_acceptor: u64, to_connector: u64) {
        within(async {
            loop {
                let shown = self.read(association).await;
                if shown["bytes_to_acceptor"] == to_acceptor
                    && shown["bytes_to_connector"] == to_connector
                {
                    return;
                }
            }
        })
        .await;
    }

    /// The states of all candidates, as they were gathered.
    pub(crate) async fn states(&self, association: Uuid) -> Vec<String> {
        let shown = self.read(association).await;
        let candidates = shown["candidates"].as_array().unwrap().iter();
        candidates
            .map(|candidate| candidate["state"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) async fn tls<S: Duplex>(&self, tcp: S) -> tokio_rustls::client::TlsStream<S> {
        let name = "gw.test".try_into().unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.roots));
        within(connector.connect(name, tcp)).await.unwrap()
    }

    /// The gateway's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("c.pem")
    }

    /// A peer of a candidate, over any transport; or the status that it was answered with.
    pub(crate) async fn peer(
        &self,
        transport: &str,
        path: JetPath,
        token: Option<&str>,
    ) -> Result<Peer, u16> {
        let tcp = self.lab.connect().await;
        self.peer_on(tcp, transport, path, token).await
    }

    /// The same on a connection that is there.
    pub(crate) async fn peer_on<S: Duplex + 'static>(
        &self,
        tcp: S,
        transport: &str,
        path: JetPath,
        token: Option<&str>,
    ) -> Result<Peer, u16> {
        let stream: Box<dyn Duplex> = match transport {
            "tcp" | "ws" => Box::new(tcp),
            _ => Box::new(self.tls(tcp).await),
        };
        match transport {
            "tcp" | "tls" => binary(stream, path, Version::V2, token).await,
            _ => websocket(stream, path, token).await,
        }
    }
}

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A peer past its handshake, spoken for by libraries that know nothing of the gateway.
pub(crate) enum Peer {
    Stream(Box<dyn Duplex>),
    WebSocket {
        socket: Box<WebSocketStream<Box<dyn Duplex>>>,
        arrived: Vec<u8>,
        /// The code of the Close frame.
        closed: Option<CloseCode>,
    },
}

impl Peer {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Stream(stream) => {
                stream.write_all(bytes).await.unwrap();
                stream.flush().await.unwrap();
            }
            Self::WebSocket { socket, .. } => {
                let message = Message::Binary(bytes.to_vec().into());
                socket.send(message).await.unwrap();
            }
        }
    }

    pub(crate) async fn receive(&mut self, count: usize) -> Vec<u8> {
        match self {
            Self::Stream(stream) => {
                let mut bytes = vec![0; count];
                within(stream.read_exact(&mut bytes)).await.unwrap();
                bytes
            }
            Self::WebSocket { arrived, .. } if arrived.len() >= count => {
                arrived.drain(..count).collect()
            }
            Self::WebSocket { .. } => {
                assert!(self.read_message().await, "the peer has closed");
                Box::pin(self.receive(count)).await
            }
        }
    }

    /// Waits for another message; false at the end.
    async fn read_message(&mut self) -> bool {
        let Self::WebSocket {
            socket,
            arrived,
            closed,
        } = self
        else {
            panic!("only a WebSocket has messages");
        };
        match within(socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => arrived.extend_from_slice(&bytes),
            Some(Ok(Message::Close(frame))) => {
                *closed = frame.map(|frame| frame.code);
                // The library's answer is on its way when the end is read.
                let _end = within(socket.next()).await;
                return false;
            }
            Some(Ok(_)) => {}
            None | Some(Err(_)) => return false,
        }
        true
    }

    /// Waits for the end of a WebSocket, and its code.
    pub(crate) async fn closed(&mut self) -> Option<CloseCode> {
        while self.read_message().await {}
        match self {
            Self::Stream(_) => panic!("a WebSocket"),
            Self::WebSocket { closed, .. } => *closed,
        }
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&mut self) {
        match self {
            Self::Stream(stream) => stream.shutdown().await.unwrap(),
            Self::WebSocket { socket, .. } => socket.close().await.unwrap(),
        }
    }

    /// Nothing more comes; the other direction may go on.
    pub(crate) async fn expect_end(&mut self) {
        let Self::Stream(stream) = self else {
            panic!("a WebSocket ends both directions");
        };
        assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
    }

    /// As long as some pings and their pongs take: a WebSocket that was told to close has closed by then, as a browser does.
    pub(crate) async fn hesitate(&mut self) {
        let Self::WebSocket { .. } = self else {
            return;
        };
        for _ in 0..20 {
            let Self::WebSocket { socket, .. } = self else {
                return;
            };
            socket.send(Message::Ping("?".into())).await.unwrap();
            assert!(self.read_message().await, "the peer has closed");
        }
    }

    /// What is left to the end.
    pub(crate) async fn rest(mut self) -> Vec<u8> {
        match &mut self {
            Self::Stream(stream) => {
                let mut bytes = Vec::new();
                // TLS may end without close_notify.
                let _end = within(stream.read_to_end(&mut bytes)).await;
                bytes
            }
            Self::WebSocket { .. } => {
                while self.read_message().await {}
                let Self::WebSocket { arrived, .. } = self else {
                    panic!("it was one");
                };
                arrived
            }
        }
    }
}

pub(crate) async fn binary(
    mut stream: Box<dyn Duplex>,
    path: JetPath,
    version: Version,
    token: Option<&str>,
) -> Result<Peer, u16> {
    let request = Request {
        path,
        version,
        host: Some("gw.test".to_owned()),
        token: token.map(|token| Zeroizing::new(token.to_owned())),
    };
    let packet = packet::encode(&request.to_payload(), 0x5A).unwrap();
    stream.write_all(&packet).await.unwrap();
    stream.flush().await.unwrap();
    let response = response(&mut stream).await;
    assert_eq!(response.version, u8::from(version));
    if response.status == Status::Ok {
        Ok(Peer::Stream(stream))
    } else {
        Err(response.status.into())
    }
}

/// Reads a response as existing clients do: by one call of at most 1,024 bytes.
pub(crate) async fn response(stream: &mut (impl AsyncRead + Unpin + ?Sized)) -> Response {
    let mut bytes = vec![0; 1024];
    let count = within(stream.read(&mut bytes)).await.unwrap();
    let packet = packet::decode(&bytes[..count])
        .unwrap()
        .expect("a whole packet");
    assert_eq!(packet.length, count, "something came with the response");
    Response::parse(&packet.payload).unwrap()
}

pub(crate) async fn websocket(
    stream: Box<dyn Duplex>,
    path: JetPath,
    token: Option<&str>,
) -> Result<Peer, u16> {
    let mut request = format!("ws://gw.test{path}").into_client_request().unwrap();
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
    }
    handshake(stream, request).await
}

pub(crate) async fn handshake(
    stream: Box<dyn Duplex>,
    request: tokio_tungstenite::tungstenite::handshake::client::Request,
) -> Result<Peer, u16> {
    match within(tokio_tungstenite::client_async(request, stream)).await {
        Ok((socket, _)) => Ok(Peer::WebSocket {
            socket: Box::new(socket),
            arrived: Vec::new(),
            closed: None,
        }),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn path(operation: Operation, association: Uuid, candidate: Uuid) -> JetPath {
    JetPath {
        operation,
        association,
        candidate,
    }
}

pub(crate) fn of(candidates: &[(String, Uuid)], transport: &str) -> Uuid {
    let mut candidates = candidates.iter();
    let found = candidates.find(|(name, _)| name == transport);
    found.unwrap().1
}

/// Two peers of one association, each on its transport, on the candidate of the acceptor's transport.
async fn meet(place: &Place, acceptor: &str, connector: &str) -> (Uuid, Peer, Peer) {
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let candidate = of(&candidates, acceptor);
    let accept = path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, candidate);
    let accepted = place.peer(acceptor, accept, None).await.ok().unwrap();
    let connected = place.peer(connector, connect, None).await.ok().unwrap();
    (association, accepted, connected)
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_is_a_normal_close_of_a_websocket() {
    let place = Place::start("");
    let (_, mut accepted, mut connected) = meet(&place, "tcp", "ws").await;
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    accepted.send(b"bye").await;
    accepted.finish().await;
    while connected.read_message().await {}
    let Peer::WebSocket {
        closed, arrived, ..
    } = connected
    else {
        panic!("a WebSocket");
    };
    assert_eq!(arrived, b"bye");
    assert_eq!(closed, Some(CloseCode::Normal));
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_sends_text_or_too_much_is_told_why_it_is_closed() {
    let place = Place::start("");
    let long = Message::Binary(vec![0; jetway::limits::WEBSOCKET_MESSAGE_BYTES + 1].into());
    for (message, code) in [
        (Message::text("hello"), CloseCode::Unsupported),
        (long, CloseCode::Size),
    ] {
        let (_, mut accepted, mut connected) = meet(&place, "tcp", "ws").await;
        connected.send(b"x").await;
        accepted.receive(1).await;
        let Peer::WebSocket { socket, .. } = &mut connected else {
            panic!("a WebSocket");
        };
        // The gateway may close while it is still being sent.
        let _sent = socket.send(message).await;
        while connected.read_message().await {}
        let Peer::WebSocket { closed, .. } = connected else {
            panic!("a WebSocket");
        };
        assert_eq!(closed, Some(code));
    }
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_closes_is_closed_although_the_other_side_says_nothing() {
    let place = Place::start("");
    for (acceptor, connector) in [("tcp", "ws"), ("wss", "tls")] {
        let (_, mut accepted, mut connected) = meet(&place, acceptor, connector).await;
        connected.send(b"hello").await;
        assert_eq!(accepted.receive(5).await, b"hello");
        let (mut closing, silent) = match connector {
            "ws" => (connected, accepted),
            _ => (accepted, connected),
        };
        let Peer::WebSocket { socket, .. } = &mut closing else {
            panic!("a WebSocket");
        };
        let done = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        socket.send(Message::Close(Some(done))).await.unwrap();
        // The answer to its Close, and the end of its connection.
        assert_eq!(closing.closed().await, Some(CloseCode::Normal));
        logged("Session closed").await;
        crate::lab::forget_log();
        assert_eq!(silent.rest().await, b"");
    }
}

// J-WS-1: closing with bytes unread would reset the connection, and the code could be lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_still_sends_is_told_why_it_is_closed() {
    let place = Place::start("");
    for transport in ["ws", "wss"] {
        for met in [true, false] {
            let association = Uuid::new_v4();
            let candidates = place.association(association, OPERATOR).await;
            let candidate = of(&candidates, transport);
            let accept = path(Operation::Accept, association, candidate);
            let mut talker = place.peer(transport, accept, None).await.ok().unwrap();
            let mut other = None;
            if met {
                let connect = path(Operation::Connect, association, candidate);
                let mut connected = place.peer("tcp", connect, None).await.ok().unwrap();
                connected.send(b"x").await;
                assert_eq!(talker.receive(1).await, b"x");
                other = Some(connected);
            }
            let Peer::WebSocket { socket, .. } = &mut talker else {
                panic!("a WebSocket");
            };
            // Nothing is read meanwhile.
            socket.feed(Message::text("hello")).await.unwrap();
            for _ in 0..16 {
                let more = Message::Binary(vec![7; 32 * 1024].into());
                within(socket.send(more)).await.unwrap();
            }
            let closed = talker.closed().await;
            assert_eq!(closed, Some(CloseCode::Unsupported), "{transport} {met}");
            drop(talker);
            if let Some(other) = other {
                assert_eq!(other.rest().await, b"");
            }
        }
    }
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_told_that_the_other_side_broke_or_that_the_gateway_ends() {
    let mut place = Place::start("[session]\ndrain_s = 0\n");
    let (_, mut accepted, mut connected) = meet(&place, "tcp", "ws").await;
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    let Peer::Stream(stream) = accepted else {
        panic!("a stream");
    };
    drop(stream);
    assert_eq!(connected.closed().await, Some(CloseCode::Normal));

    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, candidate);
    let breaking = place.lab.connect().await;
    breaking.set_zero_linger().unwrap();
    let accepted = binary(Box::new(breaking), accept, Version::V2, None).await;
    let mut accepted = accepted.ok().unwrap();
    let mut connected = place.peer("wss", connect, None).await.ok().unwrap();
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    drop(accepted);
    assert_eq!(connected.closed().await, Some(CloseCode::Error));

    let (association, mut accepted, mut connected) = meet(&place, "tcp", "ws").await;
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    let delete = format!("DELETE /jet/association/{association}");
    assert_eq!(place.http(&delete, OPERATOR, "").await.0, 200);
    assert_eq!(connected.closed().await, Some(CloseCode::Away));

    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let accept = path(Operation::Accept, association, of(&candidates, "ws"));
    let mut waiting = place.peer("ws", accept, None).await.ok().unwrap();
    let (_, mut accepted, mut connected) = meet(&place, "tcp", "wss").await;
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    let ends = async { tokio::join!(waiting.closed(), connected.closed()) };
    let (ends, ()) = tokio::join!(ends, place.lab.stop());
    assert_eq!(ends, (Some(CloseCode::Away), Some(CloseCode::Away)));
}

// J-WS-1 J-AP-1
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_not_granted_its_session_is_told_so() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({ "jet_ap": "ssh" }));
    let candidates = place.association(association, &token).await;
    let candidate = of(&candidates, "ws");
    let token = Some(token.as_str());
    let accept = path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, candidate);
    let mut accepted = place.peer("ws", accept, token).await.ok().unwrap();
    let mut connected = place.peer("ws", connect, token).await.ok().unwrap();
    accepted.send(b"220 smtp.example ESMTP\r\n").await;
    connected.send(b"EHLO\r\n").await;
    assert_eq!(connected.closed().await, Some(CloseCode::Policy));
    assert_eq!(accepted.closed().await, Some(CloseCode::Away));
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused_where_origins_are_configured() {
    let place = Place::start("[jet]\norigins = [\"https://app.example\"]\n");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    let ticket = place.http("POST /jet/tickets", &token, "").await.1;
    let ticket = ticket["ticket"].as_str().unwrap();
    let shake = async |origins: &[&'static str]| {
        let url = format!("ws://gw.test{test}?ticket={ticket}");
        let mut request = url.into_client_request().unwrap();
        for origin in origins {
            let origin = origin.parse().unwrap();
            request.headers_mut().append("origin", origin);
        }
        handshake(Box::new(place.lab.connect().await), request).await
    };
    for origins in [
        &["https://app.example.evil.example"][..],
        &["http://app.example"],
        &["https://app.example:8443"],
        &["null"],
        &["https://app.example", "https://evil.example"],
    ] {
        assert_eq!(shake(origins).await.err(), Some(403), "{origins:?}");
    }
    let refused = logged("Rendezvous refused").await;
    assert_eq!(refused["rule"], "origin");
    // The ticket is as good as before.
    assert!(shake(&["https://app.example"]).await.is_ok());
    // A peer that is no page says none.
    let tested = place.peer("ws", test, Some(&token)).await;
    assert!(tested.is_ok());
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_and_fragments_are_put_together() {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    let place = Place::start("");
    let (_, mut accepted, mut connected) = meet(&place, "ws", "tcp").await;
    let Peer::WebSocket { socket, .. } = &mut accepted else {
        panic!("a WebSocket");
    };
    socket.send(Message::Ping("there?".into())).await.unwrap();
    let pong = within(socket.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("there?".into()));
    let part = |bytes: &'static [u8], opcode, last| {
        Message::Frame(Frame::message(bytes, OpCode::Data(opcode), last))
    };
    socket
        .send(part(b"one ", Data::Binary, false))
        .await
        .unwrap();
    socket
        .send(part(b"two ", Data::Continue, false))
        .await
        .unwrap();
    socket
        .send(part(b"three", Data::Continue, true))
        .await
        .unwrap();
    assert_eq!(connected.receive(13).await, b"one two three");
}

// J-BIN-2: existing clients lose what comes with the response.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_first_never_comes_with_the_response() {
    let place = Place::start("");
    for transport in ["tcp", "tls"] {
        for _ in 0..10 {
            let association = Uuid::new_v4();
            let candidates = place.association(association, OPERATOR).await;
            let candidate = of(&candidates, "tcp");
            let accept = path(Operation::Accept, association, candidate);
            let mut accepted = place.peer("tcp", accept, None).await.ok().unwrap();
            accepted.send(b"SSH-2.0-banner\r\n").await;
            let connect = path(Operation::Connect, association, candidate);
            // `response` demands that it comes alone.
            let mut connected = place.peer(transport, connect, None).await.ok().unwrap();
            assert_eq!(connected.receive(16).await, b"SSH-2.0-banner\r\n");
        }
    }
}

// J-PKT-3
#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_the_request_are_delivered_and_single_bytes_make_a_request() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let candidate = of(&candidates, "tcp");
    let packet = |operation, version| {
        let request = Request {
            path: path(operation, association, candidate),
            version,
            host: None,
            token: None,
        };
        packet::encode(&request.to_payload(), 0).unwrap()
    };
    let mut acceptor = place.lab.connect().await;
    acceptor.set_nodelay(true).unwrap();
    for byte in packet(Operation::Accept, Version::V3) {
        acceptor.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let accepted = response(&mut acceptor).await;
    assert_eq!((accepted.status, accepted.version), (Status::Ok, 3));
    assert!(accepted.instance.is_some_and(|name| !name.is_empty()));
    assert_eq!(accepted.timeout, Some(Duration::from_secs(300)));

    let mut connector = place.lab.connect().await;
    let mut bytes = packet(Operation::Connect, Version::V2);
    bytes.extend_from_slice(b"early");
    connector.write_all(&bytes).await.unwrap();
    let connected = response(&mut connector).await;
    assert_eq!((connected.status, connected.version), (Status::Ok, 2));
    let mut early = [0; 5];
    within(acceptor.read_exact(&mut early)).await.unwrap();
    assert_eq!(&early, b"early");
}

// J-PKT-3
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_packet_is_closed_with_a_line() {
    let place = Place::start("");
    let not_http = packet::encode(b"hello", 1).unwrap();
    for bytes in [
        &b"JET\0\0\x07\0\0"[..],
        b"JET\0\0\x09\x01\0x",
        // The rest of what it announces is not waited for.
        b"JET\0\xFF\xFF\x80",
        &not_http,
        b"JET\x01\0\x08\0\0",
    ] {
        let mut stream = place.lab.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // A reset is a close, too.
        let _end = within(stream.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"");
    }
    logged_times("Invalid JET packet", 4).await;
    // Without the signature it may be anything, and is worth no more than any other noise.
    assert_eq!(logged("Connection dropped").await["rule"], "unrecognised");
}

// J-BIN-3 J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_not_found_and_known_ones_test_well() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    assert_eq!(candidates.len(), 4);
    for transport in TRANSPORTS {
        let candidate = of(&candidates, transport);
        for operation in [Operation::Accept, Operation::Connect, Operation::Test] {
            let unknown = [
                path(operation, Uuid::new_v4(), candidate),
                path(operation, association, Uuid::new_v4()),
            ];
            for path in unknown {
                let answer = place.peer(transport, path, None).await;
                assert_eq!(answer.err(), Some(404), "{transport} {operation}");
            }
        }
        let test = path(Operation::Test, association, candidate);
        let tested = place.peer(transport, test, None).await.ok().unwrap();
        assert_eq!(tested.rest().await, b"", "{transport}");
    }
    assert_eq!(place.states(association).await, ["gathered"; 4]);
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    let mut tested = place.peer("ws", test, None).await.ok().unwrap();
    while tested.read_message().await {}
    let Peer::WebSocket { closed, .. } = tested else {
        panic!("a WebSocket");
    };
    assert_eq!(closed, Some(CloseCode::Normal));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_acceptor_is_refused_and_one_that_left_is_noticed() {
    let place = Place::start("");
    for transport in TRANSPORTS {
        let association = Uuid::new_v4();
        let candidates = place.association(association, OPERATOR).await;
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        let early = place.peer(transport, connect, None).await;
        assert_eq!(early.err(), Some(409), "{transport}: nobody has accepted");
        let accepted = place.peer(transport, accept, None).await.ok().unwrap();
        let second = place.peer(transport, accept, None).await;
        assert_eq!(second.err(), Some(409), "{transport}: it has an acceptor");
        drop(accepted);
        within(async {
            while place
                .states(association)
                .await
                .contains(&"accepted".to_owned())
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let gone = place.peer(transport, connect, None).await;
        assert_eq!(gone.err(), Some(409), "{transport}: it has left");
        // And its place is free again.
        let _accepted = place.peer(transport, accept, None).await.ok().unwrap();
    }
}

// J-SEQ-3
#[tokio::test(flavor = "multi_thread")]
async fn the_first_bytes_select_a_candidate_and_close_the_others() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let mut accepted = Vec::new();
    let mut connected = Vec::new();
    for transport in TRANSPORTS {
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        accepted.push(place.peer(transport, accept, None).await.ok().unwrap());
        connected.push(place.peer(transport, connect, None).await.ok().unwrap());
    }
    assert_eq!(place.states(association).await, ["connected"; 4]);
    let mut chosen = connected.remove(2);
    let mut its_acceptor = accepted.remove(2);
    chosen.send(b"this one").await;
    assert_eq!(its_acceptor.receive(8).await, b"this one");
    for other in accepted.into_iter().chain(connected) {
        assert_eq!(other.rest().await, b"");
    }
    assert_eq!(
        place.states(association).await,
        ["closed", "closed", "selected", "closed"]
    );
    // Who accepts on all candidates comes too late with some; that is nothing for an administrator to look at.
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, association, candidate);
    assert_eq!(place.peer("tcp", accept, None).await.err(), Some(409));
    let line = logged("Candidate not needed").await;
    assert_eq!(line["reason"], "another candidate was selected");
    let connect = path(Operation::Connect, association, candidate);
    assert!(!log().contains("Rendezvous refused"));
    assert_eq!(place.peer("tcp", connect, None).await.err(), Some(409));
    logged("Rendezvous refused").await;
    drop((chosen, its_acceptor));
    logged("Session closed").await;
    assert_eq!(place.states(association).await, ["closed"; 4]);
    assert_eq!(place.read(association).await["bytes_to_acceptor"], 8);
}

// J-SEQ-3
#[tokio::test(flavor = "multi_thread")]
async fn the_clients_word_selects_a_candidate() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let (tcp, wss) = (of(&candidates, "tcp"), of(&candidates, "wss"));
    let complete = format!("POST /jet/complete/{association}");
    let word = json!({ "candidate": { "id": tcp } }).to_string();
    assert_eq!(place.http(&complete, OPERATOR, &word).await.0, 409);
    let accept = |candidate| path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, tcp);
    let mut accepted = place.peer("tcp", accept(tcp), None).await.ok().unwrap();
    let other = place.peer("wss", accept(wss), None).await.ok().unwrap();
    let mut connected = place.peer("tcp", connect, None).await.ok().unwrap();
    assert_eq!(place.http(&complete, OPERATOR, &word).await.0, 200);
    assert_eq!(other.rest().await, b"");
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    let another = json!({ "candidate": { "id": wss } }).to_string();
    assert_eq!(place.http(&complete, OPERATOR, &another).await.0, 409);
    assert_eq!(place.http(&complete, OPERATOR, "{}").await.0, 400);
}

// J-CT-1
#[tokio::test(flavor = "multi_thread")]
async fn with_jet_ct_close_connecting_selects() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({ "jet_ct": "close" }));
    let candidates = place.association(association, &token).await;
    let (tcp, ws) = (of(&candidates, "tcp"), of(&candidates, "ws"));
    let token = Some(token.as_str());
    let accept = |candidate| path(Operation::Accept, association, candidate);
    let _accepted = place.peer("tcp", accept(tcp), token).await.ok().unwrap();
    let other = place.peer("ws", accept(ws), token).await.ok().unwrap();
    let connect = path(Operation::Connect, association, tcp);
    let _connected = place.peer("tcp", connect, token).await.ok().unwrap();
    assert_eq!(other.rest().await, b"");
    assert_eq!(place.states(association).await[0], "selected");
}

// J-API-1 J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn associations_are_created_read_and_deleted_by_who_may() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let own = place.token(association, json!({}));
    let same = place.token(association, json!({}));
    let other_claims = place.token(association, json!({ "jet_ap": "ssh" }));
    let elsewhere = place.token(Uuid::new_v4(), json!({}));
    let forward = place.lab.token("127.0.0.1:1".parse().unwrap(), json!({}));
    let recorded = place.token(association, json!({ "jet_rec": true }));
    let id = format!("/jet/association/{association}");
    let gather = format!("/jet/gather/{association}");
    let complete = format!("/jet/complete/{association}");
    let cases = [
        ("POST", id.as_str(), "", 401),
        ("POST", &id, "nonsense", 401),
        ("POST", &id, elsewhere.as_str(), 403),
        ("POST", &id, &forward, 401),
        ("POST", &id, &recorded, 403),
        ("POST", "/jet/association/seven", &own, 400),
        ("GET", &id, &own, 404),
        ("DELETE", &id, &own, 404),
        ("POST", &id, &own, 200),
        ("POST", &id, &own, 200),
        ("POST", &id, &same, 200),
        ("POST", &id, &other_claims, 409),
        ("GET", &id, "", 401),
        ("GET", &id, &elsewhere, 403),
        ("GET", &id, &own, 200),
        ("GET", &id, OPERATOR, 200),
        ("GET", "/jet/association/seven", &own, 400),
        ("DELETE", "/jet/association/seven", &own, 400),
        ("POST", "/jet/gather/seven", &own, 400),
        ("POST", &gather, "", 401),
        ("POST", &gather, &elsewhere, 403),
        ("POST", &gather, &own, 200),
        ("POST", &complete, "", 401),
        ("DELETE", &id, "", 401),
        ("GET", "/jet/association", &own, 401),
        ("GET", "/jet/association", OPERATOR, 200),
        ("DELETE", &id, &elsewhere, 403),
        ("DELETE", &id, &own, 200),
        ("GET", &id, &own, 404),
    ];
    for (method, path, bearer, expected) in cases {
        let (status, body) = place.http(&format!("{method} {path}"), bearer, "").await;
        assert_eq!(status, expected, "{method} {path}: {body}");
    }
}

// J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_names_no_association_decides_on_its_own_alone() {
    let place = Place::start("");
    let nameless = place.token(Uuid::nil(), json!({ "jet_aid": null }));
    let another = place.token(Uuid::nil(), json!({ "jet_aid": null }));
    for (creator, required) in [(OPERATOR, false), (another.as_str(), true)] {
        let association = Uuid::new_v4();
        let candidates = place.association(association, creator).await;
        let candidate = of(&candidates, "tcp");
        let complete = json!({ "candidate": { "id": candidate } }).to_string();
        let attempts = async || {
            for (head, body) in [
                (format!("GET /jet/association/{association}"), ""),
                (format!("POST /jet/gather/{association}"), ""),
                (
                    format!("POST /jet/association/{association}/candidates"),
                    "",
                ),
                (format!("POST /jet/complete/{association}"), &complete),
                (format!("DELETE /jet/association/{association}"), ""),
            ] {
                let (status, answer) = place.http(&head, &nameless, body).await;
                assert_eq!(status, 403, "{head}: {answer}");
            }
        };
        attempts().await;
        if !required {
            // To be a peer it takes the two ids, as for everybody.
            let accept = path(Operation::Accept, association, candidate);
            let connect = path(Operation::Connect, association, candidate);
            let token = Some(nameless.as_str());
            let mut accepted = place.peer("tcp", accept, token).await.ok().unwrap();
            let mut connected = place.peer("tcp", connect, None).await.ok().unwrap();
            attempts().await;
            connected.send(b"hello").await;
            assert_eq!(accepted.receive(5).await, b"hello");
        }
        let delete = format!("DELETE /jet/association/{association}");
        assert_eq!(place.http(&delete, creator, "").await.0, 200);
    }
    let own = Uuid::new_v4();
    let candidates = place.association(own, &nameless).await;
    assert_eq!(candidates.len(), TRANSPORTS.len());
    for method in ["GET", "DELETE"] {
        let head = format!("{method} /jet/association/{own}");
        assert_eq!(place.http(&head, &nameless, "").await.0, 200);
    }
}

// J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_association_is_deleted_ends_and_its_line_says_so() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, candidate);
    let shown = Some(token.as_str());
    let mut accepted = place.peer("tcp", accept, shown).await.ok().unwrap();
    let mut connected = place.peer("tcp", connect, shown).await.ok().unwrap();
    connected.send(b"hello").await;
    assert_eq!(accepted.receive(5).await, b"hello");
    let delete = format!("DELETE /jet/association/{association}");
    assert_eq!(place.http(&delete, &token, "").await.0, 200);
    assert_eq!(accepted.rest().await, b"");
    let line = closed(1).await.remove(0);
    assert_eq!(line["reason"], "its association was deleted");
}

// J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_nobody_deletes_what_others_have_created() {
    let place = Place::start("[jet]\nauthentication = false\n");
    let (own, operators, tokens) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    place.association(own, "").await;
    place.association(operators, OPERATOR).await;
    place
        .association(tokens, &place.token(tokens, json!({})))
        .await;
    let elsewhere = async |head: String| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(place.lab.address()).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\nHost: gw.test:1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        text.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    // The other peer of an association asks for its candidates, too.
    assert_eq!(elsewhere(format!("POST /jet/gather/{own}")).await, 200);
    assert_eq!(elsewhere(format!("GET /jet/association/{own}")).await, 200);
    assert_eq!(
        elsewhere(format!("DELETE /jet/association/{own}")).await,
        403
    );
    for (association, expected) in [(operators, 403), (tokens, 401), (own, 200)] {
        let delete = format!("DELETE /jet/association/{association}");
        assert_eq!(
            place.http(&delete, "", "").await.0,
            expected,
            "{association}"
        );
    }
}

// J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn authentication_may_be_switched_off_and_says_so() {
    let place = Place::start("[jet]\nauthentication = false\n");
    let association = Uuid::new_v4();
    place.association(association, "").await;
    let log = log();
    assert!(log.contains("jet.authentication = false"), "{log}");
}

#[tokio::test]
async fn that_anyone_may_be_a_peer_is_said_at_the_start_and_nothing_is_where_it_is_not_so() {
    let _careful = Place::start("[jet]\npeers = \"as-created\"\n");
    assert!(!log().contains("jet.peers"), "{}", log());
    let _open = Place::start("[jet]\npeers = \"anyone\"\n");
    assert!(log().contains("(jet.peers = anyone)"), "{}", log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_url_is_not_read_and_the_refusal_says_what_to_use() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    let told = |answer: &str| {
        for way in [
            "Authorization: Bearer TOKEN",
            "sub-protocol bearer.TOKEN",
            "?ticket=TICKET",
        ] {
            assert!(answer.contains(way), "{way}: {answer}");
        }
        assert!(!answer.contains(&token), "{answer}");
    };
    for (number, head) in [
        format!("GET /jet/association/{association}?token={token}"),
        format!("POST /jet/tickets?access_token={token}"),
        format!("GET {test}?a=b&token={token}"),
    ]
    .iter()
    .enumerate()
    {
        let (status, problem) = place.http(head, "", "").await;
        assert_eq!(status, 401, "{problem}");
        assert_eq!(problem["rule"], "token-in-url", "{problem}");
        told(problem["detail"].as_str().unwrap());
        let line = logged_times("Request refused", number + 1)
            .await
            .remove(number);
        told(line["reason"].as_str().unwrap());
    }
    // As a WebSocket, and in a packet; and what stands beside a token that is read is nobody's matter.
    for (bearer, expected) in [(None, Some(401)), (Some(token.as_str()), None)] {
        let mut request = format!("ws://gw.test{test}?token={token}")
            .into_client_request()
            .unwrap();
        if let Some(bearer) = bearer {
            let bearer = format!("Bearer {bearer}").parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        let stream: Box<dyn Duplex> = Box::new(place.lab.connect().await);
        assert_eq!(handshake(stream, request).await.err(), expected);
        let authorization = bearer.map_or_else(String::new, |bearer| {
            format!("Authorization: Bearer {bearer}\r\n")
        });
        let payload =
            format!("GET {test}?token={token} HTTP/1.1\r\nJet-Version: 3\r\n{authorization}\r\n");
        let packet = packet::encode(payload.as_bytes(), 0x5A).unwrap();
        let mut stream = place.lab.connect().await;
        stream.write_all(&packet).await.unwrap();
        let response = response(&mut stream).await;
        assert_eq!(u16::from(response.status), expected.unwrap_or(200));
    }
    told(
        logged("Invalid JET request").await["reason"]
            .as_str()
            .unwrap(),
    );
}

// J-API-2
#[tokio::test(flavor = "multi_thread")]
async fn gathering_names_each_way_in_once() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let transports: Vec<&str> = candidates.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(transports, TRANSPORTS);
    let ids: HashSet<Uuid> = candidates.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids.len(), candidates.len());
    assert_eq!(place.association(association, OPERATOR).await, candidates);
    let port = place.lab.address().port();
    let existing = format!("POST /jet/association/{association}/candidates");
    let (_, gathered) = place.http(&existing, OPERATOR, "").await;
    let url = format!("wss://gw.test:{port}?ctype=relay");
    assert_eq!(gathered["candidates"][3]["url"], url);
    let unknown = format!("POST /jet/gather/{}", Uuid::new_v4());
    assert_eq!(place.http(&unknown, OPERATOR, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ids_are_not_enough_where_a_token_created_the_association() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let other = place.token(Uuid::new_v4(), json!({}));
    for transport in TRANSPORTS {
        let candidate = of(&candidates, transport);
        for operation in [Operation::Test, Operation::Accept, Operation::Connect] {
            let path = path(operation, association, candidate);
            let without = place.peer(transport, path, None).await;
            assert_eq!(without.err(), Some(401), "{transport} {operation}");
            let wrong = place.peer(transport, path, Some(&other)).await;
            assert_eq!(wrong.err(), Some(403), "{transport} {operation}");
            let forged = place.peer(transport, path, Some("eyJ.e30.")).await;
            assert_eq!(forged.err(), Some(401), "{transport} {operation}");
        }
        let own = Some(token.as_str());
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        place.peer(transport, accept, own).await.ok().unwrap();
        let _accepted = within(async {
            loop {
                match place.peer(transport, accept, own).await {
                    Ok(peer) => return peer,
                    // The first one's end is on its way.
                    Err(409) => {}
                    Err(status) => panic!("{status}"),
                }
            }
        })
        .await;
        place.peer(transport, connect, own).await.ok().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_of_a_websocket_handshake_is_read_in_any_case() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    for scheme in ["bearer", "BEARER  "] {
        let mut request = format!("ws://gw.test{test}").into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", "jet".parse().unwrap());
        let shown = format!("{scheme} {token}").parse().unwrap();
        headers.insert("authorization", shown);
        let stream: Box<dyn Duplex> = Box::new(place.lab.connect().await);
        assert!(handshake(stream, request).await.is_ok(), "{scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_its_token_as_a_sub_protocol_or_a_ticket() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    let mut request = format!("ws://gw.test{test}").into_client_request().unwrap();
    let protocols = format!("jet, bearer.{token}").parse().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocols);
    let stream: Box<dyn Duplex> = Box::new(place.lab.connect().await);
    handshake(stream, request).await.ok().unwrap();

    let ticket = crate::api::ticket(&place.lab, &token).await;
    for (ticket, expected) in [(ticket.as_str(), None), ("jt-guessed", Some(401))] {
        let request = format!("ws://gw.test{test}?ticket={ticket}");
        let request = request.into_client_request().unwrap();
        let stream: Box<dyn Duplex> = Box::new(place.lab.connect().await);
        assert_eq!(handshake(stream, request).await.err(), expected);
    }
    for line in log().lines() {
        // The client's library, which is part of the test, tells what it sends.
        if !line.contains("tungstenite") {
            assert!(!line.contains(&ticket) && !line.contains(&token), "{line}");
        }
    }
}

// J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_is_agreed_on_where_both_know_it() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({}));
    let candidates = place.association(association, &token).await;
    let test = path(Operation::Test, association, of(&candidates, "ws"));
    for (offered, selected) in [
        ("jet", "jet"),
        ("jet.half-close", "jet.half-close"),
        ("jet, jet.half-close", "jet.half-close"),
    ] {
        let mut request = format!("ws://gw.test{test}").into_client_request().unwrap();
        let protocols = format!("{offered}, bearer.{token}").parse().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", protocols);
        let stream = place.lab.connect().await;
        let opened = within(tokio_tungstenite::client_async(request, stream)).await;
        let (_, response) = opened.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], selected);
    }
}

// J-API-4
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_is_forgotten_and_its_peers_are_closed() {
    let place = Place::start("[jet]\nunused_timeout_s = 1\n");
    let (association, accepted, connected) = meet(&place, "tcp", "ws").await;
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(connected.rest().await, b"");
    let path = format!("GET /jet/association/{association}");
    assert_eq!(place.http(&path, OPERATOR, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_association_ends_its_session() {
    let place = Place::start("");
    let (association, mut accepted, mut connected) = meet(&place, "tcp", "tcp").await;
    connected.send(b"x").await;
    accepted.receive(1).await;
    let delete = format!("DELETE /jet/association/{association}");
    assert_eq!(place.http(&delete, OPERATOR, "").await.0, 200);
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(connected.rest().await, b"");
}

// J-RDP-3
#[tokio::test(flavor = "multi_thread")]
async fn an_rdp_client_with_a_rendezvous_token_meets_the_acceptor() {
    let place = Place::start("");
    let target = Target::start().await;
    let association = Uuid::new_v4();
    let token = place.token(association, json!({ "jet_ap": "rdp" }));
    // Before there is an association the client reads that the other side is missing.
    assert_eq!(failure(&mut place.lab.client(&token).await).await, 3);
    let candidates = place.association(association, &token).await;
    let accept = path(Operation::Accept, association, of(&candidates, "wss"));
    let client = {
        let token = token.clone();
        let opening = place.lab.client(&token).await;
        // The acceptor comes a moment later than the client.
        let accepted = place.peer("wss", accept, Some(&token)).await.ok().unwrap();
        tokio::spawn(bridge(accepted, target.address));
        opening
    };
    let mut client = client;
    assert_eq!(
        crate::lab::confirm(&mut client).await,
        crate::lab::SELECTED_TLS
    );
    client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
    let mut echo = [0_u8; crate::lab::CLIENT_HELLO.len()];
    within(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(place.states(association).await[3], "selected");
    drop(client);
    let line = logged("Session closed").await;
    assert_eq!(line["jet_aid"], association.to_string());
    // One token, one session.
    assert_eq!(failure(&mut place.lab.client(&token).await).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_association_is_met_again_within_the_window_until_an_operator_ends_it() {
    let place = Place::start("");
    let target = Target::start().await;
    let association = Uuid::new_v4();
    let token = place.token(association, json!({ "jet_ap": "rdp", "jet_reuse": 60 }));
    let candidates = place.association(association, &token).await;
    let accept = path(Operation::Accept, association, of(&candidates, "wss"));
    // A mistyped password ends the first one; either side may be the first to come again.
    for session in 1..=3 {
        let mut client = None;
        if session == 2 {
            client = Some(place.lab.client(&token).await);
        }
        let accepted = place.peer("wss", accept, Some(&token)).await;
        tokio::spawn(bridge(accepted.ok().unwrap(), target.address));
        let mut client = match client {
            Some(client) => client,
            None => place.lab.client(&token).await,
        };
        assert_eq!(
            crate::lab::confirm(&mut client).await,
            crate::lab::SELECTED_TLS
        );
        client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
        let mut echo = [0_u8; crate::lab::CLIENT_HELLO.len()];
        within(client.read_exact(&mut echo)).await.unwrap();
        if session < 3 {
            drop(client);
            closed(session).await;
            continue;
        }
        let (_, sessions) = place.http("GET /jet/sessions", OPERATOR, "").await;
        let id = sessions[0]["id"].as_str().unwrap();
        let end = format!("DELETE /jet/sessions/{id}");
        assert_eq!(place.http(&end, OPERATOR, "").await.0, 204);
        let mut rest = Vec::new();
        let _end = within(client.read_to_end(&mut rest)).await;
    }
    closed(3).await;
    assert!(place.peer("wss", accept, Some(&token)).await.is_err());
    assert_eq!(failure(&mut place.lab.client(&token).await).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rdp_client_hears_at_once_that_nobody_will_come() {
    let place = Place::start("");
    let (association, other) = (Uuid::new_v4(), Uuid::new_v4());
    let token = place.token(association, json!({ "jet_ap": "rdp" }));
    place.association(association, &token).await;
    let mut client = place.lab.client(&token).await;
    let waiting = async {
        let live = || place.http("GET /jet/sessions", OPERATOR, "");
        while live().await.1.as_array().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within(waiting).await;
    // What becomes of others is nothing to it.
    let token = place.token(other, json!({}));
    let candidates = place.association(other, &token).await;
    let accept = path(Operation::Accept, other, of(&candidates, "tcp"));
    let _accepted = place.peer("tcp", accept, Some(&token)).await.ok().unwrap();
    // It would wait for longer than this test does.
    let delete = format!("DELETE /jet/association/{association}");
    assert_eq!(place.http(&delete, OPERATOR, "").await.0, 200);
    assert_eq!(failure(&mut client).await, 3);
    let line = logged("Session refused").await;
    assert_eq!(line["reason"], "rendezvous: no such association");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_gone_ends_an_rdp_session_by_rendezvous() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let token = place.token(association, json!({ "jet_ap": "rdp" }));
    let candidates = place.association(association, &token).await;
    let accept = path(Operation::Accept, association, of(&candidates, "tcp"));
    let mut accepted = place.peer("tcp", accept, Some(&token)).await.ok().unwrap();
    let mut client = place.lab.client(&token).await;
    let request = crate::lab::request(None).encode().unwrap();
    assert_eq!(accepted.receive(request.len()).await, request);
    accepted.send(&crate::lab::SELECTED_TLS.encode()).await;
    let confirmed = crate::lab::confirm(&mut client).await;
    assert_eq!(confirmed, crate::lab::SELECTED_TLS);
    client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
    drop(client);
    // The acceptor keeps its side open.
    assert_eq!(
        logged("Session closed").await["reason"],
        "the client closed the connection, and the target did not in time"
    );
    drop(accepted);
}

// J-AP-1
#[tokio::test(flavor = "multi_thread")]
async fn jet_ap_is_enforced_in_a_rendezvous() {
    let place = Place::start("");
    let http = b"GET / HTTP/1.1\r\n\r\n";
    let rdp = crate::lab::request(None).encode().unwrap();
    /// `jet_ap`, and what connector and acceptor say.
    type Case<'a> = (&'a str, Option<&'a [u8]>, Option<&'a [u8]>);
    let cases: [Case<'_>; 5] = [
        // The connector's own first bytes, and those of the acceptor after the right ones of the connector.
        ("ssh", Some(http), None),
        ("rdp", Some(http), None),
        ("ssh", Some(b"SSH-2.0-client\r\n"), Some(b"RFB 003.008\n")),
        ("vnc", None, Some(b"SSH-2.0-server\r\n")),
        ("rdp", Some(&rdp), Some(b"SSH-2.0-server\r\n")),
    ];
    for (count, (protocol, by_connector, by_acceptor)) in cases.into_iter().enumerate() {
        let association = Uuid::new_v4();
        let token = place.token(association, json!({ "jet_ap": protocol }));
        let candidates = place.association(association, &token).await;
        let candidate = of(&candidates, "tcp");
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        let token = Some(token.as_str());
        let mut accepted = place.peer("tcp", accept, token).await.ok().unwrap();
        let mut connected = place.peer("tcp", connect, token).await.ok().unwrap();
        if let Some(bytes) = by_connector {
            connected.send(bytes).await;
        }
        if let Some(bytes) = by_acceptor {
            accepted.send(bytes).await;
        }
        let lines = logged_times("Session refused", count + 1).await;
        assert_eq!(lines[count]["rule"], "protocol", "{protocol}");
        let side = if by_acceptor.is_some() {
            "target"
        } else {
            "client"
        };
        let reason = lines[count]["reason"].as_str().unwrap();
        assert!(reason.contains(side), "{protocol}: {reason}");
        // Nothing that is not of the protocol gets through.
        let arrived = accepted.rest().await;
        assert!(by_acceptor.is_some() || arrived.is_empty(), "{protocol}");
        let answered = connected.rest().await;
        let wrong = by_acceptor.unwrap_or(b"?");
        assert!(!answered.starts_with(wrong), "{protocol}");
    }
}

// J-PKT-2
#[tokio::test(flavor = "multi_thread")]
async fn responses_are_masked_at_random_and_never_with_zero() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let test = path(Operation::Test, association, of(&candidates, "tcp"));
    let mut masks = HashSet::new();
    // The same one 16 times is less likely than a broken machine.
    for mask in (0..=255).step_by(17) {
        let request = Request {
            path: test,
            version: Version::V2,
            host: None,
            token: None,
        };
        let mut stream = place.lab.connect().await;
        let packet = packet::encode(&request.to_payload(), mask).unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer[..4], *b"JET\0");
        let size = u16::from_be_bytes([answer[4], answer[5]]);
        assert_eq!(usize::from(size), answer.len());
        assert_eq!(answer[6], 0, "flags");
        assert_ne!(answer[7], 0, "mask");
        masks.insert(answer[7]);
    }
    assert!(masks.len() > 1);
}

// J-API-2
#[tokio::test(flavor = "multi_thread")]
async fn transports_that_the_gateway_does_not_have_are_not_gathered() {
    // Without a certificate there is no TLS.
    let lab = Lab::start("[jet]\nauthentication = false\n");
    let association = Uuid::new_v4();
    let mut answers = Vec::new();
    for path in ["association", "gather"] {
        let mut stream = lab.connect().await;
        let request = format!(
            "POST /jet/{path}/{association} HTTP/1.1\r\nHost: gw.test:1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        answers.push(text);
    }
    let body = answers[1].split_once("\r\n\r\n").unwrap().1;
    let gathered: Value = serde_json::from_str(body).unwrap();
    let candidates = gathered["candidates"].as_array().unwrap().iter();
    let schemes: Vec<&str> = candidates
        .map(|candidate| candidate["url"].as_str().unwrap())
        .map(|url| url.split("://").next().unwrap())
        .collect();
    assert_eq!(schemes, ["tcp", "ws"]);
}

// J-API-4: what was chosen and has carried nothing is unused; a byte makes the difference.
#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_candidate_without_a_byte_is_forgotten_and_one_with_a_byte_is_not() {
    let place = Place::start("[jet]\nunused_timeout_s = 2\n");
    let (silent, accepted, connected) = meet(&place, "tcp", "ws").await;
    let (active, mut acceptor, mut connector) = meet(&place, "tcp", "tcp").await;
    for association in [silent, active] {
        let candidates = place.association(association, OPERATOR).await;
        let word = json!({ "candidate": { "id": of(&candidates, "tcp") } }).to_string();
        let complete = format!("POST /jet/complete/{association}");
        assert_eq!(place.http(&complete, OPERATOR, &word).await.0, 200);
    }
    connector.send(b"x").await;
    assert_eq!(acceptor.receive(1).await, b"x");
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(connected.rest().await, b"");
    let gone = format!("GET /jet/association/{silent}");
    assert_eq!(place.http(&gone, OPERATOR, "").await.0, 404);
    assert_eq!(place.states(active).await[0], "selected");
    acceptor.send(b"y").await;
    assert_eq!(connector.receive(1).await, b"y");
}

/// A peer that brings what it is sent to a target, and back; what it was sent is in `seen`, too.
pub(crate) async fn bridge_seen(peer: Peer, mut target: TcpStream, seen: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 4096];
    match peer {
        Peer::WebSocket { socket, .. } => {
            let (mut to, mut from) = socket.split();
            loop {
                tokio::select! {
                    message = from.next() => match message {
                        Some(Ok(Message::Binary(bytes))) => {
                            seen.lock().unwrap().extend_from_slice(&bytes);
                            if target.write_all(&bytes).await.is_err() {
                                return;
                            }
                        }
                        Some(Ok(_)) => {}
                        None | Some(Err(_)) => return,
                    },
                    read = target.read(&mut buffer) => match read {
                        Ok(count @ 1..) => {
                            let message = Message::Binary(buffer[..count].to_vec().into());
                            if to.send(message).await.is_err() {
                                return;
                            }
                        }
                        Ok(0) | Err(_) => return,
                    },
                }
            }
        }
        Peer::Stream(mut stream) => {
            let mut arrived = vec![0; 4096];
            loop {
                tokio::select! {
                    read = stream.read(&mut arrived) => match read {
                        Ok(count @ 1..) => {
                            seen.lock().unwrap().extend_from_slice(&arrived[..count]);
                            if target.write_all(&arrived[..count]).await.is_err() {
                                return;
                            }
                        }
                        Ok(0) | Err(_) => return,
                    },
                    read = target.read(&mut buffer) => match read {
                        Ok(count @ 1..) => {
                            let sent = stream.write_all(&buffer[..count]).await;
                            if sent.is_err() || stream.flush().await.is_err() {
                                return;
                            }
                        }
                        Ok(0) | Err(_) => return,
                    },
                }
            }
        }
    }
}

/// A peer that brings what it is sent to a target, and back.
async fn bridge(peer: Peer, target: SocketAddr) {
    let target = TcpStream::connect(target).await.unwrap();
    bridge_seen(peer, target, Arc::default()).await;
}
