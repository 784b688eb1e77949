//! `jetway ticket`: exchanges a token for a ticket at a running gateway.

use std::path::PathBuf;

use hyper::{Method, Uri};

use crate::api::tickets::Created;
use crate::cli::secret_file;
use crate::peer::Site;

/// Arguments of `jetway ticket`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the gateway is: https://HOST:PORT, or http://127.0.0.1:PORT on its own machine
    #[arg(long)]
    pub gateway: Uri,
    /// File with the token; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Trust the certificates in this PEM file instead of the system's: authorities, or the gateway's own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Ask for a shorter life than the gateway gives, seconds
    #[arg(long, value_name = "SECONDS")]
    pub lifetime: Option<u64>,
    /// File for the ticket, readable by its owner only; standard output if not given
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Gives the ticket alone, to standard output or a file.
///
/// # Errors
/// The gateway cannot be reached, or refuses the token: its reason is in the message.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let token = secret_file::read(&args.token_file, &mut std::io::stdin().lock())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = match args.lifetime {
        Some(lifetime_s) => serde_json::json!({ "lifetime_s": lifetime_s }).to_string(),
        None => String::new(),
    };
    let gateway = Site::new(&args.gateway, args.ca.as_deref())?;
    let created = gateway.request(Method::POST, "/jet/tickets", token.trim(), body);
    let created: Created = runtime.block_on(created)?;
    secret_file::give(args.out.as_deref(), &created.ticket)
}
