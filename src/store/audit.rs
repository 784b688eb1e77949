//! The audit's files: lines of a chain ([`jetway_audit::chain`]) are added to one, by one thread, until it is large or old enough; then
//! it gets the number of its first line as its ending, and the chain goes on in the next.
//!
//! Whoever has something to record does not wait, unless it must not go on before the record is on disk ([`Audit::record_durably`]).
//! What cannot be written is kept and tried again every second. Where more waits than [`limits::AUDIT_QUEUE_BYTES`], further records are
//! lost, which is counted, and the count is a record of its own as soon as one can be written. Meanwhile [`Audit::health`] says what is
//! wrong.
//!
//! A process that is killed may leave half a line. It is cut off when the file is opened again, and a record says so.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use openssl::sha::sha256;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{error, info};

use jetway_audit::chain::{Body, Chain, Head};
use jetway_audit::record::{Event, Record};
use jetway_base::limits;
use jetway_io::{clock, private_file};

/// How often what has failed is tried again, and what was written is brought to the disk.
const TICK: Duration = Duration::from_secs(1);

/// Bytes written at once, at most, but for one line.
const BATCH_BYTES: usize = 1024 * 1024;

/// Where the audit is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file to which lines are added.
    pub path: PathBuf,
    /// A file is followed by another when it is so large, bytes.
    pub rotate_bytes: u64,
    /// Likewise when its first line is so old.
    pub rotate_after: Duration,
}

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file system.
    #[error("cannot write the audit to {path}: {error}")]
    Io {
        /// File.
        path: String,
        /// How.
        #[source]
        error: io::Error,
    },
    /// Another process has the file.
    #[error("the audit {path} is being written by another process")]
    InUse {
        /// File.
        path: String,
    },
    /// The path is of something else.
    #[error("the audit {path} is not a file")]
    NotAFile {
        /// Path.
        path: String,
    },
    /// What stands at the end of the file is no record: nothing can follow from it.
    #[error(
        "the last line of the audit {path} is not a record; move the file away, and keep it: somebody has changed it"
    )]
    NotARecord {
        /// File.
        path: String,
    },
    /// The thread could not be started.
    #[error("cannot start the audit's thread: {0}")]
    Thread(#[source] io::Error),
}

/// How it is with the audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing can be written at present.
    pub failing: Option<String>,
    /// Records lost since the start.
    pub lost: u64,
    /// Records written since the start.
    pub written: u64,
    /// Number and digest of the last line.
    pub head: String,
    /// The same of the last line that is on disk, whatever happens to the machine.
    pub synced: Option<Head>,
}

/// The audit of a process. Dropped, it writes what waits and ends the file in order.
#[derive(Debug)]
pub struct Audit {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    bytes: usize,
    /// Lost since a record last said so.
    lost: u64,
    ending: bool,
}

#[derive(Debug)]
struct Entry {
    body: Body,
    /// Since the Unix epoch.
    time: Duration,
    /// Who waits for it to be on disk.
    written: Option<oneshot::Sender<()>>,
}

impl Entry {
    fn now(record: &Record) -> Self {
        Self {
            body: Body::of(record),
            time: clock::since_epoch(),
            written: None,
        }
    }
}

/// A record is not on disk, and what it is of must not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit cannot be written: {0}")]
pub struct NotWritten(pub String);

impl Audit {
    /// Opens the file, or makes it, and goes on behind its last line. `known` is the last line that was on disk when the gateway ran
    /// before: where the files lack it, a record says so, and the chain goes on behind it, so that the gap shows.
    ///
    /// # Errors
    /// See [`AuditError`].
    pub fn open(settings: AuditSettings, known: Option<Head>) -> Result<Self, AuditError> {
        let writer = Writer::open(settings, known)?;
        let shared = Arc::new(Shared::default());
        shared.health().head = writer.chain.head().to_string();
        shared.health().synced = Some(writer.chain.head());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || of_thread.run(writer))
            .map_err(AuditError::Thread)?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Takes a record. It is written within a moment.
    pub fn record(&self, record: &Record) {
        let _taken = self.shared.push(Entry::now(record));
    }

    /// Takes a record; ready when it is on disk.
    ///
    /// # Errors
    /// It cannot be written now, and will not be.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the record to be written.
    pub async fn record_durably(&self, record: &Record) -> Result<(), NotWritten> {
        let (sender, written) = oneshot::channel();
        let entry = Entry {
            written: Some(sender),
            ..Entry::now(record)
        };
        let failing = || {
            let failing = self.health().failing;
            NotWritten(failing.unwrap_or_else(|| "too many records wait".to_owned()))
        };
        if !self.shared.push(entry) {
            return Err(failing());
        }
        written.await.map_err(|_| failing())
    }

    /// How it is with the audit.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health().clone()
    }

    /// Writes what waits and ends the file in order; nothing is recorded after that.
    pub fn close(&self) {
        self.shared.waiting().ending = true;
        self.shared.changed.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ended = thread.join();
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    fn push(&self, entry: Entry) -> bool {
        let mut waiting = self.waiting();
        let bytes = waiting.bytes.saturating_add(entry.body.bytes());
        if bytes > limits::AUDIT_QUEUE_BYTES || waiting.ending {
            waiting.lost = waiting.lost.saturating_add(1);
            drop(waiting);
            let mut health = self.health();
            health.lost = health.lost.saturating_add(1);
            return false;
        }
        waiting.bytes = bytes;
        waiting.entries.push(entry);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// Writes until the end.
    fn run(&self, mut writer: Writer) {
        let mut held: Vec<Entry> = Vec::new();
        loop {
            let ending = {
                let mut waiting = self.waiting();
                let idle = waiting.entries.is_empty() && !waiting.ending;
                // What has failed is not tried again at once.
                if idle || (!held.is_empty() && !waiting.ending) {
                    let waited = self.changed.wait_timeout_while(waiting, TICK, |waiting| {
                        !waiting.ending && (waiting.entries.is_empty() || !held.is_empty())
                    });
                    (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
                }
                held.append(&mut waiting.entries);
                if held.is_empty() {
                    waiting.bytes = 0;
                }
                if waiting.lost > 0 {
                    let detail = json!({ "records": waiting.lost });
                    held.push(Entry::now(&of_the_audit(Event::AuditLost, detail)));
                    waiting.lost = 0;
                }
                waiting.ending
            };
            self.write(&mut writer, &mut held);
            if ending {
                if held.is_empty() && !writer.ended {
                    let ended = writer.end();
                    if ended.is_ok() {
                        self.health().synced = Some(writer.chain.head());
                    }
                    self.set_failing(ended);
                }
                return;
            }
        }
    }

    /// Writes `held`, as far as that can be done.
    fn write(&self, writer: &mut Writer, held: &mut Vec<Entry>) {
        let now = clock::since_epoch();
        let mut result = writer.look(now);
        if result.is_ok() {
            result = writer.rotate_if_due(now);
        }
        while result.is_ok() && !held.is_empty() {
            let mut bytes = 0_usize;
            let batch = held.iter().take_while(|entry| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(entry.body.bytes());
                first || bytes <= BATCH_BYTES
            });
            let count = batch.count();
            let durable = held.iter().take(count).any(|entry| entry.written.is_some());
            result = writer.append(held.iter().take(count));
            if result.is_ok() && durable {
                result = writer.sync();
            }
            if result.is_ok() {
                let mut gone = 0_usize;
                for entry in held.drain(..count) {
                    gone = gone.saturating_add(entry.body.bytes());
                    if let Some(written) = entry.written {
                        let _whoever_waits = written.send(());
                    }
                }
                let mut waiting = self.waiting();
                waiting.bytes = waiting.bytes.saturating_sub(gone);
                drop(waiting);
                let mut health = self.health();
                let count = u64::try_from(count).unwrap_or(0);
                health.written = health.written.saturating_add(count);
                health.head = writer.chain.head().to_string();
                drop(health);
                result = writer.rotate_if_due(now);
            }
        }
        if result.is_ok() && held.is_empty() {
            result = writer.sync_now_and_then(clock::now());
        }
        let failed = result.is_err();
        if writer.dirty.is_none() {
            self.health().synced = Some(writer.chain.head());
        }
        // Whoever waits asks for it.
        self.set_failing(result);
        if failed {
            // What these are of does not go on: it did not happen.
            let mut waiting = self.waiting();
            held.retain(|entry| {
                if entry.written.is_some() {
                    waiting.bytes = waiting.bytes.saturating_sub(entry.body.bytes());
                }
                entry.written.is_none()
            });
        }
    }

    /// Notes how it is with the audit.
    fn set_failing(&self, result: io::Result<()>) {
        let failing = result.err().map(|error| error.to_string());
        let mut health = self.health();
        if health.failing == failing {
            return;
        }
        match &failing {
            Some(reason) => error!(reason, "Cannot write the audit; trying again"),
            None => info!(lost = health.lost, "The audit is written again"),
        }
        health.failing = failing;
    }
}

/// The file that lines are added to.
#[derive(Debug)]
struct Writer {
    settings: AuditSettings,
    file: File,
    chain: Chain,
    /// Bytes of whole lines.
    length: u64,
    /// Number of the first line.
    first: u64,
    /// When the file was begun, since the Unix epoch.
    begun: Duration,
    /// There may be something behind `length`.
    torn: bool,
    /// Lines were written that may not be on disk, and since when.
    dirty: Option<Instant>,
    /// The last line of the file is written: the chain goes on in another.
    ended: bool,
}

/// What a later start needs to know of a line.
#[derive(Deserialize)]
struct Place {
    sequence: u64,
    event: String,
    #[serde(default)]
    detail: Value,
}

/// The name of the file that begins with the line `first`, when another one follows it.
fn rotated(path: &Path, first: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{first:012}"));
    name.into()
}

/// All files of an audit, the oldest first; `path` itself last, if it is there.
///
/// # Errors
/// Its folder cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut numbered: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let number = found
            .strip_prefix(&*name)
            .and_then(|rest| rest.strip_prefix('.'));
        let number = number.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit()));
        if let Some(Ok(number)) = number.map(str::parse)
            && entry.file_type()?.is_file()
        {
            numbered.push((number, entry.path()));
        }
    }
    numbered.sort();
    let mut files: Vec<PathBuf> = numbered.into_iter().map(|(_, path)| path).collect();
    if path.is_file() {
        files.push(path.to_owned());
    }
    Ok(files)
}

/// Whether `path` can be the file of an audit, as far as that can be seen before it is opened.
///
/// # Errors
/// Something else is there.
pub fn check(path: &Path) -> Result<(), AuditError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(AuditError::NotAFile {
            path: path.display().to_string(),
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Writer {
    fn open(settings: AuditSettings, known: Option<Head>) -> Result<Self, AuditError> {
        let path = settings.path.clone();
        let named = || path.display().to_string();
        let failed = |error| AuditError::Io {
            path: named(),
            error,
        };
        check(&path)?;
        private_file::warn_if_open(&path, "The audit");
        let open = |path: &Path| {
            private_file::options()
                .read(true)
                .append(true)
                .create(true)
                .open(path)
        };
        let mut file = open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(AuditError::InUse { path: named() }),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let tail = Tail::of(&mut file).map_err(failed)?;
        let not_a_record = |path: &Path| AuditError::NotARecord {
            path: path.display().to_string(),
        };
        if tail.is_garbage {
            return Err(not_a_record(&path));
        }
        let before = match &tail.line {
            Some(line) => head_of(line).ok_or_else(|| not_a_record(&path))?,
            // The chain goes on where the last file has ended.
            None => {
                let older = files(&path).map_err(failed)?;
                let older = older.iter().rev().find(|older| **older != path);
                match older {
                    Some(older) => {
                        let mut file = File::open(older).map_err(failed)?;
                        let line = Tail::of(&mut file).map_err(failed)?.line;
                        let head = line.as_deref().and_then(head_of);
                        head.ok_or_else(|| not_a_record(older))?
                    }
                    None => Head::START,
                }
            }
        };
        let missing = match known {
            Some(known) if !holds(&path, &known).map_err(failed)? => Some(known),
            Some(_) | None => None,
        };
        let found = before;
        // What is missing shows by the numbers, whoever verifies the rest.
        let before = missing.map_or(before, |known| {
            if known.sequence > before.sequence {
                known
            } else {
                before
            }
        });
        let begins = tail.line.is_none();
        let first_line = first_line(&mut file).map_err(failed)?;
        let place: Option<Place> = first_line.and_then(|line| serde_json::from_slice(&line).ok());
        let begun = place
            .as_ref()
            .and_then(|place| place.detail.get("unix_s")?.as_u64());
        let mut writer = Self {
            settings,
            file,
            chain: Chain::behind(before),
            length: tail.length,
            first: place.map_or(before.sequence.saturating_add(1), |place| place.sequence),
            begun: begun.map_or_else(clock::since_epoch, Duration::from_secs),
            torn: tail.torn.is_some(),
            dirty: None,
            ended: false,
        };
        if begins {
            writer.begin(clock::since_epoch()).map_err(failed)?;
        }
        if let Some(known) = missing {
            error!(%known, %found, "The audit's files lack a record that was there when the gateway ran last; going on behind it");
            let detail = json!({ "known": known.to_string(), "found": found.to_string() });
            let record = of_the_audit(Event::AuditRecovered, detail);
            writer.append([&Entry::now(&record)]).map_err(failed)?;
        }
        if let Some(torn) = &tail.torn {
            let detail = json!({
                "bytes": torn.len(),
                "sha256": hex::encode(sha256(torn)),
            });
            let record = of_the_audit(Event::AuditRecovered, detail);
            writer.append([&Entry::now(&record)]).map_err(failed)?;
        }
        writer.sync().map_err(failed)?;
        Ok(writer)
    }

    /// The first line of a file.
    fn begin(&mut self, now: Duration) -> io::Result<()> {
        self.first = self.chain.head().sequence.saturating_add(1);
        self.begun = now;
        let detail = json!({ "unix_s": now.as_secs() });
        self.append([&Entry::now(&of_the_audit(Event::AuditOpened, detail))])
    }

    /// Adds lines: all of them, or none.
    fn append<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        let mut chain = self.chain;
        let mut text = String::new();
        for entry in entries {
            text.push_str(&chain.line(&entry.body, entry.time));
            text.push('\n');
        }
        self.torn = true;
        self.file.write_all(text.as_bytes())?;
        self.torn = false;
        self.chain = chain;
        self.length = self
            .length
            .saturating_add(u64::try_from(text.len()).unwrap_or(0));
        self.dirty.get_or_insert_with(clock::now);
        Ok(())
    }

    /// Brings what was written to the disk.
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.dirty = None;
        Ok(())
    }

    fn sync_now_and_then(&mut self, now: Instant) -> io::Result<()> {
        match self.dirty {
            Some(since) if now.saturating_duration_since(since) >= TICK => self.sync(),
            Some(_) | None => Ok(()),
        }
    }

    /// Goes on in another file, if this one is large or old enough.
    fn rotate_if_due(&mut self, now: Duration) -> io::Result<()> {
        let old = now.saturating_sub(self.begun) >= self.settings.rotate_after;
        // Two lines are those of a file in which nothing was recorded.
        let used = self.chain.head().sequence.saturating_sub(self.first) >= 2;
        if self.length < self.settings.rotate_bytes && !(old && used) {
            return Ok(());
        }
        if !self.ended {
            self.end()?;
            self.ended = true;
        }
        let aside = rotated(&self.settings.path, self.first);
        if self.is_in_place()? {
            rename_new(&self.settings.path, &aside)?;
        }
        self.begin_file(now)
    }

    /// Goes on in a new file.
    fn begin_file(&mut self, now: Duration) -> io::Result<()> {
        let file = private_file::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(&self.settings.path)?;
        file.try_lock().map_err(io::Error::from)?;
        self.file = file;
        self.length = 0;
        self.torn = false;
        self.ended = false;
        self.begin(now)
    }

    /// Whether the file is where it was opened.
    fn is_in_place(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::metadata(&self.settings.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sees what somebody else has done to the file: removed, it is begun anew, and the chain goes on there, so that it shows; longer or
    /// shorter than it was, a record says so.
    fn look(&mut self, now: Duration) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        if !self.is_in_place()? {
            error!(head = %self.chain.head(), "The audit's file was removed or replaced; going on in a new one");
            let detail = json!({ "removed": true });
            self.begin_file(now)?;
            return self.append([&Entry::now(&of_the_audit(Event::AuditRecovered, detail))]);
        }
        let found = self.file.metadata()?.len();
        if found == self.length || self.torn {
            return Ok(());
        }
        error!(
            expected = self.length,
            found, "The audit's file was changed by somebody else"
        );
        let detail = json!({ "expected_bytes": self.length, "found_bytes": found });
        self.length = found;
        if Tail::of(&mut self.file)?.torn.is_some() {
            // Not to be the rest of a line of theirs.
            self.file.write_all(b"\n")?;
            self.length = found.saturating_add(1);
        }
        self.append([&Entry::now(&of_the_audit(Event::AuditRecovered, detail))])
    }

    /// The last line of a file, and where the chain is then.
    fn end(&mut self) -> io::Result<()> {
        let record = of_the_audit(Event::AuditClosed, Value::Null);
        self.append([&Entry::now(&record)])?;
        self.sync()?;
        info!(head = %self.chain.head(), "Audit file closed");
        Ok(())
    }
}

/// Whether the audit has the line that `head` is behind.
fn holds(path: &Path, head: &Head) -> io::Result<bool> {
    if *head == Head::START {
        return Ok(true);
    }
    for path in files(path)?.iter().rev() {
        let mut file = File::open(path)?;
        let first = first_line(&mut file)?;
        let first: Option<Place> = first.and_then(|line| serde_json::from_slice(&line).ok());
        if first.is_none_or(|first| first.sequence > head.sequence) {
            continue;
        }
        file.rewind()?;
        return holds_line(file, head);
    }
    Ok(false)
}

fn holds_line(file: File, head: &Head) -> io::Result<bool> {
    let number = format!("\"sequence\":{},", head.sequence);
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    // What is longer than a line is none, and is read in pieces.
    let most = u64::try_from(limits::AUDIT_LINE_BYTES + 1).unwrap_or(u64::MAX);
    while (&mut lines).take(most).read_until(b'\n', &mut line)? > 0 {
        let whole = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut parts = whole.windows(number.len());
        if parts.any(|part| part == number.as_bytes()) && head_of(whole).as_ref() == Some(head) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// Renames a file to a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
        Ok(rustix::fs::renameat_with(here, from, here, to, flags)?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        if to.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(from, to)
    }
}

/// A record of the audit itself.
fn of_the_audit(event: Event, detail: Value) -> Record {
    Record {
        detail,
        ..Record::new(event)
    }
}

/// Where the chain is behind a line.
fn head_of(line: &[u8]) -> Option<Head> {
    let place: Place = serde_json::from_slice(line).ok()?;
    (!place.event.is_empty()).then(|| Head::behind(place.sequence, line))
}

/// The end of a file.
struct Tail {
    /// The last whole line, without its line feed.
    line: Option<Vec<u8>>,
    /// Bytes of whole lines.
    length: u64,
    /// What is behind them.
    torn: Option<Vec<u8>>,
    /// What is behind them is longer than a line can be.
    is_garbage: bool,
}

impl Tail {
    /// Of which no more is read than two lines have.
    fn of(file: &mut File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let most = u64::try_from(2 * (limits::AUDIT_LINE_BYTES + 1)).unwrap_or(u64::MAX);
        let from = length.saturating_sub(most);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(length.saturating_sub(from))
            .read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let torn = bytes.split_off(whole);
        bytes.pop();
        let line = bytes
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        Ok(Self {
            line: (!line.is_empty()).then(|| line.to_vec()),
            length: length.saturating_sub(u64::try_from(torn.len()).unwrap_or(0)),
            is_garbage: torn.len() > limits::AUDIT_LINE_BYTES,
            torn: (!torn.is_empty()).then_some(torn),
        })
    }
}

fn first_line(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    let most = u64::try_from(limits::AUDIT_LINE_BYTES + 1).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut bytes)?;
    let line = bytes.iter().position(|byte| *byte == b'\n');
    Ok(line.and_then(|end| Some(bytes.get(..end)?.to_vec())))
}

#[cfg(test)]
mod tests {
    use jetway_audit::verify::Verifier;

    use super::*;

    fn settings(folder: &Path) -> AuditSettings {
        AuditSettings {
            path: folder.join("audit.jsonl"),
            rotate_bytes: 64 * 1024 * 1024,
            rotate_after: Duration::from_secs(86_400),
        }
    }

    fn record(number: usize) -> Record {
        Record {
            reason: Some(format!("reason {number}")),
            ..Record::new(Event::SessionRefused)
        }
    }

    /// All lines of an audit, which is whole.
    fn lines(path: &Path) -> Vec<Value> {
        let mut verifier = Verifier::new(None, None);
        let mut lines = Vec::new();
        for file in files(path).unwrap() {
            let text = fs::read(&file).unwrap();
            for line in text
                .strip_suffix(b"\n")
                .unwrap()
                .split(|byte| *byte == b'\n')
            {
                verifier.line(line).unwrap();
                lines.push(serde_json::from_slice(line).unwrap());
            }
        }
        lines
    }

    fn events(path: &Path) -> Vec<String> {
        lines(path)
            .iter()
            .map(|line| line["event"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn what_is_missing_since_the_last_run_is_noticed_and_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let settings = AuditSettings {
            path: path.clone(),
            rotate_bytes: 1 << 20,
            rotate_after: Duration::from_secs(3600),
        };
        let run = |known| {
            let audit = Audit::open(settings.clone(), known).unwrap();
            for _ in 0..3 {
                audit.record(&Record::new(Event::GatewayStarted));
            }
            audit.close();
            audit.health().synced
        };
        let recovered = || {
            fs::read_to_string(&path)
                .unwrap()
                .matches("audit.recovered")
                .count()
        };
        let first = run(None);
        let second = run(first);
        assert_eq!(recovered(), 0);
        // A process that was killed had written more than it had told.
        let third = run(first);
        assert_eq!(recovered(), 0);

        // Lines are taken from the end, and others are written in their place.
        let text = fs::read_to_string(&path).unwrap();
        let cut: Vec<&str> = text.lines().take(6).collect();
        fs::write(&path, cut.join("\n") + "\n").unwrap();
        let fourth = run(third);
        assert_eq!(recovered(), 1);
        let last = third.unwrap().sequence;
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("\"known\":\"{last}:")), "{text}");
        assert!(
            text.contains(&format!("\"sequence\":{},", last + 1)),
            "{text}"
        );
        assert!(second.unwrap().sequence < last && last < fourth.unwrap().sequence);

        // All of it is gone.
        fs::remove_file(&path).unwrap();
        run(fourth);
        assert_eq!(recovered(), 1);
        let last = fourth.unwrap().sequence;
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(&format!("\"sequence\":{},", last + 1)),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_chain_goes_on_through_restarts_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings {
            rotate_bytes: 4096,
            ..settings(folder.path())
        };
        for start in 0..3 {
            let audit = Audit::open(settings.clone(), None).unwrap();
            for number in 0..20 {
                audit
                    .record_durably(&record(start * 20 + number))
                    .await
                    .unwrap();
            }
            assert_eq!(audit.health().failing, None);
        }
        let reasons: Vec<String> = lines(&settings.path)
            .iter()
            .filter_map(|line| Some(line["reason"].as_str()?.to_owned()))
            .collect();
        let expected: Vec<String> = (0..60).map(|number| format!("reason {number}")).collect();
        assert_eq!(reasons, expected);
        let files = files(&settings.path).unwrap();
        assert!(files.len() > 3, "{files:?}");
        for file in &files {
            assert!(!private_file::is_open(file));
            let text = fs::read_to_string(file).unwrap();
            assert!(text.starts_with("{\"version\":1,") && text.len() < 8192);
            let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            assert_eq!(first["event"], "audit.opened");
        }
    }

    #[tokio::test]
    async fn a_file_is_followed_by_another_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings {
            rotate_after: Duration::ZERO,
            ..settings(folder.path())
        };
        let audit = Audit::open(settings.clone(), None).unwrap();
        audit.record_durably(&record(0)).await.unwrap();
        audit.record_durably(&record(1)).await.unwrap();
        audit.record_durably(&record(2)).await.unwrap();
        drop(audit);
        assert!(files(&settings.path).unwrap().len() > 1);
        lines(&settings.path);
    }

    #[tokio::test]
    async fn half_a_line_is_cut_off_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Audit::open(settings.clone(), None)
            .unwrap()
            .record_durably(&record(1))
            .await
            .unwrap();
        let whole = fs::read(&settings.path).unwrap();
        for cut in [1, 10, 200] {
            fs::write(&settings.path, &whole[..whole.len() - cut]).unwrap();
            drop(Audit::open(settings.clone(), None).unwrap());
            let events = events(&settings.path);
            assert_eq!(
                events[events.len() - 2..],
                ["audit.recovered", "audit.closed"]
            );
        }
    }

    #[test]
    fn what_somebody_has_changed_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        drop(Audit::open(settings.clone(), None).unwrap());
        let mut text = fs::read_to_string(&settings.path).unwrap();
        text.push_str("no record\n");
        fs::write(&settings.path, text).unwrap();
        let error = Audit::open(settings.clone(), None).unwrap_err();
        assert!(matches!(error, AuditError::NotARecord { .. }), "{error}");
        fs::remove_file(&settings.path).unwrap();
        let _first = Audit::open(settings.clone(), None).unwrap();
        let error = Audit::open(settings, None).unwrap_err();
        assert!(matches!(error, AuditError::InUse { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_done_to_the_file_while_it_is_written_shows() {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings {
            rotate_bytes: 2000,
            ..settings(folder.path())
        };
        let audit = Audit::open(settings.clone(), None).unwrap();
        audit.record_durably(&record(0)).await.unwrap();
        // It is shown neither to go on nor to be whole where it was removed.
        fs::remove_file(&settings.path).unwrap();
        audit.record_durably(&record(1)).await.unwrap();
        let text = fs::read_to_string(&settings.path).unwrap();
        assert!(
            text.contains("audit.recovered") && text.contains("reason 1"),
            "{text}"
        );
        let mut verifier = Verifier::new(None, None);
        assert!(
            verifier
                .line(text.lines().next().unwrap().as_bytes())
                .is_err()
        );
        // Half a line of somebody else does not take ours with it.
        let mut theirs = fs::OpenOptions::new()
            .append(true)
            .open(&settings.path)
            .unwrap();
        theirs.write_all(b"{\"half\":").unwrap();
        audit.record_durably(&record(2)).await.unwrap();
        let text = fs::read_to_string(&settings.path).unwrap();
        assert!(text.lines().any(|line| line == "{\"half\":"), "{text}");
        assert!(
            text.contains("found_bytes") && text.contains("reason 2"),
            "{text}"
        );
        // Nor is a file of theirs written over when this one gets its name.
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let aside = rotated(&settings.path, first["sequence"].as_u64().unwrap());
        fs::write(&aside, "theirs").unwrap();
        let mut number = 3;
        while audit.health().failing.is_none() && number < 100 {
            audit.record(&record(number));
            tokio::time::sleep(Duration::from_millis(20)).await;
            number += 1;
        }
        assert!(audit.health().failing.is_some());
        assert_eq!(fs::read_to_string(&aside).unwrap(), "theirs");
        fs::remove_file(&aside).unwrap();
        while audit.health().failing.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[test]
    fn what_is_no_audit_is_not_written_behind() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        drop(Audit::open(settings.clone(), None).unwrap());
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&settings.path)
            .unwrap();
        file.write_all(&vec![0; 100_000]).unwrap();
        let error = Audit::open(settings, None).unwrap_err();
        assert!(matches!(error, AuditError::NotARecord { .. }), "{error}");
        let settings = AuditSettings {
            path: "/dev/full".into(),
            rotate_bytes: 1,
            rotate_after: Duration::ZERO,
        };
        let error = Audit::open(settings, None).unwrap_err();
        assert!(matches!(error, AuditError::NotAFile { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_kept_counted_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let audit = Audit::open(settings.clone(), None).unwrap();
        audit.record_durably(&record(0)).await.unwrap();
        // A disk that is full, as far as this process goes.
        let limit = rustix::process::Resource::Fsize;
        let before = rustix::process::getrlimit(limit);
        let length = fs::metadata(&settings.path).unwrap().len();
        // Its signal would end the process.
        let over_limit = tokio::signal::unix::SignalKind::from_raw(25);
        let _ignored = tokio::signal::unix::signal(over_limit).unwrap();
        rustix::process::setrlimit(
            limit,
            rustix::process::Rlimit {
                current: Some(length + 100),
                ..before
            },
        )
        .unwrap();
        audit.record(&record(1));
        let refused = audit.record_durably(&record(2)).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("the audit cannot be written: "),
            "{refused}"
        );
        assert!(audit.health().failing.is_some());
        let long = Record {
            reason: Some("x".repeat(30_000)),
            ..record(3)
        };
        for _ in 0..limits::AUDIT_QUEUE_BYTES / 30_000 + 10 {
            audit.record(&long);
        }
        assert!(audit.health().lost > 0);
        let refused = audit.record_durably(&record(2)).await;
        assert!(refused.is_err());
        rustix::process::setrlimit(limit, before).unwrap();
        while audit.health().failing.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        audit.record_durably(&record(4)).await.unwrap();
        drop(audit);
        let lines = lines(&settings.path);
        let reasons: Vec<&str> = lines
            .iter()
            .filter_map(|line| line["reason"].as_str())
            .collect();
        assert_eq!(reasons.first(), Some(&"reason 0"));
        assert_eq!(reasons.get(1), Some(&"reason 1"));
        assert_eq!(reasons.last(), Some(&"reason 4"));
        assert!(!reasons.contains(&"reason 2"), "it did not happen");
        let lost = lines
            .iter()
            .find(|line| line["event"] == "audit.lost")
            .unwrap();
        assert!(lost["detail"]["records"].as_u64().unwrap() > 0);
    }
}
