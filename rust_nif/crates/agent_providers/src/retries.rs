//! How many further attempts all calls of a tenant may make: a storm must not double the load.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What each first attempt adds.
const EARNED: f64 = 0.1;
/// Smallest capacity.
const LEAST: f64 = 10.0;
/// Capacity by the first attempts of the last ten seconds.
const SHARE: f64 = 0.2;
const WINDOW: Duration = Duration::from_secs(10);
/// Tenants that are remembered.
const MAX_TENANTS: usize = 10_000;

struct Bucket {
    tokens: f64,
    since: Instant,
    first: f64,
    before: f64,
}

/// Buckets by tenant.
#[derive(Default)]
pub(crate) struct Retries(Mutex<HashMap<String, Bucket>>);

impl Retries {
    /// A call begins.
    pub(crate) fn first(&self, tenant: &str, now: Instant) {
        let mut all = self.0.lock();
        if let Some(b) = all.get_mut(tenant) {
            if now.saturating_duration_since(b.since) >= WINDOW {
                (b.before, b.first, b.since) = (b.first, 0.0, now);
            }
            b.first += 1.0;
            b.tokens = (b.tokens + EARNED).min(LEAST.max(SHARE * b.first.max(b.before)));
        } else if all.len() < MAX_TENANTS {
            all.insert(tenant.to_owned(), Bucket { tokens: LEAST, since: now, first: 1.0, before: 0.0 });
        }
    }

    /// Whether a further attempt may be made; takes it.
    pub(crate) fn take(&self, tenant: &str) -> bool {
        let mut all = self.0.lock();
        let Some(b) = all.get_mut(tenant) else { return false };
        if b.tokens < 1.0 {
            return false;
        }
        b.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_every_call_fails_a_tenth_of_them_is_repeated() {
        let (retries, now) = (Retries::default(), Instant::now());
        let mut repeated = 0;
        for n in 0..10_000u64 {
            retries.first("t", now + Duration::from_millis(n));
            repeated += u32::from(retries.take("t"));
        }
        assert!((1000..1100).contains(&repeated), "{repeated}");
        retries.first("another", now);
        assert!(retries.take("another"), "each tenant has its own");
    }
}
