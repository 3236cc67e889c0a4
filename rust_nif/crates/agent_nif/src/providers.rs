//! The providers subsystem: model calls as messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use parking_lot::Mutex;
use prost::Message;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, Resource, ResourceArc, Term};
use tokio::sync::Semaphore;

use crate::atoms;
use crate::journal::{self, Asked, Journal, Note};
use crate::reply::Final;
use crate::runtime::{self, Owner, Runtime};
use crate::terms::{self, Bin, Map, get, int, text};

/// Calls that may be open at once in a node.
const MAX_CALLS: usize = 20_000;
/// Pieces between the call and its sender.
const PIECES: usize = 16;
/// Largest request that is answered on the caller's scheduler, in bytes: what is read and copied there takes well below 1 ms.
const INLINE_BYTES: usize = 32 * 1024;

struct Call {
    abort: tokio::task::AbortHandle,
    credit: Arc<Semaphore>,
}

/// The subsystem.
pub(crate) struct ProvidersHandle {
    pub(crate) providers: Arc<Providers>,
    runtime: ResourceArc<Runtime>,
    owner: Owner,
    calls: Arc<Mutex<HashMap<Vec<u8>, Call>>>,
}

#[rustler::resource_impl]
impl Resource for ProvidersHandle {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.abort_all();
    }
}

impl ProvidersHandle {
    fn abort_all(&self) {
        for (_, call) in self.calls.lock().drain() {
            call.abort.abort();
        }
    }
}

#[rustler::nif]
fn providers_start<'a>(env: Env<'a>, runtime: ResourceArc<Runtime>, reference: Term<'a>, config: Binary<'a>) -> Term<'a> {
    let Some(tokio) = runtime.handle() else { return terms::native_down(env) };
    let providers = runtime::config::<ProvidersConfig>(config.as_slice()).and_then(|c| Providers::new(&c));
    match providers {
        Ok(providers) => {
            let owner = Owner::new(env, reference);
            let told = owner.clone();
            tokio.spawn(async move { told.ready(|env| Map::new(env).end()) });
            let handle = ResourceArc::new(ProvidersHandle { providers, runtime, owner, calls: Arc::default() });
            let _ = handle.monitor(Some(env), &env.pid());
            (atoms::ok(), handle).encode(env)
        }
        Err(e) => terms::error_tuple(env, &e),
    }
}

fn key(reference: Term<'_>) -> Vec<u8> {
    reference.to_binary().as_slice().to_vec()
}

/// When the call ends at the latest. What is left crosses the boundary, not a time of day: that may be set meanwhile.
fn deadline(options: Term<'_>) -> Option<Instant> {
    let left = u64::try_from(int(options, atoms::limit_ms())).unwrap_or(0);
    (left > 0).then(|| Instant::now() + Duration::from_millis(left))
}

/// Who asks, by the options of a call.
fn caller(options: Term<'_>) -> Caller {
    Caller {
        tenant: text(options, atoms::tenant()),
        agent: text(options, atoms::agent_id()),
        task_id: text(options, atoms::task_id()),
        key_id: text(options, atoms::key_id()),
        task_limit_micros: get(options, atoms::max_cost_micros()),
        approved: int(options, atoms::budget_approved()),
    }
}

/// The rules of the task hold for each of its calls; what the call says of its own only narrows them.
fn rules(options: Term<'_>, own: &mut Option<pb::CallPolicy>) {
    let Some(task) = get::<Binary<'_>>(options, atoms::policy()).and_then(|b| pb::CallPolicy::decode(b.as_slice()).ok()) else { return };
    *own = Some(agent_providers::narrowed(task, own.take().unwrap_or_default()));
}

/// Starts a model call; `{done, Response}` where a provider has the whole answer at once.
#[rustler::nif]
fn chat<'a>(env: Env<'a>, handle: ResourceArc<ProvidersHandle>, reference: Term<'a>, request: Binary<'a>, options: Term<'a>) -> Term<'a> {
    let Some(tokio) = handle.runtime.handle() else { return terms::native_down(env) };
    let inline = request.len() <= INLINE_BYTES;
    let request = match pb::ChatRequest::decode(request.as_slice()) {
        Ok(mut request) => {
            rules(options, &mut request.policy);
            if get::<Atom>(options, atoms::on_budget_end()) == Some(atoms::cheaper_model()) {
                request.policy.get_or_insert_default().set_on_budget_end(pb::OnBudgetEnd::CheaperModel);
            }
            request
        }
        Err(_) => return terms::error_tuple(env, &AgentError::new(Reason::InvalidField, "the chat request cannot be decoded")),
    };
    let caller = caller(options);
    let streams = get::<bool>(options, atoms::stream()).unwrap_or(false);
    let journal = Journal::of(options, || journal::chat(&request));
    // Whether nothing is recorded can be said at once in a task's first attempt, and once its entries were read in a later one.
    let mut asked = journal.as_ref().and_then(Journal::ask_now::<pb::ChatResponse>);
    let inline = inline && !matches!(asked, Some(Asked::Missing));
    if inline && !streams && journal.as_ref().is_none_or(|journal| asked.is_some() && journal.may_begin()) {
        let (response, note) = match asked.take() {
            Some(Asked::Recorded(response)) => (Some(response), Note::Replayed),
            live => match (handle.providers.chat_now(&request, &caller), live) {
                (Some(response), Some(Asked::Live(live))) => {
                    let answer = response.encode_to_vec();
                    (Some(response), Note::Record(live, answer))
                }
                (response, live) => {
                    asked = live;
                    (response, Note::None)
                }
            },
        };
        if let Some(response) = response {
            return (atoms::done(), response_term(env, &response, note)).encode(env);
        }
    }
    let credit = Arc::new(Semaphore::new(usize::try_from(int(options, atoms::credit())).unwrap_or(0).max(1)));
    let limit = deadline(options);
    let reply = Final::new(env.pid(), reference, Reason::TaskCancelled);
    let mut calls = handle.calls.lock();
    if calls.len() >= MAX_CALLS {
        reply.forget();
        if let Some((journal, asked)) = journal.zip(asked) {
            journal.take_back(asked);
        }
        return atoms::busy().encode(env);
    }
    let key = key(reference);
    let (providers, open, own_key, own_credit) = (handle.providers.clone(), handle.calls.clone(), key.clone(), credit.clone());
    let task = tokio.spawn(async move {
        // Taken out of the map whatever happens, aborted too.
        let _entry = Entry { open, key: own_key };
        let call = async {
            if streams {
                stream(&providers, &request, &caller, limit, &reply, &own_credit).await
            } else {
                providers.chat(&request, &caller, limit, None).await
            }
        };
        match journaled(journal, asked, call).await {
            Ok((response, note)) => {
                if streams && matches!(note, Note::Replayed) {
                    say_again(&response, &reply);
                }
                reply.done(|env| response_term(env, &response, note));
            }
            Err(e) => reply.error(&e),
        }
    });
    calls.insert(key, Call { abort: task.abort_handle(), credit });
    drop(calls);
    // The call itself answers by its Drop guard.
    runtime::guard(&tokio, handle.owner.clone(), task);
    atoms::ok().encode(env)
}

/// A call through the journal of its task, if it has one: its recorded answer, or the live one with the entry to record.
async fn journaled<R: Message + Default>(
    mut journal: Option<Journal>,
    asked: Option<Asked<R>>,
    call: impl Future<Output = Result<R, AgentError>>,
) -> Result<(R, Note), AgentError> {
    let asked = match (&mut journal, asked) {
        (Some(journal), None) => Some(journal.ask().await?),
        (_, asked) => asked,
    };
    if let (Some(journal), Some(Asked::Missing)) = (&journal, &asked) {
        return Err(journal.missing());
    }
    let live = match asked {
        Some(Asked::Recorded(answer)) => return Ok((answer, Note::Replayed)),
        Some(Asked::Live(live)) => Some(live),
        Some(Asked::Missing) | None => None,
    };
    let Some((journal, live)) = journal.zip(live) else { return Ok((call.await?, Note::None)) };
    journal.gate().await;
    journal.leaves(live);
    match call.await {
        Ok(answer) => {
            let entry = answer.encode_to_vec();
            Ok((answer, Note::Record(live, entry)))
        }
        Err(e) => {
            journal.failed(live);
            Err(e)
        }
    }
}

/// A recorded answer as a stream: its text at once, in one piece.
fn say_again(response: &pb::ChatResponse, reply: &Final) {
    let parts = response.message.iter().flat_map(|m| &m.content);
    let text: String =
        parts.filter_map(|p| if let Some(pb::content_part::Part::Text(t)) = &p.part { Some(t.as_str()) } else { None }).collect();
    if !text.is_empty() {
        let piece = pb::StreamChatResponse { piece: Some(pb::stream_chat_response::Piece::TextDelta(text)) };
        reply.chunk(|env| chunk_term(env, &piece));
    }
}

struct Entry {
    open: Arc<Mutex<HashMap<Vec<u8>, Call>>>,
    key: Vec<u8>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.lock().remove(&self.key);
    }
}

async fn stream(
    providers: &Providers,
    request: &pb::ChatRequest,
    caller: &Caller,
    limit: Option<Instant>,
    reply: &Final,
    credit: &Semaphore,
) -> Result<pb::ChatResponse, AgentError> {
    let (pieces, mut arrived) = tokio::sync::mpsc::channel::<pb::StreamChatResponse>(PIECES);
    let call = async move {
        let result = providers.chat(request, caller, limit, Some(&pieces)).await;
        drop(pieces);
        result
    };
    let forward = async {
        while let Some(piece) = arrived.recv().await {
            if matches!(piece.piece, Some(pb::stream_chat_response::Piece::Final(_))) {
                continue;
            }
            // No credit, no message: the call's own channel fills, and the provider is read no further.
            if let Ok(permit) = credit.acquire().await {
                permit.forget();
            }
            reply.chunk(|env| chunk_term(env, &piece));
        }
    };
    tokio::join!(call, forward).0
}

/// `{Text, Piece}`: the text for events, the whole piece for a worker.
fn chunk_term<'a>(env: Env<'a>, piece: &pb::StreamChatResponse) -> Term<'a> {
    let text: &str = match &piece.piece {
        Some(pb::stream_chat_response::Piece::TextDelta(t)) => t,
        _ => "",
    };
    (text, Bin(&piece.encode_to_vec())).encode(env)
}

fn usage_term<'a>(env: Env<'a>, u: &pb::Usage) -> Term<'a> {
    Map::new(env)
        .put(atoms::input(), u.input_tokens)
        .put(atoms::output(), u.output_tokens)
        .put(atoms::cached(), u.cached_tokens)
        .put(atoms::reasoning(), u.reasoning_tokens)
        .end()
}

fn finish_atom(reason: pb::FinishReason) -> Atom {
    match reason {
        pb::FinishReason::Stop => atoms::stop(),
        pb::FinishReason::Length => atoms::length(),
        pb::FinishReason::ToolCalls => atoms::tool_calls(),
        pb::FinishReason::ContentFilter => atoms::content_filter(),
        pb::FinishReason::Refusal => atoms::refusal(),
        pb::FinishReason::Pause => atoms::pause(),
        pb::FinishReason::Unspecified | pb::FinishReason::Other => atoms::other(),
    }
}

fn response_term<'a>(env: Env<'a>, r: &pb::ChatResponse, note: Note) -> Term<'a> {
    let map = Map::new(env)
        .put(atoms::response(), Bin(&r.encode_to_vec()))
        .put(atoms::usage(), usage_term(env, &r.usage.unwrap_or_default()))
        .put(atoms::provider(), &r.provider)
        .put(atoms::model(), &r.model)
        .put(atoms::finish_reason(), finish_atom(r.finish_reason()))
        .put(atoms::latency_ms(), r.latency.as_ref().map_or(0, agent_core::header::duration_ms))
        .put(atoms::cache_hit(), r.cache_hit)
        .put(atoms::hedged(), r.attempts.iter().any(|a| a.hedge))
        .put(atoms::resumed(), r.resumed_at > 0)
        .opt(atoms::cost_micros(), r.cost_micros);
    note.put(map).end()
}

fn embeddings_term<'a>(env: Env<'a>, r: &pb::EmbedResponse, note: Note) -> Term<'a> {
    let map = Map::new(env)
        .put(atoms::response(), Bin(&r.encode_to_vec()))
        .put(atoms::usage(), usage_term(env, &r.usage.unwrap_or_default()))
        .put(atoms::provider(), &r.provider)
        .put(atoms::model(), &r.model)
        .opt(atoms::cost_micros(), r.cost_micros);
    note.put(map).end()
}

/// Embeddings.
#[rustler::nif]
fn embed<'a>(env: Env<'a>, handle: ResourceArc<ProvidersHandle>, reference: Term<'a>, request: Binary<'a>, options: Term<'a>) -> Term<'a> {
    let Some(tokio) = handle.runtime.handle() else { return terms::native_down(env) };
    let Ok(mut request) = pb::EmbedRequest::decode(request.as_slice()) else {
        return terms::error_tuple(env, &AgentError::new(Reason::InvalidField, "the embedding request cannot be decoded"));
    };
    rules(options, &mut request.policy);
    let reply = Final::new(env.pid(), reference, Reason::TaskCancelled);
    let (providers, limit, caller) = (handle.providers.clone(), deadline(options), caller(options));
    let journal = Journal::of(options, || journal::embed(&request));
    let task = tokio::spawn(async move {
        match journaled(journal, None, providers.embed(&request, &caller, limit)).await {
            Ok((r, note)) => reply.done(|env| embeddings_term(env, &r, note)),
            Err(e) => reply.error(&e),
        }
    });
    // The call itself answers by its Drop guard.
    runtime::guard(&tokio, handle.owner.clone(), task);
    atoms::ok().encode(env)
}

/// More pieces may be sent.
#[rustler::nif]
fn credit(handle: ResourceArc<ProvidersHandle>, reference: Term<'_>, n: usize) -> Atom {
    if let Some(call) = handle.calls.lock().get(&key(reference)) {
        call.credit.add_permits(n.min(1024));
    }
    atoms::ok()
}

/// Aborts a call and its HTTP request; its final message says that it was cancelled.
#[rustler::nif]
fn cancel(handle: ResourceArc<ProvidersHandle>, reference: Term<'_>) -> Atom {
    if let Some(call) = handle.calls.lock().get(&key(reference)) {
        call.abort.abort();
    }
    atoms::ok()
}

/// Where a provider is now, or `unavailable`.
#[rustler::nif]
fn set_endpoint(handle: ResourceArc<ProvidersHandle>, name: Binary<'_>, endpoint: Term<'_>) -> Atom {
    let name = String::from_utf8_lossy(name.as_slice());
    let place =
        endpoint.is_map().then(|| (text(endpoint, atoms::base_url()), Some(text(endpoint, atoms::api_key())).filter(|k| !k.is_empty())));
    handle.providers.set_endpoint(&name, place);
    atoms::ok()
}

/// Views of all providers.
#[rustler::nif]
fn providers_info<'a>(env: Env<'a>, handle: ResourceArc<ProvidersHandle>) -> Term<'a> {
    let all: Vec<Term<'a>> = handle
        .providers
        .list()
        .iter()
        .map(|p| {
            Map::new(env)
                .put(atoms::name(), &p.name)
                .put(atoms::dialect(), &p.dialect)
                .put(atoms::state(), &p.state)
                .put(atoms::in_flight(), p.in_flight)
                .put(atoms::latency_ms(), p.latency.as_ref().map_or(0, agent_core::header::duration_ms))
                .end()
        })
        .collect();
    all.encode(env)
}

/// Stops the subsystem: every open call is aborted.
#[rustler::nif]
fn providers_stop(handle: ResourceArc<ProvidersHandle>) -> Atom {
    handle.abort_all();
    if let Some(tokio) = handle.runtime.handle() {
        let owner = handle.owner.clone();
        tokio.spawn(async move { owner.ended("stopped") });
    }
    atoms::ok()
}

/// A panic in the subsystem, for tests of the node (`AGENT_FAULT_INJECTION=1`).
#[rustler::nif]
fn providers_panic(handle: ResourceArc<ProvidersHandle>) -> Atom {
    if !runtime::faults_allowed() {
        return atoms::error();
    }
    if let Some(tokio) = handle.runtime.handle() {
        runtime::spawn_guarded(&tokio, handle.owner.clone(), async { panic!("injected into the providers") });
    }
    atoms::ok()
}
