//! Plays every case of `tests/vectors/provider_cases` over real HTTP on loopback.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use base64::Engine as _;
use pb::stream_chat_response::Piece;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

/// Keys of `expect` that nothing compares yet.
const NOT_YET: [(&str, &str); 1] = [("extra_keys", "an answer has no place for what only its provider says")];
/// Keys that are compared.
const COMPARED: [&str; 27] = [
    "fault",
    "upstream_closed_within_ms",
    "provider_request_id",
    "translation",
    "blocks",
    "quarantine",
    "backup_attempts",
    "restarts",
    "outcome",
    "error_kind",
    "attempts",
    "attempt_kinds",
    "text",
    "reasoning",
    "refusal",
    "partial_text",
    "tool_calls",
    "finish_reason",
    "raw_finish_reason",
    "usage",
    "phase",
    "message_contains",
    "wait_ms",
    "retry_after_ms",
    "max_total_ms",
    "first_text_max_ms",
    "stray",
];
/// Read together with the requests.
const SENT: &str = "sent";

/// The key of the scripted provider. It may stand in a header and nowhere else.
const KEY: &str = "sk-canary-0123456789";

type Seen = Arc<Mutex<Vec<Value>>>;

/// What times of requests are counted from.
static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn cases() -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../tests/vectors/provider_cases");
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .map(|p| (p.file_stem().unwrap().to_string_lossy().into_owned(), serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap()))
        .collect();
    all.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
    all
}

// ---- the scripted provider

fn fill(text: &str, host: &str) -> String {
    let mut out = text.replace("{{host}}", host).replace("{{alt_host}}", &host.replace("127.0.0.1", "localhost"));
    while let Some(start) = out.find("{{") {
        let Some(end) = out[start..].find("}}").map(|n| start + n) else { break };
        let (name, shift) = out[start + 2..end].split_at(out[start + 2..end].find(['+', '-']).unwrap_or(end - start - 2));
        let at = SystemTime::now() + Duration::from_secs(1_000_000);
        let seconds: i64 = shift.trim_start_matches('+').parse().unwrap_or(0);
        let at = at.checked_add(Duration::from_secs(u64::try_from(seconds + 1_000_000).unwrap())).unwrap() - Duration::from_secs(2_000_000);
        let value = match name {
            "http_date" => httpdate::fmt_http_date(at),
            "rfc3339" => prost_types::Timestamp::from(at).to_string(),
            "unix" => at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string(),
            other => panic!("unknown template {other}"),
        };
        out.replace_range(start..end + 2, &value);
    }
    out
}

fn ms(v: &Value, key: &str) -> Duration {
    Duration::from_millis(v.get(key).and_then(Value::as_u64).unwrap_or(0))
}

/// Reads one request; None when the client has gone.
async fn request(stream: &mut OwnedReadHalf) -> Option<Value> {
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let headers: serde_json::Map<String, Value> = head
                .lines()
                .skip(1)
                .filter_map(|l| l.split_once(':'))
                .map(|(k, v)| (k.to_lowercase(), Value::String(v.trim().to_owned())))
                .collect();
            let length: usize = headers.get("content-length").and_then(Value::as_str).and_then(|v| v.parse().ok()).unwrap_or(0);
            while bytes.len() < end + 4 + length {
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
                    _ => return None,
                }
            }
            let body = serde_json::from_slice(&bytes[end + 4..end + 4 + length]).unwrap_or(Value::Null);
            return Some(json!({"line": head.lines().next().unwrap_or_default(), "headers": headers, "body": body}));
        }
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

fn whole_body(x: &Value, host: &str) -> Option<Vec<u8>> {
    if let Some(b64) = x.get("body_b64").and_then(Value::as_str) {
        return Some(base64::engine::general_purpose::STANDARD.decode(b64).unwrap());
    }
    if let Some(r) = x.get("body_repeat") {
        let text = |k: &str| r.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let count = usize::try_from(r["count"].as_u64().unwrap()).unwrap();
        return Some(format!("{}{}{}", text("prefix"), text("unit").repeat(count), text("suffix")).into_bytes());
    }
    x.get("body").map(|b| match b {
        Value::String(s) => fill(s, host).into_bytes(),
        other => fill(&other.to_string(), host).into_bytes(),
    })
}

fn head(status: u64, reason: &str, headers: &[(String, String)]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} {reason}\r\n");
    for (k, v) in headers {
        out.push_str(&format!("{k}: {v}\r\n"));
    }
    out.push_str("\r\n");
    out.into_bytes()
}

fn own_headers(x: &Value, host: &str) -> Vec<(String, Option<String>)> {
    let mut out = Vec::new();
    for (k, v) in x.get("headers").and_then(Value::as_object).into_iter().flatten() {
        match v {
            Value::Null => out.push((k.to_lowercase(), None)),
            Value::Array(all) => out.extend(all.iter().map(|v| (k.to_lowercase(), Some(fill(v.as_str().unwrap(), host))))),
            v => out.push((k.to_lowercase(), Some(fill(v.as_str().unwrap(), host)))),
        }
    }
    out
}

/// Plays one exchange; false: the connection is done with.
async fn answer(stream: &mut OwnedWriteHalf, x: &Value, host: &str) -> std::io::Result<bool> {
    let then = x.get("then").and_then(Value::as_str).unwrap_or("end");
    if let Some(status) = x.get("status").and_then(Value::as_u64) {
        for early in x.get("early").and_then(Value::as_array).into_iter().flatten() {
            tokio::time::sleep(ms(early, "delay_ms")).await;
            let own: Vec<_> = own_headers(early, host).into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
            stream.write_all(&head(early["status"].as_u64().unwrap(), "Early", &own)).await?;
        }
        tokio::time::sleep(ms(x, "head_delay_ms")).await;
        let mut body = whole_body(x, host);
        let chunks = x.get("chunks").and_then(Value::as_array);
        let framing = x.get("framing").and_then(Value::as_str).unwrap_or(if chunks.is_some() { "chunked" } else { "length" });
        let gzip = x.get("gzip").and_then(Value::as_bool).unwrap_or(false);
        if let (true, Some(plain)) = (gzip, &body) {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(plain)?;
            body = Some(packer.finish()?);
        }
        let kind = match (&body, chunks) {
            (Some(b), _) if b.starts_with(b"<") => "text/html",
            (_, Some(_)) => "text/event-stream",
            _ => "application/json",
        };
        let mut headers =
            vec![("date".to_owned(), httpdate::fmt_http_date(SystemTime::now())), ("content-type".to_owned(), kind.to_owned())];
        match framing {
            "chunked" => headers.push(("transfer-encoding".into(), "chunked".into())),
            "length" => {
                let n = x.get("content_length").and_then(Value::as_u64).unwrap_or(body.as_ref().map_or(0, |b| b.len() as u64));
                headers.push(("content-length".into(), n.to_string()));
            }
            _ => headers.push(("connection".into(), "close".into())),
        }
        if gzip {
            headers.push(("content-encoding".into(), "gzip".into()));
        }
        for (k, v) in own_headers(x, host) {
            headers.retain(|(have, _)| *have != k);
            headers.extend(v.map(|v| (k, v)));
        }
        let reason = x.get("reason").and_then(Value::as_str).unwrap_or("Scripted");
        let mut bytes = head(status, reason, &headers);
        if let Some(cut) = x.get("head_cut_bytes").and_then(Value::as_u64) {
            bytes.truncate(usize::try_from(cut).unwrap());
            stream.write_all(&bytes).await?;
        } else if x.get("head_line_delay_ms").is_some() {
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                stream.write_all(line).await?;
                tokio::time::sleep(ms(x, "head_line_delay_ms")).await;
            }
        } else {
            stream.write_all(&bytes).await?;
        }
        if let Some(body) = body {
            stream.write_all(&body).await?;
        }
        let mut packer = gzip.then(|| flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for chunk in chunks.into_iter().flatten() {
            let data = match chunk.get("b64").and_then(Value::as_str) {
                Some(b64) => base64::engine::general_purpose::STANDARD.decode(b64).unwrap(),
                None => fill(chunk["data"].as_str().unwrap(), host).into_bytes(),
            };
            let split = chunk.get("split").and_then(Value::as_u64).map_or(data.len().max(1), |n| usize::try_from(n).unwrap());
            for _ in 0..chunk.get("repeat").and_then(Value::as_u64).unwrap_or(1) {
                tokio::time::sleep(ms(chunk, "delay_ms")).await;
                for part in data.chunks(split) {
                    let part = match &mut packer {
                        Some(p) => {
                            p.write_all(part)?;
                            p.flush()?;
                            std::mem::take(p.get_mut())
                        }
                        None => part.to_vec(),
                    };
                    if framing == "chunked" {
                        let mut framed = format!("{:x}\r\n", part.len()).into_bytes();
                        framed.extend_from_slice(&part);
                        framed.extend_from_slice(b"\r\n");
                        stream.write_all(&framed).await?;
                    } else {
                        stream.write_all(&part).await?;
                    }
                }
            }
        }
        tokio::time::sleep(ms(x, "then_delay_ms")).await;
        if let (Some(p), "end") = (packer, then) {
            let rest = p.finish()?;
            stream.write_all(format!("{:x}\r\n", rest.len()).as_bytes()).await?;
            stream.write_all(&rest).await?;
            stream.write_all(b"\r\n").await?;
        }
        if then == "end" && framing == "chunked" {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        if then == "end" && framing != "close" {
            return Ok(true);
        }
    } else {
        tokio::time::sleep(ms(x, "then_delay_ms")).await;
    }
    match then {
        "reset" => {
            #[allow(deprecated)]
            stream.as_ref().set_linger(Some(Duration::ZERO))?;
        }
        "hang" => std::future::pending().await,
        _ => stream.shutdown().await?,
    }
    Ok(false)
}

/// Until the client has closed the connection.
async fn gone(stream: &mut OwnedReadHalf) {
    // Something to read is the next request, which is not ours.
    if stream.peek(&mut [0]).await.is_ok_and(|n| n > 0) {
        std::future::pending().await
    }
}

async fn serve(listener: TcpListener, exchanges: Vec<Value>, seen: Seen) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (exchanges, seen) = (exchanges.clone(), seen.clone());
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let (mut from, mut to) = stream.into_split();
            while let Some(mut got) = request(&mut from).await {
                got["at_ms"] = u64::try_from(START.elapsed().as_millis()).unwrap().into();
                let number = {
                    let mut all = seen.lock().await;
                    all.push(got);
                    all.len() - 1
                };
                // A request beyond the script gets no answer; the number of requests is compared.
                let Some(x) = exchanges.get(number) else { return };
                let more = tokio::select! {
                    more = answer(&mut to, x, &host) => more,
                    () = gone(&mut from) => Err(std::io::ErrorKind::BrokenPipe.into()),
                };
                if more.is_err() {
                    seen.lock().await[number]["closed_at_ms"] = u64::try_from(START.elapsed().as_millis()).unwrap().into();
                }
                if !more.unwrap_or(false) {
                    return;
                }
            }
        });
    }
}

// ---- the request, and what came of it

fn chat_request(case: &Value) -> pb::ChatRequest {
    let r = &case["request"];
    let mut request = pb::ChatRequest { model: "m".into(), ..Default::default() };
    if r.get("stream_policy").is_some_and(|p| p == "restart") {
        let policy = pb::CallPolicy { stream_policy: pb::StreamPolicy::Restart as i32, ..Default::default() };
        request.policy = Some(policy);
    }
    let text = |role: pb::Role, content: &Value| agent_core::agent::text_message(role, content.as_str().unwrap_or_default().to_owned());
    if let Some(system) = r.get("system") {
        request.messages.push(text(pb::Role::System, system));
    }
    for m in r["messages"].as_array().unwrap() {
        let mut made = match m["role"].as_str().unwrap() {
            "user" => text(pb::Role::User, &m["content"]),
            "assistant" => text(pb::Role::Assistant, &m["content"]),
            "tool" => text(pb::Role::Tool, &m["content"]),
            other => panic!("role {other}"),
        };
        for image in m.get("images").and_then(Value::as_array).into_iter().flatten() {
            let s = |k: &str| image.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
            let source = match image.get("uri") {
                Some(_) => pb::image_part::Source::Uri(s("uri")),
                None => pb::image_part::Source::Data(base64::engine::general_purpose::STANDARD.decode(s("data")).unwrap()),
            };
            let part = pb::content_part::Part::Image(pb::ImagePart { media_type: s("media_type"), source: Some(source) });
            made.content.push(pb::ContentPart { part: Some(part) });
        }
        made.tool_call_id = m.get("tool_call_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        for part in m.get("reasoning").and_then(Value::as_array).into_iter().flatten() {
            let s = |k: &str| part.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
            // The scripted provider is named "p" here, and by its dialect in the cases.
            let provider = if part["provider"] == case["dialect"] { "p".into() } else { s("provider") };
            let part = pb::content_part::Part::Reasoning(pb::ReasoningPart { text: s("text"), signature: s("signature"), provider });
            made.content.insert(0, pb::ContentPart { part: Some(part) });
        }
        for c in m.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let s = |k: &str| c[k].as_str().unwrap().to_owned();
            made.tool_calls.push(pb::ToolCall { id: s("id"), name: s("name"), arguments: c["arguments"].to_string() });
        }
        request.messages.push(made);
    }
    for t in r.get("tools").and_then(Value::as_array).into_iter().flatten() {
        request.tools.push(pb::ToolDefinition {
            name: t["name"].as_str().unwrap().to_owned(),
            description: t.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
            parameters: Some(agent_core::json::to_struct(&t["parameters"])),
            ..Default::default()
        });
    }
    let said = |key: &str| r.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    request.tool_choice = said("tool_choice");
    request.reasoning_effort = said("reasoning_effort");
    request.end_user = said("end_user");
    request.parallel_tool_calls = r.get("parallel_tool_calls").and_then(Value::as_bool);
    request.temperature = r.get("temperature").and_then(Value::as_f64);
    request.seed = r.get("seed").and_then(Value::as_i64);
    request.output_schema = r.get("output_schema").map(agent_core::json::to_struct);
    request.stop = r.get("stop").and_then(Value::as_array).into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect();
    request.max_tokens = r.get("max_tokens").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    request
}

fn key_file() -> PathBuf {
    static FILE: std::sync::LazyLock<PathBuf> = std::sync::LazyLock::new(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("wire_cases_key_{}", std::process::id()));
        std::fs::write(&path, KEY).unwrap();
        path
    });
    FILE.clone()
}

fn config(case: &Value, address: &str, backup: Option<&str>) -> ProvidersConfig {
    let limits = case.pointer("/request/limits").cloned().unwrap_or_else(|| json!({}));
    let of = |key: &str, default: u64| limits.get(key).and_then(Value::as_u64).unwrap_or(default);
    let dialect = case.get("dialect").and_then(Value::as_str).unwrap_or("openai");
    let provider = |address: &str, dialect: &str, think_tags: bool| {
        json!({
            "dialect": dialect,
            "api_key": {"file": key_file()},
            "base_url": format!("http://{address}/v1"),
            "models": [],
            "think_tags": think_tags,
            "max_body_bytes": of("max_body_bytes", 8 * 1024 * 1024),
            "max_event_bytes": of("max_event_bytes", 1024 * 1024),
            "max_wait_ms": of("retry_after_max_ms", 10_000),
            "timeouts": {
                "connect_ms": of("connect_ms", 2000), "headers_ms": of("headers_ms", 3000), "first_token_ms": of("first_token_ms", 3000),
                "idle_ms": of("idle_ms", 2000), "content_idle_ms": of("content_idle_ms", 4000), "total_ms": of("total_ms", 15000),
            },
        })
    };
    let model = case.pointer("/request/model").and_then(Value::as_str).unwrap_or("m");
    let think_tags = case.pointer("/request/endpoint/think_tags").and_then(Value::as_bool).unwrap_or(false);
    let mut providers = json!({"p": provider(address, dialect, think_tags)});
    let mut endpoints = vec![json!({"provider": "p", "name": model, "priority": 1})];
    if let Some(backup) = backup {
        providers["q"] = provider(backup, case.get("backup_dialect").and_then(Value::as_str).unwrap_or(dialect), false);
        endpoints.push(json!({"provider": "q", "name": model, "priority": 2}));
    }
    serde_json::from_value(json!({"providers": providers, "models": {"m": {"endpoints": endpoints}}})).unwrap()
}

struct Outcome {
    result: Result<pb::ChatResponse, AgentError>,
    streamed: String,
    first_text: Option<Duration>,
    restarts: usize,
}

async fn call(providers: &Providers, request: &pb::ChatRequest, streams: bool) -> Outcome {
    let started = Instant::now();
    let (send, mut receive) = tokio::sync::mpsc::channel(16);
    let gather = async {
        let (mut text, mut first, mut restarts) = (String::new(), None, 0);
        while let Some(piece) = receive.recv().await {
            let piece: pb::StreamChatResponse = piece;
            match piece.piece {
                Some(Piece::TextDelta(t)) => {
                    first.get_or_insert_with(|| started.elapsed());
                    text.push_str(&t);
                }
                Some(Piece::Restart(_)) => {
                    restarts += 1;
                    text.clear();
                }
                _ => {}
            }
        }
        (text, first, restarts)
    };
    let chat = async move { providers.chat(request, &Caller::default(), None, streams.then_some(&send)).await };
    let (result, (streamed, first_text, restarts)) = tokio::join!(chat, gather);
    Outcome { result, streamed, first_text, restarts }
}

fn kind(result: &Result<pb::ChatResponse, AgentError>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(e) => e.metadata.get("kind").cloned().unwrap_or_default(),
    }
}

// ---- comparing

/// The answer's content as the provider's own blocks.
fn blocks(r: &pb::ChatResponse) -> Vec<Value> {
    let message = r.message.clone().unwrap_or_default();
    let mut all: Vec<Value> = message
        .content
        .iter()
        .filter_map(|p| match p.part.as_ref()? {
            pb::content_part::Part::Text(text) => Some(json!({"type": "text", "text": text})),
            pb::content_part::Part::Reasoning(r) => Some(match r.signature.strip_prefix("redacted_thinking:") {
                Some(data) => json!({"type": "redacted_thinking", "data": data}),
                None => json!({"type": "thinking", "thinking": r.text, "signature": r.signature}),
            }),
            pb::content_part::Part::Image(_) => None,
        })
        .collect();
    for c in &message.tool_calls {
        let input: Value = serde_json::from_str(&c.arguments).unwrap();
        all.push(json!({"type": "tool_use", "id": c.id, "name": c.name, "input": input}));
    }
    all
}

/// A text may also be a list of text blocks.
fn flat(value: Value, wanted: &Value) -> Value {
    match (&value, wanted) {
        (Value::Array(all), Value::String(_)) if all.iter().all(|b| b["type"] == "text") => {
            Value::String(all.iter().filter_map(|b| b["text"].as_str()).collect())
        }
        _ => value,
    }
}

struct Check {
    wrong: Vec<String>,
}

impl Check {
    fn same(&mut self, what: &str, got: impl Into<Value>, wanted: &Value) {
        let got = got.into();
        if &got != wanted {
            self.wrong.push(format!("{what}: got {got}, wanted {wanted}"));
        }
    }

    fn holds(&mut self, what: &str, yes: bool) {
        if !yes {
            self.wrong.push(what.to_owned());
        }
    }

    fn response(&mut self, r: &pb::ChatResponse, streamed: Option<&str>, e: &Value) {
        let text = r.message.as_ref().map(agent_core::agent::text_of).unwrap_or_default();
        for (key, got) in [
            ("text", &text),
            ("reasoning", &r.reasoning),
            ("refusal", &r.refusal),
            ("raw_finish_reason", &r.raw_finish_reason),
            ("provider_request_id", &r.provider_request_id),
        ] {
            if let Some(wanted) = e.get(key) {
                self.same(key, got.as_str(), wanted);
            }
        }
        if let Some(streamed) = streamed {
            self.holds(&format!("the pieces are the text: {streamed:?} {text:?}"), streamed == text);
        }
        if let Some(wanted) = e.get("finish_reason") {
            self.same("finish_reason", r.finish_reason().as_str_name().trim_start_matches("FINISH_REASON_").to_lowercase(), wanted);
        }
        if let Some(wanted) = e.get("tool_calls").and_then(Value::as_array) {
            let calls = r.message.as_ref().map(|m| m.tool_calls.as_slice()).unwrap_or_default();
            self.holds(&format!("{} tool calls, wanted {}", calls.len(), wanted.len()), calls.len() == wanted.len());
            let ids: BTreeSet<&str> = calls.iter().map(|c| c.id.as_str()).collect();
            self.holds("the ids differ and none is empty", ids.len() == calls.len() && !ids.contains(""));
            for (call, wanted) in calls.iter().zip(wanted) {
                self.same("tool name", call.name.as_str(), &wanted["name"]);
                if wanted["id"] != "*" {
                    self.same("tool id", call.id.as_str(), &wanted["id"]);
                }
                match wanted.get("arguments_raw") {
                    Some(raw) => self.same("raw arguments", call.arguments.as_str(), raw),
                    None => {
                        self.same("arguments", serde_json::from_str::<Value>(&call.arguments).unwrap_or(Value::Null), &wanted["arguments"])
                    }
                }
            }
        }
        if let Some(wanted) = e.get("translation") {
            let got: Vec<Value> = r.translation.iter().map(|t| json!({"path": t.path, "change": t.change})).collect();
            self.same("translation", got, wanted);
        }
        if let Some(wanted) = e.get("blocks") {
            self.same("blocks", blocks(r), wanted);
        }
        // Own counts where a provider gives none, and counts of a broken stream, come with metering.
        if let Some(u) = e.get("usage").filter(|u| u["status"] == "final") {
            let got = r.usage.unwrap_or_default();
            let write = u["cache_write"].as_i64().unwrap_or(0);
            self.same("uncached_in", got.input_tokens - got.cached_tokens - write, &u["uncached_in"]);
            self.same("cache_read", got.cached_tokens, &u["cache_read"]);
            self.same("cache_write", got.cache_write_tokens, &json!(write));
            self.same("out_visible", got.output_tokens - got.reasoning_tokens, &u["out_visible"]);
            self.same("out_reasoning", got.reasoning_tokens, u.get("out_reasoning").unwrap_or(&json!(0)));
        }
    }

    fn error(&mut self, error: &AgentError, streamed: &str, e: &Value) {
        if let Some(wanted) = e.get("phase") {
            self.same("phase", error.metadata.get("phase").cloned().unwrap_or_default(), wanted);
        }
        if let Some(wanted) = e.get("partial_text") {
            self.same("partial_text", streamed, wanted);
        }
        for word in e.get("message_contains").and_then(Value::as_array).into_iter().flatten() {
            let has = error.message.to_lowercase().contains(&word.as_str().unwrap().to_lowercase());
            self.holds(&format!("the message says {word}: {}", error.message), has);
        }
        if let Some(wanted) = e.get("retry_after_ms").and_then(Value::as_u64) {
            self.holds(&format!("retry_after_ms {}, wanted {wanted}", error.retry_after_ms), error.retry_after_ms.abs_diff(wanted) <= 1000);
        }
    }

    /// The connection of the last request was closed soon after `since`.
    async fn closed(&mut self, seen: &Seen, since: Duration, e: &Value) {
        let Some(within) = e.get("upstream_closed_within_ms").and_then(Value::as_u64) else { return };
        let (since, end) = (u64::try_from(since.as_millis()).unwrap(), Instant::now() + Duration::from_millis(within));
        let at = loop {
            let at = seen.lock().await.last().and_then(|r| r.get("closed_at_ms").and_then(Value::as_u64));
            if at.is_some() || Instant::now() >= end {
                break at;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.holds(&format!("closed at {at:?}, {within} ms behind {since} at the latest"), at.is_some_and(|at| at <= since + within));
    }

    /// What the first endpoint's faults weigh for its breaker.
    fn fault(&mut self, providers: &Providers, e: &Value) {
        let Some(wanted) = e.get("fault").and_then(Value::as_f64) else { return };
        let got = providers.list().iter().find(|p| p.name == "p").map_or(0.0, |p| p.faults);
        self.holds(&format!("faults of weight {got}, wanted {wanted}"), (got - wanted).abs() < 1e-6);
    }

    /// The pause before the last request of the first endpoint.
    fn pause(&mut self, requests: &[Value], e: &Value) {
        let Some(wait) = e.get("wait_ms") else { return };
        let at = |r: &Value| r["at_ms"].as_u64().unwrap();
        if let [.., before, last] = requests {
            let paused = at(last) - at(before);
            let (min, max) = (wait["min"].as_u64().unwrap_or(0), wait["max"].as_u64().unwrap_or(u64::MAX));
            // The answer itself took some of it, and the machine may be busy.
            self.holds(&format!("a pause of {paused} ms, wanted {min} to {max}"), (min..=max.saturating_add(1500)).contains(&paused));
        }
    }

    fn sent(&mut self, requests: &[Value], e: &Value) {
        for wanted in e.get(SENT).and_then(Value::as_array).into_iter().flatten() {
            let number = usize::try_from(wanted.get("attempt").and_then(Value::as_u64).unwrap_or(1)).unwrap();
            let Some(got) = requests.get(number - 1) else { continue };
            for (pointer, value) in wanted.get("body").and_then(Value::as_object).into_iter().flatten() {
                let sent = got["body"].pointer(pointer).cloned().unwrap_or(Value::Null);
                self.same(&format!("sent {pointer}"), flat(sent, value), value);
            }
            for (pointer, pattern) in wanted.get("match").and_then(Value::as_object).into_iter().flatten() {
                let whole = json!({"type": "string", "pattern": format!("^(?:{})$", pattern.as_str().unwrap())});
                let sent = got["body"].pointer(pointer).cloned().unwrap_or(Value::Null);
                self.holds(&format!("sent {pointer}: {sent} is {pattern}"), jsonschema::is_valid(&whole, &sent));
            }
            for pointer in wanted.get("absent").and_then(Value::as_array).into_iter().flatten() {
                self.holds(&format!("{pointer} is not sent"), got["body"].pointer(pointer.as_str().unwrap()).is_none());
            }
            for pair in wanted.get("equal").and_then(Value::as_array).into_iter().flatten() {
                let at = |n: usize| got["body"].pointer(pair[n].as_str().unwrap());
                self.holds(&format!("{pair} are equal"), at(0).is_some() && at(0) == at(1));
            }
            for name in wanted.get("headers").and_then(Value::as_object).into_iter().flat_map(|h| h.keys()) {
                self.holds(&format!("header {name} is sent"), got["headers"].get(name).is_some());
            }
            for name in wanted.get("no_headers").and_then(Value::as_array).into_iter().flatten() {
                self.holds(&format!("no header {name}"), got["headers"].get(name.as_str().unwrap()).is_none());
            }
            for text in wanted.get("absent_strings").and_then(Value::as_array).into_iter().flatten() {
                self.holds(&format!("{text} is not sent"), !got["body"].to_string().contains(text.as_str().unwrap()));
            }
        }
    }
}

/// A case with its scripted endpoints, before the call. Made before any case is played: clients take their time, and cases compare times.
struct Stage<'a> {
    case: &'a Value,
    first: Scripted,
    backup: Option<Scripted>,
    providers: Arc<Providers>,
}

impl<'a> Stage<'a> {
    async fn of(case: &'a Value) -> Self {
        let first = endpoint(&case["exchanges"]).await;
        let backup = match case.get("backup_exchanges") {
            Some(exchanges) => Some(endpoint(exchanges).await),
            None => None,
        };
        let providers = Providers::new(&config(case, &first.0, backup.as_ref().map(|(address, ..)| address.as_str()))).unwrap();
        Self { case, first, backup, providers }
    }
}

async fn play(stage: Stage<'_>) -> Vec<String> {
    let Stage { case, first: (_, seen, server), backup, providers } = stage;
    let mut check = Check { wrong: Vec::new() };
    let e = &case["expect"];
    let known: BTreeSet<&str> = COMPARED.iter().copied().chain(NOT_YET.iter().map(|(k, _)| *k)).chain([SENT]).collect();
    for key in e.as_object().unwrap().keys() {
        check.holds(&format!("the player knows {key}"), known.contains(key.as_str()));
    }
    let (request, streams) = (chat_request(case), case["request"]["stream"].as_bool().unwrap());
    let outcome = e["outcome"].as_str().unwrap();
    if let Some(cancel) = case.pointer("/request/cancel_after_ms").and_then(Value::as_u64) {
        let cut = tokio::time::timeout(Duration::from_millis(cancel), call(&providers, &request, streams)).await;
        check.holds("a cancelled call has no end of its own", cut.is_err());
        check.closed(&seen, START.elapsed(), e).await;
        check.same("attempts", seen.lock().await.len(), &e["attempts"]);
        check.fault(&providers, e);
        server.abort();
        return check.wrong;
    }
    let started = Instant::now();
    let got = call(&providers, &request, streams).await;
    let took = started.elapsed();
    check.closed(&seen, started.duration_since(*START) + took, e).await;
    check.fault(&providers, e);
    let story: Vec<String> = match &got.result {
        Ok(response) => response.attempts.iter().map(|a| a.outcome.clone()).collect(),
        Err(error) => error.metadata.get("attempt_kinds").map(|k| k.split(',').map(str::to_owned).collect()).unwrap_or_default(),
    };
    match &got.result {
        Ok(response) => {
            check.holds("it was to end with an error", outcome != "error");
            check.response(response, streams.then_some(got.streamed.as_str()), e);
            check.holds(&format!("the last of {story:?} is ok"), story.last().is_some_and(|k| k == "ok"));
        }
        Err(error) => {
            check.holds(&format!("it was to end well: {error:?}"), outcome == "error");
            check.same("kind", kind(&got.result), &e["error_kind"]);
            check.error(error, &got.streamed, e);
        }
    }
    if let Some(kinds) = e.get("attempt_kinds") {
        check.same("attempt kinds", json!(story), kinds);
    } else if let (Some(wanted), Some(n)) = (e.get("error_kind").filter(|_| outcome != "error"), story.len().checked_sub(2)) {
        check.same("kind before the answer", story[n].as_str(), wanted);
    }
    if let Some(max) = e.get("max_total_ms").and_then(Value::as_u64) {
        check.holds(&format!("{took:?}, wanted at most {max} ms"), took <= Duration::from_millis(max));
    }
    if let Some(max) = e.get("first_text_max_ms").and_then(Value::as_u64) {
        check.holds("the first text was in time", got.first_text.is_some_and(|t| t <= Duration::from_millis(max)));
    }
    if let Some(wanted) = e.get("restarts") {
        check.same("restarts", got.restarts, wanted);
    }
    if let Some(wanted) = e.get("quarantine") {
        let aside = providers.list().iter().find(|p| p.name == "p").is_some_and(|p| !p.quarantined_credentials.is_empty());
        check.same("quarantine", if aside { "credential" } else { "none" }, wanted);
    }
    check.holds("the key is in no answer and no error", !format!("{:?}", got.result).contains(KEY));
    let requests = seen.lock().await;
    let wanted = usize::try_from(e["attempts"].as_u64().unwrap()).unwrap();
    check.holds(&format!("{} requests, wanted {wanted}", requests.len()), requests.len() == wanted);
    let behind = match &backup {
        Some((_, seen, server)) => {
            server.abort();
            seen.lock().await.len()
        }
        None => 0,
    };
    let wanted = e.get("backup_attempts").and_then(Value::as_u64).unwrap_or(0);
    check.holds(&format!("{behind} requests to the second endpoint, wanted {wanted}"), behind as u64 == wanted);
    let path = match case["dialect"].as_str() {
        Some("anthropic") => "/v1/messages",
        Some("openai_responses") => "/v1/responses",
        _ => "/v1/chat/completions",
    };
    check.holds("no request strayed", requests.iter().all(|r| r["line"].as_str().unwrap().starts_with(&format!("POST {path} "))));
    check.pause(&requests, e);
    check.sent(&requests, e);
    drop(requests);
    server.abort();
    check.wrong
}

type Scripted = (String, Seen, tokio::task::JoinHandle<()>);

async fn endpoint(exchanges: &Value) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let server = tokio::spawn(serve(listener, exchanges.as_array().unwrap().clone(), seen.clone()));
    (address, seen, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_wire_ends_as_it_must() {
    let all = cases();
    assert!(all.len() >= 200, "only {} cases were found", all.len());
    let mut stages = Vec::new();
    for (id, case) in &all {
        stages.push((id, Stage::of(case).await));
    }
    let plays = stages.into_iter().map(|(id, stage)| async move { (id, play(stage).await) });
    // Some cases have bounds in time: all of them at once would measure the machine.
    let played: Vec<_> = futures::StreamExt::collect(futures::StreamExt::buffered(futures::stream::iter(plays), 48)).await;
    let failed: Vec<String> = played
        .into_iter()
        .filter(|(_, wrong)| !wrong.is_empty())
        .map(|(id, wrong)| format!("{id}:\n    {}", wrong.join("\n    ")))
        .collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), all.len(), failed.join("\n"));
}

/// The proxy of the environment is not for this machine: neither the prompt nor the key of a local server may go there.
#[tokio::test]
async fn calls_to_this_machine_pass_no_proxy() {
    const CHILD: &str = "WIRE_CASES_CHILD";
    if let Ok(address) = std::env::var(CHILD) {
        let config = config(&json!({"request": {}}), &address, None);
        let request = pb::ChatRequest { model: "m".into(), ..Default::default() };
        let answer = call(&Providers::new(&config).unwrap(), &request, false).await;
        assert_eq!(kind(&answer.result), "ok", "{:?}", answer.result);
        return;
    }
    let (server, proxy) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = server.local_addr().unwrap().to_string();
    let body = json!({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]});
    let seen = Seen::default();
    tokio::spawn(serve(server, vec![json!({"status": 200, "body": body})], seen.clone()));
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let done = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "calls_to_this_machine_pass_no_proxy"])
        .env(CHILD, &address)
        .envs(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"].map(|name| (name, url.clone())))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .await
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    assert_eq!(seen.lock().await.len(), 1);
    let dialled = tokio::time::timeout(Duration::from_millis(100), proxy.accept()).await;
    assert!(dialled.is_err(), "the proxy was asked");
}
