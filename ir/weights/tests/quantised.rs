//! Quantised checkpoints under every convention that is read, against the formats' own formulas.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::graph::Param;
use moec_ir::quant::{Code, QuantFormat, ScaleCode, e2m1, e4m3, e8m0};
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{Buffer, Role};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Diagnostic, Tensor};
use moec_weights::{Checkpoint, pack_tensor, pack_weight, unpack_part, unpack_weight};

/// A stored tensor: name, type, shape, bytes.
type Stored<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// GPTQ and AWQ tell what they are in the config only.
const GPTQ: &str =
    r#"{ "quant_method": "gptq", "bits": 4, "group_size": 4, "sym": false, "checkpoint_format": "gptq" }"#;
const AWQ: &str = r#"{ "quant_method": "awq", "bits": 4, "group_size": 4, "version": "gemm", "zero_point": true }"#;

/// Integers of compressed-tensors tell the sizes of their groups in the config.
const INT4_GROUPS: &str = r#"{ "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
    "g": { "targets": ["re:.*x.*"], "weights": { "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 } } } }"#;

/// As [`checkpoint`], with a `quantization_config` beside the tensors.
fn described(config: &str, tensors: &[Stored]) -> (tempfile::TempDir, Checkpoint) {
    let (dir, _) = checkpoint(tensors);
    std::fs::write(dir.path().join("config.json"), format!(r#"{{ "quantization_config": {config} }}"#))
        .expect("config");
    let c = Checkpoint::open(dir.path()).expect("open");
    (dir, c)
}

fn checkpoint(tensors: &[Stored]) -> (tempfile::TempDir, Checkpoint) {
    let (mut header, mut data) = (String::from("{"), Vec::new());
    for (i, (name, dtype, shape, bytes)) in tensors.iter().enumerate() {
        let end = data.len() + bytes.len();
        let comma = if i > 0 { "," } else { "" };
        header += &format!(
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{end}]}}"#,
            data.len()
        );
        data.extend_from_slice(bytes);
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("model.safetensors"), file).expect("write");
    let c = Checkpoint::open(dir.path()).expect("open");
    (dir, c)
}

/// Deterministic bytes; no e4m3 NaN among them.
fn bytes(n: usize, seed: u32) -> Vec<u8> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 11) as u8 & 0xF7).collect()
}

/// Deterministic e4m3 bytes of positive numbers.
fn positive(n: usize, seed: u32) -> Vec<u8> {
    bytes(n, seed).into_iter().map(|b| b & 0x77 | 8).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_as(c: &Checkpoint, shape: &[u64], source: WeightSource) -> Result<Vec<f32>, Diagnostic> {
    let p = Param { name: "w".into(), ty: TensorType::fixed(DType::F32, shape), source, stored: None };
    let (batch, rows, cols) = match *shape {
        [b, r, c] => (b, r, c),
        [r, c] => (1, r, c),
        _ => (1, 1, shape[0]),
    };
    let pitch = cols + 3;
    let b = Buffer {
        name: "w".into(),
        dtype: DType::F32,
        batch,
        rows: Dim::Fixed(rows),
        cols,
        pitch,
        role: Role::Weight(0),
    };
    let mut out = vec![0xAB; b.bytes(0) as usize];
    pack_weight(c, &p, &b, &mut out)?;
    Ok(unpack_weight(&p, &b, &out)?.floats().to_vec())
}

fn nibble(codes: &[u8], i: usize) -> u8 {
    codes[i / 2] >> (i % 2 * 4) & 15
}

#[test]
fn fp8_blocks_are_cut_short_at_the_edges() {
    let (n, k) = (130, 200);
    let codes = bytes(n * k, 1);
    let scales = [0.5f32, 2.0, 3.0, 0.25];
    for scale_name in ["m.weight_scale_inv", "m.scale"] {
        let (_dir, c) = checkpoint(&[
            ("m.weight", "F8_E4M3", &[n, k], codes.clone()),
            (scale_name, "F32", &[2, 2], floats(&scales)),
        ]);
        let got = read_as(&c, &[130, 200], WeightSource::tensor("m.weight")).expect("pack");
        for (i, v) in got.iter().enumerate() {
            let (row, col) = (i / k, i % k);
            assert_eq!(*v, e4m3(codes[i]) * scales[row / 128 * 2 + col / 128], "{row}, {col}");
        }
    }
}

#[test]
fn fp8_scales_may_be_one_a_tensor_or_one_a_channel() {
    let codes = bytes(6, 2);
    let (_dir, c) = checkpoint(&[
        ("a.weight", "F8_E4M3", &[2, 3], codes.clone()),
        ("a.weight_scale", "BF16", &[2, 1], vec![0x80, 0x3f, 0x00, 0x40]),
        ("b.weight", "F8_E4M3", &[2, 3], codes.clone()),
        ("b.qscale_weight", "F32", &[], floats(&[0.125])),
    ]);
    let a = read_as(&c, &[2, 3], WeightSource::tensor("a.weight")).expect("pack");
    let b = read_as(&c, &[2, 3], WeightSource::tensor("b.weight")).expect("pack");
    for i in 0..6 {
        assert_eq!(a[i], e4m3(codes[i]) * [1.0, 2.0][i / 3]);
        assert_eq!(b[i], e4m3(codes[i]) * 0.125);
    }
}

#[test]
fn global_scales_of_nvfp4_are_multiplied_or_divided_by() {
    let (n, k) = (2, 32);
    let codes = bytes(n * k / 2, 3);
    let scales = positive(n * k / 16, 4);
    let (_dir, c) = checkpoint(&[
        ("a.weight", "U8", &[n, k / 2], codes.clone()),
        ("a.weight_scale", "F8_E4M3", &[n, k / 16], scales.clone()),
        ("a.weight_scale_2", "F32", &[], floats(&[0.5])),
        ("b.weight_packed", "U8", &[n, k / 2], codes.clone()),
        ("b.weight_scale", "F8_E4M3", &[n, k / 16], scales.clone()),
        ("b.weight_global_scale", "F32", &[1], floats(&[4.0])),
    ]);
    let a = read_as(&c, &[2, 32], WeightSource::tensor("a.weight")).expect("pack");
    let b = read_as(&c, &[2, 32], WeightSource::tensor("b.weight")).expect("pack");
    for i in 0..n * k {
        let value = e2m1(nibble(&codes, i)) * e4m3(scales[i / 16]);
        assert_eq!((a[i], b[i]), (value * 0.5, value * 0.25));
    }
}

#[test]
fn mxfp4_of_gpt_oss_is_the_transpose_with_halves_interleaved() {
    let (e, n, k) = (2, 4, 64);
    let codes = bytes(e * n * k / 2, 5);
    let scales: Vec<u8> = (0..e * n * k / 32).map(|i| 120 + i as u8).collect();
    let (_dir, c) = checkpoint(&[
        ("gate_up_blocks", "U8", &[e, n, k / 32, 16], codes.clone()),
        ("gate_up_scales", "U8", &[e, n, k / 32], scales.clone()),
    ]);
    // The float tensor is [E, K, N]; odd columns of N are `up`.
    let steps = vec![WeightStep::Slice { axis: 2, start: 1, step: 2, len: 2, of: None }, WeightStep::Transpose];
    let source = WeightSource::Tensor { names: vec!["gate_up".into()], steps };
    let up = read_as(&c, &[2, 2, 64], source).expect("pack");
    for (i, v) in up.iter().enumerate() {
        let (expert, row, col) = (i / (2 * k), i / k % 2, i % k);
        let at = (expert * n + 2 * row + 1) * k + col;
        assert_eq!(*v, e2m1(nibble(&codes, at)) * e8m0(scales[at / 32]));
    }
}

#[test]
fn experts_in_int4_and_mxfp4_are_stacked() {
    let (n, k) = (3, 64);
    let codes = [bytes(n * k / 2, 6), bytes(n * k / 2, 7)];
    let scale = [0x80, 0x3f].repeat(n * 2); // 1.0 in bf16
    let (_dir, c) = described(
        INT4_GROUPS,
        &[
            ("x.0.w_packed", "I32", &[n, k / 8], codes[0].clone()),
            ("x.0.w_scale", "BF16", &[n, 2], scale.clone()),
            ("x.1.w_packed", "I32", &[n, k / 8], codes[1].clone()),
            ("x.1.w_scale", "BF16", &[n, 2], scale),
            ("y.0.w", "I8", &[n, k / 2], codes[0].clone()),
            ("y.0.w.scale", "F8_E8M0", &[n, 2], vec![128; n * 2]),
        ],
    );
    let int4 = read_as(&c, &[2, 3, 64], WeightSource::per_expert("x.{e}.w", 2)).expect("pack");
    for (i, v) in int4.iter().enumerate() {
        assert_eq!(*v, f32::from(nibble(&codes[i / (n * k)], i % (n * k))) - 8.0);
    }
    let fp4 = read_as(&c, &[1, 3, 64], WeightSource::per_expert("y.{e}.w", 1)).expect("pack");
    assert!(fp4.iter().enumerate().all(|(i, v)| *v == e2m1(nibble(&codes[0], i)) * 2.0));
}

#[test]
fn scales_that_are_missing_or_do_not_fit_are_refused() {
    let (_dir, c) = checkpoint(&[
        ("a.weight", "F8_E4M3", &[2, 3], bytes(6, 1)),
        ("b.weight", "F8_E4M3", &[200, 3], bytes(600, 1)),
        ("b.weight_scale_inv", "F32", &[1, 1], floats(&[1.0])),
        ("c.weight_packed", "U8", &[2, 8], bytes(16, 1)),
        ("c.weight_scale", "F8_E4M3", &[3, 1], positive(3, 1)),
        ("d_blocks", "U8", &[2, 8], bytes(16, 1)),
        ("d_scales", "U8", &[2, 1], bytes(2, 1)),
        ("e.qweight", "I32", &[2, 8], bytes(64, 1)),
    ]);
    let code = |shape: &[u64], name: &str| read_as(&c, shape, WeightSource::tensor(name)).expect_err("refused").code;
    assert_eq!(code(&[2, 3], "a.weight"), "quantised-scale-missing");
    assert_eq!(code(&[200, 3], "b.weight"), "quantised-scale-mismatch");
    assert_eq!(code(&[2, 16], "c.weight"), "quantised-scale-mismatch");
    assert_eq!(code(&[2, 16], "d"), "quantised-scale-mismatch");
    assert_eq!(code(&[8, 16], "e.weight"), "quantised-scale-missing");
}

#[test]
fn gptq_codes_lie_along_columns_and_zero_points_are_stored_less_one() {
    // k = 8, n = 8, two groups of four: code of (row, col) is (row + col) & 15; zero points are 0 (stored as 15) and 3.
    let word = |f: &dyn Fn(u32) -> u32| (0..8).map(|i| f(i) << (4 * i)).sum::<u32>();
    let codes: Vec<u8> = (0..8).flat_map(|n| word(&|k| (n + k) & 15).to_le_bytes()).collect();
    let zeros: Vec<u8> = [word(&|_| 15), word(&|_| 2)].iter().flat_map(|w| w.to_le_bytes()).collect();
    let scales: Vec<u8> = (0..16).flat_map(|i| half::f16::from_f32(1.0 + i as f32).to_le_bytes()).collect();
    let groups: Vec<u8> = [1i32, 0, 1, 0, 1, 0, 1, 0].iter().flat_map(|g| g.to_le_bytes()).collect();
    let (_dir, c) = described(
        GPTQ,
        &[
            ("m.qweight", "I32", &[1, 8], codes.clone()),
            ("m.qzeros", "I32", &[2, 1], zeros.clone()),
            ("m.scales", "F16", &[2, 8], scales.clone()),
            ("m.g_idx", "I32", &[8], groups),
        ],
    );
    let got = read_as(&c, &[8, 8], WeightSource::tensor("m.weight")).expect("pack");
    for (i, v) in got.iter().enumerate() {
        let (n, k) = (i / 8, i % 8);
        let group = 1 - k % 2;
        let want = (((n + k) & 15) as f32 - [0.0, 3.0][group]) * (1.0 + (8 * group + n) as f32);
        assert_eq!(*v, want, "{n}, {k}");
    }
    let outside: Vec<u8> = [2i32; 8].iter().flat_map(|g| g.to_le_bytes()).collect();
    let (_dir, c) = described(
        GPTQ,
        &[
            ("m.qweight", "I32", &[1, 8], codes),
            ("m.qzeros", "I32", &[2, 1], zeros),
            ("m.scales", "F16", &[2, 8], scales),
            ("m.g_idx", "I32", &[8], outside),
        ],
    );
    let d = read_as(&c, &[8, 8], WeightSource::tensor("m.weight")).expect_err("a group that does not exist");
    assert_eq!(d.code, "quantised-scale-mismatch");
}

#[test]
fn awq_words_hold_every_other_column_first() {
    // One word holds eight output columns; place i holds column [0, 2, 4, 6, 1, 3, 5, 7][i].
    let order = [0u32, 2, 4, 6, 1, 3, 5, 7];
    let word = |f: &dyn Fn(u32) -> u32| (0..8).map(|i| f(order[i as usize]) << (4 * i)).sum::<u32>();
    let codes: Vec<u8> = (0..4).flat_map(|k| word(&|n| (n + 2 * k) & 15).to_le_bytes()).collect();
    let (_dir, c) = described(
        AWQ,
        &[
            ("m.qweight", "I32", &[4, 1], codes),
            ("m.qzeros", "I32", &[1, 1], word(&|n| n).to_le_bytes().to_vec()),
            ("m.scales", "F16", &[1, 8], [0, 0x3c].repeat(8)),
        ],
    );
    let got = read_as(&c, &[8, 4], WeightSource::tensor("m.weight")).expect("pack");
    for (i, v) in got.iter().enumerate() {
        let (n, k) = (i as i32 / 4, i as i32 % 4);
        assert_eq!(*v, (((n + 2 * k) & 15) - n) as f32, "{n}, {k}");
    }
}

#[test]
fn blocks_of_other_sizes_are_those_of_the_config() {
    let codes = bytes(64 * 64, 9);
    let scales = [1.0f32, 2.0, 4.0, 8.0];
    let tensors: [Stored; 4] = [
        ("m.weight", "F8_E4M3", &[64, 64], codes.clone()),
        ("m.weight_scale_inv", "F32", &[2, 2], floats(&scales)),
        ("mx.weight", "F8_E4M3", &[2, 40], codes[..80].to_vec()),
        ("mx.weight_scale", "U8", &[2, 2], vec![127, 128, 126, 127]),
    ];
    let of = |sizes: [u64; 2]| format!(r#"{{ "quant_method": "fp8", "weight_block_size": {sizes:?} }}"#);
    let m = || WeightSource::tensor("m.weight");
    for size in [32, 48] {
        let (_dir, c) = described(&of([size, size]), &tensors);
        let got = read_as(&c, &[64, 64], m()).expect("blocks of the config");
        let at = |i: usize| i / 64 / size as usize * 2 + i % 64 / size as usize;
        assert!((0..64 * 64).all(|i| got[i] == e4m3(codes[i]) * scales[at(i)]), "{size}");
    }
    // 64 columns have one block of 64, and without a config nothing says which of many sizes they are.
    let (_dir, c) = described(&of([64, 64]), &tensors);
    assert_eq!(read_as(&c, &[64, 64], m()).expect_err("one block").code, "quantised-scale-mismatch");
    let (_dir, c) = checkpoint(&tensors);
    assert_eq!(read_as(&c, &[64, 64], m()).expect_err("no config").code, "quantised-scale-mismatch");
    let got = read_as(&c, &[2, 40], WeightSource::tensor("mx.weight")).expect("a group that is cut short");
    assert!((0..80).all(|i| got[i] == e4m3(codes[i]) * [1.0, 2.0, 0.5, 1.0][i / 40 * 2 + i % 40 / 32]));
}

#[test]
fn what_stands_twice_or_beside_floats_is_refused() {
    let (_dir, c) = checkpoint(&[
        ("a.weight", "F8_E4M3", &[2, 3], bytes(6, 1)),
        ("a.weight_scale", "F32", &[1], floats(&[1.0])),
        ("a.weight_scale_inv", "F32", &[1, 1], floats(&[2.0])),
        ("b.weight", "F32", &[2, 2], floats(&[1.0, 2.0, 3.0, 4.0])),
        ("b.weight_scale", "F32", &[1], floats(&[2.0])),
        ("c", "F32", &[2, 2], floats(&[1.0, 2.0, 3.0, 4.0])),
        ("c.scale", "F32", &[1], floats(&[2.0])),
    ]);
    let read = |name: &str, shape: &[u64]| read_as(&c, shape, WeightSource::tensor(name));
    let d = read("a.weight", &[2, 3]).unwrap_err();
    assert!(d.code == "quantised-form-ambiguous" && d.message.contains("`a.weight_scale_inv`"), "{d:?}");
    let d = read("b.weight", &[2, 2]).unwrap_err();
    assert!(d.code == "quantised-form-ambiguous" && d.message.contains("`b.weight_scale`"), "{d:?}");
    // A parameter of its own.
    assert_eq!(read("c", &[2, 2]), Ok(vec![1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn zero_points_next_to_the_middle_are_those_of_symmetric_codes() {
    let symmetric = |stored: u8, config: &str| {
        let word = i32::from_le_bytes([stored | stored << 4; 4]).to_le_bytes();
        let zeros: Vec<u8> = word.iter().copied().cycle().take(16).collect();
        let scales: Vec<u8> = half::f16::from_f32(1.0).to_le_bytes().repeat(32);
        let (_dir, c) = described(
            config,
            &[
                ("m.qweight", "I32", &[1, 16], bytes(64, 3)),
                ("m.qzeros", "I32", &[2, 2], zeros),
                ("m.scales", "F16", &[2, 16], scales),
            ],
        );
        read_as(&c, &[16, 8], WeightSource::tensor("m.weight")).map_err(|d| d.code)
    };
    let v2 = GPTQ.replace("\"gptq\" }", "\"gptq_v2\" }");
    assert!(symmetric(7, GPTQ).is_ok() && symmetric(8, &v2).is_ok());
    assert_eq!(symmetric(8, GPTQ).unwrap_err(), "quantisation-contradicts-config");
    assert_eq!(symmetric(7, &v2).unwrap_err(), "quantisation-contradicts-config");
    // Of a tool that always says how it packs, silence is no answer.
    let gptqmodel =
        GPTQ.replace("\"checkpoint_format\": \"gptq\"", "\"meta\": { \"quantizer\": [\"gptqmodel:7.7.0\"] }");
    assert_eq!(symmetric(3, &gptqmodel).unwrap_err(), "quantisation-not-described");
}

#[test]
fn a_part_of_an_adapter_is_refused_by_name() {
    let weight = |name: &'static str| (name, "F32", &[2usize, 2] as &[usize], floats(&[1.0, 2.0, 3.0, 4.0]));
    let code = |tensors: &[Stored]| {
        let (_dir, c) = checkpoint(tensors);
        read_as(&c, &[2, 2], WeightSource::tensor("layers.0.mlp.up.weight")).map(|_| ()).map_err(|d| d.code.to_string())
    };
    let up = || weight("layers.0.mlp.up.weight");
    let refused = |code: &str| Err(code.to_string());
    assert_eq!(code(&[up(), weight("layers.0.mlp.up.lora_A.weight")]), refused("adapter-not-merged"));
    assert_eq!(code(&[up(), weight("layers.1.mlp.up.lora_A.weight")]), Ok(()));
}

#[test]
fn an_order_of_columns_is_stored_for_all_matrices_or_none() {
    let order: Vec<u8> = [1i32, 0, 1, 0, 1, 0, 1, 0].iter().flat_map(|g| g.to_le_bytes()).collect();
    let matrix = |m: &'static [&'static str; 3]| {
        let scales: Vec<u8> = half::f16::from_f32(1.0).to_le_bytes().repeat(16);
        let (codes, zeros): (Stored, Stored) = (
            (m[0], "I32", &[1, 8], bytes(32, 7)),
            (m[1], "I32", &[2, 1], vec![0x12, 0x34, 0x12, 0x34, 0x12, 0x34, 0x12, 0x34]),
        );
        [codes, zeros, (m[2], "F16", &[2, 8], scales)]
    };
    let up = || matrix(&["up.qweight", "up.qzeros", "up.scales"]);
    let down = || matrix(&["down.qweight", "down.qzeros", "down.scales"]);
    let param = |name: &str| {
        let ty = TensorType::new(DType::F32, [Dim::Fixed(8), Dim::Fixed(8)]);
        Param { name: name.into(), ty, source: WeightSource::tensor(format!("{name}.weight")), stored: None }
    };
    let plan = |tensors: Vec<Stored>| {
        let (_dir, c) = described(GPTQ, &tensors);
        moec_weights::Plan::new(&c, None, &[param("up"), param("down")]).map(|_| ()).map_err(|d| d[0].message.clone())
    };
    let g_idx = |name: &'static str| (name, "I32", &[8usize] as &[usize], order.clone());
    assert_eq!(plan([&up()[..], &down()].concat()), Ok(()));
    assert_eq!(plan([&up()[..], &down(), &[g_idx("up.g_idx"), g_idx("down.g_idx")]].concat()), Ok(()));
    let message = plan([&up()[..], &down(), &[g_idx("up.g_idx")]].concat()).unwrap_err();
    assert!(message.contains("down.g_idx"), "{message}");
}

#[test]
fn matrices_of_a_layer_have_scales_of_one_type() {
    let codes = |name: &'static str| (name, "F8_E4M3", &[2usize, 4] as &[usize], bytes(8, 2));
    let (_dir, c) = checkpoint(&[
        codes("gate.weight"),
        ("gate.weight_scale", "F32", &[1], floats(&[1.0])),
        codes("up.weight"),
        ("up.weight_scale", "BF16", &[1], vec![0x80, 0x3f]),
    ]);
    let param = |name: &str| {
        let ty = TensorType::new(DType::F32, [Dim::Fixed(2), Dim::Fixed(4)]);
        Param { name: name.into(), ty, source: WeightSource::tensor(format!("{name}.weight")), stored: None }
    };
    assert!(moec_weights::Plan::new(&c, None, &[param("gate")]).is_ok());
    let d = moec_weights::Plan::new(&c, None, &[param("gate"), param("up")]).map(|_| ()).unwrap_err();
    assert!(d[0].code == "quantised-scale-mismatch" && d[0].message.contains("`up.weight`"), "{d:?}");
}

#[test]
fn what_an_input_is_multiplied_by_is_taken_into_the_columns() {
    let codes = bytes(6, 2);
    let scales = [0.5f32, 2.0, 4.0];
    let (_dir, c) = checkpoint(&[
        ("m.weight", "F8_E4M3", &[2, 3], codes.clone()),
        ("m.weight_scale", "F32", &[], floats(&[0.25])),
        ("m.pre_quant_scale", "F32", &[3], floats(&scales)),
        ("bad.weight", "F8_E4M3", &[2, 3], codes.clone()),
        ("bad.weight_scale", "F32", &[], floats(&[0.25])),
        ("bad.pre_quant_scale", "F32", &[3], floats(&[1.0, f32::NAN, 1.0])),
    ]);
    let got = read_as(&c, &[2, 3], WeightSource::tensor("m.weight")).expect("pack");
    assert!((0..6).all(|i| got[i] == e4m3(codes[i]) * 0.25 * scales[i % 3]));
    let d = read_as(&c, &[2, 3], WeightSource::tensor("bad.weight")).expect_err("NaN");
    assert!(d.code == "quantised-scale-invalid" && d.message.contains("scale 1 of `bad.pre_quant_scale`"), "{d:?}");
}

#[test]
fn a_scale_that_no_quantiser_writes_is_refused_by_its_number() {
    for (scale, value) in [(0u8, "0"), (0x7f, "NaN"), (0x88, "-0.015625")] {
        let mut scales = positive(4, 1);
        scales[2] = scale;
        let (_dir, c) = checkpoint(&[
            ("a.weight", "U8", &[2, 16], vec![0x21; 32]),
            ("a.weight_scale", "F8_E4M3", &[2, 2], scales),
            ("a.weight_scale_2", "F32", &[], floats(&[0.5])),
        ]);
        let d = read_as(&c, &[2, 32], WeightSource::tensor("a.weight")).expect_err("no scale");
        assert_eq!(d.code, "quantised-scale-invalid");
        assert!(d.message.contains("scale 2 of `a.weight_scale`") && d.message.contains(value), "{}", d.message);
    }
    // A block of zeros needs no scale.
    let (_dir, c) = checkpoint(&[
        ("a.weight", "U8", &[1, 16], [vec![0x21; 8], vec![0x80; 8]].concat()),
        ("a.weight_scale", "F8_E4M3", &[1, 2], vec![0x38, 0]),
        ("a.weight_scale_2", "F32", &[], floats(&[1.0])),
    ]);
    assert!(read_as(&c, &[1, 32], WeightSource::tensor("a.weight")).is_ok());
}

#[test]
fn of_two_layouts_under_one_name_the_one_that_fits_is_read() {
    let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
    let (_dir, c) = checkpoint(&[("m", "F32", &[3, 2], floats(&values))]);
    let turned = WeightSource::Tensor { names: vec!["m".into()], steps: vec![WeightStep::Transpose] };
    let either = || WeightSource::FirstOf(vec![turned.clone(), WeightSource::tensor("m")]);
    assert_eq!(read_as(&c, &[2, 3], either()).expect("transposed"), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(read_as(&c, &[3, 2], either()).expect("as it is"), values);
}

/// A parameter packed as codes, scales and global scales.
struct Parts {
    codes: Tensor,
    scales: Tensor,
    globals: Tensor,
}

const FP8_BLOCKS: QuantFormat = format(Code::E4M3, ScaleCode::F32, 128, 128);
const MXFP4: QuantFormat = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
const NVFP4: QuantFormat = format(Code::E2M1, ScaleCode::E4M3, 1, 16);
const INT4: QuantFormat = format(Code::Int4, ScaleCode::BF16, 1, 32);

const fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

/// The buffers of a parameter `[E, N, K]` or `[N, K]` that is stored in `f`; rows of codes have padding.
fn part_buffers(f: QuantFormat, shape: &[u64]) -> [Buffer; 3] {
    let (e, n, k) = match *shape {
        [e, n, k] => (e, n, k),
        _ => (1, shape[0], shape[1]),
    };
    let (grid_rows, grid_cols) = f.scale_grid(n, k);
    let codes = f.code.bytes(k);
    let buffer = |role, dtype, (batch, rows, cols), pitch| {
        let rows = Dim::Fixed(rows);
        Buffer { name: format!("{role:?}"), dtype, batch, rows, cols, pitch, role }
    };
    [
        buffer(Role::Weight(0), DType::U8, (e, n, codes), codes.next_multiple_of(16) + 16),
        buffer(Role::WeightScale(0), f.scale.dtype(), (e, grid_rows, grid_cols), grid_cols + 3),
        buffer(Role::WeightGlobal(0), DType::F32, (1, 1, e), e),
    ]
}

fn pack_parts(c: &Checkpoint, f: QuantFormat, shape: &[u64], source: WeightSource) -> Result<Parts, Diagnostic> {
    let p = Param { name: "w".into(), ty: TensorType::fixed(DType::F32, shape), source, stored: Some(f) };
    let pack = |b: &Buffer| {
        let mut out = vec![0xAB; b.bytes(0) as usize];
        pack_weight(c, &p, b, &mut out)?;
        unpack_part(b, &out)
    };
    let [codes, scales, globals] = part_buffers(f, shape);
    Ok(Parts { codes: pack(&codes)?, scales: pack(&scales)?, globals: pack(&globals)? })
}

/// Packs a parameter both ways; codes and scales have to mean the values.
#[track_caller]
fn packs_alike(c: &Checkpoint, f: QuantFormat, shape: &[u64], source: WeightSource) -> Parts {
    let parts = pack_parts(c, f, shape, source.clone()).expect("packs");
    let values = read_as(c, shape, source).expect("packs dequantised");
    let (n, k) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let codes = parts.codes.to_bytes();
    let scales = parts.scales.to_bytes();
    let matrices = values.len() as u64 / (n * k);
    for row in 0..matrices * n {
        let matrix = (row / n) as usize;
        let (row_bytes, grid) = (f.code.bytes(k) as usize, scales.len() / matrices as usize);
        let mut out = vec![0.0; k as usize];
        let global = if f.has_global() { parts.globals.floats()[matrix] } else { 1.0 };
        let codes = &codes[row as usize * row_bytes..][..row_bytes];
        f.decode_row(codes, &scales[matrix * grid..][..grid], global, row % n, (n, k), &mut out);
        let want = &values[(row * k) as usize..][..k as usize];
        assert!(out.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "row {row} of {shape:?}");
    }
    parts
}

fn sliced(name: &str, slices: &[(u32, u64, u64, u64)], transpose: bool) -> WeightSource {
    let mut steps: Vec<WeightStep> =
        slices.iter().map(|&(axis, start, step, len)| WeightStep::Slice { axis, start, step, len, of: None }).collect();
    if transpose {
        steps.push(WeightStep::Transpose);
    }
    WeightSource::Tensor { names: vec![name.into()], steps }
}

#[test]
fn codes_and_scales_are_copied_bit_for_bit() {
    let (n, k) = (130, 200);
    let codes = bytes(n * k, 1);
    let scales = floats(&[0.5, 2.0, 3.1, 0.25]);
    let (_dir, c) = checkpoint(&[
        ("m.weight", "F8_E4M3", &[n, k], codes.clone()),
        ("m.weight_scale_inv", "F32", &[2, 2], scales.clone()),
    ]);
    let parts = packs_alike(&c, FP8_BLOCKS, &[130, 200], WeightSource::tensor("m.weight"));
    assert_eq!((parts.codes.to_bytes(), parts.scales.to_bytes()), (codes, scales));
}

#[test]
fn slices_on_block_edges_take_their_own_scales() {
    let (n, k) = (256, 384);
    let scales: Vec<f32> = (0..6).map(|i| 0.3 + i as f32).collect();
    let (_dir, c) = checkpoint(&[
        ("m.weight", "F8_E4M3", &[n, k], bytes(n * k, 1)),
        ("m.weight_scale_inv", "F32", &[2, 3], floats(&scales)),
    ]);
    // The second half of the rows; the columns of one of three ranks.
    let up = packs_alike(&c, FP8_BLOCKS, &[128, 384], sliced("m.weight", &[(0, 128, 1, 128)], false));
    assert_eq!(up.scales.floats(), &scales[3..]);
    let rank = packs_alike(&c, FP8_BLOCKS, &[256, 128], sliced("m.weight", &[(1, 128, 1, 128)], false));
    assert_eq!(rank.scales.floats(), [scales[1], scales[4]]);
    // A slice that cuts blocks has no scales of its own.
    for slices in [[(0, 64, 1, 128), (1, 0, 1, 384)], [(0, 0, 1, 256), (1, 64, 1, 128)]] {
        let shape = [slices[0].3, slices[1].3];
        let refused = pack_parts(&c, FP8_BLOCKS, &shape, sliced("m.weight", &slices, false));
        assert_eq!(refused.err().map(|d| d.code), Some("stored-format-mismatch".to_string()));
    }
}

#[test]
fn interleaved_transposed_and_stacked_codes_are_rows_too() {
    let (e, n, k) = (2, 6, 96);
    let codes = bytes(e * n * k / 2, 5);
    let scales: Vec<u8> = (0..e * n * k / 32).map(|i| 110 + i as u8).collect();
    let (_dir, c) = described(
        INT4_GROUPS,
        &[
            ("gate_up_blocks", "U8", &[e, n, k / 32, 16], codes.clone()),
            ("gate_up_scales", "U8", &[e, n, k / 32], scales.clone()),
            ("x.0.w_packed", "I32", &[n, k / 8], bytes(n * k / 2, 6)),
            ("x.0.w_scale", "BF16", &[n, 3], [0x80, 0x3f].repeat(n * 3)),
            ("x.1.w_packed", "I32", &[n, k / 8], bytes(n * k / 2, 7)),
            ("x.1.w_scale", "BF16", &[n, 3], [0x20, 0x3e].repeat(n * 3)),
        ],
    );
    let up = packs_alike(&c, MXFP4, &[2, 3, 96], sliced("gate_up", &[(2, 1, 2, 3)], true));
    let row = k / 2;
    let odd: Vec<u8> = [1, 3, 5, 7, 9, 11].iter().flat_map(|r| codes[r * row..(r + 1) * row].to_vec()).collect();
    assert_eq!(up.codes.to_bytes(), odd);
    // A rank's part of K, from a block edge.
    packs_alike(&c, MXFP4, &[2, 6, 64], sliced("gate_up", &[(1, 32, 1, 64)], true));
    packs_alike(&c, INT4, &[2, 6, 96], WeightSource::per_expert("x.{e}.w", 2));
}

#[test]
fn global_scales_stay_apart_in_either_direction() {
    let (n, k) = (4, 64);
    let scales = positive(n * k / 16, 4);
    let (_dir, c) = checkpoint(&[
        ("x.0.w", "U8", &[n, k / 2], bytes(n * k / 2, 3)),
        ("x.0.w_scale", "F8_E4M3", &[n, k / 16], scales.clone()),
        ("x.0.w_scale_2", "F32", &[], floats(&[0.3])),
        ("x.1.w", "U8", &[n, k / 2], bytes(n * k / 2, 8)),
        ("x.1.w_scale", "F8_E4M3", &[n, k / 16], scales.clone()),
        ("x.1.w_scale_2", "F32", &[], floats(&[0.7])),
        ("y_packed", "U8", &[n, k / 2], bytes(n * k / 2, 9)),
        ("y_scale", "F8_E4M3", &[n, k / 16], scales),
        ("y_global_scale", "F32", &[1], floats(&[3.0])),
    ]);
    let x = packs_alike(&c, NVFP4, &[2, 4, 64], WeightSource::per_expert("x.{e}.w", 2));
    assert_eq!(x.globals.floats(), [0.3, 0.7]);
    let y = packs_alike(&c, NVFP4, &[4, 64], WeightSource::tensor("y"));
    assert_eq!(y.globals.floats(), [1.0 / 3.0]);
}

#[test]
fn one_scale_for_a_tensor_serves_every_block_of_the_bundle() {
    let (_dir, c) = checkpoint(&[
        ("b.weight", "F8_E4M3", &[130, 5], bytes(650, 2)),
        ("b.weight_scale", "F32", &[], floats(&[0.3])),
    ]);
    for f in [FP8_BLOCKS, format(Code::E4M3, ScaleCode::F32, 0, 0), format(Code::E4M3, ScaleCode::F32, 1, 0)] {
        packs_alike(&c, f, &[130, 5], WeightSource::tensor("b.weight"));
    }
}

#[test]
fn scales_in_another_type_are_converted_only_when_that_is_exact() {
    let c = |scale: f32| {
        checkpoint(&[
            ("b.weight", "F8_E4M3", &[2, 4], bytes(8, 2)),
            ("b.weight_scale", "F32", &[2, 1], floats(&[scale, 0.5])),
        ])
    };
    let per_row = |scale| format(Code::E4M3, scale, 1, 0);
    let (_dir, exact) = c(0.75);
    packs_alike(&exact, per_row(ScaleCode::BF16), &[2, 4], WeightSource::tensor("b.weight"));
    let (_dir, inexact) = c(0.3);
    let refused = pack_parts(&inexact, per_row(ScaleCode::BF16), &[2, 4], WeightSource::tensor("b.weight"));
    assert_eq!(refused.err().map(|d| d.code), Some("scale-not-exact".to_string()));
}

#[test]
fn weights_of_another_format_than_compiled_for_are_refused() {
    let (_dir, c) = checkpoint(&[
        ("dense", "BF16", &[2, 32], bytes(128, 1)),
        ("coarse.weight", "F8_E4M3", &[2, 32], bytes(64, 1)),
        ("coarse.weight_scale", "F32", &[2, 1], floats(&[1.0, 2.0])),
    ]);
    let refused = |f: QuantFormat, name: &str| {
        let d = pack_parts(&c, f, &[2, 32], WeightSource::tensor(name)).err().expect("refused");
        assert_eq!(d.code, "stored-format-mismatch");
        d.message
    };
    let dense = refused(MXFP4, "dense");
    assert!(dense.contains("e2m1 by e8m0(1, 32)") && dense.contains("has it as bf16"), "{dense}");
    assert!(refused(MXFP4, "coarse.weight").contains("has it as e4m3 by f32(1, "));
    // Two rows with a scale each are not one block.
    refused(FP8_BLOCKS, "coarse.weight");
    // Host tensors are floats.
    let [codes, ..] = part_buffers(MXFP4, &[2, 32]);
    let (ty, source) = (TensorType::fixed(DType::F32, &[2, 32]), WeightSource::tensor("w"));
    let p = Param { name: "w".into(), ty, source, stored: Some(MXFP4) };
    let mut out = vec![0; codes.bytes(0) as usize];
    let given = pack_tensor(&Tensor::float(DType::F32, &[2, 32], vec![0.0; 64]), &p, &codes, &mut out);
    assert_eq!(given.err().map(|d| d.code), Some("stored-format-mismatch".to_string()));
}

#[test]
fn the_largest_static_scale_serves_all_experts() {
    let codes = ("F8_E4M3", bytes(6, 2));
    let weight = |name: &'static str| (name, codes.0, &[2usize, 3] as &[usize], codes.1.clone());
    let scale = |name: &'static str, v: f32| (name, "F32", &[] as &[usize], floats(&[v]));
    let (_dir, c) = checkpoint(&[
        weight("e.0.gate.weight"),
        weight("e.1.gate.weight"),
        weight("e.0.up.weight"),
        weight("e.1.up.weight"),
        // ModelOpt multiplies, compressed-tensors divides: the least of its scales is the largest.
        scale("e.0.gate.input_scale", 0.5),
        scale("e.1.gate.input_scale", 0.25),
        scale("e.0.up.input_global_scale", 4.0),
        scale("e.1.up.input_global_scale", 1.25),
        weight("none.weight"),
        weight("bad.weight"),
        scale("bad.input_global_scale", 0.0),
    ]);
    let experts = |name: &str| WeightSource::per_expert(format!("e.{{e}}.{name}.weight"), 2);
    let largest = |of: Vec<WeightSource>| read_as(&c, &[1], WeightSource::LargestInputScale(of));
    assert_eq!(largest(vec![experts("gate")]), Ok(vec![0.5]));
    assert_eq!(largest(vec![experts("gate"), experts("up")]), Ok(vec![1.0 / 1.25]));
    for (name, code) in [
        ("none.weight", "quantised-scale-missing"),
        ("absent.weight", "quantised-scale-missing"),
        ("bad.weight", "quantised-scale-mismatch"),
    ] {
        assert_eq!(largest(vec![WeightSource::tensor(name)]).unwrap_err().code, code, "{name}");
    }
}
