//! Vectors as arrays: any processor, the same bits.

mod integers;

use crate::machine::{Machine, Task};
use crate::round::{narrow_bf16, widen_f16};
use moec_ir::quant::ScaleCode;

/// One column in a vector.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Bytes = [u8; 32];

/// An array of what a function gives for each index; unlike the standard library's, always inlined.
#[inline(always)]
fn make<T: Copy + Default, const N: usize>(of: impl Fn(usize) -> T) -> [T; N] {
    let mut all = [T::default(); N];
    for (i, one) in all.iter_mut().enumerate() {
        *one = of(i);
    }
    all
}

#[inline(always)]
fn words(x: Bytes) -> [u16; 16] {
    make(|i| u16::from_le_bytes([x[2 * i], x[2 * i + 1]]))
}

#[inline(always)]
fn of_words(x: [u16; 16]) -> Bytes {
    make(|i| x[i / 2].to_le_bytes()[i % 2])
}

/// The even and the odd words.
#[inline(always)]
fn widen(x: Bytes, one: impl Fn(u16) -> f32) -> [[f32; 8]; 2] {
    let w = words(x);
    [make(|i| one(w[2 * i])), make(|i| one(w[2 * i + 1]))]
}

impl Machine for Portable {
    type F = [f32; 8];
    type B = Bytes;
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn fma(x: [f32; 8], y: [f32; 8], z: [f32; 8]) -> [f32; 8] {
        make(|i| x[i].mul_add(y[i], z[i]))
    }

    #[inline(always)]
    unsafe fn sum(x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        make(|i| x[i] + y[i])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[f32; 8]>().read() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 8]) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[f32; 8]>().write(x) }
    }

    #[inline(always)]
    unsafe fn spread(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's contract.
        unsafe { Self::load(p) }
    }

    #[inline(always)]
    unsafe fn sums(t: [f32; 8]) -> [f32; 2] {
        let s: [f32; 4] = make(|l| t[l] + t[l + 4]);
        [(s[0] + s[2]) + (s[1] + s[3]), 0.0]
    }

    #[inline(always)]
    unsafe fn bytes(p: [*const u8; 2]) -> Bytes {
        // SAFETY: the caller's contract.
        unsafe { p[0].cast::<Bytes>().read() }
    }

    #[inline(always)]
    unsafe fn quarters(p: [*const u8; 4]) -> Bytes {
        // SAFETY: the caller's contract.
        let halves = unsafe { [p[0].cast::<[u8; 16]>().read(), p[1].cast::<[u8; 16]>().read()] };
        make(|i| halves[i / 16][i % 16])
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> Bytes {
        [byte; 32]
    }

    #[inline(always)]
    unsafe fn and(x: Bytes, y: Bytes) -> Bytes {
        make(|i| x[i] & y[i])
    }

    #[inline(always)]
    unsafe fn or(x: Bytes, y: Bytes) -> Bytes {
        make(|i| x[i] | y[i])
    }

    #[inline(always)]
    unsafe fn xor(x: Bytes, y: Bytes) -> Bytes {
        make(|i| x[i] ^ y[i])
    }

    #[inline(always)]
    unsafe fn equal(x: Bytes, y: Bytes) -> Bytes {
        make(|i| if x[i] == y[i] { 0xff } else { 0 })
    }

    #[inline(always)]
    unsafe fn add(x: Bytes, y: Bytes) -> Bytes {
        make(|i| x[i].wrapping_add(y[i]))
    }

    #[inline(always)]
    unsafe fn down_four(x: Bytes) -> Bytes {
        {
            let w = words(x);
            of_words(make(|i| w[i] >> 4))
        }
    }

    #[inline(always)]
    unsafe fn look_up(table: Bytes, index: Bytes) -> Bytes {
        make(|i| table[i / 16 * 16 + usize::from(index[i] & 15)])
    }

    #[inline(always)]
    unsafe fn interleave(x: Bytes, y: Bytes) -> [Bytes; 2] {
        let byte = |first: usize, i: usize| {
            let at = i / 16 * 16 + first + i % 16 / 2;
            if i.is_multiple_of(2) { x[at] } else { y[at] }
        };
        [make(|i| byte(0, i)), make(|i| byte(8, i))]
    }

    #[inline(always)]
    unsafe fn select(mask: Bytes, x: Bytes, y: Bytes) -> Bytes {
        make(|i| if mask[i] != 0 { x[i] } else { y[i] })
    }

    #[inline(always)]
    unsafe fn widen_bf16(x: Bytes) -> [[f32; 8]; 2] {
        widen(x, |w| f32::from_bits(u32::from(w) << 16))
    }

    #[inline(always)]
    unsafe fn widen_f16(x: Bytes) -> [[f32; 8]; 2] {
        widen(x, widen_f16)
    }

    #[inline(always)]
    unsafe fn deal(x: [Bytes; 2]) -> [[f32; 8]; 2] {
        let float = |i: usize| {
            let from = &x[i % 8 / 4];
            let at = i / 8 * 16 + i % 4 * 4;
            f32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
        };
        [make(|i| float(2 * i)), make(|i| float(2 * i + 1))]
    }

    #[inline(always)]
    unsafe fn entries(values: &[f32; 16], less: u16, factors: *const f32, n: usize, to: *mut u8) {
        for at in 0..n {
            for (i, value) in values.iter().enumerate() {
                // SAFETY: the caller's contract.
                unsafe {
                    let [low, high] = narrow_bf16(value * *factors.add(at)).wrapping_sub(less).to_le_bytes();
                    *to.add(at * 32 + i) = low;
                    *to.add(at * 32 + 16 + i) = high;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn factors(scale: ScaleCode, from: *const u8, first: usize, n: usize, global: f32, to: *mut f32) {
        for i in 0..n {
            // SAFETY: the caller's contract.
            unsafe { *to.add(i) = crate::values::factor(scale, from, first + i, global) };
        }
    }

    #[inline(always)]
    unsafe fn entries_of(values: &[f32; 16], p: [*const f32; 4]) -> [Bytes; 2] {
        let mut entries = [[0u8; 32]; 2];
        // SAFETY: the caller's contract.
        unsafe {
            Self::entries(values, 0, p[0], 1, entries[0].as_mut_ptr());
            Self::entries(values, 0, p[1], 1, entries[1].as_mut_ptr());
            let [a, b] = [entries[0].as_ptr(), entries[1].as_ptr()];
            Self::entry_pairs([a, b, a, b])
        }
    }

    #[inline(always)]
    unsafe fn entry_pairs(p: [*const u8; 4]) -> [Bytes; 2] {
        // SAFETY: the caller's contract.
        unsafe { [Self::quarters(p), Self::quarters([p[0].add(16), p[1].add(16), p[2], p[3]])] }
    }

    #[inline(always)]
    unsafe fn apart(task: &impl Task) {
        #[inline(never)]
        unsafe fn apart(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        // SAFETY: the caller's contract.
        unsafe { apart(task) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_second(_: *const u8) {}
}
