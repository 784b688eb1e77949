//! What commands of an operator have in common: which gateway, whose API key, and how an answer is shown.

use std::path::PathBuf;

use anyhow::Context;
use hyper::{Method, Uri};
use serde_json::Value;

use crate::base::escape;
use crate::cli::output::print_line;
use crate::cli::secret_file;
use crate::limits;
use crate::peer::Site;

/// A gateway, and who asks it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the gateway is: https://HOST:PORT, or http://127.0.0.1:PORT on its own machine
    #[arg(long, env = "JETWAY_GATEWAY")]
    pub gateway: Uri,
    /// File with an API key; - reads standard input
    #[arg(long, value_name = "FILE", env = "JETWAY_KEY_FILE")]
    pub key_file: PathBuf,
    /// Trust the certificates in this PEM file instead of the system's: authorities, or the gateway's own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl Args {
    /// Asks the gateway, or tells it something; no answer is null.
    ///
    /// # Errors
    /// The gateway cannot be reached, or says no: its reason is in the message.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let key = secret_file::read(&self.key_file, &mut std::io::stdin().lock())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let gateway = Site::new(&self.gateway, self.ca.as_deref())?;
        let gateway = gateway.with_answers_of(limits::API_ANSWER_BYTES);
        let body = body.map(Value::to_string).unwrap_or_default();
        runtime.block_on(gateway.request(method, path, key.trim(), body))
    }
}

/// A gateway whose list is asked for, and for whom it is.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Which gateway
    #[command(flatten)]
    pub operator: Args,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

impl ListArgs {
    /// Prints the list at `path`.
    ///
    /// # Errors
    /// The gateway cannot be reached, says no, or answers with something else.
    pub(super) fn print(&self, path: &str, columns: &[Column]) -> anyhow::Result<()> {
        let rows = self.operator.ask(Method::GET, path, None)?;
        if self.json {
            return print_json(&rows);
        }
        print_table(rows.as_array().context("no list")?, columns)
    }
}

/// Prints an answer as it is, for programs.
///
/// # Errors
/// Standard output is closed or full.
pub(super) fn print_json(answer: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(answer)?;
    Ok(print_line(&escape::json(&text))?)
}

/// A column: its head, and what stands in it of a row.
pub(super) type Column = (&'static str, fn(&Value) -> String);

/// Prints `rows` as a table, for people. What a terminal would obey is escaped.
///
/// # Errors
/// Standard output is closed or full.
pub(super) fn print_table(rows: &[Value], columns: &[Column]) -> anyhow::Result<()> {
    for line in table(rows, columns) {
        print_line(&line)?;
    }
    Ok(())
}

fn table(rows: &[Value], columns: &[Column]) -> Vec<String> {
    let head = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cells = rows.iter().map(|row| {
        let cells = columns.iter().map(|(_, cell)| escaped(&cell(row)));
        cells.collect::<Vec<_>>()
    });
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let lines = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect()
}

/// On one line, whatever is in it.
fn escaped(text: &str) -> String {
    escape::lines(&text.replace('\n', "\\n"))
}

/// A field as text; nothing and null are a dash.
pub(super) fn text(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_row_whatever_a_user_is_called() {
        let rows = [
            json!({ "id": "1", "user": "alice\u{1b}[2J\nbob\u{202e}" }),
            json!({ "id": "12345", "user": null }),
        ];
        let columns: [Column; 2] = [
            ("ID", |row| text(row, "id")),
            ("USER", |row| text(row, "user")),
        ];
        let lines = table(&rows, &columns);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "ID     USER");
        assert_eq!(lines[2], "12345  -");
        assert!(lines[1].starts_with("1      alice"), "{lines:?}");
        assert!(!lines.concat().contains(escape::is_hidden), "{lines:?}");
    }
}
