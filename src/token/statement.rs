//! Statements: short texts that one known key signs, for one purpose ([RFC 7515], compact form).
//!
//! A statement is no token. It is verified with the one key of whoever makes it, and its `typ` names its purpose; a token's
//! `typ` is another, and the keys of tokens are others. What is in it, and whether that is new, is for the caller to check.
//!
//! [RFC 7515]: https://www.rfc-editor.org/rfc/rfc7515#section-3.1

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::algorithm::SignatureAlgorithm;
use super::jose::{Compact, JwsAlg, SignatureVerifier};
use super::key::{Curve, Key, KeyDocument, KeyKind};
use super::mint::{MintError, SigningKey};
use jetway_base::limits;

/// The one algorithm of statements: every platform has it, and its signatures are short.
const ALGORITHM: SignatureAlgorithm = SignatureAlgorithm::Es256;

/// A public key whose statements are believed.
#[derive(Debug)]
pub struct StatementKey {
    verifier: SignatureVerifier,
    jwk: Map<String, Value>,
    thumbprint: String,
}

/// Why a document is no key for statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementKeyError {
    /// Not a key at all.
    #[error("not a key")]
    NotAKey,
    /// Its private half is in it.
    #[error("expected a public key, got a private one")]
    Private,
    /// Not on P-256.
    #[error("not a key for ES256")]
    Kind,
}

/// A text is not a statement of this key, for this purpose. It does not say which part failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the statement does not hold")]
pub struct NotStated;

impl StatementKey {
    /// Reads a public key, JWK or PEM.
    ///
    /// # Errors
    /// It is none, or of another kind.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementKeyError> {
        let document = KeyDocument {
            name: "statement key",
            bytes,
            usage: None,
            kid: None,
        };
        let keys = Key::parse(&document).map_err(|_| StatementKeyError::NotAKey)?;
        let [key] = keys.as_slice() else {
            return Err(StatementKeyError::NotAKey);
        };
        if key.is_secret() {
            return Err(StatementKeyError::Private);
        }
        if key.kind() != KeyKind::Ec(Curve::P256)
            || !key.signature_algorithms().contains(&ALGORITHM)
        {
            return Err(StatementKeyError::Kind);
        }
        let spki = key.spki().map_err(|_| StatementKeyError::NotAKey)?;
        let verifier =
            SignatureVerifier::from_spki(ALGORITHM, &spki).map_err(|_| StatementKeyError::Kind)?;
        Ok(Self {
            verifier,
            jwk: key.public_jwk().ok_or(StatementKeyError::NotAKey)?,
            thumbprint: key.thumbprint().ok_or(StatementKeyError::NotAKey)?,
        })
    }

    /// The key as a JWK.
    #[must_use]
    pub fn jwk(&self) -> &Map<String, Value> {
        &self.jwk
    }

    /// A name that follows from the key ([RFC 7638]).
    ///
    /// [RFC 7638]: https://www.rfc-editor.org/rfc/rfc7638
    #[must_use]
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// CPU that [`verify`](Self::verify) takes, microseconds.
    #[must_use]
    pub fn cost_us() -> u32 {
        KeyKind::Ec(Curve::P256).verification_us()
    }

    /// What `text` states, if this key has signed it for the purpose `typ`.
    ///
    /// # Errors
    /// It has not.
    pub fn verify<T: DeserializeOwned>(&self, text: &str, typ: &str) -> Result<T, NotStated> {
        let Ok(Compact::Jws(jws)) = parse(text, typ) else {
            return Err(NotStated);
        };
        let payload = self.verifier.verify(&jws).map_err(|_| NotStated)?;
        serde_json::from_slice(&payload).map_err(|_| NotStated)
    }
}

/// What `text` would state if it held, where its form is that of a statement for `typ`: to learn whose key to ask.
#[must_use]
pub fn claimed<T: DeserializeOwned>(text: &str, typ: &str) -> Option<T> {
    let Compact::Jws(jws) = parse(text, typ).ok()? else {
        return None;
    };
    let payload = jws.unverified_payload().ok()?;
    serde_json::from_slice(&payload).ok()
}

/// Signs a statement.
///
/// # Errors
/// The key cannot sign, or is of another algorithm.
pub fn sign(key: &SigningKey, typ: &str, statement: &impl Serialize) -> Result<String, MintError> {
    if key.algorithm() != ALGORITHM {
        return Err(MintError::Key);
    }
    let payload = serde_json::to_vec(statement).map_err(|_| MintError::NotAnObject)?;
    let mut header = Map::new();
    header.insert("alg".to_owned(), json!(ALGORITHM.name()));
    header.insert("typ".to_owned(), json!(typ));
    key.sign(&header, &payload)
}

fn parse<'a>(text: &'a str, typ: &str) -> Result<Compact<'a>, NotStated> {
    if text.len() > limits::STATEMENT_BYTES {
        return Err(NotStated);
    }
    match Compact::parse(text) {
        Ok(Compact::Jws(jws))
            if jws.header.typ.as_deref() == Some(typ)
                && jws.header.cty.is_none()
                && jws.alg == JwsAlg::Signed(ALGORITHM) =>
        {
            Ok(Compact::Jws(jws))
        }
        Ok(Compact::Jws(_) | Compact::Jwe(_)) | Err(_) => Err(NotStated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Algorithm;
    use crate::mint::{generate, mint};
    use crate::{KeySet, KeyUsage, TokenRules, Verifier};
    use jetway_base::time::UnixTime;

    fn key() -> Key {
        generate(Algorithm::Signature(ALGORITHM)).unwrap()
    }

    fn public(key: &Key) -> StatementKey {
        let jwk = Value::Object(key.public_jwk().unwrap()).to_string();
        StatementKey::parse(jwk.as_bytes()).unwrap()
    }

    #[test]
    fn a_statement_holds_for_its_key_and_its_purpose_only() {
        let (one, other) = (key(), key());
        let signing = SigningKey::from_key(&one, None).unwrap();
        let text = sign(&signing, "a+jwt", &json!({ "nonce": "x" })).unwrap();
        let known = public(&one);
        assert_eq!(known.verify::<Value>(&text, "a+jwt").unwrap()["nonce"], "x");
        assert_eq!(known.verify::<Value>(&text, "b+jwt"), Err(NotStated));
        assert_eq!(
            public(&other).verify::<Value>(&text, "a+jwt"),
            Err(NotStated)
        );
        assert_eq!(claimed::<Value>(&text, "b+jwt"), None);
        assert_eq!(claimed::<Value>(&text, "a+jwt").unwrap()["nonce"], "x");
        let (body, _) = text.rsplit_once('.').unwrap();
        for forged in [format!("{body}."), format!("{body}.AAAA"), String::new()] {
            assert_eq!(known.verify::<Value>(&forged, "a+jwt"), Err(NotStated));
        }
    }

    #[test]
    fn tokens_are_no_statements_and_statements_no_tokens() {
        let key = key();
        let signing = SigningKey::from_key(&key, None).unwrap();
        let claims = json!({ "jet_cm": "rdv", "nbf": 0, "exp": 100, "jti": "x" });
        let token = mint(&claims, Some(&signing), None).unwrap();
        assert_eq!(
            public(&key).verify::<Value>(&token, "a+jwt"),
            Err(NotStated)
        );
        let statement = sign(&signing, "a+jwt", &claims).unwrap();
        let pem = key.public_pem().unwrap();
        let document = KeyDocument {
            name: "k",
            bytes: pem.as_bytes(),
            usage: Some(KeyUsage::Sign),
            kid: None,
        };
        let keys = KeySet::from_documents(&[document]).unwrap();
        let verifier = Verifier::new(keys, TokenRules::default());
        verifier.verify(&token, UnixTime(1)).unwrap();
        let error = verifier.verify(&statement, UnixTime(1)).unwrap_err();
        assert_eq!(error.rule(), "type");
    }

    #[test]
    fn only_a_public_key_on_p256_is_taken() {
        let key = key();
        let private = key.private_jwk().unwrap();
        let parsed = |bytes: &[u8]| StatementKey::parse(bytes).err();
        assert_eq!(parsed(private.as_bytes()), Some(StatementKeyError::Private));
        assert_eq!(parsed(b"hello"), Some(StatementKeyError::NotAKey));
        let other = generate(Algorithm::Signature(SignatureAlgorithm::EdDsa)).unwrap();
        let pem = other.public_pem().unwrap();
        assert_eq!(parsed(pem.as_bytes()), Some(StatementKeyError::Kind));
    }
}
