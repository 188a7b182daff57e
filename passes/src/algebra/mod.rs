//! The operations of the graph IR over other numbers than f32: what a layer means, apart from rounding.
//!
//! [`evaluate`] shares no code with the reference evaluator of `moec_ir`, whose values it is compared with.

mod evaluate;
mod expert_order;
mod numbers;

pub use evaluate::evaluate;
pub use numbers::{Bounded, Field};

use moec_ir::Tensor;

/// Elements of a value, row-major.
#[derive(Clone, Debug)]
pub enum Elements<N> {
    /// Numbers.
    Numbers(Vec<N>),
    /// Expert ids and the like.
    Ids(Vec<i64>),
}

/// A value.
#[derive(Clone, Debug)]
pub struct Value<N> {
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub elements: Elements<N>,
}

impl<N> Value<N> {
    /// The numbers; none for ids.
    pub fn numbers(&self) -> &[N] {
        match &self.elements {
            Elements::Numbers(n) => n,
            Elements::Ids(_) => &[],
        }
    }

    /// The ids; none for numbers.
    pub fn ids(&self) -> &[i64] {
        match &self.elements {
            Elements::Ids(i) => i,
            Elements::Numbers(_) => &[],
        }
    }

    /// Length of the last axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows along the last axis.
    pub fn rows(&self) -> std::slice::Chunks<'_, N> {
        self.numbers().chunks(self.cols().max(1))
    }
}

impl Value<Field> {
    /// Random elements beside the reals of a tensor; ids are what they are.
    pub fn beside(t: &Tensor, seed: u64) -> Value<Field> {
        let element = |(i, &x): (usize, &f32)| Field::random(seed + i as u64, f64::from(x));
        let elements = if t.dtype.is_float() {
            Elements::Numbers(t.floats().iter().enumerate().map(element).collect())
        } else {
            Elements::Ids(t.ints().to_vec())
        };
        Value { shape: t.shape.clone(), elements }
    }
}
