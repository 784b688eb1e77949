//! The one file for what must survive a restart, written by one thread.
//!
//! Every write waits for the disk (`fsync`), so writes that arrive together share one transaction.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use tokio::sync::oneshot;

use jetway_base::time::UnixTime;
use jetway_entry::ticket::{SealedToken, TicketDigest};
use jetway_io::clock;
use jetway_io::private_file::{self, NotWritable};
use jetway_metrics::{METRICS, Outcome};
use jetway_policy::shares::Owner;
use jetway_token::TokenId;

/// Token id to (client address, keep until, ended at or [`NOT_ENDED`]), times in Unix seconds.
const USED_TOKENS: TableDefinition<'_, &str, (&str, u64, u64)> =
    TableDefinition::new("used-tokens-v1");

/// Token id to what its sessions have lasted together, seconds, and the time until which that matters, in Unix seconds.
const LASTED: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("lasted-v1");

/// Token id to what the sessions have lasted in which it took part and that another token has opened, as [`LASTED`].
const ACCOMPANIED: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("accompanied-v1");

/// Id of a token that wrong passwords have spent to the time until which that matters, in Unix seconds.
const SPENT_TOKENS: TableDefinition<'_, &str, u64> = TableDefinition::new("spent-tokens-v1");

/// Id of a token to the number of its wrong passwords, and the time until which that matters, in Unix seconds.
const GUESSES: TableDefinition<'_, &str, (u32, u64)> = TableDefinition::new("guesses-v1");

/// Agent's name to what is known of it, as JSON.
const AGENTS: TableDefinition<'_, &str, &str> = TableDefinition::new("agents-v1");

/// One row, [`HEAD`]: the last line of the audit that was on disk, as `SEQUENCE:DIGEST`.
const AUDIT: TableDefinition<'_, &str, &str> = TableDefinition::new("audit-v1");

/// The row of [`AUDIT`].
const HEAD: &str = "head";

/// Id of a revocation that an operator has made to what is known of it, as JSON.
const REVOCATIONS: TableDefinition<'_, &str, &str> = TableDefinition::new("revocations-v1");

/// Digest of a ticket to what is known of it.
const TICKETS: TableDefinition<'_, &[u8], TicketRow<'_>> = TableDefinition::new("tickets-v1");

/// Sealed token, not after, end of its token, reconnect window in seconds, number, address that has used it, and of its owner
/// the token's id, the address and the name of the API key; times in Unix seconds.
type TicketRow<'a> = (
    &'a [u8],
    u64,
    u64,
    u64,
    u64,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
);

/// One row, [`UNTIL`]: the greatest "keep until" of the tokens that were forgotten, Unix seconds.
const FORGOTTEN: TableDefinition<'_, &str, u64> = TableDefinition::new("forgotten-v1");

/// The row of [`FORGOTTEN`].
const UNTIL: &str = "until";

/// Stands for "not ended" in the file.
const NOT_ENDED: u64 = u64::MAX;

/// Writes that share one transaction, at most.
const BATCH: usize = 512;

/// Writes waiting for the thread, at most; beyond it the sender waits.
const QUEUE: usize = 4096;

/// What the file says of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Address of the client that used it.
    pub client: IpAddr,
    /// May be forgotten from then on.
    pub keep_until: UnixTime,
    /// End of its last session; `None` while it runs, or where the process ended first.
    pub ended_at: Option<UnixTime>,
    /// What its sessions have lasted that are over, seconds.
    pub lasted_s: u64,
}

/// What the file holds of tokens.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Those that were used.
    pub tokens: Vec<(TokenId, Record)>,
    /// Those that wrong passwords have spent, and until when that matters.
    pub spent: Vec<(TokenId, UnixTime)>,
    /// Wrong passwords of those that they have not spent yet, and until when that matters.
    pub guesses: Vec<(TokenId, u32, UnixTime)>,
    /// What the sessions of others have lasted in which a token took part, seconds, and until when that matters.
    pub accompanied: Vec<(TokenId, u64, UnixTime)>,
    /// No token that ends later was ever forgotten.
    pub forgotten_until: UnixTime,
}

/// What the file says of one ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketRecord {
    /// The token, which only the ticket can read.
    pub sealed: SealedToken,
    /// Good until then: until it has to be used, and once it was, the token's own end.
    pub not_after: UnixTime,
    /// End of the token.
    pub token_not_after: UnixTime,
    /// How long after its session the token may open another one, seconds.
    pub reconnect_window_s: u64,
    /// Tickets are numbered in the order in which they were issued.
    pub number: u64,
    /// Address of the client that has used it.
    pub used_by: Option<IpAddr>,
    /// Whose it is, with the id of the token, which is the same whatever wraps it.
    pub owner: Owner,
}

/// What the file holds.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Of tokens.
    pub usage: Records,
    /// Tickets.
    pub tickets: Vec<(TicketDigest, TicketRecord)>,
    /// Agents: name, and what [`agents`](crate::agents) wrote.
    pub agents: Vec<(String, String)>,
    /// Revocations: id, and what [`revoked`](crate::revoked) wrote.
    pub revocations: Vec<(String, String)>,
    /// The last line of the audit that was on disk, as `SEQUENCE:DIGEST`.
    pub audit_head: Option<String>,
}

/// The file failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open {path}: {problem}")]
    Open {
        /// The file.
        path: String,
        /// What the system or the format says.
        problem: OpenError,
    },
    /// It cannot be written.
    #[error("cannot write the store: {0}")]
    Write(#[from] WriteError),
}

/// Why the file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The format says so, or the system.
    #[error(transparent)]
    Database(#[from] redb::Error),
    /// The system has no thread for it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This process could not write it.
    #[error(transparent)]
    NotWritable(#[from] NotWritable),
    /// Somebody has emptied it.
    #[error("{EMPTIED}")]
    Empty,
    /// It begins as no store does.
    #[error("it is no store")]
    NoStore,
}

/// Why something is not on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The file failed, with all that was to be written at once.
    #[error(transparent)]
    Database(#[from] Arc<redb::Error>),
    /// The writes that wait are too many.
    #[error("too many writes are waiting")]
    Full,
    /// The thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// Told how a write went.
type Done = oneshot::Sender<Result<(), WriteError>>;

enum Command {
    Put {
        token: TokenId,
        record: Record,
        done: Option<Done>,
    },
    Accompany {
        token: TokenId,
        lasted_s: u64,
        keep_until: UnixTime,
        done: Option<Done>,
    },
    Spend {
        token: TokenId,
        keep_until: UnixTime,
        done: Done,
    },
    Guess {
        token: TokenId,
        count: u32,
        keep_until: UnixTime,
        done: Done,
    },
    ForgetExpired {
        now: UnixTime,
    },
    /// Writes a ticket, or removes it.
    Ticket {
        digest: TicketDigest,
        record: Option<Box<TicketRecord>>,
        done: Option<Done>,
    },
    /// Writes an agent, or removes it.
    Agent {
        name: String,
        record: Option<String>,
        done: Done,
    },
    /// Writes where the audit is.
    AuditHead(String),
    /// Writes a revocation, or removes it.
    Revocation {
        id: String,
        record: Option<String>,
        done: oneshot::Sender<Result<(), WriteError>>,
    },
}

/// The open file. Dropping it waits for the thread to write what it was given.
#[derive(Debug)]
pub struct Disk {
    failing: Arc<AtomicBool>,
    commands: Option<mpsc::SyncSender<Command>>,
    writer: Option<thread::JoinHandle<()>>,
}

/// How the file is opened, and opened again after it failed.
type Open = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

impl Disk {
    /// Opens or creates the file; returns what it holds and has not expired by `now`.
    ///
    /// # Errors
    /// It cannot be opened, is no store, or another process has it.
    pub fn open(path: &Path, now: UnixTime) -> Result<(Self, Contents), DiskError> {
        let file = path.to_owned();
        let failed = |problem| DiskError::Open {
            path: path.display().to_string(),
            problem,
        };
        make_if_missing(path).map_err(|error| failed(error.into()))?;
        private_file::warn_if_open(path, "Store");
        let open = Box::new(move || open_existing(&file));
        Self::open_with(open, now).map_err(failed)
    }

    fn open_with(open: Open, now: UnixTime) -> Result<(Self, Contents), OpenError> {
        let database = open()?;
        let forget = [Command::ForgetExpired { now }];
        write_batch(&database, &forget)?;
        let contents = read_all(&database)?;
        let (commands, receiver) = mpsc::sync_channel(QUEUE);
        let failing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&failing);
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(database, &open, &receiver, &told))?;
        let disk = Self {
            failing,
            commands: Some(commands),
            writer: Some(writer),
        };
        Ok((disk, contents))
    }

    /// Whether the last write has failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Writes one record; returns when it is on disk.
    ///
    /// # Errors
    /// The file cannot be written, or the writes queued before this one are too many.
    pub async fn put(&self, token: TokenId, record: Record) -> Result<(), DiskError> {
        self.write(|done| Command::Put {
            token,
            record,
            done: Some(done),
        })
        .await
    }

    /// Writes that wrong passwords have spent a token; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    /// From the first poll on it will be written.
    pub async fn spend(&self, token: TokenId, keep_until: UnixTime) -> Result<(), DiskError> {
        self.write(|done| Command::Spend {
            token,
            keep_until,
            done,
        })
        .await
    }

    /// Writes how many wrong passwords a token has had; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    /// From the first poll on it will be written.
    pub async fn count_guess(
        &self,
        token: TokenId,
        count: u32,
        keep_until: UnixTime,
    ) -> Result<(), DiskError> {
        self.write(|done| Command::Guess {
            token,
            count,
            keep_until,
            done,
        })
        .await
    }

    /// Writes an agent, or removes it; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn put_agent(&self, name: String, record: Option<String>) -> Result<(), DiskError> {
        self.write(|done| Command::Agent { name, record, done })
            .await
    }

    /// Writes which line of the audit is on disk, when there is time.
    pub fn put_audit_head_later(&self, head: String) {
        self.send(Command::AuditHead(head));
    }

    /// Writes a revocation, or removes it; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn put_revocation(
        &self,
        id: String,
        record: Option<String>,
    ) -> Result<(), DiskError> {
        self.write(|done| Command::Revocation { id, record, done })
            .await
    }

    /// Writes a ticket; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn put_ticket(
        &self,
        digest: TicketDigest,
        record: TicketRecord,
    ) -> Result<(), DiskError> {
        self.write(|done| Command::Ticket {
            digest,
            record: Some(Box::new(record)),
            done: Some(done),
        })
        .await
    }

    /// Writes a ticket, or removes it, before whatever is written after this call.
    pub fn put_ticket_later(&self, digest: TicketDigest, record: Option<TicketRecord>) {
        self.send(Command::Ticket {
            digest,
            record: record.map(Box::new),
            done: None,
        });
    }

    /// Writes one record when there is time. One that is lost makes the token look live at the next start.
    pub fn put_later(&self, token: TokenId, record: Record) {
        self.send(Command::Put {
            token,
            record,
            done: None,
        });
    }

    /// Writes what the sessions of others have lasted in which a token took part; returns when that is on disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn accompany(
        &self,
        token: TokenId,
        lasted_s: u64,
        keep_until: UnixTime,
    ) -> Result<(), DiskError> {
        self.write(|done| Command::Accompany {
            token,
            lasted_s,
            keep_until,
            done: Some(done),
        })
        .await
    }

    /// The same when there is time. What is lost counts for nothing at the next start.
    pub fn accompany_later(&self, token: TokenId, lasted_s: u64, keep_until: UnixTime) {
        self.send(Command::Accompany {
            token,
            lasted_s,
            keep_until,
            done: None,
        });
    }

    /// Removes what has expired by `now`, when there is time.
    pub fn forget_expired(&self, now: UnixTime) {
        self.send(Command::ForgetExpired { now });
    }

    /// Hands over a command that tells `done` how its write went; returns when it has.
    async fn write(&self, command: impl FnOnce(Done) -> Command) -> Result<(), DiskError> {
        let (done, written) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(WriteError::Closed)?;
        commands
            .try_send(command(done))
            .map_err(|_| WriteError::Full)?;
        written.await.unwrap_or(Err(WriteError::Closed))?;
        Ok(())
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands
            && commands.try_send(command).is_err()
        {
            tracing::warn!("The store cannot keep up; an update was put off to the next start");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(writer) = self.writer.take() {
            let _finished = writer.join();
        }
    }
}

/// Whether [`Disk::open`] could open the file, or make it where it is not there. Who has it open may be anybody: a gateway that runs
/// keeps it.
///
/// # Errors
/// It cannot be written, or is no store.
pub fn check(path: &Path) -> Result<(), DiskError> {
    let failed = |problem| DiskError::Open {
        path: path.display().to_string(),
        problem,
    };
    private_file::check_writable(path).map_err(|error| failed(error.into()))?;
    let mut start = Vec::new();
    let read = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(file) => file.take(MAGIC_BYTES).read_to_end(&mut start),
        Err(error) => Err(error),
    };
    match read {
        Err(error) => Err(failed(error.into())),
        Ok(0) => Err(failed(OpenError::Empty)),
        Ok(_) if start != MAGIC => Err(failed(OpenError::NoStore)),
        Ok(_) => Ok(()),
    }
}

/// What redb's files begin with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// Of [`MAGIC`].
const MAGIC_BYTES: u64 = 9;

/// Makes a new store. It gets its name when it is complete, so that an empty file of that name is never a store that was just made:
/// somebody has emptied it.
fn make_if_missing(path: &Path) -> Result<(), redb::Error> {
    if path.try_exists()? {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let unfinished = path.with_file_name(name);
    let made = make(&unfinished).and_then(|()| match fs::hard_link(&unfinished, path) {
        // Another process was faster, and that one has it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Not every file system has links.
        Err(_) => Ok(fs::rename(&unfinished, path)?),
        Ok(()) => Ok(()),
    });
    // Either it has its name, or the first error is the one to report.
    let _removed = fs::remove_file(&unfinished);
    made
}

fn make(path: &Path) -> Result<(), redb::Error> {
    let mut options = private_file::options();
    // One that is left over is from a process with this id that ended before it was complete.
    let file = options.read(true).write(true).create(true).truncate(true);
    let database = Database::builder().create_file(file.open(path)?)?;
    write_batch(&database, &[])
}

fn open_existing(path: &Path) -> Result<Database, redb::Error> {
    if fs::metadata(path)?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, EMPTIED).into());
    }
    Ok(Database::open(path)?)
}

/// What to do about an empty file.
const EMPTIED: &str = "it is empty, and a store never is, so somebody has emptied it; put back a copy, or remove it to begin \
    anew: used tokens that are still valid can then be used once more, tickets are void, and agents have to enrol again";

/// The thread: one transaction for whatever has arrived.
fn write_all(
    database: Database,
    open: &Open,
    commands: &mpsc::Receiver<Command>,
    failing: &AtomicBool,
) {
    let mut database = Some(database);
    while let Ok(first) = commands.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = commands.try_recv()
        {
            batch.push(next);
        }
        let was_good = database.is_some();
        let began = clock::now();
        let result = write_or_reopen(&mut database, open, &batch);
        METRICS.store_written(Outcome::of(&result), clock::seconds_since(began));
        failing.store(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(()) if was_good => {}
            Ok(()) => tracing::info!("The store can be written again"),
            Err(error) => {
                tracing::error!(%error, "The store cannot be written; sessions are refused until it can");
            }
        }
        for command in batch {
            if let Command::Put {
                done: Some(done), ..
            }
            | Command::Ticket {
                done: Some(done), ..
            }
            | Command::Accompany {
                done: Some(done), ..
            }
            | Command::Spend { done, .. }
            | Command::Guess { done, .. }
            | Command::Agent { done, .. }
            | Command::Revocation { done, .. } = command
            {
                // The session may have gone away meanwhile.
                let _received = done.send(result.clone().map_err(WriteError::from));
            }
        }
    }
}

/// Writes a batch. A database that has failed once refuses everything after, so it is closed, and opened again for the next
/// batch: a disk that has room again needs no restart.
fn write_or_reopen(
    database: &mut Option<Database>,
    open: &Open,
    batch: &[Command],
) -> Result<(), Arc<redb::Error>> {
    let current = match database.take() {
        Some(current) => current,
        None => open()?,
    };
    write_batch(&current, batch)?;
    *database = Some(current);
    Ok(())
}

fn read_all(database: &Database) -> Result<Contents, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(USED_TOKENS)?;
    let lasted = transaction.open_table(LASTED)?;
    let mut tokens = Vec::new();
    for row in table.iter()? {
        let (token, value) = row?;
        let (client, keep_until, ended_at) = value.value();
        let record = Record {
            // An address that does not parse cannot come from this program: better none may reconnect than any.
            client: client.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])),
            keep_until: UnixTime(keep_until),
            ended_at: (ended_at != NOT_ENDED).then_some(UnixTime(ended_at)),
            lasted_s: lasted
                .get(token.value())?
                .map_or(0, |lasted| lasted.value().0),
        };
        tokens.push((TokenId::new(token.value()), record));
    }
    let mut spent = Vec::new();
    for row in transaction.open_table(SPENT_TOKENS)?.iter()? {
        let (token, keep_until) = row?;
        spent.push((TokenId::new(token.value()), UnixTime(keep_until.value())));
    }
    let mut guesses = Vec::new();
    for row in transaction.open_table(GUESSES)?.iter()? {
        let (token, row) = row?;
        let (count, keep_until) = row.value();
        guesses.push((TokenId::new(token.value()), count, UnixTime(keep_until)));
    }
    let mut accompanied = Vec::new();
    for row in transaction.open_table(ACCOMPANIED)?.iter()? {
        let (token, row) = row?;
        let (lasted_s, keep_until) = row.value();
        accompanied.push((TokenId::new(token.value()), lasted_s, UnixTime(keep_until)));
    }
    let mut tickets = Vec::new();
    for row in transaction.open_table(TICKETS)?.iter()? {
        let (digest, row) = row?;
        // What this program has not written opens nothing.
        if let Some(digest) = TicketDigest::from_bytes(digest.value())
            && let Some(record) = ticket_record(&row.value())
        {
            tickets.push((digest, record));
        }
    }
    let mut agents = Vec::new();
    for row in transaction.open_table(AGENTS)?.iter()? {
        let (name, record) = row?;
        agents.push((name.value().to_owned(), record.value().to_owned()));
    }
    let mut revocations = Vec::new();
    for row in transaction.open_table(REVOCATIONS)?.iter()? {
        let (id, record) = row?;
        revocations.push((id.value().to_owned(), record.value().to_owned()));
    }
    let audit_head = transaction.open_table(AUDIT)?.get(HEAD)?;
    let audit_head = audit_head.map(|head| head.value().to_owned());
    let forgotten = transaction.open_table(FORGOTTEN)?.get(UNTIL)?;
    let usage = Records {
        tokens,
        spent,
        guesses,
        accompanied,
        forgotten_until: UnixTime(forgotten.map_or(0, |until| until.value())),
    };
    Ok(Contents {
        usage,
        tickets,
        agents,
        revocations,
        audit_head,
    })
}

fn ticket_record(row: &TicketRow<'_>) -> Option<TicketRecord> {
    let &(sealed, not_after, token_not_after, reconnect_window_s, number, used_by, ..) = row;
    let &(.., token, address, key) = row;
    let address_of = |text: Option<&str>| text.map(str::parse).transpose().ok();
    let owner = Owner::new(token.map(TokenId::new), address_of(address)?);
    Some(TicketRecord {
        sealed: SealedToken::from_bytes(sealed),
        not_after: UnixTime(not_after),
        token_not_after: UnixTime(token_not_after),
        reconnect_window_s,
        number,
        used_by: address_of(used_by)?,
        owner: match key {
            Some(name) => owner.by_key(name),
            None => owner,
        },
    })
}

fn insert_ticket(
    table: &mut Table<'_, &[u8], TicketRow<'_>>,
    digest: &TicketDigest,
    record: &TicketRecord,
) -> Result<(), redb::Error> {
    let used_by = record.used_by.map(|address| address.to_string());
    let address = record.owner.address.map(|address| address.to_string());
    let row: TicketRow<'_> = (
        record.sealed.as_bytes(),
        record.not_after.0,
        record.token_not_after.0,
        record.reconnect_window_s,
        record.number,
        used_by.as_deref(),
        record.owner.token.as_ref().map(TokenId::as_str),
        address.as_deref(),
        record.owner.key.as_deref(),
    );
    table.insert(digest.as_bytes(), row)?;
    Ok(())
}

fn write_batch(database: &Database, batch: &[Command]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(USED_TOKENS)?;
        let mut lasted = transaction.open_table(LASTED)?;
        let mut accompanied = transaction.open_table(ACCOMPANIED)?;
        let mut spent = transaction.open_table(SPENT_TOKENS)?;
        let mut guesses = transaction.open_table(GUESSES)?;
        let mut tickets = transaction.open_table(TICKETS)?;
        let mut agents = transaction.open_table(AGENTS)?;
        let mut revocations = transaction.open_table(REVOCATIONS)?;
        let mut forgotten = transaction.open_table(FORGOTTEN)?;
        let mut audit = transaction.open_table(AUDIT)?;
        for command in batch {
            match command {
                Command::Put { token, record, .. } => {
                    let client = record.client.to_string();
                    let ended_at = record.ended_at.map_or(NOT_ENDED, |at| at.0);
                    table.insert(
                        token.as_str(),
                        (client.as_str(), record.keep_until.0, ended_at),
                    )?;
                    if record.lasted_s > 0 {
                        let row = (record.lasted_s, record.keep_until.0);
                        lasted.insert(token.as_str(), row)?;
                    }
                }
                Command::ForgetExpired { now } => {
                    let mut last = None;
                    let mut keep = |keep_until: u64| {
                        let keep = keep_until >= now.0;
                        if !keep {
                            last = last.max(Some(keep_until));
                        }
                        keep
                    };
                    table.retain(|_, (_, keep_until, _)| keep(keep_until))?;
                    lasted.retain(|_, (_, keep_until)| keep_until >= now.0)?;
                    accompanied.retain(|_, (_, keep_until)| keep_until >= now.0)?;
                    spent.retain(|_, keep_until| keep(keep_until))?;
                    guesses.retain(|_, (_, keep_until)| keep_until >= now.0)?;
                    tickets.retain(|_, row| row.1 >= now.0)?;
                    let before = forgotten.get(UNTIL)?.map(|until| until.value());
                    if let Some(until) = last
                        && last > before
                    {
                        forgotten.insert(UNTIL, until)?;
                    }
                }
                Command::Accompany {
                    token,
                    lasted_s,
                    keep_until,
                    ..
                } => {
                    accompanied.insert(token.as_str(), (*lasted_s, keep_until.0))?;
                }
                Command::Spend {
                    token, keep_until, ..
                } => {
                    spent.insert(token.as_str(), keep_until.0)?;
                    guesses.remove(token.as_str())?;
                }
                Command::Guess {
                    token,
                    count,
                    keep_until,
                    ..
                } => {
                    guesses.insert(token.as_str(), (*count, keep_until.0))?;
                }
                Command::Ticket { digest, record, .. } => match record {
                    Some(record) => insert_ticket(&mut tickets, digest, record)?,
                    None => {
                        tickets.remove(digest.as_bytes())?;
                    }
                },
                Command::Agent { name, record, .. } => {
                    match record {
                        Some(record) => agents.insert(name.as_str(), record.as_str())?,
                        None => agents.remove(name.as_str())?,
                    };
                }
                Command::AuditHead(head) => {
                    audit.insert(HEAD, head.as_str())?;
                }
                Command::Revocation { id, record, .. } => {
                    match record {
                        Some(record) => revocations.insert(id.as_str(), record.as_str())?,
                        None => revocations.remove(id.as_str())?,
                    };
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::tickets::{IssueError, Terms, Tickets};

    fn record(keep_until: u64, ended_at: Option<u64>) -> Record {
        Record {
            client: "2001:db8::1".parse().unwrap(),
            keep_until: UnixTime(keep_until),
            ended_at: ended_at.map(UnixTime),
            lasted_s: ended_at.map_or(0, |_| 7),
        }
    }

    #[tokio::test]
    async fn records_survive_and_expired_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        {
            let (disk, contents) = Disk::open(&path, UnixTime(0)).unwrap();
            assert_eq!(contents.usage.tokens, []);
            disk.put(TokenId::new("kept"), record(100, None))
                .await
                .unwrap();
            disk.put(TokenId::new("old"), record(10, Some(5)))
                .await
                .unwrap();
            disk.put_later(TokenId::new("kept"), record(100, Some(42)));
        }
        let expected = vec![(TokenId::new("kept"), record(100, Some(42)))];
        let (disk, contents) = Disk::open(&path, UnixTime(50)).unwrap();
        assert_eq!(contents.usage.tokens, expected);
        drop(disk);
        let (_disk, contents) = Disk::open(&path, UnixTime(0)).unwrap();
        assert_eq!(
            contents.usage.tokens, expected,
            "the expired one is gone from the file"
        );
        // Whoever comes with a token that ends no later may be the one.
        assert_eq!(contents.usage.forgotten_until, UnixTime(10));
    }

    #[test]
    fn a_file_in_use_and_a_file_that_is_no_store_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let _first = Disk::open(&path, UnixTime(0)).unwrap();
        let second = Disk::open(&path, UnixTime(0)).unwrap_err().to_string();
        assert!(second.contains("state.redb"), "{second}");
        let other = folder.path().join("other");
        fs::write(&other, b"not a store").unwrap();
        let error = Disk::open(&other, UnixTime(0)).unwrap_err().to_string();
        assert!(error.contains("other"), "{error}");
    }

    #[test]
    fn a_new_store_is_its_owners_alone_and_one_that_was_emptied_or_cut_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        drop(Disk::open(&path, UnixTime(0)).unwrap());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let names = fs::read_dir(folder.path()).unwrap();
        assert_eq!(names.count(), 1, "nothing unfinished is left");
        let length = metadata.len();
        for cut in [length / 2, 4096, 100, 1, 0] {
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(cut)
                .unwrap();
            let error = Disk::open(&path, UnixTime(0)).unwrap_err().to_string();
            assert!(error.contains("state.redb"), "{cut}: {error}");
            assert_eq!(
                error.contains("remove it to begin anew"),
                cut == 0,
                "{error}"
            );
            assert_eq!(fs::metadata(&path).unwrap().len(), cut, "left as it is");
        }
        fs::remove_file(&path).unwrap();
        drop(Disk::open(&path, UnixTime(0)).unwrap());
    }

    /// A disk without room while the switch is on.
    #[derive(Debug)]
    struct SometimesFull {
        file: redb::backends::FileBackend,
        full: Arc<AtomicBool>,
    }

    impl SometimesFull {
        fn check(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    impl redb::StorageBackend for SometimesFull {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.file.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_room_on_it_needs_no_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let full = Arc::new(AtomicBool::new(false));
        let open: Open = Box::new({
            let full = Arc::clone(&full);
            move || {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                let backend = SometimesFull {
                    file: redb::backends::FileBackend::new(file)?,
                    full: Arc::clone(&full),
                };
                Ok(Database::builder().create_with_backend(backend)?)
            }
        });
        let (disk, _) = Disk::open_with(open, UnixTime(0)).unwrap();
        let put = |name: &'static str| disk.put(TokenId::new(name), record(100, None));
        put("one").await.unwrap();
        full.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            assert!(put("two").await.is_err());
        }
        full.store(false, Ordering::SeqCst);
        put("three").await.unwrap();
        // Nor is a ticket good now that the next start would not know.
        let disk = Arc::new(disk);
        let tickets = Tickets::new(Arc::clone(&disk), Vec::new());
        let terms = Terms {
            not_after: UnixTime(60),
            token_not_after: UnixTime(60),
            reconnect_window_s: 0,
        };
        let issue = async || {
            tickets
                .issue("eyJ", Owner::default(), terms, UnixTime(0))
                .await
        };
        full.store(true, Ordering::SeqCst);
        assert!(matches!(issue().await, Err(IssueError::Store(_))));
        full.store(false, Ordering::SeqCst);
        let ticket = issue().await.unwrap();
        drop((tickets, disk));
        let path = folder.path().join("state.redb");
        let (_disk, contents) = Disk::open(&path, UnixTime(0)).unwrap();
        let digests: Vec<_> = contents.tickets.iter().map(|(digest, _)| *digest).collect();
        assert_eq!(digests, [ticket.digest()]);
        let names: Vec<String> = contents
            .usage
            .tokens
            .iter()
            .map(|(token, _)| token.to_string())
            .collect();
        assert_eq!(names, ["one", "three"]);
    }
}
