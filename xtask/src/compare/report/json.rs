//! `results.json`: the comparison, indented; but what is a row of numbers stays a row.

use crate::compare::results::Comparison;
use anyhow::Result;
use serde_json::Value;

pub(super) fn json(comparison: &Comparison) -> Result<String> {
    let mut text = String::new();
    put(&serde_json::to_value(comparison)?, 0, &mut text);
    Ok(text + "\n")
}

fn put(value: &Value, depth: usize, text: &mut String) {
    let nested = |value: &Value| value.is_array() || value.is_object();
    match value {
        Value::Array(all) if all.iter().any(nested) => {
            let mut put = |value: &Value, text: &mut String| self::put(value, depth + 1, text);
            lines('[', ']', all.iter(), depth, text, &mut put);
        }
        Value::Array(all) => {
            let row: Vec<_> = all.iter().map(Value::to_string).collect();
            text.push_str(&format!("[{}]", row.join(", ")));
        }
        Value::Object(all) if !all.is_empty() => {
            let mut put = |(key, value): (&String, &Value), text: &mut String| {
                text.push_str(&format!("{}: ", Value::from(key.as_str())));
                self::put(value, depth + 1, text);
            };
            lines('{', '}', all.iter(), depth, text, &mut put);
        }
        plain => text.push_str(&plain.to_string()),
    }
}

/// Each in a line of its own, between brackets.
fn lines<T>(
    open: char,
    close: char,
    all: impl Iterator<Item = T>,
    depth: usize,
    text: &mut String,
    put: &mut dyn FnMut(T, &mut String),
) {
    text.push(open);
    for (nth, item) in all.enumerate() {
        text.push_str(if nth > 0 { ",\n" } else { "\n" });
        text.push_str(&"  ".repeat(depth + 1));
        put(item, text);
    }
    text.push('\n');
    text.push_str(&"  ".repeat(depth));
    text.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_of_numbers_stay_rows() {
        let mut text = String::new();
        let value =
            json!({"a \"b\"": [[1.5, 2], [3]], "c": [], "d": {}, "e": [{"f": null}], "g": ["x", true]});
        put(&value, 0, &mut text);
        let wanted = "{\n  \"a \\\"b\\\"\": [\n    [1.5, 2],\n    [3]\n  ],\n  \"c\": [],\n  \"d\": {},\n  \"e\": [\n    \
                      {\n      \"f\": null\n    }\n  ],\n  \"g\": [\"x\", true]\n}";
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
