//! What the handlers of one connection are given: each takes the parts that it uses, by [`State`](axum::extract::State).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;

use crate::listener::Listener;
use crate::state::{Gateway, Peers, SessionRules, Sessions, Tokens};
use crate::trail::Trail;
use crate::trust::api_keys::ApiKeys;
use jetway_base::session_id::SessionId;

/// What the router has. Handlers see no more of it than the parts below, extractors the rest.
#[derive(Clone, Debug)]
pub struct ApiState {
    pub(super) gateway: Arc<Gateway>,
    pub(super) sender: Sender,
}

/// The connection that a request came by.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Correlation id of the connection, also in every problem document.
    pub id: SessionId,
    /// The client.
    pub peer: SocketAddr,
    /// The port it came in by.
    pub listener: Arc<Listener>,
    /// Whether the connection has TLS.
    pub tls: bool,
    /// Fires when the connection is to make room for another one.
    pub evicted: CancellationToken,
}

impl FromRef<ApiState> for Sender {
    fn from_ref(state: &ApiState) -> Self {
        state.sender.clone()
    }
}

/// For the handshakes behind which a session begins, or the channel of an agent: their connections are served as all others are.
impl FromRef<ApiState> for Arc<Gateway> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway)
    }
}

impl FromRef<ApiState> for Arc<Tokens> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.tokens)
    }
}

impl FromRef<ApiState> for Arc<ApiKeys> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.api_keys)
    }
}

impl FromRef<ApiState> for Arc<Sessions> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.sessions)
    }
}

impl FromRef<ApiState> for Arc<SessionRules> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.sessions.rules)
    }
}

impl FromRef<ApiState> for Arc<Peers> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.peers)
    }
}

impl FromRef<ApiState> for Arc<Trail> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.gateway.audit)
    }
}
