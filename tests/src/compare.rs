//! Comparing results.

use moec_ir::Tensor;
use moec_ir::graph::Graph;

/// Compares all outputs of a layer: integers must be equal, floats within the tolerance as a whole, by
/// row and by element ([`Tensor::worst_error`]).
///
/// # Errors
/// A sentence with the output's name, the first difference and where it is.
pub fn outputs(graph: &Graph, got: &[Tensor], want: &[Tensor], tolerance: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} outputs instead of {}", got.len(), want.len()));
    }
    for ((name, _), (g, w)) in graph.outputs.iter().zip(got.iter().zip(want)) {
        if g.elements() != w.elements() {
            return Err(format!("`{name}` has shape {:?} instead of {:?}", g.shape, w.shape));
        }
        let cols = w.cols().max(1);
        if let Some(i) = (0..w.ints().len()).find(|&i| g.ints().get(i) != w.ints().get(i)) {
            let (row, col) = (i / cols, i % cols);
            let rows = |t: &Tensor| t.ints().chunks(cols).nth(row).map(<[i64]>::to_vec);
            return Err(format!("`{name}` differs in row {row}, column {col}: {:?} instead of {:?}", rows(g), rows(w)));
        }
        let error = g.worst_error(w);
        if error > tolerance {
            let worst = worst(g, w).map_or(String::new(), |i| {
                format!(
                    "; worst in row {}, column {}: {} instead of {}",
                    i / cols,
                    i % cols,
                    g.floats()[i],
                    w.floats()[i]
                )
            });
            return Err(format!("`{name}` has a relative error of {error:.2e}, more than {tolerance:.0e}{worst}"));
        }
    }
    Ok(())
}

/// Index of the largest difference; a NaN on one side only counts most.
fn worst(got: &Tensor, want: &Tensor) -> Option<usize> {
    let difference = |i: &usize| {
        let (g, w) = (got.floats()[*i], want.floats()[*i]);
        match (g.is_nan(), w.is_nan()) {
            (true, true) => 0.0,
            (false, false) if g == w => 0.0,
            (false, false) => (g - w).abs(),
            _ => f32::INFINITY,
        }
    };
    (0..got.floats().len().min(want.floats().len())).max_by(|a, b| difference(a).total_cmp(&difference(b)))
}
