//! A refusal reaches the client as RDP_NEG_FAILURE and the log with its rule; the target hears of none.

use jetway::rdp::preconnection;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, Target, failure, log, logged, request};

/// `HYBRID_REQUIRED_BY_SERVER`: the token is the problem.
const TOKEN: u32 = 5;
/// `INCONSISTENT_FLAGS`: the messages are the problem.
const MESSAGES: u32 = 4;

// J-JWT-1 J-JWT-3
#[tokio::test]
async fn a_bad_token_is_refused_with_its_rule_and_never_reaches_the_target() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let now = jetway::clock::unix_now().0;
    let good = lab.token(target.address, json!({}));
    let other_key = {
        use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
        let key = jetway::token::mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256));
        let key = jetway::token::mint::SigningKey::from_key(&key.unwrap(), None).unwrap();
        let claims = Lab::claims(target.address, json!({}));
        jetway::token::mint::mint(&claims, Some(&key), None).unwrap()
    };
    let unsigned =
        jetway::token::mint::mint(&Lab::claims(target.address, json!({})), None, None).unwrap();
    let tampered = {
        let (head, signature) = good.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        format!("{head}.{flipped}{}", &signature[1..])
    };
    let cases = [
        (
            lab.token(
                target.address,
                json!({ "nbf": now - 900, "exp": now - 600 }),
            ),
            "expired",
        ),
        (
            lab.token(
                target.address,
                json!({ "nbf": now + 600, "exp": now + 900 }),
            ),
            "not-yet-valid",
        ),
        (
            lab.token(target.address, json!({ "nbf": null, "exp": null })),
            "no-validity",
        ),
        (other_key, "signature"),
        (tampered, "signature"),
        (unsigned, "alg-none"),
    ];
    for (token, rule) in cases {
        let refused_before = log().matches("Session refused").count();
        assert_eq!(
            failure(&mut lab.client(&token).await).await,
            TOKEN,
            "{rule}"
        );
        let lines = crate::lab::logged_times("Session refused", refused_before + 1).await;
        assert_eq!(
            lines.last().unwrap()["rule"],
            rule,
            "{}",
            lines.last().unwrap()
        );
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn a_preconnection_pdu_of_version_1_is_refused_clearly() {
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    client
        .write_all(&[16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0])
        .await
        .unwrap();
    client
        .write_all(&request(None).encode().unwrap())
        .await
        .unwrap();
    assert_eq!(failure(&mut client).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "preconnection-v1");
}

#[tokio::test]
async fn no_token_at_all_and_no_credential_in_the_pdu_are_refused() {
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    client
        .write_all(&request(None).encode().unwrap())
        .await
        .unwrap();
    assert_eq!(failure(&mut client).await, TOKEN);
    assert_eq!(logged("Session refused").await["rule"], "no-token");
    let mut client = lab.client("4AC4F1C5-8B9B-4A6E-8C3D-1F1B0B0B0B0B").await;
    assert_eq!(failure(&mut client).await, TOKEN);
}

#[tokio::test]
async fn a_malformed_request_is_answered_in_its_protocol() {
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    // TPKT with an X.224 Data TPDU where a Connection Request belongs.
    client
        .write_all(&[3, 0, 0, 11, 6, 0xF0, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    assert_eq!(failure(&mut client).await, MESSAGES);
    assert_eq!(
        logged("Session refused").await["rule"],
        "connection-request"
    );
}

#[tokio::test]
async fn a_retry_without_its_token_meets_the_first_reason() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let demanding = lab.token(target.address, json!({ "jet_rec": true }));
    assert_eq!(failure(&mut lab.client(&demanding).await).await, 2);
    // As FreeRDP comes back: no preconnection PDU, weaker security each time.
    for protocols in [1, 0] {
        let mut retry = request(None);
        retry.negotiation.as_mut().unwrap().requested_protocols = protocols;
        let mut client = lab.connect().await;
        client.write_all(&retry.encode().unwrap()).await.unwrap();
        assert_eq!(failure(&mut client).await, 2);
    }
    assert_eq!(
        log().matches("Session refused").count(),
        1,
        "one refusal, one line"
    );
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn a_refused_client_that_sends_tls_at_once_gets_an_alert() {
    use tokio::io::AsyncReadExt;
    let lab = Lab::start("");
    let mut client = lab.connect().await;
    let mut bytes = preconnection::encode_v2(0, "eyJhbGciOiJub25lIn0.e30.").unwrap();
    bytes.extend_from_slice(crate::lab::CLIENT_HELLO);
    client.write_all(&bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut alert = Vec::new();
    crate::lab::within(client.read_to_end(&mut alert))
        .await
        .unwrap();
    assert_eq!(alert, [0x15, 3, 3, 0, 2, 2, 0x31]);
}

// J-JWT-3
#[tokio::test]
async fn the_development_switch_accepts_unsigned_tokens_and_is_loud_about_it() {
    let lab = Lab::start("[development]\naccept_unsigned_tokens = true\n");
    let target = Target::start().await;
    assert!(log().contains("DEVELOPMENT SWITCH"));
    let claims = Lab::claims(target.address, json!({}));
    drop(
        lab.session(&jetway::token::mint::mint(&claims, None, None).unwrap())
            .await,
    );
    assert!(log().contains("Accepted an unsigned token"));
}
