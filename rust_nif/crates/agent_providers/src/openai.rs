//! OpenAI-compatible chat completions and embeddings over HTTP, unary and streaming.

use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::flow::Flow;
use crate::limits::Limits;
use crate::read::Reader;
use crate::transport::{Body, Http, Reply};
use crate::{Dialect, ProviderConfig, classify, client, openai_body, sse, wire};

/// Bytes of an error body that are read: what stands behind is no message.
const ERROR_BODY_BYTES: usize = 64 * 1024;
/// The one version of the dialect `anthropic`.
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// Headers that name a request, the first one first.
const REQUEST_IDS: [&str; 5] = ["request-id", "x-request-id", "apim-request-id", "x-generation-id", "cf-ray"];
/// Longest id of a request that is passed on, in characters.
const MAX_REQUEST_ID: usize = 128;
/// After the end mark usage may follow; it is waited for so long, and no error counts any more.
pub(crate) const AFTER_END: Duration = Duration::from_secs(1);

/// Where a call goes. Its key is never printed.
pub(crate) struct Endpoint<'a> {
    pub(crate) http: &'a Http,
    pub(crate) base_url: &'a str,
    pub(crate) key: Option<&'a str>,
    /// Name of the provider.
    pub(crate) provider: &'a str,
    pub(crate) model: &'a str,
    pub(crate) config: &'a ProviderConfig,
    /// What its headers say is noted here.
    pub(crate) limits: &'a Limits,
}

impl Endpoint<'_> {
    /// Whether this is the host that has left the names of the first dialect behind.
    pub(crate) fn is_openai(&self) -> bool {
        self.base_url.contains("://api.openai.com/")
    }

    /// Where the end user stands in a body: compatible servers know the older name only.
    pub(crate) fn end_user_field(&self) -> &'static str {
        if self.is_openai() { "safety_identifier" } else { "user" }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Reply, AgentError> {
        let address = client::address(self.config, self.base_url, path, self.model);
        let mut headers = authorized(self.config, self.key)?;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = serde_json::to_vec(body).map_err(|e| AgentError::new(Reason::Internal, format!("a body cannot be written: {e}")))?;
        let request = self.http.send(Method::POST, &address, headers, body.into());
        let reply =
            tokio::time::timeout(self.config.timeouts.headers, request).await.unwrap_or_else(|_| Err(classify::silent("headers")))?;
        self.limits.learn(Instant::now(), self.model, &reply.headers);
        if reply.status.is_success() {
            return Ok(reply);
        }
        let body = error_body(reply.body, self.config.timeouts.idle).await;
        let error = classify::response(reply.status.as_u16(), &reply.headers, &body);
        Err(match request_id(&reply.headers) {
            Some(id) => error.with("provider_request_id", id),
            None => error,
        })
    }
}

/// The headers with the key, where the provider asks for one, and the dialect's own.
pub(crate) fn authorized(config: &ProviderConfig, key: Option<&str>) -> Result<HeaderMap, AgentError> {
    let mut headers = HeaderMap::new();
    let anthropic = config.dialect == Dialect::Anthropic;
    if anthropic {
        headers.insert("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
    }
    let Some(key) = key else { return Ok(headers) };
    let own = config.key_header.as_deref().or(anthropic.then_some("x-api-key"));
    let wrong =
        |what: &str| AgentError::new(Reason::ProviderAuth, format!("the {what} has characters that no header takes")).with("kind", "auth");
    let (name, value) = match own {
        Some(own) => (HeaderName::from_bytes(own.as_bytes()).map_err(|_| wrong("name of the key's header"))?, HeaderValue::from_str(key)),
        None => (header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}"))),
    };
    let mut value = value.map_err(|_| wrong("key"))?;
    // A header value that is marked so is not printed.
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(headers)
}

/// As much of an error's body as comes in time.
async fn error_body(mut bytes: Body, idle: Duration) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(idle, bytes.next(ERROR_BODY_BYTES)).await {
        body.extend_from_slice(&chunk);
        if body.len() >= ERROR_BODY_BYTES {
            body.truncate(ERROR_BODY_BYTES);
            break;
        }
    }
    body
}

pub(crate) async fn chat(
    endpoint: &Endpoint<'_>,
    request: &pb::ChatRequest,
    pieces: Option<&Flow<'_>>,
) -> Result<pb::ChatResponse, AgentError> {
    let (body, translation) = openai_body::body(endpoint, request, pieces.is_some())?;
    let answer = complete(endpoint, &body, pieces).await?;
    Ok(pb::ChatResponse { translation, ..answer.finish() })
}

/// Sends a body and gathers the answer, whatever form it comes in; pieces go to `pieces`.
pub(crate) async fn complete(endpoint: &Endpoint<'_>, body: &Value, pieces: Option<&Flow<'_>>) -> Result<wire::Answer, AgentError> {
    let response = endpoint.post("chat/completions", body).await?;
    let id = request_id(&response.headers);
    let mut reader = Reader::new(response, endpoint.config, pieces.is_some());
    let answer = match reader.form().await {
        Ok(b'<') => Err(classify::bad("it is HTML")),
        Ok(b'{' | b'[') => whole(&mut reader, pieces).await,
        Ok(_) => stream(&mut reader, pieces).await,
        Err(e) => Err(e),
    };
    match (answer, id) {
        (Ok(mut answer), Some(id)) => {
            answer.request_id = id;
            Ok(answer)
        }
        (Err(error), Some(id)) => Err(error.with("provider_request_id", id)),
        (answer, None) => answer,
    }
}

/// The provider's id of a request, as its head names it.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<String> {
    let named = |name: &&str| headers.get(*name)?.to_str().ok().filter(|id| !id.is_empty());
    REQUEST_IDS.iter().find_map(named).map(|id| id.chars().take(MAX_REQUEST_ID).collect())
}

pub(crate) async fn forward(pieces: Option<&Flow<'_>>, all: Vec<pb::stream_chat_response::Piece>) {
    if let Some(pieces) = pieces {
        for piece in all {
            let _ = pieces.send(pb::StreamChatResponse { piece: Some(piece) }).await;
        }
    }
}

async fn whole(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<wire::Answer, AgentError> {
    let body = reader.all().await?;
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
    let value: Value = serde_json::from_slice(text).map_err(|_| classify::bad("it is not JSON"))?;
    if let Some(error) = classify::in_band(&value) {
        return Err(error);
    }
    if value.pointer("/choices/0/message").is_none() {
        return Err(classify::bad("it has no choices"));
    }
    let mut answer = wire::Answer::new(reader.config.think_tags);
    let mut all = answer.take(&value);
    all.extend(answer.rest());
    if let Some(error) = classify::failed_finish(&answer.finish) {
        return Err(error);
    }
    forward(pieces, all).await;
    Ok(answer)
}

/// Reads a stream to its end mark, which is the finish reason; behind it only usage is waited for.
async fn stream(reader: &mut Reader<'_>, pieces: Option<&Flow<'_>>) -> Result<wire::Answer, AgentError> {
    let mut decoder = sse::Decoder::new(reader.config.max_event_bytes);
    let mut answer = wire::Answer::new(reader.config.think_tags);
    loop {
        let ended = !answer.finish.is_empty();
        let chunk = match reader.next().await {
            Ok(chunk) => chunk,
            Err(_) if ended => break,
            Err(e) => return Err(e),
        };
        let last = chunk.is_none();
        let events = match &chunk {
            Some(chunk) => decoder.feed(chunk),
            None => decoder.finish(),
        };
        let events = match events {
            Ok(events) => events,
            Err(_) if ended => break,
            Err(sse::Broken::TooLarge) => return Err(classify::too_large(reader.config.max_event_bytes)),
            Err(sse::Broken::NotUtf8) => return Err(classify::bad("an event is not UTF-8")),
        };
        let mut done = last;
        for event in events {
            if let sse::Event::Data(data) = &event
                && let Some(all) = answer.take_plain(data)
            {
                if !all.is_empty() {
                    reader.content();
                    forward(pieces, all).await;
                }
                continue;
            }
            let value = match event {
                sse::Event::Data(data) if data.trim() == "[DONE]" => {
                    done = true;
                    break;
                }
                sse::Event::Data(data) if data.trim().is_empty() => continue,
                sse::Event::Data(data) => serde_json::from_str(&data).map_err(|_| classify::bad("an event is not JSON"))?,
                sse::Event::Error(text) => {
                    let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| serde_json::json!({"message": text}));
                    if said.get("error").is_some() { said } else { serde_json::json!({"error": said}) }
                }
            };
            if let Some(error) = classify::in_band(&value) {
                return Err(error);
            }
            let refused = answer.refusal.len();
            let all = answer.take(&value);
            // A refusal is content too, though it has no piece.
            if !all.is_empty() || answer.refusal.len() > refused {
                reader.content();
                forward(pieces, all).await;
            }
        }
        if let Some(error) = classify::failed_finish(&answer.finish) {
            return Err(error);
        }
        if done && answer.finish.is_empty() {
            return Err(classify::cut());
        }
        if done {
            break;
        }
        if !answer.finish.is_empty() {
            reader.end();
        }
    }
    forward(pieces, answer.rest()).await;
    Ok(answer)
}

pub(crate) async fn embed(endpoint: &Endpoint<'_>, request: &pb::EmbedRequest) -> Result<pb::EmbedResponse, AgentError> {
    let mut body = serde_json::json!({"model": endpoint.model, "input": request.input});
    if request.dimensions > 0 {
        body["dimensions"] = request.dimensions.into();
    }
    let response = endpoint.post("embeddings", &body).await?;
    let value: Value =
        serde_json::from_slice(&Reader::new(response, endpoint.config, false).all().await?).map_err(|_| classify::bad("it is not JSON"))?;
    let data = value
        .get("data")
        .and_then(Value::as_array)
        .filter(|d| d.len() == request.input.len())
        .ok_or_else(|| classify::bad("it has another number of vectors"))?;
    #[allow(clippy::cast_possible_truncation)]
    let vector = |d: &Value| pb::Embedding {
        values: d.get("embedding").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).map(|n| n as f32).collect(),
    };
    Ok(pb::EmbedResponse { embeddings: data.iter().map(vector).collect(), usage: wire::usage(&value), ..Default::default() })
}
