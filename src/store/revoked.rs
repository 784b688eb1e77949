//! The revocation list in force, read from a file and read again when that changes.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use crate::file_stamp::FileStamp;
use crate::token::revocation::Revocations;

/// The list and where it comes from.
#[derive(Debug)]
pub struct Revoked {
    file: Option<PathBuf>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
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
    /// Reads the list. A file that does not exist yet is an empty list: it may appear later.
    ///
    /// # Errors
    /// The file is there and is no revocation list.
    pub fn load(file: Option<PathBuf>) -> Result<Self, RevokedError> {
        let empty = State {
            rules: Arc::new(Revocations::default()),
            stamp: None,
        };
        let revoked = Self {
            file,
            state: RwLock::new(empty),
        };
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
        let failed = |problem: String| RevokedError {
            path: file.display().to_string(),
            problem,
        };
        let rules = match std::fs::read(file) {
            Ok(bytes) => {
                Revocations::from_json(&bytes).map_err(|error| failed(error.to_string()))?
            }
            // Removing the file does not un-revoke anything: write an empty list for that.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error.to_string())),
        };
        self.state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .rules = Arc::new(rules);
        Ok(true)
    }
}
