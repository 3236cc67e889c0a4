//! Chat completions: the request body. What it cannot say is refused by the name of its field.

use agent_core::{AgentError, agent::text_of, json};
use agent_proto::agents::v1 as pb;
use serde_json::{Map, Value, json};

use crate::openai::Endpoint;
use crate::{Dialect, refuse};

/// The body, and what it says otherwise than the request.
pub(crate) fn body(endpoint: &Endpoint<'_>, request: &pb::ChatRequest, stream: bool) -> Result<(Value, Vec<pb::Translation>), AgentError> {
    let (mut body, mut notes) = (Map::new(), Vec::new());
    refuse::unsendable(endpoint.provider, request, &[pb::Role::User])?;
    body.insert("model".into(), endpoint.model.into());
    body.insert("messages".into(), request.messages.iter().map(message).collect());
    notes.extend(refuse::dropped_thinking(request, |_| false));
    if !request.tools.is_empty() {
        // Without tools it says nothing, and some servers refuse it then.
        if let Some(parallel) = request.parallel_tool_calls {
            body.insert("parallel_tool_calls".into(), parallel.into());
        }
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
        // Reasoning models of this host refuse the old name, compatible servers know no other.
        body.insert(if endpoint.is_openai() { "max_completion_tokens" } else { "max_tokens" }.into(), json!(n));
    }
    if let Some(effort) = refuse::effort(request)? {
        if endpoint.config.dialect == Dialect::Local {
            return Err(refuse::refused(endpoint.provider, "reasoning_effort", "is not supported"));
        }
        body.insert("reasoning_effort".into(), effort.into());
    }
    if !request.end_user.is_empty() {
        let (id, note) = refuse::end_user(&request.end_user);
        body.insert(endpoint.end_user_field().into(), id.into());
        notes.extend(note);
    }
    if !request.stop.is_empty() {
        body.insert("stop".into(), json!(request.stop));
    }
    if stream {
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
    }
    Ok((Value::Object(body), notes))
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
        pb::content_part::Part::Image(image) => Some(json!({"type": "image_url", "image_url": {"url": refuse::image_url(image)?}})),
        pb::content_part::Part::Reasoning(_) => None,
    }
}
