//! A refusal or failure, in the words of the wire that was asked on.

use agent_core::{AgentError, Reason};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::routes::{Answer, json_answer};

/// Whose words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    OpenAi,
    Anthropic,
}

/// What is wrong with a request before it reaches the providers, or what they answered.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    error: AgentError,
}

impl Problem {
    /// With a status of its own.
    pub(crate) fn new(status: StatusCode, error: AgentError) -> Self {
        Self { status, error }
    }

    /// Of a field of the body.
    pub(crate) fn field(name: &str, what: impl Into<String>) -> Self {
        AgentError::field(name, what).into()
    }

    /// The whole answer.
    ///
    /// Clients of both makers try again by themselves on 408, 409, 429 and 5xx. What may be tried elsewhere was tried here already, so
    /// they are told not to; whoever wants to wait finds for how long in `retry-after`.
    pub(crate) fn answer(&self, wire: Wire) -> Response<Answer> {
        let mut response = json_answer(self.status, &self.body(wire));
        let headers = response.headers_mut();
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
        if self.error.retry_after_ms > 0 {
            let seconds = self.error.retry_after_ms.div_ceil(1000);
            headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// Its body; also the data of an error event in a stream.
    pub(crate) fn body(&self, wire: Wire) -> Value {
        let message = self.message();
        match wire {
            Wire::OpenAi => json!({"error": {
                "message": message,
                "type": openai_type(self.status, self.error.reason),
                "param": self.param(),
                "code": openai_code(self.error.reason),
            }}),
            Wire::Anthropic => json!({"type": "error", "error": {"type": anthropic_type(self.status), "message": message}}),
        }
    }

    fn message(&self) -> String {
        match self.error.fields.as_slice() {
            [] => self.error.message.clone(),
            fields => fields.iter().map(|f| format!("{}: {}", f.field, f.description)).collect::<Vec<_>>().join("; "),
        }
    }

    fn param(&self) -> Option<&str> {
        self.error.fields.first().map(|f| f.field.as_str()).or_else(|| self.error.metadata.get("field").map(String::as_str))
    }
}

impl From<AgentError> for Problem {
    fn from(error: AgentError) -> Self {
        Self { status: status(error.reason), error }
    }
}

fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::KeyMissing | Reason::KeyUnknown => StatusCode::UNAUTHORIZED,
        Reason::ModelNotFound | Reason::NoProviderMatches => StatusCode::NOT_FOUND,
        Reason::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::BudgetExhausted | Reason::ProviderQuota | Reason::ProviderRateLimited | Reason::RateLimited => {
            StatusCode::TOO_MANY_REQUESTS
        }
        Reason::ProviderTimeout => StatusCode::GATEWAY_TIMEOUT,
        // Ours to mend, not the caller's.
        Reason::ProviderAuth | Reason::ProviderBadResponse | Reason::ProviderStreamCut | Reason::ProviderResponseTooLarge => {
            StatusCode::BAD_GATEWAY
        }
        Reason::CapabilityPending => StatusCode::NOT_IMPLEMENTED,
        _ => match reason.code() {
            3 | 9 | 11 => StatusCode::BAD_REQUEST,
            8 | 14 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

fn openai_type(status: StatusCode, reason: Reason) -> &'static str {
    match (status.as_u16(), reason) {
        (_, Reason::BudgetExhausted | Reason::ProviderQuota) => "insufficient_quota",
        (401, _) => "authentication_error",
        (403, _) => "permission_error",
        (429, _) => "rate_limit_error",
        (400..=499, _) => "invalid_request_error",
        _ => "server_error",
    }
}

/// OpenAI's own word where there is one, else ours.
fn openai_code(reason: Reason) -> &'static str {
    match reason {
        Reason::ModelNotFound | Reason::NoProviderMatches => "model_not_found",
        Reason::ContextTooLong => "context_length_exceeded",
        Reason::BudgetExhausted | Reason::ProviderQuota => "insufficient_quota",
        Reason::KeyMissing | Reason::KeyUnknown => "invalid_api_key",
        Reason::ProviderRateLimited | Reason::RateLimited => "rate_limit_exceeded",
        other => other.upper(),
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
