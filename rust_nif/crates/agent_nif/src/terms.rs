//! Small helpers between Rust values and terms.

use std::collections::BTreeMap;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use rustler::{Atom, Binary, Decoder, Encoder, Env, MapIterator, NewBinary, Term};

use crate::atoms;

/// Bytes that become a binary.
pub(crate) struct Bin<'a>(pub(crate) &'a [u8]);

impl Encoder for Bin<'_> {
    fn encode<'b>(&self, env: Env<'b>) -> Term<'b> {
        let mut binary = NewBinary::new(env, self.0.len());
        binary.as_mut_slice().copy_from_slice(self.0);
        binary.into()
    }
}

/// Builds a map with atom keys.
pub(crate) struct Map<'a> {
    env: Env<'a>,
    keys: Vec<Term<'a>>,
    values: Vec<Term<'a>>,
}

impl<'a> Map<'a> {
    pub(crate) fn new(env: Env<'a>) -> Self {
        Self { env, keys: Vec::with_capacity(40), values: Vec::with_capacity(40) }
    }

    pub(crate) fn put(mut self, key: Atom, value: impl Encoder) -> Self {
        self.keys.push(key.to_term(self.env));
        self.values.push(value.encode(self.env));
        self
    }

    pub(crate) fn opt(self, key: Atom, value: Option<impl Encoder>) -> Self {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    pub(crate) fn end(self) -> Term<'a> {
        // Only duplicate keys make this fail, and ours are written out below; an empty map is then the honest answer.
        Term::map_from_term_arrays(self.env, &self.keys, &self.values).unwrap_or_else(|_| Term::map_new(self.env))
    }
}

/// A value of a map; None where it is absent or of another type.
pub(crate) fn get<'a, T: Decoder<'a>>(map: Term<'a>, key: Atom) -> Option<T> {
    map.map_get(key).ok()?.decode().ok()
}

/// A text of a map; empty where absent.
pub(crate) fn text(map: Term<'_>, key: Atom) -> String {
    get::<Binary<'_>>(map, key).map(|b| String::from_utf8_lossy(b.as_slice()).into_owned()).unwrap_or_default()
}

/// A number of a map; 0 where absent.
pub(crate) fn int(map: Term<'_>, key: Atom) -> i64 {
    get(map, key).unwrap_or(0)
}

/// Texts of a list in a map.
pub(crate) fn texts(map: Term<'_>, key: Atom) -> Vec<String> {
    get::<Vec<Term<'_>>>(map, key).unwrap_or_default().into_iter().filter_map(string).collect()
}

/// Text of a binary or an atom.
pub(crate) fn string(term: Term<'_>) -> Option<String> {
    if term.is_atom() {
        return term.atom_to_string().ok();
    }
    let bytes: Binary<'_> = term.decode().ok()?;
    Some(String::from_utf8_lossy(bytes.as_slice()).into_owned())
}

/// A map of texts.
pub(crate) fn text_map(term: Option<Term<'_>>) -> BTreeMap<String, String> {
    let Some(iterator) = term.and_then(MapIterator::new) else { return BTreeMap::new() };
    iterator.filter_map(|(k, v)| Some((string(k)?, string(v).or_else(|| v.decode::<i64>().ok().map(|n| n.to_string()))?))).collect()
}

/// A map of texts as a term.
pub(crate) fn text_map_term<'a>(env: Env<'a>, map: &BTreeMap<String, String>) -> Term<'a> {
    let (keys, values): (Vec<_>, Vec<_>) = map.iter().map(|(k, v)| (k.encode(env), v.encode(env))).unzip();
    Term::map_from_term_arrays(env, &keys, &values).unwrap_or_else(|_| Term::map_new(env))
}

fn reason_atom(env: Env<'_>, reason: Reason) -> Atom {
    // The names come from our closed table.
    Atom::from_str(env, reason.snake()).unwrap_or_else(|_| atoms::error())
}

/// `ErrorMap` of the contract.
pub(crate) fn error_map<'a>(env: Env<'a>, e: &AgentError) -> Term<'a> {
    let fields: Vec<Term<'a>> =
        e.fields.iter().map(|f| Map::new(env).put(atoms::field(), &f.field).put(atoms::description(), &f.description).end()).collect();
    Map::new(env)
        .put(atoms::reason(), reason_atom(env, e.reason))
        .put(atoms::message(), &e.message)
        .put(atoms::metadata(), text_map_term(env, &e.metadata))
        .put(atoms::fields(), fields)
        .put(atoms::retry_after_ms(), e.retry_after_ms)
        .end()
}

/// An error that Erlang gives.
pub(crate) fn error_of(term: Term<'_>) -> AgentError {
    let name = get::<Term<'_>>(term, atoms::reason()).and_then(string).unwrap_or_default();
    let mut e = AgentError::new(Reason::parse(&name).unwrap_or(Reason::Internal), text(term, atoms::message()));
    e.metadata = text_map(get(term, atoms::metadata()));
    e.retry_after_ms = u64::try_from(int(term, atoms::retry_after_ms())).unwrap_or(0);
    e.fields = get::<Vec<Term<'_>>>(term, atoms::fields())
        .unwrap_or_default()
        .into_iter()
        .map(|f| pb::FieldViolation { field: text(f, atoms::field()), description: text(f, atoms::description()) })
        .collect();
    e
}

/// `{error, ErrorMap}`.
pub(crate) fn error_tuple<'a>(env: Env<'a>, e: &AgentError) -> Term<'a> {
    (atoms::error(), error_map(env, e)).encode(env)
}

/// `{error, native_down}`.
pub(crate) fn native_down(env: Env<'_>) -> Term<'_> {
    (atoms::error(), atoms::native_down()).encode(env)
}

/// Name of a state.
pub(crate) fn state_atom(state: pb::TaskState) -> Atom {
    match state {
        pb::TaskState::Unspecified => atoms::unknown(),
        pb::TaskState::Queued => atoms::queued(),
        pb::TaskState::Running => atoms::running(),
        pb::TaskState::Waiting => atoms::waiting(),
        pb::TaskState::Succeeded => atoms::succeeded(),
        pb::TaskState::Failed => atoms::failed(),
        pb::TaskState::Cancelled => atoms::cancelled(),
        pb::TaskState::TimedOut => atoms::timed_out(),
    }
}

/// State of a name.
pub(crate) fn state_of(atom: Option<Atom>) -> pb::TaskState {
    match atom {
        Some(a) if a == atoms::succeeded() => pb::TaskState::Succeeded,
        Some(a) if a == atoms::cancelled() => pb::TaskState::Cancelled,
        Some(a) if a == atoms::timed_out() => pb::TaskState::TimedOut,
        _ => pb::TaskState::Failed,
    }
}
