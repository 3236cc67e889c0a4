//! Chat completions: the request body, and the answer's parts.

use agent_core::{agent::text_of, json};
use agent_proto::agents::v1 as pb;
use base64::Engine as _;
use serde_json::{Map, Value, json};

pub(crate) fn body(model: &str, request: &pb::ChatRequest, stream: bool) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), request.messages.iter().map(message).collect());
    if !request.tools.is_empty() {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|t| {
                let parameters = t.parameters.as_ref().map_or_else(|| json!({"type": "object", "properties": {}}), json::from_struct);
                json!({"type": "function", "function": {"name": t.name, "description": t.description, "parameters": parameters}})
            })
            .collect();
        body.insert("tools".into(), tools.into());
        match request.tool_choice.as_str() {
            "" | "auto" => {}
            word @ ("none" | "required") => {
                body.insert("tool_choice".into(), word.into());
            }
            name => {
                body.insert("tool_choice".into(), json!({"type": "function", "function": {"name": name}}));
            }
        }
    }
    if let Some(schema) = &request.output_schema {
        body.insert(
            "response_format".into(),
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": json::from_struct(schema)}}),
        );
    }
    if let Some(t) = request.temperature {
        body.insert("temperature".into(), json!(t));
    }
    if let Some(s) = request.seed {
        body.insert("seed".into(), json!(s));
    }
    if let Some(n) = request.max_tokens {
        body.insert("max_tokens".into(), json!(n));
    }
    if !request.stop.is_empty() {
        body.insert("stop".into(), json!(request.stop));
    }
    if stream {
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
    }
    Value::Object(body)
}

fn message(m: &pb::Message) -> Value {
    let role = match m.role() {
        pb::Role::Assistant => "assistant",
        pb::Role::System => "system",
        pb::Role::Tool => "tool",
        pb::Role::User | pb::Role::Unspecified => "user",
    };
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    let has_image = m.content.iter().any(|p| matches!(p.part, Some(pb::content_part::Part::Image(_))));
    let content = if has_image { m.content.iter().filter_map(part).collect() } else { Value::String(text_of(m)) };
    out.insert("content".into(), if m.content.is_empty() && !m.tool_calls.is_empty() { Value::Null } else { content });
    if !m.tool_calls.is_empty() {
        let calls: Vec<Value> = m
            .tool_calls
            .iter()
            .map(|c| json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}))
            .collect();
        out.insert("tool_calls".into(), calls.into());
    }
    if !m.tool_call_id.is_empty() {
        out.insert("tool_call_id".into(), m.tool_call_id.clone().into());
    }
    Value::Object(out)
}

fn part(p: &pb::ContentPart) -> Option<Value> {
    match p.part.as_ref()? {
        pb::content_part::Part::Text(text) => Some(json!({"type": "text", "text": text})),
        pb::content_part::Part::Image(image) => {
            let url = match image.source.as_ref()? {
                pb::image_part::Source::Uri(uri) => uri.clone(),
                pb::image_part::Source::Data(data) => {
                    format!("data:{};base64,{}", image.media_type, base64::engine::general_purpose::STANDARD.encode(data))
                }
            };
            Some(json!({"type": "image_url", "image_url": {"url": url}}))
        }
        pb::content_part::Part::Reasoning(_) => None,
    }
}

pub(crate) fn usage(value: &Value) -> Option<pb::Usage> {
    let at = |path: &str| value.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    value.is_object().then(|| pb::Usage {
        input_tokens: at("/prompt_tokens"),
        output_tokens: at("/completion_tokens"),
        cached_tokens: at("/prompt_tokens_details/cached_tokens"),
        reasoning_tokens: at("/completion_tokens_details/reasoning_tokens"),
    })
}

pub(crate) fn finish_reason(raw: &str) -> pb::FinishReason {
    match raw {
        "stop" | "eos" | "end_turn" => pb::FinishReason::Stop,
        "length" | "max_tokens" => pb::FinishReason::Length,
        "tool_calls" | "function_call" => pb::FinishReason::ToolCalls,
        "content_filter" => pb::FinishReason::ContentFilter,
        "refusal" => pb::FinishReason::Refusal,
        "" => pb::FinishReason::Unspecified,
        _ => pb::FinishReason::Other,
    }
}

/// What has arrived of an answer, from deltas or whole.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) refusal: String,
    pub(crate) calls: Vec<pb::ToolCall>,
    pub(crate) finish: String,
    pub(crate) usage: Option<pb::Usage>,
}

impl Answer {
    /// Takes a delta (or a whole message); gives the text and tool-call pieces that it adds.
    pub(crate) fn add(&mut self, delta: &Value) -> Vec<pb::stream_chat_response::Piece> {
        use pb::stream_chat_response::Piece;
        let mut pieces = Vec::new();
        let text = |key: &str| delta.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        if let Some(t) = text("content") {
            self.text.push_str(t);
            pieces.push(Piece::TextDelta(t.to_owned()));
        }
        if let Some(t) = text("reasoning_content").or_else(|| text("reasoning")) {
            self.reasoning.push_str(t);
            pieces.push(Piece::ReasoningDelta(t.to_owned()));
        }
        if let Some(t) = text("refusal") {
            self.refusal.push_str(t);
        }
        for (i, call) in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let id = call.get("id").and_then(Value::as_str).unwrap_or_default();
            let index = call
                .get("index")
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or_else(|| if id.is_empty() { self.calls.len().saturating_sub(1) } else { i.max(self.calls.len()) })
                .min(127);
            while self.calls.len() <= index {
                self.calls.push(pb::ToolCall::default());
            }
            let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            let arguments = match call.pointer("/function/arguments") {
                Some(Value::String(s)) => s.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            let have = &mut self.calls[index];
            if have.id.is_empty() {
                id.clone_into(&mut have.id);
            }
            if have.name.is_empty() {
                name.clone_into(&mut have.name);
            }
            have.arguments.push_str(&arguments);
            #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
            pieces.push(Piece::ToolCallDelta(pb::ToolCallDelta {
                index: index as i32,
                id: id.to_owned(),
                name: name.to_owned(),
                arguments,
            }));
        }
        pieces
    }

    /// The normalised answer.
    pub(crate) fn finish(mut self) -> pb::ChatResponse {
        self.calls.retain(|c| !c.name.is_empty());
        for (i, call) in self.calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = format!("call_{i}");
            }
            if call.arguments.trim().is_empty() {
                call.arguments = "{}".into();
            }
        }
        let reason = if self.calls.is_empty() { finish_reason(&self.finish) } else { pb::FinishReason::ToolCalls };
        pb::ChatResponse {
            message: Some(pb::Message { tool_calls: self.calls, ..agent_core::agent::text_message(pb::Role::Assistant, self.text) }),
            finish_reason: reason as i32,
            raw_finish_reason: self.finish,
            usage: self.usage,
            refusal: self.refusal,
            reasoning: self.reasoning,
            ..Default::default()
        }
    }
}
