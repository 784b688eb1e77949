//! `jetway demo`: a small RDP target and a headless client, so that a session can be seen with nothing else installed.
//!
//! [`target`] is an RDP server that draws a desktop of its own, [`client`] is an RDP client that gives back the
//! picture it received. Both speak real RDP over real sockets; integration tests use them as the two ends of a
//! session. `sequence` is how a session begins, without I/O; `frames` is what both read, and `picture` what the client
//! sees. [`desktop`] is what the target shows; [`canvas`] and [`font`] are how it is drawn. [`show`] puts a gateway
//! with fresh keys between the two and tells what happens.
//!
//! Neither end is meant for production: the target accepts every user name and password, and the client accepts
//! every certificate.

pub mod canvas;
pub mod client;
pub mod desktop;
pub mod font;
mod frames;
mod keyboard;
mod picture;
mod sequence;
pub mod show;
pub mod target;
