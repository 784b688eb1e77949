//! Bytes of a client that are read although its target does not take those before them, to find its end ([`gone`](super::gone)).
//!
//! What they may take of the gateway's memory is bounded: for one session, for the clients of one address, and for all together. A session
//! that is granted none goes on without.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jetway_base::address::AddressGroup;

/// What is read ahead of one client, bytes: the largest receive buffer that Linux gives a socket by itself (6 MiB, `tcp_rmem`) and the
/// largest send buffer of a client's system (4 MiB, `tcp_wmem`), twice where a `jetway connect` is in between.
pub(super) const AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// What is read ahead of all clients of one address together, bytes.
const ADDRESS_AHEAD_BYTES: usize = ALL_AHEAD_BYTES / 4;

/// What is read ahead of all clients together, bytes.
const ALL_AHEAD_BYTES: usize = 64 * 1024 * 1024;

/// What came of reading ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The client has ended.
    Ended,
    /// All that it has sent was read.
    All,
    /// Not all could be read.
    Full,
}

/// Bytes of a client that were read while those before them wait for the target.
#[derive(Debug)]
pub(super) struct Ahead {
    /// More is read as it comes.
    pub(super) wanted: bool,
    chunks: VecDeque<Box<[u8]>>,
    bytes: usize,
    reserved: Reserved,
}

impl Ahead {
    /// Nothing yet, of a client at `address`.
    pub(super) fn of(address: Option<IpAddr>) -> Self {
        Self {
            wanted: false,
            chunks: VecDeque::new(),
            bytes: 0,
            reserved: Reserved::of(address),
        }
    }

    /// Drops what is there.
    pub(super) fn clear(&mut self) {
        self.wanted = false;
        self.chunks = VecDeque::new();
        self.bytes = 0;
        self.reserved.give_back();
    }

    /// Whether so many more bytes may be read.
    pub(super) fn admits(&mut self, more: usize) -> bool {
        let bytes = self.bytes.saturating_add(more);
        bytes <= AHEAD_BYTES && self.reserved.grow_to(bytes)
    }

    /// Adds what was read.
    pub(super) fn push(&mut self, bytes: Box<[u8]>) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        self.chunks.push_back(bytes);
    }

    /// The next bytes to pass on.
    pub(super) fn pop(&mut self) -> Option<Box<[u8]>> {
        let chunk = self.chunks.pop_front();
        match &chunk {
            Some(chunk) => self.bytes = self.bytes.saturating_sub(chunk.len()),
            // The target has caught up.
            None => self.clear(),
        }
        chunk
    }
}

/// A part of what may be read ahead of all clients together; given back when dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    client: Option<AddressGroup>,
    bytes: usize,
}

/// Bytes reserved.
#[derive(Debug)]
struct Pool {
    all: usize,
    /// Of those the ones for clients of one address; never zero.
    by_address: BTreeMap<AddressGroup, usize>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    all: 0,
    by_address: BTreeMap::new(),
});

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, client: Option<AddressGroup>, more: usize) -> bool {
        let all = self.all.saturating_add(more);
        if all > ALL_AHEAD_BYTES {
            return false;
        }
        if let Some(client) = client {
            let held = self.by_address.get(&client).copied().unwrap_or(0);
            let held = held.saturating_add(more);
            if held > ADDRESS_AHEAD_BYTES {
                return false;
            }
            self.by_address.insert(client, held);
        }
        self.all = all;
        true
    }

    fn give_back(&mut self, client: Option<AddressGroup>, bytes: usize) {
        self.all = self.all.saturating_sub(bytes);
        if let Some(client) = client
            && let Some(held) = self.by_address.get_mut(&client)
        {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.by_address.remove(&client);
            }
        }
    }
}

/// Bytes read ahead of all clients.
#[cfg(test)]
pub(super) fn all_ahead() -> usize {
    pool().all
}

impl Reserved {
    /// Nothing yet, of a client at `address`.
    pub(super) fn of(address: Option<IpAddr>) -> Self {
        Self {
            client: address.map(AddressGroup::widest),
            bytes: 0,
        }
    }

    /// Makes it at least `bytes`, if there are as many.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let taken = more == 0 || pool().take(self.client, more);
        if taken {
            self.bytes = self.bytes.max(bytes);
        }
        taken
    }

    /// Makes it nothing.
    pub(super) fn give_back(&mut self) {
        if self.bytes > 0 {
            pool().give_back(self.client, std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_of_one_and_of_all_is_bounded_and_comes_out_as_it_went_in() {
        let mut all: Vec<Ahead> = Vec::new();
        while all.len() < 100 {
            let mut ahead = Ahead::of(None);
            let before = ahead.bytes;
            while ahead.admits(1024 * 1024) {
                ahead.push(vec![7; 1024 * 1024].into());
            }
            assert!(ahead.bytes <= AHEAD_BYTES);
            if ahead.bytes == before {
                break;
            }
            all.push(ahead);
        }
        let bytes: usize = all.iter().map(|ahead| ahead.bytes).sum();
        assert!(bytes <= ALL_AHEAD_BYTES, "{bytes}");
        drop(all);
        let mut ahead = Ahead::of(None);
        assert!(ahead.admits(3));
        for chunk in [b"a", b"b", b"c"] {
            ahead.push(chunk.as_slice().into());
        }
        let mut out = Vec::new();
        while let Some(chunk) = ahead.pop() {
            out.extend(chunk);
        }
        assert_eq!(out, b"abc");
    }

    #[test]
    fn one_address_leaves_memory_to_others() {
        let of = |last| Some(IpAddr::from([192, 0, 2, last]));
        let mut held = Vec::new();
        for last in 1..=2 {
            let mut bytes = 0;
            for _session in 0..3 {
                let mut ahead = Ahead::of(of(last));
                while ahead.admits(1024 * 1024) {
                    ahead.push(vec![7; 1024 * 1024].into());
                    bytes += 1024 * 1024;
                }
                held.push(ahead);
            }
            assert_eq!(bytes, ADDRESS_AHEAD_BYTES);
        }
        drop(held);
        assert!(pool().by_address.is_empty());
        assert!(Ahead::of(of(1)).admits(1024 * 1024));
    }
}
