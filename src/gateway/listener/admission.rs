//! How many connections there may be: all together, those that have proved nothing, and of those one address's.
//!
//! One address that has its share gets no more. When all places are taken, the oldest connection of the address that has the most
//! makes room: so many addresses together close the gateway to nobody, as whoever comes from another one has fewer than they.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use jetway_base::address::AddressGroup;
use jetway_io::reached::Reached;
use jetway_policy::shares::{Crowded, Owner, Shares};

/// Counts connections.
#[derive(Debug)]
pub struct Door {
    limit: usize,
    connections: Arc<Semaphore>,
    pending: Arc<Pending>,
    all_reached: Reached,
}

#[derive(Debug)]
struct Pending {
    total: usize,
    table: Mutex<AdmissionTable>,
    reached: Reached,
    address_reached: Reached,
}

#[derive(Debug)]
struct AdmissionTable {
    shares: Shares,
    seats: HashMap<SeatId, Seat>,
    groups: HashMap<Group, BTreeMap<SeatId, CancellationToken>>,
    /// The largest group is last, and of those the one with the oldest connection.
    order: BTreeMap<(usize, Reverse<SeatId>), Group>,
    next: u64,
}

/// Older connections have smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SeatId(u64);

/// Who makes room for whom; `None` for balancers that have not named their clients yet.
type Group = Option<AddressGroup>;

#[derive(Debug)]
struct Seat {
    address: Option<IpAddr>,
}

/// One connection's place; dropping it makes room.
#[derive(Debug)]
pub struct Admission {
    _connection: OwnedSemaphorePermit,
    evicted: CancellationToken,
    slot: Option<Slot>,
}

#[derive(Debug)]
struct Slot {
    pending: Arc<Pending>,
    seat: SeatId,
}

impl Door {
    /// A door for so many connections in total, so many that have proved nothing, and so many of those from one address.
    #[must_use]
    pub fn new(connections: usize, pending: usize, pending_per_address: usize) -> Self {
        let limit = connections.min(Semaphore::MAX_PERMITS);
        Self {
            limit,
            connections: Arc::new(Semaphore::new(limit)),
            pending: Arc::new(Pending {
                total: pending.max(1),
                table: Mutex::new(AdmissionTable::new(pending_per_address)),
                reached: Reached::new("limits.pending_connections"),
                address_reached: Reached::new("limits.pending_per_address"),
            }),
            all_reached: Reached::new("limits.connections"),
        }
    }

    /// How many connections there are, and how many of them have proved nothing.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let all = self
            .limit
            .saturating_sub(self.connections.available_permits());
        (all, self.pending.lock().seats.len())
    }

    /// Waits until there may be one more connection.
    pub async fn connection(&self) -> OwnedSemaphorePermit {
        if self.connections.available_permits() == 0 {
            self.all_reached.by(&"all clients");
        }
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Lets a connection in that has proved nothing; `None` if its address has too many of those. If there are too many in total,
    /// another one is told to go.
    #[must_use]
    pub fn admit(
        &self,
        connection: OwnedSemaphorePermit,
        address: Option<IpAddr>,
    ) -> Option<Admission> {
        let evicted = CancellationToken::new();
        let mut table = self.pending.lock();
        let entered = table.enter(address, evicted.clone());
        let made_room = match &entered {
            Ok(_) if table.seats.len() > self.pending.total => table.evict_one(),
            Ok(_) | Err(_) => None,
        };
        drop(table);
        if let Some(group) = made_room {
            let who: &dyn std::fmt::Display = match &group {
                Some(group) => group,
                None => &"balancers",
            };
            self.pending.reached.by(who);
        }
        match entered {
            Ok(seat) => Some(Admission {
                _connection: connection,
                evicted,
                slot: Some(Slot {
                    pending: Arc::clone(&self.pending),
                    seat,
                }),
            }),
            Err(crowded) => {
                self.pending.address_reached.by(&crowded);
                None
            }
        }
    }
}

impl Admission {
    /// Counts the connection for the client that a balancer has named; `false` if that one has too many.
    #[must_use]
    pub fn rebind(&mut self, client: IpAddr) -> bool {
        let Some(slot) = &self.slot else {
            return true;
        };
        let mut table = slot.pending.lock();
        let rebound = table.rebind(slot.seat, client, &self.evicted);
        drop(table);
        match rebound {
            Ok(still_there) => still_there,
            Err(crowded) => {
                slot.pending.address_reached.by(&crowded);
                false
            }
        }
    }

    /// The client has shown a valid token: it counts as a connection only.
    pub fn proven(&mut self) {
        self.slot = None;
    }

    /// Fires when the connection is to make room for another one. A client that has proved itself is not told to go.
    #[must_use]
    pub fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, AdmissionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdmissionTable {
    fn new(per_address: usize) -> Self {
        Self {
            shares: Shares::new(usize::MAX, per_address),
            seats: HashMap::new(),
            groups: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
        }
    }

    fn enter(
        &mut self,
        address: Option<IpAddr>,
        evicted: CancellationToken,
    ) -> Result<SeatId, Crowded> {
        self.shares.enter(&Owner::new(None, address))?;
        let seat = SeatId(self.next);
        self.next = self.next.wrapping_add(1);
        self.seats.insert(seat, Seat { address });
        self.regroup(address.map(AddressGroup::widest), |group| {
            group.insert(seat, evicted);
        });
        Ok(seat)
    }

    /// Takes a seat away; `None` where it was taken away before.
    fn leave(&mut self, seat: SeatId) -> Option<()> {
        let Seat { address } = self.seats.remove(&seat)?;
        self.shares.leave(&Owner::new(None, address));
        self.regroup(address.map(AddressGroup::widest), |group| {
            group.remove(&seat);
        });
        Some(())
    }

    /// Moves a seat to another address; `false` where it was taken away before. Its age stays.
    fn rebind(
        &mut self,
        seat: SeatId,
        client: IpAddr,
        evicted: &CancellationToken,
    ) -> Result<bool, Crowded> {
        if self.leave(seat).is_none() {
            return Ok(false);
        }
        let entered = self.shares.enter(&Owner::new(None, Some(client)));
        // One that is refused stays until its connection is closed.
        let address = entered.is_ok().then_some(client);
        self.seats.insert(seat, Seat { address });
        self.regroup(address.map(AddressGroup::widest), |group| {
            group.insert(seat, evicted.clone());
        });
        entered.map(|()| true)
    }

    /// Takes the oldest seat of the largest group away and tells its connection to go; returns whose it was.
    fn evict_one(&mut self) -> Option<Group> {
        let (_, &group) = self.order.last_key_value()?;
        let (&seat, evicted) = self.groups.get(&group)?.first_key_value()?;
        evicted.cancel();
        self.leave(seat)?;
        Some(group)
    }

    fn regroup(
        &mut self,
        group: Group,
        change: impl FnOnce(&mut BTreeMap<SeatId, CancellationToken>),
    ) {
        let seats = self.groups.entry(group).or_default();
        if let Some(place) = place_of(seats) {
            self.order.remove(&place);
        }
        change(seats);
        match place_of(seats) {
            Some(place) => {
                self.order.insert(place, group);
            }
            None => {
                self.groups.remove(&group);
            }
        }
    }
}

/// Where a group is in the order.
fn place_of(seats: &BTreeMap<SeatId, CancellationToken>) -> Option<(usize, Reverse<SeatId>)> {
    let (&oldest, _) = seats.first_key_value()?;
    Some((seats.len(), Reverse(oldest)))
}

impl Drop for Slot {
    fn drop(&mut self) {
        // One that was told to go has left already.
        let _left = self.pending.lock().leave(self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    async fn admit(door: &Door, address: IpAddr) -> Option<Admission> {
        door.admit(door.connection().await, Some(address))
    }

    fn told_to_go(admissions: &[Admission]) -> Vec<usize> {
        let admissions = admissions.iter().enumerate();
        let told = admissions.filter(|(_, admission)| admission.evicted.is_cancelled());
        told.map(|(index, _)| index).collect()
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let door = Door::new(10, 3, 2);
        let first = admit(&door, ONE).await.unwrap();
        let _second = admit(&door, ONE).await.unwrap();
        assert!(admit(&door, ONE).await.is_none());
        let _other = admit(&door, TWO).await.unwrap();
        drop(first);
        let _third = admit(&door, ONE).await.unwrap();
    }

    #[tokio::test]
    async fn a_proven_client_makes_room_for_others_and_is_never_told_to_go() {
        let door = Door::new(10, 1, 1);
        let mut first = admit(&door, ONE).await.unwrap();
        first.proven();
        let second = admit(&door, ONE).await.unwrap();
        let _third = admit(&door, TWO).await.unwrap();
        assert!(second.evicted.is_cancelled());
        assert!(!first.evicted.is_cancelled());
    }

    #[tokio::test]
    async fn the_oldest_of_the_largest_group_makes_room() {
        let door = Door::new(100, 6, 4);
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut held = Vec::new();
        for last in [7, 1, 1, 1, 2, 2] {
            held.push(admit(&door, address(last)).await.unwrap());
        }
        // A newcomer, and others: those of the largest group go, the oldest first, and among equals the oldest of all.
        for (last, told) in [(3, vec![1]), (4, vec![1, 2]), (5, vec![1, 2, 4])] {
            held.push(admit(&door, address(last)).await.unwrap());
            assert_eq!(told_to_go(&held), told, "{last}");
        }
        held.push(admit(&door, address(6)).await.unwrap());
        assert_eq!(told_to_go(&held), [0, 1, 2, 4]);
        assert_eq!(door.pending.lock().seats.len(), 6);
        drop(held);
        let table = door.pending.lock();
        assert!(table.seats.is_empty() && table.groups.is_empty() && table.order.is_empty());
        assert!(table.shares.is_empty());
    }

    #[tokio::test]
    async fn a_home_with_many_networks_has_the_places_of_two_addresses() {
        let door = Door::new(1000, 1000, 4);
        let mut held = Vec::new();
        for link in 0..256 {
            let address = format!("2001:db8:1:{link:x}::1").parse().unwrap();
            held.extend(admit(&door, address).await);
        }
        assert_eq!(held.len(), 8);
        let elsewhere = "2001:db8:2::1".parse().unwrap();
        assert!(admit(&door, elsewhere).await.is_some());
    }

    #[tokio::test]
    async fn many_networks_of_one_organisation_make_room_for_another_address() {
        let door = Door::new(1000, 4, 4);
        // Who was there before them stays, too.
        let mut held = vec![admit(&door, ONE).await.unwrap()];
        for link in 1..=3 {
            let address = format!("2001:db8:1:{link:x}00::1").parse().unwrap();
            held.push(admit(&door, address).await.unwrap());
        }
        held.push(admit(&door, TWO).await.unwrap());
        assert_eq!(told_to_go(&held), [1]);
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
        let table = door.pending.lock();
        assert!(table.seats.is_empty() && table.shares.is_empty());
    }
}
