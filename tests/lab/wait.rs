//! Waiting for a condition with a deadline; the only place of the lab that reads a clock.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a healthy lab answers within, on a busy two-core machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `probe` until it answers with a value; `what` names the condition when the deadline passes first.
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = now() + patience;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if now() >= deadline {
            bail!("not within {patience:?}: {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Whether `condition` holds before the deadline; for what may rightly not happen.
pub fn soon(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    until("", patience, || Ok(condition().then_some(()))).is_ok()
}

#[expect(clippy::disallowed_methods, reason = "real processes run on real time")]
fn now() -> Instant {
    Instant::now()
}

const INTERVAL: Duration = Duration::from_millis(20);
