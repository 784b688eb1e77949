//! The only file that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use jetway_base::time::UnixTime;

/// Wall-clock time in whole seconds; the epoch itself where the system's clock is set before it.
#[must_use]
pub fn unix_now() -> UnixTime {
    UnixTime(since_epoch().as_secs())
}

/// Wall-clock time since the epoch, with the system's own resolution.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Monotonic time, for deadlines and durations.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the monotonic clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Whole milliseconds since `start`.
#[must_use]
pub fn millis_since(start: Instant) -> u64 {
    u64::try_from(now().saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since `start`.
#[must_use]
pub fn seconds_since(start: Instant) -> f64 {
    now().saturating_duration_since(start).as_secs_f64()
}

/// A new UUID of version 7 ([RFC 9562] 5.7): such UUIDs sort by the time of their making.
///
/// [RFC 9562]: https://www.rfc-editor.org/rfc/rfc9562#section-5.7
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "a UUID of version 7 begins with the wall clock"
)]
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}
