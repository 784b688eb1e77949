//! The API keys of operators.

use openssl::sha::sha256;
use subtle::ConstantTimeEq;

use crate::config::{ApiKeyConfig, OperatorName};

/// The API keys, by their digests.
#[derive(Debug)]
pub struct ApiKeys(Vec<ApiKeyConfig>);

impl ApiKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<ApiKeyConfig>) -> Self {
        Self(keys)
    }

    /// Whose key it is: the one whose digest `bearer` has. All keys are looked at, each in constant time.
    #[must_use]
    pub fn find(&self, bearer: &str) -> Option<&OperatorName> {
        let digest = sha256(bearer.as_bytes());
        self.0.iter().fold(None, |found, key| {
            if bool::from(key.sha256.ct_eq(&digest)) {
                Some(&key.name)
            } else {
                found
            }
        })
    }
}
