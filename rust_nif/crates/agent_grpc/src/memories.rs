//! `MemoryService`: the store serves it alone, nothing is decided about tasks here.

use agent_core::validate::namespace_violation;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_store::{MemoryAnswer, MemoryOp, WriteOp, Written};
use pb::memory_operation::Operation;
use prost::Message;
use tonic::{Request, Status};

use crate::page::Page;
use crate::tasks::bad_request_id;
use crate::{Reply, Shared, ok, to_status, unexpected};

/// Of a key or the id of a conversation, in bytes.
const MAX_KEY: usize = 512;
/// Of a value, in bytes.
const MAX_VALUE: usize = 1024 * 1024;
/// Messages of one append, operations of one batch.
const MAX_AT_ONCE: usize = 1000;
/// Of one append or batch, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Longest time to live: ten years, in seconds.
const MAX_TTL_S: i64 = 10 * 366 * 24 * 3600;

/// The service.
pub(crate) struct Memories(pub(crate) Shared);

fn violation(field: impl Into<String>, description: impl Into<String>) -> pb::FieldViolation {
    pb::FieldViolation { field: field.into(), description: description.into() }
}

/// A name that is looked up as it is.
fn name(field: &str, name: &str) -> Option<pb::FieldViolation> {
    let good = (1..=MAX_KEY).contains(&name.len()) && !name.chars().any(char::is_control);
    (!good).then(|| violation(field, format!("must be 1 to {MAX_KEY} bytes without control characters")))
}

fn bytes(field: &str, size: usize, most: usize) -> Option<pb::FieldViolation> {
    (size > most).then(|| violation(field, format!("{size} bytes, must be at most {most}")))
}

fn check(violations: impl IntoIterator<Item = Option<pb::FieldViolation>>) -> Result<(), Status> {
    match AgentError::invalid(violations.into_iter().flatten().collect()) {
        Some(error) => Err(to_status(&error)),
        None => Ok(()),
    }
}

fn value(field: &str, r: &pb::PutMemoryRequest) -> [Option<pb::FieldViolation>; 5] {
    let at = |name: &str| format!("{field}{name}");
    let ttl = r.ttl.as_ref().is_some_and(|t| t.seconds < 0 || t.nanos < 0 || (t.seconds, t.nanos) == (0, 0) || t.seconds > MAX_TTL_S);
    [
        name(&at("key"), &r.key),
        r.value.is_none().then(|| violation(at("value"), "is missing")),
        bytes(&at("value"), r.value.as_ref().map_or(0, Message::encoded_len), MAX_VALUE),
        ttl.then(|| violation(at("ttl"), "must be more than 0 s and at most ten years; unset: for ever")),
        r.expected_version.is_some_and(|n| n < 0).then(|| violation(at("expected_version"), "must be 0 (absent) or a version")),
    ]
}

fn operation(i: usize, namespace: &str, operation: &pb::MemoryOperation) -> Vec<Option<pb::FieldViolation>> {
    let field = format!("operations[{i}]");
    let other = |other: &str| {
        (!other.is_empty() && other != namespace)
            .then(|| violation(format!("{field}.namespace"), "must be empty or the namespace of the batch"))
    };
    match &operation.operation {
        Some(Operation::Put(r)) => value(&format!("{field}.put."), r).into_iter().chain([other(&r.namespace)]).collect(),
        Some(Operation::Delete(r)) => vec![name(&format!("{field}.delete.key"), &r.key), other(&r.namespace)],
        None => vec![Some(violation(field, "is neither put nor delete"))],
    }
}

impl Memories {
    async fn write(&self, tenant: String, op: MemoryOp) -> Result<MemoryAnswer, Status> {
        match self.0.write(WriteOp::Memory { tenant, op: Box::new(op) }).await? {
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
        check(value("", &r).into_iter().chain([namespace_violation("namespace", &r.namespace), bad_request_id(&r.request_id)]))?;
        match self.write(tenant, MemoryOp::Put(r)).await? {
            MemoryAnswer::Item(item) => ok(*item),
            MemoryAnswer::Numbers(_) => Err(unexpected()),
        }
    }

    async fn get_memory(&self, request: Request<pb::GetMemoryRequest>) -> Reply<pb::MemoryItem> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check([namespace_violation("namespace", &r.namespace), name("key", &r.key)])?;
        ok(self.0.read(move |store| store.memory(&tenant, &r.namespace, &r.key)).await?)
    }

    async fn delete_memory(&self, request: Request<pb::DeleteMemoryRequest>) -> Reply<pb::DeleteMemoryResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let version = r.expected_version.is_some_and(|n| n < 0).then(|| violation("expected_version", "must be 0 (absent) or a version"));
        check([namespace_violation("namespace", &r.namespace), name("key", &r.key), version])?;
        ok(pb::DeleteMemoryResponse { version: self.number(tenant, MemoryOp::Delete(r)).await? })
    }

    async fn list_memories(&self, request: Request<pb::ListMemoriesRequest>) -> Reply<pb::ListMemoriesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check([namespace_violation("namespace", &r.namespace), bytes("prefix", r.prefix.len(), MAX_KEY)])?;
        let page = Page::of(&["memories", &tenant, &r.namespace, &r.prefix], r.page_size, &r.page_token)?;
        let (size, r) = (page.size, pb::ListMemoriesRequest { page_token: page.from.clone(), ..r });
        let (items, next) = self.0.read(move |store| store.memories(&tenant, &r, size)).await?;
        ok(pb::ListMemoriesResponse { items, next_page_token: page.next(&next) })
    }

    async fn batch_memory(&self, request: Request<pb::BatchMemoryRequest>) -> Reply<pb::BatchMemoryResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let n = r.operations.len();
        let count = (n == 0 || n > MAX_AT_ONCE).then(|| violation("operations", format!("{n} operations, must be 1 to {MAX_AT_ONCE}")));
        let whole = [
            namespace_violation("namespace", &r.namespace),
            count,
            bytes("operations", r.encoded_len(), MAX_BYTES),
            bad_request_id(&r.request_id),
        ];
        check(whole.into_iter().chain(r.operations.iter().enumerate().flat_map(|(i, o)| operation(i, &r.namespace, o))))?;
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
        check([namespace_violation("namespace", &r.namespace), name("key", &r.key)])?;
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
        let n = r.messages.len();
        let count = (n == 0 || n > MAX_AT_ONCE).then(|| violation("messages", format!("{n} messages, must be 1 to {MAX_AT_ONCE}")));
        let roles = r.messages.iter().enumerate().map(|(i, m)| {
            let known = matches!(pb::Role::try_from(m.role), Ok(role) if role != pb::Role::Unspecified);
            (!known).then(|| violation(format!("messages[{i}].role"), "is not set to USER, ASSISTANT, SYSTEM or TOOL"))
        });
        let whole = [
            namespace_violation("namespace", &r.namespace),
            name("conversation_id", &r.conversation_id),
            count,
            bytes("messages", r.encoded_len(), MAX_BYTES),
            bad_request_id(&r.request_id),
        ];
        check(whole.into_iter().chain(roles))?;
        ok(pb::AppendMessagesResponse { length: self.number(tenant, MemoryOp::Append(r)).await? })
    }

    async fn list_messages(&self, request: Request<pb::ListMessagesRequest>) -> Reply<pb::ListMessagesResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        check([namespace_violation("namespace", &r.namespace), name("conversation_id", &r.conversation_id)])?;
        let page = Page::of(&["messages", &tenant, &r.namespace, &r.conversation_id], r.page_size, &r.page_token)?;
        let (size, r) = (page.size, pb::ListMessagesRequest { page_token: page.from.clone(), ..r });
        let (messages, next) = self.0.read(move |store| store.messages(&tenant, &r, size)).await?;
        ok(pb::ListMessagesResponse { messages, next_page_token: page.next(&next) })
    }
}
