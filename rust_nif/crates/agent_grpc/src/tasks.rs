//! `TaskService`.

use std::pin::Pin;
use std::time::Duration;

use agent_core::header::{TaskHeader, duration_ms, header};
use agent_core::{AgentError, Reason, hash, plan, validate::validate_task};
use agent_proto::agents::v1 as pb;
use agent_providers::Caller;
use agent_store::{ListQuery, now_ms};
use tonic::{Request, Status};

use crate::conn::Connection;
use crate::engine::{EngineBody, EngineReply};
use crate::page::Page;
use crate::place::Place;
use crate::{MAX_WAIT, Reply, Shared, check_id, ok, to_status, unexpected};

/// Requests of a batch.
const MAX_BATCH: usize = 1000;
/// Grace of a cancel that names none, in ms.
const DEFAULT_GRACE_MS: i64 = 5000;
/// Longest grace, in ms.
const MAX_GRACE_MS: i64 = 600_000;

/// Of the reason of a cancel, in bytes.
pub(crate) const MAX_REASON: usize = 1024;
/// Of the name of a question, in bytes.
const MAX_INPUT_ID: usize = 256;
/// Of a comment, in bytes.
const MAX_COMMENT: usize = 4096;
/// Of an answer with all its parts, in bytes.
const MAX_SIGNAL: usize = 256 * 1024;

/// The service.
pub(crate) struct Tasks(pub(crate) Shared);

/// A task as the engine takes it, of whoever asks. Errors name every wrong field.
pub(crate) fn prepare(
    task: Option<pb::AgentTask>,
    request_id: &str,
    by: &Caller,
) -> Result<(Box<TaskHeader>, Box<pb::AgentTask>), AgentError> {
    let now = now_ms();
    let Some(mut task) = task else { return Err(AgentError::field("task", "is missing")) };
    let mut violations = validate_task(&task, now);
    violations.extend(bad_request_id(request_id));
    // What is wrong is said first: it would still be wrong when the capability comes.
    if let Some(error) = AgentError::invalid(violations) {
        return Err(error);
    }
    if let Some((capability, field)) = pending(&task) {
        return Err(AgentError::pending(capability).with("field", field));
    }
    if plan::propose::asked(&task) {
        task.plan = Some(plan::propose::proposal(&task));
    } else if task.plan.is_none() && task.execution_hints.as_ref().is_some_and(|h| h.method() == pb::ExecutionMethod::Hybrid) {
        task.plan = Some(plan::hybrid(&task.preferred_framework));
    }
    let id = uuid::Uuid::now_v7().to_string();
    let mut h = header(&task, &id, if request_id.is_empty() { &id } else { request_id }, &by.tenant, now);
    h.key_id.clone_from(&by.key_id);
    if !request_id.is_empty() {
        h.content_hash = hash::content_hash(&task).to_vec();
    }
    Ok((Box::new(h), Box::new(task)))
}

/// The grace of a cancel, in ms.
pub(crate) fn grace_ms(grace: Option<&prost_types::Duration>) -> Result<i64, Status> {
    let ms = grace.map_or(DEFAULT_GRACE_MS, duration_ms);
    if !(0..=MAX_GRACE_MS).contains(&ms) {
        return Err(to_status(&AgentError::field("grace", "must be 0 s to 600 s")));
    }
    Ok(ms)
}

/// Refuses a text that is too long, by its field.
pub(crate) fn short_enough(field: &str, text: &str, most: usize) -> Result<(), Status> {
    AgentError::invalid(too_long(field, text.len(), most).into_iter().collect()).map_or(Ok(()), |e| Err(to_status(&e)))
}

/// No database keeps a NUL in a text.
pub(crate) fn bad_request_id(id: &str) -> Option<pb::FieldViolation> {
    agent_core::validate::request_id_violation(id)
}

fn too_long(field: &str, length: usize, most: usize) -> Option<pb::FieldViolation> {
    (length > most).then(|| pb::FieldViolation { field: field.into(), description: format!("{length} bytes, must be at most {most}") })
}

fn signal_violations(signal: &pb::SignalTaskRequest) -> Vec<pb::FieldViolation> {
    let missing = signal.signal.is_none() && signal.payload.is_none();
    let missing = missing
        .then(|| pb::FieldViolation { field: "signal".into(), description: "is missing: approve, input, tool_result or payload".into() });
    let limits = [
        too_long("input_id", signal.input_id.len(), MAX_INPUT_ID),
        bad_request_id(&signal.request_id),
        too_long("comment", signal.comment.len(), MAX_COMMENT),
        too_long("signal", prost::Message::encoded_len(signal), MAX_SIGNAL),
    ];
    missing.into_iter().chain(limits.into_iter().flatten()).collect()
}

/// A field whose meaning the engine cannot keep yet: refused, since a wish that is silently dropped (this provider never, no more
/// than so much) is worse than none.
fn pending(task: &pb::AgentTask) -> Option<(&'static str, &'static str)> {
    let workflow = task.plan.as_ref().is_some_and(|p| p.steps.iter().any(|s| s.executor == "workflow"));
    workflow.then_some(("workflow", "task.plan.steps"))
}

impl Tasks {
    async fn submit(
        &self,
        task: Option<pb::AgentTask>,
        request_id: &str,
        by: &Caller,
        connection: Option<Connection>,
    ) -> Result<String, Status> {
        // The permit covers decode to commit, not the waiting for the end.
        let _permit = match &connection {
            Some(c) => Some(c.permits.try_acquire().map_err(|_| {
                to_status(
                    &AgentError::new(Reason::Overloaded, "64 submits of this connection wait for their commit")
                        .with("limit", "connection")
                        .retry_after(20),
                )
            })?),
            None => None,
        };
        let (header, spec) = prepare(task, request_id, by).map_err(|e| to_status(&e))?;
        let tenant = &by.tenant;
        if !header.parent_task_id.is_empty() {
            let (owner, parent) = (tenant.clone(), header.parent_task_id.clone());
            let known = self.0.read(move |store| store.head(&owner, &parent)).await;
            known.map_err(|_| to_status(&AgentError::field("task.parent_task_id", "names no task of this tenant")))?;
        }
        match self.0.ask(tenant.clone(), EngineBody::Submit { header, spec }).await? {
            EngineReply::Task(id) => Ok(id),
            _ => Err(unexpected()),
        }
    }

    fn get(&self, tenant: &str, id: &str) -> Result<pb::Task, Status> {
        self.0.store.get(tenant, id).map_err(|e| to_status(&e))
    }

    fn find(&self, tenant: &str, id: &str) -> Result<String, Status> {
        self.0.store.find(tenant, id).map_err(|e| to_status(&e))
    }
}

#[tonic::async_trait]
impl pb::task_service_server::TaskService for Tasks {
    async fn submit_task(&self, request: Request<pb::SubmitTaskRequest>) -> Reply<pb::Task> {
        let by = self.0.caller(&request)?;
        let connection = request.extensions().get::<Connection>().cloned();
        let r = request.into_inner();
        let id = self.submit(r.task, &r.request_id, &by, connection).await?;
        ok(self.get(&by.tenant, &id)?)
    }

    async fn execute_task(&self, request: Request<pb::ExecuteTaskRequest>) -> Reply<pb::Task> {
        let _open = Connection::open(&request);
        let by = self.0.caller(&request)?;
        let connection = request.extensions().get::<Connection>().cloned();
        let r = request.into_inner();
        let wait = match r.wait.as_ref().map(duration_ms) {
            None => MAX_WAIT,
            Some(ms) if (0..=3_600_000).contains(&ms) => Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
            Some(_) => return Err(to_status(&AgentError::field("wait", "must be 0 s to 1 h"))),
        };
        let id = self.submit(r.task, &r.request_id, &by, connection).await?;
        ok(self.0.store.wait_terminal(&by.tenant, &id, wait).await.map_err(|e| to_status(&e))?)
    }

    type WatchTaskStream = Pin<Box<dyn futures::Stream<Item = Result<pb::TaskEvent, Status>> + Send>>;

    async fn watch_task(&self, request: Request<pb::WatchTaskRequest>) -> Reply<Self::WatchTaskStream> {
        let open = Connection::open(&request);
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let id = self.0.store.head(&tenant, &r.task_id).map_err(|e| to_status(&e))?.id;
        if r.after < 0 {
            return Err(to_status(&AgentError::field("after", "must be 0 or a sequence")));
        }
        let store = self.0.store.clone();
        let (found, known, at) = (store.clone(), id.clone(), r.after);
        let own = tenant.clone();
        let after = tokio::task::spawn_blocking(move || found.cursor(&own, &known, at)).await.map_err(|_| unexpected())?;
        let place = Place::new(after.map_err(|e| to_status(&e))?, r.include_text, r.include_text && r.live_text);
        let start = ((store, open, None), tenant, id, place, Vec::<pb::TaskEvent>::new().into_iter(), false);
        let stream = futures::stream::unfold(start, move |(mut store, tenant, id, mut place, mut ready, failed)| async move {
            if failed {
                return None;
            }
            loop {
                if let Some(event) = ready.next() {
                    if place.passes(&event) {
                        return Some((Ok(event), (store, tenant, id, place, ready, false)));
                    }
                    continue;
                }
                // Taken anew each time: a task that waited has another live entry.
                store.2 = place.text.and_then(|_| store.0.listen(&id));
                match store.0.next_events(&tenant, &id, place.after, place.text).await {
                    Ok(events) if events.is_empty() => return None,
                    Ok(events) => ready = events.into_iter(),
                    Err(e) => return Some((Err(to_status(&e)), (store, tenant, id, place, ready, true))),
                }
            }
        });
        ok(Box::pin(stream) as Self::WatchTaskStream)
    }

    async fn get_task(&self, request: Request<pb::GetTaskRequest>) -> Reply<pb::Task> {
        let tenant = self.0.tenant(&request)?;
        let mut task = self.get(&tenant, &request.get_ref().task_id)?;
        if let Some(spec) = task.spec.clone().filter(|s| s.plan.is_some()) {
            let store = self.0.store.clone();
            let id = task.id.clone();
            let runs = tokio::task::spawn_blocking(move || store.plan_runs(&id)).await.map_err(|_| unexpected())?;
            task.plan = Some(plan::progress(&spec, runs.map_err(|e| to_status(&e))?, task.state()));
        }
        ok(task)
    }

    async fn list_tasks(&self, request: Request<pb::ListTasksRequest>) -> Reply<pb::ListTasksResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let page = Page::of(&["tasks", &tenant, &r.filter, &r.order_by], r.page_size, &r.page_token)?;
        let query = ListQuery { page_size: page.size, page_token: page.from.clone(), filter: r.filter, order_by: r.order_by };
        let store = self.0.store.clone();
        let listed = tokio::task::spawn_blocking(move || store.list(&tenant, &query)).await.map_err(|_| unexpected())?;
        let (tasks, next) = listed.map_err(|e| to_status(&e))?;
        ok(pb::ListTasksResponse { tasks, next_page_token: page.next(&next) })
    }

    async fn list_attempts(&self, request: Request<pb::ListAttemptsRequest>) -> Reply<pb::ListAttemptsResponse> {
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let all = self.0.store.attempts(&tenant, &r.task_id).map_err(|e| to_status(&e))?;
        let (attempts, next_page_token) = Page::of(&["attempts", &tenant, &r.task_id], r.page_size, &r.page_token)?.cut(all);
        ok(pb::ListAttemptsResponse { attempts, next_page_token })
    }

    async fn cancel_task(&self, request: Request<pb::CancelTaskRequest>) -> Reply<pb::CancelTaskResponse> {
        let _open = Connection::open(&request);
        let tenant = self.0.tenant(&request)?;
        let r = request.into_inner();
        let grace_ms = grace_ms(r.grace.as_ref())?;
        short_enough("reason", &r.reason, MAX_REASON)?;
        let task_id = self.find(&tenant, &r.task_id)?;
        let limit = Duration::from_millis(u64::try_from(grace_ms).unwrap_or(0)) + crate::ENGINE_TIMEOUT;
        match self.0.ask_within(tenant.clone(), EngineBody::Cancel { task_id, grace_ms, reason: r.reason }, limit).await? {
            EngineReply::Cancelled { task_id, proof } => {
                ok(pb::CancelTaskResponse { task: Some(self.get(&tenant, &task_id)?), proof: Some(*proof) })
            }
            _ => Err(unexpected()),
        }
    }

    async fn retry_task(&self, request: Request<pb::RetryTaskRequest>) -> Reply<pb::Task> {
        let by = self.0.caller(&request)?;
        let r = request.into_inner();
        let old = self.get(&by.tenant, &r.task_id)?;
        let id = crate::bulk::retry_one(&self.0, &by, old, &r.request_id).await.map_err(|e| to_status(&e))?;
        ok(self.get(&by.tenant, &id)?)
    }

    async fn cancel_tasks(&self, request: Request<pb::CancelTasksRequest>) -> Reply<pb::CancelTasksResponse> {
        let _open = Connection::open(&request);
        let tenant = self.0.tenant(&request)?;
        ok(crate::bulk::cancel(&self.0, tenant, request.into_inner()).await?)
    }

    async fn retry_tasks(&self, request: Request<pb::RetryTasksRequest>) -> Reply<pb::RetryTasksResponse> {
        let _open = Connection::open(&request);
        let by = self.0.caller(&request)?;
        ok(crate::bulk::retry(&self.0, &by, request.into_inner()).await?)
    }

    async fn fork_task(&self, request: Request<pb::ForkTaskRequest>) -> Reply<pb::Task> {
        let by = self.0.caller(&request)?;
        let tenant = by.tenant.clone();
        let r = request.into_inner();
        let old = self.get(&tenant, &r.task_id)?;
        let last = self.0.store.last_event(&tenant, &old.id).map_err(|e| to_status(&e))?;
        if !(0..=last).contains(&r.after) {
            return Err(to_status(&AgentError::field("after", format!("must be 0 or the sequence of an event; the last one is {last}"))));
        }
        let forgetful = old.durability() == pb::Durability::Ephemeral;
        let (mut header, spec) = prepare(r.task.or(old.spec), &r.request_id, &by).map_err(|e| to_status(&e))?;
        if forgetful || header.ephemeral {
            return Err(to_status(&AgentError::field("task_id", "an ephemeral task has no journal to begin with; retry it instead")));
        }
        if !header.content_hash.is_empty() {
            // The same task forked from elsewhere is another request.
            let origin = format!("{}@{}", old.id, r.after);
            header.content_hash.extend_from_slice(origin.as_bytes());
        }
        header.fork_of.clone_from(&old.id);
        header.fork_after = r.after;
        match self.0.ask(tenant.clone(), EngineBody::Submit { header, spec }).await? {
            EngineReply::Task(id) => ok(self.get(&tenant, &id)?),
            _ => Err(unexpected()),
        }
    }

    async fn check_task(&self, request: Request<pb::CheckTaskRequest>) -> Reply<pb::CheckTaskResponse> {
        let by = self.0.caller(&request)?;
        let (header, spec) = prepare(request.into_inner().task, "", &by).map_err(|e| to_status(&e))?;
        match self.0.ask(by.tenant, EngineBody::Check { header, spec }).await? {
            EngineReply::Route(route) => ok(pb::CheckTaskResponse { route: Some(route) }),
            _ => Err(unexpected()),
        }
    }

    type GetTaskBundleStream = Pin<Box<dyn futures::Stream<Item = Result<pb::TaskBundlePart, Status>> + Send>>;

    async fn get_task_bundle(&self, request: Request<pb::GetTaskBundleRequest>) -> Reply<Self::GetTaskBundleStream> {
        let open = Connection::open(&request);
        let tenant = self.0.tenant(&request)?;
        let id = request.into_inner().task_id;
        let owner = tenant.clone();
        let task = self.0.read(move |store| store.get(&owner, &id)).await?;
        let parts = crate::bundle::parts(&self.0, tenant, task).await?;
        let stream = futures::stream::unfold((parts, open), |(mut parts, open)| async { parts.recv().await.map(|p| (p, (parts, open))) });
        ok(Box::pin(stream) as Self::GetTaskBundleStream)
    }

    async fn replay_task(&self, request: Request<tonic::Streaming<pb::ReplayTaskRequest>>) -> Reply<pb::Task> {
        let _open = Connection::open(&request);
        let by = self.0.caller(&request)?;
        let id = crate::bundle::replay(&self.0, &by, request.into_inner()).await?;
        ok(self.get(&by.tenant, &id)?)
    }

    async fn signal_task(&self, request: Request<pb::SignalTaskRequest>) -> Reply<pb::Task> {
        let tenant = self.0.tenant(&request)?;
        let signal = request.into_inner();
        if let Some(error) = AgentError::invalid(signal_violations(&signal)) {
            return Err(to_status(&error));
        }
        let task_id = self.find(&tenant, &signal.task_id)?;
        match self.0.ask(tenant.clone(), EngineBody::Signal { task_id, signal: Box::new(signal) }).await? {
            EngineReply::Task(id) => ok(self.get(&tenant, &id)?),
            _ => Err(unexpected()),
        }
    }

    async fn batch_submit_tasks(&self, request: Request<pb::BatchSubmitTasksRequest>) -> Reply<pb::BatchSubmitTasksResponse> {
        let by = self.0.caller(&request)?;
        let requests = request.into_inner().requests;
        if requests.is_empty() || requests.len() > MAX_BATCH {
            return Err(to_status(&AgentError::field("requests", format!("{} requests, must be 1 to {MAX_BATCH}", requests.len()))));
        }
        // All at once: they share the group commit.
        let outcomes = futures::future::join_all(requests.into_iter().map(|r| {
            let by = &by;
            async move {
                let outcome = match prepare(r.task, &r.request_id, by) {
                    Err(e) => Err(e),
                    Ok((header, spec)) => self.one_of_batch(&by.tenant, header, spec).await,
                };
                use pb::batch_outcome::Outcome;
                pb::BatchOutcome {
                    outcome: Some(match outcome {
                        Ok(task) => Outcome::Task(task),
                        Err(e) => Outcome::Error(e.to_task_error()),
                    }),
                }
            }
        }));
        ok(pb::BatchSubmitTasksResponse { outcomes: outcomes.await })
    }

    async fn delete_task(&self, request: Request<pb::DeleteTaskRequest>) -> Reply<pb::DeleteTaskResponse> {
        let tenant = self.0.tenant(&request)?;
        let task_id = self.find(&tenant, &request.get_ref().task_id)?;
        match self.0.ask(tenant, EngineBody::Delete { task_id: task_id.clone() }).await? {
            EngineReply::Ok => ok(pb::DeleteTaskResponse { task_id }),
            _ => Err(unexpected()),
        }
    }
}

impl Tasks {
    async fn one_of_batch(&self, tenant: &str, header: Box<TaskHeader>, spec: Box<pb::AgentTask>) -> Result<pb::Task, AgentError> {
        match self.0.decision(tenant.to_owned(), EngineBody::Submit { header, spec }, crate::ENGINE_TIMEOUT).await? {
            EngineReply::Task(id) => self.0.store.get(tenant, &id),
            _ => Err(AgentError::new(Reason::CommitAmbiguous, "the outcome is not known; resend with the same request_id")),
        }
    }
}

pub(crate) fn agent_violations(agent: &pb::Agent) -> Vec<pb::FieldViolation> {
    let mut violations: Vec<pb::FieldViolation> = check_id("agent.id", &agent.id).into_iter().collect();
    if agent.instructions.len() > 64 * 1024 {
        violations.push(pb::FieldViolation { field: "agent.instructions".into(), description: "must be at most 65536 bytes".into() });
    }
    violations
}
