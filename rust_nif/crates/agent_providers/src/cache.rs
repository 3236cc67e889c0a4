//! Answers that are given again to equal calls of the same tenant, where the call asks for that. Bounded in bytes and in time; of several
//! equal calls at once one asks the provider, and the others wait for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use pb::stream_chat_response::Piece;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::{Caller, Pieces, Providers, config::CacheConfig, limit_of};

/// What an entry takes beside its answer, in bytes.
const ENTRY_BYTES: usize = 256;
/// An answer larger than this part of the cache is not kept.
const LARGEST_PART: usize = 8;
/// Longest piece of a stream that is played again, in bytes.
const PIECE_BYTES: usize = 1024;
/// Longest that an equal call is waited for where the call has no limit of its own.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

type Key = [u8; 32];
/// How a call that others wait for has ended: None as long as it has not.
type End = Option<Result<Arc<pb::ChatResponse>, AgentError>>;

struct Entry {
    answer: Arc<pb::ChatResponse>,
    until: Instant,
    bytes: usize,
    used: u64,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// Oldest use first.
    order: BTreeMap<u64, Key>,
    bytes: usize,
    clock: u64,
    flights: HashMap<Key, watch::Receiver<End>>,
}

/// All answers that are kept.
pub(crate) struct Cache {
    kept: Mutex<Kept>,
    ttl: Duration,
    max_bytes: usize,
}

/// What is to be done for a call.
enum Way {
    Hit(Arc<pb::ChatResponse>),
    /// Somebody else asks.
    Wait(watch::Receiver<End>),
    /// This call asks.
    Ask(watch::Sender<End>),
}

/// A call that others wait for: however it ends, it is not waited for any longer.
struct Flight<'a> {
    cache: &'a Cache,
    key: Key,
    end: watch::Sender<End>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // Only its own: after a cancel another one may fly.
        let mut kept = self.cache.kept.lock();
        if kept.flights.get(&self.key).is_some_and(|f| f.same_channel(&self.end.subscribe())) {
            kept.flights.remove(&self.key);
        }
    }
}

impl Cache {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        Self { kept: Mutex::default(), ttl: config.ttl, max_bytes: config.max_bytes }
    }

    fn way(&self, key: Key, now: Instant) -> Way {
        let mut kept = self.kept.lock();
        if let Some(answer) = kept.read(key, now) {
            return Way::Hit(answer);
        }
        match kept.flights.get(&key) {
            Some(flight) => Way::Wait(flight.clone()),
            None => {
                let (end, seen) = watch::channel(None);
                kept.flights.insert(key, seen);
                Way::Ask(end)
            }
        }
    }

    fn write(&self, key: Key, answer: &Arc<pb::ChatResponse>, now: Instant) {
        let bytes = answer.encoded_len() + ENTRY_BYTES;
        let whole = matches!(answer.finish_reason(), pb::FinishReason::Stop | pb::FinishReason::ToolCalls | pb::FinishReason::Length);
        if !whole || bytes > self.max_bytes / LARGEST_PART {
            return;
        }
        let mut kept = self.kept.lock();
        kept.remove(key);
        kept.clock += 1;
        let used = kept.clock;
        kept.entries.insert(key, Entry { answer: answer.clone(), until: now + self.ttl, bytes, used });
        kept.order.insert(used, key);
        kept.bytes += bytes;
        while kept.bytes > self.max_bytes {
            let Some((_, oldest)) = kept.order.first_key_value() else { break };
            let oldest = *oldest;
            kept.remove(oldest);
        }
    }
}

impl Kept {
    fn read(&mut self, key: Key, now: Instant) -> Option<Arc<pb::ChatResponse>> {
        let entry = self.entries.get_mut(&key)?;
        if now >= entry.until {
            self.remove(key);
            return None;
        }
        self.clock += 1;
        self.order.remove(&entry.used);
        entry.used = self.clock;
        self.order.insert(self.clock, key);
        Some(entry.answer.clone())
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// Calls of different tenants, or under rules that another provider might have to answer by, are never equal.
fn key(request: &pb::ChatRequest, tenant: &str) -> Key {
    let mut plain = request.clone();
    plain.timeout = None;
    plain.policy = request.policy.as_ref().map(|p| pb::CallPolicy {
        allowed_providers: p.allowed_providers.clone(),
        denied_providers: p.denied_providers.clone(),
        data_tags: p.data_tags.clone(),
        task_class: p.task_class.clone(),
        min_quality: p.min_quality,
        ..Default::default()
    });
    let mut hash = Sha256::new();
    hash.update((tenant.len() as u64).to_le_bytes());
    hash.update(tenant.as_bytes());
    hash.update(plain.encode_to_vec());
    hash.finalize().into()
}

/// A kept answer as a call's own: free, and marked.
fn hit(answer: &pb::ChatResponse, took: Duration) -> pb::ChatResponse {
    pb::ChatResponse {
        cache_hit: true,
        cost_micros: Some(0),
        attempts: Vec::new(),
        provider_request_id: String::new(),
        selection_reason: "an equal call of the tenant was answered before".to_owned(),
        latency: Some(agent_core::header::duration(i64::try_from(took.as_millis()).unwrap_or(i64::MAX))),
        ..answer.clone()
    }
}

/// Plays an answer as a stream.
async fn replay(answer: &pb::ChatResponse, pieces: &Pieces) {
    let text = answer.message.as_ref().map(agent_core::agent::text_of).unwrap_or_default();
    let calls = answer.message.iter().flat_map(|m| &m.tool_calls).enumerate();
    let calls = calls.map(|(at, c)| pb::ToolCallDelta {
        index: i32::try_from(at).unwrap_or(i32::MAX),
        id: c.id.clone(),
        name: c.name.clone(),
        arguments: c.arguments.clone(),
    });
    let all = parts(&answer.reasoning).map(|t| Piece::ReasoningDelta(t.to_owned()));
    let all = all.chain(parts(&text).map(|t| Piece::TextDelta(t.to_owned()))).chain(calls.map(Piece::ToolCallDelta));
    for piece in all.chain([Piece::Final(answer.clone())]) {
        if pieces.send(pb::StreamChatResponse { piece: Some(piece) }).await.is_err() {
            return;
        }
    }
}

fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let mut end = text.len().min(PIECE_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let (part, rest) = text.split_at(end);
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

/// Whether a call wants an answer that is kept, or its own to be kept.
pub(crate) fn asked_for(policy: &pb::CallPolicy) -> bool {
    matches!(policy.cache(), pb::CacheMode::Use | pb::CacheMode::Refresh)
}

/// Whether an error says something about the call itself rather than about who made it.
fn shared(error: &AgentError) -> bool {
    error.reason != Reason::BudgetExhausted && error.metadata.get("phase").is_none_or(|p| p != "deadline")
}

impl Providers {
    /// One model call. With `pieces` the answer is streamed there too; its last piece is the whole answer. Where `policy.cache` is USE, the
    /// answer of an equal call of the tenant is given again, free and marked `cache_hit`; else see `asked`.
    pub async fn chat(
        &self,
        request: &pb::ChatRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        pieces: Option<&Pieces>,
    ) -> Result<pb::ChatResponse, AgentError> {
        let Some(policy) = request.policy.as_ref().filter(|p| asked_for(p)) else {
            return self.asked(request, caller, deadline, pieces).await;
        };
        let mode = policy.cache();
        let (key, started) = (key(request, &caller.tenant), Instant::now());
        let until = started + limit_of(request, deadline, LONGEST_WAIT);
        let found = loop {
            let way = if mode == pb::CacheMode::Use { self.cache.way(key, Instant::now()) } else { Way::Ask(watch::channel(None).0) };
            let mut seen = match way {
                Way::Hit(answer) => break answer,
                Way::Ask(end) => {
                    let flight = Flight { cache: &self.cache, key, end };
                    let result = self.asked(request, caller, deadline, pieces).await.map(Arc::new);
                    if let Ok(answer) = &result {
                        self.cache.write(key, answer, Instant::now());
                    }
                    flight.end.send_replace(Some(result.clone()));
                    drop(flight);
                    return result.map(Arc::unwrap_or_clone);
                }
                Way::Wait(seen) => seen,
            };
            let Ok(ended) = tokio::time::timeout_at(until.into(), seen.wait_for(Option::is_some)).await else {
                let error = AgentError::new(Reason::ProviderTimeout, "the equal call that was waited for has not ended in time");
                return Err(error.with("phase", "deadline").with("kind", "timeout"));
            };
            // An error of the channel: that call was cancelled, and another one may ask now.
            match ended.ok().and_then(|end| end.clone()) {
                Some(Ok(answer)) => break answer,
                Some(Err(error)) if shared(&error) => return Err(error),
                Some(Err(_)) | None => {}
            }
        };
        let answer = hit(&found, started.elapsed());
        if let Some(pieces) = pieces {
            replay(&answer, pieces).await;
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Arc<pb::ChatResponse> {
        let message = agent_core::agent::text_message(pb::Role::Assistant, text.to_owned());
        Arc::new(pb::ChatResponse { message: Some(message), finish_reason: pb::FinishReason::Stop as i32, ..Default::default() })
    }

    #[test]
    fn entries_go_with_their_time_and_the_least_used_with_the_room() {
        let cache = Cache::new(&CacheConfig { ttl: Duration::from_secs(60), max_bytes: 10_000 });
        let (now, text) = (Instant::now(), "x".repeat(800));
        for n in 0..9u8 {
            cache.write([n; 32], &answer(&text), now);
        }
        assert!(cache.kept.lock().read([0; 32], now).is_some(), "used");
        for n in 9..14u8 {
            cache.write([n; 32], &answer(&text), now);
        }
        let mut kept = cache.kept.lock();
        assert!(kept.bytes <= 10_000 && kept.entries.len() == kept.order.len());
        assert!(kept.read([0; 32], now).is_some() && kept.read([1; 32], now).is_none());
        assert!(kept.read([13; 32], now + Duration::from_secs(61)).is_none(), "too old");
        drop(kept);
        cache.write([99; 32], &answer(&"x".repeat(5000)), now);
        assert!(cache.kept.lock().read([99; 32], now).is_none(), "too large");
    }

    #[test]
    fn only_equal_calls_of_one_tenant_are_equal() {
        let ask = |text: &str| pb::ChatRequest {
            model: "m".into(),
            messages: vec![agent_core::agent::text_message(pb::Role::User, text.to_owned())],
            ..Default::default()
        };
        assert_eq!(key(&ask("a"), "t"), key(&pb::ChatRequest { timeout: Some(agent_core::header::duration(5)), ..ask("a") }, "t"));
        let others = [key(&ask("b"), "t"), key(&ask("a"), "u"), key(&pb::ChatRequest { seed: Some(1), ..ask("a") }, "t")];
        assert!(others.iter().all(|other| *other != key(&ask("a"), "t")));
        let text = "ä".repeat(1500);
        assert_eq!(parts(&text).collect::<String>(), text);
        assert!(parts(&text).all(|p| p.len() <= PIECE_BYTES) && parts("").next().is_none());
    }
}
