//! Services whose part has not come: they stand in the protocol and answer UNIMPLEMENTED with a reason.

use std::pin::Pin;

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use tonic::{Request, Status, Streaming};

use crate::{Reply, to_status};

/// Answers for all of them.
pub(crate) struct Pending;

macro_rules! pending {
    ($capability:literal: $service:path { $($method:ident($request:ident) -> $response:ident;)* }) => {
        #[tonic::async_trait]
        impl $service for Pending {
            $(async fn $method(&self, _: Request<pb::$request>) -> Reply<pb::$response> {
                Err(to_status(&AgentError::pending($capability)))
            })*
        }
    };
}

pending!("memory": pb::memory_service_server::MemoryService {
    put_memory(PutMemoryRequest) -> MemoryItem;
    get_memory(GetMemoryRequest) -> MemoryItem;
    delete_memory(DeleteMemoryRequest) -> DeleteMemoryResponse;
    list_memories(ListMemoriesRequest) -> ListMemoriesResponse;
    batch_memory(BatchMemoryRequest) -> BatchMemoryResponse;
    search_memories(SearchMemoriesRequest) -> SearchMemoriesResponse;
    list_memory_versions(ListMemoryVersionsRequest) -> ListMemoryVersionsResponse;
    append_messages(AppendMessagesRequest) -> AppendMessagesResponse;
    list_messages(ListMessagesRequest) -> ListMessagesResponse;
});

pending!("schedules": pb::schedule_service_server::ScheduleService {
    create_schedule(CreateScheduleRequest) -> Schedule;
    get_schedule(GetScheduleRequest) -> Schedule;
    list_schedules(ListSchedulesRequest) -> ListSchedulesResponse;
    pause_schedule(PauseScheduleRequest) -> Schedule;
    resume_schedule(ResumeScheduleRequest) -> Schedule;
    trigger_schedule(TriggerScheduleRequest) -> TriggerScheduleResponse;
    delete_schedule(DeleteScheduleRequest) -> DeleteScheduleResponse;
});

#[tonic::async_trait]
impl pb::worker_service_server::WorkerService for Pending {
    type AttachStream = Pin<Box<dyn futures::Stream<Item = Result<pb::AttachResponse, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<pb::AttachRequest>>) -> Reply<Self::AttachStream> {
        Err(to_status(&AgentError::pending("remote_workers")))
    }
}
