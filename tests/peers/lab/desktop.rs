//! What a target shows: a plain background and a terminal with a phrase that no other desktop has.

use std::path::Path;

use super::screenshot::Colour;

/// The script that a terminal on the desktop runs: print the phrase, then be a shell with a fixed prompt.
///
/// `ready` is created when the shell is about to print its prompt.
pub(crate) fn shell_script(phrase: &str, ready: &Path) -> String {
    format!(
        "#!/bin/bash\n\
         for line in 1 2 3 4; do echo \"$line {phrase}\"; done\n\
         export PS1='desktop> ' PROMPT_COMMAND='touch {}'\n\
         exec bash --norc\n",
        ready.display()
    )
}

/// The same terminal everywhere: a font that every X server has, no blinking, a fixed place.
pub(crate) const TERMINAL: &[&str] = &[
    "xterm",
    "-fn",
    "fixed",
    "-xrm",
    "XTerm*cursorBlink: false",
    "-bg",
    "white",
    "-fg",
    "black",
    "-geometry",
    "80x24+20+20",
    "-e",
];

/// `colour` the way xsetroot wants it.
pub(crate) fn colour_name(colour: Colour) -> String {
    let [red, green, blue] = colour;
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// At least this much of the screen is background, and at least that much is the terminal's paper.
pub(crate) const BACKGROUND_SHARE: f64 = 0.6;
pub(crate) const TERMINAL_SHARE: f64 = 0.1;
