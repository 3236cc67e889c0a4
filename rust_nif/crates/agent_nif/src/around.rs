//! The steps around a run (`agent_core::around`) for Erlang. What reads a whole conversation or answer runs on a dirty scheduler; whether
//! there is anything to read is asked inline.

use std::sync::Arc;

use agent_core::around::{self, Checked};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;
use rustler::{Binary, Encoder, Env, ResourceArc, Term};

use crate::atoms;
use crate::providers::ProvidersHandle;
use crate::pure::Payload;
use crate::terms::{self, Bin};

/// Messages of the conversation that a task brings.
#[rustler::nif]
fn task_history(payload: ResourceArc<Payload>) -> usize {
    payload.task.context.as_ref().map_or(0, |c| c.conversation_history.len())
}

/// The window of a model in tokens; 0: nobody has said it.
#[rustler::nif]
fn providers_window(handle: ResourceArc<ProvidersHandle>, model: Binary<'_>) -> usize {
    std::str::from_utf8(model.as_slice()).map_or(0, |model| handle.providers.window(model))
}

/// Who would answer a call of a worker under its task's rules, without asking anybody: the encoded answer.
#[rustler::nif]
fn providers_select<'a>(env: Env<'a>, handle: ResourceArc<ProvidersHandle>, request: Binary<'a>, rules: Binary<'a>) -> Term<'a> {
    let (Ok(request), Ok(rules)) = (pb::SelectProviderRequest::decode(request.as_slice()), pb::CallPolicy::decode(rules.as_slice())) else {
        return terms::error_tuple(env, &AgentError::new(Reason::WorkerProtocolError, "malformed request for a choice"));
    };
    match handle.providers.select(&request.requirements.unwrap_or_default(), rules) {
        Ok(choice) => (atoms::ok(), Bin(&choice.encode_to_vec())).encode(env),
        Err(e) => terms::error_tuple(env, &e),
    }
}

fn with_task(payload: &Payload, task: pb::AgentTask) -> ResourceArc<Payload> {
    ResourceArc::new(Payload { header: payload.header.clone(), task: Arc::new(task), answers: payload.answers.clone() })
}

/// The task with a conversation that the model can read: `{trimmed, Payload, LeftOut, Of}`, or `same`.
#[rustler::nif(schedule = "DirtyCpu")]
fn task_trim<'a>(env: Env<'a>, payload: ResourceArc<Payload>, agent: Binary<'a>, window: usize, percent: usize) -> Term<'a> {
    let agent = pb::Agent::decode(agent.as_slice()).unwrap_or_default();
    match around::trim(&payload.task, &agent.instructions, window, percent) {
        None => atoms::same().encode(env),
        Some(cut) => (atoms::trimmed(), with_task(&payload, cut.task), cut.left_out, cut.of).encode(env),
    }
}

/// Whether a task says which form its answer shall have.
#[rustler::nif]
fn task_has_schema(payload: ResourceArc<Payload>) -> bool {
    payload.task.requirements.as_ref().is_some_and(|r| r.output_schema.is_some())
}

/// Holds an encoded answer against the task's schema: `fits`, `{read, Result}` or `{misfit, PayloadOfTheRepair, Why}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn result_check<'a>(env: Env<'a>, payload: ResourceArc<Payload>, result: Binary<'a>) -> Term<'a> {
    let Ok(result) = pb::AgentResult::decode(result.as_slice()) else {
        return terms::error_tuple(env, &AgentError::new(Reason::WorkerProtocolError, "malformed result"));
    };
    match around::check(&payload.task, &result) {
        Checked::Fits => atoms::fits().encode(env),
        Checked::Read(read) => (atoms::read(), Bin(&read.encode_to_vec())).encode(env),
        Checked::Misfit(problem) => {
            (atoms::misfit(), with_task(&payload, around::repair(&payload.task, &result, &problem)), problem).encode(env)
        }
    }
}

/// An answer with what its repair says.
#[rustler::nif(schedule = "DirtyCpu")]
fn result_repaired<'a>(env: Env<'a>, result: Binary<'a>, by: Binary<'a>) -> Term<'a> {
    let decoded = |b: &Binary<'_>| pb::AgentResult::decode(b.as_slice()).unwrap_or_default();
    Bin(&around::repaired(decoded(&result), decoded(&by)).encode_to_vec()).encode(env)
}
