//! An answer that broke off is gone on with elsewhere: who may, and with which question.
//!
//! The other endpoint is given the text so far as the beginning of its own answer. That works for text only, with models that go on with
//! what they are given (`prefill`), and among models of one family, which would have said it in the same way.

use agent_core::agent::text_message;
use agent_proto::agents::v1 as pb;
use pb::content_part::Part;

use crate::candidates::{BYTES_PER_TOKEN, Choice};
use crate::flow::Flow;

/// How an answer goes on.
pub(crate) struct Onward {
    /// The endpoint, among the choices.
    pub(crate) at: usize,
    /// What it is asked.
    pub(crate) request: pb::ChatRequest,
}

/// Whether a call allows it.
pub(crate) fn wanted(policy: Option<&pb::CallPolicy>) -> bool {
    policy.is_some_and(|p| p.stream_policy() == pb::StreamPolicy::Resume)
}

/// How the answer that `choices[at]` broke off goes on; None: it cannot.
pub(crate) fn onward(request: &pb::ChatRequest, choices: &[Choice], at: usize, flow: &Flow<'_>) -> Option<Onward> {
    let text = flow.plain_text().filter(|_| request.output_schema.is_none())?;
    let broken = choices.get(at)?;
    let next = (at + 1..choices.len()).find(|&n| choices[n].goes_on_with(broken))?;
    Some(Onward { at: next, request: rest(request, &text) })
}

/// The question whose answer has begun. Blanks at its end are left out, since providers refuse them there.
fn rest(request: &pb::ChatRequest, text: &str) -> pb::ChatRequest {
    let mut rest = request.clone();
    let begun = i64::try_from(text.len()).unwrap_or(i64::MAX) / BYTES_PER_TOKEN;
    rest.max_tokens = request.max_tokens.map(|most| i32::try_from((i64::from(most) - begun).max(1)).unwrap_or(most));
    let begun = text.trim_end();
    if !begun.is_empty() {
        rest.messages.push(text_message(pb::Role::Assistant, begun.to_owned()));
    }
    rest
}

/// The whole answer, of its beginning and its end.
pub(crate) fn joined(response: &mut pb::ChatResponse, flow: &Flow<'_>) {
    let (Some((text, seam)), Some(message)) = (flow.joined(), response.message.as_mut()) else { return };
    let others = std::mem::take(&mut message.content).into_iter().filter(|part| !matches!(part.part, Some(Part::Text(_))));
    message.content = [pb::ContentPart { part: Some(Part::Text(text)) }].into_iter().chain(others).collect();
    response.resumed_at = i64::try_from(seam).unwrap_or(i64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_begins_with_what_was_said_and_has_the_tokens_that_are_left() {
        let request = pb::ChatRequest {
            messages: vec![text_message(pb::Role::User, "Count.".to_owned())],
            max_tokens: Some(10),
            ..Default::default()
        };
        let asked = rest(&request, "one, two, \n");
        assert_eq!(asked.messages.len(), 2);
        assert_eq!(asked.messages[1], text_message(pb::Role::Assistant, "one, two,".to_owned()));
        assert_eq!((asked.max_tokens, rest(&request, &"x".repeat(400)).max_tokens), (Some(8), Some(1)));
        assert_eq!(rest(&request, "  ").messages.len(), 1);
    }
}
