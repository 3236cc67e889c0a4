//! What goes to the engine and what comes back.

use agent_core::AgentError;
use agent_core::header::TaskHeader;
use agent_proto::agents::v1 as pb;
use tokio::sync::oneshot;

use crate::workers::Attached;

/// No request more is taken now.
#[derive(Debug)]
pub struct Full;

/// Who decides: Erlang in a node, a script in tests.
pub trait Engine: Send + Sync + 'static {
    /// Takes a request, or is full. The answer comes through the request.
    fn request(&self, request: EngineRequest) -> Result<(), Full>;

    /// Takes a worker of another machine, or is full.
    fn attach(&self, attached: Attached) -> Result<(), Full>;
}

/// A request for a decision.
#[derive(Debug)]
pub struct EngineRequest {
    /// From the key, never from the body.
    pub tenant: String,
    /// What is asked.
    pub body: EngineBody,
    /// Where the answer goes; dropped: the outcome is unknown.
    pub reply: oneshot::Sender<EngineReply>,
}

/// What is asked of agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AgentCall {
    Create,
    Get,
    List,
    Update,
    Delete,
    Types,
}

/// What is asked.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum EngineBody {
    Submit {
        header: Box<TaskHeader>,
        spec: Box<pb::AgentTask>,
    },
    /// Whether a task would be taken, and what would run it.
    Check {
        header: Box<TaskHeader>,
        spec: Box<pb::AgentTask>,
    },
    Cancel {
        task_id: String,
        grace_ms: i64,
        reason: String,
    },
    Retry {
        task_id: String,
        header: Box<TaskHeader>,
        spec: Box<pb::AgentTask>,
    },
    Signal {
        task_id: String,
        signal: Box<pb::SignalTaskRequest>,
    },
    Delete {
        task_id: String,
    },
    Agent {
        call: AgentCall,
        agent: Box<pb::Agent>,
    },
    Frameworks,
    Framework {
        name: String,
    },
    RestartWorkers {
        name: String,
    },
}

/// What comes back.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum EngineReply {
    Ok,
    Task(String),
    Cancelled { task_id: String, proof: Box<pb::CancellationProof> },
    Agents(Vec<pb::Agent>),
    AgentTypes(Vec<pb::AgentType>),
    Frameworks(Vec<pb::Framework>),
    Restarted(i32),
    Route(pb::Route),
    Error(AgentError),
}
