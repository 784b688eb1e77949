//! An X display without a screen (Xvfb), on whatever number is free.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::process::{Process, tool};
use super::wait::{PATIENCE, until};
use super::workspace::Workspace;

/// Width and height of every desktop and every client in the lab.
pub(crate) const SIZE: (u32, u32) = (1024, 768);

#[derive(Debug)]
pub(crate) struct Display {
    name: String,
    _server: Process,
}

impl Display {
    pub(crate) fn start(workspace: &Workspace, role: &str) -> Result<Self> {
        let (width, height) = SIZE;
        let number = format!("xvfb-{role}.display");
        let mut server = Process::start_as_is(
            workspace,
            &format!("xvfb-{role}"),
            Command::new("Xvfb")
                // Xvfb looks for a free number itself and writes it when it accepts clients.
                .args([
                    "-displayfd",
                    "1",
                    "-screen",
                    "0",
                    &format!("{width}x{height}x24"),
                ])
                // Without -noreset the picture is lost whenever the last client leaves.
                .args(["-nolisten", "tcp", "-ac", "-noreset"])
                .stdin(Stdio::null())
                .stdout(workspace.create(&number)?)
                .stderr(workspace.create(&format!("xvfb-{role}.log"))?),
        )?;
        let number = until("Xvfb has a display", PATIENCE, || {
            server.expect_alive()?;
            let text = fs::read_to_string(workspace.path(&number))?;
            Ok(text.strip_suffix('\n').map(str::to_owned))
        })?;
        Ok(Self {
            name: format!(":{number}"),
            _server: server,
        })
    }

    /// What its clients are told in DISPLAY.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A command whose windows go to this display.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DISPLAY", &self.name);
        command
    }

    pub(crate) fn fill(&self, colour: &str) -> Result<()> {
        tool(self.command("xsetroot").args(["-solid", colour])).map(drop)
    }
}
