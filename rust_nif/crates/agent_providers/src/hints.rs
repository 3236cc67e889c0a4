//! When to come back: what a refusal says of the time to wait. The first that applies: `retry-after-ms`, `retry-after` (seconds or a date,
//! measured from the response's own), `google.rpc.RetryInfo` in the body, the latest reset among the exhausted limits, a duration in words.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use serde_json::Value;

/// Longest wait that is passed on; what to make of it is the caller's decision, in ms.
const MAX_WAIT_MS: u64 = 24 * 3_600_000;
/// Words before a duration in a message.
const PHRASES: [&str; 4] = ["try again in ", "reset after ", "retry in ", "retry after "];

/// The wait, if any is named; past, zero and unreadable values count as absent.
pub(crate) fn wait_ms(headers: &HeaderMap, body: &Value, message: &str) -> Option<u64> {
    let now = text(headers, "date").and_then(|d| httpdate::parse_http_date(d).ok()).unwrap_or_else(SystemTime::now);
    number(headers, "retry-after-ms")
        .or_else(|| number(headers, "retry-after").map(|s| s * 1000.0))
        .or_else(|| until(httpdate::parse_http_date(text(headers, "retry-after")?).ok()?, now))
        .or_else(|| retry_info(body))
        .or_else(|| resets(headers, now))
        .or_else(|| in_words(message))
        .filter(|ms| *ms > 0.0)
        .map(whole)
}

/// What is left of a limit of `requests` or `tokens`, and until when; of several the least.
pub(crate) fn left(headers: &HeaderMap, kind: &str) -> Option<(f64, Option<Duration>)> {
    let now = SystemTime::now();
    headers
        .iter()
        .filter(|(name, _)| name.as_str().contains("ratelimit") && name.as_str().contains("remaining") && name.as_str().contains(kind))
        .filter_map(|(name, value)| {
            let amount = value.to_str().ok()?.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0)?;
            let reset = reset_ms(headers, &name.as_str().replacen("remaining", "reset", 1), now);
            Some((amount, reset.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok())))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
}

/// When a limit begins anew: a duration, a time, or seconds.
fn reset_ms(headers: &HeaderMap, name: &str, now: SystemTime) -> Option<f64> {
    let value = text(headers, name)?;
    duration_ms(value).or_else(|| until(value.parse::<prost_types::Timestamp>().ok()?.try_into().ok()?, now))
}

/// `x-should-retry`, where the provider says it.
pub(crate) fn should_retry(headers: &HeaderMap) -> Option<bool> {
    text(headers, "x-should-retry").and_then(|v| v.parse().ok())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(ms: f64) -> u64 {
    (ms.ceil() as u64).min(MAX_WAIT_MS)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim)
}

fn number(headers: &HeaderMap, name: &str) -> Option<f64> {
    text(headers, name).and_then(|v| v.parse::<f64>().ok()).filter(|n| n.is_finite() && *n > 0.0)
}

fn until(at: SystemTime, now: SystemTime) -> Option<f64> {
    at.duration_since(now).ok().map(|d| d.as_secs_f64() * 1000.0)
}

fn retry_info(body: &Value) -> Option<f64> {
    match body {
        Value::Object(map) if map.get("@type").and_then(Value::as_str).is_some_and(|t| t.ends_with("google.rpc.RetryInfo")) => {
            map.get("retryDelay").and_then(Value::as_str).and_then(duration_ms)
        }
        Value::Object(map) => map.values().find_map(retry_info),
        Value::Array(all) => all.iter().find_map(retry_info),
        _ => None,
    }
}

/// The latest reset of a limit of which nothing remains: `x-ratelimit-remaining-tokens: 0`, `x-ratelimit-reset-tokens: 2.4s`.
fn resets(headers: &HeaderMap, now: SystemTime) -> Option<f64> {
    headers
        .iter()
        .filter(|(_, v)| v.to_str().is_ok_and(|v| v.trim().parse::<f64>() == Ok(0.0)))
        .filter(|(name, _)| name.as_str().contains("remaining"))
        .map(|(name, _)| name.as_str().replacen("remaining", "reset", 1))
        .filter_map(|reset| reset_ms(headers, &reset, now))
        .fold(None, |latest: Option<f64>, ms| Some(latest.map_or(ms, |l| l.max(ms))))
}

fn in_words(message: &str) -> Option<f64> {
    let lower = message.to_lowercase();
    PHRASES.iter().find_map(|phrase| {
        let behind = &lower[lower.find(phrase)? + phrase.len()..];
        let end = behind.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(behind.len());
        duration_ms(behind[..end].trim_end_matches('.'))
    })
}

/// "2.4s", "300ms", "1m30s", "2s": in ms.
fn duration_ms(text: &str) -> Option<f64> {
    let (mut rest, mut total, mut any) = (text.trim(), 0.0, false);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|n| *n > 0)?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, ms) =
            [("ms", 1.0), ("s", 1e3), ("m", 6e4), ("h", 3.6e6), ("d", 8.64e7)].into_iter().find(|(u, _)| rest.starts_with(u))?;
        rest = &rest[unit.len()..];
        total += value * ms;
        any = true;
    }
    (any && Duration::try_from_secs_f64(total / 1000.0).is_ok()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_form_that_providers_use() {
        for (given, wanted) in [("2.4s", Some(2400.0)), ("300ms", Some(300.0)), ("1m30s", Some(90_000.0)), ("6m0s", Some(360_000.0))] {
            assert_eq!(duration_ms(given), wanted, "{given}");
        }
        assert_eq!((duration_ms("soon"), duration_ms(""), duration_ms("5"), duration_ms("s")), (None, None, None, None));
        assert_eq!(in_words("Please try again in 2.5s. Thank you"), Some(2500.0));
    }
}
