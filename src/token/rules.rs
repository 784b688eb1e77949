//! What an administrator decides about tokens.

use serde::{Deserialize, Serialize};

/// What an administrator decides about tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// How far clocks may be apart, at either end of a validity period.
    pub leeway_s: u64,
    /// Life of a token that has a start and no `exp`.
    pub default_lifetime_s: u64,
    /// Longest life of any token, whatever its `exp`.
    pub max_lifetime_s: u64,
    /// Whether a token that is encrypted but not signed is accepted.
    pub unsigned_jwe: UnsignedJwe,
    /// Development only: accept `alg: none`.
    pub allow_none: bool,
    /// Accepted `iss`; empty accepts any and none.
    pub issuers: Vec<String>,
    /// Names of this gateway, one of which a token's `aud` or `jet_gw_id` must hold. Empty: a token with an audience is
    /// meant for somebody else.
    pub audiences: Vec<String>,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            leeway_s: 120,
            default_lifetime_s: 120,
            max_lifetime_s: 8 * 60 * 60,
            unsigned_jwe: UnsignedJwe::Refuse,
            allow_none: false,
            issuers: Vec::new(),
            audiences: Vec::new(),
        }
    }
}

/// Whether encryption without a signature is enough. A public key encrypts for everyone: it proves no issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnsignedJwe {
    /// Never: a signed token must be inside.
    #[default]
    Refuse,
    /// Where issuer and gateway share the key, which proves the issuer.
    SymmetricOnly,
    /// Always. Whoever has the gateway's public key can then make tokens.
    Accept,
}
