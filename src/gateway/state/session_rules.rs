//! What sessions may do here: how they can be inspected, how long they last, and for how long their tokens are remembered.

use std::time::Duration;

use crate::config::{InspectWhen, SessionConfig, TokenConfig};
use crate::listener::Listener;
use jetway_base::time::UnixTime;
use jetway_policy::denial::Denial;
use jetway_policy::permit::Permit;
use jetway_policy::{self as policy, InspectionMode, Means, SessionLimits};
use jetway_token::Token;
use jetway_token::claims::Claims;

/// What sessions may do here, whoever opens them.
#[derive(Debug)]
pub struct SessionRules {
    session: SessionConfig,
    token_leeway_s: u64,
    reconnect_window: Duration,
    longest_reconnect_window: Duration,
    /// Whether any listener has a certificate.
    has_tls: bool,
    verifies_targets: bool,
}

impl SessionRules {
    /// By these settings of sessions and tokens; `has_tls` where any listener has a certificate.
    #[must_use]
    pub fn new(
        session: &SessionConfig,
        token: &TokenConfig,
        has_tls: bool,
        verifies_targets: bool,
    ) -> Self {
        let usual = Duration::from_secs(token.reconnect_window_s);
        Self {
            session: session.clone(),
            token_leeway_s: token.leeway_s,
            reconnect_window: usual,
            longest_reconnect_window: Duration::from_secs(token.max_reconnect_window_s).max(usual),
            has_tls,
            verifies_targets,
        }
    }

    /// Time limits of every session.
    #[must_use]
    pub fn limits(&self) -> SessionLimits {
        SessionLimits {
            idle_timeout: self.session.idle_timeout(),
            time_limit: self.session.time_limit(),
        }
    }

    /// How long the one side of a session may be silent when the other has ended, seconds.
    #[must_use]
    pub fn half_close_timeout_s(&self) -> u64 {
        self.session.half_close_timeout_s
    }

    /// For reaching a target, all its addresses and alternatives together.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.session.connect_timeout_s)
    }

    /// Whether all RDP is inspected.
    #[must_use]
    pub fn inspects_all(&self) -> bool {
        self.session.inspect == InspectWhen::Always
    }

    /// With what a session through one listener can be inspected.
    #[must_use]
    pub fn means_by(&self, listener: &Listener) -> Means {
        self.means_of(listener.inspecting(self.session.inspect))
    }

    /// What a session with these claims could do that comes in by any of the listeners: that one decides again.
    ///
    /// # Errors
    /// They demand what no session can have.
    pub fn permit_by_any(&self, claims: &Claims) -> Result<Permit, Denial> {
        let means = self.means_of(if self.has_tls {
            InspectionMode::WhenNeeded
        } else {
            InspectionMode::Unavailable
        });
        policy::decide(claims, SessionLimits::default(), means)
    }

    /// How long after its last session a token may open another one.
    #[must_use]
    pub fn reconnect_window(&self, claims: &Claims) -> Duration {
        let wanted = claims.jet_reuse.unwrap_or(self.reconnect_window);
        wanted.min(self.longest_reconnect_window)
    }

    /// The last moment at which a token is valid: until then its use is remembered.
    #[must_use]
    pub fn last_valid(&self, token: &Token) -> UnixTime {
        token.claims.validity.not_after.plus(self.token_leeway_s)
    }

    fn means_of(&self, inspecting: InspectionMode) -> Means {
        Means {
            inspecting,
            verifies_targets: self.verifies_targets,
        }
    }
}
