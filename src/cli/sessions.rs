//! `jetway sessions`: the live sessions of a gateway, for its operators.

use anyhow::Context;
use hyper::Method;
use serde_json::Value;
use uuid::Uuid;

use crate::cli::operator::{self, Column, print_json, print_table, text};
use crate::cli::output::print_line;

/// Arguments of `jetway sessions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the live sessions, the oldest first
    List(operator::ListArgs),
    /// Show all that is known of one
    Show {
        /// Its id, as it stands in the list, the log and the audit
        id: Uuid,
        /// Which gateway
        #[command(flatten)]
        operator: operator::Args,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// End one; its token is spent
    End {
        /// Its id, as it stands in the list, the log and the audit
        id: Uuid,
        /// Which gateway
        #[command(flatten)]
        operator: operator::Args,
    },
}

/// Asks a gateway for its sessions, or tells it to end one.
///
/// # Errors
/// The gateway cannot be reached or says no, or there is no such session.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::List(list) => list.print(PATH, &COLUMNS),
        Command::Show { id, operator, json } => {
            let sessions = operator.ask(Method::GET, PATH, None)?;
            let mut sessions = sessions.as_array().context("no list")?.iter();
            let session = sessions.find(|session| session["id"] == id.to_string());
            let session = session.context("there is no such live session")?;
            if *json {
                return print_json(session);
            }
            let mut fields = Vec::new();
            flatten("", session, &mut fields);
            print_table(&fields, &FIELDS)
        }
        Command::End { id, operator } => {
            operator.ask(Method::DELETE, &format!("{PATH}/{id}"), None)?;
            Ok(print_line("ended")?)
        }
    }
}

const PATH: &str = "/jet/sessions";

const COLUMNS: [Column; 8] = [
    ("ID", |row| text(row, "id")),
    ("USER", |row| text(row, "user")),
    ("CLIENT", |row| text(row, "peer")),
    ("TARGET", |row| text(row, "target")),
    ("PHASE", |row| text(row, "phase")),
    ("SECONDS", |row| text(row, "duration_s")),
    ("TO TARGET", |row| bytes(&row["bytes_to_target"])),
    ("TO CLIENT", |row| bytes(&row["bytes_to_client"])),
];

const FIELDS: [Column; 2] = [
    ("FIELD", |row| text(row, "field")),
    ("VALUE", |row| text(row, "value")),
];

/// One row for each value, by the path of its name.
fn flatten(name: &str, value: &Value, rows: &mut Vec<Value>) {
    let Value::Object(fields) = value else {
        rows.push(serde_json::json!({ "field": name, "value": value }));
        return;
    };
    for (field, value) in fields {
        let name = if name.is_empty() {
            field.clone()
        } else {
            format!("{name}.{field}")
        };
        flatten(&name, value, rows);
    }
}

/// A number of bytes for people.
fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_u64() else {
        return "-".to_owned();
    };
    let (mut whole, mut tenths, mut unit) = (bytes, 0, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if whole < 1024 {
            break;
        }
        (whole, tenths, unit) = (whole / 1024, whole % 1024 * 10 / 1024, next);
    }
    if unit == "B" {
        return format!("{whole} B");
    }
    format!("{whole}.{tenths} {unit}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_are_told_in_the_largest_unit_that_has_one() {
        for (number, told) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 * 1024, "1.5 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(&json!(number)), told);
        }
        assert_eq!(bytes(&Value::Null), "-");
    }
}
