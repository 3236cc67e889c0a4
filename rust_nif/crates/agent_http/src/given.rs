//! A JSON object that a client sent, read field by field: what is left at the end is nobody's, and refused.

use serde_json::{Map, Value};

use crate::problem::Problem;

/// An object under its name in the request ("messages[0]"; empty: the request itself).
pub(crate) struct Given {
    name: String,
    fields: Map<String, Value>,
}

impl Given {
    /// An object, or a problem that says where one was expected.
    pub(crate) fn new(name: &str, value: Value) -> Result<Self, Problem> {
        match value {
            Value::Object(fields) => Ok(Self { name: name.to_owned(), fields }),
            _ => Err(Problem::field(if name.is_empty() { "body" } else { name }, "must be an object")),
        }
    }

    /// The name of a field in the whole request.
    pub(crate) fn path(&self, field: &str) -> String {
        if self.name.is_empty() { field.to_owned() } else { format!("{}.{field}", self.name) }
    }

    /// A problem of a field.
    pub(crate) fn wrong(&self, field: &str, what: &str) -> Problem {
        Problem::field(&self.path(field), what)
    }

    /// A field; null is absent.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.shift_remove(field).filter(|v| !v.is_null())
    }

    /// A text; absent: empty.
    pub(crate) fn text(&mut self, field: &str) -> Result<String, Problem> {
        match self.take(field) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong(field, "must be a text")),
        }
    }

    /// A text that must be there.
    pub(crate) fn needed(&mut self, field: &str) -> Result<String, Problem> {
        let text = self.text(field)?;
        if text.is_empty() { Err(self.wrong(field, "is missing")) } else { Ok(text) }
    }

    /// A whole number.
    pub(crate) fn int(&mut self, field: &str) -> Result<Option<i64>, Problem> {
        let number = self.take(field).map(|v| v.as_i64().ok_or_else(|| self.wrong(field, "must be a whole number")));
        number.transpose()
    }

    /// A positive number of tokens.
    pub(crate) fn tokens(&mut self, field: &str) -> Result<Option<i32>, Problem> {
        match self.int(field)? {
            None => Ok(None),
            Some(n) => i32::try_from(n).ok().filter(|n| *n > 0).map(Some).ok_or_else(|| self.wrong(field, "must be 1 or more")),
        }
    }

    /// A number.
    pub(crate) fn number(&mut self, field: &str) -> Result<Option<f64>, Problem> {
        let number = self.take(field).map(|v| v.as_f64().ok_or_else(|| self.wrong(field, "must be a number")));
        number.transpose()
    }

    /// A yes or no.
    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, Problem> {
        let flag = self.take(field).map(|v| v.as_bool().ok_or_else(|| self.wrong(field, "must be true or false")));
        flag.transpose()
    }

    /// A list; absent: empty.
    pub(crate) fn list(&mut self, field: &str) -> Result<Vec<Value>, Problem> {
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.wrong(field, "must be a list")),
        }
    }

    /// The objects of a list, each under its name.
    pub(crate) fn objects(&mut self, field: &str) -> Result<Vec<Given>, Problem> {
        let path = self.path(field);
        self.list(field)?.into_iter().enumerate().map(|(n, item)| Given::new(&format!("{path}[{n}]"), item)).collect()
    }

    /// An object.
    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Given>, Problem> {
        let path = self.path(field);
        self.take(field).map(|value| Given::new(&path, value)).transpose()
    }

    /// A text or a list of texts.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<String>, Problem> {
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| if let Value::String(text) = item { Ok(text) } else { Err(self.wrong(field, "must hold texts alone")) })
                .collect(),
            Some(_) => Err(self.wrong(field, "must be a text or a list of texts")),
        }
    }

    /// Takes fields that say what is the case anyway: with another value they would change the answer, and nothing here can do that.
    pub(crate) fn only(&mut self, defaults: &[(&str, Value)]) -> Result<(), Problem> {
        for (field, usual) in defaults {
            if let Some(value) = self.take(field)
                && value != *usual
                && !(value.is_number() && value.as_f64() == usual.as_f64())
            {
                return Err(self.wrong(field, &format!("can only be {usual} here; leave it out")));
            }
        }
        Ok(())
    }

    /// Fields that change nothing of the answer.
    pub(crate) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            let _ = self.fields.shift_remove(*field);
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(mut self) -> Result<(), Problem> {
        self.fields.retain(|_, value| !value.is_null());
        match self.fields.keys().next() {
            Some(field) => Err(self.wrong(field, "is not known here; leave it out")),
            None => Ok(()),
        }
    }
}
