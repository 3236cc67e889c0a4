//! Live events: a ring per task that is not yet forgotten, and a wake-up for whoever waits.
//!
//! Watchers never slow a task: one that leaves the ring reads on from the store.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;

/// Events kept in memory per task.
const RING_EVENTS: usize = 1000;
/// Bytes kept in memory per task.
const RING_BYTES: usize = 1024 * 1024;
/// Shards of the map of live tasks.
const SHARDS: usize = 32;

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<pb::TaskEvent>>,
    bytes: usize,
    ended: bool,
}

/// A live task.
#[derive(Default)]
pub(crate) struct Live {
    ring: Mutex<Ring>,
    changed: Notify,
}

/// What a watcher finds behind its cursor.
pub(crate) enum Behind {
    /// These, in order; perhaps none.
    Events(Vec<Arc<pb::TaskEvent>>, bool),
    /// The ring no longer reaches back that far.
    TooOld,
}

impl Live {
    fn publish(&self, events: Vec<pb::TaskEvent>, ended: bool) {
        let mut ring = self.ring.lock();
        for event in events {
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
        ring.ended |= ended;
        drop(ring);
        self.changed.notify_waiters();
    }

    pub(crate) fn behind(&self, after: i64) -> Behind {
        let ring = self.ring.lock();
        match ring.events.front() {
            Some(first) if first.sequence > after + 1 => Behind::TooOld,
            _ => Behind::Events(ring.events.iter().filter(|e| e.sequence > after).cloned().collect(), ring.ended),
        }
    }

    /// What the ring still has, however far behind the cursor is: for tasks that no store keeps.
    pub(crate) fn remaining(&self) -> Vec<Arc<pb::TaskEvent>> {
        self.ring.lock().events.iter().cloned().collect()
    }

    pub(crate) fn ended(&self) -> bool {
        self.ring.lock().ended
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
    pub(crate) fn publish(&self, id: &str, events: Vec<pb::TaskEvent>, ended: bool, keep: bool) {
        if events.is_empty() && !ended {
            return;
        }
        let waits = events.last().is_some_and(is_waiting);
        let live = {
            let mut shard = self.shard(id).lock();
            let live = shard.entry(id.to_owned()).or_default().clone();
            if ended && !keep {
                shard.remove(id);
            }
            live
        };
        live.publish(events, ended);
        if waits && !keep {
            let mut shard = self.shard(id).lock();
            // Ours and the map's: a watcher has one of its own, taken under this lock.
            if shard.get(id).is_some_and(|entry| Arc::ptr_eq(entry, &live) && Arc::strong_count(entry) == 2) {
                shard.remove(id);
            }
        }
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
