//! FreeRDP as a user starts it, its window on a display of its own.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use jetway_lab::wait::PATIENCE;

use super::display::{Display, SIZE};
use super::namespace::Namespace;
use super::process::Process;
use super::target::Place;
use super::window::Window;
use super::workspace::Workspace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Two,
    Three,
}

impl Version {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Two => "xfreerdp",
            Self::Three => "xfreerdp3",
        }
    }
}

#[derive(Debug)]
pub(crate) struct FreeRdp {
    window: Window,
    cliprdr: String,
}

impl FreeRdp {
    /// A client that goes straight to the target, with nothing between.
    pub(crate) fn direct(workspace: &Workspace, version: Version, place: &Place) -> Result<Self> {
        Self::start(
            workspace,
            "direct",
            version,
            &[format!("/v:{}", place.address())],
            place,
        )
    }

    /// A client called `role` with `arguments` that say where to, and the user's name and password.
    pub(crate) fn start(
        workspace: &Workspace,
        role: &str,
        version: Version,
        arguments: &[String],
        place: &Place,
    ) -> Result<Self> {
        Self::start_in(workspace, role, version, arguments, place, &[])
    }

    /// A client that is told neither user nor password, and has nobody to ask.
    pub(crate) fn start_alone(
        workspace: &Workspace,
        role: &str,
        version: Version,
        arguments: &[String],
    ) -> Result<Self> {
        let display = Display::start(workspace, role)?;
        let command = display.command(version.program());
        Self::start_as(workspace, role, display, command, arguments, None)
    }

    /// The same with more in its environment.
    pub(crate) fn start_in(
        workspace: &Workspace,
        role: &str,
        version: Version,
        arguments: &[String],
        place: &Place,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let display = Display::start(workspace, role)?;
        let mut command = display.command(version.program());
        command.envs(environment.iter().copied());
        Self::start_as(workspace, role, display, command, arguments, Some(place))
    }

    /// The same in a namespace.
    pub(crate) fn start_within(
        namespace: &Namespace,
        workspace: &Workspace,
        role: &str,
        version: Version,
        arguments: &[String],
        place: &Place,
    ) -> Result<Self> {
        let display = Display::start(workspace, role)?;
        let mut command = namespace.command(version.program());
        // A display is a file, whatever the network.
        command.env("DISPLAY", display.name());
        Self::start_as(workspace, role, display, command, arguments, Some(place))
    }

    fn start_as(
        workspace: &Workspace,
        role: &str,
        display: Display,
        mut command: Command,
        arguments: &[String],
        place: Option<&Place>,
    ) -> Result<Self> {
        // A .rdp file must come first.
        command.args(arguments);
        if let Some(place) = place {
            command.args([
                format!("/u:{}", place.user),
                format!("/p:{}", place.password),
            ]);
        }
        command
            .args([
                "/cert:ignore",
                "/log-level:INFO",
                &format!("/size:{}x{}", SIZE.0, SIZE.1),
            ])
            .env("HOME", workspace.folder(&format!("home-{role}"))?)
            .env("LC_ALL", "C.UTF-8");
        let client = Process::start(workspace, role, &mut command)?;
        // Where FreeRDP 3 mounts the files of the clipboard, and forgets them when it is killed.
        let cliprdr = format!("/tmp/com.freerdp.client.cliprdr.{}", client.pid());
        Ok(Self {
            window: Window::new(client, display, "freerdp"),
            cliprdr,
        })
    }

    /// Where the files on the clipboard of the target appear.
    pub(crate) fn clipboard_folder(&self) -> &Path {
        Path::new(&self.cliprdr)
    }

    /// The exit code of a client that ends by itself.
    pub(crate) fn exit_code(&mut self) -> Result<i32> {
        exit_code(
            self.window
                .process_mut()
                .wait(PATIENCE + FREERDP_CONNECT_TIMEOUT)?,
        )
    }

    /// The negotiation failures that the client reported, by their name in [MS-RDPBCGR] 2.2.1.2.2.
    pub(crate) fn negotiation_failures(&self) -> Result<Vec<String>> {
        let output = self.output()?;
        Ok(output
            .lines()
            .filter_map(|line| FAILURES.iter().find(|(shown, _)| line.contains(shown)))
            .map(|(_, name)| (*name).to_owned())
            .collect())
    }

    /// Ends the session from the client's side.
    pub(crate) fn end(&mut self) {
        self.window.process_mut().end();
        self.clean_up();
    }

    fn clean_up(&self) {
        if std::fs::exists(&self.cliprdr).unwrap_or_default() {
            let _ = super::process::tool(Command::new("umount").args(["--lazy", &self.cliprdr]));
            let _ = std::fs::remove_dir(&self.cliprdr);
        }
    }
}

impl Deref for FreeRdp {
    type Target = Window;

    fn deref(&self) -> &Window {
        &self.window
    }
}

impl DerefMut for FreeRdp {
    fn deref_mut(&mut self) -> &mut Window {
        &mut self.window
    }
}

impl Drop for FreeRdp {
    fn drop(&mut self) {
        self.end();
    }
}

fn exit_code(status: ExitStatus) -> Result<i32> {
    status
        .code()
        .with_context(|| format!("the client died: {status}"))
}

/// Exit codes of xfreerdp (client/X11/xf_client.h).
pub(crate) mod exit {
    /// XF_EXIT_LOGON_FAILURE: the server says in CredSSP that the logon failed.
    pub(crate) const LOGON_FAILURE: i32 = 134;
    /// XF_EXIT_NEGO_FAILURE: the server answered the Connection Request with an RDP Negotiation Failure.
    pub(crate) const NEGOTIATION_FAILURE: i32 = 133;
    /// XF_EXIT_CONN_FAILED: the server closed the connection without a word.
    pub(crate) const CONNECTION_FAILURE: i32 = 147;
}

/// [MS-RDPBCGR] 2.2.1.2.2 RDP Negotiation Failure: how FreeRDP shows a failureCode, and its name.
const FAILURES: &[(&str, &str)] = &[
    ("SSL_REQUIRED_BY_SERVER", "SSL_REQUIRED_BY_SERVER"),
    ("SSL_NOT_ALLOWED_BY_SERVER", "SSL_NOT_ALLOWED_BY_SERVER"),
    ("SSL_CERT_NOT_ON_SERVER", "SSL_CERT_NOT_ON_SERVER"),
    ("INCONSISTENT_FLAGS", "INCONSISTENT_FLAGS"),
    ("HYBRID_REQUIRED_BY_SERVER", "HYBRID_REQUIRED_BY_SERVER"),
    // Neither FreeRDP 2 nor 3 has a name for it.
    (
        "Unknown protocol security error 6",
        "SSL_WITH_USER_AUTH_REQUIRED_BY_SERVER",
    ),
];

/// How long FreeRDP itself waits for an answer.
const FREERDP_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
