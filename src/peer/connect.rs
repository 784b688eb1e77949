//! The client's side of a rendezvous ([JET-PROTO] 2.3.3): offers, tests the candidates of the answer in parallel, chooses one.
//!
//! A test is a connection that is kept: to connect to a candidate says that it works, and the one that is chosen carries the
//! session. Of those that work, the one with the fewest layers is chosen, once it and the better ones have settled.
//!
//! The token is shown to the gateway's own host and to nobody else, whatever an answer says.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::time::Duration;

use anyhow::{Context, ensure};
use hyper::Method;
use serde_json::Value;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{Duplex, Site};
use jetway_jet::candidate::{CandidateType, Transport};
use jetway_jet::exchange::{JetPath, Operation};
use jetway_jet::message::{Answer, Candidate, Complete, Offer, Version};
use jetway_token::agent_name::AgentName;

/// After the first candidate that works, how long better ones are waited for.
const SETTLE: Duration = Duration::from_millis(500);

/// A session with whoever answered.
pub struct Connection {
    /// Its bytes.
    pub stream: Box<dyn Duplex>,
    /// What carries them.
    pub candidate: Candidate,
    /// The association.
    pub association: Uuid,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("candidate", &self.candidate)
            .field("association", &self.association)
            .finish_non_exhaustive()
    }
}

/// Meets the agent that `token` names, at a new association or at the one that the token names. With `direct`, also at the agent's
/// own address, if it tells one.
///
/// # Errors
/// The gateway or the agent says no, or no candidate works.
pub async fn connect(
    site: &Arc<Site>,
    token: &str,
    agent: &AgentName,
    association: Option<Uuid>,
    direct: bool,
) -> anyhow::Result<Connection> {
    let association = association.unwrap_or_else(Uuid::new_v4);
    let post = |path: String, body: String| async move {
        let answer: Value = site.request(Method::POST, &path, token, body).await?;
        anyhow::Ok(answer)
    };
    post(format!("/jet/association/{association}"), String::new()).await?;
    post(format!("/jet/gather/{association}"), String::new()).await?;
    // Where the gateway is reached over TLS, so is the other end.
    let transports = site.has_tls().then(|| {
        let mut transports = vec![Transport::Tls, Transport::Wss];
        transports.extend(direct.then_some(Transport::Tcp));
        transports
    });
    let offer = Offer::new(association, Version::V3, transports);
    let body = serde_json::to_string(&offer)?;
    let answer = post(format!("/jet/offer/{agent}"), body).await?;
    let answer: Answer = serde_json::from_value(answer).context("the agent's answer")?;
    ensure!(answer.id == association, "the answer is to another offer");
    let mut candidates = answer.candidates;
    candidates.retain(|candidate| {
        let url = &candidate.url;
        let usable = if url.ctype == Some(CandidateType::Host) {
            direct
        } else {
            site.has_relay(url)
        };
        offer.admits(url.transport) && usable
    });
    let (candidate, stream) = test(site, token, association, candidates).await?;
    let complete = serde_json::to_string(&Complete::of(candidate.id))?;
    post(format!("/jet/complete/{association}"), complete).await?;
    Ok(Connection {
        stream,
        candidate,
        association,
    })
}

/// Tests all candidates at once; the best of those that work.
async fn test(
    site: &Arc<Site>,
    token: &str,
    association: Uuid,
    candidates: Vec<Candidate>,
) -> anyhow::Result<(Candidate, Box<dyn Duplex>)> {
    let mut tests = JoinSet::new();
    for candidate in candidates {
        let (site, token) = (Arc::clone(site), Zeroizing::new(token.to_owned()));
        let path = JetPath {
            operation: Operation::Connect,
            association,
            candidate: candidate.id,
        };
        tests.spawn(async move {
            let granted = if candidate.url.ctype == Some(CandidateType::Host) {
                site.direct(&candidate.url, path).await
            } else {
                site.candidate(&candidate.url, path, &token).await
            };
            granted.map(|granted| (candidate, granted.stream))
        });
    }
    let mut best: Option<(Candidate, Box<dyn Duplex>)> = None;
    let mut settled = None;
    let mut reason = anyhow::anyhow!("the agent has answered with no candidate that can be used");
    loop {
        let tested = match settled {
            None => tests.join_next().await,
            // Whoever has not settled by then is slower than what works.
            Some(at) => timeout_at(at, tests.join_next()).await.unwrap_or(None),
        };
        match tested {
            Some(Ok(Ok(usable))) => {
                settled.get_or_insert_with(|| Instant::now() + SETTLE);
                let better = best
                    .as_ref()
                    .is_none_or(|best| usable.0.url.transport < best.0.url.transport);
                if better {
                    best = Some(usable);
                }
            }
            Some(Ok(Err(error))) => {
                debug!(error = format!("{error:#}"), "Candidate failed");
                reason = error;
            }
            Some(Err(_ended)) => {}
            None => break,
        }
    }
    best.ok_or(reason)
}

impl Connection {
    /// The session is over: what the gateway remembers of it goes.
    pub async fn forget(self, site: &Site, token: &str) {
        drop(self.stream);
        let path = format!("/jet/association/{}", self.association);
        // It would be forgotten in a while by itself.
        let _: Result<Value, _> = site
            .request(Method::DELETE, &path, token, String::new())
            .await;
    }
}
