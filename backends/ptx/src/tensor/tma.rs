//! The copies of `cp.async.bulk.tensor`: which bytes of global memory a box is, and where they lie in shared memory.
//!
//! A box is a list of rows along dimension 0; in shared memory rows follow each other densely, then the swizzle permutes 16-byte
//! chunks (8-byte halves too, for one mode) by their absolute address. Source: PTX ISA 9.1, 5.5 and 9.7.9.25.5.

use super::tensormap::{MapElem, TensorMap};
use super::{TensorError, invalid};

/// One row of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Byte offset in the dense box.
    pub offset: u32,
    /// Bytes of shared memory.
    pub bytes: u32,
    /// The first byte inside the tensor, in the row's shared-memory bytes; what comes before is filled.
    pub start: u32,
    /// One past the last byte inside the tensor; `start == end` when the whole row is outside.
    pub end: u32,
    /// Global address of the byte at `start`.
    pub address: u64,
}

/// The rows of the box at `coordinates` (as many as the map's rank, innermost first).
///
/// # Errors
/// `Invalid` when the number of coordinates is not the rank, or a packed type starts inside a group of 16.
pub fn tile_rows(map: &TensorMap, coordinates: &[i32]) -> Result<Vec<Row>, TensorError> {
    if coordinates.len() != map.rank {
        return invalid(format!("{} coordinates for a tensor map of rank {}", coordinates.len(), map.rank));
    }
    let n_rows: u64 = (1..map.rank).map(|d| map.count(d)).product();
    let mut rows = Vec::with_capacity(n_rows as usize);
    for index in 0..n_rows {
        let mut rest = index;
        let mut outer = Some(map.address);
        for (d, coordinate) in coordinates.iter().enumerate().skip(1) {
            let j = rest % map.count(d);
            rest /= map.count(d);
            let c = i64::from(*coordinate) + (j * u64::from(map.element_strides[d])) as i64;
            let inside = (0..map.dims[d] as i64).contains(&c);
            outer = outer.filter(|_| inside).map(|a| a.wrapping_add(c as u64 * map.strides[d - 1]));
        }
        rows.push(row(map, rows.len() as u64, coordinates[0], outer)?);
    }
    Ok(rows)
}

/// The four rows of `tile::gather4` and `tile::scatter4`: coordinates are the column and four row numbers of a rank-2 map.
///
/// # Errors
/// `Invalid` when the map is not of rank 2 with a box of one row.
pub fn gather4_rows(map: &TensorMap, coordinates: &[i32]) -> Result<Vec<Row>, TensorError> {
    if map.rank != 2 || map.box_dims[1] != 1 {
        return invalid(format!(
            "gather4/scatter4 needs a tensor map of rank 2 with a box of one row, has rank {} and {} rows",
            map.rank, map.box_dims[1]
        ));
    }
    let [column, lines @ ..] = coordinates else { return invalid("gather4/scatter4 needs five coordinates") };
    if lines.len() != 4 {
        return invalid(format!("gather4/scatter4 needs five coordinates, has {}", coordinates.len()));
    }
    lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let c = i64::from(*line);
            let inside = (0..map.dims[1] as i64).contains(&c);
            row(map, i as u64, *column, inside.then(|| map.address.wrapping_add(c as u64 * map.strides[0])))
        })
        .collect()
}

fn row(map: &TensorMap, number: u64, column: i32, base: Option<u64>) -> Result<Row, TensorError> {
    let count = map.count(0) as i64;
    let group = map.elem.group() as i64;
    let column = i64::from(column);
    if column.rem_euclid(group) != 0 {
        return invalid(format!("coordinate {column} of a packed 4- or 6-bit tensor map is not a multiple of 16"));
    }
    let bytes = map.elem.shared_bytes(count as u64) as u32;
    let first = (-column).clamp(0, count);
    let last = (map.dims[0] as i64 - column).clamp(first, count);
    let (first, last) = if base.is_some() { (first, last) } else { (0, 0) };
    let elements = |n: i64| map.elem.shared_bytes(n as u64) as u32;
    let address = base.unwrap_or(0).wrapping_add(map.elem.global_bytes((column + first).max(0) as u64));
    Ok(Row { offset: number as u32 * bytes, bytes, start: elements(first), end: elements(last), address })
}

/// Bytes of global memory behind the part of a row that is inside the tensor.
#[must_use]
pub fn global_bytes(map: &TensorMap, row: &Row) -> u64 {
    let inside = u64::from(row.end - row.start);
    match map.elem {
        MapElem::B4x16P64 => inside / 2,
        MapElem::B6x16P32 => inside * 3 / 4,
        _ => inside,
    }
}

/// Puts the global bytes of a row (and their written flags) where they belong in the row's shared-memory image.
///
/// `data` and `init` hold `row.bytes` entries; what is outside the tensor gets the fill, padding zeros.
pub fn expand_row(map: &TensorMap, row: &Row, global: &[u8], written: &[bool], data: &mut [u8], init: &mut [bool]) {
    let fill = map.elem.nan();
    for (i, (byte, flag)) in data.iter_mut().zip(init.iter_mut()).enumerate() {
        *byte = if map.fill_nan { fill[i % 8] } else { 0 };
        *flag = true;
    }
    let (start, end) = (row.start as usize, row.end as usize);
    let packed = match map.elem {
        MapElem::B4x16P64 => 8,
        MapElem::B6x16P32 => 12,
        _ => {
            data[start..end].copy_from_slice(global);
            init[start..end].copy_from_slice(written);
            return;
        }
    };
    for (unit, (from, flags)) in global.chunks(packed).zip(written.chunks(packed)).enumerate() {
        data[start + 16 * unit..][..from.len()].copy_from_slice(from);
        init[start + 16 * unit..][..flags.len()].copy_from_slice(flags);
    }
}

/// The inverse of [`expand_row`] for stores: the bytes of the row's image that go to global memory.
#[must_use]
pub fn compress_row(map: &TensorMap, row: &Row, data: &[u8]) -> Vec<u8> {
    let inside = &data[row.start as usize..row.end as usize];
    let packed = match map.elem {
        MapElem::B4x16P64 => 8,
        MapElem::B6x16P32 => 12,
        _ => return inside.to_vec(),
    };
    inside.chunks(16).flat_map(|unit| unit[..packed.min(unit.len())].to_vec()).collect()
}

/// The pieces of a contiguous run of box bytes in swizzled shared memory: (shared address, range of the run).
pub fn pieces(
    map: &TensorMap,
    base: u32,
    offset: u32,
    bytes: u32,
) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> + use<> {
    use super::swizzle::Swizzle;
    let swizzle = map.swizzle;
    let granule = match swizzle {
        Swizzle::None => bytes.max(1),
        Swizzle::B128Atom32Flip8 => 8,
        _ => 16,
    };
    (0..bytes.div_ceil(granule)).map(move |i| {
        let at = i * granule;
        let address = base.wrapping_add(offset + at);
        // The rank of the CTA in the upper bits takes no part in the pattern.
        (swizzle.apply(address, 0), at as usize..(at + granule).min(bytes) as usize)
    })
}

/// Operation of `cp.reduce.async.bulk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
}

impl Reduction {
    /// The operation that a PTX suffix names.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "add" => Self::Add,
            "min" => Self::Min,
            "max" => Self::Max,
            "inc" => Self::Inc,
            "dec" => Self::Dec,
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            _ => return None,
        })
    }

    /// Whether the operation exists for an element type.
    #[must_use]
    pub fn allows(self, elem: MapElem) -> bool {
        use MapElem::{Bf16, F16, F32, F32Ftz, F64, S32, S64, U32, U64};
        match self {
            Self::Add => matches!(elem, U32 | S32 | U64 | F16 | Bf16 | F32 | F32Ftz | F64),
            Self::Min | Self::Max => matches!(elem, U32 | S32 | U64 | S64 | F16 | Bf16),
            Self::Inc | Self::Dec => elem == U32,
            Self::And | Self::Or | Self::Xor => matches!(elem, U32 | S32 | U64 | S64),
        }
    }

    /// Combines the old value in memory with the new one; both in the low bits.
    #[must_use]
    pub fn apply(self, elem: MapElem, old: u64, new: u64) -> u64 {
        use crate::numeric::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
        let wide = elem.element_bytes() == 8;
        let signed = matches!(elem, MapElem::S32 | MapElem::S64);
        let as_signed = |x: u64| if wide { x as i64 } else { i64::from(x as u32 as i32) };
        let less = |a: u64, b: u64| if signed { as_signed(a) < as_signed(b) } else { a < b };
        let float = |f: fn(f32, f32) -> f32| match elem {
            MapElem::F16 => u64::from(f32_to_f16(f(f16_to_f32(old as u16), f16_to_f32(new as u16)))),
            MapElem::Bf16 => u64::from(f32_to_bf16(f(bf16_to_f32(old as u16), bf16_to_f32(new as u16)))),
            _ => u64::from(f(f32::from_bits(old as u32), f32::from_bits(new as u32)).to_bits()),
        };
        let is_float = elem.is_float_type();
        match self {
            Self::Add if elem == MapElem::F64 => (f64::from_bits(old) + f64::from_bits(new)).to_bits(),
            Self::Add if is_float => float(|a, b| a + b),
            Self::Add if wide => old.wrapping_add(new),
            Self::Add => u64::from((old as u32).wrapping_add(new as u32)),
            Self::Min if is_float => float(f32::min),
            Self::Max if is_float => float(f32::max),
            Self::Min => {
                if less(new, old) {
                    new
                } else {
                    old
                }
            }
            Self::Max => {
                if less(old, new) {
                    new
                } else {
                    old
                }
            }
            Self::Inc => {
                if old >= new {
                    0
                } else {
                    old + 1
                }
            }
            Self::Dec => {
                if old == 0 || old > new {
                    new
                } else {
                    old - 1
                }
            }
            Self::And => old & new,
            Self::Or => old | new,
            Self::Xor => old ^ new,
        }
    }
}

impl MapElem {
    /// Whether elements are floats.
    #[must_use]
    pub fn is_float_type(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F32Ftz | Self::F64 | Self::Tf32 | Self::Tf32Ftz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::swizzle::Swizzle;

    fn map3() -> TensorMap {
        TensorMap {
            address: 0x1000,
            elem: MapElem::U16,
            rank: 3,
            dims: [40, 6, 3, 1, 1],
            strides: [96, 96 * 6, 0, 0],
            box_dims: [16, 4, 2, 1, 1],
            element_strides: [1, 2, 1, 1, 1],
            interleave: 0,
            swizzle: Swizzle::B32,
            fill_nan: false,
        }
    }

    /// Copies element by element, straight from the definition.
    fn reference(map: &TensorMap, coordinates: &[i32], global: &dyn Fn(u64) -> u8) -> Vec<u8> {
        let es = u64::from(map.elem.element_bytes());
        let mut out = Vec::new();
        for z in 0..map.count(2) as i64 {
            for y in 0..map.count(1) as i64 {
                for x in 0..map.count(0) as i64 {
                    let c = [
                        i64::from(coordinates[0]) + x,
                        i64::from(coordinates[1]) + y * i64::from(map.element_strides[1]),
                        i64::from(coordinates[2]) + z * i64::from(map.element_strides[2]),
                    ];
                    let inside = c.iter().zip(map.dims).all(|(c, d)| *c >= 0 && *c < d as i64);
                    for b in 0..es {
                        let at = || {
                            map.address
                                + c[0] as u64 * es
                                + c[1] as u64 * map.strides[0]
                                + c[2] as u64 * map.strides[1]
                                + b
                        };
                        out.push(if inside { global(at()) } else { 0 });
                    }
                }
            }
        }
        out
    }

    #[test]
    fn boxes_with_strides_and_edges_equal_the_definition() {
        let map = map3();
        assert_eq!(map.box_bytes(), 32 * 2 * 2);
        let global = |a: u64| (a * 7 % 251) as u8;
        for coordinates in [[0, 0, 0], [-3, 1, 2], [33, 4, -1], [100, 0, 0], [8, -2, 1], [30, 5, 5]] {
            let want = reference(&map, &coordinates, &global);
            let mut dense = vec![0xaau8; want.len()];
            for row in tile_rows(&map, &coordinates).unwrap() {
                let n = global_bytes(&map, &row);
                let data: Vec<u8> = (0..n).map(|i| global(row.address + i)).collect();
                let mut image = vec![0u8; row.bytes as usize];
                let mut flags = vec![false; row.bytes as usize];
                expand_row(&map, &row, &data, &vec![true; data.len()], &mut image, &mut flags);
                assert_eq!(compress_row(&map, &row, &image), data);
                dense[row.offset as usize..][..image.len()].copy_from_slice(&image);
            }
            assert_eq!(dense, want, "{coordinates:?}");
        }
    }

    #[test]
    fn pieces_follow_the_swizzle() {
        let mut map = map3();
        let all: Vec<_> = pieces(&map, 0x400, 128 + 32, 32).collect();
        // 0x4a0 is in line 9: odd, so the two 16-byte chunks swap.
        assert_eq!(all, vec![(0x4b0, 0..16), (0x4a0, 16..32)]);
        map.swizzle = Swizzle::None;
        assert_eq!(pieces(&map, 0x400, 160, 32).collect::<Vec<_>>(), vec![(0x4a0, 0..32)]);
    }

    #[test]
    fn padded_types_spread_sixteen_elements_over_sixteen_bytes() {
        let map = TensorMap {
            address: 0x1000,
            elem: MapElem::B4x16P64,
            rank: 2,
            dims: [256, 4, 1, 1, 1],
            strides: [128, 0, 0, 0],
            box_dims: [128, 1, 1, 1, 1],
            element_strides: [1; 5],
            interleave: 0,
            swizzle: Swizzle::B128,
            fill_nan: false,
        };
        map.validate().unwrap();
        assert_eq!(map.box_bytes(), 128);
        let rows = gather4_rows(&map, &[128, 2, 9, 0, -1]).unwrap();
        assert_eq!(rows[0], Row { offset: 0, bytes: 128, start: 0, end: 128, address: 0x1000 + 256 + 64 });
        assert_eq!((rows[1].start, rows[1].end), (0, 0));
        assert_eq!(rows[2].address, 0x1040);
        assert_eq!(global_bytes(&map, &rows[0]), 64);
        let data: Vec<u8> = (0..64).collect();
        let (mut image, mut flags) = (vec![9u8; 128], vec![false; 128]);
        expand_row(&map, &rows[0], &data, &[true; 64], &mut image, &mut flags);
        assert_eq!(image[16..24], data[8..16]);
        assert_eq!(image[24..32], [0; 8]);
        assert_eq!(compress_row(&map, &rows[0], &image), data);
    }

    #[test]
    fn reductions_follow_the_element_type() {
        use MapElem::{Bf16, F32, S32, U32};
        assert_eq!(Reduction::Max.apply(S32, 0xffff_ffff, 3), 3);
        assert_eq!(Reduction::Max.apply(U32, 0xffff_ffff, 3), 0xffff_ffff);
        assert_eq!(Reduction::Inc.apply(U32, 5, 5), 0);
        assert_eq!(Reduction::Dec.apply(U32, 0, 5), 5);
        assert_eq!(
            Reduction::Add.apply(F32, 1.5f32.to_bits().into(), 2.0f32.to_bits().into()) as u32,
            3.5f32.to_bits()
        );
        assert_eq!(Reduction::Add.apply(Bf16, 0x3f80, 0x3f80), 0x4000);
        assert!(!Reduction::And.allows(F32));
    }
}
