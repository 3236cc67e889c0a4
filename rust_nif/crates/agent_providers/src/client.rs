//! The HTTP client of a provider, and the addresses of its requests.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::{ProviderConfig, unpack};

/// Idle connections that are kept for each host.
pub(crate) const IDLE_CONNECTIONS: usize = 64;
/// How long they are kept: less than the 60 s after which load balancers cut them.
pub(crate) const IDLE: Duration = Duration::from_secs(30);
/// Between two probes of a silent connection.
pub(crate) const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// Between two pings of an HTTP/2 connection, and how long their answer may take.
const HTTP2_PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Bytes of an answer that are gathered, as long as they come at once, before they are passed on.
pub(crate) const GATHER: usize = 64 * 1024;
/// What the engine calls itself.
const USER_AGENT: &str = concat!("singularity/", env!("CARGO_PKG_VERSION"));
/// Variables that name a proxy for plain HTTP.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
/// Headers that the engine sets itself.
const RESERVED: [&str; 11] = [
    "authorization",
    "x-api-key",
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "accept-encoding",
    "proxy-authorization",
    "cookie",
    "anthropic-version",
];

/// The client of a configuration. Connections are reused, HTTP/2 is spoken where the host offers it, redirects are never followed, and nothing
/// is repeated in silence. A provider on this machine is asked without the proxy of the environment: its key and its prompts stay here.
/// The error names the key of the configuration that is wrong.
pub(crate) fn client(config: &ProviderConfig) -> Result<reqwest::Client, String> {
    let mut builder = plain(config).default_headers(headers(config)?);
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|e| format!("ca_file {path} cannot be read: {e}"))?;
        let own = reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| format!("ca_file {path} is no PEM file of certificates"))?;
        if own.is_empty() {
            return Err(format!("ca_file {path} has no certificate"));
        }
        builder = builder.tls_certs_merge(own);
    }
    if let Some(url) = &config.proxy {
        // The address may hold a password: it is not shown.
        let proxy = reqwest::Proxy::all(url).map_err(|_| "proxy is no address such as \"http://host:3128\"".to_owned())?;
        builder = builder.no_proxy().proxy(proxy);
    }
    builder.build().map_err(|e| format!("the HTTP client cannot be made: {e}"))
}

/// The same without what may be wrong: for a provider that cannot be asked anyway.
pub(crate) fn bare(config: &ProviderConfig) -> Result<reqwest::Client, String> {
    plain(config).build().map_err(|e| format!("the HTTP client cannot be made: {e}"))
}

fn plain(config: &ProviderConfig) -> reqwest::ClientBuilder {
    // Another subsystem may have installed the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(config.timeouts.connect)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(HTTP2_PING.0)
        .http2_keep_alive_timeout(HTTP2_PING.1)
        .user_agent(USER_AGENT);
    if config.base_url.as_deref().is_none_or(is_loopback) { builder.no_proxy() } else { builder }
}

fn headers(config: &ProviderConfig) -> Result<HeaderMap, String> {
    let mut all = HeaderMap::new();
    for (name, value) in &config.headers {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("headers: \"{name}\" is no name of a header"))?;
        if RESERVED.contains(&key.as_str()) {
            return Err(format!("headers: {name} is set by the engine"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| format!("headers: {name} has characters that no header takes"))?;
        value.set_sensitive(true);
        all.insert(key, value);
    }
    if let Some(name) = &config.key_header {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("key_header: \"{name}\" is no name of a header"))?;
    }
    Ok(all)
}

/// The headers of every request, for a client that adds none by itself.
pub(crate) fn every_headers(config: &ProviderConfig) -> Result<HeaderMap, String> {
    let mut all = headers(config)?;
    for (name, value) in [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*"), (header::ACCEPT_ENCODING, unpack::ACCEPTED)] {
        all.entry(name).or_insert(HeaderValue::from_static(value));
    }
    Ok(all)
}

/// Whether nothing stands between this node and a provider that is asked without TLS.
pub(crate) fn is_direct(config: &ProviderConfig) -> bool {
    let asked = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    config.proxy.is_none() && (config.base_url.as_deref().is_none_or(is_loopback) || !PROXIES.iter().any(|name| asked(name)))
}

fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Address of a request: `{model}` in the base is the model, where a host has a path for each deployment.
pub(crate) fn address(config: &ProviderConfig, base_url: &str, path: &str, model: &str) -> String {
    let base = if base_url.contains("{model}") { base_url.replace("{model}", &encoded(model)) } else { base_url.to_owned() };
    match &config.api_version {
        Some(version) => format!("{base}/{path}?api-version={}", encoded(version)),
        None => format!("{base}/{path}"),
    }
}

/// A part of a path or a query.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ProviderConfig {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_deployment_is_a_part_of_the_path_and_cannot_leave_it() {
        let azure = config(serde_json::json!({"dialect": "openai", "api_version": "2024-10-21"}));
        let base = "https://x.example/openai/deployments/{model}";
        assert_eq!(
            address(&azure, base, "chat/completions", "gpt-4.1"),
            "https://x.example/openai/deployments/gpt-4.1/chat/completions?api-version=2024-10-21"
        );
        assert!(address(&azure, base, "embeddings", "../x?y").starts_with("https://x.example/openai/deployments/..%2Fx%3Fy/embeddings?"));
        let plain = config(serde_json::json!({"dialect": "openai"}));
        assert_eq!(address(&plain, "https://x.example/v1", "embeddings", "m"), "https://x.example/v1/embeddings");
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_shown() {
        let problem = |json: serde_json::Value| client(&config(json)).err().unwrap_or_default();
        assert!(problem(serde_json::json!({"dialect": "openai", "headers": {"authorization": "hush"}})).contains("authorization is set"));
        let value = problem(serde_json::json!({"dialect": "openai", "headers": {"x-team": "hu\nsh"}}));
        assert!(value.contains("x-team") && !value.contains("sh\"") && !value.contains("hu\n"), "{value}");
        assert!(problem(serde_json::json!({"dialect": "openai", "ca_file": "/nowhere/ca.pem"})).contains("ca_file /nowhere/ca.pem"));
        let proxy = problem(serde_json::json!({"dialect": "openai", "proxy": "http://user:hush@ not an address"}));
        assert!(proxy.contains("proxy") && !proxy.contains("hush"), "{proxy}");
    }
}
