//! Cancel and retry of what a filter finds, and retry of one.

use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_providers::Caller;
use agent_store::ListQuery;
use agent_store::record::is_terminal;
use futures::StreamExt;
use tonic::Status;

use crate::engine::{EngineBody, EngineReply};
use crate::tasks::{MAX_REASON, grace_ms, prepare, short_enough};
use crate::{ENGINE_TIMEOUT, Shared, to_status};
use agent_core::validate::MAX_REQUEST_ID;

/// Tasks of one call.
const MAX_TASKS: usize = 1000;
/// Tasks read at once while their state is looked at.
const PAGE: usize = 500;
/// Tasks that are worked on at once.
const AT_ONCE: usize = 32;
/// Of the request id of a bulk retry, in bytes: each task's own is made of it, a colon and the task's id.
const MAX_BULK_ID: usize = MAX_REQUEST_ID - 37;

/// Tasks of a filter whose end agrees, and whether there are more.
async fn found(shared: &Shared, tenant: &str, filter: String, limit: i32, ended: bool) -> Result<(Vec<pb::Task>, bool), Status> {
    if filter.trim().is_empty() {
        return Err(to_status(&AgentError::field(
            "filter",
            "is missing: say which tasks, for example \"state=QUEUED\" or \"label.job=42\"",
        )));
    }
    let limit = match limit {
        0 => MAX_TASKS,
        n => usize::try_from(n)
            .ok()
            .filter(|n| *n <= MAX_TASKS)
            .ok_or_else(|| to_status(&AgentError::field("limit", format!("{n}, must be 1 to {MAX_TASKS}"))))?,
    };
    let tenant = tenant.to_owned();
    shared
        .read(move |store| {
            let mut query = ListQuery { page_size: PAGE, filter, ..Default::default() };
            let mut tasks = Vec::new();
            loop {
                let (page, token) = store.list(&tenant, &query)?;
                tasks.extend(page.into_iter().filter(|task| is_terminal(task.state()) == ended));
                if tasks.len() > limit || token.is_empty() {
                    break;
                }
                query.page_token = token;
            }
            let more = tasks.len() > limit;
            tasks.truncate(limit);
            Ok((tasks, more))
        })
        .await
}

fn untouched(task: pb::Task) -> pb::BulkOutcome {
    pb::BulkOutcome { state: task.state, task_id: task.id, ..Default::default() }
}

/// Cancels what the filter finds.
pub(crate) async fn cancel(shared: &Shared, tenant: String, r: pb::CancelTasksRequest) -> Result<pb::CancelTasksResponse, Status> {
    let grace_ms = grace_ms(r.grace.as_ref())?;
    short_enough("reason", &r.reason, MAX_REASON)?;
    let (tasks, more) = found(shared, &tenant, r.filter, r.limit, false).await?;
    if r.dry_run {
        return Ok(pb::CancelTasksResponse { outcomes: tasks.into_iter().map(untouched).collect(), more });
    }
    let limit = Duration::from_millis(u64::try_from(grace_ms).unwrap_or(0)) + ENGINE_TIMEOUT;
    let outcomes = futures::stream::iter(tasks.into_iter().map(|task| {
        let (tenant, reason) = (&tenant, r.reason.clone());
        async move {
            let body = EngineBody::Cancel { task_id: task.id.clone(), grace_ms, reason };
            let (state, error) = match shared.decision(tenant.clone(), body, limit).await {
                Ok(_) => (pb::TaskState::Cancelled as i32, None),
                Err(e) => (task.state, Some(e.to_task_error())),
            };
            pb::BulkOutcome { task_id: task.id, state, error, ..Default::default() }
        }
    }));
    Ok(pb::CancelTasksResponse { outcomes: outcomes.buffered(AT_ONCE).collect().await, more })
}

/// Retries what the filter finds.
pub(crate) async fn retry(shared: &Shared, by: &Caller, r: pb::RetryTasksRequest) -> Result<pb::RetryTasksResponse, Status> {
    short_enough("request_id", &r.request_id, MAX_BULK_ID)?;
    let (tasks, more) = found(shared, &by.tenant, r.filter, r.limit, true).await?;
    if r.dry_run {
        return Ok(pb::RetryTasksResponse { outcomes: tasks.into_iter().map(untouched).collect(), more });
    }
    let outcomes = futures::stream::iter(tasks.into_iter().map(|task| {
        let request_id = &r.request_id;
        async move {
            let mut outcome = untouched(task.clone());
            // One name for each: sent again, no task is retried twice.
            let name = if request_id.is_empty() { String::new() } else { format!("{request_id}:{}", task.id) };
            match retry_one(shared, by, task, &name).await {
                Ok(id) => outcome.new_task_id = id,
                Err(e) => outcome.error = Some(e.to_task_error()),
            }
            outcome
        }
    }));
    Ok(pb::RetryTasksResponse { outcomes: outcomes.buffered(AT_ONCE).collect().await, more })
}

/// A new task like an ended one; gives its id.
pub(crate) async fn retry_one(shared: &Shared, by: &Caller, old: pb::Task, request_id: &str) -> Result<String, AgentError> {
    if !is_terminal(old.state()) {
        let open = AgentError::new(Reason::WrongState, "the task has not ended; cancel it first");
        return Err(open.with("state", old.state().as_str_name()));
    }
    let (mut header, spec) = prepare(old.spec, request_id, by)?;
    header.retry_of.clone_from(&old.id);
    match shared.decision(by.tenant.clone(), EngineBody::Retry { task_id: old.id, header, spec }, ENGINE_TIMEOUT).await? {
        EngineReply::Task(id) => Ok(id),
        _ => Err(AgentError::new(Reason::Internal, "the engine gave an answer of another kind")),
    }
}
