//! One token, one live session.
//!
//! A token is *reserved* while its session is being set up, *live* while it runs, and *used* afterwards. A set-up that
//! fails gives the reservation back, so a target that was down does not cost the user the token; from the moment the
//! target has answered, the use is on disk before a byte is relayed. Within a reconnect window the same token may open
//! another session for the same address, never two at one time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::address::AddressGroup;
use crate::clock;
use crate::refusal::Refusal;
use crate::session::SessionId;
use crate::store::disk::{Disk, Record};
use crate::time::UnixTime;
use crate::token::TokenId;

/// Tokens remembered at one time. Only tokens that verified get here, so only an issuer can fill it.
const REMEMBERED_TOKENS: usize = 1_000_000;

/// What is known of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Usage {
    client: IpAddr,
    keep_until: UnixTime,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its session is being set up, or runs.
    Live(SessionId),
    /// Its last session ended then.
    Ended(UnixTime),
}

/// The table without its disk: a state machine over `now`.
#[derive(Debug, Default)]
struct Table {
    tokens: HashMap<TokenId, Usage>,
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
}

impl Table {
    /// Takes the token for a session. Returns what was known before, for [`Table::give_back`].
    fn reserve(&mut self, claim: &Claim, now: UnixTime) -> Result<Option<Usage>, Refusal> {
        let previous = self.tokens.get(&claim.token).cloned();
        if let Some(usage) = &previous {
            match usage.state {
                State::Live(_) => return Err(Refusal::InUse),
                State::Ended(_) if AddressGroup::from(usage.client) != claim.client.into() => {
                    return Err(Refusal::OtherAddress);
                }
                State::Ended(at) if now.since(at) >= claim.reconnect_window_s => {
                    return Err(Refusal::Replayed);
                }
                State::Ended(_) => {}
            }
        } else if self.tokens.len() >= REMEMBERED_TOKENS {
            self.forget_expired(now);
            if self.tokens.len() >= REMEMBERED_TOKENS {
                return Err(Refusal::Store("too many tokens remembered".to_owned()));
            }
        }
        let usage = Usage {
            client: claim.client,
            keep_until: claim.keep_until,
            state: State::Live(claim.session),
        };
        self.tokens.insert(claim.token.clone(), usage);
        Ok(previous)
    }

    /// Undoes a reservation.
    fn give_back(&mut self, token: &TokenId, previous: Option<Usage>) {
        match previous {
            Some(usage) => self.tokens.insert(token.clone(), usage),
            None => self.tokens.remove(token),
        };
    }

    /// The token's session is over.
    fn end(&mut self, token: &TokenId, now: UnixTime) {
        if let Some(usage) = self.tokens.get_mut(token) {
            usage.state = State::Ended(now);
        }
    }

    fn forget_expired(&mut self, now: UnixTime) {
        self.tokens
            .retain(|_, usage| matches!(usage.state, State::Live(_)) || usage.keep_until >= now);
    }
}

/// How long a client that comes back at once is let wait for the end of its own last session. The target's close, which made
/// it come back, is still on its way through the relay then.
const HANDOVER: Duration = Duration::from_secs(2);

/// The table and its disk.
#[derive(Debug)]
pub struct Usages {
    table: Mutex<Table>,
    disk: Arc<Disk>,
    /// Fires when a session has given its token back.
    ended: Notify,
}

impl Usages {
    /// What `records` of the disk say. A session that was live when the process ended counts as ended now.
    #[must_use]
    pub fn new(disk: Arc<Disk>, records: Vec<(TokenId, Record)>, now: UnixTime) -> Self {
        let mut table = Table::default();
        for (token, record) in records {
            let usage = Usage {
                client: record.client,
                keep_until: record.keep_until,
                state: State::Ended(record.ended_at.unwrap_or(now)),
            };
            table.tokens.insert(token, usage);
        }
        Self {
            table: Mutex::new(table),
            disk,
            ended: Notify::new(),
        }
    }

    /// Takes a token for a session; waits a moment if its last session is just ending.
    ///
    /// # Errors
    /// The token has a live session, or was used before and may not be used again.
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing.
    pub async fn reserve(self: &Arc<Self>, claim: Claim) -> Result<Reservation, Refusal> {
        let deadline = tokio::time::sleep(HANDOVER);
        tokio::pin!(deadline);
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Listening starts before the question, so that no end is missed between the two.
            ended.as_mut().enable();
            match self.try_reserve(claim.clone()) {
                Err(Refusal::InUse) if claim.reconnect_window_s > 0 => {}
                result => return result,
            }
            tokio::select! {
                () = ended => {}
                () = &mut deadline => return self.try_reserve(claim),
            }
        }
    }

    fn try_reserve(self: &Arc<Self>, claim: Claim) -> Result<Reservation, Refusal> {
        let previous = self.lock().reserve(&claim, clock::unix_now())?;
        Ok(Reservation {
            usages: Arc::clone(self),
            claim,
            previous,
            committed: false,
        })
    }

    /// Drops what no longer needs to be remembered, here and on disk.
    pub fn forget_expired(&self, now: UnixTime) {
        self.lock().forget_expired(now);
        self.disk.forget_expired(now);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
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
    committed: bool,
}

impl Reservation {
    /// Makes the use permanent; returns when it is on disk.
    ///
    /// # Errors
    /// The disk failed: the session must not start.
    pub async fn commit(&mut self) -> Result<(), Refusal> {
        let record = self.record(None);
        self.usages
            .disk
            .put(self.claim.token.clone(), record)
            .await
            .map_err(|error| Refusal::Store(error.to_string()))?;
        self.committed = true;
        Ok(())
    }

    fn record(&self, ended_at: Option<UnixTime>) -> Record {
        Record {
            client: self.claim.client,
            keep_until: self.claim.keep_until,
            ended_at,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.committed {
            let now = clock::unix_now();
            self.usages.lock().end(&self.claim.token, now);
            self.usages
                .disk
                .put_later(self.claim.token.clone(), self.record(Some(now)));
        } else {
            self.usages
                .lock()
                .give_back(&self.claim.token, self.previous.take());
        }
        self.usages.ended.notify_waiters();
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
            session: SessionId::new(),
            client,
            reconnect_window_s,
            keep_until: UnixTime(1000),
        }
    }

    #[test]
    fn a_second_live_session_with_one_token_never_exists() {
        let mut table = Table::default();
        table.reserve(&claim(HERE, 60), UnixTime(1)).unwrap();
        assert!(matches!(
            table.reserve(&claim(HERE, 60), UnixTime(2)),
            Err(Refusal::InUse)
        ));
        assert!(matches!(
            table.reserve(&claim(ELSEWHERE, 60), UnixTime(2)),
            Err(Refusal::InUse)
        ));
    }

    #[test]
    fn a_used_token_is_refused_for_good_without_a_window() {
        let mut table = Table::default();
        table.reserve(&claim(HERE, 0), UnixTime(1)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(5));
        for now in [5, 6, 100] {
            let again = table.reserve(&claim(HERE, 0), UnixTime(now));
            assert!(matches!(again, Err(Refusal::Replayed)), "{now}");
        }
    }

    #[test]
    fn the_same_address_may_reconnect_within_the_window() {
        let mut table = Table::default();
        table.reserve(&claim(HERE, 30), UnixTime(1)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(100));
        let other = table.reserve(&claim(ELSEWHERE, 30), UnixTime(101));
        assert!(matches!(other, Err(Refusal::OtherAddress)));
        table.reserve(&claim(HERE, 30), UnixTime(129)).unwrap();
        table.end(&TokenId::new("t1"), UnixTime(200));
        let late = table.reserve(&claim(HERE, 30), UnixTime(230));
        assert!(matches!(late, Err(Refusal::Replayed)));
    }

    #[test]
    fn a_failed_set_up_neither_consumes_nor_revives_a_token() {
        let mut table = Table::default();
        let token = TokenId::new("t1");
        let previous = table.reserve(&claim(HERE, 30), UnixTime(1)).unwrap();
        table.give_back(&token, previous);
        assert!(table.tokens.is_empty());
        table.reserve(&claim(HERE, 30), UnixTime(2)).unwrap();
        table.end(&token, UnixTime(10));
        let previous = table.reserve(&claim(HERE, 30), UnixTime(20)).unwrap();
        table.give_back(&token, previous);
        let late = table.reserve(&claim(HERE, 30), UnixTime(40));
        assert!(
            matches!(late, Err(Refusal::Replayed)),
            "the window counts from the session's end"
        );
    }

    #[test]
    fn a_live_token_is_never_forgotten() {
        let mut table = Table::default();
        table.reserve(&claim(HERE, 0), UnixTime(1)).unwrap();
        table.forget_expired(UnixTime(5000));
        assert_eq!(table.tokens.len(), 1);
        table.end(&TokenId::new("t1"), UnixTime(5001));
        table.forget_expired(UnixTime(5002));
        assert!(table.tokens.is_empty());
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
            let usages = Arc::new(Usages::new(Arc::new(disk), contents.tokens, now));
            let mut reservation = usages.reserve(claim(0)).await.unwrap();
            reservation.commit().await.unwrap();
        }
        let (disk, contents) = Disk::open(&path, now).unwrap();
        let usages = Arc::new(Usages::new(Arc::new(disk), contents.tokens, now));
        assert!(matches!(
            usages.reserve(claim(0)).await,
            Err(Refusal::Replayed)
        ));
        let _reservation = usages.reserve(claim(60)).await.unwrap();
    }
}
