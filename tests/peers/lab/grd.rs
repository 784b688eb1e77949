//! GNOME Remote Desktop in a headless session of mutter: NLA, the graphics pipeline with AVC, and a Wayland clipboard.
//!
//! It listens on every address of its network, so it has one of its own, and a wire leads there from loopback. Needs root.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use jetway_lab::certificate::Identity;
use jetway_lab::wait::{PATIENCE, until};
use uuid::Uuid;

use super::link::Link;
use super::namespace::Namespace;
use super::process::{Process, tool};
use super::target::{Place, Target};
use super::workspace::Workspace;

/// Fields are dropped in order: who uses the session first, its bus and its network last.
#[derive(Debug)]
pub(crate) struct GnomeRemoteDesktop {
    server: Process,
    _terminals: Process,
    _compositor: Process,
    _media: [Process; 2],
    _bus: Process,
    session: Session,
    place: Place,
    _wire: Link,
    _network: Namespace,
}

/// The session of the user of the desktop.
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
            .env_remove("DISPLAY")
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .env("XDG_SESSION_TYPE", "wayland")
            .env("GSETTINGS_BACKEND", "keyfile")
            .env("WAYLAND_DISPLAY", SOCKET)
            .env("LC_ALL", "C.UTF-8")
            .env(
                "DBUS_SESSION_BUS_ADDRESS",
                format!("unix:path={}", bus.display()),
            );
        command
    }

    fn command(&self, program: &str) -> Command {
        self.admit(Command::new(program))
    }
}

impl GnomeRemoteDesktop {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        let network = Namespace::of_targets()?;
        let wire = Link::start(&format!("{}:{PORT}", network.inside()))?;
        let place = Place {
            port: wire.address().parse::<SocketAddr>()?.port(),
            user: "alice".to_owned(),
            password: format!("Pw-{}", Uuid::new_v4().simple()),
            background: [0x20, 0x40, 0x60],
            writable: workspace.folder("typed")?,
        };
        let session = Session {
            home: workspace.folder("home-grd")?,
            runtime: workspace.folder("run-grd")?,
        };
        fs::set_permissions(&session.runtime, fs::Permissions::from_mode(0o700))?;
        let start = |name: &str, command: &mut Command| Process::start(workspace, name, command);
        let appears = |socket: &str, process: &mut Process| {
            let socket = session.runtime.join(socket);
            until(&format!("{}", socket.display()), PATIENCE, || {
                process.expect_alive()?;
                Ok(socket.exists().then_some(()))
            })
        };

        let mut bus = start(
            "grd-bus",
            session.command("dbus-daemon").args([
                "--session".to_owned(),
                "--nofork".to_owned(),
                format!(
                    "--address=unix:path={}",
                    session.runtime.join("bus").display()
                ),
            ]),
        )?;
        appears("bus", &mut bus)?;
        let mut media = start("grd-pipewire", &mut session.command("pipewire"))?;
        appears("pipewire-0", &mut media)?;
        // Without it the picture stays black.
        let mut manager = start("grd-wireplumber", &mut session.command("wireplumber"))?;
        until("the media have their manager", PATIENCE, || {
            manager.expect_alive()?;
            let status = tool(session.command("wpctl").arg("status")).unwrap_or_default();
            let status = String::from_utf8_lossy(&status).into_owned();
            Ok(status.contains("WirePlumber [export]").then_some(()))
        })?;
        let mut compositor = start(
            "grd-mutter",
            session
                .command("mutter")
                .env_remove("WAYLAND_DISPLAY")
                .args(["--headless", "--wayland", "--no-x11"])
                .args(["--wayland-display", SOCKET]),
        )?;
        appears(SOCKET, &mut compositor)?;
        let terminals = start(
            "grd-terminals",
            session
                .command("bash")
                .arg(workspace.write("terminals.sh", terminals(workspace, &place)?)?),
        )?;
        let daemon = network.command("/usr/libexec/gnome-remote-desktop-daemon");
        let mut daemon = session.admit(daemon);
        daemon.args(["--headless", "--rdp-port", &PORT.to_string()]);
        configure(workspace, &session, &place)?;
        let mut server = start("grd", &mut daemon)?;
        until("GNOME Remote Desktop serves", PATIENCE, || {
            server.expect_alive()?;
            Ok(server
                .output()?
                .contains("RDP server started")
                .then_some(()))
        })?;
        Ok(Self {
            server,
            _terminals: terminals,
            _compositor: compositor,
            _media: [manager, media],
            _bus: bus,
            session,
            place,
            _wire: wire,
            _network: network,
        })
    }

    /// Waits until it has logged `message` `count` times.
    pub(crate) fn wait_for(&self, message: &str, count: usize) -> Result<()> {
        until(&format!("{message:?}, {count} times"), PATIENCE, || {
            let logged = self.server.output()?.matches(message).count();
            Ok((logged >= count).then_some(()))
        })
    }

    /// Puts `text` on the clipboard of the desktop; it stays there while the returned program runs.
    pub(crate) fn copy(&self, workspace: &Workspace, text: &str) -> Result<Process> {
        let mut copy = self.session.command("wl-copy");
        copy.args(["--foreground", "--", text]);
        Process::start(workspace, "wl-copy", &mut copy)
    }

    /// Rows and columns of the terminal, which fills the desktop.
    pub(crate) fn terminal_size(&self) -> Result<(u16, u16)> {
        let terminal = fs::read_to_string(self.session.home.join("terminal"))?;
        let mut size = Command::new("stty");
        let size = String::from_utf8(tool(size.args(["-F", terminal.trim(), "size"]))?)?;
        let (rows, columns) = size.trim().split_once(' ').context("rows and columns")?;
        Ok((rows.parse()?, columns.parse()?))
    }

    /// Waits until `text` can be pasted on the desktop.
    pub(crate) fn wait_for_text(&self, text: &str) -> Result<()> {
        until(
            &format!("{text:?} on the desktop's clipboard"),
            PATIENCE,
            || {
                let mut paste = self.session.command("timeout");
                paste.args(["5", "wl-paste", "--no-newline"]);
                // Nothing was copied yet, or not as text.
                Ok(tool(&mut paste)
                    .is_ok_and(|pasted| pasted == text.as_bytes())
                    .then_some(()))
            },
        )
    }
}

impl Target for GnomeRemoteDesktop {
    fn place(&self) -> &Place {
        &self.place
    }

    fn has_nla(&self) -> bool {
        true
    }
}

fn configure(workspace: &Workspace, session: &Session, place: &Place) -> Result<()> {
    let identity = Identity::self_signed(&["localhost"]);
    let [certificate, key] = identity.write(&workspace.path(""), ["grd.pem", "grd.key"]);
    let (certificate, key) = (certificate.to_str(), key.to_str());
    let (certificate, key) = certificate.zip(key).context("a path that is text")?;
    for arguments in [
        &["set-tls-cert", certificate][..],
        &["set-tls-key", key],
        &["set-credentials", &place.user, &place.password],
        &["disable-view-only"],
        &["enable"],
    ] {
        let mut control = session.command("grdctl");
        tool(control.args(["--headless", "rdp"]).args(arguments))?;
    }
    // Without a monitor to mirror it has to make one for each client; version 43 has to be told.
    let mut settings = session.command("gsettings");
    let schema = "org.gnome.desktop.remote-desktop.rdp";
    tool(settings.args(["set", schema, "screen-share-mode", "extend"])).map(drop)
}

/// There is an output, and so a place for a terminal, only while a client is there.
///
/// Mutter 43 on a busy machine now and then loses what was painted while its recording began, until the
/// next change: so the terminal paints the same again for a while, until somebody types. GNOME Remote Desktop 43 aborts where its
/// desktop is to have another size while a picture is on its way.
fn terminals(workspace: &Workspace, place: &Place) -> Result<String> {
    let phrase = Uuid::new_v4();
    let shell = workspace.write(
        "shell.sh",
        format!(
            "#!/bin/bash\n\
             paper() {{\n  \
             for line in $(seq 14); do printf '\\e[48;2;255;255;255m\\e[30m%-78s\\e[0m\\n' \"$line {phrase}\"; done\n\
             }}\n\
             paper\n\
             tty > $HOME/terminal\n\
             rm -f $HOME/typed\n\
             for again in $(seq 20); do\n  \
             sleep 0.5\n  \
             [ -e $HOME/typed ] && break\n  \
             printf '%s' $'\\e7\\e[H'\"$(paper)\"$'\\e8'\n\
             done &\n\
             export PS1='desktop> ' PROMPT_COMMAND='((prompts++)) && : > $HOME/typed'\n\
             exec bash --norc\n"
        ),
    )?;
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755))?;
    let [red, green, blue] = place.background;
    Ok(format!(
        "while :; do\n  \
         foot --fullscreen -o colors.background={red:02x}{green:02x}{blue:02x} {}\n  \
         sleep 0.2\n\
         done\n",
        shell.display()
    ))
}

/// In a network of its own.
const PORT: u16 = 3389;
const SOCKET: &str = "wayland-grd";
