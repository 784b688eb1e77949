//! Where `tests/install.sh peers` has put what Debian does not package.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A file of the environment called `name`.
pub(crate) fn file(name: &str, path: impl AsRef<Path>) -> Result<PathBuf> {
    program(Path::new(name).join(path))
}

/// What stands beside the environments.
pub(crate) fn program(path: impl AsRef<Path>) -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let cache = match cache {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/root")))
            .join(".cache"),
    };
    let path = cache.join("jetway-peers").join(path);
    ensure!(
        path.exists(),
        "{} is missing (tests/install.sh peers makes it)",
        path.display()
    );
    Ok(path)
}
