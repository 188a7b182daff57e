//! The quantised matrices of `com.microsoft::QMoE`: which initialisers belong together.
//!
//! The names of initialisers are the exporter's own, so that no convention tells codes from scales; the node does. Codes `N` get
//! the name `N.qmoe4` or `N.qmoe8`, by their bits, their scales `N.qmoe_scales` and their zero points `N.qmoe_zeros`.

use super::{Attribute, Node, invalid};
use crate::read::checkpoint::Part;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// Places of operands that make up one matrix of the experts.
pub struct QmoeMatrix {
    /// What its attributes begin with.
    pub name: &'static str,
    /// `[E, N, K·bits/8]`
    pub codes: usize,
    /// `[E, N]`, or `[E, N, K/block_size]`
    pub scales: usize,
    /// `[E, N]`
    pub bias: usize,
    /// As scales, in whole bytes along the last axis.
    pub zeros: usize,
}

/// The matrices of a node: first, second, and a gate of its own.
pub const QMOE_MATRICES: [QmoeMatrix; 3] = [
    QmoeMatrix { name: "fc1", codes: 2, scales: 3, bias: 4, zeros: 11 },
    QmoeMatrix { name: "fc2", codes: 5, scales: 6, bias: 7, zeros: 12 },
    QmoeMatrix { name: "fc3", codes: 8, scales: 9, bias: 10, zeros: 13 },
];

impl QmoeMatrix {
    /// Bits of a code, as the node says.
    pub fn bits(&self, node: &Node) -> i64 {
        let number = |name: &str| match node.attributes.get(name) {
            Some(Attribute::Int(bits)) => Some(*bits),
            _ => None,
        };
        number(&format!("{}_expert_weight_bits", self.name)).or_else(|| number("expert_weight_bits")).unwrap_or(4)
    }
}

/// Whether a node is a quantised mixture of experts.
pub(super) fn is_qmoe(node: &Node) -> bool {
    node.domain == "com.microsoft" && node.op == "QMoE"
}

/// Names codes, scales and zero points as schemes of weights look for them.
///
/// # Errors
/// `onnx-invalid` where two nodes read the same codes differently.
pub(super) fn name_codes(path: &Path, nodes: &[Node], parts: &mut [Part]) -> Result<(), Diagnostic> {
    let mut seen: BTreeMap<&str, (i64, &str, &str)> = BTreeMap::new();
    for node in nodes.iter().filter(|n| is_qmoe(n)) {
        let operand = |at: usize| node.inputs.get(at).map_or("", String::as_str);
        for matrix in &QMOE_MATRICES {
            let (codes, how) =
                (operand(matrix.codes), (matrix.bits(node), operand(matrix.scales), operand(matrix.zeros)));
            match seen.insert(codes, how) {
                Some(other) if other != how => {
                    return Err(invalid(path, format!("two nodes read the codes `{codes}` with other scales or bits")));
                }
                None if !codes.is_empty() => rename(parts, codes, how),
                _ => {}
            }
        }
    }
    Ok(())
}

fn rename(parts: &mut [Part], codes: &str, (bits, scales, zeros): (i64, &str, &str)) {
    for part in parts {
        for (from, end) in [(scales, "qmoe_scales"), (zeros, "qmoe_zeros")] {
            if let Some(entry) = part.entries.get(from).cloned() {
                part.entries.insert(format!("{codes}.{end}"), entry);
            }
        }
        if let Some(entry) = part.entries.remove(codes) {
            part.entries.insert(format!("{codes}.qmoe{bits}"), entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_two_nodes_have_one_meaning() {
        let node = |scales: &str, bits: i64| Node {
            domain: "com.microsoft".into(),
            op: "QMoE".into(),
            inputs: ["x", "logits", "codes", scales].map(String::from).to_vec(),
            attributes: [("expert_weight_bits".to_string(), Attribute::Int(bits))].into(),
            ..Node::default()
        };
        let named = |nodes: &[Node]| name_codes(Path::new("model.onnx"), nodes, &mut []).map_err(|d| d.code);
        assert_eq!(named(&[node("scales", 4), node("scales", 4)]), Ok(()));
        assert_eq!(named(&[node("scales", 4), node("others", 4)]), Err("onnx-invalid".to_string()));
        assert_eq!(named(&[node("scales", 4), node("scales", 8)]), Err("onnx-invalid".to_string()));
    }
}
