//! What the writer does when nobody asks: it forgets what is old.

use std::time::{Duration, Instant};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;

use super::{WriterDb, memory, tasks};
use crate::Retention;

/// A writer without work for so long looks after its chores.
const IDLE: Duration = Duration::from_millis(200);
/// Between two searches for what is old. A value in memory is gone from the disk at most so long after its time.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
/// Tasks forgotten in one commit.
const RETENTION_ROWS: i64 = 200;

/// When what was done last.
pub(super) struct Chores {
    retention: Retention,
    searched: Option<Instant>,
}

impl Chores {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, searched: None }
    }

    /// How long the labels of a task want it kept.
    pub(super) fn kept_by_label(&self, task: &pb::Task) -> Option<i64> {
        self.retention.by_label(task)
    }

    /// How long the writer may wait for work before it looks here again.
    pub(super) fn patience(&self, db: &dyn WriterDb) -> Duration {
        if db.untidy() || self.searched.is_none() { IDLE } else { RETENTION_EVERY }
    }

    /// There is no work. Gives the tasks that were forgotten.
    pub(super) fn idle(&mut self, db: &mut dyn WriterDb, now_ms: i64) -> Result<Vec<String>, AgentError> {
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
        Ok(Vec::new())
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
    Ok(old.into_iter().map(|r| r.task.id).collect())
}
