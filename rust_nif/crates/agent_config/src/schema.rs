//! Which keys there are. Order is the order of the rendering.

/// What a value must be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Text,
    Bool,
    Int(i64, i64),
    /// In ms; the key gets `_ms`.
    Duration,
    /// In bytes.
    Size,
    /// Decimal string of dollars; the key gets `_micros`.
    Money,
    /// A number from 0 to 1, in millionths; the key gets `_millionths`.
    Share,
    /// One of these.
    Word(&'static [&'static str]),
    /// true or one of these; kept as a word.
    BoolOrWord(&'static [&'static str]),
    Texts,
    Ints(i64, i64),
    /// `{ env = "NAME" }` or `{ file = "path" }`.
    Secret,
    /// A table of these keys.
    Table(&'static [Field]),
    /// A table whose keys are the user's.
    Named(&'static Kind),
    /// A list of tables.
    Tables(&'static [Field]),
}

/// A key.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// TOML text of the default.
    pub(crate) default: Option<&'static str>,
}

const fn f(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, default: None }
}

const fn d(name: &'static str, kind: Kind, default: &'static str) -> Field {
    Field { name, kind, default: Some(default) }
}

const EFFORT: &[&str] = &["aggressive", "balanced", "off"];

/// Versions of Python that environments may have.
const PYTHONS: &[&str] = &["3.11", "3.12", "3.13"];

const PROVIDER: &[Field] = &[
    f("dialect", Kind::Word(&["openai", "openai_responses", "anthropic", "local", "echo"])),
    f("base_url", Kind::Text),
    f("api_key", Kind::Secret),
    f(
        "credentials",
        Kind::Tables(&[
            f("id", Kind::Text),
            f("key", Kind::Secret),
            f("rpm", Kind::Int(1, 100_000_000)),
            f("tpm", Kind::Int(1, 1_000_000_000)),
        ]),
    ),
    f("data_tags", Kind::Texts),
    f("max_wait", Kind::Duration),
    d("models", Kind::Texts, "[]"),
    f("native_tools", Kind::Bool),
    d("concurrency", Kind::Int(1, 100_000), "1024"),
    d("max_body_bytes", Kind::Int(1024, 1_073_741_824), "8388608"),
    d("max_event_bytes", Kind::Int(1024, 1_073_741_824), "1048576"),
    d("think_tags", Kind::Bool, "false"),
    d("encrypted_reasoning", Kind::Bool, "false"),
    f("api_version", Kind::Text),
    f("key_header", Kind::Text),
    f("headers", Kind::Named(&Kind::Text)),
    f("ca_file", Kind::Text),
    f("proxy", Kind::Text),
    f("failure_domain", Kind::Text),
    f("rpm", Kind::Int(1, 100_000_000)),
    f("tpm", Kind::Int(1, 1_000_000_000)),
    f(
        "timeouts",
        Kind::Table(&[
            d("connect", Kind::Duration, "\"10s\""),
            d("headers", Kind::Duration, "\"60s\""),
            d("first_token", Kind::Duration, "\"60s\""),
            d("idle", Kind::Duration, "\"60s\""),
            d("content_idle", Kind::Duration, "\"120s\""),
            d("total", Kind::Duration, "\"600s\""),
        ]),
    ),
];

const AGENT: &[Field] = &[
    d("agent_type", Kind::Text, "\"assistant\""),
    f("framework", Kind::Text),
    f("instructions", Kind::Text),
    f("model", Kind::Text),
    f("tools", Kind::Texts),
    f("project", Kind::Text),
    f("entrypoint", Kind::Text),
    f("requirements", Kind::Text),
    f("python", Kind::Word(PYTHONS)),
    f("memory_namespace", Kind::Text),
    f("role", Kind::Text),
    f("goal", Kind::Text),
    f("backstory", Kind::Text),
    f("expected_output", Kind::Text),
    f("concurrency", Kind::Int(1, 64)),
];

/// A price list: dollars per 1,000,000 tokens, and per request.
pub(crate) const PRICE: &[Field] = &[
    f("valid_from", Kind::Text),
    d("above", Kind::Int(0, 1_000_000_000), "0"),
    f("input", Kind::Money),
    f("output", Kind::Money),
    f("cache_read", Kind::Money),
    f("cache_write_5m", Kind::Money),
    f("cache_write_1h", Kind::Money),
    f("reasoning", Kind::Money),
    d("request", Kind::Money, "\"0\""),
];

/// The file of list prices.
pub(crate) const PRICE_FILE: &[Field] = &[f(
    "price",
    Kind::Tables(&[
        f("model", Kind::Text),
        f("host", Kind::Text),
        f("source", Kind::Text),
        f("checked", Kind::Text),
        f("valid_from", Kind::Text),
        d("above", Kind::Int(0, 1_000_000_000), "0"),
        f("input", Kind::Money),
        f("output", Kind::Money),
        f("cache_read", Kind::Money),
        f("cache_write_5m", Kind::Money),
        f("cache_write_1h", Kind::Money),
        f("reasoning", Kind::Money),
        d("request", Kind::Money, "\"0\""),
    ]),
)];

const BUDGET: &[Field] = &[f("total_usd", Kind::Money), f("day_usd", Kind::Money), f("month_usd", Kind::Money)];

const TENANT: &[Field] = &[
    d("keys", Kind::Tables(&[f("env", Kind::Text), f("file", Kind::Text), f("budget", Kind::Table(BUDGET))]), "[]"),
    d("max_running", Kind::Int(1, 1_000_000), "1000"),
    d("max_pending", Kind::Int(1, 1_000_000), "5000"),
    f("budget", Kind::Table(BUDGET)),
    f("agent_budgets", Kind::Named(&Kind::Table(BUDGET))),
    f("default_task_cost", Kind::Money),
];

/// The whole file.
pub(crate) const ROOT: &[Field] = &[
    d(
        "server",
        Kind::Table(&[
            d("address", Kind::Text, "\"127.0.0.1:50151\""),
            d("http_address", Kind::Text, "\"127.0.0.1:50152\""),
            d("http_origins", Kind::Texts, "[]"),
            d("data_dir", Kind::Text, "\"data\""),
            f("tls", Kind::Table(&[f("cert", Kind::Text), f("key", Kind::Text), f("client_ca", Kind::Text)])),
            d("drain_timeout", Kind::Duration, "\"30s\""),
            d("idle_timeout", Kind::Duration, "\"5m\""),
            d("native_threads", Kind::Int(0, 256), "0"),
        ]),
        "{}",
    ),
    d(
        "store",
        Kind::Table(&[
            d("url", Kind::Text, "\"sqlite:singularity.db\""),
            f("ca", Kind::Text),
            d("keep_succeeded", Kind::Duration, "\"168h\""),
            d("keep_other", Kind::Duration, "\"720h\""),
            d("keep_blobs", Kind::Duration, "\"24h\""),
            f("keep_label", Kind::Named(&Kind::Duration)),
        ]),
        "{}",
    ),
    d("providers", Kind::Named(&Kind::Table(PROVIDER)), "{}"),
    d(
        "models",
        Kind::Named(&Kind::Table(&[
            d(
                "endpoints",
                Kind::Tables(&[
                    f("provider", Kind::Text),
                    f("name", Kind::Text),
                    d("priority", Kind::Int(0, 1000), "1"),
                    f("weight", Kind::Int(0, 1000)),
                    f("context_tokens", Kind::Int(1, 1_000_000_000)),
                    f("capabilities", Kind::Texts),
                    f("quality", Kind::Share),
                    f("family", Kind::Text),
                ]),
                "[]",
            ),
            f("prices", Kind::Tables(PRICE)),
        ])),
        "{}",
    ),
    d("prices", Kind::Table(&[f("file", Kind::Text)]), "{}"),
    d("model_cache", Kind::Table(&[d("ttl", Kind::Duration, "\"1h\""), d("max_bytes", Kind::Size, "\"64MiB\"")]), "{}"),
    d("task_cache", Kind::Table(&[d("ttl", Kind::Duration, "\"1h\""), d("max_bytes", Kind::Size, "\"64MiB\"")]), "{}"),
    d("agents", Kind::Named(&Kind::Table(AGENT)), "{}"),
    d(
        "workers",
        Kind::Table(&[
            d("warm", Kind::Int(0, 64), "1"),
            d("warm_frameworks", Kind::Texts, "[]"),
            d("max_per_framework", Kind::Int(1, 256), "4"),
            d("max_waiting", Kind::Int(1, 1_000_000), "10000"),
            d("max_memory", Kind::Size, "\"1GiB\""),
            d("max_processes", Kind::Int(1, 10_000), "64"),
            d("recycle_after", Kind::Int(1, 1_000_000), "100"),
            f("auto_install", Kind::Bool),
            d("install_timeout", Kind::Duration, "\"30m\""),
            d("environments", Kind::Text, "\"\""),
            d("isolation", Kind::Word(&["auto", "plain"]), "\"auto\""),
            d("allow_connect", Kind::Ints(1, 65_535), "[]"),
            d("block_grace", Kind::Duration, "\"10s\""),
            d("remote_keys", Kind::Tables(&[f("env", Kind::Text), f("file", Kind::Text)]), "[]"),
        ]),
        "{}",
    ),
    d(
        "agent_execution",
        Kind::Table(&[
            d("default_execution_method", Kind::Word(&["native", "framework_preferred", "auto"]), "\"auto\""),
            d("framework_fallback", Kind::Bool, "true"),
            d("hybrid_execution", Kind::Bool, "true"),
            d("native_optimization", Kind::BoolOrWord(EFFORT), "\"balanced\""),
            d("performance_optimization", Kind::BoolOrWord(EFFORT), "\"balanced\""),
            d("exploration", Kind::Share, "0.02"),
            d("history_half_life", Kind::Duration, "\"1h\""),
            d("history_samples", Kind::Int(1, 1_000_000), "5"),
            d("max_running", Kind::Int(1, 1_000_000), "1000"),
            d("max_queued", Kind::Int(1, 1_000_000), "10000"),
        ]),
        "{}",
    ),
    d(
        "frameworks",
        Kind::Named(&Kind::Table(&[d("enabled", Kind::Bool, "true"), d("use_for", Kind::Texts, "[]"), f("python", Kind::Word(PYTHONS))])),
        "{}",
    ),
    d(
        "native_capabilities",
        Kind::Table(&[
            d("provider_federation", Kind::Bool, "true"),
            d("distributed_memory", Kind::Bool, "true"),
            d("performance_optimization", Kind::Bool, "true"),
            d("fault_tolerance", Kind::Word(&["bastion_supervision", "otp_supervision"]), "\"otp_supervision\""),
        ]),
        "{}",
    ),
    d("framework_preferences", Kind::Named(&Kind::Text), "{}"),
    d(
        "performance_enhancements",
        Kind::Table(&[
            d("rust_optimizations", Kind::Bool, "true"),
            d("memory_federation", Kind::Bool, "true"),
            d("provider_optimization", Kind::Bool, "true"),
        ]),
        "{}",
    ),
    d("tenants", Kind::Named(&Kind::Table(TENANT)), "{}"),
    d("mcp_servers", Kind::Named(&Kind::Table(&[f("command", Kind::Texts), f("url", Kind::Text)])), "{}"),
];

/// Keys that a table of the user's must have.
pub(crate) const REQUIRED: &[(&str, &[&str])] = &[("providers", &["dialect"])];
