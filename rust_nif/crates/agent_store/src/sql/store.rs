//! The durable store over SQL: the writer's queue and the readers.

use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use super::blobs::Blobs;
use super::queue::Writer;
use super::schema::SCHEMA;
use super::{Db, Opened, ReadPool, journal, ledger, memory, reads, records, schedules};
use crate::Retention;
use crate::durable::{AgentRows, Done, Kept, Store};
use crate::hub::Hub;
use crate::journal::Entry;
use crate::ledger::LedgerRow;
use crate::op::WriteOp;
use crate::order::{Order, Place};
use crate::record::Record;
use crate::schedule::Due;

/// One database.
pub(crate) struct SqlStore {
    writer: Writer,
    readers: Arc<dyn ReadPool>,
    blobs: Blobs,
    epoch: i64,
    version: String,
}

impl SqlStore {
    /// Starts the writer of an open database; `on_end` hears once when that ends, whatever the reason.
    pub(crate) fn start(
        opened: Opened,
        retention: Retention,
        hub: Arc<Hub>,
        on_end: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Self, AgentError> {
        let (readers, blobs) = (opened.readers.clone(), opened.blobs.clone());
        let (epoch, version) = (opened.epoch, opened.version.clone());
        let writer = super::writer::start(opened, hub, crate::now_ms, retention, on_end)?;
        Ok(Self { writer, readers, blobs, epoch, version })
    }

    fn read<T>(&self, f: impl FnOnce(&mut dyn Db) -> Result<T, AgentError>) -> Result<T, AgentError> {
        let (mut f, mut found) = (Some(f), None);
        self.readers.with(&mut |db| {
            if let Some(f) = f.take() {
                found = Some(f(db)?);
            }
            Ok(())
        })?;
        found.ok_or_else(|| AgentError::new(Reason::StoreUnavailable, "the store gave no connection"))
    }
}

impl Store for SqlStore {
    fn write(&self, op: WriteOp, done: Done) -> bool {
        self.writer.write(op, done)
    }

    fn get(&self, tenant: &str, id: &str) -> Result<Option<Record>, AgentError> {
        self.read(|db| reads::get(db, tenant, id))
    }

    fn was_deleted(&self, tenant: &str, id: &str) -> Result<bool, AgentError> {
        self.read(|db| reads::was_deleted(db, tenant, id))
    }

    fn by_suffix(&self, tenant: &str, suffix: &str) -> Result<Vec<String>, AgentError> {
        self.read(|db| reads::by_suffix(db, tenant, suffix))
    }

    fn page(&self, tenant: &str, order: Order, beyond: &Place, limit: usize) -> Result<Vec<Record>, AgentError> {
        self.read(|db| reads::page(db, tenant, order, beyond, limit))
    }

    fn fill(&self, record: &mut Record) -> Result<(), AgentError> {
        self.read(|db| self.blobs.fill_record(db, record))
    }

    fn events(&self, id: &str, after: i64, limit: usize) -> Result<Vec<pb::TaskEvent>, AgentError> {
        self.read(|db| reads::events(db, id, after, limit))
    }

    fn running(&self) -> Result<Vec<(String, i64)>, AgentError> {
        self.read(|db| reads::running(db, self.epoch))
    }

    fn queued(&self, after: &str, limit: usize) -> Result<Vec<Record>, AgentError> {
        self.read(|db| reads::queued(db, after, limit))
    }

    fn due(&self, now_ms: i64) -> Result<Vec<String>, AgentError> {
        self.read(|db| reads::due(db, now_ms))
    }

    fn journal(&self, id: &str) -> Result<Vec<Entry>, AgentError> {
        self.read(|db| journal::entries(db, &self.blobs, id, false))
    }

    fn step_runs(&self, id: &str) -> Result<Vec<Entry>, AgentError> {
        self.read(|db| journal::entries(db, &self.blobs, id, true))
    }

    fn schedule(&self, tenant: &str, id: &str) -> Result<pb::Schedule, AgentError> {
        self.read(|db| schedules::get(db, tenant, id))
    }

    fn schedules(&self, tenant: &str, after: &str, limit: i64) -> Result<Vec<pb::Schedule>, AgentError> {
        self.read(|db| schedules::list(db, tenant, after, limit))
    }

    fn due_schedules(&self, now_ms: i64) -> Result<Vec<Due>, AgentError> {
        self.read(|db| schedules::due_now(db, now_ms))
    }

    fn memory(&self, tenant: &str, namespace: &str, key: &str, now_ms: i64) -> Result<Option<pb::MemoryItem>, AgentError> {
        self.read(|db| memory::get(db, tenant, namespace, key, now_ms))
    }

    fn memories(
        &self,
        tenant: &str,
        request: &pb::ListMemoriesRequest,
        limit: i64,
        now_ms: i64,
    ) -> Result<Vec<pb::MemoryItem>, AgentError> {
        self.read(|db| memory::list(db, tenant, request, limit, now_ms))
    }

    fn memories_below(
        &self,
        tenant: &str,
        namespace: &str,
        after: (&str, &str),
        limit: i64,
        now_ms: i64,
    ) -> Result<Vec<pb::MemoryItem>, AgentError> {
        self.read(|db| memory::below(db, tenant, namespace, after, limit, now_ms))
    }

    fn namespaces_below(&self, tenant: &str, namespace: &str, after: &str, limit: i64, now_ms: i64) -> Result<Vec<String>, AgentError> {
        self.read(|db| memory::namespaces(db, tenant, namespace, after, limit, now_ms))
    }

    fn kept(&self, id: &str, after: &str) -> Result<(Vec<Kept>, bool), AgentError> {
        self.read(|db| records::page(db, id, after))
    }

    fn memory_versions(
        &self,
        tenant: &str,
        namespace: &str,
        key: &str,
        before: i64,
        limit: i64,
    ) -> Result<Vec<pb::MemoryItem>, AgentError> {
        self.read(|db| memory::versions(db, tenant, namespace, key, before, limit))
    }

    fn messages(
        &self,
        tenant: &str,
        namespace: &str,
        conversation: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, pb::Message)>, AgentError> {
        self.read(|db| memory::messages(db, tenant, namespace, conversation, after, limit))
    }

    fn ledger(&self, tenant: &str, account: Option<&str>, limit: i64) -> Result<Vec<LedgerRow>, AgentError> {
        self.read(|db| ledger::rows(db, tenant, account, limit))
    }

    fn agents(&self) -> Result<AgentRows, AgentError> {
        self.read(reads::agents)
    }

    fn epoch(&self) -> i64 {
        self.epoch
    }

    fn schema(&self) -> i64 {
        SCHEMA
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn silent_for(&self) -> Duration {
        self.writer.silent_for()
    }

    fn stop(&self) {
        self.writer.stop();
    }

    fn inject_panic(&self) {
        self.writer.inject_panic();
    }
}
