//! Checks that a graph is one that the compiler can work on.
//!
//! * Operands are earlier values; leaves name existing inputs and parameters and repeat their type.
//! * Names of nodes, inputs, parameters and outputs are unique.
//! * Every type is what [`infer_type`] makes of the operands; of a float result the element type is free, because that
//!   is where the model rounds.
//! * Inputs have the token count, or a multiple of it, as outermost axis, parameters have none; no type has more than 2^48 elements a token, or none.
//! * Rows in expert order stay with the ids that ordered them: they are multiplied, permuted back and combined with
//!   the same ids and the same number of experts, and are not mixed with rows in another order.
//! * There is at least one output, and outputs name values.
//!
//! All findings are reported, in the order of the nodes.

use super::{Graph, Node, Op, ValueId, infer_type};
use crate::diag::Diagnostic;
use crate::dtype::DType;
use crate::quant::Code;
use crate::shape::{Dim, TensorType};
use std::collections::BTreeSet;

/// Most elements that a type may have for one token; keeps sizes far from overflowing 64 bits.
const MAX_ELEMENTS: u64 = 1 << 48;

/// What is wrong with `graph`; empty when nothing is.
///
/// Codes: `value-not-defined`, `leaf-not-defined`, `duplicate-name`, `node-type-mismatch`, `tensor-too-large`, `axis-empty`,
/// `input-without-tokens`, `parameter-with-tokens`, `stored-not-a-matrix`, `expert-order-mismatch`, `expert-count-mismatch`, `half-not-defined`,
/// `no-output`, `graph-value-range` for numbers of experts, and those of [`infer_type`].
pub fn verify(graph: &Graph) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    names(graph, &mut found);
    for input in &graph.inputs {
        if !matches!(input.ty.shape.first(), Some(Dim::PerToken(1..))) {
            found.push(Diagnostic::input(
                "input-without-tokens",
                format!("input `{}` is {}; its outermost axis must be T, or a multiple of it", input.name, input.ty),
            ));
        }
        size(&input.name, &input.ty, &mut found);
    }
    for param in &graph.params {
        if param.ty.shape.iter().any(|d| d.fixed().is_none()) {
            found.push(Diagnostic::input(
                "parameter-with-tokens",
                format!("parameter `{}` is {}; its axes must be fixed", param.name, param.ty),
            ));
        }
        size(&param.name, &param.ty, &mut found);
        if let Some(format) = param.stored
            && !(matches!(param.ty.dtype, DType::F32 | DType::F16 | DType::BF16)
                && param.ty.shape.len() >= 2
                && Code::ALL.contains(&format.code))
        {
            let what = format!("parameter `{}` is {}, which cannot be stored as {format}", param.name, param.ty);
            found.push(
                Diagnostic::input("stored-not-a-matrix", what)
                    .note("blocks of codes are parts of matrices of f32, f16 or bf16"),
            );
        }
    }
    let mut orders: Vec<Option<ExpertOrder>> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let before = found.len();
        let defined = operands(graph, i, node, &mut found);
        size(&node.name, &node.ty, &mut found);
        let order = if defined {
            types(graph, node, &mut found);
            expert_count(node, &mut found);
            expert_order(graph, node, &orders, &mut found)
        } else {
            None
        };
        orders.push(order);
        for d in &mut found[before..] {
            d.origin = d.origin.take().or_else(|| node.origin.clone());
        }
    }
    if graph.outputs.is_empty() {
        found.push(Diagnostic::input("no-output", format!("graph `{}` has no output", graph.name)));
    }
    for (name, value) in &graph.outputs {
        if value.index() >= graph.nodes.len() {
            found.push(Diagnostic::input(
                "value-not-defined",
                format!("output `{name}` is {value}, but the graph has {} values", graph.nodes.len()),
            ));
        }
    }
    found
}

fn names(graph: &Graph, found: &mut Vec<Diagnostic>) {
    let kinds: [(&str, Vec<&str>); 4] = [
        ("inputs", graph.inputs.iter().map(|i| i.name.as_str()).collect()),
        ("parameters", graph.params.iter().map(|p| p.name.as_str()).collect()),
        ("nodes", graph.nodes.iter().map(|n| n.name.as_str()).collect()),
        ("outputs", graph.outputs.iter().map(|(n, _)| n.as_str()).collect()),
    ];
    for (kind, names) in kinds {
        let mut seen = BTreeSet::new();
        let mut reported = BTreeSet::new();
        for name in names {
            if !seen.insert(name) && reported.insert(name) {
                found.push(Diagnostic::input("duplicate-name", format!("two {kind} are called `{name}`")));
            }
        }
    }
}

fn size(name: &str, ty: &TensorType, found: &mut Vec<Diagnostic>) {
    let axis = |d: &Dim| match d {
        Dim::Fixed(n) | Dim::PerToken(n) => *n,
    };
    if ty.shape.iter().any(|d| axis(d) == 0) {
        found.push(
            Diagnostic::input("axis-empty", format!("`{name}` is {ty}: an axis has no elements"))
                .note("only the number of tokens may be 0, when the layer runs"),
        );
    }
    let elements = ty.shape.iter().try_fold(1u64, |a, d| a.checked_mul(axis(d).max(1)));
    if elements.is_none_or(|n| n > MAX_ELEMENTS) {
        found.push(
            Diagnostic::input("tensor-too-large", format!("`{name}` is {ty}: more elements than any machine holds"))
                .note("a tensor may have up to 2^48 elements for each token"),
        );
    }
}

/// Whether the operands of node number `i` can be looked at.
fn operands(graph: &Graph, i: usize, node: &Node, found: &mut Vec<Diagnostic>) -> bool {
    let mut defined = true;
    for input in &node.inputs {
        if input.index() >= i {
            found.push(
                Diagnostic::input(
                    "value-not-defined",
                    format!("`{}` reads {input}, which is not defined before it", node.name),
                )
                .note("a value can be used only after the node that makes it"),
            );
            defined = false;
        }
    }
    let leaf = match node.op {
        Op::Input(n) => Some(("input", n, graph.inputs.get(n as usize).map(|x| &x.ty), graph.inputs.len())),
        Op::Param(n) => Some(("parameter", n, graph.params.get(n as usize).map(|x| &x.ty), graph.params.len())),
        _ => None,
    };
    let Some((kind, n, ty, count)) = leaf else { return defined };
    match ty {
        None => found.push(Diagnostic::input(
            "leaf-not-defined",
            format!("`{}` is {kind} number {n}, but the graph has {count}, counted from 0", node.name),
        )),
        Some(ty) if *ty != node.ty => found.push(Diagnostic::input(
            "node-type-mismatch",
            format!("`{}` is {}, but {kind} number {n} is {ty}", node.name, node.ty),
        )),
        Some(_) => {}
    }
    if !node.inputs.is_empty() {
        found.push(Diagnostic::input(
            "operand-count",
            format!("`{}` has {} operands; `{}` takes 0", node.name, node.inputs.len(), node.op.name()),
        ));
    }
    false
}

fn types(graph: &Graph, node: &Node, found: &mut Vec<Diagnostic>) {
    let types: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let names: Vec<&str> = node.inputs.iter().map(|&v| graph.node(v).name.as_str()).collect();
    match infer_type(&node.name, &node.op, &types, &names) {
        Err(d) => found.push(d),
        Ok(ty) => {
            let float_is_free = ty.dtype.is_float() && node.ty.dtype.is_float();
            if ty.shape != node.ty.shape || !(float_is_free || ty.dtype == node.ty.dtype) {
                found.push(Diagnostic::input(
                    "node-type-mismatch",
                    format!(
                        "`{}` is declared {}, but `{}` of these operands gives {ty}",
                        node.name,
                        node.ty,
                        node.op.name()
                    ),
                ));
            }
        }
    }
    if let Op::Half(n) = node.op
        && n > 1
    {
        found.push(Diagnostic::input(
            "half-not-defined",
            format!("`{}` takes half number {n}; there are halves 0 and 1", node.name),
        ));
    }
}

/// Most experts that rows may be ordered by.
const MOST_EXPERTS: u32 = 1 << 20;

/// Whether rows are ordered by a number of experts that is possible, and stored at multiples of some elements.
fn expert_count(node: &Node, found: &mut Vec<Diagnostic>) {
    let (Op::Permute { n_experts }
    | Op::Unpermute { n_experts }
    | Op::SlotToRow { n_experts }
    | Op::StoreAt { n_experts, .. }
    | Op::Combine { n_experts, .. }) = &node.op
    else {
        return;
    };
    if !(1..=MOST_EXPERTS).contains(n_experts) {
        let what = format!("`{}` orders rows by {n_experts} experts; 1 to {MOST_EXPERTS} are possible", node.name);
        found.push(Diagnostic::input("graph-value-range", what).help("give the number of experts of the layer"));
    }
    if let Op::StoreAt { unit: 0, .. } = node.op {
        let what = format!("`{}` stores rows at multiples of 0 elements; 1 or more are possible", node.name);
        found.push(Diagnostic::input("graph-value-range", what).help("give \"unit\": 1 for rows that begin anywhere"));
    }
}

/// The ids that put rows in expert order, and the number of experts.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ExpertOrder {
    ids: ValueId,
    n_experts: u64,
}

/// The expert order that the rows of `node` are in, if they are in one.
fn expert_order(
    graph: &Graph,
    node: &Node,
    orders: &[Option<ExpertOrder>],
    found: &mut Vec<Diagnostic>,
) -> Option<ExpertOrder> {
    let order = |i: usize| node.inputs.get(i).and_then(|v| orders.get(v.index()).copied().flatten());
    let name_of = |v: ValueId| graph.node(v).name.as_str();
    // Number of experts of the weights in operand `i`.
    let experts = |i: usize| match node.inputs.get(i).and_then(|&v| graph.ty(v).shape.first()) {
        Some(Dim::Fixed(n)) => *n,
        Some(Dim::PerToken(_)) | None => 0,
    };
    let mut mismatch = |text: String| {
        found.push(
            Diagnostic::input("expert-order-mismatch", text)
                .note("rows in expert order can be used only with the ids that ordered them"),
        );
    };
    match &node.op {
        Op::Permute { n_experts } => {
            if order(0).is_some() {
                mismatch(format!("`{}` permutes rows that are in expert order already", node.name));
            }
            node.inputs.get(1).map(|&ids| ExpertOrder { ids, n_experts: u64::from(*n_experts) })
        }
        Op::GroupedLinear | Op::GroupedLinearAct { gather: false, .. } => {
            let ids = *node.inputs.get(1)?;
            let rows = order(0);
            match rows {
                Some(o) if o.ids == ids => {}
                Some(o) => mismatch(format!(
                    "`{}` multiplies rows ordered by `{}` as if they were ordered by `{}`",
                    node.name,
                    name_of(o.ids),
                    name_of(ids)
                )),
                None => mismatch(format!("`{}` multiplies rows that are not in expert order", node.name)),
            }
            if let Some(o) = rows
                && o.n_experts != experts(2)
            {
                count_mismatch(node, o.n_experts, experts(2), found);
            }
            Some(ExpertOrder { ids, n_experts: experts(2) })
        }
        Op::GatherGroupedLinear | Op::GroupedLinearAct { gather: true, .. } => {
            if order(0).is_some() {
                mismatch(format!("`{}` gathers rows that are in expert order already", node.name));
            }
            Some(ExpertOrder { ids: *node.inputs.get(1)?, n_experts: experts(2) })
        }
        Op::Unpermute { n_experts } | Op::StoreAt { n_experts, .. } | Op::Combine { n_experts, .. } => {
            let ids = *node.inputs.get(1)?;
            match order(0) {
                Some(o) if o.ids == ids => {
                    if o.n_experts != u64::from(*n_experts) {
                        count_mismatch(node, o.n_experts, u64::from(*n_experts), found);
                    }
                }
                Some(o) => mismatch(format!(
                    "`{}` brings back rows ordered by `{}` as if they were ordered by `{}`",
                    node.name,
                    name_of(o.ids),
                    name_of(ids)
                )),
                None => mismatch(format!("`{}` brings back rows that are not in expert order", node.name)),
            }
            // Rows that are stored at places are still counted in expert order.
            order(0).filter(|_| matches!(node.op, Op::StoreAt { .. }))
        }
        // These work row by row and keep the order of their rows.
        Op::Linear
        | Op::LinearAct { .. }
        | Op::Add
        | Op::Mul
        | Op::Scale(_)
        | Op::Cast
        | Op::Map(_)
        | Op::Reduce(_)
        | Op::Activate(_)
        | Op::Score(_)
        | Op::RmsNorm { .. }
        | Op::Quantise(_)
        | Op::Renormalise(_)
        | Op::Half(_) => {
            let first = order(0);
            for (i, &v) in node.inputs.iter().enumerate().skip(1) {
                // Operands without rows of their own are spread over all rows.
                let has_rows = graph.ty(v).shape.len() >= 2 && graph.ty(v).shape[0].fixed().is_none();
                if has_rows && order(i) != first {
                    mismatch(format!(
                        "`{}` mixes `{}` and `{}`, whose rows are in different orders",
                        node.name,
                        name_of(node.inputs[0]),
                        name_of(v)
                    ));
                }
            }
            first
        }
        Op::Input(_) | Op::Param(_) => None,
        Op::GroupLimit { .. }
        | Op::TopK { .. }
        | Op::GatherScores
        | Op::MaskChosen
        | Op::JoinColumns
        | Op::Lookup
        | Op::SumOutside { .. }
        | Op::LocalIds { .. }
        | Op::SlotToRow { .. }
        | Op::WeightedSum
        | Op::Concat { .. } => {
            if order(0).is_some() {
                mismatch(format!("`{}` reads rows that are in expert order", node.name));
            }
            None
        }
    }
}

fn count_mismatch(node: &Node, rows: u64, here: u64, found: &mut Vec<Diagnostic>) {
    found.push(Diagnostic::input(
        "expert-count-mismatch",
        format!("`{}` works with {here} experts, but its rows were ordered for {rows}", node.name),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{parse, print};

    const GOOD: &str = r#"graph "g"
input "x" : bf16[T, 6]
param "r" : bf16[4, 6] = tensor("r")
param "w" : bf16[4, 6, 6] = tensor("w")
%0 = input index=0 () : bf16[T, 6]  "x"
%1 = param index=0 () : bf16[4, 6]  "r"
%2 = param index=1 () : bf16[4, 6, 6]  "w"
%3 = linear (%0, %1) : f32[T, 4]  "logits"
%4 = top_k k=2 (%3) : i32[T, 2]  "ids"
%5 = gather_scores (%3, %4) : f32[T, 2]  "weights"
%6 = permute n_experts=4 (%0, %4) : bf16[T*2, 6]  "rows"
%7 = grouped_linear (%6, %4, %2) : bf16[T*2, 6]  "y"
%8 = unpermute n_experts=4 (%7, %4) : bf16[T*2, 6]  "slots"
%9 = weighted_sum (%8, %5) : bf16[T, 6]  "sum"
output "output" = %9
"#;

    fn codes(text: &str) -> Vec<String> {
        let graph = parse("g.mir", text).expect("text should parse");
        verify(&graph).into_iter().map(|d| d.code).collect()
    }

    #[test]
    fn a_routed_layer_is_accepted() {
        assert_eq!(codes(GOOD), Vec::<String>::new());
        assert_eq!(print(&parse("g.mir", GOOD).expect("text should parse")), GOOD);
    }

    #[test]
    fn tokens_without_ids_keep_none() {
        let text = |k| {
            format!(
                "graph \"g\"\ninput \"ids\" : i32[T, {k}]\n%0 = input index=0 () : i32[T, {k}]  \"ids\"\n\
                 %1 = local_ids first=0 count=4 (%0) : i32[T, {k}]  \"local\"\noutput \"local\" = %1\n"
            )
        };
        assert_eq!(codes(&text(2)), Vec::<String>::new());
        assert!(codes(&text(0)).iter().any(|c| c == "local-ids-range"));
    }

    #[test]
    fn each_mistake_has_its_code() {
        let cases: [(&str, &str, &str); 21] = [
            ("(%0, %1) : f32[T, 4]", "(%0, %9) : f32[T, 4]", "value-not-defined"),
            ("= %9", "= %10", "value-not-defined"),
            ("index=1", "index=2", "leaf-not-defined"),
            ("\"y\"", "\"rows\"", "duplicate-name"),
            ("param \"w\"", "param \"r\"", "duplicate-name"),
            ("f32[T, 4]  \"logits\"", "f32[T, 5]  \"logits\"", "node-type-mismatch"),
            ("i32[T, 2]", "f32[T, 2]", "node-type-mismatch"),
            ("%1 = param index=0 () : bf16[4, 6]", "%1 = param index=0 () : f32[4, 6]", "node-type-mismatch"),
            ("input \"x\" : bf16[T, 6]", "input \"x\" : bf16[2, 6]", "input-without-tokens"),
            ("param \"r\" : bf16[4, 6]", "param \"r\" : bf16[T, 6]", "parameter-with-tokens"),
            ("param \"r\" : bf16[4, 6]", "param \"r\" : bf16[99999999999, 9999999999]", "tensor-too-large"),
            ("param \"r\" : bf16[4, 6]", "param \"r\" : bf16[4, 0]", "axis-empty"),
            ("(%6, %4, %2)", "(%6, %4, %2, %3)", "shape-mismatch"),
            ("k=2", "k=5", "top-k-exceeds-experts"),
            ("(%8, %5)", "(%8)", "operand-count"),
            ("(%8, %5)", "(%7, %5)", "expert-order-mismatch"),
            ("unpermute n_experts=4", "unpermute n_experts=5", "expert-count-mismatch"),
            ("permute n_experts=4 (%0", "permute n_experts=3 (%0", "expert-count-mismatch"),
            ("output \"output\" = %9\n", "", "no-output"),
            ("gather_scores (%3, %4)", "gather_scores (%4, %4)", "element-type-mismatch"),
            ("%0 = input index=0 ()", "%0 = input index=0 (%0)", "value-not-defined"),
        ];
        for (from, to, code) in cases {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let got = codes(&text);
            assert!(got.iter().any(|c| c == code), "{from} -> {to}: {got:?}");
        }
    }

    #[test]
    fn rows_stay_with_the_ids_that_ordered_them() {
        let text = GOOD.replace(
            "%9 = weighted_sum (%8, %5) : bf16[T, 6]  \"sum\"\noutput \"output\" = %9",
            "%9 = top_k k=2 (%3) : i32[T, 2]  \"other\"\n%10 = unpermute n_experts=4 (%7, %9) : bf16[T*2, 6]  \"back\"\noutput \"o\" = %10",
        );
        assert_eq!(codes(&text), ["expert-order-mismatch"]);
        let text = GOOD
            .replace("%9 = weighted_sum (%8, %5) : bf16[T, 6]  \"sum\"", "%9 = add (%7, %8) : bf16[T*2, 6]  \"sum\"");
        assert_eq!(codes(&text), ["expert-order-mismatch"]);
    }

    #[test]
    fn findings_carry_the_origin_of_the_node() {
        let text = GOOD.replace("k=2", "k=5");
        let graph = parse("g.mir", &text).expect("text should parse");
        let d = verify(&graph).remove(0);
        assert_eq!(d.origin.map(|o| o.start), text.find("%4 = top_k"));
    }
}
