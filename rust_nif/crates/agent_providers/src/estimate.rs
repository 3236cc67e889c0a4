//! The most that a request can be, in tokens, before anybody has counted it. No tokenizer makes more tokens than there are bytes.

use agent_proto::agents::v1 as pb;
use prost::Message;

/// Tokens of an image, at most: the dearest setting of the providers that say so stays below it.
const IMAGE_TOKENS: i64 = 4096;
/// What a provider puts around each message.
const MESSAGE_TOKENS: i64 = 16;
/// What a provider says to the model about tools and schemas of its own.
const TOOLS_TOKENS: i64 = 1024;
/// JSON text of a schema is at most so many times as long as what we keep of it.
const JSON_FACTOR: i64 = 2;

/// Longest answer of a model that does not say its own limit, where money is limited and the caller names none, in tokens.
pub(crate) const DEFAULT_OUTPUT_TOKENS: i64 = 4096;
/// A call that is left less than this is refused rather than cut short, in tokens.
pub(crate) const LEAST_OUTPUT_TOKENS: i64 = 16;

fn length(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX / 4)
}

/// Tokens of a chat request, at most.
pub(crate) fn chat(request: &pb::ChatRequest) -> i64 {
    let messages: i64 = request.messages.iter().map(|m| message(m) + MESSAGE_TOKENS).sum();
    let schemas: usize =
        request.tools.iter().map(Message::encoded_len).sum::<usize>() + request.output_schema.as_ref().map_or(0, Message::encoded_len);
    let around = if schemas == 0 { 0 } else { TOOLS_TOKENS };
    messages + JSON_FACTOR * length(schemas) + around + MESSAGE_TOKENS
}

fn message(message: &pb::Message) -> i64 {
    let images =
        message.content.iter().filter(|part| matches!(part.part, Some(pb::content_part::Part::Image(_)))).map(Message::encoded_len);
    let (count, bytes) = images.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
    length(message.encoded_len().saturating_sub(bytes)) + count * IMAGE_TOKENS
}

/// Tokens of texts to embed, at most.
pub(crate) fn embed(request: &pb::EmbedRequest) -> i64 {
    request.input.iter().map(|text| length(text.len()) + MESSAGE_TOKENS).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::agent::text_message;

    #[test]
    fn a_byte_is_at_most_a_token_and_an_image_is_not_counted_by_its_bytes() {
        let text = "ein Text — 中文".repeat(10);
        let mut request = pb::ChatRequest { messages: vec![text_message(pb::Role::User, text.clone())], ..Default::default() };
        let words = chat(&request);
        assert!(words >= i64::try_from(text.len()).unwrap() && words < 2 * i64::try_from(text.len()).unwrap() + 100);
        let image = pb::ImagePart { source: Some(pb::image_part::Source::Data(vec![0; 1_000_000])), ..Default::default() };
        request.messages[0].content.push(pb::ContentPart { part: Some(pb::content_part::Part::Image(image)) });
        assert!(chat(&request) < words + IMAGE_TOKENS + 100);
    }
}
