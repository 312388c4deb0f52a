//! The `tojson` filter: `json.dumps` as transformers sets it up.

use lora_core::python_repr;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error as JinjaError, ErrorKind, State, Value};

use super::environment::{JinjaResult, float};

/// Deeper than any tool description, and far from the end of the stack.
const MAX_DEPTH: usize = 100;

/// As Python writes it: no HTML escapes, `ensure_ascii=False`, a blank after `,` and `:`.
pub(super) fn to_json(state: &State<'_, '_>, value: &Value, options: Kwargs) -> JinjaResult<String> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let [comma, colon] = match separators.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }, ": "],
        Some([comma, colon]) => [comma.as_str(), colon.as_str()],
        Some(_) => return Err(bad("`separators` takes two texts")),
    };
    let mut writer = Writer {
        state,
        indent: indent.map(|n| n.min(16)),
        ascii: ascii.unwrap_or(false),
        sort: sort.unwrap_or(false),
        comma,
        colon,
        out: String::new(),
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn bad(what: &str) -> JinjaError {
    JinjaError::new(ErrorKind::BadSerialization, what.to_owned())
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    indent: Option<usize>,
    ascii: bool,
    sort: bool,
    comma: &'a str,
    colon: &'a str,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> JinjaResult<()> {
        // Paid as it grows: a few lists that hold each other can stand for more text than there is memory.
        self.state.consume_fuel(1)?;
        if depth > MAX_DEPTH {
            return Err(bad("nested too deep"));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                self.list(['[', ']'], value.try_iter()?, depth, |w, item| w.value(&item, depth + 1))
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list(['{', '}'], keys.into_iter(), depth, |w, key| {
                    w.scalar(&Value::from(key.to_string()))?;
                    w.out.push_str(w.colon);
                    w.value(&value.get_item(&key)?, depth + 1)
                })
            }
            _ => self.scalar(value),
        }
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut each: impl FnMut(&mut Self, Value) -> JinjaResult<()>,
    ) -> JinjaResult<()> {
        self.out.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                self.out.push_str(self.comma);
            }
            empty = false;
            self.new_line(depth + 1);
            each(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn scalar(&mut self, value: &Value) -> JinjaResult<()> {
        let json = match float(value) {
            Some(x) if x.is_nan() => "NaN".to_owned(),
            Some(x) if x.is_infinite() => format!("{}Infinity", if x < 0.0 { "-" } else { "" }),
            Some(x) => python_repr(x),
            None => serde_json::to_string(value).map_err(|e| bad(&e.to_string()))?,
        };
        self.state.consume_fuel(json.len() as u64 / 16)?;
        for c in json.chars() {
            if c.is_ascii() || !self.ascii {
                self.out.push(c);
            } else {
                let units = &mut [0; 2];
                c.encode_utf16(units).iter().for_each(|unit| self.out.push_str(&format!("\\u{unit:04x}")));
            }
        }
        Ok(())
    }
}
