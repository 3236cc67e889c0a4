//! OpenAI's wire: chat completions, embeddings, models.

mod answer;
mod embed;
mod models;
mod request;
mod stream;

use agent_providers::Caller;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::problem::Problem;
use crate::routes::{Answer, bytes_answer, event_answer};
use crate::{Door, call};

pub(crate) use answer::text_of;
pub(crate) use embed::embed;
pub(crate) use models::{model, models};
pub(crate) use request::{image_data, image_part, schema, text};

/// POST /v1/chat/completions.
pub(crate) async fn chat(door: &Door, caller: Caller, body: Value) -> Result<Response<Answer>, Problem> {
    let asked = request::read(body)?;
    if !asked.stream {
        let response = call::whole(&door.providers, &asked.request, &caller).await?;
        return Ok(call::signed(bytes_answer(StatusCode::OK, answer::completion(&response)), &response));
    }
    let mut writer = stream::Chunks::new(&asked.request.model, asked.include_usage);
    let (first, call) = call::begin(door, asked.request, caller).await?;
    let mut begun = writer.role();
    call::Writer::piece(&mut writer, first, &mut begun);
    Ok(event_answer(call.written(begun, writer)))
}

/// Seconds since the epoch.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A fresh id with OpenAI's prefix.
fn id() -> String {
    format!("chatcmpl-{}", uuid::Uuid::now_v7().simple())
}
