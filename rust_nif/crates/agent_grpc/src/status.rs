//! From our errors to `google.rpc.Status` with details.

use std::time::Duration;

use agent_core::AgentError;
use agent_proto::codec::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Waits that are said where an error is worth repeating but names none.
const DEFAULT_RETRY: Duration = Duration::from_millis(500);

/// The status of an error: always ErrorInfo; every wrong field; when to come back.
pub fn to_status(e: &AgentError) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(e.reason.upper(), ERROR_DOMAIN, e.metadata.clone().into_iter().collect::<std::collections::HashMap<_, _>>());
    if !e.fields.is_empty() {
        details.set_bad_request(e.fields.iter().map(|f| FieldViolation::new(&f.field, &f.description)).collect::<Vec<_>>());
    }
    let code = Code::from_i32(e.reason.code());
    if e.reason.retryable() && matches!(code, Code::ResourceExhausted | Code::Unavailable) {
        details.set_retry_info(Some(if e.retry_after_ms > 0 { Duration::from_millis(e.retry_after_ms) } else { DEFAULT_RETRY }));
    }
    if code == Code::FailedPrecondition {
        details.add_precondition_failure_violation(e.reason.upper(), "", &e.message);
    }
    if code == Code::ResourceExhausted {
        details.add_quota_failure_violation(e.metadata.get("limit").map_or("engine", String::as_str), &e.message);
    }
    Status::with_error_details(code, &e.message, details)
}
