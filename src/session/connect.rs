//! Step 4: the target dialled, or met where it waits.

use std::time::Duration;

use crate::clock;
use crate::gateway::Gateway;
use crate::policy::permit::Permit;
use crate::refusal::Refusal;
use crate::session::agent;
use crate::session::authorize::Authorized;
use crate::session::identify::{Client, Opening};
use crate::session::refuse::Refused;
use crate::session::registry::Registered;
use crate::session::rendezvous::{self, Together};
use crate::store::usage::Reservation;
use crate::stream::Stream;
use crate::token::claims::ConnectionMode;
use crate::upstream::{self, ConnectClass, SystemResolver};

/// A client and its target.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub client: Client,
    /// How it goes on.
    pub opening: Opening,
    /// What it may do.
    pub permit: Permit,
    /// Its session.
    pub session: Registered,
    /// Its token, taken.
    pub reservation: Reservation,
    /// The target.
    pub target: Stream,
    /// Of a rendezvous: the places of both peers.
    pub met: Option<Together>,
}

/// Reaches the target.
///
/// # Errors
/// No target may be dialled, or none answers.
pub async fn connect(gateway: &Gateway, authorized: Authorized) -> Result<Connected, Box<Refused>> {
    let Authorized {
        client,
        opening,
        permit,
        session,
        reservation,
    } = authorized;
    let reached = match session.token.claims.jet_cm {
        ConnectionMode::Fwd => {
            let target = reach(gateway, &permit, &session).await;
            target.map(|target| (target, None))
        }
        ConnectionMode::Rdv => {
            let met = match &session.token.claims.agent {
                Some(agent) => agent::meet(gateway, &client, &session, agent).await,
                None => rendezvous::meet(gateway, &client, &session).await,
            };
            met.map(|(target, met)| (target, Some(met)))
        }
    };
    match reached {
        Ok((target, met)) => Ok(Connected {
            client,
            opening,
            permit,
            session,
            reservation,
            target,
            met,
        }),
        Err(refusal) => Err(client.refused(refusal, opening).with_token(&session.token)),
    }
}

async fn reach(
    gateway: &Gateway,
    permit: &Permit,
    session: &Registered,
) -> Result<Stream, Refusal> {
    let timeout = Duration::from_secs(gateway.config.session.connect_timeout_s);
    let deadline = tokio::time::Instant::from_std(clock::now() + timeout);
    let dial = upstream::connect(
        permit,
        &gateway.config.egress_rules,
        &SystemResolver,
        deadline,
    );
    let connected = tokio::select! {
        connected = dial => connected,
        () = session.cancelled().cancelled() => return Err(session.cancellation()),
    };
    let connected = connected.map_err(|error| match error.class() {
        ConnectClass::NotAllowed => Refusal::Egress(error.to_string()),
        ConnectClass::Unreachable | ConnectClass::TimedOut => Refusal::Target(error.to_string()),
    })?;
    session.relaying(
        connected.target,
        connected.address,
        Some(connected.handshake),
    );
    Ok(connected.stream.into())
}
