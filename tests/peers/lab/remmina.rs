//! Remmina as a user starts it, with a profile that holds a ticket, and a password where the user has one.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jetway_lab::wait::{PATIENCE, until};
use openssl::symm::{Cipher, Crypter, Mode};

use super::display::{Display, SIZE};
use super::process::{Process, tool};
use super::target::Place;
use super::window::Window;
use super::workspace::Workspace;

/// Fields are dropped in order: the client first.
#[derive(Debug)]
pub(crate) struct Remmina {
    window: Window,
    _manager: Process,
    _bus: Process,
    session: Session,
    /// What reads its windows.
    reader: PathBuf,
}

/// The session of its user.
#[derive(Debug)]
struct Session {
    home: PathBuf,
    runtime: PathBuf,
}

impl Session {
    /// `command` in the session.
    fn admit(&self, mut command: Command) -> Command {
        let bus = self.runtime.join("bus");
        command
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .env("LC_ALL", "C.UTF-8")
            .env("GSETTINGS_BACKEND", "memory")
            .env(
                "DBUS_SESSION_BUS_ADDRESS",
                format!("unix:path={}", bus.display()),
            );
        command
    }
}

impl Remmina {
    /// A client called `role` that goes to `address` with `ticket` as load balance info, and as `user` where there is one.
    pub(crate) fn start(
        workspace: &Workspace,
        role: &str,
        address: &str,
        ticket: &str,
        user: Option<&Place>,
    ) -> Result<Self> {
        let display = Display::start(workspace, role)?;
        let session = Session {
            home: workspace.folder(&format!("home-{role}"))?,
            runtime: workspace.folder(&format!("run-{role}"))?,
        };
        let (home, bus) = (&session.home, session.runtime.join("bus"));
        let start = |name: &str, program: &str, arguments: &[&str]| {
            let mut command = session.admit(display.command(program));
            command.args(arguments);
            Process::start(workspace, &format!("{role}-{name}"), &mut command)
        };
        let address_of_bus = format!("--address=unix:path={}", bus.display());
        let mut daemon = start(
            "bus",
            "dbus-daemon",
            &["--session", "--nofork", &address_of_bus],
        )?;
        until("the bus of Remmina", PATIENCE, || {
            daemon.expect_alive()?;
            Ok(bus.exists().then_some(()))
        })?;
        // Its windows have no size without one.
        let keys = session.home.join("openbox.xml");
        fs::write(&keys, KEYS)?;
        let keys = keys.display().to_string();
        let manager = start("manager", "openbox", &["--config-file", &keys])?;
        let config = home.join(".config/remmina");
        fs::create_dir_all(&config)?;
        let secret = STANDARD.encode(SECRET);
        fs::write(
            config.join("remmina.pref"),
            format!("[remmina_pref]\nsecret={secret}\n"),
        )?;
        let (width, height) = SIZE;
        let (name, password) = match user {
            Some(user) => (user.user.as_str(), encrypted(&user.password)?),
            None => ("x", ".".to_owned()),
        };
        let profile = home.join("lab.remmina");
        fs::write(
            &profile,
            format!(
                "[remmina]\nname=lab\nprotocol=RDP\nserver={address}\nusername={name}\npassword={password}\n\
                 loadbalanceinfo={ticket}\ncert_ignore=1\nignore-tls-errors=1\ncolordepth=99\ndisableclipboard=0\n\
                 viewmode=4\nresolution_mode=2\nresolution_width={width}\nresolution_height={height}\nscale=2\n"
            ),
        )?;
        let profile = profile.display().to_string();
        let client = start("client", "remmina", &["-c", &profile])?;
        Ok(Self {
            window: Window::new(client, display, "remmina"),
            _manager: manager,
            _bus: daemon,
            session,
            reader: workspace.write("remmina_shown.py", include_str!("remmina_shown.py"))?,
        })
    }

    /// Makes a window of what fills the screen.
    pub(crate) fn leave_the_full_screen(&self) -> Result<()> {
        tool(self.window.command("xdotool").args(["key", "F12"])).map(drop)
    }

    /// What its windows say, a line each.
    pub(crate) fn shown(&self) -> Result<String> {
        let mut read = self.session.admit(self.window.command("/usr/bin/python3"));
        Ok(String::from_utf8(tool(read.arg(&self.reader))?)?)
    }
}

/// A password as a profile has it: by Triple DES, with a secret that the settings of its user hold.
fn encrypted(password: &str) -> Result<String> {
    let (key, iv) = SECRET.split_at(24);
    let mut crypter = Crypter::new(Cipher::des_ede3_cbc(), Mode::Encrypt, key, Some(iv))?;
    crypter.pad(false);
    let mut text = password.as_bytes().to_vec();
    // Filled up with zeros, of which there is one at least.
    text.resize((text.len() / 8 + 1) * 8, 0);
    let mut sealed = vec![0; text.len() + 8];
    let mut length = crypter.update(&text, &mut sealed)?;
    length += crypter.finalize(&mut sealed[length..])?;
    sealed.truncate(length);
    Ok(STANDARD.encode(sealed))
}

/// What the manager of windows does at a key.
const KEYS: &str = r#"<openbox_config xmlns="http://openbox.org/3.4/rc"><keyboard>
<keybind key="F12"><action name="ToggleFullscreen"/></keybind>
</keyboard></openbox_config>"#;
const SECRET: &[u8; 32] = b"of one user of the lab, and none";

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
