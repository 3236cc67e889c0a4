//! The filter of `ListTasks`: `state=FAILED agent=researcher framework=langchain label.team=billing`, all of them.

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

/// A parsed filter.
#[derive(Debug, Default)]
pub struct Filter(Vec<(Field, String)>);

#[derive(Debug)]
enum Field {
    State,
    Agent,
    Framework,
    Type,
    Label(String),
}

impl Filter {
    /// Parses a filter; the error names the position.
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let mut terms = Vec::new();
        let mut at = 0;
        let normal = text.replace(" = ", "=").replace(" AND ", " ");
        for word in normal.split(' ') {
            let position = at + 1;
            at += word.len() + 1;
            if word.is_empty() {
                continue;
            }
            let fail =
                |why: &str| AgentError::new(Reason::FilterInvalid, format!("at position {position}: {why}")).with("position", position);
            let (key, value) = word.split_once('=').ok_or_else(|| fail("expected FIELD=VALUE"))?;
            let field = match key {
                "state" => {
                    if pb::TaskState::from_str_name(&format!("TASK_STATE_{value}")).is_none() {
                        return Err(fail("state must be QUEUED, RUNNING, WAITING, SUCCEEDED, FAILED, CANCELLED or TIMED_OUT"));
                    }
                    Field::State
                }
                "agent" => Field::Agent,
                "framework" | "executor" => Field::Framework,
                "type" => Field::Type,
                _ => match key.strip_prefix("label.") {
                    Some(name) if !name.is_empty() => Field::Label(name.to_owned()),
                    _ => return Err(fail("unknown field; there are state, agent, framework, type, label.NAME")),
                },
            };
            terms.push((field, value.trim_matches('"').to_owned()));
        }
        Ok(Self(terms))
    }

    /// Whether a task matches.
    pub fn matches(&self, task: &pb::Task) -> bool {
        let none = pb::AgentTask::default();
        let spec = task.spec.as_ref().unwrap_or(&none);
        self.0.iter().all(|(field, value)| match field {
            Field::State => task.state().as_str_name().strip_prefix("TASK_STATE_") == Some(value),
            Field::Agent => &spec.agent_id == value || &spec.agent_type == value,
            Field::Framework => task.route.as_ref().is_some_and(|r| &r.executor == value) || &spec.preferred_framework == value,
            Field::Type => &spec.task_type == value,
            Field::Label(name) => spec.labels.get(name) == Some(value),
        })
    }
}
