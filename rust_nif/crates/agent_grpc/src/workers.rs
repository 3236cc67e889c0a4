//! `WorkerService`: a worker on another machine, its frames carried both ways. What they say is the engine's business.
//!
//! The worker's side is read as fast as the engine takes frames: a bounded channel each way, and behind it the window of HTTP/2.

use std::pin::Pin;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::conn::Connection;
use crate::{Reply, Shared, ok, to_status};

/// Largest frame, header included; refused by its length on both sides.
pub(crate) const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Frames that may wait in a direction; credit holds the counted ones below 64.
const FRAMES: usize = 128;

/// A worker on another machine. Dropped, its call ends.
#[derive(Debug)]
pub struct Attached {
    /// Frames of the worker, without their length; the end of the channel is the end of the worker's stream.
    pub incoming: mpsc::Receiver<Vec<u8>>,
    /// Frames to the worker.
    pub outgoing: mpsc::Sender<Vec<u8>>,
}

/// The service.
pub(crate) struct Workers(pub(crate) Shared);

#[tonic::async_trait]
impl pb::worker_service_server::WorkerService for Workers {
    type AttachStream = Pin<Box<dyn futures::Stream<Item = Result<pb::AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<pb::AttachRequest>>) -> Reply<Self::AttachStream> {
        self.0.auth.worker(request.metadata()).map_err(|e| to_status(&e))?;
        // A worker is silent as long as it likes.
        let open = Connection::open(&request);
        let mut frames = request.into_inner();
        let (up, incoming) = mpsc::channel(FRAMES);
        let (outgoing, down) = mpsc::channel(FRAMES);
        self.0
            .engine
            .attach(Attached { incoming, outgoing })
            .map_err(|_| to_status(&AgentError::new(Reason::QueueFull, "too many requests wait for the engine").retry_after(100)))?;
        tokio::spawn(async move {
            let _open = open;
            // The engine's end of it gone, nobody reads: the stream to the worker ends by the same drop.
            while let Ok(Some(message)) = frames.message().await {
                if up.send(message.frame).await.is_err() {
                    return;
                }
            }
        });
        ok(Box::pin(ReceiverStream::new(down).map(|frame| Ok(pb::AttachResponse { frame }))))
    }
}
