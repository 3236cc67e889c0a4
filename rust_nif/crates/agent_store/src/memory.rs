//! The ephemeral back end: tasks in memory, answered inline, forgotten soon after their end.

use std::collections::{HashMap, VecDeque};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;

use crate::hub::shard_of;
use crate::record::{Record, is_terminal};

/// Ended tasks kept at most.
const KEEP_TASKS: usize = 20_000;
/// Bytes of ended tasks kept at most.
const KEEP_BYTES: usize = 128 * 1024 * 1024;
/// How long an ended task is kept, in ms.
const KEEP_MS: i64 = 60_000;
const SHARDS: usize = 32;

#[derive(Default)]
struct Ended {
    order: VecDeque<(String, i64, usize)>,
    bytes: usize,
}

/// Ephemeral tasks.
pub(crate) struct Memory {
    /// Boxed: a record is about a kilobyte, and maps move what they hold.
    shards: Vec<Mutex<HashMap<String, Box<Record>>>>,
    requests: Mutex<HashMap<(String, String), String>>,
    ended: Mutex<Ended>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), requests: Mutex::default(), ended: Mutex::default() }
    }

    fn shard(&self, id: &str) -> &Mutex<HashMap<String, Box<Record>>> {
        &self.shards[shard_of(id, SHARDS)]
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.shard(id).lock().contains_key(id)
    }

    /// The task of a client's request id, with the hash of its content.
    pub(crate) fn find_request(&self, tenant: &str, request_id: &str) -> Option<Box<Record>> {
        let id = self.requests.lock().get(&(tenant.to_owned(), request_id.to_owned())).cloned()?;
        self.shard(&id).lock().get(&id).cloned()
    }

    pub(crate) fn insert(&self, record: Box<Record>) {
        if !record.hash.is_empty() {
            self.requests.lock().insert((record.tenant.clone(), record.task.request_id.clone()), record.task.id.clone());
        }
        let id = record.task.id.clone();
        self.shard(&id).lock().insert(id, record);
    }

    /// Changes a task in place; gives ids that retention has dropped since.
    pub(crate) fn change<T>(
        &self,
        id: &str,
        now_ms: i64,
        f: impl FnOnce(&mut Record) -> Result<T, AgentError>,
    ) -> Result<(T, bool, Vec<String>), AgentError> {
        let mut shard = self.shard(id).lock();
        let record = shard.get_mut(id).ok_or_else(|| gone(id))?;
        let value = f(record)?;
        let ended = is_terminal(record.task.state());
        let size = if ended { record.task.encoded_len() + 512 } else { 0 };
        drop(shard);
        let dropped = if ended { self.retain(id, size, now_ms) } else { Vec::new() };
        Ok((value, ended, dropped))
    }

    fn retain(&self, id: &str, size: usize, now_ms: i64) -> Vec<String> {
        let mut ended = self.ended.lock();
        ended.order.push_back((id.to_owned(), now_ms, size));
        ended.bytes += size;
        drop(ended);
        self.expire(now_ms)
    }

    /// Forgets ended tasks beyond the time, the number or the bytes that are kept; gives their ids.
    pub(crate) fn expire(&self, now_ms: i64) -> Vec<String> {
        let mut ended = self.ended.lock();
        let mut dropped = Vec::new();
        while let Some((_, at, _)) = ended.order.front() {
            if ended.order.len() <= KEEP_TASKS && ended.bytes <= KEEP_BYTES && now_ms - at <= KEEP_MS {
                break;
            }
            if let Some((old, _, size)) = ended.order.pop_front() {
                ended.bytes -= size;
                dropped.push(old);
            }
        }
        drop(ended);
        for old in &dropped {
            self.remove(old);
        }
        dropped
    }

    pub(crate) fn remove(&self, id: &str) -> Option<Box<Record>> {
        let record = self.shard(id).lock().remove(id)?;
        if !record.hash.is_empty() {
            self.requests.lock().remove(&(record.tenant.clone(), record.task.request_id.clone()));
        }
        Some(record)
    }

    pub(crate) fn get(&self, tenant: &str, id: &str) -> Option<Record> {
        self.look(tenant, id, Record::clone)
    }

    /// The task alone, as clients see it.
    pub(crate) fn task(&self, tenant: &str, id: &str) -> Option<pb::Task> {
        self.look(tenant, id, |r| r.task.clone())
    }

    fn look<T>(&self, tenant: &str, id: &str, f: impl FnOnce(&Record) -> T) -> Option<T> {
        self.shard(id).lock().get(id).filter(|r| r.tenant == tenant).map(|r| f(r))
    }

    pub(crate) fn by_suffix(&self, tenant: &str, suffix: &str) -> Vec<String> {
        self.each(|r| (r.tenant == tenant && r.task.id.ends_with(suffix)).then(|| r.task.id.clone()))
    }

    pub(crate) fn tasks(&self, tenant: &str) -> Vec<pb::Task> {
        self.each(|r| (r.tenant == tenant).then(|| r.task.clone()))
    }

    pub(crate) fn running(&self) -> Vec<(String, i64)> {
        self.each(|r| (r.task.state() == pb::TaskState::Running).then(|| (r.task.id.clone(), r.task.fencing_token)))
    }

    fn each<T>(&self, f: impl Fn(&Record) -> Option<T>) -> Vec<T> {
        self.shards.iter().flat_map(|s| s.lock().values().filter_map(|r| f(r)).collect::<Vec<_>>()).collect()
    }
}

fn gone(id: &str) -> AgentError {
    AgentError::new(Reason::TaskNotFound, format!("there is no task {id}"))
}
