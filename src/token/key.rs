//! Keys: PEM, JWK or JWKS, to the algorithms each may be used with.
//!
//! The allow-list of algorithms follows from the key and never from a token's header: a public key cannot serve as an
//! HMAC secret, and a signing key does not decrypt.
//!
//! Not done here: reading files (`jetway::gateway::trust::keyring`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::{BigNum, BigNumContext, BigNumRef};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKey, Private, Public};
use openssl::rsa::{Rsa, RsaPrivateKeyBuilder};
use openssl::x509::X509;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use super::jose::{Decrypter, SignatureVerifier, UnusableKey};
use super::json;

/// Smallest RSA modulus, bits ([RFC 7518] 3.3).
///
/// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-3.3
const RSA_MIN_BITS: u32 = 2048;

/// Largest RSA modulus, bits: one decryption costs 3.5 ms already.
const RSA_MAX_BITS: u32 = 4096;

/// Keys in all documents together.
const KEYS: usize = 64;

/// Keys tried for one token, so that a token without `kid` has a bounded cost.
const TRIES: usize = 8;

/// Of a key id that is told, characters: enough to know it by.
const SHOWN_KID_CHARS: usize = 64;

/// Largest key document, bytes.
pub const DOCUMENT_BYTES: usize = 1024 * 1024;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyUsage {
    /// Signatures: the gateway verifies with it.
    Sign,
    /// Encryption: the gateway decrypts with it.
    Encrypt,
}

/// One configured file of keys, as bytes.
#[derive(Clone, Copy)]
pub struct KeyDocument<'a> {
    /// What messages call it: the file's path.
    pub name: &'a str,
    /// PEM, JWK or JWKS, told apart by content.
    pub bytes: &'a [u8],
    /// What the key is for, where the document itself leaves that open.
    pub usage: Option<KeyUsage>,
    /// The key's id, where the document has one key and does not say.
    pub kid: Option<&'a str>,
}

/// The curves that tokens may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

/// What kind of key it is, without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// RSA.
    Rsa {
        /// Size of the modulus.
        bits: u32,
    },
    /// A key on one of the NIST curves.
    Ec(Curve),
    /// Signatures on Curve25519.
    Ed25519,
    /// Key agreement on Curve25519.
    X25519,
    /// A shared secret.
    Secret {
        /// Its length.
        bytes: usize,
    },
}

/// A document that holds no usable key. The key itself is never part of the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{document}: {problem}{}", listed(.skipped))]
pub struct KeyError {
    /// Name of the document.
    pub document: String,
    /// What is wrong with it.
    pub problem: KeyProblem,
    /// What is wrong with each key of a set of which none is left.
    pub skipped: Vec<String>,
}

fn listed(skipped: &[String]) -> String {
    skipped.iter().map(|reason| format!("; {reason}")).collect()
}

/// A key of a set that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// Which one of which document, and why.
    pub reason: String,
    /// Whether it is at fault, and not just meant for others.
    pub is_fault: bool,
}

/// What is wrong with a key document. All of these are for whoever configures the gateway to put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// More than [`DOCUMENT_BYTES`].
    #[error("larger than a key file can be")]
    TooLarge,
    /// Not PEM and not JSON.
    #[error("neither PEM nor a JWK nor a JWKS")]
    Unreadable,
    /// Nothing in it that this gateway can use.
    #[error("contains no usable key")]
    Empty,
    /// A private key under a passphrase.
    #[error("the private key is encrypted; write it without a passphrase and protect the file")]
    Encrypted,
    /// Recognised, but damaged or inconsistent.
    #[error("the key is damaged: a part is missing or does not fit the others")]
    Damaged,
    /// A JSON name occurs twice.
    #[error("a JSON name occurs twice")]
    DuplicateName,
    /// Another kind of key or curve.
    #[error(
        "the kind of key is not supported (RSA, P-256, P-384, P-521, Ed25519, X25519 and oct are)"
    )]
    Unsupported,
    /// RSA below 2048 bits.
    #[error("the RSA key is too small, at least 2048 bits are required")]
    RsaTooSmall,
    /// RSA above 4096 bits.
    #[error("the RSA key is too large, at most 4096 bits are accepted")]
    RsaTooLarge,
    /// RSA with an exponent that makes signatures worthless.
    #[error("the RSA key has an unsafe public exponent")]
    RsaExponent,
    /// A secret of the wrong length for its use.
    #[error(
        "the secret has the wrong length (HS256 needs 32 bytes or more, A256KW 32, dir 16 or 32)"
    )]
    SecretLength,
    /// A secret that does not say whether it signs or encrypts.
    #[error(
        "a shared secret needs \"use\": \"sig\" or \"enc\", or \"alg\", or a usage in the configuration"
    )]
    NoUsage,
    /// The configuration and the document disagree, or the kind of key cannot do what is asked.
    #[error("the key cannot be used for what it is configured for")]
    UsageConflict,
    /// Verification with a key that signs.
    #[error(
        "this private key makes tokens and belongs to their issuer alone; the gateway verifies with its public half (jetway keys jwks prints it)"
    )]
    PrivateVerifier,
    /// Decryption with a public key.
    #[error("decryption needs the private key, this is the public one")]
    NeedsPrivateKey,
    /// A signing key that cannot sign.
    #[error("signing needs the private key, this is the public one")]
    NeedsPrivateSigningKey,
    /// `alg` of the JWK does not fit the key.
    #[error("the algorithm does not fit the key")]
    AlgorithmConflict,
    /// One key id for several keys.
    #[error("a kid is configured for a file that holds several keys")]
    KidForMany,
    /// Which of several keys is meant.
    #[error("the file holds several keys, name one by its kid")]
    Ambiguous,
    /// More than 64 in all documents together.
    #[error("more keys than are accepted")]
    TooMany,
    /// OpenSSL refused something it should not have.
    #[error("the cryptographic library refused the key")]
    Library,
}

/// One key out of a document.
pub struct Key {
    kid: Option<String>,
    usage: Option<KeyUsage>,
    algorithm: Option<Algorithm>,
    kind: KeyKind,
    material: Material,
}

enum Material {
    Public(PKey<Public>),
    Private(PKey<Private>),
    Secret(Zeroizing<Vec<u8>>),
}

/// The keys a gateway verifies and decrypts with.
#[derive(Default)]
pub struct KeySet {
    verifiers: Vec<Entry<SignatureVerifier>>,
    decrypters: Vec<Entry<Decrypter>>,
    skipped: Vec<SkippedKey>,
}

/// One key with all it may do.
struct Entry<T> {
    kid: Option<String>,
    kind: KeyKind,
    uses: Vec<T>,
}

impl KeySet {
    /// Reads all `documents`.
    ///
    /// # Errors
    /// The first document that cannot be used. Members of a JWKS that are weak, damaged, not understood or for another use
    /// are skipped ([RFC 7517] 5) and named in [`KeySet::skipped`]; a set of which none is left cannot be used.
    ///
    /// [RFC 7517]: https://www.rfc-editor.org/rfc/rfc7517#section-5
    pub fn from_documents(documents: &[KeyDocument<'_>]) -> Result<Self, KeyError> {
        let mut set = Self::default();
        for document in documents {
            let before = set.skipped.len();
            set.add(document).map_err(|problem| {
                let mut error = document.error(problem);
                let skipped = set.skipped.drain(before..);
                error.skipped = skipped.map(|key| key.reason).collect();
                error
            })?;
            for key in set.skipped.iter_mut().skip(before) {
                key.reason = format!("{}: {}", document.name, key.reason);
            }
        }
        Ok(set)
    }

    /// What was skipped while loading and why, for the log.
    #[must_use]
    pub fn skipped(&self) -> &[SkippedKey] {
        &self.skipped
    }

    /// How many keys verify signatures, and how many decrypt.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.verifiers.len(), self.decrypters.len())
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verifiers.is_empty() && self.decrypters.is_empty()
    }

    fn add(&mut self, document: &KeyDocument<'_>) -> Result<(), KeyProblem> {
        let Parsed {
            mut keys,
            is_set,
            skipped,
        } = parse(document.bytes)?;
        self.skipped.extend(skipped);
        if let Some(kid) = document.kid {
            match keys.as_mut_slice() {
                [key] => key.kid = Some(kid.to_owned()),
                _ => return Err(KeyProblem::KidForMany),
            }
        }
        let mut added = 0_usize;
        for key in keys {
            match self.add_key(&key, document.usage) {
                Ok(()) => added += 1,
                Err(problem) if is_set && problem != KeyProblem::TooMany => {
                    let kid = key.kid.as_deref();
                    self.skipped.push(SkippedKey {
                        reason: skipping(kid, problem),
                        // A set may hold keys for others: of another use, or public keys to encrypt to somebody else.
                        is_fault: !matches!(
                            problem,
                            KeyProblem::UsageConflict | KeyProblem::NeedsPrivateKey
                        ),
                    });
                }
                Err(problem) => return Err(problem),
            }
        }
        if added == 0 {
            return Err(KeyProblem::Empty);
        }
        Ok(())
    }

    fn add_key(&mut self, key: &Key, configured: Option<KeyUsage>) -> Result<(), KeyProblem> {
        if self.verifiers.len() + self.decrypters.len() >= KEYS {
            return Err(KeyProblem::TooMany);
        }
        match key.gateway_usage(configured)? {
            KeyUsage::Sign => {
                let uses = key.verifiers()?;
                self.verifiers.push(Entry {
                    kid: key.kid.clone(),
                    kind: key.kind,
                    uses,
                });
            }
            KeyUsage::Encrypt => {
                let uses = key.decrypters()?;
                self.decrypters.push(Entry {
                    kid: key.kid.clone(),
                    kind: key.kind,
                    uses,
                });
            }
        }
        Ok(())
    }

    /// The keys to try for a signature, with what each costs.
    pub(super) fn verifiers<'a>(
        &'a self,
        algorithm: SignatureAlgorithm,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a SignatureVerifier, KeyKind)> {
        select(&self.verifiers, kid, move |verifier| {
            verifier.algorithm == algorithm
        })
    }

    /// The keys to try for a decryption, with what each costs.
    pub(super) fn decrypters<'a>(
        &'a self,
        algorithm: KeyManagement,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Decrypter, KeyKind)> {
        select(&self.decrypters, kid, move |decrypter| {
            decrypter.algorithm == algorithm
        })
    }

    /// Whether any key may verify `algorithm`.
    pub(super) fn allows_signature(&self, algorithm: SignatureAlgorithm) -> bool {
        self.verifiers(algorithm, None).next().is_some()
    }

    /// Whether any key decrypts.
    pub(super) fn decrypts(&self) -> bool {
        !self.decrypters.is_empty()
    }

    /// Whether any key may decrypt `algorithm`.
    pub(super) fn allows_encryption(&self, algorithm: KeyManagement) -> bool {
        self.decrypters(algorithm, None).next().is_some()
    }

    /// The dearest signature check that the token inside an encrypted one could cause, microseconds: its header is not
    /// known yet.
    pub(super) fn dearest_verification_us(&self) -> u32 {
        let mut costs: Vec<u32> = self
            .verifiers
            .iter()
            .map(|entry| entry.kind.verification_us())
            .collect();
        costs.sort_unstable_by(|one, other| other.cmp(one));
        costs.into_iter().take(TRIES).fold(0, u32::saturating_add)
    }
}

/// The words for a key of a set that is not used.
fn skipping(kid: Option<&str>, problem: KeyProblem) -> String {
    match kid {
        Some(kid) => format!("key {} skipped: {problem}", shown(kid)),
        None => format!("a key without kid skipped: {problem}"),
    }
}

/// A key id as it may stand in a log: it comes from whoever wrote the set.
fn shown(kid: &str) -> String {
    let short: String = kid.chars().take(SHOWN_KID_CHARS).collect();
    format!("{short:?}")
}

/// With a `kid` the keys of that name; if there are none, the keys that have no name, since PEM files have none.
/// Without a `kid` all of them.
fn select<'a, T>(
    entries: &'a [Entry<T>],
    kid: Option<&'a str>,
    fits: impl Fn(&T) -> bool + 'a,
) -> impl Iterator<Item = (&'a T, KeyKind)> {
    let named = kid.is_some() && entries.iter().any(|entry| entry.kid.as_deref() == kid);
    entries
        .iter()
        .filter(move |entry| kid.is_none() || entry.kid.as_deref() == kid.filter(|_| named))
        .filter_map(move |entry| {
            entry
                .uses
                .iter()
                .find(|used| fits(used))
                .map(|used| (used, entry.kind))
        })
        .take(TRIES)
}

impl KeyDocument<'_> {
    pub(super) fn error(&self, problem: KeyProblem) -> KeyError {
        KeyError {
            document: self.name.to_owned(),
            problem,
            skipped: Vec::new(),
        }
    }
}

impl Key {
    /// All keys in a document, whatever they are for.
    ///
    /// # Errors
    /// Where the document is not readable or a key in it is weak, damaged or, outside a JWKS, of an unknown kind.
    pub fn parse(document: &KeyDocument<'_>) -> Result<Vec<Self>, KeyError> {
        let parsed = parse(document.bytes).map_err(|problem| document.error(problem))?;
        if parsed.keys.is_empty() {
            let mut error = document.error(KeyProblem::Empty);
            error.skipped = parsed.skipped.into_iter().map(|key| key.reason).collect();
            return Err(error);
        }
        Ok(parsed.keys)
    }

    pub(super) fn generated(
        algorithm: Algorithm,
        kind: KeyKind,
        material: GeneratedMaterial,
    ) -> Self {
        let material = match material {
            GeneratedMaterial::Private(key) => Material::Private(key),
            GeneratedMaterial::Secret(secret) => Material::Secret(secret),
        };
        let usage = match algorithm {
            Algorithm::Signature(_) => KeyUsage::Sign,
            Algorithm::KeyManagement(_) => KeyUsage::Encrypt,
        };
        Self {
            kid: None,
            usage: Some(usage),
            algorithm: Some(algorithm),
            kind,
            material,
        }
    }

    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Gives the key an id.
    pub fn set_kid(&mut self, kid: Option<String>) {
        self.kid = kid;
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// What the document says it is for.
    #[must_use]
    pub fn usage(&self) -> Option<KeyUsage> {
        self.usage.or(match self.algorithm {
            Some(Algorithm::Signature(_)) => Some(KeyUsage::Sign),
            Some(Algorithm::KeyManagement(_)) => Some(KeyUsage::Encrypt),
            None => match self.kind {
                KeyKind::Ed25519 => Some(KeyUsage::Sign),
                KeyKind::X25519 => Some(KeyUsage::Encrypt),
                KeyKind::Rsa { .. } | KeyKind::Ec(_) | KeyKind::Secret { .. } => None,
            },
        })
    }

    /// Whether it holds a secret: a private key or a shared one.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        match self.material {
            Material::Public(_) => false,
            Material::Private(_) | Material::Secret(_) => true,
        }
    }

    /// The signature algorithms the key may be used with, the preferred first.
    #[must_use]
    pub fn signature_algorithms(&self) -> Vec<SignatureAlgorithm> {
        use SignatureAlgorithm as A;
        if self.usage() == Some(KeyUsage::Encrypt) {
            return Vec::new();
        }
        let by_kind: &[A] = match self.kind {
            KeyKind::Rsa { .. } => &[A::Rs256, A::Rs384, A::Rs512, A::Ps256, A::Ps384, A::Ps512],
            KeyKind::Ec(Curve::P256) => &[A::Es256],
            KeyKind::Ec(Curve::P384) => &[A::Es384],
            KeyKind::Ec(Curve::P521) => &[A::Es512],
            KeyKind::Ed25519 => &[A::EdDsa],
            KeyKind::X25519 => &[],
            // A secret shorter than the hash weakens it ([RFC 7518] 3.2).
            KeyKind::Secret { bytes: 64.. } => &[A::Hs256, A::Hs384, A::Hs512],
            KeyKind::Secret { bytes: 48.. } => &[A::Hs256, A::Hs384],
            KeyKind::Secret { bytes: 32.. } => &[A::Hs256],
            KeyKind::Secret { .. } => &[],
        };
        by_kind
            .iter()
            .copied()
            .filter(|algorithm| {
                self.algorithm
                    .is_none_or(|only| only == Algorithm::Signature(*algorithm))
            })
            .collect()
    }

    /// The encryption algorithms the key may be used with, the preferred first.
    #[must_use]
    pub fn key_management_algorithms(&self) -> Vec<KeyManagement> {
        use KeyManagement as A;
        if self.usage() == Some(KeyUsage::Sign) {
            return Vec::new();
        }
        let by_kind: &[A] = match self.kind {
            KeyKind::Rsa { .. } => &[A::RsaOaep256, A::RsaOaep],
            KeyKind::Ec(_) | KeyKind::X25519 => &[A::EcdhEs, A::EcdhEsA128Kw, A::EcdhEsA256Kw],
            KeyKind::Ed25519 => &[],
            KeyKind::Secret { bytes: 32 } => &[A::Dir, A::A256Kw],
            KeyKind::Secret { bytes: 16 } => &[A::Dir],
            KeyKind::Secret { .. } => &[],
        };
        by_kind
            .iter()
            .copied()
            .filter(|algorithm| {
                self.algorithm
                    .is_none_or(|only| only == Algorithm::KeyManagement(*algorithm))
            })
            .collect()
    }

    /// What the gateway does with the key: what the configuration says, else the document, else the kind. A public key
    /// can only verify; a private one is on a gateway to decrypt.
    fn gateway_usage(&self, configured: Option<KeyUsage>) -> Result<KeyUsage, KeyProblem> {
        let stated = self.usage();
        if let (Some(configured), Some(stated)) = (configured, stated)
            && configured != stated
        {
            return Err(KeyProblem::UsageConflict);
        }
        match (configured.or(stated), &self.material) {
            // Whoever reads it from the gateway could make tokens.
            (Some(KeyUsage::Sign), Material::Private(_)) => Err(KeyProblem::PrivateVerifier),
            (Some(usage), _) => Ok(usage),
            (None, Material::Public(_)) => Ok(KeyUsage::Sign),
            (None, Material::Private(_)) => Ok(KeyUsage::Encrypt),
            (None, Material::Secret(_)) => Err(KeyProblem::NoUsage),
        }
    }

    fn verifiers(&self) -> Result<Vec<SignatureVerifier>, KeyProblem> {
        let algorithms = self.signature_algorithms();
        if algorithms.is_empty() {
            return Err(match self.kind {
                KeyKind::Secret { .. } => KeyProblem::SecretLength,
                KeyKind::Rsa { .. } | KeyKind::Ec(_) | KeyKind::Ed25519 | KeyKind::X25519 => {
                    KeyProblem::UsageConflict
                }
            });
        }
        let verifiers: Result<Vec<_>, UnusableKey> = match &self.material {
            Material::Secret(secret) => algorithms
                .into_iter()
                .map(|algorithm| SignatureVerifier::from_secret(algorithm, secret))
                .collect(),
            Material::Public(_) | Material::Private(_) => {
                let spki = self.spki()?;
                algorithms
                    .into_iter()
                    .map(|algorithm| SignatureVerifier::from_spki(algorithm, &spki))
                    .collect()
            }
        };
        verifiers.map_err(|UnusableKey| KeyProblem::Library)
    }

    fn decrypters(&self) -> Result<Vec<Decrypter>, KeyProblem> {
        let algorithms = self.key_management_algorithms();
        if algorithms.is_empty() {
            return Err(match self.kind {
                KeyKind::Secret { .. } => KeyProblem::SecretLength,
                KeyKind::Rsa { .. } | KeyKind::Ec(_) | KeyKind::Ed25519 | KeyKind::X25519 => {
                    KeyProblem::UsageConflict
                }
            });
        }
        let decrypters: Result<Vec<_>, UnusableKey> = match &self.material {
            Material::Public(_) => return Err(KeyProblem::NeedsPrivateKey),
            Material::Secret(secret) => algorithms
                .into_iter()
                .map(|algorithm| Decrypter::from_secret(algorithm, secret))
                .collect(),
            Material::Private(key) => {
                let pkcs8 = Zeroizing::new(key.private_key_to_pkcs8()?);
                algorithms
                    .into_iter()
                    .map(|algorithm| {
                        Decrypter::from_pkcs8(
                            algorithm,
                            &pkcs8,
                            self.kind.modulus_bytes(),
                            self.kind.coordinate_bytes(),
                        )
                    })
                    .collect()
            }
        };
        decrypters.map_err(|UnusableKey| KeyProblem::Library)
    }

    /// The public half as SubjectPublicKeyInfo.
    pub(super) fn spki(&self) -> Result<Vec<u8>, KeyProblem> {
        match &self.material {
            Material::Public(key) => Ok(key.public_key_to_der()?),
            Material::Private(key) => Ok(key.public_key_to_der()?),
            Material::Secret(_) => Err(KeyProblem::UsageConflict),
        }
    }

    /// The private half as PKCS #8.
    pub(super) fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyProblem> {
        match &self.material {
            Material::Public(_) => Err(KeyProblem::NeedsPrivateSigningKey),
            Material::Private(key) => Ok(Zeroizing::new(key.private_key_to_pkcs8()?)),
            Material::Secret(_) => Err(KeyProblem::UsageConflict),
        }
    }

    /// The shared secret, if it is one.
    pub(super) fn secret(&self) -> Option<&[u8]> {
        match &self.material {
            Material::Public(_) | Material::Private(_) => None,
            Material::Secret(secret) => Some(secret),
        }
    }

    /// The public half as PEM; none for a shared secret, which has no public half.
    #[must_use]
    pub fn public_pem(&self) -> Option<String> {
        let pem = match &self.material {
            Material::Public(key) => key.public_key_to_pem(),
            Material::Private(key) => key.public_key_to_pem(),
            Material::Secret(_) => return None,
        };
        pem.ok().and_then(|pem| String::from_utf8(pem).ok())
    }

    /// The private half as PEM; none for a public key, and for a shared secret, which PEM has no form for.
    #[must_use]
    pub fn private_pem(&self) -> Option<Zeroizing<String>> {
        match &self.material {
            Material::Public(_) | Material::Secret(_) => None,
            Material::Private(key) => {
                let pem = key.private_key_to_pem_pkcs8().ok()?;
                String::from_utf8(pem).ok().map(Zeroizing::new)
            }
        }
    }

    /// The public half as a JWK; none for a shared secret.
    #[must_use]
    pub fn public_jwk(&self) -> Option<Map<String, Value>> {
        let mut jwk = match &self.material {
            Material::Public(key) => public_members(key, self.kind).ok()?,
            Material::Private(key) => public_members(key, self.kind).ok()?,
            Material::Secret(_) => return None,
        };
        self.add_metadata(&mut jwk);
        Some(jwk)
    }

    /// The private or shared key as the text of a JWK; none for a public key.
    #[must_use]
    pub fn private_jwk(&self) -> Option<Zeroizing<String>> {
        let mut jwk = match &self.material {
            Material::Public(_) => return None,
            Material::Private(key) => {
                let mut jwk = public_members(key, self.kind).ok()?;
                add_private_members(&mut jwk, key, self.kind).ok()?;
                jwk
            }
            Material::Secret(secret) => {
                let mut jwk = Map::new();
                jwk.insert("kty".to_owned(), json!("oct"));
                jwk.insert("k".to_owned(), json!(URL_SAFE_NO_PAD.encode(secret)));
                jwk
            }
        };
        self.add_metadata(&mut jwk);
        serde_json::to_string_pretty(&jwk).ok().map(Zeroizing::new)
    }

    /// A name that follows from the key itself ([RFC 7638]); of a shared secret, none: it would help to guess it.
    ///
    /// [RFC 7638]: https://www.rfc-editor.org/rfc/rfc7638
    #[must_use]
    pub fn thumbprint(&self) -> Option<String> {
        let jwk = self.public_jwk()?;
        let names: &[&str] = match self.kind {
            KeyKind::Rsa { .. } => &["e", "kty", "n"],
            KeyKind::Ec(_) => &["crv", "kty", "x", "y"],
            KeyKind::Ed25519 | KeyKind::X25519 => &["crv", "kty", "x"],
            KeyKind::Secret { .. } => return None,
        };
        let mut required = Map::new();
        for name in names {
            required.insert((*name).to_owned(), jwk.get(*name)?.clone());
        }
        let text = serde_json::to_string(&required).ok()?;
        Some(URL_SAFE_NO_PAD.encode(openssl::sha::sha256(text.as_bytes())))
    }

    fn add_metadata(&self, jwk: &mut Map<String, Value>) {
        if let Some(kid) = &self.kid {
            jwk.insert("kid".to_owned(), json!(kid));
        }
        match self.usage() {
            Some(KeyUsage::Sign) => jwk.insert("use".to_owned(), json!("sig")),
            Some(KeyUsage::Encrypt) => jwk.insert("use".to_owned(), json!("enc")),
            None => None,
        };
        if let Some(algorithm) = self.algorithm {
            jwk.insert("alg".to_owned(), json!(algorithm.name()));
        }
    }
}

/// What [`mint::generate`](super::mint::generate) made.
pub(super) enum GeneratedMaterial {
    Private(PKey<Private>),
    Secret(Zeroizing<Vec<u8>>),
}

impl KeyKind {
    /// CPU one signature check takes, microseconds, measured on one core and rounded up.
    pub(super) fn verification_us(self) -> u32 {
        match self {
            Self::Rsa { bits: ..=2048 } => 30,
            Self::Rsa { bits: ..=3072 } => 60,
            Self::Rsa { .. } => 100,
            Self::Ec(Curve::P256) => 80,
            Self::Ec(Curve::P384) => 800,
            Self::Ec(Curve::P521) => 700,
            Self::Ed25519 => 100,
            Self::X25519 => 0,
            Self::Secret { .. } => 5,
        }
    }

    /// CPU one decryption takes, microseconds, measured on one core and rounded up.
    pub(super) fn decryption_us(self) -> u32 {
        match self {
            Self::Rsa { bits: ..=2048 } => 300,
            Self::Rsa { bits: ..=3072 } => 2000,
            Self::Rsa { .. } => 4500,
            Self::Ec(Curve::P256) => 200,
            Self::Ec(Curve::P384) => 1200,
            Self::Ec(Curve::P521) => 700,
            Self::X25519 => 150,
            Self::Ed25519 => 0,
            Self::Secret { .. } => 10,
        }
    }

    fn modulus_bytes(self) -> usize {
        match self {
            Self::Rsa { bits } => usize::try_from(bits.div_ceil(8)).unwrap_or(0),
            Self::Ec(_) | Self::Ed25519 | Self::X25519 | Self::Secret { .. } => 0,
        }
    }

    fn coordinate_bytes(self) -> usize {
        match self {
            Self::Ec(Curve::P256) | Self::Ed25519 | Self::X25519 => 32,
            Self::Ec(Curve::P384) => 48,
            Self::Ec(Curve::P521) => 66,
            Self::Rsa { .. } | Self::Secret { .. } => 0,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
            Self::Ec(curve) => write!(f, "EC {}", curve.name()),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::X25519 => f.write_str("X25519"),
            Self::Secret { bytes } => write!(f, "secret of {bytes} bytes"),
        }
    }
}

impl Curve {
    /// The name as it stands in a JWK's `crv`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    pub(super) const fn nid(self) -> Nid {
        match self {
            Self::P256 => Nid::X9_62_PRIME256V1,
            Self::P384 => Nid::SECP384R1,
            Self::P521 => Nid::SECP521R1,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521]
            .into_iter()
            .find(|curve| curve.name() == name)
    }
}

impl fmt::Display for KeyUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sign => "sign",
            Self::Encrypt => "encrypt",
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("usage", &self.usage)
            .field("algorithm", &self.algorithm)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyDocument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyDocument")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("verifiers", &self.verifiers.len())
            .field("decrypters", &self.decrypters.len())
            .finish_non_exhaustive()
    }
}

impl From<ErrorStack> for KeyProblem {
    /// OpenSSL's own text is dropped: it says nothing to an operator, and must not be able to say too much.
    fn from(_: ErrorStack) -> Self {
        Self::Damaged
    }
}

struct Parsed {
    keys: Vec<Key>,
    /// Several keys for several purposes: a JWKS.
    is_set: bool,
    skipped: Vec<SkippedKey>,
}

fn parse(bytes: &[u8]) -> Result<Parsed, KeyProblem> {
    if bytes.len() > DOCUMENT_BYTES {
        return Err(KeyProblem::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| KeyProblem::Unreadable)?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('{') {
        parse_json(text)
    } else if text.contains("-----BEGIN ") {
        Ok(Parsed {
            keys: parse_pem(text)?,
            is_set: false,
            skipped: Vec::new(),
        })
    } else {
        Err(KeyProblem::Unreadable)
    }
}

fn parse_pem(text: &str) -> Result<Vec<Key>, KeyProblem> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, _) = after.split_once("-----").ok_or(KeyProblem::Unreadable)?;
        let end = format!("-----END {label}-----");
        let (body, next) = after
            .split_once(end.as_str())
            .ok_or(KeyProblem::Unreadable)?;
        let block = Zeroizing::new(format!("-----BEGIN {body}{end}\n"));
        rest = next;
        if label.contains("ENCRYPTED") || body.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(KeyProblem::Encrypted);
        }
        let material = match label {
            "PUBLIC KEY" => Material::Public(PKey::public_key_from_pem(block.as_bytes())?),
            "RSA PUBLIC KEY" => Material::Public(PKey::from_rsa(Rsa::public_key_from_pem_pkcs1(
                block.as_bytes(),
            )?)?),
            "CERTIFICATE" => Material::Public(X509::from_pem(block.as_bytes())?.public_key()?),
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
                // An empty passphrase: without one OpenSSL would ask on the terminal.
                Material::Private(PKey::private_key_from_pem_passphrase(
                    block.as_bytes(),
                    b"",
                )?)
            }
            "EC PARAMETERS" => continue,
            _ => return Err(KeyProblem::Unsupported),
        };
        keys.push(Key {
            kid: None,
            usage: None,
            algorithm: None,
            kind: kind_of(&material)?,
            material,
        });
        if keys.len() > KEYS {
            return Err(KeyProblem::TooMany);
        }
    }
    Ok(keys)
}

fn kind_of(material: &Material) -> Result<KeyKind, KeyProblem> {
    match material {
        Material::Public(key) => kind_of_pkey(key),
        Material::Private(key) => kind_of_pkey(key),
        Material::Secret(secret) => Ok(KeyKind::Secret {
            bytes: secret.len(),
        }),
    }
}

fn kind_of_pkey<T: HasPublic>(key: &PKey<T>) -> Result<KeyKind, KeyProblem> {
    match key.id() {
        Id::RSA => {
            let rsa = key.rsa()?;
            check_rsa(rsa.n(), rsa.e())?;
            Ok(KeyKind::Rsa { bits: key.bits() })
        }
        Id::EC => match key.ec_key()?.group().curve_name() {
            Some(Nid::X9_62_PRIME256V1) => Ok(KeyKind::Ec(Curve::P256)),
            Some(Nid::SECP384R1) => Ok(KeyKind::Ec(Curve::P384)),
            Some(Nid::SECP521R1) => Ok(KeyKind::Ec(Curve::P521)),
            Some(_) | None => Err(KeyProblem::Unsupported),
        },
        Id::ED25519 => Ok(KeyKind::Ed25519),
        Id::X25519 => Ok(KeyKind::X25519),
        _ => Err(KeyProblem::Unsupported),
    }
}

fn check_rsa(n: &BigNumRef, e: &BigNumRef) -> Result<(), KeyProblem> {
    let bits = u32::try_from(n.num_bits()).map_err(|_| KeyProblem::Damaged)?;
    if bits < RSA_MIN_BITS {
        return Err(KeyProblem::RsaTooSmall);
    }
    if bits > RSA_MAX_BITS {
        return Err(KeyProblem::RsaTooLarge);
    }
    // 1 verifies anything; an even one is not an exponent; a long one costs CPU for each token.
    if e.num_bits() < 2 || e.num_bits() > 64 || !e.is_bit_set(0) {
        return Err(KeyProblem::RsaExponent);
    }
    Ok(())
}

/// [RFC 7517] 5: a set, each member by itself.
///
/// [RFC 7517]: https://www.rfc-editor.org/rfc/rfc7517#section-5
#[derive(Deserialize)]
struct RawSet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

fn parse_json(text: &str) -> Result<Parsed, KeyProblem> {
    let Ok(RawSet { keys: members }) = serde_json::from_str(text) else {
        return parse_single(text);
    };
    if members.len() > KEYS {
        return Err(KeyProblem::TooMany);
    }
    let mut parsed = Parsed {
        keys: Vec::new(),
        is_set: true,
        skipped: Vec::new(),
    };
    for (index, member) in members.into_iter().enumerate() {
        let jwk = object(member.get());
        let kid = jwk.as_ref().ok().and_then(|jwk| jwk.get("kid"));
        let kid = kid.and_then(Value::as_str).map(shown);
        let named = kid.map_or(String::new(), |kid| format!(" ({kid})"));
        match jwk.and_then(parse_jwk) {
            Ok(key) => parsed.keys.push(key),
            Err(problem) => parsed.skipped.push(SkippedKey {
                reason: format!("key {}{named} of the set skipped: {problem}", index + 1),
                is_fault: true,
            }),
        }
    }
    Ok(parsed)
}

/// A JWK, and not a set.
fn parse_single(text: &str) -> Result<Parsed, KeyProblem> {
    let object = object(text)?;
    if object.contains_key("keys") {
        return Err(KeyProblem::Unreadable);
    }
    Ok(Parsed {
        keys: vec![parse_jwk(object)?],
        is_set: false,
        skipped: Vec::new(),
    })
}

fn object(text: &str) -> Result<Map<String, Value>, KeyProblem> {
    json::object(text.as_bytes()).map_err(|error| match error {
        json::ObjectError::NotAnObject => KeyProblem::Unreadable,
        json::ObjectError::DuplicateName => KeyProblem::DuplicateName,
    })
}

/// [RFC 7517] 4 and [RFC 7518] 6.
///
/// [RFC 7517]: https://www.rfc-editor.org/rfc/rfc7517#section-4
/// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-6
fn parse_jwk(jwk: Map<String, Value>) -> Result<Key, KeyProblem> {
    let jwk = Jwk(jwk);
    let kid = jwk.text("kid")?.map(str::to_owned);
    let usage = match jwk.text("use")? {
        None => None,
        Some("sig") => Some(KeyUsage::Sign),
        Some("enc") => Some(KeyUsage::Encrypt),
        Some(_) => return Err(KeyProblem::Unsupported),
    };
    let algorithm = match jwk.text("alg")? {
        None => None,
        Some(name) => Some(name.parse().map_err(|_| KeyProblem::AlgorithmConflict)?),
    };
    let material = match jwk.text("kty")?.ok_or(KeyProblem::Unreadable)? {
        "RSA" => parse_rsa_jwk(&jwk)?,
        "EC" => parse_ec_jwk(&jwk)?,
        "OKP" => parse_okp_jwk(&jwk)?,
        "oct" => Material::Secret(jwk.bytes("k")?.ok_or(KeyProblem::Damaged)?),
        _ => return Err(KeyProblem::Unsupported),
    };
    let key = Key {
        kid,
        usage,
        algorithm,
        kind: kind_of(&material)?,
        material,
    };
    let stated = match (key.usage, key.algorithm) {
        (Some(KeyUsage::Sign), Some(Algorithm::KeyManagement(_)))
        | (Some(KeyUsage::Encrypt), Some(Algorithm::Signature(_))) => {
            return Err(KeyProblem::AlgorithmConflict);
        }
        (_, algorithm) => algorithm,
    };
    if stated.is_some()
        && key.signature_algorithms().is_empty()
        && key.key_management_algorithms().is_empty()
    {
        return Err(match key.kind {
            KeyKind::Secret { .. } => KeyProblem::SecretLength,
            KeyKind::Rsa { .. } | KeyKind::Ec(_) | KeyKind::Ed25519 | KeyKind::X25519 => {
                KeyProblem::AlgorithmConflict
            }
        });
    }
    Ok(key)
}

struct Jwk(Map<String, Value>);

impl Drop for Jwk {
    fn drop(&mut self) {
        for name in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            if let Some(Value::String(text)) = self.0.get_mut(name) {
                zeroize::Zeroize::zeroize(text);
            }
        }
    }
}

impl Jwk {
    fn text(&self, name: &str) -> Result<Option<&str>, KeyProblem> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or(KeyProblem::Unreadable),
        }
    }

    fn bytes(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyProblem> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| KeyProblem::Damaged)?;
        Ok(Some(Zeroizing::new(bytes)))
    }

    fn number(&self, name: &str) -> Result<Option<BigNum>, KeyProblem> {
        self.bytes(name)?
            .map(|bytes| {
                // Longer than any number of a key accepted here.
                if bytes.len() > 1024 {
                    return Err(KeyProblem::Damaged);
                }
                Ok(BigNum::from_slice(&bytes)?)
            })
            .transpose()
    }

    fn required(&self, name: &str) -> Result<BigNum, KeyProblem> {
        self.number(name)?.ok_or(KeyProblem::Damaged)
    }
}

fn parse_rsa_jwk(jwk: &Jwk) -> Result<Material, KeyProblem> {
    let n = jwk.required("n")?;
    let e = jwk.required("e")?;
    check_rsa(&n, &e)?;
    let Some(d) = jwk.number("d")? else {
        return Ok(Material::Public(PKey::from_rsa(
            Rsa::from_public_components(n, e)?,
        )?));
    };
    let rsa = RsaPrivateKeyBuilder::new(n, e, d)?
        .set_factors(jwk.required("p")?, jwk.required("q")?)?
        .set_crt_params(
            jwk.required("dp")?,
            jwk.required("dq")?,
            jwk.required("qi")?,
        )?
        .build();
    if !rsa.check_key()? {
        return Err(KeyProblem::Damaged);
    }
    Ok(Material::Private(PKey::from_rsa(rsa)?))
}

fn parse_ec_jwk(jwk: &Jwk) -> Result<Material, KeyProblem> {
    let curve = jwk.text("crv")?.ok_or(KeyProblem::Damaged)?;
    let curve = Curve::from_name(curve).ok_or(KeyProblem::Unsupported)?;
    let group = EcGroup::from_curve_name(curve.nid())?;
    let x = jwk.required("x")?;
    let y = jwk.required("y")?;
    let public = EcKey::from_public_key_affine_coordinates(&group, &x, &y)?;
    public.check_key()?;
    let Some(d) = jwk.number("d")? else {
        return Ok(Material::Public(PKey::from_ec_key(public)?));
    };
    let private = EcKey::from_private_components(&group, &d, public.public_key())?;
    private.check_key()?;
    Ok(Material::Private(PKey::from_ec_key(private)?))
}

fn parse_okp_jwk(jwk: &Jwk) -> Result<Material, KeyProblem> {
    let id = match jwk.text("crv")?.ok_or(KeyProblem::Damaged)? {
        "Ed25519" => Id::ED25519,
        "X25519" => Id::X25519,
        _ => return Err(KeyProblem::Unsupported),
    };
    let x = jwk.bytes("x")?.ok_or(KeyProblem::Damaged)?;
    let Some(d) = jwk.bytes("d")? else {
        return Ok(Material::Public(PKey::public_key_from_raw_bytes(&x, id)?));
    };
    let private = PKey::private_key_from_raw_bytes(&d, id)?;
    if private.raw_public_key()? != *x {
        return Err(KeyProblem::Damaged);
    }
    Ok(Material::Private(private))
}

fn public_members<T: HasPublic>(
    key: &PKey<T>,
    kind: KeyKind,
) -> Result<Map<String, Value>, ErrorStack> {
    let mut jwk = Map::new();
    let mut put = |name: &str, value: String| jwk.insert(name.to_owned(), Value::String(value));
    match kind {
        KeyKind::Rsa { .. } => {
            let rsa = key.rsa()?;
            put("kty", "RSA".to_owned());
            put("n", URL_SAFE_NO_PAD.encode(rsa.n().to_vec()));
            put("e", URL_SAFE_NO_PAD.encode(rsa.e().to_vec()));
        }
        KeyKind::Ec(curve) => {
            let ec = key.ec_key()?;
            let (x, y) = affine(ec.group(), ec.public_key(), curve)?;
            put("kty", "EC".to_owned());
            put("crv", curve.name().to_owned());
            put("x", URL_SAFE_NO_PAD.encode(x));
            put("y", URL_SAFE_NO_PAD.encode(y));
        }
        KeyKind::Ed25519 | KeyKind::X25519 => {
            put("kty", "OKP".to_owned());
            put("crv", kind.to_string());
            put("x", URL_SAFE_NO_PAD.encode(key.raw_public_key()?));
        }
        KeyKind::Secret { .. } => {}
    }
    Ok(jwk)
}

fn add_private_members(
    jwk: &mut Map<String, Value>,
    key: &PKey<Private>,
    kind: KeyKind,
) -> Result<(), ErrorStack> {
    let mut put = |name: &str, bytes: Zeroizing<Vec<u8>>| {
        jwk.insert(
            name.to_owned(),
            Value::String(URL_SAFE_NO_PAD.encode(bytes)),
        );
    };
    match kind {
        KeyKind::Rsa { .. } => {
            let rsa = key.rsa()?;
            put("d", Zeroizing::new(rsa.d().to_vec()));
            for (name, number) in [
                ("p", rsa.p()),
                ("q", rsa.q()),
                ("dp", rsa.dmp1()),
                ("dq", rsa.dmq1()),
                ("qi", rsa.iqmp()),
            ] {
                if let Some(number) = number {
                    put(name, Zeroizing::new(number.to_vec()));
                }
            }
        }
        KeyKind::Ec(_) => {
            let ec = key.ec_key()?;
            let width = i32::try_from(kind.coordinate_bytes()).unwrap_or(0);
            put("d", Zeroizing::new(ec.private_key().to_vec_padded(width)?));
        }
        KeyKind::Ed25519 | KeyKind::X25519 => put("d", Zeroizing::new(key.raw_private_key()?)),
        KeyKind::Secret { .. } => {}
    }
    Ok(())
}

fn affine(
    group: &openssl::ec::EcGroupRef,
    point: &openssl::ec::EcPointRef,
    curve: Curve,
) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
    let mut context = BigNumContext::new()?;
    let mut x = BigNum::new()?;
    let mut y = BigNum::new()?;
    point.affine_coordinates(group, &mut x, &mut y, &mut context)?;
    let width = i32::try_from(KeyKind::Ec(curve).coordinate_bytes()).unwrap_or(0);
    Ok((x.to_vec_padded(width)?, y.to_vec_padded(width)?))
}

#[cfg(test)]
mod tests {
    use super::super::mint::generate;
    use super::*;

    fn load(bytes: &[u8], usage: Option<KeyUsage>) -> Result<KeySet, KeyProblem> {
        let document = KeyDocument {
            name: "k",
            bytes,
            usage,
            kid: None,
        };
        KeySet::from_documents(&[document]).map_err(|error| error.problem)
    }

    fn problem(bytes: &[u8], usage: Option<KeyUsage>) -> KeyProblem {
        load(bytes, usage).unwrap_err()
    }

    fn generated(alg: &str) -> Key {
        generate(alg.parse().unwrap()).unwrap()
    }

    fn rsa_pem(bits: u32, exponent: u32) -> (Vec<u8>, Vec<u8>) {
        let e = BigNum::from_u32(exponent).unwrap();
        let key = PKey::from_rsa(Rsa::generate_with_e(bits, &e).unwrap()).unwrap();
        (
            key.public_key_to_pem().unwrap(),
            key.private_key_to_pem_pkcs8().unwrap(),
        )
    }

    #[test]
    fn every_kind_of_key_survives_each_form() {
        for alg in [
            "RS256",
            "ES256",
            "ES384",
            "ES512",
            "EdDSA",
            "RSA-OAEP-256",
            "ECDH-ES",
        ] {
            let mut key = generated(alg);
            key.set_kid(Some("a-name".to_owned()));
            let thumbprint = key.thumbprint();
            let public_jwk = serde_json::to_string(&key.public_jwk().unwrap()).unwrap();
            let forms = [
                (key.public_pem().unwrap(), false),
                (key.private_pem().unwrap().to_string(), true),
                (public_jwk, false),
                (key.private_jwk().unwrap().to_string(), true),
            ];
            for (text, secret) in forms {
                let document = KeyDocument {
                    name: "k",
                    bytes: text.as_bytes(),
                    usage: None,
                    kid: None,
                };
                let keys = Key::parse(&document).unwrap();
                let [read] = keys.as_slice() else {
                    panic!("{alg}")
                };
                assert_eq!(read.kind(), key.kind(), "{alg}");
                assert_eq!(read.is_secret(), secret, "{alg}");
                assert_eq!(read.thumbprint(), thumbprint, "{alg}");
            }
        }
    }

    #[test]
    fn a_thumbprint_is_that_of_rfc_7638() {
        let jwk = br#"{"kty":"RSA","e":"AQAB","alg":"RS256","kid":"2011-04-29","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#;
        let keys = Key::parse(&KeyDocument {
            name: "k",
            bytes: jwk,
            usage: None,
            kid: None,
        });
        let thumbprint = keys.unwrap().remove(0).thumbprint();
        assert_eq!(
            thumbprint.as_deref(),
            Some("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")
        );
    }

    // J-JWT-2
    #[test]
    fn algorithms_follow_from_the_kind_of_key_and_narrow_with_its_alg() {
        let names = |key: &Key| -> Vec<&str> {
            let signatures = key
                .signature_algorithms()
                .into_iter()
                .map(SignatureAlgorithm::name);
            let encryptions = key
                .key_management_algorithms()
                .into_iter()
                .map(KeyManagement::name);
            signatures.chain(encryptions).collect()
        };
        let parse = |text: &str| {
            let document = KeyDocument {
                name: "k",
                bytes: text.as_bytes(),
                usage: None,
                kid: None,
            };
            Key::parse(&document).unwrap().remove(0)
        };
        let rsa = parse(&generated("RS256").public_pem().unwrap());
        assert_eq!(
            names(&rsa),
            [
                "RS256",
                "RS384",
                "RS512",
                "PS256",
                "PS384",
                "PS512",
                "RSA-OAEP-256",
                "RSA-OAEP"
            ]
        );
        let p256 = parse(&generated("ES256").public_pem().unwrap());
        assert_eq!(
            names(&p256),
            ["ES256", "ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A256KW"]
        );
        let ed25519 = parse(&generated("EdDSA").public_pem().unwrap());
        assert_eq!(names(&ed25519), ["EdDSA"]);
        assert_eq!(names(&generated("PS256")), ["PS256"]);
        let secret = |k: usize, rest: &str| {
            parse(&format!(
                r#"{{"kty":"oct","k":"{}"{rest}}}"#,
                URL_SAFE_NO_PAD.encode(vec![7; k])
            ))
        };
        assert_eq!(names(&secret(32, r#","use":"sig""#)), ["HS256"]);
        assert_eq!(
            names(&secret(64, r#","use":"sig""#)),
            ["HS256", "HS384", "HS512"]
        );
        assert_eq!(names(&secret(32, r#","use":"enc""#)), ["dir", "A256KW"]);
        assert_eq!(names(&secret(16, r#","use":"enc""#)), ["dir"]);
        assert_eq!(names(&secret(32, r#","alg":"A256KW""#)), ["A256KW"]);
        assert!(names(&secret(31, r#","use":"sig""#)).is_empty());
    }

    #[test]
    fn a_weak_or_costly_rsa_key_is_refused() {
        let (small, small_private) = rsa_pem(1024, 65537);
        assert_eq!(problem(&small, None), KeyProblem::RsaTooSmall);
        assert_eq!(problem(&small_private, None), KeyProblem::RsaTooSmall);
        let n = URL_SAFE_NO_PAD.encode([0xC1; 640]);
        let large = format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#);
        assert_eq!(problem(large.as_bytes(), None), KeyProblem::RsaTooLarge);
        // In a set, too: it would be the one key that anybody can forge.
        let set = format!(r#"{{"keys":[{large}]}}"#);
        assert_eq!(problem(set.as_bytes(), None), KeyProblem::Empty);
        let n = URL_SAFE_NO_PAD.encode([0xC1; 256]);
        for e in ["AQ", "Ag", "AQAA", "AQAAAAAAAAAB"] {
            let jwk = format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"}}"#);
            assert_eq!(
                problem(jwk.as_bytes(), None),
                KeyProblem::RsaExponent,
                "{e}"
            );
        }
        assert!(load(&rsa_pem(2048, 3).0, None).is_ok());
    }

    #[test]
    fn a_public_key_verifies_and_a_private_key_decrypts_unless_told_otherwise() {
        let rsa = generated("RS256");
        let (public, private) = (rsa.public_pem().unwrap(), rsa.private_pem().unwrap());
        assert_eq!(load(public.as_bytes(), None).unwrap().counts(), (1, 0));
        assert_eq!(load(private.as_bytes(), None).unwrap().counts(), (0, 1));
        let sign = Some(KeyUsage::Sign);
        let encrypt = Some(KeyUsage::Encrypt);
        assert_eq!(
            problem(private.as_bytes(), sign),
            KeyProblem::PrivateVerifier
        );
        assert_eq!(
            problem(public.as_bytes(), encrypt),
            KeyProblem::NeedsPrivateKey
        );
        let ed25519 = generated("EdDSA").private_pem().unwrap();
        assert_eq!(
            problem(ed25519.as_bytes(), None),
            KeyProblem::PrivateVerifier
        );
        let jwk = rsa.private_jwk().unwrap();
        assert_eq!(problem(jwk.as_bytes(), encrypt), KeyProblem::UsageConflict);
        let secret = br#"{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;
        assert_eq!(problem(secret, None), KeyProblem::NoUsage);
        assert_eq!(load(secret, sign).unwrap().counts(), (1, 0));
        assert_eq!(load(secret, encrypt).unwrap().counts(), (0, 1));
        assert_eq!(
            problem(br#"{"kty":"oct","use":"sig","k":"AAAA"}"#, None),
            KeyProblem::SecretLength
        );
        assert_eq!(
            problem(br#"{"kty":"oct","alg":"HS256","k":"AAAA"}"#, None),
            KeyProblem::SecretLength
        );
    }

    #[test]
    fn a_set_is_used_as_far_as_it_is_understood() {
        let mut signer = generated("ES256");
        signer.set_kid(Some("s".to_owned()));
        let signer = serde_json::to_string(&signer.public_jwk().unwrap()).unwrap();
        let others = generated("RSA-OAEP-256");
        let others = serde_json::to_string(&others.public_jwk().unwrap()).unwrap();
        let set = format!(
            r#"{{"keys":[{signer},{others},{{"kty":"AKP","alg":"ML-DSA-44","pub":"AAAA"}},
            {{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}},{{"kty":"OKP","crv":"Ed448","x":"AA"}}]}}"#
        );
        let loaded = load(set.as_bytes(), None).unwrap();
        assert_eq!(loaded.counts(), (1, 0));
        assert_eq!(loaded.skipped().len(), 4, "{:?}", loaded.skipped());
        assert_eq!(
            problem(format!(r#"{{"keys":[{others}]}}"#).as_bytes(), None),
            KeyProblem::Empty
        );
        assert_eq!(problem(br#"{"keys":[]}"#, None), KeyProblem::Empty);
        // Outside a set, what is not understood is what was meant.
        assert_eq!(
            problem(br#"{"kty":"OKP","crv":"Ed448","x":"AA"}"#, None),
            KeyProblem::Unsupported
        );
    }

    #[test]
    fn a_set_with_one_bad_member_of_any_kind_is_used_without_it() {
        let signer = generated("ES256").public_jwk().unwrap();
        let signer = serde_json::to_string(&signer).unwrap();
        let e = BigNum::from_u32(65537).unwrap();
        let weak = Rsa::generate_with_e(1024, &e).unwrap();
        let weak = URL_SAFE_NO_PAD.encode(weak.n().to_vec());
        let mut private: Value =
            serde_json::from_str(&generated("ES256").private_jwk().unwrap()).unwrap();
        private["use"] = "sig".into();
        let cases = [
            (
                format!(r#"{{"kty":"RSA","kid":"a\nb","n":"{weak}","e":"AQAB"}}"#),
                "too small",
            ),
            (
                r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
                "damaged",
            ),
            (r#"{"kty":"EC","crv":7}"#.to_owned(), ""),
            (r#"{"kty":"EC","kty":"EC"}"#.to_owned(), "occurs twice"),
            (r#"{"kty":"AKP","pub":"AAAA"}"#.to_owned(), "not supported"),
            (r#"{"use":"sig"}"#.to_owned(), ""),
            (
                r#"{"kty":"oct","use":"sig","k":"AAAA"}"#.to_owned(),
                "wrong length",
            ),
            (private.to_string(), "belongs to their issuer"),
            ("7".to_owned(), ""),
            ("null".to_owned(), ""),
        ];
        for (bad, words) in cases {
            let set = format!(r#"{{"keys":[{bad},{signer}]}}"#);
            let loaded = load(set.as_bytes(), None).unwrap();
            assert_eq!(loaded.counts(), (1, 0), "{bad}");
            let [skipped] = loaded.skipped() else {
                panic!("{bad}: {:?}", loaded.skipped());
            };
            assert!(skipped.is_fault, "{bad}");
            assert!(skipped.reason.starts_with("k: "), "{}", skipped.reason);
            assert!(skipped.reason.contains(words), "{}", skipped.reason);
            assert!(!skipped.reason.contains('\n'), "{}", skipped.reason);

            // Alone it leaves nothing, and the error says what was wrong with it.
            let alone = format!(r#"{{"keys":[{bad}]}}"#);
            let document = KeyDocument {
                name: "k",
                bytes: alone.as_bytes(),
                usage: None,
                kid: None,
            };
            let error = KeySet::from_documents(&[document]).unwrap_err();
            assert_eq!(error.problem, KeyProblem::Empty, "{bad}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let twice = format!(r#"{{"keys":[{signer}],"keys":[{signer}]}}"#);
        assert_eq!(problem(twice.as_bytes(), None), KeyProblem::DuplicateName);
    }

    #[test]
    fn what_is_not_a_key_says_so_and_shows_nothing() {
        let private = generated("ES256").private_pem().unwrap();
        let damaged = private.replacen("MIG", "MIH", 1);
        let other = generated("ES256").public_jwk().unwrap();
        let mut mixed: Value =
            serde_json::from_str(&generated("ES256").private_jwk().unwrap()).unwrap();
        mixed["x"] = other["x"].clone();
        mixed["y"] = other["y"].clone();
        let cases: Vec<(String, KeyProblem)> = vec![
            (String::new(), KeyProblem::Unreadable),
            ("ssh-ed25519 AAAA".to_owned(), KeyProblem::Unreadable),
            ("{}".to_owned(), KeyProblem::Unreadable),
            (
                r#"{"kty":"oct","k":"AAAA","k":"AAAA"}"#.to_owned(),
                KeyProblem::DuplicateName,
            ),
            (
                r#"{"kty":"RSA","e":"AQAB"}"#.to_owned(),
                KeyProblem::Damaged,
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA".to_owned(),
                KeyProblem::Unreadable,
            ),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----".to_owned(),
                KeyProblem::Damaged,
            ),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"
                    .to_owned(),
                KeyProblem::Unsupported,
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----"
                    .to_owned(),
                KeyProblem::Encrypted,
            ),
            (damaged, KeyProblem::Damaged),
            (mixed.to_string(), KeyProblem::Damaged),
        ];
        for (text, expected) in cases {
            let document = KeyDocument {
                name: "a.key",
                bytes: text.as_bytes(),
                usage: None,
                kid: None,
            };
            let error = KeySet::from_documents(&[document]).unwrap_err();
            assert_eq!(error.problem, expected, "{text}");
            assert!(
                error.to_string().starts_with("a.key: ") && !error.to_string().contains("AAAA")
            );
        }
        assert!(!format!("{:?}", generated("HS256")).contains("secret("));
    }

    #[test]
    fn a_passphrase_is_not_asked_for() {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let cipher = openssl::symm::Cipher::aes_128_cbc();
        let modern = key
            .private_key_to_pem_pkcs8_passphrase(cipher, b"x")
            .unwrap();
        let legacy = key
            .rsa()
            .unwrap()
            .private_key_to_pem_passphrase(cipher, b"x")
            .unwrap();
        assert_eq!(problem(&modern, None), KeyProblem::Encrypted);
        assert_eq!(problem(&legacy, None), KeyProblem::Encrypted);
    }

    #[test]
    fn older_pem_forms_and_bundles_are_read() {
        let rsa = Rsa::generate(2048).unwrap();
        let ec = EcKey::generate(&EcGroup::from_curve_name(Nid::SECP384R1).unwrap()).unwrap();
        assert_eq!(
            load(&rsa.public_key_to_pem_pkcs1().unwrap(), None)
                .unwrap()
                .counts(),
            (1, 0)
        );
        assert_eq!(
            load(&rsa.private_key_to_pem().unwrap(), None)
                .unwrap()
                .counts(),
            (0, 1)
        );
        assert_eq!(
            load(&ec.private_key_to_pem().unwrap(), None)
                .unwrap()
                .counts(),
            (0, 1)
        );
        let bundle = [
            rsa.public_key_to_pem().unwrap(),
            ec.public_key_to_pem().unwrap(),
        ]
        .concat();
        assert_eq!(load(&bundle, None).unwrap().counts(), (2, 0));
        let document = KeyDocument {
            name: "k",
            bytes: &bundle,
            usage: None,
            kid: Some("x"),
        };
        assert_eq!(
            KeySet::from_documents(&[document]).unwrap_err().problem,
            KeyProblem::KidForMany
        );
    }

    #[test]
    fn the_number_of_keys_tried_for_one_token_is_bounded() {
        let pems: Vec<String> = (0..12)
            .map(|_| generated("ES256").public_pem().unwrap())
            .collect();
        let set = load(pems.concat().as_bytes(), None).unwrap();
        assert_eq!(
            set.verifiers(SignatureAlgorithm::Es256, None).count(),
            TRIES
        );
        assert_eq!(
            problem(pems.concat().repeat(6).as_bytes(), None),
            KeyProblem::TooMany
        );
        assert_eq!(
            problem(&vec![b' '; DOCUMENT_BYTES + 1], None),
            KeyProblem::TooLarge
        );
    }
}
