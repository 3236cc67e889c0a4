//! The provider `echo`: answers with the text of the last user message, at once; `echo?latency=50ms&tokens=100&fail=503` shapes it.
//!
//! `tool=NAME&args=JSON` makes its first answer a call of that tool; the answer to a tool's result is that result. For tests and benchmarks.

use std::time::Duration;

use agent_core::{AgentError, agent::text_message, agent::text_of};
use agent_proto::agents::v1 as pb;

use crate::flow::Flow;
use crate::{classify, send_text};

#[derive(Default)]
struct Shape<'a> {
    latency: Option<Duration>,
    tokens: Option<usize>,
    fail: Option<u16>,
    tool: Option<&'a str>,
    args: Option<String>,
    each: Option<Duration>,
}

fn shape(model: &str) -> Shape<'_> {
    let mut shape = Shape::default();
    let Some((_, query)) = model.split_once('?') else { return shape };
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            "latency" => shape.latency = millis(value),
            "each" => shape.each = millis(value),
            "tokens" => shape.tokens = value.parse().ok().map(|n: usize| n.min(100_000)),
            "fail" => shape.fail = value.parse().ok(),
            "tool" => shape.tool = Some(value),
            "args" => shape.args = Some(value.to_owned()),
            _ => {}
        }
    }
    shape
}

fn millis(text: &str) -> Option<Duration> {
    text.strip_suffix("ms").or(Some(text)).and_then(|n| n.parse().ok()).map(|n: u64| Duration::from_millis(n.min(600_000)))
}

fn tokens_of(text: &str) -> i64 {
    i64::try_from(text.split_whitespace().count().max(usize::from(!text.is_empty()))).unwrap_or(i64::MAX)
}

pub(crate) async fn chat(model: &str, request: &pb::ChatRequest, pieces: Option<&Flow<'_>>) -> Result<pb::ChatResponse, AgentError> {
    let shape = shape(model);
    if let Some(latency) = shape.latency {
        tokio::time::sleep(latency).await;
    }
    if let Some(status) = shape.fail {
        return Err(classify::status(status, "echo was asked to fail"));
    }
    let response = shape.answer(request);
    if pieces.is_some() {
        let text = response.message.as_ref().map(text_of).unwrap_or_default();
        for token in text.split_inclusive(' ') {
            if let Some(each) = shape.each {
                tokio::time::sleep(each).await;
            }
            send_text(pieces, token).await;
        }
    }
    Ok(response)
}

/// The answer that needs no waiting; `None` where the model's name asks for a delay or a failure.
pub(crate) fn chat_now(model: &str, request: &pb::ChatRequest) -> Option<pb::ChatResponse> {
    let shape = shape(model);
    (shape.latency.is_none() && shape.fail.is_none()).then(|| shape.answer(request))
}

impl Shape<'_> {
    fn answer(&self, request: &pb::ChatRequest) -> pb::ChatResponse {
        let last = request.messages.last();
        let input_tokens = request.messages.iter().map(|m| tokens_of(&text_of(m))).sum();
        let is_tool_result = last.is_some_and(|m| m.role() == pb::Role::Tool);
        if let (Some(tool), false) = (self.tool, is_tool_result) {
            let arguments = self.args.clone().unwrap_or_else(|| "{}".into());
            let call = pb::ToolCall { id: "call_echo".into(), name: tool.to_owned(), arguments };
            let message = pb::Message { role: pb::Role::Assistant as i32, tool_calls: vec![call], ..Default::default() };
            return answer(message, pb::FinishReason::ToolCalls, "tool_calls", input_tokens, 1);
        }
        let source = if is_tool_result { last } else { request.messages.iter().rev().find(|m| m.role() == pb::Role::User) };
        let mut text = source.map(text_of).unwrap_or_default();
        if let Some(n) = self.tokens {
            let words: Vec<&str> = text.split_whitespace().collect();
            text = (0..n).map(|i| words.get(i % words.len().max(1)).copied().unwrap_or("echo")).collect::<Vec<_>>().join(" ");
        }
        let output_tokens = tokens_of(&text);
        answer(text_message(pb::Role::Assistant, text), pb::FinishReason::Stop, "stop", input_tokens, output_tokens)
    }
}

fn answer(message: pb::Message, finish: pb::FinishReason, raw: &str, input_tokens: i64, output_tokens: i64) -> pb::ChatResponse {
    pb::ChatResponse {
        message: Some(message),
        finish_reason: finish as i32,
        raw_finish_reason: raw.to_owned(),
        usage: Some(pb::Usage { input_tokens, output_tokens, ..Default::default() }),
        cost_micros: Some(0),
        ..Default::default()
    }
}

/// A small deterministic vector per text.
pub(crate) fn embed(model: &str, request: &pb::EmbedRequest, provider: &str) -> pb::EmbedResponse {
    let n = usize::try_from(request.dimensions).ok().filter(|n| (1..=4096).contains(n)).unwrap_or(8);
    let embeddings = request.input.iter().map(|text| {
        let mut values = vec![0f32; n];
        for (i, byte) in text.bytes().enumerate() {
            values[i % n] += f32::from(byte) / 255.0;
        }
        pb::Embedding { values }
    });
    pb::EmbedResponse {
        embeddings: embeddings.collect(),
        usage: Some(pb::Usage { input_tokens: request.input.iter().map(|t| tokens_of(t)).sum(), ..Default::default() }),
        provider: provider.to_owned(),
        model: model.to_owned(),
        cost_micros: None,
    }
}
