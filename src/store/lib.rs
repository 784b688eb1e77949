//! What must outlive a connection: used tokens, agents, tickets, revocations, recent refusals, cookies.
//!
//! The embedded default: memory, plus one file ([`disk`]) for what must survive a restart, and the audit's own ([`audit`]).

pub mod agents;
pub mod audit;
pub mod cookies;
pub mod disk;
pub mod redirections;
pub mod refusals;
pub mod revoked;
pub mod tickets;
pub mod usage;
