//! Checks a proof without the optimiser: every step by evaluating both of its terms, then that the steps lead to the outputs.
//!
//! Terms are evaluated over a [field](crate::algebra::Field), and in f32, where steps that claim to keep the bits have to. Axes that
//! no operation fixes are made short first: equations hold for any length.

use super::closure::Closure;
use super::{PROOF_VERSION, Proof, Term};
use crate::algebra::{Field, Value, evaluate};
use crate::verify::layers::Random;
use moec_ir::graph::{Node, Op, evaluate_node, infer_type};
use moec_ir::{Dim, NumericClass, Numerics, Tensor, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// Tokens of the evaluation.
const TOKENS: usize = 3;

/// Multiplications of an evaluation that takes a moment.
const MOST_WORK: u64 = 50_000_000;

/// Axes up to this length stay as they are.
const SHORT: u64 = 16;

/// Why a proof proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProofFault {
    /// It is of another version.
    Version(u32),
    /// A term or a step speaks of something that is not there, or has no type.
    Malformed(String),
    /// Its axes cannot be made so short that it is evaluated in a moment.
    TooLarge,
    /// The class of this step is not allowed.
    NotAllowed(usize),
    /// The terms of this step are not equal.
    Wrong(usize),
    /// This step says that it keeps the bits, and does not.
    OtherBits(usize),
    /// The steps do not lead to this output.
    NotProven(String),
}

impl std::fmt::Display for ProofFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProofFault::Version(v) => write!(f, "it has version {v}, and this moec reads {PROOF_VERSION}"),
            ProofFault::Malformed(why) => f.write_str(why),
            ProofFault::TooLarge => f.write_str("its axes cannot be made short enough to evaluate it"),
            ProofFault::NotAllowed(i) => write!(f, "step {i} is of a class that the layer was not to be compiled with"),
            ProofFault::Wrong(i) => write!(f, "the values of step {i} are not equal"),
            ProofFault::OtherBits(i) => write!(f, "step {i} changes bits, and says that it does not"),
            ProofFault::NotProven(output) => write!(f, "the steps do not lead to `{output}`"),
        }
    }
}

/// Checks every step of a proof, and that only those that `numerics` allows are used.
///
/// # Errors
/// The first fault.
pub fn check(proof: &Proof, numerics: Numerics) -> Result<(), ProofFault> {
    if proof.version != PROOF_VERSION {
        return Err(ProofFault::Version(proof.version));
    }
    let n = proof.terms.len();
    let malformed = |what: String| Err(ProofFault::Malformed(what));
    if let Some(i) = (0..n).find(|&i| proof.terms[i].operands.iter().any(|&o| o >= i)) {
        return malformed(format!("term {i} has an operand that does not come before it"));
    }
    let named = proof.steps.iter().flat_map(|s| [s.before, s.after]);
    if named.chain(proof.outputs.iter().flat_map(|o| [o.source, o.result])).any(|t| t >= n) {
        return malformed(format!("a step or an output is beyond the {n} terms"));
    }
    if let Some(i) = proof.steps.iter().position(|s| !numerics.allows(s.class)) {
        return Err(ProofFault::NotAllowed(i));
    }
    let small = small(proof)?;
    let field = small.values(Value::beside, |op, ty, x| evaluate(op, ty, x, TOKENS));
    let floats = small.values(
        |t, _| t.clone(),
        |op, ty, x| {
            let node = Node { name: String::new(), op: op.clone(), inputs: Vec::new(), ty: ty.clone(), origin: None };
            evaluate_node(&node, x, TOKENS)
        },
    );
    for (i, step) in proof.steps.iter().enumerate() {
        let (a, b) = (&field[step.before], &field[step.after]);
        let same_ids = a.ids() == b.ids()
            || step.class == NumericClass::TieSensitive && only_ties(&proof.terms[step.before], &field, a, b);
        let equal =
            a.shape == b.shape && same_ids && a.numbers().iter().zip(b.numbers()).all(|(x, y)| x.element == y.element);
        if !equal {
            return Err(ProofFault::Wrong(i));
        }
        let (a, b) = (&floats[step.before], &floats[step.after]);
        let same_bits = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
        let same = a.floats().iter().zip(b.floats()).all(same_bits) && a.ints() == b.ints();
        if step.class == NumericClass::Exact && !(same && a.dtype == b.dtype) {
            return Err(ProofFault::OtherBits(i));
        }
    }
    let classes = Closure::new(&proof.terms).of(proof.steps.iter().map(|s| (s.before, s.after)));
    match proof.outputs.iter().find(|o| classes[o.source] != classes[o.result]) {
        None => Ok(()),
        Some(o) => Err(ProofFault::NotProven(o.name.clone())),
    }
}

/// Whether two choices differ only where the scores that the first was made by are a tie, as saturated ones are.
fn only_ties(choice: &Term, values: &[Value<Field>], a: &Value<Field>, b: &Value<Field>) -> bool {
    let (Op::TopK { .. }, [scores]) = (&choice.op, &choice.operands[..]) else { return false };
    let (scores, k) = (&values[*scores], a.cols());
    let score = |slot: usize, id: i64| scores.numbers()[slot / k * scores.cols() + id as usize].real as f32;
    let mut slots = a.ids().iter().zip(b.ids()).enumerate();
    a.ids().len() == b.ids().len()
        && slots.all(|(slot, (&x, &y))| {
            let (p, q) = (score(slot, x), score(slot, y));
            (p - q).abs() <= 4.0 * f32::EPSILON * p.abs().max(q.abs())
        })
}

/// The terms with types of short axes.
struct Small<'a> {
    terms: &'a [Term],
    types: Vec<TensorType>,
}

/// Shortens the axes that nothing fixes; where that leaves terms without types, fewer of them.
fn small(proof: &Proof) -> Result<Small<'_>, ProofFault> {
    let mut why = String::new();
    for kept in [SHORT, 1024, u64::MAX] {
        match typed(proof, &lengths(proof, kept)) {
            Ok(types) if work(proof, &types) > MOST_WORK => return Err(ProofFault::TooLarge),
            Ok(types) => return Ok(Small { terms: &proof.terms, types }),
            Err(reason) => why = reason,
        }
    }
    Err(ProofFault::Malformed(why))
}

/// Multiplications, about: each element of a term is made from a row of its longest operand.
fn work(proof: &Proof, types: &[TensorType]) -> u64 {
    let of = |(term, ty): (&Term, &TensorType)| {
        let row = |&o: &usize| types[o].last().map_or(1, |d| d.at(TOKENS as u64));
        ty.elements(TOKENS as u64).saturating_mul(term.operands.iter().map(row).max().unwrap_or(1))
    };
    proof.terms.iter().zip(types).map(of).fold(0, u64::saturating_add)
}

/// A length for each of the leaves' axes. Those up to `kept`, and numbers of experts, stay; an axis of twice the length of another
/// stays that.
fn lengths(proof: &Proof, kept: u64) -> BTreeMap<u64, u64> {
    let leaves = || proof.inputs.iter().chain(&proof.params);
    let fixed: BTreeSet<u64> = leaves().flat_map(|t| t.shape.iter().filter_map(|d| d.fixed())).collect();
    let mut experts: BTreeSet<u64> =
        leaves().filter(|t| t.shape.len() == 3).filter_map(|t| t.shape[0].fixed()).collect();
    for term in &proof.terms {
        if let Op::Permute { n_experts }
        | Op::Unpermute { n_experts }
        | Op::SlotToRow { n_experts }
        | Op::StoreAt { n_experts, .. }
        | Op::Combine { n_experts, .. } = term.op
        {
            experts.insert(n_experts.into());
        }
    }
    let mut out: BTreeMap<u64, u64> = BTreeMap::new();
    let mut next = 2;
    for n in fixed {
        let twice = (n % 2 == 0).then(|| out.get(&(n / 2))).flatten().map(|half| half * 2);
        let short = if n <= kept || experts.contains(&n) { n } else { twice.unwrap_or(next) };
        next = next.max(short.min(SHORT)) + 4;
        out.insert(n, short);
    }
    out
}

fn typed(proof: &Proof, lengths: &BTreeMap<u64, u64>) -> Result<Vec<TensorType>, String> {
    let short = |ty: &TensorType| {
        let axis = |d: &Dim| d.fixed().and_then(|n| lengths.get(&n)).map_or(*d, |&n| Dim::Fixed(n));
        TensorType { dtype: ty.dtype, shape: ty.shape.iter().map(axis).collect() }
    };
    let leaf =
        |list: &[TensorType], i: u32| list.get(i as usize).map(short).ok_or_else(|| format!("there is no leaf {i}"));
    let mut types: Vec<TensorType> = Vec::with_capacity(proof.terms.len());
    for (i, term) in proof.terms.iter().enumerate() {
        let ty = match term.op {
            Op::Input(n) => leaf(&proof.inputs, n)?,
            Op::Param(n) => leaf(&proof.params, n)?,
            _ => {
                let operands: Vec<&TensorType> = term.operands.iter().map(|&o| &types[o]).collect();
                let names = vec!["operand"; operands.len()];
                let mut ty = infer_type(&format!("term {i}"), &term.op, &operands, &names).map_err(|d| d.message)?;
                if ty.dtype.is_float() {
                    ty.dtype = term.dtype;
                }
                ty
            }
        };
        types.push(ty);
    }
    Ok(types)
}

impl Small<'_> {
    /// The value of every term, for random leaves; `leaf` gets a seed that is its own.
    fn values<V>(&self, leaf: impl Fn(&Tensor, u64) -> V, of: impl Fn(&Op, &TensorType, &[&V]) -> V) -> Vec<V> {
        let mut values: Vec<V> = Vec::with_capacity(self.terms.len());
        for (term, ty) in self.terms.iter().zip(&self.types) {
            let seed = match term.op {
                Op::Input(n) => Some(u64::from(n) + 1),
                Op::Param(n) => Some(u64::from(n) + 1000),
                _ => None,
            };
            let value = match seed {
                Some(seed) => leaf(&Random::new(seed).tensor(ty, TOKENS as u64), seed << 32),
                None => of(&term.op, ty, &term.operands.iter().map(|&o| &values[o]).collect::<Vec<_>>()),
            };
            values.push(value);
        }
        values
    }
}
