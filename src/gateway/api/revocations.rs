//! `/jet/revocations`: what operators revoke (API key), beside the file of revocations.
//!
//! `POST` with `{"claim": "sub", "value": "mallory"}` refuses all tokens whose claim has that value, among others if it is a list, and ends
//! at once what they take part in: sessions, whoever's token it is, waiting peers, associations. `GET` lists them, and
//! `DELETE /jet/revocations/ID` takes one back.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, info};

use crate::api::operator::Operator;
use crate::api::problem::{Parameter, Problem};
use crate::api::state::Sender;
use crate::state::{Peers, Sessions, Tokens};
use crate::trail::{self, Trail};
use crate::upkeep;
use jetway_audit::record::{Event, Record};
use jetway_io::clock;
use jetway_store::revoked::{Listed, Made, RevokeError};

/// What is to be revoked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    claim: String,
    value: Value,
}

/// A revocation, and what it has ended.
#[derive(Debug, Serialize)]
pub struct Revoked {
    #[serde(flatten)]
    revocation: Listed,
    /// Live sessions.
    sessions_ended: usize,
}

/// Handles `GET /jet/revocations`.
pub async fn list(_: Operator, State(tokens): State<Arc<Tokens>>) -> Json<Vec<Listed>> {
    Json(tokens.revoked.list())
}

/// Handles `POST /jet/revocations`.
///
/// # Errors
/// A problem document: 400 where it can be no rule, 409 where there are too many, 503 where it holds and could not be written.
pub async fn create(
    Operator(by): Operator,
    State(sender): State<Sender>,
    State(tokens): State<Arc<Tokens>>,
    State(sessions): State<Arc<Sessions>>,
    State(peers): State<Arc<Peers>>,
    State(audit): State<Arc<Trail>>,
    body: Bytes,
) -> Result<(StatusCode, Json<Revoked>), Problem> {
    let id = sender.id;
    let Request { claim, value } = serde_json::from_slice(&body).map_err(|_| {
        let detail = "expected JSON: {\"claim\": \"sub\", \"value\": \"mallory\"}";
        Problem::new(StatusCode::BAD_REQUEST, "body", detail, id)
    })?;
    let made = Made {
        claim,
        value,
        by: by.to_string(),
        made_at: clock::unix_now(),
    };
    let detail = json!({ "claim": made.claim, "value": made.value });
    let revoked = tokens.revoked.revoke(made).await;
    let in_force = matches!(revoked, Ok(_) | Err(RevokeError::NotKept(_)));
    let mut sessions_ended = 0;
    if in_force {
        info!(session = %id, peer = %sender.peer, by = by.as_str(), rule = %detail, "Tokens revoked");
        audit.record(&Record {
            by: Some(by.to_string()),
            detail,
            ..trail::of_peer(Event::TokenRevoked, id, sender.peer)
        });
        let rules = tokens.revoked.rules();
        sessions_ended = upkeep::end_revoked(&rules, &sessions.registry, &peers.meetings);
    }
    match revoked {
        Ok(revocation) => Ok((
            StatusCode::CREATED,
            Json(Revoked {
                revocation,
                sessions_ended,
            }),
        )),
        Err(error) => {
            let (status, rule) = match &error {
                RevokeError::Value(_) | RevokeError::Size | RevokeError::Secret => {
                    (StatusCode::BAD_REQUEST, "revocation")
                }
                RevokeError::Full => (StatusCode::CONFLICT, "too-many"),
                RevokeError::NotKept(_) => {
                    error!(session = %id, %error, "Cannot store what an operator has revoked");
                    (StatusCode::SERVICE_UNAVAILABLE, "store")
                }
            };
            Err(Problem::new(status, rule, error.to_string(), id))
        }
    }
}

/// Handles `DELETE /jet/revocations/ID`.
///
/// # Errors
/// A problem document: 404 where there is none, 503 where it stays because the store has failed.
pub async fn withdraw(
    Parameter(revocation): Parameter<String>,
    Operator(by): Operator,
    State(sender): State<Sender>,
    State(tokens): State<Arc<Tokens>>,
    State(audit): State<Arc<Trail>>,
) -> Result<StatusCode, Problem> {
    let id = sender.id;
    let withdrawn = tokens.revoked.withdraw(&revocation).await;
    let withdrawn = withdrawn.map_err(|error| {
        let detail = format!("it stays in force, since the store failed: {error}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", detail, id)
    })?;
    let Some(Made { claim, value, .. }) = withdrawn else {
        let detail = "there is no such revocation of an operator";
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "revocation",
            detail,
            id,
        ));
    };
    let detail = json!({ "claim": claim, "value": value });
    info!(session = %id, peer = %sender.peer, by = by.as_str(), rule = %detail, "Revocation withdrawn");
    audit.record(&Record {
        by: Some(by.to_string()),
        detail,
        ..trail::of_peer(Event::RevocationWithdrawn, id, sender.peer)
    });
    Ok(StatusCode::NO_CONTENT)
}
