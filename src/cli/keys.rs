//! `jetway keys`: makes keys, publishes and shows their public halves.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use crate::cli::output::print_line;
use crate::keyring::read_key_file;
use crate::token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use crate::token::key::Key;
use crate::token::mint::generate;
use crate::token::{KeyDocument, KeyUsage};

/// Arguments of `jetway keys`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do with keys
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key: private and public half as PEM and JWK, or a shared secret as JWK
    New(NewArgs),
    /// Print the public halves of key files as a JWKS
    Jwks(FilesArgs),
    /// Show what key files hold, never their private parts
    Show(FilesArgs),
}

/// Arguments of `jetway keys new`.
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// What the key is for: an algorithm of signatures or of encryption
    #[arg(long, value_parser = algorithm_parser())]
    pub alg: Algorithm,
    /// The key's id in tokens; without it a digest of the public key
    #[arg(long)]
    pub kid: Option<String>,
    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// First part of the file names; without it the algorithm
    #[arg(long)]
    pub name: Option<String>,
}

/// Key files.
#[derive(Debug, clap::Args)]
pub struct FilesArgs {
    /// PEM, JWK or JWKS
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Runs `jetway keys`.
///
/// # Errors
/// A file cannot be read or written, or holds no usable key.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::New(args) => new(args),
        Command::Jwks(args) => jwks(args),
        Command::Show(args) => show(args),
    }
}

fn new(args: &NewArgs) -> anyhow::Result<()> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.alg.name().to_ascii_lowercase().replace('+', "-"),
    };
    ensure!(
        !name.is_empty() && !name.contains(['/', '\\']),
        "--name is part of a file name, not a path"
    );
    let mut key = generate(args.alg)?;
    key.set_kid(args.kid.clone().or_else(|| key.thumbprint()));

    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let path = |suffix: &str| args.out.join(format!("{name}.{suffix}"));
    let mut files: Vec<(PathBuf, &str, bool)> = Vec::new();
    let private_pem = key.private_pem();
    let private_jwk = key.private_jwk();
    let public_pem = key.public_pem();
    let public_jwk = key
        .public_jwk()
        .map(Value::Object)
        .map(|jwk| format!("{jwk:#}"));
    let private_name = if public_pem.is_some() {
        "private"
    } else {
        "secret"
    };
    if let Some(pem) = &private_pem {
        files.push((path("private.pem"), pem, true));
    }
    if let Some(jwk) = &private_jwk {
        files.push((path(&format!("{private_name}.jwk.json")), jwk, true));
    }
    if let Some(pem) = &public_pem {
        files.push((path("public.pem"), pem, false));
    }
    if let Some(jwk) = &public_jwk {
        files.push((path("public.jwk.json"), jwk, false));
    }
    // All or nothing: half of a new key beside half of an old one would be hard to notice.
    for (path, ..) in &files {
        ensure!(!path.exists(), "{} exists already", path.display());
    }
    for (path, text, private) in &files {
        write_new(path, text, *private).with_context(|| path.display().to_string())?;
    }
    for (path, ..) in &files {
        print_line(&path.display().to_string())?;
    }
    Ok(())
}

/// Writes a file that must not exist yet; a private one can be read by its owner only, from its first byte on.
pub(super) fn write_new(path: &Path, text: &str, private: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    let mut file = options.open(path)?;
    file.write_all(text.trim_end().as_bytes())?;
    file.write_all(b"\n")
}

fn jwks(args: &FilesArgs) -> anyhow::Result<()> {
    let mut keys = Vec::new();
    for path in &args.files {
        for mut key in read(path)? {
            if key.kid().is_none() {
                key.set_kid(key.thumbprint());
            }
            match key.public_jwk() {
                Some(jwk) => keys.push(Value::Object(jwk)),
                None => bail!("{}: a shared secret has no public half", path.display()),
            }
        }
    }
    print_line(&format!("{:#}", json!({ "keys": keys })))?;
    Ok(())
}

fn show(args: &FilesArgs) -> anyhow::Result<()> {
    for path in &args.files {
        for key in read(path)? {
            print_line(&describe(path, &key))?;
        }
    }
    Ok(())
}

fn describe(path: &Path, key: &Key) -> String {
    let signatures = key
        .signature_algorithms()
        .into_iter()
        .map(SignatureAlgorithm::name);
    let encryptions = key
        .key_management_algorithms()
        .into_iter()
        .map(KeyManagement::name);
    let algorithms: Vec<&str> = signatures.chain(encryptions).collect();
    let half = match (key.is_secret(), key.public_pem().is_some()) {
        (false, _) => "public",
        (true, true) => "private",
        (true, false) => "shared",
    };
    let usage = match key.usage() {
        Some(KeyUsage::Sign) => "signatures",
        Some(KeyUsage::Encrypt) => "encryption",
        None => "signatures or encryption",
    };
    let mut text = format!("{}\n", path.display());
    for (name, value) in [
        ("kid", key.kid().unwrap_or("none")),
        ("type", &format!("{}, {half}", key.kind())),
        ("use", usage),
        ("algorithms", &algorithms.join(" ")),
        ("thumbprint", key.thumbprint().as_deref().unwrap_or("none")),
    ] {
        text.push_str(&format!("  {name:<11} {value}\n"));
    }
    text.truncate(text.trim_end().len());
    text
}

fn read(path: &Path) -> anyhow::Result<Vec<Key>> {
    let name = path.display().to_string();
    let bytes = read_key_file(path).with_context(|| name.clone())?;
    Ok(Key::parse(&KeyDocument {
        name: &name,
        bytes: &bytes,
        usage: None,
        kid: None,
    })?)
}

/// Every accepted name, listed in the help.
fn algorithm_parser() -> impl TypedValueParser<Value = Algorithm> {
    let signatures = SignatureAlgorithm::ALL
        .iter()
        .map(|algorithm| algorithm.name());
    let encryptions = KeyManagement::ALL.iter().map(|algorithm| algorithm.name());
    PossibleValuesParser::new(signatures.chain(encryptions))
        .try_map(|name| name.parse::<Algorithm>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(alg: &str, folder: &Path, kid: Option<&str>) -> anyhow::Result<()> {
        new(&NewArgs {
            alg: alg.parse().unwrap(),
            kid: kid.map(str::to_owned),
            out: folder.join("keys"),
            name: None,
        })
    }

    #[test]
    fn a_new_key_is_written_in_all_its_forms_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        make("ES256", folder.path(), Some("k1")).unwrap();
        let mut names: Vec<String> = fs::read_dir(folder.path().join("keys"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "es256.private.jwk.json",
                "es256.private.pem",
                "es256.public.jwk.json",
                "es256.public.pem"
            ]
        );
        for name in names {
            let key = read(&folder.path().join("keys").join(&name))
                .unwrap()
                .remove(0);
            assert_eq!(key.is_secret(), name.contains("private"));
            assert_eq!(
                key.kid().is_some_and(|kid| kid == "k1"),
                name.contains("jwk")
            );
        }
        let error = make("ES256", folder.path(), None).unwrap_err();
        assert!(error.to_string().contains("exists already"));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_a_private_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        for alg in ["EdDSA", "dir"] {
            make(alg, folder.path(), None).unwrap();
        }
        for entry in fs::read_dir(folder.path().join("keys")).unwrap() {
            let path = entry.unwrap().path();
            if read(&path).unwrap().remove(0).is_secret() {
                let mode = fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            }
        }
    }

    #[test]
    fn what_is_shown_or_published_has_no_private_part() {
        let folder = tempfile::tempdir().unwrap();
        for alg in ["ES256", "EdDSA", "ECDH-ES", "A256KW"] {
            make(alg, folder.path(), None).unwrap();
        }
        for entry in fs::read_dir(folder.path().join("keys")).unwrap() {
            let path = entry.unwrap().path();
            for key in read(&path).unwrap() {
                let shown = describe(&path, &key);
                let published = key.public_jwk().map(|jwk| Value::Object(jwk).to_string());
                let Some(private) = key.private_jwk() else {
                    continue;
                };
                let private: Value = serde_json::from_str(&private).unwrap();
                let secret = private
                    .get("d")
                    .or(private.get("k"))
                    .unwrap()
                    .as_str()
                    .unwrap();
                assert!(!shown.contains(secret));
                assert!(!published.unwrap_or_default().contains(secret));
            }
        }
        let secret = folder.path().join("keys/a256kw.secret.jwk.json");
        assert!(
            jwks(&FilesArgs {
                files: vec![secret]
            })
            .is_err()
        );
    }
}
