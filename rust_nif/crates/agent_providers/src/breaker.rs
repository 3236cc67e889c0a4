//! The circuit breaker of an endpoint: pure, with the time passed in.
//!
//! It opens at five faults or more, half of the calls or more, within ten seconds, at ten faults without an answer between them, or after three
//! refused connections in a row. Open for
//! 5 s, doubled each time up to 16 s, a fifth more or less; then one call at a time is let through, and three that succeed close it.

use std::time::{Duration, Instant};

/// Seconds that count.
const WINDOW_S: usize = 10;
/// Weight of faults in the window that opens.
const FAULTS: f32 = 5.0;
/// Share of faults in the window that opens.
const SHARE: f32 = 0.5;
/// Weight of faults without any success between them that opens: under load the share of ten seconds comes too late.
const IN_A_ROW: f32 = 10.0;
/// Connections refused one after the other that open.
const CONNECTS: u32 = 3;
/// First time of being open, in s.
const OPEN_S: f32 = 5.0;
/// Longest, in s, before the jitter: with it an open endpoint is asked at least every 20 s.
const OPEN_MAX_S: f32 = 16.0;
/// Successes that close it.
const CLOSING: u32 = 3;

/// Where the breaker stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Closed,
    Open(Instant),
    /// Calls under way and successes so far.
    HalfOpen(u32, u32),
}

/// What a call was for the endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    Success,
    /// Weight, and whether the connection was refused.
    Fault(f32, bool),
    /// Neither: the caller's fault, a limit, a cancel.
    Neutral,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    start: Instant,
    state: State,
    /// Second, calls and faults.
    window: [(u64, f32, f32); WINDOW_S],
    connects: u32,
    /// Weight of the faults since the last success.
    row: f32,
    opened: u32,
}

impl Breaker {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, state: State::Closed, window: [(0, 0.0, 0.0); WINDOW_S], connects: 0, row: 0.0, opened: 0 }
    }

    /// The state now.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether a call would be let through now.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open(until) => now >= until,
            State::HalfOpen(under_way, _) => under_way == 0,
        }
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        match &mut self.state {
            State::Open(until) if now >= *until => self.state = State::HalfOpen(1, 0),
            State::HalfOpen(under_way, _) => *under_way += 1,
            _ => {}
        }
    }

    /// A call has ended. `chance` is from 0 to 1.
    pub(crate) fn end(&mut self, now: Instant, outcome: Outcome, chance: f32) {
        self.count(now, outcome);
        match (self.state, outcome) {
            (State::HalfOpen(under_way, good), Outcome::Success) if good + 1 < CLOSING => {
                self.state = State::HalfOpen(under_way.saturating_sub(1), good + 1);
            }
            (State::HalfOpen(..), Outcome::Success) => {
                *self = Self { start: self.start, ..Self::new(now) };
            }
            (State::HalfOpen(under_way, good), Outcome::Neutral) => self.state = State::HalfOpen(under_way.saturating_sub(1), good),
            (State::HalfOpen(..), Outcome::Fault(..)) => self.open(now, chance),
            (State::Closed, Outcome::Fault(..)) => {
                let (calls, faults) = self.sums(now);
                if self.connects >= CONNECTS || self.row >= IN_A_ROW || (faults >= FAULTS && faults >= SHARE * calls) {
                    self.open(now, chance);
                }
            }
            _ => {}
        }
    }

    /// A probe has ended that was no call: one that fails prolongs the time of being open, one that succeeds lets the next call through.
    pub(crate) fn probed(&mut self, now: Instant, good: bool, chance: f32) {
        match (self.state, good) {
            (State::Closed, _) => {}
            (State::Open(_), true) => self.state = State::HalfOpen(0, 1),
            (State::HalfOpen(under_way, calls), true) => self.state = State::HalfOpen(under_way, calls.max(1)),
            (_, false) => self.open(now, chance),
        }
    }

    fn open(&mut self, now: Instant, chance: f32) {
        #[allow(clippy::cast_precision_loss)]
        let seconds = (OPEN_S * 2f32.powi(self.opened.min(8).cast_signed())).min(OPEN_MAX_S) * (0.8 + 0.4 * chance);
        self.opened += 1;
        self.state = State::Open(now + Duration::from_secs_f32(seconds));
    }

    fn second(&self, now: Instant) -> u64 {
        // From 1: 0 says that a slot was never used.
        now.saturating_duration_since(self.start).as_secs() + 1
    }

    fn count(&mut self, now: Instant, outcome: Outcome) {
        self.connects = if matches!(outcome, Outcome::Fault(_, true)) { self.connects + 1 } else { 0 };
        let faults = match outcome {
            Outcome::Success => 0.0,
            Outcome::Fault(weight, _) => weight,
            Outcome::Neutral => return,
        };
        self.row = if outcome == Outcome::Success { 0.0 } else { self.row + faults };
        let second = self.second(now);
        #[allow(clippy::cast_possible_truncation)]
        let slot = &mut self.window[(second % WINDOW_S as u64) as usize];
        if slot.0 != second {
            *slot = (second, 0.0, 0.0);
        }
        slot.1 += 1.0;
        slot.2 += faults;
    }

    fn sums(&self, now: Instant) -> (f32, f32) {
        let oldest = self.second(now).saturating_sub(WINDOW_S as u64 - 1);
        let within = self.window.iter().filter(|(second, ..)| *second >= oldest && *second > 0);
        within.fold((0.0, 0.0), |(calls, faults), slot| (calls + slot.1, faults + slot.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn it_opens_at_five_faults_of_ten_seconds_and_is_asked_again_within_twenty() {
        let start = Instant::now();
        let mut b = Breaker::new(start);
        for n in 0..4 {
            b.end(at(start, n * 100), Outcome::Fault(1.0, false), 0.5);
        }
        assert!(b.admits(at(start, 500)));
        // Eleven seconds later those count no longer.
        b.end(at(start, 11_500), Outcome::Fault(1.0, false), 0.5);
        assert_eq!(b.state(), State::Closed);
        for n in 0..4 {
            b.end(at(start, 12_000 + n), Outcome::Fault(1.0, false), 0.5);
        }
        assert!(!b.admits(at(start, 12_100)));
        assert!(b.admits(at(start, 18_000)));
        for round in 0..6 {
            let now = match b.state() {
                State::Open(until) => until,
                other => unreachable!("{other:?}"),
            };
            b.begin(now);
            assert!(!b.admits(now), "one at a time");
            b.end(now, Outcome::Fault(1.0, false), 1.0);
            let State::Open(until) = b.state() else { unreachable!() };
            assert!(until - now <= Duration::from_secs(20), "round {round}");
        }
    }

    #[test]
    fn three_refused_connections_open_it_and_three_answers_close_it() {
        let start = Instant::now();
        let mut b = Breaker::new(start);
        for _ in 0..3 {
            b.end(start, Outcome::Fault(1.0, true), 0.0);
        }
        let State::Open(until) = b.state() else { unreachable!() };
        for _ in 0..3 {
            assert!(b.admits(until));
            b.begin(until);
            b.end(until, Outcome::Success, 0.0);
        }
        assert_eq!(b.state(), State::Closed);
    }

    #[test]
    fn under_load_an_outage_opens_it_at_once() {
        let start = Instant::now();
        let mut b = Breaker::new(start);
        for n in 0..5000 {
            b.end(at(start, n), if n % 10 == 0 { Outcome::Fault(1.0, false) } else { Outcome::Success }, 0.5);
        }
        assert_eq!(b.state(), State::Closed, "a tenth of faults");
        for n in 0..10 {
            b.end(at(start, 5000 + n), Outcome::Fault(1.0, false), 0.5);
        }
        assert!(!b.admits(at(start, 5010)));
    }

    proptest! {
        #[test]
        fn successes_and_others_faults_never_open_it(steps in proptest::collection::vec((0u64..2000, any::<bool>()), 0..200)) {
            let start = Instant::now();
            let (mut b, mut now) = (Breaker::new(start), start);
            for (ms, good) in steps {
                now += Duration::from_millis(ms);
                b.end(now, if good { Outcome::Success } else { Outcome::Neutral }, 0.5);
                prop_assert!(b.admits(now));
            }
        }

        #[test]
        fn it_always_lets_a_call_through_within_twenty_seconds(steps in proptest::collection::vec((0u64..3000, 0u8..4, 0f32..1.0), 0..300)) {
            let start = Instant::now();
            let (mut b, mut now) = (Breaker::new(start), start);
            for (ms, what, chance) in steps {
                now += Duration::from_millis(ms);
                if b.admits(now) {
                    b.begin(now);
                    let outcome = [Outcome::Success, Outcome::Neutral, Outcome::Fault(1.0, false), Outcome::Fault(0.5, true)][usize::from(what)];
                    b.end(now, outcome, chance);
                }
                prop_assert!(b.admits(now + Duration::from_secs(20)));
            }
        }
    }
}
