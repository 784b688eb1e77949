//! A systemd unit, started on a [`Machine`] as systemd would start it: by its own directives, and with no systemd.
//!
//! What [`LEFT`] lists is left out; a directive that is in no list is an error.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::machine::Machine;
use super::process::{Process, tool};
use super::workspace::Workspace;

/// The `[Service]` section of a unit.
#[derive(Debug)]
pub(crate) struct Unit {
    name: String,
    service: Vec<(String, String)>,
}

/// A directive that there is, and may be, once.
const ONCE: [&str; 12] = [
    "ExecStart",
    "ExecReload",
    "DynamicUser",
    "StateDirectory",
    "StateDirectoryMode",
    "ConfigurationDirectory",
    "UMask",
    "LimitNOFILE",
    "LimitCORE",
    "NoNewPrivileges",
    "AmbientCapabilities",
    "CapabilityBoundingSet",
];

/// The same, for how the file system looks.
const FILES: [&str; 3] = ["ProtectSystem", "ProtectHome", "PrivateTmp"];

/// A directive that may be there several times.
const REPEATED: [&str; 2] = ["LoadCredential", "Environment"];

/// What only systemd and the kernel's filters do.
const LEFT: [&str; 19] = [
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "PrivateDevices",
    "PrivateUsers",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "Restart",
    "RestartPreventExitStatus",
    "RestartSec",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
];

/// One of those that systemd picks for `DynamicUser`.
pub(crate) const USER: u32 = 61_184;

impl Unit {
    /// Reads a unit.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let text = text.replace("\\\n", " ");
        let mut section = "";
        let mut service = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            } else if section == "[Service]" && !line.is_empty() && !line.starts_with('#') {
                let (key, value) = line.split_once('=').context("a line without =")?;
                service.push((key.to_owned(), value.to_owned()));
            }
        }
        let unit = Self {
            name: name.to_owned(),
            service,
        };
        for (key, _) in &unit.service {
            let key = key.as_str();
            let once = ONCE.contains(&key) || FILES.contains(&key);
            let repeated = REPEATED.contains(&key);
            let left = LEFT.contains(&key) || key == "SystemCallFilter";
            ensure!(once || repeated || left, "{key} is a new directive");
            ensure!(!once || unit.all(key).count() == 1, "{key} twice");
        }
        Ok(unit)
    }

    fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        let found = self.service.iter().filter(move |(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    fn one(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    fn is(&self, key: &str, value: &str) -> Result<()> {
        let found = self.one(key);
        ensure!(found == Some(value), "{key} is {found:?}, not {value}");
        Ok(())
    }

    fn credentials(&self) -> String {
        format!("/run/credentials/{}", self.name)
    }

    /// What systemd sets for the process.
    fn environment(&self) -> Vec<(String, String)> {
        let mut set = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())];
        if self.all("LoadCredential").next().is_some() {
            set.push(("CREDENTIALS_DIRECTORY".to_owned(), self.credentials()));
        }
        if let Some(folder) = self.one("StateDirectory") {
            set.push(("STATE_DIRECTORY".to_owned(), format!("/var/lib/{folder}")));
        }
        if let Some(folder) = self.one("ConfigurationDirectory") {
            set.push((
                "CONFIGURATION_DIRECTORY".to_owned(),
                format!("/etc/{folder}"),
            ));
        }
        for assignment in self.all("Environment") {
            if let Some((name, value)) = assignment.split_once('=') {
                set.push((name.to_owned(), value.replace("%S", "/var/lib")));
            }
        }
        set
    }

    /// The words of a command, with variables put in.
    fn words(&self, command: &str, further: &[(String, String)]) -> Vec<String> {
        let environment = self.environment();
        let with = |word: &str| {
            let all = environment.iter().chain(further);
            all.fold(word.to_owned(), |word, (name, value)| {
                let word = word.replace(&format!("${{{name}}}"), value);
                if word == format!("${name}") {
                    value.clone()
                } else {
                    word
                }
            })
        };
        command.split_whitespace().map(with).collect()
    }

    /// Starts it. The process is that of `ExecStart`.
    pub(crate) fn start(&self, workspace: &Workspace, machine: &Machine) -> Result<Process> {
        let command = self.one("ExecStart").context("no ExecStart")?;
        self.run(workspace, machine, &self.name, &self.words(command, &[]))
    }

    /// Runs another command where the unit's own would run.
    pub(crate) fn run(
        &self,
        workspace: &Workspace,
        machine: &Machine,
        name: &str,
        command: &[String],
    ) -> Result<Process> {
        let script = self.script(command)?;
        let script = workspace.write(&format!("{name}.sh"), script)?;
        Process::start(
            workspace,
            name,
            machine
                .command(Path::new("/"), "unshare")
                .args(["--mount", "--propagation", "private", "bash"])
                .arg(script),
        )
    }

    /// Has a process that was started told as `systemctl reload` tells it.
    pub(crate) fn reload(&self, machine: &Machine, process: &Process) -> Result<()> {
        let command = self.one("ExecReload").context("no ExecReload")?;
        let main = ("MAINPID".to_owned(), process.pid().to_string());
        let words = self.words(command, &[main]);
        let (program, arguments) = words.split_first().context("an empty ExecReload")?;
        tool(machine.command(Path::new("/"), program).args(arguments)).map(drop)
    }

    fn script(&self, command: &[String]) -> Result<String> {
        self.is("DynamicUser", "yes")?;
        for (key, value) in [
            ("ProtectSystem", "strict"),
            ("ProtectHome", "yes"),
            ("PrivateTmp", "yes"),
        ] {
            self.is(key, value)?;
        }
        self.is("NoNewPrivileges", "yes")?;
        let mut script = format!("set -eu\nuser={USER}\n");
        let mut writable = "/tmp|/var/tmp".to_owned();
        if let Some(folder) = self.one("StateDirectory") {
            let mode = self.one("StateDirectoryMode").unwrap_or("0755");
            let private = format!("/var/lib/private/{folder}");
            // What was there already is its user's, as systemd sees to it.
            writeln!(
                script,
                "mkdir -p {private}; chown -R $user:$user {private}; chmod {mode} {private}\n\
                 ln -sfn private/{folder} /var/lib/{folder}; mount --bind {private} {private}"
            )?;
            write!(writable, "|{private}")?;
        }
        if let Some(folder) = self.one("ConfigurationDirectory") {
            writeln!(script, "mkdir -p /etc/{folder}")?;
        }
        let credentials = self.credentials();
        for credential in self.all("LoadCredential") {
            let (id, path) = credential.split_once(':').context("LoadCredential")?;
            writeln!(
                script,
                "mkdir -p {credentials}; cp {path} {credentials}/{id}\n\
                 chmod 0400 {credentials}/{id}; chown $user:$user {credentials}/{id}"
            )?;
        }
        writeln!(
            script,
            "if [ -d {credentials} ]; then chown $user:$user {credentials}; chmod 0500 {credentials}; fi\n\
             mount -t tmpfs -o mode=1777 private /tmp; mount -t tmpfs -o mode=1777 private /var/tmp\n\
             for home in /home /root; do mount -t tmpfs -o mode=000 private $home; done\n\
             cut -d' ' -f5 /proc/self/mountinfo | while read -r point; do\n\
             case $point in /proc*|/sys*|/dev*|{writable}) continue ;; esac\n\
             if [ -e \"$point\" ]; then mount -o remount,bind,ro \"$point\"; fi\n\
             done"
        )?;
        writeln!(script, "umask {}", self.one("UMask").unwrap_or("0022"))?;
        // systemd may raise what the machine of a test may not.
        let files = self.one("LimitNOFILE").unwrap_or("1024");
        writeln!(
            script,
            "files={files}; most=$(ulimit -Hn)\n\
             if [ $most != unlimited ] && [ $most -lt $files ]; then files=$most; fi"
        )?;
        write!(script, "exec env -i")?;
        for (name, value) in self.environment() {
            write!(script, " {name}={value}")?;
        }
        let core = self.one("LimitCORE").unwrap_or("unlimited");
        write!(script, " prlimit --nofile=$files --core={core}")?;
        let bounding = capabilities(self.one("CapabilityBoundingSet"))?;
        let ambient = capabilities(self.one("AmbientCapabilities"))?;
        write!(
            script,
            " setpriv --reuid $user --regid $user --clear-groups --no-new-privs --bounding-set={bounding} \
             --inh-caps={ambient} --ambient-caps={ambient} --"
        )?;
        for word in command {
            ensure!(!word.contains('\''), "{word}");
            write!(script, " '{word}'")?;
        }
        script.push('\n');
        Ok(script)
    }
}

/// A set of capabilities as setpriv takes it.
fn capabilities(set: Option<&str>) -> Result<String> {
    let mut all = "-all".to_owned();
    for name in set.unwrap_or_default().split_whitespace() {
        let Some(name) = name.strip_prefix("CAP_") else {
            bail!("{name} is no capability");
        };
        write!(all, ",+{}", name.to_ascii_lowercase())?;
    }
    Ok(all)
}

/// What `systemd-analyze verify` says of a unit, where there is one.
pub(crate) fn verify(machine: &Machine, unit: &Path) -> Result<()> {
    let there = Command::new("systemd-analyze").arg("--version").output();
    if there.is_err() {
        return Ok(());
    }
    let said = machine
        .command(Path::new("/"), "systemd-analyze")
        .arg("verify")
        .arg(unit)
        .output()?;
    let told = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && told.trim().is_empty(), "{told}");
    Ok(())
}
