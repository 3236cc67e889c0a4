//! The native agent: a state machine without I/O. Events in, effects out.
//!
//! It asks a model, runs the tools that the model calls, gives the results back, and ends with an answer, at `max_steps` model calls at the
//! latest. It never looks at a clock and never waits, so it is tested without either and replays from a journal.

use std::collections::BTreeMap;

use agent_proto::agents::v1 as pb;
use serde_json::Value;

use crate::{AgentError, Reason, around, json, tools};

/// What happened. One lives at a time, so the size of its largest variant costs nothing.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made and consumed one at a time")]
pub enum Event {
    /// Begin; must come first.
    Start,
    /// The model answered.
    ModelReply {
        /// Of the effect.
        call_id: u64,
        /// The answer.
        reply: pb::ChatResponse,
    },
    /// The model call failed for good: the engine owns retries.
    ModelError {
        /// Of the effect.
        call_id: u64,
        /// Why.
        error: AgentError,
    },
    /// A tool has run.
    ToolResult {
        /// Of the effect.
        call_id: u64,
        /// Text for the model.
        content: String,
        /// It failed; the text says how.
        is_error: bool,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Ask a model.
    CallModel {
        /// Names the answer.
        call_id: u64,
        /// The request.
        request: Box<pb::ChatRequest>,
    },
    /// Run an engine tool.
    CallTool {
        /// Names the answer.
        call_id: u64,
        /// Tool.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// Tell watchers: a tool is called.
    ToolCalled(pb::ToolCall),
    /// Tell watchers: a tool has answered.
    ToolAnswered(pb::ToolResultEvent),
    /// The end, exactly one.
    Finish(Box<Result<pb::AgentResult, AgentError>>),
}

/// What the engine decides for the agent.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of engine tools.
    pub engine_tools: Vec<String>,
    /// Model calls before ITERATION_LIMIT.
    pub max_steps: u32,
    /// Model or alias.
    pub model: String,
}

struct OpenTool {
    call: pb::ToolCall,
    answer: Option<(String, bool)>,
}

/// The machine.
pub struct Agent {
    task_id: String,
    request: pb::ChatRequest,
    schema: Option<Value>,
    max_steps: u32,
    steps: u32,
    next_id: u64,
    model_call: Option<u64>,
    open: BTreeMap<u64, OpenTool>,
    done_steps: Vec<pb::ResultStep>,
    repaired: bool,
    finished: bool,
}

impl Agent {
    /// Sets up a run. Errors: tools that only other executors have.
    pub fn new(task_id: &str, task: &pb::AgentTask, agent: &pb::Agent, options: &Options) -> Result<Self, AgentError> {
        let context = task.context.clone().unwrap_or_default();
        let req = task.requirements.clone().unwrap_or_default();
        let hints = task.execution_hints.clone().unwrap_or_default();
        let mut definitions: Vec<pb::ToolDefinition> = options.engine_tools.iter().filter_map(|n| tools::definition(n)).collect();
        for tool in &context.available_tools {
            match (tool.kind(), tools::definition(&tool.name)) {
                (pb::ToolKind::Engine | pb::ToolKind::Unspecified, Some(d)) => {
                    if definitions.iter().all(|have| have.name != d.name) {
                        definitions.push(d);
                    }
                }
                _ => {
                    return Err(AgentError::new(
                        Reason::UnsupportedField,
                        format!("the native agent has no tool \"{}\"; it has {}", tool.name, tools::NAMES.join(", ")),
                    )
                    .with("executor", "native")
                    .with("field", "task.context.available_tools"));
                }
            }
        }
        let schema = req.output_schema.as_ref().map(json::from_struct);
        let mut messages = vec![text_message(pb::Role::System, system_text(agent, &context, &req))];
        messages.retain(|m| !m.content.is_empty());
        messages.extend(context.conversation_history);
        messages.push(text_message(pb::Role::User, task.description.clone()));
        Ok(Self {
            task_id: task_id.to_owned(),
            request: pb::ChatRequest {
                model: options.model.clone(),
                messages,
                tools: definitions,
                output_schema: req.output_schema,
                temperature: hints.temperature,
                seed: hints.seed,
                #[allow(clippy::cast_possible_truncation)]
                max_tokens: req.max_tokens.map(|n| n as i32),
                ..Default::default()
            },
            schema,
            max_steps: options.max_steps.max(1),
            steps: 0,
            next_id: 0,
            model_call: None,
            open: BTreeMap::new(),
            done_steps: Vec::new(),
            repaired: false,
            finished: false,
        })
    }

    /// One event in, the effects that follow. Events that nobody waits for give none.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        match event {
            Event::Start if self.steps == 0 => self.ask(),
            Event::ModelReply { call_id, reply } if self.model_call == Some(call_id) => {
                self.model_call = None;
                self.replied(reply)
            }
            Event::ModelError { call_id, error } if self.model_call == Some(call_id) => self.finish(Err(error)),
            Event::ToolResult { call_id, content, is_error } => self.tool_done(call_id, content, is_error),
            _ => Vec::new(),
        }
    }

    fn ask(&mut self) -> Vec<Effect> {
        if self.steps >= self.max_steps {
            let error = AgentError::new(Reason::IterationLimit, format!("no answer after {} model calls", self.steps))
                .with("max_steps", self.max_steps);
            return self.finish(Err(error));
        }
        self.steps += 1;
        let call_id = self.fresh();
        self.model_call = Some(call_id);
        vec![Effect::CallModel { call_id, request: Box::new(self.request.clone()) }]
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn replied(&mut self, reply: pb::ChatResponse) -> Vec<Effect> {
        let finish_reason = reply.finish_reason();
        let Some(message) = reply.message else {
            return self.finish(Err(AgentError::new(Reason::ProviderBadResponse, "the model's answer holds no message")));
        };
        if !reply.refusal.is_empty() || finish_reason == pb::FinishReason::ContentFilter {
            return self.finish(Err(AgentError::new(Reason::ProviderRefused, "the model refused to answer")));
        }
        if message.tool_calls.is_empty() {
            return self.answered(&message, finish_reason);
        }
        let mut effects = Vec::with_capacity(message.tool_calls.len() * 2);
        for call in &message.tool_calls {
            let call_id = self.fresh();
            effects.push(Effect::ToolCalled(call.clone()));
            effects.push(Effect::CallTool { call_id, name: call.name.clone(), arguments: call.arguments.clone() });
            self.open.insert(call_id, OpenTool { call: call.clone(), answer: None });
        }
        self.request.messages.push(message);
        effects
    }

    fn tool_done(&mut self, call_id: u64, content: String, is_error: bool) -> Vec<Effect> {
        let Some(tool) = self.open.get_mut(&call_id).filter(|t| t.answer.is_none()) else { return Vec::new() };
        tool.answer = Some((content.clone(), is_error));
        let call = &tool.call;
        let mut effects =
            vec![Effect::ToolAnswered(pb::ToolResultEvent { id: call.id.clone(), name: call.name.clone(), content, is_error })];
        if self.open.values().all(|t| t.answer.is_some()) {
            // In the order of the calls, whatever the order of the answers.
            for (_, OpenTool { call, answer }) in std::mem::take(&mut self.open) {
                let (content, is_error) = answer.unwrap_or_default();
                self.done_steps.push(pb::ResultStep {
                    kind: "tool".into(),
                    name: call.name.clone(),
                    input: clip(&call.arguments),
                    output: clip(&content),
                    is_error,
                    ..Default::default()
                });
                let text = if is_error { format!("Error: {content}") } else { content };
                self.request.messages.push(pb::Message { tool_call_id: call.id, name: call.name, ..text_message(pb::Role::Tool, text) });
            }
            effects.extend(self.ask());
        }
        effects
    }

    fn answered(&mut self, message: &pb::Message, finish_reason: pb::FinishReason) -> Vec<Effect> {
        let output = text_of(message);
        let structured_output = match self.structured(&output) {
            Ok(value) => value,
            Err(problem) if !self.repaired => {
                self.repaired = true;
                self.request.messages.push(message.clone());
                let text = format!("Your answer does not match the required JSON schema: {problem}. Answer again with JSON only.");
                self.request.messages.push(text_message(pb::Role::User, text));
                return self.ask();
            }
            Err(problem) => return self.finish(Err(AgentError::new(Reason::OutputSchemaMismatch, problem))),
        };
        let cut = finish_reason == pb::FinishReason::Length;
        let result = pb::AgentResult {
            task_id: self.task_id.clone(),
            status: if cut { pb::ResultStatus::Partial } else { pb::ResultStatus::Completed } as i32,
            output,
            structured_output,
            steps: std::mem::take(&mut self.done_steps),
            executor: "native".into(),
            limit_reached: if cut { "max_tokens".into() } else { String::new() },
            ..Default::default()
        };
        self.finish(Ok(result))
    }

    fn structured(&self, output: &str) -> Result<Option<prost_types::Value>, String> {
        let Some(schema) = &self.schema else { return Ok(None) };
        let value: Value = serde_json::from_str(output.trim()).map_err(|e| format!("it is not JSON: {e}"))?;
        if let Some(problem) = around::misfit(schema, &value) {
            return Err(problem);
        }
        Ok(Some(json::to_value(&value)))
    }

    fn finish(&mut self, end: Result<pb::AgentResult, AgentError>) -> Vec<Effect> {
        self.finished = true;
        vec![Effect::Finish(Box::new(end))]
    }
}

/// System text: the agent's instructions, then what the task adds.
pub fn system_text(agent: &pb::Agent, context: &pb::TaskContext, req: &pb::TaskRequirements) -> String {
    let mut parts = vec![agent.instructions.clone()];
    if !req.expected_output.is_empty() {
        parts.push(format!("Expected output: {}", req.expected_output));
    }
    if let Some(preferences) = context.user_preferences.as_ref().filter(|p| !p.fields.is_empty()) {
        parts.push(format!("Preferences of the user: {}", json::from_struct(preferences)));
    }
    parts.retain(|p| !p.is_empty());
    parts.join("\n")
}

/// A message of one text part; no part for an empty text.
pub fn text_message(role: pb::Role, text: String) -> pb::Message {
    let content = if text.is_empty() { Vec::new() } else { vec![pb::ContentPart { part: Some(pb::content_part::Part::Text(text)) }] };
    pb::Message { role: role as i32, content, ..Default::default() }
}

/// The visible text of a message.
pub fn text_of(message: &pb::Message) -> String {
    message
        .content
        .iter()
        .filter_map(|p| match &p.part {
            Some(pb::content_part::Part::Text(t)) => Some(t.as_str()),
            _ => None,
        })
        .collect()
}

fn clip(text: &str) -> String {
    const MAX_CHARS: usize = 2000;
    if text.len() <= MAX_CHARS { text.to_owned() } else { text.chars().take(MAX_CHARS).chain("…".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(max_steps: u32, schema: Option<Value>) -> Agent {
        let task = pb::AgentTask {
            description: "What is 6*7?".into(),
            requirements: Some(pb::TaskRequirements { output_schema: schema.as_ref().map(json::to_struct), ..Default::default() }),
            ..Default::default()
        };
        let options = Options { engine_tools: vec!["calculate".into()], max_steps, model: "m".into() };
        Agent::new("t", &task, &pb::Agent { instructions: "Be brief.".into(), ..Default::default() }, &options).unwrap()
    }

    fn reply(text: &str, calls: &[(&str, &str)]) -> pb::ChatResponse {
        let tool_calls = calls
            .iter()
            .enumerate()
            .map(|(i, (name, arguments))| pb::ToolCall { id: format!("c{i}"), name: (*name).into(), arguments: (*arguments).into() })
            .collect();
        pb::ChatResponse {
            message: Some(pb::Message { tool_calls, ..text_message(pb::Role::Assistant, text.into()) }),
            ..Default::default()
        }
    }

    fn model_call(effects: &[Effect]) -> (u64, pb::ChatRequest) {
        match effects.last() {
            Some(Effect::CallModel { call_id, request }) => (*call_id, (**request).clone()),
            other => panic!("no model call but {other:?}"),
        }
    }

    fn finish(effects: Vec<Effect>) -> Result<pb::AgentResult, AgentError> {
        match effects.into_iter().last() {
            Some(Effect::Finish(end)) => *end,
            other => panic!("no end but {other:?}"),
        }
    }

    #[test]
    fn a_tool_is_run_and_its_result_answers_the_task() {
        let mut a = agent(5, None);
        let (id, request) = model_call(&a.step(Event::Start));
        assert_eq!(request.messages.len(), 2);
        let effects =
            a.step(Event::ModelReply { call_id: id, reply: reply("", &[("calculate", r#"{"expression":"6*7"}"#), ("now", "{}")]) });
        let ids: Vec<u64> =
            effects.iter().filter_map(|e| if let Effect::CallTool { call_id, .. } = e { Some(*call_id) } else { None }).collect();
        assert_eq!(ids.len(), 2);
        // Answers in the other order: the messages keep the order of the calls.
        assert_eq!(a.step(Event::ToolResult { call_id: ids[1], content: "late".into(), is_error: false }).len(), 1);
        let (id, request) = model_call(&a.step(Event::ToolResult { call_id: ids[0], content: "42".into(), is_error: false }));
        let texts: Vec<String> = request.messages.iter().map(text_of).collect();
        assert_eq!(texts[3..], ["42", "late"]);
        let result = finish(a.step(Event::ModelReply { call_id: id, reply: reply("42.", &[]) })).unwrap();
        assert_eq!((result.output.as_str(), result.steps.len()), ("42.", 2));
    }

    #[test]
    fn a_loop_ends_at_max_steps() {
        let mut a = agent(3, None);
        let mut effects = a.step(Event::Start);
        for _ in 0..3 {
            let (id, _) = model_call(&effects);
            let calls = a.step(Event::ModelReply { call_id: id, reply: reply("", &[("calculate", "{}")]) });
            let tool = calls.iter().find_map(|e| if let Effect::CallTool { call_id, .. } = e { Some(*call_id) } else { None }).unwrap();
            effects = a.step(Event::ToolResult { call_id: tool, content: "wrong arguments".into(), is_error: true });
        }
        assert_eq!(finish(effects).unwrap_err().reason, Reason::IterationLimit);
    }

    #[test]
    fn a_wrong_structured_answer_is_repaired_once() {
        let schema = serde_json::json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
        let mut a = agent(5, Some(schema));
        let (id, _) = model_call(&a.step(Event::Start));
        let (id, _) = model_call(&a.step(Event::ModelReply { call_id: id, reply: reply("forty-two", &[]) }));
        let result = finish(a.step(Event::ModelReply { call_id: id, reply: reply(r#"{"n": 42}"#, &[]) })).unwrap();
        assert_eq!(json::from_value(&result.structured_output.unwrap()), serde_json::json!({"n": 42}));
    }

    #[test]
    fn tools_of_other_executors_are_refused_by_name() {
        let tool = pb::ToolDefinition { name: "lookup".into(), kind: pb::ToolKind::Mcp as i32, ..Default::default() };
        let context = pb::TaskContext { available_tools: vec![tool], ..Default::default() };
        let task = pb::AgentTask { description: "x".into(), context: Some(context), ..Default::default() };
        let error = Agent::new("t", &task, &pb::Agent::default(), &Options::default()).err().unwrap();
        assert_eq!(error.reason, Reason::UnsupportedField);
    }

    proptest::proptest! {
        #[test]
        fn any_order_of_events_ends_at_most_once(events in proptest::collection::vec((0u8..5, 0u64..6), 0..40)) {
            let mut a = agent(4, None);
            let mut ends = 0;
            for (kind, call_id) in events {
                let effects = a.step(match kind {
                    0 => Event::Start,
                    1 => Event::ModelReply { call_id, reply: reply("x", &[]) },
                    2 => Event::ModelReply { call_id, reply: reply("", &[("calculate", "{}")]) },
                    3 => Event::ModelError { call_id, error: AgentError::new(Reason::Internal, "x") },
                    _ => Event::ToolResult { call_id, content: "r".into(), is_error: false },
                });
                ends += effects.iter().filter(|e| matches!(e, Effect::Finish(_))).count();
            }
            proptest::prop_assert!(ends <= 1);
        }
    }
}
