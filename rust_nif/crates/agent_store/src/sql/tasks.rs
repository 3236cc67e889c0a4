//! Rows of the tables `task`, `event` and `tombstone`.

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;

use super::schema::OPEN;
use super::{Db, Param, Row, all, journal, one, records};
use crate::blob::{Address, Parts};
use crate::record::{Record, is_terminal};

const COLUMNS: &str = "tenant, lost, epoch, not_before, sequence, text_offset, hash, data, attempts, spec_blob, result_blob";
/// A request id is known for so long after the end of its task, though the task itself is forgotten, in ms.
const REQUEST_ID_MS: i64 = 24 * 60 * 60 * 1000;
/// In the column `keep_ms`, where 0 says that no label asks for anything.
const FOR_EVER: i64 = -1;

pub(super) fn record_of(row: &dyn Row) -> Result<Record, AgentError> {
    let bad =
        |e: prost::DecodeError| AgentError::new(Reason::StoreCorrupt, format!("a task's row cannot be read: {e}")).with("table", "task");
    Ok(Record {
        tenant: row.text(0)?,
        lost: row.int(1)?,
        epoch: row.int(2)?,
        not_before_ms: row.int(3)?,
        sequence: row.int(4)?,
        text_offset: row.int(5)?,
        hash: row.blob(6)?,
        task: pb::Task::decode(row.blob(7)?.as_slice()).map_err(bad)?,
        attempts: pb::ListAttemptsResponse::decode(row.blob(8)?.as_slice()).map_err(bad)?.attempts,
        parts: Parts { spec: Address::of_column(row.bytes(9)?), result: Address::of_column(row.bytes(10)?) },
    })
}

/// A select of whole tasks with a condition.
pub(super) fn select(condition: &str) -> String {
    format!("SELECT {COLUMNS} FROM task WHERE {condition}")
}

/// A select of open tasks, by the index of these.
pub(super) fn select_open(condition: &str) -> String {
    select(&format!("{OPEN} AND {condition}"))
}

/// The task as its row holds it.
fn row_of(r: &mut Record) -> Vec<u8> {
    let kept = r.parts.row(&mut r.task);
    let row = r.task.encode_to_vec();
    kept.back(&mut r.task);
    row
}

fn column(address: Option<&Address>) -> Param<'_> {
    address.map(|address| address.0.as_slice()).into()
}

fn attempts_blob(r: &Record) -> Vec<u8> {
    pb::ListAttemptsResponse { attempts: r.attempts.clone(), next_page_token: String::new() }.encode_to_vec()
}

pub(super) fn load(db: &mut dyn Db, id: &str) -> Result<Option<Record>, AgentError> {
    one(db, &select("id = ?1"), &[id.into()], record_of)
}

/// What a client's request id stands for.
pub(super) enum Known {
    /// A task.
    Task(Box<Record>),
    /// One that was deleted: its id and the hash of its content.
    Deleted(String, Vec<u8>),
}

pub(super) fn find_request(db: &mut dyn Db, tenant: &str, request_id: &str) -> Result<Option<Known>, AgentError> {
    let ours = [tenant.into(), request_id.into()];
    if let Some(record) = one(db, &select("tenant = ?1 AND request_id = ?2"), &ours, record_of)? {
        return Ok(Some(Known::Task(Box::new(record))));
    }
    let sql = "SELECT task_id, hash FROM tombstone WHERE tenant = ?1 AND request_id = ?2";
    one(db, sql, &ours, |r| Ok(Known::Deleted(r.text(0)?, r.blob(1)?)))
}

pub(super) fn insert(db: &mut dyn Db, r: &mut Record, events: &[pb::TaskEvent]) -> Result<(), AgentError> {
    let created = r.task.create_time.as_ref().map_or(0, agent_core::header::timestamp_ms);
    let data = row_of(r);
    let request = (!r.hash.is_empty()).then_some(&r.task.request_id);
    db.send(
        "INSERT INTO task VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,0,0,0,?16,NULL)",
        &[
            (&r.task.id).into(),
            (&r.tenant).into(),
            request.into(),
            r.task.state.into(),
            r.task.fencing_token.into(),
            r.epoch.into(),
            r.not_before_ms.into(),
            created.into(),
            r.lost.into(),
            r.sequence.into(),
            r.text_offset.into(),
            (&r.hash).into(),
            agent_core::hash::VERSION.into(),
            (&data).into(),
            (&attempts_blob(r)).into(),
            column(r.parts.spec.as_ref()),
        ],
        true,
    )?;
    add_events(db, &r.task.id, events)
}

/// Writes a task that has this fence, which the statement checks once more. Events alone leave the blobs as they are: a task that streams
/// does not rewrite itself. `kept_ms`: one that ends is kept for so long by its labels; 0: for ever.
pub(super) fn update(db: &mut dyn Db, r: &mut Record, old_fence: i64, kept_ms: Option<i64>, numbers_only: bool) -> Result<(), AgentError> {
    if numbers_only {
        return db.send(
            "UPDATE task SET sequence = ?3, text_offset = ?4 WHERE id = ?1 AND fence = ?2",
            &[(&r.task.id).into(), old_fence.into(), r.sequence.into(), r.text_offset.into()],
            true,
        );
    }
    let data = row_of(r);
    db.send(
        "UPDATE task SET state = ?3, fence = ?4, epoch = ?5, not_before = ?6, lost = ?7, sequence = ?8, text_offset = ?9, data = ?10,
            attempts = ?11, end_ms = ?12, asked = ?13, keep_ms = ?14, result_blob = ?15 WHERE id = ?1 AND fence = ?2",
        &[
            (&r.task.id).into(),
            old_fence.into(),
            r.task.state.into(),
            r.task.fencing_token.into(),
            r.epoch.into(),
            r.not_before_ms.into(),
            r.lost.into(),
            r.sequence.into(),
            r.text_offset.into(),
            (&data).into(),
            (&attempts_blob(r)).into(),
            end_ms(r).into(),
            i64::from(r.task.cancel_requested && !is_terminal(r.task.state())).into(),
            kept_ms.map_or(0, |ms| if ms == 0 { FOR_EVER } else { ms }).into(),
            column(r.parts.result.as_ref()),
        ],
        true,
    )
}

fn end_ms(r: &Record) -> i64 {
    r.task.end_time.as_ref().map_or(0, agent_core::header::timestamp_ms)
}

pub(super) fn add_events(db: &mut dyn Db, id: &str, events: &[pb::TaskEvent]) -> Result<(), AgentError> {
    for event in events {
        db.send("INSERT INTO event VALUES(?1, ?2, ?3)", &[id.into(), event.sequence.into(), (&event.encode_to_vec()).into()], true)?;
    }
    Ok(())
}

/// Forgets a task with all that belongs to it. Its request id stays known: for ever would be too long, a day after its end is promised.
pub(super) fn forget(db: &mut dyn Db, r: &Record, now_ms: i64) -> Result<(), AgentError> {
    let id = &r.task.id;
    let until = end_ms(r) + REQUEST_ID_MS;
    if !r.hash.is_empty() && until > now_ms {
        db.execute(
            "INSERT INTO tombstone VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT (tenant, request_id) DO NOTHING",
            &[(&r.tenant).into(), (&r.task.request_id).into(), id.into(), (&r.hash).into(), until.into()],
        )?;
    }
    db.execute("DELETE FROM event WHERE task_id = ?1", &[id.into()])?;
    journal::delete(db, id)?;
    records::delete(db, id)?;
    db.execute("DELETE FROM task WHERE id = ?1", &[id.into()]).map(|_| ())
}

/// Forgets request ids whose time is over.
pub(super) fn forget_tombstones(db: &mut dyn Db, now_ms: i64) -> Result<(), AgentError> {
    db.execute("DELETE FROM tombstone WHERE until_ms <= ?1", &[now_ms.into()]).map(|_| ())
}

/// The oldest of the ended tasks whose time is over: those that succeeded before the first time, others before the second; where labels
/// have said for how long, that counts.
pub(super) fn old(db: &mut dyn Db, succeeded_before: i64, other_before: i64, now_ms: i64, limit: i64) -> Result<Vec<Record>, AgentError> {
    let condition = "end_ms > 0 AND ((keep_ms = 0 AND state = 4 AND end_ms < ?1) OR (keep_ms = 0 AND state <> 4 AND end_ms < ?2)
        OR (keep_ms > 0 AND end_ms < ?3 - keep_ms)) ORDER BY end_ms LIMIT ?4";
    all(db, &select(condition), &[succeeded_before.into(), other_before.into(), now_ms.into(), limit.into()], record_of)
}
