//! Comparing results with what was expected.

use crate::layer::{Layer, RunResult};
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use serde::{Deserialize, Serialize};

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// `output`, or `buffer NAME`.
    pub what: String,
    /// Floats: [`Tensor::worst_error`]. Integers: how many elements differ. Infinite for another shape.
    #[serde(with = "finite_or_text")]
    pub error: f64,
    /// Largest error that is accepted.
    pub tolerance: f64,
    /// Whether it is.
    pub ok: bool,
}

/// JSON has no infinity.
mod finite_or_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(x: &f64, s: S) -> Result<S::Ok, S::Error> {
        if x.is_finite() { s.serialize_f64(*x) } else { s.serialize_str(&x.to_string()) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        match Either::deserialize(d)? {
            Either::Number(x) => Ok(x),
            Either::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Compares a result with what was expected: floats by [`Tensor::worst_error`], integers element by element.
pub fn compare(what: impl Into<String>, got: &Tensor, want: &Tensor, tolerance: f64) -> Check {
    let same_kind = got.dtype.is_float() == want.dtype.is_float() && got.shape == want.shape;
    let (error, tolerance) = if !same_kind {
        (f64::INFINITY, tolerance)
    } else if got.dtype.is_float() {
        (got.worst_error(want), tolerance)
    } else {
        (got.ints().iter().zip(want.ints()).filter(|(a, b)| a != b).count() as f64, 0.0)
    };
    Check { what: what.into(), error, tolerance, ok: error <= tolerance }
}

/// Every comparison that the data file of a case asks for.
pub(crate) fn check_run(
    layer: &Layer,
    run: &RunResult,
    data: &[(String, Tensor)],
    n_tokens: u64,
    tolerance: f64,
) -> Result<Vec<Check>, Diagnostic> {
    let find = |name: &str| data.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    let mut checks = Vec::new();
    let sampled = |t: &Tensor| find("sampled").map_or_else(|| t.clone(), |marks| keep_rows(t, marks));
    let outputs: Vec<(&String, Tensor)> = run.outputs.iter().map(|(name, t)| (name, sampled(t))).collect();
    let output = |name: &str| outputs.iter().find(|(n, _)| *n == name).map(|(_, t)| t);
    let got = by_expert(output("topk_ids"), output("topk_weights"));
    let want = by_expert(find("expected.topk_ids"), find("expected.topk_weights"));
    for (name, tensor) in &outputs {
        let Some(expected) = find(&format!("expected.{name}")) else { continue };
        let pair = match (name.as_str(), &got, &want) {
            ("topk_ids", Some((got, _)), Some((want, _))) => (got, want),
            ("topk_weights", Some((_, got)), Some((_, want))) => (got, want),
            _ => (tensor, expected),
        };
        checks.push(compare(name.as_str(), pair.0, pair.1, tolerance));
    }
    let there = layer.intermediates(n_tokens)?;
    for (name, expected) in data {
        // A program for another machine may keep another intermediate; what it does not have it cannot get wrong.
        let Some(buffer) = name.strip_prefix("buffer.").filter(|b| there.contains(b)) else { continue };
        let (mut got, mut want) = (layer.read_buffer(buffer, n_tokens)?, expected.clone());
        if let Some(rows) = find(&format!("rows.{buffer}")) {
            (got, want) = (keep_rows(&got, rows), keep_rows(&want, rows));
        }
        checks.push(compare(format!("buffer {buffer}"), &got, &want, tolerance));
    }
    Ok(checks)
}

/// Rows of a matrix that are marked 1.
fn keep_rows(matrix: &Tensor, marks: &Tensor) -> Tensor {
    let cols = matrix.cols().max(1);
    let kept: Vec<usize> = (0..matrix.elements() / cols).filter(|&r| marks.ints().get(r) == Some(&1)).collect();
    let range = |r: usize| r * cols..(r + 1) * cols;
    let shape = [kept.len(), cols];
    if matrix.dtype.is_float() {
        let values = kept.iter().flat_map(|&r| &matrix.floats()[range(r)]).copied().collect();
        Tensor::float(matrix.dtype, &shape, values)
    } else {
        let values = kept.iter().flat_map(|&r| &matrix.ints()[range(r)]).copied().collect();
        Tensor::int(matrix.dtype, &shape, values)
    }
}

/// Each token's choices in the order of their ids, since the order of the choices has no meaning.
fn by_expert(ids: Option<&Tensor>, weights: Option<&Tensor>) -> Option<(Tensor, Tensor)> {
    let (ids, weights) = (ids?, weights?);
    if ids.shape != weights.shape || ids.dtype.is_float() || !weights.dtype.is_float() {
        return None;
    }
    let k = ids.cols().max(1);
    let (mut sorted_ids, mut sorted_weights) = (Vec::new(), Vec::new());
    for (row_ids, row_weights) in ids.ints().chunks(k).zip(weights.floats().chunks(k)) {
        let mut order: Vec<usize> = (0..row_ids.len()).collect();
        order.sort_by_key(|&i| row_ids[i]);
        sorted_ids.extend(order.iter().map(|&i| row_ids[i]));
        sorted_weights.extend(order.iter().map(|&i| row_weights[i]));
    }
    // One type for both sides: an id is an id in 32 bits and in 64.
    let ids = Tensor::int(moec_ir::DType::I64, &ids.shape, sorted_ids);
    Some((ids, Tensor::float(weights.dtype, &weights.shape, sorted_weights)))
}

/// Whether two runs gave the same bits, NaNs included.
pub(crate) fn same_bits(a: &RunResult, b: &RunResult) -> bool {
    a.outputs.len() == b.outputs.len()
        && a.outputs.iter().zip(&b.outputs).all(|((_, x), (_, y))| x.to_bytes() == y.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::DType;

    #[test]
    fn other_shapes_and_kinds_are_infinitely_wrong() {
        let a = Tensor::float(DType::F32, &[2], vec![1.0, 2.0]);
        let b = Tensor::int(DType::I32, &[2], vec![1, 2]);
        assert!(compare("x", &a, &a, 0.0).ok);
        assert_eq!(compare("x", &a, &b, 1.0).error, f64::INFINITY);
        assert_eq!(compare("x", &a, &Tensor::float(DType::F32, &[2, 1], vec![1.0, 2.0]), 1.0).error, f64::INFINITY);
        assert_eq!(compare("x", &b, &Tensor::int(DType::I32, &[2], vec![1, 3]), 1.0).error, 1.0);
    }

    #[test]
    fn choices_are_compared_as_sets() {
        let ids = |v: Vec<i64>| Tensor::int(DType::I32, &[2, 2], v);
        let weights = |v: Vec<f32>| Tensor::float(DType::F32, &[2, 2], v);
        let a = by_expert(Some(&ids(vec![3, 1, 0, 2])), Some(&weights(vec![0.3, 0.1, 0.5, 0.6])));
        let b = by_expert(Some(&ids(vec![1, 3, 2, 0])), Some(&weights(vec![0.1, 0.3, 0.6, 0.5])));
        assert!(a.is_some() && a == b);
    }

    #[test]
    fn unmarked_rows_are_left_out() {
        let m = Tensor::float(DType::F32, &[3, 2], vec![1.0, 2.0, f32::NAN, f32::NAN, 5.0, 6.0]);
        let marks = Tensor::int(DType::I32, &[3], vec![1, 0, 1]);
        assert_eq!(keep_rows(&m, &marks).floats(), [1.0, 2.0, 5.0, 6.0]);
    }

    #[test]
    fn infinite_errors_survive_json() {
        let check = Check { what: "x".into(), error: f64::INFINITY, tolerance: 0.1, ok: false };
        let text = serde_json::to_string(&check).expect("json");
        assert_eq!(serde_json::from_str::<Check>(&text).expect("back"), check);
    }
}
