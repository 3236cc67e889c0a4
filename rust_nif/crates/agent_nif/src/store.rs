//! The store subsystem: writes and reads as messages.

use std::sync::Arc;

use agent_core::header::TaskHeader;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_store::journal::Change;
use agent_store::ledger::{LedgerChange, LedgerOp, LedgerRow};
use agent_store::schedule::Due;
use agent_store::{AttemptInfo, Enqueued, Finish, Happened, Location, Metrics, Retention, ScheduleOp, TaskStore, WriteOp, Written};
use parking_lot::RwLock;
use pb::task_event::Event;
use prost::Message;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, NifResult, Resource, ResourceArc, Term};

use crate::atoms;
use crate::journal;
use crate::pure::{Payload, header_term};
use crate::reply::Final;
use crate::runtime::{self, Owner, Runtime};
use crate::terms::{self, Bin, Map, get, int, string, text, texts};

/// The subsystem; the store is there once `ready` was said.
pub(crate) struct StoreHandle {
    pub(crate) store: RwLock<Option<Arc<TaskStore>>>,
    runtime: ResourceArc<Runtime>,
}

#[rustler::resource_impl]
impl Resource for StoreHandle {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.stop();
    }
}

impl StoreHandle {
    fn stop(&self) {
        if let Some(store) = self.store.write().take() {
            store.stop();
        }
    }

    pub(crate) fn get(&self) -> Option<Arc<TaskStore>> {
        self.store.read().clone()
    }

    /// Where reads run.
    pub(crate) fn runtime(&self) -> Option<tokio::runtime::Handle> {
        self.runtime.handle()
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(serde::Deserialize)]
struct Config {
    store: StoreConfig,
}

#[derive(serde::Deserialize)]
struct StoreConfig {
    location: Location,
    #[serde(default)]
    retention: Retention,
    #[serde(default)]
    memory_off: bool,
}

#[rustler::nif]
fn store_start<'a>(env: Env<'a>, runtime: ResourceArc<Runtime>, reference: Term<'a>, config: Binary<'a>) -> Term<'a> {
    let Some(tokio) = runtime.handle() else { return terms::native_down(env) };
    let config = match runtime::config::<Config>(config.as_slice()) {
        Ok(config) => config,
        Err(e) => return terms::error_tuple(env, &e),
    };
    let owner = Owner::new(env, reference);
    let handle = ResourceArc::new(StoreHandle { store: RwLock::new(None), runtime });
    let _ = handle.monitor(Some(env), &env.pid());
    let opened = handle.clone();
    tokio.spawn_blocking(move || {
        let told = owner.clone();
        match TaskStore::open(&config.store.location, config.store.retention, Box::new(move |why| told.ended(&why))) {
            Ok(store) => {
                if config.store.memory_off {
                    store.refuse_memory();
                }
                let (epoch, schema, version) = (store.epoch(), store.schema(), store.database_version());
                *opened.store.write() = Some(store);
                owner.ready(|env| {
                    Map::new(env).put(atoms::epoch(), epoch).put(atoms::schema(), schema).put(atoms::database(), version).end()
                });
            }
            Err(e) => owner.error(&e),
        }
    });
    (atoms::ok(), handle).encode(env)
}

#[rustler::nif]
fn store_stop(handle: ResourceArc<StoreHandle>) -> Atom {
    handle.stop();
    atoms::ok()
}

/// A panic in the writer, for tests of the node (`AGENT_FAULT_INJECTION=1`).
#[rustler::nif]
fn store_panic(handle: ResourceArc<StoreHandle>) -> Atom {
    if !runtime::faults_allowed() {
        return atoms::error();
    }
    if let Some(store) = handle.get() {
        store.inject_panic();
    }
    atoms::ok()
}

/// Writes: `{done, Result}` at once for ephemeral tasks, else `ok` and a message.
#[rustler::nif]
fn store_write<'a>(env: Env<'a>, handle: ResourceArc<StoreHandle>, reference: Term<'a>, op: Term<'a>) -> Term<'a> {
    let Some(store) = handle.get() else { return terms::native_down(env) };
    let op = match op_of(op) {
        Ok(op) => op,
        Err(_) => return terms::error_tuple(env, &AgentError::new(Reason::Internal, "the store does not know this operation")),
    };
    write_with(env, &store, reference, op, Ok, written_term)
}

/// Writes, and answers with what `read` makes of it: `{done, Term}` at once for ephemeral tasks, else `ok` and a message, or `busy`.
pub(crate) fn write_with<'a, T: 'static>(
    env: Env<'a>,
    store: &TaskStore,
    reference: Term<'a>,
    op: WriteOp,
    read: impl FnOnce(Written) -> Result<T, AgentError> + Send + 'static,
    term: impl for<'b> FnOnce(Env<'b>, T) -> Term<'b> + Send + 'static,
) -> Term<'a> {
    if store.is_inline(&op) {
        return match store.write_inline(op).and_then(read) {
            Ok(answer) => (atoms::done(), term(env, answer)).encode(env),
            Err(e) => terms::error_tuple(env, &e),
        };
    }
    // A thread of the virtual machine sends no message from outside: what is known at once is the value of the call.
    if let Err(e) = store.permits(&op) {
        return terms::error_tuple(env, &e);
    }
    // Held by the closure; when the store drops it unheard, the guard says that the outcome is not known.
    let cell = Arc::new(parking_lot::Mutex::new(Some(Final::new(env.pid(), reference, Reason::CommitAmbiguous))));
    let own = cell.clone();
    let enqueued = store.write(op, move |result| {
        let Some(reply) = own.lock().take() else { return };
        match result.and_then(read) {
            Ok(answer) => reply.done(|env| term(env, answer)),
            Err(e) => reply.error(&e),
        }
    });
    if enqueued == Enqueued::Busy {
        if let Some(reply) = cell.lock().take() {
            reply.forget();
        }
        return atoms::busy().encode(env);
    }
    atoms::ok().encode(env)
}

/// Text of a running attempt ahead of its batch, for whoever watches now: `offset` bytes into the attempt's text.
#[rustler::nif]
fn store_say(handle: ResourceArc<StoreHandle>, task: Binary<'_>, attempt: i32, offset: i64, text: Binary<'_>) -> Atom {
    if let (Some(store), Ok(id), Ok(text)) = (handle.get(), std::str::from_utf8(task.as_slice()), std::str::from_utf8(text.as_slice())) {
        store.say(id, attempt, offset, text);
    }
    atoms::ok()
}

fn written_term(env: Env<'_>, written: Written) -> Term<'_> {
    match written {
        Written::Ok => atoms::ok().encode(env),
        Written::Created { fence, attempt } => {
            (atoms::created(), Map::new(env).put(atoms::fence(), fence).put(atoms::attempt(), attempt).end()).encode(env)
        }
        Written::Existing { id } => (atoms::existing(), id).encode(env),
        Written::Claimed { fence, attempt, header, spec, lost, ran_ms, unjournaled, answers, executor, environments, alone } => {
            let map = Map::new(env)
                .put(atoms::fence(), fence)
                .put(atoms::attempt(), attempt)
                .put(atoms::header(), header_term(env, &header))
                .put(atoms::payload(), ResourceArc::new(Payload { header: *header, task: Arc::from(spec), answers }))
                .put(atoms::lost_count(), lost)
                .put(atoms::ran_ms(), ran_ms)
                .put(atoms::unjournaled_tools(), unjournaled)
                .put(atoms::executor(), executor)
                .put(atoms::environments(), environments)
                .put(atoms::alone(), alone)
                .end();
            (atoms::claimed(), map).encode(env)
        }
        Written::Tool(decision) => journal::decision_term(env, decision),
        Written::Sequence(n) => (atoms::ok(), n).encode(env),
        Written::Parked { ready, header } => (if ready { atoms::ready() } else { atoms::waiting() }, header_term(env, &header)).encode(env),
        Written::Requeued { lost } => (atoms::requeued(), Map::new(env).put(atoms::lost_count(), lost).end()).encode(env),
        Written::State { state, fence } => Map::new(env).put(atoms::state(), terms::state_atom(state)).put(atoms::fence(), fence).end(),
        Written::Fenced(fence) => (atoms::ok(), fence).encode(env),
        Written::Memory(_) | Written::Schedule(_) => atoms::ok().encode(env),
        Written::Ledger(rows) => (atoms::ledger(), ledger_term(env, &rows)).encode(env),
        Written::Recovered { more } => (if more { atoms::more() } else { atoms::done() }).encode(env),
    }
}

fn str_of(term: Term<'_>) -> NifResult<String> {
    string(term).ok_or(rustler::Error::BadArg)
}

fn op_of(term: Term<'_>) -> NifResult<WriteOp> {
    if term.is_atom() {
        return Ok(WriteOp::Recover);
    }
    let parts = rustler::types::tuple::get_tuple(term)?;
    let kind: Atom = parts.first().ok_or(rustler::Error::BadArg)?.decode()?;
    let at = |i: usize| parts.get(i).copied().ok_or(rustler::Error::BadArg);
    let id = || at(1).and_then(str_of);
    let fence = || at(2).and_then(|t| t.decode::<i64>());
    let op = if kind == atoms::submit() {
        let payload: ResourceArc<Payload> = at(2)?.decode()?;
        let run = get::<bool>(at(3)?, atoms::run()).unwrap_or(false);
        let mut spec = Box::new((*payload.task).clone());
        // The agent's namespace serves a task that names none; an ephemeral one remembers nothing.
        let namespace = text(at(3)?, atoms::memory_namespace());
        if !namespace.is_empty() && !payload.header.ephemeral && !payload.header.replayed {
            let context = spec.context.get_or_insert_default();
            if context.memory_namespace.is_empty() {
                context.memory_namespace = namespace;
            }
        }
        // Where agents share no memory, every name is below the agent's own. A task that is tried anew says its whole name already.
        let own = text(at(3)?, atoms::namespace());
        if let Some(context) = spec.context.as_mut()
            && !own.is_empty()
            && !context.memory_namespace.is_empty()
            && !context.memory_namespace.starts_with(&format!("{own}/"))
        {
            context.memory_namespace = format!("{own}/{}", context.memory_namespace);
        }
        let route = get::<Term<'_>>(at(3)?, atoms::route()).filter(|t| t.is_map()).map(|t| Box::new(route_of(t)));
        WriteOp::Submit { header: Box::new(payload.header.clone()), spec, run, route }
    } else if kind == atoms::claim() {
        WriteOp::Claim { id: id()? }
    } else if kind == atoms::attempt() {
        let m = at(3)?;
        let info = AttemptInfo {
            worker: text(m, atoms::worker()),
            host_pid: int(m, atoms::host_pid()),
            env_lock_hash: text(m, atoms::env_lock_hash()),
            executor: text(m, atoms::executor()),
            unjournaled_tools: texts(m, atoms::unjournaled_tools()),
        };
        WriteOp::Attempt { id: id()?, fence: fence()?, info }
    } else if kind == atoms::route() {
        WriteOp::Route { id: id()?, fence: fence()?, route: route_of(at(3)?) }
    } else if kind == atoms::events() {
        WriteOp::Events { id: id()?, fence: fence()?, events: events_of(at(3)?) }
    } else if kind == atoms::finish() {
        WriteOp::Finish { id: id()?, fence: fence()?, finish: Box::new(finish_of(at(3)?)) }
    } else if kind == atoms::journal() {
        let (key, answer) = journal::recordable(at(3)?).ok_or(rustler::Error::BadArg)?;
        WriteOp::Journal { id: id()?, fence: fence()?, key, change: Change::Answer(answer) }
    } else if kind == atoms::answers() {
        let entries: Vec<Term<'_>> = at(3)?.decode()?;
        WriteOp::Answers { id: id()?, fence: fence()?, answers: entries.into_iter().filter_map(journal::recordable).collect() }
    } else if kind == atoms::tool_begin() {
        let m = at(3)?;
        WriteOp::ToolBegin {
            id: id()?,
            fence: fence()?,
            key: journal::tool_key(m),
            replay: journal::replay(m),
            again: int(m, atoms::life()) > 1,
        }
    } else if kind == atoms::tool_end() {
        let m = at(3)?;
        WriteOp::Journal { id: id()?, fence: fence()?, key: journal::tool_key(m), change: journal::tool_change(m) }
    } else if kind == atoms::requeue() {
        let m = at(3)?;
        WriteOp::Requeue {
            id: id()?,
            fence: fence()?,
            outcome: get::<Term<'_>>(m, atoms::outcome()).and_then(string).unwrap_or_default(),
            cause: get::<Term<'_>>(m, atoms::cause()).and_then(string).unwrap_or_default(),
            counts: get(m, atoms::counts()).unwrap_or(false),
            not_before_ms: int(m, atoms::not_before_ms()),
            ran_ms: get(m, atoms::ran_ms()),
            events: get::<Term<'_>>(m, atoms::events()).map(events_of).unwrap_or_default(),
        }
    } else if kind == atoms::park() {
        let m = at(3)?;
        let inputs = match get::<Term<'_>>(m, atoms::budget()) {
            Some(question) => vec![pb::InputRequested {
                input_id: agent_store::questions::money_id(fence()?),
                kind: agent_store::questions::MONEY.to_owned(),
                prompt: text(question, atoms::message()),
                expire_time: Some(agent_core::header::timestamp(int(question, atoms::expire_ms()))),
                ..Default::default()
            }],
            None => {
                let asked = get::<Binary<'_>>(m, atoms::inputs()).ok_or(rustler::Error::BadArg)?;
                agent_proto::worker::v1::Result::decode(asked.as_slice()).map_err(|_| rustler::Error::BadArg)?.inputs
            }
        };
        let events = get::<Term<'_>>(m, atoms::events()).map(events_of).unwrap_or_default();
        WriteOp::Park { id: id()?, fence: fence()?, inputs, ran_ms: get(m, atoms::ran_ms()), events }
    } else if kind == atoms::signal() {
        let bytes: Binary<'_> = at(3)?.decode()?;
        let signal = pb::SignalTaskRequest::decode(bytes.as_slice()).map_err(|_| rustler::Error::BadArg)?;
        WriteOp::Signal { tenant: id()?, id: at(2).and_then(str_of)?, signal: Box::new(signal) }
    } else if kind == atoms::wake() {
        WriteOp::Wake { id: id()? }
    } else if kind == atoms::cancel_request() {
        WriteOp::CancelRequest { tenant: id()?, id: at(2).and_then(str_of)? }
    } else if kind == atoms::fence() {
        WriteOp::Fence { id: id()?, fence: fence()? }
    } else if kind == atoms::delete() {
        WriteOp::Delete { tenant: id()?, id: at(2).and_then(str_of)? }
    } else if kind == atoms::schedule_fired() {
        let task = get::<Term<'_>>(at(4)?, atoms::task_id()).and_then(string);
        WriteOp::Schedule { tenant: id()?, op: ScheduleOp::Fired { id: at(2).and_then(str_of)?, tick_ms: at(3)?.decode()?, task_id: task } }
    } else if kind == atoms::ledger() {
        WriteOp::Ledger { tenant: id()?, op: ledger_of(at(2)?)? }
    } else if kind == atoms::put_agent() {
        let data: Binary<'_> = at(4)?.decode()?;
        WriteOp::PutAgent { tenant: id()?, id: at(2).and_then(str_of)?, data: data.as_slice().to_vec() }
    } else if kind == atoms::delete_agent() {
        WriteOp::DeleteAgent { tenant: id()?, id: at(2).and_then(str_of)? }
    } else {
        return Err(rustler::Error::BadArg);
    };
    Ok(op)
}

fn ledger_of(term: Term<'_>) -> NifResult<LedgerOp> {
    if term.is_atom() {
        return Ok(LedgerOp::Close);
    }
    let changes: Vec<Term<'_>> = term.decode()?;
    let change = |m: Term<'_>| LedgerChange {
        account: text(m, atoms::account()),
        window_ms: int(m, atoms::window_ms()),
        spent: int(m, atoms::spent()),
        lent: int(m, atoms::lent()),
        limit: get(m, atoms::limit()),
    };
    Ok(LedgerOp::Change(changes.into_iter().map(change).collect()))
}

fn ledger_term<'a>(env: Env<'a>, rows: &[LedgerRow]) -> Term<'a> {
    rows.iter().map(|r| (&r.account, r.window_ms, r.spent, r.lent).encode(env)).collect::<Vec<_>>().encode(env)
}

pub(crate) fn route_of(m: Term<'_>) -> pb::Route {
    let candidates = get::<Vec<Term<'_>>>(m, atoms::candidates()).unwrap_or_default();
    pb::Route {
        executor: text(m, atoms::executor()),
        reason: text(m, atoms::reason()),
        candidates: candidates
            .into_iter()
            .map(|c| pb::RouteCandidate {
                executor: text(c, atoms::executor()),
                score: get::<f64>(c, atoms::score()).or_else(|| get::<i32>(c, atoms::score()).map(f64::from)).unwrap_or(0.0),
                refused: text(c, atoms::refused()),
                rule: text(c, atoms::rule()),
                parts: get::<(f64, f64, f64, f64, f64, f64)>(c, atoms::parts()).map(parts_of),
            })
            .collect(),
        explored: get::<bool>(m, atoms::explored()).unwrap_or(false),
        exploration: get::<f64>(m, atoms::exploration()).unwrap_or(0.0),
    }
}

fn parts_of((rule, success, latency, cost, queue, samples): (f64, f64, f64, f64, f64, f64)) -> pb::RouteParts {
    pb::RouteParts { rule, success, latency, cost, queue, samples }
}

/// An encoded result; a malformed one is kept as an empty result rather than lost with the task.
fn finish_of(m: Term<'_>) -> Finish {
    let mt = get::<Term<'_>>(m, atoms::metrics());
    let num = |key: Atom| mt.map_or(0, |t| int(t, key));
    let opt = |key: Atom| mt.and_then(|t| get::<i64>(t, key));
    let small = |key: Atom| i32::try_from(num(key)).unwrap_or(i32::MAX);
    Finish {
        state: terms::state_of(get(m, atoms::state())),
        result: get::<Binary<'_>>(m, atoms::result()).map(|b| pb::AgentResult::decode(b.as_slice()).unwrap_or_default()),
        error: get::<Term<'_>>(m, atoms::error()).filter(|t| t.is_map()).map(|t| terms::error_of(t).to_task_error()),
        executor: text(m, atoms::executor()),
        metrics: Metrics {
            queue_ms: num(atoms::queue_ms()),
            execution_ms: num(atoms::execution_ms()),
            usage: pb::Usage {
                input_tokens: num(atoms::input_tokens()),
                output_tokens: num(atoms::output_tokens()),
                cached_tokens: num(atoms::cached_tokens()),
                reasoning_tokens: num(atoms::reasoning_tokens()),
                ..Default::default()
            },
            provider_calls: small(atoms::provider_calls()),
            provider_calls_replayed: small(atoms::provider_calls_replayed()),
            cache_hit: mt.and_then(|t| get(t, atoms::cache_hit())).unwrap_or(false)
                || num(atoms::cache_hits()) > 0 && num(atoms::cache_hits()) == num(atoms::provider_calls()),
            tool_calls: small(atoms::tool_calls()),
            memory_bytes: opt(atoms::memory_bytes()),
            cpu_ms: opt(atoms::cpu_ms()),
            cost_micros: opt(atoms::cost_micros()),
        },
        outcome: get::<Term<'_>>(m, atoms::attempt_outcome()).and_then(string).unwrap_or_default(),
        cause: get::<Term<'_>>(m, atoms::cause()).and_then(string).unwrap_or_default(),
        proof: get::<Term<'_>>(m, atoms::proof()).filter(|t| t.is_map()).map(proof_of),
        events: get::<Term<'_>>(m, atoms::events()).map(events_of).unwrap_or_default(),
        journal: get::<Vec<Term<'_>>>(m, atoms::journal()).unwrap_or_default().into_iter().filter_map(journal::recordable).collect(),
    }
}

/// `ProofMap` of the contract.
pub(crate) fn proof_of(m: Term<'_>) -> pb::CancellationProof {
    let witness = match get::<Atom>(m, atoms::witness()) {
        Some(a) if a == atoms::namespace() => pb::ProofWitness::Namespace,
        Some(a) if a == atoms::descendants() => pb::ProofWitness::Descendants,
        Some(a) if a == atoms::none_needed() => pb::ProofWitness::NoneNeeded,
        _ => pb::ProofWitness::Unconfirmed,
    };
    let us = int(m, atoms::duration_us());
    let fenced = int(m, atoms::fenced_at_ms());
    #[allow(clippy::cast_possible_truncation)]
    pb::CancellationProof {
        witness: witness as i32,
        host_pid: int(m, atoms::host_pid()),
        signals: get::<Vec<Term<'_>>>(m, atoms::signals())
            .unwrap_or_default()
            .into_iter()
            .map(|s| pb::ProofSignal { name: text(s, atoms::name()), time: Some(agent_core::header::timestamp(int(s, atoms::at_ms()))) })
            .collect(),
        confirmed_dead: get(m, atoms::confirmed_dead()).unwrap_or(false),
        survivors: get(m, atoms::survivors()).unwrap_or_default(),
        fenced_at: (fenced > 0).then(|| agent_core::header::timestamp(fenced)),
        duration: Some(prost_types::Duration { seconds: us / 1_000_000, nanos: (us % 1_000_000 * 1000) as i32 }),
    }
}

fn events_of(term: Term<'_>) -> Vec<Happened> {
    term.decode::<Vec<Term<'_>>>().unwrap_or_default().into_iter().filter_map(happened).collect()
}

/// An event, or `{in_step, Step, Event}`.
fn happened(term: Term<'_>) -> Option<Happened> {
    match term.decode::<(Atom, Term<'_>, Term<'_>)>() {
        Ok((kind, step, event)) if kind == atoms::in_step() => Some(Happened { event: event_of(event)?, step: string(step)? }),
        _ => event_of(term).map(Happened::from),
    }
}

fn event_of(term: Term<'_>) -> Option<Event> {
    let parts = rustler::types::tuple::get_tuple(term).ok()?;
    let kind: Atom = parts.first()?.decode().ok()?;
    let second = *parts.get(1)?;
    let event = if kind == atoms::text() {
        Event::TextDelta(pb::TextDelta { text: string(second)?, ..Default::default() })
    } else if kind == atoms::tool_call() {
        Event::ToolCall(pb::ToolCallEvent {
            id: text(second, atoms::id()),
            name: text(second, atoms::name()),
            arguments: text(second, atoms::arguments()),
        })
    } else if kind == atoms::tool_result() {
        Event::ToolResult(pb::ToolResultEvent {
            id: text(second, atoms::id()),
            name: text(second, atoms::name()),
            content: text(second, atoms::content()),
            is_error: get(second, atoms::is_error()).unwrap_or(false),
        })
    } else if kind == atoms::provider_call() {
        let usage = get::<Term<'_>>(second, atoms::usage());
        let n = |key| usage.map_or(0, |u| int(u, key));
        Event::ProviderCall(pb::ProviderCallEvent {
            provider: text(second, atoms::provider()),
            model: text(second, atoms::model()),
            usage: Some(pb::Usage {
                input_tokens: n(atoms::input()),
                output_tokens: n(atoms::output()),
                cached_tokens: n(atoms::cached()),
                reasoning_tokens: n(atoms::reasoning()),
                ..Default::default()
            }),
            latency: Some(agent_core::header::duration(int(second, atoms::latency_ms()))),
            finish_reason: get::<Term<'_>>(second, atoms::finish_reason()).and_then(string).unwrap_or_default(),
            cost_micros: get(second, atoms::cost_micros()),
            replayed: get(second, atoms::replayed()).unwrap_or(false),
            cache_hit: get(second, atoms::cache_hit()).unwrap_or(false),
            hedged: get(second, atoms::hedged()).unwrap_or(false),
            resumed: get(second, atoms::resumed()).unwrap_or(false),
        })
    } else if kind == atoms::worker_assigned() {
        Event::WorkerAssigned(pb::WorkerAssigned {
            worker: text(second, atoms::worker()),
            host_pid: int(second, atoms::host_pid()),
            framework: text(second, atoms::framework()),
        })
    } else if kind == atoms::worker_lost() {
        Event::WorkerLost(pb::WorkerLost {
            cause: get::<Term<'_>>(second, atoms::cause()).and_then(string)?.to_uppercase(),
            detail: text(second, atoms::detail()),
        })
    } else if kind == atoms::log() {
        let level = get::<Term<'_>>(second, atoms::level()).and_then(string).unwrap_or_default();
        Event::Log(pb::LogEvent { level, source: text(second, atoms::source()), message: text(second, atoms::message()) })
    } else if kind == atoms::step_started() || kind == atoms::step_finished() {
        let m = *parts.get(2)?;
        let executor = text(m, atoms::executor());
        if kind == atoms::step_started() {
            Event::StepStarted(pb::StepStarted { executor, name: string(second).unwrap_or_default() })
        } else {
            let status = get::<Term<'_>>(m, atoms::status()).and_then(string).unwrap_or_default();
            Event::StepFinished(pb::StepFinished { executor, status, name: string(second).unwrap_or_default() })
        }
    } else if kind == atoms::worker_event() {
        let bytes: Binary<'_> = parts.get(2)?.decode().ok()?;
        return crate::wire::worker_event(second.decode().ok()?, bytes.as_slice());
    } else {
        // State changes and attempt starts are written by the store itself.
        return None;
    };
    Some(event)
}

/// Reads: `ok` and a message.
#[rustler::nif]
fn store_read<'a>(env: Env<'a>, handle: ResourceArc<StoreHandle>, reference: Term<'a>, op: Term<'a>) -> Term<'a> {
    let (Some(store), Some(tokio)) = (handle.get(), handle.runtime.handle()) else { return terms::native_down(env) };
    let Ok(read) = read_of(op) else {
        return terms::error_tuple(env, &AgentError::new(Reason::Internal, "the store does not know this read"));
    };
    let reply = Final::new(env.pid(), reference, Reason::NativeDown);
    tokio.spawn_blocking(move || match read(&store) {
        Ok(answer) => reply.done(|env| answer.term(env)),
        Err(e) => reply.error(&e),
    });
    atoms::ok().encode(env)
}

enum Answer {
    Task(Box<pb::Task>),
    Tasks(Vec<pb::Task>),
    Attempts(Vec<pb::Attempt>),
    Agents(Vec<(String, String, Vec<u8>)>),
    Running(Vec<(String, i64)>),
    Ids(Vec<String>),
    Schedules(Vec<Due>),
    Queued(Vec<TaskHeader>),
    Ledger(Vec<LedgerRow>),
    Plan(pb::ExecutionPlan),
}

impl Answer {
    fn term(self, env: Env<'_>) -> Term<'_> {
        match self {
            Answer::Task(t) => task_term(env, &t),
            Answer::Plan(plan) => plan.steps.iter().map(|s| step_term(env, s)).collect::<Vec<_>>().encode(env),
            Answer::Tasks(all) => all.iter().map(|t| task_term(env, t)).collect::<Vec<_>>().encode(env),
            Answer::Attempts(all) => all.iter().map(|a| attempt_term(env, a)).collect::<Vec<_>>().encode(env),
            Answer::Agents(all) => all.iter().map(|(t, id, data)| (t, id, Bin(data)).encode(env)).collect::<Vec<_>>().encode(env),
            Answer::Running(all) => all.encode(env),
            Answer::Ids(all) => all.encode(env),
            Answer::Queued(all) => all.iter().map(|h| (&h.task_id, header_term(env, h)).encode(env)).collect::<Vec<_>>().encode(env),
            Answer::Ledger(rows) => ledger_term(env, &rows),
            Answer::Schedules(all) => all.into_iter().map(|due| due_term(env, due)).collect::<Vec<_>>().encode(env),
        }
    }
}

type Read = Box<dyn FnOnce(&TaskStore) -> Result<Answer, AgentError> + Send>;

fn read_of(op: Term<'_>) -> NifResult<Read> {
    let parts = rustler::types::tuple::get_tuple(op)?;
    let kind: Atom = parts.first().ok_or(rustler::Error::BadArg)?.decode()?;
    let arg = *parts.get(1).ok_or(rustler::Error::BadArg)?;
    // The shell is the operator's: its reads are those of the default tenant unless it names one.
    let tenant = parts.get(2).copied().and_then(string).unwrap_or_else(|| "default".to_owned());
    let read: Read = if kind == atoms::task() {
        let id = str_of(arg)?;
        Box::new(move |s| Ok(Answer::Task(Box::new(s.get(&tenant, &id)?))))
    } else if kind == atoms::tasks() {
        let filter = text(arg, atoms::state());
        let query = agent_store::ListQuery {
            page_size: usize::try_from(int(arg, atoms::length())).unwrap_or(0).clamp(1, 1000),
            filter,
            ..Default::default()
        };
        Box::new(move |s| Ok(Answer::Tasks(s.list(&tenant, &query)?.0)))
    } else if kind == atoms::attempts() {
        let id = str_of(arg)?;
        Box::new(move |s| Ok(Answer::Attempts(s.attempts(&tenant, &id)?)))
    } else if kind == atoms::plan() {
        let id = str_of(arg)?;
        Box::new(move |s| {
            let task = s.get(&tenant, &id)?;
            let runs = s.plan_runs(&id)?;
            let state = task.state();
            Ok(Answer::Plan(agent_core::plan::progress(&task.spec.unwrap_or_default(), runs, state)))
        })
    } else if kind == atoms::agents() {
        Box::new(|s| Ok(Answer::Agents(s.agents()?)))
    } else if kind == atoms::running() {
        Box::new(|s| Ok(Answer::Running(s.running()?)))
    } else if kind == atoms::queued() {
        let after = str_of(arg)?;
        Box::new(move |s| Ok(Answer::Queued(s.queued(&after)?)))
    } else if kind == atoms::due_schedules() {
        let now: i64 = arg.decode()?;
        Box::new(move |s| Ok(Answer::Schedules(s.due_schedules(now)?)))
    } else if kind == atoms::ledger() {
        let (tenant, account) = (str_of(arg)?, parts.get(2).copied().and_then(string));
        Box::new(move |s| Ok(Answer::Ledger(s.ledger(&tenant, account.as_deref())?)))
    } else if kind == atoms::due() {
        let now: i64 = arg.decode()?;
        Box::new(move |s| Ok(Answer::Ids(s.due(now)?)))
    } else {
        return Err(rustler::Error::BadArg);
    };
    Ok(read)
}

/// A schedule whose time has come, with the task to submit.
fn due_term(env: Env<'_>, due: Due) -> Term<'_> {
    let now = agent_store::now_ms();
    let id = uuid::Uuid::now_v7().to_string();
    let mut spec = due.schedule.task.clone().unwrap_or_default();
    spec.labels.insert("schedule".to_owned(), due.schedule.id.clone());
    let mut header = agent_core::header::header(&spec, &id, &due.request_id(), &due.tenant, now);
    header.content_hash = agent_core::hash::content_hash(&spec).to_vec();
    header.key_id.clone_from(&due.schedule.key_id);
    let overlap = match due.schedule.overlap() {
        pb::OverlapPolicy::Queue => atoms::queue(),
        pb::OverlapPolicy::CancelOld => atoms::cancel_old(),
        pb::OverlapPolicy::Allow => atoms::allow(),
        pb::OverlapPolicy::Skip | pb::OverlapPolicy::Unspecified => atoms::skip(),
    };
    Map::new(env)
        .put(atoms::tenant(), due.tenant)
        .put(atoms::schedule_id(), due.schedule.id)
        .put(atoms::tick_ms(), due.tick_ms)
        .put(atoms::overlap(), overlap)
        .put(atoms::last_task(), due.last_task)
        .put(atoms::header(), header_term(env, &header))
        .put(atoms::payload(), ResourceArc::new(Payload { header, task: Arc::from(Box::new(spec)), answers: Vec::new() }))
        .end()
}

fn ms(t: Option<&prost_types::Timestamp>) -> i64 {
    t.map_or(0, agent_core::header::timestamp_ms)
}

fn task_term<'a>(env: Env<'a>, t: &pb::Task) -> Term<'a> {
    let none = pb::AgentTask::default();
    let spec = t.spec.as_ref().unwrap_or(&none);
    Map::new(env)
        .put(atoms::task_id(), &t.id)
        .put(atoms::state(), terms::state_atom(t.state()))
        .put(atoms::waiting_for(), t.waiting_for().as_str_name().trim_start_matches("WAITING_FOR_"))
        .put(atoms::fence(), t.fencing_token)
        .put(atoms::attempts(), t.attempts)
        .put(atoms::agent_id(), &spec.agent_id)
        .put(atoms::agent_type(), &spec.agent_type)
        .put(atoms::executor(), t.result.as_ref().map_or_else(|| t.route.as_ref().map_or("", |r| &r.executor), |r| &r.executor))
        .put(atoms::host_pid(), t.worker_pid)
        .put(atoms::inputs(), t.pending_inputs.iter().map(|i| (&i.input_id, &i.kind)).collect::<Vec<_>>())
        .put(atoms::cancel_requested(), t.cancel_requested)
        .put(atoms::create_ms(), ms(t.create_time.as_ref()))
        .put(atoms::start_ms(), ms(t.start_time.as_ref()))
        .put(atoms::end_ms(), ms(t.end_time.as_ref()))
        .put(atoms::reason(), t.error.as_ref().map_or("", |e| &e.reason))
        .put(atoms::message(), t.error.as_ref().map_or("", |e| &e.message))
        .put(atoms::output(), t.result.as_ref().map_or("", |r| &r.output))
        .end()
}

/// A step of a plan with the sums of its runs.
fn step_term<'a>(env: Env<'a>, s: &pb::PlanStep) -> Term<'a> {
    let sum = |of: fn(&pb::PlanStepRun) -> i64| s.runs.iter().map(of).sum::<i64>();
    let ran = s.runs.iter().map(|r| r.executor.as_str()).find(|e| !e.is_empty()).unwrap_or(&s.executor);
    let failed = s.runs.iter().find_map(|r| r.error.as_ref());
    Map::new(env)
        .put(atoms::id(), &s.id)
        .put(atoms::executor(), ran)
        .put(atoms::needs(), &s.needs)
        .put(atoms::state(), terms::state_atom(s.state()))
        .put(atoms::skipped(), s.runs.iter().any(|r| r.skipped))
        .put(atoms::attempts(), sum(|r| i64::from(r.attempts)))
        .put(atoms::input_tokens(), sum(|r| r.usage.as_ref().map_or(0, |u| u.input_tokens)))
        .put(atoms::output_tokens(), sum(|r| r.usage.as_ref().map_or(0, |u| u.output_tokens)))
        .opt(atoms::cost_micros(), s.runs.iter().map(|r| r.cost_micros).sum::<Option<i64>>())
        .put(atoms::reason(), failed.map_or("", |e| &e.reason))
        .end()
}

fn attempt_term<'a>(env: Env<'a>, a: &pb::Attempt) -> Term<'a> {
    Map::new(env)
        .put(atoms::number(), a.number)
        .put(atoms::fence(), a.fence)
        .put(atoms::epoch(), a.node_epoch)
        .put(atoms::worker(), &a.worker)
        .put(atoms::host_pid(), a.host_pid)
        .put(atoms::executor(), &a.executor)
        .put(atoms::outcome(), &a.outcome)
        .put(atoms::cause(), &a.cause)
        .put(atoms::start_ms(), ms(a.start_time.as_ref()))
        .put(atoms::end_ms(), ms(a.end_time.as_ref()))
        .end()
}
