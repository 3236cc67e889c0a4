//! One call: attempts, one after the other, until one has an answer or none may follow.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

use crate::breaker::Outcome;
use crate::candidates::{Choice, Size};
use crate::failover::{self, Next, Situation};
use crate::flow::Flow;
use crate::health::{Health, Sample};
use crate::hedge::{Race, Raced};
use crate::{Caller, Pieces, Providers, alias, candidates, chance, limit_of, money, price, probe, resume};

/// Tokens by which the prices of two models are compared.
const MANY: i64 = 1_000_000;

/// The end of an attempt.
pub(crate) struct Attempt {
    pub(crate) result: Result<pb::ChatResponse, AgentError>,
    pub(crate) pico: Option<i64>,
    took: Duration,
    key: String,
}

/// A call under way at an endpoint: one that is dropped is no fault of the endpoint.
struct Begun<'a>(Option<&'a Health>);

impl<'a> Begun<'a> {
    /// Waits until the endpoint takes another call; None: it did not in time.
    async fn by(health: &'a Health, until: Instant) -> Option<Self> {
        (health.begin(Instant::now()) || health.begin_by(until).await).then(|| Self(Some(health)))
    }

    fn end(mut self, outcome: Outcome, sample: Option<Sample>, wait: Option<Duration>) {
        if let Some(health) = self.0.take() {
            health.end(Instant::now(), outcome, sample, wait, chance::number());
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(health) = self.0.take() {
            health.end(Instant::now(), Outcome::Neutral, None, None, 0.5);
        }
    }
}

impl Providers {
    /// One model call that asks a provider. Before the first content another endpoint, or the same one where it is the only one, is asked
    /// silently; after it only where the call's `stream_policy` allows that.
    pub(crate) async fn asked(
        &self,
        request: &pb::ChatRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        pieces: Option<&Pieces>,
    ) -> Result<pb::ChatResponse, AgentError> {
        let policy = request.policy.as_ref();
        let started = Instant::now();
        let mut choices = self.choose(&request.model, policy, &|| Size::of(request))?;
        let Some(first) = choices.first() else { return Err(AgentError::new(Reason::Internal, "a choice of nothing")) };
        let until = started + limit_of(request, deadline, first.provider.config.timeouts.total);
        let flow = pieces.map(if resume::wanted(policy) { Flow::keeping } else { Flow::new });
        let mut asked = Cow::Borrowed(request);
        self.retries.first(&caller.tenant, started);
        let mut story: Vec<pb::CallAttempt> = Vec::new();
        let mut sum = Some(0i64);
        let (mut at, mut here, mut restarted, mut keys) = (0, 0, false, Vec::new());
        let mut unpaid = None;
        loop {
            here += 1;
            if policy.is_some_and(|p| p.hedge) {
                candidates::elsewhere_first(&mut choices, at);
            }
            let beside = second(policy, &choices, at)
                .filter(|_| story.len() + 2 <= failover::MAX_ATTEMPTS && !flow.as_ref().is_some_and(Flow::shown));
            let Raced { end, second, other } = match beside {
                Some(beside) => {
                    let race = Race { request, caller, until, tried: &keys };
                    Box::pin(self.raced(&choices[at], beside, race, flow.as_ref())).await
                }
                None => {
                    let end = self.attempt(&choices[at], &asked, caller, until, flow.as_ref(), &keys).await;
                    Raced { end, second: false, other: None }
                }
            };
            if second {
                (at, here) = (at + 1, 1);
                keys.clear();
            }
            let choice = &choices[at];
            for pico in [end.pico].into_iter().chain(other.as_ref().map(|(_, pico)| *pico)) {
                sum = sum.zip(pico).map(|(sum, pico)| sum.saturating_add(pico));
            }
            let other = other.map(|(told, _)| told);
            let mine = pb::CallAttempt { hedge: second, ..told(choice, &end) };
            // In the order in which they began.
            story.extend(if second {
                other.into_iter().chain([mine]).collect::<Vec<_>>()
            } else {
                [mine].into_iter().chain(other).collect()
            });
            let error = match end.result {
                Ok(mut response) => {
                    response.cost_micros = money::shown(sum);
                    response.selection_reason = choice.reason(choices.len());
                    response.attempts = story;
                    if let Some(flow) = &flow {
                        resume::joined(&mut response, flow);
                    }
                    if let Some(pieces) = pieces {
                        let last = pb::StreamChatResponse { piece: Some(pb::stream_chat_response::Piece::Final(response.clone())) };
                        let _ = pieces.send(last).await;
                    }
                    return Ok(response);
                }
                Err(error) => error,
            };
            if error.reason == Reason::BudgetExhausted && cheapens(policy) {
                let Some(next) = self.cheaper(&choices, at, alias(&request.model)) else { return Err(unpaid.unwrap_or(error)) };
                unpaid.get_or_insert(error);
                story.pop();
                choices.swap(at + 1, next);
                (at, here) = (at + 1, 0);
                continue;
            }
            let rule = failover::rule(&error);
            if rule.quarantine {
                keys.push(end.key);
            }
            let another_key = rule.quarantine && choice.provider.has_key_beside(&keys);
            let shown = flow.as_ref().is_some_and(Flow::shown);
            let onward = flow.as_ref().filter(|_| shown && !restarted && resume::wanted(policy));
            let onward = onward.and_then(|flow| resume::onward(request, &choices, at, flow));
            let other = at + 1 < choices.len() || another_key;
            let situation = Situation {
                attempts: story.len(),
                here,
                other: if shown { onward.is_some() || (other && restarts(policy) && !restarted) } else { other },
                left: until.saturating_duration_since(Instant::now()),
                longest: choice.provider.config.max_wait,
                chance: chance::number(),
            };
            let next = match failover::next(&error, situation) {
                Next::Same(_) if shown => Next::Give,
                next => next,
            };
            if next == Next::Give || !self.retries.take(&caller.tenant) {
                return Err(finished(error, choice, &story, shown));
            }
            match next {
                Next::Same(pause) => tokio::time::sleep(pause).await,
                _ => {
                    let kind = error.metadata.get("kind").map_or("", String::as_str);
                    let resumes = onward.is_some();
                    if let Some(flow) = flow.as_ref().filter(|_| shown) {
                        if resumes {
                            flow.resume(kind).await
                        } else {
                            flow.restart(kind).await
                        }
                        restarted = true;
                    }
                    if let Some(onward) = onward {
                        choices.swap(at + 1, onward.at);
                        asked = Cow::Owned(onward.request);
                    } else if matches!(kind, "connect" | "overloaded") {
                        candidates::elsewhere_first(&mut choices, at);
                    }
                    if !another_key || resumes {
                        (at, here) = (at + 1, 0);
                        keys.clear();
                    }
                }
            }
        }
    }

    /// Which of the endpoints behind `at` is cheaper: of several the dearest, which is nearest to what was wanted.
    fn cheaper(&self, choices: &[Choice], at: usize, wanted: &str) -> Option<usize> {
        let most = |c: &Choice| self.money.prices(wanted, &c.provider.config, &c.model).at_most(MANY, MANY).unwrap_or(i64::MAX);
        let now = most(choices.get(at)?);
        (at + 1..choices.len()).filter(|&i| most(&choices[i]) < now).max_by_key(|&i| most(&choices[i]))
    }

    pub(crate) async fn attempt(
        &self,
        choice: &Choice,
        request: &pb::ChatRequest,
        caller: &Caller,
        until: Instant,
        flow: Option<&Flow<'_>>,
        tried: &[String],
    ) -> Attempt {
        let started = Instant::now();
        let (provider, model) = (&choice.provider, &choice.model);
        let refused = |error, key| Attempt { result: Err(error), pico: Some(0), took: started.elapsed(), key };
        let slot = match provider.enter() {
            Ok(slot) => slot,
            Err(error) => return refused(error, String::new()),
        };
        let Some(begun) = Begun::by(&choice.health, until.min(started + provider.config.max_wait)).await else {
            let error = if Instant::now() >= until { overdue(&provider.name, until - started) } else { busy(&provider.name) };
            return refused(error, String::new());
        };
        // What it waited for a place is no time of the endpoint.
        let started = Instant::now();
        let tokens = || Size::of(request).input + Size::of(request).output;
        let key = provider.key(started, tried, |l| !l.idle() && l.short(started, model, tokens()));
        let id = key.as_ref().map_or_else(String::new, |k| k.id.clone());
        let admitted = match provider.admit(key.as_deref(), &tokens, Instant::now()) {
            Ok(admitted) => admitted,
            Err(error) => return refused(error, id),
        };
        let prices = self.money.prices(alias(&request.model), &provider.config, model);
        let paid = match self.money.reserve(request, caller, &prices, None).await {
            Ok(paid) => paid,
            Err(error) => {
                admitted.give_back();
                return refused(error, String::new());
            }
        };
        let limit = until.saturating_duration_since(Instant::now());
        let call = self.call(provider, model, key.as_deref(), paid.request.as_ref(), flow);
        let result = tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(overdue(&provider.name, limit)));
        let pico = money::settle(paid.reservation, &prices, result.as_ref().map(|r| r.usage.as_ref()));
        drop(slot);
        admitted.settle(result.as_ref().ok().and_then(|r| r.usage.as_ref()));
        let took = started.elapsed();
        match &result {
            Ok(response) => {
                if let Some(key) = &key {
                    key.accepted();
                }
                let first = flow.and_then(Flow::first).map_or(took, |at| at.saturating_duration_since(started));
                let output_tokens = response.usage.as_ref().map_or(0, |u| u.output_tokens);
                begun.end(
                    Outcome::Success,
                    Some(Sample { first_token: first, total: took, output_tokens, streamed: flow.is_some() }),
                    None,
                );
                provider.answered(took, response.usage.as_ref());
            }
            Err(error) => {
                let rule = failover::rule(error);
                if rule.quarantine
                    && let Some(key) = &key
                {
                    key.set_aside(Instant::now());
                }
                let limited = error.metadata.get("kind").is_some_and(|kind| kind == "rate_limit");
                let wait = limited.then(|| Duration::from_millis(error.retry_after_ms.max(1000)));
                begun.end(rule.outcome, None, wait);
                probe::start(provider, &choice.health);
                provider.failed(error);
            }
        }
        self.charge(provider, caller, pico);
        let result = result.map(|response| provider.sign(response, model.clone(), took));
        Attempt { result, pico, took, key: id }
    }
}

/// The endpoint behind `at`, where the call wants a second request and that one is of another provider with nothing against it.
fn second<'a>(policy: Option<&pb::CallPolicy>, choices: &'a [Choice], at: usize) -> Option<&'a Choice> {
    let next = choices.get(at + 1).filter(|_| policy.is_some_and(|p| p.hedge))?;
    (!next.falls_with(&choices[at]) && next.provider.name != choices[at].provider.name && next.is_good()).then_some(next)
}

fn cheapens(policy: Option<&pb::CallPolicy>) -> bool {
    policy.is_some_and(|p| p.on_budget_end() == pb::OnBudgetEnd::CheaperModel)
}

fn restarts(policy: Option<&pb::CallPolicy>) -> bool {
    policy.is_some_and(|p| p.stream_policy() == pb::StreamPolicy::Restart)
}

fn overdue(provider: &str, limit: Duration) -> AgentError {
    AgentError::new(Reason::ProviderTimeout, format!("{provider} did not answer within {} s", limit.as_secs_f32()))
        .with("phase", "deadline")
        .with("kind", "timeout")
}

fn busy(provider: &str) -> AgentError {
    AgentError::new(Reason::ProviderOverloaded, format!("{provider} takes no further call at once"))
        .with("kind", "overloaded")
        .retry_after(1000)
}

pub(crate) fn told(choice: &Choice, end: &Attempt) -> pb::CallAttempt {
    let outcome = match &end.result {
        Ok(_) => "ok",
        Err(e) => e.metadata.get("kind").map_or("refused", String::as_str),
    };
    pb::CallAttempt {
        provider: choice.provider.name.clone(),
        model: choice.model.clone(),
        credential: end.key.clone(),
        outcome: outcome.to_owned(),
        latency: Some(agent_core::header::duration(i64::try_from(end.took.as_millis()).unwrap_or(i64::MAX))),
        cost_micros: end.pico.map(price::micros),
        hedge: false,
    }
}

fn finished(error: AgentError, choice: &Choice, story: &[pb::CallAttempt], shown: bool) -> AgentError {
    let kinds: Vec<&str> = story.iter().map(|a| a.outcome.as_str()).collect();
    let error = error.with("provider", &choice.provider.name).with("model", &choice.model);
    let error = error.with("attempts", story.len()).with("attempt_kinds", kinds.join(","));
    if shown { error.with("content_sent", true) } else { error }
}
