//! `jetway revoke`: refuses tokens by any claim of theirs, and ends what they take part in.

use anyhow::Context;
use hyper::Method;
use serde_json::{Value, json};

use crate::cli::operator::{self, Column, text};
use crate::cli::output::print_line;
use crate::time::UnixTime;

/// Arguments of `jetway revoke`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Revoke all tokens in which a claim has a value, and end their sessions: one token by jti, a user by sub
    Add {
        /// Name of a claim: jti, sub, dst_hst, or whatever the issuer puts into tokens
        claim: String,
        /// The value that revokes; where the claim is a list, one of its values
        value: String,
        /// The value is a number, true or false, and not a text
        #[arg(long)]
        not_text: bool,
        /// Which gateway
        #[command(flatten)]
        operator: operator::Args,
    },
    /// List what was revoked so; what stands in the gateway's file of revocations is not listed
    List(operator::ListArgs),
    /// Take a revocation back
    Withdraw {
        /// Its id, as it stands in the list
        id: String,
        /// Which gateway
        #[command(flatten)]
        operator: operator::Args,
    },
}

/// Tells a gateway what is revoked.
///
/// # Errors
/// The gateway cannot be reached or says no.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Add {
            claim,
            value,
            not_text,
            operator,
        } => {
            let value = if *not_text {
                serde_json::from_str(value).context("this is no number, true or false")?
            } else {
                Value::from(value.as_str())
            };
            let rule = json!({ "claim": claim, "value": value });
            let revoked = operator.ask(Method::POST, PATH, Some(&rule))?;
            let ended = text(&revoked, "sessions_ended");
            let id = text(&revoked, "id");
            Ok(print_line(&format!(
                "revoked as {id}, ended {ended} sessions"
            ))?)
        }
        Command::List(list) => list.print(PATH, &COLUMNS),
        Command::Withdraw { id, operator } => {
            let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            anyhow::ensure!(is_id, "an id has letters and digits alone");
            operator.ask(Method::DELETE, &format!("{PATH}/{id}"), None)?;
            Ok(print_line("withdrawn")?)
        }
    }
}

const PATH: &str = "/jet/revocations";

const COLUMNS: [Column; 5] = [
    ("ID", |row| text(row, "id")),
    ("CLAIM", |row| text(row, "claim")),
    ("VALUE", |row| text(row, "value")),
    ("BY", |row| text(row, "by")),
    ("MADE AT", |row| {
        let made_at = row["made_at"].as_u64();
        made_at.map_or_else(|| "-".to_owned(), |at| UnixTime(at).to_string())
    }),
];
