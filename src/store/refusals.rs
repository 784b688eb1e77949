//! The reason of a first refusal, for the retries that follow it.
//!
//! A refused FreeRDP comes back twice within a moment, with weaker security and without its preconnection PDU. Told
//! "no token" then, its user would read that instead of the real reason; so the address is told the same code again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_policy::shares::{Owner, Shares};
use jetway_rdp::negotiation::FailureCode;

/// A refusal that is remembered for its address.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    /// What the client was told.
    pub code: FailureCode,
    /// Under which id it was logged.
    pub session: SessionId,
    at: Instant,
    number: u64,
}

#[derive(Debug)]
struct RefusalTable {
    by_address: HashMap<IpAddr, Remembered>,
    /// Oldest first, each address once.
    order: BTreeMap<u64, IpAddr>,
    shares: Shares,
    next: u64,
}

/// Recent refusals.
#[derive(Debug)]
pub struct Refusals {
    table: Mutex<RefusalTable>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            table: Mutex::new(RefusalTable {
                by_address: HashMap::new(),
                order: BTreeMap::new(),
                shares: Shares::new(usize::MAX, limits::REFUSAL_MEMORY_PER_ADDRESS),
                next: 0,
            }),
        }
    }
}

impl RefusalTable {
    fn forget(&mut self, client: IpAddr) {
        if let Some(known) = self.by_address.remove(&client) {
            self.order.remove(&known.number);
            self.shares.leave(&Owner::new(None, Some(client)));
        }
    }
}

impl Refusals {
    /// Remembers what `client` was told. A network that has its share of the memory is remembered no more of until some of it is
    /// past its time.
    pub fn remember(&self, client: IpAddr, code: FailureCode, session: SessionId, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.forget(client);
        while let Some((_, &oldest)) = table.order.first_key_value() {
            let known = table.by_address.get(&oldest);
            let fresh = known.is_some_and(|known| {
                now.saturating_duration_since(known.at) < limits::REFUSAL_MEMORY
            });
            if fresh && table.order.len() < limits::REFUSAL_MEMORY_ENTRIES {
                break;
            }
            table.forget(oldest);
        }
        if table.shares.enter(&Owner::new(None, Some(client))).is_err() {
            return;
        }
        let number = table.next;
        table.next = table.next.wrapping_add(1);
        let remembered = Remembered {
            code,
            session,
            at: now,
            number,
        };
        table.by_address.insert(client, remembered);
        table.order.insert(number, client);
    }

    /// What `client` was told a moment ago.
    #[must_use]
    pub fn recall(&self, client: IpAddr, now: Instant) -> Option<Remembered> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.by_address.get(&client)?;
        (now.saturating_duration_since(known.at) < limits::REFUSAL_MEMORY).then_some(*known)
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an arbitrary origin; the tests move time by hand"
)]
mod tests {
    use super::*;
    use jetway_io::clock;

    #[test]
    fn a_retry_meets_the_first_reason_for_a_while() {
        let refusals = Refusals::default();
        let (client, start) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        refusals.remember(
            client,
            FailureCode::SslNotAllowed,
            SessionId::from(clock::new_uuid()),
            start,
        );
        let recalled = refusals.recall(client, start).unwrap();
        assert_eq!(recalled.code, FailureCode::SslNotAllowed);
        assert!(
            refusals
                .recall(client, start + limits::REFUSAL_MEMORY)
                .is_none()
        );
        assert!(
            refusals
                .recall(IpAddr::from([192, 0, 2, 2]), start)
                .is_none()
        );
    }

    #[test]
    fn the_memory_is_bounded() {
        let refusals = Refusals::default();
        let start = Instant::now();
        for n in 0..u32::try_from(limits::REFUSAL_MEMORY_ENTRIES).unwrap() * 2 {
            let client = IpAddr::from(n.to_be_bytes());
            refusals.remember(
                client,
                FailureCode::SslNotAllowed,
                SessionId::from(clock::new_uuid()),
                start,
            );
        }
        let table = refusals.table.lock().unwrap();
        assert!(table.order.len() <= limits::REFUSAL_MEMORY_ENTRIES);
        assert!(table.by_address.len() <= limits::REFUSAL_MEMORY_ENTRIES);
    }

    #[test]
    fn one_client_and_one_network_push_out_nobody_elses_reason() {
        let refusals = Refusals::default();
        let (victim, start) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        let remember = |client| {
            refusals.remember(
                client,
                FailureCode::SslNotAllowed,
                SessionId::from(clock::new_uuid()),
                start,
            );
        };
        remember(victim);
        for number in 0..u32::try_from(limits::REFUSAL_MEMORY_ENTRIES).unwrap() * 2 {
            remember(IpAddr::from([192, 0, 2, 2]));
            let number = u16::try_from(number).unwrap();
            remember(IpAddr::from([0x2001, 0xdb8, 1, number, 0, 0, 0, 1]));
        }
        assert!(refusals.recall(victim, start).is_some());
    }
}
