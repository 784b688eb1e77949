//! How many log lines one cause may make: by address outside of sessions, by kind of record inside of one.
//!
//! Each kind of line has a budget of its own, so that a flood of one kind hides no other. What is over the budget is
//! counted, and the count is reported ([`LineLimiter::due`], [`RecordLimiter::due`]): a line may be missing, that it is
//! missing never is.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::address::AddressGroup;
use crate::limits::{self, Rate};

/// What is left of one budget, in thousandths of its unit.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self {
            left: rate.burst.saturating_mul(1000),
            at: now,
        }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_millis();
        let gain = u64::try_from(elapsed)
            .unwrap_or(u64::MAX)
            .saturating_mul(rate.per_s);
        // A gain of nothing keeps the time, so that frequent lines do not starve the bucket.
        if gain > 0 {
            let most = rate.burst.saturating_mul(1000);
            self.left = self.left.saturating_add(gain).min(most);
            self.at = now;
        }
    }

    fn take(&mut self, cost: u64, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        match self.left.checked_sub(cost.saturating_mul(1000)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    fn is_full(&self, rate: Rate) -> bool {
        self.left >= rate.burst.saturating_mul(1000)
    }
}

/// Who can cause a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Anybody.
    Anybody,
    /// Who has shown a token or a key that holds, or this process itself.
    Proven,
}

impl Cause {
    fn rate(self) -> Rate {
        match self {
            Self::Anybody => limits::LOG_LINES_OF_ANYBODY,
            Self::Proven => limits::LOG_LINES_OF_PROVEN,
        }
    }
}

/// Lines that were not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// The address that caused the last of them; `None` where many share one budget, or no address is the cause.
    pub address: Option<IpAddr>,
    /// What they said.
    pub message: String,
    /// How many.
    pub lines: u64,
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    missing: u64,
    since: Instant,
    address: Option<IpAddr>,
    message: String,
}

/// The budgets of all addresses, for each kind `K` of line.
#[derive(Debug)]
pub struct LineLimiter<K> {
    anybody: LimitTable<K>,
    proven: LimitTable<K>,
}

impl<K> Default for LineLimiter<K> {
    fn default() -> Self {
        Self {
            anybody: LimitTable::new(Cause::Anybody),
            proven: LimitTable::new(Cause::Proven),
        }
    }
}

impl<K: Eq + Hash + Clone> LineLimiter<K> {
    /// Whether a line of `kind` may be written; one that may not is counted, under the `message` it has.
    pub fn admit(
        &mut self,
        address: Option<IpAddr>,
        kind: K,
        cause: Cause,
        message: &str,
        now: Instant,
    ) -> bool {
        let table = match cause {
            Cause::Anybody => &mut self.anybody,
            Cause::Proven => &mut self.proven,
        };
        table.admit(address, kind, message, now)
    }

    /// What was suppressed and has waited long enough to be told.
    pub fn due(&mut self, now: Instant) -> Vec<Suppressed> {
        let due = |entry: &Entry| {
            now.saturating_duration_since(entry.since) >= limits::LOG_REPORT_INTERVAL
        };
        let mut due_now = self.anybody.take(due);
        due_now.extend(self.proven.take(due));
        due_now
    }

    /// All that was suppressed and is not told yet.
    pub fn rest(&mut self) -> Vec<Suppressed> {
        let mut rest = self.anybody.take(|_| true);
        rest.extend(self.proven.take(|_| true));
        rest
    }
}

/// The budgets of one cause. Those of proven peers have a table of their own, which nobody else can fill.
#[derive(Debug)]
struct LimitTable<K> {
    rate: Rate,
    entries: HashMap<(Option<AddressGroup>, K), Entry>,
    swept: Option<Instant>,
}

impl<K> LimitTable<K> {
    fn new(cause: Cause) -> Self {
        Self {
            rate: cause.rate(),
            entries: HashMap::new(),
            swept: None,
        }
    }
}

impl<K: Eq + Hash + Clone> LimitTable<K> {
    fn admit(&mut self, address: Option<IpAddr>, kind: K, message: &str, now: Instant) -> bool {
        let mut key = (address.map(AddressGroup::from), kind);
        if self.entries.len() >= limits::LOG_BUDGETS && !self.entries.contains_key(&key) {
            self.forget_idle(now);
            // More addresses than are told apart share one budget for each kind, so the sum stays bounded, too.
            if self.entries.len() >= limits::LOG_BUDGETS {
                key.0 = None;
            }
        }
        let shared = key.0.is_none();
        let rate = self.rate;
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            bucket: Bucket::full(rate, now),
            missing: 0,
            since: now,
            address: None,
            message: String::new(),
        });
        if entry.bucket.take(1, rate, now) {
            return true;
        }
        if entry.missing == 0 {
            entry.since = now;
            message.clone_into(&mut entry.message);
        }
        entry.missing = entry.missing.saturating_add(1);
        entry.address = if shared { None } else { address };
        false
    }

    /// Drops what says no more than its absence. At most once a second, for it looks at all of them.
    fn forget_idle(&mut self, now: Instant) {
        let recently = |at: Instant| now.saturating_duration_since(at) < Duration::from_secs(1);
        if self.swept.is_some_and(recently) {
            return;
        }
        self.swept = Some(now);
        let rate = self.rate;
        self.entries.retain(|_, entry| {
            entry.bucket.refill(rate, now);
            entry.missing > 0 || !entry.bucket.is_full(rate)
        });
    }

    fn take(&mut self, due: impl Fn(&Entry) -> bool) -> Vec<Suppressed> {
        let entries = self.entries.values_mut();
        entries
            .filter(|entry| entry.missing > 0 && due(entry))
            .map(|entry| Suppressed {
                address: entry.address,
                message: std::mem::take(&mut entry.message),
                lines: std::mem::take(&mut entry.missing),
            })
            .collect()
    }
}

/// The budgets of one session's records: bytes, for each kind `K`.
#[derive(Debug)]
pub struct RecordLimiter<K> {
    kinds: HashMap<K, (Bucket, u64)>,
    since: Option<Instant>,
}

impl<K> Default for RecordLimiter<K> {
    fn default() -> Self {
        Self {
            kinds: HashMap::new(),
            since: None,
        }
    }
}

impl<K: Eq + Hash + Ord + Clone> RecordLimiter<K> {
    /// Whether a record of so many `bytes` may be written; one that may not is counted.
    pub fn admit(&mut self, kind: K, bytes: usize, now: Instant) -> bool {
        let rate = limits::LOG_RECORD_BYTES;
        let (bucket, missing) = self
            .kinds
            .entry(kind)
            .or_insert_with(|| (Bucket::full(rate, now), 0));
        let cost = u64::try_from(bytes).unwrap_or(u64::MAX);
        if bucket.take(cost, rate, now) {
            return true;
        }
        *missing = missing.saturating_add(1);
        self.since.get_or_insert(now);
        false
    }

    /// What was suppressed, by kind, once it has waited long enough to be told.
    pub fn due(&mut self, now: Instant) -> Vec<(K, u64)> {
        let waited = |at: Instant| now.saturating_duration_since(at) >= limits::LOG_REPORT_INTERVAL;
        if self.since.is_some_and(waited) {
            self.rest()
        } else {
            Vec::new()
        }
    }

    /// What was suppressed and is not told yet.
    pub fn rest(&mut self) -> Vec<(K, u64)> {
        self.since = None;
        let mut rest: Vec<(K, u64)> = self
            .kinds
            .iter_mut()
            .filter(|(_, (_, missing))| *missing > 0)
            .map(|(kind, (_, missing))| (kind.clone(), std::mem::take(missing)))
            .collect();
        rest.sort_unstable();
        rest
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an arbitrary origin; the tests move time by hand"
)]
mod tests {
    use super::*;

    const CLIENT: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const OTHER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    fn admitted(
        limiter: &mut LineLimiter<u8>,
        address: Option<IpAddr>,
        (kind, cause): (u8, Cause),
        times: u64,
        now: Instant,
    ) -> u64 {
        (0..times)
            .map(|_| u64::from(limiter.admit(address, kind, cause, "Refused", now)))
            .sum()
    }

    #[test]
    fn a_flood_is_cut_counted_and_hides_no_other_address_kind_or_proven_peer() {
        let mut limiter = LineLimiter::default();
        let start = Instant::now();
        let Rate { burst, per_s } = limits::LOG_LINES_OF_ANYBODY;
        let flood =
            |limiter: &mut _, now| admitted(limiter, CLIENT, (1, Cause::Anybody), 5000, now);
        assert_eq!(flood(&mut limiter, start), burst);
        for (address, kind, cause) in [
            (OTHER, 1, Cause::Anybody),
            (CLIENT, 2, Cause::Anybody),
            (CLIENT, 1, Cause::Proven),
        ] {
            assert_eq!(admitted(&mut limiter, address, (kind, cause), 1, start), 1);
        }
        assert_eq!(limiter.due(start), []);
        let later = start + limits::LOG_REPORT_INTERVAL;
        let told = Suppressed {
            address: CLIENT,
            message: "Refused".to_owned(),
            lines: 5000 - burst,
        };
        assert_eq!(limiter.due(later), [told]);
        assert_eq!(limiter.due(later), [], "told once");
        let seconds = limits::LOG_REPORT_INTERVAL.as_secs();
        assert_eq!(flood(&mut limiter, later), seconds * per_s);
        assert_eq!(limiter.rest().len(), 1);
    }

    #[test]
    fn the_table_of_addresses_is_bounded_and_so_is_the_sum_of_those_it_has_no_room_for() {
        let mut limiter = LineLimiter::default();
        let start = Instant::now();
        let addresses = u32::try_from(limits::LOG_BUDGETS).unwrap();
        let mut written = 0;
        for n in 0..addresses * 2 {
            let address = Some(IpAddr::from(n.to_be_bytes()));
            written += admitted(&mut limiter, address, (1, Cause::Anybody), 1, start);
            assert!(limiter.anybody.entries.len() <= limits::LOG_BUDGETS + 1);
        }
        let shared = limits::LOG_LINES_OF_ANYBODY.burst;
        assert_eq!(written, u64::from(addresses) + shared);
        let told = limiter.rest();
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].address, told[0].lines),
            (None, u64::from(addresses) - shared)
        );
        // Proven peers are told apart all the same, and who has been quiet makes room.
        assert_eq!(
            admitted(&mut limiter, CLIENT, (1, Cause::Proven), 1, start),
            1
        );
        let later = start + Duration::from_secs(3600);
        assert_eq!(
            admitted(&mut limiter, CLIENT, (1, Cause::Anybody), 1, later),
            1
        );
        assert!(limiter.anybody.entries.len() <= 2);
    }

    #[test]
    fn records_of_one_kind_leave_those_of_another_alone() {
        let mut limiter = RecordLimiter::default();
        let start = Instant::now();
        let burst = usize::try_from(limits::LOG_RECORD_BYTES.burst).unwrap();
        assert!(limiter.admit("opened", burst, start));
        assert!(!limiter.admit("opened", 1000, start));
        assert!(limiter.admit("copied", 1000, start));
        assert_eq!(limiter.due(start), []);
        assert_eq!(
            limiter.due(start + limits::LOG_REPORT_INTERVAL),
            [("opened", 1)]
        );
        assert_eq!(limiter.rest(), []);
    }
}
