//! A certificate authority for one test, and the certificate of a gateway.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// An authority that has certified a gateway with these names and addresses.
    pub(crate) fn certify(workspace: &Workspace, names: &[&str]) -> Result<Self> {
        let folder = workspace.folder("authority")?;
        let mut own = CertificateParams::new(Vec::new())?;
        own.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        own.distinguished_name
            .push(DnType::CommonName, "Authority of the lab");
        let key = KeyPair::generate()?;
        fs::write(folder.join(CERTIFICATE), own.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(own, key);

        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let authority = Self { folder };
        let (of_gateway, its_key) = authority.of_gateway();
        fs::write(of_gateway, certificate.pem())?;
        fs::write(its_key, key.serialize_pem())?;
        Ok(authority)
    }

    /// What whoever trusts it has.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Certificate and key of the gateway.
    pub(crate) fn of_gateway(&self) -> (PathBuf, PathBuf) {
        let file = |name: &str| Path::join(&self.folder, name);
        (file("gateway.pem"), file("gateway.key"))
    }
}

const CERTIFICATE: &str = "authority.pem";
