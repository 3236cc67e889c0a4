//! The tokio runtime, and what every subsystem shares: its owner, its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_core::{AgentError, Reason};
use parking_lot::RwLock;
use rustler::{Encoder, Env, LocalPid, Resource, ResourceArc, Term};

use crate::reply::{self, SavedRef};
use crate::{atoms, terms};

/// Owned by `native_runtime`. Stopped, every task on it is dropped, and each open request hears its final message.
pub(crate) struct Runtime {
    pub(crate) tokio: RwLock<Option<tokio::runtime::Runtime>>,
}

#[rustler::resource_impl]
impl Resource for Runtime {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.stop();
    }
}

impl Runtime {
    fn stop(&self) {
        if let Some(runtime) = self.tokio.write().take() {
            // Never waits: we are on a scheduler.
            runtime.shutdown_background();
        }
    }

    /// Handle of the running runtime.
    pub(crate) fn handle(&self) -> Option<tokio::runtime::Handle> {
        self.tokio.read().as_ref().map(|r| r.handle().clone())
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop();
    }
}

#[rustler::nif]
fn runtime_start<'a>(env: Env<'a>, options: Term<'a>) -> Term<'a> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = terms::get::<usize>(options, atoms::threads()).filter(|n| *n > 0).unwrap_or((cores / 2).max(1));
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(8)
        .thread_name("native")
        .enable_all()
        .build();
    match built {
        Ok(runtime) => {
            let resource = ResourceArc::new(Runtime { tokio: RwLock::new(Some(runtime)) });
            let _ = resource.monitor(Some(env), &env.pid());
            (atoms::ok(), resource).encode(env)
        }
        Err(e) => terms::error_tuple(env, &AgentError::new(Reason::NativeDown, format!("the runtime cannot be started: {e}"))),
    }
}

#[rustler::nif]
fn runtime_stop(runtime: ResourceArc<Runtime>) -> rustler::Atom {
    runtime.stop();
    atoms::ok()
}

/// Who hears of a subsystem, by the reference that it gave.
#[derive(Clone)]
pub(crate) struct Owner {
    pid: LocalPid,
    reference: Arc<SavedRef>,
    ended: Arc<AtomicBool>,
}

impl Owner {
    pub(crate) fn new(env: Env<'_>, reference: Term<'_>) -> Self {
        Self { pid: env.pid(), reference: Arc::new(SavedRef::new(reference)), ended: Arc::new(AtomicBool::new(false)) }
    }

    pub(crate) fn ready(&self, props: impl FnOnce(Env<'_>) -> Term<'_>) {
        reply::send(&self.pid, &self.reference, atoms::ready(), props);
    }

    pub(crate) fn error(&self, e: &AgentError) {
        reply::send(&self.pid, &self.reference, atoms::error(), |env| terms::error_map(env, e));
    }

    /// Once, whoever says it first.
    pub(crate) fn ended(&self, why: &str) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            reply::send(&self.pid, &self.reference, atoms::ended(), |env| terms::Map::new(env).put(atoms::reason(), why).end());
        }
    }
}

/// Runs a future; a panic in it ends the subsystem.
pub(crate) fn spawn_guarded(handle: &tokio::runtime::Handle, owner: Owner, future: impl Future<Output = ()> + Send + 'static) {
    guard(handle, owner, handle.spawn(future));
}

/// Starts what listens: its owner hears where, or why not, and `keep` is given it.
pub(crate) fn spawn_listener<L: Send + 'static>(
    handle: &tokio::runtime::Handle,
    owner: Owner,
    serving: impl Future<Output = Result<L, AgentError>> + Send + 'static,
    address: fn(&L) -> SocketAddr,
    keep: impl FnOnce(L) + Send + 'static,
) {
    spawn_guarded(handle, owner.clone(), async move {
        match serving.await {
            Ok(listener) => {
                let address = address(&listener);
                keep(listener);
                owner.ready(|env| terms::Map::new(env).put(atoms::address(), address.to_string()).put(atoms::port(), address.port()).end());
            }
            Err(e) => owner.error(&e),
        }
    });
}

/// A panic in a task that runs already ends the subsystem.
pub(crate) fn guard(handle: &tokio::runtime::Handle, owner: Owner, task: tokio::task::JoinHandle<()>) {
    handle.spawn(async move {
        if let Err(e) = task.await
            && e.is_panic()
        {
            owner.ended("panic");
        }
    });
}

/// Whether tests of the node may make subsystems panic (`AGENT_FAULT_INJECTION=1`).
pub(crate) fn faults_allowed() -> bool {
    std::env::var_os("AGENT_FAULT_INJECTION").is_some()
}

/// Parses the part of the native configuration that a subsystem needs.
pub(crate) fn config<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, AgentError> {
    serde_json::from_slice(json).map_err(|e| AgentError::new(Reason::InvalidField, format!("the native configuration: {e}")))
}
