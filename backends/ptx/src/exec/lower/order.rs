//! The order of an instruction's dot words.
//!
//! PTX's manual writes the type last; NVIDIA's assembler takes most words in any order, and CUDA's own headers use that
//! (`max.s32.relu`). The lowering reads the type at the end, so the types are moved there.

use std::borrow::Cow;

use super::Ty;
use crate::ast::Instruction;

/// Instructions whose types may stand anywhere among the words. Those of tensor instructions and copies are told apart
/// by their places, and stay.
const SCALAR: [&str; 63] = [
    "abs", "add", "addc", "and", "atom", "bfe", "bfi", "bfind", "bmsk", "brev", "clz", "cnot", "copysign", "cos",
    "cvta", "div", "dp2a", "dp4a", "ex2", "fma", "fns", "ld", "ldu", "lg2", "lop3", "mad", "mad24", "madc", "match",
    "max", "min", "mov", "mul", "mul24", "multimem", "neg", "not", "or", "popc", "prmt", "rcp", "red", "redux", "rem",
    "rsqrt", "sad", "selp", "set", "setp", "shf", "shfl", "shl", "shr", "sin", "slct", "sqrt", "st", "sub", "subc",
    "szext", "tanh", "testp", "xor",
];

/// The instruction with its types behind its other words; the types keep their own order.
pub(super) fn canonical(i: &Instruction) -> Cow<'_, Instruction> {
    let is_type = |m: &String| Ty::parse(m).is_some();
    let sorted = i.modifiers.iter().skip_while(|m| !is_type(m)).all(is_type);
    let movable = SCALAR.contains(&i.opcode.as_str());
    if sorted || !movable || i.has("async") || i.has("bulk") {
        return Cow::Borrowed(i);
    }
    let (types, mut words): (Vec<String>, Vec<String>) = i.modifiers.iter().cloned().partition(is_type);
    words.extend(types);
    Cow::Owned(Instruction { modifiers: words, ..i.clone() })
}
