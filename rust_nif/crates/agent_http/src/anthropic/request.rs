//! A request of POST /v1/messages as a [`pb::ChatRequest`].
//!
//! Fields and their meaning: Anthropic's API reference, "Create a Message".

use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use crate::given::Given;
use crate::openai::{image_data, image_part, schema, text};
use crate::problem::Problem;

/// Reads a request, and whether its answer is streamed. Errors name the field.
pub(crate) fn read(body: Value) -> Result<(pb::ChatRequest, bool), Problem> {
    let mut g = Given::new("", body)?;
    let mut r = pb::ChatRequest { model: g.needed("model")?, ..Default::default() };
    r.max_tokens = g.tokens("max_tokens")?;
    if r.max_tokens.is_none() {
        return Err(g.wrong("max_tokens", "is missing"));
    }
    let system = texts(&mut g, "system")?;
    if !system.is_empty() {
        r.messages.push(pb::Message { role: pb::Role::System as i32, content: vec![text(system)], ..Default::default() });
    }
    let said = g.objects("messages")?;
    if said.is_empty() {
        return Err(g.wrong("messages", "must hold at least one message"));
    }
    for message in said {
        turn(message, &mut r.messages)?;
    }
    r.tools = g.objects("tools")?.into_iter().map(tool).collect::<Result<_, _>>()?;
    if let Some(mut choice) = g.object("tool_choice")? {
        r.tool_choice = match choice.needed("type")?.as_str() {
            "auto" => String::new(),
            "any" => "required".to_owned(),
            "none" => "none".to_owned(),
            "tool" => choice.needed("name")?,
            _ => return Err(choice.wrong("type", "must be auto, any, none or tool")),
        };
        r.parallel_tool_calls = choice.flag("disable_parallel_tool_use")?.map(|off| !off);
        choice.end()?;
    }
    r.temperature = g.number("temperature")?;
    if r.temperature.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
        return Err(g.wrong("temperature", "must be 0 to 1"));
    }
    r.stop = g.texts("stop_sequences")?;
    if let Some(mut metadata) = g.object("metadata")? {
        r.end_user = metadata.text("user_id")?;
        metadata.end()?;
    }
    let stream = g.flag("stream")?.unwrap_or(false);
    g.only(&[("top_p", json!(1)), ("thinking", json!({"type": "disabled"})), ("service_tier", json!("auto"))])?;
    g.end()?;
    Ok((r, stream))
}

/// A text, or the texts of blocks.
fn texts(g: &mut Given, field: &str) -> Result<String, Problem> {
    match g.take(field) {
        None => Ok(String::new()),
        Some(Value::String(words)) => Ok(words),
        Some(Value::Array(blocks)) => {
            let path = g.path(field);
            let mut all = String::new();
            for (n, block) in blocks.into_iter().enumerate() {
                let mut block = Given::new(&format!("{path}[{n}]"), block)?;
                block.only(&[("type", json!("text"))])?;
                block.ignore(&["cache_control", "citations"]);
                all.push_str(&block.text("text")?);
                block.end()?;
            }
            Ok(all)
        }
        Some(_) => Err(g.wrong(field, "must be a text or a list of text blocks")),
    }
}

/// A turn: its words and calls are one message, each result of a tool is one of its own, in front.
fn turn(mut g: Given, messages: &mut Vec<pb::Message>) -> Result<(), Problem> {
    let role = match g.needed("role")?.as_str() {
        "user" => pb::Role::User,
        "assistant" => pb::Role::Assistant,
        _ => return Err(g.wrong("role", "must be user or assistant")),
    };
    let mut m = pb::Message { role: role as i32, ..Default::default() };
    match g.take("content") {
        Some(Value::String(words)) => m.content.push(text(words)),
        Some(Value::Array(blocks)) => {
            let path = g.path("content");
            for (n, value) in blocks.into_iter().enumerate() {
                block(Given::new(&format!("{path}[{n}]"), value)?, &mut m, messages)?;
            }
        }
        _ => return Err(g.wrong("content", "must be a text or a list of blocks")),
    }
    if !m.content.is_empty() || !m.tool_calls.is_empty() {
        messages.push(m);
    }
    g.end()
}

fn block(mut g: Given, m: &mut pb::Message, messages: &mut Vec<pb::Message>) -> Result<(), Problem> {
    g.ignore(&["cache_control", "citations"]);
    match g.needed("type")?.as_str() {
        "text" => m.content.push(text(g.text("text")?)),
        "image" => {
            let Some(mut source) = g.object("source")? else { return Err(g.wrong("source", "is missing")) };
            let image = match source.needed("type")?.as_str() {
                "url" => image_part(source.needed("url")?),
                "base64" => {
                    let kind = source.needed("media_type")?;
                    image_data(&kind, &source.needed("data")?)
                        .map(|image| pb::ContentPart { part: Some(pb::content_part::Part::Image(image)) })
                }
                _ => None,
            };
            m.content.push(image.ok_or_else(|| source.wrong("type", "must be url, or base64 with data in base64"))?);
            source.end()?;
        }
        "tool_use" => {
            let input = g.take("input").unwrap_or_else(|| json!({}));
            m.tool_calls.push(pb::ToolCall { id: g.needed("id")?, name: g.needed("name")?, arguments: input.to_string() });
        }
        "tool_result" => {
            let result = texts(&mut g, "content")?;
            // The wire has no word for it inside; the model reads it from the text.
            let _ = g.flag("is_error")?;
            messages.push(pb::Message {
                role: pb::Role::Tool as i32,
                content: vec![text(result)],
                tool_call_id: g.needed("tool_use_id")?,
                ..Default::default()
            });
        }
        // A model's own thinking, sent back: whoever answers now need not be who thought it.
        "thinking" => g.ignore(&["thinking", "signature"]),
        "redacted_thinking" => g.ignore(&["data"]),
        _ => return Err(g.wrong("type", "can be text, image, tool_use, tool_result and thinking here")),
    }
    g.end()
}

fn tool(mut g: Given) -> Result<pb::ToolDefinition, Problem> {
    g.only(&[("type", json!("custom"))])?;
    g.ignore(&["cache_control"]);
    let tool = pb::ToolDefinition {
        name: g.needed("name")?,
        description: g.text("description")?,
        parameters: schema(&mut g, "input_schema")?,
        ..Default::default()
    };
    g.end()?;
    Ok(tool)
}
