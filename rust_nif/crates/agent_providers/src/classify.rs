//! From what a provider does wrong to the closed set of error kinds.

use agent_core::{AgentError, Reason};

/// A refusal by HTTP status. `body` is only looked at for the provider's own words on the kind; it is not repeated whole.
pub(crate) fn status(status: u16, retry_after_ms: Option<u64>, body: &str) -> AgentError {
    let text = body.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let (reason, kind) = match status {
        401 | 403 => (Reason::ProviderAuth, "auth"),
        402 => (Reason::ProviderQuota, "quota"),
        404 => (Reason::ModelNotFound, "not_found"),
        408 | 504 | 524 => (Reason::ProviderTimeout, "timeout"),
        413 => (Reason::PayloadTooLarge, "request_too_large"),
        429 if has(&["insufficient_quota", "billing", "credit balance"]) => (Reason::ProviderQuota, "quota"),
        429 => (Reason::ProviderRateLimited, "rate_limit"),
        503 | 529 => (Reason::ProviderOverloaded, "overloaded"),
        s if s >= 500 => (Reason::ProviderUnavailable, "server_error"),
        _ if has(&["context_length", "maximum context", "context length", "exceed_context"]) => (Reason::ContextTooLong, "context_length"),
        _ if has(&["content_filter", "content policy", "content_policy"]) => (Reason::ProviderRefused, "content_filter"),
        _ => (Reason::ProviderRejected, "invalid_request"),
    };
    let words = provider_words(body);
    let message =
        if words.is_empty() { format!("the provider answered {status}") } else { format!("the provider answered {status}: {words}") };
    let mut error = AgentError::new(reason, message).with("kind", kind).with("status", status);
    error.retry_after_ms = retry_after_ms.unwrap_or(0);
    error
}

/// `error.message` of a JSON body, shortened; never raw HTML. Words that look like a key are cut out.
fn provider_words(body: &str) -> String {
    const MAX_CHARS: usize = 300;
    let Ok(value) = serde_json::from_str::<serde_json::Value>(body) else { return String::new() };
    let text = value
        .pointer("/error/message")
        .or_else(|| value.pointer("/message"))
        .or_else(|| value.get("error"))
        .and_then(|v| v.as_str())
        .unwrap_or_default();
    text.split_whitespace()
        .map(|w| if w.starts_with("sk-") || w.starts_with("Bearer") || w.len() > 60 { "[redacted]" } else { w })
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(MAX_CHARS)
        .collect()
}

pub(crate) fn transport(e: &reqwest::Error, streaming: bool) -> AgentError {
    if e.is_timeout() {
        AgentError::new(Reason::ProviderTimeout, "the provider did not answer in time").with("kind", "timeout").with("phase", "headers")
    } else if e.is_connect() {
        AgentError::new(Reason::ProviderUnavailable, "the provider cannot be reached").with("kind", "connect")
    } else if streaming || e.is_body() || e.is_decode() {
        cut()
    } else if e.is_builder() {
        AgentError::new(Reason::ProviderRejected, "the provider's address is not valid").with("kind", "invalid_request")
    } else {
        AgentError::new(Reason::ProviderUnavailable, "the connection to the provider broke").with("kind", "connect")
    }
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
