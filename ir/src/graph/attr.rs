//! Operations as a name and attributes: what the text form and the JSON form of a graph have in common.

use super::{GroupScore, Op, Reduce, RenormRule, RowMask, Score};
use crate::DType;
use crate::act_quant::{ActQuant, ActScale};
use crate::activation::{Activation, Curve};
use crate::expr::{Expr, Real};
use crate::quant::Code;
use crate::text::Cursor;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// A whole number.
    Whole(u64),
    /// A number.
    Real(Real),
    /// A switch.
    Flag(bool),
    /// Text: an expression.
    Text(String),
    /// A word, with named numbers in some cases: `swiglu`, `swiglu_oai(alpha=1.702, limit=7.0)`.
    Word(String, Vec<(String, Real)>),
}

/// What is wrong with the attributes of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttrError {
    /// There is no such operation.
    UnknownOp,
    /// The attribute is absent.
    Absent(&'static str),
    /// The attribute's value does not fit; the text says what is expected.
    Unfit(&'static str, String),
}

impl Op {
    /// The attributes, in the order of the text form. [`Op::from_attrs`] is the inverse.
    pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let whole = |n: &u32| Attr::Whole(u64::from(*n));
        let word = |w: &str| Attr::Word(w.to_string(), Vec::new());
        match self {
            Op::Input(n) | Op::Param(n) => vec![("index", whole(n))],
            Op::Map(expr) => vec![("expr", Attr::Text(expr.to_string()))],
            Op::Reduce(Reduce::Max) => vec![("kind", word("max"))],
            Op::Reduce(Reduce::Sum) => vec![("kind", word("sum"))],
            Op::SumOutside { n_experts } => vec![("n_experts", whole(n_experts))],
            Op::LocalIds { first, count } => vec![("first", whole(first)), ("count", whole(count))],
            Op::Linear
            | Op::Add
            | Op::Mul
            | Op::Cast
            | Op::MaskChosen
            | Op::JoinColumns
            | Op::Lookup
            | Op::GatherScores
            | Op::GroupedLinear
            | Op::WeightedSum
            | Op::GatherGroupedLinear => Vec::new(),
            Op::Scale(c) => vec![("factor", Attr::Real(*c))],
            Op::Activate(act) => vec![("activation", activation_attr(act))],
            Op::Score(score) => vec![("kind", word(score_name(*score)))],
            Op::RmsNorm { eps } => vec![("eps", Attr::Real(*eps))],
            Op::Quantise(q) => vec![
                ("code", word(q.code.name())),
                ("scale", word(act_scale_name(q.scale))),
                ("block", whole(&q.block)),
            ],
            Op::GroupLimit { n_groups, keep, score, fill } => vec![
                ("n_groups", whole(n_groups)),
                ("keep", whole(keep)),
                ("score", word(group_score_name(*score))),
                ("fill", word(fill_name(*fill))),
            ],
            Op::TopK { k } => vec![("k", whole(k))],
            Op::Renormalise(rule) => vec![("rule", rule_attr(*rule))],
            Op::Permute { n_experts } | Op::Unpermute { n_experts } | Op::SlotToRow { n_experts } => {
                vec![("n_experts", whole(n_experts))]
            }
            Op::StoreAt { n_experts, unit } => vec![("n_experts", whole(n_experts)), ("unit", whole(unit))],
            Op::Concat { axis } => vec![("axis", whole(axis))],
            Op::Half(n) => vec![("index", whole(n))],
            Op::GroupedLinearAct { act, round, gather } => {
                vec![
                    ("activation", activation_attr(act)),
                    ("round", word(round.name())),
                    ("gather", Attr::Flag(*gather)),
                ]
            }
            Op::LinearAct { act, round } => vec![("activation", activation_attr(act)), ("round", word(round.name()))],
            Op::Combine { n_experts, scale, round, gate_round } => vec![
                ("n_experts", whole(n_experts)),
                ("scale", Attr::Real(*scale)),
                ("round", word(round.name())),
                ("gate_round", word(gate_round.name())),
            ],
        }
    }

    /// The operation called `name` with the attributes that `get` knows.
    ///
    /// # Errors
    /// [`AttrError`]; attributes that the operation does not have are not looked at.
    pub fn from_attrs(name: &str, get: &dyn Fn(&str) -> Option<Attr>) -> Result<Op, AttrError> {
        let a = Attrs { get };
        Ok(match name {
            "input" => Op::Input(a.whole("index")?),
            "param" => Op::Param(a.whole("index")?),
            "linear" => Op::Linear,
            "add" => Op::Add,
            "mul" => Op::Mul,
            "map" => Op::Map(a.expr("expr")?),
            "reduce" => Op::Reduce(a.word("kind", &[("max", Reduce::Max), ("sum", Reduce::Sum)])?),
            "mask_chosen" => Op::MaskChosen,
            "join_columns" => Op::JoinColumns,
            "lookup" => Op::Lookup,
            "sum_outside" => Op::SumOutside { n_experts: a.whole("n_experts")? },
            "local_ids" => Op::LocalIds { first: a.whole("first")?, count: a.whole("count")? },
            "scale" => Op::Scale(a.real("factor")?),
            "cast" => Op::Cast,
            "activate" => Op::Activate(a.activation("activation")?),
            "score" => Op::Score(a.score("kind")?),
            "rms_norm" => Op::RmsNorm { eps: a.real("eps")? },
            "quantise" => Op::Quantise(ActQuant {
                code: a.word("code", &[("e4m3", Code::E4M3), ("e2m1", Code::E2M1), ("int16", Code::Int16)])?,
                scale: a.word("scale", &ACT_SCALES)?,
                block: a.whole("block")?,
            }),
            "group_limit" => Op::GroupLimit {
                n_groups: a.whole("n_groups")?,
                keep: a.whole("keep")?,
                score: a.word("score", &GROUP_SCORES)?,
                fill: a.word("fill", &FILLS)?,
            },
            "top_k" => Op::TopK { k: a.whole("k")? },
            "gather_scores" => Op::GatherScores,
            "renormalise" => Op::Renormalise(a.rule("rule")?),
            "permute" => Op::Permute { n_experts: a.whole("n_experts")? },
            "unpermute" => Op::Unpermute { n_experts: a.whole("n_experts")? },
            "slot_to_row" => Op::SlotToRow { n_experts: a.whole("n_experts")? },
            "store_at" => Op::StoreAt { n_experts: a.whole("n_experts")?, unit: a.whole("unit")? },
            "grouped_linear" => Op::GroupedLinear,
            "weighted_sum" => Op::WeightedSum,
            "concat" => Op::Concat { axis: a.whole("axis")? },
            "half" => Op::Half(a.whole("index")?),
            "gather_grouped_linear" => Op::GatherGroupedLinear,
            "grouped_linear_act" => Op::GroupedLinearAct {
                act: a.activation("activation")?,
                round: a.dtype("round")?,
                gather: a.flag("gather")?,
            },
            "linear_act" => Op::LinearAct { act: a.activation("activation")?, round: a.dtype("round")? },
            "combine" => Op::Combine {
                n_experts: a.whole("n_experts")?,
                scale: a.real("scale")?,
                round: a.dtype("round")?,
                gate_round: a.dtype("gate_round")?,
            },
            _ => return Err(AttrError::UnknownOp),
        })
    }

    /// The names of all operations, sorted.
    pub const NAMES: [&'static str; 34] = [
        "activate",
        "add",
        "cast",
        "combine",
        "concat",
        "gather_grouped_linear",
        "gather_scores",
        "group_limit",
        "grouped_linear",
        "grouped_linear_act",
        "half",
        "input",
        "join_columns",
        "linear",
        "linear_act",
        "local_ids",
        "lookup",
        "map",
        "mask_chosen",
        "mul",
        "param",
        "permute",
        "quantise",
        "reduce",
        "renormalise",
        "rms_norm",
        "scale",
        "score",
        "slot_to_row",
        "store_at",
        "sum_outside",
        "top_k",
        "unpermute",
        "weighted_sum",
    ];
}

const SCORES: [(&str, Score); 3] =
    [("softmax", Score::Softmax), ("sigmoid", Score::Sigmoid), ("sqrt_softplus", Score::SqrtSoftplus)];
const ACT_SCALES: [(&str, ActScale); 4] =
    [("f32", ActScale::F32), ("pow2", ActScale::Pow2), ("e4m3", ActScale::E4M3), ("e4m3_row", ActScale::E4M3Row)];
const GROUP_SCORES: [(&str, GroupScore); 2] = [("max", GroupScore::Max), ("top2_sum", GroupScore::Top2Sum)];
const FILLS: [(&str, RowMask); 2] = [("neg_inf", RowMask::NegInf), ("zero", RowMask::Zero)];
const ACTIVATIONS: &str = "swiglu, swiglu_clamp_before(limit), swiglu_clamp_after(limit), swiglu_oai(alpha, limit), \
     geglu_tanh, geglu_erf, reglu, situ(beta, linear_beta), relu2, silu, gelu_tanh, gelu, or gated_ or ungated_ before a \
     name that transformers has";
const RULES: &str = "sum(eps), sum_at_least(min) or p_norm(p)";

fn score_name(score: Score) -> &'static str {
    match score {
        Score::Softmax => "softmax",
        Score::Sigmoid => "sigmoid",
        Score::SqrtSoftplus => "sqrt_softplus",
    }
}

fn group_score_name(score: GroupScore) -> &'static str {
    match score {
        GroupScore::Max => "max",
        GroupScore::Top2Sum => "top2_sum",
    }
}

fn act_scale_name(scale: ActScale) -> &'static str {
    match scale {
        ActScale::F32 => "f32",
        ActScale::Pow2 => "pow2",
        ActScale::E4M3 => "e4m3",
        ActScale::E4M3Row => "e4m3_row",
    }
}

fn fill_name(fill: RowMask) -> &'static str {
    match fill {
        RowMask::NegInf => "neg_inf",
        RowMask::Zero => "zero",
    }
}

fn call(name: &str, args: &[(&str, Real)]) -> Attr {
    Attr::Word(name.to_string(), args.iter().map(|(k, v)| ((*k).to_string(), *v)).collect())
}

fn activation_attr(act: &Activation) -> Attr {
    match act {
        Activation::SwiGlu => call("swiglu", &[]),
        Activation::SwiGluClampBefore { limit } => call("swiglu_clamp_before", &[("limit", *limit)]),
        Activation::SwiGluClampAfter { limit } => call("swiglu_clamp_after", &[("limit", *limit)]),
        Activation::SwiGluOai { alpha, limit } => call("swiglu_oai", &[("alpha", *alpha), ("limit", *limit)]),
        Activation::GeGluTanh => call("geglu_tanh", &[]),
        Activation::GeGluErf => call("geglu_erf", &[]),
        Activation::ReGlu => call("reglu", &[]),
        Activation::SiTu { beta, linear_beta } => call("situ", &[("beta", *beta), ("linear_beta", *linear_beta)]),
        Activation::Relu2 => call("relu2", &[]),
        Activation::Silu => call("silu", &[]),
        Activation::GeluTanh => call("gelu_tanh", &[]),
        Activation::Gelu => call("gelu", &[]),
        Activation::Gated(curve) => call(&format!("gated_{}", curve.name()), &[]),
        Activation::Ungated(curve) => call(&format!("ungated_{}", curve.name()), &[]),
    }
}

fn rule_attr(rule: RenormRule) -> Attr {
    match rule {
        RenormRule::Sum { eps } => call("sum", &[("eps", eps)]),
        RenormRule::SumAtLeast { min } => call("sum_at_least", &[("min", min)]),
        RenormRule::PNorm { p } => call("p_norm", &[("p", p)]),
    }
}

struct Attrs<'a> {
    get: &'a dyn Fn(&str) -> Option<Attr>,
}

impl Attrs<'_> {
    fn need(&self, key: &'static str) -> Result<Attr, AttrError> {
        (self.get)(key).ok_or(AttrError::Absent(key))
    }

    fn whole(&self, key: &'static str) -> Result<u32, AttrError> {
        let unfit = || AttrError::Unfit(key, format!("a whole number up to {}", u32::MAX));
        match self.need(key)? {
            Attr::Whole(n) => u32::try_from(n).map_err(|_| unfit()),
            Attr::Real(_) | Attr::Flag(_) | Attr::Word(..) | Attr::Text(_) => Err(unfit()),
        }
    }

    fn real(&self, key: &'static str) -> Result<Real, AttrError> {
        match self.need(key)? {
            Attr::Whole(n) => Ok(Real(n as f32)),
            Attr::Real(x) => Ok(x),
            Attr::Flag(_) | Attr::Word(..) | Attr::Text(_) => Err(AttrError::Unfit(key, "a number".to_string())),
        }
    }

    fn flag(&self, key: &'static str) -> Result<bool, AttrError> {
        match self.need(key)? {
            Attr::Flag(b) => Ok(b),
            Attr::Whole(_) | Attr::Real(_) | Attr::Word(..) | Attr::Text(_) => {
                Err(AttrError::Unfit(key, "true or false".to_string()))
            }
        }
    }

    fn word<T: Copy>(&self, key: &'static str, table: &[(&str, T)]) -> Result<T, AttrError> {
        let found = match self.need(key)? {
            Attr::Word(w, args) if args.is_empty() => table.iter().find(|(name, _)| *name == w).map(|&(_, v)| v),
            Attr::Whole(_) | Attr::Real(_) | Attr::Flag(_) | Attr::Word(..) | Attr::Text(_) => None,
        };
        let names: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
        found.ok_or_else(|| AttrError::Unfit(key, names.join(" or ")))
    }

    fn expr(&self, key: &'static str) -> Result<Expr, AttrError> {
        let unfit = || AttrError::Unfit(key, "an expression such as \"mul(a0, sigmoid(a1))\"".to_string());
        let (Attr::Text(text) | Attr::Word(text, _)) = self.need(key)? else { return Err(unfit()) };
        let mut cursor = Cursor::new(&text);
        let expr = cursor.expr().map_err(|_| unfit())?;
        if cursor.at_end() { Ok(expr) } else { Err(unfit()) }
    }

    fn score(&self, key: &'static str) -> Result<Score, AttrError> {
        self.word(key, &SCORES)
    }

    fn dtype(&self, key: &'static str) -> Result<DType, AttrError> {
        self.word(key, &DType::ALL.map(|d| (d.name(), d)))
    }

    /// A word and the value of its arguments, which must be exactly those of `table` for that word.
    fn call(
        &self,
        key: &'static str,
        expected: &str,
        table: &[(&str, &[&str])],
    ) -> Result<(String, Vec<Real>), AttrError> {
        let unfit = || AttrError::Unfit(key, expected.to_string());
        let Attr::Word(word, args) = self.need(key)? else { return Err(unfit()) };
        let (_, names) = table.iter().find(|(n, _)| *n == word).ok_or_else(unfit)?;
        let value = |name: &&str| args.iter().find(|(k, _)| k == name).map(|(_, v)| *v).ok_or_else(unfit);
        let values = names.iter().map(value).collect::<Result<Vec<Real>, AttrError>>()?;
        if args.len() == names.len() { Ok((word, values)) } else { Err(unfit()) }
    }

    fn activation(&self, key: &'static str) -> Result<Activation, AttrError> {
        if let Attr::Word(word, args) = self.need(key)?
            && args.is_empty()
        {
            let gated = word.strip_prefix("gated_").and_then(Curve::by_name).map(Activation::Gated);
            let ungated = || word.strip_prefix("ungated_").and_then(Curve::by_name).map(Activation::Ungated);
            if let Some(activation) = gated.or_else(ungated) {
                return Ok(activation);
            }
        }
        let table: [(&str, &[&str]); 12] = [
            ("swiglu", &[]),
            ("swiglu_clamp_before", &["limit"]),
            ("swiglu_clamp_after", &["limit"]),
            ("swiglu_oai", &["alpha", "limit"]),
            ("geglu_tanh", &[]),
            ("geglu_erf", &[]),
            ("reglu", &[]),
            ("situ", &["beta", "linear_beta"]),
            ("relu2", &[]),
            ("silu", &[]),
            ("gelu_tanh", &[]),
            ("gelu", &[]),
        ];
        let (word, v) = self.call(key, ACTIVATIONS, &table)?;
        Ok(match (word.as_str(), v.as_slice()) {
            ("swiglu", _) => Activation::SwiGlu,
            ("swiglu_clamp_before", &[limit]) => Activation::SwiGluClampBefore { limit },
            ("swiglu_clamp_after", &[limit]) => Activation::SwiGluClampAfter { limit },
            ("swiglu_oai", &[alpha, limit]) => Activation::SwiGluOai { alpha, limit },
            ("geglu_tanh", _) => Activation::GeGluTanh,
            ("geglu_erf", _) => Activation::GeGluErf,
            ("reglu", _) => Activation::ReGlu,
            ("situ", &[beta, linear_beta]) => Activation::SiTu { beta, linear_beta },
            ("relu2", _) => Activation::Relu2,
            ("silu", _) => Activation::Silu,
            ("gelu_tanh", _) => Activation::GeluTanh,
            ("gelu", _) => Activation::Gelu,
            _ => return Err(AttrError::Unfit(key, ACTIVATIONS.to_string())),
        })
    }

    fn rule(&self, key: &'static str) -> Result<RenormRule, AttrError> {
        let table: [(&str, &[&str]); 3] = [("sum", &["eps"]), ("sum_at_least", &["min"]), ("p_norm", &["p"])];
        let (word, v) = self.call(key, RULES, &table)?;
        Ok(match (word.as_str(), v.as_slice()) {
            ("sum", &[eps]) => RenormRule::Sum { eps },
            ("sum_at_least", &[min]) => RenormRule::SumAtLeast { min },
            ("p_norm", &[p]) => RenormRule::PNorm { p },
            _ => return Err(AttrError::Unfit(key, RULES.to_string())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_made_from_its_own_attributes() {
        let r = Real(0.1);
        let ops = [
            Op::Input(1),
            Op::Param(2),
            Op::Linear,
            Op::Add,
            Op::Mul,
            Op::Scale(r),
            Op::Cast,
            Op::Activate(Activation::SiTu { beta: r, linear_beta: Real(25.0) }),
            Op::Score(Score::SqrtSoftplus),
            Op::RmsNorm { eps: r },
            Op::GroupLimit { n_groups: 4, keep: 2, score: GroupScore::Top2Sum, fill: RowMask::NegInf },
            Op::TopK { k: 3 },
            Op::GatherScores,
            Op::Renormalise(RenormRule::SumAtLeast { min: Real(1e-12) }),
            Op::Permute { n_experts: 7 },
            Op::Unpermute { n_experts: 7 },
            Op::SlotToRow { n_experts: 7 },
            Op::StoreAt { n_experts: 7, unit: 16 },
            Op::GroupedLinear,
            Op::WeightedSum,
            Op::Concat { axis: 1 },
            Op::Half(1),
            Op::GatherGroupedLinear,
            Op::GroupedLinearAct { act: Activation::Relu2, round: DType::BF16, gather: true },
            Op::LinearAct { act: Activation::SwiGluOai { alpha: r, limit: r }, round: DType::F32 },
            Op::Combine { n_experts: 9, scale: r, round: DType::F32, gate_round: DType::BF16 },
            Op::Map(Activation::SwiGlu.expr()),
            Op::Reduce(Reduce::Max),
            Op::MaskChosen,
            Op::JoinColumns,
            Op::Lookup,
            Op::SumOutside { n_experts: 9 },
            Op::Quantise(ActQuant::NVFP4),
            Op::LocalIds { first: 3, count: 4 },
        ];
        let int16 = Op::Quantise(ActQuant::INT16);
        let get = |key: &str| int16.attrs().iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
        assert_eq!(Op::from_attrs(int16.name(), &get).as_ref(), Ok(&int16));
        for op in &ops {
            let attrs = op.attrs();
            let get = |key: &str| attrs.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
            assert_eq!(Op::from_attrs(op.name(), &get).as_ref(), Ok(op));
            assert!(Op::NAMES.contains(&op.name()));
        }
        assert_eq!(ops.len(), Op::NAMES.len());
    }

    #[test]
    fn unfit_attributes_are_named() {
        let get = |key: &str| (key == "k").then_some(Attr::Flag(true));
        assert!(matches!(Op::from_attrs("top_k", &get), Err(AttrError::Unfit("k", _))));
        assert_eq!(Op::from_attrs("permute", &get), Err(AttrError::Absent("n_experts")));
        assert_eq!(Op::from_attrs("topk", &get), Err(AttrError::UnknownOp));
    }
}
