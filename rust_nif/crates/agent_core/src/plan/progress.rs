//! A plan with what became of its steps, for whoever looks at its task.

use std::collections::{HashMap, HashSet};

use agent_proto::agents::v1 as pb;

use super::machine::Kept;
use super::propose;

/// Characters of an output in a view.
const MAX_CLIP: usize = 200;

/// Fills in the state and the runs of each step. RUNNING: everything that it needs has ended, and the task runs.
pub fn progress(spec: &pb::AgentTask, runs: Vec<(Kept, pb::PlanStepRun)>, task: pb::TaskState) -> pb::ExecutionPlan {
    let mut plan = spec.plan.clone().unwrap_or_default();
    if propose::asked(spec) {
        plan = propose::grown(spec, plan, &runs);
        plan.planning = Some(pb::Planning { origin: propose::origin(&plan) as i32, faults: propose::faults(spec, &runs) });
    }
    let mut by_step: HashMap<String, Vec<pb::PlanStepRun>> = HashMap::new();
    for (_, mut run) in runs {
        if let Some((end, _)) = run.output.char_indices().nth(MAX_CLIP) {
            run.output.truncate(end);
        }
        run.structured_output = None;
        by_step.entry(run.step_id.clone()).or_default().push(run);
    }
    // A step over a list has ended only when the task goes on from it: what needs it has begun, or the task has ended.
    let begun: HashSet<String> = plan.steps.iter().filter(|s| by_step.contains_key(&s.id)).flat_map(|s| s.needs.iter().cloned()).collect();
    let over = !matches!(task, pb::TaskState::Queued | pb::TaskState::Running | pb::TaskState::Waiting);
    let ended: HashSet<String> = plan
        .steps
        .iter()
        .filter(|s| by_step.contains_key(&s.id) && (s.for_each.is_empty() || begun.contains(&s.id) || over))
        .map(|s| s.id.clone())
        .collect();
    let undoes: HashSet<String> = plan.steps.iter().map(|s| s.compensation.clone()).collect();
    for step in &mut plan.steps {
        let mut own = by_step.remove(&step.id).unwrap_or_default();
        own.sort_by_key(|run| (run.index, run.order));
        let failed = own.iter().find(|run| run.error.is_some() && !run.skipped).map(pb::PlanStepRun::state);
        let ready = !undoes.contains(&step.id) && step.needs.iter().all(|need| ended.contains(need));
        let state = match failed {
            Some(state) => state,
            None if ended.contains(&step.id) => pb::TaskState::Succeeded,
            None if ready && task == pb::TaskState::Running => pb::TaskState::Running,
            None if over => pb::TaskState::Unspecified,
            None => pb::TaskState::Queued,
        };
        step.state = state as i32;
        step.runs = own;
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_runs_once_its_needs_have_ended() {
        let step = |id: &str, needs: &[&str]| pb::PlanStep {
            id: id.into(),
            needs: needs.iter().map(|n| (*n).into()).collect(),
            ..Default::default()
        };
        let plan = pb::ExecutionPlan { steps: vec![step("a", &[]), step("b", &["a"]), step("c", &["b"])], ..Default::default() };
        let spec = pb::AgentTask { plan: Some(plan), ..Default::default() };
        let run =
            pb::PlanStepRun { step_id: "a".into(), state: pb::TaskState::Succeeded as i32, output: "é".repeat(300), ..Default::default() };
        let seen = progress(&spec, vec![(Kept::Done, run)], pb::TaskState::Running);
        let states: Vec<pb::TaskState> = seen.steps.iter().map(pb::PlanStep::state).collect();
        assert_eq!(states, [pb::TaskState::Succeeded, pb::TaskState::Running, pb::TaskState::Queued]);
        assert_eq!(seen.steps[0].runs[0].output.chars().count(), MAX_CLIP);
    }
}
