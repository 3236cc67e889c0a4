//! Rates, limits learnt from headers, calls at once, and endpoints that were given up. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use serde_json::{Value, json};
use upstream::{Answer, Got};

/// Endpoints `p`, `q`, … of one alias, of priority 1 unless their options have another.
fn providers(all: &[(&str, Value)]) -> Arc<Providers> {
    let mut providers = json!({});
    let mut endpoints = Vec::new();
    for (name, options) in all {
        providers[name] = options.clone();
        providers[name]["dialect"] = "openai".into();
        endpoints.push(json!({"provider": name, "name": "m", "priority": options.get("priority").and_then(Value::as_i64).unwrap_or(1)}));
    }
    let config: ProvidersConfig =
        serde_json::from_value(json!({"providers": providers, "models": {"m": {"endpoints": endpoints}}})).unwrap();
    Providers::new(&config).unwrap()
}

async fn ask(providers: &Providers, tenant: &str) -> Result<pb::ChatResponse, AgentError> {
    let messages = vec![agent_core::agent::text_message(pb::Role::User, "Hello".to_owned())];
    let request = pb::ChatRequest { model: "m".into(), messages, max_tokens: Some(16), ..Default::default() };
    let caller = Caller { tenant: tenant.to_owned(), ..Default::default() };
    providers.chat(&request, &caller, None, None).await
}

fn base(address: &str) -> String {
    format!("http://{address}/v1")
}

fn limited(headers: &[(&str, &str)]) -> Answer {
    let mut answer = upstream::json_answer(429, &json!({"error": {"code": "rate_limit_exceeded", "message": "slow down"}}));
    for (name, value) in headers {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    answer
}

async fn served(text: &'static str) -> String {
    upstream::serve(None, move |_: Got| async move { upstream::chat(text) }).await
}

#[tokio::test]
async fn a_configured_rate_is_kept_and_what_is_beyond_goes_elsewhere_or_comes_back() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let address = upstream::serve(None, move |_: Got| {
        count.fetch_add(1, Ordering::SeqCst);
        async { upstream::chat("p") }
    })
    .await;
    let alone = providers(&[("p", json!({"base_url": base(&address), "rpm": 2, "max_wait_ms": 5}))]);
    assert!(ask(&alone, "").await.is_ok() && ask(&alone, "").await.is_ok());
    let error = ask(&alone, "").await.unwrap_err();
    assert_eq!((error.metadata["kind"].as_str(), error.metadata["limit"].as_str()), ("rate_limit", "configured"));
    assert!((25_000..=30_000).contains(&error.retry_after_ms), "half a minute for one of two: {}", error.retry_after_ms);
    assert_eq!(asked.load(Ordering::SeqCst), 2, "what is beyond was not sent");
    let other = served("q").await;
    let both = providers(&[("p", json!({"base_url": base(&address), "rpm": 2})), ("q", json!({"base_url": base(&other)}))]);
    for _ in 0..20 {
        ask(&both, "").await.unwrap();
    }
    assert!(asked.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn a_rate_in_tokens_counts_what_the_answer_really_took() {
    // Each answer says 15 tokens; 20 or so are expected of each.
    let address = served("p").await;
    let alone = providers(&[("p", json!({"base_url": base(&address), "tpm": 100, "max_wait_ms": 5}))]);
    let mut answered = 0;
    while ask(&alone, "").await.is_ok() {
        answered += 1;
        assert!(answered < 20);
    }
    assert!((5..=7).contains(&answered), "{answered} of 100 / 15");
}

#[tokio::test]
async fn an_endpoint_whose_headers_say_that_nothing_is_left_is_asked_last() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let address = upstream::serve(None, move |_: Got| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut answer = upstream::chat("p");
        answer.headers_mut().insert("x-ratelimit-remaining-requests", "0".parse().unwrap());
        answer.headers_mut().insert("x-ratelimit-reset-requests", "1m0s".parse().unwrap());
        async { answer }
    })
    .await;
    let other = served("q").await;
    let both = providers(&[("p", json!({"base_url": base(&address)})), ("q", json!({"base_url": base(&other)}))]);
    for _ in 0..40 {
        ask(&both, "").await.unwrap();
    }
    assert!(asked.load(Ordering::SeqCst) <= 1);
    let alone = providers(&[("p", json!({"base_url": base(&address)}))]);
    assert!(ask(&alone, "").await.is_ok() && ask(&alone, "").await.is_ok(), "advice only where nobody else is");
}

#[tokio::test]
async fn calls_at_once_follow_what_an_endpoint_takes() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, highest) = (now.clone(), most.clone());
    let address = upstream::serve(None, move |_: Got| {
        let (running, highest) = (running.clone(), highest.clone());
        async move {
            let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
            highest.fetch_max(at_once, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(30)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            if at_once > 16 { limited(&[("retry-after-ms", "50")]) } else { upstream::chat("p") }
        }
    })
    .await;
    let alone = providers(&[("p", json!({"base_url": base(&address)}))]);
    let wave = |n: usize, wave: usize| {
        let alone = &alone;
        // Each tenant may repeat ten.
        futures::future::join_all((0..n).map(move |i| async move { ask(alone, &format!("{wave}-{}", i / 8)).await }))
    };
    wave(64, 0).await;
    let limit = alone.list()[0].limit;
    assert!((4..64).contains(&limit), "{limit}");
    for n in 1..4 {
        wave(64, n).await;
    }
    most.store(0, Ordering::SeqCst);
    let answers = wave(64, 9).await;
    let good = answers.iter().filter(|a| a.is_ok()).count();
    assert!(good >= 60, "{good} of 64 with a limit of {}", alone.list()[0].limit);
    assert!(most.load(Ordering::SeqCst) <= 24, "{} at once", most.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_endpoint_that_was_given_up_is_probed_without_traffic_and_serves_again_when_it_recovers() {
    let (broken, probes) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
    let (breaks, probed) = (broken.clone(), probes.clone());
    let address = upstream::serve(None, move |got: Got| {
        let broken = breaks.load(Ordering::SeqCst) == 1;
        if got.uri.ends_with("/models") {
            probed.fetch_add(1, Ordering::SeqCst);
        }
        async move { if broken { upstream::json_answer(500, &json!({"error": {"message": "down"}})) } else { upstream::chat("p") } }
    })
    .await;
    let other = served("q").await;
    let both = providers(&[("p", json!({"base_url": base(&address)})), ("q", json!({"base_url": base(&other), "priority": 2}))]);
    let breaker = || both.list()[0].breaker.clone();
    for n in 0..20 {
        assert!(ask(&both, &n.to_string()).await.is_ok());
        if breaker() == "open" {
            break;
        }
    }
    assert_eq!(breaker(), "open");
    broken.store(0, Ordering::SeqCst);
    let opened = Instant::now();
    // No call is made from here on.
    while breaker() == "open" {
        assert!(opened.elapsed() < Duration::from_secs(20), "it was not probed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(probes.load(Ordering::SeqCst) >= 1);
    for _ in 0..3 {
        assert_eq!(ask(&both, "again").await.unwrap().provider, "p");
    }
    assert!(opened.elapsed() < Duration::from_secs(30));
    assert_eq!(breaker(), "closed");
}
