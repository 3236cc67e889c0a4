//! Anthropic's wire: messages.

mod answer;
mod request;
mod stream;

use agent_providers::Caller;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::problem::Problem;
use crate::routes::{Answer, event_answer, json_answer};
use crate::{Door, call};

/// POST /v1/messages.
pub(crate) async fn messages(door: &Door, caller: Caller, body: Value) -> Result<Response<Answer>, Problem> {
    let (request, stream) = request::read(body)?;
    if !stream {
        let response = call::whole(&door.providers, &request, &caller).await?;
        return Ok(call::signed(json_answer(StatusCode::OK, &answer::message(&response)), &response));
    }
    let mut writer = stream::Events::new(&request.model);
    let (first, call) = call::begin(door, request, caller).await?;
    let mut begun = writer.start();
    call::Writer::piece(&mut writer, first, &mut begun);
    Ok(event_answer(call.written(begun, writer)))
}
