//! The content blocks of an answer in the dialect `anthropic`, from events or whole.

use std::collections::BTreeMap;

use agent_proto::agents::v1 as pb;
use pb::stream_chat_response::Piece;
use serde_json::{Value, json};

use crate::calls::Calls;
use crate::messages::REDACTED;
use crate::wire;

/// Blocks of one answer, at most; what comes beyond is dropped.
const MAX_BLOCKS: usize = 4096;

/// What an event has brought.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) pieces: Vec<Piece>,
    /// Whether it counts as content, also where it shows nothing.
    pub(crate) content: bool,
    pub(crate) ended: bool,
}

impl Taken {
    /// And what came behind it.
    pub(crate) fn join(&mut self, next: Taken) {
        self.pieces.extend(next.pieces);
        self.content |= next.content;
        self.ended |= next.ended;
    }
}

enum Open {
    Text,
    /// At this place among the reasoning parts.
    Thinking(usize),
    Tool,
}

/// The input counts exclude what the cache read and wrote; each event overwrites those that it names.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, i64>);

impl Counts {
    fn take(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage else { return };
        for key in ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"] {
            if let Some(n) = usage.get(key).and_then(Value::as_i64) {
                self.0.insert(key, n.max(0));
            }
        }
        if let Some(split) = usage.get("cache_creation").filter(|s| s.is_object()) {
            self.0.insert("1h", split.get("ephemeral_1h_input_tokens").and_then(Value::as_i64).unwrap_or(0).max(0));
        }
    }

    fn finish(&self) -> Option<pb::Usage> {
        let of = |key: &str| self.0.get(key).copied().unwrap_or(0);
        let (read, written) = (of("cache_read_input_tokens"), of("cache_creation_input_tokens"));
        (!self.0.is_empty()).then(|| pb::Usage {
            input_tokens: of("input_tokens").saturating_add(read).saturating_add(written),
            output_tokens: of("output_tokens"),
            cached_tokens: read,
            cache_write_tokens: written,
            cache_write_1h_tokens: of("1h").min(written),
            reasoning_tokens: 0,
        })
    }
}

/// What has arrived of an answer.
#[derive(Default)]
pub(crate) struct Blocks {
    text: String,
    thinking: Vec<pb::ReasoningPart>,
    calls: Calls,
    open: BTreeMap<u64, Open>,
    finish: String,
    counts: Counts,
}

impl Blocks {
    /// A whole body.
    pub(crate) fn message(&mut self, body: &Value) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (index, block) in (0..).zip(body.get("content").and_then(Value::as_array).into_iter().flatten()) {
            pieces.extend(self.start(index, block).pieces);
            self.open.remove(&index);
        }
        self.counts.take(body.get("usage"));
        self.stop(body);
        pieces
    }

    /// An event; what is unknown says nothing.
    pub(crate) fn event(&mut self, event: &Value) -> Taken {
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        match event.get("type").and_then(Value::as_str).unwrap_or_default() {
            "message_start" => self.counts.take(event.pointer("/message/usage")),
            "content_block_start" => return event.get("content_block").map(|b| self.start(index, b)).unwrap_or_default(),
            "content_block_delta" => return event.get("delta").map(|d| self.delta(index, d)).unwrap_or_default(),
            "content_block_stop" => {
                self.open.remove(&index);
            }
            "message_delta" => {
                self.counts.take(event.get("usage"));
                if let Some(delta) = event.get("delta") {
                    self.stop(delta);
                }
            }
            "message_stop" => return Taken { ended: true, ..Taken::default() },
            _ => {}
        }
        Taken::default()
    }

    fn stop(&mut self, from: &Value) {
        if let Some(reason) = from.get("stop_reason").and_then(Value::as_str) {
            reason.clone_into(&mut self.finish);
        }
    }

    fn start(&mut self, index: u64, block: &Value) -> Taken {
        let text = |key: &str| block.get(key).and_then(Value::as_str).unwrap_or_default();
        if self.open.len() >= MAX_BLOCKS || self.thinking.len() >= MAX_BLOCKS {
            return Taken::default();
        }
        match text("type") {
            "text" => {
                self.open.insert(index, Open::Text);
                self.say(text("text"))
            }
            "thinking" => {
                let at = self.thinking.len();
                self.thinking.push(pb::ReasoningPart { signature: text("signature").to_owned(), ..Default::default() });
                self.open.insert(index, Open::Thinking(at));
                self.think(at, text("thinking"))
            }
            "redacted_thinking" => {
                self.thinking.push(pb::ReasoningPart { signature: format!("{REDACTED}{}", text("data")), ..Default::default() });
                Taken { content: true, ..Taken::default() }
            }
            "tool_use" => {
                self.open.insert(index, Open::Tool);
                let input = block.get("input").filter(|i| i.as_object().is_none_or(|o| !o.is_empty()));
                let function = json!({"name": text("name"), "arguments": input});
                // Each start is a call of its own, even with an index seen before.
                let delta = self.calls.add(&json!({"index": index, "id": text("id"), "function": function}), true);
                Taken { pieces: delta.map(Piece::ToolCallDelta).into_iter().collect(), content: true, ended: false }
            }
            // The provider's own tools, and what is to come: nothing for the caller.
            _ => Taken::default(),
        }
    }

    fn delta(&mut self, index: u64, delta: &Value) -> Taken {
        let text = |key: &str| delta.get(key).and_then(Value::as_str).unwrap_or_default();
        match (self.open.get(&index), text("type")) {
            (Some(Open::Text), "text_delta") => self.say(text("text")),
            (Some(Open::Thinking(at)), "thinking_delta") => self.think(*at, text("thinking")),
            (Some(Open::Thinking(at)), "signature_delta") => {
                if let Some(part) = self.thinking.get_mut(*at) {
                    part.signature.push_str(text("signature"));
                }
                Taken::default()
            }
            (Some(Open::Tool), "input_json_delta") if !text("partial_json").is_empty() => {
                let piece = self.calls.add(&json!({"index": index, "function": {"arguments": text("partial_json")}}), false);
                Taken { pieces: piece.map(Piece::ToolCallDelta).into_iter().collect(), content: true, ended: false }
            }
            _ => Taken::default(),
        }
    }

    fn say(&mut self, text: &str) -> Taken {
        self.text.push_str(text);
        Self::shown(text, Piece::TextDelta)
    }

    fn think(&mut self, at: usize, text: &str) -> Taken {
        if let Some(part) = self.thinking.get_mut(at) {
            part.text.push_str(text);
        }
        Self::shown(text, Piece::ReasoningDelta)
    }

    fn shown(text: &str, piece: fn(String) -> Piece) -> Taken {
        if text.is_empty() {
            return Taken::default();
        }
        Taken { pieces: vec![piece(text.to_owned())], content: true, ended: false }
    }

    /// The normalised answer. Thinking that can go back to the provider stands in front of the text.
    pub(crate) fn finish(self, provider: &str) -> pb::ChatResponse {
        let calls = self.calls.finish();
        let reason = match wire::finish_reason(&self.finish) {
            pb::FinishReason::Stop if !calls.is_empty() => pb::FinishReason::ToolCalls,
            reason => reason,
        };
        let reasoning = self.thinking.iter().map(|t| t.text.as_str()).collect();
        let mut message = agent_core::agent::text_message(pb::Role::Assistant, self.text);
        let signed = self.thinking.into_iter().filter(|t| !t.signature.is_empty()).map(|t| pb::ContentPart {
            part: Some(pb::content_part::Part::Reasoning(pb::ReasoningPart { provider: provider.to_owned(), ..t })),
        });
        message.content = signed.chain(message.content).collect();
        message.tool_calls = calls;
        pb::ChatResponse {
            message: Some(message),
            finish_reason: reason as i32,
            raw_finish_reason: self.finish,
            usage: self.counts.finish(),
            reasoning,
            ..Default::default()
        }
    }
}
