//! Connections to the file.

use std::fs::File;
use std::path::PathBuf;

use agent_core::AgentError;
use parking_lot::Mutex;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags};

use super::unavailable;
use crate::fault;
use crate::sql::{Db, Mended, Param, ReadPool, Row, WriterDb};

/// Beyond this the log is moved although there is work, in bytes.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// Commits between two looks at the length of the log.
const LOOK_EVERY: u32 = 256;
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;
/// Connections for reading that are kept.
const READERS: usize = 8;
/// A volume is crowded from this part on, in percent, if our file is at least [`OUR_PART`] of it.
const CROWDED: u64 = 80;
/// A smaller file, in percent of the volume, would make no room worth the history that it holds.
const OUR_PART: u64 = 5;
/// Pages that are given back to the file system at once.
const SHRINK_PAGES: u32 = 1000;

impl rusqlite::ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Param::Int(n) => ValueRef::Integer(*n),
            Param::Text(text) => ValueRef::Text(text.as_bytes()),
            Param::Blob(bytes) => ValueRef::Blob(bytes),
            Param::Null => ValueRef::Null,
        }))
    }
}

impl Row for rusqlite::Row<'_> {
    fn int(&self, column: usize) -> Result<i64, AgentError> {
        self.get(column).map_err(|e| unavailable(&e))
    }

    fn text(&self, column: usize) -> Result<String, AgentError> {
        self.get(column).map_err(|e| unavailable(&e))
    }

    fn bytes(&self, column: usize) -> Result<Option<Vec<u8>>, AgentError> {
        self.get(column).map_err(|e| unavailable(&e))
    }
}

/// A connection that remembers its statements.
pub(super) fn remembering(db: Connection) -> Connection {
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db
}

impl Db for Connection {
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, AgentError> {
        let rows = self.prepare_cached(sql).and_then(|mut s| s.execute(rusqlite::params_from_iter(params)));
        rows.map(|n| n as u64).map_err(|e| unavailable(&e))
    }

    fn each(&mut self, sql: &str, params: &[Param<'_>], row: &mut dyn FnMut(&dyn Row) -> Result<(), AgentError>) -> Result<(), AgentError> {
        let mut statement = self.prepare_cached(sql).map_err(|e| unavailable(&e))?;
        let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(|e| unavailable(&e))?;
        while let Some(found) = rows.next().map_err(|e| unavailable(&e))? {
            row(found)?;
        }
        Ok(())
    }

    fn batch(&mut self, sql: &str) -> Result<(), AgentError> {
        // Savepoints come with every item.
        let done = if sql.contains(';') {
            self.execute_batch(sql)
        } else {
            self.prepare_cached(sql).and_then(|mut s| s.raw_execute().map(|_| ()))
        };
        done.map_err(|e| unavailable(&e))
    }
}

/// The writer's connection. It does all commits and all moves of the log into the file.
pub(super) struct FileWriter {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) log: PathBuf,
    pub(super) commits: u32,
    /// Something is in the log.
    pub(super) dirty: bool,
    /// Held until the connection is closed: fields are dropped in their order.
    pub(super) _lock: File,
}

impl FileWriter {
    /// Readers are not waited for: what they still need stays in the log until the next time.
    fn checkpoint(&mut self) -> Result<(), AgentError> {
        self.dirty = false;
        fault::point("checkpoint", "");
        self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).map_err(|e| unavailable(&e))
    }
}

impl Db for FileWriter {
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, AgentError> {
        Db::execute(&mut self.db, sql, params)
    }

    fn each(&mut self, sql: &str, params: &[Param<'_>], row: &mut dyn FnMut(&dyn Row) -> Result<(), AgentError>) -> Result<(), AgentError> {
        self.db.each(sql, params, row)
    }

    fn batch(&mut self, sql: &str) -> Result<(), AgentError> {
        self.db.batch(sql)
    }
}

impl WriterDb for FileWriter {
    fn begin(&mut self) -> Result<(), AgentError> {
        self.batch("BEGIN IMMEDIATE")
    }

    fn commit(&mut self) -> Result<(), AgentError> {
        self.batch("COMMIT")
    }

    fn lost(&self) -> bool {
        false
    }

    fn comes_back(&self) -> bool {
        false
    }

    fn mend(&mut self, why: AgentError, _waiting: &mut dyn FnMut() -> bool) -> Mended {
        Mended::Ended(why)
    }

    fn committed(&mut self) -> Result<(), AgentError> {
        self.dirty = true;
        self.commits += 1;
        if self.commits < LOOK_EVERY {
            return Ok(());
        }
        self.commits = 0;
        match std::fs::metadata(&self.log) {
            Ok(log) if log.len() > CHECKPOINT_BYTES => self.checkpoint(),
            _ => Ok(()),
        }
    }

    fn untidy(&self) -> bool {
        self.dirty
    }

    fn tidy(&mut self) -> Result<(), AgentError> {
        self.checkpoint()
    }

    fn shrink(&mut self) -> Result<(), AgentError> {
        self.dirty = true;
        self.batch(&format!("PRAGMA incremental_vacuum({SHRINK_PAGES});"))
    }

    fn crowded(&self) -> bool {
        let (Ok(volume), Ok(file)) = (rustix::fs::statvfs(&self.path), std::fs::metadata(&self.path)) else { return false };
        let (all, free) = (volume.f_blocks * volume.f_frsize, volume.f_bavail * volume.f_frsize);
        all > 0 && (all - free.min(all)) * 100 / all > CROWDED && file.len() * 100 / all >= OUR_PART
    }
}

/// Connections for reading, opened as needed.
pub(super) struct FileReaders {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl FileReaders {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }
}

impl ReadPool for FileReaders {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Db) -> Result<(), AgentError>) -> Result<(), AgentError> {
        let idle = self.idle.lock().pop();
        let mut db = match idle {
            Some(db) => db,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                remembering(Connection::open_with_flags(&self.path, flags).map_err(|e| unavailable(&e))?)
            }
        };
        let result = f(&mut db);
        let mut idle = self.idle.lock();
        if idle.len() < READERS {
            idle.push(db);
        }
        result
    }
}
