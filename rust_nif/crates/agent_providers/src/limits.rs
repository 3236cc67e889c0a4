//! Rates: what the configuration allows in a minute, and what a provider's headers say is left.
//!
//! The configured rates hold: a request beyond them is not sent. What headers say is advice: an endpoint that has said "nothing left" is asked
//! last until the time that it named.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::Mutex;

use crate::hints;

/// Models whose remainders are remembered for a key; what comes beyond is not.
const MAX_MODELS: usize = 64;
/// How long a remainder counts that came without the time of its reset.
const UNDATED: Duration = Duration::from_secs(60);
/// Longest that a remainder counts.
const LONGEST: Duration = Duration::from_secs(600);

/// Requests and tokens in a minute; none: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) requests: Option<u32>,
    pub(crate) tokens: Option<u32>,
}

/// A bucket that fills in a minute. Its level may fall below nothing: an answer was longer than expected.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: u32, now: Instant) -> Self {
        Self { capacity: f64::from(per_minute), level: f64::from(per_minute), at: now }
    }

    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + self.capacity * seconds / 60.0).min(self.capacity);
        self.at = now;
    }

    /// How long until so much is there; more than fits counts as full.
    fn wait(&self, amount: f64) -> Option<Duration> {
        let missing = amount.min(self.capacity) - self.level;
        (missing > 1e-9).then(|| Duration::from_secs_f64(missing / self.capacity * 60.0))
    }
}

#[derive(Clone, Copy, Debug)]
struct Left {
    amount: f64,
    until: Instant,
}

#[derive(Debug, Default)]
struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// By model: requests and tokens that are left.
    left: HashMap<String, [Option<Left>; 2]>,
}

/// The rates of a provider, or of one of its keys.
#[derive(Debug, Default)]
pub(crate) struct Limits(Mutex<State>);

impl Limits {
    pub(crate) fn new(rates: Rates) -> Self {
        let now = Instant::now();
        let bucket = |rate: Option<u32>| rate.map(|n| Bucket::new(n, now));
        Self(Mutex::new(State { requests: bucket(rates.requests), tokens: bucket(rates.tokens), left: HashMap::new() }))
    }

    /// Takes a request of so many tokens, or says how long to wait.
    pub(crate) fn take(&self, now: Instant, tokens: i64) -> Result<(), Duration> {
        let tokens = amount(tokens);
        let mut state = self.0.lock();
        let State { requests, tokens: bucket, .. } = &mut *state;
        let mut pairs: Vec<(&mut Bucket, f64)> =
            requests.iter_mut().map(|b| (b, 1.0)).chain(bucket.iter_mut().map(|b| (b, tokens))).collect();
        let mut longest = None;
        for (bucket, amount) in &mut pairs {
            bucket.fill(now);
            longest = longest.max(bucket.wait(*amount));
        }
        if let Some(wait) = longest {
            return Err(wait);
        }
        for (bucket, amount) in pairs {
            bucket.level -= amount;
        }
        Ok(())
    }

    /// Whether anything is configured, so that requests have to be sized.
    pub(crate) fn counts(&self) -> bool {
        let state = self.0.lock();
        state.requests.is_some() || state.tokens.is_some()
    }

    /// Whether nothing is configured and nothing was learnt.
    pub(crate) fn idle(&self) -> bool {
        let state = self.0.lock();
        state.requests.is_none() && state.tokens.is_none() && state.left.is_empty()
    }

    /// A request that was taken was not sent.
    pub(crate) fn give_back(&self, tokens: i64) {
        let mut state = self.0.lock();
        if let Some(bucket) = &mut state.requests {
            bucket.level = (bucket.level + 1.0).min(bucket.capacity);
        }
        drop(state);
        self.settle(tokens, 0);
    }

    /// A request has ended that took `used` tokens where `expected` were taken.
    pub(crate) fn settle(&self, expected: i64, used: i64) {
        if let Some(bucket) = &mut self.0.lock().tokens {
            bucket.level = (bucket.level + amount(expected) - amount(used)).min(bucket.capacity);
        }
    }

    /// Whether a request of so many tokens had better go elsewhere, by what is configured and by what headers said.
    pub(crate) fn short(&self, now: Instant, model: &str, tokens: i64) -> bool {
        let tokens = amount(tokens);
        let mut state = self.0.lock();
        let State { requests, tokens: of_tokens, .. } = &mut *state;
        let empty = |bucket: &mut Option<Bucket>, wanted: f64| {
            bucket.as_mut().is_some_and(|b| {
                b.fill(now);
                b.wait(wanted).is_some()
            })
        };
        if empty(requests, 1.0) || empty(of_tokens, tokens) {
            return true;
        }
        let lacks = |left: &Option<Left>, wanted: f64| left.is_some_and(|l| now < l.until && l.amount < wanted);
        state.left.get(model).is_some_and(|[requests, of_tokens]| lacks(requests, 1.0) || lacks(of_tokens, tokens))
    }

    /// Takes note of what the headers of an answer say is left.
    pub(crate) fn learn(&self, now: Instant, model: &str, headers: &HeaderMap) {
        let kinds = ["requests", "tokens"].map(|kind| hints::left(headers, kind));
        if kinds.iter().all(Option::is_none) {
            return;
        }
        let mut state = self.0.lock();
        if state.left.len() >= MAX_MODELS && !state.left.contains_key(model) {
            return;
        }
        let known = state.left.entry(model.to_owned()).or_default();
        for (known, said) in known.iter_mut().zip(kinds) {
            if let Some((amount, reset)) = said {
                let until = now + reset.unwrap_or(UNDATED).min(LONGEST);
                *known = Some(Left { amount, until });
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn amount(tokens: i64) -> f64 {
    tokens.max(0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_holds_what_is_configured_and_fills_again() {
        let (limits, now) = (Limits::new(Rates { requests: Some(6), tokens: Some(600) }), Instant::now());
        for _ in 0..6 {
            assert!(limits.take(now, 50).is_ok());
        }
        let wait = limits.take(now, 50).unwrap_err();
        assert!((9..=11).contains(&wait.as_secs()), "{wait:?}");
        assert!(limits.take(now + Duration::from_secs(11), 50).is_ok());
        // A request larger than a minute's tokens is let through when the bucket is full, and the next one pays for it.
        let later = now + Duration::from_secs(120);
        assert!(limits.take(later, 5000).is_ok());
        limits.settle(5000, 900);
        assert!(limits.short(later, "m", 1));
    }

    #[test]
    fn headers_say_what_is_left_and_until_when() {
        let headers =
            |all: &[(&'static str, &'static str)]| all.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect::<HeaderMap>();
        let (limits, now) = (Limits::default(), Instant::now());
        limits.learn(now, "m", &headers(&[("x-ratelimit-remaining-tokens", "100"), ("x-ratelimit-reset-tokens", "6s")]));
        assert!(limits.short(now, "m", 101) && !limits.short(now, "m", 100) && !limits.short(now, "other", 101));
        assert!(!limits.short(now + Duration::from_secs(7), "m", 101));
        let reset = prost_types::Timestamp::from(std::time::SystemTime::now() + Duration::from_secs(30)).to_string();
        let mut anthropic = headers(&[("anthropic-ratelimit-requests-remaining", "0")]);
        anthropic.insert("anthropic-ratelimit-requests-reset", reset.parse().unwrap());
        limits.learn(now, "claude", &anthropic);
        assert!(limits.short(now + Duration::from_secs(20), "claude", 1) && !limits.short(now + Duration::from_secs(40), "claude", 1));
        limits.learn(now, "undated", &headers(&[("x-ratelimit-remaining-requests", "0")]));
        assert!(limits.short(now + Duration::from_secs(59), "undated", 1) && !limits.short(now + Duration::from_secs(61), "undated", 1));
    }
}
