//! A token, a ticket or a password from a file or from standard input: never from the command line, which everybody on the
//! machine can read. And into a file that its owner alone can read.

use std::fs;
use std::io::{self, Read, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use zeroize::Zeroizing;

use crate::cli::output::print_line;
use crate::limits;
use crate::private_file;

/// Twice the largest token, so that white space around one does no harm; and all of it in UTF-16.
const SECRET_FILE_BYTES: usize = limits::TOKEN_BYTES * 4;

/// Reads a file, or standard input for `-`, of a size that a token can have: UTF-8, or with a byte order mark UTF-16, as Windows
/// PowerShell writes by `>`. The mark is no part of what is read.
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
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_FILE_BYTES.saturating_add(1)));
    let limit = u64::try_from(SECRET_FILE_BYTES).context("limit")?;
    source
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {name}"))?;
    if bytes.len() > SECRET_FILE_BYTES {
        bail!("{name} has more than {SECRET_FILE_BYTES} bytes, which no token has");
    }
    decode(&bytes).with_context(|| format!("reading {name}"))
}

/// Writes a token or a ticket as a line: into a file, or to standard output where none is named.
///
/// # Errors
/// It cannot be written.
pub(super) fn give(out: Option<&Path>, secret: &str) -> anyhow::Result<()> {
    match out {
        Some(path) => write(path, format!("{secret}\n").as_bytes()),
        None => Ok(print_line(secret)?),
    }
}

/// Writes a file that only its owner can read, and puts it in place of an older one when it is complete.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"))?
        .to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let unfinished = path.with_file_name(name);
    let mut file = private_file::options()
        .write(true)
        .create_new(true)
        .open(&unfinished)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// The text of a file, whichever of the three ways an editor or a shell has written it.
fn decode(bytes: &[u8]) -> anyhow::Result<Zeroizing<String>> {
    let utf8 = match bytes {
        [0xff, 0xfe, units @ ..] => return utf16(units, u16::from_le_bytes),
        [0xfe, 0xff, units @ ..] => return utf16(units, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, text @ ..] => text,
        text => text,
    };
    ensure!(
        !utf8.contains(&0),
        "it is neither UTF-8 nor UTF-16 with a byte order mark; write it as UTF-8"
    );
    let text = str::from_utf8(utf8).context("it is neither UTF-8 nor UTF-16; write it as UTF-8")?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> anyhow::Result<Zeroizing<String>> {
    let (units, rest) = bytes.as_chunks::<2>();
    ensure!(rest.is_empty(), "its UTF-16 is cut off");
    let units = units.iter().copied().map(unit);
    // A unit has three bytes in UTF-8 at most, so the buffer does not grow and leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(bytes.len().saturating_mul(2)));
    for character in char::decode_utf16(units) {
        text.push(character.context("its UTF-16 is malformed")?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> anyhow::Result<String> {
        let mut stdin = bytes;
        read(Path::new("-"), &mut stdin).map(|text| text.to_string())
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_secret_and_utf_16_is_read() {
        let secret = "pässword\r\n";
        let units: Vec<u16> = secret.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [
            secret.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", secret.as_bytes()].concat(),
            [b"\xff\xfe", little.as_slice()].concat(),
            [b"\xfe\xff", big.as_slice()].concat(),
        ] {
            assert_eq!(of(&bytes).unwrap(), secret);
        }
        // The largest token fits, however it is written.
        let token = "x".repeat(limits::TOKEN_BYTES);
        let wide: Vec<u8> = token.bytes().flat_map(|byte| [byte, 0]).collect();
        assert_eq!(of(&[b"\xff\xfe", wide.as_slice()].concat()).unwrap(), token);
    }

    #[test]
    fn what_is_neither_is_refused_and_not_shown() {
        for bytes in [
            &little_without_mark()[..],
            b"\xff\xfes\0e",
            b"s\xffe",
            b"\xff\xfe\0\xd8s\0",
        ] {
            let error = format!("{:#}", of(bytes).unwrap_err());
            assert!(error.contains("UTF-"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    fn little_without_mark() -> Vec<u8> {
        "secret".bytes().flat_map(|byte| [byte, 0]).collect()
    }
}
