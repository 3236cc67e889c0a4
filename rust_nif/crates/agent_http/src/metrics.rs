//! What a tenant spends, for a collector of metrics: text as Prometheus reads it. Each key sees its own tenant.

use agent_proto::agents::v1 as pb;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, Full};

use crate::routes::Answer;

/// The type of the text.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) fn answer(spending: &pb::Spending, tenant: &str) -> Response<Answer> {
    let mut response = Response::new(Full::from(Bytes::from(text(spending, tenant))).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

fn text(spending: &pb::Spending, tenant: &str) -> String {
    let tenant = tenant.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let micros = spending.cost_micros;
    let dollars = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    [
        ("singularity_cost_dollars_total", "Dollars that requests to providers have cost, where the price is known.", dollars),
        ("singularity_provider_requests_total", "Requests to providers, failed ones too.", spending.requests.to_string()),
        ("singularity_unpriced_requests_total", "Requests whose price is not known.", spending.unpriced_requests.to_string()),
    ]
    .iter()
    .map(|(name, help, value)| format!("# HELP {name} {help}\n# TYPE {name} counter\n{name}{{tenant=\"{tenant}\"}} {value}\n"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_a_line_with_its_tenant() {
        let spending = pb::Spending { requests: 3, cost_micros: 1_000_250, unpriced_requests: 1 };
        let said = text(&spending, "a\"b");
        assert!(said.contains("singularity_cost_dollars_total{tenant=\"a\\\"b\"} 1.000250\n"), "{said}");
        assert_eq!(said.lines().count(), 9);
    }
}
