//! Which lines are written: as many for each address and kind of line as [`log_limit`](jetway_base::log_limit) allows.
//!
//! A line is known by where it stands in the code, its cause by its fields: `peer` (its own or its connection's) is the
//! address; `token`, `user`, `agent` or `by` without a `rule` stand in lines about peers that have proved themselves, and
//! so does `token` beside one. Records of sessions (`audit`) have budgets of their own
//! (`jetway::gateway::session::inspect`), and so they pass here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use jetway_base::log_limit::{Cause, LineLimiter, Suppressed};
use jetway_io::clock;
use jetway_metrics::METRICS;

/// The filter.
#[derive(Clone, Debug, Default)]
pub struct LineFilter {
    limiter: Arc<Mutex<LineLimiter<Identifier>>>,
}

/// The address of a connection, beside its span.
struct Peer(IpAddr);

impl LineFilter {
    /// Writes a line for each count of suppressed ones that is due, or for all of them.
    pub fn report(&self, all: bool) {
        let suppressed = if all {
            self.limiter().rest()
        } else {
            self.limiter().due(clock::now())
        };
        for Suppressed {
            address,
            message,
            lines,
        } in suppressed
        {
            METRICS.log_suppressed.inc_by(lines);
            let peer = address.map(tracing::field::display);
            tracing::warn!(
                log = true,
                peer,
                lines,
                of = message,
                "Log lines suppressed"
            );
        }
    }

    fn limiter(&self) -> MutexGuard<'_, LineLimiter<Identifier>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// A layer of the whole subscriber and no filter of one layer: a filter that stops an event so late leaves its mark in
// tracing-subscriber's thread, which stops the next event, too.
impl<S> Layer<S> for LineFilter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(peer), Some(span)) = (fields.peer, context.span(id)) {
            span.extensions_mut().replace(Peer(peer));
        }
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.counted_elsewhere {
            return true;
        }
        let of_span = || {
            let mut spans = context.event_scope(event)?;
            spans.find_map(|span| span.extensions().get::<Peer>().map(|peer| peer.0))
        };
        let address = fields.peer.or_else(of_span);
        let metadata = event.metadata();
        // Who asks for DEBUG and TRACE wants them; who has no address is this process itself.
        let proven = address.is_none()
            || *metadata.level() > Level::INFO
            || fields.token
            || (fields.party && !fields.rule);
        if address.is_none() && *metadata.level() > Level::INFO {
            return true;
        }
        let cause = if proven {
            Cause::Proven
        } else {
            Cause::Anybody
        };
        self.limiter().admit(
            address,
            metadata.callsite(),
            cause,
            &fields.message,
            clock::now(),
        )
    }
}

/// What the fields of a line say of its cause.
#[derive(Debug, Default)]
struct Fields {
    peer: Option<IpAddr>,
    message: String,
    token: bool,
    party: bool,
    rule: bool,
    counted_elsewhere: bool,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "peer" => {
                let text = format!("{value:?}");
                let address = text.parse().map(|address: SocketAddr| address.ip());
                self.peer = address.or_else(|_| text.parse()).ok();
            }
            "message" => self.message = format!("{value:?}"),
            "token" => self.token = true,
            "user" | "agent" | "by" => self.party = true,
            "rule" => self.rule = true,
            "audit" | "log" => self.counted_elsewhere = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing::{info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use jetway_base::limits;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        fn count(&self, text: &str) -> u64 {
            let kept = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            u64::try_from(kept.matches(text).count()).unwrap()
        }
    }

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_anybody_can_cause_are_cut_and_those_of_proven_peers_are_not() {
        let kept = Kept::default();
        let writer = kept.clone();
        let filter = LineFilter::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(filter.clone())
            .with(layer);
        let peer: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        let no_token: Option<&str> = None;
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..1000 {
                warn!(%peer, token = no_token, rule = "no-token", "Refused");
                warn!(%peer, token = "t", rule = "in-use", "Refused a proven one");
                info!(%peer, by = "token", rule = "expired", "No ticket");
                info!(%peer, by = "portal", "Ticket");
                let span = info_span!("session", %peer);
                let _entered = span.enter();
                warn!("A library speaks");
                info!(audit = "{}", "Audit");
            }
            filter.report(true);
        });
        let burst = limits::LOG_LINES_OF_ANYBODY.burst;
        const { assert!(limits::LOG_LINES_OF_PROVEN.burst >= 1000) };
        for (text, lines) in [
            ("Refused peer", burst..burst + 30),
            ("Refused a proven one", 1000..1001),
            ("No ticket peer", burst..burst + 30),
            ("Ticket peer", 1000..1001),
            ("A library speaks\n", burst..burst + 30),
            ("Audit", 1000..1001),
            ("Log lines suppressed", 3..4),
        ] {
            assert!(
                lines.contains(&kept.count(text)),
                "{text}: {}",
                kept.count(text)
            );
        }
    }
}
