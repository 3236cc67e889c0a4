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

#[cfg(test)]
mod tests {
    #[test]
    fn it_has_no_faults() {
        assert_eq!(super::super::violations(&super::hybrid("crewai")), vec![]);
    }
}
