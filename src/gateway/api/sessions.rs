//! `/jet/sessions`: the live sessions of this gateway, for operators (API key).
//!
//! `GET` lists them: who, from where, to where, how far, how many bytes; of inspected ones also what was agreed on both
//! legs and what has happened inside. `DELETE /jet/sessions/ID` ends one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use tracing::{error, info};
use uuid::Uuid;

use crate::api::operator::Operator;
use crate::api::problem::{Parameter, Problem};
use crate::api::state::Sender;
use crate::live::registry::{EndCause, InspectionDetails, Session, SessionPhase};
use crate::state::Sessions;
use crate::trail::{self, Trail};
use jetway_audit::record::{Event, Record};
use jetway_base::session_id::SessionId;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_stage::inspector::SessionStatistics;
use jetway_store::usage::Usages;
use jetway_token::agent_name::AgentName;

/// One session in the list.
#[derive(Debug, Serialize)]
pub struct Row {
    id: SessionId,
    phase: SessionPhase,
    user: Option<String>,
    peer: String,
    /// Behind which the target is.
    agent: Option<AgentName>,
    target: Option<String>,
    address: Option<String>,
    token: String,
    protection: String,
    jet_aid: Option<Uuid>,
    jet_ap: Option<String>,
    /// Unix seconds.
    started_at: UnixTime,
    duration_s: u64,
    bytes_to_target: u64,
    bytes_to_client: u64,
    /// Microseconds of the TCP handshake with the target: the round trip of that leg when the session began.
    target_round_trip_us: Option<u64>,
    /// `None` where the gateway passes on bytes that it cannot read.
    inside: Option<InsideRow>,
}

/// What is known of a session that the gateway stands inside of.
#[derive(Debug, Serialize)]
struct InsideRow {
    /// `selectedProtocol` of the client's leg.
    client_protocol: u32,
    client_tls: String,
    /// How the client proved itself: `none`, `ntlm` or `kerberos`.
    client_logon: &'static str,
    /// `selectedProtocol` of the target's leg.
    target_protocol: u32,
    target_tls: String,
    target_logon: &'static str,
    statistics: SessionStatistics,
}

/// Handles `GET /jet/sessions`.
pub async fn list(_: Operator, State(sessions): State<Arc<Sessions>>) -> Json<Vec<Row>> {
    let now = clock::unix_now();
    let mut live = sessions.registry.list();
    live.sort_by_key(|session| session.id);
    Json(live.iter().map(|session| row(session, now)).collect())
}

/// Handles `DELETE /jet/sessions/ID`.
///
/// # Errors
/// A problem document: 404 where there is no such session.
pub async fn end(
    Parameter(id): Parameter<Uuid>,
    Operator(by): Operator,
    State(sender): State<Sender>,
    State(sessions): State<Arc<Sessions>>,
    State(audit): State<Arc<Trail>>,
) -> Result<StatusCode, Problem> {
    let live = sessions.registry.list();
    let Some(session) = live.iter().find(|session| session.id.as_uuid() == id) else {
        let detail = "there is no such live session";
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "session",
            detail,
            sender.id,
        ));
    };
    info!(session = %session.id, by = by.as_str(), "Ending a session for an operator");
    session.end(EndCause::Operator(by.clone()));
    audit.record(&Record {
        by: Some(by.to_string()),
        ..trail::of_session(Event::SessionEnded, session)
    });
    spend(&sessions.usages, sender.id, session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was ended for good stays so, whatever becomes of this process once the operator has the answer.
///
/// # Errors
/// A problem document: the session is over, and the store has failed.
pub(super) async fn spend(
    usages: &Usages,
    id: SessionId,
    session: &Session,
) -> Result<(), Problem> {
    let written = usages.spend(&session.token.id).await;
    written.map_err(|error| {
        error!(session = %session.id, %error, "Cannot store that an operator has ended a session");
        let detail = format!("the session is ended, and that could not be written: {error}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", detail, id)
    })
}

fn row(session: &Session, now: UnixTime) -> Row {
    let claims = &session.token.claims;
    let target = session.target();
    Row {
        id: session.id,
        phase: session.phase(),
        user: claims.sub.clone(),
        peer: session.peer.to_string(),
        agent: claims.agent.as_ref().map(|agent| agent.agent.clone()),
        target: target.map(|(name, _)| name.to_string()),
        address: target.map(|(_, address)| address.to_string()),
        token: session.token.id.to_string(),
        protection: session.token.protection.to_string(),
        jet_aid: claims.jet_aid,
        jet_ap: claims.jet_ap.as_ref().map(ToString::to_string),
        started_at: session.started_at,
        duration_s: now.since(session.started_at),
        bytes_to_target: session.traffic.to_target.load(Ordering::Relaxed),
        bytes_to_client: session.traffic.to_client.load(Ordering::Relaxed),
        target_round_trip_us: session
            .handshake()
            .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        inside: session.inside().map(inside),
    }
}

fn inside(inside: &InspectionDetails) -> InsideRow {
    let legs = &inside.legs;
    let statistics = inside.statistics.lock();
    InsideRow {
        client_protocol: legs.client_selected,
        client_tls: legs.client_tls.to_string(),
        client_logon: legs.client_logon.name(),
        target_protocol: legs.target_selected,
        target_logon: legs.target_logon.name(),
        target_tls: legs.target_tls.to_string(),
        statistics: statistics.unwrap_or_else(PoisonError::into_inner).clone(),
    }
}
