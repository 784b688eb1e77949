//! Promises to users, kept over real sockets: one file per promise.
//!
//! The gateway runs in the test's process, the target is a small listener that answers as RDP does; real clients and
//! targets are in `tests/peers`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what went wrong by panicking"
)]

mod agent;
mod api;
mod audit;
mod authority;
mod behind;
mod demands;
mod enforcement;
mod first_use;
mod forward;
mod forward_websocket;
mod impostors;
mod inside;
mod lab;
mod late;
mod layers;
mod limits;
mod log;
mod matrix;
mod monitoring;
mod onward;
mod operators;
mod process;
mod proof;
mod proxy_header;
mod refusals;
mod remembered;
mod rendezvous;
mod replay;
mod revocation;
mod scale;
mod secrets;
mod tickets;
