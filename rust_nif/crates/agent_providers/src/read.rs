//! The bytes of a response, with every limit on their size and their time.

use std::time::Instant;

use agent_core::AgentError;
use bytes::Bytes;

use crate::openai::AFTER_END;
use crate::transport::{Body, Reply};
use crate::{ProviderConfig, classify, sse};

/// Reads a body. Before the first content of a stream only `first_token` counts, from the head on; then `idle` between bytes and
/// `content_idle` between contents. Of a whole body `idle` is the longest gap.
pub(crate) struct Reader<'a> {
    pub(crate) config: &'a ProviderConfig,
    bytes: Body,
    /// Taken to see what form the body has.
    ahead: Option<Bytes>,
    streams: bool,
    read: usize,
    head: Instant,
    last_byte: Instant,
    last_content: Option<Instant>,
    ended: Option<Instant>,
}

impl<'a> Reader<'a> {
    /// `streams`: content is expected piece by piece.
    pub(crate) fn new(reply: Reply, config: &'a ProviderConfig, streams: bool) -> Self {
        let now = Instant::now();
        Self { config, bytes: reply.body, ahead: None, streams, read: 0, head: now, last_byte: now, last_content: None, ended: None }
    }

    /// Content has come.
    pub(crate) fn content(&mut self) {
        self.last_content = Some(Instant::now());
    }

    /// The end mark has come.
    pub(crate) fn end(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
    }

    fn limit(&self) -> (Instant, &'static str) {
        let t = &self.config.timeouts;
        let idle = (self.last_byte + t.idle, "idle");
        match (self.ended, self.last_content) {
            (Some(end), _) => (end + AFTER_END, "idle"),
            (None, Some(content)) => idle.min((content + t.content_idle, "content_idle")),
            (None, None) if self.streams => (self.head + t.first_token, "first_token"),
            (None, None) => idle,
        }
    }

    /// The next bytes; None at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        let (limit, phase) = self.limit();
        match tokio::time::timeout_at(limit.into(), self.bytes.next(self.config.max_body_bytes)).await {
            Ok(Ok(Some(chunk))) => {
                self.last_byte = Instant::now();
                self.read += chunk.len();
                if self.read > self.config.max_body_bytes { Err(classify::too_large(self.config.max_body_bytes)) } else { Ok(Some(chunk)) }
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(classify::silent(phase)),
        }
    }

    /// The first byte that says something: it tells JSON from HTML from events, better than the content type does.
    pub(crate) async fn form(&mut self) -> Result<u8, AgentError> {
        let mut seen = Vec::new();
        loop {
            let Some(chunk) = self.next().await? else { return Err(classify::bad("it is empty")) };
            seen.extend_from_slice(&chunk);
            let text = seen.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&seen);
            let first = text.iter().copied().find(|b| !b.is_ascii_whitespace());
            let waits = first.is_none() || (seen.len() < 3 && b"\xef\xbb\xbf".starts_with(&seen));
            if !waits {
                self.ahead = Some(seen.into());
                return Ok(first.unwrap_or(b' '));
            }
        }
    }

    /// The next events of a stream, and whether they are its last.
    pub(crate) async fn events(&mut self, decoder: &mut sse::Decoder) -> Result<(Vec<sse::Event>, bool), AgentError> {
        let chunk = self.next().await?;
        let events = match &chunk {
            Some(chunk) => decoder.feed(chunk),
            None => decoder.finish(),
        };
        let events = events.map_err(|broken| match broken {
            sse::Broken::TooLarge => classify::too_large(self.config.max_event_bytes),
            sse::Broken::NotUtf8 => classify::bad("an event is not UTF-8"),
        })?;
        Ok((events, chunk.is_none()))
    }

    /// The whole body.
    pub(crate) async fn all(&mut self) -> Result<Vec<u8>, AgentError> {
        // From here it is no stream: only gaps count.
        self.streams = false;
        let mut body = Vec::new();
        while let Some(chunk) = self.next().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
