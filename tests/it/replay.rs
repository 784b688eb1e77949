//! One token, one live session; used for good, except within a reconnect window.

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::lab::{KEYS, Lab, Target, failure, logged, logged_times};

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
