//! `docs/bundle.md` says of every field of a manifest, and of every number that hosts need.

use moec_bundle::TargetFingerprint;
use moec_bundle::manifest::*;
use moec_ir::DType;
use moec_ir::abi::{BUFFER_ALIGN, CpuContext};
use moec_ir::graph::{Graph, Input, Param};
use moec_ir::numerics::{NumericClass, Numerics};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::*;
use moec_ir::weights::{WeightSource, WeightStep};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bundle.md")).expect("the page")
}

/// A manifest in which everything is there that can be.
fn everything() -> Manifest {
    let launch = GpuLaunch {
        grid: [Extent::fixed(1); 3],
        block_threads: 1,
        cluster: 1,
        dynamic_smem_bytes: 0,
        persistent: true,
        programmatic: true,
        tensor_maps: vec![TensorMap {
            operand: 0,
            elem: MapElem::U8,
            dims: vec![Dim::Fixed(1), Dim::PerToken(1)],
            strides: vec![16],
            box_dims: vec![16, 1],
            swizzle_bytes: 0,
        }],
    };
    let operand = Operand { buffer: BufferId(0), written: true, strided: true };
    let kernel = |launch| KernelEntry {
        name: "k".into(),
        entry: "k".into(),
        operands: vec![operand],
        class: NumericClass::Exact,
        tile: Some("map 1x1".into()),
        launch,
    };
    let roles = [
        Role::Input(0),
        Role::Output(0),
        Role::Weight(0),
        Role::WeightScale(0),
        Role::WeightGlobal(0),
        Role::Workspace,
        Role::Counter,
    ];
    let buffer =
        |role| Buffer { name: "b".into(), dtype: DType::F32, batch: 1, rows: Dim::Fixed(1), cols: 1, pitch: 1, role };
    let slice = WeightStep::Slice { axis: 0, start: 0, step: 1, len: 1, of: Some(1) };
    let steps = vec![WeightStep::Transpose, slice, WeightStep::Reshape { shape: vec![1] }];
    let sources = vec![
        WeightSource::Tensor { names: vec!["t".into()], steps: steps.clone() },
        WeightSource::PerExpert { names: vec!["t".into()], first: 1, count: 1, steps },
        WeightSource::LargestInputScale(Vec::new()),
    ];
    let ty = TensorType::new(DType::F32, [Dim::TOKENS, Dim::Fixed(1)]);
    let stored = QuantFormat { code: Code::Int4, scale: ScaleCode::F32, block_rows: 1, block_cols: 1 };
    let mut graph = Graph::default();
    graph.inputs.push(Input { name: "x".into(), ty: ty.clone() });
    graph.params.push(Param { name: "w".into(), ty, source: WeightSource::FirstOf(sources), stored: Some(stored) });
    let layer = LayerInfo { published_weights: Some("said".into()), ..LayerInfo::default() };
    let mut manifest = Manifest::of_graph(&graph, layer, Numerics::default());
    manifest.proof = Some("f".into());
    let gpu = kernel(Launch::Gpu { file: "f".into(), launch });
    let cpu = kernel(Launch::Cpu { launch: CpuLaunch { items: Extent::fixed(1), scratch_bytes: 0 } });
    manifest.targets.push(TargetEntry {
        name: "cpu".into(),
        requires: Vec::new(),
        object: Some("o".into()),
        fingerprint: Some(TargetFingerprint { version: 1, file: "f".into(), outputs: BTreeMap::new() }),
        variants: vec![Variant {
            name: "v".into(),
            tokens: TokenRange { min: 0, max: 1 },
            buffers: roles.map(buffer).to_vec(),
            kernels: vec![gpu, cpu],
            workspace: WorkspaceRule::Disjoint,
            tile_text: Some("t".into()),
        }],
    });
    manifest.files.insert("f".into(), FileInfo { bytes: 1, sha256: "0".into() });
    manifest
}

/// Keys of objects.
fn words(value: &serde_json::Value, out: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| {
            out.insert(k.clone());
            words(v, out);
        }),
        serde_json::Value::Array(list) => list.iter().for_each(|v| words(v, out)),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
        serde_json::Value::String(_) => {}
    }
}

#[test]
fn every_field_is_on_the_page() {
    let page = page();
    let mut found = BTreeSet::new();
    words(&serde_json::to_value(everything()).expect("JSON"), &mut found);
    assert!(found.len() > 50, "{found:?}");
    // Names of the sample's own.
    found.retain(|w| w != "f");
    let named = |w: &String| page.contains(&format!("`{w}`")) || page.contains(&format!("\"{w}\""));
    let missing: Vec<&String> = found.iter().filter(|w| !named(w)).collect();
    assert!(missing.is_empty(), "docs/bundle.md does not say what {missing:?} are");
}

#[test]
fn every_choice_and_number_is_on_the_page() {
    let page = page();
    let has = |text: String| assert!(page.contains(&text), "docs/bundle.md should have {text:?}");
    has(format!("other than {FORMAT};"));
    has(format!("format of this page: {FORMAT} |"));
    Code::ALL.iter().for_each(|c| has(format!("| `{}` |", c.name())));
    ScaleCode::ALL.iter().for_each(|s| has(format!("| `{}` |", s.name())));
    for s in ScaleCode::ALL {
        let row = page.lines().rfind(|l| l.starts_with(&format!("| `{}` |", s.name()))).expect("a row");
        assert!(row.ends_with(&format!("| `{}` |", s.dtype())), "{row}");
    }
    for elem in [MapElem::U8, MapElem::F16, MapElem::F32, MapElem::Bf16, MapElem::U4Padded] {
        let name = serde_json::to_value(elem).expect("JSON");
        has(format!("`{}` {} (", name.as_str().unwrap_or_default(), elem.driver_type()));
    }
    for rule in [WorkspaceRule::Disjoint, WorkspaceRule::Overlay] {
        has(format!("`{}`: ", serde_json::to_value(rule).expect("JSON").as_str().unwrap_or_default()));
    }
    for numerics in [Numerics::Bitwise, Numerics::BatchInvariant, Numerics::Deterministic, Numerics::Fast] {
        has(format!("`{}`", numerics.name()));
    }
    assert_eq!(BUFFER_ALIGN, 256, "the page says 256 bytes in several places");
    let offsets = [
        ("buffers", std::mem::offset_of!(CpuContext, buffers)),
        ("n_tokens", std::mem::offset_of!(CpuContext, n_tokens)),
        ("scratch", std::mem::offset_of!(CpuContext, scratch)),
        ("math", std::mem::offset_of!(CpuContext, math)),
        ("kernels", std::mem::offset_of!(CpuContext, kernels)),
        ("strides", std::mem::offset_of!(CpuContext, strides)),
    ];
    offsets.iter().for_each(|(name, at)| has(format!("| {at} | `{name}` |")));
    assert_eq!(offsets.len() * 8, size_of::<CpuContext>());
}

/// The page's formulas, which stand here as text and as code, against the code.
#[test]
fn formulas_are_those_of_the_page() {
    let page = page();
    for formula in [
        "extent(T) = max(min, mul · (ceil(per_token · T / div) + minimum(add, per_token · T)))",
        "if persistent:  x = minimum(x, maximum(1, floor(at_once / c)) · c)",
        "x = the next multiple of c",
    ] {
        assert!(page.contains(formula), "the page has another formula than `{formula}`");
    }
    for e in [Extent::tiles(3, 16, 5), Extent::grouped_tiles(2, 8, 7, 3), Extent::fixed(9)] {
        for t in [0u64, 1, 5, 64, 1000] {
            let rows = e.per_token * t;
            let want = e.min.max(e.mul * (rows.div_ceil(e.div) + e.add.min(rows)));
            assert_eq!(e.at(t), want);
        }
    }
    let launch = |persistent, cluster| GpuLaunch {
        grid: [Extent::tiles(1, 1, 1), Extent::fixed(1), Extent::fixed(1)],
        block_threads: 32,
        cluster,
        dynamic_smem_bytes: 0,
        persistent,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    for (c, at_once) in [(1u32, 132u64), (2, 132), (4, 130), (8, 3)] {
        for t in [1u64, 7, 131, 1000] {
            let c64 = u64::from(c);
            let x = t.min((at_once / c64).max(1) * c64).next_multiple_of(c64);
            assert_eq!(launch(true, c).blocks(t, at_once)[0], x);
            assert_eq!(launch(false, c).blocks(t, at_once)[0], t.next_multiple_of(c64));
        }
    }
}
