//! What a call costs: whose prices hold, what is set aside before a request, what is charged after it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use crate::caller::Caller;
use crate::config::{Dialect, ProviderConfig, ProvidersConfig};
use crate::estimate::{self, DEFAULT_OUTPUT_TOKENS, LEAST_OUTPUT_TOKENS};
use crate::meter::{Meter, Payer, Reservation};
use crate::price::{Listed, PICO_PER_MICRO, Prices, micros};

/// Kinds of errors that come before the provider has computed anything: they cost nothing.
const FREE_ERRORS: &[&str] = &[
    "connect",
    "rate_limit",
    "overloaded",
    "quota",
    "auth",
    "not_found",
    "invalid_request",
    "context_length",
    "request_too_large",
    "server_error",
];

/// Prices and leases.
pub(crate) struct Money {
    pub(crate) meter: Meter,
    /// List prices by host and model.
    list: HashMap<String, HashMap<String, Arc<Prices>>>,
    unknown: Arc<Prices>,
    aliases: std::collections::BTreeMap<String, Arc<Prices>>,
    free: Arc<Prices>,
}

/// A request that is paid for, as it is sent.
pub(crate) struct Paid<'a> {
    pub(crate) request: Cow<'a, pb::ChatRequest>,
    pub(crate) reservation: Reservation,
}

impl Caller {
    pub(crate) fn payer(&self) -> Payer<'_> {
        Payer {
            tenant: &self.tenant,
            key: &self.key_id,
            agent: &self.agent,
            task: &self.task_id,
            task_limit: self.task_limit_micros,
            approved: self.approved,
        }
    }
}

impl Money {
    pub(crate) fn new(config: &ProvidersConfig) -> Self {
        let priced = config.models.iter().filter(|(_, m)| !m.prices.0.is_empty());
        Self {
            meter: Meter::new(config.budgets.clone()),
            list: listed(&config.prices),
            unknown: Arc::default(),
            aliases: priced.map(|(name, m)| (name.clone(), Arc::new(m.prices.clone()))).collect(),
            free: Arc::new(Prices::free()),
        }
    }

    /// Prices of a model at a provider: those of the alias, else of a model of that name, else of the list. What is not found is unknown.
    pub(crate) fn prices(&self, alias: &str, provider: &ProviderConfig, model: &str) -> Arc<Prices> {
        if let Some(prices) = self.aliases.get(alias).or_else(|| self.aliases.get(model)) {
            return prices.clone();
        }
        if matches!(provider.dialect, Dialect::Local | Dialect::Echo) {
            return self.free.clone();
        }
        let rest = provider.base_url.as_deref().and_then(|url| url.split_once("://")).map_or("", |(_, rest)| rest);
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        self.list.get(host).and_then(|models| models.get(model)).unwrap_or(&self.unknown).clone()
    }

    /// Whether a request needs money that may have to be waited for.
    pub(crate) fn limits(&self, request: &pb::ChatRequest, caller: &Caller, prices: &Prices) -> bool {
        let limited = own_limit(request.policy.as_ref()).is_some() || self.meter.counts(&caller.payer());
        limited && *prices != *self.free
    }

    /// Sets aside what the request may cost at most. A request without `max_tokens` is given one where money is limited, `output` of the
    /// model or less. Errors: BUDGET_EXHAUSTED; NO_PROVIDER_MATCHES where the price is not known.
    pub(crate) async fn reserve<'a>(
        &self,
        request: &'a pb::ChatRequest,
        caller: &Caller,
        prices: &Prices,
        output: Option<i64>,
    ) -> Result<Paid<'a>, AgentError> {
        let (payer, own) = (caller.payer(), own_limit(request.policy.as_ref()));
        if own.is_none() && !self.meter.counts(&payer) {
            return Ok(Paid { request: Cow::Borrowed(request), reservation: Reservation::free() });
        }
        let input = estimate::chat(request);
        let wanted = request.max_tokens.map(i64::from);
        let most = wanted.or(output).unwrap_or(DEFAULT_OUTPUT_TOKENS);
        match self.set_aside(&payer, own, prices, input, most).await {
            Ok(reservation) => Ok(Paid { request: limited(request, most, wanted), reservation }),
            // It named no length: a shorter answer may be paid for.
            Err(e) if wanted.is_none() && e.reason == Reason::BudgetExhausted => {
                let left = e.metadata.get("left_pico").and_then(|left| left.parse().ok()).unwrap_or(0);
                let shorter = prices.output_for(left, input).min(most);
                if shorter < LEAST_OUTPUT_TOKENS || shorter == most {
                    return Err(e);
                }
                let reservation = self.set_aside(&payer, own, prices, input, shorter).await?;
                Ok(Paid { request: limited(request, shorter, wanted), reservation })
            }
            Err(e) => Err(e),
        }
    }

    /// The same for embeddings, which have no output.
    pub(crate) async fn reserve_embed(
        &self,
        request: &pb::EmbedRequest,
        caller: &Caller,
        prices: &Prices,
    ) -> Result<Reservation, AgentError> {
        let (payer, own) = (caller.payer(), own_limit(request.policy.as_ref()));
        if own.is_none() && !self.meter.counts(&payer) {
            return Ok(Reservation::free());
        }
        self.set_aside(&payer, own, prices, estimate::embed(request), 0).await
    }

    async fn set_aside(
        &self,
        payer: &Payer<'_>,
        own: Option<i64>,
        prices: &Prices,
        input: i64,
        output: i64,
    ) -> Result<Reservation, AgentError> {
        let Some(pico) = prices.at_most(input, output) else {
            let why = "the price of the model is not known, and the call has a budget; name it in [[models.NAME.prices]]";
            return Err(AgentError::new(Reason::NoProviderMatches, why));
        };
        if let Some(limit) = own.filter(|limit| pico > *limit) {
            let message = format!("the call may cost {} micro-dollars, its max_cost_micros is {}", micros(pico), micros(limit));
            return Err(AgentError::new(Reason::BudgetExhausted, message)
                .with("level", "call")
                .with("limit_micros", micros(limit))
                .with("left_pico", limit)
                .with("raised_by", "policy.max_cost_micros"));
        }
        self.meter.reserve(payer, pico).await
    }
}

/// Looked up for every endpoint of every choice: an index, not a search.
fn listed(all: &[Listed]) -> HashMap<String, HashMap<String, Arc<Prices>>> {
    let mut list: HashMap<String, HashMap<String, Prices>> = HashMap::new();
    for l in all {
        list.entry(l.host.clone()).or_default().entry(l.model.clone()).or_default().0.push(l.price.clone());
    }
    list.into_iter().map(|(host, models)| (host, models.into_iter().map(|(model, prices)| (model, Arc::new(prices))).collect())).collect()
}

fn own_limit(policy: Option<&pb::CallPolicy>) -> Option<i64> {
    policy.and_then(|p| p.max_cost_micros).filter(|limit| *limit > 0).map(|limit| limit.saturating_mul(PICO_PER_MICRO))
}

fn limited(request: &pb::ChatRequest, tokens: i64, wanted: Option<i64>) -> Cow<'_, pb::ChatRequest> {
    if wanted == Some(tokens) {
        return Cow::Borrowed(request);
    }
    Cow::Owned(pb::ChatRequest { max_tokens: Some(i32::try_from(tokens).unwrap_or(i32::MAX)), ..request.clone() })
}

/// Charges a request that has ended. Gives its cost in pico-dollars, where that is known.
pub(crate) fn settle(reservation: Reservation, prices: &Prices, end: Result<Option<&pb::Usage>, &AgentError>) -> Option<i64> {
    match end {
        Ok(Some(usage)) => {
            let cost = prices.cost(usage);
            match cost {
                Some(pico) => reservation.settle(pico),
                None => drop(reservation),
            }
            cost
        }
        Err(e) if free(e) => {
            reservation.settle(0);
            Some(0)
        }
        // Nobody said what it cost: what was set aside is gone, unless it was free anyway.
        Ok(None) | Err(_) => {
            drop(reservation);
            prices.cost(&pb::Usage::default()).filter(|_| *prices == Prices::free())
        }
    }
}

fn free(e: &AgentError) -> bool {
    let said = |key: &str| e.metadata.get(key).map(String::as_str);
    said("content_sent") != Some("true") && said("kind").is_some_and(|kind| FREE_ERRORS.contains(&kind))
}

/// Micro-dollars of an answer.
pub(crate) fn shown(pico: Option<i64>) -> Option<i64> {
    pico.map(micros)
}
