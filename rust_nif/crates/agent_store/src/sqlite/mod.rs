//! The embedded back end: SQLite, WAL, `synchronous=FULL`.

mod db;
mod wal;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_core::{AgentError, Reason};
use rusqlite::Connection;

use crate::blob::folder::Folder;
use crate::durable::refuse;
use crate::fault;
use crate::sql::blobs::{self, Blobs, Shelf};
use crate::sql::{Opened, schema};
use db::{FileReaders, FileWriter, remembering};

/// Versions from 3.7.0 to 3.51.2 may corrupt a database in WAL mode (sqlite.org/wal.html, "WAL-reset bug").
const SQLITE_AFFECTED_UNTIL: i32 = 3_051_002;

/// Pages that the writer keeps in memory, in KiB. With SQLite's own 2 MiB the pages of one batch push each other out.
const CACHE_KIB: i64 = 32 * 1024;

/// Opens the file, making it and its folder, which belong to one node at a time.
pub(crate) fn open(path: &Path) -> Result<Opened, AgentError> {
    let dir: PathBuf = path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    std::fs::create_dir_all(&dir).map_err(|e| io(&dir, &e))?;
    let lock_path = dir.join("LOCK");
    let lock = File::create(&lock_path).map_err(|e| io(&lock_path, &e))?;
    lock.try_lock()
        .map_err(|_| refuse(AgentError::new(Reason::StoreUnavailable, format!("{} is in use by another node", dir.display()))))?;
    let (mut db, epoch) = connect(path)?;
    let shelf = Shelf::Folder(Arc::new(Folder::open(&dir)?));
    let blobs = Blobs::new(blobs::secret(&mut db)?, shelf);
    // The log of an earlier run may be long.
    let writer = FileWriter { db, path: path.to_owned(), log: log_of(path), commits: 0, dirty: true, _lock: lock };
    Ok(Opened {
        writer: Box::new(writer),
        readers: Arc::new(FileReaders::new(path.to_owned())),
        blobs,
        spool: None,
        epoch,
        version: format!("SQLite {}", rusqlite::version()),
    })
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
fn connect(path: &Path) -> Result<(Connection, i64), AgentError> {
    if (3_007_000..=SQLITE_AFFECTED_UNTIL).contains(&rusqlite::version_number()) {
        return Err(AgentError::new(Reason::StoreUnavailable, format!("SQLite {} has the WAL-reset bug", rusqlite::version())));
    }
    let log = log_of(path);
    if let Some(lost) = wal::check(&log).map_err(|e| io(&log, &e))? {
        return Err(refuse(AgentError::new(
            Reason::StoreCorrupt,
            format!("{}: frame {} is damaged; opening it would lose the commits up to frame {}", log.display(), lost.first, lost.last),
        )));
    }
    let mut db = remembering(Connection::open(path).map_err(|e| unavailable(&e))?);
    let setup = |db: &mut Connection| -> Result<i64, rusqlite::Error> {
        // Both only take effect before the first table.
        db.pragma_update(None, "page_size", 8192)?;
        db.pragma_update(None, "auto_vacuum", 2)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "mmap_size", 0)?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // The writer does it when it has time.
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        db.query_row("PRAGMA user_version", [], |r| r.get(0))
    };
    let version = setup(&mut db).map_err(|e| unavailable(&e))?;
    let missing = schema::missing(version)?;
    let migrate = |db: &mut Connection| -> Result<i64, rusqlite::Error> {
        let tx = db.transaction()?;
        for migration in missing {
            tx.execute_batch(migration)?;
            fault::point("migrate", "");
        }
        tx.pragma_update(None, "user_version", schema::SCHEMA)?;
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
        for migration in schema::MIGRATIONS {
            db.execute_batch(migration).unwrap();
        }
        let plan: String = db.query_row(&format!("EXPLAIN QUERY PLAN {}", crate::sql::reads::due_sql()), [0], |r| r.get(3)).unwrap();
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
