//! The permission to open one session: what the steps after the decision demand as their argument.

use std::time::Duration;

use jetway_token::claims::{Credentials, Thumbprint};
use jetway_token::target::TargetAddr;

/// A decision to let one session through.
///
/// INVARIANT: only [this crate](crate) makes one, so code that holds a `Permit` need not ask again.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) targets: Vec<TargetAddr>,
    pub(super) behind: Vec<TargetAddr>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) time_limit: Option<Duration>,
    pub(super) inspection: Option<Inspection>,
    pub(super) target_tls: Option<Thumbprint>,
}

/// What a session needs of a gateway that stands inside it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// `dst_usr` and `dst_pwd`: the gateway logs on to the target with them.
    pub target_credentials: Option<Credentials>,
    /// `prx_usr` and `prx_pwd`: the client proves that it knows them.
    pub proxy_credentials: Option<Credentials>,
    /// `cert_thumb256`: the target's certificate, and no other.
    pub certificate_pin: Option<Thumbprint>,
}

impl Permit {
    /// Destinations, in the order in which to try them; empty for a rendezvous.
    #[must_use]
    pub fn targets(&self) -> &[TargetAddr] {
        &self.targets
    }

    /// Destinations that the agent of the token connects to, in the order in which to try them. The gateway dials none of
    /// them.
    #[must_use]
    pub fn behind(&self) -> &[TargetAddr] {
        &self.behind
    }

    /// The same with no destination but `target`, if it is among them: another one has sent the client there, and would again.
    pub fn confine_to(&mut self, target: &TargetAddr) {
        for targets in [&mut self.targets, &mut self.behind] {
            if targets.contains(target) {
                targets.retain(|known| known == target);
            }
        }
    }

    /// How long the session may be silent in both directions.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    /// What the gateway does inside the session; `None` where it passes on bytes that it cannot read.
    #[must_use]
    pub fn inspection(&self) -> Option<&Inspection> {
        self.inspection.as_ref()
    }

    /// The certificate of a target to which the gateway speaks TLS, while its client says what is inside.
    #[must_use]
    pub fn target_tls(&self) -> Option<Thumbprint> {
        self.target_tls
    }

    /// How long the session may last.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.time_limit
    }
}
