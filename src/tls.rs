//! TLS on the client leg: certificates from PEM files, read again when they change.
//!
//! The only call site of `rustls-pemfile`.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::{TlsConfig, TlsVersion};
use crate::file_stamp::FileStamp;

/// A certificate or key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsFileError {
    path: String,
    problem: String,
}

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
    ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| failed(&config.certificate, error.to_string()))
}

fn read_identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
    let chain = read_certificates(certificate)?;
    let pem = read(key)?;
    let key_der = rustls_pemfile::private_key(&mut pem.as_slice())
        .map_err(|error| failed(key, error.to_string()))?
        .ok_or_else(|| failed(key, "holds no private key in PEM form".to_owned()))?;
    Ok((chain, key_der))
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// The file cannot be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = read(path)?;
    let chain = rustls_pemfile::certs(&mut pem.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(path, error.to_string()))?;
    if chain.is_empty() {
        return Err(failed(path, "holds no certificate in PEM form".to_owned()));
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsFileError> {
    std::fs::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| failed(path, format!("cannot be read: {error}")))
}

fn failed(path: &Path, problem: String) -> TlsFileError {
    TlsFileError {
        path: path.display().to_string(),
        problem,
    }
}
