//! A client whose token does not say what it speaks, and that says nothing until its target was reached: what it says at last is judged
//! as if it had come at once.

use std::time::Duration;

use futures_util::future::join_all;
use jetway::jet::exchange::Operation;
use jetway::limits;
use jetway::rdp::connection_request::ConnectionRequest;
use jetway::rdp::preconnection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use uuid::Uuid;

use crate::api::ticket;
use crate::forward_websocket::open;
use crate::lab::{
    CLIENT_HELLO, KEYS, Lab, SELECTED_TLS, Target, closed, forget_log, logged, request, within,
};
use crate::rendezvous::{Peer, Place, of, path};

/// Whom a client is connected to that says nothing: in front of the listener, the client has waited long enough.
struct Waiting<'a> {
    lab: &'a Lab,
    listener: TcpListener,
}

impl<'a> Waiting<'a> {
    async fn by(lab: &'a Lab) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { lab, listener }
    }

    fn token(&self, jet_ap: &Value) -> String {
        let target = self.listener.local_addr().unwrap();
        self.lab.token(target, json!({ "jet_ap": jet_ap }))
    }

    /// A client that has shown its token, `way`, and the target that was reached for it.
    async fn connected(&self, way: &str, token: &str) -> (Peer, TcpStream) {
        let client = match way {
            "pcb" => {
                let mut stream = self.lab.connect().await;
                stream.set_nodelay(true).unwrap();
                let pdu = preconnection::encode_v2(0, token).unwrap();
                stream.write_all(&pdu).await.unwrap();
                Peer::Stream(Box::new(stream))
            }
            _ => open(self.lab, token).await,
        };
        let (target, _) = within(self.listener.accept()).await.unwrap();
        (client, target)
    }
}

/// What the target is to see of a request with a routing token.
fn stripped() -> Vec<u8> {
    let request = ConnectionRequest {
        routing_token: None,
        ..request(Some("x"))
    };
    request.encode().unwrap()
}

async fn read_exactly(target: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    within(target.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// All that the target hears until its connection ends.
async fn all_heard(target: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What is cut off has ended, too.
    let _end = within(target.read_to_end(&mut bytes)).await;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_connection_request_opens_a_session_of_rdp_and_its_ticket_stays_here() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let mut sessions = 0;
    for way in ["pcb", "websocket"] {
        for (jet_ap, in_bytes) in [(json!("none"), false), (json!(null), true)] {
            let token = waiting.token(&jet_ap);
            let routing = ticket(&lab, &token).await;
            let (mut client, mut target) = waiting.connected(way, &token).await;
            let asks = request(Some(&routing)).encode().unwrap();
            if in_bytes {
                for (count, byte) in asks.into_iter().enumerate() {
                    client.send(&[byte]).await;
                    if count == 0 || count == 4 {
                        // What might be RDP waits longer than what might be anything.
                        sleep(limits::OPENING_PATIENCE + Duration::from_millis(200)).await;
                    }
                }
            } else {
                client.send(&asks).await;
            }
            let seen = read_exactly(&mut target, stripped().len()).await;
            assert_eq!(seen, stripped(), "{way}");
            target.write_all(&SELECTED_TLS.encode()).await.unwrap();
            let confirm = client.receive(SELECTED_TLS.encode().len()).await;
            assert_eq!(confirm, SELECTED_TLS.encode());
            client.send(CLIENT_HELLO).await;
            assert_eq!(
                read_exactly(&mut target, CLIENT_HELLO.len()).await,
                CLIENT_HELLO
            );
            // RDP has no half-close; other protocols had ten minutes.
            client.finish().await;
            sessions += 1;
            let line = closed(sessions).await.remove(sessions - 1);
            let expected = match way {
                "pcb" => "the client closed the connection, and the target did not in time",
                // Its Close says so in any protocol.
                _ => "closed by both sides",
            };
            assert_eq!(line["reason"], expected);
            let sent = stripped().len() + CLIENT_HELLO.len();
            assert_eq!(line["bytes_to_target"], sent);
            assert_eq!(line["bytes_to_client"], SELECTED_TLS.encode().len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_at_once_and_late_is_taken_for_rdp_where_nothing_is_announced() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let token = waiting.token(&json!("none"));
    let (mut client, mut target) = waiting.connected("pcb", &token).await;
    client.send(CLIENT_HELLO).await;
    assert_eq!(
        read_exactly(&mut target, CLIENT_HELLO.len()).await,
        CLIENT_HELLO
    );
    client.finish().await;
    assert_eq!(
        logged("Session closed").await["reason"],
        "the client closed the connection, and the target did not in time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_connection_request_is_refused_for_what_it_is_refused_for_at_once() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let other = ticket(&lab, &waiting.token(&json!("none"))).await;
    let mut malformed = request(None).encode().unwrap();
    malformed[12] = 0;
    let mut reserved = request(None).encode().unwrap();
    reserved[1] = 1;
    for (asks, rule, answer) in [
        (
            request(Some(&other)).encode().unwrap(),
            "contradiction",
            None,
        ),
        (malformed, "connection-request", None),
        // Targets take it, and so would have its routing token.
        (reserved, "connection-request", None),
        (
            request(None).encode().unwrap(),
            "protocol",
            Some(b"SSH-2.0-hello\r\n"),
        ),
    ] {
        forget_log();
        let token = waiting.token(&json!("none"));
        let (mut client, mut target) = waiting.connected("pcb", &token).await;
        client.send(&asks).await;
        if let Some(answer) = answer {
            assert_eq!(read_exactly(&mut target, asks.len()).await, asks);
            target.write_all(answer).await.unwrap();
        }
        assert_eq!(all_heard(&mut target).await, b"", "{rule}");
        let told = client.rest().await;
        assert_eq!((told[5], told[11], told[15]), (0xd0, 3, 4), "{rule}");
        let refused = logged("Session refused").await;
        assert_eq!(refused["rule"], rule, "{refused}");
        // It was open, and has its line.
        let line = closed(1).await.remove(0);
        assert_eq!(line["reason"], refused["reason"], "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_might_have_been_rdp_reaches_its_server_which_was_heard_at_once() {
    let lab = Lab::start("");
    let words: [&[u8]; 8] = [
        b"USER you\r\n",
        b"hi",
        // The keys of somebody who types; what might begin X.224, TLS, a preconnection PDU or a PROXY header.
        b"\x03",
        b"\x03\r\nls\r\n",
        b"\x16\x03",
        b"\x10\0",
        b"PROX",
        b"PROXY me if you can\r\n",
    ];
    let chat = async |way: &str, words: &[u8]| {
        let waiting = Waiting::by(&lab).await;
        let token = waiting.token(&json!("none"));
        let (mut client, mut target) = waiting.connected(way, &token).await;
        target.write_all(b"220 ready\r\n").await.unwrap();
        assert_eq!(client.receive(11).await, b"220 ready\r\n");
        client.send(words).await;
        assert_eq!(read_exactly(&mut target, words.len()).await, words);
        client.send(b"more").await;
        assert_eq!(read_exactly(&mut target, 4).await, b"more");
        target.write_all(b"221 bye\r\n").await.unwrap();
        assert_eq!(client.receive(9).await, b"221 bye\r\n");
    };
    for way in ["pcb", "websocket"] {
        join_all(words.map(|words| chat(way, words))).await;
    }
}

/// Nor does a target get a ticket by saying something first.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_stays_here_whoever_speaks_first_and_whatever_comes_before_it() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let host = preconnection::encode_v2(0, "host").unwrap();
    let proxy = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 3389\r\n".to_vec();
    for (banner, before, late) in [
        (&b"x"[..], Vec::new(), true),
        (b"", host.clone(), true),
        (b"", host, false),
        (b"", proxy.clone(), true),
        (b"", proxy, false),
    ] {
        let token = waiting.token(&json!("none"));
        let routing = ticket(&lab, &token).await;
        let asks = [before.clone(), request(Some(&routing)).encode().unwrap()].concat();
        let (_client, mut target) = if late {
            let (mut client, mut target) = waiting.connected("pcb", &token).await;
            target.write_all(banner).await.unwrap();
            assert_eq!(client.receive(banner.len()).await, banner);
            client.send(&asks).await;
            (client, target)
        } else {
            let mut stream = lab.connect().await;
            let pdu = preconnection::encode_v2(0, &token).unwrap();
            stream.write_all(&[pdu, asks].concat()).await.unwrap();
            let (target, _) = within(waiting.listener.accept()).await.unwrap();
            (Peer::Stream(Box::new(stream)), target)
        };
        let expected = [before, stripped()].concat();
        assert_eq!(read_exactly(&mut target, expected.len()).await, expected);
    }
}

/// Nor by saying more than its client takes, or all that it has to say.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_stays_here_however_much_the_target_has_said() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    for floods in [true, false] {
        forget_log();
        let token = waiting.token(&json!("none"));
        let routing = ticket(&lab, &token).await;
        let asks = request(Some(&routing)).encode().unwrap();
        let (mut client, mut target) = waiting.connected("pcb", &token).await;
        if floods {
            let block = vec![7; 65_536];
            let all = Duration::from_millis(300);
            while let Ok(written) = tokio::time::timeout(all, target.write(&block)).await {
                written.unwrap();
            }
        } else {
            target.write_all(b"bye").await.unwrap();
            target.shutdown().await.unwrap();
            assert_eq!(client.receive(3).await, b"bye");
        }
        client.send(&asks).await;
        // It may hear the request, as it is for targets, and its answer is none.
        let seen = all_heard(&mut target).await;
        assert!(stripped().starts_with(&seen), "{seen:?}");
        let refused = logged("Session refused").await;
        let rule = if floods { "protocol" } else { "target" };
        assert_eq!(refused["rule"], rule, "{refused}");
    }
}

/// A preconnection PDU of 790 bytes begins as a record of SSL 3.0 would.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_stays_here_behind_a_preconnection_pdu_that_looks_like_tls() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let token = waiting.token(&json!(null));
    let routing = ticket(&lab, &token).await;
    let foreign = preconnection::encode_v2(0, &"v".repeat(385)).unwrap();
    assert!(foreign.len() == 790 && foreign.starts_with(&[0x16, 0x03, 0, 0]));
    let mut client = lab.connect().await;
    let own = preconnection::encode_v2(0, &token).unwrap();
    let asks = request(Some(&routing)).encode().unwrap();
    let all = [own, foreign.clone(), asks].concat();
    client.write_all(&all).await.unwrap();
    let (mut target, _) = within(waiting.listener.accept()).await.unwrap();
    assert_eq!(read_exactly(&mut target, 790).await, foreign);
    assert_eq!(
        read_exactly(&mut target, stripped().len()).await,
        stripped()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_preconnection_pdu_with_the_token_of_the_session_stays_here() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let token = waiting.token(&json!("none"));
    let (mut client, mut target) = waiting.connected("websocket", &token).await;
    client
        .send(&preconnection::encode_v2(0, &token).unwrap())
        .await;
    client.send(&request(None).encode().unwrap()).await;
    let expected = request(None).encode().unwrap();
    assert_eq!(read_exactly(&mut target, expected.len()).await, expected);
    // Of another one neither.
    let other = waiting.token(&json!("none"));
    let token = waiting.token(&json!("none"));
    let (mut client, mut target) = waiting.connected("websocket", &token).await;
    client
        .send(&preconnection::encode_v2(0, &other).unwrap())
        .await;
    assert_eq!(all_heard(&mut target).await, b"");
    assert_eq!(logged("Session refused").await["rule"], "contradiction");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_token_stays_here_in_a_rendezvous_too() {
    let place = Place::start("");
    for (jet_ap, in_bytes) in [("rdp", false), ("none", false), ("none", true)] {
        let association = Uuid::new_v4();
        let token = place.token(association, json!({ "jet_ap": jet_ap }));
        let candidates = place.association(association, &token).await;
        let candidate = of(&candidates, "tcp");
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        let shown = Some(token.as_str());
        let mut accepted = place.peer("tcp", accept, shown).await.ok().unwrap();
        let mut connected = place.peer("tcp", connect, shown).await.ok().unwrap();
        let routing = ticket(&place.lab, &token).await;
        let asks = request(Some(&routing)).encode().unwrap();
        for part in asks.chunks(if in_bytes { 1 } else { asks.len() }) {
            connected.send(part).await;
        }
        assert_eq!(accepted.receive(stripped().len()).await, stripped());
        accepted.send(&SELECTED_TLS.encode()).await;
        let confirm = connected.receive(SELECTED_TLS.encode().len()).await;
        assert_eq!(confirm, SELECTED_TLS.encode());
    }
}

/// Whoever comes back need not wait until the target has had its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_target_is_asked_leaves_session_and_token() {
    let lab = Lab::start("");
    let waiting = Waiting::by(&lab).await;
    let asks = request(None).encode().unwrap();
    for late in [false, true] {
        let token = waiting.token(&json!("none"));
        for _again in 0..2 {
            forget_log();
            let (client, mut target) = if late {
                let (mut client, target) = waiting.connected("pcb", &token).await;
                client.send(&asks).await;
                (client, target)
            } else {
                let stream = lab.client(&token).await;
                let (target, _) = within(waiting.listener.accept()).await.unwrap();
                (Peer::Stream(Box::new(stream)), target)
            };
            // It is asked, and does not answer.
            assert_eq!(read_exactly(&mut target, asks.len()).await, asks);
            drop(client);
            assert_eq!(all_heard(&mut target).await, b"");
            let refused = logged("Session refused").await;
            assert_eq!(refused["rule"], "gone", "{refused}");
            if late {
                // It was open, and that is its use.
                break;
            }
        }
    }
}

/// It lasts no longer than any other session, and ends as others do.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_has_the_limits_of_all() {
    for (limit, reason) in [
        ("idle_timeout_s = 1", "idle for too long"),
        ("time_limit_s = 1", "time limit reached"),
    ] {
        forget_log();
        let lab = Lab::start(&format!("[session]\n{limit}\n"));
        let target = Target::start().await;
        let token = lab.token(target.address, json!({ "jet_ap": "none" }));
        let mut client = lab.connect().await;
        let pdu = preconnection::encode_v2(0, &token).unwrap();
        client.write_all(&pdu).await.unwrap();
        assert_eq!(all_heard(&mut client).await, b"");
        assert_eq!(logged("Session closed").await["reason"], reason);
    }
}

/// Nor does it last longer in the middle of its Connection Request.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_connection_request_keeps_no_session_past_its_time() {
    let lab = Lab::start(&format!(
        "[session]\ntime_limit_s = 2\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let waiting = Waiting::by(&lab).await;
    let token = waiting.token(&json!("none"));
    let (mut client, mut target) = waiting.connected("pcb", &token).await;
    client.send(&request(None).encode().unwrap()[..9]).await;
    assert_eq!(all_heard(&mut target).await, b"");
    assert_eq!(closed(1).await[0]["reason"], "time limit reached");
    assert_eq!(client.rest().await, b"");
    // Its token is spent.
    let mut again = lab.client(&token).await;
    assert_eq!(crate::lab::failure(&mut again).await, 5);
}
