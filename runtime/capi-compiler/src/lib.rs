//! The compiler for C and C++: `libmoec_compiler` has everything of `libmoec_c`, and [`moec_compile`]. `include/moec_compiler.h` is
//! made from this crate.
//!
//! LLVM is opened when the first GPU kernel is compiled, from the folder of the library, and not before.
#![warn(missing_docs)]
#![allow(non_camel_case_types, reason = "the names are C's")]

use moec::{Bundle, CompileRequest, DType, Diagnostic, LayerOptions, Model, Part, Target};
use moec_c::border::{HostStruct, adopt_bundle, give, guard, null, optional_text, read, text};
pub use moec_c::{moec_bundle, moec_bundle_describe, moec_bundle_free, moec_last_error_code, moec_status};
use std::ffi::c_char;

/// What is compiled. Zero means the usual choice for every field but `struct_size`, the model and `targets`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moec_compile_options {
    /// `sizeof(moec_compile_options)`.
    pub struct_size: usize,
    /// A model folder, a `config.json` or a layer graph; null when `json` has the text.
    pub model: *const c_char,
    /// The text of a config or of a layer graph; null when `model` has the path.
    pub json: *const c_char,
    /// Names with commas between: `"cpu,sm_90a"`.
    pub targets: *const c_char,
    /// Where the bundle is written as well: a folder, or a file that ends in `.tar`; null for nowhere.
    pub output: *const c_char,
    /// 1: `layer` is the model's own number of the layer. 0: its first MoE layer.
    pub has_layer: u32,
    /// The layer.
    pub layer: u32,
    /// Token counts that are compiled for, both ends included; 0 and 0 for any.
    pub min_tokens: u64,
    /// See `min_tokens`.
    pub max_tokens: u64,
    /// The type of ids that the host hands in, `"i32"` or `"i64"`: the routed experts alone are compiled. Null for the
    /// whole layer.
    pub topk_ids: *const c_char,
    /// With `topk_ids`, the type of their weights: `"f32"`, `"bf16"` or `"f16"`; null for `"f32"`.
    pub topk_weights: *const c_char,
}

// SAFETY: integers and pointers, size first.
unsafe impl HostStruct for moec_compile_options {
    const NAME: &str = "moec_compile_options";
    const OLDEST: usize = 80;
}

/// Compiles one MoE layer. `out` gets the bundle, as `moec_bundle_open` would; it may be null when `output` says where it is
/// written.
///
/// Errors: what the config or the layer graph lacks (`unknown-model-type`, `config-value-range`, …), the first of them;
/// `unsupported-op`; `llvm-missing` for GPU targets; `output-not-written`; `argument-null`, `argument-invalid`,
/// `struct-size-invalid`.
///
/// # Safety
/// `options` is null or has `struct_size` bytes, and texts that end with a zero; `out` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moec_compile(options: *const moec_compile_options, out: *mut *mut moec_bundle) -> moec_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let o = unsafe { read(options) }?;
        // SAFETY: as above.
        let (model, json, output) = unsafe {
            (optional_text(o.model, "model")?, optional_text(o.json, "json")?, optional_text(o.output, "output")?)
        };
        // SAFETY: as above.
        let targets = unsafe { targets(text(o.targets, "targets")?) }?;
        // SAFETY: as above.
        let part =
            unsafe { part(optional_text(o.topk_ids, "topk_ids")?, optional_text(o.topk_weights, "topk_weights")?) }?;
        if out.is_null() && output.is_none() {
            return Err(null("out").help("give a place for the bundle, or an `output`"));
        }
        let model = match (model, json) {
            (Some(path), None) => Model::open(path),
            (None, Some(text)) => Model::from_text("json", text.to_string()),
            _ => return Err(invalid("give either `model` or `json`".into())),
        };
        let layer_options = LayerOptions { part, ..LayerOptions::default() };
        let number = (o.has_layer != 0).then_some(o.layer);
        let layer = model.and_then(|m| m.layer_with(number, &layer_options)).map_err(first)?;
        let mut request = CompileRequest { info: layer.info.clone(), ..CompileRequest::new(&layer.graph, targets) };
        if (o.min_tokens, o.max_tokens) != (0, 0) {
            let (min, max, most) = (o.min_tokens, o.max_tokens, request.tokens.1);
            if min > max || max > most {
                return Err(invalid(format!("the tokens {min}..{max} are not within 0..{most} in ascending order")));
            }
            request.tokens = (min, max);
        }
        let bundle = moec::compile(&request)?.bundle;
        if let Some(path) = output {
            write(&bundle, path)?;
        }
        if out.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { give(out, adopt_bundle(bundle), "out") }
    })
}

fn invalid(what: String) -> Diagnostic {
    Diagnostic::input("argument-invalid", what)
}

fn targets(names: &str) -> Result<Vec<&'static Target>, Diagnostic> {
    let find = |name: &str| {
        Target::by_name(name.trim())
            .ok_or_else(|| invalid(format!("`targets` names `{name}`, which moec does not know")))
    };
    names.split(',').map(find).collect()
}

fn part(ids: Option<&str>, weights: Option<&str>) -> Result<Part, Diagnostic> {
    let Some(ids) = ids else {
        return match weights {
            None => Ok(Part::Layer),
            Some(_) => Err(invalid("`topk_weights` needs `topk_ids`".into())),
        };
    };
    let one_of = |what: &str, name: &str, types: &[DType]| {
        let found = types.iter().copied().find(|t| t.to_string() == name);
        found.ok_or_else(|| invalid(format!("`{what}` is `{name}`, which is none of {types:?}")))
    };
    Ok(Part::Experts {
        ids: one_of("topk_ids", ids, &[DType::I32, DType::I64])?,
        weights: one_of("topk_weights", weights.unwrap_or("f32"), &[DType::F32, DType::BF16, DType::F16])?,
    })
}

fn write(bundle: &Bundle, path: &str) -> Result<(), Diagnostic> {
    if path.ends_with(".tar") { bundle.write_archive(path) } else { bundle.write(path) }
}

/// The first diagnostic, with the others as notes.
fn first(list: Vec<Diagnostic>) -> Diagnostic {
    let mut list = list.into_iter();
    let Some(first) = list.next() else {
        return Diagnostic::internal("internal-error", "nothing was said to be wrong");
    };
    list.fold(first, |d, other| d.note(other.to_string()))
}
