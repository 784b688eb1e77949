//! What is asked for when the metrics are read: what is live, how full the tables are, how old the files.
//!
//! | name | what |
//! |---|---|
//! | `jetway_build_info{version}` | 1 |
//! | `jetway_ready`, `jetway_draining` | 1 or 0; see [`health`](super::health) |
//! | `jetway_sessions{phase,mode}` | live sessions |
//! | `jetway_bytes_total{to}` | bytes that sessions have moved to targets and to clients |
//! | `jetway_connections`, `jetway_connections_pending` | all, and those that have proved nothing |
//! | `jetway_table_entries{table}` | agents, tickets, tokens, associations, and tokens whose client was sent on |
//! | `jetway_agents_connected` | agents with a signaling channel |
//! | `jetway_keys{use}` | keys to verify and to decrypt with |
//! | `jetway_keys_stale` | 1 while a changed file of keys cannot be used |
//! | `jetway_file_modified_timestamp_seconds{file,path}` | files of keys, certificates, revocations, pins, and the store |
//! | `jetway_certificate_not_after_timestamp_seconds{path}` | end of the gateway's own certificates |
//! | `jetway_store_failing`, `jetway_store_free_bytes` | whether its last write failed; what its file system has left |
//! | `jetway_audit_failing`, `jetway_audit_records_total`, `jetway_audit_records_lost_total` | of the audit, where there is one |
//! | `process_…` | the process as its system sees it |

use std::path::Path;
use std::time::UNIX_EPOCH;

use super::health::Readiness;
use super::process::{self, count, whole};
use crate::config::Config;
use crate::listener::admission::Door;
use crate::live::registry::SessionPhase;
use crate::state::{Gateway, Ports, Sessions};
use crate::trust::keyring::Keyring;
use jetway_metrics::{METRICS, Readings};

/// All metrics as text. Asks the file system.
#[must_use]
pub fn text(gateway: &Gateway) -> String {
    // Nothing that it writes to fails.
    METRICS.text(of(gateway)).unwrap_or_default()
}

fn of(gateway: &Gateway) -> Readings {
    let mut readings = Readings::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    readings.gauge("jetway_build_info", "Version", &version, 1.0);
    health(&mut readings, gateway);
    sessions(&mut readings, &gateway.sessions);
    connections(&mut readings, &gateway.door);
    tables(&mut readings, gateway);
    keys(&mut readings, &gateway.tokens.keyring);
    files(&mut readings, &gateway.config, &gateway.ports);
    process::read(&mut readings);
    readings
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn health(readings: &mut Readings, gateway: &Gateway) {
    let ready = Readiness::of(gateway).is_ready();
    let help = "Whether sessions are taken";
    readings.gauge("jetway_ready", help, &[], flag(ready));
    let help = "Whether the process stops when its sessions are over";
    let draining = gateway.stopping.is_cancelled();
    readings.gauge("jetway_draining", help, &[], flag(draining));
    let help = "Whether the last write to the store has failed";
    let failing = gateway.sessions.usages.store_fails();
    readings.gauge("jetway_store_failing", help, &[], flag(failing));
    let help = "What the file system of the store has left";
    let free = whole(gateway.store_space.bytes());
    readings.gauge("jetway_store_free_bytes", help, &[], free);
    if let Some(audit) = gateway.audit.health() {
        let help = "Whether the audit cannot be written";
        readings.gauge(
            "jetway_audit_failing",
            help,
            &[],
            flag(audit.failing.is_some()),
        );
        let help = "Records written";
        readings.counter("jetway_audit_records", help, &[], whole(audit.written));
        let help = "Records lost, because they could not be written";
        readings.counter("jetway_audit_records_lost", help, &[], whole(audit.lost));
    }
}

fn sessions(readings: &mut Readings, sessions: &Sessions) {
    let live = sessions.registry.list();
    for (phase, name) in [
        (SessionPhase::Connecting, "connecting"),
        (SessionPhase::Relaying, "relaying"),
    ] {
        for (inspected, mode) in [(false, "opaque"), (true, "inspected")] {
            let those = live.iter().filter(|session| {
                session.phase() == phase && session.inside().is_some() == inspected
            });
            let labels = [("phase", name), ("mode", mode)];
            let number = count(those.count());
            readings.gauge("jetway_sessions", "Live sessions", &labels, number);
        }
    }
    let moved = sessions.registry.moved();
    for (to, bytes) in [("target", moved.to_target), ("client", moved.to_client)] {
        let help = "Bytes that sessions have moved";
        readings.counter("jetway_bytes", help, &[("to", to)], whole(bytes));
    }
}

fn connections(readings: &mut Readings, door: &Door) {
    let (all, pending) = door.counts();
    let help = "Connections of clients and peers";
    readings.gauge("jetway_connections", help, &[], count(all));
    let help = "Connections that have proved nothing yet";
    readings.gauge("jetway_connections_pending", help, &[], count(pending));
}

fn tables(readings: &mut Readings, gateway: &Gateway) {
    let (agents, connected) = gateway.peers.agents.counts();
    let help = "Agents with a signaling channel";
    readings.gauge("jetway_agents_connected", help, &[], count(connected));
    for (table, entries) in [
        ("agents", agents),
        ("associations", gateway.peers.meetings.count()),
        ("redirections", gateway.sessions.returning.count()),
        ("tickets", gateway.tokens.tickets.count()),
        ("tokens", gateway.sessions.usages.count()),
    ] {
        let help = "What is remembered";
        let labels = [("table", table)];
        readings.gauge("jetway_table_entries", help, &labels, count(entries));
    }
}

fn keys(readings: &mut Readings, keyring: &Keyring) {
    let verifier = keyring.verifier();
    let (verifying, decrypting) = verifier.keys().counts();
    for (usage, keys) in [("verify", verifying), ("decrypt", decrypting)] {
        let help = "Keys for tokens";
        readings.gauge("jetway_keys", help, &[("use", usage)], count(keys));
    }
    let help = "Whether a file of keys has changed into one that cannot be used";
    let stale = flag(keyring.is_stale());
    readings.gauge("jetway_keys_stale", help, &[], stale);
}

fn files(readings: &mut Readings, config: &Config, ports: &Ports) {
    let keys = config.token.keys.iter().map(|key| &key.path);
    let certificates = ports.tls.iter().map(|tls| tls.certificate());
    let revoked = config.token.revoked.as_deref();
    let named = keys
        .map(|path| ("token.keys", path.as_path()))
        .chain(certificates.map(|path| ("tls.certificate", path)))
        .chain(revoked.map(|path| ("token.revoked", path)))
        .chain([
            ("target.pins", config.target.pins.as_path()),
            ("store.path", config.store.path.as_path()),
        ]);
    for (file, path) in named {
        if let Some(modified) = modified_at(path) {
            let path = path.display().to_string();
            let labels = [("file", file), ("path", &*path)];
            let name = "jetway_file_modified_timestamp_seconds";
            readings.gauge(name, "Last change of a file", &labels, modified);
        }
    }
    for tls in &ports.tls {
        if let Some(end) = tls.not_after() {
            let path = tls.certificate().display().to_string();
            let name = "jetway_certificate_not_after_timestamp_seconds";
            let help = "End of a certificate of the gateway itself";
            readings.gauge(name, help, &[("path", &path)], whole(end.0));
        }
    }
}

/// In seconds since the epoch; `None` where there is no such file.
fn modified_at(path: &Path) -> Option<f64> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}
