//! Writes quantised forms of a float checkpoint, under the names and in the layouts that publishers use.
//!
//! The codes are made here, and what they mean is computed here from the format's definition: neither comes from the
//! code that reads checkpoints.

use moec::Checkpoint;
use moec_ir::graph::Graph;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::weights::WeightSource;
use moec_ir::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A published weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Published {
    Fp8Block,
    Fp8Channel,
    Mxfp4,
    Nvfp4,
    Int4,
}

impl Published {
    /// Every format, in the order of tables.
    pub const ALL: [Published; 5] =
        [Published::Fp8Block, Published::Fp8Channel, Published::Mxfp4, Published::Nvfp4, Published::Int4];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Published::Fp8Block => "FP8 128×128",
            Published::Fp8Channel => "FP8 per channel",
            Published::Mxfp4 => "MXFP4",
            Published::Nvfp4 => "NVFP4",
            Published::Int4 => "INT4",
        }
    }

    /// The entry of `config.json`.
    fn config(self) -> serde_json::Value {
        let compressed = |format: &str, bits: u32, kind: &str, group: u32| {
            let weights = serde_json::json!({ "num_bits": bits, "type": kind, "strategy": "group", "group_size": group,
                "symmetric": true });
            serde_json::json!({ "quant_method": "compressed-tensors", "format": format, "ignore": [],
                "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
        };
        match self {
            Published::Fp8Block => {
                serde_json::json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] })
            }
            Published::Fp8Channel => {
                let weights =
                    serde_json::json!({ "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true });
                serde_json::json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": [],
                    "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
            }
            Published::Mxfp4 => compressed("mxfp4-pack-quantized", 4, "float", 32),
            Published::Nvfp4 => compressed("nvfp4-pack-quantized", 4, "float", 16),
            Published::Int4 => compressed("pack-quantized", 4, "int", 32),
        }
    }

    /// How rows of `k` columns are coded; `None` when the format has no such rows.
    fn format(self, k: u64) -> Option<QuantFormat> {
        let of = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
        match self {
            Published::Fp8Block => of(Code::E4M3, ScaleCode::F32, 128, 128),
            Published::Fp8Channel => of(Code::E4M3, ScaleCode::F32, 1, 0),
            // One block of 32, cut short.
            Published::Mxfp4 => {
                (k.is_multiple_of(2) && k <= 32).then_some(()).and(of(Code::E2M1, ScaleCode::E8M0, 1, 0))
            }
            Published::Nvfp4 => {
                (k.is_multiple_of(2) && k <= 16).then_some(()).and(of(Code::E2M1, ScaleCode::E4M3, 1, 0))
            }
            // Codes are published in words of eight.
            Published::Int4 => {
                (k.is_multiple_of(8) && k <= 32).then_some(()).and(of(Code::Int4, ScaleCode::BF16, 1, 0))
            }
        }
    }
}

/// A tensor as bytes of a type that safetensors has.
struct Raw {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    data: Vec<u8>,
}

/// Two checkpoints of one layer: the matrices of its experts quantised, and the same values as floats.
///
/// `from` holds float weights. Matrices whose rows the format does not have stay floats. Returns how many were
/// quantised.
///
/// # Panics
/// When a file cannot be read or written.
pub fn write(from: &Path, graph: &Graph, format: Published, coded: &Path, floats: &Path) -> usize {
    let checkpoint = Checkpoint::open(from).expect("a recorded checkpoint should open");
    let chosen = matrices(&checkpoint, graph);
    let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
    let (mut as_codes, mut as_floats, mut n_quantised) = (Vec::new(), Vec::new(), 0);
    for name in names {
        let view =
            checkpoint.tensor(&name).expect("a tensor should be readable").expect("a listed tensor should exist");
        let plain =
            Raw { name: name.clone(), dtype: view.dtype.name(), shape: view.shape.to_vec(), data: view.data.to_vec() };
        let codable = view.shape.len() >= 2 && chosen.contains(&name);
        let layout = codable.then(|| format.format(view.shape[view.shape.len() - 1])).flatten();
        let Some(layout) = layout else {
            as_floats.push(Raw { data: plain.data.clone(), shape: plain.shape.clone(), name, ..plain });
            as_codes.push(plain);
            continue;
        };
        let tensor = view.to_tensor().expect("recorded weights should be floats");
        let (mut parts, values) = quantise(&name, &tensor, format, layout);
        as_codes.append(&mut parts);
        let data = Tensor::float(DType::F32, &tensor.shape, values).to_bytes();
        as_floats.push(Raw { name, dtype: "F32", shape: plain.shape, data });
        n_quantised += 1;
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a recorded config should be readable");
    save(floats, &as_floats, &config);
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("a recorded config should be JSON");
    config["quantization_config"] = format.config();
    save(coded, &as_codes, &config.to_string());
    n_quantised
}

/// Names of the stored tensors that hold the matrices of experts, routed and shared.
fn matrices(checkpoint: &Checkpoint, graph: &Graph) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for param in &graph.params {
        let expert = ["experts.gate", "experts.up", "experts.down", "shared.gate", "shared.up", "shared.down"];
        if expert.contains(&param.name.as_str()) {
            stored_names(checkpoint, &param.source, &mut out);
        }
    }
    out
}

fn stored_names(checkpoint: &Checkpoint, source: &WeightSource, out: &mut BTreeSet<String>) {
    match source {
        WeightSource::Tensor { names, .. } => out.extend(names.iter().find(|n| checkpoint.contains(n)).cloned()),
        WeightSource::PerExpert { names, first, count, .. } => {
            let all =
                |n: &String| (*first..first + count).map(|e| n.replace("{e}", &e.to_string())).collect::<Vec<_>>();
            out.extend(
                names.iter().map(all).find(|all| all.iter().all(|n| checkpoint.contains(n))).unwrap_or_default(),
            );
        }
        WeightSource::FirstOf(list) => {
            let before = out.len();
            for s in list {
                stored_names(checkpoint, s, out);
                if out.len() > before {
                    return;
                }
            }
        }
    }
}

/// Largest magnitude of a code.
fn most(code: Code) -> f32 {
    match code {
        Code::E4M3 => 448.0,
        Code::E5M2 => 57344.0,
        Code::E2M1 => 6.0,
        Code::Int4 => 7.0,
    }
}

/// The stored parts of a quantised tensor `[.., n, k]`, and the values that they stand for.
fn quantise(name: &str, tensor: &Tensor, published: Published, f: QuantFormat) -> (Vec<Raw>, Vec<f32>) {
    let axes = tensor.shape.len();
    let (n, k) = (tensor.shape[axes - 2], tensor.shape[axes - 1]);
    let leading: Vec<u64> = tensor.shape[..axes - 2].iter().map(|&d| d as u64).collect();
    let (grid_rows, grid_cols) = f.scale_grid(n as u64, k as u64);
    // A scale over the scales brings them into the range of e4m3.
    let largest = tensor.floats().iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let global = if f.has_global() { largest / (448.0 * 6.0) } else { 1.0 };
    // The checkpoint stores its inverse.
    let stored_global = 1.0 / global;
    let global = if f.has_global() { 1.0 / stored_global } else { 1.0 };
    let (mut codes, mut scales, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for matrix in tensor.floats().chunks(n * k) {
        let mut grid = Vec::new();
        for cell in 0..(grid_rows * grid_cols) as usize {
            let (r, c) = (cell / grid_cols as usize, cell % grid_cols as usize);
            let range = |at: usize, block: u64, len: usize| match block {
                0 => 0..len,
                b => at * b as usize..((at + 1) * b as usize).min(len),
            };
            let rows = range(r, f.block_rows, n);
            let amax = rows
                .flat_map(|row| range(c, f.block_cols, k).map(move |col| (row, col)))
                .fold(0f32, |m, (row, col)| m.max(matrix[row * k + col].abs()));
            grid.extend(encode_scale(f.scale, (amax / most(f.code) / global).max(1e-30)));
        }
        let per_scale = f.scale.bytes() as usize;
        for row in 0..n {
            let grid_row = (row as u64).checked_div(f.block_rows).unwrap_or(0) * grid_cols;
            let mut line = vec![0u8; f.code.bytes(k as u64) as usize];
            for col in 0..k {
                let cell = (grid_row + (col as u64).checked_div(f.block_cols).unwrap_or(0)) as usize;
                let scale = f.scale.decode(&grid[cell * per_scale..], 0) * global;
                let (code, value) = nearest(f.code, matrix[row * k + col] / scale);
                match f.code.bits() {
                    8 => line[col] = code,
                    _ => line[col / 2] |= code << (col % 2 * 4),
                }
                values.push(value * scale);
            }
            codes.append(&mut line);
        }
        scales.append(&mut grid);
    }
    let shape = |tail: &[u64]| leading.iter().copied().chain(tail.iter().copied()).collect::<Vec<u64>>();
    let (n, k) = (n as u64, k as u64);
    let part = |suffix: &str, dtype, shape, data| Raw { name: format!("{name}{suffix}"), dtype, shape, data };
    let parts = match published {
        Published::Fp8Block => vec![
            part("", "F8_E4M3", shape(&[n, k]), codes),
            part("_scale_inv", "F32", shape(&[grid_rows, grid_cols]), scales),
        ],
        Published::Fp8Channel => {
            vec![part("", "F8_E4M3", shape(&[n, k]), codes), part("_scale", "F32", shape(&[n, 1]), scales)]
        }
        Published::Mxfp4 => {
            vec![part("_packed", "U8", shape(&[n, k / 2]), codes), part("_scale", "U8", shape(&[n, grid_cols]), scales)]
        }
        Published::Nvfp4 => vec![
            part("_packed", "U8", shape(&[n, k / 2]), codes),
            part("_scale", "F8_E4M3", shape(&[n, grid_cols]), scales),
            part("_global_scale", "F32", vec![1], stored_global.to_le_bytes().to_vec()),
        ],
        Published::Int4 => {
            vec![
                part("_packed", "I32", shape(&[n, k / 8]), codes),
                part("_scale", "BF16", shape(&[n, grid_cols]), scales),
            ]
        }
    };
    (parts, values)
}

/// The bytes of a scale of at least `x` where the code has one near, else the nearest.
fn encode_scale(code: ScaleCode, x: f32) -> Vec<u8> {
    match code {
        ScaleCode::F32 => x.to_le_bytes().to_vec(),
        ScaleCode::BF16 => Tensor::float(DType::BF16, &[1], vec![x]).to_bytes(),
        ScaleCode::F16 => Tensor::float(DType::F16, &[1], vec![x]).to_bytes(),
        ScaleCode::E8M0 => vec![(x.log2().ceil() + 127.0).clamp(0.0, 254.0) as u8],
        ScaleCode::E4M3 => vec![nearest(Code::E4M3, x).0],
    }
}

/// The code nearest to `x`, and its value.
fn nearest(code: Code, x: f32) -> (u8, f32) {
    let n_codes = 1u16 << code.bits();
    let all = (0..n_codes).map(|c| (c as u8, code.decode(&[c as u8], 0))).filter(|(_, v)| v.is_finite());
    all.min_by(|a, b| (a.1 - x).abs().total_cmp(&(b.1 - x).abs())).expect("there should be codes")
}

fn save(folder: &Path, tensors: &[Raw], config: &str) {
    std::fs::create_dir_all(folder).expect("a folder for a checkpoint should be writable");
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for t in tensors {
        let start = data.len();
        data.extend_from_slice(&t.data);
        let entry = serde_json::json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [start, data.len()] });
        header.insert(t.name.clone(), entry);
    }
    let mut text = serde_json::to_string(&header).expect("a header should be JSON");
    text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.append(&mut data);
    std::fs::write(folder.join("model.safetensors"), bytes).expect("a checkpoint should be writable");
    std::fs::write(folder.join("config.json"), config).expect("a config should be writable");
}
