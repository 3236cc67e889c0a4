//! Conditions of steps: comparisons of references and literals, joined by `and`, `or`, `not` and parentheses.
//!
//! ```text
//! ${steps.check.output.score} >= 0.7 and not ${steps.draft.output} contains "TODO"
//! ```
//! Operators: `==`, `!=`, `<`, `<=`, `>`, `>=`, `contains` (text in text, item in list). Beside a number, text that is a number counts as one;
//! alone, the texts `true` and `false` count as what they say, since models answer in text.

use std::borrow::Cow;

use serde_json::Value;

use super::template::{Reference, parse as reference};

/// Longest condition, in bytes.
pub const MAX_BYTES: usize = 1024;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// A condition that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition<'a> {
    /// A literal.
    Literal(Value),
    /// A reference.
    Reference(Reference<'a>),
    /// Both, or one of the two.
    Join(bool, Box<Condition<'a>>, Box<Condition<'a>>),
    /// The opposite.
    Not(Box<Condition<'a>>),
    /// A comparison.
    Compare(Op, Box<Condition<'a>>, Box<Condition<'a>>),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
}

const SYMBOLS: [(&str, Op); 6] =
    [("==", Op::Equal), ("!=", Op::Unequal), ("<=", Op::LessOrEqual), (">=", Op::GreaterOrEqual), ("<", Op::Less), (">", Op::Greater)];

/// Reads a condition. Errors: where it stops making sense.
pub fn parse(text: &str) -> Result<Condition<'_>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("{} bytes, must be at most {MAX_BYTES}", text.len()));
    }
    let mut p = Parser { rest: text.trim(), depth: 0 };
    let condition = p.joined("or")?;
    if p.rest.is_empty() { Ok(condition) } else { Err(format!("does not go on at \"{}\"", clip(p.rest))) }
}

/// Whether it holds. Errors: a value that is missing, or an outcome that is neither true nor false.
pub fn holds<'v>(condition: &Condition<'_>, lookup: &dyn Fn(Reference<'_>) -> Option<Cow<'v, Value>>) -> Result<bool, String> {
    match condition {
        Condition::Not(inner) => holds(inner, lookup).map(|b| !b),
        Condition::Join(all, a, b) => {
            let first = holds(a, lookup)?;
            if first == *all { holds(b, lookup) } else { Ok(first) }
        }
        Condition::Compare(op, a, b) => {
            let (a, b) = (operand(a, lookup)?, operand(b, lookup)?);
            Ok(compare(*op, &a, &b))
        }
        single => truth(&operand(single, lookup)?),
    }
}

fn operand<'v>(c: &Condition<'_>, lookup: &dyn Fn(Reference<'_>) -> Option<Cow<'v, Value>>) -> Result<Value, String> {
    match c {
        Condition::Literal(v) => Ok(v.clone()),
        Condition::Reference(r) => lookup(*r).map(Cow::into_owned).ok_or_else(|| "a value that it refers to is missing".into()),
        other => holds(other, lookup).map(Value::Bool),
    }
}

fn truth(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(b) => Ok(*b),
        Value::String(s) if s.trim().eq_ignore_ascii_case("true") => Ok(true),
        Value::String(s) if s.trim().eq_ignore_ascii_case("false") => Ok(false),
        Value::String(_) => Err("is a text, must be true or false".into()),
        Value::Number(_) => Err("is a number, must be true or false".into()),
        Value::Null => Err("is null, must be true or false".into()),
        Value::Array(_) | Value::Object(_) => Err("is a list or an object, must be true or false".into()),
    }
}

fn compare(op: Op, a: &Value, b: &Value) -> bool {
    if op == Op::Contains {
        return match (a, b) {
            (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
            (Value::Array(items), item) => items.iter().any(|i| compare(Op::Equal, i, item)),
            (Value::Object(fields), Value::String(name)) => fields.contains_key(name),
            _ => false,
        };
    }
    let numbers = match (a, b) {
        (Value::Number(_), _) | (_, Value::Number(_)) => number(a).zip(number(b)),
        _ => None,
    };
    let order = match (numbers, a, b) {
        (Some((x, y)), _, _) => x.partial_cmp(&y),
        (None, Value::String(x), Value::String(y)) => Some(x.cmp(y)),
        _ => (a == b).then_some(std::cmp::Ordering::Equal),
    };
    match op {
        Op::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
        Op::Unequal => !order.is_some_and(std::cmp::Ordering::is_eq),
        Op::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Op::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Op::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Op::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        Op::Contains => false,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        _ => None,
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// `a or b or c`, or the same with `and`, which binds tighter.
    fn joined(&mut self, word: &str) -> Result<Condition<'a>, String> {
        let all = word == "and";
        let one = |p: &mut Self| if all { p.negated() } else { p.joined("and") };
        let mut left = one(self)?;
        while self.word(word) || self.symbol(if all { "&&" } else { "||" }) {
            left = Condition::Join(all, Box::new(left), Box::new(one(self)?));
        }
        Ok(left)
    }

    fn negated(&mut self) -> Result<Condition<'a>, String> {
        if self.word("not") || (!self.rest.starts_with("!=") && self.symbol("!")) {
            return self.deeper(Self::negated).map(|c| Condition::Not(Box::new(c)));
        }
        let left = self.single()?;
        let op = SYMBOLS.iter().find(|(s, _)| self.symbol(s)).map(|(_, op)| *op).or_else(|| self.word("contains").then_some(Op::Contains));
        match op {
            Some(op) => Ok(Condition::Compare(op, Box::new(left), Box::new(self.single()?))),
            None => Ok(left),
        }
    }

    fn single(&mut self) -> Result<Condition<'a>, String> {
        if self.symbol("(") {
            let inner = self.deeper(|p| p.joined("or"))?;
            return if self.symbol(")") { Ok(inner) } else { Err(format!("lacks a \")\" before \"{}\"", clip(self.rest))) };
        }
        if let Some(tail) = self.rest.strip_prefix("${") {
            let (inside, after) = tail.split_once('}').ok_or("lacks a \"}\"")?;
            self.rest = after.trim_start();
            return Ok(Condition::Reference(reference(inside)));
        }
        for quote in ['"', '\''] {
            if let Some(tail) = self.rest.strip_prefix(quote) {
                let (inside, after) = tail.split_once(quote).ok_or("a text is not closed")?;
                self.rest = after.trim_start();
                return Ok(Condition::Literal(inside.into()));
            }
        }
        for (word, value) in [("true", Value::Bool(true)), ("false", Value::Bool(false)), ("null", Value::Null)] {
            if self.word(word) {
                return Ok(Condition::Literal(value));
            }
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_digit() || ".-+eE".contains(c))).unwrap_or(self.rest.len());
        let (digits, after) = self.rest.split_at(end);
        match digits.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
            Some(n) if !digits.is_empty() => {
                self.rest = after.trim_start();
                Ok(Condition::Literal(Value::Number(n)))
            }
            _ if self.rest.is_empty() => Err("ends where a value must stand".into()),
            _ => Err(format!("\"{}\" is no value; write ${{...}}, a number, true, false, null or a text in quotes", clip(self.rest))),
        }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("is nested deeper than {MAX_DEPTH}"));
        }
        let value = f(self);
        self.depth -= 1;
        value
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let Some(after) = self.rest.strip_prefix(symbol) else { return false };
        self.rest = after.trim_start();
        true
    }

    fn word(&mut self, word: &str) -> bool {
        let Some(after) = self.rest.strip_prefix(word) else { return false };
        if after.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return false;
        }
        self.rest = after.trim_start();
        true
    }
}

fn clip(text: &str) -> &str {
    text.char_indices().nth(20).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn eval(text: &str) -> Result<bool, String> {
        let values = json!({"score": 0.8, "text": "a TODO", "flag": "True", "n": "12", "list": ["x", 3]});
        holds(&parse(text)?, &|r| match r {
            Reference::Step("s", path) => super::super::template::at(&values, path).cloned().map(Cow::Owned),
            _ => None,
        })
    }

    #[test]
    fn comparisons_join_as_they_are_read() {
        let s = |t: &str| t.replace('@', "${steps.s.output.").replace('#', "}");
        assert_eq!(eval(&s("@score# >= 0.7 and not @text# contains \"TODO\"")), Ok(false));
        assert_eq!(eval(&s("@score# < 0.5 or @list# contains 3 && (@n# > 9)")), Ok(true));
        assert_eq!(eval(&s("@flag#")), Ok(true));
        assert_eq!(eval(&s("!(@n# == 12) || @n# != '13'")), Ok(true));
        assert_eq!(eval("null == null and 'a' < 'b'"), Ok(true));
    }

    #[test]
    fn what_is_no_boolean_or_no_condition_says_so() {
        assert!(eval("${steps.s.output.score}").unwrap_err().contains("is a number, must be true or false"));
        assert!(eval("${steps.s.output.nope} == 1").unwrap_err().contains("missing"));
        for bad in ["", "1 ==", "(true", "true false", "yes", "${x", "'open", "== 1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"(".repeat(200)).unwrap_err().contains("nested deeper"));
        assert!(parse(&"not ".repeat(200)).unwrap_err().contains("nested deeper"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\(|\\)|not |and | or |true|1|==|<|\\$\\{item\\}|'a'| ){0,40}") {
            if let Ok(condition) = parse(&text) {
                let _ = holds(&condition, &|_| Some(Cow::Owned(json!(true))));
            }
        }
    }
}
