//! The verifier of the tile IR. After it found nothing, backends work or refuse; they do not panic.
//!
//! Checked:
//! * every buffer has a unique name, a pitch of at least its columns, and non-zero batch; every id is in range;
//! * every kernel has a unique name that is a valid symbol, non-zero schedule, and does not read what it writes;
//! * every kernel reads only buffers that are given or that an earlier kernel wrote, and never writes a given one;
//! * operands have the element types and shapes that the documentation of the bodies states;
//! * expressions refer backwards only, and to no more arguments than there are;
//! * every output of the program is written.
//!
//! Not checked: that row maps and offsets hold values in range (they are made by plans).

use super::{
    Body, Buffer, BufferId, ColAccess, Combine, Contract, ContractCombine, Groups, Kernel, Map, MapArg, Places, Plan,
    Program, Role, STRIP, SlotPlaces,
};
use super::{Panel, Quantise, RowAccess, RowId, RowMap, RowOpKind, RowProgram, RowQuant, Segment, Team};
use crate::DType;
use crate::act_quant::ActQuant;
use crate::diag::Diagnostic;
use crate::expr::Expr;
use crate::quant::Code;
use crate::shape::Dim;

/// Everything that is wrong with a program. All of it is a bug of whoever made the program: code `tile-program-invalid`.
pub fn verify(program: &Program) -> Vec<Diagnostic> {
    let mut v = Verifier { program, kernel: None, errors: Vec::new() };
    v.buffers();
    // Operand checks index buffers; they need ids in range.
    if v.errors.is_empty() {
        v.kernels();
    }
    v.errors
}

struct Verifier<'a> {
    program: &'a Program,
    kernel: Option<&'a Kernel>,
    errors: Vec<Diagnostic>,
}

impl<'a> Verifier<'a> {
    fn error(&mut self, message: impl std::fmt::Display) {
        let at = self.kernel.map_or(String::new(), |k| format!("kernel `{}`: ", k.name));
        let program = &self.program.name;
        self.errors.push(Diagnostic::internal("tile-program-invalid", format!("program `{program}`: {at}{message}")));
    }

    fn expect(&mut self, ok: bool, message: impl FnOnce() -> String) {
        if !ok {
            self.error(message());
        }
    }

    fn buffers(&mut self) {
        let program = self.program;
        for (i, b) in program.buffers.iter().enumerate() {
            self.expect(b.pitch >= b.cols, || {
                format!("buffer `{}` has pitch {} below its {} columns", b.name, b.pitch, b.cols)
            });
            self.expect(b.batch > 0, || format!("buffer `{}` has no matrices", b.name));
            let twin = program.buffers[..i].iter().any(|o| o.name == b.name);
            self.expect(!twin, || format!("two buffers are called `{}`", b.name));
        }
        for (i, k) in program.kernels.iter().enumerate() {
            let symbol = k.name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && k.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            self.expect(symbol, || format!("`{}` is not a symbol name", k.name));
            let twin = program.kernels[..i].iter().any(|o| o.name == k.name);
            self.expect(!twin, || format!("two kernels are called `{}`", k.name));
            let s = &k.schedule;
            let sizes = [s.tile_m, s.tile_n, s.tile_k, s.stages, s.warps, s.k_parts, s.order_ctas, s.logit_ctas];
            let whole = sizes.iter().all(|&n| n > 0);
            self.expect(whole, || format!("kernel `{}` has a zero in its schedule", k.name));
            self.expect(s.rest_m < s.tile_m, || {
                format!("kernel `{}` has low tiles of {} rows beside those of {}", k.name, s.rest_m, s.tile_m)
            });
            // A cluster has 8 blocks at most on every machine.
            let split = s.k_parts <= 8 && (s.team != Team::SplitK || s.k_parts > 1);
            self.expect(split, || format!("kernel `{}` cannot be made in {} parts", k.name, s.k_parts));
            self.expect(s.order_ctas <= 8, || {
                format!("kernel `{}` cannot put slots in order with {} blocks", k.name, s.order_ctas)
            });
            let in_range = k.body.operands().iter().all(|(b, _)| b.index() < program.buffers.len());
            self.expect(in_range, || format!("kernel `{}` names a buffer that does not exist", k.name));
        }
    }

    fn kernels(&mut self) {
        let program = self.program;
        let given = |b: &Buffer| matches!(b.role, Role::Input(_)) || b.role.param().is_some();
        let mut written: Vec<bool> = program.buffers.iter().map(given).collect();
        for k in &program.kernels {
            self.kernel = Some(k);
            let operands = k.body.operands();
            for &(id, out) in &operands {
                let b = program.buffer(id);
                if out {
                    self.expect(!given(b), || format!("writes `{}`, which is given", b.name));
                } else {
                    self.expect(written[id.index()], || format!("reads `{}` before anything wrote it", b.name));
                }
            }
            match &k.body {
                Body::Contract(c) => self.contract(c),
                Body::Rows(p) => self.rows(p),
                Body::Plan(p) => self.plan(p),
                Body::Map(m) => self.map(m),
                Body::Quantise(q) => self.quantise(q),
                Body::Combine(c) => self.combine(c),
            }
            operands.iter().filter(|(_, out)| *out).for_each(|(id, _)| written[id.index()] = true);
        }
        self.kernel = None;
        for (b, written) in program.buffers.iter().zip(written) {
            let forgotten = matches!(b.role, Role::Output(_)) && !written;
            self.expect(!forgotten, || format!("output `{}` is never written", b.name));
        }
    }

    fn buffer(&self, id: BufferId) -> &'a Buffer {
        self.program.buffer(id)
    }

    fn is_float(&mut self, id: BufferId) {
        let b = self.buffer(id);
        self.expect(b.dtype.is_float(), || format!("`{}` is {}; a float type is needed", b.name, b.dtype));
    }

    fn has_dtype(&mut self, id: BufferId, dtype: DType) {
        let b = self.buffer(id);
        self.expect(b.dtype == dtype, || format!("`{}` is {}; {dtype} is needed", b.name, b.dtype));
    }

    fn is_ints(&mut self, id: BufferId, rows: Dim, cols: u64) {
        let b = self.buffer(id);
        let fits = b.dtype == DType::I32 && b.batch == 1 && b.rows == rows && b.cols == cols && b.pitch == cols;
        self.expect(fits, || {
            format!(
                "`{}` is {}[{}, {}, {}] with pitch {}; contiguous i32[{rows}, {cols}] is needed",
                b.name, b.dtype, b.batch, b.rows, b.cols, b.pitch
            )
        });
    }

    fn has_shape(&mut self, id: BufferId, batch: u64, rows: Dim, cols: u64) {
        let b = self.buffer(id);
        let fits = b.batch == batch && b.rows == rows && b.cols == cols;
        self.expect(fits, || {
            format!("`{}` is [{}, {}, {}]; [{batch}, {rows}, {cols}] is needed", b.name, b.batch, b.rows, b.cols)
        });
    }

    fn expr(&mut self, e: &Expr, n_args: usize) {
        self.expect(e.is_well_formed(), || "an expression refers forwards".to_string());
        self.expect(e.n_args() <= n_args, || {
            format!("an expression takes {} arguments; there are {n_args}", e.n_args())
        });
    }

    fn contract(&mut self, c: &Contract) {
        self.expect(!c.segments.is_empty(), || "a contraction has no segments".to_string());
        let is_grouped = |s: &Segment| matches!(s.groups, Groups::ByExpert { .. });
        let first = c.segments.iter().enumerate().filter(|(i, s)| is_grouped(s) && c.chain_to(*i).is_none()).count();
        self.expect(first <= 1, || format!("{first} segments are grouped by expert; one at most can be"));
        for s in &c.segments {
            self.segment(s);
        }
        self.chains(c);
        if let Some(then) = &c.combine {
            self.contract_combine(c, then);
        }
    }

    /// What a segment makes another one reads through a chain, and chains say nothing else.
    fn chains(&mut self, c: &Contract) {
        for (reader, s) in c.segments.iter().enumerate() {
            let makers = || c.segments.iter().enumerate().filter(|(_, other)| other.out == s.a);
            let chained = makers().all(|(maker, _)| c.chain_to(reader).is_some_and(|x| x.made_by as usize == maker));
            self.expect(chained, || format!("segment {reader} reads rows that its launch makes without a chain"));
            let once = c.chains.iter().filter(|x| x.read_by as usize == reader).count() <= 1;
            self.expect(once, || format!("segment {reader} has its rows from several chains"));
        }
        let draws = c.numbers.is_some() == c.is_chained();
        self.expect(draws, || "numbers of tiles are drawn where segments are chained, and only there".to_string());
        if let Some(numbers) = c.numbers {
            self.is_ints(numbers, Dim::Fixed(1), 1);
            let counter = self.buffer(numbers);
            self.expect(counter.role == Role::Counter, || format!("`{}` is no counter", counter.name));
        }
        for x in &c.chains {
            let (made, read) = (c.segments.get(x.made_by as usize), c.segments.get(x.read_by as usize));
            let fits = match (made, read) {
                (Some(made), Some(read)) => {
                    x.made_by < x.read_by
                        && c.chain_to(x.made_by as usize).is_none()
                        && made.groups == read.groups
                        && read.a == made.out
                        && read.a_quant == made.out_quant
                        && read.a_rows == RowMap::Same
                }
                _ => false,
            };
            self.expect(fits, || {
                format!("segment {} does not make what segment {} reads after it, row for row", x.made_by, x.read_by)
            });
            let experts = read.and_then(|s| s.panels.first()).map_or(1, |p| self.buffer(p.weights).batch);
            self.is_ints(x.counter, Dim::Fixed(2), experts);
            let counter = self.buffer(x.counter);
            self.expect(counter.role == Role::Counter, || format!("`{}` is no counter", counter.name));
        }
    }

    /// The sum is made column by column when all rows of the segments are there: it reads the results of each of them so.
    fn contract_combine(&mut self, c: &Contract, then: &ContractCombine) {
        let sum = &then.combine;
        self.combine(sum);
        let made = |id: BufferId| c.segments.iter().find(|s| s.out == id);
        let grouped = made(sum.y).is_some_and(|s| matches!(s.groups, Groups::ByExpert { .. }));
        self.expect(grouped, || "combines rows of no product by experts of its own".to_string());
        for (_, s) in c.last_segments() {
            let out = self.buffer(s.out);
            let reads = s.out == sum.y || sum.args.iter().any(|a| a.buffer == s.out);
            let fits = reads && s.out_quant.is_none() && out.cols == self.buffer(sum.out).cols;
            self.expect(fits, || format!("combines without `{}`, or not column by column", out.name));
        }
        for a in sum.args.iter().filter(|a| made(a.buffer).is_some()) {
            let (same, name) = (a.row == RowAccess::Same && a.col == ColAccess::From(0), &self.buffer(a.buffer).name);
            self.expect(same, || format!("combines with other columns of `{name}`"));
        }
        self.is_ints(then.counter, Dim::Fixed(1), self.buffer(sum.out).cols.div_ceil(STRIP));
        let counter = self.buffer(then.counter);
        self.expect(counter.role == Role::Counter, || format!("`{}` is no counter", counter.name));
    }

    fn segment(&mut self, s: &Segment) {
        let (a, out) = (self.buffer(s.a), self.buffer(s.out));
        let (k, n) = (s.k(self.program), s.n(self.program));
        match &s.a_quant {
            Some(q) => self.coded_rows(s.a, q),
            None => self.is_float(s.a),
        }
        if let Some(q) = s.a_round {
            let known = q == ActQuant::INT16 && s.a_quant.is_none();
            self.expect(known, || format!("`{}` is rounded to {} as it is read", a.name, q.code.name()));
            let exact =
                |p: &Panel| p.quant.as_ref().is_some_and(|w| w.format.takes_int16_rows() && w.round == DType::F32);
            self.expect(s.panels.iter().all(exact), || {
                format!("integers of `{}` are multiplied with weights that are not exact codes of four bits", a.name)
            });
        }
        match &s.out_quant {
            Some(q) => {
                self.coded_rows(s.out, q);
                self.expect(!q.q.has_row(), || {
                    format!("`{}` has scales of whole rows, of which a tile has a part", out.name)
                });
            }
            None => self.is_float(s.out),
        }
        self.places(s.out, s.out_places);
        self.expect(s.out_quant.is_none() || s.out_places.is_none(), || {
            format!("codes `{}` are stored at places, where floats can be", out.name)
        });
        let coded =
            s.a_quant.is_none() || s.panels.iter().all(|p| p.quant.as_ref().is_some_and(|q| q.round == DType::F32));
        self.expect(coded, || format!("codes `{}` are multiplied with weights that are not exact codes", a.name));
        self.expect(a.batch == 1 && out.batch == 1, || format!("`{}` and `{}` must have batch 1", a.name, out.name));
        let fits = matches!(s.panels.len(), 1 | 2) && s.biases.len() == s.panels.len();
        self.expect(fits, || format!("a segment has {} panels and {} biases", s.panels.len(), s.biases.len()));
        if !fits {
            return;
        }
        let experts = self.buffer(s.panels[0].weights).batch;
        for (p, bias) in s.panels.iter().zip(&s.biases) {
            self.panel(p, experts, n, k);
            if let Some(bias) = *bias {
                self.is_float(bias);
                self.has_shape(bias, 1, Dim::Fixed(experts), n);
            }
        }
        match s.groups {
            Groups::Dense => self.expect(experts == 1, || format!("a dense segment has {experts} matrices")),
            Groups::ByExpert { offsets } => self.is_ints(offsets, Dim::Fixed(1), experts + 1),
        }
        match s.a_rows {
            RowMap::Same => {
                self.expect(a.rows == out.rows, || {
                    format!("`{}` has {} rows and `{}` {}", a.name, a.rows, out.name, out.rows)
                });
            }
            RowMap::Gather(map) => self.is_ints(map, out.rows, 1),
        }
        self.expr(&s.epilogue, s.panels.len());
    }

    /// Codes `[rows, bytes]` with their scales.
    fn coded_rows(&mut self, codes: BufferId, q: &RowQuant) {
        let b = self.buffer(codes);
        self.expect(q.q.is_known() && q.q.is_stored(), || format!("`{}` has rows of {}", b.name, q.q.code.name()));
        self.has_dtype(codes, DType::U8);
        self.has_shape(codes, 1, b.rows, q.q.code.bytes(q.cols));
        self.has_dtype(q.scales, q.format().scale.dtype());
        self.has_shape(q.scales, 1, b.rows, q.n_blocks());
        for (id, align) in [(codes, 64), (q.scales, 16)] {
            let b = self.buffer(id);
            self.expect((b.pitch * b.dtype.bytes() as u64).is_multiple_of(align), || {
                format!("rows of `{}` are not a multiple of {align} bytes apart", b.name)
            });
        }
        let rows = if q.q.has_row() { Some(b.rows) } else { q.q.has_global().then_some(Dim::Fixed(1)) };
        match (q.global, rows) {
            (Some(global), Some(rows)) => {
                self.has_dtype(global, DType::F32);
                self.has_shape(global, 1, rows, 1);
            }
            (None, None) => {}
            _ => self.error(format!("`{}` has a global scale where its format has none, or none where it has", b.name)),
        }
    }

    /// Offsets whose last entry ends the rows: i32 `[1, E + 1]`. Rows behind it are left; who sees a result has to be told which they are.
    fn until(&mut self, offsets: Option<BufferId>, written: impl IntoIterator<Item = BufferId>) {
        let Some(id) = offsets else { return };
        let cols = self.buffer(id).cols;
        self.is_ints(id, Dim::Fixed(1), cols);
        self.expect(cols > 0, || "rows end where no offset says".to_string());
        let is_told = self.program.kernels.iter().any(|k| {
            let plan = match &k.body {
                Body::Plan(plan) => Some(plan),
                Body::Rows(rows) => rows.plan.as_ref().map(|p| &p.plan),
                Body::Contract(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => None,
            };
            plan.is_some_and(|p| p.offsets == id && matches!(self.buffer(p.slot_to_row).role, Role::Output(_)))
        });
        for out in written {
            let out = self.buffer(out);
            self.expect(is_told || out.role == Role::Workspace, || {
                format!("leaves rows of `{}`, which others see", out.name)
            });
        }
    }

    /// Rows of a result that are stored into memory of others.
    fn places(&mut self, out: BufferId, places: Option<Places>) {
        let Some(Places { of_rows, unit }) = places else { return };
        let (b, name) = (self.buffer(of_rows), &self.buffer(out).name);
        self.has_dtype(of_rows, DType::I64);
        self.has_shape(of_rows, 1, self.buffer(out).rows, 1);
        self.expect(b.pitch == 1, || format!("addresses `{}` are {} elements apart", b.name, b.pitch));
        self.expect(unit > 0, || format!("rows of `{name}` begin at multiples of no elements"));
        let is_output = matches!(self.buffer(out).role, Role::Output(_));
        let is_read = self.program.kernels.iter().any(|k| k.body.operands().contains(&(out, false)));
        self.expect(is_output && !is_read, || format!("`{name}` is stored into memory of others, and read here"));
    }

    fn quantise(&mut self, q: &Quantise) {
        let out = self.buffer(q.out);
        self.is_float(q.x);
        self.has_shape(q.x, 1, out.rows, q.quant.cols);
        self.coded_rows(q.out, &q.quant);
        self.until(q.until, [q.out]);
    }

    /// `[experts, n, k]`, as floats or as codes and scales.
    fn panel(&mut self, p: &Panel, experts: u64, n: u64, k: u64) {
        let Some(q) = &p.quant else {
            self.is_float(p.weights);
            self.has_shape(p.weights, experts, Dim::Fixed(n), k);
            return;
        };
        let f = q.format;
        self.expect(Code::ALL.contains(&f.code), || format!("no weights are codes of {}", f.code.name()));
        self.has_dtype(p.weights, DType::U8);
        self.has_shape(p.weights, experts, Dim::Fixed(n), f.code.bytes(k));
        let codes = self.buffer(p.weights);
        self.expect(codes.pitch.is_multiple_of(16), || {
            format!("rows of `{}` are {} bytes apart; a multiple of 16 is needed", codes.name, codes.pitch)
        });
        let (grid_rows, grid_cols) = f.scale_grid(n, k);
        self.has_dtype(q.scales, f.scale.dtype());
        self.has_shape(q.scales, experts, Dim::Fixed(grid_rows), grid_cols);
        if let Some(global) = q.global {
            self.has_dtype(global, DType::F32);
            self.has_shape(global, 1, Dim::Fixed(1), experts);
        }
        let name = &self.buffer(p.weights).name;
        let rounds = matches!(q.round, DType::F32 | DType::F16 | DType::BF16);
        self.expect(rounds, || format!("codes of `{name}` become {}; f32, f16 or bf16 is needed", q.round));
        for (id, scale) in [(Some(p.weights), false), (Some(q.scales), true), (q.global, true)] {
            let Some(b) = id.map(|id| self.buffer(id)) else { continue };
            let fits = match b.role {
                Role::Weight(_) => !scale,
                Role::WeightScale(_) | Role::WeightGlobal(_) => scale,
                Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => false,
            };
            self.expect(fits, || format!("`{}` is not packed as a part of quantised weights", b.name));
        }
    }

    fn rows(&mut self, p: &RowProgram) {
        for (i, op) in p.ops.iter().enumerate() {
            let is_ids = matches!(op.kind, RowOpKind::TopK(_) | RowOpKind::Lookup { .. } | RowOpKind::LocalIds { .. });
            let loads = matches!(op.kind, RowOpKind::Load(_) | RowOpKind::LoadFirst(_) | RowOpKind::Join { .. });
            self.expect(op.width > 0, || format!("row step {i} has no width"));
            self.expect(loads || is_ids == (op.dtype == DType::I32), || format!("row step {i} is {}", op.dtype));
            for operand in op_operands(&op.kind) {
                self.expect((operand.0 as usize) < i, || format!("row step {i} refers to step {}", operand.0));
                if operand.0 as usize >= i {
                    return;
                }
            }
            let width = |id: RowId| p.ops[id.0 as usize].width;
            let is_int = |id: RowId| p.ops[id.0 as usize].dtype == DType::I32;
            match &op.kind {
                RowOpKind::Load(b) => self.has_shape(*b, 1, p.rows, op.width),
                RowOpKind::LoadFirst(b) => self.has_shape(*b, 1, Dim::Fixed(1), op.width),
                RowOpKind::Linear { x, w, bias } => {
                    self.is_float(*x);
                    self.is_float(*w);
                    let k = self.buffer(*x).cols;
                    self.has_shape(*x, 1, p.rows, k);
                    self.has_shape(*w, 1, Dim::Fixed(op.width), k);
                    if let Some(b) = bias {
                        self.has_shape(*b, 1, Dim::Fixed(1), op.width);
                    }
                }
                RowOpKind::Map { expr, args } => {
                    let fits = args.iter().all(|&a| !is_int(a) && (width(a) == op.width || width(a) == 1));
                    self.expect(fits, || format!("row step {i} maps rows of other widths"));
                    self.expr(expr, args.len());
                }
                RowOpKind::Softmax(x) | RowOpKind::RmsNorm { x, .. } | RowOpKind::Renormalise { x, .. } => {
                    self.expect(width(*x) == op.width && !is_int(*x), || format!("row step {i} changes the width"));
                }
                RowOpKind::GroupLimit { x, n_groups, keep, .. } => {
                    let fits = width(*x) == op.width
                        && *n_groups > 0
                        && op.width % u64::from(*n_groups) == 0
                        && (1..=*n_groups).contains(keep);
                    self.expect(fits, || {
                        format!("row step {i} keeps {keep} of {n_groups} groups of {} experts", op.width)
                    });
                }
                RowOpKind::TopK(x) => {
                    self.expect(op.width <= width(*x) && !is_int(*x), || {
                        format!("row step {i} takes {} of {}", op.width, width(*x))
                    });
                }
                RowOpKind::Reduce { x, .. } => {
                    self.expect(op.width == 1 && !is_int(*x), || {
                        format!("row step {i} reduces to {} columns", op.width)
                    });
                }
                RowOpKind::MaskChosen { x, ids } => {
                    let fits = is_int(*ids) && !is_int(*x) && width(*x) == op.width;
                    self.expect(fits, || format!("row step {i} masks by a row that has no ids, or changes the width"));
                }
                RowOpKind::Join { a, b } => {
                    let fits = is_int(*a) == is_int(*b) && is_int(*a) == (op.dtype == DType::I32);
                    let fits = fits && width(*a) + width(*b) == op.width;
                    self.expect(fits, || format!("row step {i} joins rows that do not fit"));
                }
                RowOpKind::Lookup { table, index } => {
                    let (t, n) = (self.buffer(*table), self.buffer(*index));
                    self.is_ints(*table, t.rows, op.width);
                    let fits = n.dtype == DType::I64 && n.batch == 1 && n.rows == p.rows && n.cols == 1 && n.pitch == 1;
                    self.expect(fits, || format!("`{}` is not one i64 for each row", n.name));
                }
                RowOpKind::SumOutside { x, ids, .. } => {
                    let fits = is_int(*ids) && !is_int(*x) && width(*ids) == width(*x) && op.width == 1;
                    self.expect(fits, || format!("row step {i} sums weights of other slots"));
                }
                RowOpKind::LocalIds { ids, first, count } => {
                    let range = *count > 0 && i32::try_from(u64::from(*first) + u64::from(*count)).is_ok();
                    let fits = range && is_int(*ids) && op.dtype == DType::I32 && width(*ids) == op.width;
                    self.expect(fits, || {
                        format!("row step {i} keeps {count} ids from {first} on, of a row that does not fit")
                    });
                }
                RowOpKind::Gather { x, ids } => {
                    let fits = is_int(*ids) && !is_int(*x) && width(*ids) == op.width;
                    self.expect(fits, || format!("row step {i} gathers by a row that has no ids or another width"));
                }
            }
        }
        self.until(p.until, p.stores.iter().map(|s| s.buffer));
        for (i, q) in p.quantise.iter().enumerate() {
            self.quantise(q);
            let rows = self.buffer(q.out).rows;
            self.expect(rows == p.rows && q.until == p.until, || format!("quantises {rows} rows beside {}", p.rows));
            let twin = p.quantise[..i].iter().any(|other| other.out == q.out || other.quant.scales == q.quant.scales);
            self.expect(!twin, || format!("makes the codes `{}` twice", self.program.buffer(q.out).name));
        }
        if let Some(then) = &p.plan {
            self.plan(&then.plan);
            self.is_ints(then.counter, Dim::Fixed(1), 1);
            let (ids, counter) = (self.buffer(then.plan.ids), self.buffer(then.counter));
            self.expect(counter.role == Role::Counter, || format!("`{}` is no counter", counter.name));
            let stored = p.stores.iter().any(|s| s.buffer == then.plan.ids);
            self.expect(stored, || format!("plans by `{}`, which it does not store", ids.name));
        }
        if let Some(l) = &p.logits {
            let widths: Vec<u64> = p.products().map(|(_, op)| op.width).collect();
            self.expect(!widths.is_empty() && l.values.len() == widths.len(), || {
                format!("keeps {} products of {}", l.values.len(), widths.len())
            });
            for (&b, width) in l.values.iter().zip(widths) {
                self.has_dtype(b, DType::F32);
                self.has_shape(b, 1, p.rows, width);
            }
            self.is_ints(l.counter, p.rows, 1);
            let counter = self.buffer(l.counter);
            self.expect(counter.role == Role::Counter, || format!("`{}` is no counter", counter.name));
        }
        for s in &p.stores {
            let Some(op) = p.ops.get(s.value.0 as usize) else {
                self.error(format!("stores row step {}, which does not exist", s.value.0));
                continue;
            };
            self.has_shape(s.buffer, 1, p.rows, op.width);
            let b = self.buffer(s.buffer);
            let fits = b.dtype.is_float() == (op.dtype != DType::I32);
            self.expect(fits, || format!("stores a row of {} in `{}`, which is {}", op.dtype, b.name, b.dtype));
        }
    }

    fn plan(&mut self, p: &Plan) {
        let ids = self.buffer(p.ids);
        let Dim::PerToken(per) = ids.rows else {
            self.error(format!("`{}` has {} rows; expert ids have a row for each token", ids.name, ids.rows));
            return;
        };
        self.is_ints(p.ids, Dim::PerToken(per), ids.cols);
        self.is_ints(p.offsets, Dim::Fixed(1), p.n_experts + 1);
        self.is_ints(p.slot_to_row, ids.rows, ids.cols);
        self.is_ints(p.row_to_token, Dim::PerToken(per * ids.cols), 1);
        if let Some(SlotPlaces { of_slots, of_rows }) = p.places {
            for (id, rows, cols) in [(of_slots, ids.rows, ids.cols), (of_rows, Dim::PerToken(per * ids.cols), 1)] {
                self.has_dtype(id, DType::I64);
                self.has_shape(id, 1, rows, cols);
                let b = self.buffer(id);
                self.expect(b.pitch == cols, || format!("addresses `{}` are {} elements apart", b.name, b.pitch));
            }
        }
    }

    fn map_args(&mut self, args: &[MapArg], out: &Buffer) {
        for a in args {
            self.is_float(a.buffer);
            let b = self.buffer(a.buffer);
            self.expect(b.batch == 1, || format!("`{}` has batch {}", b.name, b.batch));
            let last = match a.col {
                ColAccess::From(offset) => offset + out.cols,
                ColAccess::First => 1,
                ColAccess::AbsMax(block) => {
                    self.expect(block > 0, || format!("blocks of `{}` have no columns", b.name));
                    out.cols
                }
            };
            self.expect(last <= b.cols, || format!("`{}` has {} columns; {last} are read", b.name, b.cols));
            match a.row {
                RowAccess::Same => self.expect(b.rows == out.rows, || {
                    format!("`{}` has {} rows and `{}` {}", b.name, b.rows, out.name, out.rows)
                }),
                RowAccess::First => {}
                RowAccess::Through(map) => {
                    let m = self.buffer(map);
                    let elements = match m.rows {
                        Dim::Fixed(n) => Dim::Fixed(n * m.cols),
                        Dim::PerToken(n) => Dim::PerToken(n * m.cols),
                    };
                    let fits = m.dtype == DType::I32 && m.pitch == m.cols && elements == out.rows;
                    self.expect(fits, || format!("row map `{}` has {elements} entries for {} rows", m.name, out.rows));
                }
            }
        }
    }

    fn map(&mut self, m: &Map) {
        let out = self.buffer(m.out);
        self.is_float(m.out);
        self.expect(out.batch == 1, || format!("`{}` has batch {}", out.name, out.batch));
        self.map_args(&m.args, out);
        self.expr(&m.expr, m.args.len());
        self.places(m.out, m.out_places);
        // Rows that hold no slot have no place.
        self.until(m.until, Some(m.out).filter(|_| m.out_places.is_none()));
    }

    fn combine(&mut self, c: &Combine) {
        let (out, y, w) = (self.buffer(c.out), self.buffer(c.y), self.buffer(c.weights));
        self.is_float(c.out);
        self.is_float(c.y);
        self.is_float(c.weights);
        let per = if let Dim::PerToken(n) = out.rows { n } else { 0 };
        let fits = out.rows == w.rows && y.rows == Dim::PerToken(per * w.cols) && y.cols == out.cols && per > 0;
        self.expect(fits, || {
            format!(
                "combines `{}` [{}, {}] with weights [{}, {}] into [{}, {}]",
                y.name, y.rows, y.cols, w.rows, w.cols, out.rows, out.cols
            )
        });
        if let Some(map) = c.slot_to_row {
            self.is_ints(map, w.rows, w.cols);
        }
        self.map_args(&c.args, out);
        self.expr(&c.expr, c.args.len() + 1);
    }
}

fn op_operands(kind: &RowOpKind) -> Vec<RowId> {
    match kind {
        RowOpKind::Load(_) | RowOpKind::LoadFirst(_) | RowOpKind::Linear { .. } => Vec::new(),
        RowOpKind::Map { args, .. } => args.clone(),
        RowOpKind::Softmax(x)
        | RowOpKind::RmsNorm { x, .. }
        | RowOpKind::GroupLimit { x, .. }
        | RowOpKind::TopK(x)
        | RowOpKind::Renormalise { x, .. } => vec![*x],
        RowOpKind::Lookup { .. } => Vec::new(),
        RowOpKind::LocalIds { ids, .. } => vec![*ids],
        RowOpKind::Reduce { x, .. } => vec![*x],
        RowOpKind::Join { a, b } => vec![*a, *b],
        RowOpKind::Gather { x, ids } | RowOpKind::MaskChosen { x, ids } | RowOpKind::SumOutside { x, ids, .. } => {
            vec![*x, *ids]
        }
    }
}
