//! MXFP4 of gpt-oss: `N_blocks` U8 `[.., N, K/32, 16]` with `N_scales` U8 `[.., N, K/32]`; the float tensor is the transpose
//! `[.., K, N]`.
//!
//! Source: gpt-oss (`gpt_oss/torch/weights.py`); transformers (`integrations/mxfp4.py`).

use super::fp8::MXFP4;
use super::read::Found;
use super::{ConfigReader, Scheme, everywhere};
use crate::config::{CodedSpec, Spec};
use crate::decode::{Blocks, Elements};
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::Code;
use std::sync::Arc;

/// `quant_method` mxfp4: routed experts and nothing else.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, _| method == "mxfp4",
    read: |_, _| {
        let words = "MXFP4".to_string();
        Ok(everywhere(Spec::Coded(CodedSpec { words, format: MXFP4, blocks_said: true })))
    },
    irrelevant: &[],
};

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "MXFP4 of gpt-oss",
    codes: |name| Some(format!("{name}_blocks")),
    takes: |_| true,
    read: |at| read(at).map(Some),
};

fn read<'a>(at: &Found<'a, '_>) -> Result<Elements<'a>, Diagnostic> {
    let names = [format!("{}_scales", at.name)];
    let (scales_name, scales) = at.need(&names, "U8, the shape of the codes without the last axis")?;
    let bytes = |dtype| matches!(dtype, StoredType::U8 | StoredType::F8_E8M0);
    let (&[ref leading @ .., n, groups, 16], true) = (at.codes.shape, at.codes.dtype == StoredType::U8) else {
        return Err(at.fits_not(&scales_name, &scales, "blocks are 16 bytes, 32 codes, along the last axis"));
    };
    if scales.shape != &at.codes.shape[..at.codes.shape.len() - 1] || !bytes(scales.dtype) {
        return Err(at.fits_not(&scales_name, &scales, "one e8m0 byte for each block of 32 codes is needed"));
    }
    let k = Code::E2M1.bits() * 8 * groups;
    at.check_coded(&MXFP4, n, k)?;
    Ok(Elements::Blocks(Arc::new(Blocks {
        format: MXFP4,
        leading: leading.to_vec(),
        n,
        k,
        transposed: true,
        codes: (at.codes.data, Blocks::dense_codes(&MXFP4, n, k)),
        scales: (scales.data, Blocks::dense_scales(&MXFP4, n, k)),
        globals: Vec::new(),
        column_scales: Vec::new(),
        scales_name,
    })))
}
