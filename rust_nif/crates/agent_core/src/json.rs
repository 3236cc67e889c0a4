//! Between `google.protobuf.Struct` and JSON, with a bound on nesting.

use std::collections::BTreeMap;

use prost_types::{ListValue, Struct, Value, value::Kind};

/// Deepest nesting of a Struct that is accepted.
pub const MAX_DEPTH: usize = 100;

/// JSON of a protobuf value. Whole numbers become integers, as people write them.
pub fn from_value(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => s.clone().into(),
        Some(Kind::ListValue(l)) => l.values.iter().map(from_value).collect(),
        Some(Kind::StructValue(s)) => from_struct(s),
    }
}

/// JSON of a protobuf Struct.
pub fn from_struct(value: &Struct) -> serde_json::Value {
    serde_json::Value::Object(value.fields.iter().map(|(k, v)| (k.clone(), from_value(v))).collect())
}

/// Protobuf value of JSON.
pub fn to_value(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(*b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(0.0)),
        serde_json::Value::String(s) => Kind::StringValue(s.clone()),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() }),
        serde_json::Value::Object(_) => Kind::StructValue(to_struct(value)),
    };
    Value { kind: Some(kind) }
}

/// Protobuf Struct of a JSON object; anything else gives an empty one.
pub fn to_struct(value: &serde_json::Value) -> Struct {
    let fields: BTreeMap<String, Value> = match value {
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), to_value(v))).collect(),
        _ => BTreeMap::new(),
    };
    Struct { fields }
}

/// Depth of a Struct: 1 for a flat one.
pub fn depth(value: &Struct) -> usize {
    1 + value.fields.values().map(value_depth).max().unwrap_or(0)
}

fn value_depth(value: &Value) -> usize {
    match &value.kind {
        Some(Kind::StructValue(s)) => depth(s),
        Some(Kind::ListValue(l)) => 1 + l.values.iter().map(value_depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn number(n: f64) -> serde_json::Value {
    if n == n.trunc() && n.abs() < 9_007_199_254_740_992.0 {
        #[allow(clippy::cast_possible_truncation)]
        return (n as i64).into();
    }
    serde_json::Number::from_f64(n).map_or(serde_json::Value::Null, serde_json::Value::Number)
}
