//! The revocation list in force, read from a file and read again when that changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jetway_io::file_stamp::FileStamp;
use jetway_token::revocation::Revocations;

/// The list and where it comes from.
#[derive(Debug)]
pub struct Revoked {
    file: Option<PathBuf>,
    state: RwLock<ListState>,
}

#[derive(Debug)]
struct ListState {
    rules: Arc<Revocations>,
    stamp: Option<FileStamp>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("revocation list {path}: {problem}")]
pub struct RevokedError {
    path: String,
    problem: String,
}

impl Revoked {
    /// Reads the list.
    ///
    /// # Errors
    /// The file is no revocation list, or is not there: a misspelt path must not mean that nothing is revoked.
    pub fn load(file: Option<PathBuf>) -> Result<Self, RevokedError> {
        let empty = ListState {
            rules: Arc::new(Revocations::default()),
            stamp: None,
        };
        let revoked = Self {
            file,
            state: RwLock::new(empty),
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

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Revocations> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.rules)
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
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
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
        self.state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .rules = Arc::new(rules);
        Ok(true)
    }
}

const MISSING: &str = "there is no such file; write {} into it where nothing is revoked";

fn failed(file: &Path, problem: String) -> RevokedError {
    RevokedError {
        path: file.display().to_string(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
