//! The HTTP door: any program that speaks OpenAI's or Anthropic's wire may use the models of this node as its own.
//!
//! A request goes the way of `ProviderService`: the same keys, choice, failover, budgets and meters. What the engine cannot express is
//! refused by its field, not dropped. The door is for programs: a web page, which sends an `Origin` or reaches us under another host's
//! name, is turned away before anything is spent.

mod admit;
mod anthropic;
mod call;
mod given;
mod listen;
mod metrics;
mod openai;
mod problem;
mod routes;

use std::sync::Arc;

use agent_grpc::Auth;
use agent_providers::Providers;
use serde::Deserialize;

pub use listen::{Listener, serve};

/// `http` of the native configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct HttpConfig {
    /// Host and port; port 0: any.
    pub address: String,
    /// Origins of web pages that may ask, as browsers write them: "https://example.com".
    #[serde(default)]
    pub origins: Vec<String>,
}

/// What all requests share.
#[derive(Clone)]
pub struct Door {
    /// Model calls.
    pub providers: Arc<Providers>,
    /// Who asks.
    pub auth: Arc<Auth>,
    /// See [`HttpConfig::origins`].
    pub origins: Arc<[String]>,
}
