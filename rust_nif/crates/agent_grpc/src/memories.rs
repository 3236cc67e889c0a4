//! `MemoryService`: the store serves it alone, nothing is decided about tasks here.

use agent_core::memory::{check_append, check_batch, check_delete, check_get, check_list, check_messages, check_put, check_versions};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_store::{MemoryAnswer, MemoryOp, WriteOp, Written};
use tonic::{Request, Status};

use crate::page::Page;
use crate::{Reply, Shared, ok, to_status, unexpected};

/// The service.
pub(crate) struct Memories(pub(crate) Shared);

fn check(checked: Result<(), AgentError>) -> Result<(), Status> {
    checked.map_err(|e| to_status(&e))
}

impl Memories {
    async fn write(&self, tenant: String, op: MemoryOp) -> Result<MemoryAnswer, Status> {
        match self.0.write(WriteOp::Memory { tenant, op: Box::new(op), holder: None }).await? {
            Written::Memory(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn number(&self, tenant: String, op: MemoryOp) -> Result<i64, Status> {
        match self.write(tenant, op).await? {
            MemoryAnswer::Numbers(numbers) => Ok(numbers.first().copied().unwrap_or_default()),
            MemoryAnswer::Item(_) => Err(unexpected()),
        }
    }
}

#[tonic::async_trait]
impl pb::memory_service_server::MemoryService for Memories {
    async fn put_memory(&self, request: Request<pb::PutMemoryRequest>) -> Reply<pb::MemoryItem> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_put(&r))?;
        match self.write(tenant, MemoryOp::Put(r)).await? {
            MemoryAnswer::Item(item) => ok(*item),
            MemoryAnswer::Numbers(_) => Err(unexpected()),
        }
    }

    async fn get_memory(&self, request: Request<pb::GetMemoryRequest>) -> Reply<pb::MemoryItem> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_get(&r))?;
        ok(self.0.read(move |store| store.memory(&tenant, &r.namespace, &r.key)).await?)
    }

    async fn delete_memory(&self, request: Request<pb::DeleteMemoryRequest>) -> Reply<pb::DeleteMemoryResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_delete(&r))?;
        ok(pb::DeleteMemoryResponse { version: self.number(tenant, MemoryOp::Delete(r)).await? })
    }

    async fn list_memories(&self, request: Request<pb::ListMemoriesRequest>) -> Reply<pb::ListMemoriesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_list(&r))?;
        let page = Page::of(&["memories", &tenant, &r.namespace, &r.prefix], r.page_size, &r.page_token)?;
        let (size, r) = (page.size, pb::ListMemoriesRequest { page_token: page.from.clone(), ..r });
        let (items, next) = self.0.read(move |store| store.memories(&tenant, &r, size)).await?;
        ok(pb::ListMemoriesResponse { items, next_page_token: page.next(&next) })
    }

    async fn batch_memory(&self, request: Request<pb::BatchMemoryRequest>) -> Reply<pb::BatchMemoryResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_batch(&r))?;
        match self.write(tenant, MemoryOp::Batch(r)).await? {
            MemoryAnswer::Numbers(versions) => ok(pb::BatchMemoryResponse { versions }),
            MemoryAnswer::Item(_) => Err(unexpected()),
        }
    }

    async fn search_memories(&self, _: Request<pb::SearchMemoriesRequest>) -> Reply<pb::SearchMemoriesResponse> {
        Err(to_status(&AgentError::pending("memory_search")))
    }

    async fn list_memory_versions(&self, request: Request<pb::ListMemoryVersionsRequest>) -> Reply<pb::ListMemoryVersionsResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_versions(&r))?;
        let page = Page::of(&["memory_versions", &tenant, &r.namespace, &r.key], r.page_size, &r.page_token)?;
        let (size, r) = (page.size, pb::ListMemoryVersionsRequest { page_token: page.from.clone(), ..r });
        let (versions, next) = self.0.read(move |store| store.memory_versions(&tenant, &r, size)).await?;
        if versions.is_empty() {
            return Err(to_status(&AgentError::new(Reason::MemoryNotFound, "there was never such a value")));
        }
        ok(pb::ListMemoryVersionsResponse { versions, next_page_token: page.next(&next) })
    }

    async fn append_messages(&self, request: Request<pb::AppendMessagesRequest>) -> Reply<pb::AppendMessagesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_append(&r))?;
        ok(pb::AppendMessagesResponse { length: self.number(tenant, MemoryOp::Append(r)).await? })
    }

    async fn list_messages(&self, request: Request<pb::ListMessagesRequest>) -> Reply<pb::ListMessagesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check(check_messages(&r))?;
        let page = Page::of(&["messages", &tenant, &r.namespace, &r.conversation_id], r.page_size, &r.page_token)?;
        let (size, r) = (page.size, pb::ListMessagesRequest { page_token: page.from.clone(), ..r });
        let (messages, next) = self.0.read(move |store| store.messages(&tenant, &r, size)).await?;
        ok(pb::ListMessagesResponse { messages, next_page_token: page.next(&next) })
    }
}
