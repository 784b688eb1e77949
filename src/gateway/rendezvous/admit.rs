//! Whether the request of a peer is granted: what it shows, then what it wants.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{debug, info};

use crate::meeting::party::Shown;
use crate::meeting::{MeetingPlace, PairedPeers, Waiting};
use crate::refusal::{Denied, Refusal};
use crate::state::{Gateway, Peers, SessionRules, Tokens};
use crate::trail::{self, Trail};
use jetway_audit::record::{Event, Record};
use jetway_base::session_id::SessionId;
use jetway_jet::agent::{ACCEPT_TYPE, Acceptance};
use jetway_jet::exchange::{JetPath, Operation, Status};
use jetway_jet::rendezvous::{Proof, RendezvousError};
use jetway_token::claims::ConnectionMode;
use jetway_token::statement::{self, StatementKey};
use jetway_token::{About, Token};

/// A peer whose request was granted.
#[derive(Debug)]
pub enum Admitted {
    /// The candidate exists: that is all it wanted to know.
    Tested,
    /// It waits.
    Accepted(Waiting),
    /// It has met the acceptor.
    Connected(PairedPeers),
}

/// Why a request was not granted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// The token does not hold, or is for something else.
    #[error("{0}")]
    Token(#[from] Denied),
    /// The candidate cannot be had.
    #[error("{0}")]
    Rendezvous(#[from] RendezvousError),
    /// A page of a site whose pages are not to be peers.
    #[error("pages of {0} are not allowed here")]
    Origin(String),
}

impl NotAdmitted {
    /// What the peer is told.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            // A credential for something else is none for this.
            Self::Token(denied) if matches!(denied.refusal, Refusal::Rendezvous(_)) => {
                Status::Unauthorized
            }
            Self::Token(denied) => denied.refusal.status(),
            Self::Rendezvous(error) => Refusal::Rendezvous(*error).status(),
            Self::Origin(_) => Status::Forbidden,
        }
    }

    /// Stable name for the log.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Token(denied) => denied.refusal.rule(),
            Self::Rendezvous(_) => "rendezvous",
            Self::Origin(_) => "origin",
        }
    }

    /// What the token of the request says of itself, where that is known.
    #[must_use]
    pub fn about(&self) -> Option<&About> {
        match self {
            Self::Token(denied) => denied.about.as_deref(),
            Self::Rendezvous(_) | Self::Origin(_) => None,
        }
    }
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self::Token(refusal.into())
    }
}

/// Judges a request: what it shows, then what it wants. The refusal has its line in the log.
///
/// # Errors
/// See [`NotAdmitted`].
pub async fn judge(
    gateway: &Gateway,
    (id, peer): (SessionId, SocketAddr),
    path: JetPath,
    text: Option<&str>,
) -> Result<(Shown, Admitted), NotAdmitted> {
    let (tokens, rules) = (&gateway.tokens, &gateway.sessions.rules);
    let shown = match verify_peer_credential(tokens, rules, &gateway.peers, (peer, path), text) {
        Ok(shown) => shown,
        Err(denied) => {
            let why = denied.into();
            log_not_admitted(&gateway.audit, id, peer, path, &Shown::Nothing, &why);
            return Err(why);
        }
    };
    match admit(&gateway.peers.meetings, path, shown.proof(), peer).await {
        Ok(admitted) => Ok((shown, admitted)),
        Err(why) => {
            log_not_admitted(&gateway.audit, id, peer, path, &shown, &why);
            Err(why)
        }
    }
}

/// Verifies a token that is to be for a rendezvous.
///
/// # Errors
/// It does not hold, was revoked, is for a forward session, or demands what no session could have.
pub fn verify(
    tokens: &Tokens,
    rules: &SessionRules,
    peer: SocketAddr,
    text: &str,
) -> Result<Token, Denied> {
    let token = tokens.verify_in_force(text, peer.ip())?;
    match token.claims.jet_cm {
        ConnectionMode::Rdv => {}
        ConnectionMode::Fwd => return Err(Denied::of(&token, RendezvousError::OtherToken)),
    }
    // Said to whoever brings it, before somebody waits for a session that cannot be.
    let permitted = rules.permit_by_any(&token.claims);
    permitted.map_err(|denial| Denied::of(&token, denial))?;
    Ok(token)
}

/// Verifies what a peer shows with its request for `path`: a rendezvous token, or the statement of an agent.
///
/// # Errors
/// It does not hold, or not for this.
pub fn verify_peer_credential(
    tokens: &Tokens,
    rules: &SessionRules,
    peers: &Peers,
    (peer, path): (SocketAddr, JetPath),
    text: Option<&str>,
) -> Result<Shown, Denied> {
    let Some(text) = text else {
        return Ok(Shown::Nothing);
    };
    if statement::claimed::<Acceptance>(text, ACCEPT_TYPE).is_none() {
        let token = verify(tokens, rules, peer, text)?;
        return Ok(Shown::Token(Box::new(token)));
    }
    tokens.book(peer.ip(), StatementKey::cost_us())?;
    let name = match path.operation {
        Operation::Accept | Operation::Test => peers.agents.accepts(text, &peers.instance, path),
        // An agent is met; whom it meets is not its choice.
        Operation::Connect => None,
    };
    let (name, target) = name.ok_or(Refusal::from(RendezvousError::OtherToken))?;
    Ok(Shown::Agent {
        name,
        association: path.association,
        target,
    })
}

/// Grants a request, or says why not. Whoever is admitted as a connector has the acceptor's connection in hand.
///
/// # Errors
/// See [`NotAdmitted`].
pub async fn admit(
    meetings: &Arc<MeetingPlace>,
    path: JetPath,
    proof: Proof<'_>,
    peer: SocketAddr,
) -> Result<Admitted, NotAdmitted> {
    let JetPath {
        operation,
        association,
        candidate,
    } = path;
    Ok(match operation {
        Operation::Test => {
            meetings.test(association, candidate, proof)?;
            Admitted::Tested
        }
        Operation::Accept => {
            let accepted = meetings.accept_next(association, candidate, proof, peer.ip());
            Admitted::Accepted(accepted.await?)
        }
        Operation::Connect => {
            let met = meetings.connect(association, Some(candidate), proof).await;
            Admitted::Connected(met?)
        }
    })
}

/// The one line of a request that was not granted.
pub fn log_not_admitted(
    audit: &Trail,
    id: SessionId,
    peer: SocketAddr,
    path: JetPath,
    shown: &Shown,
    why: &NotAdmitted,
) {
    if is_needless(path, shown, why) {
        debug!(session = %id, %peer, jet_aid = %path.association, candidate = %path.candidate, reason = %why, "Candidate not needed");
        return;
    }
    let of_token = shown.token().map(About::of);
    let about = why.about().or(of_token.as_ref());
    let agent = match shown {
        Shown::Agent { name, .. } => Some(name.as_str()),
        Shown::Nothing | Shown::Token(_) => None,
    };
    info!(
        session = %id,
        %peer,
        operation = %path.operation,
        jet_aid = %path.association,
        candidate = %path.candidate,
        agent,
        user = about.and_then(|about| about.user.as_deref()),
        target = about.and_then(|about| about.target.as_deref()),
        token = about.map(|about| about.id.as_str()),
        decision = "deny",
        rule = why.rule(),
        reason = %why,
        "Rendezvous refused"
    );
    let record = Record {
        agent: agent.map(str::to_owned),
        jet_aid: Some(path.association.to_string()),
        detail: serde_json::json!({ "operation": path.operation.to_string() }),
        ..trail::of_refusal(Event::SessionRefused, (id, peer), about, (why.rule(), why))
    };
    audit.record_of_anybody(peer.ip(), &record);
}

/// Whether an acceptor comes with one more of its candidates, when the peers have met on another: who accepts on all of them, as agents
/// do, finds that on all but one.
fn is_needless(path: JetPath, shown: &Shown, why: &NotAdmitted) -> bool {
    let met = matches!(why, NotAdmitted::Rendezvous(RendezvousError::Selected));
    let over = matches!(why, NotAdmitted::Rendezvous(RendezvousError::Ended));
    let agent = matches!(shown, Shown::Agent { .. });
    path.operation == Operation::Accept && (met || (over && agent))
}
