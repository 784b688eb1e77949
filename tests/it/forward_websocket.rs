//! Forward sessions by WebSocket, for clients that write no preconnection PDU: the token leads to its target under the same rules.

use std::net::SocketAddr;
use std::sync::Arc;

use jetway::demo::client::{ClientSession, Visit};
use jetway::rdp::negotiation;
use jetway::rdp::preconnection;
use jetway::token::mint::{self, SigningKey};
use jetway_lab::certificate::Identity;
use jetway_lab::tls::{server_config, thumbprint};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use uuid::Uuid;

use crate::behind::Desk;
use crate::lab::{
    CLIENT_HELLO, KEYS, Lab, SELECTED_TLS, Sealing, Target, closed, forget_log, log, logged,
    logged_times, path as file, request, speaker, within,
};
use crate::rendezvous::{OPERATOR, Peer, Place, bridge_seen, handshake};

/// A target that speaks TLS: it says something, and what it hears after that; and the thumbprint of its certificate.
async fn tls_speaker() -> (SocketAddr, String) {
    let identity = Identity::self_signed(&["inside.test"]);
    let acceptor = TlsAcceptor::from(server_config(&identity));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A handshake that the gateway gives up is none.
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                tls.write_all(b"in TLS ").await.unwrap();
                let mut heard = [0; 5];
                tls.read_exact(&mut heard).await.unwrap();
                tls.write_all(&heard).await.unwrap();
                tls.shutdown().await.unwrap();
                let _end = tls.read(&mut [0]).await;
            });
        }
    });
    (target, thumbprint(&identity))
}

fn asked(leg: &str, association: Uuid) -> Request {
    format!("ws://gw.test/jet/fwd/{leg}/{association}")
        .into_client_request()
        .unwrap()
}

fn with_bearer(mut request: Request, token: &str) -> Request {
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    request
}

/// A client of `lab` on a stream that is there, or its status.
async fn open_on(stream: TcpStream, leg: &str, token: &str) -> Result<Peer, u16> {
    let request = with_bearer(asked(leg, Uuid::new_v4()), token);
    handshake(Box::new(stream), request).await
}

pub(crate) async fn open(lab: &Lab, token: &str) -> Peer {
    let opened = open_on(lab.connect().await, "tcp", token).await;
    let Ok(peer) = opened else {
        panic!("{:?}, log:\n{}", opened.err(), log());
    };
    peer
}

/// What a request is answered with where it is no handshake that is granted: the status, and the rule.
async fn problem(place: &Place, leg: &str, association: Uuid, bearer: &str) -> (u16, String) {
    let head = format!("GET /jet/fwd/{leg}/{association}");
    let upgrade = format!(
        "{head} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nX: "
    );
    // The rest of the head is what the lab writes.
    let (status, problem) = place.http(&upgrade, bearer, "").await;
    (
        status,
        problem["rule"].as_str().unwrap_or_default().to_owned(),
    )
}

fn forward(place: &Place, target: SocketAddr, changes: Value) -> String {
    place.lab.token(target, changes)
}

fn ssh() -> Value {
    json!({ "jet_ap": "ssh" })
}

/// The failure code that an RDP client gets.
async fn failure(peer: Peer) -> u32 {
    let answer = peer.rest().await;
    let (confirm, _) = negotiation::decode_confirm(&answer).unwrap().unwrap();
    let negotiation::ConnectionConfirm::Failure { code } = confirm else {
        panic!("{confirm:?}, log:\n{}", log());
    };
    code
}

async fn refused(rule: &str) {
    let line = logged("Session refused").await;
    assert_eq!(line["rule"], rule, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_as_other_websocket_peers_show_theirs() {
    let place = Place::start("");
    let target = speaker(b"SSH-2.0-server\r\n").await;
    for (count, way) in ["header", "sub-protocol", "ticket"].into_iter().enumerate() {
        let association = Uuid::new_v4();
        let changes = json!({ "jet_ap": "ssh", "jet_aid": association, "sub": way });
        let token = forward(&place, target, changes);
        let request = match way {
            "header" => with_bearer(asked("tcp", association), &token),
            "sub-protocol" => {
                let mut request = asked("tcp", association);
                let offered = format!("jet, bearer.{token}").parse().unwrap();
                request
                    .headers_mut()
                    .insert("sec-websocket-protocol", offered);
                request
            }
            _ => {
                let ticket = place.http("POST /jet/tickets", &token, "").await.1;
                let ticket = ticket["ticket"].as_str().unwrap();
                let uri = format!("ws://gw.test/jet/fwd/tcp/{association}?ticket={ticket}");
                uri.into_client_request().unwrap()
            }
        };
        let stream = place.lab.connect().await;
        // Over TLS as over TCP.
        let mut peer = if count == 0 {
            handshake(Box::new(place.tls(stream).await), request).await
        } else {
            handshake(Box::new(stream), request).await
        }
        .ok()
        .unwrap();
        assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
        peer.send(b"SSH-2.0-client\r\n").await;
        assert_eq!(peer.receive(16).await, b"SSH-2.0-client\r\n");
        // It is a session like any other.
        let rows = crate::api::sessions(&place.lab, OPERATOR).await;
        assert_eq!(rows[0]["user"], way, "{rows}");
        peer.finish().await;
        let line = closed(count + 1).await.pop().unwrap();
        assert_eq!(line["target"], target.to_string());
        assert_eq!(line["bytes_to_target"], 16);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jet_ap_holds_for_the_first_bytes_of_each_side() {
    let place = Place::start("");
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let mut peer = open(&place.lab, &forward(&place, server, ssh())).await;
    assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
    peer.send(b"GET / HTTP/1.1\r\n").await;
    assert_eq!(peer.closed().await, Some(CloseCode::Policy));
    refused("protocol").await;
    forget_log();
    // Not a byte of another server passes.
    let server = speaker(b"220 mail\r\n").await;
    let peer = open(&place.lab, &forward(&place, server, ssh())).await;
    assert_eq!(peer.rest().await, b"");
    refused("protocol").await;
    forget_log();
    // An RDP token and a client that speaks something else: the target hears of nobody.
    let target = Target::start().await;
    let mut peer = open(&place.lab, &forward(&place, target.address, json!({}))).await;
    peer.send(b"SSH-2.0-client\r\n").await;
    assert_eq!(peer.rest().await, b"");
    refused("protocol").await;
    assert_eq!(target.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_where_nothing_is_announced() {
    let place = Place::start("");
    let server = speaker(b"hello").await;
    let token = forward(&place, server, json!({ "jet_ap": null }));
    let mut peer = open(&place.lab, &token).await;
    assert_eq!(peer.receive(5).await, b"hello");
    peer.send(b"x").await;
    assert_eq!(peer.receive(1).await, b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rdp_client_goes_through_with_nothing_or_with_the_same_token_of_its_own() {
    let place = Place::start("");
    let target = Target::start().await;
    let connect = request(None).encode().unwrap();
    let selected = SELECTED_TLS.encode();
    for (count, own) in ["nothing", "token", "ticket"].into_iter().enumerate() {
        let token = forward(&place, target.address, json!({}));
        let ticket = place.http("POST /jet/tickets", &token, "").await.1;
        let ticket = ticket["ticket"].as_str().unwrap().to_owned();
        let mut peer = open(&place.lab, &token).await;
        match own {
            "token" => {
                peer.send(&preconnection::encode_v2(0, &token).unwrap())
                    .await
            }
            "ticket" => {
                peer.send(&preconnection::encode_v2(0, &ticket).unwrap())
                    .await
            }
            _ => {}
        }
        peer.send(&connect).await;
        assert_eq!(peer.receive(selected.len()).await, selected, "{own}");
        // The target sees what clients without a gateway would send it.
        assert_eq!(target.requests()[count], connect);
        peer.send(CLIENT_HELLO).await;
        assert_eq!(peer.receive(CLIENT_HELLO.len()).await, CLIENT_HELLO);
        peer.finish().await;
        closed(count + 1).await;
    }
    for own in ["preconnection", "routing"] {
        forget_log();
        let token = forward(&place, target.address, json!({}));
        let other = forward(&place, target.address, json!({}));
        let mut peer = open(&place.lab, &token).await;
        match own {
            "preconnection" => {
                peer.send(&preconnection::encode_v2(0, &other).unwrap())
                    .await;
                peer.send(&connect).await;
            }
            _ => {
                let ticket = place.http("POST /jet/tickets", &other, "").await.1;
                let ticket = ticket["ticket"].as_str().unwrap();
                peer.send(&request(Some(ticket)).encode().unwrap()).await;
            }
        }
        assert_eq!(failure(peer).await, 4, "{own}");
        refused("contradiction").await;
    }
    assert_eq!(target.connections(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_has_one_live_session_and_comes_again_as_its_window_says() {
    let place = Place::start("");
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let token = forward(&place, server, ssh());
    let mut first = open(&place.lab, &token).await;
    first.send(b"SSH-2.0-client\r\n").await;
    first.receive(32).await;
    let second = open(&place.lab, &token).await;
    assert_eq!(second.rest().await, b"");
    refused("in-use").await;
    first.finish().await;
    closed(1).await;
    forget_log();
    // Used, by whichever way it is shown then.
    assert_eq!(open(&place.lab, &token).await.rest().await, b"");
    refused("replayed").await;
    forget_log();
    // Within a window from the same address, and from no other.
    let token = forward(&place, server, json!({ "jet_ap": "ssh", "jet_reuse": 60 }));
    for count in 1..=2 {
        let mut peer = open(&place.lab, &token).await;
        peer.send(b"SSH-2.0-client\r\n").await;
        peer.receive(32).await;
        peer.finish().await;
        closed(count).await;
    }
    let elsewhere = place.lab.connect_from(7).await;
    let peer = open_on(elsewhere, "tcp", &token).await.ok().unwrap();
    assert_eq!(peer.rest().await, b"");
    refused("other-address").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_says_against_it_is_a_problem_with_its_reason() {
    let sealing = Sealing::new();
    let place = Place::start(&sealing.table);
    let target = Target::start().await;
    let id = Uuid::new_v4();
    let of = |changes: Value| forward(&place, target.address, changes);
    let sealed = |changes: Value| sealing.token(&place.lab, &Lab::claims(target.address, changes));
    let credentials = json!({ "jet_ap": "ssh", "dst_usr": "alice", "dst_pwd": "secret" });
    for (token, leg, expected) in [
        (String::new(), "tcp", (401, "no-token")),
        ("eyJhbGciOiJub25lIn0.e30.".to_owned(), "tcp", (401, "")),
        (of(json!({ "exp": 1, "nbf": 0 })), "tcp", (401, "")),
        (place.token(id, json!({})), "tcp", (403, "other-path")),
        (
            of(json!({ "jet_aid": Uuid::new_v4() })),
            "tcp",
            (403, "other-path"),
        ),
        (of(json!({ "jet_rec": true })), "tcp", (403, "recording")),
        (of(json!({ "jet_flt": true })), "tcp", (403, "filtering")),
        // What has to be done inside can be done in RDP only.
        (sealed(credentials.clone()), "tcp", (403, "injection")),
        (
            of(json!({ "jet_ap": "vnc", "cert_thumb256": "07".repeat(32) })),
            "tcp",
            (403, "pinning"),
        ),
        (of(ssh()), "tls", (403, "target-tls")),
        (
            sealed(json!({
                "jet_ap": "ssh", "dst_usr": "alice", "dst_pwd": "secret", "cert_thumb256": "07".repeat(32),
            })),
            "tls",
            (403, "target-tls"),
        ),
    ] {
        let (status, rule) = problem(&place, leg, id, &token).await;
        assert_eq!(status, expected.0, "{token} {rule}");
        if !expected.1.is_empty() {
            assert_eq!(rule, expected.1);
        }
    }
    assert_eq!(target.connections(), 0);
    // The path is not the token's business where it has no association.
    drop(open(&place.lab, &of(json!({}))).await);
    let (status, problem) = place.http("GET /jet/fwd/tcp/nonsense", "", "").await;
    assert_eq!((status, &problem["rule"]), (400, &json!("path")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_inspected_is_inspected_or_refused() {
    let sealing = Sealing::new();
    let place = Place::start(&sealing.table);
    let desk = Desk::start().await;
    let claims = json!({
        "dst_usr": "alice", "dst_pwd": "correct horse", "cert_thumb256": desk.thumbprint(),
    });
    let token = sealing.token(&place.lab, &Lab::claims(desk.address, claims.clone()));
    // The demo's client knows nothing of the gateway.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = open(&place.lab, &token).await;
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        bridge_seen(peer, client, Arc::default()).await;
    });
    let visit = Visit::new(address, "stranger", "guess");
    let mut client = within(ClientSession::connect(&visit))
        .await
        .unwrap_or_else(|error| panic!("{error:#}, log:\n{}", log()));
    within(client.settle(visit.settle)).await.unwrap();
    let rows = crate::api::sessions(&place.lab, OPERATOR).await;
    assert_eq!(rows[0]["inside"]["statistics"]["user"], "alice", "{rows}");
    client.leave().await;
    closed(1).await;
    // Whoever does not speak RDP passes no password by.
    let token = sealing.token(&place.lab, &Lab::claims(desk.address, claims));
    let mut peer = open(&place.lab, &token).await;
    peer.send(b"anything but RDP").await;
    assert_eq!(peer.rest().await, b"");
    refused("protocol").await;
    assert!(!log().contains("correct horse"));
}

/// Whatever a token calls it, and however long the client waits with it.
#[tokio::test(flavor = "multi_thread")]
async fn no_rdp_passes_as_another_protocol_where_all_rdp_is_inspected() {
    let place = Place::start("[session]\ninspect = \"always\"\n");
    let target = crate::agent::greeter().await;
    let asks = request(None).encode().unwrap();
    let mut reserved = asks.clone();
    reserved[1] = 1;
    let behind = [preconnection::encode_v2(0, "host").unwrap(), asks.clone()].concat();
    let cases = [
        ("none", &asks),
        ("wayk", &asks),
        ("ftp", &asks),
        ("ftp", &reserved),
        ("none", &reserved),
        ("ftp", &behind),
    ];
    for (count, (announced, asks)) in cases.into_iter().enumerate() {
        let token = forward(&place, target, json!({ "jet_ap": announced }));
        let mut client = place.lab.connect().await;
        let pdu = preconnection::encode_v2(0, &token).unwrap();
        client.write_all(&pdu).await.unwrap();
        let mut banner = [0; 15];
        within(client.read_exact(&mut banner)).await.unwrap();
        assert_eq!(&banner, b"SSH-2.0-hello\r\n");
        for part in asks.chunks(3) {
            // It may be cut off as soon as it is known what it begins.
            if client.write_all(part).await.is_err() {
                break;
            }
        }
        // The target would echo it.
        let mut rest = Vec::new();
        let _end = within(client.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"", "{announced}");
        let lines = logged_times("Session refused", count + 1).await;
        assert_eq!(lines[count]["rule"], "inspection", "{announced}");
    }
    // As bytes at once, too.
    for (announced, asks) in [("none", &reserved), ("ftp", &reserved), ("ftp", &behind)] {
        let silent = Target::start().await;
        let token = forward(&place, silent.address, json!({ "jet_ap": announced }));
        let mut client = place.lab.connect().await;
        let pdu = preconnection::encode_v2(0, &token).unwrap();
        client
            .write_all(&[pdu, asks.clone()].concat())
            .await
            .unwrap();
        let _end = within(client.read_to_end(&mut Vec::new())).await;
        assert_eq!(silent.requests(), Vec::<Vec<u8>>::new(), "{announced}");
    }
    // What is none goes on.
    let token = forward(&place, target, json!({ "jet_ap": "ftp" }));
    let mut client = place.lab.connect().await;
    let pdu = preconnection::encode_v2(0, &token).unwrap();
    client.write_all(&pdu).await.unwrap();
    client.write_all(b"USER you").await.unwrap();
    let mut said = [0; 15 + 8];
    within(client.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"SSH-2.0-hello\r\nUSER you");
    // RDP is RDP in any case.
    let target = Target::start().await;
    let token = forward(&place, target.address, json!({ "jet_ap": "RDP" }));
    let mut peer = open(&place.lab, &token).await;
    peer.send(b"anything but RDP").await;
    assert_eq!(peer.rest().await, b"");
    refused("protocol").await;
    assert_eq!(target.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_inspected_where_an_operator_says_so() {
    let place = Place::start("[session]\ninspect = \"always\"\n");
    let target = Target::start().await;
    let token = forward(&place, target.address, json!({ "jet_ap": null }));
    let mut peer = open(&place.lab, &token).await;
    peer.send(b"anything but RDP").await;
    assert_eq!(peer.rest().await, b"");
    refused("inspection").await;
    assert_eq!(target.connections(), 0);
    // Nor does RDP go by where nothing is announced.
    let token = forward(&place, target.address, json!({ "jet_ap": "none" }));
    let mut client = place.lab.client(&token).await;
    assert_eq!(crate::lab::failure(&mut client).await, 2);
    assert_eq!(target.connections(), 0);
    // Nor inside of TLS that the gateway speaks.
    for announced in [Value::Null, json!("rdp")] {
        let pinned = json!({ "jet_ap": announced, "cert_thumb256": "07".repeat(32) });
        let token = forward(&place, target.address, pinned);
        let refused = problem(&place, "tls", Uuid::new_v4(), &token).await;
        assert_eq!(refused, (403, "target-tls".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_speaks_tls_to_a_target_with_the_certificate_that_is_pinned() {
    let place = Place::start("");
    let (target, thumbprint) = tls_speaker().await;
    let pinned = |pin: &str| {
        let changes = json!({ "jet_ap": "none", "cert_thumb256": pin });
        forward(&place, target, changes)
    };
    let stream = place.lab.connect().await;
    let mut peer = open_on(stream, "tls", &pinned(&thumbprint))
        .await
        .ok()
        .unwrap();
    assert_eq!(peer.receive(7).await, b"in TLS ");
    peer.send(b"plain").await;
    assert_eq!(peer.rest().await, b"plain");
    let line = closed(1).await.pop().unwrap();
    assert_eq!(
        (&line["bytes_to_target"], &line["bytes_to_client"]),
        (&json!(5), &json!(12))
    );
    // Another certificate is told nothing.
    let stream = place.lab.connect().await;
    let peer = open_on(stream, "tls", &pinned(&"07".repeat(32)))
        .await
        .ok()
        .unwrap();
    assert_eq!(peer.rest().await, b"");
    refused("target-certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_destination_is_reached_where_the_first_does_not_answer() {
    let place = Place::start("");
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let alternatives = |protocol: &str, target: SocketAddr| json!({ "jet_ap": protocol, "dst_hst": "127.0.0.1:1", "dst_alt": [format!("tcp://{target}")] });
    let token = forward(&place, server, alternatives("ssh", server));
    let mut peer = open(&place.lab, &token).await;
    assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
    peer.send(b"SSH-2.0-client\r\n").await;
    assert_eq!(peer.receive(16).await, b"SSH-2.0-client\r\n");
    peer.finish().await;
    let line = closed(1).await.pop().unwrap();
    assert_eq!(line["address"], server.to_string(), "{line}");
    // And with TLS, by which the pinned certificate is shown.
    let (target, thumbprint) = tls_speaker().await;
    let mut changes = alternatives("none", target);
    changes["cert_thumb256"] = json!(thumbprint);
    let token = forward(&place, target, changes);
    let opened = open_on(place.lab.connect().await, "tls", &token).await;
    let mut peer = opened.ok().unwrap();
    assert_eq!(peer.receive(7).await, b"in TLS ");
    peer.send(b"plain").await;
    assert_eq!(peer.rest().await, b"plain");
    let line = closed(2).await.pop().unwrap();
    assert_eq!(line["address"], target.to_string(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_rules_hold() {
    let place =
        Place::start("[egress]\nallow = [{ cidr = \"127.0.0.0/8\", ports = \"1-1023\" }]\n");
    let target = Target::start().await;
    let token = forward(&place, target.address, json!({ "jet_ap": null }));
    let peer = open(&place.lab, &token).await;
    assert_eq!(peer.rest().await, b"");
    refused("egress").await;
    assert_eq!(target.connections(), 0);
    // And for each further destination.
    let changes = json!({
        "jet_ap": null, "dst_hst": "127.0.0.1:1", "dst_alt": [target.address.to_string()],
    });
    let peer = open(&place.lab, &forward(&place, target.address, changes)).await;
    assert_eq!(peer.rest().await, b"");
    logged_times("Session refused", 2).await;
    assert_eq!(target.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_and_an_operator_end_it_for_good() {
    let place = Place::start(&format!("[token]\n{KEYS}revoked = \"revoked.json\"\n"));
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let token = forward(&place, server, json!({ "jet_ap": "ssh", "jti": "leaked" }));
    let mut peer = open(&place.lab, &token).await;
    peer.send(b"SSH-2.0-client\r\n").await;
    peer.receive(32).await;
    std::fs::write(file(&place.lab, "revoked.json"), r#"{"jti": ["leaked"]}"#).unwrap();
    place.lab.running().reload();
    assert_eq!(peer.closed().await, Some(CloseCode::Away));
    let line = closed(1).await.pop().unwrap();
    assert_eq!(line["reason"], "the token was revoked by its jti");
    let refused_now = problem(&place, "tcp", Uuid::new_v4(), &token).await;
    assert_eq!(refused_now, (401, "revoked".to_owned()));
    forget_log();

    let token = forward(&place, server, json!({ "jet_ap": "ssh", "jet_reuse": 60 }));
    let mut peer = open(&place.lab, &token).await;
    peer.send(b"SSH-2.0-client\r\n").await;
    peer.receive(32).await;
    let rows = crate::api::sessions(&place.lab, OPERATOR).await;
    let end = format!("DELETE /jet/sessions/{}", rows[0]["id"].as_str().unwrap());
    place.http(&end, OPERATOR, "").await;
    assert_eq!(peer.closed().await, Some(CloseCode::Away));
    closed(1).await;
    assert_eq!(open(&place.lab, &token).await.rest().await, b"");
    let line = logged("Session refused").await;
    assert!(
        line["rule"] == "ended" || line["rule"] == "replayed",
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused_where_origins_are_configured() {
    let place = Place::start("[jet]\norigins = [\"https://app.example\"]\n");
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let token = forward(&place, server, ssh());
    let shake = async |origin: &'static str| {
        let mut request = with_bearer(asked("tcp", Uuid::new_v4()), &token);
        request
            .headers_mut()
            .append("origin", origin.parse().unwrap());
        handshake(Box::new(place.lab.connect().await), request).await
    };
    assert_eq!(shake("https://evil.example").await.err(), Some(403));
    refused("origin").await;
    let mut peer = shake("https://app.example").await.ok().unwrap();
    assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_sessions_have_shares_and_places_as_others_have() {
    let place = Place::start("[limits]\nsessions_per_address = 2\n");
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let mut peers = Vec::new();
    for _ in 0..2 {
        let mut peer = open(&place.lab, &forward(&place, server, ssh())).await;
        peer.send(b"SSH-2.0-client\r\n").await;
        peer.receive(32).await;
        peers.push(peer);
    }
    // Neither by this way nor by another.
    let peer = open(&place.lab, &forward(&place, server, ssh())).await;
    assert_eq!(peer.rest().await, b"");
    refused("too-many-sessions").await;
    drop(peers);
    logged_times("Session closed", 2).await;
    let mut peer = open(&place.lab, &forward(&place, server, ssh())).await;
    assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_token_is_as_good_and_shown_to_nobody() {
    // The library of the test's client logs its own requests.
    crate::lab::quiet();
    let sealing = Sealing::new();
    let further = format!("{}reconnect_window_s = 0\n", sealing.table);
    let place = Place::start(&further);
    let server = speaker(b"SSH-2.0-server\r\n").await;
    let key = SigningKey::from_key(&place.lab.signing, None).unwrap();
    let signed = mint::mint(&Lab::claims(server, ssh()), Some(&key), None).unwrap();
    let token = sealing.wrap(&signed);
    let mut peer = open(&place.lab, &token).await;
    assert_eq!(peer.receive(16).await, b"SSH-2.0-server\r\n");
    peer.send(b"SSH-2.0-client\r\n").await;
    peer.receive(16).await;
    peer.finish().await;
    closed(1).await;
    for secret in [&token, &signed] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!log().contains(signature));
    }
    // The signed token inside is the same one.
    assert_eq!(open(&place.lab, &signed).await.rest().await, b"");
    refused("replayed").await;
}

/// What `jetway connect` on standard input and output says and how it ends, with this token.
async fn connect(place: &Place, token: &str) -> (Option<i32>, String) {
    let token_file = file(&place.lab, "user.jwt");
    std::fs::write(&token_file, token).unwrap();
    let gateway = format!("http://{}", place.lab.address());
    let run = move || {
        let piped = std::process::Stdio::piped;
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_jetway"))
            .args(["connect", "--gateway", &gateway, "--token-file"])
            .arg(token_file)
            .stdin(piped())
            .stdout(piped())
            .stderr(piped())
            .spawn()
            .unwrap();
        // Its user has nothing to say yet.
        let input = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(input);
        output
    };
    let output = within(tokio::task::spawn_blocking(run)).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_says_why_it_is_not_let_in() {
    let place = Place::start("");
    let target = Target::start().await;
    let token = forward(&place, target.address, json!({ "jet_rec": true }));
    let (code, said) = connect(&place, &token).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the token demands a recording"), "{said}");
    // What shows behind the handshake is in the log.
    let down = {
        let parked = TcpListener::bind("127.0.0.1:0").await.unwrap();
        parked.local_addr().unwrap()
    };
    let (code, said) = connect(&place, &forward(&place, down, ssh())).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1008"), "{said}");
    assert!(said.contains("the gateway's log has the reason"), "{said}");
    refused("target").await;
}
