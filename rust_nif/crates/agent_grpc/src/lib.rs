//! The gRPC front: decoding, limits, keys, rich errors, health, reflection.
//!
//! What decides about a task goes to the [`Engine`] as a small request; what only reads is answered here from the store and the providers.

mod agents;
mod auth;
mod budgets;
mod bulk;
mod bundle;
mod conn;
mod engine;
mod frameworks;
mod listen;
mod memories;
mod page;
mod place;
mod providers;
mod schedules;
mod status;
mod tasks;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers};
use agent_store::{Enqueued, TaskStore, WriteOp, Written};
use tokio::sync::oneshot;
use tonic::Status;

pub use auth::{Auth, DEFAULT_TENANT, TenantKeys, WorkerKeys};
pub use engine::{AgentCall, Engine, EngineBody, EngineReply, EngineRequest, Full};
pub use listen::{Listener, ServerConfig, Tls, serve};
pub use status::to_status;
pub use workers::Attached;

/// Longest wait for the engine's answer to a unary call.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait of calls that wait for a task.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// What the services share.
#[derive(Clone)]
pub struct Shared {
    /// Who decides.
    pub engine: Arc<dyn Engine>,
    /// Reads and live events.
    pub store: Arc<TaskStore>,
    /// Model calls.
    pub providers: Arc<Providers>,
    /// Who asks.
    pub auth: Arc<Auth>,
}

impl Shared {
    fn tenant<T>(&self, request: &tonic::Request<T>) -> Result<String, Status> {
        self.auth.tenant(request.metadata()).map_err(|e| to_status(&e))
    }

    fn caller<T>(&self, request: &tonic::Request<T>) -> Result<Caller, Status> {
        let (tenant, key_id) = self.auth.identity(request.metadata()).map_err(|e| to_status(&e))?;
        Ok(Caller { tenant, key_id, ..Caller::default() })
    }

    /// Writes what needs no decision, and waits for the commit.
    async fn write(&self, op: WriteOp) -> Result<Written, Status> {
        let (reply, answer) = oneshot::channel();
        let enqueued = self.store.write(op, move |result| drop(reply.send(result)));
        if enqueued == Enqueued::Busy {
            return Err(to_status(&AgentError::new(Reason::Overloaded, "the store's queue is full").retry_after(100)));
        }
        let unknown = || AgentError::new(Reason::CommitAmbiguous, "the outcome is not known; resend with the same request_id");
        let written = tokio::time::timeout(ENGINE_TIMEOUT, answer).await.ok().and_then(Result::ok).unwrap_or_else(|| Err(unknown()));
        written.map_err(|e| to_status(&e))
    }

    /// Reads where a disk or a server may be waited for.
    async fn read<T: Send + 'static>(&self, f: impl FnOnce(&TaskStore) -> Result<T, AgentError> + Send + 'static) -> Result<T, Status> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || f(&store)).await.map_err(|_| unexpected())?;
        found.map_err(|e| to_status(&e))
    }

    /// Asks the engine. A request that it drops has an unknown outcome: the caller sends again or reads back.
    async fn ask(&self, tenant: String, body: EngineBody) -> Result<EngineReply, Status> {
        self.ask_within(tenant, body, ENGINE_TIMEOUT).await
    }

    async fn ask_within(&self, tenant: String, body: EngineBody, limit: Duration) -> Result<EngineReply, Status> {
        self.decision(tenant, body, limit).await.map_err(|e| to_status(&e))
    }

    /// As [`Shared::ask`], with the error itself: one request of a batch fails inside its reply, not with a status.
    async fn decision(&self, tenant: String, body: EngineBody, limit: Duration) -> Result<EngineReply, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.engine
            .request(EngineRequest { tenant, body, reply })
            .map_err(|_| AgentError::new(Reason::QueueFull, "too many requests wait for the engine").retry_after(100))?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(EngineReply::Error(e))) => Err(e),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => {
                Err(AgentError::new(Reason::CommitAmbiguous, "the outcome is not known; resend with the same request_id"))
            }
        }
    }
}

fn unexpected() -> Status {
    to_status(&AgentError::new(Reason::Internal, "the engine gave an answer of another kind"))
}

type Reply<T> = Result<tonic::Response<T>, Status>;

fn ok<T>(value: T) -> Reply<T> {
    Ok(tonic::Response::new(value))
}

/// An id that a client may choose.
fn check_id(field: &str, id: &str) -> Option<pb::FieldViolation> {
    let good = id.len() <= 63 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    (!good)
        .then(|| pb::FieldViolation { field: field.to_owned(), description: "must be 1 to 63 letters, digits, \"-\" or \"_\"".to_owned() })
}
