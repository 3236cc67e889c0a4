//! Canonical hashes: of a task for `request_id`, of a model call and of a tool call for the journal.
//!
//! Taken over the decoded message encoded again: maps are sorted (B-trees), fields are in the order of their numbers, defaults and unknown
//! fields are dropped, so equal tasks give equal bytes whatever client wrote them.

use agent_proto::agents::v1 as pb;
use prost::Message;
use sha2::{Digest, Sha256};

/// Version of the canonical form; stored beside every hash.
pub const VERSION: u32 = 1;

/// Bytes as hexadecimal text, in small letters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of the canonical form of a task.
pub fn content_hash(task: &pb::AgentTask) -> [u8; 32] {
    Sha256::digest(task.encode_to_vec()).into()
}

/// SHA-256 of the canonical form of a model call. Its time limit and its rules are left out: they change nothing of what is asked.
pub fn chat_hash(request: &pb::ChatRequest) -> [u8; 32] {
    match (&request.timeout, &request.policy) {
        (None, None) => Sha256::digest(request.encode_to_vec()).into(),
        _ => Sha256::digest(pb::ChatRequest { timeout: None, policy: None, ..request.clone() }.encode_to_vec()).into(),
    }
}

/// SHA-256 of the canonical form of an embedding call.
pub fn embed_hash(request: &pb::EmbedRequest) -> [u8; 32] {
    match request.policy {
        None => Sha256::digest(request.encode_to_vec()).into(),
        Some(_) => Sha256::digest(pb::EmbedRequest { policy: None, ..request.clone() }.encode_to_vec()).into(),
    }
}

/// SHA-256 of a tool's name and its arguments. JSON text is taken with sorted keys and without space; what is no JSON as it is.
pub fn tool_hash(name: &str, arguments: &str) -> [u8; 32] {
    let canonical = serde_json::from_str::<serde_json::Value>(arguments).map(|mut v| {
        v.sort_all_objects();
        v.to_string()
    });
    let mut sha = Sha256::new();
    sha.update((name.len() as u64).to_be_bytes());
    sha.update(name);
    sha.update(canonical.as_deref().unwrap_or(arguments));
    sha.finalize().into()
}

/// Name of the first field in which two tasks differ.
pub fn differing_field(a: &pb::AgentTask, b: &pb::AgentTask) -> Option<&'static str> {
    [
        ("task.description", a.description != b.description),
        ("task.agent_id", a.agent_id != b.agent_id),
        ("task.agent_type", a.agent_type != b.agent_type),
        ("task.task_type", a.task_type != b.task_type),
        ("task.context", a.context != b.context),
        ("task.requirements", a.requirements != b.requirements),
        ("task.preferred_framework", a.preferred_framework != b.preferred_framework),
        ("task.execution_hints", a.execution_hints != b.execution_hints),
        ("task.plan", a.plan != b.plan),
        ("task.labels", a.labels != b.labels),
        ("task.parent_task_id", a.parent_task_id != b.parent_task_id),
        ("task.on_parent_end", a.on_parent_end != b.on_parent_end),
    ]
    .into_iter()
    .find_map(|(name, differs)| differs.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_no_part_of_a_question_and_the_prompt_is() {
        let ask = |text: &str, timeout| {
            let message = pb::Message {
                content: vec![pb::ContentPart { part: Some(pb::content_part::Part::Text(text.into())) }],
                ..Default::default()
            };
            chat_hash(&pb::ChatRequest { messages: vec![message], timeout, ..Default::default() })
        };
        assert_eq!(ask("a", None), ask("a", Some(prost_types::Duration { seconds: 1, nanos: 0 })));
        assert_ne!(ask("a", None), ask("b", None));
    }

    #[test]
    fn arguments_of_tools_are_compared_as_json() {
        assert_eq!(tool_hash("f", r#"{"b": 1, "a": [2]}"#), tool_hash("f", r#"{"a":[2],"b":1}"#));
        assert_ne!(tool_hash("f", r#"{"a": 1}"#), tool_hash("f", r#"{"a": 2}"#));
        assert_ne!(tool_hash("f", "x"), tool_hash("fx", ""));
    }

    #[test]
    fn equal_tasks_hash_alike_and_a_difference_is_named() {
        let task = pb::AgentTask {
            description: "x".into(),
            labels: [("b".into(), "1".into()), ("a".into(), "2".into())].into(),
            ..Default::default()
        };
        let again = pb::AgentTask { labels: [("a".into(), "2".into()), ("b".into(), "1".into())].into(), ..task.clone() };
        assert_eq!(content_hash(&task), content_hash(&again));
        let other = pb::AgentTask { description: "y".into(), ..task.clone() };
        assert_ne!(content_hash(&task), content_hash(&other));
        assert_eq!(differing_field(&task, &other), Some("task.description"));
    }
}
