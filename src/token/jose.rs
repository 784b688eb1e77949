//! JWS and JWE in compact form ([RFC 7515], [RFC 7516]): the only file that calls josekit.
//!
//! josekit 0.10.3 does the algorithms, one key and one algorithm at a time. Everything that reads a stranger's token
//! is done here, because josekit's own reading of tokens is not safe. The guards, each with a test below that shows
//! the fault in josekit and the refusal here:
//!
//! | josekit | here |
//! |---|---|
//! | takes GCM tags cut to one byte: a forgery in 256 tries | tag 22 characters, iv 16, else refused |
//! | CBC-HMAC decrypts before it checks: a padding oracle | A128GCM and A256GCM are the only `enc` there is |
//! | inflates `zip` without limit | `zip` is refused |
//! | panics on a wrapped key shorter than 8 bytes | a wrapped key has the one length its algorithm gives it |
//! | panics on `exp: 2^64-1`, passes tokens without `exp` | its payload types are not used; see [`validity`](super::validity) |
//! | takes the last of two equal header names | refused |
//! | ignores a `crit` it does not know if it is not an array of strings | `crit` and `b64` are refused |
//! | compares MACs byte by byte until one differs | constant-time comparison |
//! | distinct errors for distinct cryptographic failures | one: [`Unauthentic`] |
//! | plaintext and content keys stay in memory | [`Zeroizing`] |
//!
//! [RFC 7515]: https://www.rfc-editor.org/rfc/rfc7515#section-3.1
//! [RFC 7516]: https://www.rfc-editor.org/rfc/rfc7516#section-3.1

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use josekit::jwe::alg::aeskw::AeskwJweAlgorithm;
use josekit::jwe::alg::direct::DirectJweAlgorithm;
use josekit::jwe::alg::ecdh_es::EcdhEsJweAlgorithm;
use josekit::jwe::alg::rsaes::RsaesJweAlgorithm;
use josekit::jwe::enc::aesgcm::AesgcmJweEncryption;
use josekit::jwe::{JweContentEncryption, JweContext, JweDecrypter, JweEncrypter, JweHeader};
use josekit::jws::alg::ecdsa::EcdsaJwsAlgorithm;
use josekit::jws::alg::eddsa::EddsaJwsAlgorithm;
use josekit::jws::alg::hmac::HmacJwsAlgorithm;
use josekit::jws::alg::rsassa::RsassaJwsAlgorithm;
use josekit::jws::alg::rsassa_pss::RsassaPssJwsAlgorithm;
use josekit::jws::{JwsSigner, JwsVerifier};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::TokenError;
use super::algorithm::{ContentEncryption, KeyManagement, SignatureAlgorithm};
use super::json;
use crate::limits;

/// Largest protected header, characters of base64url. An `epk` takes 250; certificate chains (`x5c`) are no use here.
const HEADER_CHARS: usize = 4096;

/// Longest `kid`, characters.
const KID_CHARS: usize = 256;

/// Characters of a 96-bit initialisation vector in base64url.
const IV_CHARS: usize = 16;

/// Characters of a 128-bit authentication tag in base64url.
const TAG_CHARS: usize = 22;

/// Whatever cryptography has against a token: it does not say which part failed, so that nobody can ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unauthentic;

/// A key that josekit or OpenSSL does not take for an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnusableKey;

/// A token taken apart, nothing of it believed yet.
#[derive(Debug)]
pub(super) enum Compact<'a> {
    Jws(Jws<'a>),
    Jwe(Jwe<'a>),
}

/// `header.payload.signature`
#[derive(Debug)]
pub(super) struct Jws<'a> {
    pub(super) header: Header,
    pub(super) alg: JwsAlg,
    /// `header.payload`, what the signature covers.
    pub(super) signing_input: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// `alg` of a JWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JwsAlg {
    None,
    Signed(SignatureAlgorithm),
}

/// `header.encrypted_key.iv.ciphertext.tag`
#[derive(Debug)]
pub(super) struct Jwe<'a> {
    pub(super) header: Header,
    pub(super) alg: KeyManagement,
    pub(super) enc: ContentEncryption,
    header_text: &'a str,
    encrypted_key: &'a str,
    iv: &'a str,
    ciphertext: &'a str,
    tag: &'a str,
}

/// The parts of a protected header that this gateway reads. Keys that a header brings along (`jwk`, `jku`, `x5c`,
/// `x5u`) are not among them: a token does not say whom to trust.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) kid: Option<String>,
    pub(super) typ: Option<String>,
    pub(super) cty: Option<String>,
    key_agreement: Map<String, Value>,
}

impl<'a> Compact<'a> {
    /// Takes `text` apart and checks all that can be checked without a key.
    pub(super) fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > limits::TOKEN_BYTES {
            return Err(TokenError::Oversized { bytes: text.len() });
        }
        if !text.bytes().all(is_compact_byte) {
            return Err(TokenError::Malformed(
                "it has characters that are not base64url",
            ));
        }
        let mut parts = [""; 5];
        let mut count = 0;
        for part in text.split('.') {
            *parts.get_mut(count).ok_or(WRONG_PARTS)? = part;
            count += 1;
        }
        let [first, second, third, fourth, fifth] = parts;
        match count {
            3 => Self::parse_jws(text, first, second, third),
            5 => Self::parse_jwe(first, second, third, fourth, fifth),
            _ => Err(WRONG_PARTS),
        }
    }

    fn parse_jws(
        text: &'a str,
        header_text: &'a str,
        payload: &'a str,
        signature: &'a str,
    ) -> Result<Self, TokenError> {
        let (header, mut claims) = parse_header(header_text)?;
        let alg = match take_text(&mut claims, "alg")?.as_deref() {
            Some("none") => JwsAlg::None,
            Some(name) => JwsAlg::Signed(name.parse().map_err(|_| TokenError::Algorithm)?),
            None => return Err(TokenError::Header("it has no alg")),
        };
        let signing_input = text
            .rsplit_once('.')
            .map(|(signing_input, _)| signing_input)
            .ok_or(WRONG_PARTS)?;
        Ok(Self::Jws(Jws {
            header,
            alg,
            signing_input,
            payload,
            signature,
        }))
    }

    fn parse_jwe(
        header_text: &'a str,
        encrypted_key: &'a str,
        iv: &'a str,
        ciphertext: &'a str,
        tag: &'a str,
    ) -> Result<Self, TokenError> {
        let (mut header, mut claims) = parse_header(header_text)?;
        let alg = take_text(&mut claims, "alg")?.ok_or(TokenError::Header("it has no alg"))?;
        let alg: KeyManagement = alg.parse().map_err(|_| TokenError::Algorithm)?;
        let enc = take_text(&mut claims, "enc")?.ok_or(TokenError::Header("it has no enc"))?;
        let enc: ContentEncryption = enc.parse().map_err(|_| TokenError::Algorithm)?;
        if iv.len() != IV_CHARS {
            return Err(TokenError::Malformed(
                "its initialisation vector is not 96 bits",
            ));
        }
        if tag.len() != TAG_CHARS {
            return Err(TokenError::Malformed(
                "its authentication tag is not 128 bits",
            ));
        }
        // For josekit, which reads them from a header: these three and no others.
        for name in ["epk", "apu", "apv"] {
            if let Some(value) = claims.remove(name) {
                header.key_agreement.insert(name.to_owned(), value);
            }
        }
        Ok(Self::Jwe(Jwe {
            header,
            alg,
            enc,
            header_text,
            encrypted_key,
            iv,
            ciphertext,
            tag,
        }))
    }
}

impl Jws<'_> {
    /// Whether there is no signature at all, as `alg: none` demands ([RFC 7518] 3.6).
    ///
    /// [RFC 7518]: https://www.rfc-editor.org/rfc/rfc7518#section-3.6
    pub(super) fn is_unsigned(&self) -> bool {
        self.signature.is_empty()
    }

    /// The payload, whoever wrote it.
    pub(super) fn unverified_payload(&self) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        decode(self.payload).ok_or(TokenError::Malformed("its payload is not base64url"))
    }
}

/// One key, for one signature algorithm.
#[derive(Debug)]
pub(super) struct SignatureVerifier {
    pub(super) algorithm: SignatureAlgorithm,
    inner: VerifierKind,
}

#[derive(Debug)]
enum VerifierKind {
    PublicKey(Box<dyn JwsVerifier>),
    /// josekit's own verifier compares in variable time, so the MAC is made again and compared here.
    Mac(Box<dyn JwsSigner>),
}

impl SignatureVerifier {
    /// For a public key as SubjectPublicKeyInfo.
    pub(super) fn from_spki(
        algorithm: SignatureAlgorithm,
        spki: &[u8],
    ) -> Result<Self, UnusableKey> {
        use SignatureAlgorithm as A;
        let verifier: Box<dyn JwsVerifier> = match algorithm {
            A::Rs256 | A::Rs384 | A::Rs512 => Box::new(
                rsassa(algorithm)?
                    .verifier_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Ps256 | A::Ps384 | A::Ps512 => Box::new(
                rsassa_pss(algorithm)?
                    .verifier_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Es256 | A::Es384 | A::Es512 => Box::new(
                ecdsa(algorithm)?
                    .verifier_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::EdDsa => Box::new(
                EddsaJwsAlgorithm::Eddsa
                    .verifier_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Hs256 | A::Hs384 | A::Hs512 => return Err(UnusableKey),
        };
        Ok(Self {
            algorithm,
            inner: VerifierKind::PublicKey(verifier),
        })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: SignatureAlgorithm,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        let signer = hmac(algorithm)?
            .signer_from_bytes(secret)
            .map_err(|_| UnusableKey)?;
        Ok(Self {
            algorithm,
            inner: VerifierKind::Mac(Box::new(signer)),
        })
    }

    /// The payload, if this key signed it.
    pub(super) fn verify(&self, jws: &Jws<'_>) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
        if jws.alg != JwsAlg::Signed(self.algorithm) {
            return Err(Unauthentic);
        }
        let message = jws.signing_input.as_bytes();
        let signature = decode(jws.signature).ok_or(Unauthentic)?;
        match &self.inner {
            VerifierKind::PublicKey(verifier) => {
                verifier
                    .verify(message, &signature)
                    .map_err(|_| Unauthentic)?;
            }
            VerifierKind::Mac(signer) => {
                let expected = Zeroizing::new(signer.sign(message).map_err(|_| Unauthentic)?);
                if !bool::from(expected.as_slice().ct_eq(signature.as_slice())) {
                    return Err(Unauthentic);
                }
            }
        }
        decode(jws.payload).ok_or(Unauthentic)
    }
}

/// One key, for one way to agree on the content key.
#[derive(Debug)]
pub(super) struct Decrypter {
    pub(super) algorithm: KeyManagement,
    inner: Box<dyn JweDecrypter>,
    /// Length of an RSA modulus, which is that of every key encrypted to it; 0 for other keys.
    modulus_bytes: usize,
    /// Length of a coordinate of the key's curve; 0 where there is none.
    coordinate_bytes: usize,
}

impl Decrypter {
    /// For a private key as PKCS #8.
    pub(super) fn from_pkcs8(
        algorithm: KeyManagement,
        pkcs8: &[u8],
        modulus_bytes: usize,
        coordinate_bytes: usize,
    ) -> Result<Self, UnusableKey> {
        use KeyManagement as A;
        let inner: Box<dyn JweDecrypter> = match algorithm {
            A::RsaOaep | A::RsaOaep256 => Box::new(
                rsaes(algorithm)?
                    .decrypter_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw => Box::new(
                ecdh_es(algorithm)?
                    .decrypter_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Dir | A::A256Kw => return Err(UnusableKey),
        };
        Ok(Self {
            algorithm,
            inner,
            modulus_bytes,
            coordinate_bytes,
        })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: KeyManagement,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        use KeyManagement as A;
        let inner: Box<dyn JweDecrypter> = match algorithm {
            A::Dir => Box::new(
                DirectJweAlgorithm::Dir
                    .decrypter_from_bytes(secret)
                    .map_err(|_| UnusableKey)?,
            ),
            A::A256Kw => Box::new(
                AeskwJweAlgorithm::A256kw
                    .decrypter_from_bytes(secret)
                    .map_err(|_| UnusableKey)?,
            ),
            A::RsaOaep | A::RsaOaep256 | A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw => {
                return Err(UnusableKey);
            }
        };
        Ok(Self {
            algorithm,
            inner,
            modulus_bytes: 0,
            coordinate_bytes: 0,
        })
    }

    /// The plaintext, if it was encrypted to this key and nobody changed it.
    pub(super) fn decrypt(&self, jwe: &Jwe<'_>) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
        if jwe.alg != self.algorithm {
            return Err(Unauthentic);
        }
        let encrypted_key = decode(jwe.encrypted_key).ok_or(Unauthentic)?;
        if encrypted_key.len() != self.encrypted_key_bytes(jwe.enc) {
            return Err(Unauthentic);
        }
        let iv = decode(jwe.iv).ok_or(Unauthentic)?;
        let ciphertext = decode(jwe.ciphertext).ok_or(Unauthentic)?;
        let tag = decode(jwe.tag).ok_or(Unauthentic)?;
        let header = self.key_agreement_header(jwe)?;
        let encryption = content_encryption(jwe.enc);

        let wrapped = (!encrypted_key.is_empty()).then_some(encrypted_key.as_slice());
        let content_key = self
            .inner
            .decrypt(wrapped, &encryption, &header)
            .map(|key| Zeroizing::new(key.into_owned()))
            .map_err(|_| Unauthentic)?;
        if content_key.len() != jwe.enc.key_bytes() {
            return Err(Unauthentic);
        }
        encryption
            .decrypt(
                &content_key,
                Some(&iv),
                &ciphertext,
                jwe.header_text.as_bytes(),
                Some(&tag),
            )
            .map(Zeroizing::new)
            .map_err(|_| Unauthentic)
    }

    /// What the second part of a token must measure. josekit subtracts 8 from it unchecked.
    fn encrypted_key_bytes(&self, enc: ContentEncryption) -> usize {
        use KeyManagement as A;
        match self.algorithm {
            A::Dir | A::EcdhEs => 0,
            A::RsaOaep | A::RsaOaep256 => self.modulus_bytes,
            A::EcdhEsA128Kw | A::EcdhEsA256Kw | A::A256Kw => enc.key_bytes() + KEY_WRAP_BYTES,
        }
    }

    /// A header with the key agreement's own members and nothing else of the sender's.
    fn key_agreement_header(&self, jwe: &Jwe<'_>) -> Result<JweHeader, Unauthentic> {
        use KeyManagement as A;
        match self.algorithm {
            A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw => {
                let epk = jwe
                    .header
                    .key_agreement
                    .get("epk")
                    .and_then(Value::as_object);
                let epk = epk.ok_or(Unauthentic)?;
                for name in ["x", "y"] {
                    // X25519 has no y; josekit asks for it where the curve needs it.
                    if let Some(coordinate) = epk.get(name) {
                        let coordinate = coordinate.as_str().and_then(decode).ok_or(Unauthentic)?;
                        if coordinate.len() != self.coordinate_bytes {
                            return Err(Unauthentic);
                        }
                    }
                }
                JweHeader::from_map(jwe.header.key_agreement.clone()).map_err(|_| Unauthentic)
            }
            A::RsaOaep | A::RsaOaep256 | A::Dir | A::A256Kw => Ok(JweHeader::new()),
        }
    }
}

/// A key that signs, for one algorithm.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) algorithm: SignatureAlgorithm,
    inner: Box<dyn JwsSigner>,
}

impl Signer {
    /// For a private key as PKCS #8.
    pub(super) fn from_pkcs8(
        algorithm: SignatureAlgorithm,
        pkcs8: &[u8],
    ) -> Result<Self, UnusableKey> {
        use SignatureAlgorithm as A;
        let inner: Box<dyn JwsSigner> = match algorithm {
            A::Rs256 | A::Rs384 | A::Rs512 => Box::new(
                rsassa(algorithm)?
                    .signer_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Ps256 | A::Ps384 | A::Ps512 => Box::new(
                rsassa_pss(algorithm)?
                    .signer_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Es256 | A::Es384 | A::Es512 => Box::new(
                ecdsa(algorithm)?
                    .signer_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::EdDsa => Box::new(
                EddsaJwsAlgorithm::Eddsa
                    .signer_from_der(pkcs8)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Hs256 | A::Hs384 | A::Hs512 => return Err(UnusableKey),
        };
        Ok(Self { algorithm, inner })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: SignatureAlgorithm,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        let inner = hmac(algorithm)?
            .signer_from_bytes(secret)
            .map_err(|_| UnusableKey)?;
        Ok(Self {
            algorithm,
            inner: Box::new(inner),
        })
    }

    /// The compact form of `payload` under `header`, which names the algorithm already.
    pub(super) fn sign(
        &self,
        header: &Map<String, Value>,
        payload: &[u8],
    ) -> Result<String, UnusableKey> {
        let signing_input = unsigned(header, payload).ok_or(UnusableKey)?;
        let signature = self
            .inner
            .sign(signing_input.as_bytes())
            .map_err(|_| UnusableKey)?;
        Ok(format!(
            "{signing_input}.{}",
            URL_SAFE_NO_PAD.encode(signature)
        ))
    }
}

/// A key that encrypts, for one algorithm.
#[derive(Debug)]
pub(super) struct Encrypter {
    pub(super) algorithm: KeyManagement,
    inner: Box<dyn JweEncrypter>,
}

impl Encrypter {
    /// For a public key as SubjectPublicKeyInfo.
    pub(super) fn from_spki(algorithm: KeyManagement, spki: &[u8]) -> Result<Self, UnusableKey> {
        use KeyManagement as A;
        let inner: Box<dyn JweEncrypter> = match algorithm {
            A::RsaOaep | A::RsaOaep256 => Box::new(
                rsaes(algorithm)?
                    .encrypter_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw => Box::new(
                ecdh_es(algorithm)?
                    .encrypter_from_der(spki)
                    .map_err(|_| UnusableKey)?,
            ),
            A::Dir | A::A256Kw => return Err(UnusableKey),
        };
        Ok(Self { algorithm, inner })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: KeyManagement,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        use KeyManagement as A;
        let inner: Box<dyn JweEncrypter> = match algorithm {
            A::Dir => Box::new(
                DirectJweAlgorithm::Dir
                    .encrypter_from_bytes(secret)
                    .map_err(|_| UnusableKey)?,
            ),
            A::A256Kw => Box::new(
                AeskwJweAlgorithm::A256kw
                    .encrypter_from_bytes(secret)
                    .map_err(|_| UnusableKey)?,
            ),
            A::RsaOaep | A::RsaOaep256 | A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw => {
                return Err(UnusableKey);
            }
        };
        Ok(Self { algorithm, inner })
    }

    /// The compact form of `plaintext` encrypted under `header`.
    pub(super) fn encrypt(
        &self,
        header: Map<String, Value>,
        plaintext: &[u8],
    ) -> Result<String, UnusableKey> {
        let header = JweHeader::from_map(header).map_err(|_| UnusableKey)?;
        JweContext::new()
            .serialize_compact(plaintext, &header, self.inner.as_ref())
            .map_err(|_| UnusableKey)
    }
}

/// `header.payload`, for a signature to follow. None where `header` does not serialise, which no map of values does.
pub(super) fn unsigned(header: &Map<String, Value>, payload: &[u8]) -> Option<String> {
    let header = serde_json::to_vec(header).ok()?;
    Some(format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    ))
}

/// Canonical base64url without padding; anything else is none. A text that could be written in two ways would be two
/// tokens to the replay store.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    URL_SAFE_NO_PAD.decode(text).ok().map(Zeroizing::new)
}

/// The header of `text`, unread by anyone else, for display.
pub(super) fn header_for_display(text: &str) -> Result<Value, TokenError> {
    let header = text.split('.').next().unwrap_or_default();
    let bytes = decode(header).ok_or(TokenError::Header("it is not base64url"))?;
    Ok(Value::Object(json::object(&bytes).map_err(header_error)?))
}

fn parse_header(text: &str) -> Result<(Header, Map<String, Value>), TokenError> {
    if text.len() > HEADER_CHARS {
        return Err(TokenError::Header("it is too large"));
    }
    let bytes = decode(text).ok_or(TokenError::Header("it is not base64url"))?;
    let mut claims = json::object(&bytes).map_err(header_error)?;
    if claims.contains_key("zip") {
        return Err(TokenError::Compressed);
    }
    if claims.contains_key("crit") || claims.contains_key("b64") {
        return Err(TokenError::Critical);
    }
    let kid = take_text(&mut claims, "kid")?;
    // It goes into logs once a key has vouched for it.
    if kid
        .as_ref()
        .is_some_and(|kid| kid.len() > KID_CHARS || kid.chars().any(char::is_control))
    {
        return Err(TokenError::Header("its kid is not a short printable text"));
    }
    let typ = take_text(&mut claims, "typ")?;
    let cty = take_text(&mut claims, "cty")?;
    Ok((
        Header {
            kid,
            typ,
            cty,
            key_agreement: Map::new(),
        },
        claims,
    ))
}

fn header_error(error: json::ObjectError) -> TokenError {
    match error {
        json::ObjectError::NotAnObject => TokenError::Header("it is not a JSON object"),
        json::ObjectError::DuplicateName => TokenError::Header("a name occurs twice"),
    }
}

fn take_text(claims: &mut Map<String, Value>, name: &str) -> Result<Option<String>, TokenError> {
    match claims.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_),
        ) => Err(TokenError::Header(
            "alg, enc, kid, typ or cty is not a text",
        )),
    }
}

fn is_compact_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn content_encryption(enc: ContentEncryption) -> AesgcmJweEncryption {
    match enc {
        ContentEncryption::A128Gcm => AesgcmJweEncryption::A128gcm,
        ContentEncryption::A256Gcm => AesgcmJweEncryption::A256gcm,
    }
}

fn rsassa(algorithm: SignatureAlgorithm) -> Result<RsassaJwsAlgorithm, UnusableKey> {
    use SignatureAlgorithm as A;
    match algorithm {
        A::Rs256 => Ok(RsassaJwsAlgorithm::Rs256),
        A::Rs384 => Ok(RsassaJwsAlgorithm::Rs384),
        A::Rs512 => Ok(RsassaJwsAlgorithm::Rs512),
        A::Ps256
        | A::Ps384
        | A::Ps512
        | A::Es256
        | A::Es384
        | A::Es512
        | A::EdDsa
        | A::Hs256
        | A::Hs384
        | A::Hs512 => Err(UnusableKey),
    }
}

fn rsassa_pss(algorithm: SignatureAlgorithm) -> Result<RsassaPssJwsAlgorithm, UnusableKey> {
    use SignatureAlgorithm as A;
    match algorithm {
        A::Ps256 => Ok(RsassaPssJwsAlgorithm::Ps256),
        A::Ps384 => Ok(RsassaPssJwsAlgorithm::Ps384),
        A::Ps512 => Ok(RsassaPssJwsAlgorithm::Ps512),
        A::Rs256
        | A::Rs384
        | A::Rs512
        | A::Es256
        | A::Es384
        | A::Es512
        | A::EdDsa
        | A::Hs256
        | A::Hs384
        | A::Hs512 => Err(UnusableKey),
    }
}

fn ecdsa(algorithm: SignatureAlgorithm) -> Result<EcdsaJwsAlgorithm, UnusableKey> {
    use SignatureAlgorithm as A;
    match algorithm {
        A::Es256 => Ok(EcdsaJwsAlgorithm::Es256),
        A::Es384 => Ok(EcdsaJwsAlgorithm::Es384),
        A::Es512 => Ok(EcdsaJwsAlgorithm::Es512),
        A::Rs256
        | A::Rs384
        | A::Rs512
        | A::Ps256
        | A::Ps384
        | A::Ps512
        | A::EdDsa
        | A::Hs256
        | A::Hs384
        | A::Hs512 => Err(UnusableKey),
    }
}

fn hmac(algorithm: SignatureAlgorithm) -> Result<HmacJwsAlgorithm, UnusableKey> {
    use SignatureAlgorithm as A;
    match algorithm {
        A::Hs256 => Ok(HmacJwsAlgorithm::Hs256),
        A::Hs384 => Ok(HmacJwsAlgorithm::Hs384),
        A::Hs512 => Ok(HmacJwsAlgorithm::Hs512),
        A::Rs256
        | A::Rs384
        | A::Rs512
        | A::Ps256
        | A::Ps384
        | A::Ps512
        | A::Es256
        | A::Es384
        | A::Es512
        | A::EdDsa => Err(UnusableKey),
    }
}

fn rsaes(algorithm: KeyManagement) -> Result<RsaesJweAlgorithm, UnusableKey> {
    use KeyManagement as A;
    match algorithm {
        A::RsaOaep => Ok(RsaesJweAlgorithm::RsaOaep),
        A::RsaOaep256 => Ok(RsaesJweAlgorithm::RsaOaep256),
        A::EcdhEs | A::EcdhEsA128Kw | A::EcdhEsA256Kw | A::Dir | A::A256Kw => Err(UnusableKey),
    }
}

fn ecdh_es(algorithm: KeyManagement) -> Result<EcdhEsJweAlgorithm, UnusableKey> {
    use KeyManagement as A;
    match algorithm {
        A::EcdhEs => Ok(EcdhEsJweAlgorithm::EcdhEs),
        A::EcdhEsA128Kw => Ok(EcdhEsJweAlgorithm::EcdhEsA128kw),
        A::EcdhEsA256Kw => Ok(EcdhEsJweAlgorithm::EcdhEsA256kw),
        A::RsaOaep | A::RsaOaep256 | A::Dir | A::A256Kw => Err(UnusableKey),
    }
}

/// What AES key wrap adds to a key ([RFC 3394] 2.2.1), bytes.
///
/// [RFC 3394]: https://www.rfc-editor.org/rfc/rfc3394#section-2.2.1
const KEY_WRAP_BYTES: usize = 8;

const WRONG_PARTS: TokenError = TokenError::Malformed("it has neither three parts nor five");
