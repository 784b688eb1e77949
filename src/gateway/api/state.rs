//! What the handlers of one connection share.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;

use crate::listener::Listener;
use crate::state::Gateway;
use jetway_base::session_id::SessionId;
use jetway_jet::candidate::CandidateUrl;
use jetway_token::target::TargetAddr;

/// What handlers share.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// The gateway.
    pub gateway: Arc<Gateway>,
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

impl ApiState {
    /// One candidate URL for each transport, as the sender of a request with these headers can use it.
    #[must_use]
    pub fn candidate_urls(&self, headers: &HeaderMap) -> Vec<CandidateUrl> {
        let host = headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).and_then(host_of);
        let plain_http = self.gateway.config.api.allows_plain_http(self.peer);
        let ports = &self.gateway.ports;
        ports.candidate_urls(&self.listener, host.as_deref(), plain_http)
    }
}

/// The host of a `Host` header, which may have a port.
fn host_of(header: &str) -> Option<String> {
    let with_port = header.parse::<TargetAddr>();
    let address = with_port.or_else(|_| format!("{header}:1").parse());
    address.ok().map(|address| address.host)
}
