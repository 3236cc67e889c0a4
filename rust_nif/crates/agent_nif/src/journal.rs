//! Where model calls and tools meet the journal of their task.
//!
//! A call of a running attempt carries `store`, `task_id`, `fence` and `attempt` in its options. It is answered from the journal if an
//! earlier attempt was given the answer; else its intent is queued before the bytes leave, and the answer comes with an entry that the
//! caller records ([`Recordable`]): whoever is given an answer first waits for that commit.

use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, hash};
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use agent_store::journal::{Change, Decision, Key, Kind, Lookup, Question, Replay, Scope, Session, missing};
use agent_store::{TaskStore, WriteOp};
use prost::Message;
use rustler::{Atom, Encoder, Env, Resource, ResourceArc, Term};

use crate::atoms;
use crate::store::StoreHandle;
use crate::terms::{Map, get, int, text};

/// Between two looks at a closed gate.
const GATE_LOOK: Duration = Duration::from_millis(100);

/// An answer that waits to be recorded.
pub(crate) struct Recordable {
    pub(crate) key: Key,
    pub(crate) answer: Vec<u8>,
}

#[rustler::resource_impl]
impl Resource for Recordable {}

/// The journal of the attempt that makes a call.
pub(crate) struct Journal {
    store: Arc<TaskStore>,
    task: String,
    fence: i64,
    question: Question,
    scope: Scope,
    session: Option<Arc<Session>>,
}

/// What the journal says of a live call.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    key: Key,
    in_doubt: bool,
    diverged: bool,
}

/// The journal's answer.
pub(crate) enum Asked<R> {
    Recorded(R),
    Live(Live),
    /// The task is run from its record alone, which does not hold it.
    Missing,
}

impl Journal {
    /// The journal that the options of a call name; None outside of a task, and for an ephemeral one.
    pub(crate) fn of(options: Term<'_>, question: impl FnOnce() -> Question) -> Option<Self> {
        let handle = get::<ResourceArc<StoreHandle>>(options, atoms::store())?;
        let store = handle.get()?;
        let task = text(options, atoms::task_id());
        if store.is_ephemeral(&task) {
            return None;
        }
        let (fence, attempt) = (int(options, atoms::fence()), int(options, atoms::attempt()));
        let scope = scope(options);
        let shared = store.session(&task, fence, attempt);
        let session = if scope.life <= 1 { shared } else { shared.and_then(|s| s.life(&scope)) };
        let (kind, hash) = question();
        Some(Self { store, task, fence, question: (kind, scope.hash(hash)), scope, session })
    }

    /// Asks without waiting; None: the disk must be read first.
    pub(crate) fn ask_now<R: Message + Default>(&self) -> Option<Asked<R>> {
        Some(asked(self.session.as_ref()?.ask(self.question, self.in_order())))
    }

    /// Asks.
    pub(crate) async fn ask<R: Message + Default>(&mut self) -> Result<Asked<R>, AgentError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let (store, task, fence, scope) = (self.store.clone(), self.task.clone(), self.fence, self.scope.clone());
                let read = move || if scope.life <= 1 { store.read_session(&task, fence) } else { store.read_life(&task, fence, &scope) };
                tokio::task::spawn_blocking(read)
                    .await
                    .map_err(|_| AgentError::new(agent_core::Reason::NativePanic, "the journal could not be read"))??
            }
        };
        let asked = asked(session.ask(self.question, self.in_order()));
        self.session = Some(session);
        Ok(asked)
    }

    /// Steps of a plan run side by side: what one of them has not asked yet says nothing.
    fn in_order(&self) -> bool {
        self.scope.name.is_empty()
    }

    /// The call was not made after all, and will be asked again.
    pub(crate) fn take_back<R: Message>(&self, asked: Asked<R>) {
        let answer = if let Asked::Recorded(r) = asked { Some(r.encode_to_vec()) } else { None };
        if let Some(session) = &self.session {
            session.take_back(self.question, answer);
        }
    }

    /// Why a call is not made that the record of a replay does not hold.
    pub(crate) fn missing(&self) -> AgentError {
        missing(self.question.0, &self.scope.name)
    }

    /// Whether a call may begin now.
    pub(crate) fn may_begin(&self) -> bool {
        self.store.gate_is_open()
    }

    /// Waits until a call may begin: not while the database has been away for long. The call's own deadline ends the waiting.
    pub(crate) async fn gate(&self) {
        while !self.store.gate_is_open() {
            tokio::time::sleep(GATE_LOOK).await;
        }
    }

    fn write(&self, key: Key, change: Change) {
        // Nobody waits: a full queue or a store that is away costs the mark alone.
        let op = WriteOp::Journal { id: self.task.clone(), fence: self.fence, key, change };
        let _ = self.store.write(op, |_| {});
    }

    /// The bytes are about to leave.
    pub(crate) fn leaves(&self, live: Live) {
        self.write(live.key, Change::Intent);
    }

    /// No answer came, and nothing will be billed.
    pub(crate) fn failed(&self, live: Live) {
        self.write(live.key, Change::Withdrawn);
    }
}

fn asked<R: Message + Default>(lookup: Lookup) -> Asked<R> {
    match lookup {
        // Bytes that we wrote; if they cannot be read the call is made again.
        Lookup::Recorded(answer) => Asked::Recorded(R::decode(answer.as_slice()).unwrap_or_default()),
        Lookup::Missing => Asked::Missing,
        Lookup::Live { key, in_doubt, diverged } => Asked::Live(Live { key, in_doubt, diverged }),
    }
}

/// Question of a model call.
pub(crate) fn chat(request: &pb::ChatRequest) -> Question {
    (Kind::Chat, hash::chat_hash(request))
}

/// Question of an embedding call.
pub(crate) fn embed(request: &pb::EmbedRequest) -> Question {
    (Kind::Embed, hash::embed_hash(request))
}

/// What the caller learns beside the answer.
pub(crate) enum Note {
    /// No journal.
    None,
    /// Answered from it.
    Replayed,
    /// To be recorded.
    Record(Live, Vec<u8>),
}

impl Note {
    pub(crate) fn put(self, map: Map<'_>) -> Map<'_> {
        match self {
            Note::None => map,
            Note::Replayed => map.put(atoms::replayed(), true),
            Note::Record(live, answer) => {
                let map = map.put(atoms::journal(), ResourceArc::new(Recordable { key: live.key, answer }));
                let map = if live.in_doubt { map.put(atoms::in_doubt(), true) } else { map };
                if live.diverged { map.put(atoms::diverged(), true) } else { map }
            }
        }
    }
}

/// An entry of the journal in an operation of the store.
pub(crate) fn recordable(term: Term<'_>) -> Option<(Key, Vec<u8>)> {
    let entry: ResourceArc<Recordable> = term.decode().ok()?;
    Some((entry.key, entry.answer.clone()))
}

/// The part of its task that asks, by the options of a call.
fn scope(m: Term<'_>) -> Scope {
    Scope { name: text(m, atoms::scope()), life: u32::try_from(int(m, atoms::life())).unwrap_or(0) }
}

/// Key of a tool's call in an operation of the store.
pub(crate) fn tool_key(m: Term<'_>) -> Key {
    let question = (Kind::Tool, scope(m).hash(hash::tool_hash(&text(m, atoms::name()), &text(m, atoms::arguments()))));
    Key { question, occurrence: u32::try_from(int(m, atoms::occurrence())).unwrap_or(0) }
}

/// How a tool in an operation of the store may be repeated.
pub(crate) fn replay(m: Term<'_>) -> Replay {
    match get::<Atom>(m, atoms::replay()) {
        Some(a) if a == atoms::journaled() => Replay::Journaled,
        _ => Replay::Once,
    }
}

/// What a tool's end records.
pub(crate) fn tool_change(m: Term<'_>) -> Change {
    if get(m, atoms::withdrawn()).unwrap_or(false) {
        return Change::Withdrawn;
    }
    let reply = w::ToolReply { content: text(m, atoms::content()), is_error: get(m, atoms::is_error()).unwrap_or(false) };
    Change::Answer(reply.encode_to_vec())
}

/// `run`, `in_doubt` or `{recorded, #{content, is_error}}`.
pub(crate) fn decision_term(env: Env<'_>, decision: Decision) -> Term<'_> {
    match decision {
        Decision::Run => atoms::run().encode(env),
        Decision::InDoubt => atoms::in_doubt().encode(env),
        Decision::Recorded(answer) => {
            let reply = w::ToolReply::decode(answer.as_slice()).unwrap_or_default();
            let map = Map::new(env).put(atoms::content(), reply.content).put(atoms::is_error(), reply.is_error).end();
            (atoms::recorded(), map).encode(env)
        }
    }
}
