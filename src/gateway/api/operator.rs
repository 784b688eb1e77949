//! Who may act without a token of their own: the holders of API keys.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use tracing::warn;

use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::config::OperatorName;
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

/// The operator who sent the request, by the name of their key. A request without an API key, or with a wrong one, is refused.
#[derive(Debug)]
pub struct Operator(pub OperatorName);

impl Operator {
    /// The operator whose key is among these headers.
    ///
    /// # Errors
    /// There is no key, or a wrong one; that is logged.
    pub fn of(state: &ApiState, headers: &HeaderMap) -> Result<Self, Problem> {
        let ApiState { gateway, sender } = state;
        let (id, peer) = (sender.id, sender.peer);
        let name = bearer(headers).and_then(|bearer| gateway.api_keys.find(bearer));
        if let Some(name) = name {
            return Ok(Self(name.clone()));
        }
        warn!(session = %id, %peer, rule = "api-key", "Request refused");
        let record = Record {
            rule: Some("api-key"),
            ..trail::of_peer(Event::ApiRefused, id, peer)
        };
        gateway.audit.record_of_anybody(peer.ip(), &record);
        let detail = "send an API key as bearer";
        Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "api-key",
            detail,
            id,
        ))
    }
}

impl FromRequestParts<ApiState> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        Self::of(state, &parts.headers)
    }
}
