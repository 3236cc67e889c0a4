//! Plans that a model makes, as steps of the task's own plan. Such a task begins with one step, which asks the model for a plan; the plan
//! grows by what follows from its answer, and the same machine runs it. So planning is kept, paid for and cancelled as any step is.
//!
//! ```text
//! plan -> the model's steps -> answer                  a good plan; "answer" puts the results together
//! plan -> repair -> the model's steps -> answer        the first had faults, and the model was told which
//! plan -> repair -> answer                             the second had faults too: the task runs as one step
//! ```
//!
//! What grows is a pure function of the answers that are kept: a later attempt, and whoever looks at the task, see the same plan.

use std::collections::{BTreeSet, HashMap};

use agent_proto::agents::v1 as pb;
use serde_json::{Map, Value, json};

use super::machine::Kept;
use super::{check, step};

/// Most steps of a plan that a model makes, unless the task says another number.
pub const MAX_STEPS: usize = 16;
/// Most of them in a row, each needing the one before, unless the task says another number.
pub const MAX_DEPTH: usize = 6;
/// What a task may say of the first.
pub const MOST_STEPS: i32 = 64;
/// What it may say of the second.
pub const MOST_DEPTH: i32 = 16;
/// Longest answer that is read as a plan, in bytes.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Faults that the model is told; the rest is counted.
const MAX_FAULTS: usize = 10;
/// Characters of a name or an answer that are shown in a fault.
const MAX_CLIP: usize = 80;

/// The step that asks for a plan.
pub const PLAN: &str = "plan";
/// The step that asks once more.
pub const REPAIR: &str = "repair";
/// The step that answers the task.
pub const ANSWER: &str = "answer";

/// What a model's plan may be.
#[derive(Clone, Debug)]
pub struct Limits<'t> {
    executors: Vec<&'t str>,
    steps: usize,
    depth: usize,
}

impl<'t> Limits<'t> {
    /// As the task wants it.
    pub fn of(task: &'t pb::AgentTask) -> Self {
        let said = |n: Option<i32>, default| n.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0).unwrap_or(default);
        let hints = task.execution_hints.as_ref();
        Self {
            executors: executors(task),
            steps: said(hints.map(|h| h.max_plan_steps), MAX_STEPS),
            depth: said(hints.map(|h| h.max_plan_depth), MAX_DEPTH),
        }
    }
}

/// Whether the task's plan is made by a model.
pub fn asked(task: &pb::AgentTask) -> bool {
    task.execution_hints.as_ref().is_some_and(|h| h.planning() == pb::PlanningMode::Model)
}

/// What the model may name as executors: the native agent, and the framework that the task prefers, unless its method is NATIVE.
pub fn executors(task: &pb::AgentTask) -> Vec<&str> {
    let native = task.execution_hints.as_ref().is_some_and(|h| h.method() == pb::ExecutionMethod::Native);
    let preferred = task.preferred_framework.as_str();
    let framework = (!native && !matches!(preferred, "" | "auto" | "native")).then_some(preferred);
    std::iter::once("native").chain(framework).collect()
}

/// The plan that such a task begins with: one step, which asks for the rest.
pub fn proposal(task: &pb::AgentTask) -> pb::ExecutionPlan {
    let rules = rules(task);
    let input = format!(
        "Make a plan for the task below. Cut it into subtasks that can be done apart, side by side where they do not need each other. \
         Do none of it yet. Whoever does a subtask sees the whole task and the results of the steps in its needs; the results are put \
         together by somebody else, so plan no step for that.\n{rules}\n\nThe task:\n${{task.input}}"
    );
    pb::ExecutionPlan { steps: vec![step(PLAN, "native", &[], &input)], ..Default::default() }
}

/// The steps that follow in a plan so far from the answer of its last step. None, unless that step is one that asks for a plan.
pub fn decompose_task(task: &pb::AgentTask, plan: &pb::ExecutionPlan, answer: &str) -> Vec<pb::PlanStep> {
    let asked_by = match plan.steps.as_slice() {
        _ if !asked(task) => return Vec::new(),
        [first] if first.id == PLAN => PLAN,
        [_, second] if second.id == REPAIR => REPAIR,
        _ => return Vec::new(),
    };
    match create_execution_plan(answer, &Limits::of(task)) {
        Ok(made) => with_answer(asked_by, assign_optimal_providers(task, made)),
        Err(faults) if asked_by == PLAN => vec![repair(task, &faults)],
        Err(_) => vec![step(ANSWER, "native", &[REPAIR], "")],
    }
}

/// A plan with all that follows from what is kept of it.
pub fn grown(task: &pb::AgentTask, mut plan: pb::ExecutionPlan, runs: &[(Kept, pb::PlanStepRun)]) -> pb::ExecutionPlan {
    while let Some(last) = plan.steps.last() {
        let kept = runs.iter().find(|(kind, run)| *kind == Kept::Done && !run.skipped && run.step_id == last.id);
        let more = kept.map(|(_, run)| decompose_task(task, &plan, &run.output)).unwrap_or_default();
        if more.is_empty() {
            break;
        }
        plan.steps.extend(more);
    }
    plan
}

/// How a plan of such a task came about.
pub fn origin(plan: &pb::ExecutionPlan) -> pb::PlanOrigin {
    let repaired = plan.steps.get(1).is_some_and(|s| s.id == REPAIR);
    match (plan.steps.len(), repaired) {
        (0 | 1, _) | (2, true) => pb::PlanOrigin::Planning,
        (3, true) => pb::PlanOrigin::Fallback,
        (_, true) => pb::PlanOrigin::Repaired,
        (_, false) => pb::PlanOrigin::Model,
    }
}

/// What was wrong with the plans that the model made.
pub fn faults(task: &pb::AgentTask, runs: &[(Kept, pb::PlanStepRun)]) -> Vec<String> {
    let plans = runs.iter().filter(|(kind, run)| *kind == Kept::Done && matches!(run.step_id.as_str(), PLAN | REPAIR));
    plans.filter_map(|(_, run)| create_execution_plan(&run.output, &Limits::of(task)).err()).flatten().collect()
}

/// What a watcher is told when these steps follow; a good plan needs no words.
pub(crate) fn remark(task: &pb::AgentTask, answer: &str, more: &[pb::PlanStep]) -> Option<String> {
    let why = || match create_execution_plan(answer, &Limits::of(task)) {
        Err(faults) => listed(&faults),
        Ok(_) => String::new(),
    };
    match more {
        [one] if one.id == REPAIR => Some(format!("the model's plan cannot be used, so it is asked once more:\n{}", why())),
        [one] if one.id == ANSWER => Some(format!("the model's second plan cannot be used, so the task runs as one step:\n{}", why())),
        _ => None,
    }
}

/// Reads an answer as a plan: its steps, or everything that is wrong with it.
pub fn create_execution_plan(answer: &str, limits: &Limits<'_>) -> Result<Vec<Subtask>, Vec<String>> {
    if answer.len() > MAX_ANSWER_BYTES {
        return Err(vec![format!("it has {} bytes, must be at most {MAX_ANSWER_BYTES}", answer.len())]);
    }
    let value: Value = serde_json::from_str(object(answer)).map_err(|e| vec![format!("it is not JSON: {e}")])?;
    let Value::Object(fields) = &value else { return Err(vec!["it is no JSON object".into()]) };
    let mut faults = Vec::new();
    unknown_fields(fields, &["steps"], "", &mut faults);
    let Some(Value::Array(items)) = fields.get("steps") else {
        faults.push("steps: must be a list".into());
        return Err(faults);
    };
    if !(1..=limits.steps).contains(&items.len()) {
        faults.push(format!("steps: {} of them, must be 1 to {}", items.len(), limits.steps));
        return Err(faults);
    }
    let made: Vec<Subtask> = items.iter().enumerate().map(|(i, item)| subtask(i, item, &limits.executors, &mut faults)).collect();
    let plan = pb::ExecutionPlan { steps: made.iter().map(|m| m.step.clone()).collect(), ..Default::default() };
    if faults.is_empty() {
        faults
            .extend(check::violations(&plan).into_iter().map(|(field, why)| format!("{}: {why}", field.trim_start_matches("task.plan."))));
    }
    if faults.is_empty() && depth(&plan.steps) > limits.depth {
        faults.push(format!("steps: {} in a row need each other, must be at most {}", depth(&plan.steps), limits.depth));
    }
    if faults.is_empty() { Ok(made) } else { Err(faults) }
}

/// How hard a subtask is, as the model that planned it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Any model can do it: the cheapest and fastest one shall.
    Low,
    /// As the task.
    Normal,
    /// The best model shall do it.
    High,
}

/// A subtask of a model's plan.
#[derive(Clone, Debug)]
pub struct Subtask {
    /// As a step.
    pub step: pb::PlanStep,
    /// How hard it is.
    pub effort: Effort,
}

/// The steps with what their model calls weigh: each goes to the provider that fits it, of those that the task allows.
///
/// Quality, price and time are weighed by the weights of `TaskRequirements` (10 at most, 0.1 at least; 1 is as configured).
pub fn assign_optimal_providers(task: &pb::AgentTask, made: Vec<Subtask>) -> Vec<pb::PlanStep> {
    let assigned = |Subtask { mut step, effort }| {
        let weights = match effort {
            Effort::Normal => return step,
            Effort::Low => pb::SelectionWeights { quality: 0.1, cost: 10.0, latency: 10.0 },
            Effort::High => pb::SelectionWeights { quality: 10.0, cost: 0.1, latency: 0.1 },
        };
        // A step's own requirements replace the task's: what it asks for beside the weights is what the task asks for.
        step.requirements = Some(pb::TaskRequirements {
            output_schema: None,
            expected_output: String::new(),
            weights: Some(weights),
            ..task.requirements.clone().unwrap_or_default()
        });
        step
    };
    made.into_iter().map(assigned).collect()
}

/// The text between the outermost braces: models like to wrap JSON in words and fences.
fn object(answer: &str) -> &str {
    match (answer.find('{'), answer.rfind('}')) {
        (Some(from), Some(to)) if from < to => &answer[from..=to],
        _ => answer.trim(),
    }
}

fn subtask(i: usize, item: &Value, executors: &[&str], faults: &mut Vec<String>) -> Subtask {
    let at = format!("steps[{i}].");
    let Value::Object(fields) = item else {
        faults.push(format!("steps[{i}]: is no object"));
        return Subtask { step: pb::PlanStep::default(), effort: Effort::Normal };
    };
    unknown_fields(fields, &["id", "task", "needs", "executor", "effort"], &at, faults);
    let mut text = |name: &str, default: Option<&str>| match (fields.get(name), default) {
        (Some(Value::String(text)), _) if !text.trim().is_empty() => text.clone(),
        (None, Some(default)) => default.to_owned(),
        _ => {
            faults.push(format!("{at}{name}: must be a text that is not empty"));
            String::new()
        }
    };
    let (id, task, executor) = (text("id", None), text("task", None), text("executor", Some("native")));
    let effort = match text("effort", Some("normal")).as_str() {
        "low" => Effort::Low,
        "high" => Effort::High,
        "normal" | "" => Effort::Normal,
        other => {
            faults.push(format!("{at}effort: \"{}\" is not one of low, normal, high", clip(other)));
            Effort::Normal
        }
    };
    if [PLAN, REPAIR, ANSWER].contains(&id.as_str()) {
        faults.push(format!("{at}id: \"{id}\" is a step of the engine, take another name"));
    }
    if !executor.is_empty() && !executors.contains(&executor.as_str()) {
        faults.push(format!("{at}executor: \"{}\" is not one of {}", clip(&executor), executors.join(", ")));
    }
    let mut needs = BTreeSet::new();
    match fields.get("needs") {
        None => {}
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => needs.extend(list.iter().filter_map(Value::as_str)),
        Some(_) => faults.push(format!("{at}needs: must be a list of ids")),
    }
    let needs: Vec<&str> = needs.into_iter().collect();
    let input = format!("{}\n\nIt is a part of this task:\n${{task.input}}{}", plain(&task), results(&needs));
    Subtask { step: step(&id, &executor, &needs, &input), effort }
}

fn unknown_fields(fields: &Map<String, Value>, known: &[&str], at: &str, faults: &mut Vec<String>) {
    let unknown = fields.keys().filter(|k| !known.contains(&k.as_str()));
    faults.extend(unknown.map(|k| format!("{at}{}: there is no such field, there are {}", clip(k), known.join(", "))));
}

/// The outputs of steps, as a part of an input.
fn results(of: &[&str]) -> String {
    of.iter().filter(|id| check::good_id(id)).map(|id| format!("\n\nResult of {id}:\n${{steps.{id}.output}}")).collect()
}

/// The model's steps behind the step that asked for them, and the one that puts their results together.
fn with_answer(asked_by: &str, mut made: Vec<pb::PlanStep>) -> Vec<pb::PlanStep> {
    made.iter_mut().filter(|s| s.needs.is_empty()).for_each(|s| s.needs.push(asked_by.to_owned()));
    let synthesis = synthesize_results(&made);
    made.push(synthesis);
    made
}

/// The last step: it answers the task from the results of all others.
pub fn synthesize_results(made: &[pb::PlanStep]) -> pb::PlanStep {
    let ids: Vec<&str> = made.iter().map(|s| s.id.as_str()).collect();
    let input = format!("Write the final answer to this task:\n\n${{task.input}}\n\nIts parts were done apart.{}", results(&ids));
    step(ANSWER, "native", &ids, &input)
}

fn repair(task: &pb::AgentTask, faults: &[String]) -> pb::PlanStep {
    let input = format!(
        "You were asked for a plan of the task below, and your plan cannot be used:\n{}\n\nYour plan was:\n${{steps.{PLAN}.output}}\n\n\
         Write it again without these faults. Do nothing of the task yet.\n{}\n\nThe task:\n${{task.input}}",
        plain(&listed(faults)),
        rules(task)
    );
    step(REPAIR, "native", &[PLAN], &input)
}

fn rules(task: &pb::AgentTask) -> String {
    let limits = Limits::of(task);
    plain(&format!(
        "Answer with JSON alone, which must satisfy this schema:\n{}\nAt most {} steps may need each other in a row. \
         An id has letters, digits, \"_\" and \"-\", and is none of \"{PLAN}\", \"{REPAIR}\", \"{ANSWER}\". \
         Say effort \"low\" of a subtask that any model can do, and \"high\" of one that needs the best.",
        schema(&limits),
        limits.depth
    ))
}

/// The JSON Schema of a plan, as the model is shown it.
pub fn schema(limits: &Limits<'_>) -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["steps"],
        "properties": {"steps": {"type": "array", "minItems": 1, "maxItems": limits.steps, "items": {
            "type": "object", "additionalProperties": false, "required": ["id", "task"],
            "properties": {
                "id": {"type": "string", "maxLength": check::MAX_STEP_ID_BYTES},
                "task": {"type": "string", "description": "what is to be done"},
                "needs": {"type": "array", "items": {"type": "string"}, "description": "ids of steps whose results it uses"},
                "executor": {"enum": limits.executors},
                "effort": {"enum": ["low", "normal", "high"]},
            },
        }}},
    })
}

fn listed(faults: &[String]) -> String {
    let shown: Vec<String> = faults.iter().take(MAX_FAULTS).map(|f| format!("- {f}")).collect();
    let more = faults.len().saturating_sub(MAX_FAULTS);
    shown.join("\n") + &if more > 0 { format!("\n- and {more} more") } else { String::new() }
}

/// Steps of the longest row; the plan has no circle.
fn depth(steps: &[pb::PlanStep]) -> usize {
    let mut depths: HashMap<&str, usize> = HashMap::new();
    while depths.len() < steps.len() {
        let before = depths.len();
        for step in steps {
            if let Some(deepest) = step.needs.iter().try_fold(0, |d, n| depths.get(n.as_str()).map(|&n| d.max(n))) {
                depths.insert(&step.id, deepest + 1);
            }
        }
        if depths.len() == before {
            break;
        }
    }
    depths.into_values().max().unwrap_or(0)
}

/// A text in which nothing is a reference.
fn plain(text: &str) -> String {
    text.replace("${", "$${")
}

fn clip(text: &str) -> &str {
    text.char_indices().nth(MAX_CLIP).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;
