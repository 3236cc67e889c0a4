//! The one thread that writes: group commit.
//!
//! It takes what is there, up to a batch, each item in a savepoint, and commits; while it waits for the disk the next batch gathers. Whoever
//! asked hears after the commit. When a batch fails as a whole, the connection decides: what cannot be healed answers every item as
//! ambiguous and ends the store (after a failed fsync nothing that the kernel says of the file can be trusted); a server that was away is
//! waited for, and the batch is written again unless it had been committed.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agent_core::agent::text_message;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;

use super::chores::Chores;
use super::tasks::{Known, load, record_of, select, select_open};
use super::{Mended, Opened, Param, WriterDb, all, journal, memory, schedules, tasks};
use crate::Retention;
use crate::durable::{Done, deleted_request, existing, not_found};
use crate::fault;
use crate::hub::Hub;
use crate::journal::Change;
use crate::op::{WriteOp, Written};
use crate::record::{Record, is_terminal};
use crate::spool::Spool;

/// Items of one commit at most.
const BATCH_ITEMS: usize = 512;
/// Bytes of content that close a batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// Items that may wait for the writer.
const QUEUE_ITEMS: usize = 20_000;
/// Of these, reserved for results, cancels and fences.
const RESERVED_ITEMS: usize = QUEUE_ITEMS / 10;
/// Bytes of content that may wait for the writer; the reserved tenth comes on top.
const QUEUE_BYTES: usize = 256 * 1024 * 1024;
/// Running and queued tasks whose rows the writer remembers.
const CACHE_TASKS: usize = 20_000;
/// Attempts that one recovery closes.
const RECOVER_TASKS: i64 = 1000;

/// The conversation of a namespace that its tasks go on with.
const CONVERSATION: &str = "default";
/// Messages of it that a task is given at most, the newest ones.
const REMEMBERED_MESSAGES: i64 = 40;
/// Their bytes.
const REMEMBERED_BYTES: usize = 64 * 1024;

/// Events to publish once they are stored: task, events, whether it has ended.
type Publish = Vec<(String, Vec<pb::TaskEvent>, bool)>;
/// What one item gave.
type Outcome = Result<(Written, Publish), AgentError>;

enum Job {
    Write(WriteOp, usize, Done),
    Panic,
}

/// What waits for the writer.
#[derive(Default)]
struct Waiting {
    items: AtomicUsize,
    bytes: AtomicUsize,
    /// The database is away: what can be refused is refused at once.
    away: AtomicBool,
    /// Nobody waits for what is left.
    closing: AtomicBool,
    /// Since when the database has been asked for what it has not done yet, in ms of the clock below; -1: it owes nothing.
    owes_since: AtomicI64,
    clock: Clock,
}

/// Time that no clock of the machine moves.
struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    fn ms(&self) -> i64 {
        i64::try_from(self.0.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

impl Waiting {
    fn add(&self, bytes: usize) {
        self.items.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The database is asked for something; a repeated question counts from its first time.
    fn asks(&self) {
        let _ = self.owes_since.compare_exchange(-1, self.clock.ms(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It has done that.
    fn answered(&self) {
        self.owes_since.store(-1, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) {
        self.items.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The writer's end of the queue.
pub(crate) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    waiting: Arc<Waiting>,
}

impl Writer {
    /// Starts the thread, which owns the connection, with what an earlier run had put into the spool; `on_end` hears once why it ended,
    /// when the database is free again.
    pub(crate) fn start(
        Opened { writer: db, epoch, spool, .. }: Opened,
        hub: Arc<Hub>,
        clock: fn() -> i64,
        retention: Retention,
        on_end: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Self, AgentError> {
        let (queue, jobs) = mpsc::channel();
        let waiting = Arc::new(Waiting { owes_since: AtomicI64::new(-1), ..Waiting::default() });
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
                let mut thread = Thread { db, epoch, hub, clock, cache, jobs, backlog, waiting: shared, spool, chores };
                let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.run()));
                drop(thread);
                on_end(match end {
                    Ok(Ok(())) => "stopped".to_owned(),
                    Ok(Err(e)) => e.to_string(),
                    Err(_) => "panic".to_owned(),
                });
            })
            .map_err(|e| AgentError::new(Reason::StoreUnavailable, format!("the writer cannot be started: {e}")))?;
        Ok(Self { queue: Mutex::new(Some(queue)), waiting })
    }

    /// Queues a write; false when the queue is full or closed (then `done` was dropped unheard).
    pub(crate) fn write(&self, op: WriteOp, done: Done) -> bool {
        let urgent = op.is_urgent();
        if !urgent && self.waiting.away.load(Ordering::Relaxed) {
            done(Err(away()));
            return true;
        }
        let (items, bytes) =
            if urgent { (QUEUE_ITEMS, QUEUE_BYTES + QUEUE_BYTES / 10) } else { (QUEUE_ITEMS - RESERVED_ITEMS, QUEUE_BYTES) };
        if self.waiting.items.load(Ordering::Relaxed) >= items || self.waiting.bytes.load(Ordering::Relaxed) >= bytes {
            return false;
        }
        let size = op.size();
        self.waiting.add(size);
        let sent = self.queue.lock().as_ref().is_some_and(|q| q.send(Job::Write(op, size, done)).is_ok());
        if !sent {
            self.waiting.take(size);
        }
        sent
    }

    /// For how long the database has not done what it was asked for.
    pub(crate) fn silent_for(&self) -> Duration {
        match self.waiting.owes_since.load(Ordering::Relaxed) {
            -1 => Duration::ZERO,
            since => Duration::from_millis(u64::try_from(self.waiting.clock.ms() - since).unwrap_or(0)),
        }
    }

    /// Makes the writer panic, to see that the node lives.
    pub(crate) fn inject_panic(&self) {
        if let Some(q) = self.queue.lock().as_ref() {
            let _ = q.send(Job::Panic);
        }
    }

    /// Ends the thread after what waits.
    pub(crate) fn stop(&self) {
        self.waiting.closing.store(true, Ordering::Relaxed);
        self.queue.lock().take();
    }
}

fn away() -> AgentError {
    AgentError::new(Reason::StoreUnavailable, "the database does not answer; the store waits for it").retry_after(1000)
}

/// Whether an error came from the database, not from a rule.
fn is_fault(e: &AgentError) -> bool {
    // One row that cannot be read names its table, and harms its own task alone.
    matches!(e.reason, Reason::StoreUnavailable | Reason::DiskLow | Reason::StoreCorrupt) && !e.metadata.contains_key("table")
}

fn ambiguous() -> AgentError {
    AgentError::new(Reason::CommitAmbiguous, "the commit failed; read back, or send again with the same request_id")
}

fn namespace(spec: &pb::AgentTask) -> &str {
    spec.context.as_ref().map_or("", |context| &context.memory_namespace)
}

struct Thread {
    db: Box<dyn WriterDb>,
    epoch: i64,
    hub: Arc<Hub>,
    clock: fn() -> i64,
    cache: HashMap<String, Record>,
    jobs: mpsc::Receiver<Job>,
    /// Comes before what is in the queue.
    backlog: VecDeque<Job>,
    waiting: Arc<Waiting>,
    /// Where paid answers and ends are put down while the database is away; None where that is a file itself.
    spool: Option<Spool>,
    chores: Chores,
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
            let mut bytes = self.taken(&first);
            let mut batch = vec![first];
            while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
                let Some(job) = self.backlog.pop_front().or_else(|| self.jobs.try_recv().ok()) else { break };
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
        match self.chores.idle(&mut *self.db, (self.clock)()) {
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
            done(result.map(|(written, publish)| {
                for (id, events, ended) in publish {
                    self.hub.publish(&id, events, ended, false);
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
        for op in ops {
            let name = op.name();
            names.add(name);
            let result = self.item(op);
            fault::point("before", name);
            // A fault of the database is no fault of the item: nothing of this batch may count.
            if self.db.lost() || (!self.db.careful() && result.as_ref().is_err_and(is_fault)) {
                return Err(result.err().unwrap_or_else(away));
            }
            results.push(result);
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

    /// One item: it fails alone.
    fn item(&mut self, op: WriteOp) -> Outcome {
        let guarded = self.db.careful() || op.may_fail_halfway();
        if guarded {
            self.db.batch("SAVEPOINT item")?;
        }
        let id = op.task_id().map(str::to_owned);
        let result = self.apply(op);
        if result.is_err() {
            if let Some(id) = id {
                self.cache.remove(&id);
            }
            if guarded {
                self.db.batch("ROLLBACK TO SAVEPOINT item")?;
            }
        }
        if guarded {
            self.db.batch("RELEASE SAVEPOINT item")?;
        }
        result
    }

    fn apply(&mut self, op: WriteOp) -> Outcome {
        let now = (self.clock)();
        let epoch = self.epoch;
        match op {
            WriteOp::Submit { header, spec, run, route } => {
                if !header.content_hash.is_empty() {
                    let known = tasks::find_request(&mut *self.db, &header.tenant, &header.request_id)?;
                    let same = known.map(|known| match known {
                        Known::Task(old) => existing(&old, &header.content_hash, &spec),
                        Known::Deleted(id, hash) => deleted_request(id, &hash, &header.content_hash),
                    });
                    if let Some(same) = same {
                        return same.map(|written| (written, Vec::new()));
                    }
                }
                // What its conversation holds is read when it is claimed.
                let run = run && namespace(&spec).is_empty();
                let (record, events, written) = Record::submitted(&header, *spec, run, route, epoch, now);
                tasks::insert(&mut *self.db, &record, &events)?;
                if !header.fork_of.is_empty() {
                    journal::copy(&mut *self.db, &header.fork_of, &header.task_id, header.fork_after)?;
                }
                let id = header.task_id;
                self.cache.insert(id.clone(), record);
                Ok((written, vec![(id, events, false)]))
            }
            WriteOp::Claim { id } => {
                self.remember(&id)?;
                self.change(&id, |r| r.claim(epoch, now))
            }
            WriteOp::Attempt { id, fence, info } => self.change(&id, |r| r.attempt(fence, info)),
            WriteOp::Route { id, fence, route } => self.change(&id, |r| r.route(fence, route)),
            WriteOp::Events { id, fence, events } => self.change(&id, |r| r.events(fence, events, now)),
            WriteOp::Finish { id, fence, mut finish } => {
                let answers = std::mem::take(&mut finish.journal);
                let said = finish.result.as_ref().filter(|_| finish.state == pb::TaskState::Succeeded).map(|r| r.output.clone());
                let turn = said.map(|said| self.turn(&id, said)).transpose()?.flatten();
                let done = self.change(&id, |r| r.finish(fence, *finish, now))?;
                if let Some((tenant, namespace, turn)) = turn {
                    memory::append(&mut *self.db, &tenant, &namespace, CONVERSATION, &turn)?;
                }
                for (key, answer) in answers {
                    journal::change(&mut *self.db, &id, fence, i64::MAX, &key, &Change::Answer(answer))?;
                }
                Ok(done)
            }
            WriteOp::Journal { id, fence, key, change } => {
                let sequence = self.held(&id, fence)?;
                journal::change(&mut *self.db, &id, fence, sequence, &key, &change)?;
                Ok((Written::Ok, Vec::new()))
            }
            WriteOp::ToolBegin { id, fence, key, replay } => {
                let sequence = self.held(&id, fence)?;
                let decision = journal::tool_begin(&mut *self.db, &id, fence, sequence, &key, replay)?;
                Ok((Written::Tool(decision), Vec::new()))
            }
            WriteOp::Requeue { id, fence, outcome, cause, counts, not_before_ms, events } => {
                self.change(&id, |r| r.requeue(fence, &outcome, &cause, counts, not_before_ms, events, now))
            }
            WriteOp::Park { id, fence, inputs, events } => self.change(&id, |r| r.park(fence, inputs, events, now)),
            WriteOp::Signal { tenant, id, signal } => {
                self.change(&id, |r| if r.tenant == tenant { r.signal(*signal, now) } else { Err(not_found(&id)) })
            }
            WriteOp::Wake { id } => self.change(&id, |r| r.wake(now)),
            WriteOp::Fence { id, fence } => self.change(&id, |r| r.fence(fence)),
            WriteOp::CancelRequest { tenant, id } => {
                self.change(&id, |r| if r.tenant == tenant { Ok(r.cancel_request()) } else { Err(not_found(&id)) })
            }
            WriteOp::Delete { tenant, id } => self.delete(&tenant, &id, now),
            WriteOp::PutAgent { tenant, id, data } => self.sql(
                "INSERT INTO agent VALUES(?1, ?2, ?3) ON CONFLICT (tenant, id) DO UPDATE SET data = excluded.data",
                &[(&tenant).into(), (&id).into(), (&data).into()],
            ),
            WriteOp::DeleteAgent { tenant, id } => {
                self.sql("DELETE FROM agent WHERE tenant = ?1 AND id = ?2", &[(&tenant).into(), (&id).into()])
            }
            WriteOp::Memory { tenant, op } => {
                let answer = memory::write(&mut *self.db, &tenant, &op, now)?;
                Ok((Written::Memory(answer), Vec::new()))
            }
            WriteOp::Schedule { tenant, op } => {
                let schedule = schedules::write(&mut *self.db, &tenant, op, now)?;
                Ok((Written::Schedule(Box::new(schedule)), Vec::new()))
            }
            WriteOp::Recover => self.recover(now),
        }
    }

    fn sql(&mut self, sql: &str, params: &[Param<'_>]) -> Outcome {
        self.db.execute(sql, params)?;
        Ok((Written::Ok, Vec::new()))
    }

    /// Whether the fence holds the task; its row stays as it is. Gives the last event's number.
    fn held(&mut self, id: &str, fence: i64) -> Result<i64, AgentError> {
        let record = self.cached(id)?;
        record.running(fence).map(|()| record.sequence)
    }

    /// A task's row, read if it is not known.
    fn cached(&mut self, id: &str) -> Result<&mut Record, AgentError> {
        if !self.cache.contains_key(id) {
            let record = load(&mut *self.db, id)?.ok_or_else(|| not_found(id))?;
            self.cache.insert(id.to_owned(), record);
        }
        self.cache.get_mut(id).ok_or_else(|| not_found(id))
    }

    /// Before its first attempt a task is given what its namespace remembers; later ones see the same, so that they ask the same.
    fn remember(&mut self, id: &str) -> Result<(), AgentError> {
        let record = self.cached(id)?;
        let namespace = record.task.spec.as_ref().map(namespace).unwrap_or_default().to_owned();
        if record.task.attempts == 0 && !namespace.is_empty() {
            let tenant = record.tenant.clone();
            let window = memory::window(&mut *self.db, &tenant, &namespace, CONVERSATION, REMEMBERED_MESSAGES, REMEMBERED_BYTES)?;
            self.cached(id)?.task.remembered = window;
        }
        Ok(())
    }

    /// What a task that ends well adds to the conversation of its namespace: tenant, namespace, question and answer.
    fn turn(&mut self, id: &str, said: String) -> Result<Option<(String, String, Vec<pb::Message>)>, AgentError> {
        let record = self.cached(id)?;
        Ok(record.task.spec.as_ref().filter(|spec| !namespace(spec).is_empty()).map(|spec| {
            let turn = vec![text_message(pb::Role::User, spec.description.clone()), text_message(pb::Role::Assistant, said)];
            (record.tenant.clone(), namespace(spec).to_owned(), turn)
        }))
    }

    fn change(&mut self, id: &str, f: impl FnOnce(&mut Record) -> Result<(Vec<pb::TaskEvent>, Written), AgentError>) -> Outcome {
        let record = self.cached(id)?;
        let fence = record.task.fencing_token;
        let (events, written) = f(record)?;
        let ended = is_terminal(record.task.state());
        let record = self.cache.get(id).ok_or_else(|| not_found(id))?;
        // The fence is checked once more by the statement: nobody else may have written, and if somebody had, this item fails.
        tasks::update(&mut *self.db, record, fence, matches!(written, Written::Sequence(_)))?;
        tasks::add_events(&mut *self.db, id, &events)?;
        if ended {
            self.cache.remove(id);
        }
        Ok((written, vec![(id.to_owned(), events, ended)]))
    }

    fn delete(&mut self, tenant: &str, id: &str, now: i64) -> Outcome {
        let record = load(&mut *self.db, id)?.filter(|r| r.tenant == tenant).ok_or_else(|| not_found(id))?;
        if !is_terminal(record.task.state()) {
            return Err(AgentError::new(Reason::WrongState, "the task has not ended; cancel it first"));
        }
        self.cache.remove(id);
        self.hub.forget(id);
        tasks::forget(&mut *self.db, &record, now)?;
        Ok((Written::Ok, Vec::new()))
    }

    /// Ends attempts of earlier epochs, and open tasks whose cancel was asked for then; so many at once that others are not kept waiting.
    fn recover(&mut self, now: i64) -> Outcome {
        let params = [self.epoch.into(), RECOVER_TASKS.into()];
        let asked = select("asked = 1 AND (state IN (1, 3) OR epoch < ?1) LIMIT ?2");
        let mut found = all(&mut *self.db, &asked, &params, record_of)?;
        if found.is_empty() {
            found = all(&mut *self.db, &select_open("state = 2 AND epoch < ?1 LIMIT ?2"), &params, record_of)?;
        }
        let more = !found.is_empty();
        let mut publish = Vec::with_capacity(found.len());
        for mut record in found {
            let fence = record.task.fencing_token;
            let events = record.recover(now);
            tasks::update(&mut *self.db, &record, fence, false)?;
            tasks::add_events(&mut *self.db, &record.task.id, &events)?;
            self.cache.remove(&record.task.id);
            let ended = is_terminal(record.task.state());
            publish.push((record.task.id, events, ended));
        }
        Ok((Written::Recovered { more }, publish))
    }
}
