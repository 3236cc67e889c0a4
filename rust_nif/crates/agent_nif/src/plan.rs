//! The machine of a plan (`agent_core::plan::machine`) between Erlang and what is kept of it.

use std::collections::HashSet;

use agent_core::header::{TaskHeader, header};
use agent_core::plan::machine::{Effect, Event, Kept, Plan, Report, RunEnd, RunId};
use agent_core::plan::{delegate, propose};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use agent_store::journal::{Key, Kind};
use parking_lot::Mutex;
use prost::Message;
use rustler::{Atom, Binary, Encoder, Env, Resource, ResourceArc, Term};
use sha2::{Digest, Sha256};

use crate::atoms;
use crate::journal::Recordable;
use crate::pure::{Payload, header_term};
use crate::reply::Final;
use crate::store::StoreHandle;
use crate::terms::{self, Bin, Map, get, int, text};

/// Largest plan that is set up on the caller's scheduler.
const INLINE_STEPS: usize = 200;

/// A plan under way.
pub(crate) struct Machine {
    plan: Mutex<Plan>,
    payload: ResourceArc<Payload>,
}

#[rustler::resource_impl]
impl Resource for Machine {}

/// Sets up a plan with what is kept of it: `{done, Machine}` at once where nothing can be, else `ok` and a message.
#[rustler::nif]
fn plan_open<'a>(
    env: Env<'a>,
    handle: ResourceArc<StoreHandle>,
    reference: Term<'a>,
    payload: ResourceArc<Payload>,
    options: Term<'a>,
) -> Term<'a> {
    let (Some(store), Some(tokio)) = (handle.get(), handle.runtime()) else { return terms::native_down(env) };
    let (fence, attempt) = (int(options, atoms::fence()), int(options, atoms::attempt()));
    let id = payload.header.task_id.clone();
    let steps = payload.task.plan.as_ref().map_or(0, |p| p.steps.len());
    let fresh = store.is_ephemeral(&id) || (attempt <= 1 && store.session(&id, fence, attempt).is_some());
    if fresh && steps <= INLINE_STEPS {
        return match machine(payload, Vec::new()) {
            Ok(machine) => (atoms::done(), machine).encode(env),
            Err(e) => terms::error_tuple(env, &e),
        };
    }
    let reply = Final::new(env.pid(), reference, Reason::NativeDown);
    tokio.spawn_blocking(move || {
        let kept = if fresh { Ok(Vec::new()) } else { store.plan_runs(&id) };
        match kept.and_then(|kept| machine(payload, kept)) {
            Ok(machine) => reply.done(|env| machine.encode(env)),
            Err(e) => reply.error(&e),
        }
    });
    atoms::ok().encode(env)
}

fn machine(payload: ResourceArc<Payload>, kept: Vec<(Kept, pb::PlanStepRun)>) -> Result<ResourceArc<Machine>, AgentError> {
    let mut plan =
        Plan::new(&payload.header.task_id, &payload.task).ok_or_else(|| AgentError::new(Reason::Internal, "the task has no plan"))?;
    plan.restore(kept);
    Ok(ResourceArc::new(Machine { plan: Mutex::new(plan), payload }))
}

/// One event in, effects out.
#[rustler::nif]
fn plan_step<'a>(env: Env<'a>, machine: ResourceArc<Machine>, event: Term<'a>) -> Term<'a> {
    let Some(event) = event_of(event) else {
        return terms::error_tuple(env, &AgentError::new(Reason::Internal, "the plan does not know this event"));
    };
    let mut plan = machine.plan.lock();
    let effects = plan.step(event);
    let terms: Vec<Term<'a>> = effects.into_iter().map(|e| effect_term(env, e, &plan, &machine.payload)).collect();
    (atoms::ok(), terms).encode(env)
}

/// Largest answer to a request for subtasks: it must fit in one frame, in bytes.
const MAX_ENDS_BYTES: usize = 15 * 1024 * 1024;

/// The plan of a worker's request for subtasks, `{ok, Header, Payload}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn delegation<'a>(env: Env<'a>, payload: ResourceArc<Payload>, request: Binary<'a>, place: Binary<'a>) -> Term<'a> {
    let Ok(request) = w::DelegateRequest::decode(request.as_slice()) else {
        return terms::error_tuple(env, &AgentError::new(Reason::WorkerProtocolError, "malformed request for subtasks"));
    };
    match delegate::plan_of(&payload.task, &request, place.as_slice()) {
        Ok(task) => {
            let header = step_header(&payload.header, &task, false);
            let term = header_term(env, &header);
            (atoms::ok(), term, ResourceArc::new(Payload { header, task: task.into(), answers: payload.answers.clone() })).encode(env)
        }
        Err(e) => terms::error_tuple(env, &e),
    }
}

/// What a worker is told of the steps of such a plan.
#[rustler::nif(schedule = "DirtyCpu")]
fn delegation_ends(env: Env<'_>, machine: ResourceArc<Machine>) -> Term<'_> {
    let ends = machine.plan.lock().ends().into_iter().map(delegate::end_of).collect();
    let reply = w::DelegateReply { ends };
    let bytes = reply.encoded_len();
    if bytes > MAX_ENDS_BYTES {
        let why = format!("what the subtasks gave has {bytes} bytes, at most {MAX_ENDS_BYTES} fit in one answer; ask for fewer at once");
        return terms::error_tuple(env, &AgentError::new(Reason::PayloadTooLarge, why));
    }
    Bin(&reply.encode_to_vec()).encode(env)
}

/// What a plan would run on: `{Field, Executor, AgentId}`, each pair of the last two once.
#[rustler::nif]
fn plan_executors<'a>(env: Env<'a>, payload: ResourceArc<Payload>) -> Term<'a> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (i, step) in payload.task.plan.iter().flat_map(|p| &p.steps).enumerate() {
        let others = step.fallback_executors.iter().enumerate().map(|(n, e)| (format!("fallback_executors[{n}]"), e));
        for (field, executor) in std::iter::once(("executor".to_owned(), &step.executor)).chain(others) {
            if seen.insert((executor.as_str(), step.agent_id.as_str())) {
                out.push((format!("task.plan.steps[{i}].{field}"), executor, &step.agent_id).encode(env));
            }
        }
    }
    if propose::asked(&payload.task) {
        // Where a model may place the steps that are not made yet.
        let places = propose::executors(&payload.task).into_iter().filter(|&executor| seen.insert((executor, "")));
        out.extend(places.map(|executor| ("task.preferred_framework", executor, "").encode(env)));
    }
    out.encode(env)
}

fn run_of(step: Term<'_>, index: Term<'_>) -> Option<RunId> {
    Some(RunId { step: step.decode().ok()?, index: index.decode().ok()? })
}

fn event_of(term: Term<'_>) -> Option<Event> {
    if term.is_atom() {
        return (term.decode::<Atom>().ok()? == atoms::go()).then_some(Event::Go);
    }
    if let Ok((kind, step, index)) = term.decode::<(Atom, Term<'_>, Term<'_>)>() {
        let run = run_of(step, index)?;
        return (kind == atoms::kept()).then_some(Event::Kept { run });
    }
    let (kind, step, index, end, report) = term.decode::<(Atom, Term<'_>, Term<'_>, Term<'_>, Term<'_>)>().ok()?;
    let run = run_of(step, index)?;
    (kind == atoms::ended()).then(|| Event::Ended { run, end: end_of(end), report: report_of(report) })
}

fn end_of(term: Term<'_>) -> RunEnd {
    let Ok((kind, data)) = term.decode::<(Atom, Term<'_>)>() else { return RunEnd::Stopped };
    let bytes = || data.decode::<Binary<'_>>().ok();
    if kind == atoms::succeeded() {
        // A malformed result is kept as an empty one, as at the end of a task.
        let result = bytes().and_then(|b| pb::AgentResult::decode(b.as_slice()).ok());
        RunEnd::Succeeded(Box::new(result.unwrap_or_default()))
    } else if kind == atoms::asked() {
        RunEnd::Asked(bytes().and_then(|b| w::Result::decode(b.as_slice()).ok()).map(|r| r.inputs).unwrap_or_default())
    } else {
        RunEnd::Failed(terms::error_of(data))
    }
}

fn report_of(m: Term<'_>) -> Report {
    Report {
        executor: text(m, atoms::executor()),
        attempts: i32::try_from(int(m, atoms::attempts())).unwrap_or(0),
        usage: pb::Usage {
            input_tokens: int(m, atoms::input_tokens()),
            output_tokens: int(m, atoms::output_tokens()),
            cached_tokens: int(m, atoms::cached_tokens()),
            reasoning_tokens: int(m, atoms::reasoning_tokens()),
            ..Default::default()
        },
        cost_micros: get(m, atoms::cost_micros()),
        start_ms: int(m, atoms::start_ms()),
        end_ms: int(m, atoms::end_ms()),
        unjournaled: get(m, atoms::unjournaled_tools()).unwrap_or(false),
    }
}

fn effect_term<'a>(env: Env<'a>, effect: Effect, plan: &Plan, payload: &Payload) -> Term<'a> {
    match effect {
        Effect::Run { run, executor, task, timeout_ms, streams } => {
            let header = step_header(&payload.header, &task, streams);
            let map = Map::new(env)
                .put(atoms::executor(), executor)
                .put(atoms::name(), plan.step_id(run))
                .put(atoms::scope(), format!("{}\0{}", plan.step_id(run), run.index))
                .put(atoms::timeout_ms(), timeout_ms)
                .put(atoms::streams(), streams)
                .put(atoms::header(), header_term(env, &header))
                .put(
                    atoms::payload(),
                    ResourceArc::new(Payload { header, task: (*task).into(), answers: plan.answers_to(run, &payload.answers) }),
                )
                .end();
            (atoms::run(), run.step, run.index, map).encode(env)
        }
        Effect::Keep { run, kept, record } => {
            let entry = Recordable { key: key_of(kept, plan.step_id(run), run.index), answer: record.encode_to_vec() };
            (atoms::keep(), run.step, run.index, ResourceArc::new(entry)).encode(env)
        }
        Effect::Stop(run) => (atoms::stop(), run.step, run.index).encode(env),
        Effect::Started(e) => {
            let map = Map::new(env).put(atoms::executor(), e.executor).end();
            (atoms::emit(), (atoms::step_started(), e.name, map)).encode(env)
        }
        Effect::Finished(e) => {
            let map = Map::new(env).put(atoms::executor(), e.executor).put(atoms::status(), e.status).end();
            (atoms::emit(), (atoms::step_finished(), e.name, map)).encode(env)
        }
        Effect::Warning { step, message } => {
            let map = Map::new(env).put(atoms::level(), "warning").put(atoms::source(), step).put(atoms::message(), message).end();
            (atoms::emit(), (atoms::log(), map)).encode(env)
        }
        Effect::Again => atoms::again().encode(env),
        Effect::Park(inputs) => (atoms::park(), Bin(&w::Result { inputs, ..Default::default() }.encode_to_vec())).encode(env),
        Effect::Finish(end) => match *end {
            Ok(result) => (atoms::finish(), atoms::succeeded(), Bin(&result.encode_to_vec())).encode(env),
            Err(e) => (atoms::finish(), atoms::failed(), terms::error_map(env, &e)).encode(env),
        },
    }
}

/// The header of a step: its own wishes, under the task's id, money and rules.
fn step_header(task: &TaskHeader, step: &pb::AgentTask, streams: bool) -> TaskHeader {
    let own = header(step, &task.task_id, &task.request_id, &task.tenant, task.create_ms);
    TaskHeader {
        policy: step_policy(&task.policy, &own.policy),
        max_cost_micros: task.max_cost_micros,
        on_budget_end: task.on_budget_end,
        key_id: task.key_id.clone(),
        budget_approved: task.budget_approved,
        budget_denied: task.budget_denied,
        ephemeral: task.ephemeral,
        replayed: task.replayed,
        stream_text: streams && own.stream_text,
        ..own
    }
}

/// The task's rules, narrowed by a step's wishes.
fn step_policy(rules: &[u8], wishes: &[u8]) -> Vec<u8> {
    // A step without requirements of its own has the task's: rules narrowed by themselves are the same rules.
    if rules == wishes {
        return rules.to_vec();
    }
    let rules = pb::CallPolicy::decode(rules).unwrap_or_default();
    let wishes = pb::CallPolicy::decode(wishes).unwrap_or_default();
    agent_providers::narrowed(rules, wishes).encode_to_vec()
}

/// Under which the end of a run is kept.
fn key_of(kept: Kept, step: &str, index: u32) -> Key {
    let kind = match kept {
        Kept::Done => Kind::Step,
        Kept::Failed => Kind::StepFailed,
        Kept::Undone => Kind::StepUndone,
    };
    Key { question: (kind, Sha256::digest(step).into()), occurrence: index }
}
