//! How much cryptography one address may cause: a token bucket of CPU microseconds.
//!
//! Decrypting is the most expensive thing an unproven peer can make the gateway do (RSA-4096: 3.5 ms), so the work is
//! booked before it is done, by an estimate from the token's header alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::address::AddressGroup;
use crate::limits;

/// The buckets of all addresses.
#[derive(Debug)]
pub struct WorkLimiter {
    rate_us_per_s: u32,
    burst_us: u32,
    buckets: HashMap<AddressGroup, Bucket>,
}

/// What one address has left.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left_us: u32,
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

    /// Books `cost_us` for `address`.
    ///
    /// # Errors
    /// The address has not enough left; nothing was booked.
    pub fn book(
        &mut self,
        address: AddressGroup,
        cost_us: u32,
        now: Instant,
    ) -> Result<(), TooMuchWork> {
        if self.buckets.len() >= limits::TOKEN_WORK_ADDRESSES
            && !self.buckets.contains_key(&address)
        {
            self.forget_idle(now);
        }
        let (rate, burst) = (self.rate_us_per_s, self.burst_us);
        let bucket = self.buckets.entry(address).or_insert(Bucket {
            left_us: burst,
            at: now,
        });
        bucket.refill(rate, burst, now);
        bucket.left_us = bucket.left_us.checked_sub(cost_us).ok_or(TooMuchWork)?;
        Ok(())
    }

    /// Drops full buckets, which say no more than absent ones; then, if all are in use, all of them: an attacker with
    /// that many addresses is not held by a limit on one.
    fn forget_idle(&mut self, now: Instant) {
        let (rate, burst) = (self.rate_us_per_s, self.burst_us);
        self.buckets.retain(|_, bucket| {
            bucket.refill(rate, burst, now);
            bucket.left_us < burst
        });
        if self.buckets.len() >= limits::TOKEN_WORK_ADDRESSES {
            self.buckets.clear();
        }
    }
}

impl Bucket {
    fn refill(&mut self, rate_us_per_s: u32, burst_us: u32, now: Instant) {
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

    fn address(last: u8) -> AddressGroup {
        std::net::IpAddr::from([192, 0, 2, last]).into()
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
            let group = std::net::IpAddr::from(site.to_be_bytes()).into();
            assert_eq!(limiter.book(group, 1, start), Ok(()));
            assert!(limiter.buckets.len() <= limits::TOKEN_WORK_ADDRESSES);
        }
    }
}
