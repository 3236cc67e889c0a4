//! Rows of the ledger.

use agent_core::{AgentError, Reason};

use super::{Db, Row, all, one};
use crate::ledger::{LedgerChange, LedgerOp, LedgerRow};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How long what a task has spent is kept after the task's end: so long its request id is known.
const TASKS_MS: i64 = DAY_MS;
/// How long closed days and months are kept.
const WINDOWS_MS: i64 = 400 * DAY_MS;

fn row_of(r: &dyn Row) -> Result<LedgerRow, AgentError> {
    Ok(LedgerRow { account: r.text(0)?, window_ms: r.int(1)?, spent: r.int(2)?, lent: r.int(3)? })
}

/// All rows of a tenant, or those of one account, the newest window first.
pub(super) fn rows(db: &mut dyn Db, tenant: &str, account: Option<&str>, limit: i64) -> Result<Vec<LedgerRow>, AgentError> {
    let which = if account.is_some() { "AND account = ?3" } else { "" };
    let sql =
        format!("SELECT account, window_ms, spent, lent FROM ledger WHERE tenant = ?1 {which} ORDER BY account, window_ms DESC LIMIT ?2");
    match account {
        Some(account) => all(db, &sql, &[tenant.into(), limit.into(), account.into()], row_of),
        None => all(db, &sql, &[tenant.into(), limit.into()], row_of),
    }
}

/// Writes; gives the rows that changed, as they are then.
pub(super) fn write(db: &mut dyn Db, tenant: &str, op: &LedgerOp, now_ms: i64) -> Result<Vec<LedgerRow>, AgentError> {
    match op {
        LedgerOp::Change(changes) => changes.iter().map(|c| change(db, tenant, c, now_ms)).collect(),
        LedgerOp::Close => {
            let sql = "UPDATE ledger SET spent = spent + lent, lent = 0, update_ms = ?2 WHERE tenant = ?1 AND lent > 0";
            db.execute(sql, &[tenant.into(), now_ms.into()])?;
            // A debt is spent already.
            db.execute("UPDATE ledger SET lent = 0 WHERE tenant = ?1 AND lent < 0", &[tenant.into()])?;
            Ok(Vec::new())
        }
    }
}

fn change(db: &mut dyn Db, tenant: &str, c: &LedgerChange, now_ms: i64) -> Result<LedgerRow, AgentError> {
    let sql = "SELECT account, window_ms, spent, lent FROM ledger WHERE tenant = ?1 AND account = ?2 AND window_ms = ?3";
    let old = one(db, sql, &[tenant.into(), (&c.account).into(), c.window_ms.into()], row_of)?;
    let (spent, lent) = old.map_or((0, 0), |r| (r.spent, r.lent));
    let new = LedgerRow {
        account: c.account.clone(),
        window_ms: c.window_ms,
        spent: spent.saturating_add(c.spent),
        lent: lent.saturating_add(c.lent),
    };
    let together = |spent: i64, lent: i64| spent.saturating_add(lent);
    if let Some(limit) = c.limit
        && together(new.spent, new.lent) > limit
        && together(new.spent, new.lent) > together(spent, lent)
    {
        return Err(AgentError::new(Reason::BudgetExhausted, "the account has no room for this lease")
            .with("account", &c.account)
            .with("spent_pico", spent)
            .with("lent_pico", lent));
    }
    db.execute(
        "INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (tenant, account, window_ms)
        DO UPDATE SET spent = excluded.spent, lent = excluded.lent, update_ms = excluded.update_ms",
        &[tenant.into(), (&c.account).into(), c.window_ms.into(), new.spent.into(), new.lent.into(), now_ms.into()],
    )?;
    Ok(new)
}

/// Forgets the accounts of tasks that have ended, and windows of long ago. A task that waits keeps its account.
pub(super) fn forget(db: &mut dyn Db, now_ms: i64) -> Result<(), AgentError> {
    let sql = "DELETE FROM ledger WHERE update_ms < ?1 AND account LIKE 'none:task:%'
        AND NOT EXISTS (SELECT 1 FROM task WHERE task.id = substr(ledger.account, 11) AND task.state IN (1, 2, 3))";
    db.execute(sql, &[(now_ms - TASKS_MS).into()])?;
    db.execute("DELETE FROM ledger WHERE update_ms < ?1 AND window_ms > 0", &[(now_ms - WINDOWS_MS).into()])?;
    Ok(())
}
