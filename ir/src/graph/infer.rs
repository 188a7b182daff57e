//! Types of values: what each operation makes of its operands, and what is wrong when they do not fit.

use super::{Op, RenormRule};
use crate::DType;
use crate::diag::Diagnostic;
use crate::shape::{Dim, TensorType};

/// The type of the value that `op` makes of operands of these types.
///
/// A float result has the type of the first operand, except `TopK` (i32). A narrower or wider float type may be chosen
/// by the builder afterwards. `node` and `names` are for the message only.
///
/// # Errors
/// * `operand-count` — too few or too many operands.
/// * `element-type-mismatch` — an integer where a float is needed, or the other way round.
/// * `shape-mismatch` — axes that have to be equal are not.
/// * `expert-width-mismatch` — the contracted axis of an expert matrix is not the activations' last axis.
/// * `top-k-exceeds-experts`, `groups-do-not-divide-experts`, `groups-kept-exceed-groups`, `odd-half`.
pub fn infer_type(node: &str, op: &Op, types: &[&TensorType], names: &[&str]) -> Result<TensorType, Diagnostic> {
    let c = Check { node, types, names };
    let (least, most) = operand_count(op);
    if types.len() < least || types.len() > most {
        let expected = if least == most { format!("{least}") } else { format!("{least} to {most}") };
        return Err(Diagnostic::input(
            "operand-count",
            format!("`{node}` has {} operands; `{}` takes {expected}", types.len(), op.name()),
        ));
    }
    match op {
        Op::Input(_) | Op::Param(_) => {
            Err(Diagnostic::internal("internal-error", format!("the type of leaf `{node}` should be given")))
        }
        Op::Linear | Op::LinearAct { .. } => c.linear(op),
        Op::Add | Op::Mul => c.broadcast(),
        Op::Map(expr) => {
            if !expr.is_well_formed() || expr.n_args() > types.len() {
                return Err(Diagnostic::input(
                    "operand-count",
                    format!("`{node}` has {} operands; its expression `{expr}` takes {}", types.len(), expr.n_args()),
                ));
            }
            c.broadcast()
        }
        Op::Scale(_) | Op::Cast | Op::Score(_) => c.float(0).cloned(),
        Op::Activate(_) => {
            let first = c.float(0)?;
            for i in 1..types.len() {
                c.same_shape(i, first)?;
            }
            Ok(first.clone())
        }
        Op::RmsNorm { .. } => {
            let x = c.float(0)?;
            if types.len() == 2 {
                c.shape_is(1, &[c.last(0)?])?;
            }
            Ok(x.clone())
        }
        Op::Quantise(q) => {
            let wanted = 1 + usize::from(q.has_global());
            if types.len() != wanted || !q.is_known() {
                return Err(Diagnostic::input(
                    "operand-count",
                    format!("`{node}` has {} operands; rows in this format are made from {wanted}", types.len()),
                ));
            }
            if q.has_global() {
                c.shape_is(1, &[Dim::Fixed(1)])?;
            }
            c.float(0).cloned()
        }
        Op::GroupLimit { n_groups, keep, .. } => c.group_limit(*n_groups, *keep),
        Op::TopK { k } => c.top_k(*k),
        Op::GatherScores => {
            let scores = c.rank(0, 2)?;
            let ids = c.ids(1)?;
            Ok(TensorType::new(scores.dtype, [scores.shape[0], ids.shape[1]]))
        }
        Op::Renormalise(rule) => {
            let x = c.float(0)?;
            if let RenormRule::PNorm { p } = rule
                && !(p.0 > 0.0 && p.0.is_finite())
            {
                return Err(Diagnostic::input(
                    "norm-exponent",
                    format!("`{node}` normalises by a p-norm with p = {p}; p must be positive and finite"),
                ));
            }
            Ok(x.clone())
        }
        Op::Reduce(_) => {
            let x = c.rank(0, 2)?;
            Ok(TensorType::new(x.dtype, [x.shape[0], Dim::Fixed(1)]))
        }
        Op::MaskChosen => {
            let x = c.rank(0, 2)?;
            c.ids(1)?;
            Ok(x.clone())
        }
        Op::JoinColumns => c.join_columns(),
        Op::Lookup => {
            let (table, index) = (types[0], types[1]);
            let fits = table.dtype == DType::I32 && matches!(table.shape[..], [Dim::Fixed(_), Dim::Fixed(_)]);
            if !fits {
                return Err(c.mismatch("a table i32[V, K]", 0));
            }
            if index.dtype != DType::I64 || index.shape != [Dim::TOKENS] {
                return Err(c.mismatch("token ids i64[T]", 1));
            }
            Ok(TensorType::new(DType::I32, [Dim::TOKENS, table.shape[1]]))
        }
        Op::SumOutside { .. } => {
            let w = c.rank(0, 2)?;
            c.axis_is(1, 1, w.shape[1])?;
            c.ids(1)?;
            Ok(TensorType::new(w.dtype, [w.shape[0], Dim::Fixed(1)]))
        }
        Op::LocalIds { first, count } => {
            let ids = c.ids_of(0, &[DType::I32, DType::I64])?;
            if *count == 0 || i32::try_from(u64::from(*first) + u64::from(*count)).is_err() {
                return Err(Diagnostic::input(
                    "local-ids-range",
                    format!("`{node}` keeps {count} expert ids from {first} on"),
                )
                .note("at least one id must be kept, and ids end below 2^31"));
            }
            if ids.shape[1] == Dim::Fixed(0) {
                return Err(Diagnostic::input(
                    "local-ids-range",
                    format!("`{node}` keeps expert ids of tokens that have none: {}", c.found(0)),
                ));
            }
            Ok(TensorType { dtype: DType::I32, ..ids.clone() })
        }
        Op::Permute { .. } => {
            let x = c.rank(0, 2)?;
            let slots = c.slots(1)?;
            Ok(TensorType::new(x.dtype, [slots, x.shape[1]]))
        }
        Op::Unpermute { .. } => {
            let y = c.rank(0, 2)?;
            let slots = c.slots(1)?;
            c.axis_is(0, 0, slots)?;
            Ok(y.clone())
        }
        Op::SlotToRow { .. } => Ok(c.ids(0)?.clone()),
        Op::StoreAt { .. } => {
            let y = c.rank(0, 2)?;
            c.axis_is(0, 0, c.slots(1)?)?;
            let places = c.ids_of(2, &[DType::I64])?;
            if places.shape != types[1].shape {
                return Err(c.mismatch("an address for each slot", 2));
            }
            Ok(y.clone())
        }
        Op::GroupedLinear => c.grouped(false, 1),
        Op::GatherGroupedLinear => c.grouped(true, 1),
        Op::GroupedLinearAct { act, gather, .. } => c.grouped(*gather, if act.is_gated() { 2 } else { 1 }),
        Op::WeightedSum => {
            let slots = c.rank(0, 2)?;
            c.axis_is(0, 0, c.slots_of_float(1)?)?;
            let w = c.rank(1, 2)?;
            Ok(TensorType::new(slots.dtype, [w.shape[0], slots.shape[1]]))
        }
        Op::Concat { axis } => c.concat(*axis as usize),
        Op::Half(_) => {
            let mut ty = c.float(0)?.clone();
            match ty.shape.last_mut() {
                Some(Dim::Fixed(n)) if *n % 2 == 0 => *n /= 2,
                _ => {
                    return Err(Diagnostic::input(
                        "odd-half",
                        format!(
                            "`{node}` takes half of the columns of `{}`, {}; their number must be even",
                            names[0], types[0]
                        ),
                    ));
                }
            }
            Ok(ty)
        }
        Op::Combine { .. } => {
            let y = c.rank(0, 2)?;
            c.axis_is(0, 0, c.slots(1)?)?;
            c.slots_of_float(2)?;
            let tokens = c.rank(2, 2)?.shape[0];
            let out = TensorType::new(y.dtype, [tokens, y.shape[1]]);
            if types.len() > 3 {
                c.same_shape(3, &out)?;
            }
            if types.len() > 4 {
                c.shape_is(4, &[tokens, Dim::Fixed(1)])?;
            }
            Ok(out)
        }
    }
}

fn operand_count(op: &Op) -> (usize, usize) {
    match op {
        Op::Input(_) | Op::Param(_) => (0, 0),
        Op::Map(_) => (1, 8),
        Op::MaskChosen | Op::JoinColumns | Op::Lookup | Op::SumOutside { .. } => (2, 2),
        Op::Reduce(_)
        | Op::Scale(_)
        | Op::Cast
        | Op::Score(_)
        | Op::GroupLimit { .. }
        | Op::TopK { .. }
        | Op::LocalIds { .. }
        | Op::SlotToRow { .. }
        | Op::Renormalise(_)
        | Op::Half(_) => (1, 1),
        Op::Activate(a) => {
            if a.is_gated() {
                (2, 2)
            } else {
                (1, 1)
            }
        }
        Op::RmsNorm { .. } | Op::Quantise(_) => (1, 2),
        Op::Add
        | Op::Mul
        | Op::GatherScores
        | Op::Permute { .. }
        | Op::Unpermute { .. }
        | Op::WeightedSum
        | Op::Concat { .. } => (2, 2),
        Op::Linear | Op::LinearAct { .. } => (2, 3),
        Op::StoreAt { .. } => (3, 3),
        Op::GroupedLinear | Op::GatherGroupedLinear | Op::GroupedLinearAct { .. } => (3, 4),
        Op::Combine { .. } => (3, 5),
    }
}

struct Check<'a> {
    node: &'a str,
    types: &'a [&'a TensorType],
    names: &'a [&'a str],
}

impl<'a> Check<'a> {
    fn found(&self, i: usize) -> String {
        format!("`{}` is {}", self.names[i], self.types[i])
    }

    fn mismatch(&self, expected: &str, i: usize) -> Diagnostic {
        Diagnostic::input("shape-mismatch", format!("`{}` expects {expected}; {}", self.node, self.found(i)))
    }

    fn float(&self, i: usize) -> Result<&'a TensorType, Diagnostic> {
        if self.types[i].dtype.is_float() && !self.types[i].shape.is_empty() {
            return Ok(self.types[i]);
        }
        Err(Diagnostic::input(
            "element-type-mismatch",
            format!("`{}` expects a float tensor; {}", self.node, self.found(i)),
        ))
    }

    fn rank(&self, i: usize, rank: usize) -> Result<&'a TensorType, Diagnostic> {
        let ty = self.float(i)?;
        if ty.shape.len() == rank { Ok(ty) } else { Err(self.mismatch(&format!("{rank} axes"), i)) }
    }

    /// The innermost axis of float operand `i`.
    fn last(&self, i: usize) -> Result<Dim, Diagnostic> {
        let ty = self.float(i)?;
        ty.last().ok_or_else(|| self.mismatch("at least one axis", i))
    }

    fn ids(&self, i: usize) -> Result<&'a TensorType, Diagnostic> {
        let found = self.ids_of(i, &[DType::I32]);
        found.map_err(|d| match self.types[i].dtype {
            DType::I64 => d.help("`local_ids` makes ids i64 to ids i32, and skips those that no expert has"),
            _ => d,
        })
    }

    /// As `ids`, in one of `types`.
    fn ids_of(&self, i: usize, types: &[DType]) -> Result<&'a TensorType, Diagnostic> {
        let ty = self.types[i];
        if types.contains(&ty.dtype) && matches!(ty.shape[..], [Dim::PerToken(1), Dim::Fixed(_)]) {
            return Ok(ty);
        }
        Err(Diagnostic::input(
            "element-type-mismatch",
            format!("`{}` expects expert ids i32[T, K]; {}", self.node, self.found(i)),
        ))
    }

    /// Number of slots of the expert ids in operand `i`.
    fn slots(&self, i: usize) -> Result<Dim, Diagnostic> {
        let k = self.ids(i)?.shape[1].fixed().unwrap_or(0);
        Ok(Dim::PerToken(k))
    }

    /// Number of slots of the routing weights in operand `i`.
    fn slots_of_float(&self, i: usize) -> Result<Dim, Diagnostic> {
        let w = self.rank(i, 2)?;
        match w.shape[..] {
            [Dim::PerToken(1), Dim::Fixed(k)] => Ok(Dim::PerToken(k)),
            _ => Err(self.mismatch("routing weights [T, K]", i)),
        }
    }

    fn axis_is(&self, i: usize, axis: usize, expected: Dim) -> Result<(), Diagnostic> {
        if self.types[i].shape.get(axis) == Some(&expected) {
            return Ok(());
        }
        Err(self.mismatch(&format!("axis {axis} to be {expected}"), i))
    }

    fn shape_is(&self, i: usize, shape: &[Dim]) -> Result<(), Diagnostic> {
        if self.float(i)?.shape == shape {
            return Ok(());
        }
        let want = TensorType::new(self.types[i].dtype, shape);
        Err(self.mismatch(&format!("{want}"), i))
    }

    fn same_shape(&self, i: usize, like: &TensorType) -> Result<(), Diagnostic> {
        self.shape_is(i, &like.shape)
    }

    fn linear(&self, op: &Op) -> Result<TensorType, Diagnostic> {
        let x = self.float(0)?;
        let w = self.rank(1, 2)?;
        self.contracted(0, 1)?;
        let per = match op {
            Op::LinearAct { act, .. } if act.is_gated() => 2,
            _ => 1,
        };
        let n = self.output_columns(1, w.shape[0], per)?;
        if self.types.len() > 2 {
            self.shape_is(2, &[w.shape[0]])?;
        }
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        Ok(TensorType::new(x.dtype, shape))
    }

    fn grouped(&self, gather: bool, per: u64) -> Result<TensorType, Diagnostic> {
        let x = self.rank(0, 2)?;
        let slots = self.slots(1)?;
        let w = self.rank(2, 3)?;
        self.axis_is(0, 0, if gather { Dim::TOKENS } else { slots })?;
        self.contracted(0, 2)?;
        let n = self.output_columns(2, w.shape[1], per)?;
        if self.types.len() > 3 {
            self.shape_is(3, &[w.shape[0], w.shape[1]])?;
        }
        Ok(TensorType::new(x.dtype, [slots, n]))
    }

    fn output_columns(&self, w: usize, rows: Dim, per: u64) -> Result<Dim, Diagnostic> {
        match rows {
            Dim::Fixed(n) if n % per == 0 => Ok(Dim::Fixed(n / per)),
            Dim::Fixed(_) | Dim::PerToken(_) => Err(self.mismatch("an even, fixed number of gate and up rows", w)),
        }
    }

    fn contracted(&self, x: usize, w: usize) -> Result<(), Diagnostic> {
        if self.types[x].last() == self.types[w].last() {
            return Ok(());
        }
        Err(Diagnostic::input(
            "expert-width-mismatch",
            format!("`{}` multiplies rows of `{}`, {}, by `{}`, {}", self.node, self.names[x], self.types[x], self.names[w], self.types[w]),
        )
        .note("the last axis of the activations must equal the last axis of the weights, the contracted one")
        .help("store weights as [N, K], or [E, N, K] for experts; transpose them where the checkpoint has them the other way"))
    }

    fn join_columns(&self) -> Result<TensorType, Diagnostic> {
        let (a, b) = (self.types[0], self.types[1]);
        match (&a.shape[..], &b.shape[..]) {
            ([rows, Dim::Fixed(m)], [other, Dim::Fixed(n)]) if rows == other && a.dtype == b.dtype => {
                Ok(TensorType::new(a.dtype, [*rows, Dim::Fixed(m + n)]))
            }
            _ => Err(self.mismatch(&format!("rows and element type of `{}`, {a}", self.names[0]), 1)),
        }
    }

    fn broadcast(&self) -> Result<TensorType, Diagnostic> {
        let mut ty = self.float(0)?.clone();
        for i in 1..self.types.len() {
            ty = self.broadcast_two(&ty, i)?;
        }
        Ok(ty)
    }

    fn broadcast_two(&self, a: &TensorType, operand: usize) -> Result<TensorType, Diagnostic> {
        let b = self.float(operand)?;
        let rank = a.shape.len().max(b.shape.len());
        let axis = |t: &TensorType, i: usize| {
            let missing = rank - t.shape.len();
            if i < missing { Dim::Fixed(1) } else { t.shape[i - missing] }
        };
        let mut shape = Vec::with_capacity(rank);
        for i in 0..rank {
            shape.push(match (axis(a, i), axis(b, i)) {
                (x, y) if x == y => x,
                (Dim::Fixed(1), y) => y,
                (x, Dim::Fixed(1)) => x,
                _ => {
                    return Err(Diagnostic::input(
                        "shape-mismatch",
                        format!(
                            "`{}` cannot broadcast its operands: {}, {}",
                            self.node,
                            self.found(0),
                            self.found(operand)
                        ),
                    )
                    .note(
                        "axes are compared from the last one; two lengths fit when they are equal or one of them is 1",
                    ));
                }
            });
        }
        Ok(TensorType::new(a.dtype, shape))
    }

    fn group_limit(&self, n_groups: u32, keep: u32) -> Result<TensorType, Diagnostic> {
        let x = self.rank(0, 2)?;
        let experts = x.shape[1].fixed().unwrap_or(0);
        if n_groups == 0 || experts % u64::from(n_groups) != 0 {
            return Err(Diagnostic::input(
                "groups-do-not-divide-experts",
                format!("`{}` splits {experts} experts into {n_groups} groups", self.node),
            )
            .note("every group must have the same number of experts"));
        }
        if keep == 0 || keep > n_groups {
            return Err(Diagnostic::input(
                "groups-kept-exceed-groups",
                format!("`{}` keeps {keep} of {n_groups} groups of experts", self.node),
            )
            .note("the number of groups kept must be at least 1 and at most the number of groups"));
        }
        Ok(x.clone())
    }

    fn top_k(&self, k: u32) -> Result<TensorType, Diagnostic> {
        let x = self.rank(0, 2)?;
        let experts = x.shape[1].fixed().unwrap_or(0);
        if k == 0 || u64::from(k) > experts {
            return Err(Diagnostic::input(
                "top-k-exceeds-experts",
                format!("`{}` chooses {k} of {experts} experts", self.node),
            )
            .note("the number of experts per token must be at least 1 and at most the number of experts"));
        }
        Ok(TensorType::new(DType::I32, [x.shape[0], Dim::Fixed(u64::from(k))]))
    }

    fn concat(&self, axis: usize) -> Result<TensorType, Diagnostic> {
        let (a, b) = (self.float(0)?, self.float(1)?);
        let mut shape = a.shape.clone();
        match (a.shape.get(axis), b.shape.get(axis)) {
            (Some(Dim::Fixed(m)), Some(Dim::Fixed(n))) => shape[axis] = Dim::Fixed(m + n),
            _ => return Err(self.mismatch(&format!("a fixed axis {axis}"), 1)),
        }
        let rest_fits =
            a.shape.len() == b.shape.len() && (0..a.shape.len()).all(|i| i == axis || a.shape[i] == b.shape[i]);
        if !rest_fits || a.dtype != b.dtype {
            return Err(self.mismatch(&format!("the type of `{}`, {a}, but for axis {axis}", self.names[0]), 1));
        }
        Ok(TensorType::new(a.dtype, shape))
    }
}
