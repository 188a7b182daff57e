//! Writes quantised forms of a float checkpoint, under the names and in the layouts that publishers use.
//!
//! The codes are made here, and what they mean is computed here from the format's definition: neither comes from the
//! code that reads checkpoints.

use crate::recorded::read;
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
    Fp8Tensor,
    Mxfp8,
    Mxfp4,
    Nvfp4,
    Int4,
    Int8,
    Gptq,
    Awq,
}

impl Published {
    /// Every format, in the order of tables.
    pub const ALL: [Published; 10] = [
        Published::Fp8Block,
        Published::Fp8Channel,
        Published::Fp8Tensor,
        Published::Mxfp8,
        Published::Mxfp4,
        Published::Nvfp4,
        Published::Int4,
        Published::Int8,
        Published::Gptq,
        Published::Awq,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Published::Fp8Block => "FP8 128×128",
            Published::Fp8Channel => "FP8 per channel",
            Published::Fp8Tensor => "FP8 per tensor",
            Published::Mxfp8 => "MXFP8",
            Published::Mxfp4 => "MXFP4",
            Published::Nvfp4 => "NVFP4",
            Published::Int4 => "INT4",
            Published::Int8 => "INT8",
            Published::Gptq => "GPTQ",
            Published::Awq => "AWQ",
        }
    }

    /// Whether a tensor of it is always one matrix: stacks of experts are published expert by expert.
    pub fn is_of_matrices(self) -> bool {
        matches!(self, Published::Int8 | Published::Gptq | Published::Awq)
    }

    /// The entry of `config.json`.
    fn config(self) -> serde_json::Value {
        let compressed = |format: &str, bits: u32, kind: &str, strategy: &str, group: Option<u32>| {
            let weights = serde_json::json!({ "num_bits": bits, "type": kind, "strategy": strategy,
                "group_size": group, "symmetric": true });
            serde_json::json!({ "quant_method": "compressed-tensors", "format": format, "ignore": [],
                "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
        };
        match self {
            Published::Fp8Block => {
                serde_json::json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] })
            }
            Published::Fp8Channel => compressed("float-quantized", 8, "float", "channel", None),
            Published::Fp8Tensor => serde_json::json!({ "quant_method": "modelopt", "quant_algo": "FP8" }),
            Published::Mxfp8 => serde_json::json!({ "quant_method": "modelopt", "quant_algo": "MXFP8" }),
            Published::Mxfp4 => compressed("mxfp4-pack-quantized", 4, "float", "group", Some(32)),
            Published::Nvfp4 => compressed("nvfp4-pack-quantized", 4, "float", "tensor_group", Some(16)),
            Published::Int4 => compressed("pack-quantized", 4, "int", "group", Some(32)),
            Published::Int8 => compressed("int-quantized", 8, "int", "channel", None),
            Published::Gptq => serde_json::json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false,
                "desc_act": false, "checkpoint_format": "gptq" }),
            Published::Awq => serde_json::json!({ "quant_method": "awq", "bits": 4, "group_size": 32,
                "version": "gemm", "zero_point": true }),
        }
    }

    /// How rows of `k` columns are coded; `None` when the format has no such rows, or when it has zero points.
    fn format(self, k: u64) -> Option<QuantFormat> {
        let of = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
        match self {
            Published::Fp8Block => of(Code::E4M3, ScaleCode::F32, 128, 128),
            Published::Fp8Channel => of(Code::E4M3, ScaleCode::F32, 1, 0),
            Published::Fp8Tensor => of(Code::E4M3, ScaleCode::F32, 0, 0),
            Published::Mxfp8 => of(Code::E4M3, ScaleCode::E8M0, 1, 32),
            Published::Mxfp4 if k.is_multiple_of(2) => of(Code::E2M1, ScaleCode::E8M0, 1, 32),
            Published::Nvfp4 if k.is_multiple_of(2) => of(Code::E2M1, ScaleCode::E4M3, 1, 16),
            // Codes are published in words of eight.
            Published::Int4 if k.is_multiple_of(32) => of(Code::Int4, ScaleCode::BF16, 1, 32),
            Published::Mxfp4 | Published::Nvfp4 | Published::Int4 => None,
            Published::Int8 | Published::Gptq | Published::Awq => None,
        }
    }
}

/// A tensor as bytes of a type that safetensors has.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
    pub(crate) data: Vec<u8>,
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
    let single = if format.is_of_matrices() { single_experts(&checkpoint, graph) } else { BTreeMap::new() };
    let (mut as_codes, mut as_floats, mut n_quantised) = (Vec::new(), Vec::new(), 0);
    for name in checkpoint.names() {
        let view = checkpoint.tensor(name).expect("a tensor should be readable").expect("a listed tensor should exist");
        let plain = Raw {
            name: name.to_string(),
            dtype: view.dtype.name(),
            shape: view.shape.to_vec(),
            data: view.data.to_vec(),
        };
        let tensor = || view.to_tensor().expect("recorded weights should be floats");
        let tensors: Vec<(String, Tensor)> = match single.get(name) {
            Some(experts) => experts.clone(),
            None if view.shape.len() >= 2 && chosen.contains(name) => vec![(name.to_string(), tensor())],
            None => Vec::new(),
        };
        let coded: Vec<_> = tensors.iter().filter_map(|(n, t)| Some((n, t, quantise(n, t, format)?))).collect();
        if coded.is_empty() {
            as_floats.push(plain.clone());
            as_codes.push(plain);
        }
        for (name, tensor, (mut parts, values)) in coded {
            as_codes.append(&mut parts);
            let data = Tensor::float(DType::F32, &tensor.shape, values).to_bytes();
            let shape = tensor.shape.iter().map(|&d| d as u64).collect();
            as_floats.push(Raw { name: name.clone(), dtype: "F32", shape, data });
            n_quantised += 1;
        }
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a recorded config should be readable");
    save(floats, &as_floats, &config);
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("a recorded config should be JSON");
    config["quantization_config"] = format.config();
    save(coded, &as_codes, &config.to_string());
    n_quantised
}

/// The matrices of single experts in place of the stored tensor that holds them all, where the family has names for these:
/// by name of the stored tensor. The first parameter that reads it takes it away.
fn single_experts(checkpoint: &Checkpoint, graph: &Graph) -> BTreeMap<String, Vec<(String, Tensor)>> {
    let mut out: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for param in
        graph.params.iter().filter(|p| ["experts.gate", "experts.up", "experts.down"].contains(&p.name.as_str()))
    {
        let mut stacked = BTreeSet::new();
        stored_names(checkpoint, &param.source, &mut stacked);
        let (Some(stack), Some((template, count))) = (stacked.first(), expert_names(&param.source)) else { continue };
        if checkpoint.contains(&template.replace("{e}", "0")) {
            continue;
        }
        let value = read(checkpoint, param).expect("a recorded weight should be readable");
        let (n, k) = (value.shape[1], value.shape[2]);
        let one = |(e, w): (u64, &[f32])| {
            (template.replace("{e}", &e.to_string()), Tensor::float(DType::F32, &[n, k], w.to_vec()))
        };
        out.entry(stack.clone()).or_default().extend((0..count).zip(value.floats().chunks(n * k)).map(one));
    }
    out
}

/// The template of the names of single experts' matrices, as they are, and the number of experts.
fn expert_names(source: &WeightSource) -> Option<(&str, u64)> {
    match source {
        WeightSource::Tensor { .. } => None,
        WeightSource::PerExpert { names, count, steps, .. } => {
            let name = names.iter().find(|n| steps.is_empty() && n.ends_with(".weight"));
            name.map(|n| (n.as_str(), *count))
        }
        WeightSource::FirstOf(list) => list.iter().find_map(expert_names),
        WeightSource::LargestInputScale(_) => None,
    }
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
        WeightSource::LargestInputScale(_) => {}
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
        Code::Int16 => 32767.0,
    }
}

/// The stored parts of a quantised tensor `[.., n, k]`, and the values that they stand for. `None` when the format has no
/// such tensors.
fn quantise(name: &str, tensor: &Tensor, published: Published) -> Option<(Vec<Raw>, Vec<f32>)> {
    if published.is_of_matrices() {
        return integers(name, tensor, published);
    }
    let f = published.format(tensor.cols() as u64)?;
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
        Published::Fp8Tensor => {
            vec![part("", "F8_E4M3", shape(&[n, k]), codes), part("_scale", "F32", leading.clone(), scales)]
        }
        Published::Mxfp8 => {
            vec![part("", "F8_E4M3", shape(&[n, k]), codes), part("_scale", "U8", shape(&[n, grid_cols]), scales)]
        }
        Published::Int8 | Published::Gptq | Published::Awq => return None,
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
    Some((parts, values))
}

/// Columns of a group of integers.
const GROUP: usize = 32;

/// A matrix `[n, k]` as integers: `(code - zero) · scale`, with a scale and a zero point for each group of columns, or
/// without zero points and a scale for each row (INT8).
fn integers(name: &str, tensor: &Tensor, published: Published) -> Option<(Vec<Raw>, Vec<f32>)> {
    let &[n, k] = &tensor.shape[..] else { return None };
    let w = tensor.floats();
    let rounded = |dtype: DType, x: f32| {
        let bytes = Tensor::float(dtype, &[1], vec![x]).to_bytes();
        (Tensor::from_bytes(dtype, &[1], &bytes).map_or(0.0, |t| t.floats()[0]), bytes)
    };
    let raw = |name: String, dtype, shape: &[usize], data| Raw {
        name,
        dtype,
        shape: shape.iter().map(|&d| d as u64).collect(),
        data,
    };
    if published == Published::Int8 {
        let (mut codes, mut scales, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in w.chunks(k) {
            let amax = row.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
            let (scale, bytes) = rounded(DType::BF16, amax / 127.0);
            scales.extend(bytes);
            for v in row {
                let code = (v / scale).round().clamp(-128.0, 127.0);
                codes.push(code as i8 as u8);
                values.push(code * scale);
            }
        }
        let parts =
            vec![raw(name.to_string(), "I8", &[n, k], codes), raw(format!("{name}_scale"), "BF16", &[n, 1], scales)];
        return Some((parts, values));
    }
    let stem = name.strip_suffix(".weight").filter(|_| k.is_multiple_of(GROUP) && n.is_multiple_of(8))?;
    let n_groups = k / GROUP;
    let (mut codes, mut zeros) = (vec![0u32; n * k], vec![0u32; n_groups * n]);
    let (mut scales, mut values) = (vec![0u8; 2 * n_groups * n], vec![0.0; n * k]);
    for row in 0..n {
        for group in 0..n_groups {
            let at = row * k + group * GROUP..row * k + (group + 1) * GROUP;
            let (least, most) = w[at.clone()].iter().fold((0f32, 1e-6f32), |(a, b), v| (a.min(*v), b.max(*v)));
            let (scale, bytes) = rounded(DType::F16, (most - least) / 15.0);
            // At least 1: the first version of GPTQ stores one less.
            let zero = (-least / scale).round().clamp(1.0, 15.0);
            scales[2 * (group * n + row)..][..2].copy_from_slice(&bytes);
            zeros[group * n + row] = zero as u32;
            for i in at {
                let code = (w[i] / scale + zero).round().clamp(0.0, 15.0);
                codes[i] = code as u32;
                values[i] = (code - zero) * scale;
            }
        }
    }
    // A word holds eight codes: of a column of the transposed matrix (GPTQ), or of eight columns in their own order (AWQ).
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let word = |of: &dyn Fn(usize) -> u32| (0..8).fold(0u32, |w, i| w | of(i) << (4 * i)).to_le_bytes();
    let across = |values: &dyn Fn(usize) -> u32, minus: u32| -> Vec<u8> {
        (0..n / 8).flat_map(|b| word(&|i| values(8 * b + if minus == 1 { i } else { ORDER[i] }) - minus)).collect()
    };
    let minus = u32::from(published == Published::Gptq);
    let packed_zeros: Vec<u8> = (0..n_groups).flat_map(|g| across(&|row| zeros[g * n + row], minus)).collect();
    let mut parts = vec![
        raw(format!("{stem}.qzeros"), "I32", &[n_groups, n / 8], packed_zeros),
        raw(format!("{stem}.scales"), "F16", &[n_groups, n], scales),
    ];
    if published == Published::Gptq {
        let places = (0..k / 8).flat_map(|b| (0..n).map(move |row| row * k + 8 * b));
        let words = places.flat_map(|at| word(&|i| codes[at + i])).collect();
        parts.push(raw(format!("{stem}.qweight"), "I32", &[k / 8, n], words));
        let groups = (0..k).flat_map(|c| ((c / GROUP) as u32).to_le_bytes()).collect();
        parts.push(raw(format!("{stem}.g_idx"), "I32", &[k], groups));
    } else {
        let words = (0..k).flat_map(|c| across(&|row| codes[row * k + c], 0)).collect();
        parts.push(raw(format!("{stem}.qweight"), "I32", &[k, n / 8], words));
    }
    Some((parts, values))
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

pub(crate) fn save(folder: &Path, tensors: &[Raw], config: &str) {
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
