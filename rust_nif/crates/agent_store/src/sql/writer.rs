//! The one thread that writes: group commit.
//!
//! It takes what is there, up to a batch, and commits, each item failing alone; while it waits for the disk the next batch gathers. Whoever
//! asked hears after the commit. When a batch fails as a whole, the connection decides: what cannot be healed answers every item as
//! ambiguous and ends the store (after a failed fsync nothing that the kernel says of the file can be trusted); a server that was away is
//! waited for, and the batch is written again unless it had been committed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use super::blobs::Blobs;
use super::chores::Chores;
use super::queue::{Job, Waiting, Writer, away};
use super::{Mended, Opened, WriterDb};
use crate::Retention;
use crate::durable::Done;
use crate::fault;
use crate::hub::{End, Hub};
use crate::journal::{Change, Key};
use crate::op::{WriteOp, Written};
use crate::record::Record;
use crate::spool::Spool;

/// Items of one commit at most.
const BATCH_ITEMS: usize = 512;
/// Bytes of content that close a batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// What nobody waits for is written with what comes within this time: alone it would cost a commit, and hold up the next one.
const LINGER: Duration = Duration::from_millis(2);
/// Running and queued tasks whose rows the writer remembers.
const CACHE_TASKS: usize = 20_000;

/// What watchers hear of a task once it is stored.
pub(super) struct News {
    pub(super) id: String,
    pub(super) events: Vec<pb::TaskEvent>,
    pub(super) end: Option<End>,
}

/// What one item gave.
pub(super) type Outcome = Result<(Written, Vec<News>), AgentError>;

/// Whether an error came from the database, not from a rule.
fn is_fault(e: &AgentError) -> bool {
    // One row that cannot be read, or a blob that cannot be written, names its table, and harms its own task alone.
    matches!(e.reason, Reason::StoreUnavailable | Reason::DiskLow | Reason::StoreCorrupt) && !e.metadata.contains_key("table")
}

fn ambiguous() -> AgentError {
    AgentError::new(Reason::CommitAmbiguous, "the commit failed; read back, or send again with the same request_id")
}

/// Calls whose answers are recorded at the end of a task, or of a step, within this batch.
fn answered(ops: &[WriteOp]) -> HashSet<(String, Key)> {
    let ends = ops.iter().filter_map(|op| match op {
        WriteOp::Finish { id, finish, .. } => Some((id, &finish.journal)),
        WriteOp::Answers { id, answers, .. } => Some((id, answers)),
        _ => None,
    });
    ends.flat_map(|(id, journal)| journal.iter().map(|(key, _)| (id.clone(), *key))).collect()
}

/// The intent of a call whose answer is in the same batch: both would write the same row.
fn is_overtaken(op: &WriteOp, answered: &HashSet<(String, Key)>) -> bool {
    match op {
        WriteOp::Journal { id, key, change: Change::Intent, .. } => answered.contains(&(id.clone(), *key)),
        _ => false,
    }
}

/// The thread, which owns the connection.
pub(super) struct Thread {
    pub(super) db: Box<dyn WriterDb>,
    pub(super) epoch: i64,
    pub(super) hub: Arc<Hub>,
    pub(super) clock: fn() -> i64,
    pub(super) cache: HashMap<String, Record>,
    jobs: mpsc::Receiver<Job>,
    /// Comes before what is in the queue.
    backlog: VecDeque<Job>,
    waiting: Arc<Waiting>,
    /// Where paid answers and ends are put down while the database is away; None where that is a file itself.
    spool: Option<Spool>,
    pub(super) chores: Chores,
    pub(super) blobs: Blobs,
    /// Some were put by the batch that is written.
    pub(super) unsealed: bool,
}

/// Starts the thread, which owns the connection, with what an earlier run had put into the spool; `on_end` hears once why it ended,
/// when the database is free again.
pub(crate) fn start(
    Opened { writer: db, blobs, epoch, spool, .. }: Opened,
    hub: Arc<Hub>,
    clock: fn() -> i64,
    retention: Retention,
    on_end: Box<dyn FnOnce(String) + Send>,
) -> Result<Writer, AgentError> {
    let (queue, jobs) = mpsc::channel();
    let waiting = Arc::new(Waiting::new());
    let shared = waiting.clone();
    let mut backlog = VecDeque::new();
    for op in spool.as_ref().map(Spool::read).transpose()?.unwrap_or_default() {
        let size = op.size();
        waiting.add(size);
        backlog.push_back(Job::Write(op, size, Box::new(drop)));
    }
    std::thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || {
            let (cache, chores) = (HashMap::new(), Chores::new(retention));
            let mut thread = Thread { db, epoch, hub, clock, cache, jobs, backlog, waiting: shared, spool, chores, blobs, unsealed: false };
            let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.run()));
            drop(thread);
            on_end(match end {
                Ok(Ok(())) => "stopped".to_owned(),
                Ok(Err(e)) => e.to_string(),
                Err(_) => "panic".to_owned(),
            });
        })
        .map_err(|e| AgentError::new(Reason::StoreUnavailable, format!("the writer cannot be started: {e}")))?;
    Ok(Writer::new(queue, waiting))
}

impl Thread {
    fn run(&mut self) -> Result<(), AgentError> {
        loop {
            let first = match self.backlog.pop_front().map_or_else(|| self.jobs.recv_timeout(self.chores.patience(&*self.db)), Ok) {
                Ok(first) => first,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.idle()?;
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let began = Instant::now();
            let mut awaited = !first.is_lazy();
            let mut bytes = self.taken(&first);
            let mut batch = vec![first];
            while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
                let there = self.backlog.pop_front().or_else(|| self.jobs.try_recv().ok());
                let next = there.or_else(|| {
                    let left = if awaited { Duration::ZERO } else { LINGER.saturating_sub(began.elapsed()) };
                    if left.is_zero() { None } else { self.jobs.recv_timeout(left).ok() }
                });
                let Some(job) = next else { break };
                awaited |= !job.is_lazy();
                bytes += self.taken(&job);
                batch.push(job);
            }
            let (ops, done) = batch
                .into_iter()
                .map(|job| match job {
                    Job::Panic => panic!("injected into the store's writer"),
                    Job::Write(op, _, done) => (op, done),
                })
                .unzip();
            self.batch(ops, done)?;
        }
    }

    fn idle(&mut self) -> Result<(), AgentError> {
        self.waiting.asks();
        match self.chores.idle(&mut *self.db, &self.blobs, (self.clock)()) {
            Ok(forgotten) => {
                self.waiting.answered();
                for id in forgotten {
                    self.cache.remove(&id);
                    self.hub.forget(&id);
                }
                Ok(())
            }
            // The next look finds what is left.
            Err(e) => self.mend(e, &[]).map(|_| ()),
        }
    }

    fn taken(&self, job: &Job) -> usize {
        match job {
            Job::Write(_, size, _) => {
                self.waiting.take(*size);
                *size
            }
            Job::Panic => 0,
        }
    }

    /// Writes a batch and answers it.
    fn batch(&mut self, ops: Vec<WriteOp>, done: Vec<Done>) -> Result<(), AgentError> {
        let kept = if self.db.comes_back() { ops.clone() } else { Vec::new() };
        let mut results = Vec::with_capacity(ops.len());
        let mut written = self.transaction(ops, &mut results);
        while let Err(e) = written {
            self.cache.clear();
            match self.mend(e, &kept) {
                Ok(true) => break,
                Ok(false) => {
                    results.clear();
                    written = self.transaction(kept.clone(), &mut results);
                }
                Err(e) => {
                    done.into_iter().for_each(|done| done(Err(ambiguous())));
                    return Err(e);
                }
            }
        }
        for (result, done) in results.into_iter().zip(done) {
            done(result.map(|(written, news)| {
                for News { id, events, end } in news {
                    self.hub.publish(&id, events, end, false);
                }
                written
            }));
        }
        if self.cache.len() > CACHE_TASKS {
            self.cache.clear();
        }
        if let Some(spool) = self.spool.as_mut().filter(|_| self.backlog.is_empty()) {
            spool.clear();
        }
        match self.db.committed() {
            Err(e) => self.mend(e, &[]).map(|_| ()),
            Ok(()) => Ok(()),
        }
    }

    fn transaction(&mut self, ops: Vec<WriteOp>, results: &mut Vec<Outcome>) -> Result<(), AgentError> {
        self.waiting.asks();
        self.db.begin()?;
        let mut names = fault::Names::default();
        let answered = answered(&ops);
        for op in ops {
            let name = op.name();
            names.add(name);
            let result = if is_overtaken(&op, &answered) { Ok((Written::Ok, Vec::new())) } else { self.item(op) };
            fault::point("before", name);
            // A fault of the database is no fault of the item: nothing of this batch may count.
            if self.db.lost() || (!self.db.careful() && result.as_ref().is_err_and(is_fault)) {
                return Err(result.err().unwrap_or_else(away));
            }
            results.push(result);
        }
        if std::mem::take(&mut self.unsealed) {
            self.blobs.seal()?;
        }
        self.db.commit()?;
        self.waiting.answered();
        names.point("after");
        Ok(())
    }

    /// Whether the batch that failed had been committed after all. While the database is away, what was paid for is put into the spool: what
    /// is in the batch, and what comes meanwhile.
    fn mend(&mut self, why: AgentError, batch: &[WriteOp]) -> Result<bool, AgentError> {
        let Self { db, jobs, backlog, waiting, spool, .. } = self;
        let mut unspooled = batch;
        let mended = db.mend(why, &mut || {
            waiting.away.store(true, Ordering::Relaxed);
            let new = backlog.len();
            backlog.extend(jobs.try_iter());
            if let Some(spool) = spool {
                let came = backlog.iter().skip(new).filter_map(|job| match job {
                    Job::Write(op, ..) => Some(op),
                    Job::Panic => None,
                });
                spool.keep(std::mem::take(&mut unspooled).iter().chain(came));
            }
            !waiting.closing.load(Ordering::Relaxed)
        });
        waiting.away.store(false, Ordering::Relaxed);
        match mended {
            Mended::Ended(e) => Err(e),
            Mended::Committed => {
                self.waiting.answered();
                Ok(true)
            }
            Mended::Again => {
                if batch.is_empty() {
                    self.waiting.answered();
                }
                Ok(false)
            }
        }
    }
}
