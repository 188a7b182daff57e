//! Copies and fills, in a stream or not.

use crate::call::*;
use crate::state::{current, state};
use crate::structs::{Handle, Memcpy2d, Memcpy3d, Side3d};
use crate::work::{Copy, Set, Side, Work, submit};
use std::ffi::{c_uint, c_void};

fn flat(dst: u64, src: u64, bytes: usize, stream: Handle) -> Call {
    if bytes == 0 {
        current()?;
        return Ok(());
    }
    submit(stream, Copy::flat(dst, src, bytes as u64))
}

/// The address that one side of a copy means: the host's, a device's, or either.
fn address(kind: c_uint, host: u64, device: u64) -> Result<u64, Error> {
    match kind {
        1 => Ok(host),
        2 | 4 => Ok(device),
        _ => {
            tell("copies of arrays are not in the emulated driver");
            Err(NOT_SUPPORTED)
        }
    }
}

/// A copy in two dimensions.
fn two(c: &Memcpy2d) -> Result<Work, Error> {
    let side = |s: &crate::structs::Side2d| {
        let pitch = if s.pitch == 0 { c.width } else { s.pitch } as u64;
        let start = address(s.memory_type, s.host, s.device)? + s.y as u64 * pitch + s.x as u64;
        Ok(Side { address: start, pitch, slice: 0 })
    };
    let (width, height) = (c.width as u64, c.height as u64);
    Ok(Work::Copy(Box::new(Copy { dst: side(&c.dst)?, src: side(&c.src)?, width, height, depth: 1 })))
}

/// A copy in three dimensions.
pub fn three(c: &Memcpy3d) -> Result<Work, Error> {
    let side = |s: &Side3d| {
        let pitch = if s.pitch == 0 { c.width } else { s.pitch } as u64;
        let slice = pitch * if s.height == 0 { c.height } else { s.height } as u64;
        let start = address(s.memory_type, s.host, s.device)?;
        Ok(Side { address: start + s.z as u64 * slice + s.y as u64 * pitch + s.x as u64, pitch, slice })
    };
    let (width, height, depth) = (c.width as u64, c.height as u64, c.depth as u64);
    Ok(Work::Copy(Box::new(Copy { dst: side(&c.dst)?, src: side(&c.src)?, width, height, depth })))
}

fn fill(dst: u64, pitch: usize, value: c_uint, element: u64, width: usize, height: usize, stream: Handle) -> Call {
    if !dst.is_multiple_of(element) || !(pitch as u64).is_multiple_of(element) {
        return Err(INVALID_VALUE);
    }
    let set =
        Set { dst, pitch: pitch as u64, value, element_bytes: element, width: width as u64, height: height as u64 };
    submit(stream, Work::Set(Box::new(set)))
}

api! {
    fn cuMemcpy(dst: u64, src: u64, bytes: usize) { flat(dst, src, bytes, 0) }
    fn cuMemcpyAsync(dst: u64, src: u64, bytes: usize, stream: Handle) { flat(dst, src, bytes, stream) }
    fn cuMemcpyHtoD_v2(dst: u64, src: u64, bytes: usize) { flat(dst, src, bytes, 0) }
    fn cuMemcpyHtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle) { flat(dst, src, bytes, stream) }
    fn cuMemcpyDtoH_v2(dst: u64, src: u64, bytes: usize) { flat(dst, src, bytes, 0) }
    fn cuMemcpyDtoHAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle) { flat(dst, src, bytes, stream) }
    fn cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize) { flat(dst, src, bytes, 0) }
    fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle) { flat(dst, src, bytes, stream) }

    fn cuMemcpyPeer(dst: u64, to: Handle, src: u64, from: Handle, bytes: usize) {
        let code = cuMemcpyPeerAsync(dst, to, src, from, bytes, 0);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuMemcpyPeerAsync(dst: u64, to: Handle, src: u64, from: Handle, bytes: usize, stream: Handle) {
        {
            let s = state()?;
            s.contexts.get(to)?;
            s.contexts.get(from)?;
        }
        flat(dst, src, bytes, stream)
    }

    fn cuMemcpy2D_v2(copy: *const Memcpy2d) { submit(0, two(&*copy)?) }
    fn cuMemcpy2DUnaligned_v2(copy: *const Memcpy2d) { submit(0, two(&*copy)?) }
    fn cuMemcpy2DAsync_v2(copy: *const Memcpy2d, stream: Handle) { submit(stream, two(&*copy)?) }
    fn cuMemcpy3D_v2(copy: *const Memcpy3d) { submit(0, three(&*copy)?) }
    fn cuMemcpy3DAsync_v2(copy: *const Memcpy3d, stream: Handle) { submit(stream, three(&*copy)?) }
    fn cuMemcpy3DPeer(copy: *const Memcpy3d) { submit(0, three(&*copy)?) }
    fn cuMemcpy3DPeerAsync(copy: *const Memcpy3d, stream: Handle) { submit(stream, three(&*copy)?) }

    fn cuMemsetD8_v2(dst: u64, value: u8, n: usize) { fill(dst, 0, value.into(), 1, n, 1, 0) }
    fn cuMemsetD16_v2(dst: u64, value: u16, n: usize) { fill(dst, 0, value.into(), 2, n, 1, 0) }
    fn cuMemsetD32_v2(dst: u64, value: c_uint, n: usize) { fill(dst, 0, value, 4, n, 1, 0) }
    fn cuMemsetD8Async(dst: u64, value: u8, n: usize, stream: Handle) { fill(dst, 0, value.into(), 1, n, 1, stream) }
    fn cuMemsetD16Async(dst: u64, value: u16, n: usize, stream: Handle) { fill(dst, 0, value.into(), 2, n, 1, stream) }
    fn cuMemsetD32Async(dst: u64, value: c_uint, n: usize, stream: Handle) { fill(dst, 0, value, 4, n, 1, stream) }
    fn cuMemsetD2D8_v2(dst: u64, pitch: usize, value: u8, w: usize, h: usize) {
        fill(dst, pitch, value.into(), 1, w, h, 0)
    }
    fn cuMemsetD2D16_v2(dst: u64, pitch: usize, value: u16, w: usize, h: usize) {
        fill(dst, pitch, value.into(), 2, w, h, 0)
    }
    fn cuMemsetD2D32_v2(dst: u64, pitch: usize, value: c_uint, w: usize, h: usize) {
        fill(dst, pitch, value, 4, w, h, 0)
    }
    fn cuMemsetD2D8Async(dst: u64, pitch: usize, value: u8, w: usize, h: usize, stream: Handle) {
        fill(dst, pitch, value.into(), 1, w, h, stream)
    }
    fn cuMemsetD2D16Async(dst: u64, pitch: usize, value: u16, w: usize, h: usize, stream: Handle) {
        fill(dst, pitch, value.into(), 2, w, h, stream)
    }
    fn cuMemsetD2D32Async(dst: u64, pitch: usize, value: c_uint, w: usize, h: usize, stream: Handle) {
        fill(dst, pitch, value, 4, w, h, stream)
    }

    fn cuMemcpyBatchAsync_v2(
        dsts: *const u64,
        srcs: *const u64,
        sizes: *const usize,
        count: usize,
        _attributes: *const c_void,
        _indices: *const usize,
        _n_attributes: usize,
        stream: Handle,
    ) {
        (0..count).try_for_each(|i| flat(*dsts.add(i), *srcs.add(i), *sizes.add(i), stream))
    }
}
