//! The durable back end: SQLite, WAL, `synchronous=FULL`, one writer thread with group commit.
//!
//! The writer takes what is there, up to a batch, each item in a savepoint, and commits; while it waits for the disk the next batch gathers. Whoever
//! asked hears after the commit. A commit that fails answers every item of the batch as ambiguous and ends the store: after a failed fsync
//! nothing that the kernel says of the file can be trusted.

mod chores;
mod journal;
mod readers;
mod rows;
mod wal;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use rusqlite::Connection;

use crate::Retention;
use crate::durable::{AgentRows, Done, Store};
use crate::hub::Hub;
use crate::journal::Entry;
use crate::op::WriteOp;
use crate::record::Record;
use chores::Chores;
use readers::Readers;
use writer::Writer;

/// Version of the schema that this program writes.
pub const SCHEMA: i64 = 3;
/// Versions from 3.7.0 to 3.51.2 may corrupt a database in WAL mode (sqlite.org/wal.html, "WAL-reset bug").
const SQLITE_AFFECTED_UNTIL: i32 = 3_051_002;
/// The words of the partial index `task_open`: a query uses it only if it says the same.
const OPEN: &str = "state IN (1, 2, 3)";

const MIGRATION_1: &str = "
    CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE task(
        id TEXT PRIMARY KEY, rid TEXT NOT NULL, tenant TEXT NOT NULL, request_id TEXT, state INTEGER NOT NULL, fence INTEGER NOT NULL,
        epoch INTEGER NOT NULL, not_before INTEGER NOT NULL, create_ms INTEGER NOT NULL, lost INTEGER NOT NULL, sequence INTEGER NOT NULL,
        text_offset INTEGER NOT NULL, hash BLOB, hash_version INTEGER NOT NULL, data BLOB NOT NULL, attempts BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX task_request ON task(tenant, request_id) WHERE request_id IS NOT NULL;
    CREATE INDEX task_tenant ON task(tenant, id);
    CREATE INDEX task_suffix ON task(tenant, rid);
    CREATE INDEX task_open ON task(state, not_before) WHERE state IN (1, 2, 3);
    CREATE TABLE event(task_id TEXT NOT NULL, sequence INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(task_id, sequence)) WITHOUT ROWID;
    CREATE TABLE agent(tenant TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY(tenant, id)) WITHOUT ROWID;
    INSERT INTO meta VALUES('epoch', 0);
";

const MIGRATION_2: &str = "
    CREATE TABLE journal(
        task_id TEXT NOT NULL, kind INTEGER NOT NULL, hash BLOB NOT NULL, occurrence INTEGER NOT NULL, hash_version INTEGER NOT NULL,
        fence INTEGER NOT NULL, answer BLOB, PRIMARY KEY(task_id, kind, hash, occurrence)
    ) WITHOUT ROWID;
";

const MIGRATION_3: &str = "
    ALTER TABLE task ADD COLUMN end_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE task SET end_ms = create_ms WHERE state NOT IN (1, 2, 3);
    CREATE INDEX task_ended ON task(end_ms) WHERE end_ms > 0;
";

/// One database file.
pub(crate) struct Sqlite {
    writer: Writer,
    readers: Readers,
    epoch: i64,
}

impl Sqlite {
    /// Opens the file, making its folder, and starts the writer; `on_end` hears once when that ends, whatever the reason.
    pub(crate) fn start(
        path: &Path,
        retention: Retention,
        hub: Arc<Hub>,
        on_end: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Self, AgentError> {
        let dir: PathBuf = path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        std::fs::create_dir_all(&dir).map_err(|e| io(&dir, &e))?;
        let lock_path = dir.join("LOCK");
        let lock = File::create(&lock_path).map_err(|e| io(&lock_path, &e))?;
        lock.try_lock().map_err(|_| AgentError::new(Reason::StoreUnavailable, format!("{} is in use by another node", dir.display())))?;
        let (db, epoch) = open(path)?;
        let writer = Writer::start(db, lock, epoch, hub, crate::now_ms, Chores::new(log_of(path), retention), on_end)?;
        Ok(Self { writer, readers: Readers::new(path.to_owned()), epoch })
    }
}

impl Store for Sqlite {
    fn write(&self, op: WriteOp, done: Done) -> bool {
        self.writer.write(op, done)
    }

    fn get(&self, tenant: &str, id: &str) -> Result<Option<Record>, AgentError> {
        self.readers.get(tenant, id)
    }

    fn by_suffix(&self, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError> {
        self.readers.by_suffix(tenant, suffix)
    }

    fn page(&self, tenant: &str, beyond: &str, newest_first: bool, limit: usize) -> Result<Vec<pb::Task>, AgentError> {
        self.readers.page(tenant, beyond, newest_first, limit)
    }

    fn events(&self, id: &str, after: i64, limit: usize) -> Result<Vec<pb::TaskEvent>, AgentError> {
        self.readers.events(id, after, limit)
    }

    fn running(&self) -> Result<Vec<(String, i64)>, AgentError> {
        self.readers.running(self.epoch)
    }

    fn due(&self, now_ms: i64) -> Result<Vec<String>, AgentError> {
        self.readers.due(now_ms)
    }

    fn journal(&self, id: &str) -> Result<Vec<Entry>, AgentError> {
        self.readers.journal(id)
    }

    fn agents(&self) -> Result<AgentRows, AgentError> {
        self.readers.agents()
    }

    fn epoch(&self) -> i64 {
        self.epoch
    }

    fn schema(&self) -> i64 {
        SCHEMA
    }

    fn version(&self) -> String {
        rusqlite::version().to_owned()
    }

    fn stop(&self) {
        self.writer.stop();
    }

    fn inject_panic(&self) {
        self.writer.inject_panic();
    }
}

fn io(path: &Path, e: &std::io::Error) -> AgentError {
    AgentError::new(Reason::StoreUnavailable, format!("{}: {e}", path.display()))
}

pub(crate) fn unavailable(e: &rusqlite::Error) -> AgentError {
    let reason = match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => Reason::DiskLow,
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => Reason::StoreCorrupt,
        _ => Reason::StoreUnavailable,
    };
    AgentError::new(reason, format!("the database answered: {e}")).retry_after(1000)
}

fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    PathBuf::from(log)
}

/// Opens or makes the database; gives the connection of the writer and the boot epoch.
fn open(path: &Path) -> Result<(Connection, i64), AgentError> {
    if (3_007_000..=SQLITE_AFFECTED_UNTIL).contains(&rusqlite::version_number()) {
        return Err(AgentError::new(Reason::StoreUnavailable, format!("SQLite {} has the WAL-reset bug", rusqlite::version())));
    }
    let log = log_of(path);
    if let Some(lost) = wal::check(&log).map_err(|e| io(&log, &e))? {
        return Err(AgentError::new(
            Reason::StoreCorrupt,
            format!("{}: frame {} is damaged; opening it would lose the commits up to frame {}", log.display(), lost.first, lost.last),
        ));
    }
    let mut db = Connection::open(path).map_err(|e| unavailable(&e))?;
    let setup = |db: &mut Connection| -> Result<i64, rusqlite::Error> {
        // Both only take effect before the first table.
        db.pragma_update(None, "page_size", 8192)?;
        db.pragma_update(None, "auto_vacuum", 2)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "mmap_size", 0)?;
        // The writer does it when it has time.
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        db.query_row("PRAGMA user_version", [], |r| r.get(0))
    };
    let version = setup(&mut db).map_err(|e| unavailable(&e))?;
    if version > SCHEMA {
        return Err(AgentError::new(
            Reason::StoreUnavailable,
            format!("the database has schema {version}, this program knows {SCHEMA}; use a newer program"),
        ));
    }
    let migrate = |db: &mut Connection| -> Result<i64, rusqlite::Error> {
        let tx = db.transaction()?;
        if version < 1 {
            tx.execute_batch(MIGRATION_1)?;
        }
        if version < 2 {
            tx.execute_batch(MIGRATION_2)?;
        }
        if version < 3 {
            tx.execute_batch(MIGRATION_3)?;
        }
        tx.pragma_update(None, "user_version", SCHEMA)?;
        let epoch = tx.query_row("UPDATE meta SET value = value + 1 WHERE key = 'epoch' RETURNING value", [], |r| r.get(0))?;
        tx.commit()?;
        Ok(epoch)
    };
    let epoch = migrate(&mut db).map_err(|e| unavailable(&e))?;
    Ok((db, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poll_for_due_tasks_reads_an_index_and_not_the_table() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(MIGRATION_1).unwrap();
        let plan: String = db.query_row(&format!("EXPLAIN QUERY PLAN {}", readers::due_sql()), [0], |r| r.get(3)).unwrap();
        assert!(plan.contains("USING COVERING INDEX task_open") || plan.contains("USING INDEX task_open"), "{plan}");
    }

    #[test]
    fn errors_of_the_disk_have_their_own_reasons() {
        let fault = |code| unavailable(&rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)).reason;
        assert_eq!(fault(rusqlite::ffi::SQLITE_FULL), Reason::DiskLow);
        assert_eq!(fault(rusqlite::ffi::SQLITE_CORRUPT), Reason::StoreCorrupt);
        assert_eq!(fault(rusqlite::ffi::SQLITE_NOTADB), Reason::StoreCorrupt);
        assert_eq!(fault(rusqlite::ffi::SQLITE_IOERR), Reason::StoreUnavailable);
    }
}
