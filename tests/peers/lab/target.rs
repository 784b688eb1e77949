//! What a test has to know of a target, whichever program it is.

use std::path::PathBuf;

use anyhow::Result;

use super::screenshot::Colour;
use super::shadow::{Security, Shadow};
use super::workspace::Workspace;
use super::xrdp::Xrdp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    ShadowNla,
    ShadowTls,
    Xrdp,
}

/// Where a desktop is, who may log on, what it looks like and where a shell there may write.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) background: Colour,
    pub(crate) writable: PathBuf,
}

impl Place {
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

pub(crate) trait Target {
    fn place(&self) -> &Place;

    /// Whether it proves itself by CredSSP; TLS alone is what the others have.
    fn has_nla(&self) -> bool {
        false
    }
}

pub(crate) fn start(workspace: &Workspace, kind: TargetKind) -> Result<Box<dyn Target>> {
    Ok(match kind {
        TargetKind::ShadowNla => Box::new(Shadow::start(workspace, Security::Nla)?),
        TargetKind::ShadowTls => Box::new(Shadow::start(workspace, Security::Tls)?),
        TargetKind::Xrdp => Box::new(Xrdp::start(workspace)?),
    })
}
