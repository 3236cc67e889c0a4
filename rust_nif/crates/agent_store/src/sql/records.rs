//! Records of a task: bytes under keys that its code keeps from one attempt to the next, for example the checkpoints of a graph.

use agent_core::AgentError;

use super::{Db, all};
use crate::durable::Kept;

/// Bytes of a page, unless its first record is larger.
const PAGE_BYTES: i64 = 4 * 1024 * 1024;
/// Records of a page.
const PAGE_RECORDS: i64 = 1000;

/// Writes a record, or deletes it.
pub(super) fn write(db: &mut dyn Db, id: &str, key: &str, data: Option<&Vec<u8>>) -> Result<(), AgentError> {
    match data {
        Some(data) => db.send(
            "INSERT INTO record VALUES(?1, ?2, ?3) ON CONFLICT (task_id, key) DO UPDATE SET data = excluded.data",
            &[id.into(), key.into(), data.into()],
            false,
        ),
        None => db.send("DELETE FROM record WHERE task_id = ?1 AND key = ?2", &[id.into(), key.into()], false),
    }
}

/// Records behind a key, and whether there are more.
pub(super) fn page(db: &mut dyn Db, id: &str, after: &str) -> Result<(Vec<Kept>, bool), AgentError> {
    let sql = "SELECT key, CAST(length(data) AS BIGINT) FROM record WHERE task_id = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
    let sizes = all(db, sql, &[id.into(), after.into(), (PAGE_RECORDS + 1).into()], |r| Ok((r.text(0)?, r.int(1)?)))?;
    let (mut last, mut taken, mut bytes) = (None, 0, 0);
    for (key, size) in &sizes {
        bytes += size;
        if last.is_some() && (bytes > PAGE_BYTES || taken == PAGE_RECORDS) {
            break;
        }
        taken += 1;
        last = Some(key);
    }
    let Some(last) = last else { return Ok((Vec::new(), false)) };
    let sql = "SELECT key, data FROM record WHERE task_id = ?1 AND key > ?2 AND key <= ?3 ORDER BY key";
    let found = all(db, sql, &[id.into(), after.into(), last.into()], |r| Ok((r.text(0)?, r.blob(1)?)))?;
    let more = sizes.last().is_some_and(|(key, _)| key != last);
    Ok((found, more))
}

/// Forgets those of a task.
pub(super) fn delete(db: &mut dyn Db, id: &str) -> Result<(), AgentError> {
    db.send("DELETE FROM record WHERE task_id = ?1", &[id.into()], false)
}
