//! Reads and checks the TOML configuration; renders the node's Erlang terms and the JSON that the Rust subsystems read.
//!
//! One schema ([`schema`]) says which keys there are; [`check`] walks the file against it and names every fault with file, line, key, what was expected
//! and the nearest valid key. Secrets are references and are never read here, except tenants' keys, of which only the SHA-256 is kept.

mod check;
mod finish;
mod money;
mod node;
mod schema;
mod units;

use std::path::Path;

pub use finish::Overrides;
pub use node::Node;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    root: Node,
}

/// The file that a new user starts from.
pub const EXAMPLE: &str = include_str!("../../../../config/singularity.toml");

/// Checks a file's text. The errors are lines for people, all of them.
pub fn parse(name: &str, text: &str, overrides: &Overrides) -> Result<Config, Vec<String>> {
    let mut root = check::check(name, text)?;
    finish::finish(&mut root, overrides)
        .map_err(|faults| faults.into_iter().map(|fault| located(name, text, fault)).collect::<Vec<_>>())?;
    Ok(Config { root })
}

/// Puts file and line before a fault that begins with `[section] key`; what the environment said has no line.
fn located(name: &str, text: &str, fault: String) -> String {
    let Some((section, rest)) = fault.strip_prefix('[').and_then(|f| f.split_once("] ")) else { return format!("{name}: {fault}") };
    let key: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let (mut inside, mut line) = (false, None);
    for (at, source) in text.lines().enumerate() {
        let source = source.trim();
        if let Some(header) = source.strip_prefix('[') {
            inside = header.trim_start_matches('[').split(']').next() == Some(section);
            line = line.or(inside.then_some(at + 1));
        } else if inside && source.strip_prefix(&key).is_some_and(|s| s.trim_start().starts_with('=')) {
            line = Some(at + 1);
            break;
        }
    }
    line.map_or_else(|| format!("{name}: {fault}"), |line| format!("{name}:{line}: {fault}"))
}

/// The same for a file, or for no file.
pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, Vec<String>> {
    match file {
        None => parse("(defaults)", "", overrides),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| vec![format!("{}: {e}", path.display())])?;
            parse(&path.display().to_string(), &text, overrides)
        }
    }
}

impl Config {
    /// What `file:consult/1` reads: one map.
    pub fn erlang(&self) -> String {
        let mut out = String::from("%% Written by singularity_config; do not edit.\n");
        self.root.erlang(&mut out, 0);
        out.push_str(".\n");
        out
    }

    /// The whole as JSON, for people.
    pub fn json(&self) -> serde_json::Value {
        self.root.json()
    }
}

#[cfg(test)]
mod tests;
