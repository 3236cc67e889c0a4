//! Money before it is spent: reserved before each request, settled after it, inside leases.
//!
//! A lease is an amount of an account that its ledger has committed. What is reserved and spent inside it is never more than the lease; only an
//! answer that costs more than the most it could (a provider that ignores `max_tokens`) takes the account below zero, and the next
//! lease pays that first. Nothing here waits for a disk unless a lease has run dry.

mod account;
mod lease;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_core::{AgentError, Reason};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use account::{Account, Budget, Level, Payer, Window};
pub(crate) use account::{charged, counts};
use lease::Leases;
pub use lease::{Refusal, Sum};

/// Calls of one tenant that wait for a lease, at most.
const MAX_WAITING: usize = 10_000;
/// Longest wait for the ledger: a commit takes some ms, this is for a disk in trouble.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Who commits leases.
pub trait Ledger: Send + Sync {
    /// Asks for a lease. [`Meter::grant`] gives it, and [`Meter::answer`] follows. False: nobody is there.
    fn want(&self, want: Want) -> bool;
}

/// A wish for money.
#[derive(Clone, Debug)]
pub struct Want {
    /// Number of the call that waits; 0: nobody waits, a lease runs low.
    pub id: u64,
    /// Tenant.
    pub tenant: String,
    /// All of them, or nothing.
    pub needs: Vec<Need>,
}

/// What one account lacks.
#[derive(Clone, Debug)]
pub struct Need {
    /// Account.
    pub account: Account,
    /// Its limit, in pico-dollars.
    pub limit: i64,
    /// At least so much is needed, in pico-dollars.
    pub short: i64,
}

/// All leases of a node.
#[derive(Default)]
pub struct Meter {
    budgets: BTreeMap<String, Budget>,
    ledger: RwLock<Option<Arc<dyn Ledger>>>,
    tenants: Mutex<BTreeMap<String, Arc<Mutex<Leases>>>>,
    calls: AtomicU64,
}

impl Meter {
    /// With the budgets of the configuration.
    pub fn new(budgets: BTreeMap<String, Budget>) -> Self {
        Self { budgets, ..Self::default() }
    }

    /// The accounts of a tenant that the configuration limits, with their limits in micro-dollars.
    pub fn limits(&self, tenant: &str) -> Vec<(Account, i64)> {
        self.budgets.get(tenant).map(Budget::limits).unwrap_or_default()
    }

    /// Whether a call of this payer needs money at all.
    pub fn counts(&self, payer: &Payer<'_>) -> bool {
        counts(&self.budgets, payer)
    }

    /// Who commits leases from now on.
    pub fn attach(&self, ledger: Arc<dyn Ledger>) {
        *self.ledger.write() = Some(ledger);
    }

    fn leases(&self, tenant: &str) -> Arc<Mutex<Leases>> {
        let mut tenants = self.tenants.lock();
        match tenants.get(tenant) {
            Some(leases) => leases.clone(),
            None => tenants.entry(tenant.to_owned()).or_default().clone(),
        }
    }

    /// Sets aside what a request may cost at most, in all accounts of its payer or in none. Errors: BUDGET_EXHAUSTED.
    pub async fn reserve(&self, payer: &Payer<'_>, pico: i64) -> Result<Reservation, AgentError> {
        let charged = charged(&self.budgets, payer);
        if charged.is_empty() || pico == 0 {
            return Ok(Reservation::free());
        }
        let leases = self.leases(payer.tenant);
        let deadline = tokio::time::Instant::now() + LEDGER_TIMEOUT;
        loop {
            let id = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            let told = {
                let mut open = leases.lock();
                let Err(needs) = open.reserve(&charged, pico) else {
                    let low = open.low(&charged, pico);
                    drop(open);
                    if !low.is_empty() {
                        self.want(Want { id: 0, tenant: payer.tenant.to_owned(), needs: low });
                    }
                    return Ok(Reservation::new(leases, charged, pico));
                };
                if open.waiting.len() >= MAX_WAITING {
                    return Err(AgentError::new(Reason::Overloaded, "too many calls wait for a lease of the budget").retry_after(200));
                }
                let (tell, told) = oneshot::channel();
                open.waiting.insert(id, tell);
                drop(open);
                if !self.want(Want { id, tenant: payer.tenant.to_owned(), needs }) {
                    leases.lock().waiting.remove(&id);
                    return Err(no_ledger());
                }
                told
            };
            // Whoever stops waiting is no longer answered.
            let _gone = Waiting { leases: &leases, id };
            match tokio::time::timeout_at(deadline, told).await {
                Ok(Ok(Ok(()))) => {}
                // What was asked for may be more than is lacking now: other calls have brought leases of their own since.
                Ok(Ok(Err(refusal))) if leases.lock().enough(&charged, pico, &refusal) => {}
                Ok(Ok(Err(refusal))) => {
                    let free = leases.lock().free(&refusal.account);
                    return Err(refusal.error(payer.tenant, free));
                }
                Ok(Err(_)) | Err(_) => return Err(no_ledger()),
            }
        }
    }

    fn want(&self, want: Want) -> bool {
        let ledger = self.ledger.read().clone();
        ledger.is_some_and(|ledger| ledger.want(want))
    }

    /// A committed lease, in pico-dollars.
    pub fn grant(&self, tenant: &str, account: &Account, pico: i64) {
        self.leases(tenant).lock().grant(account, pico);
    }

    /// Whether the call that waited has what it asked for. None: its ledger cannot say.
    pub fn answer(&self, tenant: &str, id: u64, answer: Option<Result<(), Refusal>>) {
        let waiting = self.leases(tenant).lock().waiting.remove(&id);
        if let Some((tell, answer)) = waiting.zip(answer) {
            let _ = tell.send(answer);
        }
    }

    /// Accounts that changed since this was asked last, and those that are idle.
    pub fn sums(&self, tenant: &str) -> Vec<Sum> {
        self.leases(tenant).lock().sums()
    }

    /// Takes what nobody has reserved out of a lease; gives the amount, which is no longer lent.
    pub fn take(&self, tenant: &str, account: &Account) -> i64 {
        self.leases(tenant).lock().take(account)
    }

    /// Everything that is lent, whether it changed or not: for a ledger that begins again.
    pub fn lent(&self, tenant: &str) -> Vec<Sum> {
        self.leases(tenant).lock().lent()
    }
}

fn no_ledger() -> AgentError {
    AgentError::new(Reason::StoreUnavailable, "the ledger of the budget does not answer; nothing was spent").retry_after(500)
}

struct Waiting<'a> {
    leases: &'a Mutex<Leases>,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.leases.lock().waiting.remove(&self.id);
    }
}

/// Money that is set aside. Dropped unsettled, all of it counts as spent: nobody knows better.
#[must_use]
pub struct Reservation {
    leases: Option<Arc<Mutex<Leases>>>,
    accounts: Vec<(Account, i64)>,
    pico: i64,
}

impl Reservation {
    /// Nothing is set aside, and nothing is charged.
    pub fn free() -> Self {
        Self { leases: None, accounts: Vec::new(), pico: 0 }
    }

    fn new(leases: Arc<Mutex<Leases>>, accounts: Vec<(Account, i64)>, pico: i64) -> Self {
        Self { leases: Some(leases), accounts, pico }
    }

    /// What it did cost, in pico-dollars.
    pub fn settle(mut self, pico: i64) {
        self.close(pico);
    }

    fn close(&mut self, spent: i64) {
        if let Some(leases) = self.leases.take() {
            leases.lock().settle(&self.accounts, self.pico, spent);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.close(self.pico);
    }
}
