//! What the gateway trusts, and by what it is trusted.

pub mod api_keys;
pub mod keyring;
pub mod target_certificate;
pub mod target_logon;
pub mod tls;
