//! What all ranks have, on the first of them.

use crate::step::{StepResult, Traffic};
use moec_ir::Tensor;

/// A step's result as it travels to the rank that gathers, whose own tells names and types.
pub(crate) fn to_bytes(step: &StepResult) -> Vec<u8> {
    let mut out = Vec::new();
    let mut piece = |bytes: &[u8]| {
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(bytes);
    };
    let t = &step.traffic;
    let words =
        [step.map_version, t.rows_sent, t.row_bytes_sent, t.slots_computed, t.result_bytes_sent, t.slots_dropped];
    piece(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    piece(step.findings.join("\n").as_bytes());
    for (_, tensor) in &step.outputs {
        piece(&(tensor.shape.first().copied().unwrap_or(0) as u64).to_le_bytes());
        piece(&tensor.to_bytes());
    }
    out
}

/// Reads it back; `None` for what is no such result.
pub(crate) fn from_bytes(bytes: &[u8], own: &StepResult) -> Option<StepResult> {
    let mut rest = bytes;
    let mut piece = || {
        let (n, behind) = rest.split_at_checked(8)?;
        let (piece, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(n.try_into().ok()?)).ok()?)?;
        rest = behind;
        Some(piece)
    };
    let words: Vec<u64> =
        piece()?.chunks_exact(8).map(|c| Some(u64::from_le_bytes(c.try_into().ok()?))).collect::<Option<_>>()?;
    let &[map_version, rows_sent, row_bytes_sent, slots_computed, result_bytes_sent, slots_dropped] = &words[..] else {
        return None;
    };
    let findings = std::str::from_utf8(piece()?).ok()?.lines().map(str::to_string).collect();
    let mut outputs = Vec::new();
    for (name, own) in &own.outputs {
        let rows = u64::from_le_bytes(piece()?.try_into().ok()?);
        let mut shape = own.shape.clone();
        *shape.first_mut()? = usize::try_from(rows).ok()?;
        outputs.push((name.clone(), Tensor::from_bytes(own.dtype, &shape, piece()?)?));
    }
    let traffic = Traffic { rows_sent, row_bytes_sent, slots_computed, result_bytes_sent, slots_dropped };
    Some(StepResult { outputs, traffic, map_version, findings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::DType;

    #[test]
    fn a_result_is_read_back() {
        let of = |n: usize| StepResult {
            outputs: vec![
                ("output".into(), Tensor::float(DType::BF16, &[n, 2], vec![1.5; 2 * n])),
                ("topk_ids".into(), Tensor::int(DType::I32, &[n, 1], vec![-1; n])),
            ],
            traffic: Traffic {
                rows_sent: 1,
                row_bytes_sent: 2,
                slots_computed: 3,
                result_bytes_sent: 4,
                slots_dropped: 5,
            },
            map_version: 6,
            findings: vec!["a".into(), "b".into()],
        };
        let (theirs, own) = (of(3), of(0));
        let bytes = to_bytes(&theirs);
        let read = from_bytes(&bytes, &own).unwrap();
        assert_eq!((&read.outputs, read.traffic, read.map_version), (&theirs.outputs, theirs.traffic, 6));
        assert_eq!(read.findings, theirs.findings);
        assert!(from_bytes(&bytes[..bytes.len() - 1], &own).is_none());
        assert!(from_bytes(&[], &own).is_none());
    }
}
