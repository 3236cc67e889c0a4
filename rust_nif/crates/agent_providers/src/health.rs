//! What is known of an endpoint, a model at a provider, from the calls that went there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::breaker::{Breaker, Outcome, State};

/// Endpoints that are remembered; what comes beyond shares one record.
const MAX_ENDPOINTS: usize = 4096;
/// Share of a new sample in an average.
const NEW: f64 = 0.2;
/// Time to the first token before any sample, in s.
const FIRST_TOKEN_S: f64 = 0.5;
/// Time for each token of the answer before any sample, in s.
const TOKEN_S: f64 = 0.02;
/// Successes and failures before any sample, and how fast they are forgotten.
const PRIOR: (f64, f64) = (19.0, 1.0);
const HALF_LIFE_S: f64 = 30.0;
/// Longest that a limit keeps an endpoint out of the choice: hints beyond it are for the caller.
const COOL_MAX: Duration = Duration::from_secs(600);

struct Record {
    breaker: Breaker,
    cool_until: Option<Instant>,
    first_token_s: f64,
    token_s: f64,
    good: f64,
    bad: f64,
    at: Instant,
    in_flight: u32,
    samples: u64,
}

/// An endpoint's record.
pub(crate) struct Health(Mutex<Record>);

/// What the choice is made by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Expected time to the first token, in s.
    pub(crate) first_token_s: f64,
    /// And for each token of the answer.
    pub(crate) token_s: f64,
    /// Probability of an answer, 0 to 1.
    pub(crate) success: f64,
    /// Calls under way.
    pub(crate) in_flight: u32,
    /// Whether the breaker lets a call through.
    pub(crate) admits: bool,
    /// Whether a limit has to be waited for.
    pub(crate) cooling: bool,
}

/// A call's time and tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) first_token: Duration,
    pub(crate) total: Duration,
    pub(crate) output_tokens: i64,
}

impl Health {
    fn new(now: Instant) -> Self {
        Self(Mutex::new(Record {
            breaker: Breaker::new(now),
            cool_until: None,
            first_token_s: FIRST_TOKEN_S,
            token_s: TOKEN_S,
            good: PRIOR.0,
            bad: PRIOR.1,
            at: now,
            in_flight: 0,
            samples: 0,
        }))
    }

    pub(crate) fn seen(&self, now: Instant) -> Seen {
        let mut r = self.0.lock();
        r.fade(now);
        Seen {
            first_token_s: r.first_token_s,
            token_s: r.token_s,
            success: r.good / (r.good + r.bad),
            in_flight: r.in_flight,
            admits: r.breaker.admits(now),
            cooling: r.cool_until.is_some_and(|until| now < until),
        }
    }

    pub(crate) fn begin(&self, now: Instant) {
        let mut r = self.0.lock();
        r.in_flight += 1;
        r.breaker.begin(now);
    }

    /// A call has ended; `wait`: a limit that it met.
    pub(crate) fn end(&self, now: Instant, outcome: Outcome, sample: Option<Sample>, wait: Option<Duration>, chance: f32) {
        let mut r = self.0.lock();
        r.in_flight = r.in_flight.saturating_sub(1);
        r.fade(now);
        match outcome {
            Outcome::Success => {
                r.good += 1.0;
                r.cool_until = None;
            }
            Outcome::Fault(weight, _) => r.bad += f64::from(weight),
            Outcome::Neutral => {}
        }
        r.breaker.end(now, outcome, chance);
        if let Some(wait) = wait {
            r.cool_until = Some(now + wait.min(COOL_MAX));
        }
        if let Some(s) = sample {
            r.learn(s);
        }
    }

    pub(crate) fn breaker(&self) -> State {
        self.0.lock().breaker.state()
    }

    /// Average time to the first token, once there was one.
    pub(crate) fn first_token(&self) -> Option<Duration> {
        let r = self.0.lock();
        (r.samples > 0).then(|| Duration::from_secs_f64(r.first_token_s))
    }
}

impl Record {
    /// Towards the prior, as time passes.
    fn fade(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        if seconds > 0.1 {
            let kept = 0.5f64.powf(seconds / HALF_LIFE_S);
            self.good = PRIOR.0 + (self.good - PRIOR.0) * kept;
            self.bad = PRIOR.1 + (self.bad - PRIOR.1) * kept;
            self.at = now;
        }
    }

    fn learn(&mut self, s: Sample) {
        #[allow(clippy::cast_precision_loss)]
        let tokens = s.output_tokens.max(1) as f64;
        let (first, each) = (s.first_token.as_secs_f64(), s.total.saturating_sub(s.first_token).as_secs_f64() / tokens);
        let share = if self.samples == 0 { 1.0 } else { NEW };
        self.first_token_s += share * (first - self.first_token_s);
        self.token_s += share * (each - self.token_s);
        self.samples += 1;
    }
}

/// Records by provider and model.
pub(crate) struct Healths {
    all: RwLock<HashMap<(String, String), Arc<Health>>>,
    rest: Arc<Health>,
}

impl Healths {
    pub(crate) fn new() -> Self {
        Self { all: RwLock::default(), rest: Arc::new(Health::new(Instant::now())) }
    }

    pub(crate) fn of(&self, provider: &str, model: &str) -> Arc<Health> {
        let key = (provider.to_owned(), model.to_owned());
        if let Some(found) = self.all.read().get(&key) {
            return found.clone();
        }
        let mut all = self.all.write();
        if all.len() >= MAX_ENDPOINTS {
            return self.rest.clone();
        }
        all.entry(key).or_insert_with(|| Arc::new(Health::new(Instant::now()))).clone()
    }

    /// Those of a provider.
    pub(crate) fn at(&self, provider: &str) -> Vec<Arc<Health>> {
        self.all.read().iter().filter(|((name, _), _)| name == provider).map(|(_, health)| health.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_lower_the_chance_and_time_forgets_them() {
        let now = Instant::now();
        let health = Health::new(now);
        for _ in 0..4 {
            health.begin(now);
            health.end(now, Outcome::Fault(1.0, false), None, None, 0.5);
        }
        let (then, later) = (health.seen(now), health.seen(now + Duration::from_secs(300)));
        assert!(then.success < 0.85 && later.success > 0.94 && then.in_flight == 0);
    }

    #[test]
    fn a_limit_is_waited_for_and_an_answer_ends_it() {
        let now = Instant::now();
        let health = Health::new(now);
        health.begin(now);
        health.end(now, Outcome::Neutral, None, Some(Duration::from_secs(5)), 0.5);
        assert!(health.seen(now).cooling && !health.seen(now + Duration::from_secs(6)).cooling);
        health.begin(now);
        let sample = Sample { first_token: Duration::from_millis(80), total: Duration::from_millis(180), output_tokens: 10 };
        health.end(now, Outcome::Success, Some(sample), None, 0.5);
        let seen = health.seen(now);
        assert!(!seen.cooling && (seen.first_token_s - 0.08).abs() < 1e-9 && (seen.token_s - 0.01).abs() < 1e-9);
    }

    #[test]
    fn names_from_outside_do_not_fill_the_memory() {
        let healths = Healths::new();
        for n in 0..MAX_ENDPOINTS + 10 {
            healths.of("p", &n.to_string());
        }
        assert!(Arc::ptr_eq(&healths.of("p", "another"), &healths.of("p", "one more")));
    }
}
