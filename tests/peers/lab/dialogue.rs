//! A peer in another language that does what it is told: a line of JSON to its standard input, a line in return.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::process::Process;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Dialogue {
    name: String,
    /// Taken when there is nothing more to say.
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    process: Process,
}

impl Dialogue {
    /// Starts `command`; what it prints besides its answers goes to `<name>.log`.
    pub(crate) fn start(workspace: &Workspace, name: &str, command: &mut Command) -> Result<Self> {
        let (process, orders, printed) = Process::start_piped(workspace, name, command)?;
        let (told, answers) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(printed).lines();
            // The other end goes with the dialogue.
            lines
                .map_while(Result::ok)
                .all(|line| told.send(line).is_ok())
        });
        Ok(Self {
            name: name.to_owned(),
            orders: Some(orders),
            answers,
            process,
        })
    }

    /// Says `order` and waits for the answer.
    pub(crate) fn ask(&mut self, order: &Value) -> Result<Value> {
        let orders = self.orders.as_mut().context("the dialogue is over")?;
        writeln!(orders, "{order}").with_context(|| self.name.clone())?;
        self.answer().with_context(|| order.to_string())
    }

    /// Waits for an answer.
    pub(crate) fn answer(&mut self) -> Result<Value> {
        let line = self.answers.recv_timeout(PATIENCE_WITH_SCRIPTS);
        let Ok(line) = line else {
            bail!("{} does not answer: {}", self.name, self.process.output()?);
        };
        let mut answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        match answer.get_mut("answer") {
            Some(answer) => Ok(answer.take()),
            None => bail!("{}: {line}", self.name),
        }
    }

    /// Ends the dialogue and waits until the peer has ended by itself.
    pub(crate) fn end(&mut self) -> Result<()> {
        drop(self.orders.take());
        let status = self.process.wait(PATIENCE_WITH_SCRIPTS)?;
        if !status.success() {
            bail!("{}: {status}: {}", self.name, self.process.output()?);
        }
        Ok(())
    }
}

/// A browser starts in two seconds on an idle machine, and 64 MiB pass through it in as many.
const PATIENCE_WITH_SCRIPTS: Duration = Duration::from_secs(60);
