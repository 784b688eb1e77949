//! The log: lines ([`mod@line`]) to standard error, by a thread of their own ([`queue`]), within limits ([`filter`]), and with nothing in
//! them that a terminal would obey ([`jetway_base::escape`]).

pub mod filter;
pub mod line;
pub mod queue;
pub mod settings;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::filter::LineFilter;
use self::line::Lines;
use self::queue::{Form, Queue};
use crate::settings::{LogConfig, LogFormat};

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
    let form = if json { Form::Json } else { Form::Human };
    let queue = Arc::new(Queue::new(form));
    let lines = Arc::clone(&queue);
    tracing_subscriber::registry()
        .with(filter)
        .with(limit.clone())
        .with(Lines::new(form, terminal && !json, move |line: &[u8]| {
            lines.push(line);
        }))
        .init();
    // A descriptor of its own: a writer that is stuck must not hold the lock of `std::io::stderr`.
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let stderr = File::from(stderr.context("standard error")?);
    Guard::start(queue, limit, stderr).context("cannot start the log's thread")
}
