//! rdesktop as a user starts it: a client that shares no code with FreeRDP.
//!
//! It has no option for a token and reads its answers about certificates from standard input.

use std::ops::{Deref, DerefMut};

use anyhow::Result;

use super::display::{Display, SIZE};
use super::process::Process;
use super::target::Place;
use super::window::Window;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct RDesktop(Window);

impl RDesktop {
    /// A client called `role` that goes to `address` with the name and password of the user of `place`.
    pub(crate) fn start(
        workspace: &Workspace,
        role: &str,
        address: &str,
        options: &[&str],
        place: &Place,
    ) -> Result<Self> {
        let display = Display::start(workspace, role)?;
        let answers = workspace.write(&format!("{role}.stdin"), "yes\nyes\n")?;
        let log = workspace.create(&format!("{role}.log"))?;
        let mut command = display.command("rdesktop");
        command
            .args(["-u", &place.user, "-p", &place.password])
            .args(["-g", &format!("{}x{}", SIZE.0, SIZE.1), "-D"])
            .args(options)
            .arg(address)
            .env("HOME", workspace.folder(&format!("home-{role}"))?)
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::fs::File::open(answers)?)
            .stdout(log.try_clone()?)
            .stderr(log);
        let client = Process::start_as_is(workspace, role, &mut command)?;
        Ok(Self(Window::new(client, display, "rdesktop")))
    }

    /// Ends the session from the client's side.
    pub(crate) fn end(&mut self) {
        self.0.process_mut().end();
    }
}

impl Deref for RDesktop {
    type Target = Window;

    fn deref(&self) -> &Window {
        &self.0
    }
}

impl DerefMut for RDesktop {
    fn deref_mut(&mut self) -> &mut Window {
        &mut self.0
    }
}
