//! Tool calls from the fragments of a stream, or whole. Providers disagree on what ties fragments together: an id first, an index
//! else, their order last.

use agent_proto::agents::v1 as pb;
use serde_json::Value;

/// Tool calls of one answer, at most; what comes beyond is dropped.
const MAX_CALLS: usize = 128;

#[derive(Debug, Default)]
struct Part {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl Part {
    fn is_complete(&self) -> bool {
        !self.arguments.is_empty() && serde_json::from_str::<Value>(&self.arguments).is_ok_and(|v| v.is_object())
    }
}

/// The calls so far.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<Part>);

impl Calls {
    /// One call that is whole.
    pub(crate) fn one(id: String, name: String, arguments: String) -> Self {
        Self(vec![Part { index: None, id, name, arguments }])
    }

    /// A fragment, or with `whole` a call of its own.
    pub(crate) fn add(&mut self, fragment: &Value, whole: bool) -> Option<pb::ToolCallDelta> {
        let text = |path: &str| fragment.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (id, name, index) = (text("/id"), text("/function/name"), fragment.get("index").and_then(Value::as_u64));
        let arguments = match fragment.pointer("/function/arguments") {
            Some(Value::String(s)) => s.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        let found = if whole { None } else { self.place(id, index) };
        let starts_next = |p: &Part| id.is_empty() && !name.is_empty() && !arguments.is_empty() && p.is_complete();
        let at = match found.filter(|at| !starts_next(&self.0[*at])) {
            Some(at) => at,
            None if self.0.len() < MAX_CALLS => {
                self.0.push(Part { index, ..Part::default() });
                self.0.len() - 1
            }
            None => return None,
        };
        let part = &mut self.0[at];
        if part.id.is_empty() {
            id.clone_into(&mut part.id);
        }
        // Some repeat the name with each fragment, some send it in pieces.
        if part.name != name && part.arguments.is_empty() {
            part.name.push_str(name);
        }
        part.arguments.push_str(&arguments);
        Some(pb::ToolCallDelta { index: i32::try_from(at).unwrap_or(0), id: id.to_owned(), name: name.to_owned(), arguments })
    }

    fn place(&self, id: &str, index: Option<u64>) -> Option<usize> {
        let latest = |f: &dyn Fn(&Part) -> bool| self.0.iter().rposition(f);
        match (id, index) {
            ("", Some(index)) => latest(&|p| p.index == Some(index)),
            ("", None) => self.0.len().checked_sub(1),
            (id, index) => latest(&|p| p.id == id)
                .or_else(|| latest(&|p| index.is_some() && p.index == index && p.id.is_empty() && p.arguments.is_empty())),
        }
    }

    /// The calls with ids that differ and arguments as JSON text; what is no object stays as it came.
    pub(crate) fn finish(self) -> Vec<pb::ToolCall> {
        let mut calls: Vec<pb::ToolCall> = Vec::with_capacity(self.0.len());
        for part in self.0.into_iter().filter(|p| !p.name.is_empty()) {
            let mut id = part.id;
            let mut n = calls.len();
            while id.is_empty() || calls.iter().any(|c| c.id == id) {
                id = format!("call_{n}");
                n += 1;
            }
            calls.push(pb::ToolCall { id, name: part.name, arguments: plain(part.arguments) });
        }
        calls
    }
}

/// Nothing is no arguments; JSON in a JSON text is taken out of it.
fn plain(arguments: String) -> String {
    if arguments.trim().is_empty() || arguments.trim() == "null" {
        return "{}".into();
    }
    match serde_json::from_str::<Value>(&arguments) {
        Ok(Value::String(inner)) if serde_json::from_str::<Value>(&inner).is_ok_and(|v| v.is_object()) => inner,
        _ => arguments,
    }
}
