//! What the writer does when nobody asks: it moves the log into the database, and forgets what is old.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::journal;
use crate::Retention;

/// A writer without work for so long looks after its chores.
pub(super) const IDLE: Duration = Duration::from_millis(200);
/// Beyond this the log is moved although there is work, in bytes.
const CHECKPOINT_BYTES: u64 = 256 * 1024 * 1024;
/// Commits between two looks at the length of the log.
const LOOK_EVERY: u32 = 256;
/// Between two searches for what is old.
pub(super) const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// Tasks forgotten in one commit.
const RETENTION_ROWS: i64 = 200;

/// When what was done last.
pub(super) struct Chores {
    log: PathBuf,
    retention: Retention,
    commits: u32,
    dirty: bool,
    searched: Option<Instant>,
}

impl Chores {
    pub(super) fn new(log: PathBuf, retention: Retention) -> Self {
        // The log of an earlier run may be long.
        Self { log, retention, commits: 0, dirty: true, searched: None }
    }

    /// How long the writer may wait for work before it looks here again.
    pub(super) fn patience(&self) -> Duration {
        if self.dirty || self.searched.is_none() { IDLE } else { RETENTION_EVERY }
    }

    /// A batch was committed.
    pub(super) fn committed(&mut self, db: &Connection) -> Result<(), rusqlite::Error> {
        self.dirty = true;
        self.commits += 1;
        if self.commits < LOOK_EVERY {
            return Ok(());
        }
        self.commits = 0;
        match std::fs::metadata(&self.log) {
            Ok(log) if log.len() > CHECKPOINT_BYTES => self.checkpoint(db),
            _ => Ok(()),
        }
    }

    /// There is no work. Gives the tasks that were forgotten.
    pub(super) fn idle(&mut self, db: &Connection, now_ms: i64) -> Result<Vec<String>, rusqlite::Error> {
        if self.searched.is_none_or(|at| at.elapsed() >= RETENTION_EVERY) {
            let forgotten = forget(db, self.retention, now_ms)?;
            // A full batch is followed by the next one as soon as there is time again.
            self.searched = (forgotten.len() < RETENTION_ROWS as usize).then(Instant::now);
            self.dirty |= !forgotten.is_empty();
            return Ok(forgotten);
        }
        if self.dirty {
            self.checkpoint(db)?;
        }
        Ok(Vec::new())
    }

    /// Readers are not waited for: what they still need stays in the log until the next time.
    fn checkpoint(&mut self, db: &Connection) -> Result<(), rusqlite::Error> {
        self.dirty = false;
        db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }
}

/// Forgets the oldest of the tasks whose time is over, with all that belongs to them.
fn forget(db: &Connection, keep: Retention, now_ms: i64) -> Result<Vec<String>, rusqlite::Error> {
    let before = |kept: i64| if kept == 0 { i64::MIN } else { now_ms - kept };
    let old: Vec<String> = db
        .prepare_cached(
            "SELECT id FROM task WHERE end_ms > 0 AND ((state = 4 AND end_ms < ?1) OR (state <> 4 AND end_ms < ?2)) ORDER BY end_ms LIMIT ?3",
        )?
        .query_map(params![before(keep.succeeded_ms), before(keep.other_ms), RETENTION_ROWS], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    if old.is_empty() {
        return Ok(old);
    }
    db.execute_batch("BEGIN IMMEDIATE")?;
    for id in &old {
        db.prepare_cached("DELETE FROM event WHERE task_id = ?1")?.execute([id])?;
        journal::delete(db, id)?;
        db.prepare_cached("DELETE FROM task WHERE id = ?1")?.execute([id])?;
    }
    // Pages that became free go back to the file system in small portions.
    db.execute_batch("COMMIT; PRAGMA incremental_vacuum(1000)")?;
    Ok(old)
}
