//! Inputs that rules are tried on: random ones, and those on which a rule would go wrong first.

use super::layers::Random;
use moec_ir::Tensor;
use moec_ir::graph::Graph;
use moec_ir::tensor::Data;

/// What is special about the inputs and parameters of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    Random,
    /// Experts have the same logits in pairs.
    Ties,
    /// Logits so large that scores saturate, and powers underflow.
    Saturated,
    /// Tokens of zeros, of both signs.
    Zeros,
    /// Products are subnormal.
    Tiny,
    /// A token with a NaN, one with infinities.
    NotFinite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [Kind::Random, Kind::Ties, Kind::Saturated, Kind::Zeros, Kind::Tiny, Kind::NotFinite];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Random => "random",
            Kind::Ties => "ties",
            Kind::Saturated => "saturated",
            Kind::Zeros => "zeros",
            Kind::Tiny => "tiny",
            Kind::NotFinite => "not finite",
        }
    }

    /// Inputs and parameters of `graph`, in its order, for some tokens.
    pub fn tensors(self, graph: &Graph, n_tokens: u64, seed: u64) -> (Vec<Tensor>, Vec<Tensor>) {
        let mut random = Random::new(seed);
        let mut inputs: Vec<Tensor> = graph.inputs.iter().map(|i| random.tensor(&i.ty, n_tokens)).collect();
        let mut params: Vec<Tensor> = graph.params.iter().map(|p| random.tensor(&p.ty, n_tokens)).collect();
        let routers = graph.params.iter().zip(&mut params).filter(|(p, _)| p.name.contains("router.weight"));
        let routers = routers.map(|(_, t)| t);
        match self {
            Kind::Random => {}
            Kind::Ties => routers.for_each(|t| {
                let h = t.cols();
                edit(t, |all| all.chunks_mut(2 * h).for_each(|pair| pair.copy_within(..h, pair.len() - h)));
            }),
            Kind::Saturated => routers.for_each(|t| edit(t, |all| all.iter_mut().for_each(|x| *x *= 100.0))),
            Kind::Zeros => inputs.iter_mut().for_each(|t| {
                edit(t, |all| all.iter_mut().enumerate().for_each(|(i, x)| *x = if i % 2 == 0 { 0.0 } else { -0.0 }));
            }),
            Kind::Tiny => inputs.iter_mut().for_each(|t| edit(t, |all| all.iter_mut().for_each(|x| *x *= 1e-39))),
            Kind::NotFinite => inputs.iter_mut().for_each(|t| {
                let h = t.cols();
                edit(t, |all| {
                    all[0] = f32::NAN;
                    all[h] = f32::INFINITY;
                    all[h + 1] = f32::NEG_INFINITY;
                });
            }),
        }
        (inputs, params)
    }
}

/// Changes the elements of a tensor of floats, and rounds them to its type.
fn edit(t: &mut Tensor, change: impl FnOnce(&mut [f32])) {
    if let Data::Float(values) = &mut t.data {
        change(values);
        let dtype = t.dtype;
        values.iter_mut().for_each(|v| *v = dtype.round(*v));
    }
}
