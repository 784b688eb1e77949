//! A limit that is reached is counted, and said once a minute, by its name, with who has reached it.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::clock;
use jetway_metrics::METRICS;

/// How often one limit is said to be reached.
const EVERY: Duration = Duration::from_secs(60);

/// One limit, to be told of.
#[derive(Debug)]
pub struct Reached {
    limit: &'static str,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    at: Option<Instant>,
    /// How often it was reached since.
    untold: u64,
}

impl Reached {
    /// A limit by the name that administrators know: its key in the configuration, or what it is a limit of.
    #[must_use]
    pub fn new(limit: &'static str) -> Self {
        METRICS.expect_limit(limit);
        Self {
            limit,
            said: Mutex::default(),
        }
    }

    /// Counts that `who` has reached it, and says so unless somebody has a moment ago.
    pub fn by(&self, who: &dyn Display) {
        METRICS.limit_reached(self.limit);
        if let Some(before) = self.turn(clock::now()) {
            warn!(limit = self.limit, who = %who, suppressed = before, "Limit reached");
        }
    }

    /// Whether it is to be said now; then, how often it was reached without a word.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = said
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < EVERY);
        if recent {
            said.untold = said.untold.saturating_add(1);
            return None;
        }
        said.at = Some(now);
        Some(std::mem::take(&mut said.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin; the test moves time by hand"
    )]
    fn a_limit_is_said_to_be_reached_once_a_minute() {
        let (reached, start) = (Reached::new("places"), Instant::now());
        assert_eq!(reached.turn(start), Some(0));
        for second in 0..60 {
            assert_eq!(reached.turn(start + Duration::from_secs(second)), None);
        }
        assert_eq!(reached.turn(start + EVERY), Some(60));
        assert_eq!(reached.turn(start + EVERY), None);
    }
}
