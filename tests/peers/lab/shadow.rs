//! freerdp-shadow-cli: shares an X display, with Network Level Authentication against a SAM file or with TLS alone.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use uuid::Uuid;

use super::desktop::{TERMINAL, colour_name, shell_script};
use super::display::Display;
use super::port::Port;
use super::process::{Process, tool};
use super::target::{Place, Target};
use super::wait::{PATIENCE, until};
use super::workspace::Workspace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Nla,
    Tls,
}

/// Fields are dropped in order: the server first, its display last.
#[derive(Debug)]
pub(crate) struct Shadow {
    server: Process,
    _terminal: Process,
    _display: Display,
    _port: Port,
    place: Place,
}

impl Shadow {
    pub(crate) fn start(workspace: &Workspace, security: Security) -> Result<Self> {
        let display = Display::start(workspace, "target")?;
        let port = Port::free()?;
        let place = Place {
            port: port.number(),
            user: "alice".to_owned(),
            password: format!("Pw-{}", Uuid::new_v4().simple()),
            background: [0x20, 0x40, 0x60],
            writable: workspace.folder("typed")?,
        };
        display.fill(&colour_name(place.background))?;
        let mut terminal = start_terminal(workspace, &display)?;
        let ready = workspace.path("shell-ready");
        until("the shell of the desktop is ready", PATIENCE, || {
            terminal.expect_alive()?;
            Ok(ready.exists().then_some(()))
        })?;

        let mut command = display.command("freerdp-shadow-cli");
        // It makes its own certificate under HOME.
        command.env("HOME", workspace.folder("home-shadow")?);
        command.args([
            format!("/port:{}", place.port),
            "/bind-address:127.0.0.1".to_owned(),
        ]);
        match security {
            Security::Nla => {
                let mut hash = display.command("winpr-hash");
                hash.args(["-u", &place.user, "-p", &place.password, "-f", "sam"]);
                let sam = workspace.write("SAM", tool(&mut hash)?)?;
                command.args([
                    format!("/sam-file:{}", sam.display()),
                    "/sec:nla".to_owned(),
                ]);
            }
            Security::Tls => {
                command.args(["-auth", "/sec:tls"]);
            }
        }
        let mut server = Process::start(workspace, "shadow", &mut command)?;
        port.wait_for_listener(|| server.expect_alive())?;
        Ok(Self {
            server,
            _terminal: terminal,
            _display: display,
            _port: port,
            place,
        })
    }

    /// The target dies without a word.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }
}

impl Target for Shadow {
    fn place(&self) -> &Place {
        &self.place
    }
}

fn start_terminal(workspace: &Workspace, display: &Display) -> Result<Process> {
    let phrase = Uuid::new_v4().to_string();
    let script = workspace.write(
        "shell.sh",
        shell_script(&phrase, &workspace.path("shell-ready")),
    )?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let mut command = display.command(TERMINAL[0]);
    command.args(&TERMINAL[1..]).arg(script);
    Process::start(workspace, "terminal", &mut command)
}
