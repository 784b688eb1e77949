//! The README as its reader runs it: every command of its fences, line by line, on a machine of its own, with the hosts and ports that
//! are printed. What is done differently is in the tables below, and nowhere else.
//!
//! Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::authority::Authority;
use crate::lab::gateway::BINARY;
use crate::lab::machine::Machine;
use crate::lab::process::{Process, tool};
use crate::lab::workspace::{self, Workspace};
use crate::units::{HOSTS, echo, repository, session, session_at, session_by_ticket, wait_for};

/// Commands for which another one is run, and why.
const INSTEAD: [(&str, &str, &str); 1] = [(
    "cargo build --release",
    "test -x target/release/jetway",
    "the test runs what cargo has built for it",
)];

/// Commands that stay, and the line of their log that says that they are there.
const STAY: [(&str, &str); 3] = [
    ("jetway serve ", "Listening"),
    ("jetway agent run ", "Connected"),
    ("jetway connect ", "listening on"),
];

/// What fences are not run here, by their first line, and who runs it.
const NOT_RUN: [(&str, &str); 5] = [
    ("samples/demo.sh", "tests/demo runs what it ends in"),
    ("tests/all.sh", "it runs this"),
    (
        "POST /jet/association/",
        "requests, not commands: tests/it/rendezvous.rs",
    ),
    (
        "[monitoring]",
        "lines of the configuration: tests/it/monitoring.rs",
    ),
    ("new WebSocket(", "lines of a page: tests/peers/pages.rs"),
];

/// What the reader's editor does to the sample of the configuration: pattern and replacement of sed.
const EDITS: [(&str, &str, &str); 5] = [
    (
        r#"address = "0.0.0.0:3389""#,
        r#"address = "127.0.0.1:3389""#,
        "other addresses of this machine are its desktops",
    ),
    (
        "allow = []",
        r#"allow = [{ cidr = "127.0.0.0/8" }]"#,
        "and loopback is no target by itself",
    ),
    ("# [tls]", "[tls]", "agents come over TLS"),
    (
        "# certificate = \"gateway.pem\".*",
        "certificate = \"gateway.pem\"\\nkey = \"gateway.key.pem\"",
        "",
    ),
    (
        "^keys = []",
        "keys = [{ name = \"operator\", sha256 = \"DIGEST\" }]",
        "an operator, whose $KEY is KEY",
    ),
];

const KEY: &str = "Of-An-Operator-1";

#[test]
fn the_commands_of_the_readme_run_as_printed() -> Result<()> {
    workspace::run(|workspace| {
        let machine = Machine::start(workspace, &HOSTS)?;
        let folder = workspace.folder("clone")?;
        let reader = Reader::prepare(workspace, &machine, &folder)?;
        let desktop = machine.listen("127.0.0.42:3389")?;
        thread::spawn(move || echo(&desktop));
        let _ssh = ssh_server(workspace, &machine)?;

        let mut staying = Vec::new();
        let mut run = 0;
        for fence in fences(&fs::read_to_string(repository("README.md"))?) {
            let first = fence.first().context("an empty fence")?;
            if NOT_RUN.iter().any(|(start, _)| first.starts_with(start)) {
                continue;
            }
            for line in &fence {
                run += 1;
                let stays = STAY.iter().find(|(start, _)| line.starts_with(start));
                match stays {
                    Some((_, message)) => {
                        let mut process = reader.start(workspace, staying.len(), line)?;
                        wait_for(&mut process, message)?;
                        staying.push(process);
                    }
                    None => reader.run(line)?,
                }
            }
        }
        ensure!(run >= 18, "only {run} commands were found");
        for process in &mut staying {
            process.expect_alive()?;
        }

        // What was made is good: the two files for users and the local port lead to the desktop, and nobody else can read what
        // they hold.
        for secret in [
            "alice.jwt",
            "alice.rdp",
            "bob.jwt",
            "pc42.jwt",
            "desktop.jwt",
        ] {
            let mode = fs::metadata(folder.join(secret))?.permissions().mode();
            ensure!(mode & 0o777 == 0o600, "{secret}: {mode:o}");
        }
        session(
            &machine,
            fs::read_to_string(folder.join("alice.jwt"))?.trim(),
        )?;
        let last = utf16(&fs::read(folder.join("alice.rdp"))?)?;
        session_by_ticket(&machine, value(&last, "loadbalanceinfo:s:")?)?;
        session_at(&machine, "127.0.0.1:3390")
    })
}

/// Somebody who has a clone of the repository and what the README names.
struct Reader<'a> {
    machine: &'a Machine,
    folder: &'a Path,
}

impl<'a> Reader<'a> {
    fn prepare(workspace: &Workspace, machine: &'a Machine, folder: &'a Path) -> Result<Self> {
        let built = folder.join("target/release");
        fs::create_dir_all(&built)?;
        std::os::unix::fs::symlink(BINARY, built.join("jetway"))?;
        std::os::unix::fs::symlink(repository("samples"), folder.join("samples"))?;
        // The company's authority is one of the machine's.
        let authority = Authority::certify(workspace, &["gw.example"])?;
        let authorities = machine.etc("ssl/certs/ca-certificates.crt");
        fs::create_dir_all(authorities.parent().context("a folder")?)?;
        fs::write(authorities, fs::read(authority.certificate())?)?;
        let (certificate, key) = authority.of_gateway();
        fs::copy(certificate, folder.join("gateway.pem"))?;
        let own = folder.join("gateway.key.pem");
        fs::copy(key, &own)?;
        fs::set_permissions(own, fs::Permissions::from_mode(0o600))?;
        let mut editor = "#!/bin/bash\nset -eu\n".to_owned();
        let digest = hex::encode(openssl::sha::sha256(KEY.as_bytes()));
        for (pattern, replacement, _) in EDITS {
            let replacement = replacement.replace("DIGEST", &digest);
            let pattern = pattern.replace('[', "\\[").replace(']', "\\]");
            editor.push_str(&format!(
                "grep -q '{pattern}' \"$1\"; sed -i 's~{pattern}~{replacement}~' \"$1\"\n"
            ));
        }
        let editor = workspace.write("editor.sh", editor)?;
        fs::set_permissions(&editor, fs::Permissions::from_mode(0o755))?;
        Ok(Self { machine, folder })
    }

    fn command(&self, line: &str) -> std::process::Command {
        let instead = INSTEAD
            .iter()
            .find(|(printed, ..)| line.starts_with(printed));
        let line = instead.map_or(line, |(_, instead, _)| instead);
        let built = self.folder.join("target/release");
        let editor = self.folder.with_file_name("editor.sh");
        let mut command = self.machine.command(self.folder, "bash");
        command
            .args([
                "-c",
                &format!(
                    "set -eu -o pipefail; PATH={}:$PATH\n{line}",
                    built.display()
                ),
            ])
            .env("EDITOR", editor)
            .env("KEY", KEY);
        command
    }

    fn run(&self, line: &str) -> Result<()> {
        let mut command = self.command(line);
        if line.starts_with("ssh ") {
            return types(
                &mut command,
                "echo this is $(whoami) on $SSH_CONNECTION; exit 7\n",
            );
        }
        tool(&mut command)
            .map(drop)
            .with_context(|| line.to_owned())
    }

    fn start(&self, workspace: &Workspace, number: usize, line: &str) -> Result<Process> {
        let line = format!("exec {line}");
        Process::start(
            workspace,
            &format!("staying-{number}"),
            &mut self.command(&line),
        )
    }
}

/// OpenSSH's server on the desktop, and what its client is told of it.
fn ssh_server(workspace: &Workspace, machine: &Machine) -> Result<Process> {
    let folder = workspace.folder("sshd")?;
    for name in ["host", "user"] {
        let key = folder.join(name);
        let mut keygen = std::process::Command::new("ssh-keygen");
        tool(
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(key),
        )?;
    }
    fs::copy(folder.join("user.pub"), folder.join("authorized"))?;
    let config = format!(
        "Port 22\nListenAddress 127.0.0.42\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n",
        folder.join("host").display(),
        folder.join("authorized").display(),
    );
    let config = workspace.write("sshd/config", config)?;
    let client = format!(
        "Host pc42\n IdentityFile {}\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n BatchMode yes\n",
        folder.join("user").display()
    );
    fs::write(machine.etc("ssh/ssh_config"), client)?;
    // Where it lets go of its rights.
    tool(machine.command(Path::new("/"), "mkdir").arg("/run/sshd"))?;
    let mut server = Process::start(
        workspace,
        "sshd-server",
        machine
            .command(Path::new("/"), "/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(config),
    )?;
    wait_for(&mut server, "Server listening")?;
    Ok(server)
}

/// What a user types into a shell of the other side, and what that says.
fn types(command: &mut std::process::Command, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("a pipe")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let said = child.wait_with_output()?;
    let output = String::from_utf8_lossy(&said.stdout);
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(
        said.status.code() == Some(7) && output.contains("this is root on 127.0.0.1"),
        "{}: {output}{errors}",
        said.status
    );
    Ok(())
}

/// The commands of each fence: lines with those that continue them.
fn fences(text: &str) -> Vec<Vec<String>> {
    let mut fences = Vec::new();
    let mut parts = text.split("\n```\n");
    // Outside and inside by turns.
    while parts.next().is_some() {
        let Some(inside) = parts.next() else { break };
        let joined = inside.replace("\\\n", "\\\n\0");
        let commands = joined
            .split('\n')
            .fold(Vec::<String>::new(), |mut all, line| {
                match (line.strip_prefix('\0'), all.last_mut()) {
                    (Some(rest), Some(last)) => last.push_str(&format!("\n{rest}")),
                    _ => all.push(line.to_owned()),
                }
                all
            });
        fences.push(commands);
    }
    fences
}

fn utf16(bytes: &[u8]) -> Result<String> {
    let Some(units) = bytes.strip_prefix(&[0xff, 0xfe]) else {
        bail!("no UTF-16");
    };
    let units = units
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    Ok(char::decode_utf16(units).collect::<Result<String, _>>()?)
}

/// The value of a setting of a `.rdp` file.
fn value<'a>(file: &'a str, setting: &str) -> Result<&'a str> {
    let mut lines = file.lines();
    let found = lines.find_map(|line| line.strip_prefix(setting));
    found.with_context(|| format!("{setting} in {file}"))
}
