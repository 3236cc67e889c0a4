//! What the schema cannot say: defaults that depend on each other, overrides of the environment, rules across keys, the native part.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::money;
use crate::node::{Key, Node};

/// What the environment and the command line say.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Folder of the data.
    pub data_dir: Option<String>,
}

impl Overrides {
    /// The environment of this process.
    pub fn of_environment() -> Self {
        Self { env: std::env::vars().collect(), data_dir: None }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// Model of the embedded server.
const EMBEDDED_MODEL: &str = "smollm2-135m";
/// Digits of a key's SHA-256 that name the key where money is counted.
const KEY_ID: usize = 16;
/// Address of OpenAI's API, for a key in the environment.
const OPENAI_URL: &str = "https://api.openai.com/v1";

/// Built-in agent types: name, instructions, and what a crew needs to know.
const TYPES: &[(&str, &str, [&str; 4])] = &[
    (
        "researcher",
        "You are a careful researcher. Use tools to find facts, and say what you do not know.",
        [
            "Senior Researcher",
            "Conduct thorough research and analysis",
            "An expert researcher who checks every claim",
            "A short report with findings and their sources",
        ],
    ),
    (
        "coder",
        "You are an experienced programmer. Answer with working code and a short explanation.",
        [
            "Senior Programmer",
            "Write correct, readable code",
            "A programmer who has maintained large systems",
            "Working code with a short explanation",
        ],
    ),
    (
        "planner",
        "You are a planner. Break the task into clear steps in order.",
        ["Planner", "Turn goals into steps that can be done", "A project lead who has delivered on time", "A numbered list of steps"],
    ),
    (
        "assistant",
        "You are a helpful assistant. Answer briefly.",
        ["Assistant", "Help with the task at hand", "A patient generalist", "A short answer"],
    ),
];

fn fixed(name: &str) -> Key {
    Key::Fixed(name.to_owned())
}

fn named(name: &str) -> Key {
    Key::Name(name.to_owned())
}

fn text(value: &str) -> Node {
    Node::Text(value.to_owned())
}

/// Completes a checked tree.
pub(crate) fn finish(root: &mut Node, o: &Overrides) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    override_server(root, o);
    providers(root, o);
    agents(root);
    let (tenants, budgets) = tenants(root, &mut faults);
    let worker_keys = worker_keys(root, &mut faults);
    money::model_prices(root, &mut faults);
    let prices = money::list_prices(root, &mut faults);
    references(root, &mut faults);
    memory(root, &mut faults);
    let loopback = off_loopback(root, &tenants, &mut faults);
    auto_install(root, loopback);
    http(root, &mut faults);
    let location = store_location(root, &mut faults);
    let store = root.get("store").map(Node::json).unwrap_or_default();
    let retention = retention(&store, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let server = root.get("server").map(Node::json).unwrap_or_default();
    let on = |section: &str, key: &str| root.get(section).and_then(|s| s.get(key)) != Some(&Node::Bool(false));
    let switches = serde_json::json!({
        "federation": on("native_capabilities", "provider_federation"),
        "optimization": on("performance_enhancements", "provider_optimization"),
        "direct": on("performance_enhancements", "rust_optimizations"),
    });
    let native = serde_json::json!({
        "server": {"address": server["address"], "tls": server.get("tls"), "idle_timeout_ms": server["idle_timeout_ms"]},
        "http": {"address": server["http_address"], "origins": server["http_origins"]},
        "store": {"location": location, "retention": retention, "memory_off": !on("native_capabilities", "distributed_memory")},
        "switches": switches,
        "providers": root.get("providers").map(Node::json),
        "models": root.get("models").map(Node::json),
        "prices": prices,
        "budgets": budgets.json(),
        "workers": {"key_sha256": worker_keys},
        "cache": root.get("model_cache").map(Node::json),
        "tenants": tenants.iter().map(|(name, keys)| (name.clone(), serde_json::json!({"key_sha256": keys}))).collect::<serde_json::Map<_, _>>(),
    });
    root.set(fixed("budgets"), budgets);
    root.set(fixed("native"), Node::Json(native));
    Ok(())
}

fn override_server(root: &mut Node, o: &Overrides) {
    if let Some(server) = root.get_mut("server") {
        if let Some(address) = o.get("SINGULARITY_ADDRESS") {
            server.set(fixed("address"), text(address));
        }
        if let Some(address) = o.get("SINGULARITY_HTTP_ADDRESS") {
            server.set(fixed("http_address"), text(address));
        }
        if let Some(dir) = o.data_dir.as_deref().or(o.get("SINGULARITY_DATA_DIR")) {
            server.set(fixed("data_dir"), text(dir));
        }
    }
    if let (Some(url), Some(store)) = (o.get("SINGULARITY_STORE_URL"), root.get_mut("store")) {
        store.set(fixed("url"), text(url));
    }
    if let (Some(dir), Some(workers)) = (o.get("SINGULARITY_ENVS"), root.get_mut("workers"))
        && workers.get("environments").and_then(Node::str) == Some("")
    {
        workers.set(fixed("environments"), text(dir));
    }
}

/// Without a provider of its own the file gets the embedded model; well-known keys of the environment add theirs.
fn providers(root: &mut Node, o: &Overrides) {
    let mut wanted = Vec::new();
    if let Some(providers) = root.get_mut("providers") {
        let key_given = o.get("OPENAI_API_KEY").is_some();
        if providers.entries().is_empty() {
            providers.set(
                named("local"),
                Node::Map(vec![(fixed("dialect"), text("local")), (fixed("models"), Node::List(vec![text(EMBEDDED_MODEL)]))]),
            );
        }
        if key_given && providers.get("openai").is_none() {
            let url = o.get("OPENAI_BASE_URL").unwrap_or(OPENAI_URL);
            let secret = Node::Map(vec![(fixed("env"), text("OPENAI_API_KEY"))]);
            providers.set(
                named("openai"),
                Node::Map(vec![
                    (fixed("dialect"), text("openai")),
                    (fixed("base_url"), text(url)),
                    (fixed("api_key"), secret),
                    (fixed("models"), Node::List(vec![])),
                ]),
            );
        }
        if let Some(model) = o.get("SINGULARITY_MODEL") {
            let first = providers.entries().first().map_or("local", |(key, _)| key.text());
            let provider = if key_given { "openai" } else { first };
            wanted.push(("default".to_owned(), provider.to_owned(), model.to_owned()));
        }
        // The alias "default" is the first model of the first provider, unless the file says otherwise.
        if let Some((key, first)) = providers.entries().first() {
            let model = first
                .get("models")
                .and_then(|m| if let Node::List(l) = m { l.first().and_then(Node::str) } else { None })
                .unwrap_or(match first.get("dialect").and_then(Node::str) {
                    Some("echo") => "echo",
                    _ => "default",
                });
            wanted.push(("default".to_owned(), key.text().to_owned(), model.to_owned()));
        }
    }
    if let Some(models) = root.get_mut("models") {
        for (alias, provider, model) in wanted {
            if models.get(&alias).is_none() {
                let endpoint =
                    Node::Map(vec![(fixed("provider"), text(&provider)), (fixed("name"), text(&model)), (fixed("priority"), Node::Int(1))]);
                models.set(named(&alias), Node::Map(vec![(fixed("endpoints"), Node::List(vec![endpoint]))]));
            }
        }
    }
}

fn agents(root: &mut Node) {
    let mut types = Vec::new();
    for (name, instructions, [role, goal, backstory, output]) in TYPES {
        let own = root.get("agents").and_then(|a| a.get(name)).cloned();
        let pick = |key: &str, default: Node| own.as_ref().and_then(|o| o.get(key)).cloned().unwrap_or(default);
        let profile = Node::Map(vec![
            (fixed("role"), pick("role", text(role))),
            (fixed("goal"), pick("goal", text(goal))),
            (fixed("backstory"), pick("backstory", text(backstory))),
            (fixed("expected_output"), pick("expected_output", text(output))),
        ]);
        let mut entries = vec![
            (fixed("instructions"), pick("instructions", text(instructions))),
            (fixed("model"), pick("model", text("default"))),
            (fixed("tools"), pick("tools", Node::List(vec![text("now"), text("calculate")]))),
            (fixed("framework"), pick("framework", text("auto"))),
            (fixed("crew_profile"), profile),
        ];
        for key in ["project", "entrypoint", "requirements", "python", "concurrency"] {
            if let Some(value) = own.as_ref().and_then(|o| o.get(key)) {
                entries.push((fixed(key), value.clone()));
            }
        }
        types.push((named(name), Node::Map(entries)));
    }
    root.set(fixed("agent_types"), Node::Map(types));
}

/// SHA-256 of each tenant's keys; the keys themselves go no further. With them the tenants' budgets.
fn tenants(root: &mut Node, faults: &mut Vec<String>) -> (BTreeMap<String, Vec<String>>, Node) {
    let (mut all, mut budgets) = (BTreeMap::new(), Vec::new());
    let Some(Node::Map(tenants)) = root.get_mut("tenants") else { return (all, Node::Map(budgets)) };
    for (name, tenant) in tenants {
        let Some(Node::List(keys)) = tenant.get("keys") else { continue };
        let digests = digests(keys, &format!("[tenants.{}] keys", name.text()), faults);
        let names: Vec<String> = digests.iter().map(|digest| digest.chars().take(KEY_ID).collect()).collect();
        budgets.extend(money::accounts(name.text(), tenant, &names, faults).map(|accounts| (name.clone(), accounts)));
        tenant.set(fixed("keys"), Node::Int(i64::try_from(digests.len()).unwrap_or(0)));
        all.insert(name.text().to_owned(), digests);
    }
    (all, Node::Map(budgets))
}

/// SHA-256 of the keys that may attach workers; their number stays where they stood.
fn worker_keys(root: &mut Node, faults: &mut Vec<String>) -> Vec<String> {
    let Some(workers) = root.get_mut("workers") else { return Vec::new() };
    let Some(Node::List(keys)) = workers.get("remote_keys") else { return Vec::new() };
    let digests = digests(keys, "[workers] remote_keys", faults);
    workers.set(fixed("remote_keys"), Node::Int(i64::try_from(digests.len()).unwrap_or(0)));
    digests
}

/// SHA-256 of keys that are named by their place.
fn digests(keys: &[Node], place: &str, faults: &mut Vec<String>) -> Vec<String> {
    let mut digests = Vec::new();
    for key in keys {
        let value = match (key.get("env").and_then(Node::str), key.get("file").and_then(Node::str)) {
            (Some(variable), _) => std::env::var(variable).map_err(|_| format!("the environment variable {variable} is not set")),
            (_, Some(path)) => std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}")),
            _ => Err("neither env nor file".to_owned()),
        };
        match value {
            Ok(key) if key.trim().len() >= 16 => {
                digests.push(Sha256::digest(key.trim().as_bytes()).iter().map(|b| format!("{b:02x}")).collect());
            }
            Ok(_) => faults.push(format!("{place}: a key must have at least 16 characters")),
            Err(why) => faults.push(format!("{place}: {why}")),
        }
    }
    digests
}

fn references(root: &Node, faults: &mut Vec<String>) {
    for (alias, model) in root.get("models").map(Node::entries).unwrap_or_default() {
        let Some(Node::List(endpoints)) = model.get("endpoints") else { continue };
        if endpoints.is_empty() && model.get("prices").is_none() {
            faults.push(format!("[models.{}] endpoints is missing", alias.text()));
        }
        for endpoint in endpoints {
            let provider = endpoint.get("provider").and_then(Node::str).unwrap_or_default();
            if root.get("providers").and_then(|p| p.get(provider)).is_none() {
                faults.push(format!("[models.{}] endpoints: there is no provider \"{provider}\"", alias.text()));
            }
        }
    }
    for (name, provider) in root.get("providers").map(Node::entries).unwrap_or_default() {
        let dialect = provider.get("dialect").and_then(Node::str).unwrap_or_default();
        if matches!(dialect, "openai" | "openai_responses" | "anthropic") && provider.get("base_url").is_none() {
            faults.push(format!("[providers.{}] base_url is missing; the dialect \"{dialect}\" needs it", name.text()));
        }
    }
    for (key, _) in root.get("framework_preferences").map(Node::entries).unwrap_or_default() {
        if !key.text().ends_with("_tasks") {
            faults.push(format!("[framework_preferences] {}: keys are <type>_tasks, such as research_tasks", key.text()));
        }
    }
    for (name, agent) in root.get("agents").map(Node::entries).unwrap_or_default() {
        if agent.get("framework").and_then(Node::str).is_some_and(|f| f.starts_with("custom:")) && agent.get("entrypoint").is_none() {
            faults.push(format!("[agents.{}] entrypoint is missing; a custom framework needs \"module:object\"", name.text()));
        }
        if let (Some(framework @ ("crewai" | "native")), Some(Node::Int(2..))) =
            (agent.get("framework").and_then(Node::str), agent.get("concurrency"))
        {
            let why = match framework {
                "native" => "native tasks have no worker process, and run side by side as they come; remove it",
                _ => {
                    "a crew's objects and events are of its whole process; remove it, and let [workers] max_per_framework say how \
                      many workers run side by side"
                }
            };
            faults.push(format!("[agents.{}] concurrency is not for framework = \"{framework}\": {why}", name.text()));
        }
    }
}

/// What is switched off is not asked for elsewhere in the file.
fn memory(root: &Node, faults: &mut Vec<String>) {
    if root.get("native_capabilities").and_then(|c| c.get("distributed_memory")) != Some(&Node::Bool(false)) {
        return;
    }
    for (name, agent) in root.get("agents").map(Node::entries).unwrap_or_default() {
        if agent.get("memory_namespace").is_some() {
            let remedy = "remove it, or set distributed_memory = true in [native_capabilities]";
            faults.push(format!("[agents.{}] memory_namespace needs the memory that is switched off; {remedy}", name.text()));
        }
    }
}

/// Whoever reaches a node of this machine alone may let it install; one that serves others does so only if it is told to.
pub(crate) fn auto_install(root: &mut Node, loopback: bool) {
    if let Some(workers) = root.get_mut("workers")
        && workers.get("auto_install").is_none()
    {
        workers.set(fixed("auto_install"), Node::Bool(loopback));
    }
}

/// Off loopback, TLS and keys are needed; says whether the node is on it.
fn off_loopback(root: &Node, tenants: &BTreeMap<String, Vec<String>>, faults: &mut Vec<String>) -> bool {
    let Some(server) = root.get("server") else { return false };
    let address = server.get("address").and_then(Node::str).unwrap_or_default();
    let host = address.rsplit_once(':').map_or(address, |(h, _)| h).trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) || (!loopback && address.to_socket_addrs().is_err()) {
        faults.push(format!("[server] address = \"{address}\": expected HOST:PORT"));
    } else if !loopback {
        if server.get("tls").is_none() {
            faults.push(format!("[server] address = \"{address}\" is off loopback: [server] tls = {{ cert = …, key = … }} is needed"));
        }
        if tenants.values().all(Vec::is_empty) {
            faults
                .push(format!("[server] address = \"{address}\" is off loopback: keys are needed, [tenants.NAME] keys = [{{ file = … }}]"));
        }
    }
    if let Some(tls) = server.get("tls") {
        for key in ["cert", "key"] {
            if tls.get(key).is_none() {
                faults.push(format!("[server] tls.{key} is missing"));
            }
        }
    }
    loopback
}

/// The HTTP door speaks no TLS: it stays on this machine, behind whatever does.
fn http(root: &Node, faults: &mut Vec<String>) {
    let Some(server) = root.get("server") else { return };
    let address = server.get("http_address").and_then(Node::str).unwrap_or_default();
    let parts = address.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let host = parts.map(|(host, _)| host.trim_matches(['[', ']']));
    let loopback = host.is_some_and(|h| h == "localhost" || h.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
    if address != "off" && !loopback {
        let what = "expected HOST:PORT on loopback, or \"off\"; a proxy with TLS may stand before it";
        faults.push(format!("[server] http_address = \"{address}\": {what}"));
    }
    let server = server.json();
    for origin in server["http_origins"].as_array().into_iter().flatten().filter_map(|o| o.as_str()) {
        let whole = origin.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty() && !host.contains('/'));
        if !whole {
            faults.push(format!("[server] http_origins: \"{origin}\" is no origin, as in \"https://example.com\""));
        }
    }
}

/// How long ended tasks are kept, by state and by label.
fn retention(store: &serde_json::Value, faults: &mut Vec<String>) -> serde_json::Value {
    let labels = store.get("keep_label").and_then(|l| l.as_object()).cloned().unwrap_or_default();
    for rule in labels.keys().filter(|rule| rule.split_once('=').is_none_or(|(name, value)| name.is_empty() || value.is_empty())) {
        faults.push(format!("[store] keep_label: \"{rule}\" is no label, as in \"tier=audit\""));
    }
    serde_json::json!({
        "succeeded_ms": store["keep_succeeded_ms"],
        "other_ms": store["keep_other_ms"],
        "labels": labels,
        "unnamed_ms": store["keep_blobs_ms"],
    })
}

/// What the store is to open: `{"file": path}` or `{"server": {"url", "spool", "ca"}}`.
fn store_location(root: &Node, faults: &mut Vec<String>) -> serde_json::Value {
    let option = |name| root.get("store").and_then(|s| s.get(name)).and_then(Node::str);
    let url = option("url").unwrap_or_default();
    let dir = root.get("server").and_then(|s| s.get("data_dir")).and_then(Node::str).unwrap_or("data");
    match url.split_once(':') {
        Some(("sqlite", file)) if !file.is_empty() => serde_json::json!({ "file": Path::new(dir).join(file) }),
        Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
            serde_json::json!({ "server": { "url": url, "spool": Path::new(dir).join("spool"), "ca": option("ca") } })
        }
        _ => {
            faults.push("[store] url: expected \"sqlite:FILE\" or \"postgres://user@host/database\"".to_owned());
            serde_json::Value::Null
        }
    }
}
