//! Whole MoE layers as tile programs, written by hand.

use super::Random;
use moec_ir::expr::{Binary, ExprBuilder};
use moec_ir::graph::RenormRule;
use moec_ir::shape::Dim;
use moec_ir::tile::{
    Body, Buffer, BufferId, ColAccess, Combine, Contract, Groups, Kernel, MapArg, Panel, Plan, Program, Role,
    RowAccess, RowId, RowMap, RowOp, RowOpKind, RowProgram, RowStore, Schedule, Segment,
};
use moec_ir::{Activation, DType, Expr, Tensor};

pub const SCHEDULE: Schedule = Schedule::new(1, 16, 8, 1, 1);

/// A layer: router, top-k, plan, grouped GEMMs, combine with a shared expert.
#[derive(Clone, Debug)]
pub struct Layer {
    pub experts: u64,
    pub top_k: u64,
    pub hidden: u64,
    pub ffn: u64,
    /// Type of activations and of the output.
    pub acts: DType,
    /// Type of the weights.
    pub weights: DType,
    /// Columns of padding behind each row of every float buffer.
    pub padding: u64,
    pub activation: Activation,
    pub biases: bool,
    /// The logits are input 1, and not computed.
    pub given_logits: bool,
    /// Width of a shared expert, which runs beside the routed ones.
    pub shared: Option<u64>,
}

impl Layer {
    pub fn new(experts: u64, top_k: u64, hidden: u64, ffn: u64) -> Layer {
        Layer {
            experts,
            top_k,
            hidden,
            ffn,
            acts: DType::F32,
            weights: DType::F32,
            padding: 0,
            activation: Activation::SwiGlu,
            biases: false,
            given_logits: false,
            shared: None,
        }
    }

    pub fn dtypes(mut self, acts: DType, weights: DType) -> Layer {
        (self.acts, self.weights) = (acts, weights);
        self
    }
}

/// Collects buffers; parameters get random values.
pub struct Builder {
    pub program: Program,
    pub params: Vec<Tensor>,
    pub random: Random,
    padding: u64,
    /// Whether parameters get values; without, they are empty.
    values: bool,
}

impl Builder {
    pub fn new(seed: u64, padding: u64) -> Builder {
        let program = Program { name: "layer".to_string(), buffers: Vec::new(), kernels: Vec::new() };
        Builder { program, params: Vec::new(), random: Random(seed | 1), padding, values: true }
    }

    pub fn buffer(&mut self, name: &str, dtype: DType, batch: u64, rows: Dim, cols: u64, role: Role) -> BufferId {
        let padding = if dtype.is_float() { self.padding } else { 0 };
        let buffer = Buffer { name: name.to_string(), dtype, batch, rows, cols, pitch: cols + padding, role };
        self.program.buffers.push(buffer);
        BufferId(self.program.buffers.len() as u32 - 1)
    }

    pub fn weight(&mut self, name: &str, dtype: DType, shape: [u64; 3], scale: f32) -> BufferId {
        let role = Role::Weight(self.params.len() as u32);
        let filled = if self.values { shape } else { [0; 3] };
        let tensor = self.random.tensor(dtype, &filled.map(|d| d as usize), scale);
        self.params.push(tensor);
        self.buffer(name, dtype, shape[0], Dim::Fixed(shape[1]), shape[2], role)
    }

    pub fn kernel(&mut self, name: &str, body: Body) {
        self.program.kernels.push(Kernel { name: name.to_string(), body, schedule: SCHEDULE });
    }
}

pub fn op(kind: RowOpKind, width: u64) -> RowOp {
    let dtype = if matches!(kind, RowOpKind::TopK(_)) { DType::I32 } else { DType::F32 };
    RowOp { kind, width, dtype }
}

/// The program of a layer and its parameters. Inputs: `x [T, H]`, then the logits `[T, E]` when they are given.
/// Outputs: the result, the chosen experts, their weights.
pub fn build(l: &Layer) -> (Program, Vec<Tensor>) {
    build_with(l, true)
}

/// The program of a layer whose weights somebody else fills.
pub fn build_program(l: &Layer) -> Program {
    build_with(l, false).0
}

fn build_with(l: &Layer, values: bool) -> (Program, Vec<Tensor>) {
    let mut b = Builder::new(l.experts * 1009 + l.hidden, l.padding);
    b.values = values;
    let (t, slots) = (Dim::TOKENS, Dim::PerToken(l.top_k));
    let w_scale = 1.0 / (l.hidden as f32).sqrt() * 2.0;
    let x = b.buffer("x", l.acts, 1, t, l.hidden, Role::Input(0));
    let role = if l.given_logits { Role::Input(1) } else { Role::Workspace };
    let logits = b.buffer("logits", DType::F32, 1, t, l.experts, role);
    if !l.given_logits {
        let w = b.weight("router", l.weights, [1, l.experts, l.hidden], w_scale);
        let segment = dense(x, &[w], &[None], Expr::identity(), logits);
        b.kernel("router_scores", Body::Contract(Contract::of(vec![segment])));
    }
    let ids = b.buffer("ids", DType::I32, 1, t, l.top_k, Role::Output(1));
    let weights = b.buffer("weights", DType::F32, 1, t, l.top_k, Role::Output(2));
    let ops = vec![
        op(RowOpKind::Load(logits), l.experts),
        op(RowOpKind::TopK(RowId(0)), l.top_k),
        op(RowOpKind::Softmax(RowId(0)), l.experts),
        op(RowOpKind::Gather { x: RowId(2), ids: RowId(1) }, l.top_k),
        op(RowOpKind::Renormalise { x: RowId(3), rule: RenormRule::Sum { eps: 1e-20.into() } }, l.top_k),
    ];
    let stores = vec![RowStore { value: RowId(1), buffer: ids }, RowStore { value: RowId(4), buffer: weights }];
    b.kernel("route", Body::Rows(RowProgram::of(t, ops, stores)));

    let offsets = b.buffer("offsets", DType::I32, 1, Dim::Fixed(1), l.experts + 1, Role::Workspace);
    let slot_to_row = b.buffer("slot_to_row", DType::I32, 1, t, l.top_k, Role::Workspace);
    let row_to_token = b.buffer("row_to_token", DType::I32, 1, slots, 1, Role::Workspace);
    let plan = Plan { ids, n_experts: l.experts, offsets, slot_to_row, row_to_token, places: None };
    b.kernel("plan", Body::Plan(plan));

    let n_panels = if l.activation.is_gated() { 2 } else { 1 };
    let mut panels = Vec::new();
    let mut biases = Vec::new();
    for name in ["gate", "up"].into_iter().take(n_panels) {
        panels.push(Panel::dense(b.weight(name, l.weights, [l.experts, l.ffn, l.hidden], w_scale)));
        let bias = l.biases.then(|| b.weight(&format!("{name}_bias"), l.weights, [1, l.experts, l.ffn], 0.5));
        biases.push(bias);
    }
    let mid = b.buffer("mid", l.acts, 1, slots, l.ffn, Role::Workspace);
    let mut gemm1 = vec![Segment {
        a: x,
        a_quant: None,
        a_round: None,
        a_rows: RowMap::Gather(row_to_token),
        groups: Groups::ByExpert { offsets },
        panels,
        biases,
        epilogue: l.activation.expr(),
        out: mid,
        out_quant: None,
        out_places: None,
    }];
    let down = b.weight("down", l.weights, [l.experts, l.hidden, l.ffn], 1.0 / (l.ffn as f32).sqrt());
    let down_bias = l.biases.then(|| b.weight("down_bias", l.weights, [1, l.experts, l.hidden], 0.5));
    let y = b.buffer("y", l.acts, 1, slots, l.hidden, Role::Workspace);
    let mut gemm2 = vec![Segment {
        a: mid,
        a_quant: None,
        a_round: None,
        a_rows: RowMap::Same,
        groups: Groups::ByExpert { offsets },
        panels: vec![Panel::dense(down)],
        biases: vec![down_bias],
        epilogue: Expr::identity(),
        out: y,
        out_quant: None,
        out_places: None,
    }];
    let mut args = Vec::new();
    let mut expr = ExprBuilder::new();
    let mut result = expr.arg(0);
    let scale = expr.constant(2.5);
    result = expr.binary(Binary::Mul, result, scale);
    if let Some(width) = l.shared {
        let gate = b.weight("shared_gate", l.weights, [1, width, l.hidden], w_scale);
        let up = b.weight("shared_up", l.weights, [1, width, l.hidden], w_scale);
        let shared_mid = b.buffer("shared_mid", l.acts, 1, t, width, Role::Workspace);
        gemm1.push(dense(x, &[gate, up], &[None, None], Activation::SwiGlu.expr(), shared_mid));
        let shared_down = b.weight("shared_down", l.weights, [1, l.hidden, width], w_scale);
        let shared = b.buffer("shared", l.acts, 1, t, l.hidden, Role::Workspace);
        gemm2.push(dense(shared_mid, &[shared_down], &[None], Expr::identity(), shared));
        args.push(MapArg { buffer: shared, row: RowAccess::Same, col: ColAccess::From(0) });
        let a = expr.arg(1);
        result = expr.binary(Binary::Add, result, a);
    }
    b.kernel("gemm1", Body::Contract(Contract::of(gemm1)));
    b.kernel("gemm2", Body::Contract(Contract::of(gemm2)));
    let out = b.buffer("out", l.acts, 1, t, l.hidden, Role::Output(0));
    let combine = Combine { y, slot_to_row: Some(slot_to_row), weights, args, expr: expr.finish(result), out };
    b.kernel("combine", Body::Combine(combine));
    (b.program, b.params)
}

/// A segment with one matrix for all rows.
pub fn dense(a: BufferId, panels: &[BufferId], biases: &[Option<BufferId>], epilogue: Expr, out: BufferId) -> Segment {
    Segment {
        a,
        a_quant: None,
        a_round: None,
        a_rows: RowMap::Same,
        groups: Groups::Dense,
        panels: panels.iter().map(|&p| Panel::dense(p)).collect(),
        biases: biases.to_vec(),
        epilogue,
        out,
        out_quant: None,
        out_places: None,
    }
}
