//! Pages in Chromium as peers of a rendezvous: what a script of a web application can do, and what it learns.

use std::io::{Read, Write};
use std::thread;

use anyhow::{Context, Result, ensure};
use jetway::jet::exchange::Operation;
use jetway::limits::WEBSOCKET_MESSAGE_BYTES;
use serde_json::{Value, json};

use crate::lab::authority::Authority;
use crate::lab::browser::Browser;
use crate::lab::gateway::Gateway;
use crate::lab::log::CLOSED;
use crate::lab::rendezvous::{Rendezvous, TcpPeer};
use crate::lab::workspace::{self, Workspace};

/// By what a page shows its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    SubProtocol,
    Ticket,
}

// J-WS-1 J-WS-2
#[test]
fn a_page_meets_a_tcp_peer_with_a_token_or_a_ticket_over_ws_and_wss() -> Result<()> {
    with_browser("", |gateway, browser| {
        let mut secrets = Vec::new();
        for transport in ["ws", "wss"] {
            for carrier in [Carrier::SubProtocol, Carrier::Ticket] {
                for role in [Operation::Accept, Operation::Connect] {
                    let rendezvous = Rendezvous::create(gateway)?;
                    let tab = format!("{transport}-{carrier:?}-{role}");
                    let what = format!("{tab} of {rendezvous:?}");
                    let met = meet(browser, &tab, &rendezvous, (transport, carrier, role));
                    secrets.extend([met.context(what)?, rendezvous.token().to_owned()]);
                }
            }
        }
        gateway.wait_for(CLOSED, 8)?;
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        gateway.keeps_secret(&secrets)
    })
}

/// One session between a page in `tab` and a TCP peer; returns what the page has shown.
fn meet(
    browser: &mut Browser,
    tab: &str,
    rendezvous: &Rendezvous<'_>,
    (transport, carrier, role): (&str, Carrier, Operation),
) -> Result<String> {
    let (url, protocols, secret) = shown(rendezvous, transport, carrier, role)?;
    let mut tcp = if role == Operation::Accept {
        browser.open(tab, &url, &protocols)?;
        rendezvous.peer(Operation::Connect, transport)?
    } else {
        let tcp = rendezvous.peer(Operation::Accept, transport)?;
        browser.open(tab, &url, &protocols)?;
        tcp
    };
    // The server says the first word in half of the cases, and the client in the others.
    let page_first = (role == Operation::Accept) == (carrier == Carrier::SubProtocol);
    if page_first {
        browser.send(tab, "the page says something")?;
        tcp.expect("the page says something")?;
        tcp.send("and gets an answer")?;
        browser.expect(tab, "and gets an answer")?;
    } else {
        tcp.send("the peer says something")?;
        browser.expect(tab, "the peer says something")?;
        browser.send(tab, "and gets the answer of the page")?;
        tcp.expect("and gets the answer of the page")?;
    }
    // Either side leaves. An acceptor would be given time to answer when its connector has ended.
    if role == Operation::Accept {
        browser.call(tab, "close", json!([tab, 1000]))?;
        tcp.expect_end()?;
    } else {
        tcp.finish()?;
    }
    let closed = browser.closed(tab)?;
    ensure!(closed == ended(1000, "", true), "{closed}");
    // A ticket is good for one handshake.
    if carrier == Carrier::Ticket {
        let again = browser.try_open(tab, &url, &protocols)?;
        ensure!(again == refused(), "{again}");
    }
    Ok(secret)
}

// J-WS-1 J-WS-2
#[test]
fn pages_and_a_tcp_peer_exchange_32_mib_each_way_at_once() -> Result<()> {
    with_browser("", |gateway, browser| {
        let rendezvous = Rendezvous::create(gateway)?;
        for (tab, transport, role) in [
            ("acceptor", "ws", Operation::Accept),
            ("connector", "wss", Operation::Connect),
        ] {
            // One candidate, whatever carries the peer.
            let (path, _) = rendezvous.path(role, "wss")?;
            let (_, url) = rendezvous.path(role, transport)?;
            let protocols = offered(rendezvous.token());
            browser.open(tab, &format!("{url}{path}"), &protocols)?;
        }
        // The largest messages that the gateway takes, and small ones.
        let sending = |size: usize| json!([BULK_BYTES, size]);
        for (tab, size) in [("acceptor", WEBSOCKET_MESSAGE_BYTES), ("connector", 16_384)] {
            let mut with = vec![json!(tab)];
            with.extend(sending(size).as_array().cloned().context("an array")?);
            browser.call(tab, "startSending", Value::Array(with))?;
        }
        for (from, to) in [("acceptor", "connector"), ("connector", "acceptor")] {
            let sent = browser.call(from, "sent", json!([from]))?;
            let arrived = browser.call(to, "digest", json!([to, BULK_BYTES]))?;
            let expected = json!({ "count": BULK_BYTES, "sha256": sent });
            ensure!(arrived == expected, "from {from}: {arrived}");
        }
        rendezvous.has_relayed(BULK_BYTES, BULK_BYTES)?;
        browser.call("connector", "close", json!(["connector", 1000]))?;
        let closed = browser.closed("acceptor")?;
        ensure!(closed == ended(1000, "", true), "{closed}");

        let rendezvous = Rendezvous::create(gateway)?;
        let mut tcp = rendezvous.peer(Operation::Accept, "wss")?;
        let url = rendezvous.url(Operation::Connect, "wss")?;
        browser.open("to-tcp", &url, &offered(rendezvous.token()))?;
        let with = json!(["to-tcp", BULK_BYTES, 100_000]);
        browser.call("to-tcp", "startSending", with)?;
        let (arrived, sent) = echo_of_another_kind(&mut tcp)?;
        let from_page = browser.call("to-tcp", "sent", json!(["to-tcp"]))?;
        ensure!(from_page == arrived, "to TCP: {arrived}");
        let to_page = browser.call("to-tcp", "digest", json!(["to-tcp", BULK_BYTES]))?;
        let expected = json!({ "count": BULK_BYTES, "sha256": sent });
        ensure!(to_page == expected, "from TCP: {to_page}");
        rendezvous.has_relayed(BULK_BYTES, BULK_BYTES)
    })
}

/// Sends bulk and receives bulk at the same time; returns the digests of what came and what went.
fn echo_of_another_kind(tcp: &mut TcpPeer) -> Result<(String, String)> {
    let mut bulk = vec![0; BULK_BYTES];
    openssl::rand::rand_bytes(&mut bulk)?;
    let sent = hex::encode(openssl::sha::sha256(&bulk));
    let mut to = tcp.stream.try_clone()?;
    let sending = thread::spawn(move || to.write_all(&bulk));
    let mut arrived = vec![0; BULK_BYTES];
    tcp.stream.read_exact(&mut arrived)?;
    sending.join().ok().context("the sending thread")??;
    Ok((hex::encode(openssl::sha::sha256(&arrived)), sent))
}

// J-WS-1
#[test]
fn a_page_is_told_why_its_session_ended() -> Result<()> {
    workspace::run(|workspace| {
        let authority = Authority::certify(workspace, &NAMES)?;
        let mut gateway =
            Gateway::start_for_peers(workspace, &authority, "[session]\ndrain_s = 0\n")?;
        let mut browser = Browser::start(workspace, &authority)?;
        let long = (1009, "message too long");
        for (tab, function, with, (code, reason)) in [
            (
                "text",
                "sendText",
                json!("hello"),
                (1003, "binary messages only"),
            ),
            ("long", "sendLong", json!(WEBSOCKET_MESSAGE_BYTES + 1), long),
            // The page still sends when it is told.
            (
                "far-too-long",
                "sendLong",
                json!(16 * WEBSOCKET_MESSAGE_BYTES),
                long,
            ),
        ] {
            let rendezvous = Rendezvous::create(&gateway)?;
            let mut tcp = pair(&mut browser, tab, &rendezvous)?;
            browser.call(tab, function, json!([tab, with]))?;
            expect_close(&mut browser, tab, code, reason)?;
            // Chromium sends long messages in fragments, and those that came before are passed on.
            let mut before = Vec::new();
            tcp.stream.read_to_end(&mut before)?;
            ensure!(before.len() <= WEBSOCKET_MESSAGE_BYTES, "{tab}");
        }
        // The same of a page that nobody has met yet.
        let rendezvous = Rendezvous::create(&gateway)?;
        let url = rendezvous.url(Operation::Accept, "wss")?;
        browser.open("alone", &url, &offered(rendezvous.token()))?;
        browser.call("alone", "sendText", json!(["alone", "hello"]))?;
        expect_close(&mut browser, "alone", 1003, "binary messages only")?;
        // What is not granted after all: the token says that SSH is spoken.
        let rendezvous = Rendezvous::create_for(&gateway, &["--jet-ap", "ssh"])?;
        let _tcp = rendezvous.peer(Operation::Accept, "wss")?;
        let url = rendezvous.url(Operation::Connect, "wss")?;
        browser.open("not-ssh", &url, &offered(rendezvous.token()))?;
        browser.send("not-ssh", "GET / HTTP/1.1")?;
        expect_close(&mut browser, "not-ssh", 1008, "not granted")?;
        // A peer that breaks off, as one that crashes.
        let rendezvous = Rendezvous::create(&gateway)?;
        pair(&mut browser, "broken", &rendezvous)?.reset()?;
        expect_close(&mut browser, "broken", 1011, "the other side broke off")?;
        // An operator ends the session.
        let rendezvous = Rendezvous::create(&gateway)?;
        let _tcp = pair(&mut browser, "ended", &rendezvous)?;
        rendezvous.delete()?;
        expect_close(&mut browser, "ended", 1001, "ended by the gateway")?;

        let rendezvous = Rendezvous::create(&gateway)?;
        let _tcp = pair(&mut browser, "stopped", &rendezvous)?;
        let waiting = Rendezvous::create(&gateway)?;
        let url = waiting.url(Operation::Accept, "wss")?;
        browser.open("waiting", &url, &offered(waiting.token()))?;
        drop((rendezvous, waiting));
        gateway.stop();
        for tab in ["stopped", "waiting"] {
            expect_close(&mut browser, tab, 1001, "ended by the gateway")?;
        }
        browser.end()
    })
}

/// A browser tells scripts nothing of a handshake that failed, lest they learn of other sites.
#[test]
fn a_page_learns_of_a_refusal_only_that_there_is_no_connection() -> Result<()> {
    with_browser("", |gateway, browser| {
        let rendezvous = Rendezvous::create(gateway)?;
        let other = Rendezvous::create(gateway)?;
        let url = rendezvous.url(Operation::Accept, "wss")?;
        let unknown = url.replace("/jet/accept/", "/jet/connect/");
        let good = offered(rendezvous.token());
        let cases = [
            ("no token", &url, Vec::new()),
            ("no token beside the protocol", &url, vec!["jet".to_owned()]),
            ("the token of another", &url, offered(other.token())),
            (
                "a forged token",
                &url,
                offered("eyJhbGciOiJFUzI1NiJ9.e30.AAAA"),
            ),
            ("nobody to connect to", &unknown, good.clone()),
        ];
        for (what, url, protocols) in cases {
            let opened = browser.try_open(what, url, &protocols)?;
            ensure!(opened == refused(), "{what}: {opened}");
        }
        ensure!(gateway.logged("Rendezvous refused")?.len() == 5);
        // It was not the page's fault.
        browser.open("good", &url, &good)?;
        Ok(())
    })
}

/// Scripts of other sites have nothing to show: the gateway takes no cookies, and no browser lets them send a header.
#[test]
fn a_page_of_another_site_cannot_use_the_rest_interface() -> Result<()> {
    with_browser("", |gateway, browser| {
        let rendezvous = Rendezvous::create(gateway)?;
        let before = gateway.request("GET /jet/association", crate::lab::gateway::API_KEY)?;
        let site = rendezvous.path(Operation::Accept, "wss")?.1;
        let site = site.replace("wss://", "https://");
        let url = format!("{site}/jet/association/{}", uuid::Uuid::new_v4());
        let token = format!("Bearer {}", rendezvous.token());
        let asked = json!({ "method": "POST", "headers": { "Authorization": token } });
        let answer = browser.call("cors", "fetch", json!([url, asked]))?;
        ensure!(answer == json!({ "refused": "TypeError" }), "{answer}");
        let blind = json!({ "method": "POST", "mode": "no-cors", "credentials": "include" });
        let answer = browser.call("blind", "fetch", json!([url, blind]))?;
        ensure!(
            answer == json!({ "type": "opaque", "status": 0 }),
            "{answer}"
        );
        let after = gateway.request("GET /jet/association", crate::lab::gateway::API_KEY)?;
        ensure!(before == after, "{before} {after}");
        Ok(())
    })
}

#[test]
fn pages_of_other_sites_are_refused_where_origins_are_configured() -> Result<()> {
    let origins = format!("[jet]\norigins = [\"{APP}\"]\n");
    with_browser(&origins, |gateway, browser| {
        let rendezvous = Rendezvous::create(gateway)?;
        let url = rendezvous.url(Operation::Accept, "wss")?;
        let protocols = offered(rendezvous.token());
        for tab in ["own", "https://evil.example"] {
            let opened = browser.try_open(tab, &url, &protocols)?;
            ensure!(opened == refused(), "{tab}: {opened}");
        }
        for line in gateway.logged("Rendezvous refused")? {
            ensure!(line.field("rule").as_deref() == Some("origin"), "{line:?}");
        }
        browser.open(APP, &url, &protocols)?;
        let mut tcp = rendezvous.peer(Operation::Connect, "wss")?;
        tcp.send("hello")?;
        browser.expect(APP, "hello")
    })
}

/// Runs a test with a gateway, `further` at the end of its configuration, and a browser.
fn with_browser(
    further: &str,
    test: impl FnOnce(&Gateway, &mut Browser) -> Result<()>,
) -> Result<()> {
    workspace::run(|workspace: &Workspace| {
        let authority = Authority::certify(workspace, &NAMES)?;
        let gateway = Gateway::start_for_peers(workspace, &authority, further)?;
        let mut browser = Browser::start(workspace, &authority)?;
        test(&gateway, &mut browser)?;
        browser.end()
    })
}

/// A page that connects over wss to a TCP peer, both having spoken.
fn pair(browser: &mut Browser, tab: &str, rendezvous: &Rendezvous<'_>) -> Result<TcpPeer> {
    let mut tcp = rendezvous.peer(Operation::Accept, "tcp")?;
    let (path, _) = rendezvous.path(Operation::Connect, "tcp")?;
    let (_, url) = rendezvous.path(Operation::Connect, "wss")?;
    browser.open(tab, &format!("{url}{path}"), &offered(rendezvous.token()))?;
    browser.send(tab, "there")?;
    tcp.expect("there")?;
    tcp.send("here")?;
    browser.expect(tab, "here")?;
    Ok(tcp)
}

/// Waits until the connection of `tab` is closed for this reason.
fn expect_close(browser: &mut Browser, tab: &str, code: u16, reason: &str) -> Result<()> {
    let closed = browser.closed(tab)?;
    ensure!(
        closed["code"] == code && closed["reason"] == reason,
        "{tab}: {closed}"
    );
    Ok(())
}

/// URL and sub-protocols of a page, and the secret among them.
fn shown(
    rendezvous: &Rendezvous<'_>,
    transport: &str,
    carrier: Carrier,
    role: Operation,
) -> Result<(String, Vec<String>, String)> {
    let url = rendezvous.url(role, transport)?;
    let token = rendezvous.token().to_owned();
    Ok(match carrier {
        Carrier::SubProtocol => (url, offered(&token), token),
        Carrier::Ticket => {
            let ticket = rendezvous.ticket()?;
            (format!("{url}?ticket={ticket}"), Vec::new(), ticket)
        }
    })
}

fn offered(token: &str) -> Vec<String> {
    vec!["jet".to_owned(), format!("bearer.{token}")]
}

/// A CloseEvent.
fn ended(code: u16, reason: &str, clean: bool) -> Value {
    json!({ "code": code, "reason": reason, "clean": clean })
}

/// All that a page learns of a handshake that failed.
fn refused() -> Value {
    json!({ "opened": false, "errors": 1, "closed": ended(1006, "", false) })
}

const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// The origin of the operator's own application.
const APP: &str = "https://app.example";

const BULK_BYTES: usize = 32 * 1024 * 1024;
