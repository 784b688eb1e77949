//! `jetway audit`: whether what the audit says is what was written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::audit::chain::Head;
use crate::audit::verify::Verifier;
use crate::cli::output::print_line;
use crate::limits;
use crate::store::audit::files;

/// Arguments of `jetway audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with an audit.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check that no record was removed, changed or moved, in all files of an audit from the oldest to the newest
    Verify {
        /// File to which the gateway adds records (audit.path); those before it lie beside it
        #[arg(default_value = "jetway-audit.jsonl")]
        path: PathBuf,
        /// The last record of the files that were put elsewhere, as SEQUENCE:DIGEST (what this command prints for them)
        #[arg(long, value_name = "RECORD")]
        after: Option<Head>,
        /// A record that has to be there, as SEQUENCE:DIGEST: from the gateway's log, or from an earlier run of this command
        #[arg(long, value_name = "RECORD")]
        known: Option<Head>,
    },
}

/// Faults that are printed; further ones are counted.
const PRINTED_FAULTS: u64 = 100;

/// Runs `jetway audit`.
///
/// # Errors
/// The audit is not whole, or cannot be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Verify { path, after, known } = &args.command;
    verify(path, *after, *known)
}

fn verify(path: &Path, after: Option<Head>, known: Option<Head>) -> anyhow::Result<()> {
    let files =
        files(path).with_context(|| format!("cannot read the folder of {}", path.display()))?;
    ensure!(
        path.is_file() || !path.exists(),
        "{} is not a file",
        path.display()
    );
    ensure!(!files.is_empty(), "there is no audit at {}", path.display());
    let mut verifier = Verifier::new(after, known);
    let mut faults = 0_u64;
    let mut tell = |fault: String| -> anyhow::Result<()> {
        faults = faults.saturating_add(1);
        if faults <= PRINTED_FAULTS {
            print_line(&fault)?;
        }
        Ok(())
    };
    for file in &files {
        let named = file.display();
        let opened = File::open(file).with_context(|| format!("cannot read {named}"))?;
        let mut reader = BufReader::new(opened);
        let mut number = 0_u64;
        let mut line = Vec::new();
        loop {
            line.clear();
            let most =
                u64::try_from(limits::AUDIT_LINE_BYTES.saturating_add(1)).unwrap_or(u64::MAX);
            let read = (&mut reader).take(most).read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read {named}"))? == 0 {
                break;
            }
            number = number.saturating_add(1);
            if line.pop_if(|last| *last == b'\n').is_none() {
                tell(format!("{named}:{number}: the line does not end"))?;
                // The rest of it is no record, either.
                reader
                    .skip_until(b'\n')
                    .with_context(|| format!("cannot read {named}"))?;
                continue;
            }
            if let Err(fault) = verifier.line(&line) {
                tell(format!("{named}:{number}: {fault}"))?;
            }
        }
    }
    if let Err(fault) = verifier.end() {
        tell(fault.to_string())?;
    }
    let (records, head) = (verifier.records(), verifier.head());
    if faults > 0 {
        bail!("the audit is not whole: {faults} faults in {records} records");
    }
    print_line(&format!(
        "{records} records in {} files, none missing or changed",
        files.len()
    ))?;
    print_line(&format!("The last one: {head}"))?;
    if known.is_none() {
        print_line("Whether records are missing behind it, only --known can tell")?;
    }
    Ok(())
}
