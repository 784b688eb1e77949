//! What looks into sessions: small synchronous stages over typed events, in the order of a [`Pipeline`].
//!
//! A stage is one file here and one line where the pipeline of a session is built. It sees every event of both
//! directions in order of arrival, must not block, and answers each with a [`Verdict`].

#[cfg(test)]
#[path = "../rdp/channel/clipboard_messages.rs"]
mod clipboard_messages;
pub mod graphics;
pub mod inspector;
mod pipeline;

use std::fmt;
use std::time::Duration;

pub use self::pipeline::Pipeline;
pub use jetway_rdp::Direction;
pub use jetway_rdp::event::{Event, Interest, Phase, StaticChannel, Unknown, Verdict};
pub use jetway_rdp::input::Input;
pub use jetway_rdp::logon::{AutoReconnectCookie, Logon};
pub use jetway_rdp::redirection::Redirection;

/// One observer or judge of a session.
pub trait Stage: Send + fmt::Debug {
    /// Short and stable, for logs: who gave a verdict.
    fn name(&self) -> &'static str;

    /// How much of a static channel this stage needs. Names are compared as sent; [MS-RDPBCGR] does not fold case.
    fn interest(&self, channel: &str) -> Interest {
        let _ = channel;
        Interest::Ignore
    }

    /// Whether this stage answers [`Interest::Decide`] for any channel; bulk compression is then declined.
    fn decides(&self) -> bool {
        false
    }

    /// From now on, events happen at this time, counted from the start of the session.
    fn at(&mut self, now: Duration) {
        let _ = now;
    }

    /// Sees one event.
    fn on_event(&mut self, event: &Event<'_>) -> Verdict;

    /// Of a message in this direction that its receiver cannot use before it is whole: so many bytes at least are still to come, as
    /// far as this stage knows.
    fn awaited(&self, direction: Direction) -> usize {
        let _ = direction;
        0
    }
}
