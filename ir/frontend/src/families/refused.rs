//! Families that are known but need what the graph IR does not have.

use super::Family;
use crate::keys::{Keys, Missing};
use crate::layers;
use crate::spec::MoeSpec;

pub(super) const PHIMOE: Family = family(&["phimoe"], |c, layer| {
    let detail = "the second expert is chosen by a softmax that excludes the first, and both are masked by a threshold";
    refused(c, layer, Missing::SparseMixer, detail, Some("router_jitter_noise"))
});

pub(super) const ZAYA: Family = family(&["zaya"], |c, layer| {
    refused(
        c,
        layer,
        Missing::RouterNetwork,
        "the router is an MLP that reads the previous layer's router",
        Some("router_hidden_size"),
    )
});

pub(super) const DOGE: Family = family(&["doge"], |c, layer| {
    refused(c, layer, Missing::Structure, "product-key experts of rank one", Some("num_experts"))
});

pub(super) const INKLING: Family = family(&["inkling", "inkling_text"], |c, layer| {
    let detail = "shared experts take part in the normalisation of the routing weights";
    refused(c, layer, Missing::Structure, detail, Some("shared_expert_sink"))
});

const fn family(model_types: &'static [&'static str], spec: fn(&Keys, u32) -> MoeSpec) -> Family {
    Family { model_types, prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec }
}

/// Records the reason. The layer itself is a placeholder that nobody sees, because the reason is an error.
fn refused(c: &Keys, layer: u32, missing: Missing, detail: &str, key: Option<&str>) -> MoeSpec {
    c.refuse(missing, detail, key);
    let placeholder = Keys::new(c.text.clone(), c.model_type.clone(), c.dtype, c.prefixes.clone());
    super::mixtral::spec(&placeholder, layer)
}
