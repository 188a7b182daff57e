//! Graph → tile program: one kernel for each value that is stored.
//!
//! Lowering is driven by demand, from the outputs upwards, so kernels come out in an order in which every value is made
//! before it is read, and values that nothing needs make no kernel. Score rows are clustered into one row program
//! (`route`) when `fuse` is set; everything else that is fused was fused in the graph.

mod cluster;
mod coded_rows;
mod rows;
mod slots;

use crate::names::unique;
use moec_ir::act_quant::ActQuant;
use moec_ir::expr::{Binary, ExprBuilder};
use moec_ir::graph::{Graph, Node, Op, ValueId, combine_expr};
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, Buffer, BufferId, ColAccess, Combine, Contract, Groups, Kernel, Map, MapArg, Panel, PanelQuant, Places, Plan,
    Program, Role, RowAccess, RowMap, RowQuant, Schedule, Segment,
};
use moec_ir::{Activation, DType, Diagnostic, Dim, Expr, TensorType};

/// How weights that a checkpoint publishes as codes and scales lie in the device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// As codes and scales, from which products make the floats as they read: a half to a quarter of the bytes.
    #[default]
    AsPublished,
    /// As floats, made when the layer is loaded.
    Dequantised,
}

/// Rows of weights start at multiples of this many bytes, so that 16-byte copies never straddle a row.
const ROW_ALIGN_BYTES: u64 = 16;

/// Buffers of one dispatch plan.
#[derive(Clone, Copy)]
struct PlanBuffers {
    offsets: BufferId,
    slot_to_row: BufferId,
    row_to_token: BufferId,
}

/// Weights, biases and epilogue of a matrix product.
struct Product {
    panels: Vec<Panel>,
    biases: Vec<Option<BufferId>>,
    epilogue: Expr,
}

/// What a product stores.
enum Storing {
    /// Its value.
    Value,
    /// The codes of a value that rounds this one, and their format.
    Codes(ValueId, ActQuant),
    /// Rows at places, as a value that stores them there wants.
    Places(ValueId, Places),
}

struct Lowering<'a> {
    graph: &'a Graph,
    program: Program,
    target: &'a Target,
    weights: WeightStorage,
    /// The buffer of each value that has one.
    stored: Vec<Option<BufferId>>,
    /// The codes and scales of each parameter that has them.
    coded: Vec<Option<Panel>>,
    /// The codes of each value that has been rounded to them.
    coded_rows: Vec<Option<(BufferId, RowQuant)>>,
    /// Whether kernels do more than one operation each.
    fuse: bool,
    /// For each value, the cluster of score rows it belongs to.
    cluster_of: Vec<Option<usize>>,
    clusters: Vec<cluster::Cluster>,
    plans: Vec<(ValueId, u64, PlanBuffers)>,
    /// For each value, its expert order.
    orders: Vec<Option<slots::ExpertOrder>>,
}

/// Lowers a verified graph for a target. Schedules are left at one; [`crate::schedule`] sets them.
///
/// # Errors
/// `unsupported-op` when a value has a form that no kernel computes: a reason of the closed list of `moec check`.
pub fn lower_graph(graph: &Graph, target: &Target, fuse: bool, weights: WeightStorage) -> Result<Program, Diagnostic> {
    let (clusters, cluster_of) = cluster::find(graph, fuse);
    let mut l = Lowering {
        graph,
        program: Program { name: graph.name.clone(), buffers: Vec::new(), kernels: Vec::new() },
        target,
        weights,
        fuse,
        coded_rows: vec![None; graph.nodes.len()],
        stored: vec![None; graph.nodes.len()],
        coded: vec![None; graph.nodes.len()],
        cluster_of,
        clusters,
        plans: Vec::new(),
        orders: slots::expert_orders(graph),
    };
    for i in 0..graph.outputs.len() {
        l.output(i)?;
    }
    Ok(l.program)
}

impl<'a> Lowering<'a> {
    fn node(&self, v: ValueId) -> &'a Node {
        self.graph.node(v)
    }

    fn ty(&self, v: ValueId) -> &'a TensorType {
        self.graph.ty(v)
    }

    fn unsupported(&self, v: ValueId, why: impl std::fmt::Display) -> Diagnostic {
        let node = self.node(v);
        Diagnostic::input("unsupported-op", format!("`{}` ({}) cannot be compiled: {why}", node.name, node.op.name()))
            .at(node.origin.clone())
    }

    /// Makes the `i`-th output, copying when its value is a leaf or is another output too.
    fn output(&mut self, i: usize) -> Result<(), Diagnostic> {
        let (name, v) = &self.graph.outputs[i];
        let leaf = matches!(self.node(*v).op, Op::Input(_) | Op::Param(_));
        let first = self.graph.outputs.iter().position(|(_, w)| w == v) == Some(i);
        if first && !leaf {
            self.value(*v)?;
            return Ok(());
        }
        if self.ty(*v).shape.len() > 2 {
            return Err(self.unsupported(*v, "a stack of matrices is no output"));
        }
        let source = self.value(*v)?;
        if !self.ty(*v).dtype.is_float() {
            return Err(self.unsupported(*v, "integers can be one output only"));
        }
        let out = self.buffer_for(*v, name, Role::Output(i as u32))?;
        let args = vec![MapArg { buffer: source, row: RowAccess::Same, col: ColAccess::From(0) }];
        self.push(
            &format!("copy_{name}"),
            Body::Map(Map { args, expr: Expr::identity(), out, until: None, out_places: None }),
        );
        Ok(())
    }

    /// The buffer that holds a value, after the kernels that make it.
    fn value(&mut self, v: ValueId) -> Result<BufferId, Diagnostic> {
        if let Some(b) = self.stored[v.index()] {
            return Ok(b);
        }
        if let Some(c) = self.cluster_of[v.index()] {
            self.row_program(c)?;
            return self.stored[v.index()].ok_or_else(|| self.unsupported(v, "its row program does not keep it"));
        }
        let node = self.node(v);
        match &node.op {
            Op::Input(i) => return self.leaf(v, Role::Input(*i)),
            Op::Param(i) => return self.leaf(v, Role::Weight(*i)),
            Op::Concat { .. } => return Err(self.unsupported(v, "joined weights can be read by fused products only")),
            Op::Linear
            | Op::LinearAct { .. }
            | Op::GroupedLinear
            | Op::GatherGroupedLinear
            | Op::GroupedLinearAct { .. } => self.product(v, Storing::Value)?,
            Op::Permute { n_experts } => {
                let plan = self.plan(node.inputs[1], u64::from(*n_experts))?;
                self.take_rows(v, plan.row_to_token)?;
            }
            Op::Unpermute { n_experts } => {
                let plan = self.plan(node.inputs[1], u64::from(*n_experts))?;
                self.take_rows(v, plan.slot_to_row)?;
            }
            Op::SlotToRow { n_experts } => {
                let plan = self.plan(node.inputs[0], u64::from(*n_experts))?;
                self.hand_out(v, plan.slot_to_row)?;
            }
            Op::StoreAt { n_experts, unit } => self.store_at(v, u64::from(*n_experts), u64::from(*unit))?,
            Op::WeightedSum => {
                let (y, weights) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?);
                let out = self.result(v)?;
                let body = Combine { y, slot_to_row: None, weights, args: Vec::new(), expr: Expr::identity(), out };
                self.push("combine", Body::Combine(body));
            }
            Op::Combine { n_experts, scale, round, gate_round } => {
                let y = self.value(node.inputs[0])?;
                let plan = self.plan(node.inputs[1], u64::from(*n_experts))?;
                let weights = self.value(node.inputs[2])?;
                let mut args = Vec::new();
                for (i, &extra) in node.inputs[3..].iter().enumerate() {
                    let col = if i == 0 { ColAccess::From(0) } else { ColAccess::First };
                    args.push(MapArg { buffer: self.value(extra)?, row: RowAccess::Same, col });
                }
                let expr = combine_expr(scale.0, *round, *gate_round, args.len());
                let out = self.result(v)?;
                let slot_to_row = Some(plan.slot_to_row);
                self.push("combine", Body::Combine(Combine { y, slot_to_row, weights, args, expr, out }));
            }
            Op::Add => self.elementwise(v, binary(Binary::Add))?,
            Op::Mul => self.elementwise(v, binary(Binary::Mul))?,
            Op::Scale(c) => self.elementwise(v, scaled(c.0))?,
            Op::Cast => self.elementwise(v, Expr::identity())?,
            Op::Map(expr) => self.elementwise(v, expr.clone())?,
            Op::Activate(act) => self.elementwise(v, act.expr())?,
            Op::Quantise(q) => {
                let cols = self.columns(v)?;
                let x = self.value(node.inputs[0])?;
                let block = if q.block == 0 { cols.max(1) } else { u64::from(q.block) };
                let same = |col| MapArg { buffer: x, row: RowAccess::Same, col };
                let mut args = vec![same(ColAccess::From(0)), same(ColAccess::AbsMax(block))];
                if q.has_row() {
                    args.push(same(ColAccess::AbsMax(cols.max(1))));
                }
                if let Some(&global) = node.inputs.get(1) {
                    args.push(MapArg { buffer: self.value(global)?, row: RowAccess::First, col: ColAccess::First });
                }
                let (out, until) = (self.result(v)?, self.until(v)?);
                self.push(&node.name, Body::Map(Map { args, expr: q.expr(), out, until, out_places: None }));
            }
            Op::Half(which) => {
                let cols = self.columns(v)?;
                let source = self.value(node.inputs[0])?;
                let out = self.result(v)?;
                let col = ColAccess::From(cols * u64::from(*which));
                let args = vec![MapArg { buffer: source, row: RowAccess::Same, col }];
                let until = self.until(v)?;
                self.push(&node.name, Body::Map(Map { args, expr: Expr::identity(), out, until, out_places: None }));
            }
            Op::Reduce(_)
            | Op::MaskChosen
            | Op::JoinColumns
            | Op::Lookup
            | Op::SumOutside { .. }
            | Op::LocalIds { .. }
            | Op::Score(_)
            | Op::RmsNorm { .. }
            | Op::GroupLimit { .. }
            | Op::TopK { .. }
            | Op::GatherScores
            | Op::Renormalise(_) => return Err(self.unsupported(v, "rows of scores are made by row programs only")),
        }
        self.stored[v.index()].ok_or_else(|| self.unsupported(v, "its kernel stores nothing"))
    }

    fn leaf(&mut self, v: ValueId, role: Role) -> Result<BufferId, Diagnostic> {
        let name = self.node(v).name.clone();
        let b = self.buffer_for(v, &name, role)?;
        self.stored[v.index()] = Some(b);
        Ok(b)
    }

    /// A buffer for the value of a node, as the output that it is, or in the workspace.
    fn result(&mut self, v: ValueId) -> Result<BufferId, Diagnostic> {
        let output = self.graph.outputs.iter().position(|(_, w)| *w == v);
        let role = output.map_or(Role::Workspace, |i| Role::Output(i as u32));
        let name = output.map_or(self.node(v).name.as_str(), |i| self.graph.outputs[i].0.as_str());
        let b = self.buffer_for(v, name, role)?;
        self.stored[v.index()] = Some(b);
        Ok(b)
    }

    fn buffer_for(&mut self, v: ValueId, name: &str, role: Role) -> Result<BufferId, Diagnostic> {
        let ty = self.ty(v);
        let fixed = |d: Dim| {
            d.fixed().ok_or_else(|| self.unsupported(v, "only the outermost axis may depend on the token count"))
        };
        let (batch, rows, cols) = match ty.shape[..] {
            [rows @ Dim::PerToken(_)] => (1, rows, 1),
            [n] => (1, Dim::Fixed(1), fixed(n)?),
            [rows, cols] => (1, rows, fixed(cols)?),
            [batch, rows, cols] => (fixed(batch)?, Dim::Fixed(fixed(rows)?), fixed(cols)?),
            _ => return Err(self.unsupported(v, format!("{ty} has more than three axes"))),
        };
        let align = ROW_ALIGN_BYTES / ty.dtype.bytes() as u64;
        let pitch = match role {
            // The caller's rows are contiguous.
            Role::Input(_) | Role::Output(_) => cols,
            Role::Weight(_) if ty.shape.len() == 1 => cols,
            Role::Weight(_) | Role::WeightScale(_) | Role::WeightGlobal(_) | Role::Workspace | Role::Counter => {
                cols.next_multiple_of(align)
            }
        };
        let pitch = if ty.dtype.is_float() { pitch } else { cols };
        Ok(self.add_buffer(name, ty.dtype, (batch, rows, cols), pitch, role))
    }

    fn add_buffer(&mut self, name: &str, dtype: DType, shape: (u64, Dim, u64), pitch: u64, role: Role) -> BufferId {
        let name = unique(name, '_', |n| self.program.buffers.iter().any(|b| b.name == n));
        let (batch, rows, cols) = shape;
        self.program.buffers.push(Buffer { name, dtype, batch, rows, cols, pitch, role });
        BufferId(self.program.buffers.len() as u32 - 1)
    }

    fn push(&mut self, name: &str, body: Body) {
        let symbol: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let symbol = if symbol.starts_with(|c: char| c.is_ascii_digit()) { format!("k{symbol}") } else { symbol };
        let name = unique(&symbol, '_', |n| self.program.kernels.iter().any(|k| k.name == n));
        let schedule = Schedule::new(1, 1, 1, 1, 1);
        self.program.kernels.push(Kernel { name, body, schedule });
    }

    /// The plan of a batch's expert ids, made once.
    fn plan(&mut self, ids: ValueId, n_experts: u64) -> Result<PlanBuffers, Diagnostic> {
        if let Some((_, _, p)) = self.plans.iter().find(|(v, e, _)| *v == ids && *e == n_experts) {
            return Ok(*p);
        }
        let ids_buffer = self.value(ids)?;
        let k = self.columns(ids)?;
        let mut ints = |name: &str, rows: Dim, cols: u64| {
            self.add_buffer(name, DType::I32, (1, rows, cols), cols, Role::Workspace)
        };
        let p = PlanBuffers {
            offsets: ints("offsets", Dim::Fixed(1), n_experts + 1),
            slot_to_row: ints("slot_to_row", Dim::TOKENS, k),
            row_to_token: ints("row_to_token", Dim::PerToken(k), 1),
        };
        let PlanBuffers { offsets, slot_to_row, row_to_token } = p;
        self.push(
            "plan",
            Body::Plan(Plan { ids: ids_buffer, n_experts, offsets, slot_to_row, row_to_token, places: None }),
        );
        self.plans.push((ids, n_experts, p));
        Ok(p)
    }

    fn columns(&self, v: ValueId) -> Result<u64, Diagnostic> {
        self.ty(v)
            .last()
            .and_then(Dim::fixed)
            .ok_or_else(|| self.unsupported(v, "its last axis depends on the token count"))
    }

    /// The parameters that a weight operand is made of: itself, or gate and up.
    fn parts(&self, w: ValueId) -> Vec<ValueId> {
        let node = self.node(w);
        match node.op {
            Op::Concat { .. } => node.inputs.clone(),
            _ => vec![w],
        }
    }

    /// The weights of a product: the value's buffer, or the codes and scales of a parameter that is published so.
    fn panel(&mut self, w: ValueId) -> Result<Panel, Diagnostic> {
        let node = self.node(w);
        let coded = match node.op {
            Op::Param(i) if self.weights == WeightStorage::AsPublished => {
                self.graph.params.get(i as usize).and_then(|p| p.stored).map(|format| (i, format))
            }
            _ => None,
        };
        let Some((param, format)) = coded else { return Ok(Panel::dense(self.value(w)?)) };
        if let Some(panel) = &self.coded[w.index()] {
            return Ok(panel.clone());
        }
        let fixed: Vec<u64> = node.ty.shape.iter().filter_map(|d| d.fixed()).collect();
        let (experts, n, k) = match fixed[..] {
            [n, k] => (1, n, k),
            [experts, n, k] => (experts, n, k),
            _ => return Err(self.unsupported(w, format!("{} has no blocks of codes", node.ty))),
        };
        let row_bytes = format.code.bytes(k);
        let pitch = row_bytes.next_multiple_of(ROW_ALIGN_BYTES);
        let shape = (experts, Dim::Fixed(n), row_bytes);
        let weights = self.add_buffer(&node.name, DType::U8, shape, pitch, Role::Weight(param));
        let (grid_rows, grid_cols) = format.scale_grid(n, k);
        let shape = (experts, Dim::Fixed(grid_rows), grid_cols);
        let scale_name = format!("{}_scale", node.name);
        // Rows that are copied in pieces of up to 16 bytes.
        let pitch =
            if grid_cols > 1 { grid_cols.next_multiple_of(ROW_ALIGN_BYTES / format.scale.bytes()) } else { grid_cols };
        let scales = self.add_buffer(&scale_name, format.scale.dtype(), shape, pitch, Role::WeightScale(param));
        // NVFP4 is the format whose scales need another: e4m3 does not reach far enough alone.
        let global = format.has_global().then(|| {
            let shape = (1, Dim::Fixed(1), experts);
            let name = format!("{}_global", node.name);
            self.add_buffer(&name, DType::F32, shape, experts, Role::WeightGlobal(param))
        });
        let panel = Panel { weights, quant: Some(PanelQuant { format, scales, global, round: node.ty.dtype }) };
        self.coded[w.index()] = Some(panel.clone());
        Ok(panel)
    }

    /// Weights, biases and epilogue of a product.
    fn product_parts(
        &mut self,
        v: ValueId,
        w: ValueId,
        bias: Option<ValueId>,
        act: Option<(&Activation, DType)>,
    ) -> Result<Product, Diagnostic> {
        let panels: Vec<Panel> = self.parts(w).into_iter().map(|p| self.panel(p)).collect::<Result<_, _>>()?;
        let biases: Vec<Option<BufferId>> = match bias {
            None => vec![None; panels.len()],
            Some(b) => self.parts(b).into_iter().map(|b| self.value(b).map(Some)).collect::<Result<_, _>>()?,
        };
        let wanted = act.map_or(1, |(a, _)| if a.is_gated() { 2 } else { 1 });
        if panels.len() != wanted || biases.len() != wanted {
            return Err(self.unsupported(v, format!("{wanted} weight panels are needed; there are {}", panels.len())));
        }
        let epilogue = match act {
            None => Expr::identity(),
            Some((a, round)) => {
                let rounded: Vec<Expr> = (0..wanted as u32).map(|i| Expr::round_to(round).renumber(|_| i)).collect();
                a.expr().compose(&rounded)
            }
        };
        Ok(Product { panels, biases, epilogue })
    }

    /// The kernel of a matrix product. Where codes are wanted and the kernel can make them, it stores them in place of the value.
    fn product(&mut self, v: ValueId, storing: Storing) -> Result<(), Diagnostic> {
        let node = self.node(v);
        let (grouped, gather, act) = match &node.op {
            Op::LinearAct { act, round } => (false, false, Some((act, *round))),
            Op::GroupedLinear => (true, false, None),
            Op::GatherGroupedLinear => (true, true, None),
            Op::GroupedLinearAct { act, round, gather } => (true, *gather, Some((act, *round))),
            _ => (false, false, None),
        };
        let (w, bias) = if grouped { (2, 3) } else { (1, 2) };
        let (mut a_rows, mut groups) = (RowMap::Same, Groups::Dense);
        if grouped {
            let n_experts = self.ty(node.inputs[w]).shape[0].fixed().unwrap_or(0);
            let plan = self.plan(node.inputs[1], n_experts)?;
            groups = Groups::ByExpert { offsets: plan.offsets };
            a_rows = if gather { RowMap::Gather(plan.row_to_token) } else { RowMap::Same };
        }
        let parts = self.product_parts(v, node.inputs[w], node.inputs.get(bias).copied(), act)?;
        let Product { mut panels, biases, mut epilogue } = parts;
        let (a, a_quant, a_round) = self.rows_of(node.inputs[0], &mut panels)?;
        let mut out_places = None;
        let (out, out_quant) = match storing {
            Storing::Codes(codes, q) if a_quant.is_some() => {
                // The value is rounded to its own type first.
                epilogue = Expr::round_to(node.ty.dtype).compose(&[epilogue]);
                let (out, quant) = self.code_buffers(codes, q)?;
                (out, Some(quant))
            }
            Storing::Places(stored, places) => {
                out_places = Some(places);
                (self.result(stored)?, None)
            }
            Storing::Value | Storing::Codes(..) => (self.result(v)?, None),
        };
        let segment =
            Segment { a, a_quant, a_round, a_rows, groups, panels, biases, epilogue, out, out_quant, out_places };
        self.push(&node.name, Body::Contract(Contract::of(vec![segment])));
        Ok(())
    }

    /// Makes the buffer of a plan the output that `v` is.
    fn hand_out(&mut self, v: ValueId, buffer: BufferId) -> Result<(), Diagnostic> {
        let output = self.graph.outputs.iter().position(|(_, w)| *w == v);
        let Some(i) = output else { return Err(self.unsupported(v, "it can be an output only")) };
        if let Role::Output(_) = self.program.buffer(buffer).role {
            return Err(self.unsupported(v, "another node is the same, and integers can be one output only"));
        }
        let others = self.program.buffers.iter().enumerate().filter(|(other, _)| *other != buffer.index());
        let names: Vec<&str> = others.map(|(_, b)| b.name.as_str()).collect();
        let name = unique(&self.graph.outputs[i].0, '_', |n| names.contains(&n));
        let b = &mut self.program.buffers[buffer.index()];
        (b.role, b.name) = (Role::Output(i as u32), name);
        self.stored[v.index()] = Some(buffer);
        Ok(())
    }

    fn take_rows(&mut self, v: ValueId, map: BufferId) -> Result<(), Diagnostic> {
        let source = self.value(self.node(v).inputs[0])?;
        let out = self.result(v)?;
        let args = vec![MapArg { buffer: source, row: RowAccess::Through(map), col: ColAccess::From(0) }];
        self.push(
            &self.node(v).name,
            Body::Map(Map { args, expr: Expr::identity(), out, until: None, out_places: None }),
        );
        Ok(())
    }

    /// One kernel for an elementwise node, with numpy's broadcasting.
    fn elementwise(&mut self, v: ValueId, expr: Expr) -> Result<(), Diagnostic> {
        let out_ty = self.ty(v).clone();
        let mut args = Vec::new();
        for &x in &self.node(v).inputs {
            let shape = &self.ty(x).shape;
            let rows = if shape.len() >= 2 { shape[shape.len() - 2] } else { Dim::Fixed(1) };
            let same_rows = out_ty.shape.len() >= 2 && rows == out_ty.shape[out_ty.shape.len() - 2];
            if shape.len() > 2 || !(same_rows || rows == Dim::Fixed(1)) {
                return Err(self.unsupported(v, format!("operand {} does not broadcast by row or column", self.ty(x))));
            }
            let col = if self.ty(x).last() == out_ty.last() { ColAccess::From(0) } else { ColAccess::First };
            let row = if same_rows { RowAccess::Same } else { RowAccess::First };
            args.push(MapArg { buffer: self.value(x)?, row, col });
        }
        let (out, until) = (self.result(v)?, self.until(v)?);
        self.push(&self.node(v).name, Body::Map(Map { args, expr, out, until, out_places: None }));
        Ok(())
    }
}

fn binary(f: Binary) -> Expr {
    let mut b = ExprBuilder::new();
    let (x, y) = (b.arg(0), b.arg(1));
    let r = b.binary(f, x, y);
    b.finish(r)
}

fn scaled(c: f32) -> Expr {
    let mut b = ExprBuilder::new();
    let (c, x) = (b.constant(c), b.arg(0));
    let r = b.binary(Binary::Mul, c, x);
    b.finish(r)
}
