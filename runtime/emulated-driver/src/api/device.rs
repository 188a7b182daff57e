//! Devices and their figures.

use crate::call::*;
use crate::chips::Chip;
use crate::state::state;
use crate::structs::{Handle, Uuid};
use std::ffi::{CStr, CString, c_char, c_int, c_uint};

/// An attribute of a device; `None` for those that do not exist.
fn attribute(chip: &Chip, index: c_int, which: c_uint) -> Option<c_int> {
    let (major, minor) = chip.capability();
    let shared = chip.target().max_shared_bytes() as c_int;
    let hopper = c_int::from(chip.sm >= 90);
    Some(match which {
        // Threads of a block, in all and in each direction.
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 65536,
        // kHz.
        13 => 1_900_000,
        14 => 512,
        16 => chip.multiprocessors,
        // Mapped host memory, several kernels at once.
        19 | 31 => 1,
        30 => 512,
        33 => index + 1,
        36 => chip.bus.1,
        37 => chip.bus.0,
        38 => chip.l2_bytes,
        39 => chip.threads_per_multiprocessor() as c_int,
        40 => 3,
        41 => 1,
        51 => 32,
        75 => major,
        76 => minor,
        // Stream priorities, caches, managed memory.
        78..=80 | 83 => 1,
        81 => chip.shared_per_multiprocessor() as c_int,
        85 => index,
        // Compute preemption, host pointers of registered memory.
        90 | 91 => 1,
        // Managed memory while kernels run (they have ended when a launch returns), cooperative launches.
        89 | 95 => 1,
        97 => shared,
        99 => 1,
        // Virtual memory.
        102 => 1,
        106 => chip.blocks_per_multiprocessor() as c_int,
        108 => chip.l2_bytes / 4 * 3,
        109 => 128 << 20,
        111 => 1024,
        // Memory pools.
        115 => 1,
        120 => hopper,
        126 => {
            if hopper == 1 {
                4
            } else {
                1
            }
        }
        127 => hopper,
        129 => 1,
        132 => hopper,
        // What is left is not there, not needed, or about textures and other interfaces.
        15
        | 17
        | 18
        | 20..=29
        | 32
        | 34
        | 35
        | 42..=50
        | 52..=74
        | 77
        | 84
        | 86..=89
        | 92..=94
        | 96
        | 98
        | 100
        | 101
        | 103..=105
        | 107
        | 110
        | 112..=114
        | 116..=119
        | 121..=125
        | 128
        | 130
        | 131
        | 133
        | 135..=148 => 0,
        134 => -1,
        _ => return None,
    })
}

api! {
    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, state()?.gpus.len() as c_int)
    }

    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        state()?.gpu(ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int) {
        let s = state()?;
        let text = CString::new(format!("{} (emulated)", s.gpu(device)?.chip.title)).unwrap_or_default();
        let room = usize::try_from(bytes).map_err(|_| INVALID_VALUE)?;
        if name.is_null() || room == 0 {
            return Err(INVALID_VALUE);
        }
        let n = text.count_bytes().min(room - 1);
        std::ptr::copy_nonoverlapping(text.as_ptr(), name, n);
        *name.add(n) = 0;
        Ok(())
    }

    fn cuDeviceGetAttribute(value: *mut c_int, which: c_uint, device: c_int) {
        let s = state()?;
        put(value, attribute(&s.gpu(device)?.chip, device, which).ok_or(INVALID_VALUE)?)
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        put(bytes, state()?.gpu(device)?.chip.memory_bytes as usize)
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        let (a, b) = state()?.gpu(device)?.chip.capability();
        put(major, a)?;
        put(minor, b)
    }

    fn cuDeviceGetUuid(uuid: *mut Uuid, device: c_int) {
        state()?.gpu(device)?;
        let mut bytes = *b"moec-emulated-00";
        bytes[15] += device as u8;
        put(uuid, Uuid(bytes.map(|b| b as c_char)))
    }

    fn cuDeviceGetUuid_v2(uuid: *mut Uuid, device: c_int) {
        let code = cuDeviceGetUuid(uuid, device);
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    fn cuDeviceGetPCIBusId(text: *mut c_char, bytes: c_int, device: c_int) {
        state()?.gpu(device)?;
        let id = CString::new(format!("0000:{:02X}:00.0", device + 1)).unwrap_or_default();
        if bytes as usize <= id.count_bytes() {
            return Err(INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(id.as_ptr(), text, id.count_bytes() + 1);
        Ok(())
    }

    fn cuDeviceGetByPCIBusId(device: *mut c_int, text: *const c_char) {
        let text = CStr::from_ptr(text).to_string_lossy();
        let n = state()?.gpus.len() as c_int;
        let found = (0..n).find(|d| text.to_ascii_uppercase().contains(&format!("{:02X}:00", d + 1)));
        put(device, found.ok_or(INVALID_DEVICE)?)
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        let s = state()?;
        s.gpu(device)?;
        s.gpu(peer)?;
        put(can, c_int::from(device != peer))
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, which: c_uint, device: c_int, peer: c_int) {
        let s = state()?;
        s.gpu(device)?;
        s.gpu(peer)?;
        // 2: access; 3: native atomics.
        put(value, c_int::from(device != peer && matches!(which, 2 | 3)))
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, device: c_int) {
        put(pool, state()?.gpu(device)?.default_pool)
    }

    fn cuDeviceGetMemPool(pool: *mut Handle, device: c_int) {
        put(pool, state()?.gpu(device)?.pool)
    }

    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        let mut s = state()?;
        s.pools.get(pool)?;
        s.gpu_mut(device)?.pool = pool;
        Ok(())
    }

    fn cuDeviceGetExecAffinitySupport(supported: *mut c_int, _kind: c_uint, device: c_int) {
        state()?.gpu(device)?;
        put(supported, 0)
    }
}
