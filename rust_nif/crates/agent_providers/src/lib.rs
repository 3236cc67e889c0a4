//! Provider calls: OpenAI-compatible HTTP, the embedded local server, echo.
//!
//! [`Providers`] is the one door: it finds the endpoint of a model or alias, bounds what is under way, and gives one normalised answer or one
//! typed error. Dropping the future of a call aborts its HTTP request.

mod caller;
mod calls;
mod classify;
mod config;
mod constrain;
mod echo;
mod estimate;
mod hints;
pub mod meter;
mod money;
mod openai;
pub mod price;
mod read;
mod sse;
mod think;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use caller::Caller;
pub use config::{Dialect, ProviderConfig, ProvidersConfig, Secret, Timeouts};

/// Longest answer of the embedded model where the task sets none: a small model may repeat itself for ever.
const LOCAL_MAX_TOKENS: i32 = 256;

/// Where the pieces of a streamed answer go; bounded by its capacity.
pub type Pieces = mpsc::Sender<pb::StreamChatResponse>;

/// Where an endpoint is now.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// Configured or announced.
    At { base_url: String, key: Option<String> },
    /// Not there, and why.
    Nowhere(String),
}

struct Provider {
    name: String,
    config: ProviderConfig,
    http: reqwest::Client,
    place: RwLock<Place>,
    in_flight: AtomicU32,
    calls: AtomicU64,
    failures: AtomicU64,
    latency_ms: AtomicU64,
    /// Spent since the start, in pico-dollars.
    spent: AtomicI64,
    /// A call was made whose price is not known: the sum is not either.
    unpriced: AtomicBool,
}

/// All configured providers and models.
pub struct Providers {
    providers: BTreeMap<String, Arc<Provider>>,
    models: BTreeMap<String, config::ModelConfig>,
    money: money::Money,
}

struct InFlight<'a>(&'a Provider);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Providers {
    /// Builds the providers of a checked configuration; secrets are read here and stay here.
    pub fn new(config: &ProvidersConfig) -> Result<Arc<Self>, AgentError> {
        let mut providers = BTreeMap::new();
        for (name, c) in &config.providers {
            let place = match (&c.base_url, c.dialect) {
                (_, Dialect::Echo) => Place::At { base_url: String::new(), key: None },
                (_, Dialect::Anthropic | Dialect::OpenaiResponses) => Place::Nowhere("this dialect has not come yet".into()),
                (None, _) => Place::Nowhere("the local model server has not started yet".into()),
                (Some(url), _) => match c.api_key.as_ref().map(Secret::read).transpose() {
                    Ok(key) => Place::At { base_url: url.trim_end_matches('/').to_owned(), key },
                    Err(problem) => Place::Nowhere(problem),
                },
            };
            let provider = Provider {
                name: name.clone(),
                config: c.clone(),
                http: openai::client(c)?,
                place: RwLock::new(place),
                in_flight: AtomicU32::new(0),
                calls: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                latency_ms: AtomicU64::new(0),
                spent: AtomicI64::new(0),
                unpriced: AtomicBool::new(false),
            };
            providers.insert(name.clone(), Arc::new(provider));
        }
        Ok(Arc::new(Self { providers, models: config.models.clone(), money: money::Money::new(config) }))
    }

    /// The leases of this node.
    pub fn meter(&self) -> &meter::Meter {
        &self.money.meter
    }

    /// Says where a provider is now (`Some`), or that it is not there.
    pub fn set_endpoint(&self, provider: &str, endpoint: Option<(String, Option<String>)>) {
        if let Some(p) = self.providers.get(provider) {
            *p.place.write() = match endpoint {
                Some((base_url, key)) => Place::At { base_url, key },
                None => Place::Nowhere("the local model server is being restarted".into()),
            };
        }
    }

    /// One model call. With `pieces` the answer is streamed there too; its last piece is the whole answer.
    pub async fn chat(
        &self,
        request: &pb::ChatRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        pieces: Option<&Pieces>,
    ) -> Result<pb::ChatResponse, AgentError> {
        let chosen = self.resolve(&request.model)?;
        let (provider, model, prices, money::Paid { request, reservation }) = self.paid(chosen, request, caller).await?;
        let _slot = provider.enter()?;
        let request = request.as_ref();
        let started = Instant::now();
        let limit = limit_of(request, deadline, provider.config.timeouts.total);
        let call = self.call(&provider, &model, request, pieces);
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => {
                Err(AgentError::new(Reason::ProviderTimeout, format!("{} did not answer within {} s", provider.name, limit.as_secs_f32()))
                    .with("phase", "deadline")
                    .with("kind", "timeout"))
            }
        };
        let pico = money::settle(reservation, &prices, result.as_ref().map(|r| r.usage.as_ref()));
        provider.record(result.is_ok(), started.elapsed());
        provider.spend(pico);
        let mut response = result.map_err(|e| e.with("provider", &provider.name).with("model", &model))?;
        response.cost_micros = money::shown(pico);
        let response = provider.sign(response, model, started.elapsed());
        if let Some(pieces) = pieces {
            let last = pb::StreamChatResponse { piece: Some(pb::stream_chat_response::Piece::Final(response.clone())) };
            let _ = pieces.send(last).await;
        }
        Ok(response)
    }

    /// Money for a request; where the policy says so, for the next cheaper endpoint that can be paid.
    async fn paid<'a>(
        &self,
        (provider, model): (Arc<Provider>, String),
        request: &'a pb::ChatRequest,
        caller: &Caller,
    ) -> Result<(Arc<Provider>, String, Arc<price::Prices>, money::Paid<'a>), AgentError> {
        let prices = self.money.prices(alias(&request.model), &provider.config, &model);
        let refused = match self.money.reserve(request, caller, &prices, None).await {
            Ok(paid) => return Ok((provider, model, prices, paid)),
            Err(refused) => refused,
        };
        let cheaper = request.policy.as_ref().is_some_and(|p| p.on_budget_end() == pb::OnBudgetEnd::CheaperModel);
        if !cheaper || refused.reason != Reason::BudgetExhausted {
            return Err(refused);
        }
        let most = |prices: &price::Prices| prices.at_most(1_000_000, 1_000_000).unwrap_or(i64::MAX);
        let (_, candidates) = self.candidates(alias(&request.model));
        let mut others: Vec<_> = candidates
            .into_iter()
            .filter(|c| c.refused.is_empty())
            .filter_map(|c| {
                let other = self.providers.get(&c.provider)?.clone();
                let own = self.money.prices(alias(&request.model), &other.config, &c.model);
                (most(&own) < most(&prices)).then_some((other, c.model, own))
            })
            .collect();
        // The dearest of the cheaper ones first: it is the nearest to what was wanted.
        others.sort_by_key(|(_, _, own)| std::cmp::Reverse(most(own)));
        for (other, model, own) in others {
            if let Ok(paid) = self.money.reserve(request, caller, &own, None).await {
                return Ok((other, model, own, paid));
            }
        }
        Err(refused)
    }

    /// The whole answer where the provider has it without waiting for anything (echo, unshaped), for whoever would else change
    /// threads for it. `None`: ask [`Providers::chat`], which also gives every error.
    pub fn chat_now(&self, request: &pb::ChatRequest, caller: &Caller) -> Option<pb::ChatResponse> {
        let (provider, model) = self.resolve(&request.model).ok()?;
        if provider.config.dialect != Dialect::Echo {
            return None;
        }
        let prices = self.money.prices(alias(&request.model), &provider.config, &model);
        // A lease may have to be waited for.
        if self.money.limits(request, caller, &prices) {
            return None;
        }
        let _slot = provider.enter().ok()?;
        let started = Instant::now();
        let mut response = echo::chat_now(&model, request)?;
        provider.record(true, started.elapsed());
        let pico = response.usage.as_ref().and_then(|usage| prices.cost(usage));
        provider.spend(pico);
        response.cost_micros = money::shown(pico);
        Some(provider.sign(response, model, started.elapsed()))
    }

    async fn call(
        &self,
        provider: &Provider,
        model: &str,
        request: &pb::ChatRequest,
        pieces: Option<&Pieces>,
    ) -> Result<pb::ChatResponse, AgentError> {
        if provider.config.dialect == Dialect::Echo {
            return echo::chat(model, request, pieces).await;
        }
        let place = provider.place.read().clone();
        let Place::At { base_url, key } = place else {
            return Err(AgentError::new(Reason::ProviderUnavailable, format!("{} is not available", provider.name)).with("kind", "connect"));
        };
        let endpoint = openai::Endpoint { http: &provider.http, base_url: &base_url, key: key.as_deref(), model, config: &provider.config };
        let bounded;
        let mut request = request;
        if provider.config.dialect == Dialect::Local && request.max_tokens.is_none() {
            bounded = pb::ChatRequest { max_tokens: Some(LOCAL_MAX_TOKENS), ..request.clone() };
            request = &bounded;
        }
        if provider.config.native_tools() || request.tools.is_empty() || request.tool_choice == "none" {
            openai::chat(&endpoint, request, pieces).await
        } else {
            constrain::chat(&endpoint, request, pieces).await
        }
    }

    /// Embeddings of texts.
    pub async fn embed(
        &self,
        request: &pb::EmbedRequest,
        caller: &Caller,
        deadline: Option<Instant>,
    ) -> Result<pb::EmbedResponse, AgentError> {
        let (provider, model) = self.resolve(&request.model)?;
        let prices = self.money.prices(alias(&request.model), &provider.config, &model);
        let _slot = provider.enter()?;
        let reservation = self.money.reserve_embed(request, caller, &prices).await?;
        let result = self.embedded(&provider, &model, request, deadline).await;
        let pico = money::settle(reservation, &prices, result.as_ref().map(|r| r.usage.as_ref()));
        provider.spend(pico);
        let mut response = result?;
        response.provider.clone_from(&provider.name);
        response.model = model;
        response.cost_micros = money::shown(pico);
        Ok(response)
    }

    async fn embedded(
        &self,
        provider: &Provider,
        model: &str,
        request: &pb::EmbedRequest,
        deadline: Option<Instant>,
    ) -> Result<pb::EmbedResponse, AgentError> {
        if provider.config.dialect == Dialect::Echo {
            return Ok(echo::embed(model, request, &provider.name));
        }
        let place = provider.place.read().clone();
        let Place::At { base_url, key } = place else {
            return Err(AgentError::new(Reason::ProviderUnavailable, format!("{} is not available", provider.name)).with("kind", "connect"));
        };
        let endpoint = openai::Endpoint { http: &provider.http, base_url: &base_url, key: key.as_deref(), model, config: &provider.config };
        let limit = deadline.map_or(provider.config.timeouts.total, |d| d.saturating_duration_since(Instant::now()));
        tokio::time::timeout(limit, openai::embed(&endpoint, request))
            .await
            .unwrap_or_else(|_| Err(AgentError::new(Reason::ProviderTimeout, "no answer in time").with("kind", "timeout")))
    }

    /// The provider and the model's name there: an alias' first usable endpoint, `provider/model`, a listed model, or a provider that
    /// lists none and speaks to any.
    fn resolve(&self, wanted: &str) -> Result<(Arc<Provider>, String), AgentError> {
        let wanted = if wanted.is_empty() { "default" } else { wanted };
        let (chosen, candidates) = self.candidates(wanted);
        if let Some((provider, model)) = chosen {
            return Ok((provider, model));
        }
        match candidates.first() {
            Some(c) => Err(AgentError::new(
                Reason::ProviderUnavailable,
                format!("no provider of \"{}\" is available: {}: {}", clip(wanted), c.provider, c.refused),
            )
            .with("kind", "connect")
            .retry_after(1000)),
            None => {
                let known: Vec<&str> = self
                    .models
                    .keys()
                    .map(String::as_str)
                    .chain(self.providers.values().flat_map(|p| p.config.models.iter().map(String::as_str)))
                    .collect();
                Err(AgentError::new(
                    Reason::ModelNotFound,
                    format!("there is no model \"{}\"; known are {}", clip(wanted), known.join(", ")),
                )
                .with("model", clip(wanted)))
            }
        }
    }

    fn candidates(&self, wanted: &str) -> (Option<(Arc<Provider>, String)>, Vec<pb::ProviderCandidate>) {
        let mut found: Vec<(Arc<Provider>, String)> = Vec::new();
        if let Some(alias) = self.models.get(wanted) {
            let mut endpoints: Vec<_> = alias.endpoints.iter().collect();
            endpoints.sort_by_key(|e| e.priority);
            found.extend(endpoints.iter().filter_map(|e| Some((self.providers.get(&e.provider)?.clone(), e.name.clone()))));
        }
        if found.is_empty()
            && let Some((provider, model)) = wanted.split_once('/')
        {
            found.extend(self.providers.get(provider).map(|p| (p.clone(), model.to_owned())));
        }
        if found.is_empty() {
            let base = wanted.split('?').next().unwrap_or(wanted);
            found.extend(self.providers.values().filter(|p| p.serves(base)).map(|p| (p.clone(), wanted.to_owned())));
        }
        let mut chosen = None;
        let mut candidates = Vec::with_capacity(found.len());
        for (i, (provider, model)) in found.into_iter().enumerate() {
            let refused = match &*provider.place.read() {
                Place::At { .. } => String::new(),
                Place::Nowhere(why) => why.clone(),
            };
            #[allow(clippy::cast_precision_loss)]
            candidates.push(pb::ProviderCandidate {
                provider: provider.name.clone(),
                model: model.clone(),
                score: 1.0 / (1.0 + i as f64),
                refused: refused.clone(),
                ..Default::default()
            });
            if chosen.is_none() && refused.is_empty() {
                chosen = Some((provider, model));
            }
        }
        (chosen, candidates)
    }

    /// Dry run of the choice, with reasons.
    pub fn select(&self, req: &pb::TaskRequirements) -> Result<pb::SelectProviderResponse, AgentError> {
        let wanted = if req.model.is_empty() { "default" } else { &req.model };
        let (_, mut candidates) = self.candidates(wanted);
        for c in &mut candidates {
            if req.denied_providers.contains(&c.provider) {
                c.refused = "denied by the task".into();
            } else if !req.allowed_providers.is_empty() && !req.allowed_providers.contains(&c.provider) {
                c.refused = "not among the allowed providers".into();
            }
        }
        match candidates.iter().find(|c| c.refused.is_empty()).cloned() {
            Some(c) => Ok(pb::SelectProviderResponse {
                reason: format!("first usable endpoint of \"{}\" by priority", clip(wanted)),
                provider: c.provider,
                model: c.model,
                candidates,
            }),
            None if candidates.is_empty() => Err(AgentError::new(Reason::ModelNotFound, format!("there is no model \"{}\"", clip(wanted)))),
            None => {
                let mut error = AgentError::new(Reason::NoProviderMatches, "every provider of the model was removed");
                for c in candidates {
                    error = error.with(&c.provider, &c.refused);
                }
                Err(error)
            }
        }
    }

    /// Every provider as clients see it.
    pub fn list(&self) -> Vec<pb::Provider> {
        self.providers.values().map(|p| p.view()).collect()
    }

    /// Every model and alias.
    pub fn list_models(&self) -> Vec<pb::Model> {
        let prices = &|alias: &str, provider: Option<&Arc<Provider>>, model: &str| {
            let prices = provider.map(|p| self.money.prices(alias, &p.config, model)).unwrap_or_default();
            let (date, source) = prices.source();
            (prices.view(), format!("{date} {source}").trim().to_owned())
        };
        let aliases = self.models.iter().filter(|(_, m)| !m.endpoints.is_empty()).map(|(name, m)| {
            let first = m.endpoints.iter().min_by_key(|e| e.priority);
            let (prices, price_source) = first.map(|e| prices(name, self.providers.get(&e.provider), &e.name)).unwrap_or_default();
            pb::Model {
                prices,
                price_source,
                name: name.clone(),
                endpoints: m.endpoints.iter().map(|e| format!("{}/{}", e.provider, e.name)).collect(),
                capabilities: vec!["tools".into(), "json_schema".into(), "streaming".into()],
                ..Default::default()
            }
        });
        let listed = self.providers.values().flat_map(|p| {
            p.config.models.iter().map(move |m| {
                let (prices, price_source) = prices(m, Some(p), m);
                pb::Model {
                    prices,
                    price_source,
                    name: m.clone(),
                    endpoints: vec![format!("{}/{m}", p.name)],
                    capabilities: vec!["streaming".into()],
                    ..Default::default()
                }
            })
        });
        aliases.chain(listed).collect()
    }
}

impl Provider {
    fn serves(&self, model: &str) -> bool {
        match self.config.dialect {
            Dialect::Echo => model == "echo",
            _ if self.config.models.is_empty() => self.config.dialect == Dialect::Openai,
            _ => self.config.models.iter().any(|m| m == model),
        }
    }

    fn enter(&self) -> Result<InFlight<'_>, AgentError> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let slot = InFlight(self);
        if before >= self.config.concurrency {
            return Err(AgentError::new(Reason::ProviderOverloaded, format!("{} calls of {} are under way", before, self.name))
                .with("kind", "overloaded")
                .retry_after(200));
        }
        Ok(slot)
    }

    /// Who answered, as what, and how fast.
    fn sign(&self, mut response: pb::ChatResponse, model: String, took: Duration) -> pb::ChatResponse {
        response.provider.clone_from(&self.name);
        response.model = model;
        response.latency = Some(prost_types::Duration {
            seconds: i64::try_from(took.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(took.subsec_nanos()).unwrap_or(0),
        });
        response
    }

    /// What a request cost; none: nobody knows.
    fn spend(&self, pico: Option<i64>) {
        match pico {
            Some(pico) => drop(self.spent.fetch_add(pico, Ordering::Relaxed)),
            None => self.unpriced.store(true, Ordering::Relaxed),
        }
    }

    fn record(&self, ok: bool, took: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !ok {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let old = self.latency_ms.load(Ordering::Relaxed);
        self.latency_ms.store(if old == 0 { ms } else { (old * 7 + ms) / 8 }, Ordering::Relaxed);
    }

    fn view(&self) -> pb::Provider {
        let (calls, failures) = (self.calls.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed));
        let ms = i64::try_from(self.latency_ms.load(Ordering::Relaxed)).unwrap_or(0);
        #[allow(clippy::cast_precision_loss)]
        let error_rates = if calls == 0 { BTreeMap::new() } else { [("all".to_owned(), failures as f64 / calls as f64)].into() };
        pb::Provider {
            name: self.name.clone(),
            dialect: self.config.dialect.name().to_owned(),
            state: match &*self.place.read() {
                Place::At { .. } => "ready".to_owned(),
                Place::Nowhere(why) => format!("unavailable: {why}"),
            },
            breaker: "closed".into(),
            in_flight: i32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(i32::MAX),
            latency: (calls > 0).then(|| agent_core::header::duration(ms)),
            error_rates,
            cost_micros: (!self.unpriced.load(Ordering::Relaxed)).then(|| price::micros(self.spent.load(Ordering::Relaxed))),
            requests: i64::try_from(calls).unwrap_or(i64::MAX),
            ..Default::default()
        }
    }
}

fn limit_of(request: &pb::ChatRequest, deadline: Option<Instant>, total: Duration) -> Duration {
    let mut limit = total;
    if let Some(t) = &request.timeout {
        limit = limit.min(Duration::from_millis(u64::try_from(agent_core::header::duration_ms(t)).unwrap_or(0)));
    }
    if let Some(d) = deadline {
        limit = limit.min(d.saturating_duration_since(Instant::now()));
    }
    limit
}

/// What an empty name of a model means.
fn alias(model: &str) -> &str {
    if model.is_empty() { "default" } else { model }
}

fn clip(name: &str) -> String {
    name.chars().take(80).collect()
}

pub(crate) async fn send_text(pieces: Option<&Pieces>, text: &str) {
    if let Some(pieces) = pieces
        && !text.is_empty()
    {
        let piece = pb::StreamChatResponse { piece: Some(pb::stream_chat_response::Piece::TextDelta(text.to_owned())) };
        let _ = pieces.send(piece).await;
    }
}
