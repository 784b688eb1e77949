//! Step 5 of a session that the gateway stands inside of: both legs secured, then PDUs past the stages.
//!
//! The legs themselves are [`secure`]'s; here its result becomes a session, or its failure a
//! word to the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::connection::Opening;
use crate::live::legs::Legs;
use crate::live::registry::{EndCause, InspectionDetails, Session};
use crate::live::stages::Stages;
use crate::refusal::Refusal;
use crate::session::account::Ending;
use crate::session::account::Live;
use crate::session::account::describe;
use crate::session::account::log_opened;
use crate::session::account::opened_record;
use crate::session::account::spend_for_good;
use crate::session::activity::Activity;
use crate::session::connect::Connected;
use crate::session::reached::Reached;
use crate::session::refuse::Refused;
use crate::session::secure::error::SecureError;
use crate::session::secure::request::{ClientTls, SecureRequest, TargetTls};
use crate::session::secure::{self, Failed, Remaining, Secured};
use crate::state::InspectionTools;
use crate::trail::Trail;
use crate::trust::target_certificate::TargetCertificate;
use jetway_io::stream::{Io, Stream};
use jetway_policy as policy;
use jetway_policy::denial::Denial;
use jetway_policy::permit::{Inspection, Permit};
use jetway_rdp::budget::Budget;
use jetway_rdp::client_info::ClientInfoCredentials;
use jetway_rdp::connection_request::ConnectionRequest;
use jetway_rdp::redirection::Redirections;
use jetway_rdp::tracker::SessionError;
use jetway_rdp::tracker::{Settings, Tracker};
use jetway_relay::inspected::{self, Cancel, CancelWay, InspectedEnd, Leg};
use jetway_relay::{RDP_AFTER_END, RelayLimits, Side};
use jetway_stage::Pipeline;
use jetway_stage::inspector::Inspector;
use jetway_store::cookies::{KnownCookies, SessionCookies, association};
use jetway_store::redirections::Returning;
use jetway_store::usage::Reservation;
use jetway_token::claims::Credentials;
use jetway_token::target_name::TargetName;

/// How long a client is given to be led to the message that tells it why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// A session whose PDUs can be moved past the stages.
#[derive(Debug)]
pub struct InspectedSession {
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
    tools: &InspectionTools,
    returning: &Arc<Returning>,
    audit: &Arc<Trail>,
    connected: Connected,
    inspection: &Inspection,
) -> Result<Box<InspectedSession>, Box<Refused>> {
    let Connected {
        client,
        opening,
        permit,
        session,
        mut reservation,
        reached,
        // The legs are secured by what RDP says first, and nothing else passes.
        protocol: _,
    } = connected;
    if let Err(denial) = policy::may_inject(inspection, reached.is_proven()) {
        return Err(client
            .refused(denial.into(), opening)
            .with_session(&session));
    }
    let Reached {
        stream: target,
        name,
        met,
    } = reached;
    let opening = match opening {
        Opening::X224(request) => secure::request::RdpOpening::X224(request),
        Opening::DirectTls => secure::request::RdpOpening::DirectTls,
        // Refused already when the client was authorized.
        Opening::Unread | Opening::Other => {
            let refusal = Refusal::Uninspectable;
            return Err(client.refused(refusal, opening).with_session(&session));
        }
    };
    let direct = matches!(opening, secure::request::RdpOpening::DirectTls);
    let Some(server_tls) = client.listener.tls() else {
        return Err(client
            .refused(Denial::Injection.into(), Opening::Other)
            .with_session(&session));
    };
    let routing_token = routing_token(returning, &session, &name);
    let request = SecureRequest {
        config: &tools.secure,
        server_tls: &server_tls,
        target: &name,
        target_credentials: inspection.target_credentials.as_ref(),
        proxy_credentials: inspection.proxy_credentials.as_ref(),
        guesses: Some(&reservation),
        certificate_pin: inspection.certificate_pin,
        routing_token: routing_token.as_deref().map(Vec::as_slice),
        deadline: client.establish_by.into(),
    };
    let (id, peer, started, mut admission) =
        (client.id, client.peer, client.started, client.admission);
    let shown = client.routing_token;
    let (io, read_ahead) = client.stream.into_parts();
    let secured = tokio::select! {
        secured = secure::secure(io, read_ahead, opening, target, &request) => secured,
        () = session.cancelled().cancelled() => {
            let refused = Refused::without_stream(id, peer, started, session.cancellation());
            return Err(Box::new(refused).with_session(&session));
        }
    };
    let refused = |refusal, answer, admission| {
        let mut refused = Refused::without_stream(id, peer, started, refusal);
        refused.answer = answer;
        refused.admission = Some(admission);
        Box::new(refused).with_session(&session)
    };
    let secured = match secured {
        Ok(secured) => secured,
        Err(failed) => {
            let Failed { error, client } = *failed;
            let answer = send_failure(client, &error, direct).await;
            return Err(refused(secure::error::unsecured(&error), answer, admission));
        }
    };
    if let Err(refusal) = open(&mut reservation, audit, &session, &secured).await {
        return Err(refused(refusal, None, admission));
    }
    log_secured(
        &session,
        &tools.secure.target_certificate,
        &secured,
        started,
    );
    admission.proven();
    let Secured {
        client,
        client_read_ahead,
        target,
        target_read_ahead,
        legs,
        ..
    } = secured;
    let budget = Budget::default();
    let pipeline = pipeline(tools.stages.as_deref(), audit, &session, &legs, &budget);
    let cookies = cookies(&tools.cookies, &session, &name, inspection);
    let settings = Settings {
        redirections: redirections(returning, &session, &permit, &name),
        routing_token: shown,
        ..settings(&legs, inspection, cookies, budget)
    };
    Ok(Box::new(InspectedSession {
        tracker: Tracker::new(settings),
        pipeline,
        live: Live {
            session,
            reservation,
            started,
            admission,
            met,
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

/// What a target that has sent the client here wants to see from it.
fn routing_token(
    returning: &Returning,
    session: &Session,
    name: &TargetName,
) -> Option<Zeroizing<Vec<u8>>> {
    let redirected = returning.of(&session.token.id)?;
    let is_it = redirected.target == *name.address();
    redirected.routing_token.filter(|_| is_it)
}

/// The token is used from here on, and the audit says so.
async fn open(
    reservation: &mut Reservation,
    audit: &Trail,
    session: &Session,
    secured: &Secured<Io>,
) -> Result<(), Refusal> {
    reservation.commit().await?;
    audit.opens(&opened_record(session, Some(secured))).await
}

/// The stages of a session: those that were added, and the gateway's own.
fn pipeline(
    added: Option<&dyn Stages>,
    audit: &Arc<Trail>,
    session: &Session,
    legs: &Legs,
    budget: &Budget,
) -> Pipeline {
    let inspector = Inspector::new(budget, Activity::new(Arc::clone(audit), session));
    let mut pipeline = Pipeline::new();
    for stage in added.iter().flat_map(|stages| stages.of(session)) {
        pipeline.push(stage);
    }
    session.stand_inside(InspectionDetails {
        legs: legs.clone(),
        statistics: inspector.statistics(),
    });
    // Last, so that it hears what the others have decided.
    pipeline.push(Box::new(inspector));
    pipeline
}

/// The auto-reconnect cookies that may pass in a session.
fn cookies(
    known: &Arc<KnownCookies>,
    session: &Session,
    name: &TargetName,
    inspection: &Inspection,
) -> SessionCookies {
    let account = inspection.target_credentials.as_ref();
    let user = account.map(|credentials| credentials.username.as_str());
    known.of(&association(&session.token), session.peer.ip(), name, user)
}

/// Where the target may send the client.
fn redirections(
    returning: &Arc<Returning>,
    session: &Session,
    permit: &Permit,
    name: &TargetName,
) -> Option<Box<dyn Redirections>> {
    // Who comes back to an acceptor meets whoever accepts then: not the one that was meant.
    if !name.lasts() {
        return None;
    }
    let targets = match name {
        TargetName::Dialled(_) => permit.targets(),
        TargetName::Behind { .. } => permit.behind(),
        TargetName::Acceptor(_) => &[],
    };
    let (token, current) = (session.token.id.clone(), name.address().clone());
    let follower = returning.follower(token, session.peer.ip(), targets, current);
    Some(Box::new(follower))
}

impl InspectedSession {
    /// Moves PDUs until the end and accounts for it.
    pub async fn run(self: Box<Self>, audit: &Trail) {
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
            total: live.time_left(&permit),
            after_end: Some(RDP_AFTER_END),
            client: Some(live.session.peer.ip()),
            ..RelayLimits::default()
        };
        let way = || way(live.session.end_cause());
        let cancel = Cancel {
            token: live.session.cancelled().clone(),
            way: &way,
        };
        // It counts what is said behind the end, too.
        let session = Arc::clone(live.session.shared());
        let traffic = &session.traffic;
        let stages = &mut pipeline;
        let (end, parting) = inspected::run(
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
        let ending = match &end {
            InspectedEnd::Closed { by, orderly } => Ending {
                outcome: "closed",
                reason: closed(*by, *orderly).to_owned(),
            },
            InspectedEnd::Relay(end) => {
                spend_for_good(&live, end).await;
                describe(&live.session, end)
            }
            InspectedEnd::Session(error) => Ending {
                outcome: if matches!(error, SessionError::Terminated(_)) {
                    "stage"
                } else {
                    "protocol"
                },
                reason: error.to_string(),
            },
        };
        Box::pin(live.close(audit, parting, &ending)).await;
    }
}

/// How a session ends that is ended from here. What an operator or a revocation ends is to stay ended; for a restart, users are to
/// be back at their desktops by themselves.
fn way(cause: Option<&EndCause>) -> CancelWay {
    match cause {
        Some(EndCause::Shutdown) => CancelWay::Cut,
        Some(EndCause::Operator(_) | EndCause::Revoked(_) | EndCause::Association) | None => {
            CancelWay::Told
        }
    }
}

/// Who ended the session, and how.
fn closed(by: Side, orderly: bool) -> &'static str {
    match (by, orderly) {
        (Side::Client, true) => "ended by the client",
        (Side::Client, false) => "the client closed the connection without a word",
        (Side::Target, true) => "ended by the target",
        (Side::Target, false) => "the target closed the connection without a word",
    }
}

/// What the tracker writes into the PDUs of each leg.
fn settings(
    legs: &Legs,
    inspection: &Inspection,
    cookies: SessionCookies,
    budget: Budget,
) -> Settings {
    Settings {
        client_requested: legs.client_requested,
        target_selected: legs.target_selected,
        logon: inspection.target_credentials.as_ref().map(logon),
        redirections: None,
        routing_token: None,
        cookies: Some(Box::new(cookies)),
        budget,
    }
}

/// `DOMAIN\user` takes the domain apart; `user@realm` is one name.
fn logon(credentials: &Credentials) -> ClientInfoCredentials {
    let (domain, user) = credentials
        .username
        .split_once('\\')
        .unwrap_or(("", &credentials.username));
    ClientInfoCredentials {
        domain: domain.to_owned(),
        user: user.to_owned(),
        password: credentials.password.clone(),
    }
}

/// Tells the client why, if it can be told from here; gives back what still waits for an RDP_NEG_FAILURE.
async fn send_failure(
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
                info!(%error, "Cannot tell the client why it was refused");
            }
            None
        }
        Remaining::Gone => None,
    }
}

/// What an administrator wants to know of the legs, once.
fn log_secured(
    session: &Session,
    judged_by: &TargetCertificate,
    secured: &Secured<Io>,
    started: Instant,
) {
    if matches!(judged_by, TargetCertificate::AcceptAny) {
        warn!(session = %session.id, token = %session.token.id, "The target's certificate was not verified (target.verify = accept-any)");
    }
    log_opened(session, Some(secured), started);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::live::legs::{LegAuthentication, TlsFacts};
    use jetway_rdp::Direction;
    use jetway_rdp::event::Phase;
    use jetway_rdp::logon::AutoReconnectCookie;
    use jetway_rdp::reconnect::ClientCookie;

    use super::*;

    const HERE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// Two sessions through the gateway's own table: what a target gave in one, a client brings in the other.
    #[test]
    fn a_cookie_of_one_association_is_taken_out_of_another() {
        let known = Arc::new(KnownCookies::new().unwrap());
        let target = "desk.example:3389".parse().unwrap();
        let mut first = tracker(known.of("jet_aid 1", HERE, &target, Some("alice")));
        let mut verifier = None;
        for (direction, pdu) in recording() {
            pass(&mut first, direction, pdu);
            if verifier.is_none() && first.phase() == Phase::Active {
                pass(&mut first, Direction::ToClient, save_session_info());
                let random_bits = Zeroizing::new(RANDOM_BITS);
                let logon_id = 2;
                let cookie = AutoReconnectCookie {
                    logon_id,
                    random_bits,
                };
                verifier = ClientCookie::answer_to(&cookie).map(|answer| answer.security_verifier);
            }
        }
        let verifier = verifier.unwrap();
        for (association, account, passes) in [
            ("jet_aid 1", Some("alice"), true),
            ("jet_aid 2", Some("alice"), false),
            ("jet_aid 1", Some("bob"), false),
        ] {
            let mut second = tracker(known.of(association, HERE, &target, account));
            for (direction, pdu) in recording() {
                if second.phase() == Phase::ChannelConnection && pdu.get(15..17) == Some(&[0x40, 0])
                {
                    let passed = pass(&mut second, direction, with_cookie(&pdu, &*verifier));
                    let found = passed.windows(16).any(|bytes| bytes == *verifier);
                    assert_eq!(found, passes, "{association} {account:?}");
                    break;
                }
                pass(&mut second, direction, pdu);
            }
            assert_eq!(second.phase(), Phase::Licensing);
        }
    }

    const RANDOM_BITS: [u8; 16] = *b"sixteen bytes!!!";

    fn tracker(cookies: SessionCookies) -> Tracker {
        let tls = TlsFacts {
            version: String::new(),
            cipher: String::new(),
        };
        let legs = Legs {
            client_requested: 3,
            client_selected: 1,
            target_requested: 3,
            target_selected: 1,
            client_logon: LegAuthentication::None,
            target_logon: LegAuthentication::None,
            client_tls: tls.clone(),
            target_tls: tls,
        };
        let inspection = Inspection {
            target_credentials: None,
            proxy_credentials: None,
            certificate_pin: None,
        };
        Tracker::new(settings(&legs, &inspection, cookies, Budget::default()))
    }

    fn pass(tracker: &mut Tracker, direction: Direction, mut pdu: Vec<u8>) -> Vec<u8> {
        let (mut onward, mut back) = (Vec::new(), Vec::new());
        let mut stages = Pipeline::new();
        tracker
            .feed(direction, &mut pdu, &mut stages, &mut onward, &mut back)
            .unwrap();
        onward
    }

    fn save_session_info() -> Vec<u8> {
        let mut pdu = b"\x03\0\0\x49\x02\xf0\x80\x68\0\x01\x03\xeb\x70\x80\x3a".to_vec();
        pdu.extend(b"\x3a\0\x17\0\xea\x03\0\0\0\0\0\x01\0\0\x26\0\0\0");
        pdu.extend(b"\x03\0\0\0\0\0\x01\0\0\0\x1c\0\0\0\x1c\0\0\0\x01\0\0\0\x02\0\0\0");
        pdu.extend(RANDOM_BITS);
        let length = u16::try_from(pdu.len()).unwrap().to_be_bytes();
        pdu[2..4].copy_from_slice(&length);
        pdu[14] = u8::try_from(pdu.len() - 15).unwrap();
        pdu[15] = pdu[14];
        pdu
    }

    /// The recorded Client Info, which ends with an empty cookie and what follows it.
    fn with_cookie(pdu: &[u8], verifier: &[u8]) -> Vec<u8> {
        let strings = &pdu[15 + 12..];
        let length = |at: usize| usize::from(u16::from_le_bytes([strings[at], strings[at + 1]]));
        let mut at = 15 + 12 + 10 + (0..5).map(|string| length(string * 2) + 2).sum::<usize>();
        at += 2;
        for _ in 0..2 {
            at += 2 + usize::from(u16::from_le_bytes([pdu[at], pdu[at + 1]]));
        }
        at += 172 + 8;
        assert_eq!(pdu[at..at + 2], [0, 0]);
        let packet = [b"\x1c\0\0\0\x01\0\0\0\x02\0\0\0", verifier].concat();
        let data = [&pdu[15..at], &[28, 0], &packet, &pdu[at + 2..]].concat();
        let mut frame = pdu[..13].to_vec();
        let length = u16::try_from(data.len()).unwrap();
        frame.extend((length | 0x8000).to_be_bytes());
        frame.extend(data);
        frame[2..4].copy_from_slice(&(length + 15).to_be_bytes());
        frame
    }

    fn recording() -> Vec<(Direction, Vec<u8>)> {
        let directions = [Direction::ToTarget, Direction::ToClient];
        jetway_lab::recording::session("gdi-tls-shadow2", directions)
    }
}
