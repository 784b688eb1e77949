//! `jetway config check`: everything `serve` would find wrong at its start, as this user, without listening or writing anything.

use std::path::PathBuf;

use anyhow::Context;

use crate::cli::output::print_line;
use crate::config::{Config, Flags, InspectWhen, ListenerConfig};
use crate::gateway::build::Prepared;
use crate::log;
use crate::log::settings::{LogConfig, LogFormat};

/// Arguments of `jetway config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read the configuration and every file that it names; say what is wrong for the user who runs this
    Check {
        /// Configuration file
        #[arg(
            long,
            short,
            env = "JETWAY_CONFIG",
            default_value = "/etc/jetway/jetway.toml"
        )]
        config: PathBuf,
        /// Values above those of the file.
        #[command(flatten)]
        flags: Flags,
    },
}

/// Whose certificate the users of a listener are shown, which nothing in their own client explains.
fn shown(config: &Config, listener: &ListenerConfig) -> String {
    match (config.tls_of(listener), config.session.inspect) {
        (None, _) => "every session is opaque: clients are shown the target's certificate under the gateway's name; with [tls] and \
                      session.inspect = \"always\" the gateway shows its own"
            .to_owned(),
        (Some(tls), InspectWhen::Always) => format!(
            "every session is inspected (session.inspect = \"always\"): clients are shown {}",
            tls.certificate.display()
        ),
        (Some(tls), InspectWhen::WhenNeeded) => format!(
            "sessions are opaque, and clients are shown the target's certificate under the gateway's name, unless a token has \
             credentials or a pin, when they are shown {}, as always with session.inspect = \"always\"",
            tls.certificate.display()
        ),
    }
}

/// Runs `jetway config`.
///
/// # Errors
/// What is wrong with the configuration.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Command::Check {
        config: path,
        flags,
    } = &args.command;
    let reading = Config::read(path, flags);
    // Warnings, as `serve` logs them; all are written before what follows.
    let log = log::start(&LogConfig {
        format: LogFormat::Human,
        filter: "warn".to_owned(),
    })?;
    let prepared = Prepared::read(reading);
    drop(log);
    let prepared = prepared?;
    let config = prepared.config();
    for listener in &config.listener {
        let tls = if config.tls_of(listener).is_some() {
            "with TLS"
        } else {
            "without TLS"
        };
        print_line(&format!("listener {} {tls}", listener.address))?;
        print_line(&format!("  {}", shown(config, listener)))?;
    }
    let (verify, decrypt) = prepared.keys();
    print_line(&format!(
        "token keys: {verify} to verify with, {decrypt} to decrypt with"
    ))?;
    for note in prepared.notes() {
        print_line(&format!("note: {note}"))?;
    }
    print_line(&format!("{}: good", path.display())).context("standard output")
}
