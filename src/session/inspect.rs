//! Step 5 of a session that the gateway stands inside of: both legs secured, then PDUs past the stages.
//!
//! The legs themselves are [`secure`]'s; here its result becomes a session, or its failure a
//! word to the client.

use std::time::Duration;

use tracing::{info, warn};

use crate::gateway::Gateway;
use crate::policy::permit::{Inspection, Permit};
use crate::rdp::client_info::Logon;
use crate::rdp::connection_request::ConnectionRequest;
use crate::rdp::session::{Settings, Tracker};
use crate::refusal::Refusal;
use crate::relay::RelayLimits;
use crate::relay::inspected::{self, InspectedEnd, Leg};
use crate::session::connect::Connected;
use crate::session::identify::Opening;
use crate::session::refuse::Refused;
use crate::session::registry::Inside;
use crate::session::secure::{
    self, ClientTls, Failed, Legs, Remaining, SecureError, SecureRequest, Secured, TargetTls,
};
use crate::session::{Live, SessionId, describe};
use crate::stage::Pipeline;
use crate::stage::inspector::{AuditEvent, Inspector};
use crate::stream::{Io, Stream};
use crate::target_certificate::{Remembered, TargetCertificate};
use crate::token::claims::Credentials;

/// How long a client is given to be led to the message that tells it why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// A session whose PDUs can be moved past the stages.
#[derive(Debug)]
pub struct Inspected {
    live: Live,
    permit: Permit,
    client: Leg<Box<ClientTls<Io>>>,
    target: Leg<Box<TargetTls>>,
    tracker: Tracker,
    pipeline: Pipeline,
}

/// Secures both legs of a session.
///
/// # Errors
/// One of them cannot be secured. A client that is in TLS by then has been told already.
pub async fn inspect(
    gateway: &Gateway,
    connected: Connected,
    inspection: &Inspection,
) -> Result<Box<Inspected>, Box<Refused>> {
    let Connected {
        client,
        opening,
        permit,
        session,
        mut reservation,
        target,
    } = connected;
    let Some((name, _)) = session.target().cloned() else {
        return Err(client.refused(Refusal::Target("not connected".to_owned()), opening));
    };
    let opening = match opening {
        Opening::X224(request) => secure::Opening::X224(request),
        Opening::DirectTls => secure::Opening::DirectTls,
        Opening::Unread | Opening::Other => {
            return Err(client
                .refused(Refusal::Injection, opening)
                .with_session(&session));
        }
    };
    let direct = matches!(opening, secure::Opening::DirectTls);
    let Some(server_tls) = client.listener.tls() else {
        return Err(client
            .refused(Refusal::Injection, Opening::Other)
            .with_session(&session));
    };
    let request = SecureRequest {
        config: &gateway.secure,
        server_tls: &server_tls,
        target: &name,
        target_credentials: inspection.target_credentials.as_ref(),
        proxy_credentials: inspection.proxy_credentials.as_ref(),
        certificate_pin: inspection.certificate_pin,
        deadline: client.establish_by.into(),
    };
    let (id, peer, started, mut admission) =
        (client.id, client.peer, client.started, client.admission);
    let (io, read_ahead) = client.stream.into_parts();
    let secured = tokio::select! {
        secured = secure::secure(io, read_ahead, opening, target, &request) => secured,
        () = session.cancelled().cancelled() => {
            let refused = Refused::without_stream(id, peer, started, session.cancellation());
            return Err(Box::new(refused).with_session(&session));
        }
    };
    let refused = |refusal, answer| {
        let mut refused = Refused::without_stream(id, peer, started, refusal);
        refused.answer = answer;
        Box::new(refused).with_session(&session)
    };
    let secured = match secured {
        Ok(secured) => secured,
        Err(failed) => {
            let Failed { error, client } = *failed;
            let answer = tell(client, &error, direct).await;
            return Err(refused(unsecured(&error), answer));
        }
    };
    if let Err(refusal) = reservation.commit().await {
        return Err(refused(refusal, None));
    }
    note(id, gateway, &secured);
    admission.proven();
    let Secured {
        client,
        client_read_ahead,
        target,
        target_read_ahead,
        legs,
        ..
    } = secured;
    let inspector = Inspector::new(move |event| audit(id, &event));
    session.stand_inside(Inside {
        legs: legs.clone(),
        statistics: inspector.statistics(),
    });
    Ok(Box::new(Inspected {
        tracker: Tracker::new(settings(&legs, inspection)),
        pipeline: Pipeline::new().with(inspector),
        live: Live {
            session,
            reservation,
            started,
            admission,
        },
        permit,
        client: Leg {
            stream: client,
            read_ahead: client_read_ahead,
        },
        target: Leg {
            stream: target,
            read_ahead: target_read_ahead,
        },
    }))
}

impl Inspected {
    /// Moves PDUs until the end and accounts for it.
    pub async fn run(self: Box<Self>) {
        let Self {
            live,
            permit,
            client,
            target,
            mut tracker,
            mut pipeline,
        } = *self;
        let limits = RelayLimits {
            idle: permit.idle_timeout(),
            total: permit.time_limit(),
        };
        let cancel = live.session.cancelled().clone();
        let traffic = &live.session.traffic;
        let stages = &mut pipeline;
        let end = inspected::run(
            client,
            target,
            &mut tracker,
            stages,
            traffic,
            limits,
            cancel,
        )
        .await;
        // Stages have their last word before the session's own.
        drop(pipeline);
        let reason = match &end {
            InspectedEnd::Relay(end) => describe(&live.session, end),
            InspectedEnd::Session(error) => error.to_string(),
        };
        live.close(&reason);
    }
}

/// What the tracker writes into the PDUs of each leg.
fn settings(legs: &Legs, inspection: &Inspection) -> Settings {
    Settings {
        client_requested: legs.client_requested,
        target_selected: legs.target_selected,
        logon: inspection.target_credentials.as_ref().map(logon),
        redirect_to: Vec::new(),
    }
}

/// `DOMAIN\user` takes the domain apart; `user@realm` is one name.
fn logon(credentials: &Credentials) -> Logon {
    let (domain, user) = credentials
        .username
        .split_once('\\')
        .unwrap_or(("", &credentials.username));
    Logon {
        domain: domain.to_owned(),
        user: user.to_owned(),
        password: credentials.password.clone(),
    }
}

/// Tells the client why, if it can be told from here; gives back what still waits for an RDP_NEG_FAILURE.
async fn tell(
    client: Remaining<Io>,
    error: &SecureError,
    direct: bool,
) -> Option<(Stream, Opening)> {
    match client {
        Remaining::Unanswered { client, read_ahead } => {
            let stream = Stream::rewound(client, read_ahead);
            let opening = if direct {
                Opening::DirectTls
            } else {
                Opening::X224(ConnectionRequest::default())
            };
            Some((stream, opening))
        }
        Remaining::Secured {
            mut client,
            read_ahead,
            requested,
        } => {
            // The session's own deadline may be what has passed.
            let deadline = tokio::time::Instant::now() + FAREWELL_TIMEOUT;
            let reason = error.farewell();
            let said =
                secure::say_farewell(&mut client, &read_ahead, requested, reason, deadline).await;
            if let Err(error) = said {
                info!(%error, "The client could not be told why");
            }
            None
        }
        Remaining::Gone => None,
    }
}

fn unsecured(error: &SecureError) -> Refusal {
    Refusal::Unsecured {
        rule: error.rule(),
        reason: error.to_string(),
        code: error.failure_code(),
    }
}

/// What an administrator wants to know of the legs, once.
fn note(id: SessionId, gateway: &Gateway, secured: &Secured<Io>) {
    let legs = &secured.legs;
    if matches!(
        gateway.secure.target_certificate,
        TargetCertificate::AcceptAny
    ) {
        warn!(session = %id, "The target's certificate was not verified (target.verify = accept-any)");
    }
    info!(
        session = %id,
        client_protocol = legs.client_selected,
        client_tls = %format_args!("{} {}", legs.client_tls.version, legs.client_tls.cipher),
        target_protocol = legs.target_selected,
        target_tls = %format_args!("{} {}", legs.target_tls.version, legs.target_tls.cipher),
        target_certificate = %secured.target_certificate,
        first_use = secured.remembered == Remembered::First,
        "Session secured"
    );
}

/// One line for each thing that happened inside.
fn audit(id: SessionId, event: &AuditEvent) {
    let audit = serde_json::to_string(event).unwrap_or_default();
    info!(session = %id, audit, "Audit");
}
