//! What is done while a gateway runs, whoever connects: files that have changed are read again, and what has expired is forgotten.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use serde_json::json;

use crate::live::registry::Registry;
use crate::meeting::MeetingPlace;
use crate::state::{Gateway, Peers, Sessions, Tokens};
use crate::trail::Trail;
use crate::trust::keyring::{Keyring, ReloadOutcome};
use crate::trust::target_certificate::TargetCertificate;
use crate::trust::tls::ServerTls;
use jetway_audit::record::{Event, Record};
use jetway_io::clock;
use jetway_metrics::{METRICS, Outcome};
use jetway_store::revoked::Revoked;
use jetway_store::tickets::Tickets;
use jetway_token::revocation::Revocations;

/// How often files are looked at for changes.
const UPKEEP: Duration = Duration::from_secs(1);

/// How often what has expired is dropped, in upkeeps.
const FORGET_EVERY: u32 = 60;

/// How often a store that has failed is written to, in upkeeps: a gateway that is not ready for it gets no sessions, and so nothing to
/// write by which it would be seen to work again.
const RETRY_EVERY: u32 = 5;

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
        gateway.audit.keep_head();
        expire_associations(&gateway.peers);
        turns = turns.wrapping_add(1);
        let usages = &gateway.sessions.usages;
        if turns.is_multiple_of(RETRY_EVERY) && usages.store_fails() {
            usages.forget_expired(clock::unix_now());
        }
        if turns.is_multiple_of(FORGET_EVERY) {
            forget_tokens(&gateway.sessions, &gateway.tokens.tickets);
        }
    }
}

/// Reads changed files again.
pub fn reload(gateway: &Gateway) {
    let Tokens {
        keyring, revoked, ..
    } = &*gateway.tokens;
    let (registry, meetings) = (&gateway.sessions.registry, &gateway.peers.meetings);
    let audit = &gateway.audit;
    reload_keys(keyring, audit);
    reload_revocations(revoked, registry, meetings, audit);
    reload_pins(&gateway.inspection.secure.target_certificate, audit);
    for tls in &gateway.ports.tls {
        reload_certificate(tls, audit);
    }
}

fn reload_keys(keyring: &Keyring, audit: &Trail) {
    match keyring.reload_if_changed() {
        // The keyring itself tells what it did.
        ReloadOutcome::Reloaded => record_reload(audit, "token.keys"),
        ReloadOutcome::Unchanged => {}
        ReloadOutcome::Kept(_) => METRICS.reloaded("token.keys", Outcome::Failed),
    }
}

fn reload_revocations(
    revoked: &Revoked,
    registry: &Registry,
    meetings: &MeetingPlace,
    audit: &Trail,
) {
    match revoked.reload_if_changed() {
        Ok(false) => {}
        Ok(true) => {
            info!("Revocation list reloaded");
            record_reload(audit, "token.revoked");
            end_revoked(&revoked.rules(), registry, meetings);
        }
        Err(error) => {
            METRICS.reloaded("token.revoked", Outcome::Failed);
            warn!(%error, "The revocation list was not reloaded, the old one stays");
        }
    }
}

/// Ends what revoked tokens take part in: sessions, which are counted, waiting peers and associations.
pub fn end_revoked(rules: &Revocations, registry: &Registry, meetings: &MeetingPlace) -> usize {
    // The sessions first: what ends them is what is told of their end.
    let sessions = registry.end_revoked(rules);
    for (session, token, claim) in &sessions {
        info!(%session, %token, rule = claim.as_str(), "Ending a session whose token was revoked");
    }
    for (association, token, claim) in meetings.close_revoked(rules) {
        info!(jet_aid = %association, %token, rule = claim.as_str(), "Closing a peer whose token was revoked");
    }
    for (association, claim) in meetings.end_revoked(rules) {
        info!(jet_aid = %association, rule = claim.as_str(), "Removed an association whose token was revoked");
    }
    sessions.len()
}

fn reload_pins(target_certificate: &TargetCertificate, audit: &Trail) {
    match target_certificate.reload_if_changed() {
        Ok(None) => {}
        Ok(Some(pins)) => {
            info!(pins, "File of pins reloaded");
            record_reload(audit, "target.pins");
        }
        Err(error) => {
            METRICS.reloaded("target.pins", Outcome::Failed);
            warn!(%error, "The file of pins was not reloaded, the old pins stay");
        }
    }
}

fn reload_certificate(tls: &ServerTls, audit: &Trail) {
    match tls.reload_if_changed() {
        Ok(false) => {}
        Ok(true) => {
            info!(certificate = %tls.certificate().display(), "Certificate reloaded");
            record_reload(audit, "tls.certificate");
        }
        Err(error) => {
            METRICS.reloaded("tls.certificate", Outcome::Failed);
            warn!(%error, "The certificate was not reloaded, the old one stays");
        }
    }
}

/// Counts and records that the file that this setting names was read again.
fn record_reload(audit: &Trail, key: &'static str) {
    METRICS.reloaded(key, Outcome::Good);
    audit.record(&Record {
        detail: json!({ "key": key }),
        ..Record::new(Event::Reloaded)
    });
}

fn expire_associations(peers: &Peers) {
    for association in peers.meetings.expire() {
        debug!(jet_aid = %association, "Association forgotten");
    }
    peers.agents.forget_offers(|id| peers.meetings.is_live(id));
}

fn forget_tokens(sessions: &Sessions, tickets: &Tickets) {
    let Sessions {
        usages, returning, ..
    } = sessions;
    let now = clock::unix_now();
    usages.forget_expired(now);
    // Who was sent on by its target comes back, whatever its token's window.
    tickets.forget(now, |token, window_s| {
        returning.of(token).is_none() && usages.is_over(token, window_s, now)
    });
}
