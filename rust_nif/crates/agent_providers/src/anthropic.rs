//! The dialect `anthropic` (Messages) over HTTP, unary and streaming.

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use serde_json::Value;

use crate::blocks::Blocks;
use crate::flow::Flow;
use crate::openai::{Endpoint, forward, request_id};
use crate::read::Reader;
use crate::{classify, messages, sse};

/// An answer that may grow beyond so many tokens is streamed from the provider, whoever asks: it takes longer than connections live.
const STREAMED_ABOVE_TOKENS: i32 = 8192;

pub(crate) async fn chat(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    pieces: Option<&Flow<'_>>,
) -> Result<pb::ChatResponse, AgentError> {
    let (mut body, translation) = messages::body(endpoint.model, endpoint.provider, request)?;
    let streams = pieces.is_some() || request.max_tokens.is_some_and(|n| n > STREAMED_ABOVE_TOKENS);
    if streams {
        body.insert("stream".into(), true.into());
    }
    // Both forms of the base are in use: with and without the version.
    let path = if endpoint.base_url.ends_with("/v1") { "messages" } else { "v1/messages" };
    let response = endpoint.post(path, &Value::Object(body)).await?;
    let id = request_id(&response.headers).unwrap_or_default();
    let mut reader = Reader::new(response, endpoint.config, streams);
    let blocks = match reader.form().await {
        Ok(b'<') => Err(classify::bad("it is HTML")),
        Ok(b'{' | b'[') => whole(&mut reader, pieces).await,
        Ok(_) => stream(&mut reader, pieces).await,
        Err(e) => Err(e),
    };
    let mut answer = blocks.map_err(|e| if id.is_empty() { e } else { e.with("provider_request_id", &id) })?.finish(endpoint.provider);
    answer.provider_request_id = id;
    answer.translation = translation;
    Ok(answer)
}

async fn whole(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<Blocks, AgentError> {
    let body = reader.all().await?;
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let value: Value = serde_json::from_slice(text).map_err(|_| classify::bad("it is not JSON"))?;
    if let Some(error) = classify::in_band(&value) {
        return Err(error);
    }
    if !value.get("content").is_some_and(Value::is_array) || !value.get("stop_reason").is_some_and(Value::is_string) {
        return Err(classify::bad("it has no content or no stop_reason"));
    }
    let mut blocks = Blocks::default();
    forward(pieces, blocks.message(&value)).await;
    Ok(blocks)
}

/// Reads a stream to `message_stop`: nothing else is an end.
async fn stream(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<Blocks, AgentError> {
    let mut decoder = sse::Decoder::new(reader.config.max_event_bytes);
    let mut blocks = Blocks::default();
    loop {
        let (events, last) = reader.events(&mut decoder).await?;
        for event in events {
            let value: Value = match event {
                sse::Event::Data(data) if data.trim().is_empty() => continue,
                sse::Event::Data(data) => serde_json::from_str(&data).map_err(|_| classify::bad("an event is not JSON"))?,
                sse::Event::Error(text) => serde_json::json!({"error": {"message": text}}),
            };
            if let Some(error) = classify::in_band(&value) {
                return Err(error);
            }
            let taken = blocks.event(&value);
            if taken.content {
                reader.content();
            }
            forward(pieces, taken.pieces).await;
            if taken.ended {
                return Ok(blocks);
            }
        }
        if last {
            return Err(classify::cut());
        }
    }
}
