//! Random changes of JSON documents and of bytes.

use serde_json::{Map, Value, json};

/// Pseudo-random numbers (SplitMix64).
pub struct Random(u64);

impl Random {
    /// The numbers that belong to `seed` and `n`.
    pub fn new(seed: u64, n: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % (n.max(1) as u64)) as usize
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Changes a document in one to four places; `other` gives parts to copy.
pub fn document(r: &mut Random, value: &mut Value, other: &Value, words: &[String]) {
    for _ in 0..=r.below(4) {
        let steps = r.below(5);
        change(r, value, other, words, steps);
    }
}

fn change(r: &mut Random, value: &mut Value, other: &Value, words: &[String], steps: usize) {
    // Walks down a random path, then changes what is there.
    if steps > 0 {
        match value {
            Value::Object(map) if !map.is_empty() => {
                let at = r.below(map.len());
                if let Some(inner) = map.values_mut().nth(at) {
                    return change(r, inner, other, words, steps - 1);
                }
            }
            Value::Array(list) if !list.is_empty() => {
                let at = r.below(list.len());
                return change(r, &mut list[at], other, words, steps - 1);
            }
            _ => {}
        }
    }
    match value {
        Value::Object(map) => object(r, map, other, words),
        Value::Array(list) => match r.below(5) {
            0 => list.clear(),
            1 => list.truncate(r.below(list.len())),
            2 => list.push(strange(r, words)),
            3 => list.extend(list.first().cloned().into_iter().cycle().take(r.below(300)).collect::<Vec<_>>()),
            _ => *value = strange(r, words),
        },
        Value::Number(n) if r.below(2) == 0 => {
            let n = n.as_i64().unwrap_or(7);
            *value = json!(match r.below(6) {
                0 => n.wrapping_neg(),
                1 => n.wrapping_add(1),
                2 => n.wrapping_sub(1),
                3 => n.wrapping_mul(2),
                4 => n / 2,
                _ => 0,
            });
        }
        _ => *value = strange(r, words),
    }
}

fn object(r: &mut Random, map: &mut Map<String, Value>, other: &Value, words: &[String]) {
    let at = r.below(map.len());
    let key = map.keys().nth(at).cloned().unwrap_or_default();
    match r.below(6) {
        0 => {
            map.remove(&key);
        }
        1 => {
            let value = map.remove(&key).unwrap_or(Value::Null);
            map.insert(r.pick(words).clone(), value);
        }
        2 => {
            map.insert(r.pick(words).clone(), strange(r, words));
        }
        3 => {
            if let Value::Object(theirs) = other {
                let at = r.below(theirs.len());
                map.extend(theirs.iter().nth(at).map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        4 => {
            let value = map.get(&key).cloned().unwrap_or(Value::Null);
            map.insert(key, json!([value]));
        }
        _ => {
            map.insert(key, strange(r, words));
        }
    }
}

/// A value that something may not expect.
fn strange(r: &mut Random, words: &[String]) -> Value {
    match r.below(20) {
        // Rarely something long, to see what each element costs.
        0 if r.below(20) == 0 => json!(vec![0; r.below(20_000)]),
        1 if r.below(20) == 0 => (0..r.below(4_000)).map(|n| (n.to_string(), json!(0))).collect(),
        0 => Value::Null,
        1 => json!(r.below(2) == 0),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(1),
        5 => json!(r.below(4096)),
        6 => json!(1u64 << r.below(64)),
        7 => json!(u64::MAX),
        8 => json!(i64::MIN),
        9 => json!(1e308),
        10 => json!(-1e-308),
        11 => json!(0.5),
        12 => json!(""),
        13 => json!(r.pick(words)),
        14 => json!("é\u{0}\"\\".repeat(r.below(40))),
        15 => json!([]),
        16 => json!({}),
        17 => json!(vec![r.below(9); r.below(200)]),
        18 => json!(vec![r.pick(words).clone(); r.below(80)]),
        _ => (0..r.below(150)).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// Changes bytes in one to eight places.
pub fn bytes(r: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..=r.below(8) {
        let at = r.below(data.len());
        match r.below(6) {
            0 if !data.is_empty() => data[at] ^= 1 << r.below(8),
            1 if !data.is_empty() => data[at] = r.next() as u8,
            2 => data.truncate(at),
            3 => {
                let piece: Vec<u8> = (0..r.below(9)).map(|_| *r.pick(b"{}[]\",:019eE-.nutf\\\0\xff")).collect();
                data.splice(at..at, piece);
            }
            4 => {
                let end = (at + r.below(40)).min(data.len());
                data.drain(at..end);
            }
            _ => {
                let end = (at + r.below(40)).min(data.len());
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
}
