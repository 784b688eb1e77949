//! `jetway demo`: all of it on this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{Config, Flags};
use crate::demo::show::{Clients, Show, Started};
use crate::gateway::run::Running;
use crate::log;
use crate::log::settings::LogConfig;

/// Arguments of `jetway demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Put everything into this folder and leave it there, instead of a temporary one
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Address of this machine at which the gateway is to be, so that clients on other machines reach it. Whoever has the file that
    /// is written gets to the demo's desktop by it, and to nothing else
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_parser = own_address)]
    pub listen: IpAddr,
    /// Port of the gateway; any free one if not given
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// End when the picture is there, instead of at Ctrl-C
    #[arg(long)]
    pub once: bool,
}

/// Shows a target, a gateway, a client and its picture, and stays until Ctrl-C.
///
/// # Errors
/// A step fails, or the picture is not the target's.
pub fn run(args: Args) -> anyhow::Result<()> {
    let quiet = LogConfig {
        // rustls warns of every client that connects to an address instead of a name, as all do here.
        filter: String::from("warn,rustls=error"),
        ..LogConfig::default()
    };
    let _log = log::start(&quiet)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(demo(args))
}

async fn demo(args: Args) -> anyhow::Result<()> {
    // Before anything is written that would be left behind.
    let mut told = Told::listen()?;
    let folder = Folder::open(args.dir)?;
    let mut out = io::stdout();
    let open = Box::pin(Show::open(
        folder.path(),
        SocketAddr::new(args.listen, args.port),
        start_gateway,
        &mut out,
    ));
    let show = tokio::select! {
        show = open => show?,
        () = told.wait() => return Ok(()),
    };
    if args.once {
        show.close().await;
        folder.keep();
        return Ok(());
    }
    super::output::print_line(&show.invitation(&clients()))?;
    super::output::print_line(folder.farewell())?;
    told.wait().await;
    show.close().await;
    Ok(())
}

/// An address that can stand in a `.rdp` file.
fn own_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "not an IP address".to_owned())?;
    if address.is_unspecified() {
        return Err("all addresses are none that a client can be told: name the one by which it reaches this machine".to_owned());
    }
    Ok(address)
}

fn clients() -> Clients {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    Clients {
        freerdp: ["xfreerdp3", "xfreerdp"].into_iter().find(is_there),
        display: is_set("DISPLAY"),
    }
}

fn start_gateway(config: &Path) -> anyhow::Result<Started> {
    let running = Running::start(Config::load(config, &Flags::default())?)?;
    let address = running
        .addresses()
        .first()
        .copied()
        .context("a gateway without a listener")?;
    Ok(Started {
        address,
        stop: Box::pin(running.stop()),
    })
}

/// The signals that end the demo: each of them by itself would leave the folder and its private keys behind.
struct Told([Signal; 3]);

impl Told {
    fn listen() -> anyhow::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        let context = "wait for signals";
        Ok(Self([
            interrupt.context(context)?,
            terminate.context(context)?,
            hangup.context(context)?,
        ]))
    }

    /// # Cancel safety
    /// Nothing is lost: a signal that has come stays.
    async fn wait(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Where everything lies.
enum Folder {
    /// Goes away with the demo.
    Temporary(TempDir),
    Chosen(PathBuf),
}

impl Folder {
    fn open(chosen: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(folder) = chosen else {
            let folder = tempfile::Builder::new().prefix("jetway-demo-").tempdir();
            return folder
                .map(Self::Temporary)
                .context("make a temporary folder");
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        // Commands that are printed work from anywhere.
        let folder = std::path::absolute(&folder)?;
        Ok(Self::Chosen(folder))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Chosen(folder) => folder,
        }
    }

    fn farewell(&self) -> &'static str {
        match self {
            Self::Temporary(_) => "Ctrl-C ends the demo and removes the folder.",
            Self::Chosen(_) => "Ctrl-C ends the demo; the folder stays.",
        }
    }

    /// Leaves a temporary folder where it is.
    fn keep(self) {
        if let Self::Temporary(folder) = self {
            let _path = folder.keep();
        }
    }
}
