//! Tensor maps: the 128-byte objects that TMA instructions read.
//!
//! The hardware's encoding is opaque, so this one is our own; `tensormap.replace` edits it through [`replace`]. Limits are those of
//! `cuTensorMapEncodeTiled`.
//!
//! | bytes | content |
//! |---|---|
//! | 0-7 | global address |
//! | 8-11 | magic |
//! | 12-17 | element type (PTX code), rank − 1, interleave, swizzle mode, swizzle atomicity, fill mode |
//! | 20-39 | dims − 1, five u32 |
//! | 40-71 | strides in bytes of dimensions 1 to 4, u64 |
//! | 72-81 | box dims, five u16 |
//! | 82-86 | element strides, five u8 |

use super::swizzle::Swizzle;
use super::{TensorError, invalid, unsupported};

/// Bytes of a tensor map.
pub const BYTES: usize = 128;

const MAGIC: [u8; 4] = *b"tmap";

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MapElem {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F32Ftz,
    F64,
    Bf16,
    Tf32,
    Tf32Ftz,
    /// Sixteen 4-bit elements in 8 bytes, also in shared memory.
    B4x16,
    /// Sixteen 4-bit elements in 8 bytes, padded to 16 bytes in shared memory.
    B4x16P64,
    /// Sixteen 6-bit elements in 12 bytes, padded to 16 bytes in shared memory.
    B6x16P32,
}

impl MapElem {
    /// All types, in the order of the codes of `tensormap.replace`.
    pub const ALL: [Self; 16] = [
        Self::U8,
        Self::U16,
        Self::U32,
        Self::S32,
        Self::U64,
        Self::S64,
        Self::F16,
        Self::F32,
        Self::F32Ftz,
        Self::F64,
        Self::Bf16,
        Self::Tf32,
        Self::Tf32Ftz,
        Self::B4x16,
        Self::B4x16P64,
        Self::B6x16P32,
    ];

    /// Bytes in global memory of `elements` elements (a multiple of 16 for the packed types).
    #[must_use]
    pub fn global_bytes(self, elements: u64) -> u64 {
        match self {
            Self::B4x16 | Self::B4x16P64 => elements / 2,
            Self::B6x16P32 => elements * 3 / 4,
            _ => elements * u64::from(self.element_bytes()),
        }
    }

    /// Bytes in shared memory of `elements` elements, padding included.
    #[must_use]
    pub fn shared_bytes(self, elements: u64) -> u64 {
        match self {
            Self::B4x16 => elements / 2,
            Self::B4x16P64 | Self::B6x16P32 => elements,
            _ => elements * u64::from(self.element_bytes()),
        }
    }

    /// Bytes that `complete_tx` counts for so many bytes of shared memory: the padding of the packed types does not count.
    /// DeepGEMM's and CUTLASS's kernels for fp4 operands in 8-bit containers expect half of what the copy fills.
    #[must_use]
    pub fn transaction_bytes(self, shared_bytes: u64) -> u64 {
        match self {
            Self::B4x16P64 => shared_bytes / 2,
            Self::B6x16P32 => shared_bytes / 4 * 3,
            _ => shared_bytes,
        }
    }

    /// Bytes of one element; 0 for the packed types.
    #[must_use]
    pub fn element_bytes(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::S32 | Self::F32 | Self::F32Ftz | Self::Tf32 | Self::Tf32Ftz => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
            Self::B4x16 | Self::B4x16P64 | Self::B6x16P32 => 0,
        }
    }

    /// How many elements one copied unit holds: 16 for the packed types, else 1.
    #[must_use]
    pub fn group(self) -> u64 {
        if self.element_bytes() == 0 { 16 } else { 1 }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F32Ftz | Self::F64 | Self::Bf16 | Self::Tf32 | Self::Tf32Ftz)
    }

    /// The NaN that fills what lies outside the tensor, little-endian.
    #[must_use]
    pub fn nan(self) -> [u8; 8] {
        match self {
            Self::F16 | Self::Bf16 => 0x7fff_7fff_7fff_7fffu64,
            Self::F64 => 0x7fff_ffff_ffff_ffff,
            _ => 0x7fff_ffff_7fff_ffff,
        }
        .to_le_bytes()
    }
}

/// A decoded tensor map. Arrays run from the innermost dimension outwards; entries beyond `rank` do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    /// First byte of the tensor.
    pub address: u64,
    /// Element type.
    pub elem: MapElem,
    /// 1 to 5.
    pub rank: usize,
    /// Elements of each dimension.
    pub dims: [u64; 5],
    /// Bytes between neighbours of dimension 1 and up; entry 0 belongs to dimension 1.
    pub strides: [u64; 4],
    /// Elements of the box.
    pub box_dims: [u32; 5],
    /// Steps between the elements taken; that of dimension 0 is ignored without interleave, as the driver says.
    pub element_strides: [u32; 5],
    /// 0 none, 1 16-byte, 2 32-byte.
    pub interleave: u8,
    /// Swizzle.
    pub swizzle: Swizzle,
    /// Fill with NaN instead of zero.
    pub fill_nan: bool,
}

fn swizzle_codes(swizzle: Swizzle) -> (u8, u8) {
    match swizzle {
        Swizzle::None => (0, 0),
        Swizzle::B32 => (1, 0),
        Swizzle::B64 => (2, 0),
        Swizzle::B128 => (3, 0),
        Swizzle::B128Atom32 => (3, 1),
        Swizzle::B128Atom32Flip8 => (3, 2),
        Swizzle::B128Atom64 => (3, 3),
    }
}

impl TensorMap {
    /// Elements that one copy takes along a dimension.
    #[must_use]
    pub fn count(&self, dim: usize) -> u64 {
        if dim >= self.rank {
            return 1;
        }
        let step = if dim == 0 { 1 } else { self.element_strides[dim].max(1) };
        u64::from(self.box_dims[dim].div_ceil(step))
    }

    /// Bytes of shared memory that one copy of the box fills.
    #[must_use]
    pub fn box_bytes(&self) -> u64 {
        self.elem.shared_bytes(self.count(0)) * (1..self.rank).map(|d| self.count(d)).product::<u64>()
    }

    /// Checks the limits of `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// `Invalid`, naming the argument.
    pub fn validate(&self) -> Result<(), TensorError> {
        if !(1..=5).contains(&self.rank) {
            return invalid(format!("tensor map of rank {}", self.rank));
        }
        if self.interleave > 2 {
            return invalid(format!("tensor map with interleave {}", self.interleave));
        }
        if self.interleave != 0 {
            return unsupported("a tensor map with interleaved layout");
        }
        let padded = matches!(self.elem, MapElem::B4x16P64 | MapElem::B6x16P32);
        let align = if padded { 32 } else { 16 };
        if !self.address.is_multiple_of(align) {
            return invalid(format!("tensor map address {:#x} is not a multiple of {align}", self.address));
        }
        for d in 0..self.rank {
            if self.dims[d] == 0 || self.dims[d] > 1 << 32 {
                return invalid(format!("tensor map dimension {d} has {} elements", self.dims[d]));
            }
            if self.box_dims[d] == 0 || self.box_dims[d] > 256 {
                return invalid(format!("tensor map box dimension {d} is {}, must be 1 to 256", self.box_dims[d]));
            }
            if !(1..=8).contains(&self.element_strides[d]) {
                return invalid(format!(
                    "tensor map element stride {d} is {}, must be 1 to 8",
                    self.element_strides[d]
                ));
            }
            if d > 0 {
                let stride = self.strides[d - 1];
                if !stride.is_multiple_of(align) || stride >= 1 << 40 {
                    return invalid(format!(
                        "tensor map stride {d} is {stride} bytes, must be a multiple of {align} below 2^40"
                    ));
                }
            }
        }
        let inner = u64::from(self.box_dims[0]);
        if !inner.is_multiple_of(self.elem.group()) {
            return invalid(format!("tensor map inner box of {inner} elements is not a multiple of 16"));
        }
        let bytes = self.elem.shared_bytes(inner);
        if !bytes.is_multiple_of(16) {
            return invalid(format!("tensor map inner box is {bytes} bytes, must be a multiple of 16"));
        }
        if self.swizzle != Swizzle::None && bytes > u64::from(self.swizzle.span()) {
            return invalid(format!(
                "tensor map inner box is {bytes} bytes, the swizzle allows {}",
                self.swizzle.span()
            ));
        }
        if padded && (inner != 128 || !self.dims[0].is_multiple_of(128)) {
            return invalid(format!(
                "tensor map of a padded type needs an inner box of 128 elements and a multiple of 128 in dimension 0, has {inner} and {}",
                self.dims[0]
            ));
        }
        if self.elem == MapElem::B4x16 && !self.dims[0].is_multiple_of(2) {
            return invalid(format!("tensor map of 4-bit elements has an odd dimension 0 of {}", self.dims[0]));
        }
        if self.fill_nan && !self.elem.is_float() {
            return invalid("tensor map with NaN fill of a type that is not a float");
        }
        Ok(())
    }

    /// The 128-byte object.
    ///
    /// # Errors
    /// What [`Self::validate`] finds.
    pub fn encode(&self) -> Result<[u8; BYTES], TensorError> {
        self.validate()?;
        let mut out = [0u8; BYTES];
        out[..8].copy_from_slice(&self.address.to_le_bytes());
        out[8..12].copy_from_slice(&MAGIC);
        let code = MapElem::ALL.iter().position(|e| *e == self.elem).unwrap_or(0);
        let (mode, atomicity) = swizzle_codes(self.swizzle);
        out[12..18].copy_from_slice(&[
            code as u8,
            (self.rank - 1) as u8,
            self.interleave,
            mode,
            atomicity,
            u8::from(self.fill_nan),
        ]);
        for d in 0..5 {
            let dim = if d < self.rank { self.dims[d] - 1 } else { 0 } as u32;
            out[20 + 4 * d..][..4].copy_from_slice(&dim.to_le_bytes());
            let extent = if d < self.rank { self.box_dims[d] } else { 1 } as u16;
            out[72 + 2 * d..][..2].copy_from_slice(&extent.to_le_bytes());
            out[82 + d] = if d < self.rank { self.element_strides[d] } else { 1 } as u8;
        }
        for (d, stride) in self.strides.iter().enumerate() {
            let stride = if d + 1 < self.rank { *stride } else { 0 };
            out[40 + 8 * d..][..8].copy_from_slice(&stride.to_le_bytes());
        }
        Ok(out)
    }

    /// Reads an object back.
    ///
    /// # Errors
    /// `Invalid` when the bytes are no tensor map of this emulator, or fields were replaced by values that no map may have.
    pub fn decode(bytes: &[u8; BYTES]) -> Result<Self, TensorError> {
        // A kernel may build a map from 128 zero bytes with tensormap.replace alone.
        if bytes[8..12] != MAGIC && bytes[8..12] != [0; 4] {
            return invalid("the 128 bytes at this address are not a tensor map");
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let Some(elem) = MapElem::ALL.get(usize::from(bytes[12])).copied() else {
            return invalid(format!("tensor map element type {}", bytes[12]));
        };
        let swizzle = match (bytes[15], bytes[16]) {
            (0, _) => Swizzle::None,
            (1, 0) => Swizzle::B32,
            (2, 0) => Swizzle::B64,
            (3, 0) => Swizzle::B128,
            (3, 1) => Swizzle::B128Atom32,
            (3, 2) => Swizzle::B128Atom32Flip8,
            (3, 3) => Swizzle::B128Atom64,
            (4, _) => return unsupported("a tensor map with 96-byte swizzle"),
            (mode, atomicity) => {
                return invalid(format!("tensor map swizzle mode {mode} with atomicity {atomicity}"));
            }
        };
        let map = Self {
            address: u64_at(0),
            elem,
            rank: usize::from(bytes[13]) + 1,
            dims: std::array::from_fn(|d| u64::from(u32_at(20 + 4 * d)) + 1),
            strides: std::array::from_fn(|d| u64_at(40 + 8 * d)),
            box_dims: std::array::from_fn(|d| u32::from(u16::from_le_bytes([bytes[72 + 2 * d], bytes[73 + 2 * d]]))),
            element_strides: std::array::from_fn(|d| u32::from(bytes[82 + d])),
            interleave: bytes[14],
            swizzle,
            fill_nan: bytes[17] != 0,
        };
        map.validate()?;
        Ok(map)
    }
}

/// A field of `tensormap.replace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Field {
    GlobalAddress,
    Rank,
    BoxDim,
    GlobalDim,
    GlobalStride,
    ElementStride,
    Elemtype,
    InterleaveLayout,
    SwizzleMode,
    SwizzleAtomicity,
    FillMode,
}

impl Field {
    /// The field that a PTX suffix names.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "global_address" => Self::GlobalAddress,
            "rank" => Self::Rank,
            "box_dim" => Self::BoxDim,
            "global_dim" => Self::GlobalDim,
            "global_stride" => Self::GlobalStride,
            "element_stride" => Self::ElementStride,
            "elemtype" => Self::Elemtype,
            "interleave_layout" => Self::InterleaveLayout,
            "swizzle_mode" => Self::SwizzleMode,
            "swizzle_atomicity" => Self::SwizzleAtomicity,
            "fill_mode" => Self::FillMode,
            _ => return None,
        })
    }

    /// Whether the instruction names an ordinal.
    #[must_use]
    pub fn has_ordinal(self) -> bool {
        matches!(self, Self::BoxDim | Self::GlobalDim | Self::GlobalStride | Self::ElementStride)
    }
}

/// `tensormap.replace`: which bytes of the object change, and to what.
///
/// # Errors
/// `Invalid` for an ordinal or value out of range.
pub fn replace(field: Field, ordinal: usize, value: u64) -> Result<(usize, Vec<u8>), TensorError> {
    let limit = if field == Field::GlobalStride { 4 } else { 5 };
    if field.has_ordinal() && ordinal >= limit {
        return invalid(format!("tensormap.replace of {field:?} {ordinal}"));
    }
    let byte = |at: usize, max: u64| {
        if value > max {
            return invalid(format!("tensormap.replace of {field:?} by {value}, at most {max} is allowed"));
        }
        Ok((at, vec![value as u8]))
    };
    match field {
        Field::GlobalAddress => Ok((0, value.to_le_bytes().to_vec())),
        Field::Elemtype => byte(12, 15),
        Field::Rank => byte(13, 4),
        Field::InterleaveLayout => byte(14, 2),
        Field::SwizzleMode => byte(15, 4),
        Field::SwizzleAtomicity => byte(16, 3),
        Field::FillMode => byte(17, 1),
        Field::GlobalDim => {
            if value == 0 {
                return invalid("tensormap.replace of a dimension by 0");
            }
            Ok((20 + 4 * ordinal, ((value - 1) as u32).to_le_bytes().to_vec()))
        }
        Field::GlobalStride => Ok((40 + 8 * ordinal, value.to_le_bytes().to_vec())),
        Field::BoxDim => Ok((72 + 2 * ordinal, (value.min(0xffff) as u16).to_le_bytes().to_vec())),
        Field::ElementStride => byte(82 + ordinal, 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> TensorMap {
        TensorMap {
            address: 0x1_0000,
            elem: MapElem::Bf16,
            rank: 2,
            dims: [128, 64, 1, 1, 1],
            strides: [256, 0, 0, 0],
            box_dims: [64, 32, 1, 1, 1],
            element_strides: [1; 5],
            interleave: 0,
            swizzle: Swizzle::B128,
            fill_nan: false,
        }
    }

    #[test]
    fn encoding_round_trips_and_fields_can_be_replaced() {
        let map = sample();
        let mut bytes = map.encode().unwrap();
        assert_eq!(TensorMap::decode(&bytes).unwrap(), map);
        let mut set = |field, ordinal, value| {
            let (at, new) = replace(field, ordinal, value).unwrap();
            bytes[at..at + new.len()].copy_from_slice(&new);
        };
        set(Field::GlobalAddress, 0, 0x2_0000);
        set(Field::Rank, 0, 2);
        set(Field::GlobalDim, 2, 5);
        set(Field::GlobalStride, 1, 64 * 256);
        set(Field::BoxDim, 1, 16);
        set(Field::SwizzleMode, 0, 2);
        set(Field::BoxDim, 0, 32);
        set(Field::Elemtype, 0, 6);
        let got = TensorMap::decode(&bytes).unwrap();
        let want = TensorMap {
            address: 0x2_0000,
            elem: MapElem::F16,
            rank: 3,
            dims: [128, 64, 5, 1, 1],
            strides: [256, 64 * 256, 0, 0],
            box_dims: [32, 16, 1, 1, 1],
            swizzle: Swizzle::B64,
            ..map
        };
        assert_eq!(got, want);
        assert!(replace(Field::Elemtype, 0, 16).is_err());
        assert!(replace(Field::GlobalStride, 4, 16).is_err());
    }

    #[test]
    fn limits_of_the_driver_hold() {
        let bad = |change: fn(&mut TensorMap)| {
            let mut map = sample();
            change(&mut map);
            assert!(map.encode().is_err(), "{map:?}");
        };
        bad(|m| m.address = 8);
        bad(|m| m.strides[0] = 24);
        bad(|m| m.box_dims[0] = 128);
        bad(|m| m.box_dims[1] = 257);
        bad(|m| m.dims[1] = 0);
        bad(|m| m.interleave = 1);
        bad(|m| m.element_strides[1] = 9);
        bad(|m| m.box_dims[0] = 12);
        assert!(TensorMap::decode(&[0; 128]).is_err());
    }
}
