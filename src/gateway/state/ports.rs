//! The listeners, and how peers reach them.

use std::sync::Arc;

use crate::config::Arrival;
use crate::listener::Listener;
use crate::trust::tls::ServerTls;
use jetway_jet::candidate::{CandidateType, CandidateUrl, TRANSPORTS};

/// The listeners and their certificates.
#[derive(Debug)]
pub struct Ports {
    /// The listeners, in the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// Their certificates; listeners with equal settings share one.
    pub tls: Vec<Arc<ServerTls>>,
}

impl Ports {
    /// One candidate URL for each transport that some listener has, for a peer that knows the gateway as `host`, and may speak HTTP
    /// without TLS or not. The listener by which it came goes first: that one it can reach.
    #[must_use]
    pub fn candidate_urls(
        &self,
        came_by: &Arc<Listener>,
        host: Option<&str>,
        plain_http: bool,
    ) -> Vec<CandidateUrl> {
        let urls = TRANSPORTS.into_iter().filter_map(|transport| {
            let mut listeners = std::iter::once(came_by).chain(&self.listeners);
            let listener = listeners.find(|listener| {
                let tls = !transport.is_tls()
                    || (listener.tls().is_some() && listener.accepts(Arrival::Tls));
                let inner = if transport.is_websocket() {
                    listener.accepts(Arrival::Http) && (transport.is_tls() || plain_http)
                } else {
                    listener.accepts(Arrival::Jet)
                };
                tls && inner
            })?;
            Some(CandidateUrl {
                transport,
                address: listener.external(host)?,
                ctype: Some(CandidateType::Relay),
            })
        });
        urls.collect()
    }
}
