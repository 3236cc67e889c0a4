//! What a call of the memory of agents may hold: names, sizes, times. Clients and workers are told the same.

use agent_proto::agents::v1 as pb;
use pb::memory_operation::Operation;
use prost::Message;

use crate::AgentError;
use crate::validate::{namespace_violation, request_id_violation};

/// Of a key or the id of a conversation, in bytes.
const MAX_KEY: usize = 512;
/// Of a value, in bytes.
const MAX_VALUE: usize = 1024 * 1024;
/// Messages of one append, operations of one batch.
const MAX_AT_ONCE: usize = 1000;
/// Of one append or batch, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Longest time to live: ten years, in seconds.
const MAX_TTL_S: i64 = 10 * 366 * 24 * 3600;

fn violation(field: impl Into<String>, description: impl Into<String>) -> pb::FieldViolation {
    pb::FieldViolation { field: field.into(), description: description.into() }
}

/// A name that is looked up as it is.
fn name(field: &str, name: &str) -> Option<pb::FieldViolation> {
    let good = (1..=MAX_KEY).contains(&name.len()) && !name.chars().any(char::is_control);
    (!good).then(|| violation(field, format!("must be 1 to {MAX_KEY} bytes without control characters")))
}

fn bytes(field: &str, size: usize, most: usize) -> Option<pb::FieldViolation> {
    (size > most).then(|| violation(field, format!("{size} bytes, must be at most {most}")))
}

fn check(violations: impl IntoIterator<Item = Option<pb::FieldViolation>>) -> Result<(), AgentError> {
    AgentError::invalid(violations.into_iter().flatten().collect()).map_or(Ok(()), Err)
}

fn value(field: &str, r: &pb::PutMemoryRequest) -> [Option<pb::FieldViolation>; 5] {
    let at = |name: &str| format!("{field}{name}");
    let ttl = r.ttl.as_ref().is_some_and(|t| t.seconds < 0 || t.nanos < 0 || (t.seconds, t.nanos) == (0, 0) || t.seconds > MAX_TTL_S);
    [
        name(&at("key"), &r.key),
        r.value.is_none().then(|| violation(at("value"), "is missing")),
        bytes(&at("value"), r.value.as_ref().map_or(0, Message::encoded_len), MAX_VALUE),
        ttl.then(|| violation(at("ttl"), "must be more than 0 s and at most ten years; unset: for ever")),
        r.expected_version.is_some_and(|n| n < 0).then(|| violation(at("expected_version"), "must be 0 (absent) or a version")),
    ]
}

fn operation(i: usize, namespace: &str, operation: &pb::MemoryOperation) -> Vec<Option<pb::FieldViolation>> {
    let field = format!("operations[{i}]");
    let other = |other: &str| {
        (!other.is_empty() && other != namespace)
            .then(|| violation(format!("{field}.namespace"), "must be empty or the namespace of the batch"))
    };
    match &operation.operation {
        Some(Operation::Put(r)) => value(&format!("{field}.put."), r).into_iter().chain([other(&r.namespace)]).collect(),
        Some(Operation::Delete(r)) => vec![name(&format!("{field}.delete.key"), &r.key), other(&r.namespace)],
        None => vec![Some(violation(field, "is neither put nor delete"))],
    }
}

/// A write.
pub fn check_put(r: &pb::PutMemoryRequest) -> Result<(), AgentError> {
    check(value("", r).into_iter().chain([namespace_violation("namespace", &r.namespace), request_id_violation(&r.request_id)]))
}

/// A read.
pub fn check_get(r: &pb::GetMemoryRequest) -> Result<(), AgentError> {
    check([namespace_violation("namespace", &r.namespace), name("key", &r.key)])
}

/// A delete.
pub fn check_delete(r: &pb::DeleteMemoryRequest) -> Result<(), AgentError> {
    let version = r.expected_version.is_some_and(|n| n < 0).then(|| violation("expected_version", "must be 0 (absent) or a version"));
    check([namespace_violation("namespace", &r.namespace), name("key", &r.key), version])
}

/// A listing.
pub fn check_list(r: &pb::ListMemoriesRequest) -> Result<(), AgentError> {
    check([namespace_violation("namespace", &r.namespace), bytes("prefix", r.prefix.len(), MAX_KEY)])
}

/// Several writes.
pub fn check_batch(r: &pb::BatchMemoryRequest) -> Result<(), AgentError> {
    let n = r.operations.len();
    let count = (n == 0 || n > MAX_AT_ONCE).then(|| violation("operations", format!("{n} operations, must be 1 to {MAX_AT_ONCE}")));
    let whole = [
        namespace_violation("namespace", &r.namespace),
        count,
        bytes("operations", r.encoded_len(), MAX_BYTES),
        request_id_violation(&r.request_id),
    ];
    check(whole.into_iter().chain(r.operations.iter().enumerate().flat_map(|(i, o)| operation(i, &r.namespace, o))))
}

/// A listing of versions.
pub fn check_versions(r: &pb::ListMemoryVersionsRequest) -> Result<(), AgentError> {
    check([namespace_violation("namespace", &r.namespace), name("key", &r.key)])
}

/// An addition to a conversation.
pub fn check_append(r: &pb::AppendMessagesRequest) -> Result<(), AgentError> {
    let n = r.messages.len();
    let count = (n == 0 || n > MAX_AT_ONCE).then(|| violation("messages", format!("{n} messages, must be 1 to {MAX_AT_ONCE}")));
    let roles = r.messages.iter().enumerate().map(|(i, m)| {
        let known = matches!(pb::Role::try_from(m.role), Ok(role) if role != pb::Role::Unspecified);
        (!known).then(|| violation(format!("messages[{i}].role"), "is not set to USER, ASSISTANT, SYSTEM or TOOL"))
    });
    let whole = [
        namespace_violation("namespace", &r.namespace),
        name("conversation_id", &r.conversation_id),
        count,
        bytes("messages", r.encoded_len(), MAX_BYTES),
        request_id_violation(&r.request_id),
    ];
    check(whole.into_iter().chain(roles))
}

/// A reading of a conversation.
pub fn check_messages(r: &pb::ListMessagesRequest) -> Result<(), AgentError> {
    check([namespace_violation("namespace", &r.namespace), name("conversation_id", &r.conversation_id)])
}
