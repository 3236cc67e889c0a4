//! From what a provider does wrong to the closed set of error kinds. The body is asked before the status: money, filters and context
//! lengths come under any of them.

use agent_core::{AgentError, Reason};
use http::HeaderMap;
use serde_json::Value;

use crate::hints;

/// Longest message of a provider that is passed on, in characters.
const MAX_CHARS: usize = 300;

/// A refusal by the status alone.
pub(crate) fn status(status: u16, message: &str) -> AgentError {
    refusal(status, &HeaderMap::new(), &serde_json::json!({"error": {"message": message}}))
}

/// A refusal: a status that is no success, or an error in the body of one that is.
pub(crate) fn response(status: u16, headers: &HeaderMap, body: &[u8]) -> AgentError {
    refusal(status, headers, &serde_json::from_slice(body).unwrap_or(Value::Null))
}

/// An error that came with status 200, in a body or an event; it is classified by its own code.
pub(crate) fn in_band(value: &Value) -> Option<AgentError> {
    let first = value.get(0).unwrap_or(value);
    let error = first.get("error").filter(|e| !e.is_null())?;
    let code = error.get("code").and_then(|c| c.as_u64().or_else(|| c.as_str()?.parse().ok()));
    let status = code.and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or_else(|| status_of(error));
    Some(refusal(status, &HeaderMap::new(), value))
}

/// The status that an error without one would have had, by its words.
fn status_of(error: &Value) -> u16 {
    const WORDS: [(&str, u16); 8] = [
        ("rate_limit", 429),
        ("invalid_prompt", 400),
        ("image", 400),
        ("invalid_request", 400),
        ("authentication", 401),
        ("permission", 403),
        ("not_found", 404),
        ("request_too_large", 413),
    ];
    let said = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    let by = |said: &str| WORDS.iter().find(|(word, _)| said.contains(word)).map(|(_, status)| *status);
    by(said("code")).or_else(|| by(said("type"))).unwrap_or(500)
}

fn refusal(status: u16, headers: &HeaderMap, body: &Value) -> AgentError {
    let said = Said::of(body);
    let wait = hints::wait_ms(headers, body, &said.message);
    let (reason, kind) = said.kind().unwrap_or_else(|| by_status(status, wait.is_some(), &said));
    let words = shown(&said.message);
    let message =
        if words.is_empty() { format!("the provider answered {status}") } else { format!("the provider answered {status}: {words}") };
    let mut error = AgentError::new(reason, message).with("kind", kind).with("status", status);
    if let Some(again) = hints::should_retry(headers) {
        error = error.with("should_retry", again);
    }
    error.retry_after_ms = wait.unwrap_or(0);
    error
}

fn by_status(status: u16, names_a_wait: bool, said: &Said) -> (Reason, &'static str) {
    match status {
        300..=399 => (Reason::ProviderBadResponse, "bad_response"),
        402 if said.in_flight_budget => (Reason::ProviderRateLimited, "rate_limit"),
        402 => (Reason::ProviderQuota, "quota"),
        403 if said.moderated => (Reason::ProviderRefused, "content_filter"),
        401 | 403 => (Reason::ProviderAuth, "auth"),
        404 => (Reason::ModelNotFound, "not_found"),
        413 => (Reason::PayloadTooLarge, "request_too_large"),
        429 => (Reason::ProviderRateLimited, "rate_limit"),
        529 => (Reason::ProviderOverloaded, "overloaded"),
        503 if names_a_wait => (Reason::ProviderOverloaded, "overloaded"),
        408 | 409 => (Reason::ProviderUnavailable, "server_error"),
        s if s >= 500 => (Reason::ProviderUnavailable, "server_error"),
        _ => (Reason::ProviderRejected, "invalid_request"),
    }
}

/// What a body says, in one of the forms that providers use.
struct Said {
    message: String,
    /// `code`, `type` and `status` of the error and of what it holds, in lower case.
    codes: Vec<String>,
    moderated: bool,
    in_flight_budget: bool,
}

impl Said {
    fn of(body: &Value) -> Self {
        let first = body.get(0).unwrap_or(body);
        let error = first.get("error").unwrap_or(first);
        let mut codes = Vec::new();
        for at in [first, error, error.get("innererror").unwrap_or(&Value::Null)] {
            for key in ["code", "type", "status"] {
                codes.extend(at.get(key).and_then(Value::as_str).map(str::to_lowercase));
            }
        }
        codes.extend(error.pointer("/details/error_code").and_then(Value::as_str).map(str::to_lowercase));
        let detail = first.get("detail");
        let text = [error.get("message"), Some(error), first.get("message"), detail, detail.and_then(|d| d.get(0)?.get("msg"))]
            .into_iter()
            .flatten()
            .find_map(Value::as_str)
            .unwrap_or_default();
        // Some gateways hand an upstream's whole error on as the message of theirs.
        let inner: Option<Value> = text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok()).flatten();
        let message = inner
            .as_ref()
            .and_then(|v| v.pointer("/error/message").or_else(|| v.get("message")))
            .and_then(Value::as_str)
            .unwrap_or(text)
            .to_owned();
        let source = error.pointer("/metadata/limit_source").and_then(Value::as_str);
        Self {
            moderated: error.pointer("/metadata/reasons").is_some() || message.to_lowercase().contains("moderation"),
            in_flight_budget: source == Some("openrouter_in_flight_budget"),
            message,
            codes,
        }
    }

    fn kind(&self) -> Option<(Reason, &'static str)> {
        let text = self.message.to_lowercase();
        let code = |words: &[&str]| self.codes.iter().any(|c| words.iter().any(|w| c.contains(w)));
        let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
        let money = ["insufficient_quota", "credit_balance_exhausted", "spend_limit", "billing_error"];
        let context = ["maximum context length", "context length", "context window", "context size", "prompt is too long"];
        if code(&money) || says(&["credit balance is too low"]) {
            Some((Reason::ProviderQuota, "quota"))
        } else if code(&["content_filter", "content_policy", "responsibleaipolicyviolation"]) {
            Some((Reason::ProviderRefused, "content_filter"))
        } else if code(&["context_length_exceeded", "exceed_context"]) || (says(&context) && says(&["exceed", "maximum", "too long"])) {
            Some((Reason::ContextTooLong, "context_length"))
        } else if code(&["model_not_found"]) {
            Some((Reason::ModelNotFound, "not_found"))
        } else if code(&["overloaded", "unavailable_error"]) {
            Some((Reason::ProviderOverloaded, "overloaded"))
        } else {
            None
        }
    }
}

/// The provider's message, shortened; words that look like a key are cut out.
fn shown(message: &str) -> String {
    message
        .split_whitespace()
        .map(|w| if w.starts_with("sk-") || w.starts_with("Bearer") || w.len() > 60 { "[redacted]" } else { w })
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(MAX_CHARS)
        .collect()
}

pub(crate) fn transport(e: &reqwest::Error, streaming: bool) -> AgentError {
    if e.is_connect() {
        unreachable()
    } else if e.is_timeout() {
        silent("headers")
    } else if streaming || e.is_body() || e.is_decode() {
        cut()
    } else if e.is_builder() {
        no_address()
    } else {
        broke()
    }
}

pub(crate) fn unreachable() -> AgentError {
    AgentError::new(Reason::ProviderUnavailable, "the provider cannot be reached").with("kind", "connect")
}

pub(crate) fn broke() -> AgentError {
    AgentError::new(Reason::ProviderUnavailable, "the connection to the provider broke").with("kind", "connect")
}

pub(crate) fn no_address() -> AgentError {
    AgentError::new(Reason::ProviderRejected, "the provider's address is not valid").with("kind", "invalid_request")
}

pub(crate) fn cut() -> AgentError {
    AgentError::new(Reason::ProviderStreamCut, "the provider's answer ended too early").with("kind", "cut")
}

pub(crate) fn bad(why: &str) -> AgentError {
    AgentError::new(Reason::ProviderBadResponse, format!("the provider's answer cannot be read: {why}")).with("kind", "bad_response")
}

pub(crate) fn silent(phase: &str) -> AgentError {
    AgentError::new(Reason::ProviderTimeout, format!("the provider fell silent ({phase})")).with("kind", "timeout").with("phase", phase)
}

pub(crate) fn too_large(limit: usize) -> AgentError {
    AgentError::new(Reason::ProviderResponseTooLarge, format!("the provider's answer is over {limit} bytes"))
        .with("kind", "response_too_large")
}

/// A finish reason that is an error in disguise.
pub(crate) fn failed_finish(raw: &str) -> Option<AgentError> {
    let (reason, kind) = match raw {
        "error" => (Reason::ProviderUnavailable, "server_error"),
        "insufficient_system_resource" => (Reason::ProviderOverloaded, "overloaded"),
        _ => return None,
    };
    Some(AgentError::new(reason, format!("the provider ended its answer with \"{raw}\"")).with("kind", kind))
}
