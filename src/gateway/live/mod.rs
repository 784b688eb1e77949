//! Live sessions: which there are, and what is known of them.

pub mod legs;
pub mod registry;
pub mod stages;
