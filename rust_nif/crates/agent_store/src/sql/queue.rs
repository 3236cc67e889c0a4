//! What waits for the writer: a bounded queue, a part of it reserved for ends, and how the database fares meanwhile.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use parking_lot::Mutex;

use crate::durable::Done;
use crate::op::WriteOp;

/// Items that may wait for the writer.
const QUEUE_ITEMS: usize = 20_000;
/// Of these, reserved for results, cancels and fences.
const RESERVED_ITEMS: usize = QUEUE_ITEMS / 10;
/// Bytes of content that may wait for the writer; the reserved tenth comes on top.
const QUEUE_BYTES: usize = 256 * 1024 * 1024;

/// One thing to do.
pub(super) enum Job {
    Write(WriteOp, usize, Done),
    Panic,
}

impl Job {
    /// Whether nobody waits for it.
    pub(super) fn is_lazy(&self) -> bool {
        matches!(self, Job::Write(op, ..) if op.is_lazy())
    }
}

/// What waits for the writer.
pub(super) struct Waiting {
    items: AtomicUsize,
    bytes: AtomicUsize,
    /// The database is away: what can be refused is refused at once.
    pub(super) away: AtomicBool,
    /// Nobody waits for what is left.
    pub(super) closing: AtomicBool,
    /// Since when the database has been asked for what it has not done yet, in ms of the clock below; -1: it owes nothing.
    owes_since: AtomicI64,
    clock: Clock,
}

/// Time that no clock of the machine moves.
struct Clock(Instant);

impl Clock {
    fn ms(&self) -> i64 {
        i64::try_from(self.0.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            items: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            away: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            owes_since: AtomicI64::new(-1),
            clock: Clock(Instant::now()),
        }
    }

    /// An item came.
    pub(super) fn add(&self, bytes: usize) {
        self.items.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The database is asked for something; a repeated question counts from its first time.
    pub(super) fn asks(&self) {
        let _ = self.owes_since.compare_exchange(-1, self.clock.ms(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It has done that.
    pub(super) fn answered(&self) {
        self.owes_since.store(-1, Ordering::Relaxed);
    }

    /// An item is being done.
    pub(super) fn take(&self, bytes: usize) {
        self.items.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The writer's end of the queue.
pub(crate) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    waiting: Arc<Waiting>,
}

impl Writer {
    pub(super) fn new(queue: mpsc::Sender<Job>, waiting: Arc<Waiting>) -> Self {
        Self { queue: Mutex::new(Some(queue)), waiting }
    }

    /// Queues a write; false when the queue is full or closed (then `done` was dropped unheard).
    pub(crate) fn write(&self, op: WriteOp, done: Done) -> bool {
        let urgent = op.is_urgent();
        if !urgent && self.waiting.away.load(Ordering::Relaxed) {
            done(Err(away()));
            return true;
        }
        let (items, bytes) =
            if urgent { (QUEUE_ITEMS, QUEUE_BYTES + QUEUE_BYTES / 10) } else { (QUEUE_ITEMS - RESERVED_ITEMS, QUEUE_BYTES) };
        if self.waiting.items.load(Ordering::Relaxed) >= items || self.waiting.bytes.load(Ordering::Relaxed) >= bytes {
            return false;
        }
        let size = op.size();
        self.waiting.add(size);
        let sent = self.queue.lock().as_ref().is_some_and(|q| q.send(Job::Write(op, size, done)).is_ok());
        if !sent {
            self.waiting.take(size);
        }
        sent
    }

    /// For how long the database has not done what it was asked for.
    pub(crate) fn silent_for(&self) -> Duration {
        match self.waiting.owes_since.load(Ordering::Relaxed) {
            -1 => Duration::ZERO,
            since => Duration::from_millis(u64::try_from(self.waiting.clock.ms() - since).unwrap_or(0)),
        }
    }

    /// Makes the writer panic, to see that the node lives.
    pub(crate) fn inject_panic(&self) {
        if let Some(q) = self.queue.lock().as_ref() {
            let _ = q.send(Job::Panic);
        }
    }

    /// Ends the thread after what waits.
    pub(crate) fn stop(&self) {
        self.waiting.closing.store(true, Ordering::Relaxed);
        self.queue.lock().take();
    }
}

pub(super) fn away() -> AgentError {
    AgentError::new(Reason::StoreUnavailable, "the database does not answer; the store waits for it").retry_after(1000)
}
