//! Certificates made for one test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

impl Identity {
    /// A certificate for these names and addresses that is its own authority.
    pub fn self_signed(names: &[&str]) -> Self {
        Self::self_signed_with(KeyPair::generate().unwrap(), names)
    }

    /// The same with a key of the test's choice.
    pub fn self_signed_with(key: KeyPair, names: &[&str]) -> Self {
        let certificate = params(names).self_signed(&key).unwrap();
        Self { certificate, key }
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        self.certificate.der()
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// The key, PKCS #8 in DER.
    pub fn key(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// The key, PKCS #8 in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Writes certificate and key into `folder`, as PEM files of these names; returns their paths.
    pub fn write(&self, folder: &Path, [certificate, key]: [&str; 2]) -> [PathBuf; 2] {
        let paths = [folder.join(certificate), folder.join(key)];
        fs::write(&paths[0], self.pem()).unwrap();
        fs::write(&paths[1], self.key_pem()).unwrap();
        paths
    }
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    root: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// An authority with a new key.
    pub fn generate() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "Authority of the lab");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self { root, issuer }
    }

    /// The root certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        self.root.der()
    }

    /// The root certificate, PEM.
    pub fn pem(&self) -> String {
        self.root.pem()
    }

    /// A certificate for these names, usable for `purposes`, or for every purpose if there are none.
    pub fn certify(&self, names: &[&str], purposes: &[ExtendedKeyUsagePurpose]) -> Identity {
        let mut params = params(names);
        params.extended_key_usages = purposes.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate, key }
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}
