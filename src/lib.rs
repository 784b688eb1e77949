//! Jetway: an RDP gateway.

// Core: bytes and `now` in, values out.
pub mod application_protocol;
pub mod limits;
pub mod policy;
pub mod preamble;
pub mod proxy_protocol;
pub mod rdp;
pub mod time;
pub mod token;

// Shell: may do I/O.
#[cfg(feature = "shell")]
pub mod clock;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "shell")]
pub mod keyring;
#[cfg(feature = "shell")]
pub mod stream;
#[cfg(feature = "shell")]
pub mod upstream;
