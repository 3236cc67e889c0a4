//! Prices and budgets: what the schema cannot say of them, and their native part.

use crate::check;
use crate::node::{Key, Node};
use crate::schema::PRICE_FILE;

/// List prices that come with the program.
const SHIPPED: &str = include_str!("../../../../config/prices.toml");

/// Largest limit of a budget, in micro-dollars: sums are kept in pico-dollars of 64 bits.
const MAX_LIMIT_MICROS: i64 = 9_000_000_000_000;
/// Largest price of a million tokens, in micro-dollars. Beyond it somebody has taken dollars per token for dollars per million.
const MAX_PRICE_MICROS: i64 = 10_000_000_000;

/// Names of the windows, and how the configuration calls them.
const WINDOWS: [(&str, &str); 3] = [("none", "total_micros"), ("day", "day_micros"), ("month", "month_micros")];

/// List prices at the hosts of the configured providers: of the file that the configuration names, or the shipped ones.
pub(crate) fn list_prices(root: &Node, faults: &mut Vec<String>) -> serde_json::Value {
    let file = root.get("prices").and_then(|p| p.get("file")).and_then(Node::str);
    let (name, text) = match file {
        None => ("prices.toml", SHIPPED.to_owned()),
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => (path, text),
            Err(e) => {
                faults.push(format!("[prices] file: {path}: {e}"));
                return serde_json::Value::Null;
            }
        },
    };
    match check::check_as(PRICE_FILE, name, &text) {
        Ok(list) => {
            let entries = list.get("price").cloned().unwrap_or(Node::List(Vec::new()));
            prices(&format!("[prices] {name}"), &entries, &["model", "host", "source"], faults);
            let Node::List(entries) = entries else { return serde_json::Value::Null };
            let hosts = hosts(root);
            entries.iter().filter(|e| hosts.iter().any(|h| e.get("host").and_then(Node::str) == Some(h))).map(Node::json).collect()
        }
        Err(wrong) => {
            faults.extend(wrong.into_iter().map(|fault| format!("[prices] file: {fault}")));
            serde_json::Value::Null
        }
    }
}

/// Hosts of the providers' addresses, without their ports.
fn hosts(root: &Node) -> Vec<String> {
    let providers = root.get("providers").map(Node::entries).unwrap_or_default();
    let urls = providers.iter().filter_map(|(_, p)| p.get("base_url").and_then(Node::str));
    urls.filter_map(|url| url.split_once("://").map(|(_, rest)| rest.split(['/', ':']).next().unwrap_or_default().to_owned())).collect()
}

/// Prices of the models of the configuration.
pub(crate) fn model_prices(root: &Node, faults: &mut Vec<String>) {
    for (alias, model) in root.get("models").map(Node::entries).unwrap_or_default() {
        if let Some(entries) = model.get("prices") {
            prices(&format!("[models.{}] prices", alias.text()), entries, &[], faults);
        }
    }
}

fn prices(place: &str, entries: &Node, texts: &[&str], faults: &mut Vec<String>) {
    let Node::List(entries) = entries else { return };
    for (n, entry) in entries.iter().enumerate() {
        let wanted = texts.iter().chain(&["valid_from", "input_micros", "output_micros"]);
        for key in wanted.filter(|key| entry.get(key).is_none()) {
            faults.push(format!("{place}: entry {} has no {}", n + 1, key.trim_end_matches("_micros")));
        }
        for key in ["valid_from", "checked"] {
            if let Some(date) = entry.get(key).and_then(Node::str)
                && !is_date(date)
            {
                faults.push(format!("{place}: {key} = \"{date}\": expected a date such as \"2026-01-31\""));
            }
        }
        for (key, value) in entry.entries() {
            if let Node::Int(micros) = value
                && key.text().ends_with("_micros")
                && *micros > MAX_PRICE_MICROS
            {
                let name = key.text().trim_end_matches("_micros");
                faults.push(format!("{place}: {name}: more than 10,000 dollars; prices are dollars per 1,000,000 tokens"));
            }
        }
    }
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |part: &str, width: usize| (part.len() == width).then(|| part.parse::<u32>().ok()).flatten();
    matches!(parts.as_slice(), [y, m, d] if number(y, 4).is_some()
        && number(m, 2).is_some_and(|m| (1..=12).contains(&m)) && number(d, 2).is_some_and(|d| (1..=31).contains(&d)))
}

/// Who may spend how much: by tenant the accounts, each with a level, a name, a window and a limit. `keys`: the name of each of the
/// tenant's keys, in their order.
pub(crate) fn accounts(name: &str, tenant: &Node, keys: &[String], faults: &mut Vec<String>) -> Option<Node> {
    let mut accounts = Vec::new();
    let mut add = |level: &str, owner: &str, budget: Option<&Node>| {
        for (window, key) in WINDOWS {
            if let Some(Node::Int(limit)) = budget.and_then(|b| b.get(key)) {
                if *limit > MAX_LIMIT_MICROS {
                    faults.push(format!("[tenants.{name}] budget: a limit of the {level} is above 9,000,000 dollars"));
                }
                accounts.push(Node::Map(vec![
                    (Key::Fixed("level".into()), Node::Text(level.into())),
                    (Key::Fixed("name".into()), Node::Text(owner.into())),
                    (Key::Fixed("window".into()), Node::Text(window.into())),
                    (Key::Fixed("limit_micros".into()), Node::Int(*limit)),
                ]));
            }
        }
    };
    add("tenant", "", tenant.get("budget"));
    for (agent, budget) in tenant.get("agent_budgets").map(Node::entries).unwrap_or_default() {
        add("agent", agent.text(), Some(budget));
    }
    if let Some(Node::List(budgets)) = tenant.get("keys") {
        for (key, entry) in keys.iter().zip(budgets) {
            add("key", key, entry.get("budget"));
        }
    }
    let task = tenant.get("default_task_cost_micros").cloned();
    (!accounts.is_empty() || task.is_some()).then(|| {
        let mut entries = vec![(Key::Fixed("accounts".into()), Node::List(accounts))];
        entries.extend(task.map(|limit| (Key::Fixed("default_task_cost_micros".into()), limit)));
        Node::Map(entries)
    })
}
