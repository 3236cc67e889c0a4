//! The HTTP subsystem: a listener in front of the providers.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_grpc::{Auth, TenantKeys};
use agent_http::{Door, HttpConfig, Listener};
use parking_lot::Mutex;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, Resource, ResourceArc, Term};

use crate::atoms;
use crate::providers::ProvidersHandle;
use crate::runtime::{self, Owner, Runtime};
use crate::terms;

/// The subsystem.
pub(crate) struct HttpHandle(Mutex<Option<Listener>>);

#[rustler::resource_impl]
impl Resource for HttpHandle {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.stop();
    }
}

impl HttpHandle {
    fn stop(&self) {
        if let Some(listener) = self.0.lock().take() {
            listener.stop();
        }
    }
}

impl Drop for HttpHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(serde::Deserialize)]
struct Config {
    http: HttpConfig,
    #[serde(default)]
    tenants: BTreeMap<String, TenantKeys>,
}

/// Serves.
#[rustler::nif]
fn http_start<'a>(
    env: Env<'a>,
    runtime: ResourceArc<Runtime>,
    reference: Term<'a>,
    config: Binary<'a>,
    providers: ResourceArc<ProvidersHandle>,
) -> Term<'a> {
    let Some(tokio) = runtime.handle() else { return terms::native_down(env) };
    let parsed = runtime::config::<Config>(config.as_slice()).and_then(|c| Ok((Auth::new(&c.tenants)?, c.http)));
    let (auth, http) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return terms::error_tuple(env, &e),
    };
    let owner = Owner::new(env, reference);
    let handle = ResourceArc::new(HttpHandle(Mutex::new(None)));
    let _ = handle.monitor(Some(env), &env.pid());
    let door = Door { providers: providers.providers.clone(), auth: Arc::new(auth), origins: http.origins.clone().into() };
    let (own, told) = (handle.clone(), owner.clone());
    let serving = async move { agent_http::serve(&http, door, move |why| told.ended(&why)).await };
    runtime::spawn_listener(&tokio, owner, serving, |l| l.address, move |l| *own.0.lock() = Some(l));
    (atoms::ok(), handle).encode(env)
}

/// Takes nothing more; answers under way are finished.
#[rustler::nif]
fn http_stop(handle: ResourceArc<HttpHandle>) -> Atom {
    handle.stop();
    atoms::ok()
}
