//! The clipboard of a display, by xclip.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use jetway_lab::wait::{PATIENCE, until};

use super::process::{Process, tool};
use super::workspace::Workspace;

/// `text` on a clipboard, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Copied(#[expect(dead_code, reason = "holds the selection")] Process);

impl Copied {
    /// Copies `text` with `xclip`, a command that runs xclip on the display.
    pub(crate) fn text(
        workspace: &Workspace,
        role: &str,
        xclip: Command,
        text: &str,
    ) -> Result<Self> {
        Self::content(workspace, role, xclip, UTF8, text)
    }

    /// Copies `files` of the machine that `xclip` runs on, as a file manager does that calls the format `target`.
    pub(crate) fn files(
        workspace: &Workspace,
        role: &str,
        xclip: Command,
        target: &str,
        files: &[&Path],
    ) -> Result<Self> {
        let mut list = String::from(if target == GNOME_FILES { "copy" } else { "" });
        for file in files {
            if target == GNOME_FILES {
                list.push('\n');
            }
            list.push_str(&format!("file://{}", file.display()));
            if target == URI_LIST {
                list.push_str("\r\n");
            }
        }
        Self::content(workspace, role, xclip, target, &list)
    }

    fn content(
        workspace: &Workspace,
        role: &str,
        mut xclip: Command,
        target: &str,
        content: &str,
    ) -> Result<Self> {
        let input = workspace.write(&format!("{role}.txt"), content)?;
        xclip
            .args(["-selection", "clipboard", "-target", target])
            .args(["-quiet", "-in"])
            .stdin(std::fs::File::open(input)?)
            .stdout(workspace.create(&format!("{role}.out"))?)
            .stderr(workspace.create(&format!("{role}.err"))?);
        Process::start_as_is(workspace, role, &mut xclip).map(Self)
    }
}

/// Waits until `text` can be pasted by the command that `xclip` makes.
pub(crate) fn wait_for_text(text: &str, xclip: impl FnMut() -> Result<Command>) -> Result<()> {
    wait_for(&format!("{text:?}"), UTF8, xclip, |pasted| {
        (pasted == text.as_bytes()).then_some(())
    })
}

/// Waits until `accept` takes what can be pasted as `target`.
pub(crate) fn wait_for<T>(
    what: &str,
    target: &str,
    mut xclip: impl FnMut() -> Result<Command>,
    mut accept: impl FnMut(&[u8]) -> Option<T>,
) -> Result<T> {
    until(&format!("{what} on the clipboard"), PATIENCE, || {
        let mut paste = Command::new("timeout");
        let command = xclip()?;
        paste
            .arg("2")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                paste.env(name, value);
            }
        }
        paste.args(["-selection", "clipboard", "-target", target, "-out"]);
        // Nothing was copied yet, or not as text.
        let Ok(pasted) = tool(&mut paste) else {
            return Ok(None);
        };
        Ok(accept(&pasted))
    })
}

/// Files, as most programs call them and as GNOME's do.
pub(crate) const URI_LIST: &str = "text/uri-list";
pub(crate) const GNOME_FILES: &str = "x-special/gnome-copied-files";
/// The default, STRING, has no letters beyond Latin-1.
const UTF8: &str = "UTF8_STRING";
