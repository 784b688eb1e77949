//! Tickets that wait for their use, and those that were used.
//!
//! A ticket opens what its token opens: one session. It is bound to the address that uses it first; from there, and only
//! from there, it can be shown again, so that a client's automatic retry and a reconnect within the token's window meet
//! the same answer as with the token itself.
//!
//! Each token and each address has its share of the table. Where there is no room, those that were used go first, the
//! oldest of them before the others: a session that was opened by one needs it only to come back.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use crate::address::AddressGroup;
use crate::limits;
use crate::listener::reached::Reached;
use crate::shares::{Crowded, Owner, Shares};
use crate::ticket::{RANDOM_BYTES, Ticket, TicketDigest};
use crate::time::UnixTime;
use crate::token::TokenId;

#[derive(Debug)]
struct Entry {
    token: Zeroizing<String>,
    /// Unused until then; the token's own end once it was used.
    not_after: UnixTime,
    token_not_after: UnixTime,
    used_by: Option<IpAddr>,
    /// With the id of the token, which is the same whatever wraps it.
    owner: Owner,
    number: u64,
}

/// The table of tickets.
#[derive(Debug)]
pub struct Tickets {
    table: Mutex<Table>,
    reached: Reached,
    share_reached: Reached,
}

#[derive(Debug)]
struct Table {
    entries: HashMap<TicketDigest, Entry>,
    shares: Shares,
    /// Those that were used, the oldest first.
    used: BTreeMap<u64, TicketDigest>,
    next: u64,
}

/// Why no ticket was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The table is full of tickets that are still good and were not used.
    #[error("too many tickets are waiting to be used")]
    Full,
    /// The token, or the address, has its share.
    #[error("too many tickets of {0} are waiting to be used")]
    Share(Crowded),
    /// The system has no randomness.
    #[error("the system's random generator failed: {0}")]
    Random(String),
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                entries: HashMap::new(),
                shares: Shares::new(limits::TICKETS_PER_TOKEN, limits::TICKETS_PER_ADDRESS),
                used: BTreeMap::new(),
                next: 0,
            }),
            reached: Reached::new("tickets"),
            share_reached: Reached::new("tickets of one token or address"),
        }
    }
}

impl Tickets {
    /// A new ticket of `owner` for `token`, good for one use until `not_after`.
    ///
    /// # Errors
    /// The owner has its share, the table is full, or the system has no randomness.
    pub fn issue(
        &self,
        token: Zeroizing<String>,
        owner: Owner,
        not_after: UnixTime,
        token_not_after: UnixTime,
        now: UnixTime,
    ) -> Result<Ticket, IssueError> {
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        openssl::rand::rand_bytes(random.as_mut_slice())
            .map_err(|error| IssueError::Random(error.to_string()))?;
        let ticket = Ticket::from_random(&random);
        let mut table = self.lock();
        if let Err(error) = table.make_room(&owner, now) {
            drop(table);
            match &error {
                IssueError::Share(crowded) => self.share_reached.by(crowded),
                IssueError::Full => self.reached.by(&"all clients"),
                IssueError::Random(_) => {}
            }
            return Err(error);
        }
        table.shares.count(&owner);
        let number = table.next;
        table.next = table.next.wrapping_add(1);
        let entry = Entry {
            token,
            not_after,
            token_not_after,
            used_by: None,
            owner,
            number,
        };
        table.entries.insert(ticket.digest(), entry);
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
        let mut table = self.lock();
        let Table { entries, used, .. } = &mut *table;
        let entry = entries.get_mut(&ticket.digest())?;
        if now > entry.not_after {
            return None;
        }
        match entry.used_by {
            Some(first) if AddressGroup::from(first) != client.into() => return None,
            Some(_) => {}
            None => {
                entry.used_by = Some(client);
                entry.not_after = entry.token_not_after;
                used.insert(entry.number, ticket.digest());
            }
        }
        Some(entry.token.clone())
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

    /// Drops what is past its time.
    pub fn forget_expired(&self, now: UnixTime) {
        self.lock().forget_expired(now);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Makes room for one more of `owner`, at the cost of those that are past their time or were used.
    fn make_room(&mut self, owner: &Owner, now: UnixTime) -> Result<(), IssueError> {
        if self.shares.check(owner).is_err() || self.entries.len() >= limits::TICKETS {
            self.forget_expired(now);
        }
        while let Err(crowded) = self.shares.check(owner) {
            if !self.forget_used(|other| other.is(&crowded)) {
                return Err(IssueError::Share(crowded));
            }
        }
        if self.entries.len() >= limits::TICKETS && !self.forget_used(|_| true) {
            return Err(IssueError::Full);
        }
        Ok(())
    }

    /// Forgets the oldest used one of those owners; whether there was one.
    fn forget_used(&mut self, whose: impl Fn(&Owner) -> bool) -> bool {
        let Self { entries, used, .. } = self;
        let mut candidates = used.values();
        let found = candidates.find(|digest| {
            let entry = entries.get(digest);
            entry.is_some_and(|entry| whose(&entry.owner))
        });
        match found.cloned() {
            Some(digest) => {
                self.forget(&digest);
                true
            }
            None => false,
        }
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
    use super::*;
    use crate::token::TokenId;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn token() -> Zeroizing<String> {
        Zeroizing::new("eyJ.e30.c2ln".to_owned())
    }

    #[test]
    fn a_ticket_is_bound_to_the_first_address_that_uses_it() {
        let tickets = Tickets::default();
        let ticket = tickets
            .issue(token(), owner(0), UnixTime(60), UnixTime(600), UnixTime(0))
            .unwrap();
        assert_eq!(tickets.take(&ticket, HERE, UnixTime(30)), Some(token()));
        assert_eq!(tickets.take(&ticket, ELSEWHERE, UnixTime(31)), None);
        assert_eq!(
            tickets.take(&ticket, HERE, UnixTime(500)),
            Some(token()),
            "a reconnect"
        );
        assert_eq!(
            tickets.take(&ticket, HERE, UnixTime(601)),
            None,
            "the token has expired"
        );
    }

    #[test]
    fn an_unused_ticket_expires_and_a_guessed_one_is_nothing() {
        let tickets = Tickets::default();
        let ticket = tickets
            .issue(token(), owner(0), UnixTime(60), UnixTime(600), UnixTime(0))
            .unwrap();
        assert_eq!(tickets.take(&ticket, HERE, UnixTime(61)), None);
        assert_eq!(
            tickets.take(&Ticket::from_random(&[0; RANDOM_BYTES]), HERE, UnixTime(1)),
            None
        );
    }

    /// One of many tokens, at one of many addresses.
    fn owner(number: u32) -> Owner {
        let token = TokenId::new(format!("token {}", number / 10));
        let address = IpAddr::from((0x0A00_0000 + number / 1000).to_be_bytes());
        Owner::new(Some(token), Some(address))
    }

    fn fill(tickets: &Tickets) -> Vec<Ticket> {
        let numbers = 1000..1000 + u32::try_from(limits::TICKETS).unwrap();
        let issue = |number| {
            tickets.issue(
                token(),
                owner(number),
                UnixTime(60),
                UnixTime(600),
                UnixTime(0),
            )
        };
        numbers.map(|number| issue(number).unwrap()).collect()
    }

    #[test]
    fn the_table_is_bounded_and_expired_tickets_make_room() {
        let tickets = Tickets::default();
        fill(&tickets);
        let full = tickets.issue(token(), owner(0), UnixTime(60), UnixTime(600), UnixTime(60));
        assert_eq!(full, Err(IssueError::Full));
        let later = tickets.issue(
            token(),
            owner(0),
            UnixTime(160),
            UnixTime(600),
            UnixTime(61),
        );
        later.unwrap();
        tickets.forget_expired(UnixTime(161));
        let table = tickets.lock();
        assert!(table.entries.is_empty() && table.shares.is_empty() && table.used.is_empty());
    }

    #[test]
    fn in_a_full_table_the_oldest_used_ticket_makes_room_and_none_that_waits() {
        let tickets = Tickets::default();
        let mut all = fill(&tickets);
        for used in [7, 3] {
            assert!(tickets.take(&all[used], HERE, UnixTime(1)).is_some());
        }
        for gone in [3, 7] {
            assert!(tickets.take(&all[gone], HERE, UnixTime(2)).is_some());
            let next = tickets.issue(token(), owner(0), UnixTime(60), UnixTime(600), UnixTime(2));
            next.unwrap();
            assert!(tickets.take(&all[gone], HERE, UnixTime(2)).is_none());
        }
        let full = tickets.issue(token(), owner(0), UnixTime(60), UnixTime(600), UnixTime(2));
        assert_eq!(full, Err(IssueError::Full));
        let waiting = all.split_off(8);
        for ticket in waiting {
            assert!(tickets.take(&ticket, HERE, UnixTime(2)).is_some());
        }
    }

    #[test]
    fn a_token_and_an_address_have_their_share_of_the_tickets() {
        let tickets = Tickets::default();
        let issue = |id: &str, address: IpAddr| {
            let owner = Owner::new(Some(TokenId::new(id)), Some(address));
            tickets.issue(token(), owner, UnixTime(60), UnixTime(600), UnixTime(0))
        };
        let mut first = None;
        for _ in 0..limits::TICKETS_PER_TOKEN {
            first.get_or_insert(issue("one", HERE).unwrap());
        }
        let crowded = Crowded::Token(TokenId::new("one"));
        assert_eq!(issue("one", ELSEWHERE), Err(IssueError::Share(crowded)));
        // A used one of its own makes room.
        let first = first.unwrap();
        assert!(tickets.take(&first, HERE, UnixTime(0)).is_some());
        issue("one", HERE).unwrap();
        assert!(tickets.take(&first, HERE, UnixTime(0)).is_none());
        for number in limits::TICKETS_PER_TOKEN..limits::TICKETS_PER_ADDRESS {
            issue(&format!("another {number}"), HERE).unwrap();
        }
        let crowded = issue("the last", HERE).unwrap_err();
        assert!(
            matches!(crowded, IssueError::Share(Crowded::Address(_))),
            "{crowded}"
        );
        issue("the last", ELSEWHERE).unwrap();
    }
}
