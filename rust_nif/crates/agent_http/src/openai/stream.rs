//! A streamed answer as chunks.

use agent_core::AgentError;
use agent_proto::agents::v1::stream_chat_response::Piece;
use serde_json::{Value, json};

use super::answer::{finish, usage};
use super::{id, now};
use crate::call::{Writer, quoted};
use crate::problem::{Problem, Wire};

/// Writes chunks.
pub(crate) struct Chunks {
    /// Everything of a chunk in front of its delta.
    head: Vec<u8>,
    /// The same of the chunk that holds the usage.
    bare: Value,
    include_usage: bool,
}

impl Chunks {
    /// For an answer of this model, as it was asked for.
    pub(crate) fn new(model: &str, include_usage: bool) -> Self {
        let model = if model.is_empty() { "default" } else { model };
        let bare = json!({"id": id(), "object": "chat.completion.chunk", "created": now(), "model": model});
        let mut head = b"data: ".to_vec();
        head.extend(serde_json::to_vec(&bare).unwrap_or_default());
        head.pop();
        head.extend(b",\"choices\":[{\"index\":0,\"delta\":");
        Self { head, bare, include_usage }
    }

    /// The first chunk: who speaks.
    pub(crate) fn role(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        self.chunk(&mut out, |out| out.extend(b"{\"role\":\"assistant\",\"content\":\"\"}"), None);
        out
    }

    fn chunk(&self, out: &mut Vec<u8>, delta: impl FnOnce(&mut Vec<u8>), finish: Option<&str>) {
        out.extend(&self.head);
        delta(out);
        out.extend(b",\"finish_reason\":");
        match finish {
            Some(word) => quoted(word, out),
            None => out.extend(b"null"),
        }
        out.extend(b"}]}\n\n");
    }

    fn said(&self, field: &[u8], text: &str, out: &mut Vec<u8>) {
        let delta = |out: &mut Vec<u8>| {
            out.extend(field);
            quoted(text, out);
            out.push(b'}');
        };
        self.chunk(out, delta, None);
    }
}

impl Writer for Chunks {
    fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::TextDelta(text) => self.said(b"{\"content\":", &text, out),
            Piece::ReasoningDelta(text) => self.said(b"{\"reasoning_content\":", &text, out),
            Piece::ToolCallDelta(call) => {
                let mut function = json!({"arguments": call.arguments});
                let mut delta = json!({"index": call.index});
                if !call.name.is_empty() {
                    function["name"] = call.name.into();
                    delta["id"] = call.id.into();
                    delta["type"] = "function".into();
                }
                delta["function"] = function;
                let delta = json!({"tool_calls": [delta]});
                self.chunk(out, |out| out.extend(serde_json::to_vec(&delta).unwrap_or_default()), None);
            }
            Piece::Final(response) => {
                if !response.refusal.is_empty() {
                    self.said(b"{\"refusal\":", &response.refusal, out);
                }
                self.chunk(out, |out| out.extend(b"{}"), Some(finish(response.finish_reason())));
                if self.include_usage {
                    self.bare["choices"] = json!([]);
                    self.bare["usage"] = response.usage.as_ref().map_or(Value::Null, usage);
                    event(&self.bare, out);
                }
                out.extend(b"data: [DONE]\n\n");
            }
            // Only where the caller allows it, which nobody can on this wire.
            Piece::Restart(_) => {}
        }
    }

    fn broken(&mut self, error: AgentError, out: &mut Vec<u8>) {
        event(&Problem::from(error).body(Wire::OpenAi), out);
    }
}

fn event(value: &Value, out: &mut Vec<u8>) {
    out.extend(b"data: ");
    let _ = serde_json::to_writer(&mut *out, value);
    out.extend(b"\n\n");
}
