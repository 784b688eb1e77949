//! Step 4 of a client with a rendezvous token: its target is whoever has accepted in the association, or will in time.

use std::sync::Arc;

use tokio::time::sleep_until;
use tracing::debug;
use uuid::Uuid;

use crate::connection::Client;
use crate::connection::departed;
use crate::live::registry::{EndCause, Registered, Session};
use crate::meeting::party::{Shown, proof_of};
use crate::meeting::{MeetingPlace, PairedPeers, Party, Place};
use crate::refusal::Refusal;
use crate::session::authenticate::{self, Authenticated};
use crate::session::authorize::{self, Authorized};
use crate::session::reached::{self, Reached, Together};
use crate::session::refuse::Refused;
use crate::state::Sessions;
use jetway_jet::agent::Unmet;
use jetway_jet::rendezvous::RendezvousError;
use jetway_policy as policy;
use jetway_store::revoked::Revoked;
use jetway_store::usage::{Companion, UsageError};
use jetway_token::Token;
use jetway_token::claims::{Claims, ConnectionMode};
use jetway_token::target::TargetAddr;
use jetway_token::target_name::TargetName;

/// Between steps 2 and 3 of an RDP client with a rendezvous token: what the association was created with holds for it, too.
///
/// # Errors
/// The two contradict each other.
pub fn agree(
    meetings: &MeetingPlace,
    mut authenticated: Authenticated,
) -> Result<Authenticated, Box<Refused>> {
    let Authenticated {
        client,
        opening,
        token,
        ..
    } = &mut authenticated;
    let by_agent = token.claims.agent.is_some();
    let association = match token.claims.jet_cm {
        ConnectionMode::Rdv if !by_agent => meetings.association_of(token),
        ConnectionMode::Rdv | ConnectionMode::Fwd => None,
    };
    let created = association.and_then(|association| meetings.token_of(association));
    let agreed = tighten(token, created.iter())
        .and_then(|()| authenticate::check_protocol(&token.claims, opening, client));
    match agreed {
        Ok(()) => Ok(authenticated),
        Err(refusal) => {
            let Authenticated {
                client,
                opening,
                token,
                ..
            } = authenticated;
            Err(client.refused(refusal, opening).with_token(&token))
        }
    }
}

/// Step 4 of an RDP client with a rendezvous token: meets whoever has accepted, or will in time.
///
/// # Errors
/// Nobody does, or the acceptor's token demands what cannot be delivered.
pub async fn meet(
    meetings: &Arc<MeetingPlace>,
    sessions: &Sessions,
    revoked: &Revoked,
    authorized: &mut Authorized,
) -> Result<Reached, Refusal> {
    let Authorized {
        client,
        opening,
        permit,
        protocol,
        session,
        ..
    } = authorized;
    let token = &session.token;
    let association = meetings.association_of(token);
    let association = association.ok_or(RendezvousError::UnknownAssociation)?;
    let proof = proof_of(Some(token));
    let deadline = client.establish_by.into();
    let met = meetings.connect_by(association, proof, deadline);
    let met = tokio::select! {
        met = met => met?,
        () = session.cancelled().cancelled() => return Err(session.cancellation()),
        left = departed(&client.stream, opening.is_rdp()) => return Err(left),
    };
    let PairedPeers {
        place,
        candidate,
        acceptor,
    } = met;
    if let Some(other) = acceptor.shown.token()
        && other.id != token.id
    {
        let mut claims = token.claims.clone();
        policy::tighten(&mut claims, &other.claims)?;
        authenticate::check_protocol(&claims, opening, client)?;
        *permit = authorize::permit(&sessions.rules, &client.listener, &claims)?;
        let inspecting = sessions.rules.means_by(&client.listener).inspecting;
        authorize::check_opening(permit, &claims, opening, inspecting)?;
        *protocol = claims.jet_ap;
    }
    // The client has spoken, and its bytes are on their way: that selects the candidate.
    meetings.select(association, candidate)?;
    let acceptor = *acceptor;
    sleep_until(acceptor.readable_at(false).into()).await;
    let peers = (place, acceptor);
    reach_acceptor(meetings, sessions, revoked, (association, peers), session)
}

/// Makes a session of two peers.
///
/// # Errors
/// The time of a token that takes part is over.
pub fn reach_acceptor(
    meetings: &MeetingPlace,
    sessions: &Sessions,
    revoked: &Revoked,
    (association, (connector, acceptor)): (Uuid, (Place, Party)),
    session: &Registered,
) -> Result<Reached, Refusal> {
    let Party {
        client,
        place,
        shown,
        ..
    } = acceptor;
    let Client {
        id,
        peer,
        stream,
        admission,
        ..
    } = client;
    debug!(session = %session.id, acceptor = %id, peer = %peer, jet_aid = %association, "Peers connected");
    let created = meetings.token_of(association);
    let proven = shown.proves(association, created.as_ref());
    let acceptors = shown.token().cloned();
    let mut others: Vec<Token> = created.into_iter().chain(acceptors).collect();
    others.retain(|other| other.id != session.token.id);
    others.dedup_by(|one, other| one.id == other.id);
    let companions = others
        .iter()
        .map(|other| accompany(sessions, association, other));
    let companions = companions.collect::<Result<_, _>>()?;
    let name = match shown {
        Shown::Agent { name, target, .. } => TargetName::Behind {
            agent: name,
            target,
        },
        Shown::Token(_) | Shown::Nothing => TargetName::Acceptor(TargetAddr {
            host: peer.ip().to_string(),
            port: peer.port(),
        }),
    };
    session.relaying(name.address().clone(), peer, None);
    let shared: &Arc<Session> = session.shared();
    for token in others {
        session.join(token);
    }
    // Asked after joining: a rule that arrives between the two finds the session.
    if let Some((_, rule)) = session.revoked_by(&revoked.rules()) {
        session.end(EndCause::Revoked(rule));
    }
    let window = sessions.rules.reconnect_window(&session.token.claims);
    meetings.in_session(association, &connector, shared, window);
    let together = Together::new(connector, place, admission, companions);
    Ok(Reached {
        stream,
        name,
        met: Some(reached::RendezvousFacts { together, proven }),
    })
}

/// Counts a session for a token that takes part in it. One that an acceptor shows although nobody asked for it may be for sessions of
/// any number of associations: only what it says itself bounds them together.
fn accompany(
    sessions: &Sessions,
    association: Uuid,
    token: &Token,
) -> Result<Companion, UsageError> {
    let rules = &sessions.rules;
    let is_for_it = token.claims.jet_aid == Some(association);
    let configured = rules.limits().time_limit.filter(|_| is_for_it);
    let limits = [token.claims.jet_ttl, configured];
    let keep_until = rules.last_valid(token);
    let limit = limits.into_iter().flatten().min();
    sessions
        .usages
        .accompany(token.id.clone(), keep_until, limit)
}

/// Adds the demands of `others`, tokens of the same rendezvous.
///
/// # Errors
/// Two of them contradict each other.
pub fn tighten<'a>(
    token: &mut Token,
    others: impl Iterator<Item = &'a Token>,
) -> Result<(), Refusal> {
    for other in others {
        if other.id != token.id {
            policy::tighten(&mut token.claims, &other.claims)?;
        }
    }
    Ok(())
}

/// Whether an acceptor is who a token with `claims` leads to.
///
/// # Errors
/// They name an agent and a target, and it is another.
pub fn leads_to(claims: &Claims, acceptor: &Shown) -> Result<(), Refusal> {
    let Some(wanted) = &claims.agent else {
        return Ok(());
    };
    match acceptor {
        Shown::Agent { name, target, .. }
            if *name == wanted.agent && wanted.targets.contains(target) =>
        {
            Ok(())
        }
        Shown::Nothing | Shown::Token(_) | Shown::Agent { .. } => {
            Err(Unmet::Other(wanted.agent.clone()).into())
        }
    }
}
