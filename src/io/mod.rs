//! What the shell gets from the system, and how it tells an administrator.

pub mod reached;
pub mod websocket_settings;
