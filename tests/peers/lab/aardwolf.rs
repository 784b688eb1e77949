//! aardwolf: a client in Python that shares no code with the others, CredSSP and bulk compression included.
//!
//! It has no window; a script around it writes down what it sees. The script also puts right what aardwolf sends against
//! the specification: Windows takes it, the servers here do not, whoever is between. With xrdp that is not enough.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jetway_lab::wait::until;

use super::environment;
use super::process::Process;
use super::screenshot::Picture;
use super::target::Place;
use super::window;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Aardwolf {
    client: Process,
    picture: PathBuf,
}

impl Aardwolf {
    /// A client called `role` that goes to `address` with the name and password of the user of `place`.
    pub(crate) fn start(
        workspace: &Workspace,
        role: &str,
        address: &str,
        place: &Place,
    ) -> Result<Self> {
        let python = environment::file("aardwolf", "bin/python")?;
        let script = workspace.write("aardwolf_client.py", SCRIPT)?;
        let picture = workspace.path(role);
        let (host, port) = address.split_once(':').context("an address")?;
        let mut command = Command::new(python);
        command
            .arg(script)
            .args([host, port, &place.user, &place.password])
            .arg(&picture)
            .env("HOME", workspace.folder(&format!("home-{role}"))?)
            .env("LC_ALL", "C.UTF-8");
        let client = Process::start(workspace, role, &mut command)?;
        Ok(Self { client, picture })
    }

    /// Waits until it sees the desktop of `place`, standing still.
    pub(crate) fn wait_for_desktop(&mut self, place: &Place) -> Result<Picture> {
        let Self { client, picture } = self;
        window::wait_for_desktop(place, PATIENCE_WITH_PYTHON, || seen(client, picture))
    }

    /// Waits until it sees what `expected` shows.
    pub(crate) fn wait_for_picture(
        &mut self,
        workspace: &Workspace,
        expected: &Picture,
    ) -> Result<()> {
        let Self { client, picture } = self;
        window::wait_for_picture(workspace, expected, PATIENCE_WITH_PYTHON, || {
            seen(client, picture)
        })
    }

    /// Types into the desktop's terminal until what was typed has had its effect there.
    pub(crate) fn type_until_it_arrives(&mut self, place: &Place) -> Result<()> {
        let typed = place.writable.join("typed_by-keys.42");
        let commands = self.picture.with_extension("type");
        std::fs::write(&commands, format!("touch {}", typed.display()))?;
        until("the typed command arrives", PATIENCE_WITH_PYTHON, || {
            self.client.expect_alive()?;
            Ok(typed.exists().then_some(()))
        })?;
        std::fs::remove_file(commands)?;
        Ok(())
    }

    /// Ends the session from the client's side; what it saw last is then in a file for people to look at.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.client.end();
        ensure!(
            self.picture.with_extension("png").exists(),
            "no picture was saved: {}",
            self.client.output()?
        );
        Ok(())
    }
}

fn seen(client: &mut Process, picture: &std::path::Path) -> Result<Option<Picture>> {
    client.expect_alive()?;
    let path = picture.with_extension("ppm");
    if !path.exists() {
        return Ok(None);
    }
    Picture::read(&path).map(Some)
}

/// It compiles ASN.1 at every start and draws in Python: five seconds on an idle machine.
const PATIENCE_WITH_PYTHON: Duration = Duration::from_secs(60);
const SCRIPT: &str = include_str!("aardwolf_client.py");
