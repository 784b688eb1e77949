//! TLS with the certificates of tests, by rustls and by OpenSSL.

use std::sync::Arc;

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslAcceptorBuilder, SslMethod};
use openssl::x509::X509;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::certificate::Identity;
use crate::net::tcp_pair;

/// SHA-256 of the certificate, in hexadecimal: what `cert_thumb256` pins.
pub fn thumbprint(identity: &Identity) -> String {
    hex::encode(openssl::sha::sha256(identity.certificate()))
}

/// The certificate by the type that rustls has for it.
pub fn certificate_der(identity: &Identity) -> CertificateDer<'static> {
    CertificateDer::from(identity.certificate().to_vec())
}

/// Settings of a server that shows this certificate.
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let key = PrivatePkcs8KeyDer::from(identity.key());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate_der(identity)], key.into())
        .unwrap();
    Arc::new(config)
}

/// Settings of a client that trusts this certificate alone.
pub fn client_config(trusted: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// An OpenSSL server that shows this certificate, TLS 1.2 and later.
pub fn acceptor(identity: &Identity) -> SslAcceptor {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    set_identity(&mut acceptor, identity);
    acceptor.build()
}

/// Has an OpenSSL server show this certificate.
pub fn set_identity(acceptor: &mut SslAcceptorBuilder, identity: &Identity) {
    let certificate = X509::from_der(identity.certificate()).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    let key = PKey::private_key_from_der(&identity.key()).unwrap();
    acceptor.set_private_key(&key).unwrap();
}

/// Both ends of a TLS connection on loopback.
pub async fn tls_pair() -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
    let identity = Identity::self_signed(&["gateway.test"]);
    let connector = TlsConnector::from(client_config(certificate_der(&identity)));
    let acceptor = TlsAcceptor::from(server_config(&identity));
    let (near, far) = tcp_pair().await;
    let name = ServerName::try_from("gateway.test").unwrap();
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    (near.unwrap(), far.unwrap())
}
