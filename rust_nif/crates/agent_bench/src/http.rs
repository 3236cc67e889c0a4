//! The door's upstream and its client: both as small as they can be, so that what is measured is what stands between them.
//!
//! The upstream answers a chat completion at once, with as many events as `max_tokens` says where a stream is asked for. The client keeps its
//! connections, sends the next request when the last answer is whole, and compares the text of every answer with what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{Failure, option};

/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// Number of the first bytes that end a head, with the length of the body that follows; None: it is not whole yet.
fn head(bytes: &[u8]) -> Option<(usize, &str)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    std::str::from_utf8(&bytes[..end]).ok().map(|text| (end, text))
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").and_then(|n| n.trim().parse().ok()))
}

fn number_behind(body: &str, key: &str) -> Option<usize> {
    let digits: String = body.split_once(key)?.1.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The text of an answer of so many events; 0: of a whole one.
fn text(events: usize) -> String {
    if events == 0 { "x".repeat(700) } else { (0..events).map(|n| format!("w{n} ")).collect() }
}

fn unary() -> Vec<u8> {
    let body = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text(0)}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    })
    .to_string();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn stream(events: usize) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let mut event = |data: &str| {
        let line = format!("data: {data}\n\n");
        out.extend(format!("{:x}\r\n{line}\r\n", line.len()).into_bytes());
    };
    let chunk = |delta: &str, finish: &str| {
        format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}"#
        )
    };
    event(&chunk(r#"{"role":"assistant","content":""}"#, "null"));
    for n in 0..events {
        event(&chunk(&format!(r#"{{"content":"w{n} "}}"#), "null"));
    }
    event(&chunk("{}", "\"stop\""));
    event(
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":20,"total_tokens":29}}"#,
    );
    event("[DONE]");
    out.extend(b"0\r\n\r\n");
    out
}

/// Serves until its stdin ends.
pub(crate) async fn upstream(args: &[String]) -> Result<(), Failure> {
    let listener = TcpListener::bind(option(args, "--address", "127.0.0.1:0")).await?;
    println!("{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(answers(stream));
        }
    });
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    Ok(())
}

async fn answers(mut connection: TcpStream) -> Result<(), Failure> {
    let (whole, mut read) = (unary(), Vec::new());
    let mut streams: Vec<(usize, Vec<u8>)> = Vec::new();
    loop {
        let (end, length) = loop {
            if let Some((end, text)) = head(&read) {
                break (end, content_length(text).unwrap_or(0));
            }
            if connection.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        while read.len() < end + length {
            if connection.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let body = String::from_utf8_lossy(&read[end..end + length]).into_owned();
        read.drain(..end + length);
        if body.replace(' ', "").contains("\"stream\":true") {
            let events = number_behind(&body, "\"max_tokens\":").unwrap_or(20);
            if !streams.iter().any(|(n, _)| *n == events) {
                streams.push((events, stream(events)));
            }
            if let Some((_, bytes)) = streams.iter().find(|(n, _)| *n == events) {
                connection.write_all(bytes).await?;
            }
        } else {
            connection.write_all(&whole).await?;
        }
    }
}

/// What all connections of a run share.
struct Run {
    request: Vec<u8>,
    /// The text of each answer.
    expected: String,
    over: AtomicBool,
    wrong: AtomicU64,
}

/// Prints a line of JSON: answers a second, latencies in microseconds (of the whole answer, and of its first byte), wrong answers.
pub(crate) async fn load(args: &[String]) -> Result<(), Failure> {
    let address = option(args, "--address", "127.0.0.1:80");
    let seconds: u64 = option(args, "--seconds", "3").parse()?;
    let in_flight: usize = option(args, "--in-flight", "1").parse()?;
    let events: usize = option(args, "--events", "0").parse()?;
    let streams = if events > 0 { format!(r#","stream":true,"max_tokens":{events}"#) } else { String::new() };
    let body = format!(
        r#"{{"model":"{}","messages":[{{"role":"user","content":"{}"}}]{streams}}}"#,
        option(args, "--model", "m"),
        "q".repeat(300)
    );
    let more: String = args.windows(2).filter(|w| w[0] == "--header").map(|w| format!("{}\r\n", w[1])).collect();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nauthorization: Bearer any\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let run =
        Arc::new(Run { request: request.into_bytes(), expected: text(events), over: AtomicBool::new(false), wrong: AtomicU64::new(0) });
    let began = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let connection = TcpStream::connect(&address).await?;
        connection.set_nodelay(true)?;
        asking.spawn(asks(connection, run.clone(), events));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    run.over.store(true, Ordering::Relaxed);
    let (mut whole, mut first) = (Vec::new(), Vec::new());
    while let Some(result) = asking.join_next().await {
        let (w, f) = result??;
        whole.extend(w);
        first.extend(f);
    }
    let took = began.elapsed();
    whole.sort_unstable();
    first.sort_unstable();
    let at = |all: &[u64], part: usize| all.get(all.len() * part / 100).copied().unwrap_or(0);
    let rate = u64::try_from(u128::try_from(whole.len())? * 1000 / took.as_millis().max(1))?;
    println!(
        "{}",
        serde_json::json!({
            "per_second": rate, "ok": whole.len(), "wrong": run.wrong.load(Ordering::Relaxed), "in_flight": in_flight,
            "p50_us": at(&whole, 50), "p99_us": at(&whole, 99), "first_p50_us": at(&first, 50), "first_p99_us": at(&first, 99),
        })
    );
    Ok(())
}

async fn asks(mut connection: TcpStream, run: Arc<Run>, events: usize) -> Result<(Vec<u64>, Vec<u64>), Failure> {
    let (mut whole, mut first, mut read) = (Vec::new(), Vec::new(), Vec::with_capacity(READ));
    let micros = |began: Instant| u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    while !run.over.load(Ordering::Relaxed) {
        read.clear();
        let began = Instant::now();
        connection.write_all(&run.request).await?;
        let mut seen = None;
        loop {
            if connection.read_buf(&mut read).await? == 0 {
                return Err("the connection was closed".into());
            }
            let Some((end, text)) = head(&read) else { continue };
            if read.len() > end && seen.is_none() {
                seen = Some(micros(began));
            }
            let done = match content_length(text) {
                Some(length) => read.len() >= end + length,
                None => read.ends_with(b"0\r\n\r\n"),
            };
            if done {
                break;
            }
        }
        whole.push(micros(began));
        first.extend(seen);
        let text = String::from_utf8_lossy(&read);
        let good = text.starts_with("HTTP/1.1 200") && said(&text) == run.expected && (events == 0 || text.contains("[DONE]"));
        if !good {
            run.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok((whole, first))
}

/// The text of all events.
fn said(stream: &str) -> String {
    stream.split("\"content\":\"").skip(1).filter_map(|rest| rest.split_once('"').map(|(text, _)| text)).collect()
}
