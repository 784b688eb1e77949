//! Where the peers of a rendezvous wait for each other: the state of [`jet::rendezvous`](jetway_jet::rendezvous), and
//! the connections behind its numbers.
//!
//! A waiting acceptor's connection belongs to the task that watches it; who connects asks that task for it. So an acceptor
//! that has left is noticed by its own task, and at the latest when it is asked.

pub mod party;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::connection::Client;
use crate::live::registry::{EndCause, Session};
use crate::meeting::party::{Creator, Shown};
use jetway_base::limits;
use jetway_io::clock;
use jetway_io::reached::Reached;
use jetway_io::stream::Io;
use jetway_jet::candidate::Transport;
use jetway_jet::rendezvous::{
    self, Access, AssociationView, CandidateView, Now, PeerId, Proof, Rendezvous, RendezvousError,
    RendezvousLimits, Terms,
};
use jetway_policy::shares::{Owner, Shares};
use jetway_token::revocation::{Revocations, RevokingClaim};
use jetway_token::{Token, TokenId};

/// How long an acceptor that comes back at once is let wait for the end of the last session.
const HANDOVER: Duration = Duration::from_secs(2);

/// How long the first bytes for a peer are held back that may not have read its response yet. An existing client lost
/// them in 20 of 25 runs without it, and in none of 25 with a second.
const HOLD: Duration = Duration::from_millis(250);

/// All associations of this process, and their peers.
#[derive(Debug)]
pub struct MeetingPlace {
    table: Mutex<MeetingTable>,
    reached: Reached,
    bearers_reached: Reached,
    strangers_reached: Reached,
    acceptors_reached: Reached,
}

#[derive(Debug)]
struct MeetingTable {
    rendezvous: Rendezvous,
    seats: HashMap<PeerId, Seat>,
    vouched: HashMap<Uuid, Vouched>,
    /// Whose associations there are, of those who have shown a token or an API key.
    bearers: Shares,
    /// Whose associations there are, of those who have shown nothing.
    strangers: Shares,
    /// Whose acceptors there are.
    acceptors: Shares,
    next_peer: u64,
}

/// What can be done to a peer from outside of its task.
#[derive(Debug)]
struct Seat {
    /// Ends its connection.
    close: CancellationToken,
    /// Asks a waiting acceptor for its connection.
    claim: Option<oneshot::Sender<Handover>>,
    /// That of its association.
    changed: Arc<Notify>,
    /// Whose acceptor it is.
    owner: Owner,
    /// What it has shown, for which association.
    token: Option<(Uuid, Token)>,
}

/// Where an acceptor's task puts its connection.
pub type Handover = oneshot::Sender<Party>;

/// What an association was created with, and what became of it.
#[derive(Debug)]
struct Vouched {
    token: Token,
    by: Creator,
    session: Option<Arc<Session>>,
    /// Fires when somebody has accepted, or the association is gone.
    changed: Arc<Notify>,
}

/// A peer with its connection, past its handshake.
#[derive(Debug)]
pub struct Party {
    /// The connection.
    pub client: Client,
    /// What it has shown.
    pub shown: Shown,
    /// Its place at a candidate.
    pub place: Place,
    /// When its request was answered.
    pub answered: Instant,
}

impl Party {
    /// From when on bytes can be written to the peer without meeting its response; `spoke` says whether it has said
    /// something since.
    #[must_use]
    pub fn readable_at(&self, spoke: bool) -> Instant {
        match self.client.stream.io() {
            // Its messages are apart from its handshake.
            Io::WebSocket(_) => self.answered,
            Io::Tcp(_) | Io::Tls(_) | Io::TargetTls(_) if spoke => self.answered,
            Io::Tcp(_) | Io::Tls(_) | Io::TargetTls(_) => {
                self.answered.checked_add(HOLD).unwrap_or(self.answered)
            }
        }
    }
}

/// A peer's place at a candidate; dropping it leaves.
#[derive(Debug)]
pub struct Place {
    meetings: Arc<MeetingPlace>,
    peer: PeerId,
    /// Fires when the peer is to go.
    pub close: CancellationToken,
}

/// A peer that may wait.
#[derive(Debug)]
pub struct Waiting {
    /// Its place.
    pub place: Place,
    /// Fires when somebody has connected.
    pub claimed: oneshot::Receiver<Handover>,
}

/// Two peers that have met.
#[derive(Debug)]
pub struct PairedPeers {
    /// The connector's place.
    pub place: Place,
    /// Where they met.
    pub candidate: Uuid,
    /// The acceptor.
    pub acceptor: Box<Party>,
}

/// An association as operators see it.
#[derive(Debug)]
pub struct Listed {
    /// Its state.
    pub view: AssociationView,
    /// What it was created with.
    pub token: Option<Token>,
    /// Its session, once there is one.
    pub session: Option<Arc<Session>>,
}

impl MeetingPlace {
    /// No associations, and at most so many `strangers` from one address, which nobody vouches for. By tokens one address may have as
    /// many associations and as many acceptors as it may have `sessions`.
    #[must_use]
    pub fn new(limits: RendezvousLimits, strangers: usize, sessions: usize) -> Self {
        Self {
            table: Mutex::new(MeetingTable {
                rendezvous: Rendezvous::new(limits),
                seats: HashMap::new(),
                vouched: HashMap::new(),
                bearers: Shares::new(limits::JET_ASSOCIATIONS_PER_TOKEN, sessions)
                    .with_keys(limits.associations),
                strangers: Shares::new(usize::MAX, strangers),
                acceptors: Shares::new(limits::JET_ACCEPTORS_PER_TOKEN, sessions),
                next_peer: 0,
            }),
            reached: Reached::new("jet.associations"),
            bearers_reached: Reached::new("associations of one token, address or API key"),
            strangers_reached: Reached::new("jet.associations_per_address"),
            acceptors_reached: Reached::new("acceptors of one token or address"),
        }
    }

    /// Creates an association that `token` vouches for; says whether it is new. Where there is no room, those whose session is over
    /// go first, with the figures that could still be read.
    ///
    /// # Errors
    /// The id is taken with other claims, or there are too many that wait, in total or of this creator.
    pub fn create(
        &self,
        id: Uuid,
        token: &Token,
        access: Access,
        by: Creator,
    ) -> Result<bool, RendezvousError> {
        let terms = Terms {
            access,
            application_protocol: token.claims.jet_ap.clone(),
            connection_test: token.claims.jet_ct,
        };
        let mut table = self.lock();
        if !table.rendezvous.knows(id) {
            self.make_room(&mut table, &by.owner(token), by)?;
        }
        let decides = match by {
            Creator::Operator | Creator::Bearer(_) => rendezvous::Owner::Token(token.id.clone()),
            Creator::Stranger(address) => rendezvous::Owner::Stranger(address.into()),
        };
        let new = table.rendezvous.create(id, terms, decides, now())?;
        if new {
            let owner = by.owner(token);
            table.shares_of(by).count(&owner);
            let vouched = Vouched {
                token: token.clone(),
                by,
                session: None,
                changed: Arc::default(),
            };
            table.vouched.insert(id, vouched);
        }
        Ok(new)
    }

    fn make_room(
        &self,
        table: &mut MeetingTable,
        owner: &Owner,
        by: Creator,
    ) -> Result<(), RendezvousError> {
        while let Err(crowded) = table.shares_of(by).check(owner) {
            let of_crowded = |vouched: &Vouched| {
                vouched.by.is_like(by) && vouched.by.owner(&vouched.token).is(&crowded)
            };
            if !table.forget_over(of_crowded) {
                let reached = match by {
                    Creator::Stranger(_) => &self.strangers_reached,
                    Creator::Bearer(_) | Creator::Operator => &self.bearers_reached,
                };
                reached.by(&crowded);
                return Err(RendezvousError::Full);
            }
        }
        if table.rendezvous.is_full() && !table.forget_over(|_| true) {
            self.reached.by(&"all peers");
            return Err(RendezvousError::Full);
        }
        Ok(())
    }

    /// The candidates of an association, one for each of `transports`.
    ///
    /// # Errors
    /// See [`Rendezvous::gather`].
    pub fn gather(
        &self,
        id: Uuid,
        transports: &[Transport],
        proof: Proof<'_>,
    ) -> Result<Vec<CandidateView>, RendezvousError> {
        let mut table = self.lock();
        table.reopen(id, proof);
        table.rendezvous.gather(id, transports, proof, Uuid::new_v4)
    }

    /// As [`accept`](Self::accept); waits a moment where the last session of the association is just ending: the acceptor, which comes
    /// back for the next one, has seen its end before the gateway has.
    ///
    /// # Errors
    /// See [`Rendezvous::accept`].
    pub async fn accept_next(
        self: &Arc<Self>,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
        address: IpAddr,
    ) -> Result<Waiting, RendezvousError> {
        let changed = self.lock().changed(association)?;
        let deadline = tokio::time::sleep(HANDOVER);
        tokio::pin!(deadline);
        loop {
            let change = changed.notified();
            tokio::pin!(change);
            // Listening starts before the question, so that no end is missed between the two.
            change.as_mut().enable();
            let accepted = self.accept(association, candidate, proof, address);
            let ending = matches!(
                accepted,
                Err(RendezvousError::Accepted | RendezvousError::Selected)
            ) && self.lock().rendezvous.is_in_session(association);
            if !ending {
                return accepted;
            }
            tokio::select! {
                () = change => {}
                () = &mut deadline => return accepted,
            }
        }
    }

    /// Takes the acceptor's place at a candidate, for a peer at `address`. An agent is there for many; what it is offered
    /// bounds it.
    ///
    /// # Errors
    /// See [`Rendezvous::accept`]; and where the peer's token or address has too many acceptors already.
    pub fn accept(
        self: &Arc<Self>,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
        address: IpAddr,
    ) -> Result<Waiting, RendezvousError> {
        let owner = match proof {
            Proof::Token { id, .. } => Owner::new(Some(id.clone()), Some(address)),
            Proof::Nothing | Proof::Stranger(_) => Owner::new(None, Some(address)),
            Proof::Agent { .. } | Proof::Operator => Owner::default(),
        };
        let mut table = self.lock();
        if let Err(crowded) = table.acceptors.check(&owner) {
            drop(table);
            self.acceptors_reached.by(&crowded);
            return Err(RendezvousError::Full);
        }
        let changed = table.changed(association)?;
        table.reopen(association, proof);
        let peer = table.new_peer();
        table
            .rendezvous
            .accept(association, candidate, peer, proof, now())?;
        let (claim, claimed) = oneshot::channel();
        table.acceptors.count(&owner);
        let place = self.seat(&mut table, peer, Some(claim), &changed, owner);
        drop(table);
        changed.notify_waiters();
        Ok(Waiting { place, claimed })
    }

    /// Takes the connector's place at a candidate, or at the first one with an acceptor, and the acceptor with it.
    ///
    /// # Errors
    /// See [`Rendezvous::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the place, and the acceptor waits on or is closed.
    pub async fn connect(
        self: &Arc<Self>,
        association: Uuid,
        candidate: Option<Uuid>,
        proof: Proof<'_>,
    ) -> Result<PairedPeers, RendezvousError> {
        let (place, candidate, acceptor) = {
            let mut table = self.lock();
            let changed = table.changed(association)?;
            table.reopen(association, proof);
            let peer = table.new_peer();
            let meeting = table
                .rendezvous
                .connect(association, candidate, peer, proof, now())?;
            table.close(&meeting.close);
            let seat = table.seats.get_mut(&meeting.acceptor);
            let claim = seat.and_then(|seat| seat.claim.take());
            let place = self.seat(&mut table, peer, None, &changed, Owner::default());
            (place, meeting.candidate, claim)
        };
        let (handover, acceptor_party) = oneshot::channel();
        let asked = acceptor.is_some_and(|claim| claim.send(handover).is_ok());
        if !asked {
            return Err(RendezvousError::NotAccepted);
        }
        // A dropped end means that the acceptor had left.
        let acceptor = acceptor_party
            .await
            .map_err(|_| RendezvousError::NotAccepted)?;
        Ok(PairedPeers {
            place,
            candidate,
            acceptor: Box::new(acceptor),
        })
    }

    /// As [`connect`](Self::connect) to any candidate; waits until `deadline` for somebody to accept.
    ///
    /// # Errors
    /// Nobody has accepted by then, or see [`Rendezvous::connect`].
    pub async fn connect_by(
        self: &Arc<Self>,
        association: Uuid,
        proof: Proof<'_>,
        deadline: tokio::time::Instant,
    ) -> Result<PairedPeers, RendezvousError> {
        let changed = self.lock().changed(association)?;
        loop {
            let change = changed.notified();
            tokio::pin!(change);
            // Listening starts before the question, so that nobody is missed between the two.
            change.as_mut().enable();
            match self.connect(association, None, proof).await {
                Err(RendezvousError::NotAccepted) => {}
                result => return result,
            }
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                return Err(RendezvousError::NotAccepted);
            }
        }
    }

    /// Gives the acceptor back that `connector` has met and not spoken to: it waits again.
    #[must_use]
    pub fn let_wait_again(
        &self,
        connector: Place,
        acceptor: &Place,
    ) -> oneshot::Receiver<Handover> {
        let (claim, claimed) = oneshot::channel();
        let mut table = self.lock();
        // At once, so that nobody finds the acceptor without its claim.
        table.rendezvous.leave(connector.peer, now());
        table.wait_again(acceptor.peer, claim);
        drop(table);
        drop(connector);
        claimed
    }

    /// Lets an acceptor wait again that was claimed by somebody who left at that moment.
    #[must_use]
    pub fn wait_again(&self, acceptor: &Place) -> oneshot::Receiver<Handover> {
        let (claim, claimed) = oneshot::channel();
        self.lock().wait_again(acceptor.peer, claim);
        claimed
    }

    /// Whether a candidate can be used.
    ///
    /// # Errors
    /// See [`Rendezvous::test`].
    pub fn test(
        &self,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
    ) -> Result<(), RendezvousError> {
        let mut table = self.lock();
        table.reopen(association, proof);
        table.rendezvous.test(association, candidate, proof)
    }

    /// Selects a candidate, and closes all others of its association.
    ///
    /// # Errors
    /// See [`Rendezvous::select`].
    pub fn select(&self, association: Uuid, candidate: Uuid) -> Result<(), RendezvousError> {
        let mut table = self.lock();
        let close = table.rendezvous.select(association, candidate)?;
        table.close(&close);
        Ok(())
    }

    /// Selects a candidate by the client's word.
    ///
    /// # Errors
    /// See [`Rendezvous::complete`].
    pub fn complete(
        &self,
        association: Uuid,
        candidate: Uuid,
        proof: Proof<'_>,
    ) -> Result<(), RendezvousError> {
        let mut table = self.lock();
        let close = table
            .rendezvous
            .complete(association, candidate, proof, now())?;
        table.close(&close);
        Ok(())
    }

    /// Lets an association whose session is over be used again, if it still may be.
    pub fn reopen(&self, association: Uuid, proof: Proof<'_>) {
        self.lock().reopen(association, proof);
    }

    /// Notes the session of an association: its figures are the association's, and who closes `connector` ends it. Another one may follow
    /// it within `window`.
    pub fn in_session(
        &self,
        association: Uuid,
        connector: &Place,
        session: &Arc<Session>,
        window: Duration,
    ) {
        let mut table = self.lock();
        table.rendezvous.may_return(association, window);
        if let Some(vouched) = table.vouched.get_mut(&association) {
            vouched.session = Some(Arc::clone(session));
        }
        match table.seats.get_mut(&connector.peer) {
            Some(seat) if !seat.close.is_cancelled() => {
                seat.close = session.cancelled().clone();
            }
            Some(_) | None => session.cancelled().cancel(),
        }
    }

    /// Removes an association and closes its peers.
    ///
    /// # Errors
    /// See [`Rendezvous::delete`].
    pub fn delete(&self, id: Uuid, proof: Proof<'_>) -> Result<(), RendezvousError> {
        let mut table = self.lock();
        let close = table.rendezvous.delete(id, proof)?;
        table.forget(id);
        table.close(&close);
        Ok(())
    }

    /// Forgets what is past its time; returns the associations.
    pub fn expire(&self) -> Vec<Uuid> {
        let mut table = self.lock();
        let expired = table.rendezvous.expire(now());
        for (id, close) in &expired {
            table.forget(*id);
            table.close(close);
        }
        expired.into_iter().map(|(id, _)| id).collect()
    }

    /// Notes the token that a peer has shown: its place lasts no longer than that. Asked about revocations afterwards, a rule that
    /// arrives in between finds the peer.
    pub fn vouch(&self, place: &Place, association: Uuid, token: &Token) {
        if let Some(seat) = self.lock().seats.get_mut(&place.peer) {
            seat.token = Some((association, token.clone()));
        }
    }

    /// Closes the peers that `rules` revoke the token of; returns their associations with the token and its rule.
    pub fn close_revoked(&self, rules: &Revocations) -> Vec<(Uuid, TokenId, RevokingClaim)> {
        let table = self.lock();
        let seats = table.seats.values();
        let revoked = seats.filter(|seat| !seat.close.is_cancelled());
        let revoked = revoked.filter_map(|seat| {
            let (association, token) = seat.token.as_ref()?;
            let rule = rules.revokes(&token.id, &token.claims)?;
            seat.close.cancel();
            Some((*association, token.id.clone(), rule))
        });
        revoked.collect()
    }

    /// Removes the associations whose token `rules` revoke; returns them with their rule.
    pub fn end_revoked(&self, rules: &Revocations) -> Vec<(Uuid, RevokingClaim)> {
        let revoked: Vec<(Uuid, RevokingClaim)> = {
            let table = self.lock();
            let vouched = table.vouched.iter();
            let revoked = vouched.filter_map(|(id, vouched)| {
                let rule = rules.revokes(&vouched.token.id, &vouched.token.claims)?;
                if let Some(session) = &vouched.session {
                    session.end(EndCause::Revoked(rule.clone()));
                }
                Some((*id, rule))
            });
            revoked.collect()
        };
        for (id, _) in &revoked {
            // Gone already is as good.
            let _ = self.delete(*id, Proof::Operator);
        }
        revoked
    }

    /// Whether an association exists and its session is not over.
    #[must_use]
    pub fn is_live(&self, association: Uuid) -> bool {
        self.lock().rendezvous.is_live(association)
    }

    /// The association that a token is for.
    #[must_use]
    pub fn association_of(&self, token: &Token) -> Option<Uuid> {
        let table = self.lock();
        table
            .rendezvous
            .association_of(&token.id, token.claims.jet_aid)
    }

    /// What an association was created with.
    #[must_use]
    pub fn token_of(&self, association: Uuid) -> Option<Token> {
        let table = self.lock();
        let vouched = table.vouched.get(&association);
        vouched.map(|vouched| vouched.token.clone())
    }

    /// One association.
    ///
    /// # Errors
    /// See [`Rendezvous::view`].
    pub fn view(&self, id: Uuid, proof: Proof<'_>) -> Result<Listed, RendezvousError> {
        let mut table = self.lock();
        let view = table.rendezvous.view(id, proof)?;
        Ok(table.listed(view))
    }

    /// All associations.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let table = self.lock();
        let views = table.rendezvous.list().into_iter();
        views.map(|view| table.listed(view)).collect()
    }

    /// `Jet-Timeout`.
    #[must_use]
    pub fn unused_timeout(&self) -> Duration {
        self.lock().rendezvous.unused_timeout()
    }

    fn seat(
        self: &Arc<Self>,
        table: &mut MeetingTable,
        peer: PeerId,
        claim: Option<oneshot::Sender<Handover>>,
        changed: &Arc<Notify>,
        owner: Owner,
    ) -> Place {
        let close = CancellationToken::new();
        let seat = Seat {
            close: close.clone(),
            claim,
            changed: Arc::clone(changed),
            owner,
            token: None,
        };
        table.seats.insert(peer, seat);
        Place {
            meetings: Arc::clone(self),
            peer,
            close,
        }
    }

    fn leave(&self, peer: PeerId) {
        let mut table = self.lock();
        let seat = table.seats.remove(&peer);
        if let Some(seat) = &seat {
            table.acceptors.leave(&seat.owner);
        }
        let close = table.rendezvous.leave(peer, now());
        table.close(close.as_slice());
        if let Some(seat) = seat {
            seat.changed.notify_waiters();
        }
    }

    /// How many associations there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().rendezvous.count()
    }

    fn lock(&self) -> MutexGuard<'_, MeetingTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MeetingTable {
    fn new_peer(&mut self) -> PeerId {
        self.next_peer = self.next_peer.wrapping_add(1);
        PeerId(self.next_peer)
    }

    /// What fires when an association changes.
    fn changed(&self, association: Uuid) -> Result<Arc<Notify>, RendezvousError> {
        let vouched = self.vouched.get(&association);
        let vouched = vouched.ok_or(RendezvousError::UnknownAssociation)?;
        Ok(Arc::clone(&vouched.changed))
    }

    /// Lets an association be used again whose session is over within its window, unless somebody has ended that one for good.
    fn reopen(&mut self, association: Uuid, proof: Proof<'_>) {
        let vouched = self.vouched.get(&association);
        let session = vouched.and_then(|vouched| vouched.session.as_ref());
        if session.is_none_or(|session| !session.spent().is_set()) {
            // Where it cannot, whatever is asked of it is answered so.
            let _ = self.rendezvous.reopen(association, proof, now());
        }
    }

    /// Lets an acceptor be claimed again.
    fn wait_again(&mut self, acceptor: PeerId, claim: oneshot::Sender<Handover>) {
        if let Some(seat) = self.seats.get_mut(&acceptor) {
            seat.claim = Some(claim);
            seat.changed.notify_waiters();
        }
    }

    /// Forgets what an association was created with, and by whom; ends its session, if one is live.
    fn forget(&mut self, id: Uuid) {
        let Some(vouched) = self.vouched.remove(&id) else {
            return;
        };
        vouched.changed.notify_waiters();
        if let Some(session) = &vouched.session {
            session.end(EndCause::Association);
        }
        let owner = vouched.by.owner(&vouched.token);
        self.shares_of(vouched.by).leave(&owner);
    }

    /// Where associations of such a creator are counted.
    fn shares_of(&mut self, by: Creator) -> &mut Shares {
        match by {
            Creator::Operator | Creator::Bearer(_) => &mut self.bearers,
            Creator::Stranger(_) => &mut self.strangers,
        }
    }

    /// Forgets the one of `whose` associations whose session has been over for the longest; whether there was one.
    fn forget_over(&mut self, whose: impl Fn(&Vouched) -> bool) -> bool {
        let vouched = self.vouched.iter();
        let theirs = vouched.filter(|(_, vouched)| whose(vouched));
        let over = self.rendezvous.longest_over(theirs.map(|(id, _)| *id));
        let Some(over) = over else {
            return false;
        };
        let close = self.rendezvous.delete(over, Proof::Operator);
        self.forget(over);
        self.close(&close.unwrap_or_default());
        true
    }

    fn close(&self, peers: &[PeerId]) {
        for seat in peers.iter().filter_map(|peer| self.seats.get(peer)) {
            seat.close.cancel();
        }
    }

    fn listed(&self, view: AssociationView) -> Listed {
        let vouched = self.vouched.get(&view.id);
        Listed {
            token: vouched.map(|vouched| vouched.token.clone()),
            session: vouched.and_then(|vouched| vouched.session.clone()),
            view,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.meetings.leave(self.peer);
    }
}

fn now() -> Now {
    Now {
        instant: clock::now(),
        unix: clock::unix_now(),
    }
}
