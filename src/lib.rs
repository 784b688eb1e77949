//! Jetway: an RDP gateway.

// Core: bytes and `now` in, values out.
pub mod address;
pub mod application_protocol;
pub mod carrier;
pub mod limits;
pub mod policy;
pub mod preamble;
pub mod proxy_protocol;
pub mod rdp;
pub mod rdp_file;
pub mod refusal;
pub mod ticket;
pub mod time;
pub mod token;

// Shell: may do I/O.
#[cfg(feature = "shell")]
pub mod api;
#[cfg(feature = "shell")]
pub mod cli;
#[cfg(feature = "shell")]
pub mod clock;
#[cfg(feature = "shell")]
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "shell")]
pub mod file_stamp;
#[cfg(feature = "shell")]
pub mod gateway;
#[cfg(feature = "shell")]
pub mod keyring;
#[cfg(feature = "shell")]
pub mod listener;
#[cfg(feature = "shell")]
pub mod relay;
#[cfg(feature = "shell")]
pub mod session;
#[cfg(feature = "shell")]
pub mod store;
#[cfg(feature = "shell")]
pub mod stream;
#[cfg(feature = "shell")]
pub mod tls;
#[cfg(feature = "shell")]
pub mod upstream;
