//! The items of an answer in the dialect `openai_responses`, from events or whole. Pieces belong to the item at their `output_index`; what a
//! `done` event repeats is taken only where no delta came before it.

use std::collections::BTreeMap;

use agent_proto::agents::v1 as pb;
use pb::stream_chat_response::Piece;
use serde_json::{Value, json};

use crate::blocks::Taken;
use crate::calls::Calls;

/// Before an item that goes back to its provider as it came, where other dialects have a signature.
pub(crate) const ITEM: &str = "responses_item:";
/// Items of one answer, and parts of one item, at most; what comes beyond is dropped.
const MAX_ITEMS: usize = 4096;

#[derive(Default)]
struct Item {
    kind: String,
    /// Text, by its place in the item.
    texts: BTreeMap<u64, String>,
    refusals: BTreeMap<u64, String>,
    /// Reasoning itself, and summaries of it.
    reasoning: BTreeMap<(bool, u64), String>,
    call_id: String,
    name: String,
    arguments: String,
    /// As it came, where it goes back so.
    raw: Option<Value>,
}

/// What has arrived of an answer.
#[derive(Default)]
pub(crate) struct Items {
    items: BTreeMap<u64, Item>,
    /// Number of the last event.
    sequence: u64,
    pub(crate) finish: String,
    usage: Option<pb::Usage>,
    reasoned: bool,
    /// The provider's id of the response.
    pub(crate) id: String,
}

/// Which of an item's texts a piece belongs to.
#[derive(Clone, Copy)]
enum Of {
    Text,
    Refusal,
    Reasoning,
    Summary,
}

impl Items {
    /// An event; what is unknown says nothing. A response that has failed is the caller's to look at, before this.
    pub(crate) fn event(&mut self, event: &Value) -> Taken {
        let number = event.get("sequence_number").and_then(Value::as_u64).unwrap_or(0);
        // Servers that do not count send none, or 0 always.
        if number > 0 && number <= self.sequence {
            return Taken::default();
        }
        self.sequence = self.sequence.max(number);
        let at = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
        let index = at("output_index");
        match text("type") {
            "response.created" | "response.in_progress" | "response.queued" => {
                self.named(event.get("response"));
                Taken::default()
            }
            "response.output_item.added" | "response.output_item.done" => {
                event.get("item").map(|i| self.item(index, i)).unwrap_or_default()
            }
            "response.content_part.done" => event.get("part").map(|p| self.part(index, at("content_index"), p)).unwrap_or_default(),
            "response.output_text.delta" => self.add(index, at("content_index"), Of::Text, text("delta")),
            "response.output_text.done" => self.whole(index, at("content_index"), Of::Text, text("text")),
            "response.refusal.delta" => self.add(index, at("content_index"), Of::Refusal, text("delta")),
            "response.refusal.done" => self.whole(index, at("content_index"), Of::Refusal, text("refusal")),
            "response.reasoning_text.delta" => self.add(index, at("content_index"), Of::Reasoning, text("delta")),
            "response.reasoning_text.done" => self.whole(index, at("content_index"), Of::Reasoning, text("text")),
            "response.reasoning_summary_text.delta" => self.add(index, at("summary_index"), Of::Summary, text("delta")),
            "response.reasoning_summary_text.done" => self.whole(index, at("summary_index"), Of::Summary, text("text")),
            "response.function_call_arguments.delta" => self.arguments(index, text("delta")),
            "response.function_call_arguments.done" => self.missing_arguments(index, text("arguments")),
            "response.completed" | "response.incomplete" => {
                let mut taken = event.get("response").map(|r| self.response(r)).unwrap_or_default();
                taken.ended = true;
                taken
            }
            _ => Taken::default(),
        }
    }

    /// A whole response object: what came before is completed by it.
    pub(crate) fn response(&mut self, response: &Value) -> Taken {
        let mut all = Taken::default();
        self.named(Some(response));
        for (index, item) in (0..).zip(response.get("output").and_then(Value::as_array).into_iter().flatten()) {
            all.join(self.item(index, item));
        }
        self.usage = response.get("usage").and_then(usage).or(self.usage.take());
        let reason = response.pointer("/incomplete_details/reason").or_else(|| response.get("status"));
        reason.and_then(Value::as_str).unwrap_or_default().clone_into(&mut self.finish);
        all
    }

    fn named(&mut self, response: Option<&Value>) {
        if let Some(id) = response.and_then(|r| r.get("id")).and_then(Value::as_str) {
            id.clone_into(&mut self.id);
        }
    }

    fn at(&mut self, index: u64) -> Option<&mut Item> {
        if self.items.len() >= MAX_ITEMS && !self.items.contains_key(&index) {
            return None;
        }
        Some(self.items.entry(index).or_default())
    }

    fn item(&mut self, index: u64, whole: &Value) -> Taken {
        let text = |key: &str| whole.get(key).and_then(Value::as_str).unwrap_or_default();
        let Some(item) = self.at(index) else { return Taken::default() };
        text("type").clone_into(&mut item.kind);
        let mut taken = Taken::default();
        match text("type") {
            "function_call" => {
                // Its start is content, and shows the call.
                if item.name.is_empty() && !text("name").is_empty() {
                    text("call_id").clone_into(&mut item.call_id);
                    text("name").clone_into(&mut item.name);
                    let (id, name) = (item.call_id.clone(), item.name.clone());
                    taken.join(self.piece(index, id, name, ""));
                }
                taken.join(self.missing_arguments(index, text("arguments")));
            }
            "reasoning" => {
                item.raw = Some(whole.clone());
                for (at, part) in (0..).zip(whole.get("summary").and_then(Value::as_array).into_iter().flatten()) {
                    taken.join(self.part(index, at, part));
                }
            }
            // Tools of the provider: nothing for the caller, but they belong to the conversation.
            kind if kind.ends_with("_call") => item.raw = Some(whole.clone()),
            _ => {}
        }
        for (at, part) in (0..).zip(whole.get("content").and_then(Value::as_array).into_iter().flatten()) {
            taken.join(self.part(index, at, part));
        }
        taken
    }

    fn part(&mut self, index: u64, at: u64, part: &Value) -> Taken {
        let text = |key: &str| part.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "output_text" => self.whole(index, at, Of::Text, text("text")),
            "refusal" => self.whole(index, at, Of::Refusal, text("refusal")),
            "reasoning_text" => self.whole(index, at, Of::Reasoning, text("text")),
            "summary_text" => self.whole(index, at, Of::Summary, text("text")),
            _ => Taken::default(),
        }
    }

    fn slot(&mut self, index: u64, at: u64, of: Of) -> Option<&mut String> {
        let item = self.at(index)?;
        if item.texts.len() + item.refusals.len() + item.reasoning.len() >= MAX_ITEMS {
            return None;
        }
        Some(match of {
            Of::Text => item.texts.entry(at).or_default(),
            Of::Refusal => item.refusals.entry(at).or_default(),
            Of::Reasoning => item.reasoning.entry((false, at)).or_default(),
            Of::Summary => item.reasoning.entry((true, at)).or_default(),
        })
    }

    fn whole(&mut self, index: u64, at: u64, of: Of, text: &str) -> Taken {
        match self.slot(index, at, of) {
            Some(slot) if slot.is_empty() => self.add(index, at, of, text),
            _ => Taken::default(),
        }
    }

    fn add(&mut self, index: u64, at: u64, of: Of, delta: &str) -> Taken {
        if delta.is_empty() {
            return Taken::default();
        }
        // Summaries are paragraphs: a break between them, in the pieces as in the whole.
        let reasons = matches!(of, Of::Reasoning | Of::Summary);
        let begun = reasons && std::mem::replace(&mut self.reasoned, true);
        let Some(slot) = self.slot(index, at, of) else { return Taken::default() };
        let delta = if begun && slot.is_empty() { format!("\n\n{delta}") } else { delta.to_owned() };
        slot.push_str(&delta);
        let pieces = match of {
            Of::Text => vec![Piece::TextDelta(delta)],
            Of::Reasoning | Of::Summary => vec![Piece::ReasoningDelta(delta)],
            Of::Refusal => Vec::new(),
        };
        Taken { pieces, content: true, ended: false }
    }

    fn missing_arguments(&mut self, index: u64, arguments: &str) -> Taken {
        match self.at(index) {
            Some(item) if item.arguments.is_empty() => self.arguments(index, arguments),
            _ => Taken::default(),
        }
    }

    fn arguments(&mut self, index: u64, delta: &str) -> Taken {
        let Some(item) = self.at(index).filter(|_| !delta.is_empty()) else { return Taken::default() };
        item.arguments.push_str(delta);
        self.piece(index, String::new(), String::new(), delta)
    }

    fn piece(&self, index: u64, id: String, name: String, arguments: &str) -> Taken {
        let before = self.items.range(..index).filter(|(_, i)| i.kind == "function_call").count();
        let index = i32::try_from(before).unwrap_or(i32::MAX);
        let piece = pb::ToolCallDelta { index, id, name, arguments: arguments.to_owned() };
        Taken { pieces: vec![Piece::ToolCallDelta(piece)], content: true, ended: false }
    }

    /// The normalised answer. What goes back to the provider stands in front of the text.
    pub(crate) fn finish(self, provider: &str) -> pb::ChatResponse {
        let (mut text, mut refusal, mut reasoning) = (String::new(), String::new(), String::new());
        let (mut calls, mut kept) = (Calls::default(), Vec::new());
        for item in self.items.into_values() {
            text.extend(item.texts.into_values());
            refusal.extend(item.refusals.into_values());
            let thought: String = item.reasoning.into_values().collect();
            reasoning.push_str(&thought);
            if item.kind == "function_call" {
                calls.add(&json!({"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}), true);
            }
            // Reasoning that is not encrypted means nothing to a provider that keeps nothing.
            let back = |raw: &Value| item.kind != "reasoning" || raw.get("encrypted_content").is_some_and(Value::is_string);
            if let Some(raw) = item.raw.filter(back) {
                kept.push(pb::ReasoningPart { text: thought, signature: format!("{ITEM}{raw}"), provider: provider.to_owned() });
            }
        }
        let calls = calls.finish();
        let reason = match self.finish.as_str() {
            "completed" if !calls.is_empty() => pb::FinishReason::ToolCalls,
            "completed" if !refusal.is_empty() => pb::FinishReason::Refusal,
            "completed" => pb::FinishReason::Stop,
            "max_output_tokens" => pb::FinishReason::Length,
            "content_filter" => pb::FinishReason::ContentFilter,
            _ => pb::FinishReason::Other,
        };
        let mut message = agent_core::agent::text_message(pb::Role::Assistant, text);
        let kept = kept.into_iter().map(|part| pb::ContentPart { part: Some(pb::content_part::Part::Reasoning(part)) });
        message.content = kept.chain(message.content).collect();
        message.tool_calls = calls;
        pb::ChatResponse {
            message: Some(message),
            finish_reason: reason as i32,
            raw_finish_reason: self.finish,
            usage: self.usage,
            refusal,
            reasoning,
            provider_request_id: self.id,
            ..Default::default()
        }
    }
}

fn usage(usage: &Value) -> Option<pb::Usage> {
    let at = |path: &str| usage.pointer(path).and_then(Value::as_i64).unwrap_or(0).max(0);
    usage.is_object().then(|| pb::Usage {
        input_tokens: at("/input_tokens"),
        output_tokens: at("/output_tokens"),
        cached_tokens: at("/input_tokens_details/cached_tokens"),
        reasoning_tokens: at("/output_tokens_details/reasoning_tokens"),
        ..Default::default()
    })
}
