//! A network namespace that has one way out: a wire to the machine. Nothing routes into it.
//!
//! Needs root.

use std::process::Command;

use anyhow::{Result, ensure};

use super::process::tool;

#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    outside: String,
    inside: String,
}

impl Namespace {
    /// The namespace of targets, with its own loopback and a wire between [`outside`](Self::outside) and
    /// [`inside`](Self::inside).
    pub(crate) fn of_targets() -> Result<Self> {
        Self::create("t", 213)
    }

    /// The same for users.
    pub(crate) fn of_users() -> Result<Self> {
        Self::create("u", 214)
    }

    fn create(kind: &str, network: u8) -> Result<Self> {
        let number = std::process::id();
        let name = format!("jetway-{kind}{number}");
        let (outer, inner) = (format!("jwo{kind}{number}"), format!("jwi{kind}{number}"));
        // A network of four addresses for each process.
        let (high, low) = ((number >> 6) & 0xFF, (number << 2) & 0xFC);
        let namespace = Self {
            outside: format!("10.{network}.{high}.{}", low + 1),
            inside: format!("10.{network}.{high}.{}", low + 2),
            name,
        };
        ip(&["netns", "add", &namespace.name])?;
        let wire = [
            "link", "add", &outer, "type", "veth", "peer", "name", &inner,
        ];
        ip(&[&wire[..], &["netns", &namespace.name]].concat())?;
        let address = format!("{}/30", namespace.outside);
        ip(&["address", "add", &address, "dev", &outer])?;
        ip(&["link", "set", &outer, "up"])?;
        let address = format!("{}/30", namespace.inside);
        let within = ["-n", namespace.name.as_str()];
        for arguments in [
            &["address", "add", &address, "dev", &inner][..],
            &["link", "set", &inner, "up"],
            &["link", "set", "lo", "up"],
        ] {
            ip(&[&within[..], arguments].concat())?;
        }
        Ok(namespace)
    }

    /// The machine's end of the wire.
    pub(crate) fn outside(&self) -> &str {
        &self.outside
    }

    /// The namespace's end.
    pub(crate) fn inside(&self) -> &str {
        &self.inside
    }

    /// A command that runs in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Namespace {
    /// Whether a connection from within to `address` can be made; where not, there must be no way that leads there.
    pub(crate) fn reaches(&self, address: &str, port: u16) -> Result<bool> {
        let mut command = self.command("timeout");
        let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
        let output = command.args(["20", "bash", "-c", &connect]).output()?;
        if output.status.success() {
            return Ok(true);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            said.contains("Network is unreachable"),
            "{address}:{port}: {said}"
        );
        Ok(false)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The wire goes with it.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    tool(Command::new("ip").args(arguments)).map(drop)
}
