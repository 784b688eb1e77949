//! The audit of a gateway: what is recorded, and within what bounds.
//!
//! Records that others can cause have a budget for each address, as log lines have, a large one for bearers of tokens that hold; how many
//! were left out is a record of its own.
//! Where the audit is required, no session opens whose record is not on disk, and none while nothing can be written.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use crate::config::TrailSettings;
use crate::live::registry::Session;
use crate::refusal::Refusal;
use jetway_audit::chain::Head;
use jetway_audit::record::{Event, Record};
use jetway_base::log_limit::{Cause, LineLimiter, Suppressed};
use jetway_base::session_id::SessionId;
use jetway_io::clock;
use jetway_metrics::METRICS;
use jetway_store::audit::{Audit, AuditError, Health};
use jetway_store::disk::Disk;
use jetway_token::{About, Token};

/// Where decisions are recorded.
#[derive(Debug)]
pub struct Trail {
    audit: Option<Audit>,
    required: bool,
    activity: bool,
    limiter: Mutex<LineLimiter<Event>>,
    disk: Arc<Disk>,
    /// What [`keep_head`](Self::keep_head) has written.
    kept: Mutex<Option<Head>>,
}

impl Trail {
    /// Opens the file that is configured, if one is. The store knows up to where it was on disk, `head`, and will be told.
    ///
    /// # Errors
    /// It cannot be written, or does not end with a record.
    pub fn open(
        settings: &TrailSettings,
        disk: Arc<Disk>,
        head: Option<&str>,
    ) -> Result<Self, AuditError> {
        for event in Event::ALL {
            METRICS.expect_event(event.name());
        }
        // What this program has not written says nothing.
        let known = head.and_then(|head| head.parse().ok());
        let files = settings.files.clone();
        let audit = files.map(|files| Audit::open(files, known)).transpose()?;
        Ok(Self {
            audit,
            required: settings.required,
            activity: settings.activity,
            limiter: Mutex::default(),
            disk,
            kept: Mutex::new(known),
        })
    }

    /// Takes what somebody has done who has proved who they are, or the gateway itself.
    pub fn record(&self, record: &Record) {
        count(record);
        self.write(record);
    }

    fn write(&self, record: &Record) {
        if let Some(audit) = &self.audit {
            audit.record(record);
        }
    }

    /// Whether what happens inside of inspected sessions is recorded.
    #[must_use]
    pub fn records_activity(&self) -> bool {
        self.activity && self.audit.is_some()
    }

    /// Takes what anybody can cause, as far as the budget of the address goes.
    pub fn record_of_anybody(&self, address: IpAddr, record: &Record) {
        self.record_within(address, Cause::Anybody, record);
    }

    /// Takes what the bearer of a token that holds can cause, as far as the budget of the address goes.
    pub fn record_of_proven(&self, address: IpAddr, record: &Record) {
        self.record_within(address, Cause::Proven, record);
    }

    fn record_within(&self, address: IpAddr, cause: Cause, record: &Record) {
        count(record);
        let Some(audit) = &self.audit else { return };
        let (event, now) = (record.event, clock::now());
        let admitted = self
            .limiter()
            .admit(Some(address), event, cause, event.name(), now);
        if admitted {
            audit.record(record);
        }
    }

    /// Whether no session opens without its record.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Whether a session may open.
    ///
    /// # Errors
    /// The audit is required, and cannot be written.
    pub fn admits_sessions(&self) -> Result<(), Refusal> {
        // Asked of every session: without need, no lock is taken.
        let failing = || self.health().is_some_and(|health| health.failing.is_some());
        if self.required && failing() {
            return Err(Refusal::Audit);
        }
        Ok(())
    }

    /// Takes the record of a session that opens; where the audit is required, ready when that is on disk.
    ///
    /// # Errors
    /// It is required, and cannot be written: the session must not open.
    pub async fn opens(&self, record: &Record) -> Result<(), Refusal> {
        count(record);
        let Some(audit) = &self.audit else {
            return Ok(());
        };
        if !self.required {
            audit.record(record);
            return Ok(());
        }
        let written = audit.record_durably(record).await;
        written.map_err(|_not_written| Refusal::Audit)
    }

    /// How it is with the audit, where there is one.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.audit.as_ref().map(Audit::health)
    }

    /// Has the store know up to where the audit is on disk: what is taken from its end while nothing runs is missed at the next start.
    pub fn keep_head(&self) {
        let synced = self.health().and_then(|health| health.synced);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(head) = synced
            && *kept != synced
        {
            *kept = synced;
            self.disk.put_audit_head_later(head.to_string());
        }
    }

    /// Records what was left out and has waited long enough to be told.
    pub fn tell_suppressed(&self) {
        let due = self.limiter().due(clock::now());
        self.record_suppressed(due);
    }

    /// Writes what waits, and ends the file in order.
    pub fn close(&self) {
        let rest = self.limiter().rest();
        self.record_suppressed(rest);
        if let Some(audit) = &self.audit {
            audit.close();
        }
        self.keep_head();
    }

    fn record_suppressed(&self, suppressed: Vec<Suppressed>) {
        for Suppressed {
            address,
            message,
            lines,
        } in suppressed
        {
            self.record(&Record {
                peer: address.map(|address| SocketAddr::new(address, 0)),
                detail: json!({ "event": message, "records": lines }),
                ..Record::new(Event::AuditSuppressed)
            });
        }
    }

    fn limiter(&self) -> MutexGuard<'_, LineLimiter<Event>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happens is counted whether it is recorded or not.
fn count(record: &Record) {
    METRICS.event(record.event.name(), record.rule);
}

/// What a record says of a session.
#[must_use]
pub fn of_session(event: Event, session: &Session) -> Record {
    let target = session.target();
    Record {
        target: target.map(|(name, _)| name.to_string()),
        address: target.map(|(_, address)| *address),
        ..of_token(event, session.id, session.peer, &session.token)
    }
}

/// What a record says of a token.
#[must_use]
pub fn of_token(event: Event, id: SessionId, peer: SocketAddr, token: &Token) -> Record {
    let claims = &token.claims;
    Record {
        session: Some(id),
        peer: Some(peer),
        user: claims.sub.clone(),
        agent: claims.agent.as_ref().map(|agent| agent.agent.to_string()),
        token: Some(token.id.as_str().to_owned()),
        jet_aid: claims.jet_aid.map(|id| id.to_string()),
        protocol: claims.jet_ap.as_ref().map(ToString::to_string),
        ..Record::new(event)
    }
}

/// What a record says of what was refused, `about` a token if that is known.
#[must_use]
pub fn of_refusal(
    event: Event,
    (id, peer): (SessionId, SocketAddr),
    about: Option<&About>,
    (rule, reason): (&'static str, &dyn Display),
) -> Record {
    Record {
        user: about.and_then(|about| about.user.clone()),
        target: about.and_then(|about| about.target.clone()),
        token: about.map(|about| about.id.as_str().to_owned()),
        rule: Some(rule),
        reason: Some(reason.to_string()),
        ..of_peer(event, id, peer)
    }
}

/// What a record says of a connection.
#[must_use]
pub fn of_peer(event: Event, id: SessionId, peer: SocketAddr) -> Record {
    Record {
        session: Some(id),
        peer: Some(peer),
        ..Record::new(event)
    }
}
