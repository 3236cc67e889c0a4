//! The request body of the dialect `openai_responses`. Nothing is kept at the provider: the whole conversation goes with every call.

use agent_core::{AgentError, agent::text_of, json};
use agent_proto::agents::v1 as pb;
use pb::content_part::Part;
use serde_json::{Map, Value, json};

use crate::items::ITEM;
use crate::openai::Endpoint;
use crate::refuse::{self, refused};

/// The body, and what it says otherwise than the request. Errors: UNSUPPORTED_FIELD, INVALID_FIELD with the name of the field.
pub(crate) fn body(endpoint: &Endpoint<'_>, request: &pb::ChatRequest, stream: bool) -> Result<(Value, Vec<pb::Translation>), AgentError> {
    let provider = endpoint.provider;
    if request.seed.is_some() {
        return Err(refused(provider, "seed", "is not supported"));
    }
    if !request.stop.is_empty() {
        return Err(refused(provider, "stop", "is not supported"));
    }
    refuse::unsendable(provider, request, &[pb::Role::User])?;
    let mut notes = refuse::dropped_thinking(request, |r| own_item(provider, r).is_some());
    let mut body = Map::new();
    body.insert("model".into(), endpoint.model.into());
    body.insert("store".into(), false.into());
    if endpoint.config.encrypted_reasoning {
        body.insert("include".into(), json!(["reasoning.encrypted_content"]));
    }
    let leading = request.messages.iter().take_while(|m| m.role() == pb::Role::System).count();
    let (system, rest) = request.messages.split_at(leading);
    let instructions: Vec<String> = system.iter().map(text_of).filter(|t| !t.is_empty()).collect();
    if !instructions.is_empty() {
        body.insert("instructions".into(), instructions.join("\n\n").into());
    }
    let input: Vec<Value> = rest.iter().flat_map(|m| items(provider, m)).collect();
    if input.is_empty() {
        return Err(refused(provider, "messages", "a call without any message of the user is not taken"));
    }
    body.insert("input".into(), input.into());
    tools(request, &mut body);
    if let Some(schema) = &request.output_schema {
        body.insert("text".into(), json!({"format": {"type": "json_schema", "name": "answer", "schema": json::from_struct(schema)}}));
    }
    if let Some(t) = request.temperature {
        body.insert("temperature".into(), json!(t));
    }
    if let Some(n) = request.max_tokens {
        body.insert("max_output_tokens".into(), json!(n));
    }
    if let Some(effort) = refuse::effort(request)? {
        body.insert("reasoning".into(), json!({"effort": effort}));
    }
    if !request.end_user.is_empty() {
        let (id, note) = refuse::end_user(&request.end_user);
        body.insert(endpoint.end_user_field().into(), id.into());
        notes.extend(note);
    }
    if stream {
        body.insert("stream".into(), true.into());
    }
    Ok((Value::Object(body), notes))
}

fn tools(request: &pb::ChatRequest, body: &mut Map<String, Value>) {
    if request.tools.is_empty() {
        return;
    }
    let tool = |t: &pb::ToolDefinition| {
        let parameters = t.parameters.as_ref().map_or_else(|| json!({"type": "object", "properties": {}}), json::from_struct);
        // Left out it would be true here, and refuse schemas that the other dialects take.
        json!({"type": "function", "name": t.name, "description": t.description, "parameters": parameters, "strict": false})
    };
    body.insert("tools".into(), request.tools.iter().map(tool).collect());
    match request.tool_choice.as_str() {
        "" | "auto" => {}
        word @ ("none" | "required") => drop(body.insert("tool_choice".into(), word.into())),
        name => drop(body.insert("tool_choice".into(), json!({"type": "function", "name": name}))),
    }
    if let Some(parallel) = request.parallel_tool_calls {
        body.insert("parallel_tool_calls".into(), parallel.into());
    }
}

/// The items of a message: reasoning first, which the provider wants in front of what it led to.
fn items(provider: &str, m: &pb::Message) -> Vec<Value> {
    if m.role() == pb::Role::Tool {
        return vec![json!({"type": "function_call_output", "call_id": m.tool_call_id, "output": text_of(m)})];
    }
    let mut items: Vec<Value> = m
        .content
        .iter()
        .filter_map(|part| match &part.part {
            Some(Part::Reasoning(r)) => own_item(provider, r),
            _ => None,
        })
        .collect();
    let role = match m.role() {
        pb::Role::Assistant => "assistant",
        pb::Role::System => "system",
        _ => "user",
    };
    let images = m.content.iter().any(|p| matches!(p.part, Some(Part::Image(_))));
    let content = if images { m.content.iter().filter_map(shown).collect() } else { Value::String(text_of(m)) };
    if content.as_str() != Some("") {
        items.push(json!({"role": role, "content": content}));
    }
    let calls = m.tool_calls.iter();
    items.extend(calls.map(|c| json!({"type": "function_call", "call_id": c.id, "name": c.name, "arguments": c.arguments})));
    items
}

fn shown(part: &pb::ContentPart) -> Option<Value> {
    match part.part.as_ref()? {
        Part::Text(text) if text.is_empty() => None,
        Part::Text(text) => Some(json!({"type": "input_text", "text": text})),
        Part::Image(image) => Some(json!({"type": "input_image", "image_url": refuse::image_url(image)?})),
        Part::Reasoning(_) => None,
    }
}

/// An item that this provider made, as it came.
fn own_item(provider: &str, r: &pb::ReasoningPart) -> Option<Value> {
    let item = r.signature.strip_prefix(ITEM).filter(|_| r.provider == provider)?;
    serde_json::from_str(item).ok()
}
