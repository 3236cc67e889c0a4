//! Who could serve a call, who may, and in which order they are asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use crate::choose::{self, Candidate, Terms, Weights};
use crate::config::{EndpointConfig, ModelConfig, ProvidersConfig};
use crate::health::{Health, Healths};
use crate::money::Money;
use crate::price::Prices;
use crate::{Place, Provider, Providers, alias, chance, clip};

/// Tokens of an answer that are expected where the caller sets no limit.
const ANSWER_TOKENS: i64 = 256;
/// Bytes of a text for each token, on average.
pub(crate) const BYTES_PER_TOKEN: i64 = 4;

/// The capability of an endpoint that goes on with what it is given as the beginning of its answer.
const PREFILL: &str = "prefill";

/// An endpoint of a model.
#[derive(Clone)]
pub(crate) struct Choice {
    pub(crate) provider: Arc<Provider>,
    pub(crate) model: String,
    pub(crate) health: Arc<Health>,
    priority: i32,
    weight: f64,
    quality: Option<f64>,
    terms: Terms,
    /// Why it may not serve.
    refused: String,
    /// Why it had better not: it serves where nobody else can.
    avoided: &'static str,
    /// How bad that is; what is only busy is asked before what is given up.
    badness: u8,
    limits: Option<Arc<EndpointConfig>>,
}

/// How large a call is expected to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) input: i64,
    pub(crate) output: i64,
    /// The most that was asked for; 0: no limit was set.
    pub(crate) asked: i64,
    /// What it needs besides text.
    pub(crate) needs: [Option<&'static str>; 3],
}

/// What a request needs besides text, in the words of `capabilities`.
fn needs(request: &pb::ChatRequest) -> [Option<&'static str>; 3] {
    let is_image = |part: &pb::ContentPart| matches!(part.part, Some(pb::content_part::Part::Image(_)));
    let images = request.messages.iter().any(|m| m.content.iter().any(is_image));
    [(!request.tools.is_empty()).then_some("tools"), request.output_schema.is_some().then_some("json_schema"), images.then_some("images")]
}

impl Size {
    /// Of an embedding.
    pub(crate) fn of_texts(input: i64) -> Self {
        Self { input, output: 0, asked: 0, needs: [None; 3] }
    }

    pub(crate) fn of(request: &pb::ChatRequest) -> Self {
        let input = crate::estimate::chat(request) / BYTES_PER_TOKEN;
        let asked = request.max_tokens.map_or(0, i64::from);
        let output = if asked == 0 { ANSWER_TOKENS } else { asked.min(ANSWER_TOKENS) };
        Self { input, output, asked, needs: needs(request) }
    }
}

/// An endpoint of a name. Of an alias its record and its prices are known since the start.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) provider: Arc<Provider>,
    pub(crate) model: String,
    priority: i32,
    weight: f64,
    known: Option<(Arc<Health>, Arc<Prices>)>,
    limits: Option<Arc<EndpointConfig>>,
}

/// Why an endpoint is not good enough; empty: it is.
fn poor(quality: Option<f64>, policy: Option<&pb::CallPolicy>) -> String {
    let wanted = policy.map_or(0.0, |p| p.min_quality);
    match quality {
        _ if wanted <= 0.0 => String::new(),
        Some(quality) if quality >= wanted => String::new(),
        Some(quality) => format!("its quality is {quality:.2}, min_quality is {wanted:.2}"),
        None => format!("its quality is not configured, min_quality is {wanted:.2}"),
    }
}

/// Why a call does not fit an endpoint; empty: it does, as far as anybody knows.
fn unfit(limits: Option<&EndpointConfig>, size: Size) -> String {
    let Some(limits) = limits else { return String::new() };
    let tokens = size.input + size.asked;
    if limits.context_tokens > 0 && tokens > limits.context_tokens {
        return format!("about {tokens} tokens do not fit its {}", limits.context_tokens);
    }
    let able = |need: &&str| limits.capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == need));
    let missing: Vec<&str> = size.needs.into_iter().flatten().filter(|need| !able(need)).collect();
    if missing.is_empty() { String::new() } else { format!("it cannot do {}", missing.join(", ")) }
}

/// The endpoints of every alias.
pub(crate) fn aliases(
    config: &ProvidersConfig,
    providers: &BTreeMap<String, Arc<Provider>>,
    healths: &Healths,
    money: &Money,
) -> HashMap<String, Vec<Found>> {
    let endpoint = |alias: &str, e: &EndpointConfig| {
        let provider = providers.get(&e.provider)?.clone();
        let known = (healths.of(&provider.name, record(&e.name)), money.prices(alias, &provider.config, &e.name));
        Some(Found {
            provider,
            model: e.name.clone(),
            priority: e.priority,
            weight: f64::from(e.weight),
            known: Some(known),
            limits: Some(Arc::new(e.clone())),
        })
    };
    let served = config.models.iter().filter(|(_, m)| !m.endpoints.is_empty());
    let all = |alias: &str, m: &ModelConfig| -> Vec<Found> {
        let mut found: Vec<Found> = m.endpoints.iter().filter_map(|e| endpoint(alias, e)).collect();
        if !config.switches.federation {
            // What the agent names is one model: the first of the smallest priority, whatever becomes of it.
            found.sort_by_key(|f| f.priority);
            found.truncate(1);
        }
        found
    };
    served.map(|(alias, m)| (alias.clone(), all(alias, m))).collect()
}

/// What the record of a model is kept under: without the shape of an echo.
fn record(model: &str) -> &str {
    model.split('?').next().unwrap_or(model)
}

impl Providers {
    /// The endpoints of a name: of an alias, of `provider/model`, of a listed model, or of a provider that lists none and speaks to any.
    pub(crate) fn found(&self, wanted: &str) -> Vec<Found> {
        if let Some(known) = self.aliases.get(wanted) {
            return known.clone();
        }
        let unknown = |provider: &Arc<Provider>, model: &str| Found {
            provider: provider.clone(),
            model: model.to_owned(),
            priority: 0,
            weight: 1.0,
            known: None,
            limits: None,
        };
        if let Some((provider, model)) = wanted.split_once('/')
            && let Some(provider) = self.providers.get(provider)
        {
            return vec![unknown(provider, model)];
        }
        let base = wanted.split('?').next().unwrap_or(wanted);
        let several = if self.switches.federation { usize::MAX } else { 1 };
        self.providers.values().filter(|p| p.serves(base)).map(|p| unknown(p, wanted)).take(several).collect()
    }

    /// What the vision calls `get_available_providers`: every endpoint of a model with what speaks against it.
    /// `plainly`: of a lone endpoint nothing is reckoned that only a comparison needs.
    fn available(
        &self,
        wanted: &str,
        policy: Option<&pb::CallPolicy>,
        size: &dyn Fn() -> Size,
        now: Instant,
        plainly: bool,
    ) -> Vec<Choice> {
        let weights = weights(policy);
        let found = self.found(wanted);
        let known: std::cell::OnceCell<Size> = std::cell::OnceCell::new();
        let size = || *known.get_or_init(size);
        if let ([_], true) = (found.as_slice(), plainly) {
            let lone = found.into_iter().map(|Found { provider, model, priority, weight, known, limits }| {
                let health = known.map_or_else(|| self.healths.of(&provider.name, record(&model)), |(health, _)| health);
                let quality = limits.as_ref().and_then(|l| l.quality);
                let refused = first_of([provider.refuses(policy), poor(quality, policy)]);
                let terms = Terms::default();
                Choice { provider, model, health, priority, weight, quality, terms, refused, avoided: "", badness: 0, limits }
            });
            return lone.collect();
        }
        let mut trials = Vec::new();
        let all = found.into_iter().enumerate().map(|(at, Found { provider, model, priority, weight, known, limits })| {
            let (health, prices) = known
                .unwrap_or_else(|| (self.healths.of(&provider.name, record(&model)), self.money.prices(wanted, &provider.config, &model)));
            let seen = health.seen(now);
            let quality = limits.as_ref().and_then(|l| l.quality);
            let refused = first_of([provider.refuses(policy), poor(quality, policy)]);
            let refused = if refused.is_empty() { unfit(limits.as_deref(), size()) } else { refused };
            let (badness, avoided) = if !seen.admits {
                (5, "its breaker is open")
            } else if provider.all_aside(now) {
                (4, "its keys are set aside")
            } else if seen.cooling {
                (3, "it asked to wait")
            } else if provider.short(now, &model, &|| size().input + size().output) {
                (2, "its rate is used up")
            } else if seen.full {
                (1, "it takes no further call at once")
            } else {
                (0, "")
            };
            if seen.trial && refused.is_empty() {
                trials.push(at);
            }
            let size = size();
            #[allow(clippy::cast_precision_loss)]
            let candidate = Candidate {
                priority,
                weight,
                cost: prices.at_most(size.input, size.output).map(|pico| pico as f64 / 1e12),
                first_token_s: seen.first_token_s,
                answer_s: seen.token_s * size.output as f64,
                load: f64::from(seen.in_flight) / f64::from(provider.config.concurrency.max(1)),
                success: seen.success,
                quality,
            };
            let terms = Terms::default();
            (Choice { provider, model, health, priority, weight, quality, terms, refused, avoided, badness, limits }, candidate)
        });
        let (mut choices, mut candidates): (Vec<Choice>, Vec<Candidate>) = all.unzip();
        if candidates.iter().any(|c| c.quality.is_some()) {
            candidates.iter_mut().for_each(|c| c.quality = c.quality.or(Some(choose::UNKNOWN_QUALITY)));
        }
        choices.iter_mut().zip(&candidates).for_each(|(choice, c)| choice.terms = choose::terms(c, weights));
        if choices.len() < 2 {
            return choices;
        }
        let mut order = match self.switches.optimization {
            true => choose::order(&candidates, weights, || f64::from(chance::number())),
            false => choose::as_written(&candidates),
        };
        // One call at a time tries an endpoint that was given up: where it has recovered, it serves again at once.
        let first = order.first().map_or(0, |&i| candidates[i].priority);
        if let Some(place) = order.iter().position(|i| trials.contains(i) && candidates[*i].priority <= first) {
            let trial = order.remove(place);
            order.insert(0, trial);
        }
        let mut choices: Vec<Option<Choice>> = choices.into_iter().map(Some).collect();
        order.into_iter().filter_map(|i| choices.get_mut(i).and_then(Option::take)).collect()
    }

    /// What the vision calls `select_optimal_provider`: the endpoints that a call may go to, the best one first.
    /// Errors: MODEL_NOT_FOUND; PROVIDER_UNAVAILABLE; NO_PROVIDER_MATCHES, with what removed each of them.
    pub(crate) fn choose(&self, model: &str, policy: Option<&pb::CallPolicy>, size: &dyn Fn() -> Size) -> Result<Vec<Choice>, AgentError> {
        let wanted = alias(model);
        let all = self.available(wanted, policy, size, Instant::now(), true);
        if all.is_empty() {
            return Err(self.unknown(wanted));
        }
        let (allowed, refused): (Vec<Choice>, Vec<Choice>) = all.into_iter().partition(|c| c.refused.is_empty());
        if allowed.is_empty() {
            return Err(nobody(wanted, &refused));
        }
        let (good, mut avoided): (Vec<Choice>, Vec<Choice>) = allowed.into_iter().partition(|c| c.avoided.is_empty());
        avoided.sort_by_key(|c| c.badness);
        // Who had better not be asked comes last rather than never: a breaker that is wrong about everybody must not stop the work.
        Ok(good.into_iter().chain(avoided).collect())
    }

    /// Where a call would go first, provider and model, without being made. Errors: MODEL_NOT_FOUND; PROVIDER_UNAVAILABLE; NO_PROVIDER_MATCHES.
    pub fn first_choice(&self, request: &pb::ChatRequest) -> Result<(String, String), AgentError> {
        let choices = self.choose(&request.model, request.policy.as_ref(), &|| Size::of(request))?;
        let first = choices.into_iter().next().ok_or_else(|| AgentError::new(Reason::Internal, "a choice of nothing"))?;
        Ok((first.provider.name.clone(), first.model))
    }

    fn unknown(&self, wanted: &str) -> AgentError {
        let listed = self.providers.values().flat_map(|p| p.config.models.iter().map(String::as_str));
        let known: Vec<&str> = self.models.keys().map(String::as_str).chain(listed).collect();
        AgentError::new(Reason::ModelNotFound, format!("there is no model \"{}\"; known are {}", clip(wanted), known.join(", ")))
            .with("model", clip(wanted))
            .with("kind", "not_found")
    }

    /// Dry run of the choice, with reasons.
    pub fn select(&self, req: &pb::TaskRequirements, within: pb::CallPolicy) -> Result<pb::SelectProviderResponse, AgentError> {
        let policy = narrowed(within, analyze_task_requirements(req));
        let wanted = alias(&req.model);
        let output = req.max_tokens.unwrap_or(ANSWER_TOKENS).min(ANSWER_TOKENS);
        let all = self.available(
            wanted,
            Some(&policy),
            &|| Size { input: ANSWER_TOKENS, output, asked: 0, needs: [None; 3] },
            Instant::now(),
            false,
        );
        let candidates: Vec<pb::ProviderCandidate> = all.iter().map(Choice::view).collect();
        if candidates.is_empty() {
            return Err(self.unknown(wanted));
        }
        let best = all.iter().find(|c| c.refused.is_empty() && c.avoided.is_empty()).or_else(|| all.iter().find(|c| c.refused.is_empty()));
        let Some(best) = best else { return Err(nobody(wanted, &all)) };
        Ok(pb::SelectProviderResponse {
            reason: best.reason(all.len()),
            provider: best.provider.name.clone(),
            model: best.model.clone(),
            candidates,
        })
    }
}

/// Puts who fails together with `choices[at]` behind those of its kind that do not.
pub(crate) fn elsewhere_first(choices: &mut [Choice], at: usize) {
    if let Some((tried, rest)) = choices.split_at_mut_checked(at + 1)
        && let Some(tried) = tried.last()
    {
        rest.sort_by_key(|c| (c.badness, c.provider.domain == tried.provider.domain));
    }
}

impl Choice {
    /// Whether it fails together with another one.
    pub(crate) fn falls_with(&self, other: &Choice) -> bool {
        self.provider.domain == other.provider.domain
    }

    /// Whether it can go on with the answer of another one: it says so, and is of the same family.
    pub(crate) fn goes_on_with(&self, other: &Choice) -> bool {
        let family = |c: &Choice| c.limits.as_ref().map_or(String::new(), |l| l.family.clone());
        let named = self.limits.as_ref().and_then(|l| l.capabilities.as_ref());
        let able = named.is_some_and(|all| all.iter().any(|c| c == PREFILL));
        able && self.is_good() && (self.model == other.model || (!family(self).is_empty() && family(self) == family(other)))
    }

    /// Whether nothing speaks against it.
    pub(crate) fn is_good(&self) -> bool {
        self.refused.is_empty() && self.badness == 0
    }

    /// Why this one, in a sentence.
    pub(crate) fn reason(&self, of: usize) -> String {
        if of == 1 {
            return "the only endpoint of the model".to_owned();
        }
        let total = self.terms.total;
        let quality = self.quality.map_or(String::new(), |q| format!(" and its quality of {q:.2}"));
        format!("of {of} endpoints, priority {}: {total:.6} dollars for an answer, time, failures{quality} included", self.priority)
    }

    fn view(&self) -> pb::ProviderCandidate {
        let seen = self.health.seen(Instant::now());
        let mut terms = std::collections::BTreeMap::from([
            ("health".to_owned(), seen.success),
            ("load".to_owned(), f64::from(seen.in_flight)),
            ("first_token_s".to_owned(), seen.first_token_s),
            ("priority".to_owned(), f64::from(self.priority)),
            ("weight".to_owned(), self.weight),
            ("cost".to_owned(), self.terms.cost),
            ("latency".to_owned(), self.terms.latency),
            ("failure".to_owned(), self.terms.failure),
        ]);
        if let Some(quality) = self.quality {
            terms.insert("quality".to_owned(), quality);
        }
        if self.terms.quality > 0.0 {
            terms.insert("quality_loss".to_owned(), self.terms.quality);
        }
        let refused = if self.refused.is_empty() { self.avoided.to_owned() } else { self.refused.clone() };
        // Higher is better.
        let score = -self.terms.total;
        pb::ProviderCandidate { provider: self.provider.name.clone(), model: self.model.clone(), score, refused, terms }
    }
}

impl Provider {
    /// Why it may not serve under these rules; empty: it may.
    fn refuses(&self, policy: Option<&pb::CallPolicy>) -> String {
        if let Place::Nowhere(why) = &*self.place.read() {
            return why.clone();
        }
        let Some(policy) = policy else { return String::new() };
        if policy.denied_providers.contains(&self.name) {
            return "denied_providers names it".to_owned();
        }
        if !policy.allowed_providers.is_empty() && !policy.allowed_providers.contains(&self.name) {
            return "allowed_providers does not name it".to_owned();
        }
        let missing: Vec<&str> = policy.data_tags.iter().filter(|t| !self.config.data_tags.contains(t)).map(String::as_str).collect();
        if missing.is_empty() { String::new() } else { format!("it may not have data tagged {}", missing.join(", ")) }
    }
}

/// The rules that a task's requirements mean for its calls.
pub fn analyze_task_requirements(req: &pb::TaskRequirements) -> pb::CallPolicy {
    pb::CallPolicy {
        max_cost_micros: req.max_cost_micros,
        on_budget_end: req.on_budget_end,
        ..agent_core::header::call_policy(req, &pb::ExecutionHints::default())
    }
}

/// The rules of a task with those of one of its calls: lists only narrow, the higher quality is wanted, and whatever else the task says holds
/// unless the call says something of its own.
pub fn narrowed(task: pb::CallPolicy, call: pb::CallPolicy) -> pb::CallPolicy {
    let cache = if call.cache() == pb::CacheMode::Unspecified { task.cache } else { call.cache };
    let silent = call.stream_policy() == pb::StreamPolicy::Unspecified;
    let stream_policy = if silent { task.stream_policy } else { call.stream_policy };
    let allowed_providers = match (task.allowed_providers, call.allowed_providers) {
        (task, call) if call.is_empty() => task,
        (task, call) if task.is_empty() => call,
        (task, call) => {
            let both: Vec<String> = call.into_iter().filter(|name| task.contains(name)).collect();
            // No name is no limit; an empty one is nobody's.
            if both.is_empty() { vec![String::new()] } else { both }
        }
    };
    let joined = |mut a: Vec<String>, b: Vec<String>| {
        a.extend(b);
        a
    };
    pb::CallPolicy {
        allowed_providers,
        denied_providers: joined(task.denied_providers, call.denied_providers),
        data_tags: joined(task.data_tags, call.data_tags),
        weights: call.weights.or(task.weights),
        min_quality: task.min_quality.max(call.min_quality),
        hedge: task.hedge || call.hedge,
        cache,
        stream_policy,
        ..call
    }
}

/// The first reason that is one.
fn first_of<const N: usize>(reasons: [String; N]) -> String {
    reasons.into_iter().find(|why| !why.is_empty()).unwrap_or_default()
}

fn weights(policy: Option<&pb::CallPolicy>) -> Weights {
    let said = policy.and_then(|p| p.weights.as_ref());
    let factor = |n: Option<f64>| n.filter(|n| *n > 0.0).map_or(1.0, |n| n.clamp(0.1, 10.0));
    let of = |part: fn(&pb::SelectionWeights) -> f64| factor(said.map(part));
    Weights { quality: of(|w| w.quality), cost: of(|w| w.cost), latency: of(|w| w.latency) }
}

/// Everybody was removed. Where they are only not there now, it is worth coming back.
fn nobody(wanted: &str, all: &[Choice]) -> AgentError {
    let away = all.iter().find(|c| matches!(&*c.provider.place.read(), Place::Nowhere(_)));
    if let Some(c) = away.filter(|_| all.iter().all(|c| matches!(&*c.provider.place.read(), Place::Nowhere(_)))) {
        let message = format!("no provider of \"{}\" is available: {}: {}", clip(wanted), c.provider.name, c.refused);
        return AgentError::new(Reason::ProviderUnavailable, message).with("kind", "connect").retry_after(1000);
    }
    let message = format!("every provider of \"{}\" was removed", clip(wanted));
    all.iter().fold(AgentError::new(Reason::NoProviderMatches, message), |error, c| error.with(&c.provider.name, &c.refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_cannot_widen_what_its_task_allows() {
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let task = pb::CallPolicy { allowed_providers: names(&["a", "b"]), denied_providers: names(&["c"]), ..Default::default() };
        let both = narrowed(
            task.clone(),
            pb::CallPolicy { allowed_providers: names(&["b", "d"]), data_tags: names(&["x"]), ..Default::default() },
        );
        assert_eq!((both.allowed_providers, both.denied_providers, both.data_tags), (names(&["b"]), names(&["c"]), names(&["x"])));
        let none = narrowed(task.clone(), pb::CallPolicy { allowed_providers: names(&["d"]), ..Default::default() });
        assert_eq!(none.allowed_providers, names(&[""]), "nobody");
        assert_eq!(narrowed(task.clone(), pb::CallPolicy::default()).allowed_providers, task.allowed_providers);
    }

    #[test]
    fn a_call_goes_nowhere_where_it_does_not_fit() {
        let limits = |context_tokens, capabilities: Option<&[&str]>| EndpointConfig {
            provider: "p".into(),
            name: "m".into(),
            priority: 1,
            weight: 1,
            context_tokens,
            capabilities: capabilities.map(|all| all.iter().map(|&c| c.to_owned()).collect()),
            quality: None,
            family: String::new(),
        };
        let mut request = pb::ChatRequest {
            messages: vec![agent_core::agent::text_message(pb::Role::User, "x".repeat(4000))],
            max_tokens: Some(500),
            ..Default::default()
        };
        let plain = Size::of(&request);
        assert_eq!(unfit(Some(&limits(0, None)), plain), "");
        assert_eq!(unfit(Some(&limits(2000, Some(&[]))), plain), "");
        assert!(unfit(Some(&limits(1200, None)), plain).contains("do not fit its 1200"));
        request.tools.push(pb::ToolDefinition::default());
        let with_tools = Size::of(&request);
        assert_eq!(unfit(Some(&limits(0, Some(&["tools"]))), with_tools), "");
        assert_eq!(unfit(Some(&limits(0, Some(&["images"]))), with_tools), "it cannot do tools");
        assert_eq!(unfit(None, with_tools), "");
    }
}
