//! The rules that a token can break, and who can put it right.

use jetway_base::time::UnixTime;

/// The rule that a token breaks. Each says who can put it right; none repeats the token, but for the name of another gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Issuer: the text is larger than [`limits::TOKEN_BYTES`](jetway_base::limits::TOKEN_BYTES).
    #[error("the token has {bytes} bytes, more than are accepted")]
    Oversized {
        /// Its size.
        bytes: usize,
    },
    /// Issuer, or whatever carried the text: not a compact JWS or JWE.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Issuer: the header is not one that can be read in only one way.
    #[error("the token's header is not usable: {0}")]
    Header(&'static str),
    /// Issuer: `zip`. Nothing is inflated for a stranger.
    #[error("the token is compressed, which is not accepted")]
    Compressed,
    /// Issuer: `crit` or `b64` demands an extension.
    #[error("the token's header demands an extension that is not supported")]
    Critical,
    /// Issuer or administrator: no configured key allows the algorithm in the header.
    #[error("the token's algorithm is not one that the configured keys allow")]
    Algorithm,
    /// Issuer: `alg: none`, without the development switch or with a signature after all.
    #[error("the token is not signed (alg none)")]
    AlgNone,
    /// Issuer, administrator or an attacker: some cryptographic check of the signature failed, and which one is not said.
    #[error("no configured key verifies the token")]
    Unauthentic,
    /// Issuer or administrator: the signature names a key that is not configured.
    #[error(
        "no configured key verifies the token: none of its algorithm has the name (kid) that the token gives"
    )]
    UnknownSigner,
    /// Issuer or administrator: encrypted to a key that is not the gateway's. Nothing is told of a signature inside, and what a
    /// decryption failed at is not said either.
    #[error("the token cannot be decrypted: {0}")]
    Undecryptable(Undecryptable),
    /// Issuer: encrypted, but not signed, against [`TokenRules::unsigned_jwe`](super::rules::TokenRules::unsigned_jwe).
    #[error("the token is encrypted but not signed, so nothing proves who issued it")]
    UnsignedEncrypted,
    /// Issuer: a token of another kind, by its `typ`, its `cty` or its claim `type`.
    #[error("the token is of another type, by its {0}")]
    WrongType(&'static str),
    /// Issuer: the payload is not a JSON object.
    #[error("the token's payload is not a JSON object")]
    NotClaims,
    /// Issuer: a JSON name occurs twice.
    #[error("the token has a claim twice")]
    DuplicateClaim,
    /// Issuer: a claim has a wrong type or value, or is missing.
    #[error("claim {claim}: {problem}")]
    Claim {
        /// Its name.
        claim: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Issuer: a destination with the scheme of something that is not dialled.
    #[error("claim {claim}: only tcp:// is dialled, and not {scheme}://")]
    Scheme {
        /// The claim's name.
        claim: &'static str,
        /// The scheme.
        scheme: String,
    },
    /// Issuer: a secret travelled in the clear; change it.
    #[error("claim {claim} is a secret and the token was not encrypted")]
    SecretUnencrypted {
        /// Its name.
        claim: &'static str,
    },
    /// Issuer: none of `nbf`, `iat` and `exp` is there.
    #[error("the token has neither a start nor an end of validity")]
    NoValidity,
    /// Issuer, or one of the clocks.
    #[error("the token is valid from {not_before}, in {}, and it is {now}", .not_before.apart(*.now))]
    NotYetValid {
        /// Start of its validity.
        not_before: UnixTime,
        /// Time of the check.
        now: UnixTime,
    },
    /// User, who came too late, or one of the clocks.
    #[error("the token was valid until {not_after}, {} ago, and it is {now}", .now.apart(*.not_after))]
    Expired {
        /// End of its validity.
        not_after: UnixTime,
        /// Time of the check.
        now: UnixTime,
    },
    /// Issuer: valid for longer than [`TokenRules::max_lifetime_s`](super::rules::TokenRules::max_lifetime_s).
    #[error("the token is valid for longer than {max_s} seconds")]
    LifetimeTooLong {
        /// The limit.
        max_s: u64,
    },
    /// Issuer or administrator: `iss` is not one of [`TokenRules::issuers`](super::rules::TokenRules::issuers).
    #[error("the token's issuer is not accepted")]
    Issuer,
    /// Issuer or administrator: `aud` or `jet_gw_id` names gateways, and this one is none of them.
    #[error(
        "the token is meant for another gateway: {claim} is {value}, which is no name of this one (token.audiences)"
    )]
    Audience {
        /// Which of the two.
        claim: &'static str,
        /// What it says.
        value: String,
    },
    /// Issuer or administrator: the token names no gateway, and [`TokenRules::audiences`](super::rules::TokenRules::audiences) demand it.
    #[error(
        "the token names no gateway (aud, jet_gw_id), and this one demands its name (token.audiences)"
    )]
    NoAudience,
}

impl TokenError {
    /// A short stable name of the rule, for logs and metrics.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Oversized { .. } => "oversized",
            Self::Malformed(_) => "malformed",
            Self::Header(_) => "header",
            Self::Compressed => "compressed",
            Self::Critical => "critical",
            Self::Algorithm => "algorithm",
            Self::AlgNone => "alg-none",
            Self::Unauthentic | Self::UnknownSigner => "signature",
            Self::Undecryptable(_) => "decryption",
            Self::UnsignedEncrypted => "unsigned-jwe",
            Self::WrongType(_) => "type",
            Self::NotClaims => "claims",
            Self::DuplicateClaim => "duplicate-claim",
            Self::Claim { .. } | Self::Scheme { .. } => "claim",
            Self::SecretUnencrypted { .. } => "secret-unencrypted",
            Self::NoValidity => "no-validity",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::Expired { .. } => "expired",
            Self::LifetimeTooLong { .. } => "lifetime",
            Self::Issuer => "issuer",
            Self::Audience { .. } | Self::NoAudience => "audience",
        }
    }
}

/// Why a token was not decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecryptable {
    /// There is no key to decrypt with at all.
    #[error("no key to decrypt with is configured (token.keys with usage \"encrypt\")")]
    NoKey,
    /// It names a key that is not configured.
    #[error(
        "it was encrypted to a key that is not configured, as none of its algorithm has the name (kid) that the token gives; issuers encrypt to the public half of the gateway's own"
    )]
    UnknownKey,
    /// No key opens it.
    #[error(
        "no configured key opens it, so it was encrypted to another one, or damaged; issuers encrypt to the public half of the gateway's own"
    )]
    NoneFits,
}
