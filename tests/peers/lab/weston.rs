//! weston's RDP backend: a Wayland desktop with TLS and without any logon.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::Result;
use jetway_lab::certificate::Identity;
use jetway_lab::wait::{PATIENCE, until};
use uuid::Uuid;

use super::desktop::{TERMINAL, colour_name, shell_script};
use super::display::SIZE;
use super::port::Port;
use super::process::Process;
use super::target::{Place, Target};
use super::workspace::Workspace;

/// Fields are dropped in order: the terminal first.
#[derive(Debug)]
pub(crate) struct Weston {
    _terminal: Process,
    _server: Process,
    _port: Port,
    place: Place,
}

impl Weston {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        let port = Port::free()?;
        let place = Place {
            port: port.number(),
            user: "nobody".to_owned(),
            password: format!("Pw-{}", Uuid::new_v4().simple()),
            background: [0x20, 0x60, 0x40],
            writable: workspace.folder("typed")?,
        };
        let identity = Identity::self_signed(&["localhost"]);
        let [certificate, key] = identity.write(&workspace.path(""), ["weston.pem", "weston.key"]);
        let runtime = workspace.folder("weston-runtime")?;
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700))?;
        let colour = colour_name(place.background).replace('#', "0xff");
        let config = workspace.write(
            "weston.ini",
            format!(
                "[shell]\nbackground-color={colour}\npanel-position=none\nanimation=none\n\
                 startup-animation=none\nlocking=false\n"
            ),
        )?;
        let command = |program: &str| {
            let mut command = Command::new(program);
            command
                .env("XDG_RUNTIME_DIR", &runtime)
                .env("HOME", &runtime)
                .env("WAYLAND_DISPLAY", SOCKET);
            command
        };
        let mut server = Process::start(
            workspace,
            "weston",
            command("weston")
                .env_remove("WAYLAND_DISPLAY")
                .args(["--backend=rdp-backend.so", "--address=127.0.0.1"])
                .args([
                    format!("--port={}", place.port),
                    format!("--width={}", SIZE.0),
                    format!("--height={}", SIZE.1),
                    format!("--socket={SOCKET}"),
                    format!("--rdp-tls-cert={}", certificate.display()),
                    format!("--rdp-tls-key={}", key.display()),
                    format!("--config={}", config.display()),
                ])
                .args(["--idle-time=0", "--xwayland", "--no-clients-resize"]),
        )?;
        port.wait_for_listener(|| server.expect_alive())?;
        let display = until("weston serves X", PATIENCE, || {
            server.expect_alive()?;
            let output = server.output()?;
            let number = output.split("xserver listening on display :").nth(1);
            let number = number.and_then(|rest| rest.lines().next());
            Ok(number.map(|number| format!(":{}", number.trim())))
        })?;
        let ready = workspace.path("shell-ready");
        let script = workspace.write(
            "shell.sh",
            shell_script(&Uuid::new_v4().to_string(), &ready),
        )?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let mut terminal = Process::start(
            workspace,
            "terminal",
            Command::new(TERMINAL[0])
                .args(&TERMINAL[1..])
                .arg(script)
                .env("DISPLAY", display),
        )?;
        until("the shell of the desktop is ready", PATIENCE, || {
            terminal.expect_alive()?;
            Ok(ready.exists().then_some(()))
        })?;
        Ok(Self {
            _terminal: terminal,
            _server: server,
            _port: port,
            place,
        })
    }
}

impl Target for Weston {
    fn place(&self) -> &Place {
        &self.place
    }
}

const SOCKET: &str = "wl-jetway-peers";
