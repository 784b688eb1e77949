//! Lines on their way to standard error: a bounded queue, and the one thread that writes.
//!
//! Nobody who logs ever waits for who reads the log. Where the queue is full, lines are dropped and counted, and the count is
//! a line of its own as soon as there is room.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::filter::LineFilter;
use jetway_base::{escape, limits};
use jetway_metrics::METRICS;

/// How often the thread looks for counts that are to be told.
const TICK: Duration = Duration::from_secs(1);

/// At the end of the process: how long a reader is waited for that does not read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// After a write that found no room, where standard error does not block: until the next one.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// For whom the lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object each; what a terminal would obey is escaped here, as JSON does it.
    Json,
    /// Fields were escaped when they were written.
    Human,
}

/// The lines that wait.
#[derive(Debug)]
pub struct Queue {
    form: Form,
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    /// The thread that tells how many were lost: its line is not lost for want of room.
    teller: Option<ThreadId>,
    ending: bool,
}

impl QueueState {
    /// Counts a line that nobody will read.
    fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
        METRICS.log_lost.inc();
    }
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self {
            form,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, whole.
    pub fn push(&self, line: &[u8]) {
        let line = match (self.form, str::from_utf8(line)) {
            (Form::Json, Ok(text)) if text.contains(|c| c != '\n' && escape::is_hidden(c)) => {
                escape::json(text).into_bytes()
            }
            (Form::Json | Form::Human, _) => line.to_owned(),
        };
        let mut state = self.state();
        let bytes = state.bytes.saturating_add(line.len());
        let full = bytes > limits::LOG_QUEUE_BYTES;
        if full && state.teller != Some(thread::current().id()) {
            state.lose();
            return;
        }
        state.bytes = bytes;
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for lines, for a moment.
    fn take(&self) -> Taken {
        let mut state = self.state();
        if state.lines.is_empty() && !state.ending {
            let waited = self.changed.wait_timeout(state, TICK);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let lines = std::mem::take(&mut state.lines);
        state.bytes = 0;
        Taken {
            lines,
            ending: state.ending,
        }
    }

    /// Tells how many lines were lost, as a line.
    fn report_lost(&self) {
        let lost = {
            let mut state = self.state();
            state.teller = Some(thread::current().id());
            std::mem::take(&mut state.lost)
        };
        if lost > 0 {
            tracing::error!(
                log = true,
                lines = lost,
                "Log lines lost, because nobody took them in time"
            );
        }
        self.state().teller = None;
    }
}

struct Taken {
    lines: VecDeque<Vec<u8>>,
    ending: bool,
}

/// Dropped at the end of a command: writes what waits, with the last counts of what is missing.
#[derive(Debug)]
#[must_use = "lines that wait are written when it is dropped"]
pub struct Guard {
    queue: Arc<Queue>,
    ended: mpsc::Receiver<()>,
}

impl Guard {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(queue: Arc<Queue>, limit: LineFilter, out: File) -> io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let lines = Arc::clone(&queue);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                write_all(&lines, &limit, out);
                drop(end);
            })?;
        Ok(Self { queue, ended })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.queue.state().ending = true;
        self.queue.changed.notify_one();
        // A reader that is stuck does not hold up the end of the process.
        let _ended = self.ended.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// The thread.
fn write_all(queue: &Queue, limit: &LineFilter, mut out: File) {
    loop {
        let Taken { lines, ending } = queue.take();
        for line in lines {
            if write_line(&mut out, &line).is_err() {
                queue.state().lose();
            }
        }
        queue.report_lost();
        limit.report(ending);
        if ending {
            // What was told just now is the last.
            for line in queue.take().lines {
                let _written = write_line(&mut out, &line);
            }
            return;
        }
    }
}

fn write_line(out: &mut File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares the terminal or the pipe may have made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_and_its_memory_is_bounded() {
        let queue = Queue::new(Form::Human);
        let line = [b'x'; 1000];
        let room = limits::LOG_QUEUE_BYTES / line.len();
        for _ in 0..room + 7 {
            queue.push(&line);
        }
        assert_eq!(queue.state().lost, 7);
        assert_eq!(queue.take().lines.len(), room);
        queue.push(&line);
        assert_eq!(queue.take().lines.len(), 1, "there is room again");
    }

    #[test]
    fn a_line_of_json_has_nothing_in_it_that_a_terminal_obeys() {
        let queue = Queue::new(Form::Json);
        queue.push("{\"origin\":\"\u{9b}2J\u{202e}\"}\n".as_bytes());
        let line = queue.take().lines.pop_front().unwrap();
        assert_eq!(line, b"{\"origin\":\"\\u009b2J\\u202e\"}\n");
    }
}
