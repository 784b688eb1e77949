//! The algorithms that tokens may use, and nothing else.
//!
//! A name that is not in these enums does not parse, so it cannot reach any cryptography. Left out on purpose:
//! `RSA1_5` and the `CBC-HS` content encryptions (padding oracles), `PBES2` (work chosen by the sender),
//! `RSA-OAEP-384/512` and `A192*` (nobody needs them).

use std::fmt;
use std::str::FromStr;

/// A text that names no accepted algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an algorithm that is accepted here")]
pub struct UnknownAlgorithm;

macro_rules! names {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$variant_doc])* $variant,)+ }

        impl $type {
            /// All of them, the preferred first.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name as it stands in a token's header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl FromStr for $type {
            type Err = UnknownAlgorithm;

            fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
                match name { $($name => Ok(Self::$variant),)+ _ => Err(UnknownAlgorithm) }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names! {
    /// `alg` of a signed token ([RFC 7518] 3.1).
    ///
    /// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-3.1
    SignatureAlgorithm {
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
        /// RSASSA-PKCS1-v1_5 with SHA-384.
        Rs384 = "RS384",
        /// RSASSA-PKCS1-v1_5 with SHA-512.
        Rs512 = "RS512",
        /// RSASSA-PSS with SHA-256.
        Ps256 = "PS256",
        /// RSASSA-PSS with SHA-384.
        Ps384 = "PS384",
        /// RSASSA-PSS with SHA-512.
        Ps512 = "PS512",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// ECDSA on P-384 with SHA-384.
        Es384 = "ES384",
        /// ECDSA on P-521 with SHA-512.
        Es512 = "ES512",
        /// Ed25519.
        EdDsa = "EdDSA",
        /// HMAC with SHA-256: issuer and gateway share the key.
        Hs256 = "HS256",
        /// HMAC with SHA-384.
        Hs384 = "HS384",
        /// HMAC with SHA-512.
        Hs512 = "HS512",
    }
}

names! {
    /// `alg` of an encrypted token: how the content key is agreed on ([RFC 7518] 4.1).
    ///
    /// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-4.1
    KeyManagement {
        /// RSAES-OAEP with SHA-256.
        RsaOaep256 = "RSA-OAEP-256",
        /// RSAES-OAEP with SHA-1 (the hash's weakness does not matter to OAEP).
        RsaOaep = "RSA-OAEP",
        /// Elliptic curve Diffie-Hellman with an ephemeral key.
        EcdhEs = "ECDH-ES",
        /// The same, wrapping a random content key of 128 bits.
        EcdhEsA128Kw = "ECDH-ES+A128KW",
        /// The same, wrapping a random content key of 256 bits.
        EcdhEsA256Kw = "ECDH-ES+A256KW",
        /// The shared key itself encrypts the content.
        Dir = "dir",
        /// A shared key wraps a random content key.
        A256Kw = "A256KW",
    }
}

names! {
    /// `enc` of an encrypted token ([RFC 7518] 5.1): authenticated encryption only.
    ///
    /// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-5.1
    ContentEncryption {
        /// AES-256 in GCM.
        A256Gcm = "A256GCM",
        /// AES-128 in GCM.
        A128Gcm = "A128GCM",
    }
}

impl SignatureAlgorithm {
    /// Whether issuer and gateway hold the same key.
    #[must_use]
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

impl KeyManagement {
    /// Whether issuer and gateway hold the same key: only then does encryption alone prove who made a token.
    #[must_use]
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::Dir | Self::A256Kw)
    }
}

impl ContentEncryption {
    /// Length of the content key, bytes.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm => 32,
        }
    }
}

/// Any `alg`: what a JWK's `alg` member may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Of signatures.
    Signature(SignatureAlgorithm),
    /// Of encryption.
    KeyManagement(KeyManagement),
}

impl Algorithm {
    /// The name as it stands in a header or a JWK.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signature(algorithm) => algorithm.name(),
            Self::KeyManagement(algorithm) => algorithm.name(),
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        name.parse()
            .map(Self::Signature)
            .or_else(|UnknownAlgorithm| name.parse().map(Self::KeyManagement))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for algorithm in SignatureAlgorithm::ALL {
            assert_eq!(
                algorithm.name().parse(),
                Ok(Algorithm::Signature(*algorithm))
            );
        }
        for algorithm in KeyManagement::ALL {
            assert_eq!(
                algorithm.name().parse(),
                Ok(Algorithm::KeyManagement(*algorithm))
            );
        }
        for encryption in ContentEncryption::ALL {
            assert_eq!(encryption.name().parse(), Ok(*encryption));
        }
    }

    #[test]
    fn what_is_unsafe_or_misspelt_is_not_an_algorithm() {
        for name in [
            "none",
            "None",
            "RSA1_5",
            "PBES2-HS256+A128KW",
            "A128KW",
            "A256GCMKW",
            "ES256K",
            "rs256",
            "",
        ] {
            assert_eq!(name.parse::<Algorithm>(), Err(UnknownAlgorithm), "{name}");
        }
        for name in ["A128CBC-HS256", "A256CBC-HS512", "A192GCM", "a256gcm"] {
            assert_eq!(
                name.parse::<ContentEncryption>(),
                Err(UnknownAlgorithm),
                "{name}"
            );
        }
    }
}
