//! The names of single experts' Linears, for families that publish all experts in one tensor.
//!
//! Tools that quantise one Linear after the other take such tensors apart first: llm-compressor, ModelOpt and GPTQModel
//! write `gate_proj`, `up_proj` and `down_proj` below the number of the expert, where the stacked tensors were.

use crate::layout::GATE_UP_DOWN;
use crate::spec::MoeSpec;
use moec_ir::weights::WeightSource;

/// `spec`, whose experts may also be stored one by one.
pub(crate) fn or_single_experts(mut spec: MoeSpec) -> MoeSpec {
    let count = spec.n_experts;
    let [gate, up, down] = GATE_UP_DOWN;
    let e = &mut spec.experts;
    for (source, matrix) in [(&mut e.gate, gate), (&mut e.up, up), (&mut e.down, down)] {
        also_single(source, &["gate_up_proj", "up_proj", "down_proj"], &format!("{matrix}.weight"), count);
    }
    if let Some(biases) = &mut e.biases {
        for (source, matrix) in [(&mut biases.gate, gate), (&mut biases.up, up), (&mut biases.down, down)] {
            also_single(source, &["gate_up_proj_bias", "down_proj_bias"], &format!("{matrix}.bias"), count);
        }
    }
    spec
}

/// Looks for one `tensor` per expert, too, beside the stacked tensors that `source` names.
fn also_single(source: &mut WeightSource, stacks: &[&str], tensor: &str, count: u64) {
    let (mut stems, mut known) = (Vec::new(), Vec::new());
    collect(source, stacks, &mut stems, &mut known);
    let mut names: Vec<String> = stems.iter().map(|stem| format!("{stem}.{{e}}.{tensor}")).collect();
    names.retain(|n| !known.contains(n));
    if names.is_empty() {
        return;
    }
    let single = WeightSource::PerExpert { names, first: 0, count, steps: Vec::new() };
    match source {
        WeightSource::FirstOf(list) => list.push(single),
        s => *s = WeightSource::FirstOf(vec![s.clone(), single]),
    }
}

/// The modules that hold stacked tensors, and the names of single ones that are known already.
fn collect(source: &WeightSource, stacks: &[&str], stems: &mut Vec<String>, known: &mut Vec<String>) {
    match source {
        WeightSource::Tensor { names, .. } => {
            for name in names {
                let stem = name.rsplit_once('.').filter(|(stem, last)| {
                    stacks.contains(last) && (stem.ends_with("experts") || stem.ends_with("moe"))
                });
                stems.extend(stem.map(|(stem, _)| stem.to_string()).filter(|s| !stems.contains(s)));
            }
        }
        WeightSource::PerExpert { names, .. } => known.extend(names.iter().cloned()),
        WeightSource::FirstOf(list) => list.iter().for_each(|s| collect(s, stacks, stems, known)),
        WeightSource::LargestInputScale(_) => {}
    }
}
