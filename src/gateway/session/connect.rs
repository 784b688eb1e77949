//! Step 4: the target dialled, or met where it waits.

use std::time::Duration;

use crate::connection::{Client, Opening, departed};
use crate::live::registry::Registered;
use crate::refusal::{Refusal, TargetError};
use crate::session::authorize::Authorized;
use crate::session::meet_acceptor;
use crate::session::meet_agent;
use crate::session::reached::Reached;
use crate::session::refuse::Refused;
use crate::session::secure;
use crate::state::Gateway;
use crate::upstream::{self, ConnectClass, SystemResolver};
use jetway_io::clock;
use jetway_io::stream::{Io, Stream};
use jetway_metrics::METRICS;
use jetway_policy::egress::EgressRules;
use jetway_policy::permit::Permit;
use jetway_store::usage::Reservation;
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::claims::ConnectionMode;
use jetway_token::target_name::TargetName;

/// A client and its target.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub client: Client,
    /// How it goes on.
    pub opening: Opening,
    /// What it may do.
    pub permit: Permit,
    /// What is announced to be spoken: by its token, and in a rendezvous by those of the others.
    pub protocol: Option<ApplicationProtocol>,
    /// Its session.
    pub session: Registered,
    /// Its token, taken.
    pub reservation: Reservation,
    /// The target.
    pub reached: Reached,
}

impl Authorized {
    /// The next step.
    #[must_use]
    pub fn with(self, reached: Reached) -> Connected {
        let Self {
            client,
            opening,
            permit,
            protocol,
            session,
            reservation,
        } = self;
        Connected {
            client,
            opening,
            permit,
            protocol,
            session,
            reservation,
            reached,
        }
    }
}

/// Reaches the target.
///
/// # Errors
/// No target may be dialled, or none answers.
pub async fn connect(
    gateway: &Gateway,
    mut authorized: Authorized,
) -> Result<Connected, Box<Refused>> {
    let (sessions, revoked) = (&gateway.sessions, &gateway.tokens.revoked);
    let claims = &authorized.session.token.claims;
    let reached = match claims.jet_cm {
        ConnectionMode::Fwd => {
            let egress = &gateway.config.egress_rules;
            reach(egress, sessions.rules.connect_timeout(), &authorized).await
        }
        ConnectionMode::Rdv if claims.agent.is_some() => {
            meet_agent::meet(&gateway.peers, sessions, revoked, &authorized).await
        }
        ConnectionMode::Rdv => {
            let meetings = &gateway.peers.meetings;
            meet_acceptor::meet(meetings, sessions, revoked, &mut authorized).await
        }
    };
    match reached {
        Ok(reached) => Ok(authorized.with(reached)),
        Err(refusal) => {
            // The next attempt begins where its token does.
            sessions.returning.forget(&authorized.session.token.id);
            Err(authorized.refused(refusal))
        }
    }
}

async fn reach(
    egress: &EgressRules,
    timeout: Duration,
    authorized: &Authorized,
) -> Result<Reached, Refusal> {
    let Authorized {
        client,
        opening,
        permit,
        session,
        ..
    } = authorized;
    let left = async || departed(&client.stream, opening.is_rdp()).await;
    let deadline = tokio::time::Instant::from_std(clock::now() + timeout);
    let dial = upstream::connect(permit, egress, &SystemResolver, deadline);
    let connected = tokio::select! {
        connected = dial => connected,
        () = session.cancelled().cancelled() => return Err(session.cancellation()),
        left = left() => return Err(left),
    };
    let connected = connected.map_err(|error| match error.class() {
        ConnectClass::NotAllowed => Refusal::Egress(error),
        ConnectClass::Unreachable | ConnectClass::TimedOut => {
            Refusal::Target(TargetError::Unreached(error))
        }
    })?;
    METRICS.target_dialled(connected.handshake.as_secs_f64());
    session.relaying(
        connected.target.clone(),
        connected.address,
        Some(connected.handshake),
    );
    let name = TargetName::Dialled(connected.target);
    let mut stream = Stream::from(connected.stream);
    if let Some(pin) = permit.target_tls() {
        let secured = secure::target_tls_pinned(stream, &name, pin, deadline);
        let tls = tokio::select! {
            tls = secured => tls.map_err(|error| secure::error::unsecured(&error))?,
            () = session.cancelled().cancelled() => return Err(session.cancellation()),
            left = left() => return Err(left),
        };
        stream = Stream::new(Io::TargetTls(Box::new(tls)));
    }
    Ok(Reached {
        stream,
        name,
        met: None,
    })
}
