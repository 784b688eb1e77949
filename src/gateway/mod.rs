//! The server: what its connections share, and its own life.
//!
//! | file | what |
//! |---|---|
//! | [`run`] | start, reload, drain, stop |
//! | [`arrival`] | what arrived, and who serves it |
//! | [`build`] | from a configuration to the parts of a gateway |
//! | [`upkeep`] | what is done while it runs |
//! | [`state`] | what connections share |
//! | [`connection`] | an accepted connection, until it is a session |
//! | [`rendezvous`] | peers of a rendezvous: admitted, paired |
//! | [`meeting`] | where the peers of a rendezvous wait for each other |
//! | [`live`] | live sessions |
//! | [`trust`] | keys, certificates, logons |
//! | [`upstream`] | targets and KDCs, dialled |

pub mod arrival;
pub mod build;
pub mod connection;
pub mod live;
pub mod meeting;
pub mod rendezvous;
pub mod run;
pub mod state;
pub mod trust;
pub mod upkeep;
pub mod upstream;

pub use self::build::Prepared;
pub use self::run::Running;
