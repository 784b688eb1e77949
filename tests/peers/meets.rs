//! Peers of a rendezvous by other makers: websockets in Python, wscat in JavaScript, and `openssl s_client`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use jetway::jet::exchange::{Operation, Response, Status};
use jetway::jet::packet;
use jetway::limits::WEBSOCKET_MESSAGE_BYTES;
use jetway_lab::wait::PATIENCE;
use serde_json::json;

use crate::lab::authority::Authority;
use crate::lab::environment;
use crate::lab::gateway::Gateway;
use crate::lab::piped::Piped;
use crate::lab::port::Port;
use crate::lab::rendezvous::{Rendezvous, TcpPeer};
use crate::lab::websockets::WebSockets;
use crate::lab::workspace::{self, Workspace};

// J-WS-1 J-WS-2
#[test]
fn websockets_meets_a_tcp_peer_with_fragments_pings_and_an_offer_to_compress() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let mut peer = WebSockets::start(workspace, "websockets", authority)?;
        for (transport, role) in [("ws", Operation::Connect), ("wss", Operation::Accept)] {
            let rendezvous = Rendezvous::create(gateway)?;
            let url = rendezvous.url(role, transport)?;
            let mut tcp = if role == Operation::Accept {
                peer.open(&url, rendezvous.token())?;
                peer.ping("while it waits")?;
                rendezvous.peer(Operation::Connect, transport)?
            } else {
                let tcp = rendezvous.peer(Operation::Accept, transport)?;
                peer.open(&url, rendezvous.token())?;
                tcp
            };
            peer.send(&["one ", "two ", "three"])?;
            tcp.expect("one two three")?;
            peer.ping("in the session")?;
            // What compresses well passes as it is.
            let dull = "a".repeat(100_000);
            peer.send(&[&dull])?;
            tcp.expect(&dull)?;
            tcp.send(&dull)?;
            peer.expect(&dull)?;
            let (from_peer, from_tcp) = (13 + dull.len(), dull.len());
            match role {
                Operation::Accept => rendezvous.has_relayed(from_tcp, from_peer)?,
                Operation::Connect | Operation::Test => {
                    rendezvous.has_relayed(from_peer, from_tcp)?;
                }
            }
            // An acceptor would be given time to answer when its connector has ended.
            if role == Operation::Connect {
                tcp.finish()?;
                peer.expect_close(1000, "")?;
            } else {
                peer.ask(&json!({ "do": "close", "code": 1000 }))?;
                tcp.expect_end()?;
                // The gateway has answered its Close.
                peer.expect_close(1000, "")?;
            }
        }
        Ok(())
    })
}

// J-WS-1 J-WS-2
#[test]
fn two_websockets_exchange_8_mib_each_way_in_fragments() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let rendezvous = Rendezvous::create(gateway)?;
        let mut acceptor = WebSockets::start(workspace, "acceptor", authority)?;
        let mut connector = WebSockets::start(workspace, "connector", authority)?;
        let token = rendezvous.token();
        acceptor.open(&rendezvous.url(Operation::Accept, "wss")?, token)?;
        let (path, _) = rendezvous.path(Operation::Connect, "wss")?;
        let (_, url) = rendezvous.path(Operation::Connect, "ws")?;
        connector.open(&format!("{url}{path}"), token)?;
        for part in [1_000, 50_000, WEBSOCKET_MESSAGE_BYTES] {
            for _ in 0..8 {
                bulk(&mut connector, &mut acceptor, part)?;
                bulk(&mut acceptor, &mut connector, part)?;
            }
        }
        let all = 3 * 8 * WEBSOCKET_MESSAGE_BYTES;
        rendezvous.has_relayed(all, all)
    })
}

/// The largest message that the gateway takes, in fragments of so many bytes.
fn bulk(from: &mut WebSockets, to: &mut WebSockets, part: usize) -> Result<()> {
    let count = WEBSOCKET_MESSAGE_BYTES;
    let order = json!({ "do": "send_random", "count": count, "part": part });
    let sent = from.ask(&order)?;
    let arrived = to.ask(&json!({ "do": "digest", "count": count }))?;
    ensure!(sent == arrived, "in fragments of {part} bytes");
    Ok(())
}

// J-WS-1
#[test]
fn websockets_is_told_why_it_is_closed() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let mut peer = WebSockets::start(workspace, "websockets", authority)?;
        let far_too_long = WEBSOCKET_MESSAGE_BYTES * 4;
        for (order, code, reason) in [
            (
                json!({ "do": "send_text", "text": "hello" }),
                1003,
                "binary messages only",
            ),
            // Each fragment is short enough.
            (
                json!({ "do": "send_random", "count": WEBSOCKET_MESSAGE_BYTES + 1, "part": 65_536 }),
                1009,
                "message too long",
            ),
            (
                json!({ "do": "send_random", "count": far_too_long, "part": far_too_long }),
                1009,
                "message too long",
            ),
            (json!({ "do": "send_nonsense" }), 1002, "an unknown opcode"),
        ] {
            let rendezvous = Rendezvous::create(gateway)?;
            let mut tcp = pair(&mut peer, &rendezvous)?;
            // It may be told, and closed, while it still sends.
            let _sent = peer.ask(&order);
            peer.expect_close(code, reason)
                .with_context(|| order.to_string())?;
            // What came before is passed on; behind it is nothing.
            let mut before = Vec::new();
            tcp.stream.read_to_end(&mut before)?;
            ensure!(before.len() <= WEBSOCKET_MESSAGE_BYTES, "{order}");
        }
        let rendezvous = Rendezvous::create(gateway)?;
        pair(&mut peer, &rendezvous)?.reset()?;
        peer.expect_close(1011, "the other side broke off")?;
        let rendezvous = Rendezvous::create(gateway)?;
        let _tcp = pair(&mut peer, &rendezvous)?;
        rendezvous.delete()?;
        peer.expect_close(1001, "ended by the gateway")
    })
}

/// A peer that is no browser is told more than a page.
#[test]
fn websockets_is_told_why_its_handshake_is_refused() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let mut peer = WebSockets::start(workspace, "websockets", authority)?;
        let rendezvous = Rendezvous::create(gateway)?;
        let other = Rendezvous::create(gateway)?;
        let url = rendezvous.url(Operation::Connect, "wss")?;
        let unknown = url.replace(&url[url.len() - 12..], "000000000000");
        let token = rendezvous.token();
        for (what, url, bearer, status, rule) in [
            ("no token", &url, "", 401, "rendezvous"),
            (
                "forged",
                &url,
                "eyJhbGciOiJFUzI1NiJ9.e30.AAAA",
                401,
                "signature",
            ),
            (
                "the token of another",
                &url,
                other.token(),
                403,
                "rendezvous",
            ),
            ("unknown candidate", &unknown, token, 404, "rendezvous"),
            ("nobody there", &url, token, 409, "rendezvous"),
        ] {
            let answer = peer.try_open(url, bearer)?;
            let expected = json!({ "status": status, "rule": rule });
            ensure!(answer == expected, "{what}: {answer}");
        }
        Ok(())
    })
}

/// wscat has text only, so it can listen, and ping.
// J-WS-1
#[test]
fn wscat_hears_a_tcp_peer_and_is_told_that_text_is_not_taken() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let rendezvous = Rendezvous::create(gateway)?;
        let url = rendezvous.url(Operation::Accept, "wss")?;
        // It shows ends and pongs on terminals only.
        let command = wscat(authority, &url, rendezvous.token())?;
        let mut wscat = Piped::start(
            workspace,
            "wscat",
            Command::new("script").args(["-qefc", &command, "/dev/null"]),
        )?;
        wscat.wait_for_text("Connected")?;
        let mut tcp = rendezvous.peer(Operation::Connect, "wss")?;
        tcp.send("hello from the other side")?;
        wscat.wait_for_text("< hello from the other side")?;
        wscat.send("/ping there\r")?;
        wscat.wait_for_text("Received pong (data: \"there\")")?;
        wscat.send("this is text\r")?;
        wscat.wait_for_text("Disconnected (code: 1003, reason: \"binary messages only\")")?;
        tcp.expect_end()?;

        let other = Rendezvous::create(gateway)?;
        let mut refused = Piped::start(
            workspace,
            "wscat-refused",
            Command::new("sh").args(["-c", &wscat_of(authority, &url, other.token())?]),
        )?;
        let status = refused.process_mut().wait(PATIENCE)?;
        let said = refused.process_mut().output()?;
        ensure!(
            said.trim() == "error: Unexpected server response: 403",
            "{said}"
        );
        ensure!(!status.success());
        Ok(())
    })
}

/// The command line of a wscat in a terminal.
fn wscat(authority: &Authority, url: &str, token: &str) -> Result<String> {
    let command = wscat_of(authority, url, token)?;
    Ok(format!("{command} --no-color --slash --show-ping-pong"))
}

fn wscat_of(authority: &Authority, url: &str, token: &str) -> Result<String> {
    let program = environment::file("node", "node_modules/wscat/bin/wscat")?;
    Ok(format!(
        "node {} --connect {url} --header 'Authorization: Bearer {token}' --ca {}",
        program.display(),
        authority.certificate().display()
    ))
}

// J-BIN-1 J-BIN-4 J-PKT-1
#[test]
fn s_client_accepts_over_tls_1_2_and_1_3_and_meets_a_tcp_peer() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        for version in ["-tls1_2", "-tls1_3"] {
            let rendezvous = Rendezvous::create(gateway)?;
            let mut client = s_client(workspace, &gateway.address(), authority, version)?;
            client.send(rendezvous.packet(Operation::Accept, "tls")?)?;
            granted(&mut client)?;
            let mut tcp = rendezvous.peer(Operation::Connect, "tls")?;
            // Letters at the beginning of a line are commands to it, unless they are switched off.
            tcp.send("Q is the client's first word\n")?;
            client.expect("Q is the client's first word\n")?;
            client.send("R is the answer\n")?;
            tcp.expect("R is the answer\n")?;
            rendezvous.has_relayed(29, 16)?;
            tcp.finish()?;
            // close_notify ends it in order.
            let status = client.process_mut().wait(PATIENCE)?;
            ensure!(status.success(), "{version}: {status}");
            tcp.expect_end()?;
        }
        Ok(())
    })
}

// J-BIN-2 J-BIN-4 J-WS-2
#[test]
fn s_client_connects_over_tls_to_an_acceptor_that_is_a_websocket() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let mut acceptor = WebSockets::start(workspace, "websockets", authority)?;
        for version in ["-tls1_2", "-tls1_3"] {
            // Sessions of this protocol are over when either side ends.
            let rendezvous = Rendezvous::create_for(gateway, &["--jet-ap", "ssh"])?;
            let url = rendezvous.url(Operation::Accept, "wss")?;
            acceptor.open(&url, rendezvous.token())?;
            // The server speaks first.
            acceptor.send(&["SSH-2.0-", "banner\r\n"])?;
            let mut client = s_client(workspace, &gateway.address(), authority, version)?;
            client.send(rendezvous.packet(Operation::Connect, "wss")?)?;
            granted(&mut client)?;
            client.expect("SSH-2.0-banner\r\n")?;
            client.send("SSH-2.0-client\r\n")?;
            acceptor.expect("SSH-2.0-client\r\n")?;
            client.finish();
            acceptor.expect_close(1000, "")?;
            let status = client.process_mut().wait(PATIENCE)?;
            ensure!(status.success(), "{version}: {status}");
        }
        Ok(())
    })
}

// J-BIN-4
#[test]
fn s_client_and_s_server_speak_tls_end_to_end_through_a_tcp_candidate() -> Result<()> {
    with_gateway(|workspace, gateway, authority| {
        let port = Port::free()?;
        let at = format!("127.0.0.1:{}", port.number());
        let (certificate, key) = authority.of_gateway();
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-accept", &at, "-quiet", "-cert"])
            .arg(certificate)
            .arg("-key")
            .arg(key);
        let mut server = Piped::start(workspace, "s_server", &mut command)?;
        port.wait_for_listener(|| server.process_mut().expect_alive())?;

        let rendezvous = Rendezvous::create(gateway)?;
        let accepted = rendezvous.peer(Operation::Accept, "tcp")?;
        let connected = rendezvous.peer(Operation::Connect, "tcp")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let way_in = listener.local_addr()?.to_string();
        let mut client = s_client(workspace, &way_in, authority, "-tls1_3")?;
        let relayed = Arc::default();
        join(&listener.accept()?.0, &connected.stream, &Arc::default())?;
        join(&accepted.stream, &TcpStream::connect(&at)?, &relayed)?;
        client.send("The password is swordfish\n")?;
        server.expect("The password is swordfish\n")?;
        server.send("Swordfish it is\n")?;
        client.expect("Swordfish it is\n")?;

        let relayed = relayed.lock().unwrap_or_else(PoisonError::into_inner);
        // A handshake record of TLS, and then nothing that says fish.
        ensure!(relayed.starts_with(&[0x16, 0x03]), "{relayed:?}");
        ensure!(relayed.len() > 1000, "{relayed:?}");
        ensure!(!relayed.windows(4).any(|window| window == b"fish"));
        Ok(())
    })
}

/// Brings the bytes of each to the other, and keeps a copy of all.
fn join(one: &TcpStream, other: &TcpStream, copy: &Arc<Mutex<Vec<u8>>>) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        from.set_nodelay(true)?;
        let copy = Arc::clone(copy);
        thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
                copy.extend_from_slice(&bytes[..count]);
                drop(copy);
                if to.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// A TLS connection to `address` whose bytes are those of standard input and output.
fn s_client(
    workspace: &Workspace,
    address: &str,
    authority: &Authority,
    version: &str,
) -> Result<Piped> {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", address, version])
        .args(["-quiet", "-nocommands", "-no_ign_eof"])
        .args(["-servername", "localhost", "-verify_hostname", "localhost"])
        .args(["-verify_return_error", "-CAfile"])
        .arg(authority.certificate());
    Piped::start(workspace, &format!("s_client{version}"), &mut command)
}

/// Waits for the response to its packet.
fn granted(client: &mut Piped) -> Result<()> {
    let response = client.wait_for("a response", |printed| {
        let packet = packet::decode(printed)?;
        Ok(packet.map(|packet| (packet.payload, packet.length)))
    })?;
    let response = Response::parse(&response)?;
    ensure!(response.status == Status::Ok, "{response:?}");
    Ok(())
}

/// A connector by websockets and an acceptor over TCP, both having spoken.
fn pair(peer: &mut WebSockets, rendezvous: &Rendezvous<'_>) -> Result<TcpPeer> {
    let mut tcp = rendezvous.peer(Operation::Accept, "ws")?;
    let url = rendezvous.url(Operation::Connect, "ws")?;
    peer.open(&url, rendezvous.token())?;
    peer.send(&["there"])?;
    tcp.expect("there")?;
    tcp.send("here")?;
    peer.expect("here")?;
    Ok(tcp)
}

fn with_gateway(test: impl FnOnce(&Workspace, &Gateway, &Authority) -> Result<()>) -> Result<()> {
    workspace::run(|workspace| {
        let authority = Authority::certify(workspace, &["localhost", "127.0.0.1"])?;
        let gateway = Gateway::start_for_peers(workspace, &authority, "")?;
        test(workspace, &gateway, &authority)
    })
}
