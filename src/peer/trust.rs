//! Whom `--ca` trusts: servers with a certificate of one of the authorities in the file, and the server whose own certificate is in it.
//!
//! A plain `openssl req -x509` makes a certificate that is an authority and names its server in the subject alone; webpki takes
//! neither from a server ([RFC 5280] 4.2.1.9, [RFC 9525] 6.3). Where the file holds the very certificate that is shown, no name is
//! needed to know the server by: whoever has its key could make a certificate for any name that the file trusts.
//!
//! [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.9
//! [RFC 9525]: https://www.rfc-editor.org/rfc/rfc9525#section-6.3

use std::sync::Arc;

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::x509::X509;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// The certificates of one file.
#[derive(Debug)]
pub struct TrustedFile {
    certificates: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
}

impl TrustedFile {
    /// `roots` are the same certificates, as authorities.
    ///
    /// # Errors
    /// There are none.
    pub fn new(
        roots: RootCertStore,
        certificates: Vec<CertificateDer<'static>>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            certificates,
            authorities: WebPkiServerVerifier::builder(Arc::new(roots)).build()?,
        })
    }
}

impl ServerCertVerifier for TrustedFile {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.contains(end_entity) {
            return self.authorities.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        match in_time(end_entity, now) {
            Ok(Ok(())) => Ok(ServerCertVerified::assertion()),
            Ok(Err(problem)) => Err(problem.into()),
            Err(_unreadable) => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether a certificate is valid now.
fn in_time(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<Result<(), CertificateError>, ErrorStack> {
    let certificate = X509::from_der(certificate)?;
    let now = Asn1Time::from_unix(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))?;
    let now: &Asn1TimeRef = &now;
    Ok(if certificate.not_before() > now {
        Err(CertificateError::NotValidYet)
    } else if certificate.not_after() < now {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    })
}
