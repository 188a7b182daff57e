//! Bundles on disk: what is written is read back, and nothing damaged is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_bundle::manifest::{Launch, LayerInfo, Manifest, Operand, TokenRange, WorkspaceRule};
use moec_bundle::{
    Bundle, BundleBuilder, CpuKernelPart, CpuVariantPart, GpuKernelPart, GpuVariantPart, verify_manifest,
};
use moec_ir::expr::Expr;
use moec_ir::graph::{Graph, Input, Node, Op, Param, ValueId};
use moec_ir::numerics::{NumericClass, Numerics};
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{
    Body, Buffer, BufferId, ColAccess, CpuLaunch, Extent, GpuLaunch, Kernel, Map, MapArg, MapElem, Program, Role,
    RowAccess, Schedule, TensorMap,
};
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Diagnostic};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn ty(shape: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, shape)
}

/// `output = (input + bias) * 1`, in two kernels with a buffer between them.
fn graph() -> Graph {
    let t = ty(&[Dim::TOKENS, Dim::Fixed(8)]);
    let bias = ty(&[Dim::Fixed(8)]);
    let node = |name: &str, op, inputs: &[u32], ty: &TensorType| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|&i| ValueId(i)).collect(),
        ty: ty.clone(),
        origin: None,
    };
    Graph {
        name: "sample".into(),
        inputs: vec![Input { name: "input".into(), ty: t.clone() }],
        params: vec![Param {
            name: "bias".into(),
            ty: bias.clone(),
            source: WeightSource::tensor("bias"),
            stored: None,
        }],
        nodes: vec![
            node("x", Op::Input(0), &[], &t),
            node("b", Op::Param(0), &[], &bias),
            node("y", Op::Add, &[0, 1], &t),
        ],
        outputs: vec![("output".into(), ValueId(2))],
    }
}

fn program() -> Program {
    let buffer = |name: &str, rows, role| Buffer {
        name: name.into(),
        dtype: DType::F32,
        batch: 1,
        rows,
        cols: 8,
        pitch: 8,
        role,
    };
    let map = |from: u32, to: u32| {
        let arg = MapArg { buffer: BufferId(from), row: RowAccess::Same, col: ColAccess::From(0) };
        Body::Map(Map { args: vec![arg], expr: Expr::identity(), out: BufferId(to), until: None, out_places: None })
    };
    let schedule = Schedule::new(1, 8, 1, 1, 1);
    let kernel = |name: &str, body| Kernel { name: name.into(), body, schedule };
    Program {
        name: "sample".into(),
        buffers: vec![
            buffer("x", Dim::TOKENS, Role::Input(0)),
            buffer("bias", Dim::Fixed(1), Role::Weight(0)),
            buffer("mid", Dim::TOKENS, Role::Workspace),
            buffer("y", Dim::TOKENS, Role::Output(0)),
        ],
        kernels: vec![kernel("first", map(0, 2)), kernel("second", map(2, 3))],
    }
}

/// A map of the sample kernel's first operand.
fn tensor_map() -> TensorMap {
    TensorMap {
        operand: 0,
        elem: MapElem::F32,
        dims: vec![Dim::Fixed(8), Dim::TOKENS],
        strides: vec![32],
        box_dims: vec![16, 8],
        swizzle_bytes: 64,
    }
}

fn sample() -> Bundle {
    let program = program();
    let gpu = |ptx: &str| GpuKernelPart {
        entry: "k".into(),
        ptx: ptx.into(),
        launch: GpuLaunch {
            grid: [Extent::tiles(1, 4, 1), Extent::fixed(1), Extent::fixed(1)],
            block_threads: 128,
            cluster: 1,
            dynamic_smem_bytes: 0,
            persistent: false,
            programmatic: false,
            tensor_maps: Vec::new(),
        },
        class: NumericClass::Exact,
    };
    let cpu = |symbol: &str| CpuKernelPart {
        symbol: symbol.into(),
        launch: CpuLaunch { items: Extent::tiles(1, 1, 1), scratch_bytes: 64 },
        class: NumericClass::Exact,
    };
    let mut b =
        BundleBuilder::new(&graph(), LayerInfo { name: "sample".into(), ..LayerInfo::default() }, Numerics::default());
    b.add_file("graph.txt", "the graph");
    let variant = |tokens, second| GpuVariantPart {
        tokens,
        program: &program,
        kernels: vec![gpu("// ptx one"), gpu(second)],
        tile_text: Some("tiles".into()),
    };
    b.add_gpu_target("sm_90a", vec![variant((1, 64), "// ptx two"), variant((65, 4096), "// ptx three")]).expect("gpu");
    let v = CpuVariantPart { tokens: (1, 4096), program: &program, kernels: vec![cpu("a"), cpu("b")], tile_text: None };
    b.add_cpu_target(Some(vec![0x7F, 0x45, 0x4C, 0x46, 0, 255]), &["x86-64-v3"], vec![v]).expect("cpu");
    b.finish().expect("the sample should be valid")
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).expect("dir") {
        let path = entry.expect("entry").path();
        if path.is_dir() { out.extend(all_files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let strip = |p: &PathBuf| p.strip_prefix(dir).expect("inside").to_path_buf();
    all_files(dir).iter().map(|p| (strip(p), std::fs::read(p).expect("read"))).collect()
}

#[test]
fn a_bundle_is_read_back_as_it_was() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("new/folder/bundle");
    sample().write(&path).expect("write");
    assert_eq!(Bundle::open(&path).expect("open"), sample());
}

#[test]
fn an_archive_is_read_back_as_it_was() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("layer.tar");
    sample().write_archive(&path).expect("write");
    sample().write_archive(&path).expect("a bundle is replaced");
    assert_eq!(Bundle::open(&path), Ok(sample()));
    assert_eq!(std::fs::read(&path).expect("read"), sample().to_archive());
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1, "nothing else is left");
    std::fs::write(&path, "a letter").expect("write");
    assert_eq!(sample().write_archive(&path).expect_err("no bundle").code, "output-not-a-bundle");
}

/// `tar -C BUNDLE -cf layer.tar .` does as well.
#[test]
fn a_tar_of_the_directory_is_an_archive() {
    let mut tar = tar::Builder::new(Vec::new());
    let dir = tempfile::tempdir().expect("dir");
    sample().write(dir.path().join("b")).expect("write");
    tar.append_dir_all(".", dir.path().join("b")).expect("tar");
    assert_eq!(Bundle::from_archive(&tar.into_inner().expect("tar")), Ok(sample()));
}

#[test]
fn a_damaged_archive_is_noticed() {
    let good = sample().to_archive();
    for cut in [0, 1, 511, 512, 513, good.len() / 2] {
        assert_eq!(Bundle::from_archive(&good[..cut]).expect_err("cut").code, "bundle-corrupt", "{cut}");
    }
    // A bit of padding or of a field that nobody reads may flip unnoticed; then the bundle is the same.
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        match Bundle::from_archive(&bad) {
            Ok(bundle) => assert_eq!(bundle, sample(), "{at}"),
            Err(d) => assert!(d.code.starts_with("bundle-"), "{at}: {d}"),
        }
    }
}

#[test]
fn equal_kernels_share_a_file() {
    let bundle = sample();
    let ptx: Vec<&str> = bundle.files().map(|(p, _)| p).filter(|p| p.ends_with(".ptx")).collect();
    assert_eq!(ptx.len(), 3, "{ptx:?}");
    let file = |v: usize, k: usize| match &bundle.manifest().targets[0].variants[v].kernels[k].launch {
        Launch::Gpu { file, .. } => file.clone(),
        Launch::Cpu { .. } => String::new(),
    };
    assert_eq!(file(0, 0), file(1, 0));
    assert_ne!(file(0, 1), file(1, 1));
}

#[test]
fn the_same_bundle_is_the_same_bytes_and_sha256sum_accepts_it() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    sample().write(&a).expect("write");
    sample().write(&b).expect("write");
    assert_eq!(contents(&a), contents(&b));
    if let Ok(out) =
        std::process::Command::new("sha256sum").args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&a).output()
    {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("bundle");
    sample().write(&path).expect("write");
    let mut flips = 0;
    for file in all_files(&path) {
        let good = std::fs::read(&file).expect("read");
        // Every byte of small files; of the manifest some, with a changing bit, to keep the test quick.
        let step = if good.len() > 2000 { 13 } else { 1 };
        for at in (0..good.len()).step_by(step) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&file, &bad).expect("write");
            let d = Bundle::open(&path).expect_err("a flipped bit should be noticed");
            assert!(d.code.starts_with("bundle-"), "{file:?} byte {at}: {d}");
            flips += 1;
        }
        std::fs::write(&file, &good).expect("write");
    }
    assert!(flips > 500 && Bundle::open(&path).is_ok());
}

#[test]
fn cut_long_and_missing_files_are_noticed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("bundle");
    sample().write(&path).expect("write");
    for file in all_files(&path) {
        let good = std::fs::read(&file).expect("read");
        for bad in [&good[..good.len() / 2], &[&good[..], b"x"].concat(), b""] {
            std::fs::write(&file, bad).expect("write");
            assert_eq!(Bundle::open(&path).expect_err("damaged").code, "bundle-corrupt", "{file:?}");
        }
        std::fs::remove_file(&file).expect("remove");
        let code = Bundle::open(&path).expect_err("missing").code;
        let want = if file.ends_with("manifest.json") { "bundle-not-found" } else { "bundle-corrupt" };
        assert_eq!(code, want, "{file:?}");
        std::fs::write(&file, &good).expect("write");
    }
}

#[test]
fn an_older_bundle_is_replaced_and_other_directories_are_not() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("bundle");
    sample().write(&path).expect("write");
    sample().write(&path).expect("replace");
    sample().write(path.join(".")).expect("replace");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1, "nothing is left beside it");
    std::fs::write(path.join("notes.txt"), "mine").expect("write");
    assert_eq!(sample().write(&path).expect_err("foreign file").code, "output-not-a-bundle");
    assert!(path.join("notes.txt").exists());

    let home = dir.path().join("home");
    std::fs::create_dir(&home).expect("mkdir");
    sample().write(&home).expect("an empty directory is fine");
    std::fs::remove_dir_all(&home).expect("clear");
    std::fs::create_dir(&home).expect("mkdir");
    std::fs::write(home.join("thesis.tex"), "x").expect("write");
    assert_eq!(sample().write(&home).expect_err("not ours").code, "output-not-a-bundle");
    assert_eq!(sample().write(home.join("thesis.tex")).expect_err("a file").code, "output-not-a-bundle");
    assert_eq!(contents(&home).len(), 1);
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_stays_a_link() {
    let dir = tempfile::tempdir().expect("dir");
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    std::fs::create_dir(&real).expect("mkdir");
    std::os::unix::fs::symlink(&real, &link).expect("link");
    for _ in 0..2 {
        sample().write(&link).expect("write");
        assert!(link.is_symlink() && real.join("manifest.json").is_file());
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 2, "nothing is left beside them");
}

#[test]
fn nothing_is_left_when_writing_fails() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("file"), "").expect("write");
    assert_eq!(sample().write(dir.path().join("file/bundle")).expect_err("no folder").code, "output-not-written");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1);
}

#[test]
fn another_format_is_told_from_damage() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("bundle");
    sample().write(&path).expect("write");
    std::fs::write(path.join("manifest.json"), r#"{"moec_bundle": 9, "moec_version": "7.1", "new": {}}"#)
        .expect("write");
    let d = Bundle::open(&path).expect_err("newer");
    assert_eq!(d.code, "bundle-version-unsupported");
    assert!(d.message.contains("7.1"), "{}", d.message);
}

/// One impossible thing at a time, each with the right hash: structure is checked, not only bytes.
#[test]
fn impossible_manifests_are_refused() {
    type Change = (&'static str, fn(&mut Manifest));
    let gpu = |m: &mut Manifest, f: &dyn Fn(&mut GpuLaunch)| {
        if let Launch::Gpu { launch, .. } = &mut m.targets[0].variants[0].kernels[0].launch {
            f(launch);
        }
    };
    let changes: Vec<Change> = vec![
        ("buffer index", |m| m.targets[0].variants[0].kernels[0].operands[0].buffer = BufferId(99)),
        ("writes an input", |m| m.targets[0].variants[0].kernels[0].operands[0].written = true),
        ("input index", |m| m.targets[0].variants[0].buffers[0].role = Role::Input(1)),
        ("weight index", |m| m.targets[0].variants[0].buffers[1].role = Role::Weight(7)),
        ("no output", |m| m.targets[0].variants[0].buffers[3].role = Role::Workspace),
        ("two buffers of one output", |m| m.targets[0].variants[0].buffers[2].role = Role::Output(0)),
        ("pitch", |m| m.targets[0].variants[0].buffers[0].pitch = 7),
        ("columns", |m| m.targets[0].variants[0].buffers[0].cols = 4),
        ("rows", |m| m.targets[0].variants[0].buffers[0].rows = Dim::PerToken(2)),
        ("huge batch", |m| m.targets[0].variants[0].buffers[2].batch = u64::MAX),
        ("huge pitch", |m| m.targets[0].variants[0].buffers[2].pitch = u64::MAX / 2),
        ("huge rows", |m| m.targets[0].variants[0].buffers[2].rows = Dim::PerToken(u64::MAX)),
        ("ranges overlap", |m| m.targets[0].variants[1].tokens.min = 64),
        ("empty range", |m| m.targets[0].variants[1].tokens = TokenRange { min: 70, max: 69 }),
        ("huge range", |m| m.targets[0].variants[1].tokens.max = u64::MAX),
        ("no variants", |m| m.targets[0].variants.clear()),
        ("equal buffer names", |m| m.targets[0].variants[0].buffers[0].name = "y".into()),
        ("equal kernel names", |m| m.targets[0].variants[0].kernels[0].name = "second".into()),
        ("equal targets", |m| m.targets[0].name = "cpu".into()),
        ("no symbol", |m| m.targets[0].variants[0].kernels[0].entry = "a\0b".into()),
        ("no object", |m| m.targets[1].object = Some("cpu/other.o".into())),
        ("no text", |m| m.targets[0].variants[0].tile_text = Some("gone.txt".into())),
        ("path", |m| {
            let info = m.files["graph.txt"].clone();
            m.files.insert("../graph.txt".into(), info);
        }),
        ("file of a kernel", |m| {
            if let Launch::Gpu { file, .. } = &mut m.targets[0].variants[0].kernels[0].launch {
                *file = "none.ptx".into();
            }
        }),
        ("many operands", |m| {
            let o = Operand { buffer: BufferId(0), written: false, strided: false };
            m.targets[0].variants[0].kernels[0].operands = vec![o; 64];
        }),
        ("huge scratch", |m| {
            if let Launch::Cpu { launch } = &mut m.targets[1].variants[0].kernels[0].launch {
                launch.scratch_bytes = u64::MAX;
            }
        }),
        ("parameter that grows", |m| m.params[0].ty.shape[0] = Dim::TOKENS),
        ("empty source", |m| m.params[0].source = WeightSource::FirstOf(vec![])),
        ("huge type", |m| m.inputs[0].ty.shape.push(Dim::Fixed(u64::MAX))),
    ];
    let good = sample().manifest().clone();
    verify_manifest(&good).expect("the sample should be valid");
    let mut refused: Vec<(&str, Manifest)> = Vec::new();
    for (what, change) in changes {
        let mut m = good.clone();
        change(&mut m);
        refused.push((what, m));
    }
    for (what, change) in [
        ("threads", &(|l: &mut GpuLaunch| l.block_threads = 2048) as &dyn Fn(&mut GpuLaunch)),
        ("no threads", &|l| l.block_threads = 0),
        ("cluster", &|l| l.cluster = 17),
        ("shared memory", &|l| l.dynamic_smem_bytes = u32::MAX),
        ("division by zero", &|l| l.grid[0].div = 0),
        ("grid overflow", &|l| l.grid[0].mul = u64::MAX),
        ("grid y", &|l| l.grid[1].min = 65536),
        ("a map of no operand", &|l| l.tensor_maps = vec![TensorMap { operand: 9, ..tensor_map() }]),
        ("a map beyond its buffer", &|l| l.tensor_maps[0].dims[1] = Dim::PerToken(3)),
        ("a map wider than its buffer", &|l| l.tensor_maps[0].dims[0] = Dim::Fixed(1 << 20)),
        ("a map whose size overflows", &|l| l.tensor_maps[0].strides[0] = (1 << 40) - 16),
        ("a map without dimensions", &|l| l.tensor_maps[0].dims.clear()),
        ("a map with too few strides", &|l| l.tensor_maps[0].strides.clear()),
        ("a map with an odd stride", &|l| l.tensor_maps[0].strides[0] = 24),
        ("a map with an empty box", &|l| l.tensor_maps[0].box_dims[1] = 0),
        ("a map with a large box", &|l| l.tensor_maps[0].box_dims[1] = 257),
        ("a map with a box of 12 bytes", &|l| l.tensor_maps[0].box_dims[0] = 3),
        ("a map with a box wider than its swizzle", &|l| l.tensor_maps[0].swizzle_bytes = 32),
        ("a map with a strange swizzle", &|l| l.tensor_maps[0].swizzle_bytes = 96),
        ("too many maps", &|l| l.tensor_maps = vec![tensor_map(); 17]),
    ] {
        let mut m = good.clone();
        gpu(&mut m, &|l| l.tensor_maps = vec![tensor_map()]);
        verify_manifest(&m).expect("the sample's map should be valid");
        gpu(&mut m, change);
        refused.push((what, m));
    }
    for (what, m) in refused {
        assert_eq!(verify_manifest(&m).err().map(|d| d.code).as_deref(), Some("bundle-invalid"), "{what}");
    }
}

#[test]
fn the_variant_is_chosen_by_token_count() {
    let m = sample().manifest().clone();
    let t = m.target("sm_90a").expect("target");
    let chosen: Vec<Option<usize>> = [0, 1, 64, 65, 4096, 4097].iter().map(|&n| t.variant_for(n)).collect();
    assert_eq!(chosen, [Some(0), Some(0), Some(0), Some(1), Some(1), None]);
}

#[test]
fn workspace_is_shared_only_by_buffers_that_are_not_alive_together() {
    let mut v = sample().manifest().targets[1].variants[0].clone();
    let add = |v: &mut moec_bundle::manifest::Variant, name: &str, kernels: &[usize]| {
        let id = BufferId(v.buffers.len() as u32);
        v.buffers.push(Buffer { name: name.into(), ..v.buffers[2].clone() });
        kernels.iter().for_each(|&k| v.kernels[k].operands.push(Operand { buffer: id, written: true, strided: false }));
    };
    let third = v.kernels[1].clone();
    v.kernels.push(third);
    v.kernels[2].operands.clear();
    add(&mut v, "late", &[2]);
    add(&mut v, "all", &[0, 2]);
    let at = |rule| v.workspace_layout(rule, 10);
    // 10 tokens of 8 floats are 320 bytes: two steps of 256.
    assert_eq!(at(WorkspaceRule::Disjoint).offsets[2..], [Some(0), None, Some(512), Some(1024)]);
    assert_eq!(at(WorkspaceRule::Overlay).offsets[2..], [Some(0), None, Some(0), Some(512)]);
    assert_eq!(at(WorkspaceRule::Overlay).bytes, 1024);
    assert_eq!(v.workspace_layout(WorkspaceRule::Overlay, 0).bytes, 0);
}

proptest! {
    /// A manifest with any one JSON value replaced is refused or means the same; it never panics.
    #[test]
    fn odd_manifests_never_panic(at in 0usize..2000, value in prop::sample::select(vec![
        "null", "-1", "0", "1", "18446744073709551615", "1e300", "\"\"", "\"..\"", "[]", "{}", "true",
    ])) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("bundle");
        sample().write(&path).expect("write");
        let file = path.join("manifest.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("json");
        fn replace(v: &mut serde_json::Value, n: &mut usize, with: &serde_json::Value) {
            if *n == 0 {
                *v = with.clone();
            }
            *n = n.wrapping_sub(1);
            match v {
                serde_json::Value::Array(a) => a.iter_mut().for_each(|x| replace(x, n, with)),
                serde_json::Value::Object(o) => o.iter_mut().for_each(|(_, x)| replace(x, n, with)),
                _ => {}
            }
        }
        let mut n = at;
        replace(&mut json, &mut n, &serde_json::from_str(value).expect("value"));
        if let Ok(m) = serde_json::from_value::<Manifest>(json.clone()) {
            let r: Result<(), Diagnostic> = verify_manifest(&m);
            if r.is_ok() {
                for t in &m.targets { for v in &t.variants { v.workspace_layout(v.workspace, t.max_tokens()); } }
            }
        }
        std::fs::write(&file, json.to_string()).expect("write");
        prop_assert!(Bundle::open(&path).is_err(), "it is no longer written as moec writes it");
    }
}
