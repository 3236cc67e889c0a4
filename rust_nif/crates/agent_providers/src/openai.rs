//! OpenAI-compatible chat completions and embeddings over HTTP, unary and streaming.

use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use futures::StreamExt;
use serde_json::Value;

use crate::{Pieces, Timeouts, classify, sse, wire};

/// Largest answer.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// TCP and TLS set-up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest Retry-After that is believed, in ms.
const MAX_RETRY_AFTER_MS: u64 = 120_000;

/// Where a call goes. Its key is never printed.
pub(crate) struct Endpoint<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) base_url: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) model: &'a str,
    pub(crate) timeouts: &'a Timeouts,
}

/// The one HTTP client: connections are reused, redirects never followed, Nagle's delay is off.
pub(crate) fn client() -> Result<reqwest::Client, AgentError> {
    // Another subsystem may have installed the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(64)
        .user_agent(concat!("singularity/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| AgentError::new(Reason::Internal, format!("the HTTP client cannot be made: {e}")))
}

impl Endpoint<'_> {
    async fn post(&self, path: &str, body: &Value) -> Result<reqwest::Response, AgentError> {
        let mut request = self.http.post(format!("{}/{path}", self.base_url)).json(body);
        if let Some(key) = self.key {
            request = request.bearer_auth(key);
        }
        let response = match tokio::time::timeout(self.timeouts.headers, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(classify::transport(&e, false)),
            Err(_) => return Err(classify::silent("headers")),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let retry_after = retry_after_ms(response.headers());
        let body = read(response, 64 * 1024, self.timeouts.idle).await.unwrap_or_default();
        Err(classify::status(status, retry_after, &String::from_utf8_lossy(&body)))
    }
}

fn retry_after_ms(headers: &reqwest::header::HeaderMap) -> Option<u64> {
    let text = |name: &str| {
        headers.get(name).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse::<f64>().ok()).filter(|n| *n >= 0.0 && n.is_finite())
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    text("retry-after-ms").or_else(|| text("retry-after").map(|s| s * 1000.0)).map(|ms| (ms as u64).min(MAX_RETRY_AFTER_MS))
}

async fn read(response: reqwest::Response, limit: usize, idle: Duration) -> Result<Vec<u8>, AgentError> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    loop {
        match tokio::time::timeout(idle, stream.next()).await {
            Ok(Some(Ok(bytes))) if body.len() + bytes.len() > limit => return Err(classify::too_large(limit)),
            Ok(Some(Ok(bytes))) => body.extend_from_slice(&bytes),
            Ok(Some(Err(e))) => return Err(classify::transport(&e, true)),
            Ok(None) => return Ok(body),
            Err(_) => return Err(classify::silent("idle")),
        }
    }
}

pub(crate) async fn chat(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    pieces: Option<&Pieces>,
) -> Result<pb::ChatResponse, AgentError> {
    let body = wire::body(endpoint.model, request, pieces.is_some());
    let answer = complete(endpoint, &body, pieces).await?;
    Ok(answer.finish())
}

/// Sends a body and gathers the answer; with `pieces` the body asks for a stream.
pub(crate) async fn complete(endpoint: &Endpoint<'_>, body: &Value, pieces: Option<&Pieces>) -> Result<wire::Answer, AgentError> {
    let response = endpoint.post("chat/completions", body).await?;
    let is_stream =
        response.headers().get("content-type").and_then(|v| v.to_str().ok()).is_some_and(|v| v.starts_with("text/event-stream"));
    if is_stream { stream(endpoint, response, |piece| forward(pieces, piece)).await } else { whole(endpoint, response).await }
}

async fn forward(pieces: Option<&Pieces>, piece: pb::stream_chat_response::Piece) {
    if let Some(pieces) = pieces {
        let _ = pieces.send(pb::StreamChatResponse { piece: Some(piece) }).await;
    }
}

async fn whole(endpoint: &Endpoint<'_>, response: reqwest::Response) -> Result<wire::Answer, AgentError> {
    let body = read(response, MAX_BODY_BYTES, endpoint.timeouts.idle).await?;
    let value: Value = serde_json::from_slice(&body).map_err(|_| classify::bad("it is not JSON"))?;
    if let Some(error) = in_band_error(&value) {
        return Err(error);
    }
    let choice = value.pointer("/choices/0").ok_or_else(|| classify::bad("it has no choices"))?;
    let mut answer = wire::Answer::default();
    let _ = answer.add(choice.get("message").ok_or_else(|| classify::bad("it has no message"))?);
    answer.finish = choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default().to_owned();
    answer.usage = value.get("usage").and_then(wire::usage);
    Ok(answer)
}

/// An error that came with status 200.
fn in_band_error(value: &Value) -> Option<AgentError> {
    let error = value.get("error").filter(|e| !e.is_null())?;
    let status =
        error.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or(500);
    Some(classify::status(status, None, &value.to_string()))
}

/// Reads a stream to its end. It has ended well with `[DONE]`, or with a finish reason and a clean close.
pub(crate) async fn stream<F: Future<Output = ()>>(
    endpoint: &Endpoint<'_>,
    response: reqwest::Response,
    mut forward: impl FnMut(pb::stream_chat_response::Piece) -> F,
) -> Result<wire::Answer, AgentError> {
    let mut bytes = response.bytes_stream();
    let mut decoder = sse::Decoder::default();
    let mut answer = wire::Answer::default();
    let (mut total, mut content) = (0usize, false);
    loop {
        let (limit, phase) = if content { (endpoint.timeouts.idle, "idle") } else { (endpoint.timeouts.first_token, "first_token") };
        let chunk = match tokio::time::timeout(limit, bytes.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(e))) => return Err(classify::transport(&e, true)),
            Ok(None) if answer.finish.is_empty() => return Err(classify::cut()),
            Ok(None) => return Ok(answer),
            Err(_) => return Err(classify::silent(phase)),
        };
        total += chunk.len();
        if total > MAX_BODY_BYTES {
            return Err(classify::too_large(MAX_BODY_BYTES));
        }
        for event in decoder.feed(&chunk).map_err(classify::bad)? {
            if event.trim() == "[DONE]" {
                return if answer.finish.is_empty() && answer.text.is_empty() && answer.calls.is_empty() {
                    Err(classify::cut())
                } else {
                    Ok(answer)
                };
            }
            let value: Value = serde_json::from_str(&event).map_err(|_| classify::bad("an event is not JSON"))?;
            if let Some(error) = in_band_error(&value) {
                return Err(error);
            }
            if let Some(usage) = value.get("usage").and_then(wire::usage) {
                answer.usage = Some(usage);
            }
            let Some(choice) = value.pointer("/choices/0") else { continue };
            if let Some(delta) = choice.get("delta") {
                for piece in answer.add(delta) {
                    content = true;
                    forward(piece).await;
                }
            }
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
                reason.clone_into(&mut answer.finish);
            }
        }
    }
}

pub(crate) async fn embed(endpoint: &Endpoint<'_>, request: &pb::EmbedRequest) -> Result<pb::EmbedResponse, AgentError> {
    let mut body = serde_json::json!({"model": endpoint.model, "input": request.input});
    if request.dimensions > 0 {
        body["dimensions"] = request.dimensions.into();
    }
    let response = endpoint.post("embeddings", &body).await?;
    let value: Value = serde_json::from_slice(&read(response, MAX_BODY_BYTES, endpoint.timeouts.idle).await?)
        .map_err(|_| classify::bad("it is not JSON"))?;
    let data = value
        .get("data")
        .and_then(Value::as_array)
        .filter(|d| d.len() == request.input.len())
        .ok_or_else(|| classify::bad("it has another number of vectors"))?;
    #[allow(clippy::cast_possible_truncation)]
    let vector = |d: &Value| pb::Embedding {
        values: d.get("embedding").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).map(|n| n as f32).collect(),
    };
    Ok(pb::EmbedResponse {
        embeddings: data.iter().map(vector).collect(),
        usage: value.get("usage").and_then(wire::usage),
        ..Default::default()
    })
}
