//! Memory for workers: one CALL of kind MEMORY, done under the namespace of its task, and records of the task itself.

use agent_core::memory::{check_append, check_batch, check_delete, check_get, check_list, check_messages, check_put};
use agent_core::validate::namespace_violation;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use agent_store::{MemoryAnswer, MemoryOp, TaskStore, WriteOp, Written};
use prost::Message;
use rustler::{Binary, Encoder, Env, ResourceArc, Term};
use w::memory_request::Operation;

use crate::atoms;
use crate::pure::Payload;
use crate::reply::Final;
use crate::store::{StoreHandle, write_with};
use crate::terms::{self, Bin, get, int, text};

/// Items of a page where the worker does not say.
const PAGE: usize = 50;
/// Items of a page at most.
const MAX_PAGE: i32 = 1000;
/// Longest key of a record, in bytes.
const MAX_RECORD_KEY: usize = 2048;
/// Namespace of agents that have none of their own, with the agent's id behind it.
const AGENTS: &str = "agents/";

/// Who asks.
struct Asker {
    tenant: String,
    /// The namespace below which all names are.
    base: String,
    /// Task and fence; an ephemeral one has none.
    holder: Option<(String, i64)>,
    /// Before the keys of its records: steps of a plan each have their own.
    records: String,
}

impl Asker {
    fn of(place: Term<'_>) -> Self {
        let payload = get::<ResourceArc<Payload>>(place, atoms::task());
        let named = payload.and_then(|p| p.task.context.as_ref().map(|c| c.memory_namespace.clone())).filter(|n| !n.is_empty());
        let (task, fence) = (text(place, atoms::task_id()), int(place, atoms::fence()));
        Self {
            tenant: text(place, atoms::tenant()),
            base: named.unwrap_or_else(|| format!("{AGENTS}{}", text(place, atoms::agent_id()))),
            holder: (fence > 0).then_some((task, fence)),
            // No database keeps a NUL in a text; a step's id holds no slash.
            records: match text(place, atoms::scope()) {
                scope if scope.is_empty() => scope,
                scope => format!("{}/", scope.replace('\0', "/")),
            },
        }
    }

    /// The whole name of a namespace below the asker's.
    fn whole(&self, below: &str) -> String {
        if below.is_empty() { self.base.clone() } else { format!("{}/{below}", self.base) }
    }

    /// What the asker calls a namespace.
    fn below(&self, whole: &str) -> String {
        whole.strip_prefix(&self.base).unwrap_or(whole).trim_start_matches('/').to_owned()
    }

    fn shown(&self, item: pb::MemoryItem) -> pb::MemoryItem {
        pb::MemoryItem { namespace: self.below(&item.namespace), ..item }
    }
}

/// The encoded answer of a write; None: the store gave another kind.
type Answer = fn(&Asker, Written) -> Option<Vec<u8>>;
/// A read, and its encoded answer.
type Read = Box<dyn FnOnce(&TaskStore, &Asker) -> Result<Vec<u8>, AgentError> + Send>;

/// What a call does.
enum Work {
    Write(WriteOp, Answer),
    Read(Read),
}

/// Does a call; its answer is a message, `{agent_native, Ref, done, Payload}`.
#[rustler::nif]
fn store_memory<'a>(env: Env<'a>, handle: ResourceArc<StoreHandle>, reference: Term<'a>, place: Term<'a>, payload: Binary<'a>) -> Term<'a> {
    let (Some(store), Some(tokio)) = (handle.get(), handle.runtime()) else { return terms::native_down(env) };
    let asker = Asker::of(place);
    let work = match w::MemoryRequest::decode(payload.as_slice()) {
        Ok(request) => work(&asker, request.operation),
        Err(e) => Err(AgentError::new(Reason::WorkerProtocolError, format!("a call of memory cannot be decoded: {e}"))),
    };
    match work {
        Err(e) => terms::error_tuple(env, &e),
        Ok(Work::Read(read)) => {
            let reply = Final::new(env.pid(), reference, Reason::NativeDown);
            tokio.spawn_blocking(move || match read(&store, &asker) {
                Ok(answer) => reply.done(|env| Bin(&answer).encode(env)),
                Err(e) => reply.error(&e),
            });
            atoms::ok().encode(env)
        }
        Ok(Work::Write(op, answer)) => {
            let unexpected = || AgentError::new(Reason::Internal, "the store gave an answer of another kind");
            let read = move |written| answer(&asker, written).ok_or_else(unexpected);
            write_with(env, &store, reference, op, read, |env, bytes: Vec<u8>| Bin(&bytes).encode(env))
        }
    }
}

fn memory(asker: &Asker, op: MemoryOp, answer: Answer) -> Work {
    Work::Write(WriteOp::Memory { tenant: asker.tenant.clone(), op: Box::new(op), holder: asker.holder.clone() }, answer)
}

fn work(asker: &Asker, operation: Option<Operation>) -> Result<Work, AgentError> {
    match operation {
        Some(Operation::Put(r)) => {
            let r = pb::PutMemoryRequest { namespace: asker.whole(&r.namespace), ..r };
            check_put(&r)?;
            Ok(memory(asker, MemoryOp::Put(r), item))
        }
        Some(Operation::Delete(r)) => {
            let r = pb::DeleteMemoryRequest { namespace: asker.whole(&r.namespace), ..r };
            check_delete(&r)?;
            Ok(memory(asker, MemoryOp::Delete(r), |_, w| Some(pb::DeleteMemoryResponse { version: *numbers(w)?.first()? }.encode_to_vec())))
        }
        Some(Operation::Batch(r)) => {
            let r = batch(asker, r)?;
            Ok(memory(asker, MemoryOp::Batch(r), |_, w| Some(pb::BatchMemoryResponse { versions: numbers(w)? }.encode_to_vec())))
        }
        Some(Operation::Append(r)) => {
            let r = pb::AppendMessagesRequest { namespace: asker.whole(&r.namespace), ..r };
            check_append(&r)?;
            Ok(memory(asker, MemoryOp::Append(r), |_, w| {
                Some(pb::AppendMessagesResponse { length: *numbers(w)?.first()? }.encode_to_vec())
            }))
        }
        Some(Operation::Get(r)) => {
            let r = pb::GetMemoryRequest { namespace: asker.whole(&r.namespace), ..r };
            check_get(&r)?;
            Ok(read(move |store, asker| store.memory(&asker.tenant, &r.namespace, &r.key).map(|item| asker.shown(item).encode_to_vec())))
        }
        Some(Operation::List(r)) => {
            let r = pb::ListMemoriesRequest { namespace: asker.whole(&r.namespace), ..r };
            check_list(&r)?;
            let size = page(r.page_size)?;
            Ok(read(move |store, asker| store.memories(&asker.tenant, &r, size).map(|found| listed(asker, found))))
        }
        Some(Operation::Messages(r)) => {
            let r = pb::ListMessagesRequest { namespace: asker.whole(&r.namespace), ..r };
            check_messages(&r)?;
            let size = page(r.page_size)?;
            Ok(read(move |store, asker| {
                let (messages, next_page_token) = store.messages(&asker.tenant, &r, size)?;
                Ok(pb::ListMessagesResponse { messages, next_page_token }.encode_to_vec())
            }))
        }
        Some(Operation::Below(r)) => {
            let (namespace, size) = (namespace(asker, &r.namespace)?, page(r.page_size)?);
            Ok(read(move |store, asker| {
                store.memories_below(&asker.tenant, &namespace, &r.page_token, size).map(|found| listed(asker, found))
            }))
        }
        Some(Operation::Namespaces(r)) => {
            let (namespace, size) = (namespace(asker, &r.namespace)?, page(r.page_size)?);
            Ok(read(move |store, asker| {
                let (found, next_page_token) = store.namespaces_below(&asker.tenant, &namespace, &r.page_token, size)?;
                let namespaces = found.iter().map(|n| asker.below(n)).collect();
                Ok(w::NamespacesReply { namespaces, next_page_token }.encode_to_vec())
            }))
        }
        Some(Operation::Keep(r)) => keep(asker, r),
        Some(Operation::Kept(r)) => Ok(read(move |store, asker| {
            // An ephemeral task keeps nothing.
            let Some((id, _)) = &asker.holder else { return Ok(Vec::new()) };
            let (found, more) = store.kept(id, &format!("{}{}", asker.records, r.after))?;
            let more = more && found.last().is_some_and(|(key, _)| key.starts_with(&asker.records));
            let own = found.into_iter().filter_map(|(key, data)| Some((key.strip_prefix(&asker.records)?.to_owned(), data)));
            let records = own.map(|(key, data)| w::Record { key, data: Some(data) }).collect();
            Ok(w::KeptRecords { records, more }.encode_to_vec())
        })),
        Some(Operation::Search(_)) => Err(AgentError::pending("memory_search")),
        None => Err(AgentError::new(Reason::WorkerProtocolError, "a call of memory without an operation")),
    }
}

fn read(f: impl FnOnce(&TaskStore, &Asker) -> Result<Vec<u8>, AgentError> + Send + 'static) -> Work {
    Work::Read(Box::new(f))
}

fn batch(asker: &Asker, mut r: pb::BatchMemoryRequest) -> Result<pb::BatchMemoryRequest, AgentError> {
    use pb::memory_operation::Operation;
    for one in &mut r.operations {
        // What names its namespace means the same as the batch.
        match &mut one.operation {
            Some(Operation::Put(p)) if p.namespace == r.namespace => p.namespace.clear(),
            Some(Operation::Delete(d)) if d.namespace == r.namespace => d.namespace.clear(),
            _ => {}
        }
    }
    r.namespace = asker.whole(&r.namespace);
    check_batch(&r).map(|()| r)
}

fn keep(asker: &Asker, r: w::KeepRecords) -> Result<Work, AgentError> {
    if let Some(i) = r.records.iter().position(|r| r.key.is_empty() || r.key.len() > MAX_RECORD_KEY || r.key.contains('\0')) {
        let why = format!("must be 1 to {MAX_RECORD_KEY} bytes without a zero byte");
        return Err(AgentError::field(&format!("records[{i}].key"), why));
    }
    // An ephemeral task promises nothing.
    let Some((id, fence)) = asker.holder.clone() else { return Ok(read(|_, _| Ok(Vec::new()))) };
    let records = r.records.into_iter().map(|r| (format!("{}{}", asker.records, r.key), r.data)).collect();
    Ok(Work::Write(WriteOp::Keep { id, fence, records }, |_, _| Some(Vec::new())))
}

fn namespace(asker: &Asker, below: &str) -> Result<String, AgentError> {
    let whole = asker.whole(below);
    match AgentError::invalid(namespace_violation("namespace", &whole).into_iter().collect()) {
        Some(e) => Err(e),
        None => Ok(whole),
    }
}

fn page(size: i32) -> Result<usize, AgentError> {
    match size {
        0 => Ok(PAGE),
        1..=MAX_PAGE => Ok(usize::try_from(size).unwrap_or(PAGE)),
        _ => Err(AgentError::field("page_size", format!("{size}, must be 1 to {MAX_PAGE}"))),
    }
}

fn listed(asker: &Asker, (items, next_page_token): (Vec<pb::MemoryItem>, String)) -> Vec<u8> {
    let items = items.into_iter().map(|item| asker.shown(item)).collect();
    pb::ListMemoriesResponse { items, next_page_token }.encode_to_vec()
}

fn item(asker: &Asker, written: Written) -> Option<Vec<u8>> {
    match written {
        Written::Memory(MemoryAnswer::Item(item)) => Some(asker.shown(*item).encode_to_vec()),
        _ => None,
    }
}

fn numbers(written: Written) -> Option<Vec<i64>> {
    match written {
        Written::Memory(MemoryAnswer::Numbers(numbers)) => Some(numbers),
        _ => None,
    }
}
