//! A token, a ticket or a password from a file or from standard input: never from the command line, which everybody on the
//! machine can read.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};
use zeroize::Zeroizing;

use crate::limits;

/// Twice the largest token, so that white space around one does no harm.
const SECRET_FILE_BYTES: usize = limits::TOKEN_BYTES * 2;

/// Reads a file, or standard input for `-`, of a size that a token can have.
pub(super) fn read(path: &Path, stdin: &mut dyn Read) -> anyhow::Result<Zeroizing<String>> {
    let mut file;
    let (source, name): (&mut dyn Read, _) = if path == Path::new("-") {
        (stdin, "standard input".to_owned())
    } else {
        let name = path.display().to_string();
        file = fs::File::open(path).with_context(|| format!("opening {name}"))?;
        (&mut file, name)
    };
    // The whole size at once, so that no copy is left behind by a buffer that grew.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_FILE_BYTES.saturating_add(1)));
    let limit = u64::try_from(SECRET_FILE_BYTES).context("limit")?;
    source
        .take(limit.saturating_add(1))
        .read_to_string(&mut text)
        .with_context(|| format!("reading {name}"))?;
    if text.len() > SECRET_FILE_BYTES {
        bail!("{name} has more than {SECRET_FILE_BYTES} bytes, which no token has");
    }
    Ok(text)
}
