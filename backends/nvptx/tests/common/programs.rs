//! Tile programs built by hand: a whole MoE layer, and single kernels.
#![allow(dead_code)]

use moec_ir::expr::{Binary, Expr, ExprBuilder, Real};
use moec_ir::graph::{GroupScore, RenormRule, RowMask};
use moec_ir::shape::Dim;
use moec_ir::tile::{
    Body, Buffer, BufferId, Chain, ColAccess, Combine, Contract, ContractCombine, Groups, Kernel, MapArg, Panel, Plan,
    Program, Role, RowAccess, RowId, RowLogits, RowMap, RowOp, RowOpKind, RowPlan, RowProgram, RowStore, STRIP,
    Schedule, Segment,
};
use moec_ir::{Activation, DType};

/// The sizes and types of a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    pub hidden: u64,
    pub ffn: u64,
    pub n_experts: u64,
    pub top_k: u64,
    pub dtype: DType,
    pub router: DType,
    pub activation: Activation,
    pub biases: bool,
    /// Groups of experts, and how many are kept.
    pub groups: Option<(u32, u32)>,
    /// Width of the shared expert; 0 for none.
    pub shared: u64,
    /// Elements by which every row is longer than its columns.
    pub padding: u64,
    pub scale: f32,
}

impl Layer {
    pub fn small(dtype: DType) -> Layer {
        Layer {
            hidden: 64,
            ffn: 32,
            n_experts: 8,
            top_k: 2,
            dtype,
            router: dtype,
            activation: Activation::SwiGlu,
            biases: false,
            groups: None,
            shared: 0,
            padding: 0,
            scale: 1.0,
        }
    }

    pub fn deepseek_r1() -> Layer {
        Layer {
            hidden: 7168,
            ffn: 2048,
            n_experts: 256,
            top_k: 8,
            dtype: DType::BF16,
            router: DType::BF16,
            activation: Activation::SwiGlu,
            biases: false,
            groups: Some((8, 4)),
            shared: 2048,
            padding: 0,
            scale: 2.5,
        }
    }
}

/// Schedules of the kernels.
#[derive(Clone, Copy, Debug)]
pub struct Schedules {
    pub rows: Schedule,
    pub plan: Schedule,
    pub gemm1: Schedule,
    pub gemm2: Schedule,
    pub combine: Schedule,
}

pub const fn schedule(tile_m: u32, tile_n: u32, tile_k: u32, stages: u32, warps: u32) -> Schedule {
    Schedule::new(tile_m, tile_n, tile_k, stages, warps)
}

impl Schedules {
    /// Rows of a contraction tile, as for few or many rows an expert.
    pub fn for_rows(tile_m: u32) -> Schedules {
        let (stages, warps) = if tile_m >= 128 { (3, 8) } else { (4, 4) };
        Schedules {
            rows: schedule(4, 1, 64, 1, 8),
            plan: schedule(1, 1, 1, 1, 32),
            gemm1: schedule(tile_m, 64, 64, stages, warps),
            gemm2: schedule(tile_m, 128, 64, stages, warps),
            combine: schedule(1, 1024, 1, 1, 4),
        }
    }
}

/// A program being put together.
#[derive(Default)]
pub struct Builder {
    pub buffers: Vec<Buffer>,
    pub kernels: Vec<Kernel>,
    pub padding: u64,
    pub inputs: u32,
    pub weights: u32,
}

impl Builder {
    pub fn buffer(&mut self, name: &str, dtype: DType, batch: u64, rows: Dim, cols: u64, role: Role) -> BufferId {
        let padding = if dtype.is_float() { self.padding } else { 0 };
        self.buffers.push(Buffer { name: name.to_string(), dtype, batch, rows, cols, pitch: cols + padding, role });
        BufferId(self.buffers.len() as u32 - 1)
    }

    pub fn input(&mut self, name: &str, dtype: DType, rows: Dim, cols: u64) -> BufferId {
        self.inputs += 1;
        self.buffer(name, dtype, 1, rows, cols, Role::Input(self.inputs - 1))
    }

    pub fn weight(&mut self, name: &str, dtype: DType, batch: u64, rows: u64, cols: u64) -> BufferId {
        self.weights += 1;
        self.buffer(name, dtype, batch, Dim::Fixed(rows), cols, Role::Weight(self.weights - 1))
    }

    pub fn output(&mut self, name: &str, dtype: DType, rows: Dim, cols: u64, n: u32) -> BufferId {
        self.buffer(name, dtype, 1, rows, cols, Role::Output(n))
    }

    pub fn workspace(&mut self, name: &str, dtype: DType, rows: Dim, cols: u64) -> BufferId {
        self.buffer(name, dtype, 1, rows, cols, Role::Workspace)
    }

    pub fn kernel(&mut self, name: &str, body: Body, schedule: Schedule) {
        self.kernels.push(Kernel { name: name.to_string(), body, schedule });
    }

    pub fn finish(self, name: &str) -> Program {
        let program = Program { name: name.to_string(), buffers: self.buffers, kernels: self.kernels };
        let errors = moec_ir::tile::verify(&program);
        assert!(errors.is_empty(), "{errors:?}");
        program
    }
}

/// `arg 0 · c + arg 1` with the product rounded, as unfused layers do.
fn scaled_sum(c: f32, dtype: DType, has_base: bool) -> Expr {
    let mut b = ExprBuilder::new();
    let s = b.arg(0);
    let c = b.constant(c);
    let s = b.binary(Binary::Mul, s, c);
    let s = b.round(dtype, s);
    let s = if has_base {
        let base = b.arg(1);
        b.binary(Binary::Add, s, base)
    } else {
        s
    };
    b.finish(s)
}

fn sigmoid() -> Expr {
    let mut b = ExprBuilder::new();
    let x = b.arg(0);
    let s = b.unary(moec_ir::expr::Unary::Sigmoid, x);
    b.finish(s)
}

fn add() -> Expr {
    let mut b = ExprBuilder::new();
    let (x, y) = (b.arg(0), b.arg(1));
    let s = b.binary(Binary::Add, x, y);
    b.finish(s)
}

/// The accumulators rounded to `dtype`, then the activation.
pub fn epilogue(activation: &Activation, dtype: DType) -> Expr {
    let round = |n: u32| {
        let mut b = ExprBuilder::new();
        let x = b.arg(n);
        let r = b.round(dtype, x);
        b.finish(r)
    };
    let n = if activation.is_gated() { 2 } else { 1 };
    activation.expr().compose(&(0..n).map(round).collect::<Vec<_>>())
}

/// The same program, with the plan made by the last block of the router's kernel.
pub fn with_plan_after_route(mut program: Program) -> Program {
    let at = program.kernels.iter().position(|k| matches!(k.body, Body::Plan(_))).expect("a plan");
    let Body::Plan(plan) = program.kernels.remove(at).body else { panic!("a plan") };
    let counter = BufferId(program.buffers.len() as u32);
    let (rows, role) = (Dim::Fixed(1), Role::Counter);
    let name = "finished".to_string();
    program.buffers.push(Buffer { name, dtype: DType::I32, batch: 1, rows, cols: 1, pitch: 1, role });
    let Body::Rows(rows) = &mut program.kernels[at - 1].body else { panic!("a row program before the plan") };
    rows.plan = Some(RowPlan { plan, counter });
    program
}

/// The same program, with the products of its first kernel made by so many CTAs.
pub fn with_logits_by_many(mut program: Program, logit_ctas: u32) -> Program {
    let Body::Rows(rows) = &program.kernels[0].body else { panic!("no row program in front") };
    let n_rows = rows.rows;
    let widths: Vec<u64> = rows.products().map(|(_, op)| op.width).collect();
    let mut add = |name: String, dtype, cols, role| {
        program.buffers.push(Buffer { name, dtype, batch: 1, rows: n_rows, cols, pitch: cols, role });
        BufferId(program.buffers.len() as u32 - 1)
    };
    let mut values = Vec::new();
    for (i, width) in widths.into_iter().enumerate() {
        values.push(add(format!("logits_{i}"), DType::F32, width, Role::Workspace));
    }
    let counter = add("counted".into(), DType::I32, 1, Role::Counter);
    program.kernels[0].schedule.logit_ctas = logit_ctas;
    if let Body::Rows(rows) = &mut program.kernels[0].body {
        rows.logits = Some(RowLogits { values, counter });
    }
    let errors = moec_ir::tile::verify(&program);
    assert!(errors.is_empty(), "{errors:?}");
    program
}

/// The same program, with the last kernel, a combine, made by those who store the last rows of the product before it.
pub fn with_combine_after_product(mut program: Program) -> Program {
    let Some(Body::Combine(combine)) = program.kernels.pop().map(|k| k.body) else { panic!("no combine at the end") };
    let (counter, cols) = (BufferId(program.buffers.len() as u32), program.buffer(combine.out).cols.div_ceil(STRIP));
    let (rows, role) = (Dim::Fixed(1), Role::Counter);
    let name = "stored".to_string();
    program.buffers.push(Buffer { name, dtype: DType::I32, batch: 1, rows, cols, pitch: cols, role });
    let Some(Body::Contract(c)) = program.kernels.last_mut().map(|k| &mut k.body) else {
        panic!("no product before it")
    };
    c.combine = Some(ContractCombine { combine, counter });
    let errors = moec_ir::tile::verify(&program);
    assert!(errors.is_empty(), "{errors:?}");
    program
}

/// The same program, with its two contractions in one launch.
pub fn with_chains(mut program: Program) -> Program {
    let at = program.kernels.iter().position(|k| matches!(k.body, Body::Contract(_))).expect("a contraction");
    let Body::Contract(then) = program.kernels.remove(at + 1).body else { panic!("a second contraction") };
    let Body::Contract(first) = program.kernels[at].body.clone() else { panic!("a contraction") };
    let mut all = first.clone();
    for (i, read) in (0u32..).zip(then.segments) {
        let made_by = first.segments.iter().position(|s| s.out == read.a).expect("rows of the first") as u32;
        let (counter, cols) = (BufferId(program.buffers.len() as u32), program.buffer(read.panels[0].weights).batch);
        let (rows, role) = (Dim::Fixed(2), Role::Counter);
        let name = format!("chained_{i}");
        program.buffers.push(Buffer { name, dtype: DType::I32, batch: 1, rows, cols, pitch: cols, role });
        all.chains.push(Chain { made_by, read_by: all.segments.len() as u32, counter });
        all.segments.push(read);
    }
    let numbers = BufferId(program.buffers.len() as u32);
    let (rows, role) = (Dim::Fixed(1), Role::Counter);
    program.buffers.push(Buffer { name: "drawn".into(), dtype: DType::I32, batch: 1, rows, cols: 1, pitch: 1, role });
    all.numbers = Some(numbers);
    program.kernels[at].body = Body::Contract(all);
    let errors = moec_ir::tile::verify(&program);
    assert!(errors.is_empty(), "{errors:?}");
    program
}

/// A whole layer: router and choice, plan, GEMM 1 with gathered rows (and the shared expert beside it), GEMM 2, combine.
pub fn layer(l: &Layer, s: &Schedules) -> Program {
    let mut b = Builder { padding: l.padding, ..Builder::default() };
    let (t, slots) = (Dim::TOKENS, Dim::PerToken(l.top_k));
    let x = b.input("x", l.dtype, t, l.hidden);
    let router = b.weight("router", l.router, 1, l.n_experts, l.hidden);
    let bias = b.weight("selection_bias", DType::F32, 1, 1, l.n_experts);
    let ids = b.workspace("ids", DType::I32, t, l.top_k);
    let weights = b.workspace("weights", DType::F32, t, l.top_k);

    // r0 logits, r1 scores, r2 bias, r3 biased, (r4 limited), ids, chosen, normalised.
    let row = |kind, width, dtype| RowOp { kind, width, dtype };
    let e = l.n_experts;
    let mut ops = vec![
        row(RowOpKind::Linear { x, w: router, bias: None }, e, DType::F32),
        row(RowOpKind::Map { expr: sigmoid(), args: vec![RowId(0)] }, e, DType::F32),
        row(RowOpKind::LoadFirst(bias), e, DType::F32),
        row(RowOpKind::Map { expr: add(), args: vec![RowId(1), RowId(2)] }, e, DType::F32),
    ];
    if let Some((n_groups, keep)) = l.groups {
        let kind =
            RowOpKind::GroupLimit { x: RowId(3), n_groups, keep, score: GroupScore::Top2Sum, fill: RowMask::NegInf };
        ops.push(row(kind, e, DType::F32));
    }
    let limited = RowId(ops.len() as u32 - 1);
    ops.push(row(RowOpKind::TopK(limited), l.top_k, DType::I32));
    let chosen = RowId(ops.len() as u32 - 1);
    ops.push(row(RowOpKind::Gather { x: RowId(1), ids: chosen }, l.top_k, DType::F32));
    let scores = RowId(ops.len() as u32 - 1);
    ops.push(row(
        RowOpKind::Renormalise { x: scores, rule: RenormRule::Sum { eps: Real(1e-20) } },
        l.top_k,
        DType::F32,
    ));
    let normal = RowId(ops.len() as u32 - 1);
    let stores = vec![RowStore { value: chosen, buffer: ids }, RowStore { value: normal, buffer: weights }];
    b.kernel("route", Body::Rows(RowProgram::of(t, ops, stores)), s.rows);

    let offsets = b.workspace("offsets", DType::I32, Dim::Fixed(1), e + 1);
    let slot_to_row = b.workspace("slot_to_row", DType::I32, t, l.top_k);
    let row_to_token = b.workspace("row_to_token", DType::I32, slots, 1);
    b.kernel("plan", Body::Plan(Plan { ids, n_experts: e, offsets, slot_to_row, row_to_token, places: None }), s.plan);

    let n_panels = if l.activation.is_gated() { 2 } else { 1 };
    let names = ["gate", "up"];
    let panels = |b: &mut Builder, prefix: &str, batch: u64, rows: u64, cols: u64, n: usize| -> Vec<Panel> {
        (0..n).map(|i| Panel::dense(b.weight(&format!("{prefix}{}", names[i]), l.dtype, batch, rows, cols))).collect()
    };
    let bias_of = |b: &mut Builder, name: &str, rows: u64, cols: u64| -> Option<BufferId> {
        l.biases.then(|| b.weight(name, l.dtype, 1, rows, cols))
    };
    let act = b.workspace("act", l.dtype, slots, l.ffn);
    let gemm1_panels = panels(&mut b, "", e, l.ffn, l.hidden, n_panels);
    let gemm1_biases = (0..n_panels).map(|i| bias_of(&mut b, &format!("{}_bias", names[i]), e, l.ffn)).collect();
    let mut segments = vec![Segment {
        a: x,
        a_quant: None,
        a_round: None,
        a_rows: RowMap::Gather(row_to_token),
        groups: Groups::ByExpert { offsets },
        panels: gemm1_panels,
        biases: gemm1_biases,
        epilogue: epilogue(&l.activation, l.dtype),
        out: act,
        out_quant: None,
        out_places: None,
    }];
    let shared_act = (l.shared > 0).then(|| b.workspace("shared_act", l.dtype, t, l.shared));
    if let Some(out) = shared_act {
        let panels = panels(&mut b, "shared_", 1, l.shared, l.hidden, n_panels);
        let epilogue = epilogue(&l.activation, l.dtype);
        let biases = vec![None; n_panels];
        segments.push(Segment {
            a: x,
            a_quant: None,
            a_round: None,
            a_rows: RowMap::Same,
            groups: Groups::Dense,
            panels,
            biases,
            epilogue,
            out,
            out_quant: None,
            out_places: None,
        });
    }
    b.kernel("gemm1", Body::Contract(Contract::of(segments)), s.gemm1);

    let y = b.workspace("y", l.dtype, slots, l.hidden);
    let down = b.weight("down", l.dtype, e, l.hidden, l.ffn);
    let down_bias = bias_of(&mut b, "down_bias", e, l.hidden);
    let mut segments = vec![Segment {
        a: act,
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
    let base = shared_act.map(|a| {
        let w = b.weight("shared_down", l.dtype, 1, l.hidden, l.shared);
        let out = b.workspace("shared_y", l.dtype, t, l.hidden);
        let (panels, biases) = (vec![Panel::dense(w)], vec![None]);
        let epilogue = Expr::identity();
        segments.push(Segment {
            a,
            a_quant: None,
            a_round: None,
            a_rows: RowMap::Same,
            groups: Groups::Dense,
            panels,
            biases,
            epilogue,
            out,
            out_quant: None,
            out_places: None,
        });
        out
    });
    b.kernel("gemm2", Body::Contract(Contract::of(segments)), s.gemm2);

    let out = b.output("out", l.dtype, t, l.hidden, 0);
    let args: Vec<MapArg> =
        base.iter().map(|&buffer| MapArg { buffer, row: RowAccess::Same, col: ColAccess::From(0) }).collect();
    let expr = scaled_sum(l.scale, l.dtype, base.is_some());
    let combine = Combine { y, slot_to_row: Some(slot_to_row), weights, args, expr, out };
    b.kernel("combine", Body::Combine(combine), s.combine);
    b.finish("layer")
}

/// One contraction, dense or grouped, with offsets and row map as inputs.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub n_experts: u64,
    pub n: u64,
    pub k: u64,
    pub panels: usize,
    pub a: DType,
    pub w: DType,
    pub out: DType,
    pub biases: bool,
    pub gather: bool,
    pub padding: u64,
}

pub fn gemm(g: &Gemm, s: Schedule) -> Program {
    let mut b = Builder { padding: g.padding, ..Builder::default() };
    let a = b.input("a", g.a, Dim::TOKENS, g.k);
    let grouped = g.n_experts > 0;
    let e = g.n_experts.max(1);
    let groups = if grouped {
        Groups::ByExpert { offsets: b.input("offsets", DType::I32, Dim::Fixed(1), e + 1) }
    } else {
        Groups::Dense
    };
    let rows = if g.gather { Dim::PerToken(2) } else { Dim::TOKENS };
    let a_rows = if g.gather { RowMap::Gather(b.input("map", DType::I32, rows, 1)) } else { RowMap::Same };
    let panels: Vec<Panel> =
        (0..g.panels).map(|i| Panel::dense(b.weight(&format!("w{i}"), g.w, e, g.n, g.k))).collect();
    let biases = (0..g.panels).map(|i| g.biases.then(|| b.weight(&format!("b{i}"), g.w, 1, e, g.n))).collect();
    let epilogue = if g.panels == 2 { epilogue(&Activation::SwiGlu, g.out) } else { Expr::identity() };
    let out = b.output("out", g.out, rows, g.n, 0);
    let segment = Segment {
        a,
        a_quant: None,
        a_round: None,
        a_rows,
        groups,
        panels,
        biases,
        epilogue,
        out,
        out_quant: None,
        out_places: None,
    };
    b.kernel("gemm", Body::Contract(Contract::of(vec![segment])), s);
    b.finish("gemm")
}
