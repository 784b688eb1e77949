//! Tokens that `jetway token` would not make.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use josekit::jwe::{JweHeader, RSA_OAEP_256};
use josekit::jws::{ES256, HS256, JwsHeader, JwsSigner};
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub(crate) type Claims = Map<String, Value>;

/// Claims that the gateway accepts, for `target`, valid now; each refusal is these with one thing wrong.
pub(crate) fn good_claims(target: &str) -> Result<Claims> {
    let now = now()?;
    let claims = json!({
        "jet_cm": "fwd",
        "jet_ap": "rdp",
        "dst_hst": target,
        "jti": Uuid::new_v4().to_string(),
        "nbf": now - 10,
        "exp": now + 120,
    });
    claims.as_object().cloned().context("an object")
}

pub(crate) fn now() -> Result<i64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the gateway under test reads the same clock"
    )]
    let now = SystemTime::now();
    Ok(i64::try_from(now.duration_since(UNIX_EPOCH)?.as_secs())?)
}

pub(crate) fn sign_es256(key: &Path, claims: &Claims) -> Result<String> {
    sign(&ES256.signer_from_pem(fs::read(key)?)?, claims)
}

/// Signed with `secret` as the shared key; with the text of a public key, the classic confusion of algorithms.
pub(crate) fn sign_hs256(secret: &[u8], claims: &Claims) -> Result<String> {
    sign(&HS256.signer_from_bytes(secret)?, claims)
}

/// The algorithm `none` and an empty signature.
pub(crate) fn unsigned(claims: &Claims) -> Result<String> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    Ok(format!(
        "{}.{}.",
        part(&json!({"alg": "none"})),
        part(&json!(claims))
    ))
}

/// The same token with other claims under the old signature.
pub(crate) fn tampered(token: &str, claims: &Claims) -> Result<String> {
    let (header, rest) = token.split_once('.').context("a compact token")?;
    let (_, signature) = rest.split_once('.').context("a compact token")?;
    let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?);
    Ok(format!("{header}.{claims}.{signature}"))
}

/// `signed` inside a JWE for the gateway.
pub(crate) fn encrypted(public_key: &Path, signed: &str) -> Result<String> {
    let mut header = JweHeader::new();
    header.set_content_encryption("A256GCM");
    header.set_content_type("JWT");
    let encrypter = RSA_OAEP_256.encrypter_from_pem(fs::read(public_key)?)?;
    Ok(josekit::jwe::serialize_compact(
        signed.as_bytes(),
        &header,
        &encrypter,
    )?)
}

fn sign(signer: &dyn JwsSigner, claims: &Claims) -> Result<String> {
    let mut header = JwsHeader::new();
    header.set_token_type("JWT");
    Ok(josekit::jws::serialize_compact(
        &serde_json::to_vec(claims)?,
        &header,
        signer,
    )?)
}
