//! How much cryptography one address may cause: a token bucket of CPU microseconds.
//!
//! Decrypting is the most expensive thing an unproven peer can make the gateway do (RSA-4096: 4.5 ms), so the work is
//! booked before it is done, by an estimate from the token's header alone.
//!
//! The table is bounded, and what it forgets is a bucket that starts full again. So the fullest go first: whoever has spent their
//! share cannot have that forgotten by coming from many other addresses.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jetway_base::address::AddressGroup;
use jetway_base::limits;

/// The buckets of all networks.
#[derive(Debug)]
pub struct WorkLimiter {
    rate_us_per_s: u32,
    burst_us: u32,
    buckets: HashMap<AddressGroup, Bucket>,
}

/// What one network has left.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left_us: u32,
    /// Of how many addresses the network has the share.
    factor: usize,
    at: Instant,
}

/// The address has used up its share for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens from this address")]
pub struct TooMuchWork;

impl WorkLimiter {
    /// A limiter that gives each address `burst_us` at once and `rate_us_per_s` in the long run, microseconds of CPU.
    #[must_use]
    pub fn new(rate_us_per_s: u32, burst_us: u32) -> Self {
        Self {
            rate_us_per_s,
            burst_us,
            buckets: HashMap::new(),
        }
    }

    /// Books `cost_us` for `address`, in each network that it is counted in.
    ///
    /// # Errors
    /// One of them has not enough left; nothing was booked.
    pub fn book(&mut self, address: IpAddr, cost_us: u32, now: Instant) -> Result<(), TooMuchWork> {
        let (rate, burst) = (self.rate_us_per_s, self.burst_us);
        // At once for all of them, so that none is forgotten between here and the end.
        let known = |(group, _)| self.buckets.contains_key(&group);
        let new = AddressGroup::steps(address).any(|step| !known(step));
        if new && self.buckets.len() > LARGEST {
            self.forget_fullest(now);
        }
        for (group, factor) in AddressGroup::steps(address) {
            let bucket = self.buckets.entry(group).or_insert(Bucket {
                left_us: times(burst, factor),
                factor,
                at: now,
            });
            bucket.refill(rate, burst, now);
            if bucket.left_us < cost_us {
                return Err(TooMuchWork);
            }
        }
        for (group, _) in AddressGroup::steps(address) {
            if let Some(bucket) = self.buckets.get_mut(&group) {
                bucket.left_us = bucket.left_us.saturating_sub(cost_us);
            }
        }
        Ok(())
    }

    /// Drops full buckets, which say no more than absent ones; then, if too many are in use, the fullest of them. So many at a
    /// time that the search for them costs each address little.
    fn forget_fullest(&mut self, now: Instant) {
        let (rate, burst) = (self.rate_us_per_s, self.burst_us);
        self.buckets.retain(|_, bucket| {
            bucket.refill(rate, burst, now);
            bucket.left_us < times(burst, bucket.factor)
        });
        if self.buckets.len() <= LARGEST {
            return;
        }
        let buckets = self.buckets.iter();
        let mut by_rest: Vec<(u32, AddressGroup)> = buckets
            .map(|(group, bucket)| (bucket.share_left(), *group))
            .collect();
        by_rest.select_nth_unstable_by_key(FORGOTTEN_AT_ONCE, |(left, _)| Reverse(*left));
        for (_, group) in by_rest.iter().take(FORGOTTEN_AT_ONCE) {
            self.buckets.remove(group);
        }
    }
}

/// With so many buckets there is room for all that one address is counted in.
const LARGEST: usize = limits::TOKEN_WORK_ADDRESSES - 3;

/// Buckets in use that go at one time when there are too many.
const FORGOTTEN_AT_ONCE: usize = limits::TOKEN_WORK_ADDRESSES / 64;

/// What a network may have that is worth `factor` addresses.
fn times(one: u32, factor: usize) -> u32 {
    one.saturating_mul(u32::try_from(factor).unwrap_or(u32::MAX))
}

impl Bucket {
    /// What is left, as if it were one address's.
    fn share_left(&self) -> u32 {
        let factor = u32::try_from(self.factor).unwrap_or(u32::MAX);
        self.left_us.checked_div(factor).unwrap_or(self.left_us)
    }

    fn refill(&mut self, rate_us_per_s: u32, burst_us: u32, now: Instant) {
        let rate_us_per_s = times(rate_us_per_s, self.factor);
        let burst_us = times(burst_us, self.factor);
        let elapsed = now
            .saturating_duration_since(self.at)
            .min(Duration::from_secs(3600));
        let gain = elapsed.as_micros().saturating_mul(rate_us_per_s.into()) / 1_000_000;
        // A gain of nothing keeps the time, so that frequent calls do not starve the bucket.
        if gain > 0 {
            self.left_us = self
                .left_us
                .saturating_add(u32::try_from(gain).unwrap_or(u32::MAX))
                .min(burst_us);
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin; the test moves time by hand"
    )]
    fn one_address_is_slowed_and_others_are_not() {
        let start = Instant::now();
        let mut limiter = WorkLimiter::new(1000, 3000);
        for _ in 0..3 {
            assert_eq!(limiter.book(address(1), 1000, start), Ok(()));
        }
        assert_eq!(limiter.book(address(1), 1000, start), Err(TooMuchWork));
        assert_eq!(limiter.book(address(2), 1000, start), Ok(()));
        assert_eq!(
            limiter.book(address(1), 1000, start + Duration::from_secs(1)),
            Ok(())
        );
        assert_eq!(
            limiter.book(address(1), 1, start + Duration::from_secs(1)),
            Err(TooMuchWork)
        );
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin; the test moves time by hand"
    )]
    fn the_table_of_addresses_is_bounded() {
        let start = Instant::now();
        let mut limiter = WorkLimiter::new(1, 10);
        for site in 0..u32::try_from(limits::TOKEN_WORK_ADDRESSES).unwrap() + 10 {
            let address = IpAddr::from(site.to_be_bytes());
            assert_eq!(limiter.book(address, 1, start), Ok(()));
            assert!(limiter.buckets.len() <= limits::TOKEN_WORK_ADDRESSES);
        }
        for link in 0..100_u16 {
            let address = IpAddr::from([0x2001, 0xdb8, link, 0, 0, 0, 0, 1]);
            assert_eq!(limiter.book(address, 1, start), Ok(()));
            assert!(limiter.buckets.len() <= limits::TOKEN_WORK_ADDRESSES);
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin; the test moves time by hand"
    )]
    fn a_spent_budget_is_not_forgotten_for_any_number_of_other_addresses() {
        let start = Instant::now();
        let mut limiter = WorkLimiter::new(1, 1000);
        // Its last microsecond is spent; those of the others are not.
        assert_eq!(limiter.book(address(1), 1000, start), Ok(()));
        assert_eq!(limiter.book(address(1), 1, start), Err(TooMuchWork));
        for other in 0..2 * u32::try_from(limits::TOKEN_WORK_ADDRESSES).unwrap() {
            let other = IpAddr::from((0x0A00_0000 + other).to_be_bytes());
            assert_eq!(limiter.book(other, 500, start), Ok(()));
        }
        assert_eq!(limiter.book(address(1), 1, start), Err(TooMuchWork));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin; the test moves time by hand"
    )]
    fn a_home_has_the_work_of_two_addresses_and_an_organisation_that_of_four() {
        let start = Instant::now();
        let mut limiter = WorkLimiter::new(1, 1000);
        let mut booked = |links: std::ops::Range<u16>| {
            let links = links.map(|link| IpAddr::from([0x2001, 0xdb8, 1, link, 0, 0, 0, 1]));
            links
                .filter(|link| limiter.book(*link, 1000, start).is_ok())
                .count()
        };
        assert_eq!(booked(0..256), 2);
        assert_eq!(booked(256..2560), 2);
    }
}
