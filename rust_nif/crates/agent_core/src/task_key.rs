//! What two tasks must have in common for one to be given the other's answer, and whether a task may be given one at all.
//!
//! The key is a SHA-256 over the canonical form of the task without what changes no answer (labels, limits of time and money, durability,
//! who waits for it), and over what the caller knows of its surroundings: tenant, agent with its version, executor, environment.

use agent_proto::agents::v1 as pb;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::tools;

/// What the whole-task cache may do with a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cacheable {
    /// The task does not ask for it.
    No,
    /// The tool of this name may have an effect, which an answer given again would not have.
    Effects(String),
    /// It may.
    Yes {
        /// An answer may be given again; else one is only kept (`REFRESH`).
        read: bool,
        /// Equal for equal tasks in equal surroundings.
        key: [u8; 32],
        /// Tools whose use does not forbid to keep the answer.
        tools: Vec<String>,
    },
}

/// Judges a task; `agent_tools` are the agent's own, `around` is hashed in order, each part with its length.
pub fn cacheable(task: &pb::AgentTask, agent_tools: &[String], around: &[&[u8]]) -> Cacheable {
    let read = match task.execution_hints.as_ref().map_or(pb::CacheMode::Unspecified, pb::ExecutionHints::cache) {
        pb::CacheMode::Unspecified | pb::CacheMode::Bypass => return Cacheable::No,
        pb::CacheMode::Use => true,
        pb::CacheMode::Refresh => false,
    };
    let given = task.context.iter().flat_map(|c| &c.available_tools);
    let safe: Vec<String> = given.clone().filter(|t| t.replay() == pb::ToolReplay::Safe).map(|t| t.name.clone()).collect();
    let harmless = |name: &String| tools::NAMES.contains(&name.as_str()) || safe.contains(name);
    let named: Vec<&String> = given.map(|t| &t.name).collect();
    // As everywhere: the tools of the task stand in place of the agent's.
    let agents = if named.is_empty() { agent_tools } else { &[] };
    if let Some(name) = named.into_iter().chain(agents).find(|name| !harmless(name)) {
        return Cacheable::Effects(name.clone());
    }
    // What `now` has said is wrong a moment later: an answer that used it is not kept.
    let tools = safe.into_iter().chain(["calculate".to_owned()]).collect();
    Cacheable::Yes { read, key: key(task, around), tools }
}

/// The hash of what decides about the answer.
pub fn key(task: &pb::AgentTask, around: &[&[u8]]) -> [u8; 32] {
    let hints = task.execution_hints.clone().unwrap_or_default();
    let requirements = task.requirements.clone().unwrap_or_default();
    let asked = pb::AgentTask {
        requirements: Some(pb::TaskRequirements {
            max_cost_micros: None,
            max_duration: None,
            max_attempt_duration: None,
            max_queue_duration: None,
            on_budget_end: 0,
            weights: None,
            ..requirements
        }),
        execution_hints: Some(pb::ExecutionHints {
            process: hints.process,
            temperature: hints.temperature,
            seed: hints.seed,
            max_steps: hints.max_steps,
            ..Default::default()
        }),
        labels: Default::default(),
        parent_task_id: String::new(),
        on_parent_end: 0,
        ..task.clone()
    };
    let mut sha = Sha256::new();
    for part in [asked.encode_to_vec().as_slice()].iter().chain(around) {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    sha.finalize().into()
}

#[cfg(test)]
mod tests;
