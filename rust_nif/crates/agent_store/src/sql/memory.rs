//! Tables of the memory of agents: values with versions, conversations, and answers to repeated requests.

use agent_core::header::{duration_ms, timestamp, timestamp_ms};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use pb::memory_operation::Operation;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{Db, Row, all, one};
use crate::op::{MemoryAnswer, MemoryOp};

/// Earlier versions of a value that are kept.
const VERSIONS: i64 = 20;
/// An answer to a request id is remembered for so long, in ms.
const ANSWERED_MS: i64 = 24 * 60 * 60 * 1000;

/// Whose and which value.
#[derive(Clone, Copy)]
struct Place<'a> {
    tenant: &'a str,
    namespace: &'a str,
    key: &'a str,
}

/// Writes; a repeated request gets its first answer.
pub(super) fn write(db: &mut dyn Db, tenant: &str, op: &MemoryOp, now_ms: i64) -> Result<MemoryAnswer, AgentError> {
    let (request_id, hash) = match op {
        MemoryOp::Put(r) => (&r.request_id, Sha256::digest(r.encode_to_vec())),
        MemoryOp::Batch(r) => (&r.request_id, Sha256::digest(r.encode_to_vec())),
        MemoryOp::Append(r) => (&r.request_id, Sha256::digest(r.encode_to_vec())),
        MemoryOp::Delete(_) => return apply(db, tenant, op, now_ms),
    };
    if let Some(answer) = answered(db, tenant, request_id, &hash)? {
        return MemoryAnswer::decode(&answer);
    }
    let answer = apply(db, tenant, op, now_ms)?;
    keep_answer(db, tenant, request_id, &hash, &answer.encode(), now_ms)?;
    Ok(answer)
}

/// The kept answer to a repeated request; None: it is new, or has no id.
pub(super) fn answered(db: &mut dyn Db, tenant: &str, request_id: &str, hash: &[u8]) -> Result<Option<Vec<u8>>, AgentError> {
    if request_id.is_empty() {
        return Ok(None);
    }
    let known = "SELECT hash, answer FROM answered WHERE tenant = ?1 AND request_id = ?2";
    match one(db, known, &[tenant.into(), request_id.into()], |r| Ok((r.blob(0)?, r.blob(1)?)))? {
        Some((old, _)) if old != hash => {
            Err(AgentError::new(Reason::RequestIdReused, "the request_id belongs to another write").with("field", "request_id"))
        }
        known => Ok(known.map(|(_, answer)| answer)),
    }
}

/// Keeps an answer for a repeated request, if the request has an id.
pub(super) fn keep_answer(
    db: &mut dyn Db,
    tenant: &str,
    request_id: &str,
    hash: &[u8],
    answer: &[u8],
    now_ms: i64,
) -> Result<(), AgentError> {
    if request_id.is_empty() {
        return Ok(());
    }
    let row = [tenant.into(), request_id.into(), hash.into(), answer.into(), (now_ms + ANSWERED_MS).into()];
    db.execute("INSERT INTO answered VALUES(?1, ?2, ?3, ?4, ?5)", &row).map(|_| ())
}

fn apply(db: &mut dyn Db, tenant: &str, op: &MemoryOp, now_ms: i64) -> Result<MemoryAnswer, AgentError> {
    match op {
        MemoryOp::Put(r) => Ok(MemoryAnswer::Item(Box::new(put(db, Place { tenant, namespace: &r.namespace, key: &r.key }, r, now_ms)?))),
        MemoryOp::Delete(r) => {
            let place = Place { tenant, namespace: &r.namespace, key: &r.key };
            Ok(MemoryAnswer::Numbers(vec![delete(db, place, r.expected_version, now_ms)?]))
        }
        MemoryOp::Batch(r) => {
            let mut versions = Vec::with_capacity(r.operations.len());
            for operation in &r.operations {
                let place = |key| Place { tenant, namespace: &r.namespace, key };
                versions.push(match &operation.operation {
                    Some(Operation::Put(p)) => put(db, place(&p.key), p, now_ms)?.version,
                    Some(Operation::Delete(d)) => delete(db, place(&d.key), d.expected_version, now_ms)?,
                    None => return Err(AgentError::field("operations", "an operation is neither put nor delete")),
                });
            }
            Ok(MemoryAnswer::Numbers(versions))
        }
        MemoryOp::Append(r) => Ok(MemoryAnswer::Numbers(vec![append(db, tenant, &r.namespace, &r.conversation_id, &r.messages)?])),
    }
}

const ITEM: &str = "SELECT namespace, key, version, create_ms, update_ms, expire_ms, data FROM memory";

fn item_of(row: &dyn Row) -> Result<pb::MemoryItem, AgentError> {
    let expire = row.int(5)?;
    Ok(pb::MemoryItem {
        namespace: row.text(0)?,
        key: row.text(1)?,
        version: row.int(2)?,
        create_time: Some(timestamp(row.int(3)?)),
        update_time: Some(timestamp(row.int(4)?)),
        expire_time: (expire > 0).then(|| timestamp(expire)),
        value: prost_types::Value::decode(row.blob(6)?.as_slice()).ok(),
    })
}

/// A value that has not expired.
pub(super) fn get(db: &mut dyn Db, tenant: &str, namespace: &str, key: &str, now_ms: i64) -> Result<Option<pb::MemoryItem>, AgentError> {
    let sql = format!("{ITEM} WHERE tenant = ?1 AND namespace = ?2 AND key = ?3 AND (expire_ms = 0 OR expire_ms > ?4)");
    one(db, &sql, &[tenant.into(), namespace.into(), key.into(), now_ms.into()], item_of)
}

/// Refuses unless the value has the version that the writer saw. Gives the version that the next one follows.
fn expect(db: &mut dyn Db, at: Place<'_>, expected: Option<i64>, now: Option<&pb::MemoryItem>) -> Result<i64, AgentError> {
    let current = now.map_or(0, |item| item.version);
    if expected.is_some_and(|expected| expected != current) {
        let mut error = AgentError::new(
            Reason::VersionConflict,
            format!("\"{}\" has version {current}, not {}; read it again", at.key, expected.unwrap_or_default()),
        );
        error = error.with("current_version", current).with("key", at.key);
        return Err(error);
    }
    let sql = "SELECT coalesce(max(version), 0) FROM memory_version WHERE tenant = ?1 AND namespace = ?2 AND key = ?3";
    let last = one(db, sql, &[at.tenant.into(), at.namespace.into(), at.key.into()], |r| r.int(0))?;
    Ok(last.unwrap_or(0))
}

/// The next version of a value, kept also when the value itself is gone: an older writer must not take a new value for its own.
fn version(db: &mut dyn Db, at: Place<'_>, number: i64, data: Option<&Vec<u8>>, now_ms: i64) -> Result<(), AgentError> {
    let [tenant, namespace, key] = [at.tenant.into(), at.namespace.into(), at.key.into()];
    db.execute(
        "INSERT INTO memory_version VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
        &[tenant, namespace, key, number.into(), now_ms.into(), data.into()],
    )?;
    let sql = "DELETE FROM memory_version WHERE tenant = ?1 AND namespace = ?2 AND key = ?3 AND version <= ?4";
    db.execute(sql, &[tenant, namespace, key, (number - VERSIONS).into()]).map(|_| ())
}

fn put(db: &mut dyn Db, at: Place<'_>, r: &pb::PutMemoryRequest, now_ms: i64) -> Result<pb::MemoryItem, AgentError> {
    let current = get(db, at.tenant, at.namespace, at.key, now_ms)?;
    let number = expect(db, at, r.expected_version, current.as_ref())? + 1;
    let create = current.and_then(|item| item.create_time).map_or(now_ms, |t| timestamp_ms(&t));
    let expire = r.ttl.as_ref().map_or(0, |ttl| now_ms + duration_ms(ttl).max(1));
    let data = r.value.clone().unwrap_or_default().encode_to_vec();
    version(db, at, number, Some(&data), now_ms)?;
    db.execute(
        "INSERT INTO memory VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (tenant, namespace, key) DO UPDATE SET
            version = excluded.version, create_ms = excluded.create_ms, update_ms = excluded.update_ms, expire_ms = excluded.expire_ms,
            data = excluded.data",
        &[at.tenant.into(), at.namespace.into(), at.key.into(), number.into(), create.into(), now_ms.into(), expire.into(), (&data).into()],
    )?;
    Ok(pb::MemoryItem {
        namespace: at.namespace.to_owned(),
        key: at.key.to_owned(),
        value: r.value.clone(),
        version: number,
        create_time: Some(timestamp(create)),
        update_time: Some(timestamp(now_ms)),
        expire_time: (expire > 0).then(|| timestamp(expire)),
    })
}

fn delete(db: &mut dyn Db, at: Place<'_>, expected: Option<i64>, now_ms: i64) -> Result<i64, AgentError> {
    let Some(current) = get(db, at.tenant, at.namespace, at.key, now_ms)? else {
        return Err(crate::durable::no_value(at.key));
    };
    let number = expect(db, at, expected, Some(&current))? + 1;
    version(db, at, number, None, now_ms)?;
    let sql = "DELETE FROM memory WHERE tenant = ?1 AND namespace = ?2 AND key = ?3";
    db.execute(sql, &[at.tenant.into(), at.namespace.into(), at.key.into()])?;
    Ok(current.version)
}

/// Forgets values and answers whose time is over. Of a value's versions the numbers stay, so that none is given twice.
pub(super) fn expire(db: &mut dyn Db, now_ms: i64) -> Result<(), AgentError> {
    let over = "SELECT tenant, namespace, key FROM memory WHERE expire_ms > 0 AND expire_ms <= ?1";
    for (tenant, namespace, key) in all(db, over, &[now_ms.into()], |r| Ok((r.text(0)?, r.text(1)?, r.text(2)?)))? {
        let place = [(&tenant).into(), (&namespace).into(), (&key).into()];
        db.execute("UPDATE memory_version SET data = NULL WHERE tenant = ?1 AND namespace = ?2 AND key = ?3", &place)?;
        db.execute("DELETE FROM memory WHERE tenant = ?1 AND namespace = ?2 AND key = ?3", &place)?;
    }
    db.execute("DELETE FROM answered WHERE until_ms <= ?1", &[now_ms.into()]).map(|_| ())
}

/// Values of a namespace whose keys begin so, behind a key.
pub(super) fn list(
    db: &mut dyn Db,
    tenant: &str,
    r: &pb::ListMemoriesRequest,
    limit: i64,
    now_ms: i64,
) -> Result<Vec<pb::MemoryItem>, AgentError> {
    let high = format!("{}\u{10FFFF}", r.prefix);
    let sql = format!(
        "{ITEM} WHERE tenant = ?1 AND namespace = ?2 AND key >= ?3 AND key < ?4 AND key > ?5 AND (expire_ms = 0 OR expire_ms > ?6)
            ORDER BY key LIMIT ?7"
    );
    let range = [(&r.prefix).into(), (&high).into(), (&r.page_token).into(), now_ms.into(), limit.into()];
    let params = [[tenant.into(), (&r.namespace).into()].as_slice(), range.as_slice()].concat();
    all(db, &sql, &params, item_of)
}

/// Where a namespace and those below it lie: behind a "/" comes nothing else before "0".
fn range(namespace: &str) -> (String, String) {
    (format!("{namespace}/"), format!("{namespace}0"))
}

/// Values of a namespace and of those below it, behind a namespace and a key.
pub(super) fn below(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    after: (&str, &str),
    limit: i64,
    now_ms: i64,
) -> Result<Vec<pb::MemoryItem>, AgentError> {
    let (low, high) = range(namespace);
    let sql = format!(
        "{ITEM} WHERE tenant = ?1 AND (namespace = ?2 OR (namespace >= ?3 AND namespace < ?4))
            AND (namespace > ?5 OR (namespace = ?5 AND key > ?6)) AND (expire_ms = 0 OR expire_ms > ?7) ORDER BY namespace, key LIMIT ?8"
    );
    let place = [tenant.into(), namespace.into(), (&low).into(), (&high).into(), after.0.into(), after.1.into()];
    all(db, &sql, &[place.as_slice(), &[now_ms.into(), limit.into()]].concat(), item_of)
}

/// Namespaces that have values, a namespace and those below it, behind one.
pub(super) fn namespaces(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    after: &str,
    limit: i64,
    now_ms: i64,
) -> Result<Vec<String>, AgentError> {
    let (low, high) = range(namespace);
    let sql = "SELECT DISTINCT namespace FROM memory WHERE tenant = ?1 AND (namespace = ?2 OR (namespace >= ?3 AND namespace < ?4))
        AND namespace > ?5 AND (expire_ms = 0 OR expire_ms > ?6) ORDER BY namespace LIMIT ?7";
    let place = [tenant.into(), namespace.into(), (&low).into(), (&high).into(), after.into(), now_ms.into(), limit.into()];
    all(db, sql, &place, |row| row.text(0))
}

/// Versions of a value before a version, newest first; a deleted one has no value.
pub(super) fn versions(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    key: &str,
    before: i64,
    limit: i64,
) -> Result<Vec<pb::MemoryItem>, AgentError> {
    let sql = "SELECT version, update_ms, data FROM memory_version
        WHERE tenant = ?1 AND namespace = ?2 AND key = ?3 AND version < ?4 ORDER BY version DESC LIMIT ?5";
    all(db, sql, &[tenant.into(), namespace.into(), key.into(), before.into(), limit.into()], |row| {
        Ok(pb::MemoryItem {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            version: row.int(0)?,
            update_time: Some(timestamp(row.int(1)?)),
            value: row.bytes(2)?.and_then(|data| prost_types::Value::decode(data.as_slice()).ok()),
            ..Default::default()
        })
    })
}

fn length(db: &mut dyn Db, tenant: &str, namespace: &str, conversation: &str) -> Result<i64, AgentError> {
    let sql = "SELECT coalesce(max(n), 0) FROM message WHERE tenant = ?1 AND namespace = ?2 AND conversation = ?3";
    Ok(one(db, sql, &[tenant.into(), namespace.into(), conversation.into()], |r| r.int(0))?.unwrap_or(0))
}

/// Adds to a conversation; gives its length. Numbers have no gaps.
pub(super) fn append(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    conversation: &str,
    messages: &[pb::Message],
) -> Result<i64, AgentError> {
    let mut n = length(db, tenant, namespace, conversation)?;
    for message in messages {
        n += 1;
        db.execute(
            "INSERT INTO message VALUES(?1, ?2, ?3, ?4, ?5)",
            &[tenant.into(), namespace.into(), conversation.into(), n.into(), (&message.encode_to_vec()).into()],
        )?;
    }
    Ok(n)
}

/// Messages behind a number, with their numbers, oldest first.
pub(super) fn messages(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    conversation: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, pb::Message)>, AgentError> {
    let sql = "SELECT n, data FROM message WHERE tenant = ?1 AND namespace = ?2 AND conversation = ?3 AND n > ?4 ORDER BY n LIMIT ?5";
    all(db, sql, &[tenant.into(), namespace.into(), conversation.into(), after.into(), limit.into()], |row| {
        Ok((row.int(0)?, pb::Message::decode(row.blob(1)?.as_slice()).unwrap_or_default()))
    })
}

/// The newest messages that fit, oldest first.
pub(super) fn window(
    db: &mut dyn Db,
    tenant: &str,
    namespace: &str,
    conversation: &str,
    most: i64,
    bytes: usize,
) -> Result<Vec<pb::Message>, AgentError> {
    let after = length(db, tenant, namespace, conversation)? - most;
    let mut found = messages(db, tenant, namespace, conversation, after, most)?;
    let mut size: usize = found.iter().map(|(_, m)| m.encoded_len()).sum();
    while size > bytes && !found.is_empty() {
        size -= found.remove(0).1.encoded_len();
    }
    Ok(found.into_iter().map(|(_, message)| message).collect())
}
