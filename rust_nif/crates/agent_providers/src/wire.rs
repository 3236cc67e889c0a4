//! Chat completions: the answer's parts.

use agent_proto::agents::v1 as pb;
use pb::stream_chat_response::Piece;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::calls::Calls;
use crate::think::Splitter;

/// Counts of a body or an event: of its `usage`, wherever it stands; `None` where it has none.
pub(crate) fn usage(body: &Value) -> Option<pb::Usage> {
    let usage = [body.get("usage"), body.pointer("/x_groq/usage")].into_iter().flatten().find(|u| u.is_object())?;
    let at = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_i64);
    let cached = ["/prompt_tokens_details/cached_tokens", "/prompt_cache_hit_tokens", "/cached_tokens"]
        .iter()
        .find_map(|path| at(usage, path))
        .or_else(|| at(body, "/timings/cache_n"));
    Some(pb::Usage {
        input_tokens: at(usage, "/prompt_tokens").unwrap_or(0),
        output_tokens: at(usage, "/completion_tokens").unwrap_or(0),
        cached_tokens: cached.unwrap_or(0),
        reasoning_tokens: at(usage, "/completion_tokens_details/reasoning_tokens").unwrap_or(0),
        cache_write_tokens: at(usage, "/prompt_tokens_details/cache_write_tokens").unwrap_or(0),
        cache_write_1h_tokens: 0,
    })
}

pub(crate) fn finish_reason(raw: &str) -> pb::FinishReason {
    match raw {
        "stop" | "eos" | "end_turn" | "stop_sequence" => pb::FinishReason::Stop,
        "length" | "max_tokens" | "model_context_window_exceeded" => pb::FinishReason::Length,
        "tool_calls" | "function_call" | "tool_use" => pb::FinishReason::ToolCalls,
        "content_filter" => pb::FinishReason::ContentFilter,
        "refusal" => pb::FinishReason::Refusal,
        "pause_turn" => pb::FinishReason::Pause,
        "" => pb::FinishReason::Unspecified,
        _ => pb::FinishReason::Other,
    }
}

/// An event of the plainest kind, which most events of a stream are: text, and nothing else that counts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    #[serde(default)]
    id: String,
    choices: (PlainChoice,),
    /// Null, or not there.
    #[serde(default, rename = "usage")]
    _usage: Option<()>,
    #[serde(default, rename = "object")]
    _object: IgnoredAny,
    #[serde(default, rename = "created")]
    _created: IgnoredAny,
    #[serde(default, rename = "model")]
    _model: IgnoredAny,
    #[serde(default, rename = "system_fingerprint")]
    _system_fingerprint: IgnoredAny,
    #[serde(default, rename = "service_tier")]
    _service_tier: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainChoice {
    #[serde(default)]
    index: u64,
    delta: PlainDelta,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default, rename = "logprobs")]
    _logprobs: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainDelta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default, rename = "role")]
    _role: IgnoredAny,
    #[serde(default, rename = "refusal")]
    _refusal: Option<()>,
}

/// What has arrived of an answer, from deltas or whole.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) refusal: String,
    pub(crate) calls: Calls,
    pub(crate) finish: String,
    pub(crate) usage: Option<pb::Usage>,
    /// The provider's id of the request: of the head, else of the body.
    pub(crate) request_id: String,
    think: Option<Splitter>,
}

impl Answer {
    /// Nothing yet; with `think_tags` the reasoning is split off the start of the content.
    pub(crate) fn new(think_tags: bool) -> Self {
        Self { think: think_tags.then(Splitter::default), ..Self::default() }
    }

    /// Takes what belongs to choice 0 of an event (`delta`) or of a body (`message`); gives the pieces that it adds.
    pub(crate) fn take(&mut self, body: &Value) -> Vec<Piece> {
        if let Some(usage) = usage(body) {
            self.usage = Some(usage);
        }
        if self.request_id.is_empty() {
            body.get("id").and_then(Value::as_str).unwrap_or_default().clone_into(&mut self.request_id);
        }
        let choices = body.get("choices").and_then(Value::as_array);
        let Some(choice) = choices.into_iter().flatten().find(|c| c.get("index").and_then(Value::as_u64).unwrap_or(0) == 0) else {
            return Vec::new();
        };
        let pieces = match (choice.get("delta"), choice.get("message")) {
            (Some(delta), _) => self.add(delta, false),
            (None, Some(message)) => self.add(message, true),
            (None, None) => Vec::new(),
        };
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            reason.clone_into(&mut self.finish);
        }
        pieces
    }

    /// The same of the text of an event, without looking at each of its values; None: it is not of the plainest kind.
    pub(crate) fn take_plain(&mut self, event: &str) -> Option<Vec<Piece>> {
        let Plain { id, choices: (choice,), .. } = serde_json::from_str(event).ok()?;
        if choice.index != 0 {
            return None;
        }
        if self.request_id.is_empty() {
            self.request_id = id;
        }
        let mut pieces = Vec::new();
        self.content(choice.delta.content.unwrap_or_default(), &mut pieces);
        if let Some(reason) = choice.finish_reason {
            self.finish = reason;
        }
        Some(pieces)
    }

    fn content(&mut self, content: String, pieces: &mut Vec<Piece>) {
        let (reasoning, visible) = match &mut self.think {
            Some(think) => think.feed(&content),
            None => (String::new(), content),
        };
        self.reason(reasoning, pieces);
        self.say(visible, pieces);
    }

    fn add(&mut self, delta: &Value, whole: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let text = |key: &str| delta.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        if let Some(t) = text("reasoning_content").or_else(|| text("reasoning")) {
            self.reason(t.to_owned(), &mut pieces);
        }
        if let Some(t) = text("refusal") {
            self.refusal.push_str(t);
        }
        let content = content_of(delta.get("content"), &mut self.refusal);
        self.content(content, &mut pieces);
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            pieces.extend(self.calls.add(call, whole).map(Piece::ToolCallDelta));
        }
        pieces
    }

    /// What was held back because it might have been a tag.
    pub(crate) fn rest(&mut self) -> Vec<Piece> {
        let (reasoning, text) = self.think.as_mut().map(Splitter::finish).unwrap_or_default();
        let mut pieces = Vec::new();
        self.reason(reasoning, &mut pieces);
        self.say(text, &mut pieces);
        pieces
    }

    fn reason(&mut self, piece: String, pieces: &mut Vec<Piece>) {
        if !piece.is_empty() {
            self.reasoning.push_str(&piece);
            pieces.push(Piece::ReasoningDelta(piece));
        }
    }

    fn say(&mut self, piece: String, pieces: &mut Vec<Piece>) {
        if !piece.is_empty() {
            self.text.push_str(&piece);
            pieces.push(Piece::TextDelta(piece));
        }
    }

    /// The normalised answer.
    pub(crate) fn finish(self) -> pb::ChatResponse {
        let calls = self.calls.finish();
        let reason = match finish_reason(&self.finish) {
            pb::FinishReason::Stop | pb::FinishReason::Unspecified if !calls.is_empty() => pb::FinishReason::ToolCalls,
            pb::FinishReason::Stop if !self.refusal.is_empty() => pb::FinishReason::Refusal,
            reason => reason,
        };
        pb::ChatResponse {
            message: Some(pb::Message { tool_calls: calls, ..agent_core::agent::text_message(pb::Role::Assistant, self.text) }),
            finish_reason: reason as i32,
            raw_finish_reason: self.finish,
            usage: self.usage,
            refusal: self.refusal,
            reasoning: self.reasoning,
            provider_request_id: self.request_id,
            ..Default::default()
        }
    }
}

/// Text, or the text parts of a list; a part that refuses goes to the refusal.
fn content_of(content: Option<&Value>, refusal: &mut String) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| {
                refusal.push_str(part.get("refusal").and_then(Value::as_str).unwrap_or_default());
                part.as_str().or_else(|| part.get("text").and_then(Value::as_str))
            })
            .collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_event_is_read_as_any_other() {
        let plain = [
            r#"{"id":"c1","object":"o","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"id":"c1","choices":[{"delta":{"content":"a\n\"\u00e9 "},"logprobs":{"content":[]}}],"usage":null,"system_fingerprint":"f"}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"<think>why</think>so","refusal":null},"finish_reason":"stop"}]}"#,
            r#"{"id":"c2","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
        ];
        for think in [false, true] {
            let (mut quick, mut slow) = (Answer::new(think), Answer::new(think));
            for event in plain {
                let value: Value = serde_json::from_str(event).unwrap();
                assert_eq!(quick.take_plain(event), Some(slow.take(&value)), "{event}");
            }
            assert_eq!(quick.rest(), slow.rest());
            assert_eq!(quick.finish(), slow.finish());
        }
        let others = [
            r#"{"error":{"message":"no"}}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{"content":"y"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[{"index":0,"delta":{"content":["x"]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning_content":"x"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"x"}}],"error":null}"#,
        ];
        for event in others {
            assert_eq!(Answer::new(false).take_plain(event), None, "{event}");
        }
    }
}
