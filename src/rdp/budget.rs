//! What one inspected session may make the gateway remember, however it does it: one account for each direction, and
//! one for both.
//!
//! Bounds of single tables do not add up to a bound of a session: a target may open a thousand dynamic channels, and
//! each has tables of its own. So everything that outlives the PDU that brought it is covered by a [`Held`]: messages
//! that are not whole, histories of compression, requests without an answer, names, lists. Whoever keeps something asks
//! for its bytes before, or with, its growth, and what is dropped gives them back. Tables are counted by what they have
//! allocated, not by what is in them, since a table that was emptied keeps its memory.
//!
//! What a session needs in any case is not counted: its connections, their buffers, names and settings of its beginning,
//! statistics of a fixed size. Neither is what is read of one message while it is looked at.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Direction;
use jetway_base::limits;

/// The account of one session. Copies are the same account.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Account>);

/// Bytes held because of what was sent in each direction.
#[derive(Debug, Default)]
struct Account {
    to_target: AtomicUsize,
    to_client: AtomicUsize,
}

/// A session has made the gateway remember as much as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} made the gateway remember {held} bytes, and {wanted} more for {what} are above the limit of {limit} for {}",
    .from.sender(), .account.name()
)]
pub struct Exhausted {
    /// Whose fault it is.
    pub from: Direction,
    /// What was to be remembered.
    pub what: &'static str,
    /// What was asked for, bytes.
    pub wanted: usize,
    /// What was remembered already, bytes.
    pub held: usize,
    /// What may be, bytes.
    pub limit: usize,
    /// Which account is full.
    pub account: Full,
}

/// Which account is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// What one side has sent.
    Direction,
    /// What both have.
    Session,
}

impl Full {
    fn name(self) -> &'static str {
        match self {
            Self::Direction => "what one side sends",
            Self::Session => "a session",
        }
    }
}

impl Budget {
    /// Bytes that are held because of what was sent in this direction.
    #[must_use]
    pub fn held(&self, direction: Direction) -> usize {
        self.0.of(direction).load(Ordering::Relaxed)
    }

    /// Covers so many bytes for as long as the [`Held`] lives.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn hold(
        &self,
        from: Direction,
        bytes: usize,
        what: &'static str,
    ) -> Result<Held, Exhausted> {
        let mut held = self.nothing(from);
        held.cover(bytes, what)?;
        Ok(held)
    }

    /// Covers nothing yet.
    #[must_use]
    pub fn nothing(&self, from: Direction) -> Held {
        Held {
            budget: self.clone(),
            from,
            bytes: 0,
        }
    }

    fn take(&self, from: Direction, wanted: usize, what: &'static str) -> Result<(), Exhausted> {
        let account = self.0.of(from);
        let held = account.load(Ordering::Relaxed);
        let other = self.held(from.opposite());
        let exhausted = |held, limit, account| Exhausted {
            from,
            what,
            wanted,
            held,
            limit,
            account,
        };
        let sum = held.saturating_add(wanted);
        if sum > limits::REMEMBERED_PER_DIRECTION_BYTES {
            let limit = limits::REMEMBERED_PER_DIRECTION_BYTES;
            return Err(exhausted(held, limit, Full::Direction));
        }
        if sum.saturating_add(other) > limits::REMEMBERED_BYTES {
            let limit = limits::REMEMBERED_BYTES;
            return Err(exhausted(held.saturating_add(other), limit, Full::Session));
        }
        // One task has all of a session, so that nobody else has written it since.
        account.store(sum, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, from: Direction, bytes: usize) {
        let account = self.0.of(from);
        let held = account.load(Ordering::Relaxed);
        account.store(held.saturating_sub(bytes), Ordering::Relaxed);
    }
}

impl Account {
    fn of(&self, direction: Direction) -> &AtomicUsize {
        match direction {
            Direction::ToTarget => &self.to_target,
            Direction::ToClient => &self.to_client,
        }
    }
}

/// Bytes that are remembered. Dropped, they are given back.
pub struct Held {
    budget: Budget,
    from: Direction,
    bytes: usize,
}

impl Held {
    /// From now on it covers so many bytes, whatever it covered before.
    ///
    /// # Errors
    /// There is no room for more; it covers what it did.
    pub fn cover(&mut self, bytes: usize, what: &'static str) -> Result<(), Exhausted> {
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => self.budget.take(self.from, more, what)?,
            None => self
                .budget
                .give_back(self.from, self.bytes.saturating_sub(bytes)),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// The same for so many bytes more.
    ///
    /// # Errors
    /// As [`cover`](Self::cover).
    pub fn add(&mut self, bytes: usize, what: &'static str) -> Result<(), Exhausted> {
        self.cover(self.bytes.saturating_add(bytes), what)
    }

    /// Makes room for `more` bytes behind those of `buffer`, which this covers besides `besides` others and which will
    /// have `total` in the end. It grows with what arrives, not with what is announced, and never beyond that.
    ///
    /// # Errors
    /// As [`cover`](Self::cover); the buffer is as before.
    pub fn grow(
        &mut self,
        buffer: &mut Vec<u8>,
        more: usize,
        total: usize,
        besides: usize,
        what: &'static str,
    ) -> Result<(), Exhausted> {
        let needed = buffer.len().saturating_add(more);
        if needed <= buffer.capacity() {
            return Ok(());
        }
        let doubled = buffer.capacity().saturating_mul(2);
        let capacity = doubled.min(total).max(needed);
        self.cover(capacity.saturating_add(besides), what)?;
        buffer.reserve_exact(capacity.saturating_sub(buffer.len()));
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(self.from, self.bytes);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} bytes)", self.bytes)
    }
}

/// What a table of so many places takes, whatever kind of table: hash tables keep an eighth and more of their places
/// empty, and trees half of them.
#[must_use]
pub fn places<T>(count: usize) -> usize {
    count
        .saturating_mul(size_of::<T>().saturating_add(PLACE_BYTES))
        .saturating_mul(2)
}

/// What a table keeps for each of its places besides the entry.
const PLACE_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use Direction::{ToClient, ToTarget};

    use super::*;

    const DIRECTION: usize = limits::REMEMBERED_PER_DIRECTION_BYTES;
    const SESSION: usize = limits::REMEMBERED_BYTES;

    #[test]
    fn each_direction_and_both_together_are_bounded_and_what_is_dropped_is_given_back() {
        let budget = Budget::default();
        let all = budget.hold(ToClient, DIRECTION, "names").unwrap();
        let error = budget.hold(ToClient, 1, "names").unwrap_err();
        assert_eq!(error.account, Full::Direction);
        assert_eq!(
            error.to_string(),
            "target made the gateway remember 100663296 bytes, and 1 more for names are above the limit of 100663296 \
             for what one side sends"
        );
        let mut rest = budget.hold(ToTarget, SESSION - DIRECTION, "names").unwrap();
        let error = rest.add(1, "lists").unwrap_err();
        assert_eq!((error.account, error.what), (Full::Session, "lists"));
        assert!(error.to_string().starts_with("client made"), "{error}");
        drop(all);
        rest.add(1, "lists").unwrap();
        assert_eq!(budget.held(ToTarget), SESSION - DIRECTION + 1);
        rest.cover(5, "lists").unwrap();
        assert_eq!(budget.held(ToTarget), 5);
        drop(rest);
        assert_eq!((budget.held(ToTarget), budget.held(ToClient)), (0, 0));
    }

    #[test]
    fn a_buffer_grows_with_what_arrives_and_not_beyond_what_was_announced() {
        let budget = Budget::default();
        let mut held = budget.nothing(ToTarget);
        let mut buffer = Vec::new();
        let total = 64 * 1024 * 1024;
        for _ in 0..total / 16_384 {
            held.grow(&mut buffer, 16_384, total, 3, "message").unwrap();
            buffer.extend([0; 16_384]);
            assert!(buffer.capacity() <= buffer.len() * 2);
            assert_eq!(budget.held(ToTarget), buffer.capacity() + 3);
        }
        assert_eq!((buffer.len(), buffer.capacity()), (total, total));
        held.grow(&mut buffer, DIRECTION, usize::MAX, 3, "message")
            .unwrap_err();
        assert_eq!(
            (buffer.capacity(), budget.held(ToTarget)),
            (total, total + 3)
        );
    }
}
