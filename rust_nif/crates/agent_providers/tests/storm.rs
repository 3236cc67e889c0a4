//! Many calls through upstreams that refuse, cut, are slow and fall over: each call ends exactly once, the bill is what the upstreams counted,
//! and the health view tells the story. 2,000 calls; `STORM_CALLS=10000` makes it the whole run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use futures::StreamExt as _;
use pb::stream_chat_response::Piece;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Calls under way at once.
const AT_ONCE: usize = 48;
/// The closed set of kinds.
const KINDS: [&str; 17] = [
    "connect",
    "timeout",
    "rate_limit",
    "overloaded",
    "quota",
    "auth",
    "invalid_request",
    "not_found",
    "context_length",
    "request_too_large",
    "content_filter",
    "server_error",
    "cut",
    "bad_response",
    "response_too_large",
    "cancelled",
    "other",
];

/// What an upstream has counted: requests for chat, and tokens of the answers that it sent whole.
#[derive(Default)]
struct Upstream {
    down: AtomicBool,
    requests: AtomicU64,
    input: AtomicI64,
    output: AtomicI64,
}

enum Act {
    Refuse(&'static str, &'static str),
    Cut,
    Slow,
    Answer,
}

impl Upstream {
    fn act(&self, n: u64) -> Act {
        if self.down.load(Ordering::SeqCst) {
            return Act::Refuse("500 Down", "");
        }
        match n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54 {
            0..30 => Act::Refuse("429 Too Many Requests", "retry-after-ms: 20\r\n"),
            30..50 => Act::Refuse("529 Overloaded", "retry-after-ms: 20\r\n"),
            50..60 => Act::Refuse("500 Broken", ""),
            60..80 => Act::Cut,
            80..90 => Act::Slow,
            _ => Act::Answer,
        }
    }

    /// Plays one request; false: the connection is closed.
    async fn answer(&self, stream: &mut TcpStream, streams: bool) -> std::io::Result<bool> {
        let n = self.requests.fetch_add(1, Ordering::SeqCst);
        let act = self.act(n);
        if let Act::Refuse(status, headers) = act {
            let body = r#"{"error":{"message":"not now"}}"#;
            let head = format!("HTTP/1.1 {status}\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
            return Ok(true);
        }
        if let Act::Slow = act {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (input, output) = (i64::try_from(10 + n % 7).unwrap(), i64::try_from(3 + n % 5).unwrap());
        let usage = json!({"prompt_tokens": input, "completion_tokens": output});
        let body = if streams {
            let delta = |text: &str, end: Value| json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": end}]});
            let last = json!({"choices": [], "usage": usage});
            format!("data: {}\n\ndata: {}\n\ndata: {last}\n\ndata: [DONE]\n\n", delta("Hel", Value::Null), delta("lo.", json!("stop")))
        } else {
            json!({"choices": [{"index": 0, "message": {"content": "Hello."}, "finish_reason": "stop"}], "usage": usage}).to_string()
        };
        let kind = if streams { "text/event-stream" } else { "application/json" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        let whole = !matches!(act, Act::Cut);
        // A stream is cut before, or behind, its first content.
        let sent = if whole { body.as_str() } else { &body[..if n.is_multiple_of(2) { 4 } else { body.len() / 3 }] };
        stream.write_all(format!("{head}{sent}").as_bytes()).await?;
        if whole {
            self.input.fetch_add(input, Ordering::SeqCst);
            self.output.fetch_add(output, Ordering::SeqCst);
        }
        Ok(whole)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut bytes = Vec::new();
        let mut buffer = [0u8; 8192];
        loop {
            let end = loop {
                if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                    break end + 4;
                }
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    n => bytes.extend_from_slice(&buffer[..n]),
                }
            };
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:")).map_or(0, |v| v.trim().parse().unwrap());
            while bytes.len() < end + length {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    n => bytes.extend_from_slice(&buffer[..n]),
                }
            }
            let body: Value = serde_json::from_slice(&bytes[end..end + length]).unwrap_or(Value::Null);
            bytes.drain(..end + length);
            if head.starts_with("get ") {
                let status = if self.down.load(Ordering::SeqCst) { "500 Down" } else { "200 OK" };
                stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes()).await?;
            } else if !self.answer(&mut stream, body["stream"] == true).await? {
                stream.shutdown().await?;
                return Ok(());
            }
        }
    }

    async fn start() -> (Arc<Self>, String) {
        let (upstream, listener) = (Arc::new(Self::default()), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap().to_string();
        let shared = upstream.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().serve(stream));
            }
        });
        (upstream, address)
    }
}

/// What a call has come to.
struct End {
    result: Result<pb::ChatResponse, AgentError>,
    finals: usize,
}

async fn call(providers: &Providers, n: usize) -> End {
    let messages = vec![agent_core::agent::text_message(pb::Role::User, format!("Call {n}"))];
    let request = pb::ChatRequest { model: "m".into(), messages, max_tokens: Some(16), ..Default::default() };
    // Some hundred tenants: each may repeat a part of its calls.
    let caller = Caller { tenant: format!("tenant {}", n % 300), ..Default::default() };
    if n.is_multiple_of(2) {
        return End { result: providers.chat(&request, &caller, None, None).await, finals: 0 };
    }
    let (send, mut receive) = tokio::sync::mpsc::channel(16);
    let gather = async {
        let mut finals = 0;
        while let Some(piece) = receive.recv().await {
            let piece: pb::StreamChatResponse = piece;
            finals += usize::from(matches!(piece.piece, Some(Piece::Final(_))));
        }
        finals
    };
    let chat = async move { providers.chat(&request, &caller, None, Some(&send)).await };
    let (result, finals) = tokio::join!(chat, gather);
    End { result, finals }
}

/// What all calls came to.
#[derive(Default)]
struct Sum {
    calls: usize,
    good: usize,
    attempts: BTreeMap<String, u64>,
    paid_micros: i64,
    by_kind: BTreeMap<String, usize>,
}

impl Sum {
    fn add(&mut self, n: usize, end: &End) {
        self.calls += 1;
        match &end.result {
            Ok(response) => {
                self.good += 1;
                assert_eq!(end.finals, n % 2, "a stream ends with the whole answer, once");
                assert!(response.attempts.last().is_some_and(|a| a.outcome == "ok"));
                let known = response.attempts.iter().all(|a| a.cost_micros.is_some());
                assert_eq!(response.cost_micros.is_some(), known, "a sum is known where all of its parts are");
                for a in &response.attempts {
                    *self.attempts.entry(a.outcome.clone()).or_default() += 1;
                    self.paid_micros += if a.outcome == "ok" { a.cost_micros.unwrap() } else { 0 };
                    let free = !matches!(a.outcome.as_str(), "ok" | "cut" | "timeout" | "bad_response");
                    assert!(!free || a.cost_micros == Some(0), "a refusal is free: {a:?}");
                }
            }
            Err(error) => {
                assert_eq!(end.finals, 0, "no answer behind an error");
                let kind = error.metadata["kind"].clone();
                assert!(KINDS.contains(&kind.as_str()), "{error:?}");
                for kind in error.metadata["attempt_kinds"].split(',') {
                    *self.attempts.entry(kind.to_owned()).or_default() += 1;
                }
                let told = format!("{kind} ({} after {})", error.metadata["provider"], error.metadata["attempt_kinds"]);
                *self.by_kind.entry(told).or_default() += 1;
            }
        }
    }
}

async fn phase(providers: &Providers, from: usize, calls: usize, sum: &mut Sum) {
    let ends = futures::stream::iter((from..from + calls).map(|n| async move { (n, call(providers, n).await) }));
    let mut ends = ends.buffer_unordered(AT_ONCE);
    while let Some((n, end)) = ends.next().await {
        sum.add(n, &end);
    }
}

fn view(providers: &Providers, name: &str) -> pb::Provider {
    providers.list().into_iter().find(|p| p.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_ends_once_and_the_bill_is_what_the_upstreams_counted() {
    let calls: usize = std::env::var("STORM_CALLS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let (mut upstreams, mut configured, mut endpoints) = (Vec::new(), json!({}), Vec::new());
    for (name, priority) in [("p", 1), ("q", 1), ("r", 2)] {
        let (upstream, address) = Upstream::start().await;
        configured[name] = json!({"dialect": "openai", "base_url": format!("http://{address}/v1"), "max_wait_ms": 2000});
        endpoints.push(json!({"provider": name, "name": "m", "priority": priority}));
        upstreams.push((name, upstream));
    }
    let prices = json!([{"valid_from": "2026-01-01", "input_micros": 1_000_000, "output_micros": 2_000_000}]);
    let config: ProvidersConfig =
        serde_json::from_value(json!({"providers": configured, "models": {"m": {"endpoints": endpoints, "prices": prices}}})).unwrap();
    let providers = Providers::new(&config).unwrap();
    let (third, mut sum, started) = (calls / 3, Sum::default(), Instant::now());

    phase(&providers, 0, third, &mut sum).await;
    // Two of three fall over: their breakers open, and the third one serves.
    for (_, upstream) in &upstreams[..2] {
        upstream.down.store(true, Ordering::SeqCst);
    }
    let before = view(&providers, "r").requests;
    phase(&providers, third, third, &mut sum).await;
    assert_eq!((view(&providers, "p").breaker.as_str(), view(&providers, "q").breaker.as_str()), ("open", "open"));
    assert!(view(&providers, "r").requests - before > i64::try_from(third / 2).unwrap(), "the other one serves");
    // They recover; nobody calls.
    for (_, upstream) in &upstreams[..2] {
        upstream.down.store(false, Ordering::SeqCst);
    }
    let recovered = Instant::now();
    while ["p", "q"].iter().any(|name| view(&providers, name).breaker == "open") {
        assert!(recovered.elapsed() < Duration::from_secs(25), "they are probed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = view(&providers, "p").requests + view(&providers, "q").requests;
    phase(&providers, 2 * third, calls - 2 * third, &mut sum).await;
    assert!(view(&providers, "p").requests + view(&providers, "q").requests > before, "they serve again");

    assert_eq!(sum.calls, calls);
    assert!(sum.good * 100 > calls * 90, "{} of {calls} were answered; {:?}", sum.good, sum.by_kind);
    let (mut asked, mut bill) = (0, 0);
    for (name, upstream) in &upstreams {
        let (shown, tokens) = (view(&providers, name), view(&providers, name).tokens.unwrap());
        let counted = (upstream.input.load(Ordering::SeqCst), upstream.output.load(Ordering::SeqCst));
        assert_eq!((tokens.input_tokens, tokens.output_tokens), counted, "tokens of {name}");
        assert_eq!(u64::try_from(shown.requests).unwrap(), upstream.requests.load(Ordering::SeqCst), "requests of {name}");
        asked += upstream.requests.load(Ordering::SeqCst);
        bill += counted.0 + 2 * counted.1;
    }
    assert_eq!(sum.paid_micros, bill, "the bill");
    assert_eq!(sum.attempts.values().sum::<u64>(), asked, "every request is told: {:?}", sum.attempts);
    println!(
        "{calls} calls in {:?}, {} answered, {bill} micro-dollars, attempts {:?}, errors {:?}",
        started.elapsed(),
        sum.good,
        sum.attempts,
        sum.by_kind
    );
}
