//! What each tenant's calls have cost since the start of the node.

use std::collections::HashMap;

use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;

use crate::price;

/// Sums by tenant. Tenants are those of the configuration, so there are few.
#[derive(Debug, Default)]
pub(crate) struct Spending(Mutex<HashMap<String, Sum>>);

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    requests: i64,
    pico: i64,
    /// Requests whose price is not known.
    unpriced: i64,
}

impl Spending {
    /// A request of a tenant has ended; None: nobody knows what it cost.
    pub(crate) fn add(&self, tenant: &str, pico: Option<i64>) {
        let mut sums = self.0.lock();
        let sum = match sums.get_mut(tenant) {
            Some(sum) => sum,
            None => sums.entry(tenant.to_owned()).or_default(),
        };
        sum.requests += 1;
        match pico {
            Some(pico) => sum.pico = sum.pico.saturating_add(pico),
            None => sum.unpriced += 1,
        }
    }

    /// Of a tenant.
    pub(crate) fn of(&self, tenant: &str) -> pb::Spending {
        let sum = self.0.lock().get(tenant).copied().unwrap_or_default();
        pb::Spending { requests: sum.requests, cost_micros: price::micros(sum.pico), unpriced_requests: sum.unpriced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_counted_apart_and_what_has_no_price_is_said() {
        let spending = Spending::default();
        spending.add("a", Some(1_500_000));
        spending.add("a", Some(1_500_000));
        spending.add("a", None);
        spending.add("b", Some(0));
        assert_eq!(spending.of("a"), pb::Spending { requests: 3, cost_micros: 3, unpriced_requests: 1 });
        assert_eq!((spending.of("b").requests, spending.of("nobody")), (1, pb::Spending::default()));
    }
}
