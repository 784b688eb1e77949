//! What all connections of a process share, in parts: the steps of a connection take the parts that they use, and only those who
//! conduct them hold all.
//!
//! | part | what |
//! |---|---|
//! | [`Tokens`] | what judges tokens: keys, revocations, tickets, work |
//! | [`SessionRules`] | what sessions may do here, whoever opens them |
//! | [`Sessions`] | the live sessions, and what outlives them |
//! | [`InspectionTools`] | what inspected sessions are made with |
//! | [`Peers`] | what the peers of rendezvous meet by |
//! | [`Ports`] | the listeners and their certificates |

mod ports;
mod session_rules;
mod tokens;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, JetPeers};
use crate::listener::admission::Door;
use crate::live::registry::Registry;
use crate::live::stages::Stages;
use crate::meeting::MeetingPlace;
use crate::trail::Trail;
use crate::trust::api_keys::ApiKeys;
use crate::trust::target_logon::SecureConfig;
use jetway_io::free_space::FreeSpace;
use jetway_store::agents::Agents;
use jetway_store::cookies::KnownCookies;
use jetway_store::redirections::Returning;
use jetway_store::refusals::Refusals;
use jetway_store::usage::Usages;

pub use self::ports::Ports;
pub use self::session_rules::SessionRules;
pub use self::tokens::Tokens;

/// What all connections share.
#[derive(Debug)]
pub struct Gateway {
    /// As loaded; a changed file needs a restart.
    pub config: Config,
    /// Where decisions are recorded.
    pub audit: Arc<Trail>,
    /// What the store's file system has left.
    pub store_space: FreeSpace,
    /// What refused clients were told.
    pub refusals: Refusals,
    /// What judges tokens.
    pub tokens: Arc<Tokens>,
    /// The keys of operators.
    pub api_keys: Arc<ApiKeys>,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    /// What inspected sessions are made with.
    pub inspection: InspectionTools,
    /// What the peers of rendezvous meet by.
    pub peers: Arc<Peers>,
    /// The ports.
    pub ports: Ports,
    /// How many connections there may be.
    pub door: Door,
    /// Fires when no more connections are taken.
    pub stopping: CancellationToken,
    /// Every connection's task.
    pub connections: TaskTracker,
}

/// The sessions of a process: what they may do, which are live, and what is known of their tokens when they are over.
#[derive(Debug)]
pub struct Sessions {
    /// What they may do.
    pub rules: Arc<SessionRules>,
    /// The live ones.
    pub registry: Arc<Registry>,
    /// Which tokens were used.
    pub usages: Arc<Usages>,
    /// Where targets have sent clients that come back.
    pub returning: Arc<Returning>,
}

/// What inspected sessions are made with.
#[derive(Debug)]
pub struct InspectionTools {
    /// How they meet their targets.
    pub secure: SecureConfig,
    /// Auto-reconnect cookies of targets.
    pub cookies: Arc<KnownCookies>,
    /// Stages that were added to those of the gateway.
    pub stages: Option<Arc<dyn Stages>>,
}

/// What the peers of rendezvous meet by.
#[derive(Debug)]
pub struct Peers {
    /// Agents.
    pub agents: Arc<Agents>,
    /// Where peers wait for each other.
    pub meetings: Arc<MeetingPlace>,
    /// `Jet-Instance`: the name by which peers look for the gateway that holds their association.
    pub instance: String,
    /// Who may be a peer.
    pub allowed: JetPeers,
}
