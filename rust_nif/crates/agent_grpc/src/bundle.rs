//! Bundles: everything an ended task was made of, and a task that runs from one.
//!
//! Parts of a bundle are messages of the API, so what a client keeps them in is its own affair; the SDK writes a zip (`docs/bundles.md`).

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_core::header::{Record, TaskHeader, timestamp};
use agent_core::{AgentError, Reason, hash};
use agent_proto::agents::v1 as pb;
use agent_providers::Caller;
use agent_store::journal::entry_of;
use agent_store::record::is_terminal;
use agent_store::{TaskStore, now_ms, questions};
use futures::StreamExt;
use pb::task_bundle_part::Part;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use crate::engine::{AgentCall, EngineBody, EngineReply};
use crate::tasks::prepare;
use crate::{Shared, to_status, unexpected};

/// Of the format.
const VERSION: i32 = 1;
/// Parts that wait for a slow client.
const PARTS: usize = 16;
/// Of all parts of a bundle that is replayed, in bytes.
const MAX_BUNDLE_BYTES: usize = 256 * 1024 * 1024;
/// Where what a replay remembers is kept: apart from what its original would.
const NAMESPACE: &str = "replay";

/// Parts on their way to a client.
pub(crate) type Parts = mpsc::Receiver<Result<pb::TaskBundlePart, Status>>;

/// The parts of a task's bundle, written as the client takes them.
pub(crate) async fn parts(shared: &Shared, tenant: String, task: pb::Task) -> Result<Parts, Status> {
    if task.durability() == pb::Durability::Ephemeral {
        return Err(to_status(&AgentError::field("task_id", "an ephemeral task keeps no record; submit it as a durable one")));
    }
    if !is_terminal(task.state()) {
        let open = AgentError::new(Reason::WrongState, "the task has not ended; wait for its end or cancel it");
        return Err(to_status(&open.with("state", task.state().as_str_name())));
    }
    let mut head = vec![Part::Header(pb::TaskBundleHeader {
        version: VERSION,
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        hash_version: i32::try_from(hash::VERSION).unwrap_or_default(),
        task_id: task.id.clone(),
        create_time: Some(timestamp(now_ms())),
    })];
    let agents = agents(shared, &tenant, &task).await;
    let id = task.id.clone();
    head.push(Part::Task(without_environment(task)));
    head.extend(agents.into_iter().map(Part::Agent));
    let store = shared.store.clone();
    let (to, parts) = mpsc::channel(PARTS);
    tokio::spawn(async move {
        if let Err(e) = write(store, &tenant, &id, head, &to).await {
            let _ = to.send(Err(to_status(&e))).await;
        }
    });
    Ok(parts)
}

/// Everything behind the head is read when its turn comes.
async fn write(
    store: Arc<TaskStore>,
    tenant: &str,
    id: &str,
    head: Vec<Part>,
    to: &mpsc::Sender<Result<pb::TaskBundlePart, Status>>,
) -> Result<(), AgentError> {
    let gone = |_| AgentError::new(Reason::TaskCancelled, "the client went away");
    let broken = |_| AgentError::new(Reason::Internal, "the store could not be read");
    let (from, owner, task) = (store.clone(), tenant.to_owned(), id.to_owned());
    let read = move || Ok::<_, AgentError>((from.attempts(&owner, &task)?, from.recorded(&task)?));
    let (attempts, entries) = tokio::task::spawn_blocking(read).await.map_err(broken)??;
    let rest = attempts.into_iter().map(Part::Attempt).chain(entries.into_iter().map(Part::Entry));
    for part in head.into_iter().chain(rest) {
        to.send(Ok(pb::TaskBundlePart { part: Some(part) })).await.map_err(gone)?;
    }
    let mut after = 0;
    loop {
        let events = store.next_events(tenant, id, after, None).await?;
        let Some(last) = events.last() else { return Ok(()) };
        after = last.sequence;
        for event in events {
            to.send(Ok(pb::TaskBundlePart { part: Some(Part::Event(event)) })).await.map_err(gone)?;
        }
    }
}

/// Its agents as they are defined now; one that is gone is left out.
async fn agents(shared: &Shared, tenant: &str, task: &pb::Task) -> Vec<pb::Agent> {
    let spec = task.spec.as_ref();
    let steps = spec.and_then(|s| s.plan.as_ref()).map(|p| p.steps.as_slice()).unwrap_or_default();
    let mut ids: Vec<&str> = spec.iter().map(|s| s.agent_id.as_str()).chain(steps.iter().map(|s| s.agent_id.as_str())).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut found = Vec::new();
    for id in ids.into_iter().filter(|id| !id.is_empty()) {
        let agent = Box::new(pb::Agent { id: id.to_owned(), ..Default::default() });
        if let Ok(EngineReply::Agents(agents)) = shared.ask(tenant.to_owned(), EngineBody::Agent { call: AgentCall::Get, agent }).await {
            found.extend(agents);
        }
    }
    found
}

/// Values of environment variables are for tools, which do not run again, and often secrets.
fn without_environment(mut task: pb::Task) -> pb::Task {
    let context = task.spec.as_mut().and_then(|s| s.context.as_mut());
    context.into_iter().flat_map(|c| c.environment_variables.values_mut()).for_each(String::clear);
    task
}

/// What came of a bundle.
#[derive(Default)]
struct Bundle {
    header: Option<pb::TaskBundleHeader>,
    task: Option<pb::Task>,
    executor: String,
    entries: Vec<pb::JournalEntry>,
}

fn invalid(why: impl Into<String>) -> AgentError {
    AgentError::new(Reason::BundleInvalid, why)
}

impl Bundle {
    fn take(&mut self, part: Option<Part>) -> Result<(), AgentError> {
        match (part, &self.header) {
            (Some(Part::Header(header)), None) => {
                if header.version != VERSION {
                    let why = format!("its format has version {}, this engine reads {VERSION}", header.version);
                    return Err(invalid(why).with("part", "header"));
                }
                if u32::try_from(header.hash_version) != Ok(hash::VERSION) {
                    let why = format!("its journal has version {}, this engine reads {}", header.hash_version, hash::VERSION);
                    return Err(invalid(why).with("part", "header"));
                }
                self.header = Some(header);
            }
            (Some(Part::Header(_)), Some(_)) => return Err(invalid("it has two headers").with("part", "header")),
            (_, None) => return Err(invalid("it does not begin with its header").with("part", "header")),
            (Some(Part::Task(task)), _) if self.task.is_none() => self.task = Some(task),
            (Some(Part::Task(_)), _) => return Err(invalid("it has two tasks").with("part", "task")),
            (Some(Part::Attempt(attempt)), _) => self.executor = attempt.executor,
            (Some(Part::Entry(entry)), _) => {
                entry_of(&entry)?;
                self.entries.push(entry);
            }
            (Some(Part::Agent(_) | Part::Event(_)), _) => {}
            (None, _) => return Err(invalid("a part of it is empty or of a newer version")),
        }
        Ok(())
    }

    /// The task to submit, with what answers it.
    fn prepared(self, request_id: &str, by: &Caller) -> Result<(Box<TaskHeader>, Box<pb::AgentTask>), AgentError> {
        let header = self.header.ok_or_else(|| invalid("it is empty").with("part", "header"))?;
        let task = self.task.ok_or_else(|| invalid("it has no task").with("part", "task"))?;
        if task.id != header.task_id {
            return Err(invalid("its task is not the one of its header").with("part", "task"));
        }
        if !task.unjournaled_tools.is_empty() {
            let why = "some of its tools are not in its record, so a replay would run them once more";
            return Err(AgentError::new(Reason::ReplayNotAllowed, why).with("tools", task.unjournaled_tools.join(", ")));
        }
        let executor = executor(&task, self.executor);
        let spec = task.spec.map(|spec| as_it_ran(spec, &executor, &self.entries));
        let (mut h, mut spec) = prepare(spec, request_id, by)?;
        if !h.content_hash.is_empty() {
            // The same task from another bundle is another request.
            h.content_hash.extend_from_slice(task.id.as_bytes());
        }
        if let Some(context) = spec.context.as_mut().filter(|c| !c.memory_namespace.is_empty()) {
            context.memory_namespace = format!("{NAMESPACE}/{}", h.task_id);
        }
        // Steps run again, from what their calls were answered.
        let entries = self.entries.into_iter().filter(|e| !matches!(e.answer, Some(pb::journal_entry::Answer::Step(_)))).collect();
        let answers = task.answers.into_iter().filter(|a| !questions::is_money(&a.input_id)).collect();
        h.replayed = true;
        h.record = Some(Arc::new(Record { of: task.id, entries, answers, remembered: task.remembered }));
        Ok((h, spec))
    }
}

/// What ran it in the end.
fn executor(task: &pb::Task, last_attempt: String) -> String {
    let said = task.result.as_ref().map(|r| r.executor.clone());
    let routed = || task.route.as_ref().map(|r| r.executor.clone()).unwrap_or_default();
    said.into_iter().chain([last_attempt]).find(|name| !name.is_empty()).unwrap_or_else(routed)
}

/// The task for the executors that ran it, whatever this node would choose, and without what belongs to its time and place.
fn as_it_ran(mut spec: pb::AgentTask, executor: &str, entries: &[pb::JournalEntry]) -> pb::AgentTask {
    spec.parent_task_id.clear();
    let hints = spec.execution_hints.get_or_insert_default();
    hints.not_before = None;
    hints.durability = pb::Durability::Durable as i32;
    hints.fallback_frameworks.clear();
    if let Some(plan) = &mut spec.plan {
        let ran: BTreeMap<&str, &str> = entries
            .iter()
            .filter_map(|e| match &e.answer {
                Some(pb::journal_entry::Answer::Step(run)) => Some((run.step_id.as_str(), run.executor.as_str())),
                _ => None,
            })
            .collect();
        for step in plan.steps.iter_mut().filter(|s| s.executor == "auto") {
            if let Some(known) = ran.get(step.id.as_str()).filter(|name| !name.is_empty()) {
                step.executor = (*known).to_owned();
            }
        }
    } else if executor == "native" {
        hints.set_method(pb::ExecutionMethod::Native);
    } else if !executor.is_empty() {
        hints.set_method(pb::ExecutionMethod::Framework);
        executor.clone_into(&mut spec.preferred_framework);
    }
    if let Some(requirements) = &mut spec.requirements {
        requirements.max_queue_duration = None;
    }
    spec
}

/// Takes a bundle and submits its task; gives its id.
pub(crate) async fn replay(shared: &Shared, by: &Caller, mut given: tonic::Streaming<pb::ReplayTaskRequest>) -> Result<String, Status> {
    let (mut bundle, mut request_id, mut bytes) = (Bundle::default(), String::new(), 0);
    while let Some(request) = given.next().await {
        let request = request?;
        bytes += request.encoded_len();
        if bytes > MAX_BUNDLE_BYTES {
            let most = AgentError::new(Reason::PayloadTooLarge, format!("a bundle has at most {MAX_BUNDLE_BYTES} bytes"));
            return Err(to_status(&most.with("max_bytes", MAX_BUNDLE_BYTES)));
        }
        if bundle.header.is_none() {
            request_id.clone_from(&request.request_id);
        }
        bundle.take(request.part.and_then(|p| p.part)).map_err(|e| to_status(&e))?;
    }
    let (header, spec) = bundle.prepared(&request_id, by).map_err(|e| to_status(&e))?;
    match shared.ask(by.tenant.clone(), EngineBody::Submit { header, spec }).await? {
        EngineReply::Task(id) => Ok(id),
        _ => Err(unexpected()),
    }
}
