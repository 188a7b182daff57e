//! Families that are known but need what the graph IR does not have.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, Missing};
use crate::layers;
use crate::spec::MoeSpec;

/// Doge: its code views router logits `[T, 2N]` as `[2, T, N]`, so that a token is routed by the logits of others, and by
/// which ones depends on how many tokens there are. With a batch of one token it would be product keys.
pub(super) const DOGE: Family = Family {
    model_types: &["doge"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let detail = "its published code reads the router's logits [T, 2N] as [2, T, N], so that a token is routed by the \
                      logits of other tokens, and by other ones for every number of tokens";
        refused(c, layer, Missing::MixedTokens, detail, Some("num_experts"))
    },
};

/// ViTPose: the data set that a picture comes from names its expert, and an expert makes only the last columns of the
/// output from what all share.
pub(super) const VITPOSE: Family = Family {
    model_types: &["vitpose_backbone"],
    prefixes: &[],
    moe_layers: |c| if c.size_or(&["num_experts"], 1, MAX_EXPERTS) > 1 { layers::all(c) } else { Vec::new() },
    extra_layers: &[],
    spec: |c, layer| {
        let detail = "no router chooses its experts: the data set of a picture names one for all of its tokens, and it makes \
                      the last `part_features` columns of an MLP that all share";
        refused(c, layer, Missing::Structure, detail, Some("part_features"))
    },
};

/// Records the reason. The layer itself is a placeholder that nobody sees, because the reason is an error.
fn refused(c: &Keys, layer: u32, missing: Missing, detail: &str, key: Option<&str>) -> MoeSpec {
    c.refuse(missing, detail, key);
    let placeholder = Keys::new(c.text.clone(), c.model_type.clone(), c.dtype, c.prefixes.clone());
    super::mixtral::spec(&placeholder, layer)
}
