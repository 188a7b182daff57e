//! Schemes that are told apart only to be refused by name: their tensors stand where floats would be looked for.

use super::Scheme;

/// HQQ: codes, scales and zero points in a layout that its own settings tensor describes.
pub(super) const HQQ: Scheme = Scheme {
    name: "HQQ",
    codes: |name| name.strip_suffix(".weight").map(|stem| format!("{stem}.W_q")),
    takes: |_| true,
    read: |at| Err(at.unread("by HQQ")),
};

/// optimum-quanto's 2 and 4 bits: the tensor of codes has one of packed codes in it.
pub(super) const QUANTO_PACKED: Scheme = Scheme { codes: |name| Some(format!("{name}._data._data")), ..QUANTO };

/// neural-compressor's AWQ without folding: a module around the layer scales the input, and the layer is within it.
pub(super) const SCALED_INPUT: Scheme = Scheme {
    name: "a layer within a scaled one",
    codes: |name| name.strip_suffix(".weight").map(|stem| format!("{stem}.linear.qweight")),
    takes: |_| true,
    read: |at| Err(at.unread("within a module that scales its input, as neural-compressor writes it")),
};

/// optimum-quanto: a tensor of codes under the float tensor's name.
pub(super) const QUANTO: Scheme = Scheme {
    name: "optimum-quanto",
    codes: |name| Some(format!("{name}._data")),
    takes: |_| true,
    read: |at| Err(at.unread("by optimum-quanto")),
};
