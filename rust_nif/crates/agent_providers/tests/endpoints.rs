//! Where a provider is and how it is reached: deployments, headers, own certificates, HTTP/2, proxies, packed answers. Over real sockets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod upstream;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use agent_core::AgentError;
use agent_proto::agents::v1 as pb;
use agent_providers::{Caller, Providers, ProvidersConfig};
use serde_json::{Value, json};
use upstream::Got;

const KEY: &str = "sk-canary-0123456789";

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("endpoints_{}_{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("key"), KEY).unwrap();
    folder
}

fn providers(name: &str, mut provider: Value) -> Arc<Providers> {
    provider["dialect"] = "openai".into();
    provider["api_key"] = json!({"file": folder(name).join("key")});
    let config: ProvidersConfig = serde_json::from_value(json!({"providers": {"p": provider}})).unwrap();
    Providers::new(&config).unwrap()
}

async fn ask(providers: &Providers) -> Result<String, AgentError> {
    let messages = vec![agent_core::agent::text_message(pb::Role::User, "Hello".to_owned())];
    let request = pb::ChatRequest { model: "p/gpt 4".into(), messages, ..Default::default() };
    let answer = providers.chat(&request, &Caller::default(), None, None).await?;
    Ok(answer.message.as_ref().map(agent_core::agent::text_of).unwrap_or_default())
}

type Seen = Arc<Mutex<Vec<Got>>>;

fn recorder() -> (Seen, impl Fn(Got) -> std::future::Ready<upstream::Answer> + Clone + Send + Sync + 'static) {
    let seen = Seen::default();
    let all = seen.clone();
    let answer = move |got: Got| {
        all.lock().unwrap().push(got);
        std::future::ready(upstream::chat("Hi."))
    };
    (seen, answer)
}

#[tokio::test]
async fn a_deployment_host_gets_its_path_its_version_and_its_key_in_its_own_header() {
    let (seen, answer) = recorder();
    let address = upstream::serve(None, answer).await;
    let providers = providers(
        "azure",
        json!({
            "base_url": format!("http://{address}/openai/deployments/{{model}}"), "api_version": "2024-10-21", "key_header": "api-key",
            "headers": {"x-team": "blue"},
        }),
    );
    assert_eq!(ask(&providers).await.unwrap(), "Hi.");
    let got = seen.lock().unwrap()[0].clone();
    assert_eq!(got.uri, "/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21");
    assert_eq!((got.headers["api-key"].as_bytes(), got.headers["x-team"].as_bytes()), (KEY.as_bytes(), &b"blue"[..]));
    assert!(got.headers.get("authorization").is_none());
}

#[tokio::test]
async fn an_own_authority_is_trusted_where_it_is_named_and_http_2_is_spoken_there() {
    let (ca, tls) = upstream::authority(&folder("tls"));
    let (seen, answer) = recorder();
    let address = upstream::serve(Some(tls), answer).await;
    let base_url = format!("https://{}/v1", address.replace("127.0.0.1", "localhost"));
    assert_eq!(ask(&providers("tls", json!({"base_url": base_url, "ca_file": ca}))).await.unwrap(), "Hi.");
    assert_eq!(seen.lock().unwrap()[0].version, hyper::Version::HTTP_2);
    let error = ask(&providers("tls", json!({"base_url": base_url}))).await.unwrap_err();
    assert_eq!(error.metadata["kind"], "connect", "{error:?}");
    assert_eq!(seen.lock().unwrap().len(), 1, "nothing was sent to a stranger");
}

#[tokio::test]
async fn a_provider_has_a_proxy_of_its_own() {
    let (seen, answer) = recorder();
    let proxy = upstream::serve(None, answer).await;
    let providers = providers("proxy", json!({"base_url": "http://models.invalid/v1", "proxy": format!("http://{proxy}")}));
    assert_eq!(ask(&providers).await.unwrap(), "Hi.");
    assert_eq!(seen.lock().unwrap()[0].uri, "http://models.invalid/v1/chat/completions");
}

#[tokio::test]
async fn answers_may_be_packed_with_brotli() {
    let plain = json!({"choices": [{"index": 0, "message": {"content": "Packed."}, "finish_reason": "stop"}]}).to_string();
    let mut packed = Vec::new();
    brotli::CompressorWriter::new(&mut packed, 4096, 5, 20).write_all(plain.as_bytes()).unwrap();
    let seen = Seen::default();
    let all = seen.clone();
    let address = upstream::serve(None, move |got| {
        all.lock().unwrap().push(got);
        let answer = hyper::Response::builder().header("content-encoding", "br").header("content-type", "application/json");
        std::future::ready(answer.body(packed.clone().into()).unwrap())
    })
    .await;
    assert_eq!(ask(&providers("brotli", json!({"base_url": format!("http://{address}/v1")}))).await.unwrap(), "Packed.");
    assert!(seen.lock().unwrap()[0].headers["accept-encoding"].to_str().unwrap().contains("br"));
}

#[tokio::test]
async fn a_provider_whose_options_are_wrong_is_listed_as_such_and_others_serve() {
    let providers = providers("wrong", json!({"base_url": "https://models.invalid/v1", "ca_file": "/nowhere/ca.pem"}));
    let state = providers.list()[0].state.clone();
    assert!(state.contains("ca_file /nowhere/ca.pem"), "{state}");
    assert_eq!(ask(&providers).await.unwrap_err().metadata["kind"], "connect");
}
