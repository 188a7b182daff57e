//! Instruction types.

/// A scalar or packed type of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// `.u8 … .u64`
    U(u32),
    /// `.s8 … .s64`
    S(u32),
    /// `.b8 … .b128`
    B(u32),
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.f16x2`
    F16x2,
    /// `.bf16x2`
    Bf16x2,
    /// `.f32`
    F32,
    /// `.f32x2`
    F32x2,
    /// `.f64`
    F64,
    /// `.pred`
    Pred,
}

impl Ty {
    /// The type of a dot word.
    pub fn parse(word: &str) -> Option<Ty> {
        Some(match word {
            "u8" => Ty::U(8),
            "u16" => Ty::U(16),
            "u32" => Ty::U(32),
            "u64" => Ty::U(64),
            "s8" => Ty::S(8),
            "s16" => Ty::S(16),
            "s32" => Ty::S(32),
            "s64" => Ty::S(64),
            "b8" => Ty::B(8),
            "b16" => Ty::B(16),
            "b32" => Ty::B(32),
            "b64" => Ty::B(64),
            "b128" => Ty::B(128),
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f32x2" => Ty::F32x2,
            "f64" => Ty::F64,
            "pred" => Ty::Pred,
            "u16x2" | "s16x2" => Ty::B(32),
            _ => return None,
        })
    }

    /// Width.
    pub fn bits(self) -> u32 {
        match self {
            Ty::U(n) | Ty::S(n) | Ty::B(n) => n,
            Ty::F16 | Ty::Bf16 => 16,
            Ty::F16x2 | Ty::Bf16x2 | Ty::F32 => 32,
            Ty::F32x2 | Ty::F64 => 64,
            Ty::Pred => 1,
        }
    }
}

/// Width of a declared type; `None` for opaque ones.
pub(crate) fn type_bits(word: &str) -> Option<u32> {
    Ty::parse(word).map(Ty::bits)
}

/// Whether a dot word is a floating-point type.
pub(crate) fn is_float(word: &str) -> bool {
    matches!(word, "f16" | "bf16" | "f16x2" | "bf16x2" | "f32" | "f32x2" | "f64")
}
