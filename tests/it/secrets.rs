//! No token, ticket or password reaches the log, not even at its most talkative.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, Target, failure, log, logged, request};

#[tokio::test]
async fn the_log_at_trace_holds_no_token_and_no_ticket() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let token = lab.token(target.address, json!({}));
    let ticket = crate::api::ticket(&lab, &token).await;
    let mut client = lab.connect().await;
    client
        .write_all(&request(Some(&ticket)).encode().unwrap())
        .await
        .unwrap();
    crate::lab::confirm(&mut client).await;
    drop(client);
    logged("Session closed").await;
    let refused = lab.token(target.address, json!({ "jet_rec": true }));
    failure(&mut lab.client(&refused).await).await;
    let log = log();
    for secret in [&token, &ticket, &refused] {
        // Any part of a token is too much: its signature alone opens nothing, and still has no business in a log.
        for part in secret.split('.').filter(|part| part.len() > 40) {
            assert!(!log.contains(part), "a token's part is in the log");
        }
    }
    assert!(!log.contains(&ticket));
}
