//! The log of the real process: bounded whoever floods it, never in the way of a session, and safe to look at.

use std::fs;
use std::io::{PipeReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use jetway::limits;
use jetway::rdp::preconnection;
use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
use jetway::token::mint::{self, SigningKey};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::lab::{Lab, SELECTED_TLS, Target, confirm, failure, request, within};
use crate::process::{JETWAY, Served, configure, is_healthy, log, wait_until};

/// A connection from `source`, one of the addresses of loopback.
async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(source.parse().unwrap(), 0))
        .unwrap();
    socket.connect(address).await.unwrap()
}

/// So many requests with a wrong API key on one connection from `source`; each is refused.
async fn refused_requests(source: &str, address: SocketAddr, times: usize) {
    let mut stream = connect_from(source, address).await;
    let get = "GET /jet/sessions HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer guess\r\n\r\n";
    let last = get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let (mut read, mut write) = stream.split();
    let mut answers = Vec::new();
    let write = async {
        write
            .write_all(get.repeat(times - 1).as_bytes())
            .await
            .unwrap();
        write.write_all(last.as_bytes()).await.unwrap();
    };
    let (_, read) = within(async { tokio::join!(write, read.read_to_end(&mut answers)) }).await;
    read.unwrap();
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 401").count(), times);
}

/// Lines with this message, and the sum of those like it that are told to be missing.
fn shown_and_suppressed(log: &str, message: &str, peer: &str) -> (u64, u64) {
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let from_peer = |line: &&Value| {
        line["peer"]
            .as_str()
            .is_some_and(|text| text.starts_with(peer))
    };
    let shown = lines
        .iter()
        .filter(|line| line["message"] == message)
        .filter(from_peer)
        .count();
    let suppressed = lines
        .iter()
        .filter(|line| line["message"] == "Log lines suppressed" && line["of"] == message)
        .filter(from_peer)
        .map(|line| line["lines"].as_u64().unwrap())
        .sum();
    (u64::try_from(shown).unwrap(), suppressed)
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_one_address_are_bounded_and_counted_and_another_is_still_heard() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let mut served = Served::start(folder.path(), address, 1024);
    let (requests, connections) = (3000, 300);
    refused_requests("127.0.0.1", address, requests).await;
    for _ in 0..connections {
        let mut client = connect_from("127.0.0.1", address).await;
        let mut bytes = preconnection::encode_v2(0, "eyJhbGciOiJFUzI1NiJ9.e30.AAAA").unwrap();
        bytes.extend(request(None).encode().unwrap());
        client.write_all(&bytes).await.unwrap();
        failure(&mut client).await;
    }
    refused_requests("127.0.0.2", address, 1).await;
    served.signal(Signal::TERM);
    assert!(served.0.wait().unwrap().success());
    let log = log(folder.path());
    let most = limits::LOG_LINES_OF_ANYBODY.burst + 60;
    for (message, times) in [
        ("Request refused", requests),
        ("Session refused", connections),
    ] {
        let (shown, suppressed) = shown_and_suppressed(&log, message, "127.0.0.1");
        assert!(shown <= most, "{message}: {shown}");
        assert_eq!(
            shown + suppressed,
            u64::try_from(times).unwrap(),
            "{message}"
        );
    }
    assert_eq!(
        shown_and_suppressed(&log, "Request refused", "127.0.0.2"),
        (1, 0)
    );
    assert!(log.contains("\"Stopped\""), "the last lines are written");
}

/// Starts the gateway with a standard error that nobody reads.
fn serve_into_a_pipe(folder: &Path) -> (Served, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let child = Command::new(JETWAY)
        .arg("serve")
        .arg("--config")
        .arg(folder.join("jetway.toml"))
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    (Served(child), reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_no_session_and_what_was_lost_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(
        folder.path(),
        "[egress]\nallow = [{ cidr = \"127.0.0.0/8\" }]\n",
    );
    let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
    fs::write(
        folder.path().join("sign.pub.pem"),
        key.public_pem().unwrap(),
    )
    .unwrap();
    let (mut served, mut reader) = serve_into_a_pipe(folder.path());
    wait_until(|| is_healthy(address));
    let target = Target::start().await;
    let session = async || {
        let signing = SigningKey::from_key(&key, None).unwrap();
        let claims = Lab::claims(target.address, json!({}));
        let token = mint::mint(&claims, Some(&signing), None).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut bytes = preconnection::encode_v2(0, &token).unwrap();
        bytes.extend(request(None).encode().unwrap());
        client.write_all(&bytes).await.unwrap();
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client
    };
    let echoes = async |client: &mut TcpStream| {
        let mut echo = [0; crate::lab::CLIENT_HELLO.len()];
        client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
        within(client.read_exact(&mut echo)).await.unwrap();
    };
    let mut old = session().await;
    echoes(&mut old).await;
    // More than the pipe and the queue hold, within the limits of each address.
    let (addresses, times) = (48, 100);
    for n in 0..addresses {
        refused_requests(&format!("127.0.1.{}", n + 1), address, times).await;
    }
    echoes(&mut old).await;
    let mut new = session().await;
    echoes(&mut new).await;
    // The log is read again, and tells what is missing.
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    drop((old, new));
    served.signal(Signal::TERM);
    assert!(served.0.wait().unwrap().success());
    let log = read.join().unwrap();
    let (shown, suppressed) = shown_and_suppressed(&log, "Request refused", "127.0.1.");
    let lost: u64 = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| {
            line["message"]
                .as_str()
                .unwrap()
                .starts_with("Log lines lost")
        })
        .map(|line| line["lines"].as_u64().unwrap())
        .sum();
    assert!(lost > 0, "{} bytes of log", log.len());
    let caused = addresses * u64::try_from(times).unwrap();
    assert!(
        shown + suppressed + lost >= caused,
        "{shown} shown, {suppressed} suppressed, {lost} lost of {caused}"
    );
    assert!(log.contains("\"Stopped\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_log_is_stuck_ends_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let (mut served, _unread) = serve_into_a_pipe(folder.path());
    wait_until(|| is_healthy(address));
    refused_requests("127.0.0.1", address, 90).await;
    served.signal(Signal::TERM);
    let mut status = None;
    wait_until(|| {
        status = served.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_with_control_characters_reaches_neither_form_of_the_log_raw() {
    for format in ["human", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let address = configure(
            folder.path(),
            &format!("[log]\nformat = \"{format}\"\n[jet]\norigins = [\"https://good.example\"]\n"),
        );
        let mut served = Served::start(folder.path(), address, 256);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let id = uuid::Uuid::new_v4();
        let request = format!(
            "GET /jet/connect/{id}/{id} HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Origin: https://\u{9b}2J\u{202e}evil\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        within(stream.read_exact(&mut first)).await.unwrap();
        served.signal(Signal::TERM);
        assert!(served.0.wait().unwrap().success());
        let log = log(folder.path());
        assert!(log.contains("evil"), "{log}");
        assert!(!log.contains(['\u{9b}', '\u{202e}']), "{format}: {log:?}");
    }
}
