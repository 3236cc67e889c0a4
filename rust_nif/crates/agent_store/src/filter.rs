//! The filter of `ListTasks`: conditions that must all hold, such as `state=FAILED agent!=researcher label.team=billing created>=2026-11-01T00:00:00Z`.

use std::cmp::Ordering;

use agent_core::header::timestamp_ms;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

/// A parsed filter.
#[derive(Debug, Default)]
pub struct Filter(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    field: Field,
    operator: Operator,
    value: Value,
}

#[derive(Debug)]
enum Field {
    State,
    Waiting,
    Reason,
    Agent,
    Framework,
    Type,
    Label(String),
    Created,
    Ended,
    Attempts,
    Cost,
    Environment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Debug)]
enum Value {
    Text(String),
    Number(i64),
}

/// Longer ones stand before their beginnings.
const OPERATORS: &[(&str, Operator)] = &[
    ("!=", Operator::Unequal),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::More),
];

const FIELDS: &str = "state, waiting_for, reason, agent, framework, type, label.NAME, created, ended, attempts, cost_micros, environment";

impl Operator {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Operator::Equal => order.is_eq(),
            Operator::Unequal => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::AtMost => order.is_le(),
            Operator::More => order.is_gt(),
            Operator::AtLeast => order.is_ge(),
        }
    }
}

impl Filter {
    /// Parses a filter; the error names the position. A value with spaces stands in double quotes.
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let mut conditions = Vec::new();
        for (position, word) in words(text) {
            if word.matches('"').count() % 2 == 1 {
                let why = format!("at position {position}: a quote is not closed");
                return Err(AgentError::new(Reason::FilterInvalid, why).with("position", position));
            }
            if word != "AND" {
                conditions.push(condition(&word).map_err(|why| {
                    AgentError::new(Reason::FilterInvalid, format!("at position {position}: {why}")).with("position", position)
                })?);
            }
        }
        Ok(Self(conditions))
    }

    /// Whether a task matches.
    pub fn matches(&self, task: &pb::Task) -> bool {
        self.0.iter().all(|c| c.matches(task))
    }
}

/// Words with their positions, from 1. Spaces inside of quotes and around an operator do not part a word.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    let (mut quoted, mut open) = (false, false);
    for (at, c) in text.char_indices() {
        quoted ^= c == '"';
        let joins = c != ' ' && !quoted && "=<>!".contains(c);
        if c == ' ' && !quoted {
            // What ends with an operator waits for its value.
            open &= all.last().is_some_and(|(_, w)| w.ends_with(['=', '<', '>']));
        } else if open || (joins && !all.is_empty()) {
            open = true;
            if let Some((_, word)) = all.last_mut() {
                word.push(c);
            }
        } else {
            open = true;
            all.push((at + 1, c.to_string()));
        }
    }
    all
}

fn condition(word: &str) -> Result<Condition, String> {
    let at = word.find(['=', '<', '>', '!']).ok_or_else(|| format!("expected FIELD OPERATOR VALUE, fields are {FIELDS}"))?;
    let (name, rest) = word.split_at(at);
    let (sign, operator) =
        OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(|| "the operators are = != < <= > >=".to_owned())?;
    let text = rest[sign.len()..].trim_matches('"');
    let field = field_of(name).ok_or_else(|| format!("unknown field \"{name}\"; there are {FIELDS}"))?;
    let value = match &field {
        Field::State if pb::TaskState::from_str_name(&format!("TASK_STATE_{text}")).is_none() => {
            return Err("state must be QUEUED, RUNNING, WAITING, SUCCEEDED, FAILED, CANCELLED or TIMED_OUT".to_owned());
        }
        Field::Waiting if pb::WaitingFor::from_str_name(&format!("WAITING_FOR_{text}")).is_none() => {
            return Err("waiting_for must be RETRY, APPROVAL, INPUT, CLIENT_TOOL, TIMER, MESSAGE, CHILD or BUDGET".to_owned());
        }
        Field::Created | Field::Ended => {
            let time: prost_types::Timestamp = text.parse().map_err(|_| format!("{name}: write a time as 2026-11-24T08:00:00Z"))?;
            Value::Number(timestamp_ms(&time))
        }
        Field::Attempts | Field::Cost => Value::Number(text.parse().map_err(|_| format!("{name}: must be a whole number"))?),
        _ => Value::Text(text.to_owned()),
    };
    if matches!(value, Value::Text(_)) && !matches!(operator, Operator::Equal | Operator::Unequal) {
        return Err(format!("{name}: only = and != make sense here"));
    }
    Ok(Condition { field, operator: *operator, value })
}

fn field_of(name: &str) -> Option<Field> {
    Some(match name {
        "state" => Field::State,
        "waiting_for" => Field::Waiting,
        "reason" => Field::Reason,
        "agent" => Field::Agent,
        "framework" | "executor" => Field::Framework,
        "type" => Field::Type,
        "created" => Field::Created,
        "ended" => Field::Ended,
        "attempts" => Field::Attempts,
        "cost_micros" => Field::Cost,
        "environment" => Field::Environment,
        _ => Field::Label(name.strip_prefix("label.").filter(|n| !n.is_empty())?.to_owned()),
    })
}

impl Condition {
    fn matches(&self, task: &pb::Task) -> bool {
        match &self.value {
            Value::Text(wanted) => self.is(task, wanted) == (self.operator == Operator::Equal),
            // What a task does not have (an end, a known cost) no condition holds for.
            Value::Number(wanted) => self.number(task).is_some_and(|n| self.operator.holds(n.cmp(wanted))),
        }
    }

    fn is(&self, task: &pb::Task, wanted: &str) -> bool {
        let none = pb::AgentTask::default();
        let spec = task.spec.as_ref().unwrap_or(&none);
        match &self.field {
            Field::State => task.state().as_str_name().strip_prefix("TASK_STATE_") == Some(wanted),
            Field::Waiting => task.waiting_for().as_str_name().strip_prefix("WAITING_FOR_") == Some(wanted),
            Field::Reason => task.error.as_ref().is_some_and(|e| e.reason == wanted),
            Field::Agent => spec.agent_id == wanted || spec.agent_type == wanted,
            Field::Framework => task.route.as_ref().is_some_and(|r| r.executor == wanted) || spec.preferred_framework == wanted,
            Field::Type => spec.task_type == wanted,
            Field::Environment => task.environment_lock_hashes.iter().any(|hash| hash == wanted),
            Field::Label(name) => spec.labels.get(name).is_some_and(|l| l == wanted),
            Field::Created | Field::Ended | Field::Attempts | Field::Cost => false,
        }
    }

    fn number(&self, task: &pb::Task) -> Option<i64> {
        match &self.field {
            Field::Created => task.create_time.as_ref().map(timestamp_ms),
            Field::Ended => task.end_time.as_ref().map(timestamp_ms),
            Field::Attempts => Some(i64::from(task.attempts)),
            Field::Cost => task.result.as_ref()?.metrics.as_ref()?.cost_micros,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> pb::Task {
        let labels = [("team".to_owned(), "north sea".to_owned())].into();
        pb::Task {
            state: pb::TaskState::Failed as i32,
            attempts: 3,
            spec: Some(pb::AgentTask { agent_id: "crew".into(), labels, ..Default::default() }),
            error: Some(pb::TaskError { reason: "PROVIDER_AUTH".into(), ..Default::default() }),
            create_time: Some("2026-11-24T08:00:00Z".parse().unwrap()),
            environment_lock_hashes: vec!["aa11".into(), "bb22".into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_quote_that_is_not_closed_is_named() {
        let error = Filter::parse("attempts>=3 agent=\"crew state=FAILED").unwrap_err();
        assert_eq!((error.reason, error.metadata["position"].as_str()), (Reason::FilterInvalid, "13"));
    }

    #[test]
    fn all_conditions_must_hold() {
        for (text, holds) in [
            ("", true),
            ("state=FAILED agent=crew", true),
            ("state = FAILED AND agent = other", false),
            ("agent!=other reason=PROVIDER_AUTH", true),
            ("label.team=\"north sea\"", true),
            ("label.team != \"north sea\"", false),
            ("label.town=x", false),
            ("attempts>=3 attempts<4", true),
            ("attempts > 3", false),
            ("created>=2026-11-24T08:00:00Z created<2026-11-25T00:00:00Z", true),
            ("created < 2026-11-24T07:59:59Z", false),
            ("ended>2000-01-01T00:00:00Z", false),
            ("cost_micros>=0", false),
            ("environment=bb22", true),
            ("environment=cc33", false),
            ("environment!=aa11", false),
        ] {
            assert_eq!(Filter::parse(text).unwrap().matches(&task()), holds, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_names_its_place_and_the_remedy() {
        for (text, position, says) in [
            ("state=FAILED nonsense", "14", "FIELD OPERATOR VALUE"),
            ("color=red", "1", "unknown field \"color\""),
            ("state=DONE", "1", "SUCCEEDED"),
            ("agent>x", "1", "only = and !="),
            ("created>=yesterday", "1", "2026-11-24T08:00:00Z"),
            ("attempts=many", "1", "whole number"),
            ("waiting_for=GODOT", "1", "APPROVAL"),
        ] {
            let error = Filter::parse(text).unwrap_err();
            assert_eq!(error.metadata["position"], position, "{text}: {error}");
            assert!(error.message.contains(says), "{text}: {error}");
        }
    }
}
