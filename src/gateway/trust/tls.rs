//! TLS on the client leg: certificates from PEM files, read again when they change.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::{TlsConfig, TlsVersion};
use jetway_base::time::UnixTime;
use jetway_io::file_stamp::FileStamp;
use jetway_io::pem::{TlsFileError, failed, read_identity};

/// The TLS settings of one or more listeners, current with their files.
#[derive(Debug)]
pub struct ServerTls {
    config: TlsConfig,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    stamps: Stamps,
    identity: Identity,
}

/// A certificate in force.
#[derive(Debug)]
struct Identity {
    server: Arc<ServerConfig>,
    not_after: Option<UnixTime>,
}

type Stamps = (Option<FileStamp>, Option<FileStamp>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub fn load(config: TlsConfig) -> Result<Self, TlsFileError> {
        let stamps = stamps(&config);
        let identity = Identity::read(&config)?;
        Ok(Self {
            config,
            state: RwLock::new(State { stamps, identity }),
        })
    }

    /// The settings for the next handshake.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.identity.server)
    }

    /// Until when the certificate is good.
    #[must_use]
    pub fn not_after(&self) -> Option<UnixTime> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.identity.not_after
    }

    /// Reads the files again if they changed; says whether there is a new certificate.
    ///
    /// # Errors
    /// The new files cannot be used: the old certificate stays.
    pub fn reload_if_changed(&self) -> Result<bool, TlsFileError> {
        let stamps = stamps(&self.config);
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.stamps == stamps {
                return Ok(false);
            }
            // Recorded first: bad files are reported once, not at every look.
            state.stamps = stamps;
        }
        let identity = Identity::read(&self.config)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.identity = identity;
        Ok(true)
    }

    /// The key file is at fault, and not the certificate.
    #[must_use]
    pub fn is_fault_of_key(config: &TlsConfig, error: &TlsFileError) -> bool {
        error.path() == config.key.display().to_string()
    }

    /// The certificate file, for messages.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.config.certificate
    }
}

fn stamps(config: &TlsConfig) -> Stamps {
    (
        FileStamp::of(&config.certificate),
        FileStamp::of(&config.key),
    )
}

impl Identity {
    fn read(config: &TlsConfig) -> Result<Self, TlsFileError> {
        let (certificates, key) = read_identity(&config.certificate, &config.key)?;
        let not_after = certificates.first().and_then(not_after);
        let server = Arc::new(server_config(config, certificates, key)?);
        Ok(Self { server, not_after })
    }
}

/// `notAfter` ([RFC 5280] 4.1.2.5); `None` of what cannot be read, or lies before the epoch.
///
/// [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280#section-4.1.2.5
fn not_after(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let certificate = X509::from_der(certificate).ok()?;
    let epoch = Asn1Time::from_unix(0).ok()?;
    let since = epoch.diff(certificate.not_after()).ok()?;
    let seconds = i64::from(since.days) * DAY_S + i64::from(since.secs);
    u64::try_from(seconds).ok().map(UnixTime)
}

/// In seconds.
const DAY_S: i64 = 24 * 60 * 60;

fn server_config(
    config: &TlsConfig,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsFileError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match config.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS12, &rustls::version::TLS13],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    if certificates.first().is_some_and(is_version_1) {
        return Err(failed(&config.certificate, VERSION_1.to_owned()));
    }
    ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| failed(&config.certificate, error.to_string()))
}

/// What TLS libraries of today, and clients, do not take. `openssl x509 -req` without extensions makes it.
fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    // The field counts from zero.
    X509::from_der(certificate).is_ok_and(|certificate| certificate.version() < 2)
}

const VERSION_1: &str = "the gateway's own certificate is of X.509 version 1 or 2, which TLS clients do not take; have one of version 3 issued, \
     with the gateway's name in it (openssl req -x509 -addext subjectAltName=DNS:gw.example, or -extfile with openssl x509 -req)";

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::X509Builder;

    use super::*;

    #[test]
    fn an_own_certificate_of_version_1_is_refused_with_what_to_do() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = TlsConfig {
            certificate: folder.path().join("gateway.pem"),
            key: folder.path().join("gateway.key.pem"),
            min_version: TlsVersion::default(),
        };
        let pem = key.private_key_to_pem_pkcs8().unwrap();
        std::fs::write(&files.key, pem).unwrap();
        let load = |version: i32| {
            let mut builder = X509Builder::new().unwrap();
            builder.set_version(version).unwrap();
            builder.set_pubkey(&key).unwrap();
            let (start, end) = (Asn1Time::days_from_now(0), Asn1Time::days_from_now(1));
            builder.set_not_before(&start.unwrap()).unwrap();
            builder.set_not_after(&end.unwrap()).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
            let pem = builder.build().to_pem().unwrap();
            std::fs::write(&files.certificate, pem).unwrap();
            ServerTls::load(files.clone())
        };
        let error = load(0).unwrap_err().to_string();
        for words in [
            "gateway.pem",
            "gateway's own certificate",
            "version 1",
            "-addext",
        ] {
            assert!(error.contains(words), "{error}");
        }
        assert!(load(2).is_ok());
    }
}
