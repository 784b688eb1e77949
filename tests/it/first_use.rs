//! Trust on first use: a target proves itself before it is remembered, and before it is shown credentials.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jetway::rdp::connection_request::{self, PROTOCOL_HYBRID, PROTOCOL_SSL};
use jetway::rdp::credssp::server::{LogonServer, Progress};
use jetway::rdp::credssp::{SubjectPublicKeyInfo, frame_length};
use jetway::rdp::negotiation::ConnectionConfirm;
use jetway_lab::certificate;
use jetway_lab::tls::{server_config, thumbprint};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, client::TlsStream};

use crate::agent::{Branch, NAME};
use crate::behind::behind;
use crate::lab::{
    Lab, Sealing, confirm, failure, forget_log, log, logged, logged_times, opened, path,
};
use crate::proof::{offering, send, tls};

const PASSWORD: &str = "correct horse";

/// `SSL_CERT_NOT_ON_SERVER`.
const NOT_TO_BE_HAD: u32 = 3;

/// One certificate with its key.
struct Identity {
    tls: Arc<ServerConfig>,
    public_key: Vec<u8>,
    thumbprint: String,
}

impl Identity {
    fn new() -> Self {
        let identity = certificate::Identity::self_signed(&["desk.test"]);
        let info = SubjectPublicKeyInfo::of_certificate(identity.certificate()).unwrap();
        Self {
            tls: server_config(&identity),
            public_key: info.key.to_vec(),
            thumbprint: thumbprint(&identity),
        }
    }
}

/// An address at which an impostor answers, who has TLS alone, or the desktop, which knows its user's password.
struct Spot {
    address: SocketAddr,
    impostor: Arc<Identity>,
    desktop: Arc<Identity>,
    is_taken: Arc<AtomicBool>,
    /// What the impostor was told past its Connection Confirm.
    told: Arc<Mutex<Vec<u8>>>,
}

impl Spot {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let spot = Self {
            address: listener.local_addr().unwrap(),
            impostor: Arc::new(Identity::new()),
            desktop: Arc::new(Identity::new()),
            is_taken: Arc::new(AtomicBool::new(true)),
            told: Arc::default(),
        };
        let (impostor, desktop) = (Arc::clone(&spot.impostor), Arc::clone(&spot.desktop));
        let (is_taken, told) = (Arc::clone(&spot.is_taken), Arc::clone(&spot.told));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if is_taken.load(Ordering::SeqCst) {
                    tokio::spawn(cheat(stream, Arc::clone(&impostor), Arc::clone(&told)));
                } else {
                    tokio::spawn(serve(stream, Arc::clone(&desktop)));
                }
            }
        });
        spot
    }

    fn is_taken(&self, is_taken: bool) {
        self.is_taken.store(is_taken, Ordering::SeqCst);
    }
}

async fn negotiate(stream: &mut TcpStream, protocol: u32) {
    let mut bytes = Vec::new();
    while connection_request::decode(&bytes).unwrap().is_none() {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    let confirm = ConnectionConfirm::Selected { flags: 0, protocol };
    stream.write_all(&confirm.encode()).await.unwrap();
}

async fn cheat(mut stream: TcpStream, identity: Arc<Identity>, told: Arc<Mutex<Vec<u8>>>) {
    negotiate(&mut stream, PROTOCOL_SSL).await;
    let mut first = [0];
    if stream.peek(&mut first).await.unwrap_or(0) == 0 {
        return;
    }
    told.lock().unwrap().extend(first);
    let accept = TlsAcceptor::from(Arc::clone(&identity.tls)).accept(stream);
    let Ok(mut stream) = accept.await else {
        return;
    };
    let mut bytes = Vec::new();
    let _end = stream.read_to_end(&mut bytes).await;
    told.lock().unwrap().extend(bytes);
}

async fn serve(mut stream: TcpStream, identity: Arc<Identity>) {
    let mut first = [0; 64];
    let length = stream.peek(&mut first).await.unwrap();
    // Windows takes TLS alone from who offers nothing else, where it is so configured.
    let offers_nla = first[..length].last().is_some() && {
        let asked = connection_request::decode(&first[..length]).unwrap();
        asked.is_some_and(|(asked, _)| asked.negotiation.unwrap().offers(PROTOCOL_HYBRID))
    };
    let protocol = if offers_nla {
        PROTOCOL_HYBRID
    } else {
        PROTOCOL_SSL
    };
    negotiate(&mut stream, protocol).await;
    let accept = TlsAcceptor::from(Arc::clone(&identity.tls)).accept(stream);
    let Ok(mut stream) = accept.await else {
        return;
    };
    if offers_nla {
        let password = SecretString::from(PASSWORD);
        let mut logon = LogonServer::new(&identity.public_key, "alice", &password);
        loop {
            let mut frame = Vec::new();
            while frame_length(&frame).unwrap() != Some(frame.len()) {
                if stream.read_buf(&mut frame).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            match logon.process(&frame).unwrap() {
                Progress::Reply(reply) => stream.write_all(&reply).await.unwrap(),
                Progress::Finished => break,
            }
        }
    }
    let _end = stream.read_to_end(&mut Vec::new()).await;
}

/// A gateway that trusts on first use and looks into every session.
fn site(further: &str) -> (Branch, Sealing) {
    let sealing = Sealing::new();
    let further = format!(
        "{}[session]\ninspect = \"always\"\n[target]\nverify = \"first-use\"\n{further}",
        sealing.table
    );
    (Branch::start_with(&further), sealing)
}

fn with_credentials(site: &Branch, sealing: &Sealing, spot: &Spot) -> String {
    let changes = json!({ "dst_usr": "alice", "dst_pwd": PASSWORD });
    sealing.token(&site.lab, &Lab::claims(spot.address, changes))
}

fn without_credentials(site: &Branch, spot: &Spot) -> String {
    site.lab.token(spot.address, json!({}))
}

async fn begin(site: &Branch, token: &str) -> TcpStream {
    send(&site.lab, Some(token), &offering(PROTOCOL_SSL, 0, None)).await
}

/// A client whose session is secured, and what the log says of it.
async fn secured(site: &Branch, token: &str) -> (TlsStream<TcpStream>, Value) {
    forget_log();
    let mut stream = begin(site, token).await;
    confirm(&mut stream).await;
    let stream = tls(stream).await;
    let line = opened(1).await.remove(0);
    (stream, line)
}

/// Why a client is not let in whose own leg stands.
async fn let_go(site: &Branch, token: &str) -> Value {
    forget_log();
    let mut stream = begin(site, token).await;
    confirm(&mut stream).await;
    // It does not wait to be told.
    drop(tls(stream).await);
    logged("Session refused").await
}

fn pins(site: &Branch) -> Vec<String> {
    let text = std::fs::read_to_string(path(&site.lab, "jetway.pins")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_with_tls_alone_gets_nothing_and_the_desktop_is_let_in_after_it() {
    let ((mut site, sealing), spot) = (site(""), Spot::start().await);
    for _ in 0..2 {
        forget_log();
        let token = with_credentials(&site, &sealing, &spot);
        let mut client = begin(&site, &token).await;
        assert_eq!(failure(&mut client).await, NOT_TO_BE_HAD);
        let line = logged("Session refused").await;
        assert_eq!(line["rule"], "target-certificate");
        let reason = line["reason"].as_str().unwrap();
        let listed = format!("target.tls_only as \"{}\"", spot.address);
        for way in [
            "cert_thumb256",
            "target.pins",
            "target.verify = \"ca\"",
            &listed,
        ] {
            assert!(reason.contains(way), "{way}: {reason}");
        }
    }
    assert_eq!(*spot.told.lock().unwrap(), b"", "not even a ClientHello");
    assert!(pins(&site).is_empty());

    spot.is_taken(false);
    let token = with_credentials(&site, &sealing, &spot);
    let (client, line) = secured(&site, &token).await;
    assert_eq!(
        (&line["target_logon"], &line["first_use"]),
        (&json!("ntlm"), &json!(true))
    );
    drop(client);
    let proven = format!("{} {}", spot.address, spot.desktop.thumbprint);
    assert_eq!(pins(&site), [proven.as_str()]);

    // From now on it is known, by whatever it proves itself, now and after a restart.
    spot.is_taken(true);
    for restarted in [false, true] {
        if restarted {
            site.lab.restart().await;
        }
        for token in [
            with_credentials(&site, &sealing, &spot),
            without_credentials(&site, &spot),
        ] {
            let line = let_go(&site, &token).await;
            assert_eq!(line["rule"], "target-certificate", "{line}");
            let reason = line["reason"].as_str().unwrap();
            let file = path(&site.lab, "jetway.pins");
            for words in [
                format!("remembered in {}", file.display()),
                format!("remove the line \"{}\"", spot.address),
                spot.desktop.thumbprint.clone(),
                spot.impostor.thumbprint.clone(),
            ] {
                assert!(reason.contains(&words), "{words}: {reason}");
            }
        }
    }
    assert_eq!(pins(&site), [proven]);
    let told = spot.told.lock().unwrap().clone();
    assert!(
        told.iter().all(|byte| *byte == 0x16),
        "more than TLS: {told:?}"
    );
    assert!(!log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_was_set_up_anew_is_let_in_when_its_line_is_removed_and_no_session_ends() {
    let ((site, sealing), [spot, other]) = (site(""), [Spot::start().await, Spot::start().await]);
    other.is_taken(false);
    let (mut live, _) = secured(&site, &with_credentials(&site, &sealing, &other)).await;
    let file = path(&site.lab, "jetway.pins");
    let line = format!("{} {}\n", spot.address, spot.impostor.thumbprint);
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{kept}{line}")).unwrap();
    spot.is_taken(false);
    logged("File of pins reloaded").await;
    let token = with_credentials(&site, &sealing, &spot);
    assert_eq!(let_go(&site, &token).await["rule"], "target-certificate");

    // Half of a line, and then no file at all, forget nothing.
    std::fs::write(&file, &line[..line.len() / 2]).unwrap();
    logged("The file of pins was not reloaded, the old pins stay").await;
    std::fs::remove_file(&file).unwrap();
    logged_times("The file of pins was not reloaded, the old pins stay", 2).await;
    let token = with_credentials(&site, &sealing, &spot);
    assert_eq!(let_go(&site, &token).await["rule"], "target-certificate");

    std::fs::write(&file, &kept).unwrap();
    logged("File of pins reloaded").await;
    let (client, line) = secured(&site, &with_credentials(&site, &sealing, &spot)).await;
    assert_eq!(line["first_use"], true);
    drop(client);
    let closed = timeout(Duration::from_millis(200), live.read(&mut [0])).await;
    assert!(closed.is_err(), "the other session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_impostor_plants_without_credentials_neither_gets_them_nor_keeps_the_desktop_out() {
    let ((mut site, sealing), spot) = (site(""), Spot::start().await);
    let (client, line) = secured(&site, &without_credentials(&site, &spot)).await;
    assert_eq!(line["first_use"], true);
    drop(client);
    let unproven = format!("unproven {} {}", spot.address, spot.impostor.thumbprint);
    assert_eq!(pins(&site), [unproven.as_str()]);

    site.lab.restart().await;
    let token = with_credentials(&site, &sealing, &spot);
    assert_eq!(
        failure(&mut begin(&site, &token).await).await,
        NOT_TO_BE_HAD
    );

    // Among sessions without credentials the first one is remembered.
    spot.is_taken(false);
    let line = let_go(&site, &without_credentials(&site, &spot)).await;
    assert_eq!(line["rule"], "target-certificate");
    let planted = format!("remove the line \"unproven {}\"", spot.address);
    assert!(
        line["reason"].as_str().unwrap().contains(&planted),
        "{line}"
    );
    let (client, _) = secured(&site, &with_credentials(&site, &sealing, &spot)).await;
    drop(client);
    let proven = format!("{} {}", spot.address, spot.desktop.thumbprint);
    assert_eq!(pins(&site), [unproven, proven]);
    for restarted in [false, true] {
        if restarted {
            site.lab.restart().await;
        }
        spot.is_taken(false);
        drop(secured(&site, &without_credentials(&site, &spot)).await);
        spot.is_taken(true);
        let line = let_go(&site, &without_credentials(&site, &spot)).await;
        assert_eq!(line["rule"], "target-certificate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_tls_alone_is_let_in_by_its_pin_or_its_name_on_the_list() {
    let (spot, other) = (Spot::start().await, Spot::start().await);
    let listed = format!("tls_only = [\"{}\"]\n", spot.address);
    let (site, sealing) = site(&listed);
    assert!(log().contains("without CredSSP (target.tls_only)"));
    let (client, line) = secured(&site, &with_credentials(&site, &sealing, &spot)).await;
    assert_eq!(
        (&line["target_logon"], &line["first_use"]),
        (&json!("none"), &json!(true))
    );
    drop(client);
    let (client, line) = secured(&site, &with_credentials(&site, &sealing, &spot)).await;
    assert_eq!(line["first_use"], false);
    drop(client);
    // Its first certificate is the one that counts.
    spot.is_taken(false);
    let line = let_go(&site, &with_credentials(&site, &sealing, &spot)).await;
    assert_eq!(line["rule"], "target-certificate");

    // Who is not on it needs a pin.
    let token = with_credentials(&site, &sealing, &other);
    assert_eq!(
        failure(&mut begin(&site, &token).await).await,
        NOT_TO_BE_HAD
    );
    let changes = json!({
        "dst_usr": "alice", "dst_pwd": PASSWORD, "cert_thumb256": other.impostor.thumbprint,
    });
    let pinned = sealing.token(&site.lab, &Lab::claims(other.address, changes));
    drop(secured(&site, &pinned).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_behind_an_agent_gets_nothing_either() {
    let spot = Spot::start().await;
    // The same address elsewhere is another target.
    let listed = format!("tls_only = [\"{}\"]\n", spot.address);
    let (site, sealing) = site(&listed);
    let _stop = site.with_agent(&[spot.address]).await;
    let logon = json!({ "dst_usr": "alice", "dst_pwd": PASSWORD });
    let token = || behind(&site, &sealing, spot.address, logon.clone());
    assert_eq!(
        failure(&mut begin(&site, &token()).await).await,
        NOT_TO_BE_HAD
    );
    let line = logged("Session refused").await;
    let reason = line["reason"].as_str().unwrap();
    let listed = format!("target.tls_only as \"agent {NAME} {}\"", spot.address);
    assert!(reason.contains(&listed), "{reason}");
    assert_eq!(*spot.told.lock().unwrap(), b"");
    spot.is_taken(false);
    drop(secured(&site, &token()).await);
    let proven = format!("agent {NAME} {} {}", spot.address, spot.desktop.thumbprint);
    assert_eq!(pins(&site), [proven]);
}
