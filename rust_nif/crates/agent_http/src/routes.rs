//! Paths.

use std::pin::Pin;

use agent_core::{AgentError, Reason};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use serde_json::Value;

use crate::problem::{Problem, Wire};
use crate::{Door, admit, anthropic, metrics, openai};

/// The body of an answer.
pub(crate) type Answer = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Answers a request, whatever it is.
pub(crate) async fn answer(door: &Door, request: Request<Incoming>) -> Response<Answer> {
    let wire = if request.uri().path().starts_with("/v1/messages") { Wire::Anthropic } else { Wire::OpenAi };
    routed(door, request).await.unwrap_or_else(|problem| problem.answer(wire))
}

async fn routed(door: &Door, request: Request<Incoming>) -> Result<Response<Answer>, Problem> {
    admit::no_page(request.headers(), &door.origins)?;
    let caller = admit::caller(door, request.headers())?;
    let path = request.uri().path().to_owned();
    match path.trim_end_matches('/') {
        "/v1/chat/completions" => {
            admit::method(&request, &Method::POST)?;
            openai::chat(door, caller, admit::body(request).await?).await
        }
        "/v1/embeddings" => {
            admit::method(&request, &Method::POST)?;
            openai::embed(door, &caller, admit::body(request).await?).await
        }
        "/v1/messages" => {
            admit::method(&request, &Method::POST)?;
            anthropic::messages(door, caller, admit::body(request).await?).await
        }
        "/metrics" => {
            admit::method(&request, &Method::GET)?;
            Ok(metrics::answer(&door.providers.spending(&caller.tenant), &caller.tenant))
        }
        "/v1/models" => {
            admit::method(&request, &Method::GET)?;
            Ok(openai::models(door))
        }
        other => match other.strip_prefix("/v1/models/") {
            Some(name) => {
                admit::method(&request, &Method::GET)?;
                openai::model(door, name)
            }
            None => Err(Problem::new(
                StatusCode::NOT_FOUND,
                AgentError::new(
                    Reason::InvalidField,
                    "there are /v1/chat/completions, /v1/embeddings, /v1/models, /v1/messages and /metrics here, and nothing else",
                ),
            )),
        },
    }
}

/// An answer of one JSON value.
pub(crate) fn json_answer(status: StatusCode, value: &Value) -> Response<Answer> {
    bytes_answer(status, serde_json::to_vec(value).unwrap_or_default())
}

/// An answer whose JSON is written already.
pub(crate) fn bytes_answer(status: StatusCode, json: Vec<u8>) -> Response<Answer> {
    let mut response = Response::new(Full::from(json).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer in events, from whatever gives them.
pub(crate) fn event_answer(events: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Answer> {
    let mut response = Response::new(Events(Box::pin(events)).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Events<S>(Pin<Box<S>>);

impl<S: futures::Stream<Item = Bytes>> Body for Events<S> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.as_mut().poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
