//! Provider calls: OpenAI-compatible and Anthropic HTTP, the embedded local server, echo.
//!
//! [`Providers`] is the one door: it finds the endpoint of a model or alias, bounds what is under way, and gives one normalised answer or one
//! typed error. Dropping the future of a call aborts its HTTP request.

mod anthropic;
mod attempts;
mod blocks;
mod breaker;
mod cache;
mod caller;
mod calls;
mod candidates;
mod chance;
mod choose;
mod classify;
mod client;
mod config;
mod constrain;
mod credentials;
mod direct;
mod echo;
mod estimate;
mod failover;
mod flow;
mod health;
mod hedge;
mod hints;
mod items;
mod limits;
mod messages;
pub mod meter;
mod money;
mod openai;
mod openai_body;
pub mod price;
mod probe;
mod read;
mod redact;
mod refuse;
mod responses;
mod responses_body;
mod resume;
mod retries;
mod spending;
mod sse;
mod think;
mod transport;
mod unpack;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

pub use caller::Caller;
pub use candidates::{analyze_task_requirements, narrowed};
use credentials::{Credential, Credentials};
use flow::Flow;
use health::{Health, Healths};
use limits::{Limits, Rates};
use retries::Retries;
use transport::Http;

pub use config::{Dialect, ProviderConfig, ProvidersConfig, Secret, Timeouts};

/// Longest answer of the embedded model where the task sets none: a small model may repeat itself for ever.
const LOCAL_MAX_TOKENS: i32 = 256;

/// Where the pieces of a streamed answer go; bounded by its capacity.
pub type Pieces = mpsc::Sender<pb::StreamChatResponse>;

/// Where an endpoint is now.
#[derive(Clone)]
enum Place {
    /// Configured or announced.
    At { base_url: Arc<str>, keys: Arc<Credentials> },
    /// Not there, and why.
    Nowhere(String),
}

struct Provider {
    name: String,
    config: ProviderConfig,
    /// What fails together with it.
    domain: String,
    http: Http,
    place: RwLock<Place>,
    /// Rates over all keys, and what headers say where there is no key.
    limits: Limits,
    in_flight: AtomicU32,
    calls: AtomicU64,
    latency_ms: AtomicU64,
    tally: Mutex<Tally>,
    /// Spent since the start, in pico-dollars.
    spent: AtomicI64,
    /// A call was made whose price is not known: the sum is not either.
    unpriced: AtomicBool,
}

/// Sums since the start.
#[derive(Default)]
struct Tally {
    errors: BTreeMap<String, i64>,
    tokens: pb::Usage,
    /// Weight for the breaker.
    faults: f64,
}

/// All configured providers and models.
pub struct Providers {
    providers: BTreeMap<String, Arc<Provider>>,
    models: BTreeMap<String, config::ModelConfig>,
    aliases: HashMap<String, Vec<candidates::Found>>,
    switches: config::Switches,
    money: money::Money,
    healths: Healths,
    retries: Retries,
    hedges: hedge::Hedges,
    cache: cache::Cache,
    spending: spending::Spending,
}

/// A request that was taken from rates.
struct Admitted<'a> {
    limits: Vec<&'a Limits>,
    expected: i64,
}

impl Admitted<'_> {
    /// It has ended and took so much, where that is known.
    fn settle(self, usage: Option<&pb::Usage>) {
        let used = usage.map_or(self.expected, |u| u.input_tokens.saturating_add(u.output_tokens));
        self.limits.iter().for_each(|l| l.settle(self.expected, used));
    }

    /// It was not sent.
    fn give_back(self) {
        self.limits.iter().for_each(|l| l.give_back(self.expected));
    }
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
            let client = Http::new(c, config.switches.direct);
            let place = match (&c.base_url, c.dialect) {
                _ if client.is_err() => Place::Nowhere(client.as_ref().err().cloned().unwrap_or_default()),
                (_, Dialect::Echo) => Place::at("", Credentials::default()),
                (None, _) => Place::Nowhere("the local model server has not started yet".into()),
                (Some(url), _) => match keys(c) {
                    Ok(keys) => Place::at(url, keys),
                    Err(problem) => Place::Nowhere(problem),
                },
            };
            let provider = Provider {
                name: name.clone(),
                config: c.clone(),
                domain: c.domain(name),
                // A provider whose options are wrong says so where it is listed; the others serve.
                http: client.or_else(|_| Http::bare(c)).map_err(|e| AgentError::new(Reason::Internal, e))?,
                place: RwLock::new(place),
                limits: Limits::new(Rates { requests: c.rpm, tokens: c.tpm }),
                in_flight: AtomicU32::new(0),
                calls: AtomicU64::new(0),
                latency_ms: AtomicU64::new(0),
                tally: Mutex::default(),
                spent: AtomicI64::new(0),
                unpriced: AtomicBool::new(false),
            };
            providers.insert(name.clone(), Arc::new(provider));
        }
        let (money, healths) = (money::Money::new(config), Healths::new());
        Ok(Arc::new(Self {
            aliases: candidates::aliases(config, &providers, &healths, &money),
            switches: config.switches,
            providers,
            models: config.models.clone(),
            money,
            healths,
            retries: Retries::default(),
            hedges: hedge::Hedges::default(),
            cache: cache::Cache::new(&config.cache),
            spending: spending::Spending::default(),
        }))
    }

    /// The leases of this node.
    pub fn meter(&self) -> &meter::Meter {
        &self.money.meter
    }

    /// Says where a provider is now (`Some`), or that it is not there.
    pub fn set_endpoint(&self, provider: &str, endpoint: Option<(String, Option<String>)>) {
        if let Some(p) = self.providers.get(provider) {
            *p.place.write() = match endpoint {
                Some((base_url, key)) => Place::at(&base_url, Credentials::new(vec![Credential::new("local", key, Rates::default())])),
                None => Place::Nowhere("the local model server is being restarted".into()),
            };
        }
    }

    /// The whole answer where the provider has it without waiting for anything (echo, unshaped), for whoever would else change
    /// threads for it. `None`: ask [`Providers::chat`], which also gives every error.
    pub fn chat_now(&self, request: &pb::ChatRequest, caller: &Caller) -> Option<pb::ChatResponse> {
        if request.policy.as_ref().is_some_and(|p| !is_plain(p)) {
            return None;
        }
        let (provider, model) = self.only_echo(alias(&request.model))?;
        let prices = self.money.prices(alias(&request.model), &provider.config, &model);
        // A lease may have to be waited for.
        if self.money.limits(request, caller, &prices) {
            return None;
        }
        let _slot = provider.enter().ok()?;
        let started = Instant::now();
        let mut response = echo::chat_now(&model, request)?;
        provider.answered(started.elapsed(), response.usage.as_ref());
        let pico = response.usage.as_ref().and_then(|usage| prices.cost(usage));
        self.charge(provider.as_ref(), caller, pico);
        response.cost_micros = money::shown(pico);
        Some(provider.sign(response, model, started.elapsed()))
    }

    async fn call(
        &self,
        provider: &Provider,
        model: &str,
        key: Option<&Credential>,
        request: &pb::ChatRequest,
        pieces: Option<&Flow<'_>>,
    ) -> Result<pb::ChatResponse, AgentError> {
        if provider.config.dialect == Dialect::Echo {
            return echo::chat(model, request, pieces).await;
        }
        let result = self.spoken(provider, model, key, request, pieces).await;
        let Some(secret) = key.and_then(Credential::secret) else { return result };
        match result {
            Ok(mut response) => {
                response.provider_request_id = redact::text(response.provider_request_id, secret);
                response.raw_finish_reason = redact::text(response.raw_finish_reason, secret);
                Ok(response)
            }
            Err(error) => Err(redact::error(error, secret)),
        }
    }

    /// In the provider's dialect.
    async fn spoken(
        &self,
        provider: &Provider,
        model: &str,
        key: Option<&Credential>,
        request: &pb::ChatRequest,
        pieces: Option<&Flow<'_>>,
    ) -> Result<pb::ChatResponse, AgentError> {
        let base_url = provider.base_url()?;
        let endpoint = provider.endpoint(&base_url, model, key);
        match provider.config.dialect {
            Dialect::Anthropic => return anthropic::chat(&endpoint, request, pieces).await,
            Dialect::OpenaiResponses => return responses::chat(&endpoint, request, pieces).await,
            _ => {}
        }
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
        let policy = request.policy.as_ref();
        let choices = self.choose(&request.model, policy, &|| candidates::Size::of_texts(estimate::embed(request)))?;
        let last = choices.len().min(failover::MAX_ATTEMPTS) - 1;
        self.retries.first(&caller.tenant, Instant::now());
        for (at, choice) in choices.iter().enumerate() {
            match self.embedded_at(choice, request, caller, deadline).await {
                Err(e) if at < last && failover::rule(&e).elsewhere() && self.retries.take(&caller.tenant) => {}
                Err(e) => return Err(e.with("provider", &choice.provider.name).with("model", &choice.model)),
                answer => return answer,
            }
        }
        Err(AgentError::new(Reason::Internal, "a choice of nothing"))
    }

    async fn embedded_at(
        &self,
        choice: &candidates::Choice,
        request: &pb::EmbedRequest,
        caller: &Caller,
        deadline: Option<Instant>,
    ) -> Result<pb::EmbedResponse, AgentError> {
        let (provider, model) = (&choice.provider, &choice.model);
        let prices = self.money.prices(alias(&request.model), &provider.config, model);
        let _slot = provider.enter()?;
        let reservation = self.money.reserve_embed(request, caller, &prices).await?;
        let started = Instant::now();
        let expected = estimate::embed(request) / candidates::BYTES_PER_TOKEN;
        let key = provider.key(started, &[], |l| l.short(started, model, expected));
        let admitted = provider.admit(key.as_deref(), &|| expected, started)?;
        let result = self.embedded(provider, model, key.as_deref(), request, deadline).await;
        let pico = money::settle(reservation, &prices, result.as_ref().map(|r| r.usage.as_ref()));
        self.charge(provider, caller, pico);
        admitted.settle(result.as_ref().ok().and_then(|r| r.usage.as_ref()));
        match &result {
            Ok(r) => provider.answered(started.elapsed(), r.usage.as_ref()),
            Err(e) => provider.failed(e),
        }
        let mut response = result?;
        response.provider.clone_from(&provider.name);
        response.model.clone_from(model);
        response.cost_micros = money::shown(pico);
        Ok(response)
    }

    async fn embedded(
        &self,
        provider: &Provider,
        model: &str,
        key: Option<&Credential>,
        request: &pb::EmbedRequest,
        deadline: Option<Instant>,
    ) -> Result<pb::EmbedResponse, AgentError> {
        if provider.config.dialect == Dialect::Echo {
            return Ok(echo::embed(model, request, &provider.name));
        }
        if provider.config.dialect == Dialect::Anthropic {
            let why = format!("model: {} speaks a dialect without embeddings; name a model of another provider", provider.name);
            return Err(AgentError::new(Reason::UnsupportedField, why).with("field", "model").with("kind", "invalid_request"));
        }
        let base_url = provider.base_url()?;
        let endpoint = provider.endpoint(&base_url, model, key);
        let limit = deadline.map_or(provider.config.timeouts.total, |d| d.saturating_duration_since(Instant::now()));
        tokio::time::timeout(limit, openai::embed(&endpoint, request))
            .await
            .unwrap_or_else(|_| Err(AgentError::new(Reason::ProviderTimeout, "no answer in time").with("kind", "timeout")))
            .map_err(|e| key.and_then(Credential::secret).map_or_else(|| e.clone(), |secret| redact::error(e.clone(), secret)))
    }

    /// A request has ended: what it cost its provider and its tenant; none: nobody knows.
    fn charge(&self, provider: &Provider, caller: &Caller, pico: Option<i64>) {
        provider.spend(pico);
        self.spending.add(&caller.tenant, pico);
    }

    /// What a tenant's requests have cost since the start.
    pub fn spending(&self, tenant: &str) -> pb::Spending {
        self.spending.of(tenant)
    }

    /// Where nothing but `echo` serves a name.
    fn only_echo(&self, wanted: &str) -> Option<(Arc<Provider>, String)> {
        let found = self.found(wanted);
        let [candidates::Found { provider, model, .. }] = found.as_slice() else { return None };
        (provider.config.dialect == Dialect::Echo).then(|| (provider.clone(), model.clone()))
    }

    /// Every provider as clients see it.
    pub fn list(&self) -> Vec<pb::Provider> {
        self.providers.values().map(|p| p.view(&self.healths.at(&p.name))).collect()
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
                ..described(m)
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

impl Providers {
    /// The window of a model or alias in tokens, question and answer together; 0: nobody has said it.
    pub fn window(&self, model: &str) -> usize {
        let endpoints = self.models.get(model).into_iter().flat_map(|m| &m.endpoints);
        endpoints.map(|e| usize::try_from(e.context_tokens).unwrap_or(0)).max().unwrap_or(0)
    }
}

/// What the configuration says of an alias: the largest context, what any endpoint can do, and the family that all of them share.
fn described(model: &config::ModelConfig) -> pb::Model {
    // Images are asked of an endpoint that says nothing, and not promised of it.
    let can = |e: &config::EndpointConfig| e.capabilities.clone().unwrap_or_else(|| vec!["tools".into(), "json_schema".into()]);
    let mut capabilities: Vec<String> = model.endpoints.iter().flat_map(can).chain(["streaming".to_owned()]).collect();
    capabilities.sort_unstable();
    capabilities.dedup();
    let family = model.endpoints.first().map(|e| e.family.clone()).unwrap_or_default();
    pb::Model {
        context: model.endpoints.iter().map(|e| e.context_tokens).max().unwrap_or(0),
        family: if model.endpoints.iter().all(|e| e.family == family) { family } else { String::new() },
        capabilities,
        ..Default::default()
    }
}

impl Provider {
    fn serves(&self, model: &str) -> bool {
        match self.config.dialect {
            Dialect::Echo => model == "echo",
            _ if self.config.models.is_empty() => {
                matches!(self.config.dialect, Dialect::Openai | Dialect::OpenaiResponses | Dialect::Anthropic)
            }
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

    fn answered(&self, took: Duration, usage: Option<&pb::Usage>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let old = self.latency_ms.load(Ordering::Relaxed);
        self.latency_ms.store(if old == 0 { ms } else { (old * 7 + ms) / 8 }, Ordering::Relaxed);
        if let Some(u) = usage {
            let sum = &mut self.tally.lock().tokens;
            sum.input_tokens += u.input_tokens;
            sum.output_tokens += u.output_tokens;
            sum.cached_tokens += u.cached_tokens;
            sum.reasoning_tokens += u.reasoning_tokens;
            sum.cache_write_tokens += u.cache_write_tokens;
            sum.cache_write_1h_tokens += u.cache_write_1h_tokens;
        }
    }

    fn failed(&self, error: &AgentError) {
        let weight = match failover::rule(error).outcome {
            breaker::Outcome::Fault(weight, _) => weight,
            _ => 0.0,
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        let kind = error.metadata.get("kind").map_or("other", String::as_str);
        let mut tally = self.tally.lock();
        *tally.errors.entry(kind.to_owned()).or_default() += 1;
        tally.faults += f64::from(weight);
    }

    /// Where a request goes, and with which key.
    fn endpoint<'a>(&'a self, base_url: &'a str, model: &'a str, key: Option<&'a Credential>) -> openai::Endpoint<'a> {
        openai::Endpoint {
            http: &self.http,
            base_url,
            key: key.and_then(Credential::secret),
            provider: &self.name,
            model,
            config: &self.config,
            limits: key.map_or(&self.limits, |k| &k.limits),
        }
    }

    /// Takes a request of so many tokens from the rates that are configured. Error: PROVIDER_RATE_LIMITED with the time to come back.
    fn admit<'a>(&'a self, key: Option<&'a Credential>, tokens: &dyn Fn() -> i64, now: Instant) -> Result<Admitted<'a>, AgentError> {
        let all: Vec<&Limits> = [Some(&self.limits), key.map(|k| &k.limits)].into_iter().flatten().filter(|l| l.counts()).collect();
        let expected = if all.is_empty() { 0 } else { tokens() };
        for (at, limits) in all.iter().enumerate() {
            if let Err(wait) = limits.take(now, expected) {
                all[..at].iter().for_each(|l| l.give_back(expected));
                let message = format!("the rate that is configured for {} (rpm, tpm) is reached", self.name);
                return Err(AgentError::new(Reason::ProviderRateLimited, message)
                    .with("kind", "rate_limit")
                    .with("limit", "configured")
                    .retry_after(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)));
            }
        }
        Ok(Admitted { limits: all, expected })
    }

    /// Whether a request had better go elsewhere by the rates of the provider, or of all its keys.
    fn short(&self, now: Instant, model: &str, tokens: &dyn Fn() -> i64) -> bool {
        let short = |limits: &Limits| !limits.idle() && limits.short(now, model, tokens());
        let keys = match &*self.place.read() {
            Place::At { keys, .. } => keys.clone(),
            Place::Nowhere(_) => return false,
        };
        short(&self.limits) || keys.all_short(now, short)
    }

    /// The key for a request: the next in turn that is not `short`, or any where all are set aside. None: the provider asks for none.
    fn key(&self, now: Instant, tried: &[String], short: impl Fn(&Limits) -> bool) -> Option<Arc<Credential>> {
        match &*self.place.read() {
            Place::At { keys, .. } => keys.pick(now, tried, short).or_else(|| keys.any()),
            Place::Nowhere(_) => None,
        }
    }

    fn has_key_beside(&self, tried: &[String]) -> bool {
        match &*self.place.read() {
            Place::At { keys, .. } => keys.has_beside(Instant::now(), tried),
            Place::Nowhere(_) => false,
        }
    }

    fn all_aside(&self, now: Instant) -> bool {
        match &*self.place.read() {
            Place::At { keys, .. } => keys.all_aside(now),
            Place::Nowhere(_) => false,
        }
    }

    fn base_url(&self) -> Result<Arc<str>, AgentError> {
        match &*self.place.read() {
            Place::At { base_url, .. } => Ok(base_url.clone()),
            Place::Nowhere(_) => {
                Err(AgentError::new(Reason::ProviderUnavailable, format!("{} is not available", self.name)).with("kind", "connect"))
            }
        }
    }

    fn view(&self, healths: &[Arc<Health>]) -> pb::Provider {
        let now = Instant::now();
        let calls = self.calls.load(Ordering::Relaxed);
        let ms = i64::try_from(self.latency_ms.load(Ordering::Relaxed)).unwrap_or(0);
        let (errors, tokens, faults) = {
            let tally = self.tally.lock();
            (tally.errors.clone(), tally.tokens, tally.faults)
        };
        #[allow(clippy::cast_precision_loss)]
        let error_rates = errors.iter().map(|(kind, n)| (kind.clone(), *n as f64 / calls.max(1) as f64)).collect();
        let (state, quarantined_credentials) = match &*self.place.read() {
            Place::At { keys, .. } => ("ready".to_owned(), keys.aside(Instant::now())),
            Place::Nowhere(why) => (format!("unavailable: {why}"), Vec::new()),
        };
        let first_token = healths.iter().filter_map(|h| h.first_token()).min();
        pb::Provider {
            name: self.name.clone(),
            dialect: self.config.dialect.name().to_owned(),
            state,
            breaker: breaker_of(healths).to_owned(),
            in_flight: i32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(i32::MAX),
            latency: (calls > 0).then(|| agent_core::header::duration(ms)),
            error_rates,
            quarantined_credentials,
            requests: i64::try_from(calls).unwrap_or(i64::MAX),
            errors,
            faults,
            tokens: Some(tokens),
            cost_micros: (!self.unpriced.load(Ordering::Relaxed)).then(|| price::micros(self.spent.load(Ordering::Relaxed))),
            first_token: first_token.map(|t| agent_core::header::duration(i64::try_from(t.as_millis()).unwrap_or(i64::MAX))),
            limit: i32::try_from(healths.iter().filter_map(|h| h.at_once(now)).fold(self.config.concurrency, u32::min)).unwrap_or(i32::MAX),
        }
    }
}

impl Place {
    fn at(url: &str, keys: Credentials) -> Self {
        Place::At { base_url: url.trim_end_matches('/').into(), keys: Arc::new(keys) }
    }
}

/// The worst of a provider's breakers.
fn breaker_of(healths: &[Arc<Health>]) -> &'static str {
    let states: Vec<breaker::State> = healths.iter().map(|h| h.breaker()).collect();
    if states.iter().any(|s| matches!(s, breaker::State::Open(_))) {
        "open"
    } else if states.iter().any(|s| matches!(s, breaker::State::HalfOpen(..))) {
        "half_open"
    } else {
        "closed"
    }
}

/// The keys of a provider; those that cannot be read are missing, unless none can.
fn keys(config: &ProviderConfig) -> Result<Credentials, String> {
    let named = config.credentials.iter().map(|c| (c.id.as_str(), &c.key, Rates { requests: c.rpm, tokens: c.tpm }));
    let first = config.api_key.iter().map(|key| ("default", key, Rates::default()));
    let (mut all, mut problem) = (Vec::new(), None);
    for (id, key, rates) in first.chain(named) {
        match key.read() {
            Ok(secret) => all.push(Credential::new(id, Some(secret), rates)),
            Err(why) => drop(problem.get_or_insert(why)),
        }
    }
    match problem {
        Some(problem) if all.is_empty() => Err(problem),
        _ => Ok(Credentials::new(all)),
    }
}

/// Rules that leave everything to the configuration.
fn is_plain(p: &pb::CallPolicy) -> bool {
    p.allowed_providers.is_empty()
        && p.denied_providers.is_empty()
        && p.data_tags.is_empty()
        && p.min_quality <= 0.0
        && !cache::asked_for(p)
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

pub(crate) async fn send_text(pieces: Option<&Flow<'_>>, text: &str) {
    if let Some(pieces) = pieces
        && !text.is_empty()
    {
        let piece = pb::StreamChatResponse { piece: Some(pb::stream_chat_response::Piece::TextDelta(text.to_owned())) };
        let _ = pieces.send(piece).await;
    }
}
