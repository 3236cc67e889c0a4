//! Read connections, beside the writer and never behind it.

use std::path::PathBuf;

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use prost::Message;
use rusqlite::{Connection, params};

use super::rows::{SELECT, load, record_of};
use super::{OPEN, unavailable};
use crate::durable::AgentRows;
use crate::journal::Entry;
use crate::record::Record;

pub(super) fn due_sql() -> String {
    format!("SELECT id FROM task WHERE {OPEN} AND state = 3 AND not_before > 0 AND not_before <= ?1 ORDER BY not_before LIMIT 1000")
}

/// Read connections, opened as needed.
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>) -> Result<T, AgentError> {
        let idle = self.idle.lock().pop();
        let db = match idle {
            Some(db) => db,
            None => Connection::open_with_flags(
                &self.path,
                rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )
            .map_err(|e| unavailable(&e))?,
        };
        let result = f(&db).map_err(|e| unavailable(&e));
        let mut idle = self.idle.lock();
        if idle.len() < 8 {
            idle.push(db);
        }
        result
    }

    pub(crate) fn get(&self, tenant: &str, id: &str) -> Result<Option<Record>, AgentError> {
        Ok(self.with(|db| load(db, id))?.filter(|r| r.tenant == tenant))
    }

    /// Ids of a tenant that end so; at most 10.
    pub(crate) fn by_suffix(&self, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError> {
        let low: String = suffix.chars().rev().collect();
        let high = format!("{low}\u{10FFFF}");
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT id FROM task WHERE tenant = ?1 AND rid >= ?2 AND rid < ?3 LIMIT 10")?;
            let rows = s.query_map(params![tenant, low, high], |r| r.get(0))?;
            rows.collect()
        })
    }

    /// Up to `limit` tasks of a tenant beyond an id, newest or oldest first.
    pub(crate) fn page(&self, tenant: &str, beyond: &str, newest_first: bool, limit: usize) -> Result<Vec<pb::Task>, AgentError> {
        let (sign, order) = if newest_first { ("<", "DESC") } else { (">", "ASC") };
        let beyond = if beyond.is_empty() && newest_first { "~" } else { beyond };
        self.with(|db| {
            let mut s = db.prepare_cached(&format!("{SELECT} WHERE tenant = ?1 AND id {sign} ?2 ORDER BY id {order} LIMIT ?3"))?;
            let rows = s.query_map(params![tenant, beyond, limit.cast_signed()], |r| record_of(r).map(|r| r.task))?;
            rows.collect()
        })
    }

    pub(crate) fn events(&self, id: &str, after: i64, limit: usize) -> Result<Vec<pb::TaskEvent>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT data FROM event WHERE task_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3")?;
            let rows = s.query_map(params![id, after, limit.cast_signed()], |r| r.get::<_, Vec<u8>>(0))?;
            rows.map(|b| b.map(|b| pb::TaskEvent::decode(b.as_slice()).unwrap_or_default())).collect()
        })
    }

    pub(crate) fn running(&self, epoch: i64) -> Result<Vec<(String, i64)>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached(&format!("SELECT id, fence FROM task WHERE {OPEN} AND state = 2 AND epoch = ?1"))?;
            let rows = s.query_map([epoch], |r| Ok((r.get(0)?, r.get(1)?)))?;
            rows.collect()
        })
    }

    pub(crate) fn due(&self, now: i64) -> Result<Vec<String>, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached(&due_sql())?;
            let rows = s.query_map([now], |r| r.get(0))?;
            rows.collect()
        })
    }

    pub(crate) fn journal(&self, id: &str) -> Result<Vec<Entry>, AgentError> {
        self.with(|db| super::journal::entries(db, id))
    }

    pub(crate) fn agents(&self) -> Result<AgentRows, AgentError> {
        self.with(|db| {
            let mut s = db.prepare_cached("SELECT tenant, id, data FROM agent")?;
            let rows = s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            rows.collect()
        })
    }
}
