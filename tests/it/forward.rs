//! A valid token leads to its target, whichever way the client carries it.

use std::net::SocketAddr;
use std::time::Duration;

use jetway::demo::target;
use jetway::io::over_tcp::OverTcp;
use jetway::rdp::connection_request::{self, PROTOCOL_SSL};
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway::rdp::preconnection;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::agent::Branch;
use crate::lab::{
    CLIENT_HELLO, Lab, SELECTED_TLS, Target, confirm, forget_log, log, logged, logged_times,
    request, within,
};
use crate::proof::{offering, send, tls};

// J-RDP-1 J-CM-1 J-DST-1
#[tokio::test]
async fn a_token_in_the_preconnection_pdu_opens_a_session() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut client = lab
        .session(&lab.token(target.address, json!({ "sub": "alice" })))
        .await;
    client.write_all(b"ping").await.unwrap();
    let mut echo = [0_u8; 4];
    within(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"ping");
    drop(client);
    let closed = logged("Session closed").await;
    assert_eq!(closed["user"], "alice");
    assert_eq!(closed["target"], target.address.to_string());
    assert_eq!(closed["decision"], "allow");
    let sent = target.requests()[0].len() + CLIENT_HELLO.len() + 4;
    assert_eq!(closed["bytes_to_target"], sent);
    assert_eq!(
        closed["bytes_to_client"],
        SELECTED_TLS.encode().len() + CLIENT_HELLO.len() + 4
    );
}

// J-RDP-1
#[tokio::test]
async fn the_target_sees_the_request_without_token_and_with_the_users_name() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut client = lab.connect().await;
    let token = lab.token(target.address, json!({}));
    let mut both = request(Some("tsv://MS Terminal Services Plugin.1.Sessions"));
    both.mstshash = Some("alice".to_owned());
    let routing_first = {
        // Real clients may send both; the encoder writes what servers take, so the bytes are put together here.
        let with_cookie = request(None).encode().unwrap();
        let token = b"tsv://MS Terminal Services Plugin.1.Sessions\r\n";
        let (head, rest) = with_cookie.split_at(11);
        let length = u8::try_from(with_cookie.len() + token.len()).unwrap();
        let mut bytes = head.to_vec();
        bytes[3] = length;
        bytes[4] = length - 5;
        bytes.extend_from_slice(token);
        bytes.extend_from_slice(rest);
        bytes
    };
    client
        .write_all(&preconnection::encode_v2(7, &token).unwrap())
        .await
        .unwrap();
    client.write_all(&routing_first).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    let (seen, _) = connection_request::decode(&target.requests()[0])
        .unwrap()
        .unwrap();
    assert_eq!(seen, request(None));
}

// J-RDP-1
#[tokio::test]
async fn a_preconnection_pdu_in_single_bytes_is_read_as_one() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut client = lab.connect().await;
    client.set_nodelay(true).unwrap();
    let mut bytes = preconnection::encode_v2(0, &lab.token(target.address, json!({}))).unwrap();
    bytes.extend(request(None).encode().unwrap());
    for byte in bytes {
        client.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
}

// J-RDP-1
#[tokio::test]
async fn tls_at_once_behind_the_preconnection_pdu_is_negotiated_for_the_client() {
    let lab = Lab::start("");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token = lab.token(listener.local_addr().unwrap(), json!({}));
    let mut client = at_once(&lab, &token).await;
    // Targets take no TLS without a Connection Request before it, and the client has left that out.
    let mut target = asked_for_tls(&listener).await;
    target.write_all(&SELECTED_TLS.encode()).await.unwrap();
    let mut hello = [0_u8; CLIENT_HELLO.len()];
    within(target.read_exact(&mut hello)).await.unwrap();
    assert_eq!(hello, CLIENT_HELLO);
    // Nor does the client expect the answer to it.
    let answer = b"\x16\x03\x03\0\x04\x02\0\0\0";
    target.write_all(answer).await.unwrap();
    let mut got = [0_u8; 9];
    within(client.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, answer);
}

#[tokio::test]
async fn a_client_hello_in_many_segments_reaches_a_target_that_waits_for_all_of_it() {
    let lab = Lab::start("");
    let hello = [
        &[0x16, 3, 1, 0x0f, 0xfb, 1, 0, 0x0f, 0xf7][..],
        &[7; 0x0ff7],
    ]
    .concat();
    for first in [6, 100, hello.len() - 1] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = lab.token(listener.local_addr().unwrap(), json!({}));
        let mut client = lab.connect().await;
        let pdu = preconnection::encode_v2(0, &token).unwrap();
        client.write_all(&pdu).await.unwrap();
        let (now, later) = hello.split_at(first);
        client.write_all(now).await.unwrap();
        let mut target = asked_for_tls(&listener).await;
        target.write_all(&SELECTED_TLS.encode()).await.unwrap();
        let mut got = vec![0; hello.len()];
        within(target.read_exact(&mut got[..first])).await.unwrap();
        for byte in later.chunks(later.len().div_ceil(8)) {
            client.write_all(byte).await.unwrap();
        }
        within(target.read_exact(&mut got[first..])).await.unwrap();
        assert!(got == hello, "cut at {first}");
    }
}

#[tokio::test]
async fn where_a_target_has_no_tls_alone_the_log_says_what_a_client_without_negotiation_needs() {
    let lab = Lab::start("");
    for (answer, words) in [
        (
            ConnectionConfirm::Failure { code: 5 },
            "a ticket as load balance info",
        ),
        (
            ConnectionConfirm::Failure { code: 2 },
            "nothing but standard RDP security",
        ),
        (
            ConnectionConfirm::Plain,
            "nothing but standard RDP security",
        ),
        (ConnectionConfirm::Failure { code: 3 }, "RDP_NEG_FAILURE 3"),
    ] {
        forget_log();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = lab.token(listener.local_addr().unwrap(), json!({}));
        // It costs the token nothing.
        for _ in 0..2 {
            let mut client = at_once(&lab, &token).await;
            let mut target = asked_for_tls(&listener).await;
            target.write_all(&answer.encode()).await.unwrap();
            let mut told = Vec::new();
            within(client.read_to_end(&mut told)).await.unwrap();
            // The alert access_denied.
            assert_eq!(told, [0x15, 3, 3, 0, 2, 2, 49]);
        }
        for refused in logged_times("Session refused", 2).await {
            assert_eq!(refused["rule"], "target-security");
            let reason = refused["reason"].as_str().unwrap();
            assert!(reason.contains(words), "{reason}");
        }
    }
}

/// A client that begins with TLS behind its preconnection PDU.
async fn at_once(lab: &Lab, token: &str) -> TcpStream {
    let mut client = lab.connect().await;
    let mut bytes = preconnection::encode_v2(0, token).unwrap();
    bytes.extend_from_slice(CLIENT_HELLO);
    client.write_all(&bytes).await.unwrap();
    client
}

/// The connection that the gateway makes, which has asked for TLS and for nothing else.
async fn asked_for_tls(listener: &TcpListener) -> TcpStream {
    let (mut target, _) = within(listener.accept()).await.unwrap();
    let mut bytes = vec![0_u8; 19];
    within(target.read_exact(&mut bytes)).await.unwrap();
    let (asked, _) = connection_request::decode(&bytes).unwrap().unwrap();
    assert_eq!(asked.routing_token, None);
    assert_eq!(asked.negotiation.unwrap().requested_protocols, 1);
    target
}

// J-RDP-2
#[tokio::test]
async fn a_ticket_in_the_routing_token_opens_a_session() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let ticket = crate::api::ticket(&lab, &lab.token(target.address, json!({}))).await;
    assert!(ticket.len() <= 64);
    let mut client = lab.connect().await;
    client
        .write_all(&request(Some(&ticket)).encode().unwrap())
        .await
        .unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    let (seen, _) = connection_request::decode(&target.requests()[0])
        .unwrap()
        .unwrap();
    assert_eq!(seen.routing_token, None);
}

// J-RDP-2
#[tokio::test]
async fn a_token_too_long_for_the_length_indicator_still_works_as_a_routing_token() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    assert!(token.len() > 238);
    let mut client = lab.connect().await;
    client.write_all(&long_request(&token)).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    let seen = &target.requests()[0];
    assert!(!seen.windows(3).any(|window| window == b"eyJ"));
}

/// As FreeRDP sends a long routing token: TPKT right, LI wrapped.
fn long_request(token: &str) -> Vec<u8> {
    let mut bytes = vec![3, 0, 0, 0, 0, 0xE0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(token.as_bytes());
    bytes.extend_from_slice(b"\r\n\x01\x00\x08\x00\x03\x00\x00\x00");
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[4] = (length - 5).to_le_bytes()[0];
    bytes
}

// J-RDP-1 J-RDP-2
#[tokio::test]
async fn a_token_whose_header_has_white_space_opens_a_session_from_every_carrier() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    for header in [
        r#"{ "alg":"ES256"}"#,
        "{\r\n    \"alg\":  \"ES256\",\r\n    \"typ\":  \"JWT\"\r\n}",
    ] {
        let token = || lab.token_with_header(header, target.address);
        lab.session(&token()).await;

        let mut routed = lab.connect().await;
        routed.write_all(&long_request(&token())).await.unwrap();
        assert_eq!(confirm(&mut routed).await, SELECTED_TLS, "{header}");

        let ticket = crate::api::ticket(&lab, &token()).await;
        let mut client = lab.connect().await;
        let bytes = request(Some(&ticket)).encode().unwrap();
        client.write_all(&bytes).await.unwrap();
        assert_eq!(confirm(&mut client).await, SELECTED_TLS, "{header}");
    }
}

// J-DST-1
#[tokio::test]
async fn destinations_as_other_gateways_libraries_write_them_are_reached() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let port = target.address.port();
    // Nothing listens on the first: the second is tried.
    let alternatives = json!({
        "dst_hst": "tcp://127.0.0.1:1",
        "dst_alt": [format!("TCP://127.0.0.1:{port}/")],
    });
    for claims in [
        json!({ "dst_hst": format!("tcp://127.0.0.1:{port}") }),
        alternatives,
    ] {
        lab.session(&lab.token(target.address, claims)).await;
    }
    let udp = json!({ "dst_hst": format!("udp://127.0.0.1:{port}") });
    let mut client = lab.client(&lab.token(target.address, udp)).await;
    assert_eq!(crate::lab::failure(&mut client).await, 5);
    let refused = logged("Session refused").await;
    let reason = "claim dst_hst: only tcp:// is dialled, and not udp://";
    assert_eq!(refused["reason"], reason);
}

// J-DST-1
#[tokio::test]
async fn a_destination_without_a_port_is_dialled_at_that_of_its_protocol() {
    let lab = Lab::start("[egress]\nallow = [{ cidr = \"192.0.2.0/24\" }]\n");
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let claims = json!({ "dst_hst": "127.0.0.1", "dst_alt": ["tcp://127.0.0.2"] });
    let mut client = lab.client(&lab.token(nobody, claims)).await;
    crate::lab::failure(&mut client).await;
    let reason = logged("Session refused").await["reason"].to_string();
    assert!(reason.contains("127.0.0.1:3389"), "{reason}");
}

// J-RDP-2
#[tokio::test]
async fn both_carriers_with_the_same_token_are_fine_and_with_two_are_refused() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let (one, two) = (
        lab.token(target.address, json!({})),
        lab.token(target.address, json!({})),
    );
    let ticket_of_one = crate::api::ticket(&lab, &one).await;
    let both = |token: &str, ticket: &str| {
        let mut bytes = preconnection::encode_v2(0, token).unwrap();
        bytes.extend(request(Some(ticket)).encode().unwrap());
        bytes
    };
    let mut contradiction = lab.connect().await;
    contradiction
        .write_all(&both(&two, &ticket_of_one))
        .await
        .unwrap();
    assert_eq!(crate::lab::failure(&mut contradiction).await, 4);
    assert_eq!(logged("Session refused").await["rule"], "contradiction");
    let mut agreement = lab.connect().await;
    agreement
        .write_all(&both(&one, &ticket_of_one))
        .await
        .unwrap();
    assert_eq!(confirm(&mut agreement).await, SELECTED_TLS);
}

#[tokio::test]
async fn a_half_close_is_passed_on_in_both_directions() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut client = lab.session(&lab.token(target.address, json!({}))).await;
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"last words");
    assert_eq!(
        logged("Session closed").await["reason"],
        "closed by both sides"
    );
}

/// A target that selects TLS, says all it is told, and never closes its side.
async fn clinging() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _count = stream.read(&mut request).await.unwrap();
            stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
            held.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn an_rdp_client_that_has_gone_ends_its_session_although_the_target_stays() {
    let lab = Lab::start("");
    let target = clinging().await;
    for (count, jet_ap) in [json!("rdp"), json!("none"), json!(null)]
        .iter()
        .enumerate()
    {
        let mut client = lab
            .client(&lab.token(target, json!({ "jet_ap": jet_ap })))
            .await;
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client.write_all(CLIENT_HELLO).await.unwrap();
        client.shutdown().await.unwrap();
        let line = logged_times("Session closed", count + 1)
            .await
            .remove(count);
        assert_eq!(
            line["reason"],
            "the client closed the connection, and the target did not in time"
        );
    }
}

/// A target that selects TLS, and then takes a little now and then.
async fn slow() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _count = stream.read(&mut request).await.unwrap();
        stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
        let mut some = vec![0; 150_000];
        while stream.read_exact(&mut some).await.is_ok() {
            sleep(Duration::from_secs(2)).await;
        }
    });
    address
}

/// Its end is behind its bytes in its own system, where the gateway cannot see it; it has gone, or ended what it says and stays.
#[tokio::test]
async fn a_client_that_leaves_behind_full_buffers_does_not_keep_its_session() {
    for (takes, stays) in [(false, false), (true, false), (true, true)] {
        let lab = Lab::start("");
        let target = if takes {
            slow().await
        } else {
            clinging().await
        };
        let mut client = lab.client(&lab.token(target, json!({}))).await;
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client.write_all(CLIENT_HELLO).await.unwrap();
        let block = vec![0x17; 1 << 16];
        let mut sent = 0_u32;
        let all = Duration::from_secs(1);
        while let Ok(written) = timeout(all, client.write(&block)).await {
            written.unwrap();
            sent += 1;
            // What the slow target takes is far less.
            if sent > 2000 {
                break;
            }
        }
        client.shutdown().await.unwrap();
        let _client = stays.then_some(client);
        // Its connection alone would last for two minutes, and what it left behind for as long with the slow target.
        let closed = timeout(Duration::from_secs(90), async {
            while !log().contains("Session closed") {
                sleep(Duration::from_millis(100)).await;
            }
        });
        closed.await.unwrap();
        assert_eq!(
            logged("Session closed").await["reason"],
            "the client closed the connection, and the target did not in time"
        );
    }
}

/// A target with TLS that hears the end of its client, and keeps its side.
async fn clinging_with_tls() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _count = stream.read(&mut request).await.unwrap();
        stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
        let tls = TlsAcceptor::from(target::self_signed().unwrap());
        let mut stream = tls.accept(stream).await.unwrap();
        let _end = stream.read_to_end(&mut Vec::new()).await;
        std::future::pending::<()>().await;
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rdp_client_that_has_gone_ends_its_inspected_session_although_the_target_stays() {
    let site =
        Branch::start_with("[session]\ninspect = \"always\"\n[target]\nverify = \"accept-any\"\n");
    let token = site.lab.token(clinging_with_tls().await, json!({}));
    let asks = offering(PROTOCOL_SSL, 0, None);
    let mut client = send(&site.lab, Some(&token), &asks).await;
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    let mut client = tls(client).await;
    logged("Session opened").await;
    client.shutdown().await.unwrap();
    let line = logged("Session closed").await;
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the client closed the connection"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_target_that_has_gone_ends_an_rdp_session_although_the_client_stays() {
    let lab = Lab::start("");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token = lab.token(listener.local_addr().unwrap(), json!({}));
    let mut client = lab.client(&token).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(&SELECTED_TLS.encode()).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    client.write_all(CLIENT_HELLO).await.unwrap();
    target.write_all(b"last words").await.unwrap();
    target.shutdown().await.unwrap();
    // It hears them, and the end, and keeps its side.
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"last words");
    assert_eq!(
        logged("Session closed").await["reason"],
        "the target closed the connection, and the client did not in time"
    );
}

#[tokio::test]
async fn a_user_who_comes_back_at_once_is_not_told_that_the_token_is_in_use() {
    let keys = crate::lab::KEYS;
    let lab = Lab::start(&format!("[token]\n{keys}reconnect_window_s = 60\n"));
    let token = lab.token(clinging().await, json!({}));
    for _ in 0..2 {
        let mut client = lab.client(&token).await;
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client.write_all(CLIENT_HELLO).await.unwrap();
        drop(client);
    }
}

#[tokio::test]
async fn a_protocol_with_half_close_has_a_bound_of_its_own() {
    let lab = Lab::start("[session]\nhalf_close_timeout_s = 1\n");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = lab.token(address, json!({ "jet_ap": "ssh" }));
    let mut client = lab.connect().await;
    let mut bytes = preconnection::encode_v2(0, &token).unwrap();
    bytes.extend(b"SSH-2.0-you\r\n");
    client.write_all(&bytes).await.unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"SSH-2.0-hello\r\n").await.unwrap();
    let mut banner = [0; 15];
    within(client.read_exact(&mut banner)).await.unwrap();
    client.shutdown().await.unwrap();
    // The question ends, and its answer arrives whole.
    let mut question = Vec::new();
    within(target.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"SSH-2.0-you\r\n");
    let answer = vec![7; 3_000_000];
    let reading = tokio::spawn(async move {
        let mut answer = vec![0; 3_000_000];
        within(client.read_exact(&mut answer)).await.unwrap();
        answer
    });
    target.write_all(&answer).await.unwrap();
    assert_eq!(reading.await.unwrap(), answer);
    // The target keeps its side, and says no more.
    assert_eq!(
        logged("Session closed").await["reason"],
        "the client closed the connection, and the target did not in time"
    );
}

/// Likewise where the target takes nothing of what the client has left behind.
#[tokio::test]
async fn a_protocol_with_half_close_does_not_wait_longer_before_a_target_that_takes_nothing() {
    let lab = Lab::start("[session]\nhalf_close_timeout_s = 1\n");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = lab.token(address, json!({ "jet_ap": "ssh" }));
    let mut client = lab.connect().await;
    let mut bytes = preconnection::encode_v2(0, &token).unwrap();
    bytes.extend(b"SSH-2.0-you\r\n");
    client.write_all(&bytes).await.unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"SSH-2.0-hello\r\n").await.unwrap();
    let mut banner = [0; 15];
    within(client.read_exact(&mut banner)).await.unwrap();
    let block = vec![7; 1 << 16];
    while let Ok(written) = timeout(Duration::from_secs(1), client.write(&block)).await {
        written.unwrap();
    }
    // A client that is killed.
    client.break_on_drop();
    drop(client);
    let closed = timeout(Duration::from_secs(60), async {
        while !log().contains("Session closed") {
            sleep(Duration::from_millis(100)).await;
        }
    });
    closed.await.unwrap();
    drop(target);
}

#[tokio::test]
async fn listeners_on_ipv4_and_ipv6_each_have_their_own_narrowing() {
    let lab = Lab::start(
        "[[listener]]\naddress = \"127.0.0.1:0\"\naccept = [\"http\"]\n[[listener]]\naddress = \"[::1]:0\"\naccept = [\"rdp\"]\n",
    );
    let target = Target::start().await;
    let mut refused = lab.client(&lab.token(target.address, json!({}))).await;
    let mut rest = Vec::new();
    within(refused.read_to_end(&mut rest)).await.ok();
    assert_eq!(rest, b"");
    assert_eq!(logged("Session refused").await["rule"], "not-accepted-here");
    let ipv6 = lab.running().addresses()[1];
    let mut client = TcpStream::connect(ipv6).await.unwrap();
    let mut bytes = preconnection::encode_v2(0, &lab.token(target.address, json!({}))).unwrap();
    bytes.extend(request(None).encode().unwrap());
    client.write_all(&bytes).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
}
