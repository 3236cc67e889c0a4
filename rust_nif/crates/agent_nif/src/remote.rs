//! Workers on other machines: one attached stream, owned by one Erlang process at a time, which asks for frames by number.

use agent_grpc::Attached;
use parking_lot::Mutex;
use rustler::{Atom, Binary, Encoder, Env, LocalPid, Resource, ResourceArc, Term};
use tokio::sync::mpsc;

use crate::reply::{self, SavedRef};
use crate::runtime::Runtime;
use crate::terms::Bin;
use crate::{atoms, terms};

/// The engine's end of an attached stream.
pub(crate) struct Remote {
    runtime: ResourceArc<Runtime>,
    incoming: Mutex<Option<mpsc::Receiver<Vec<u8>>>>,
    outgoing: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    /// Says how many more frames may be sent to the owner; dropped, the pump ends.
    wanted: Mutex<Option<mpsc::UnboundedSender<usize>>>,
}

#[rustler::resource_impl]
impl Resource for Remote {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: rustler::Monitor) {
        self.close();
    }
}

impl Remote {
    pub(crate) fn new(runtime: ResourceArc<Runtime>, attached: Attached) -> Self {
        Self {
            runtime,
            incoming: Mutex::new(Some(attached.incoming)),
            outgoing: Mutex::new(Some(attached.outgoing)),
            wanted: Mutex::new(None),
        }
    }

    /// Both directions end; the worker's side sees the end of its call.
    fn close(&self) {
        self.outgoing.lock().take();
        self.wanted.lock().take();
        self.incoming.lock().take();
    }
}

/// Makes the caller the owner: `{agent_native, Ref, frame, Bin}` for each frame, `passive` when so many came as were asked for, and `closed`
/// once at the end. The stream ends with its owner.
#[rustler::nif]
fn remote_own<'a>(env: Env<'a>, remote: ResourceArc<Remote>, reference: Term<'a>) -> Term<'a> {
    let (Some(tokio), Some(incoming)) = (remote.runtime.handle(), remote.incoming.lock().take()) else { return terms::native_down(env) };
    if remote.monitor(Some(env), &env.pid()).is_none() {
        remote.close();
        return terms::native_down(env);
    }
    let (wanted, asked) = mpsc::unbounded_channel();
    *remote.wanted.lock() = Some(wanted);
    tokio.spawn(pump(incoming, asked, env.pid(), SavedRef::new(reference)));
    atoms::ok().encode(env)
}

async fn pump(mut incoming: mpsc::Receiver<Vec<u8>>, mut asked: mpsc::UnboundedReceiver<usize>, owner: LocalPid, reference: SavedRef) {
    'open: while let Some(count) = asked.recv().await {
        for _ in 0..count {
            let Some(frame) = incoming.recv().await else { break 'open };
            reply::send(&owner, &reference, atoms::frame(), |env| Bin(&frame).encode(env));
        }
        reply::send(&owner, &reference, atoms::passive(), |env| atoms::undefined().encode(env));
    }
    reply::send(&owner, &reference, atoms::closed(), |env| atoms::undefined().encode(env));
}

/// The owner takes so many more frames.
#[rustler::nif]
fn remote_want(remote: ResourceArc<Remote>, count: usize) -> Atom {
    if let Some(wanted) = remote.wanted.lock().as_ref() {
        let _ = wanted.send(count);
    }
    atoms::ok()
}

/// Sends a frame; `busy` when too many wait for a worker that does not read.
#[rustler::nif]
fn remote_send(remote: ResourceArc<Remote>, frame: Binary<'_>) -> Atom {
    let outgoing = remote.outgoing.lock();
    let Some(outgoing) = outgoing.as_ref() else { return atoms::closed() };
    match outgoing.try_send(frame.as_slice().to_vec()) {
        Ok(()) => atoms::ok(),
        Err(mpsc::error::TrySendError::Full(_)) => atoms::busy(),
        Err(mpsc::error::TrySendError::Closed(_)) => atoms::closed(),
    }
}

/// Ends the stream.
#[rustler::nif]
fn remote_close(remote: ResourceArc<Remote>) -> Atom {
    remote.close();
    atoms::ok()
}
