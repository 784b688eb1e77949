//! PROXY protocol: believed from configured addresses only, and then everywhere.

use jetway::rdp::preconnection;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Lab, SELECTED_TLS, Target, confirm, logged, request, within};

const TRUSTING: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol_from = [\"127.0.0.0/8\"]\n";

/// Version 2, PROXY, TCP over IPv4 from 203.0.113.9:1000 to 192.0.2.1:3389.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xCB\0\x71\x09\xC0\0\x02\x01\x03\xE8\x0D\x3D";

#[tokio::test]
async fn the_client_behind_a_trusted_balancer_is_named_in_the_log() {
    let (lab, target) = (Lab::start(TRUSTING), Target::start().await);
    for (times, header) in [&b"PROXY TCP4 203.0.113.9 192.0.2.1 1000 3389\r\n"[..], V2]
        .iter()
        .enumerate()
    {
        let mut client = lab.connect().await;
        let mut bytes = header.to_vec();
        bytes.extend(preconnection::encode_v2(0, &lab.token(target.address, json!({}))).unwrap());
        bytes.extend(request(None).encode().unwrap());
        client.write_all(&bytes).await.unwrap();
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
        let mut echo = [0_u8; crate::lab::CLIENT_HELLO.len()];
        within(client.read_exact(&mut echo)).await.unwrap();
        drop(client);
        let closed = crate::lab::logged_times("Session closed", times + 1).await;
        assert_eq!(closed[times]["peer"], "203.0.113.9:1000");
    }
}

#[tokio::test]
async fn a_header_of_another_family_leaves_the_balancer_as_the_peer() {
    let (lab, target) = (Lab::start(TRUSTING), Target::start().await);
    let mut datagram = V2.to_vec();
    datagram[13] = 0x12;
    let mut client = lab.connect().await;
    let own = client.local_addr().unwrap();
    datagram.extend(preconnection::encode_v2(0, &lab.token(target.address, json!({}))).unwrap());
    datagram.extend(request(None).encode().unwrap());
    client.write_all(&datagram).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    drop(client);
    assert_eq!(logged("Session closed").await["peer"], own.to_string());
}

#[tokio::test]
async fn a_header_from_anybody_else_and_a_second_header_are_refused() {
    let mut rest = Vec::new();
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    client.write_all(V2).await.unwrap();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    assert_eq!(logged("Session refused").await["rule"], "proxy-not-trusted");
    let trusting = Lab::start(TRUSTING);
    let mut client = trusting.connect().await;
    client.write_all(&[V2, V2].concat()).await.unwrap();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}
