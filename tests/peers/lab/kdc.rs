//! A Kerberos realm of its own: MIT's krb5kdc on loopback, with a database that the test fills.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::port::Port;
use super::process::{Process, tool};
use super::workspace::Workspace;

/// The realm of every KDC of the lab.
pub(crate) const REALM: &str = "CORP.EXAMPLE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    TcpAndUdp,
    Udp,
}

/// What time a program believes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Right,
    AnHourAhead,
}

#[derive(Debug)]
pub(crate) struct Kdc {
    _process: Process,
    port: Port,
    folder: PathBuf,
}

impl Kdc {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        Self::start_as(workspace, Transport::TcpAndUdp, Clock::Right)
    }

    /// A KDC that can be asked by `transport` only, at the time of `clock`.
    pub(crate) fn start_as(
        workspace: &Workspace,
        transport: Transport,
        clock: Clock,
    ) -> Result<Self> {
        let folder = workspace.folder("kdc")?;
        let port = Port::free()?;
        let address = format!("127.0.0.1:{}", port.number());
        workspace.write("kdc/krb5.conf", client_configuration(&address))?;
        workspace.write("kdc/kdc.conf", configuration(&address, transport, &folder))?;
        let command = |program: &str| in_realm(&folder, program);
        let mut create = command("kdb5_util");
        create.args(["create", "-s", "-r", REALM, "-P", "of the lab"]);
        tool(&mut create)?;
        // What faketime(1) does for a child of its own, which would outlive it here.
        let mut command = command("krb5kdc");
        if clock == Clock::AnHourAhead {
            let mut asked = Command::new("faketime");
            let library = tool(asked.args(["-f", "+1h", "printenv", "LD_PRELOAD"]))?;
            let library = String::from_utf8(library)?;
            command.env("LD_PRELOAD", library.trim());
            command.env("FAKETIME", "+1h");
        }
        command.args(["-n", "-P"]).arg(folder.join("pid"));
        let mut process = Process::start(workspace, "kdc", &mut command)?;
        jetway_lab::wait::until("the KDC serves", jetway_lab::wait::PATIENCE, || {
            process.expect_alive()?;
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            Ok(log.contains("commencing operation").then_some(()))
        })?;
        Ok(Self {
            _process: process,
            port,
            folder,
        })
    }

    /// Where it can be asked.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// What programs linked with MIT's library are told in KRB5_CONFIG.
    pub(crate) fn krb5_conf(&self) -> PathBuf {
        self.folder.join("krb5.conf")
    }

    /// A file with the first ticket of a user who logs on to the realm.
    pub(crate) fn log_on(&self, user: &str, password: &str) -> Result<PathBuf> {
        let cache = self
            .folder
            .join(format!("{}.ccache", user.replace('/', "-")));
        let typed = self.folder.join("typed");
        std::fs::write(&typed, format!("{password}\n"))?;
        let mut kinit = in_realm(&self.folder, "kinit");
        kinit.arg("-c").arg(&cache).arg(user);
        let output = kinit.stdin(std::fs::File::open(&typed)?).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kinit: {said}");
        Ok(cache)
    }

    /// Runs `query` of kadmin.
    pub(crate) fn admin(&self, query: &str) -> Result<()> {
        tool(in_realm(&self.folder, "kadmin.local").args(["-q", query])).map(drop)
    }

    /// A user who has to show the password before a ticket is given.
    pub(crate) fn add_user(&self, name: &str, password: &str) -> Result<()> {
        self.admin(&format!("addprinc +requires_preauth -pw {password} {name}"))
    }

    /// A service with a random key, and the file that holds it.
    pub(crate) fn add_service(&self, name: &str) -> Result<PathBuf> {
        let keytab = self
            .folder
            .join(format!("{}.keytab", name.replace('/', "-")));
        self.admin(&format!("addprinc -randkey {name}"))?;
        self.admin(&format!("ktadd -k {} {name}", keytab.display()))?;
        Ok(keytab)
    }

    /// The lines of its log that tell of questions of this kind.
    pub(crate) fn log(&self, kind: &str) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(self.folder.join("log"))?;
        let lines = log.lines().filter(|line| line.contains(kind));
        Ok(lines.map(str::to_owned).collect())
    }
}

/// A command in the realm whose files are in `folder`.
fn in_realm(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("KRB5_CONFIG", folder.join("krb5.conf"))
        .env("KRB5_KDC_PROFILE", folder.join("kdc.conf"));
    command
}

fn client_configuration(address: &str) -> String {
    format!(
        "[libdefaults]
 default_realm = {REALM}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 {REALM} = {{
  kdc = {address}
 }}
[domain_realm]
 localhost = {REALM}
"
    )
}

fn configuration(address: &str, transport: Transport, folder: &Path) -> String {
    let tcp = match transport {
        Transport::TcpAndUdp => address,
        Transport::Udp => "\"\"",
    };
    let folder = folder.display();
    format!(
        "[kdcdefaults]
 kdc_listen = {address}
 kdc_tcp_listen = {tcp}
[realms]
 {REALM} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/acl
 }}
[logging]
 kdc = FILE:{folder}/log
 default = FILE:{folder}/default.log
"
    )
}
