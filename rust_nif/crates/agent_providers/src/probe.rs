//! An endpoint whose breaker is open is asked for its list of models when its time is over: a provider that recovers is found without any
//! traffic, and no caller's request is spent on one that has not.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::breaker::State;
use crate::health::Health;
use crate::{Dialect, Provider, chance, client, openai};

/// Longest that a probe takes.
const LONGEST: Duration = Duration::from_secs(5);

/// Gives the place of the one that probes free again, however that ends.
struct Claim(Arc<Health>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.release_probing();
    }
}

/// Probes an endpoint until its breaker is not open any more, or its provider is gone. At most one such task runs for each endpoint.
pub(crate) fn start(provider: &Arc<Provider>, health: &Arc<Health>) {
    if provider.config.dialect == Dialect::Echo || !matches!(health.breaker(), State::Open(_)) || !health.claim_probing() {
        return;
    }
    let (provider, claim): (Weak<Provider>, Claim) = (Arc::downgrade(provider), Claim(health.clone()));
    tokio::spawn(async move {
        while let State::Open(until) = claim.0.breaker() {
            tokio::time::sleep_until(until.into()).await;
            let Some(provider) = provider.upgrade() else { return };
            let good = provider.answers().await;
            // A call may have come first: then its outcome counts, and this one is only a hint.
            if good || matches!(claim.0.breaker(), State::Open(_)) {
                claim.0.probed(Instant::now(), good, chance::number());
            }
        }
    });
}

impl Provider {
    /// Whether it answers at all: a refusal is an answer too, but no error of the server and no limit.
    async fn answers(&self) -> bool {
        let Ok(base_url) = self.base_url() else { return false };
        let path = if self.config.dialect == Dialect::Anthropic && !base_url.ends_with("/v1") { "v1/models" } else { "models" };
        let key = self.key(Instant::now(), &[], |_| false);
        let address = client::address(&self.config, &base_url, path, "");
        let Ok(headers) = openai::authorized(&self.config, key.as_ref().and_then(|k| k.secret())) else { return false };
        let request = self.http.send(http::Method::GET, &address, headers, bytes::Bytes::new());
        match tokio::time::timeout(LONGEST, request).await {
            Ok(Ok(response)) => !response.status.is_server_error() && response.status != http::StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }
}
