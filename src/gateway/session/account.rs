//! The account of a session: what it holds until its end, and the two lines that tell of it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tracing::info;

use crate::listener::admission::Admission;
use crate::live::legs::Legs;
use crate::live::registry::{EndCause, Registered, Session};
use crate::refusal::Refusal;
use crate::session::reached::RendezvousFacts;
use crate::session::secure::Secured;
use crate::trail::{self, Trail};
use crate::trust::target_certificate::Remembered;
use jetway_audit::record::{Event, Record};
use jetway_io::clock;
use jetway_io::stream::Io;
use jetway_metrics::METRICS;
use jetway_policy::permit::Permit;
use jetway_relay::{Parting, RelayEnd, Side};
use jetway_store::usage::Reservation;

/// What every live session holds until its end.
#[derive(Debug)]
pub struct Live {
    /// Its entry in the registry.
    pub session: Registered,
    /// Its token, used.
    pub reservation: Reservation,
    /// When the connection was accepted.
    pub started: Instant,
    /// Its place among the connections.
    pub admission: Admission,
    /// Of a rendezvous: the places of both peers, and the acceptor's among the connections.
    pub met: Option<RendezvousFacts>,
}

impl Live {
    /// What is left of the time limits of the token that has opened the session, and of those that take part.
    pub(super) fn time_left(&self, permit: &Permit) -> Option<Duration> {
        let own = permit.time_limit();
        let own = own.map(|limit| self.reservation.left_of(limit));
        let others = self.met.as_ref().and_then(|met| met.together.time_left());
        own.into_iter().chain(others).min()
    }

    /// The session is over: gives everything back, writes the one line, and closes the connections in order. Of a client that needs
    /// longer for the rest of what was said to it, only the connection is left.
    pub(super) async fn close(self, audit: &Trail, mut parting: Parting<'_>, ending: &Ending) {
        let Ending { outcome, reason } = ending;
        let Self {
            session,
            reservation,
            started,
            admission,
            met,
        } = self;
        let closed = parting.begin().await;
        // An association is over before the token of its client is free for the next session.
        drop(met);
        // The reconnect window starts no later than the log says so.
        drop(reservation);
        METRICS.session_ended(outcome);
        log_end(&session, reason, started);
        audit.record(&closed_record(&session, reason, started));
        let cut = session.cut();
        drop(session);
        if !closed {
            tokio::select! {
                () = cut.cancelled() => {}
                () = parting.finish() => {}
            }
        }
        drop(admission);
    }
}

/// What a limit or an operator has ended stays ended, however long its token's reconnect window is, and though the process be killed as
/// soon as either side sees the end: this comes before.
pub(super) async fn spend_for_good(live: &Live, end: &RelayEnd) {
    let for_good = match end {
        RelayEnd::IdleTimeout | RelayEnd::TimeLimit => true,
        RelayEnd::Cancelled => live.session.spent().is_set(),
        RelayEnd::Closed
        | RelayEnd::Ended(_)
        | RelayEnd::ClientFailed(_)
        | RelayEnd::TargetFailed(_)
        | RelayEnd::TargetStalled
        | RelayEnd::ClientSpoke(_) => false,
    };
    if for_good {
        // In a box: a live session is not to be larger for it.
        Box::pin(live.reservation.spend()).await;
    }
    if let (RelayEnd::TimeLimit, Some(met)) = (end, &live.met) {
        Box::pin(met.together.settle()).await;
    }
}

/// How an open session ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// To count by.
    pub(super) outcome: &'static str,
    /// For people.
    pub(super) reason: String,
}

/// How a relay ended.
pub(super) fn describe(session: &Session, end: &RelayEnd) -> Ending {
    let outcome = match (end, session.end_cause()) {
        (RelayEnd::Cancelled, Some(EndCause::Revoked(_))) => "revoked",
        (RelayEnd::Cancelled, Some(EndCause::Operator(_))) => "operator",
        (RelayEnd::Cancelled, Some(EndCause::Association)) => "association",
        (RelayEnd::Cancelled, Some(EndCause::Shutdown)) => "shutdown",
        (RelayEnd::Closed | RelayEnd::Ended(_), _) => "closed",
        (RelayEnd::ClientFailed(_), _) => "client-failed",
        (RelayEnd::TargetFailed(_), _) => "target-failed",
        (RelayEnd::TargetStalled, _) => "target-stalled",
        (RelayEnd::IdleTimeout, _) => "idle",
        (RelayEnd::TimeLimit, _) => "time-limit",
        (RelayEnd::Cancelled, None) | (RelayEnd::ClientSpoke(_), _) => "ended",
    };
    let reason = words(session, end);
    Ending { outcome, reason }
}

/// Why a relay ended, in words.
fn words(session: &Session, end: &RelayEnd) -> String {
    match (end, session.end_cause()) {
        (RelayEnd::Cancelled, Some(EndCause::Revoked(rule))) => {
            format!("the token was revoked by its {rule}")
        }
        (RelayEnd::Cancelled, Some(EndCause::Operator(name))) => {
            Refusal::Ended(name.clone()).to_string()
        }
        (RelayEnd::Cancelled, Some(EndCause::Association)) => {
            "its association was deleted".to_owned()
        }
        (RelayEnd::Cancelled, Some(EndCause::Shutdown)) => Refusal::ShuttingDown.to_string(),
        (RelayEnd::Closed, _) => "closed by both sides".to_owned(),
        (RelayEnd::Ended(Side::Client), _) => {
            "the client closed the connection, and the target did not in time".to_owned()
        }
        (RelayEnd::Ended(Side::Target), _) => {
            "the target closed the connection, and the client did not in time".to_owned()
        }
        (RelayEnd::ClientFailed(error), _) => format!("client: {error}"),
        (RelayEnd::TargetFailed(error), _) => format!("target: {error}"),
        (RelayEnd::TargetStalled, _) => {
            "the target took next to nothing of what the client sent for two minutes".to_owned()
        }
        (RelayEnd::IdleTimeout, _) => "idle for too long".to_owned(),
        (RelayEnd::TimeLimit, _) => "time limit reached".to_owned(),
        // Of the second no session ends.
        (RelayEnd::Cancelled, None) | (RelayEnd::ClientSpoke(_), _) => "ended".to_owned(),
    }
}

/// The one line at a session's beginning, in every mode: who is with whom. Of one that the gateway stands inside of it says what was
/// agreed on both legs.
pub(super) fn log_opened(session: &Session, secured: Option<&Secured<Io>>, started: Instant) {
    let mode = if secured.is_some() {
        "inspected"
    } else {
        "opaque"
    };
    METRICS.session_set_up(mode, clock::seconds_since(started));
    let claims = &session.token.claims;
    let target = session.target();
    let legs = secured.map(|secured| &secured.legs);
    info!(
        session = %session.id,
        peer = %session.peer,
        user = claims.sub.as_deref(),
        agent = claims.agent.as_ref().map(|agent| agent.agent.to_string()),
        target = target.map(|(name, _)| name.to_string()),
        address = target.map(|(_, address)| address.to_string()),
        token = %session.token.id,
        protection = %session.token.protection,
        jet_cm = claims.jet_cm.name(),
        jet_aid = claims.jet_aid.map(|id| id.to_string()),
        jet_ap = claims.jet_ap.as_ref().map(ToString::to_string),
        decision = "allow",
        mode,
        client_protocol = legs.map(|legs| legs.client_selected),
        client_tls = legs.map(|legs| legs.client_tls.to_string()),
        client_logon = legs.map(|legs| legs.client_logon.name()),
        target_protocol = legs.map(|legs| legs.target_selected),
        target_tls = legs.map(|legs| legs.target_tls.to_string()),
        target_logon = legs.map(|legs| legs.target_logon.name()),
        target_certificate = secured.map(|secured| secured.target_certificate.to_string()),
        first_use = secured.map(|secured| secured.remembered == Remembered::First),
        "Session opened"
    );
}

/// What the audit has of a session that opens.
pub(super) fn opened_record(session: &Session, secured: Option<&Secured<Io>>) -> Record {
    let claims = &session.token.claims;
    let mut detail = json!({
        "mode": if secured.is_some() { "inspected" } else { "opaque" },
        "jet_cm": claims.jet_cm.name(),
        "protection": session.token.protection.to_string(),
    });
    if let Some(secured) = secured {
        let Legs {
            client_selected,
            target_selected,
            client_logon,
            target_logon,
            client_tls,
            target_tls,
            ..
        } = &secured.legs;
        detail["client"] = json!({ "protocol": client_selected, "logon": client_logon.name(), "tls": client_tls.to_string() });
        detail["target"] = json!({
            "protocol": target_selected,
            "logon": target_logon.name(),
            "tls": target_tls.to_string(),
            "certificate": secured.target_certificate.to_string(),
            "first_use": secured.remembered == Remembered::First,
        });
    }
    Record {
        detail,
        ..trail::of_session(Event::SessionOpened, session)
    }
}

/// What the audit has of a session that is over.
fn closed_record(session: &Session, reason: &str, started: Instant) -> Record {
    let by = match session.end_cause() {
        Some(EndCause::Operator(name)) => Some(name.to_string()),
        Some(EndCause::Revoked(_) | EndCause::Association | EndCause::Shutdown) | None => None,
    };
    Record {
        by,
        reason: Some(reason.to_owned()),
        bytes_to_target: Some(session.traffic.to_target.load(Ordering::Relaxed)),
        bytes_to_client: Some(session.traffic.to_client.load(Ordering::Relaxed)),
        duration_ms: Some(clock::millis_since(started)),
        ..trail::of_session(Event::SessionClosed, session)
    }
}

/// The one line at a session's end.
fn log_end(session: &Session, reason: &str, started: Instant) {
    let claims = &session.token.claims;
    let target = session.target();
    let records = session.inside().map(|inside| {
        let statistics = inside.statistics.lock();
        let statistics = statistics.unwrap_or_else(PoisonError::into_inner);
        (statistics.records, statistics.records_suppressed)
    });
    info!(
        session = %session.id,
        peer = %session.peer,
        user = claims.sub.as_deref(),
        agent = claims.agent.as_ref().map(|agent| agent.agent.to_string()),
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
        audit_records = records.map(|(records, _)| records),
        audit_suppressed = records.map(|(_, suppressed)| suppressed),
        duration_ms = clock::millis_since(started),
        "Session closed"
    );
}
