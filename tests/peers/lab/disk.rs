//! A small disk that can be filled. Needs root.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::process::tool;

/// A small disk; gone when dropped.
#[derive(Debug)]
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// A disk of `size` (as mount(8) takes it) in `folder`, which it hides.
    pub(crate) fn mount(folder: PathBuf, size: &str) -> Result<Self> {
        let options = format!("size={size}");
        tool(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "disk"])
                .arg(&folder),
        )?;
        Ok(Self(folder))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.file("filler"))?;
        while filler.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    pub(crate) fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.file("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = tool(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}
