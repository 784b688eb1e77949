//! `jetway agents`: the agents that a gateway knows, for its operators.

use hyper::Method;

use crate::cli::operator::{self, Column, text};
use crate::cli::output::print_line;
use crate::time::UnixTime;
use crate::token::agent_name::AgentName;

/// Arguments of `jetway agents`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the agents that are enrolled, and say which are connected
    List(operator::ListArgs),
    /// Revoke one: its key is forgotten, its sessions end
    Revoke {
        /// Its name
        name: AgentName,
        /// Which gateway
        #[command(flatten)]
        operator: operator::Args,
    },
}

/// Asks a gateway for its agents, or tells it to revoke one.
///
/// # Errors
/// The gateway cannot be reached or says no, or there is no such agent.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::List(list) => list.print(PATH, &COLUMNS),
        Command::Revoke { name, operator } => {
            operator.ask(Method::DELETE, &format!("{PATH}/{name}"), None)?;
            Ok(print_line("revoked")?)
        }
    }
}

const PATH: &str = "/jet/agents";

const COLUMNS: [Column; 6] = [
    ("NAME", |row| text(row, "name")),
    ("CONNECTED", |row| match row["since"].as_u64() {
        Some(since) if row["connected"] == true => format!("since {}", UnixTime(since)),
        _ => "no".to_owned(),
    }),
    ("FROM", |row| text(row, "address")),
    ("SESSIONS", |row| text(row, "sessions")),
    ("TARGETS", |row| match row["targets"].as_array() {
        Some(targets) => {
            let targets = targets.iter().filter_map(|target| target.as_str());
            targets.collect::<Vec<_>>().join(" ")
        }
        None => "any".to_owned(),
    }),
    ("KEY", |row| text(row, "key")),
];
