//! What follows a failed attempt: pure. The table is by kind of error; a call has at most three attempts over all endpoints.

use std::time::Duration;

use agent_core::{AgentError, Reason};

use crate::breaker::Outcome;

/// Requests of one call, at most.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// First pause where a limit names none; doubled with each attempt, a fifth more or less.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);
/// Longest first pause after a fault; doubled with each attempt, and any part of it.
const FAULT_PAUSE: Duration = Duration::from_millis(250);

/// Whether the same endpoint may be asked again where it is the only one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Same {
    Never,
    Once,
    AfterTheWait,
}

/// What a kind of error means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rule {
    /// For the endpoint's health.
    pub(crate) outcome: Outcome,
    /// The key is set aside.
    pub(crate) quarantine: bool,
    same: Same,
    other: bool,
}

impl Rule {
    /// Whether another endpoint may help.
    pub(crate) fn elsewhere(self) -> bool {
        self.other
    }
}

/// What an error means, by its `kind`.
pub(crate) fn rule(error: &AgentError) -> Rule {
    let said = |key: &str| error.metadata.get(key).map_or("", String::as_str);
    let redirect = said("status").len() == 3 && said("status").starts_with('3');
    let fault = |weight| Outcome::Fault(weight, said("kind") == "connect");
    let of = |outcome, same, other| Rule { outcome, quarantine: false, same, other };
    match said("kind") {
        // Another dialect may have a word for the field.
        _ if error.reason == Reason::UnsupportedField => of(Outcome::Neutral, Same::Never, true),
        "timeout" if said("phase") == "deadline" => of(Outcome::Neutral, Same::Never, false),
        "timeout" => of(fault(1.0), Same::Never, true),
        "rate_limit" => of(Outcome::Neutral, Same::AfterTheWait, true),
        "overloaded" => of(fault(0.5), Same::AfterTheWait, true),
        "quota" | "auth" => Rule { outcome: Outcome::Neutral, quarantine: true, same: Same::Never, other: true },
        "not_found" => of(Outcome::Neutral, Same::Never, true),
        "bad_response" if redirect => of(fault(1.0), Same::Never, true),
        "connect" | "server_error" | "cut" | "bad_response" => of(fault(1.0), Same::Once, true),
        "response_too_large" => of(fault(1.0), Same::Never, false),
        _ => of(Outcome::Neutral, Same::Never, false),
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    /// The error is the call's.
    Give,
    /// The same endpoint, after a pause.
    Same(Duration),
    /// Another endpoint, at once.
    Other,
}

/// Where a call is when an attempt has failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// Attempts so far, this one included.
    pub(crate) attempts: usize,
    /// Those on this endpoint.
    pub(crate) here: usize,
    /// Another endpoint could be asked.
    pub(crate) other: bool,
    /// Time that is left to the call.
    pub(crate) left: Duration,
    /// Longest pause that is begun.
    pub(crate) longest: Duration,
    /// From 0 to 1.
    pub(crate) chance: f32,
}

/// Decides. What was shown to the caller already is not its business: see [`crate::flow::Flow`].
pub(crate) fn next(error: &AgentError, at: Situation) -> Next {
    let rule = rule(error);
    if at.attempts >= MAX_ATTEMPTS {
        return Next::Give;
    }
    if rule.other && at.other {
        return Next::Other;
    }
    let doubled = |first: Duration| first * (1 << (at.here - 1).min(8));
    let hint = (error.retry_after_ms > 0).then(|| Duration::from_millis(error.retry_after_ms));
    let pause = match (error.metadata.get("should_retry").map(String::as_str), rule.same) {
        (Some("false"), _) => return Next::Give,
        (Some("true"), Same::Never | Same::Once) if at.here == 1 => hint.unwrap_or(doubled(FAULT_PAUSE).mul_f32(at.chance)),
        (_, Same::Once) if at.here == 1 => hint.unwrap_or(doubled(FAULT_PAUSE).mul_f32(at.chance)),
        (_, Same::AfterTheWait) => hint.unwrap_or(doubled(LIMIT_PAUSE).mul_f32(0.8 + 0.4 * at.chance)),
        _ => return Next::Give,
    };
    if pause > at.longest || pause >= at.left { Next::Give } else { Next::Same(pause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(attempts: usize, other: bool) -> Situation {
        let (left, longest) = (Duration::from_secs(60), Duration::from_secs(120));
        Situation { attempts, here: attempts, other, left, longest, chance: 0.5 }
    }

    fn error(kind: &str) -> AgentError {
        AgentError::new(Reason::ProviderUnavailable, "x").with("kind", kind)
    }

    #[test]
    fn another_endpoint_is_asked_at_once_and_only_where_that_may_help() {
        for kind in ["connect", "timeout", "rate_limit", "overloaded", "quota", "auth", "not_found", "server_error", "cut", "bad_response"]
        {
            assert_eq!(next(&error(kind), at(1, true)), Next::Other, "{kind}");
            assert_eq!(next(&error(kind), at(3, true)), Next::Give, "{kind}");
        }
        for kind in ["invalid_request", "context_length", "request_too_large", "content_filter", "response_too_large", "cancelled"] {
            assert_eq!(next(&error(kind), at(1, true)), Next::Give, "{kind}");
        }
        assert_eq!(next(&error("timeout").with("phase", "deadline"), at(1, true)), Next::Give);
    }

    #[test]
    fn the_only_endpoint_is_asked_once_more_or_after_the_wait_it_named() {
        assert!(matches!(next(&error("server_error"), at(1, false)), Next::Same(p) if p <= Duration::from_millis(250)));
        assert_eq!(next(&error("server_error"), at(2, false)), Next::Give);
        assert_eq!(next(&error("rate_limit").retry_after(1500), at(2, false)), Next::Same(Duration::from_millis(1500)));
        assert_eq!(next(&error("rate_limit").retry_after(61_000), at(1, false)), Next::Give, "beyond the deadline");
        assert_eq!(next(&error("bad_response").with("status", 307), at(1, false)), Next::Give);
        assert_eq!(next(&error("server_error").with("should_retry", "false"), at(1, false)), Next::Give);
        assert!(matches!(next(&error("invalid_request").with("should_retry", "true"), at(1, false)), Next::Same(_)));
    }
}
