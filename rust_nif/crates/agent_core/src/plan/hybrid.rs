//! The plan of a task that asks for `HYBRID` and brings none: the native agent prepares, a framework drafts, the native agent answers.

use agent_proto::agents::v1 as pb;

use super::step;

/// That plan, with this framework in its middle.
pub fn hybrid(framework: &str) -> pb::ExecutionPlan {
    let prepare =
        "Collect what is needed to do the following task well: facts, constraints and an outline. Do not do it yet.\n\n${task.input}";
    let draft = "${task.input}\n\nNotes to work from:\n${steps.prepare.output}";
    let answer =
        "Write the final answer to this task:\n\n${task.input}\n\nNotes:\n${steps.prepare.output}\n\nDraft:\n${steps.draft.output}";
    pb::ExecutionPlan {
        steps: vec![
            step("prepare", "native", &[], prepare),
            step("draft", framework, &["prepare"], draft),
            step("answer", "native", &["prepare", "draft"], answer),
        ],
        ..Default::default()
    }
}

/// One part of a task that is done by several in turn.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Name of its step.
    pub id: String,
    /// Who does it.
    pub executor: String,
    /// Agent; empty: the task's.
    pub agent_id: String,
    /// What.
    pub task: String,
    /// Model; empty: the agent's.
    pub model: String,
}

/// Parts in a row, each told what the one before has given.
pub fn chain(parts: &[Part]) -> pb::ExecutionPlan {
    let mut steps: Vec<pb::PlanStep> = Vec::with_capacity(parts.len());
    for part in parts {
        let before: Vec<&str> = steps.last().map(|s| s.id.as_str()).into_iter().collect();
        let told = before.iter().map(|id| format!("\n\nFor your work, the result of the step before:\n${{steps.{id}.output}}"));
        let input = part.task.replace("${", "$${") + &told.collect::<String>();
        let mut made = step(&part.id, &part.executor, &before, &input);
        made.agent_id.clone_from(&part.agent_id);
        if !part.model.is_empty() {
            made.requirements = Some(pb::TaskRequirements { model: part.model.clone(), ..Default::default() });
        }
        steps.push(made);
    }
    pb::ExecutionPlan { steps, ..Default::default() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_part_is_told_what_the_one_before_gave() {
        let part = |id: &str, executor: &str| super::Part {
            id: id.into(),
            executor: executor.into(),
            task: format!("do ${{{id}}}"),
            ..Default::default()
        };
        let plan = super::chain(&[part("native", "native"), part("framework", "crewai")]);
        assert_eq!(super::super::violations(&plan), vec![]);
        assert_eq!(plan.steps[0].input, "do $${native}");
        assert_eq!(plan.steps[1].needs, ["native"]);
        assert!(plan.steps[1].input.ends_with("step before:\n${steps.native.output}"));
    }

    #[test]
    fn it_has_no_faults() {
        assert_eq!(super::super::violations(&super::hybrid("crewai")), vec![]);
    }
}
