//! Tickets that wait for their use, and those that were used.
//!
//! A ticket opens what its token opens: one session. It is bound to the address that uses it first; from there, and only
//! from there, it can be shown again, so that a client's automatic retry and a reconnect within the token's window meet
//! the same answer as with the token itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use crate::address::AddressGroup;
use crate::limits;
use crate::ticket::{RANDOM_BYTES, Ticket, TicketDigest};
use crate::time::UnixTime;

#[derive(Debug)]
struct Entry {
    token: Zeroizing<String>,
    /// Unused until then; the token's own end once it was used.
    not_after: UnixTime,
    token_not_after: UnixTime,
    used_by: Option<IpAddr>,
}

/// The table of tickets.
#[derive(Debug, Default)]
pub struct Tickets {
    entries: Mutex<HashMap<TicketDigest, Entry>>,
}

/// Why no ticket was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The table is full of tickets that are still good.
    #[error("too many tickets are waiting to be used")]
    Full,
    /// The system has no randomness.
    #[error("the system's random generator failed: {0}")]
    Random(String),
}

impl Tickets {
    /// A new ticket for `token`, good for one use until `not_after`.
    ///
    /// # Errors
    /// The table is full, or the system has no randomness.
    pub fn issue(
        &self,
        token: Zeroizing<String>,
        not_after: UnixTime,
        token_not_after: UnixTime,
        now: UnixTime,
    ) -> Result<Ticket, IssueError> {
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        openssl::rand::rand_bytes(random.as_mut_slice())
            .map_err(|error| IssueError::Random(error.to_string()))?;
        let ticket = Ticket::from_random(&random);
        let mut entries = self.lock();
        if entries.len() >= limits::TICKETS {
            entries.retain(|_, entry| entry.not_after >= now);
        }
        if entries.len() >= limits::TICKETS {
            return Err(IssueError::Full);
        }
        let entry = Entry {
            token,
            not_after,
            token_not_after,
            used_by: None,
        };
        entries.insert(ticket.digest(), entry);
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
        let mut entries = self.lock();
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
            }
        }
        Some(entry.token.clone())
    }

    /// Whether the ticket stands for this token; `None` where there is no such ticket. Does not use it.
    #[must_use]
    pub fn stands_for(&self, ticket: &Ticket, token: &str, now: UnixTime) -> Option<bool> {
        let entries = self.lock();
        let entry = entries
            .get(&ticket.digest())
            .filter(|entry| now <= entry.not_after)?;
        Some(entry.token.as_str() == token)
    }

    /// Drops what is past its time.
    pub fn forget_expired(&self, now: UnixTime) {
        self.lock().retain(|_, entry| entry.not_after >= now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TicketDigest, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn token() -> Zeroizing<String> {
        Zeroizing::new("eyJ.e30.c2ln".to_owned())
    }

    #[test]
    fn a_ticket_is_bound_to_the_first_address_that_uses_it() {
        let tickets = Tickets::default();
        let ticket = tickets
            .issue(token(), UnixTime(60), UnixTime(600), UnixTime(0))
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
            .issue(token(), UnixTime(60), UnixTime(600), UnixTime(0))
            .unwrap();
        assert_eq!(tickets.take(&ticket, HERE, UnixTime(61)), None);
        assert_eq!(
            tickets.take(&Ticket::from_random(&[0; RANDOM_BYTES]), HERE, UnixTime(1)),
            None
        );
    }

    #[test]
    fn the_table_is_bounded_and_expired_tickets_make_room() {
        let tickets = Tickets::default();
        for _ in 0..limits::TICKETS {
            tickets
                .issue(token(), UnixTime(60), UnixTime(600), UnixTime(0))
                .unwrap();
        }
        let full = tickets.issue(token(), UnixTime(60), UnixTime(600), UnixTime(60));
        assert_eq!(full, Err(IssueError::Full));
        tickets
            .issue(token(), UnixTime(160), UnixTime(600), UnixTime(61))
            .unwrap();
    }
}
