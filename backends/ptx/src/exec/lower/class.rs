//! Classes of instructions, under which they are counted.

use super::types;
use crate::ast::Instruction;
use crate::exec::counters::Class;

/// The class under which an instruction is counted, from its name alone.
pub(crate) fn class_of(i: &Instruction) -> Class {
    let shared = i.modifiers.iter().any(|m| m.starts_with("shared"));
    match i.opcode.as_str() {
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => Class::Control,
        "mov" | "selp" | "slct" | "cvta" | "isspacep" | "set" | "setp" | "testp" | "mapa" | "getctarank" => Class::Move,
        "ld" | "ldu" | "st" if shared => Class::SharedMemory,
        "ld" | "ldu" | "st" if i.modifiers.iter().any(|m| matches!(m.as_str(), "param" | "local" | "const")) => {
            Class::OtherMemory
        }
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "applypriority" | "discard" | "createpolicy" => {
            Class::GlobalMemory
        }
        "atom" | "red" | "multimem" => Class::Atomic,
        "cvt" => Class::Convert,
        "ldmatrix" | "stmatrix" | "movmatrix" => Class::SharedMemory,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => Class::Warp,
        "bar"
        | "barrier"
        | "membar"
        | "fence"
        | "mbarrier"
        | "griddepcontrol"
        | "setmaxnreg"
        | "clusterlaunchcontrol"
        | "nanosleep" => Class::Synchronisation,
        "cp" | "tensormap" => Class::Copy,
        "mma" | "wmma" | "wgmma" | "tcgen05" => Class::Tensor,
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rcp" | "rsqrt" | "sqrt" => Class::Special,
        "div" if i.modifiers.iter().any(|m| matches!(m.as_str(), "f32" | "f64")) => Class::Special,
        "add" | "sub" | "mul" | "mad" | "fma" | "min" | "max" | "abs" | "neg" | "copysign"
            if i.modifiers.iter().any(|m| types::is_float(m)) =>
        {
            Class::Float
        }
        _ => Class::Integer,
    }
}
