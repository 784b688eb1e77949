//! What a peer that has proved nothing can cost is bounded, and costs others nothing.

use jetway::jet::exchange::Operation;
use jetway::limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::lab::{Lab, Target, failure, logged, until, within};
use crate::rendezvous::{OPERATOR, Place, TRANSPORTS, of, path};

/// Waits for the end of a connection; whether by FIN or RST does not matter.
async fn ended(stream: &mut tokio::net::TcpStream) {
    let mut rest = Vec::new();
    let _end = within(stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn garbage_is_closed_without_an_answer() {
    let lab = Lab::start("");
    for garbage in [
        &b"\xFF\xFE\xFD\xFC\xFB\xFA\xF9\xF8"[..],
        b"HELO example\r\n",
        &[0; 64],
    ] {
        let mut client = lab.connect().await;
        client.write_all(garbage).await.unwrap();
        ended(&mut client).await;
    }
}

#[tokio::test]
async fn a_preconnection_pdu_that_announces_too_much_is_refused_at_once() {
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    let mut head = u32::MAX.to_le_bytes().to_vec();
    head.extend_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    client.write_all(&head).await.unwrap();
    ended(&mut client).await;
}

#[tokio::test]
async fn a_token_above_the_limit_is_refused_before_any_cryptography() {
    let lab = Lab::start("");
    let long = format!("eyJhbGciOiJFUzI1NiJ9.{}.c2ln", "a".repeat(17 * 1024));
    let mut client = lab.client(&long).await;
    assert_eq!(failure(&mut client).await, 5);
    assert_eq!(logged("Session refused").await["rule"], "carrier");
}

#[tokio::test(start_paused = true)]
async fn silent_and_half_said_clients_are_dropped() {
    let lab = Lab::start("");
    for said in [
        &b""[..],
        &[0x16, 0x03],
        &[3, 0],
        b"POST /jet/tic",
        b"JET\0\x01\0\0\x5Ahalf a request",
        b"GET /jet/accept/0/0 HTTP/1.1\r\nUpgrade: websocket\r\n",
        &[0x12, 0, 0, 0, 0, 0, 0, 0, 2],
    ] {
        let mut client = lab.connect().await;
        client.write_all(said).await.unwrap();
        ended(&mut client).await;
    }
}

#[tokio::test]
async fn one_address_cannot_take_all_the_places() {
    let lab = Lab::start("[limits]\npending_per_address = 3\n");
    let target = Target::start().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(lab.connect().await);
    }
    let mut refused = lab.connect().await;
    ended(&mut refused).await;
    // A session does not count among the unproven, and their place is free again once they go.
    held.pop();
    let token = lab.token(target.address, json!({}));
    let session = loop {
        let mut client = lab.client(&token).await;
        let mut first = [0_u8; 1];
        if within(client.read(&mut first))
            .await
            .is_ok_and(|count| count == 1)
        {
            break client;
        }
    };
    assert_eq!(held.len(), 2);
    drop(session);
}

#[tokio::test]
async fn sessions_per_address_are_limited_with_an_answer() {
    let lab = Lab::start("[limits]\nsessions_per_address = 1\n");
    let target = Target::start().await;
    let session = lab.session(&lab.token(target.address, json!({}))).await;
    let token = lab.token(target.address, json!({}));
    assert_eq!(failure(&mut lab.client(&token).await).await, 3);
    drop(session);
    until(|| lab.running().gateway().registry.list().is_empty()).await;
    drop(lab.session(&token).await);
}

#[tokio::test]
async fn token_cryptography_is_limited_per_address() {
    let lab = Lab::start("[limits]\ntoken_work_us_per_s = 1\ntoken_work_burst_us = 500\n");
    let target = Target::start().await;
    let mut refused = 0;
    for _ in 0..20 {
        let token = lab.token(target.address, json!({ "jet_rec": true }));
        if failure(&mut lab.client(&token).await).await == 3 {
            refused += 1;
        }
    }
    assert!(refused > 0, "20 tokens fit into half a millisecond");
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn a_slow_peer_does_not_hold_up_the_next() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut client = lab.connect().await;
        client.write_all(&[0x16, 0x03]).await.unwrap();
        slow.push(client);
    }
    drop(lab.session(&lab.token(target.address, json!({}))).await);
    assert_eq!(slow.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_never_comes_is_dropped() {
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    let head = format!(
        "POST /jet/association/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{",
        Uuid::new_v4()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    // Longer than the test's own patience, in a time that does not pass.
    let mut rest = Vec::new();
    let _end = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

// J-API-1
#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_associations() {
    let place = Place::start("[jet]\nassociations = 2\n");
    let kept = Uuid::new_v4();
    place.association(kept, OPERATOR).await;
    place.association(Uuid::new_v4(), OPERATOR).await;
    let another = format!("POST /jet/association/{}", Uuid::new_v4());
    assert_eq!(place.http(&another, OPERATOR, "").await.0, 503);
    let known = format!("POST /jet/association/{kept}");
    assert_eq!(place.http(&known, OPERATOR, "").await.0, 200);
    let delete = format!("DELETE /jet/association/{kept}");
    assert_eq!(place.http(&delete, OPERATOR, "").await.0, 200);
    assert_eq!(place.http(&another, OPERATOR, "").await.0, 200);
}

// J-API-3
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_take_all_associations() {
    let place = Place::start("[jet]\nauthentication = false\nassociations_per_address = 2\n");
    let kept = Uuid::new_v4();
    place.association(kept, "").await;
    place.association(Uuid::new_v4(), "").await;
    let another = format!("POST /jet/association/{}", Uuid::new_v4());
    assert_eq!(place.http(&another, "", "").await.0, 503);
    // Asking again for what is there is no new one, and whoever says who they are does not count.
    let known = format!("POST /jet/association/{kept}");
    assert_eq!(place.http(&known, "", "").await.0, 200);
    place.association(Uuid::new_v4(), OPERATOR).await;
    let vouched = Uuid::new_v4();
    let token = place.token(vouched, json!({}));
    place.association(vouched, &token).await;
    let delete = format!("DELETE /jet/association/{kept}");
    assert_eq!(place.http(&delete, "", "").await.0, 200);
    assert_eq!(place.http(&another, "", "").await.0, 200);
}

// J-API-2
#[tokio::test(flavor = "multi_thread")]
async fn gathering_and_accepting_again_make_no_more_than_there_is() {
    let place = Place::start("");
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let mut acceptors = Vec::new();
    for transport in TRANSPORTS {
        let accept = path(Operation::Accept, association, of(&candidates, transport));
        acceptors.push(place.peer(transport, accept, None).await.ok().unwrap());
        for _ in 0..10 {
            let again = place.peer(transport, accept, None).await;
            assert_eq!(again.err(), Some(409));
            assert_eq!(place.association(association, OPERATOR).await, candidates);
        }
    }
    assert_eq!(place.states(association).await, ["accepted"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_acceptor_says_too_early_waits_on_its_side() {
    let place = Place::start("");
    for transport in TRANSPORTS {
        let association = Uuid::new_v4();
        let candidates = place.association(association, OPERATOR).await;
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let mut acceptor = place.peer(transport, accept, None).await.ok().unwrap();
        let bytes: Vec<u8> = (0..=250)
            .cycle()
            .take(8 * limits::RENDEZVOUS_EARLY_BYTES)
            .collect();
        let early = bytes.clone();
        let sending = tokio::spawn(async move {
            acceptor.send(&early).await;
            acceptor
        });
        let connect = path(Operation::Connect, association, candidate);
        let mut connector = place.peer("tcp", connect, None).await.ok().unwrap();
        assert_eq!(connector.receive(bytes.len()).await, bytes, "{transport}");
        drop(sending.await.unwrap());
    }
}
