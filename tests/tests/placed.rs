//! Layers whose tokens and experts are spread over ranks have the bits that they have on one.

use moec::ranks::split_evenly;
use moec::{Checkpoint, DType, Model, ModelLayer, Placement, Spread, Weights, compile_placed};
use moec_ir::graph::{Wire, round_on_wire};
use moec_tests::placed::{Recorded, alone, assert_same, folder, in_bf16, n_experts, recorded, request, together};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// On `ranks` ranks the layer has the bits that it has on one, whoever has how many tokens. The programs are compiled once.
fn has_the_same_bits(r: &Recorded, ranks: &[u32], what: &str) {
    let want = alone(r, &r.inputs);
    let n_tokens = r.inputs[0].1.shape[0];
    let map = |n: u32| Placement::even(n_experts(&r.layer), n).expect("a map");
    let n_local = ranks.iter().map(|&n| map(n).most_local()).max().expect("some ranks");
    let placed = Arc::new(compile_placed(&request(&r.layer), &Spread::new(n_local), &mut |_| {}).expect(what));
    let weights = Weights::Checkpoint(r.weights.clone());
    for &n in ranks {
        let counts = split_evenly(n_tokens, n);
        let (got, _) = together(&placed, &weights, &map(n), &r.inputs, &counts).expect(what);
        assert_same(&got, &want, &format!("{what}, {n} ranks"));
        if let Some(golden) = &r.golden {
            let tolerance = if golden.dtype == DType::F32 { 1e-5 } else { 1e-2 };
            let error = got[0].1.relative_error(golden);
            assert!(error < tolerance, "{what}: {error:.2e} from what transformers computed");
        }
    }
}

/// The same with the matrices of experts cut over groups of ranks; false when the layer's experts cannot be cut so.
fn has_the_same_bits_cut(r: &Recorded, (n_groups, n_members): (u32, u32), what: &str) -> bool {
    let map = Placement::even(n_experts(&r.layer), n_groups).expect("a map");
    let spread = Spread { n_members, ..Spread::new(map.most_local()) };
    let placed = match compile_placed(&request(&r.layer), &spread, &mut |_| {}) {
        Ok(placed) => Arc::new(placed),
        Err(d) => {
            assert!(d.code == "layer-not-placeable" && d.message.contains("cannot be cut"), "{what}: {d}");
            return false;
        }
    };
    let n_tokens = r.inputs[0].1.shape[0];
    let counts = split_evenly(n_tokens, n_groups * n_members);
    let (got, _) = together(&placed, &Weights::Checkpoint(r.weights.clone()), &map, &r.inputs, &counts).expect(what);
    assert_same(&got, &alone(r, &r.inputs), &format!("{what}, {n_groups} groups of {n_members}"));
    true
}

/// Widths that do not divide, blocks that share scales, codes that are parted: columns have the bits that they have together.
#[test]
fn experts_that_are_cut_over_groups_of_ranks_have_the_same_bits() {
    let mut cut = 0;
    for (dir, number) in checkpoints() {
        let what = format!("{} layer {number}", dir.file_name().unwrap_or_default().display());
        cut += u32::from(has_the_same_bits_cut(&recorded(&dir, number), (2, 3), &what));
    }
    assert!(cut >= 30, "{cut}");
    let mut refused = Vec::new();
    for family in moec_tests::recorded::families() {
        let what = format!("{} in bf16", family.family);
        if !has_the_same_bits_cut(&in_bf16(&family.dir, family.layer), (2, 2), &what) {
            refused.push(family.family);
        }
    }
    assert!(refused == ["muse_spark"], "{refused:?}");
}

fn checkpoints() -> Vec<(PathBuf, u32)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder("")).expect("folder") {
        let dir = entry.expect("entry").path();
        let recorded = (0..8).filter(|l| dir.join(format!("golden.layer{l}.safetensors")).exists());
        out.extend(recorded.map(|l| (dir.clone(), l)));
    }
    out.sort();
    out
}

/// The published checkpoints: bf16, and the formats of quantised weights.
#[test]
fn every_checkpoint_has_the_same_bits_on_two_three_and_four_ranks() {
    let all = checkpoints();
    assert!(all.len() >= 30, "{}", all.len());
    for (dir, number) in all {
        let what = format!("{} layer {number}", dir.file_name().unwrap_or_default().display());
        has_the_same_bits(&recorded(&dir, number), &[2, 3, 4], &what);
    }
}

#[test]
fn every_family_in_bf16_has_the_same_bits_on_two_three_and_four_ranks() {
    let families = moec_tests::recorded::families();
    assert!(families.len() >= 70);
    for family in families {
        has_the_same_bits(&in_bf16(&family.dir, family.layer), &[2, 3, 4], &format!("{} in bf16", family.family));
    }
}

/// Codes and scales of a rank's experts are those of the whole layer: one format for each family, by turns.
#[test]
fn every_family_with_quantised_weights_has_the_same_bits_on_three_ranks() {
    use moec_tests::quantised::{self, Published};
    let formats = [Published::Fp8Block, Published::Mxfp4, Published::Nvfp4, Published::Int4, Published::Mxfp8];
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("placed");
    let (mut n, mut none) = (0, Vec::new());
    for (i, family) in moec_tests::recorded::families().into_iter().enumerate() {
        let dir = |what: &str| scratch.join(format!("{}-{}.{what}", family.family, family.layer));
        let (wide, coded, floats) = (dir("wide"), dir("coded"), dir("floats"));
        let inputs = moec_tests::wide::write(&family, &wide).expect("a wide form");
        let open = |dir: &Path| Model::open(dir).expect("model").layer_as(Some(family.layer), Some(DType::F32));
        let format = formats[i % formats.len()];
        let n_quantised = quantised::write(&wide, &open(&wide).expect("layer").graph, format, &coded, &floats);
        if n_quantised == 0 {
            none.push(family.family);
            continue;
        }
        let layer = open(&coded).expect("a quantised layer");
        let named = layer.graph.inputs.iter().map(|i| i.name.clone()).zip(inputs).collect();
        let weights = Arc::new(Checkpoint::open(&coded).expect("checkpoint"));
        let r = Recorded { layer, inputs: named, golden: None, weights };
        has_the_same_bits(&r, &[3], &format!("{} as {}", family.family, format.name()));
        n += 1;
    }
    let _ = std::fs::remove_dir_all(scratch);
    assert!(n >= 60, "{n}; nothing to quantise in {none:?}");
}

#[test]
fn a_wire_of_codes_computes_the_layer_that_rounds_so() {
    let r = recorded(&folder("qwen3_moe.bf16"), 0);
    let map = Placement::even(n_experts(&r.layer), 3).expect("a map");
    for name in ["fp8-token", "fp8-block", "mxfp8", "mxfp4", "nvfp4"] {
        let wire = Wire::Codes(moec_ir::ActQuant::from_name(name).expect("a format"));
        let rounded = ModelLayer { graph: round_on_wire(&r.layer.graph, wire).expect("rounds"), ..r.layer.clone() };
        let r = Recorded { layer: rounded, ..recorded(&folder("qwen3_moe.bf16"), 0) };
        let want = alone(&r, &r.inputs);
        let placed = compile_placed(&request(&r.layer), &Spread::new(map.most_local()), &mut |_| {}).expect(name);
        let weights = Weights::Checkpoint(r.weights.clone());
        let n = r.inputs[0].1.shape[0];
        let (got, _) = together(&Arc::new(placed), &weights, &map, &r.inputs, &[n - 1, 0, 1]).expect(name);
        assert_same(&got, &want, name);
    }
}
