//! Packing weights: published layouts in, kernel buffers out, and back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use half::{bf16, f16};
use moec_ir::graph::Param;
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{Buffer, Role};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Tensor};
use moec_weights::safetensors::write_safetensors;
use moec_weights::{Checkpoint, Plan, pack_tensor, pack_weight, unpack_weight};
use proptest::prelude::*;

fn checkpoint(tensors: &[(&str, &Tensor)]) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().expect("dir");
    write_safetensors(&dir.path().join("model.safetensors"), tensors).expect("write");
    let checkpoint = Checkpoint::open(dir.path()).expect("open");
    (dir, checkpoint)
}

fn param(dtype: DType, shape: &[u64], source: WeightSource) -> Param {
    Param { name: "w".into(), ty: TensorType::fixed(dtype, shape), source, stored: None }
}

fn buffer(dtype: DType, batch: u64, rows: u64, cols: u64, pitch: u64) -> Buffer {
    Buffer { name: "w".into(), dtype, batch, rows: Dim::Fixed(rows), cols, pitch, role: Role::Weight(0) }
}

/// Packs into memory that was not zero before, so that padding has to be written.
fn borrow_weight<'a>(c: &'a Checkpoint, p: &Param, b: &Buffer) -> Result<Option<&'a [u8]>, moec_ir::Diagnostic> {
    Plan::new(c, None, std::slice::from_ref(p)).map_err(moec_weights::first)?.borrow(&p.name, b)
}

fn pack(c: &Checkpoint, p: &Param, b: &Buffer) -> Result<Vec<u8>, moec_ir::Diagnostic> {
    let mut out = vec![0xAB; b.bytes(0) as usize];
    pack_weight(c, p, b, &mut out).map(|()| out)
}

fn counting(dtype: DType, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::float(dtype, shape, (0..n).map(|i| i as f32).collect())
}

fn code(r: Result<Vec<u8>, moec_ir::Diagnostic>) -> String {
    r.expect_err("should be refused").code
}

#[test]
fn rows_are_written_at_the_pitch_with_zeros_behind() {
    let (_dir, c) = checkpoint(&[("w", &counting(DType::F32, &[2, 3]))]);
    let p = param(DType::F32, &[2, 3], WeightSource::tensor("w"));
    let got = pack(&c, &p, &buffer(DType::F32, 1, 2, 3, 4)).expect("pack");
    let want: Vec<u8> = [0f32, 1., 2., 0., 3., 4., 5., 0.].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(got, want);
}

#[test]
fn experts_are_stacked() {
    let experts: Vec<Tensor> = (0..3).map(|e| Tensor::float(DType::F32, &[1, 2], vec![e as f32, 10.0])).collect();
    let (_dir, c) = checkpoint(&[("x.0.w1", &experts[0]), ("x.1.w1", &experts[1]), ("x.2.w1", &experts[2])]);
    let source = WeightSource::PerExpert {
        names: vec!["y.{e}.w1".into(), "x.{e}.w1".into()],
        first: 0,
        count: 3,
        steps: vec![],
    };
    let p = param(DType::F32, &[3, 1, 2], source);
    let b = buffer(DType::F32, 3, 1, 2, 2);
    let t = unpack_weight(&p, &b, &pack(&c, &p, &b).expect("pack")).expect("unpack");
    assert_eq!(t.floats(), [0., 10., 1., 10., 2., 10.]);
}

/// gpt-oss stores `[E, H, 2F]` with gate and up columns interleaved; the layer asks for `[E, F, H]`.
#[test]
fn interleaved_and_transposed_halves_are_separated() {
    let (_dir, c) = checkpoint(&[("gate_up", &counting(DType::F32, &[2, 3, 4]))]);
    let half = |start| WeightSource::Tensor {
        names: vec!["gate_up".into()],
        steps: vec![WeightStep::Transpose, WeightStep::Slice { axis: 1, start, step: 2, len: 2, of: None }],
    };
    let b = buffer(DType::F32, 2, 2, 3, 3);
    let read = |start| {
        let p = param(DType::F32, &[2, 2, 3], half(start));
        unpack_weight(&p, &b, &pack(&c, &p, &b).expect("pack")).expect("unpack").floats().to_vec()
    };
    assert_eq!(read(0), [0., 4., 8., 2., 6., 10., 12., 16., 20., 14., 18., 22.]);
    assert_eq!(read(1), [1., 5., 9., 3., 7., 11., 13., 17., 21., 15., 19., 23.]);
}

#[test]
fn the_first_source_in_the_checkpoint_is_read() {
    let (_dir, c) = checkpoint(&[("new", &counting(DType::F32, &[2]))]);
    let source = WeightSource::FirstOf(vec![
        WeightSource::per_expert("old.{e}", 2),
        WeightSource::Tensor { names: vec!["older".into(), "new".into()], steps: vec![] },
    ]);
    assert!(pack(&c, &param(DType::F32, &[2], source), &buffer(DType::F32, 1, 1, 2, 2)).is_ok());
}

/// All 65,536 values of each narrow type survive widening and narrowing with their bits.
#[test]
fn narrow_types_widen_exactly_and_come_back() {
    for dtype in [DType::BF16, DType::F16] {
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(|b| b.to_le_bytes()).collect();
        let t = Tensor::from_bytes(dtype, &[65536], &bits).expect("tensor");
        let (_dir, c) = checkpoint(&[("w", &t)]);
        let wide =
            pack(&c, &param(DType::F32, &[65536], WeightSource::tensor("w")), &buffer(DType::F32, 1, 1, 65536, 65536))
                .expect("widen");
        let (_dir2, c2) = checkpoint(&[("w", &Tensor::from_bytes(DType::F32, &[65536], &wide).expect("wide"))]);
        let back = pack(&c2, &param(dtype, &[65536], WeightSource::tensor("w")), &buffer(dtype, 1, 1, 65536, 65536))
            .expect("narrow");
        for (i, (a, b)) in bits.chunks(2).zip(back.chunks(2)).enumerate() {
            let (a, b) = (u16::from_le_bytes([a[0], a[1]]), u16::from_le_bytes([b[0], b[1]]));
            let nan = |x| if dtype == DType::BF16 { bf16::from_bits(x).is_nan() } else { f16::from_bits(x).is_nan() };
            assert!(a == b || (nan(a) && nan(b)), "{dtype} {i:#x}");
        }
    }
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    // 1 + 2^-8 lies between two bf16 values and goes to the even one; a hair above it goes up.
    let t = Tensor::float(DType::F32, &[3], vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 256.0 + 1e-6]);
    let (_dir, c) = checkpoint(&[("w", &t)]);
    let p = param(DType::BF16, &[3], WeightSource::tensor("w"));
    let b = buffer(DType::BF16, 1, 1, 3, 3);
    let got = unpack_weight(&p, &b, &pack(&c, &p, &b).expect("pack")).expect("unpack");
    assert_eq!(got.floats(), [1.0, 1.0 + 4.0 / 256.0, 1.0 + 2.0 / 256.0]);
}

#[test]
fn the_layers_own_type_is_a_rounding_point() {
    let (_dir, c) = checkpoint(&[("w", &Tensor::float(DType::F32, &[1], vec![1.001]))]);
    let p = param(DType::BF16, &[1], WeightSource::tensor("w"));
    let b = buffer(DType::F32, 1, 1, 1, 1);
    assert_eq!(unpack_weight(&p, &b, &pack(&c, &p, &b).expect("pack")).expect("unpack").floats(), [1.0]);
}

#[test]
fn integer_tables_are_narrowed_or_refused() {
    let source = || WeightSource::tensor("t");
    let b = buffer(DType::I32, 1, 1, 2, 2);
    let (_dir, c) = checkpoint(&[("t", &Tensor::int(DType::I64, &[2], vec![7, -1]))]);
    let p = param(DType::I32, &[2], source());
    assert_eq!(unpack_weight(&p, &b, &pack(&c, &p, &b).expect("pack")).expect("unpack").ints(), [7, -1]);
    let (_dir, c) = checkpoint(&[("t", &Tensor::int(DType::I64, &[2], vec![7, 5_000_000_000]))]);
    assert_eq!(code(pack(&c, &p, &b)), "weight-out-of-range");
}

#[test]
fn missing_tensors_are_named_with_the_nearest() {
    let (_dir, c) = checkpoint(&[("model.layers.0.mlp.gate.weight", &counting(DType::F32, &[2]))]);
    let p = param(DType::F32, &[2], WeightSource::tensor("model.layers.7.mlp.gate.weight"));
    let d = pack(&c, &p, &buffer(DType::F32, 1, 1, 2, 2)).expect_err("missing");
    assert_eq!(d.code, "tensor-missing");
    assert!(d.notes.iter().any(|n| n.contains("`model.layers.0.mlp.gate.weight`")), "{:?}", d.notes);
}

#[test]
fn one_missing_expert_is_named() {
    let (_dir, c) = checkpoint(&[("e.0", &counting(DType::F32, &[2])), ("other", &counting(DType::F32, &[2]))]);
    let p = param(DType::F32, &[2, 2], WeightSource::per_expert("e.{e}", 2));
    let d = pack(&c, &p, &buffer(DType::F32, 1, 2, 2, 2)).expect_err("missing");
    assert_eq!(d.code, "tensor-missing");
    assert!(d.notes.iter().any(|n| n.contains("`e.1`")), "{:?}", d.notes);
}

#[test]
fn an_absurd_number_of_experts_is_refused_without_work() {
    let (_dir, c) = checkpoint(&[("e.0", &counting(DType::F32, &[2]))]);
    let p = param(DType::F32, &[1 << 40, 2], WeightSource::per_expert("e.{e}", 1 << 40));
    let b = buffer(DType::F32, 1, 1 << 40, 2, 2);
    assert_eq!(borrow_weight(&c, &p, &b).expect_err("refused").code, "tensor-missing");
}

#[test]
fn wrong_shapes_show_both() {
    let (_dir, c) = checkpoint(&[("w", &counting(DType::F32, &[2, 3]))]);
    let p = param(DType::F32, &[2, 4], WeightSource::tensor("w"));
    let d = pack(&c, &p, &buffer(DType::F32, 1, 2, 4, 4)).expect_err("wrong");
    assert_eq!(d.code, "tensor-shape-mismatch");
    assert!(d.message.contains("F32[2, 3]") && d.message.contains("[2, 4]"), "{}", d.message);
}

#[test]
fn codes_without_scales_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let data = [0u8; 4];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F8_E4M3, vec![2, 2], &data).expect("view");
    std::fs::write(dir.path().join("m.safetensors"), safetensors::serialize([("w", view)], None).expect("bytes"))
        .expect("write");
    let c = Checkpoint::open(dir.path()).expect("open");
    let d = pack(&c, &param(DType::BF16, &[2, 2], WeightSource::tensor("w")), &buffer(DType::BF16, 1, 2, 2, 2))
        .expect_err("quantised");
    assert_eq!(d.code, "quantised-scale-missing");
    assert!(d.message.contains("F8_E4M3") && d.message.contains("m.safetensors"), "{}", d.message);
}

#[test]
fn steps_that_do_not_fit_the_stored_shape_are_refused() {
    let (_dir, c) = checkpoint(&[("w", &counting(DType::F32, &[3]))]);
    let steps = vec![WeightStep::Slice { axis: 0, start: 2, step: 1, len: 2, of: None }];
    let p = param(DType::F32, &[2], WeightSource::Tensor { names: vec!["w".into()], steps });
    assert_eq!(code(pack(&c, &p, &buffer(DType::F32, 1, 1, 2, 2))), "weight-steps-mismatch");
}

#[test]
fn a_buffer_of_another_shape_is_refused() {
    let (_dir, c) = checkpoint(&[("w", &counting(DType::F32, &[2, 3]))]);
    let p = param(DType::F32, &[2, 3], WeightSource::tensor("w"));
    for b in [buffer(DType::F32, 1, 3, 3, 3), buffer(DType::F32, 1, 2, 3, 2), buffer(DType::I32, 1, 2, 3, 3)] {
        assert_eq!(code(pack(&c, &p, &b)), "buffer-shape-mismatch", "{b:?}");
    }
    let b = buffer(DType::F32, 1, 2, 3, 3);
    assert_eq!(pack_weight(&c, &p, &b, &mut [0; 23]).expect_err("short").code, "buffer-shape-mismatch");
}

#[test]
fn a_whole_aligned_tensor_is_read_in_place() {
    let (_dir, c) = checkpoint(&[("w", &counting(DType::F32, &[2, 3]))]);
    let p = param(DType::F32, &[2, 3], WeightSource::tensor("w"));
    let b = buffer(DType::F32, 1, 2, 3, 3);
    // What this crate writes starts at a multiple of 256 bytes of a page-aligned map.
    let there = borrow_weight(&c, &p, &b).expect("fits").expect("aligned");
    assert_eq!(there, pack(&c, &p, &b).expect("pack"));
    assert!(borrow_weight(&c, &p, &buffer(DType::F32, 1, 2, 3, 4)).expect("fits").is_none());
    assert!(borrow_weight(&c, &param(DType::BF16, &[2, 3], WeightSource::tensor("w")), &b).expect("fits").is_none());
}

#[test]
fn a_host_tensor_packs_like_a_stored_one() {
    let t = counting(DType::BF16, &[2, 3, 5]);
    let (_dir, c) = checkpoint(&[("w", &t)]);
    let p = param(DType::BF16, &[2, 3, 5], WeightSource::tensor("w"));
    let b = buffer(DType::BF16, 2, 3, 5, 8);
    let mut got = vec![0xCD; b.bytes(0) as usize];
    pack_tensor(&t, &p, &b, &mut got).expect("pack");
    assert_eq!(got, pack(&c, &p, &b).expect("pack"));
    let wrong = pack_tensor(&counting(DType::BF16, &[2, 5, 3]), &p, &b, &mut got).expect_err("wrong");
    assert_eq!(wrong.code, "tensor-shape-mismatch");
}

#[test]
fn empty_weights_are_fine() {
    let (_dir, c) = checkpoint(&[("w", &Tensor::float(DType::F32, &[0, 3], vec![]))]);
    let p = param(DType::F32, &[0, 3], WeightSource::tensor("w"));
    assert!(pack(&c, &p, &buffer(DType::F32, 0, 1, 3, 3)).expect("pack").is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn unpacking_undoes_packing(
        (e, n, k) in (1usize..5, 1usize..80, 1usize..150),
        pad in 0u64..9,
        from in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        to in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        transposed: bool,
        per_expert: bool,
    ) {
        let value = |e: usize, n: usize, k: usize| ((e * 7919 + n * 104_729 + k * 31) % 509) as f32 / 8.0 - 30.0;
        let stored = |es: std::ops::Range<usize>| {
            let mut v = Vec::new();
            for e in es {
                let (a, b) = if transposed { (k, n) } else { (n, k) };
                for i in 0..a { for j in 0..b { v.push(if transposed { value(e, j, i) } else { value(e, i, j) }) } }
            }
            v
        };
        let inner: Vec<usize> = if transposed { vec![k, n] } else { vec![n, k] };
        let steps = if transposed { vec![WeightStep::Transpose] } else { vec![] };
        let tensors: Vec<(String, Tensor)> = if per_expert {
            (0..e).map(|i| (format!("w.{i}"), Tensor::float(from, &inner, stored(i..i + 1)))).collect()
        } else {
            vec![("w".into(), Tensor::float(from, &[&[e], &inner[..]].concat(), stored(0..e)))]
        };
        let refs: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let (_dir, c) = checkpoint(&refs);
        let source = if per_expert {
            WeightSource::PerExpert { names: vec!["w.{e}".into()], first: 0, count: e as u64, steps }
        } else {
            WeightSource::Tensor { names: vec!["w".into()], steps }
        };
        let p = param(to, &[e as u64, n as u64, k as u64], source);
        let b = buffer(to, e as u64, n as u64, k as u64, k as u64 + pad);
        let bytes = pack(&c, &p, &b).expect("pack");
        let got = unpack_weight(&p, &b, &bytes).expect("unpack");
        let mut want = Vec::new();
        for i in 0..e { for j in 0..n { for l in 0..k { want.push(to.round(from.round(value(i, j, l)))) } } }
        prop_assert_eq!(got.floats(), &want[..]);
        let width = to.bytes();
        let padding = bytes.chunks((k + pad as usize) * width).flat_map(|r| &r[k * width..]);
        prop_assert!(padding.into_iter().all(|&x| x == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// A damaged file is refused or read; it never panics, and what is read stays within the file.
    #[test]
    fn damaged_files_never_panic(at in 0usize..700, byte: u8, cut in prop::option::of(0usize..700)) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("model.safetensors");
        let experts = counting(DType::BF16, &[2, 5, 3]);
        write_safetensors(&path, &[("w", &experts), ("ids", &Tensor::int(DType::I64, &[3], vec![1, 2, 3]))]).expect("write");
        let mut bytes = std::fs::read(&path).expect("read");
        let n = bytes.len();
        bytes[at % n] = byte;
        bytes.truncate(cut.unwrap_or(n));
        std::fs::write(&path, &bytes).expect("write");
        let Ok(c) = Checkpoint::open(&path) else { return Ok(()) };
        let steps = vec![WeightStep::Transpose, WeightStep::Slice { axis: 2, start: 1, step: 2, len: 2, of: None }];
        for name in c.names().map(str::to_string).collect::<Vec<_>>() {
            let view = c.tensor(&name).expect("opened").expect("named");
            prop_assert!(view.data.len() < n);
            view.to_tensor();
            let source = WeightSource::Tensor { names: vec![name], steps: steps.clone() };
            let _ = pack(&c, &param(DType::BF16, &[2, 3, 2], source), &buffer(DType::BF16, 2, 3, 2, 2));
        }
    }
}
