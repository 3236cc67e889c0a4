//! A whole answer as a message.

use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use crate::openai::text_of;

/// A fresh id with Anthropic's prefix.
pub(crate) fn id() -> String {
    format!("msg_{}", uuid::Uuid::now_v7().simple())
}

/// Why it ended, in Anthropic's words.
pub(crate) fn stop(reason: pb::FinishReason) -> &'static str {
    match reason {
        pb::FinishReason::Length => "max_tokens",
        pb::FinishReason::ToolCalls => "tool_use",
        pb::FinishReason::ContentFilter | pb::FinishReason::Refusal => "refusal",
        pb::FinishReason::Pause => "pause_turn",
        _ => "end_turn",
    }
}

/// Counts, in Anthropic's words: what was read from a cache or written to it is no input there.
pub(crate) fn usage(usage: &pb::Usage) -> Value {
    json!({
        "input_tokens": (usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens).max(0),
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
    })
}

/// The arguments of a call as the object that the wire wants; a model may have written something else.
fn arguments(call: &pb::ToolCall) -> Value {
    serde_json::from_str(&call.arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// The body of an answer.
pub(crate) fn message(response: &pb::ChatResponse) -> Value {
    let given = response.message.clone().unwrap_or_default();
    let mut content = Vec::new();
    let text = Some(text_of(&given)).filter(|t| !t.is_empty()).unwrap_or_else(|| response.refusal.clone());
    if !text.is_empty() {
        content.push(json!({"type": "text", "text": text}));
    }
    for call in &given.tool_calls {
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments(call)}));
    }
    json!({
        "id": id(),
        "type": "message",
        "role": "assistant",
        "model": response.model,
        "content": content,
        "stop_reason": stop(response.finish_reason()),
        "stop_sequence": null,
        "usage": usage(&response.usage.unwrap_or_default()),
    })
}
