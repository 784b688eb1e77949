//! A peer of a rendezvous: from its request to the session with the other one.
//!
//! The request is a packet ([`request`]) or the path of a WebSocket handshake ([`crate::api::jet`]); both are [admitted](admit) in
//! the same way, and [go on](pair::proceed) in the same way. Agents are told of peers by [`signaling`].

pub mod admit;
mod closing;
pub mod pair;
pub mod request;
pub mod signaling;
