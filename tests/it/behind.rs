//! Sessions by rendezvous that the gateway stands inside of: it logs on for the client, to whom somebody vouches for, and nobody
//! between learns the password.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use jetway::demo::client::{ClientSession, Visit};
use jetway::demo::desktop::Desktop;
use jetway::demo::target;
use jetway::jet::exchange::Operation;
use jetway::peer::Site;
use jetway_lab::certificate::Identity;
use jetway_lab::tls::{server_config, thumbprint};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::{Branch, NAME};
use crate::lab::{
    Lab, Sealing, Target, closed, confirm, failure, log, logged, logged_times, opened,
    path as file, within,
};
use crate::rendezvous::{OPERATOR, Place, TRANSPORTS, bridge_seen, of, path};

const PASSWORD: &str = "correct horse";

/// `SSL_NOT_ALLOWED_BY_SERVER`: the token holds and asks for too much.
const DEMAND: u32 = 2;

/// `SSL_CERT_NOT_ON_SERVER`: the other side is not to be had.
const UNREACHABLE: u32 = 3;

/// The demo's desktop: it shows the name of the user who is logged on.
pub(crate) struct Desk {
    pub(crate) address: SocketAddr,
    thumbprint: String,
}

impl Desk {
    pub(crate) async fn start() -> Self {
        let identity = Identity::self_signed(&["desk.test"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(target::serve(
            listener,
            server_config(&identity),
            CancellationToken::new(),
        ));
        Self {
            address,
            thumbprint: thumbprint(&identity),
        }
    }

    /// SHA-256 of its certificate.
    pub(crate) fn thumbprint(&self) -> &str {
        &self.thumbprint
    }
}

/// A place for rendezvous whose gateway reads encrypted tokens.
pub(crate) struct Meeting {
    pub(crate) place: Place,
    sealing: Sealing,
    association: Uuid,
}

impl Meeting {
    pub(crate) fn start(further: &str) -> Self {
        let sealing = Sealing::new();
        let place = Place::start(&format!("{}{further}", sealing.table));
        Self {
            place,
            sealing,
            association: Uuid::new_v4(),
        }
    }

    /// A token of the association that has the gateway log on, with `changes` over its claims.
    pub(crate) fn logon(&self, changes: Value) -> String {
        let mut claims = json!({
            "jet_cm": "rdv", "dst_hst": null, "jet_aid": self.association,
            "dst_usr": "alice", "dst_pwd": PASSWORD,
        });
        let object = claims.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        self.sealing
            .token(&self.place.lab, &Lab::claims(nowhere, claims))
    }

    /// The same without credentials, as acceptors have it.
    fn plain(&self, changes: Value) -> String {
        self.place.token(self.association, changes)
    }

    /// Accepts by `transport`, with or without a token, and brings what comes to `target`. What came is in the list.
    async fn accept(
        &self,
        transport: &str,
        candidate: Uuid,
        token: Option<&str>,
        target: SocketAddr,
    ) -> Arc<Mutex<Vec<u8>>> {
        let accept = path(Operation::Accept, self.association, candidate);
        let peer = self.place.peer(transport, accept, token).await;
        let Ok(peer) = peer else {
            panic!("not accepted, log:\n{}", log());
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let target = TcpStream::connect(target).await.unwrap();
        tokio::spawn(bridge_seen(peer, target, Arc::clone(&seen)));
        seen
    }

    /// A port at which RDP clients are made the connector, by `transport` and with `token`.
    async fn connector(&self, transport: &str, candidate: Uuid, token: &str) -> SocketAddr {
        let connect = path(Operation::Connect, self.association, candidate);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peer = self.place.peer(transport, connect, Some(token)).await;
        let Ok(peer) = peer else {
            panic!("not connected, log:\n{}", log());
        };
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            // To the connector the client is what the target is to the acceptor.
            bridge_seen(peer, client, Arc::default()).await;
        });
        address
    }
}

/// An RDP client at `address` that shows `pcb`, whose picture says that the user of the token is logged on.
async fn visit(address: SocketAddr, pcb: Option<&str>) -> ClientSession {
    let mut visit = Visit::new(address, "stranger", "guess");
    visit.wsz_pcb = pcb;
    let session = within(ClientSession::connect(&visit)).await;
    let mut client = session.unwrap_or_else(|error| panic!("{error:#}, log:\n{}", log()));
    within(client.settle(visit.settle)).await.unwrap();
    let (width, height) = client.desktop_size();
    let image = client.image();
    let expected = Desktop::new(width, height, "alice");
    expected
        .check_still_part(image.dimensions(), image.as_raw())
        .unwrap();
    client
}

/// Why an RDP client is not let in.
async fn not_let_in(address: SocketAddr, pcb: Option<&str>) -> anyhow::Error {
    let mut visit = Visit::new(address, "stranger", "guess");
    visit.wsz_pcb = pcb;
    match within(ClientSession::connect(&visit)).await {
        Ok(_) => panic!("let in, log:\n{}", log()),
        Err(error) => error,
    }
}

/// What was sent is TLS, and nothing in it is the secret, in UTF-8 or UTF-16.
fn is_sealed(seen: &Mutex<Vec<u8>>) {
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 1000, "{} bytes", seen.len());
    let wide: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for secret in [PASSWORD.as_bytes(), &wide] {
        let found = seen.windows(secret.len()).any(|window| window == secret);
        assert!(!found, "the password was sent in clear");
    }
}

async fn audited(lab: &Lab, event: &str) {
    lab.audited(|record| record["detail"]["event"] == event)
        .await;
}

// J-DST-2 J-RDP-3
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_logs_on_to_acceptors_of_every_transport_whose_certificate_is_pinned() {
    let mut meeting = Meeting::start("");
    let desk = Desk::start().await;
    for (count, transport) in TRANSPORTS.into_iter().enumerate() {
        meeting.association = Uuid::new_v4();
        let token = meeting.logon(json!({ "cert_thumb256": desk.thumbprint }));
        let candidates = meeting.place.association(meeting.association, &token).await;
        let theirs = meeting.plain(json!({}));
        let candidate = of(&candidates, transport);
        let seen = meeting.accept(transport, candidate, Some(&theirs), desk.address);
        let seen = seen.await;
        let mut client = visit(meeting.place.lab.address(), Some(&token)).await;
        within(client.type_text("inside")).await.unwrap();
        let rows = crate::api::sessions(&meeting.place.lab, OPERATOR).await;
        let inside = &rows[0]["inside"];
        assert_eq!(inside["target_protocol"], 1, "{rows}");
        assert_eq!(inside["statistics"]["user"], "alice", "{rows}");
        client.leave().await;
        logged_times("Session closed", count + 1).await;
        is_sealed(&seen);
    }
    audited(&meeting.place.lab, "logon_requested").await;
    assert!(!log().contains(PASSWORD));
}

// J-DST-2
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_of_every_transport_may_be_an_rdp_client_that_is_logged_on() {
    let mut meeting = Meeting::start("");
    let desk = Desk::start().await;
    for (count, transport) in TRANSPORTS.into_iter().enumerate() {
        // Whether RDP was announced or not: the credentials say so.
        let announced = if count % 2 == 0 {
            json!("rdp")
        } else {
            Value::Null
        };
        meeting.association = Uuid::new_v4();
        let changes = json!({ "cert_thumb256": desk.thumbprint, "jet_ap": announced });
        let token = meeting.logon(changes);
        let candidates = meeting.place.association(meeting.association, &token).await;
        let candidate = of(&candidates, "tcp");
        let seen = meeting.accept("tcp", candidate, Some(&token), desk.address);
        let seen = seen.await;
        let address = meeting.connector(transport, candidate, &token).await;
        visit(address, None).await.leave().await;
        logged_times("Session closed", count + 1).await;
        is_sealed(&seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acceptor_with_another_certificate_is_told_nothing_and_the_client_why() {
    let meeting = Meeting::start("");
    let desk = Desk::start().await;
    let token = meeting.logon(json!({ "cert_thumb256": "07".repeat(32) }));
    let candidates = meeting.place.association(meeting.association, &token).await;
    let candidate = of(&candidates, "wss");
    meeting
        .accept("wss", candidate, Some(&token), desk.address)
        .await;
    not_let_in(meeting.place.lab.address(), Some(&token)).await;
    assert_eq!(
        logged("Session refused").await["rule"],
        "target-certificate"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_nobody_for_whom_nothing_vouches() {
    let meeting = Meeting::start("[jet]\npeers = \"anyone\"\n");
    let place = &meeting.place;
    // Nothing would say whose certificate it is.
    let unpinned = meeting.logon(json!({}));
    let create = format!("POST /jet/association/{}", meeting.association);
    let (status, problem) = place.http(&create, &unpinned, "").await;
    assert_eq!((status, &problem["rule"]), (403, &json!("unvouched")));
    let (status, problem) = place.http("POST /jet/tickets", &unpinned, "").await;
    assert_eq!((status, &problem["rule"]), (403, &json!("unvouched")));
    assert_eq!(
        failure(&mut place.lab.client(&unpinned).await).await,
        DEMAND
    );

    // An acceptor that knows two UUIDs, or has a token of something else.
    let elsewhere = meeting.plain(json!({ "jet_aid": null }));
    for (transport, shown) in [("tcp", None), ("ws", Some(elsewhere.as_str()))] {
        let association = Uuid::new_v4();
        let claims = json!({ "jet_aid": association, "cert_thumb256": "07".repeat(32) });
        let pinned = meeting.logon(claims);
        let candidates = place.association(association, &pinned).await;
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let accepted = place.peer(transport, accept, shown).await.ok().unwrap();
        crate::lab::forget_log();
        assert_eq!(failure(&mut place.lab.client(&pinned).await).await, DEMAND);
        assert_eq!(accepted.rest().await, b"", "{transport}");
        assert_eq!(logged("Session refused").await["rule"], "unvouched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_without_a_token_is_not_logged_on_by_that_of_another() {
    let meeting = Meeting::start("[jet]\npeers = \"anyone\"\n");
    let place = &meeting.place;
    let token = meeting.logon(json!({ "cert_thumb256": "07".repeat(32) }));
    let candidates = place.association(meeting.association, &token).await;
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, meeting.association, candidate);
    let connect = path(Operation::Connect, meeting.association, candidate);
    let accepted = place.peer("tcp", accept, Some(&token)).await.ok().unwrap();
    let mut connected = place.peer("tls", connect, None).await.ok().unwrap();
    let request = crate::lab::request(None).encode().unwrap();
    connected.send(&request).await;
    assert_eq!(accepted.rest().await, b"");
    let line = logged("Session refused").await;
    assert_eq!(
        line["reason"],
        "rendezvous: this association demands a token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_does_not_speak_rdp_is_refused_where_credentials_wait() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    for (transport, announced) in [("tcp", "rdp"), ("ws", "rdp"), ("wss", "none")] {
        let association = Uuid::new_v4();
        let claims = json!({
            "jet_aid": association, "jet_ap": announced, "cert_thumb256": "07".repeat(32),
        });
        let token = meeting.logon(claims);
        if announced == "none" {
            let create = format!("POST /jet/association/{association}");
            let (status, problem) = place.http(&create, &token, "").await;
            assert_eq!((status, &problem["rule"]), (403, &json!("injection")));
            continue;
        }
        crate::lab::forget_log();
        let candidates = place.association(association, &token).await;
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let connect = path(Operation::Connect, association, candidate);
        let accepted = place.peer(transport, accept, Some(&token)).await;
        let connected = place.peer(transport, connect, Some(&token)).await;
        let (accepted, mut connected) = (accepted.ok().unwrap(), connected.ok().unwrap());
        connected.send(b"SSH-2.0-client\r\n").await;
        assert_eq!(accepted.rest().await, b"");
        assert_eq!(logged("Session refused").await["rule"], "protocol");
    }
    // Unannounced: what comes is no RDP, and nothing can be injected.
    let association = Uuid::new_v4();
    let claims = json!({
        "jet_aid": association, "jet_ap": null, "cert_thumb256": "07".repeat(32),
    });
    let token = meeting.logon(claims);
    let candidates = place.association(association, &token).await;
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, association, candidate);
    let connect = path(Operation::Connect, association, candidate);
    let accepted = place.peer("tcp", accept, Some(&token)).await.ok().unwrap();
    let mut connected = place.peer("wss", connect, Some(&token)).await.ok().unwrap();
    crate::lab::forget_log();
    connected.send(b"SSH-2.0-client\r\n").await;
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(logged("Session refused").await["rule"], "injection");
}

/// A branch whose gateway reads encrypted tokens, and knows of these desks behind the agent that they have TLS alone.
fn branch(verify: &str, desks: &[&Desk]) -> (Branch, Sealing) {
    let sealing = Sealing::new();
    let listed = desks
        .iter()
        .map(|desk| format!("agent {NAME} {}", desk.address));
    let tls_only: Vec<String> = listed.collect();
    let further = format!(
        "{}[target]\nverify = \"{verify}\"\ntls_only = {tls_only:?}\n",
        sealing.table
    );
    (Branch::start_with(&further), sealing)
}

/// A token that leads to `target` behind the agent and has the gateway log on there.
pub(crate) fn behind(
    site: &Branch,
    sealing: &Sealing,
    target: SocketAddr,
    changes: Value,
) -> String {
    let mut claims = json!({
        "jet_cm": "rdv", "dst_hst": null, "jet_agent_id": NAME, "jet_agent_dst": target.to_string(),
        "sub": "mallory", "dst_usr": "alice", "dst_pwd": PASSWORD,
    });
    let object = claims.as_object_mut().unwrap();
    object.extend(changes.as_object().unwrap().clone());
    sealing.token(&site.lab, &Lab::claims(target, claims))
}

/// A port of the user's machine that leads behind the agent, as `jetway connect --listen` has it.
pub(crate) async fn local_port(site: &Branch, token: String) -> SocketAddr {
    let arguments = site.gateway();
    let peer = Arc::new(Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let agent = NAME.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &agent, None, false);
        let mut connection = connect.await.unwrap();
        let _ended = copy_bidirectional(&mut client, &mut *connection.stream).await;
    });
    address
}

// J-DST-2
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_logs_on_behind_an_agent_and_knows_the_target_again() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    let _stop = site.with_agent(&[desk.address]).await;
    let token = behind(&site, &sealing, desk.address, json!({}));
    let client = visit(site.lab.address(), Some(&token)).await;
    let rows = crate::api::sessions(&site.lab, "operator-secret").await;
    assert_eq!(rows[0]["agent"], NAME);
    assert_eq!(rows[0]["target"], desk.address.to_string());
    for leg in ["client_tls", "target_tls"] {
        assert!(
            rows[0]["inside"][leg].as_str().unwrap().starts_with("TLS"),
            "{rows}"
        );
    }
    assert_eq!(rows[0]["inside"]["statistics"]["user"], "alice");
    client.leave().await;
    let line = closed(1).await.remove(0);
    assert_eq!(
        (&line["agent"], &line["user"]),
        (&json!(NAME), &json!("mallory"))
    );
    let pins = std::fs::read_to_string(file(&site.lab, "jetway.pins")).unwrap();
    let pin = format!("agent {NAME} {} {}\n", desk.address, desk.thumbprint);
    assert_eq!(pins, pin);

    // The same by `jetway connect`: the client is the connector, and the target is the same one.
    let token = behind(&site, &sealing, desk.address, json!({}));
    let address = local_port(&site, token).await;
    visit(address, None).await.leave().await;
    closed(2).await;
    let secured = opened(2).await;
    let first: Vec<&Value> = secured.iter().map(|line| &line["first_use"]).collect();
    assert_eq!(first, [&json!(true), &json!(false)]);
    assert_eq!(
        std::fs::read_to_string(file(&site.lab, "jetway.pins")).unwrap(),
        pin
    );
    for secret in [PASSWORD, "guess"] {
        assert!(!log().contains(secret), "{secret}");
    }
}

/// A desktop that shows another certificate than the one that is known behind this agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_known_by_the_agent_that_it_is_behind() {
    let desk = Desk::start().await;
    let (mut site, sealing) = branch("first-use", &[&desk]);
    let (address, other) = (desk.address, "07".repeat(32));
    let pins = [
        format!("agent {NAME} {address} {other}\n"),
        // Equal addresses elsewhere are other targets.
        format!("{address} {other}\nagent branch-8 {address} {other}\n"),
    ];
    site.enrol(json!({})).await;
    for (pins, known) in pins.iter().zip([true, false]) {
        std::fs::write(file(&site.lab, "jetway.pins"), pins).unwrap();
        site.lab.restart().await;
        let stop = site.run(&site.key(), &[address]);
        site.connected(true).await;
        let token = behind(&site, &sealing, address, json!({}));
        if known {
            not_let_in(site.lab.address(), Some(&token)).await;
            let line = logged("Session refused").await;
            assert_eq!(line["rule"], "target-certificate");
        } else {
            visit(site.lab.address(), Some(&token)).await.leave().await;
        }
        stop.cancel();
    }
}

/// A client whose connection broke comes back with what it has: the token, or its ticket.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_comes_back_behind_the_agent_within_its_window() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    let _stop = site.with_agent(&[desk.address]).await;
    for (named, association) in [json!(Uuid::new_v4()), Value::Null].into_iter().enumerate() {
        let changes = json!({ "jet_reuse": 30, "jet_aid": association });
        let token = behind(&site, &sealing, desk.address, changes);
        for time in 1..=2 {
            let client = visit(site.lab.address(), Some(&token)).await;
            // While it lives, nobody else has a session with its token.
            assert_eq!(failure(&mut site.lab.client(&token).await).await, 5);
            client.leave().await;
            closed(named * 2 + time).await;
        }
    }
    let lines = opened(4).await;
    let first = lines.iter().filter(|line| line["first_use"] == true);
    assert_eq!(first.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_any_certificate_will_do_credentials_do_not_go_through_an_agent() {
    let (site, sealing) = branch("accept-any", &[]);
    let desk = Desk::start().await;
    let _stop = site.with_agent(&[desk.address]).await;
    let token = behind(&site, &sealing, desk.address, json!({}));
    assert_eq!(failure(&mut site.lab.client(&token).await).await, DEMAND);
    let line = logged("Session refused").await;
    assert_eq!(line["rule"], "unvouched");
    let (status, problem) = site.http("POST /jet/tickets", &token, "").await;
    assert_eq!((status, &problem["rule"]), (403, &json!("unvouched")));
    // A pin is better than a policy.
    let changes = json!({ "cert_thumb256": desk.thumbprint });
    let token = behind(&site, &sealing, desk.address, changes);
    visit(site.lab.address(), Some(&token)).await.leave().await;
    let changes = json!({ "cert_thumb256": "07".repeat(32) });
    let token = behind(&site, &sealing, desk.address, changes);
    not_let_in(site.lab.address(), Some(&token)).await;
    let lines = logged_times("Session refused", 2).await;
    assert_eq!(lines[1]["rule"], "target-certificate");
}

/// The user holds the token: they may create its association before the agent hears of it, and accept in its place.
#[tokio::test(flavor = "multi_thread")]
async fn the_bearer_of_a_token_is_not_the_agent_that_it_names() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    let _stop = site.with_agent(&[desk.address]).await;
    let association = Uuid::new_v4();
    let changes = json!({ "jet_aid": association });
    let token = behind(&site, &sealing, desk.address, changes);
    let create = format!("POST /jet/association/{association}");
    assert_eq!(site.http(&create, &token, "").await.0, 200);
    let gather = format!("POST /jet/gather/{association}");
    let (_, gathered) = site.http(&gather, &token, "").await;
    let candidate = gathered["candidates"].as_array().unwrap().iter();
    let mut candidate = candidate.filter(|one| one["url"].as_str().unwrap().starts_with("tls://"));
    let candidate: Uuid = candidate.next().unwrap()["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let arguments = site.gateway();
    let peer = Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap();
    let url = format!("tls://{}", site.lab.address()).parse().unwrap();
    let at = |operation| path(operation, association, candidate);
    let accepted = peer.candidate(&url, at(Operation::Accept), &token).await;
    let mut accepted = accepted.unwrap();
    let mut connected = peer
        .candidate(&url, at(Operation::Connect), &token)
        .await
        .unwrap();
    let request = crate::lab::request(None).encode().unwrap();
    connected.stream.write_all(&request).await.unwrap();
    connected.stream.flush().await.unwrap();
    let mut rest = Vec::new();
    let _end = within(accepted.stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    let line = logged("Session refused").await;
    assert_eq!(
        line["reason"],
        "the acceptor is not agent branch-7, or is for another target"
    );
}

/// The gateway itself offers, and somebody accepts who has the token and not the agent's key.
#[tokio::test(flavor = "multi_thread")]
async fn who_accepts_in_the_place_of_an_agent_meets_nobody() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    site.enrol(json!({})).await;
    let mut agent = site.by_hand().await;
    site.connected(true).await;
    let token = behind(&site, &sealing, desk.address, json!({}));
    let mut client = site.lab.client(&token).await;
    let offer = within(agent.next()).await.unwrap().unwrap();
    let offer: Value = serde_json::from_str(offer.to_text().unwrap()).unwrap();
    let id = |text: &Value| text.as_str().unwrap().parse::<Uuid>().unwrap();
    let candidate = &offer["candidates"][0];
    let accept = path(
        Operation::Accept,
        id(&offer["offer"]["id"]),
        id(&candidate["id"]),
    );
    let url = format!("tcp://{}", site.lab.address()).parse().unwrap();
    // Named without TLS, as the candidate is.
    let gateway = format!("http://{}", site.lab.address()).parse().unwrap();
    let peer = Site::new(&gateway, None).unwrap();
    let mut accepted = peer.candidate(&url, accept, &token).await.unwrap();
    assert_eq!(failure(&mut client).await, UNREACHABLE);
    let mut rest = Vec::new();
    let _end = within(accepted.stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    let line = logged("Session refused").await;
    assert_eq!(
        line["reason"],
        "the acceptor is not agent branch-7, or is for another target"
    );
}

/// Two tokens of one association, of which one leads elsewhere: who is met by the other's offer is not its target.
#[tokio::test(flavor = "multi_thread")]
async fn an_association_leads_to_one_target() {
    let (desk, trap) = (Desk::start().await, Desk::start().await);
    let (site, sealing) = branch("first-use", &[&desk, &trap]);
    let _stop = site.with_agent(&[desk.address, trap.address]).await;
    let association = Uuid::new_v4();
    let changes = json!({ "jet_aid": association });
    let there = behind(&site, &sealing, desk.address, changes.clone());
    let elsewhere = behind(&site, &sealing, trap.address, changes);
    let create = format!("POST /jet/association/{association}");
    assert_eq!(site.http(&create, &there, "").await.0, 200);
    let gather = format!("POST /jet/gather/{association}");
    assert_eq!(site.http(&gather, &there, "").await.0, 200);
    let offer = json!({ "id": association, "role": "client", "transports": "tls", "version": 3 });
    let path = format!("POST /jet/offer/{NAME}");
    let (status, answer) = site.http(&path, &elsewhere, &offer.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let (status, problem) = site.http(&path, &there, &offer.to_string()).await;
    assert_eq!(status, 409, "{problem}");
    let candidate: Uuid = answer["candidates"][0]["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let arguments = site.gateway();
    let peer = Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap();
    let url = format!("tls://{}", site.lab.address()).parse().unwrap();
    let connect = crate::rendezvous::path(Operation::Connect, association, candidate);
    let mut connected = peer.candidate(&url, connect, &there).await.unwrap();
    let request = crate::lab::request(None).encode().unwrap();
    connected.stream.write_all(&request).await.unwrap();
    connected.stream.flush().await.unwrap();
    let line = logged("Session refused").await;
    assert_eq!(line["rule"], "agent", "{line}");
    assert!(!log().contains("\"mode\""), "opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_target_of_the_token_is_tried_where_the_agent_reaches_not_the_first() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    // Bound and not listening: whoever connects is refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let down = socket.local_addr().unwrap();
    let _stop = site.with_agent(&[down, desk.address]).await;
    let unlisted = SocketAddr::from(([127, 0, 0, 1], 1));
    let alternatives = json!({
        "jet_aid": Uuid::new_v4(),
        "jet_agent_alt": [unlisted.to_string(), desk.address.to_string()],
    });
    let token = behind(&site, &sealing, down, alternatives);
    visit(site.lab.address(), Some(&token)).await.leave().await;
    let line = closed(1).await.remove(0);
    assert_eq!(line["target"], desk.address.to_string());
    let only = json!({ "jet_agent_alt": [unlisted.to_string()] });
    let token = behind(&site, &sealing, down, only);
    assert_eq!(
        failure(&mut site.lab.client(&token).await).await,
        UNREACHABLE
    );
}

// J-SEQ-2
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_inspected_does_not_go_past_the_gateway() {
    let desk = Desk::start().await;
    let (mut site, sealing) = branch("first-use", &[&desk]);
    site.host_addresses = vec!["127.0.0.1".parse().unwrap()];
    let _stop = site.with_agent(&[desk.address]).await;
    let arguments = site.gateway();
    let peer = Arc::new(Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap());
    for (changes, transport) in [
        (json!({}), "tls"),
        (json!({ "dst_usr": null, "dst_pwd": null }), "tcp"),
    ] {
        let token = behind(&site, &sealing, desk.address, changes);
        let agent = NAME.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &agent, None, true);
        let connection = within(connect).await.unwrap();
        assert_eq!(connection.candidate.url.transport.name(), transport);
        connection.forget(&peer, &token).await;
    }
}

/// Every way in, of either peer, with every demand.
// J-REC-1 J-FLT-1
#[tokio::test(flavor = "multi_thread")]
async fn recording_and_filtering_are_refused_to_either_peer_of_a_rendezvous_in_every_way_in() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    let association = meeting.association;
    // The association is there, an acceptor waits, and then somebody demands more.
    let first = meeting.plain(json!({}));
    let candidates = place.association(association, &first).await;
    let waiting = path(Operation::Accept, association, of(&candidates, "tcp"));
    let waiting = place.peer("tcp", waiting, Some(&first)).await.ok().unwrap();
    let mut refused = 0;
    for (claims, rule) in [
        (json!({ "jet_rec": true }), "recording"),
        (json!({ "jet_rec": "proxy" }), "recording"),
        (json!({ "jet_rec": "stream" }), "client-recording"),
        (json!({ "jetflt": true }), "filtering"),
        (json!({ "jet_flt": true }), "filtering"),
    ] {
        for protocol in [json!("rdp"), json!("ssh"), Value::Null] {
            let mut claims = claims.clone();
            claims["jet_ap"] = protocol;
            let token = meeting.plain(claims.clone());
            // To create, and to have a ticket.
            for head in [
                format!("POST /jet/association/{association}"),
                format!("POST /jet/association/{}", Uuid::new_v4()),
                "POST /jet/tickets".to_owned(),
            ] {
                let bearer = if head.contains(&association.to_string()) || head.ends_with("tickets")
                {
                    token.clone()
                } else {
                    let other = head.rsplit('/').next().unwrap().parse().unwrap();
                    place.token(other, claims.clone())
                };
                let (status, problem) = place.http(&head, &bearer, "").await;
                assert_eq!(
                    (status, problem["rule"].as_str()),
                    (403, Some(rule)),
                    "{head}"
                );
            }
            // To accept, to connect and to test, by packet and by WebSocket.
            for operation in [Operation::Accept, Operation::Connect, Operation::Test] {
                for transport in TRANSPORTS {
                    let at = of(&candidates, "tcp");
                    let peer =
                        place.peer(transport, path(operation, association, at), Some(&token));
                    assert_eq!(
                        peer.await.err(),
                        Some(403),
                        "{operation} {transport} {rule}"
                    );
                    refused += 1;
                    let lines = logged_times("Rendezvous refused", refused).await;
                    assert_eq!(lines.last().unwrap()["rule"], rule);
                }
            }
        }
        // An RDP client.
        let mut claims = claims.clone();
        claims["jet_ap"] = json!("rdp");
        crate::lab::forget_log();
        refused = 0;
        let token = meeting.plain(claims);
        assert_eq!(failure(&mut place.lab.client(&token).await).await, DEMAND);
        assert_eq!(logged("Session refused").await["rule"], rule);
    }
    // The acceptor has heard nothing of all that, and can be met.
    let client = meeting.plain(json!({ "jet_ap": "rdp" }));
    let desk = Target::start().await;
    let target = TcpStream::connect(desk.address).await.unwrap();
    tokio::spawn(bridge_seen(waiting, target, Arc::default()));
    let mut client = place.lab.client(&client).await;
    assert_eq!(confirm(&mut client).await, crate::lab::SELECTED_TLS);
}

// J-REC-1 J-FLT-1
#[tokio::test(flavor = "multi_thread")]
async fn recording_and_filtering_are_refused_behind_an_agent_before_it_hears_of_it() {
    let desk = Desk::start().await;
    let (site, sealing) = branch("first-use", &[&desk]);
    let _stop = site.with_agent(&[desk.address]).await;
    for (count, (claims, rule)) in [
        (json!({ "jet_rec": true }), "recording"),
        (json!({ "jet_rec": "stream" }), "client-recording"),
        (json!({ "jetflt": true }), "filtering"),
        (json!({ "jet_flt": true }), "filtering"),
    ]
    .into_iter()
    .enumerate()
    {
        let token = behind(&site, &sealing, desk.address, claims.clone());
        assert_eq!(failure(&mut site.lab.client(&token).await).await, DEMAND);
        let lines = logged_times("Session refused", count + 1).await;
        assert_eq!(lines[count]["rule"], rule);
        assert_eq!(lines[count]["target"], desk.address.to_string());
        let association = Uuid::new_v4();
        for (head, body) in [
            ("POST /jet/tickets".to_owned(), String::new()),
            (
                format!("POST /jet/association/{association}"),
                String::new(),
            ),
        ] {
            let (status, problem) = site.http(&head, &token, &body).await;
            assert_eq!(
                (status, problem["rule"].as_str()),
                (403, Some(rule)),
                "{head}"
            );
        }
        let arguments = site.gateway();
        let peer = Arc::new(Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap());
        let agent = NAME.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &agent, None, false);
        let error = format!("{:#}", within(connect).await.unwrap_err());
        assert!(error.contains("the token"), "{error}");
    }
    assert!(!log().contains("Offer declined"));
    assert!(!log().contains("Session opened"), "the agent was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_association_announces_holds_for_a_client_whose_token_says_nothing() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    let ssh = meeting.plain(json!({ "jet_ap": "ssh" }));
    let candidates = place.association(meeting.association, &ssh).await;
    let candidate = of(&candidates, "tcp");
    let accept = path(Operation::Accept, meeting.association, candidate);
    let connect = path(Operation::Connect, meeting.association, candidate);
    let accepted = place.peer("tcp", accept, Some(&ssh)).await.ok().unwrap();
    let silent = meeting.plain(json!({}));
    // An RDP client is none of SSH.
    let mut client = place.lab.client(&silent).await;
    assert_eq!(failure(&mut client).await, 4);
    let other = meeting.plain(json!({ "jet_ap": "rdp" }));
    let mut client = place.lab.client(&other).await;
    assert_eq!(failure(&mut client).await, UNREACHABLE);
    let mut connected = place.peer("ws", connect, Some(&silent)).await.ok().unwrap();
    connected.send(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(accepted.rest().await, b"");
    let lines = logged_times("Session refused", 3).await;
    let rules: Vec<&Value> = lines.iter().map(|line| &line["rule"]).collect();
    assert_eq!(rules, ["protocol", "rendezvous", "protocol"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_of_one_association_that_pin_two_certificates_contradict_each_other() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    let pinned = json!({ "cert_thumb256": "08".repeat(32) });
    let token = meeting.logon(json!({ "cert_thumb256": "07".repeat(32) }));
    let candidates = place.association(meeting.association, &token).await;
    let candidate = of(&candidates, "tls");
    let accept = path(Operation::Accept, meeting.association, candidate);
    // It says that it is somebody else than the client is to meet.
    let theirs = meeting.plain(pinned);
    let accepted = place.peer("tls", accept, Some(&theirs)).await.ok().unwrap();
    assert_eq!(
        failure(&mut place.lab.client(&token).await).await,
        UNREACHABLE
    );
    assert_eq!(accepted.rest().await, b"");
    assert_eq!(logged("Session refused").await["rule"], "rendezvous");
}

/// With `session.inspect = "always"`, acceptors are judged by a pin or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn an_acceptor_that_must_be_inspected_needs_a_pin() {
    let meeting = Meeting::start("[session]\ninspect = \"always\"\n");
    let (place, desk) = (&meeting.place, Desk::start().await);
    let plain = meeting.plain(json!({ "jet_ap": "rdp" }));
    let candidates = place.association(meeting.association, &plain).await;
    let candidate = of(&candidates, "tcp");
    let theirs = meeting.plain(json!({}));
    meeting
        .accept("tcp", candidate, Some(&theirs), desk.address)
        .await;
    assert_eq!(failure(&mut place.lab.client(&plain).await).await, DEMAND);
    assert_eq!(logged("Session refused").await["rule"], "unvouched");
    let pinned = json!({ "jet_ap": "rdp", "cert_thumb256": desk.thumbprint });
    let pinned = meeting.plain(pinned);
    let mut visit = Visit::new(place.lab.address(), "alice", "typed");
    visit.wsz_pcb = Some(&pinned);
    let client = within(ClientSession::connect(&visit)).await.unwrap();
    client.leave().await;
    logged("Session closed").await;
    audited(&place.lab, "logon_requested").await;
}

/// What begins as RDP does not, and was not announced as something else, is not let past the inspection.
#[tokio::test(flavor = "multi_thread")]
async fn where_everything_is_inspected_a_session_says_what_else_it_is() {
    let sealing = Sealing::new();
    let always = format!("{}[session]\ninspect = \"always\"\n", sealing.table);
    let site = Branch::start_with(&always);
    let target = crate::agent::greeter().await;
    let _stop = site.with_agent(&[target]).await;
    let arguments = site.gateway();
    let peer = Arc::new(Site::new(&arguments.gateway, arguments.ca.as_deref()).unwrap());
    for announced in [json!("ssh"), Value::Null] {
        let changes = json!({ "dst_usr": null, "dst_pwd": null, "jet_ap": announced });
        let token = behind(&site, &sealing, target, changes);
        let agent = NAME.parse().unwrap();
        let connect = jetway::peer::connect::connect(&peer, &token, &agent, None, false);
        let mut stream = within(connect).await.unwrap().stream;
        let mut said = Vec::new();
        if announced.is_null() {
            let _end = within(stream.read_to_end(&mut said)).await;
            assert_eq!(said, b"");
            assert_eq!(logged("Session refused").await["rule"], "inspection");
        } else {
            said.resize(15, 0);
            within(stream.read_exact(&mut said)).await.unwrap();
            assert_eq!(said, b"SSH-2.0-hello\r\n");
        }
    }
}

/// The acceptor agrees to TLS and is gone: the client, which is in TLS by then, is told there.
#[tokio::test(flavor = "multi_thread")]
async fn an_acceptor_that_goes_before_its_leg_is_secured_is_told_as_such() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    for (count, transport) in TRANSPORTS.into_iter().enumerate() {
        let association = Uuid::new_v4();
        let claims = json!({ "jet_aid": association, "cert_thumb256": "07".repeat(32) });
        let token = meeting.logon(claims);
        let candidates = place.association(association, &token).await;
        let accept = path(Operation::Accept, association, of(&candidates, transport));
        let accepted = place.peer(transport, accept, Some(&token)).await;
        let mut accepted = accepted.ok().unwrap();
        tokio::spawn(async move {
            // TPKT, X.224, cookie and negotiation of the gateway, all of it at once.
            accepted.receive(7).await;
            accepted.send(&crate::lab::SELECTED_TLS.encode()).await;
        });
        not_let_in(place.lab.address(), Some(&token)).await;
        let lines = logged_times("Session refused", count + 1).await;
        assert_eq!(lines[count]["rule"], "target", "{transport}");
        let reason = lines[count]["reason"].as_str().unwrap();
        assert!(reason.starts_with("TLS with the target: "), "{reason}");
    }
}
