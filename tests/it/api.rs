//! HTTP, TLS and JET on the same port.

use jetway_lab::certificate::Identity;
use jetway_lab::tls::{certificate_der, client_config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{Lab, Target, failure, logged, request, within};

/// Sends one HTTP request; returns status and body.
pub(crate) async fn http(lab: &Lab, head: &str, body: &str) -> (u16, String) {
    let head = format!("{head}\r\nHost: gw");
    exchange(&mut lab.connect().await, &head, body).await
}

/// The same for `host`, by the bearer of a token or of an API key, if there is one; a body that is not JSON is null.
pub(crate) async fn http_json(
    lab: &Lab,
    host: &str,
    head: &str,
    bearer: &str,
    body: &str,
) -> (u16, Value) {
    let mut head = format!("{head} HTTP/1.1\r\nHost: {host}");
    if !bearer.is_empty() {
        head.push_str(&format!("\r\nAuthorization: Bearer {bearer}"));
    }
    let (status, body) = exchange(&mut lab.connect().await, &head, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn exchange(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    head: &str,
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let request = format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // TLS peers may close without close_notify.
    let _end = within(stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// A ticket for `token`, from the gateway's REST interface.
pub(crate) async fn ticket(lab: &Lab, token: &str) -> String {
    let head = format!("POST /jet/tickets HTTP/1.1\r\nAuthorization: Bearer {token}");
    let (status, body) = http(lab, &head, "").await;
    assert_eq!(status, 201, "{body}");
    let created: Value = serde_json::from_str(&body).unwrap();
    created["ticket"].as_str().unwrap().to_owned()
}

/// The list of live sessions, as an operator gets it.
pub(crate) async fn sessions(lab: &Lab, key: &str) -> Value {
    let head = format!("GET /jet/sessions HTTP/1.1\r\nAuthorization: Bearer {key}");
    let (status, body) = http(lab, &head, "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn a_token_is_its_own_authority_for_a_ticket() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    let (status, body) = http(
        &lab,
        "POST /jet/tickets HTTP/1.1",
        &json!({ "token": token }).to_string(),
    )
    .await;
    assert_eq!(status, 201, "{body}");
    let created: Value = serde_json::from_str(&body).unwrap();
    assert!(created["ticket"].as_str().unwrap().len() <= 64);
    assert!(created["expires_in_s"].as_u64().unwrap() <= 120);
}

#[tokio::test]
async fn the_scheme_bearer_is_read_in_any_case_with_one_space_or_more() {
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n"
    ));
    let target = Target::start().await;
    for scheme in ["Bearer ", "bearer ", "BEARER   ", "bEaReR  "] {
        let token = lab.token(target.address, json!({}));
        let head = format!("POST /jet/tickets HTTP/1.1\r\nauthorization: {scheme}{token}");
        let (status, body) = http(&lab, &head, "").await;
        assert_eq!(status, 201, "{scheme:?} {body}");
        let head = format!("GET /jet/sessions HTTP/1.1\r\nAuthorization: {scheme}operator-secret");
        let (status, body) = http(&lab, &head, "").await;
        assert_eq!(status, 200, "{scheme:?} {body}");
    }
    for other in ["Basic operator-secret", "Beareroperator-secret", "Bearer"] {
        let head = format!("GET /jet/sessions HTTP/1.1\r\nAuthorization: {other}");
        assert_eq!(http(&lab, &head, "").await.0, 401, "{other}");
    }
}

#[tokio::test]
async fn an_api_key_may_ask_for_tickets_and_a_wrong_one_may_not() {
    let digest = hex::encode(openssl::sha::sha256(b"portal-secret"));
    let lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"portal\", sha256 = \"{digest}\" }}]\n"
    ));
    let target = Target::start().await;
    let body =
        json!({ "token": lab.token(target.address, json!({})), "lifetime_s": 5 }).to_string();
    let with_key = "POST /jet/tickets HTTP/1.1\r\nAuthorization: Bearer portal-secret";
    let (status, answer) = http(&lab, with_key, &body).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(logged("Ticket issued").await["by"], "portal");
    let wrong = "POST /jet/tickets HTTP/1.1\r\nAuthorization: Bearer guessed";
    let (status, answer) = http(&lab, wrong, &body).await;
    assert_eq!(status, 401, "{answer}");
    assert!(!answer.contains("guessed"));
}

#[tokio::test]
async fn operators_see_live_sessions_and_end_them() {
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n"
    ));
    let target = Target::start().await;
    let mut client = lab
        .session(&lab.token(target.address, json!({ "sub": "alice" })))
        .await;
    let (status, _) = http(&lab, "GET /jet/sessions HTTP/1.1", "").await;
    assert_eq!(status, 401);
    let key = "HTTP/1.1\r\nAuthorization: Bearer operator-secret";
    let rows = sessions(&lab, "operator-secret").await;
    let row = &rows[0];
    assert_eq!(
        (&row["user"], &row["phase"]),
        (&json!("alice"), &json!("relaying"))
    );
    assert_eq!(row["target"], target.address.to_string());
    assert!(row["bytes_to_target"].as_u64().unwrap() > 0);
    assert!(row["inside"].is_null());

    let id = row["id"].as_str().unwrap();
    let unknown = "DELETE /jet/sessions/00000000-0000-0000-0000-000000000000";
    assert_eq!(http(&lab, &format!("{unknown} {key}"), "").await.0, 404);
    let (status, _) = http(&lab, &format!("DELETE /jet/sessions/{id} HTTP/1.1"), "").await;
    assert_eq!(status, 401);
    let (status, _) = http(&lab, &format!("DELETE /jet/sessions/{id} {key}"), "").await;
    assert_eq!(status, 204);
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(logged("Session closed").await["reason"], "ended by desk");
}

#[tokio::test]
async fn a_token_that_would_be_refused_gets_no_ticket_and_its_reason() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let cases = [
        (json!({ "exp": 5, "nbf": 1 }), 401, "expired"),
        (json!({ "jet_rec": true }), 403, "recording"),
        (json!({ "jetflt": true }), 403, "filtering"),
    ];
    for (changes, expected, rule) in cases {
        let body = json!({ "token": lab.token(target.address, changes) }).to_string();
        let (status, answer) = http(&lab, "POST /jet/tickets HTTP/1.1", &body).await;
        assert_eq!(status, expected, "{answer}");
        let problem: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(problem["rule"], rule);
        assert!(problem["session"].is_string());
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_one_session() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let ticket = ticket(&lab, &lab.token(target.address, json!({}))).await;
    let open = async || {
        let mut client = lab.connect().await;
        client
            .write_all(&request(Some(&ticket)).encode().unwrap())
            .await
            .unwrap();
        client
    };
    let mut first = open().await;
    assert_eq!(
        crate::lab::confirm(&mut first).await,
        crate::lab::SELECTED_TLS
    );
    assert_eq!(failure(&mut open().await).await, 5);
    drop(first);
    logged("Session closed").await;
    assert_eq!(failure(&mut open().await).await, 5);
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn what_is_no_request_of_ours_gets_a_problem_document() {
    let lab = Lab::start("");
    for (head, body, expected) in [
        ("GET /jet/health HTTP/1.1", "", 200),
        ("GET /nothing HTTP/1.1", "", 404),
        ("GET /jet/tickets HTTP/1.1", "", 405),
        ("POST /jet/tickets HTTP/1.1", "", 401),
        ("POST /jet/tickets HTTP/1.1", "not json", 400),
        ("POST /jet/tickets HTTP/1.1", "{\"tokn\": \"x\"}", 400),
        ("GET /jet/accept/a/b HTTP/1.1", "", 400),
        (
            "GET /jet/accept/300f1c82-d33b-11e9-bb65-2a2ae2dbcce5/4c8f409f-c1a2-4cae-bda2-84c590fed618 HTTP/1.1",
            "",
            426,
        ),
    ] {
        let (status, answer) = http(&lab, head, body).await;
        assert_eq!(status, expected, "{head}: {answer}");
    }
    let long = "x".repeat(64 * 1024);
    let (status, _) = http(&lab, "POST /jet/tickets HTTP/1.1", &long).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn tls_carries_http_and_rdp_and_without_a_certificate_says_so() {
    let plain = Lab::start("");
    let mut refused = plain.connect().await;
    refused.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
    let mut alert = Vec::new();
    within(refused.read_to_end(&mut alert)).await.unwrap();
    assert_eq!(alert, [0x15, 3, 3, 0, 2, 2, 0x31]);

    let identity = Identity::self_signed(&["gw.test"]);
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = identity.write(folder.path(), ["c.pem", "k.pem"]);
    let lab = Lab::start(&format!(
        "[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n[api]\nplain_http = \"off\"\n"
    ));
    let target = Target::start().await;
    let (status, answer) = http(&lab, "GET /jet/sessions HTTP/1.1", "").await;
    assert_eq!(status, 403, "{answer}");
    let mut tls = tls_connect(&lab, &identity).await;
    let (status, _) = exchange(&mut tls, "GET /jet/health HTTP/1.1\r\nHost: gw", "").await;
    assert_eq!(status, 200);

    let mut tls = tls_connect(&lab, &identity).await;
    let token = lab.token(target.address, json!({}));
    let mut bytes = jetway::rdp::preconnection::encode_v2(0, &token).unwrap();
    bytes.extend(request(None).encode().unwrap());
    tls.write_all(&bytes).await.unwrap();
    let mut confirm = vec![0_u8; crate::lab::SELECTED_TLS.encode().len()];
    within(tls.read_exact(&mut confirm)).await.unwrap();
    assert_eq!(confirm, crate::lab::SELECTED_TLS.encode());
    tls.write_all(crate::lab::CLIENT_HELLO).await.unwrap();
    let mut echo = [0_u8; crate::lab::CLIENT_HELLO.len()];
    within(tls.read_exact(&mut echo)).await.unwrap();
}

async fn tls_connect(lab: &Lab, identity: &Identity) -> tokio_rustls::client::TlsStream<TcpStream> {
    let name = "gw.test".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(client_config(certificate_der(identity)));
    within(connector.connect(name, lab.connect().await))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_bad_parameter_of_the_path_is_a_problem_document_as_all_else() {
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n"
    ));
    for request in [
        "DELETE /jet/sessions/7",
        "DELETE /jet/agents/%ff",
        "POST /jet/offer/%ff",
        "POST /jet/association/7",
        "POST /jet/association/%ff",
        "GET /jet/association/7",
        "DELETE /jet/association/%ff",
        "POST /jet/gather/7",
        "POST /jet/gather/%ff",
        "POST /jet/complete/%ff",
        "GET /jet/accept/7/%ff",
        "GET /jet/connect/7/8",
    ] {
        let mut stream = lab.connect().await;
        let head = format!(
            "{request} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer operator-secret\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 4"), "{request}: {text}");
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains("content-type: application/problem+json"),
            "{request}: {text}"
        );
        let problem: Value = serde_json::from_str(body).unwrap();
        for member in ["title", "status", "rule", "detail", "session"] {
            assert!(!problem[member].is_null(), "{request}: {text}");
        }
    }
}

#[tokio::test]
async fn health_is_told_without_a_token() {
    let lab = Lab::start("");
    let (status, body) = http(&lab, "GET /jet/health HTTP/1.1", "").await;
    let expected =
        json!({ "status": "ok", "live": "/health/live", "ready": "/health/ready" }).to_string();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body.to_string()), (200, expected));
}
