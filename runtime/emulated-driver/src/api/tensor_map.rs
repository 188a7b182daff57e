//! Tensor maps.

use crate::call::*;
use moec_ptx::tensor::swizzle::Swizzle;
use moec_ptx::tensor::tensormap::{MapElem, TensorMap};
use std::ffi::{c_int, c_uint, c_void};

/// In the order of `CUtensorMapDataType`.
const ELEMS: [MapElem; 16] = [
    MapElem::U8,
    MapElem::U16,
    MapElem::U32,
    MapElem::S32,
    MapElem::U64,
    MapElem::S64,
    MapElem::F16,
    MapElem::F32,
    MapElem::F64,
    MapElem::Bf16,
    MapElem::F32Ftz,
    MapElem::Tf32,
    MapElem::Tf32Ftz,
    MapElem::B4x16,
    MapElem::B4x16P64,
    MapElem::B6x16P32,
];

/// In the order of `CUtensorMapSwizzle`.
const SWIZZLES: [Swizzle; 7] = [
    Swizzle::None,
    Swizzle::B32,
    Swizzle::B64,
    Swizzle::B128,
    Swizzle::B128Atom32,
    Swizzle::B128Atom32Flip8,
    Swizzle::B128Atom64,
];

/// Encodes a map, or says which argument is wrong.
fn encode(map: &TensorMap) -> Result<[u8; 128], Error> {
    map.encode().map_err(|e| {
        tell(&e.to_string());
        INVALID_VALUE
    })
}

api! {
    fn cuTensorMapEncodeTiled(
        place: *mut [u8; 128],
        elem: c_uint,
        rank: c_uint,
        address: u64,
        dims: *const u64,
        strides: *const u64,
        box_dims: *const u32,
        element_strides: *const u32,
        interleave: c_uint,
        swizzle: c_uint,
        promotion: c_uint,
        fill: c_uint,
    ) {
        let rank = rank as usize;
        let (Some(elem), Some(swizzle)) = (ELEMS.get(elem as usize), SWIZZLES.get(swizzle as usize)) else {
            return Err(INVALID_VALUE);
        };
        if !(1..=5).contains(&rank) || interleave > 2 || promotion > 3 || fill > 1 || !(place as usize).is_multiple_of(64) {
            return Err(INVALID_VALUE);
        }
        let mut map = TensorMap {
            address,
            elem: *elem,
            rank,
            dims: [1; 5],
            strides: [0; 4],
            box_dims: [1; 5],
            element_strides: [1; 5],
            interleave: interleave as u8,
            swizzle: *swizzle,
            fill_nan: fill == 1,
        };
        for i in 0..rank {
            map.dims[i] = *dims.add(i);
            map.box_dims[i] = *box_dims.add(i);
            map.element_strides[i] = *element_strides.add(i);
            // One less than dimensions.
            if i > 0 {
                map.strides[i - 1] = *strides.add(i - 1);
            }
        }
        put(place, encode(&map)?)
    }

    fn cuTensorMapReplaceAddress(place: *mut [u8; 128], address: u64) {
        let mut map = TensorMap::decode(&*place).map_err(|_| INVALID_VALUE)?;
        map.address = address;
        put(place, encode(&map)?)
    }

    fn cuTensorMapEncodeIm2col(
        _place: *mut c_void,
        _elem: c_uint,
        _rank: c_uint,
        _address: *mut c_void,
        _dims: *const u64,
        _strides: *const u64,
        _lower: *const c_int,
        _upper: *const c_int,
        _channels: c_uint,
        _pixels: c_uint,
        _element_strides: *const u32,
        _interleave: c_uint,
        _swizzle: c_uint,
        _promotion: c_uint,
        _fill: c_uint,
    ) {
        tell("im2col tensor maps are not in the emulator");
        Err(NOT_SUPPORTED)
    }
}
