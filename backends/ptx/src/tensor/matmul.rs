//! The inner product kernel that all matrix instructions share.
//!
//! Numerics: products of decoded elements are exact in f32; one instruction's products are summed in f32, k ascending, from zero;
//! then the accumulator is added once. Hardware aligns the products of one instruction and truncates, in an order that PTX leaves
//! open; both lie within K rounding errors of the exact sum.

/// Rows of A that one pass of the micro-kernel covers.
const ROWS: usize = 4;
/// Columns of B that one pass of the micro-kernel covers; 8 f32 fill two SSE registers per row.
const COLS: usize = 8;

/// `out[m × n] = a[m × k] · b[k × n]`, all row-major and dense. `out` is overwritten.
///
/// # Panics
/// When a slice is shorter than its shape; callers size them.
pub fn multiply(m: usize, n: usize, k: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    if let (16, 8, 16, Ok(a), Ok(b), Ok(out)) = (m, n, k, a.try_into(), b.try_into(), (&mut *out).try_into()) {
        return multiply_16x8x16(a, b, out);
    }
    multiply_slice(m, n, k, 0..k, a, b, out);
}

/// [`multiply`] of the shape of `mma.sync` with 16-bit elements.
fn multiply_16x8x16(a: &[f32; 256], b: &[f32; 128], out: &mut [f32; 128]) {
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<COLS>().0);
    let (fours, out) = (a.as_chunks::<ROWS>().0, out.as_chunks_mut::<COLS>().0.as_chunks_mut::<ROWS>().0);
    for ([a0, a1, a2, a3], out) in fours.iter().zip(out) {
        let mut acc = [[0f32; COLS]; ROWS];
        for (p, row) in b.iter().enumerate().take(16) {
            for (line, x) in acc.iter_mut().zip([a0[p], a1[p], a2[p], a3[p]]) {
                for c in 0..COLS {
                    line[c] += x * row[c];
                }
            }
        }
        *out = acc;
    }
}

/// As [`multiply`], over the part `range` of the k axis only (for block-scaled kinds).
///
/// # Panics
/// When a slice is shorter than its shape; callers size them.
pub fn multiply_slice(
    m: usize,
    n: usize,
    k: usize,
    range: std::ops::Range<usize>,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
) {
    assert!(
        a.len() >= m * k && b.len() >= k * n && out.len() >= m * n && range.end <= k,
        "operands should fit their shapes"
    );
    let full_rows = m - m % ROWS;
    let full_cols = n - n % COLS;
    for i in (0..full_rows).step_by(ROWS) {
        for j in (0..full_cols).step_by(COLS) {
            let mut acc = [[0f32; COLS]; ROWS];
            for p in range.clone() {
                let row: &[f32; COLS] = b[p * n + j..][..COLS].try_into().expect("slice should have COLS elements");
                for (r, line) in acc.iter_mut().enumerate() {
                    let x = a[(i + r) * k + p];
                    for c in 0..COLS {
                        line[c] += x * row[c];
                    }
                }
            }
            for (r, line) in acc.iter().enumerate() {
                out[(i + r) * n + j..][..COLS].copy_from_slice(line);
            }
        }
    }
    let tail = |i: usize, j: usize, out: &mut [f32]| {
        let mut sum = 0f32;
        for p in range.clone() {
            sum += a[i * k + p] * b[p * n + j];
        }
        out[i * n + j] = sum;
    };
    for i in 0..full_rows {
        for j in full_cols..n {
            tail(i, j, out);
        }
    }
    for i in full_rows..m {
        for j in 0..n {
            tail(i, j, out);
        }
    }
}

/// Adds an integer partial sum (exact in f32) to an s32 accumulator, clamping with `satfinite`, wrapping without.
#[must_use]
#[inline]
pub fn add_s32(accumulator: i32, partial: f32, satfinite: bool) -> i32 {
    let sum = i64::from(accumulator) + partial as i64;
    if satfinite { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32 } else { sum as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_shapes_equal_the_triple_loop() {
        for (m, n, k) in [(16, 8, 16), (128, 24, 16), (5, 9, 3), (64, 256, 8)] {
            let a: Vec<f32> = (0..m * k).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let mut out = vec![f32::NAN; m * n];
            multiply(m, n, k, &a, &b, &mut out);
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
                    assert_eq!(out[i * n + j], want, "{i} {j}");
                }
            }
        }
    }

    #[test]
    fn integer_accumulators_wrap_or_clamp() {
        assert_eq!(add_s32(i32::MAX, 1.0, true), i32::MAX);
        assert_eq!(add_s32(i32::MAX, 1.0, false), i32::MIN);
        assert_eq!(add_s32(-5, 7.0, true), 2);
    }
}
