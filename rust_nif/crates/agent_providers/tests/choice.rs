//! Which endpoint serves: by its quality, and away from what fails together. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_core::Reason;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use serde_json::{Value, json};
use upstream::Got;

fn providers(config: Value) -> Arc<Providers> {
    let config: ProvidersConfig = serde_json::from_value(config).unwrap();
    Providers::new(&config).unwrap()
}

fn rated() -> Arc<Providers> {
    let echo = json!({"dialect": "echo"});
    let endpoint = |provider: &str, quality: Option<u32>, priority: u32| {
        let mut e = json!({"provider": provider, "name": "echo", "priority": priority});
        quality.into_iter().for_each(|q| e["quality_millionths"] = q.into());
        e
    };
    providers(json!({
        "providers": {"good": echo.clone(), "fair": echo.clone(), "unrated": echo},
        "models": {
            "m": {"endpoints": [endpoint("fair", Some(600_000), 1), endpoint("unrated", None, 1), endpoint("good", Some(900_000), 1)]},
            "lone": {"endpoints": [endpoint("fair", Some(600_000), 1)]},
        },
    }))
}

fn request(model: &str, min_quality: f64) -> pb::ChatRequest {
    pb::ChatRequest {
        model: model.into(),
        messages: vec![agent_core::agent::text_message(pb::Role::User, "Hello".to_owned())],
        policy: Some(pb::CallPolicy { min_quality, ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test]
async fn who_is_not_good_enough_or_not_rated_does_not_serve_and_the_better_one_is_preferred() {
    let rated = rated();
    for _ in 0..20 {
        let answer = rated.chat(&request("m", 0.7), &Caller::default(), None, None).await.unwrap();
        assert_eq!(answer.provider, "good");
    }
    let error = rated.chat(&request("m", 0.95), &Caller::default(), None, None).await.unwrap_err();
    assert_eq!(error.reason, Reason::NoProviderMatches);
    assert_eq!(error.metadata.get("good").map(String::as_str), Some("its quality is 0.90, min_quality is 0.95"));
    assert_eq!(error.metadata.get("unrated").map(String::as_str), Some("its quality is not configured, min_quality is 0.95"));
    let lone = rated.chat(&request("lone", 0.7), &Caller::default(), None, None).await.unwrap_err();
    assert_eq!(lone.reason, Reason::NoProviderMatches);
    let mut served = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..200 {
        let answer = rated.chat(&request("m", 0.0), &Caller::default(), None, None).await.unwrap();
        *served.entry(answer.provider).or_default() += 1;
    }
    assert!(served["good"] > 180, "equal in all else: {served:?}");
}

#[tokio::test]
async fn the_reasons_of_a_choice_tell_the_quality() {
    let choice = rated()
        .select(&pb::TaskRequirements { model: "m".into(), min_quality: 0.7, ..Default::default() }, pb::CallPolicy::default())
        .unwrap();
    assert_eq!(choice.provider, "good");
    assert!(choice.reason.contains("quality of 0.90"), "{}", choice.reason);
    let of = |name: &str| choice.candidates.iter().find(|c| c.provider == name).unwrap();
    assert_eq!(of("fair").refused, "its quality is 0.60, min_quality is 0.70");
    assert_eq!((of("good").terms.get("quality"), of("unrated").terms.get("quality")), (Some(&0.9), None));
    assert!(of("good").terms["quality_loss"] < of("fair").terms["quality_loss"]);
    assert!(of("fair").terms["quality_loss"] < of("unrated").terms["quality_loss"], "unknown counts as the middle");
}

#[tokio::test]
async fn behind_a_refused_connection_another_failure_domain_is_asked_first() {
    let near = Arc::new(AtomicU32::new(0));
    let count = near.clone();
    let two = upstream::serve(None, move |_: Got| {
        count.fetch_add(1, Ordering::SeqCst);
        async { upstream::chat("two") }
    })
    .await;
    let three = upstream::serve(None, |_: Got| async { upstream::chat("three") }).await;
    let provider = |address: &str, domain: Option<&str>| {
        let mut p = json!({"dialect": "openai", "base_url": format!("http://{address}/v1")});
        domain.into_iter().for_each(|d| p["failure_domain"] = d.into());
        p
    };
    let endpoint = |provider: &str, priority: u32| json!({"provider": provider, "name": "m", "priority": priority});
    let config = |domain: Option<&str>| {
        json!({
            // Nobody listens at the first address.
            "providers": {"p": provider("127.0.0.1:9", domain), "q": provider(&two, domain), "r": provider(&three, None)},
            "models": {"m": {"endpoints": [endpoint("p", 1), endpoint("q", 2), endpoint("r", 3)]}},
        })
    };
    let together = providers(config(Some("west"))).chat(&request("m", 0.0), &Caller::default(), None, None).await.unwrap();
    assert_eq!((together.provider.as_str(), near.load(Ordering::SeqCst)), ("r", 0));
    let apart = providers(config(None)).chat(&request("m", 0.0), &Caller::default(), None, None).await.unwrap();
    assert_eq!(apart.provider, "q", "by default each address is a domain of its own");
}
