//! The part of the native configuration that providers need.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::meter::Budget;
use crate::price::{Listed, Prices};

/// `providers` and `models` of the native configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProvidersConfig {
    /// By name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Aliases by name.
    pub models: BTreeMap<String, ModelConfig>,
    /// List prices at the hosts of the providers.
    pub prices: Vec<Listed>,
    /// Budgets by tenant.
    pub budgets: BTreeMap<String, Budget>,
    /// Answers that are kept for equal calls.
    pub cache: CacheConfig,
    /// What may be switched off.
    pub switches: Switches,
}

/// Parts of the engine's own that a configuration may switch off, all on by default.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Switches {
    /// `provider_federation`: an alias has all of its endpoints; off: the first one alone.
    pub federation: bool,
    /// `provider_optimization`: endpoints of one priority are weighed; off: they are asked in the order of the file.
    pub optimization: bool,
    /// `rust_optimizations`: calls read their own connections where that is possible; off: all go through the general client.
    pub direct: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { federation: true, optimization: true, direct: true }
    }
}

/// What is kept for calls that ask for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct CacheConfig {
    /// How long an answer is given again.
    #[serde(rename = "ttl_ms", deserialize_with = "millis")]
    pub ttl: Duration,
    /// Of all answers together.
    pub max_bytes: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), max_bytes: 64 * 1024 * 1024 }
    }
}

/// How a provider is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Chat completions.
    Openai,
    /// Responses.
    OpenaiResponses,
    /// Messages.
    Anthropic,
    /// The embedded model server: chat completions with constrained tools.
    Local,
    /// For tests and benchmarks.
    Echo,
}

impl Dialect {
    /// Name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Openai => "openai",
            Dialect::OpenaiResponses => "openai_responses",
            Dialect::Anthropic => "anthropic",
            Dialect::Local => "local",
            Dialect::Echo => "echo",
        }
    }
}

/// One provider.
#[derive(Clone, Debug, Deserialize)]
pub struct ProviderConfig {
    /// Dialect.
    pub dialect: Dialect,
    /// Absent for `local` (announced when its server runs) and `echo`.
    #[serde(default)]
    pub base_url: Option<String>,
    /// Where its key is.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// More keys, used in turn.
    #[serde(default)]
    pub credentials: Vec<CredentialConfig>,
    /// Tags of data that may go there.
    #[serde(default)]
    pub data_tags: Vec<String>,
    /// Longest pause that is made before the same endpoint is asked again.
    #[serde(default = "default_max_wait", rename = "max_wait_ms", deserialize_with = "millis")]
    pub max_wait: Duration,
    /// Models it serves; empty: any.
    #[serde(default)]
    pub models: Vec<String>,
    /// Absent: false for `local`, true for others.
    #[serde(default)]
    pub native_tools: Option<bool>,
    /// Calls at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Timeouts.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Largest answer, in bytes.
    #[serde(default = "default_body_bytes")]
    pub max_body_bytes: usize,
    /// Largest event of a stream, in bytes.
    #[serde(default = "default_event_bytes")]
    pub max_event_bytes: usize,
    /// Requests in a minute, over all keys.
    #[serde(default)]
    pub rpm: Option<u32>,
    /// Tokens in a minute, over all keys, of the request and of the answer.
    #[serde(default)]
    pub tpm: Option<u32>,
    /// Sent as the query `api-version`.
    #[serde(default)]
    pub api_version: Option<String>,
    /// Header that carries the key; absent: that of the dialect.
    #[serde(default)]
    pub key_header: Option<String>,
    /// Further headers of every request. They are configuration, not secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// PEM file of certificates that are trusted beside those of the system.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// Address of the proxy; absent: that of the environment, and none to this machine.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Whether the dialect `openai_responses` asks for its reasoning in a form that can go back.
    #[serde(default = "yes")]
    pub encrypted_reasoning: bool,
    /// What fails together with it; absent: the host and port of its address.
    #[serde(default)]
    pub failure_domain: Option<String>,
    /// Whether `<think>…</think>` at the start of the content is reasoning.
    #[serde(default)]
    pub think_tags: bool,
}

fn yes() -> bool {
    true
}

fn default_max_wait() -> Duration {
    Duration::from_secs(120)
}

fn millis<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    u64::deserialize(d).map(Duration::from_millis)
}

fn millionths<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
    Ok(Some(f64::from(u32::deserialize(d)?) / 1e6))
}

/// A key with a name of its own.
#[derive(Clone, Debug, Deserialize)]
pub struct CredentialConfig {
    /// Name in views; never the key.
    pub id: String,
    /// Where the key is.
    pub key: Secret,
    /// Requests in a minute with it.
    #[serde(default)]
    pub rpm: Option<u32>,
    /// Tokens in a minute with it.
    #[serde(default)]
    pub tpm: Option<u32>,
}

fn default_body_bytes() -> usize {
    8 * 1024 * 1024
}

fn default_event_bytes() -> usize {
    1024 * 1024
}

fn default_concurrency() -> u32 {
    1024
}

impl ProviderConfig {
    /// What fails together with it: as configured, else the host and port of its address, else itself.
    pub fn domain(&self, name: &str) -> String {
        let authority = || self.base_url.as_deref()?.split_once("://")?.1.split('/').next();
        self.failure_domain.as_deref().or_else(authority).unwrap_or(name).to_owned()
    }

    /// Whether its models call tools by themselves.
    pub fn native_tools(&self) -> bool {
        self.native_tools.unwrap_or(self.dialect != Dialect::Local)
    }
}

/// Timeouts of one call, in the configuration as `*_ms`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "TimeoutsMs")]
pub struct Timeouts {
    /// To the connection, with TLS.
    pub connect: Duration,
    /// To the response's head.
    pub headers: Duration,
    /// To the first piece of content.
    pub first_token: Duration,
    /// Between two bytes.
    pub idle: Duration,
    /// Between two pieces of content; what keeps a connection alive is none.
    pub content_idle: Duration,
    /// Of the whole call.
    pub total: Duration,
}

#[derive(Deserialize)]
#[serde(default)]
struct TimeoutsMs {
    connect_ms: u64,
    headers_ms: u64,
    first_token_ms: u64,
    idle_ms: u64,
    content_idle_ms: u64,
    total_ms: u64,
}

impl Default for TimeoutsMs {
    fn default() -> Self {
        Self {
            connect_ms: 10_000,
            headers_ms: 60_000,
            first_token_ms: 60_000,
            idle_ms: 60_000,
            content_idle_ms: 120_000,
            total_ms: 600_000,
        }
    }
}

impl From<TimeoutsMs> for Timeouts {
    fn from(t: TimeoutsMs) -> Self {
        let ms = Duration::from_millis;
        Self {
            connect: ms(t.connect_ms),
            headers: ms(t.headers_ms),
            first_token: ms(t.first_token_ms),
            idle: ms(t.idle_ms),
            content_idle: ms(t.content_idle_ms),
            total: ms(t.total_ms),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        TimeoutsMs::default().into()
    }
}

/// Where a key is; never the key itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// Environment variable.
    Env(String),
    /// File.
    File(String),
}

impl Secret {
    /// Reads it. The error names the place, never the content.
    pub fn read(&self) -> Result<String, String> {
        let value = match self {
            Secret::Env(name) => std::env::var(name).map_err(|_| format!("the environment variable {name} is not set"))?,
            Secret::File(path) => std::fs::read_to_string(path).map_err(|e| format!("the key file {path} cannot be read: {e}"))?,
        };
        let value = value.trim().to_owned();
        if value.is_empty() { Err("the key is empty".into()) } else { Ok(value) }
    }
}

/// An alias.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ModelConfig {
    /// Where it is served.
    #[serde(default)]
    pub endpoints: Vec<EndpointConfig>,
    /// Its prices; none: those of the list.
    #[serde(default)]
    pub prices: Prices,
}

/// One endpoint of an alias.
#[derive(Clone, Debug, Deserialize)]
pub struct EndpointConfig {
    /// Provider.
    pub provider: String,
    /// Model as the provider names it.
    pub name: String,
    /// Smaller first.
    #[serde(default)]
    pub priority: i32,
    /// Share among those of one priority.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Tokens of question and answer together; 0: it is not known.
    #[serde(default)]
    pub context_tokens: i64,
    /// What it can do besides text; none: everything, but for `prefill`.
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// How good its answers are, from 0 to 1; none: nobody knows.
    #[serde(default, rename = "quality_millionths", deserialize_with = "millionths")]
    pub quality: Option<f64>,
    /// Endpoints of one family go on with each other's answers; empty: no other one does.
    #[serde(default)]
    pub family: String,
}

fn default_weight() -> u32 {
    1
}
