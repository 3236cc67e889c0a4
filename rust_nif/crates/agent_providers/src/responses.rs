//! The dialect `openai_responses` over HTTP, unary and streaming.

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use crate::flow::Flow;
use crate::items::Items;
use crate::openai::{Endpoint, forward, request_id};
use crate::read::Reader;
use crate::{classify, responses_body, sse};

pub(crate) async fn chat(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    pieces: Option<&Flow<'_>>,
) -> Result<pb::ChatResponse, AgentError> {
    let (body, translation) = responses_body::body(endpoint, request, pieces.is_some())?;
    let response = endpoint.post("responses", &body).await?;
    let id = request_id(&response.headers);
    let mut reader = Reader::new(response, endpoint.config, pieces.is_some());
    let items = match reader.form().await {
        Ok(b'<') => Err(classify::bad("it is HTML")),
        Ok(b'{' | b'[') => whole(&mut reader, pieces).await,
        Ok(_) => stream(&mut reader, pieces).await,
        Err(e) => Err(e),
    };
    match (items, id) {
        (Ok(mut items), id) => {
            items.id = id.unwrap_or(items.id);
            Ok(pb::ChatResponse { translation, ..items.finish(endpoint.provider) })
        }
        (Err(error), Some(id)) => Err(error.with("provider_request_id", id)),
        (Err(error), None) => Err(error),
    }
}

async fn whole(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<Items, AgentError> {
    let body = reader.all().await?;
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let value: Value = serde_json::from_slice(text).map_err(|_| classify::bad("it is not JSON"))?;
    if let Some(error) = failed(&value).or_else(|| classify::in_band(&value)) {
        return Err(error);
    }
    if !value.get("output").is_some_and(Value::is_array) || !matches!(status(&value), "completed" | "incomplete") {
        return Err(classify::bad("it has no output or no final status"));
    }
    let mut items = Items::default();
    forward(pieces, items.response(&value).pieces).await;
    Ok(items)
}

/// Reads a stream to the event that ends the response: nothing else is an end.
async fn stream(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<Items, AgentError> {
    let mut decoder = sse::Decoder::new(reader.config.max_event_bytes);
    let mut items = Items::default();
    loop {
        let (events, last) = reader.events(&mut decoder).await?;
        for event in events {
            let value: Value = match event {
                sse::Event::Data(data) if matches!(data.trim(), "" | "[DONE]") => continue,
                sse::Event::Data(data) => serde_json::from_str(&data).map_err(|_| classify::bad("an event is not JSON"))?,
                sse::Event::Error(text) => json!({"error": {"message": text}}),
            };
            if let Some(error) = error_of(&value) {
                return Err(error);
            }
            let taken = items.event(&value);
            if taken.content {
                reader.content();
            }
            forward(pieces, taken.pieces).await;
            if taken.ended {
                return Ok(items);
            }
        }
        if last {
            return Err(classify::cut());
        }
    }
}

fn status(response: &Value) -> &str {
    response.get("status").and_then(Value::as_str).unwrap_or_default()
}

/// The error of an event: of a response that failed, of an event `error` with its code beside it, or in the form of other dialects.
fn error_of(event: &Value) -> Option<AgentError> {
    match event.get("type").and_then(Value::as_str) {
        Some("response.failed") => Some(failed_for_good(event.get("response"))),
        Some("error") if event.get("error").is_none_or(Value::is_null) => {
            classify::in_band(&json!({"error": {"code": event.get("code"), "message": event.get("message")}}))
        }
        // An event of a response names the response's error, which is null while there is none.
        _ => classify::in_band(event),
    }
}

fn failed(response: &Value) -> Option<AgentError> {
    (status(response) == "failed").then(|| failed_for_good(Some(response)))
}

fn failed_for_good(response: Option<&Value>) -> AgentError {
    response.and_then(classify::in_band).unwrap_or_else(|| classify::status(500, "the response failed without saying why"))
}
