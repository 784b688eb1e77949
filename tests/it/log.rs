//! The log of the real process: bounded whoever floods it, never in the way of a session, and safe to look at.

use std::fs;
use std::io::{PipeReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use jetway::limits;
use jetway::rdp::preconnection;
use jetway::token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use jetway::token::mint::{self, EncryptionKey, SigningKey};
use jetway_lab::process::KillOnDrop;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::lab::{Lab, SELECTED_TLS, Target, confirm, failure, request, within};
use crate::process::{JETWAY, Served, configure, is_healthy, log, wait_until};

/// A gateway of its own process with an issuer's key; `refused` is its line of the next refusal.
struct Process {
    folder: tempfile::TempDir,
    address: SocketAddr,
    signing: SigningKey,
    served: Served,
}

impl Process {
    fn start(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = configure(folder.path(), extra);
        let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        let public = folder.path().join("sign.pub.pem");
        fs::write(public, key.public_pem().unwrap()).unwrap();
        let served = Served::start(folder.path(), address, 256);
        let signing = SigningKey::from_key(&key, None).unwrap();
        Self {
            folder,
            address,
            signing,
            served,
        }
    }

    fn token(&self, target: SocketAddr, changes: Value) -> String {
        mint::mint(&Lab::claims(target, changes), Some(&self.signing), None).unwrap()
    }

    async fn client(&self, token: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let mut bytes = preconnection::encode_v2(0, token).unwrap();
        bytes.extend(request(None).encode().unwrap());
        client.write_all(&bytes).await.unwrap();
        client
    }

    /// The lines so far with this message, at least one.
    fn lines(&self, message: &str) -> Vec<Value> {
        let of_message = || {
            let lines = log(self.folder.path());
            let lines = lines
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            lines
                .filter(|line: &Value| line["message"] == message)
                .collect()
        };
        let mut found: Vec<Value> = Vec::new();
        wait_until(|| {
            found = of_message();
            !found.is_empty()
        });
        found
    }

    /// Ends it; every line that it has written.
    fn ended(mut self) -> String {
        self.served.signal(Signal::TERM);
        assert!(self.served.0.wait().unwrap().success());
        log(self.folder.path())
    }
}

/// The names of an object's members as they stand in its text, each as often as it stands there.
struct Names(Vec<String>);

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut members: A,
            ) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, _)) = members.next_entry::<String, serde::de::IgnoredAny>()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_opened_and_closed_by_one_line_each_and_no_field_stands_twice() {
    let process = Process::start("[egress]\nallow = [{ cidr = \"127.0.0.0/8\" }]\n");
    let target = Target::start().await;
    let association = uuid::Uuid::new_v4().to_string();
    let token = process.token(
        target.address,
        json!({ "sub": "alice", "jti": "t-1", "jet_aid": association }),
    );
    let mut client = process.client(&token).await;
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    client.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
    let opened = process.lines("Session opened").remove(0);
    let peer = client.local_addr().unwrap().to_string();
    let address = target.address.to_string();
    for (name, value) in [
        ("peer", peer.as_str()),
        ("user", "alice"),
        ("token", "t-1"),
        ("target", &address),
        ("address", &address),
        ("jet_cm", "fwd"),
        ("jet_ap", "rdp"),
        ("jet_aid", &association),
        ("mode", "opaque"),
    ] {
        assert_eq!(opened[name], value, "{name}: {opened}");
    }
    drop(client);
    let closed = process.lines("Session closed").remove(0);
    assert_eq!(closed["session"], opened["session"]);
    // A refusal, and a line that has nothing but what its connection is called.
    failure(&mut process.client("eyJhbGciOiJFUzI1NiJ9.e30.AAAA").await).await;
    process.lines("Session refused");
    let log = process.ended();
    assert_eq!(log.matches("\"Session opened\"").count(), 1, "{log}");
    for line in log.lines() {
        let Names(mut names) = serde_json::from_str(line).unwrap();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{line}");
        let line: Value = serde_json::from_str(line).unwrap();
        let nested = line
            .as_object()
            .unwrap()
            .iter()
            .find(|(_, value)| value.is_object());
        assert!(nested.is_none(), "what a span says is said again: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_behind_a_good_signature_says_whose_token_it_is_and_dates_are_dates() {
    let process = Process::start("");
    let target = Target::start().await;
    let now = jetway::clock::unix_now().0;
    for (number, (changes, rule, words)) in [
        (
            json!({ "nbf": now - 4000, "exp": now - 3800 }),
            "expired",
            format!(
                "was valid until {}, 1 h 3 min ago",
                jetway::time::UnixTime(now - 3800)
            ),
        ),
        (
            json!({ "nbf": now + 7300, "exp": now + 7400 }),
            "not-yet-valid",
            format!(
                "is valid from {}, in 2 h 1 min",
                jetway::time::UnixTime(now + 7300)
            ),
        ),
        (
            json!({ "nbf": null, "exp": null }),
            "no-validity",
            String::new(),
        ),
        (json!({ "jet_ttl": "long" }), "claim", "jet_ttl".to_owned()),
        (
            json!({ "aud": "gw-2" }),
            "audience",
            "aud is [\"gw-2\"]".to_owned(),
        ),
        (json!({ "type": "kdc" }), "type", String::new()),
        (json!({ "jet_rec": true }), "recording", String::new()),
        (json!({}), "egress", "egress.allow".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut claims = changes;
        let id = format!("t-{number}");
        let object = claims.as_object_mut().unwrap();
        object.insert("jti".to_owned(), json!(id));
        object.insert("sub".to_owned(), json!("alice"));
        let token = process.token(target.address, claims);
        failure(&mut process.client(&token).await).await;
        let of_token = || {
            let lines = process.lines("Session refused");
            lines.into_iter().find(|line| line["token"] == id)
        };
        wait_until(|| of_token().is_some());
        let line = of_token().unwrap();
        assert_eq!(line["rule"], rule, "{line}");
        assert_eq!(line["user"], "alice", "{line}");
        assert_eq!(line["target"], target.address.to_string(), "{line}");
        assert!(
            line["reason"].as_str().unwrap().contains(&words),
            "{words}: {line}"
        );
    }
    // The target is on loopback, and what would let it through is said.
    let lines = process.lines("Session refused");
    let reason = lines.last().unwrap()["reason"].as_str().unwrap();
    assert!(reason.contains("cidr = \"127.0.0.1\""), "{reason}");
    // The same where a ticket is asked for, and by a peer of a rendezvous.
    let expired = json!({ "jti": "t-9", "sub": "alice", "nbf": now - 900, "exp": now - 600 });
    let token = process.token(target.address, expired);
    let id = uuid::Uuid::new_v4();
    for (what, message) in [
        ("POST /jet/tickets".to_owned(), "Ticket refused"),
        (format!("POST /jet/association/{id}"), "Request refused"),
    ] {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        let request = format!(
            "{what} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        within(stream.read_to_end(&mut Vec::new())).await.unwrap();
        let line = process.lines(message).remove(0);
        let told = ["token", "user", "target"].map(|name| line[name].as_str().unwrap().to_owned());
        assert_eq!(
            told,
            ["t-9", "alice", &target.address.to_string()],
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_encrypted_to_another_key_is_told_so_and_not_as_a_bad_signature() {
    let target = Target::start().await;
    let key = || mint::generate(Algorithm::KeyManagement(KeyManagement::EcdhEs)).unwrap();
    let (ours, theirs) = (key(), key());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.pem");
    fs::write(&file, ours.private_pem().unwrap().as_bytes()).unwrap();
    let with_key = format!(
        "[token]\nkeys = [{{ path = \"sign.pub.pem\", usage = \"sign\" }}, {{ path = {file:?}, usage = \"encrypt\" }}]\n"
    );
    for (extra, words) in [
        ("", "no key to decrypt with is configured"),
        (with_key.as_str(), "no configured key opens it"),
    ] {
        let process = Process::start(extra);
        let claims = Lab::claims(target.address, json!({}));
        let to = EncryptionKey::from_key(&theirs, None).unwrap();
        let token = mint::mint(&claims, Some(&process.signing), Some(&to)).unwrap();
        failure(&mut process.client(&token).await).await;
        let line = process.lines("Session refused").remove(0);
        assert_eq!(line["rule"], "decryption", "{line}");
        let reason = line["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{reason}");
        assert!(
            !reason.contains("signature") && !reason.contains("verifies"),
            "{reason}"
        );
    }
}

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
    (Served(KillOnDrop(child)), reader)
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
    let (addresses, times) = (96, 100);
    for n in 0..addresses {
        refused_requests(&format!("127.0.1.{}", n + 1), address, times).await;
    }
    echoes(&mut old).await;
    let mut new = session().await;
    echoes(&mut new).await;
    // The log is read again, and tells what is missing.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let read = std::thread::spawn(move || {
        let mut chunk = vec![0; 1 << 16];
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            hears.lock().unwrap().extend_from_slice(&chunk[..count]);
        }
    });
    // Then there is room for the last line, too.
    let told = || String::from_utf8_lossy(&heard.lock().unwrap()).contains("Log lines lost");
    wait_until(told);
    drop((old, new));
    served.signal(Signal::TERM);
    assert!(served.0.wait().unwrap().success());
    read.join().unwrap();
    let log = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
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

/// Filters as they are given for an example: in help texts, in documentation, in samples.
fn example_filters() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = crate::layers::sources(&root.join("src"));
    files.push(root.join("README.md"));
    let samples = fs::read_dir(root.join("samples")).unwrap();
    files.extend(samples.map(|entry| entry.unwrap().path()));
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    let mut filters = Vec::new();
    for text in texts {
        let words = text.split(|c: char| c.is_whitespace() || "`\"'".contains(c));
        let filters_here = words.filter(|word| word.contains(",jetway") && word.contains('='));
        filters.extend(filters_here.map(|word| word.trim_end_matches('.').to_owned()));
    }
    filters
}

#[test]
fn filters_that_are_given_as_examples_name_members_that_write_such_lines() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let filters = example_filters();
    assert!(filters.len() >= 4, "{filters:?}");
    for filter in filters {
        let (_, directive) = filter.split_once(',').unwrap();
        let (target, level) = directive.split_once('=').unwrap();
        let member = source.join(target.trim_start_matches("jetway_"));
        assert!(member.join("Cargo.toml").exists(), "{filter}");
        let line = format!("{level}!(");
        let writes = |file: &Path| fs::read_to_string(file).unwrap().contains(&line);
        let files = crate::layers::sources(&member);
        assert!(files.iter().any(|file| writes(file)), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_shows_more_of_one_part_or_of_all_of_them() {
    let of_gateway = example_filters();
    let of_gateway = of_gateway.iter().find(|filter| filter.contains("gateway"));
    let of_gateway = of_gateway.unwrap().as_str();
    for (filter, shown) in [
        ("info", false),
        (of_gateway, true),
        ("info,jetway=debug", true),
        ("info,jetway_relay=debug", false),
    ] {
        let process = Process::start(&format!("[log]\nfilter = \"{filter}\"\n"));
        // Who leaves before it has said anything is told of at DEBUG.
        drop(TcpStream::connect(process.address).await.unwrap());
        if shown {
            process.lines("Connection dropped");
        }
        let log = process.ended();
        assert_eq!(log.contains("Connection dropped"), shown, "{filter}: {log}");
    }
}
