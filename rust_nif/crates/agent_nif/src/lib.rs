//! The only crate with rustler: decode, enqueue, reply (`docs/native_messages.md`).
//!
//! A function with I/O enqueues and returns; exactly one final message follows, guaranteed by [`reply::Final`]. Pure functions run inline.

mod around;
mod atoms;
mod budget;
mod grpc;
mod http;
mod journal;
mod memory;
mod plan;
mod providers;
mod pure;
mod remote;
mod reply;
mod runtime;
mod store;
mod terms;
mod views;
mod wire;

use rustler::{Env, Term};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Travels as `load_info`; another number is refused at load.
const ABI_VERSION: i64 = 1;

fn load(_env: Env<'_>, info: Term<'_>) -> bool {
    if info.decode::<i64>().ok() != Some(ABI_VERSION) {
        return false;
    }
    // The node's memory and environment are not read through /proc by processes of the same user.
    // SAFETY: prctl with PR_SET_DUMPABLE takes plain integers and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    true
}

#[rustler::nif]
fn abi_version() -> i64 {
    ABI_VERSION
}

rustler::init!("agent_native", load = load);
