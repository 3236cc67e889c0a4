//! What a dialect cannot say: refused by the name of its field, or told as said otherwise. Nothing is left out in silence.

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use base64::Engine as _;
use pb::content_part::Part;
use sha2::{Digest as _, Sha256};

/// Longest id of an end user that is sent as it is, in bytes; what is longer is sent as its digest.
const LONGEST_END_USER: usize = 64;

/// UNSUPPORTED_FIELD of a field that this provider has no word for.
pub(crate) fn refused(provider: &str, field: &str, why: &str) -> AgentError {
    AgentError::new(Reason::UnsupportedField, format!("{field}: {why} by the provider {provider}; leave it out or choose another provider"))
        .with("field", field)
        .with("kind", "invalid_request")
}

/// INVALID_FIELD of a field that no provider could be sent.
pub(crate) fn invalid(field: &str, why: &str) -> AgentError {
    AgentError::new(Reason::InvalidField, format!("{field}: {why}")).with("field", field).with("kind", "invalid_request")
}

/// `change` is `translated`, `emulated` or `dropped`.
pub(crate) fn note(path: &str, change: &str, detail: &str) -> pb::Translation {
    pb::Translation { path: path.into(), change: change.into(), detail: detail.into() }
}

/// Refuses images where the dialect takes text only, and a choice of tools without tools. `images`: roles that may show images.
pub(crate) fn unsendable(provider: &str, request: &pb::ChatRequest, images: &[pb::Role]) -> Result<(), AgentError> {
    for (at, m) in request.messages.iter().enumerate() {
        for part in &m.content {
            let Some(Part::Image(image)) = &part.part else { continue };
            let field = format!("messages[{at}].content");
            let role = if m.role() == pb::Role::Unspecified { pb::Role::User } else { m.role() };
            if image.source.is_none() {
                return Err(invalid(&field, "an image has neither data nor a uri"));
            }
            if !images.contains(&role) {
                return Err(refused(provider, &field, "an image in a message of this role is not supported"));
            }
        }
    }
    match request.tool_choice.as_str() {
        "" | "auto" | "none" => Ok(()),
        "required" if !request.tools.is_empty() => Ok(()),
        name if request.tools.iter().any(|t| t.name == name) => Ok(()),
        _ => Err(invalid("tool_choice", "the call has no tool of that name")),
    }
}

/// The effort, if one is asked for. Error: INVALID_FIELD where it is no word of the contract.
pub(crate) fn effort(request: &pb::ChatRequest) -> Result<Option<&str>, AgentError> {
    match request.reasoning_effort.as_str() {
        "" => Ok(None),
        word @ ("minimal" | "low" | "medium" | "high") => Ok(Some(word)),
        _ => Err(invalid("reasoning_effort", "minimal, low, medium or high")),
    }
}

/// An end user as the provider may know it.
pub(crate) fn end_user(id: &str) -> (String, Option<pb::Translation>) {
    if id.len() <= LONGEST_END_USER {
        return (id.to_owned(), None);
    }
    (digest(id), Some(note("end_user", "translated", "it is too long there: its digest is sent")))
}

/// Notes of the reasoning that is not sent; `sent` says which is.
pub(crate) fn dropped_thinking(request: &pb::ChatRequest, sent: impl Fn(&pb::ReasoningPart) -> bool) -> Vec<pb::Translation> {
    let thinks = |m: &pb::Message| m.content.iter().any(|p| matches!(&p.part, Some(Part::Reasoning(r)) if !sent(r)));
    let messages = request.messages.iter().enumerate().filter(|(_, m)| thinks(m));
    messages
        .map(|(at, _)| note(&format!("messages[{at}].content"), "dropped", "thinking of another provider means nothing to this one"))
        .collect()
}

/// An image as a URL: its own, or its data in one.
pub(crate) fn image_url(image: &pb::ImagePart) -> Option<String> {
    Some(match image.source.as_ref()? {
        pb::image_part::Source::Uri(uri) => uri.clone(),
        pb::image_part::Source::Data(data) => {
            format!("data:{};base64,{}", image.media_type, base64::engine::general_purpose::STANDARD.encode(data))
        }
    })
}

/// Half of a SHA-256, in hexadecimal.
pub(crate) fn digest(text: &str) -> String {
    agent_core::hash::hex(&Sha256::digest(text.as_bytes())[..16])
}
