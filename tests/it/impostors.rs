//! What a taken-over agent or gateway learns of the other side's credentials: nothing, and nobody is led to a third party.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use jetway::cli::agent::GatewayArgs;
use jetway_lab::certificate::Identity;
use jetway_lab::tls::server_config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::agent::{Branch, NAME, greeter};
use crate::lab::{Target, logged, path, within};

/// A host of somebody else, which waits for connections.
struct Attacker {
    listener: TcpListener,
    address: SocketAddr,
}

impl Attacker {
    /// At an address that is no gateway's.
    async fn start() -> Self {
        let address = (Ipv4Addr::new(127, 0, 0, 2), 0);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// Every way in which a candidate may name it.
    fn candidates(&self, known: Option<&str>) -> Vec<Value> {
        let mut urls = Vec::new();
        for transport in ["wss", "tls", "ws", "tcp"] {
            for kind in ["?ctype=relay", ""] {
                urls.push(format!("{transport}://{}{kind}", self.address));
            }
        }
        // What is reached directly is shown no token, and is no WebSocket.
        urls.push(format!("wss://{}?ctype=host", self.address));
        let urls = urls.into_iter().enumerate().map(|(number, url)| {
            let own = known.filter(|_| number == 0).map(str::to_owned);
            json!({ "id": own.unwrap_or_else(|| Uuid::new_v4().to_string()), "url": url })
        });
        urls.collect()
    }

    /// Fails if anybody has connected: whoever has, comes before one that connects now.
    async fn saw_nobody(&self) {
        let ours = TcpStream::connect(self.address).await.unwrap();
        let (_, first) = within(self.listener.accept()).await.unwrap();
        assert_eq!(first, ours.local_addr().unwrap(), "somebody was led here");
    }
}

/// `jetway connect`, with its errors to be read.
fn connect(gateway: &GatewayArgs, token_file: &std::path::Path, further: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_jetway"))
        .args(["connect", "--gateway", &gateway.gateway.to_string(), "--ca"])
        .arg(gateway.ca.as_ref().unwrap())
        .arg("--token-file")
        .arg(token_file)
        .args(["--agent", NAME])
        .args(further)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What it says when it has failed.
async fn error_of(child: Child) -> String {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = within(output).await.unwrap().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// The next JSON that comes over a channel.
async fn read_json<S>(channel: &mut WebSocketStream<S>) -> Value
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        if let Message::Text(text) = within(channel.next()).await.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

async fn say<S>(channel: &mut WebSocketStream<S>, message: Value)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let text = Message::text(message.to_string());
    channel.send(text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_over_agent_leads_nobody_to_a_relay_of_its_own() {
    let (site, attacker) = (Branch::start(), Attacker::start().await);
    let target = Target::start().await;
    site.enrol(json!({})).await;
    let mut channel = site.by_hand().await;
    let file = path(&site.lab, "token.jwt");
    for (direct, further) in [(false, &[][..]), (true, &["--direct"][..])] {
        let token = site.token(&target, json!({ "jet_ap": "ssh" }));
        std::fs::write(&file, &token).unwrap();
        let child = connect(&site.gateway(), &file, further);
        let offer = read_json(&mut channel).await;
        assert_eq!(offer["type"], "offer");
        // One of them under the id of a candidate that there is.
        let known = offer["candidates"][0]["id"].as_str();
        let candidates = attacker.candidates(known);
        let answer = json!({
            "id": offer["offer"]["id"], "role": "server", "version": 3, "candidates": candidates,
        });
        say(&mut channel, json!({ "type": "answer", "answer": answer })).await;
        let error = error_of(child).await;
        // The gateway has passed on none of them.
        assert!(
            error.contains("accept on none of the candidates"),
            "{error}"
        );
        assert!(!error.contains(&token), "{direct}");
        attacker.saw_nobody().await;
    }
    let line =
        logged("Dropped candidates that are not this gateway's from the answer of an agent").await;
    assert_eq!(
        (&line["agent"], &line["foreign"]),
        (&json!(NAME), &json!(9))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_shows_its_token_to_the_host_that_was_named_and_to_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, attacker) = (
        Impostor::start(folder.path()).await,
        Attacker::start().await,
    );
    let file = folder.path().join("token.jwt");
    std::fs::write(&file, "e30.e30.secret").unwrap();
    for further in [&[][..], &["--direct"][..]] {
        let child = connect(&gateway.args, &file, further);
        let asked = gateway.answers(attacker.candidates(None));
        let asked = within(asked).await;
        assert_eq!(asked.len(), 3, "{asked:?}");
        let error = error_of(child).await;
        assert!(
            error.contains("is not on the gateway's own host"),
            "{error}"
        );
        attacker.saw_nobody().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_dials_its_gateways_host_and_its_own_targets_and_nobody_else() {
    let (mut site, attacker) = (Branch::start(), Attacker::start().await);
    site.enrol(json!({})).await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = Impostor::start(folder.path()).await;
    site.elsewhere = Some(gateway.args.clone());
    let (target, third) = (greeter().await, Attacker::start().await);
    let _stop = site.run(&site.key(), &[target]);
    let mut channel = gateway.channel().await;
    // It is the agent's own gateway that was taken over, and calls itself as before.
    let name = site.lab.running().gateway().peers.instance.clone();
    say(
        &mut channel,
        json!({ "type": "challenge", "gateway": name, "nonce": "n" }),
    )
    .await;
    assert_eq!(read_json(&mut channel).await["type"], "proof");
    say(&mut channel, json!({ "type": "welcome" })).await;
    for (target, candidates, reason) in [
        (target, attacker.candidates(None), "candidates"),
        (third.address, Vec::new(), "target"),
    ] {
        let id = Uuid::new_v4();
        let offer = json!({ "id": id, "role": "client", "version": 3 });
        say(
            &mut channel,
            json!({
                "type": "offer", "offer": offer, "target": target.to_string(), "candidates": candidates,
            }),
        )
        .await;
        let declined = json!({ "type": "declined", "id": id, "reason": reason });
        assert_eq!(read_json(&mut channel).await, declined);
    }
    attacker.saw_nobody().await;
    third.saw_nobody().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_signs_for_the_gateway_where_it_was_enrolled_and_for_no_other() {
    let mut site = Branch::start();
    site.enrol(json!({})).await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = Impostor::start(folder.path()).await;
    site.elsewhere = Some(gateway.args.clone());
    let _stop = site.run(&site.key(), &["127.0.0.1:9".parse().unwrap()]);
    // A challenge that was fetched at another gateway, which knows the agent, too.
    let mut channel = gateway.channel().await;
    say(
        &mut channel,
        json!({ "type": "challenge", "gateway": "other.example", "nonce": "n" }),
    )
    .await;
    let mut heard = Vec::new();
    while let Some(Ok(message)) = within(channel.next()).await {
        heard.push(message);
    }
    assert!(!heard.iter().any(Message::is_text), "{heard:?}");
    let line = logged("Lost the connection to the gateway, reconnecting").await;
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.contains("calls itself \"other.example\""),
        "{reason}"
    );
}

/// A gateway that was taken over: its name and its certificate are right, and nothing else.
struct Impostor {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    args: GatewayArgs,
}

impl Impostor {
    async fn start(folder: &std::path::Path) -> Self {
        let identity = Identity::self_signed(&["127.0.0.1"]);
        let ca = folder.join("impostor.pem");
        std::fs::write(&ca, identity.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            listener,
            acceptor: TlsAcceptor::from(server_config(&identity)),
            args: GatewayArgs {
                gateway: format!("https://{address}").parse().unwrap(),
                ca: Some(ca),
            },
        }
    }

    async fn accept(&self) -> TlsStream<TcpStream> {
        let (stream, _) = within(self.listener.accept()).await.unwrap();
        self.acceptor.accept(stream).await.unwrap()
    }

    /// The signaling channel of an agent.
    async fn channel(&self) -> WebSocketStream<TlsStream<TcpStream>> {
        let stream = self.accept().await;
        tokio_tungstenite::accept_async(stream).await.unwrap()
    }

    /// Serves what `jetway connect` asks up to its offer, which is answered with these candidates; the heads of its requests.
    async fn answers(&self, candidates: Vec<Value>) -> Vec<String> {
        let mut heads = Vec::new();
        loop {
            let mut stream = self.accept().await;
            let (head, body) = request(&mut stream).await;
            let offered = head.starts_with("POST /jet/offer/");
            let answer = if offered {
                let offer: Value = serde_json::from_str(&body).unwrap();
                json!({ "id": offer["id"], "role": "server", "version": 3, "candidates": candidates })
            } else {
                json!({})
            };
            let answer = answer.to_string();
            let length = answer.len();
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}");
            stream.write_all(text.as_bytes()).await.unwrap();
            // Without an end in order it is no answer.
            stream.shutdown().await.unwrap();
            heads.push(head);
            if offered {
                return heads;
            }
        }
    }
}

/// Reads an HTTP request: its head, and its body.
async fn request(stream: &mut TlsStream<TcpStream>) -> (String, String) {
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let named = name.eq_ignore_ascii_case("content-length");
                named.then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut bytes = [0; 4096];
        let count = within(stream.read(&mut bytes)).await.unwrap();
        assert_ne!(count, 0, "{text}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
}
