//! `jetway serve`: the gateway.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::config::{Config, Flags};
use crate::gateway::build::Prepared;
use crate::gateway::live::stages::Stages;
use crate::gateway::run::Running;
use crate::log;

/// Arguments of `jetway serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(
        long,
        short,
        env = "JETWAY_CONFIG",
        default_value = "/etc/jetway/jetway.toml"
    )]
    pub config: PathBuf,
    /// Values above those of the file.
    #[command(flatten)]
    pub flags: Flags,
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads keys, certificates, pins and revocations again.
///
/// # Errors
/// The configuration, a file that it names, or a port cannot be used.
pub fn run(args: &Args) -> anyhow::Result<()> {
    run_with(args, None)
}

/// As [`run`], with `stages` in the sessions that are inspected: for programs that add their own.
///
/// # Errors
/// As [`run`].
pub fn run_with(args: &Args, stages: Option<Arc<dyn Stages>>) -> anyhow::Result<()> {
    let reading = Config::read(&args.config, &args.flags);
    // Dropped last, so that the lines of an end or of a start that fails are written.
    let _log = log::start(&reading.log())?;
    let mut prepared = Prepared::read(reading)?;
    if let Some(stages) = stages {
        prepared = prepared.with_stages(stages);
    }
    raise_descriptor_limit(prepared.config().limits.connections);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(prepared))
}

async fn serve(prepared: Prepared) -> anyhow::Result<()> {
    // Before any port is bound, so that no signal finds the process half started.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = Running::start_prepared(prepared)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                info!("Reading keys, certificates and revocations again; jetway.toml is read at the start alone");
                running.reload();
            }
        }
    }
    info!("Stopping");
    running.stop().await;
    Ok(())
}

/// Asks the system for as many descriptors as the configured connections may need; tells if it gives fewer.
fn raise_descriptor_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// Listeners, files, the store, the runtime.
    const SPARE: u64 = 256;
    /// A client's socket and its target's. Pipes for splicing come from a pool that does without them when it must.
    const PER_SESSION: u64 = 2;
    let connections = u64::try_from(connections).unwrap_or(u64::MAX);
    let needed = connections
        .saturating_mul(PER_SESSION)
        .saturating_add(SPARE);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    // Only a privileged process may raise the maximum as well.
    let maximum_raised = maximum.map(|maximum| maximum.max(needed));
    let all = Rlimit {
        current: Some(needed),
        maximum: maximum_raised,
    };
    if setrlimit(Resource::Nofile, all).is_ok() {
        return;
    }
    let most = Rlimit {
        current: maximum.map(|maximum| maximum.min(needed)),
        maximum,
    };
    let raised = setrlimit(Resource::Nofile, most);
    tracing::warn!(
        open_files = getrlimit(Resource::Nofile).current,
        needed,
        error = raised.err().map(|error| error.to_string()),
        "Fewer open files are allowed than limits.connections needs"
    );
}
