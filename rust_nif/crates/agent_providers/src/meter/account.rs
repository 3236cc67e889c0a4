//! Accounts: who may spend how much, and in which time.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::price::PICO_PER_MICRO;

/// Whose money it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Level {
    Task,
    Agent,
    Key,
    Tenant,
}

/// When the account begins anew, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Window {
    None,
    Day,
    Month,
}

/// An account of a tenant. Its text is its name in the ledger: `month:tenant:`, `day:agent:researcher`, `none:task:ID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Account {
    pub window: Window,
    pub level: Level,
    pub name: String,
}

impl Level {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Level::Task => "task",
            Level::Agent => "agent",
            Level::Key => "key",
            Level::Tenant => "tenant",
        }
    }
}

impl Window {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Window::None => "none",
            Window::Day => "day",
            Window::Month => "month",
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.window.word(), self.level.word(), self.name)
    }
}

impl Account {
    /// Of its text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let window = match parts.next()? {
            "none" => Window::None,
            "day" => Window::Day,
            "month" => Window::Month,
            _ => return None,
        };
        let level = match parts.next()? {
            "task" => Level::Task,
            "agent" => Level::Agent,
            "key" => Level::Key,
            "tenant" => Level::Tenant,
            _ => return None,
        };
        Some(Self { window, level, name: parts.next()?.to_owned() })
    }
}

/// Who pays for a call.
#[derive(Clone, Debug, Default)]
pub struct Payer<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Name of the key, if it came with one.
    pub key: &'a str,
    /// Agent; empty outside of tasks.
    pub agent: &'a str,
    /// Task; empty outside of tasks.
    pub task: &'a str,
    /// What the task may spend, in micro-dollars; 0: it has no limit; none: the tenant's default.
    pub task_limit: Option<i64>,
    /// How often as much again was approved.
    pub approved: i64,
}

/// `budgets` of the native configuration: by tenant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Budget {
    accounts: Vec<Limit>,
    default_task_cost_micros: i64,
}

#[derive(Clone, Debug, Deserialize)]
struct Limit {
    level: Level,
    name: String,
    window: Window,
    limit_micros: i64,
}

impl Budget {
    /// Its accounts, with their limits in micro-dollars.
    pub(crate) fn limits(&self) -> Vec<(Account, i64)> {
        let account = |l: &Limit| (Account { window: l.window, level: l.level, name: l.name.clone() }, l.limit_micros);
        self.accounts.iter().map(account).collect()
    }
}

/// The accounts that a call is charged to, with their limits in pico-dollars; none: nobody counts.
pub(crate) fn charged(budgets: &BTreeMap<String, Budget>, payer: &Payer<'_>) -> Vec<(Account, i64)> {
    let budget = budgets.get(payer.tenant);
    let mut accounts = Vec::new();
    if !payer.task.is_empty() {
        let limit = payer.task_limit.or(budget.map(|b| b.default_task_cost_micros)).unwrap_or(0);
        if limit > 0 {
            let account = Account { window: Window::None, level: Level::Task, name: payer.task.to_owned() };
            let limit = limit.saturating_mul(payer.approved.max(0).saturating_add(1));
            accounts.push((account, limit.saturating_mul(PICO_PER_MICRO)));
        }
    }
    for l in budget.into_iter().flat_map(|b| &b.accounts) {
        let meant = match l.level {
            Level::Tenant => true,
            Level::Agent => l.name == payer.agent,
            Level::Key => l.name == payer.key,
            Level::Task => false,
        };
        if meant {
            let account = Account { window: l.window, level: l.level, name: l.name.clone() };
            accounts.push((account, l.limit_micros.saturating_mul(PICO_PER_MICRO)));
        }
    }
    accounts
}

/// Whether any account is charged; the quick question of the path without money.
pub(crate) fn counts(budgets: &BTreeMap<String, Budget>, payer: &Payer<'_>) -> bool {
    if budgets.is_empty() && payer.task_limit.is_none_or(|limit| limit == 0) {
        return false;
    }
    !charged(budgets, payer).is_empty()
}
