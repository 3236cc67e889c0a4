//! Checks of a task's fields. Every wrong field is named in one answer.

use agent_proto::agents::v1 as pb;

use crate::{
    Reason,
    header::{duration_ms, timestamp_ms},
    json, plan,
};

/// Longest description, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 1024 * 1024;
/// Most messages of history.
pub const MAX_HISTORY: usize = 1000;
/// Most tools of a task.
pub const MAX_TOOLS: usize = 128;
/// Most labels.
pub const MAX_LABELS: usize = 64;
/// Longest name, key, id or label, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Most faults of a plan that are listed; the rest is counted.
const MAX_PLAN_FAULTS: usize = 30;
/// Furthest start in the future, in ms.
const MAX_NOT_BEFORE_MS: i64 = 366 * 24 * 3600 * 1000;
/// Longest duration, in ms: ten years. A timer of the engine takes no number of any size.
const MAX_DURATION_MS: i64 = 3660 * 24 * 3600 * 1000;
/// Start times older than this are a mistake of the client's, in ms.
const MAX_PAST_MS: i64 = 24 * 3600 * 1000;

/// Longest id that a client gives a request, in bytes.
pub const MAX_REQUEST_ID: usize = 128;
/// Most segments of a namespace of memory.
const MAX_SEGMENTS: usize = 16;
/// Longest segment, in bytes.
const MAX_SEGMENT: usize = 128;

struct Check(Vec<pb::FieldViolation>);

impl Check {
    fn fail(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(pb::FieldViolation { field: field.into(), description: description.into() });
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, field: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.fail(field, format!("{value}, must be {low} to {high}"));
        }
    }

    fn name(&mut self, field: &str, value: &str) {
        if value.len() > MAX_NAME_BYTES {
            self.fail(field, format!("{} bytes, must be at most {MAX_NAME_BYTES}", value.len()));
        }
    }

    fn duration(&mut self, field: &str, value: Option<&prost_types::Duration>) {
        if value.is_some_and(|d| d.seconds < 0 || d.nanos < 0) {
            self.fail(field, "is negative, must be 0 (no limit) or more");
        } else if value.is_some_and(|d| duration_ms(d) > MAX_DURATION_MS) {
            self.fail(field, "is longer than ten years; 0 is no limit");
        }
    }

    fn depth(&mut self, field: &str, value: Option<&prost_types::Struct>) {
        if value.is_some_and(|s| json::depth(s) > json::MAX_DEPTH) {
            self.fail(field, format!("nested deeper than {} levels", json::MAX_DEPTH));
        }
    }

    fn known_enum<E: TryFrom<i32>>(&mut self, field: &str, value: i32) {
        if E::try_from(value).is_err() {
            self.fail(field, format!("{value} is not a known value"));
        }
    }

    fn schema(&mut self, field: &str, schema: &prost_types::Struct) {
        let before = self.0.len();
        self.depth(field, Some(schema));
        if self.0.len() > before {
            return;
        }
        if let Err(e) = jsonschema::validator_for(&json::from_struct(schema)) {
            self.fail(field, format!("is not a valid JSON Schema: {e} (at {})", e.instance_path()));
        }
    }
}

/// All wrong fields of a task; paths begin with `task.`.
pub fn validate_task(task: &pb::AgentTask, now_ms: i64) -> Vec<pb::FieldViolation> {
    let mut c = Check(Vec::new());
    if task.description.trim().is_empty() {
        c.fail("task.description", "is empty; say what is to be done");
    } else if task.description.len() > MAX_DESCRIPTION_BYTES {
        c.fail(
            "task.description",
            format!("{} bytes, must be at most {MAX_DESCRIPTION_BYTES}; use an artefact for more", task.description.len()),
        );
    }
    c.name("task.agent_id", &task.agent_id);
    c.name("task.agent_type", &task.agent_type);
    c.name("task.task_type", &task.task_type);
    framework_name(&mut c, "task.preferred_framework", &task.preferred_framework);
    c.known_enum::<pb::OnParentEnd>("task.on_parent_end", task.on_parent_end);
    if task.labels.len() > MAX_LABELS {
        c.fail("task.labels", format!("{} labels, must be at most {MAX_LABELS}", task.labels.len()));
    }
    for (key, value) in &task.labels {
        if key.is_empty() {
            c.fail("task.labels", "a label's key is empty");
        }
        c.name("task.labels", key);
        c.name("task.labels", value);
    }
    if let Some(context) = &task.context {
        check_context(&mut c, context);
    }
    let remembers = task.context.as_ref().is_some_and(|context| !context.memory_namespace.is_empty());
    if remembers && task.execution_hints.as_ref().is_some_and(|h| h.durability() == pb::Durability::Ephemeral) {
        c.fail("task.context.memory_namespace", "an ephemeral task remembers nothing; leave durability unset");
    }
    if let Some(requirements) = &task.requirements {
        check_requirements(&mut c, requirements);
    }
    if let Some(hints) = &task.execution_hints {
        check_hints(&mut c, hints, now_ms);
    }
    if plan::propose::asked(task) {
        check_planning(&mut c, task);
    }
    if let Some(plan) = &task.plan {
        check_plan(&mut c, plan);
    } else if task.execution_hints.as_ref().is_some_and(|h| h.method() == pb::ExecutionMethod::Hybrid)
        && matches!(task.preferred_framework.as_str(), "" | "auto" | "native")
    {
        c.fail("task.preferred_framework", "is missing: name the framework that drafts in the middle of HYBRID, or give a plan");
    }
    c.0
}

/// A model makes plans for tasks that leave one to make.
fn check_planning(c: &mut Check, task: &pb::AgentTask) {
    if task.plan.is_some() {
        c.fail("task.execution_hints.planning", "the task brings a plan of its own; leave out one of the two");
    }
    if task.execution_hints.as_ref().is_some_and(|h| h.method() == pb::ExecutionMethod::Framework) {
        c.fail("task.execution_hints.planning", "the native agent makes plans; use method AUTO, NATIVE or HYBRID");
    }
}

/// Everything that is wrong with a plan which the engine was asked for inside a task.
pub(crate) fn plan_faults(plan: &pb::ExecutionPlan) -> Vec<pb::FieldViolation> {
    let mut c = Check(Vec::new());
    check_plan(&mut c, plan);
    c.0
}

/// Steps beyond the first faults are not listed: an answer has to fit in the trailers of a call.
fn check_plan(c: &mut Check, plan: &pb::ExecutionPlan) {
    let mut own = Check(Vec::new());
    if plan.planning.is_some() {
        own.fail("task.plan.planning", "is said by the engine; leave it out");
    }
    for (field, description) in plan::violations(plan) {
        own.fail(field, description);
    }
    for (i, step) in plan.steps.iter().enumerate().take(plan::MAX_STEPS) {
        if step.executor != "workflow" {
            framework_name(&mut own, &format!("task.plan.steps[{i}].executor"), &step.executor);
        }
        own.duration(&format!("task.plan.steps[{i}].timeout"), step.timeout.as_ref());
        own.known_enum::<pb::OnStepFailure>(&format!("task.plan.steps[{i}].on_failure"), step.on_failure);
        for (n, executor) in step.fallback_executors.iter().enumerate() {
            framework_name(&mut own, &format!("task.plan.steps[{i}].fallback_executors[{n}]"), executor);
        }
        if let Some(requirements) = &step.requirements {
            check_step_requirements(&mut own, i, requirements);
        }
        if let Some(retry) = &step.retry {
            check_retry(&mut own, &format!("task.plan.steps[{i}].retry"), retry);
        }
    }
    let more = own.0.len().saturating_sub(MAX_PLAN_FAULTS);
    own.0.truncate(MAX_PLAN_FAULTS);
    c.0.append(&mut own.0);
    if more > 0 {
        c.fail("task.plan", format!("and {more} more faults"));
    }
}

/// What a step may ask for itself: not what is the whole task's.
fn check_step_requirements(c: &mut Check, i: usize, requirements: &pb::TaskRequirements) {
    let at = |name: &str| format!("task.plan.steps[{i}].requirements{name}");
    let mut own = Check(Vec::new());
    check_requirements(&mut own, requirements);
    for fault in own.0 {
        c.fail(at(fault.field.trim_start_matches("task.requirements")), fault.description);
    }
    let whole = [
        ("max_cost_micros", requirements.max_cost_micros.is_some(), "the money is the task's; set it in task.requirements"),
        ("on_budget_end", requirements.on_budget_end != 0, "the money is the task's; set it in task.requirements"),
        ("max_duration", requirements.max_duration.is_some(), "use timeout of the step"),
        ("max_attempt_duration", requirements.max_attempt_duration.is_some(), "use timeout of the step"),
        ("max_queue_duration", requirements.max_queue_duration.is_some(), "a step does not queue; use timeout of the step"),
    ];
    for (name, set, why) in whole {
        if set {
            c.fail(at(&format!(".{name}")), why);
        }
    }
}

fn check_retry(c: &mut Check, field: &str, r: &pb::RetryPolicy) {
    let at = |name: &str| format!("{field}.{name}");
    c.range(&at("max_attempts"), r.max_attempts, 0, 100);
    c.duration(&at("initial_backoff"), r.initial_backoff.as_ref());
    c.duration(&at("max_backoff"), r.max_backoff.as_ref());
    if r.multiplier != 0.0 && !(1.0..=10.0).contains(&r.multiplier) {
        c.fail(at("multiplier"), format!("{}, must be 1 to 10", r.multiplier));
    }
    // A misspelt reason would be retried after all.
    for (i, name) in r.non_retryable.iter().enumerate() {
        if Reason::parse(name).is_none() {
            c.fail(at(&format!("non_retryable[{i}]")), format!("\"{}\" is no reason of an error, such as WORKER_CRASHED", clip(name)));
        }
    }
}

fn framework_name(c: &mut Check, field: &str, name: &str) {
    let known = ["", "native", "auto", "langchain", "langgraph", "crewai", "autogen", "semantic_kernel", "haystack", "agent_framework"];
    if !known.contains(&name) && !name.strip_prefix("custom:").is_some_and(|n| !n.is_empty() && n.len() <= 24) {
        c.fail(field, format!("\"{}\" is unknown; use one of {} or custom:NAME", clip(name), known[1..].join(", ")));
    }
}

/// Why a text is no id of a request; empty is one.
pub fn request_id_violation(id: &str) -> Option<pb::FieldViolation> {
    let why = if id.len() > MAX_REQUEST_ID {
        format!("{} bytes, must be at most {MAX_REQUEST_ID}", id.len())
    } else if id.contains('\0') {
        "must not contain a zero byte".to_owned()
    } else {
        return None;
    };
    Some(pb::FieldViolation { field: "request_id".to_owned(), description: why })
}

/// Why a text is no namespace of memory: segments between slashes.
pub fn namespace_violation(field: &str, namespace: &str) -> Option<pb::FieldViolation> {
    let segments: Vec<&str> = namespace.split('/').collect();
    let good = |s: &&str| !s.is_empty() && s.len() <= MAX_SEGMENT && !s.chars().any(char::is_control);
    let why = if namespace.is_empty() {
        "is missing".to_owned()
    } else if segments.len() > MAX_SEGMENTS {
        format!("{} segments, must be at most {MAX_SEGMENTS}", segments.len())
    } else if !segments.iter().all(good) {
        format!("segments between \"/\" must be 1 to {MAX_SEGMENT} bytes without control characters")
    } else {
        return None;
    };
    Some(pb::FieldViolation { field: field.to_owned(), description: why })
}

fn check_context(c: &mut Check, context: &pb::TaskContext) {
    if context.conversation_history.len() > MAX_HISTORY {
        c.fail(
            "task.context.conversation_history",
            format!("{} messages, must be at most {MAX_HISTORY}", context.conversation_history.len()),
        );
    }
    for (i, m) in context.conversation_history.iter().enumerate() {
        if !matches!(pb::Role::try_from(m.role), Ok(r) if r != pb::Role::Unspecified) {
            c.fail(format!("task.context.conversation_history[{i}].role"), "is not set to USER, ASSISTANT, SYSTEM or TOOL");
        }
    }
    if context.available_tools.len() > MAX_TOOLS {
        c.fail("task.context.available_tools", format!("{} tools, must be at most {MAX_TOOLS}", context.available_tools.len()));
    }
    for (i, tool) in context.available_tools.iter().enumerate() {
        let field = format!("task.context.available_tools[{i}]");
        if tool.name.is_empty() || tool.name.len() > 64 || !tool.name.chars().all(|ch| ch.is_ascii_alphanumeric() || ch == '_' || ch == '-')
        {
            c.fail(format!("{field}.name"), "must be 1 to 64 letters, digits, \"_\" or \"-\"");
        }
        c.known_enum::<pb::ToolKind>(&format!("{field}.kind"), tool.kind);
        c.known_enum::<pb::ToolReplay>(&format!("{field}.replay"), tool.replay);
        if let Some(schema) = &tool.parameters {
            c.schema(&format!("{field}.parameters"), schema);
        }
    }
    if !context.memory_namespace.is_empty() {
        c.0.extend(namespace_violation("task.context.memory_namespace", &context.memory_namespace));
    }
    c.depth("task.context.user_preferences", context.user_preferences.as_ref());
    c.depth("task.context.framework_specific_data", context.framework_specific_data.as_ref());
    if let Some(data) = &context.framework_specific_data {
        for key in ["project", "entrypoint", "module", "requirements"] {
            if data.fields.contains_key(key) {
                c.fail(format!("task.context.framework_specific_data.{key}"), "names code; code comes from the configuration file only");
            }
        }
    }
}

fn check_requirements(c: &mut Check, req: &pb::TaskRequirements) {
    if let Some(schema) = &req.output_schema {
        c.schema("task.requirements.output_schema", schema);
    }
    c.name("task.requirements.model", &req.model);
    if req.expected_output.len() > 64 * 1024 {
        c.fail("task.requirements.expected_output", "must be at most 65536 bytes");
    }
    if !(0.0..=1.0).contains(&req.min_quality) {
        c.fail("task.requirements.min_quality", format!("{}, must be 0 to 1", req.min_quality));
    }
    if let Some(cost) = req.max_cost_micros {
        c.range("task.requirements.max_cost_micros", cost, 0, 1_000_000_000_000);
    }
    if let Some(tokens) = req.max_tokens {
        c.range("task.requirements.max_tokens", tokens, 1, 1_000_000);
    }
    c.duration("task.requirements.max_duration", req.max_duration.as_ref());
    c.duration("task.requirements.max_attempt_duration", req.max_attempt_duration.as_ref());
    c.duration("task.requirements.max_queue_duration", req.max_queue_duration.as_ref());
    c.known_enum::<pb::OnBudgetEnd>("task.requirements.on_budget_end", req.on_budget_end);
    if let Some(w) = &req.weights {
        for (name, value) in [("quality", w.quality), ("cost", w.cost), ("latency", w.latency)] {
            if value != 0.0 && !(0.1..=10.0).contains(&value) {
                c.fail(format!("task.requirements.weights.{name}"), format!("{value}, must be 0.1 to 10, or 0 for the default of 1"));
            }
        }
    }
}

fn check_hints(c: &mut Check, hints: &pb::ExecutionHints, now_ms: i64) {
    let at = |name: &str| format!("task.execution_hints.{name}");
    c.known_enum::<pb::ExecutionMethod>(&at("method"), hints.method);
    c.known_enum::<pb::PlanningMode>(&at("planning"), hints.planning);
    let asked = hints.planning() == pb::PlanningMode::Model;
    for (name, n, most) in [
        ("max_plan_steps", hints.max_plan_steps, plan::propose::MOST_STEPS),
        ("max_plan_depth", hints.max_plan_depth, plan::propose::MOST_DEPTH),
    ] {
        c.range(&at(name), i64::from(n), 0, i64::from(most));
        if n > 0 && !asked {
            c.fail(at(name), "is of a plan that a model makes; say planning MODEL, or leave it out");
        }
    }
    c.known_enum::<pb::Durability>(&at("durability"), hints.durability);
    c.known_enum::<pb::CacheMode>(&at("cache"), hints.cache);
    c.known_enum::<pb::StreamPolicy>(&at("stream_policy"), hints.stream_policy);
    c.known_enum::<pb::CrewProcess>(&at("process"), hints.process);
    for (i, name) in hints.fallback_frameworks.iter().enumerate() {
        framework_name(c, &format!("task.execution_hints.fallback_frameworks[{i}]"), name);
    }
    if let Some(p) = hints.priority {
        c.range(&at("priority"), p, 0, 9);
    }
    if let Some(t) = hints.temperature
        && !(0.0..=2.0).contains(&t)
    {
        c.fail(at("temperature"), format!("{t}, must be 0 to 2"));
    }
    c.range(&at("max_steps"), hints.max_steps, 0, 1000);
    c.range(&at("max_parallel"), hints.max_parallel, 0, 64);
    c.duration(&at("heartbeat_timeout"), hints.heartbeat_timeout.as_ref());
    c.duration(&at("block_grace"), hints.block_grace.as_ref());
    if let Some(r) = &hints.retry {
        check_retry(c, &at("retry"), r);
    }
    if let Some(t) = &hints.not_before {
        let ms = timestamp_ms(t);
        if ms < now_ms - MAX_PAST_MS {
            c.fail(at("not_before"), "lies in the past; leave it out to start now");
        } else if ms > now_ms + MAX_NOT_BEFORE_MS {
            c.fail(at("not_before"), "lies more than a year ahead");
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(task: &pb::AgentTask) -> Vec<String> {
        validate_task(task, 1_000_000_000_000).into_iter().map(|v| v.field).collect()
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let task = pb::AgentTask {
            description: " ".into(),
            preferred_framework: "lanchain".into(),
            requirements: Some(pb::TaskRequirements {
                max_tokens: Some(-5),
                max_duration: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                output_schema: Some(json::to_struct(&serde_json::json!({"type": "strnig"}))),
                ..Default::default()
            }),
            execution_hints: Some(pb::ExecutionHints {
                priority: Some(12),
                not_before: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            fields(&task),
            [
                "task.description",
                "task.preferred_framework",
                "task.requirements.output_schema",
                "task.requirements.max_tokens",
                "task.requirements.max_duration",
                "task.execution_hints.priority",
                "task.execution_hints.not_before",
            ]
        );
    }

    #[test]
    fn a_reason_that_does_not_exist_is_no_reason_to_stop() {
        let retry = pb::RetryPolicy { non_retryable: vec!["WORKER_OOM".into(), "WORKER_OMM".into()], ..Default::default() };
        let hints = pb::ExecutionHints { retry: Some(retry), ..Default::default() };
        let task = pb::AgentTask { description: "x".into(), execution_hints: Some(hints), ..Default::default() };
        assert_eq!(fields(&task), ["task.execution_hints.retry.non_retryable[1]"]);
    }

    #[test]
    fn a_duration_that_no_timer_takes_is_refused() {
        let lasts = |seconds| {
            let requirements =
                pb::TaskRequirements { max_duration: Some(prost_types::Duration { seconds, nanos: 0 }), ..Default::default() };
            fields(&pb::AgentTask { description: "x".into(), requirements: Some(requirements), ..Default::default() })
        };
        assert!(lasts(10 * 365 * 24 * 3600).is_empty());
        for seconds in [315_576_000_000, i64::MAX] {
            assert_eq!(lasts(seconds), ["task.requirements.max_duration"]);
        }
    }

    #[test]
    fn a_plain_task_is_right_and_a_huge_one_is_not() {
        assert!(fields(&pb::AgentTask { description: "hello".into(), ..Default::default() }).is_empty());
        assert_eq!(
            fields(&pb::AgentTask { description: "x".repeat(MAX_DESCRIPTION_BYTES + 1), ..Default::default() }),
            ["task.description"]
        );
    }

    #[test]
    fn code_never_comes_from_a_client() {
        let data = json::to_struct(&serde_json::json!({"entrypoint": "os:system"}));
        let context = pb::TaskContext { framework_specific_data: Some(data), ..Default::default() };
        let task = pb::AgentTask { description: "x".into(), context: Some(context), ..Default::default() };
        assert_eq!(fields(&task), ["task.context.framework_specific_data.entrypoint"]);
    }
}
