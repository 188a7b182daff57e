//! One place where a rule fires: the value that was there, and the value that the rule makes.

use super::inputs::Kind;
use super::subject::{Subject, TOKENS, in_f32};
use super::{Fault, RuleReport};
use crate::algebra::{Bounded, Elements, Value, evaluate};
use crate::normalise::{ENode, Tree};
use egg::Id;
use moec_ir::graph::Op;
use moec_ir::{NumericClass, Tensor, TensorType};
use std::collections::BTreeMap;

/// Compares at one place; what differs goes into the report.
pub fn place(class: NumericClass, subject: &Subject, id: Id, node: &ENode, tree: &Tree, report: &mut RuleReport) {
    let mut fault = |inputs: &'static str, check: &'static str, what: String| {
        let what = format!("{} of {}: {what}", node.op.name(), subject.egraph[id].data);
        report.faults.push(Fault { graph: subject.name.clone(), inputs, check, what });
    };
    let before = Tree::Node(node.op.clone(), node.dtype, node.children.iter().map(|&c| Tree::Class(c)).collect());

    let over_field = |t: &Tree| value(t, subject, &subject.field, &|op, ty, x| evaluate(op, ty, x, TOKENS));
    let [a, b] = [over_field(&before), over_field(tree)];
    let differ = a.numbers().iter().zip(b.numbers()).position(|(x, y)| x.element != y.element);
    if let Some(i) = differ {
        fault(Kind::Random.name(), "field", format!("element {i} is another"));
    } else if a.ids() != b.ids() {
        fault(Kind::Random.name(), "field", "other ids".to_string());
    }

    for (kind, values) in &subject.runs {
        let [a, b] = [&before, tree].map(|t| value(t, subject, values, &|op, ty, x| in_f32(op, ty, x)));
        report.compared += a.elements();
        let inputs = kind.name();
        if class == NumericClass::Exact {
            let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
            if let Some(i) = (a.floats().iter().zip(b.floats())).position(|p| !same(p)) {
                fault(inputs, "bits", format!("element {i} is {:?} in place of {:?}", b.floats()[i], a.floats()[i]));
            } else if a.ints() != b.ints() {
                fault(inputs, "bits", "other ids".to_string());
            }
        } else if matches!(node.op, Op::TopK { .. }) {
            match choices(&values[&subject.egraph.find(node.children[0])], &a, &b) {
                Ok(ties) if class == NumericClass::TieSensitive || ties == 0 => report.ties += ties,
                Ok(ties) => fault(inputs, "choice", format!("{ties} ties fall on other experts")),
                Err(what) => fault(inputs, "choice", what),
            }
        } else if *kind != Kind::NotFinite {
            let exact: BTreeMap<Id, Value<Bounded>> = values.iter().map(|(&id, t)| (id, exact(t))).collect();
            let bounded = |t| value(t, subject, &exact, &|op, ty, x| evaluate(op, ty, x, TOKENS));
            let bounds: Vec<f64> = (bounded(&before).numbers().iter().zip(bounded(tree).numbers()))
                .map(|(x, y)| x.bound + y.bound)
                .collect();
            for (i, ((&x, &y), bound)) in a.floats().iter().zip(b.floats()).zip(bounds).enumerate() {
                let difference = (f64::from(x) - f64::from(y)).abs();
                // Where a sum underflows there is nothing to be near to; a rule may do better.
                if difference == 0.0 || !x.is_finite() {
                    continue;
                }
                let share = difference / bound;
                report.worst = report.worst.max(share);
                // NaN is not within the bound either.
                if share.is_nan() || share > 1.0 {
                    fault(
                        inputs,
                        "bound",
                        format!("element {i} is {y:?} in place of {x:?}, and may be off by {bound:e}"),
                    );
                    break;
                }
            }
        }
    }
}

/// The value of a tree over the values of classes.
fn value<V: Clone>(
    tree: &Tree,
    subject: &Subject,
    values: &BTreeMap<Id, V>,
    of: &dyn Fn(&Op, &TensorType, &[&V]) -> V,
) -> V {
    match tree {
        Tree::Class(id) => values[&subject.egraph.find(*id)].clone(),
        Tree::Node(op, _, children) => {
            let operands: Vec<V> = children.iter().map(|c| value(c, subject, values, of)).collect();
            let ty = tree.ty(&subject.egraph).expect("the whole tree has a type");
            of(op, &ty, &operands.iter().collect::<Vec<_>>())
        }
    }
}

fn exact(t: &Tensor) -> Value<Bounded> {
    let elements = if t.dtype.is_float() {
        Elements::Numbers(t.floats().iter().map(|&x| Bounded::exact(x)).collect())
    } else {
        Elements::Ids(t.ints().to_vec())
    };
    Value { shape: t.shape.clone(), elements }
}

/// How many of two choices by `scores` differ; an error where the scores of an expert and its replacement are no tie.
fn choices(scores: &Tensor, a: &Tensor, b: &Tensor) -> Result<usize, String> {
    let (e, k) = (scores.cols(), a.cols());
    let score = |slot: usize, id: i64| scores.floats()[slot / k * e + id as usize];
    let mut ties = 0;
    for (slot, (&x, &y)) in a.ints().iter().zip(b.ints()).enumerate().filter(|(_, (x, y))| x != y) {
        let (p, q) = (score(slot, x), score(slot, y));
        let near = 4.0 * f32::EPSILON * p.abs().max(q.abs()) + f32::MIN_POSITIVE;
        if !(p == q || (p - q).abs() <= near || (p.is_nan() && q.is_nan())) {
            return Err(format!("expert {y} of score {q:?} in place of {x} of {p:?}"));
        }
        ties += 1;
    }
    Ok(ties)
}
