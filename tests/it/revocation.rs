//! A revoked token opens nothing, and ends what it had opened.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::lab::{KEYS, Lab, Target, failure, logged, path, within};

fn lab() -> Lab {
    Lab::start(&format!("[token]\n{KEYS}revoked = \"revoked.json\"\n"))
}

#[tokio::test]
async fn a_token_revoked_by_its_id_or_any_claim_is_refused() {
    let (lab, target) = (lab(), Target::start().await);
    std::fs::write(
        path(&lab, "revoked.json"),
        r#"{"jti": ["stolen"], "sub": ["mallory"]}"#,
    )
    .unwrap();
    lab.running().reload();
    for changes in [json!({ "jti": "stolen" }), json!({ "sub": "mallory" })] {
        let token = lab.token(target.address, changes);
        assert_eq!(failure(&mut lab.client(&token).await).await, 5);
    }
    assert_eq!(target.connections(), 0);
    drop(
        lab.session(&lab.token(target.address, json!({ "sub": "alice" })))
            .await,
    );
}

#[tokio::test]
async fn revocation_ends_the_live_session_without_being_asked() {
    let (lab, target) = (lab(), Target::start().await);
    let mut client = lab
        .session(&lab.token(target.address, json!({ "jti": "leaked" })))
        .await;
    std::fs::write(path(&lab, "revoked.json"), r#"{"jti": ["leaked"]}"#).unwrap();
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    let closed = logged("Session closed").await;
    assert_eq!(closed["reason"], "the token was revoked by its jti");
    assert!(lab.running().gateway().registry.list().is_empty());
}

#[tokio::test]
async fn a_bad_revocation_list_keeps_the_old_one_and_says_so() {
    let (lab, target) = (lab(), Target::start().await);
    std::fs::write(path(&lab, "revoked.json"), r#"{"jti": ["stolen"]}"#).unwrap();
    lab.running().reload();
    std::fs::write(path(&lab, "revoked.json"), "{ not json").unwrap();
    lab.running().reload();
    let warning = logged("The revocation list was not reloaded, the old one stays").await;
    assert!(warning["error"].as_str().unwrap().contains("revoked.json"));
    let token = lab.token(target.address, json!({ "jti": "stolen" }));
    assert_eq!(failure(&mut lab.client(&token).await).await, 5);
}
