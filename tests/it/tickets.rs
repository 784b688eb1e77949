//! Tickets and restarts, with the real program: what a client carries that carries nothing else.

use std::fs;
use std::net::SocketAddr;

use jetway::rdp::negotiation::ConnectionConfirm;
use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
use jetway::token::key::Key;
use jetway::token::mint::{self, SigningKey};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{CLIENT_HELLO, Lab, SELECTED_TLS, Target, confirm, request, within};
use crate::process::{Served, configure, log, wait_until};

/// `HYBRID_REQUIRED_BY_SERVER`: what the client carries is the problem.
const REFUSED: ConnectionConfirm = ConnectionConfirm::Failure { code: 5 };

const OPERATOR: &str = "operator-secret";

/// A gateway's folder and port; the gateway itself comes and goes.
struct Site {
    folder: tempfile::TempDir,
    address: SocketAddr,
    signing: Key,
    target: Target,
}

impl Site {
    async fn new() -> Self {
        Self::with_session("").await
    }

    /// With more of the `[session]` table.
    async fn with_session(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let digest = hex::encode(openssl::sha::sha256(OPERATOR.as_bytes()));
        let address = configure(
            folder.path(),
            &format!(
                "revoked = \"revoked.json\"\n[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n\
                 [session]\ndrain_s = 0\n{more}[egress]\nallow = [{{ cidr = \"127.0.0.0/8\" }}]\n"
            ),
        );
        let signing = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        let public = signing.public_pem().unwrap();
        fs::write(folder.path().join("sign.pub.pem"), public).unwrap();
        fs::write(folder.path().join("revoked.json"), "{}").unwrap();
        Self {
            folder,
            address,
            signing,
            target: Target::start().await,
        }
    }

    fn start(&self) -> Served {
        Served::start(self.folder.path(), self.address, 256)
    }

    fn token(&self, changes: Value) -> String {
        let key = SigningKey::from_key(&self.signing, None).unwrap();
        let claims = Lab::claims(self.target.address, changes);
        mint::mint(&claims, Some(&key), None).unwrap()
    }

    async fn ticket(&self, token: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "POST /jet/tickets HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 201"), "{text}");
        let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        body["ticket"].as_str().unwrap().to_owned()
    }

    /// Asks for the end of the live session.
    async fn end_sessions(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let ask = |what: &str| {
            format!(
                "{what} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {OPERATOR}\r\nConnection: close\r\n\r\n"
            )
        };
        let list = ask("GET /jet/sessions");
        stream.write_all(list.as_bytes()).await.unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        let rows: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        let path = format!("DELETE /jet/sessions/{}", rows[0]["id"].as_str().unwrap());
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(ask(&path).as_bytes()).await.unwrap();
        stream
    }

    /// A client that has nothing but a ticket, and what it hears.
    async fn open_with_ticket(&self, ticket: &str) -> (TcpStream, ConnectionConfirm) {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let bytes = request(Some(ticket)).encode().unwrap();
        client.write_all(&bytes).await.unwrap();
        let confirm = confirm(&mut client).await;
        (client, confirm)
    }

    /// Waits until the log gives this reason.
    fn wait_for_log(&self, reason: &str) {
        wait_until(|| log(self.folder.path()).contains(reason));
    }
}

#[tokio::test]
async fn tickets_outlive_the_process_however_it_ends() {
    let site = Site::new().await;
    for signal in [Signal::TERM, Signal::KILL] {
        let mut served = site.start();
        let waiting = site.ticket(&site.token(json!({}))).await;
        let returning = site.ticket(&site.token(json!({ "jet_reuse": 60 }))).await;
        let spent = site.ticket(&site.token(json!({ "jet_reuse": 0 }))).await;
        let (first, confirm) = site.open_with_ticket(&returning).await;
        assert_eq!(confirm, SELECTED_TLS);
        let (second, confirm) = site.open_with_ticket(&spent).await;
        assert_eq!(confirm, SELECTED_TLS);
        served.signal(signal);
        served.0.wait().unwrap();
        drop((first, second));

        let served = site.start();
        let (_live, confirm) = site.open_with_ticket(&waiting).await;
        assert_eq!(
            confirm,
            SELECTED_TLS,
            "{signal:?}: {}",
            log(site.folder.path())
        );
        let (_live, confirm) = site.open_with_ticket(&returning).await;
        assert_eq!(
            confirm,
            SELECTED_TLS,
            "{signal:?}: {}",
            log(site.folder.path())
        );
        assert_eq!(site.open_with_ticket(&spent).await.1, REFUSED, "{signal:?}");
        site.wait_for_log("the token was used already");
        drop(served);
    }
}

/// It is on disk before anybody can see it.
#[tokio::test]
async fn what_is_ended_for_good_stays_so_though_the_process_is_killed_as_soon_as_that_is_seen() {
    for (limit, operator) in [
        ("idle_timeout_s = 1\n", false),
        ("time_limit_s = 1\n", false),
        ("", true),
    ] {
        let site = Site::with_session(limit).await;
        for _ in 0..2 {
            let mut served = site.start();
            let ticket = site.ticket(&site.token(json!({ "jet_reuse": 60 }))).await;
            let (mut client, confirm) = site.open_with_ticket(&ticket).await;
            assert_eq!(confirm, SELECTED_TLS);
            client.write_all(CLIENT_HELLO).await.unwrap();
            // An operator does not wait for the answer here.
            let asked = if operator {
                Some(site.end_sessions().await)
            } else {
                None
            };
            let mut rest = Vec::new();
            let _end = within(client.read_to_end(&mut rest)).await;
            served.signal(Signal::KILL);
            served.0.wait().unwrap();
            drop(asked);
            let served = site.start();
            assert_eq!(site.open_with_ticket(&ticket).await.1, REFUSED, "{limit}");
            site.wait_for_log("the token was used already");
            drop(served);
        }
    }
}

#[tokio::test]
async fn a_revocation_holds_for_tickets_that_outlive_a_restart() {
    let site = Site::new().await;
    let served = site.start();
    let ticket = site.ticket(&site.token(json!({ "jti": "lost" }))).await;
    drop(served);
    let revoked = site.folder.path().join("revoked.json");
    fs::write(revoked, json!({ "jti": ["lost"] }).to_string()).unwrap();
    let _served = site.start();
    assert_eq!(site.open_with_ticket(&ticket).await.1, REFUSED);
    site.wait_for_log("the token was revoked by its jti");
    assert_eq!(site.target.connections(), 0);
}
