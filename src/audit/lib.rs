//! The audit: one record for each decision, opened and ended session, change and operator's action, in every mode.
//!
//! Records are lines of JSON in a file of their own ([`record`]). Each has a sequence number and the digest of the line before it
//! ([`chain`]), so that a line that was removed, changed or moved is noticed ([`verify`]). What nobody can see in one file is that lines
//! are missing at its end: whoever keeps the number and the digest of the last line elsewhere (the gateway logs both, and sends records
//! to a syslog server) can.
//!
//! Bytes and a time in, bytes out: files are written by `jetway_store::audit`.

pub mod chain;
pub mod record;
pub mod verify;
