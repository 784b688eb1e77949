//! A peer of a rendezvous: from its request to the session with the other one.
//!
//! - The request is a packet ([`serve`]) or the path of a WebSocket handshake ([`crate::api::jet`]); both are
//!   [admitted](admit) in the same way, and [go on](proceed) in the same way.
//! - An acceptor waits until it is asked for its connection; an end of it in the meantime is noticed at once.
//! - Two peers that have met select their candidate by the first byte of either. Until then a connector may leave, and the
//!   acceptor waits on.
//! - Existing clients read their response by one call and lose what comes with it. So the first bytes for a peer of the
//!   binary protocol wait until it has spoken since its response, or a quarter of a second has.
//! - Then the session is one like any other: decided, registered, its protocol enforced, opaque or inspected.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info};
use uuid::Uuid;

use crate::base::session_id::SessionId;
use crate::clock;
use crate::gateway::connection::{Client, Opening};
use crate::gateway::live::registry::{EndCause, Registered, Session};
use crate::gateway::meeting::party::Shown;
use crate::gateway::meeting::party::proof_of;
use crate::gateway::meeting::{Met, Party, Place, Waiting};
use crate::gateway::state::Gateway;
use crate::jet::agent::{ACCEPT_TYPE, Acceptance, Unmet};
use crate::jet::exchange::{JetPath, Operation, Request, Response, Status};
use crate::jet::message::Version;
use crate::jet::packet;
use crate::jet::rendezvous::{Proof, Refused as Declined};
use crate::limits;
use crate::policy::{self, SessionLimits};
use crate::preamble::{Preamble, Recognition, recognise_behind};
use crate::refusal::{Denied, Refusal};
use crate::session::authenticate::{self, Authenticated, ToTarget};
use crate::session::authorize::{self, Authorized};
use crate::session::connect;
use crate::session::identify::Expected;
use crate::session::reached::{Reached, Together};
use crate::session::refuse::{self, Refused};
use crate::session::{Ready, run, secure_or_open};
use crate::stream::Stream;
use crate::target_name::TargetName;
use crate::token::claims::{Claims, ConnectionMode};
use crate::token::statement::{self, StatementKey};
use crate::token::target::TargetAddr;
use crate::token::{About, Token};
use crate::websocket::Farewell;

/// How long a peer that is told to go is given to hear it.
const PARTING: Duration = Duration::from_secs(1);

/// Largest packet, bytes.
const PACKET_BYTES: usize = packet::PAYLOAD_BYTES + packet::HEADER_BYTES;

/// A peer whose request was granted.
#[derive(Debug)]
pub enum Admitted {
    /// The candidate exists: that is all it wanted to know.
    Tested,
    /// It waits.
    Accepted(Waiting),
    /// It has met the acceptor.
    Connected(Met),
}

/// Why a request was not granted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// The token does not hold, or is for something else.
    #[error("{0}")]
    Token(#[from] Denied),
    /// The candidate cannot be had.
    #[error("{0}")]
    Declined(#[from] Declined),
    /// A page of a site whose pages are not to be peers.
    #[error("pages of {0} are not allowed here")]
    Origin(String),
}

impl NotAdmitted {
    /// What the peer is told.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Token(denied) if matches!(denied.refusal, Refusal::TooMuchWork) => {
                Status::Unavailable
            }
            Self::Token(denied) if matches!(denied.refusal, Refusal::OtherPath(_)) => {
                Status::Forbidden
            }
            Self::Token(denied) if denied.refusal.is_unmet_demand() => Status::Forbidden,
            Self::Token(_) => Status::Unauthorized,
            Self::Origin(_) => Status::Forbidden,
            Self::Declined(declined) => match declined {
                Declined::UnknownAssociation | Declined::UnknownCandidate => Status::NotFound,
                Declined::NoToken => Status::Unauthorized,
                Declined::OtherToken | Declined::OtherOwner => Status::Forbidden,
                Declined::OtherTerms
                | Declined::Accepted
                | Declined::Connected
                | Declined::NotAccepted
                | Declined::NotConnected
                | Declined::Selected
                | Declined::Ended => Status::Conflict,
                Declined::Full => Status::Unavailable,
            },
        }
    }

    /// Stable name for the log.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Token(denied) => denied.refusal.rule(),
            Self::Declined(_) => "rendezvous",
            Self::Origin(_) => "origin",
        }
    }

    /// What the token of the request says of itself, where that is known.
    #[must_use]
    pub fn about(&self) -> Option<&About> {
        match self {
            Self::Token(denied) => denied.about.as_deref(),
            Self::Declined(_) | Self::Origin(_) => None,
        }
    }
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self::Token(refusal.into())
    }
}

/// Verifies a token that is to be for a rendezvous.
///
/// # Errors
/// It does not hold, was revoked, is for a forward session, or demands what no session could have.
pub fn verify(gateway: &Gateway, peer: SocketAddr, text: &str) -> Result<Token, Denied> {
    let token = gateway.verify_token(text, peer.ip())?;
    if let Some(rule) = gateway.revoked.rules().revokes(&token.id, &token.claims) {
        return Err(Denied::of(&token, Refusal::Revoked(rule)));
    }
    match token.claims.jet_cm {
        ConnectionMode::Rdv => {}
        ConnectionMode::Fwd => return Err(Denied::of(&token, Declined::OtherToken)),
    }
    // Said to whoever brings it, before somebody waits for a session that cannot be.
    policy::decide(&token.claims, SessionLimits::default(), gateway.means())
        .map_err(|refusal| Denied::of(&token, refusal))?;
    Ok(token)
}

/// Verifies what a peer shows with its request for `path`: a rendezvous token, or the statement of an agent.
///
/// # Errors
/// It does not hold, or not for this.
pub fn show(
    gateway: &Gateway,
    peer: SocketAddr,
    path: JetPath,
    text: Option<&str>,
) -> Result<Shown, Denied> {
    let Some(text) = text else {
        return Ok(Shown::Nothing);
    };
    if statement::claimed::<Acceptance>(text, ACCEPT_TYPE).is_none() {
        return Ok(Shown::Token(Box::new(verify(gateway, peer, text)?)));
    }
    gateway.book(peer.ip(), StatementKey::cost_us())?;
    let name = match path.operation {
        Operation::Accept | Operation::Test => {
            gateway.agents.accepts(text, gateway.instance(), path)
        }
        // An agent is met; whom it meets is not its choice.
        Operation::Connect => None,
    };
    let (name, target) = name.ok_or(Refusal::from(Declined::OtherToken))?;
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
    gateway: &Gateway,
    path: JetPath,
    proof: Proof<'_>,
    peer: SocketAddr,
) -> Result<Admitted, NotAdmitted> {
    let JetPath {
        operation,
        association,
        candidate,
    } = path;
    let meetings = &gateway.meetings;
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

/// Serves a connection that begins with a packet.
pub async fn serve(gateway: &Arc<Gateway>, mut client: Client) {
    let deadline = client.identify_by.into();
    let (id, peer) = (client.id, client.peer);
    let request = match timeout_at(deadline, read_request(&mut client)).await {
        Ok(Ok(request)) => request,
        Ok(Err(reason)) => {
            info!(session = %id, %peer, reason, "Bad JET packet");
            return;
        }
        Err(_elapsed) => {
            debug!(session = %id, %peer, "JET peer was silent for too long");
            return;
        }
    };
    let request = match request {
        Ok(request) => request,
        Err(answer) => {
            part(client.stream, Some(answer)).await;
            return;
        }
    };
    let Request {
        path,
        version,
        token,
        ..
    } = request;
    let text = token.as_ref().map(|text| text.as_str());
    match judge(gateway, (id, peer), path, text).await {
        Ok((shown, admitted)) => {
            let response = granted(gateway, version, path.operation);
            if matches!(admitted, Admitted::Tested) {
                part(client.stream, Some(response)).await;
                return;
            }
            if let Err(error) = respond(&mut client.stream, &response).await {
                debug!(session = %id, %peer, %error, "JET peer left before its response");
                return;
            }
            proceed(gateway, client, shown, path.association, admitted).await;
        }
        Err(not_admitted) => {
            let response = Response::new(not_admitted.status(), version);
            part(client.stream, Some(response)).await;
        }
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
    let shown = match show(gateway, peer, path, text) {
        Ok(shown) => shown,
        Err(denied) => {
            let why = denied.into();
            log_not_admitted(id, peer, path, &Shown::Nothing, &why);
            return Err(why);
        }
    };
    match admit(gateway, path, shown.proof(), peer).await {
        Ok(admitted) => Ok((shown, admitted)),
        Err(why) => {
            log_not_admitted(id, peer, path, &shown, &why);
            Err(why)
        }
    }
}

/// The one line of a request that was not granted.
pub fn log_not_admitted(
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
}

/// Whether an acceptor comes with one more of its candidates, when the peers have met on another: who accepts on all of them, as agents
/// do, finds that on all but one.
fn is_needless(path: JetPath, shown: &Shown, why: &NotAdmitted) -> bool {
    let met = matches!(why, NotAdmitted::Declined(Declined::Selected));
    let over = matches!(why, NotAdmitted::Declined(Declined::Ended));
    let agent = matches!(shown, Shown::Agent { .. });
    path.operation == Operation::Accept && (met || (over && agent))
}

/// Goes on with a peer that has its response: it waits, or speaks with whom it has met.
pub async fn proceed(
    gateway: &Arc<Gateway>,
    mut client: Client,
    shown: Shown,
    association: Uuid,
    admitted: Admitted,
) {
    // It named an association that exists, and showed what that demands.
    client.admission.proven();
    let answered = clock::now();
    let place = match &admitted {
        Admitted::Tested => None,
        Admitted::Accepted(waiting) => Some(&waiting.place),
        Admitted::Connected(met) => Some(&met.place),
    };
    if let (Some(place), Some(token)) = (place, shown.token()) {
        gateway.meetings.vouch(place, association, token);
        if let Some(rule) = gateway.revoked.rules().revokes(&token.id, &token.claims) {
            info!(session = %client.id, peer = %client.peer, jet_aid = %association, rule, "Closing a peer whose token was revoked");
            part(client.stream, None).await;
            return;
        }
    }
    match admitted {
        Admitted::Tested => part(client.stream, None).await,
        Admitted::Accepted(Waiting { place, claimed }) => {
            debug!(session = %client.id, peer = %client.peer, jet_aid = %association, "Waiting for a peer");
            let party = Party {
                client,
                shown,
                place,
                answered,
            };
            wait(gateway, party, claimed).await;
        }
        Admitted::Connected(Met {
            place,
            candidate,
            acceptor,
        }) => {
            let connector = Party {
                client,
                shown,
                place,
                answered,
            };
            pair(gateway, connector, *acceptor, (association, candidate)).await;
        }
    }
}

/// Watches an acceptor until somebody asks for it, it leaves, or it is to go.
async fn wait(
    gateway: &Gateway,
    mut party: Party,
    mut claimed: tokio::sync::oneshot::Receiver<crate::gateway::meeting::Handover>,
) {
    let close = party.place.close.clone();
    loop {
        let handover = tokio::select! {
            biased;
            () = either(&close, &gateway.stopping) => {
                if !close.is_cancelled() {
                    party.client.stream.io_mut().end_with(Farewell::GoingAway);
                }
                part(party.client.stream, None).await;
                return;
            }
            () = left(&mut party.client.stream) => return,
            handover = &mut claimed => handover,
        };
        let Ok(handover) = handover else {
            return;
        };
        match handover.send(party) {
            Ok(()) => return,
            // Whoever asked has left in the meantime.
            Err(back) => {
                party = back;
                claimed = gateway.meetings.wait_again(&party.place);
            }
        }
    }
}

/// Reads what a peer says before it was met; ready when it has left.
async fn left(stream: &mut Stream) {
    while stream.buffered().len() < limits::RENDEZVOUS_EARLY_BYTES {
        match stream.fill(limits::RENDEZVOUS_EARLY_BYTES).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    // Nothing more is read, and so its end cannot be seen; keep-alive and expiry remain.
    pending().await
}

/// What happens to two peers before either has spoken.
enum Before {
    /// Bytes can pass.
    Speak,
    /// The candidate is closed.
    Closed,
    ConnectorLeft,
    AcceptorLeft,
}

/// Two peers have met: waits for the first byte, selects the candidate, and makes the session.
async fn pair(
    gateway: &Arc<Gateway>,
    mut connector: Party,
    mut acceptor: Party,
    (association, candidate): (Uuid, Uuid),
) {
    match before(&mut connector, &mut acceptor).await {
        Before::Speak => {}
        Before::Closed => {
            tokio::join!(
                part(connector.client.stream, None),
                part(acceptor.client.stream, None)
            );
            return;
        }
        Before::ConnectorLeft => {
            let claimed = gateway.meetings.part(connector.place, &acceptor.place);
            drop(connector.client);
            wait(gateway, acceptor, claimed).await;
            return;
        }
        Before::AcceptorLeft => {
            drop(acceptor);
            part(connector.client.stream, None).await;
            return;
        }
    }
    if gateway.meetings.select(association, candidate).is_err() {
        // Another one was selected at the same moment.
        tokio::join!(
            part(connector.client.stream, None),
            part(acceptor.client.stream, None)
        );
        return;
    }
    // Making the session needs far more memory than having it.
    let ready = Box::pin(establish(gateway, connector, acceptor, association)).await;
    if let Some(ready) = ready {
        run(ready).await;
    }
}

async fn before(connector: &mut Party, acceptor: &mut Party) -> Before {
    // What came with the request says nothing of whether the response was read.
    let mut spoke = (false, false);
    let closing = (connector.place.close.clone(), acceptor.place.close.clone());
    loop {
        let now = clock::now();
        let until = (
            connector.readable_at(spoke.0),
            acceptor.readable_at(spoke.1),
        );
        let to_acceptor = !connector.client.stream.buffered().is_empty();
        let to_connector = !acceptor.client.stream.buffered().is_empty();
        if (to_acceptor && until.1 <= now) || (to_connector && until.0 <= now) {
            return Before::Speak;
        }
        // The next moment at which what has arrived may go on.
        let next = match (to_acceptor, to_connector) {
            (true, true) => Some(until.0.min(until.1)),
            (true, false) => Some(until.1),
            (false, true) => Some(until.0),
            (false, false) => None,
        };
        tokio::select! {
            biased;
            () = either(&closing.0, &closing.1) => return Before::Closed,
            more = more(&mut connector.client.stream) => {
                if !more {
                    return Before::ConnectorLeft;
                }
                spoke.0 = true;
            }
            more = more(&mut acceptor.client.stream) => {
                if !more {
                    return Before::AcceptorLeft;
                }
                spoke.1 = true;
            }
            () = at(next) => {}
        }
    }
}

/// Reads more of what a peer says; false where it has left. A peer that has spoken and ended may wait for an answer.
async fn more(stream: &mut Stream) -> bool {
    if stream.buffered().len() < limits::RENDEZVOUS_EARLY_BYTES {
        match stream.fill(limits::RENDEZVOUS_EARLY_BYTES).await {
            Ok(1..) => return true,
            Ok(0) if !stream.buffered().is_empty() => {}
            Ok(0) | Err(_) => return false,
        }
    }
    pending().await
}

async fn either(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => pending().await,
    }
}

/// The session of two peers: decided, registered, opened.
async fn establish(
    gateway: &Arc<Gateway>,
    connector: Party,
    acceptor: Party,
    association: Uuid,
) -> Option<Ready> {
    let Party {
        mut client,
        shown,
        place,
        ..
    } = connector;
    let shown = shown.into_token();
    let anonymous = shown.is_none();
    // The client of a peer without a token has what the association was created with.
    let mut token = shown.or_else(|| gateway.meetings.token_of(association))?;
    let now = clock::now();
    client.identify_by = now.checked_add(limits::IDENTIFY_TIMEOUT).unwrap_or(now);
    client.establish_by = now.checked_add(limits::ESTABLISH_TIMEOUT).unwrap_or(now);
    Span::current().record("jet_aid", tracing::field::display(association));
    let agreed = if anonymous && token.claims.has_credentials() {
        // They are for the bearer of that token.
        Err(Declined::NoToken.into())
    } else {
        let created = gateway.meetings.token_of(association);
        let others = created.iter().chain(acceptor.shown.token());
        tighten(&mut token, others).and_then(|()| leads_to(&token.claims, &acceptor.shown))
    };
    let ready = async {
        if let Err(refusal) = agreed {
            return Err(client.refused(refusal, Opening::Unread).with_token(&token));
        }
        let authenticated = authenticated(client, token).await?;
        let authorized = authorize::authorize(gateway, authenticated).await?;
        let reached = together(gateway, association, place, acceptor, &authorized.session);
        secure_or_open(gateway, authorized.with(reached)).await
    };
    match ready.await {
        Ok(ready) => Some(ready),
        Err(refused) => {
            refuse::refuse(gateway, *refused).await;
            None
        }
    }
}

/// Adds the demands of `others`, tokens of the same rendezvous.
fn tighten<'a>(token: &mut Token, others: impl Iterator<Item = &'a Token>) -> Result<(), Refusal> {
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

/// The connector as a client with its token: how it begins, and whether that is what the token announces.
async fn authenticated(mut client: Client, token: Token) -> Result<Authenticated, Box<Refused>> {
    let speaks_rdp = match Expected::by(&token.claims) {
        Expected::Rdp => true,
        // Its server may speak first, so nothing is waited for; but what is there tells.
        Expected::Unsaid => matches!(
            recognise_behind(client.stream.buffered()),
            Recognition::Known(Preamble::X224)
        ),
        Expected::Other(_) => false,
    };
    let opening = if speaks_rdp {
        let opening = client.read_opening(Expected::Rdp).await;
        match opening {
            Ok(opening) => opening,
            Err(refusal) => {
                return Err(client.refused(refusal, Opening::Other).with_token(&token));
            }
        }
    } else {
        Opening::Other
    };
    if let Err(refusal) = authenticate::check_protocol(&token.claims, &opening, &client) {
        return Err(client.refused(refusal, opening).with_token(&token));
    }
    Ok(Authenticated {
        client,
        opening,
        token,
        to_target: ToTarget::AsIs,
    })
}

/// Between steps 2 and 3 of an RDP client with a rendezvous token: what the association was created with holds for it, too.
///
/// # Errors
/// The two contradict each other.
pub fn agree(
    gateway: &Gateway,
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
        ConnectionMode::Rdv if !by_agent => gateway.meetings.association_of(token),
        ConnectionMode::Rdv | ConnectionMode::Fwd => None,
    };
    let created = association.and_then(|association| gateway.meetings.token_of(association));
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
pub async fn meet(gateway: &Gateway, authorized: &mut Authorized) -> Result<Reached, Refusal> {
    let Authorized {
        client,
        opening,
        permit,
        protocol,
        session,
        ..
    } = authorized;
    let token = &session.token;
    let association = gateway.meetings.association_of(token);
    let association = association.ok_or(Declined::UnknownAssociation)?;
    let proof = proof_of(Some(token));
    let deadline = client.establish_by.into();
    let met = gateway.meetings.connect_by(association, proof, deadline);
    let met = tokio::select! {
        met = met => met?,
        () = session.cancelled().cancelled() => return Err(session.cancellation()),
    };
    let Met {
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
        *permit = authorize::permit(gateway, client, &claims)?;
        let inspecting = gateway.means_by(&client.listener).inspecting;
        authorize::check_opening(permit, &claims, opening, inspecting)?;
        *protocol = claims.jet_ap;
    }
    // The client has spoken, and its bytes are on their way: that selects the candidate.
    gateway.meetings.select(association, candidate)?;
    let acceptor = *acceptor;
    sleep_until(acceptor.readable_at(false).into()).await;
    Ok(together(gateway, association, place, acceptor, session))
}

/// Makes a session of two peers.
pub fn together(
    gateway: &Gateway,
    association: Uuid,
    connector: Place,
    acceptor: Party,
    session: &Registered,
) -> Reached {
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
    debug!(session = %session.id, acceptor = %id, peer = %peer, jet_aid = %association, "Peers have met");
    let created = gateway.meetings.token_of(association);
    let proven = shown.proves(association, created.as_ref());
    let acceptors = shown.token().cloned();
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
    for token in created.into_iter().chain(acceptors) {
        session.join(token);
    }
    // Asked after joining: a rule that arrives between the two finds the session.
    if let Some((_, rule)) = session.revoked_by(&gateway.revoked.rules()) {
        session.end(EndCause::Revoked(rule));
    }
    let window = authorize::reconnect_window(&gateway.config.token, &session.token.claims);
    let meetings = &gateway.meetings;
    meetings.in_session(association, &connector, shared, window);
    let together = Together {
        _connector: connector,
        _acceptor: place,
        _admission: admission,
    };
    Reached {
        stream,
        name,
        met: Some(reached::Met { together, proven }),
    }
}

/// Reads the packet and its request. The outer error closes without a word; the inner one is an answer.
async fn read_request(client: &mut Client) -> Result<Result<Request, Response>, String> {
    let packet = loop {
        match packet::decode(client.stream.buffered()) {
            Ok(Some(packet)) => break packet,
            Ok(None) => match client.stream.fill(PACKET_BYTES).await {
                Ok(0) => return Err("cut off".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
            Err(error) => return Err(error.to_string()),
        }
    };
    client.stream.consume(packet.length);
    match Request::parse(&packet.payload) {
        Ok(request) => Ok(Ok(request)),
        Err(error) => {
            info!(session = %client.id, peer = %client.peer, reason = %error, "Bad JET request");
            match Response::to_error(&error) {
                Some(response) => Ok(Err(response)),
                None => Err(error.to_string()),
            }
        }
    }
}

fn granted(gateway: &Gateway, version: Version, operation: Operation) -> Response {
    let mut response = Response::new(Status::Ok, version);
    response.instance.clone_from(&gateway.config.jet.instance);
    if operation == Operation::Accept {
        response.timeout = Some(gateway.meetings.unused_timeout());
    }
    response
}

async fn respond(stream: &mut Stream, response: &Response) -> std::io::Result<()> {
    let packet = packet::encode(&response.to_payload(), packet::mask());
    let packet = packet.map_err(std::io::Error::other)?;
    stream.io_mut().write_all(&packet).await?;
    stream.io_mut().flush().await
}

/// Says the last word to a peer and ends its connection in order.
async fn part(mut stream: Stream, response: Option<Response>) {
    let parting = async {
        if let Some(response) = response {
            respond(&mut stream, &response).await?;
        }
        stream.io_mut().shutdown().await?;
        // Closing with bytes unread would reset the connection, and the response could be lost with it.
        let (io, _read_ahead) = stream.into_parts();
        tokio::io::copy(
            &mut tokio::io::AsyncReadExt::take(io, PARTING_BYTES),
            &mut tokio::io::sink(),
        )
        .await
    };
    // It has been as polite as it can be.
    let _ = timeout(PARTING, parting).await;
}

/// Bytes of a peer that are read and thrown away when its connection ends.
const PARTING_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use super::*;
    use crate::relay::tcp_pair;

    #[tokio::test]
    async fn nothing_more_is_read_of_a_peer_that_speaks_too_early() {
        let (mut peer, accepted) = tcp_pair().await;
        let sending = tokio::spawn(async move {
            let all = vec![7; 16 * limits::RENDEZVOUS_EARLY_BYTES];
            peer.write_all(&all).await.unwrap();
            peer
        });
        let mut stream = Stream::from(accepted);
        let mut more = 100;
        while more > 0 {
            {
                let mut left = pin!(left(&mut stream));
                let ended = poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_ready())).await;
                assert!(!ended, "the peer is there");
            }
            if stream.buffered().len() >= limits::RENDEZVOUS_EARLY_BYTES {
                more -= 1;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(stream.buffered().len(), limits::RENDEZVOUS_EARLY_BYTES);
        sending.abort();
    }
}
