//! Reading a JSON object whose author we do not trust: what is wrong is named by its key.

use lora_core::{Error, Result};
use serde_json::{Map, Value};

/// No size in a model reaches this; below it, products of two sizes fit into an i64.
const MAX_SIZE: i64 = 1 << 31;

/// An object and where it is from (a file, then the path within it). A null counts as absent, as in transformers.
#[derive(Clone)]
pub(crate) struct Object<'a> {
    map: Option<&'a Map<String, Value>>,
    place: String,
}

impl<'a> Object<'a> {
    pub(crate) fn new(value: &'a Value, place: impl Into<String>) -> Result<Self> {
        let place = place.into();
        match value.as_object() {
            Some(map) => Ok(Self { map: Some(map), place }),
            None => Err(Error::data("is not a JSON object").at(place)),
        }
    }

    pub(crate) fn empty(place: impl Into<String>) -> Self {
        Self { map: None, place: place.into() }
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// `error`, at `key`.
    pub(crate) fn fault(&self, key: &str, error: Error) -> Error {
        error.at(format!("{}, `{key}`", self.place))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.into_iter().flatten()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map?.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, want: &str, pick: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match pick(value) {
            Some(found) => Ok(Some(found)),
            None => {
                let text: String = value.to_string().chars().take(60).collect();
                Err(self.fault(key, Error::data(format!("is {text}, should be {want}"))))
            }
        }
    }

    pub(crate) fn int(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", Value::as_i64)
    }

    /// A number that is finite and above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0", |v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Object { map: Some(map), place: format!("{}, `{key}`", self.place) }))
    }

    /// A list of numbers that are finite and above 0.
    pub(crate) fn positives(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        self.typed(key, "a list of numbers above 0", |v| v.as_array()?.iter().map(number).collect())
    }

    /// A size: 1 or more, and not absurd.
    pub(crate) fn size(&self, key: &str) -> Result<Option<i64>> {
        match self.int(key)? {
            Some(n) if !(1..MAX_SIZE).contains(&n) => {
                Err(self.fault(key, Error::data(format!("is {n}, should be from 1 to {}", MAX_SIZE - 1))))
            }
            found => Ok(found),
        }
    }

    /// A token id; some old files write -1 for none.
    pub(crate) fn token(&self, key: &str) -> Result<Option<i64>> {
        Ok(self.int(key)?.filter(|&id| id >= 0))
    }

    /// One token id or a list of them.
    pub(crate) fn tokens(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(Value::as_i64).collect::<Option<Vec<_>>>(),
            one => one.as_i64().map(|id| vec![id]),
        })
        .map(|ids| ids.map(|ids| ids.into_iter().filter(|&id| id >= 0).collect()))
    }

    pub(crate) fn needed<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::data(format!("`{key}` is missing")).at(&self.place))
    }

    pub(crate) fn needed_size(&self, key: &str) -> Result<i64> {
        self.needed(key, self.size(key)?)
    }
}
