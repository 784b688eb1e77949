//! What a user does with the client's window: keys, proved by what they did in the target, and another size.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jetway_lab::wait::{PATIENCE, soon, until};

use super::display::Display;
use super::process::tool;

/// Types a command that creates a file in `folder` and waits for the file.
///
/// The first keys after a connection may be lost: the command can be typed again without harm.
pub(crate) fn create_file_by_typing(display: &Display, class: &str, folder: &Path) -> Result<()> {
    let window = find(display, class)?;
    let typed = folder.join("typed_by-keys.42");
    // Nothing manages windows here: the focus follows a click inside the terminal of the desktop.
    tool(display.command("xdotool").args([
        "windowfocus",
        &window,
        "mousemove",
        "200",
        "200",
        "click",
        "1",
    ]))?;
    for _ in 0..ATTEMPTS {
        let command = format!("touch {}", typed.display());
        tool(
            display
                .command("xdotool")
                .args(["type", "--delay", "8", &command]),
        )?;
        // Not "\n": xdotool would map it to a key that the RDP client has no scancode for.
        tool(display.command("xdotool").args(["key", "Return"]))?;
        if soon(PATIENCE_PER_ATTEMPT, || typed.exists()) {
            return std::fs::remove_file(&typed).context("remove what was typed");
        }
    }
    bail!(
        "no typed command arrived in {ATTEMPTS} attempts: {} is missing",
        typed.display()
    )
}

pub(crate) fn resize(display: &Display, class: &str, width: u16, height: u16) -> Result<()> {
    let window = find(display, class)?;
    let (width, height) = (width.to_string(), height.to_string());
    tool(
        display
            .command("xdotool")
            .args(["windowsize", &window, &width, &height])
            // A manager of windows may have put it elsewhere.
            .args(["windowmove", &window, "0", "0"]),
    )
    .map(drop)
}

/// The newest window of that class.
fn find(display: &Display, class: &str) -> Result<String> {
    until(&format!("a window of {class}"), PATIENCE, || {
        let found = tool(
            display
                .command("xdotool")
                .args(["search", "--class", class]),
        );
        let Ok(found) = found else { return Ok(None) };
        Ok(String::from_utf8(found)?.lines().last().map(str::to_owned))
    })
}

const ATTEMPTS: usize = 5;
const PATIENCE_PER_ATTEMPT: Duration = Duration::from_secs(2);
