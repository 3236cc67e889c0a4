//! Answers that are given again. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use pb::stream_chat_response::Piece;
use serde_json::json;
use upstream::Got;

struct Stage {
    providers: Arc<Providers>,
    asked: Arc<AtomicU32>,
}

async fn stage(ttl_ms: u64, delay: Duration, fail: u32) -> Stage {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let address = upstream::serve(None, move |_: Got| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(delay).await;
            let refusal = json!({"error": {"message": "no", "code": "invalid"}});
            if n < fail { upstream::json_answer(400, &refusal) } else { upstream::chat(&format!("Answer {n}.")) }
        }
    })
    .await;
    let config: ProvidersConfig = serde_json::from_value(json!({
        "providers": {"p": {"dialect": "openai", "base_url": format!("http://{address}/v1")}},
        "models": {"m": {"endpoints": [{"provider": "p", "name": "m"}], "prices": []}},
        "cache": {"ttl_ms": ttl_ms, "max_bytes": 1_000_000},
    }))
    .unwrap();
    Stage { providers: Providers::new(&config).unwrap(), asked }
}

impl Stage {
    async fn ask(&self, tenant: &str, mode: pb::CacheMode, text: &str) -> Result<pb::ChatResponse, AgentError> {
        self.providers.chat(&request(mode, text), &Caller { tenant: tenant.into(), ..Default::default() }, None, None).await
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn request(mode: pb::CacheMode, text: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        model: "m".into(),
        messages: vec![agent_core::agent::text_message(pb::Role::User, text.to_owned())],
        policy: Some(pb::CallPolicy { cache: mode as i32, ..Default::default() }),
        ..Default::default()
    }
}

fn text(answer: &pb::ChatResponse) -> String {
    answer.message.as_ref().map(agent_core::agent::text_of).unwrap_or_default()
}

const USE: pb::CacheMode = pb::CacheMode::Use;

#[tokio::test]
async fn an_equal_call_is_answered_again_free_and_marked_and_only_where_it_asks_for_that() {
    let s = stage(60_000, Duration::ZERO, 0).await;
    let first = s.ask("t", USE, "Hello").await.unwrap();
    let again = s.ask("t", USE, "Hello").await.unwrap();
    assert!(!first.cache_hit && again.cache_hit && text(&first) == text(&again));
    assert_eq!((again.cost_micros, again.attempts.len(), again.usage), (Some(0), 0, first.usage));
    assert_eq!(s.asked(), 1);
    let bypass = s.ask("t", pb::CacheMode::Bypass, "Hello").await.unwrap();
    assert!(!bypass.cache_hit && text(&bypass) == "Answer 1.");
    assert!(!s.ask("another tenant", USE, "Hello").await.unwrap().cache_hit);
    assert!(!s.ask("t", USE, "Hello!").await.unwrap().cache_hit);
    let fresh = s.ask("t", pb::CacheMode::Refresh, "Hello").await.unwrap();
    assert!(!fresh.cache_hit);
    assert_eq!(text(&s.ask("t", USE, "Hello").await.unwrap()), text(&fresh), "a refresh is what is given from then on");
}

#[tokio::test]
async fn a_kept_answer_ends_with_its_time() {
    let s = stage(50, Duration::ZERO, 0).await;
    s.ask("t", USE, "Hello").await.unwrap();
    let started = std::time::Instant::now();
    while s.ask("t", USE, "Hello").await.unwrap().cache_hit {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(s.asked(), 2);
}

#[tokio::test]
async fn of_many_equal_calls_at_once_one_asks() {
    let s = stage(60_000, Duration::from_millis(200), 0).await;
    let answers = futures::future::join_all((0..50).map(|_| s.ask("t", USE, "Hello"))).await;
    assert_eq!(answers.iter().filter(|a| !a.as_ref().unwrap().cache_hit).count(), 1);
    assert_eq!(s.asked(), 1);
}

#[tokio::test]
async fn a_refusal_is_everybodys_and_is_not_kept() {
    let s = stage(60_000, Duration::from_millis(100), 1).await;
    let answers = futures::future::join_all((0..10).map(|_| s.ask("t", USE, "Hello"))).await;
    assert!(answers.iter().all(|a| a.as_ref().unwrap_err().metadata["kind"] == "invalid_request"));
    assert_eq!(s.asked(), 1);
    assert!(s.ask("t", USE, "Hello").await.is_ok());
}

#[tokio::test]
async fn a_cancelled_call_leaves_its_place_to_one_that_waits() {
    let s = stage(60_000, Duration::from_millis(300), 0).await;
    let first = tokio::time::timeout(Duration::from_millis(100), s.ask("t", USE, "Hello"));
    let waits = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        s.ask("t", USE, "Hello").await
    };
    let (cancelled, answered) = tokio::join!(first, waits);
    assert!(cancelled.is_err());
    assert!(!answered.unwrap().cache_hit);
    assert_eq!(s.asked(), 2);
}

#[tokio::test]
async fn a_stream_is_played_again() {
    let s = stage(60_000, Duration::ZERO, 0).await;
    let whole = s.ask("t", USE, "Hello").await.unwrap();
    let (send, mut receive) = tokio::sync::mpsc::channel(64);
    let caller = Caller { tenant: "t".into(), ..Default::default() };
    s.providers.chat(&request(USE, "Hello"), &caller, None, Some(&send)).await.unwrap();
    drop(send);
    let (mut streamed, mut last) = (String::new(), None);
    while let Some(piece) = receive.recv().await {
        match piece.piece.unwrap() {
            Piece::TextDelta(t) => streamed.push_str(&t),
            Piece::Final(answer) => last = Some(answer),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(streamed, text(&whole));
    assert!(last.unwrap().cache_hit);
    assert_eq!(s.asked(), 1);
}
