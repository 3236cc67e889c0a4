//! The steps around a run, without I/O: the conversation is cut to what the model can read before it, the answer is held against its
//! schema behind it.

use agent_proto::agents::v1 as pb;
use prost::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::json;

/// Bytes of a token, on the careful side: English has 4, code and most other languages about 3.
const BYTES_PER_TOKEN: usize = 3;
/// What a provider puts around each message, in tokens.
const MESSAGE_TOKENS: usize = 16;
/// Share of the window that is kept for the answer where the task names no `max_tokens`: one in so many.
const ANSWER_PART: usize = 4;
/// What is shown of an answer to the model that repairs it, in bytes.
const SHOWN_BYTES: usize = 65_536;

/// A conversation that was cut.
#[derive(Debug)]
pub struct Trimmed {
    /// The task with the rest of it.
    pub task: pb::AgentTask,
    /// Messages that were left out.
    pub left_out: usize,
    /// Of so many.
    pub of: usize,
}

/// Cuts a conversation to a part of the model's window: its newest whole turns stay, and what the system says at its beginning.
///
/// `window` in tokens, `percent` of what is left of it beside the rest of the prompt and the answer. A turn begins with what a user says, so
/// no tool's answer is left without its question. None: it fits, or the window is not known (0).
pub fn trim(task: &pb::AgentTask, instructions: &str, window: usize, percent: usize) -> Option<Trimmed> {
    let history = &task.context.as_ref()?.conversation_history;
    if window == 0 || history.is_empty() {
        return None;
    }
    let requirements = task.requirements.as_ref();
    let answer = requirements.and_then(|r| r.max_tokens).and_then(|n| usize::try_from(n).ok()).unwrap_or(window / ANSWER_PART);
    let around = requirements.map_or(0, |r| r.expected_output.len() + r.output_schema.as_ref().map_or(0, Message::encoded_len));
    let rest = tokens(instructions.len() + around) + tokens(task.description.len()) + 2 * MESSAGE_TOKENS;
    let room = window.saturating_sub(answer).saturating_sub(rest) * percent / 100;
    let size = |m: &pb::Message| tokens(m.encoded_len()) + MESSAGE_TOKENS;

    let head = history.iter().take_while(|m| m.role() == pb::Role::System).count();
    let mut used: usize = history[..head].iter().map(size).sum();
    let mut from = history.len();
    for (place, message) in history.iter().enumerate().skip(head).rev() {
        used += size(message);
        if used > room {
            break;
        }
        if message.role() == pb::Role::User {
            from = place;
        }
    }
    if used <= room {
        return None;
    }
    let mut task = task.clone();
    let left_out = from - head;
    if let Some(context) = &mut task.context {
        context.conversation_history.drain(head..from);
    }
    Some(Trimmed { task, left_out, of: history.len() }).filter(|t| t.left_out > 0)
}

fn tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// What the schema of a task says of its answer.
#[derive(Debug, PartialEq)]
pub enum Checked {
    /// There is no schema, or the answer fits it as it is.
    Fits,
    /// It fits once the data is read out of its text.
    Read(Box<pb::AgentResult>),
    /// It does not; the text says why, for a model.
    Misfit(String),
}

/// Holds an answer against `requirements.output_schema`. One that a limit cut short is not looked at.
pub fn check(task: &pb::AgentTask, result: &pb::AgentResult) -> Checked {
    let Some(schema) = task.requirements.as_ref().and_then(|r| r.output_schema.as_ref()) else { return Checked::Fits };
    if !result.limit_reached.is_empty() {
        return Checked::Fits;
    }
    let schema = json::from_struct(schema);
    if let Some(value) = &result.structured_output {
        return match misfit(&schema, &json::from_value(value)) {
            None => Checked::Fits,
            Some(problem) => Checked::Misfit(problem),
        };
    }
    match read(&result.output) {
        Err(problem) => Checked::Misfit(problem),
        Ok(value) => match misfit(&schema, &value) {
            Some(problem) => Checked::Misfit(problem),
            None => {
                let structured_output = Some(json::to_value(&value));
                Checked::Read(Box::new(pb::AgentResult { structured_output, ..result.clone() }))
            }
        },
    }
}

/// Why a value does not fit a schema; None: it does.
pub fn misfit(schema: &Value, value: &Value) -> Option<String> {
    let validator = jsonschema::validator_for(schema).ok()?;
    validator.iter_errors(value).next().map(|e| format!("{e} (at {})", e.instance_path()))
}

/// The JSON of a text. Models like to put it between fences.
fn read(text: &str) -> Result<Value, String> {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|t| t.strip_suffix("```")).map(|t| t.trim_start_matches(|c: char| c.is_alphanumeric()));
    serde_json::from_str(inner.unwrap_or(text).trim()).map_err(|e| format!("it is not JSON: {e}"))
}

/// The task of the native agent that says an answer again so that it fits.
pub fn repair(task: &pb::AgentTask, result: &pb::AgentResult, problem: &str) -> pb::AgentTask {
    let answer = match &result.structured_output {
        Some(value) => json::from_value(value).to_string(),
        None => result.output.clone(),
    };
    let mut end = answer.len().min(SHOWN_BYTES);
    while !answer.is_char_boundary(end) {
        end -= 1;
    }
    let description = format!(
        "An agent was given this task:\n{}\n\nIt answered:\n{}\n\nThe answer must be JSON that matches a schema, and does not: {problem}. \
         Say the same as JSON that matches; add nothing that the answer does not say. Answer with the JSON only.",
        task.description,
        &answer[..end],
    );
    let wanted = task.requirements.as_ref();
    pb::AgentTask {
        description,
        requirements: Some(pb::TaskRequirements {
            output_schema: wanted.and_then(|r| r.output_schema.clone()),
            max_tokens: wanted.and_then(|r| r.max_tokens),
            ..Default::default()
        }),
        execution_hints: task.execution_hints.as_ref().map(|h| pb::ExecutionHints {
            temperature: h.temperature,
            seed: h.seed,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Most bytes of an artifact that stand in a result.
pub const MAX_INLINE_BYTES: usize = 65_536;

/// A file or data of a result: its content, or where that is if it is larger than a result holds.
pub fn artifact(name: &str, media_type: &str, content: Vec<u8>, reference: impl FnOnce() -> String) -> pb::Artifact {
    let sha256 = hex(&Sha256::digest(&content));
    pb::Artifact {
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        size: i64::try_from(content.len()).unwrap_or(i64::MAX),
        sha256,
        content: Some(if content.len() <= MAX_INLINE_BYTES {
            pb::artifact::Content::Inline(content)
        } else {
            pb::artifact::Content::Reference(reference())
        }),
    }
}

/// The answer with the data and the text of its repair; what else it had stays.
pub fn repaired(result: pb::AgentResult, by: pb::AgentResult) -> pb::AgentResult {
    pb::AgentResult { output: text_or(by.output, result.output), structured_output: by.structured_output, ..result }
}

fn text_or(text: String, other: String) -> String {
    if text.is_empty() { other } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{text_message, text_of};
    use proptest::prelude::*;
    use serde_json::json;

    fn task(history: Vec<pb::Message>) -> pb::AgentTask {
        pb::AgentTask {
            description: "go on".into(),
            context: Some(pb::TaskContext { conversation_history: history, ..Default::default() }),
            ..Default::default()
        }
    }

    fn turn(n: usize) -> Vec<pb::Message> {
        let call = pb::Message {
            tool_calls: vec![pb::ToolCall { id: format!("c{n}"), name: "now".into(), arguments: "{}".into() }],
            ..text_message(pb::Role::Assistant, String::new())
        };
        vec![
            text_message(pb::Role::User, format!("question {n} {}", "x".repeat(90))),
            call,
            pb::Message { tool_call_id: format!("c{n}"), ..text_message(pb::Role::Tool, "noon".into()) },
            text_message(pb::Role::Assistant, format!("answer {n}")),
        ]
    }

    fn history(turns: usize) -> Vec<pb::Message> {
        std::iter::once(text_message(pb::Role::System, "be kind".into())).chain((0..turns).flat_map(turn)).collect()
    }

    #[test]
    fn the_newest_whole_turns_stay_and_what_the_system_says() {
        let trimmed = trim(&task(history(10)), "", 1000, 100).unwrap();
        let kept = trimmed.task.context.unwrap().conversation_history;
        assert_eq!((kept[0].role(), kept[1].role()), (pb::Role::System, pb::Role::User));
        assert_eq!(text_of(kept.last().unwrap()), "answer 9");
        assert_eq!((trimmed.left_out + kept.len(), trimmed.of), (41, 41));
        let half = trim(&task(history(10)), "", 1000, 50).unwrap();
        assert!(half.left_out > trimmed.left_out);
    }

    #[test]
    fn what_fits_and_what_nobody_knows_is_left_as_it_is() {
        assert!(trim(&task(history(10)), "", 0, 100).is_none(), "no window is known");
        assert!(trim(&task(history(10)), "", 100_000, 100).is_none());
        assert!(trim(&task(Vec::new()), "", 10, 100).is_none());
    }

    fn wanted() -> pb::AgentTask {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        pb::AgentTask {
            description: "count".into(),
            requirements: Some(pb::TaskRequirements { output_schema: Some(json::to_struct(&schema)), ..Default::default() }),
            ..Default::default()
        }
    }

    fn answer(text: &str) -> pb::AgentResult {
        pb::AgentResult { output: text.into(), executor: "langchain".into(), ..Default::default() }
    }

    #[test]
    fn an_answer_is_data_that_fits_or_says_why_not() {
        let Checked::Read(read) = check(&wanted(), &answer("```json\n{\"n\": 3}\n```")) else { panic!("it fits") };
        assert_eq!(json::from_value(&read.structured_output.unwrap()), json!({"n": 3}));
        assert!(matches!(check(&wanted(), &answer("three")), Checked::Misfit(why) if why.contains("not JSON")));
        let structured = pb::AgentResult { structured_output: Some(json::to_value(&json!({"n": "3"}))), ..Default::default() };
        assert!(matches!(check(&wanted(), &structured), Checked::Misfit(why) if why.contains("/n")));
        let cut = pb::AgentResult { limit_reached: "max_steps".into(), ..answer("thr") };
        assert_eq!(check(&wanted(), &cut), Checked::Fits);
        assert_eq!(check(&pb::AgentTask::default(), &answer("three")), Checked::Fits);
    }

    #[test]
    fn a_repair_asks_for_the_same_in_its_form_and_keeps_what_else_was_there() {
        let asked = repair(&wanted(), &answer("three"), "it is not JSON");
        assert!(asked.description.contains("three") && asked.description.contains("count"));
        assert_eq!(asked.requirements.unwrap().output_schema, wanted().requirements.unwrap().output_schema);
        let by = pb::AgentResult { output: "{\"n\":3}".into(), executor: "native".into(), ..Default::default() };
        let whole = repaired(answer("three"), by);
        assert_eq!((whole.output.as_str(), whole.executor.as_str()), ("{\"n\":3}", "langchain"));
    }

    proptest! {
        #[test]
        fn a_cut_never_leaves_a_tool_without_its_question(turns in 1usize..30, window in 1usize..4000, percent in 1usize..=100) {
            let given = task(history(turns));
            if let Some(trimmed) = trim(&given, "instructions", window, percent) {
                let kept = trimmed.task.context.unwrap().conversation_history;
                prop_assert!(kept.len() < given.context.unwrap().conversation_history.len());
                let mut asked = std::collections::HashSet::new();
                for message in &kept {
                    asked.extend(message.tool_calls.iter().map(|c| c.id.clone()));
                    if message.role() == pb::Role::Tool {
                        prop_assert!(asked.contains(&message.tool_call_id));
                    }
                }
            }
        }
    }
}
