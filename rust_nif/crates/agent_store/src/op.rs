//! What can be written to the store, and what comes back.

use agent_core::header::TaskHeader;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;

use crate::journal::{Change, Decision, Key, Replay};
use crate::ledger::{LedgerOp, LedgerRow};

/// What happened in an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    /// What.
    pub event: pb::task_event::Event,
    /// In which step of its plan; empty: in none.
    pub step: String,
}

impl From<pb::task_event::Event> for Happened {
    fn from(event: pb::task_event::Event) -> Self {
        Self { event, step: String::new() }
    }
}

/// How an attempt or task ended, and what it cost.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Finish {
    pub state: pb::TaskState,
    pub result: Option<pb::AgentResult>,
    pub error: Option<pb::TaskError>,
    pub executor: String,
    pub metrics: Metrics,
    pub outcome: String,
    pub cause: String,
    pub proof: Option<pb::CancellationProof>,
    pub events: Vec<Happened>,
    /// Answers of the last model calls, recorded by the same commit.
    pub journal: Vec<(Key, Vec<u8>)>,
}

/// The engine's own meter.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Metrics {
    pub queue_ms: i64,
    pub execution_ms: i64,
    pub usage: pb::Usage,
    pub provider_calls: i32,
    pub provider_calls_replayed: i32,
    /// Every model call was answered from the cache.
    pub cache_hit: bool,
    pub tool_calls: i32,
    pub memory_bytes: Option<i64>,
    pub cpu_ms: Option<i64>,
    pub cost_micros: Option<i64>,
}

/// Facts of an attempt that are known once a worker has it.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct AttemptInfo {
    pub worker: String,
    pub host_pid: i64,
    pub env_lock_hash: String,
    pub executor: String,
    pub unjournaled_tools: Vec<String>,
}

/// A write to the memory of agents. Names and sizes were checked by whoever asks.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum MemoryOp {
    Put(pb::PutMemoryRequest),
    Delete(pb::DeleteMemoryRequest),
    Batch(pb::BatchMemoryRequest),
    Append(pb::AppendMessagesRequest),
}

impl MemoryOp {
    fn size(&self) -> usize {
        match self {
            MemoryOp::Put(r) => r.encoded_len(),
            MemoryOp::Delete(r) => r.encoded_len(),
            MemoryOp::Batch(r) => r.encoded_len(),
            MemoryOp::Append(r) => r.encoded_len(),
        }
    }
}

/// What such a write gave: the value, or numbers (versions, or the length of a conversation).
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MemoryAnswer {
    Item(Box<pb::MemoryItem>),
    Numbers(Vec<i64>),
}

impl MemoryAnswer {
    /// As it is kept for a repeated request.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            MemoryAnswer::Item(item) => [vec![1], item.encode_to_vec()].concat(),
            MemoryAnswer::Numbers(numbers) => std::iter::once(2).chain(numbers.iter().flat_map(|n| n.to_le_bytes())).collect(),
        }
    }

    /// The same back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, AgentError> {
        match bytes.split_first() {
            Some((1, item)) => pb::MemoryItem::decode(item).ok().map(|item| MemoryAnswer::Item(Box::new(item))),
            Some((2, numbers)) => Some(MemoryAnswer::Numbers(numbers.as_chunks::<8>().0.iter().map(|n| i64::from_le_bytes(*n)).collect())),
            _ => None,
        }
        .ok_or_else(|| AgentError::new(Reason::StoreCorrupt, "a kept answer cannot be read"))
    }
}

/// A write of a schedule. Names were checked by whoever asks.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum ScheduleOp {
    /// With its id. The same one again is no error, and neither is the same request.
    Create {
        schedule: Box<pb::Schedule>,
        request_id: String,
    },
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Delete {
        id: String,
    },
    /// A time has fired, or was left out: then there is no task.
    Fired {
        id: String,
        tick_ms: i64,
        task_id: Option<String>,
    },
}

/// A write. Everything on a task checks its fence in the same transaction.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum WriteOp {
    Submit {
        header: Box<TaskHeader>,
        spec: Box<pb::AgentTask>,
        run: bool,
        route: Option<Box<pb::Route>>,
    },
    Memory {
        tenant: String,
        op: Box<MemoryOp>,
        /// A task and the fence of its running attempt, where one writes; then it must hold its task.
        holder: Option<(String, i64)>,
    },
    /// Records of a running task, which are kept as long as the task; nothing in the place of bytes deletes one.
    Keep {
        id: String,
        fence: i64,
        records: Vec<(String, Option<Vec<u8>>)>,
    },
    Schedule {
        tenant: String,
        op: ScheduleOp,
    },
    Ledger {
        tenant: String,
        op: LedgerOp,
    },
    Claim {
        id: String,
    },
    Attempt {
        id: String,
        fence: i64,
        info: AttemptInfo,
    },
    Route {
        id: String,
        fence: i64,
        route: pb::Route,
    },
    Events {
        id: String,
        fence: i64,
        events: Vec<Happened>,
    },
    Finish {
        id: String,
        fence: i64,
        finish: Box<Finish>,
    },
    Journal {
        id: String,
        fence: i64,
        key: Key,
        change: Change,
    },
    /// Several answers at once: the end of a step of a plan, and its last model call.
    Answers {
        id: String,
        fence: i64,
        answers: Vec<(Key, Vec<u8>)>,
    },
    ToolBegin {
        id: String,
        fence: i64,
        key: Key,
        replay: Replay,
        /// An earlier try of this attempt may have begun it.
        again: bool,
    },
    Requeue {
        id: String,
        fence: i64,
        outcome: String,
        cause: String,
        counts: bool,
        not_before_ms: i64,
        ran_ms: Option<i64>,
        events: Vec<Happened>,
    },
    Park {
        id: String,
        fence: i64,
        inputs: Vec<pb::InputRequested>,
        ran_ms: Option<i64>,
        events: Vec<Happened>,
    },
    Signal {
        tenant: String,
        id: String,
        signal: Box<pb::SignalTaskRequest>,
    },
    Wake {
        id: String,
    },
    CancelRequest {
        tenant: String,
        id: String,
    },
    Fence {
        id: String,
        fence: i64,
    },
    Delete {
        tenant: String,
        id: String,
    },
    PutAgent {
        tenant: String,
        id: String,
        data: Vec<u8>,
    },
    DeleteAgent {
        tenant: String,
        id: String,
    },
    Recover,
}

impl WriteOp {
    /// The task it is about.
    pub fn task_id(&self) -> Option<&str> {
        match self {
            WriteOp::Submit { header, .. } => Some(&header.task_id),
            WriteOp::Claim { id }
            | WriteOp::Attempt { id, .. }
            | WriteOp::Route { id, .. }
            | WriteOp::Events { id, .. }
            | WriteOp::Finish { id, .. }
            | WriteOp::Journal { id, .. }
            | WriteOp::Answers { id, .. }
            | WriteOp::ToolBegin { id, .. }
            | WriteOp::Keep { id, .. }
            | WriteOp::Requeue { id, .. }
            | WriteOp::Park { id, .. }
            | WriteOp::Signal { id, .. }
            | WriteOp::Wake { id }
            | WriteOp::CancelRequest { id, .. }
            | WriteOp::Fence { id, .. }
            | WriteOp::Delete { id, .. } => Some(id),
            WriteOp::PutAgent { .. }
            | WriteOp::DeleteAgent { .. }
            | WriteOp::Memory { .. }
            | WriteOp::Schedule { .. }
            | WriteOp::Ledger { .. }
            | WriteOp::Recover => None,
        }
    }

    /// Its name, as in `docs/native_messages.md`.
    pub fn name(&self) -> &'static str {
        match self {
            WriteOp::Submit { .. } => "submit",
            WriteOp::Memory { .. } => "memory",
            WriteOp::Schedule { .. } => "schedule",
            WriteOp::Ledger { .. } => "ledger",
            WriteOp::Claim { .. } => "claim",
            WriteOp::Attempt { .. } => "attempt",
            WriteOp::Route { .. } => "route",
            WriteOp::Events { .. } => "events",
            WriteOp::Finish { .. } => "finish",
            WriteOp::Journal { .. } => "journal",
            WriteOp::Answers { .. } => "answers",
            WriteOp::ToolBegin { .. } => "tool_begin",
            WriteOp::Keep { .. } => "keep",
            WriteOp::Requeue { .. } => "requeue",
            WriteOp::Park { .. } => "park",
            WriteOp::Signal { .. } => "signal",
            WriteOp::Wake { .. } => "wake",
            WriteOp::CancelRequest { .. } => "cancel_request",
            WriteOp::Fence { .. } => "fence",
            WriteOp::Delete { .. } => "delete",
            WriteOp::PutAgent { .. } => "put_agent",
            WriteOp::DeleteAgent { .. } => "delete_agent",
            WriteOp::Recover => "recover",
        }
    }

    /// Whether it may have written something when it is refused: then its part of the transaction must be taken back. All others are
    /// refused before their first write.
    pub(crate) fn may_fail_halfway(&self) -> bool {
        matches!(self, WriteOp::Memory { .. } | WriteOp::Schedule { .. } | WriteOp::Ledger { .. } | WriteOp::Recover)
    }

    /// Whether nobody waits for its commit: it may go with the next one.
    pub(crate) fn is_lazy(&self) -> bool {
        match self {
            WriteOp::Events { .. } | WriteOp::Attempt { .. } | WriteOp::Route { .. } => true,
            WriteOp::Journal { change, .. } => !matches!(change, Change::Answer(_)),
            _ => false,
        }
    }

    /// Bytes of content that it holds while it waits, roughly.
    pub fn size(&self) -> usize {
        let events = |all: &[Happened]| all.iter().map(|h| h.event.encoded_len() + h.step.len()).sum::<usize>();
        match self {
            WriteOp::Submit { spec, header, .. } => {
                let recorded = header.record.as_ref().map_or(0, |r| r.entries.iter().map(prost::Message::encoded_len).sum::<usize>());
                prost::Message::encoded_len(spec.as_ref()) + recorded
            }
            WriteOp::Events { events: all, .. } | WriteOp::Requeue { events: all, .. } => events(all),
            WriteOp::Finish { finish, .. } => {
                let journal: usize = finish.journal.iter().map(|(_, answer)| answer.len()).sum();
                finish.result.as_ref().map_or(0, prost::Message::encoded_len) + events(&finish.events) + journal
            }
            WriteOp::Journal { change: Change::Answer(answer), .. } => answer.len(),
            WriteOp::Answers { answers, .. } => answers.iter().map(|(_, answer)| answer.len()).sum(),
            WriteOp::Park { inputs, .. } => inputs.iter().map(prost::Message::encoded_len).sum(),
            WriteOp::Signal { signal, .. } => prost::Message::encoded_len(signal.as_ref()),
            WriteOp::PutAgent { data, .. } => data.len(),
            WriteOp::Memory { op, .. } => op.size(),
            WriteOp::Keep { records, .. } => records.iter().map(|(key, data)| key.len() + data.as_ref().map_or(0, Vec::len)).sum(),
            _ => 0,
        }
    }

    /// Whether it may use the part of the queue that is reserved for ending what runs.
    pub fn is_urgent(&self) -> bool {
        !matches!(
            self,
            WriteOp::Submit { .. } | WriteOp::Claim { .. } | WriteOp::PutAgent { .. } | WriteOp::Signal { .. } | WriteOp::Memory { .. }
        )
    }
}

/// What a write gave.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Written {
    Ok,
    Created {
        fence: i64,
        attempt: i32,
    },
    Existing {
        id: String,
    },
    Claimed {
        fence: i64,
        attempt: i32,
        header: Box<TaskHeader>,
        spec: Box<pb::AgentTask>,
        lost: i64,
        ran_ms: i64,
        unjournaled: Vec<String>,
        answers: Vec<pb::InputAnswer>,
        /// Where its earlier attempts ran; empty: it has not run yet.
        executor: String,
        /// Locks of the Python environments that they ran in.
        environments: Vec<String>,
        /// The last attempt ended with a worker that it shared: nobody knows whose fault it was, so this one has its worker alone.
        alone: bool,
    },
    Sequence(i64),
    Tool(Decision),
    Requeued {
        lost: i64,
    },
    /// Whether everything that was asked is answered: the task may run again.
    Parked {
        ready: bool,
        header: Box<TaskHeader>,
    },
    State {
        state: pb::TaskState,
        fence: i64,
    },
    Fenced(i64),
    /// Whether there may be more to close.
    Recovered {
        more: bool,
    },
    Memory(MemoryAnswer),
    Schedule(Box<pb::Schedule>),
    /// The rows that changed.
    Ledger(Vec<LedgerRow>),
}
