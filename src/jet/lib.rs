//! JET rendezvous ([JET-PROTO] 0.3): two peers that can only connect outwards meet at the gateway.
//!
//! | file | what |
//! |---|---|
//! | [`packet`] | `JET_PACKET`, the frame of the binary protocol |
//! | [`exchange`] | the request and the response inside it, and the paths that WebSocket shares |
//! | [`candidate`] | candidate URLs |
//! | [`agent`] | what agents and the gateway tell each other |
//! | [`frame`] | WebSocket frames |
//! | [`message`] | offer, answer, complete: what peers tell each other over their signaling channel |
//! | [`rendezvous`] | associations, their candidates, and who may meet whom |
//!
//! Nothing here does I/O: bytes and `now` in, values out.
//!
//! [JET-PROTO]: https://github.com/Devolutions/devolutions-gateway
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod agent;
pub mod candidate;
pub mod exchange;
pub mod frame;
pub mod message;
pub mod packet;
pub mod rendezvous;
