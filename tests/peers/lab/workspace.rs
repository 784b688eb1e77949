//! One folder per test for configuration, keys and the logs of every process; kept and named when the test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

#[derive(Debug)]
pub(crate) struct Workspace {
    folder: Option<TempDir>,
    path: PathBuf,
    passed: AtomicBool,
}

/// Runs one test in a folder of its own.
pub(crate) fn run(test: impl FnOnce(&Workspace) -> Result<()>) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("jetway-peers-").tempdir()?;
    let path = folder.path().to_owned();
    let workspace = Workspace {
        folder: Some(folder),
        path,
        passed: AtomicBool::new(false),
    };
    test(&workspace)?;
    workspace.passed.store(true, Ordering::Relaxed);
    Ok(())
}

impl Workspace {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A new folder of that name.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn create(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        File::create(&path).with_context(|| format!("create {}", path.display()))
    }
}

impl Drop for Workspace {
    #[expect(
        clippy::print_stderr,
        reason = "the test runner shows it beside the failure"
    )]
    fn drop(&mut self) {
        if self.passed.load(Ordering::Relaxed) {
            return;
        }
        if let Some(folder) = self.folder.take() {
            let kept = folder.keep();
            eprintln!("logs of all processes: {}", kept.display());
            for (name, tail) in log_tails(&kept) {
                eprintln!("--- {name}\n{tail}");
            }
        }
    }
}

/// The last lines of every log: what is enough to judge most failures where the folder itself is out of reach.
fn log_tails(folder: &Path) -> Vec<(String, String)> {
    let mut tails: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let content = name
                .ends_with(".log")
                .then(|| fs::read(entry.path()).ok())??;
            let text = String::from_utf8_lossy(&content).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(TAIL_LINES)..)?
                .join("\n");
            (!tail.is_empty()).then_some((name, tail))
        })
        .collect();
    tails.sort();
    tails
}

const TAIL_LINES: usize = 25;
