//! The conductor: from an accepted connection to its outcome, one step a file, read from top to bottom.
//!
//! 1. [`identify`]: what do the first bytes begin? Read-ahead travels with the stream.
//! 2. [`authenticate`]: the token behind the carrier, verified, not revoked.
//! 3. [`authorize`]: a [`Permit`](crate::policy::permit::Permit), the token reserved, the session registered.
//! 4. [`connect`]: the target dialled.
//! 5. [`open`]: the first exchange of the protocol that the token announces, and the use of the token on disk; the relay
//!    takes over from there.
//!
//! Each step takes the one before it by value, so a step that was skipped does not compile. A step that fails returns a
//! [`Refusal`]; [`refuse`] tells the client.

pub mod authenticate;
pub mod authorize;
pub mod connect;
pub mod identify;
pub mod open;
pub mod refuse;
pub mod registry;
pub mod secure;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;
use tracing::info;
use uuid::Uuid;

use crate::api::{self, ApiState};
use crate::clock;
use crate::gateway::Gateway;
use crate::refusal::Refusal;
use crate::relay::{self, RelayEnd, RelayLimits};
use crate::session::identify::{Client, Identified};
use crate::session::open::Opened;
use crate::session::registry::{EndCause, Session};

/// The correlation id of one connection: in every line it causes, in its refusal's log line and in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new id; ids sort by the time of their making.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "every call gives another value")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Carries one connection from its first byte to its last.
pub async fn handle(gateway: Arc<Gateway>, client: Client) {
    // Setting up needs far more memory than relaying, so it has a box of its own, gone before the relay starts.
    if let Some(opened) = Box::pin(establish(&gateway, client)).await {
        run(opened).await;
    }
}

/// Steps 1 to 5, bounded in time. `None`: the connection has had its answer.
async fn establish(gateway: &Arc<Gateway>, client: Client) -> Option<Opened> {
    let id = client.id;
    let client = match identify::identify(client).await {
        Ok(Identified::Rdp(client)) => client,
        Ok(Identified::Http {
            stream,
            peer,
            tls,
            pending,
        }) => {
            let state = ApiState {
                gateway: Arc::clone(gateway),
                id,
                peer,
            };
            api::serve(state, stream, tls, pending).await;
            return None;
        }
        Ok(Identified::Jet { stream }) => {
            api::jet::answer_not_offered(stream).await;
            return None;
        }
        Err(refused) => {
            refuse::refuse(gateway, *refused).await;
            return None;
        }
    };
    let opened = async {
        let authenticated = authenticate::authenticate(gateway, *client).await?;
        let authorized = authorize::authorize(gateway, authenticated).await?;
        let connected = connect::connect(gateway, authorized).await?;
        open::open(connected).await
    };
    match opened.await {
        Ok(opened) => Some(opened),
        Err(refused) => {
            refuse::refuse(gateway, *refused).await;
            None
        }
    }
}

/// Relays until the end and accounts for it.
async fn run(opened: Opened) {
    let Opened {
        session,
        reservation,
        client,
        target,
        permit,
        started,
        admission,
    } = opened;
    let limits = RelayLimits {
        idle: permit.idle_timeout(),
        total: permit.time_limit(),
    };
    let cancel = session.cancelled().clone();
    let end = relay::run(client, target, &session.traffic, limits, cancel).await;
    // The reconnect window starts no later than the log says so.
    drop(reservation);
    log_end(&session, &end, started);
    drop(admission);
}

/// The one line at a session's end.
fn log_end(session: &Session, end: &RelayEnd, started: Instant) {
    let reason = match (end, session.end_cause()) {
        (RelayEnd::Cancelled, Some(EndCause::Revoked(rule))) => {
            format!("the token was revoked by its {rule}")
        }
        (RelayEnd::Cancelled, Some(EndCause::Shutdown)) => Refusal::ShuttingDown.to_string(),
        (RelayEnd::Closed, _) => "closed by both sides".to_owned(),
        (RelayEnd::ClientFailed(error), _) => format!("client: {error}"),
        (RelayEnd::TargetFailed(error), _) => format!("target: {error}"),
        (RelayEnd::IdleTimeout, _) => "idle for too long".to_owned(),
        (RelayEnd::TimeLimit, _) => "time limit reached".to_owned(),
        (RelayEnd::Cancelled, None) => "ended".to_owned(),
    };
    let claims = &session.token.claims;
    let target = session.target();
    info!(
        session = %session.id,
        peer = %session.peer,
        user = claims.sub.as_deref(),
        target = target.map(|(name, _)| name.to_string()),
        address = target.map(|(_, address)| address.to_string()),
        token = %session.token.id,
        protection = %session.token.protection,
        jet_aid = claims.jet_aid.map(|id| id.to_string()),
        jet_ap = claims.jet_ap.as_ref().map(ToString::to_string),
        decision = "allow",
        reason,
        bytes_to_target = session.traffic.to_target.load(Ordering::Relaxed),
        bytes_to_client = session.traffic.to_client.load(Ordering::Relaxed),
        duration_ms = millis_since(started),
        "Session closed"
    );
}

/// Whole milliseconds since `start`.
fn millis_since(start: Instant) -> u64 {
    u64::try_from(clock::now().saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}
