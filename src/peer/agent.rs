//! The agent: keeps its signaling channel, and brings whoever the gateway sends to a target beside it ([JET-PROTO] 2.3).
//!
//! For each offer, in this order:
//!
//! 1. Is the target on the agent's own list? The list is the agent's: no token and no gateway leads elsewhere.
//! 2. Does the target answer? If not, the client is told now, and not by a silent session. Where the client has yet to prove itself to
//!    the gateway ([`Dial`]), the target is contacted with the first bytes and not before.
//! 3. Accept on every relay candidate that the offer admits and that is on the gateway's own host. Where the gateway is reached over
//!    TLS, that is those with TLS.
//! 4. Answer with the candidates on which that went well.
//! 5. Bridge the one that is chosen: by its first bytes, by the client's word, or because there is no other. The rest is closed.
//!
//! An agent connects to its gateway's host and its own targets alone, and signs for nobody but the gateway where it was enrolled: a
//! gateway that was taken over cannot have it prove itself to another.
//!
//! Sessions do not depend on the channel: it may come and go, and they go on. An agent that has lost its channel to another one with
//! the same name and key waits until that one is gone: it says so once, and asks as seldom as it asks a gateway that stays away. One that
//! its gateway will not have, whenever it comes, says why and ends ([`Hopeless`]).
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::CertificateError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info, info_span, warn};
use uuid::Uuid;

use crate::bridge::bridge;
use crate::host::{self, HostCandidate};
use crate::{Duplex, Granted, Site, tune};
use jetway_base::limits;
use jetway_io::websocket::PING_EVERY;
use jetway_jet::agent::{
    ACCEPT_TYPE, Acceptance, AgentLogon, BackOff, Decline, Dial, FromAgent, FromGateway,
    LOGON_TYPE, NOT_KNOWN, REPLACED, REVOKED,
};
use jetway_jet::candidate::Transport;
use jetway_jet::exchange::{JetPath, Operation};
use jetway_jet::message::{Answer, Candidate, Offer};
use jetway_token::agent_name::AgentName;
use jetway_token::mint::{MintError, SigningKey};
use jetway_token::statement;
use jetway_token::target::TargetAddr;

/// How long a target may take to answer.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);

/// After the first candidate was accepted, how long the others are waited for before the answer.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a candidate may wait to be chosen: as long as a gateway keeps an unused association by default.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(300);

/// The gateway pings; a channel on which nothing came for three of them is dead.
const SILENCE: Duration = PING_EVERY.saturating_mul(3);

/// What an agent is.
#[derive(Debug)]
pub struct Settings {
    /// Its gateway.
    pub site: Site,
    /// What its gateway calls itself, as it said at the enrolment. Without it the first that is heard holds until the agent ends.
    pub gateway: Option<String>,
    /// Its name.
    pub name: AgentName,
    /// Its key.
    pub key: SigningKey,
    /// Where it leads.
    pub targets: Vec<TargetAddr>,
    /// Its own addresses to be told, for clients that reach it directly; none by default.
    pub host_addresses: Vec<IpAddr>,
    /// How it comes back.
    pub back_off: BackOff,
}

/// An agent that runs.
struct Agent {
    settings: Settings,
    stop: CancellationToken,
    /// What the gateway calls itself; whoever else asks for a signature gets none.
    gateway: OnceLock<String>,
    /// One permit for each session.
    sessions: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Where the client's choice goes.
    choices: Mutex<HashMap<Uuid, oneshot::Sender<Uuid>>>,
}

/// Why it does not help to come back: somebody has to change something first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hopeless {
    /// Nobody was ever reached whose certificate is trusted.
    #[error(
        "the certificate of the gateway is not trusted ({0}): --ca names the authority that has issued it, or is the certificate itself, and --gateway the name that is in it"
    )]
    Certificate(String),
    /// The gateway has no agent of this name and key.
    #[error(
        "the gateway knows no agent {0} with this key: --name or --key is not what was enrolled there, or the agent was revoked since"
    )]
    NotKnown(AgentName),
    /// An operator has revoked the agent.
    #[error("the agent {0} was revoked: to come back it has to be enrolled anew")]
    Revoked(AgentName),
}

/// Runs an agent until `stop` fires; then its sessions end, too.
///
/// # Errors
/// Its gateway will never have it as it is.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), Hopeless> {
    let gateway = OnceLock::new();
    if let Some(name) = &settings.gateway {
        // It is empty until now.
        let _ = gateway.set(name.clone());
    }
    let agent = Arc::new(Agent {
        settings,
        stop,
        gateway,
        sessions: Arc::new(Semaphore::new(limits::AGENT_SESSIONS)),
        tasks: TaskTracker::new(),
        choices: Mutex::default(),
    });
    let mut failures = 0_u32;
    let mut yields = false;
    let mut ever_welcomed = false;
    let mut over = Ok(());
    while !agent.stop.is_cancelled() {
        let mut welcomed = false;
        let end = tokio::select! {
            end = channel(&agent, yields, &mut welcomed) => end,
            () = agent.stop.cancelled() => break,
        };
        ever_welcomed |= welcomed;
        if let Err(error) = &end
            && let Some(hopeless) = hopeless(error, &agent.settings.name, ever_welcomed)
        {
            over = Err(hopeless);
            agent.stop.cancel();
            break;
        }
        let was_waiting = yields && !welcomed;
        yields = matches!(&end, Err(error) if error.is::<Replaced>()) || was_waiting;
        failures = if yields {
            u32::MAX
        } else if welcomed {
            1
        } else {
            failures.saturating_add(1)
        };
        let wait = agent.settings.back_off.wait(failures, random());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let reason = match end {
            Ok(()) => "closed".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let name = &agent.settings.name;
        if was_waiting {
            debug!(%name, reason, wait_ms, "Still waiting for the other agent to disconnect");
        } else if yields {
            warn!(%name, wait_ms, "Another agent with this name and key has taken over, waiting until it is gone");
        } else {
            warn!(
                reason,
                wait_ms, "Lost the connection to the gateway, reconnecting"
            );
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = agent.stop.cancelled() => break,
        }
    }
    agent.tasks.close();
    agent.tasks.wait().await;
    over
}

/// Whether `error` comes again whenever the agent does. A certificate that was good once may be again, and one that is out of its time
/// is replaced.
fn hopeless(error: &anyhow::Error, name: &AgentName, ever_welcomed: bool) -> Option<Hopeless> {
    if let Some(refused) = error.downcast_ref::<RefusedByGateway>() {
        return match refused.0.as_str() {
            NOT_KNOWN => Some(Hopeless::NotKnown(name.clone())),
            REVOKED => Some(Hopeless::Revoked(name.clone())),
            _ => None,
        };
    }
    let problem = super::untrusted(error)?;
    let passes = matches!(
        problem,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    );
    (!passes && !ever_welcomed).then(|| Hopeless::Certificate(problem.to_string()))
}

/// The gateway has closed the channel to one that it will not have.
#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
struct RefusedByGateway(String);

/// The gateway has closed the channel because the agent has another one.
#[derive(Debug, thiserror::Error)]
#[error("another agent has this name and key")]
struct Replaced;

/// The gateway wants a signature for somebody else.
#[derive(Debug, thiserror::Error)]
#[error(
    "the gateway calls itself {said:?} and this agent belongs to {own:?}; if it was renamed, say so by --instance"
)]
struct OtherGateway {
    own: String,
    said: String,
}

/// What a Close frame says.
fn closed(frame: &CloseFrame) -> anyhow::Error {
    if frame.code == CloseCode::from(REPLACED) {
        Replaced.into()
    } else if frame.code == CloseCode::Policy {
        RefusedByGateway(frame.reason.as_str().to_owned()).into()
    } else {
        anyhow::anyhow!("closed: {}", frame.reason)
    }
}

/// One signaling channel, from its opening to its end.
async fn channel(agent: &Arc<Agent>, yields: bool, welcomed: &mut bool) -> anyhow::Result<()> {
    let mut socket = agent.settings.site.signaling().await?;
    let log_on = timeout(limits::IDENTIFY_TIMEOUT, log_on(agent, yields, &mut socket));
    let gateway = log_on.await.context("the gateway is silent")??;
    *welcomed = true;
    info!(name = %agent.settings.name, %gateway, "Connected");
    // Sessions that outlive the channel have nobody to answer; what they send goes nowhere.
    let (outbox, mut outgoing) = mpsc::channel::<FromAgent>(limits::AGENT_QUEUE);
    loop {
        let message = tokio::select! {
            message = outgoing.recv() => {
                if let Some(message) = message {
                    socket.send(Message::text(message.to_json())).await?;
                }
                continue;
            }
            message = timeout(SILENCE, socket.next()) => message.context("the gateway is silent")?,
        };
        match message {
            Some(Ok(Message::Text(text))) => match FromGateway::parse(&text) {
                Ok(message) => on_gateway_message(agent, &gateway, message, &outbox).await,
                // One of a later version may say more.
                Err(error) => debug!(%error, "The gateway said what is no message"),
            },
            Some(Ok(
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Binary(_),
            )) => {}
            Some(Ok(Message::Close(Some(frame)))) => return Err(closed(&frame)),
            Some(Ok(Message::Close(None))) | None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// Answers the challenge; returns what the gateway calls itself.
async fn log_on(
    agent: &Agent,
    yields: bool,
    socket: &mut WebSocketStream<Box<dyn Duplex>>,
) -> anyhow::Result<String> {
    let mut name = None;
    loop {
        let message = match socket.next().await {
            Some(Ok(Message::Text(text))) => FromGateway::parse(&text)?,
            Some(Ok(Message::Close(Some(frame)))) => return Err(closed(&frame)),
            Some(Ok(Message::Close(None))) | None => bail!("closed before the log-on"),
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(error.into()),
        };
        match (message, name.take()) {
            (FromGateway::Challenge { gateway, nonce }, None) => {
                let own = agent.gateway.get_or_init(|| gateway.clone());
                if *own != gateway {
                    return Err(OtherGateway {
                        own: own.clone(),
                        said: gateway,
                    }
                    .into());
                }
                let logon = AgentLogon {
                    aud: gateway.clone(),
                    sub: agent.settings.name.clone(),
                    nonce,
                };
                let statement = statement::sign(&agent.settings.key, LOGON_TYPE, &logon)?;
                let proof = FromAgent::Proof { statement, yields };
                socket.send(Message::text(proof.to_json())).await?;
                name = Some(gateway);
            }
            (FromGateway::Welcome, Some(gateway)) => return Ok(gateway),
            _ => bail!("the gateway does not log on as agents do"),
        }
    }
}

async fn on_gateway_message(
    agent: &Arc<Agent>,
    gateway: &str,
    message: FromGateway,
    outbox: &mpsc::Sender<FromAgent>,
) {
    match message {
        FromGateway::Offer {
            offer,
            target,
            candidates,
            dial,
        } => {
            let id = offer.id;
            let Ok(permit) = Arc::clone(&agent.sessions).try_acquire_owned() else {
                decline(outbox, id, Decline::Busy).await;
                return;
            };
            let (choose, chosen) = oneshot::channel();
            agent.choices().insert(id, choose);
            let session = OfferedSession {
                gateway: gateway.to_owned(),
                offer,
                target,
                dial,
                candidates,
                outbox: outbox.clone(),
            };
            let agent = Arc::clone(agent);
            let span = info_span!("session", jet_aid = %id);
            let tasks = agent.tasks.clone();
            let meet = async move {
                let _permit = permit;
                tokio::select! {
                    () = session.meet(&agent, chosen) => {}
                    () = agent.stop.cancelled() => {}
                }
                agent.choices().remove(&id);
            };
            tasks.spawn(meet.instrument(span));
        }
        FromGateway::Complete { id, complete } => {
            if let Some(choose) = agent.choices().remove(&id) {
                // The session may have found out by itself.
                let _ = choose.send(complete.candidate.id);
            }
        }
        FromGateway::Challenge { .. } | FromGateway::Welcome => {}
    }
}

impl Agent {
    fn leads_to(&self, target: &TargetAddr) -> bool {
        self.settings.targets.contains(target)
    }

    fn choices(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Uuid>>> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One offer and what becomes of it.
struct OfferedSession {
    gateway: String,
    offer: Offer,
    target: TargetAddr,
    dial: Dial,
    candidates: Vec<Candidate>,
    outbox: mpsc::Sender<FromAgent>,
}

/// A candidate that carries the session.
struct Carrier {
    id: Uuid,
    stream: Box<dyn Duplex>,
    early: Vec<u8>,
}

/// Why a target is not reached for a session that has its candidate.
#[derive(Debug, thiserror::Error)]
enum NotReached {
    #[error("the client was not let in")]
    NotLetIn,
    #[error("the client has said nothing")]
    Silent,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Declined(#[from] Decline),
}

/// Why a candidate carries nothing.
#[derive(Debug, thiserror::Error)]
enum NotChosen {
    #[error(transparent)]
    Statement(#[from] MintError),
    #[error("{0:#}")]
    Refused(anyhow::Error),
    #[error("closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Carrier {
    /// Connects to the target once the first bytes for it are there.
    async fn reach(&mut self, agent: &Agent, target: &TargetAddr) -> Result<TcpStream, NotReached> {
        if self.early.is_empty() {
            let first = timeout(CHOICE_TIMEOUT, self.stream.read_buf(&mut self.early)).await;
            match first {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => return Err(NotReached::NotLetIn),
                Ok(Err(error)) => return Err(error.into()),
                Err(_elapsed) => return Err(NotReached::Silent),
            }
        }
        Ok(reach(agent, target).await?)
    }
}

impl OfferedSession {
    async fn meet(mut self, agent: &Arc<Agent>, chosen: oneshot::Receiver<Uuid>) {
        let target = self.target.clone();
        let reached = match self.dial {
            Dial::BeforeAnswer => reach(agent, &target).await.map(Some),
            Dial::AtFirstBytes if agent.leads_to(&target) => Ok(None),
            Dial::AtFirstBytes => Err(Decline::Target),
        };
        let reached = match reached {
            Ok(reached) => reached,
            Err(reason) => {
                info!(%target, reason = %reason, "Offer declined");
                decline(&self.outbox, self.offer.id, reason).await;
                return;
            }
        };
        let (site, offer) = (&agent.settings.site, &self.offer);
        self.candidates.retain(|candidate| {
            offer.admits(candidate.url.transport) && site.has_relay(&candidate.url)
        });
        let hosts = if offer.admits(Transport::Tcp) {
            host::gather(&agent.settings.host_addresses).await
        } else {
            Vec::new()
        };
        let carrier = timeout(CHOICE_TIMEOUT, self.carrier(agent, hosts, chosen));
        let Ok(Some(mut carrier)) = carrier.await else {
            debug!(%target, "No client connected to the candidates in time");
            return;
        };
        let mut stream = match reached {
            Some(stream) => stream,
            None => match carrier.reach(agent, &target).await {
                Ok(stream) => stream,
                Err(error) => {
                    info!(%target, reason = error.to_string(), "Session not opened");
                    return;
                }
            },
        };
        info!(%target, candidate = %carrier.id, "Session opened");
        let ended = bridge(&mut *carrier.stream, &mut stream, &carrier.early).await;
        match ended {
            Ok((to_target, to_client)) => info!(to_target, to_client, "Session closed"),
            Err(error) => info!(%error, "Session closed"),
        }
    }

    /// Accepts on all candidates, and answers; the one that is chosen.
    async fn carrier(
        &self,
        agent: &Arc<Agent>,
        hosts: Vec<HostCandidate>,
        mut chosen: oneshot::Receiver<Uuid>,
    ) -> Option<Carrier> {
        let all = self.candidates.len().saturating_add(hosts.len());
        let (accepted, mut accepts) = mpsc::channel(all.max(1));
        let mut waiting = JoinSet::new();
        let mut go = HashMap::new();
        for candidate in &self.candidates {
            let chosen = CancellationToken::new();
            go.insert(candidate.id, chosen.clone());
            let path = JetPath {
                operation: Operation::Accept,
                association: self.offer.id,
                candidate: candidate.id,
            };
            let acceptance = Acceptance {
                aud: self.gateway.clone(),
                sub: agent.settings.name.clone(),
                jet_aid: self.offer.id,
                candidate: candidate.id,
            };
            let waits = wait(
                Arc::clone(agent),
                candidate.clone(),
                (path, acceptance),
                accepted.clone(),
                chosen,
            );
            waiting.spawn(waits.in_current_span());
        }
        drop(accepted);
        // They are there already; the relay's are yet to be accepted.
        let mut answer: Vec<Candidate> = hosts.iter().map(|host| host.candidate.clone()).collect();
        let association = self.offer.id;
        for host in hosts {
            let chosen = CancellationToken::new();
            let id = host.candidate.id;
            go.insert(id, chosen.clone());
            waiting.spawn(async move {
                let stream = host.met(association).await?;
                until_chosen(id, Box::new(stream), &chosen).await
            });
        }
        let mut answered = false;
        let mut failed = 0_usize;
        let settle = sleep(SETTLE);
        tokio::pin!(settle);
        loop {
            if failed >= all {
                if !answered {
                    decline(&self.outbox, self.offer.id, Decline::Candidates).await;
                }
                return None;
            }
            tokio::select! {
                biased;
                Some(candidate) = accepts.recv() => {
                    if answer.is_empty() {
                        settle.as_mut().reset(tokio::time::Instant::now() + SETTLE);
                    }
                    if all == 1 && let Some(go) = go.get(&candidate.id) {
                        go.cancel();
                    }
                    answer.push(candidate);
                }
                Some(joined) = waiting.join_next() => match joined {
                    Ok(Ok(carrier)) => return Some(carrier),
                    Ok(Err(error)) => {
                        debug!(reason = error.to_string(), "Candidate disconnected");
                        failed = failed.saturating_add(1);
                    }
                    Err(_ended) => failed = failed.saturating_add(1),
                },
                choice = &mut chosen, if !chosen.is_terminated() => {
                    if let Some(go) = choice.ok().and_then(|id| go.get(&id)) {
                        go.cancel();
                    }
                }
                () = &mut settle, if !answered && !answer.is_empty() => {
                    self.answer(std::mem::take(&mut answer)).await;
                    answered = true;
                }
                else => return None,
            }
            if !answered && !answer.is_empty() && answer.len().saturating_add(failed) >= all {
                self.answer(std::mem::take(&mut answer)).await;
                answered = true;
            }
        }
    }

    async fn answer(&self, mut candidates: Vec<Candidate>) {
        // In the order of the offer, whichever was the fastest.
        candidates.sort_by_key(|candidate| candidate.url.transport);
        let answer = Answer::to(&self.offer, candidates);
        // A channel that is gone takes no answer.
        let _ = self.outbox.send(FromAgent::Answer { answer }).await;
    }
}

async fn reach(agent: &Agent, target: &TargetAddr) -> Result<TcpStream, Decline> {
    if !agent.leads_to(target) {
        return Err(Decline::Target);
    }
    let connect = TcpStream::connect((target.host.as_str(), target.port));
    match timeout(TARGET_TIMEOUT, connect).await {
        Ok(Ok(stream)) => {
            // A stream that ends at once is seen by whoever writes to it.
            let _ = tune(&stream);
            Ok(stream)
        }
        Ok(Err(_)) | Err(_) => Err(Decline::Unreachable),
    }
}

/// Accepts on a candidate and waits there until it is chosen.
async fn wait(
    agent: Arc<Agent>,
    mut candidate: Candidate,
    (path, acceptance): (JetPath, Acceptance),
    accepted: mpsc::Sender<Candidate>,
    chosen: CancellationToken,
) -> Result<Carrier, NotChosen> {
    let id = candidate.id;
    let settings = &agent.settings;
    let bearer = statement::sign(&settings.key, ACCEPT_TYPE, &acceptance)?;
    let granted = settings.site.candidate(&candidate.url, path, &bearer).await;
    let Granted { stream, instance } = granted.map_err(NotChosen::Refused)?;
    if let Some(instance) = instance {
        candidate.real(&instance);
    }
    // The other end is gone when the session has its candidate.
    let _ = accepted.send(candidate).await;
    until_chosen(id, stream, &chosen).await
}

/// The candidate, once its first bytes or the client's word have chosen it.
async fn until_chosen(
    id: Uuid,
    mut stream: Box<dyn Duplex>,
    chosen: &CancellationToken,
) -> Result<Carrier, NotChosen> {
    let mut early = Vec::with_capacity(EARLY_BYTES);
    let first = tokio::select! {
        first = stream.read_buf(&mut early) => first,
        () = chosen.cancelled() => return Ok(Carrier { id, stream, early }),
    };
    match first {
        Ok(1..) => Ok(Carrier { id, stream, early }),
        Ok(0) => Err(NotChosen::Closed),
        Err(error) => Err(error.into()),
    }
}

/// Read at once of what comes first.
const EARLY_BYTES: usize = 16 * 1024;

async fn decline(outbox: &mpsc::Sender<FromAgent>, id: Uuid, reason: Decline) {
    // A channel that is gone takes no answer.
    let _ = outbox.send(FromAgent::Declined { id, reason }).await;
}

/// Where the system has no randomness, agents come back together.
fn random() -> u8 {
    let mut random = [0_u8; 1];
    match openssl::rand::rand_bytes(&mut random) {
        Ok(()) => random.first().copied().unwrap_or_default(),
        Err(_) => u8::MAX,
    }
}
