//! The one file for what must survive a restart, written by one thread.
//!
//! Every write waits for the disk (`fsync`), so writes that arrive together share one transaction.

use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::time::UnixTime;
use crate::token::TokenId;

/// Token id to (client address, keep until, ended at or [`NOT_ENDED`]), times in Unix seconds.
const USED_TOKENS: TableDefinition<'_, &str, (&str, u64, u64)> =
    TableDefinition::new("used-tokens-v1");

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
        problem: String,
    },
    /// It cannot be read.
    #[error("cannot read the store: {0}")]
    Read(String),
    /// It cannot be written.
    #[error("cannot write the store: {0}")]
    Write(String),
}

enum Command {
    Put {
        token: TokenId,
        record: Record,
        done: Option<oneshot::Sender<Result<(), String>>>,
    },
    ForgetExpired {
        now: UnixTime,
    },
}

/// The open file. Dropping it waits for the thread to write what it was given.
#[derive(Debug)]
pub struct Disk {
    database: std::sync::Arc<Database>,
    commands: Option<mpsc::SyncSender<Command>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Disk {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// It cannot be opened, is no store, or another process has it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |problem: String| DiskError::Open {
            path: path.display().to_string(),
            problem,
        };
        let database = Database::create(path).map_err(|error| failed(error.to_string()))?;
        let transaction = database
            .begin_write()
            .map_err(|error| failed(error.to_string()))?;
        transaction
            .open_table(USED_TOKENS)
            .map_err(|error| failed(error.to_string()))?;
        transaction
            .commit()
            .map_err(|error| failed(error.to_string()))?;
        let database = std::sync::Arc::new(database);
        let (commands, receiver) = mpsc::sync_channel(QUEUE);
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let database = std::sync::Arc::clone(&database);
                move || write_all(&database, &receiver)
            })
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            database,
            commands: Some(commands),
            writer: Some(writer),
        })
    }

    /// Everything that has not expired by `now`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(&self, now: UnixTime) -> Result<Vec<(TokenId, Record)>, DiskError> {
        let read = |error: redb::Error| DiskError::Read(error.to_string());
        let transaction = self
            .database
            .begin_read()
            .map_err(|error| read(error.into()))?;
        let table = transaction
            .open_table(USED_TOKENS)
            .map_err(|error| read(error.into()))?;
        let mut records = Vec::new();
        for row in table.iter().map_err(|error| read(error.into()))? {
            let (token, value) = row.map_err(|error| read(error.into()))?;
            let (client, keep_until, ended_at) = value.value();
            // An address that does not parse cannot come from this program: better none may reconnect than any.
            let client = client.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
            let record = Record {
                client,
                keep_until: UnixTime(keep_until),
                ended_at: (ended_at != NOT_ENDED).then_some(UnixTime(ended_at)),
            };
            if record.keep_until >= now {
                records.push((TokenId::new(token.value()), record));
            }
        }
        Ok(records)
    }

    /// Writes one record; returns when it is on disk.
    ///
    /// # Errors
    /// The file cannot be written, or the writes queued before this one are too many.
    pub async fn put(&self, token: TokenId, record: Record) -> Result<(), DiskError> {
        let (done, written) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(closed)?;
        commands
            .try_send(Command::Put {
                token,
                record,
                done: Some(done),
            })
            .map_err(|_| DiskError::Write("too many writes are waiting".to_owned()))?;
        written
            .await
            .map_err(|_| closed())?
            .map_err(DiskError::Write)
    }

    /// Writes one record when there is time. One that is lost makes the token look live at the next start.
    pub fn put_later(&self, token: TokenId, record: Record) {
        self.send(Command::Put {
            token,
            record,
            done: None,
        });
    }

    /// Removes what has expired by `now`, when there is time.
    pub fn forget_expired(&self, now: UnixTime) {
        self.send(Command::ForgetExpired { now });
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

fn closed() -> DiskError {
    DiskError::Write("the store is closed".to_owned())
}

/// The thread: one transaction for whatever has arrived.
fn write_all(database: &Database, commands: &mpsc::Receiver<Command>) {
    while let Ok(first) = commands.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = commands.try_recv()
        {
            batch.push(next);
        }
        let result = write_batch(database, &batch).map_err(|error| error.to_string());
        if let Err(error) = &result {
            tracing::error!(%error, "The store cannot be written; sessions are refused until it can");
        }
        for command in batch {
            if let Command::Put {
                done: Some(done), ..
            } = command
            {
                // The session may have gone away meanwhile.
                let _received = done.send(result.clone());
            }
        }
    }
}

fn write_batch(database: &Database, batch: &[Command]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(USED_TOKENS)?;
        for command in batch {
            match command {
                Command::Put { token, record, .. } => {
                    let client = record.client.to_string();
                    let ended_at = record.ended_at.map_or(NOT_ENDED, |at| at.0);
                    table.insert(
                        token.as_str(),
                        (client.as_str(), record.keep_until.0, ended_at),
                    )?;
                }
                Command::ForgetExpired { now } => {
                    table.retain(|_, (_, keep_until, _)| keep_until >= now.0)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(keep_until: u64, ended_at: Option<u64>) -> Record {
        Record {
            client: "2001:db8::1".parse().unwrap(),
            keep_until: UnixTime(keep_until),
            ended_at: ended_at.map(UnixTime),
        }
    }

    #[tokio::test]
    async fn records_survive_and_expired_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        {
            let disk = Disk::open(&path).unwrap();
            disk.put(TokenId::new("kept"), record(100, None))
                .await
                .unwrap();
            disk.put(TokenId::new("old"), record(10, Some(5)))
                .await
                .unwrap();
            disk.put_later(TokenId::new("kept"), record(100, Some(42)));
        }
        let disk = Disk::open(&path).unwrap();
        let expected = vec![(TokenId::new("kept"), record(100, Some(42)))];
        assert_eq!(disk.load(UnixTime(50)).unwrap(), expected);
        disk.forget_expired(UnixTime(50));
        drop(disk);
        let disk = Disk::open(&path).unwrap();
        assert_eq!(disk.load(UnixTime(0)).unwrap(), expected);
    }

    #[test]
    fn a_file_in_use_and_a_file_that_is_no_store_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let _first = Disk::open(&path).unwrap();
        let second = Disk::open(&path).unwrap_err().to_string();
        assert!(second.contains("state.redb"), "{second}");
        let other = folder.path().join("other");
        std::fs::write(&other, b"not a store").unwrap();
        let error = Disk::open(&other).unwrap_err().to_string();
        assert!(error.contains("other"), "{error}");
    }
}
