//! xrdp with its session manager and Xorg: the target that creates a session for a user of the machine.
//!
//! Needs root. One at a time: xrdp finds its session manager on port 3350 only, whatever its configuration says.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jetway_lab::certificate::Identity;
use jetway_lab::net::is_listening;
use jetway_lab::process::signal_pid;
use jetway_lab::wait::{PATIENCE, soon, until};
use rustix::process::Signal;
use uuid::Uuid;

use super::clipboard::{self, Copied};
use super::desktop::{TERMINAL, colour_name, shell_script};
use super::port::Port;
use super::process::{Process, tool};
use super::target::{Place, Target};
use super::window::Window;
use super::workspace::Workspace;

/// Fields are dropped in order: the servers first, then the user with its session, the lock last.
#[derive(Debug)]
pub(crate) struct Xrdp {
    _server: Process,
    _session_manager: Process,
    user: User,
    _port: Port,
    place: Place,
    _alone: File,
}

impl Xrdp {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "xrdp logs users on: it needs root"
        );
        let alone = File::create(std::env::temp_dir().join("jetway-peers-xrdp.lock"))?;
        alone.lock()?;
        ensure!(
            !is_listening(SESSION_MANAGER_PORT)?,
            "another xrdp session manager listens on port {SESSION_MANAGER_PORT}"
        );
        let user = User::create()?;
        let port = Port::free()?;
        let place = Place {
            port: port.number(),
            user: USER.to_owned(),
            password: user.password.clone(),
            background: [0x60, 0x20, 0x40],
            writable: user.home.clone(),
        };
        user.write_desktop(&colour_name(place.background))?;

        fs::create_dir_all("/run/xrdp/sockdir")?;
        // As the package sets it: the display server and the channel server of the user make sockets here.
        fs::set_permissions("/run/xrdp/sockdir", fs::Permissions::from_mode(0o1777))?;
        let mut manager = Process::start(
            workspace,
            "xrdp-sesman",
            Command::new("xrdp-sesman")
                .arg("-n")
                .arg("-c")
                .arg(manager_config(workspace)?),
        )?;
        until("the session manager of xrdp listens", PATIENCE, || {
            manager.expect_alive()?;
            Ok(is_listening(SESSION_MANAGER_PORT)?.then_some(()))
        })?;
        let mut server = Process::start(
            workspace,
            "xrdp",
            Command::new("xrdp")
                .arg("-n")
                .arg("-c")
                .arg(server_config(workspace, place.port)?),
        )?;
        port.wait_for_listener(|| server.expect_alive())?;
        Ok(Self {
            _server: server,
            _session_manager: manager,
            user,
            _port: port,
            place,
            _alone: alone,
        })
    }
}

impl Xrdp {
    /// A command that runs in the session of the user; the user must be logged on.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let mut session = until("the user's session", PATIENCE, || Ok(self.user.session()))?;
        session.retain(|variable| {
            ["DISPLAY=", "XAUTHORITY=", "HOME="]
                .iter()
                .any(|name| variable.starts_with(name))
        });
        let mut command = Command::new("timeout");
        command
            // What hangs on a channel must not hang the test.
            .args(["60", "setpriv"])
            .args([
                &format!("--reuid={}", self.user.id),
                &format!("--regid={}", self.user.group),
                "--init-groups",
                "env",
                "-i",
                "LC_ALL=C.UTF-8",
            ])
            .args(session)
            .arg(program);
        Ok(command)
    }
}

impl Xrdp {
    /// Runs a shell script as the user, in the user's session, and returns what it printed.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        let printed = tool(self.command("sh")?.args(["-c", script]))?;
        Ok(String::from_utf8(printed)?)
    }

    /// What is copied in the session called `role` can be pasted in `client`, and the other way round.
    pub(crate) fn shares_its_clipboard(
        &self,
        workspace: &Workspace,
        role: &str,
        client: &Window,
    ) -> Result<()> {
        let to_target = format!("to the target of {role}: é 漢");
        let copied = Copied::text(workspace, role, client.command("xclip"), &to_target)?;
        clipboard::wait_for_text(&to_target, || self.command("xclip"))?;
        drop(copied);
        let to_client = format!("to the client of {role}: ß 字");
        let _copied = Copied::text(workspace, role, self.command("xclip")?, &to_client)?;
        clipboard::wait_for_text(&to_client, || Ok(client.command("xclip")))
    }

    /// Waits until width and height of the desktop are what `accept` takes.
    pub(crate) fn wait_for_size(&self, accept: impl Fn(u16, u16) -> bool) -> Result<()> {
        until("another size of the desktop", PATIENCE, || {
            let facts = self.shell("xdpyinfo")?;
            let size = facts
                .lines()
                .find_map(|line| line.trim().strip_prefix("dimensions:"))
                .and_then(|line| line.split_whitespace().next())
                .context(facts.clone())?;
            let (width, height) = size.split_once('x').context("two numbers")?;
            Ok(accept(width.parse()?, height.parse()?).then_some(()))
        })
    }

    /// The user's home.
    pub(crate) fn home(&self) -> &Path {
        &self.user.home
    }

    /// The number of the session's display, as its channel server calls it.
    pub(crate) fn display_number(&self) -> Result<String> {
        let display = self.shell("echo $DISPLAY")?;
        let number = display.trim().trim_start_matches(':');
        let number = number.split('.').next().unwrap_or_default();
        ensure!(!number.is_empty(), "DISPLAY={display}");
        Ok(number.to_owned())
    }
}

/// SHA-256 of the certificate that xrdp has in this workspace, as hexadecimal digits.
pub(crate) fn certificate(workspace: &Workspace) -> Result<String> {
    let pem = fs::read(workspace.path("xrdp.pem"))?;
    let der = openssl::x509::X509::from_pem(&pem)?.to_der()?;
    Ok(hex::encode(openssl::sha::sha256(&der)))
}

impl Target for Xrdp {
    fn place(&self) -> &Place {
        &self.place
    }
}

fn server_config(workspace: &Workspace, port: u16) -> Result<PathBuf> {
    let identity = Identity::self_signed(&["localhost"]);
    let [certificate, key] = identity.write(&workspace.path(""), ["xrdp.pem", "xrdp.key"]);
    edited(
        workspace,
        "xrdp.ini",
        &[
            // A whole line: a comment of the file has the same text, and a miss would open port 3389 to the world.
            ("port=3389", format!("port=tcp://127.0.0.1:{port}")),
            (
                "certificate=",
                format!("certificate={}", certificate.display()),
            ),
            ("key_file=", format!("key_file={}", key.display())),
            (
                "LogFile=xrdp.log",
                format!("LogFile={}", workspace.path("xrdp-file.log").display()),
            ),
            ("EnableSyslog=true", "EnableSyslog=false".to_owned()),
        ],
    )
}

fn manager_config(workspace: &Workspace) -> Result<PathBuf> {
    let log = workspace.path("xrdp-sesman-file.log");
    edited(
        workspace,
        "sesman.ini",
        &[
            (
                "LogFile=xrdp-sesman.log",
                format!("LogFile={}", log.display()),
            ),
            ("EnableSyslog=true", "EnableSyslog=false".to_owned()),
            // Away from the displays that Xvfb takes.
            ("X11DisplayOffset=10", "X11DisplayOffset=460".to_owned()),
        ],
    )
}

/// The packaged configuration with whole lines replaced; every line to be replaced must be there.
fn edited(workspace: &Workspace, name: &str, edits: &[(&str, String)]) -> Result<PathBuf> {
    let packaged = format!("/etc/xrdp/{name}");
    let text = fs::read_to_string(&packaged)
        .with_context(|| format!("read {packaged} (tests/install.sh peers installs it)"))?;
    for (line, _) in edits {
        ensure!(
            text.lines().any(|found| found == *line),
            "{packaged} has no line {line:?}"
        );
    }
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            edits
                .iter()
                .find(|(old, _)| *old == line)
                .map_or(line, |(_, new)| new)
        })
        .collect();
    workspace.write(name, lines.join("\n") + "\n")
}

/// A user of the machine that exists for one test; every process it has is the test's.
#[derive(Debug)]
struct User {
    id: u32,
    group: u32,
    home: PathBuf,
    password: String,
}

impl User {
    fn create() -> Result<Self> {
        // A test that was killed leaves its user behind.
        if let Some(left_over) = Self::find()? {
            drop(left_over);
        }
        tool(Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", USER]))?;
        let mut user = Self::find()?.context("useradd made no user")?;
        user.password = format!("Pw-{}", Uuid::new_v4().simple());
        let mut chpasswd = Command::new("chpasswd").stdin(Stdio::piped()).spawn()?;
        let line = format!("{USER}:{}\n", user.password);
        std::io::Write::write_all(
            &mut chpasswd.stdin.take().context("stdin")?,
            line.as_bytes(),
        )?;
        ensure!(chpasswd.wait()?.success(), "chpasswd failed");
        Ok(user)
    }

    fn find() -> Result<Option<Self>> {
        let passwd = fs::read_to_string("/etc/passwd")?;
        let Some(line) = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{USER}:")))
        else {
            return Ok(None);
        };
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, group, _, home, _] = fields[..] else {
            bail!("/etc/passwd: {line}")
        };
        let (id, group) = (id.parse()?, group.parse()?);
        ensure!(id != 0, "user {USER} is root");
        Ok(Some(Self {
            id,
            group,
            home: PathBuf::from(home),
            password: String::new(),
        }))
    }

    /// What sesman starts as the user's window manager.
    fn write_desktop(&self, background: &str) -> Result<()> {
        let (shell, start) = (self.home.join("shell.sh"), self.home.join("startwm.sh"));
        let ready = self.home.join("shell-ready");
        let mut terminal = String::new();
        for word in TERMINAL {
            terminal.push_str(&format!("'{word}' "));
        }
        fs::write(&shell, shell_script(&Uuid::new_v4().to_string(), &ready))?;
        fs::write(
            &start,
            format!(
                "#!/bin/sh\nxsetroot -solid '{background}'\nexec {terminal}{}\n",
                shell.display()
            ),
        )?;
        for script in [&shell, &start] {
            fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
            chown(script, Some(self.id), Some(self.group))?;
        }
        Ok(())
    }

    fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.metadata().is_ok_and(|facts| facts.uid() == self.id))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        pids
    }

    /// The environment of the terminal on the user's desktop.
    fn session(&self) -> Option<Vec<String>> {
        let terminal = self.processes().into_iter().find(|pid| is_terminal(*pid))?;
        let environment = fs::read(format!("/proc/{terminal}/environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        Some(
            environment
                .split_terminator('\0')
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Ends the session the way a user does, through its window manager; whatever then remains is killed.
    fn end_session(&self) {
        for pid in self.processes() {
            if is_terminal(pid) {
                signal_pid(pid, Signal::TERM);
            }
        }
        if !soon(Duration::from_secs(3), || self.processes().is_empty()) {
            soon(Duration::from_secs(3), || {
                self.processes()
                    .into_iter()
                    .for_each(|pid| signal_pid(pid, Signal::KILL));
                self.processes().is_empty()
            });
        }
    }
}

impl Drop for User {
    #[expect(clippy::print_stderr, reason = "the test runner shows it")]
    fn drop(&mut self) {
        self.end_session();
        unmount_under(&self.home);
        if let Err(error) = tool(Command::new("userdel").args(["--force", "--remove", USER])) {
            // userdel complains of a missing mail spool after it has done its work.
            if matches!(Self::find(), Ok(Some(_)) | Err(_)) {
                eprintln!("the user {USER} could not be removed: {error:#}");
            }
        }
    }
}

fn is_terminal(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "xterm\n")
}

/// The channel server mounts the client's drives in the user's home by FUSE.
fn unmount_under(folder: &Path) {
    for line in fs::read_to_string("/proc/mounts")
        .unwrap_or_default()
        .lines()
    {
        if let Some(mounted) = line
            .split(' ')
            .nth(1)
            .filter(|path| Path::new(path).starts_with(folder))
        {
            let _ = tool(Command::new("umount").args(["--lazy", mounted]));
        }
    }
}

const USER: &str = "jetway-peer";
const SESSION_MANAGER_PORT: u16 = 3350;
