//! Payloads of worker frames: made and read here, so that Erlang needs no protobuf.

use agent_core::header::timestamp;
use agent_core::{AgentError, Reason, tools};
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use pb::task_event::Event;
use prost::Message;
use rustler::{Atom, Binary, Encoder, Env, ResourceArc, Term};

use crate::atoms;
use crate::pure::Payload;
use crate::terms::{self, Bin, Map, get, int, text, texts};

fn agent(m: Term<'_>) -> Option<pb::Agent> {
    get::<Binary<'_>>(m, atoms::agent()).and_then(|b| pb::Agent::decode(b.as_slice()).ok())
}

/// A payload from a map.
#[rustler::nif]
fn wire_encode<'a>(env: Env<'a>, kind: Atom, m: Term<'a>) -> Term<'a> {
    let bytes = if kind == atoms::init() {
        w::Init {
            config_json: text(m, atoms::config_json()),
            agent: agent(m),
            tenant: text(m, atoms::tenant()),
            entrypoint: text(m, atoms::entrypoint()),
            project: text(m, atoms::project()),
            storage_dir: text(m, atoms::storage_dir()),
            tools: texts(m, atoms::tools()),
            engine_version: text(m, atoms::engine_version()),
            concurrency: u32::try_from(int(m, atoms::concurrency())).unwrap_or(0),
        }
        .encode_to_vec()
    } else if kind == atoms::execute() {
        let payload = get::<ResourceArc<Payload>>(m, atoms::task());
        let answers = payload.as_ref().map(|p| p.answers.clone()).unwrap_or_default();
        let deadline = int(m, atoms::deadline_ms());
        w::Execute {
            task_id: text(m, atoms::task_id()),
            task: payload.map(|p| (*p.task).clone()),
            attempt: i32::try_from(int(m, atoms::attempt())).unwrap_or(0),
            deadline: (deadline > 0).then(|| timestamp(deadline)),
            stream_text: get(m, atoms::stream_text()).unwrap_or(false),
            agent: agent(m),
            engine_tools: texts(m, atoms::engine_tools()).iter().filter_map(|n| tools::definition(n)).collect(),
            model: text(m, atoms::model()),
            start_time: Some(timestamp(int(m, atoms::start_time_ms()))),
            seed: int(m, atoms::seed()),
            traceparent: text(m, atoms::traceparent()),
            answers,
            tool_limit: i32::try_from(int(m, atoms::tool_limit())).unwrap_or(0),
        }
        .encode_to_vec()
    } else if kind == atoms::error() {
        let e = terms::error_of(m);
        w::Error {
            reason: e.reason.upper().to_owned(),
            message: e.message,
            metadata: e.metadata,
            code: e.reason.code(),
            retryable: e.reason.retryable(),
            traceback: String::new(),
        }
        .encode_to_vec()
    } else if kind == atoms::tool_reply() {
        w::ToolReply { content: text(m, atoms::content()), is_error: get(m, atoms::is_error()).unwrap_or(false) }.encode_to_vec()
    } else if kind == atoms::tool_begin_reply() {
        let recorded = get::<Atom>(m, atoms::decision()) == Some(atoms::recorded());
        w::ToolBeginReply { recorded, content: text(m, atoms::content()), is_error: get(m, atoms::is_error()).unwrap_or(false) }
            .encode_to_vec()
    } else {
        Vec::new()
    };
    Bin(&bytes).encode(env)
}

/// A map from a payload.
#[rustler::nif]
fn wire_decode<'a>(env: Env<'a>, kind: Atom, payload: Binary<'a>) -> Term<'a> {
    match decode(env, kind, payload.as_slice()) {
        Ok(map) => (atoms::ok(), map).encode(env),
        Err(e) => terms::error_tuple(env, &AgentError::new(Reason::WorkerProtocolError, format!("a payload cannot be decoded: {e}"))),
    }
}

fn decode<'a>(env: Env<'a>, kind: Atom, bytes: &[u8]) -> Result<Term<'a>, prost::DecodeError> {
    let map = Map::new(env);
    let map = if kind == atoms::hello() {
        let h = w::Hello::decode(bytes)?;
        map.put(atoms::worker_id(), h.worker_id)
            .put(atoms::framework(), h.framework)
            .put(atoms::versions(), terms::text_map_term(env, &h.versions))
            .put(atoms::python_version(), h.python_version)
            .put(atoms::lock_hash(), h.lock_hash)
            .put(atoms::import_ms(), h.import_ms)
            .put(atoms::rss_bytes(), h.rss_bytes)
    } else if kind == atoms::ready() {
        let r = w::Ready::decode(bytes)?;
        map.put(atoms::unjournaled_tools(), r.unjournaled_tools)
            .put(atoms::tools(), r.tools.into_iter().map(|t| t.name).collect::<Vec<_>>())
    } else if kind == atoms::result() {
        let r = w::Result::decode(bytes)?;
        map.opt(atoms::result(), r.result.as_ref().map(prost::Message::encode_to_vec).as_deref().map(Bin))
            .opt(atoms::error(), r.error.as_ref().map(|e| error_map(env, e)))
            .put(atoms::unjournaled_tools(), r.unjournaled_tools)
            // Erlang looks at no question: the store takes them as they are.
            .opt(atoms::inputs(), (!r.inputs.is_empty()).then_some(Bin(bytes)))
    } else if kind == atoms::error() {
        return Ok(error_map(env, &w::Error::decode(bytes)?));
    } else if kind == atoms::tool_request() {
        let r = w::ToolRequest::decode(bytes)?;
        map.put(atoms::name(), r.name).put(atoms::arguments(), r.arguments).put(atoms::tool_call_id(), r.tool_call_id)
    } else if kind == atoms::tool_begin() {
        let b = w::ToolBegin::decode(bytes)?;
        let replay = match b.replay() {
            pb::ToolReplay::Safe => atoms::safe(),
            pb::ToolReplay::Journaled => atoms::journaled(),
            _ => atoms::once(),
        };
        map.put(atoms::id(), event_id(&b.tool_call_id, &b.name, b.occurrence))
            .put(atoms::name(), b.name)
            .put(atoms::arguments(), b.arguments)
            .put(atoms::occurrence(), b.occurrence)
            .put(atoms::replay(), replay)
    } else if kind == atoms::tool_end() {
        let e = w::ToolEnd::decode(bytes)?;
        map.put(atoms::id(), event_id(&e.tool_call_id, &e.name, e.occurrence))
            .put(atoms::name(), e.name)
            .put(atoms::arguments(), e.arguments)
            .put(atoms::occurrence(), e.occurrence)
            .put(atoms::content(), e.content)
            .put(atoms::is_error(), e.is_error)
            .put(atoms::withdrawn(), e.withdrawn)
    } else if kind == atoms::health_reply() {
        let h = w::HealthReply::decode(bytes)?;
        map.put(atoms::ok(), h.ok).put(atoms::detail(), h.detail).put(atoms::framework_version(), h.framework_version)
    } else {
        map
    };
    Ok(map.end())
}

/// What ties a tool's result to its call where the model gave no id.
fn event_id(tool_call_id: &str, name: &str, occurrence: i32) -> String {
    if tool_call_id.is_empty() { format!("{name}-{occurrence}") } else { tool_call_id.to_owned() }
}

fn error_map<'a>(env: Env<'a>, e: &w::Error) -> Term<'a> {
    let mut error = AgentError::new(Reason::parse(&e.reason).unwrap_or(Reason::FrameworkError), e.message.clone());
    error.metadata.clone_from(&e.metadata);
    if !e.traceback.is_empty() {
        error.metadata.insert("traceback".into(), e.traceback.chars().take(8000).collect());
    }
    terms::error_map(env, &error)
}

/// An EVENT frame of a worker as an event of its task; None: of no kind that a task shows.
pub(crate) fn worker_event(kind: u8, bytes: &[u8]) -> Option<Event> {
    match kind {
        1 => Some(Event::TextDelta(pb::TextDelta { text: String::from_utf8_lossy(bytes).into_owned(), ..Default::default() })),
        2 => {
            let s = w::StepEvent::decode(bytes).ok()?;
            let name = if s.kind.is_empty() { s.name } else { format!("{}:{}", s.kind, s.name) };
            Some(if s.started {
                Event::StepStarted(pb::StepStarted { executor: String::new(), name })
            } else {
                Event::StepFinished(pb::StepFinished {
                    executor: String::new(),
                    status: if s.is_error { "failed" } else { "succeeded" }.into(),
                    name,
                })
            })
        }
        3 => {
            let t = w::ToolEvent::decode(bytes).ok()?;
            Some(if t.finished {
                Event::ToolResult(pb::ToolResultEvent { id: t.id, name: t.name, content: t.content, is_error: t.is_error })
            } else {
                Event::ToolCall(pb::ToolCallEvent { id: t.id, name: t.name, arguments: t.arguments })
            })
        }
        4 => {
            let l = w::LogEvent::decode(bytes).ok()?;
            Some(Event::Log(pb::LogEvent { level: l.level, source: l.source, message: l.message }))
        }
        _ => None,
    }
}
