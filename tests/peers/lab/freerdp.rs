//! FreeRDP as a user starts it, its window on a display of its own.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::desktop::{BACKGROUND_SHARE, TERMINAL_SHARE};
use super::display::{Display, SIZE};
use super::keyboard;
use super::process::Process;
use super::screenshot::Picture;
use super::target::Place;
use super::wait::{PATIENCE, until};
use super::workspace::Workspace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Two,
    Three,
}

impl Version {
    fn program(self) -> &'static str {
        match self {
            Self::Two => "xfreerdp",
            Self::Three => "xfreerdp3",
        }
    }
}

/// Fields are dropped in order: the client first, its display last.
#[derive(Debug)]
pub(crate) struct FreeRdp {
    client: Process,
    display: Display,
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
        let display = Display::start(workspace, role)?;
        let mut command = display.command(version.program());
        command
            // A .rdp file must come first.
            .args(arguments)
            .args([
                format!("/u:{}", place.user),
                format!("/p:{}", place.password),
            ])
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
            client,
            display,
            cliprdr,
        })
    }

    /// Waits until the desktop of `place` is on the client's screen and stands still.
    pub(crate) fn wait_for_desktop(&mut self, place: &Place) -> Result<Picture> {
        let mut last = None;
        let mut still = 0;
        until(
            "the target's desktop on the client's screen",
            PATIENCE,
            || {
                self.client.expect_alive()?;
                let picture = Picture::of(&self.display)?;
                let shows_desktop = picture.share_of(place.background) >= BACKGROUND_SHARE
                    && picture.share_of(PAPER) >= TERMINAL_SHARE;
                still = if shows_desktop && last.as_ref() == Some(&picture) {
                    still + 1
                } else {
                    0
                };
                last = Some(picture);
                Ok((still >= STILL_PICTURES).then(|| last.take()).flatten())
            },
        )
    }

    /// Waits until the client's screen shows what `expected` shows.
    pub(crate) fn wait_for_picture(
        &mut self,
        workspace: &Workspace,
        expected: &Picture,
    ) -> Result<()> {
        let mut seen = None;
        until("the same picture as in a direct session", PATIENCE, || {
            self.client.expect_alive()?;
            let picture = Picture::of(&self.display)?;
            let same = picture.difference(expected) <= TOLERATED_PIXELS;
            seen = Some(picture);
            Ok(same.then_some(()))
        })
        .or_else(|error| {
            let seen = seen.context("no picture was taken")?;
            expected.save(&workspace.path("expected.ppm"))?;
            seen.save(&workspace.path("seen.ppm"))?;
            bail!(
                "{error:#}; {} pixels differ (expected.ppm, seen.ppm)",
                seen.difference(expected)
            )
        })
    }

    /// Types into the desktop's terminal until what was typed has had its effect there.
    pub(crate) fn type_until_it_arrives(&mut self, place: &Place) -> Result<()> {
        keyboard::create_file_by_typing(&self.display, &place.writable)
    }

    /// The exit code of a client that ends by itself.
    pub(crate) fn exit_code(&mut self) -> Result<i32> {
        exit_code(self.client.wait(PATIENCE + FREERDP_CONNECT_TIMEOUT)?)
    }

    pub(crate) fn expect_alive(&mut self) -> Result<()> {
        self.client.expect_alive()
    }

    /// What the client printed.
    pub(crate) fn output(&self) -> Result<String> {
        self.client.output()
    }

    /// A command whose windows go to the client's display.
    pub(crate) fn command(&self, program: &str) -> std::process::Command {
        self.display.command(program)
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
        self.client.end();
        self.clean_up();
    }

    fn clean_up(&self) {
        if std::fs::exists(&self.cliprdr).unwrap_or_default() {
            let _ = super::process::tool(
                std::process::Command::new("umount").args(["--lazy", &self.cliprdr]),
            );
            let _ = std::fs::remove_dir(&self.cliprdr);
        }
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

/// A picture must be the same this many times in a row, 20 ms and a screenshot apart, to stand still.
const STILL_PICTURES: usize = 5;
/// Less than one letter of the terminal; every session seen so far was equal to the last bit.
pub(crate) const TOLERATED_PIXELS: usize = 10;
const PAPER: super::screenshot::Colour = [0xff, 0xff, 0xff];
/// How long FreeRDP itself waits for an answer.
const FREERDP_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
