//! A revoked token opens nothing, and ends what it had opened.

use jetway::jet::exchange::Operation;
use serde_json::json;
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use crate::lab::{KEYS, Lab, Target, failure, forget_log, logged, path, until, within};
use crate::rendezvous::{OPERATOR, Peer, Place, of, path as peer_path};

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
    until(|| lab.running().gateway().sessions.registry.list().is_empty()).await;
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

/// Revokes tokens by a claim, as the gateway's upkeep would find it.
fn revoke(place: &Place, rules: &serde_json::Value) {
    std::fs::write(path(&place.lab, "revoked.json"), rules.to_string()).unwrap();
    place.lab.running().reload();
}

/// Three tokens for one association: of who creates it, who accepts and who connects.
async fn acceptor(
    place: &Place,
    transport: &str,
) -> (Peer, jetway::jet::exchange::JetPath, String) {
    let association = Uuid::new_v4();
    let token = |who: &str| place.token(association, json!({ "role": [who] }));
    let candidates = place.association(association, &token("creator")).await;
    let candidate = of(&candidates, transport);
    let accept = peer_path(Operation::Accept, association, candidate);
    let accepted = place
        .peer(transport, accept, Some(&token("acceptor")))
        .await;
    let connect = peer_path(Operation::Connect, association, candidate);
    (accepted.ok().unwrap(), connect, token("connector"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_part_in_a_session_ends_it_when_revoked() {
    for who in ["connector", "acceptor", "creator"] {
        for transport in ["tcp", "wss"] {
            let place = Place::start(&format!("[token]\n{KEYS}revoked = \"revoked.json\"\n"));
            let (mut accepted, connect, token) = acceptor(&place, transport).await;
            let connected = place.peer(transport, connect, Some(&token)).await;
            let mut connected = connected.ok().unwrap();
            connected.send(b"hello").await;
            assert_eq!(accepted.receive(5).await, b"hello");
            revoke(&place, &json!({ "role": ["somebody else"] }));
            accepted.send(b"still").await;
            assert_eq!(connected.receive(5).await, b"still");
            revoke(&place, &json!({ "role": [who] }));
            assert_eq!(connected.rest().await, b"", "{who} {transport}");
            assert_eq!(accepted.rest().await, b"", "{who} {transport}");
            let closed = logged("Session closed").await;
            assert_eq!(
                closed["reason"], "the token was revoked by its role",
                "{who}"
            );
            let registry = &place.lab.running().gateway().sessions.registry;
            until(|| registry.list().is_empty()).await;
            forget_log();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acceptor_that_only_waits_is_closed_when_revoked() {
    let place = Place::start(&format!("[token]\n{KEYS}revoked = \"revoked.json\"\n"));
    for transport in ["tcp", "wss"] {
        for who in ["acceptor", "creator"] {
            let (accepted, ..) = acceptor(&place, transport).await;
            // Another one, vouched for by an operator and by nobody, stays.
            let association = Uuid::new_v4();
            let candidates = place.association(association, OPERATOR).await;
            let candidate = of(&candidates, transport);
            let accept = peer_path(Operation::Accept, association, candidate);
            let mut other = place.peer(transport, accept, None).await.ok().unwrap();
            revoke(&place, &json!({ "role": [who] }));
            assert_eq!(accepted.rest().await, b"", "{who} {transport}");
            let connect = peer_path(Operation::Connect, association, candidate);
            let mut connected = place.peer(transport, connect, None).await.ok().unwrap();
            connected.send(b"hello").await;
            assert_eq!(other.receive(5).await, b"hello");
            revoke(&place, &json!({}));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_has_met_and_not_spoken_is_closed_when_revoked() {
    let place = Place::start(&format!("[token]\n{KEYS}revoked = \"revoked.json\"\n"));
    let (accepted, connect, token) = acceptor(&place, "tcp").await;
    let connected = place.peer("tcp", connect, Some(&token)).await.ok().unwrap();
    revoke(&place, &json!({ "role": ["connector"] }));
    assert_eq!(connected.rest().await, b"");
    assert_eq!(accepted.rest().await, b"");
}
