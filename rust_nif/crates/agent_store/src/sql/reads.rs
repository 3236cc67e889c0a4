//! Reads of tasks, events, journals and agents.

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use prost::Message;

use super::schema::OPEN;
use super::tasks::{record_of, select, select_open};
use super::{Db, all, one};
use crate::durable::AgentRows;
use crate::order::{Order, Place};
use crate::record::Record;

/// Waiting tasks that are due, given at once.
const DUE_TASKS: i64 = 1000;

pub(crate) fn due_sql() -> String {
    format!("SELECT id FROM task WHERE {OPEN} AND state = 3 AND not_before > 0 AND not_before <= ?1 ORDER BY not_before LIMIT {DUE_TASKS}")
}

pub(super) fn get(db: &mut dyn Db, tenant: &str, id: &str) -> Result<Option<Record>, AgentError> {
    Ok(super::tasks::load(db, id)?.filter(|r| r.tenant == tenant))
}

/// Ids of a tenant that end so, the newest first; at most 10. Read from the narrow index of ids: one of suffixes would be written at a random
/// place by every task, which costs each commit a page.
pub(super) fn by_suffix(db: &mut dyn Db, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError> {
    let sql = "SELECT id FROM task WHERE tenant = ?1 AND id LIKE ?2 ORDER BY id DESC LIMIT 10";
    all(db, sql, &[tenant.into(), (&format!("%{suffix}")).into()], |r| r.text(0))
}

/// Whether a task was deleted and its request id is still known.
pub(super) fn was_deleted(db: &mut dyn Db, tenant: &str, id: &str) -> Result<bool, AgentError> {
    let sql = "SELECT 1 FROM tombstone WHERE tenant = ?1 AND task_id = ?2 LIMIT 1";
    Ok(one(db, sql, &[tenant.into(), id.into()], |_| Ok(()))?.is_some())
}

/// Up to `limit` tasks of a tenant beyond a place.
pub(super) fn page(db: &mut dyn Db, tenant: &str, order: Order, beyond: &Place, limit: usize) -> Result<Vec<Record>, AgentError> {
    let (sign, direction) = if order.newest_first { ("<", "DESC") } else { (">", "ASC") };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX).into();
    let (end_ms, id) = match beyond.id.as_str() {
        "" if order.newest_first => (i64::MAX, "~"),
        id => (beyond.end_ms, id),
    };
    if !order.by_end {
        let sql = select(&format!("tenant = ?1 AND id {sign} ?2 ORDER BY id {direction} LIMIT ?3"));
        return all(db, &sql, &[tenant.into(), id.into(), limit], record_of);
    }
    // The second condition is what the index of ends is searched by.
    let sql = select(&format!(
        "tenant = ?1 AND end_ms > 0 AND end_ms {sign}= ?2 AND (end_ms, id) {sign} (?2, ?3)
        ORDER BY end_ms {direction}, id {direction} LIMIT ?4"
    ));
    all(db, &sql, &[tenant.into(), end_ms.into(), id.into(), limit], record_of)
}

pub(super) fn events(db: &mut dyn Db, id: &str, after: i64, limit: usize) -> Result<Vec<pb::TaskEvent>, AgentError> {
    let sql = "SELECT data FROM event WHERE task_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
    all(db, sql, &[id.into(), after.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()], |r| {
        Ok(pb::TaskEvent::decode(r.blob(0)?.as_slice()).unwrap_or_default())
    })
}

pub(super) fn running(db: &mut dyn Db, epoch: i64) -> Result<Vec<(String, i64)>, AgentError> {
    let sql = format!("SELECT id, fence FROM task WHERE {OPEN} AND state = 2 AND epoch = ?1");
    all(db, &sql, &[epoch.into()], |r| Ok((r.text(0)?, r.int(1)?)))
}

/// Queued tasks behind an id, oldest first.
pub(super) fn queued(db: &mut dyn Db, after: &str, limit: usize) -> Result<Vec<Record>, AgentError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    all(db, &select_open("state = 1 AND id > ?1 ORDER BY id LIMIT ?2"), &[after.into(), limit.into()], record_of)
}

pub(super) fn due(db: &mut dyn Db, now_ms: i64) -> Result<Vec<String>, AgentError> {
    all(db, &due_sql(), &[now_ms.into()], |r| r.text(0))
}

pub(super) fn agents(db: &mut dyn Db) -> Result<AgentRows, AgentError> {
    all(db, "SELECT tenant, id, data FROM agent", &[], |r| Ok((r.text(0)?, r.text(1)?, r.blob(2)?)))
}
