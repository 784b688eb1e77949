//! The live sessions: what can be listed, ended, and must be accounted for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::OperatorName;
use crate::live::legs::Legs;
use crate::refusal::Refusal;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_io::reached::Reached;
use jetway_jet::rendezvous::RendezvousError;
use jetway_policy::shares::{Owner, Shares};
use jetway_relay::Traffic;
use jetway_stage::inspector::SharedStatistics;
use jetway_store::usage::Spent;
use jetway_token::revocation::{Revocations, RevokingClaim};
use jetway_token::target::TargetAddr;
use jetway_token::{Token, TokenId};

/// Why a live session was ended from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// A revocation rule matched a token that takes part in it.
    Revoked(RevokingClaim),
    /// An operator said so.
    Operator(OperatorName),
    /// The association that it is of was deleted, by a peer or because its time is over.
    Association,
    /// The process stops.
    Shutdown,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionPhase {
    /// The target is being reached.
    Connecting,
    /// Bytes are relayed.
    Relaying,
}

/// What is known of a session that the gateway stands inside of.
#[derive(Debug)]
pub struct InspectionDetails {
    /// What was agreed on both legs.
    pub legs: Legs,
    /// What has happened so far.
    pub statistics: SharedStatistics,
}

/// One live session.
#[derive(Debug)]
pub struct Session {
    /// Its own id: several sessions may belong to one token, one after the other.
    pub id: SessionId,
    /// The token it was opened with.
    pub token: Token,
    /// Where the client is.
    pub peer: SocketAddr,
    /// When it was authorised.
    pub started_at: UnixTime,
    /// Bytes so far.
    pub traffic: Traffic,
    /// Tokens of others that take part in it: the acceptor's, and the one that its association was created with.
    others: Mutex<Vec<Token>>,
    inside: OnceLock<InspectionDetails>,
    phase: Mutex<SessionPhase>,
    target: OnceLock<(TargetAddr, SocketAddr)>,
    handshake: OnceLock<Duration>,
    cause: OnceLock<EndCause>,
    cancel: CancellationToken,
    spent: Spent,
}

impl Session {
    /// Ends the session; the first cause is the one that is reported.
    pub fn end(&self, cause: EndCause) {
        match cause {
            // Or the client, which comes back by itself, would undo it at once.
            EndCause::Operator(_) => self.spent.set(),
            EndCause::Revoked(_) | EndCause::Association | EndCause::Shutdown => {}
        }
        let _first = self.cause.set(cause);
        self.cancel.cancel();
    }

    /// Set when it was ended so that its token is to open no other one.
    #[must_use]
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Why it was ended from here, if it was.
    #[must_use]
    pub fn end_cause(&self) -> Option<&EndCause> {
        self.cause.get()
    }

    /// Fires when the session is to end.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// What ended the session before it was established.
    #[must_use]
    pub fn cancellation(&self) -> Refusal {
        match self.end_cause() {
            Some(EndCause::Revoked(rule)) => Refusal::Revoked(rule.clone()),
            Some(EndCause::Operator(name)) => Refusal::Ended(name.clone()),
            Some(EndCause::Association) => RendezvousError::UnknownAssociation.into(),
            Some(EndCause::Shutdown) | None => Refusal::ShuttingDown,
        }
    }

    /// Notes the token of somebody else who takes part: when it is revoked, the session ends.
    pub fn join(&self, token: Token) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.push(token);
    }

    /// The first token of those that take part which `rules` revoke, and by which rule.
    #[must_use]
    pub fn revoked_by(&self, rules: &Revocations) -> Option<(TokenId, RevokingClaim)> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&self.token)
            .chain(others.iter())
            .find_map(|token| {
                let rule = rules.revokes(&token.id, &token.claims)?;
                Some((token.id.clone(), rule))
            })
    }

    /// Notes that the target was reached and bytes are relayed from now on. `handshake` is how long its TCP handshake took,
    /// where it was the gateway that connected.
    pub fn relaying(&self, target: TargetAddr, address: SocketAddr, handshake: Option<Duration>) {
        let _only = self.target.set((target, address));
        if let Some(handshake) = handshake {
            let _only = self.handshake.set(handshake);
        }
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = SessionPhase::Relaying;
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> SessionPhase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the gateway knows of the inside.
    pub fn stand_inside(&self, inside: InspectionDetails) {
        let _only = self.inside.set(inside);
    }

    /// What the gateway knows of the inside; `None` of an opaque session.
    #[must_use]
    pub fn inside(&self) -> Option<&InspectionDetails> {
        self.inside.get()
    }

    /// How long the TCP handshake with the target took, once connected.
    #[must_use]
    pub fn handshake(&self) -> Option<Duration> {
        self.handshake.get().copied()
    }

    /// The target in use and its address, once connected.
    #[must_use]
    pub fn target(&self) -> Option<&(TargetAddr, SocketAddr)> {
        self.target.get()
    }
}

#[derive(Debug)]
struct SessionTable {
    sessions: HashMap<SessionId, Arc<Session>>,
    shares: Shares,
    closed: bool,
    /// By sessions that are over.
    moved: Moved,
}

/// Bytes that sessions have moved since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From clients to targets.
    pub to_target: u64,
    /// From targets to clients.
    pub to_client: u64,
}

impl Moved {
    fn add(&mut self, traffic: &Traffic) {
        let Self {
            to_target,
            to_client,
        } = self;
        *to_target = to_target.saturating_add(traffic.to_target.load(Ordering::Relaxed));
        *to_client = to_client.saturating_add(traffic.to_client.load(Ordering::Relaxed));
    }
}

/// All live sessions of this process.
#[derive(Debug)]
pub struct Registry {
    table: Mutex<SessionTable>,
    reached: Reached,
    /// Fires when all sessions are to end, and what is left of connections whose session is over.
    cut: CancellationToken,
}

/// A session in the registry; dropping it takes it out.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    session: Arc<Session>,
}

impl Registry {
    /// An empty registry that lets one address have `sessions_per_address`.
    #[must_use]
    pub fn new(sessions_per_address: usize) -> Self {
        Self {
            table: Mutex::new(SessionTable {
                sessions: HashMap::new(),
                shares: Shares::new(limits::SESSIONS_PER_TOKEN, sessions_per_address),
                closed: false,
                moved: Moved::default(),
            }),
            reached: Reached::new("limits.sessions_per_address"),
            cut: CancellationToken::new(),
        }
    }

    /// Adds a session. It is added before revocations are asked, so that a rule that arrives in between ends it.
    ///
    /// # Errors
    /// The address, or the token, has too many sessions, or the process is stopping.
    pub fn register(
        self: &Arc<Self>,
        id: SessionId,
        token: Token,
        peer: SocketAddr,
    ) -> Result<Registered, Refusal> {
        let mut table = self.lock();
        if table.closed {
            return Err(Refusal::ShuttingDown);
        }
        let owner = Owner::new(Some(token.id.clone()), Some(peer.ip()));
        if let Err(crowded) = table.shares.enter(&owner) {
            drop(table);
            self.reached.by(&crowded);
            return Err(Refusal::TooManySessions);
        }
        let session = Arc::new(Session {
            id,
            token,
            peer,
            started_at: clock::unix_now(),
            traffic: Traffic::default(),
            others: Mutex::default(),
            inside: OnceLock::new(),
            phase: Mutex::new(SessionPhase::Connecting),
            target: OnceLock::new(),
            handshake: OnceLock::new(),
            cause: OnceLock::new(),
            cancel: CancellationToken::new(),
            spent: Spent::default(),
        });
        table.sessions.insert(id, Arc::clone(&session));
        Ok(Registered {
            registry: Arc::clone(self),
            session,
        })
    }

    /// Ends every session in which somebody takes part whose token `rules` revoke; returns their ids, those tokens and the rules.
    pub fn end_revoked(&self, rules: &Revocations) -> Vec<(SessionId, TokenId, RevokingClaim)> {
        let mut ended = Vec::new();
        for session in self.list() {
            if let Some((token, rule)) = session.revoked_by(rules) {
                session.end(EndCause::Revoked(rule.clone()));
                ended.push((session.id, token, rule));
            }
        }
        ended
    }

    /// Takes no more sessions.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Ends all sessions, and what is left of the connections of those that are over.
    pub fn end_all(&self, cause: &EndCause) {
        self.cut.cancel();
        for session in self.list() {
            session.end(cause.clone());
        }
    }

    /// The live sessions.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// What all sessions have moved, those that are over and those that are not.
    #[must_use]
    pub fn moved(&self) -> Moved {
        let table = self.lock();
        let mut moved = table.moved;
        for session in table.sessions.values() {
            moved.add(&session.traffic);
        }
        moved
    }

    fn lock(&self) -> MutexGuard<'_, SessionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    /// Fires when connections are not to outlive their session any more: the process is about to end.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        self.registry.cut.clone()
    }

    /// The session itself, for those who look at it after its end.
    #[must_use]
    pub fn shared(&self) -> &Arc<Session> {
        &self.session
    }
}

impl std::ops::Deref for Registered {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        table.sessions.remove(&self.session.id);
        table.moved.add(&self.session.traffic);
        let Session { token, peer, .. } = &*self.session;
        let owner = Owner::new(Some(token.id.clone()), Some(peer.ip()));
        table.shares.leave(&owner);
    }
}
