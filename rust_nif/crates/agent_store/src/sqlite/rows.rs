//! Rows of the table `task`.

use agent_proto::agents::v1 as pb;
use prost::Message;
use rusqlite::{Connection, OptionalExtension};

use crate::record::Record;

pub(super) const SELECT: &str = "SELECT tenant, lost, epoch, not_before, sequence, text_offset, hash, data, attempts FROM task";

pub(super) fn record_of(row: &rusqlite::Row<'_>) -> Result<Record, rusqlite::Error> {
    let blob = |i: usize| -> Result<Vec<u8>, rusqlite::Error> { Ok(row.get_ref(i)?.as_blob()?.to_vec()) };
    let bad = |e: prost::DecodeError| rusqlite::Error::FromSqlConversionFailure(7, rusqlite::types::Type::Blob, Box::new(e));
    Ok(Record {
        tenant: row.get(0)?,
        lost: row.get(1)?,
        epoch: row.get(2)?,
        not_before_ms: row.get(3)?,
        sequence: row.get(4)?,
        text_offset: row.get(5)?,
        hash: row.get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default(),
        task: pb::Task::decode(blob(7)?.as_slice()).map_err(bad)?,
        attempts: pb::ListAttemptsResponse::decode(blob(8)?.as_slice()).map_err(bad)?.attempts,
    })
}

pub(super) fn attempts_blob(r: &Record) -> Vec<u8> {
    pb::ListAttemptsResponse { attempts: r.attempts.clone(), next_page_token: String::new() }.encode_to_vec()
}

pub(super) fn load(db: &Connection, id: &str) -> Result<Option<Record>, rusqlite::Error> {
    db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?.query_row([id], record_of).optional()
}
