//! Where the sender of a request reaches the relay candidates of this gateway.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use crate::api::state::ApiState;
use jetway_jet::candidate::CandidateUrl;
use jetway_token::target::TargetAddr;

/// One candidate URL for each transport, as the sender of the request can use it.
#[derive(Debug)]
pub struct CandidateUrls(pub Vec<CandidateUrl>);

impl FromRequestParts<ApiState> for CandidateUrls {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Infallible> {
        let ApiState { gateway, sender } = state;
        let host = parts.headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).and_then(host_of);
        let plain_http = gateway.config.api.allows_plain_http(sender.peer);
        let ports = &gateway.ports;
        let urls = ports.candidate_urls(&sender.listener, host.as_deref(), plain_http);
        Ok(Self(urls))
    }
}

/// The host of a `Host` header, which may have a port.
fn host_of(header: &str) -> Option<String> {
    let with_port = header.parse::<TargetAddr>();
    let address = with_port.or_else(|_| format!("{header}:1").parse());
    address.ok().map(|address| address.host)
}
