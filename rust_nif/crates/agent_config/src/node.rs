//! A checked value, and its two renderings.

use std::fmt::Write as _;

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Keys of the schema (atoms in Erlang) or of the user (binaries), in order.
    Map(Vec<(Key, Node)>),
    /// A list.
    List(Vec<Node>),
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// JSON text of its own, a binary in Erlang.
    Json(serde_json::Value),
}

/// A key.
#[derive(Clone, Debug, PartialEq)]
pub enum Key {
    /// Of the schema.
    Fixed(String),
    /// Of the user.
    Name(String),
}

impl Key {
    pub(crate) fn text(&self) -> &str {
        match self {
            Key::Fixed(t) | Key::Name(t) => t,
        }
    }
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(entries) => entries.iter().find(|(k, _)| k.text() == key).map(|(_, v)| v),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match self {
            Node::Map(entries) => entries.iter_mut().find(|(k, _)| k.text() == key).map(|(_, v)| v),
            _ => None,
        }
    }

    pub(crate) fn set(&mut self, key: Key, value: Node) {
        if let Node::Map(entries) = self {
            match entries.iter_mut().find(|(k, _)| *k == key) {
                Some((_, old)) => *old = value,
                None => entries.push((key, value)),
            }
        }
    }

    pub(crate) fn str(&self) -> Option<&str> {
        match self {
            Node::Text(t) => Some(t),
            _ => None,
        }
    }

    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match self {
            Node::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Node::Map(entries) => serde_json::Value::Object(entries.iter().map(|(k, v)| (k.text().to_owned(), v.json())).collect()),
            Node::List(items) => items.iter().map(Node::json).collect(),
            Node::Text(t) => t.clone().into(),
            Node::Int(n) => (*n).into(),
            Node::Float(n) => (*n).into(),
            Node::Bool(b) => (*b).into(),
            Node::Json(v) => v.clone(),
        }
    }

    pub(crate) fn erlang(&self, out: &mut String, depth: usize) {
        match self {
            Node::Map(entries) => {
                out.push_str("#{");
                for (i, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if i == 0 { "\n" } else { ",\n" });
                    out.push_str(&"  ".repeat(depth + 1));
                    match key {
                        Key::Fixed(name) => out.push_str(name),
                        Key::Name(name) => binary(name, out),
                    }
                    out.push_str(" => ");
                    value.erlang(out, depth + 1);
                }
                out.push('}');
            }
            Node::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    item.erlang(out, depth + 1);
                }
                out.push(']');
            }
            Node::Text(t) => binary(t, out),
            Node::Int(n) => {
                let _ = write!(out, "{n}");
            }
            Node::Float(n) => {
                let _ = write!(out, "{n:?}");
            }
            Node::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Node::Json(v) => binary(&v.to_string(), out),
        }
    }
}

/// A UTF-8 binary: everything that is not plain is written as a number.
fn binary(text: &str, out: &mut String) {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\') {
        let _ = write!(out, "<<\"{text}\">>");
    } else {
        let bytes: Vec<String> = text.bytes().map(|b| b.to_string()).collect();
        let _ = write!(out, "<<{}>>", bytes.join(","));
    }
}
