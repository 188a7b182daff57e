//! Random changes, without end: the n-th depends on the seed and n only.

use super::systematic::TYPES;
use super::{Case, Stored, Tensors};
use moec::Random;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The numbers that belong to the `n`-th change of `seed`.
pub struct Draw(Random);

impl Draw {
    /// The same for the same two.
    pub fn new(seed: u64, n: u64) -> Draw {
        Draw(Random::new(seed, &n.to_string()))
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.bits() % n as u64) as usize
    }

    /// One of `items`, which are not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// One change.
pub enum Change {
    /// The tensors are these.
    Tensors(Tensors),
    /// The config in this file is this.
    Config(String, Value),
}

/// Keys and values of all configs, from which changes of one are drawn.
pub struct Words {
    keys: Vec<String>,
    values: Vec<Value>,
}

impl Words {
    /// Those of the quantisation in all configs.
    pub fn of(cases: &[Case]) -> Words {
        let (mut keys, mut values) = (BTreeSet::new(), BTreeMap::new());
        for config in cases.iter().flat_map(|c| c.configs.iter()).filter_map(quantisation) {
            gather(config, &mut keys, &mut values);
        }
        for strange in
            [json!(null), json!(-1), json!(0), json!(1), json!(2), json!(0.5), json!(true), json!(false), json!("")]
        {
            values.insert(strange.to_string(), strange);
        }
        Words { keys: keys.into_iter().collect(), values: values.into_values().collect() }
    }
}

/// The part of a config that is about quantisation.
fn quantisation<'a>((file, config): (&'a String, &'a Value)) -> Option<&'a Value> {
    if file == "config.json" { config.get("quantization_config") } else { Some(config) }
}

fn gather(v: &Value, keys: &mut BTreeSet<String>, values: &mut BTreeMap<String, Value>) {
    values.insert(v.to_string(), v.clone());
    match v {
        Value::Object(map) => {
            keys.extend(map.keys().cloned());
            map.values().for_each(|v| gather(v, keys, values));
        }
        Value::Array(list) => list.iter().for_each(|v| gather(v, keys, values)),
        _ => {}
    }
}

/// A change of one thing in a case, and what it is in words.
pub fn change(r: &mut Draw, case: &Case, words: &Words) -> (String, Change) {
    let files: Vec<&String> = case.configs.iter().filter(|c| quantisation(*c).is_some()).map(|(f, _)| f).collect();
    if !files.is_empty() && r.below(3) == 0 {
        let file = (*r.pick(&files)).clone();
        let mut config = case.configs[&file].clone();
        let place = if file == "config.json" { config.get_mut("quantization_config").unwrap() } else { &mut config };
        let what = document(r, place, words, String::new());
        return (format!("{file}: {what}"), Change::Config(file, config));
    }
    let (what, tensors) = tensor(r, &case.tensors, &case.layer_prefix());
    (what, Change::Tensors(tensors))
}

/// Changes one place in a document.
fn document(r: &mut Draw, value: &mut Value, words: &Words, path: String) -> String {
    // Down, with a good chance to stop where there is something below.
    let deeper = r.below(3) > 0;
    match value {
        Value::Object(map) if !map.is_empty() && deeper => {
            let at = r.below(map.len());
            let (key, inner) = map.iter_mut().nth(at).unwrap();
            let path = format!("{path}/{key}");
            document(r, inner, words, path)
        }
        Value::Array(list) if !list.is_empty() && deeper => {
            let at = r.below(list.len());
            let path = format!("{path}/{at}");
            document(r, &mut list[at], words, path)
        }
        Value::Object(map) => {
            let old = (!map.is_empty()).then(|| map.keys().nth(r.below(map.len())).unwrap().clone());
            match (r.below(4), old) {
                (0, Some(key)) => {
                    map.remove(&key);
                    format!("drop {path}/{key}")
                }
                (1, Some(key)) => {
                    let (value, new) = (map.remove(&key).unwrap(), r.pick(&words.keys).clone());
                    let what = format!("rename {path}/{key} to {new}");
                    map.insert(new, value);
                    what
                }
                _ => {
                    let (key, value) = (r.pick(&words.keys).clone(), r.pick(&words.values).clone());
                    let what = format!("insert {path}/{key}: {value}");
                    map.insert(key, value);
                    what
                }
            }
        }
        Value::Array(list) if r.below(2) == 0 => {
            if !list.is_empty() && r.below(2) == 0 {
                let at = r.below(list.len());
                format!("drop {path}/{at}: {}", list.remove(at))
            } else {
                list.push(r.pick(&words.values).clone());
                format!("append {} to {path}", list[list.len() - 1])
            }
        }
        Value::Number(n) if r.below(2) == 0 => {
            let n = n.as_i64().unwrap_or(7);
            let new = json!(*r.pick(&[-n, n + 1, n - 1, n * 2, n / 2, 0]));
            *value = new;
            format!("set {path} to {value}")
        }
        Value::Bool(b) if r.below(2) == 0 => {
            *b = !*b;
            format!("set {path} to {b}")
        }
        _ => {
            *value = r.pick(&words.values).clone();
            format!("set {path} to {value}")
        }
    }
}

/// Changes one tensor of the layer.
fn tensor(r: &mut Draw, tensors: &Tensors, layer: &str) -> (String, Tensors) {
    let names: Vec<&String> = tensors.keys().filter(|n| n.starts_with(layer)).collect();
    let name = (*r.pick(&names)).clone();
    let stored = &tensors[&name];
    let mut all = tensors.clone();
    let width = stored.bytes.len() as u64 / stored.shape.iter().product::<u64>().max(1);
    let kind = r.below(9);
    if kind != 2 {
        all.remove(&name);
    }
    let (what, new) = match kind {
        0 => (format!("drop {name}"), None),
        1 => {
            let to = other_name(r, &name, &names);
            // In the place of another tensor it would be that tensor with other values.
            if all.contains_key(&to) {
                (format!("drop {name}"), None)
            } else {
                (format!("rename {name} to {to}"), Some((to, stored.clone())))
            }
        }
        // A second tensor, under a name that something may look for first.
        2 => {
            let to = other_name(r, &name, &names);
            if all.contains_key(&to) {
                // Another tensor's values there are another checkpoint.
                (format!("drop {name}"), all.remove(&name).and(None))
            } else {
                (format!("copy {name} to {to}"), Some((to, stored.clone())))
            }
        }
        3 | 4 => {
            // A float that is read as one of another type is another float: nothing can tell.
            let float = matches!(&*stored.dtype, "BF16" | "F16" | "F32" | "F64");
            let scale = is_scale(&name);
            let takes = |t: &str, w: usize| {
                let plain = float && matches!(t, "BF16" | "F16" | "F32" | "F64");
                t != stored.dtype && (!plain || scale && w as u64 == width)
            };
            let types: Vec<&(&str, usize)> = TYPES.iter().filter(|(t, w)| takes(t, *w)).collect();
            let (dtype, w) = *r.pick(&types);
            // The same bytes as more or fewer elements of the last dimension, or the bytes that the shape then needs.
            let mut shape = stored.shape.clone();
            let mut bytes = stored.bytes.clone();
            let divides = |last: u64| (last * width).is_multiple_of(*w as u64);
            if let Some(last) = shape.last_mut().filter(|l| *w as u64 != width && divides(**l))
                && r.below(2) == 0
            {
                *last = *last * width / *w as u64;
            }
            bytes.resize(shape.iter().product::<u64>() as usize * w, 0);
            (
                format!("retype {name} to {dtype} {shape:?}"),
                Some((name, Stored { dtype: dtype.to_string(), shape, bytes })),
            )
        }
        5 | 6 => {
            let shape = other_shape(r, &stored.shape);
            let mut bytes = stored.bytes.clone();
            bytes.resize((shape.iter().product::<u64>() * width) as usize, 0);
            (format!("reshape {name} to {shape:?}"), Some((name, Stored { shape, bytes, ..stored.clone() })))
        }
        _ => {
            let bad = bad_values(&stored.dtype);
            if !is_scale(&name) || bad.is_empty() || stored.bytes.is_empty() {
                (format!("drop {name}"), None)
            } else {
                let value = r.pick(bad);
                let at = r.below(stored.bytes.len() / value.len());
                let mut bytes = stored.bytes.clone();
                bytes[at * value.len()..][..value.len()].copy_from_slice(value);
                (format!("set {name}[{at}] to {value:x?}"), Some((name, Stored { bytes, ..stored.clone() })))
            }
        }
    };
    all.extend(new);
    (what, all)
}

fn is_scale(name: &str) -> bool {
    name.contains("scale") && !name.contains("input") && !name.contains("pre_quant")
}

/// Values that no quantiser writes as a scale. Signs are left alone: in AutoRound's integers either is valid.
fn bad_values(dtype: &str) -> &'static [&'static [u8]] {
    match dtype {
        "F32" => &[&[0, 0, 0, 0], &[0, 0, 0, 0x80], &[0, 0, 0x80, 0x7f], &[0, 0, 0xc0, 0x7f], &[0, 0, 0x80, 0xff]],
        "BF16" => &[&[0, 0], &[0, 0x80], &[0x80, 0x7f], &[0xc0, 0x7f], &[0x80, 0xff]],
        "F16" => &[&[0, 0], &[0, 0x80], &[0, 0x7c], &[0, 0x7e], &[0, 0xfc]],
        "F8_E4M3" => &[&[0], &[0x80], &[0x7f], &[0xff]],
        "U8" | "F8_E8M0" => &[&[0xff]],
        _ => &[],
    }
}

/// Another name: a part of the name of a sibling, a typing error, an expert that is not there.
fn other_name(r: &mut Draw, name: &str, names: &[&String]) -> String {
    let (stem, _) = name.rsplit_once('.').unwrap_or((name, ""));
    match r.below(5) {
        0 => format!("{name}_x"),
        1 => {
            let other = r.pick(names).rsplit_once('.').map_or("weight", |(_, last)| last).to_string();
            if other == name[stem.len()..].trim_start_matches('.') {
                format!("{name}.x")
            } else {
                format!("{stem}.{other}")
            }
        }
        2 => {
            let lasts =
                ["weight", "weight_packed", "weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx"];
            let last = *r.pick(&lasts);
            if name.ends_with(&format!(".{last}")) { format!("{name}_1") } else { format!("{stem}.{last}") }
        }
        3 => name.replacen("experts.0.", "experts.900.", 1) + if name.contains("experts.0.") { "" } else { "_y" },
        _ => format!("x.{name}"),
    }
}

/// Another shape: axes exchanged, flattened, one more, a row more or less, a factor moved.
fn other_shape(r: &mut Draw, shape: &[u64]) -> Vec<u64> {
    let mut new = shape.to_vec();
    let at = if new.is_empty() { 0 } else { r.below(new.len()) };
    match r.below(6) {
        0 if new.len() >= 2 => {
            let other = r.below(new.len());
            new.swap(at, other);
        }
        1 => new = vec![shape.iter().product()],
        2 => new.insert(at, 1),
        3 if !new.is_empty() => new[at] += 1,
        4 if !new.is_empty() && new[at] > 1 => new[at] -= 1,
        _ if new.len() >= 2 && new[at].is_multiple_of(2) => {
            new[at] /= 2;
            let other = (at + 1) % new.len();
            new[other] *= 2;
        }
        _ => new.push(1),
    }
    new
}
