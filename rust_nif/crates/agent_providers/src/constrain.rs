//! Tool calls on a model that has none of its own: the tools stand in the system text, and decoding is constrained to an `anyOf` of
//! `{tool, arguments}` per tool and `{answer}`. What comes out is mapped to ordinary tool calls.
//!
//! Rules, found by trying SmolLM2-135M:
//! 1. One example turn, made from the first offered tool's own schema, shows the form; without it a small model copies the schema's words.
//! 2. Before any tool has answered, tools that the last user message names must be used: only they are offered, without `{answer}`.
//! 3. A tool's answer is repeated with the question, since a small model loses it over two turns.
//! 4. A call equal to an earlier one would loop: it is decoded again with `{answer}` only.
//! 5. Decoding is greedy (temperature 0) unless the task says otherwise, so that a demonstration gives the same twice.

use agent_core::{AgentError, agent::text_message, agent::text_of, json};
use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use crate::calls::Calls;
use crate::flow::Flow;
use crate::{classify, openai, openai::Endpoint, openai_body, refuse, send_text, wire};

/// Longest answer where the task sets none: a small model may repeat itself for ever.
const MAX_TOKENS: i32 = 256;

pub(crate) async fn chat(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    pieces: Option<&Flow<'_>>,
) -> Result<pb::ChatResponse, AgentError> {
    // Its turns are texts: what is none would be lost.
    refuse::unsendable(endpoint.provider, request, &[])?;
    let offered = offered(request);
    let plain = rewrite(request, &offered.tools);
    let mut answer = decode(endpoint, &plain, &schema(&offered.tools, offered.answer, request), pieces).await?;
    let mut step = parse(&answer.text)?;
    if matches!(&step, Step::Call(name, arguments) if called_before(request, name, arguments)) {
        let usage = answer.usage;
        answer = decode(endpoint, &plain, &schema(&[], true, request), pieces).await?;
        answer.usage = add(usage, answer.usage);
        step = parse(&answer.text)?;
    }
    match step {
        Step::Answer(text) => {
            answer.text = text;
        }
        Step::Call(name, arguments) => {
            answer.text.clear();
            let id = format!("call_{}", request.messages.len());
            answer.calls = Calls::one(id, name, arguments.to_string());
            answer.finish.clear();
        }
    }
    Ok(pb::ChatResponse { translation: refuse::dropped_thinking(request, |_| false), ..answer.finish() })
}

enum Step {
    Answer(String),
    Call(String, Value),
}

struct Offered<'a> {
    tools: Vec<&'a pb::ToolDefinition>,
    answer: bool,
}

fn offered(request: &pb::ChatRequest) -> Offered<'_> {
    let all: Vec<&pb::ToolDefinition> = request.tools.iter().collect();
    let answered = request.messages.iter().rev().take_while(|m| m.role() != pb::Role::User).any(|m| m.role() == pb::Role::Tool);
    match request.tool_choice.as_str() {
        "required" if !answered => return Offered { tools: all, answer: false },
        "" | "auto" | "required" => {}
        name if !answered => {
            let one: Vec<_> = all.iter().copied().filter(|t| t.name == name).collect();
            if !one.is_empty() {
                return Offered { tools: one, answer: false };
            }
        }
        _ => {}
    }
    if !answered {
        let question = last_user(request).to_lowercase();
        let named: Vec<_> = all.iter().copied().filter(|t| names(&question, &t.name.to_lowercase())).collect();
        if !named.is_empty() {
            return Offered { tools: named, answer: false };
        }
    }
    Offered { tools: all, answer: true }
}

/// Whether a text asks for a tool by its whole name: "the calculate tool", "use calculate", "`calculate`"; not "do not use calculate".
fn names(text: &str, tool: &str) -> bool {
    const NOT: [&str; 5] = ["not ", "n't ", "never ", "without ", "avoid "];
    let sentences = text.split(['.', '!', '?', '\n', ';']);
    [format!("{tool} tool"), format!("tool {tool}"), format!("use {tool}"), format!("`{tool}`")]
        .iter()
        .any(|phrase| sentences.clone().any(|s| s.find(phrase.as_str()).is_some_and(|at| !NOT.iter().any(|no| s[..at].contains(no)))))
}

fn last_user(request: &pb::ChatRequest) -> String {
    request.messages.iter().rev().find(|m| m.role() == pb::Role::User).map(text_of).unwrap_or_default()
}

fn called_before(request: &pb::ChatRequest, name: &str, arguments: &Value) -> bool {
    request
        .messages
        .iter()
        .rev()
        .take_while(|m| m.role() != pb::Role::User)
        .flat_map(|m| &m.tool_calls)
        .any(|c| c.name == name && serde_json::from_str::<Value>(&c.arguments).is_ok_and(|a| &a == arguments))
}

fn schema(tools: &[&pb::ToolDefinition], answer: bool, request: &pb::ChatRequest) -> Value {
    let mut any: Vec<Value> = tools
        .iter()
        .map(|t| {
            let arguments = t.parameters.as_ref().map_or_else(|| json!({"type": "object"}), json::from_struct);
            json!({"type": "object", "properties": {"tool": {"const": t.name}, "arguments": arguments}, "required": ["tool", "arguments"], "additionalProperties": false})
        })
        .collect();
    if answer || any.is_empty() {
        let of = request.output_schema.as_ref().map_or_else(|| json!({"type": "string"}), json::from_struct);
        any.push(json!({"type": "object", "properties": {"answer": of}, "required": ["answer"], "additionalProperties": false}));
    }
    if any.len() == 1 { any.remove(0) } else { json!({"anyOf": any}) }
}

/// The request as plain text turns: no tool roles, which the model's template does not know.
fn rewrite(request: &pb::ChatRequest, offered: &[&pb::ToolDefinition]) -> pb::ChatRequest {
    let mut messages = Vec::with_capacity(request.messages.len() + 5);
    let own: Vec<String> = request.messages.iter().filter(|m| m.role() == pb::Role::System).map(text_of).collect();
    messages.push(text_message(pb::Role::System, system(&own.join("\n"), &request.tools)));
    if let Some(tool) = offered.first() {
        messages.extend(example(tool));
    }
    let mut question = String::new();
    for m in request.messages.iter().filter(|m| m.role() != pb::Role::System) {
        match m.role() {
            pb::Role::User => {
                question = text_of(m);
                messages.push(text_message(pb::Role::User, question.clone()));
            }
            pb::Role::Tool => {
                let text = format!("{} returned: {}", if m.name.is_empty() { "The tool" } else { &m.name }, text_of(m));
                // Several results in a row make one turn.
                match messages.last_mut() {
                    Some(last) if last.name == "tool" => {
                        let joined = format!("{}\n{text}", text_of(last));
                        *last = pb::Message { name: "tool".into(), ..text_message(pb::Role::User, joined) };
                    }
                    _ => messages.push(pb::Message { name: "tool".into(), ..text_message(pb::Role::User, text) }),
                }
            }
            _ if m.tool_calls.is_empty() => messages.push(text_message(pb::Role::Assistant, json!({"answer": text_of(m)}).to_string())),
            _ => {
                let calls = m.tool_calls.iter().map(|c| call_text(&c.name, &serde_json::from_str(&c.arguments).unwrap_or(Value::Null)));
                messages.push(text_message(pb::Role::Assistant, calls.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    if let Some(last) = messages.last_mut().filter(|m| m.name == "tool") {
        *last = text_message(pb::Role::User, format!("{}\nAnswer the question: {question}", text_of(last)));
    }
    for m in &mut messages {
        m.name.clear();
    }
    pb::ChatRequest {
        messages,
        tools: Vec::new(),
        tool_choice: String::new(),
        output_schema: None,
        temperature: Some(request.temperature.unwrap_or(0.0)),
        seed: Some(request.seed.unwrap_or(1)),
        max_tokens: Some(request.max_tokens.unwrap_or(MAX_TOKENS)),
        ..request.clone()
    }
}

fn system(own: &str, tools: &[pb::ToolDefinition]) -> String {
    let mut text = if own.is_empty() { String::new() } else { format!("{own}\n\n") };
    text.push_str("You have these tools:\n");
    for t in tools {
        let parameters = t.parameters.as_ref().map(json::from_struct).unwrap_or_default();
        let names: Vec<String> =
            parameters.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect()).unwrap_or_default();
        text.push_str(&format!("- {}({}): {}\n", t.name, names.join(", "), t.description.lines().next().unwrap_or_default()));
    }
    text.push_str("Call a tool if one helps. Reply in JSON: either tool and arguments, or answer.");
    text
}

fn call_text(name: &str, arguments: &Value) -> String {
    json!({"tool": name, "arguments": arguments}).to_string()
}

/// Rule 1: question, call, result, answer.
fn example(tool: &pb::ToolDefinition) -> Vec<pb::Message> {
    let parameters = tool.parameters.as_ref().map(json::from_struct).unwrap_or_default();
    let mut numbers = [8, 9, 3, 5, 7, 2].into_iter().cycle();
    let mut arguments = serde_json::Map::new();
    let mut said = Vec::new();
    for (key, schema) in parameters.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let value = match (schema.pointer("/examples/0"), schema.get("type").and_then(Value::as_str)) {
            (Some(sample), _) => sample.clone(),
            (None, Some("integer" | "number")) => json!(numbers.next()),
            (None, Some("boolean")) => json!(true),
            (None, Some("array")) => json!([]),
            (None, Some("object")) => json!({}),
            (None, _) if key == "expression" => json!("8 * 9"),
            (None, _) => json!("text"),
        };
        said.push(match &value {
            Value::String(s) => format!("{key} {s}"),
            other => format!("{key} {other}"),
        });
        arguments.insert(key.clone(), value);
    }
    let question = format!("Use the {} tool with {}.", tool.name, said.join(" and "));
    vec![
        text_message(pb::Role::User, question.clone()),
        text_message(pb::Role::Assistant, call_text(&tool.name, &Value::Object(arguments))),
        text_message(pb::Role::User, format!("{} returned: 72\nAnswer the question: {question}", tool.name)),
        text_message(pb::Role::Assistant, json!({"answer": "The result is 72."}).to_string()),
    ]
}

async fn decode(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    schema: &Value,
    pieces: Option<&Flow<'_>>,
) -> Result<wire::Answer, AgentError> {
    let (mut body, _) = openai_body::body(endpoint, request, pieces.is_some())?;
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "step", "schema": schema}});
    let Some(pieces) = pieces else { return openai::complete(endpoint, &body, None).await };
    let (own, mut deltas) = tokio::sync::mpsc::channel(16);
    let call = async {
        let answer = openai::complete(endpoint, &body, Some(&Flow::new(&own))).await;
        drop(own);
        answer
    };
    // The channel's sender lives in `call`: the reader ends with it.
    let reader = async {
        let mut text = AnswerText::default();
        while let Some(piece) = deltas.recv().await {
            if let Some(pb::stream_chat_response::Piece::TextDelta(delta)) = piece.piece {
                send_text(Some(pieces), &text.feed(&delta)).await;
            }
        }
    };
    let (answer, ()) = tokio::join!(call, reader);
    answer
}

fn parse(text: &str) -> Result<Step, AgentError> {
    let mut value: Value = serde_json::from_str(text.trim())
        .or_else(|e| cut_answer(text).ok_or(e))
        .map_err(|_| classify::bad("the constrained answer is not JSON"))?;
    match (value.get_mut("answer").map(Value::take), value.get("tool").and_then(Value::as_str)) {
        (Some(Value::String(answer)), _) => Ok(Step::Answer(answer)),
        (Some(other), _) => Ok(Step::Answer(other.to_string())),
        (None, Some(tool)) => Ok(Step::Call(tool.to_owned(), value.get("arguments").cloned().unwrap_or_else(|| json!({})))),
        (None, None) => Err(classify::bad("the constrained answer has neither tool nor answer")),
    }
}

/// An answer that `max_tokens` cut: what there is of it.
fn cut_answer(text: &str) -> Option<Value> {
    let mut reader = AnswerText::default();
    let answer = reader.feed(text);
    (!answer.is_empty()).then(|| json!({"answer": answer}))
}

/// Finds the string behind `"answer":` in a growing JSON text and gives what is new of it.
#[derive(Default)]
struct AnswerText {
    seen: String,
    state: Option<Within>,
}

#[derive(Default)]
struct Within {
    escape: Option<String>,
    high: Option<u16>,
    done: bool,
}

impl AnswerText {
    fn feed(&mut self, delta: &str) -> String {
        let mut out = String::new();
        for c in delta.chars() {
            match &mut self.state {
                None => {
                    if !c.is_whitespace() {
                        self.seen.push(c);
                    }
                    if self.seen == "{\"answer\":\"" {
                        self.state = Some(Within::default());
                    }
                }
                Some(w) => w.take(c, &mut out),
            }
        }
        out
    }
}

impl Within {
    fn take(&mut self, c: char, out: &mut String) {
        if self.done {
            return;
        }
        let Some(escape) = &mut self.escape else {
            match c {
                '\\' => self.escape = Some(String::new()),
                '"' => self.done = true,
                _ => out.push(c),
            }
            return;
        };
        escape.push(c);
        if let Some(digits) = escape.strip_prefix('u') {
            if digits.len() < 4 {
                return;
            }
            let unit = u16::from_str_radix(digits, 16).unwrap_or(0xFFFD);
            let units: Vec<u16> = self.high.take().into_iter().chain([unit]).collect();
            if (0xD800..0xDC00).contains(&unit) {
                self.high = Some(unit);
            } else {
                out.push_str(&String::from_utf16_lossy(&units));
            }
        } else {
            out.push(match c {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                other => other,
            });
        }
        self.escape = None;
    }
}

fn add(a: Option<pb::Usage>, b: Option<pb::Usage>) -> Option<pb::Usage> {
    match (a, b) {
        (Some(a), Some(b)) => Some(pb::Usage {
            input_tokens: a.input_tokens + b.input_tokens,
            output_tokens: a.output_tokens + b.output_tokens,
            cached_tokens: a.cached_tokens + b.cached_tokens,
            reasoning_tokens: a.reasoning_tokens + b.reasoning_tokens,
            cache_write_tokens: a.cache_write_tokens + b.cache_write_tokens,
            cache_write_1h_tokens: a.cache_write_1h_tokens + b.cache_write_1h_tokens,
        }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_asked_for_by_its_name_and_not_where_the_text_forbids_it() {
        for text in ["use calculate for this", "call the calculate tool.", "be exact. use calculate"] {
            assert!(names(text, "calculate"), "{text}");
        }
        for text in ["do not use calculate", "don't use calculate here", "answer without the calculate tool", "calculate 2+2"] {
            assert!(!names(text, "calculate"), "{text}");
        }
        assert!(names("do not guess. use calculate", "calculate"));
    }

    #[test]
    fn the_answer_streams_as_text_however_it_is_cut() {
        let json = json!({"answer": "say \"hé\"\n\u{1F600} ok"}).to_string().replace('é', "\\u00e9").replace('\u{1F600}', "\\ud83d\\ude00");
        for size in 1..json.len() {
            let mut text = AnswerText::default();
            let pieces: Vec<char> = json.chars().collect();
            let out: String = pieces.chunks(size).map(|c| text.feed(&c.iter().collect::<String>())).collect();
            assert_eq!(out, "say \"hé\"\n\u{1F600} ok");
        }
    }

    #[test]
    fn a_tool_that_the_user_names_must_be_used_until_it_has_answered() {
        let tools = ["now", "calculate"].map(|n| agent_core::tools::definition(n).unwrap()).to_vec();
        let mut request = pb::ChatRequest {
            tools,
            messages: vec![text_message(pb::Role::User, "Use the calculate tool: 2+2".into())],
            ..Default::default()
        };
        let o = offered(&request);
        assert_eq!((o.tools.len(), o.tools[0].name.as_str(), o.answer), (1, "calculate", false));
        request.messages.push(pb::Message { name: "calculate".into(), ..text_message(pb::Role::Tool, "4".into()) });
        assert!(offered(&request).answer);
    }
}
