//! The key files, read and read again: what the running gateway verifies tokens with.
//!
//! Files are polled, not watched: replacing a file, a mounted secret or a symbolic link all look the same to a poll,
//! and one `stat` of each file every few seconds costs nothing. A change that cannot be used changes nothing: the file's old
//! keys stay and the log says which file is at fault and why. What changed in the other files holds, since it may be a key
//! that was taken out. Who calls [`Keyring::reload_if_changed`], and how often, is the caller's business.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tracing::{info, warn};
use zeroize::Zeroizing;

use jetway_io::file_stamp::FileStamp;
use jetway_io::private_file;
use jetway_token::key::{DOCUMENT_BYTES, Key};
use jetway_token::{KeyDocument, KeyError, KeySet, KeyUsage, TokenRules, Verifier};

/// A configured file of keys.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// PEM, JWK or JWKS.
    pub path: PathBuf,
    /// What its keys are for, where the file leaves that open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<KeyUsage>,
    /// The id of its one key, where the file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
}

/// Holds the verifier in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Keyring {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Vec<KeyFile>,
    rules: TokenRules,
    /// Replaced as a whole, so that a token is verified with one consistent set of keys.
    current: RwLock<Arc<Verifier>>,
    /// What the files looked like when they were last read, whether they could be used or not: a bad file is reported
    /// once and not at every poll.
    seen: Mutex<Vec<Option<FileStamp>>>,
    /// What was in each of the files when it could be used last.
    good: Mutex<Vec<Content>>,
    stale: AtomicBool,
}

/// The bytes of a key file.
type Content = Zeroizing<Vec<u8>>;

/// Key files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read.
    #[error("key file {path}: {error}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is read, but not usable.
    #[error("key file {0}")]
    Key(#[from] KeyError),
}

/// What a poll found.
#[derive(Debug)]
pub enum ReloadOutcome {
    /// No file changed.
    Unchanged,
    /// New keys are in force.
    Reloaded,
    /// A file changed, but not into something usable; its old keys are in force. Already logged. This is the first such file.
    Kept(KeyringError),
}

impl Keyring {
    /// Reads all `files`.
    ///
    /// # Errors
    /// The first file that cannot be used: without its keys the gateway does not start.
    pub fn load(files: &[KeyFile], rules: TokenRules) -> Result<Self, KeyringError> {
        let seen = stamps(files);
        let good: Vec<Content> = files.iter().map(read).collect::<Result<_, _>>()?;
        let verifier = verifier_of(files, &good, &rules)?;
        Ok(Self {
            inner: Arc::new(Inner {
                files: files.to_vec(),
                rules,
                current: RwLock::new(Arc::new(verifier)),
                seen: Mutex::new(seen),
                good: Mutex::new(good),
                stale: AtomicBool::new(false),
            }),
        })
    }

    /// The verifier in force.
    #[must_use]
    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(
            &self
                .inner
                .current
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Reads the files again if one of them changed since they were read last. Blocks on the file system.
    pub fn reload_if_changed(&self) -> ReloadOutcome {
        let outcome = self.look_again();
        match outcome {
            ReloadOutcome::Unchanged => {}
            ReloadOutcome::Reloaded => self.inner.stale.store(false, Ordering::Relaxed),
            ReloadOutcome::Kept(_) => self.inner.stale.store(true, Ordering::Relaxed),
        }
        outcome
    }

    /// Whether a file has changed into one that cannot be used, and has not changed since.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.inner.stale.load(Ordering::Relaxed)
    }

    fn look_again(&self) -> ReloadOutcome {
        let mut seen = self.seen();
        // Before reading: a file that changes while it is read differs again at the next poll.
        let now = stamps(&self.inner.files);
        if *seen == now {
            return ReloadOutcome::Unchanged;
        }
        *seen = now;
        let mut good = self
            .inner
            .good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut first = None;
        let mut contents = Vec::with_capacity(good.len());
        for (file, before) in self.inner.files.iter().zip(good.iter()) {
            contents.push(match read(file).and_then(|content| usable(file, content)) {
                Ok(content) => content,
                Err(error) => {
                    warn!(%error, "A changed key file cannot be used, its previous keys stay in force");
                    first.get_or_insert(error);
                    before.clone()
                }
            });
        }
        match verifier_of(&self.inner.files, &contents, &self.inner.rules) {
            Ok(verifier) => {
                let (verify, decrypt) = verifier.keys().counts();
                *self
                    .inner
                    .current
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = Arc::new(verifier);
                *good = contents;
                info!(verify, decrypt, "Keys reloaded");
                first.map_or(ReloadOutcome::Reloaded, ReloadOutcome::Kept)
            }
            // Each of the files is good, and they contradict each other.
            Err(error) => {
                warn!(%error, "Changed keys cannot be used, the previous ones stay in force");
                ReloadOutcome::Kept(error)
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Option<FileStamp>>> {
        self.inner
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &KeyFile) -> Result<Content, KeyringError> {
    read_key_file(&file.path).map_err(|error| KeyringError::Read {
        path: file.path.clone(),
        error,
    })
}

/// The same content, if there are keys in it.
fn usable(file: &KeyFile, content: Content) -> Result<Content, KeyringError> {
    let name = file.path.display().to_string();
    KeySet::from_documents(&[document(file, &name, &content)])?;
    Ok(content)
}

fn document<'a>(file: &'a KeyFile, name: &'a str, content: &'a Content) -> KeyDocument<'a> {
    KeyDocument {
        name,
        bytes: content,
        usage: file.usage,
        kid: file.kid.as_deref(),
    }
}

fn verifier_of(
    files: &[KeyFile],
    contents: &[Content],
    rules: &TokenRules,
) -> Result<Verifier, KeyringError> {
    let names: Vec<String> = files
        .iter()
        .map(|file| file.path.display().to_string())
        .collect();
    let documents: Vec<KeyDocument<'_>> = files
        .iter()
        .zip(&names)
        .zip(contents)
        .map(|((file, name), content)| document(file, name, content))
        .collect();
    let keys = KeySet::from_documents(&documents)?;
    for key in keys.skipped() {
        let reason = &key.reason;
        if key.is_fault {
            warn!(%reason, "Key skipped");
        } else {
            info!(%reason, "Key skipped");
        }
    }
    for (file, document) in files.iter().zip(&documents) {
        warn_if_open(&file.path, document);
    }
    Ok(Verifier::new(keys, rules.clone()))
}

/// The bytes of a key file, which leave memory when they are dropped.
///
/// # Errors
/// What reading it said, and [`io::ErrorKind::FileTooLarge`] for more than a key file can have.
pub fn read_key_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = u64::try_from(DOCUMENT_BYTES).unwrap_or(u64::MAX);
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let capacity = usize::try_from(length).unwrap_or(0).max(4096) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > DOCUMENT_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn stamps(files: &[KeyFile]) -> Vec<Option<FileStamp>> {
    files.iter().map(|file| FileStamp::of(&file.path)).collect()
}

/// A private key that every user of the machine can read is not private.
fn warn_if_open(path: &Path, document: &KeyDocument<'_>) {
    if private_file::is_open(path)
        && Key::parse(document).is_ok_and(|keys| keys.iter().any(Key::is_secret))
    {
        private_file::warn_if_open(path, "Private key file");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use jetway_base::time::UnixTime;
    use jetway_token::algorithm::Algorithm;
    use jetway_token::mint::{SigningKey, generate, mint};

    const NOW: UnixTime = UnixTime(1_700_000_000);

    fn key() -> Key {
        generate("ES256".parse::<Algorithm>().unwrap()).unwrap()
    }

    fn token(key: &Key) -> String {
        let claims = json!({ "jet_cm": "fwd", "dst_hst": "rdp.example:3389", "iat": NOW.0 });
        mint(
            &claims,
            Some(&SigningKey::from_key(key, None).unwrap()),
            None,
        )
        .unwrap()
    }

    fn keyring(path: &Path) -> Keyring {
        let file = KeyFile {
            path: path.to_owned(),
            usage: None,
            kid: None,
        };
        Keyring::load(&[file], TokenRules::default()).unwrap()
    }

    fn accepts(keyring: &Keyring, key: &Key) -> bool {
        keyring.verifier().verify(&token(key), NOW).is_ok()
    }

    #[test]
    fn a_changed_file_brings_its_keys_into_force() {
        let (old, new) = (key(), key());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.pem");
        fs::write(&path, old.public_pem().unwrap()).unwrap();
        let keyring = keyring(&path);
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Unchanged
        ));
        assert!(accepts(&keyring, &old));

        fs::write(&path, new.public_pem().unwrap()).unwrap();
        assert!(accepts(&keyring, &old), "nothing changes before the poll");
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Reloaded
        ));
        assert!(accepts(&keyring, &new) && !accepts(&keyring, &old));
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Unchanged
        ));
    }

    #[test]
    fn a_file_replaced_by_another_of_equal_size_and_time_is_noticed() {
        let (old, new) = (key(), key());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.pem");
        fs::write(&path, old.public_pem().unwrap()).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let keyring = keyring(&path);

        let staged = folder.path().join("issuer.pem.new");
        fs::write(&staged, new.public_pem().unwrap()).unwrap();
        File::options()
            .write(true)
            .open(&staged)
            .unwrap()
            .set_modified(time)
            .unwrap();
        fs::rename(&staged, &path).unwrap();
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Reloaded
        ));
        assert!(accepts(&keyring, &new));
    }

    #[test]
    fn a_bad_new_file_keeps_the_old_keys_and_is_named_once() {
        let old = key();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.pem");
        fs::write(&path, old.public_pem().unwrap()).unwrap();
        let keyring = keyring(&path);

        fs::write(&path, "half a file").unwrap();
        let ReloadOutcome::Kept(error) = keyring.reload_if_changed() else {
            panic!("a bad file was taken");
        };
        assert_eq!(
            error.to_string(),
            format!(
                "key file {}: neither PEM nor a JWK nor a JWKS",
                path.display()
            )
        );
        assert!(accepts(&keyring, &old));
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Unchanged
        ));

        fs::remove_file(&path).unwrap();
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Kept(_)
        ));
        assert!(accepts(&keyring, &old));

        let new = key();
        fs::write(&path, new.public_pem().unwrap()).unwrap();
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Reloaded
        ));
        assert!(accepts(&keyring, &new));
    }

    #[test]
    fn a_key_taken_out_of_a_set_is_out_of_force_even_beside_a_bad_one() {
        let (old, new) = (key(), key());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.jwks");
        let set = |members: &[serde_json::Value]| {
            let text = json!({ "keys": members }).to_string();
            fs::write(&path, text).unwrap();
        };
        let jwk = |key: &Key| serde_json::Value::Object(key.public_jwk().unwrap());
        set(&[jwk(&old), jwk(&new)]);
        let keyring = keyring(&path);
        assert!(accepts(&keyring, &old) && accepts(&keyring, &new));

        let damaged = json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" });
        set(&[jwk(&new), damaged]);
        assert!(matches!(
            keyring.reload_if_changed(),
            ReloadOutcome::Reloaded
        ));
        assert!(accepts(&keyring, &new) && !accepts(&keyring, &old));
    }

    #[test]
    fn a_key_taken_out_of_one_file_is_out_of_force_although_another_file_is_bad() {
        let [issuer, removed, other] = [key(), key(), key()];
        let folder = tempfile::tempdir().unwrap();
        let files = ["issuer.jwks", "other.pem"].map(|name| KeyFile {
            path: folder.path().join(name),
            usage: None,
            kid: None,
        });
        let set = |members: &[&Key]| {
            let members = members.iter();
            let members: Vec<_> = members.map(|key| key.public_jwk().unwrap()).collect();
            fs::write(&files[0].path, json!({ "keys": members }).to_string()).unwrap();
        };
        set(&[&issuer, &removed]);
        fs::write(&files[1].path, other.public_pem().unwrap()).unwrap();
        let keyring = Keyring::load(&files, TokenRules::default()).unwrap();
        assert!(accepts(&keyring, &removed));

        set(&[&issuer]);
        fs::write(&files[1].path, "half a file").unwrap();
        let ReloadOutcome::Kept(error) = keyring.reload_if_changed() else {
            panic!("a bad file was taken");
        };
        assert!(error.to_string().contains("other.pem"), "{error}");
        assert!(!accepts(&keyring, &removed));
        assert!(accepts(&keyring, &issuer) && accepts(&keyring, &other));
    }

    #[test]
    fn a_missing_or_endless_file_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile {
            path: folder.path().join("absent.pem"),
            usage: None,
            kid: None,
        };
        let error = Keyring::load(&[file], TokenRules::default()).unwrap_err();
        assert!(error.to_string().contains("absent.pem"));

        let large = folder.path().join("large.pem");
        File::create(&large).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(
            read_key_file(&large).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        #[cfg(unix)]
        assert!(read_key_file(Path::new("/dev/zero")).is_err());
    }
}
