//! What every durable back end does. The tests of the facade hold for each as they stand.

use std::time::Duration;

use agent_core::hash::differing_field;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use crate::journal::Entry;
use crate::ledger::LedgerRow;
use crate::op::{WriteOp, Written};
use crate::order::{Order, Place};
use crate::record::Record;
use crate::schedule::Due;

/// Told the outcome of a write.
pub type Done = Box<dyn FnOnce(Result<Written, AgentError>) + Send>;

/// Agents of the API: tenant, id, encoded agent.
pub type AgentRows = Vec<(String, String, Vec<u8>)>;

/// A record of a task: key and bytes.
pub type Kept = (String, Vec<u8>);

/// A durable back end.
///
/// It applies each operation to a [`Record`], whose methods are the rules of a task's life, in one transaction that checks the fence once more;
/// it publishes the events to the hub after the commit and before it answers. Reads may block for as long as a disk takes, and never wait for a writer.
pub trait Store: Send + Sync {
    /// Queues a write; `done` is called once after the commit. False: the queue is full or closed, and `done` was dropped unheard.
    fn write(&self, op: WriteOp, done: Done) -> bool;
    /// One task of a tenant, without its large parts ([`Self::fill`]).
    fn get(&self, tenant: &str, id: &str) -> Result<Option<Record>, AgentError>;
    /// Whether a task was deleted, while its request id is still known.
    fn was_deleted(&self, tenant: &str, id: &str) -> Result<bool, AgentError>;
    /// Ids of a tenant that end so; at most 10.
    fn by_suffix(&self, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError>;
    /// Up to `limit` tasks of a tenant beyond a place, without their large parts ([`Self::fill`]). Fewer: there are no more.
    fn page(&self, tenant: &str, order: Order, beyond: &Place, limit: usize) -> Result<Vec<Record>, AgentError>;
    /// Reads the large parts of a task that was given without them.
    fn fill(&self, record: &mut Record) -> Result<(), AgentError>;
    /// Up to `limit` events of a task behind a sequence, in order.
    fn events(&self, id: &str, after: i64, limit: usize) -> Result<Vec<pb::TaskEvent>, AgentError>;
    /// Running tasks of this boot, with their fences.
    fn running(&self) -> Result<Vec<(String, i64)>, AgentError>;
    /// Up to `limit` queued tasks behind an id, oldest first, without their large parts.
    fn queued(&self, after: &str, limit: usize) -> Result<Vec<Record>, AgentError>;
    /// Waiting tasks whose time has come, longest overdue first.
    fn due(&self, now_ms: i64) -> Result<Vec<String>, AgentError>;
    /// All entries of a task's journal.
    fn journal(&self, id: &str) -> Result<Vec<Entry>, AgentError>;
    /// Those of them that are ends of steps of its plan.
    fn step_runs(&self, id: &str) -> Result<Vec<Entry>, AgentError>;
    /// One schedule.
    fn schedule(&self, tenant: &str, id: &str) -> Result<pb::Schedule, AgentError>;
    /// Up to `limit` schedules of a tenant behind an id.
    fn schedules(&self, tenant: &str, after: &str, limit: i64) -> Result<Vec<pb::Schedule>, AgentError>;
    /// Schedules of all tenants whose time has come.
    fn due_schedules(&self, now_ms: i64) -> Result<Vec<Due>, AgentError>;
    /// A value that has not expired.
    fn memory(&self, tenant: &str, namespace: &str, key: &str, now_ms: i64) -> Result<Option<pb::MemoryItem>, AgentError>;
    /// Up to `limit` values behind the token of the request.
    fn memories(&self, tenant: &str, request: &pb::ListMemoriesRequest, limit: i64, now_ms: i64)
    -> Result<Vec<pb::MemoryItem>, AgentError>;
    /// Up to `limit` values of a namespace and of those below it, behind a namespace and a key.
    fn memories_below(
        &self,
        tenant: &str,
        namespace: &str,
        after: (&str, &str),
        limit: i64,
        now_ms: i64,
    ) -> Result<Vec<pb::MemoryItem>, AgentError>;
    /// Up to `limit` namespaces that have values, a namespace and those below it, behind one.
    fn namespaces_below(&self, tenant: &str, namespace: &str, after: &str, limit: i64, now_ms: i64) -> Result<Vec<String>, AgentError>;
    /// Records of a task behind a key, a page by their bytes, and whether there are more.
    fn kept(&self, id: &str, after: &str) -> Result<(Vec<Kept>, bool), AgentError>;
    /// Up to `limit` versions of a value before a version, newest first.
    fn memory_versions(&self, tenant: &str, namespace: &str, key: &str, before: i64, limit: i64)
    -> Result<Vec<pb::MemoryItem>, AgentError>;
    /// Up to `limit` messages behind a number, with their numbers.
    fn messages(
        &self,
        tenant: &str,
        namespace: &str,
        conversation: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, pb::Message)>, AgentError>;
    /// Up to `limit` rows of a tenant's ledger.
    fn ledger(&self, tenant: &str, account: Option<&str>, limit: i64) -> Result<Vec<LedgerRow>, AgentError>;
    /// All agents.
    fn agents(&self) -> Result<AgentRows, AgentError>;
    /// Number of this boot, one higher than ever before.
    fn epoch(&self) -> i64;
    /// Version of the schema.
    fn schema(&self) -> i64;
    /// Version of the database program.
    fn version(&self) -> String;
    /// For how long the database has not done what it was asked for.
    fn silent_for(&self) -> Duration;
    /// Ends after what waits.
    fn stop(&self);
    /// For tests of the node: what writes panics.
    fn inject_panic(&self);
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

/// The answer to the request id of a task that was deleted.
pub(crate) fn deleted_request(id: String, old_hash: &[u8], hash: &[u8]) -> Result<Written, AgentError> {
    if old_hash == hash {
        return Ok(Written::Existing { id });
    }
    Err(AgentError::new(Reason::RequestIdReused, format!("the request_id belongs to task {id}, which was deleted")).with("task_id", id))
}

/// An error that waiting does not heal: a node that finds it at its start does not start.
pub(crate) fn refuse(error: AgentError) -> AgentError {
    error.with("boot", "refused")
}

pub(crate) fn no_value(key: &str) -> AgentError {
    AgentError::new(Reason::MemoryNotFound, format!("there is no value \"{}\"", key.chars().take(80).collect::<String>()))
}

pub(crate) fn not_found(id: &str) -> AgentError {
    AgentError::new(Reason::TaskNotFound, format!("there is no task {}", id.chars().take(40).collect::<String>()))
}
