//! The clipboard of a display, by xclip.

use std::process::Command;

use anyhow::Result;

use super::process::{Process, tool};
use super::wait::{PATIENCE, until};
use super::workspace::Workspace;

/// `text` on a clipboard, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Copied(#[expect(dead_code, reason = "holds the selection")] Process);

impl Copied {
    /// Copies `text` with `xclip`, a command that runs xclip on the display.
    pub(crate) fn text(
        workspace: &Workspace,
        role: &str,
        mut xclip: Command,
        text: &str,
    ) -> Result<Self> {
        let input = workspace.write(&format!("{role}.txt"), text)?;
        xclip
            .args(["-selection", "clipboard", "-target", UTF8, "-quiet", "-in"])
            .stdin(std::fs::File::open(input)?)
            .stdout(workspace.create(&format!("{role}.out"))?)
            .stderr(workspace.create(&format!("{role}.err"))?);
        Process::start_as_is(workspace, role, &mut xclip).map(Self)
    }
}

/// Waits until `text` can be pasted by the command that `xclip` makes.
pub(crate) fn wait_for_text(text: &str, mut xclip: impl FnMut() -> Result<Command>) -> Result<()> {
    until(&format!("{text:?} on the clipboard"), PATIENCE, || {
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
        paste.args(["-selection", "clipboard", "-target", UTF8, "-out"]);
        // Nothing was copied yet, or not as text.
        let Ok(pasted) = tool(&mut paste) else {
            return Ok(None);
        };
        Ok((pasted == text.as_bytes()).then_some(()))
    })
}

/// The default, STRING, has no letters beyond Latin-1.
const UTF8: &str = "UTF8_STRING";
