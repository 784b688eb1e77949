//! Makes tokens and keys: for `jetway token` and `jetway keys`, for the demo, and for tests.
//!
//! The gateway itself never mints: it holds no key that could.

use std::fmt;

use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::algorithm::{Algorithm, ContentEncryption, KeyManagement, SignatureAlgorithm};
use super::claims::SECRET_CLAIMS;
use super::jose::{self, Encrypter, Signer, UnusableKey};
use super::key::{Curve, GeneratedMaterial, Key, KeyDocument, KeyError, KeyKind, KeyProblem};

/// Modulus of generated RSA keys, bits: what every client library takes, at 0.3 ms for each decryption.
const RSA_BITS: u32 = 2048;

/// A key that signs tokens.
pub struct SigningKey {
    signer: Signer,
    kid: Option<String>,
}

/// A key that tokens are encrypted to.
pub struct EncryptionKey {
    encrypter: Encrypter,
    enc: ContentEncryption,
    kid: Option<String>,
}

/// Why no token was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The claims are not a JSON object.
    #[error("claims are not a JSON object")]
    NotAnObject,
    /// A secret without encryption.
    #[error("claim {0} is a secret and the token would not be encrypted")]
    SecretUnencrypted(&'static str),
    /// The key does not do what its kind promises.
    #[error("the cryptographic library refused the key")]
    Key,
}

impl SigningKey {
    /// The signing key in a document; where it holds several, the one that `document.kid` names.
    ///
    /// # Errors
    /// Where there is none, or `algorithm` does not fit it.
    pub fn from_document(
        document: &KeyDocument<'_>,
        algorithm: Option<SignatureAlgorithm>,
    ) -> Result<Self, KeyError> {
        let key = pick(document, |key| !key.signature_algorithms().is_empty())?;
        Self::from_key(&key, algorithm).map_err(|problem| document.error(problem))
    }

    /// The signing key in `key`.
    ///
    /// # Errors
    /// Where it cannot sign, or not with `algorithm`.
    pub fn from_key(key: &Key, algorithm: Option<SignatureAlgorithm>) -> Result<Self, KeyProblem> {
        let allowed = key.signature_algorithms();
        let algorithm = match algorithm {
            Some(algorithm) if allowed.contains(&algorithm) => algorithm,
            Some(_) => return Err(KeyProblem::AlgorithmConflict),
            None => allowed.first().copied().ok_or(KeyProblem::UsageConflict)?,
        };
        let signer = match key.secret() {
            Some(secret) => Signer::from_secret(algorithm, secret),
            None => Signer::from_pkcs8(algorithm, &key.pkcs8()?),
        };
        let signer = signer.map_err(|UnusableKey| KeyProblem::Library)?;
        Ok(Self {
            signer,
            kid: key.kid().map(str::to_owned),
        })
    }

    /// The algorithm it signs with.
    #[must_use]
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.signer.algorithm
    }

    pub(super) fn sign(
        &self,
        header: &Map<String, Value>,
        payload: &[u8],
    ) -> Result<String, MintError> {
        let signed = self.signer.sign(header, payload);
        signed.map_err(|UnusableKey| MintError::Key)
    }

    /// Names the key in the tokens it signs.
    #[must_use]
    pub fn with_kid(mut self, kid: Option<String>) -> Self {
        self.kid = kid;
        self
    }
}

impl EncryptionKey {
    /// The encryption key in a document; where it holds several, the one that `document.kid` names.
    ///
    /// # Errors
    /// Where there is none, or `algorithm` does not fit it.
    pub fn from_document(
        document: &KeyDocument<'_>,
        algorithm: Option<KeyManagement>,
    ) -> Result<Self, KeyError> {
        let key = pick(document, |key| !key.key_management_algorithms().is_empty())?;
        Self::from_key(&key, algorithm).map_err(|problem| document.error(problem))
    }

    /// The encryption key in `key`, its public half if it has two.
    ///
    /// # Errors
    /// Where it cannot encrypt, or not with `algorithm`.
    pub fn from_key(key: &Key, algorithm: Option<KeyManagement>) -> Result<Self, KeyProblem> {
        let allowed = key.key_management_algorithms();
        let algorithm = match algorithm {
            Some(algorithm) if allowed.contains(&algorithm) => algorithm,
            Some(_) => return Err(KeyProblem::AlgorithmConflict),
            None => allowed.first().copied().ok_or(KeyProblem::UsageConflict)?,
        };
        let (encrypter, enc) = match key.secret() {
            // With `dir` the secret is the content key, so its length decides.
            Some(secret) if algorithm == KeyManagement::Dir && secret.len() == 16 => (
                Encrypter::from_secret(algorithm, secret),
                ContentEncryption::A128Gcm,
            ),
            Some(secret) => (
                Encrypter::from_secret(algorithm, secret),
                ContentEncryption::A256Gcm,
            ),
            None => (
                Encrypter::from_spki(algorithm, &key.spki()?),
                ContentEncryption::A256Gcm,
            ),
        };
        let encrypter = encrypter.map_err(|UnusableKey| KeyProblem::Library)?;
        Ok(Self {
            encrypter,
            enc,
            kid: key.kid().map(str::to_owned),
        })
    }

    /// The algorithm it encrypts with.
    #[must_use]
    pub fn algorithm(&self) -> KeyManagement {
        self.encrypter.algorithm
    }

    /// Names the key in the tokens it encrypts.
    #[must_use]
    pub fn with_kid(mut self, kid: Option<String>) -> Self {
        self.kid = kid;
        self
    }

    /// Encrypts the content with `enc`.
    #[must_use]
    pub fn with_content_encryption(mut self, enc: ContentEncryption) -> Self {
        self.enc = enc;
        self
    }
}

/// Makes a token: signed, encrypted, or signed and then encrypted. With neither key it is unsecured (`alg: none`),
/// which gateways refuse outside of development.
///
/// # Errors
/// [`MintError`]; among them secrets in a token that would not be encrypted.
pub fn mint(
    claims: &Value,
    sign: Option<&SigningKey>,
    encrypt: Option<&EncryptionKey>,
) -> Result<String, MintError> {
    let object = claims.as_object().ok_or(MintError::NotAnObject)?;
    if encrypt.is_none()
        && let Some(secret) = SECRET_CLAIMS
            .into_iter()
            .find(|secret| object.contains_key(*secret))
    {
        return Err(MintError::SecretUnencrypted(secret));
    }
    let payload = Zeroizing::new(serde_json::to_vec(object).map_err(|_| MintError::NotAnObject)?);
    let signed = sign
        .map(|key| {
            let header = header(key.algorithm().name(), key.kid.as_deref());
            key.signer.sign(&header, &payload).map(Zeroizing::new)
        })
        .transpose()
        .map_err(|UnusableKey| MintError::Key)?;
    match (signed, encrypt) {
        (Some(signed), None) => Ok(signed.as_str().to_owned()),
        (Some(signed), Some(key)) => key.wrap(&signed),
        (None, Some(key)) => key.seal(&payload, None),
        (None, None) => {
            let unsigned = jose::unsigned(&header("none", None), &payload).ok_or(MintError::Key)?;
            Ok(format!("{unsigned}."))
        }
    }
}

impl EncryptionKey {
    /// Encrypts a token that is signed already; everybody can who has the gateway's public key.
    ///
    /// # Errors
    /// The library refuses the key.
    pub fn wrap(&self, signed: &str) -> Result<String, MintError> {
        self.seal(signed.as_bytes(), Some("JWT"))
    }

    fn seal(&self, plaintext: &[u8], cty: Option<&str>) -> Result<String, MintError> {
        let mut header = header(self.algorithm().name(), self.kid.as_deref());
        header.insert("enc".to_owned(), json!(self.enc.name()));
        if let Some(cty) = cty {
            header.insert("cty".to_owned(), json!(cty));
        }
        self.encrypter
            .encrypt(header, plaintext)
            .map_err(|UnusableKey| MintError::Key)
    }
}

fn header(alg: &str, kid: Option<&str>) -> Map<String, Value> {
    let mut header = Map::new();
    header.insert("alg".to_owned(), json!(alg));
    header.insert("typ".to_owned(), json!("JWT"));
    if let Some(kid) = kid {
        header.insert("kid".to_owned(), json!(kid));
    }
    header
}

/// Makes a key for one algorithm: RSA of 2048 bits, elliptic curves by the algorithm (P-256 for key agreement), secrets
/// as long as the hash or cipher takes.
///
/// # Errors
/// [`MintError::Key`] where the library fails.
pub fn generate(algorithm: Algorithm) -> Result<Key, MintError> {
    generate_material(algorithm).map_err(|_| MintError::Key)
}

fn generate_material(algorithm: Algorithm) -> Result<Key, ErrorStack> {
    use KeyManagement as K;
    use SignatureAlgorithm as S;
    let (kind, material) = match algorithm {
        Algorithm::Signature(S::Rs256 | S::Rs384 | S::Rs512 | S::Ps256 | S::Ps384 | S::Ps512)
        | Algorithm::KeyManagement(K::RsaOaep | K::RsaOaep256) => {
            let key = PKey::from_rsa(Rsa::generate(RSA_BITS)?)?;
            (
                KeyKind::Rsa { bits: RSA_BITS },
                GeneratedMaterial::Private(key),
            )
        }
        Algorithm::Signature(S::Es256)
        | Algorithm::KeyManagement(K::EcdhEs | K::EcdhEsA128Kw | K::EcdhEsA256Kw) => {
            generate_ec(Curve::P256)?
        }
        Algorithm::Signature(S::Es384) => generate_ec(Curve::P384)?,
        Algorithm::Signature(S::Es512) => generate_ec(Curve::P521)?,
        Algorithm::Signature(S::EdDsa) => (
            KeyKind::Ed25519,
            GeneratedMaterial::Private(PKey::generate_ed25519()?),
        ),
        Algorithm::Signature(S::Hs256) | Algorithm::KeyManagement(K::Dir | K::A256Kw) => {
            generate_secret(32)?
        }
        Algorithm::Signature(S::Hs384) => generate_secret(48)?,
        Algorithm::Signature(S::Hs512) => generate_secret(64)?,
    };
    Ok(Key::generated(algorithm, kind, material))
}

fn generate_ec(curve: Curve) -> Result<(KeyKind, GeneratedMaterial), ErrorStack> {
    let group = EcGroup::from_curve_name(curve.nid())?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    Ok((KeyKind::Ec(curve), GeneratedMaterial::Private(key)))
}

fn generate_secret(bytes: usize) -> Result<(KeyKind, GeneratedMaterial), ErrorStack> {
    let mut secret = Zeroizing::new(vec![0; bytes]);
    openssl::rand::rand_bytes(&mut secret)?;
    Ok((KeyKind::Secret { bytes }, GeneratedMaterial::Secret(secret)))
}

/// The one key that fits. `document.kid` selects among several and names a single one.
fn pick(document: &KeyDocument<'_>, fits: impl Fn(&Key) -> bool) -> Result<Key, KeyError> {
    let mut keys = Key::parse(document)?;
    keys.retain(|key| {
        let usage_fits = match (document.usage, key.usage()) {
            (Some(wanted), Some(stated)) => wanted == stated,
            (None, _) | (_, None) => true,
        };
        usage_fits && fits(key)
    });
    if keys.len() > 1 && document.kid.is_some() {
        keys.retain(|key| key.kid() == document.kid);
    }
    match keys.len() {
        0 => Err(document.error(KeyProblem::UsageConflict)),
        1 => {
            let mut key = keys
                .pop()
                .ok_or_else(|| document.error(KeyProblem::Empty))?;
            if let Some(kid) = document.kid {
                key.set_kid(Some(kid.to_owned()));
            }
            Ok(key)
        }
        _ => Err(document.error(KeyProblem::Ambiguous)),
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("algorithm", &self.algorithm())
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptionKey")
            .field("algorithm", &self.algorithm())
            .field("enc", &self.enc)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}
