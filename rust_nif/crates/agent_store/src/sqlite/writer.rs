//! The one thread that writes.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::chores::Chores;
use super::journal;
use super::rows::{SELECT, attempts_blob, load, record_of};
use super::{OPEN, unavailable};
use crate::durable::{Done, existing, not_found};
use crate::hub::Hub;
use crate::journal::Change;
use crate::op::{Queued, WriteOp, Written};
use crate::record::{Record, is_terminal};

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
/// Tasks that one recovery gives back.
const RECOVER_TASKS: i64 = 10_000;

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
}

impl Waiting {
    fn add(&self, bytes: usize) {
        self.items.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
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
    /// Starts the thread, which holds the lock of the data folder; `on_end` hears once why it ended, when file and lock are free again.
    pub(crate) fn start(
        db: Connection,
        lock: File,
        epoch: i64,
        hub: Arc<Hub>,
        clock: fn() -> i64,
        chores: Chores,
        on_end: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Self, AgentError> {
        let (queue, jobs) = mpsc::channel();
        let waiting = Arc::new(Waiting::default());
        let counter = waiting.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                let mut thread = Thread { db, epoch, hub, clock, cache: HashMap::new(), waiting: counter, chores };
                let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.run(&jobs)));
                drop(thread);
                drop(lock);
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
        let (items, bytes) =
            if op.is_urgent() { (QUEUE_ITEMS, QUEUE_BYTES + QUEUE_BYTES / 10) } else { (QUEUE_ITEMS - RESERVED_ITEMS, QUEUE_BYTES) };
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

    /// Makes the writer panic, to see that the node lives.
    pub(crate) fn inject_panic(&self) {
        if let Some(q) = self.queue.lock().as_ref() {
            let _ = q.send(Job::Panic);
        }
    }

    /// Ends the thread after what waits.
    pub(crate) fn stop(&self) {
        self.queue.lock().take();
    }
}

struct Thread {
    db: Connection,
    epoch: i64,
    hub: Arc<Hub>,
    clock: fn() -> i64,
    cache: HashMap<String, Record>,
    waiting: Arc<Waiting>,
    chores: Chores,
}

struct Item {
    done: Done,
    result: Result<Written, AgentError>,
    publish: Publish,
}

impl Thread {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) -> Result<(), AgentError> {
        loop {
            let first = match jobs.recv_timeout(self.chores.patience()) {
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
                let Ok(job) = jobs.try_recv() else { break };
                bytes += self.taken(&job);
                batch.push(job);
            }
            self.commit(batch)?;
            self.chores.committed(&self.db).map_err(|e| unavailable(&e))?;
        }
    }

    fn idle(&mut self) -> Result<(), AgentError> {
        for id in self.chores.idle(&self.db, (self.clock)()).map_err(|e| unavailable(&e))? {
            self.cache.remove(&id);
            self.hub.forget(&id);
        }
        Ok(())
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

    fn commit(&mut self, batch: Vec<Job>) -> Result<(), AgentError> {
        self.exec("BEGIN IMMEDIATE")?;
        let mut items = Vec::with_capacity(batch.len());
        for job in batch {
            match job {
                Job::Panic => panic!("injected into the store's writer"),
                Job::Write(op, _, done) => {
                    let (result, publish) = match self.item(op) {
                        Ok((written, publish)) => (Ok(written), publish),
                        Err(e) => (Err(e), Vec::new()),
                    };
                    items.push(Item { done, result, publish });
                }
            }
        }
        if let Err(e) = self.exec("COMMIT") {
            self.cache.clear();
            for item in items {
                (item.done)(Err(AgentError::new(
                    Reason::CommitAmbiguous,
                    "the commit failed; read back, or send again with the same request_id",
                )));
            }
            return Err(e);
        }
        for item in items {
            for (id, events, ended) in item.publish {
                self.hub.publish(&id, events, ended, false);
            }
            (item.done)(item.result);
        }
        if self.cache.len() > CACHE_TASKS {
            self.cache.clear();
        }
        Ok(())
    }

    fn exec(&self, sql: &str) -> Result<(), AgentError> {
        self.db.execute_batch(sql).map_err(|e| unavailable(&e))
    }

    /// One item in its savepoint: it fails alone.
    fn item(&mut self, op: WriteOp) -> Outcome {
        self.exec("SAVEPOINT item")?;
        let id = op.task_id().map(str::to_owned);
        let result = self.apply(op);
        if result.is_err() {
            if let Some(id) = id {
                self.cache.remove(&id);
            }
            self.exec("ROLLBACK TO item")?;
        }
        self.exec("RELEASE item")?;
        result
    }

    fn apply(&mut self, op: WriteOp) -> Outcome {
        let now = (self.clock)();
        let epoch = self.epoch;
        match op {
            WriteOp::Submit { header, spec, run } => {
                if !header.content_hash.is_empty()
                    && let Some(old) = self.find_request(&header.tenant, &header.request_id)?
                {
                    return existing(&old, &header.content_hash, &spec).map(|w| (w, Vec::new()));
                }
                let (record, events, written) = Record::submitted(&header, *spec, run, epoch, now);
                self.insert(&record, &events)?;
                let id = header.task_id;
                self.cache.insert(id.clone(), record);
                Ok((written, vec![(id, events, false)]))
            }
            WriteOp::Claim { id } => self.change(&id, |r| r.claim(epoch, now)),
            WriteOp::Attempt { id, fence, info } => self.change(&id, |r| r.attempt(fence, info)),
            WriteOp::Route { id, fence, route } => self.change(&id, |r| r.route(fence, route)),
            WriteOp::Events { id, fence, events } => self.change(&id, |r| r.events(fence, events, now)),
            WriteOp::Finish { id, fence, mut finish } => {
                let answers = std::mem::take(&mut finish.journal);
                let done = self.change(&id, |r| r.finish(fence, *finish, now))?;
                for (key, answer) in answers {
                    journal::change(&self.db, &id, fence, &key, &Change::Answer(answer)).map_err(|e| unavailable(&e))?;
                }
                Ok(done)
            }
            WriteOp::Journal { id, fence, key, change } => {
                self.held(&id, fence)?;
                journal::change(&self.db, &id, fence, &key, &change).map_err(|e| unavailable(&e))?;
                Ok((Written::Ok, Vec::new()))
            }
            WriteOp::ToolBegin { id, fence, key, replay } => {
                self.held(&id, fence)?;
                let decision = journal::tool_begin(&self.db, &id, fence, &key, replay).map_err(|e| unavailable(&e))?;
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
            WriteOp::Delete { tenant, id } => self.delete(&tenant, &id),
            WriteOp::PutAgent { tenant, id, data } => {
                self.sql("INSERT OR REPLACE INTO agent VALUES(?1, ?2, ?3)", params![tenant, id, data])
            }
            WriteOp::DeleteAgent { tenant, id } => self.sql("DELETE FROM agent WHERE tenant = ?1 AND id = ?2", params![tenant, id]),
            WriteOp::Recover => self.recover(now),
        }
    }

    fn sql(&self, sql: &str, params: impl rusqlite::Params) -> Outcome {
        self.db.prepare_cached(sql).and_then(|mut s| s.execute(params)).map_err(|e| unavailable(&e))?;
        Ok((Written::Ok, Vec::new()))
    }

    fn find_request(&self, tenant: &str, request_id: &str) -> Result<Option<Record>, AgentError> {
        let sql = format!("{SELECT} WHERE tenant = ?1 AND request_id = ?2");
        self.db
            .prepare_cached(&sql)
            .and_then(|mut s| s.query_row(params![tenant, request_id], record_of).optional())
            .map_err(|e| unavailable(&e))
    }

    /// Whether the fence holds the task; its row stays as it is.
    fn held(&mut self, id: &str, fence: i64) -> Result<(), AgentError> {
        if !self.cache.contains_key(id) {
            let record = load(&self.db, id).map_err(|e| unavailable(&e))?.ok_or_else(|| not_found(id))?;
            self.cache.insert(id.to_owned(), record);
        }
        self.cache.get(id).map_or_else(|| Err(not_found(id)), |r| r.running(fence))
    }

    fn change(&mut self, id: &str, f: impl FnOnce(&mut Record) -> Result<(Vec<pb::TaskEvent>, Written), AgentError>) -> Outcome {
        let mut record = match self.cache.remove(id) {
            Some(record) => record,
            None => load(&self.db, id).map_err(|e| unavailable(&e))?.ok_or_else(|| not_found(id))?,
        };
        let fence = record.task.fencing_token;
        let (events, written) = f(&mut record)?;
        // The fence is checked once more by the statement: nobody else may have written, and if somebody had, this item fails.
        let rows = self.update(&record, fence, matches!(written, Written::Sequence(_)))?;
        if rows != 1 {
            return Err(AgentError::new(Reason::AttemptFenced, "the row was changed by another writer"));
        }
        self.add_events(id, &events)?;
        let ended = is_terminal(record.task.state());
        if !ended {
            self.cache.insert(id.to_owned(), record);
        }
        Ok((written, vec![(id.to_owned(), events, ended)]))
    }

    fn insert(&self, r: &Record, events: &[pb::TaskEvent]) -> Result<(), AgentError> {
        let created = r.task.create_time.as_ref().map_or(0, agent_core::header::timestamp_ms);
        let rid: String = r.task.id.chars().rev().collect();
        let request = (!r.hash.is_empty()).then_some(&r.task.request_id);
        self.db
            .prepare_cached("INSERT INTO task VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,0)")
            .and_then(|mut s| {
                s.execute(params![
                    r.task.id,
                    rid,
                    r.tenant,
                    request,
                    r.task.state,
                    r.task.fencing_token,
                    r.epoch,
                    r.not_before_ms,
                    created,
                    r.lost,
                    r.sequence,
                    r.text_offset,
                    r.hash,
                    agent_core::hash::VERSION,
                    r.task.encode_to_vec(),
                    attempts_blob(r)
                ])
            })
            .map_err(|e| unavailable(&e))?;
        self.add_events(&r.task.id, events)
    }

    /// Events alone leave the blobs as they are: a task that streams does not rewrite itself.
    fn update(&self, r: &Record, old_fence: i64, numbers_only: bool) -> Result<usize, AgentError> {
        let result = if numbers_only {
            self.db
                .prepare_cached("UPDATE task SET sequence = ?3, text_offset = ?4 WHERE id = ?1 AND fence = ?2")
                .and_then(|mut s| s.execute(params![r.task.id, old_fence, r.sequence, r.text_offset]))
        } else {
            self.db
                .prepare_cached("UPDATE task SET state = ?3, fence = ?4, epoch = ?5, not_before = ?6, lost = ?7, sequence = ?8, text_offset = ?9, data = ?10, attempts = ?11, end_ms = ?12 WHERE id = ?1 AND fence = ?2")
                .and_then(|mut s| {
                    s.execute(params![
                        r.task.id, old_fence, r.task.state, r.task.fencing_token, r.epoch, r.not_before_ms, r.lost, r.sequence, r.text_offset,
                        r.task.encode_to_vec(), attempts_blob(r), r.task.end_time.as_ref().map_or(0, agent_core::header::timestamp_ms)
                    ])
                })
        };
        result.map_err(|e| unavailable(&e))
    }

    fn add_events(&self, id: &str, events: &[pb::TaskEvent]) -> Result<(), AgentError> {
        for event in events {
            self.db
                .prepare_cached("INSERT INTO event VALUES(?1, ?2, ?3)")
                .and_then(|mut s| s.execute(params![id, event.sequence, event.encode_to_vec()]))
                .map_err(|e| unavailable(&e))?;
        }
        Ok(())
    }

    fn delete(&mut self, tenant: &str, id: &str) -> Outcome {
        let record = load(&self.db, id).map_err(|e| unavailable(&e))?.filter(|r| r.tenant == tenant).ok_or_else(|| not_found(id))?;
        if !is_terminal(record.task.state()) {
            return Err(AgentError::new(Reason::WrongState, "the task has not ended; cancel it first"));
        }
        self.cache.remove(id);
        self.hub.forget(id);
        self.sql("DELETE FROM event WHERE task_id = ?1", params![id])?;
        journal::delete(&self.db, id).map_err(|e| unavailable(&e))?;
        self.sql("DELETE FROM task WHERE id = ?1", params![id])
    }

    fn recover(&mut self, now: i64) -> Outcome {
        let select = |db: &Connection, condition: &str| -> Result<Vec<Record>, rusqlite::Error> {
            let mut s = db.prepare(&format!("{SELECT} WHERE {condition}"))?;
            let rows = s.query_map([], record_of)?;
            rows.collect()
        };
        let lost = select(&self.db, &format!("{OPEN} AND state = 2 AND epoch < {}", self.epoch)).map_err(|e| unavailable(&e))?;
        let mut publish = Vec::with_capacity(lost.len());
        let waiting = select(&self.db, &format!("{OPEN} AND state = 3")).map_err(|e| unavailable(&e))?;
        let queued = select(&self.db, &format!("{OPEN} AND state = 1 ORDER BY id LIMIT {RECOVER_TASKS}")).map_err(|e| unavailable(&e))?;
        let asked = waiting.into_iter().chain(queued).filter(|r| r.task.cancel_requested);
        for mut record in lost.into_iter().chain(asked) {
            let fence = record.task.fencing_token;
            let events = record.recover(now);
            self.update(&record, fence, false)?;
            self.add_events(&record.task.id, &events)?;
            self.cache.remove(&record.task.id);
            let ended = is_terminal(record.task.state());
            publish.push((record.task.id, events, ended));
        }
        let queued = select(&self.db, &format!("{OPEN} AND state = 1 ORDER BY id LIMIT {RECOVER_TASKS}")).map_err(|e| unavailable(&e))?;
        Ok((Written::Recovered(queued.iter().map(|r| Queued { header: r.header(), lost: r.lost }).collect()), publish))
    }
}
