//! Subtasks that the code of a running task gives to others: a plan of its own inside the task, so that they are kept, paid for, cancelled
//! and looked at as the steps of any plan.

use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::validate::plan_faults;
use crate::{AgentError, Reason};

/// Most subtasks of one request.
pub const MAX_SUBTASKS: usize = 64;
/// Bytes of the request's hash in the names of its steps.
const NAME_BYTES: usize = 8;

/// The task whose plan the subtasks are. Its steps have names that no other request of the task has, and the same ones in each attempt;
/// `place` says which step asks, empty for the task itself.
pub fn plan_of(task: &pb::AgentTask, request: &w::DelegateRequest, place: &[u8]) -> Result<pb::AgentTask, AgentError> {
    let count = request.subtasks.len();
    if !(1..=MAX_SUBTASKS).contains(&count) {
        return Err(AgentError::field("subtasks", format!("{count} of them, must be 1 to {MAX_SUBTASKS}")));
    }
    let asked = w::DelegateRequest { occurrence: 0, ..request.clone() };
    let name = hex(&Sha256::new().chain_update(place).chain_update([0]).chain_update(asked.encode_to_vec()).finalize()[..NAME_BYTES]);
    let steps: Vec<pb::PlanStep> = (0..)
        .zip(&request.subtasks)
        .map(|(i, subtask): (usize, _)| pb::PlanStep {
            id: format!("sub-{name}-{}-{i}", request.occurrence),
            executor: if subtask.executor.is_empty() { "native".into() } else { subtask.executor.clone() },
            agent_id: subtask.agent_id.clone(),
            // Nothing in it is a reference.
            input: subtask.description.replace("${", "$${"),
            requirements: Some(subtask.requirements.clone().unwrap_or_default()),
            timeout: subtask.timeout,
            on_failure: pb::OnStepFailure::Skip as i32,
            ..Default::default()
        })
        .collect();
    if let Some(i) = request.subtasks.iter().position(|s| s.description.trim().is_empty()) {
        return Err(AgentError::field(&format!("subtasks[{i}].description"), "must not be empty"));
    }
    // None of their texts is the text of the task.
    let output = format!("${{steps.{}.output}}", steps[0].id);
    let plan = pb::ExecutionPlan { steps, output, ..Default::default() };
    let own = |f: pb::FieldViolation| pb::FieldViolation { field: f.field.replace("task.plan.steps", "subtasks"), ..f };
    if let Some(wrong) = AgentError::invalid(plan_faults(&plan).into_iter().map(own).collect()) {
        return Err(wrong);
    }
    let hints = task.execution_hints.clone().unwrap_or_default();
    Ok(pb::AgentTask {
        description: task.description.clone(),
        plan: Some(plan),
        execution_hints: Some(pb::ExecutionHints { durability: hints.durability, cache: request.cache, ..Default::default() }),
        labels: task.labels.clone(),
        ..Default::default()
    })
}

/// What a worker is told of an end.
pub fn end_of(end: Result<pb::AgentResult, pb::TaskError>) -> w::SubtaskEnd {
    match end {
        Ok(result) => w::SubtaskEnd { result: Some(result), error: None },
        Err(error) => {
            let reason = Reason::parse(&error.reason).unwrap_or(Reason::Internal);
            let error = w::Error {
                reason: error.reason,
                message: error.message,
                metadata: error.metadata,
                code: reason.code(),
                retryable: reason.retryable(),
                traceback: String::new(),
            };
            w::SubtaskEnd { result: None, error: Some(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subtask(description: &str) -> w::Subtask {
        w::Subtask { description: description.into(), ..Default::default() }
    }

    fn request(descriptions: &[&str]) -> w::DelegateRequest {
        w::DelegateRequest { subtasks: descriptions.iter().map(|d| subtask(d)).collect(), ..Default::default() }
    }

    fn ids(task: &pb::AgentTask) -> Vec<String> {
        task.plan.iter().flat_map(|p| &p.steps).map(|s| s.id.clone()).collect()
    }

    #[test]
    fn equal_requests_differ_by_their_number_alone() {
        let parent = pb::AgentTask { description: "all".into(), agent_id: "parent".into(), ..Default::default() };
        let first = plan_of(&parent, &request(&["a", "${task.input}"]), b"").unwrap();
        let same = plan_of(&parent, &request(&["a", "${task.input}"]), b"").unwrap();
        let second = plan_of(&parent, &w::DelegateRequest { occurrence: 1, ..request(&["a", "${task.input}"]) }, b"").unwrap();
        let deeper = plan_of(&parent, &request(&["a", "${task.input}"]), ids(&first)[0].as_bytes()).unwrap();
        assert!(ids(&deeper).iter().all(|id| !ids(&first).contains(id)), "an equal request of a subtask is another one");
        assert_eq!(ids(&first), ids(&same));
        assert!(ids(&first).iter().all(|id| !ids(&second).contains(id)));
        assert_eq!(first.plan.unwrap().steps[1].input, "$${task.input}");
        assert!(first.agent_id.is_empty(), "the parent's agent is not the subtask's");
    }

    #[test]
    fn what_cannot_be_run_names_its_field() {
        let parent = pb::AgentTask::default();
        for (asked, field) in [
            (request(&[]), "subtasks"),
            (request(&["a"; MAX_SUBTASKS + 1]), "subtasks"),
            (request(&["a", " "]), "subtasks[1].description"),
            (
                w::DelegateRequest { subtasks: vec![w::Subtask { executor: "no such".into(), ..subtask("a") }], ..Default::default() },
                "subtasks[0].executor",
            ),
        ] {
            assert_eq!(plan_of(&parent, &asked, b"").unwrap_err().fields[0].field, field);
        }
    }
}
