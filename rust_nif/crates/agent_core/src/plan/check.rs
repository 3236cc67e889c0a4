//! Checks of a plan as a whole: every fault is named in one answer, before anything runs.

use std::collections::{HashMap, HashSet, VecDeque};

use agent_proto::agents::v1 as pb;
use serde_json::Value;

use super::condition;
use super::template::{self, Reference, references};
use crate::json;

/// Most steps of a plan.
pub const MAX_STEPS: usize = 10_000;
/// Longest id of a step, in bytes.
pub const MAX_STEP_ID_BYTES: usize = 64;
/// Most steps of a cycle that are named; the rest is counted.
const MAX_NAMED: usize = 10;

/// Faults of a plan as (field, description); fields begin with `task.plan`. Executors' names are checked by the caller's rule.
pub fn violations(plan: &pb::ExecutionPlan) -> Vec<(String, String)> {
    let count = plan.steps.len();
    if !(1..=MAX_STEPS).contains(&count) {
        return vec![("task.plan.steps".into(), format!("{count} steps, must be 1 to {MAX_STEPS}"))];
    }
    let mut out = Vec::new();
    let mut index = HashMap::with_capacity(count);
    for (i, step) in plan.steps.iter().enumerate() {
        if !good_id(&step.id) {
            out.push((at(i, "id"), format!("must be 1 to {MAX_STEP_ID_BYTES} letters, digits, \"_\" or \"-\"")));
        } else if let Some(first) = index.get(step.id.as_str()) {
            out.push((at(i, "id"), format!("\"{}\" is taken by steps[{first}]", step.id)));
        } else {
            index.insert(step.id.as_str(), i);
        }
    }
    // What undoes a step runs after it, so it sees that step's output without a need.
    let mut undoes: HashMap<&str, Vec<&str>> = HashMap::new();
    for step in plan.steps.iter().filter(|s| !s.compensation.is_empty()) {
        undoes.entry(&step.compensation).or_default().push(&step.id);
    }
    for (i, step) in plan.steps.iter().enumerate() {
        check_step(plan, i, step, &index, &undoes, &mut out);
    }
    for reference in references(&plan.output) {
        match reference {
            Reference::Step(id, _) if undoes.contains_key(id) => out.push((output(), format!("step \"{id}\" only runs to undo another"))),
            Reference::Step(id, _) if !index.contains_key(id) => out.push((output(), unknown(id))),
            Reference::Step(id, path) => out.extend(impossible(plan, index[id], path).map(|why| (output(), why))),
            Reference::Item(_) | Reference::Index => {
                out.push((output(), "there is no item here: only a step with for_each has one".into()))
            }
            Reference::Bad(text) => out.push((output(), malformed(text))),
            Reference::Task => {}
        }
    }
    out.extend(cycle(plan, &index));
    out
}

fn check_step(
    plan: &pb::ExecutionPlan,
    i: usize,
    step: &pb::PlanStep,
    index: &HashMap<&str, usize>,
    undoes: &HashMap<&str, Vec<&str>>,
    out: &mut Vec<(String, String)>,
) {
    if step.executor.is_empty() {
        out.push((at(i, "executor"), "is missing: native, a framework or workflow".into()));
    }
    let needs: HashSet<&str> = step.needs.iter().map(String::as_str).collect();
    for (n, need) in step.needs.iter().enumerate() {
        let field = at(i, &format!("needs[{n}]"));
        if !index.contains_key(need.as_str()) {
            out.push((field, unknown(need)));
        } else if undoes.contains_key(need.as_str()) {
            out.push((field, format!("step \"{}\" only runs to undo another", clip(need))));
        }
    }
    let undone = undoes.get(step.id.as_str());
    for (name, text) in [("input", &step.input), ("condition", &step.condition), ("for_each", &step.for_each)] {
        for reference in references(text) {
            match reference {
                Reference::Step(id, _) if !index.contains_key(id) => out.push((at(i, name), unknown(id))),
                Reference::Step(id, _) if !needs.contains(id) && !undone.is_some_and(|u| u.contains(&id)) => {
                    out.push((at(i, name), format!("uses the output of \"{id}\"; add it to needs")));
                }
                Reference::Step(id, path) => out.extend(impossible(plan, index[id], path).map(|why| (at(i, name), why))),
                Reference::Item(_) | Reference::Index if step.for_each.is_empty() || name != "input" => {
                    out.push((at(i, name), "there is no item here: only the input of a step with for_each has one".into()));
                }
                Reference::Bad(text) => out.push((at(i, name), malformed(text))),
                Reference::Task | Reference::Item(_) | Reference::Index => {}
            }
        }
    }
    if !step.condition.is_empty()
        && let Err(why) = condition::parse(&step.condition)
    {
        out.push((at(i, "condition"), why));
    }
    if !step.for_each.is_empty() {
        match template::whole(&step.for_each) {
            Some(Reference::Step(id, path)) if index.get(id).is_some_and(|&n| schema_at(&plan.steps[n], path).is_some_and(no_list)) => {
                out.push((at(i, "for_each"), format!("the schema of step \"{id}\" gives no list there")));
            }
            None if serde_json::from_str::<Vec<Value>>(&step.for_each).is_err() && !step.for_each.contains("${") => {
                out.push((at(i, "for_each"), "must be a reference to a list, or a JSON list".into()));
            }
            _ => {}
        }
    }
    let undo = step.compensation.as_str();
    if !undo.is_empty() {
        if !index.contains_key(undo) {
            out.push((at(i, "compensation"), unknown(undo)));
        } else if undo == step.id || undone.is_some() {
            out.push((at(i, "compensation"), "a step that undoes another has none of its own".into()));
        }
    }
    let plain = step.for_each.is_empty() && step.condition.is_empty() && step.needs.is_empty();
    if undone.is_some() && !plain {
        out.push((at(i, "id"), "undoes another step, so it has no needs, condition or for_each of its own".into()));
    }
    if step.max_parallel < 0 {
        out.push((at(i, "max_parallel"), format!("{}, must be 0 (the task's) or more", step.max_parallel)));
    }
}

/// The schema that a step's output must satisfy at a path, as far as it says.
fn schema_at(step: &pb::PlanStep, path: &str) -> Option<Value> {
    let schema = step.requirements.as_ref()?.output_schema.as_ref().filter(|_| step.for_each.is_empty())?;
    path.split('.').filter(|p| !p.is_empty()).try_fold(json::from_struct(schema), |s, part| match part.parse::<usize>() {
        Ok(_) => s.get("items").cloned(),
        Err(_) => s.get("properties").and_then(|p| p.get(part)).cloned(),
    })
}

fn no_list(schema: Value) -> bool {
    schema.get("type").is_some_and(|t| t != "array")
}

/// Why there can be nothing at a path below a step's output: its schema lists its fields, and this is none of them.
fn impossible(plan: &pb::ExecutionPlan, step: usize, path: &str) -> Option<String> {
    let (first, _) = path.split_once('.').unwrap_or((path, ""));
    let step = &plan.steps[step];
    let schema = json::from_struct(step.requirements.as_ref()?.output_schema.as_ref()?);
    let fields = schema.get("properties")?.as_object()?;
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    let known = first.is_empty() || !closed || fields.contains_key(first) || !step.for_each.is_empty();
    (!known).then(|| format!("the schema of step \"{}\" has no field \"{}\"", step.id, clip(first)))
}

/// Steps that wait for each other. What merely needs them is taken off, so only the knot is named.
fn cycle(plan: &pb::ExecutionPlan, index: &HashMap<&str, usize>) -> Option<(String, String)> {
    let count = plan.steps.len();
    let (mut before, mut after) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for (i, step) in plan.steps.iter().enumerate() {
        for &need in step.needs.iter().filter_map(|n| index.get(n.as_str())) {
            before[i].push(need);
            after[need].push(i);
        }
    }
    let mut left = vec![true; count];
    peel(&before, &after, &mut left);
    peel(&after, &before, &mut left);
    let knot: Vec<&str> = plan.steps.iter().zip(&left).filter(|(_, l)| **l).map(|(s, _)| clip(&s.id)).collect();
    let more = knot.len().saturating_sub(MAX_NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = knot.get(..MAX_NAMED).unwrap_or(&knot).join(", ");
    (!knot.is_empty()).then(|| ("task.plan.steps".into(), format!("these steps need each other in a circle: {named}{rest}")))
}

/// Takes off, again and again, what has nothing left on the side `on`.
fn peel(on: &[Vec<usize>], off: &[Vec<usize>], left: &mut [bool]) {
    let mut open: Vec<usize> = on.iter().map(|side| side.iter().filter(|&&n| left[n]).count()).collect();
    let mut free: VecDeque<usize> = (0..on.len()).filter(|&i| left[i] && open[i] == 0).collect();
    while let Some(i) = free.pop_front() {
        left[i] = false;
        for &next in &off[i] {
            open[next] = open[next].saturating_sub(1);
            if left[next] && open[next] == 0 {
                free.push_back(next);
            }
        }
    }
}

/// Whether a step may be called so.
pub(super) fn good_id(id: &str) -> bool {
    (1..=MAX_STEP_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn at(i: usize, field: &str) -> String {
    format!("task.plan.steps[{i}].{field}")
}

fn output() -> String {
    "task.plan.output".into()
}

fn unknown(id: &str) -> String {
    format!("no step is called \"{}\"", clip(id))
}

fn malformed(text: &str) -> String {
    format!("\"${{{}\" is no reference; write ${{task.input}} or ${{steps.ID.output}}", clip(text))
}

fn clip(text: &str) -> &str {
    text.char_indices().nth(MAX_STEP_ID_BYTES).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str, needs: &[&str], input: &str) -> pb::PlanStep {
        crate::plan::step(id, "native", needs, input)
    }

    fn faults(steps: Vec<pb::PlanStep>) -> Vec<(String, String)> {
        violations(&pb::ExecutionPlan { steps, ..Default::default() })
    }

    #[test]
    fn a_good_plan_has_no_faults() {
        let mut b = step("b", &["a"], "${steps.a.output.text} of ${task.input}");
        b.compensation = "undo".into();
        assert_eq!(faults(vec![step("a", &[], ""), b, step("undo", &[], "${steps.b.output}")]), vec![]);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let steps = vec![step("a", &["x"], "${steps.b.output}"), step("a", &[], "${oops"), step("b c", &[], "")];
        let fields: Vec<String> = faults(steps).into_iter().map(|f| f.0).collect();
        let want = ["[1].id", "[2].id", "[0].needs[0]", "[0].input", "[1].input"].map(|f| format!("task.plan.steps{f}"));
        assert_eq!(fields, want);
    }

    #[test]
    fn only_the_circle_is_named() {
        let steps = vec![step("first", &[], ""), step("a", &["b", "first"], ""), step("b", &["a"], ""), step("last", &["b"], "")];
        assert!(faults(steps)[0].1.ends_with("in a circle: a, b"));
        assert!(faults(vec![step("me", &["me"], "")])[0].1.ends_with("in a circle: me"));
    }

    #[test]
    fn ten_thousand_steps_in_a_row_pass_and_one_more_does_not() {
        let row = |n: usize| (0..n).map(|i| step(&format!("s{i}"), &[], "")).collect::<Vec<_>>();
        let mut chain = row(MAX_STEPS);
        for (i, step) in chain.iter_mut().enumerate().skip(1) {
            step.needs = vec![format!("s{}", i - 1)];
        }
        assert_eq!(faults(chain), vec![]);
        assert_eq!(faults(row(MAX_STEPS + 1))[0].1, "10001 steps, must be 1 to 10000");
        assert_eq!(faults(vec![])[0].0, "task.plan.steps");
    }
}
