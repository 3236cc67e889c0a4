//! Pieces of an answer on their way to the caller, and what was seen of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use agent_proto::agents::v1 as pb;
use pb::stream_chat_response::Piece;

use crate::Pieces;

/// The caller's channel, with a note of the first content: once something was shown, nothing is repeated silently.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    to: &'a Pieces,
    shown: AtomicBool,
    first: OnceLock<Instant>,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(to: &'a Pieces) -> Self {
        Self { to, shown: AtomicBool::new(false), first: OnceLock::new() }
    }

    /// Passes a piece on; waits while the reader is behind.
    pub(crate) async fn send(&self, piece: pb::StreamChatResponse) -> Result<(), ()> {
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

    /// What was shown is void.
    pub(crate) async fn restart(&self, reason: &str) {
        let restart = pb::StreamRestart { reason: reason.to_owned(), policy: "restart".into() };
        self.shown.store(false, Ordering::Relaxed);
        let _ = self.send(pb::StreamChatResponse { piece: Some(Piece::Restart(restart)) }).await;
    }
}
