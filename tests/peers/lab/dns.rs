//! A name server: dnsmasq on loopback, which knows what the test tells it and asks nobody.

use std::process::Command;

use anyhow::Result;

use super::port::Port;
use super::process::Process;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Dns {
    process: Process,
    port: Port,
}

impl Dns {
    /// `records` are options of dnsmasq.
    pub(crate) fn start(workspace: &Workspace, records: &[String]) -> Result<Self> {
        let port = Port::free()?;
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
            ])
            .args(["--no-resolv", "--no-hosts", "--no-poll", "--user=root"])
            // It knows all of this domain, and what it knows is good for a while.
            .args(["--local=/example/", "--local-ttl=600"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces"])
            .args(["--log-queries", "--log-facility=-", "--log-async=0"])
            .arg(format!("--port={}", port.number()))
            .args(records);
        let mut process = Process::start(workspace, "dnsmasq", &mut command)?;
        port.wait_for_listener(|| process.expect_alive())?;
        Ok(Self { process, port })
    }

    /// Where it can be asked.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// The names that it was asked for, in order.
    pub(crate) fn asked(&self) -> Result<Vec<String>> {
        let output = self.process.output()?;
        let names = output.lines().filter_map(|line| {
            let (_, query) = line.split_once(" query[")?;
            query.split_whitespace().nth(1).map(str::to_owned)
        });
        Ok(names.collect())
    }
}
