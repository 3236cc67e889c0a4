//! What Erlang needs to know of a task to decide about it: a small header beside the opaque payload.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_proto::agents::v1 as pb;

/// Defaults of `api.md`, in milliseconds where they are times.
pub mod defaults {
    /// Over all attempts.
    pub const MAX_DURATION_MS: i64 = 24 * 3600 * 1000;
    /// Model calls and tool rounds.
    pub const MAX_STEPS: i32 = 50;
    /// Steps of a plan at once.
    pub const MAX_PARALLEL: i32 = 8;
    /// Attempts of a task.
    pub const MAX_ATTEMPTS: i32 = 5;
    /// Before the second retry.
    pub const INITIAL_BACKOFF_MS: i64 = 1000;
    /// Longest wait between attempts.
    pub const MAX_BACKOFF_MS: i64 = 60_000;
    /// Growth of the wait.
    pub const MULTIPLIER: f64 = 2.0;
    /// Priority, 9 first.
    pub const PRIORITY: i32 = 4;
}

/// What a task that is run from a bundle begins with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The task of the bundle.
    pub of: String,
    /// Answers of models and results of tools.
    pub entries: Vec<pb::JournalEntry>,
    /// What people and clients answered.
    pub answers: Vec<pb::InputAnswer>,
    /// What its memory namespace held.
    pub remembered: Vec<pb::Message>,
}

/// The header of a task. Times are ms, 0 is "none" (for `max_duration_ms` too).
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct TaskHeader {
    pub task_id: String,
    pub request_id: String,
    pub tenant: String,
    /// Name of the key it was submitted with, whose budget pays for it as well; empty: none was needed.
    pub key_id: String,
    pub agent_id: String,
    pub agent_type: String,
    pub task_type: String,
    pub method: &'static str,
    pub framework: String,
    pub fallback_frameworks: Vec<String>,
    pub priority: i32,
    pub ephemeral: bool,
    pub capabilities: Vec<String>,
    pub model: String,
    pub tools: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub max_steps: i32,
    pub max_attempts: i32,
    pub initial_backoff_ms: i64,
    pub max_backoff_ms: i64,
    pub multiplier: f64,
    pub non_retryable: Vec<String>,
    pub max_duration_ms: i64,
    pub max_attempt_duration_ms: i64,
    pub max_queue_duration_ms: i64,
    pub not_before_ms: i64,
    pub heartbeat_timeout_ms: i64,
    /// 0: the node's.
    pub block_grace_ms: i64,
    pub stream_text: bool,
    pub allow_replay: bool,
    pub parent_task_id: String,
    /// It is cancelled when its parent ends.
    pub ends_with_parent: bool,
    pub retry_of: String,
    /// The task whose answers this one begins with.
    pub fork_of: String,
    /// The last event of it that counts; 0: all.
    pub fork_after: i64,
    /// It is answered by a record alone, see [`Record`].
    pub replayed: bool,
    /// That record, at its submit.
    pub record: Option<Arc<Record>>,
    pub has_plan: bool,
    /// What the task may spend, in micro-dollars; 0: no limit; none: the tenant's default.
    pub max_cost_micros: Option<i64>,
    /// At the end of the money.
    pub on_budget_end: &'static str,
    /// Rules of its model calls, an encoded `CallPolicy`; empty: none but the configuration's.
    pub policy: Vec<u8>,
    /// How often somebody has approved as much again.
    pub budget_approved: i64,
    /// Somebody was asked for more money and said no.
    pub budget_denied: bool,
    pub content_hash: Vec<u8>,
    pub hash_version: u32,
    pub create_ms: i64,
}

/// Milliseconds of a duration, rounded up, so that a tiny limit is not "none".
pub fn duration_ms(d: &prost_types::Duration) -> i64 {
    d.seconds.saturating_mul(1000).saturating_add(i64::from(d.nanos).div_euclid(1_000_000) + i64::from(d.nanos % 1_000_000 != 0))
}

/// Milliseconds since the epoch of a timestamp.
pub fn timestamp_ms(t: &prost_types::Timestamp) -> i64 {
    t.seconds.saturating_mul(1000).saturating_add(i64::from(t.nanos / 1_000_000))
}

/// Timestamp of milliseconds since the epoch.
pub fn timestamp(ms: i64) -> prost_types::Timestamp {
    #[allow(clippy::cast_possible_truncation)]
    prost_types::Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 }
}

/// Duration of milliseconds.
pub fn duration(ms: i64) -> prost_types::Duration {
    #[allow(clippy::cast_possible_truncation)]
    prost_types::Duration { seconds: ms / 1000, nanos: (ms % 1000 * 1_000_000) as i32 }
}

/// The task type of a description, by rule; recorded in the task.
pub fn infer_task_type(description: &str) -> &'static str {
    let text = description.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&["code", "function", "bug", "implement", "refactor", "unit test"]) {
        "coding"
    } else if has(&["plan ", "roadmap", "schedule", "steps to"]) {
        "planning"
    } else if has(&["research", "find out", "investigate", "compare", "sources"]) {
        "research"
    } else if has(&["team", "together", "collaborat", "crew"]) {
        "collaborative"
    } else {
        "general"
    }
}

/// Canonical name of a task type (`conversational` is an alias).
pub fn canonical_task_type(name: &str) -> &str {
    match name {
        "conversational" => "conversation",
        other => other,
    }
}

/// The rules that a task means for its model calls. Its money is the header's own.
pub fn call_policy(req: &pb::TaskRequirements, hints: &pb::ExecutionHints) -> pb::CallPolicy {
    pb::CallPolicy {
        allowed_providers: req.allowed_providers.clone(),
        denied_providers: req.denied_providers.clone(),
        data_tags: req.data_tags.clone(),
        weights: req.weights,
        min_quality: req.min_quality,
        cache: hints.cache,
        hedge: hints.hedge,
        stream_policy: hints.stream_policy,
        ..Default::default()
    }
}

/// Builds the header of a validated task.
pub fn header(task: &pb::AgentTask, task_id: &str, request_id: &str, tenant: &str, now_ms: i64) -> TaskHeader {
    let none_hints = pb::ExecutionHints::default();
    let none_req = pb::TaskRequirements::default();
    let hints = task.execution_hints.as_ref().unwrap_or(&none_hints);
    let req = task.requirements.as_ref().unwrap_or(&none_req);
    let retry = hints.retry.clone().unwrap_or_default();
    let ms = |d: &Option<prost_types::Duration>, default: i64| d.as_ref().map_or(default, duration_ms);
    let positive = |n: i32, default: i32| if n == 0 { default } else { n };
    TaskHeader {
        task_id: task_id.to_owned(),
        request_id: request_id.to_owned(),
        tenant: tenant.to_owned(),
        key_id: String::new(),
        agent_id: task.agent_id.clone(),
        agent_type: task.agent_type.clone(),
        task_type: if task.task_type.is_empty() { infer_task_type(&task.description) } else { canonical_task_type(&task.task_type) }
            .to_owned(),
        method: match hints.method() {
            pb::ExecutionMethod::Unspecified | pb::ExecutionMethod::Auto => "auto",
            pb::ExecutionMethod::Native => "native",
            pb::ExecutionMethod::Framework => "framework",
            pb::ExecutionMethod::Hybrid => "hybrid",
        },
        framework: task.preferred_framework.clone(),
        fallback_frameworks: hints.fallback_frameworks.clone(),
        priority: hints.priority.unwrap_or(defaults::PRIORITY),
        ephemeral: hints.durability() == pb::Durability::Ephemeral,
        capabilities: req.capabilities.clone(),
        model: req.model.clone(),
        tools: task.context.iter().flat_map(|c| c.available_tools.iter().map(|t| t.name.clone())).collect(),
        labels: task.labels.clone(),
        max_steps: positive(hints.max_steps, defaults::MAX_STEPS),
        max_attempts: positive(retry.max_attempts, defaults::MAX_ATTEMPTS),
        initial_backoff_ms: ms(&retry.initial_backoff, defaults::INITIAL_BACKOFF_MS),
        max_backoff_ms: ms(&retry.max_backoff, defaults::MAX_BACKOFF_MS),
        multiplier: if retry.multiplier == 0.0 { defaults::MULTIPLIER } else { retry.multiplier },
        non_retryable: retry.non_retryable,
        max_duration_ms: ms(&req.max_duration, defaults::MAX_DURATION_MS),
        max_attempt_duration_ms: ms(&req.max_attempt_duration, 0),
        max_queue_duration_ms: ms(&req.max_queue_duration, 0),
        not_before_ms: hints.not_before.as_ref().map_or(0, timestamp_ms),
        heartbeat_timeout_ms: ms(&hints.heartbeat_timeout, 0),
        block_grace_ms: ms(&hints.block_grace, 0),
        // What nobody was shown has not to be taken back where a call begins anew.
        stream_text: hints.stream_text.unwrap_or(true) && hints.stream_policy() != pb::StreamPolicy::Restart,
        allow_replay: hints.allow_replay,
        parent_task_id: task.parent_task_id.clone(),
        ends_with_parent: !task.parent_task_id.is_empty() && task.on_parent_end() != pb::OnParentEnd::Continue,
        retry_of: String::new(),
        fork_of: String::new(),
        fork_after: 0,
        replayed: false,
        record: None,
        has_plan: task.plan.is_some(),
        max_cost_micros: req.max_cost_micros,
        on_budget_end: match req.on_budget_end() {
            pb::OnBudgetEnd::Unspecified | pb::OnBudgetEnd::Fail => "fail",
            pb::OnBudgetEnd::Wait => "wait",
            pb::OnBudgetEnd::CheaperModel => "cheaper_model",
        },
        policy: prost::Message::encode_to_vec(&call_policy(req, hints)),
        budget_approved: 0,
        budget_denied: false,
        content_hash: Vec::new(),
        hash_version: crate::hash::VERSION,
        create_ms: now_ms,
    }
}
