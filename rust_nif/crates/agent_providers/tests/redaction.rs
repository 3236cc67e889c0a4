//! An upstream that repeats the key it was shown: the key is in no error, no view and no answer's data about the request.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use serde_json::json;
use upstream::{Answer, Got};

/// Keys of several forms: not every provider begins them with the same letters.
const KEYS: [&str; 4] = ["sk-canary-0123456789abcdef", "gsk_Canary0123456789", "canary.0123456789-AbCd", "c4n4ry"];
const DIALECTS: [&str; 3] = ["openai", "openai_responses", "anthropic"];

/// Every place of an answer in which a key has been seen.
fn answers(key: &str) -> Vec<Answer> {
    let said = format!("Incorrect API key provided: {key}. Header was Bearer {key}");
    // The end of what is passed on may fall into the key.
    let long = |n: usize| format!("{}{key} and more", "word ".repeat(n));
    let mut all: Vec<Answer> = vec![
        upstream::json_answer(401, &json!({"error": {"message": said, "type": "auth", "code": key}})),
        upstream::json_answer(400, &json!({"detail": [{"loc": ["header"], "msg": said}]})),
        upstream::json_answer(500, &json!({"error": said})),
        upstream::json_answer(429, &json!([{"error": {"message": said, "status": "RESOURCE_EXHAUSTED"}}])),
        upstream::json_answer(200, &json!({"error": {"message": said}})),
        upstream::json_answer(
            200,
            &json!({"id": key, "status": "failed", "error": {"code": "server_error", "message": said}, "output": []}),
        ),
        hyper::Response::builder().status(502).body(format!("<html>{said}</html>").into()).unwrap(),
        hyper::Response::builder().status(200).body(format!("data: {{\"error\":{{\"message\":\"{said}\"}}}}\n\n").into()).unwrap(),
        hyper::Response::builder().status(200).body(format!("error: {said}\n\n").into()).unwrap(),
        hyper::Response::builder().status(200).body(said.clone().into()).unwrap(),
    ];
    all.extend((50..62).map(|n| upstream::json_answer(400, &json!({"error": {"message": long(n)}}))));
    for answer in &mut all {
        answer.headers_mut().insert("x-request-id", key.parse().unwrap());
    }
    all
}

async fn ask(dialect: &str, key: &str, number: usize, stream: bool) -> (Result<pb::ChatResponse, AgentError>, String) {
    let key_file =
        std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("redaction_{}_{dialect}_{number}_{stream}", std::process::id()));
    std::fs::write(&key_file, key).unwrap();
    let own = key.to_owned();
    let address = upstream::serve(None, move |_: Got| std::future::ready(answers(&own).swap_remove(number))).await;
    let config: ProvidersConfig = serde_json::from_value(json!({"providers": {"p": {
        "dialect": dialect, "base_url": format!("http://{address}/v1"), "api_key": {"file": key_file}, "max_wait_ms": 1,
    }}}))
    .unwrap();
    let providers = Providers::new(&config).unwrap();
    let messages = vec![agent_core::agent::text_message(pb::Role::User, "Hello".to_owned())];
    let request = pb::ChatRequest { model: "p/m".into(), messages, ..Default::default() };
    let (send, mut receive) = tokio::sync::mpsc::channel(64);
    let result = providers.chat(&request, &Caller::default(), None, stream.then_some(&send)).await;
    drop(send);
    let mut seen = format!("{:?} {:?}", providers.list(), providers.list_models());
    while let Some(piece) = receive.recv().await {
        seen.push_str(&format!("{piece:?}"));
    }
    std::fs::remove_file(key_file).unwrap();
    (result, seen)
}

#[tokio::test]
async fn a_key_that_an_upstream_repeats_goes_no_further() {
    let mut asked = 0;
    for key in KEYS {
        for dialect in DIALECTS {
            for number in 0..answers(key).len() {
                for stream in [false, true] {
                    let (result, seen) = ask(dialect, key, number, stream).await;
                    let shown = format!("{result:?} {seen}");
                    assert!(!shown.contains(key), "{dialect} {number}: {shown}");
                    let part = &key[..key.len() - 2];
                    assert!(!shown.contains(part), "a part of it; {dialect} {number}: {shown}");
                    assert!(result.is_err());
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 400);
}
