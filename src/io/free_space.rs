//! What a file system has left, as it was looked at last: to be asked for as often as anybody likes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The free space of the file system that a file is on.
#[derive(Debug)]
pub struct FreeSpace {
    path: PathBuf,
    bytes: AtomicU64,
}

impl FreeSpace {
    /// Of the file system of `path`, as it is now.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let space = Self {
            path: path.to_owned(),
            bytes: AtomicU64::new(u64::MAX),
        };
        space.look();
        space
    }

    /// Looks again. Asks the file system, which may take its time.
    pub fn look(&self) {
        let free = rustix::fs::statvfs(&self.path).ok();
        let free = free.and_then(|system| system.f_bavail.checked_mul(system.f_frsize));
        self.bytes
            .store(free.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was left for this process, bytes; the largest number where the system does not tell.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_is_not_taken_for_full() {
        let folder = tempfile::tempdir().unwrap();
        assert!(FreeSpace::of(folder.path()).bytes() > 0);
        let gone = FreeSpace::of(&folder.path().join("nothing"));
        assert_eq!(gone.bytes(), u64::MAX);
    }
}
