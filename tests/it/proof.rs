//! A client that is to prove itself (`prx_usr`, `prx_pwd`) does so before anybody hears of it, and cannot guess for long.

use std::net::SocketAddr;
use std::sync::Arc;

use jetway::jet::exchange::Operation;
use jetway::limits::{PASSWORD_DELAY, PASSWORD_GUESSES};
use jetway::rdp::connection_request::{
    PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL, RESTRICTED_ADMIN_MODE_REQUIRED,
};
use jetway::rdp::credssp::client::{LogonClient, LogonError, Package, Progress};
use jetway::rdp::credssp::{SubjectPublicKeyInfo, frame_length};
use jetway::rdp::preconnection;
use jetway::target_certificate::{Stakes, TargetCertificate};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use uuid::Uuid;

use crate::agent::{Branch, NAME};
use crate::behind::{Desk, Meeting, behind, local_port};
use crate::lab::{
    CLIENT_HELLO, Lab, PATIENCE, Sealing, Target, confirm, failure, log, logged_times, opened,
    request, within,
};
use crate::rendezvous::{of, path};

const PROXY_PASSWORD: &str = "battery staple";

/// `HYBRID_REQUIRED_BY_SERVER`.
const PROVE_YOURSELF: u32 = 5;

/// RDSTLS ([MS-RDPBCGR] 2.2.1.1.1).
const RDSTLS: u32 = 0x4;

/// STATUS_LOGON_FAILURE.
const LOGON_FAILURE: u32 = 0xc000_006d;

/// What clients offer that cannot prove themselves.
const WITHOUT_NLA: [u32; 4] = [PROTOCOL_SSL, PROTOCOL_SSL | RDSTLS, RDSTLS, 0];

/// A gateway with a certificate, whose targets may show any.
fn site() -> (Branch, Sealing) {
    let sealing = Sealing::new();
    let further = format!("{}[target]\nverify = \"accept-any\"\n", sealing.table);
    (Branch::start_with(&further), sealing)
}

/// Claims that have the gateway log on, for a client that proves itself.
fn logon() -> Value {
    json!({
        "dst_usr": "alice", "dst_pwd": "correct horse", "prx_usr": "visitor", "prx_pwd": PROXY_PASSWORD,
    })
}

fn with(mut claims: Value, changes: Value) -> Value {
    let object = claims.as_object_mut().unwrap();
    object.extend(changes.as_object().unwrap().clone());
    claims
}

/// The Connection Request of a client that offers `protocols`.
pub(crate) fn offering(protocols: u32, flags: u8, ticket: Option<&str>) -> Vec<u8> {
    let mut request = request(ticket);
    let negotiation = request.negotiation.as_mut().unwrap();
    negotiation.requested_protocols = protocols;
    negotiation.flags = flags;
    request.encode().unwrap()
}

pub(crate) async fn send(lab: &Lab, token: Option<&str>, bytes: &[u8]) -> TcpStream {
    let mut stream = lab.connect().await;
    let mut all = token.map_or_else(Vec::new, |token| {
        preconnection::encode_v2(0, token).unwrap()
    });
    all.extend_from_slice(bytes);
    stream.write_all(&all).await.unwrap();
    stream
}

/// The refusals so far, each for want of a proof.
async fn unproven(times: usize) {
    for line in logged_times("Session refused", times).await {
        assert_eq!(line["rule"], "client-proof", "{line}");
    }
}

/// TLS at once is answered with the alert `access_denied` and nothing else.
async fn is_alerted(mut client: TcpStream) {
    client.shutdown().await.unwrap();
    let mut alert = Vec::new();
    within(client.read_to_end(&mut alert)).await.unwrap();
    assert_eq!(alert, [0x15, 3, 3, 0, 2, 2, 0x31]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_themselves_are_refused_before_the_target_is_contacted() {
    let ((site, sealing), target) = (site(), Target::start().await);
    let alternative = Target::start().await;
    let changes = with(
        logon(),
        json!({ "dst_alt": [alternative.address.to_string()] }),
    );
    let token = sealing.token(&site.lab, &Lab::claims(target.address, changes));
    let mut refused = 0;
    for protocols in WITHOUT_NLA {
        let by_token = offering(protocols, 0, None);
        let ticket = crate::api::ticket(&site.lab, &token).await;
        let by_ticket = offering(protocols, 0, Some(&ticket));
        let restricted = offering(protocols, RESTRICTED_ADMIN_MODE_REQUIRED, None);
        for (shown, bytes) in [
            (Some(token.as_str()), by_token),
            (None, by_ticket),
            (Some(&token), restricted),
        ] {
            let mut client = send(&site.lab, shown, &bytes).await;
            assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
            refused += 1;
        }
    }
    // No negotiation request at all.
    let mut plain = request(None);
    plain.negotiation = None;
    let mut client = send(&site.lab, Some(&token), &plain.encode().unwrap()).await;
    assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
    // TLS behind the preconnection PDU.
    is_alerted(send(&site.lab, Some(&token), CLIENT_HELLO).await).await;
    unproven(refused + 2).await;
    assert_eq!(target.connections() + alternative.connections(), 0);

    // The token is as it was.
    for protocols in [PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX] {
        let mut client = send(&site.lab, Some(&token), &offering(protocols, 0, None)).await;
        let confirmed = format!("{:?}", confirm(&mut client).await);
        assert!(
            confirmed.contains(&format!("protocol: {protocols}")),
            "{confirmed}"
        );
    }
    assert_eq!(target.connections(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_themselves_are_refused_before_an_agent_hears_of_them() {
    let sealing = Sealing::new();
    let site = Branch::start_with(&sealing.table);
    let target = Target::start().await;
    let _stop = site.with_agent(&[target.address]).await;
    let mut refused = 0;
    for protocols in WITHOUT_NLA {
        let token = behind(&site, &sealing, target.address, logon());
        let bytes = offering(protocols, 0, None);
        let mut client = send(&site.lab, Some(&token), &bytes).await;
        assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
        let ticket = crate::api::ticket(&site.lab, &token).await;
        let bytes = offering(protocols, 0, Some(&ticket));
        let mut client = send(&site.lab, None, &bytes).await;
        assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
        refused += 2;
    }
    let token = behind(&site, &sealing, target.address, logon());
    is_alerted(send(&site.lab, Some(&token), CLIENT_HELLO).await).await;
    unproven(refused + 1).await;
    assert_eq!(target.connections(), 0);
}

/// By `jetway connect` the agent is offered the session before its client has said a word.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_themselves_are_refused_before_the_agents_target_is_contacted() {
    let sealing = Sealing::new();
    let target = Target::start().await;
    let tls_only = format!("agent {NAME} {}", target.address);
    let further = format!("{}[target]\ntls_only = [{tls_only:?}]\n", sealing.table);
    let site = Branch::start_with(&further);
    let _stop = site.with_agent(&[target.address]).await;
    let token = || behind(&site, &sealing, target.address, logon());
    for (refused, protocols) in WITHOUT_NLA.into_iter().enumerate() {
        let mut client = TcpStream::connect(local_port(&site, token()).await)
            .await
            .unwrap();
        let asks = offering(protocols, 0, None);
        client.write_all(&asks).await.unwrap();
        assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
        unproven(refused + 1).await;
    }
    let mut client = TcpStream::connect(local_port(&site, token()).await)
        .await
        .unwrap();
    client.write_all(CLIENT_HELLO).await.unwrap();
    is_alerted(client).await;
    assert_eq!(target.connections(), 0);
    // Who can leads there all the same.
    let client = TcpStream::connect(local_port(&site, token()).await)
        .await
        .unwrap();
    let proven = prove(client, "visitor", PROXY_PASSWORD).await;
    assert!(proven.unwrap().is_ok());
    assert_eq!(target.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_themselves_meet_no_acceptor() {
    let meeting = Meeting::start("");
    let place = &meeting.place;
    let mut refused = 0;
    for (as_rdp, transport) in [(true, "tcp"), (false, "tcp"), (false, "wss")] {
        let association = Uuid::new_v4();
        let changes = with(
            logon(),
            json!({ "jet_aid": association, "cert_thumb256": "07".repeat(32) }),
        );
        let token = meeting.logon(changes);
        let candidates = place.association(association, &token).await;
        let candidate = of(&candidates, transport);
        let accept = path(Operation::Accept, association, candidate);
        let accepted = place.peer(transport, accept, Some(&token)).await;
        let accepted = accepted.ok().unwrap();
        let bytes = offering(PROTOCOL_SSL, 0, None);
        if as_rdp {
            let mut client = send(&place.lab, Some(&token), &bytes).await;
            assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
            // It waits on, for somebody who can.
            drop(accepted);
        } else {
            let connect = path(Operation::Connect, association, candidate);
            let connected = place.peer(transport, connect, Some(&token)).await;
            let mut connected = connected.ok().unwrap();
            connected.send(&bytes).await;
            assert_eq!(accepted.rest().await, b"");
        }
        refused += 1;
        unproven(refused).await;
    }
}

/// What comes instead of RDP is refused before the target is contacted, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_rdp_is_refused_before_the_target_of_an_inspected_session_is_contacted() {
    let ((site, sealing), target) = (site(), Target::start().await);
    for (claims, rule) in [
        (logon(), "injection"),
        (json!({ "cert_thumb256": "07".repeat(32) }), "pinning"),
    ] {
        let claims = with(claims, json!({ "jet_ap": null }));
        let token = sealing.token(&site.lab, &Lab::claims(target.address, claims));
        crate::lab::forget_log();
        let mut client = send(&site.lab, Some(&token), b"SSH-2.0-client\r\n").await;
        let mut rest = Vec::new();
        let _end = within(client.read_to_end(&mut rest)).await;
        let line = logged_times("Session refused", 1).await.remove(0);
        assert_eq!((&line["rule"], rest), (&json!(rule), Vec::new()));
    }
    assert_eq!(target.connections(), 0);
}

/// TLS with whatever certificate the gateway shows.
pub(crate) async fn tls(stream: TcpStream) -> TlsStream<TcpStream> {
    let verifier = TargetCertificate::AcceptAny;
    let verifier = verifier
        .verifier(&"gw.test:1".parse().unwrap(), Stakes::Nothing)
        .unwrap();
    let tls = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from("gw.test").unwrap();
    let connect = TlsConnector::from(Arc::new(tls)).connect(name, stream);
    within(connect).await.unwrap()
}

/// A client at `from` that offers NLA and says it knows the password. `None`: it was refused before it could.
async fn log_on(
    lab: &Lab,
    from: [u8; 4],
    token: &str,
    password: &str,
) -> Option<Result<TlsStream<TcpStream>, u32>> {
    log_on_as("visitor", lab, from, token, password).await
}

/// The same by this name.
async fn log_on_as(
    user: &str,
    lab: &Lab,
    from: [u8; 4],
    token: &str,
    password: &str,
) -> Option<Result<TlsStream<TcpStream>, u32>> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(lab.address()).await.unwrap();
    let pdu = preconnection::encode_v2(0, token).unwrap();
    stream.write_all(&pdu).await.unwrap();
    prove(stream, user, password).await
}

/// The same on a connection of which the gateway knows the token.
async fn prove(
    mut stream: TcpStream,
    user: &str,
    password: &str,
) -> Option<Result<TlsStream<TcpStream>, u32>> {
    let asks = offering(PROTOCOL_SSL | PROTOCOL_HYBRID, 0, None);
    stream.write_all(&asks).await.unwrap();
    match format!("{:?}", confirm(&mut stream).await) {
        refused if refused.contains("Failure") => {
            assert!(refused.contains("code: 5"), "{refused}");
            return None;
        }
        selected => assert!(selected.contains("protocol: 2"), "{selected}"),
    }
    let mut stream = tls(stream).await;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let info = SubjectPublicKeyInfo::of_certificate(&certificate).unwrap();
    let password = SecretString::from(password.to_owned());
    let mut logon = LogonClient::new(info.key, user, &password, "gw.test", Package::Ntlm).unwrap();
    let mut answer: Option<Vec<u8>> = None;
    loop {
        let progress = logon
            .exchange(answer.as_deref())
            .and_then(|mut exchange| exchange.start());
        match progress {
            Ok(Progress::Send { frame, last }) => {
                stream.write_all(&frame).await.unwrap();
                if last {
                    return Some(Ok(stream));
                }
            }
            Ok(Progress::AskKdc(_)) => panic!("NTLM asks nobody"),
            Err(LogonError::Status(status)) => return Some(Err(status)),
            Err(error) => panic!("{error}, log:\n{}", log()),
        }
        let mut bytes = Vec::new();
        while frame_length(&bytes).unwrap() != Some(bytes.len()) {
            let read = within(stream.read_buf(&mut bytes)).await.unwrap();
            assert!(read > 0, "closed, log:\n{}", log());
        }
        answer = Some(bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_spent_by_wrong_passwords_over_connections_addresses_and_a_restart() {
    let ((mut site, sealing), target) = (site(), Target::start().await);
    let token = sealing.token(&site.lab, &Lab::claims(target.address, logon()));
    for attempt in 1..=PASSWORD_GUESSES {
        let from = [127, 0, 0, u8::try_from(attempt).unwrap()];
        let told = log_on(&site.lab, from, &token, "guess").await;
        assert_eq!(told.unwrap().unwrap_err(), LOGON_FAILURE, "{attempt}");
    }
    let lines = logged_times("Session refused", PASSWORD_GUESSES.try_into().unwrap()).await;
    let last = lines.last().unwrap()["reason"].as_str().unwrap();
    assert!(last.contains("the token is spent"), "{last}");
    let contacted = target.connections();
    for restarted in [false, true] {
        if restarted {
            site.lab.restart().await;
        }
        // The right password does not help any more, by whatever carrier.
        crate::lab::forget_log();
        let told = log_on(&site.lab, [127, 0, 0, 1], &token, PROXY_PASSWORD).await;
        assert!(told.is_none());
        let line = logged_times("Session refused", 1).await.remove(0);
        assert_eq!(line["rule"], "guessed");
        let ticket = crate::api::ticket(&site.lab, &token).await;
        let bytes = offering(PROTOCOL_HYBRID, 0, Some(&ticket));
        let mut client = send(&site.lab, None, &bytes).await;
        assert_eq!(failure(&mut client).await, PROVE_YOURSELF);
    }
    assert_eq!(target.connections(), contacted);
    // Another token is another matter.
    let other = sealing.token(&site.lab, &Lab::claims(target.address, logon()));
    let told = log_on(&site.lab, [127, 0, 0, 1], &other, "guess").await;
    assert_eq!(told.unwrap().unwrap_err(), LOGON_FAILURE);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_guesses_do_not_pass_the_count() {
    let ((site, sealing), target) = (site(), Target::start().await);
    let token = sealing.token(&site.lab, &Lab::claims(target.address, logon()));
    let guesses = async {
        let mut answered = 0;
        while !log().contains("\"rule\":\"guessed\"") {
            let attempt = || Box::pin(log_on(&site.lab, [127, 0, 0, 1], &token, "guess"));
            let told = tokio::join!(attempt(), attempt(), attempt(), attempt());
            for told in [told.0, told.1, told.2, told.3].into_iter().flatten() {
                assert_eq!(told.unwrap_err(), LOGON_FAILURE);
                answered += 1;
            }
        }
        answered
    };
    let answered = tokio::time::timeout(PATIENCE * 2, Box::pin(guesses))
        .await
        .unwrap();
    assert_eq!(answered, PASSWORD_GUESSES);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_each_wrong_password_is_held_back_for_longer_than_that_to_the_one_before() {
    let ((site, sealing), target) = (site(), Target::start().await);
    let token = sealing.token(&site.lab, &Lab::claims(target.address, logon()));
    let mut delay = PASSWORD_DELAY;
    for attempt in 1..=2 {
        // However slow the machine is, it is never faster than this.
        let asked = Instant::now();
        let told = log_on(&site.lab, [127, 0, 0, 1], &token, "guess").await;
        assert_eq!(told.unwrap().unwrap_err(), LOGON_FAILURE);
        assert!(asked.elapsed() >= delay, "{attempt}: {:?}", asked.elapsed());
        delay *= 2;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_mistypes_twice_still_gets_in() {
    let ((site, sealing), desk) = (site(), Desk::start().await);
    let token = sealing.token(&site.lab, &Lab::claims(desk.address, logon()));
    for password in ["batery staple", "Battery staple"] {
        let told = log_on(&site.lab, [127, 0, 0, 1], &token, password).await;
        assert_eq!(told.unwrap().unwrap_err(), LOGON_FAILURE);
    }
    let told = log_on(&site.lab, [127, 0, 0, 1], &token, PROXY_PASSWORD).await;
    let client = told.unwrap().unwrap();
    let line = opened(1).await.remove(0);
    assert_eq!(line["client_logon"], "ntlm");
    drop(client);
    assert!(!log().contains(PROXY_PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_write_its_user_in_any_case_beyond_ascii() {
    let ((site, sealing), desk) = (site(), Desk::start().await);
    for (named, shown) in [("Jörg", "JÖRG"), ("JÖRG", "jörg"), ("ольга", "Ольга")] {
        let claims = with(logon(), json!({ "prx_usr": named }));
        let token = sealing.token(&site.lab, &Lab::claims(desk.address, claims));
        let from = [127, 0, 0, 1];
        let told = log_on_as("JORG", &site.lab, from, &token, PROXY_PASSWORD).await;
        assert_eq!(told.unwrap().unwrap_err(), LOGON_FAILURE);
        let told = log_on_as(shown, &site.lab, from, &token, PROXY_PASSWORD).await;
        assert!(told.unwrap().is_ok(), "{shown} as {named}");
    }
}
