//! Files that nobody else on the machine has to read: made for their owner alone, and told of where they are not. And whether they
//! can be made, before anything is.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use tracing::warn;

/// Options that make a file which only its owner can read, from its first byte on.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Whether every user of the machine can read, write or run it.
#[must_use]
pub fn is_open(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Says so in the log where a file is open to every user.
pub fn warn_if_open(path: &Path, what: &'static str) {
    if is_open(path) {
        warn!(path = %path.display(), "{what} is open to every user of this machine");
    }
}

/// What keeps a file from being read and written, or made where it is not there yet. Nothing is written.
///
/// # Errors
/// That, with the file or its folder.
pub fn check_writable(path: &Path) -> Result<(), NotWritable> {
    let not = |path: &Path, error: io::Error| NotWritable {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(not(path, io::ErrorKind::IsADirectory.into())),
        Ok(_) => access(path, Access::READ_OK | Access::WRITE_OK)
            .map_err(|error| not(path, error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let found = fs::metadata(folder).map_err(|error| not(folder, error))?;
            if !found.is_dir() {
                return Err(not(folder, io::ErrorKind::NotADirectory.into()));
            }
            access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|error| not(folder, error.into()))
        }
        Err(error) => Err(not(path, error)),
    }
}

/// A file, or the folder for it, cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be written: {problem}")]
pub struct NotWritable {
    path: String,
    problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_is_known_without_writing() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        fs::write(&there, "text").unwrap();
        for good in [there.clone(), folder.path().join("new")] {
            check_writable(&good).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&there).unwrap(), "text");
        for (bad, named) in [
            (folder.path().to_owned(), folder.path().to_owned()),
            (folder.path().join("none/new"), folder.path().join("none")),
            (there.join("new"), there),
        ] {
            let error = check_writable(&bad).unwrap_err().to_string();
            let start = format!("{} cannot be written: ", named.display());
            // Below a file the system tells of the whole path.
            assert!(
                error.starts_with(&start) || error.starts_with(&bad.display().to_string()),
                "{error}"
            );
        }
    }
}
