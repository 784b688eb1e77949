//! Arguments in, exit code out; everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match jetway::cli::run(jetway::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit code still says it.
            let text = jetway::escape::lines(&format!("jetway: {error:#}"));
            let _written = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}
