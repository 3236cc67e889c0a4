//! References in the texts of a plan: `${task.input}`, `${steps.ID.output}`, fields below an output (`${steps.ID.output.a.0.b}`), and within
//! `for_each` `${item}`, `${item.a}` and `${index}`. `$${` stands for a plain `${`.

use std::borrow::Cow;

use serde_json::Value;

use super::check::good_id;

/// Longest text that references may make, in bytes.
pub const MAX_RENDERED_BYTES: usize = 4 * 1024 * 1024;

/// What stands in `${...}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// The task's description.
    Task,
    /// The item of `for_each`; the path below it, which may be empty.
    Item(&'a str),
    /// Its place, from 0.
    Index,
    /// Output of a step, and the path below it.
    Step(&'a str, &'a str),
    /// Nothing that could be meant.
    Bad(&'a str),
}

/// A piece of a text.
enum Piece<'a> {
    Text(&'a str),
    Reference(Reference<'a>),
}

/// The references of a text, in order.
pub fn references(text: &str) -> impl Iterator<Item = Reference<'_>> {
    pieces(text).filter_map(|p| if let Piece::Reference(r) = p { Some(r) } else { None })
}

/// The reference that is the whole of a text: then its value is meant, not its text.
pub fn whole(text: &str) -> Option<Reference<'_>> {
    let mut all = pieces(text.trim());
    match (all.next(), all.next()) {
        (Some(Piece::Reference(r)), None) => Some(r),
        _ => None,
    }
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(at) = rest.find("${") else { return Some(Piece::Text(std::mem::take(&mut rest))) };
        if at > 0 && rest.as_bytes()[at - 1] == b'$' {
            // The text up to the first "$", then "{" as it is.
            let (before, after) = (&rest[..at], &rest[at + 1..]);
            rest = after;
            return Some(Piece::Text(before));
        }
        if at > 0 {
            let before = &rest[..at];
            rest = &rest[at..];
            return Some(Piece::Text(before));
        }
        let tail = &rest[2..];
        match tail.split_once('}') {
            Some((inside, after)) => {
                rest = after;
                Some(Piece::Reference(parse(inside)))
            }
            None => {
                rest = "";
                Some(Piece::Reference(Reference::Bad(tail)))
            }
        }
    })
}

/// The reference that stands between `${` and `}`.
pub fn parse(inside: &str) -> Reference<'_> {
    let path_below = |rest: &str| rest.is_empty() || rest.strip_prefix('.').is_some_and(|p| p.split('.').all(|part| !part.is_empty()));
    if inside == "task.input" {
        return Reference::Task;
    }
    if inside == "index" {
        return Reference::Index;
    }
    if let Some(rest) = inside.strip_prefix("item")
        && path_below(rest)
    {
        return Reference::Item(rest.trim_start_matches('.'));
    }
    if let Some((id, rest)) = inside.strip_prefix("steps.").and_then(|tail| tail.split_once('.'))
        && let Some(path) = rest.strip_prefix("output")
        && good_id(id)
        && path_below(path)
    {
        return Reference::Step(id, path.trim_start_matches('.'));
    }
    Reference::Bad(inside)
}

/// What a value is at a path of fields and numbers of items.
pub fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').filter(|p| !p.is_empty()).try_fold(value, |v, part| match v {
        Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
        other => other.get(part),
    })
}

/// The value of a text: of the one reference that it is, else the text with its references filled in.
/// Errors: the reference that has no value, or that the text grows too long.
pub fn value<'v>(text: &str, lookup: &dyn Fn(Reference<'_>) -> Option<Cow<'v, Value>>) -> Result<Value, String> {
    match whole(text) {
        Some(reference) => lookup(reference).map(Cow::into_owned).ok_or_else(|| missing(reference)),
        None => render(text, lookup).map(Value::String),
    }
}

/// A text with its references filled in: text as it is, everything else as JSON, null as nothing. Errors as of [`value`].
pub fn render<'v>(text: &str, lookup: &dyn Fn(Reference<'_>) -> Option<Cow<'v, Value>>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(t) => out.push_str(t),
            Piece::Reference(reference) => {
                let value = lookup(reference).ok_or_else(|| missing(reference))?;
                out.push_str(&text_of(&value));
            }
        }
        if out.len() > MAX_RENDERED_BYTES {
            return Err(format!("grows beyond {MAX_RENDERED_BYTES} bytes"));
        }
    }
    Ok(out)
}

/// A value as it stands in a text.
pub fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(s) => Cow::Borrowed(s),
        Value::Null => Cow::Borrowed(""),
        other => Cow::Owned(other.to_string()),
    }
}

fn missing(reference: Reference<'_>) -> String {
    match reference {
        Reference::Step(id, "") => format!("step \"{id}\" has no output"),
        Reference::Step(id, path) => format!("the output of step \"{id}\" has no \"{path}\""),
        Reference::Item("") | Reference::Index => "there is no item here: only a step with for_each has one".into(),
        Reference::Item(path) => format!("the item has no \"{path}\""),
        Reference::Task => "the task has no input".into(),
        Reference::Bad(text) => format!("\"${{{text}}}\" is no reference"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(reference: Reference<'_>) -> Option<Cow<'static, Value>> {
        match reference {
            Reference::Task => Some(Cow::Owned(json!("the input"))),
            Reference::Step("a", path) => at(&json!({"n": 4, "list": [{"x": "y"}]}), path).cloned().map(Cow::Owned),
            Reference::Index => Some(Cow::Owned(json!(3))),
            _ => None,
        }
    }

    #[test]
    fn text_is_filled_in_and_one_reference_alone_keeps_its_type() {
        assert_eq!(render("${index}: ${task.input} ${steps.a.output.list.0.x}!", &look).unwrap(), "3: the input y!");
        assert_eq!(value(" ${steps.a.output.n} ", &look).unwrap(), json!(4));
        assert_eq!(value("n ${steps.a.output.n}", &look).unwrap(), json!("n 4"));
    }

    #[test]
    fn a_missing_value_is_named_and_a_doubled_dollar_is_plain() {
        assert_eq!(render("${steps.a.output.nope}", &look).unwrap_err(), "the output of step \"a\" has no \"nope\"");
        assert_eq!(render("echo $${HOME} costs $5", &look).unwrap(), "echo ${HOME} costs $5");
        assert_eq!(references("$${HOME} ${oops").collect::<Vec<_>>(), [Reference::Bad("oops")]);
        assert_eq!(
            references("${item.a}${items}${steps.a.output.}").collect::<Vec<_>>(),
            [Reference::Item("a"), Reference::Bad("items"), Reference::Bad("steps.a.output."),]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in ".{0,60}", tail in "(\\$\\{?|\\}|steps|\\.|item){0,12}") {
            let all = format!("{text}{tail}");
            let _ = references(&all).count();
            if !all.contains("${") {
                proptest::prop_assert_eq!(render(&all, &look).unwrap(), all);
            }
        }
    }
}
