//! What transformers assumes where a config leaves a key out, and under which other names it takes keys.

mod names;
mod values;

use names::NAMES;
use values::VALUES;

/// A default value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number, not negative.
    Whole(u64),
    /// A number.
    Real(f32),
    /// A switch.
    Flag(bool),
    /// A word.
    Word(&'static str),
}

/// The default of `key` for a model type.
pub fn default_of(model_type: &str, key: &str) -> Option<Value> {
    let (_, defaults) = VALUES.iter().find(|(k, _)| *k == key)?;
    defaults.iter().find(|(_, types)| lists(types, model_type)).map(|(value, _)| *value)
}

/// The other names of `key` in configs of a model type, of which transformers takes each for the other.
pub fn other_names(model_type: &str, key: &str) -> impl Iterator<Item = &'static str> {
    let pairs = NAMES.iter().filter(move |(_, _, types)| lists(types, model_type));
    pairs.filter_map(move |&(a, b, _)| if a == key { Some(b) } else { (b == key).then_some(a) })
}

/// Whether `model_type` is one of the words of `types`.
fn lists(types: &str, model_type: &str) -> bool {
    types.split_whitespace().any(|t| t == model_type)
}
