//! A token that demands what the gateway cannot deliver is refused before the target is contacted; nothing is accepted
//! in silence.

use serde_json::json;

use crate::lab::{Lab, Sealing, Target, failure, logged_times};

/// `SSL_NOT_ALLOWED_BY_SERVER`: the token holds and asks for too much.
const DEMAND: u32 = 2;

// J-REC-1 J-FLT-1
#[tokio::test]
async fn recording_and_filtering_are_refused_with_their_reason() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let cases = [
        (json!({ "jet_rec": true }), "recording"),
        (json!({ "jet_rec": "proxy" }), "recording"),
        (json!({ "jet_rec": "stream" }), "client-recording"),
        (json!({ "jetflt": true }), "filtering"),
        (json!({ "jet_flt": true }), "filtering"),
        (json!({ "cert_thumb256": "00".repeat(32) }), "pinning"),
    ];
    for (count, (changes, rule)) in cases.into_iter().enumerate() {
        let token = lab.token(target.address, changes);
        assert_eq!(
            failure(&mut lab.client(&token).await).await,
            DEMAND,
            "{rule}"
        );
        let lines = logged_times("Session refused", count + 1).await;
        assert_eq!(lines[count]["rule"], rule);
        assert!(!lines[count]["target"].is_null());
    }
    assert_eq!(target.connections(), 0);
}

// J-JWT-4 J-JWT-5 J-DST-2
#[tokio::test]
async fn credentials_are_refused_where_there_is_no_certificate_to_inject_them_behind() {
    let sealing = Sealing::new();
    let lab = Lab::start(&sealing.table);
    let target = Target::start().await;
    let nested = sealing.token(&lab, &Lab::claims(target.address, json!({})));
    drop(lab.session(&nested).await);
    let changes = json!({ "dst_usr": "administrator", "dst_pwd": "correct horse" });
    let nested = sealing.token(&lab, &Lab::claims(target.address, changes));
    assert_eq!(failure(&mut lab.client(&nested).await).await, DEMAND);
    assert_eq!(
        logged_times("Session refused", 1).await[0]["rule"],
        "injection"
    );
    assert!(!crate::lab::log().contains("correct horse"));
    assert_eq!(target.connections(), 1);
}
