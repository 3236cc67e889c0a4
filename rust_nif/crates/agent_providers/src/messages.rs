//! The request body of the dialect `anthropic`: what it says otherwise is listed, what it cannot say is refused.

use agent_core::{AgentError, agent::text_of, json};
use agent_proto::agents::v1 as pb;
use base64::Engine as _;
use pb::content_part::Part;
use serde_json::{Map, Value, json};

use crate::refuse::{self, digest, note, refused};

/// Before the opaque data of a redacted thinking block, where a thinking block has its signature.
pub(crate) const REDACTED: &str = "redacted_thinking:";
/// The dialect demands a limit; this one, in tokens, where the call names none. Thinking is added to it.
const DEFAULT_MAX_TOKENS: i32 = 4096;
/// Smallest thinking budget that the dialect takes, in tokens.
const MIN_THINKING_TOKENS: i32 = 1024;

pub(crate) fn body(
    model: &str,
    provider: &str,
    request: &pb::ChatRequest,
) -> Result<(Map<String, Value>, Vec<pb::Translation>), AgentError> {
    let (mut body, mut notes) = (Map::new(), Vec::new());
    if request.seed.is_some() {
        return Err(refused(provider, "seed", "is not supported"));
    }
    refuse::unsendable(provider, request, &[pb::Role::User])?;
    body.insert("model".into(), model.into());
    let thinking = thinking_tokens(provider, request)?;
    let default = DEFAULT_MAX_TOKENS.saturating_add(thinking.unwrap_or(0));
    body.insert("max_tokens".into(), request.max_tokens.unwrap_or(default).into());
    if let Some(tokens) = thinking {
        body.insert("thinking".into(), json!({"type": "enabled", "budget_tokens": tokens}));
        notes.push(note("reasoning_effort", "translated", &format!("a thinking budget of {tokens} tokens")));
    }
    let system: Vec<String> =
        request.messages.iter().filter(|m| m.role() == pb::Role::System).map(text_of).filter(|t| !t.is_empty()).collect();
    if !system.is_empty() {
        // Tools stand before the system text in the provider's cache: one mark covers both.
        body.insert("system".into(), json!([{"type": "text", "text": system.join("\n\n"), "cache_control": {"type": "ephemeral"}}]));
    }
    let mut turns = turns(provider, request, &mut notes)?;
    if !request.tools.is_empty() {
        tools(request, &mut body);
        // A loop of tools sends all of this again.
        if let Some(block) = turns.last_mut().and_then(|(_, blocks)| blocks.last_mut()).and_then(Value::as_object_mut) {
            block.insert("cache_control".into(), json!({"type": "ephemeral"}));
        }
    }
    let turns: Vec<Value> = turns.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    body.insert("messages".into(), turns.into());
    if let Some(schema) = &request.output_schema {
        body.insert("output_config".into(), json!({"format": {"type": "json_schema", "schema": json::from_struct(schema)}}));
    }
    if let Some(t) = request.temperature {
        if thinking.is_some() {
            return Err(refused(provider, "temperature", "is not supported together with reasoning_effort"));
        }
        if t > 1.0 {
            notes.push(note("temperature", "translated", "1 is the highest there"));
        }
        body.insert("temperature".into(), json!(t.min(1.0)));
    }
    if !request.stop.is_empty() {
        body.insert("stop_sequences".into(), json!(request.stop));
    }
    if !request.end_user.is_empty() {
        body.insert("metadata".into(), json!({"user_id": digest(&request.end_user)}));
    }
    Ok((body, notes))
}

fn thinking_tokens(provider: &str, request: &pb::ChatRequest) -> Result<Option<i32>, AgentError> {
    let wanted = match refuse::effort(request)? {
        None => return Ok(None),
        Some("minimal") => MIN_THINKING_TOKENS,
        Some("low") => 2048,
        Some("medium") => 8192,
        Some(_) => 16_384,
    };
    if request.tools.iter().any(|t| t.name == request.tool_choice) || request.tool_choice == "required" {
        return Err(refused(provider, "tool_choice", "cannot force a tool together with reasoning_effort"));
    }
    match request.max_tokens {
        Some(max) if max <= MIN_THINKING_TOKENS => {
            Err(refused(provider, "reasoning_effort", "needs max_tokens over 1024; it is not supported below"))
        }
        // The budget must be smaller than the limit that holds it.
        Some(max) => Ok(Some(wanted.min((max / 2).max(MIN_THINKING_TOKENS)))),
        None => Ok(Some(wanted)),
    }
}

fn tools(request: &pb::ChatRequest, body: &mut Map<String, Value>) {
    let tools: Vec<Value> = request
        .tools
        .iter()
        .map(|t| {
            let schema = t.parameters.as_ref().map_or_else(|| json!({"type": "object", "properties": {}}), json::from_struct);
            json!({"name": t.name, "description": t.description, "input_schema": schema})
        })
        .collect();
    body.insert("tools".into(), tools.into());
    let single = request.parallel_tool_calls == Some(false) && request.tool_choice != "none";
    let mut choice = match request.tool_choice.as_str() {
        "" | "auto" if !single => return,
        "" | "auto" => json!({"type": "auto"}),
        "none" => json!({"type": "none"}),
        "required" => json!({"type": "any"}),
        name => json!({"type": "tool", "name": name}),
    };
    if single {
        choice["disable_parallel_tool_use"] = true.into();
    }
    body.insert("tool_choice".into(), choice);
}

type Turn = (&'static str, Vec<Value>);

/// Turns of user and assistant in alternation; the results of tools come first in theirs.
fn turns(provider: &str, request: &pb::ChatRequest, notes: &mut Vec<pb::Translation>) -> Result<Vec<Turn>, AgentError> {
    let mut turns: Vec<Turn> = Vec::new();
    for (at, m) in request.messages.iter().enumerate() {
        let (role, blocks) = match m.role() {
            pb::Role::System => continue,
            pb::Role::Assistant => ("assistant", assistant(provider, at, m, notes)),
            pb::Role::Tool => {
                let result = json!({"type": "tool_result", "tool_use_id": tool_id(&m.tool_call_id), "content": text_of(m)});
                ("user", vec![result])
            }
            pb::Role::User | pb::Role::Unspecified => ("user", m.content.iter().filter_map(shown).collect()),
        };
        if blocks.is_empty() {
            continue;
        }
        match turns.last_mut() {
            Some((last, all)) if *last == role => {
                // A result that comes after words of the user is still the first of its turn.
                let results = |b: &Value| b["type"] == "tool_result";
                let place = if blocks.iter().all(results) { all.iter().take_while(|b| results(b)).count() } else { all.len() };
                all.splice(place..place, blocks);
            }
            _ => turns.push((role, blocks)),
        }
    }
    if turns.is_empty() {
        return Err(refused(provider, "messages", "a call without any message of the user is not taken"));
    }
    Ok(turns)
}

fn assistant(provider: &str, at: usize, m: &pb::Message, notes: &mut Vec<pb::Translation>) -> Vec<Value> {
    let mut blocks = Vec::new();
    for part in &m.content {
        let Some(Part::Reasoning(r)) = &part.part else { continue };
        if r.provider != provider || r.signature.is_empty() {
            let path = format!("messages[{at}].content");
            notes.push(note(&path, "dropped", "thinking of another provider means nothing to this one"));
        } else if let Some(data) = r.signature.strip_prefix(REDACTED) {
            blocks.push(json!({"type": "redacted_thinking", "data": data}));
        } else {
            blocks.push(json!({"type": "thinking", "thinking": r.text, "signature": r.signature}));
        }
    }
    blocks.extend(m.content.iter().filter_map(shown));
    for call in &m.tool_calls {
        // What is no object was never executed; the dialect takes objects only.
        let input = serde_json::from_str::<Value>(&call.arguments).ok().filter(Value::is_object);
        let input = input.unwrap_or_else(|| if call.arguments.trim().is_empty() { json!({}) } else { json!({"raw": call.arguments}) });
        blocks.push(json!({"type": "tool_use", "id": tool_id(&call.id), "name": call.name, "input": input}));
    }
    blocks
}

/// Text and images; an empty text is refused by the provider.
fn shown(part: &pb::ContentPart) -> Option<Value> {
    match part.part.as_ref()? {
        Part::Text(text) if text.is_empty() => None,
        Part::Text(text) => Some(json!({"type": "text", "text": text})),
        Part::Image(image) => {
            let source = match image.source.as_ref()? {
                pb::image_part::Source::Uri(uri) => json!({"type": "url", "url": uri}),
                pb::image_part::Source::Data(data) => {
                    let data = base64::engine::general_purpose::STANDARD.encode(data);
                    json!({"type": "base64", "media_type": image.media_type, "data": data})
                }
            };
            Some(json!({"type": "image", "source": source}))
        }
        Part::Reasoning(_) => None,
    }
}

/// An id that the dialect takes: others are mapped one to one, in the call and in its result.
fn tool_id(id: &str) -> String {
    const LONGEST: usize = 64;
    let fits = !id.is_empty() && id.len() <= LONGEST && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits { id.to_owned() } else { format!("call_{}", digest(id)) }
}
