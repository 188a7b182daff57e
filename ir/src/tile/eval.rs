//! The reference evaluator of the tile IR: what every backend's kernels are compared with.

use super::{
    Body, Buffer, BufferId, ColAccess, Combine, Contract, Groups, Map, MapArg, Panel, Plan, Program, Quantise, Role,
    RowAccess, RowMap, SlotPlaces,
};
use super::{RowOpKind, RowProgram, RowQuant, Segment};
use crate::DType;
use crate::act_quant::abs_max;
use crate::diag::Diagnostic;
use crate::quant::ScaleCode;
use crate::reference as r;
use crate::tensor::{Data, Tensor};

/// The contents of a program's buffers while it runs; padding is not kept.
struct Memory<'a> {
    program: &'a Program,
    n_tokens: usize,
    /// `[batch * rows, cols]` of every buffer.
    values: Vec<Tensor>,
}

/// Runs a verified program.
///
/// `inputs` and `params` are in the order of the graph's; weights have the shapes of the graph's parameters, unpadded.
/// A parameter whose buffer holds codes is given by its values all the same: `params` are what the graph computes with, and
/// codes and scales are taken to mean them. [`evaluate_given`] reads the codes themselves.
/// Returns the output buffers, in the order of the graph's outputs, each `[rows, cols]`.
///
/// # Errors
/// `tensor-missing` or `tensor-shape` when a given tensor does not fit its buffer.
pub fn evaluate(
    program: &Program,
    inputs: &[Tensor],
    params: &[Tensor],
    n_tokens: usize,
) -> Result<Vec<Tensor>, Diagnostic> {
    let codes = coded_panels(program);
    let mut values = Vec::with_capacity(program.buffers.len());
    for (i, b) in program.buffers.iter().enumerate() {
        let shape = shape_of(b, n_tokens);
        values.push(match b.role {
            Role::Input(n) => given(b, inputs.get(n as usize), &shape)?,
            Role::Weight(n) => match codes[i] {
                Some(k) => given(b, params.get(n as usize), &[shape[0], k])?,
                None => given(b, params.get(n as usize), &shape)?,
            },
            Role::Output(_) | Role::Workspace | Role::Counter | Role::WeightScale(_) | Role::WeightGlobal(_) => {
                unwritten(b, &shape)
            }
        });
    }
    Ok(run(program, n_tokens, values))
}

/// Runs a verified program on exactly what its buffers hold: codes are bytes (integers), scales are floats or bytes.
///
/// `content` gives the tensor of every input and weight buffer, `[batch * rows, cols]` without padding.
/// Returns the output buffers, in the order of the graph's outputs, each `[rows, cols]`.
///
/// # Errors
/// `tensor-missing` or `tensor-shape` when a given tensor does not fit its buffer.
pub fn evaluate_given(
    program: &Program,
    n_tokens: usize,
    mut content: impl FnMut(&Buffer) -> Option<Tensor>,
) -> Result<Vec<Tensor>, Diagnostic> {
    let mut values = Vec::with_capacity(program.buffers.len());
    for b in &program.buffers {
        let shape = shape_of(b, n_tokens);
        values.push(match b.role {
            Role::Output(_) | Role::Workspace | Role::Counter => unwritten(b, &shape),
            Role::Input(_) | Role::Weight(_) | Role::WeightScale(_) | Role::WeightGlobal(_) => {
                given(b, content(b).as_ref(), &shape)?
            }
        });
    }
    Ok(run(program, n_tokens, values))
}

/// For each buffer of codes, the columns of the values.
fn coded_panels(program: &Program) -> Vec<Option<usize>> {
    let mut out = vec![None; program.buffers.len()];
    for kernel in &program.kernels {
        let Body::Contract(c) = &kernel.body else { continue };
        for s in &c.segments {
            let k = s.k(program) as usize;
            s.panels.iter().filter(|p| p.quant.is_some()).for_each(|p| out[p.weights.index()] = Some(k));
        }
    }
    out
}

fn shape_of(b: &Buffer, n_tokens: usize) -> [usize; 2] {
    [(b.batch * b.rows.at(n_tokens as u64)) as usize, b.cols as usize]
}

/// What a buffer holds that nobody has written: nothing that looks like a result.
fn unwritten(b: &Buffer, shape: &[usize; 2]) -> Tensor {
    let n = shape[0] * shape[1];
    if b.dtype.is_float() {
        Tensor::float(b.dtype, shape, vec![f32::NAN; n])
    } else {
        Tensor::int(b.dtype, shape, vec![i64::from(i32::MIN); n])
    }
}

fn given(b: &Buffer, tensor: Option<&Tensor>, shape: &[usize; 2]) -> Result<Tensor, Diagnostic> {
    let Some(t) = tensor else {
        return Err(Diagnostic::input("tensor-missing", format!("no tensor is given for `{}`", b.name)));
    };
    if t.elements() != shape[0] * shape[1] {
        return Err(Diagnostic::input(
            "tensor-shape",
            format!("the tensor for `{}` is {:?}; the program takes {shape:?}", b.name, t.shape),
        ));
    }
    Ok(Tensor { dtype: b.dtype, shape: shape.to_vec(), data: t.data.clone() })
}

/// Runs the kernels over what the buffers hold.
fn run(program: &Program, n_tokens: usize, values: Vec<Tensor>) -> Vec<Tensor> {
    let mut memory = Memory { program, n_tokens, values };
    for kernel in &program.kernels {
        match &kernel.body {
            Body::Contract(c) => {
                contract(&mut memory, c);
                if let Some(then) = &c.combine {
                    combine(&mut memory, &then.combine);
                }
            }
            Body::Rows(p) => {
                rows(&mut memory, p);
                p.quantise.iter().for_each(|q| quantise(&mut memory, q));
                if let Some(then) = &p.plan {
                    plan(&mut memory, &then.plan);
                }
            }
            Body::Plan(p) => plan(&mut memory, p),
            Body::Map(m) => map(&mut memory, m),
            Body::Quantise(q) => quantise(&mut memory, q),
            Body::Combine(c) => combine(&mut memory, c),
        }
    }
    let mut outputs: Vec<(u32, Tensor)> = Vec::new();
    for (b, t) in program.buffers.iter().zip(memory.values) {
        if let Role::Output(i) = b.role {
            outputs.push((i, t));
        }
    }
    outputs.sort_by_key(|(i, _)| *i);
    outputs.into_iter().map(|(_, t)| t).collect()
}

impl Memory<'_> {
    fn floats(&self, b: BufferId) -> &[f32] {
        self.values[b.index()].floats()
    }

    fn ints(&self, b: BufferId) -> &[i64] {
        self.values[b.index()].ints()
    }

    fn row(&self, b: BufferId, row: usize) -> &[f32] {
        let cols = self.cols(b);
        &self.floats(b)[row * cols..(row + 1) * cols]
    }

    fn cols(&self, b: BufferId) -> usize {
        self.program.buffer(b).cols as usize
    }

    fn n_rows(&self, b: BufferId) -> usize {
        self.program.buffer(b).rows.at(self.n_tokens as u64) as usize
    }

    /// `rows`, or those of them that hold a slot.
    fn rows_until(&self, rows: usize, offsets: Option<BufferId>) -> usize {
        let last = offsets.and_then(|b| self.ints(b).last()).and_then(|&last| usize::try_from(last).ok());
        last.map_or(rows, |last| last.min(rows))
    }

    fn store(&mut self, b: BufferId, at: usize, value: f32) {
        let t = &mut self.values[b.index()];
        let value = t.dtype.round(value);
        if let Data::Float(v) = &mut t.data {
            v[at] = value;
        }
    }

    fn store_bytes(&mut self, b: BufferId, row: usize, bytes: &[u8]) {
        if let Data::Int(v) = &mut self.values[b.index()].data {
            let row = &mut v[row * bytes.len()..(row + 1) * bytes.len()];
            row.iter_mut().zip(bytes).for_each(|(v, &byte)| *v = i64::from(byte));
        }
    }

    fn store_ints(&mut self, b: BufferId, values: Vec<i64>) {
        let t = &mut self.values[b.index()];
        *t = Tensor::int(t.dtype, &t.shape.clone(), values);
    }

    /// Argument of an elementwise expression at `(row, col)` of the result.
    fn arg(&self, a: &MapArg, row: usize, col: usize) -> f32 {
        let row = match a.row {
            RowAccess::Same => row,
            RowAccess::First => 0,
            RowAccess::Through(map) => match usize::try_from(self.ints(map)[row]) {
                Ok(row) => row,
                Err(_) => return 0.0,
            },
        };
        let col = match a.col {
            ColAccess::From(offset) => col + offset as usize,
            ColAccess::First => 0,
            ColAccess::AbsMax(block) => {
                let (row, block) = (self.row(a.buffer, row), block as usize);
                let first = col / block * block;
                return abs_max(&row[first..row.len().min(first + block)]);
            }
        };
        self.row(a.buffer, row)[col]
    }
}

fn contract(m: &mut Memory, c: &Contract) {
    for s in &c.segments {
        let rows = m.n_rows(s.out);
        match s.groups {
            Groups::Dense => (0..rows).for_each(|row| contract_row(m, s, row, 0)),
            Groups::ByExpert { offsets } => {
                let offsets = m.ints(offsets).to_vec();
                for e in 0..offsets.len() - 1 {
                    (offsets[e]..offsets[e + 1]).for_each(|row| contract_row(m, s, row as usize, e));
                }
            }
        }
    }
}

fn contract_row(m: &mut Memory, s: &Segment, row: usize, expert: usize) {
    let source = match s.a_rows {
        RowMap::Same => row,
        RowMap::Gather(map) => m.ints(map)[row] as usize,
    };
    let n = s.n(m.program) as usize;
    let a = match &s.a_quant {
        Some(q) => coded_row(m, s.a, q, source),
        None => s.a_round.map_or_else(|| m.row(s.a, source).to_vec(), |q| q.quantise(m.row(s.a, source), 1.0)),
    };
    let value = |col: usize| {
        let mut args = Vec::with_capacity(s.panels.len());
        for (p, panel) in s.panels.iter().enumerate() {
            let acc = r::dot(&a, &panel_row(m, s, panel, expert, col));
            args.push(acc + s.biases.get(p).copied().flatten().map_or(0.0, |b| m.row(b, expert)[col]));
        }
        s.epilogue.eval(&args)
    };
    let values: Vec<f32> = (0..n).map(value).collect();
    match &s.out_quant {
        Some(q) => store_codes(m, s.out, q, row, &values),
        None => values.iter().enumerate().for_each(|(col, &v)| m.store(s.out, row * n + col, v)),
    }
}

/// The values of a row of codes.
fn coded_row(m: &Memory, codes: BufferId, q: &RowQuant, row: usize) -> Vec<f32> {
    let bytes = |b: BufferId| -> Vec<u8> {
        let cols = m.cols(b);
        let part = row * cols..(row + 1) * cols;
        match &m.values[b.index()] {
            Tensor { data: Data::Int(v), .. } => v[part].iter().map(|&x| x as u8).collect(),
            Tensor { data: Data::Float(v), dtype, .. } => Tensor::float(*dtype, &[cols], v[part].to_vec()).to_bytes(),
        }
    };
    let global = q.global.map_or(1.0, |g| m.floats(g)[if q.q.has_row() { row } else { 0 }]);
    let mut out = vec![0.0; q.cols as usize];
    q.format().decode_row(&bytes(codes), &bytes(q.scales), global, 0, (1, q.cols), &mut out);
    out
}

/// Rounds a row to codes and stores them, their scales, and a global scale of its own.
fn store_codes(m: &mut Memory, codes: BufferId, q: &RowQuant, row: usize, values: &[f32]) {
    let global = q.global.filter(|_| q.q.has_global()).map_or(1.0, |g| m.floats(g)[0]);
    let coded = q.q.encode(values, global);
    m.store_bytes(codes, row, &coded.codes);
    match q.format().scale {
        ScaleCode::E8M0 | ScaleCode::E4M3 => {
            let bytes: Vec<u8> = coded.scales.iter().flat_map(|&s| q.format().scale.encode(s)).collect();
            m.store_bytes(q.scales, row, &bytes);
        }
        ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 => {
            let first = row * coded.scales.len();
            coded.scales.iter().enumerate().for_each(|(i, &s)| m.store(q.scales, first + i, s));
        }
    }
    if let (Some(global), true) = (q.global, q.q.has_row()) {
        m.store(global, row, coded.global);
    }
}

fn quantise(m: &mut Memory, q: &Quantise) {
    for row in 0..m.rows_until(m.n_rows(q.out), q.until) {
        let values = m.row(q.x, row).to_vec();
        store_codes(m, q.out, &q.quant, row, &values);
    }
}

/// The values of row `col` of a panel's matrix `expert`, as many as the activations have columns.
fn panel_row(m: &Memory, s: &Segment, panel: &Panel, expert: usize, col: usize) -> Vec<f32> {
    let (n, k) = (s.n(m.program) as usize, s.k(m.program) as usize);
    let row = expert * n + col;
    let codes = match (&panel.quant, &m.values[panel.weights.index()].data) {
        (None, _) => return m.row(panel.weights, row).to_vec(),
        // Given by its values.
        (Some(_), Data::Float(values)) => return values[row * k..(row + 1) * k].to_vec(),
        (Some(q), Data::Int(codes)) => (q, codes),
    };
    let (q, codes) = codes;
    let bytes = |ints: &[i64]| ints.iter().map(|&x| x as u8).collect::<Vec<u8>>();
    let width = m.cols(panel.weights);
    let (grid_rows, grid_cols) = q.format.scale_grid(n as u64, k as u64);
    let cells = (grid_rows * grid_cols) as usize;
    let scales = match &m.values[q.scales.index()] {
        Tensor { data: Data::Int(v), .. } => bytes(&v[expert * cells..(expert + 1) * cells]),
        Tensor { data: Data::Float(v), dtype, .. } => {
            Tensor::float(*dtype, &[cells], v[expert * cells..(expert + 1) * cells].to_vec()).to_bytes()
        }
    };
    let global = q.global.map_or(1.0, |g| m.floats(g)[expert]);
    let mut out = vec![0.0; k];
    let codes = bytes(&codes[row * width..(row + 1) * width]);
    q.format.decode_row(&codes, &scales, global, col as u64, (n as u64, k as u64), &mut out);
    out.iter_mut().for_each(|v| *v = q.round.round(*v));
    out
}

/// A row of a row program.
#[derive(Clone)]
enum Row {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

impl Row {
    fn floats(&self) -> &[f32] {
        match self {
            Row::Float(v) => v,
            Row::Int(_) => &[],
        }
    }

    fn ids(&self) -> &[i64] {
        match self {
            Row::Int(v) => v,
            Row::Float(_) => &[],
        }
    }
}

fn rows(m: &mut Memory, p: &RowProgram) {
    let rows = m.rows_until(p.rows.at(m.n_tokens as u64) as usize, p.until);
    for row in 0..rows {
        let mut values: Vec<Row> = Vec::with_capacity(p.ops.len());
        for op in &p.ops {
            let width = op.width as usize;
            let get = |id: super::RowId| &values[id.0 as usize];
            let load = |b: BufferId, row: usize| -> Row {
                if m.program.buffer(b).dtype.is_float() {
                    Row::Float(m.row(b, row).to_vec())
                } else {
                    let cols = m.cols(b);
                    Row::Int(m.ints(b)[row * cols..(row + 1) * cols].to_vec())
                }
            };
            let value = match &op.kind {
                RowOpKind::Load(b) => load(*b, row),
                RowOpKind::LoadFirst(b) => load(*b, 0),
                RowOpKind::Linear { x, w, bias } => Row::Float(
                    (0..width)
                        .map(|c| r::dot(m.row(*x, row), m.row(*w, c)) + bias.map_or(0.0, |b| m.row(b, 0)[c]))
                        .collect(),
                ),
                RowOpKind::Map { expr, args } => {
                    let arg = |id: &super::RowId, c: usize| {
                        let v = get(*id).floats();
                        if v.len() == 1 { v[0] } else { v[c] }
                    };
                    Row::Float(
                        (0..width).map(|c| expr.eval(&args.iter().map(|a| arg(a, c)).collect::<Vec<_>>())).collect(),
                    )
                }
                RowOpKind::Softmax(x) => Row::Float(r::softmax(get(*x).floats())),
                RowOpKind::RmsNorm { x, eps } => Row::Float(r::rms_norm(get(*x).floats(), eps.0)),
                RowOpKind::GroupLimit { x, n_groups, keep, score, fill } => {
                    Row::Float(r::group_limit(get(*x).floats(), *n_groups as usize, *keep as usize, *score, *fill))
                }
                RowOpKind::TopK(x) => {
                    Row::Int(r::top_k(get(*x).floats(), width).into_iter().map(|i| i as i64).collect())
                }
                RowOpKind::Gather { x, ids } => {
                    let x = get(*x).floats();
                    let chosen = |&i: &i64| usize::try_from(i).ok().and_then(|i| x.get(i).copied()).unwrap_or(0.0);
                    Row::Float(get(*ids).ids().iter().map(chosen).collect())
                }
                RowOpKind::Reduce { x, kind } => Row::Float(vec![r::reduce(*kind, get(*x).floats())]),
                RowOpKind::MaskChosen { x, ids } => {
                    let mut v = get(*x).floats().to_vec();
                    for &i in get(*ids).ids() {
                        if let Some(v) = usize::try_from(i).ok().and_then(|i| v.get_mut(i)) {
                            *v = f32::NEG_INFINITY;
                        }
                    }
                    Row::Float(v)
                }
                RowOpKind::Join { a, b } => match (get(*a), get(*b)) {
                    (Row::Int(a), Row::Int(b)) => Row::Int([&a[..], b].concat()),
                    (a, b) => Row::Float([a.floats(), b.floats()].concat()),
                },
                RowOpKind::Lookup { table, index } => {
                    let row = usize::try_from(m.ints(*index)[row]).ok().filter(|&i| i < m.n_rows(*table));
                    Row::Int(row.map_or(vec![-1; width], |i| m.ints(*table)[i * width..(i + 1) * width].to_vec()))
                }
                RowOpKind::SumOutside { x, ids, n_experts } => {
                    Row::Float(vec![r::sum_outside(get(*x).floats(), get(*ids).ids(), u64::from(*n_experts))])
                }
                RowOpKind::LocalIds { ids, first, count } => {
                    Row::Int(get(*ids).ids().iter().map(|&id| r::local_id(id, *first, *count)).collect())
                }
                RowOpKind::Renormalise { x, rule } => Row::Float(r::renormalise(get(*x).floats(), *rule)),
            };
            values.push(match value {
                Row::Float(v) if op.dtype != DType::F32 => {
                    Row::Float(v.into_iter().map(|x| op.dtype.round(x)).collect())
                }
                Row::Float(_) | Row::Int(_) => value,
            });
        }
        for s in &p.stores {
            let cols = m.cols(s.buffer);
            match values[s.value.0 as usize].clone() {
                Row::Float(v) => v.iter().enumerate().for_each(|(c, &x)| m.store(s.buffer, row * cols + c, x)),
                Row::Int(v) => {
                    let t = &mut m.values[s.buffer.index()];
                    if let Data::Int(out) = &mut t.data {
                        v.iter().enumerate().for_each(|(c, &x)| out[row * cols + c] = x);
                    }
                }
            }
        }
    }
}

fn plan(m: &mut Memory, p: &Plan) {
    let k = m.cols(p.ids).max(1);
    let plan = r::plan(m.ints(p.ids), p.n_experts as usize);
    let mut tokens: Vec<i64> = plan.row_to_slot.iter().map(|slot| (slot / k) as i64).collect();
    tokens.resize(plan.slot_to_row.len(), -1);
    m.store_ints(p.offsets, plan.offsets.iter().map(|&o| o as i64).collect());
    m.store_ints(p.slot_to_row, plan.slot_to_row.iter().map(|row| row.map_or(-1, |row| row as i64)).collect());
    m.store_ints(p.row_to_token, tokens);
    if let Some(SlotPlaces { of_slots, of_rows }) = p.places {
        let mut places: Vec<i64> = plan.row_to_slot.iter().map(|&slot| m.ints(of_slots)[slot]).collect();
        places.resize(plan.slot_to_row.len(), 0);
        m.store_ints(of_rows, places);
    }
}

fn map(m: &mut Memory, map: &Map) {
    let cols = m.cols(map.out);
    for row in 0..m.rows_until(m.n_rows(map.out), map.until) {
        for col in 0..cols {
            let args: Vec<f32> = map.args.iter().map(|a| m.arg(a, row, col)).collect();
            m.store(map.out, row * cols + col, map.expr.eval(&args));
        }
    }
}

fn combine(m: &mut Memory, c: &Combine) {
    let (cols, k) = (m.cols(c.out), m.cols(c.weights));
    for token in 0..m.n_rows(c.out) {
        for col in 0..cols {
            let mut sum = 0.0f32;
            for slot in token * k..(token + 1) * k {
                let row = match c.slot_to_row {
                    None => Some(slot),
                    Some(map) => usize::try_from(m.ints(map)[slot]).ok(),
                };
                if let Some(row) = row {
                    sum = m.floats(c.weights)[slot].mul_add(m.row(c.y, row)[col], sum);
                }
            }
            let mut args = vec![sum];
            args.extend(c.args.iter().map(|a| m.arg(a, token, col)));
            m.store(c.out, token * cols + col, c.expr.eval(&args));
        }
    }
}
