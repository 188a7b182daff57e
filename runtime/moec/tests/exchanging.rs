//! Ranks whose kernels exchange rows give the bits that the layer has on one rank.

use moec::ranks::{EmulatedRanks, PlacedInfo, PlacedLayer, StepResult, join_tokens, split_evenly, split_tokens};
use moec::{
    Checkpoint, CompileRequest, Device, Diagnostic, Mesh, Model, ModelLayer, Placement, Session, Spread, Target,
    Tensor, Weights, compile_exchanging,
};
use moec_bundle::manifest::TensorInfo;
use moec_bundle::{Bundle, PlacedBundle, PlacedManifest};
use moec_ir::exchange::{Blocks, ExchangeKernel, RowCodes, Stage};
use moec_ir::graph::{Graph, Maker, Op, Source, Wire, round_on_wire};
use moec_ir::{ActQuant, DType, Dim};
use moec_ptx::exec::{Options, Schedule};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const TARGET: &str = "sm_90a";

/// A recorded layer and its input.
struct Recorded {
    layer: ModelLayer,
    inputs: Vec<(String, Tensor)>,
    weights: Arc<Checkpoint>,
}

fn recorded(name: &str) -> Recorded {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance").join(name);
    let file = Checkpoint::open(dir.join("golden.layer0.safetensors")).expect("golden");
    let tensor = |name: &str| file.tensor(name).expect("readable").and_then(|t| t.to_tensor()).expect("input");
    let dtype = Some(tensor("input").dtype);
    let layer = Model::open(&dir).expect("model").layer_as(Some(0), dtype).expect("layer");
    let inputs = layer.graph.inputs.iter().map(|i| (i.name.clone(), tensor(&i.name))).collect();
    Recorded { layer, inputs, weights: Arc::new(Checkpoint::open(&dir).expect("checkpoint")) }
}

fn n_experts(layer: &ModelLayer) -> u32 {
    let of = |op: &Op| if let Op::Permute { n_experts } = op { Some(*n_experts) } else { None };
    layer.graph.nodes.iter().find_map(|n| of(&n.op)).expect("a layer with experts")
}

fn named(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

fn assert_same(got: &[(String, Tensor)], want: &[(String, Tensor)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for ((name, got), (other, want)) in got.iter().zip(want) {
        assert_eq!((name, &got.shape), (other, &want.shape), "{what}");
        assert!(got.to_bytes() == want.to_bytes(), "{what}: `{name}` has other bits");
    }
}

fn request_for(r: &Recorded) -> CompileRequest<'_> {
    request_on(r, &r.layer.graph, TARGET)
}

fn request_on<'g>(r: &Recorded, graph: &'g Graph, target: &str) -> CompileRequest<'g> {
    let targets = Target::by_name(target).into_iter().collect();
    CompileRequest { info: r.layer.info.clone(), ..CompileRequest::new(graph, targets) }
}

fn exchanging(r: &Recorded, n_local: u32) -> Arc<PlacedLayer> {
    let made = compile_exchanging(&request_for(r), &Spread::new(n_local), &mut |_| {}).expect("compiles");
    Arc::new(made.expect("a layer for kernels that exchange"))
}

fn alone(r: &Recorded) -> Vec<(String, Tensor)> {
    alone_on(r, &r.layer.graph, TARGET)
}

/// The outputs of `graph`, the layer or one like it, on one rank.
fn alone_on(r: &Recorded, graph: &Graph, target: &'static str) -> Vec<(String, Tensor)> {
    let request = CompileRequest { numerics: moec_ir::Numerics::Bitwise, ..request_on(r, graph, target) };
    let compiled = moec::compile(&request).expect("compiles");
    let n = r.inputs[0].1.shape[0] as u64;
    let device = Device::Emulator { target };
    let mut session =
        Session::load(&compiled.bundle, &Weights::Checkpoint(r.weights.clone()), device, n).expect("loads");
    session.run(&named(&r.inputs)).expect("runs").outputs
}

fn options(schedule: Schedule) -> Options {
    Options { schedule, counters: false, ..Options::default() }
}

/// Outputs by name, and what each rank did.
type Stepped = (Vec<(String, Tensor)>, Vec<StepResult>);

/// A step with these tokens on each rank, of which nothing is to be said; the outputs in token order, and what each rank did.
fn step(ranks: &mut EmulatedRanks, r: &Recorded, counts: &[usize]) -> Result<Stepped, Diagnostic> {
    let (outputs, steps) = stepped(ranks, r, counts)?;
    let found: Vec<&String> = steps.iter().flat_map(|s| &s.findings).collect();
    assert!(found.is_empty(), "{found:?}");
    Ok((outputs, steps))
}

fn stepped(ranks: &mut EmulatedRanks, r: &Recorded, counts: &[usize]) -> Result<Stepped, Diagnostic> {
    let mut parts = vec![Vec::new(); counts.len()];
    for (name, tensor) in &r.inputs {
        let of_ranks = split_tokens(tensor, counts).expect("as many tokens");
        parts.iter_mut().zip(of_ranks).for_each(|(part, t)| part.push((name.clone(), t)));
    }
    let steps = ranks.step(&parts.iter().map(|p| named(p)).collect::<Vec<_>>())?;
    let joined = steps[0].outputs.iter().enumerate().map(|(i, (name, _))| {
        let parts: Vec<&Tensor> = steps.iter().map(|s| &s.outputs[i].1).collect();
        (name.clone(), join_tokens(&parts).expect("parts of one tensor"))
    });
    Ok((joined.collect(), steps))
}

#[test]
fn families_have_the_same_bits_on_ranks_whose_kernels_exchange() {
    let cases = [
        ("qwen3_moe.bf16", 8),
        ("mixtral.bf16", 4),
        ("gpt_oss.bf16", 3),
        ("olmoe.bf16", 2),
        ("qwen2_moe.bf16", 3),
        ("qwen3_moe.int4-g128", 3),
        ("qwen3_moe.mxfp8", 2),
        // A norm behind the last product, on rows in expert order.
        ("../../ir/frontend/tests/golden/muse_spark", 2),
    ];
    for (seed, (name, n)) in (1u64..).zip(cases) {
        let r = recorded(name);
        let map = Placement::even(n_experts(&r.layer), n).expect("a map");
        let counts = split_evenly(r.inputs[0].1.shape[0], n);
        let weights = Weights::Checkpoint(r.weights.clone());
        let (layer, most) = (exchanging(&r, map.most_local()), counts[0] as u32);
        let options = options(Schedule::Random(seed));
        let mut ranks = EmulatedRanks::load(layer, map, &weights, TARGET, (most, u32::MAX), options).expect(name);
        assert_same(&step(&mut ranks, &r, &counts).expect(name).0, &alone(&r), name);
    }
}

/// Steps with no barrier between them, ranks with all tokens and with none, experts that are held twice, a new map on the way.
#[test]
fn tokens_flow_while_experts_move() {
    let r = recorded("qwen3_moe.bf16");
    let (want, n) = (alone(&r), r.inputs[0].1.shape[0]);
    let map = |version, ranks: [&[u32]; 3]| {
        Placement::new(version, n_experts(&r.layer), ranks.iter().map(|r| r.to_vec()).collect()).expect("a map")
    };
    let first = map(1, [&[0, 1, 2, 3, 4, 5], &[], &[6, 7, 0, 1, 2]]);
    let second = map(2, [&[7, 6], &[5, 4, 3, 2, 1, 0], &[0, 7, 3, 2]]);
    let weights = Weights::Checkpoint(r.weights.clone());
    let sizes = (n as u32, u32::MAX);
    let layer = exchanging(&r, 6);
    let mut ranks =
        EmulatedRanks::load(layer, first, &weights, TARGET, sizes, options(Schedule::RoundRobin)).expect("loads");
    for (i, counts) in
        [[n, 0, 0], [1, n - 2, 1], [0, 0, n], split_evenly(n, 3).try_into().expect("3")].iter().enumerate()
    {
        if i == 2 {
            ranks.set_map(second.clone(), &weights).expect("a newer map");
        }
        ranks.set_options(|o| o.schedule = Schedule::Random(i as u64));
        assert_same(&step(&mut ranks, &r, counts).expect("a step").0, &want, &format!("step {i}"));
    }
    let d = ranks.step(&[]).unwrap_err();
    assert_eq!(d.code, "rank-not-answering");
}

/// A deadline that nobody can keep is told with the rank, and no step is made after it.
#[test]
fn a_wait_that_is_too_long_names_the_rank() {
    let r = recorded("qwen3_moe.bf16");
    let map = Placement::even(n_experts(&r.layer), 2).expect("a map");
    let weights = Weights::Checkpoint(r.weights.clone());
    let n = r.inputs[0].1.shape[0];
    let layer = exchanging(&r, map.most_local());
    let mut ranks =
        EmulatedRanks::load(layer, map, &weights, TARGET, (n as u32, 0), options(Schedule::RoundRobin)).expect("loads");
    let d = step(&mut ranks, &r, &[n, 0]).unwrap_err();
    assert!(d.code == "rank-not-answering" && d.message.contains("which holds experts"), "{d}");
    assert!(step(&mut ranks, &r, &[n, 0]).is_err());
}

/// Rows that are rounded on their way have the bits of the layer that rounds its rows, on one rank; as many bytes travel as codes and
/// scales have, once to each rank that has one of the token's experts.
#[test]
fn rows_travel_as_codes() {
    // Machines that make codes by instructions and that do not, products of floats and of codes, every kind of scale.
    let cases = [
        ("qwen3_moe.bf16", "mxfp8", "sm_100a"),
        ("qwen3_moe.mxfp8", "mxfp8", "sm_100a"),
        ("qwen3_moe.mxfp8", "mxfp4", "sm_120a"),
        ("qwen3_moe.bf16", "nvfp4", "sm_90a"),
        ("mixtral.bf16", "nvfp4", "sm_100a"),
        ("qwen2_moe.bf16", "fp8-block", "sm_90a"),
        ("mixtral.bf16", "fp8-token", "sm_80"),
        ("gpt_oss.bf16", "fp8-block-pow2", "sm_90a"),
    ];
    for (seed, (name, format, target)) in (1u64..).zip(cases) {
        let what = format!("{name} with {format} on {target}");
        let r = recorded(name);
        let quant = ActQuant::from_name(format).expect("a format");
        let rounded = round_on_wire(&r.layer.graph, Wire::Codes(quant)).expect(&what);
        let want = alone_on(&r, &rounded, target);
        let map = Placement::even(n_experts(&r.layer), 3).expect("a map");
        let spread = Spread { wire: Some(Wire::Codes(quant)), ..Spread::new(map.most_local()) };
        let made = compile_exchanging(&request_on(&r, &r.layer.graph, target), &spread, &mut |_| {}).expect(&what);
        let layer = Arc::new(made.unwrap_or_else(|why| panic!("{what}: {why}")));
        let counts = split_evenly(r.inputs[0].1.shape[0], 3);
        let weights = Weights::Checkpoint(r.weights.clone());
        let options = Options { counters: true, ..options(Schedule::Random(seed)) };
        let sizes = (counts[0] as u32, u32::MAX);
        let mut ranks = EmulatedRanks::load(layer.clone(), map, &weights, target, sizes, options).expect(&what);
        let (got, steps) = step(&mut ranks, &r, &counts).expect(&what);
        assert_same(&got, &want, &what);
        let cols = r.inputs[0].1.cols() as u64;
        let row = Wire::Codes(quant).row_bytes(cols);
        assert!(row * 3 < cols * 4, "{what}: {row} bytes are no codes of {cols} elements");
        for s in &steps {
            assert_eq!(s.traffic.row_bytes_sent, s.traffic.rows_sent * row, "{what}");
        }
    }
}

/// Experts that are cut over groups of ranks: families, quantised weights, codes on the way, columns that members do not divide, ranks
/// without tokens.
#[test]
fn groups_that_share_experts_have_the_same_bits() {
    let cases: [(&str, [u32; 2], &str, &str); 6] = [
        ("qwen3_moe.bf16", [2, 2], "sm_90a", ""),
        ("mixtral.bf16", [1, 3], "sm_100a", ""),
        ("gpt_oss.bf16", [2, 3], "sm_90a", ""),
        ("qwen3_moe.int4-g128", [2, 2], "sm_100a", ""),
        ("qwen3_moe.mxfp8", [3, 2], "sm_100a", ""),
        ("qwen2_moe.bf16", [2, 2], "sm_90a", "mxfp8"),
    ];
    for (seed, (name, [groups, members], target, wire)) in (1u64..).zip(cases) {
        let what = format!("{name} on {groups} groups of {members} on {target}");
        let r = recorded(name);
        let wire = ActQuant::from_name(wire).map(Wire::Codes);
        let rounded = wire.map(|w| round_on_wire(&r.layer.graph, w).expect(&what));
        let want = alone_on(&r, rounded.as_ref().unwrap_or(&r.layer.graph), target);
        let map = Placement::even(n_experts(&r.layer), groups).expect("a map");
        let spread = Spread { n_members: members, wire, ..Spread::new(map.most_local()) };
        let made = compile_exchanging(&request_on(&r, &r.layer.graph, target), &spread, &mut |_| {}).expect(&what);
        let layer = Arc::new(made.unwrap_or_else(|why| panic!("{what}: {why}")));
        let mut counts = split_evenly(r.inputs[0].1.shape[0], groups * members - 1);
        counts.push(0);
        let weights = Weights::Checkpoint(r.weights.clone());
        let (sizes, options) = ((counts[0] as u32, u32::MAX), options(Schedule::Random(seed)));
        let mut ranks = EmulatedRanks::load(layer, map, &weights, target, sizes, options).expect(&what);
        assert_same(&step(&mut ranks, &r, &counts).expect(&what).0, &want, &what);
    }
}

/// Groups of two: steps without a barrier between them, a group without experts, experts that two groups hold, a new map on the way; and a
/// deadline that nobody can keep names the rank and what its group holds.
#[test]
fn experts_of_groups_move_while_tokens_flow() {
    let r = recorded("qwen3_moe.bf16");
    let (want, n) = (alone(&r), r.inputs[0].1.shape[0]);
    let map = |version, groups: [&[u32]; 2]| {
        Placement::new(version, n_experts(&r.layer), groups.iter().map(|r| r.to_vec()).collect()).expect("a map")
    };
    let first = map(1, [&[0, 1, 2, 3, 4, 5, 6, 7], &[]]);
    let second = map(2, [&[7, 6, 1], &[5, 4, 3, 2, 1, 0]]);
    let weights = Weights::Checkpoint(r.weights.clone());
    let spread = Spread { n_members: 2, ..Spread::new(8) };
    let made = compile_exchanging(&request_for(&r), &spread, &mut |_| {}).expect("compiles");
    let layer = Arc::new(made.expect("a layer for kernels that exchange"));
    let load = |deadline, map: &Placement| {
        let options = options(Schedule::RoundRobin);
        EmulatedRanks::load(layer.clone(), map.clone(), &weights, TARGET, (n as u32, deadline), options)
    };
    let mut ranks = load(u32::MAX, &first).expect("loads");
    for (i, counts) in [[n, 0, 0, 0], [1, n - 3, 1, 1], [0, 0, 0, n]].iter().enumerate() {
        if i == 1 {
            ranks.set_map(second.clone(), &weights).expect("a newer map");
        }
        ranks.set_options(|o| o.schedule = Schedule::Random(i as u64));
        assert_same(&step(&mut ranks, &r, counts).expect("a step").0, &want, &format!("step {i}"));
    }
    let d = step(&mut load(0, &second).expect("loads"), &r, &[n, 0, 0, 0]).unwrap_err();
    assert!(d.code == "rank-not-answering" && d.message.contains("which holds experts"), "{d}");
}

/// What is wrong in the text of a kernel of experts, given its file: none of it where the text has nothing of the kind.
type Slip = fn(&str, &str) -> Option<String>;

/// The bundle with a slip in the kernels of its experts; `None` where no text changes.
fn with_slip(bundle: &PlacedBundle, slip: Slip) -> Option<PlacedBundle> {
    let all = bundle.manifest().files.keys().map(|f| (f.clone(), bundle.file(f).expect("there").to_vec()));
    let mut all: BTreeMap<String, Vec<u8>> = all.collect();
    let mut changed = false;
    for program in bundle.manifest().experts.iter().flat_map(|of| &of.programs) {
        let whole = bundle.program(&program.file).expect("a bundle");
        let files = whole.files().map(|(path, content)| {
            let text = std::str::from_utf8(content).ok().filter(|_| path.ends_with(".ptx"));
            let other = text.and_then(|text| slip(path, text));
            changed |= other.is_some();
            (path.to_string(), other.map_or(content.to_vec(), String::into_bytes))
        });
        let files = files.collect();
        let other = Bundle::new(whole.manifest().clone(), files).expect("a bundle");
        all.insert(program.file.clone(), other.to_archive());
    }
    changed.then(|| PlacedBundle::new(bundle.manifest().clone(), all).expect("a bundle"))
}

/// The text with each line changed that `is` holds for, given its number; `None` without one.
fn changed(text: &str, is: impl Fn(usize, &str) -> bool, to: impl Fn(&str) -> String) -> Option<String> {
    let lines: Vec<String> =
        text.lines().enumerate().map(|(i, l)| if is(i, l) { to(l) } else { l.to_string() }).collect();
    lines.iter().map(String::as_str).ne(text.lines()).then(|| lines.join("\n") + "\n")
}

fn makes_order(path: &str) -> bool {
    path.contains("plan")
}

fn reads_address(line: &str) -> bool {
    line.contains("ld.global") && line.contains(".b64 ")
}

fn address_behind(line: &str) -> String {
    line.replacen(']', "+8]", 1)
}

/// Results that a product stores at places of others, or not at all, are noticed, whichever engine stores them.
#[test]
fn products_that_store_elsewhere_are_noticed() {
    let slips: [(&str, Slip); 4] = [
        ("addresses of the slot behind", |path, text| {
            changed(text, |_, l| makes_order(path) && reads_address(l), address_behind)
        }),
        ("no addresses", |path, text| {
            let is = |_, l: &str| makes_order(path) && l.contains("st.global") && l.contains(".b64 ");
            changed(text, is, |_| String::new())
        }),
        ("the address of the row behind", |path, text| {
            changed(text, |_, l| !makes_order(path) && reads_address(l), address_behind)
        }),
        ("a piece of a row that is not stored", |path, text| {
            let lines: Vec<&str> = text.lines().collect();
            let read = lines.iter().position(|l| !makes_order(path) && reads_address(l))?;
            let store = (read..lines.len()).find(|&i| lines[i].contains("st.global"))?;
            changed(text, |i, _| i == store, |_| String::new())
        }),
    ];
    let r = recorded("qwen3_moe.bf16");
    let map = Placement::even(n_experts(&r.layer), 3).expect("a map");
    let counts = split_evenly(r.inputs[0].1.shape[0], 3);
    let weights = Weights::Checkpoint(r.weights.clone());
    for target in ["sm_80", "sm_90a", "sm_100a"] {
        let want = alone_on(&r, &r.layer.graph, target);
        let spread = Spread { n_ranks: 3, ..Spread::new(map.most_local()) };
        let request = CompileRequest { tokens: (0, counts[0] as u64), ..request_on(&r, &r.layer.graph, target) };
        let made = compile_exchanging(&request, &spread, &mut |_| {}).expect("compiles").expect("by kernels");
        let info = PlacedInfo {
            layer: r.layer.info.clone(),
            inputs: r.layer.graph.inputs.iter().map(TensorInfo::from).collect(),
            mesh: Mesh { ep: 3, tp: 1 },
            max_tokens: counts[0] as u64,
        };
        let bundle = made.to_bundle(info).expect("a bundle");
        let is_right = |bundle: &PlacedBundle| {
            let layer = Arc::new(PlacedLayer::from_bundle(bundle).expect("one that loads"));
            let (sizes, options) = ((counts[0] as u32, u32::MAX), options(Schedule::Random(3)));
            let mut ranks = EmulatedRanks::load(layer, map.clone(), &weights, target, sizes, options).expect("loads");
            stepped(&mut ranks, &r, &counts).is_ok_and(|(outputs, steps)| {
                outputs.iter().zip(&want).all(|(a, b)| a.1.to_bytes() == b.1.to_bytes())
                    && steps.iter().all(|s| s.findings.is_empty())
            })
        };
        assert!(is_right(&bundle), "{target}: right as it is");
        for (what, slip) in slips {
            let other = with_slip(&bundle, slip).unwrap_or_else(|| panic!("{target}: {what}: no such line"));
            assert!(!is_right(&other), "{target}: {what}: should be noticed");
        }
    }
}

fn kernels(m: &mut PlacedManifest, member: usize) -> &mut Vec<ExchangeKernel> {
    m.exchange[member].kernels.get_mut(TARGET).expect("kernels")
}

/// A bundle for ranks is read back as it was, and one whose parts do not fit each other is refused, whoever made its hashes.
#[test]
fn bundles_whose_parts_do_not_fit_are_refused() {
    let r = recorded("qwen3_moe.bf16");
    let spread = Spread { n_members: 2, n_ranks: 4, ..Spread::new(4) };
    let request = CompileRequest { tokens: (0, 8), ..request_for(&r) };
    let made = compile_exchanging(&request, &spread, &mut |_| {}).expect("compiles").expect("by kernels");
    let info = PlacedInfo {
        layer: r.layer.info.clone(),
        inputs: r.layer.graph.inputs.iter().map(TensorInfo::from).collect(),
        mesh: Mesh { ep: 2, tp: 2 },
        max_tokens: 8,
    };
    let bundle = made.to_bundle(info.clone()).expect("a bundle");
    let read = PlacedLayer::from_bundle(&bundle).expect("as it was written");
    assert_eq!(read.to_bundle(info), Ok(bundle.clone()));
    let files: BTreeMap<String, Vec<u8>> =
        bundle.manifest().files.keys().map(|f| (f.clone(), bundle.file(f).expect("there").to_vec())).collect();
    type Change = fn(&mut PlacedManifest, &mut BTreeMap<String, Vec<u8>>);
    let changes: [(&str, Change); 40] = [
        ("no ranks", |m, _| m.mesh.ep = 0),
        ("too many ranks", |m, _| m.mesh.ep = u32::MAX),
        ("other members", |m, _| m.mesh.tp = 3),
        ("more room", |m, _| m.n_local = 5),
        ("other experts", |m, _| m.n_experts = 3),
        ("no slots", |m, _| m.top_k = 0),
        ("a program less", |m, _| m.experts[0].programs.truncate(1)),
        ("programs the wrong way round", |m, _| m.experts[0].programs.swap(0, 1)),
        ("kernels of another member", |m, _| m.exchange.swap(0, 1)),
        ("wider results", |m, _| m.exchange[1].what.result_bytes += 2),
        ("columns that end beyond the row", |m, _| {
            let cut = m.exchange[1].what.cut.as_mut().expect("a cut");
            cut.act.first = u64::MAX;
        }),
        ("columns of another member", |m, _| {
            let cut = m.exchange[1].what.cut.as_mut().expect("a cut");
            cut.result.first = 0;
        }),
        ("rows of another name", |m, _| m.rows = Source::Input("rows".into())),
        ("rows that the head does not make", |m, _| m.rows = Source::Head("rows".into())),
        ("rows that are weights", |m, _| m.rows = m.weights.clone().expect("weights")),
        ("ids that are weights", |m, _| m.ids = m.weights.clone().expect("weights")),
        ("weights that are ids", |m, _| m.weights = Some(m.ids.clone())),
        ("no weights", |m, _| m.weights = None),
        ("more slots", |m, _| {
            m.top_k += 1;
            m.exchange.iter_mut().for_each(|of| of.what.top_k += 1);
        }),
        ("another wire", |m, _| m.wire = Wire::Rows(DType::F16)),
        ("codes on the wire", |m, _| m.wire = Wire::Codes(ActQuant::MXFP8)),
        ("kernels for codes", |m, _| {
            let (quant, cols, sent, read) = (ActQuant::MXFP8, 64, DType::BF16, DType::BF16);
            m.exchange[0].what.codes = Some(RowCodes { quant, cols, sent, read });
        }),
        ("kernels for other ids", |m, _| m.exchange[0].what.ids = DType::I64),
        ("kernels without weights", |m, _| m.exchange[0].what.weights = None),
        ("an input of another type", |m, _| m.inputs[0].ty.dtype = DType::F32),
        ("an input of another name", |m, _| m.inputs[0].name = "x".into()),
        ("an output that nobody makes", |m, _| m.outputs[0].name = "sum".into()),
        ("an output of the other program", |m, _| m.outputs[0].made_by = Maker::Head),
        ("an output less", |m, _| drop(m.outputs.remove(0))),
        ("a matrix of another name", |m, _| m.experts[1].programs[0].stacks[0].name = "experts.gates".into()),
        ("matrices that change places", |m, _| {
            let stacks = &mut m.experts[0].programs[0].stacks;
            let gate = stacks[0].source.clone();
            stacks[0].source = std::mem::replace(&mut stacks[1].source, gate);
        }),
        ("a matrix less", |m, _| m.experts[0].programs[0].stacks.truncate(1)),
        ("a wider matrix", |m, _| m.experts[0].programs[1].stacks[0].ty.shape[2] = Dim::Fixed(7)),
        ("kernels in another order", |m, _| kernels(m, 0).swap(0, 1)),
        ("a kernel that runs at another time", |m, _| kernels(m, 1)[2].stage = Stage::Behind),
        ("a kernel that is given something else", |m, _| kernels(m, 1)[3].params.swap(1, 2)),
        ("a kernel of fewer blocks", |m, _| kernels(m, 0)[4].blocks = Blocks::Tokens),
        ("a file too much", |_, files| drop(files.insert("more.tar".into(), Vec::new()))),
        ("a file less", |_, files| drop(files.remove("tail.tar"))),
        ("a program that is none", |_, files| drop(files.insert("tail.tar".into(), vec![7; 2000]))),
    ];
    for (what, change) in changes {
        let (mut manifest, mut files) = (bundle.manifest().clone(), files.clone());
        change(&mut manifest, &mut files);
        let refused = PlacedBundle::new(manifest, files).and_then(|b| PlacedLayer::from_bundle(&b)).err();
        let d = refused.unwrap_or_else(|| panic!("{what}: should be refused"));
        assert!(d.code.starts_with("bundle-"), "{what}: {d}");
    }
}
