//! Instruction descriptors of `tcgen05.mma`.
//!
//! Source: PTX ISA 9.1, 9.7.16.4.2 (tables 42 to 44); shapes from 9.7.16.2.1 (table 39).

use super::elem::{Elem, Packing};
use super::mma::ScaleType;
use super::smem_desc::Major;
use super::{TensorError, invalid, unsupported};

/// `.kind::*` of `tcgen05.mma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// f16 and bf16.
    F16,
    /// tf32.
    Tf32,
    /// fp8, fp6 and fp4 in any mix.
    F8f6f4,
    /// Bytes.
    I8,
    /// As `F8f6f4` with ue8m0 scales.
    Mxf8f6f4,
    /// fp4 with ue8m0 scales for 32 elements.
    Mxf4,
    /// fp4 with ue8m0 or ue4m3 scales for 32 or 16 elements.
    Mxf4nvf4,
}

impl Kind {
    /// The kind that a suffix (without `kind::`) names.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "f16" => Self::F16,
            "tf32" => Self::Tf32,
            "f8f6f4" => Self::F8f6f4,
            "i8" => Self::I8,
            "mxf8f6f4" => Self::Mxf8f6f4,
            "mxf4" => Self::Mxf4,
            "mxf4nvf4" => Self::Mxf4nvf4,
            _ => return None,
        })
    }

    /// The PTX spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Tf32 => "tf32",
            Self::F8f6f4 => "f8f6f4",
            Self::I8 => "i8",
            Self::Mxf8f6f4 => "mxf8f6f4",
            Self::Mxf4 => "mxf4",
            Self::Mxf4nvf4 => "mxf4nvf4",
        }
    }

    /// Whether the kind takes scale factors.
    #[must_use]
    pub fn block_scaled(self) -> bool {
        matches!(self, Self::Mxf8f6f4 | Self::Mxf4 | Self::Mxf4nvf4)
    }

    /// K of one dense instruction.
    #[must_use]
    pub fn k(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::Tf32 => 8,
            Self::F8f6f4 | Self::I8 | Self::Mxf8f6f4 => 32,
            Self::Mxf4 | Self::Mxf4nvf4 => 64,
        }
    }

    /// How elements of a type lie in shared memory: below 8 bits, the f8f6f4 kinds pad to 16-byte units.
    #[must_use]
    pub fn smem_packing(self, elem: Elem) -> Packing {
        match self {
            Self::F8f6f4 | Self::Mxf8f6f4 if elem.bits() < 8 => Packing::Padded16,
            _ => Packing::Dense,
        }
    }

    /// How elements of A lie in tensor memory.
    #[must_use]
    pub fn tmem_packing(self, elem: Elem) -> Packing {
        match self {
            Self::F8f6f4 | Self::Mxf8f6f4 if elem.bits() < 8 => Packing::ByteContainer,
            _ => Packing::Dense,
        }
    }
}

/// Type of D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// Half, in the low half of each 32-bit cell.
    F16,
    /// Single.
    F32,
    /// 32-bit integer.
    S32,
}

/// A decoded instruction descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idesc {
    /// Sparse A.
    pub sparse: bool,
    /// Clamp integer accumulators.
    pub saturate: bool,
    /// Type of D.
    pub d: DType,
    /// Type of A.
    pub a: Elem,
    /// Type of B.
    pub b: Elem,
    /// Negate A.
    pub negate_a: bool,
    /// Negate B.
    pub negate_b: bool,
    /// Major axis of A in shared memory.
    pub a_major: Major,
    /// Major axis of B.
    pub b_major: Major,
    /// Rows of D, of both CTAs together.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// First byte of A's scale word that counts.
    pub sfa_id: usize,
    /// First byte of B's scale word that counts.
    pub sfb_id: usize,
    /// Scale factor type.
    pub scale: ScaleType,
}

impl Idesc {
    /// Decodes the 32-bit descriptor for a kind.
    ///
    /// # Errors
    /// `Invalid` for reserved bits, unknown types, shapes no form has; `Unsupported` for K = 96 and matrix-reuse shifts.
    pub fn decode(bits: u32, kind: Kind) -> Result<Self, TensorError> {
        let get = |at: u32, width: u32| bits >> at & ((1 << width) - 1);
        let bad = |what: &str| -> Result<Self, TensorError> {
            invalid(format!("instruction descriptor {bits:#010x} of kind::{}: {what}", kind.name()))
        };
        let scaled = kind.block_scaled();
        if get(6, 1) != 0 {
            return bad("reserved bit 6 is set");
        }
        if scaled && (get(0, 2) != 0 || get(3, 1) != 0 || get(24, 3) != 0) {
            return bad("reserved bits are set");
        }
        if !scaled && (get(23, 1) != 0 || get(29, 1) != 0) {
            return bad("reserved bits 23 or 29 are set");
        }
        if !scaled && get(30, 2) != 0 {
            return unsupported(format!("instruction descriptor {bits:#010x}: a shift for B reuse (bits 30-31)"));
        }
        let f8f6f4 = |code: u32| match code {
            0 => Some(Elem::E4m3),
            1 => Some(Elem::E5m2),
            3 => Some(Elem::E2m3),
            4 => Some(Elem::E3m2),
            5 => Some(Elem::E2m1),
            _ => None,
        };
        let element = |code: u32| match kind {
            Kind::F16 => [Some(Elem::F16), Some(Elem::Bf16)].get(code as usize).copied().flatten(),
            Kind::Tf32 => (code == 2).then_some(Elem::Tf32),
            Kind::F8f6f4 | Kind::Mxf8f6f4 => f8f6f4(code),
            Kind::I8 => [Some(Elem::U8), Some(Elem::S8)].get(code as usize).copied().flatten(),
            Kind::Mxf4 | Kind::Mxf4nvf4 => (code == 1).then_some(Elem::E2m1),
        };
        let fp4 = matches!(kind, Kind::Mxf4 | Kind::Mxf4nvf4);
        if fp4 && get(12, 1) != 0 {
            return bad("reserved bit 12 is set");
        }
        let (Some(a), Some(b)) = (element(get(7, 3)), element(get(10, 3))) else {
            return bad("unknown element type");
        };
        let d = match (kind, get(4, 2)) {
            _ if scaled => DType::F32,
            (Kind::F16 | Kind::F8f6f4, 0) => DType::F16,
            (Kind::F16 | Kind::Tf32 | Kind::F8f6f4, 1) => DType::F32,
            (Kind::I8, 2) => DType::S32,
            _ => return bad("type of D does not fit"),
        };
        if kind == Kind::F16 && d == DType::F16 && (a == Elem::Bf16 || b == Elem::Bf16) {
            return bad("D of f16 takes f16 operands only");
        }
        if kind == Kind::I8 && (get(13, 2) != 0) {
            return bad("integers cannot be negated");
        }
        if fp4 && get(15, 2) != 0 {
            return bad("4-bit operands cannot be transposed");
        }
        for (elem, bit) in [(a, 15), (b, 16)] {
            if get(bit, 1) != 0 && elem.bits() < 8 {
                return bad("operands below 8 bits cannot be transposed");
            }
        }
        let scale = if scaled && get(23, 1) == 0 { ScaleType::Ue4m3 } else { ScaleType::Ue8m0 };
        if scale == ScaleType::Ue4m3 && kind != Kind::Mxf4nvf4 {
            return bad("scale type must be ue8m0 (bit 23)");
        }
        if fp4 && get(31, 1) != 0 {
            return unsupported(format!("kind::{} with K = 96 (instruction descriptor bit 31)", kind.name()));
        }
        if kind == Kind::Mxf8f6f4 && get(31, 1) != 0 {
            return bad("reserved bit 31 is set");
        }
        let major = |bit: u32| if get(bit, 1) != 0 { Major::Mn } else { Major::K };
        Ok(Self {
            sparse: get(2, 1) != 0,
            saturate: get(3, 1) != 0,
            d,
            a,
            b,
            negate_a: get(13, 1) != 0,
            negate_b: get(14, 1) != 0,
            a_major: major(15),
            b_major: major(16),
            m: (get(24, 5) << 4) as usize,
            n: (get(17, 6) << 3) as usize,
            sfa_id: if scaled { get(29, 2) as usize } else { 0 },
            sfb_id: if scaled { get(4, 2) as usize } else { 0 },
            scale,
        })
    }

    /// Checks M and N for a form.
    ///
    /// # Errors
    /// `Invalid` for a shape that the kind does not have.
    pub fn check_shape(&self, kind: Kind, cta_group: usize, ws: bool) -> Result<(), TensorError> {
        let (m, n) = (self.m, self.n);
        let m_ok = if ws {
            matches!(m, 32 | 64 | 128)
        } else if kind.block_scaled() {
            m == 128 || (cta_group == 2 && m == 256)
        } else if cta_group == 1 {
            matches!(m, 64 | 128)
        } else {
            matches!(m, 128 | 256)
        };
        let transposed_bytes = self.b_major == Major::Mn && self.b.bits() == 8;
        let step = match (kind, cta_group) {
            (Kind::I8, 1) if n <= 32 => 8,
            (Kind::I8, 1) => 16,
            (Kind::I8, _) => 32,
            (_, 1) if transposed_bytes => 16,
            (_, 1) => 8,
            _ if transposed_bytes => 32,
            _ => 16,
        };
        let n_ok = if ws {
            matches!(n, 64 | 128 | 256) && !(self.sparse && n == 256)
        } else {
            n > 0 && n <= 256 && n.is_multiple_of(step)
        };
        if ws && kind.block_scaled() {
            return invalid("tcgen05.mma.ws has no block-scaled kinds");
        }
        if m_ok && n_ok {
            Ok(())
        } else {
            invalid(format!(
                "tcgen05.mma{}.cta_group::{cta_group}.kind::{} has no shape {m}x{n}",
                if ws { ".ws" } else { "" },
                kind.name()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_descriptors_decode() {
        let d = Idesc::decode(0x0840_0490, Kind::F16).unwrap();
        assert_eq!((d.m, d.n, d.a, d.b, d.d), (128, 256, Elem::Bf16, Elem::Bf16, DType::F32));
        let d = Idesc::decode(0x0840_0010, Kind::F8f6f4).unwrap();
        assert_eq!((d.a, d.b, d.a_major), (Elem::E4m3, Elem::E4m3, Major::K));
        let d = Idesc::decode(0x08c0_0000, Kind::Mxf8f6f4).unwrap();
        assert_eq!((d.scale, d.sfa_id, d.m), (ScaleType::Ue8m0, 0, 128));
        let d = Idesc::decode(0x0840_0480, Kind::Mxf4nvf4).unwrap();
        assert_eq!((d.scale, d.a), (ScaleType::Ue4m3, Elem::E2m1));
        let d = Idesc::decode(0x50c0_0480 | 2 << 4, Kind::Mxf4).unwrap();
        assert_eq!((d.scale, d.sfa_id, d.sfb_id, d.m), (ScaleType::Ue8m0, 2, 2, 256));
    }

    #[test]
    fn wrong_bits_are_refused() {
        assert!(Idesc::decode(0x0840_04d0, Kind::F16).is_err());
        assert!(Idesc::decode(0x0840_0480, Kind::Mxf4).is_err());
        assert!(Idesc::decode(0x0840_0490, Kind::Tf32).is_err());
        assert!(Idesc::decode(0x8840_0480, Kind::Mxf4nvf4).is_err());
        let d = Idesc::decode(0x0840_0490 & !(0x3f << 17) | 1 << 17, Kind::F16).unwrap();
        assert!(d.check_shape(Kind::F16, 1, false).is_ok());
        assert!(d.check_shape(Kind::F16, 2, false).is_err());
        assert!(d.check_shape(Kind::F16, 1, true).is_err());
    }
}
