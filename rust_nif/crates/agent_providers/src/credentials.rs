//! The keys of a provider: used in turn; one that is refused, or has no money left, is set aside for a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::limits::{Limits, Rates};

/// First time that a key is set aside; doubled when it is refused again.
const ASIDE: Duration = Duration::from_secs(600);
/// Longest.
const ASIDE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A key. It is never printed.
pub(crate) struct Credential {
    pub(crate) id: String,
    secret: Option<String>,
    /// Its rates.
    pub(crate) limits: Limits,
    aside: Mutex<Option<(Instant, Duration)>>,
}

impl Credential {
    pub(crate) fn new(id: &str, secret: Option<String>, rates: Rates) -> Self {
        Self { id: id.to_owned(), secret, limits: Limits::new(rates), aside: Mutex::new(None) }
    }

    /// The key itself; None: the provider asks for none.
    pub(crate) fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    pub(crate) fn usable(&self, now: Instant) -> bool {
        self.aside.lock().is_none_or(|(until, _)| now >= until)
    }

    /// Not used for a while.
    pub(crate) fn set_aside(&self, now: Instant) {
        let mut aside = self.aside.lock();
        let time = aside.map_or(ASIDE, |(_, last)| (last * 2).min(ASIDE_MAX));
        *aside = Some((now + time, time));
    }

    /// It was accepted.
    pub(crate) fn accepted(&self) {
        let mut aside = self.aside.lock();
        if aside.is_some() {
            *aside = None;
        }
    }
}

/// All keys of a provider.
#[derive(Default)]
pub(crate) struct Credentials {
    all: Vec<std::sync::Arc<Credential>>,
    turn: AtomicUsize,
}

impl Credentials {
    pub(crate) fn new(all: Vec<Credential>) -> Self {
        Self { all: all.into_iter().map(std::sync::Arc::new).collect(), turn: AtomicUsize::new(0) }
    }

    /// The next key in turn that is not set aside and not in `tried`; one with room for the request before one without.
    pub(crate) fn pick(&self, now: Instant, tried: &[String], short: impl Fn(&Limits) -> bool) -> Option<std::sync::Arc<Credential>> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let n = self.all.len();
        let usable = || (0..n).map(|i| &self.all[(start + i) % n]).filter(|c| c.usable(now) && !tried.contains(&c.id));
        usable().find(|c| !short(&c.limits)).or_else(|| usable().next()).cloned()
    }

    /// Whether there are keys, and none that may be used has room for the request.
    pub(crate) fn all_short(&self, now: Instant, short: impl Fn(&Limits) -> bool) -> bool {
        let mut usable = self.all.iter().filter(|c| c.usable(now)).peekable();
        usable.peek().is_some() && usable.all(|c| short(&c.limits))
    }

    /// Any key, set aside or not: for a call that has no other way.
    pub(crate) fn any(&self) -> Option<std::sync::Arc<Credential>> {
        self.all.first().cloned()
    }

    /// Whether a key that was not tried may be used.
    pub(crate) fn has_beside(&self, now: Instant, tried: &[String]) -> bool {
        self.all.iter().any(|c| c.usable(now) && !tried.contains(&c.id))
    }

    /// Whether there are keys, and none may be used.
    pub(crate) fn all_aside(&self, now: Instant) -> bool {
        !self.all.is_empty() && self.all.iter().all(|c| !c.usable(now))
    }

    /// Ids of the keys that are set aside.
    pub(crate) fn aside(&self, now: Instant) -> Vec<String> {
        self.all.iter().filter(|c| !c.usable(now)).map(|c| c.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_turns_and_one_that_is_refused_rests() {
        let keys = Credentials::new(vec![
            Credential::new("a", Some("1".into()), Rates::default()),
            Credential::new("b", Some("2".into()), Rates::default()),
        ]);
        let now = Instant::now();
        let first = keys.pick(now, &[], |_| false).unwrap();
        assert_ne!(keys.pick(now, &[], |_| false).unwrap().id, first.id);
        first.set_aside(now);
        for _ in 0..4 {
            assert_ne!(keys.pick(now, &[], |_| false).unwrap().id, first.id);
        }
        assert_eq!(keys.aside(now), vec![first.id.clone()]);
        first.set_aside(now);
        assert!(!first.usable(now + ASIDE) && first.usable(now + 2 * ASIDE));
        first.accepted();
        assert!(first.usable(now) && keys.aside(now).is_empty());
        let both = ["a".to_owned(), "b".to_owned()];
        assert!(keys.pick(now, &both, |_| false).is_none() && keys.any().is_some());
    }
}
