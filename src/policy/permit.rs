//! The permission to open one session: what the steps after the decision demand as their argument.

use std::time::Duration;

use crate::token::target::TargetAddr;

/// A decision to let one session through.
///
/// INVARIANT: only [`policy`](crate::policy) makes one, so code that holds a `Permit` need not ask again.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) targets: Vec<TargetAddr>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) time_limit: Option<Duration>,
}

impl Permit {
    /// Destinations, in the order in which to try them; never empty.
    #[must_use]
    pub fn targets(&self) -> &[TargetAddr] {
        &self.targets
    }

    /// How long the session may be silent in both directions.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    /// How long the session may last.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.time_limit
    }
}
