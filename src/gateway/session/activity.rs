//! What happens inside of an inspected session, on its way to the audit: as many records of a kind as a session may have.

use std::sync::Arc;

use serde_json::{Value, json};
use tracing::warn;

use crate::live::registry::Session;
use crate::trail::Trail;
use jetway_audit::record::{Event, Record};
use jetway_base::log_limit::RecordLimiter;
use jetway_io::clock;
use jetway_stage::inspector::{AuditEvent, AuditSink, Recorded};

/// The records of one session.
pub(super) struct Activity {
    trail: Arc<Trail>,
    /// What each of them says of the session.
    session: Record,
    limiter: RecordLimiter<String>,
}

impl Activity {
    /// Of `session`, to `trail`.
    pub(super) fn new(trail: Arc<Trail>, session: &Session) -> Self {
        let record = Record {
            session: Some(session.id),
            user: session.token.claims.sub.clone(),
            target: session.target().map(|(name, _)| name.to_string()),
            ..Record::new(Event::SessionActivity)
        };
        Self::with(trail, record)
    }

    fn with(trail: Arc<Trail>, session: Record) -> Self {
        Self {
            trail,
            session,
            limiter: RecordLimiter::default(),
        }
    }

    fn tell_suppressed(&self, suppressed: &[(String, u64)]) {
        if suppressed.is_empty() {
            return;
        }
        let records: u64 = suppressed.iter().map(|(_, records)| records).sum();
        let kinds: Value = suppressed
            .iter()
            .map(|(kind, records)| (kind.clone(), Value::from(*records)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        if let Some(session) = self.session.session {
            warn!(log = true, %session, records, %kinds, "Audit records suppressed");
        }
        self.trail.record(&Record {
            event: Event::AuditSuppressed,
            detail: json!({ "records": records, "kinds": kinds }),
            ..self.session.clone()
        });
    }
}

impl AuditSink for Activity {
    fn record(&mut self, event: AuditEvent) -> Recorded {
        if !self.trail.records_activity() {
            return Recorded::Kept;
        }
        let now = clock::now();
        let due = self.limiter.due(now);
        self.tell_suppressed(&due);
        let detail = serde_json::to_value(&event).unwrap_or_default();
        let kind = detail["event"].as_str().unwrap_or_default().to_owned();
        if !self.limiter.admit(kind, detail.to_string().len(), now) {
            return Recorded::Suppressed;
        }
        self.trail.record(&Record {
            detail,
            ..self.session.clone()
        });
        Recorded::Kept
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let rest = self.limiter.rest();
        self.tell_suppressed(&rest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::TrailSettings;
    use jetway_base::limits;
    use jetway_rdp::Direction;
    use jetway_rdp::budget::Budget;
    use jetway_stage::inspector::Inspector;
    use jetway_store::audit::AuditSettings;
    use jetway_store::disk::Disk;

    /// Seen as 84 MB of log each second.
    #[test]
    fn a_target_that_floods_the_audit_is_cut_and_hides_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let store = folder.path().join("jetway.redb");
        let (disk, _) = Disk::open(&store, jetway_base::time::UnixTime(0)).unwrap();
        let trail = Arc::new(
            Trail::open(
                &TrailSettings {
                    files: Some(AuditSettings {
                        path: path.clone(),
                        rotate_bytes: u64::MAX,
                        rotate_after: Duration::MAX,
                    }),
                    required: false,
                    activity: true,
                },
                Arc::new(disk),
                None,
            )
            .unwrap(),
        );
        let session = Record::new(Event::SessionActivity);
        let activity = Activity::with(Arc::clone(&trail), session);
        let floods = 60_000;
        let mut inspector = Inspector::new(&Budget::default(), activity);
        let statistics = inspector.statistics();
        let mut message = |name: &str, direction, data: &[u8]| {
            inspector
                .channel_message(name, direction, data)
                .expect("this can be read");
        };
        let (to_client, to_target) = (Direction::ToClient, Direction::ToTarget);
        // An offer of one format, by its short name.
        let mut offer = vec![2, 0, 0, 0, 36, 0, 0, 0, 13, 0, 0, 0];
        offer.resize(44, 0);
        for _ in 0..floods {
            message("drdynvc", to_client, b"\x10\x07hostile\0");
            message("drdynvc", to_target, b"\x10\x07\0\0\0\0");
            message("drdynvc", to_client, b"\x40\x07");
            message("cliprdr", to_client, &offer);
        }
        // What happens once, at the end of it all, is written.
        let device = b"rDAD\x01\0\0\0\x20\0\0\0\x09\0\0\0SCARD\0\0\0\0\0\0\0";
        message("rdpdr", to_target, device);
        drop(inspector);
        trail.close();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |event: &str| {
            let event = event.to_owned();
            lines.iter().filter(move |line| line["event"] == event)
        };
        assert_eq!(of("audit.lost").count(), 0);
        let statistics = statistics.lock().unwrap();
        assert_eq!(statistics.records, 3 * floods + 1);
        let written = u64::try_from(of("session.activity").count()).unwrap();
        assert_eq!(statistics.records_suppressed, 3 * floods + 1 - written);
        let kinds: Vec<&Value> = of("session.activity")
            .map(|line| &line["detail"]["event"])
            .collect();
        assert!(kinds.contains(&&json!("device_announced")));
        let burst = usize::try_from(limits::LOG_RECORD_BYTES.burst).unwrap();
        assert!(text.len() < 20 * burst, "{} bytes", text.len());
        let told: u64 = of("audit.suppressed")
            .map(|line| line["detail"]["records"].as_u64().unwrap())
            .sum();
        assert_eq!(told, statistics.records_suppressed, "each is told");
        let by_kind = of("audit.suppressed").next().unwrap();
        assert!(by_kind["detail"]["kinds"]["channel_closed"].is_u64());
    }
}
