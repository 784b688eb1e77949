//! TLS on the client leg: certificates from PEM files, read again when they change.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use openssl::x509::X509;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::{TlsConfig, TlsVersion};
use jetway_io::file_stamp::FileStamp;
use jetway_io::pem::{TlsFileError, failed, read_identity};

/// The TLS settings of one or more listeners, current with their files.
#[derive(Debug)]
pub struct ServerTls {
    config: TlsConfig,
    state: RwLock<(Stamps, Arc<ServerConfig>)>,
}

type Stamps = (Option<FileStamp>, Option<FileStamp>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub fn load(config: TlsConfig) -> Result<Self, TlsFileError> {
        let stamps = stamps(&config);
        let server = Arc::new(server_config(&config)?);
        Ok(Self {
            config,
            state: RwLock::new((stamps, server)),
        })
    }

    /// The settings for the next handshake.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.1)
    }

    /// Reads the files again if they changed; says whether there is a new certificate.
    ///
    /// # Errors
    /// The new files cannot be used: the old certificate stays.
    pub fn reload_if_changed(&self) -> Result<bool, TlsFileError> {
        let stamps = stamps(&self.config);
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.0 == stamps {
                return Ok(false);
            }
            // Recorded first: bad files are reported once, not at every look.
            state.0 = stamps;
        }
        let server = Arc::new(server_config(&self.config)?);
        self.state.write().unwrap_or_else(PoisonError::into_inner).1 = server;
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

fn server_config(config: &TlsConfig) -> Result<ServerConfig, TlsFileError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match config.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS12, &rustls::version::TLS13],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let (certificates, key) = read_identity(&config.certificate, &config.key)?;
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
