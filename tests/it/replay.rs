//! One token, one live session; used for good, except within a reconnect window.

use std::time::Duration;

use jetway::jet::exchange::Operation;
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway::rdp::preconnection;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use uuid::Uuid;

use crate::api::{sessions, ticket};
use crate::lab::{
    CLIENT_HELLO, KEYS, Lab, SELECTED_TLS, Sealing, Target, closed, confirm, failure, forget_log,
    log, logged, logged_times, path, request, within,
};
use crate::rendezvous::{self, Peer, Place, of};

/// `HYBRID_REQUIRED_BY_SERVER`: the token is the problem.
const TOKEN: u32 = 5;

#[tokio::test]
async fn a_token_opens_one_session() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    let first = lab.session(&token).await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    drop(first);
    logged("Session closed").await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    let refused = logged_times("Session refused", 2).await;
    assert_eq!(
        (&refused[0]["rule"], &refused[1]["rule"]),
        (&json!("in-use"), &json!("replayed"))
    );
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn a_token_without_jti_opens_one_session_too() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({ "jti": null }));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
}

#[tokio::test]
async fn a_reconnect_within_the_window_works_and_never_beside_a_live_session() {
    let lab = Lab::start(&format!("[token]\n{KEYS}reconnect_window_s = 60\n"));
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    let second = lab.session(&token).await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    drop(second);
}

#[tokio::test]
async fn jet_reuse_opens_the_window_for_one_token() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({ "jet_reuse": 30 }));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    drop(lab.session(&token).await);
}

#[tokio::test]
async fn what_was_used_survives_a_restart() {
    let (mut lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    lab.restart().await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "replayed");
}

#[tokio::test]
async fn a_target_that_is_down_does_not_cost_the_token() {
    let lab = Lab::start("");
    // A port that nothing listens on, until the target comes up there.
    let parked = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = parked.local_addr().unwrap();
    drop(parked);
    let token = lab.token(address, json!({}));
    assert_eq!(failure(&mut lab.client(&token).await).await, 3);
    assert_eq!(logged("Session refused").await["rule"], "target");
    // Nor does one that accepts and closes without an answer.
    let mute = TcpListener::bind(address).await.unwrap();
    let mut client = lab.client(&token).await;
    let (mut connection, _) = mute.accept().await.unwrap();
    connection.read_u8().await.unwrap();
    drop((connection, mute));
    assert_eq!(failure(&mut client).await, 3);
    let target = Target::start_at(address).await;
    drop(lab.session(&token).await);
    assert_eq!(target.connections(), 1);
}

/// Waits until the session of `client` is over on its side.
async fn end_of(mut client: tokio::net::TcpStream) {
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn what_an_operator_ends_stays_ended() {
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let mut lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    closed(1).await;
    // It comes back as its window says, until an operator says otherwise.
    let client = lab.session(&token).await;
    let id = sessions(&lab, "operator-secret").await[0]["id"].clone();
    let mut stream = lab.connect().await;
    let request = format!(
        "DELETE /jet/sessions/{} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer operator-secret\r\nConnection: close\r\n\r\n",
        id.as_str().unwrap()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    end_of(client).await;
    // As FreeRDP does within a second.
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "replayed");
    lab.restart().await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(target.connections(), 2);
}

#[tokio::test]
async fn what_a_limit_ends_stays_ended() {
    for (limit, reason) in [
        ("idle_timeout_s = 1", "idle for too long"),
        ("time_limit_s = 1", "time limit reached"),
    ] {
        forget_log();
        let lab = Lab::start(&format!(
            "[session]\n{limit}\n[token]\n{KEYS}reconnect_window_s = 60\n"
        ));
        let target = Target::start().await;
        let token = lab.token(target.address, json!({}));
        end_of(lab.session(&token).await).await;
        assert_eq!(logged("Session closed").await["reason"], reason);
        assert_eq!(
            failure(&mut lab.client(&token).await).await,
            TOKEN,
            "{limit}"
        );
        assert_eq!(target.connections(), 1);
    }
}

#[tokio::test]
async fn to_come_back_within_the_window_gains_no_time() {
    let mut lab = Lab::start(&format!(
        "[session]\ntime_limit_s = 5\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    let mut sessions = 0;
    let last = loop {
        let mut client = lab.client(&token).await;
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        sessions += 1;
        assert!(sessions < 8, "sessions of more than a second each");
        // A session that lasts its time, unless the limit ends it.
        client.write_all(CLIENT_HELLO).await.unwrap();
        let mut echo = Vec::new();
        let lasts = Duration::from_millis(1_100);
        let _end = timeout(lasts, client.read_to_end(&mut echo)).await;
        drop(client);
        let reason = logged_times("Session closed", sessions)
            .await
            .remove(sessions - 1);
        if reason["reason"] == "time limit reached" {
            break sessions;
        }
        if sessions == 2 {
            // Nor by a restart.
            lab.restart().await;
        }
    };
    assert!(last > 2, "the first had time left");
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
}

/// The connector's token is another one each time.
#[tokio::test(flavor = "multi_thread")]
async fn to_accept_again_and_again_gains_no_time() {
    let mut place = Place::start(&format!(
        "[session]\ntime_limit_s = 4\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let association = Uuid::new_v4();
    let accepting = place.token(association, json!({}));
    let candidates = place.association(association, &accepting).await;
    let candidate = of(&candidates, "tcp");
    let accept = rendezvous::path(Operation::Accept, association, candidate);
    let connect = rendezvous::path(Operation::Connect, association, candidate);
    let mut sessions = 0;
    loop {
        let connecting = place.token(association, json!({}));
        let accepted = place.peer("tcp", accept, Some(&accepting)).await;
        let connected = place.peer("tcp", connect, Some(&connecting)).await;
        let (mut accepted, mut connected) = (accepted.ok().unwrap(), connected.ok().unwrap());
        connected.send(b"who").await;
        let Peer::Stream(stream) = &mut accepted else {
            panic!("TCP");
        };
        let mut heard = [0; 3];
        if within(stream.read_exact(&mut heard)).await.is_err() {
            break;
        }
        sessions += 1;
        assert!(sessions < 5, "sessions of more than a second each");
        let mut rest = [0];
        let _end = timeout(Duration::from_millis(1_100), stream.read(&mut rest)).await;
        drop((accepted, connected));
        closed(sessions).await;
    }
    assert!(sessions > 1, "the first had time left");
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "over-time", "{refused}");
    assert_eq!(closed(sessions).await.len(), sessions);
    // Nor is it forgotten with the process.
    forget_log();
    place.lab.restart().await;
    let candidates = place.association(association, &accepting).await;
    let candidate = of(&candidates, "tcp");
    let accept = rendezvous::path(Operation::Accept, association, candidate);
    let connect = rendezvous::path(Operation::Connect, association, candidate);
    let connecting = place.token(association, json!({}));
    let accepted = place.peer("tcp", accept, Some(&accepting)).await;
    let connected = place.peer("tcp", connect, Some(&connecting)).await;
    let (accepted, mut connected) = (accepted.ok().unwrap(), connected.ok().unwrap());
    connected.send(b"who").await;
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(logged("Session refused").await["rule"], "over-time");
}

/// A token whose time others have used up opens nothing: not a session that ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_time_left_is_refused_before_its_target_is_reached() {
    let mut place = Place::start(&format!(
        "[session]\ntime_limit_s = 1\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let association = Uuid::new_v4();
    let accepting = place.token(association, json!({}));
    let candidates = place.association(association, &accepting).await;
    let candidate = of(&candidates, "tcp");
    let accept = rendezvous::path(Operation::Accept, association, candidate);
    let connect = rendezvous::path(Operation::Connect, association, candidate);
    let connecting = place.token(association, json!({}));
    let accepted = place.peer("tcp", accept, Some(&accepting)).await;
    let connected = place.peer("tcp", connect, Some(&connecting)).await;
    let (accepted, mut connected) = (accepted.ok().unwrap(), connected.ok().unwrap());
    connected.send(b"who").await;
    assert_eq!(accepted.rest().await, b"who");
    assert_eq!(closed(1).await[0]["reason"], "time limit reached");
    forget_log();
    // It has taken part in a session of another, and would open one of its own now.
    place.lab.restart().await;
    let candidates = place.association(association, &accepting).await;
    let candidate = of(&candidates, "tcp");
    let accept = rendezvous::path(Operation::Accept, association, candidate);
    let connect = rendezvous::path(Operation::Connect, association, candidate);
    let other = place.token(association, json!({}));
    let accepted = place.peer("tcp", accept, Some(&other)).await;
    let connected = place.peer("tcp", connect, Some(&accepting)).await;
    let (accepted, mut connected) = (accepted.ok().unwrap(), connected.ok().unwrap());
    connected.send(b"who").await;
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(logged("Session refused").await["rule"], "over-time");
    assert!(!log().contains("Session opened"));
}

/// A gateway that can read encrypted tokens, and has a revocation list.
fn sealed(reconnect_window_s: u32) -> (Lab, Sealing) {
    let sealing = Sealing::new();
    let table = &sealing.table;
    let lab = Lab::start(&format!(
        "{table}reconnect_window_s = {reconnect_window_s}\nrevoked = \"revoked.json\"\n"
    ));
    (lab, sealing)
}

#[tokio::test]
async fn a_token_without_jti_opens_one_session_however_often_it_is_wrapped() {
    let ((lab, sealing), target) = (sealed(0), Target::start().await);
    let signed = lab.token(target.address, json!({ "jti": null }));
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(lab.client(&sealing.wrap(&signed)).await);
    }
    let mut live = Vec::new();
    for mut client in clients {
        let confirm = confirm(&mut client).await;
        if confirm == SELECTED_TLS {
            live.push(client);
        } else {
            assert_eq!(confirm, ConnectionConfirm::Failure { code: TOKEN });
        }
    }
    assert_eq!(live.len(), 1);
    // Nor by a ticket for yet another, nor without any wrapping.
    let again = ticket(&lab, &sealing.wrap(&signed)).await;
    for text in [again.as_str(), &signed] {
        assert_eq!(failure(&mut lab.client(text).await).await, TOKEN);
    }
    assert_eq!(target.connections(), 1);
    let refused = logged_times("Session refused", 7).await;
    let id = refused[0]["token"].as_str().unwrap();
    for line in &refused {
        assert_eq!(
            (&line["rule"], &line["token"]),
            (&json!("in-use"), &json!(id))
        );
    }
    // Its id, taken from the log, ends it and all of its kind.
    let list = json!({ "jti": [id] }).to_string();
    std::fs::write(path(&lab, "revoked.json"), list).unwrap();
    lab.running().reload();
    let mut rest = Vec::new();
    let _end = within(live.remove(0).read_to_end(&mut rest)).await;
    for text in [&sealing.wrap(&signed), &again] {
        assert_eq!(failure(&mut lab.client(text).await).await, TOKEN);
    }
    let refused = logged_times("Session refused", 9).await;
    assert_eq!(
        (&refused[7]["rule"], &refused[8]["rule"]),
        (&json!("revoked"), &json!("revoked"))
    );
}

#[tokio::test]
async fn a_token_that_is_wrapped_anew_stays_bound_to_its_address_and_used_after_a_restart() {
    let ((mut lab, sealing), target) = (sealed(60), Target::start().await);
    let signed = lab.token(target.address, json!({ "jti": null }));
    drop(
        lab.session(&ticket(&lab, &sealing.wrap(&signed)).await)
            .await,
    );
    logged("Session closed").await;
    lab.restart().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut elsewhere = socket.connect(lab.address()).await.unwrap();
    let mut bytes = preconnection::encode_v2(0, &sealing.wrap(&signed)).unwrap();
    bytes.extend(request(None).encode().unwrap());
    elsewhere.write_all(&bytes).await.unwrap();
    assert_eq!(failure(&mut elsewhere).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "other-address");
    // Who used it first may come back, by any wrapping of it.
    drop(lab.session(&sealing.wrap(&signed)).await);
}

#[tokio::test]
async fn two_carriers_that_wrap_one_token_differently_stand_for_the_same() {
    let ((lab, sealing), target) = (sealed(60), Target::start().await);
    let one = lab.token(target.address, json!({ "jti": null }));
    let other = lab.token(target.address, json!({ "jti": null, "sub": "other" }));
    let both = async |pcb: &str, routing: &str| {
        let mut stream = lab.connect().await;
        let mut bytes = preconnection::encode_v2(0, pcb).unwrap();
        bytes.extend(long_request(routing));
        stream.write_all(&bytes).await.unwrap();
        confirm(&mut stream).await
    };
    let by_ticket = ticket(&lab, &sealing.wrap(&one)).await;
    for routing in [by_ticket, sealing.wrap(&one), one.clone()] {
        assert_eq!(both(&sealing.wrap(&one), &routing).await, SELECTED_TLS);
    }
    for routing in [
        ticket(&lab, &sealing.wrap(&other)).await,
        sealing.wrap(&other),
    ] {
        let refused = ConnectionConfirm::Failure { code: 4 };
        assert_eq!(both(&sealing.wrap(&one), &routing).await, refused);
        assert_eq!(logged("Session refused").await["rule"], "contradiction");
        forget_log();
    }
}

/// A Connection Request with a routing token of any length, as existing clients send it: the length indicator has one byte.
fn long_request(routing: &str) -> Vec<u8> {
    let mut bytes = vec![3, 0, 0, 0, 0, 0xE0, 0, 0, 0, 0, 0];
    bytes.extend(routing.as_bytes());
    bytes.extend(b"\r\n\x01\x00\x08\x00\x03\x00\x00\x00");
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[4] = (length - 5).to_le_bytes()[0];
    bytes
}
