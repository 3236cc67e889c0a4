//! How requests reach a provider: by the call's own connection where that is plain HTTP/1.1, else by the client that can everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::AgentError;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Method, StatusCode};

use crate::client::GATHER;
use crate::direct::{self, Failed, Pool, Sent, Target};
use crate::{ProviderConfig, classify, client};

/// A piece of an answer waits for others so long at most.
const SHARE: Duration = Duration::from_millis(1);

/// The clients of one provider.
pub(crate) struct Http {
    shared: reqwest::Client,
    /// With the headers of each request; none: a proxy may stand between.
    direct: Option<(Arc<Pool>, HeaderMap)>,
    max_body_bytes: usize,
}

/// The head of an answer, and where its body comes from.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

/// The bytes of an answer, unpacked.
pub(crate) enum Body {
    Shared(Shared),
    Direct(Box<direct::Body>),
}

/// A body that another task reads.
pub(crate) struct Shared {
    bytes: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    /// The end that was seen while pieces were gathered.
    end: Option<Option<reqwest::Error>>,
}

impl Http {
    /// The clients of a configuration; the error names the key that is wrong.
    pub(crate) fn new(config: &ProviderConfig, may_be_direct: bool) -> Result<Self, String> {
        let direct = match may_be_direct && client::is_direct(config) {
            true => Some((Pool::new(config.timeouts.connect), client::every_headers(config)?)),
            false => None,
        };
        Ok(Self { shared: client::client(config)?, direct, max_body_bytes: config.max_body_bytes })
    }

    /// The same without what may be wrong: for a provider that cannot be asked anyway.
    pub(crate) fn bare(config: &ProviderConfig) -> Result<Self, String> {
        Ok(Self { shared: client::bare(config)?, direct: None, max_body_bytes: config.max_body_bytes })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&self, method: Method, address: &str, headers: HeaderMap, body: Bytes) -> Result<Reply, AgentError> {
        if let Some((pool, every)) = &self.direct
            && let Some(target) = Target::of(address)
        {
            let mut all = every.clone();
            all.extend(headers);
            let sent = Sent { method, headers: all, body };
            let target = target.map_err(|e| failed(&e, self.max_body_bytes))?;
            let (status, headers, body) =
                pool.send(&target, &sent, self.max_body_bytes).await.map_err(|e| failed(&e, self.max_body_bytes))?;
            return Ok(Reply { status, headers, body: Body::Direct(Box::new(body)) });
        }
        let request = self.shared.request(method, address).headers(headers).body(body);
        let response = request.send().await.map_err(|e| classify::transport(&e, false))?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Reply { status, headers, body: Body::Shared(Shared { bytes: response.bytes_stream().boxed(), end: None }) })
    }
}

impl Body {
    /// The next bytes; None at the end.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Bytes>, AgentError> {
        match self {
            Self::Shared(shared) => shared.next().await.map_err(|e| classify::transport(&e, true)),
            Self::Direct(body) => body.next().await.map_err(|e| failed(&e, limit)),
        }
    }
}

impl Shared {
    /// The next bytes, and those that come at once with them: the other task gives a piece only when the last one is taken.
    async fn next(&mut self) -> Result<Option<Bytes>, reqwest::Error> {
        let first = match self.end.take() {
            Some(end) => return end.map_or(Ok(None), Err),
            None => self.bytes.next().await.transpose()?,
        };
        let (Some(first), began) = (first, Instant::now()) else { return Ok(None) };
        let mut all = BytesMut::new();
        while self.end.is_none() && first.len() + all.len() < GATHER && began.elapsed() < SHARE {
            tokio::task::yield_now().await;
            match self.bytes.next().now_or_never() {
                Some(Some(Ok(more))) => {
                    if all.is_empty() {
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&more);
                }
                Some(Some(Err(e))) => self.end = Some(Some(e)),
                Some(None) => self.end = Some(None),
                None => break,
            }
        }
        Ok(Some(if all.is_empty() { first } else { all.freeze() }))
    }
}

fn failed(failed: &Failed, limit: usize) -> AgentError {
    match failed {
        Failed::Connect => classify::unreachable(),
        Failed::Broke => classify::broke(),
        Failed::Address => classify::no_address(),
        Failed::Cut => classify::cut(),
        Failed::TooLarge => classify::too_large(limit),
    }
}
