//! Agents: enrolling, listing, revoking them, their signaling channel, and offers to them.
//!
//! | request | who | what |
//! |---|---|---|
//! | `POST /jet/enrolments` | API key | a text by which one agent can enrol, once |
//! | `POST /jet/agents` | that text as bearer | stores the agent's public key |
//! | `GET /jet/agents` | API key | lists |
//! | `DELETE /jet/agents/NAME` | API key | revokes: ends its channel and its sessions |
//! | `GET /jet/agent` | the agent's key | the channel, a WebSocket ([`signaling`]) |
//! | `POST /jet/offer/NAME` | a token that names the agent | takes an Offer to it, and its Answer back |

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

use crate::api::associations::declined;
use crate::api::caller::Caller;
use crate::api::candidate_urls::CandidateUrls;
use crate::api::jet::Upgrade;
use crate::api::operator::{Operator, bearer};
use crate::api::problem::{Parameter, Problem};
use crate::api::state::{ApiState, Sender};
use crate::meeting::MeetingPlace;
use crate::refusal::Refusal;
use crate::rendezvous::signaling;
use crate::state::{Gateway, Peers, SessionRules, Sessions, Tokens};
use crate::trail::{self, Trail};
use jetway_audit::record::{Event, Record};
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_jet::agent::{Decline, Dial, Enrolment, NotAnEnrolment, Unmet};
use jetway_jet::candidate::{CandidateType, Transport};
use jetway_jet::exchange::SUB_PROTOCOL;
use jetway_jet::message::{Answer, Candidate, Offer};
use jetway_jet::rendezvous::{Proof, RendezvousError};
use jetway_policy::shares::Owner;
use jetway_store::agents::{EnrolError, Listed, Ways};
use jetway_store::redirections::Returning;
use jetway_token::Token;
use jetway_token::agent_name::{AgentName, NotAName};
use jetway_token::claims::AgentTarget;
use jetway_token::statement::StatementKey;
use jetway_token::target::TargetAddr;

/// Life of an enrolment of which nothing else was said, seconds.
const ENROLMENT_S: u64 = 15 * 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: AgentName,
    targets: Option<Vec<TargetAddr>>,
    lifetime_s: Option<u64>,
}

/// An enrolment, as its maker gets it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Invited {
    /// The text.
    pub enrolment: String,
    /// Must be used by then, Unix seconds.
    pub expires_at: UnixTime,
    /// The same as a duration, seconds.
    pub expires_in_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enrolling {
    key: Map<String, Value>,
}

/// What an agent that has enrolled is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its name from now on.
    pub name: AgentName,
    /// Thumbprint of the key that was stored.
    pub key: String,
    /// The gateway that it has enrolled at.
    pub gateway: String,
}

/// The agent that the path of a request names.
#[derive(Debug)]
pub struct Named(AgentName);

impl FromRequestParts<ApiState> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        let Parameter(name): Parameter<String> =
            Parameter::from_request_parts(parts, state).await?;
        let name = name.parse().map_err(|error: NotAName| {
            let (status, id) = (StatusCode::BAD_REQUEST, state.sender.id);
            Problem::new(status, "name", error.to_string(), id)
        })?;
        Ok(Self(name))
    }
}

/// Handles `POST /jet/enrolments`.
///
/// # Errors
/// A problem document: a name that is taken, too many.
pub async fn invite(
    Operator(by): Operator,
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(audit): State<Arc<Trail>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let wanted: Wanted = parse(&sender, &body)?;
    let targets = wanted.targets.as_ref().map_or(0, Vec::len);
    if targets > limits::AGENT_TARGETS {
        let detail = format!("an agent has at most {} targets", limits::AGENT_TARGETS);
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "body",
            detail,
            sender.id,
        ));
    }
    let lifetime_s = wanted.lifetime_s.unwrap_or(ENROLMENT_S);
    let lifetime_s = lifetime_s.clamp(1, limits::ENROLMENT_S);
    let now = clock::unix_now();
    let expires_at = now.plus(lifetime_s);
    let agents = &peers.agents;
    let enrolment = agents.invite(
        by.as_str(),
        wanted.name.clone(),
        wanted.targets,
        expires_at,
        now,
    );
    let enrolment = enrolment.map_err(|error| not_enrolled(&sender, &error))?;
    info!(session = %sender.id, peer = %sender.peer, by = by.as_str(), agent = %wanted.name, "Enrolment issued");
    audit.record(&Record {
        by: Some(by.to_string()),
        agent: Some(wanted.name.to_string()),
        detail: serde_json::json!({ "expires_at": expires_at.to_string() }),
        ..trail::of_peer(Event::EnrolmentIssued, sender.id, sender.peer)
    });
    let invited = Invited {
        enrolment: enrolment.as_str().to_owned(),
        expires_at,
        expires_in_s: lifetime_s,
    };
    let headers = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(invited)).into_response())
}

/// Handles `POST /jet/agents`.
///
/// # Errors
/// A problem document: 401 for an enrolment that is none, or not any more; 400 for a key that cannot be used.
pub async fn enrol(
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(tokens): State<Arc<Tokens>>,
    State(audit): State<Arc<Trail>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let enrolment = bearer(&headers).ok_or(NotAnEnrolment);
    let enrolment = enrolment.and_then(Enrolment::parse);
    let enrolment = enrolment.map_err(|error| not_enrolled(&sender, &error.into()))?;
    // A key that is no good does not use the enrolment up.
    let Enrolling { key } = parse(&sender, &body)?;
    let booked = tokens.book(sender.peer.ip(), StatementKey::cost_us());
    booked.map_err(|refusal| Problem::of(&refusal, sender.id))?;
    let key = StatementKey::parse(Value::Object(key).to_string().as_bytes());
    let key = key.map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "key", error.to_string(), sender.id)
    })?;
    let thumbprint = key.thumbprint().to_owned();
    let agents = &peers.agents;
    let name = agents.enrol(&enrolment, key, clock::unix_now()).await;
    let name = name.map_err(|error| not_enrolled(&sender, &error))?;
    info!(session = %sender.id, peer = %sender.peer, agent = %name, key = thumbprint, "Agent enrolled");
    audit.record(&Record {
        agent: Some(name.to_string()),
        detail: serde_json::json!({ "key": thumbprint }),
        ..trail::of_peer(Event::AgentEnrolled, sender.id, sender.peer)
    });
    let enrolled = Enrolled {
        name,
        key: thumbprint,
        gateway: peers.instance.clone(),
    };
    Ok((StatusCode::CREATED, Json(enrolled)).into_response())
}

/// Handles `GET /jet/agents`.
pub async fn list(_: Operator, State(peers): State<Arc<Peers>>) -> Json<Vec<Listed>> {
    peers.agents.forget_offers(|id| peers.meetings.is_live(id));
    Json(peers.agents.list())
}

/// Handles `DELETE /jet/agents/NAME`.
///
/// # Errors
/// A problem document: 404 where there is none.
pub async fn revoke(
    Operator(by): Operator,
    Named(name): Named,
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(audit): State<Arc<Trail>>,
) -> Result<StatusCode, Problem> {
    let revoked = peers.agents.dismiss(&name);
    let associations = revoked.ok_or_else(|| unmet(&sender, &Unmet::Unknown(name.clone())))?;
    // Before anything can fail, or the one who asks can leave.
    for association in associations {
        // Gone already is as good.
        let _ = peers.meetings.delete(association, Proof::Operator);
    }
    let written = peers.agents.forget(&name).await;
    written.map_err(|error| not_enrolled(&sender, &error.into()))?;
    info!(session = %sender.id, peer = %sender.peer, by = by.as_str(), agent = %name, "Agent revoked");
    audit.record(&Record {
        by: Some(by.to_string()),
        agent: Some(name.to_string()),
        ..trail::of_peer(Event::AgentRevoked, sender.id, sender.peer)
    });
    Ok(StatusCode::OK)
}

/// Handles `GET /jet/agent`: who it is comes in the first messages.
///
/// # Errors
/// The request asks for no WebSocket.
pub async fn signal(
    State(gateway): State<Arc<Gateway>>,
    State(sender): State<Sender>,
    CandidateUrls(urls): CandidateUrls,
    mut request: Request,
) -> Result<Response, Problem> {
    let ways = Ways {
        urls,
        tls: sender.tls,
    };
    let upgrade = Upgrade::of(&sender, &mut request, &[SUB_PROTOCOL])?;
    let (id, peer) = (sender.id, sender.peer);
    let connections = gateway.connections.clone();
    Ok(
        upgrade.go_on(&connections, move |stream, connection| async move {
            signaling::serve(&gateway, stream, connection, (id, peer), ways).await;
        }),
    )
}

/// Handles `POST /jet/offer/NAME`, of an association that exists and was gathered.
///
/// # Errors
/// A problem document: 403 where the token does not name this agent, 404 for an association that is not there, 503 where the agent
/// is not there or declines.
pub async fn offer(
    Named(name): Named,
    caller: Caller,
    CandidateUrls(callers): CandidateUrls,
    State(sender): State<Sender>,
    State(peers): State<Arc<Peers>>,
    State(sessions): State<Arc<Sessions>>,
    body: Bytes,
) -> Result<Json<Answer>, Problem> {
    let (wanted, token) = match &caller {
        Caller::Token(token) => (token.claims.agent.clone(), Some(token.id.clone())),
        Caller::Operator(_) | Caller::Nobody(_) => (None, None),
    };
    let owner = Owner::new(token, Some(sender.peer.ip()));
    let wanted = wanted.filter(|wanted| wanted.agent == name);
    let wanted = wanted.ok_or_else(|| declined(&sender, RendezvousError::OtherToken))?;
    let offer: Offer = parse(&sender, &body)?;
    let association = offer.id;
    let target = wanted_target(&sender, &sessions.returning, &caller, &wanted)?;
    let ways = peers.agents.ways(&name, &target);
    let ways = ways.map_err(|why| unmet(&sender, &why))?;
    // What was gathered already, by the URLs that the agent knows.
    let none: &[Transport] = &[];
    let gathered = peers.meetings.gather(association, none, caller.proof());
    let gathered = gathered.map_err(|refused| declined(&sender, refused))?;
    let candidates = gathered
        .iter()
        .filter_map(|candidate| candidate.by_transport_of(&ways.urls));
    let candidates = candidates.collect();
    let dial = dial(&peers.meetings, &caller, association);
    let pending = peers
        .agents
        .offer(&name, offer, (target, dial), candidates, owner);
    let mut pending = pending.map_err(|why| unmet(&sender, &why))?;
    let answer = timeout(limits::AGENT_ANSWER_TIMEOUT, pending.answer()).await;
    let answer = answer.unwrap_or(Err(Unmet::Silent(name.clone())));
    let mut answer = answer.map_err(|why| {
        peers.agents.withdraw(association);
        unmet(&sender, &why)
    })?;
    if must_relay(&sender, &sessions.rules, &caller)? {
        // What the gateway is to stand inside of does not go past it.
        let ctype = |candidate: &Candidate| candidate.url.ctype;
        answer
            .candidates
            .retain(|candidate| ctype(candidate) != Some(CandidateType::Host));
    }
    let mut foreign = 0_usize;
    answer.candidates.retain_mut(|candidate| {
        let own = candidate.url.ctype == Some(CandidateType::Host)
            && candidate.url.transport == Transport::Tcp
            && gathered.iter().all(|relay| relay.id != candidate.id)
            || gathered.iter().any(|relay| {
                is_relay(
                    candidate,
                    relay.by_transport_of(&ways.urls),
                    &peers.instance,
                    relay.by_transport_of(&callers),
                )
            });
        foreign = foreign.saturating_add(usize::from(!own));
        own
    });
    if foreign > 0 {
        warn!(session = %sender.id, peer = %sender.peer, agent = %name, jet_aid = %association, foreign,
            "Dropped candidates that are not this gateway's from the answer of an agent");
        if answer.candidates.is_empty() {
            peers.agents.withdraw(association);
            let why = Unmet::Declined(name, Decline::Candidates);
            return Err(unmet(&sender, &why));
        }
    }
    Ok(Json(answer))
}

/// A client that has to prove itself does so when it has its candidate, and no target hears of it before.
fn dial(meetings: &MeetingPlace, caller: &Caller, association: Uuid) -> Dial {
    let proves = |token: &Token| token.claims.proxy_credentials.is_some();
    let created = meetings.token_of(association);
    let shown = match caller {
        Caller::Token(token) => Some(token.as_ref()),
        Caller::Operator(_) | Caller::Nobody(_) => None,
    };
    if shown.into_iter().chain(created.as_ref()).any(proves) {
        Dial::AtFirstBytes
    } else {
        Dial::BeforeAnswer
    }
}

/// Whether an answer's candidate is a relay of this gateway, `known` to the agent by this URL or by the name in `Jet-Instance`. The
/// address by which the agent knows this gateway need not lead here from where the caller is, so the caller gets `theirs`; the name
/// that the agent has put in its place stays.
fn is_relay(
    candidate: &mut Candidate,
    known: Option<Candidate>,
    instance: &str,
    theirs: Option<Candidate>,
) -> bool {
    let Some(known) = known else { return false };
    if *candidate == known {
        if let Some(theirs) = theirs {
            *candidate = theirs;
        }
        return true;
    }
    let mut real = known;
    real.real(instance);
    *candidate == real
}

/// Whether the session of this caller has to pass through the gateway.
fn must_relay(sender: &Sender, rules: &SessionRules, caller: &Caller) -> Result<bool, Problem> {
    let Caller::Token(token) = caller else {
        return Ok(false);
    };
    let permit = rules.permit_by_any(&token.claims);
    let permit = permit.map_err(|denial| Problem::of(&denial.into(), sender.id))?;
    Ok(permit.inspection().is_some() || rules.inspects_all())
}

/// Where the token leads: to its first target, or to the one that another has sent its client to.
fn wanted_target(
    sender: &Sender,
    returning: &Returning,
    caller: &Caller,
    wanted: &AgentTarget,
) -> Result<TargetAddr, Problem> {
    let redirected = match caller {
        Caller::Token(token) => returning.of(&token.id),
        Caller::Operator(_) | Caller::Nobody(_) => None,
    };
    let mut targets = wanted.targets.iter();
    let redirected =
        redirected.and_then(|redirected| targets.find(|target| **target == redirected.target));
    let target = redirected.or(wanted.target()).cloned();
    target.ok_or_else(|| declined(sender, RendezvousError::OtherToken))
}

fn parse<'a, T: Deserialize<'a>>(sender: &Sender, body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "body",
            error.to_string(),
            sender.id,
        )
    })
}

fn not_enrolled(sender: &Sender, error: &EnrolError) -> Problem {
    let status = match error {
        EnrolError::Taken => StatusCode::CONFLICT,
        EnrolError::Malformed(_) | EnrolError::Unknown => StatusCode::UNAUTHORIZED,
        EnrolError::Full | EnrolError::Share(_) | EnrolError::Random(_) | EnrolError::Store(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let reason = error.to_string();
    warn!(session = %sender.id, peer = %sender.peer, rule = "enrolment", reason, "Request refused");
    Problem::new(status, "enrolment", reason, sender.id)
}

fn unmet(sender: &Sender, why: &Unmet) -> Problem {
    Problem::of(&Refusal::Agent(why.clone()), sender.id)
}
