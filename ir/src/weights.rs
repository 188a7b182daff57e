//! Where a weight comes from: checkpoint tensors and the steps from their published layout to the graph's.

use serde::{Deserialize, Serialize};

/// One step from a stored layout to the layout that the graph asks for.
///
/// Axes count from the outermost (0) of the tensor at that step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightStep {
    /// Swaps the last two axes (stored `[E, K, N]`, wanted `[E, N, K]`).
    Transpose,
    /// Keeps `len` entries of `axis`, from `start`, `step` apart (a half: step 1; interleaved rows: step 2).
    Slice {
        /// The axis that is cut.
        axis: u32,
        /// First entry kept.
        start: u64,
        /// Distance between kept entries.
        step: u64,
        /// Number of kept entries.
        len: u64,
        /// Entries that the axis has to have, where that is known: more of them are another tensor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<u64>,
    },
    /// Reads the same elements, in order, under another shape with as many elements.
    Reshape {
        /// The new shape.
        shape: Vec<u64>,
    },
}

/// Where the elements of a parameter come from in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightSource {
    /// One tensor of the checkpoint, then `steps` in order. The first of `names` that exists is read: a family may have
    /// been published under more than one spelling.
    Tensor {
        /// Candidate tensor names, most usual first.
        names: Vec<String>,
        /// Steps to the graph's layout.
        steps: Vec<WeightStep>,
    },
    /// One tensor per expert, stacked along a new outermost axis; `{e}` in a name stands for the expert number
    /// first…first+count-1.
    PerExpert {
        /// Candidate name templates, most usual first.
        names: Vec<String>,
        /// Number of the first expert; not 0 in a shard.
        #[serde(default, skip_serializing_if = "is_zero")]
        first: u64,
        /// Number of experts.
        count: u64,
        /// Steps applied to each expert's tensor before stacking.
        steps: Vec<WeightStep>,
    },
    /// The first of these sources whose tensors are in the checkpoint: layouts that differ between publishers.
    FirstOf(Vec<WeightSource>),
    /// One number: the largest of the static scales of activations that a checkpoint holds beside these matrices. Rows that
    /// several matrices multiply are quantised once, so that they have one scale.
    LargestInputScale(Vec<WeightSource>),
}

impl WeightSource {
    /// A tensor taken as it is.
    pub fn tensor(name: impl Into<String>) -> WeightSource {
        WeightSource::Tensor { names: vec![name.into()], steps: Vec::new() }
    }

    /// One tensor per expert, taken as they are; `{e}` stands for the expert number.
    pub fn per_expert(template: impl Into<String>, count: u64) -> WeightSource {
        WeightSource::PerExpert { names: vec![template.into()], first: 0, count, steps: Vec::new() }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
