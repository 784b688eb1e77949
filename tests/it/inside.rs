//! A session that the gateway stands inside of: the target's credentials come from the token, the picture is the target's,
//! and operators see what happens.

use std::net::SocketAddr;

use jetway::demo::client::{ClientSession, Visit};
use jetway::demo::desktop::Desktop;
use jetway::demo::target;
use jetway_lab::certificate::Identity;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, SELECTED_TLS, Sealing, closed, forget_log, log, logged, within};

/// A gateway with a certificate and a key for encrypted tokens, which knows that `target` has TLS alone.
fn lab(target: SocketAddr) -> (Lab, Sealing, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    Identity::self_signed(&["gw.test"]).write(folder.path(), ["c.pem", "k.pem"]);
    let sealing = Sealing::new();
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let lab = Lab::start(&format!(
        "{}[tls]\ncertificate = {:?}\nkey = {:?}\n\
         [api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n\
         [session]\ndrain_s = 0\n[target]\ntls_only = [\"{target}\"]\n",
        sealing.table,
        path("c.pem"),
        path("k.pem"),
    ));
    (lab, sealing, folder)
}

/// The demo's target: it shows the name of the user who is logged on.
async fn desktop() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = target::self_signed().unwrap();
    tokio::spawn(target::serve(listener, tls, CancellationToken::new()));
    address
}

// J-DST-2
#[tokio::test(flavor = "multi_thread")]
async fn the_user_is_logged_on_as_the_token_says_and_operators_see_it() {
    let target = desktop().await;
    let (lab, sealing, _files) = lab(target);
    let changes = json!({ "sub": "mallory", "dst_usr": "alice", "dst_pwd": "correct horse" });
    let token = sealing.token(&lab, &Lab::claims(target, changes));

    let mut visit = Visit::new(lab.address(), "stranger", "guess");
    visit.wsz_pcb = Some(&token);
    let mut client = within(ClientSession::connect(&visit)).await.unwrap();
    within(client.settle(visit.settle)).await.unwrap();
    within(client.type_text("inside")).await.unwrap();
    within(client.settle(visit.settle)).await.unwrap();
    let (width, height) = client.desktop_size();
    let image = client.image();
    let mut expected = Desktop::new(width, height, "alice");
    expected
        .check_still_part(image.dimensions(), image.as_raw())
        .unwrap();
    assert!(
        expected.echoes("inside", image.as_raw()),
        "typed keys arrive"
    );

    let rows = crate::api::sessions(&lab, "operator-secret").await;
    let inside = &rows[0]["inside"];
    assert_eq!(
        (&inside["client_protocol"], &inside["target_protocol"]),
        (&json!(1), &json!(1))
    );
    assert!(inside["target_tls"].as_str().unwrap().starts_with("TLS"));
    assert!(rows[0]["target_round_trip_us"].is_u64());
    let statistics = &inside["statistics"];
    assert_eq!(statistics["desktop"], json!([width, height]));
    assert!(statistics["keys"].as_u64().unwrap() >= 6, "{statistics}");

    client.leave().await;
    let closed = logged("Session closed").await;
    assert_eq!(closed["user"], "mallory");
    let ended = |record: &Value| record["event"] == "session.closed";
    lab.audited(ended).await;
    let audit = lab.audit();
    let activity = audit
        .iter()
        .filter(|record| record["event"] == "session.activity");
    assert!(activity.count() > 5, "{audit:?}");
    let audit = serde_json::to_string(&audit).unwrap();
    for secret in ["correct horse", "guess", token.as_str()] {
        assert!(!log().contains(secret) && !audit.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_target_is_secured_leaves_session_and_token() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let (lab, sealing, _files) = lab(target);
    let changes = json!({ "dst_usr": "alice", "dst_pwd": "correct horse" });
    let token = sealing.token(&lab, &Lab::claims(target, changes));
    // The target falls silent at once, then behind its answer, while the client is in TLS.
    for answers in [false, true] {
        forget_log();
        let mut visit = Visit::new(lab.address(), "stranger", "guess");
        visit.wsz_pcb = Some(&token);
        let leaving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 4];
            stream.read_exact(&mut header).await.unwrap();
            let mut rest = vec![0; usize::from(header[3]) - header.len()];
            stream.read_exact(&mut rest).await.unwrap();
            if answers {
                stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
                // ClientHello of the target's leg, when the client's is complete.
                stream.read_u8().await.unwrap();
            }
            stream
        };
        let stream = tokio::select! {
            stream = within(leaving) => stream,
            _ended = ClientSession::connect(&visit) => panic!("the target has not answered"),
        };
        let refused = logged("Session refused").await;
        assert_eq!(refused["rule"], "gone", "{refused}");
        drop(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_cuts_sessions_off_for_their_users_to_come_back_and_an_operator_ends_them() {
    let target = desktop().await;
    let (mut lab, sealing, _files) = lab(target);
    let changes = json!({ "dst_usr": "alice", "dst_pwd": "correct horse" });
    let token = sealing.token(&lab, &Lab::claims(target, changes));
    let come = async |lab: &Lab| {
        let mut visit = Visit::new(lab.address(), "stranger", "guess");
        visit.wsz_pcb = Some(&token);
        within(ClientSession::connect(&visit)).await
    };

    let mut client = come(&lab).await.unwrap();
    lab.restart().await;
    let told = format!("{:#}", within(client.ended()).await);
    assert!(
        told.starts_with("the server closed the connection"),
        "{told}"
    );
    assert_eq!(closed(1).await[0]["reason"], "the gateway is shutting down");

    let mut client = come(&lab).await.unwrap();
    let rows = crate::api::sessions(&lab, "operator-secret").await;
    let id = rows[0]["id"].as_str().unwrap();
    let end =
        format!("DELETE /jet/sessions/{id} HTTP/1.1\r\nAuthorization: Bearer operator-secret");
    let (status, _) = crate::api::http(&lab, &end, "").await;
    assert_eq!(status, 204);
    let told = format!("{:#}", within(client.ended()).await);
    assert!(!told.contains("closed the connection"), "{told}");
    for restarted in [false, true] {
        if restarted {
            lab.restart().await;
        }
        forget_log();
        come(&lab).await.unwrap_err();
        assert_eq!(logged("Session refused").await["rule"], "replayed");
    }
}
