//! Tensor maps, encoded by the driver.

use super::driver::DevicePtr;
use cudarc::driver::sys::{self, CUresult, CUtensorMap};
use moec_ir::tile::{MapElem, TensorMap};
use std::ffi::c_void;

/// Room for a map.
pub(crate) const EMPTY: CUtensorMap = CUtensorMap { opaque: [0; 16] };

/// The 128 bytes that a kernel takes for `map`, for the operand at `address`. Does not allocate.
///
/// # Safety
/// The driver is loaded and knows tensor maps (CUDA 12.0). The map was checked with its manifest.
pub(crate) unsafe fn encode(map: &TensorMap, address: DevicePtr, n_tokens: u64) -> Result<CUtensorMap, CUresult> {
    use sys::CUtensorMapDataType_enum as T;
    use sys::CUtensorMapSwizzle_enum as S;
    let elem = match map.elem {
        MapElem::U8 => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        MapElem::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        MapElem::Bf16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        MapElem::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        MapElem::U4Padded => T::CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN16B,
    };
    let swizzle = match map.swizzle_bytes {
        32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
        _ => S::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let rank = map.dims.len().min(TensorMap::MAX_RANK);
    let (mut dims, mut strides) = ([1u64; TensorMap::MAX_RANK], [0u64; TensorMap::MAX_RANK]);
    let (mut boxes, steps) = ([1u32; TensorMap::MAX_RANK], [1u32; TensorMap::MAX_RANK]);
    dims.iter_mut().zip(map.dims_at(n_tokens)).for_each(|(to, n)| *to = n);
    strides.iter_mut().zip(&map.strides).for_each(|(to, n)| *to = *n);
    boxes.iter_mut().zip(&map.box_dims).for_each(|(to, n)| *to = *n);
    let mut out = EMPTY;
    // SAFETY: the lists have five entries each, at least as many as the rank; the driver only writes to `out`, and reads
    // nothing at the address.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out,
            elem,
            rank as u32,
            address as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    if result == CUresult::CUDA_SUCCESS { Ok(out) } else { Err(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts without this crate take the numbers from there.
    #[test]
    fn the_drivers_numbers_are_those_of_the_tile_ir() {
        use sys::CUtensorMapDataType_enum as T;
        for (elem, driver) in [
            (MapElem::U8, T::CU_TENSOR_MAP_DATA_TYPE_UINT8),
            (MapElem::F16, T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16),
            (MapElem::Bf16, T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
            (MapElem::F32, T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32),
            (MapElem::U4Padded, T::CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN16B),
        ] {
            assert_eq!(elem.driver_type(), driver as u32);
        }
        use sys::CUtensorMapSwizzle_enum as S;
        for (swizzle_bytes, driver) in [
            (0, S::CU_TENSOR_MAP_SWIZZLE_NONE),
            (32, S::CU_TENSOR_MAP_SWIZZLE_32B),
            (64, S::CU_TENSOR_MAP_SWIZZLE_64B),
            (128, S::CU_TENSOR_MAP_SWIZZLE_128B),
        ] {
            let map = TensorMap {
                operand: 0,
                elem: MapElem::U8,
                dims: Vec::new(),
                strides: Vec::new(),
                box_dims: Vec::new(),
                swizzle_bytes,
            };
            assert_eq!(map.driver_swizzle(), driver as u32);
        }
        assert_eq!(sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as u32, 3);
    }
}
