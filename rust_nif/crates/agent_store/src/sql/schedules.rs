//! Rows of the table `schedule`.

use agent_core::header::timestamp;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;
use sha2::{Digest, Sha256};

use super::memory::{answered, keep_answer};
use super::{Db, Row, all, one};
use crate::op::ScheduleOp;
use crate::schedule::{Due, State, due, next_after, shown};

/// Schedules that are due, given at once.
const DUE: i64 = 100;

const COLUMNS: &str = "SELECT tenant, data, state FROM schedule";

fn row_of(row: &dyn Row) -> Result<(String, pb::Schedule, State), AgentError> {
    let bad = || AgentError::new(Reason::StoreCorrupt, "a schedule's row cannot be read").with("table", "schedule");
    let schedule = pb::Schedule::decode(row.blob(1)?.as_slice()).map_err(|_| bad())?;
    Ok((row.text(0)?, schedule, serde_json::from_slice(&row.blob(2)?).map_err(|_| bad())?))
}

fn load(db: &mut dyn Db, tenant: &str, id: &str) -> Result<Option<(pb::Schedule, State)>, AgentError> {
    let found = one(db, &format!("{COLUMNS} WHERE tenant = ?1 AND id = ?2"), &[tenant.into(), id.into()], row_of)?;
    Ok(found.map(|(_, schedule, state)| (schedule, state)))
}

fn not_found(id: &str) -> AgentError {
    AgentError::new(Reason::ScheduleNotFound, format!("there is no schedule \"{}\"", id.chars().take(80).collect::<String>()))
}

pub(super) fn get(db: &mut dyn Db, tenant: &str, id: &str) -> Result<pb::Schedule, AgentError> {
    let (schedule, state) = load(db, tenant, id)?.ok_or_else(|| not_found(id))?;
    Ok(shown(schedule, &state))
}

/// Schedules of a tenant behind an id.
pub(super) fn list(db: &mut dyn Db, tenant: &str, after: &str, limit: i64) -> Result<Vec<pb::Schedule>, AgentError> {
    let sql = format!("{COLUMNS} WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3");
    let found = all(db, &sql, &[tenant.into(), after.into(), limit.into()], row_of)?;
    Ok(found.into_iter().map(|(_, schedule, state)| shown(schedule, &state)).collect())
}

/// Schedules whose time has come, longest overdue first.
pub(super) fn due_now(db: &mut dyn Db, now_ms: i64) -> Result<Vec<Due>, AgentError> {
    let sql = format!("{COLUMNS} WHERE next_ms > 0 AND next_ms <= ?1 ORDER BY next_ms LIMIT ?2");
    let found = all(db, &sql, &[now_ms.into(), DUE.into()], row_of)?;
    found
        .into_iter()
        .map(|(tenant, schedule, state)| {
            // A time in the future: everything before it was missed by too much. The owner says so, and the row moves on.
            let tick_ms = due(&schedule, state.next_ms, now_ms)?.unwrap_or(state.next_ms);
            Ok(Due { tenant, schedule, tick_ms, last_task: state.last_task })
        })
        .collect()
}

/// Writes; gives the schedule as it is then, or as it was deleted.
pub(super) fn write(db: &mut dyn Db, tenant: &str, op: ScheduleOp, now_ms: i64) -> Result<pb::Schedule, AgentError> {
    match op {
        ScheduleOp::Create { schedule, request_id } => {
            let hash = Sha256::digest(schedule.encode_to_vec());
            if let Some(answer) = answered(db, tenant, &request_id, &hash)? {
                return get(db, tenant, &String::from_utf8_lossy(&answer));
            }
            let made = create(db, tenant, *schedule, now_ms)?;
            keep_answer(db, tenant, &request_id, &hash, made.id.as_bytes(), now_ms)?;
            Ok(made)
        }
        ScheduleOp::Delete { id } => {
            let (schedule, state) = load(db, tenant, &id)?.ok_or_else(|| not_found(&id))?;
            db.execute("DELETE FROM schedule WHERE tenant = ?1 AND id = ?2", &[tenant.into(), (&id).into()])?;
            Ok(shown(schedule, &state))
        }
        ScheduleOp::Pause { id } => change(db, tenant, &id, now_ms, |_, state| {
            state.paused = true;
            Ok(())
        }),
        ScheduleOp::Resume { id } => change(db, tenant, &id, now_ms, |schedule, state| {
            // What fell into the pause was not missed: it was not wanted.
            if std::mem::take(&mut state.paused) && state.next_ms <= now_ms {
                state.next_ms = next_after(schedule, now_ms)?.unwrap_or(0);
            }
            Ok(())
        }),
        ScheduleOp::Fired { id, tick_ms, task_id } => change(db, tenant, &id, now_ms, |schedule, state| {
            // Said twice after a crash between the submit and this.
            if state.next_ms > tick_ms {
                return Ok(());
            }
            match task_id {
                Some(task) => {
                    state.last_task = task;
                    state.fired += 1;
                }
                None => state.skipped += 1,
            }
            state.next_ms = next_after(schedule, tick_ms)?.unwrap_or(0);
            Ok(())
        }),
    }
}

fn create(db: &mut dyn Db, tenant: &str, mut schedule: pb::Schedule, now_ms: i64) -> Result<pb::Schedule, AgentError> {
    if let Some((old, state)) = load(db, tenant, &schedule.id)? {
        let same = pb::Schedule { create_time: old.create_time, etag: old.etag.clone(), ..schedule.clone() } == old;
        if same {
            return Ok(shown(old, &state));
        }
        let taken = format!("a schedule \"{}\" exists already and differs; delete it first, or choose another id", schedule.id);
        return Err(AgentError::new(Reason::RequestIdReused, taken).with("field", "schedule_id"));
    }
    schedule.create_time = Some(timestamp(now_ms));
    schedule.etag = "1".to_owned();
    let Some(next_ms) = next_after(&schedule, now_ms)? else {
        return Err(AgentError::field("schedule.cron", "has no time in the future"));
    };
    let state = State { next_ms, ..Default::default() };
    db.execute(
        "INSERT INTO schedule VALUES(?1, ?2, ?3, 1, ?4, ?5)",
        &[tenant.into(), (&schedule.id).into(), next_ms.into(), (&schedule.encode_to_vec()).into(), (&state_bytes(&state)).into()],
    )?;
    Ok(shown(schedule, &state))
}

fn state_bytes(state: &State) -> Vec<u8> {
    serde_json::to_vec(state).unwrap_or_default()
}

fn change(
    db: &mut dyn Db,
    tenant: &str,
    id: &str,
    now_ms: i64,
    f: impl FnOnce(&pb::Schedule, &mut State) -> Result<(), AgentError>,
) -> Result<pb::Schedule, AgentError> {
    let (mut schedule, mut state) = load(db, tenant, id)?.ok_or_else(|| not_found(id))?;
    f(&schedule, &mut state)?;
    let number = schedule.etag.parse::<i64>().unwrap_or(now_ms) + 1;
    schedule.etag = number.to_string();
    let next = if state.paused { 0 } else { state.next_ms };
    db.execute(
        "UPDATE schedule SET next_ms = ?3, etag = ?4, data = ?5, state = ?6 WHERE tenant = ?1 AND id = ?2",
        &[tenant.into(), id.into(), next.into(), number.into(), (&schedule.encode_to_vec()).into(), (&state_bytes(&state)).into()],
    )?;
    Ok(shown(schedule, &state))
}
