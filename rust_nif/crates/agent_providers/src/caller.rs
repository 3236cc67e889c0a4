//! Who asks.

/// Identity behind a model call, for budgets and for what is counted by tenant. Empty: unknown, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Tenant.
    pub tenant: String,
    /// First letters of the digest of the key that was shown; never the key.
    pub key_id: String,
    /// Agent that runs the task.
    pub agent: String,
    /// Task.
    pub task_id: String,
    /// What the task may spend, in micro-dollars; 0: it has no limit; none: the tenant's default.
    pub task_limit_micros: Option<i64>,
    /// How often as much again was approved.
    pub approved: i64,
}
