//! The reason of a first refusal, for the retries that follow it.
//!
//! A refused FreeRDP comes back twice within a moment, with weaker security and without its preconnection PDU. Told
//! "no token" then, its user would read that instead of the real reason; so the address is told the same code again.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits;
use crate::rdp::negotiation::FailureCode;
use crate::session::SessionId;

/// A refusal that is remembered for its address.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    /// What the client was told.
    pub code: FailureCode,
    /// Under which id it was logged.
    pub session: SessionId,
    at: Instant,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<IpAddr, Remembered>,
    order: VecDeque<(IpAddr, Instant)>,
}

/// Recent refusals.
#[derive(Debug, Default)]
pub struct Refusals {
    table: Mutex<Table>,
}

impl Refusals {
    /// Remembers what `client` was told.
    pub fn remember(&self, client: IpAddr, code: FailureCode, session: SessionId, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((oldest, at)) = table.order.front().copied() {
            let fresh = now.saturating_duration_since(at) < limits::REFUSAL_MEMORY;
            if fresh && table.order.len() < limits::REFUSAL_MEMORY_ENTRIES {
                break;
            }
            table.order.pop_front();
            if table
                .by_address
                .get(&oldest)
                .is_some_and(|known| known.at == at)
            {
                table.by_address.remove(&oldest);
            }
        }
        table.by_address.insert(
            client,
            Remembered {
                code,
                session,
                at: now,
            },
        );
        table.order.push_back((client, now));
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

    #[test]
    fn a_retry_meets_the_first_reason_for_a_while() {
        let refusals = Refusals::default();
        let (client, start) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        refusals.remember(client, FailureCode::SslNotAllowed, SessionId::new(), start);
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
            refusals.remember(client, FailureCode::SslNotAllowed, SessionId::new(), start);
        }
        let table = refusals.table.lock().unwrap();
        assert!(table.order.len() <= limits::REFUSAL_MEMORY_ENTRIES);
        assert!(table.by_address.len() <= limits::REFUSAL_MEMORY_ENTRIES);
    }
}
