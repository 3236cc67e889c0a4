//! From our errors to `google.rpc.Status` with details.

use std::collections::HashMap;
use std::time::Duration;

use agent_core::AgentError;
use agent_proto::codec::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Waits that are said where an error is worth repeating but names none.
const DEFAULT_RETRY: Duration = Duration::from_millis(500);
/// Wrong fields that one answer names.
const MAX_FIELDS: usize = 16;
/// Of a text in an answer, in bytes. The details travel in a trailer, and clients refuse one of more than 8 KiB: then they see no reason at all.
const MAX_TEXT_BYTES: usize = 256;

/// A text of at most so many bytes; what is left out is shown by its last sign.
fn clip(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// The wrong fields, as many as an answer holds; the last one says how many there are besides.
fn violations(e: &AgentError) -> Vec<FieldViolation> {
    let mut shown: Vec<_> = e.fields.iter().take(MAX_FIELDS).map(|f| FieldViolation::new(clip(&f.field), clip(&f.description))).collect();
    if let (Some(left_out @ 1..), Some(last)) = (e.fields.len().checked_sub(MAX_FIELDS), shown.last_mut()) {
        last.description.push_str(&format!(" (and {left_out} more fields are wrong)"));
    }
    shown
}

/// The status of an error: always ErrorInfo; every wrong field; when to come back.
pub fn to_status(e: &AgentError) -> Status {
    let mut details = ErrorDetails::new();
    let message = clip(&e.message);
    let metadata: HashMap<_, _> = e.metadata.iter().map(|(name, value)| (name.clone(), clip(value))).collect();
    details.set_error_info(e.reason.upper(), ERROR_DOMAIN, metadata);
    if !e.fields.is_empty() {
        details.set_bad_request(violations(e));
    }
    let code = Code::from_i32(e.reason.code());
    if e.reason.retryable() && matches!(code, Code::ResourceExhausted | Code::Unavailable) {
        details.set_retry_info(Some(if e.retry_after_ms > 0 { Duration::from_millis(e.retry_after_ms) } else { DEFAULT_RETRY }));
    }
    if code == Code::FailedPrecondition {
        details.add_precondition_failure_violation(e.reason.upper(), "", &message);
    }
    if code == Code::ResourceExhausted {
        details.add_quota_failure_violation(e.metadata.get("limit").map_or("engine", String::as_str), &message);
    }
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use agent_core::{AgentError, Reason};
    use agent_proto::agents::v1 as pb;

    use super::*;

    #[test]
    fn an_error_fits_into_a_trailer_however_much_is_wrong() {
        let wrong = |n: usize| pb::FieldViolation { field: format!("f[{n}]"), description: "é".repeat(100_000) };
        let error = AgentError::invalid((0..1000).map(wrong).collect()).unwrap().with("position", "x".repeat(100_000));
        let status = to_status(&error);
        assert!(status.message().len() + status.details().len() < 6 * 1024, "{}", status.details().len());
        let shown = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(shown.len(), MAX_FIELDS);
        assert!(shown[MAX_FIELDS - 1].description.ends_with("(and 984 more fields are wrong)"));
        let short = to_status(&AgentError::new(Reason::TaskNotFound, "there is no task x"));
        assert_eq!(short.message(), "there is no task x");
    }
}
