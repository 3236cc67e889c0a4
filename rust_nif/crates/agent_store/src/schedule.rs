//! When a schedule fires. Pure: the clock is given.
//!
//! Cron has five fields, in the schedule's time zone. Where clocks are put forward, a time that does not exist fires at the first one that
//! does; where they are put back, a fixed time fires once (croner, "DST handling"). An interval counts from the schedule's creation.

use std::str::FromStr;

use agent_core::AgentError;
use agent_core::header::{duration_ms, timestamp, timestamp_ms};
use agent_proto::agents::v1 as pb;
use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use pb::schedule::When;

/// Shortest interval: the poll of due schedules looks once a second.
const MIN_INTERVAL_MS: i64 = 1000;
/// Longest interval, in ms: a year. The next times of a longer one soon lie beyond what a timestamp may hold.
const MAX_INTERVAL_MS: i64 = 366 * 24 * 3600 * 1000;
/// Missed times are made up for if they are younger than this, unless the schedule says otherwise, in ms.
const CATCH_UP_MS: i64 = 60_000;
/// Times that a client is shown.
const SHOWN: usize = 5;

/// What the engine remembers of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// The time that fires next, in ms; kept while it is paused.
    pub next_ms: i64,
    /// Whether it is paused.
    pub paused: bool,
    /// The task that it started last.
    pub last_task: String,
    /// Times that fired.
    pub fired: i64,
    /// Times that were left out: the last task still ran, or they were missed.
    pub skipped: i64,
}

/// A schedule whose time has come.
#[derive(Clone, Debug)]
pub struct Due {
    /// Its tenant.
    pub tenant: String,
    /// As its client made it.
    pub schedule: pb::Schedule,
    /// The time, in ms.
    pub tick_ms: i64,
    /// The task that it started last; empty: none.
    pub last_task: String,
}

impl Due {
    /// The name under which its task is submitted: the same however often that is tried. A schedule that was made anew is another one.
    pub fn request_id(&self) -> String {
        let made = self.schedule.create_time.as_ref().map_or(0, timestamp_ms);
        format!("schedule:{}:{made}@{}", self.schedule.id, self.tick_ms)
    }
}

fn cron(text: &str) -> Result<Cron, AgentError> {
    // The parser leaves out what is empty in a list; whoever wrote it meant something.
    if let Some(field) = text.split_whitespace().find(|field| field.split(',').any(str::is_empty)) {
        return Err(AgentError::field("schedule.cron", format!("\"{field}\" has an empty place in its list")));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).build();
    parser.parse(text).map_err(|e| AgentError::field("schedule.cron", format!("\"{text}\" is no cron expression of five fields: {e}")))
}

fn zone(name: &str) -> Result<Tz, AgentError> {
    if name.is_empty() {
        return Ok(Tz::UTC);
    }
    Tz::from_str(name)
        .map_err(|_| AgentError::field("schedule.time_zone", format!("\"{name}\" is unknown; use an IANA name such as Europe/Berlin")))
}

/// The first time after one, in ms; None: there is none.
pub fn next_after(schedule: &pb::Schedule, after_ms: i64) -> Result<Option<i64>, AgentError> {
    match &schedule.when {
        None => Err(AgentError::field("schedule.cron", "cron or interval is needed")),
        Some(When::Interval(interval)) => {
            let every = duration_ms(interval);
            if !(MIN_INTERVAL_MS..=MAX_INTERVAL_MS).contains(&every) {
                return Err(AgentError::field("schedule.interval", "must be 1 s to a year"));
            }
            let made = schedule.create_time.as_ref().map_or(0, timestamp_ms);
            Ok(Some(made + ((after_ms - made).max(0) / every + 1) * every))
        }
        Some(When::Cron(text)) => {
            let after: DateTime<Utc> =
                Utc.timestamp_millis_opt(after_ms).single().ok_or_else(|| AgentError::field("schedule", "is out of time"))?;
            let next = cron(text)?.find_next_occurrence(&after.with_timezone(&zone(&schedule.time_zone)?), false);
            Ok(next.ok().map(|t| t.timestamp_millis()))
        }
    }
}

/// The time that fires next: the one that was due, unless it was missed by too much.
pub fn due(schedule: &pb::Schedule, next_ms: i64, now_ms: i64) -> Result<Option<i64>, AgentError> {
    let oldest = now_ms - schedule.catch_up.as_ref().map_or(CATCH_UP_MS, duration_ms);
    if next_ms >= oldest { Ok(Some(next_ms)) } else { next_after(schedule, oldest - 1) }
}

/// What a client is shown.
pub fn shown(mut schedule: pb::Schedule, state: &State) -> pb::Schedule {
    let mut next = Some(state.next_ms);
    schedule.next_times.clear();
    while let Some(at) = next.filter(|_| !state.paused && schedule.next_times.len() < SHOWN) {
        schedule.next_times.push(timestamp(at));
        next = next_after(&schedule, at).ok().flatten();
    }
    if state.paused { "paused" } else { "active" }.clone_into(&mut schedule.state);
    schedule.last_task_id.clone_from(&state.last_task);
    (schedule.fired, schedule.skipped) = (state.fired, state.skipped);
    schedule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    fn by_cron(cron: &str, zone: &str) -> pb::Schedule {
        pb::Schedule { when: Some(When::Cron(cron.into())), time_zone: zone.into(), ..Default::default() }
    }

    #[test]
    fn a_fixed_time_fires_once_on_the_days_when_clocks_change() {
        let daily = by_cron("30 2 * * *", "Europe/Berlin");
        // 29 March 2026: 02:00 becomes 03:00. 25 October 2026: 03:00 becomes 02:00.
        for (day_before, expected) in [
            ("2026-03-28T12:00:00Z", ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
            ("2026-10-24T12:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ] {
            let first = next_after(&daily, at(day_before)).unwrap().unwrap();
            let second = next_after(&daily, first).unwrap().unwrap();
            assert_eq!([first, second], expected.map(at), "{day_before}");
        }
    }

    #[test]
    fn the_zone_of_a_schedule_is_its_own() {
        let next = |zone| next_after(&by_cron("0 9 * * 1-5", zone), at("2026-11-24T00:00:00Z")).unwrap();
        assert_eq!(next(""), Some(at("2026-11-24T09:00:00Z")));
        assert_eq!(next("America/New_York"), Some(at("2026-11-24T14:00:00Z")));
    }

    #[test]
    fn intervals_count_from_the_creation() {
        let every = |ms| pb::Schedule {
            when: Some(When::Interval(agent_core::header::duration(ms))),
            create_time: Some(timestamp(500)),
            ..Default::default()
        };
        assert_eq!(next_after(&every(1000), 500).unwrap(), Some(1500));
        assert_eq!(next_after(&every(1000), 1500).unwrap(), Some(2500));
        assert_eq!(next_after(&every(999), 0).unwrap_err().reason, agent_core::Reason::InvalidField);
    }

    #[test]
    fn what_was_missed_by_too_much_is_left_out() {
        let mut hourly = by_cron("0 * * * *", "");
        let (noon, later) = (at("2026-11-24T12:00:00Z"), at("2026-11-24T15:00:30Z"));
        assert_eq!(due(&hourly, noon, later).unwrap(), Some(at("2026-11-24T15:00:00Z")));
        hourly.catch_up = Some(agent_core::header::duration(2 * 3_600_000));
        assert_eq!(due(&hourly, noon, later).unwrap(), Some(at("2026-11-24T14:00:00Z")));
    }

    #[test]
    fn bad_times_name_their_field() {
        for (schedule, field) in [
            (by_cron("every day", ""), "schedule.cron"),
            (by_cron("0 0 0 * * *", ""), "schedule.cron"),
            (by_cron("0 1,,2 * * *", ""), "schedule.cron"),
            (by_cron("0 0 * * *", "Mars/Base"), "schedule.time_zone"),
            (pb::Schedule::default(), "schedule.cron"),
        ] {
            assert_eq!(next_after(&schedule, 0).unwrap_err().fields[0].field, field);
        }
        assert_eq!(next_after(&by_cron("0 0 30 2 *", ""), 0).unwrap(), None, "a day that never comes");
    }
}
