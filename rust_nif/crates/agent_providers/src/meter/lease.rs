//! The leases of one tenant, as numbers. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use agent_core::header::timestamp;
use agent_core::{AgentError, Reason};
use tokio::sync::oneshot;

use super::{Account, Level, Need, Window};
use crate::price::micros;

/// A lease that nobody uses for so long is given back, in seconds.
const IDLE_S: u64 = 10;

#[derive(Debug)]
struct Lease {
    /// Neither reserved nor spent; below zero after an answer that cost more than it could.
    free: i64,
    reserved: i64,
    last_grant: i64,
    /// The next lease is asked for already.
    asked: bool,
    changed: bool,
    used: Instant,
}

/// What is lent to one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Account.
    pub account: Account,
    /// Not spent yet, reserved or not, in pico-dollars.
    pub open: i64,
    /// Of it reserved.
    pub reserved: i64,
    /// Nobody uses it.
    pub idle: bool,
}

/// Why there is no more money.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Refusal {
    pub account: Account,
    /// In pico-dollars, as the others.
    pub limit: i64,
    pub spent: i64,
    pub lent: i64,
    /// When the window turns, in ms; 0: never.
    pub resets_ms: i64,
}

/// All leases of a tenant, and the calls that wait for more.
#[derive(Debug, Default)]
pub(super) struct Leases {
    accounts: HashMap<Account, Lease>,
    pub(super) waiting: BTreeMap<u64, oneshot::Sender<Result<(), Refusal>>>,
}

impl Leases {
    /// All of it or nothing; else what the accounts lack.
    pub(super) fn reserve(&mut self, charged: &[(Account, i64)], pico: i64) -> Result<(), Vec<Need>> {
        let free = |account: &Account| self.free(account);
        let short = charged.iter().filter(|(account, _)| free(account) < pico);
        let needs: Vec<Need> = short
            .map(|(account, limit)| Need { account: account.clone(), limit: *limit, short: pico.saturating_sub(free(account)) })
            .collect();
        if !needs.is_empty() {
            return Err(needs);
        }
        for (account, _) in charged {
            if let Some(lease) = self.accounts.get_mut(account) {
                lease.free -= pico;
                lease.reserved += pico;
                lease.used = Instant::now();
            }
        }
        Ok(())
    }

    /// Whether the account that refused has enough after all: in its lease now, or with what the ledger has left.
    pub(super) fn enough(&self, charged: &[(Account, i64)], pico: i64, refusal: &Refusal) -> bool {
        let free = self.free(&refusal.account);
        let charged = charged.iter().any(|(account, _)| *account == refusal.account);
        charged && pico.saturating_sub(free) <= refusal.left()
    }

    /// What an account has in hand.
    pub(super) fn free(&self, account: &Account) -> i64 {
        self.accounts.get(account).map_or(0, |lease| lease.free)
    }

    /// Leases that are half used, once each: one more call like this is asked for before they run dry.
    pub(super) fn low(&mut self, charged: &[(Account, i64)], pico: i64) -> Vec<Need> {
        let mut low = Vec::new();
        for (account, limit) in charged.iter().filter(|(account, _)| account.level != Level::Task) {
            if let Some(lease) = self.accounts.get_mut(account)
                && !lease.asked
                && lease.free < lease.last_grant / 2
            {
                lease.asked = true;
                low.push(Need { account: account.clone(), limit: *limit, short: pico });
            }
        }
        low
    }

    pub(super) fn settle(&mut self, charged: &[(Account, i64)], reserved: i64, spent: i64) {
        for (account, _) in charged {
            if let Some(lease) = self.accounts.get_mut(account) {
                lease.reserved -= reserved;
                lease.free = lease.free.saturating_add(reserved).saturating_sub(spent.max(0));
                lease.changed = true;
                lease.used = Instant::now();
            }
        }
    }

    pub(super) fn grant(&mut self, account: &Account, pico: i64) {
        let lease = self.accounts.entry(account.clone()).or_insert_with(|| Lease {
            free: 0,
            reserved: 0,
            last_grant: 0,
            asked: false,
            changed: false,
            used: Instant::now(),
        });
        lease.free = lease.free.saturating_add(pico);
        lease.last_grant = pico;
        lease.asked = false;
        lease.used = Instant::now();
    }

    pub(super) fn sums(&mut self) -> Vec<Sum> {
        let mut sums = Vec::new();
        for (account, lease) in &mut self.accounts {
            let idle = lease.free >= 0 && lease.reserved == 0 && lease.used.elapsed().as_secs() >= IDLE_S;
            if std::mem::take(&mut lease.changed) || idle {
                sums.push(Sum { account: account.clone(), open: lease.free + lease.reserved, reserved: lease.reserved, idle });
            }
        }
        sums
    }

    pub(super) fn lent(&self) -> Vec<Sum> {
        let sum = |(account, lease): (&Account, &Lease)| Sum {
            account: account.clone(),
            open: lease.free + lease.reserved,
            reserved: lease.reserved,
            idle: lease.reserved == 0,
        };
        self.accounts.iter().map(sum).collect()
    }

    /// The part that is free; a debt stays for the next lease.
    pub(super) fn take(&mut self, account: &Account) -> i64 {
        let Some(lease) = self.accounts.get_mut(account) else { return 0 };
        let taken = lease.free.max(0);
        lease.free -= taken;
        if lease.free == 0 && lease.reserved == 0 {
            self.accounts.remove(account);
        } else {
            // A small rest asks for more when it is needed, not before.
            lease.last_grant = 0;
        }
        taken
    }
}

impl Refusal {
    /// Not spent and not lent, in pico-dollars.
    fn left(&self) -> i64 {
        self.limit.saturating_sub(self.spent).saturating_sub(self.lent)
    }

    /// As the caller hears it. `free`: what its lease has in hand, which is lent and yet not set aside for any call.
    pub(super) fn error(mut self, tenant: &str, free: i64) -> AgentError {
        self.lent = self.lent.saturating_sub(free);
        let Account { window, level, ref name } = self.account;
        let per = match window {
            Window::None => "",
            Window::Day => " per day",
            Window::Month => " per month",
        };
        let (whose, remedy) = match level {
            Level::Task => ("the task's".to_owned(), "submit it with a higher max_cost_micros".to_owned()),
            Level::Agent => (format!("the agent {name}'s"), format!("[tenants.{tenant}] agent_budgets raises it")),
            Level::Key => ("the key's".to_owned(), format!("[tenants.{tenant}] keys raises it")),
            Level::Tenant => ("the tenant's".to_owned(), format!("[tenants.{tenant}] budget raises it")),
        };
        let resets = if self.resets_ms > 0 { format!(", it begins anew at {}", timestamp(self.resets_ms)) } else { String::new() };
        let message = format!(
            "{whose} budget of {} dollars{per} has no room for this call: {} are spent, {} set aside for calls under way{resets}; {remedy}",
            dollars(self.limit),
            dollars(self.spent),
            dollars(self.lent.max(0)),
        );
        let left = self.left().max(0);
        AgentError::new(Reason::BudgetExhausted, message)
            .with("level", level.word())
            .with("account", name)
            .with("window", window.word())
            .with("limit_micros", micros(self.limit))
            .with("spent_micros", micros(self.spent))
            .with("reserved_micros", micros(self.lent))
            .with("left_pico", left)
            .with("resets_ms", self.resets_ms)
            .with("raised_by", remedy)
    }
}

/// An amount for people, with at least two decimals and no zeros behind them.
fn dollars(pico: i64) -> String {
    let micros = micros(pico);
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let kept = text.trim_end_matches('0').len().max(text.len() - 4);
    text[..kept].to_owned()
}
