//! The revocations in force: those of a file, which is read again when it changes, and those that operators have made, which are kept in
//! the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use openssl::sha::sha256;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::{Disk, DiskError};
use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_io::file_stamp::FileStamp;
use jetway_token::revocation::{Revocations, RevocationsError};

/// The rules, and where they come from.
#[derive(Debug)]
pub struct Revoked {
    file: Option<PathBuf>,
    disk: OnceLock<Arc<Disk>>,
    state: RwLock<RuleState>,
}

#[derive(Debug, Default)]
struct RuleState {
    stamp: Option<FileStamp>,
    of_file: Revocations,
    of_operators: BTreeMap<String, Made>,
    /// All of them.
    rules: Arc<Revocations>,
}

/// A revocation that an operator has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Name of a claim.
    pub claim: String,
    /// The value of it that revokes.
    pub value: Value,
    /// By whom, by the name of their API key.
    pub by: String,
    /// Unix seconds.
    pub made_at: UnixTime,
}

/// A revocation as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// To withdraw it by: the same for the same claim and value.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub made: Made,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("revocation list {path}: {problem}")]
pub struct RevokedError {
    path: String,
    problem: String,
}

/// Why nothing is revoked, or not for long.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It revokes nothing.
    #[error(transparent)]
    Value(#[from] RevocationsError),
    /// The claim has no name, or it or its value is too long.
    #[error(
        "a claim has a name, and it and its value have {} bytes at most",
        limits::REVOCATION_BYTES
    )]
    Size,
    /// A password would stand in the list, in the log and in the audit.
    #[error("a password revokes nothing: name the token or its user")]
    Secret,
    /// There are too many.
    #[error(
        "there are {} revocations of operators already; withdraw some",
        limits::REVOCATIONS
    )]
    Full,
    /// It holds for as long as the process runs, and is not on disk.
    #[error("it is in force, and could not be written, so that it ends with this process: {0}")]
    NotKept(DiskError),
}

impl RuleState {
    fn unite(&mut self) {
        let mut rules = self.of_file.clone();
        for made in self.of_operators.values() {
            // What it was made of was asked when it was made.
            let _good = rules.add(&made.claim, &made.value);
        }
        self.rules = Arc::new(rules);
    }
}

impl Revoked {
    /// Reads the list of the file.
    ///
    /// # Errors
    /// The file is no revocation list, or is not there: a misspelt path must not mean that nothing is revoked.
    pub fn load(file: Option<PathBuf>) -> Result<Self, RevokedError> {
        let revoked = Self {
            file,
            disk: OnceLock::new(),
            state: RwLock::default(),
        };
        if let Some(file) = &revoked.file
            && FileStamp::of(file).is_none()
        {
            let error = std::fs::metadata(file).err();
            let problem = match error {
                Some(error) if error.kind() != std::io::ErrorKind::NotFound => error.to_string(),
                Some(_) | None => MISSING.to_owned(),
            };
            return Err(failed(file, problem));
        }
        revoked.reload_if_changed()?;
        Ok(revoked)
    }

    /// Adds what operators have revoked before, and keeps on `disk` what they will.
    ///
    /// # Errors
    /// A row that this program has not written: a revocation is not passed over.
    pub fn keep_on(
        &self,
        disk: Arc<Disk>,
        rows: &[(String, String)],
    ) -> Result<(), serde_json::Error> {
        let rows = rows
            .iter()
            .map(|(id, row)| Ok((id.clone(), serde_json::from_str(row)?)));
        let rows = rows.collect::<Result<_, _>>()?;
        let mut state = self.write();
        state.of_operators = rows;
        state.unite();
        let _once = self.disk.set(disk);
        Ok(())
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Revocations> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.rules)
    }

    /// Revokes tokens whose `claim` is `value`; they are refused from now on. Whoever uses them already is told by whoever calls.
    ///
    /// # Errors
    /// It cannot be a rule, there are too many, or it holds and could not be written.
    ///
    /// # Cancel safety
    /// From the first poll on the rule is in force, and will be written.
    pub async fn revoke(&self, made: Made) -> Result<Listed, RevokeError> {
        let text = made.value.as_str().unwrap_or_default();
        let long = |text: &str| text.len() > limits::REVOCATION_BYTES;
        if made.claim.is_empty() || long(&made.claim) || long(text) {
            return Err(RevokeError::Size);
        }
        if made.claim.to_lowercase().ends_with("_pwd") {
            return Err(RevokeError::Secret);
        }
        Revocations::default().add(&made.claim, &made.value)?;
        let id = id_of(&made.claim, &made.value);
        {
            let mut state = self.write();
            let known = state.of_operators.contains_key(&id);
            if !known && state.of_operators.len() >= limits::REVOCATIONS {
                return Err(RevokeError::Full);
            }
            state.of_operators.insert(id.clone(), made.clone());
            state.unite();
        }
        let row = serde_json::to_string(&made).unwrap_or_default();
        self.keep(&id, Some(row))
            .await
            .map_err(RevokeError::NotKept)?;
        Ok(Listed { id, made })
    }

    /// Takes a revocation of an operator back; `None` where there is none of that id.
    ///
    /// # Errors
    /// It could not be removed from the store, and stays.
    pub async fn withdraw(&self, id: &str) -> Result<Option<Made>, DiskError> {
        if !self.write().of_operators.contains_key(id) {
            return Ok(None);
        }
        self.keep(id, None).await?;
        let mut state = self.write();
        let made = state.of_operators.remove(id);
        state.unite();
        Ok(made)
    }

    /// What operators have revoked, the latest last.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let made = state.of_operators.iter();
        let mut list: Vec<Listed> = made
            .map(|(id, made)| Listed {
                id: id.clone(),
                made: made.clone(),
            })
            .collect();
        list.sort_by_key(|listed| listed.made.made_at);
        list
    }

    /// Reads the file again if it changed; says whether there are new rules.
    ///
    /// # Errors
    /// The file cannot be used: the rules stay as they were.
    pub fn reload_if_changed(&self) -> Result<bool, RevokedError> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let stamp = FileStamp::of(file);
        {
            let mut state = self.write();
            if state.stamp == stamp {
                return Ok(false);
            }
            // Recorded first: a bad file is reported once, not at every look.
            state.stamp = stamp;
        }
        let rules = match std::fs::read(file) {
            Ok(bytes) => {
                Revocations::from_json(&bytes).map_err(|error| failed(file, error.to_string()))?
            }
            // Removing the file does not un-revoke anything.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(failed(file, MISSING.to_owned()));
            }
            Err(error) => return Err(failed(file, error.to_string())),
        };
        let mut state = self.write();
        state.of_file = rules;
        state.unite();
        Ok(true)
    }

    async fn keep(&self, id: &str, row: Option<String>) -> Result<(), DiskError> {
        match self.disk.get() {
            Some(disk) => disk.put_revocation(id.to_owned(), row).await,
            None => Ok(()),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, RuleState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same rule has the same id.
fn id_of(claim: &str, value: &Value) -> String {
    let rule = Value::from(vec![Value::from(claim), value.clone()]);
    let digest = sha256(rule.to_string().as_bytes());
    hex::encode(digest.get(..ID_BYTES).unwrap_or_default())
}

/// Of the digest, in the id of a revocation: no two of [`limits::REVOCATIONS`] share them.
const ID_BYTES: usize = 12;

const MISSING: &str = "there is no such file; write {} into it where nothing is revoked";

fn failed(file: &Path, problem: String) -> RevokedError {
    RevokedError {
        path: file.display().to_string(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(claim: &str, value: Value) -> Made {
        Made {
            claim: claim.to_owned(),
            value,
            by: "desk".to_owned(),
            made_at: UnixTime(7),
        }
    }

    #[tokio::test]
    async fn what_operators_revoke_outlasts_the_process_and_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (store, file) = (folder.path().join("s.redb"), folder.path().join("r.json"));
        std::fs::write(&file, r#"{"sub":["eve"]}"#).unwrap();
        let open = || {
            let (disk, contents) = Disk::open(&store, UnixTime(0)).unwrap();
            let revoked = Revoked::load(Some(file.clone())).unwrap();
            revoked
                .keep_on(Arc::new(disk), &contents.revocations)
                .unwrap();
            revoked
        };
        let revoked = open();
        let listed = revoked.revoke(made("sub", json!("mallory"))).await.unwrap();
        let again = revoked.revoke(made("sub", json!("mallory"))).await.unwrap();
        assert_eq!(listed, again);
        revoked.revoke(made("level", json!(3))).await.unwrap();
        for bad in [made("", json!("x")), made("sub", json!("x".repeat(2000)))] {
            let error = revoked.revoke(bad).await.unwrap_err();
            assert!(matches!(error, RevokeError::Size), "{error}");
        }
        let secret = revoked.revoke(made("dst_pwd", json!("x"))).await;
        assert!(matches!(secret, Err(RevokeError::Secret)));
        let error = revoked.revoke(made("sub", json!(["a"]))).await.unwrap_err();
        assert!(matches!(error, RevokeError::Value(_)), "{error}");
        drop(revoked);

        let revoked = open();
        let expected = Revocations::from_json(br#"{"sub":["eve","mallory"],"level":[3]}"#).unwrap();
        assert_eq!(*revoked.rules(), expected);
        // The file takes nothing back that is not its own.
        std::fs::write(&file, "{}  ").unwrap();
        assert!(revoked.reload_if_changed().unwrap());
        let expected = Revocations::from_json(br#"{"sub":["mallory"],"level":[3]}"#).unwrap();
        assert_eq!(*revoked.rules(), expected);
        assert_eq!(revoked.withdraw("none").await.unwrap(), None);
        let withdrawn = revoked.withdraw(&listed.id).await.unwrap();
        assert_eq!(withdrawn, Some(listed.made));
        drop(revoked);
        let expected = Revocations::from_json(br#"{"level":[3]}"#).unwrap();
        assert_eq!(*open().rules(), expected);
    }

    #[test]
    fn a_misspelt_path_is_an_error_and_not_an_empty_list() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("revokd.json");
        let error = Revoked::load(Some(file.clone())).unwrap_err().to_string();
        assert!(
            error.contains("revokd.json: there is no such file"),
            "{error}"
        );
        std::fs::write(&file, "{}").unwrap();
        let revoked = Revoked::load(Some(file.clone())).unwrap();
        // Taken away while the gateway runs: said once.
        std::fs::remove_file(&file).unwrap();
        assert!(revoked.reload_if_changed().is_err());
        assert!(!revoked.reload_if_changed().unwrap());
        assert!(Revoked::load(None).is_ok());
    }
}
