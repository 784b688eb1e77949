//! Step 4 of a client whose token leads behind an agent (`jet_agent_id`, `jet_agent_dst`).
//!
//! The gateway is the client's side of the rendezvous here ([JET-PROTO] 2.3.3): it creates the association, gathers, offers it to the
//! agent, and connects to the first candidate on which the agent has accepted. An agent whose signaling channel has TLS is met over
//! TLS only.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use tokio::time::sleep_until;
use uuid::Uuid;

use crate::clock;
use crate::gateway::Gateway;
use crate::jet::agent::Unmet;
use crate::jet::candidate::Transport;
use crate::jet::message::{Offer, Version};
use crate::jet::rendezvous::{Access, Proof, Refused};
use crate::limits;
use crate::meeting::Met;
use crate::refusal::Refusal;
use crate::session::identify::Client;
use crate::session::registry::Registered;
use crate::session::rendezvous::{Together, readable_at, together};
use crate::stream::Stream;
use crate::token::Token;
use crate::token::claims::AgentTarget;

/// Meets the agent.
///
/// # Errors
/// It is not there, declines, or does not come in time.
pub async fn meet(
    gateway: &Gateway,
    client: &Client,
    session: &Registered,
    wanted: &AgentTarget,
) -> Result<(Stream, Together), Refusal> {
    // Asked first, so that nothing is created for an agent that is not there.
    gateway.agents.ways(&wanted.agent, &wanted.target)?;
    let association = create(gateway, &session.token)?;
    let met = tokio::select! {
        met = offer(gateway, client, association, wanted) => met,
        () = session.cancelled().cancelled() => Err(session.cancellation()),
    };
    let met = met.and_then(|met| {
        // The client has spoken, and its bytes are on their way: that selects the candidate.
        gateway.meetings.select(association, met.candidate)?;
        Ok(met)
    });
    let Met {
        place,
        candidate,
        acceptor,
    } = match met {
        Ok(met) => met,
        Err(refusal) => {
            gateway.agents.withdraw(association);
            // Gone already is as good.
            let _ = gateway.meetings.delete(association, Proof::Operator);
            return Err(refusal);
        }
    };
    gateway.agents.complete(association, candidate);
    let acceptor = *acceptor;
    sleep_until(readable_at(&acceptor, false).into()).await;
    let behind = Some(wanted.target.clone());
    Ok(together(
        gateway,
        association,
        place,
        acceptor,
        (session, behind),
    ))
}

/// The association that the token names, or a new one.
fn create(gateway: &Gateway, token: &Token) -> Result<Uuid, Refusal> {
    let id = token.claims.jet_aid.unwrap_or_else(Uuid::new_v4);
    let create = || {
        let access = Access::Token(token.id.clone());
        gateway.meetings.create(id, token, access)
    };
    match create() {
        // The same token opens its session again: the figures of the last one go.
        Err(Refused::Ended) => {
            gateway.meetings.delete(id, Proof::Operator)?;
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
    association: Uuid,
    wanted: &AgentTarget,
) -> Result<Met, Refusal> {
    let mut ways = gateway.agents.ways(&wanted.agent, &wanted.target)?;
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
    let target = wanted.target.clone();
    let mut pending = gateway
        .agents
        .offer(&wanted.agent, message, target, candidates)?;
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
                    if refused == Refused::NotAccepted {
                        Unmet::Silent(wanted.agent.clone()).into()
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
