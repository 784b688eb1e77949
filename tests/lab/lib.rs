//! What the tests of several members share: recorded sessions, certificates and, with the feature `net`, sockets, TLS and processes.
//!
//! Members name it in `[dev-dependencies]` alone (`it::layers` holds them to it), and it uses none of them: the unit tests of a member
//! would otherwise meet a second copy of its types here. What one test program alone uses stays with that program: `tests/it/lab.rs`
//! has a gateway in the process of the test, `tests/peers/lab` the real clients and targets around the real binary.
//!
//! Helpers panic where a test would, but for those of `wait` and `process`, whose callers have more to say about a failure.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

pub mod certificate;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "net")]
pub mod process;
pub mod recording;
#[cfg(feature = "net")]
pub mod tls;
#[cfg(feature = "net")]
pub mod wait;

// The kinds of keys and purposes that tests of certificates name.
pub use rcgen;
