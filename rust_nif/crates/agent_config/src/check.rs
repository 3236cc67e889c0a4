//! Walks a file against the schema; every fault is named.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::node::{Key, Node};
use crate::schema::{Field, Kind, REQUIRED, ROOT};
use crate::units;

struct Walk<'a> {
    name: &'a str,
    text: &'a str,
    faults: Vec<(usize, String)>,
}

/// A checked tree with the defaults filled in, or every fault in the order of the file.
pub(crate) fn check(name: &str, text: &str) -> Result<Node, Vec<String>> {
    check_as(ROOT, name, text)
}

/// The same for a file of other keys.
pub(crate) fn check_as(keys: &'static [Field], name: &str, text: &str) -> Result<Node, Vec<String>> {
    let table = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(1, |s| line_of(text, s.start));
        vec![format!("{name}:{line}: {}", e.message())]
    })?;
    let mut walk = Walk { name, text, faults: Vec::new() };
    let root = walk.table(keys, table.get_ref(), "");
    if walk.faults.is_empty() {
        return Ok(root);
    }
    walk.faults.sort_by_key(|(at, _)| *at);
    Err(walk.faults.into_iter().map(|(_, text)| text).collect())
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

impl Walk<'_> {
    fn fault(&mut self, at: usize, path: &str, what: &str) {
        let line = line_of(self.text, at);
        let source = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        // A line may hold a literal key: what stands behind "=" is not repeated for such names.
        let shown = match source.split_once('=') {
            Some((key, _)) if key.contains("key") || key.contains("secret") => format!("{} = …", key.trim()),
            _ => source.chars().take(120).collect(),
        };
        self.faults.push((at, format!("{}:{line}: [{path}] {shown}\n  {what}", self.name)));
    }

    fn table(&mut self, fields: &'static [Field], table: &DeTable<'_>, path: &str) -> Node {
        let mut entries = Vec::with_capacity(fields.len());
        for (key, _) in table {
            let name: &str = key.get_ref();
            if !fields.iter().any(|f| f.name == name) {
                let near = nearest(name, fields.iter().map(|f| f.name))
                    .map_or_else(|| format!("there are {}", names(fields)), |n| format!("did you mean \"{n}\"?"));
                self.fault(key.span().start, path, &format!("unknown key \"{name}\", {near}   singularity config check"));
            }
        }
        for field in fields {
            let found = table.iter().find(|(k, _)| *k.get_ref() == field.name).map(|(_, v)| v);
            let key = Key::Fixed(rendered(field));
            match (found, field.default) {
                (Some(value), _) => {
                    if let Some(node) = self.value(field.kind, value, &join(path, field.name)) {
                        entries.push((key, node));
                    }
                }
                (None, Some(default)) => entries.push((key, self.default(field.kind, default, &join(path, field.name)))),
                (None, None) => {}
            }
        }
        Node::Map(entries)
    }

    /// A default of the schema's own; one that is wrong shows in the first test.
    fn default(&mut self, kind: Kind, default: &str, path: &str) -> Node {
        let text = format!("x = {default}");
        let node = DeTable::parse(&text).ok().and_then(|t| t.get_ref().iter().next().map(|(_, v)| self.value(kind, v, path)));
        node.flatten().unwrap_or(Node::Map(Vec::new()))
    }

    fn value(&mut self, kind: Kind, value: &Spanned<DeValue<'_>>, path: &str) -> Option<Node> {
        let at = value.span().start;
        let (node, expected) = match (kind, value.get_ref()) {
            (Kind::Text, DeValue::String(s)) => (Some(Node::Text(s.to_string())), ""),
            (Kind::Text, _) => (None, "a text in quotes"),
            (Kind::Bool, DeValue::Boolean(b)) => (Some(Node::Bool(*b)), ""),
            (Kind::Bool, _) => (None, "true or false"),
            (Kind::Int(low, high), v) => {
                let n = int(v).filter(|n| (low..=high).contains(n));
                if n.is_none() {
                    self.fault(at, path, &format!("expected a whole number from {low} to {high}"));
                    return None;
                }
                (n.map(Node::Int), "")
            }
            (Kind::Duration, DeValue::String(s)) => {
                (units::duration_ms(s).map(Node::Int), "a duration such as \"250ms\", \"20s\", \"5m\", \"1h\"")
            }
            (Kind::Duration, _) => (None, "a duration as text with a unit, such as \"20s\""),
            (Kind::Size, DeValue::String(s)) => (units::bytes(s).map(Node::Int), "a size such as \"64KiB\" or \"1GiB\""),
            (Kind::Size, _) => (None, "a size as text with a unit, such as \"1GiB\""),
            (Kind::Money, DeValue::String(s)) => {
                (units::micros(s).map(Node::Int), "an amount of dollars as a decimal text, such as \"5.00\"")
            }
            (Kind::Money, _) => (None, "an amount of dollars as a decimal text, such as \"5.00\""),
            (Kind::Share, v) => (share(v).map(Node::Int), "a number from 0 to 1, such as 0.8"),
            (Kind::Word(words) | Kind::BoolOrWord(words), DeValue::String(s)) => {
                if !words.contains(&s.as_ref()) {
                    let near = nearest(s, words.iter().copied()).map_or(String::new(), |n| format!(", did you mean \"{n}\"?"));
                    self.fault(at, path, &format!("expected one of {}{near}", quoted(words)));
                    return None;
                }
                (Some(Node::Text(s.to_string())), "")
            }
            (Kind::BoolOrWord(words), DeValue::Boolean(b)) => (Some(Node::Text(words[if *b { 1 } else { 2 }].to_owned())), ""),
            (Kind::Word(words) | Kind::BoolOrWord(words), _) => {
                self.fault(at, path, &format!("expected one of {}", quoted(words)));
                return None;
            }
            (Kind::Texts, DeValue::Array(items)) => {
                let texts: Option<Vec<Node>> = items.iter().map(|i| i.get_ref().as_str().map(|s| Node::Text(s.to_owned()))).collect();
                (texts.map(Node::List), "a list of texts")
            }
            (Kind::Texts, _) => (None, "a list of texts"),
            (Kind::Ints(low, high), DeValue::Array(items)) => {
                let numbers: Option<Vec<Node>> =
                    items.iter().map(|i| int(i.get_ref()).filter(|n| (low..=high).contains(n)).map(Node::Int)).collect();
                (numbers.map(Node::List), "a list of numbers in range")
            }
            (Kind::Ints(..), _) => (None, "a list of numbers"),
            (Kind::Secret, v) => (secret(v), "a reference, { env = \"NAME\" } or { file = \"path\" }, never the key itself"),
            (Kind::Table(fields), DeValue::Table(t)) => return Some(self.table(fields, t, path)),
            (Kind::Tables(fields), DeValue::Array(items)) => {
                let mut nodes = Vec::with_capacity(items.len());
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(t) => nodes.push(self.table(fields, t, path)),
                        _ => self.fault(item.span().start, path, "expected a table"),
                    }
                }
                return Some(Node::List(nodes));
            }
            (Kind::Named(kind), DeValue::Table(t)) => return Some(self.named(*kind, t, path)),
            (Kind::Table(_) | Kind::Named(_), _) => (None, "a table"),
            (Kind::Tables(_), _) => (None, "a list of tables"),
        };
        if node.is_none() {
            self.fault(at, path, &format!("expected {expected}"));
        }
        node
    }

    fn named(&mut self, kind: Kind, table: &DeTable<'_>, path: &str) -> Node {
        let required: &[&str] = REQUIRED.iter().find(|(p, _)| *p == path).map_or(&[], |(_, r)| r);
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let name = key.get_ref().to_string();
            let path = join(path, &name);
            if let DeValue::Table(t) = value.get_ref() {
                for wanted in required {
                    if !t.iter().any(|(k, _)| k.get_ref() == wanted) {
                        self.fault(key.span().start, &path, &format!("the key \"{wanted}\" is missing"));
                    }
                }
            }
            if let Some(node) = self.value(kind, value, &path) {
                entries.push((Key::Name(name), node));
            }
        }
        Node::Map(entries)
    }
}

fn rendered(field: &Field) -> String {
    match field.kind {
        Kind::Duration => format!("{}_ms", field.name),
        Kind::Money => format!("{}_micros", field.name.trim_end_matches("_usd")),
        Kind::Share => format!("{}_millionths", field.name),
        _ => field.name.to_owned(),
    }
}

fn int(value: &DeValue<'_>) -> Option<i64> {
    match value {
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).ok(),
        _ => None,
    }
}

/// In millionths.
fn share(value: &DeValue<'_>) -> Option<i64> {
    let text = match value {
        DeValue::Integer(n) => n.as_str(),
        DeValue::Float(n) => n.as_str(),
        _ => return None,
    };
    let number: f64 = text.replace('_', "").parse().ok()?;
    #[allow(clippy::cast_possible_truncation)]
    (0.0..=1.0).contains(&number).then_some((number * 1e6).round() as i64)
}

fn secret(value: &DeValue<'_>) -> Option<Node> {
    let DeValue::Table(t) = value else { return None };
    let mut entries = t.iter();
    let (key, value) = entries.next()?;
    let name: &str = key.get_ref();
    if entries.next().is_some() || !matches!(name, "env" | "file") {
        return None;
    }
    Some(Node::Map(vec![(Key::Fixed(name.to_owned()), Node::Text(value.get_ref().as_str()?.to_owned()))]))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn names(fields: &'static [Field]) -> String {
    fields.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ")
}

/// The word that is at most a third of its length away.
fn nearest<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    words.map(|w| (distance(name, w), w)).filter(|(d, w)| *d * 3 <= w.chars().count().max(3)).min_by_key(|(d, _)| *d).map(|(_, w)| w)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut last = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let old = row[j + 1];
            row[j + 1] = (last + usize::from(ca != *cb)).min(old + 1).min(row[j] + 1);
            last = old;
        }
    }
    row[b.len()]
}
