//! An answer that breaks off behind its first content is gone on with elsewhere, where the call allows that. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::sync::{Arc, Mutex};

use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use pb::stream_chat_response::Piece;
use serde_json::{Value, json};
use upstream::Got;

type Asked = Arc<Mutex<Vec<Value>>>;

/// Events of a stream that breaks off.
fn broken(texts: &[&str]) -> upstream::Answer {
    upstream::events(&texts.iter().map(|t| json!({"choices": [{"index": 0, "delta": {"content": t}}]})).collect::<Vec<_>>(), false)
}

/// Events of a whole one.
fn whole(texts: &[&str]) -> upstream::Answer {
    let mut all: Vec<Value> = texts.iter().map(|t| json!({"choices": [{"index": 0, "delta": {"content": t}}]})).collect();
    all.push(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    upstream::events(&all, true)
}

/// A model at two places: the first breaks off behind "one, two, ".
async fn stage(second: Value) -> (Arc<Providers>, Asked) {
    let asked = Asked::default();
    let heard = asked.clone();
    let one = upstream::serve(None, |_: Got| async { broken(&["one,", " two, "]) }).await;
    let two = upstream::serve(None, move |got: Got| {
        heard.lock().unwrap().push(got.body);
        async { whole(&[" three,", " four"]) }
    })
    .await;
    let mut endpoint = json!({"provider": "q", "name": "n", "priority": 2});
    endpoint.as_object_mut().unwrap().extend(second.as_object().unwrap().clone());
    let config: ProvidersConfig = serde_json::from_value(json!({
        "providers": {
            "p": {"dialect": "openai", "base_url": format!("http://{one}/v1")},
            "q": {"dialect": "openai", "base_url": format!("http://{two}/v1")},
        },
        "models": {"m": {"endpoints": [{"provider": "p", "name": "m", "priority": 1, "family": "counters"}, endpoint]}},
    }))
    .unwrap();
    (Providers::new(&config).unwrap(), asked)
}

async fn ask(providers: &Providers, policy: pb::StreamPolicy) -> (Result<pb::ChatResponse, agent_core::AgentError>, Vec<Piece>) {
    let (send, mut receive) = tokio::sync::mpsc::channel(64);
    let request = pb::ChatRequest {
        model: "m".into(),
        messages: vec![agent_core::agent::text_message(pb::Role::User, "Count.".to_owned())],
        policy: Some(pb::CallPolicy { stream_policy: policy as i32, ..Default::default() }),
        ..Default::default()
    };
    let answer = providers.chat(&request, &Caller::default(), None, Some(&send)).await;
    drop(send);
    let mut pieces = Vec::new();
    while let Some(piece) = receive.recv().await {
        pieces.extend(piece.piece);
    }
    (answer, pieces)
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().filter_map(|p| if let Piece::TextDelta(t) = p { Some(t.as_str()) } else { None }).collect()
}

#[tokio::test]
async fn another_endpoint_of_the_family_goes_on_and_the_seam_is_marked() {
    let (providers, asked) = stage(json!({"family": "counters", "capabilities": ["prefill"]})).await;
    let (answer, pieces) = ask(&providers, pb::StreamPolicy::Resume).await;
    let answer = answer.unwrap();
    assert_eq!(text(&pieces), "one, two, three, four", "the blank before the seam is said once");
    assert_eq!(answer.message.as_ref().map(agent_core::agent::text_of).unwrap(), "one, two, three, four");
    assert_eq!((answer.resumed_at, answer.provider.as_str()), (10, "q"));
    let seams: Vec<(&str, &str)> =
        pieces.iter().filter_map(|p| if let Piece::Restart(r) = p { Some((r.policy.as_str(), r.reason.as_str())) } else { None }).collect();
    assert_eq!(seams, [("resume", "cut")]);
    assert_eq!(answer.attempts.iter().map(|a| a.outcome.as_str()).collect::<Vec<_>>(), ["cut", "ok"]);
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0]["messages"][1], json!({"role": "assistant", "content": "one, two,"}));
}

#[tokio::test]
async fn nobody_else_goes_on_with_it_and_no_call_that_did_not_ask() {
    for (second, policy) in [
        (json!({"family": "counters"}), pb::StreamPolicy::Resume),
        (json!({"family": "others", "capabilities": ["prefill"]}), pb::StreamPolicy::Resume),
        (json!({"capabilities": ["prefill"]}), pb::StreamPolicy::Resume),
        (json!({"family": "counters", "capabilities": ["prefill"]}), pb::StreamPolicy::Error),
    ] {
        let (providers, asked) = stage(second.clone()).await;
        let (answer, pieces) = ask(&providers, policy).await;
        let error = answer.unwrap_err();
        assert_eq!(error.metadata.get("kind").map(String::as_str), Some("cut"), "{second}");
        assert_eq!(error.metadata.get("content_sent").map(String::as_str), Some("true"));
        assert_eq!((text(&pieces).as_str(), asked.lock().unwrap().len()), ("one, two, ", 0), "{second}");
    }
}
