//! The store: tasks, attempts, events and agents, durable in SQLite or PostgreSQL, or ephemeral in memory, behind one facade, and the hub of live events.
//!
//! [`TaskStore::write`] takes an operation and answers once it is committed; for an ephemeral task that is at once. Every rule of a
//! task's life stands in [`record`], which both back ends use.

mod blob;
mod durable;
mod fault;
pub mod filter;
mod hub;
pub mod journal;
pub mod ledger;
mod memory;
pub mod op;
pub mod order;
mod postgres;
pub mod questions;
pub mod record;
pub mod schedule;
mod spool;
mod sql;
mod sqlite;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use agent_core::hash::VERSION as HASH_VERSION;
use agent_core::header::TaskHeader;
use agent_core::plan::machine::Kept as KeptRun;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;

use blob::Parts;
pub use durable::Kept;
pub use durable::Store;
use durable::{existing, no_value, not_found};
use filter::Filter;
pub use hub::Listener;
use hub::{Behind, End, Hub, Live};
use journal::{Decision, Session, Sessions};
use ledger::LedgerRow;
use memory::Memory;
pub use op::{AttemptInfo, Finish, Happened, MemoryAnswer, MemoryOp, Metrics, ScheduleOp, WriteOp, Written};
use order::Order;
use record::{Record, is_terminal};
use schedule::Due;

/// Shortest suffix that names a task.
const MIN_SUFFIX: usize = 4;
/// Of a whole id.
const ID_LENGTH: usize = 36;
/// Events read from the disk at once for a watcher.
const EVENT_PAGE: usize = 500;
/// Tasks read from the disk at once for a listing.
const PAGE: usize = 500;
/// Queued tasks read from the disk at once.
pub const QUEUED_PAGE: usize = 5000;
/// A database that was silent for so long closes the gate: no model call begins until it is back. Long enough for a server that is
/// restarted, and shorter than what another node would wait for before it takes over.
const GATE_CLOSES: Duration = Duration::from_secs(8);
/// Rows of a ledger given at once.
const LEDGER_ROWS: i64 = 1000;
/// Tasks that one call of ListTasks looks at.
const LIST_SCAN: usize = 20_000;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// `done` was called already.
    Inline,
    /// `done` will be called once.
    Queued,
    /// The queue is full: nothing was done, `done` was dropped.
    Busy,
}

/// A page of tasks.
#[derive(Debug, Default)]
pub struct ListQuery {
    /// At most so many.
    pub page_size: usize,
    /// From the last page.
    pub page_token: String,
    /// See [`filter`].
    pub filter: String,
    /// See [`order`].
    pub order_by: String,
}

/// How long ended tasks are kept, in ms; 0: for ever.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Retention {
    /// Those that succeeded.
    pub succeeded_ms: i64,
    /// All others.
    pub other_ms: i64,
    /// Those with a label, "NAME=VALUE": also where the volume is nearly full. Of several the longest time counts.
    #[serde(default)]
    pub labels: HashMap<String, i64>,
    /// Blobs that no task names, since they were last put.
    #[serde(default = "Retention::unnamed")]
    pub unnamed_ms: u64,
}

impl Retention {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    fn unnamed() -> u64 {
        Self::DAY_MS.unsigned_abs()
    }

    /// What the labels of a task ask for.
    pub(crate) fn by_label(&self, task: &pb::Task) -> Option<i64> {
        let labels = task.spec.as_ref().filter(|_| !self.labels.is_empty())?.labels.iter();
        let asked = labels.filter_map(|(name, value)| self.labels.get(&format!("{name}={value}")).copied());
        // For ever is longest.
        asked.max_by_key(|ms| if *ms == 0 { i64::MAX } else { *ms })
    }
}

impl Default for Retention {
    fn default() -> Self {
        let labels = HashMap::new();
        Self { succeeded_ms: 7 * Self::DAY_MS, other_ms: 30 * Self::DAY_MS, labels, unnamed_ms: Self::unnamed() }
    }
}

/// Where the database is.
#[derive(Clone, serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// A file of SQLite; its folder is made.
    File(PathBuf),
    /// A database of PostgreSQL.
    Server {
        /// Its URL. It may hold a password.
        url: String,
        /// A file for what must not be lost while the server is away.
        spool: PathBuf,
        /// Certificates of the authorities that are trusted to vouch for the server, in a PEM file; those of the system if there is none.
        ca: Option<PathBuf>,
    },
}

/// The store of one node.
pub struct TaskStore {
    hub: Arc<Hub>,
    memory: Memory,
    durable: Box<dyn Store>,
    sessions: Sessions,
    /// Forked tasks whose journal was not read yet: theirs is not empty in the first attempt.
    forks: Arc<Mutex<HashSet<String>>>,
    /// Whether memory is switched off.
    forgets: AtomicBool,
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

impl TaskStore {
    /// Opens the database, making what is missing; `on_end` hears once when the store ends by itself.
    pub fn open(location: &Location, retention: Retention, on_end: Box<dyn FnOnce(String) + Send>) -> Result<Arc<Self>, AgentError> {
        let hub = Arc::new(Hub::new());
        let opened = match location {
            Location::File(path) => sqlite::open(path)?,
            Location::Server { url, spool, ca } => postgres::open(url, spool, ca.as_deref())?,
        };
        let durable = Box::new(sql::store::SqlStore::start(opened, retention, hub.clone(), on_end)?);
        Ok(Self::with(hub, durable))
    }

    fn with(hub: Arc<Hub>, durable: Box<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            hub,
            memory: Memory::new(),
            durable,
            sessions: Sessions::default(),
            forks: Arc::default(),
            forgets: AtomicBool::new(false),
        })
    }

    /// Epoch of this boot.
    pub fn epoch(&self) -> i64 {
        self.durable.epoch()
    }

    /// Version of the schema.
    pub fn schema(&self) -> i64 {
        self.durable.schema()
    }

    /// Name and version of the database program.
    pub fn database_version(&self) -> String {
        self.durable.version()
    }

    /// Whether model calls may begin; not while the database has been away for so long that their answers would pile up.
    pub fn gate_is_open(&self) -> bool {
        self.durable.silent_for() < GATE_CLOSES
    }

    /// Ends the writer after what waits; the file may be opened again once `on_end` has heard of it.
    pub fn stop(&self) {
        self.durable.stop();
    }

    /// For tests of the node: the writer panics.
    pub fn inject_panic(&self) {
        self.durable.inject_panic();
    }

    /// From now on memory is neither read nor written: the configuration has switched it off.
    pub fn refuse_memory(&self) {
        self.forgets.store(true, Ordering::Relaxed);
    }

    /// Errors: CAPABILITY_DISABLED.
    fn remembers(&self) -> Result<(), AgentError> {
        if self.forgets.load(Ordering::Relaxed) { Err(AgentError::disabled("distributed_memory", "native_capabilities")) } else { Ok(()) }
    }

    /// Whether an operation may be written at all. Errors: CAPABILITY_DISABLED, of memory that is switched off, and of a task that goes on with a
    /// conversation then.
    pub fn permits(&self, op: &WriteOp) -> Result<(), AgentError> {
        match op {
            WriteOp::Memory { .. } => self.remembers(),
            WriteOp::Submit { spec, .. } if spec.context.as_ref().is_some_and(|context| !context.memory_namespace.is_empty()) => {
                self.remembers()
            }
            _ => Ok(()),
        }
    }

    /// Writes; `done` is called exactly once unless the answer is [`Enqueued::Busy`].
    pub fn write(&self, op: WriteOp, done: impl FnOnce(Result<Written, AgentError>) + Send + 'static) -> Enqueued {
        if let Err(refused) = self.permits(&op) {
            done(Err(refused));
            return Enqueued::Inline;
        }
        if self.is_inline(&op) {
            done(self.write_inline(op));
            return Enqueued::Inline;
        }
        if let WriteOp::Finish { id, .. } | WriteOp::Requeue { id, .. } | WriteOp::Park { id, .. } | WriteOp::Delete { id, .. } = &op {
            self.sessions.close(id);
        }
        if let WriteOp::Submit { header, .. } = &op
            && begins_with_answers(header)
        {
            self.forks.lock().insert(header.task_id.clone());
        }
        // One that was queued when the node ended is known by its claim.
        let forks = matches!(op, WriteOp::Claim { .. }).then(|| self.forks.clone());
        let done = move |result: Result<Written, AgentError>| {
            if let (Some(forks), Ok(Written::Claimed { header, .. })) = (&forks, &result)
                && begins_with_answers(header)
            {
                forks.lock().insert(header.task_id.clone());
            }
            done(result);
        };
        if self.durable.write(op, Box::new(done)) { Enqueued::Queued } else { Enqueued::Busy }
    }

    /// Whether a write is answered at once: its task is ephemeral.
    pub fn is_inline(&self, op: &WriteOp) -> bool {
        match op {
            WriteOp::Submit { header, .. } => header.ephemeral,
            other => other.task_id().is_some_and(|id| self.memory.has(id)),
        }
    }

    /// Writes on an ephemeral task, without waiting for anything.
    pub fn write_inline(&self, op: WriteOp) -> Result<Written, AgentError> {
        let now = now_ms();
        let epoch = self.durable.epoch();
        match op {
            WriteOp::Submit { header, spec, run, route } => {
                if !header.content_hash.is_empty() {
                    debug_assert_eq!(header.hash_version, HASH_VERSION);
                    if let Some(old) = self.memory.find_request(&header.tenant, &header.request_id) {
                        return existing(&old, &header.content_hash, &spec);
                    }
                }
                let (record, events, written) = Record::submitted(&header, *spec, run, route, epoch, now);
                self.memory.insert(Box::new(record));
                self.hub.publish(&header.task_id, events, None, true);
                Ok(written)
            }
            WriteOp::Claim { id } => self.change_memory(&id, now, |r| r.claim(epoch, now)),
            WriteOp::Attempt { id, fence, info } => self.change_memory(&id, now, |r| r.attempt(fence, info)),
            WriteOp::Route { id, fence, route } => self.change_memory(&id, now, |r| r.route(fence, route)),
            WriteOp::Events { id, fence, events } => self.change_memory(&id, now, |r| r.events(fence, events, now)),
            WriteOp::Finish { id, fence, finish } => self.change_memory(&id, now, |r| r.finish(fence, *finish, now)),
            // An ephemeral task promises nothing, so it has no journal.
            WriteOp::Journal { id, fence, .. } | WriteOp::Answers { id, fence, .. } => {
                self.change_memory(&id, now, |r| r.running(fence).map(|()| (Vec::new(), Written::Ok)))
            }
            WriteOp::ToolBegin { id, fence, .. } => {
                self.change_memory(&id, now, |r| r.running(fence).map(|()| (Vec::new(), Written::Tool(Decision::Run))))
            }
            WriteOp::Keep { id, fence, .. } => self.change_memory(&id, now, |r| r.running(fence).map(|()| (Vec::new(), Written::Ok))),
            WriteOp::Requeue { id, fence, outcome, cause, counts, not_before_ms, ran_ms, events } => {
                self.change_memory(&id, now, |r| r.requeue(fence, (&outcome, &cause, counts), not_before_ms, ran_ms, events, now))
            }
            WriteOp::Park { id, fence, inputs, ran_ms, events } => {
                self.change_memory(&id, now, |r| r.park(fence, inputs, ran_ms, events, now))
            }
            WriteOp::Signal { tenant, id, signal } => {
                self.change_memory(&id, now, |r| if r.tenant == tenant { r.signal(*signal, now) } else { Err(not_found(&r.task.id)) })
            }
            WriteOp::Wake { id } => self.change_memory(&id, now, |r| r.wake(now)),
            WriteOp::Fence { id, fence } => self.change_memory(&id, now, |r| r.fence(fence)),
            WriteOp::CancelRequest { tenant, id } => {
                self.change_memory(&id, now, |r| if r.tenant == tenant { Ok(r.cancel_request()) } else { Err(not_found(&r.task.id)) })
            }
            WriteOp::Delete { tenant, id } => {
                let record = self.memory.get(&tenant, &id).ok_or_else(|| not_found(&id))?;
                if !is_terminal(record.task.state()) {
                    return Err(AgentError::new(Reason::WrongState, "the task has not ended; cancel it first"));
                }
                self.memory.remove(&id);
                self.hub.forget(&id);
                Ok(Written::Ok)
            }
            WriteOp::PutAgent { .. }
            | WriteOp::DeleteAgent { .. }
            | WriteOp::Memory { .. }
            | WriteOp::Schedule { .. }
            | WriteOp::Ledger { .. }
            | WriteOp::Recover => Ok(Written::Ok),
        }
    }

    fn change_memory(
        &self,
        id: &str,
        now: i64,
        f: impl FnOnce(&mut Record) -> Result<(Vec<pb::TaskEvent>, Written), AgentError>,
    ) -> Result<Written, AgentError> {
        let ((events, written), ended, dropped) = self.memory.change(id, now, f)?;
        self.hub.publish(id, events, ended.then(End::elsewhere), true);
        for old in dropped {
            self.hub.forget(&old);
        }
        Ok(written)
    }

    /// What a running attempt knows of its task's journal, without waiting: None for the first use in an attempt that is not the task's
    /// first, for which the disk must be read ([`Self::read_session`]).
    pub fn session(&self, id: &str, fence: i64, attempt: i64) -> Option<Arc<Session>> {
        match self.sessions.get(id, fence) {
            None if attempt <= 1 && !self.forks.lock().contains(id) => Some(self.sessions.open(id, Session::new(fence, Vec::new()))),
            known => known,
        }
    }

    /// The same, read from the disk.
    pub fn read_session(&self, id: &str, fence: i64) -> Result<Arc<Session>, AgentError> {
        match self.sessions.get(id, fence) {
            Some(known) => Ok(known),
            None => {
                let session = Session::new(fence, self.durable.journal(id)?);
                self.forks.lock().remove(id);
                Ok(self.sessions.open(id, session))
            }
        }
    }

    /// The session of a later try of a plan's step, over all that is recorded by now.
    pub fn read_life(&self, id: &str, fence: i64, scope: &journal::Scope) -> Result<Arc<Session>, AgentError> {
        let whole = self.read_session(id, fence)?;
        match whole.life(scope) {
            Some(known) => Ok(known),
            None => Ok(whole.open_life(scope, self.durable.journal(id)?)),
        }
    }

    /// What is kept of the steps of a task's plan.
    pub fn plan_runs(&self, id: &str) -> Result<Vec<(KeptRun, pb::PlanStepRun)>, AgentError> {
        if self.memory.has(id) {
            return Ok(Vec::new());
        }
        let entries = self.durable.step_runs(id)?;
        Ok(entries.into_iter().filter_map(|(key, answer)| plan_run(key.question.0, &answer?)).collect())
    }

    /// The journal of a task as a bundle holds it: what has an answer, in a fixed order.
    pub fn recorded(&self, id: &str) -> Result<Vec<pb::JournalEntry>, AgentError> {
        let mut all = self.durable.journal(id)?;
        all.extend(self.durable.step_runs(id)?);
        all.sort_by_key(|(key, _)| (key.question.0 as i64, key.question.1, key.occurrence));
        Ok(all.iter().filter_map(|(key, answer)| journal::entry_for(key, answer.as_ref()?)).collect())
    }

    /// Whether a task lives in memory alone.
    pub fn is_ephemeral(&self, id: &str) -> bool {
        self.memory.has(id)
    }

    /// The id that a whole id or a unique suffix of at least four characters names.
    pub fn find(&self, tenant: &str, id: &str) -> Result<String, AgentError> {
        if id.is_empty() {
            return Err(AgentError::field("task_id", "is missing"));
        }
        // Nothing else reaches a database: it takes neither a zero byte nor a pattern of any length.
        if !(MIN_SUFFIX..=ID_LENGTH).contains(&id.len()) || !id.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(not_found(id));
        }
        if id.len() == ID_LENGTH {
            return Ok(id.to_owned());
        }
        let mut found = self.memory.by_suffix(tenant, id);
        found.extend(self.durable.by_suffix(tenant, id)?);
        found.dedup();
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(not_found(id)),
            several => Err(AgentError::field("task_id", format!("\"{id}\" names several tasks: {}", several.join(", ")))),
        }
    }

    fn record(&self, tenant: &str, id: &str) -> Result<Record, AgentError> {
        let id = self.find(tenant, id)?;
        match self.memory.get(tenant, &id) {
            Some(record) => Ok(record),
            None => match self.durable.get(tenant, &id)? {
                Some(record) => Ok(record),
                None if self.durable.was_deleted(tenant, &id)? => Err(AgentError::new(
                    Reason::TaskNotFound,
                    format!("task {id} was deleted; its request_id is known for a day after its end"),
                )),
                None => Err(not_found(&id)),
            },
        }
    }

    /// One task, by id or unique suffix.
    pub fn get(&self, tenant: &str, id: &str) -> Result<pb::Task, AgentError> {
        if let Some(task) = self.memory.task(tenant, id) {
            return Ok(task);
        }
        let mut record = self.record(tenant, id)?;
        if self.fill(&mut record)? { Ok(record.task) } else { Err(not_found(id)) }
    }

    /// The same without what is too large for its row, for whoever asks what became of it.
    pub fn head(&self, tenant: &str, id: &str) -> Result<pb::Task, AgentError> {
        Ok(self.record(tenant, id)?.task)
    }

    /// Reads the large parts of a task; false: it was deleted between its row and its blobs.
    fn fill(&self, record: &mut Record) -> Result<bool, AgentError> {
        if record.parts == Parts::default() {
            return Ok(true);
        }
        match self.durable.fill(record) {
            Err(e) if e.reason == Reason::StoreCorrupt && self.durable.get(&record.tenant, &record.task.id)?.is_none() => Ok(false),
            filled => filled.map(|()| true),
        }
    }

    /// Attempts of a task.
    pub fn attempts(&self, tenant: &str, id: &str) -> Result<Vec<pb::Attempt>, AgentError> {
        Ok(self.record(tenant, id)?.attempts)
    }

    /// A page of tasks, ephemeral ones included, and the token of the next.
    pub fn list(&self, tenant: &str, query: &ListQuery) -> Result<(Vec<pb::Task>, String), AgentError> {
        let filter = Filter::parse(&query.filter)?;
        let order = Order::parse(&query.order_by)?;
        let start = order.place(&query.page_token)?;
        let mut found: Vec<Record> = Vec::new();
        let ephemeral = self.memory.tasks(tenant).into_iter();
        let listed = ephemeral.filter(|t| order.holds(t) && order.later(&order.key(t), &start) && filter.matches(t));
        found.extend(listed.map(|task| Record { task, ..Record::default() }));
        let (mut beyond, mut seen, mut durable, mut exhausted) = (start, 0, 0, false);
        while durable <= query.page_size && seen < LIST_SCAN {
            let page = self.durable.page(tenant, order, &beyond, PAGE)?;
            exhausted = page.len() < PAGE;
            let Some(last) = page.last() else { break };
            beyond = order.key(&last.task);
            seen += page.len();
            let before = found.len();
            found.extend(page.into_iter().filter(|r| filter.matches(&r.task)));
            durable += found.len() - before;
            if exhausted {
                break;
            }
        }
        if !exhausted {
            // Tasks behind the part that was read belong to a later page.
            found.retain(|r| !order.later(&order.key(&r.task), &beyond));
        }
        found.sort_by_cached_key(|r| order.key(&r.task));
        if order.newest_first {
            found.reverse();
        }
        let more = found.len() > query.page_size;
        found.truncate(query.page_size);
        let token = match found.last() {
            Some(last) if more => order.key(&last.task).token(),
            _ if exhausted => String::new(),
            // A rare filter: the page may be short or empty, and the next one goes on from here.
            _ => beyond.token(),
        };
        let mut page = Vec::with_capacity(found.len());
        for mut record in found {
            if self.fill(&mut record)? {
                page.push(record.task);
            }
        }
        Ok((page, token))
    }

    /// Waits for the end of a task, at most so long; gives it as it is then.
    pub async fn wait_terminal(&self, tenant: &str, id: &str, at_most: Duration) -> Result<pb::Task, AgentError> {
        let deadline = tokio::time::Instant::now() + at_most;
        while let Some(live) = self.hub.get(id) {
            let changed = live.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(end) = live.end() {
                return end.task(tenant).map_or_else(|| self.get(tenant, id), Ok);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                break;
            }
        }
        self.get(tenant, id)
    }

    /// Sequence of the newest event of a task.
    pub fn last_event(&self, tenant: &str, id: &str) -> Result<i64, AgentError> {
        self.record(tenant, id).map(|record| record.sequence)
    }

    /// Events behind a cursor, at most a page; waits for one if there is none. Empty: the task has ended and nothing is left.
    /// With `text`, the attempt and the offset up to which a watcher has its text, what continues it is given ahead of its batch.
    pub async fn next_events(
        &self,
        tenant: &str,
        id: &str,
        after: i64,
        text: Option<(i32, i64)>,
    ) -> Result<Vec<pb::TaskEvent>, AgentError> {
        loop {
            let found = match self.hub.get(id) {
                Some(live) => self.live_events(&live, id, after, text).await?,
                None => self.stored(tenant, id, after).await?,
            };
            if let Some(events) = found {
                return Ok(events);
            }
        }
    }

    /// Wants text ahead of its batch, for as long as the answer lives; None where nothing of the task is live now.
    pub fn listen(&self, id: &str) -> Option<Listener> {
        self.hub.listen(id)
    }

    /// Text of a running attempt ahead of its batch, `offset` bytes into the attempt's text. Costs next to nothing where nobody listens.
    pub fn say(&self, id: &str, attempt: i32, offset: i64, text: &str) {
        self.hub.say(id, attempt, offset, text);
    }

    /// Where a watch begins: at its cursor, or, if that stands behind what is stored (it was moved by text that a crash has taken), before
    /// the newest attempt, which says that its text is void.
    pub fn cursor(&self, tenant: &str, id: &str, after: i64) -> Result<i64, AgentError> {
        // What is in memory alone no crash has shortened.
        let Some(record) = self.durable.get(tenant, id)?.filter(|record| after > record.sequence) else { return Ok(after) };
        let (mut begin, mut read) = (0, 0);
        while read < record.sequence {
            let events = self.durable.events(&record.task.id, read, EVENT_PAGE)?;
            let Some(newest) = events.last().map(|e| e.sequence) else { break };
            let started = events.iter().rev().find(|e| matches!(e.event, Some(pb::task_event::Event::AttemptStarted(_))));
            begin = started.map_or(begin, |e| e.sequence - 1);
            read = newest;
        }
        Ok(begin)
    }

    // None: something changed, look again.
    async fn live_events(
        &self,
        live: &Live,
        id: &str,
        after: i64,
        text: Option<(i32, i64)>,
    ) -> Result<Option<Vec<pb::TaskEvent>>, AgentError> {
        let changed = live.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match live.behind(after) {
            Behind::TooOld => {
                let events = self.durable.events(id, after, EVENT_PAGE)?;
                if events.is_empty() && self.memory.has(id) {
                    // An ephemeral task has no older ones than the ring: the watcher goes on with what is left; offsets show the gap in the text.
                    return Ok(Some(live.remaining().iter().map(|e| (**e).clone()).collect()));
                }
                Ok((!events.is_empty()).then_some(events))
            }
            Behind::Events(events, ended) if ended || !events.is_empty() => Ok(Some(events.iter().map(|e| (**e).clone()).collect())),
            Behind::Events(..) => {
                if let Some(event) = text.and_then(|(attempt, offset)| live.ahead(attempt, offset)) {
                    return Ok(Some(vec![event]));
                }
                changed.await;
                Ok(None)
            }
        }
    }

    // No live entry: ended, or not touched since the node started. None: it is live now, look again.
    async fn stored(&self, tenant: &str, id: &str, after: i64) -> Result<Option<Vec<pb::TaskEvent>>, AgentError> {
        let poll = Duration::from_millis(200);
        loop {
            let events = self.durable.events(id, after, EVENT_PAGE)?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            if is_terminal(self.head(tenant, id)?.state()) {
                // Its last events may have been written since they were read.
                return self.durable.events(id, after, EVENT_PAGE).map(Some);
            }
            if self.hub.get(id).is_some() {
                return Ok(None);
            }
            tokio::time::sleep(poll).await;
        }
    }

    /// Running tasks of this epoch, with their fences.
    pub fn running(&self) -> Result<Vec<(String, i64)>, AgentError> {
        let mut all = self.durable.running()?;
        all.extend(self.memory.running());
        Ok(all)
    }

    /// Headers of queued tasks behind an id, oldest first, at most a page ([`QUEUED_PAGE`]).
    pub fn queued(&self, after: &str) -> Result<Vec<TaskHeader>, AgentError> {
        Ok(self.durable.queued(after, QUEUED_PAGE)?.iter().map(Record::header).collect())
    }

    /// Waiting tasks whose time has come. Asked once a second, so ephemeral tasks whose time is over are forgotten here as well.
    pub fn due(&self, now: i64) -> Result<Vec<String>, AgentError> {
        for old in self.memory.expire(now) {
            self.hub.forget(&old);
        }
        self.durable.due(now)
    }

    /// One schedule. Errors: SCHEDULE_NOT_FOUND.
    pub fn schedule(&self, tenant: &str, id: &str) -> Result<pb::Schedule, AgentError> {
        self.durable.schedule(tenant, id)
    }

    /// A page of schedules, by id, and the token of the next.
    pub fn schedules(&self, tenant: &str, after: &str, size: usize) -> Result<(Vec<pb::Schedule>, String), AgentError> {
        Ok(cut(self.durable.schedules(tenant, after, one_more(size))?, size, |schedule| schedule.id.clone()))
    }

    /// Schedules of all tenants whose time has come.
    pub fn due_schedules(&self, now: i64) -> Result<Vec<Due>, AgentError> {
        self.durable.due_schedules(now)
    }

    /// A value in the memory of agents. Errors: MEMORY_NOT_FOUND, also once it has expired.
    pub fn memory(&self, tenant: &str, namespace: &str, key: &str) -> Result<pb::MemoryItem, AgentError> {
        self.remembers()?;
        self.durable.memory(tenant, namespace, key, now_ms())?.ok_or_else(|| no_value(key))
    }

    /// A page of values, by key, and the token of the next.
    pub fn memories(&self, tenant: &str, r: &pb::ListMemoriesRequest, size: usize) -> Result<(Vec<pb::MemoryItem>, String), AgentError> {
        self.remembers()?;
        let found = self.durable.memories(tenant, r, one_more(size), now_ms())?;
        Ok(cut(found, size, |item| item.key.clone()))
    }

    /// A page of the values of a namespace and of those below it, by namespace and key, and the token of the next.
    pub fn memories_below(
        &self,
        tenant: &str,
        namespace: &str,
        token: &str,
        size: usize,
    ) -> Result<(Vec<pb::MemoryItem>, String), AgentError> {
        self.remembers()?;
        // A namespace has no control character.
        let (after, key) = token.split_once('\n').unwrap_or_default();
        let found = self.durable.memories_below(tenant, namespace, (after, key), one_more(size), now_ms())?;
        Ok(cut(found, size, |item| format!("{}\n{}", item.namespace, item.key)))
    }

    /// A page of the namespaces that have values, a namespace and those below it, and the token of the next.
    pub fn namespaces_below(&self, tenant: &str, namespace: &str, after: &str, size: usize) -> Result<(Vec<String>, String), AgentError> {
        let found = self.durable.namespaces_below(tenant, namespace, after, one_more(size), now_ms())?;
        Ok(cut(found, size, String::clone))
    }

    /// Records of a task behind a key, a page of them, and whether there are more.
    pub fn kept(&self, id: &str, after: &str) -> Result<(Vec<Kept>, bool), AgentError> {
        if self.is_ephemeral(id) { Ok((Vec::new(), false)) } else { self.durable.kept(id, after) }
    }

    /// A page of versions of a value, newest first, and the token of the next.
    pub fn memory_versions(
        &self,
        tenant: &str,
        r: &pb::ListMemoryVersionsRequest,
        size: usize,
    ) -> Result<(Vec<pb::MemoryItem>, String), AgentError> {
        self.remembers()?;
        let before = number_token(&r.page_token)?.unwrap_or(i64::MAX);
        let found = self.durable.memory_versions(tenant, &r.namespace, &r.key, before, one_more(size))?;
        Ok(cut(found, size, |item| item.version.to_string()))
    }

    /// A page of a conversation, oldest first, and the token of the next.
    pub fn messages(&self, tenant: &str, r: &pb::ListMessagesRequest, size: usize) -> Result<(Vec<pb::Message>, String), AgentError> {
        self.remembers()?;
        let after = number_token(&r.page_token)?.unwrap_or(0);
        let found = self.durable.messages(tenant, &r.namespace, &r.conversation_id, after, one_more(size))?;
        let (page, token) = cut(found, size, |(n, _)| n.to_string());
        Ok((page.into_iter().map(|(_, message)| message).collect(), token))
    }

    /// Accounts of a tenant, or one of them, the newest window first; at most [`LEDGER_ROWS`].
    pub fn ledger(&self, tenant: &str, account: Option<&str>) -> Result<Vec<LedgerRow>, AgentError> {
        self.durable.ledger(tenant, account, LEDGER_ROWS)
    }

    /// Agents made through the API.
    pub fn agents(&self) -> Result<Vec<(String, String, Vec<u8>)>, AgentError> {
        self.durable.agents()
    }
}

/// Whether the journal of a task is not empty in its first attempt.
fn begins_with_answers(header: &TaskHeader) -> bool {
    header.replayed || !header.fork_of.is_empty()
}

/// What is asked of the disk to know whether there is a next page.
fn one_more(size: usize) -> i64 {
    i64::try_from(size).map_or(i64::MAX, |n| n + 1)
}

/// The page, and the token that its last item gives if there are more.
fn cut<T>(mut found: Vec<T>, size: usize, token: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let more = found.len() > size;
    found.truncate(size);
    let token = found.last().filter(|_| more).map(token).unwrap_or_default();
    (found, token)
}

fn number_token(token: &str) -> Result<Option<i64>, AgentError> {
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(Some).map_err(|_| AgentError::new(Reason::PageTokenInvalid, "the page token is not one of ours"))
}

/// A kept run of a step; none for what cannot be read: the step runs again.
fn plan_run(kind: journal::Kind, answer: &[u8]) -> Option<(KeptRun, pb::PlanStepRun)> {
    let kept = match kind {
        journal::Kind::Step => KeptRun::Done,
        journal::Kind::StepFailed => KeptRun::Failed,
        journal::Kind::StepUndone => KeptRun::Undone,
        _ => return None,
    };
    Some((kept, pb::PlanStepRun::decode(answer).ok()?))
}

#[cfg(test)]
mod tests;
