//! How fast weights come from their published layouts into the buffers that kernels read: bytes written a second, for each
//! layout that is not a plain copy. Files stay in the page cache. Prints figures; asserts nothing.
//!
//! `cargo xtask bench pack`, or with names of layouts as arguments: only those.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use moec_ir::DType;
use moec_ir::graph::Param;
use moec_ir::shape::{Dim, TensorType};
use moec_ir::tile::{Buffer, Role};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_weights::{Checkpoint, Plan};
use std::time::Instant;

/// Experts, rows and columns of the matrices of Qwen3-30B-A3B's gate.
const E: u64 = 16;
const N: u64 = 768;
const K: u64 = 2048;
/// Rows and columns of gpt-oss's gate.
const F: u64 = 2880;
const ROUNDS: usize = 7;

/// One published layout of a `bf16[experts, n, k]`.
struct Layout {
    name: &'static str,
    /// Name, type in the header and shape of each tensor; `{e}` in a name stands for each expert.
    tensors: Vec<(&'static str, &'static str, Vec<u64>)>,
    source: WeightSource,
    shape: [u64; 3],
    /// `quantization_config`, where the tensors do not say all.
    config: &'static str,
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for layout in layouts().iter().filter(|l| only.is_empty() || only.iter().any(|o| o == l.name)) {
        println!("{:32} {:6.2} GB/s", layout.name, median_rate(layout));
    }
}

fn layouts() -> Vec<Layout> {
    let stack = |steps| WeightSource::Tensor { names: vec!["w".into()], steps };
    let experts = || WeightSource::per_expert("w.{e}.weight", E);
    let even_rows = |len| WeightStep::Slice { axis: 1, start: 0, step: 2, len, of: None };
    let plain = [E, N, K];
    let oss = [4, F, F];
    vec![
        Layout {
            name: "bf16",
            tensors: vec![("w", "BF16", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "bf16-transposed",
            tensors: vec![("w", "BF16", vec![E, K, N])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "bf16-transposed-interleaved",
            tensors: vec![("w", "BF16", vec![4, F, 2 * F])],
            source: stack(vec![WeightStep::Transpose, even_rows(F)]),
            shape: oss,
            config: "",
        },
        Layout {
            name: "f32-transposed",
            tensors: vec![("w", "F32", vec![E, K, N])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "mxfp4-gptoss",
            tensors: vec![("w_blocks", "U8", vec![4, 2 * F, F / 32, 16]), ("w_scales", "U8", vec![4, 2 * F, F / 32])],
            source: stack(vec![WeightStep::Transpose, even_rows(F)]),
            shape: oss,
            config: "",
        },
        Layout {
            name: "mxfp4-across",
            tensors: vec![("w_packed", "U8", vec![E, K, N / 2]), ("w_scale", "U8", vec![E, K, N / 32])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "nvfp4-stacked",
            tensors: vec![
                ("w", "U8", vec![E, K / 2, N]),
                ("w_weight_scale", "F8_E4M3", vec![E, K / 16, N]),
                ("w_weight_scale_2", "F32", vec![]),
            ],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
            config: r#"{ "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16 }"#,
        },
        Layout {
            name: "fp8-blocks",
            tensors: vec![
                ("w.{e}.weight", "F8_E4M3", vec![N, K]),
                ("w.{e}.weight_scale_inv", "F32", vec![N / 128, K / 128]),
            ],
            source: experts(),
            shape: plain,
            config: "",
        },
        Layout {
            name: "fp8-blocks-transposed",
            tensors: vec![("w", "F8_E4M3", vec![E, K, N]), ("w_scale_inv", "F32", vec![E, K / 128, N / 128])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "nvfp4",
            tensors: vec![
                ("w.{e}.weight", "U8", vec![N, K / 2]),
                ("w.{e}.weight_scale", "F8_E4M3", vec![N, K / 16]),
                ("w.{e}.weight_scale_2", "F32", vec![]),
            ],
            source: experts(),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gptq-int4",
            tensors: vec![
                ("w.{e}.qweight", "I32", vec![K / 8, N]),
                ("w.{e}.qzeros", "I32", vec![K / 128, N / 8]),
                ("w.{e}.scales", "F16", vec![K / 128, N]),
            ],
            source: experts(),
            shape: plain,
            config: r#"{ "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": false }"#,
        },
        Layout {
            name: "awq",
            tensors: vec![
                ("w.{e}.qweight", "I32", vec![K, N / 8]),
                ("w.{e}.qzeros", "I32", vec![K / 128, N / 8]),
                ("w.{e}.scales", "F16", vec![K / 128, N]),
            ],
            source: experts(),
            shape: plain,
            config: r#"{ "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm" }"#,
        },
        Layout {
            name: "int4-asymmetric",
            tensors: vec![
                ("w.{e}.weight_packed", "I32", vec![N, K / 8]),
                ("w.{e}.weight_zero_point", "I32", vec![N / 8, K / 128]),
                ("w.{e}.weight_scale", "BF16", vec![N, K / 128]),
            ],
            source: experts(),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-q8_0",
            tensors: vec![("w", "Q8_0", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-q4_0",
            tensors: vec![("w", "Q4_0", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-q4_k",
            tensors: vec![("w", "Q4_K", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-q6_k",
            tensors: vec![("w", "Q6_K", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-iq4_xs",
            tensors: vec![("w", "IQ4_XS", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
        Layout {
            name: "gguf-mxfp4",
            tensors: vec![("w", "MXFP4", vec![E, N, K])],
            source: stack(vec![]),
            shape: plain,
            config: "",
        },
    ]
}

/// Gigabytes written a second: the median of a few rounds after one that touches all memory.
fn median_rate(layout: &Layout) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    match gguf(layout) {
        Some(bytes) => std::fs::write(dir.path().join("model.gguf"), bytes).unwrap(),
        None => std::fs::write(dir.path().join("model.safetensors"), file(layout)).unwrap(),
    }
    if !layout.config.is_empty() {
        let config = format!(r#"{{ "quantization_config": {} }}"#, layout.config);
        std::fs::write(dir.path().join("config.json"), config).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [batch, rows, cols] = layout.shape;
    let ty = TensorType::fixed(DType::BF16, &layout.shape);
    let param = Param { name: "w".into(), ty, source: layout.source.clone(), stored: None };
    let (rows, pitch, role) = (Dim::Fixed(rows), cols, Role::Weight(0));
    let buffer = Buffer { name: "w".into(), dtype: DType::BF16, batch, rows, cols, pitch, role };
    let mut out = vec![1; buffer.bytes(0) as usize];
    let plan = Plan::new(&checkpoint, None, std::slice::from_ref(&param)).unwrap();
    plan.pack("w", &buffer, &mut out).unwrap();
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            plan.pack("w", &buffer, &mut out).unwrap();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    out.len() as f64 / seconds[ROUNDS / 2] / 1e9
}

/// A safetensors file whose floats are near 1 and whose codes are anything.
fn file(layout: &Layout) -> Vec<u8> {
    let (mut header, mut data) = (String::from("{"), Vec::new());
    for e in 0..E {
        for (name, dtype, shape) in layout.tensors.iter().filter(|t| e == 0 || t.0.contains("{e}")) {
            let start = data.len();
            let count: u64 = shape.iter().product();
            (0..count).for_each(|i| element(dtype, i, &mut data));
            let (name, comma) = (name.replace("{e}", &e.to_string()), if header.len() > 1 { "," } else { "" });
            let end = data.len();
            header +=
                &format!(r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
        }
    }
    header.push('}');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&data);
    out
}

/// Types of GGUF files: name, number, elements and bytes of a block.
const GGUF: [(&str, u32, u64, u64); 6] = [
    ("Q8_0", 8, 32, 34),
    ("Q4_0", 2, 32, 18),
    ("Q4_K", 12, 256, 144),
    ("Q6_K", 14, 256, 210),
    ("IQ4_XS", 23, 256, 136),
    ("MXFP4", 39, 32, 17),
];

/// A GGUF file of one tensor, when the layout's is of such a type.
fn gguf(layout: &Layout) -> Option<Vec<u8>> {
    let (name, dtype, shape) = &layout.tensors[0];
    let (_, id, elements, bytes) = GGUF.into_iter().find(|t| t.0 == *dtype)?;
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, t: &str| {
        out.extend_from_slice(&(t.len() as u64).to_le_bytes());
        out.extend_from_slice(t.as_bytes());
    };
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&[1u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    text(&mut out, "general.architecture");
    out.extend_from_slice(&8u32.to_le_bytes());
    text(&mut out, "qwen3moe");
    text(&mut out, name);
    out.extend_from_slice(&(shape.len() as u32).to_le_bytes());
    shape.iter().rev().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32), 0);
    // Halves of such bytes are numbers.
    let noise = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u8 & 0x3F;
    out.extend((0..shape.iter().product::<u64>() / elements * bytes).map(noise));
    Some(out)
}

fn element(dtype: &str, i: u64, out: &mut Vec<u8>) {
    let noise = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32;
    match dtype {
        "F32" => out.extend_from_slice(&(0x3F00_0000 | noise & 0xFF_FFFF).to_le_bytes()),
        "BF16" => out.extend_from_slice(&(0x3F00 | noise as u16 & 0xFF).to_le_bytes()),
        "F16" => out.extend_from_slice(&(0x3800 | noise as u16 & 0x7FF).to_le_bytes()),
        "I32" => out.extend_from_slice(&(noise << 1 | noise & 1).to_le_bytes()),
        // No NaN of e4m3, and small powers of two as e8m0.
        "F8_E4M3" => out.push(noise as u8 & 0xF7),
        _ => out.push(0x70 | noise as u8 & 0x0F),
    }
}
