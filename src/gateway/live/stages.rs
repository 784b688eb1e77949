//! Stages that a program adds to the sessions of the gateway which it embeds.

use std::fmt;

use crate::live::registry::Session;
use jetway_stage::Stage;

/// Makes the stages of a session. Only sessions that are inspected have any: `session.inspect = "always"` makes that all of them.
pub trait Stages: Send + Sync + fmt::Debug {
    /// The stages of `session`, in order. They stand before the gateway's own, which records what they let pass and what not.
    fn of(&self, session: &Session) -> Vec<Box<dyn Stage>>;
}
