//! A gateway with a stage of its own, in one file and without a change in Jetway's: it counts what is sent over the clipboard, and
//! keeps a channel shut. All other commands and all of the configuration are Jetway's; with `session.inspect = "always"` no session
//! gets past the stage.
//!
//! ```sh
//! cargo run --manifest-path tests/plugin/Cargo.toml -- serve --config jetway.toml
//! ```

use std::sync::Arc;

use clap::Parser;
use jetway::cli::{Cli, Command, serve};
use jetway::gateway::live::registry::Session;
use jetway::gateway::live::stages::Stages;
use jetway::stage::{Event, Grounds, Interest, Stage, Verdict};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Serve(args) => serve::run_with(args, Some(Arc::new(Office))),
        _ => jetway::cli::run(cli),
    }
}

/// Gives each session its customs officer.
#[derive(Debug)]
pub struct Office;

impl Stages for Office {
    fn of(&self, session: &Session) -> Vec<Box<dyn Stage>> {
        vec![Box::new(Customs::new(session.id.to_string()))]
    }
}

/// Counts bytes of the clipboard, and lets nothing pass on the channel for sound.
#[derive(Debug)]
pub struct Customs {
    session: String,
    clipboard_bytes: usize,
}

impl Customs {
    /// For the session of this id.
    pub fn new(session: String) -> Self {
        Self {
            session,
            clipboard_bytes: 0,
        }
    }
}

impl Stage for Customs {
    fn name(&self) -> &'static str {
        "customs"
    }

    // A message can be withheld only if none of it has passed before it is judged.
    fn interest(&self, channel: &str) -> Interest {
        match channel {
            "cliprdr" => Interest::Observe,
            "rdpsnd" => Interest::Decide,
            _ => Interest::Ignore,
        }
    }

    fn decides(&self) -> bool {
        true
    }

    fn on_event(&mut self, event: &Event<'_>) -> Verdict {
        let Event::ChannelMessage { channel, data, .. } = event else {
            return Verdict::Forward;
        };
        match channel.name.as_str() {
            "cliprdr" => self.clipboard_bytes += data.len(),
            "rdpsnd" => {
                return Verdict::Deny {
                    answers: Vec::new(),
                    grounds: Grounds::new("no-sound", "this house is silent"),
                };
            }
            _ => {}
        }
        Verdict::Forward
    }
}

impl Drop for Customs {
    fn drop(&mut self) {
        let Self {
            session,
            clipboard_bytes,
        } = self;
        println!("{session}: {clipboard_bytes} bytes of clipboard");
    }
}
