//! Services whose part has not come: they stand in the protocol and answer UNIMPLEMENTED with a reason.

use std::pin::Pin;

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use tonic::{Request, Status, Streaming};

use crate::{Reply, to_status};

/// Answers for all of them.
pub(crate) struct Pending;

#[tonic::async_trait]
impl pb::worker_service_server::WorkerService for Pending {
    type AttachStream = Pin<Box<dyn futures::Stream<Item = Result<pb::AttachResponse, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<pb::AttachRequest>>) -> Reply<Self::AttachStream> {
        Err(to_status(&AgentError::pending("remote_workers")))
    }
}
