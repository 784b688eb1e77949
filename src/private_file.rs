//! Files that nobody else on the machine has to read: made for their owner alone, and told of where they are not.

use std::fs::OpenOptions;
use std::path::Path;

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
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
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
