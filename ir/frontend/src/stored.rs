//! Which parameters a checkpoint publishes as codes and scales, from its config.
//!
//! A parameter is marked only where its format is certain and its blocks lie whole in it; every other one stays dense,
//! which is always right: the loader dequantises whatever it finds.

use moec_ir::graph::{Graph, Param};
use moec_ir::quant::QuantFormat;
use moec_ir::weights::{WeightSource, WeightStep};
use moec_weights::Published;
use moec_weights::config::{Declared, Spec};

/// Marks the expert matrices of a layer that the checkpoint stores as codes.
pub(crate) fn mark(published: &Published, graph: &mut Graph) {
    for param in graph.params.iter_mut().filter(|p| is_quantised_matrix(published, p)) {
        let format = match published.declared(&modules(param)) {
            Declared::As(spec) => spec.kernels(),
            Declared::Left | Declared::NoConfig => None,
        };
        param.stored = format.filter(|f| fits(param, f));
    }
}

/// Why an expert matrix of the layer cannot be read, as far as the config tells: the format in words.
pub(crate) fn unread(published: &Published, graph: &Graph) -> Option<String> {
    graph.params.iter().filter(|p| is_quantised_matrix(published, p)).find_map(|p| {
        match published.declared(&modules(p)) {
            Declared::As(Spec::Unread(what)) => Some(what.clone()),
            Declared::As(_) | Declared::Left | Declared::NoConfig => None,
        }
    })
}

fn is_quantised_matrix(published: &Published, param: &Param) -> bool {
    let matrix = param.name.starts_with("experts.") || param.name.starts_with("shared.") && !published.experts_only;
    matrix && !param.name.ends_with("bias")
}

/// An expert stands for all, and every spelling of a name for the same module.
fn modules(param: &Param) -> Vec<String> {
    let module = |n: &String| n.strip_suffix(".weight").unwrap_or(n).replace("{e}", "0");
    names(&param.source).into_iter().map(module).collect()
}

/// Whether a parameter is made of whole blocks of a matrix.
fn fits(param: &Param, format: &QuantFormat) -> bool {
    let matrix = param.ty.dtype.is_float() && param.ty.shape.len() >= 2;
    matrix && whole_blocks(&param.source, format)
}

fn names(source: &WeightSource) -> Vec<&String> {
    match source {
        WeightSource::Tensor { names, .. } | WeightSource::PerExpert { names, .. } => names.iter().collect(),
        WeightSource::FirstOf(list) | WeightSource::LargestInputScale(list) => list.iter().flat_map(names).collect(),
    }
}

/// Whether every way to make the parameter takes whole rows, or rows and columns from one edge of a block to another.
fn whole_blocks(source: &WeightSource, format: &QuantFormat) -> bool {
    let steps = match source {
        WeightSource::Tensor { steps, .. } | WeightSource::PerExpert { steps, .. } => steps,
        WeightSource::FirstOf(list) => return list.iter().all(|s| whole_blocks(s, format)),
        WeightSource::LargestInputScale(_) => return false,
    };
    // Single rows may be chosen as one likes; blocks of rows only whole.
    let any_rows = format.block_rows <= 1;
    steps.iter().all(|step| match step {
        WeightStep::Transpose => true,
        WeightStep::Slice { start, step, len, .. } => {
            any_rows || (*step == 1 && start % format.block_rows == 0 && len % format.block_rows == 0)
        }
        WeightStep::Reshape { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::quant::{Code, ScaleCode};

    #[test]
    fn slices_within_blocks_keep_a_parameter_dense() {
        let blocks = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 };
        let rows = QuantFormat { block_rows: 1, block_cols: 32, ..blocks };
        let slice = |start, step, len| WeightSource::Tensor {
            names: vec!["w".into()],
            steps: vec![WeightStep::Slice { axis: 0, start, step, len, of: None }],
        };
        assert!(whole_blocks(&slice(256, 1, 128), &blocks) && whole_blocks(&slice(1, 2, 40), &rows));
        assert!(!whole_blocks(&slice(40, 1, 128), &blocks) && !whole_blocks(&slice(0, 2, 128), &blocks));
        let either = WeightSource::FirstOf(vec![slice(0, 1, 128), slice(40, 1, 40)]);
        assert!(!whole_blocks(&either, &blocks));
    }
}
