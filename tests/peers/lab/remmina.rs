//! Remmina as a user starts it, with a profile that holds nothing but a ticket.

use std::fs;
use std::ops::{Deref, DerefMut};

use anyhow::Result;

use super::display::{Display, SIZE};
use super::process::Process;
use super::wait::{PATIENCE, until};
use super::window::Window;
use super::workspace::Workspace;

/// Fields are dropped in order: the client first.
#[derive(Debug)]
pub(crate) struct Remmina {
    window: Window,
    _manager: Process,
    _bus: Process,
}

impl Remmina {
    /// A client that goes to `address` with `ticket` as load balance info.
    pub(crate) fn start(workspace: &Workspace, address: &str, ticket: &str) -> Result<Self> {
        let display = Display::start(workspace, "remmina")?;
        let home = workspace.folder("home-remmina")?;
        let runtime = workspace.folder("run-remmina")?;
        let bus = runtime.join("bus");
        let start = |name: &str, program: &str, arguments: &[&str]| {
            let mut command = display.command(program);
            command
                .args(arguments)
                .env("HOME", &home)
                .env("XDG_RUNTIME_DIR", &runtime)
                .env("LC_ALL", "C.UTF-8")
                .env("NO_AT_BRIDGE", "1")
                .env("GSETTINGS_BACKEND", "memory")
                .env(
                    "DBUS_SESSION_BUS_ADDRESS",
                    format!("unix:path={}", bus.display()),
                );
            Process::start(workspace, name, &mut command)
        };
        let address_of_bus = format!("--address=unix:path={}", bus.display());
        let mut daemon = start(
            "remmina-bus",
            "dbus-daemon",
            &["--session", "--nofork", &address_of_bus],
        )?;
        until("the bus of Remmina", PATIENCE, || {
            daemon.expect_alive()?;
            Ok(bus.exists().then_some(()))
        })?;
        // Its windows have no size without one.
        let manager = start("remmina-manager", "openbox", &[])?;
        let (width, height) = SIZE;
        let profile = home.join("lab.remmina");
        fs::write(
            &profile,
            format!(
                "[remmina]\nname=lab\nprotocol=RDP\nserver={address}\nusername=x\npassword=.\n\
                 loadbalanceinfo={ticket}\ncert_ignore=1\nignore-tls-errors=1\nresolution_mode=2\n\
                 resolution_width={width}\nresolution_height={height}\ncolordepth=99\ndisableclipboard=0\n\
                 viewmode=4\n"
            ),
        )?;
        let profile = profile.display().to_string();
        let client = start("remmina", "remmina", &["-c", &profile])?;
        Ok(Self {
            window: Window::new(client, display, "remmina"),
            _manager: manager,
            _bus: daemon,
        })
    }
}

impl Deref for Remmina {
    type Target = Window;

    fn deref(&self) -> &Window {
        &self.window
    }
}

impl DerefMut for Remmina {
    fn deref_mut(&mut self) -> &mut Window {
        &mut self.window
    }
}
