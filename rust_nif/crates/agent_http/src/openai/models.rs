//! GET /v1/models.

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Door;
use crate::problem::Problem;
use crate::routes::{Answer, json_answer};

fn shown(model: &pb::Model) -> Value {
    let owner = model.endpoints.first().and_then(|e| e.split_once('/')).map_or("singularity", |(provider, _)| provider);
    json!({"id": model.name, "object": "model", "created": 0, "owned_by": owner})
}

/// All models and aliases.
pub(crate) fn models(door: &Door) -> Response<Answer> {
    let all: Value = door.providers.list_models().iter().map(shown).collect();
    json_answer(StatusCode::OK, &json!({"object": "list", "data": all}))
}

/// One of them.
pub(crate) fn model(door: &Door, name: &str) -> Result<Response<Answer>, Problem> {
    let found = door.providers.list_models().into_iter().find(|model| model.name == name);
    let missing = || AgentError::new(Reason::ModelNotFound, "there is no such model here; GET /v1/models lists them");
    Ok(json_answer(StatusCode::OK, &shown(&found.ok_or_else(missing)?)))
}
