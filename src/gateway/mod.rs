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
//! | [`api`] | HTTP: REST, WebSocket handshakes |
//! | [`session`] | the steps of a session |
//! | [`listener`] | ports, admission |
//! | [`live`] | live sessions |
//! | [`config`] | the configuration file |
//! | [`refusal`] | why a connection is turned away |
//! | [`trust`] | keys, certificates, logons |
//! | [`upstream`] | targets and KDCs, dialled |

pub mod api;
pub mod arrival;
pub mod build;
pub mod config;
pub mod connection;
pub mod listener;
pub mod live;
pub mod meeting;
pub mod refusal;
pub mod rendezvous;
pub mod run;
pub mod session;
pub mod state;
pub mod trust;
pub mod upkeep;
pub mod upstream;

pub use self::build::Prepared;
pub use self::run::Running;
