//! The layer as written, rewritten, unfused and fused gives the same result.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::expr::Real;
use moec_ir::graph::{self, Graph};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tensor::Tensor;
use moec_ir::tile::{self, Body};
use moec_ir::{ActQuant, Activation, DType, Numerics};
use moec_passes::verify::layers::{Layer, deepseek, plain, tensors};
use moec_passes::{CompileOptions, Fingerprint, Variant, compile};

fn variants(graph: &Graph, opt_level: u8, numerics: Numerics) -> Vec<Variant> {
    let target = Target::by_name("sm_100f").unwrap();
    compile(graph, target, &CompileOptions { opt_level, numerics, ..CompileOptions::default() }).unwrap()
}

fn layers() -> Vec<Layer> {
    let mut list = Vec::new();
    for d in [DType::F32, DType::BF16] {
        list.push(plain(d));
        list.push(deepseek(d));
        list.push(Layer {
            bias: true,
            act: Activation::SwiGluOai { alpha: Real(1.702), limit: Real(0.7) },
            ..plain(d)
        });
        list.push(Layer { shared: Some(12), shared_gate: true, ..plain(d) });
        list.push(Layer { act: Activation::Relu2, ..deepseek(d) });
        list.push(Layer { top_k: 6, scale: 3.0, ..plain(d) });
        list.push(Layer { experts: 1, top_k: 1, hidden: 5, ffn: 3, ..plain(d) });
    }
    list
}

fn same(got: &[Tensor], want: &[Tensor], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert_eq!(g.ints(), w.ints(), "{what}");
        let error = g.worst_error(w);
        assert!(error <= tolerance, "{what}: error {error}");
    }
}

#[test]
fn rewriting_keeps_the_value_of_a_layer() {
    for layer in layers() {
        let graph = layer.graph();
        for n_tokens in [0, 1, 7] {
            let (inputs, params) = tensors(&graph, n_tokens, 3);
            let want = graph::evaluate(&graph, &inputs, &params).unwrap();
            for v in variants(&graph, 2, Numerics::Bitwise) {
                let got = graph::evaluate(&v.graph, &inputs, &params).unwrap();
                same(&got, &want, 0.0, &format!("{layer:?} bitwise"));
            }
            for v in variants(&graph, 2, Numerics::Deterministic) {
                let got = graph::evaluate(&v.graph, &inputs, &params).unwrap();
                same(&got, &want, if layer.dtype == DType::F32 { 1e-6 } else { 5e-3 }, &format!("{layer:?}"));
            }
        }
    }
}

#[test]
fn tile_programs_compute_the_layer_at_every_level() {
    for layer in layers() {
        let graph = layer.graph();
        for n_tokens in [0u64, 1, 7] {
            let (inputs, params) = tensors(&graph, n_tokens, 5);
            let want = graph::evaluate(&graph, &inputs, &params).unwrap();
            for level in 0..=2 {
                for v in variants(&graph, level, Numerics::Bitwise) {
                    let got = tile::evaluate(&v.program, &inputs, &params, n_tokens as usize).unwrap();
                    same(&got, &want, 0.0, &format!("{layer:?} -O{level} T={n_tokens}"));
                }
            }
        }
    }
}

#[test]
fn quantised_activations_run_as_written_in_every_form() {
    for layer in layers() {
        // Static scales are of checkpoints in NVFP4.
        for (name, q) in ActQuant::NAMES.into_iter().filter(|(_, q)| !q.has_global()) {
            let graph = graph::quantise_activations(&layer.graph(), q).unwrap();
            assert_eq!(graph::verify(&graph), vec![], "{layer:?} {name}");
            let (inputs, params) = tensors(&graph, 7, 5);
            let want = graph::evaluate(&graph, &inputs, &params).unwrap();
            let plain = graph::evaluate(&layer.graph(), &inputs, &params).unwrap();
            assert!(want[0].relative_error(&plain[0]) > 1e-3, "{layer:?} {name} rounds nothing");
            for level in 0..=2 {
                for v in variants(&graph, level, Numerics::Bitwise) {
                    let got = tile::evaluate(&v.program, &inputs, &params, 7).unwrap();
                    same(&got, &want, 0.0, &format!("{layer:?} {name} -O{level}"));
                }
            }
        }
    }
}

/// A layer whose experts are published in `format`, and whose rows are rounded to `q`.
fn coded(layer: &Layer, q: ActQuant, format: QuantFormat) -> Graph {
    let mut graph = layer.graph();
    for p in graph.params.iter_mut().filter(|p| p.name.contains("expert") || p.name.contains("shared")) {
        if p.ty.shape.len() >= 2 && p.ty.last().and_then(|d| d.fixed()).is_some_and(|k| k > 1) {
            p.stored = Some(format);
        }
    }
    graph::quantise_activations(&graph, q).unwrap()
}

#[test]
fn codes_are_multiplied_with_codes_where_the_machine_does_it() {
    let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
    let pairs = [
        (ActQuant::FP8_BLOCK, format(Code::E4M3, ScaleCode::F32, 128, 128)),
        (ActQuant::FP8_TOKEN, format(Code::E4M3, ScaleCode::F32, 1, 0)),
        (ActQuant::MXFP8, format(Code::E2M1, ScaleCode::E8M0, 1, 32)),
        (ActQuant::MXFP4, format(Code::E2M1, ScaleCode::E8M0, 1, 32)),
        (ActQuant::NVFP4_ROW, format(Code::E2M1, ScaleCode::E4M3, 1, 16)),
    ];
    for layer in
        [plain(DType::BF16), deepseek(DType::BF16), Layer { shared: Some(12), bias: true, ..plain(DType::BF16) }]
    {
        for (q, weights) in pairs {
            let graph = coded(&layer, q, weights);
            let what = format!("{layer:?} {q:?} by {weights}");
            let (inputs, params) = tensors(&graph, 7, 5);
            let want = graph::evaluate(&graph, &inputs, &params).unwrap();
            for level in 0..=2 {
                for v in variants(&graph, level, Numerics::Bitwise) {
                    let got = tile::evaluate(&v.program, &inputs, &params, 7).unwrap();
                    same(&got, &want, 0.0, &format!("{what} -O{level}"));
                }
            }
            // The scales of whole rows are not known where a tile ends.
            let in_epilogue = !q.has_row() && q.block > 0;
            for v in variants(&graph, 2, Numerics::Deterministic) {
                let products = v.program.kernels.iter().filter_map(|k| match &k.body {
                    Body::Contract(c) => Some(c),
                    _ => None,
                });
                let segments: Vec<&tile::Segment> = products.flat_map(|c| &c.segments).collect();
                assert!(segments.iter().all(|s| s.a_quant.is_some()), "{what}: {}", v.program);
                let (gated, down): (Vec<&tile::Segment>, Vec<&tile::Segment>) =
                    segments.iter().partition(|s| s.panels.len() == 2);
                assert!(gated.iter().all(|s| s.out_quant.is_some() == in_epilogue), "{what}: {}", v.program);
                assert!(!down.is_empty() && down.iter().all(|s| s.out_quant.is_none()), "{what}");
                if in_epilogue {
                    let names: Vec<&str> = v.program.kernels.iter().map(|k| k.name.as_str()).collect();
                    assert!(names.len() <= 4, "{what}: {names:?}");
                }
            }
        }
    }
}

#[test]
fn rows_of_integers_are_rounded_where_a_cpu_reads_them() {
    let format = |code, scale, block_cols| QuantFormat { code, scale, block_rows: 1, block_cols };
    let weights = [
        (format(Code::E2M1, ScaleCode::E8M0, 32), true),
        (format(Code::E2M1, ScaleCode::E4M3, 16), true),
        (format(Code::Int4, ScaleCode::BF16, 128), true),
        (format(Code::Int4, ScaleCode::BF16, 8), false),
        (format(Code::E4M3, ScaleCode::F32, 128), false),
    ];
    for layer in
        [plain(DType::BF16), deepseek(DType::F16), Layer { shared: Some(12), bias: true, ..plain(DType::BF16) }]
    {
        for (weights, takes) in weights {
            let graph = coded(&layer, ActQuant::INT16, weights);
            assert_eq!(graph::verify(&graph), vec![]);
            let what = format!("{layer:?} by {weights}");
            let (inputs, params) = tensors(&graph, 7, 5);
            let want = graph::evaluate(&graph, &inputs, &params).unwrap();
            for level in 0..=2 {
                for (v, is_cpu) in ["cpu", "sm_100f"].into_iter().flat_map(|target| {
                    let options = CompileOptions { opt_level: level, ..CompileOptions::default() };
                    let all = compile(&graph, Target::by_name(target).unwrap(), &options).unwrap();
                    all.into_iter().map(move |v| (v, target == "cpu"))
                }) {
                    let got = tile::evaluate(&v.program, &inputs, &params, 7).unwrap();
                    same(&got, &want, if level == 0 { 0.0 } else { 5e-3 }, &format!("{what} -O{level}"));
                    let products = v.program.kernels.iter().filter_map(|k| match &k.body {
                        Body::Contract(c) => Some(c),
                        _ => None,
                    });
                    let rounded: Vec<bool> =
                        products.flat_map(|c| &c.segments).map(|s| s.a_round == Some(ActQuant::INT16)).collect();
                    let reads = takes && is_cpu;
                    assert!(rounded.iter().all(|r| *r == reads) || level < 2 && reads, "{what}: {}", v.program);
                    assert_eq!(tile::parse(&v.program.to_string()), Ok(v.program.clone()));
                }
            }
        }
    }
}

#[test]
fn weights_of_different_codes_are_multiplied_in_launches_of_their_own() {
    let format = |code| QuantFormat { code, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };
    let layer = deepseek(DType::BF16);
    let mut graph = coded(&layer, ActQuant::MXFP8, format(Code::E2M1));
    for p in graph.params.iter_mut().filter(|p| p.name.contains("shared") && p.stored.is_some()) {
        p.stored = Some(format(Code::E4M3));
    }
    let (inputs, params) = tensors(&graph, 7, 5);
    let want = graph::evaluate(&graph, &inputs, &params).unwrap();
    for v in variants(&graph, 2, Numerics::Deterministic) {
        let code = |p: &tile::Panel| p.quant.as_ref().map(|q| q.format.code);
        let mut seen = Vec::new();
        for k in &v.program.kernels {
            let Body::Contract(c) = &k.body else { continue };
            assert!(c.segments.iter().all(|s| s.a_quant.is_some()), "{}", v.program);
            let codes: Vec<_> = c.segments.iter().flat_map(|s| s.panels.iter().map(code)).collect();
            assert!(codes.iter().all(|c| *c == codes[0]), "{}", v.program);
            seen.push(codes[0]);
        }
        assert!(seen.contains(&Some(Code::E2M1)) && seen.contains(&Some(Code::E4M3)), "{seen:?}");
        let got = tile::evaluate(&v.program, &inputs, &params, 7).unwrap();
        same(&got, &want, 1e-2, "two codes");
    }
}

#[test]
fn a_format_with_a_given_scale_is_refused_where_none_is_given() {
    let refused = graph::quantise_activations(&plain(DType::BF16).graph(), ActQuant::NVFP4).unwrap_err();
    assert_eq!(refused.code, "activation-format-needs-scale");
}

#[test]
fn a_whole_layer_is_at_most_four_launches() {
    for layer in layers() {
        for v in variants(&layer.graph(), 2, Numerics::Deterministic) {
            let names: Vec<&str> = v.program.kernels.iter().map(|k| k.name.as_str()).collect();
            // A factor on a result that was already rounded cannot join the sum.
            let late_factor = layer.scale != 1.0 && layer.selection.is_none() && layer.dtype != DType::F32;
            assert!(names.len() <= 4 + usize::from(late_factor), "{layer:?}: {names:?}");
        }
    }
}

#[test]
fn the_shared_expert_runs_beside_the_routed_ones() {
    let segments = |program: &tile::Program| -> Vec<usize> {
        let of = |k: &tile::Kernel| if let Body::Contract(c) = &k.body { Some(c.segments.len()) } else { None };
        program.kernels.iter().filter_map(of).collect()
    };
    let graph = deepseek(DType::BF16).graph();
    for (target, want) in [("sm_80", vec![2, 2]), ("sm_100f", vec![4])] {
        let variants = compile(&graph, Target::by_name(target).unwrap(), &CompileOptions::default()).unwrap();
        assert_eq!(segments(&variants[0].program), want, "{target}");
    }
}

#[test]
fn compiling_twice_gives_the_same_programs() {
    for layer in layers() {
        let graph = layer.graph();
        assert_eq!(variants(&graph, 2, Numerics::Fast), variants(&graph, 2, Numerics::Fast));
    }
}

#[test]
fn a_token_has_the_same_bits_in_every_program_of_a_layer() {
    // Otherwise they would depend on the size of its batch.
    let mut several = 0;
    for layer in layers() {
        let graph = layer.graph();
        let (inputs, params) = tensors(&graph, 7, 5);
        for name in ["sm_80", "sm_90a", "sm_100f", "sm_120f"] {
            let target = Target::by_name(name).unwrap();
            let variants = compile(&graph, target, &CompileOptions::default()).unwrap();
            several += usize::from(variants.len() > 1);
            let first = &variants[0];
            let want = tile::evaluate(&first.program, &inputs, &params, 7).unwrap();
            for v in &variants[1..] {
                assert_eq!(v.graph, first.graph, "{layer:?}");
                let [one, other] = [&v.program, &first.program].map(|p| Fingerprint::of(p, target));
                assert_eq!(one.text(), other.text(), "{layer:?} {name}");
                same(&tile::evaluate(&v.program, &inputs, &params, 7).unwrap(), &want, 0.0, &format!("{layer:?}"));
            }
        }
    }
    assert!(several > 0, "all layers have one program");
}

#[test]
fn fingerprints_tell_what_changes_bits_and_nothing_else() {
    let target = Target::by_name("sm_100f").unwrap();
    let of = |layer: &Layer, numerics| {
        compile(&layer.graph(), target, &CompileOptions { numerics, ..CompileOptions::default() }).unwrap()
    };
    let layer = deepseek(DType::BF16);
    let program = of(&layer, Numerics::Deterministic)[0].program.clone();
    let fingerprint = |p: &tile::Program, target| Fingerprint::of(p, target);
    let own = fingerprint(&program, target);

    // Tiles, names and unmerged launches are all the same.
    let mut other = program.clone();
    other.kernels.iter_mut().for_each(|k| {
        k.schedule.tile_m += 16;
        k.schedule.stages += 1;
        k.name.push('x');
    });
    let inner = |b: &&mut tile::Buffer| b.role == tile::Role::Workspace;
    other.buffers.iter_mut().filter(inner).for_each(|b| b.name.push('x'));
    assert_eq!(fingerprint(&other, target), own);
    let options = CompileOptions { opt_level: 1, ..CompileOptions::default() };
    let apart = compile(&layer.graph(), target, &options).unwrap();
    assert!(apart[0].program.kernels.len() > program.kernels.len());
    assert_eq!(fingerprint(&apart[0].program, target), own);

    // Parts of k, the warps of a router, a rounding point and an engine are not.
    let product = |k: &&mut tile::Kernel| matches!(k.body, Body::Contract(_));
    let mut parts = program.clone();
    parts.kernels.iter_mut().find(product).unwrap().schedule.k_parts = 2;
    let mut warps = program.clone();
    warps.kernels.iter_mut().find(|k| matches!(k.body, Body::Rows(_))).unwrap().schedule.warps = 4;
    let mut rounded = program.clone();
    let act = rounded.buffers.iter_mut().find(|b| b.role == tile::Role::Workspace && b.dtype == DType::BF16).unwrap();
    act.dtype = DType::F16;
    for changed in [&parts, &warps, &rounded] {
        assert_ne!(fingerprint(changed, target), own);
    }
    assert_ne!(fingerprint(&program, Target::by_name("sm_80").unwrap()), own);
    let f32 = of(&deepseek(DType::F32), Numerics::Deterministic)[0].program.clone();
    assert_ne!(fingerprint(&f32, target), own);
}

#[test]
fn ranges_of_token_counts_join_and_are_as_few_as_asked() {
    let graph = deepseek(DType::BF16).graph();
    let target = Target::by_name("sm_100f").unwrap();
    for (most_variants, tokens) in
        [(8, (0, 1 << 20)), (2, (0, 1 << 20)), (1, (0, 1 << 20)), (8, (3, 3)), (8, (100, 5000))]
    {
        let options = CompileOptions { most_variants, tokens, ..CompileOptions::default() };
        let variants = compile(&graph, target, &options).unwrap();
        assert!(variants.len() <= most_variants, "{} programs", variants.len());
        assert_eq!((variants[0].tokens.0, variants[variants.len() - 1].tokens.1), tokens);
        assert!(variants.windows(2).all(|w| w[0].tokens.1 + 1 == w[1].tokens.0 && w[0].program != w[1].program));
    }
}

#[test]
fn printed_tile_programs_parse_back() {
    for layer in layers() {
        for level in 0..=2 {
            for v in variants(&layer.graph(), level, Numerics::Deterministic) {
                let text = v.program.to_string();
                let parsed = tile::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
                assert_eq!(parsed, v.program, "{text}");
            }
        }
    }
}
