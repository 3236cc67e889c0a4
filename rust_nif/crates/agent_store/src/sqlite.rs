//! The durable back end: SQLite, WAL, `synchronous=FULL`, one writer thread with group commit.
//!
//! The writer takes what is there, up to a batch, each item in a savepoint, and commits; while it waits for the disk the next batch gathers. Whoever
//! asked hears after the commit. A commit that fails answers every item of the batch as ambiguous and ends the store: after a failed fsync
//! nothing that the kernel says of the file can be trusted.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use agent_core::hash::differing_field;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use crate::hub::Hub;
use crate::op::{Queued, WriteOp, Written};
use crate::record::{Record, is_terminal};

/// Version of the schema that this program writes.
pub const SCHEMA: i64 = 1;
/// Items of one commit at most.
const BATCH_ITEMS: usize = 512;
/// Items that may wait for the writer.
const QUEUE_ITEMS: usize = 20_000;
/// Of these, reserved for results, cancels and fences.
const RESERVED_ITEMS: usize = QUEUE_ITEMS / 10;
/// Bytes of content that may wait for the writer; the reserved tenth comes on top.
const QUEUE_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of content that close a batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// The words of the partial index `task_open`: a query uses it only if it says the same.
const OPEN: &str = "state IN (1, 2, 3)";
/// Running and queued tasks whose rows the writer remembers.
const CACHE_TASKS: usize = 20_000;
/// Tasks that one recovery gives back.
const RECOVER_TASKS: i64 = 10_000;
/// Versions from 3.7.0 to 3.51.2 may corrupt a database in WAL mode (sqlite.org/wal.html, "WAL-reset bug").
const SQLITE_AFFECTED_UNTIL: i32 = 3_051_002;

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

/// Told the outcome of a write.
pub(crate) type Done = Box<dyn FnOnce(Result<Written, AgentError>) + Send>;

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

pub(crate) fn unavailable(e: &rusqlite::Error) -> AgentError {
    let reason = match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => Reason::DiskLow,
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => Reason::StoreCorrupt,
        _ => Reason::StoreUnavailable,
    };
    AgentError::new(reason, format!("the database answered: {e}")).retry_after(1000)
}

/// Opens or makes the database; gives the connection of the writer and the boot epoch.
pub(crate) fn open(path: &Path) -> Result<(Connection, i64), AgentError> {
    if (3_007_000..=SQLITE_AFFECTED_UNTIL).contains(&rusqlite::version_number()) {
        return Err(AgentError::new(Reason::StoreUnavailable, format!("SQLite {} has the WAL-reset bug", rusqlite::version())));
    }
    let mut db = Connection::open(path).map_err(|e| unavailable(&e))?;
    let setup = |db: &mut Connection| -> Result<i64, rusqlite::Error> {
        // Both only take effect before the first table.
        db.pragma_update(None, "page_size", 8192)?;
        db.pragma_update(None, "auto_vacuum", 2)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "mmap_size", 0)?;
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
            tx.pragma_update(None, "user_version", SCHEMA)?;
        }
        let epoch = tx.query_row("UPDATE meta SET value = value + 1 WHERE key = 'epoch' RETURNING value", [], |r| r.get(0))?;
        tx.commit()?;
        Ok(epoch)
    };
    let epoch = migrate(&mut db).map_err(|e| unavailable(&e))?;
    Ok((db, epoch))
}

impl Writer {
    /// Starts the thread, which holds the lock of the data folder; `on_end` hears once why it ended, when file and lock are free again.
    pub(crate) fn start(
        db: Connection,
        lock: File,
        epoch: i64,
        hub: Arc<Hub>,
        clock: fn() -> i64,
        on_end: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Self, AgentError> {
        let (queue, jobs) = mpsc::channel();
        let waiting = Arc::new(Waiting::default());
        let counter = waiting.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                let mut thread = Thread { db, epoch, hub, clock, cache: HashMap::new(), waiting: counter };
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
}

struct Item {
    done: Done,
    result: Result<Written, AgentError>,
    publish: Vec<(String, Vec<pb::TaskEvent>, bool)>,
}

impl Thread {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) -> Result<(), AgentError> {
        while let Ok(first) = jobs.recv() {
            let mut bytes = self.taken(&first);
            let mut batch = vec![first];
            while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                bytes += self.taken(&job);
                batch.push(job);
            }
            self.commit(batch)?;
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
    #[allow(clippy::type_complexity)]
    fn item(&mut self, op: WriteOp) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
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

    #[allow(clippy::type_complexity)]
    fn apply(&mut self, op: WriteOp) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
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
            WriteOp::Finish { id, fence, finish } => self.change(&id, |r| r.finish(fence, *finish, now)),
            WriteOp::Requeue { id, fence, outcome, cause, counts, not_before_ms, events } => {
                self.change(&id, |r| r.requeue(fence, &outcome, &cause, counts, not_before_ms, events, now))
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

    #[allow(clippy::type_complexity)]
    fn sql(&self, sql: &str, params: impl rusqlite::Params) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
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

    #[allow(clippy::type_complexity)]
    fn change(
        &mut self,
        id: &str,
        f: impl FnOnce(&mut Record) -> Result<(Vec<pb::TaskEvent>, Written), AgentError>,
    ) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
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
            .prepare_cached("INSERT INTO task VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)")
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
                .prepare_cached("UPDATE task SET state = ?3, fence = ?4, epoch = ?5, not_before = ?6, lost = ?7, sequence = ?8, text_offset = ?9, data = ?10, attempts = ?11 WHERE id = ?1 AND fence = ?2")
                .and_then(|mut s| {
                    s.execute(params![
                        r.task.id, old_fence, r.task.state, r.task.fencing_token, r.epoch, r.not_before_ms, r.lost, r.sequence, r.text_offset,
                        r.task.encode_to_vec(), attempts_blob(r)
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

    #[allow(clippy::type_complexity)]
    fn delete(&mut self, tenant: &str, id: &str) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
        let record = load(&self.db, id).map_err(|e| unavailable(&e))?.filter(|r| r.tenant == tenant).ok_or_else(|| not_found(id))?;
        if !is_terminal(record.task.state()) {
            return Err(AgentError::new(Reason::WrongState, "the task has not ended; cancel it first"));
        }
        self.cache.remove(id);
        self.hub.forget(id);
        self.sql("DELETE FROM event WHERE task_id = ?1", params![id])?;
        self.sql("DELETE FROM task WHERE id = ?1", params![id])
    }

    #[allow(clippy::type_complexity)]
    fn recover(&mut self, now: i64) -> Result<(Written, Vec<(String, Vec<pb::TaskEvent>, bool)>), AgentError> {
        let select = |db: &Connection, condition: &str| -> Result<Vec<Record>, rusqlite::Error> {
            let mut s = db.prepare(&format!("{SELECT} WHERE {condition}"))?;
            let rows = s.query_map([], record_of)?;
            rows.collect()
        };
        let lost = select(&self.db, &format!("{OPEN} AND state = 2 AND epoch < {}", self.epoch)).map_err(|e| unavailable(&e))?;
        let mut publish = Vec::with_capacity(lost.len());
        for mut record in lost {
            let fence = record.task.fencing_token;
            let events = record.recover(now);
            self.update(&record, fence, false)?;
            self.add_events(&record.task.id, &events)?;
            self.cache.remove(&record.task.id);
            publish.push((record.task.id, events, false));
        }
        let queued = select(&self.db, &format!("{OPEN} AND state = 1 ORDER BY id LIMIT {RECOVER_TASKS}")).map_err(|e| unavailable(&e))?;
        Ok((Written::Recovered(queued.iter().map(|r| Queued { header: r.header(), lost: r.lost }).collect()), publish))
    }
}

/// The answer to a request id that is known already.
pub(crate) fn existing(old: &Record, hash: &[u8], spec: &pb::AgentTask) -> Result<Written, AgentError> {
    if old.hash == hash {
        return Ok(Written::Existing { id: old.task.id.clone() });
    }
    let field = old.task.spec.as_ref().and_then(|s| differing_field(s, spec)).unwrap_or("task");
    Err(AgentError::new(Reason::RequestIdReused, format!("the request_id belongs to task {}, which differs in {field}", old.task.id))
        .with("task_id", &old.task.id)
        .with("field", field))
}

pub(crate) fn not_found(id: &str) -> AgentError {
    AgentError::new(Reason::TaskNotFound, format!("there is no task {}", id.chars().take(40).collect::<String>()))
}

const SELECT: &str = "SELECT tenant, lost, epoch, not_before, sequence, text_offset, hash, data, attempts FROM task";

fn record_of(row: &rusqlite::Row<'_>) -> Result<Record, rusqlite::Error> {
    let blob = |i: usize| -> Result<Vec<u8>, rusqlite::Error> { Ok(row.get_ref(i)?.as_blob()?.to_vec()) };
    let bad = |e: prost::DecodeError| rusqlite::Error::FromSqlConversionFailure(7, rusqlite::types::Type::Blob, Box::new(e));
    Ok(Record {
        tenant: row.get(0)?,
        lost: row.get(1)?,
        epoch: row.get(2)?,
        not_before_ms: row.get(3)?,
        sequence: row.get(4)?,
        text_offset: row.get(5)?,
        hash: row.get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default(),
        task: pb::Task::decode(blob(7)?.as_slice()).map_err(bad)?,
        attempts: pb::ListAttemptsResponse::decode(blob(8)?.as_slice()).map_err(bad)?.attempts,
    })
}

fn attempts_blob(r: &Record) -> Vec<u8> {
    pb::ListAttemptsResponse { attempts: r.attempts.clone(), next_page_token: String::new() }.encode_to_vec()
}

fn load(db: &Connection, id: &str) -> Result<Option<Record>, rusqlite::Error> {
    db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?.query_row([id], record_of).optional()
}

fn due_sql() -> String {
    format!("SELECT id FROM task WHERE {OPEN} AND state = 3 AND not_before > 0 AND not_before <= ?1 ORDER BY not_before LIMIT 1000")
}

/// Read connections, opened as needed.
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>) -> Result<T, AgentError> {
        let idle = self.idle.lock().pop();
        let db = match idle {
            Some(db) => db,
            None => Connection::open_with_flags(
                &self.path,
                rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )
            .map_err(|e| unavailable(&e))?,
        };
        let result = f(&db).map_err(|e| unavailable(&e));
        let mut idle = self.idle.lock();
        if idle.len() < 8 {
            idle.push(db);
        }
        result
    }

    pub(crate) fn get(&self, tenant: &str, id: &str) -> Result<Option<Record>, AgentError> {
        Ok(self.with(|db| load(db, id))?.filter(|r| r.tenant == tenant))
    }

    /// Ids of a tenant that end so; at most 10.
    pub(crate) fn by_suffix(&self, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError> {
        let low: String = suffix.chars().rev().collect();
        let high = format!("{low}\u{10FFFF}");
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT id FROM task WHERE tenant = ?1 AND rid >= ?2 AND rid < ?3 LIMIT 10")?;
            let rows = s.query_map(params![tenant, low, high], |r| r.get(0))?;
            rows.collect()
        })
    }

    /// Up to `limit` tasks of a tenant beyond an id, newest or oldest first.
    pub(crate) fn page(&self, tenant: &str, beyond: &str, newest_first: bool, limit: i64) -> Result<Vec<pb::Task>, AgentError> {
        let (sign, order) = if newest_first { ("<", "DESC") } else { (">", "ASC") };
        let beyond = if beyond.is_empty() && newest_first { "~" } else { beyond };
        self.with(|db| {
            let mut s = db.prepare_cached(&format!("{SELECT} WHERE tenant = ?1 AND id {sign} ?2 ORDER BY id {order} LIMIT ?3"))?;
            let rows = s.query_map(params![tenant, beyond, limit], |r| record_of(r).map(|r| r.task))?;
            rows.collect()
        })
    }

    pub(crate) fn events(&self, id: &str, after: i64, limit: i64) -> Result<Vec<pb::TaskEvent>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT data FROM event WHERE task_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3")?;
            let rows = s.query_map(params![id, after, limit], |r| r.get::<_, Vec<u8>>(0))?;
            rows.map(|b| b.map(|b| pb::TaskEvent::decode(b.as_slice()).unwrap_or_default())).collect()
        })
    }

    pub(crate) fn running(&self, epoch: i64) -> Result<Vec<(String, i64)>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached(&format!("SELECT id, fence FROM task WHERE {OPEN} AND state = 2 AND epoch = ?1"))?;
            let rows = s.query_map([epoch], |r| Ok((r.get(0)?, r.get(1)?)))?;
            rows.collect()
        })
    }

    pub(crate) fn due(&self, now: i64) -> Result<Vec<String>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached(&due_sql())?;
            let rows = s.query_map([now], |r| r.get(0))?;
            rows.collect()
        })
    }

    pub(crate) fn agents(&self) -> Result<Vec<(String, String, Vec<u8>)>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT tenant, id, data FROM agent")?;
            let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            rows.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poll_for_due_tasks_reads_an_index_and_not_the_table() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(MIGRATION_1).unwrap();
        let plan: String = db.query_row(&format!("EXPLAIN QUERY PLAN {}", due_sql()), [0], |r| r.get(3)).unwrap();
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
