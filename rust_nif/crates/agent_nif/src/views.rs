//! Agents and frameworks between Erlang's maps and protobuf.

use agent_proto::agents::v1 as pb;
use prost::Message;
use rustler::{Binary, Encoder, Env, Term};

use crate::atoms;
use crate::terms::{self, Bin, Map, get, int, string, text, texts};

/// `agents.v1.Agent` of a map.
pub(crate) fn agent_of(m: Term<'_>) -> pb::Agent {
    let profile = get::<Term<'_>>(m, atoms::crew_profile()).filter(|p| p.is_map());
    let created = int(m, atoms::create_ms());
    pb::Agent {
        id: text(m, atoms::id()),
        agent_type: text(m, atoms::agent_type()),
        framework: text(m, atoms::framework()),
        instructions: text(m, atoms::instructions()),
        model: text(m, atoms::model()),
        tools: texts(m, atoms::tools()),
        capabilities: Some(pb::AgentCapabilities {
            streaming: true,
            tools: texts(m, atoms::tools()),
            max_parallel: 1,
            ..Default::default()
        }),
        memory_namespace: text(m, atoms::memory_namespace()),
        state: "ready".into(),
        running_tasks: i32::try_from(int(m, atoms::running_tasks())).unwrap_or(0),
        labels: terms::text_map(get(m, atoms::labels())),
        create_time: (created > 0).then(|| agent_core::header::timestamp(created)),
        etag: text(m, atoms::etag()),
        crew_profile: profile.map(|p| pb::CrewProfile {
            role: text(p, atoms::role()),
            goal: text(p, atoms::goal()),
            backstory: text(p, atoms::backstory()),
            expected_output: text(p, atoms::expected_output()),
        }),
        configured: get(m, atoms::configured()).unwrap_or(false),
    }
}

/// A map of `agents.v1.Agent`.
pub(crate) fn agent_term<'a>(env: Env<'a>, a: &pb::Agent) -> Term<'a> {
    Map::new(env)
        .put(atoms::id(), &a.id)
        .put(atoms::agent_type(), &a.agent_type)
        .put(atoms::framework(), &a.framework)
        .put(atoms::instructions(), &a.instructions)
        .put(atoms::model(), &a.model)
        .put(atoms::tools(), &a.tools)
        .put(atoms::memory_namespace(), &a.memory_namespace)
        .put(atoms::labels(), terms::text_map_term(env, &a.labels))
        .put(atoms::etag(), &a.etag)
        .put(atoms::create_ms(), a.create_time.as_ref().map_or(0, agent_core::header::timestamp_ms))
        .end()
}

#[rustler::nif]
fn agent_encode<'a>(env: Env<'a>, map: Term<'a>) -> Term<'a> {
    Bin(&agent_of(map).encode_to_vec()).encode(env)
}

#[rustler::nif]
fn agent_decode<'a>(env: Env<'a>, data: Binary<'a>) -> Term<'a> {
    match pb::Agent::decode(data.as_slice()) {
        Ok(agent) => (atoms::ok(), agent_term(env, &agent)).encode(env),
        Err(_) => terms::error_tuple(env, &agent_core::AgentError::new(agent_core::Reason::Internal, "the agent cannot be decoded")),
    }
}

/// A type of agent of a map.
pub(crate) fn agent_type_of(m: Term<'_>) -> pb::AgentType {
    pb::AgentType {
        name: text(m, atoms::name()),
        template: get::<Term<'_>>(m, atoms::template()).map(agent_of),
        built_in: get(m, atoms::built_in()).unwrap_or(false),
    }
}

/// `agents.v1.Framework` of a map of the pool's.
pub(crate) fn framework_of(m: Term<'_>) -> pb::Framework {
    // The zygote's ready line: {"framework": ..., "versions": {...}, "import_ms": ...}.
    let info: serde_json::Value = serde_json::from_str(&text(m, atoms::versions())).unwrap_or_default();
    let versions = info
        .get("versions")
        .and_then(serde_json::Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect();
    pb::Framework {
        name: text(m, atoms::name()),
        state: framework_state(m) as i32,
        versions,
        lock_hash: text(m, atoms::lock_hash()),
        workers: get::<Vec<Term<'_>>>(m, atoms::workers()).unwrap_or_default().into_iter().map(worker_of).collect(),
        restarts: i32::try_from(int(m, atoms::restarts())).unwrap_or(0),
        isolation: texts(m, atoms::isolation()),
        unavailable_reason: text(m, atoms::unavailable_reason()),
        progress: text(m, atoms::progress()),
        environments: get::<Vec<Term<'_>>>(m, atoms::environments()).unwrap_or_default().into_iter().map(environment_of).collect(),
    }
}

fn framework_state(m: Term<'_>) -> pb::FrameworkState {
    match get::<Term<'_>>(m, atoms::state()).and_then(string).as_deref() {
        Some("ready" | "up") => pb::FrameworkState::Ready,
        Some("starting") => pb::FrameworkState::Starting,
        Some("stopped") => pb::FrameworkState::Stopped,
        Some("installing") => pb::FrameworkState::Installing,
        _ => pb::FrameworkState::Unavailable,
    }
}

fn environment_of(m: Term<'_>) -> pb::FrameworkEnvironment {
    pb::FrameworkEnvironment {
        name: text(m, atoms::name()),
        state: framework_state(m) as i32,
        lock_hash: text(m, atoms::lock_hash()),
        python: text(m, atoms::python()),
        agent_ids: texts(m, atoms::agents()),
        unavailable_reason: text(m, atoms::unavailable_reason()),
        progress: text(m, atoms::progress()),
    }
}

fn worker_of(m: Term<'_>) -> pb::Worker {
    let started = int(m, atoms::started_ms());
    pb::Worker {
        name: text(m, atoms::worker()),
        host_pid: int(m, atoms::host_pid()),
        state: get::<Term<'_>>(m, atoms::state()).and_then(string).unwrap_or_default(),
        task_id: text(m, atoms::task_id()),
        task_ids: texts(m, atoms::task_ids()),
        rss: int(m, atoms::rss_bytes()),
        start_time: (started > 0).then(|| agent_core::header::timestamp(started)),
        agent_id: text(m, atoms::agent_id()),
        host: text(m, atoms::host()),
    }
}
