//! What each write does: one item of a batch, within its transaction.

use agent_core::agent::text_message;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use super::tasks::{Known, load, record_of, select, select_open};
use super::writer::{News, Outcome, Thread};
use super::{Param, all, journal, ledger, memory, schedules, tasks};
use crate::blob::{Address, BLOB_BYTES};
use crate::durable::{deleted_request, existing, not_found};
use crate::hub::End;
use crate::journal::{Change, Key, entry_of};
use crate::op::{WriteOp, Written};
use crate::record::{Record, is_terminal};

/// Attempts that one recovery closes.
const RECOVER_TASKS: i64 = 1000;

/// The conversation of a namespace that its tasks go on with.
const CONVERSATION: &str = "default";
/// Messages of it that a task is given at most, the newest ones.
const REMEMBERED_MESSAGES: i64 = 40;
/// Their bytes.
const REMEMBERED_BYTES: usize = 64 * 1024;

/// An answer, and where it stands if that is not its row.
type Placed = (Key, Vec<u8>, Option<Address>);

fn namespace(spec: &pb::AgentTask) -> &str {
    spec.context.as_ref().map_or("", |context| &context.memory_namespace)
}

impl Thread {
    /// One item: it fails alone.
    pub(super) fn item(&mut self, op: WriteOp) -> Outcome {
        let guarded = self.db.careful() || op.may_fail_halfway();
        if guarded {
            self.db.batch("SAVEPOINT item")?;
        }
        let id = op.task_id().map(str::to_owned);
        let result = self.apply(op);
        if result.is_err() {
            if let Some(id) = id {
                self.cache.remove(&id);
            }
            if guarded {
                self.db.batch("ROLLBACK TO SAVEPOINT item")?;
            }
        }
        if guarded {
            self.db.batch("RELEASE SAVEPOINT item")?;
        }
        result
    }

    fn apply(&mut self, op: WriteOp) -> Outcome {
        let now = (self.clock)();
        let epoch = self.epoch;
        match op {
            WriteOp::Submit { header, spec, run, route } => {
                if !header.content_hash.is_empty() {
                    let known = tasks::find_request(&mut *self.db, &header.tenant, &header.request_id)?;
                    let same = known.map(|known| match known {
                        Known::Task(mut old) => {
                            if old.hash != header.content_hash {
                                // For the name of the field that differs; the answer is the same without it.
                                let _ = self.blobs.fill_record(&mut *self.db, &mut old);
                            }
                            existing(&old, &header.content_hash, &spec)
                        }
                        Known::Deleted(id, hash) => deleted_request(id, &hash, &header.content_hash),
                    });
                    if let Some(same) = same {
                        return same.map(|written| (written, Vec::new()));
                    }
                }
                // What its conversation holds is read when it is claimed.
                let run = run && namespace(&spec).is_empty();
                let large = self.blobs.put_message(&mut *self.db, &header.tenant, &*spec, now)?;
                self.unsealed |= large.is_some();
                let (mut record, events, written) = Record::submitted(&header, *spec, run, route, epoch, now);
                record.parts.spec = large;
                let recorded = header.record.as_ref().map(|known| known.entries.iter().map(entry_of).collect::<Result<Vec<_>, _>>());
                let recorded = recorded.transpose()?;
                if let Some(known) = &header.record {
                    record.task.answers.clone_from(&known.answers);
                    record.task.remembered.clone_from(&known.remembered);
                }
                tasks::insert(&mut *self.db, &mut record, &events)?;
                if !header.fork_of.is_empty() {
                    journal::copy(&mut *self.db, &header.fork_of, &header.task_id, header.fork_after)?;
                }
                for (key, answer) in recorded.into_iter().flatten() {
                    let blob = self.put_bytes(&header.tenant, &answer, now)?;
                    journal::change(&mut *self.db, &header.task_id, (0, 0), &key, &Change::Answer(answer), blob.as_ref())?;
                }
                if header.replayed {
                    journal::seal(&mut *self.db, &header.task_id)?;
                }
                let id = header.task_id;
                // What waits for its time may wait long, and there may be a million of it.
                if record.task.state() != pb::TaskState::Waiting {
                    self.cache.insert(id.clone(), record);
                }
                Ok((written, vec![News { id, events, end: None }]))
            }
            WriteOp::Claim { id } => {
                self.whole(&id)?;
                self.remember(&id)?;
                self.change(&id, |r| r.claim(epoch, now))
            }
            WriteOp::Attempt { id, fence, info } => self.change(&id, |r| r.attempt(fence, info)),
            WriteOp::Route { id, fence, route } => self.change(&id, |r| r.route(fence, route)),
            WriteOp::Events { id, fence, events } => self.change(&id, |r| r.events(fence, events, now)),
            WriteOp::Finish { id, fence, mut finish } => {
                let answers = std::mem::take(&mut finish.journal);
                let said = finish.result.as_ref().filter(|_| finish.state == pb::TaskState::Succeeded).map(|r| r.output.clone());
                let turn = said.map(|said| self.turn(&id, said)).transpose()?.flatten();
                let answers = self.put_answers(&id, answers, now)?;
                let done = self.change(&id, |r| r.finish(fence, *finish, now))?;
                if let Some((tenant, namespace, turn)) = turn {
                    memory::append(&mut *self.db, &tenant, &namespace, CONVERSATION, &turn)?;
                }
                for (key, answer, blob) in answers {
                    journal::change(&mut *self.db, &id, (fence, i64::MAX), &key, &Change::Answer(answer), blob.as_ref())?;
                }
                Ok(done)
            }
            WriteOp::Journal { id, fence, key, change } => {
                let sequence = self.held(&id, fence)?;
                let blob = match &change {
                    Change::Answer(answer) => self.put_answer(&id, answer, now)?,
                    Change::Intent | Change::Withdrawn => None,
                };
                journal::change(&mut *self.db, &id, (fence, sequence), &key, &change, blob.as_ref())?;
                Ok((Written::Ok, Vec::new()))
            }
            WriteOp::Answers { id, fence, answers } => {
                let sequence = self.held(&id, fence)?;
                for (key, answer, blob) in self.put_answers(&id, answers, now)? {
                    journal::change(&mut *self.db, &id, (fence, sequence), &key, &Change::Answer(answer), blob.as_ref())?;
                }
                Ok((Written::Ok, Vec::new()))
            }
            WriteOp::ToolBegin { id, fence, key, replay, again } => {
                let sequence = self.held(&id, fence)?;
                let tenant = self.cached(&id)?.tenant.clone();
                let numbers = (fence, sequence);
                let decision = journal::tool_begin(&mut *self.db, &self.blobs, (&tenant, &id), numbers, &key, (replay, again))?;
                Ok((Written::Tool(decision), Vec::new()))
            }
            WriteOp::Keep { id, fence, records } => {
                self.held(&id, fence)?;
                for (key, data) in &records {
                    super::records::write(&mut *self.db, &id, key, data.as_ref())?;
                }
                Ok((Written::Ok, Vec::new()))
            }
            WriteOp::Requeue { id, fence, outcome, cause, counts, not_before_ms, ran_ms, events } => {
                self.change(&id, |r| r.requeue(fence, (&outcome, &cause, counts), not_before_ms, ran_ms, events, now))
            }
            WriteOp::Park { id, fence, inputs, ran_ms, events } => self.change(&id, |r| r.park(fence, inputs, ran_ms, events, now)),
            WriteOp::Signal { tenant, id, signal } => {
                self.change(&id, |r| if r.tenant == tenant { r.signal(*signal, now) } else { Err(not_found(&id)) })
            }
            WriteOp::Wake { id } => self.change(&id, |r| r.wake(now)),
            WriteOp::Fence { id, fence } => self.change(&id, |r| r.fence(fence)),
            WriteOp::CancelRequest { tenant, id } => {
                self.change(&id, |r| if r.tenant == tenant { Ok(r.cancel_request()) } else { Err(not_found(&id)) })
            }
            WriteOp::Delete { tenant, id } => self.delete(&tenant, &id, now),
            WriteOp::PutAgent { tenant, id, data } => self.sql(
                "INSERT INTO agent VALUES(?1, ?2, ?3) ON CONFLICT (tenant, id) DO UPDATE SET data = excluded.data",
                &[(&tenant).into(), (&id).into(), (&data).into()],
            ),
            WriteOp::DeleteAgent { tenant, id } => {
                self.sql("DELETE FROM agent WHERE tenant = ?1 AND id = ?2", &[(&tenant).into(), (&id).into()])
            }
            WriteOp::Memory { tenant, op, holder } => {
                if let Some((id, fence)) = holder {
                    self.held(&id, fence)?;
                }
                let answer = memory::write(&mut *self.db, &tenant, &op, now)?;
                Ok((Written::Memory(answer), Vec::new()))
            }
            WriteOp::Schedule { tenant, op } => {
                let schedule = schedules::write(&mut *self.db, &tenant, op, now)?;
                Ok((Written::Schedule(Box::new(schedule)), Vec::new()))
            }
            WriteOp::Ledger { tenant, op } => {
                let rows = ledger::write(&mut *self.db, &tenant, &op, now)?;
                Ok((Written::Ledger(rows), Vec::new()))
            }
            WriteOp::Recover => self.recover(now),
        }
    }

    fn sql(&mut self, sql: &str, params: &[Param<'_>]) -> Outcome {
        self.db.execute(sql, params)?;
        Ok((Written::Ok, Vec::new()))
    }

    /// Whether the fence holds the task; its row stays as it is. Gives the last event's number.
    fn held(&mut self, id: &str, fence: i64) -> Result<i64, AgentError> {
        let record = self.cached(id)?;
        record.running(fence).map(|()| record.sequence)
    }

    /// A task's row, read if it is not known.
    fn cached(&mut self, id: &str) -> Result<&mut Record, AgentError> {
        if !self.cache.contains_key(id) {
            let record = load(&mut *self.db, id)?.ok_or_else(|| not_found(id))?;
            self.cache.insert(id.to_owned(), record);
        }
        self.cache.get_mut(id).ok_or_else(|| not_found(id))
    }

    /// A task with its large parts, which it had in the cache if it was submitted lately.
    fn whole(&mut self, id: &str) -> Result<(), AgentError> {
        let record = self.cached(id)?;
        if record.is_whole() {
            return Ok(());
        }
        let Self { cache, blobs, db, .. } = self;
        cache.get_mut(id).map_or(Ok(()), |record| blobs.fill_record(&mut **db, record))
    }

    /// A result that is too large for its row.
    fn put_result(&mut self, id: &str) -> Result<(), AgentError> {
        let Self { cache, blobs, db, clock, unsealed, .. } = self;
        let Some(record) = cache.get_mut(id) else { return Ok(()) };
        if let Some(result) = &record.task.result {
            record.parts.result = blobs.put_message(&mut **db, &record.tenant, result, clock())?;
            *unsealed |= record.parts.result.is_some();
        }
        Ok(())
    }

    /// Where an answer stands if it is too large for its row.
    fn put_answer(&mut self, id: &str, answer: &[u8], now: i64) -> Result<Option<Address>, AgentError> {
        if answer.len() <= BLOB_BYTES {
            return Ok(None);
        }
        let tenant = self.cached(id)?.tenant.clone();
        self.put_bytes(&tenant, answer, now)
    }

    fn put_bytes(&mut self, tenant: &str, answer: &[u8], now: i64) -> Result<Option<Address>, AgentError> {
        if answer.len() <= BLOB_BYTES {
            return Ok(None);
        }
        self.unsealed = true;
        self.blobs.put(&mut *self.db, tenant, answer, now)
    }

    fn put_answers(&mut self, id: &str, answers: Vec<(Key, Vec<u8>)>, now: i64) -> Result<Vec<Placed>, AgentError> {
        let placed = |(key, answer): (Key, Vec<u8>)| self.put_answer(id, &answer, now).map(|blob| (key, answer, blob));
        answers.into_iter().map(placed).collect()
    }

    /// Before its first attempt a task is given what its namespace remembers; later ones see the same, so that they ask the same.
    fn remember(&mut self, id: &str) -> Result<(), AgentError> {
        let record = self.cached(id)?;
        let namespace = record.task.spec.as_ref().map(namespace).unwrap_or_default().to_owned();
        if !record.task.replay_of.is_empty() {
            return Ok(()); // its record says what was remembered
        }
        if record.task.attempts == 0 && !namespace.is_empty() {
            let tenant = record.tenant.clone();
            let window = memory::window(&mut *self.db, &tenant, &namespace, CONVERSATION, REMEMBERED_MESSAGES, REMEMBERED_BYTES)?;
            self.cached(id)?.task.remembered = window;
        }
        Ok(())
    }

    /// What a task that ends well adds to the conversation of its namespace: tenant, namespace, question and answer.
    fn turn(&mut self, id: &str, said: String) -> Result<Option<(String, String, Vec<pb::Message>)>, AgentError> {
        if self.cached(id)?.task.spec.as_ref().is_some_and(|spec| !namespace(spec).is_empty()) {
            self.whole(id)?;
        }
        let record = self.cached(id)?;
        // A replay is no conversation.
        let lives = record.task.replay_of.is_empty();
        Ok(record.task.spec.as_ref().filter(|spec| lives && !namespace(spec).is_empty()).map(|spec| {
            let turn = vec![text_message(pb::Role::User, spec.description.clone()), text_message(pb::Role::Assistant, said)];
            (record.tenant.clone(), namespace(spec).to_owned(), turn)
        }))
    }

    fn change(&mut self, id: &str, f: impl FnOnce(&mut Record) -> Result<(Vec<pb::TaskEvent>, Written), AgentError>) -> Outcome {
        let record = self.cached(id)?;
        let fence = record.task.fencing_token;
        let (events, written) = f(record)?;
        let ended = is_terminal(record.task.state());
        if ended {
            self.put_result(id)?;
        }
        let record = self.cache.get_mut(id).ok_or_else(|| not_found(id))?;
        // The fence is checked once more by the statement: nobody else may have written, and if somebody had, this item fails.
        let kept_ms = self.chores.kept_by_label(&record.task).filter(|_| ended);
        tasks::update(&mut *self.db, record, fence, kept_ms, matches!(written, Written::Sequence(_)))?;
        tasks::add_events(&mut *self.db, id, &events)?;
        let waits = record.task.state() == pb::TaskState::Waiting;
        let known = if ended || waits { self.cache.remove(id) } else { None };
        let end = ended.then(|| End::of(known));
        Ok((written, vec![News { id: id.to_owned(), events, end }]))
    }

    fn delete(&mut self, tenant: &str, id: &str, now: i64) -> Outcome {
        let record = load(&mut *self.db, id)?.filter(|r| r.tenant == tenant).ok_or_else(|| not_found(id))?;
        if !is_terminal(record.task.state()) {
            return Err(AgentError::new(Reason::WrongState, "the task has not ended; cancel it first"));
        }
        self.cache.remove(id);
        self.hub.forget(id);
        tasks::forget(&mut *self.db, &record, now)?;
        Ok((Written::Ok, Vec::new()))
    }

    /// Ends attempts of earlier epochs, and open tasks whose cancel was asked for then; so many at once that others are not kept waiting.
    fn recover(&mut self, now: i64) -> Outcome {
        let params = [self.epoch.into(), RECOVER_TASKS.into()];
        let asked = select("asked = 1 AND (state IN (1, 3) OR epoch < ?1) LIMIT ?2");
        let mut found = all(&mut *self.db, &asked, &params, record_of)?;
        if found.is_empty() {
            found = all(&mut *self.db, &select_open("state = 2 AND epoch < ?1 LIMIT ?2"), &params, record_of)?;
        }
        let more = !found.is_empty();
        let mut news = Vec::with_capacity(found.len());
        for mut record in found {
            let fence = record.task.fencing_token;
            let events = record.recover(now);
            let ended = is_terminal(record.task.state());
            let kept_ms = self.chores.kept_by_label(&record.task).filter(|_| ended);
            tasks::update(&mut *self.db, &mut record, fence, kept_ms, false)?;
            tasks::add_events(&mut *self.db, &record.task.id, &events)?;
            self.cache.remove(&record.task.id);
            let id = record.task.id.clone();
            let end = ended.then(|| End::of(Some(record)));
            news.push(News { id, events, end });
        }
        Ok((Written::Recovered { more }, news))
    }
}
