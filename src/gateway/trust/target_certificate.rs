//! Which certificate a target may show on the inspected path, where TLS to the target ends at the gateway.
//!
//! | policy | the target's certificate must |
//! |---|---|
//! | [`TargetCertificate::Ca`] | chain to a root, be valid now, name the target and be for TLS servers or Remote Desktop |
//! | [`TargetCertificate::Pin`] | be this one (SHA-256 of its DER) |
//! | [`TargetCertificate::TrustOnFirstUse`] | be the one by which this target has proved itself first |
//! | [`TargetCertificate::AcceptAny`] | be any; for laboratories, asked for by name and logged each time |
//!
//! A token's `cert_thumb256` goes before the configured policy. Whatever the policy, the target proves in the handshake
//! that it has the key of the certificate, and CredSSP proves once more that nobody is between.
//!
//! Trust on first use remembers a certificate when the legs stand ([`TargetCertificate::remember`]), and how far it is
//! to be trusted:
//!
//! - *Proven*: by CredSSP, which nobody completes who does not know the account's password; or by the administrator, who
//!   wrote the line or listed the target as one that has TLS alone (`target.tls_only`). It holds for every session.
//! - *Unproven*: seen in a session without credentials, where any host at that address can show what it likes. It
//!   holds for such sessions only, and as soon as there is a proven one, for none.
//!
//! So credentials go to a target without a proven certificate by CredSSP alone ([`TargetCertificate::demands_proof`]),
//! and an impostor that was there first neither gets them nor keeps the real desktop out of sessions that have them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openssl::sha::sha256;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};

use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext,
};

use jetway_io::file_stamp::FileStamp;
use jetway_io::private_file;
use jetway_rdp::credssp::SubjectPublicKeyInfo;
use jetway_token::claims::Thumbprint;
use jetway_token::target_name::TargetName;

/// How a target's certificate is judged.
#[derive(Clone, Debug)]
pub enum TargetCertificate {
    /// By certificate authorities, validity and name.
    Ca {
        /// The authorities.
        roots: Arc<RootCertStore>,
        /// The name to find in the certificate; the target's own by default.
        name: Option<ServerName<'static>>,
    },
    /// By its SHA-256.
    Pin(Thumbprint),
    /// By what the target showed before.
    TrustOnFirstUse {
        /// Where that is remembered.
        pins: Arc<dyn PinStore>,
        /// Whom the administrator trusts without CredSSP.
        tls_only: TlsOnly,
    },
    /// Not at all.
    AcceptAny,
}

impl TargetCertificate {
    /// Reads pins again that somebody has changed; if there were any, how many there are now.
    ///
    /// # Errors
    /// They cannot be read, and those that were known stay.
    pub fn reload_if_changed(&self) -> io::Result<Option<usize>> {
        match self {
            Self::TrustOnFirstUse { pins, .. } => pins.reload_if_changed(),
            Self::Ca { .. } | Self::Pin(_) | Self::AcceptAny => Ok(None),
        }
    }

    /// The name of the policy, for logs and the configuration: `ca`, `pin`, `first-use`, `any`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ca { .. } => "ca",
            Self::Pin(_) => "pin",
            Self::TrustOnFirstUse { .. } => "first-use",
            Self::AcceptAny => "any",
        }
    }

    /// Whether `target` has to prove itself by CredSSP before it is shown credentials: nothing else says yet who it is.
    ///
    /// # Errors
    /// The pins cannot be read.
    pub fn demands_proof(&self, target: &TargetName) -> Result<bool, CertificateRefusal> {
        let Self::TrustOnFirstUse { pins, tls_only } = self else {
            return Ok(false);
        };
        let pin = pins
            .pin(target, Stakes::Credentials)
            .map_err(|error| CertificateRefusal::Store(error.to_string()))?;
        Ok(pin.is_none() && !tls_only.contains(target))
    }

    /// A verifier for one connection to `target`.
    ///
    /// # Errors
    /// `Ca` without a single root; `Ca` and `TrustOnFirstUse` for a target whose name does not last.
    pub fn verifier(
        &self,
        target: &TargetName,
        stakes: Stakes,
    ) -> Result<Arc<Verifier>, CertificateRefusal> {
        let by_name = matches!(
            self,
            Self::Ca { name: None, .. } | Self::TrustOnFirstUse { .. }
        );
        if by_name && !target.lasts() {
            return Err(CertificateRefusal::Nameless);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let rule = match self {
            Self::Ca { roots, name } => {
                let chain = WebPkiServerVerifier::builder_with_provider(
                    Arc::clone(roots),
                    Arc::clone(&provider),
                )
                .build()
                .map_err(|error| CertificateRefusal::NotTrusted(error.to_string()))?;
                Rule::Chain {
                    chain,
                    roots: Arc::clone(roots),
                    name: name.clone(),
                }
            }
            Self::Pin(pin) => Rule::Known(*pin, PinnedBy::Token),
            Self::TrustOnFirstUse { pins, .. } => match pins
                .pin(target, stakes)
                .map_err(|error| CertificateRefusal::Store(error.to_string()))?
            {
                Some(pin) => Rule::Known(pin, pins.place(target, stakes)),
                None => Rule::Any,
            },
            Self::AcceptAny => Rule::Any,
        };
        Ok(Arc::new(Verifier {
            rule,
            algorithms: provider.signature_verification_algorithms,
            provider,
            refusal: OnceLock::new(),
        }))
    }

    /// Called when the leg stands: remembers the certificate, where the policy is to do so. With credentials at stake it
    /// has been proven, by CredSSP or because [`demands_proof`](Self::demands_proof) said that this is not asked for.
    ///
    /// # Errors
    /// Another session was first and saw another certificate, or the store failed: the session must not go on.
    pub fn remember(
        &self,
        target: &TargetName,
        certificate: &CertificateDer<'_>,
        stakes: Stakes,
    ) -> Result<Remembered, CertificateRefusal> {
        let Self::TrustOnFirstUse { pins, .. } = self else {
            return Ok(Remembered::Nothing);
        };
        let seen = thumbprint(certificate);
        let pin = pins
            .pin_if_new(target, &seen, stakes)
            .map_err(|error| CertificateRefusal::Store(error.to_string()))?;
        match pin {
            None => Ok(Remembered::First),
            Some(pin) if pin.0 == seen.0 => Ok(Remembered::Same),
            Some(expected) => Err(CertificateRefusal::Mismatch {
                expected,
                seen,
                by: pins.place(target, stakes),
            }),
        }
    }
}

/// What a session would lose to an impostor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stakes {
    /// Credentials of the token, which the gateway logs on with: only what is proven counts.
    Credentials,
    /// None of the token: what was seen first counts while nothing is proven.
    Nothing,
}

/// Targets that have no CredSSP, by name (`target.tls_only`): where nothing else vouches for them, the administrator
/// does.
#[derive(Clone, Debug, Default)]
pub struct TlsOnly(HashSet<String>);

impl TlsOnly {
    /// Whether `target` is one.
    #[must_use]
    pub fn contains(&self, target: &TargetName) -> bool {
        self.0.contains(&key(target))
    }
}

impl FromIterator<TargetName> for TlsOnly {
    fn from_iter<T: IntoIterator<Item = TargetName>>(targets: T) -> Self {
        Self(targets.into_iter().map(|target| key(&target)).collect())
    }
}

/// What [`TargetCertificate::remember`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// The policy remembers nothing.
    Nothing,
    /// The certificate is pinned from now on: worth a line in the log.
    First,
    /// It was pinned already.
    Same,
}

/// SHA-256 of the certificate.
#[must_use]
pub fn thumbprint(certificate: &CertificateDer<'_>) -> Thumbprint {
    Thumbprint(sha256(certificate))
}

/// Why a target's certificate is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateRefusal {
    /// Not the pinned one.
    #[error("the target shows certificate {seen}, and {expected} is {by}")]
    Mismatch {
        /// Pinned by token or first use.
        expected: Thumbprint,
        /// What the target shows.
        seen: Thumbprint,
        /// Who says so.
        by: PinnedBy,
    },
    /// The authorities, the dates or the name do not fit.
    #[error("the target's certificate is not trusted: {0}")]
    NotTrusted(String),
    /// The target selects TLS alone, and nothing says that it is the right one.
    #[error(
        "the target has TLS alone, and nothing vouches for it before it is shown credentials: pin its certificate (cert_thumb256, or a line in target.pins), have an authority vouch for it (target.verify = \"ca\"), or list it in target.tls_only as \"{0}\""
    )]
    Unproven(TargetName),
    /// No key can be found in it.
    #[error("the target's certificate shows no public key")]
    NoPublicKey,
    /// It is to be judged by a name, and whoever has accepted has none.
    #[error(
        "an acceptor has no name to verify: the token must pin its certificate (cert_thumb256)"
    )]
    Nameless,
    /// The pins cannot be read or written: refused rather than trusted.
    #[error("the store of certificate pins failed: {0}")]
    Store(String),
}

/// Who says which certificate it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinnedBy {
    /// Its issuer can put it right.
    #[error("pinned by the token (cert_thumb256)")]
    Token,
    /// The administrator can.
    #[error(
        "remembered in {file}: if the target has a new certificate, remove the line \"{line}\" there, which counts within seconds"
    )]
    File {
        /// The file of pins.
        file: String,
        /// How its line begins.
        line: String,
    },
}

#[derive(Debug)]
enum Rule {
    Chain {
        chain: Arc<WebPkiServerVerifier>,
        roots: Arc<RootCertStore>,
        name: Option<ServerName<'static>>,
    },
    Known(Thumbprint, PinnedBy),
    Any,
}

/// The verifier of one connection; remembers why it refused.
#[derive(Debug)]
pub struct Verifier {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
    refusal: OnceLock<CertificateRefusal>,
}

impl Verifier {
    /// Why the certificate was refused, once it was.
    #[must_use]
    pub fn refusal(&self) -> Option<&CertificateRefusal> {
        self.refusal.get()
    }

    /// The cryptography to connect with.
    #[must_use]
    pub fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<(), CertificateRefusal> {
        match &self.rule {
            Rule::Any => Ok(()),
            Rule::Known(expected, by) => {
                let seen = thumbprint(end_entity);
                if seen.0 == expected.0 {
                    Ok(())
                } else {
                    Err(CertificateRefusal::Mismatch {
                        expected: *expected,
                        seen,
                        by: by.clone(),
                    })
                }
            }
            Rule::Chain { chain, roots, name } => {
                let name = name.as_ref().unwrap_or(server_name);
                chain
                    .verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
                    .map(|_| ())
                    .or_else(|error| {
                        let chain = (end_entity, intermediates);
                        match self.judge_by_purpose(roots, chain, name, now) {
                            Ok(()) => Ok(()),
                            // Of a certificate that has another purpose, too, the purpose is said; of others what rustls says.
                            Err(webpki::Error::RequiredEkuNotFoundContext(_))
                                if is_of_purpose(&error) =>
                            {
                                Err(PURPOSES.to_owned())
                            }
                            Err(other) if is_of_purpose(&error) => Err(other.to_string()),
                            Err(_) => Err(error.to_string()),
                        }
                    })
                    .map_err(CertificateRefusal::NotTrusted)
            }
        }
    }

    /// As rustls judges, for certificates whose extended key usage does not name TLS servers: enterprise templates for
    /// Remote Desktop name that alone, and some name any purpose. One purpose must hold from the certificate to the root.
    fn judge_by_purpose(
        &self,
        roots: &RootCertStore,
        (end_entity, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let certificate = EndEntityCert::try_from(end_entity)?;
        let chain = |purpose| {
            let algorithms = self.algorithms.all;
            certificate
                .verify_for_usage(
                    algorithms,
                    &roots.roots,
                    intermediates,
                    now,
                    purpose,
                    None,
                    None,
                )
                .map(|_| ())
        };
        chain(Purpose(SERVER_AUTHENTICATION))
            .or_else(|_| chain(Purpose(REMOTE_DESKTOP_AUTHENTICATION)))?;
        certificate.verify_is_valid_for_subject_name(name)
    }

    /// Verifies with the key alone: certificates of targets are old, odd and self-signed, and only their key counts
    /// here. Whether the certificate itself will do was judged before.
    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        tls13: bool,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let bad_encoding = TlsError::InvalidCertificate(CertificateError::BadEncoding);
        let info = SubjectPublicKeyInfo::of_certificate(certificate).map_err(|_| bad_encoding)?;
        let mapping = self.algorithms.mapping.iter();
        let (_, candidates) = mapping
            .into_iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // In TLS 1.3 a scheme names one curve, in TLS 1.2 any of them.
        let count = if tls13 { 1 } else { candidates.len() };
        let fits = candidates
            .iter()
            .take(count)
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == info.algorithm)
            .any(|algorithm| {
                algorithm
                    .verify_signature(info.key, message, signed.signature())
                    .is_ok()
            });
        if fits {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(TlsError::InvalidCertificate(CertificateError::BadSignature))
        }
    }
}

/// Whether rustls refused a certificate for what it is to be used for.
fn is_of_purpose(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }
        )
    )
}

/// An extended key usage to be found in certificates that name any; [RFC 5280] 4.2.1.12.
///
/// [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.12
#[derive(Clone, Copy)]
struct Purpose(&'static [u8]);

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let wanted = [KeyPurposeId::new(self.0), KeyPurposeId::new(ANY_PURPOSE)];
        let mut present = Vec::new();
        for purpose in purposes {
            let purpose = purpose?;
            if wanted.contains(&purpose) {
                return Ok(());
            }
            present.push(purpose.to_decoded_oid());
        }
        if present.is_empty() {
            return Ok(());
        }
        Err(webpki::Error::RequiredEkuNotFoundContext(
            RequiredEkuNotFoundContext {
                required: KeyUsage::required_if_present(self.0),
                present,
            },
        ))
    }
}

/// What is said of a certificate that is for something else.
const PURPOSES: &str = "its extended key usage is neither for TLS servers (1.3.6.1.5.5.7.3.1) nor for Remote Desktop (1.3.6.1.4.1.311.54.1.2)";

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1.
const SERVER_AUTHENTICATION: &[u8] = &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// szOID_TS_KP_TS_SERVER_AUTH, 1.3.6.1.4.1.311.54.1.2.
const REMOTE_DESKTOP_AUTHENTICATION: &[u8] =
    &[0x2B, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x36, 0x01, 0x02];

/// anyExtendedKeyUsage, 2.5.29.37.0.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1D, 0x25, 0x00];

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.judge(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refusal) => {
                let told = OtherError(Arc::new(refusal.clone()));
                // A handshake asks once.
                let _ = self.refusal.set(refusal);
                Err(CertificateError::Other(told).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify_signature(message, cert, dss, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        use SignatureScheme as S;
        if matches!(
            dss.scheme,
            S::RSA_PKCS1_SHA1 | S::RSA_PKCS1_SHA256 | S::RSA_PKCS1_SHA384 | S::RSA_PKCS1_SHA512
        ) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.verify_signature(message, cert, dss, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Where the certificates of first use are kept.
pub trait PinStore: fmt::Debug + Send + Sync {
    /// The pin of a target that counts for what is at stake, if it has one.
    ///
    /// # Errors
    /// The store cannot be read.
    fn pin(&self, target: &TargetName, stakes: Stakes) -> io::Result<Option<Thumbprint>>;

    /// Pins `seen` unless the target has a pin that counts for what is at stake; that one is returned then. One step: of two
    /// sessions, one is first. With credentials at stake the new pin is a proven one.
    ///
    /// # Errors
    /// The store cannot be read or written.
    fn pin_if_new(
        &self,
        target: &TargetName,
        seen: &Thumbprint,
        stakes: Stakes,
    ) -> io::Result<Option<Thumbprint>>;

    /// Reads again what somebody else has changed; if there was anything, how many pins there are now.
    ///
    /// # Errors
    /// It cannot be read: what was known stays.
    fn reload_if_changed(&self) -> io::Result<Option<usize>>;

    /// Where the pin of a target stands that counts for what is at stake, for people.
    fn place(&self, target: &TargetName, stakes: Stakes) -> PinnedBy;
}

/// Pins in a text file that people may read and edit: one line for each target, `host:port sha256`, or
/// `agent name host:port sha256` behind an agent. `unproven` in front of a line says that the target has not proved
/// itself: it counts for sessions without credentials, as long as there is no other line of that target.
///
/// Lines that begin with `#` and empty lines are skipped; a line that is malformed makes the file unusable. What is changed in it
/// counts at the next [`reload_if_changed`](PinStore::reload_if_changed). A file that is gone or malformed is taken for a mistake, and
/// what was known stays: else whoever comes first afterwards would be trusted for every target.
#[derive(Debug)]
pub struct FilePins {
    path: PathBuf,
    pins: Mutex<Pins>,
}

#[derive(Debug, Default)]
struct Pins {
    proven: HashMap<String, Thumbprint>,
    unproven: HashMap<String, Thumbprint>,
    /// Of the file when it was read or written last.
    stamp: Option<FileStamp>,
}

impl Pins {
    fn get(&self, key: &str, stakes: Stakes) -> Option<Thumbprint> {
        let proven = self.proven.get(key).copied();
        match stakes {
            Stakes::Credentials => proven,
            Stakes::Nothing => proven.or_else(|| self.unproven.get(key).copied()),
        }
    }
}

impl FilePins {
    /// Reads the file; one that does not exist holds no pins and is made when the first is set.
    ///
    /// # Errors
    /// It cannot be read, is too large, or has a malformed line (which is named).
    pub fn open(path: &Path) -> io::Result<Self> {
        let pins = read(path)?;
        if pins.stamp.is_some() {
            private_file::warn_if_open(path, "File of pins");
        }
        Ok(Self {
            path: path.to_owned(),
            pins: Mutex::new(pins),
        })
    }
}

/// What the file holds.
fn read(path: &Path) -> io::Result<Pins> {
    // Before its text: what changes in between is read again.
    let stamp = FileStamp::of(path);
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => {
            let read = file.take(PIN_FILE_BYTES).read_to_string(&mut text)?;
            if u64::try_from(read).is_ok_and(|read| read == PIN_FILE_BYTES) {
                return Err(invalid("too large"));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut pins = Pins {
        stamp,
        ..Pins::default()
    };
    for (number, line) in (1_usize..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let unproven = line
            .strip_prefix(UNPROVEN)
            .filter(|line| line.starts_with(char::is_whitespace));
        let pin = unproven
            .unwrap_or(line)
            .rsplit_once(char::is_whitespace)
            .and_then(|(target, pin)| {
                let target = TargetName::from_str(target).ok()?;
                let pin = Thumbprint::from_str(pin).ok()?;
                Some((key(&target), pin))
            });
        let (target, pin) = pin.ok_or_else(|| invalid(&format!("line {number}")))?;
        let standing = match unproven {
            Some(_) => &mut pins.unproven,
            None => &mut pins.proven,
        };
        standing.insert(target, pin);
    }
    Ok(pins)
}

impl PinStore for FilePins {
    fn pin(&self, target: &TargetName, stakes: Stakes) -> io::Result<Option<Thumbprint>> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pins.get(&key(target), stakes))
    }

    fn pin_if_new(
        &self,
        target: &TargetName,
        seen: &Thumbprint,
        stakes: Stakes,
    ) -> io::Result<Option<Thumbprint>> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(target);
        if let Some(pin) = pins.get(&key, stakes) {
            return Ok(Some(pin));
        }
        let line = match stakes {
            Stakes::Credentials => format!("{key} {seen}\n"),
            Stakes::Nothing => format!("{UNPROVEN} {key} {seen}\n"),
        };
        let unchanged = FileStamp::of(&self.path) == pins.stamp;
        let mut file = private_file::options()
            .create(true)
            .append(true)
            .open(&self.path)?;
        // In one write, so that a crash leaves no half of a line with a longer file behind it.
        file.write_all(line.as_bytes())?;
        file.sync_data()?;
        if unchanged {
            pins.stamp = FileStamp::of(&self.path);
        }
        let standing = match stakes {
            Stakes::Credentials => &mut pins.proven,
            Stakes::Nothing => &mut pins.unproven,
        };
        standing.insert(key, *seen);
        Ok(None)
    }

    fn reload_if_changed(&self) -> io::Result<Option<usize>> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = FileStamp::of(&self.path);
        if stamp == pins.stamp {
            return Ok(None);
        }
        // Whatever it is, it is told once.
        pins.stamp = stamp;
        if stamp.is_none() {
            return Err(invalid("the file is gone"));
        }
        *pins = read(&self.path)?;
        Ok(Some(pins.proven.len().saturating_add(pins.unproven.len())))
    }

    fn place(&self, target: &TargetName, stakes: Stakes) -> PinnedBy {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(target);
        let line = match stakes {
            Stakes::Nothing if !pins.proven.contains_key(&key) => format!("{UNPROVEN} {key}"),
            Stakes::Nothing | Stakes::Credentials => key,
        };
        let file = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        PinnedBy::File {
            file: file.display().to_string(),
            line,
        }
    }
}

/// Host names are compared without regard to case.
fn key(target: &TargetName) -> String {
    target.to_string().to_ascii_lowercase()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("pins: {what}"))
}

/// What a line begins with whose target has not proved itself. No host has this name without a port.
const UNPROVEN: &str = "unproven";

/// Largest file of pins, bytes: more than 50,000 targets.
const PIN_FILE_BYTES: u64 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use jetway_lab::certificate::{Authority, Identity};
    use jetway_lab::rcgen::ExtendedKeyUsagePurpose;
    use jetway_lab::tls::certificate_der;

    use super::*;

    fn target(text: &str) -> TargetName {
        text.parse().unwrap()
    }

    const CREDENTIALS: Stakes = Stakes::Credentials;

    fn first_use(path: &Path) -> TargetCertificate {
        TargetCertificate::TrustOnFirstUse {
            pins: Arc::new(FilePins::open(path).unwrap()),
            tls_only: [target("xrdp.corp.example:3389")].into_iter().collect(),
        }
    }

    fn self_signed() -> CertificateDer<'static> {
        certificate_der(&Identity::self_signed(&["rdp.corp.example"]))
    }

    /// A root, and a certificate for `rdp.corp.example` that it signed.
    fn signed() -> (CertificateDer<'static>, CertificateDer<'static>) {
        signed_for(&[])
    }

    /// The same for these purposes; for any where there are none.
    fn signed_for(
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let authority = Authority::generate();
        let root = CertificateDer::from(authority.certificate().to_vec());
        let leaf = authority.certify(&["rdp.corp.example"], purposes);
        (root, certificate_der(&leaf))
    }

    fn judged(
        policy: &TargetCertificate,
        host: &str,
        certificate: &CertificateDer<'_>,
    ) -> Result<(), CertificateRefusal> {
        let verifier = policy
            .verifier(&target(&format!("{host}:3389")), CREDENTIALS)
            .unwrap();
        let name = ServerName::try_from(host).unwrap();
        // 2026.
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000));
        let told = verifier.verify_server_cert(certificate, &[], &name, &[], now);
        assert_eq!(told.is_err(), verifier.refusal().is_some());
        verifier.refusal().cloned().map_or(Ok(()), Err)
    }

    #[test]
    fn an_authority_vouches_for_a_name() {
        let (root, leaf) = signed();
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let ca = |name| TargetCertificate::Ca {
            roots: Arc::new(roots.clone()),
            name,
        };
        assert!(judged(&ca(None), "rdp.corp.example", &leaf).is_ok());
        let elsewhere = judged(&ca(None), "other.corp.example", &leaf);
        assert!(matches!(elsewhere, Err(CertificateRefusal::NotTrusted(_))));
        let name = ServerName::try_from("rdp.corp.example").unwrap();
        assert!(judged(&ca(Some(name)), "192.0.2.1", &leaf).is_ok());
        let unknown = judged(&ca(None), "rdp.corp.example", &self_signed());
        assert!(matches!(unknown, Err(CertificateRefusal::NotTrusted(_))));
    }

    #[test]
    fn a_certificate_for_remote_desktop_alone_is_as_good_as_one_for_tls_servers() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, Other, ServerAuth};
        let remote_desktop = Other(vec![1, 3, 6, 1, 4, 1, 311, 54, 1, 2]);
        let judge = |purposes: &[ExtendedKeyUsagePurpose], host: &str| {
            let (root, leaf) = signed_for(purposes);
            let mut roots = RootCertStore::empty();
            roots.add(root).unwrap();
            let roots = Arc::new(roots);
            judged(&TargetCertificate::Ca { roots, name: None }, host, &leaf)
        };
        for purposes in [
            vec![remote_desktop.clone()],
            vec![Any],
            vec![ClientAuth, remote_desktop.clone()],
            vec![ClientAuth, Any],
            vec![ServerAuth],
            vec![ServerAuth, ClientAuth, remote_desktop.clone()],
            vec![],
        ] {
            let good = judge(&purposes, "rdp.corp.example");
            assert!(good.is_ok(), "{purposes:?} {good:?}");
            // All else is judged as ever: the name, and below the root.
            let elsewhere = judge(&purposes, "other.corp.example");
            assert!(elsewhere.is_err(), "{purposes:?}");
        }
        for purposes in [vec![ClientAuth], vec![CodeSigning, ClientAuth]] {
            let refused = judge(&purposes, "rdp.corp.example").unwrap_err();
            let words = "not trusted: its extended key usage is neither for TLS servers";
            assert!(refused.to_string().contains(words), "{refused}");
        }
        let (_, leaf) = signed_for(&[remote_desktop]);
        let (other_root, _) = signed();
        let mut roots = RootCertStore::empty();
        roots.add(other_root).unwrap();
        let roots = Arc::new(roots);
        let ca = TargetCertificate::Ca { roots, name: None };
        let unknown = judged(&ca, "rdp.corp.example", &leaf).unwrap_err();
        // What is wrong with it is said, and not its purpose.
        let words = "InvalidSignatureForPublicKey";
        assert!(unknown.to_string().contains(words), "{unknown}");
    }

    #[test]
    fn a_pin_lets_one_certificate_pass() {
        let (first, second) = (self_signed(), self_signed());
        let pin = TargetCertificate::Pin(thumbprint(&first));
        assert!(judged(&pin, "rdp.corp.example", &first).is_ok());
        let refused = judged(&pin, "rdp.corp.example", &second);
        assert!(matches!(
            refused,
            Err(CertificateRefusal::Mismatch { expected, seen, by: PinnedBy::Token })
                if expected == thumbprint(&first) && seen == thumbprint(&second)
        ));
        assert!(judged(&TargetCertificate::AcceptAny, "rdp.corp.example", &second).is_ok());
    }

    #[test]
    fn the_first_certificate_that_is_remembered_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pins");
        let policy = || first_use(&path);
        let (first, second) = (self_signed(), self_signed());
        let place = target("RDP.corp.example:3389");
        let open = policy();
        // To show a certificate pins nothing.
        assert!(judged(&open, "rdp.corp.example", &second).is_ok());
        assert_eq!(
            open.remember(&place, &first, CREDENTIALS).unwrap(),
            Remembered::First
        );
        assert_eq!(
            open.remember(&place, &first, CREDENTIALS).unwrap(),
            Remembered::Same
        );
        let mode = std::fs::metadata(&path).unwrap().permissions();
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
        assert_eq!(mode & 0o777, 0o600, "its owner's alone");
        // Two sessions at once, of which the other was first.
        let late = open.remember(&place, &second, CREDENTIALS).unwrap_err();
        let told = format!(
            "the target shows certificate {}, and {} is remembered in {}: if the target has a new certificate, remove the line \
             \"rdp.corp.example:3389\" there, which counts within seconds",
            thumbprint(&second),
            thumbprint(&first),
            path.display()
        );
        assert_eq!(late.to_string(), told);
        let line = std::fs::read_to_string(&path).unwrap();
        assert!(line.starts_with("rdp.corp.example:3389 "), "{line}");
        for policy in [open, policy()] {
            assert!(judged(&policy, "rdp.corp.example", &first).is_ok());
            assert!(judged(&policy, "rdp.corp.example", &second).is_err());
            assert!(judged(&policy, "other.corp.example", &second).is_ok());
        }
    }

    #[test]
    fn an_unproven_pin_counts_for_sessions_without_credentials_and_until_one_is_proven() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pins");
        let (impostor, real) = (self_signed(), self_signed());
        let place = target("rdp.corp.example:3389");
        let open = first_use(&path);
        let planted = open.remember(&place, &impostor, Stakes::Nothing).unwrap();
        assert_eq!(planted, Remembered::First);
        // Now, and after a restart.
        for policy in [&open, &first_use(&path)] {
            let pin = |stakes| {
                let TargetCertificate::TrustOnFirstUse { pins, .. } = policy else {
                    unreachable!();
                };
                pins.pin(&place, stakes).unwrap()
            };
            assert_eq!(pin(Stakes::Nothing), Some(thumbprint(&impostor)));
            assert_eq!(pin(CREDENTIALS), None);
            assert!(policy.demands_proof(&place).unwrap());
            let other = policy.remember(&place, &real, Stakes::Nothing).unwrap_err();
            let line = "remove the line \"unproven rdp.corp.example:3389\"";
            assert!(other.to_string().contains(line), "{other}");
        }
        let proven = open.remember(&place, &real, CREDENTIALS).unwrap();
        assert_eq!(proven, Remembered::First);
        for policy in [&open, &first_use(&path)] {
            assert!(!policy.demands_proof(&place).unwrap());
            for stakes in [CREDENTIALS, Stakes::Nothing] {
                let same = policy.remember(&place, &real, stakes).unwrap();
                assert_eq!(same, Remembered::Same);
                let other = policy.remember(&place, &impostor, stakes);
                assert!(matches!(other, Err(CertificateRefusal::Mismatch { .. })));
            }
        }
    }

    #[test]
    fn a_line_that_is_removed_counts_at_the_next_look_and_a_file_that_is_gone_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pins");
        let (old, new) = (self_signed(), self_signed());
        let (kept, changed) = (
            target("kept.corp.example:3389"),
            target("rdp.corp.example:3389"),
        );
        let open = first_use(&path);
        let TargetCertificate::TrustOnFirstUse { pins, .. } = &open else {
            unreachable!();
        };
        for place in [&kept, &changed] {
            open.remember(place, &old, CREDENTIALS).unwrap();
        }
        assert_eq!(pins.reload_if_changed().unwrap(), None, "its own lines");
        let text = std::fs::read_to_string(&path).unwrap();
        let (line, rest): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.starts_with("rdp."));
        assert_eq!(line.len(), 1);
        std::fs::write(&path, rest.join("\n") + "\n").unwrap();
        assert!(open.remember(&changed, &new, CREDENTIALS).is_err());
        assert_eq!(pins.reload_if_changed().unwrap(), Some(1));
        assert_eq!(
            open.remember(&changed, &new, CREDENTIALS).unwrap(),
            Remembered::First
        );
        // What cannot be read or is gone is told once, and changes nothing.
        for text in [Some("no line of pins\n"), None] {
            match text {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let error = pins.reload_if_changed().unwrap_err().to_string();
            assert!(error.starts_with("pins: "), "{error}");
            assert_eq!(pins.reload_if_changed().unwrap(), None);
            for (place, certificate) in [(&kept, &old), (&changed, &new)] {
                let same = open.remember(place, certificate, CREDENTIALS).unwrap();
                assert_eq!(same, Remembered::Same);
            }
        }
    }

    #[test]
    fn proof_is_demanded_of_whom_nothing_vouches_for() {
        let folder = tempfile::tempdir().unwrap();
        let open = first_use(&folder.path().join("pins"));
        for (name, demanded) in [
            ("rdp.corp.example:3389", true),
            ("xrdp.corp.example:3389", false),
            ("XRDP.corp.example:3389", false),
            ("xrdp.corp.example:3390", true),
            ("agent branch-7 xrdp.corp.example:3389", true),
        ] {
            assert_eq!(
                open.demands_proof(&target(name)).unwrap(),
                demanded,
                "{name}"
            );
        }
        let any = TargetCertificate::AcceptAny;
        assert!(!any.demands_proof(&target("rdp.corp.example:3389")).unwrap());
    }

    #[test]
    fn a_certificate_behind_an_agent_is_that_of_no_other_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pins");
        let policy = || first_use(&path);
        let names = [
            "localhost:3389",
            "agent branch-7 localhost:3389",
            "agent branch-8 localhost:3389",
        ];
        let certificates: Vec<_> = names.iter().map(|_| self_signed()).collect();
        let open = policy();
        for (name, certificate) in names.iter().zip(&certificates) {
            let remembered = open
                .remember(&target(name), certificate, CREDENTIALS)
                .unwrap();
            assert_eq!(remembered, Remembered::First, "{name}");
        }
        // Read again, as after a restart.
        for (name, certificate) in names.iter().zip(&certificates) {
            let remembered = policy()
                .remember(&target(name), certificate, CREDENTIALS)
                .unwrap();
            assert_eq!(remembered, Remembered::Same, "{name}");
        }
    }

    #[test]
    fn an_acceptor_is_judged_by_a_pin_alone() {
        let folder = tempfile::tempdir().unwrap();
        let acceptor = TargetName::Acceptor("192.0.2.7:51234".parse().unwrap());
        let ca = TargetCertificate::Ca {
            roots: Arc::new(RootCertStore::empty()),
            name: None,
        };
        for policy in [ca, first_use(&folder.path().join("pins"))] {
            let refused = policy.verifier(&acceptor, CREDENTIALS).unwrap_err();
            assert!(
                matches!(refused, CertificateRefusal::Nameless),
                "{policy:?}"
            );
        }
        for policy in [
            TargetCertificate::Pin(Thumbprint([7; 32])),
            TargetCertificate::AcceptAny,
        ] {
            assert!(
                policy.verifier(&acceptor, CREDENTIALS).is_ok(),
                "{policy:?}"
            );
        }
    }

    #[test]
    fn a_malformed_file_of_pins_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pins");
        let pin = "7".repeat(64);
        std::fs::write(&path, format!("# by hand\n\n[2001:db8::1]:3389 {pin}\n")).unwrap();
        let pins = FilePins::open(&path).unwrap();
        let known = pins
            .pin(&target("[2001:db8::1]:3389"), CREDENTIALS)
            .unwrap();
        assert_eq!(known, Some(pin.parse().unwrap()));
        for bad in [
            "host 77",
            "host:3389",
            &format!("host {pin}"),
            &pin,
            &format!("unproven {pin}"),
            &format!("unprovenhost:3389 unproven {pin}"),
        ] {
            std::fs::write(&path, format!("# by hand\n{bad}\n")).unwrap();
            let error = FilePins::open(&path).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }
}
