//! The tables, as numbered migrations. Written for SQLite; [`for_postgres`] gives the same for PostgreSQL.

use agent_core::{AgentError, Reason};

use crate::durable::refuse;

/// Version of the schema that this program writes.
pub(crate) const SCHEMA: i64 = 9;

/// The words of the partial index `task_open`: a query uses it only if it says the same. No `IN`: `SQLite` builds a table of its list each
/// time that a row is written, twice for an update.
pub(crate) const OPEN: &str = "state BETWEEN 1 AND 3";

/// What leads from the version before to each version.
pub(crate) const MIGRATIONS: [&str; SCHEMA as usize] = [
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE task(
        id TEXT PRIMARY KEY, rid TEXT NOT NULL, tenant TEXT NOT NULL, request_id TEXT, state INTEGER NOT NULL, fence INTEGER NOT NULL,
        epoch INTEGER NOT NULL, not_before INTEGER NOT NULL, create_ms INTEGER NOT NULL, lost INTEGER NOT NULL, sequence INTEGER NOT NULL,
        text_offset INTEGER NOT NULL, hash BLOB, hash_version INTEGER NOT NULL, data BLOB NOT NULL, attempts BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX task_request ON task(tenant, request_id) WHERE request_id IS NOT NULL;
    CREATE INDEX task_tenant ON task(tenant, id);
    CREATE INDEX task_suffix ON task(tenant, rid);
    CREATE INDEX task_open ON task(state, not_before) WHERE state IN (1, 2, 3);
    CREATE TABLE event(task_id TEXT NOT NULL, sequence INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(task_id, sequence)) WITHOUT ROWID;
    CREATE TABLE agent(tenant TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY(tenant, id)) WITHOUT ROWID;
    INSERT INTO meta VALUES('epoch', 0);",
    "CREATE TABLE journal(
        task_id TEXT NOT NULL, kind INTEGER NOT NULL, hash BLOB NOT NULL, occurrence INTEGER NOT NULL, hash_version INTEGER NOT NULL,
        fence INTEGER NOT NULL, answer BLOB, PRIMARY KEY(task_id, kind, hash, occurrence)
    ) WITHOUT ROWID;",
    "ALTER TABLE task ADD COLUMN end_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE task SET end_ms = create_ms WHERE state NOT IN (1, 2, 3);
    CREATE INDEX task_ended ON task(end_ms) WHERE end_ms > 0;",
    "ALTER TABLE journal ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE task ADD COLUMN asked INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX task_asked ON task(id) WHERE asked = 1;
    DROP INDEX task_suffix;
    ALTER TABLE task DROP COLUMN rid;
    CREATE TABLE tombstone(
        tenant TEXT NOT NULL, request_id TEXT NOT NULL, task_id TEXT NOT NULL, hash BLOB NOT NULL, until_ms INTEGER NOT NULL,
        PRIMARY KEY(tenant, request_id)
    ) WITHOUT ROWID;
    CREATE INDEX tombstone_until ON tombstone(until_ms);
    CREATE TABLE memory(
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, create_ms INTEGER NOT NULL,
        update_ms INTEGER NOT NULL, expire_ms INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(tenant, namespace, key)
    ) WITHOUT ROWID;
    CREATE INDEX memory_expire ON memory(expire_ms) WHERE expire_ms > 0;
    CREATE TABLE memory_version(
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, update_ms INTEGER NOT NULL, data BLOB,
        PRIMARY KEY(tenant, namespace, key, version)
    ) WITHOUT ROWID;
    CREATE TABLE message(
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, conversation TEXT NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY(tenant, namespace, conversation, n)
    ) WITHOUT ROWID;
    CREATE TABLE answered(
        tenant TEXT NOT NULL, request_id TEXT NOT NULL, hash BLOB NOT NULL, answer BLOB NOT NULL, until_ms INTEGER NOT NULL,
        PRIMARY KEY(tenant, request_id)
    ) WITHOUT ROWID;
    CREATE INDEX answered_until ON answered(until_ms);
    CREATE TABLE schedule(
        tenant TEXT NOT NULL, id TEXT NOT NULL, next_ms INTEGER NOT NULL, etag INTEGER NOT NULL, data BLOB NOT NULL, state BLOB NOT NULL,
        PRIMARY KEY(tenant, id)
    ) WITHOUT ROWID;
    CREATE INDEX schedule_due ON schedule(next_ms) WHERE next_ms > 0;",
    "ALTER TABLE task ADD COLUMN keep_ms INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE task ADD COLUMN spec_blob BLOB;
    ALTER TABLE task ADD COLUMN result_blob BLOB;
    ALTER TABLE journal ADD COLUMN blob BLOB;
    CREATE INDEX task_spec_blob ON task(spec_blob) WHERE spec_blob IS NOT NULL;
    CREATE INDEX task_result_blob ON task(result_blob) WHERE result_blob IS NOT NULL;
    CREATE INDEX journal_blob ON journal(blob) WHERE blob IS NOT NULL;
    CREATE TABLE secret(name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE blob(address BLOB PRIMARY KEY, tenant TEXT NOT NULL, touched_ms INTEGER NOT NULL, data BLOB NOT NULL);",
    "CREATE TABLE ledger(
        tenant TEXT NOT NULL, account TEXT NOT NULL, window_ms INTEGER NOT NULL, spent INTEGER NOT NULL, lent INTEGER NOT NULL,
        update_ms INTEGER NOT NULL, PRIMARY KEY(tenant, account, window_ms)
    ) WITHOUT ROWID;
    CREATE INDEX ledger_update ON ledger(update_ms);",
    "DROP INDEX task_open;
    CREATE INDEX task_open ON task(state, not_before) WHERE state BETWEEN 1 AND 3;",
    "CREATE TABLE record(task_id TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY(task_id, key)) WITHOUT ROWID;",
];

/// The same words for PostgreSQL. Texts compare by their bytes there too.
pub(crate) fn for_postgres(sql: &str) -> String {
    sql.replace(" WITHOUT ROWID", "").replace(" INTEGER", " BIGINT").replace(" BLOB", " BYTEA").replace(" TEXT", " TEXT COLLATE \"C\"")
}

/// Migrations that lead from a version to ours; a newer one is refused.
pub(crate) fn missing(version: i64) -> Result<&'static [&'static str], AgentError> {
    let known = usize::try_from(version).ok().and_then(|v| MIGRATIONS.get(v..));
    known.ok_or_else(|| {
        refuse(AgentError::new(
            Reason::StoreUnavailable,
            format!("the database has schema {version}, this program knows {SCHEMA}; use a newer program"),
        ))
    })
}
