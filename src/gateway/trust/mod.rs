//! What the gateway trusts, and by what it is trusted.

pub mod target_logon;
