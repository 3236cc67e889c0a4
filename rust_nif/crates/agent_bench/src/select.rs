//! How long it takes to choose who serves a call.

use std::time::{Duration, Instant};

use agent_proto::agents::v1 as pb;
use agent_providers::{Providers, ProvidersConfig};
use serde_json::{Map, Value, json};

use crate::{Failure, option};

/// Calls before those that are counted.
const WARM_UP: usize = 1000;

/// `provider_select --models 50 --calls 20000`: an alias with so many endpoints, each of another provider with prices of its own. Prints
/// microseconds of a choice as JSON; with `--limit 20` a median above it is a failure.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let (models, calls): (usize, usize) = (option(args, "--models", "50").parse()?, option(args, "--calls", "20000").parse()?);
    let limit: f64 = option(args, "--limit", "0").parse()?;
    let providers = Providers::new(&config(models)?)?;
    let request = pb::ChatRequest {
        model: "m".into(),
        messages: vec![agent_core::agent::text_message(pb::Role::User, "How long does a choice take?".repeat(40))],
        max_tokens: Some(256),
        ..Default::default()
    };
    let mut times = Vec::with_capacity(calls);
    for n in 0..calls + WARM_UP {
        let started = Instant::now();
        let chosen = providers.first_choice(&request)?;
        if n >= WARM_UP {
            times.push(started.elapsed());
        }
        std::hint::black_box(chosen);
    }
    times.sort_unstable();
    let at = |share: usize| micros(times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default());
    let (p50, p99) = (at(50), at(99));
    println!("{}", json!({"provider_select": {"models": models, "calls": calls, "p50_us": p50, "p99_us": p99}}));
    if limit > 0.0 && p50 > limit { Err(format!("a choice takes {p50} us, the limit is {limit}").into()) } else { Ok(()) }
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn config(models: usize) -> Result<ProvidersConfig, Failure> {
    let (mut providers, mut endpoints, mut prices) = (Map::new(), Vec::new(), Vec::new());
    for n in 0..models {
        let (name, model) = (format!("provider-{n}"), format!("model-{n}"));
        providers.insert(name.clone(), json!({"dialect": "openai", "base_url": format!("https://host-{n}.invalid/v1")}));
        endpoints.push(json!({"provider": name, "name": model, "priority": 1}));
        prices.push(json!({
            "host": format!("host-{n}.invalid"), "model": model, "valid_from": "2026-01-01",
            "input_micros": 1_000_000 + n, "output_micros": 2_000_000 + n,
        }));
    }
    let whole: Value = json!({"providers": providers, "models": {"m": {"endpoints": endpoints}}, "prices": prices});
    Ok(serde_json::from_value(whole)?)
}
