//! The log: lines to standard error, by a thread of their own ([`queue`]), within limits ([`filter`]), and with nothing in them
//! that a terminal would obey ([`crate::escape`]).

pub mod filter;
pub mod queue;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as lines};

use self::filter::LineFilter;
use self::queue::{Form, Line, Queue};
use crate::config::{LogConfig, LogFormat};
use crate::escape::Escaping;

pub use self::queue::Guard;

/// Sends log lines to standard error until the guard is dropped, which writes what waits.
///
/// # Errors
/// The filter is malformed, or the thread cannot be started.
pub fn start(config: &LogConfig) -> anyhow::Result<Guard> {
    // sspi tells of every security context at INFO, rustls of every client that names an address in its SNI at WARN.
    let filter = EnvFilter::try_new(format!("sspi=warn,rustls::msgs=error,{}", config.filter))
        .context("log.filter")?;
    let terminal = io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !terminal,
    };
    let limit = LineFilter::default();
    let queue = Arc::new(Queue::new(if json { Form::Json } else { Form::Human }));
    let limited = tracing_subscriber::registry()
        .with(filter)
        .with(limit.clone());
    let layer = lines::layer()
        // The name is taken: a session's target is the machine it leads to.
        .with_target(false)
        .with_writer({
            let queue = Arc::clone(&queue);
            move || Line(Arc::clone(&queue))
        });
    if json {
        // One span for each session, so a list of spans would say it twice.
        let layer = layer.json().flatten_event(true).with_span_list(false);
        limited.with(layer).init();
    } else {
        // Fields are escaped below, and colours are not.
        let layer = layer.with_ansi(terminal).fmt_fields(debug_fn(write_field));
        limited.with(layer).init();
    }
    // A descriptor of its own: a writer that is stuck must not hold the lock of `std::io::stderr`.
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let stderr = File::from(stderr.context("standard error")?);
    Guard::start(queue, limit, stderr).context("cannot start the log's thread")
}

/// One field of a line for people. Whatever a peer has said is in a field, the message included.
fn write_field(
    writer: &mut Writer<'_>,
    field: &tracing::field::Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    if field.name() == "message" {
        return write!(Escaping(writer), "{value:?}");
    }
    if writer.has_ansi_escapes() {
        write!(writer, "\x1b[3m{}\x1b[0m\x1b[2m=\x1b[0m", field.name())?;
    } else {
        write!(writer, "{}=", field.name())?;
    }
    write!(Escaping(writer), "{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

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
    fn what_a_peer_says_reaches_no_terminal_raw() {
        for ansi in [false, true] {
            let kept = Kept::default();
            let writer = kept.clone();
            let layer = lines::layer()
                .with_target(false)
                .with_ansi(ansi)
                .fmt_fields(debug_fn(write_field))
                .with_writer(move || writer.clone());
            let subscriber = tracing_subscriber::registry().with(layer);
            let said = "\u{9b}2J\u{202e}\nname\u{1b}[2J";
            tracing::subscriber::with_default(subscriber, || {
                let span = tracing::info_span!("session", origin = %said);
                let _entered = span.enter();
                tracing::warn!(reason = %said, audit = said, user = Some(said), "Refused {said}");
            });
            let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let hidden = |c: char| c != '\n' && c != '\x1b' && crate::escape::is_hidden(c);
            assert!(!text.contains(hidden), "{text:?}");
            assert!(!text.contains("\u{1b}[2J"), "{text:?}");
            assert_eq!(text.contains('\x1b'), ansi);
            assert_eq!(text.matches(r"\u{202e}").count(), 5, "{text:?}");
        }
    }
}
