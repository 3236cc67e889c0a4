//! The gRPC subsystem: requests to Erlang as messages, its answers through tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use agent_core::{AgentError, Reason};
use agent_grpc::{
    AgentCall, Attached, Auth, Engine, EngineBody, EngineReply, EngineRequest, Full, Listener, ServerConfig, Shared, TenantKeys, WorkerKeys,
};
use parking_lot::Mutex;
use prost::Message;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, OwnedEnv, Resource, ResourceArc, Term};
use tokio::sync::oneshot;

use crate::atoms;
use crate::providers::ProvidersHandle;
use crate::pure::{Payload, header_term};
use crate::remote::Remote;
use crate::runtime::{self, Owner, Runtime};
use crate::store::{StoreHandle, proof_of};
use crate::terms::{self, Bin, Map, string};
use crate::views::{agent_of, agent_type_of, framework_of};

/// Answers one request; collected unanswered, the client hears that the outcome is not known.
pub(crate) struct Token(Mutex<Option<oneshot::Sender<EngineReply>>>);

#[rustler::resource_impl]
impl Resource for Token {}

/// The subsystem.
pub(crate) struct GrpcHandle {
    listener: Mutex<Option<Listener>>,
    credit: Arc<AtomicI64>,
    runtime: ResourceArc<Runtime>,
    owner: Owner,
}

#[rustler::resource_impl]
impl Resource for GrpcHandle {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.stop();
    }
}

impl GrpcHandle {
    fn stop(&self) {
        if let Some(listener) = self.listener.lock().take() {
            listener.stop();
        }
    }
}

impl Drop for GrpcHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Erlang, behind a bounded number of requests.
struct Door {
    ingress: LocalPid,
    credit: Arc<AtomicI64>,
    runtime: ResourceArc<Runtime>,
}

impl Door {
    fn take_credit(&self) -> Result<(), Full> {
        if self.credit.fetch_sub(1, Ordering::AcqRel) <= 0 {
            self.credit.fetch_add(1, Ordering::AcqRel);
            return Err(Full);
        }
        Ok(())
    }
}

impl Engine for Door {
    fn attach(&self, attached: Attached) -> Result<(), Full> {
        self.take_credit()?;
        let remote = ResourceArc::new(Remote::new(self.runtime.clone(), attached));
        let mut message = OwnedEnv::new();
        // Nobody there: the stream ends with the message.
        let sent =
            message.send_and_clear(&self.ingress, |env| (atoms::agent_native(), atoms::grpc(), atoms::attach_worker(), remote).encode(env));
        sent.map_err(|_| Full)
    }

    fn request(&self, request: EngineRequest) -> Result<(), Full> {
        self.take_credit()?;
        let token = ResourceArc::new(Token(Mutex::new(Some(request.reply))));
        let (tenant, body) = (request.tenant, request.body);
        let mut message = OwnedEnv::new();
        let sent = message.send_and_clear(&self.ingress, |env| {
            let (method, header, payload) = body_terms(env, body);
            let map = Map::new(env)
                .put(atoms::token(), token)
                .put(atoms::method(), method)
                .put(atoms::tenant(), tenant)
                .put(atoms::header(), header)
                .put(atoms::payload(), payload)
                .end();
            (atoms::agent_native(), atoms::grpc(), atoms::request(), map).encode(env)
        });
        // The ingress is gone: the token was dropped with the message, and the caller hears of it.
        sent.map_err(|_| Full)
    }
}

fn body_terms(env: Env<'_>, body: EngineBody) -> (Atom, Term<'_>, Term<'_>) {
    let none = || atoms::undefined().encode(env);
    let named = |name: String| Map::new(env).put(atoms::framework(), name).end();
    match body {
        EngineBody::Submit { header, spec } => {
            let answers = header.record.as_ref().map(|record| record.answers.clone()).unwrap_or_default();
            let term = header_term(env, &header);
            (atoms::submit_task(), term, ResourceArc::new(Payload { header: *header, task: Arc::from(spec), answers }).encode(env))
        }
        EngineBody::Check { header, spec } => {
            let term = header_term(env, &header);
            let payload = Payload { header: *header, task: Arc::from(spec), answers: Vec::new() };
            (atoms::check_task(), term, ResourceArc::new(payload).encode(env))
        }
        EngineBody::Retry { task_id, header, spec } => {
            let term = header_term(env, &header).map_put(atoms::retry_of(), task_id).unwrap_or_else(|_| Term::map_new(env));
            (
                atoms::retry_task(),
                term,
                ResourceArc::new(Payload { header: *header, task: Arc::from(spec), answers: Vec::new() }).encode(env),
            )
        }
        EngineBody::Cancel { task_id, grace_ms, reason } => {
            let map = Map::new(env).put(atoms::task_id(), task_id).put(atoms::grace_ms(), grace_ms).put(atoms::reason(), reason).end();
            (atoms::cancel_task(), map, none())
        }
        EngineBody::Signal { task_id, signal } => {
            (atoms::signal_task(), Map::new(env).put(atoms::task_id(), task_id).end(), Bin(&signal.encode_to_vec()).encode(env))
        }
        EngineBody::Delete { task_id } => (atoms::delete_task(), Map::new(env).put(atoms::task_id(), task_id).end(), none()),
        EngineBody::Agent { call, agent } => {
            let method = match call {
                AgentCall::Create => atoms::create_agent(),
                AgentCall::Get => atoms::get_agent(),
                AgentCall::List => atoms::list_agents(),
                AgentCall::Update => atoms::update_agent(),
                AgentCall::Delete => atoms::delete_agent(),
                AgentCall::Types => atoms::list_agent_types(),
            };
            let header = crate::views::agent_term(env, &agent).map_put(atoms::agent_id(), &agent.id).unwrap_or_else(|_| Term::map_new(env));
            (method, header, Bin(&agent.encode_to_vec()).encode(env))
        }
        EngineBody::Frameworks => (atoms::list_frameworks(), Term::map_new(env), none()),
        EngineBody::Framework { name } => (atoms::get_framework(), named(name), none()),
        EngineBody::RestartWorkers { name } => (atoms::restart_workers(), named(name), none()),
    }
}

#[derive(serde::Deserialize)]
struct Config {
    server: ServerConfig,
    #[serde(default)]
    tenants: BTreeMap<String, TenantKeys>,
    #[serde(default)]
    workers: WorkerKeys,
}

/// Serves; so many requests may be sent to the ingress before it grants more.
#[rustler::nif]
#[allow(clippy::too_many_arguments)]
fn grpc_start<'a>(
    env: Env<'a>,
    runtime: ResourceArc<Runtime>,
    reference: Term<'a>,
    config: Binary<'a>,
    store: ResourceArc<StoreHandle>,
    providers: ResourceArc<ProvidersHandle>,
    ingress: LocalPid,
    first_credit: i64,
) -> Term<'a> {
    let (Some(tokio), Some(store)) = (runtime.handle(), store.store.read().clone()) else { return terms::native_down(env) };
    let parsed =
        runtime::config::<Config>(config.as_slice()).and_then(|c| Ok((Auth::new(&c.tenants)?.with_workers(&c.workers)?, c.server)));
    let (auth, server) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return terms::error_tuple(env, &e),
    };
    let credit = Arc::new(AtomicI64::new(first_credit));
    let owner = Owner::new(env, reference);
    let door = Door { ingress, credit: credit.clone(), runtime: runtime.clone() };
    let handle = ResourceArc::new(GrpcHandle { listener: Mutex::new(None), credit, runtime, owner: owner.clone() });
    let _ = handle.monitor(Some(env), &env.pid());
    let shared = Shared { engine: Arc::new(door), store, providers: providers.providers.clone(), auth: Arc::new(auth) };
    let (own, told) = (handle.clone(), owner.clone());
    let serving = async move { agent_grpc::serve(&server, shared, move |why| told.ended(&why)).await };
    runtime::spawn_listener(&tokio, owner, serving, |l| l.address, move |l| *own.listener.lock() = Some(l));
    (atoms::ok(), handle).encode(env)
}

#[rustler::nif]
fn grpc_stop(handle: ResourceArc<GrpcHandle>) -> Atom {
    handle.stop();
    atoms::ok()
}

/// The ingress takes `n` more requests.
#[rustler::nif]
fn grpc_credit(handle: ResourceArc<GrpcHandle>, n: i64) -> Atom {
    handle.credit.fetch_add(n, Ordering::AcqRel);
    atoms::ok()
}

/// Health checks say NOT_SERVING from now on; the watcher closes the credit itself.
#[rustler::nif]
fn grpc_drain(handle: ResourceArc<GrpcHandle>) -> Atom {
    if let Some(tokio) = handle.runtime.handle() {
        let own = handle.clone();
        tokio.spawn(async move {
            let listener = own.listener.lock().take();
            if let Some(listener) = listener {
                listener.drain().await;
                *own.listener.lock() = Some(listener);
            }
        });
    }
    atoms::ok()
}

/// A panic in the subsystem, for tests of the node (`AGENT_FAULT_INJECTION=1`).
#[rustler::nif]
fn grpc_panic(handle: ResourceArc<GrpcHandle>) -> Atom {
    if !runtime::faults_allowed() {
        return atoms::error();
    }
    if let Some(tokio) = handle.runtime.handle() {
        handle.stop();
        runtime::spawn_guarded(&tokio, handle.owner.clone(), async { panic!("injected into the listener") });
    }
    atoms::ok()
}

/// Answers a request, once.
#[rustler::nif]
fn grpc_reply<'a>(env: Env<'a>, token: ResourceArc<Token>, reply: Term<'a>) -> Term<'a> {
    let sender = token.0.lock().take();
    match sender {
        Some(sender) => match sender.send(reply_of(reply)) {
            Ok(()) => atoms::ok().encode(env),
            Err(_) => (atoms::error(), atoms::gone()).encode(env),
        },
        None => (atoms::error(), atoms::gone()).encode(env),
    }
}

fn reply_of(term: Term<'_>) -> EngineReply {
    parse_reply(term)
        .unwrap_or_else(|| EngineReply::Error(AgentError::new(Reason::Internal, "the engine gave an answer that cannot be read")))
}

fn parse_reply(term: Term<'_>) -> Option<EngineReply> {
    if term.is_atom() {
        return Some(EngineReply::Ok);
    }
    let parts = rustler::types::tuple::get_tuple(term).ok()?;
    let kind: Atom = parts.first()?.decode().ok()?;
    let second = *parts.get(1)?;
    let list = || second.decode::<Vec<Term<'_>>>().unwrap_or_default();
    Some(if kind == atoms::task() {
        EngineReply::Task(string(second)?)
    } else if kind == atoms::cancelled() {
        EngineReply::Cancelled { task_id: string(second)?, proof: Box::new(proof_of(*parts.get(2)?)) }
    } else if kind == atoms::agent() {
        EngineReply::Agents(vec![agent_of(second)])
    } else if kind == atoms::agents() {
        EngineReply::Agents(list().into_iter().map(agent_of).collect())
    } else if kind == atoms::agent_types() {
        EngineReply::AgentTypes(list().into_iter().map(agent_type_of).collect())
    } else if kind == atoms::framework() {
        EngineReply::Frameworks(vec![framework_of(second)])
    } else if kind == atoms::frameworks() {
        EngineReply::Frameworks(list().into_iter().map(framework_of).collect())
    } else if kind == atoms::route() {
        EngineReply::Route(crate::store::route_of(second))
    } else if kind == atoms::restarted() {
        EngineReply::Restarted(second.decode().unwrap_or(0))
    } else if kind == atoms::error() {
        EngineReply::Error(terms::error_of(second))
    } else {
        return None;
    })
}
