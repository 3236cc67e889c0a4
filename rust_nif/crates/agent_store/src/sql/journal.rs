//! Rows of the table `journal`.

use agent_core::AgentError;

use super::blobs::Blobs;
use super::{Db, Param, all, one};
use crate::blob::Address;
use crate::journal::{Change, Decision, Entry, Key, Kind, Replay, VERSION, missing};

/// The entries of a task: ends of steps of its plan, or all others.
pub(super) fn entries(db: &mut dyn Db, blobs: &Blobs, task: &str, steps: bool) -> Result<Vec<Entry>, AgentError> {
    let kinds = if steps { ">=" } else { "<" };
    let sql =
        format!("SELECT kind, hash, occurrence, answer, blob FROM journal WHERE task_id = ?1 AND hash_version = ?2 AND kind {kinds} 4");
    let rows = all(db, &sql, &[task.into(), VERSION.into()], |r| {
        let kind = Kind::of(r.int(0)?);
        let hash = r.blob(1)?.try_into().unwrap_or_default();
        Ok((
            Key { question: (kind, hash), occurrence: u32::try_from(r.int(2)?).unwrap_or_default() },
            r.bytes(3)?,
            Address::of_column(r.bytes(4)?),
        ))
    })?;
    let elsewhere = rows.iter().any(|(_, _, blob)| blob.is_some());
    let tenant = if elsewhere { one(db, "SELECT tenant FROM task WHERE id = ?1", &[task.into()], |r| r.text(0))? } else { None };
    let tenant = &tenant.unwrap_or_default();
    rows.into_iter().map(|(key, answer, blob)| Ok((key, whole(db, blobs, tenant, answer, blob)?))).collect()
}

/// The answer of a row, which may stand elsewhere.
fn whole(
    db: &mut dyn Db,
    blobs: &Blobs,
    tenant: &str,
    answer: Option<Vec<u8>>,
    blob: Option<Address>,
) -> Result<Option<Vec<u8>>, AgentError> {
    match blob {
        Some(address) => blobs.get(db, tenant, &address).map(Some),
        None => Ok(answer),
    }
}

/// The columns that name an entry.
fn name<'a>(task: &'a str, key: &'a Key) -> [Param<'a>; 4] {
    [task.into(), (key.question.0 as i64).into(), Param::Blob(&key.question.1), key.occurrence.into()]
}

/// Records a change of an entry. An answer that stands already stays: the first one was given to the task. `sequence` is the last event of
/// the task when it was made, `blob` where the answer stands if that is not the row.
pub(super) fn change(
    db: &mut dyn Db,
    task: &str,
    (fence, sequence): (i64, i64),
    key: &Key,
    change: &Change,
    blob: Option<&Address>,
) -> Result<(), AgentError> {
    let [task, kind, hash, occurrence] = name(task, key);
    let answer = match change {
        Change::Withdrawn => {
            let sql = "DELETE FROM journal WHERE task_id = ?1 AND kind = ?2 AND hash = ?3 AND occurrence = ?4 AND answer IS NULL";
            return db.send(sql, &[task, kind, hash, occurrence], false);
        }
        Change::Intent => None,
        Change::Answer(_) if blob.is_some() => Some(&[][..]),
        Change::Answer(answer) => Some(answer.as_slice()),
    };
    let sql = "INSERT INTO journal VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (task_id, kind, hash, occurrence)
        DO UPDATE SET fence = excluded.fence, answer = excluded.answer, sequence = excluded.sequence, blob = excluded.blob WHERE journal.answer IS NULL";
    let stands = blob.map(|address| address.0.as_slice()).into();
    let row = [task, kind, hash, occurrence, VERSION.into(), fence.into(), answer.into(), sequence.into(), stands];
    db.send(sql, &row, false)
}

/// A tool is about to run: records the intent unless its result stands, or only somebody else can say whether it ran.
pub(super) fn tool_begin(
    db: &mut dyn Db,
    blobs: &Blobs,
    (tenant, task): (&str, &str),
    (fence, sequence): (i64, i64),
    key: &Key,
    (replay, again): (Replay, bool),
) -> Result<Decision, AgentError> {
    let sql = "SELECT fence, answer, blob FROM journal WHERE task_id = ?1 AND kind = ?2 AND hash = ?3 AND occurrence = ?4";
    let found = one(db, sql, &name(task, key), |r| Ok((r.int(0)?, r.bytes(1)?, Address::of_column(r.bytes(2)?))))?;
    match found {
        Some((_, Some(answer), None)) => return Ok(Decision::Recorded(answer)),
        Some((_, _, Some(address))) => return blobs.get(db, tenant, &address).map(Decision::Recorded),
        // Its own intent, said twice, is no doubt.
        Some((earlier, None, None)) if replay == Replay::Once && (earlier != fence || again) => return Ok(Decision::InDoubt),
        _ => {}
    }
    if one(db, SEALED, &name(task, &SEAL), |r| r.int(0))?.is_some() {
        return Err(missing(key.question.0, ""));
    }
    change(db, task, (fence, sequence), key, &Change::Intent, None)?;
    Ok(Decision::Run)
}

/// Names the entry that says that the record of a task is all that may answer it.
const SEAL: Key = Key { question: (Kind::Sealed, [0; 32]), occurrence: 0 };
const SEALED: &str = "SELECT fence FROM journal WHERE task_id = ?1 AND kind = ?2 AND hash = ?3 AND occurrence = ?4";

/// From now on a question of the task that is not recorded is refused.
pub(super) fn seal(db: &mut dyn Db, task: &str) -> Result<(), AgentError> {
    change(db, task, (0, 0), &SEAL, &Change::Answer(Vec::new()), None)
}

/// Gives a new task the answers that another one had when it had written this event; 0: all of them. Steps that failed run again; once one
/// was undone, no step counts as done and no tool as run.
pub(super) fn copy(db: &mut dyn Db, from: &str, to: &str, until_sequence: i64) -> Result<(), AgentError> {
    let until = if until_sequence == 0 { i64::MAX } else { until_sequence };
    let sql = "INSERT INTO journal SELECT ?2, kind, hash, occurrence, hash_version, 0, answer, 0, blob FROM journal
        WHERE task_id = ?1 AND answer IS NOT NULL AND sequence <= ?3
        AND kind > 0 AND (kind < 3 OR (kind < 5 AND NOT EXISTS (SELECT 1 FROM journal WHERE task_id = ?1 AND kind = 6)))";
    db.execute(sql, &[from.into(), to.into(), until.into()]).map(|_| ())
}

/// Forgets the journal of a task.
pub(super) fn delete(db: &mut dyn Db, task: &str) -> Result<(), AgentError> {
    db.execute("DELETE FROM journal WHERE task_id = ?1", &[task.into()]).map(|_| ())
}
