//! Tickets that wait for their use, and those that were used; all of them outlive a restart.
//!
//! A ticket opens what its token opens: one session. It is bound to the address that uses it first; from there, and only
//! from there, it can be shown again, so that a client's automatic retry and a reconnect within the token's window meet
//! the same answer as with the token itself.
//!
//! A ticket is on disk before its bearer has it, and the address that uses it is before that session relays a byte, since the use of
//! its token is written behind it. Here as there its token is sealed ([`Ticket::seal`]). A ticket is forgotten when it is past its
//! time, or was used and its token opens no session any more.
//!
//! Each token, each address and each API key has its share of the table. Where there is no room, those that were used go first, the
//! oldest of them before the others: a session that was opened by one needs it only to come back.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use crate::disk::{Disk, DiskError, TicketRecord};
use jetway_base::address::AddressGroup;
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_entry::ticket::{RANDOM_BYTES, SealError, Ticket, TicketDigest};
use jetway_io::reached::Reached;
use jetway_policy::shares::{Crowded, Owner, Shares};
use jetway_token::TokenId;

/// How long a new ticket and its token are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The ticket must be used by then.
    pub not_after: UnixTime,
    /// End of the token, and of the ticket once it was used.
    pub token_not_after: UnixTime,
    /// How long after its session the token may open another one, seconds.
    pub reconnect_window_s: u64,
}

/// The table of tickets, and its disk.
#[derive(Debug)]
pub struct Tickets {
    table: Mutex<TicketTable>,
    disk: Arc<Disk>,
    reached: Reached,
    share_reached: Reached,
}

#[derive(Debug)]
struct TicketTable {
    entries: HashMap<TicketDigest, TicketRecord>,
    shares: Shares,
    /// Those that were used, the oldest first.
    used: BTreeMap<u64, TicketDigest>,
    next: u64,
}

/// Why no ticket was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The table is full of tickets that are still good and were not used.
    #[error("too many tickets are waiting to be used")]
    Full,
    /// The token, the address or the API key has its share.
    #[error("too many tickets of {0} are waiting to be used")]
    Share(Crowded),
    /// The system has no randomness.
    #[error("the system's random generator failed: {0}")]
    Random(String),
    /// Its token cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] DiskError),
}

impl Tickets {
    /// The tickets in `records` of `disk`.
    #[must_use]
    pub fn new(disk: Arc<Disk>, records: Vec<(TicketDigest, TicketRecord)>) -> Self {
        let mut table = TicketTable::default();
        for (digest, record) in records {
            table.next = table.next.max(record.number.saturating_add(1));
            if record.used_by.is_some() {
                table.used.insert(record.number, digest);
            }
            table.shares.count(&record.owner);
            table.entries.insert(digest, record);
        }
        Self {
            table: Mutex::new(table),
            disk,
            reached: Reached::new("tickets"),
            share_reached: Reached::new("tickets of one token, address or API key"),
        }
    }

    /// A new ticket of `owner` for `token`, good for one use; returns when it is on disk.
    ///
    /// # Errors
    /// The owner has its share, the table is full, the system has no randomness, or the store failed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a ticket that nobody knows, until it is past its time.
    pub async fn issue(
        &self,
        token: &str,
        owner: Owner,
        terms: Terms,
        now: UnixTime,
    ) -> Result<Ticket, IssueError> {
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        openssl::rand::rand_bytes(random.as_mut_slice())
            .map_err(|error| IssueError::Random(error.to_string()))?;
        let ticket = Ticket::from_random(&random);
        let sealed = ticket.seal(token)?;
        let record = |number| TicketRecord {
            sealed,
            not_after: terms.not_after,
            token_not_after: terms.token_not_after,
            reconnect_window_s: terms.reconnect_window_s,
            number,
            used_by: None,
            owner,
        };
        let mut gone = Vec::new();
        let entered = self.lock().enter(ticket.digest(), record, now, &mut gone);
        self.forget_on_disk(&gone);
        let record = entered.inspect_err(|error| match error {
            IssueError::Share(crowded) => self.share_reached.by(crowded),
            IssueError::Full => self.reached.by(&"all clients"),
            IssueError::Random(_) | IssueError::Seal(_) | IssueError::Store(_) => {}
        })?;
        if let Err(error) = self.disk.put_ticket(ticket.digest(), record).await {
            // What the next start would not know is not known now, either.
            self.lock().forget(&ticket.digest());
            return Err(error.into());
        }
        Ok(ticket)
    }

    /// The token behind a ticket, which is bound to `client` from now on.
    #[must_use]
    pub fn take(
        &self,
        ticket: &Ticket,
        client: IpAddr,
        now: UnixTime,
    ) -> Option<Zeroizing<String>> {
        let digest = ticket.digest();
        let mut table = self.lock();
        let (record, first) = table.take(&digest, client, now)?;
        if first {
            self.disk.put_ticket_later(digest, Some(record.clone()));
        }
        ticket.unseal(&record.sealed)
    }

    /// Whether the ticket stands for this token; `None` where there is no such ticket. Does not use it.
    #[must_use]
    pub fn stands_for(&self, ticket: &Ticket, token: &TokenId, now: UnixTime) -> Option<bool> {
        let table = self.lock();
        let entry = table
            .entries
            .get(&ticket.digest())
            .filter(|entry| now <= entry.not_after)?;
        Some(entry.owner.token.as_ref() == Some(token))
    }

    /// Drops what is past its time, and what was used and whose token `is_over`, given its reconnect window in seconds. Of the
    /// former the disk hears by [`Disk::forget_expired`].
    pub fn forget(&self, now: UnixTime, is_over: impl Fn(&TokenId, u64) -> bool) {
        let mut table = self.lock();
        table.forget_expired(now);
        let over = table.forget_over(is_over);
        drop(table);
        self.forget_on_disk(&over);
    }

    fn forget_on_disk(&self, digests: &[TicketDigest]) {
        for digest in digests {
            self.disk.put_ticket_later(*digest, None);
        }
    }

    /// How many are remembered, used ones among them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, TicketTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TicketTable {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            shares: Shares::new(limits::TICKETS_PER_TOKEN, limits::TICKETS_PER_ADDRESS)
                .with_keys(limits::TICKETS),
            used: BTreeMap::new(),
            next: 0,
        }
    }
}

impl TicketTable {
    /// Enters a ticket; those that made room for it though they are not past their time are in `gone`.
    fn enter(
        &mut self,
        digest: TicketDigest,
        record: impl FnOnce(u64) -> TicketRecord,
        now: UnixTime,
        gone: &mut Vec<TicketDigest>,
    ) -> Result<TicketRecord, IssueError> {
        let number = self.next;
        let record = record(number);
        self.make_room(&record.owner, now, gone)?;
        self.next = number.wrapping_add(1);
        self.shares.count(&record.owner);
        self.entries.insert(digest, record.clone());
        Ok(record)
    }

    /// The ticket, bound to `client` from now on, and whether it was not before.
    fn take(
        &mut self,
        digest: &TicketDigest,
        client: IpAddr,
        now: UnixTime,
    ) -> Option<(&TicketRecord, bool)> {
        let record = self.entries.get_mut(digest)?;
        if now > record.not_after {
            return None;
        }
        let first = match record.used_by {
            Some(first) if AddressGroup::from(first) != client.into() => return None,
            Some(_) => false,
            None => {
                record.used_by = Some(client);
                record.not_after = record.token_not_after;
                self.used.insert(record.number, *digest);
                true
            }
        };
        Some((record, first))
    }

    /// Makes room for one more of `owner`, at the cost of those that are past their time or were used; the latter are in `gone`.
    fn make_room(
        &mut self,
        owner: &Owner,
        now: UnixTime,
        gone: &mut Vec<TicketDigest>,
    ) -> Result<(), IssueError> {
        if self.shares.check(owner).is_err() || self.entries.len() >= limits::TICKETS {
            self.forget_expired(now);
        }
        while let Err(crowded) = self.shares.check(owner) {
            let Some(digest) = self.forget_used(|other| other.is(&crowded)) else {
                return Err(IssueError::Share(crowded));
            };
            gone.push(digest);
        }
        while self.entries.len() >= limits::TICKETS {
            gone.push(self.forget_used(|_| true).ok_or(IssueError::Full)?);
        }
        Ok(())
    }

    /// Forgets the oldest used one of those owners, if there is one.
    fn forget_used(&mut self, whose: impl Fn(&Owner) -> bool) -> Option<TicketDigest> {
        let Self { entries, used, .. } = self;
        let found = used.values().find(|digest| {
            let entry = entries.get(digest);
            entry.is_some_and(|entry| whose(&entry.owner))
        });
        let digest = *found?;
        self.forget(&digest);
        Some(digest)
    }

    /// Forgets those that were used and whose token is over.
    fn forget_over(&mut self, is_over: impl Fn(&TokenId, u64) -> bool) -> Vec<TicketDigest> {
        let over = self.used.values().filter(|digest| {
            self.entries.get(digest).is_some_and(|entry| {
                let token = entry.owner.token.as_ref();
                token.is_some_and(|token| is_over(token, entry.reconnect_window_s))
            })
        });
        let over: Vec<TicketDigest> = over.copied().collect();
        for digest in &over {
            self.forget(digest);
        }
        over
    }

    fn forget_expired(&mut self, now: UnixTime) {
        let Self {
            entries,
            shares,
            used,
            ..
        } = self;
        entries.retain(|_, entry| {
            let good = entry.not_after >= now;
            if !good {
                shares.leave(&entry.owner);
                used.remove(&entry.number);
            }
            good
        });
    }

    fn forget(&mut self, digest: &TicketDigest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.shares.leave(&entry.owner);
            self.used.remove(&entry.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use jetway_entry::ticket::SealedToken;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    const TOKEN: &str = "eyJ.e30.c2ln";

    const TERMS: Terms = Terms {
        not_after: UnixTime(60),
        token_not_after: UnixTime(600),
        reconnect_window_s: 30,
    };

    /// What the process has after it was started with this store.
    fn started(path: &Path, now: u64) -> Tickets {
        let (disk, contents) = Disk::open(path, UnixTime(now)).unwrap();
        Tickets::new(Arc::new(disk), contents.tickets)
    }

    fn is_token(taken: Option<Zeroizing<String>>) -> bool {
        taken.is_some_and(|token| token.as_str() == TOKEN)
    }

    #[tokio::test]
    async fn a_ticket_is_bound_to_the_first_address_that_uses_it_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let ticket = {
            let tickets = started(&path, 0);
            let issued = tickets.issue(TOKEN, owner(0), TERMS, UnixTime(0)).await;
            issued.unwrap()
        };
        assert!(is_token(started(&path, 30).take(
            &ticket,
            HERE,
            UnixTime(30)
        )));
        for (now, client, good) in [
            (31, ELSEWHERE, false),
            (500, HERE, true),  // a reconnect
            (601, HERE, false), // the token has expired
            (500, HERE, false), // and was forgotten
        ] {
            let tickets = started(&path, now);
            let taken = tickets.take(&ticket, client, UnixTime(now));
            assert_eq!(is_token(taken), good, "{now} {client}");
        }
    }

    #[tokio::test]
    async fn an_unused_ticket_expires_and_a_guessed_one_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tickets = started(&folder.path().join("state.redb"), 0);
        let issued = tickets.issue(TOKEN, owner(0), TERMS, UnixTime(0)).await;
        assert_eq!(tickets.take(&issued.unwrap(), HERE, UnixTime(61)), None);
        let guessed = Ticket::from_random(&[0; RANDOM_BYTES]);
        assert_eq!(tickets.take(&guessed, HERE, UnixTime(1)), None);
    }

    #[tokio::test]
    async fn neither_tickets_nor_tokens_can_be_read_from_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let ticket = {
            let tickets = started(&path, 0);
            let issued = tickets.issue(TOKEN, owner(0), TERMS, UnixTime(0)).await;
            issued.unwrap()
        };
        let bytes = std::fs::read(&path).unwrap();
        let contains = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(contains(ticket.digest().as_bytes()));
        assert!(
            !contains(TOKEN.as_bytes())
                && !contains(TOKEN.split('.').next_back().unwrap().as_bytes())
        );
        assert!(!contains(&ticket.as_str().as_bytes()[..8]));
    }

    #[tokio::test]
    async fn a_used_ticket_whose_token_is_over_is_forgotten_here_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let (over, other, unused) = {
            let tickets = started(&path, 0);
            let mut issued = Vec::new();
            // The tokens of these are two.
            for number in [0, 10, 0] {
                let ticket = tickets
                    .issue(TOKEN, owner(number), TERMS, UnixTime(0))
                    .await;
                issued.push(ticket.unwrap());
            }
            for ticket in &issued[..2] {
                assert!(tickets.take(ticket, HERE, UnixTime(1)).is_some());
            }
            tickets.forget(UnixTime(2), |token, window_s| {
                assert_eq!(window_s, TERMS.reconnect_window_s);
                *token == TokenId::new("token 0")
            });
            let [over, other, unused] = issued.try_into().unwrap();
            assert_eq!(tickets.take(&over, HERE, UnixTime(2)), None);
            (over, other, unused)
        };
        let tickets = started(&path, 2);
        assert_eq!(tickets.take(&over, HERE, UnixTime(2)), None);
        assert!(is_token(tickets.take(&other, HERE, UnixTime(2))));
        assert!(is_token(tickets.take(&unused, HERE, UnixTime(2))));
    }

    #[tokio::test]
    async fn shares_survive_a_restart_and_so_does_who_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let issue =
            async |tickets: &Tickets| tickets.issue(TOKEN, owner(0), TERMS, UnixTime(0)).await;
        let mut issued = Vec::new();
        {
            let tickets = started(&path, 0);
            for _ in 0..limits::TICKETS_PER_TOKEN {
                issued.push(issue(&tickets).await.unwrap());
            }
            for used in [7, 3] {
                assert!(tickets.take(&issued[used], HERE, UnixTime(0)).is_some());
            }
        }
        for gone in [3, 7] {
            // Behind each restart one makes room, which is on disk.
            let tickets = started(&path, 0);
            issue(&tickets).await.unwrap();
            assert_eq!(tickets.take(&issued[gone], HERE, UnixTime(0)), None);
        }
        let tickets = started(&path, 0);
        assert_eq!(tickets.take(&issued[3], HERE, UnixTime(0)), None);
        let crowded = Crowded::Token(TokenId::new("token 0"));
        assert!(matches!(issue(&tickets).await, Err(IssueError::Share(whose)) if whose == crowded));
        tickets.forget(UnixTime(61), |_, _| false);
        let table = tickets.lock();
        assert!(table.entries.is_empty() && table.shares.is_empty() && table.used.is_empty());
    }

    /// One of many tokens, at one of many addresses.
    fn owner(number: u32) -> Owner {
        let token = TokenId::new(format!("token {}", number / 10));
        let address = IpAddr::from((0x0A00_0000 + number / 1000).to_be_bytes());
        Owner::new(Some(token), Some(address))
    }

    /// One more of `owner`, without a disk.
    fn enter(table: &mut TicketTable, owner: Owner, now: u64) -> Result<TicketDigest, IssueError> {
        let mut random = [0; RANDOM_BYTES];
        random[..8].copy_from_slice(&table.next.to_be_bytes());
        let ticket = Ticket::from_random(&random);
        let digest = ticket.digest();
        let record = |number| TicketRecord {
            sealed: SealedToken::from_bytes(b""),
            not_after: UnixTime(now + 60),
            token_not_after: UnixTime(600),
            reconnect_window_s: 30,
            number,
            used_by: None,
            owner,
        };
        table.enter(digest, record, UnixTime(now), &mut Vec::new())?;
        Ok(digest)
    }

    fn full() -> (TicketTable, Vec<TicketDigest>) {
        let mut table = TicketTable::default();
        let numbers = 1000..1000 + u32::try_from(limits::TICKETS).unwrap();
        let digests = numbers.map(|number| enter(&mut table, owner(number), 0).unwrap());
        let digests = digests.collect();
        (table, digests)
    }

    #[test]
    fn the_table_is_bounded_and_expired_tickets_make_room() {
        let (mut table, _) = full();
        assert!(matches!(
            enter(&mut table, owner(0), 60),
            Err(IssueError::Full)
        ));
        enter(&mut table, owner(0), 61).unwrap();
        assert_eq!(table.entries.len(), 1);
        table.forget_expired(UnixTime(200));
        assert!(table.entries.is_empty() && table.shares.is_empty() && table.used.is_empty());
    }

    #[test]
    fn in_a_full_table_the_oldest_used_ticket_makes_room_and_none_that_waits() {
        let (mut table, all) = full();
        for used in [7, 3] {
            assert!(table.take(&all[used], HERE, UnixTime(1)).is_some());
        }
        for gone in [3, 7] {
            assert!(table.take(&all[gone], HERE, UnixTime(2)).is_some());
            enter(&mut table, owner(0), 2).unwrap();
            assert!(table.take(&all[gone], HERE, UnixTime(2)).is_none());
        }
        assert!(matches!(
            enter(&mut table, owner(0), 2),
            Err(IssueError::Full)
        ));
        for waiting in &all[8..] {
            assert!(table.take(waiting, HERE, UnixTime(2)).is_some());
        }
    }

    #[test]
    fn a_token_and_an_address_have_their_share_of_the_tickets() {
        let mut table = TicketTable::default();
        let mut issue = |id: &str, address: IpAddr| {
            let owner = Owner::new(Some(TokenId::new(id)), Some(address));
            enter(&mut table, owner, 0)
        };
        let mut first = None;
        for _ in 0..limits::TICKETS_PER_TOKEN {
            first.get_or_insert(issue("one", HERE).unwrap());
        }
        let crowded = Crowded::Token(TokenId::new("one"));
        assert!(
            matches!(issue("one", ELSEWHERE), Err(IssueError::Share(whose)) if whose == crowded)
        );
        // A used one of its own makes room.
        let first = first.unwrap();
        assert!(table.take(&first, HERE, UnixTime(0)).is_some());
        let mut issue = |id: &str, address: IpAddr| {
            let owner = Owner::new(Some(TokenId::new(id)), Some(address));
            enter(&mut table, owner, 0)
        };
        issue("one", HERE).unwrap();
        for number in limits::TICKETS_PER_TOKEN..limits::TICKETS_PER_ADDRESS {
            issue(&format!("another {number}"), HERE).unwrap();
        }
        let crowded = issue("the last", HERE).unwrap_err();
        assert!(
            matches!(crowded, IssueError::Share(Crowded::Address(_))),
            "{crowded}"
        );
        issue("the last", ELSEWHERE).unwrap();
        assert!(table.take(&first, HERE, UnixTime(0)).is_none());
    }
}
