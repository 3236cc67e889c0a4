//! A whole answer as a chat completion.

use agent_proto::agents::v1 as pb;
use serde_json::{Map, Value, json};

use super::{id, now};

/// The text of a message.
pub(crate) fn text_of(message: &pb::Message) -> String {
    let parts = message.content.iter().filter_map(|part| match &part.part {
        Some(pb::content_part::Part::Text(text)) => Some(text.as_str()),
        _ => None,
    });
    parts.collect()
}

/// Why it ended, in OpenAI's words.
pub(crate) fn finish(reason: pb::FinishReason) -> &'static str {
    match reason {
        pb::FinishReason::Length => "length",
        pb::FinishReason::ToolCalls => "tool_calls",
        pb::FinishReason::ContentFilter => "content_filter",
        _ => "stop",
    }
}

/// Counts, in OpenAI's words.
pub(crate) fn usage(usage: &pb::Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

/// The body of an answer.
pub(crate) fn completion(response: &pb::ChatResponse) -> Vec<u8> {
    let given = response.message.clone().unwrap_or_default();
    let text = text_of(&given);
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let nothing = text.is_empty() && (!given.tool_calls.is_empty() || !response.refusal.is_empty());
    message.insert("content".into(), if nothing { Value::Null } else { text.into() });
    message.insert("refusal".into(), if response.refusal.is_empty() { Value::Null } else { response.refusal.clone().into() });
    if !response.reasoning.is_empty() {
        message.insert("reasoning_content".into(), response.reasoning.clone().into());
    }
    if !given.tool_calls.is_empty() {
        let calls = given
            .tool_calls
            .into_iter()
            .map(|call| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}));
        message.insert("tool_calls".into(), calls.collect());
    }
    let body = json!({
        "id": id(),
        "object": "chat.completion",
        "created": now(),
        "model": response.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish(response.finish_reason())}],
        "usage": response.usage.as_ref().map(usage),
    });
    serde_json::to_vec(&body).unwrap_or_default()
}
