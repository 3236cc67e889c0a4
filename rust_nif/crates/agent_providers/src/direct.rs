//! HTTP/1.1 without TLS, driven by the call that waits for it.
//!
//! A client in general gives each connection a task of its own, and every piece of an answer then changes tasks twice on its way to the call.
//! Here the call polls its connection itself, and takes whatever one read has brought at once. Between calls connections wait in a pool,
//! where nothing polls them; they are looked at when they are taken, and every few seconds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tower::Service as _;

use crate::client::{GATHER, IDLE, IDLE_CONNECTIONS, TCP_KEEPALIVE};
use crate::unpack::{Unpacker, Unreadable};

/// Between two looks at what waits in the pool.
const LOOK: Duration = Duration::from_secs(10);

/// Why there is no answer, or no more of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// There is no connection to be had.
    Connect,
    /// The connection broke before the answer.
    Broke,
    /// The address is none.
    Address,
    /// The answer ended too early, or cannot be read.
    Cut,
    /// It unpacks to too many bytes.
    TooLarge,
}

/// Where a request goes: parts of an address `http://host:port/path`.
#[derive(Debug)]
pub(crate) struct Target {
    /// Host and port, as the header `host` names them.
    authority: String,
    path: Uri,
    whole: Uri,
}

impl Target {
    /// None: it is no address for this client.
    pub(crate) fn of(address: &str) -> Option<Result<Self, Failed>> {
        let url = match reqwest::Url::parse(address) {
            Ok(url) if url.scheme() == "http" && url.username().is_empty() && url.password().is_none() => url,
            _ => return None,
        };
        let host = url.host_str()?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let parsed = || Some(Self { path: path.parse().ok()?, whole: format!("http://{authority}").parse().ok()?, authority });
        Some(parsed().ok_or(Failed::Address))
    }
}

/// A connection between two requests, or with one.
struct Line {
    authority: String,
    sender: http1::SendRequest<Full<Bytes>>,
    connection: http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
    ended: bool,
    since: Instant,
}

impl Line {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended {
            self.ended = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }

    /// Whether it takes another request, as far as is known now.
    fn is_free(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.ended && self.sender.is_ready()
    }
}

#[derive(Default)]
struct Idle {
    lines: Vec<Line>,
    watched: bool,
}

/// The connections of one provider.
pub(crate) struct Pool {
    connector: HttpConnector,
    connect_timeout: Duration,
    idle: Mutex<Idle>,
}

/// A request without its address.
pub(crate) struct Sent {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Pool {
    pub(crate) fn new(connect_timeout: Duration) -> Arc<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        connector.set_keepalive_interval(Some(TCP_KEEPALIVE));
        connector.set_connect_timeout(Some(connect_timeout));
        Arc::new(Self { connector, connect_timeout, idle: Mutex::default() })
    }

    fn take(&self, authority: &str) -> Option<Line> {
        let mut idle = self.idle.lock();
        while let Some(at) = idle.lines.iter().rposition(|l| l.authority == authority) {
            let mut line = idle.lines.remove(at);
            if line.since.elapsed() < IDLE && line.is_free() {
                return Some(line);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if it takes one.
    fn keep(self: &Arc<Self>, mut line: Line) {
        if !line.is_free() {
            return;
        }
        line.since = Instant::now();
        let mut idle = self.idle.lock();
        if idle.lines.iter().filter(|l| l.authority == line.authority).count() >= IDLE_CONNECTIONS {
            return;
        }
        idle.lines.push(line);
        // No runtime: it is being stopped, and the pool with it.
        if let (false, Ok(runtime)) = (idle.watched, tokio::runtime::Handle::try_current()) {
            idle.watched = true;
            runtime.spawn(Self::watch(Arc::downgrade(self)));
        }
    }

    /// Closes what has waited too long or was closed by the other side, until nothing waits.
    async fn watch(pool: std::sync::Weak<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(pool) = pool.upgrade() else { return };
            let mut idle = pool.idle.lock();
            idle.lines.retain_mut(|line| line.since.elapsed() < IDLE && line.is_free());
            if idle.lines.is_empty() {
                idle.watched = false;
                return;
            }
        }
    }

    async fn connect(&self, target: &Target) -> Result<Line, Failed> {
        let mut connector = self.connector.clone();
        let connecting = async {
            std::future::poll_fn(|cx| connector.poll_ready(cx)).await.ok()?;
            connector.call(target.whole.clone()).await.ok()
        };
        let io = tokio::time::timeout(self.connect_timeout, connecting).await.ok().flatten().ok_or(Failed::Connect)?;
        let (sender, connection) = http1::handshake(io).await.map_err(|_| Failed::Connect)?;
        Ok(Line { authority: target.authority.clone(), sender, connection, ended: false, since: Instant::now() })
    }

    /// Sends a request and waits for the head of its answer. A kept connection that turns out to be closed before anything was written
    /// is replaced by another one; nothing else is repeated.
    pub(crate) async fn send(
        self: &Arc<Self>,
        target: &Target,
        sent: &Sent,
        limit: usize,
    ) -> Result<(StatusCode, HeaderMap, Body), Failed> {
        let mut headers = sent.headers.clone();
        headers.insert(header::HOST, target.authority.parse().map_err(|_| Failed::Address)?);
        loop {
            let kept = self.take(&target.authority);
            let (mut line, again) = match kept {
                Some(line) => (line, true),
                None => (self.connect(target).await?, false),
            };
            let mut request = Request::new(Full::new(sent.body.clone()));
            *request.method_mut() = sent.method.clone();
            *request.uri_mut() = target.path.clone();
            *request.headers_mut() = headers.clone();
            let mut answer = std::pin::pin!(line.sender.try_send_request(request));
            let (connection, ended) = (&mut line.connection, &mut line.ended);
            let answer = std::future::poll_fn(|cx| {
                if !*ended {
                    *ended = Pin::new(&mut *connection).poll(cx).is_ready();
                }
                answer.as_mut().poll(cx)
            });
            match answer.await {
                Ok(response) => {
                    let (head, incoming) = response.into_parts();
                    let unpacker = head
                        .headers
                        .get(header::CONTENT_ENCODING)
                        .and_then(|encoding| encoding.to_str().ok())
                        .and_then(|encoding| Unpacker::of(encoding, limit));
                    let body = Body { pool: self.clone(), under_way: Some((incoming, line)), unpacker, failed: None };
                    return Ok((head.status, head.headers, body));
                }
                Err(mut e) => {
                    if !again || e.take_message().is_none() {
                        return Err(Failed::Broke);
                    }
                }
            }
        }
    }
}

/// The body of an answer. Dropped before its end, it closes its connection, unless the end is there already.
pub(crate) struct Body {
    pool: Arc<Pool>,
    under_way: Option<(Incoming, Line)>,
    unpacker: Option<Unpacker>,
    /// Said after what came before it.
    failed: Option<Failed>,
}

impl Body {
    /// Whatever is there; waits for something. None at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failed>> {
        loop {
            if let Some(failed) = self.failed.take() {
                self.under_way = None;
                return Poll::Ready(Err(failed));
            }
            if self.under_way.is_none() {
                return Poll::Ready(Ok(None));
            }
            let (bytes, pending) = self.gather(cx);
            let ended = self.under_way.is_none() && self.failed.is_none();
            let bytes = match &mut self.unpacker {
                None => Ok(bytes),
                Some(unpacker) => unpacker.feed(&bytes).and_then(|bytes| if ended { joined(bytes, unpacker.finish()?) } else { Ok(bytes) }),
            };
            match bytes {
                Ok(bytes) if !bytes.is_empty() => return Poll::Ready(Ok(Some(bytes))),
                Ok(_) if pending => return Poll::Pending,
                Ok(_) => {}
                Err(Unreadable::TooLarge) => self.failed = Some(Failed::TooLarge),
                Err(Unreadable::Damaged) => self.failed = Some(Failed::Cut),
            }
        }
    }

    /// All that has come, and whether more is waited for.
    fn gather(&mut self, cx: &mut Context<'_>) -> (Bytes, bool) {
        let Some((incoming, line)) = &mut self.under_way else { return (Bytes::new(), false) };
        let (mut first, mut all, mut driven) = (Bytes::new(), BytesMut::new(), false);
        let pending = loop {
            match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    driven = false;
                    let Ok(data) = frame.into_data() else { continue };
                    if first.is_empty() && all.is_empty() {
                        first = data;
                    } else {
                        all.extend_from_slice(&std::mem::take(&mut first));
                        all.extend_from_slice(&data);
                    }
                    if first.len() + all.len() >= GATHER {
                        break false;
                    }
                }
                Poll::Ready(Some(Err(_))) => {
                    self.failed = Some(Failed::Cut);
                    break false;
                }
                Poll::Ready(None) => {
                    if let Some((_, line)) = self.under_way.take() {
                        self.pool.keep(line);
                    }
                    break false;
                }
                Poll::Pending if driven => break true,
                // What the connection has read, it gives piece by piece.
                Poll::Pending => {
                    line.drive(cx);
                    driven = true;
                }
            }
        };
        (if all.is_empty() { first } else { all.freeze() }, pending)
    }
}

fn joined(first: Bytes, rest: Bytes) -> Result<Bytes, Unreadable> {
    Ok(if rest.is_empty() { first } else { [first, rest].concat().into() })
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some((incoming, line)) = self.under_way.take() {
            // Without its reader the connection takes an end that is there already, and closes otherwise.
            drop(incoming);
            self.pool.keep(line);
        }
    }
}
