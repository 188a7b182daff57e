//! Tokens that are spread over ranks, and gathered again.

use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_ir::tensor::Data;

/// `n_tokens` on `n_ranks` ranks as evenly as can be; the first ranks get one more.
pub fn split_evenly(n_tokens: usize, n_ranks: u32) -> Vec<usize> {
    let n = n_ranks.max(1) as usize;
    (0..n).map(|r| n_tokens / n + usize::from(r < n_tokens % n)).collect()
}

/// The parts of a tensor whose outermost axis counts tokens, or a multiple of them, for ranks of `counts` tokens each.
///
/// # Errors
/// `input-shape-mismatch` when it does not hold as many.
pub fn split_tokens(tensor: &Tensor, counts: &[usize]) -> Result<Vec<Tensor>, Diagnostic> {
    let total: usize = counts.iter().sum();
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let each = rows.checked_div(total).unwrap_or(1);
    if each * total != rows {
        let what = format!("ranks are to have {total} tokens together, and the tensor {:?} holds others", tensor.shape);
        return Err(Diagnostic::input("input-shape-mismatch", what)
            .help("let the numbers of tokens add up to those of the input"));
    }
    let inner: usize = tensor.shape.iter().skip(1).product();
    let mut at = 0;
    let parts = counts.iter().map(|&n| {
        let range = at * inner..(at + n * each) * inner;
        at += n * each;
        let mut shape = tensor.shape.clone();
        shape[0] = n * each;
        let data = match &tensor.data {
            Data::Float(v) => Data::Float(v[range].to_vec()),
            Data::Int(v) => Data::Int(v[range].to_vec()),
        };
        Tensor { dtype: tensor.dtype, shape, data }
    });
    Ok(parts.collect())
}

/// The tensor whose parts were [`split_tokens`]; `None` for no parts, or parts of different types.
pub fn join_tokens(parts: &[&Tensor]) -> Option<Tensor> {
    let first = *parts.first()?;
    let mut out = first.clone();
    for part in &parts[1..] {
        if part.dtype != first.dtype || part.shape[1..] != first.shape[1..] {
            return None;
        }
        out.shape[0] += part.shape[0];
        match (&mut out.data, &part.data) {
            (Data::Float(a), Data::Float(b)) => a.extend(b),
            (Data::Int(a), Data::Int(b)) => a.extend(b),
            (Data::Float(_), Data::Int(_)) | (Data::Int(_), Data::Float(_)) => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::DType;

    #[test]
    fn tokens_come_back_in_their_order() {
        assert_eq!(split_evenly(7, 3), [3, 2, 2]);
        assert_eq!(split_evenly(0, 2), [0, 0]);
        let x = Tensor::float(DType::F32, &[7, 2], (0..14).map(|i| i as f32).collect());
        for counts in [vec![3, 2, 2], vec![0, 7, 0], vec![7]] {
            let parts = split_tokens(&x, &counts).unwrap();
            assert_eq!(join_tokens(&parts.iter().collect::<Vec<_>>()).unwrap(), x);
        }
        let ids = Tensor::int(DType::I64, &[7], (0..7).collect());
        let parts = split_tokens(&ids, &[1, 6]).unwrap();
        assert_eq!(parts[1].ints(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(split_tokens(&x, &[3, 3]).unwrap_err().code, "input-shape-mismatch");
        assert_eq!(join_tokens(&[&x, &ids]), None);
    }
}
