//! Whether the gateway is ready for more sessions, and why not.

use std::sync::Arc;

use serde::Serialize;

use crate::state::Gateway;
use crate::trust::tls::ServerTls;
use jetway_base::limits;
use jetway_io::clock;

/// What keeps a gateway from taking sessions, and what an operator should look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Why it takes none: a balancer is to send clients elsewhere.
    pub reasons: Vec<Reason>,
    /// What is not as it should be, though sessions are taken.
    pub warnings: Vec<Warning>,
}

/// Why no session is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The process stops when its sessions are over.
    Draining,
    /// The store cannot be written: no use of a token could be remembered.
    Store,
    /// The store's file system is as good as full.
    Disk,
    /// The audit is required, and cannot be written.
    Audit,
}

/// What an operator should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// The audit cannot be written; it is not required.
    Audit,
    /// A certificate of the gateway itself has expired.
    Certificate,
    /// A file of keys has changed into one that cannot be used; the keys of before are in force.
    Keys,
}

impl Readiness {
    /// How it is now; anybody may ask, so the file system is not asked for each.
    #[must_use]
    pub fn of(gateway: &Gateway) -> Self {
        let audit_fails = gateway
            .audit
            .health()
            .is_some_and(|health| health.failing.is_some());
        let now = clock::unix_now();
        let expired = |tls: &Arc<ServerTls>| tls.not_after().is_some_and(|end| end < now);
        let reasons = [
            (Reason::Draining, gateway.stopping.is_cancelled()),
            (Reason::Store, gateway.sessions.usages.store_fails()),
            (
                Reason::Disk,
                gateway.store_space.bytes() < limits::STORE_FREE_BYTES,
            ),
            (Reason::Audit, audit_fails && gateway.audit.is_required()),
        ];
        let warnings = [
            (Warning::Audit, audit_fails && !gateway.audit.is_required()),
            (Warning::Certificate, gateway.ports.tls.iter().any(expired)),
            (Warning::Keys, gateway.tokens.keyring.is_stale()),
        ];
        Self {
            reasons: those(&reasons),
            warnings: those(&warnings),
        }
    }

    /// Whether sessions are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Those that hold.
fn those<T: Copy>(all: &[(T, bool)]) -> Vec<T> {
    let hold = all.iter().filter(|(_, holds)| *holds);
    hold.map(|(what, _)| *what).collect()
}
