//! What is spent and what is lent of a tenant's accounts. Amounts are pico-dollars.
//!
//! A row is one account in one window. Changes of several rows are one transaction, so a lease is taken from all accounts or from none. A
//! limit is checked in that transaction: whatever the engine believes, `spent + lent` is never raised above it.

/// One account in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// `WINDOW:LEVEL:NAME`.
    pub account: String,
    /// When the window began, in ms; 0 where there is none.
    pub window_ms: i64,
    /// Spent for good.
    pub spent: i64,
    /// Lent to a node, which may have spent it. Below zero: an answer cost more than it could, and the next lease pays it.
    pub lent: i64,
}

/// A change of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerChange {
    /// `WINDOW:LEVEL:NAME`.
    pub account: String,
    /// When the window began, in ms.
    pub window_ms: i64,
    /// Added to what is spent.
    pub spent: i64,
    /// Added to what is lent.
    pub lent: i64,
    /// Of both together, where they are raised. None: it is not checked.
    pub limit: Option<i64>,
}

/// A write to the ledger of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerOp {
    /// All of them or none.
    Change(Vec<LedgerChange>),
    /// What was lent counts as spent: nobody knows what became of it.
    Close,
}
