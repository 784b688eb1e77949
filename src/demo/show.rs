//! The demo itself: a target, a gateway with fresh keys, one session through both, and the picture it brought.
//!
//! Everything that is made lies in one folder: keys, the gateway's configuration, the picture, and a `.rdp` file for
//! a client of one's own. [`Show::open`] does all of it and writes what it does to `out` in plain words; what it
//! returns keeps the target and the gateway alive until [`Show::close`].

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::client::{self, Capture, Visit};
use super::desktop::Desktop;
use super::target;
use jetway_entry::rdp_file::RdpFile;
use jetway_io::clock;
use jetway_io::private_file;
use jetway_token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
use jetway_token::key::Key;
use jetway_token::mint::{self, EncryptionKey, SigningKey};

/// A gateway that listens, as far as the demo needs to know it.
pub struct Started {
    /// Where clients connect to.
    pub address: SocketAddr,
    /// Stops it.
    pub stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What there is on this machine to look at a desktop with.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// FreeRDP's program.
    pub freerdp: Option<&'static str>,
    /// Whether it would have a display.
    pub display: bool,
}

/// A running demo.
#[derive(Debug)]
pub struct Show {
    /// The picture that the client has seen.
    pub picture: PathBuf,
    /// For mstsc and FreeRDP.
    pub rdp_file: PathBuf,
    gateway: Started,
    /// Ends the target, also where the demo fails half-way.
    cancel: DropGuard,
    target: JoinHandle<anyhow::Result<()>>,
}

impl Show {
    /// Runs the demo in `folder`. `listen` is where the gateway is to be, port zero for a free one; `start_gateway` starts a
    /// gateway from the configuration file it is given.
    ///
    /// # Errors
    /// Whatever step fails, and a picture that is not the target's.
    pub async fn open(
        folder: &Path,
        listen: SocketAddr,
        start_gateway: impl FnOnce(&Path) -> anyhow::Result<Started>,
        out: &mut impl Write,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("open a port for the target")?;
        let target_address = listener.local_addr().context("the target's port")?;
        let cancel = CancellationToken::new();
        let tls = target::self_signed()?;
        let target = tokio::spawn(target::serve(listener, tls, cancel.clone()));
        let cancel = cancel.drop_guard();
        say(
            out,
            &format!("Target    an RDP desktop on {target_address}"),
        )?;

        let keys = Keys::make(folder)?;
        say(
            out,
            "Keys      fresh ones: tokens are signed, then encrypted to the gateway",
        )?;

        let config = folder.join(CONFIG);
        write_file(
            &config,
            configuration(listen, target_address.port()).as_bytes(),
            false,
        )?;
        let gateway = start_gateway(&config).context("start the gateway")?;
        say(out, &format!("Gateway   listens on {}", gateway.address))?;

        let token = keys.mint(target_address, PICTURE_TOKEN_S, 0)?;
        let visit = Visit {
            wsz_pcb: Some(&token),
            keys: GREETING,
            ..Visit::new(gateway.address, USER, "any")
        };
        let seen = client::capture(&visit)
            .await
            .context("the session through the gateway")?;
        let picture = folder.join(PICTURE);
        seen.image
            .save(&picture)
            .with_context(|| format!("write {}", picture.display()))?;
        check(&seen).with_context(|| format!("{} is wrong", picture.display()))?;
        let (width, height) = seen.desktop_size;
        say(
            out,
            &format!(
                "Session   a client showed the gateway a token for the target, typed, and saw the\n\
                 {INDENT}target's desktop: {width} x {height} pixels, compared and equal"
            ),
        )?;
        say(out, &format!("Picture   {}", picture.display()))?;

        // One token opens one session, so whoever comes next needs another.
        let token = keys.mint(target_address, VISITOR_TOKEN_S, VISITOR_TOKEN_S)?;
        let rdp_file = folder.join(RDP_FILE);
        write_file(&rdp_file, &rdp(gateway.address, &token)?, true)?;
        Ok(Self {
            picture,
            rdp_file,
            gateway,
            cancel,
            target,
        })
    }

    /// How to connect with a client of one's own, while the demo runs; with those that are `at_hand`.
    #[must_use]
    pub fn invitation(&self, at_hand: &Clients) -> String {
        invitation(self.gateway.address, &self.rdp_file, at_hand)
    }

    /// Ends sessions, gateway and target.
    pub async fn close(self) {
        drop(self.cancel);
        self.gateway.stop.await;
        // It only ends by cancellation, and then without an error.
        let _ended = self.target.await;
    }
}

/// Commands that work where they are to be typed: here, or on a machine that can reach the gateway.
fn invitation(gateway: SocketAddr, rdp_file: &Path, at_hand: &Clients) -> String {
    let file = rdp_file.display();
    let by_freerdp = |program: &str, file: &str| {
        format!("\n    {program} \"{file}\" /u:{USER} /p:any /cert:ignore\n")
    };
    let ways = if gateway.ip().is_loopback() {
        let here = match (at_hand.freerdp, at_hand.display) {
            (Some(program), true) => by_freerdp(program, &file.to_string()),
            (Some(program), false) => format!(
                "There is no display here (DISPLAY is not set); from a desktop of this machine:\n{}",
                by_freerdp(program, &file.to_string())
            ),
            (None, _) => String::from(
                "There is no FreeRDP on this machine (Debian: apt-get install freerdp2-x11).\n",
            ),
        };
        format!(
            "{here}\nFor mstsc, or a client on another machine, start the demo with --listen and the address by which that\n\
             machine reaches this one.\n"
        )
    } else {
        format!(
            "Copy {file}\nto a machine that reaches {gateway}. There, on Windows:\n\
             \n    mstsc {RDP_FILE}\n\
             \nor with FreeRDP (its version 3 is xfreerdp3):\n{}",
            by_freerdp("xfreerdp", RDP_FILE)
        )
    };
    format!(
        "\nConnect to it yourself within the hour, as any user with any password.\n{ways}\n\
         The target's certificate is its own, so mstsc asks and FreeRDP is told not to.\n\
         The same folder holds the keys and the gateway's configuration."
    )
}

/// The picture shows the target's desktop, for this user, with what was typed.
fn check(seen: &Capture) -> anyhow::Result<()> {
    let (width, height) = seen.desktop_size;
    let mut desktop = Desktop::new(width, height, USER);
    desktop.check_still_part(seen.image.dimensions(), seen.image.as_raw())?;
    ensure!(
        desktop.echoes(GREETING, seen.image.as_raw()),
        "what was typed has not arrived at the target"
    );
    Ok(())
}

/// Both key pairs of a demo.
struct Keys {
    sign: SigningKey,
    encrypt: EncryptionKey,
}

impl Keys {
    /// Makes key pairs and writes them into `folder`.
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let make = |algorithm, private: &str, public: &str| -> anyhow::Result<Key> {
            let key = mint::generate(algorithm).context("make a key")?;
            let pem = key.private_pem().context("a key without a private half")?;
            write_file(&folder.join(private), pem.as_bytes(), true)?;
            let pem = key.public_pem().context("a key without a public half")?;
            write_file(&folder.join(public), pem.as_bytes(), false)?;
            Ok(key)
        };
        let es256 = Algorithm::Signature(SignatureAlgorithm::Es256);
        let sign = make(es256, "issuer.key.pem", ISSUER_PUBLIC)?;
        let ecdh = Algorithm::KeyManagement(KeyManagement::EcdhEs);
        let encrypt = make(ecdh, GATEWAY_PRIVATE, "gateway.pub.pem")?;
        Ok(Self {
            sign: SigningKey::from_key(&sign, Some(SignatureAlgorithm::Es256))?,
            encrypt: EncryptionKey::from_key(&encrypt, Some(KeyManagement::EcdhEs))?,
        })
    }

    /// A token for one session with the target, for `lifetime_s` seconds from now; one that was interrupted may be
    /// taken up again within `reuse_s`.
    fn mint(&self, target: SocketAddr, lifetime_s: u64, reuse_s: u64) -> anyhow::Result<String> {
        let now = clock::unix_now();
        let claims = json!({
            "jti": Uuid::new_v4(),
            "jet_aid": Uuid::new_v4(),
            "jet_cm": "fwd",
            "jet_ap": "rdp",
            "dst_hst": target.to_string(),
            "sub": USER,
            "nbf": now.0,
            "exp": now.plus(lifetime_s).0,
            "jet_reuse": reuse_s,
        });
        mint::mint(&claims, Some(&self.sign), Some(&self.encrypt)).context("make a token")
    }
}

/// The gateway's configuration.
fn configuration(listen: SocketAddr, target_port: u16) -> String {
    format!(
        "# Written by `jetway demo`.\n\
         \n\
         [[listener]]\n\
         address = \"{listen}\"\n\
         \n\
         [token]\n\
         # What tokens are signed with, and what they are encrypted to.\n\
         keys = [\n    \
             {{ path = \"{ISSUER_PUBLIC}\", usage = \"sign\" }},\n    \
             {{ path = \"{GATEWAY_PRIVATE}\", usage = \"encrypt\" }},\n\
         ]\n\
         # The token in demo.rdp may come back as long as it lives.\n\
         max_reconnect_window_s = {VISITOR_TOKEN_S}\n\
         \n\
         [egress]\n\
         # Loopback is refused unless it is named. The demo's target is there; nothing else may be reached.\n\
         allow = [{{ cidr = \"127.0.0.1\", ports = {target_port} }}]\n\
         \n\
         [store]\n\
         path = \"jetway.redb\"\n"
    )
}

/// A `.rdp` file for mstsc and FreeRDP that carries a token to the gateway.
fn rdp(gateway: SocketAddr, token: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut file = RdpFile::new(&gateway.to_string().parse()?);
    file.set_token(token)?;
    file.set_username(USER)?;
    // In a window, so that the picture is the one that is already there.
    for setting in [
        "screen mode id:i:1",
        "desktopwidth:i:1024",
        "desktopheight:i:768",
    ] {
        file.set(setting.parse()?)?;
    }
    Ok(file.to_utf16())
}

fn say(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    writeln!(out, "{text}").context("write to standard output")?;
    out.flush().context("write to standard output")
}

/// Writes a file; a secret one only for its owner to read.
fn write_file(path: &Path, content: &[u8], secret: bool) -> anyhow::Result<()> {
    let mut options = if secret {
        private_file::options()
    } else {
        fs::OpenOptions::new()
    };
    let mut write = || {
        let mut file = options.write(true).create(true).truncate(true).open(path)?;
        #[cfg(unix)]
        if secret {
            use std::os::unix::fs::PermissionsExt as _;
            // An older one may be open to all.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        file.write_all(content)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The user whose session the demo shows.
const USER: &str = "alice";

/// What the demo's client types.
const GREETING: &str = "Hello, Jetway!";

/// Enough to take a picture, seconds.
const PICTURE_TOKEN_S: u64 = 120;

/// For whoever wants to look around, seconds.
const VISITOR_TOKEN_S: u64 = 3600;

const ISSUER_PUBLIC: &str = "issuer.pub.pem";
const GATEWAY_PRIVATE: &str = "gateway.key.pem";
const CONFIG: &str = "jetway.toml";
const PICTURE: &str = "demo.png";
const RDP_FILE: &str = "demo.rdp";

/// As wide as the words before each line.
const INDENT: &str = "          ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_that_are_printed_can_work_where_they_are_typed() {
        let file = Path::new("/tmp/jetway-demo-1/demo.rdp");
        let invited = |gateway: &str, freerdp, display| {
            let at_hand = Clients { freerdp, display };
            invitation(gateway.parse().unwrap(), file, &at_hand)
        };
        let here = invited("127.0.0.1:3389", Some("xfreerdp3"), true);
        let command = "    xfreerdp3 \"/tmp/jetway-demo-1/demo.rdp\" /u:alice";
        assert!(here.contains(command), "{here}");
        // Nothing else reaches loopback, and mstsc is on another machine.
        assert!(
            here.contains("--listen") && !here.contains("    mstsc"),
            "{here}"
        );
        let headless = invited("127.0.0.1:3389", Some("xfreerdp"), false);
        assert!(
            headless.contains("no display") && headless.contains("    xfreerdp "),
            "{headless}"
        );
        let bare = invited("[::1]:3389", None, true);
        assert!(
            bare.contains("no FreeRDP") && !bare.contains("/u:"),
            "{bare}"
        );
        let elsewhere = invited("192.0.2.7:3389", None, false);
        for words in [
            "reaches 192.0.2.7:3389",
            "    mstsc demo.rdp\n",
            "    xfreerdp \"demo.rdp\" /u:",
        ] {
            assert!(elsewhere.contains(words), "{elsewhere}");
        }
    }
}
