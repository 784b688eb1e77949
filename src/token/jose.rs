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
//! | ignores `crit` in a JWE | `crit` and `b64` are refused |
//! | compares MACs byte by byte until one differs | constant-time comparison |
//! | distinct errors for distinct cryptographic failures | one: [`Unauthentic`] |
//! | plaintext and content keys stay in memory | [`Zeroizing`] |
//!
//! [RFC 7515]: https://www.rfc-editor.org/rfc/rfc7515#section-3.1
//! [RFC 7516]: https://www.rfc-editor.org/rfc/rfc7516#section-3.1

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use josekit::JoseError;
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

use super::algorithm::{ContentEncryption, KeyManagement, SignatureAlgorithm};
use super::error::TokenError;
use super::json;
use jetway_base::limits;

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
        let verifier: Box<dyn JwsVerifier> = match signature_family(algorithm) {
            SignatureFamily::Rsassa(family) => {
                Box::new(family.verifier_from_der(spki).map_err(unusable)?)
            }
            SignatureFamily::RsassaPss(family) => {
                Box::new(family.verifier_from_der(spki).map_err(unusable)?)
            }
            SignatureFamily::Ecdsa(family) => {
                Box::new(family.verifier_from_der(spki).map_err(unusable)?)
            }
            SignatureFamily::Eddsa(family) => {
                Box::new(family.verifier_from_der(spki).map_err(unusable)?)
            }
            SignatureFamily::Hmac(_) => return Err(UnusableKey),
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
        Ok(Self {
            algorithm,
            inner: VerifierKind::Mac(mac(algorithm, secret)?),
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
        let inner: Box<dyn JweDecrypter> = match key_family(algorithm) {
            KeyFamily::Rsaes(family) => {
                Box::new(family.decrypter_from_der(pkcs8).map_err(unusable)?)
            }
            KeyFamily::EcdhEs(family) => {
                Box::new(family.decrypter_from_der(pkcs8).map_err(unusable)?)
            }
            KeyFamily::Direct(_) | KeyFamily::Aeskw(_) => return Err(UnusableKey),
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
        let inner: Box<dyn JweDecrypter> = match key_family(algorithm) {
            KeyFamily::Direct(family) => {
                Box::new(family.decrypter_from_bytes(secret).map_err(unusable)?)
            }
            KeyFamily::Aeskw(family) => {
                Box::new(family.decrypter_from_bytes(secret).map_err(unusable)?)
            }
            KeyFamily::Rsaes(_) | KeyFamily::EcdhEs(_) => return Err(UnusableKey),
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
        let inner: Box<dyn JwsSigner> = match signature_family(algorithm) {
            SignatureFamily::Rsassa(family) => {
                Box::new(family.signer_from_der(pkcs8).map_err(unusable)?)
            }
            SignatureFamily::RsassaPss(family) => {
                Box::new(family.signer_from_der(pkcs8).map_err(unusable)?)
            }
            SignatureFamily::Ecdsa(family) => {
                Box::new(family.signer_from_der(pkcs8).map_err(unusable)?)
            }
            SignatureFamily::Eddsa(family) => {
                Box::new(family.signer_from_der(pkcs8).map_err(unusable)?)
            }
            SignatureFamily::Hmac(_) => return Err(UnusableKey),
        };
        Ok(Self { algorithm, inner })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: SignatureAlgorithm,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        Ok(Self {
            algorithm,
            inner: mac(algorithm, secret)?,
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
        let inner: Box<dyn JweEncrypter> = match key_family(algorithm) {
            KeyFamily::Rsaes(family) => {
                Box::new(family.encrypter_from_der(spki).map_err(unusable)?)
            }
            KeyFamily::EcdhEs(family) => {
                Box::new(family.encrypter_from_der(spki).map_err(unusable)?)
            }
            KeyFamily::Direct(_) | KeyFamily::Aeskw(_) => return Err(UnusableKey),
        };
        Ok(Self { algorithm, inner })
    }

    /// For a shared secret.
    pub(super) fn from_secret(
        algorithm: KeyManagement,
        secret: &[u8],
    ) -> Result<Self, UnusableKey> {
        let inner: Box<dyn JweEncrypter> = match key_family(algorithm) {
            KeyFamily::Direct(family) => {
                Box::new(family.encrypter_from_bytes(secret).map_err(unusable)?)
            }
            KeyFamily::Aeskw(family) => {
                Box::new(family.encrypter_from_bytes(secret).map_err(unusable)?)
            }
            KeyFamily::Rsaes(_) | KeyFamily::EcdhEs(_) => return Err(UnusableKey),
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

/// Three or five parts of base64url, the first of which begins a JSON object, white space or not: what is wrong with the
/// object is for [`Compact::parse`] to say.
pub(super) fn is_compact(text: &str) -> bool {
    let Some((header, _)) = text.split_once('.') else {
        return false;
    };
    // A longer header is none; whole groups of four decode by themselves.
    let header = header.get(..HEADER_CHARS).unwrap_or(header);
    text.bytes().all(is_compact_byte)
        && matches!(text.bytes().filter(|byte| *byte == b'.').count(), 2 | 4)
        && decode(header).is_some_and(|header| json::begins_an_object(&header))
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

/// A signature algorithm as josekit has it: one type for each family.
enum SignatureFamily {
    Rsassa(RsassaJwsAlgorithm),
    RsassaPss(RsassaPssJwsAlgorithm),
    Ecdsa(EcdsaJwsAlgorithm),
    Eddsa(EddsaJwsAlgorithm),
    Hmac(HmacJwsAlgorithm),
}

fn signature_family(algorithm: SignatureAlgorithm) -> SignatureFamily {
    use SignatureAlgorithm as A;
    match algorithm {
        A::Rs256 => SignatureFamily::Rsassa(RsassaJwsAlgorithm::Rs256),
        A::Rs384 => SignatureFamily::Rsassa(RsassaJwsAlgorithm::Rs384),
        A::Rs512 => SignatureFamily::Rsassa(RsassaJwsAlgorithm::Rs512),
        A::Ps256 => SignatureFamily::RsassaPss(RsassaPssJwsAlgorithm::Ps256),
        A::Ps384 => SignatureFamily::RsassaPss(RsassaPssJwsAlgorithm::Ps384),
        A::Ps512 => SignatureFamily::RsassaPss(RsassaPssJwsAlgorithm::Ps512),
        A::Es256 => SignatureFamily::Ecdsa(EcdsaJwsAlgorithm::Es256),
        A::Es384 => SignatureFamily::Ecdsa(EcdsaJwsAlgorithm::Es384),
        A::Es512 => SignatureFamily::Ecdsa(EcdsaJwsAlgorithm::Es512),
        A::EdDsa => SignatureFamily::Eddsa(EddsaJwsAlgorithm::Eddsa),
        A::Hs256 => SignatureFamily::Hmac(HmacJwsAlgorithm::Hs256),
        A::Hs384 => SignatureFamily::Hmac(HmacJwsAlgorithm::Hs384),
        A::Hs512 => SignatureFamily::Hmac(HmacJwsAlgorithm::Hs512),
    }
}

/// What makes the MAC of a shared secret.
fn mac(algorithm: SignatureAlgorithm, secret: &[u8]) -> Result<Box<dyn JwsSigner>, UnusableKey> {
    let SignatureFamily::Hmac(family) = signature_family(algorithm) else {
        return Err(UnusableKey);
    };
    Ok(Box::new(
        family.signer_from_bytes(secret).map_err(unusable)?,
    ))
}

/// A way to agree on the content key as josekit has it: one type for each family.
enum KeyFamily {
    Rsaes(RsaesJweAlgorithm),
    EcdhEs(EcdhEsJweAlgorithm),
    Direct(DirectJweAlgorithm),
    Aeskw(AeskwJweAlgorithm),
}

fn key_family(algorithm: KeyManagement) -> KeyFamily {
    use KeyManagement as A;
    match algorithm {
        A::RsaOaep => KeyFamily::Rsaes(RsaesJweAlgorithm::RsaOaep),
        A::RsaOaep256 => KeyFamily::Rsaes(RsaesJweAlgorithm::RsaOaep256),
        A::EcdhEs => KeyFamily::EcdhEs(EcdhEsJweAlgorithm::EcdhEs),
        A::EcdhEsA128Kw => KeyFamily::EcdhEs(EcdhEsJweAlgorithm::EcdhEsA128kw),
        A::EcdhEsA256Kw => KeyFamily::EcdhEs(EcdhEsJweAlgorithm::EcdhEsA256kw),
        A::Dir => KeyFamily::Direct(DirectJweAlgorithm::Dir),
        A::A256Kw => KeyFamily::Aeskw(AeskwJweAlgorithm::A256kw),
    }
}

/// josekit does not say more than that it takes a key or not.
fn unusable(_: JoseError) -> UnusableKey {
    UnusableKey
}

/// What AES key wrap adds to a key ([RFC 3394] 2.2.1), bytes.
///
/// [RFC 3394]: https://www.rfc-editor.org/rfc/rfc3394#section-2.2.1
const KEY_WRAP_BYTES: usize = 8;

const WRONG_PARTS: TokenError = TokenError::Malformed("it has neither three parts nor five");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::catch_unwind;

    use josekit::jwe::{A128KW, A256KW, Dir, ECDH_ES_A256KW, RSA_OAEP_256};
    use josekit::jws::{HS256, JwsHeader};
    use josekit::jwt::{JwtPayload, JwtPayloadValidator};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const CLAIMS: &[u8] = br#"{"jet_cm":"fwd","dst_hst":"good.example:3389"}"#;

    /// What josekit makes with its defaults.
    fn josekit_jwe(header: Value, plaintext: &[u8], encrypter: &dyn JweEncrypter) -> String {
        let header = JweHeader::from_map(header.as_object().unwrap().clone()).unwrap();
        josekit::jwe::serialize_compact(plaintext, &header, encrypter).unwrap()
    }

    fn dir_token(header: Value) -> String {
        josekit_jwe(header, CLAIMS, &Dir.encrypter_from_bytes(SECRET).unwrap())
    }

    fn refusal(text: &str) -> &'static str {
        Compact::parse(text).map_or_else(|error| error.rule(), |_| "parsed")
    }

    /// The token with one of its parts replaced.
    fn with_part(text: &str, index: usize, part: &str) -> String {
        let mut parts: Vec<&str> = text.split('.').collect();
        parts[index] = part;
        parts.join(".")
    }

    fn open(text: &str, decrypter: &Decrypter) -> Option<Vec<u8>> {
        match Compact::parse(text).ok()? {
            Compact::Jwe(jwe) => decrypter
                .decrypt(&jwe)
                .ok()
                .map(|plaintext| plaintext.to_vec()),
            Compact::Jws(_) => None,
        }
    }

    // Guard: GCM tag length.
    #[test]
    fn a_shortened_tag_is_refused_which_josekit_accepts() {
        let text = dir_token(json!({ "enc": "A256GCM" }));
        let decrypter = Dir.decrypter_from_bytes(SECRET).unwrap();
        let ours = Decrypter::from_secret(KeyManagement::Dir, SECRET).unwrap();
        assert_eq!(open(&text, &ours).as_deref(), Some(CLAIMS));
        let tag = URL_SAFE_NO_PAD
            .decode(text.rsplit_once('.').unwrap().1)
            .unwrap();
        for length in 1..16 {
            let cut = with_part(&text, 4, &URL_SAFE_NO_PAD.encode(&tag[..length]));
            assert!(
                josekit::jwe::deserialize_compact(&cut, &decrypter).is_ok(),
                "{length}"
            );
            assert_eq!(refusal(&cut), "malformed", "{length}");
        }
        assert_eq!(refusal(&with_part(&text, 4, "")), "malformed");
        let long = URL_SAFE_NO_PAD.encode([tag.as_slice(), &[0]].concat());
        assert_eq!(refusal(&with_part(&text, 4, &long)), "malformed");
    }

    // Guard: GCM tag length. What the fault is good for.
    #[test]
    fn with_a_tag_of_one_byte_josekit_takes_a_forgery_within_256_tries() {
        let text = dir_token(json!({ "enc": "A256GCM" }));
        let decrypter = Dir.decrypter_from_bytes(SECRET).unwrap();
        let mut ciphertext = URL_SAFE_NO_PAD
            .decode(text.split('.').nth(3).unwrap())
            .unwrap();
        let position = CLAIMS
            .windows(4)
            .position(|window| window == b"good")
            .unwrap();
        for (offset, (old, new)) in b"good".iter().zip(b"evil").enumerate() {
            ciphertext[position + offset] ^= old ^ new;
        }
        let forged = with_part(&text, 3, &URL_SAFE_NO_PAD.encode(&ciphertext));
        let opened = (0..=255_u8).find_map(|guess| {
            let guessed = with_part(&forged, 4, &URL_SAFE_NO_PAD.encode([guess]));
            assert_eq!(refusal(&guessed), "malformed");
            josekit::jwe::deserialize_compact(&guessed, &decrypter).ok()
        });
        assert!(
            opened
                .unwrap()
                .0
                .windows(12)
                .any(|window| window == b"evil.example")
        );
    }

    // Guard: initialisation vector length.
    #[test]
    fn an_initialisation_vector_of_another_length_is_refused() {
        let text = dir_token(json!({ "enc": "A256GCM" }));
        for length in [0, 1, 8, 11, 13, 16, 64] {
            let iv = URL_SAFE_NO_PAD.encode(vec![0; length]);
            assert_eq!(refusal(&with_part(&text, 2, &iv)), "malformed", "{length}");
        }
    }

    // Guard: no CBC. josekit answers a bad padding and a bad MAC differently, which lets a stranger decrypt.
    #[test]
    fn cbc_is_refused_for_which_josekit_is_a_padding_oracle() {
        let key = [SECRET, SECRET].concat();
        let encrypter = Dir.encrypter_from_bytes(&key).unwrap();
        let decrypter = Dir.decrypter_from_bytes(&key).unwrap();
        let text = josekit_jwe(json!({ "enc": "A256CBC-HS512" }), CLAIMS, &encrypter);
        assert!(josekit::jwe::deserialize_compact(&text, &decrypter).is_ok());
        let mut ciphertext = URL_SAFE_NO_PAD
            .decode(text.split('.').nth(3).unwrap())
            .unwrap();
        let before_last_block = ciphertext.len() - 17;
        let mut answers = BTreeSet::new();
        for _ in 0..255 {
            ciphertext[before_last_block] = ciphertext[before_last_block].wrapping_add(1);
            let mutated = with_part(&text, 3, &URL_SAFE_NO_PAD.encode(&ciphertext));
            answers.insert(
                josekit::jwe::deserialize_compact(&mutated, &decrypter)
                    .unwrap_err()
                    .to_string(),
            );
        }
        assert!(answers.len() > 1, "josekit answers alike now");
        for enc in ["A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512"] {
            let bytes = match enc {
                "A128CBC-HS256" => 32,
                "A192CBC-HS384" => 48,
                _ => 64,
            };
            let encrypter = Dir.encrypter_from_bytes(vec![7; bytes]).unwrap();
            assert_eq!(
                refusal(&josekit_jwe(json!({ "enc": enc }), CLAIMS, &encrypter)),
                "algorithm"
            );
        }
    }

    // Guard: no RSA1_5, no PBES2.
    #[test]
    fn key_management_with_known_attacks_is_refused() {
        #[expect(deprecated, reason = "that it is deprecated is why it must be refused")]
        let rsa1_5 = RsaesJweAlgorithm::Rsa1_5;
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let spki = openssl::pkey::PKey::from_rsa(rsa)
            .unwrap()
            .public_key_to_der()
            .unwrap();
        let text = josekit_jwe(
            json!({ "enc": "A256GCM" }),
            CLAIMS,
            &rsa1_5.encrypter_from_der(&spki).unwrap(),
        );
        assert_eq!(refusal(&text), "algorithm");
        let pbes2 = josekit::jwe::PBES2_HS256_A128KW
            .encrypter_from_bytes(SECRET)
            .unwrap();
        assert_eq!(
            refusal(&josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &pbes2)),
            "algorithm"
        );
        let a128kw = A128KW.encrypter_from_bytes(&SECRET[..16]).unwrap();
        assert_eq!(
            refusal(&josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &a128kw)),
            "algorithm"
        );
    }

    // Guard: no zip.
    #[test]
    fn compression_is_refused_which_josekit_inflates_without_limit() {
        let bomb = vec![b' '; 4 * 1024 * 1024];
        let encrypter = Dir.encrypter_from_bytes(SECRET).unwrap();
        let text = josekit_jwe(json!({ "enc": "A256GCM", "zip": "DEF" }), &bomb, &encrypter);
        assert!(text.len() < limits::TOKEN_BYTES);
        let decrypter = Dir.decrypter_from_bytes(SECRET).unwrap();
        let (inflated, _) = josekit::jwe::deserialize_compact(&text, &decrypter).unwrap();
        assert_eq!(inflated.len(), bomb.len());
        assert_eq!(refusal(&text), "compressed");
    }

    // Guard: wrapped key length.
    #[test]
    fn a_short_wrapped_key_is_refused_on_which_josekit_panics() {
        let encrypter = A256KW.encrypter_from_bytes(SECRET).unwrap();
        let text = josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &encrypter);
        let decrypter = A256KW.decrypter_from_bytes(SECRET).unwrap();
        let ours = Decrypter::from_secret(KeyManagement::A256Kw, SECRET).unwrap();
        assert_eq!(open(&text, &ours).as_deref(), Some(CLAIMS));
        let short = with_part(&text, 1, &URL_SAFE_NO_PAD.encode([0; 4]));
        assert!(
            catch_unwind(|| josekit::jwe::deserialize_compact(&short, &decrypter).is_ok()).is_err()
        );
        for length in 0..80 {
            let wrapped = URL_SAFE_NO_PAD.encode(vec![0; length]);
            assert_eq!(
                open(&with_part(&text, 1, &wrapped), &ours),
                None,
                "{length}"
            );
        }
    }

    // Guard: wrapped key length, for the key agreements that wrap.
    #[test]
    fn a_short_wrapped_key_after_key_agreement_is_refused_on_which_josekit_panics() {
        let pair = ECDH_ES_A256KW
            .generate_ec_key_pair(josekit::jwk::P_256)
            .unwrap();
        let encrypter = ECDH_ES_A256KW
            .encrypter_from_jwk(&pair.to_jwk_public_key())
            .unwrap();
        let text = josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &encrypter);
        let decrypter = ECDH_ES_A256KW
            .decrypter_from_der(pair.to_der_private_key())
            .unwrap();
        let pkcs8 = pair.to_der_private_key();
        let ours = Decrypter::from_pkcs8(KeyManagement::EcdhEsA256Kw, &pkcs8, 0, 32).unwrap();
        assert_eq!(open(&text, &ours).as_deref(), Some(CLAIMS));
        let short = with_part(&text, 1, &URL_SAFE_NO_PAD.encode([0; 4]));
        assert!(
            catch_unwind(|| josekit::jwe::deserialize_compact(&short, &decrypter).is_ok()).is_err()
        );
        assert_eq!(open(&short, &ours), None);
    }

    // Guard: own validity check.
    #[test]
    fn josekit_panics_on_a_huge_date_and_passes_a_token_without_one() {
        let payload =
            |claims: Value| JwtPayload::from_map(claims.as_object().unwrap().clone()).unwrap();
        let huge = payload(json!({ "exp": u64::MAX }));
        assert!(catch_unwind(|| huge.expires_at()).is_err());
        assert!(
            JwtPayloadValidator::new()
                .validate(&payload(json!({})))
                .is_ok()
        );
        // What is used instead: see `validity`, and `claims` for a date beyond all calendars.
    }

    // Guard: unique header names.
    #[test]
    fn a_header_name_twice_is_refused_of_which_josekit_takes_the_last() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"HS256"}"#);
        let signing_input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(CLAIMS));
        let signer = HS256.signer_from_bytes(SECRET).unwrap();
        let signature = JwsSigner::sign(&signer, signing_input.as_bytes()).unwrap();
        let text = format!("{signing_input}.{}", URL_SAFE_NO_PAD.encode(signature));
        let verifier = HS256.verifier_from_bytes(SECRET).unwrap();
        assert!(josekit::jws::deserialize_compact(&text, &verifier).is_ok());
        assert_eq!(refusal(&text), "header");
    }

    // Guard: crit and b64.
    #[test]
    fn demanded_extensions_are_refused_which_josekit_ignores_in_a_jwe() {
        let text = dir_token(json!({ "enc": "A256GCM", "crit": ["exp"], "exp": 1 }));
        let decrypter = Dir.decrypter_from_bytes(SECRET).unwrap();
        assert!(josekit::jwe::deserialize_compact(&text, &decrypter).is_ok());
        assert_eq!(refusal(&text), "critical");
        let mut header = JwsHeader::new();
        header.set_base64url_encode_payload(false);
        let signer = HS256.signer_from_bytes(SECRET).unwrap();
        let text = josekit::jws::serialize_compact(CLAIMS, &header, &signer).unwrap();
        assert_eq!(refusal(&text), "critical");
    }

    // Guard: one error for every cryptographic failure.
    #[test]
    fn every_changed_character_of_an_encrypted_token_is_refused_alike() {
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let key = openssl::pkey::PKey::from_rsa(rsa).unwrap();
        let encrypter = RSA_OAEP_256
            .encrypter_from_der(key.public_key_to_der().unwrap())
            .unwrap();
        let text = josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &encrypter);
        let pkcs8 = key.private_key_to_pkcs8().unwrap();
        let ours = Decrypter::from_pkcs8(KeyManagement::RsaOaep256, &pkcs8, 256, 0).unwrap();
        assert_eq!(open(&text, &ours).as_deref(), Some(CLAIMS));
        for (index, byte) in text.bytes().enumerate().filter(|(index, _)| index % 5 == 0) {
            let mut mutated = text.clone().into_bytes();
            mutated[index] = if byte == b'A' { b'B' } else { b'A' };
            let mutated = String::from_utf8(mutated).unwrap();
            assert_eq!(open(&mutated, &ours), None, "{index}");
        }
        for wrong in ["", "AAAA", &URL_SAFE_NO_PAD.encode(vec![255; 256])] {
            let Ok(Compact::Jwe(jwe)) = Compact::parse(&text) else {
                panic!("not a JWE")
            };
            let jwe = Jwe {
                encrypted_key: wrong,
                ..jwe
            };
            assert_eq!(ours.decrypt(&jwe), Err(Unauthentic));
        }
    }

    // Guard: one text for one token.
    #[test]
    fn base64url_that_is_not_canonical_is_refused() {
        let signer = Signer::from_secret(SignatureAlgorithm::Hs256, SECRET).unwrap();
        let header = json!({ "alg": "HS256" });
        let text = signer.sign(header.as_object().unwrap(), CLAIMS).unwrap();
        let ours = SignatureVerifier::from_secret(SignatureAlgorithm::Hs256, SECRET).unwrap();
        let verifies = |text: &str| match Compact::parse(text) {
            Ok(Compact::Jws(jws)) => ours.verify(&jws).is_ok(),
            Ok(Compact::Jwe(_)) | Err(_) => false,
        };
        assert!(verifies(&text));
        // 32 bytes take 43 characters: the last has two bits that mean nothing.
        let last = text.chars().last().unwrap();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        for other in alphabet.chars().filter(|c| *c != last) {
            assert!(
                !verifies(&format!("{}{other}", &text[..text.len() - 1])),
                "{other}"
            );
        }
        for noise in [
            format!("{text}="),
            format!(" {text}"),
            format!("{text}\n"),
            text.replace('.', ".."),
        ] {
            assert!(!verifies(&noise), "{noise}");
        }
    }

    // Guard: size before any work.
    #[test]
    fn a_token_or_a_header_over_its_bound_is_refused_before_it_is_decoded() {
        let text = format!("e30.{}.", "A".repeat(limits::TOKEN_BYTES));
        assert_eq!(refusal(&text), "oversized");
        let header =
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","x":"{}"}}"#, "x".repeat(4096)));
        assert_eq!(
            Compact::parse(&format!("{header}.e30.AAAA")).unwrap_err(),
            TokenError::Header("it is too large")
        );
    }

    #[test]
    fn what_is_not_a_compact_token_says_so() {
        for text in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            "a.b.c.d.e.f",
            "é.e30.",
            "{}",
            ".....",
        ] {
            assert!(Compact::parse(text).is_err(), "{text}");
        }
        let header = |json: &str| format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(json));
        for (json, rule) in [
            ("{}", "header"),
            ("[]", "header"),
            (r#"{"alg":1}"#, "header"),
            (r#"{"alg":"HS256","kid":7}"#, "header"),
            (r#"{"alg":"HS256","kid":"a\nb"}"#, "header"),
            (r#"{"alg":"NONE"}"#, "algorithm"),
            (r#"{"alg":"hs256"}"#, "algorithm"),
            (r#"{"alg":"RSA-OAEP-256"}"#, "algorithm"),
        ] {
            assert_eq!(refusal(&header(json)), rule, "{json}");
        }
    }

    #[test]
    fn an_ephemeral_key_of_the_wrong_size_or_curve_is_refused() {
        let pair = ECDH_ES_A256KW
            .generate_ec_key_pair(josekit::jwk::P_256)
            .unwrap();
        let encrypter = ECDH_ES_A256KW
            .encrypter_from_jwk(&pair.to_jwk_public_key())
            .unwrap();
        let text = josekit_jwe(json!({ "enc": "A256GCM" }), CLAIMS, &encrypter);
        let pkcs8 = pair.to_der_private_key();
        let ours = Decrypter::from_pkcs8(KeyManagement::EcdhEsA256Kw, &pkcs8, 0, 32).unwrap();
        let zero = URL_SAFE_NO_PAD.encode([0; 32]);
        for epk in [
            json!(null),
            json!({}),
            json!({ "kty": "EC", "crv": "P-256", "x": zero, "y": zero }),
            json!({ "kty": "EC", "crv": "P-256", "x": "", "y": "" }),
            json!({ "kty": "EC", "crv": "P-384", "x": zero, "y": zero }),
            json!({ "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode([1; 400]), "y": zero }),
            json!({ "kty": "OKP", "crv": "X25519", "x": zero }),
        ] {
            let header = json!({ "alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": epk });
            let header = URL_SAFE_NO_PAD.encode(header.to_string());
            assert_eq!(open(&with_part(&text, 0, &header), &ours), None, "{epk}");
        }
    }
}
