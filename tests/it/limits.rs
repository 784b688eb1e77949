//! What a peer that has proved nothing can cost is bounded, and costs others nothing.

use std::time::Duration;

use jetway::jet::exchange::Operation;
use jetway::limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::lab::{Lab, Target, failure, logged, logged_times, quiet, until, within};
use crate::rendezvous::{OPERATOR, PORTAL, Place, TRANSPORTS, of, path};

/// Waits for the end of a connection; whether by FIN or RST does not matter.
async fn ended(stream: &mut TcpStream) {
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
    until(|| lab.running().gateway().sessions.registry.list().is_empty()).await;
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
async fn a_request_whose_body_never_comes_or_drips_is_answered_and_dropped() {
    let lab = Lab::start("");
    for drips in [false, true] {
        let mut client = lab.connect().await;
        let head = format!(
            "POST /jet/association/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{",
            Uuid::new_v4()
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let dripping = tokio::spawn(async move {
            while drips && write.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            std::future::pending::<()>().await;
        });
        // Longer than the test's own patience, in a time that does not pass.
        let mut rest = Vec::new();
        let _end = read.read_to_end(&mut rest).await;
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
        dripping.abort();
    }
}

/// Sends a WebSocket handshake for `path`; the status of its answer.
async fn handshake(stream: &mut TcpStream, path: &str, token: &str) -> u16 {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{token}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    status(stream).await
}

/// Reads a whole answer; its status.
async fn status(stream: &mut TcpStream) -> u16 {
    let mut bytes = Vec::new();
    let length = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse().unwrap());
            break head.len() + 4 + length;
        }
        assert_ne!(
            within(stream.read_buf(&mut bytes)).await.unwrap(),
            0,
            "{text}"
        );
    };
    while bytes.len() < length {
        assert_ne!(within(stream.read_buf(&mut bytes)).await.unwrap(), 0);
    }
    let status = String::from_utf8_lossy(&bytes);
    status.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_place_is_held_as_long_as_the_socket_is_whatever_became_of_its_handshake() {
    let lab = Lab::start("[limits]\npending_per_address = 4\n");
    let target = Target::start().await;
    let unknown = format!("/jet/accept/{}/{}", Uuid::new_v4(), Uuid::new_v4());
    let bad_token = "Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln\r\n";
    let mut held = Vec::new();
    for (path, token, status) in [
        (unknown.as_str(), "", 404),
        (unknown.as_str(), bad_token, 401),
        ("/jet/accept/1/2", "", 400),
        ("/jet/agent", "", 101),
    ] {
        let mut client = lab.connect().await;
        assert_eq!(handshake(&mut client, path, token).await, status, "{path}");
        if status != 101 {
            // The connection is there and used again, which makes it no second one.
            assert_eq!(handshake(&mut client, path, token).await, status, "{path}");
        }
        held.push(client);
    }
    let mut refused = lab.connect().await;
    ended(&mut refused).await;
    let line = logged("Limit reached").await;
    assert_eq!(line["limit"], "limits.pending_per_address");
    assert_eq!(line["who"], "address 127.0.0.1");
    // Others are served meanwhile, and the address itself once they are gone.
    let token = lab.token(target.address, json!({}));
    drop(lab.session_from(2, &token).await);
    assert_eq!(held.len(), 4);
    drop(held);
    let token = lab.token(target.address, json!({}));
    within(async {
        let mut first = [0_u8; 1];
        let mut client = lab.client(&token).await;
        while !matches!(client.read(&mut first).await, Ok(1)) {
            client = lab.client(&token).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_have_taken_all_places_make_room_for_another() {
    let place = Place::start("[limits]\npending_connections = 16\npending_per_address = 4\n");
    let target = Target::start().await;
    let lab = &place.lab;
    // What the oldest connection of each address is in the middle of.
    let said: [&[u8]; 4] = [
        b"",
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00],
        b"GET /jet/health HTTP/1.1\r\n",
        b"POST /jet/tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ];
    let mut held = Vec::new();
    for (last, said) in (11..).zip(said) {
        for _ in 0..4 {
            let mut client = lab.connect_from(last).await;
            client.write_all(said).await.unwrap();
            held.push(client);
        }
    }
    // They are there: one more of the same address is one too many.
    ended(&mut lab.connect_from(14).await).await;
    let mut newcomers = Vec::new();
    for last in 21..25 {
        newcomers.push(lab.connect_from(last).await);
    }
    for oldest in [0, 4, 8, 12] {
        ended(&mut held[oldest]).await;
    }
    // A fifth is served, with a session.
    let token = lab.token(target.address, json!({}));
    drop(lab.session_from(25, &token).await);
    logged_times("Made room for another connection", 5).await;
    let lines = logged_times("Limit reached", 2).await;
    let mut limits: Vec<&str> = lines
        .iter()
        .map(|line| line["limit"].as_str().unwrap())
        .collect();
    limits.sort_unstable();
    assert_eq!(
        limits,
        ["limits.pending_connections", "limits.pending_per_address"]
    );
    assert_eq!((newcomers.len(), held.len()), (4, 16));
}

/// Asks for a ticket on a connection that is kept; the status of the answer.
async fn ask_for_ticket(stream: &mut TcpStream, token: &str) -> u16 {
    post(stream, "/jet/tickets", token, "").await
}

/// Sends a request on a connection that is kept; the status of the answer.
async fn post(stream: &mut TcpStream, path: &str, bearer: &str, body: &str) -> u16 {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {bearer}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    status(stream).await
}

#[tokio::test]
async fn one_token_has_its_share_of_the_sessions_that_are_set_up() {
    let keys = crate::lab::KEYS;
    let lab = Lab::start(&format!("[token]\n{keys}reconnect_window_s = 60\n"));
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let greedy = lab.token(silent.local_addr().unwrap(), json!({}));
    // One of them has the token, and the others wait for it.
    let mut held = Vec::new();
    for _ in 0..=limits::SESSIONS_PER_TOKEN {
        held.push(lab.client(&greedy).await);
    }
    let line = logged("Limit reached").await;
    assert!(line["who"].as_str().unwrap().starts_with("token "));
    assert!(lab.running().gateway().sessions.registry.list().len() <= limits::SESSIONS_PER_TOKEN);
    // Another token is served meanwhile.
    let target = Target::start().await;
    drop(lab.session(&lab.token(target.address, json!({}))).await);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_api_key_has_its_share_of_what_others_use_too() {
    quiet();
    let place = Place::start("[jet]\nassociations = 8\n");
    let mut stream = place.lab.connect().await;
    let mut create = async |bearer: &str| {
        let path = format!("/jet/association/{}", Uuid::new_v4());
        post(&mut stream, &path, bearer, "").await
    };
    for _ in 0..6 {
        assert_eq!(create(OPERATOR).await, 200);
    }
    assert_eq!(create(OPERATOR).await, 503);
    assert_eq!(create(PORTAL).await, 200);
    let bearer = place.token(Uuid::nil(), json!({ "jet_aid": null }));
    assert_eq!(create(&bearer).await, 200);
    let mut invite = async |bearer: &str, number: usize| {
        let body = json!({ "name": format!("agent-{number}") }).to_string();
        post(&mut stream, "/jet/enrolments", bearer, &body).await
    };
    let share = limits::ENROLMENTS - limits::ENROLMENTS / 4;
    for number in 0..share {
        assert_eq!(invite(OPERATOR, number).await, 201, "{number}");
    }
    assert_eq!(invite(OPERATOR, share).await, 503);
    assert_eq!(invite(PORTAL, share).await, 201);
    let lines = logged_times("Limit reached", 2).await;
    for (line, limit) in lines.iter().zip([
        "associations of one token, address or API key",
        "agents and enrolments, in total or of one API key",
    ]) {
        assert_eq!(
            (&line["limit"], &line["who"]),
            (&json!(limit), &json!("API key desk"))
        );
    }
}

#[tokio::test]
async fn one_token_and_one_address_have_their_share_of_the_tickets() {
    quiet();
    let lab =
        Lab::start("[limits]\ntoken_work_us_per_s = 100000000\ntoken_work_burst_us = 100000000\n");
    let target = Target::start().await;
    let mut stream = lab.connect().await;
    let mut granted = 0;
    let tokens = limits::TICKETS_PER_ADDRESS / limits::TICKETS_PER_TOKEN;
    for number in 0..=tokens {
        let token = lab.token(target.address, json!({}));
        for turn in 0..=limits::TICKETS_PER_TOKEN {
            let status = ask_for_ticket(&mut stream, &token).await;
            granted += usize::from(status == 201);
            let within_share = number < tokens && turn < limits::TICKETS_PER_TOKEN;
            assert_eq!(
                status,
                if within_share { 201 } else { 503 },
                "{number} {turn}"
            );
        }
    }
    assert_eq!(granted, limits::TICKETS_PER_ADDRESS);
    let mut other = lab.connect_from(2).await;
    let token = lab.token(target.address, json!({}));
    assert_eq!(ask_for_ticket(&mut other, &token).await, 201);
    drop(lab.session_from(2, &token).await);
    // Who it was, and not once for each of them.
    let lines = logged_times("Limit reached", 1).await;
    assert_eq!(lines.len(), 1);
    assert_eq!(
        lines[0]["limit"],
        "tickets of one token, address or API key"
    );
    assert!(lines[0]["who"].as_str().unwrap().starts_with("token "));
}

// J-API-1
#[tokio::test(flavor = "multi_thread")]
async fn one_token_has_its_share_of_the_associations_and_those_that_are_over_go_first() {
    let place = Place::start("");
    let of_no_association = json!({ "jet_aid": null });
    let greedy = place.token(Uuid::nil(), of_no_association.clone());
    let first = Uuid::new_v4();
    let candidates = place.association(first, &greedy).await;
    for _ in 1..limits::JET_ASSOCIATIONS_PER_TOKEN {
        place.association(Uuid::new_v4(), &greedy).await;
    }
    let another = format!("POST /jet/association/{}", Uuid::new_v4());
    assert_eq!(place.http(&another, &greedy, "").await.0, 503);
    let line = logged("Limit reached").await;
    assert_eq!(
        line["limit"],
        "associations of one token, address or API key"
    );
    // Another token has its own.
    let other = place.token(Uuid::nil(), of_no_association);
    place.association(Uuid::new_v4(), &other).await;
    // One whose session is over makes room, and none that waits.
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, first, candidate);
    let connect = path(Operation::Connect, first, candidate);
    let acceptor = place.peer("tcp", accept, Some(&greedy)).await;
    let mut acceptor = acceptor.ok().unwrap();
    let connector = place.peer("tcp", connect, Some(&greedy)).await;
    let mut connector = connector.ok().unwrap();
    connector.send(b"x").await;
    assert_eq!(acceptor.receive(1).await, b"x");
    assert_eq!(place.http(&another, &greedy, "").await.0, 503);
    drop((acceptor, connector));
    logged("Session closed").await;
    within(async { while place.http(&another, &greedy, "").await.0 != 200 {} }).await;
    let gone = format!("GET /jet/association/{first}");
    assert_eq!(place.http(&gone, OPERATOR, "").await.0, 404);
    let one_more = format!("POST /jet/association/{}", Uuid::new_v4());
    assert_eq!(place.http(&one_more, &greedy, "").await.0, 503);
}

// J-API-1
#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_of_the_associations_however_many_tokens_it_has() {
    let place = Place::start("[limits]\nsessions_per_address = 3\n");
    let bearer = || {
        let association = Uuid::new_v4();
        let token = place.token(association, json!({}));
        (format!("POST /jet/association/{association}"), token)
    };
    for expected in [200, 200, 200, 503] {
        let (create, token) = bearer();
        assert_eq!(place.http(&create, &token, "").await.0, expected);
    }
    let line = logged("Limit reached").await;
    assert_eq!(
        line["limit"],
        "associations of one token, address or API key"
    );
    assert_eq!(line["who"], "address 127.0.0.1");
    // Another address has its own.
    let (create, token) = bearer();
    let mut other = place.lab.connect_from(2).await;
    let request = format!(
        "{create} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    );
    other.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(status(&mut other).await, 200);
}

// J-BIN-1 J-WS-1
#[tokio::test(flavor = "multi_thread")]
async fn one_address_and_one_token_have_their_share_of_the_waiting_acceptors() {
    let place = Place::start("[limits]\nsessions_per_address = 100\n");
    let mut waiting = Vec::new();
    let bearer = place.token(Uuid::nil(), json!({ "jet_aid": null }));
    let mut accept = async |transport: &str, token: Option<&str>| {
        let association = Uuid::new_v4();
        let candidates = place.association(association, OPERATOR).await;
        let accept = path(Operation::Accept, association, of(&candidates, transport));
        let peer = place.peer(transport, accept, token).await;
        peer.map(|peer| waiting.push(peer)).err()
    };
    for number in 0..limits::JET_ACCEPTORS_PER_TOKEN {
        let transport = ["tcp", "ws"][number % 2];
        assert_eq!(accept(transport, Some(&bearer)).await, None, "{number}");
    }
    for transport in ["tcp", "ws"] {
        assert_eq!(accept(transport, Some(&bearer)).await, Some(503));
    }
    for number in limits::JET_ACCEPTORS_PER_TOKEN..100 {
        assert_eq!(accept("tcp", None).await, None, "{number}");
    }
    for transport in ["tcp", "ws"] {
        assert_eq!(accept(transport, None).await, Some(503));
    }
    // Another address is served meanwhile, and this one again when some of its own have left.
    let association = Uuid::new_v4();
    let candidates = place.association(association, OPERATOR).await;
    let elsewhere = path(Operation::Accept, association, of(&candidates, "tcp"));
    let tcp = place.lab.connect_from(2).await;
    let peer = place.peer_on(tcp, "tcp", elsewhere, None).await;
    assert!(peer.is_ok());
    let here = path(Operation::Accept, association, of(&candidates, "ws"));
    assert_eq!(place.peer("ws", here, None).await.err(), Some(503));
    drop(waiting);
    within(async { while place.peer("ws", here, None).await.is_err() {} }).await;
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
