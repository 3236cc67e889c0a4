//! The journal of a task: answers of models and results of tools that an earlier attempt has paid for.
//!
//! An entry is found by what was asked and by which of several equal questions it was, never by its position, so calls that run in
//! parallel replay as well. An entry without an answer is an intent: the bytes had left when the attempt ended, so it may be billed twice.
//!
//! A [`Session`] is what one attempt knows of it: the entries of earlier attempts, and how often each question was asked in this one.

use std::collections::HashMap;
use std::sync::Arc;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest, Sha256};

/// Version of the canonical forms behind the hashes; stored beside every entry, so that a newer program can tell them apart.
pub const VERSION: u32 = 1;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing: that this entry stands says that the record is whole, so a question without an entry is refused.
    Sealed = 0,
    /// A model.
    Chat = 1,
    /// An embedding model.
    Embed = 2,
    /// A tool.
    Tool = 3,
    /// A run of a step of a plan that gave a result.
    Step = 4,
    /// One that failed for good.
    StepFailed = 5,
    /// One that undid a step.
    StepUndone = 6,
}

impl Kind {
    /// By its number.
    pub(crate) fn of(number: i64) -> Self {
        match number {
            0 => Kind::Sealed,
            1 => Kind::Chat,
            2 => Kind::Embed,
            4 => Kind::Step,
            5 => Kind::StepFailed,
            6 => Kind::StepUndone,
            _ => Kind::Tool,
        }
    }

    /// Whether a model answers it.
    fn is_call(self) -> bool {
        matches!(self, Kind::Chat | Kind::Embed)
    }
}

/// Which part of a task asks. The steps of a plan run side by side, so each counts its own questions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Run of a step of a plan; empty: the task itself.
    pub name: String,
    /// Which try of that run within the attempt, from 1.
    pub life: u32,
}

impl Scope {
    /// The hash of a question as this part of the task asks it.
    pub fn hash(&self, hash: [u8; 32]) -> [u8; 32] {
        if self.name.is_empty() {
            return hash;
        }
        Sha256::new()
            .chain_update(u32::try_from(self.name.len()).unwrap_or(u32::MAX).to_be_bytes())
            .chain_update(&self.name)
            .chain_update(hash)
            .finalize()
            .into()
    }
}

/// A question: its kind and the SHA-256 of its canonical form.
pub type Question = (Kind, [u8; 32]);

/// Names an entry of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What was asked.
    pub question: Question,
    /// Which of several equal questions, from 0.
    pub occurrence: u32,
}

/// What happens to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The question is about to leave.
    Intent,
    /// Its answer.
    Answer(Vec<u8>),
    /// It was refused, or will be asked again as if for the first time: nothing was paid, nothing happened.
    Withdrawn,
}

/// How a tool declared that it may be repeated, as far as the journal is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// In doubt it runs again.
    Journaled,
    /// In doubt somebody must decide.
    Once,
}

/// What a tool that is about to run shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run.
    Run,
    /// Not run: this is its result.
    Recorded(Vec<u8>),
    /// It may have run: an earlier attempt ended between its begin and its end.
    InDoubt,
}

/// An entry as it is stored: its key, and its answer if there is one.
pub type Entry = (Key, Option<Vec<u8>>);

/// What a session says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Answered before.
    Recorded(Vec<u8>),
    /// To be asked.
    Live {
        /// Under which it is to be recorded.
        key: Key,
        /// An earlier attempt ended while this very question was under way.
        in_doubt: bool,
        /// The run took another way than the one recorded; said once.
        diverged: bool,
    },
    /// Not recorded, and the record is all there is: it must not be asked.
    Missing,
}

/// What a replay says to a question that its record does not answer.
pub fn missing(kind: Kind, step: &str) -> AgentError {
    let what = match kind {
        Kind::Tool => "tool",
        Kind::Embed => "embedding call",
        _ => "model call",
    };
    let place = if step.is_empty() { String::new() } else { format!(" of step {step}") };
    let error = AgentError::new(Reason::ReplayMissing, format!("a {what}{place} is not in the record, and a replay asks nobody else"));
    let error = error.with("kind", what.split(' ').next().unwrap_or_default());
    if step.is_empty() { error } else { error.with("step", step) }
}

/// An entry of a bundle as it is stored.
pub fn entry_of(entry: &pb::JournalEntry) -> Result<(Key, Vec<u8>), AgentError> {
    use pb::JournalKind as K;
    use pb::journal_entry::Answer;
    let bad = |why: &str| AgentError::new(Reason::BundleInvalid, format!("an entry of its journal {why}")).with("part", "journal");
    let (kind, answer) = match (entry.kind(), &entry.answer) {
        (K::Chat, Some(Answer::Chat(r))) => (Kind::Chat, r.encode_to_vec()),
        (K::Embed, Some(Answer::Embed(r))) => (Kind::Embed, r.encode_to_vec()),
        (K::Tool, Some(Answer::Tool(r))) => (Kind::Tool, w::ToolReply { content: r.content.clone(), is_error: r.is_error }.encode_to_vec()),
        (K::Step, Some(Answer::Step(r))) => (Kind::Step, r.encode_to_vec()),
        (K::StepFailed, Some(Answer::Step(r))) => (Kind::StepFailed, r.encode_to_vec()),
        (K::StepUndone, Some(Answer::Step(r))) => (Kind::StepUndone, r.encode_to_vec()),
        _ => return Err(bad("has no answer of its kind")),
    };
    let hash = entry.hash.as_slice().try_into().map_err(|_| bad("has no hash of 32 bytes"))?;
    let occurrence = u32::try_from(entry.occurrence).map_err(|_| bad("has a number below 0"))?;
    Ok((Key { question: (kind, hash), occurrence }, answer))
}

/// A stored entry for a bundle; none for what cannot be read.
pub(crate) fn entry_for(key: &Key, answer: &[u8]) -> Option<pb::JournalEntry> {
    use pb::JournalKind as K;
    use pb::journal_entry::Answer;
    let (kind, answer) = match key.question.0 {
        Kind::Sealed => return None,
        Kind::Chat => (K::Chat, Answer::Chat(pb::ChatResponse::decode(answer).ok()?)),
        Kind::Embed => (K::Embed, Answer::Embed(pb::EmbedResponse::decode(answer).ok()?)),
        Kind::Tool => {
            let reply = w::ToolReply::decode(answer).ok()?;
            (K::Tool, Answer::Tool(pb::ToolAnswer { content: reply.content, is_error: reply.is_error }))
        }
        Kind::Step => (K::Step, Answer::Step(pb::PlanStepRun::decode(answer).ok()?)),
        Kind::StepFailed => (K::StepFailed, Answer::Step(pb::PlanStepRun::decode(answer).ok()?)),
        Kind::StepUndone => (K::StepUndone, Answer::Step(pb::PlanStepRun::decode(answer).ok()?)),
    };
    let occurrence = i32::try_from(key.occurrence).ok()?;
    Some(pb::JournalEntry { kind: kind as i32, hash: key.question.1.to_vec(), occurrence, answer: Some(answer) })
}

#[derive(Debug, Default)]
struct Inner {
    recorded: HashMap<Key, Option<Vec<u8>>>,
    asked: HashMap<Question, u32>,
    /// Answers that nobody has asked for yet.
    unused: usize,
    hits: usize,
    diverged: bool,
    /// Sessions of later tries of a plan's steps.
    lives: HashMap<Scope, Arc<Session>>,
}

/// What one attempt knows of the journal.
#[derive(Debug)]
pub struct Session {
    fence: i64,
    sealed: bool,
    inner: Mutex<Inner>,
}

impl Session {
    /// A session over the entries of earlier attempts.
    pub fn new(fence: i64, entries: Vec<Entry>) -> Self {
        let unused = entries.iter().filter(|(key, answer)| key.question.0.is_call() && answer.is_some()).count();
        let sealed = entries.iter().any(|(key, _)| key.question.0 == Kind::Sealed);
        Self { fence, sealed, inner: Mutex::new(Inner { recorded: entries.into_iter().collect(), unused, ..Inner::default() }) }
    }

    /// The session of a later try of a plan's step, if it is open.
    pub fn life(&self, scope: &Scope) -> Option<Arc<Session>> {
        self.inner.lock().lives.get(scope).cloned()
    }

    /// Opens it over all that is recorded by now; the first to come does.
    pub fn open_life(&self, scope: &Scope, entries: Vec<Entry>) -> Arc<Session> {
        let session = Arc::new(Session::new(self.fence, entries));
        self.inner.lock().lives.entry(scope.clone()).or_insert(session).clone()
    }

    /// Asks; every call counts as one more of equal questions. Only a run whose questions come in order can be seen to diverge.
    pub fn ask(&self, question: Question, in_order: bool) -> Lookup {
        let inner = &mut *self.inner.lock();
        let asked = inner.asked.entry(question).or_insert(0);
        let key = Key { question, occurrence: *asked };
        *asked += 1;
        match inner.recorded.remove(&key) {
            Some(Some(answer)) => {
                inner.unused -= 1;
                inner.hits += 1;
                Lookup::Recorded(answer)
            }
            _ if self.sealed => Lookup::Missing,
            Some(None) => Lookup::Live { key, in_doubt: true, diverged: false },
            // Answers are left that this run did not ask for before it asked for something new.
            None => {
                let diverged = in_order && inner.unused > 0 && inner.hits > 0 && !inner.diverged;
                inner.diverged |= diverged;
                Lookup::Live { key, in_doubt: false, diverged }
            }
        }
    }

    /// Takes back the last question, which was not asked after all.
    pub fn take_back(&self, question: Question, answer: Option<Vec<u8>>) {
        let inner = &mut *self.inner.lock();
        let Some(asked) = inner.asked.get_mut(&question).filter(|n| **n > 0) else { return };
        *asked -= 1;
        if let Some(answer) = answer {
            inner.recorded.insert(Key { question, occurrence: *asked }, Some(answer));
            inner.unused += 1;
            inner.hits -= 1;
        }
    }
}

/// The sessions of running attempts.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Arc<Session>>>,
}

impl Sessions {
    /// The session of an attempt, if it was opened.
    pub fn get(&self, task: &str, fence: i64) -> Option<Arc<Session>> {
        self.open.lock().get(task).filter(|s| s.fence == fence).cloned()
    }

    /// The session of an attempt; the first to come opens it, an older attempt's is replaced.
    pub fn open(&self, task: &str, session: Session) -> Arc<Session> {
        let mut open = self.open.lock();
        match open.get(task) {
            Some(old) if old.fence >= session.fence => old.clone(),
            _ => {
                let session = Arc::new(session);
                open.insert(task.to_owned(), session.clone());
                session
            }
        }
    }

    /// The attempt is over.
    pub fn close(&self, task: &str) {
        let mut open = self.open.lock();
        if !open.is_empty() {
            open.remove(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: u8) -> Question {
        (Kind::Chat, [n; 32])
    }

    fn key(n: u8, occurrence: u32) -> Key {
        Key { question: question(n), occurrence }
    }

    #[test]
    fn equal_questions_are_answered_in_the_order_of_their_numbers_and_the_next_one_is_live() {
        let s = Session::new(2, vec![(key(1, 1), Some(vec![11])), (key(1, 0), Some(vec![10]))]);
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![10]));
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![11]));
        assert_eq!(s.ask(question(1), true), Lookup::Live { key: key(1, 2), in_doubt: false, diverged: false });
    }

    #[test]
    fn the_order_of_different_questions_does_not_matter() {
        let s = Session::new(2, vec![(key(1, 0), Some(vec![1])), (key(2, 0), Some(vec![2]))]);
        assert_eq!(s.ask(question(2), true), Lookup::Recorded(vec![2]));
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![1]));
    }

    #[test]
    fn a_sealed_record_answers_what_it_holds_and_refuses_the_rest() {
        let seal = Key { question: (Kind::Sealed, [0; 32]), occurrence: 0 };
        let s = Session::new(1, vec![(seal, Some(Vec::new())), (key(1, 0), Some(vec![1])), (key(2, 0), None)]);
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![1]));
        assert_eq!(s.ask(question(1), true), Lookup::Missing);
        assert_eq!(s.ask(question(2), true), Lookup::Missing);
    }

    #[test]
    fn an_entry_of_a_bundle_is_the_stored_one_and_a_damaged_one_is_refused() {
        let stored = pb::ChatResponse { model: "m".into(), ..Default::default() }.encode_to_vec();
        let given = entry_for(&key(7, 2), &stored).unwrap();
        assert_eq!(entry_of(&given).unwrap(), (key(7, 2), stored));
        for bad in [
            pb::JournalEntry { hash: vec![1], ..given.clone() },
            pb::JournalEntry { occurrence: -1, ..given.clone() },
            pb::JournalEntry { kind: pb::JournalKind::Tool as i32, ..given.clone() },
            pb::JournalEntry { answer: None, ..given },
        ] {
            assert_eq!(entry_of(&bad).unwrap_err().reason, Reason::BundleInvalid);
        }
    }

    #[test]
    fn an_intent_is_in_doubt_and_no_divergence() {
        let s = Session::new(2, vec![(key(1, 0), Some(vec![1])), (key(2, 0), None), (key(3, 0), Some(vec![3]))]);
        s.ask(question(1), true);
        assert_eq!(s.ask(question(2), true), Lookup::Live { key: key(2, 0), in_doubt: true, diverged: false });
    }

    #[test]
    fn another_way_than_the_recorded_one_is_said_once() {
        let s = Session::new(2, vec![(key(1, 0), Some(vec![1])), (key(2, 0), Some(vec![2]))]);
        s.ask(question(1), true);
        assert_eq!(s.ask(question(9), true), Lookup::Live { key: key(9, 0), in_doubt: false, diverged: true });
        assert_eq!(s.ask(question(8), true), Lookup::Live { key: key(8, 0), in_doubt: false, diverged: false });
        assert_eq!(s.ask(question(2), true), Lookup::Recorded(vec![2]));
    }

    #[test]
    fn a_question_that_was_taken_back_is_answered_the_next_time() {
        let s = Session::new(2, vec![(key(1, 0), Some(vec![1]))]);
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![1]));
        s.take_back(question(1), Some(vec![1]));
        assert_eq!(s.ask(question(1), true), Lookup::Recorded(vec![1]));
        let live = Lookup::Live { key: key(1, 1), in_doubt: false, diverged: false };
        assert_eq!(s.ask(question(1), true), live);
        s.take_back(question(1), None);
        assert_eq!(s.ask(question(1), true), live);
    }

    #[test]
    fn a_later_attempt_replaces_the_session_and_an_earlier_one_does_not_get_it_back() {
        let all = Sessions::default();
        all.open("t", Session::new(1, Vec::new()));
        all.open("t", Session::new(2, vec![(key(1, 0), Some(vec![1]))]));
        assert!(all.get("t", 1).is_none());
        assert_eq!(all.get("t", 2).unwrap().ask(question(1), true), Lookup::Recorded(vec![1]));
        all.close("t");
        assert!(all.get("t", 2).is_none());
    }
}
