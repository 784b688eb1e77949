//! What monitoring asks a gateway: its metrics ([`readings`]), and whether it lives and is ready ([`health`]).
//!
//! Both are had without a key on a port of their own, which is closed unless the configuration opens it (`monitoring.address`), and stays
//! open while the gateway drains ([`server`]). On the port of the clients, metrics and reasons are for operators.

pub mod health;
mod process;
pub mod readings;
pub mod server;
