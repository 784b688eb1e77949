//! The server: what its connections share, who serves them, and its own life.
//!
//! From top to bottom; each uses those below it alone, which a test holds (`it::layers`).
//!
//! | part | what |
//! |---|---|
//! | [`run`] | start, reload, drain, stop |
//! | [`arrival`] | what arrived, and who serves it |
//! | [`api`] | HTTP: REST, WebSocket handshakes |
//! | [`rendezvous`] | peers of a rendezvous: admitted, paired; the signaling channel of agents |
//! | [`session`] | the steps of a session |
//! | [`build`], [`upkeep`], [`monitoring`] | from a configuration to the parts of a gateway; what is done while it runs; what it is asked about itself |
//! | [`state`] | what connections share, in parts |
//! | [`meeting`] | where the peers of a rendezvous wait for each other |
//! | [`connection`] | an accepted connection, until it is a session |
//! | [`listener`], [`live`] | ports and admission; live sessions |
//! | [`trail`] | what is recorded in the audit |
//! | [`trust`] | keys, certificates, settings of logons |
//! | [`refusal`] | why a connection is turned away |
//! | [`upstream`], [`config`] | targets and KDCs, dialled; the configuration file |

pub mod api;
pub mod arrival;
pub mod build;
pub mod config;
pub mod connection;
pub mod listener;
pub mod live;
pub mod meeting;
pub mod monitoring;
pub mod refusal;
pub mod rendezvous;
pub mod run;
pub mod session;
pub mod state;
pub mod trail;
pub mod trust;
pub mod upkeep;
pub mod upstream;

pub use self::build::Prepared;
pub use self::run::Running;
