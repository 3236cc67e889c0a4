//! What is known of an endpoint, a model at a provider, from the calls that went there.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

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
/// Calls at once are never limited to fewer than these.
const LEAST_AT_ONCE: f64 = 4.0;
/// Part of the calls under way that is kept when a limit is met.
const KEPT_AT_ONCE: f64 = 0.7;
/// After so long without a limit the calls at once are limited no more.
const LIMIT_FORGOTTEN: Duration = Duration::from_secs(600);

/// Calls whose times are kept for a percentile, and how many there must be.
const RECENT: usize = 64;
const ENOUGH: usize = 10;

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
    /// Times of the last calls: of whole ones, and to the first content of streams.
    recent: [VecDeque<Duration>; 2],
    /// Calls at once, and when a limit was met last; none: no limit was met.
    at_once: Option<(f64, Instant)>,
}

/// An endpoint's record.
pub(crate) struct Health {
    record: Mutex<Record>,
    /// A call has ended, where others wait for that.
    freed: Notify,
    probing: AtomicBool,
}

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
    /// Whether it takes no further call now.
    pub(crate) full: bool,
    /// Whether the call would be its trial.
    pub(crate) trial: bool,
}

/// A call's time and tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) first_token: Duration,
    pub(crate) total: Duration,
    pub(crate) output_tokens: i64,
    pub(crate) streamed: bool,
}

impl Health {
    fn new(now: Instant) -> Self {
        let record = Record {
            breaker: Breaker::new(now),
            cool_until: None,
            first_token_s: FIRST_TOKEN_S,
            token_s: TOKEN_S,
            good: PRIOR.0,
            bad: PRIOR.1,
            at: now,
            in_flight: 0,
            samples: 0,
            recent: Default::default(),
            at_once: None,
        };
        Self { record: Mutex::new(record), freed: Notify::new(), probing: AtomicBool::new(false) }
    }

    pub(crate) fn seen(&self, now: Instant) -> Seen {
        let mut r = self.record.lock();
        r.fade(now);
        Seen {
            first_token_s: r.first_token_s,
            token_s: r.token_s,
            success: r.good / (r.good + r.bad),
            in_flight: r.in_flight,
            admits: r.breaker.admits(now),
            cooling: r.cool_until.is_some_and(|until| now < until),
            full: r.full(now),
            trial: r.breaker.state() != State::Closed && r.breaker.admits(now),
        }
    }

    /// Begins a call, where the endpoint takes another one now.
    pub(crate) fn begin(&self, now: Instant) -> bool {
        let mut r = self.record.lock();
        if r.full(now) {
            return false;
        }
        r.in_flight += 1;
        r.breaker.begin(now);
        true
    }

    /// Begins a call as soon as the endpoint takes one; false: it did not until then.
    pub(crate) async fn begin_by(&self, until: Instant) -> bool {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.begin(Instant::now()) {
                return true;
            }
            if tokio::time::timeout_at(until.into(), freed).await.is_err() {
                return self.begin(Instant::now());
            }
        }
    }

    /// Calls that may be under way at once; none: no limit was met.
    pub(crate) fn at_once(&self, now: Instant) -> Option<u32> {
        self.record.lock().limit(now)
    }

    /// A probe has ended.
    pub(crate) fn probed(&self, now: Instant, good: bool, chance: f32) {
        self.record.lock().breaker.probed(now, good, chance);
    }

    /// Whether nobody probes it yet; the caller does from now on.
    pub(crate) fn claim_probing(&self) -> bool {
        !self.probing.swap(true, Ordering::AcqRel)
    }

    /// Nobody probes it any more.
    pub(crate) fn release_probing(&self) {
        self.probing.store(false, Ordering::Release);
    }

    /// A call has ended; `wait`: a limit that it met.
    pub(crate) fn end(&self, now: Instant, outcome: Outcome, sample: Option<Sample>, wait: Option<Duration>, chance: f32) {
        let mut r = self.record.lock();
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
        let grown = r.pace(now, outcome, wait.is_some());
        let limited = r.at_once.is_some();
        drop(r);
        if limited {
            self.freed.notify_one();
            if grown {
                self.freed.notify_one();
            }
        }
    }

    pub(crate) fn breaker(&self) -> State {
        self.record.lock().breaker.state()
    }

    /// What 19 of 20 calls need at most, to their first content where they are streams; None: too few are known.
    pub(crate) fn p95(&self, streams: bool) -> Option<Duration> {
        let mut times: Vec<Duration> = self.record.lock().recent[usize::from(streams)].iter().copied().collect();
        times.sort_unstable();
        let at = times.len() * 95 / 100;
        (times.len() >= ENOUGH).then(|| times.get(at).copied()).flatten()
    }

    /// Average time to the first token, once there was one.
    pub(crate) fn first_token(&self) -> Option<Duration> {
        let r = self.record.lock();
        (r.samples > 0).then(|| Duration::from_secs_f64(r.first_token_s))
    }
}

impl Record {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn limit(&mut self, now: Instant) -> Option<u32> {
        if self.at_once.is_some_and(|(_, met)| now.saturating_duration_since(met) >= LIMIT_FORGOTTEN) {
            self.at_once = None;
        }
        self.at_once.map(|(calls, _)| calls as u32)
    }

    fn full(&mut self, now: Instant) -> bool {
        self.limit(now).is_some_and(|most| self.in_flight >= most)
    }

    /// Fewer calls at once where a limit was met, one more for each round of answers. Gives whether there is room for one more.
    fn pace(&mut self, now: Instant, outcome: Outcome, limited: bool) -> bool {
        let overloaded = matches!(outcome, Outcome::Fault(weight, _) if weight < 1.0);
        if limited || overloaded {
            let under_way = f64::from(self.in_flight) + 1.0;
            let before = self.at_once.map_or(under_way, |(calls, _)| calls.min(under_way));
            self.at_once = Some(((before * KEPT_AT_ONCE).max(LEAST_AT_ONCE), now));
            return false;
        }
        let Some((calls, _)) = &mut self.at_once else { return false };
        let before = *calls;
        if outcome == Outcome::Success {
            *calls += 1.0 / *calls;
        }
        before.floor() < calls.floor()
    }

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
        let recent = &mut self.recent[usize::from(s.streamed)];
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(s.first_token);
        let share = if self.samples == 0 { 1.0 } else { NEW };
        self.first_token_s += share * (first - self.first_token_s);
        self.token_s += share * (each - self.token_s);
        self.samples += 1;
    }
}

/// Records by provider and model.
pub(crate) struct Healths {
    all: RwLock<HashMap<String, HashMap<String, Arc<Health>>>>,
    rest: Arc<Health>,
}

impl Healths {
    pub(crate) fn new() -> Self {
        Self { all: RwLock::default(), rest: Arc::new(Health::new(Instant::now())) }
    }

    pub(crate) fn of(&self, provider: &str, model: &str) -> Arc<Health> {
        if let Some(found) = self.all.read().get(provider).and_then(|models| models.get(model)) {
            return found.clone();
        }
        let mut all = self.all.write();
        if all.values().map(HashMap::len).sum::<usize>() >= MAX_ENDPOINTS {
            return self.rest.clone();
        }
        let models = all.entry(provider.to_owned()).or_default();
        models.entry(model.to_owned()).or_insert_with(|| Arc::new(Health::new(Instant::now()))).clone()
    }

    /// Those of a provider.
    pub(crate) fn at(&self, provider: &str) -> Vec<Arc<Health>> {
        self.all.read().get(provider).into_iter().flat_map(|models| models.values().cloned()).collect()
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
        let sample =
            Sample { first_token: Duration::from_millis(80), total: Duration::from_millis(180), output_tokens: 10, streamed: true };
        health.end(now, Outcome::Success, Some(sample), None, 0.5);
        let seen = health.seen(now);
        assert!(!seen.cooling && (seen.first_token_s - 0.08).abs() < 1e-9 && (seen.token_s - 0.01).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_limit_that_is_met_lets_fewer_calls_through_at_once_and_answers_let_more() {
        let health = Health::new(Instant::now());
        for _ in 0..20 {
            assert!(health.begin(Instant::now()));
        }
        let end = |outcome, wait| health.end(Instant::now(), outcome, None, wait, 0.5);
        end(Outcome::Neutral, Some(Duration::from_secs(1)));
        assert_eq!(health.at_once(Instant::now()), Some(14));
        assert!(!health.begin(Instant::now()), "19 are under way");
        let soon = Instant::now() + Duration::from_secs(20);
        let frees = async {
            for _ in 0..6 {
                end(Outcome::Success, None);
            }
        };
        let (begun, ()) = tokio::join!(health.begin_by(soon), frees);
        assert!(begun);
        for _ in 0..14 {
            end(Outcome::Success, None);
        }
        assert_eq!(health.at_once(Instant::now()), Some(15), "one more after a round of answers");
        assert_eq!(health.at_once(Instant::now() + LIMIT_FORGOTTEN), None);
        assert!(health.claim_probing() && !health.claim_probing());
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
