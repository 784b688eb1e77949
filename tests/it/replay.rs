//! One token, one live session; used for good, except within a reconnect window.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::api::sessions;
use crate::lab::{KEYS, Lab, Target, closed, failure, forget_log, logged, logged_times, within};

/// `HYBRID_REQUIRED_BY_SERVER`: the token is the problem.
const TOKEN: u32 = 5;

#[tokio::test]
async fn a_token_opens_one_session() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    let first = lab.session(&token).await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    drop(first);
    logged("Session closed").await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    let refused = logged_times("Session refused", 2).await;
    assert_eq!(
        (&refused[0]["rule"], &refused[1]["rule"]),
        (&json!("in-use"), &json!("replayed"))
    );
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn a_token_without_jti_opens_one_session_too() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({ "jti": null }));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
}

#[tokio::test]
async fn a_reconnect_within_the_window_works_and_never_beside_a_live_session() {
    let lab = Lab::start(&format!("[token]\n{KEYS}reconnect_window_s = 60\n"));
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    let second = lab.session(&token).await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    drop(second);
}

#[tokio::test]
async fn jet_reuse_opens_the_window_for_one_token() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({ "jet_reuse": 30 }));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    drop(lab.session(&token).await);
}

#[tokio::test]
async fn what_was_used_survives_a_restart() {
    let (mut lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    logged("Session closed").await;
    lab.restart().await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "replayed");
}

#[tokio::test]
async fn a_target_that_is_down_does_not_cost_the_token() {
    let lab = Lab::start("");
    // A port that nothing listens on, until the target comes up there.
    let parked = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = parked.local_addr().unwrap();
    drop(parked);
    let token = lab.token(address, json!({}));
    assert_eq!(failure(&mut lab.client(&token).await).await, 3);
    assert_eq!(logged("Session refused").await["rule"], "target");
    // Nor does one that accepts and closes without an answer.
    let mute = TcpListener::bind(address).await.unwrap();
    let mut client = lab.client(&token).await;
    let (mut connection, _) = mute.accept().await.unwrap();
    connection.read_u8().await.unwrap();
    drop((connection, mute));
    assert_eq!(failure(&mut client).await, 3);
    let target = Target::start_at(address).await;
    drop(lab.session(&token).await);
    assert_eq!(target.connections(), 1);
}

/// Waits until the session of `client` is over on its side.
async fn end_of(mut client: tokio::net::TcpStream) {
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn what_an_operator_ends_stays_ended() {
    let digest = hex::encode(openssl::sha::sha256(b"operator-secret"));
    let mut lab = Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n[token]\n{KEYS}reconnect_window_s = 60\n"
    ));
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    drop(lab.session(&token).await);
    closed(1).await;
    // It comes back as its window says, until an operator says otherwise.
    let client = lab.session(&token).await;
    let id = sessions(&lab, "operator-secret").await[0]["id"].clone();
    let mut stream = lab.connect().await;
    let request = format!(
        "DELETE /jet/sessions/{} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer operator-secret\r\nConnection: close\r\n\r\n",
        id.as_str().unwrap()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    end_of(client).await;
    // As FreeRDP does within a second.
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "replayed");
    lab.restart().await;
    assert_eq!(failure(&mut lab.client(&token).await).await, TOKEN);
    assert_eq!(target.connections(), 2);
}

#[tokio::test]
async fn what_a_limit_ends_stays_ended() {
    for (limit, reason) in [
        ("idle_timeout_s = 1", "idle for too long"),
        ("time_limit_s = 1", "time limit reached"),
    ] {
        forget_log();
        let lab = Lab::start(&format!(
            "[session]\n{limit}\n[token]\n{KEYS}reconnect_window_s = 60\n"
        ));
        let target = Target::start().await;
        let token = lab.token(target.address, json!({}));
        end_of(lab.session(&token).await).await;
        assert_eq!(logged("Session closed").await["reason"], reason);
        assert_eq!(
            failure(&mut lab.client(&token).await).await,
            TOKEN,
            "{limit}"
        );
        assert_eq!(target.connections(), 1);
    }
}
