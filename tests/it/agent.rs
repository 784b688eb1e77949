//! Targets behind an agent, which connects outwards only ([JET-PROTO] 2.3).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use jetway::cli::agent::{EnrolArgs, GatewayArgs};
use jetway::io::over_tcp::OverTcp;
use jetway::jet::agent::BackOff;
use jetway::peer::Site;
use jetway::peer::agent::{self, Settings};
use jetway::token::mint::{self, SigningKey};
use jetway::token::{KeyDocument, KeyUsage, statement};
use jetway_lab::certificate::Identity;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

use crate::api::http_json;
use crate::lab::{
    CLIENT_HELLO, Lab, SELECTED_TLS, Target, closed, confirm, failure, log, logged, logged_times,
    path, until, within,
};
use crate::process::JETWAY;

pub(crate) const OPERATOR: &str = "operator-secret";

pub(crate) const NAME: &str = "branch-7";

/// A gateway with a certificate and an operator, on a port that it keeps.
pub(crate) struct Branch {
    pub(crate) lab: Lab,
    /// Its certificate and key, which a restart reads again.
    _files: tempfile::TempDir,
    /// What its agents tell of themselves.
    pub(crate) host_addresses: Vec<std::net::IpAddr>,
    /// Where its agents find another gateway in its place.
    pub(crate) elsewhere: Option<GatewayArgs>,
}

impl Branch {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with further tables of configuration.
    pub(crate) fn start_with(further: &str) -> Self {
        let port = free_port();
        let digest = hex::encode(openssl::sha::sha256(OPERATOR.as_bytes()));
        let files = tempfile::tempdir().unwrap();
        let identity = Identity::self_signed(&["127.0.0.1"]);
        let [certificate, key] = identity.write(files.path(), ["c.pem", "k.pem"]);
        let lab = Lab::start(&format!(
            "[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
             [tls]\ncertificate = {certificate:?}\nkey = {key:?}\n\
             [api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n{further}"
        ));
        std::fs::copy(&certificate, path(&lab, "ca.pem")).unwrap();
        Self {
            lab,
            _files: files,
            host_addresses: Vec::new(),
            elsewhere: None,
        }
    }

    pub(crate) async fn http(&self, head: &str, bearer: &str, body: &str) -> (u16, Value) {
        http_json(&self.lab, "gw", head, bearer, body).await
    }

    async fn invite(&self, changes: Value) -> (u16, Value) {
        let mut wanted = json!({ "name": NAME });
        let object = wanted.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        self.http("POST /jet/enrolments", OPERATOR, &wanted.to_string())
            .await
    }

    pub(crate) fn gateway(&self) -> GatewayArgs {
        GatewayArgs {
            gateway: format!("https://{}", self.lab.address()).parse().unwrap(),
            ca: Some(path(&self.lab, "ca.pem")),
        }
    }

    /// What `jetway agent enrol` does with this enrolment.
    async fn enrol_with(&self, enrolment: &str, out: &str) -> anyhow::Result<()> {
        let file = path(&self.lab, "enrolment");
        std::fs::write(&file, enrolment).unwrap();
        jetway::cli::agent::enrol(&EnrolArgs {
            gateway: self.gateway(),
            enrolment_file: file,
            out: path(&self.lab, out),
        })
        .await
    }

    /// Enrols an agent.
    pub(crate) async fn enrol(&self, changes: Value) {
        let (status, invited) = self.invite(changes).await;
        assert_eq!(status, 201, "{invited}");
        let enrolment = invited["enrolment"].as_str().unwrap();
        self.enrol_with(enrolment, "agent").await.unwrap();
    }

    pub(crate) fn key(&self) -> PathBuf {
        path(&self.lab, "agent/agent.private.pem")
    }

    /// Runs an agent with the key in `file` until the token fires.
    pub(crate) fn run(&self, file: &PathBuf, targets: &[SocketAddr]) -> CancellationToken {
        let bytes = std::fs::read(file).unwrap();
        let document = KeyDocument {
            name: "key",
            bytes: &bytes,
            usage: Some(KeyUsage::Sign),
            kid: None,
        };
        let GatewayArgs { gateway, ca } = match &self.elsewhere {
            Some(elsewhere) => elsewhere.clone(),
            None => self.gateway(),
        };
        let settings = Settings {
            site: Site::new(&gateway, ca.as_deref()).unwrap(),
            gateway: jetway::cli::agent::gateway_beside(file).unwrap(),
            name: NAME.parse().unwrap(),
            key: SigningKey::from_document(&document, None).unwrap(),
            targets: targets
                .iter()
                .map(|target| target.to_string().parse().unwrap())
                .collect(),
            host_addresses: self.host_addresses.clone(),
            back_off: BackOff {
                first: Duration::from_millis(20),
                longest: Duration::from_millis(200),
            },
        };
        let stop = CancellationToken::new();
        tokio::spawn(agent::run(settings, stop.clone()));
        stop
    }

    /// Enrols an agent that leads to `targets` and waits until it is there.
    pub(crate) async fn with_agent(&self, targets: &[SocketAddr]) -> CancellationToken {
        self.enrol(json!({})).await;
        let stop = self.run(&self.key(), targets);
        self.connected(true).await;
        stop
    }

    async fn agents(&self) -> Value {
        let (status, agents) = self.http("GET /jet/agents", OPERATOR, "").await;
        assert_eq!(status, 200, "{agents}");
        agents
    }

    pub(crate) async fn connected(&self, wanted: bool) {
        within(async {
            while self.agents().await[0]["connected"] != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The signaling channel of the enrolled agent, past its log-on: what the gateway offers on it stays without an answer.
    pub(crate) async fn by_hand(&self) -> WebSocketStream<TcpStream> {
        let bytes = std::fs::read(self.key()).unwrap();
        let document = KeyDocument {
            name: "key",
            bytes: &bytes,
            usage: Some(KeyUsage::Sign),
            kid: None,
        };
        let key = SigningKey::from_document(&document, None).unwrap();
        let (socket, welcome) = self
            .log_on(|challenge| {
                let logon = json!({
                    "aud": challenge["gateway"], "sub": NAME, "nonce": challenge["nonce"],
                });
                statement::sign(&key, "jetway-agent-logon+jwt", &logon).unwrap()
            })
            .await;
        assert!(welcome);
        socket
    }

    /// Answers the challenge by what `prove` makes of it; whether that was welcome.
    async fn log_on(
        &self,
        prove: impl FnOnce(&Value) -> String,
    ) -> (WebSocketStream<TcpStream>, bool) {
        let request = "ws://gw/jet/agent".into_client_request().unwrap();
        let stream = self.lab.connect().await;
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        let challenge = within(socket.next()).await.unwrap().unwrap();
        let challenge: Value = serde_json::from_str(challenge.to_text().unwrap()).unwrap();
        let statement = prove(&challenge);
        let proof = json!({ "type": "proof", "statement": statement }).to_string();
        socket.send(Message::text(proof)).await.unwrap();
        let answer = within(socket.next()).await.unwrap().unwrap();
        (socket, answer == Message::text("{\"type\":\"welcome\"}"))
    }

    /// A token that leads to `target` behind the agent.
    pub(crate) fn token(&self, target: &Target, changes: Value) -> String {
        let mut claims = json!({
            "jet_cm": "rdv",
            "dst_hst": null,
            "jet_agent_id": NAME,
            "jet_agent_dst": target.address.to_string(),
        });
        let object = claims.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        let key = SigningKey::from_key(&self.lab.signing, None).unwrap();
        mint::mint(&Lab::claims(target.address, claims), Some(&key), None).unwrap()
    }
}

/// A port that a restart finds again: nobody else listens there, and it is below those that the system gives away.
fn free_port() -> u32 {
    let first = std::process::id() % 9_000;
    let free = |port: &u32| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).is_ok();
    let mut ports = (first..9_000).chain(0..first).map(|port| 23_000 + port);
    ports.find(free).unwrap()
}

// J-SEQ-1 J-MSG-1 J-RDP-3
#[tokio::test(flavor = "multi_thread")]
async fn an_rdp_client_reaches_a_target_behind_an_agent() {
    let (site, target) = (Branch::start(), Target::start().await);
    let stop = site.with_agent(&[target.address]).await;
    let token = site.token(&target, json!({ "sub": "alice" }));
    let mut client = site.lab.session(&token).await;
    assert_eq!(target.connections(), 1);
    client.write_all(b"more").await.unwrap();
    let mut echo = [0; 4];
    within(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"more");
    assert_eq!(site.agents().await[0]["sessions"], 1);
    // The target's end reaches the client, and so does the line.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(client.read_to_end(&mut rest)).await.unwrap();
    let line = closed(1).await.remove(0);
    assert_eq!(line["agent"], NAME);
    assert_eq!(line["target"], target.address.to_string());
    // One token, one session.
    assert_eq!(failure(&mut site.lab.client(&token).await).await, 5);
    stop.cancel();
    site.connected(false).await;
    assert!(!log().contains("Rendezvous refused"), "a good session");
}

// J-RDP-2 J-RDP-3
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_in_the_routing_token_leads_behind_an_agent() {
    let (site, target) = (Branch::start(), Target::start().await);
    let _stop = site.with_agent(&[target.address]).await;
    let ticket = crate::api::ticket(&site.lab, &site.token(&target, json!({}))).await;
    let mut client = site.lab.connect().await;
    let request = crate::lab::request(Some(&ticket)).encode().unwrap();
    client.write_all(&request).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    assert_eq!(target.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_of_one_agent_do_not_touch_each_other() {
    let site = Branch::start();
    let (one, other) = (Target::start().await, Target::start().await);
    let _stop = site.with_agent(&[one.address, other.address]).await;
    let (first, second) = (site.token(&one, json!({})), site.token(&other, json!({})));
    let (mut first, mut second) = tokio::join!(site.lab.session(&first), site.lab.session(&second));
    assert_eq!(site.agents().await[0]["sessions"], 2);
    for (client, text) in [(&mut first, b"one"), (&mut second, b"two")] {
        client.write_all(text).await.unwrap();
        let mut echo = [0; 3];
        within(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, text);
    }
    drop(first);
    second.write_all(b"yes").await.unwrap();
    let mut echo = [0; 3];
    within(second.read_exact(&mut echo)).await.unwrap();
    assert_eq!((one.connections(), other.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_ends_its_sessions_and_the_next_client_is_told() {
    let (site, target) = (Branch::start(), Target::start().await);
    let stop = site.with_agent(&[target.address]).await;
    let mut client = site.lab.session(&site.token(&target, json!({}))).await;
    stop.cancel();
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    site.connected(false).await;
    let token = site.token(&target, json!({}));
    assert_eq!(failure(&mut site.lab.client(&token).await).await, 3);
    let line = logged("Session refused").await;
    assert_eq!(line["rule"], "agent");
    assert_eq!(line["reason"], "agent branch-7 is not connected");
    // The token was not used: when the agent is back, it leads there.
    let _stop = site.run(&site.key(), &[target.address]);
    site.connected(true).await;
    site.lab.session(&token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_comes_back_after_a_restart_of_the_gateway() {
    let (mut site, target) = (Branch::start(), Target::start().await);
    let _stop = site.with_agent(&[target.address]).await;
    site.lab.restart().await;
    site.connected(true).await;
    site.lab.session(&site.token(&target, json!({}))).await;
    logged_times("Agent connected", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_gone_with_its_sessions_and_stays_gone() {
    let (mut site, target) = (Branch::start(), Target::start().await);
    let _stop = site.with_agent(&[target.address]).await;
    let mut client = site.lab.session(&site.token(&target, json!({}))).await;
    let delete = format!("DELETE /jet/agents/{NAME}");
    assert_eq!(site.http(&delete, "guessed", "").await.0, 401);
    assert_eq!(site.http(&delete, OPERATOR, "").await.0, 200);
    assert_eq!(site.http(&delete, OPERATOR, "").await.0, 404);
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    // It may ask again, and the gateway says no.
    let _stop = site.run(&site.key(), &[target.address]);
    logged("Agent refused").await;
    assert_eq!(site.agents().await, json!([]));
    let token = site.token(&target, json!({}));
    assert_eq!(failure(&mut site.lab.client(&token).await).await, 3);
    site.lab.restart().await;
    assert_eq!(site.agents().await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_gone_with_the_session_of_an_offer_that_was_taken_back() {
    let (site, target) = (Branch::start(), Target::start().await);
    let _stop = site.with_agent(&[target.address]).await;
    let association = uuid::Uuid::new_v4();
    let token = site.token(&target, json!({ "jet_aid": association }));
    let mut client = site.lab.session(&token).await;
    // As where the agent has accepted, and its answer did not come in time.
    site.lab
        .running()
        .gateway()
        .peers
        .agents
        .withdraw(association);
    let delete = format!("DELETE /jet/agents/{NAME}");
    assert_eq!(site.http(&delete, OPERATOR, "").await.0, 200);
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_is_good_once_and_for_its_time() {
    let site = Branch::start();
    let (status, invited) = site.invite(json!({})).await;
    assert_eq!(status, 201, "{invited}");
    let enrolment = invited["enrolment"].as_str().unwrap().to_owned();
    assert!(invited["expires_in_s"].as_u64().unwrap() <= 15 * 60);
    site.enrol_with(&enrolment, "agent").await.unwrap();
    // Again: used. Guessed: nothing. A name that is taken: no.
    for text in [enrolment.as_str(), "je-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let error = site
            .enrol_with(text, "other")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("status 401"), "{error}");
        assert!(!path(&site.lab, "other/agent.private.pem").exists());
    }
    assert_eq!(site.http("POST /jet/agents", OPERATOR, "{}").await.0, 401);
    assert_eq!(site.invite(json!({})).await.0, 409);
    for changes in [
        json!({ "name": "Branch" }),
        json!({ "name": "" }),
        json!({ "targets": ["pc"] }),
        json!({ "other": 1 }),
        json!({ "targets": vec!["pc:1"; 65] }),
    ] {
        assert_eq!(site.invite(changes.clone()).await.0, 400, "{changes}");
    }
    let without = site.http("POST /jet/enrolments", "guessed", "{}").await;
    assert_eq!(without.0, 401);
    let agents = site.agents().await;
    assert_eq!(agents[0]["name"], NAME);
    assert_eq!(agents[0]["connected"], false);
    assert_eq!(agents[0]["key"].as_str().unwrap().len(), 43);
    for secret in [enrolment.as_str(), OPERATOR] {
        assert!(!log().contains(secret));
    }
    // A second of life, and it is over.
    let (_, invited) = site
        .invite(json!({ "name": "late", "lifetime_s": 1 }))
        .await;
    let enrolment = invited["enrolment"].as_str().unwrap();
    let expires_at = invited["expires_at"].as_u64().unwrap();
    until(|| jetway::clock::unix_now().0 > expires_at).await;
    let error = site.enrol_with(enrolment, "late").await.unwrap_err();
    assert!(error.to_string().contains("status 401"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_not_the_agent() {
    let (site, target) = (Branch::start(), Target::start().await);
    site.enrol(json!({})).await;
    let other = jetway::token::algorithm::SignatureAlgorithm::Es256;
    let other = mint::generate(jetway::token::algorithm::Algorithm::Signature(other)).unwrap();
    let file = path(&site.lab, "other.pem");
    std::fs::write(&file, other.private_pem().unwrap().as_bytes()).unwrap();
    let _stop = site.run(&file, &[target.address]);
    logged("Agent refused").await;
    assert_eq!(site.agents().await[0]["connected"], false);
    let token = site.token(&target, json!({}));
    assert_eq!(failure(&mut site.lab.client(&token).await).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_channel_of_an_agent_takes_the_place_of_the_older() {
    let (site, target) = (Branch::start(), Target::start().await);
    let first = site.with_agent(&[target.address]).await;
    let second = site.run(&site.key(), &[target.address]);
    let lines = logged_times("Agent connected", 2).await;
    assert_eq!(
        (&lines[0]["replaced"], &lines[1]["replaced"]),
        (&json!(false), &json!(true))
    );
    // The older one is told, says so, and asks from now on without taking the place.
    let told = "Another agent with this name and key has taken over, waiting until it is gone";
    logged(told).await;
    let asked = "Two agents share a name and a key; one of them waits";
    assert_eq!(logged_times(asked, 3).await[0]["agent"], NAME);
    assert_eq!(logged_times(told, 1).await.len(), 1);
    assert_eq!(logged_times("Agent connected", 2).await.len(), 2);
    site.lab.session(&site.token(&target, json!({}))).await;
    // It is there when the newer one has gone, and is no different from before.
    second.cancel();
    let lines = logged_times("Agent connected", 3).await;
    assert_eq!(lines[2]["replaced"], false);
    site.lab.session(&site.token(&target, json!({}))).await;
    let _third = site.run(&site.key(), &[target.address]);
    assert_eq!(logged_times(told, 2).await.len(), 2);
    first.cancel();
    site.lab.session(&site.token(&target, json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_do_not_log_on_are_bounded_and_closed() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let site = Branch::start_with("[limits]\npending_per_address = 3\n");
    let open = async || {
        let request = "ws://gw/jet/agent".into_client_request().unwrap();
        let stream = site.lab.connect().await;
        let opened = tokio_tungstenite::client_async(request, stream).await;
        opened.map(|(socket, _)| socket)
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(open().await.unwrap());
    }
    assert!(open().await.is_err(), "its address has as many as it may");
    // A place is free again when one of them goes.
    held.pop();
    within(async { while open().await.is_err() {} }).await;
}

/// Its handshake is answered, and still it has proved nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_has_not_logged_on_makes_room_for_another_address() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let limits = "[limits]\npending_connections = 3\npending_per_address = 3\n";
    let (site, target) = (Branch::start_with(limits), Target::start().await);
    let mut held = Vec::new();
    for _ in 0..3 {
        let request = "ws://gw/jet/agent".into_client_request().unwrap();
        let stream = site.lab.connect().await;
        let opened = tokio_tungstenite::client_async(request, stream).await;
        held.push(opened.unwrap().0);
    }
    let token = site.lab.token(target.address, json!({}));
    drop(site.lab.session_from(2, &token).await);
    let oldest = &mut held[0];
    within(async { while let Some(Ok(_)) = oldest.next().await {} }).await;
    assert!(!log().contains("Agent did not log on in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leads_where_its_own_list_and_its_enrolment_say_and_nowhere_else() {
    let site = Branch::start();
    let (listed, unlisted) = (Target::start().await, Target::start().await);
    let enrolled = [listed.address.to_string(), unlisted.address.to_string()];
    site.enrol(json!({ "targets": enrolled })).await;
    let third = Target::start().await;
    // On the agent's list, and not in the enrolment: the other half of both rules.
    let _stop = site.run(&site.key(), &[listed.address, third.address]);
    site.connected(true).await;
    for (target, reason) in [
        (
            &unlisted,
            "agent branch-7: the agent does not lead to this target",
        ),
        (&third, "agent branch-7 was not enrolled for this target"),
    ] {
        let token = site.token(target, json!({}));
        assert_eq!(failure(&mut site.lab.client(&token).await).await, 3);
        let lines = logged_times("Session refused", 1).await;
        let line = lines.last().unwrap();
        assert_eq!(
            (&line["rule"], &line["reason"]),
            (&json!("agent"), &json!(reason))
        );
        assert_eq!(target.connections(), 0);
        crate::lab::forget_log();
    }
    site.lab.session(&site.token(&listed, json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_answer_is_told_as_such() {
    let (site, mut target) = (Branch::start(), Target::start().await);
    // Bound and not listening: whoever connects is refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    target.address = socket.local_addr().unwrap();
    let _stop = site.with_agent(&[target.address]).await;
    let token = site.token(&target, json!({}));
    assert_eq!(failure(&mut site.lab.client(&token).await).await, 3);
    let reason = logged("Session refused").await["reason"].clone();
    assert_eq!(reason, "agent branch-7: the agent cannot reach the target");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_challenge_does_not_log_on() {
    let site = Branch::start();
    site.enrol(json!({})).await;
    let bytes = std::fs::read(site.key()).unwrap();
    let document = KeyDocument {
        name: "key",
        bytes: &bytes,
        usage: Some(KeyUsage::Sign),
        kid: None,
    };
    let key = SigningKey::from_document(&document, None).unwrap();
    let mut replayed: Option<String> = None;
    // The right answer, the same again, and right but for one member.
    for (changes, welcome) in [
        (json!({}), true),
        (Value::Null, false),
        (json!({ "aud": "elsewhere" }), false),
        (json!({ "sub": "branch-8" }), false),
    ] {
        let (_, welcomed) = site
            .log_on(|challenge| {
                let mut logon = json!({
                    "aud": challenge["gateway"], "sub": NAME, "nonce": challenge["nonce"],
                });
                let statement = if let Some(changes) = changes.as_object() {
                    logon.as_object_mut().unwrap().extend(changes.clone());
                    statement::sign(&key, "jetway-agent-logon+jwt", &logon).unwrap()
                } else {
                    replayed.clone().unwrap()
                };
                replayed.get_or_insert_with(|| statement.clone());
                statement
            })
            .await;
        assert_eq!(welcomed, welcome, "{changes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_signs_opens_nothing_but_what_it_was_offered() {
    use jetway::jet::exchange::{JetPath, Operation};

    let (site, target) = (Branch::start(), Target::start().await);
    site.enrol(json!({})).await;
    let bytes = std::fs::read(site.key()).unwrap();
    let document = KeyDocument {
        name: "key",
        bytes: &bytes,
        usage: Some(KeyUsage::Sign),
        kid: None,
    };
    let key = SigningKey::from_document(&document, None).unwrap();
    // An association of somebody else, which demands a token.
    let association = uuid::Uuid::new_v4();
    let token = site.token(&target, json!({ "jet_aid": association }));
    let create = format!("POST /jet/association/{association}");
    assert_eq!(site.http(&create, &token, "").await.0, 200);
    let gather = format!("POST /jet/gather/{association}");
    let (_, gathered) = site.http(&gather, &token, "").await;
    let candidate = gathered["candidates"][0]["id"].as_str().unwrap();
    let candidate: uuid::Uuid = candidate.parse().unwrap();
    let acceptance = json!({
        "aud": site.lab.running().gateway().peers.instance,
        "sub": NAME,
        "jet_aid": association,
        "candidate": candidate,
    });
    let statement = statement::sign(&key, "jetway-agent-accept+jwt", &acceptance).unwrap();
    let GatewayArgs { gateway, ca } = site.gateway();
    let peer = Site::new(&gateway, ca.as_deref()).unwrap();
    let url = format!("tls://{}", site.lab.address()).parse().unwrap();
    for operation in [Operation::Accept, Operation::Connect, Operation::Test] {
        let path = JetPath {
            operation,
            association,
            candidate,
        };
        let error = peer.candidate(&url, path, &statement).await.unwrap_err();
        assert!(
            format!("{error:#}").contains("401"),
            "{operation}: {error:#}"
        );
    }
    // Nor is it a token, or an API key.
    assert_eq!(site.http(&create, &statement, "").await.0, 401);
    assert_eq!(site.http("GET /jet/agents", &statement, "").await.0, 401);
}

/// A server that speaks first, and echoes.
pub(crate) async fn greeter() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.write_all(b"SSH-2.0-hello\r\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _closed = write.shutdown().await;
            });
        }
    });
    address
}

// J-SEQ-1 J-SEQ-3 J-MSG-1 J-MSG-2
#[tokio::test(flavor = "multi_thread")]
async fn a_client_offers_tests_all_candidates_at_once_and_chooses_one() {
    let (site, mut target) = (Branch::start(), Target::start().await);
    target.address = greeter().await;
    let _stop = site.with_agent(&[target.address]).await;
    let association = uuid::Uuid::new_v4();
    let token = site.token(&target, json!({ "jet_ap": "ssh", "jet_aid": association }));
    let GatewayArgs { gateway, ca } = site.gateway();
    let peer = std::sync::Arc::new(Site::new(&gateway, ca.as_deref()).unwrap());
    let name = NAME.parse().unwrap();
    let connect = jetway::peer::connect::connect(&peer, &token, &name, Some(association), true);
    let mut connection = within(connect).await.unwrap();
    assert_eq!(connection.candidate.url.transport.name(), "tls");
    let mut banner = [0; 15];
    // The server speaks first: the client's choice is what lets it.
    within(connection.stream.read_exact(&mut banner))
        .await
        .unwrap();
    assert_eq!(&banner, b"SSH-2.0-hello\r\n");
    connection
        .stream
        .write_all(b"SSH-2.0-you\r\n")
        .await
        .unwrap();
    connection.stream.flush().await.unwrap();
    let mut echo = [0; 13];
    within(connection.stream.read_exact(&mut echo))
        .await
        .unwrap();
    let read = format!("GET /jet/association/{association}");
    let (_, shown) = site.http(&read, OPERATOR, "").await;
    let candidates = shown["candidates"].as_array().unwrap().iter();
    let states: Vec<String> = candidates
        .map(|candidate| format!("{}: {}", candidate["transport"], candidate["state"]))
        .collect();
    assert!(
        states.contains(&"\"tls\": \"selected\"".to_owned()),
        "{states:?}"
    );
    assert!(
        states.contains(&"\"wss\": \"closed\"".to_owned()),
        "{states:?}"
    );
    connection.forget(&peer, &token).await;
    assert_eq!(site.http(&read, OPERATOR, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_for_the_agent_and_the_target_that_the_token_names() {
    let (site, target) = (Branch::start(), Target::start().await);
    let _stop = site.with_agent(&[target.address]).await;
    let GatewayArgs { gateway, ca } = site.gateway();
    let peer = std::sync::Arc::new(Site::new(&gateway, ca.as_deref()).unwrap());
    let offered = async |token: String, name: &str| {
        let name = name.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &name, None, false);
        within(connect).await.unwrap_err().to_string()
    };
    let other = Target::start().await;
    let error = offered(site.token(&other, json!({})), NAME).await;
    assert!(error.contains("does not lead to this target"), "{error}");
    let error = offered(site.token(&target, json!({})), "branch-8").await;
    assert!(error.contains("not for this association"), "{error}");
    let gone = json!({ "jet_agent_id": "branch-8" });
    let error = offered(site.token(&target, gone), "branch-8").await;
    assert!(error.contains("no agent is named branch-8"), "{error}");
    assert_eq!((target.connections(), other.connections()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_has_its_share_of_an_agent_and_others_are_offered_meanwhile() {
    use jetway::jet::message::{Offer, Version};

    let (site, target) = (std::sync::Arc::new(Branch::start()), Target::start().await);
    site.enrol(json!({})).await;
    let mut channel = site.by_hand().await;
    #[expect(
        clippy::async_yields_async,
        reason = "the answer to an offer is waited for later, or never"
    )]
    let offer = async |token: &str| {
        let association = uuid::Uuid::new_v4();
        let create = format!("POST /jet/association/{association}");
        assert_eq!(site.http(&create, token, "").await.0, 200);
        let offer = Offer::new(association, Version::V3, None);
        let offer = serde_json::to_string(&offer).unwrap();
        let (site, token) = (std::sync::Arc::clone(&site), token.to_owned());
        tokio::spawn(async move {
            let head = format!("POST /jet/offer/{NAME}");
            site.http(&head, &token, &offer).await
        })
    };
    let mut offered = async || {
        let message = within(channel.next()).await.unwrap().unwrap();
        let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!(message["type"], "offer", "{message}");
    };
    let greedy = site.token(&target, json!({}));
    let mut waiting = Vec::new();
    for _ in 0..jetway::limits::AGENT_SESSIONS_PER_TOKEN {
        waiting.push(offer(&greedy).await);
        offered().await;
    }
    let (status, problem) = within(offer(&greedy).await).await.unwrap();
    assert_eq!(status, 503, "{problem}");
    let line = logged("Limit reached").await;
    assert_eq!(
        line["limit"],
        "sessions of one agent by one token or address"
    );
    assert!(
        line["who"].as_str().unwrap().starts_with("token "),
        "{line}"
    );
    // Nor is there more for it as an RDP client.
    failure(&mut site.lab.client(&greedy).await).await;
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "agent");
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.contains("busy"), "{reason}");
    waiting.push(offer(&site.token(&target, json!({}))).await);
    offered().await;
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_behind_an_agent_leave_no_more_associations_than_their_address_may_have() {
    let site = Branch::start_with("[limits]\nsessions_per_address = 2\n");
    let target = Target::start().await;
    let _stop = site.with_agent(&[target.address]).await;
    for count in 1..=3 {
        drop(site.lab.session(&site.token(&target, json!({}))).await);
        closed(count).await;
    }
    let (status, listed) = site.http("GET /jet/association", OPERATOR, "").await;
    assert_eq!((status, listed.as_array().unwrap().len()), (200, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_leads_standard_input_and_a_local_port_behind_an_agent() {
    use std::process::Stdio;

    let (site, mut target) = (Branch::start(), Target::start().await);
    target.address = greeter().await;
    let _stop = site.with_agent(&[target.address]).await;
    let GatewayArgs { gateway, ca } = site.gateway();
    let command = |token: String, further: &[&str]| {
        let file = path(&site.lab, "token.jwt");
        std::fs::write(&file, token).unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_jetway"))
            .args(["connect", "--gateway", &gateway.to_string(), "--ca"])
            .arg(ca.as_ref().unwrap())
            .arg("--token-file")
            .arg(&file)
            .args(further)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // As a ProxyCommand: what goes in comes back behind the banner, and the end goes through.
    let mut child = command(site.token(&target, json!({ "jet_ap": "ssh" })), &[]);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let text = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut banner = [0; 15];
        stdout.read_exact(&mut banner).unwrap();
        stdin.write_all(b"SSH-2.0-you\r\n").unwrap();
        drop(stdin);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        (banner, rest)
    });
    let (banner, rest) = within(text).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-hello\r\n");
    assert_eq!(rest, "SSH-2.0-you\r\n");
    let ended = within(tokio::task::spawn_blocking(move || child.wait())).await;
    assert!(ended.unwrap().unwrap().success());

    let token = site.token(&target, json!({ "jet_ap": "ssh" }));
    let mut child = command(token, &["--listen", "127.0.0.1:0"]);
    let stdout = child.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        line
    });
    let line = within(line).await.unwrap();
    let port = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    let mut client = TcpStream::connect(port).await.unwrap();
    let mut banner = [0; 15];
    within(client.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-hello\r\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

// J-SEQ-2
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_its_address_only_if_told_to_and_serves_there_who_knows_the_ids() {
    let (mut site, mut target) = (Branch::start(), Target::start().await);
    target.address = greeter().await;
    site.host_addresses = vec!["127.0.0.1".parse().unwrap()];
    let _stop = site.with_agent(&[target.address]).await;
    let GatewayArgs { gateway, ca } = site.gateway();
    let peer = std::sync::Arc::new(Site::new(&gateway, ca.as_deref()).unwrap());
    for (direct, transport) in [(true, "tcp"), (false, "tls")] {
        let token = site.token(&target, json!({ "jet_ap": "ssh" }));
        let name = NAME.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &name, None, direct);
        let mut connection = within(connect).await.unwrap();
        assert_eq!(connection.candidate.url.transport.name(), transport);
        let mut banner = [0; 15];
        within(connection.stream.read_exact(&mut banner))
            .await
            .unwrap();
        assert_eq!(&banner, b"SSH-2.0-hello\r\n");
        connection.forget(&peer, &token).await;
    }
    let host = jetway::peer::host::gather(&site.host_addresses).await;
    let (host, association) = (host.into_iter().next().unwrap(), uuid::Uuid::new_v4());
    let url = host.candidate.url.clone();
    let path = |association, candidate| jetway::jet::exchange::JetPath {
        operation: jetway::jet::exchange::Operation::Connect,
        association,
        candidate,
    };
    let right = path(association, host.candidate.id);
    let serving = tokio::spawn(async move { host.met(association).await });
    for wrong in [
        path(uuid::Uuid::new_v4(), right.candidate),
        path(association, association),
    ] {
        let error = within(peer.direct(&url, wrong)).await.unwrap_err();
        assert!(format!("{error:#}").contains("404"), "{error:#}");
    }
    within(peer.direct(&url, right)).await.unwrap();
    within(serving).await.unwrap().unwrap();
}

/// A target that selects TLS, takes nothing from then on or only hears the end, and keeps its side; and what tells that its connection
/// has broken all the same.
async fn clinging(takes: bool) -> (SocketAddr, oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (broken, breaks) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _count = stream.read(&mut request).await.unwrap();
        stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
        if takes {
            let _all = stream.read_to_end(&mut Vec::new()).await;
        }
        while !stream.has_broken() {
            sleep(Duration::from_millis(100)).await;
        }
        broken.send(()).unwrap();
    });
    (address, breaks)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_does_not_keep_the_target_of_a_session_that_is_over() {
    for takes in [false, true] {
        let (site, mut target) = (Branch::start(), Target::start().await);
        let breaks;
        (target.address, breaks) = clinging(takes).await;
        let _stop = site.with_agent(&[target.address]).await;
        let mut client = site.lab.client(&site.token(&target, json!({}))).await;
        assert_eq!(confirm(&mut client).await, SELECTED_TLS);
        client.write_all(CLIENT_HELLO).await.unwrap();
        if !takes {
            let block = vec![0x17; 1 << 16];
            let all = Duration::from_secs(1);
            while let Ok(written) = timeout(all, client.write(&block)).await {
                written.unwrap();
            }
        }
        drop(client);
        // Without the gateway's word for it the agent would wait for ten minutes.
        timeout(Duration::from_secs(60), breaks)
            .await
            .unwrap()
            .unwrap();
        closed(1).await;
    }
}

/// A local program that has gone leaves no session, although nothing of what it has sent is taken and the far side speaks now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_has_left_jetway_connect_does_not_keep_its_session() {
    use std::process::Stdio;

    let (site, mut target) = (Branch::start(), Target::start().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    target.address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _count = stream.read(&mut request).await.unwrap();
        let confirm = SELECTED_TLS.encode();
        while stream.write_all(&confirm).await.is_ok() {
            sleep(Duration::from_secs(3)).await;
        }
    });
    let _stop = site.with_agent(&[target.address]).await;
    let GatewayArgs { gateway, ca } = site.gateway();
    let file = path(&site.lab, "token.jwt");
    std::fs::write(&file, site.token(&target, json!({}))).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_jetway"))
        .args(["connect", "--gateway", &gateway.to_string(), "--ca"])
        .arg(ca.as_ref().unwrap())
        .arg("--token-file")
        .arg(&file)
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        line
    });
    let line = within(line).await.unwrap();
    let port = line.trim().strip_prefix("listening on ").unwrap();
    let mut client = TcpStream::connect(port).await.unwrap();
    let asks = crate::lab::request(None).encode().unwrap();
    client.write_all(&asks).await.unwrap();
    assert_eq!(confirm(&mut client).await, SELECTED_TLS);
    client.write_all(CLIENT_HELLO).await.unwrap();
    let block = vec![0x17; 1 << 16];
    while let Ok(written) = timeout(Duration::from_secs(1), client.write(&block)).await {
        written.unwrap();
    }
    drop(client);
    let ended = timeout(Duration::from_secs(60), async {
        while !log().contains("Session closed") {
            sleep(Duration::from_millis(100)).await;
        }
    });
    ended.await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a far side does once it is reached.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Ends,
    Resets,
}

/// A server that says something and goes, while its client says nothing.
async fn leaver(fate: Fate) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-hello\r\n").await.unwrap();
        let mut version = [0; 13];
        stream.read_exact(&mut version).await.unwrap();
        match fate {
            Fate::Ends => stream.write_all(b"last words").await.unwrap(),
            Fate::Resets => socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap(),
        }
    });
    address
}

/// `jetway connect` on standard input and output that has met `target` and is idle: the process and its pipes.
async fn idle(
    site: &Branch,
    target: &Target,
) -> (
    std::process::Child,
    std::process::ChildStdin,
    std::process::ChildStdout,
) {
    use std::io::{Read, Write};
    use std::process::Stdio;

    let GatewayArgs { gateway, ca } = site.gateway();
    let file = path(&site.lab, "token.jwt");
    std::fs::write(&file, site.token(target, json!({ "jet_ap": "ssh" }))).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_jetway"))
        .args(["connect", "--gateway", &gateway.to_string(), "--ca"])
        .arg(ca.as_ref().unwrap())
        .arg("--token-file")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let met = tokio::task::spawn_blocking(move || {
        let mut banner = [0; 15];
        stdout.read_exact(&mut banner).unwrap();
        stdin.write_all(b"SSH-2.0-you\r\n").unwrap();
        (stdin, stdout)
    });
    let (stdin, stdout) = within(met).await.unwrap();
    (child, stdin, stdout)
}

/// What comes until standard output is closed, and the status and standard error of the program, which ends by itself.
async fn end_of(
    mut child: std::process::Child,
    mut stdout: std::process::ChildStdout,
) -> (String, Option<i32>, String) {
    use std::io::Read;

    let ended = tokio::task::spawn_blocking(move || {
        let (mut said, mut told) = (String::new(), String::new());
        stdout.read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut told).unwrap();
        (said, status.code(), told)
    });
    within(ended).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_ends_at_once_with_what_the_far_side_said() {
    let (site, mut target) = (Branch::start(), Target::start().await);
    target.address = leaver(Fate::Ends).await;
    let _stop = site.with_agent(&[target.address]).await;
    let (child, stdin, stdout) = idle(&site, &target).await;
    let ended = end_of(child, stdout).await;
    assert_eq!(ended, ("last words".to_owned(), Some(0), String::new()));
    drop(stdin);
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_says_by_its_exit_status_that_the_far_side_broke_off() {
    let (site, mut target) = (Branch::start(), Target::start().await);
    target.address = leaver(Fate::Resets).await;
    let _stop = site.with_agent(&[target.address]).await;
    let (child, stdin, stdout) = idle(&site, &target).await;
    let (said, status, told) = end_of(child, stdout).await;
    assert_eq!((said.as_str(), status), ("", Some(1)), "{told}");
    assert!(told.contains("broke off"), "{told}");
    drop(stdin);
}

#[tokio::test(flavor = "multi_thread")]
async fn jetway_connect_ends_when_the_agent_is_revoked_or_the_gateway_stops() {
    for gateway_stops in [false, true] {
        let (mut site, mut target) = (Branch::start(), Target::start().await);
        target.address = greeter().await;
        let _stop = site.with_agent(&[target.address]).await;
        let (child, stdin, stdout) = idle(&site, &target).await;
        if gateway_stops {
            site.lab.stop().await;
        } else {
            let revoke = format!("DELETE /jet/agents/{NAME}");
            assert_eq!(site.http(&revoke, OPERATOR, "").await.0, 200);
        }
        let (_said, status, told) = end_of(child, stdout).await;
        assert_eq!(status, Some(1), "{told}");
        drop(stdin);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_self_signed_certificate_is_trusted_by_its_own_file_and_no_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, subject: &str| {
        let (certificate, key) = (
            folder.path().join(format!("{name}.crt")),
            folder.path().join(format!("{name}.key")),
        );
        let made = std::process::Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout",
            ])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        (certificate, key)
    };
    let (certificate, key) = made("gateway", "/CN=gw.example");
    let (other, _) = made("other", "/CN=gw.example");
    let digest = hex::encode(openssl::sha::sha256(OPERATOR.as_bytes()));
    let lab = Lab::start(&format!(
        "[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n\
         [api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n"
    ));
    let asked = async |ca: &std::path::Path| {
        let gateway = format!("https://{}", lab.address()).parse().unwrap();
        let site = Site::new(&gateway, Some(ca)).unwrap();
        let agents =
            site.request::<Value>(hyper::Method::GET, "/jet/agents", OPERATOR, String::new());
        within(agents).await
    };
    assert_eq!(asked(&certificate).await.unwrap(), json!([]));
    let refused = format!("{:#}", asked(&other).await.unwrap_err());
    assert!(refused.contains("certificate"), "{refused}");
}

/// How `jetway agent run` ends by itself, and what it says.
async fn ended(arguments: Vec<String>) -> (Option<i32>, String) {
    let run = tokio::task::spawn_blocking(move || {
        std::process::Command::new(JETWAY)
            .args(["agent", "run", "--target", "127.0.0.1:9"])
            .args(arguments)
            .output()
            .unwrap()
    });
    let output = within(run).await.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_name_or_key_is_wrong_says_which_and_ends() {
    let site = Branch::start();
    site.enrol(json!({})).await;
    let gateway = format!("https://{}", site.lab.address());
    let file = |name: &str| path(&site.lab, name).display().to_string();
    let with = |gateway: &str, ca: &str, key: &str, name: &str| {
        let arguments = [
            "--gateway",
            gateway,
            "--ca",
            ca,
            "--key",
            key,
            "--name",
            name,
        ];
        arguments.map(str::to_owned).to_vec()
    };
    let (ca, key) = (file("ca.pem"), file("agent/agent.private.pem"));

    let stranger = Identity::self_signed(&["127.0.0.1"]);
    std::fs::write(file("other-ca.pem"), stranger.pem()).unwrap();
    let (status, told) = ended(with(&gateway, &file("other-ca.pem"), &key, NAME)).await;
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("certificate of the gateway is not trusted"),
        "{told}"
    );
    assert!(told.contains("--ca"), "{told}");

    // Known beside the key already.
    let (status, told) = ended(with(&gateway, &ca, &key, "branch-8")).await;
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("--name branch-8") && told.contains("enrolled as branch-7"),
        "{told}"
    );
    std::fs::remove_file(file("agent/agent.name")).unwrap();
    let (status, told) = ended(with(&gateway, &ca, &key, "branch-8")).await;
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("knows no agent branch-8 with this key"),
        "{told}"
    );

    let other = mint::generate("ES256".parse().unwrap()).unwrap();
    let pem = other.private_pem().unwrap();
    std::fs::write(file("other.pem"), pem.as_bytes()).unwrap();
    let (status, told) = ended(with(&gateway, &ca, &file("other.pem"), NAME)).await;
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("knows no agent branch-7 with this key"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_revoked_says_so_and_ends() {
    let site = Branch::start();
    site.enrol(json!({})).await;
    let arguments = [
        "--gateway".to_owned(),
        format!("https://{}", site.lab.address()),
        "--ca".to_owned(),
        path(&site.lab, "ca.pem").display().to_string(),
        "--key".to_owned(),
        site.key().display().to_string(),
        "--name".to_owned(),
        NAME.to_owned(),
    ];
    let run = tokio::spawn(ended(arguments.to_vec()));
    site.connected(true).await;
    let (status, _) = site
        .http(&format!("DELETE /jet/agents/{NAME}"), OPERATOR, "")
        .await;
    assert_eq!(status, 200);
    let (status, told) = within(run).await.unwrap();
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("branch-7 was revoked"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_is_taken_as_the_gateway_has_answered_it() {
    let site = Branch::start();
    let (_, invited) = site.invite(json!({})).await;
    site.enrol_with(&format!("{invited}\n"), "agent")
        .await
        .unwrap();
    assert_eq!(site.agents().await[0]["name"], NAME);
    // What is no enrolment at all is told as that, and not as one that has become invalid.
    for (file, words) in [
        (
            "{\"detail\": \"an agent of this name is enrolled\"}",
            "is enrolled",
        ),
        ("curl: (7) Failed to connect", "expected je-"),
    ] {
        let error = site.enrol_with(file, "other").await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(words) && !error.contains("valid"), "{error}");
    }
    let (status, refused) = site
        .http("POST /jet/agents", "not-an-enrolment", "{}")
        .await;
    assert_eq!(status, 401);
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("expected je-"), "{refused}");
}
