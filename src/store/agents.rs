//! Agents: who is enrolled, who is connected, and who was offered what.
//!
//! What an enrolled agent is known by (its name, its public key, the targets it was enrolled for) is on disk. Enrolments that wait to
//! be used are in memory, by their digests: a restart makes them void. So are connections and offers; agents come back by
//! themselves.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::disk::{Disk, DiskError};
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_io::reached::Reached;
use jetway_jet::agent::{
    ACCEPT_TYPE, Acceptance, AgentLogon, Decline, Dial, Enrolment, EnrolmentDigest, FromGateway,
    LOGON_TYPE, NotAnEnrolment, RANDOM_BYTES, Unmet,
};
use jetway_jet::candidate::CandidateUrl;
use jetway_jet::exchange::JetPath;
use jetway_jet::message::{Answer, Candidate, Complete, Offer};
use jetway_policy::shares::{Crowded, Owner, Shares};
use jetway_token::agent_name::AgentName;
use jetway_token::statement::{self, StatementKey};
use jetway_token::target::TargetAddr;

/// All agents of this gateway.
#[derive(Debug)]
pub struct Agents {
    table: Mutex<AgentTable>,
    disk: Arc<Disk>,
    reached: Reached,
    share_reached: Reached,
    enrolments_reached: Reached,
}

#[derive(Debug, Default)]
struct AgentTable {
    agents: BTreeMap<AgentName, Agent>,
    enrolments: HashMap<EnrolmentDigest, Enrolling>,
    offers: HashMap<Uuid, Offered>,
    next_connection: u64,
}

#[derive(Debug)]
struct Agent {
    key: Arc<StatementKey>,
    targets: Option<Vec<TargetAddr>>,
    enrolled_at: UnixTime,
    connection: Option<Seat>,
}

/// The signaling channel of an agent, from outside of its task.
#[derive(Debug)]
struct Seat {
    number: u64,
    peer: SocketAddr,
    since: UnixTime,
    ways: Ways,
    outbox: mpsc::Sender<FromGateway>,
    close: oneshot::Sender<Ended>,
}

/// Why a signaling channel is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A newer channel of the agent has taken its place.
    Replaced,
    /// The agent was revoked.
    Revoked,
}

/// Why an agent that is who it says gets no channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// It was revoked in the meantime.
    Revoked,
    /// It yields to the channel that is there.
    Taken,
}

/// How an agent can come to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The relay's URLs, as the agent knows it.
    pub urls: Vec<CandidateUrl>,
    /// Whether its signaling channel has TLS: then its sessions have it, too.
    pub tls: bool,
}

#[derive(Debug)]
struct Enrolling {
    /// The API key that it was issued with, by its name.
    by: String,
    name: AgentName,
    targets: Option<Vec<TargetAddr>>,
    not_after: UnixTime,
}

/// An association that an agent was offered.
///
/// INVARIANT: an association leads to one target for as long as it has its candidates. Who was met on a candidate is thereby known
/// by what was offered, however late they have accepted.
#[derive(Debug)]
struct Offered {
    agent: AgentName,
    target: TargetAddr,
    /// Nobody waits for it any more.
    withdrawn: bool,
    answer: Option<oneshot::Sender<Result<Answer, Decline>>>,
    /// Who wanted it.
    owner: Owner,
}

/// An agent on disk.
#[derive(Deserialize, Serialize)]
struct Record {
    key: Map<String, Value>,
    targets: Option<Vec<TargetAddr>>,
    enrolled_at: UnixTime,
}

/// The signaling channel of an agent, in its task; dropping it disconnects the agent.
#[derive(Debug)]
pub struct SignalingChannel {
    agents: Arc<Agents>,
    name: AgentName,
    number: u64,
    /// What is to be sent.
    pub outbox: mpsc::Receiver<FromGateway>,
    /// Says when the channel is to end, and why.
    pub close: oneshot::Receiver<Ended>,
    /// Whether an older channel of the agent was ended for it.
    pub replaced: bool,
}

/// An offer that waits for its answer.
#[derive(Debug)]
pub struct Pending {
    /// The association.
    pub association: Uuid,
    /// The agent.
    pub agent: AgentName,
    answer: oneshot::Receiver<Result<Answer, Decline>>,
}

/// An agent as operators see it.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: AgentName,
    /// Thumbprint of its key ([RFC 7638]).
    ///
    /// [RFC 7638]: https://www.rfc-editor.org/rfc/rfc7638
    pub key: String,
    /// What it was enrolled for; absent: whatever it leads to itself.
    pub targets: Option<Vec<TargetAddr>>,
    /// Unix seconds.
    pub enrolled_at: UnixTime,
    /// Whether its signaling channel is there.
    pub connected: bool,
    /// Where from.
    pub address: Option<SocketAddr>,
    /// Since when, Unix seconds.
    pub since: Option<UnixTime>,
    /// Associations that it was offered and that are not over.
    pub sessions: usize,
}

/// Why nothing was enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The name is taken.
    #[error("an agent of this name is enrolled: revoke it first")]
    Taken,
    /// Too many wait, or are enrolled.
    #[error("too many agents")]
    Full,
    /// This API key has its share of those that wait.
    #[error("too many enrolments of {0} are waiting to be used")]
    Share(Crowded),
    /// What was shown has not the form of one.
    #[error("{0}")]
    Malformed(#[from] NotAnEnrolment),
    /// Never issued, used, or past its time.
    #[error("the enrolment is not valid, or has expired")]
    Unknown,
    /// The system has no randomness.
    #[error("the system's random generator failed: {0}")]
    Random(String),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] DiskError),
}

impl Agents {
    /// The agents in `records` of `disk`. One that cannot be read is left out, and said so.
    #[must_use]
    pub fn new(disk: Arc<Disk>, records: &[(String, String)]) -> Self {
        let mut table = AgentTable::default();
        for (name, text) in records {
            match Agent::from_record(text) {
                Ok(agent) if name.parse::<AgentName>().is_ok() => {
                    if let Ok(name) = name.parse() {
                        table.agents.insert(name, agent);
                    }
                }
                Ok(_) => warn!(agent = %name, "An agent in the store has a name that none has"),
                Err(error) => warn!(agent = %name, %error, "An agent in the store cannot be used"),
            }
        }
        Self {
            table: Mutex::new(table),
            disk,
            reached: Reached::new("sessions of one agent"),
            share_reached: Reached::new("sessions of one agent by one token or address"),
            enrolments_reached: Reached::new("agents and enrolments, in total or of one API key"),
        }
    }

    /// A text by which an agent called `name` can enrol until `not_after`; `by` is the name of the API key that asks for it.
    ///
    /// # Errors
    /// The name is taken, or too many wait, in total or of this API key.
    pub fn invite(
        &self,
        by: &str,
        name: AgentName,
        targets: Option<Vec<TargetAddr>>,
        not_after: UnixTime,
        now: UnixTime,
    ) -> Result<Enrolment, EnrolError> {
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        openssl::rand::rand_bytes(random.as_mut_slice())
            .map_err(|error| EnrolError::Random(error.to_string()))?;
        let enrolment = Enrolment::from_random(&random);
        let mut table = self.lock();
        if table.agents.contains_key(&name) {
            return Err(EnrolError::Taken);
        }
        table
            .enrolments
            .retain(|_, waiting| waiting.not_after >= now);
        if table.enrolments.len() >= limits::ENROLMENTS || table.agents.len() >= limits::AGENTS {
            drop(table);
            self.enrolments_reached.by(&Crowded::Key(by.to_owned()));
            return Err(EnrolError::Full);
        }
        if let Err(crowded) = table.waiting_shares().check(&Owner::default().by_key(by)) {
            drop(table);
            self.enrolments_reached.by(&crowded);
            return Err(EnrolError::Share(crowded));
        }
        let enrolling = Enrolling {
            by: by.to_owned(),
            name,
            targets,
            not_after,
        };
        table.enrolments.insert(enrolment.digest(), enrolling);
        Ok(enrolment)
    }

    /// Enrols whoever has `enrolment`, with its public key; returns when that is on disk.
    ///
    /// # Errors
    /// There is no such enrolment, the name is taken, or the store failed. The enrolment is used up either way.
    pub async fn enrol(
        &self,
        enrolment: &Enrolment,
        key: StatementKey,
        now: UnixTime,
    ) -> Result<AgentName, EnrolError> {
        let (name, record) = {
            let mut table = self.lock();
            let found = table.enrolments.remove(&enrolment.digest());
            let enrolling = found.filter(|enrolling| enrolling.not_after >= now);
            let enrolling = enrolling.ok_or(EnrolError::Unknown)?;
            if table.agents.contains_key(&enrolling.name) {
                return Err(EnrolError::Taken);
            }
            if table.agents.len() >= limits::AGENTS {
                return Err(EnrolError::Full);
            }
            let agent = Agent {
                key: Arc::new(key),
                targets: enrolling.targets,
                enrolled_at: now,
                connection: None,
            };
            let record = agent.to_record();
            table.agents.insert(enrolling.name.clone(), agent);
            (enrolling.name, record)
        };
        let written = self.disk.put_agent(name.to_string(), Some(record)).await;
        if let Err(error) = written {
            // What the next start would not know is not known now, either.
            self.lock().agents.remove(&name);
            return Err(error.into());
        }
        Ok(name)
    }

    /// Ends an agent's channel and knows it no more; returns all associations that it was offered, or `None` where there is no such
    /// agent. Also those whose offer was taken back: it may have accepted before that. [`forget`](Self::forget) makes it last.
    #[must_use]
    pub fn dismiss(&self, name: &AgentName) -> Option<Vec<Uuid>> {
        let mut table = self.lock();
        let agent = table.agents.remove(name)?;
        if let Some(seat) = agent.connection {
            // A channel that is gone needs no telling.
            let _ = seat.close.send(Ended::Revoked);
        }
        let mut associations = Vec::new();
        table.offers.retain(|association, offered| {
            let its = offered.agent == *name;
            if its {
                associations.push(*association);
            }
            !its
        });
        Some(associations)
    }

    /// Takes a dismissed agent off the disk.
    ///
    /// # Errors
    /// The store failed: the agent is gone until the next start.
    pub async fn forget(&self, name: &AgentName) -> Result<(), DiskError> {
        self.disk.put_agent(name.to_string(), None).await
    }

    /// Whether `text` is the answer of an agent to this challenge; its name.
    #[must_use]
    pub fn log_on(&self, text: &str, gateway: &str, nonce: &str) -> Option<AgentName> {
        let claimed: AgentLogon = statement::claimed(text, LOGON_TYPE)?;
        let key = self.key_of(&claimed.sub)?;
        let logon: AgentLogon = key.verify(text, LOGON_TYPE).ok()?;
        (logon.aud == gateway && logon.nonce == nonce).then_some(logon.sub)
    }

    /// Whether `text` is the statement of an agent that accepts at `path`, on an association that it was offered; its name, and
    /// the target that it was offered for.
    #[must_use]
    pub fn accepts(
        &self,
        text: &str,
        gateway: &str,
        path: JetPath,
    ) -> Option<(AgentName, TargetAddr)> {
        let claimed: Acceptance = statement::claimed(text, ACCEPT_TYPE)?;
        let key = self.key_of(&claimed.sub)?;
        let acceptance: Acceptance = key.verify(text, ACCEPT_TYPE).ok()?;
        let expected = Acceptance {
            aud: gateway.to_owned(),
            sub: acceptance.sub.clone(),
            jet_aid: path.association,
            candidate: path.candidate,
        };
        let table = self.lock();
        let offered = table.offers.get(&path.association)?;
        let fits = acceptance == expected && offered.agent == acceptance.sub && !offered.withdrawn;
        fits.then(|| (acceptance.sub, offered.target.clone()))
    }

    /// Gives the agent its channel. An older one ends, unless the agent `yields` to it.
    ///
    /// # Errors
    /// See [`NoSeat`].
    pub fn connect(
        self: &Arc<Self>,
        name: AgentName,
        yields: bool,
        peer: SocketAddr,
        ways: Ways,
        now: UnixTime,
    ) -> Result<SignalingChannel, NoSeat> {
        let mut table = self.lock();
        table.next_connection = table.next_connection.wrapping_add(1);
        let number = table.next_connection;
        let agent = table.agents.get_mut(&name).ok_or(NoSeat::Revoked)?;
        if yields && agent.connection.is_some() {
            return Err(NoSeat::Taken);
        }
        let (outbox, receiver) = mpsc::channel(limits::AGENT_QUEUE);
        let (close, closed) = oneshot::channel();
        let seat = Seat {
            number,
            peer,
            since: now,
            ways,
            outbox,
            close,
        };
        let older = agent.connection.replace(seat);
        let replaced = older.is_some();
        if let Some(older) = older {
            // A channel that is gone needs no telling.
            let _ = older.close.send(Ended::Replaced);
        }
        Ok(SignalingChannel {
            agents: Arc::clone(self),
            name,
            number,
            outbox: receiver,
            close: closed,
            replaced,
        })
    }

    /// The ways in that a connected agent has, for the target that is wanted.
    ///
    /// # Errors
    /// There is no such agent, it is not connected, or was not enrolled for the target.
    pub fn ways(&self, name: &AgentName, target: &TargetAddr) -> Result<Ways, Unmet> {
        let table = self.lock();
        let agent = table.agents.get(name);
        let agent = agent.ok_or_else(|| Unmet::Unknown(name.clone()))?;
        if let Some(targets) = &agent.targets
            && !targets.contains(target)
        {
            return Err(Unmet::Target(name.clone()));
        }
        match &agent.connection {
            Some(seat) => Ok(seat.ways.clone()),
            None => Err(Unmet::NotConnected(name.clone())),
        }
    }

    /// Offers an association of `owner` to an agent, which may accept on it from now on.
    ///
    /// # Errors
    /// As [`ways`](Self::ways), the agent is busy, with the sessions of this owner or with those of all, or the association was offered for something else before.
    pub fn offer(
        &self,
        name: &AgentName,
        offer: Offer,
        (target, dial): (TargetAddr, Dial),
        candidates: Vec<Candidate>,
        owner: Owner,
    ) -> Result<Pending, Unmet> {
        self.ways(name, &target)?;
        let association = offer.id;
        let (sender, answer) = oneshot::channel();
        let mut table = self.lock();
        if table.sessions(name) >= limits::AGENT_SESSIONS {
            drop(table);
            self.reached.by(name);
            return Err(Unmet::Busy(name.clone()));
        }
        if let Err(crowded) = table.shares(name, association).check(&owner) {
            drop(table);
            self.share_reached.by(&crowded);
            return Err(Unmet::Busy(name.clone()));
        }
        if let Some(offered) = table.offers.get(&association)
            && (offered.agent != *name || offered.target != target)
        {
            return Err(Unmet::Elsewhere(offered.agent.clone()));
        }
        let message = FromGateway::Offer {
            offer,
            target: target.clone(),
            candidates,
            dial,
        };
        table.send(name, message)?;
        let offered = Offered {
            agent: name.clone(),
            target,
            withdrawn: false,
            answer: Some(sender),
            owner,
        };
        table.offers.insert(association, offered);
        Ok(Pending {
            association,
            agent: name.clone(),
            answer,
        })
    }

    /// Whether an agent was offered this association.
    #[must_use]
    pub fn was_offered(&self, association: Uuid) -> bool {
        let table = self.lock();
        let offered = table.offers.get(&association);
        offered.is_some_and(|offered| !offered.withdrawn)
    }

    /// Tells the agent, if one was offered this association, what the client has chosen.
    pub fn complete(&self, association: Uuid, candidate: Uuid) {
        let table = self.lock();
        if let Some(offered) = table.offers.get(&association) {
            let message = FromGateway::Complete {
                id: association,
                complete: Complete::of(candidate),
            };
            // An agent that is gone, or does not read, learns it from the bytes.
            let _sent = table.send(&offered.agent, message);
        }
    }

    /// The agent's answer to an offer. One that nobody waits for is dropped.
    pub fn answered(&self, name: &AgentName, association: Uuid, answer: Result<Answer, Decline>) {
        let mut table = self.lock();
        let offered = table.offers.get_mut(&association);
        let waiting = offered
            .filter(|offered| offered.agent == *name)
            .and_then(|offered| offered.answer.take());
        if let Some(waiting) = waiting {
            let _gone = waiting.send(answer);
        }
    }

    /// Forgets the offers of associations that are not `live` any more.
    pub fn forget_offers(&self, live: impl Fn(Uuid) -> bool) {
        self.lock()
            .offers
            .retain(|association, _| live(*association));
    }

    /// Takes an offer back, of an association that stays: nobody accepts on it any more.
    pub fn withdraw(&self, association: Uuid) {
        if let Some(offered) = self.lock().offers.get_mut(&association) {
            offered.withdrawn = true;
            offered.answer = None;
        }
    }

    /// Forgets the offer of an association that is gone.
    pub fn forget_offer(&self, association: Uuid) {
        self.lock().offers.remove(&association);
    }

    /// All agents, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let table = self.lock();
        let agents = table.agents.iter().map(|(name, agent)| Listed {
            name: name.clone(),
            key: agent.key.thumbprint().to_owned(),
            targets: agent.targets.clone(),
            enrolled_at: agent.enrolled_at,
            connected: agent.connection.is_some(),
            address: agent.connection.as_ref().map(|seat| seat.peer),
            since: agent.connection.as_ref().map(|seat| seat.since),
            sessions: table.sessions(name),
        });
        agents.collect()
    }

    fn key_of(&self, name: &AgentName) -> Option<Arc<StatementKey>> {
        let table = self.lock();
        let agent = table.agents.get(name)?;
        Some(Arc::clone(&agent.key))
    }

    /// How many are enrolled, and how many of them are connected.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let table = self.lock();
        let connected = |agent: &&Agent| agent.connection.is_some();
        (
            table.agents.len(),
            table.agents.values().filter(connected).count(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, AgentTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentTable {
    /// Who has the enrolments that wait.
    fn waiting_shares(&self) -> Shares {
        let mut shares = Shares::new(usize::MAX, usize::MAX).with_keys(limits::ENROLMENTS);
        for waiting in self.enrolments.values() {
            shares.count(&Owner::default().by_key(&waiting.by));
        }
        shares
    }

    /// Who has the sessions of an agent, but for the one on `association`.
    fn shares(&self, name: &AgentName, association: Uuid) -> Shares {
        let mut shares = Shares::new(
            limits::AGENT_SESSIONS_PER_TOKEN,
            limits::AGENT_SESSIONS_PER_ADDRESS,
        );
        for (id, offered) in &self.offers {
            if *id != association && offered.agent == *name && !offered.withdrawn {
                shares.count(&offered.owner);
            }
        }
        shares
    }

    fn sessions(&self, name: &AgentName) -> usize {
        let offers = self.offers.values();
        offers
            .filter(|offered| offered.agent == *name && !offered.withdrawn)
            .count()
    }

    fn send(&self, name: &AgentName, message: FromGateway) -> Result<(), Unmet> {
        let agent = self.agents.get(name);
        let seat = agent.and_then(|agent| agent.connection.as_ref());
        let seat = seat.ok_or_else(|| Unmet::NotConnected(name.clone()))?;
        seat.outbox.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unmet::Busy(name.clone()),
            mpsc::error::TrySendError::Closed(_) => Unmet::NotConnected(name.clone()),
        })
    }
}

impl Agent {
    fn from_record(text: &str) -> Result<Self, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let jwk = Value::Object(record.key).to_string();
        let key = StatementKey::parse(jwk.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self {
            key: Arc::new(key),
            targets: record.targets,
            enrolled_at: record.enrolled_at,
            connection: None,
        })
    }

    fn to_record(&self) -> String {
        let record = Record {
            key: self.key.jwk().clone(),
            targets: self.targets.clone(),
            enrolled_at: self.enrolled_at,
        };
        serde_json::to_string(&record).expect("names and keys are always JSON")
    }
}

impl SignalingChannel {
    /// The agent.
    #[must_use]
    pub fn name(&self) -> &AgentName {
        &self.name
    }
}

impl Drop for SignalingChannel {
    fn drop(&mut self) {
        let mut table = self.agents.lock();
        let Some(agent) = table.agents.get_mut(&self.name) else {
            return;
        };
        let seat = agent.connection.as_ref();
        if seat.is_none_or(|seat| seat.number != self.number) {
            return;
        }
        agent.connection = None;
        // Nobody waits for answers that cannot come.
        let offers = table.offers.values_mut();
        for offered in offers.filter(|offered| offered.agent == self.name) {
            offered.answer = None;
        }
    }
}

impl Pending {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The agent declines, or its answer can come no more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn answer(&mut self) -> Result<Answer, Unmet> {
        match (&mut self.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(decline)) => Err(Unmet::Declined(self.agent.clone(), decline)),
            Err(_gone) => Err(Unmet::NotConnected(self.agent.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use jetway_jet::exchange::Operation;
    use jetway_jet::message::Version;
    use jetway_token::TokenId;
    use jetway_token::algorithm::{Algorithm, SignatureAlgorithm};
    use jetway_token::key::Key;
    use jetway_token::mint::{self, SigningKey};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    const BY: &str = "operations";

    #[tokio::test]
    async fn so_many_agents_are_enrolled_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        let last = agents.invite(BY, name(0), None, NOW, NOW).unwrap();
        let late = agents.invite(BY, name(1), None, NOW, NOW).unwrap();
        seat_directly(&agents, 2..limits::AGENTS + 1);
        agents.enrol(&last, key(), NOW).await.unwrap();
        assert_eq!(agents.list().len(), limits::AGENTS);
        // Neither an enrolment that was issued before nor a new one.
        let full = agents.enrol(&late, key(), NOW).await.unwrap_err();
        assert!(matches!(full, EnrolError::Full), "{full}");
        let full = agents.invite(BY, name(1), None, NOW, NOW).unwrap_err();
        assert!(matches!(full, EnrolError::Full), "{full}");
        // Until one is revoked.
        agents.dismiss(&name(0)).unwrap();
        agents.forget(&name(0)).await.unwrap();
        agents.invite(BY, name(1), None, NOW, NOW).unwrap();
    }

    #[test]
    fn so_many_enrolments_wait_of_one_key_and_of_all_and_those_past_their_time_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        let mut invited = 0;
        let mut invite = |by, now| {
            invited += 1;
            agents.invite(by, name(invited), None, NOW, now)
        };
        let share = limits::ENROLMENTS - limits::ENROLMENTS / 4;
        for _ in 0..share {
            invite(BY, NOW).unwrap();
        }
        let crowded = invite(BY, NOW).unwrap_err();
        assert!(matches!(crowded, EnrolError::Share(_)), "{crowded}");
        for _ in share..limits::ENROLMENTS {
            invite("another", NOW).unwrap();
        }
        let full = invite("a third", NOW).unwrap_err();
        assert!(matches!(full, EnrolError::Full), "{full}");
        invite(BY, NOW.plus(1)).unwrap();
    }

    #[test]
    fn an_agent_has_so_many_sessions_and_another_one_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..2);
        let (mut one, _other) = (connect(&agents, 0, false), connect(&agents, 1, false));
        let mut offers = Vec::new();
        for _ in 0..limits::AGENT_SESSIONS {
            offers.push(offer(&agents, 0).unwrap());
            // The agent reads what it is sent.
            one.outbox.try_recv().unwrap();
        }
        assert_eq!(offer(&agents, 0).unwrap_err(), Unmet::Busy(name(0)));
        offer(&agents, 1).unwrap();
        // A session that is over makes room.
        let over = offers[0].association;
        agents.forget_offers(|association| association != over);
        offer(&agents, 0).unwrap();
    }

    #[test]
    fn a_token_and_an_address_have_their_share_of_an_agent() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..1);
        let mut connected = connect(&agents, 0, false);
        let mut offer = |token: usize, last: u8| {
            let token = TokenId::new(format!("token {token}"));
            let owner = Owner::new(Some(token), Some([192, 0, 2, last].into()));
            let pending = offer_of(&agents, 0, owner);
            // The agent reads what it is sent.
            let _ = connected.outbox.try_recv();
            pending
        };
        for _ in 0..limits::AGENT_SESSIONS_PER_TOKEN {
            offer(0, 1).unwrap();
        }
        assert_eq!(offer(0, 2).unwrap_err(), Unmet::Busy(name(0)));
        for token in limits::AGENT_SESSIONS_PER_TOKEN..limits::AGENT_SESSIONS_PER_ADDRESS {
            offer(token, 1).unwrap();
        }
        assert_eq!(offer(1, 1).unwrap_err(), Unmet::Busy(name(0)));
        let mut others = 0;
        while offer(1000 + others, 2).is_ok() {
            others += 1;
        }
        assert_eq!(
            others,
            limits::AGENT_SESSIONS - limits::AGENT_SESSIONS_PER_ADDRESS
        );
    }

    #[test]
    fn an_agent_that_does_not_read_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..1);
        let mut connected = connect(&agents, 0, false);
        for _ in 0..limits::AGENT_QUEUE {
            offer(&agents, 0).unwrap();
        }
        assert_eq!(offer(&agents, 0).unwrap_err(), Unmet::Busy(name(0)));
        // What it was not offered does not count.
        assert_eq!(agents.list()[0].sessions, limits::AGENT_QUEUE);
        connected.outbox.try_recv().unwrap();
        offer(&agents, 0).unwrap();
    }

    #[test]
    fn an_agent_has_one_channel_and_who_yields_takes_it_from_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..1);
        let mut first = connect(&agents, 0, true);
        assert!(first.close.try_recv().is_err(), "it was free");
        let mut second = connect(&agents, 0, false);
        assert!(second.replaced);
        assert_eq!(first.close.try_recv(), Ok(Ended::Replaced));
        // The end of the older one does not disconnect the newer.
        drop(first);
        assert!(agents.list()[0].connected);
        let yields = try_connect(&agents, 0, true);
        assert_eq!(yields.unwrap_err(), NoSeat::Taken);
        assert!(second.close.try_recv().is_err(), "it has kept its place");
        drop(second);
        assert!(!connect(&agents, 0, true).replaced);
    }

    #[tokio::test]
    async fn who_is_revoked_loses_its_channel_and_its_offers() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..1);
        let mut connected = connect(&agents, 0, false);
        let pending = offer(&agents, 0).unwrap();
        let revoked = agents.dismiss(&name(0));
        assert_eq!(revoked, Some(vec![pending.association]));
        assert_eq!(connected.close.try_recv(), Ok(Ended::Revoked));
        let again = try_connect(&agents, 0, false);
        assert_eq!(again.unwrap_err(), NoSeat::Revoked);
        assert_eq!(agents.dismiss(&name(0)), None);
    }

    #[tokio::test]
    async fn who_is_revoked_loses_what_an_offer_that_was_taken_back_may_have_led_to() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        seat_directly(&agents, 0..1);
        let _connected = connect(&agents, 0, false);
        let pending = offer(&agents, 0).unwrap();
        agents.withdraw(pending.association);
        agents.forget_offers(|_| true);
        assert_eq!(agents.dismiss(&name(0)), Some(vec![pending.association]));
    }

    #[test]
    fn an_offer_that_was_taken_back_is_accepted_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let agents = store(folder.path());
        let signing = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        seat_with(&agents, 0..1, &signing);
        let _connected = connect(&agents, 0, false);
        let pending = offer(&agents, 0).unwrap();
        let path = JetPath {
            operation: Operation::Accept,
            association: pending.association,
            candidate: Uuid::new_v4(),
        };
        let acceptance = Acceptance {
            aud: "gw".to_owned(),
            sub: name(0),
            jet_aid: path.association,
            candidate: path.candidate,
        };
        let signing = SigningKey::from_key(&signing, None).unwrap();
        let statement = statement::sign(&signing, ACCEPT_TYPE, &acceptance).unwrap();
        let accepts = || agents.accepts(&statement, "gw", path).is_some();
        assert!(accepts());
        agents.withdraw(pending.association);
        assert!(!accepts());
    }

    fn store(folder: &Path) -> Arc<Agents> {
        let (disk, _) = Disk::open(&folder.join("state.redb"), NOW).unwrap();
        Arc::new(Agents::new(Arc::new(disk), &[]))
    }

    /// Agents as if they had enrolled, without the disk.
    fn seat_directly(agents: &Agents, numbers: std::ops::Range<usize>) {
        let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        seat_with(agents, numbers, &key);
    }

    fn seat_with(agents: &Agents, numbers: std::ops::Range<usize>, key: &Key) {
        let key = Arc::new(public(key));
        let mut table = agents.lock();
        for number in numbers {
            let agent = Agent {
                key: Arc::clone(&key),
                targets: None,
                enrolled_at: NOW,
                connection: None,
            };
            table.agents.insert(name(number), agent);
        }
    }

    fn try_connect(
        agents: &Arc<Agents>,
        number: usize,
        yields: bool,
    ) -> Result<SignalingChannel, NoSeat> {
        let ways = Ways {
            urls: Vec::new(),
            tls: true,
        };
        let peer = "127.0.0.1:1".parse().unwrap();
        agents.connect(name(number), yields, peer, ways, NOW)
    }

    fn connect(agents: &Arc<Agents>, number: usize, yields: bool) -> SignalingChannel {
        try_connect(agents, number, yields).unwrap()
    }

    /// An offer of a token of its own.
    fn offer(agents: &Agents, number: usize) -> Result<Pending, Unmet> {
        let token = TokenId::new(Uuid::new_v4().to_string());
        offer_of(agents, number, Owner::new(Some(token), None))
    }

    fn offer_of(agents: &Agents, number: usize, owner: Owner) -> Result<Pending, Unmet> {
        let offer = Offer::new(Uuid::new_v4(), Version::V3, None);
        let target = "pc:3389".parse().unwrap();
        let dial = Dial::default();
        agents.offer(&name(number), offer, (target, dial), Vec::new(), owner)
    }

    fn name(number: usize) -> AgentName {
        format!("agent-{number}").parse().unwrap()
    }

    fn key() -> StatementKey {
        public(&mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap())
    }

    fn public(key: &Key) -> StatementKey {
        let jwk = Value::Object(key.public_jwk().unwrap()).to_string();
        StatementKey::parse(jwk.as_bytes()).unwrap()
    }
}
