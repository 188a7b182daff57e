//! Schemes that are told apart only to be refused by name: their tensors stand where floats would be looked for.

use super::Scheme;

/// HQQ: codes, scales and zero points in a layout that its own settings tensor describes.
pub(super) const HQQ: Scheme = Scheme {
    name: "HQQ",
    codes: |name| name.strip_suffix(".weight").map(|stem| format!("{stem}.W_q")),
    takes: |_| true,
    read: |at| Err(at.unread("by HQQ")),
};

/// optimum-quanto: a tensor of codes under the float tensor's name.
pub(super) const QUANTO: Scheme = Scheme {
    name: "optimum-quanto",
    codes: |name| Some(format!("{name}._data")),
    takes: |_| true,
    read: |at| Err(at.unread("by optimum-quanto")),
};
