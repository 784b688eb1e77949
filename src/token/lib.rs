//! From the text of a token to [`Claims`], or to the rule that it breaks ([JET-PROTO] 2.2.3).
//!
//! [`Verifier::verify`] reads top to bottom: the text is taken apart and bounded (`jose`), a configured key opens it
//! ([`key`]), the plaintext becomes claims ([`claims`]), and the claims are valid now ([`validity`]). Whether the
//! token was used before or revoked is asked afterwards, by whoever keeps that memory.
//!
//! INVARIANT: a [`Token`] exists only if every rule held, or an operator spoke in its place ([`Token::of_operator`]). No error, name or
//! log line made here repeats the text of a token or any part of a key; where the signature held, an error may say which gateway the
//! token is for, and [`About`] whose it is and where it leads.

pub mod agent_name;
pub mod algorithm;
pub mod application_protocol;
pub mod claims;
pub mod error;
pub mod first_bytes;
mod jose;
mod json;
pub mod key;
pub mod mint;
pub mod revocation;
pub mod rules;
pub mod statement;
pub mod target;
pub mod target_name;
pub mod validity;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use self::algorithm::{ContentEncryption, KeyManagement, SignatureAlgorithm};
pub use self::claims::Claims;
use self::claims::{AgentTarget, ConnectionMode, ConnectionTest, RecordingPolicy};
pub use self::error::{TokenError, Undecryptable};
use self::jose::{Compact, Header, Jwe, Jws, JwsAlg};
pub use self::key::{KeyDocument, KeyError, KeySet, KeyUsage};
pub use self::rules::{TokenRules, UnsignedJwe};
use self::validity::Validity;
use crate::application_protocol::ApplicationProtocol;
use jetway_base::time::UnixTime;

/// Whether `text` has the shape of a token (a compact JWS or JWE), so that it is one or a damaged one, and nothing else.
#[must_use]
pub fn is_compact(text: &str) -> bool {
    jose::is_compact(text)
}

/// Verifies tokens with one set of keys under one set of rules.
#[derive(Debug)]
pub struct Verifier {
    keys: KeySet,
    rules: TokenRules,
}

/// A token that every rule held for.
#[derive(Clone, Debug)]
pub struct Token {
    /// What the replay store and the log call it.
    pub id: TokenId,
    /// What it says.
    pub claims: Claims,
    /// How it was protected.
    pub protection: Protection,
}

impl Token {
    /// What an operator says of an association, in place of a token: a rendezvous of `jet_ap`, tested as `jet_ct`, for a
    /// session that is opened during `validity`. `unique` tells it from all others.
    #[must_use]
    pub fn of_operator(
        name: &str,
        unique: Uuid,
        association: Uuid,
        jet_ap: Option<ApplicationProtocol>,
        jet_ct: ConnectionTest,
        validity: Validity,
    ) -> Self {
        Self {
            id: TokenId::new(format!("operator:{name}:{unique}")),
            claims: Claims {
                jet_aid: Some(association),
                jet_cm: ConnectionMode::Rdv,
                jet_ct,
                jet_ap,
                jet_rec: RecordingPolicy::None,
                jet_flt: false,
                jet_ttl: None,
                jet_reuse: None,
                targets: Vec::new(),
                target_credentials: None,
                proxy_credentials: None,
                agent: None,
                cert_thumb256: None,
                sub: None,
                jti: None,
                validity,
                extra: Map::new(),
            },
            protection: Protection::Operator(name.to_owned()),
        }
    }
}

/// The name of a token: its `jti`, or a digest when it has none. Safe to log and to store.
///
/// The digest of a signed token covers what the signature covers, and nothing else: an ECDSA signature can be rewritten into
/// another valid one by anybody, and whoever has a signed token can encrypt it anew with the gateway's public key. Both must
/// still be the same token. That of a token that is only encrypted covers its claims. No digest covers a password, so that nobody
/// can guess it by hashing candidates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(String);

impl TokenId {
    /// The id with this text, as it was stored or logged.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_digest(digest: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(digest)))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What vouches for the claims: how the token was protected on its way, or who spoke instead of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not at all: `alg: none`, by the development switch.
    None,
    /// Signed.
    Signed(Signature),
    /// Encrypted, and not signed.
    Encrypted(Encryption),
    /// Signed, then encrypted.
    Nested {
        /// The outer layer.
        encryption: Encryption,
        /// The inner layer.
        signature: Signature,
    },
    /// There is no token: an operator said so, by the name of their API key.
    Operator(String),
}

/// A signed token whose signature held.
struct Signed {
    payload: Zeroizing<Vec<u8>>,
    signature: Signature,
    /// Whether it is a token of the kind that opens sessions.
    kind: Result<(), TokenError>,
    /// What the signature covers.
    signed: Zeroizing<String>,
}

/// A signature that held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its algorithm.
    pub alg: SignatureAlgorithm,
    /// The key it names.
    pub kid: Option<String>,
}

/// An encryption that opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// How the content key was agreed on.
    pub alg: KeyManagement,
    /// How the content was encrypted.
    pub enc: ContentEncryption,
    /// The key it names.
    pub kid: Option<String>,
}

impl Protection {
    /// Whether the token arrived encrypted, so that it may carry secrets.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        match self {
            Self::None | Self::Signed(_) | Self::Operator(_) => false,
            Self::Encrypted(_) | Self::Nested { .. } => true,
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Signed(signature) => signature.fmt(f),
            Self::Encrypted(encryption) => encryption.fmt(f),
            Self::Nested {
                encryption,
                signature,
            } => write!(f, "{signature} in {encryption}"),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.alg)?;
        self.kid
            .as_ref()
            .map_or(Ok(()), |kid| write!(f, " (key {kid})"))
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.alg, self.enc)?;
        self.kid
            .as_ref()
            .map_or(Ok(()), |kid| write!(f, " (key {kid})"))
    }
}

/// A token that does not hold, and what it says of itself if its signature does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// The rule that it breaks.
    #[source]
    pub error: TokenError,
    /// For the log; none where nothing vouches for it.
    pub about: Option<Box<About>>,
}

impl From<TokenError> for Rejected {
    fn from(error: TokenError) -> Self {
        Self { error, about: None }
    }
}

/// What a token says of itself, for the log line of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// What the token is called.
    pub id: TokenId,
    /// Whose it is.
    pub user: Option<String>,
    /// Where it leads.
    pub target: Option<String>,
}

impl About {
    /// What a token says whose every rule held.
    #[must_use]
    pub fn of(token: &Token) -> Self {
        let behind = token.claims.agent.as_ref().and_then(AgentTarget::target);
        let target = token.claims.targets.first().or(behind);
        Self {
            id: token.id.clone(),
            user: token.claims.sub.clone(),
            target: target.map(ToString::to_string),
        }
    }

    /// What a token says whose protection held, and perhaps no more; none where its payload is no object.
    fn said(opened: &Opened) -> Option<Self> {
        // Nothing vouches for what is neither signed nor encrypted.
        if opened.protection == Protection::None {
            return None;
        }
        let public = claims::masked(&opened.payload)?;
        let text = |name: &str| {
            let said = public.get(name)?.as_str()?;
            Some(said.chars().take(ABOUT_CHARS).collect::<String>())
        };
        let id = match text("jti") {
            Some(jti) => TokenId(jti),
            None => {
                let signed = opened.signed.as_ref().map(|signed| signed.as_str());
                TokenId::of_digest(claims::digest(&opened.payload, signed)?)
            }
        };
        Some(Self {
            id,
            user: text("sub"),
            target: text("dst_hst").or_else(|| text("jet_agent_dst")),
        })
    }
}

/// A token whose protection held, its claims not read yet.
struct Opened {
    payload: Zeroizing<Vec<u8>>,
    protection: Protection,
    /// Whether it is a token of the kind that opens sessions.
    kind: Result<(), TokenError>,
    /// What the signature covers, if there is one.
    signed: Option<Zeroizing<String>>,
    /// The header of a signed token inside an encrypted one, for display.
    inner_header: Option<Value>,
}

impl Verifier {
    /// A verifier with these keys and rules.
    #[must_use]
    pub fn new(keys: KeySet, rules: TokenRules) -> Self {
        Self { keys, rules }
    }

    /// The rules it applies.
    #[must_use]
    pub fn rules(&self) -> &TokenRules {
        &self.rules
    }

    /// The keys it applies them with.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Verifies the compact text of a token.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn verify(&self, text: &str, now: UnixTime) -> Result<Token, TokenError> {
        self.judge(text, now).map_err(|rejected| rejected.error)
    }

    /// The same; of a token that somebody vouches for and that is refused all the same, the error says whose it is.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn judge(&self, text: &str, now: UnixTime) -> Result<Token, Rejected> {
        let opened = self.open(text)?;
        let about = About::said(&opened);
        let judged = self.judge_opened(opened, now);
        judged.map_err(|error| Rejected {
            error,
            about: about.map(Box::new),
        })
    }

    fn judge_opened(&self, opened: Opened, now: UnixTime) -> Result<Token, TokenError> {
        opened.kind?;
        let encrypted = opened.protection.is_encrypted();
        let claims = Claims::parse(&opened.payload, encrypted, &self.rules, now)?;
        let id = match &claims.jti {
            Some(jti) => TokenId(jti.clone()),
            None => {
                let signed = opened.signed.as_ref().map(|signed| signed.as_str());
                let digest = claims::digest(&opened.payload, signed);
                TokenId::of_digest(digest.ok_or(TokenError::NotClaims)?)
            }
        };
        Ok(Token {
            id,
            claims,
            protection: opened.protection,
        })
    }

    /// Estimates the CPU time that [`verify`](Self::verify) would take, microseconds, from the header and the keys
    /// alone: for budgets to be charged before any cryptography.
    #[must_use]
    pub fn cost_us(&self, text: &str) -> u32 {
        let keys_us = match Compact::parse(text) {
            Err(_) => 0,
            Ok(Compact::Jws(jws)) => match jws.alg {
                JwsAlg::None => 0,
                JwsAlg::Signed(alg) => self
                    .keys
                    .verifiers(alg, jws.header.kid.as_deref())
                    .fold(0_u32, |sum, (_, kind)| {
                        sum.saturating_add(kind.verification_us())
                    }),
            },
            Ok(Compact::Jwe(jwe)) => self
                .keys
                .decrypters(jwe.alg, jwe.header.kid.as_deref())
                .fold(0_u32, |sum, (_, kind)| {
                    sum.saturating_add(kind.decryption_us())
                })
                .saturating_add(self.keys.dearest_verification_us()),
        };
        PARSING_US.saturating_add(keys_us)
    }

    /// Headers, claims and verdict of a token, for people. Secrets are masked.
    #[must_use]
    pub fn inspect(&self, text: &str, now: UnixTime) -> TokenInspection {
        let mut inspection = TokenInspection::without_keys(text);
        match self.open(text) {
            Ok(opened) => {
                inspection.claims = claims::masked(&opened.payload);
                inspection.header.extend(opened.inner_header);
                inspection.protection = Some(opened.protection);
                inspection.verdict = Some(self.verify(text, now));
            }
            Err(error) => inspection.verdict = Some(Err(error)),
        }
        inspection
    }

    fn open(&self, text: &str) -> Result<Opened, TokenError> {
        match Compact::parse(text)? {
            Compact::Jws(jws) => {
                let (payload, protection) = match jws.alg {
                    JwsAlg::None if self.rules.allow_none && jws.is_unsigned() => {
                        (jws.unverified_payload()?, Protection::None)
                    }
                    JwsAlg::None => return Err(TokenError::AlgNone),
                    JwsAlg::Signed(alg) => {
                        let (payload, signature) = self.check_signature(&jws, alg)?;
                        (payload, Protection::Signed(signature))
                    }
                };
                Ok(Opened {
                    payload,
                    protection,
                    kind: check_type(&jws.header),
                    signed: Some(Zeroizing::new(jws.signing_input.to_owned())),
                    inner_header: None,
                })
            }
            Compact::Jwe(jwe) => {
                let (plaintext, encryption) = self.decrypt(&jwe)?;
                let says_nested = jwe
                    .header
                    .cty
                    .as_deref()
                    .is_some_and(|cty| is_media_type(cty, "jwt"));
                if json::begins_an_object(&plaintext) {
                    if says_nested {
                        return Err(TokenError::WrongType("cty"));
                    }
                    check_type(&jwe.header)?;
                    self.check_unsigned(jwe.alg)?;
                    return Ok(Opened {
                        payload: plaintext,
                        protection: Protection::Encrypted(encryption),
                        kind: Ok(()),
                        signed: None,
                        inner_header: None,
                    });
                }
                let inner = std::str::from_utf8(&plaintext)
                    .map_err(|_| TokenError::Malformed("it encrypts neither claims nor a token"))?;
                let Signed {
                    payload,
                    signature,
                    kind,
                    signed,
                } = self.check_inner(inner)?;
                Ok(Opened {
                    payload,
                    kind,
                    protection: Protection::Nested {
                        encryption,
                        signature,
                    },
                    signed: Some(signed),
                    inner_header: jose::header_for_display(inner).ok(),
                })
            }
        }
    }

    fn check_signature(
        &self,
        jws: &Jws<'_>,
        alg: SignatureAlgorithm,
    ) -> Result<(Zeroizing<Vec<u8>>, Signature), TokenError> {
        if !self.keys.allows_signature(alg) {
            return Err(TokenError::Algorithm);
        }
        let kid = jws.header.kid.as_deref();
        let mut verifiers = self.keys.verifiers(alg, kid).peekable();
        if verifiers.peek().is_none() {
            return Err(TokenError::UnknownSigner);
        }
        let payload = verifiers
            .find_map(|(verifier, _)| verifier.verify(jws).ok())
            .ok_or(TokenError::Unauthentic)?;
        let kid = jws.header.kid.clone();
        Ok((payload, Signature { alg, kid }))
    }

    fn decrypt(&self, jwe: &Jwe<'_>) -> Result<(Zeroizing<Vec<u8>>, Encryption), TokenError> {
        if !self.keys.decrypts() {
            return Err(TokenError::Undecryptable(Undecryptable::NoKey));
        }
        if !self.keys.allows_encryption(jwe.alg) {
            return Err(TokenError::Algorithm);
        }
        let kid = jwe.header.kid.as_deref();
        let mut decrypters = self.keys.decrypters(jwe.alg, kid).peekable();
        if decrypters.peek().is_none() {
            return Err(TokenError::Undecryptable(Undecryptable::UnknownKey));
        }
        let plaintext = decrypters
            .find_map(|(decrypter, _)| decrypter.decrypt(jwe).ok())
            .ok_or(TokenError::Undecryptable(Undecryptable::NoneFits))?;
        Ok((
            plaintext,
            Encryption {
                alg: jwe.alg,
                enc: jwe.enc,
                kid: jwe.header.kid.clone(),
            },
        ))
    }

    /// What an encrypted token holds if not claims: a signed token, and no further layer.
    fn check_inner(&self, text: &str) -> Result<Signed, TokenError> {
        match Compact::parse(text)? {
            Compact::Jws(jws) => match jws.alg {
                JwsAlg::None => Err(TokenError::AlgNone),
                JwsAlg::Signed(alg) => {
                    let (payload, signature) = self.check_signature(&jws, alg)?;
                    let signed = Zeroizing::new(jws.signing_input.to_owned());
                    Ok(Signed {
                        payload,
                        signature,
                        kind: check_type(&jws.header),
                        signed,
                    })
                }
            },
            Compact::Jwe(_) => Err(TokenError::Malformed("it is encrypted twice")),
        }
    }

    fn check_unsigned(&self, alg: KeyManagement) -> Result<(), TokenError> {
        match self.rules.unsigned_jwe {
            UnsignedJwe::Accept => Ok(()),
            UnsignedJwe::SymmetricOnly if alg.is_symmetric() => Ok(()),
            UnsignedJwe::SymmetricOnly | UnsignedJwe::Refuse => Err(TokenError::UnsignedEncrypted),
        }
    }
}

/// What a token looks like from outside and, as far as keys allow, from inside.
#[derive(Debug)]
pub struct TokenInspection {
    /// The header of each layer, the outermost first.
    pub header: Vec<Value>,
    /// The claims, secrets masked; none where they are encrypted to a key that is not at hand.
    pub claims: Option<Map<String, Value>>,
    /// How it is protected, if a key vouched for that.
    pub protection: Option<Protection>,
    /// The verdict, if keys were given.
    pub verdict: Option<Result<Token, TokenError>>,
}

impl TokenInspection {
    /// What can be seen without a key: the claims of a merely signed token, unverified.
    #[must_use]
    pub fn without_keys(text: &str) -> Self {
        let claims = match Compact::parse(text) {
            Ok(Compact::Jws(jws)) => jws
                .unverified_payload()
                .ok()
                .and_then(|payload| claims::masked(&payload)),
            Ok(Compact::Jwe(_)) | Err(_) => None,
        };
        Self {
            header: jose::header_for_display(text).into_iter().collect(),
            claims,
            protection: None,
            verdict: None,
        }
    }
}

/// Other kinds of token may be signed with the same key ([RFC 8725] 3.11); `ASSOCIATION` is what other JET gateways
/// call theirs.
///
/// [RFC 8725]: https://www.rfc-editor.org/rfc/rfc8725#section-3.11
fn check_type(header: &Header) -> Result<(), TokenError> {
    if header
        .typ
        .as_deref()
        .is_some_and(|typ| !is_media_type(typ, "jwt") && !is_media_type(typ, "jose"))
    {
        return Err(TokenError::WrongType("typ"));
    }
    if header
        .cty
        .as_deref()
        .is_some_and(|cty| !is_media_type(cty, "jwt") && !is_media_type(cty, "association"))
    {
        return Err(TokenError::WrongType("cty"));
    }
    Ok(())
}

/// Media types compare without case, and `application/` may be left out ([RFC 7515] 4.1.9).
///
/// [RFC 7515]: https://www.rfc-editor.org/rfc/rfc7515#section-4.1.9
fn is_media_type(value: &str, name: &str) -> bool {
    const PREFIX: &str = "application/";
    let short = match value.get(..PREFIX.len()) {
        Some(start) if start.eq_ignore_ascii_case(PREFIX) => {
            value.get(PREFIX.len()..).unwrap_or("")
        }
        Some(_) | None => value,
    };
    short.eq_ignore_ascii_case(name)
}

/// Longest value of a claim in a log line, characters: as `sub` may have.
const ABOUT_CHARS: usize = 1024;

/// Taking a token apart and reading its claims, microseconds.
const PARSING_US: u32 = 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::algorithm::Algorithm;
    use super::claims::{ConnectionMode, RecordingPolicy};
    use super::key::Key;
    use super::mint::{EncryptionKey, SigningKey, generate, mint};
    use super::*;

    const NOW: UnixTime = UnixTime(1_700_000_000);

    fn key(alg: &str, kid: &str) -> Key {
        let mut key = generate(alg.parse::<Algorithm>().unwrap()).unwrap();
        key.set_kid(Some(kid.to_owned()));
        key
    }

    /// What a gateway is given of a key: the public half to verify, the private half to decrypt.
    fn for_gateway(key: &Key) -> String {
        match key.usage() {
            Some(KeyUsage::Sign) if key.public_jwk().is_some() => {
                serde_json::to_string(&key.public_jwk().unwrap()).unwrap()
            }
            _ => key.private_jwk().unwrap().as_str().to_owned(),
        }
    }

    fn verifier(keys: &[&Key], rules: TokenRules) -> Verifier {
        let texts: Vec<String> = keys.iter().map(|key| for_gateway(key)).collect();
        let documents: Vec<KeyDocument<'_>> = texts
            .iter()
            .map(|text| KeyDocument {
                name: "key",
                bytes: text.as_bytes(),
                usage: None,
                kid: None,
            })
            .collect();
        Verifier::new(KeySet::from_documents(&documents).unwrap(), rules)
    }

    fn signing(key: &Key) -> SigningKey {
        SigningKey::from_key(key, None).unwrap()
    }

    fn encrypting(key: &Key) -> EncryptionKey {
        EncryptionKey::from_key(key, None).unwrap()
    }

    fn forward() -> Value {
        json!({ "jet_cm": "fwd", "dst_hst": "rdp.example:3389", "iat": NOW.0 })
    }

    fn rule(result: Result<Token, TokenError>) -> &'static str {
        result.map_or_else(|error| error.rule(), |_| "accepted")
    }

    // J-JWT-2
    #[test]
    fn every_signature_algorithm_verifies_with_its_own_key_only() {
        let mut keys: Vec<Key> = SignatureAlgorithm::ALL
            .iter()
            .map(|alg| key(alg.name(), alg.name()))
            .collect();
        for signer in &keys {
            let text = mint(&forward(), Some(&signing(signer)), None).unwrap();
            assert_eq!(
                rule(verifier(&[signer], TokenRules::default()).verify(&text, NOW)),
                "accepted"
            );
        }
        let first = keys.remove(0);
        let only_first = verifier(&[&first], TokenRules::default());
        for signer in &keys {
            let text = mint(&forward(), Some(&signing(signer)), None).unwrap();
            assert_eq!(
                rule(only_first.verify(&text, NOW)),
                "algorithm",
                "{signer:?}"
            );
        }
        let same_algorithm = key("RS256", "RS256");
        let text = mint(&forward(), Some(&signing(&same_algorithm)), None).unwrap();
        assert_eq!(rule(only_first.verify(&text, NOW)), "signature");
    }

    // J-JWT-4
    #[test]
    fn every_encryption_algorithm_opens_with_its_own_key_only() {
        let signer = key("ES256", "s");
        for alg in KeyManagement::ALL {
            let encrypter = key(alg.name(), "e");
            for enc in ContentEncryption::ALL {
                if *alg == KeyManagement::Dir && *enc == ContentEncryption::A128Gcm {
                    continue;
                }
                let to = encrypting(&encrypter).with_content_encryption(*enc);
                let text = mint(&forward(), Some(&signing(&signer)), Some(&to)).unwrap();
                let ours = verifier(&[&signer, &encrypter], TokenRules::default());
                let token = ours.verify(&text, NOW).unwrap();
                assert!(
                    matches!(token.protection, Protection::Nested { .. }),
                    "{alg} {enc}"
                );
                let other = key(alg.name(), "e");
                let theirs = verifier(&[&signer, &other], TokenRules::default());
                assert_eq!(rule(theirs.verify(&text, NOW)), "decryption", "{alg} {enc}");
            }
        }
    }

    #[test]
    fn why_a_token_is_not_decrypted_is_told_and_is_no_matter_of_signatures() {
        let signer = key("ES256", "s");
        let ours = key("ECDH-ES", "2024");
        let text =
            |to: EncryptionKey| mint(&forward(), Some(&signing(&signer)), Some(&to)).unwrap();
        let other = key("ECDH-ES", "2024");
        let cases = [
            (vec![&signer], encrypting(&ours), Undecryptable::NoKey),
            (
                vec![&signer, &ours],
                encrypting(&key("ECDH-ES", "2023")),
                Undecryptable::UnknownKey,
            ),
            (
                vec![&signer, &ours],
                encrypting(&other),
                Undecryptable::NoneFits,
            ),
        ];
        for (keys, to, why) in cases {
            let error = verifier(&keys, TokenRules::default()).verify(&text(to), NOW);
            let error = error.unwrap_err();
            assert_eq!(error, TokenError::Undecryptable(why));
            assert_eq!(error.rule(), "decryption");
        }
        // Somebody else's signature inside is a matter of the signature.
        let stranger = key("ES256", "1999");
        let text = mint(
            &forward(),
            Some(&signing(&stranger)),
            Some(&encrypting(&ours)),
        );
        let error = verifier(&[&signer, &ours], TokenRules::default()).verify(&text.unwrap(), NOW);
        assert_eq!(error.unwrap_err(), TokenError::UnknownSigner);
    }

    #[test]
    fn a_refused_token_says_whose_it_is_where_its_signature_holds_and_never_else() {
        let (signer, stranger) = (key("ES256", "s"), key("ES256", "s"));
        let ours = verifier(&[&signer], TokenRules::default());
        let claims = json!({
            "jet_cm": "fwd", "dst_hst": "pc42:3389", "sub": "alice", "jti": "t-1", "exp": NOW.0 - 4000,
        });
        let judged = |signer: &Key| {
            let text = mint(&claims, Some(&signing(signer)), None).unwrap();
            ours.judge(&text, NOW).unwrap_err()
        };
        let rejected = judged(&signer);
        assert_eq!(
            rejected.to_string(),
            "the token was valid until 2023-11-14T21:06:40Z, 1 h 6 min ago, and it is 2023-11-14T22:13:20Z"
        );
        let about = rejected.about.unwrap();
        assert_eq!(about.id.as_str(), "t-1");
        assert_eq!(about.user.as_deref(), Some("alice"));
        assert_eq!(about.target.as_deref(), Some("pc42:3389"));
        assert_eq!(judged(&stranger).about, None);
        // By the header alone, and by a claim.
        let of_other_kind = sign_with_header(&signer, json!({ "cty": "SCOPE" }), &claims);
        let rejected = ours.judge(&of_other_kind, NOW).unwrap_err();
        assert_eq!(rejected.error, TokenError::WrongType("cty"));
        assert_eq!(rejected.about.unwrap().id.as_str(), "t-1");
        // Nothing vouches for what nobody has signed.
        let rules = TokenRules {
            allow_none: true,
            ..TokenRules::default()
        };
        let unsigned = mint(&claims, None, None).unwrap();
        let rejected = verifier(&[&signer], rules)
            .judge(&unsigned, NOW)
            .unwrap_err();
        assert_eq!((rejected.error.rule(), rejected.about), ("expired", None));
    }

    // J-JWT-1, J-CM-1, J-DST-1: nothing but what the specification asks for.
    #[test]
    fn a_minimal_token_of_the_specification_is_accepted() {
        let signer = key("RS256", "k");
        let text = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let token = verifier(&[&signer], TokenRules::default())
            .verify(&text, NOW)
            .unwrap();
        assert!(token.id.as_str().starts_with("sha256:"));
        assert_eq!(token.claims.jet_cm, ConnectionMode::Fwd);
        assert_eq!(token.claims.targets, ["rdp.example:3389".parse().unwrap()]);
        assert_eq!(token.claims.jet_rec, RecordingPolicy::None);
        assert!(!token.claims.jet_flt);
        assert_eq!(token.claims.validity.not_after, NOW.plus(120));
        assert_eq!(token.protection.to_string(), "RS256 (key k)");
    }

    // J-JWT-2, J-JWT-4
    #[test]
    fn tokens_of_another_implementation_are_accepted() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/golden/token/jwcrypto.json")).unwrap();
        let vectors = vectors.as_array().unwrap();
        assert_eq!(vectors.len(), 35);
        for vector in vectors {
            let name = vector["name"].as_str().unwrap();
            let keys = json!({ "keys": vector["keys"] }).to_string();
            let document = KeyDocument {
                name,
                bytes: keys.as_bytes(),
                usage: None,
                kid: None,
            };
            let keys = KeySet::from_documents(&[document]).unwrap();
            let verifier = Verifier::new(keys, TokenRules::default());
            let verdict = verifier.verify(vector["token"].as_str().unwrap(), NOW);
            assert_eq!(rule(verdict), "accepted", "{name}");
        }
    }

    // J-JWT-2: the public key is no HMAC secret.
    #[test]
    fn a_token_signed_with_the_text_of_the_public_key_is_refused() {
        let rsa = key("RS256", "k");
        let ours = verifier(&[&rsa], TokenRules::default());
        for secret in [rsa.public_pem().unwrap(), for_gateway(&rsa)] {
            let oct = json!({ "kty": "oct", "use": "sig", "k": base64url(secret.as_bytes()) });
            let oct = oct.to_string();
            let document = KeyDocument {
                name: "k",
                bytes: oct.as_bytes(),
                usage: None,
                kid: Some("k"),
            };
            let forger = SigningKey::from_document(&document, None).unwrap();
            let text = mint(&forward(), Some(&forger), None).unwrap();
            assert_eq!(rule(ours.verify(&text, NOW)), "algorithm");
        }
    }

    // J-JWT-3
    #[test]
    fn alg_none_is_refused_but_for_the_development_switch() {
        let text = mint(&forward(), None, None).unwrap();
        let signer = key("ES256", "k");
        assert_eq!(
            rule(verifier(&[&signer], TokenRules::default()).verify(&text, NOW)),
            "alg-none"
        );
        let rules = TokenRules {
            allow_none: true,
            ..TokenRules::default()
        };
        let developer = verifier(&[&signer], rules);
        assert_eq!(
            developer.verify(&text, NOW).unwrap().protection,
            Protection::None
        );
        assert_eq!(
            rule(developer.verify(&format!("{text}AAAA"), NOW)),
            "alg-none"
        );
        // Stripping a signature makes a token of the name "none" out of nothing else.
        let signed = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let stripped = format!("{}.", signed.rsplit_once('.').unwrap().0);
        assert_eq!(rule(developer.verify(&stripped, NOW)), "signature");
    }

    // J-JWT-3
    #[test]
    fn alg_none_inside_an_encrypted_token_is_refused_even_with_the_switch() {
        let encrypter = key("RSA-OAEP-256", "e");
        let inner = mint(&forward(), None, None).unwrap();
        let text = seal(&encrypter, inner.as_bytes(), Some("JWT"));
        let rules = TokenRules {
            allow_none: true,
            unsigned_jwe: UnsignedJwe::Accept,
            ..TokenRules::default()
        };
        assert_eq!(
            rule(verifier(&[&encrypter], rules).verify(&text, NOW)),
            "alg-none"
        );
    }

    // J-JWT-4
    #[test]
    fn encryption_alone_is_accepted_only_as_configured() {
        let public = key("RSA-OAEP-256", "e");
        let shared = key("dir", "d");
        let agreed = key("ECDH-ES", "a");
        let cases = [
            (UnsignedJwe::Refuse, &public, "unsigned-jwe"),
            (UnsignedJwe::Refuse, &shared, "unsigned-jwe"),
            (UnsignedJwe::SymmetricOnly, &public, "unsigned-jwe"),
            (UnsignedJwe::SymmetricOnly, &agreed, "unsigned-jwe"),
            (UnsignedJwe::SymmetricOnly, &shared, "accepted"),
            (UnsignedJwe::Accept, &public, "accepted"),
            (UnsignedJwe::Accept, &shared, "accepted"),
        ];
        for (unsigned_jwe, encrypter, expected) in cases {
            let rules = TokenRules {
                unsigned_jwe,
                ..TokenRules::default()
            };
            let text = mint(&forward(), None, Some(&encrypting(encrypter))).unwrap();
            let ours = verifier(&[encrypter], rules);
            assert_eq!(
                rule(ours.verify(&text, NOW)),
                expected,
                "{unsigned_jwe:?} {encrypter:?}"
            );
        }
    }

    // J-JWT-4: whoever has the gateway's public key can encrypt, and that is all they can do.
    #[test]
    fn a_stranger_with_the_public_key_makes_no_token() {
        let (signer, encrypter) = (key("ES256", "s"), key("RSA-OAEP-256", "e"));
        let stranger = key("ES256", "s");
        let ours = verifier(&[&signer, &encrypter], TokenRules::default());
        let text = mint(
            &forward(),
            Some(&signing(&stranger)),
            Some(&encrypting(&encrypter)),
        );
        assert_eq!(rule(ours.verify(&text.unwrap(), NOW)), "signature");
    }

    // J-JWT-4: exactly one layer of each.
    #[test]
    fn nesting_is_one_signature_in_one_encryption() {
        let (signer, encrypter) = (key("ES256", "s"), key("A256KW", "e"));
        let rules = TokenRules {
            unsigned_jwe: UnsignedJwe::Accept,
            ..TokenRules::default()
        };
        let ours = verifier(&[&signer, &encrypter], rules);
        let signed = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let nested = seal(&encrypter, signed.as_bytes(), Some("jwt"));
        assert!(ours.verify(&nested, NOW).is_ok());
        assert!(
            ours.verify(&seal(&encrypter, signed.as_bytes(), None), NOW)
                .is_ok()
        );
        let twice = seal(&encrypter, nested.as_bytes(), Some("JWT"));
        assert_eq!(rule(ours.verify(&twice, NOW)), "malformed");
        // cty says token, content says claims.
        let lie = seal(&encrypter, forward().to_string().as_bytes(), Some("JWT"));
        assert_eq!(rule(ours.verify(&lie, NOW)), "type");
        for noise in [&b""[..], b"\xff\xfe", b"hello"] {
            assert_eq!(
                rule(ours.verify(&seal(&encrypter, noise, None), NOW)),
                "malformed"
            );
        }
    }

    #[test]
    fn the_id_of_a_token_without_jti_follows_from_what_was_signed_whatever_wraps_it() {
        let (signer, shared) = (key("ES256", "s"), key("A256KW", "e"));
        let (public, direct) = (key("RSA-OAEP-256", "p"), key("dir", "d"));
        let ours = verifier(&[&signer, &shared, &public, &direct], TokenRules::default());
        let id = |text: &str| ours.verify(text, NOW).unwrap().id;
        let signed = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let mut ids = vec![id(&signed)];
        for wrapper in [&shared, &public, &direct, &public] {
            for cty in [Some("JWT"), None] {
                ids.push(id(&seal(wrapper, signed.as_bytes(), cty)));
            }
        }
        // The other signature that anybody can make of an ECDSA signature, bare and wrapped.
        let (input, signature) = signed.rsplit_once('.').unwrap();
        let other = format!("{input}.{}", other_es256(signature));
        assert_ne!(other, signed);
        ids.push(id(&other));
        ids.push(id(&seal(&shared, other.as_bytes(), Some("JWT"))));
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
        // Other claims are another token.
        let mut claims = forward();
        claims["sub"] = json!("alice");
        let another = mint(&claims, Some(&signing(&signer)), None).unwrap();
        assert_ne!(id(&seal(&shared, another.as_bytes(), None)), ids[0]);
    }

    #[test]
    fn the_id_of_a_token_with_a_password_follows_from_all_but_the_password() {
        let (signer, shared) = (key("ES256", "s"), key("A256KW", "e"));
        let ours = verifier(&[&signer, &shared], TokenRules::default());
        let id = |user: &str, password: &str| {
            let mut claims = forward();
            claims["dst_usr"] = json!(user);
            claims["dst_pwd"] = json!(password);
            let to = encrypting(&shared);
            let text = mint(&claims, Some(&signing(&signer)), Some(&to)).unwrap();
            ours.verify(&text, NOW).unwrap().id
        };
        assert_eq!(id("alice", "secret"), id("alice", "secret"));
        // Who guesses a password learns nothing by hashing.
        assert_eq!(id("alice", "secret"), id("alice", "Winter26"));
        assert_ne!(id("alice", "secret"), id("bob", "secret"));
    }

    #[test]
    fn the_id_of_a_token_that_is_only_encrypted_follows_from_its_claims() {
        let (shared, direct) = (key("A256KW", "e"), key("dir", "d"));
        let rules = TokenRules {
            unsigned_jwe: UnsignedJwe::SymmetricOnly,
            ..TokenRules::default()
        };
        let ours = verifier(&[&shared, &direct], rules);
        let iat = NOW.0;
        let mut ids: Vec<TokenId> = Vec::new();
        for (wrapper, claims) in [
            (&shared, forward().to_string()),
            (&shared, forward().to_string()),
            (&direct, forward().to_string()),
            (
                &direct,
                format!(r#" {{"iat":{iat}, "dst_hst":"rdp.example:3389","jet_cm":"f\u0077d"}}"#),
            ),
        ] {
            let text = seal(wrapper, claims.as_bytes(), None);
            ids.push(ours.verify(&text, NOW).unwrap().id);
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
        let mut claims = forward();
        claims["sub"] = json!("alice");
        let another = seal(&shared, claims.to_string().as_bytes(), None);
        assert_ne!(ours.verify(&another, NOW).unwrap().id, ids[0]);
    }

    /// `(r, n - s)` of an ES256 signature `(r, s)`.
    fn other_es256(signature: &str) -> String {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        use openssl::bn::{BigNum, BigNumContext};
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1);
        let mut order = BigNum::new().unwrap();
        group
            .unwrap()
            .order(&mut order, &mut BigNumContext::new().unwrap())
            .unwrap();
        let s = BigNum::from_slice(&bytes[32..]).unwrap();
        let mut other = BigNum::new().unwrap();
        other.checked_sub(&order, &s).unwrap();
        let mut text = bytes[..32].to_vec();
        text.extend(other.to_vec_padded(32).unwrap());
        URL_SAFE_NO_PAD.encode(text)
    }

    #[test]
    fn a_token_of_another_kind_is_refused() {
        let signer = key("ES256", "k");
        let ours = verifier(&[&signer], TokenRules::default());
        let cases = [
            (json!({ "typ": "JWT", "cty": "ASSOCIATION" }), "accepted"),
            (json!({ "typ": "jwt", "cty": "association" }), "accepted"),
            (json!({ "typ": "application/jwt" }), "accepted"),
            (json!({}), "accepted"),
            (json!({ "cty": "SCOPE" }), "type"),
            (json!({ "cty": "JREC" }), "type"),
            (json!({ "typ": "at+jwt" }), "type"),
            (json!({ "typ": "dpop+jwt" }), "type"),
        ];
        for (header, expected) in cases {
            let text = sign_with_header(&signer, header.clone(), &forward());
            assert_eq!(rule(ours.verify(&text, NOW)), expected, "{header}");
        }
    }

    // A key in the header is not a key of ours.
    #[test]
    fn a_key_that_the_token_brings_along_is_not_used() {
        let (signer, stranger) = (key("ES256", "k"), key("ES256", "k"));
        let ours = verifier(&[&signer], TokenRules::default());
        let header = json!({ "kid": "k", "jwk": stranger.public_jwk().unwrap() });
        let text = sign_with_header(&stranger, header, &forward());
        assert_eq!(rule(ours.verify(&text, NOW)), "signature");
    }

    #[test]
    fn kid_selects_and_keys_rotate() {
        let (old, new) = (key("ES256", "2023"), key("ES256", "2024"));
        let both = verifier(&[&old, &new], TokenRules::default());
        for signer in [&old, &new] {
            let text = mint(&forward(), Some(&signing(signer)), None).unwrap();
            assert!(both.verify(&text, NOW).is_ok());
            let unnamed = signing(signer).with_kid(None);
            let text = mint(&forward(), Some(&unnamed), None).unwrap();
            assert!(
                both.verify(&text, NOW).is_ok(),
                "without kid all keys are tried"
            );
        }
        let misnamed = signing(&old).with_kid(Some("2024".to_owned()));
        let text = mint(&forward(), Some(&misnamed), None).unwrap();
        assert_eq!(
            rule(both.verify(&text, NOW)),
            "signature",
            "kid selects one key only"
        );
        let unknown = signing(&old).with_kid(Some("1999".to_owned()));
        let text = mint(&forward(), Some(&unknown), None).unwrap();
        assert_eq!(rule(both.verify(&text, NOW)), "signature");
    }

    #[test]
    fn a_key_without_a_name_serves_a_token_that_names_one() {
        let signer = key("ES256", "named-by-the-issuer");
        let pem = signer.public_pem().unwrap();
        let document = KeyDocument {
            name: "pem",
            bytes: pem.as_bytes(),
            usage: None,
            kid: None,
        };
        let keys = KeySet::from_documents(&[document]).unwrap();
        let text = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        assert!(
            Verifier::new(keys, TokenRules::default())
                .verify(&text, NOW)
                .is_ok()
        );
    }

    // A rewritten signature must not be a second use.
    #[test]
    fn an_ecdsa_signature_rewritten_by_anybody_keeps_the_token_id() {
        let signer = key("ES256", "k");
        let ours = verifier(&[&signer], TokenRules::default());
        let text = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let (signing_input, signature) = text.rsplit_once('.').unwrap();
        let mut signature = from_base64url(signature);
        let order = openssl::bn::BigNum::from_hex_str(
            "FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551",
        );
        let s = openssl::bn::BigNum::from_slice(&signature[32..]).unwrap();
        let other = (&order.unwrap() - &s).to_vec_padded(32).unwrap();
        signature.splice(32.., other);
        let rewritten = format!("{signing_input}.{}", base64url(&signature));
        assert_ne!(rewritten, text);
        let (first, second) = (ours.verify(&text, NOW), ours.verify(&rewritten, NOW));
        assert_eq!(first.unwrap().id, second.unwrap().id);
    }

    // J-JWT-5, J-DST-2
    #[test]
    fn secrets_make_a_token_invalid_unless_it_was_encrypted() {
        let (signer, encrypter) = (key("ES256", "s"), key("RSA-OAEP-256", "e"));
        let rules = TokenRules {
            allow_none: true,
            ..TokenRules::default()
        };
        let ours = verifier(&[&signer, &encrypter], rules);
        for pair in [["dst_usr", "dst_pwd"], ["prx_usr", "prx_pwd"]] {
            let mut claims = forward();
            claims[pair[0]] = json!("alice");
            claims[pair[1]] = json!("hunter2");
            assert_eq!(
                mint(&claims, Some(&signing(&signer)), None),
                Err(mint::MintError::SecretUnencrypted(pair[0]))
            );
            let signed = sign_with_header(&signer, json!({}), &claims);
            let error = ours.verify(&signed, NOW).unwrap_err();
            assert_eq!(error, TokenError::SecretUnencrypted { claim: pair[0] });
            let nested = seal(&encrypter, signed.as_bytes(), Some("JWT"));
            let claims = ours.verify(&nested, NOW).unwrap().claims;
            let shown = format!("{claims:?}");
            assert!(
                !shown.contains("hunter2") && !shown.contains("alice"),
                "{shown}"
            );
            assert!(
                claims
                    .extra
                    .keys()
                    .all(|name| !pair.contains(&name.as_str()))
            );
            let found = claims
                .target_credentials
                .or(claims.proxy_credentials)
                .unwrap();
            assert_eq!(found.username, "alice");
            assert_eq!(
                secrecy::ExposeSecret::expose_secret(&found.password),
                "hunter2"
            );
        }
    }

    // J-JWT-1, J-REC-1, J-FLT-1: as another gateway's issuer writes it.
    #[test]
    fn a_token_made_for_another_jet_gateway_is_accepted() {
        let (signer, encrypter) = (key("RS256", "k"), key("RSA-OAEP-256", "e"));
        let ours = verifier(&[&signer, &encrypter], TokenRules::default());
        let jti = "f1c4a1b2-36c5-4a35-8c0e-6e4f1b2c3d4e";
        let claims = json!({
            "jet_aid": "4daeb814-cdb6-4779-a16b-6479064e8107", "jet_ap": "rdp", "jet_cm": "fwd",
            "dst_hst": "host:3389", "dst_alt": ["[2001:db8::1]:3389"], "jet_rec": "none",
            "jet_flt": false, "jet_ttl": 0, "jet_reuse": 30, "jti": jti, "sub": "alice",
            "nbf": NOW.0, "exp": NOW.0 + 900,
            "cert_thumb256": "AB".repeat(32),
        });
        let header = json!({ "typ": "JWT", "cty": "ASSOCIATION" });
        let signed = sign_with_header(&signer, header, &claims);
        let token = ours.verify(&signed, NOW).unwrap();
        assert_eq!(token.id.as_str(), jti);
        assert_eq!(token.claims.jet_ttl, None);
        assert_eq!(
            token.claims.jet_reuse,
            Some(std::time::Duration::from_secs(30))
        );
        assert_eq!(token.claims.targets.len(), 2);
        assert_eq!(
            token.claims.cert_thumb256.unwrap().to_string(),
            "ab".repeat(32)
        );
        // Theirs has no cty on the outer layer.
        let nested = seal(&encrypter, signed.as_bytes(), None);
        assert_eq!(ours.verify(&nested, NOW).unwrap().id.as_str(), jti);
    }

    #[test]
    fn an_error_says_nothing_of_the_token() {
        let signer = key("ES256", "k");
        let ours = verifier(&[&signer], TokenRules::default());
        let mark = "s3cr3t-mark";
        let mut texts = vec![
            mark.to_owned(),
            format!("{mark}.{mark}.{mark}"),
            format!(
                "{}.e30.{mark}",
                base64url(json!({ "alg": mark }).to_string().as_bytes())
            ),
            format!(
                "{}.e30.{mark}",
                base64url(
                    json!({ "alg": "ES256", "kid": mark })
                        .to_string()
                        .as_bytes()
                )
            ),
        ];
        for claims in [
            json!({ "iat": NOW.0, "jet_cm": mark }),
            json!({ "iat": mark }),
            json!({ "iat": NOW.0, "dst_usr": mark, "dst_pwd": mark }),
            json!({ "iat": NOW.0, "jet_cm": "fwd", "dst_hst": mark }),
            json!({ "iat": NOW.0, "iss": mark, "aud": "gw-2", "sub": mark, "dst_hst": mark }),
            json!([mark]),
        ] {
            texts.push(sign_with_header(&signer, json!({}), &claims));
        }
        for text in texts {
            let error = ours.verify(&text, NOW).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(mark), "{error:?}");
        }
    }

    #[test]
    fn cost_follows_from_header_and_keys_alone() {
        let (signer, encrypter) = (key("ES256", "s"), key("RSA-OAEP-256", "e"));
        let ours = verifier(&[&signer, &encrypter], TokenRules::default());
        let signed = mint(&forward(), Some(&signing(&signer)), None).unwrap();
        let nested = mint(
            &forward(),
            Some(&signing(&signer)),
            Some(&encrypting(&encrypter)),
        );
        let unknown = mint(&forward(), Some(&signing(&key("RS256", "x"))), None).unwrap();
        let [junk, unknown, signed, nested] =
            ["junk", &unknown, &signed, &nested.unwrap()].map(|text| ours.cost_us(text));
        assert!(junk > 0 && junk == unknown, "no cryptography, little cost");
        assert!(signed > unknown && nested > signed);
        // Garbage in the right shape costs as much as a token.
        let garbage = format!(
            "{}.AAAA.AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA",
            base64url(br#"{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"e"}"#)
        );
        assert_eq!(ours.cost_us(&garbage), nested);
    }

    #[test]
    fn inspection_shows_what_it_can_and_masks_secrets() {
        let (signer, encrypter) = (key("ES256", "s"), key("RSA-OAEP-256", "e"));
        let mut claims = forward();
        claims["dst_usr"] = json!("alice");
        claims["dst_pwd"] = json!("hunter2");
        let nested = mint(
            &claims,
            Some(&signing(&signer)),
            Some(&encrypting(&encrypter)),
        )
        .unwrap();
        let outside = TokenInspection::without_keys(&nested);
        assert_eq!(outside.header.len(), 1);
        assert!(outside.claims.is_none() && outside.verdict.is_none());
        let inside = verifier(&[&signer, &encrypter], TokenRules::default()).inspect(&nested, NOW);
        assert_eq!(inside.header[1]["alg"], "ES256");
        let shown = inside.claims.unwrap();
        assert_eq!(
            (&shown["dst_usr"], &shown["dst_pwd"]),
            (&json!("(hidden)"), &json!("(hidden)"))
        );
        assert!(inside.verdict.unwrap().is_ok());
    }

    fn base64url(bytes: &[u8]) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    }

    fn from_base64url(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(text)
            .unwrap()
    }

    /// A signed token with any header and any payload.
    fn sign_with_header(key: &Key, mut header: Value, claims: &Value) -> String {
        let alg = key.signature_algorithms()[0];
        header["alg"] = json!(alg.name());
        let signer = jose::Signer::from_pkcs8(alg, &key.pkcs8().unwrap()).unwrap();
        signer
            .sign(header.as_object().unwrap(), claims.to_string().as_bytes())
            .unwrap()
    }

    /// An encrypted token around any plaintext.
    fn seal(key: &Key, plaintext: &[u8], cty: Option<&str>) -> String {
        let alg = key.key_management_algorithms()[0];
        let encrypter = match key.secret() {
            Some(secret) => jose::Encrypter::from_secret(alg, secret),
            None => jose::Encrypter::from_spki(alg, &key.spki().unwrap()),
        };
        let mut header = json!({ "alg": alg.name(), "enc": "A256GCM" });
        if let Some(cty) = cty {
            header["cty"] = json!(cty);
        }
        encrypter
            .unwrap()
            .encrypt(header.as_object().unwrap().clone(), plaintext)
            .unwrap()
    }
}
