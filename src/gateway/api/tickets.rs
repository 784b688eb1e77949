//! `POST /jet/tickets`: a short reference for a token that does not fit where the client can carry it.
//!
//! Authenticated by the token itself (as bearer, or in the body) or by an API key (as bearer; the token in the body).
//! Whatever would refuse the token's session is said here, before a user has clicked anything.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::api::operator::bearer;
use crate::api::problem::Problem;
use crate::api::state::Sender;
use crate::refusal::{Denied, Refusal};
use crate::state::{SessionRules, Tokens};
use crate::trail::{self, Trail};
use crate::trust::api_keys::ApiKeys;
use jetway_audit::record::{Event, Record};
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_policy::shares::Owner;
use jetway_store::tickets::Terms;
use jetway_token::{self as token, Token};

/// Who asks, where no API key vouches for the request.
const BY_TOKEN: &str = "token";

/// What the client sends; may be left out where the bearer is the token.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// The token to stand for.
    token: Option<String>,
    /// Shorter life than configured, seconds.
    lifetime_s: Option<u64>,
}

/// What the client gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Created {
    /// The ticket's text.
    pub ticket: String,
    /// Must be used by then, Unix seconds.
    pub expires_at: UnixTime,
    /// The same as a duration, seconds.
    pub expires_in_s: u64,
}

/// Handles `POST /jet/tickets`.
///
/// # Errors
/// A problem document: no token, a token that does not hold or cannot be honoured, too many tickets.
pub async fn create(
    State(sender): State<Sender>,
    State(tokens): State<Arc<Tokens>>,
    State(keys): State<Arc<ApiKeys>>,
    State(rules): State<Arc<SessionRules>>,
    State(audit): State<Arc<Trail>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (id, peer) = (sender.id, sender.peer);
    let problem = |status, rule, detail: &str| Problem::new(status, rule, detail, id);
    let request: Request = if body.is_empty() {
        Request::default()
    } else {
        // serde_json's message could quote the body.
        serde_json::from_slice(&body).map_err(|_| {
            let detail = "expected JSON: {\"token\": \"...\", \"lifetime_s\": 60}";
            problem(StatusCode::BAD_REQUEST, "body", detail)
        })?
    };
    let in_body = request.token.map(Zeroizing::new);
    let bearer = bearer(&headers);
    let (text, key) = match (bearer, in_body) {
        (None, Some(token)) => (token, None),
        (None, None) => {
            let detail = "send a token, as bearer or in the body";
            return Err(problem(StatusCode::UNAUTHORIZED, "no-token", detail));
        }
        (Some(bearer), in_body) if token::is_compact(bearer) => {
            if in_body.is_some_and(|token| token.as_str() != bearer) {
                let detail = "bearer and body carry different tokens";
                return Err(problem(StatusCode::BAD_REQUEST, "contradiction", detail));
            }
            (Zeroizing::new(bearer.to_owned()), None)
        }
        (Some(bearer), in_body) => {
            let Some(name) = keys.find(bearer) else {
                warn!(session = %id, %peer, rule = "api-key", "Ticket refused");
                let record = Record {
                    rule: Some("api-key"),
                    ..trail::of_peer(Event::TicketRefused, id, peer)
                };
                audit.record_of_anybody(peer.ip(), &record);
                let detail = "the bearer is neither a token nor a known API key";
                return Err(problem(StatusCode::UNAUTHORIZED, "api-key", detail));
            };
            let Some(token) = in_body else {
                let detail = "with an API key, the body carries the token";
                return Err(problem(StatusCode::BAD_REQUEST, "body", detail));
            };
            (token, Some(name.as_str()))
        }
    };
    let by = key.unwrap_or(BY_TOKEN);
    let issued = issue(&tokens, &rules, peer.ip(), &text, request.lifetime_s, key).await;
    let (created, token) = issued.map_err(|denied| {
        let Denied { refusal, about } = denied;
        let (rule, about) = (refusal.rule(), about.as_deref());
        warn!(
            session = %id,
            %peer,
            by,
            user = about.and_then(|about| about.user.as_deref()),
            target = about.and_then(|about| about.target.as_deref()),
            token = about.map(|about| about.id.as_str()),
            rule,
            reason = %refusal,
            "Ticket refused"
        );
        let record = Record {
            by: Some(by.to_owned()),
            ..trail::of_refusal(Event::TicketRefused, (id, peer), about, (rule, &refusal))
        };
        audit.record_of_anybody(peer.ip(), &record);
        Problem::of(&refusal, id)
    })?;
    let record = Record {
        by: Some(by.to_owned()),
        ..trail::of_token(Event::TicketIssued, id, peer, &token)
    };
    match key {
        Some(_) => audit.record(&record),
        None => audit.record_of_proven(peer.ip(), &record),
    }
    info!(session = %id, %peer, by, "Ticket issued");
    Ok((
        StatusCode::CREATED,
        [(header::CACHE_CONTROL, "no-store")],
        Json(created),
    )
        .into_response())
}

async fn issue(
    tokens: &Tokens,
    rules: &SessionRules,
    peer: IpAddr,
    text: &str,
    lifetime_s: Option<u64>,
    key: Option<&str>,
) -> Result<(Created, Token), Denied> {
    let token = tokens.verify_in_force(text, peer)?;
    // Any listener may be the one that the ticket is shown to; that one decides again.
    let permitted = rules.permit_by_any(&token.claims);
    permitted.map_err(|denial| Denied::of(&token, denial))?;
    let now = clock::unix_now();
    let token_end = rules.last_valid(&token);
    let configured = tokens.ticket_lifetime_s;
    let lifetime_s = lifetime_s.unwrap_or(configured).clamp(1, configured);
    let expires_at = now.plus(lifetime_s).min(token_end);
    let owner = match key {
        // The tickets of all users of a portal come from its address.
        Some(name) => Owner::new(Some(token.id.clone()), None).by_key(name),
        None => Owner::new(Some(token.id.clone()), Some(peer)),
    };
    let window = rules.reconnect_window(&token.claims);
    let terms = Terms {
        not_after: expires_at,
        token_not_after: token_end,
        reconnect_window_s: window.as_secs(),
    };
    let ticket = tokens.tickets.issue(text, owner, terms, now).await;
    let ticket = ticket.map_err(|error| Denied::of(&token, Refusal::Store(error)))?;
    let created = Created {
        ticket: ticket.as_str().to_owned(),
        expires_at,
        expires_in_s: expires_at.since(now),
    };
    Ok((created, token))
}
