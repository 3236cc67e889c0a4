//! A streamed answer as events: each block begins, grows and ends before the next one.

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_proto::agents::v1::stream_chat_response::Piece;
use serde_json::{Value, json};

use super::answer::{id, stop, usage};
use crate::call::Writer;
use crate::problem::{Problem, Wire};

/// The block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    /// With the number of the call in the answer.
    Tool(i32),
}

/// Writes events.
pub(crate) struct Events {
    model: String,
    open: Option<Open>,
    /// Blocks that have ended.
    blocks: usize,
}

impl Events {
    /// For an answer of this model, as it was asked for.
    pub(crate) fn new(model: &str) -> Self {
        Self { model: model.to_owned(), open: None, blocks: 0 }
    }

    /// The first event. What the input counts is not known yet: the last one says it.
    pub(crate) fn start(&self) -> Vec<u8> {
        let message = json!({
            "id": id(), "type": "message", "role": "assistant", "model": self.model, "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": usage(&pb::Usage::default()),
        });
        let mut out = Vec::with_capacity(512);
        event("message_start", json!({"message": message}), &mut out);
        out
    }

    fn block(&mut self, wanted: Open, begin: impl FnOnce() -> Value, out: &mut Vec<u8>) {
        if self.open == Some(wanted) {
            return;
        }
        self.end_block(out);
        event("content_block_start", json!({"index": self.blocks, "content_block": begin()}), out);
        self.open = Some(wanted);
    }

    fn end_block(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            event("content_block_stop", json!({"index": self.blocks}), out);
            self.blocks += 1;
        }
    }

    fn delta(&self, delta: Value, out: &mut Vec<u8>) {
        event("content_block_delta", json!({"index": self.blocks, "delta": delta}), out);
    }

    fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        self.block(Open::Text, || json!({"type": "text", "text": ""}), out);
        self.delta(json!({"type": "text_delta", "text": text}), out);
    }
}

impl Writer for Events {
    fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::TextDelta(text) => self.text(&text, out),
            Piece::ToolCallDelta(call) => {
                let begin = || json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
                self.block(Open::Tool(call.index), begin, out);
                if !call.arguments.is_empty() {
                    self.delta(json!({"type": "input_json_delta", "partial_json": call.arguments}), out);
                }
            }
            Piece::Final(response) => {
                if !response.refusal.is_empty() {
                    self.text(&response.refusal, out);
                }
                self.end_block(out);
                let delta = json!({"stop_reason": stop(response.finish_reason()), "stop_sequence": null});
                event("message_delta", json!({"delta": delta, "usage": usage(&response.usage.unwrap_or_default())}), out);
                event("message_stop", json!({}), out);
            }
            // Thinking has a signature on this wire, which a provider of another make has not; and nobody may ask for a restart.
            Piece::ReasoningDelta(_) | Piece::Restart(_) => {}
        }
    }

    fn broken(&mut self, error: AgentError, out: &mut Vec<u8>) {
        let Value::Object(body) = Problem::from(error).body(Wire::Anthropic) else { return };
        event("error", json!({"error": body.get("error")}), out);
    }
}

fn event(name: &str, mut data: Value, out: &mut Vec<u8>) {
    data["type"] = name.into();
    out.extend(format!("event: {name}\ndata: ").as_bytes());
    let _ = serde_json::to_writer(&mut *out, &data);
    out.extend(b"\n\n");
}
