//! What looks into sessions: small synchronous stages over typed events, in the order of a [`Pipeline`].
//!
//! A stage is one file, here or in another crate, and one line where the pipelines of sessions are built. It sees every event of both
//! directions in order of arrival, must not block, and answers each with a [`Verdict`]:
//!
//! ```
//! use jetway_stage::{Event, Grounds, Interest, Pipeline, Stage, Verdict};
//!
//! /// Counts what is sent over the clipboard, and lets nothing through on one channel.
//! #[derive(Debug, Default)]
//! struct Customs {
//!     clipboard_bytes: usize,
//! }
//!
//! impl Stage for Customs {
//!     fn name(&self) -> &'static str {
//!         "customs"
//!     }
//!
//!     // What a stage wants to withhold it has to see before any of it has passed.
//!     fn interest(&self, channel: &str) -> Interest {
//!         match channel {
//!             "cliprdr" => Interest::Observe,
//!             "vendor" => Interest::Decide,
//!             _ => Interest::Ignore,
//!         }
//!     }
//!
//!     fn decides(&self) -> bool {
//!         true
//!     }
//!
//!     fn on_event(&mut self, event: &Event<'_>) -> Verdict {
//!         let Event::ChannelMessage { channel, data, .. } = event else {
//!             return Verdict::Forward;
//!         };
//!         match channel.name.as_str() {
//!             "cliprdr" => self.clipboard_bytes += data.len(),
//!             "vendor" => {
//!                 return Verdict::Deny {
//!                     answers: Vec::new(),
//!                     grounds: Grounds::new("no-vendor", "nothing of this channel leaves the house"),
//!                 };
//!             }
//!             _ => {}
//!         }
//!         Verdict::Forward
//!     }
//! }
//!
//! let pipeline = Pipeline::new().with(Customs::default());
//! assert_eq!(pipeline.names().collect::<Vec<_>>(), ["customs"]);
//! ```
//!
//! What takes longer than a call does not block either. A stage whose own store is full says so ([`Stage::poll_ready`]), and both sides of
//! the session wait; a message whose verdict comes from elsewhere waits by itself ([`Verdict::Hold`], [`Stage::poll_answer`]). A stage
//! that writes down what happened stands behind those that judge, sees what passes ([`Event::Pdu`]), and hears of what they have denied,
//! replaced or ended ([`Stage::on_ruling`]).

#[cfg(test)]
#[path = "../rdp/channel/clipboard_messages.rs"]
mod clipboard_messages;
pub mod graphics;
pub mod inspector;
mod pipeline;

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

pub use self::pipeline::Pipeline;
pub use jetway_rdp::Direction;
pub use jetway_rdp::event::{
    Event, Grounds, HeldMessage, Interest, Origin, Phase, StaticChannel, Termination, Unknown,
    Verdict,
};
pub use jetway_rdp::input::Input;
pub use jetway_rdp::logon::{AutoReconnectCookie, SaveSessionInfo};
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

    /// The time at which the events that follow happen, counted from the start of the session.
    fn set_now(&mut self, now: Duration) {
        let _ = now;
    }

    /// Ready when this stage can take more. As long as it is not, nothing more is read of either side, and the limits of the session run
    /// on. What was read at once may still come, with all that it decompresses to; beyond that a stage keeps its own bound.
    ///
    /// # Errors
    /// The stage cannot do its work any more: the session ends.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Termination>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// Sees one event.
    fn on_event(&mut self, event: &Event<'_>) -> Verdict;

    /// Ready with the verdict on a message that this stage has answered with [`Verdict::Hold`]. It may be `Hold` once more.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<(HeldMessage, Verdict)> {
        let _ = cx;
        Poll::Pending
    }

    /// Hears what a stage before this one has decided on an event, if that was not to forward it: the event as that stage saw it, its
    /// [name](Stage::name), and its verdict, which is a `Replace`, a `Deny` or a `Terminate`. An event that was denied, or has ended the
    /// session, does not come to this stage; one that was replaced does, as what it was replaced by.
    fn on_ruling(&mut self, event: &Event<'_>, by: &'static str, verdict: &Verdict) {
        let _ = (event, by, verdict);
    }

    /// Of a message in this direction that its receiver cannot use before it is whole: so many bytes at least are still to come, as
    /// far as this stage knows.
    fn awaited(&self, direction: Direction) -> usize {
        let _ = direction;
        0
    }
}
