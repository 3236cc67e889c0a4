//! POST /v1/embeddings.

use agent_proto::agents::v1 as pb;
use agent_providers::Caller;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Door;
use crate::given::Given;
use crate::problem::Problem;
use crate::routes::{Answer, json_answer};

/// Texts of one call.
const MAX_INPUT: usize = 2048;

/// Answers a request. OpenAI's own client asks for base64 unless it is told otherwise.
pub(crate) async fn embed(door: &Door, caller: &Caller, body: Value) -> Result<Response<Answer>, Problem> {
    let mut g = Given::new("", body)?;
    let mut request = pb::EmbedRequest { model: g.text("model")?, ..Default::default() };
    request.input = g.texts("input")?;
    if request.input.is_empty() || request.input.len() > MAX_INPUT {
        return Err(g.wrong("input", &format!("must be a text, or 1 to {MAX_INPUT} of them")));
    }
    request.dimensions = g.tokens("dimensions")?.unwrap_or(0);
    let base64 = match g.text("encoding_format")?.as_str() {
        "" | "float" => false,
        "base64" => true,
        _ => return Err(g.wrong("encoding_format", "must be float or base64")),
    };
    g.ignore(&["user"]);
    g.end()?;
    let response = door.providers.embed(&request, caller, None).await?;
    let vector = |values: &[f32]| -> Value {
        if base64 { STANDARD.encode(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).into() } else { json!(values) }
    };
    let data = response.embeddings.iter().enumerate();
    let data: Value = data.map(|(n, e)| json!({"object": "embedding", "index": n, "embedding": vector(&e.values)})).collect();
    let tokens = response.usage.as_ref().map_or(0, |u| u.input_tokens);
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json_answer(StatusCode::OK, &json!({"object": "list", "data": data, "model": response.model, "usage": usage})))
}
