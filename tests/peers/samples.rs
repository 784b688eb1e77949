//! The samples that mint tokens, with the keys that `jetway keys` makes. `mint_token.py` is run. There is no PowerShell to run
//! `mint_token.ps1` with: its one step that is not a call of .NET by name, the derivation of the key that encrypts, is done here with
//! the very bytes that it has.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jetway::token::algorithm::{KeyManagement, SignatureAlgorithm};
use openssl::bn::{BigNum, BigNumContext};
use openssl::derive::Deriver;
use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::sha::sha256;
use openssl::symm::{Cipher, encrypt_aead};
use serde_json::json;

use crate::lab::gateway::jetway;
use crate::lab::process::tool;
use crate::lab::workspace::{self, Workspace};
use crate::units::repository;

#[test]
fn mint_token_py_takes_every_key_that_jetway_keys_makes() -> Result<()> {
    workspace::run(|workspace| {
        for algorithm in SignatureAlgorithm::ALL {
            let keys = Keys::make(workspace, algorithm.name())?;
            for (private, public) in keys.pairs() {
                let arguments = [OsStr::new("--sign-key"), private.as_os_str()];
                let token = mint(&arguments)?;
                accepted(workspace, &token, &[("sign", &public)])
                    .with_context(|| private.display().to_string())?;
            }
        }
        let issuer = Keys::make(workspace, "ES256")?;
        let (private, public) = issuer.pairs().remove(0);
        let password = workspace.write("password", "\u{feff}correct horse\r\n")?;
        for algorithm in KeyManagement::ALL {
            let keys = Keys::make(workspace, algorithm.name())?;
            for (opens, seals) in keys.pairs() {
                let token = mint(&[
                    OsStr::new("--sign-key"),
                    private.as_os_str(),
                    OsStr::new("--encrypt-key"),
                    seals.as_os_str(),
                    OsStr::new("--dst-usr"),
                    OsStr::new("alice"),
                    OsStr::new("--dst-pwd-file"),
                    password.as_os_str(),
                ])?;
                accepted(workspace, &token, &[("sign", &public), ("encrypt", &opens)])
                    .with_context(|| seals.display().to_string())?;
            }
        }
        Ok(())
    })
}

#[test]
fn the_key_that_mint_token_ps1_derives_is_the_one_that_the_gateway_derives() -> Result<()> {
    workspace::run(|workspace| {
        let script = fs::read_to_string(repository("samples/mint_token.ps1"))?;
        let (issuer, gateway) = (
            Keys::make(workspace, "ES256")?,
            Keys::make(workspace, "ECDH-ES")?,
        );
        let (sign, verify) = issuer.pairs().remove(0);
        let (opens, seals) = gateway.pairs().remove(0);
        let signed = mint(&[OsStr::new("--sign-key"), sign.as_os_str()])?;

        let theirs = PKey::public_key_from_pem(&fs::read(seals)?)?;
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let ephemeral = EcKey::generate(&group)?;
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        let mut context = BigNumContext::new()?;
        let point = ephemeral.public_key();
        point.affine_coordinates(&group, &mut x, &mut y, &mut context)?;
        let ephemeral = PKey::from_ec_key(ephemeral)?;
        let mut deriver = Deriver::new(&ephemeral)?;
        deriver.set_peer(&theirs)?;
        // What DeriveKeyFromHash does with the secret, by .NET's documentation.
        let (prefix, suffix) = (bytes_of(&script, "$prefix")?, bytes_of(&script, "$suffix")?);
        let content_key = sha256(&[prefix, deriver.derive_to_vec()?, suffix].concat());

        let coordinate = |number: &BigNum| -> Result<String> {
            Ok(URL_SAFE_NO_PAD.encode(number.to_vec_padded(32)?))
        };
        let header = json!({
            "alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWT",
            "epk": { "kty": "EC", "crv": "P-256", "x": coordinate(&x)?, "y": coordinate(&y)? },
        });
        let protected = URL_SAFE_NO_PAD.encode(header.to_string());
        let (iv, mut tag) = ([7; 12], [0; 16]);
        let sealed = encrypt_aead(
            Cipher::aes_256_gcm(),
            &content_key,
            Some(&iv),
            protected.as_bytes(),
            signed.as_bytes(),
            &mut tag,
        )?;
        let parts = [&iv[..], &sealed, &tag].map(|part| URL_SAFE_NO_PAD.encode(part));
        let token = format!("{protected}..{}", parts.join("."));
        accepted(workspace, &token, &[("sign", &verify), ("encrypt", &opens)])?;
        // And what it says of itself is so.
        for name in ["ECDsa", "RSA", "ECDiffieHellman"] {
            ensure!(
                script.contains(&format!("[Security.Cryptography.{name}]")),
                "{name}"
            );
        }
        Ok(())
    })
}

/// The bytes that a line of the script makes of numbers and texts.
fn bytes_of(script: &str, variable: &str) -> Result<Vec<u8>> {
    let start = format!("{variable} = ");
    let mut lines = script.lines().map(str::trim);
    let line = lines.find_map(|line| line.strip_prefix(&start));
    let mut bytes = Vec::new();
    for term in line.context("no such line")?.split(" + ") {
        if let Some((_, text)) = term.split_once("GetBytes('") {
            bytes.extend(text.trim_end_matches("')").bytes());
            continue;
        }
        let numbers = term
            .strip_prefix("[byte[]] (")
            .and_then(|term| term.strip_suffix(')'));
        for number in numbers.with_context(|| term.to_owned())?.split(", ") {
            bytes.push(number.parse()?);
        }
    }
    Ok(bytes)
}

/// The files of one key.
struct Keys(PathBuf, String);

impl Keys {
    fn make(workspace: &Workspace, algorithm: &str) -> Result<Self> {
        let name = algorithm.to_ascii_lowercase().replace('+', "-");
        let folder = workspace.folder("keys")?;
        if !folder.join(format!("{name}.public.pem")).exists() {
            jetway(&[
                OsStr::new("keys"),
                OsStr::new("new"),
                OsStr::new("--alg"),
                OsStr::new(algorithm),
                OsStr::new("--out"),
                folder.as_os_str(),
            ])?;
        }
        Ok(Self(folder, name))
    }

    /// In each form that it has: the private half and the public one, or the shared secret twice.
    fn pairs(&self) -> Vec<(PathBuf, PathBuf)> {
        let file = |suffix: &str| self.0.join(format!("{}.{suffix}", self.1));
        let pairs = [
            ("private.pem", "public.pem"),
            ("private.jwk.json", "public.jwk.json"),
            ("secret.jwk.json", "secret.jwk.json"),
        ];
        let pairs = pairs.map(|(private, public)| (file(private), file(public)));
        pairs
            .into_iter()
            .filter(|(private, _)| private.exists())
            .collect()
    }
}

/// What `mint_token.py` prints.
fn mint(arguments: &[&OsStr]) -> Result<String> {
    let claims = repository("samples/claims/forward.json");
    let printed = tool(
        Command::new("/usr/bin/python3")
            .arg(repository("samples/mint_token.py"))
            .arg("--claims")
            .arg(claims)
            .args(arguments),
    )?;
    Ok(String::from_utf8(printed)?.trim().to_owned())
}

/// A gateway with these keys takes the token.
fn accepted(workspace: &Workspace, token: &str, keys: &[(&str, &Path)]) -> Result<()> {
    let file = workspace.write("token", token)?;
    let keys: Vec<String> = keys
        .iter()
        .map(|(usage, path)| format!("{usage}:{}", path.display()))
        .collect();
    let mut arguments = vec![OsStr::new("token"), OsStr::new("inspect")];
    for key in &keys {
        arguments.extend([OsStr::new("--key"), OsStr::new(key)]);
    }
    arguments.push(file.as_os_str());
    let said = jetway(&arguments)?;
    ensure!(said.contains("verdict     accepted"), "{said}");
    Ok(())
}
