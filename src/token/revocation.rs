//! Revoked tokens, named by any claim's value: one token by `jti`, a user by `sub`, a site by whatever the issuer puts
//! into its tokens.
//!
//! Format: `{"jti": ["…"], "sub": ["mallory"], "dst_hst": ["10.0.0.7:3389"]}`. A claim that is a list is revoked with
//! any of its values. A token without `jti` is revoked by its id (`sha256:…`) under `jti`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::json::as_uuid;
use super::json::{self, ObjectError};
use super::{Claims, TokenId};

/// Claim names and the values that revoke.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeMap<String, HashSet<RevokedValue>>);

/// A list that cannot be used. The list's author can put it right; until then the previous list should stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationsError {
    /// Not a JSON object.
    #[error("the revocation list is not a JSON object")]
    NotAnObject,
    /// A claim name occurs twice.
    #[error("the revocation list has a claim name twice")]
    DuplicateName,
    /// Not a list.
    #[error("revocations of claim {0} are not a list")]
    NotAList(String),
    /// A value that is no text, number or boolean.
    #[error("revocations of claim {0} hold something other than texts, numbers and booleans")]
    BadValue(String),
}

/// A value to compare with, in the one form that equal values have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RevokedValue {
    Text(String),
    Uuid(Uuid),
    Number(String),
    Bool(bool),
}

/// The claim by which a token was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokingClaim(String);

impl RevokingClaim {
    /// The claim's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RevokingClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Revocations {
    /// Reads a list.
    ///
    /// # Errors
    /// Whatever keeps the list from meaning exactly one thing.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RevocationsError> {
        let object: Map<String, Value> = json::object(bytes).map_err(|error| match error {
            ObjectError::NotAnObject => RevocationsError::NotAnObject,
            ObjectError::DuplicateName => RevocationsError::DuplicateName,
        })?;
        let mut claims = BTreeMap::new();
        for (claim, values) in object {
            let Value::Array(values) = values else {
                return Err(RevocationsError::NotAList(claim));
            };
            let values: Option<HashSet<_>> = values.iter().map(RevokedValue::of).collect();
            let Some(values) = values else {
                return Err(RevocationsError::BadValue(claim));
            };
            claims.insert(claim, values);
        }
        Ok(Self(claims))
    }

    /// Adds a rule: tokens whose `claim` is, or has among its values, `value`.
    ///
    /// # Errors
    /// The value is no text, number or boolean.
    pub fn add(&mut self, claim: &str, value: &Value) -> Result<(), RevocationsError> {
        let revoked = RevokedValue::of(value);
        let revoked = revoked.ok_or_else(|| RevocationsError::BadValue(claim.to_owned()))?;
        self.0.entry(claim.to_owned()).or_default().insert(revoked);
        Ok(())
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(HashSet::is_empty)
    }

    /// The claim by which a token is revoked, if it is.
    #[must_use]
    pub fn revokes(&self, token_id: &TokenId, claims: &Claims) -> Option<RevokingClaim> {
        self.0
            .iter()
            .find(|(claim, revoked)| {
                let by_id =
                    *claim == "jti" && revoked.contains(&RevokedValue::text(token_id.as_str()));
                by_id
                    || claims
                        .extra
                        .get(*claim)
                        .is_some_and(|value| matches(revoked, value))
            })
            .map(|(claim, _)| RevokingClaim(claim.clone()))
    }
}

fn matches(revoked: &HashSet<RevokedValue>, value: &Value) -> bool {
    match value {
        Value::Array(values) => values
            .iter()
            .filter_map(RevokedValue::of)
            .any(|value| revoked.contains(&value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            RevokedValue::of(value).is_some_and(|value| revoked.contains(&value))
        }
    }
}

impl RevokedValue {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::text(text)),
            Value::Number(number) => Some(Self::Number(number.to_string())),
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// A UUID can be written in several ways and stays the same.
    fn text(text: &str) -> Self {
        as_uuid(text).map_or_else(|| Self::Text(text.to_owned()), Self::Uuid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::TokenRules;
    use jetway_base::time::UnixTime;

    const AID: &str = "4daeb814-cdb6-4779-a16b-6479064e8107";

    fn claims() -> Claims {
        let claims = json!({
            "iat": 1_700_000_000, "jti": "t-1", "sub": "mallory", "jet_aid": AID, "level": 3,
            "contractor": true, "jet_cm": "fwd", "dst_hst": "a:1", "dst_alt": ["b:2"],
        });
        let now = UnixTime(1_700_000_000);
        Claims::parse(
            claims.to_string().as_bytes(),
            false,
            &TokenRules::default(),
            now,
        )
        .unwrap()
    }

    fn revokes(list: &Value) -> Option<String> {
        let revocations = Revocations::from_json(list.to_string().as_bytes()).unwrap();
        let claim = revocations.revokes(&TokenId::new("t-1"), &claims());
        claim.map(|claim| claim.to_string())
    }

    #[test]
    fn any_claims_value_revokes() {
        for (list, rule) in [
            (json!({ "jti": ["t-0", "t-1"] }), "jti"),
            (json!({ "sub": ["mallory"] }), "sub"),
            (json!({ "jet_aid": [AID.to_uppercase()] }), "jet_aid"),
            (json!({ "level": [3] }), "level"),
            (json!({ "contractor": [true] }), "contractor"),
            (json!({ "dst_alt": ["b:2"] }), "dst_alt"),
        ] {
            assert_eq!(revokes(&list).as_deref(), Some(rule), "{list}");
        }
        for list in [
            json!({}),
            json!({ "jti": [] }),
            json!({ "jti": ["t-2"], "sub": ["Mallory", "t-1"] }),
            json!({ "level": ["3", true] }),
            json!({ "unknown": ["t-1"] }),
        ] {
            assert_eq!(revokes(&list), None, "{list}");
        }
    }

    #[test]
    fn a_token_without_jti_is_revoked_by_its_id() {
        let mut claims = claims();
        claims.extra.remove("jti");
        let revocations = Revocations::from_json(br#"{"jti":["sha256:00ff"]}"#).unwrap();
        assert_eq!(
            revocations.revokes(&TokenId::new("sha256:00ff"), &claims),
            Some(RevokingClaim("jti".to_owned()))
        );
        assert_eq!(
            revocations.revokes(&TokenId::new("sha256:00fe"), &claims),
            None
        );
    }

    #[test]
    fn a_list_that_could_mean_two_things_is_refused() {
        for (text, error) in [
            ("[]", RevocationsError::NotAnObject),
            ("{", RevocationsError::NotAnObject),
            (r#"{"jti":["a"],"jti":[]}"#, RevocationsError::DuplicateName),
            (
                r#"{"jti":"a"}"#,
                RevocationsError::NotAList("jti".to_owned()),
            ),
            (
                r#"{"jti":[null]}"#,
                RevocationsError::BadValue("jti".to_owned()),
            ),
            (
                r#"{"jti":[["a"]]}"#,
                RevocationsError::BadValue("jti".to_owned()),
            ),
        ] {
            assert_eq!(
                Revocations::from_json(text.as_bytes()),
                Err(error),
                "{text}"
            );
        }
        assert!(Revocations::from_json(br#"{"jti":[]}"#).unwrap().is_empty());
        assert!(
            !Revocations::from_json(br#"{"jti":["a"]}"#)
                .unwrap()
                .is_empty()
        );
    }
}
