//! A network namespace that has one way out: a wire to the machine. Nothing routes into it.
//!
//! Needs root.

use std::process::Command;

use anyhow::Result;

use super::process::tool;

#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    outside: String,
    inside: String,
}

impl Namespace {
    /// A namespace with its own loopback, and a wire between [`outside`](Self::outside) and [`inside`](Self::inside).
    pub(crate) fn create() -> Result<Self> {
        let number = std::process::id();
        let name = format!("jetway-{number}");
        let (outer, inner) = (format!("jwo{number}"), format!("jwi{number}"));
        // A network of four addresses for each process.
        let (high, low) = ((number >> 6) & 0xFF, (number << 2) & 0xFC);
        let namespace = Self {
            outside: format!("10.213.{high}.{}", low + 1),
            inside: format!("10.213.{high}.{}", low + 2),
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

impl Drop for Namespace {
    fn drop(&mut self) {
        // The wire goes with it.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    tool(Command::new("ip").args(arguments)).map(drop)
}
