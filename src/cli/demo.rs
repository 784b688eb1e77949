//! `jetway demo`: all of it on this machine.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{Config, Flags, LogConfig};
use crate::demo::show::{Show, Started};
use crate::gateway::Running;
use crate::log;

/// Arguments of `jetway demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Put everything into this folder and leave it there, instead of a temporary one
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Port of the gateway on 127.0.0.1; any free one if not given
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
        args.port,
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
    super::print_line(&show.invitation())?;
    super::print_line(folder.farewell())?;
    told.wait().await;
    show.close().await;
    Ok(())
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
