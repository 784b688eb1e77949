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
use crate::state::Gateway;
use jetway_base::limits;
use jetway_io::clock;
use jetway_jet::agent::{Decline, Dial, Unmet};
use jetway_jet::candidate::Transport;
use jetway_jet::message::{Offer, Version};
use jetway_jet::rendezvous::{Access, Proof, RendezvousError};
use jetway_policy::shares::Owner;
use jetway_token::Token;
use jetway_token::agent_name::AgentName;
use jetway_token::target::TargetAddr;

/// Meets the agent, for the first of the targets that it reaches.
///
/// # Errors
/// It is not there, declines, or does not come in time.
pub async fn meet(gateway: &Gateway, authorized: &Authorized) -> Result<Reached, Refusal> {
    let Authorized {
        permit, session, ..
    } = authorized;
    let wanted = session.token.claims.agent.as_ref();
    let name = &wanted.ok_or(RendezvousError::OtherToken)?.agent;
    let mut last = Refusal::from(RendezvousError::OtherToken);
    for target in permit.behind() {
        match meet_at(gateway, authorized, (name, target)).await {
            Err(
                refusal @ Refusal::Agent(
                    Unmet::Target(_) | Unmet::Declined(_, Decline::Target | Decline::Unreachable),
                ),
            ) => last = refusal,
            met => return met,
        }
    }
    Err(last)
}

async fn meet_at(
    gateway: &Gateway,
    authorized: &Authorized,
    (name, target): (&AgentName, &TargetAddr),
) -> Result<Reached, Refusal> {
    let Authorized {
        client,
        opening,
        session,
        ..
    } = authorized;
    // Asked first, so that nothing is created for an agent that is not there.
    gateway.agents.ways(name, target)?;
    let association = create(gateway, client, &session.token)?;
    let met = tokio::select! {
        met = offer(gateway, client, &session.token, association, (name, target)) => met,
        () = session.cancelled().cancelled() => Err(session.cancellation()),
        left = departed(&client.stream, opening.is_rdp()) => Err(left),
    };
    let met = met.and_then(|met| {
        // The bearer of the token may accept, too, and is not the agent.
        leads_to(&session.token.claims, &met.acceptor.shown)?;
        // The client has spoken, and its bytes are on their way: that selects the candidate.
        gateway.meetings.select(association, met.candidate)?;
        Ok(met)
    });
    let PairedPeers {
        place,
        candidate,
        acceptor,
    } = match met {
        Ok(met) => met,
        Err(refusal) => {
            // Gone already is as good.
            let _ = gateway.meetings.delete(association, Proof::Operator);
            gateway.agents.forget_offer(association);
            return Err(refusal);
        }
    };
    gateway.agents.complete(association, candidate);
    let acceptor = *acceptor;
    sleep_until(acceptor.readable_at(false).into()).await;
    reach_acceptor(gateway, association, place, acceptor, session)
}

/// The association that the token names, or a new one.
fn create(gateway: &Gateway, client: &Client, token: &Token) -> Result<Uuid, Refusal> {
    let id = token.claims.jet_aid.unwrap_or_else(Uuid::new_v4);
    let create = || {
        let access = Access::Token(token.id.clone());
        let by = Creator::Bearer(client.peer.ip());
        gateway.meetings.create(id, token, access, by)
    };
    match create() {
        // The same token opens its session again: the figures of the last one go.
        Err(RendezvousError::Ended) => {
            gateway.meetings.delete(id, Proof::Operator)?;
            // It may lead to another target this time, and has other candidates.
            gateway.agents.forget_offer(id);
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
    gateway: &Gateway,
    client: &Client,
    token: &Token,
    association: Uuid,
    (name, target): (&AgentName, &TargetAddr),
) -> Result<PairedPeers, Refusal> {
    let mut ways = gateway.agents.ways(name, target)?;
    ways.urls.retain(|url| url.transport.is_tls() == ways.tls);
    let transports: Vec<Transport> = ways.urls.iter().map(|url| url.transport).collect();
    let gathered = gateway
        .meetings
        .gather(association, &transports, Proof::Operator)?;
    let candidates = gathered
        .iter()
        .filter_map(|candidate| candidate.at(&ways.urls));
    let candidates = candidates.collect();
    let message = Offer::new(association, Version::V3, Some(transports));
    let owner = Owner::new(Some(token.id.clone()), Some(client.peer.ip()));
    // A client of the gateway has proved itself by now, if it has to.
    let target = (target.clone(), Dial::BeforeAnswer);
    let mut pending = gateway
        .agents
        .offer(name, message, target, candidates, owner)?;
    let now = clock::now();
    let patience = now.checked_add(limits::AGENT_ANSWER_TIMEOUT).unwrap_or(now);
    let deadline = patience.min(client.establish_by).into();
    let connect = gateway
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
