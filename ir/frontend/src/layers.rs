//! Which layers of a model are MoE layers.

use crate::json::Json;
use crate::keys::Keys;
use std::collections::BTreeSet;

/// Every layer.
pub fn all(c: &Keys) -> Vec<u32> {
    (0..c.n_layers()).collect()
}

/// The rule of DeepSeek and its many relatives: `mlp_layer_types` decides where there is one, then a 0/1 list in
/// `moe_layer_freq`; otherwise all layers from `first_k_dense_replace` on whose number `moe_layer_freq` divides.
pub fn after_first_dense(c: &Keys, default_first: u64) -> Vec<u32> {
    let n = c.n_layers();
    if let Some(layers) = from_types(c, "mlp_layer_types", n) {
        return layers;
    }
    let freq = c.text.get("moe_layer_freq");
    if let Some(list) = freq.filter(|v| v.is_list()) {
        return from_mask(c, list, n);
    }
    let freq = c.size_or(&["moe_layer_freq"], 1, u64::from(u32::MAX)).max(1) as u32;
    let first = c.size_or(&["first_k_dense_replace"], default_first, u64::from(u32::MAX)) as u32;
    (0..n).filter(|&i| i >= first && i.is_multiple_of(freq)).collect()
}

/// The rule of the Qwen line: every `decoder_sparse_step`-th layer that is not in `mlp_only_layers`.
pub fn by_sparse_step(c: &Keys) -> Vec<u32> {
    let n = c.n_layers();
    if let Some(layers) = from_types(c, "mlp_layer_types", n) {
        return layers;
    }
    let step = c.size_or(&["decoder_sparse_step"], 1, u64::from(u32::MAX)) as u32;
    let dense = numbers(c, "mlp_only_layers");
    (0..n).filter(|i| step > 0 && (i + 1).is_multiple_of(step) && !dense.contains(i)).collect()
}

/// Layers whose entry in the list of words `key` is one of the MoE words; `None` when there is no such list.
pub fn from_types(c: &Keys, key: &str, n_layers: u32) -> Option<Vec<u32>> {
    let node = c.text.get(key)?;
    let list = match node.list() {
        Ok(list) => list,
        Err(d) => {
            c.problem(d);
            return Some(Vec::new());
        }
    };
    if list.len() != n_layers as usize {
        c.problem(
            node.out_of_range(&format!(
                "a list with one entry for each of the {n_layers} layers; it has {}",
                list.len()
            )),
        );
        return Some(Vec::new());
    }
    let mut layers = Vec::new();
    for (i, v) in (0u32..).zip(&list) {
        match v.string() {
            Ok(word) if matches!(word.as_str(), "sparse" | "moe" | "hash_moe" | "E") => layers.push(i),
            Ok(_) => {}
            Err(d) => c.problem(d),
        }
    }
    Some(layers)
}

/// Layers whose entry in a 0/1 list is not 0.
pub fn from_mask(c: &Keys, list: &Json, n_layers: u32) -> Vec<u32> {
    let mut layers = Vec::new();
    let entries = list.list().unwrap_or_default();
    if entries.len() < n_layers as usize {
        c.problem(list.out_of_range(&format!(
            "a list with one entry for each of the {n_layers} layers; it has {}",
            entries.len()
        )));
    }
    for (i, v) in (0..n_layers).zip(&entries) {
        match v.flag().or_else(|_| v.whole(0..=1).map(|n| n == 1)) {
            Ok(true) => layers.push(i),
            Ok(false) => {}
            Err(d) => c.problem(d),
        }
    }
    layers
}

/// Layers from `key` on, whose default is `default`; `mlp_layer_types` decides where there is one.
pub fn from_number(c: &Keys, key: &str, default: u64) -> Vec<u32> {
    let n = c.n_layers();
    from_types(c, "mlp_layer_types", n)
        .unwrap_or_else(|| (c.size_or(&[key], default, u64::from(u32::MAX)) as u32..n).collect())
}

/// The layer numbers in the list `key`, ascending; empty when it is absent.
pub fn numbers(c: &Keys, key: &str) -> BTreeSet<u32> {
    let Some(node) = c.text.get(key) else { return BTreeSet::new() };
    let list = node.list().unwrap_or_else(|d| {
        c.problem(d);
        Vec::new()
    });
    let mut out = BTreeSet::new();
    for v in &list {
        match v.whole(0..=u64::from(u32::MAX)) {
            Ok(n) => {
                out.insert(n as u32);
            }
            Err(d) => c.problem(d),
        }
    }
    out
}

/// Layer numbers as ranges: `3-60`, `0, 2, 4-7`.
pub fn ranges(layers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &l in layers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == l => *end = l,
            _ => parts.push((l, l)),
        }
    }
    let text = |&(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs_of_layers_are_shown_as_ranges() {
        assert_eq!(super::ranges(&[0, 2, 3, 4, 9]), "0, 2-4, 9");
        assert_eq!(super::ranges(&[]), "");
    }
}
