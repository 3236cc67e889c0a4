//! Named points at which a test ends the node, as a power cut would: `AGENT_FAULT_POINT=before:finish@3` with `AGENT_FAULT_INJECTION=1`.
//!
//! A point is `before:OP` (in the transaction, before its commit), `after:OP` (committed, not answered), `migrate` or `checkpoint`; with
//! `@N` the N-th time counts. Without the variables a point costs one comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
static TIMES: AtomicU32 = AtomicU32::new(0);

fn wanted() -> Option<&'static (String, u32)> {
    WANTED
        .get_or_init(|| {
            std::env::var_os("AGENT_FAULT_INJECTION")?;
            let point = std::env::var("AGENT_FAULT_POINT").ok()?;
            match point.rsplit_once('@') {
                Some((name, times)) => Some((name.to_owned(), times.parse().ok()?)),
                None => Some((point, 1)),
            }
        })
        .as_ref()
}

/// The operations of a batch, gathered only if a test wants one of them.
#[derive(Default)]
pub(crate) struct Names(Vec<&'static str>);

impl Names {
    /// One more.
    pub(crate) fn add(&mut self, op: &'static str) {
        if wanted().is_some() {
            self.0.push(op);
        }
    }

    /// Passes the point of each.
    pub(crate) fn point(&self, when: &str) {
        self.0.iter().for_each(|op| point(when, op));
    }
}

/// Ends the process if the test wants that here.
pub(crate) fn point(when: &str, op: &str) {
    let Some((name, nth)) = wanted() else { return };
    let here = name.strip_prefix(when).is_some_and(|rest| rest.strip_prefix(':').unwrap_or(rest) == op);
    if here && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    }
}
