//! Pieces of an answer on their way to the caller, and what was seen of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use pb::stream_chat_response::Piece;

use crate::Pieces;

/// The caller's channel, with a note of the first content: once something was shown, nothing is repeated silently.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    to: &'a Pieces,
    shown: AtomicBool,
    first: OnceLock<Instant>,
    /// What was shown, where the answer may have to be gone on with.
    kept: Option<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    text: String,
    /// Something else than text was shown.
    other: bool,
    /// Bytes behind which another endpoint went on.
    seam: Option<usize>,
    /// Blanks that were shown before the seam, and that who goes on may say again.
    blanks: String,
}

impl Kept {
    /// Notes a piece of text; gives what of it is new.
    fn add<'t>(&mut self, mut text: &'t str) -> &'t str {
        while let (Some(known), Some(said)) = (self.blanks.chars().next(), text.chars().next()) {
            if known != said {
                break;
            }
            self.blanks.remove(0);
            text = &text[said.len_utf8()..];
        }
        if !text.is_empty() {
            self.blanks.clear();
            self.text.push_str(text);
        }
        text
    }
}

impl<'a> Flow<'a> {
    pub(crate) fn new(to: &'a Pieces) -> Self {
        Self { to, shown: AtomicBool::new(false), first: OnceLock::new(), kept: None }
    }

    /// One that keeps what it shows, so that the answer can be gone on with elsewhere.
    pub(crate) fn keeping(to: &'a Pieces) -> Self {
        Self { kept: Some(Mutex::default()), ..Self::new(to) }
    }

    /// Passes a piece on; waits while the reader is behind.
    pub(crate) async fn send(&self, mut piece: pb::StreamChatResponse) -> Result<(), ()> {
        match (&mut piece.piece, &self.kept) {
            (Some(Piece::TextDelta(text)), Some(kept)) => {
                let new = kept.lock().add(text).len();
                if new == 0 {
                    return Ok(());
                }
                text.drain(..text.len() - new);
            }
            (Some(Piece::ReasoningDelta(_) | Piece::ToolCallDelta(_)), Some(kept)) => kept.lock().other = true,
            _ => {}
        }
        if matches!(piece.piece, Some(Piece::TextDelta(_) | Piece::ReasoningDelta(_) | Piece::ToolCallDelta(_))) {
            self.shown.store(true, Ordering::Relaxed);
            let _ = self.first.set(Instant::now());
        }
        self.to.send(piece).await.map_err(|_| ())
    }

    /// Whether the caller has seen content.
    pub(crate) fn shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }

    /// When the first content came.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// What was shown, where that was text and nothing else.
    pub(crate) fn plain_text(&self) -> Option<String> {
        let kept = self.kept.as_ref()?.lock();
        (!kept.other).then(|| kept.text.clone())
    }

    /// All of the text, and the bytes of it behind which another endpoint went on; None: none did.
    pub(crate) fn joined(&self) -> Option<(String, usize)> {
        let kept = self.kept.as_ref()?.lock();
        kept.seam.map(|seam| (kept.text.clone(), seam))
    }

    /// What was shown is void.
    pub(crate) async fn restart(&self, reason: &str) {
        self.shown.store(false, Ordering::Relaxed);
        self.turn(reason, "restart").await;
    }

    /// Another endpoint goes on behind what was shown.
    pub(crate) async fn resume(&self, reason: &str) {
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock();
            kept.seam = Some(kept.text.len());
            kept.blanks = kept.text[kept.text.trim_end().len()..].to_owned();
        }
        self.turn(reason, "resume").await;
    }

    async fn turn(&self, reason: &str, policy: &str) {
        let restart = pb::StreamRestart { reason: reason.to_owned(), policy: policy.to_owned() };
        let _ = self.send(pb::StreamChatResponse { piece: Some(Piece::Restart(restart)) }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_before_the_seam_are_said_once() {
        let after = |blanks: &str, pieces: &[&str]| {
            let mut kept = Kept { blanks: blanks.to_owned(), ..Kept::default() };
            pieces.iter().map(|p| kept.add(p)).collect::<String>()
        };
        assert_eq!(after(" ", &[" two"]), "two");
        assert_eq!(after("\n\n", &["\n", "\n", " x", "\n"]), " x\n");
        assert_eq!(after(" ", &["two", " three"]), "two three");
        assert_eq!(after("", &[" two"]), " two");
    }
}
