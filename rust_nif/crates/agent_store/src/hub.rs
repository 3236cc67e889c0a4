//! Live events: a ring per task that is not yet forgotten, and a wake-up for whoever waits.
//!
//! Watchers never slow a task: one that leaves the ring reads on from the store.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;

use crate::record::Record;

/// Events kept in memory per task.
const RING_EVENTS: usize = 1000;
/// Bytes kept in memory per task.
const RING_BYTES: usize = 1024 * 1024;
/// Shards of the map of live tasks.
const SHARDS: usize = 32;

/// Text that is kept for watchers until its batch has come, in bytes; batches close at 4 KiB, so more is there only while the store waits.
const AHEAD_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<pb::TaskEvent>>,
    bytes: usize,
    end: Option<End>,
    ahead: Ahead,
}

/// The end of a task: as it stands then, if whoever wrote it had all of it.
#[derive(Clone)]
pub(crate) struct End(Option<Arc<Record>>);

impl End {
    /// The end that this record says.
    pub(crate) fn of(record: Option<Record>) -> Self {
        Self(record.filter(Record::is_whole).map(Arc::new))
    }

    /// It is in memory anyway.
    pub(crate) fn elsewhere() -> Self {
        Self(None)
    }

    /// The task of a tenant, if it is at hand.
    pub(crate) fn task(&self, tenant: &str) -> Option<pb::Task> {
        self.0.as_ref().filter(|record| record.tenant == tenant).map(|record| record.task.clone())
    }
}

/// Text of the running attempt whose batch has not come yet.
#[derive(Default)]
struct Ahead {
    attempt: i32,
    offset: i64,
    text: String,
}

impl Ahead {
    fn end(&self) -> i64 {
        self.offset + i64::try_from(self.text.len()).unwrap_or(0)
    }

    fn add(&mut self, attempt: i32, offset: i64, text: &str) {
        // What does not continue what is here begins anew: a watcher that lacks the part between waits for the batch.
        if attempt != self.attempt || offset != self.end() || self.text.len() + text.len() > AHEAD_BYTES {
            *self = Self { attempt, offset, text: String::new() };
        }
        self.text.push_str(text);
    }

    fn from(&self, attempt: i32, offset: i64) -> Option<&str> {
        let skip = usize::try_from(offset - self.offset).ok().filter(|skip| attempt == self.attempt && *skip < self.text.len())?;
        self.text.get(skip..)
    }

    /// A numbered event came: what it says is ahead no longer.
    fn passed(&mut self, event: &pb::TaskEvent) {
        if let Some(pb::task_event::Event::TextDelta(delta)) = &event.event
            && event.attempt == self.attempt
        {
            let end = delta.offset + i64::try_from(delta.text.len()).unwrap_or(0);
            match self.from(self.attempt, end).map(str::to_owned) {
                Some(rest) => *self = Self { attempt: self.attempt, offset: end, text: rest },
                None if end >= self.end() => *self = Self { attempt: self.attempt, offset: end, text: String::new() },
                None => {}
            }
        }
    }
}

/// A live task.
#[derive(Default)]
pub(crate) struct Live {
    ring: Mutex<Ring>,
    changed: Notify,
    /// Watchers that want text ahead of its batch.
    listeners: AtomicUsize,
}

/// A watcher that wants text ahead of its batch, for as long as it lives.
pub struct Listener(Arc<Live>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a watcher finds behind its cursor.
pub(crate) enum Behind {
    /// These, in order; perhaps none.
    Events(Vec<Arc<pb::TaskEvent>>, bool),
    /// The ring no longer reaches back that far.
    TooOld,
}

impl Live {
    fn publish(&self, events: Vec<pb::TaskEvent>, end: Option<End>) {
        let mut ring = self.ring.lock();
        for event in events {
            ring.ahead.passed(&event);
            ring.bytes += event.encoded_len();
            ring.events.push_back(Arc::new(event));
        }
        // The newest stays whatever its size: an empty ring could not say that older ones are in the store.
        while ring.events.len() > 1 && (ring.events.len() > RING_EVENTS || ring.bytes > RING_BYTES) {
            match ring.events.pop_front() {
                Some(old) => ring.bytes -= old.encoded_len(),
                None => break,
            }
        }
        ring.end = end.or(ring.end.take());
        drop(ring);
        self.changed.notify_waiters();
    }

    pub(crate) fn behind(&self, after: i64) -> Behind {
        let ring = self.ring.lock();
        match ring.events.front() {
            Some(first) if first.sequence > after + 1 => Behind::TooOld,
            _ => Behind::Events(ring.events.iter().filter(|e| e.sequence > after).cloned().collect(), ring.end.is_some()),
        }
    }

    /// What the ring still has, however far behind the cursor is: for tasks that no store keeps.
    pub(crate) fn remaining(&self) -> Vec<Arc<pb::TaskEvent>> {
        self.ring.lock().events.iter().cloned().collect()
    }

    /// Text came whose batch has not. Where nobody listens it is not kept.
    fn say(&self, attempt: i32, offset: i64, text: &str) {
        if self.listeners.load(Ordering::Relaxed) > 0 {
            self.ring.lock().ahead.add(attempt, offset, text);
            self.changed.notify_waiters();
        }
    }

    /// Text ahead that continues what a watcher has, as an event that has no number of its own yet.
    pub(crate) fn ahead(&self, attempt: i32, offset: i64) -> Option<pb::TaskEvent> {
        let ring = self.ring.lock();
        let text = ring.ahead.from(attempt, offset)?.to_owned();
        let last = ring.events.back()?;
        let delta = pb::TextDelta { text, offset, ahead: true };
        Some(pb::TaskEvent {
            sequence: last.sequence + 1,
            time: last.time,
            attempt,
            step_id: last.step_id.clone(),
            event: Some(pb::task_event::Event::TextDelta(delta)),
        })
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.ring.lock().end.clone()
    }

    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// All live tasks.
pub(crate) struct Hub {
    shards: Vec<Mutex<HashMap<String, Arc<Live>>>>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, id: &str) -> &Mutex<HashMap<String, Arc<Live>>> {
        &self.shards[shard_of(id, SHARDS)]
    }

    /// The live entry of a task, if it has one.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Live>> {
        self.shard(id).lock().get(id).cloned()
    }

    /// Adds events; the end wakes everybody, and the entry is dropped unless `keep`. So is that of a task that waits and nobody watches:
    /// there may be a million of them, and who watches one later reads it from the store.
    pub(crate) fn publish(&self, id: &str, events: Vec<pb::TaskEvent>, end: Option<End>, keep: bool) {
        if events.is_empty() && end.is_none() {
            return;
        }
        let ended = end.is_some();
        let waits = events.last().is_some_and(is_waiting);
        let live = {
            let mut shard = self.shard(id).lock();
            let live = shard.entry(id.to_owned()).or_default().clone();
            if ended && !keep {
                shard.remove(id);
            }
            live
        };
        live.publish(events, end);
        if waits && !keep {
            let mut shard = self.shard(id).lock();
            // Ours and the map's: a watcher has one of its own, taken under this lock.
            if shard.get(id).is_some_and(|entry| Arc::ptr_eq(entry, &live) && Arc::strong_count(entry) == 2) {
                shard.remove(id);
            }
        }
    }

    /// Text of a running attempt ahead of its batch.
    pub(crate) fn say(&self, id: &str, attempt: i32, offset: i64, text: &str) {
        if let Some(live) = self.get(id) {
            live.say(attempt, offset, text);
        }
    }

    /// Wants text ahead of its batch; None where nothing of the task is live.
    pub(crate) fn listen(&self, id: &str) -> Option<Listener> {
        let live = self.get(id)?;
        live.listeners.fetch_add(1, Ordering::Relaxed);
        Some(Listener(live))
    }

    /// Forgets a task.
    pub(crate) fn forget(&self, id: &str) {
        self.shard(id).lock().remove(id);
    }
}

fn is_waiting(event: &pb::TaskEvent) -> bool {
    matches!(&event.event, Some(pb::task_event::Event::StateChanged(to)) if to.state() == pb::TaskState::Waiting)
}

/// Shard of an id: its last characters are random (UUIDv7).
pub(crate) fn shard_of(id: &str, shards: usize) -> usize {
    id.bytes().rev().take(4).fold(0usize, |h, b| h.wrapping_mul(31).wrapping_add(usize::from(b))) % shards
}
