//! A request of POST /v1/chat/completions as a [`pb::ChatRequest`].
//!
//! Fields and their meaning: OpenAI's API reference, "Create chat completion".

use agent_core::json;
use agent_proto::agents::v1 as pb;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_types::Struct;
use serde_json::{Value, json};

use crate::given::Given;
use crate::problem::Problem;

/// What was asked.
pub(crate) struct Asked {
    pub(crate) request: pb::ChatRequest,
    pub(crate) stream: bool,
    /// A last chunk with the usage.
    pub(crate) include_usage: bool,
}

/// Reads a request. Errors name the field.
pub(crate) fn read(body: Value) -> Result<Asked, Problem> {
    let mut g = Given::new("", body)?;
    let mut r = pb::ChatRequest { model: g.text("model")?, ..Default::default() };
    r.messages = g.objects("messages")?.into_iter().map(message).collect::<Result<_, _>>()?;
    if r.messages.is_empty() {
        return Err(g.wrong("messages", "must hold at least one message"));
    }
    r.tools = g.objects("tools")?.into_iter().map(tool).collect::<Result<_, _>>()?;
    r.tool_choice = tool_choice(&mut g)?;
    r.output_schema = format(&mut g)?;
    r.temperature = g.number("temperature")?;
    if r.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(g.wrong("temperature", "must be 0 to 2"));
    }
    r.seed = g.int("seed")?;
    let older = g.tokens("max_tokens")?;
    r.max_tokens = g.tokens("max_completion_tokens")?.or(older);
    r.stop = g.texts("stop")?;
    r.parallel_tool_calls = g.flag("parallel_tool_calls")?;
    r.reasoning_effort = g.text("reasoning_effort")?;
    let older = g.text("user")?;
    r.end_user = Some(g.text("safety_identifier")?).filter(|user| !user.is_empty()).unwrap_or(older);
    let stream = g.flag("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(mut options) = g.object("stream_options")? {
        include_usage = options.flag("include_usage")?.unwrap_or(false);
        options.ignore(&["include_obfuscation"]);
        options.end()?;
    }
    g.only(&[
        ("n", json!(1)),
        ("top_p", json!(1)),
        ("frequency_penalty", json!(0)),
        ("presence_penalty", json!(0)),
        ("logprobs", json!(false)),
        ("logit_bias", json!({})),
        ("modalities", json!(["text"])),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("verbosity", json!("medium")),
    ])?;
    g.ignore(&["metadata", "prompt_cache_key"]);
    g.end()?;
    Ok(Asked { request: r, stream, include_usage })
}

fn message(mut g: Given) -> Result<pb::Message, Problem> {
    let role = match g.needed("role")?.as_str() {
        "system" | "developer" => pb::Role::System,
        "user" => pb::Role::User,
        "assistant" => pb::Role::Assistant,
        "tool" => pb::Role::Tool,
        _ => return Err(g.wrong("role", "must be system, developer, user, assistant or tool")),
    };
    let mut m = pb::Message { role: role as i32, name: g.text("name")?, tool_call_id: g.text("tool_call_id")?, ..Default::default() };
    if role == pb::Role::Tool && m.tool_call_id.is_empty() {
        return Err(g.wrong("tool_call_id", "is missing"));
    }
    m.content = content(&mut g)?;
    m.tool_calls = g.objects("tool_calls")?.into_iter().map(tool_call).collect::<Result<_, _>>()?;
    let refusal = g.text("refusal")?;
    if !refusal.is_empty() {
        m.content.push(text(refusal));
    }
    // What models with visible reasoning answer with; it is theirs, and not sent back.
    g.ignore(&["reasoning_content", "reasoning", "annotations"]);
    if m.content.is_empty() && m.tool_calls.is_empty() && role != pb::Role::Tool {
        return Err(g.wrong("content", "is missing"));
    }
    g.end()?;
    Ok(m)
}

fn content(g: &mut Given) -> Result<Vec<pb::ContentPart>, Problem> {
    match g.take("content") {
        None => Ok(Vec::new()),
        Some(Value::String(words)) => Ok(vec![text(words)]),
        Some(Value::Array(parts)) => {
            let path = g.path("content");
            parts.into_iter().enumerate().map(|(n, part)| content_part(Given::new(&format!("{path}[{n}]"), part)?)).collect()
        }
        Some(_) => Err(g.wrong("content", "must be a text or a list of parts")),
    }
}

fn content_part(mut g: Given) -> Result<pb::ContentPart, Problem> {
    let part = match g.needed("type")?.as_str() {
        "text" => text(g.text("text")?),
        "refusal" => text(g.text("refusal")?),
        "image_url" => {
            let Some(mut image) = g.object("image_url")? else { return Err(g.wrong("image_url", "is missing")) };
            let part =
                image_part(image.needed("url")?).ok_or_else(|| image.wrong("url", "must be an https address or a data: URL in base64"))?;
            image.only(&[("detail", json!("auto"))])?;
            image.end()?;
            part
        }
        _ => return Err(g.wrong("type", "can be text and image_url here")),
    };
    g.end()?;
    Ok(part)
}

/// A text part.
pub(crate) fn text(words: String) -> pb::ContentPart {
    pb::ContentPart { part: Some(pb::content_part::Part::Text(words)) }
}

/// An image by its address or in it; None: it is neither.
pub(crate) fn image_part(url: String) -> Option<pb::ContentPart> {
    let image = match url.strip_prefix("data:") {
        Some(data) => {
            let (media_type, base64) = data.split_once(";base64,")?;
            image_data(media_type, base64)?
        }
        None if url.starts_with("https://") || url.starts_with("http://") => {
            pb::ImagePart { source: Some(pb::image_part::Source::Uri(url)), ..Default::default() }
        }
        None => return None,
    };
    Some(pb::ContentPart { part: Some(pb::content_part::Part::Image(image)) })
}

/// An image in base64.
pub(crate) fn image_data(media_type: &str, base64: &str) -> Option<pb::ImagePart> {
    let data = STANDARD.decode(base64).ok()?;
    Some(pb::ImagePart { source: Some(pb::image_part::Source::Data(data)), media_type: media_type.to_owned() })
}

fn tool_call(mut g: Given) -> Result<pb::ToolCall, Problem> {
    g.only(&[("type", json!("function"))])?;
    let id = g.needed("id")?;
    let Some(mut function) = g.object("function")? else { return Err(g.wrong("function", "is missing")) };
    let call = pb::ToolCall { id, name: function.needed("name")?, arguments: function.text("arguments")? };
    function.end()?;
    g.ignore(&["index"]);
    g.end()?;
    Ok(call)
}

fn tool(mut g: Given) -> Result<pb::ToolDefinition, Problem> {
    g.only(&[("type", json!("function"))])?;
    let Some(mut function) = g.object("function")? else { return Err(g.wrong("function", "is missing; only functions are taken")) };
    let tool = pb::ToolDefinition {
        name: function.needed("name")?,
        description: function.text("description")?,
        parameters: schema(&mut function, "parameters")?,
        ..Default::default()
    };
    // What the model is told is the schema itself; providers that can be strict are so.
    let _ = function.flag("strict")?;
    function.end()?;
    g.end()?;
    Ok(tool)
}

/// A JSON schema.
pub(crate) fn schema(g: &mut Given, field: &str) -> Result<Option<Struct>, Problem> {
    match g.take(field) {
        None => Ok(None),
        Some(value @ Value::Object(_)) => Ok(Some(json::to_struct(&value))),
        Some(_) => Err(g.wrong(field, "must be a JSON schema")),
    }
}

fn tool_choice(g: &mut Given) -> Result<String, Problem> {
    match g.take("tool_choice") {
        None => Ok(String::new()),
        Some(Value::String(word)) if ["auto", "none", "required"].contains(&word.as_str()) => Ok(word),
        Some(choice @ Value::Object(_)) => match choice.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => Ok(name.to_owned()),
            None => Err(g.wrong("tool_choice", "must name a function")),
        },
        Some(_) => Err(g.wrong("tool_choice", "must be auto, none, required or a function")),
    }
}

fn format(g: &mut Given) -> Result<Option<Struct>, Problem> {
    let Some(mut format) = g.object("response_format")? else { return Ok(None) };
    let wanted = match format.needed("type")?.as_str() {
        "text" => None,
        "json_object" => Some(json::to_struct(&json!({"type": "object"}))),
        "json_schema" => {
            let Some(mut named) = format.object("json_schema")? else { return Err(format.wrong("json_schema", "is missing")) };
            named.ignore(&["name", "description", "strict"]);
            let Some(schema) = schema(&mut named, "schema")? else { return Err(named.wrong("schema", "is missing")) };
            named.end()?;
            Some(schema)
        }
        _ => return Err(format.wrong("type", "must be text, json_object or json_schema")),
    };
    format.end()?;
    Ok(wanted)
}
