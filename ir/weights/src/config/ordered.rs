//! JSON whose objects of rules keep the order of their members: the first rule that takes a module counts.
//!
//! `serde_json` sorts members by name. Objects under the keys of [`RULES`] become lists of pairs instead, `[[name, value], …]`, which
//! also survive in a bundle.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Keys whose objects are rules in an order: groups of compressed-tensors, exceptions of GPTQModel, AutoRound and Quark.
pub const RULES: &[&str] = &["config_groups", "dynamic", "extra_config", "layer_quant_config", "quantized_layers"];

/// The members of an object in the order in which they stand, as the value of `key`.
pub fn members(key: &str, members: Vec<(String, Value)>) -> Value {
    if RULES.contains(&key) {
        return Value::Array(members.into_iter().map(|(k, v)| Value::Array(vec![Value::String(k), v])).collect());
    }
    Value::Object(members.into_iter().collect::<Map<_, _>>())
}

/// Reads a text; objects of rules become lists of pairs.
///
/// # Errors
/// Text that is no JSON, or an object with a key twice: which of them counts is not knowable.
pub(super) fn read(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Ordered>(text).map(|o| o.value(""))
}

enum Ordered {
    Plain(Value),
    List(Vec<Ordered>),
    Members(Vec<(String, Ordered)>),
}

impl Ordered {
    fn value(self, key: &str) -> Value {
        match self {
            Ordered::Plain(v) => v,
            Ordered::List(list) => Value::Array(list.into_iter().map(|v| v.value("")).collect()),
            Ordered::Members(all) => {
                let all = all.into_iter().map(|(k, v)| {
                    let value = v.value(&k);
                    (k, value)
                });
                members(key, all.collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Ordered, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Ordered;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_bool<E: Error>(self, v: bool) -> Result<Ordered, E> {
                Ok(Ordered::Plain(v.into()))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Ordered, E> {
                Ok(Ordered::Plain(v.into()))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Ordered, E> {
                Ok(Ordered::Plain(v.into()))
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Ordered, E> {
                Ok(Ordered::Plain(v.into()))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Ordered, E> {
                Ok(Ordered::Plain(v.into()))
            }
            fn visit_unit<E: Error>(self) -> Result<Ordered, E> {
                Ok(Ordered::Plain(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ordered, A::Error> {
                let mut list = Vec::new();
                while let Some(v) = seq.next_element()? {
                    list.push(v);
                }
                Ok(Ordered::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let (mut all, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
                while let Some((k, v)) = map.next_entry::<String, Ordered>()? {
                    if !seen.insert(k.clone()) {
                        return Err(A::Error::custom(format!("the key `{k}` occurs twice")));
                    }
                    all.push((k, v));
                }
                Ok(Ordered::Members(all))
            }
        }
        d.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_keep_their_order_and_keys_occur_once() {
        let value = read(br#"{ "q": { "dynamic": { "b": { "z": 1, "a": 2 }, "a": {} } } }"#).expect("JSON");
        assert_eq!(value, serde_json::json!({ "q": { "dynamic": [["b", { "z": 1, "a": 2 }], ["a", {}]] } }));
        assert!(read(br#"{ "bits": 4, "bits": 8 }"#).expect_err("twice").to_string().contains("`bits` occurs twice"));
    }
}
