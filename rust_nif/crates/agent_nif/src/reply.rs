//! Messages to Erlang: exactly one final one per request.

use agent_core::{AgentError, Reason};
use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, Term};

use crate::{atoms, terms};

/// A reference of the caller's, kept outside of any call.
pub(crate) struct SavedRef {
    env: OwnedEnv,
    term: SavedTerm,
}

// SAFETY: an OwnedEnv is a process-independent environment; it is only used behind `&mut` or by `run` on one thread at a time,
// which the owner of a SavedRef guarantees by having the only one.
unsafe impl Sync for SavedRef {}

impl SavedRef {
    pub(crate) fn new(term: Term<'_>) -> Self {
        let env = OwnedEnv::new();
        let term = env.save(term);
        Self { env, term }
    }

    fn load_into<'b>(&self, to: Env<'b>) -> Term<'b> {
        self.env.run(|env| self.term.load(env).in_env(to))
    }
}

/// Sends `{agent_native, Ref, Event, Props}`; from a thread that is no scheduler's.
pub(crate) fn send(to: &LocalPid, reference: &SavedRef, event: Atom, props: impl FnOnce(Env<'_>) -> Term<'_>) {
    let mut message = OwnedEnv::new();
    // A dead receiver needs no message.
    let _ = message.send_and_clear(to, |env| (atoms::agent_native(), reference.load_into(env), event, props(env)).encode(env));
}

/// The one final message of a request. Dropped unsent (panic, shutdown) it says that the outcome is not known.
pub(crate) struct Final {
    to: LocalPid,
    reference: Option<SavedRef>,
    dropped: Reason,
}

impl Final {
    /// `dropped`: what a lost answer means; `CommitAmbiguous` for a write, `NativeDown` for a read or a call.
    pub(crate) fn new(to: LocalPid, reference: Term<'_>, dropped: Reason) -> Self {
        Self { to, reference: Some(SavedRef::new(reference)), dropped }
    }

    pub(crate) fn chunk(&self, props: impl FnOnce(Env<'_>) -> Term<'_>) {
        if let Some(r) = &self.reference {
            send(&self.to, r, atoms::chunk(), props);
        }
    }

    pub(crate) fn done(mut self, props: impl FnOnce(Env<'_>) -> Term<'_>) {
        if let Some(r) = self.reference.take() {
            send(&self.to, &r, atoms::done(), props);
        }
    }

    pub(crate) fn error(mut self, e: &AgentError) {
        if let Some(r) = self.reference.take() {
            send(&self.to, &r, atoms::error(), |env| terms::error_map(env, e));
        }
    }

    /// It was never enqueued: nothing is to be said.
    pub(crate) fn forget(mut self) {
        self.reference.take();
    }
}

impl Drop for Final {
    fn drop(&mut self) {
        if let Some(r) = self.reference.take() {
            let e = AgentError::new(self.dropped, "the native side ended before it could answer");
            send(&self.to, &r, atoms::error(), |env| terms::error_map(env, &e));
        }
    }
}
