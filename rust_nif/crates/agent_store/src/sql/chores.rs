//! What the writer does when nobody asks: it forgets what is old.

use std::time::{Duration, Instant};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;

use super::blobs::{Blobs, Searched};
use super::{WriterDb, ledger, memory, tasks};
use crate::Retention;

/// A writer without work for so long looks after its chores.
const IDLE: Duration = Duration::from_millis(200);
/// Between two searches for what is old. A value in memory is gone from the disk at most so long after its time.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// Between two searches for blobs that no row names, at most.
const BLOBS_EVERY: Duration = Duration::from_secs(3600);
/// Tasks forgotten in one commit.
const RETENTION_ROWS: i64 = 200;

/// When what was done last.
pub(super) struct Chores {
    retention: Retention,
    searched: Option<Instant>,
    /// A search for blobs that no row names, and when the last one was over.
    blobs: Option<Searched>,
    blobs_searched: Option<Instant>,
}

impl Chores {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, searched: None, blobs: None, blobs_searched: None }
    }

    /// How long the labels of a task want it kept.
    pub(super) fn kept_by_label(&self, task: &pb::Task) -> Option<i64> {
        self.retention.by_label(task)
    }

    /// How long the writer may wait for work before it looks here again.
    pub(super) fn patience(&self, db: &dyn WriterDb) -> Duration {
        if db.untidy() || self.searched.is_none() || self.blobs.is_some() { IDLE } else { self.blobs_every().min(RETENTION_EVERY) }
    }

    /// There is no work. Gives the tasks that were forgotten.
    pub(super) fn idle(&mut self, db: &mut dyn WriterDb, blobs: &Blobs, now_ms: i64) -> Result<Vec<String>, AgentError> {
        if self.searched.is_none_or(|at| at.elapsed() >= RETENTION_EVERY) {
            db.begin()?;
            let forgotten = forget(db, &self.retention, now_ms)?;
            db.commit()?;
            // A full batch is followed by the next one as soon as there is time again.
            self.searched = (forgotten.len() < RETENTION_ROWS as usize).then(Instant::now);
            if !forgotten.is_empty() {
                db.shrink()?;
            }
            return Ok(forgotten);
        }
        if db.untidy() {
            db.tidy()?;
        }
        self.search_blobs(db, blobs, now_ms)?;
        Ok(Vec::new())
    }

    fn unnamed_for(&self) -> Duration {
        Duration::from_millis(self.retention.unnamed_ms)
    }

    fn blobs_every(&self) -> Duration {
        (self.unnamed_for() / 24).clamp(IDLE, BLOBS_EVERY)
    }

    /// A part of a search for blobs that no row names, or the begin of the next one.
    fn search_blobs(&mut self, db: &mut dyn WriterDb, blobs: &Blobs, now_ms: i64) -> Result<(), AgentError> {
        if self.blobs.is_none() && self.blobs_searched.is_some_and(|at| at.elapsed() < self.blobs_every()) {
            return Ok(());
        }
        let mut search = match self.blobs.take() {
            Some(search) => search,
            None => blobs.search()?,
        };
        db.begin()?;
        let more = blobs.look(&mut *db, &mut search, self.unnamed_for(), now_ms)?;
        db.commit()?;
        if more {
            self.blobs = Some(search);
        } else {
            self.blobs_searched = Some(Instant::now());
        }
        Ok(())
    }
}

/// Forgets the oldest of the tasks whose time is over, with all that belongs to them, and values and answers of which the same is true.
fn forget(db: &mut dyn WriterDb, keep: &Retention, now_ms: i64) -> Result<Vec<String>, AgentError> {
    let crowded = db.crowded();
    let before = |kept: i64| match kept {
        _ if crowded => now_ms,
        0 => i64::MIN,
        kept => now_ms - kept,
    };
    let old = tasks::old(db, before(keep.succeeded_ms), before(keep.other_ms), now_ms, RETENTION_ROWS)?;
    for record in &old {
        tasks::forget(db, record, now_ms)?;
    }
    tasks::forget_tombstones(db, now_ms)?;
    memory::expire(db, now_ms)?;
    ledger::forget(db, now_ms)?;
    Ok(old.into_iter().map(|r| r.task.id).collect())
}
