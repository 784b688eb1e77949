//! What a peer that has proved nothing can cost is bounded, and costs others nothing.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Lab, Target, failure, logged, until, within};

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
