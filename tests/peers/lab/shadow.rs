//! freerdp-shadow-cli: shares an X display, with Network Level Authentication against a SAM file or with TLS alone.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::Result;
use jetway_lab::wait::{PATIENCE, until};
use uuid::Uuid;

use super::desktop::{TERMINAL, colour_name, shell_script};
use super::display::Display;
use super::kdc::{Clock, Kdc};
use super::port::Port;
use super::process::{Process, tool};
use super::target::{Place, Target};
use super::workspace::Workspace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Nla,
    Tls,
}

/// Which freerdp-shadow-cli.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Two,
    Three,
    /// Under another clock than the machine's.
    ThreeAnHourAhead,
}

impl Program {
    fn command(self, display: &Display) -> Command {
        match self {
            Self::Two => display.command("freerdp-shadow-cli"),
            Self::Three => display.command("freerdp-shadow-cli3"),
            Self::ThreeAnHourAhead => {
                let mut command = display.command("faketime");
                command.args(["-f", "+1h", "freerdp-shadow-cli3"]);
                command
            }
        }
    }
}

/// Fields are dropped in order: the server first, its display last.
#[derive(Debug)]
pub(crate) struct Shadow {
    server: Process,
    _terminal: Process,
    display: Display,
    port: Port,
    place: Place,
    program: Program,
    options: Vec<String>,
}

impl Shadow {
    pub(crate) fn start(workspace: &Workspace, security: Security) -> Result<Self> {
        Self::start_program(workspace, Program::Two, security)
    }

    pub(crate) fn start_program(
        workspace: &Workspace,
        program: Program,
        security: Security,
    ) -> Result<Self> {
        Self::start_with(workspace, program, |display, place| {
            Ok(match security {
                Security::Nla => {
                    let mut hash = display.command("winpr-hash");
                    hash.args(["-u", &place.user, "-p", &place.password, "-f", "sam"]);
                    let sam = workspace.write("SAM", tool(&mut hash)?)?;
                    vec![
                        format!("/sam-file:{}", sam.display()),
                        "/sec:nla".to_owned(),
                    ]
                }
                Security::Tls => vec!["-auth".to_owned(), "/sec:tls".to_owned()],
            })
        })
    }

    /// freerdp-shadow-cli 3 that knows no password, only the key of `TERMSRV/localhost`: whoever logs on has a ticket.
    ///
    /// Its user is one of the realm, its clock that of `clock`.
    pub(crate) fn start_with_tickets(
        workspace: &Workspace,
        kdc: &Kdc,
        clock: Clock,
    ) -> Result<Self> {
        let keytab = kdc.add_service("TERMSRV/localhost")?;
        let program = match clock {
            Clock::Right => Program::Three,
            Clock::AnHourAhead => Program::ThreeAnHourAhead,
        };
        Self::start_with(workspace, program, |_, place| {
            kdc.add_user(&place.user, &place.password)?;
            Ok(vec![
                format!("/keytab:{}", keytab.display()),
                "/sec:nla".to_owned(),
            ])
        })
    }

    fn start_with(
        workspace: &Workspace,
        program: Program,
        security: impl FnOnce(&Display, &Place) -> Result<Vec<String>>,
    ) -> Result<Self> {
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

        let mut options = vec![
            format!("/port:{}", place.port),
            "/bind-address:127.0.0.1".to_owned(),
        ];
        options.extend(security(&display, &place)?);
        let server = serve(workspace, "shadow", program, &display, &port, &options)?;
        Ok(Self {
            server,
            _terminal: terminal,
            display,
            port,
            place,
            program,
            options,
        })
    }

    /// The same desktop at the same address under another certificate.
    pub(crate) fn change_certificate(&mut self, workspace: &Workspace) -> Result<()> {
        self.server.end();
        self.server = serve(
            workspace,
            "shadow-changed",
            self.program,
            &self.display,
            &self.port,
            &self.options,
        )?;
        Ok(())
    }

    /// SHA-256 of the certificate that it started with, as hexadecimal digits.
    pub(crate) fn thumbprint(&self, workspace: &Workspace) -> Result<String> {
        let certificate = workspace
            .path("home-shadow")
            .join(".config/freerdp/shadow/shadow.crt");
        let der = tool(
            Command::new("openssl")
                .args(["x509", "-outform", "DER", "-in"])
                .arg(certificate),
        )?;
        Ok(hex::encode(openssl::sha::sha256(&der)))
    }

    /// What the target printed.
    pub(crate) fn output(&self) -> Result<String> {
        self.server.output()
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

    fn has_nla(&self) -> bool {
        self.options.iter().any(|option| option == "/sec:nla")
    }
}

/// Starts the server, which makes its own certificate under its HOME.
fn serve(
    workspace: &Workspace,
    role: &str,
    program: Program,
    display: &Display,
    port: &Port,
    options: &[String],
) -> Result<Process> {
    let mut command = program.command(display);
    command
        .env("HOME", workspace.folder(&format!("home-{role}"))?)
        .args(options);
    let mut server = Process::start(workspace, role, &mut command)?;
    port.wait_for_listener(|| server.expect_alive())?;
    Ok(server)
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
