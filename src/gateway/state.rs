//! What all connections of a process share.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::{Arrival, Config};
use crate::listener::Listener;
use crate::listener::admission::Door;
use crate::live::registry::Registry;
use crate::live::stages::Stages;
use crate::meeting::MeetingPlace;
use crate::refusal::Refusal;
use crate::trail::Trail;
use crate::trust::keyring::Keyring;
use crate::trust::target_certificate::TargetCertificate;
use crate::trust::target_logon::SecureConfig;
use crate::trust::tls::ServerTls;
use jetway_io::clock;
use jetway_io::free_space::FreeSpace;
use jetway_io::reached::Reached;
use jetway_jet::candidate::{CandidateType, CandidateUrl, TRANSPORTS};
use jetway_metrics::{METRICS, Outcome};
use jetway_policy::work::WorkLimiter;
use jetway_policy::{InspectionMode, Means};
use jetway_store::agents::Agents;
use jetway_store::cookies::KnownCookies;
use jetway_store::redirections::Returning;
use jetway_store::refusals::Refusals;
use jetway_store::revoked::Revoked;
use jetway_store::tickets::Tickets;
use jetway_store::usage::Usages;
use jetway_token::{Protection, Token};

/// What all connections share.
#[derive(Debug)]
pub struct Gateway {
    /// As loaded; a changed file needs a restart.
    pub config: Config,
    /// The keys in force.
    pub keyring: Keyring,
    /// The revocations in force.
    pub revoked: Revoked,
    /// Agents.
    pub agents: Arc<Agents>,
    /// Tickets.
    pub tickets: Tickets,
    /// Which tokens were used.
    pub usages: Arc<Usages>,
    /// Where decisions are recorded.
    pub audit: Arc<Trail>,
    /// What the file system of the store has left.
    pub store_space: FreeSpace,
    /// What refused clients were told.
    pub refusals: Refusals,
    /// The live sessions.
    pub registry: Arc<Registry>,
    /// Auto-reconnect cookies of targets.
    pub cookies: Arc<KnownCookies>,
    /// How many connections there may be.
    pub door: Door,
    /// Fires when no more connections are taken.
    pub stopping: CancellationToken,
    /// Every connection's task.
    pub connections: TaskTracker,
    /// How inspected sessions meet their targets.
    pub secure: SecureConfig,
    /// Where targets have sent clients that come back.
    pub returning: Arc<Returning>,
    /// Where the peers of rendezvous wait for each other.
    pub meetings: Arc<MeetingPlace>,
    /// Stages that were added to those of the gateway.
    pub stages: Option<Arc<dyn Stages>>,
    /// The ports.
    pub listeners: Vec<Arc<Listener>>,
    pub(super) work: Mutex<WorkLimiter>,
    pub(super) work_reached: Reached,
    /// The certificates of the listeners.
    pub(super) tls: Vec<Arc<ServerTls>>,
}

impl Gateway {
    /// Verifies a token that `client` has shown, after booking the work that takes.
    ///
    /// # Errors
    /// The address has shown too many tokens, or this one does not hold.
    pub fn verify_token(&self, text: &str, client: IpAddr) -> Result<Token, Refusal> {
        let verifier = self.keyring.verifier();
        let cost = verifier.cost_us(text);
        self.book(client, cost)?;
        let began = clock::now();
        let judged = verifier.judge(text, clock::unix_now());
        METRICS.token_verified(Outcome::of(&judged), clock::seconds_since(began));
        let token = judged?;
        if token.protection == Protection::None {
            // Anybody can make it, so it is no `token` that speaks for its bearer.
            warn!(unsigned = %token.id, peer = %client, "Accepted an unsigned token (development.accept_unsigned_tokens)");
        }
        Ok(token)
    }

    /// With what a session through any of the listeners could be inspected.
    #[must_use]
    pub fn means(&self) -> Means {
        self.means_of(if self.tls.is_empty() {
            InspectionMode::Unavailable
        } else {
            InspectionMode::WhenNeeded
        })
    }

    /// With what a session through one listener can be inspected.
    #[must_use]
    pub fn means_by(&self, listener: &Listener) -> Means {
        self.means_of(listener.inspecting(self.config.session.inspect))
    }

    fn means_of(&self, inspecting: InspectionMode) -> Means {
        Means {
            inspecting,
            verifies_targets: !matches!(
                self.secure.target_certificate,
                TargetCertificate::AcceptAny
            ),
        }
    }

    /// One candidate URL for each transport that some listener has, for a `peer` that knows the gateway as `host`. The listener by
    /// which it came goes first: that one it can reach.
    #[must_use]
    pub fn candidate_urls(
        &self,
        peer: SocketAddr,
        host: Option<&str>,
        came_by: &Arc<Listener>,
    ) -> Vec<CandidateUrl> {
        let plain_http = self.config.api.allows_plain_http(peer);
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

    /// `Jet-Instance`.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.config.jet.instance.as_deref().unwrap_or_default()
    }

    /// Books work that `client` causes.
    ///
    /// # Errors
    /// The address has caused too much.
    pub fn book(&self, client: IpAddr, cost_us: u32) -> Result<(), Refusal> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let booked = work.book(client, cost_us, clock::now());
        drop(work);
        booked.map_err(|_| {
            self.work_reached.by(&client);
            Refusal::TooMuchWork
        })
    }
}
