//! A child process: its output in a log file, ended by its pid when it goes out of scope.

use std::fs;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jetway_lab::process::TerminateOnDrop;
use jetway_lab::wait::until;

use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: TerminateOnDrop,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `<name>.log`.
    pub(crate) fn start(workspace: &Workspace, name: &str, command: &mut Command) -> Result<Self> {
        let log_name = format!("{name}.log");
        let log = workspace.create(&log_name)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Self::start_as_is(workspace, name, command)
    }

    /// Starts `command` with the standard streams it already has.
    pub(crate) fn start_as_is(
        workspace: &Workspace,
        name: &str,
        command: &mut Command,
    ) -> Result<Self> {
        let child = command.spawn().with_context(|| {
            format!(
                "start {} (tests/install.sh peers installs it)",
                command.get_program().display()
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            child: TerminateOnDrop(child),
            log: workspace.path(&format!("{name}.log")),
        })
    }

    /// Starts `command` with its standard input and output as pipes; its standard error goes to `<name>.log`.
    pub(crate) fn start_piped(
        workspace: &Workspace,
        name: &str,
        command: &mut Command,
    ) -> Result<(Self, ChildStdin, ChildStdout)> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(workspace.create(&format!("{name}.log"))?);
        let mut process = Self::start_as_is(workspace, name, command)?;
        let pipes = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            bail!("{name} has no pipes");
        };
        Ok((process, input, output))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has printed so far.
    pub(crate) fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The command line that any user of the machine can read.
    pub(crate) fn command_line(&self) -> Result<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The environment it was started with.
    pub(crate) fn environment(&self) -> Result<String> {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// An error when the process has already ended.
    pub(crate) fn expect_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended early: {status}", self.name),
            None => Ok(()),
        }
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        until(&format!("{} ends", self.name), patience, || {
            Ok(self.child.try_wait()?)
        })
    }

    /// Ends the process and waits until it is gone.
    pub(crate) fn end(&mut self) {
        self.child.terminate();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill();
    }
}

/// Runs a tool to its end and returns what it printed.
pub(crate) fn tool(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program} (tests/install.sh peers installs it)"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
