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
use moec_weights::{Checkpoint, pack_weight};
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
    let even_rows = |len| WeightStep::Slice { axis: 1, start: 0, step: 2, len };
    let plain = [E, N, K];
    let oss = [4, F, F];
    vec![
        Layout { name: "bf16", tensors: vec![("w", "BF16", vec![E, N, K])], source: stack(vec![]), shape: plain },
        Layout {
            name: "bf16-transposed",
            tensors: vec![("w", "BF16", vec![E, K, N])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
        },
        Layout {
            name: "bf16-transposed-interleaved",
            tensors: vec![("w", "BF16", vec![4, F, 2 * F])],
            source: stack(vec![WeightStep::Transpose, even_rows(F)]),
            shape: oss,
        },
        Layout {
            name: "f32-transposed",
            tensors: vec![("w", "F32", vec![E, K, N])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
        },
        Layout {
            name: "mxfp4-gptoss",
            tensors: vec![("w_blocks", "U8", vec![4, 2 * F, F / 32, 16]), ("w_scales", "U8", vec![4, 2 * F, F / 32])],
            source: stack(vec![WeightStep::Transpose, even_rows(F)]),
            shape: oss,
        },
        Layout {
            name: "mxfp4-across",
            tensors: vec![("w_packed", "U8", vec![E, K, N / 2]), ("w_scale", "U8", vec![E, K, N / 32])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
        },
        Layout {
            name: "fp8-blocks",
            tensors: vec![
                ("w.{e}.weight", "F8_E4M3", vec![N, K]),
                ("w.{e}.weight_scale_inv", "F32", vec![N / 128, K / 128]),
            ],
            source: experts(),
            shape: plain,
        },
        Layout {
            name: "fp8-blocks-transposed",
            tensors: vec![("w", "F8_E4M3", vec![E, K, N]), ("w_scale_inv", "F32", vec![E, K / 128, N / 128])],
            source: stack(vec![WeightStep::Transpose]),
            shape: plain,
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
        },
    ]
}

/// Gigabytes written a second: the median of a few rounds after one that touches all memory.
fn median_rate(layout: &Layout) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file(layout)).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let [batch, rows, cols] = layout.shape;
    let ty = TensorType::fixed(DType::BF16, &layout.shape);
    let param = Param { name: "w".into(), ty, source: layout.source.clone(), stored: None };
    let (rows, pitch, role) = (Dim::Fixed(rows), cols, Role::Weight(0));
    let buffer = Buffer { name: "w".into(), dtype: DType::BF16, batch, rows, cols, pitch, role };
    let mut out = vec![1; buffer.bytes(0) as usize];
    pack_weight(&checkpoint, &param, &buffer, &mut out).unwrap();
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            pack_weight(&checkpoint, &param, &buffer, &mut out).unwrap();
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
