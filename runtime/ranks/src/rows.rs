//! Rows as they travel.

use moec_ir::graph::Wire;
use moec_ir::tensor::Data;
use moec_ir::{ActQuant, DType, Tensor};

/// Rows of a tensor, ready to be sent.
pub(crate) struct Sender {
    wire: Wire,
    cols: usize,
    /// The elements as they travel, or their values.
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Sender {
    pub fn new(rows: &Tensor, wire: Wire) -> Sender {
        let (bytes, values) = match wire {
            Wire::Rows(_) => (rows.to_bytes(), Vec::new()),
            Wire::Codes(_) => (Vec::new(), rows.floats().to_vec()),
        };
        Sender { wire, cols: rows.cols(), bytes, values }
    }

    /// Writes row `i` behind `out`.
    pub fn write(&self, i: usize, out: &mut Vec<u8>) {
        match self.wire {
            Wire::Rows(_) => {
                let n = self.wire.row_bytes(self.cols as u64) as usize;
                out.extend(&self.bytes[i * n..(i + 1) * n]);
            }
            Wire::Codes(q) => write_codes(q, &self.values[i * self.cols..(i + 1) * self.cols], out),
        }
    }
}

/// Codes, then scales, then the row's global scale where there is one.
fn write_codes(q: ActQuant, row: &[f32], out: &mut Vec<u8>) {
    let (coded, format) = (q.encode(row, 1.0), q.stored());
    out.extend(&coded.codes);
    coded.scales.iter().for_each(|&s| out.extend(format.scale.encode(s)));
    if q.has_row() {
        out.extend(coded.global.to_le_bytes());
    }
}

/// The elements of rows that came, of type `dtype`.
pub(crate) fn received(wire: Wire, cols: usize, dtype: DType, rows: &[u8]) -> Option<Tensor> {
    let row_bytes = wire.row_bytes(cols as u64) as usize;
    let n = rows.len() / row_bytes.max(1);
    match wire {
        Wire::Rows(sent) => Tensor::from_bytes(sent, &[n, cols], rows),
        Wire::Codes(q) => {
            let f = q.stored();
            let codes = f.code.bytes(cols as u64) as usize;
            let mut values = vec![0.0; n * cols];
            for (row, out) in rows.chunks_exact(row_bytes).zip(values.chunks_mut(cols.max(1))) {
                let (codes, rest) = row.split_at(codes);
                let (scales, global) = rest.split_at(rest.len() - if q.has_row() { 4 } else { 0 });
                let global = global.try_into().map_or(1.0, f32::from_le_bytes);
                f.decode_row(codes, scales, global, 0, (1, cols as u64), out);
            }
            Some(Tensor::float(dtype, &[n, cols], values))
        }
    }
}

/// `n` rows whose columns came in parts, each of so many columns; `None` when a part has another size.
pub(crate) fn join<'p>(
    dtype: DType,
    n: usize,
    widths: &[usize],
    parts: impl Iterator<Item = &'p Vec<u8>>,
) -> Option<Tensor> {
    let cols: usize = widths.iter().sum();
    let mut bytes = vec![0u8; n * cols * dtype.bytes()];
    let mut at = 0;
    for (part, width) in parts.zip(widths.iter().map(|w| w * dtype.bytes())) {
        if part.len() != n * width {
            return None;
        }
        let rows = bytes.chunks_exact_mut((cols * dtype.bytes()).max(1));
        rows.zip(part.chunks_exact(width.max(1))).for_each(|(row, part)| row[at..at + width].copy_from_slice(part));
        at += width;
    }
    Tensor::from_bytes(dtype, &[n, cols], &bytes)
}

/// `rows[i]` for each `i` of `which`.
pub(crate) fn take(rows: &Tensor, which: &[usize]) -> Tensor {
    let cols = rows.cols();
    let shape = [which.len(), cols];
    match &rows.data {
        Data::Float(v) => {
            let values = which.iter().flat_map(|&i| &v[i * cols..(i + 1) * cols]).copied().collect();
            Tensor { dtype: rows.dtype, shape: shape.to_vec(), data: Data::Float(values) }
        }
        Data::Int(v) => {
            Tensor::int(rows.dtype, &shape, which.iter().flat_map(|&i| &v[i * cols..(i + 1) * cols]).copied().collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_on_the_wire_have_the_values_of_the_layers_own_rounding() {
        let (cols, n) = (300, 5);
        let mut values: Vec<f32> =
            (0..3 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.3f32.powi(i as i32 / 40 - 8)).collect();
        // The largest number, which some formats round up to infinity, and infinity itself.
        values.extend((0..cols).map(|i| if i == 40 { -f32::MAX } else { 1.0 }));
        values.extend((0..cols).map(|i| if i == 200 { f32::INFINITY } else { f32::MAX }));
        let rows = Tensor::float(DType::F32, &[n, cols], values);
        for (name, q) in ActQuant::NAMES.into_iter().filter(|(_, q)| !q.has_global()) {
            let (wire, mut bytes) = (Wire::Codes(q), Vec::new());
            let sender = Sender::new(&rows, wire);
            (0..n).for_each(|i| sender.write(i, &mut bytes));
            assert_eq!(bytes.len(), n * wire.row_bytes(cols as u64) as usize, "{name}");
            let want: Vec<f32> = rows.floats().chunks(cols).flat_map(|r| q.quantise(r, 1.0)).collect();
            let got = received(wire, cols, DType::F32, &bytes).unwrap();
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            let differs = got.floats().iter().zip(&want).position(|p| !same(p));
            assert_eq!(differs, None, "{name}: {:?}", differs.map(|i| (got.floats()[i], want[i])));
        }
    }

    #[test]
    fn rows_of_elements_arrive_as_they_were() {
        let rows = Tensor::float(DType::BF16, &[2, 3], vec![1.0, -0.0, 3.5, 4.0, 5.0, 6.0]);
        let (wire, mut bytes) = (Wire::Rows(DType::BF16), Vec::new());
        let sender = Sender::new(&rows, wire);
        [1, 0].iter().for_each(|&i| sender.write(i, &mut bytes));
        let got = received(wire, 3, DType::BF16, &bytes).unwrap();
        assert_eq!(take(&got, &[1, 0]), rows);
        assert_eq!(received(wire, 3, DType::BF16, &[]).unwrap().shape, [0, 3]);
    }
}
