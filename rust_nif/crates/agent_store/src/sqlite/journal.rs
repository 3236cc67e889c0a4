//! Rows of the table `journal`.

use rusqlite::{Connection, OptionalExtension, params};

use crate::journal::{Change, Decision, Entry, Key, Kind, Replay, VERSION};

/// Every entry of a task.
pub(super) fn entries(db: &Connection, task: &str) -> Result<Vec<Entry>, rusqlite::Error> {
    let mut s = db.prepare_cached("SELECT kind, hash, occurrence, answer FROM journal WHERE task_id = ?1 AND hash_version = ?2")?;
    let rows = s.query_map(params![task, VERSION], |r| {
        let kind = match r.get::<_, i64>(0)? {
            1 => Kind::Chat,
            2 => Kind::Embed,
            _ => Kind::Tool,
        };
        Ok((Key { question: (kind, r.get(1)?), occurrence: r.get(2)? }, r.get(3)?))
    })?;
    rows.collect()
}

/// Records a change of an entry. An answer that stands already stays: the first one was given to the task.
pub(super) fn change(db: &Connection, task: &str, fence: i64, key: &Key, change: &Change) -> Result<(), rusqlite::Error> {
    let (kind, hash) = (key.question.0 as i64, &key.question.1[..]);
    let answer = match change {
        Change::Withdrawn => {
            let sql = "DELETE FROM journal WHERE task_id = ?1 AND kind = ?2 AND hash = ?3 AND occurrence = ?4 AND answer IS NULL";
            return db.prepare_cached(sql)?.execute(params![task, kind, hash, key.occurrence]).map(|_| ());
        }
        Change::Intent => None,
        Change::Answer(answer) => Some(answer),
    };
    let sql = "INSERT INTO journal VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT DO UPDATE SET fence = excluded.fence, answer = excluded.answer WHERE journal.answer IS NULL";
    db.prepare_cached(sql)?.execute(params![task, kind, hash, key.occurrence, VERSION, fence, answer]).map(|_| ())
}

/// A tool is about to run: records the intent unless its result stands, or only somebody else can say whether it ran.
pub(super) fn tool_begin(db: &Connection, task: &str, fence: i64, key: &Key, replay: Replay) -> Result<Decision, rusqlite::Error> {
    let sql = "SELECT fence, answer FROM journal WHERE task_id = ?1 AND kind = ?2 AND hash = ?3 AND occurrence = ?4";
    let found = db
        .prepare_cached(sql)?
        .query_row(params![task, key.question.0 as i64, &key.question.1[..], key.occurrence], |r| {
            Ok((r.get::<_, i64>(0)?, r.get::<_, Option<Vec<u8>>>(1)?))
        })
        .optional()?;
    match found {
        Some((_, Some(answer))) => return Ok(Decision::Recorded(answer)),
        // Its own intent, said twice, is no doubt.
        Some((earlier, None)) if replay == Replay::Once && earlier != fence => return Ok(Decision::InDoubt),
        _ => {}
    }
    change(db, task, fence, key, &Change::Intent)?;
    Ok(Decision::Run)
}

/// Forgets the journal of a task.
pub(super) fn delete(db: &Connection, task: &str) -> Result<(), rusqlite::Error> {
    db.prepare_cached("DELETE FROM journal WHERE task_id = ?1")?.execute([task]).map(|_| ())
}
