//! What is done while a gateway runs, whoever connects: files that have changed are read again, and what has expired is forgotten.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use serde_json::json;

use crate::state::Gateway;
use crate::trust::keyring::ReloadOutcome;
use jetway_audit::record::{Event, Record};
use jetway_io::clock;
use jetway_metrics::{METRICS, Outcome};

/// How often files are looked at for changes.
const UPKEEP: Duration = Duration::from_secs(1);

/// How often what has expired is dropped, in upkeeps.
const FORGET_EVERY: u32 = 60;

/// How often a store that has failed is written to, in upkeeps: a gateway that is not ready for it gets no sessions, and so nothing to
/// write by which it would be seen to work again.
const RETRY_EVERY: u32 = 5;

/// Reads changed files again.
pub fn reload(gateway: &Gateway) {
    match gateway.keyring.reload_if_changed() {
        // The keyring itself tells what it did.
        ReloadOutcome::Reloaded => reloaded(gateway, "token.keys"),
        ReloadOutcome::Unchanged => {}
        ReloadOutcome::Kept(_) => METRICS.reloaded("token.keys", Outcome::Failed),
    }
    match gateway.revoked.reload_if_changed() {
        Ok(false) => {}
        Ok(true) => {
            info!("Revocation list reloaded");
            reloaded(gateway, "token.revoked");
            let rules = gateway.revoked.rules();
            // The sessions first: what ends them is what is told of their end.
            for (session, token, rule) in gateway.registry.end_revoked(&rules) {
                info!(%session, %token, rule, "Ending a session whose token was revoked");
            }
            for (association, token, rule) in gateway.meetings.close_revoked(&rules) {
                info!(jet_aid = %association, %token, rule, "Closing a peer whose token was revoked");
            }
            for (association, rule) in gateway.meetings.end_revoked(&rules) {
                info!(jet_aid = %association, rule, "Removed an association whose token was revoked");
            }
        }
        Err(error) => {
            METRICS.reloaded("token.revoked", Outcome::Failed);
            warn!(%error, "The revocation list was not reloaded, the old one stays");
        }
    }
    match gateway.secure.target_certificate.reload_if_changed() {
        Ok(None) => {}
        Ok(Some(pins)) => {
            info!(pins, "File of pins reloaded");
            reloaded(gateway, "target.pins");
        }
        Err(error) => {
            METRICS.reloaded("target.pins", Outcome::Failed);
            warn!(%error, "The file of pins was not reloaded, the old pins stay");
        }
    }
    for tls in &gateway.tls {
        match tls.reload_if_changed() {
            Ok(false) => {}
            Ok(true) => {
                info!(certificate = %tls.certificate().display(), "Certificate reloaded");
                reloaded(gateway, "tls.certificate");
            }
            Err(error) => {
                METRICS.reloaded("tls.certificate", Outcome::Failed);
                warn!(%error, "The certificate was not reloaded, the old one stays");
            }
        }
    }
}

/// Counts and records that a file was read again.
fn reloaded(gateway: &Gateway, key: &'static str) {
    METRICS.reloaded(key, Outcome::Good);
    gateway.audit.record(&Record {
        detail: json!({ "key": key }),
        ..Record::new(Event::Reloaded)
    });
}

/// Looks after files and tables until the gateway stops.
pub async fn run(gateway: Arc<Gateway>) {
    let mut turns = 0_u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = gateway.stopping.cancelled() => return,
        }
        reload(&gateway);
        gateway.store_space.look();
        gateway.audit.tell_suppressed();
        for association in gateway.meetings.expire() {
            debug!(jet_aid = %association, "Association forgotten");
        }
        gateway
            .agents
            .forget_offers(|id| gateway.meetings.is_live(id));
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(RETRY_EVERY) && gateway.usages.store_fails() {
            gateway.usages.forget_expired(clock::unix_now());
        }
        if turns.is_multiple_of(FORGET_EVERY) {
            let now = clock::unix_now();
            gateway.usages.forget_expired(now);
            // Who was sent on by its target comes back, whatever its token's window.
            gateway.tickets.forget(now, |token, window_s| {
                gateway.returning.of(token).is_none()
                    && gateway.usages.is_over(token, window_s, now)
            });
        }
    }
}
