//! An object of a config whose every key has to be known: read, on a list of what does not bear on weights, or refused.

use moec_ir::diag::Diagnostic;
use serde_json::{Map, Value};
use std::cell::RefCell;

/// An object of a config, and which of its keys have been read.
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// Where it stands: `quantization_config.config_groups.group_0`.
    place: String,
    read: RefCell<Vec<&'a str>>,
}

/// What a rule says of modules.
pub struct Rule<'a> {
    /// Its value.
    pub value: &'a Value,
    place: String,
}

impl<'a> Rule<'a> {
    /// The object that the rule is; `None` for null.
    ///
    /// # Errors
    /// `config-key-type` for anything else.
    pub fn object(&self) -> Result<Option<Keys<'a>>, Diagnostic> {
        match self.value {
            Value::Null => Ok(None),
            Value::Object(map) => Ok(Some(Keys::new(map, self.place.clone()))),
            other => Err(Diagnostic::input(
                "config-key-type",
                format!("`{}` should be an object, but is {}", self.place, shown(other)),
            )),
        }
    }
}

impl Rule<'_> {
    /// The list of strings that the rule is.
    ///
    /// # Errors
    /// `config-key-type` for anything else.
    pub fn words(&self) -> Result<Vec<String>, Diagnostic> {
        let word = |v: &Value| v.as_str().map(str::to_string);
        let list = self.value.as_array().and_then(|l| l.iter().map(word).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| {
            let found = shown(self.value);
            Diagnostic::input(
                "config-key-type",
                format!("`{}` should be a list of strings, but is {found}", self.place),
            )
        })
    }
}

impl<'a> Keys<'a> {
    /// The object at `place`.
    pub fn new(map: &'a Map<String, Value>, place: impl Into<String>) -> Keys<'a> {
        Keys { map, place: place.into(), read: RefCell::new(Vec::new()) }
    }

    /// The value of `key`; `None` also for null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let (name, value) = self.map.get_key_value(key)?;
        self.read.borrow_mut().push(name);
        Some(value).filter(|v| !v.is_null())
    }

    /// The names of all members.
    pub fn names(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.map.keys()
    }

    /// The rules under `key`, in the order in which they stand: an object, or a list of pairs ([`super::ordered`]).
    ///
    /// # Errors
    /// `config-key-type`.
    pub fn rules(&self, key: &str) -> Result<Vec<(&'a str, Rule<'a>)>, Diagnostic> {
        let wrong = || self.wrong(key, "an object");
        let pair = |v: &'a Value| match v.as_array().map(Vec::as_slice) {
            Some([Value::String(name), value]) => Ok((name.as_str(), value)),
            _ => Err(wrong()),
        };
        let members: Vec<(&'a str, &'a Value)> = match self.get(key) {
            None => Vec::new(),
            Some(Value::Object(map)) => map.iter().map(|(k, v)| (k.as_str(), v)).collect(),
            Some(Value::Array(list)) => list.iter().map(pair).collect::<Result<_, _>>()?,
            Some(_) => return Err(wrong()),
        };
        let place = |name: &str| format!("{}.{name}", self.path(key));
        let rule = |(name, value): (&'a str, &'a Value)| (name, Rule { value, place: place(name) });
        Ok(members.into_iter().map(rule).collect())
    }

    /// Where the object stands.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Where `key` stands.
    pub fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.place)
    }

    /// The error of a value of another type.
    pub fn wrong(&self, key: &str, expected: &str) -> Diagnostic {
        let found = self.map.get(key).map_or_else(|| "nothing".to_string(), shown);
        Diagnostic::input("config-key-type", format!("`{}` should be {expected}, but is {found}", self.path(key)))
    }

    /// A text in lower case.
    ///
    /// # Errors
    /// `config-key-type`, as for all of these.
    pub fn word(&self, key: &str) -> Result<Option<String>, Diagnostic> {
        let word = |v: &Value| v.as_str().map(str::to_lowercase).ok_or_else(|| self.wrong(key, "a string"));
        self.get(key).map(word).transpose()
    }

    /// A whole number, also one that is written as a string.
    pub fn whole(&self, key: &str) -> Result<Option<i64>, Diagnostic> {
        let read = |v: &Value| match v {
            Value::Number(n) => n.as_i64(),
            Value::String(s) => s.parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, "a whole number"))).transpose()
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Diagnostic> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<Keys<'a>>, Diagnostic> {
        let read = |v: &'a Value| v.as_object().map(|m| Keys::new(m, self.path(key)));
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, "an object"))).transpose()
    }

    /// A list of strings; also one string.
    pub fn words(&self, key: &str) -> Result<Vec<String>, Diagnostic> {
        let wrong = || self.wrong(key, "a list of strings");
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(s)) => Ok(vec![s.clone()]),
            Some(Value::Array(list)) => list.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(wrong)).collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Rows and columns of a block: two positive whole numbers.
    pub fn block(&self, key: &str) -> Result<Option<(u64, u64)>, Diagnostic> {
        let read = |v: &Value| {
            let list = v.as_array().filter(|l| l.len() == 2)?;
            let size = |i: usize| list[i].as_u64().filter(|&n| n > 0);
            Some((size(0)?, size(1)?))
        };
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, "rows and columns of a block"))).transpose()
    }

    /// Refuses every key that was neither read nor is among `irrelevant`, which do not bear on what the weights are. A key
    /// whose value is null or empty says nothing.
    ///
    /// # Errors
    /// `quantisation-key-unknown`, for the first of them.
    pub fn finish(&self, irrelevant: &[&str]) -> Result<(), Diagnostic> {
        let read = self.read.borrow();
        let known = |k: &str| read.contains(&k) || irrelevant.contains(&k);
        let unknown = self.map.iter().find(|(k, v)| !known(k) && !is_empty(v));
        let Some((key, value)) = unknown else { return Ok(()) };
        Err(Diagnostic::input(
            "quantisation-key-unknown",
            format!("`{}` is {}, a key that moec does not know", self.path(key), shown(value)),
        )
        .note("it may change what the stored codes mean, so that the weights are not read")
        .help("take the key out if it does not bear on the weights, and tell the authors of moec"))
    }
}

/// Whether a value says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((at, _)) = text.char_indices().nth(60) {
        text.truncate(at);
        text.push('…');
    }
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_or_listed_or_refused() {
        let value = serde_json::json!({ "bits": "4", "note": 1, "axis": 0, "none": null });
        let keys = Keys::new(value.as_object().expect("object"), "q");
        assert_eq!(keys.whole("bits").expect("whole"), Some(4));
        assert_eq!(keys.whole("none").expect("null is absent"), None);
        let d = keys.finish(&["note"]).expect_err("axis");
        assert!(d.code == "quantisation-key-unknown" && d.message.contains("`q.axis` is `0`"), "{d:?}");
        assert!(keys.finish(&["note", "axis"]).is_ok());
        let empty = serde_json::json!({ "a": null, "b": {}, "c": [] });
        assert!(Keys::new(empty.as_object().expect("object"), "q").finish(&[]).is_ok());
        assert_eq!(keys.flag("note").expect_err("a number").code, "config-key-type");
    }
}
