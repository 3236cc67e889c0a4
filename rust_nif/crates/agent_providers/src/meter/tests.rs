//! Nobody spends more than there is, whatever comes late, at once, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

/// A ledger of one tenant, as the engine's: it commits leases late, grants what is left, and reads the sums now and then.
struct Book {
    meter: Mutex<Weak<Meter>>,
    rows: Mutex<BTreeMap<Account, (i64, i64)>>,
    late: Duration,
}

const TENANT: &str = "t";

impl Book {
    fn open(limits: serde_json::Value, late: Duration) -> (Arc<Meter>, Arc<Book>) {
        let budget: Budget = serde_json::from_value(limits).unwrap();
        let meter = Arc::new(Meter::new([(TENANT.to_owned(), budget)].into()));
        let book = Arc::new(Book { meter: Mutex::new(Arc::downgrade(&meter)), rows: Mutex::default(), late });
        meter.attach(Arc::new(Desk(book.clone())));
        (meter, book)
    }

    fn serve(&self, want: &Want) {
        let Some(meter) = self.meter.lock().upgrade() else { return };
        let mut rows = self.rows.lock();
        let left =
            |rows: &BTreeMap<Account, (i64, i64)>, n: &Need| rows.get(&n.account).map_or(n.limit, |(spent, lent)| n.limit - spent - lent);
        if want.id != 0
            && let Some(n) = want.needs.iter().find(|n| left(&rows, n) < n.short)
        {
            let (spent, lent) = rows.get(&n.account).copied().unwrap_or_default();
            meter.answer(TENANT, want.id, Some(Err(Refusal { account: n.account.clone(), limit: n.limit, spent, lent, resets_ms: 0 })));
            return;
        }
        for n in &want.needs {
            let grant = left(&rows, n).min(n.short * 3);
            if grant > 0 {
                rows.entry(n.account.clone()).or_default().1 += grant;
                meter.grant(TENANT, &n.account, grant);
            }
        }
        meter.answer(TENANT, want.id, Some(Ok(())));
    }

    fn settle(&self) {
        let Some(meter) = self.meter.lock().upgrade() else { return };
        let mut rows = self.rows.lock();
        for sum in meter.sums(TENANT) {
            let row = rows.entry(sum.account).or_default();
            row.0 += row.1 - sum.open;
            row.1 = sum.open;
        }
    }

    fn spent(&self, account: &Account) -> i64 {
        self.rows.lock().get(account).map_or(0, |row| row.0)
    }
}

struct Desk(Arc<Book>);

impl Ledger for Desk {
    fn want(&self, want: Want) -> bool {
        let book = self.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(book.late).await;
            book.serve(&want);
        });
        true
    }
}

fn account(level: Level, name: &str) -> Account {
    Account { window: Window::None, level, name: name.into() }
}

fn limits(tenant_micros: i64, agent_micros: i64) -> serde_json::Value {
    serde_json::json!({"accounts": [
        {"level": "tenant", "name": "", "window": "none", "limit_micros": tenant_micros},
        {"level": "agent", "name": "a", "window": "none", "limit_micros": agent_micros}
    ], "default_task_cost_micros": 0})
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on(test)
}

#[derive(Clone, Debug)]
enum End {
    Settled(i64),
    Dropped,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_spent_stays_within_every_limit(
        tenant in 1i64..2000, agent in 1i64..1500, task in 1i64..400, late in 0u64..3,
        calls in proptest::collection::vec(
            (1i64..50_000_000, prop_oneof![(0i64..100).prop_map(End::Settled), Just(End::Dropped)], any::<bool>(), 0u8..4), 1..120)
    ) {
        let (spent, by_agent, by_task, book) = run(async move {
            let (meter, book) = Book::open(limits(tenant, agent), Duration::from_millis(late));
            let sums = book.clone();
            let reader = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    sums.settle();
                }
            });
            let tasks: Vec<_> = calls.into_iter().map(|(most, end, of_agent, n)| {
                let meter = meter.clone();
                tokio::spawn(async move {
                    let name = format!("task-{n}");
                    let payer = Payer { tenant: TENANT, agent: if of_agent { "a" } else { "b" }, task: &name, task_limit: Some(task), ..Payer::default() };
                    let Ok(money) = meter.reserve(&payer, most).await else { return None };
                    tokio::task::yield_now().await;
                    let spent = match end {
                        End::Settled(percent) => most / 100 * percent,
                        End::Dropped => most,
                    };
                    match end {
                        End::Settled(_) => money.settle(spent),
                        End::Dropped => drop(money),
                    }
                    Some((spent, of_agent, n))
                })
            }).collect();
            let (mut spent, mut by_agent, mut by_task) = (0, 0, BTreeMap::new());
            for task in tasks {
                if let Some((pico, of_agent, n)) = task.await.unwrap() {
                    spent += pico;
                    by_agent += if of_agent { pico } else { 0 };
                    *by_task.entry(n).or_insert(0) += pico;
                }
            }
            reader.abort();
            let _ = reader.await;
            book.settle();
            (spent, by_agent, by_task, book)
        });
        prop_assert!(spent <= tenant * 1_000_000 && by_agent <= agent * 1_000_000, "{spent} of {tenant}, {by_agent} of {agent}");
        prop_assert!(by_task.values().all(|pico| *pico <= task * 1_000_000));
        // The bill adds up: what the ledger says is what the calls say.
        prop_assert_eq!(book.spent(&account(Level::Tenant, "")), spent);
        prop_assert_eq!(book.spent(&account(Level::Agent, "a")), by_agent);
        for (n, pico) in by_task {
            prop_assert_eq!(book.spent(&account(Level::Task, &format!("task-{n}"))), pico);
        }
    }
}

#[test]
fn ten_thousand_calls_at_once_spend_a_dollar_and_no_more() {
    run(async {
        let (meter, book) = Book::open(limits(1_000_000, 1_000_000), Duration::ZERO);
        let calls: Vec<_> = (0..10_000)
            .map(|_| {
                let meter = meter.clone();
                // 0.0003 dollars each: 3,333 fit.
                tokio::spawn(async move {
                    let payer = Payer { tenant: TENANT, ..Payer::default() };
                    let money = meter.reserve(&payer, 300_000_000).await?;
                    money.settle(300_000_000);
                    Ok::<_, AgentError>(())
                })
            })
            .collect();
        let mut paid = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(()) => paid += 1,
                Err(e) => assert_eq!(e.reason, Reason::BudgetExhausted),
            }
        }
        assert_eq!(paid, 3333);
        book.settle();
        assert_eq!(book.spent(&account(Level::Tenant, "")), 3333 * 300_000_000);
    });
}

#[test]
fn a_refusal_says_whose_limit_it_was_and_what_is_spent() {
    run(async {
        let (meter, book) = Book::open(limits(1_000_000, 500), Duration::ZERO);
        let payer = Payer { tenant: TENANT, agent: "a", ..Payer::default() };
        meter.reserve(&payer, 400_000_000).await.unwrap().settle(300_000_000);
        book.settle();
        let e = meter.reserve(&payer, 900_000_000).await.map(drop).unwrap_err();
        assert_eq!(
            (e.reason, e.metadata["level"].as_str(), e.metadata["spent_micros"].as_str()),
            (Reason::BudgetExhausted, "agent", "300")
        );
        assert!(e.message.contains("0.0005 dollars") && e.message.contains("agent_budgets"), "{e}");
        // Others of the tenant go on.
        meter.reserve(&Payer { tenant: TENANT, agent: "b", ..Payer::default() }, 900_000_000).await.unwrap().settle(0);
    });
}

#[test]
fn without_a_budget_nothing_is_asked_and_without_a_ledger_nothing_is_spent() {
    run(async {
        let meter = Meter::new(BTreeMap::new());
        let nobody = Payer { tenant: TENANT, task: "x", ..Payer::default() };
        assert!(!meter.counts(&nobody));
        meter.reserve(&nobody, i64::MAX).await.unwrap().settle(5);
        let limited = Payer { task_limit: Some(5), ..nobody };
        assert!(meter.counts(&limited));
        assert_eq!(meter.reserve(&limited, 1).await.map(drop).unwrap_err().reason, Reason::StoreUnavailable);
    });
}

#[test]
fn an_answer_that_cost_more_than_it_could_is_paid_by_the_next_lease() {
    run(async {
        let (meter, book) = Book::open(limits(100, 100), Duration::ZERO);
        let payer = Payer { tenant: TENANT, ..Payer::default() };
        // 10 of 100 micro-dollars were the most; it cost 60.
        meter.reserve(&payer, 10_000_000).await.unwrap().settle(60_000_000);
        book.settle();
        assert_eq!(meter.reserve(&payer, 50_000_000).await.map(drop).unwrap_err().reason, Reason::BudgetExhausted);
        meter.reserve(&payer, 40_000_000).await.unwrap().settle(40_000_000);
        book.settle();
        assert_eq!(book.spent(&account(Level::Tenant, "")), 100_000_000);
    });
}

#[test]
fn what_is_taken_back_is_no_longer_lent() {
    run(async {
        let (meter, book) = Book::open(limits(1000, 1000), Duration::ZERO);
        let payer = Payer { tenant: TENANT, ..Payer::default() };
        let money = meter.reserve(&payer, 100_000_000).await.unwrap();
        let all = account(Level::Tenant, "");
        assert_eq!(meter.take(TENANT, &all), 200_000_000);
        assert_eq!(meter.lent(TENANT)[0].open, 100_000_000);
        money.settle(20_000_000);
        assert_eq!(meter.take(TENANT, &all), 80_000_000);
        assert!(meter.lent(TENANT).is_empty());
        drop(book);
    });
}
