//! Certificates and private keys in PEM files.
//!
//! The only call site of `rustls-pemfile`.

use std::path::Path;

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate or key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsFileError {
    path: String,
    problem: String,
}

impl TlsFileError {
    /// The file at fault, as it was named.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
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

/// The certificates of one PEM file, and the private key of another.
///
/// # Errors
/// A file cannot be read, or does not hold what it should.
pub fn read_identity(
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

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsFileError> {
    std::fs::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| failed(path, format!("cannot be read: {error}")))
}

/// What is wrong with a file.
#[must_use]
pub fn failed(path: &Path, problem: String) -> TlsFileError {
    TlsFileError {
        path: path.display().to_string(),
        problem,
    }
}
