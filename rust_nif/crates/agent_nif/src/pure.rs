//! Pure functions, inline: the native agent's machine, engine tools, task payloads, ids.

use std::sync::Arc;

use agent_core::agent::{Agent, Effect, Event, Options};
use agent_core::header::{TaskHeader, duration, header};
use agent_core::task_key::{Cacheable, cacheable};
use agent_core::validate::validate_task;
use agent_core::{AgentError, plan, tools};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use rustler::{Binary, Encoder, Env, Resource, ResourceArc, Term};

use crate::atoms;
use crate::terms::{self, Bin, Map, get, int, text, texts};

/// A task's payload: opaque to Erlang, decoded once.
pub(crate) struct Payload {
    pub(crate) header: TaskHeader,
    pub(crate) task: Arc<pb::AgentTask>,
    /// What was answered before this attempt.
    pub(crate) answers: Vec<pb::InputAnswer>,
}

#[rustler::resource_impl]
impl Resource for Payload {}

/// The native agent's machine.
pub(crate) struct Machine(Mutex<Agent>);

#[rustler::resource_impl]
impl Resource for Machine {}

/// What Erlang knows of a task. At most 32 keys: with more of them it would be a hash map, which costs several times as much to make, to
/// copy from process to process and to read.
pub(crate) fn header_term<'a>(env: Env<'a>, h: &TaskHeader) -> Term<'a> {
    let method = match h.method {
        "native" => atoms::native(),
        "framework" => atoms::framework(),
        "hybrid" => atoms::hybrid(),
        _ => atoms::auto(),
    };
    let retry = Map::new(env)
        .put(atoms::max_attempts(), h.max_attempts)
        .put(atoms::initial_backoff_ms(), h.initial_backoff_ms)
        .put(atoms::max_backoff_ms(), h.max_backoff_ms)
        .put(atoms::multiplier(), h.multiplier)
        .put(atoms::non_retryable(), &h.non_retryable)
        .end();
    let on_budget_end = match h.on_budget_end {
        "wait" => atoms::wait(),
        "cheaper_model" => atoms::cheaper_model(),
        _ => atoms::fail(),
    };
    // As each of the task's model calls is given it.
    let money = Map::new(env)
        .opt(atoms::max_cost_micros(), h.max_cost_micros)
        .put(atoms::on_budget_end(), on_budget_end)
        .opt(atoms::policy(), (!h.policy.is_empty()).then(|| Bin(&h.policy)))
        .put(atoms::budget_approved(), h.budget_approved)
        .opt(atoms::key_id(), (!h.key_id.is_empty()).then_some(&h.key_id))
        .end();
    Map::new(env)
        .put(atoms::money(), money)
        .put(atoms::budget_denied(), h.budget_denied)
        .put(atoms::task_id(), &h.task_id)
        .put(atoms::tenant(), &h.tenant)
        .put(atoms::agent_id(), &h.agent_id)
        .put(atoms::agent_type(), &h.agent_type)
        .put(atoms::task_type(), &h.task_type)
        .put(atoms::method(), method)
        .put(atoms::framework(), &h.framework)
        .put(atoms::fallback_frameworks(), &h.fallback_frameworks)
        .put(atoms::priority(), h.priority)
        .put(atoms::durability(), if h.ephemeral { atoms::ephemeral() } else { atoms::durable() })
        .put(atoms::capabilities(), &h.capabilities)
        .put(atoms::model(), &h.model)
        .put(atoms::tools(), &h.tools)
        .put(atoms::labels(), terms::text_map_term(env, &h.labels))
        .put(atoms::max_steps(), h.max_steps)
        .put(atoms::retry(), retry)
        .put(atoms::max_duration_ms(), h.max_duration_ms)
        .put(atoms::max_attempt_duration_ms(), h.max_attempt_duration_ms)
        .put(atoms::max_queue_duration_ms(), h.max_queue_duration_ms)
        .put(atoms::not_before_ms(), h.not_before_ms)
        .put(atoms::heartbeat_timeout_ms(), h.heartbeat_timeout_ms)
        .put(atoms::block_grace_ms(), h.block_grace_ms)
        .put(atoms::stream_text(), h.stream_text)
        .put(atoms::allow_replay(), h.allow_replay)
        .put(atoms::has_plan(), h.has_plan)
        .put(atoms::create_ms(), h.create_ms)
        .opt(atoms::replay(), h.replayed.then_some(true))
        .opt(atoms::ends_with(), h.ends_with_parent.then_some(&h.parent_task_id))
        .end()
}

/// `#{description, agent_type, ...}` from the shell, validated like a request.
#[rustler::nif]
fn task_encode<'a>(env: Env<'a>, map: Term<'a>) -> Term<'a> {
    let method = get::<Term<'_>>(map, atoms::method()).and_then(terms::string).unwrap_or_default();
    let durability = get::<Term<'_>>(map, atoms::durability()).and_then(terms::string).unwrap_or_default();
    let task = pb::AgentTask {
        description: text(map, atoms::description()),
        agent_id: text(map, atoms::agent_id()),
        agent_type: get::<Term<'_>>(map, atoms::agent_type()).and_then(terms::string).unwrap_or_default(),
        task_type: text(map, atoms::task_type()),
        preferred_framework: get::<Term<'_>>(map, atoms::framework()).and_then(terms::string).unwrap_or_default(),
        labels: terms::text_map(get(map, atoms::labels())),
        parent_task_id: text(map, atoms::parent_task_id()),
        context: Some(pb::TaskContext {
            available_tools: texts(map, atoms::tools()).into_iter().map(|name| pb::ToolDefinition { name, ..Default::default() }).collect(),
            ..Default::default()
        }),
        requirements: Some(pb::TaskRequirements {
            model: text(map, atoms::model()),
            max_tokens: get(map, atoms::max_tokens()),
            max_duration: get(map, atoms::max_duration_ms()).map(duration),
            max_attempt_duration: get(map, atoms::max_attempt_duration_ms()).map(duration),
            max_queue_duration: get(map, atoms::max_queue_duration_ms()).map(duration),
            ..Default::default()
        }),
        execution_hints: Some(pb::ExecutionHints {
            method: match method.as_str() {
                "native" => pb::ExecutionMethod::Native,
                "framework" => pb::ExecutionMethod::Framework,
                "hybrid" => pb::ExecutionMethod::Hybrid,
                _ => pb::ExecutionMethod::Auto,
            } as i32,
            max_steps: get(map, atoms::max_steps()).unwrap_or(0),
            priority: get(map, atoms::priority()),
            durability: if durability == "ephemeral" { pb::Durability::Ephemeral } else { pb::Durability::Durable } as i32,
            ..Default::default()
        }),
        plan: get::<Vec<Term<'_>>>(map, atoms::parts()).map(|parts| plan::chain(&parts.into_iter().map(part).collect::<Vec<_>>())),
        ..Default::default()
    };
    let now = agent_store::now_ms();
    if let Some(e) = AgentError::invalid(validate_task(&task, now)) {
        return terms::error_tuple(env, &e);
    }
    let tenant = Some(text(map, atoms::tenant())).filter(|t| !t.is_empty()).unwrap_or_else(|| "default".into());
    let id = uuid::Uuid::now_v7().to_string();
    let h = header(&task, &id, &id, &tenant, now);
    let term = header_term(env, &h);
    (atoms::ok(), term, ResourceArc::new(Payload { header: h, task: Arc::new(task), answers: Vec::new() })).encode(env)
}

/// A part of the shell's `hybrid`.
fn part(map: Term<'_>) -> plan::Part {
    plan::Part {
        id: text(map, atoms::name()),
        executor: text(map, atoms::executor()),
        agent_id: text(map, atoms::agent_id()),
        task: text(map, atoms::description()),
        model: text(map, atoms::model()),
    }
}

/// What the whole-task cache may do with a task on a framework: `{ok, Read, Key, Tools}`, `{error, Tool}` or `undefined`.
#[rustler::nif]
fn task_cache_key<'a>(env: Env<'a>, payload: ResourceArc<Payload>, agent_tools: Vec<Term<'a>>, around: Vec<Binary<'a>>) -> Term<'a> {
    if payload.header.replayed || !payload.answers.is_empty() {
        // A replay is answered by its record; what people have said in between is no part of the task.
        return atoms::undefined().encode(env);
    }
    let agent_tools: Vec<String> = agent_tools.into_iter().filter_map(terms::string).collect();
    let around: Vec<&[u8]> = around.iter().map(Binary::as_slice).collect();
    match cacheable(&payload.task, &agent_tools, &around) {
        Cacheable::No => atoms::undefined().encode(env),
        Cacheable::Effects(tool) => (atoms::error(), tool).encode(env),
        Cacheable::Yes { read, key, tools } => (atoms::ok(), read, Bin(&key), tools).encode(env),
    }
}

/// Sets up the native agent for a task.
#[rustler::nif]
fn agent_new<'a>(env: Env<'a>, payload: ResourceArc<Payload>, agent: Binary<'a>, options: Term<'a>) -> Term<'a> {
    let agent = pb::Agent::decode(agent.as_slice()).unwrap_or_default();
    let options = Options {
        engine_tools: texts(options, atoms::engine_tools()),
        max_steps: u32::try_from(int(options, atoms::max_steps())).unwrap_or(1),
        model: text(options, atoms::model()),
    };
    match Agent::new(&payload.header.task_id, &payload.task, &agent, &options) {
        Ok(machine) => (atoms::ok(), ResourceArc::new(Machine(Mutex::new(machine)))).encode(env),
        Err(e) => terms::error_tuple(env, &e),
    }
}

fn event_of(term: Term<'_>) -> Option<Event> {
    if term.is_atom() {
        return (term.decode::<rustler::Atom>().ok()? == atoms::start()).then_some(Event::Start);
    }
    if let Ok((kind, call_id, data)) = term.decode::<(rustler::Atom, u64, Term<'_>)>() {
        if kind == atoms::model_reply() {
            let bytes: Binary<'_> = data.decode().ok()?;
            return Some(Event::ModelReply { call_id, reply: pb::ChatResponse::decode(bytes.as_slice()).ok()? });
        }
        return (kind == atoms::model_error()).then(|| Event::ModelError { call_id, error: terms::error_of(data) });
    }
    let (kind, call_id, content, is_error): (rustler::Atom, u64, Term<'_>, bool) = term.decode().ok()?;
    (kind == atoms::tool_result()).then(|| Event::ToolResult { call_id, content: terms::string(content).unwrap_or_default(), is_error })
}

/// One event in, effects out.
#[rustler::nif]
fn agent_step<'a>(env: Env<'a>, machine: ResourceArc<Machine>, event: Term<'a>) -> Term<'a> {
    let Some(event) = event_of(event) else {
        return terms::error_tuple(env, &AgentError::new(agent_core::Reason::Internal, "the agent does not know this event"));
    };
    let effects: Vec<Term<'a>> = machine.0.lock().step(event).into_iter().map(|e| effect_term(env, e)).collect();
    (atoms::ok(), effects).encode(env)
}

fn effect_term(env: Env<'_>, effect: Effect) -> Term<'_> {
    match effect {
        Effect::CallModel { call_id, request } => (atoms::call_model(), call_id, Bin(&request.encode_to_vec())).encode(env),
        Effect::CallTool { call_id, name, arguments } => (atoms::call_tool(), call_id, name, arguments).encode(env),
        Effect::ToolCalled(c) => {
            let map = Map::new(env).put(atoms::id(), c.id).put(atoms::name(), c.name).put(atoms::arguments(), c.arguments).end();
            (atoms::emit(), (atoms::tool_call(), map)).encode(env)
        }
        Effect::ToolAnswered(r) => {
            let map = Map::new(env)
                .put(atoms::id(), r.id)
                .put(atoms::name(), r.name)
                .put(atoms::content(), r.content)
                .put(atoms::is_error(), r.is_error)
                .end();
            (atoms::emit(), (atoms::tool_result(), map)).encode(env)
        }
        Effect::Finish(end) => match *end {
            Ok(result) => (atoms::finish(), atoms::succeeded(), Bin(&result.encode_to_vec())).encode(env),
            Err(e) => (atoms::finish(), atoms::failed(), terms::error_map(env, &e)).encode(env),
        },
    }
}

/// Runs an engine tool.
#[rustler::nif]
fn tool_call<'a>(env: Env<'a>, name: Binary<'a>, arguments: Binary<'a>) -> Term<'a> {
    let (name, arguments) = (String::from_utf8_lossy(name.as_slice()), String::from_utf8_lossy(arguments.as_slice()));
    match tools::call(&name, &arguments, agent_store::now_ms()) {
        tools::Outcome::Ok(content) => (atoms::ok(), content).encode(env),
        tools::Outcome::Error(content) => (atoms::tool_error(), content).encode(env),
        tools::Outcome::Unknown => (atoms::error(), atoms::unknown_tool()).encode(env),
    }
}

/// A new UUIDv7.
#[rustler::nif]
fn uuid7() -> String {
    uuid::Uuid::now_v7().to_string()
}
