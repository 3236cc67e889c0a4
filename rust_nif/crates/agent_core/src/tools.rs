//! The engine's own tools: `now` and `calculate`.
//!
//! Pure but for the clock, which the caller hands in.

use std::sync::LazyLock;

use agent_proto::agents::v1 as pb;
use serde_json::{Value, json};

use crate::{calculate::calculate, json as struct_json};

/// Names of the engine's tools.
pub const NAMES: &[&str] = &["now", "calculate"];

/// What a call of an engine tool gave.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Text for the model.
    Ok(String),
    /// What was wrong, for the model to correct.
    Error(String),
    /// The engine has no such tool.
    Unknown,
}

/// A tool with its schema, compiled once.
struct Tool {
    definition: pb::ToolDefinition,
    schema: Option<jsonschema::Validator>,
}

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| NAMES.iter().filter_map(|name| made(name)).collect());

fn made(name: &str) -> Option<Tool> {
    let (description, parameters) = match name {
        "now" => (
            "The current date and time as ISO 8601.",
            json!({"type": "object", "properties": {"utc_offset_hours": {"type": "number", "description": "offset from UTC, default 0"}}, "additionalProperties": false}),
        ),
        "calculate" => (
            "Evaluates an arithmetic expression, for example 17 * 23.",
            json!({"type": "object", "properties": {"expression": {"type": "string", "description": "the expression"}}, "required": ["expression"], "additionalProperties": false}),
        ),
        _ => return None,
    };
    let definition = pb::ToolDefinition {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: Some(struct_json::to_struct(&parameters)),
        kind: pb::ToolKind::Engine as i32,
        replay: pb::ToolReplay::Safe as i32,
    };
    Some(Tool { definition, schema: jsonschema::validator_for(&parameters).ok() })
}

fn find(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|t| t.definition.name == name)
}

/// Definition of an engine tool; None if there is none of that name.
pub fn definition(name: &str) -> Option<pb::ToolDefinition> {
    find(name).map(|t| t.definition.clone())
}

/// Runs an engine tool; `now_ms` is milliseconds since the epoch.
pub fn call(name: &str, arguments: &str, now_ms: i64) -> Outcome {
    let Some(tool) = find(name) else { return Outcome::Unknown };
    let arguments = match tool.check(arguments) {
        Ok(arguments) => arguments,
        Err(message) => return Outcome::Error(message),
    };
    match name {
        "now" => {
            let hours = arguments.get("utc_offset_hours").and_then(Value::as_f64).unwrap_or(0.0);
            if !(-14.0..=14.0).contains(&hours) {
                return Outcome::Error("utc_offset_hours must be -14 to 14".into());
            }
            Outcome::Ok(iso8601(now_ms, hours))
        }
        _ => match calculate(arguments.get("expression").and_then(Value::as_str).unwrap_or_default()) {
            Ok(result) => Outcome::Ok(result),
            Err(message) => Outcome::Error(format!("calculate: {message}")),
        },
    }
}

impl Tool {
    /// Parses a model's arguments and checks them against the schema; the error is a sentence for the model.
    fn check(&self, arguments: &str) -> Result<Value, String> {
        let name = &self.definition.name;
        let text = if arguments.trim().is_empty() { "{}" } else { arguments };
        let value: Value = serde_json::from_str(text).map_err(|e| format!("the arguments of {name} are not JSON: {e}"))?;
        let Some(schema) = &self.schema else { return Ok(value) };
        let problems: Vec<String> = schema.iter_errors(&value).take(3).map(|e| format!("{e} (at {})", e.instance_path())).collect();
        if problems.is_empty() { Ok(value) } else { Err(format!("wrong arguments for {name}: {}", problems.join("; "))) }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn iso8601(now_ms: i64, offset_hours: f64) -> String {
    let offset_min = (offset_hours * 60.0).round() as i64;
    let seconds = now_ms.div_euclid(1000) + offset_min * 60;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (y, m, d) = civil(days);
    let zone = match offset_min {
        0 => "Z".to_owned(),
        o => format!("{}{:02}:{:02}", if o < 0 { '-' } else { '+' }, o.abs() / 60, o.abs() % 60),
    };
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}{zone}", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970-01-01 to year, month, day (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_knows_the_calendar_and_offsets() {
        assert_eq!(call("now", "{}", 951_782_400_000), Outcome::Ok("2000-02-29T00:00:00Z".into()));
        assert_eq!(call("now", r#"{"utc_offset_hours": -5.5}"#, 0), Outcome::Ok("1969-12-31T18:30:00-05:30".into()));
    }

    #[test]
    fn bad_arguments_are_told_to_the_model() {
        for arguments in ["not json", "[]", r#"{"expression": 5}"#, "{}", r#"{"expression": "1", "x": 1}"#] {
            assert!(matches!(call("calculate", arguments, 0), Outcome::Error(_)), "{arguments}");
        }
        assert_eq!(call("calculate", r#"{"expression": "6*7"}"#, 0), Outcome::Ok("42".into()));
        assert_eq!(call("rm", "{}", 0), Outcome::Unknown);
    }
}
