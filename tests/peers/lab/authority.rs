//! A certificate authority for one test, and the certificate of a gateway.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use jetway_lab::certificate;

use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// An authority that has certified a gateway with these names and addresses.
    pub(crate) fn certify(workspace: &Workspace, names: &[&str]) -> Result<Self> {
        let folder = workspace.folder("authority")?;
        let authority = certificate::Authority::generate();
        fs::write(folder.join(CERTIFICATE), authority.pem())?;
        authority.certify(names, &[]).write(&folder, FILES);
        Ok(Self { folder })
    }

    /// What whoever trusts it has.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Certificate and key of the gateway.
    pub(crate) fn of_gateway(&self) -> (PathBuf, PathBuf) {
        let [certificate, key] = FILES.map(|name| self.folder.join(name));
        (certificate, key)
    }
}

/// Certificate and key of the gateway.
const FILES: [&str; 2] = ["gateway.pem", "gateway.key"];
const CERTIFICATE: &str = "authority.pem";
