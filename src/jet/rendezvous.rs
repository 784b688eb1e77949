//! [JET-PROTO] 2.3.1 Abstract data model: associations, their candidates, and who may meet whom.
//!
//! A candidate goes this way; `leave` leads back where nothing of the application has passed yet:
//!
//! ```text
//! Gathered --accept--> Accepted --connect--> Connected --select--> Selected --ended--> Closed
//!     ^                  |  ^                  |    |
//!     +-- acceptor left -+  +- connector left -+    +-- acceptor left --> Gathered
//! ```
//!
//! - **One acceptor.** A second one is refused, so that nobody who knows two ids can take the place of the first.
//! - **One selection.** The first bytes of the application select their candidate, or the client's word does
//!   ([`Complete`](crate::message::Complete)); with `jet_ct: close`, where tests are made on connections of their own,
//!   connecting does. All other candidates are closed, and their peers are told to go.
//! - **Two UUIDs are no secret.** An association that was created with a token demands a token of whoever accepts,
//!   connects, tests or selects.
//! - **To be a peer is not to decide.** An association is gathered, read, completed and deleted by who has created it, by whose
//!   token names it, or by an operator. Any other token proves no more than none does.
//! - **Nothing stays.** An association of which no candidate has carried a byte is forgotten after a time, and so is one
//!   whose session is over.
//! - **Within its token's reconnect window a session may come again**: an association that is over goes back to Gathered for whoever
//!   may be a peer of it ([`reopen`](Rendezvous::reopen)).
//!
//! Peers are numbers here. Every operation returns the peers that are to be closed; whoever holds their connections
//! closes them.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use crate::candidate::{CandidateUrl, Transport};
use crate::message;
use jetway_base::address::AddressGroup;
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_token::TokenId;
use jetway_token::application_protocol::ApplicationProtocol;
use jetway_token::claims::ConnectionTest;

/// A peer's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// What holds for an association; it was created with this and keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who may be a peer of it.
    pub access: Access,
    /// `jet_ap`.
    pub application_protocol: Option<ApplicationProtocol>,
    /// `jet_ct`.
    pub connection_test: ConnectionTest,
}

/// Who may be a peer of an association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever knows its id and that of a candidate.
    Anyone,
    /// The bearer of a token whose `jet_aid` is the association's id.
    Association,
    /// The bearer of the token that it was created with, which names no association.
    Token(TokenId),
}

/// Who has created an association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The bearer of this token, or an operator whose word stands in the place of one.
    Token(TokenId),
    /// Somebody who had nothing to show, at this address.
    Stranger(AddressGroup),
}

/// What a peer has shown.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// Nothing.
    Nothing,
    /// Nothing, where associations need none (`jet.authentication = false`): where it is.
    Stranger(AddressGroup),
    /// A rendezvous token, verified.
    Token {
        /// Its id.
        id: &'a TokenId,
        /// Its `jet_aid`.
        jet_aid: Option<Uuid>,
    },
    /// The statement of an agent that was offered this association.
    Agent {
        /// The association.
        association: Uuid,
    },
    /// An operator's API key, or a decision that was made elsewhere.
    Operator,
}

/// How much there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RendezvousLimits {
    /// Associations at one time.
    pub associations: usize,
    /// From the last accept, connect or choice (or the creation) until a candidate must have carried a byte.
    pub unused: Duration,
    /// How long the figures of a session that is over can be read.
    pub ended: Duration,
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousError {
    /// No such association.
    #[error("no such association")]
    UnknownAssociation,
    /// No such candidate in the association.
    #[error("no such candidate in this association")]
    UnknownCandidate,
    /// It demands a token.
    #[error("this association demands a token")]
    NoToken,
    /// The token is for another association.
    #[error("the token is not for this association")]
    OtherToken,
    /// It is for whoever has created the association.
    #[error("the association was created with another token")]
    OtherOwner,
    /// The id is taken, by an association with other claims.
    #[error("the association exists with other claims")]
    OtherTerms,
    /// There is an acceptor.
    #[error("the candidate has an acceptor already")]
    Accepted,
    /// There is a connector.
    #[error("the candidate is connected already")]
    Connected,
    /// There is no acceptor.
    #[error("no acceptor is connected to this candidate")]
    NotAccepted,
    /// There is no connector.
    #[error("the candidate is not connected")]
    NotConnected,
    /// A candidate of the association was selected, and this is not it.
    #[error("another candidate was selected")]
    Selected,
    /// The session of the association is over.
    #[error("the association's session is over")]
    Ended,
    /// More associations or candidates than there may be.
    #[error("too many associations")]
    Full,
}

/// How far a candidate has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CandidateState {
    /// Nobody is there.
    Gathered,
    /// The server side waits.
    Accepted,
    /// Both sides are there, and nothing of the application has passed.
    Connected,
    /// It carries the session.
    Selected,
    /// It is not usable any more.
    Closed,
}

/// A candidate, to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateView {
    /// Its id.
    pub id: Uuid,
    /// What its URL says; a peer may use another.
    pub transport: Transport,
    /// How far it has come.
    pub state: CandidateState,
}

/// An association, to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssociationView {
    /// Its id.
    pub id: Uuid,
    /// What holds for it.
    pub terms: Terms,
    /// When it was created.
    pub created_at: UnixTime,
    /// Its candidates, as they were gathered.
    pub candidates: Vec<CandidateView>,
}

/// Both moments of now: one to count from, one to show.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back.
    pub instant: Instant,
    /// What calendars say.
    pub unix: UnixTime,
}

/// What a successful connect means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// The candidate.
    pub candidate: Uuid,
    /// Whom the connector meets.
    pub acceptor: PeerId,
    /// Whether the candidate was selected by it; then `close` may have peers.
    pub selected: bool,
    /// Peers of other candidates, to be closed.
    pub close: Vec<PeerId>,
}

/// All associations.
#[derive(Debug)]
pub struct Rendezvous {
    limits: RendezvousLimits,
    associations: HashMap<Uuid, Association>,
    /// Where each peer is.
    peers: HashMap<PeerId, (Uuid, Uuid)>,
}

#[derive(Debug)]
struct Association {
    terms: Terms,
    created_at: UnixTime,
    /// When a candidate was last accepted, connected or chosen.
    touched: Instant,
    owner: Owner,
    progress: Progress,
    /// How long after its session it may be used again.
    reconnect: Duration,
    /// In the order in which they were gathered.
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing is selected.
    Open,
    /// This candidate is, by the client's word; nothing has passed.
    Chosen(Uuid),
    /// This candidate is, and bytes of the application have arrived on it.
    Selected(Uuid),
    /// The session was over at this moment.
    Ended(Instant),
}

#[derive(Debug)]
struct Candidate {
    id: Uuid,
    transport: Transport,
    peers: Peers,
}

/// Who is at a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peers {
    Gathered,
    Accepted(PeerId),
    Connected(PeerId, PeerId),
    Selected(PeerId, PeerId),
    Closed,
}

impl CandidateView {
    /// The candidate as messages have it, by the one of `urls` that has its transport.
    #[must_use]
    pub fn by_transport_of(&self, urls: &[CandidateUrl]) -> Option<message::Candidate> {
        let url = urls.iter().find(|url| url.transport == self.transport)?;
        Some(message::Candidate {
            id: self.id,
            url: url.clone(),
        })
    }
}

impl Rendezvous {
    /// No associations.
    #[must_use]
    pub fn new(limits: RendezvousLimits) -> Self {
        Self {
            limits,
            associations: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    /// Creates an association. Doing it again with the same terms changes nothing. Returns whether it is new.
    ///
    /// # Errors
    /// The id is taken with other terms, or there are too many.
    pub fn create(
        &mut self,
        id: Uuid,
        terms: Terms,
        owner: Owner,
        now: Now,
    ) -> Result<bool, RendezvousError> {
        if let Some(association) = self.associations.get(&id) {
            if matches!(association.progress, Progress::Ended(_)) {
                return Err(RendezvousError::Ended);
            }
            return if association.terms == terms {
                Ok(false)
            } else {
                Err(RendezvousError::OtherTerms)
            };
        }
        if self.associations.len() >= self.limits.associations {
            return Err(RendezvousError::Full);
        }
        let association = Association {
            terms,
            owner,
            created_at: now.unix,
            touched: now.instant,
            progress: Progress::Open,
            reconnect: Duration::ZERO,
            candidates: Vec::new(),
        };
        self.associations.insert(id, association);
        Ok(true)
    }

    /// The candidates of an association: one for each of `transports`. Asked again, the answer is the same, so that both
    /// peers can ask. `new_id` makes a random id.
    ///
    /// # Errors
    /// It does not exist or is over, the proof does not fit, or there would be too many candidates.
    pub fn gather(
        &mut self,
        id: Uuid,
        transports: &[Transport],
        proof: Proof<'_>,
        mut new_id: impl FnMut() -> Uuid,
    ) -> Result<Vec<CandidateView>, RendezvousError> {
        let association = self.managed(id, proof)?;
        if matches!(association.progress, Progress::Ended(_)) {
            return Err(RendezvousError::Ended);
        }
        for &transport in transports {
            let mut known = association.candidates.iter();
            if known.any(|candidate| candidate.transport == transport) {
                continue;
            }
            if association.candidates.len() >= limits::JET_CANDIDATES {
                return Err(RendezvousError::Full);
            }
            association.candidates.push(Candidate {
                id: new_id(),
                transport,
                peers: Peers::Gathered,
            });
        }
        Ok(association.candidates.iter().map(Candidate::view).collect())
    }

    /// Lets `peer` be the server side of a candidate.
    ///
    /// # Errors
    /// It has one, it is unknown, or the proof does not fit.
    pub fn accept(
        &mut self,
        association: Uuid,
        candidate: Uuid,
        peer: PeerId,
        proof: Proof<'_>,
        now: Now,
    ) -> Result<(), RendezvousError> {
        let found = self.admitted(association, proof)?;
        let place = found.candidate(candidate)?;
        match place.peers {
            Peers::Gathered => place.peers = Peers::Accepted(peer),
            Peers::Accepted(_) | Peers::Connected(..) | Peers::Selected(..) => {
                return Err(RendezvousError::Accepted);
            }
            Peers::Closed => return Err(found.progress.closed()),
        }
        found.touched = now.instant;
        self.peers.insert(peer, (association, candidate));
        Ok(())
    }

    /// Lets `peer` be the client side of a candidate, or of the first one that has an acceptor.
    ///
    /// # Errors
    /// Nobody is there, somebody else has connected, it is unknown, or the proof does not fit.
    pub fn connect(
        &mut self,
        association: Uuid,
        candidate: Option<Uuid>,
        peer: PeerId,
        proof: Proof<'_>,
        now: Now,
    ) -> Result<Meeting, RendezvousError> {
        let found = self.admitted(association, proof)?;
        let candidate = match candidate {
            Some(candidate) => candidate,
            None => found.any_accepted()?,
        };
        let place = found.candidate(candidate)?;
        let acceptor = match place.peers {
            Peers::Accepted(acceptor) => acceptor,
            Peers::Gathered => return Err(RendezvousError::NotAccepted),
            Peers::Connected(..) | Peers::Selected(..) => return Err(RendezvousError::Connected),
            Peers::Closed => return Err(found.progress.closed()),
        };
        place.peers = Peers::Connected(acceptor, peer);
        found.touched = now.instant;
        let selected = found.terms.connection_test == ConnectionTest::Close;
        self.peers.insert(peer, (association, candidate));
        let close = if selected {
            self.choose(association, candidate, now)?
        } else {
            Vec::new()
        };
        Ok(Meeting {
            candidate,
            acceptor,
            selected,
            close,
        })
    }

    /// Whether a candidate can be used as far as the gateway is concerned.
    ///
    /// # Errors
    /// It is unknown or closed, or the proof does not fit.
    pub fn test(
        &mut self,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
    ) -> Result<(), RendezvousError> {
        let found = self.admitted(association, proof)?;
        match found.candidate(candidate)?.peers {
            Peers::Gathered | Peers::Accepted(_) | Peers::Connected(..) | Peers::Selected(..) => {
                Ok(())
            }
            Peers::Closed => Err(found.progress.closed()),
        }
    }

    /// Selects a candidate because bytes of the application have arrived on it; returns the peers to be closed.
    /// Selecting the selected one changes nothing.
    ///
    /// # Errors
    /// Another one was selected, or it is not connected.
    pub fn select(
        &mut self,
        association: Uuid,
        candidate: Uuid,
    ) -> Result<Vec<PeerId>, RendezvousError> {
        self.settle(association, candidate, Progress::Selected(candidate))
    }

    fn choose(
        &mut self,
        association: Uuid,
        candidate: Uuid,
        now: Now,
    ) -> Result<Vec<PeerId>, RendezvousError> {
        let close = self.settle(association, candidate, Progress::Chosen(candidate))?;
        self.found(association)?.touched = now.instant;
        Ok(close)
    }

    fn settle(
        &mut self,
        association: Uuid,
        candidate: Uuid,
        progress: Progress,
    ) -> Result<Vec<PeerId>, RendezvousError> {
        let found = self.found(association)?;
        match found.progress {
            Progress::Selected(selected) if selected == candidate => return Ok(Vec::new()),
            Progress::Chosen(chosen) if chosen == candidate => {
                found.progress = progress;
                return Ok(Vec::new());
            }
            Progress::Chosen(_) | Progress::Selected(_) => return Err(RendezvousError::Selected),
            Progress::Ended(_) => return Err(RendezvousError::Ended),
            Progress::Open => {}
        }
        let place = found.candidate(candidate)?;
        let Peers::Connected(acceptor, connector) = place.peers else {
            return Err(RendezvousError::NotConnected);
        };
        place.peers = Peers::Selected(acceptor, connector);
        found.progress = progress;
        let others = found.candidates.iter_mut();
        let others = others.filter(|other| other.id != candidate);
        let close: Vec<PeerId> = others.flat_map(Candidate::close).collect();
        self.forget(&close);
        Ok(close)
    }

    /// Selects a candidate because the client says so ([JET-PROTO] 2.2.4.3).
    ///
    /// # Errors
    /// As [`select`](Self::select), and where the proof does not fit.
    pub fn complete(
        &mut self,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
        now: Now,
    ) -> Result<Vec<PeerId>, RendezvousError> {
        self.managed(association, proof)?;
        self.choose(association, candidate, now)
    }

    /// `peer` is gone. Where the candidate was selected, the session is over, and the other side is closed by whoever
    /// relays; otherwise an acceptor that is left waits again, and a connector that is left is to be closed.
    pub fn leave(&mut self, peer: PeerId, now: Now) -> Option<PeerId> {
        let (association, candidate) = self.peers.remove(&peer)?;
        let found = self.associations.get_mut(&association)?;
        let place = found.candidate(candidate).ok()?;
        let (peers, close) = match place.peers {
            Peers::Accepted(_) => (Peers::Gathered, None),
            Peers::Connected(acceptor, connector) if acceptor == peer => {
                (Peers::Gathered, Some(connector))
            }
            Peers::Connected(acceptor, _) => (Peers::Accepted(acceptor), None),
            Peers::Selected(acceptor, connector) => {
                let other = if acceptor == peer {
                    connector
                } else {
                    acceptor
                };
                found.progress = Progress::Ended(now.instant);
                (Peers::Closed, Some(other))
            }
            Peers::Gathered | Peers::Closed => return None,
        };
        found.candidate(candidate).ok()?.peers = peers;
        if let Some(close) = close {
            self.peers.remove(&close);
        }
        close
    }

    /// The session of an association may be followed by another one that begins so long after it.
    pub fn may_return(&mut self, association: Uuid, window: Duration) {
        if let Some(found) = self.associations.get_mut(&association) {
            found.reconnect = window;
        }
    }

    /// Lets an association whose session is over be accepted and connected again, within its window; one whose session is not over stays
    /// as it is.
    ///
    /// # Errors
    /// The window is over, it does not exist, or the proof does not fit.
    pub fn reopen(
        &mut self,
        association: Uuid,
        proof: Proof<'_>,
        now: Now,
    ) -> Result<(), RendezvousError> {
        let found = self.admitted(association, proof)?;
        let Progress::Ended(at) = found.progress else {
            return Ok(());
        };
        if now.instant.saturating_duration_since(at) >= found.reconnect {
            return Err(RendezvousError::Ended);
        }
        for candidate in &mut found.candidates {
            candidate.peers = Peers::Gathered;
        }
        found.progress = Progress::Open;
        found.touched = now.instant;
        Ok(())
    }

    /// Whether the session of an association is running.
    #[must_use]
    pub fn is_in_session(&self, association: Uuid) -> bool {
        let found = self.associations.get(&association);
        found.is_some_and(|association| matches!(association.progress, Progress::Selected(_)))
    }

    /// Removes an association; returns its peers, to be closed.
    ///
    /// # Errors
    /// It does not exist, or the proof does not fit.
    pub fn delete(&mut self, id: Uuid, proof: Proof<'_>) -> Result<Vec<PeerId>, RendezvousError> {
        let found = self.managed(id, proof)?;
        // Who need not say who they are may look and choose, and not take away what others have made.
        if let Proof::Stranger(address) = proof
            && found.owner != Owner::Stranger(address)
        {
            return Err(RendezvousError::OtherOwner);
        }
        Ok(self.remove(id))
    }

    /// Forgets what has been unused or over for too long; returns the ids and their peers, to be closed.
    pub fn expire(&mut self, now: Now) -> Vec<(Uuid, Vec<PeerId>)> {
        let RendezvousLimits { unused, ended, .. } = self.limits;
        let since = |moment| now.instant.saturating_duration_since(moment);
        let expired =
            self.associations
                .iter()
                .filter(|(_, association)| match association.progress {
                    Progress::Open | Progress::Chosen(_) => since(association.touched) >= unused,
                    Progress::Selected(_) => false,
                    Progress::Ended(at) => since(at) >= ended.max(association.reconnect),
                });
        let expired: Vec<Uuid> = expired.map(|(id, _)| *id).collect();
        let removed = expired.into_iter().map(|id| (id, self.remove(id)));
        removed.collect()
    }

    /// The one of `associations` whose session has been over for the longest.
    #[must_use]
    pub fn longest_over(&self, associations: impl Iterator<Item = Uuid>) -> Option<Uuid> {
        let over = associations.filter_map(|id| match self.associations.get(&id)?.progress {
            Progress::Ended(at) => Some((at, id)),
            Progress::Open | Progress::Chosen(_) | Progress::Selected(_) => None,
        });
        over.min().map(|(_, id)| id)
    }

    /// Whether there is an association with this id.
    #[must_use]
    pub fn knows(&self, id: Uuid) -> bool {
        self.associations.contains_key(&id)
    }

    /// Whether no more can be created.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.associations.len() >= self.limits.associations
    }

    /// How long an acceptor may wait: `Jet-Timeout`.
    #[must_use]
    pub fn unused_timeout(&self) -> Duration {
        self.limits.unused
    }

    /// An association, to be read.
    ///
    /// # Errors
    /// It does not exist, or the proof does not fit.
    pub fn view(&mut self, id: Uuid, proof: Proof<'_>) -> Result<AssociationView, RendezvousError> {
        let association = self.managed(id, proof)?;
        Ok(association.view(id))
    }

    /// How many associations there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.associations.len()
    }

    /// All associations, by id.
    #[must_use]
    pub fn list(&self) -> Vec<AssociationView> {
        let sorted: BTreeMap<&Uuid, &Association> = self.associations.iter().collect();
        let views = sorted.into_iter();
        views
            .map(|(id, association)| association.view(*id))
            .collect()
    }

    /// Whether an association exists and its session is not over.
    #[must_use]
    pub fn is_live(&self, id: Uuid) -> bool {
        let found = self.associations.get(&id);
        found.is_some_and(|association| !matches!(association.progress, Progress::Ended(_)))
    }

    /// The association that a token is for: the one it names, or the one it has created.
    #[must_use]
    pub fn association_of(&self, token: &TokenId, jet_aid: Option<Uuid>) -> Option<Uuid> {
        if let Some(id) = jet_aid {
            return self.associations.contains_key(&id).then_some(id);
        }
        let mut associations = self.associations.iter();
        let found = associations.find(
            |(_, association)| matches!(&association.terms.access, Access::Token(id) if id == token),
        );
        found.map(|(id, _)| *id)
    }

    fn found(&mut self, id: Uuid) -> Result<&mut Association, RendezvousError> {
        let found = self.associations.get_mut(&id);
        found.ok_or(RendezvousError::UnknownAssociation)
    }

    /// The association, for a peer that has shown `proof`.
    fn admitted(
        &mut self,
        id: Uuid,
        proof: Proof<'_>,
    ) -> Result<&mut Association, RendezvousError> {
        let found = self.found(id)?;
        match (&found.terms.access, proof) {
            (_, Proof::Operator) | (Access::Anyone, Proof::Nothing | Proof::Stranger(_)) => {
                Ok(found)
            }
            (_, Proof::Agent { association }) if association == id => Ok(found),
            (_, Proof::Agent { .. }) => Err(RendezvousError::OtherToken),
            (Access::Association | Access::Token(_), Proof::Nothing | Proof::Stranger(_)) => {
                Err(RendezvousError::NoToken)
            }
            // A token that names another association is wrong even where none is needed.
            (Access::Anyone, Proof::Token { jet_aid, .. }) => match jet_aid {
                Some(named) if named != id => Err(RendezvousError::OtherToken),
                Some(_) | None => Ok(found),
            },
            (Access::Association, Proof::Token { jet_aid, .. }) if jet_aid == Some(id) => Ok(found),
            (Access::Token(owner), Proof::Token { id, .. }) if owner == id => Ok(found),
            (Access::Association | Access::Token(_), Proof::Token { .. }) => {
                Err(RendezvousError::OtherToken)
            }
        }
    }

    /// The association, for somebody who has shown `proof` and wants more than to be a peer.
    fn managed(&mut self, id: Uuid, proof: Proof<'_>) -> Result<&mut Association, RendezvousError> {
        let found = self.admitted(id, proof)?;
        match proof {
            Proof::Operator | Proof::Stranger(_) => Ok(found),
            Proof::Token { jet_aid, .. } if jet_aid == Some(id) => Ok(found),
            Proof::Token { id: token, .. } if found.owner == Owner::Token(token.clone()) => {
                Ok(found)
            }
            Proof::Token { .. } | Proof::Agent { .. } => Err(RendezvousError::OtherToken),
            Proof::Nothing => Err(RendezvousError::NoToken),
        }
    }

    fn remove(&mut self, id: Uuid) -> Vec<PeerId> {
        let Some(mut association) = self.associations.remove(&id) else {
            return Vec::new();
        };
        let candidates = association.candidates.iter_mut();
        let close: Vec<PeerId> = candidates.flat_map(Candidate::close).collect();
        self.forget(&close);
        close
    }

    fn forget(&mut self, peers: &[PeerId]) {
        for peer in peers {
            self.peers.remove(peer);
        }
    }
}

impl Association {
    fn candidate(&mut self, id: Uuid) -> Result<&mut Candidate, RendezvousError> {
        let mut candidates = self.candidates.iter_mut();
        let found = candidates.find(|candidate| candidate.id == id);
        found.ok_or(RendezvousError::UnknownCandidate)
    }

    /// The first candidate on which an acceptor waits.
    fn any_accepted(&self) -> Result<Uuid, RendezvousError> {
        match self.progress {
            Progress::Open => {}
            Progress::Chosen(_) | Progress::Selected(_) => return Err(RendezvousError::Connected),
            Progress::Ended(_) => return Err(RendezvousError::Ended),
        }
        let mut candidates = self.candidates.iter();
        let found = candidates.find(|candidate| matches!(candidate.peers, Peers::Accepted(_)));
        found
            .map(|candidate| candidate.id)
            .ok_or(RendezvousError::NotAccepted)
    }

    fn view(&self, id: Uuid) -> AssociationView {
        AssociationView {
            id,
            terms: self.terms.clone(),
            created_at: self.created_at,
            candidates: self.candidates.iter().map(Candidate::view).collect(),
        }
    }
}

impl Progress {
    /// Why a candidate is closed.
    fn closed(self) -> RendezvousError {
        match self {
            Self::Open | Self::Chosen(_) | Self::Selected(_) => RendezvousError::Selected,
            Self::Ended(_) => RendezvousError::Ended,
        }
    }
}

impl Candidate {
    fn view(&self) -> CandidateView {
        CandidateView {
            id: self.id,
            transport: self.transport,
            state: match self.peers {
                Peers::Gathered => CandidateState::Gathered,
                Peers::Accepted(_) => CandidateState::Accepted,
                Peers::Connected(..) => CandidateState::Connected,
                Peers::Selected(..) => CandidateState::Selected,
                Peers::Closed => CandidateState::Closed,
            },
        }
    }

    /// Closes it; returns who was there.
    fn close(&mut self) -> Vec<PeerId> {
        match std::mem::replace(&mut self.peers, Peers::Closed) {
            Peers::Gathered | Peers::Closed => Vec::new(),
            Peers::Accepted(acceptor) => vec![acceptor],
            Peers::Connected(acceptor, connector) | Peers::Selected(acceptor, connector) => {
                vec![acceptor, connector]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ASSOCIATION: Uuid = Uuid::from_u128(1);
    const TCP: Uuid = Uuid::from_u128(0x10);
    const WSS: Uuid = Uuid::from_u128(0x11);
    const UNUSED: Duration = Duration::from_secs(300);
    const ENDED: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Now {
        // Any moment serves as the first one.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        #[expect(
            clippy::disallowed_methods,
            reason = "the origin of the test's own time"
        )]
        let start = *START.get_or_init(Instant::now);
        Now {
            instant: start + Duration::from_secs(seconds),
            unix: UnixTime(seconds),
        }
    }

    fn terms(access: Access) -> Terms {
        Terms {
            access,
            application_protocol: None,
            connection_test: ConnectionTest::Keep,
        }
    }

    fn owner() -> Owner {
        Owner::Token(TokenId::new("creator"))
    }

    /// One association with a TCP and a WebSocket candidate.
    fn rendezvous(terms: Terms) -> Rendezvous {
        let mut rendezvous = Rendezvous::new(RendezvousLimits {
            associations: 3,
            unused: UNUSED,
            ended: ENDED,
        });
        rendezvous
            .create(ASSOCIATION, terms, owner(), at(0))
            .unwrap();
        let mut ids = [TCP, WSS].into_iter();
        rendezvous
            .gather(
                ASSOCIATION,
                &[Transport::Tcp, Transport::Wss],
                Proof::Operator,
                || ids.next().unwrap(),
            )
            .unwrap();
        rendezvous
    }

    fn states(rendezvous: &mut Rendezvous) -> Vec<CandidateState> {
        let view = rendezvous.view(ASSOCIATION, Proof::Operator).unwrap();
        let candidates = view.candidates.iter();
        candidates.map(|candidate| candidate.state).collect()
    }

    #[test]
    fn within_its_window_an_association_that_is_over_is_used_again_by_who_may() {
        let owner = TokenId::new("t1");
        let mut rendezvous = rendezvous(terms(Access::Token(owner.clone())));
        let proof = |id| Proof::Token { id, jet_aid: None };
        let other = TokenId::new("t2");
        let session = |rendezvous: &mut Rendezvous, peers: u64, seconds: u64| {
            let (acceptor, connector) = (PeerId(peers), PeerId(peers + 1));
            rendezvous.accept(ASSOCIATION, TCP, acceptor, proof(&owner), at(seconds))?;
            rendezvous.connect(ASSOCIATION, None, connector, proof(&owner), at(seconds))?;
            rendezvous.select(ASSOCIATION, TCP)?;
            rendezvous.leave(acceptor, at(seconds));
            Ok(())
        };
        assert_eq!(session(&mut rendezvous, 1, 10), Ok(()));
        // Without a window it is over.
        let reopened = rendezvous.reopen(ASSOCIATION, proof(&owner), at(10));
        assert_eq!(reopened, Err(RendezvousError::Ended));
        rendezvous.may_return(ASSOCIATION, Duration::from_secs(90));
        assert_eq!(session(&mut rendezvous, 3, 20), Err(RendezvousError::Ended));
        let reopened = rendezvous.reopen(ASSOCIATION, proof(&other), at(20));
        assert_eq!(reopened, Err(RendezvousError::OtherToken));
        let reopened = rendezvous.reopen(ASSOCIATION, proof(&owner), at(20));
        assert_eq!(reopened, Ok(()));
        assert_eq!(states(&mut rendezvous), [CandidateState::Gathered; 2]);
        assert_eq!(session(&mut rendezvous, 5, 30), Ok(()));
        // It is not forgotten before its window is over.
        assert!(rendezvous.expire(at(30 + 89)).is_empty());
        let reopened = rendezvous.reopen(ASSOCIATION, proof(&owner), at(30 + 90));
        assert_eq!(reopened, Err(RendezvousError::Ended));
        assert_eq!(rendezvous.expire(at(30 + 90)).len(), 1);
    }

    fn accept(
        rendezvous: &mut Rendezvous,
        candidate: Uuid,
        peer: u64,
    ) -> Result<(), RendezvousError> {
        rendezvous.accept(ASSOCIATION, candidate, PeerId(peer), Proof::Nothing, at(1))
    }

    fn connect(
        rendezvous: &mut Rendezvous,
        candidate: Uuid,
        peer: u64,
    ) -> Result<Meeting, RendezvousError> {
        rendezvous.connect(
            ASSOCIATION,
            Some(candidate),
            PeerId(peer),
            Proof::Nothing,
            at(2),
        )
    }

    #[test]
    fn only_its_creator_whom_it_names_and_an_operator_decide_on_an_association() {
        let (creator, other) = (TokenId::new("creator"), TokenId::new("other"));
        let token = |id, jet_aid| Proof::Token { id, jet_aid };
        let (here, there): (AddressGroup, AddressGroup) = (
            std::net::IpAddr::from([192, 0, 2, 1]).into(),
            std::net::IpAddr::from([192, 0, 2, 2]).into(),
        );
        let by_token = Owner::Token(creator.clone());
        let stranger = Owner::Stranger(here);
        let wrong = Err(RendezvousError::OtherToken);
        let cases = [
            // Who asks, of whose association: to look, to choose and to delete.
            (&by_token, Proof::Operator, Ok(()), Ok(())),
            (&by_token, token(&creator, None), Ok(()), Ok(())),
            (&by_token, token(&other, Some(ASSOCIATION)), Ok(()), Ok(())),
            (&by_token, token(&other, None), wrong, wrong),
            (&by_token, token(&other, Some(WSS)), wrong, wrong),
            (
                &by_token,
                Proof::Agent {
                    association: ASSOCIATION,
                },
                wrong,
                wrong,
            ),
            (
                &by_token,
                Proof::Nothing,
                Err(RendezvousError::NoToken),
                Err(RendezvousError::NoToken),
            ),
            (
                &by_token,
                Proof::Stranger(here),
                Ok(()),
                Err(RendezvousError::OtherOwner),
            ),
            (&stranger, Proof::Stranger(here), Ok(()), Ok(())),
            (
                &stranger,
                Proof::Stranger(there),
                Ok(()),
                Err(RendezvousError::OtherOwner),
            ),
            (&stranger, token(&other, None), wrong, wrong),
            (&stranger, Proof::Operator, Ok(()), Ok(())),
        ];
        for (owner, proof, looks, deletes) in cases {
            let mut rendezvous = rendezvous(terms(Access::Anyone));
            rendezvous.associations.get_mut(&ASSOCIATION).unwrap().owner = owner.clone();
            accept(&mut rendezvous, TCP, 1).unwrap();
            connect(&mut rendezvous, TCP, 2).unwrap();
            let view = rendezvous.view(ASSOCIATION, proof).map(|_| ());
            assert_eq!(view, looks, "{owner:?} {proof:?}");
            let gathered = rendezvous.gather(ASSOCIATION, &[], proof, Uuid::nil);
            assert_eq!(gathered.map(|_| ()), looks, "{owner:?} {proof:?}");
            let completed = rendezvous.complete(ASSOCIATION, TCP, proof, at(3));
            assert_eq!(completed.map(|_| ()), looks, "{owner:?} {proof:?}");
            let deleted = rendezvous.delete(ASSOCIATION, proof).map(|_| ());
            assert_eq!(deleted, deletes, "{owner:?} {proof:?}");
        }
    }

    #[test]
    fn two_peers_meet_and_the_other_candidate_is_closed() {
        // J-BIN-2, J-SEQ-3
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        accept(&mut rendezvous, WSS, 2).unwrap();
        assert_eq!(
            connect(&mut rendezvous, TCP, 3).unwrap().acceptor,
            PeerId(1)
        );
        assert_eq!(
            connect(&mut rendezvous, WSS, 4).unwrap().acceptor,
            PeerId(2)
        );
        assert_eq!(states(&mut rendezvous), [CandidateState::Connected; 2]);
        let close = rendezvous.select(ASSOCIATION, WSS).unwrap();
        assert_eq!(close, [PeerId(1), PeerId(3)]);
        assert_eq!(
            states(&mut rendezvous),
            [CandidateState::Closed, CandidateState::Selected]
        );
        assert_eq!(rendezvous.select(ASSOCIATION, WSS), Ok(Vec::new()));
        assert_eq!(
            rendezvous.select(ASSOCIATION, TCP),
            Err(RendezvousError::Selected)
        );
    }

    #[test]
    fn a_second_acceptor_does_not_take_the_place_of_the_first() {
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        assert_eq!(
            accept(&mut rendezvous, TCP, 2),
            Err(RendezvousError::Accepted)
        );
        assert_eq!(
            connect(&mut rendezvous, TCP, 3).unwrap().acceptor,
            PeerId(1)
        );
        assert_eq!(
            accept(&mut rendezvous, TCP, 2),
            Err(RendezvousError::Accepted)
        );
        assert_eq!(
            connect(&mut rendezvous, TCP, 4),
            Err(RendezvousError::Connected)
        );
    }

    #[test]
    fn nobody_connects_to_an_acceptor_that_left() {
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        assert_eq!(rendezvous.leave(PeerId(1), at(1)), None);
        assert_eq!(
            connect(&mut rendezvous, TCP, 2),
            Err(RendezvousError::NotAccepted)
        );
        accept(&mut rendezvous, TCP, 3).unwrap();
        connect(&mut rendezvous, TCP, 2).unwrap();
        assert_eq!(rendezvous.leave(PeerId(3), at(2)), Some(PeerId(2)));
        assert_eq!(states(&mut rendezvous)[0], CandidateState::Gathered);
    }

    #[test]
    fn an_acceptor_waits_on_when_a_connector_left_without_a_byte() {
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        connect(&mut rendezvous, TCP, 2).unwrap();
        assert_eq!(rendezvous.leave(PeerId(2), at(3)), None);
        assert_eq!(states(&mut rendezvous)[0], CandidateState::Accepted);
        assert_eq!(
            connect(&mut rendezvous, TCP, 3).unwrap().acceptor,
            PeerId(1)
        );
    }

    #[test]
    fn with_jet_ct_close_connecting_selects() {
        // J-CT-1
        let mut rendezvous = rendezvous(Terms {
            connection_test: ConnectionTest::Close,
            ..terms(Access::Anyone)
        });
        accept(&mut rendezvous, TCP, 1).unwrap();
        accept(&mut rendezvous, WSS, 2).unwrap();
        rendezvous.test(ASSOCIATION, TCP, Proof::Nothing).unwrap();
        let meeting = connect(&mut rendezvous, TCP, 3).unwrap();
        assert_eq!((meeting.selected, meeting.close), (true, vec![PeerId(2)]));
        assert_eq!(
            connect(&mut rendezvous, WSS, 4),
            Err(RendezvousError::Selected)
        );
    }

    #[test]
    fn a_test_finds_what_is_there_and_nothing_else() {
        // J-BIN-3
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        let mut test =
            |association, candidate| rendezvous.test(association, candidate, Proof::Nothing);
        assert_eq!(test(ASSOCIATION, TCP), Ok(()));
        assert_eq!(
            test(ASSOCIATION, Uuid::nil()),
            Err(RendezvousError::UnknownCandidate)
        );
        assert_eq!(
            test(Uuid::nil(), TCP),
            Err(RendezvousError::UnknownAssociation)
        );
    }

    #[test]
    fn an_association_that_was_created_with_a_token_demands_one() {
        let own = TokenId::new("own");
        let other = TokenId::new("other");
        let token = |id, jet_aid| Proof::Token { id, jet_aid };
        let elsewhere = Some(Uuid::nil());
        let agent = |association| Proof::Agent { association };
        let cases = [
            (Access::Association, agent(ASSOCIATION), Ok(())),
            (Access::Token(own.clone()), agent(ASSOCIATION), Ok(())),
            (
                Access::Anyone,
                agent(Uuid::nil()),
                Err(RendezvousError::OtherToken),
            ),
            (Access::Anyone, Proof::Nothing, Ok(())),
            (Access::Anyone, token(&other, None), Ok(())),
            (
                Access::Anyone,
                token(&other, elsewhere),
                Err(RendezvousError::OtherToken),
            ),
            (
                Access::Association,
                Proof::Nothing,
                Err(RendezvousError::NoToken),
            ),
            (
                Access::Association,
                token(&other, Some(ASSOCIATION)),
                Ok(()),
            ),
            (
                Access::Association,
                token(&other, elsewhere),
                Err(RendezvousError::OtherToken),
            ),
            (
                Access::Association,
                token(&other, None),
                Err(RendezvousError::OtherToken),
            ),
            (Access::Token(own.clone()), token(&own, None), Ok(())),
            (
                Access::Token(own.clone()),
                token(&other, None),
                Err(RendezvousError::OtherToken),
            ),
            (
                Access::Token(own.clone()),
                Proof::Nothing,
                Err(RendezvousError::NoToken),
            ),
        ];
        for (access, proof, expected) in cases {
            let mut rendezvous = rendezvous(terms(access.clone()));
            let case = format!("{access:?} {proof:?}");
            let peer = PeerId(1);
            assert_eq!(rendezvous.test(ASSOCIATION, TCP, proof), expected, "{case}");
            assert_eq!(
                rendezvous.accept(ASSOCIATION, TCP, peer, proof, at(1)),
                expected,
                "{case}"
            );
            let connected = rendezvous.connect(ASSOCIATION, Some(WSS), peer, proof, at(1));
            let refused = expected.err().unwrap_or(RendezvousError::NotAccepted);
            assert_eq!(connected, Err(refused), "{case}");
            // Whoever may meet there may not decide on it, unless it created or is named by it.
            let decides = match proof {
                Proof::Operator => Ok(()),
                Proof::Token {
                    jet_aid: Some(ASSOCIATION),
                    ..
                } => Ok(()),
                Proof::Nothing => Err(RendezvousError::NoToken),
                Proof::Token { .. } | Proof::Agent { .. } | Proof::Stranger(_) => {
                    Err(RendezvousError::OtherToken)
                }
            };
            let deleted = rendezvous.delete(ASSOCIATION, proof).map(|_| ());
            assert_eq!(deleted, decides, "{case}");
        }
    }

    #[test]
    fn creating_again_is_idempotent_with_the_same_claims_only() {
        // J-API-1
        let mut rendezvous = rendezvous(terms(Access::Association));
        let again = rendezvous.create(ASSOCIATION, terms(Access::Association), owner(), at(1));
        assert_eq!(again, Ok(false));
        let other = rendezvous.create(ASSOCIATION, terms(Access::Anyone), owner(), at(1));
        assert_eq!(other, Err(RendezvousError::OtherTerms));
    }

    #[test]
    fn gathering_again_gives_the_same_candidates() {
        // J-API-2
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        let mut gather = |transports: &[Transport]| {
            rendezvous
                .gather(ASSOCIATION, transports, Proof::Operator, || {
                    Uuid::from_u128(0x12)
                })
                .unwrap()
        };
        let first = gather(&[Transport::Tcp, Transport::Wss]);
        assert_eq!(first.iter().map(|c| c.id).collect::<Vec<_>>(), [TCP, WSS]);
        let more = gather(&[Transport::Tcp, Transport::Wss, Transport::Tls]);
        assert_eq!(more[..2], first);
        assert_eq!(more[2].transport, Transport::Tls);
    }

    #[test]
    fn an_rdp_client_takes_the_first_candidate_with_an_acceptor() {
        // J-RDP-3
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        let connect = |rendezvous: &mut Rendezvous| {
            rendezvous.connect(ASSOCIATION, None, PeerId(9), Proof::Operator, at(2))
        };
        assert_eq!(connect(&mut rendezvous), Err(RendezvousError::NotAccepted));
        accept(&mut rendezvous, WSS, 1).unwrap();
        assert_eq!(connect(&mut rendezvous).unwrap().candidate, WSS);
        assert_eq!(connect(&mut rendezvous), Err(RendezvousError::NotAccepted));
    }

    #[test]
    fn what_is_unused_expires_and_a_session_does_not() {
        // J-API-4
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        assert_eq!(rendezvous.expire(at(300)), []);
        assert_eq!(rendezvous.expire(at(301)), [(ASSOCIATION, vec![PeerId(1)])]);

        let mut rendezvous = self::rendezvous(terms(Access::Anyone));
        accept(&mut rendezvous, TCP, 1).unwrap();
        connect(&mut rendezvous, TCP, 2).unwrap();
        rendezvous.select(ASSOCIATION, TCP).unwrap();
        assert_eq!(rendezvous.expire(at(100_000)), []);
        assert_eq!(rendezvous.leave(PeerId(2), at(100_000)), Some(PeerId(1)));
        assert_eq!(states(&mut rendezvous)[0], CandidateState::Closed);
        assert_eq!(accept(&mut rendezvous, TCP, 3), Err(RendezvousError::Ended));
        assert_eq!(rendezvous.expire(at(100_059)), []);
        assert_eq!(rendezvous.expire(at(100_060)), [(ASSOCIATION, Vec::new())]);
    }

    #[test]
    fn what_was_chosen_and_carries_nothing_expires_as_well() {
        // J-API-4
        let by_word = |rendezvous: &mut Rendezvous| {
            connect(rendezvous, TCP, 2).unwrap();
            let chosen = rendezvous.complete(ASSOCIATION, TCP, Proof::Operator, at(200));
            assert_eq!(chosen, Ok(Vec::new()));
        };
        let by_connecting = |rendezvous: &mut Rendezvous| {
            let place = (ASSOCIATION, Some(TCP), PeerId(2));
            let meeting = rendezvous.connect(place.0, place.1, place.2, Proof::Nothing, at(200));
            assert!(meeting.unwrap().selected);
        };
        for connection_test in [ConnectionTest::Keep, ConnectionTest::Close] {
            for carries in [false, true] {
                let mut rendezvous = rendezvous(Terms {
                    connection_test,
                    ..terms(Access::Anyone)
                });
                accept(&mut rendezvous, TCP, 1).unwrap();
                match connection_test {
                    ConnectionTest::Keep => by_word(&mut rendezvous),
                    ConnectionTest::Close => by_connecting(&mut rendezvous),
                }
                assert_eq!(states(&mut rendezvous)[0], CandidateState::Selected);
                if carries {
                    assert_eq!(rendezvous.select(ASSOCIATION, TCP), Ok(Vec::new()));
                }
                assert_eq!(rendezvous.expire(at(499)), []);
                let expired = rendezvous.expire(at(500));
                assert_eq!(expired.is_empty(), carries, "{connection_test:?}");
            }
        }
    }

    #[test]
    fn there_are_only_so_many_associations() {
        let mut rendezvous = rendezvous(terms(Access::Anyone));
        for id in 2..4 {
            rendezvous
                .create(Uuid::from_u128(id), terms(Access::Anyone), owner(), at(0))
                .unwrap();
        }
        let full = rendezvous.create(Uuid::from_u128(4), terms(Access::Anyone), owner(), at(0));
        assert_eq!(full, Err(RendezvousError::Full));
        rendezvous.delete(ASSOCIATION, Proof::Operator).unwrap();
        rendezvous
            .create(Uuid::from_u128(4), terms(Access::Anyone), owner(), at(0))
            .unwrap();
    }

    /// What a peer or the clock may do.
    #[derive(Clone, Debug)]
    enum Step {
        Create(u8),
        Gather(u8),
        Accept(u8, u8),
        Connect(u8, Option<u8>),
        Test(u8, u8),
        Select(u8, u8),
        Complete(u8, u8),
        Leave(u8),
        Delete(u8),
        Wait(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let a = 0..3_u8;
        let c = 0..3_u8;
        let step = prop_oneof![
            2 => a.clone().prop_map(Step::Create),
            2 => a.clone().prop_map(Step::Gather),
            6 => (a.clone(), c.clone()).prop_map(|(a, c)| Step::Accept(a, c)),
            6 => (a.clone(), proptest::option::of(c.clone())).prop_map(|(a, c)| Step::Connect(a, c)),
            1 => (a.clone(), c.clone()).prop_map(|(a, c)| Step::Test(a, c)),
            3 => (a.clone(), c.clone()).prop_map(|(a, c)| Step::Select(a, c)),
            2 => (a.clone(), c).prop_map(|(a, c)| Step::Complete(a, c)),
            4 => (0..60_u8).prop_map(Step::Leave),
            1 => a.prop_map(Step::Delete),
            1 => (0..200_u16).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..120)
    }

    /// The reference: plain lists of what is so, looked through anew each time.
    #[derive(Default)]
    struct Model {
        /// Association, last touched, when its session ended.
        associations: Vec<(u8, u64, Option<u64>)>,
        gathered: Vec<(u8, u8)>,
        closed: Vec<(u8, u8)>,
        acceptors: Vec<(u8, u8, u64)>,
        connectors: Vec<(u8, u8, u64)>,
        selected: Vec<(u8, u8)>,
        /// Those of which a candidate has carried something.
        active: Vec<u8>,
    }

    impl Model {
        fn exists(&self, a: u8) -> Result<(), RendezvousError> {
            let found = self.associations.iter().any(|&(id, ..)| id == a);
            found
                .then_some(())
                .ok_or(RendezvousError::UnknownAssociation)
        }

        fn ended(&self, a: u8) -> bool {
            self.associations
                .iter()
                .any(|&(id, _, ended)| id == a && ended.is_some())
        }

        fn usable(&self, a: u8, c: u8) -> Result<(), RendezvousError> {
            self.exists(a)?;
            if !self.gathered.contains(&(a, c)) {
                return Err(RendezvousError::UnknownCandidate);
            }
            if self.closed.contains(&(a, c)) {
                return Err(if self.ended(a) {
                    RendezvousError::Ended
                } else {
                    RendezvousError::Selected
                });
            }
            Ok(())
        }

        fn at(list: &[(u8, u8, u64)], a: u8, c: u8) -> Option<u64> {
            let found = list.iter().find(|entry| (entry.0, entry.1) == (a, c));
            found.map(|entry| entry.2)
        }

        fn touch(&mut self, a: u8, now: u64) {
            for entry in &mut self.associations {
                if entry.0 == a {
                    entry.1 = now;
                }
            }
        }

        fn drop_candidate(&mut self, a: u8, c: u8) -> Vec<u64> {
            let mut gone = Vec::new();
            for list in [&mut self.acceptors, &mut self.connectors] {
                list.retain(|&(x, y, peer)| {
                    if (x, y) == (a, c) {
                        gone.push(peer);
                    }
                    (x, y) != (a, c)
                });
            }
            gone
        }

        fn create(&mut self, a: u8, now: u64) -> Result<bool, RendezvousError> {
            if self.ended(a) {
                return Err(RendezvousError::Ended);
            }
            if self.exists(a).is_ok() {
                return Ok(false);
            }
            if self.associations.len() == 2 {
                return Err(RendezvousError::Full);
            }
            self.associations.push((a, now, None));
            Ok(true)
        }

        fn accept(&mut self, a: u8, c: u8, peer: u64, now: u64) -> Result<(), RendezvousError> {
            self.usable(a, c)?;
            if Self::at(&self.acceptors, a, c).is_some() {
                return Err(RendezvousError::Accepted);
            }
            self.acceptors.push((a, c, peer));
            self.touch(a, now);
            Ok(())
        }

        fn connect(
            &mut self,
            a: u8,
            c: Option<u8>,
            peer: u64,
            now: u64,
        ) -> Result<u64, RendezvousError> {
            self.exists(a)?;
            let c = match c {
                Some(c) => c,
                None if self.ended(a) => return Err(RendezvousError::Ended),
                None if self.selected.iter().any(|&(x, _)| x == a) => {
                    return Err(RendezvousError::Connected);
                }
                None => (0..3)
                    .find(|&c| {
                        Self::at(&self.acceptors, a, c).is_some()
                            && Self::at(&self.connectors, a, c).is_none()
                    })
                    .ok_or(RendezvousError::NotAccepted)?,
            };
            self.usable(a, c)?;
            let acceptor = Self::at(&self.acceptors, a, c).ok_or(RendezvousError::NotAccepted)?;
            if Self::at(&self.connectors, a, c).is_some() {
                return Err(RendezvousError::Connected);
            }
            self.connectors.push((a, c, peer));
            self.touch(a, now);
            Ok(acceptor)
        }

        fn select(&mut self, a: u8, c: u8) -> Result<Vec<u64>, RendezvousError> {
            let gone = self.settle(a, c)?;
            self.active.push(a);
            Ok(gone)
        }

        fn complete(&mut self, a: u8, c: u8, now: u64) -> Result<Vec<u64>, RendezvousError> {
            let gone = self.settle(a, c)?;
            self.touch(a, now);
            Ok(gone)
        }

        fn settle(&mut self, a: u8, c: u8) -> Result<Vec<u64>, RendezvousError> {
            self.exists(a)?;
            if self.selected.contains(&(a, c)) {
                return Ok(Vec::new());
            }
            if self.ended(a) {
                return Err(RendezvousError::Ended);
            }
            if self.selected.iter().any(|&(x, _)| x == a) {
                return Err(RendezvousError::Selected);
            }
            self.usable(a, c)?;
            Self::at(&self.connectors, a, c).ok_or(RendezvousError::NotConnected)?;
            self.selected.push((a, c));
            let mut gone = Vec::new();
            for other in 0..3 {
                if other != c && self.gathered.contains(&(a, other)) {
                    gone.extend(self.drop_candidate(a, other));
                    self.closed.push((a, other));
                }
            }
            Ok(gone)
        }

        fn leave(&mut self, peer: u64, now: u64) -> Option<u64> {
            let find = |list: &[(u8, u8, u64)]| list.iter().find(|e| e.2 == peer).copied();
            let accepted = find(&self.acceptors);
            let (a, c, _) = accepted.or_else(|| find(&self.connectors))?;
            let other = if accepted.is_some() {
                Self::at(&self.connectors, a, c)
            } else {
                Self::at(&self.acceptors, a, c)
            };
            if self.selected.contains(&(a, c)) {
                self.drop_candidate(a, c);
                self.closed.push((a, c));
                self.selected.retain(|&(x, _)| x != a);
                for entry in &mut self.associations {
                    if entry.0 == a {
                        entry.2 = Some(now);
                    }
                }
                return other;
            }
            if accepted.is_some() {
                self.drop_candidate(a, c);
                other
            } else {
                self.connectors.retain(|e| e.2 != peer);
                None
            }
        }

        fn remove(&mut self, a: u8) -> Vec<u64> {
            let gone = (0..3).flat_map(|c| self.drop_candidate(a, c)).collect();
            self.associations.retain(|&(id, ..)| id != a);
            self.gathered.retain(|&(x, _)| x != a);
            self.closed.retain(|&(x, _)| x != a);
            self.selected.retain(|&(x, _)| x != a);
            self.active.retain(|&x| x != a);
            gone
        }

        fn expire(&mut self, now: u64) -> Vec<(u8, Vec<u64>)> {
            let expired = self
                .associations
                .iter()
                .filter(|&&(a, touched, ended)| match ended {
                    Some(at) => now - at >= ENDED.as_secs(),
                    None => !self.active.contains(&a) && now - touched >= UNUSED.as_secs(),
                });
            let expired: Vec<u8> = expired.map(|&(a, ..)| a).collect();
            expired.into_iter().map(|a| (a, self.remove(a))).collect()
        }
    }

    fn association(a: u8) -> Uuid {
        Uuid::from_u128(u128::from(a) + 1)
    }

    fn candidate(a: u8, c: u8) -> Uuid {
        Uuid::from_u128(u128::from(a) * 16 + u128::from(c) + 0x100)
    }

    fn sorted(peers: Vec<PeerId>) -> Vec<u64> {
        let mut peers: Vec<u64> = peers.into_iter().map(|peer| peer.0).collect();
        peers.sort_unstable();
        peers
    }

    fn sorted_numbers(mut peers: Vec<u64>) -> Vec<u64> {
        peers.sort_unstable();
        peers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_state_agrees_with_a_plain_model_in_lockstep(steps in steps()) {
            let mut real = Rendezvous::new(RendezvousLimits {
                associations: 2,
                unused: UNUSED,
                ended: ENDED,
            });
            let mut model = Model::default();
            let mut now = 0_u64;
            let mut peer = 0_u64;
            for step in steps {
                match step.clone() {
                    Step::Create(a) => prop_assert_eq!(
                        real.create(association(a), terms(Access::Anyone), owner(), at(now)),
                        model.create(a, now)
                    ),
                    Step::Gather(a) => {
                        let mut next = 0..3;
                        let gathered = real.gather(
                            association(a),
                            &[Transport::Tcp, Transport::Tls, Transport::Wss],
                            Proof::Operator,
                            || candidate(a, next.next().unwrap()),
                        );
                        let expected = model.exists(a).and_then(|()| {
                            if model.ended(a) { Err(RendezvousError::Ended) } else { Ok(()) }
                        });
                        if expected.is_ok() && !model.gathered.contains(&(a, 0)) {
                            model.gathered.extend((0..3).map(|c| (a, c)));
                        }
                        prop_assert_eq!(gathered.map(|_| ()), expected);
                    }
                    Step::Accept(a, c) => {
                        peer += 1;
                        prop_assert_eq!(
                            real.accept(
                                association(a), candidate(a, c), PeerId(peer), Proof::Nothing, at(now)
                            ),
                            model.accept(a, c, peer, now)
                        );
                    }
                    Step::Connect(a, c) => {
                        peer += 1;
                        let met = real.connect(
                            association(a),
                            c.map(|c| candidate(a, c)),
                            PeerId(peer),
                            Proof::Nothing,
                            at(now),
                        );
                        prop_assert_eq!(
                            met.map(|met| met.acceptor.0),
                            model.connect(a, c, peer, now)
                        );
                    }
                    Step::Test(a, c) => prop_assert_eq!(
                        real.test(association(a), candidate(a, c), Proof::Nothing),
                        model.usable(a, c)
                    ),
                    Step::Select(a, c) => prop_assert_eq!(
                        real.select(association(a), candidate(a, c)).map(sorted),
                        model.select(a, c).map(sorted_numbers)
                    ),
                    Step::Complete(a, c) => prop_assert_eq!(
                        real.complete(association(a), candidate(a, c), Proof::Operator, at(now))
                            .map(sorted),
                        model.complete(a, c, now).map(sorted_numbers)
                    ),
                    Step::Leave(peer) => {
                        let peer = u64::from(peer);
                        prop_assert_eq!(
                            real.leave(PeerId(peer), at(now)).map(|peer| peer.0),
                            model.leave(peer, now)
                        );
                    }
                    Step::Delete(a) => prop_assert_eq!(
                        real.delete(association(a), Proof::Operator).map(sorted),
                        model.exists(a).map(|()| sorted_numbers(model.remove(a)))
                    ),
                    Step::Wait(seconds) => {
                        now += u64::from(seconds);
                        let mut expired: Vec<_> = real.expire(at(now)).into_iter()
                            .map(|(id, peers)| (id, sorted(peers)))
                            .collect();
                        expired.sort_unstable();
                        let mut expected: Vec<_> = model.expire(now).into_iter()
                            .map(|(a, peers)| (association(a), sorted_numbers(peers)))
                            .collect();
                        expected.sort_unstable();
                        prop_assert_eq!(expired, expected);
                    }
                }
                // INVARIANT: who is known as a peer is at exactly one candidate.
                let known = model.acceptors.len() + model.connectors.len();
                prop_assert_eq!(real.peers.len(), known, "after {:?}", step);
                prop_assert_eq!(real.list().len(), model.associations.len());
            }
        }
    }
}
