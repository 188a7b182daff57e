//! Families that are known but need what the graph IR does not have.

use super::Family;
use crate::keys::{Keys, Missing};
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

/// Records the reason. The layer itself is a placeholder that nobody sees, because the reason is an error.
fn refused(c: &Keys, layer: u32, missing: Missing, detail: &str, key: Option<&str>) -> MoeSpec {
    c.refuse(missing, detail, key);
    let placeholder = Keys::new(c.text.clone(), c.model_type.clone(), c.dtype, c.prefixes.clone());
    super::mixtral::spec(&placeholder, layer)
}
