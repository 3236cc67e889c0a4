//! Canonical content hash of a task, for `request_id`.
//!
//! Taken over the decoded message encoded again: maps are sorted (B-trees), fields are in the order of their numbers, defaults and unknown
//! fields are dropped, so equal tasks give equal bytes whatever client wrote them.

use agent_proto::agents::v1 as pb;
use prost::Message;
use sha2::{Digest, Sha256};

/// Version of the canonical form; stored beside every hash.
pub const VERSION: u32 = 1;

/// SHA-256 of the canonical form of a task.
pub fn content_hash(task: &pb::AgentTask) -> [u8; 32] {
    Sha256::digest(task.encode_to_vec()).into()
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
