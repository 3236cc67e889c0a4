//! What was paid for while the database was away: answers of models and tools, and ends of tasks, in a file of the node.
//!
//! They wait in memory for the database anyway; the file is for the case that the node ends before it is back. At the next start they are
//! written first, with their fences, before any attempt is closed: what the database has already changes nothing. A frame is a length (4
//! bytes, big endian), the first 8 bytes of the SHA-256 of the content, and the content. One that is cut off was never synced.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::journal::{Change, Key, Kind};
use crate::op::{Finish, Happened, Metrics, WriteOp};
use crate::record::metrics;

/// Bytes that are kept at most. Beyond this, what comes waits in memory alone.
const SPOOL_BYTES: u64 = 64 * 1024 * 1024;
const HEAD: usize = 12;

/// Answers of an attempt, or its end with the last of them.
#[derive(Clone, PartialEq, Message)]
struct Kept {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int64, tag = "2")]
    fence: i64,
    #[prost(message, repeated, tag = "3")]
    answers: Vec<Answer>,
    #[prost(message, optional, tag = "4")]
    end: Option<End>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(uint32, tag = "3")]
    occurrence: u32,
    #[prost(bytes = "vec", tag = "4")]
    answer: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct End {
    #[prost(enumeration = "pb::TaskState", tag = "1")]
    state: i32,
    #[prost(message, optional, tag = "2")]
    result: Option<pb::AgentResult>,
    #[prost(message, optional, tag = "3")]
    error: Option<pb::TaskError>,
    #[prost(string, tag = "4")]
    executor: String,
    #[prost(message, optional, tag = "5")]
    metrics: Option<pb::ExecutionMetrics>,
    #[prost(int64, optional, tag = "6")]
    cpu_ms: Option<i64>,
    #[prost(string, tag = "7")]
    outcome: String,
    #[prost(string, tag = "8")]
    cause: String,
    #[prost(message, optional, tag = "9")]
    proof: Option<pb::CancellationProof>,
    #[prost(message, repeated, tag = "10")]
    events: Vec<pb::TaskEvent>,
}

impl Answer {
    fn of(key: &Key, answer: &[u8]) -> Self {
        let (kind, hash) = key.question;
        Self { kind: kind as i64, hash: hash.to_vec(), occurrence: key.occurrence, answer: answer.to_vec() }
    }

    fn entry(self) -> Option<(Key, Vec<u8>)> {
        let question = (Kind::of(self.kind), self.hash.try_into().ok()?);
        Some((Key { question, occurrence: self.occurrence }, self.answer))
    }
}

impl End {
    fn of(f: &Finish) -> Self {
        Self {
            state: f.state as i32,
            result: f.result.clone(),
            error: f.error.clone(),
            executor: f.executor.clone(),
            metrics: Some(metrics(&f.metrics)),
            cpu_ms: f.metrics.cpu_ms,
            outcome: f.outcome.clone(),
            cause: f.cause.clone(),
            proof: f.proof.clone(),
            events: f
                .events
                .iter()
                .map(|h| pb::TaskEvent { step_id: h.step.clone(), event: Some(h.event.clone()), ..Default::default() })
                .collect(),
        }
    }

    fn finish(self, journal: Vec<(Key, Vec<u8>)>) -> Finish {
        let m = self.metrics.unwrap_or_default();
        let ms = |d: Option<prost_types::Duration>| d.map_or(0, |d| d.seconds * 1000 + i64::from(d.nanos) / 1_000_000);
        Finish {
            state: self.state(),
            metrics: Metrics {
                queue_ms: ms(m.queue_time),
                execution_ms: ms(m.execution_time),
                usage: m.tokens_used.unwrap_or_default(),
                provider_calls: m.provider_calls,
                provider_calls_replayed: m.provider_calls_replayed,
                cache_hit: m.cache_hit,
                tool_calls: m.tool_calls,
                memory_bytes: m.memory_used,
                cpu_ms: self.cpu_ms,
                cost_micros: m.cost_micros,
            },
            result: self.result,
            error: self.error,
            executor: self.executor,
            outcome: self.outcome,
            cause: self.cause,
            proof: self.proof,
            events: self.events.into_iter().filter_map(|e| Some(Happened { event: e.event?, step: e.step_id })).collect(),
            journal,
        }
    }
}

impl Kept {
    /// What is worth keeping of a write; all others are made good by the recovery of the attempt.
    fn of(op: &WriteOp) -> Option<Self> {
        match op {
            WriteOp::Journal { id, fence, key, change: Change::Answer(answer) } => {
                Some(Self { id: id.clone(), fence: *fence, answers: vec![Answer::of(key, answer)], end: None })
            }
            WriteOp::Answers { id, fence, answers } => {
                let answers = answers.iter().map(|(key, answer)| Answer::of(key, answer)).collect();
                Some(Self { id: id.clone(), fence: *fence, answers, end: None })
            }
            WriteOp::Finish { id, fence, finish } => {
                let answers = finish.journal.iter().map(|(key, answer)| Answer::of(key, answer)).collect();
                Some(Self { id: id.clone(), fence: *fence, answers, end: Some(End::of(finish)) })
            }
            _ => None,
        }
    }

    fn ops(self) -> Vec<WriteOp> {
        let Self { id, fence, answers, end } = self;
        let mut entries = answers.into_iter().filter_map(Answer::entry);
        match end {
            Some(end) => vec![WriteOp::Finish { finish: Box::new(end.finish(entries.collect())), id, fence }],
            None => entries
                .by_ref()
                .map(|(key, answer)| WriteOp::Journal { id: id.clone(), fence, key, change: Change::Answer(answer) })
                .collect(),
        }
    }
}

fn frame(kept: &Kept) -> Vec<u8> {
    let content = kept.encode_to_vec();
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &Sha256::digest(&content)[..8], &content].concat()
}

/// The first frame, and what follows it; None where it is cut off or damaged.
fn unframe(bytes: &[u8]) -> Option<(Kept, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes(head[..4].try_into().ok()?);
    let (content, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    if Sha256::digest(content)[..8] != head[4..] {
        return None;
    }
    Some((Kept::decode(content).ok()?, rest))
}

/// The file.
pub(crate) struct Spool {
    path: PathBuf,
    /// Open while there is something in it.
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// A spool at this path; nothing is read or made yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, bytes: 0 }
    }

    /// What an earlier run left.
    pub(crate) fn read(&self) -> Result<Vec<WriteOp>, AgentError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(AgentError::new(Reason::StoreUnavailable, format!("{}: {e}", self.path.display()))),
        };
        let (mut ops, mut left) = (Vec::new(), bytes.as_slice());
        while let Some((kept, rest)) = unframe(left) {
            ops.extend(kept.ops());
            left = rest;
        }
        Ok(ops)
    }

    /// Puts down what is worth it, and returns when it is on stable storage. What cannot be put down waits in memory alone, as it does anyway.
    pub(crate) fn keep<'a>(&mut self, ops: impl Iterator<Item = &'a WriteOp>) {
        let frames: Vec<u8> = ops.filter_map(Kept::of).flat_map(|kept| frame(&kept)).collect();
        if frames.is_empty() || self.bytes + frames.len() as u64 > SPOOL_BYTES {
            return;
        }
        match self.append(&frames) {
            Ok(()) => self.bytes += frames.len() as u64,
            Err(e) => tracing::warn!("{}: {e}; paid answers wait in memory alone", self.path.display()),
        }
    }

    fn append(&mut self, frames: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                if let Some(folder) = self.path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                if let Some(folder) = self.path.parent().filter(|f| !f.as_os_str().is_empty()) {
                    File::open(folder)?.sync_all()?;
                }
                self.file.insert(file)
            }
        };
        file.write_all(frames)?;
        file.sync_data()
    }

    /// Everything is in the database.
    pub(crate) fn clear(&mut self) {
        self.file = None;
        self.bytes = 0;
        match std::fs::remove_file(&self.path) {
            // It would be written once more at the next start, which changes nothing.
            Err(e) if e.kind() != ErrorKind::NotFound => tracing::warn!("{}: {e}", self.path.display()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(kind: Kind, occurrence: u32) -> Key {
        Key { question: (kind, [7; 32]), occurrence }
    }

    fn end(output: &str) -> WriteOp {
        let finish = Finish {
            state: pb::TaskState::Succeeded,
            result: Some(pb::AgentResult { output: output.into(), ..Default::default() }),
            error: None,
            executor: "native".into(),
            metrics: Metrics {
                queue_ms: 3,
                execution_ms: 1999,
                provider_calls: 2,
                cost_micros: Some(5),
                cpu_ms: Some(8),
                ..Default::default()
            },
            outcome: "succeeded".into(),
            cause: String::new(),
            proof: None,
            events: vec![pb::task_event::Event::Log(pb::LogEvent { message: "said".into(), ..Default::default() }).into()],
            journal: vec![(key(Kind::Chat, 1), b"paid".to_vec())],
        };
        WriteOp::Finish { id: "t1".into(), fence: 4, finish: Box::new(finish) }
    }

    fn answer(kind: Kind, occurrence: u32, answer: &[u8]) -> WriteOp {
        WriteOp::Journal { id: "t2".into(), fence: 1, key: key(kind, occurrence), change: Change::Answer(answer.to_vec()) }
    }

    fn place() -> PathBuf {
        std::env::temp_dir().join(format!("singularity-spool-{}-{}", std::process::id(), uuid::Uuid::new_v4())).join("spool")
    }

    #[test]
    fn what_was_paid_for_comes_back_as_it_was() {
        let path = place();
        let kept = [answer(Kind::Tool, 2, b"42"), end("done"), answer(Kind::Embed, 0, b"")];
        let free = WriteOp::Wake { id: "t3".into() };
        Spool::new(&path).keep(kept.iter().chain([&free]));
        let back = Spool::new(&path).read().unwrap();
        assert_eq!(format!("{back:?}"), format!("{kept:?}"), "and what is made good by recovery is not kept");
        let mut spool = Spool::new(&path);
        spool.clear();
        assert!(spool.read().unwrap().is_empty() && !path.exists());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    proptest! {
        #[test]
        fn a_file_that_was_cut_gives_what_was_whole(cut in 0usize..400, flip in 0usize..400) {
            let whole: Vec<Kept> = (0..4).filter_map(|n| Kept::of(&answer(Kind::Chat, n, &[n as u8; 40]))).collect();
            let frames: Vec<Vec<u8>> = whole.iter().map(frame).collect();
            let mut bytes = frames.concat();
            bytes.truncate(cut);
            if let Some(byte) = bytes.get_mut(flip) {
                *byte ^= 1;
            }
            let good = frames.iter().scan(0, |end, f| { *end += f.len(); Some(*end) }).filter(|end| *end <= cut.min(flip)).count();
            let (mut left, mut read) = (bytes.as_slice(), Vec::new());
            while let Some((kept, rest)) = unframe(left) {
                read.push(kept);
                left = rest;
            }
            prop_assert!(read.len() >= good && read.len() <= good + usize::from(flip >= cut));
            prop_assert_eq!(&read[..good], &whole[..good]);
        }
    }
}
