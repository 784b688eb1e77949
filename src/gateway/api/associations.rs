//! [JET-PROTO] 2.2.2 REST API of associations and their candidates.
//!
//! | request | what |
//! |---|---|
//! | `POST /jet/association/ID` | creates; again with the same claims changes nothing |
//! | `GET /jet/association/ID` | reads: candidates, their states, bytes |
//! | `DELETE /jet/association/ID` | removes, and closes the peers |
//! | `GET /jet/association` | lists (API key) |
//! | `POST /jet/gather/ID` | candidates; `POST /jet/association/ID/candidates`, as existing clients have it, is the same |
//! | `POST /jet/complete/ID` | selects a candidate by the client's word, the body being a Complete message |
//!
//! The bearer is a rendezvous token, or an API key; `jet.authentication = false` does without. An association that a token
//! has created demands a token of its peers, and one of an operator does where the body says `"token_required": true`.
//!
//! All but creating is for the token that has created the association, for tokens that name it (`jet_aid`), and for operators. Who
//! has nothing to show and needs nothing may gather, read and complete what demands no token, and deletes what was created from
//! the same address without a token.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use tracing::info;
use uuid::Uuid;

use crate::api::caller::Caller;
use crate::api::candidate_urls::CandidateUrls;
use crate::api::jet::not_admitted;
use crate::api::operator::Operator;
use crate::api::problem::{Parameter, Problem};
use crate::api::sessions;
use crate::api::state::{ApiState, Sender};
use crate::config::JetPeers;
use crate::live::registry::EndCause;
use crate::meeting::Listed;
use crate::meeting::party::Creator;
use crate::rendezvous::admit::NotAdmitted;
use crate::state::{Peers, SessionRules, Sessions, Tokens};
use crate::trail::{self, Trail};
use jetway_audit::record::{Event, Record};
use jetway_base::session_id::SessionId;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_jet::candidate::Transport;
use jetway_jet::exchange;
use jetway_jet::message::{Candidate, Complete};
use jetway_jet::rendezvous::{Access, CandidateState, Proof, RendezvousError};
use jetway_token::Token;
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::claims::ConnectionTest;
use jetway_token::validity::Validity;

/// How long a session can be opened on what an operator has created.
const OPERATOR_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// What an operator may say of a new association.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    jet_ap: Option<String>,
    jet_ct: Option<Test>,
    token_required: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Test {
    Keep,
    Close,
}

/// An association, as it is shown.
#[derive(Debug, Serialize)]
pub struct AssociationRow {
    id: Uuid,
    /// Unix seconds.
    created_at: UnixTime,
    jet_ap: Option<String>,
    token_required: bool,
    candidates: Vec<ShownCandidate>,
    /// The session on the selected candidate.
    session: Option<SessionId>,
    /// From the connector, on the selected candidate.
    bytes_to_acceptor: u64,
    /// From the acceptor, on the selected candidate.
    bytes_to_connector: u64,
}

#[derive(Debug, Serialize)]
struct ShownCandidate {
    id: Uuid,
    transport: Transport,
    state: CandidateState,
}

/// The candidates of an association.
#[derive(Debug, Serialize)]
pub struct Gathered {
    id: Uuid,
    candidates: Vec<Candidate>,
}

/// Which association a request is about, and who sent it.
#[derive(Debug)]
pub struct Asked {
    association: Uuid,
    caller: Caller,
}

impl FromRequestParts<ApiState> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let Parameter(id): Parameter<String> = Parameter::from_request_parts(parts, state).await?;
        let association = association_id(&state.sender, &id)?;
        let caller = Caller::from_request_parts(parts, state).await?;
        Ok(Self {
            association,
            caller,
        })
    }
}

/// Handles `POST /jet/association/ID`.
///
/// # Errors
/// A problem document: 400 for what is no UUID, 401 and 403 for who may not, 409 where the id is taken.
pub async fn create(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(tokens): State<Arc<Tokens>>,
    State(rules): State<Arc<SessionRules>>,
    State(audit): State<Arc<Trail>>,
    Asked {
        association,
        caller,
    }: Asked,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let allowed = peers.allowed;
    let (token, access) = match &caller {
        Caller::Token(token) => {
            let access = match (allowed, token.claims.jet_aid) {
                (_, Some(named)) if named != association => {
                    return Err(declined(&sender, RendezvousError::OtherToken));
                }
                (JetPeers::Anyone, _) => Access::Anyone,
                (JetPeers::AsCreated | JetPeers::Token, Some(_)) => Access::Association,
                (JetPeers::AsCreated | JetPeers::Token, None) => Access::Token(token.id.clone()),
            };
            (token.as_ref().clone(), access)
        }
        Caller::Operator(_) | Caller::Nobody(_) => {
            let wanted = wanted(&sender, &body)?;
            let required = match allowed {
                JetPeers::Anyone => false,
                JetPeers::Token => true,
                JetPeers::AsCreated => wanted.token_required,
            };
            let access = if required {
                Access::Association
            } else {
                Access::Anyone
            };
            (of_operator(caller.name(), association, wanted), access)
        }
    };
    // What no session could have is refused before anybody waits for one.
    let permitted = rules.permit_by_any(&token.claims);
    permitted.map_err(|denial| Problem::of(&denial.into(), sender.id))?;
    let meetings = &peers.meetings;
    let by = match &caller {
        Caller::Operator(_) => Creator::Operator,
        Caller::Token(_) => Creator::Bearer(sender.peer.ip()),
        Caller::Nobody(_) => Creator::Stranger(sender.peer.ip()),
    };
    // Whose session is over may come again, as its token's window says.
    meetings.reopen(association, caller.proof());
    let new = meetings.create(association, &token, access, by);
    let new = new.map_err(|refused| declined(&sender, refused))?;
    // Asked after creating: a rule that arrives between the two finds the association.
    if new && let Err(refusal) = tokens.check_revoked(&token) {
        // Gone already is as good.
        let _ = meetings.delete(association, Proof::Operator);
        return Err(not_admitted(sender.id, &NotAdmitted::from(refusal)));
    }
    if new {
        let by = caller.name();
        info!(session = %sender.id, peer = %sender.peer, jet_aid = %association, by, "Association created");
        let record = Record {
            by: Some(by.to_owned()),
            jet_aid: Some(association.to_string()),
            ..trail::of_token(Event::AssociationCreated, sender.id, sender.peer, &token)
        };
        audit.record_of_proven(sender.peer.ip(), &record);
    }
    Ok(StatusCode::OK)
}

/// Handles `GET /jet/association/ID`.
///
/// # Errors
/// A problem document: 404 where there is none.
pub async fn read(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    Asked {
        association,
        caller,
    }: Asked,
) -> Result<Json<AssociationRow>, Problem> {
    let listed = peers.meetings.view(association, caller.proof());
    let listed = listed.map_err(|refused| declined(&sender, refused))?;
    Ok(Json(shown(listed)))
}

/// Handles `GET /jet/association`.
pub async fn list(_: Operator, State(peers): State<Arc<Peers>>) -> Json<Vec<AssociationRow>> {
    let listed = peers.meetings.list().into_iter();
    Json(listed.map(shown).collect())
}

/// Handles `DELETE /jet/association/ID`.
///
/// # Errors
/// A problem document: 404 where there is none.
pub async fn delete(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(sessions): State<Arc<Sessions>>,
    State(audit): State<Arc<Trail>>,
    Asked {
        association,
        caller,
    }: Asked,
) -> Result<StatusCode, Problem> {
    let meetings = &peers.meetings;
    let mut ended = None;
    if let Caller::Operator(name) = &caller
        && let Ok(Listed {
            session: Some(session),
            ..
        }) = meetings.view(association, caller.proof())
    {
        session.end(EndCause::Operator(name.clone()));
        ended = Some(session);
    }
    let deleted = meetings.delete(association, caller.proof());
    deleted.map_err(|refused| declined(&sender, refused))?;
    peers.agents.forget_offer(association);
    let by = caller.name();
    info!(session = %sender.id, peer = %sender.peer, jet_aid = %association, by, "Association deleted");
    audit.record(&Record {
        by: Some(by.to_string()),
        jet_aid: Some(association.to_string()),
        ..trail::of_peer(Event::AssociationDeleted, sender.id, sender.peer)
    });
    if let Some(session) = ended {
        sessions::spend(&sessions.usages, sender.id, &session).await?;
    }
    Ok(StatusCode::OK)
}

/// Handles `POST /jet/gather/ID`.
///
/// # Errors
/// A problem document: 404 where there is no such association.
pub async fn gather(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    Asked {
        association,
        caller,
    }: Asked,
    CandidateUrls(urls): CandidateUrls,
) -> Result<Json<Gathered>, Problem> {
    let transports: Vec<Transport> = urls.iter().map(|url| url.transport).collect();
    let gathered = peers
        .meetings
        .gather(association, &transports, caller.proof());
    let gathered = gathered.map_err(|refused| declined(&sender, refused))?;
    let candidates = gathered
        .iter()
        .filter_map(|candidate| candidate.by_transport_of(&urls));
    Ok(Json(Gathered {
        id: association,
        candidates: candidates.collect(),
    }))
}

/// Handles `POST /jet/complete/ID`.
///
/// # Errors
/// A problem document: 404 where it is unknown, 409 where another one was selected or nobody is connected.
pub async fn complete(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    Asked {
        association,
        caller,
    }: Asked,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let Complete { candidate } = serde_json::from_slice(&body).map_err(|_| {
        let detail = "expected a Complete message: {\"candidate\":{\"id\":\"...\"}}";
        Problem::new(StatusCode::BAD_REQUEST, "body", detail, sender.id)
    })?;
    let meetings = &peers.meetings;
    let completed = meetings.complete(association, candidate.id, caller.proof());
    match completed {
        // A candidate of the agent's own: it knows.
        Err(RendezvousError::UnknownCandidate) if peers.agents.was_offered(association) => {}
        completed => completed.map_err(|refused| declined(&sender, refused))?,
    }
    peers.agents.complete(association, candidate.id);
    Ok(StatusCode::OK)
}

fn association_id(sender: &Sender, text: &str) -> Result<Uuid, Problem> {
    exchange::uuid(text).ok_or_else(|| {
        let detail = "an association's id is a UUID";
        Problem::new(StatusCode::BAD_REQUEST, "uuid", detail, sender.id)
    })
}

fn wanted(sender: &Sender, body: &[u8]) -> Result<Wanted, Problem> {
    if body.is_empty() {
        return Ok(Wanted::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "body",
            error.to_string(),
            sender.id,
        )
    })
}

fn of_operator(name: &str, association: Uuid, wanted: Wanted) -> Token {
    let now = clock::unix_now();
    let validity = Validity {
        not_before: now,
        not_after: now.plus(OPERATOR_VALIDITY.as_secs()),
    };
    let jet_ap = wanted.jet_ap.map(ApplicationProtocol::from);
    let jet_ct = match wanted.jet_ct {
        Some(Test::Close) => ConnectionTest::Close,
        Some(Test::Keep) | None => ConnectionTest::Keep,
    };
    Token::of_operator(
        name,
        clock::new_uuid(),
        association,
        jet_ap,
        jet_ct,
        validity,
    )
}

pub(super) fn declined(sender: &Sender, refused: RendezvousError) -> Problem {
    not_admitted(sender.id, &refused.into())
}

fn shown(listed: Listed) -> AssociationRow {
    let Listed { view, session, .. } = listed;
    let (bytes_to_acceptor, bytes_to_connector) = session.as_ref().map_or((0, 0), |session| {
        let traffic = &session.traffic;
        (
            traffic.to_target.load(Ordering::Relaxed),
            traffic.to_client.load(Ordering::Relaxed),
        )
    });
    AssociationRow {
        id: view.id,
        created_at: view.created_at,
        jet_ap: view.terms.application_protocol.map(|ap| ap.to_string()),
        token_required: view.terms.access != Access::Anyone,
        candidates: view
            .candidates
            .iter()
            .map(|candidate| ShownCandidate {
                id: candidate.id,
                transport: candidate.transport,
                state: candidate.state,
            })
            .collect(),
        session: session.map(|session| session.id),
        bytes_to_acceptor,
        bytes_to_connector,
    }
}
