//! A whole answer as a chat completion.

use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use super::{id, now};
use crate::call::quoted;

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

/// The body of an answer. Written by hand: it is most of what an answer costs here.
pub(crate) fn completion(response: &pb::ChatResponse) -> Vec<u8> {
    let nobody = pb::Message::default();
    let given = response.message.as_ref().unwrap_or(&nobody);
    let text = text_of(given);
    let mut out = Vec::with_capacity(512 + text.len());
    out.extend(format!("{{\"id\":\"{}\",\"object\":\"chat.completion\",\"created\":{},\"model\":", id(), now()).as_bytes());
    quoted(&response.model, &mut out);
    out.extend(b",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
    let nothing = text.is_empty() && (!given.tool_calls.is_empty() || !response.refusal.is_empty());
    quoted_or_null(Some(&text).filter(|_| !nothing), &mut out);
    out.extend(b",\"refusal\":");
    quoted_or_null(Some(&response.refusal).filter(|r| !r.is_empty()), &mut out);
    if !response.reasoning.is_empty() {
        out.extend(b",\"reasoning_content\":");
        quoted(&response.reasoning, &mut out);
    }
    if !given.tool_calls.is_empty() {
        let call = |c: &pb::ToolCall| json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}});
        out.extend(b",\"tool_calls\":");
        out.extend(given.tool_calls.iter().map(call).collect::<Value>().to_string().as_bytes());
    }
    out.extend(format!("}},\"logprobs\":null,\"finish_reason\":\"{}\"}}],\"usage\":", finish(response.finish_reason())).as_bytes());
    out.extend(response.usage.as_ref().map_or(Value::Null, usage).to_string().as_bytes());
    out.push(b'}');
    out
}

fn quoted_or_null(text: Option<&String>, out: &mut Vec<u8>) {
    match text {
        Some(text) => quoted(text, out),
        None => out.extend(b"null"),
    }
}
