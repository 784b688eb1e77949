//! What is counted and measured, under the names that monitoring knows.
//!
//! There is one set for the process ([`METRICS`]), as there is one log: what is counted happens in ten layers, and to hand a counter down
//! to each would say nothing about any of them. What exists anyway (live sessions, tables, files) is not counted beside it but
//! asked for when the metrics are read ([`Readings`]).
//!
//! | name | what |
//! |---|---|
//! | `jetway_events_total{event}` | records of the audit by what they are of, also those that its budget left out, and without an audit |
//! | `jetway_refusals_total{event,rule}` | of these, the refused ones by the rule that refused |
//! | `jetway_http_problems_total{status,rule}` | HTTP requests that were answered with a problem |
//! | `jetway_sessions_ended_total{outcome}` | sessions that were open, by what has ended them |
//! | `jetway_session_setup_seconds{mode}` | from the accepted connection to the relay |
//! | `jetway_tls_handshake_seconds{leg}` | TLS alone, of the client's and of the target's leg |
//! | `jetway_token_verification_seconds{outcome}` | from the text of a token to its claims |
//! | `jetway_target_dial_seconds` | TCP, of addresses that have answered |
//! | `jetway_limits_reached_total{limit}` | how often somebody was held to a limit |
//! | `jetway_log_lines_suppressed_total`, `_lost_total` | lines beyond the budget of an address; lines that nobody took in time |
//! | `jetway_store_writes_total{outcome}`, `jetway_store_write_seconds` | transactions of the store, each with its `fdatasync` |
//! | `jetway_reloads_total{file,outcome}` | files that had changed and were read again |
//!
//! Every value of a label is a name that stands in the code, so nobody outside can make more of them.

mod readings;

use std::fmt;
use std::sync::LazyLock;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use self::readings::Readings;

/// The media type of [`Metrics::text`]: the text format of Prometheus, version 0.0.4.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What this process has counted.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// A name and its value.
type Label = (&'static str, &'static str);
type Counters<const N: usize> = Family<[Label; N], Counter>;
type Histograms = Family<[Label; 1], Histogram>;

/// What is counted and measured.
#[derive(Debug)]
pub struct Metrics {
    events: Counters<1>,
    refusals: Counters<2>,
    problems: Counters<2>,
    ended: Counters<1>,
    setup_s: Histograms,
    handshake_s: Histograms,
    verification_s: Histograms,
    dial_s: Histogram,
    limits: Counters<1>,
    /// Log lines beyond the budget of an address.
    pub log_suppressed: Counter,
    /// Log lines that nobody took in time.
    pub log_lost: Counter,
    writes: Counters<1>,
    write_s: Histogram,
    reloads: Counters<2>,
}

/// In seconds: what happens between machines, up to the longest that a client waits.
const NETWORK_S: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0,
];

/// In seconds: what takes one core, from a cached key to RSA of 8,192 bits.
const COMPUTATION_S: [f64; 10] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25,
];

/// In seconds: what waits for a disk.
const DISK_S: [f64; 10] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5,
];

fn of_network() -> Histogram {
    Histogram::new(NETWORK_S)
}

fn of_computation() -> Histogram {
    Histogram::new(COMPUTATION_S)
}

/// How something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Good,
    /// It failed.
    Failed,
}

impl Outcome {
    /// Of a result, whatever is in it.
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() {
            Self::Good
        } else {
            Self::Failed
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Failed => "failed",
        }
    }
}

/// A leg of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// From the client to the gateway.
    Client,
    /// From the gateway to the target.
    Target,
}

impl Leg {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Target => "target",
        }
    }
}

/// How open sessions end, for [`Metrics::session_ended`].
const OUTCOMES: [&str; 13] = [
    "closed",
    "client-failed",
    "target-failed",
    "target-stalled",
    "idle",
    "time-limit",
    "revoked",
    "operator",
    "association",
    "shutdown",
    "refused",
    "stage",
    "protocol",
];

/// Files that are read again when they change, by their keys in the configuration.
const FILES: [&str; 4] = [
    "token.keys",
    "token.revoked",
    "target.pins",
    "tls.certificate",
];

impl Metrics {
    fn new() -> Self {
        let metrics = Self {
            events: Family::default(),
            refusals: Family::default(),
            problems: Family::default(),
            ended: Family::default(),
            setup_s: Family::new_with_constructor(of_network),
            handshake_s: Family::new_with_constructor(of_network),
            verification_s: Family::new_with_constructor(of_computation),
            dial_s: of_network(),
            limits: Family::default(),
            log_suppressed: Counter::default(),
            log_lost: Counter::default(),
            writes: Family::default(),
            write_s: Histogram::new(DISK_S),
            reloads: Family::default(),
        };
        // What stands at zero from the start can be seen to have happened once.
        for outcome in [Outcome::Good, Outcome::Failed] {
            let label = ("outcome", outcome.name());
            drop(metrics.writes.get_or_create(&[label]));
            drop(metrics.verification_s.get_or_create(&[label]));
            for file in FILES {
                drop(metrics.reloads.get_or_create(&[("file", file), label]));
            }
        }
        for mode in ["opaque", "inspected"] {
            drop(metrics.setup_s.get_or_create(&[("mode", mode)]));
        }
        for leg in [Leg::Client, Leg::Target] {
            drop(metrics.handshake_s.get_or_create(&[("leg", leg.name())]));
        }
        for outcome in OUTCOMES {
            drop(metrics.ended.get_or_create(&[("outcome", outcome)]));
        }
        metrics
    }

    /// Shows an event at zero until it happens.
    pub fn expect_event(&self, event: &'static str) {
        drop(self.events.get_or_create(&[("event", event)]));
    }

    /// Shows a limit at zero until it is reached.
    pub fn expect_limit(&self, limit: &'static str) {
        drop(self.limits.get_or_create(&[("limit", limit)]));
    }

    /// Counts what is recorded in the audit, and by which `rule` it was refused, if it was.
    pub fn event(&self, event: &'static str, rule: Option<&'static str>) {
        self.events.get_or_create(&[("event", event)]).inc();
        if let Some(rule) = rule {
            let labels = [("event", event), ("rule", rule)];
            self.refusals.get_or_create(&labels).inc();
        }
    }

    /// Counts an HTTP request that was answered with a problem, by the text of its status and its rule.
    pub fn problem(&self, status: &'static str, rule: &'static str) {
        let labels = [("status", status), ("rule", rule)];
        self.problems.get_or_create(&labels).inc();
    }

    /// Counts a session that was open and is over.
    pub fn session_ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Takes how long a client has waited for its session, in seconds.
    pub fn session_set_up(&self, mode: &'static str, seconds: f64) {
        self.setup_s
            .get_or_create(&[("mode", mode)])
            .observe(seconds);
    }

    /// Takes how long a TLS handshake took that has succeeded, in seconds.
    pub fn handshake(&self, leg: Leg, seconds: f64) {
        self.handshake_s
            .get_or_create(&[("leg", leg.name())])
            .observe(seconds);
    }

    /// Takes how long it took to judge a token, in seconds.
    pub fn token_verified(&self, outcome: Outcome, seconds: f64) {
        self.verification_s
            .get_or_create(&[("outcome", outcome.name())])
            .observe(seconds);
    }

    /// Takes how long the TCP handshake with a target took, in seconds.
    pub fn target_dialled(&self, seconds: f64) {
        self.dial_s.observe(seconds);
    }

    /// Counts that somebody was held to a limit, by its key in the configuration or what it is a limit of.
    pub fn limit_reached(&self, limit: &'static str) {
        self.limits.get_or_create(&[("limit", limit)]).inc();
    }

    /// Counts a transaction of the store, and how long it took, in seconds.
    pub fn store_written(&self, outcome: Outcome, seconds: f64) {
        self.writes
            .get_or_create(&[("outcome", outcome.name())])
            .inc();
        self.write_s.observe(seconds);
    }

    /// Counts that a file was read again because it had changed, by its key in the configuration.
    pub fn reloaded(&self, file: &'static str, outcome: Outcome) {
        let labels = [("file", file), ("outcome", outcome.name())];
        self.reloads.get_or_create(&labels).inc();
    }

    /// All of it with `readings`, in the text format of Prometheus ([`MEDIA_TYPE`]).
    ///
    /// # Errors
    /// None that can occur: what is written to is a `String`.
    pub fn text(&self, readings: Readings) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("jetway");
        let registered = &mut registry;
        registered.register(
            "events",
            "What the audit records, whether it is written or not",
            self.events.clone(),
        );
        registered.register(
            "refusals",
            "What was refused, by the rule that refused it",
            self.refusals.clone(),
        );
        registered.register(
            "http_problems",
            "HTTP requests that were answered with a problem",
            self.problems.clone(),
        );
        registered.register(
            "sessions_ended",
            "Sessions that were open, by what has ended them",
            self.ended.clone(),
        );
        registered.register(
            "session_setup_seconds",
            "From an accepted connection to the relay of its session",
            self.setup_s.clone(),
        );
        registered.register(
            "tls_handshake_seconds",
            "TLS handshakes that have succeeded",
            self.handshake_s.clone(),
        );
        registered.register(
            "token_verification_seconds",
            "From the text of a token to its claims, or to its refusal",
            self.verification_s.clone(),
        );
        registered.register(
            "target_dial_seconds",
            "TCP handshakes with targets that have answered",
            self.dial_s.clone(),
        );
        registered.register(
            "limits_reached",
            "How often somebody was held to a limit",
            self.limits.clone(),
        );
        registered.register(
            "log_lines_suppressed",
            "Log lines beyond the budget of an address",
            self.log_suppressed.clone(),
        );
        registered.register(
            "log_lines_lost",
            "Log lines that nobody took in time",
            self.log_lost.clone(),
        );
        registered.register(
            "store_writes",
            "Transactions of the store",
            self.writes.clone(),
        );
        registered.register(
            "store_write_seconds",
            "Transactions of the store, each until it is on disk",
            self.write_s.clone(),
        );
        registered.register(
            "reloads",
            "Files that had changed and were read again",
            self.reloads.clone(),
        );
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(readings));
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_and_what_is_read_stand_in_one_text() {
        let metrics = Metrics::new();
        metrics.event("session.refused", Some("replayed"));
        metrics.event("session.refused", Some("replayed"));
        metrics.event("session.opened", None);
        metrics.handshake(Leg::Client, 0.003);
        metrics.limit_reached("limits.connections");
        metrics.store_written(Outcome::Good, 0.002);
        let mut readings = Readings::default();
        readings.gauge(
            "jetway_sessions",
            "Live sessions",
            &[("phase", "relaying")],
            3.0,
        );
        readings.gauge(
            "jetway_sessions",
            "Live sessions",
            &[("phase", "connecting")],
            1.0,
        );
        readings.counter("jetway_bytes", "Bytes", &[("to", "a \"b\"\n")], 7.0);
        let text = metrics.text(readings).unwrap();
        for line in [
            "jetway_events_total{event=\"session.refused\"} 2",
            "jetway_refusals_total{event=\"session.refused\",rule=\"replayed\"} 2",
            "jetway_events_total{event=\"session.opened\"} 1",
            "jetway_tls_handshake_seconds_bucket{leg=\"client\",le=\"0.005\"} 1",
            "jetway_tls_handshake_seconds_bucket{leg=\"client\",le=\"0.0025\"} 0",
            "jetway_limits_reached_total{limit=\"limits.connections\"} 1",
            "jetway_store_writes_total{outcome=\"failed\"} 0",
            "jetway_sessions{phase=\"relaying\"} 3.0",
            "jetway_sessions{phase=\"connecting\"} 1.0",
            "jetway_bytes_total{to=\"a \\\"b\\\"\\n\"} 7.0",
            "# TYPE jetway_sessions gauge",
        ] {
            assert!(
                text.lines().any(|found| found.trim() == line),
                "{line} in\n{text}"
            );
        }
        let types = text.matches("# TYPE jetway_sessions gauge").count();
        assert_eq!(types, 1, "{text}");
    }
}
