//! Who may act without a token of their own: the holders of API keys.

use axum::http::{HeaderMap, StatusCode, header};
use tracing::warn;

use crate::api::problem::Problem;
use crate::api::state::ApiState;
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

/// The operator who sent the request, by the name of their key.
///
/// # Errors
/// The request has no API key, or a wrong one.
pub fn operator<'a>(state: &'a ApiState, headers: &HeaderMap) -> Result<&'a str, Problem> {
    let keys = &state.gateway.api_keys;
    if let Some(name) = bearer(headers).and_then(|bearer| keys.find(bearer)) {
        return Ok(name);
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
