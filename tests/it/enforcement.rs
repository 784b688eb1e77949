//! `jet_ap` is enforced from the first byte: a stream that is not what its token announces is closed and logged.

use jetway::rdp::preconnection;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::{
    CLIENT_HELLO, Lab, SELECTED_TLS, Target, confirm, failure, logged, request, speaker, within,
};

async fn announce(lab: &Lab, token: &str, first: &[u8]) -> TcpStream {
    let mut client = lab.connect().await;
    let mut bytes = preconnection::encode_v2(0, token).unwrap();
    bytes.extend_from_slice(first);
    client.write_all(&bytes).await.unwrap();
    client
}

async fn assert_closed(mut client: TcpStream, side: &str) {
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "protocol", "{refused}");
    assert!(
        refused["reason"].as_str().unwrap().contains(side),
        "{refused}"
    );
}

// J-AP-1
#[tokio::test]
async fn an_rdp_client_that_goes_on_with_something_else_is_closed() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let mut client = lab.client(&lab.token(target.address, json!({}))).await;
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    client.write_all(b"SSH-2.0-tunnel\r\n").await.unwrap();
    assert_closed(client, "client").await;
}

// J-AP-1
#[tokio::test]
async fn an_rdp_token_with_another_protocol_behind_it_is_closed() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    assert_closed(
        announce(&lab, &token, b"SSH-2.0-tunnel\r\n").await,
        "client",
    )
    .await;
    assert_eq!(target.connections(), 0);
}

// J-AP-1
#[tokio::test]
async fn a_target_that_does_not_speak_rdp_is_closed_and_the_client_told() {
    let lab = Lab::start("");
    let target = speaker(b"SSH-2.0-OpenSSH\r\n").await;
    assert_eq!(
        failure(&mut lab.client(&lab.token(target, json!({}))).await).await,
        4
    );
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "protocol");
}

// J-AP-1
#[tokio::test]
async fn a_server_first_protocol_passes_and_is_checked_on_both_sides() {
    let lab = Lab::start("");
    let ssh = json!({ "jet_ap": "ssh" });
    let target = speaker(b"SSH-2.0-OpenSSH\r\n").await;
    let mut client = announce(&lab, &lab.token(target, ssh.clone()), b"").await;
    let mut banner = [0_u8; 17];
    within(client.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-OpenSSH\r\n");
    client.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    let mut echo = [0_u8; 16];
    within(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"SSH-2.0-client\r\n");
    drop(client);

    let target = speaker(b"SSH-2.0-OpenSSH\r\n").await;
    let mut client = announce(&lab, &lab.token(target, ssh.clone()), b"").await;
    within(client.read_exact(&mut banner)).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_closed(client, "client").await;
}

// J-AP-1
#[tokio::test]
async fn a_target_that_is_no_ssh_server_is_closed() {
    let lab = Lab::start("");
    let target = speaker(b"RFB 003.008\n").await;
    let token = lab.token(target, json!({ "jet_ap": "ssh" }));
    assert_closed(
        announce(&lab, &token, b"SSH-2.0-client\r\n").await,
        "target",
    )
    .await;
}

// J-AP-1
#[tokio::test]
async fn an_unidentified_protocol_is_relayed_as_it_is() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    for changes in [json!({ "jet_ap": "none" }), json!({ "jet_ap": null })] {
        let token = lab.token(target.address, changes);
        let mut client = announce(&lab, &token, CLIENT_HELLO).await;
        let mut echo = [0_u8; CLIENT_HELLO.len()];
        within(client.read_exact(&mut echo)).await.unwrap();
    }
}

/// What OpenSSH says behind its version line: the first bytes of a KEXINIT packet.
const KEXINIT: &[u8] = b"\0\0\x05\xdc\x0a\x14cookie-cookie-co";

// J-AP-1
#[tokio::test]
async fn the_first_bytes_of_each_side_are_judged_once_and_what_follows_by_nobody() {
    let lab = Lab::start("");
    let ssh = json!({ "jet_ap": "ssh" });
    let both = [b"SSH-2.0-client\r\n", KEXINIT].concat();
    // OpenSSH's client says its version at once, and its KEXINIT when it has the server's; others say both at once.
    for (at_once, behind) in [(&both[..16], &both[16..]), (&both[..], &[][..])] {
        let target = speaker(b"SSH-2.0-OpenSSH\r\n").await;
        let mut client = announce(&lab, &lab.token(target, ssh.clone()), at_once).await;
        let mut banner = [0_u8; 17];
        within(client.read_exact(&mut banner)).await.unwrap();
        assert_eq!(&banner, b"SSH-2.0-OpenSSH\r\n");
        client.write_all(behind).await.unwrap();
        let mut echo = vec![0_u8; both.len()];
        within(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(echo, both);
    }
}

// J-AP-1
#[tokio::test]
async fn nothing_passes_before_it_is_known_to_be_what_was_announced() {
    let lab = Lab::start("");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let mut client = announce(&lab, &lab.token(target, json!({ "jet_ap": "ssh" })), b"SS").await;
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    let mut banner = [0_u8; 17];
    within(client.read_exact(&mut banner)).await.unwrap();
    client.write_all(b"TP / 1.0\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _end = within(server.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"", "the target has heard nothing of it");
    assert_closed(client, "client").await;
}

// J-AP-1
#[tokio::test]
async fn an_rdp_client_whose_token_announces_another_protocol_is_told_code_4() {
    let lab = Lab::start("");
    let request = request(None).encode().unwrap();
    for protocol in ["ssh", "vnc"] {
        let target = speaker(b"SSH-2.0-OpenSSH\r\n").await;
        let token = lab.token(target, json!({ "jet_ap": protocol }));
        let mut client = announce(&lab, &token, &request).await;
        assert_eq!(failure(&mut client).await, 4);
        // Clients may write the two apart.
        let mut client = announce(&lab, &token, &request[..1]).await;
        client.write_all(&request[1..]).await.unwrap();
        assert_eq!(failure(&mut client).await, 4);
    }
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "protocol", "{refused}");
}

#[tokio::test]
async fn where_nothing_is_announced_a_client_that_says_nothing_hears_its_server() {
    let lab = Lab::start("");
    for changes in [json!({ "jet_ap": "none" }), json!({ "jet_ap": null })] {
        let target = speaker(b"220 mail.example ESMTP\r\n").await;
        let mut client = announce(&lab, &lab.token(target, changes), b"").await;
        let mut banner = [0_u8; 24];
        within(client.read_exact(&mut banner)).await.unwrap();
        assert_eq!(&banner, b"220 mail.example ESMTP\r\n");
        client.write_all(b"QUIT\r\n").await.unwrap();
        let mut echo = [0_u8; 6];
        within(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"QUIT\r\n");
    }
}

#[tokio::test]
async fn where_nothing_is_announced_one_or_two_bytes_are_connected_too() {
    let lab = Lab::start("");
    // The last two might begin X.224 or TLS.
    for said in [&b"\n"[..], b"\x10\0", b"hi", b"\x03", b"\x16\x03"] {
        let target = speaker(b"").await;
        let token = lab.token(target, json!({ "jet_ap": "none" }));
        let mut client = announce(&lab, &token, said).await;
        let mut echo = vec![0_u8; said.len()];
        within(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(echo, said);
    }
}

#[tokio::test]
async fn a_client_with_a_valid_token_that_leaves_is_a_line_in_the_log() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({ "jti": "left" }));
    drop(announce(&lab, &token, b"").await);
    let refused = logged("Session refused").await;
    assert_eq!(
        (&refused["rule"], &refused["token"]),
        (&json!("gone"), &json!("left"))
    );
}
