//! Ports of loopback that no other test has, and who listens on them.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;

use anyhow::{Context, Result, bail};
use jetway_lab::net::is_listening;
use jetway_lab::wait::{PATIENCE, until};

/// A port kept for this test while the value lives.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _kept: File,
}

impl Port {
    pub(crate) fn free() -> Result<Self> {
        let folder = std::env::temp_dir().join("jetway-peers-ports");
        fs::create_dir_all(&folder)?;
        for number in PORTS {
            let lock = OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.join(number.to_string()))
                .with_context(|| format!("open the lock of port {number}"))?;
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Self {
                    number,
                    _kept: lock,
                });
            }
        }
        bail!("no free port in {PORTS:?}")
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Waits for a listener without connecting: a probing connection would be a session in its logs.
    pub(crate) fn wait_for_listener(&self, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        until(
            &format!("a listener on port {}", self.number),
            PATIENCE,
            || {
                alive()?;
                Ok(is_listening(self.number)?.then_some(()))
            },
        )
    }
}

/// Below the ports that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 21_000..23_000;
