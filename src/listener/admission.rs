//! How many connections there may be: all together, those that have proved nothing, and of those one address's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::address::AddressGroup;

/// Counts connections.
#[derive(Debug)]
pub struct Door {
    connections: Arc<Semaphore>,
    pending: Arc<Pending>,
}

#[derive(Debug)]
struct Pending {
    total: usize,
    per_address: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<AddressGroup, usize>,
}

/// One connection's place; dropping it makes room.
#[derive(Debug)]
pub struct Admission {
    _connection: OwnedSemaphorePermit,
    slot: Option<Slot>,
}

#[derive(Debug)]
struct Slot {
    pending: Arc<Pending>,
    /// `None` for a balancer that has not named its client yet.
    address: Option<AddressGroup>,
}

impl Door {
    /// A door for so many connections in total, so many that have proved nothing, and so many of those from one address.
    #[must_use]
    pub fn new(connections: usize, pending: usize, pending_per_address: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            pending: Arc::new(Pending {
                total: pending,
                per_address: pending_per_address,
                counts: Mutex::default(),
            }),
        }
    }

    /// Waits until there may be one more connection.
    pub async fn connection(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Lets a connection in that has proved nothing; `None` if there are too many of those.
    #[must_use]
    pub fn admit(
        &self,
        connection: OwnedSemaphorePermit,
        address: Option<IpAddr>,
    ) -> Option<Admission> {
        let address = address.map(AddressGroup::from);
        let mut counts = self.pending.lock();
        if counts.total >= self.pending.total {
            return None;
        }
        if let Some(address) = address {
            counts.enter(address, self.pending.per_address)?;
        }
        counts.total += 1;
        drop(counts);
        let slot = Slot {
            pending: Arc::clone(&self.pending),
            address,
        };
        Some(Admission {
            _connection: connection,
            slot: Some(slot),
        })
    }
}

impl Admission {
    /// Counts the connection for the client that a balancer has named; `false` if that one has too many.
    #[must_use]
    pub fn rebind(&mut self, client: IpAddr) -> bool {
        let Some(slot) = &mut self.slot else {
            return true;
        };
        let client = AddressGroup::from(client);
        let mut counts = slot.pending.lock();
        if let Some(before) = slot.address.take() {
            counts.leave(before);
        }
        let entered = counts.enter(client, slot.pending.per_address).is_some();
        drop(counts);
        if entered {
            slot.address = Some(client);
        }
        entered
    }

    /// The client has shown a valid token: it counts as a connection only.
    pub fn proven(&mut self) {
        self.slot = None;
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn enter(&mut self, address: AddressGroup, limit: usize) -> Option<()> {
        let count = self.by_address.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(())
    }

    fn leave(&mut self, address: AddressGroup) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.pending.lock();
        counts.total = counts.total.saturating_sub(1);
        if let Some(address) = self.address {
            counts.leave(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let door = Door::new(10, 3, 2);
        let first = door.admit(door.connection().await, Some(ONE)).unwrap();
        let _second = door.admit(door.connection().await, Some(ONE)).unwrap();
        assert!(door.admit(door.connection().await, Some(ONE)).is_none());
        let _other = door.admit(door.connection().await, Some(TWO)).unwrap();
        drop(first);
        let _third = door.admit(door.connection().await, Some(ONE)).unwrap();
    }

    #[tokio::test]
    async fn a_proven_client_makes_room_for_others() {
        let door = Door::new(10, 1, 1);
        let mut first = door.admit(door.connection().await, Some(ONE)).unwrap();
        assert!(door.admit(door.connection().await, Some(TWO)).is_none());
        first.proven();
        let _second = door.admit(door.connection().await, Some(ONE)).unwrap();
    }

    #[tokio::test]
    async fn a_balancers_connections_count_for_its_clients() {
        let door = Door::new(10, 10, 1);
        let mut first = door.admit(door.connection().await, None).unwrap();
        let mut second = door.admit(door.connection().await, None).unwrap();
        assert!(first.rebind(ONE));
        assert!(!second.rebind(ONE));
        drop(first);
        assert!(second.rebind(ONE));
        drop(second);
        let counts = door.pending.lock();
        assert_eq!((counts.total, counts.by_address.len()), (0, 0));
    }
}
