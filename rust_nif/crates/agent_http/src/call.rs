//! A model call as a stream of pieces that is answered only once it has begun: until then an error is a status.

use std::pin::Pin;
use std::task::{Context, Poll};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers};
use bytes::Bytes;
use http::{HeaderValue, Response};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Door;
use crate::problem::Problem;
use crate::routes::Answer;

/// Pieces that may wait for a slow reader.
const PIECES: usize = 64;
/// Bytes of events that go into one write at most.
const WRITE_BYTES: usize = 16 * 1024;

/// How pieces are written on a wire.
pub(crate) trait Writer: Send + Unpin + 'static {
    /// Adds the events of a piece.
    fn piece(&mut self, piece: pb::stream_chat_response::Piece, out: &mut Vec<u8>);
    /// Adds what follows an error in the middle: nothing comes after it.
    fn broken(&mut self, error: AgentError, out: &mut Vec<u8>);
}

/// A call under way. Dropped, it ends its HTTP request.
///
/// It is a task of its own: a client that reads slowly must not keep the limits of the call from ending it.
pub(crate) struct Call {
    task: JoinHandle<Result<pb::ChatResponse, AgentError>>,
    pieces: mpsc::Receiver<pb::StreamChatResponse>,
    ended: bool,
}

/// The whole answer.
pub(crate) async fn whole(providers: &Providers, request: &pb::ChatRequest, caller: &Caller) -> Result<pb::ChatResponse, Problem> {
    if let Some(now) = providers.chat_now(request, caller) {
        return Ok(now);
    }
    Ok(providers.chat(request, caller, None, None).await?)
}

/// Begins a call and waits for its first piece. Errors: whatever ends it before.
pub(crate) async fn begin(
    door: &Door,
    request: pb::ChatRequest,
    caller: Caller,
) -> Result<(pb::stream_chat_response::Piece, Call), Problem> {
    let providers = door.providers.clone();
    let (sender, pieces) = mpsc::channel(PIECES);
    let task = tokio::spawn(async move { providers.chat(&request, &caller, None, Some(&sender)).await });
    let mut call = Call { task, pieces, ended: false };
    match std::future::poll_fn(|cx| call.next(cx)).await {
        Some(Ok(piece)) => Ok((piece, call)),
        Some(Err(e)) => Err(e.into()),
        None => Err(AgentError::new(Reason::Internal, "the call ended without an answer").into()),
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Call {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<pb::stream_chat_response::Piece, AgentError>>> {
        loop {
            match self.pieces.poll_recv(cx) {
                Poll::Ready(Some(pb::StreamChatResponse { piece: Some(piece) })) => return Poll::Ready(Some(Ok(piece))),
                Poll::Ready(Some(_)) => {}
                Poll::Pending => return Poll::Pending,
                // The sender lives in the call: it has ended, or is about to say how.
                Poll::Ready(None) if self.ended => return Poll::Ready(None),
                Poll::Ready(None) => {
                    let result = std::task::ready!(Pin::new(&mut self.task).poll(cx));
                    self.ended = true;
                    let result = result.unwrap_or_else(|_| Err(AgentError::new(Reason::NativePanic, "the call ended without an answer")));
                    return Poll::Ready(result.err().map(Err));
                }
            }
        }
    }

    /// The rest of the answer as bytes. What one read of the provider's answer brought shares a write.
    pub(crate) fn written(mut self, begun: Vec<u8>, mut writer: impl Writer) -> impl futures::Stream<Item = Bytes> + Send + 'static {
        let (mut out, mut over) = (begun, false);
        futures::stream::poll_fn(move |cx| {
            while !over && out.len() < WRITE_BYTES {
                match self.next(cx) {
                    Poll::Ready(Some(Ok(piece))) => writer.piece(piece, &mut out),
                    Poll::Ready(Some(Err(e))) => {
                        writer.broken(e, &mut out);
                        over = true;
                    }
                    Poll::Ready(None) => over = true,
                    Poll::Pending => break,
                }
            }
            match (out.is_empty(), over) {
                (false, _) => Poll::Ready(Some(Bytes::from(std::mem::take(&mut out)))),
                (true, true) => Poll::Ready(None),
                (true, false) => Poll::Pending,
            }
        })
    }
}

/// Says in the head of an answer who served it and what it cost.
pub(crate) fn signed(mut response: Response<Answer>, of: &pb::ChatResponse) -> Response<Answer> {
    let headers = response.headers_mut();
    for (name, value) in [("x-singularity-provider", &of.provider), ("x-singularity-model", &of.model)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    if let Some(cost) = of.cost_micros {
        headers.insert("x-singularity-cost-micros", HeaderValue::from(cost));
    }
    response
}

/// Adds JSON text of a string, with its quotes.
pub(crate) fn quoted(text: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}
