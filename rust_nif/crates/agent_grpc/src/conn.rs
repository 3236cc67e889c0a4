//! A connection: plain or TLS, its permits, and its clocks. hyper has neither a limit for the preface nor one for idleness.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

/// Submits of one connection between decode and commit.
const PERMITS: usize = 64;
/// Length of what an HTTP/2 client says first.
const PREFACE_BYTES: usize = 24;
/// A read of more bytes than this is somebody's request: the answer to a ping has 17, a window update 13.
const SMALL_TALK_BYTES: usize = 30;

/// How long a connection may say nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// From the accept (or the handshake) to the whole preface.
    pub(crate) preface: Duration,
    /// Without a request under way.
    pub(crate) idle: Duration,
}

/// What requests know of their connection.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) permits: Arc<Semaphore>,
    activity: Arc<Activity>,
}

struct Activity {
    open: AtomicUsize,
    last: Mutex<Instant>,
}

impl Connection {
    fn new() -> Self {
        let activity = Activity { open: AtomicUsize::new(0), last: Mutex::new(Instant::now()) };
        Self { permits: Arc::new(Semaphore::new(PERMITS)), activity: Arc::new(activity) }
    }

    /// While this is held the connection is not idle, however silent it is. None for a request that came by no connection of ours.
    pub(crate) fn open<T>(request: &tonic::Request<T>) -> Option<Open> {
        let activity = &request.extensions().get::<Self>()?.activity;
        activity.open.fetch_add(1, Ordering::Relaxed);
        Some(Open(activity.clone()))
    }
}

/// A call that may take long; dropped with its answer.
pub(crate) struct Open(Arc<Activity>);

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.last.lock() = Instant::now();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// The stream with its clocks.
pub(crate) struct Io {
    stream: Stream,
    connection: Connection,
    clocks: Clocks,
    clock: Pin<Box<Sleep>>,
    /// Bytes of the preface that are still to come.
    preface: usize,
    _slot: OwnedSemaphorePermit,
}

impl Io {
    pub(crate) fn new(stream: Stream, clocks: Clocks, slot: OwnedSemaphorePermit) -> Self {
        let clock = Box::pin(tokio::time::sleep(clocks.preface));
        Self { stream, connection: Connection::new(), clocks, clock, preface: PREFACE_BYTES, _slot: slot }
    }

    /// Whether the connection has said nothing for too long: an error before the preface, the end of the stream after it.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            ready!(self.clock.as_mut().poll(cx));
            if self.preface > 0 {
                return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
            }
            let activity = &self.connection.activity;
            let silent = if activity.open.load(Ordering::Relaxed) > 0 { Duration::ZERO } else { activity.last.lock().elapsed() };
            match self.clocks.idle.checked_sub(silent) {
                Some(left) if !left.is_zero() => self.clock.as_mut().reset(Instant::now() + left),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Connected for Io {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

macro_rules! forward {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Plain($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        };
        if read.is_pending() {
            return this.poll_clock(cx);
        }
        let bytes = buf.filled().len() - before;
        if bytes > SMALL_TALK_BYTES {
            *this.connection.activity.last.lock() = Instant::now();
        }
        if this.preface > 0 {
            this.preface = this.preface.saturating_sub(bytes);
            if this.preface == 0 {
                this.clock.as_mut().reset(Instant::now() + this.clocks.idle);
            }
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        forward!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        forward!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        forward!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(clocks: Clocks) -> (TcpStream, Io) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (client, Io::new(Stream::Plain(server), clocks, slot))
    }

    const CLOCKS: Clocks = Clocks { preface: Duration::from_millis(100), idle: Duration::from_millis(300) };

    #[tokio::test]
    async fn a_preface_that_does_not_come_whole_is_an_error() {
        let (mut client, mut io) = pair(CLOCKS).await;
        client.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let mut got = Vec::new();
        assert_eq!(io.read_to_end(&mut got).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(got, b"PRI * HTTP/2.0");
    }

    #[tokio::test]
    async fn an_idle_connection_ends_and_one_with_a_request_does_not() {
        let (mut client, mut io) = pair(CLOCKS).await;
        client.write_all(&[0; PREFACE_BYTES]).await.unwrap();
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(io.connect_info());
        let request = Connection::open(&request).unwrap();
        let mut got = vec![0; PREFACE_BYTES];
        io.read_exact(&mut got).await.unwrap();
        let began = Instant::now();
        let longer = CLOCKS.idle * 2;
        assert!(tokio::time::timeout(longer, io.read(&mut got)).await.is_err(), "a request is under way");
        drop(request);
        assert_eq!(io.read(&mut got).await.unwrap(), 0);
        assert!(began.elapsed() >= longer + CLOCKS.idle);
    }
}
