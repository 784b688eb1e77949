//! A program whose standard input and output are a connection of the test.

use std::io::{Read, Write};
use std::process::{ChildStdin, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use jetway_lab::wait::{PATIENCE, until};

use super::process::Process;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Piped {
    input: Option<ChildStdin>,
    /// What it has printed and nobody has taken yet.
    printed: Arc<Mutex<Vec<u8>>>,
    process: Process,
}

impl Piped {
    /// Starts `command`; what it says of itself on standard error goes to `<name>.log`.
    pub(crate) fn start(workspace: &Workspace, name: &str, command: &mut Command) -> Result<Self> {
        let (process, input, mut output) = Process::start_piped(workspace, name, command)?;
        let printed = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&printed);
        thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
                collected.extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Self {
            input: Some(input),
            printed,
            process,
        })
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let input = self.input.as_mut().context("its input has ended")?;
        input.write_all(bytes.as_ref())?;
        Ok(input.flush()?)
    }

    /// Ends its input.
    pub(crate) fn finish(&mut self) {
        drop(self.input.take());
    }

    /// Waits until it has printed what `take` takes from the beginning.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        mut take: impl FnMut(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<T> {
        let taken = until(what, PATIENCE, || {
            let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((taken, length)) = take(&printed)? else {
                return Ok(None);
            };
            printed.drain(..length);
            Ok(Some(taken))
        });
        taken.with_context(|| {
            let printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
            format!("{:?}", String::from_utf8_lossy(&printed))
        })
    }

    /// Waits until it has printed `text`, and takes everything up to its end.
    pub(crate) fn wait_for_text(&mut self, text: &str) -> Result<()> {
        self.wait_for(text, |printed| {
            let mut windows = printed.windows(text.len());
            let found = windows.position(|window| window == text.as_bytes());
            Ok(found.map(|at| ((), at + text.len())))
        })
    }

    /// Waits until it has printed `text` and nothing before.
    pub(crate) fn expect(&mut self, text: &str) -> Result<()> {
        self.wait_for(text, |printed| {
            let so_far = printed.len().min(text.len());
            let (printed, wanted) = (&printed[..so_far], &text.as_bytes()[..so_far]);
            anyhow::ensure!(printed == wanted, "{:?}", String::from_utf8_lossy(printed));
            Ok((so_far == text.len()).then_some(((), so_far)))
        })
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
