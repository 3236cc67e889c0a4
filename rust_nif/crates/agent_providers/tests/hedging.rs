//! A second request where the first one is late. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use pb::stream_chat_response::Piece;
use serde_json::json;
use upstream::Got;

/// How long the late one takes, when it is late.
const LATE: Duration = Duration::from_secs(5);

struct Stage {
    providers: Arc<Providers>,
    late: Arc<AtomicBool>,
    /// Requests of the first one that ended by themselves.
    whole: Arc<AtomicU32>,
    begun: Arc<AtomicU32>,
}

async fn stage() -> Stage {
    let (late, whole, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (is_late, ended, count) = (late.clone(), whole.clone(), begun.clone());
    let one = upstream::serve(None, move |_: Got| {
        let (is_late, ended) = (is_late.load(Ordering::SeqCst), ended.clone());
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(if is_late { LATE } else { Duration::from_millis(10) }).await;
            ended.fetch_add(1, Ordering::SeqCst);
            upstream::chat("one")
        }
    })
    .await;
    let two = upstream::serve(None, |_: Got| async { upstream::chat("two") }).await;
    let prices = json!([{"valid_from": "2026-01-01", "input_micros": 1_000_000, "output_micros": 1_000_000}]);
    let config: ProvidersConfig = serde_json::from_value(json!({
        "providers": {
            "p": {"dialect": "openai", "base_url": format!("http://{one}/v1")},
            "q": {"dialect": "openai", "base_url": format!("http://{two}/v1")},
        },
        "models": {"m": {"prices": prices, "endpoints": [
            {"provider": "p", "name": "m", "priority": 1}, {"provider": "q", "name": "m", "priority": 2},
        ]}},
    }))
    .unwrap();
    Stage { providers: Providers::new(&config).unwrap(), late, whole, begun }
}

impl Stage {
    async fn ask(&self, hedge: bool) -> pb::ChatResponse {
        self.providers.chat(&request(hedge), &Caller::default(), None, None).await.unwrap()
    }

    async fn stream(&self) -> (pb::ChatResponse, String) {
        let (send, mut receive) = tokio::sync::mpsc::channel(64);
        let answer = self.providers.chat(&request(true), &Caller::default(), None, Some(&send)).await.unwrap();
        drop(send);
        let mut text = String::new();
        while let Some(piece) = receive.recv().await {
            if let Some(Piece::TextDelta(t)) = piece.piece {
                text.push_str(&t);
            }
        }
        (answer, text)
    }
}

fn request(hedge: bool) -> pb::ChatRequest {
    pb::ChatRequest {
        model: "m".into(),
        messages: vec![agent_core::agent::text_message(pb::Role::User, "Hello".to_owned())],
        max_tokens: Some(16),
        policy: Some(pb::CallPolicy { hedge, ..Default::default() }),
        ..Default::default()
    }
}

fn outcomes(answer: &pb::ChatResponse) -> Vec<(&str, &str, bool)> {
    answer.attempts.iter().map(|a| (a.provider.as_str(), a.outcome.as_str(), a.hedge)).collect()
}

#[tokio::test]
async fn a_late_request_gets_a_second_one_elsewhere_and_is_dropped_and_counted() {
    let s = stage().await;
    for _ in 0..20 {
        assert_eq!(outcomes(&s.ask(true).await), [("p", "ok", false)], "nothing is late");
    }
    s.late.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let answer = s.ask(true).await;
    assert!(started.elapsed() < LATE / 2, "{:?}", started.elapsed());
    assert_eq!(outcomes(&answer), [("p", "hedge_lost", false), ("q", "ok", true)]);
    assert_eq!(answer.provider, "q");
    let costs: Vec<i64> = answer.attempts.iter().map(|a| a.cost_micros.unwrap()).collect();
    assert!(costs[0] > 0 && answer.cost_micros == Some(costs[0] + costs[1]), "both are paid: {costs:?}");
    // The upstream sees the end of the one that lost: it never ends by itself.
    tokio::time::sleep(LATE + Duration::from_millis(500) - started.elapsed()).await;
    assert_eq!((s.begun.load(Ordering::SeqCst), s.whole.load(Ordering::SeqCst)), (21, 20));
}

#[tokio::test]
async fn streams_are_raced_to_their_first_content_and_show_one_answer() {
    let s = stage().await;
    for _ in 0..20 {
        assert_eq!(s.stream().await.1, "one");
    }
    s.late.store(true, Ordering::SeqCst);
    let (answer, text) = s.stream().await;
    assert_eq!((text.as_str(), answer.provider.as_str()), ("two", "q"));
    assert_eq!(outcomes(&answer), [("p", "hedge_lost", false), ("q", "ok", true)]);
}

#[tokio::test]
async fn second_requests_are_few_and_only_for_calls_that_ask() {
    let s = stage().await;
    for _ in 0..20 {
        s.ask(true).await;
    }
    s.late.store(true, Ordering::SeqCst);
    let plain = tokio::time::timeout(Duration::from_millis(500), s.ask(false)).await;
    assert!(plain.is_err(), "it did not ask");
    let mut second = 0;
    for _ in 0..8 {
        let answer = tokio::time::timeout(Duration::from_millis(800), s.ask(true)).await;
        second += u32::from(answer.is_ok());
    }
    assert!((1..=4).contains(&second), "{second} of 8: one in twenty calls, and two at the start");
}
