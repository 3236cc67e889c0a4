//! Budgets as clients see them: accounts of the configuration and those of tasks, with what the ledger says of their present window.

use std::collections::BTreeMap;

use agent_core::header::timestamp;
use agent_proto::agents::v1 as pb;
use agent_providers::meter::{Account, Level, Window};
use agent_store::ledger::LedgerRow;

/// A day, in ms.
const DAY_MS: i64 = 24 * 3600 * 1000;
/// Pico-dollars of a micro-dollar.
const PICO_PER_MICRO: i64 = 1_000_000;

/// When the window of an account began and when the next one does, in ms; 0: it has none.
fn window_ms(window: Window, now_ms: i64) -> (i64, i64) {
    match window {
        Window::None => (0, 0),
        Window::Day => (now_ms - now_ms.rem_euclid(DAY_MS), now_ms - now_ms.rem_euclid(DAY_MS) + DAY_MS),
        Window::Month => {
            let (first, days) = month(now_ms.div_euclid(DAY_MS));
            (first * DAY_MS, (first + days) * DAY_MS)
        }
    }
}

/// The first day of the month of a day, and the days of that month; days are counted from 1970.
fn month(day: i64) -> (i64, i64) {
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let (mut year, mut first) = (1970, 0);
    while day >= first + 365 + i64::from(leap(year)) {
        first += 365 + i64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for days in lengths {
        if day < first + days {
            return (first, days);
        }
        first += days;
    }
    (first, 31)
}

/// Every account of a tenant: those with a limit, and those that were used in their present window. Tasks have their own where `tasks`.
pub(crate) fn list(limits: Vec<(Account, i64)>, rows: Vec<LedgerRow>, tasks: bool, now_ms: i64) -> Vec<pb::Budget> {
    let mut all: BTreeMap<Account, pb::Budget> = BTreeMap::new();
    let blank = |account: &Account| {
        let (start, end) = window_ms(account.window, now_ms);
        pb::Budget {
            level: account.level.word().to_owned(),
            name: account.name.clone(),
            window: if account.window == Window::None { "total" } else { account.window.word() }.to_owned(),
            window_start: (start > 0).then(|| timestamp(start)),
            resets: (end > 0).then(|| timestamp(end)),
            ..Default::default()
        }
    };
    for (account, limit) in limits {
        let budget = pb::Budget { limit_micros: Some(limit), ..blank(&account) };
        all.insert(account, budget);
    }
    for row in rows {
        let Some(account) = Account::parse(&row.account) else { continue };
        let present = row.window_ms == window_ms(account.window, now_ms).0;
        if !present || (account.level == Level::Task && !tasks) {
            continue;
        }
        let budget = all.entry(account.clone()).or_insert_with(|| blank(&account));
        budget.spent_micros = row.spent / PICO_PER_MICRO;
        budget.lent_micros = row.lent / PICO_PER_MICRO;
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds since 1970 of `date -u -d …`.
    const LEAP_DAY: i64 = 1_709_164_800;
    const FIRST_OF_FEBRUARY: i64 = 1_706_745_600;
    const FIRST_OF_MARCH: i64 = 1_709_251_200;

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        let now = LEAP_DAY * 1000 + 5;
        assert_eq!(window_ms(Window::Month, now), (FIRST_OF_FEBRUARY * 1000, FIRST_OF_MARCH * 1000));
        assert_eq!(window_ms(Window::Day, now), (LEAP_DAY * 1000, FIRST_OF_MARCH * 1000));
        assert_eq!(window_ms(Window::Month, FIRST_OF_MARCH * 1000).0, FIRST_OF_MARCH * 1000);
        assert_eq!(window_ms(Window::None, now), (0, 0));
    }

    #[test]
    fn a_window_that_has_passed_and_tasks_that_nobody_asked_for_are_left_out() {
        let now = LEAP_DAY * 1000;
        let account = |text: &str| Account::parse(text).unwrap();
        let row = |text: &str, window_ms, spent| LedgerRow { account: text.into(), window_ms, spent, lent: 0 };
        let limits = || vec![(account("day:key:abcd"), 5_000_000)];
        let rows = || {
            vec![
                row("day:key:abcd", now, 2_000_000),
                row("day:key:abcd", now - DAY_MS, 9_000_000),
                row("none:task:t", 0, 7_000_000),
                row("month:tenant:", FIRST_OF_FEBRUARY * 1000, 3_000_000),
            ]
        };
        let seen = |tasks| {
            let all = list(limits(), rows(), tasks, now);
            all.into_iter().map(|b| (b.level, b.window, b.limit_micros, b.spent_micros)).collect::<Vec<_>>()
        };
        let text = |level: &str, window: &str, limit, spent| (level.to_owned(), window.to_owned(), limit, spent);
        assert_eq!(seen(false), [text("key", "day", Some(5_000_000), 2), text("tenant", "month", None, 3)]);
        assert_eq!(seen(true).len(), 3);
    }
}
