//! Step 4 of a client whose token leads behind an agent (`jet_agent_id`, `jet_agent_dst`).
//!
//! The gateway is the client's side of the rendezvous here ([JET-PROTO] 2.3.3): it creates the association, gathers, offers it to the
//! agent, and connects to the first candidate on which the agent has accepted. A target that the agent cannot reach is followed by the
//! next one that the token names (`jet_agent_alt`). An agent whose signaling channel has TLS is met over
//! TLS only.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use tokio::time::sleep_until;
use uuid::Uuid;

use crate::connection::Client;
use crate::connection::departed;
use crate::meeting::PairedPeers;
use crate::meeting::party::Creator;
use crate::refusal::Refusal;
use crate::session::authorize::Authorized;
use crate::session::meet_acceptor::{leads_to, reach_acceptor};
use crate::session::reached::Reached;
use crate::state::{Peers, Sessions};
use jetway_base::limits;
use jetway_io::clock;
use jetway_jet::agent::{Decline, Dial, Unmet};
use jetway_jet::candidate::Transport;
use jetway_jet::message::{Offer, Version};
use jetway_jet::rendezvous::{Access, Proof, RendezvousError};
use jetway_policy::shares::Owner;
use jetway_store::revoked::Revoked;
use jetway_token::Token;
use jetway_token::agent_name::AgentName;
use jetway_token::target::TargetAddr;

/// Meets the agent, for the first of the targets that it reaches.
///
/// # Errors
/// It is not there, declines, or does not come in time.
pub async fn meet(
    peers: &Peers,
    sessions: &Sessions,
    revoked: &Revoked,
    authorized: &Authorized,
) -> Result<Reached, Refusal> {
    let Authorized {
        permit, session, ..
    } = authorized;
    let wanted = session.token.claims.agent.as_ref();
    let name = &wanted.ok_or(RendezvousError::OtherToken)?.agent;
    let mut last = Refusal::from(RendezvousError::OtherToken);
    for target in permit.behind() {
        match meet_at(peers, authorized, (name, target)).await {
            Ok((association, met)) => {
                let PairedPeers {
                    place, acceptor, ..
                } = met;
                sleep_until(acceptor.readable_at(false).into()).await;
                let met = (association, (place, *acceptor));
                return reach_acceptor(
                    &peers.meetings,
                    sessions,
                    revoked,
                    met,
                    &authorized.session,
                );
            }
            Err(
                refusal @ Refusal::Agent(
                    Unmet::Target(_) | Unmet::Declined(_, Decline::Target | Decline::Unreachable),
                ),
            ) => last = refusal,
            Err(refusal) => return Err(refusal),
        }
    }
    Err(last)
}

async fn meet_at(
    peers: &Peers,
    authorized: &Authorized,
    (name, target): (&AgentName, &TargetAddr),
) -> Result<(Uuid, PairedPeers), Refusal> {
    let Authorized {
        client,
        opening,
        session,
        ..
    } = authorized;
    // Asked first, so that nothing is created for an agent that is not there.
    peers.agents.ways(name, target)?;
    let association = create(peers, client, &session.token)?;
    let met = tokio::select! {
        met = offer(peers, client, &session.token, association, (name, target)) => met,
        () = session.cancelled().cancelled() => Err(session.cancellation()),
        left = departed(&client.stream, opening.is_rdp()) => Err(left),
    };
    let met = met.and_then(|met| {
        // The bearer of the token may accept, too, and is not the agent.
        leads_to(&session.token.claims, &met.acceptor.shown)?;
        // The client has spoken, and its bytes are on their way: that selects the candidate.
        peers.meetings.select(association, met.candidate)?;
        Ok(met)
    });
    match met {
        Ok(met) => {
            peers.agents.complete(association, met.candidate);
            Ok((association, met))
        }
        Err(refusal) => {
            // Gone already is as good.
            let _ = peers.meetings.delete(association, Proof::Operator);
            peers.agents.forget_offer(association);
            Err(refusal)
        }
    }
}

/// The association that the token names, or a new one.
fn create(peers: &Peers, client: &Client, token: &Token) -> Result<Uuid, Refusal> {
    let id = token.claims.jet_aid.unwrap_or_else(Uuid::new_v4);
    let create = || {
        let access = Access::Token(token.id.clone());
        let by = Creator::Bearer(client.peer.ip());
        peers.meetings.create(id, token, access, by)
    };
    match create() {
        // The same token opens its session again: the figures of the last one go.
        Err(RendezvousError::Ended) => {
            peers.meetings.delete(id, Proof::Operator)?;
            // It may lead to another target this time, and has other candidates.
            peers.agents.forget_offer(id);
            create()?;
        }
        created => {
            created?;
        }
    }
    Ok(id)
}

/// Offers the association, and waits until the agent has accepted on a candidate.
async fn offer(
    peers: &Peers,
    client: &Client,
    token: &Token,
    association: Uuid,
    (name, target): (&AgentName, &TargetAddr),
) -> Result<PairedPeers, Refusal> {
    let mut ways = peers.agents.ways(name, target)?;
    ways.urls.retain(|url| url.transport.is_tls() == ways.tls);
    let transports: Vec<Transport> = ways.urls.iter().map(|url| url.transport).collect();
    let gathered = peers
        .meetings
        .gather(association, &transports, Proof::Operator)?;
    let candidates = gathered
        .iter()
        .filter_map(|candidate| candidate.by_transport_of(&ways.urls));
    let candidates = candidates.collect();
    let message = Offer::new(association, Version::V3, Some(transports));
    let owner = Owner::new(Some(token.id.clone()), Some(client.peer.ip()));
    // A client of the gateway has proved itself by now, if it has to.
    let target = (target.clone(), Dial::BeforeAnswer);
    let mut pending = peers
        .agents
        .offer(name, message, target, candidates, owner)?;
    let now = clock::now();
    let patience = now.checked_add(limits::AGENT_ANSWER_TIMEOUT).unwrap_or(now);
    let deadline = patience.min(client.establish_by).into();
    let connect = peers
        .meetings
        .connect_by(association, Proof::Operator, deadline);
    tokio::pin!(connect);
    let mut answered = false;
    loop {
        tokio::select! {
            met = &mut connect => {
                return met.map_err(|refused| {
                    if refused == RendezvousError::NotAccepted {
                        Unmet::Silent(name.clone()).into()
                    } else {
                        refused.into()
                    }
                });
            }
            answer = pending.answer(), if !answered => {
                // Where it has accepted is seen by its accepting.
                answer?;
                answered = true;
            }
        }
    }
}
