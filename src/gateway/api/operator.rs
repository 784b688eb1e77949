//! Who may act without a token of their own: the holders of API keys.

use axum::http::{HeaderMap, StatusCode, header};
use openssl::sha::sha256;
use subtle::ConstantTimeEq;
use tracing::warn;

use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::config::ApiKeyConfig;
use crate::trail;
use jetway_audit::record::{Event, Record};
use jetway_jet::exchange;

/// The bearer of a request.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| exchange::bearer(value.as_bytes()))
}

/// The API key whose digest the bearer has. All keys are looked at, each in constant time.
#[must_use]
pub fn find_key<'a>(keys: &'a [ApiKeyConfig], bearer: &str) -> Option<&'a ApiKeyConfig> {
    let digest = sha256(bearer.as_bytes());
    keys.iter().fold(None, |found, key| {
        if bool::from(key.sha256.ct_eq(&digest)) {
            Some(key)
        } else {
            found
        }
    })
}

/// The operator who sent the request, by the name of their key.
///
/// # Errors
/// The request has no API key, or a wrong one.
pub fn operator<'a>(state: &'a ApiState, headers: &HeaderMap) -> Result<&'a str, Problem> {
    let keys = &state.gateway.config.api.keys;
    if let Some(key) = bearer(headers).and_then(|bearer| find_key(keys, bearer)) {
        return Ok(&key.name);
    }
    warn!(session = %state.id, peer = %state.peer, rule = "api-key", "Request refused");
    let record = Record {
        rule: Some("api-key"),
        ..trail::of_peer(Event::ApiRefused, state.id, state.peer)
    };
    state
        .gateway
        .audit
        .record_of_anybody(state.peer.ip(), &record);
    let detail = "send an API key as bearer";
    Err(Problem::new(
        StatusCode::UNAUTHORIZED,
        "api-key",
        detail,
        state.id,
    ))
}
