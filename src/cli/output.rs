//! Standard output: what a command results in.

use std::io::{self, Write};

/// Writes a command's result to standard output.
///
/// # Errors
/// Standard output is closed or full.
pub(super) fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
