//! An X display without a screen (Xvfb), on a number that nobody else has.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Result;
use jetway_lab::wait::{PATIENCE, until};

use super::port::Port;
use super::process::{Process, tool};
use super::workspace::Workspace;

/// Width and height of every desktop and every client in the lab.
pub(crate) const SIZE: (u32, u32) = (1024, 768);

#[derive(Debug)]
pub(crate) struct Display {
    name: String,
    _server: Process,
    _number: Port,
}

impl Display {
    pub(crate) fn start(workspace: &Workspace, role: &str) -> Result<Self> {
        let (width, height) = SIZE;
        // Xvfb left to itself takes the first number whose abstract socket is free, and the file of that number's socket from
        // whoever has it: servers in two network namespaces would both be :0. Ports are kept across namespaces.
        let number = Port::free()?;
        let name = format!(":{}", number.number());
        // One that was killed has left its socket, which nobody else can have: the number is kept.
        let _left = fs::remove_file(format!("/tmp/.X11-unix/X{}", number.number()));
        let ready = format!("xvfb-{role}.display");
        let mut server = Process::start_as_is(
            workspace,
            &format!("xvfb-{role}"),
            Command::new("Xvfb")
                // The number is kept already; a lock that a killed server has left would be in the way.
                .args([&name, "-nolock"])
                // It writes its number when it accepts clients.
                .args(["-displayfd", "1"])
                .args(["-screen", "0", &format!("{width}x{height}x24")])
                // Without -noreset the picture is lost whenever the last client leaves.
                .args(["-nolisten", "tcp", "-ac", "-noreset"])
                .stdin(Stdio::null())
                .stdout(workspace.create(&ready)?)
                .stderr(workspace.create(&format!("xvfb-{role}.log"))?),
        )?;
        until("Xvfb has a display", PATIENCE, || {
            server.expect_alive()?;
            let text = fs::read_to_string(workspace.path(&ready))?;
            Ok(text.ends_with('\n').then_some(()))
        })?;
        Ok(Self {
            name,
            _server: server,
            _number: number,
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
