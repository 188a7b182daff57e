//! The two intermediate representations of moec, as plain data.
//!
//! * [`graph`] says *what* an MoE layer computes, in the language of MoE: linear, score, top-k, permute, grouped
//!   linear, weighted sum.
//! * [`tile`] says *how it runs*: a short list of kernels over buffers.
//!
//! Both have a verifier, a text form that parses back, and a reference evaluator. The evaluators are slow and obvious:
//! they are the definition that every backend is compared with.
//!
//! # Notation
//!
//! In shapes, and only there: `T` tokens, `E` routed experts, `K` experts per token (top-k; in a contraction, the
//! contracted axis), `H` hidden size, `F` expert width (`moe_intermediate_size`), `N` output columns of a matrix.
//! A *slot* is one (token, choice) pair; there are `T*K` of them, numbered `token * K + choice`. *Expert order* is the
//! stable sort of slots by expert id: rows of one expert are contiguous and keep token order.
//!
//! # Float rules
//!
//! * A value of type bf16 or f16 has been rounded once, to nearest even, from an f32 result. Arithmetic and
//!   accumulation are f32.
//! * Top-k orders by (value descending, index ascending). NaN ranks above +inf, as in `torch.topk`; -0 equals +0.
//! * A weighted sum over slots adds in slot order in f32, and rounds once at the end.
#![warn(missing_docs)]

pub mod abi;
pub mod act_quant;
pub mod activation;
pub mod diag;
pub mod dtype;
pub mod engine;
pub mod exchange;
pub mod expr;
pub mod files;
pub mod graph;
pub mod numerics;
pub mod placement;
pub mod ptx_release;
pub mod quant;
pub mod reference;
pub mod shape;
pub mod target;
pub mod tensor;
pub mod text;
pub mod tile;
pub mod weights;
pub mod window;

pub use act_quant::ActQuant;
pub use activation::{Activation, Curve};
pub use diag::{Diagnostic, Origin};
pub use dtype::DType;
pub use engine::Engine;
pub use expr::Expr;
pub use numerics::{NumericClass, Numerics};
pub use placement::{Mesh, Placement};
pub use shape::{Dim, TensorType};
pub use tensor::Tensor;
