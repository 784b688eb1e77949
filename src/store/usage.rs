//! One token, one live session.
//!
//! A token is *reserved* while its session is being set up, *live* while it runs, and *used* afterwards. A set-up that
//! fails gives the reservation back, so a target that was down does not cost the user the token; from the moment the
//! target has answered, the use is on disk before a byte is relayed. Within a reconnect window the same token may open
//! another session for the same address, never two at one time; not where an operator or a limit has ended the last one.
//!
//! What a token's sessions have lasted together is remembered, too: a time limit (`jet_ttl`) is one of all of them, so that to come
//! back within the window gains no time. A process that is killed loses what its last session has lasted. In a rendezvous tokens of others
//! take part, that of the acceptor and the one that the association was created with: their time is counted as well ([`Companion`]), so
//! that to meet one token after the other gains none, either. It runs while at least one of their sessions does: several at once do not
//! use it up faster, and gain none.
//!
//! A token that has expired is forgotten, since its age refuses it. A clock that was set forward and back would make it young again, so
//! the latest end of all that were forgotten is remembered, here and on disk: a token that ends no later is refused when it is not
//! known. A clock that only goes forward never sees that.
//!
//! Wrong passwords of clients that are to prove themselves are counted here, by token: whoever tries one has the token
//! reserved, so that there is one attempt at a time whatever the number of connections and addresses. The count lasts as
//! long as the token does, on disk as well, and a right password does not clear it. When it is full the token is spent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::error;

use crate::disk::{Disk, DiskError, Record, Records};
use jetway_base::address::AddressGroup;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_io::reached::Reached;
use jetway_policy::shares::{Owner, Shares};
use jetway_token::TokenId;

/// Tokens remembered at one time. Only tokens that verified get here, so only an issuer can fill it.
const REMEMBERED_TOKENS: usize = 1_000_000;

/// Of those the ones that one address has used. A used token must be remembered until its end, so none can make room.
const REMEMBERED_TOKENS_PER_ADDRESS: usize = REMEMBERED_TOKENS / 4;

/// What is known of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Usage {
    client: IpAddr,
    keep_until: UnixTime,
    state: UsageState,
    /// Since when its session is open, if one is.
    open_since: Option<Instant>,
    /// What its sessions have lasted that are over, seconds.
    lasted_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UsageState {
    /// Its session is being set up, or runs.
    Live(SessionId),
    /// Its last session ended then.
    Ended(UnixTime),
}

/// The sessions in which a token takes part and that another one has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Accompanied {
    /// How long there was one at least, up to the moment at which there was none any more, seconds.
    lasted_s: u64,
    keep_until: UnixTime,
    /// How many there are.
    live: u32,
    /// Since when there is one.
    live_since: Instant,
}

impl Accompanied {
    /// How long there was one at least until `now`, seconds.
    fn lasted_until(&self, now: Instant) -> u64 {
        let live = (self.live > 0).then(|| whole_seconds(self.live_since, now));
        self.lasted_s.saturating_add(live.unwrap_or(0))
    }
}

/// A second that has begun counts: else many short sessions would gain time.
fn whole_seconds(since: Instant, now: Instant) -> u64 {
    let lasted = now.saturating_duration_since(since);
    lasted.as_secs().saturating_add(1)
}

/// The wrong passwords of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guesses {
    count: u32,
    keep_until: UnixTime,
}

/// Why a token cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// The token opened its session already.
    #[error("the token was used already")]
    Replayed,
    /// The token has a live session.
    #[error("the token has a live session")]
    InUse,
    /// The token was used from another address.
    #[error("the token was used already, from another address")]
    OtherAddress,
    /// The time limit of a token that is to take part in the session is used up by others.
    #[error("the time of a token that takes part is over (jet_ttl, session.time_limit_s)")]
    OverTime,
    /// Too many wrong passwords were shown with the token.
    #[error("the token was spent by wrong passwords (prx_pwd)")]
    Guessed,
    /// The store cannot say whether the token was used: refused rather than risked.
    #[error("the store failed: {0}")]
    Store(String),
}

impl UsageError {
    /// The name of the rule, for the log: stable, one word, safe to count by.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::InUse => "in-use",
            Self::OtherAddress => "other-address",
            Self::OverTime => "over-time",
            Self::Guessed => "guessed",
            Self::Store(_) => "store",
        }
    }
}

/// What follows from a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongGuess {
    /// How many there were, this one among them.
    pub count: u32,
    /// How long the answer is to be held back.
    pub delay: Duration,
    /// The token is spent.
    pub is_last: bool,
}

/// The table without its disk: a state machine over `now`.
#[derive(Debug)]
struct UsageTable {
    tokens: HashMap<TokenId, Usage>,
    /// No token with a later `keep_until` was ever forgotten.
    forgotten_until: UnixTime,
    guesses: HashMap<TokenId, Guesses>,
    accompanied: HashMap<TokenId, Accompanied>,
    /// Tokens that wrong passwords have spent, until they would be refused for their age.
    spent: HashMap<TokenId, UnixTime>,
    shares: Shares,
}

impl Default for UsageTable {
    fn default() -> Self {
        Self {
            tokens: HashMap::new(),
            forgotten_until: UnixTime(0),
            guesses: HashMap::new(),
            accompanied: HashMap::new(),
            spent: HashMap::new(),
            shares: Shares::new(usize::MAX, REMEMBERED_TOKENS_PER_ADDRESS),
        }
    }
}

impl Usage {
    fn owner(&self) -> Owner {
        Owner::new(None, Some(self.client))
    }
}

/// What a client claims when it wants to use a token.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The token.
    pub token: TokenId,
    /// The session that is to be opened.
    pub session: SessionId,
    /// The client's address.
    pub client: IpAddr,
    /// How long after its last session the token may open another one, seconds.
    pub reconnect_window_s: u64,
    /// The token is refused for its age from then on, so no memory of it is needed.
    pub keep_until: UnixTime,
    /// Whether whoever may has ended the session for good: then no window opens behind it.
    pub spent: Spent,
}

/// Set when an operator or a limit ends a session: its token opens no other one, whatever its reconnect window says.
#[derive(Clone, Debug, Default)]
pub struct Spent(Arc<AtomicBool>);

impl Spent {
    /// Spends the token.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is spent.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl UsageTable {
    /// Takes the token for a session. Returns what was known before, for [`UsageTable::give_back`].
    fn reserve(&mut self, claim: &Claim, now: UnixTime) -> Result<Option<Usage>, UsageError> {
        if self.spent.contains_key(&claim.token) {
            return Err(UsageError::Guessed);
        }
        let previous = self.tokens.get(&claim.token).cloned();
        if let Some(usage) = &previous {
            match usage.state {
                UsageState::Live(_) => return Err(UsageError::InUse),
                UsageState::Ended(_) if AddressGroup::from(usage.client) != claim.client.into() => {
                    return Err(UsageError::OtherAddress);
                }
                UsageState::Ended(at) if now.since(at) >= claim.reconnect_window_s => {
                    return Err(UsageError::Replayed);
                }
                UsageState::Ended(_) => {}
            }
        } else if claim.keep_until <= self.forgotten_until {
            return Err(UsageError::Store(
                "the clock was set back, and whether this token was used is not known any more"
                    .to_owned(),
            ));
        } else {
            self.make_room(claim.client, now)?;
        }
        let usage = Usage {
            client: claim.client,
            keep_until: claim.keep_until,
            state: UsageState::Live(claim.session),
            open_since: None,
            lasted_s: previous.as_ref().map_or(0, |usage| usage.lasted_s),
        };
        self.put(&claim.token, Some(usage));
        Ok(previous)
    }

    fn make_room(&mut self, client: IpAddr, now: UnixTime) -> Result<(), UsageError> {
        let owner = Owner::new(None, Some(client));
        if self.remembered() >= REMEMBERED_TOKENS || self.shares.check(&owner).is_err() {
            self.forget_expired(now);
        }
        let too_many = |whose| UsageError::Store(format!("too many tokens remembered{whose}"));
        if self.remembered() >= REMEMBERED_TOKENS {
            return Err(too_many(String::new()));
        }
        let crowded = self.shares.check(&owner);
        crowded.map_err(|crowded| too_many(format!(" of {crowded}")))
    }

    /// What is known of a token from now on.
    fn put(&mut self, token: &TokenId, usage: Option<Usage>) {
        if let Some(usage) = &usage {
            self.shares.count(&usage.owner());
        }
        let before = match usage {
            Some(usage) => self.tokens.insert(token.clone(), usage),
            None => self.tokens.remove(token),
        };
        if let Some(before) = before {
            self.shares.leave(&before.owner());
        }
    }

    /// Undoes a reservation.
    fn give_back(&mut self, token: &TokenId, previous: Option<Usage>) {
        self.put(token, previous);
    }

    /// The token's session is over, after so many seconds; what all of its sessions have lasted.
    fn end(&mut self, token: &TokenId, now: UnixTime, lasted_s: u64) -> u64 {
        let Some(usage) = self.tokens.get_mut(token) else {
            return lasted_s;
        };
        usage.state = UsageState::Ended(now);
        usage.open_since = None;
        usage.lasted_s = usage.lasted_s.saturating_add(lasted_s);
        usage.lasted_s
    }

    /// What all sessions have lasted until `now` that a token has opened or taken part in, seconds.
    fn lasted_s(&self, token: &TokenId, now: Instant) -> u64 {
        let own = self.tokens.get(token).map_or(0, |usage| {
            let open = usage
                .open_since
                .map_or(0, |since| whole_seconds(since, now));
            usage.lasted_s.saturating_add(open)
        });
        let others = self.accompanied.get(token);
        own.saturating_add(others.map_or(0, |others| others.lasted_until(now)))
    }

    /// A session begins in which the token takes part.
    fn accompany(
        &mut self,
        token: &TokenId,
        keep_until: UnixTime,
        (now, unix_now): (Instant, UnixTime),
    ) -> Result<(), UsageError> {
        if self.accompanied.len() >= REMEMBERED_TOKENS && !self.accompanied.contains_key(token) {
            self.forget_expired(unix_now);
            if self.accompanied.len() >= REMEMBERED_TOKENS {
                return Err(UsageError::Store("too many tokens remembered".to_owned()));
            }
        }
        let known = self.accompanied.entry(token.clone());
        let known = known.or_insert(Accompanied {
            lasted_s: 0,
            keep_until,
            live: 0,
            live_since: now,
        });
        if known.live == 0 {
            known.live_since = now;
        }
        known.live = known.live.saturating_add(1);
        Ok(())
    }

    /// Such a session is over: what all of them have lasted until `now`, seconds.
    fn leave(&mut self, token: &TokenId, now: Instant) -> u64 {
        let Some(known) = self.accompanied.get_mut(token) else {
            return 0;
        };
        let lasted_s = known.lasted_until(now);
        known.live = known.live.saturating_sub(1);
        if known.live == 0 {
            known.lasted_s = lasted_s;
        }
        lasted_s
    }

    fn remembered(&self) -> usize {
        self.tokens.len().saturating_add(self.spent.len())
    }

    /// Counts a wrong password.
    fn wrong_guess(&mut self, claim: &Claim, now: UnixTime) -> WrongGuess {
        let known = self.guesses.get(&claim.token).map(|known| known.count);
        if known.is_none() && self.guesses.len() >= limits::GUESSED_TOKENS {
            self.forget_expired(now);
        }
        let count = match known {
            Some(count) => count.saturating_add(1),
            // What cannot be counted is not let go on.
            None if self.guesses.len() >= limits::GUESSED_TOKENS => limits::PASSWORD_GUESSES,
            None => 1,
        };
        let doubled = 1_u32
            .checked_shl(count.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let is_last = count >= limits::PASSWORD_GUESSES;
        if is_last {
            self.guesses.remove(&claim.token);
            self.spent.insert(claim.token.clone(), claim.keep_until);
        } else {
            let keep_until = claim.keep_until;
            let guesses = Guesses { count, keep_until };
            self.guesses.insert(claim.token.clone(), guesses);
        }
        WrongGuess {
            count,
            delay: limits::PASSWORD_DELAY
                .saturating_mul(doubled)
                .min(limits::PASSWORD_DELAY_MAX),
            is_last,
        }
    }

    fn forget_expired(&mut self, now: UnixTime) {
        let mut last = self.forgotten_until;
        let mut keep = |keep_until: UnixTime| {
            let keep = keep_until >= now;
            if !keep {
                last = last.max(keep_until);
            }
            keep
        };
        self.guesses.retain(|_, known| known.keep_until >= now);
        self.accompanied
            .retain(|_, known| known.live > 0 || known.keep_until >= now);
        self.spent.retain(|_, keep_until| keep(*keep_until));
        let Self { tokens, shares, .. } = self;
        tokens.retain(|_, usage| {
            let kept = matches!(usage.state, UsageState::Live(_)) || keep(usage.keep_until);
            if !kept {
                shares.leave(&usage.owner());
            }
            kept
        });
        self.forgotten_until = last;
    }
}

/// When the session of a spent token has ended, as far as reconnect windows go.
const LONG_AGO: UnixTime = UnixTime(0);

/// How long a client that comes back at once is let wait for the end of its own last session. The target's close, which made
/// it come back, is still on its way through the relay then; or it is the client itself that has gone and comes back, while its target
/// has its time to end (`jetway::relay::RDP_AFTER_END`) and to close.
const HANDOVER: Duration = Duration::from_secs(4);

/// The table and its disk.
#[derive(Debug)]
pub struct Usages {
    table: Mutex<UsageTable>,
    disk: Arc<Disk>,
    /// Fires when a session has given its token back.
    ended: Notify,
    reached: Reached,
}

impl Usages {
    /// What `records` of the disk say, and until when tokens were forgotten. A session that was live when the process ended counts as
    /// ended now.
    #[must_use]
    pub fn new(disk: Arc<Disk>, records: Records, now: UnixTime) -> Self {
        let mut table = UsageTable {
            spent: records.spent.into_iter().collect(),
            guesses: records
                .guesses
                .into_iter()
                .map(|(token, count, keep_until)| (token, Guesses { count, keep_until }))
                .collect(),
            accompanied: records
                .accompanied
                .into_iter()
                .map(|(token, lasted_s, keep_until)| {
                    let accompanied = Accompanied {
                        lasted_s,
                        keep_until,
                        live: 0,
                        live_since: clock::now(),
                    };
                    (token, accompanied)
                })
                .collect(),
            forgotten_until: records.forgotten_until,
            ..UsageTable::default()
        };
        for (token, record) in records.tokens {
            let usage = Usage {
                client: record.client,
                keep_until: record.keep_until,
                state: UsageState::Ended(record.ended_at.unwrap_or(now)),
                open_since: None,
                lasted_s: record.lasted_s,
            };
            table.put(&token, Some(usage));
        }
        Self {
            table: Mutex::new(table),
            disk,
            ended: Notify::new(),
            reached: Reached::new("used tokens, in total or of one address"),
        }
    }

    /// Takes a token for a session; waits a moment if its last session is just ending.
    ///
    /// # Errors
    /// The token has a live session, or was used before and may not be used again.
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing.
    pub async fn reserve(self: &Arc<Self>, claim: Claim) -> Result<Reservation, UsageError> {
        let deadline = tokio::time::sleep(HANDOVER);
        tokio::pin!(deadline);
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Listening starts before the question, so that no end is missed between the two.
            ended.as_mut().enable();
            match self.try_reserve(claim.clone()) {
                Err(UsageError::InUse) if claim.reconnect_window_s > 0 => {}
                result => return result,
            }
            tokio::select! {
                () = ended => {}
                () = &mut deadline => return self.try_reserve(claim),
            }
        }
    }

    fn try_reserve(self: &Arc<Self>, claim: Claim) -> Result<Reservation, UsageError> {
        let mut table = self.lock();
        let reserved = table.reserve(&claim, clock::unix_now());
        let before_s = table.lasted_s(&claim.token, clock::now());
        drop(table);
        let previous = reserved.inspect_err(|refusal| {
            if matches!(refusal, UsageError::Store(_)) {
                self.reached.by(refusal);
            }
        })?;
        Ok(Reservation {
            usages: Arc::clone(self),
            claim,
            previous,
            before_s,
            opened_at: None,
        })
    }

    /// Lets a token take part in a session that another has opened, until the companion is dropped; `limit` is that of all sessions of
    /// the token.
    ///
    /// # Errors
    /// They have lasted as long already, or there are too many tokens.
    pub fn accompany(
        self: &Arc<Self>,
        token: TokenId,
        keep_until: UnixTime,
        limit: Option<Duration>,
    ) -> Result<Companion, UsageError> {
        let now = clock::now();
        let mut table = self.lock();
        let before = Duration::from_secs(table.lasted_s(&token, now));
        if limit.is_some_and(|limit| before >= limit) {
            return Err(UsageError::OverTime);
        }
        let accompanied = table.accompany(&token, keep_until, (now, clock::unix_now()));
        drop(table);
        accompanied.inspect_err(|refusal| self.reached.by(refusal))?;
        Ok(Companion {
            usages: Arc::clone(self),
            token,
            keep_until,
            left: limit.map(|limit| limit.saturating_sub(before)),
        })
    }

    /// Whether this token opens no session any more, given how long its reconnect window is: it was used, and that window is
    /// over.
    #[must_use]
    pub fn is_over(&self, token: &TokenId, reconnect_window_s: u64, now: UnixTime) -> bool {
        let table = self.lock();
        let ended = match table.tokens.get(token).map(|usage| usage.state) {
            Some(UsageState::Ended(at)) => now.since(at) >= reconnect_window_s,
            Some(UsageState::Live(_)) | None => false,
        };
        ended || table.spent.contains_key(token)
    }

    /// Writes that no window opens behind the session of this token, which is being ended for good; returns when that is on disk, so that
    /// a process that ends before the session does leaves it so.
    ///
    /// # Errors
    /// The disk failed: it holds for this process alone.
    pub async fn spend(&self, token: &TokenId) -> Result<(), DiskError> {
        let known = self.lock().tokens.get(token).cloned();
        let Some(usage) = known else { return Ok(()) };
        let record = Record {
            client: usage.client,
            keep_until: usage.keep_until,
            ended_at: Some(LONG_AGO),
            lasted_s: usage.lasted_s,
        };
        self.disk.put(token.clone(), record).await
    }

    /// Drops what no longer needs to be remembered, here and on disk.
    pub fn forget_expired(&self, now: UnixTime) {
        self.lock().forget_expired(now);
        self.disk.forget_expired(now);
    }

    /// How many tokens are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().tokens.len()
    }

    /// Whether the last write to the store has failed: no token can be used until one succeeds.
    #[must_use]
    pub fn store_fails(&self) -> bool {
        self.disk.is_failing()
    }

    fn lock(&self) -> MutexGuard<'_, UsageTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token taken for one session. Dropped before [`Reservation::commit`], the token is as it was; afterwards, the
/// session is over and the token used.
#[derive(Debug)]
pub struct Reservation {
    usages: Arc<Usages>,
    claim: Claim,
    previous: Option<Usage>,
    /// What all sessions have lasted that the token has opened before, or taken part in, seconds.
    before_s: u64,
    /// Since when the use is permanent; no clock that is set changes how long the session lasts.
    opened_at: Option<Instant>,
}

impl Reservation {
    /// Makes the use permanent; returns when it is on disk.
    ///
    /// # Errors
    /// The disk failed: the session must not start.
    pub async fn commit(&mut self) -> Result<(), UsageError> {
        let record = self.record(None, self.lasted_s());
        self.usages
            .disk
            .put(self.claim.token.clone(), record)
            .await
            .map_err(|error| UsageError::Store(error.to_string()))?;
        let now = clock::now();
        self.opened_at = Some(now);
        if let Some(usage) = self.usages.lock().tokens.get_mut(&self.claim.token) {
            usage.open_since = Some(now);
        }
        Ok(())
    }

    /// What is left of a time limit that holds for all sessions of the token together.
    #[must_use]
    pub fn left_of(&self, limit: Duration) -> Duration {
        limit.saturating_sub(Duration::from_secs(self.before_s))
    }

    /// What the token's earlier sessions have lasted, seconds.
    fn lasted_s(&self) -> u64 {
        self.previous.as_ref().map_or(0, |usage| usage.lasted_s)
    }

    /// A limit has ended the session: the token is spent, and that is on disk when this returns.
    pub async fn spend(&self) {
        self.claim.spent.set();
        let token = &self.claim.token;
        if let Err(error) = self.usages.spend(token).await {
            error!(%token, %error, "Cannot store that a token is spent");
        }
    }

    /// Counts a wrong password of the client whose attempt this is. It counts from the moment of the call, and is on disk when the
    /// future is ready, or the disk has failed and it counts until the process ends.
    ///
    /// # Cancel safety
    /// Dropping the future undoes nothing.
    pub async fn wrong_guess(&self) -> WrongGuess {
        let guess = self
            .usages
            .lock()
            .wrong_guess(&self.claim, clock::unix_now());
        let Claim {
            token, keep_until, ..
        } = &self.claim;
        let disk = &self.usages.disk;
        if guess.is_last {
            if let Err(error) = disk.spend(token.clone(), *keep_until).await {
                error!(%token, %error, "Cannot store that a token is spent");
            }
        } else {
            let written = disk.count_guess(token.clone(), guess.count, *keep_until);
            if let Err(error) = written.await {
                error!(%token, %error, "Cannot store a wrong password");
            }
        }
        guess
    }

    fn record(&self, ended_at: Option<UnixTime>, lasted_s: u64) -> Record {
        Record {
            client: self.claim.client,
            keep_until: self.claim.keep_until,
            ended_at,
            lasted_s,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let spent = self.claim.spent.is_set();
        if self.opened_at.is_some() || spent {
            // Every window that began then is over.
            let ended = if spent { LONG_AGO } else { clock::unix_now() };
            let lasted_s = self
                .opened_at
                .map_or(0, |opened_at| whole_seconds(opened_at, clock::now()));
            let lasted_s = self.usages.lock().end(&self.claim.token, ended, lasted_s);
            let record = self.record(Some(ended), lasted_s);
            self.usages.disk.put_later(self.claim.token.clone(), record);
        } else {
            self.usages
                .lock()
                .give_back(&self.claim.token, self.previous.take());
        }
        self.usages.ended.notify_waiters();
    }
}

/// A token that takes part in a session which another has opened: what the session lasts counts for it, too.
#[derive(Debug)]
pub struct Companion {
    usages: Arc<Usages>,
    token: TokenId,
    keep_until: UnixTime,
    left: Option<Duration>,
}

impl Companion {
    /// What was left of the token's time limit when the session began.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.left
    }

    /// A limit has ended the session: what it has lasted is on disk when this returns.
    pub async fn settle(&self) {
        let known = self.usages.lock().accompanied.get(&self.token).copied();
        let lasted_s = known.map_or(0, |known| known.lasted_until(clock::now()));
        let token = &self.token;
        let disk = &self.usages.disk;
        let written = disk.accompany(token.clone(), lasted_s, self.keep_until);
        if let Err(error) = written.await {
            error!(%token, %error, "Cannot store how long a session lasted");
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let token = &self.token;
        let lasted_s = self.usages.lock().leave(token, clock::now());
        let disk = &self.usages.disk;
        disk.accompany_later(token.clone(), lasted_s, self.keep_until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn claim(client: IpAddr, reconnect_window_s: u64) -> Claim {
        Claim {
            token: TokenId::new("t1"),
            session: SessionId::from(clock::new_uuid()),
            client,
            reconnect_window_s,
            keep_until: UnixTime(1000),
            spent: Spent::default(),
        }
    }

    #[test]
    fn a_second_live_session_with_one_token_never_exists() {
        let mut table = UsageTable::default();
        table.reserve(&claim(HERE, 60), UnixTime(1)).unwrap();
        assert!(matches!(
            table.reserve(&claim(HERE, 60), UnixTime(2)),
            Err(UsageError::InUse)
        ));
        assert!(matches!(
            table.reserve(&claim(ELSEWHERE, 60), UnixTime(2)),
            Err(UsageError::InUse)
        ));
    }

    #[test]
    fn sessions_in_which_a_token_takes_part_add_up_with_its_own() {
        let (mut table, token) = (UsageTable::default(), TokenId::new("t1"));
        table.reserve(&claim(HERE, 60), UnixTime(1)).unwrap();
        table.end(&token, UnixTime(31), 30);
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let begin = |table: &mut UsageTable, seconds| {
            let now = (at(seconds), UnixTime(60));
            table.accompany(&token, UnixTime(1000), now).unwrap();
        };
        // A second that has begun counts.
        begin(&mut table, 0);
        assert_eq!(table.leave(&token, at(19)), 20);
        // Two at once: one clock for both, which is read while it runs.
        begin(&mut table, 100);
        begin(&mut table, 102);
        assert_eq!(table.lasted_s(&token, at(103)), 30 + 20 + 4);
        assert_eq!(table.leave(&token, at(105)), 20 + 6);
        table.forget_expired(UnixTime(1001));
        assert_eq!(table.lasted_s(&token, at(105)), 20 + 6, "one is live yet");
        assert_eq!(table.leave(&token, at(109)), 20 + 10);
        assert_eq!(table.lasted_s(&token, at(200)), 20 + 10);
        assert_eq!(table.lasted_s(&TokenId::new("t2"), at(200)), 0);
        table.forget_expired(UnixTime(1001));
        assert_eq!(table.lasted_s(&token, at(200)), 0);
    }

    #[test]
    fn the_time_of_a_token_runs_while_its_own_session_is_open() {
        let (mut table, token) = (UsageTable::default(), TokenId::new("t1"));
        table.reserve(&claim(HERE, 60), UnixTime(1)).unwrap();
        let start = clock::now();
        assert_eq!(table.lasted_s(&token, start), 0);
        table.tokens.get_mut(&token).unwrap().open_since = Some(start);
        let later = start + Duration::from_secs(7);
        assert_eq!(table.lasted_s(&token, later), 8);
        table.end(&token, UnixTime(9), 8);
        assert_eq!(table.lasted_s(&token, later), 8);
    }

    #[test]
    fn sessions_of_one_token_add_up_whatever_fails_between() {
        let (mut table, token) = (UsageTable::default(), TokenId::new("t1"));
        for (now, lasted_s) in [(1, 30), (2, 60)] {
            table.reserve(&claim(HERE, 60), UnixTime(now)).unwrap();
            assert_eq!(table.end(&token, UnixTime(now), 30), lasted_s);
        }
        // A set-up that fails has lasted nothing, and forgets nothing.
        let previous = table.reserve(&claim(HERE, 60), UnixTime(3)).unwrap();
        assert_eq!(previous.as_ref().map(|usage| usage.lasted_s), Some(60));
        table.give_back(&token, previous);
        let previous = table.reserve(&claim(HERE, 60), UnixTime(4)).unwrap();
        assert_eq!(previous.map(|usage| usage.lasted_s), Some(60));
    }

    #[test]
    fn a_used_token_is_refused_for_good_without_a_window() {
        let mut table = UsageTable::default();
        table.reserve(&claim(HERE, 0), UnixTime(1)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(5), 0);
        for now in [5, 6, 100] {
            let again = table.reserve(&claim(HERE, 0), UnixTime(now));
            assert!(matches!(again, Err(UsageError::Replayed)), "{now}");
        }
    }

    #[test]
    fn the_same_address_may_reconnect_within_the_window() {
        let mut table = UsageTable::default();
        table.reserve(&claim(HERE, 30), UnixTime(1)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(100), 0);
        let other = table.reserve(&claim(ELSEWHERE, 30), UnixTime(101));
        assert!(matches!(other, Err(UsageError::OtherAddress)));
        table.reserve(&claim(HERE, 30), UnixTime(129)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(200), 0);
        let late = table.reserve(&claim(HERE, 30), UnixTime(230));
        assert!(matches!(late, Err(UsageError::Replayed)));
    }

    #[test]
    fn a_failed_set_up_neither_consumes_nor_revives_a_token() {
        let mut table = UsageTable::default();
        let token = TokenId::new("t1");
        let previous = table.reserve(&claim(HERE, 30), UnixTime(1)).unwrap();
        table.give_back(&token, previous);
        assert!(table.tokens.is_empty());
        table.reserve(&claim(HERE, 30), UnixTime(2)).unwrap();
        table.end(&token, UnixTime(10), 0);
        let previous = table.reserve(&claim(HERE, 30), UnixTime(20)).unwrap();
        table.give_back(&token, previous);
        let late = table.reserve(&claim(HERE, 30), UnixTime(40));
        assert!(
            matches!(late, Err(UsageError::Replayed)),
            "the window counts from the session's end"
        );
    }

    #[test]
    fn a_live_token_is_never_forgotten() {
        let mut table = UsageTable::default();
        table.reserve(&claim(HERE, 0), UnixTime(1)).unwrap();
        table.forget_expired(UnixTime(5000));
        assert_eq!(table.tokens.len(), 1);
        table.end(&TokenId::new("t1"), UnixTime(5001), 0);
        table.forget_expired(UnixTime(5002));
        assert!(table.tokens.is_empty());
    }

    #[test]
    fn wrong_passwords_are_counted_by_token_whatever_comes_between() {
        let mut table = UsageTable::default();
        let (token, now) = (TokenId::new("t1"), UnixTime(1));
        let mut delays = Vec::new();
        for attempt in 1..=limits::PASSWORD_GUESSES {
            // From anywhere, and whether the attempt was given back or not: none begins before the last one is over.
            let client = if attempt % 2 == 0 { HERE } else { ELSEWHERE };
            let previous = table.reserve(&claim(client, 0), now).unwrap();
            let parallel = table.reserve(&claim(HERE, 0), now);
            assert!(matches!(parallel, Err(UsageError::InUse)));
            let guess = table.wrong_guess(&claim(client, 0), now);
            assert_eq!(guess.is_last, attempt == limits::PASSWORD_GUESSES);
            delays.push(guess.delay);
            table.give_back(&token, previous);
        }
        assert!(
            delays.is_sorted() && delays[0] > Duration::ZERO,
            "{delays:?}"
        );
        assert!(
            delays
                .iter()
                .all(|delay| *delay <= limits::PASSWORD_DELAY_MAX)
        );
        for client in [HERE, ELSEWHERE] {
            let again = table.reserve(&claim(client, 60), now);
            assert!(matches!(again, Err(UsageError::Guessed)));
        }
        table.forget_expired(UnixTime(1001));
        assert!(table.spent.is_empty() && table.guesses.is_empty());
    }

    #[test]
    fn a_right_password_does_not_clear_the_count() {
        let mut table = UsageTable::default();
        let (token, now) = (TokenId::new("t1"), UnixTime(1));
        for attempt in 1..=limits::PASSWORD_GUESSES {
            table.reserve(&claim(HERE, 60), now).unwrap();
            table.end(&token, now, 0);
            let previous = table.reserve(&claim(HERE, 60), now).unwrap();
            let guess = table.wrong_guess(&claim(HERE, 60), now);
            assert_eq!(guess.is_last, attempt == limits::PASSWORD_GUESSES);
            table.give_back(&token, previous);
        }
    }

    #[test]
    fn wrong_passwords_that_cannot_be_counted_spend_their_token() {
        let mut table = UsageTable::default();
        let other = |number: usize, keep_until| Claim {
            token: TokenId::new(format!("other {number}")),
            keep_until: UnixTime(keep_until),
            ..claim(HERE, 0)
        };
        for number in 0..limits::GUESSED_TOKENS {
            let guess = table.wrong_guess(&other(number, 100), UnixTime(1));
            assert!(!guess.is_last);
        }
        let full = table.wrong_guess(&claim(HERE, 0), UnixTime(1));
        assert!(full.is_last);
        assert_eq!(table.guesses.len(), limits::GUESSED_TOKENS);
        // Those that do not matter any more make room.
        let later = table.wrong_guess(&other(limits::GUESSED_TOKENS, 1000), UnixTime(101));
        assert!(!later.is_last);
        assert_eq!(table.guesses.len(), 1);
    }

    #[tokio::test]
    async fn wrong_passwords_are_counted_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = clock::unix_now();
        let claim = || Claim {
            keep_until: now.plus(600),
            ..claim(HERE, 0)
        };
        for number in 1..=limits::PASSWORD_GUESSES {
            let (disk, contents) = Disk::open(&path, now).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
            let reservation = usages.reserve(claim()).await.unwrap();
            let guess = reservation.wrong_guess().await;
            assert_eq!(guess.count, number);
            assert_eq!(guess.is_last, number == limits::PASSWORD_GUESSES);
        }
        // What does not matter any more is forgotten.
        let (_disk, contents) = Disk::open(&path, now.plus(601)).unwrap();
        assert!(contents.usage.guesses.is_empty() && contents.usage.spent.is_empty());
    }

    #[tokio::test]
    async fn what_was_ended_for_good_stays_so_although_the_process_is_killed_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = clock::unix_now();
        let claim = Claim {
            keep_until: now.plus(600),
            ..claim(HERE, 300)
        };
        for spend in [false, true] {
            let (disk, contents) = Disk::open(&path, now).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
            let mut reservation = usages.reserve(claim.clone()).await.unwrap();
            reservation.commit().await.unwrap();
            if spend {
                usages.spend(&claim.token).await.unwrap();
            }
            // What a killed process does at its end: nothing.
            std::mem::forget(reservation);
            let copy = folder.path().join(spend.to_string());
            std::fs::copy(&path, &copy).unwrap();
            let (disk, contents) = Disk::open(&copy, now).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
            let again = usages.reserve(claim.clone()).await;
            assert_eq!(matches!(again, Err(UsageError::Replayed)), spend);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_token_that_wrong_passwords_have_spent_stays_so_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = clock::unix_now();
        let claim = || Claim {
            keep_until: now.plus(600),
            ..claim(HERE, 0)
        };
        {
            let (disk, contents) = Disk::open(&path, now).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
            for _ in 0..limits::PASSWORD_GUESSES {
                let reservation = usages.reserve(claim()).await.unwrap();
                reservation.wrong_guess().await;
            }
        }
        for (when, spent) in [(now, true), (now.plus(601), false)] {
            let (disk, contents) = Disk::open(&path, when).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, when));
            let again = usages.reserve(claim()).await;
            assert_eq!(matches!(again, Err(UsageError::Guessed)), spent);
        }
    }

    #[test]
    fn a_clock_set_forward_and_back_revives_no_token() {
        let mut table = UsageTable::default();
        let used = claim(HERE, 0);
        table.reserve(&used, UnixTime(1)).unwrap();
        table.end(&used.token, UnixTime(5), 0);
        // Far ahead, and back to where the token is valid.
        table.forget_expired(UnixTime(1_000_000));
        assert!(table.tokens.is_empty());
        let again = table.reserve(&used, UnixTime(10));
        assert!(matches!(again, Err(UsageError::Store(_))), "{again:?}");
        // One that ends later cannot be among the forgotten, however far ahead the clock was.
        let later = Claim {
            token: TokenId::new("t2"),
            keep_until: UnixTime(1001),
            ..used.clone()
        };
        table.reserve(&later, UnixTime(10)).unwrap();
        // Nor is any of those that are still known held for one of them.
        table.end(&later.token, UnixTime(11), 0);
        let again = table.reserve(&later, UnixTime(12));
        assert!(matches!(again, Err(UsageError::Replayed)), "{again:?}");
    }

    #[tokio::test]
    async fn a_clock_set_forward_over_a_restart_and_back_revives_no_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = clock::unix_now();
        let used = Claim {
            keep_until: now.plus(600),
            ..claim(HERE, 0)
        };
        for (at, refused) in [(now, false), (now.plus(1_000_000), true), (now, true)] {
            let (disk, contents) = Disk::open(&path, at).unwrap();
            let usages = Usages::new(Arc::new(disk), contents.usage, at);
            let usages = Arc::new(usages);
            match usages.reserve(used.clone()).await {
                Ok(mut reservation) => {
                    assert!(!refused, "revived at {at:?}");
                    reservation.commit().await.unwrap();
                }
                Err(refusal) => assert!(refused, "{refusal}"),
            }
        }
    }

    #[test]
    fn one_address_cannot_fill_the_memory_of_used_tokens() {
        let mut table = UsageTable::default();
        let used = |client, number: usize| Claim {
            token: TokenId::new(number.to_string()),
            ..claim(client, 0)
        };
        for number in 0..REMEMBERED_TOKENS_PER_ADDRESS {
            table.reserve(&used(HERE, number), UnixTime(1)).unwrap();
            table.end(&TokenId::new(number.to_string()), UnixTime(1), 0);
        }
        let next = REMEMBERED_TOKENS_PER_ADDRESS;
        let refused = table.reserve(&used(HERE, next), UnixTime(1)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the store failed: too many tokens remembered of address 192.0.2.1"
        );
        let before = table.reserve(&used(ELSEWHERE, next), UnixTime(1)).unwrap();
        table.give_back(&TokenId::new(next.to_string()), before);
        // What is past its end makes room.
        let later = Claim {
            keep_until: UnixTime(2000),
            ..used(HERE, next)
        };
        table.reserve(&later, UnixTime(1001)).unwrap();
        table.end(&later.token, UnixTime(1001), 0);
        table.forget_expired(UnixTime(2001));
        assert!(table.tokens.is_empty() && table.shares.is_empty());
    }

    #[tokio::test]
    async fn sessions_at_once_gain_a_token_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let now = clock::unix_now();
        let (disk, contents) = Disk::open(&folder.path().join("state.redb"), now).unwrap();
        let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
        let accompany = |limit_s| {
            let limit = Some(Duration::from_secs(limit_s));
            usages.accompany(TokenId::new("t1"), now.plus(600), limit)
        };
        let first = accompany(60).unwrap();
        assert_eq!(first.time_left(), Some(Duration::from_secs(60)));
        // The second that has begun is none of theirs.
        let second = accompany(60).unwrap();
        assert!(second.time_left() < first.time_left());
        assert_eq!(accompany(1).unwrap_err(), UsageError::OverTime);
        drop((first, second));
        assert_eq!(accompany(1).unwrap_err(), UsageError::OverTime);
    }

    #[tokio::test]
    async fn what_was_used_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = clock::unix_now();
        let claim = |window| Claim {
            reconnect_window_s: window,
            keep_until: now.plus(600),
            ..claim(HERE, 0)
        };
        {
            let (disk, contents) = Disk::open(&path, now).unwrap();
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
            let mut reservation = usages.reserve(claim(0)).await.unwrap();
            reservation.commit().await.unwrap();
        }
        let (disk, contents) = Disk::open(&path, now).unwrap();
        let usages = Arc::new(Usages::new(Arc::new(disk), contents.usage, now));
        assert!(matches!(
            usages.reserve(claim(0)).await,
            Err(UsageError::Replayed)
        ));
        let _reservation = usages.reserve(claim(60)).await.unwrap();
    }
}
